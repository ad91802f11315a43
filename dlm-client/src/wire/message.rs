//! Lock messages (`dlm_message`): what holder, master and directory node of a resource tell each other.

use bitflags::bitflags;
use zerocopy::{FromBytes, IntoBytes};

use super::error::{Expected, WireError, shown};
use super::raw::{RawHeader, RawMessage};
use super::result::WireResult;
use crate::lvb::{LVB_LEN, Lvb};
use crate::resource::RESNAME_MAX;
use crate::{Lkf, Mode, ResName, SbFlags};

/// Where the fields of a message begin.
const BASE: usize = size_of::<RawHeader>();
/// Where its name or value block begins.
const EXTRA_AT: usize = BASE + size_of::<RawMessage>();

/// What a lock message asks or answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MsgType {
    /// Holder to master: a new lock.
    Request,
    /// Holder to master: another mode.
    Convert,
    /// Holder to master: give it up.
    Unlock,
    /// Holder to master: take the outstanding operation back.
    Cancel,
    /// Answer to Request.
    RequestReply,
    /// Answer to Convert (only to those up, and between PR and CW).
    ConvertReply,
    /// Answer to Unlock.
    UnlockReply,
    /// Answer to Cancel.
    CancelReply,
    /// Master to holder: what was queued is granted.
    Grant,
    /// Master to holder: the lock is in somebody's way.
    Bast,
    /// Holder to directory node: who is the master?
    Lookup,
    /// Master to directory node: the resource is unused, forget it. Has no answer.
    Remove,
    /// Answer to Lookup.
    LookupReply,
    /// Drop the locks of a process.
    Purge,
}

impl MsgType {
    /// All types, by number.
    pub const ALL: [Self; 14] = [
        Self::Request,
        Self::Convert,
        Self::Unlock,
        Self::Cancel,
        Self::RequestReply,
        Self::ConvertReply,
        Self::UnlockReply,
        Self::CancelReply,
        Self::Grant,
        Self::Bast,
        Self::Lookup,
        Self::Remove,
        Self::LookupReply,
        Self::Purge,
    ];

    /// The number of the type, from 1.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Convert => 2,
            Self::Unlock => 3,
            Self::Cancel => 4,
            Self::RequestReply => 5,
            Self::ConvertReply => 6,
            Self::UnlockReply => 7,
            Self::CancelReply => 8,
            Self::Grant => 9,
            Self::Bast => 10,
            Self::Lookup => 11,
            Self::Remove => 12,
            Self::LookupReply => 13,
            Self::Purge => 14,
        }
    }

    /// The type of a number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| u32::from(t.number()) == number)
    }

    /// The type of the answer, for those that have one.
    #[must_use]
    pub const fn reply(self) -> Option<Self> {
        match self {
            Self::Request => Some(Self::RequestReply),
            Self::Convert => Some(Self::ConvertReply),
            Self::Unlock => Some(Self::UnlockReply),
            Self::Cancel => Some(Self::CancelReply),
            Self::Lookup => Some(Self::LookupReply),
            _ => None,
        }
    }

    /// Carries the resource's name.
    #[must_use]
    pub const fn has_name(self) -> bool {
        matches!(self, Self::Request | Self::Lookup | Self::Remove)
    }

    /// May carry the value block.
    #[must_use]
    pub const fn may_have_lvb(self) -> bool {
        matches!(
            self,
            Self::Convert | Self::Unlock | Self::RequestReply | Self::ConvertReply | Self::Grant
        )
    }
}

bitflags! {
    /// Flags of the lock itself. Kernel 6.1 lets bits of its own above the two defined ones through (mask them off).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct MsgFlags: u32 {
        /// A lock of a process (libdlm), not of the kernel.
        const USER = 0x1;
        /// Its process is gone.
        const ORPHAN = 0x2;
    }
}

bitflags! {
    /// Callbacks the holder wants.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Asts: u32 {
        /// Completions.
        const CAST = 0x1;
        /// Blocking callbacks: without it the master never sends any.
        const BAST = 0x2;
    }
}

/// On which queue of the resource a lock stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QueueStatus {
    /// New requests that wait.
    Waiting,
    /// Granted.
    Granted,
    /// Conversions that wait.
    Convert,
}

