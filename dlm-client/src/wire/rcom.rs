//! Recovery messages (`dlm_rcom`): members, slots, directory and locks of a lockspace after a change.

use bitflags::bitflags;
use zerocopy::{FromBytes, IntoBytes};

use super::error::{Expected, WireError, shown};
use super::message::{Asts, MsgFlags, MsgType, QueueStatus, mode_from_wire, mode_to_wire};
use super::packet::{INNER_MAX, PACKET_MAX};
use super::raw::{RawConfig, RawHeader, RawLock, RawRcom, RawSlot, RawStatus};
use super::result::WireResult;
use crate::lvb::Lvb;
use crate::{Lkf, Mode, NodeId, ResName};

/// Where the data of a recovery message begins.
pub(super) const DATA_AT: usize = size_of::<RawHeader>() + size_of::<RawRcom>();
/// The most data a bare packet can carry.
const DATA_MAX: usize = PACKET_MAX - DATA_AT;
/// Bytes for the names in a NAMES_REPLY of the kernel, which always sends them all.
pub const NAMES_ROOM: usize = INNER_MAX - DATA_AT;
/// Slots that fit into one STATUS_REPLY.
pub const SLOTS_MAX: usize = (NAMES_ROOM - size_of::<RawConfig>()) / size_of::<RawSlot>();
const _: () = assert!(SLOTS_MAX == 249);

/// Kinds of recovery messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RcomType {
    /// How far are you?
    Status,
    /// Which names that are in my directory do you master?
    Names,
    /// Who is the master (remastering)?
    Lookup,
    /// Here is a lock of mine on a resource you master now.
    Lock,
    /// Answer to Status.
    StatusReply,
    /// Answer to Names.
    NamesReply,
    /// Answer to Lookup.
    LookupReply,
    /// Answer to Lock.
    LockReply,
}

impl RcomType {
    /// All types, by number.
    pub const ALL: [Self; 8] = [
        Self::Status,
        Self::Names,
        Self::Lookup,
        Self::Lock,
        Self::StatusReply,
        Self::NamesReply,
        Self::LookupReply,
        Self::LockReply,
    ];

    /// The number of the type, from 1.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Status => 1,
            Self::Names => 2,
            Self::Lookup => 3,
            Self::Lock => 4,
            Self::StatusReply => 5,
            Self::NamesReply => 6,
            Self::LookupReply => 7,
            Self::LockReply => 8,
        }
    }

    /// The type of a number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| u32::from(t.number()) == number)
    }
}

bitflags! {
    /// How far the recovery of a member is (`DLM_RS_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Status: u32 {
        /// It knows the members.
        const NODES = 0x1;
        /// All do.
        const NODES_ALL = 0x2;
        /// Its directory is rebuilt.
        const DIR = 0x4;
        /// All are.
        const DIR_ALL = 0x8;
        /// Its locks are where they belong.
        const LOCKS = 0x10;
        /// All are.
        const LOCKS_ALL = 0x20;
        /// It is done.
        const DONE = 0x40;
        /// All are.
        const DONE_ALL = 0x80;
    }
}

/// What members of a lockspace must agree on, and the sender's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RcomConfig {
    /// Length of a value block.
    pub lvblen: u32,
    /// Flags of the lockspace.
    pub lsflags: u32,
    /// The sender's slot; 0 needs one, 0xFFFF is too old to have one.
    pub our_slot: u16,
    /// Generation of the slots.
    pub generation: u32,
}

/// A member and its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RcomSlot {
    /// The member.
    pub node: NodeId,
    /// Its slot.
    pub slot: u16,
}

/// The answer to STATUS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusReply {
    /// From a member of the lockspace.
    Member {
        /// How far it is.
        status: Status,
        /// What must agree.
        config: RcomConfig,
        /// All slots, when they were asked for and are known; at most [`SLOTS_MAX`].
        slots: Vec<RcomSlot>,
    },
    /// The node knows no such lockspace (yet): as if its status were 0.
    NoLockspace,
}