impl QueueStatus {
    pub(super) const fn to_wire(status: Option<Self>) -> i8 {
        match status {
            None => 0,
            Some(Self::Waiting) => 1,
            Some(Self::Granted) => 2,
            Some(Self::Convert) => 3,
        }
    }

    pub(super) fn from_wire(at: usize, found: i32) -> Result<Option<Self>, WireError> {
        match found {
            0 => Ok(None),
            1 => Ok(Some(Self::Waiting)),
            2 => Ok(Some(Self::Granted)),
            3 => Ok(Some(Self::Convert)),
            _ => Err(WireError::signed(
                "status",
                at,
                found,
                Expected::OneOf("0, WAITING 1, GRANTED 2 or CONVERT 3"),
            )),
        }
    }
}

/// A mode as it travels; -1 is none.
pub(super) const fn mode_to_wire(mode: Option<Mode>) -> i8 {
    match mode {
        None => -1,
        Some(Mode::Nl) => 0,
        Some(Mode::Cr) => 1,
        Some(Mode::Cw) => 2,
        Some(Mode::Pr) => 3,
        Some(Mode::Pw) => 4,
        Some(Mode::Ex) => 5,
    }
}

pub(super) fn mode_from_wire(field: &'static str, at: usize, found: i32) -> Result<Option<Mode>, WireError> {
    if found == -1 {
        return Ok(None);
    }
    u8::try_from(found)
        .ok()
        .and_then(Mode::from_number)
        .map(Some)
        .ok_or_else(|| WireError::signed(field, at, found, Expected::OneOf("-1 or a mode, 0 to 5")))
}

/// What follows the fixed part of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Extra {
    /// Nothing.
    #[default]
    None,
    /// The resource's name.
    Name(ResName),
    /// The value block.
    Lvb(Lvb),
}

/// A lock message. Which fields mean something depends on the type; the others are as the sender had them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: MsgType,
    /// LOOKUP_REPLY: the master. PURGE: whose locks. Elsewhere the sender's idea of the other end (0 itself,
    /// -1 unknown).
    pub nodeid: i32,
    /// The holder's process.
    pub pid: u32,
    /// The lock's id at the sender (LOOKUP_REPLY: the asker's, echoed).
    pub lkid: u32,
    /// The lock's id at the receiver.
    pub remid: u32,
    /// Flags of the call.
    pub exflags: Lkf,
    /// Flags of the result.
    pub sbflags: SbFlags,
    /// Flags of the lock.
    pub flags: MsgFlags,
    /// Version of the value block.
    pub lvbseq: u32,
    /// Hash of the name; see [`super::hash::name_hash`].
    pub hash: u32,
    /// The sender's queue.
    pub status: Option<QueueStatus>,
    /// Mode granted.
    pub grmode: Option<Mode>,
    /// Mode asked for.
    pub rqmode: Option<Mode>,
    /// BAST: the mode somebody waits for.
    pub bastmode: Option<Mode>,
    /// Callbacks wanted.
    pub asts: Asts,
    /// Replies: the result.
    pub result: WireResult,
    /// Name or value block.
    pub extra: Extra,
}

impl Message {
    /// A message with every field as the kernel leaves those it does not set: zero (mode NL).
    #[must_use]
    pub const fn new(kind: MsgType) -> Self {
        Self {
            kind,
            nodeid: 0,
            pid: 0,
            lkid: 0,
            remid: 0,
            exflags: Lkf::empty(),
            sbflags: SbFlags::empty(),
            flags: MsgFlags::empty(),
            lvbseq: 0,
            hash: 0,
            status: None,
            grmode: Some(Mode::Nl),
            rqmode: Some(Mode::Nl),
            bastmode: Some(Mode::Nl),
            asts: Asts::empty(),
            result: WireResult::OK,
            extra: Extra::None,
        }
    }

    /// The name, of a message that has one.
    #[must_use]
    pub const fn name(&self) -> Option<&ResName> {
        match &self.extra {
            Extra::Name(name) => Some(name),
            _ => None,
        }
    }