/// The answer to NAMES.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamesReply {
    /// The names, in the sender's stable order.
    pub names: Vec<ResName>,
    /// There are more: ask again with the last of these.
    pub more: bool,
    /// Bytes of data on the wire, zero beyond the terminator; [`NAMES_ROOM`] from a kernel. Never less than the names
    /// need: [`NamesReply::new`] sees to it, and encoding adds what is missing.
    pub room: usize,
}

impl NamesReply {
    /// An answer no longer than it must be.
    #[must_use]
    pub fn new(names: Vec<ResName>, more: bool) -> Self {
        let room = names.iter().map(Self::cost).fold(2usize, usize::saturating_add);
        Self { names, more, room }
    }

    /// Bytes a name takes; together with 2 for the end they must fit [`NAMES_ROOM`].
    #[must_use]
    pub fn cost(name: &ResName) -> usize {
        name.as_bytes().len().saturating_add(2)
    }
}

/// A lock as recovery carries it to the new master of its resource, and back with the new id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RcomLock {
    /// The holder's process.
    pub ownpid: u32,
    /// The holder's id of the lock.
    pub lkid: u32,
    /// The (new) master's id of the lock.
    pub remid: u32,
    /// Flags of the call.
    pub exflags: Lkf,
    /// Flags of the lock.
    pub flags: MsgFlags,
    /// Version of the value block.
    pub lvbseq: u32,
    /// LOCK_REPLY: the result, a raw errno.
    pub result: WireResult,
    /// Mode asked for.
    pub rqmode: Option<Mode>,
    /// Mode granted.
    pub grmode: Option<Mode>,
    /// Queue.
    pub status: Option<QueueStatus>,
    /// Callbacks wanted.
    pub asts: Asts,
    /// The operation whose answer the holder still waits for.
    pub wait_type: Option<MsgType>,
    /// The resource.
    pub name: ResName,
    /// The holder's value block, if the lock has one.
    pub lvb: Option<Lvb>,
}

/// The part of a recovery message that depends on its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RcomBody {
    /// STATUS.
    Status {
        /// The asker wants the slots.
        need_slots: bool,
    },
    /// STATUS_REPLY.
    StatusReply(StatusReply),
    /// NAMES.
    Names {
        /// The last name of the answer before; none at first.
        after: Option<ResName>,
    },
    /// NAMES_REPLY.
    NamesReply(NamesReply),
    /// LOOKUP.
    Lookup {
        /// The resource.
        name: ResName,
    },
    /// LOOKUP_REPLY.
    LookupReply {
        /// The master, or why there is none.
        master: Result<NodeId, WireResult>,
    },
    /// LOCK.
    Lock(Box<RcomLock>),
    /// LOCK_REPLY.
    LockReply(Box<RcomLock>),
}

/// A recovery message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rcom {
    /// The asker's handle, echoed by the answer.
    pub id: u64,
    /// The sender's recovery sequence.
    pub seq: u64,
    /// Answers: the asker's recovery sequence.
    pub seq_reply: u64,
    /// The rest.
    pub body: RcomBody,
}

impl Rcom {
    /// The type of the message.
    #[must_use]
    pub const fn kind(&self) -> RcomType {
        match self.body {
            RcomBody::Status { .. } => RcomType::Status,
            RcomBody::StatusReply(_) => RcomType::StatusReply,
            RcomBody::Names { .. } => RcomType::Names,
            RcomBody::NamesReply(_) => RcomType::NamesReply,
            RcomBody::Lookup { .. } => RcomType::Lookup,
            RcomBody::LookupReply { .. } => RcomType::LookupReply,
            RcomBody::Lock(_) => RcomType::Lock,
            RcomBody::LockReply(_) => RcomType::LockReply,
        }
    }

    /// Reads what follows the header of a packet.
    pub(super) fn decode(body: &[u8]) -> Result<Self, WireError> {
        let (raw, data) =
            RawRcom::read_from_prefix(body).map_err(|_| too_short("dlm_rcom", 16, body.len()))?;
        let kind = RcomType::from_number(raw.kind.get()).ok_or_else(|| {
            WireError::new("rc_type", 16, u64::from(raw.kind.get()), Expected::Between(1, 8))
        })?;
        let body = match kind {
            RcomType::Status => {
                let (status, _) = RawStatus::read_from_prefix(data)
                    .map_err(|_| too_short("rcom_status", DATA_AT, data.len()))?;
                RcomBody::Status {
                    need_slots: decode_status_flags(status.flags.get())?,
                }
            }
            RcomType::StatusReply => RcomBody::StatusReply(decode_status_reply(raw.result.get(), data)?),
            RcomType::Names if data.is_empty() => RcomBody::Names { after: None },
            RcomType::Names => RcomBody::Names {
                after: Some(decode_name(DATA_AT, data)?),
            },
            RcomType::NamesReply => RcomBody::NamesReply(decode_names(data)?),
            RcomType::Lookup => RcomBody::Lookup {
                name: decode_name(DATA_AT, data)?,
            },
            RcomType::LookupReply => RcomBody::LookupReply {
                master: match u32::try_from(raw.result.get()) {
                    Ok(node) => Ok(NodeId(node)),
                    Err(_) => Err(WireResult(raw.result.get())),
                },
            },
            RcomType::Lock => RcomBody::Lock(Box::new(decode_lock(data)?)),
            RcomType::LockReply => RcomBody::LockReply(Box::new(decode_lock(data)?)),
        };
        Ok(Self {
            id: raw.id.get(),
            seq: raw.seq.get(),
            seq_reply: raw.seq_reply.get(),
            body,
        })
    }

    /// Appends what follows the header.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let result = match &self.body {
            RcomBody::StatusReply(StatusReply::Member { status, .. }) => {
                i32::from_le_bytes(status.bits().to_le_bytes())
            }
            RcomBody::StatusReply(StatusReply::NoLockspace) => WireResult::SRCH.0,
            RcomBody::LookupReply { master: Ok(node) } => i32::from_le_bytes(node.0.to_le_bytes()),
            RcomBody::LookupReply { master: Err(e) } => e.0,
            _ => 0,
        };
        let raw = RawRcom {
            kind: u32::from(self.kind().number()).into(),
            result: result.into(),
            id: self.id.into(),
            seq: self.seq.into(),
            seq_reply: self.seq_reply.into(),
        };
        out.extend_from_slice(raw.as_bytes());
        match &self.body {
            RcomBody::Status { need_slots } => encode_status(*need_slots, out),
            RcomBody::StatusReply(reply) => encode_status_reply(reply, out),
            RcomBody::Names { after } => out.extend_from_slice(after.as_ref().map_or(&[], ResName::as_bytes)),
            RcomBody::NamesReply(reply) => encode_names(reply, out),
            RcomBody::Lookup { name } => out.extend_from_slice(name.as_bytes()),
            RcomBody::LookupReply { .. } => {}
            RcomBody::Lock(lock) | RcomBody::LockReply(lock) => encode_lock(lock, out),
        }
    }
}

fn too_short(field: &'static str, at: usize, found: usize) -> WireError {
    WireError::new(field, at, shown(found), Expected::OneOf("more bytes"))
}

fn decode_name(at: usize, bytes: &[u8]) -> Result<ResName, WireError> {
    ResName::new(bytes).map_err(|_| {
        WireError::new(
            "length of the name",
            at,
            shown(bytes.len()),
            Expected::Between(1, 64),
        )
    })
}

fn decode_status_flags(flags: u32) -> Result<bool, WireError> {
    match flags {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(WireError::new(
            "rs_flags",
            DATA_AT,
            u64::from(flags),
            Expected::OneOf("0 or NEED_SLOTS 1"),
        )),
    }
}