    /// The value block, of a message that has one.
    #[must_use]
    pub const fn lvb(&self) -> Option<&Lvb> {
        match &self.extra {
            Extra::Lvb(lvb) => Some(lvb),
            _ => None,
        }
    }

    /// Reads what follows the header of a packet.
    pub(super) fn decode(body: &[u8]) -> Result<Self, WireError> {
        let (raw, extra) = RawMessage::read_from_prefix(body).map_err(|_| {
            WireError::new(
                "h_length",
                12,
                shown(BASE.saturating_add(body.len())),
                Expected::Between(shown(EXTRA_AT), shown(super::PACKET_MAX)),
            )
        })?;
        let kind = MsgType::from_number(raw.kind.get()).ok_or_else(|| {
            WireError::new(
                "m_type",
                BASE,
                u64::from(raw.kind.get()),
                Expected::Between(1, 14),
            )
        })?;
        Ok(Self {
            kind,
            nodeid: raw.nodeid.get(),
            pid: raw.pid.get(),
            lkid: raw.lkid.get(),
            remid: raw.remid.get(),
            exflags: Lkf::from_bits_retain(raw.exflags.get()),
            sbflags: SbFlags::from_bits_retain(raw.sbflags.get()),
            flags: MsgFlags::from_bits_retain(raw.flags.get()),
            lvbseq: raw.lvbseq.get(),
            hash: raw.hash.get(),
            status: QueueStatus::from_wire(64, raw.status.get())?,
            grmode: mode_from_wire("m_grmode", 68, raw.grmode.get())?,
            rqmode: mode_from_wire("m_rqmode", 72, raw.rqmode.get())?,
            bastmode: mode_from_wire("m_bastmode", 76, raw.bastmode.get())?,
            asts: Asts::from_bits_retain(raw.asts.get()),
            result: WireResult(raw.result.get()),
            extra: decode_extra(kind, extra)?,
        })
    }

    /// Appends what follows the header.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let raw = RawMessage {
            kind: u32::from(self.kind.number()).into(),
            nodeid: self.nodeid.into(),
            pid: self.pid.into(),
            lkid: self.lkid.into(),
            remid: self.remid.into(),
            parent_lkid: 0.into(),
            parent_remid: 0.into(),
            exflags: self.exflags.bits().into(),
            sbflags: self.sbflags.bits().into(),
            flags: self.flags.bits().into(),
            lvbseq: self.lvbseq.into(),
            hash: self.hash.into(),
            status: i32::from(QueueStatus::to_wire(self.status)).into(),
            grmode: i32::from(mode_to_wire(self.grmode)).into(),
            rqmode: i32::from(mode_to_wire(self.rqmode)).into(),
            bastmode: i32::from(mode_to_wire(self.bastmode)).into(),
            asts: self.asts.bits().into(),
            result: self.result.0.into(),
        };
        out.extend_from_slice(raw.as_bytes());
        match &self.extra {
            Extra::None => {}
            Extra::Name(name) => out.extend_from_slice(name.as_bytes()),
            Extra::Lvb(lvb) => out.extend_from_slice(lvb),
        }
    }
}

fn decode_extra(kind: MsgType, bytes: &[u8]) -> Result<Extra, WireError> {
    let wrong =
        |field, expected| WireError::new(field, EXTRA_AT, shown(bytes.len()), Expected::OneOf(expected));
    if kind.has_name() {
        return ResName::new(bytes)
            .map(Extra::Name)
            .map_err(|_| wrong("length of the name", const_name_length()));
    }
    if bytes.is_empty() {
        return Ok(Extra::None);
    }
    if !kind.may_have_lvb() {
        return Err(wrong("length after the message", "0: this type carries nothing"));
    }
    <Lvb>::try_from(bytes)
        .map(Extra::Lvb)
        .map_err(|_| wrong("length of the value block", const_lvb_length()))
}

/// The text of an error, next to the constant it repeats.
const fn const_name_length() -> &'static str {
    const _: () = assert!(RESNAME_MAX == 64);
    "1 to 64 bytes"
}

const fn const_lvb_length() -> &'static str {
    const _: () = assert!(LVB_LEN == 32);
    "0 or 32 bytes"
}