fn encode_status(need_slots: bool, out: &mut Vec<u8>) {
    let raw = RawStatus {
        flags: u32::from(need_slots).into(),
        unused1: 0.into(),
        unused2: 0.into(),
    };
    out.extend_from_slice(raw.as_bytes());
}

fn decode_status_reply(result: i32, data: &[u8]) -> Result<StatusReply, WireError> {
    if result == WireResult::SRCH.0 {
        return Ok(StatusReply::NoLockspace);
    }
    let bits = u32::try_from(result)
        .map_err(|_| WireError::signed("rc_result", 20, result, Expected::OneOf("status bits or -ESRCH")))?;
    let (raw, mut rest) =
        RawConfig::read_from_prefix(data).map_err(|_| too_short("rcom_config", DATA_AT, data.len()))?;
    let count = usize::from(raw.num_slots.get());
    let room = rest.len().checked_div(size_of::<RawSlot>()).unwrap_or(0);
    if count > room {
        return Err(WireError::new(
            "rf_num_slots",
            DATA_AT.saturating_add(14),
            shown(count),
            Expected::Between(0, shown(room)),
        ));
    }
    let mut slots = Vec::with_capacity(count);
    for _ in 0..count {
        let (slot, after) =
            RawSlot::read_from_prefix(rest).map_err(|_| too_short("rcom_slot", DATA_AT, rest.len()))?;
        slots.push(RcomSlot {
            node: NodeId(slot.nodeid.get()),
            slot: slot.slot.get(),
        });
        rest = after;
    }
    Ok(StatusReply::Member {
        status: Status::from_bits_retain(bits),
        config: RcomConfig {
            lvblen: raw.lvblen.get(),
            lsflags: raw.lsflags.get(),
            our_slot: raw.our_slot.get(),
            generation: raw.generation.get(),
        },
        slots,
    })
}

fn encode_status_reply(reply: &StatusReply, out: &mut Vec<u8>) {
    // What a kernel without the lockspace says: a length no lockspace has.
    let nobody = RcomConfig {
        lvblen: u32::MAX,
        lsflags: 0,
        our_slot: 0,
        generation: 0,
    };
    let (config, slots) = match reply {
        StatusReply::Member { config, slots, .. } => (config, slots.as_slice()),
        StatusReply::NoLockspace => (&nobody, [].as_slice()),
    };
    let raw = RawConfig {
        lvblen: config.lvblen.into(),
        lsflags: config.lsflags.into(),
        flags: 0.into(),
        our_slot: config.our_slot.into(),
        num_slots: u16::try_from(slots.len()).unwrap_or(u16::MAX).into(),
        generation: config.generation.into(),
        unused1: 0.into(),
        unused2: 0.into(),
    };
    out.extend_from_slice(raw.as_bytes());
    for slot in slots {
        let raw = RawSlot {
            nodeid: slot.node.0.into(),
            slot: slot.slot.into(),
            unused1: 0.into(),
            unused2: 0.into(),
        };
        out.extend_from_slice(raw.as_bytes());
    }
}

/// The length that ends all names.
const END_OF_ALL: u16 = 0xffff;
/// The length that ends this block.
const END_OF_BLOCK: u16 = 0;

fn decode_names(data: &[u8]) -> Result<NamesReply, WireError> {
    let mut names = Vec::new();
    let mut rest = data;
    loop {
        let at = DATA_AT.saturating_add(data.len().saturating_sub(rest.len()));
        let (length, after) = rest
            .split_first_chunk::<2>()
            .ok_or_else(|| too_short("names without an end", at, rest.len()))?;
        // The one big-endian field of the protocol.
        let length = u16::from_be_bytes(*length);
        if length == END_OF_ALL || length == END_OF_BLOCK {
            return Ok(NamesReply {
                names,
                more: length == END_OF_BLOCK,
                room: data.len(),
            });
        }
        let (name, after) = after.split_at_checked(usize::from(length)).ok_or_else(|| {
            WireError::new(
                "length of a name",
                at,
                u64::from(length),
                Expected::Between(1, shown(after.len()).min(64)),
            )
        })?;
        names.push(decode_name(at, name)?);
        rest = after;
    }
}

fn encode_names(reply: &NamesReply, out: &mut Vec<u8>) {
    let start = out.len();
    for name in &reply.names {
        let length = u16::try_from(name.as_bytes().len()).unwrap_or(END_OF_BLOCK);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(name.as_bytes());
    }
    let end = if reply.more { END_OF_BLOCK } else { END_OF_ALL };
    out.extend_from_slice(&end.to_be_bytes());
    let wanted = start.saturating_add(reply.room.min(DATA_MAX));
    if out.len() < wanted {
        out.resize(wanted, 0);
    }
}

fn decode_lock(data: &[u8]) -> Result<RcomLock, WireError> {
    let (raw, rest) =
        RawLock::read_from_prefix(data).map_err(|_| too_short("rcom_lock", DATA_AT, data.len()))?;
    let at = |offset: usize| DATA_AT.saturating_add(offset);
    let name = raw
        .name
        .get(..usize::from(raw.namelen.get()))
        .and_then(|name| ResName::new(name).ok())
        .ok_or_else(|| {
            WireError::new(
                "rl_namelen",
                at(42),
                u64::from(raw.namelen.get()),
                Expected::Between(1, 64),
            )
        })?;
    let wait_type = match raw.wait_type.get() {
        0 => None,
        number => Some(MsgType::from_number(u32::from(number)).ok_or_else(|| {
            WireError::new(
                "rl_wait_type",
                at(40),
                u64::from(number),
                Expected::Between(0, 14),
            )
        })?),
    };
    let lvb = if rest.is_empty() {
        None
    } else {
        Some(Lvb::try_from(rest).map_err(|_| {
            WireError::new(
                "length of the value block",
                at(size_of::<RawLock>()),
                shown(rest.len()),
                Expected::OneOf("0 or 32 bytes"),
            )
        })?)
    };
    Ok(RcomLock {
        ownpid: raw.ownpid.get(),
        lkid: raw.lkid.get(),
        remid: raw.remid.get(),
        exflags: Lkf::from_bits_retain(raw.exflags.get()),
        flags: MsgFlags::from_bits_retain(raw.flags.get()),
        lvbseq: raw.lvbseq.get(),
        result: WireResult(raw.result.get()),
        rqmode: mode_from_wire("rl_rqmode", at(36), i32::from(raw.rqmode))?,
        grmode: mode_from_wire("rl_grmode", at(37), i32::from(raw.grmode))?,
        status: QueueStatus::from_wire(at(38), i32::from(raw.status))?,
        asts: Asts::from_bits_retain(u32::from(raw.asts)),
        wait_type,
        name,
        lvb,
    })
}

fn encode_lock(lock: &RcomLock, out: &mut Vec<u8>) {
    let mut name = [0; 64];
    for (to, from) in name.iter_mut().zip(lock.name.as_bytes()) {
        *to = *from;
    }
    let [asts, ..] = lock.asts.bits().to_le_bytes();
    let raw = RawLock {
        ownpid: lock.ownpid.into(),
        lkid: lock.lkid.into(),
        remid: lock.remid.into(),
        parent_lkid: 0.into(),
        parent_remid: 0.into(),
        exflags: lock.exflags.bits().into(),
        flags: lock.flags.bits().into(),
        lvbseq: lock.lvbseq.into(),
        result: lock.result.0.into(),
        rqmode: mode_to_wire(lock.rqmode),
        grmode: mode_to_wire(lock.grmode),
        status: QueueStatus::to_wire(lock.status),
        asts,
        wait_type: lock.wait_type.map_or(0, MsgType::number).into(),
        namelen: u16::try_from(lock.name.as_bytes().len()).unwrap_or(0).into(),
        name,
    };
    out.extend_from_slice(raw.as_bytes());
    if let Some(lvb) = &lock.lvb {
        out.extend_from_slice(lvb);
    }
}
