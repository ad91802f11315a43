//! The messages that lock daemons send each other through the process group, byte for byte as `dlm_controld` does.
//!
//! Invariants: everything decoded was bounds-checked and is bounded in size (at most [`MEMBERS_MAX`] node ids, at most
//! [`PLOCKS_PER_MESSAGE`] locks); a message of a kind we do not know decodes as [`Body::Other`], because newer daemons
//! may send one; what was encoded decodes to the same value. All integers are little-endian.

use bitflags::bitflags;

use crate::NodeId;

/// Bytes of the header in front of every message.
pub const HEADER_LEN: usize = 40;
/// Members a group can have.
pub const MEMBERS_MAX: usize = 128;
/// Locks in one `PLOCKS_DATA` message: it stays within 1024 bytes.
pub const PLOCKS_PER_MESSAGE: usize = 24;
const CHANGE_INFO_LEN: u32 = 32;
const ID_INFO_LEN: u32 = 4;
const FENCE_UNUSED: usize = 1000;

/// A message that cannot be what it says it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// It ends too early.
    #[error("{what} ends at byte {len}: {needed} bytes are needed")]
    Short {
        /// The part that is cut off.
        what: &'static str,
        /// Bytes there are.
        len: usize,
        /// Bytes there must be.
        needed: usize,
    },
    /// A field has a value it cannot have.
    #[error("{what} is {found}: expected {expected}")]
    Value {
        /// The field.
        what: &'static str,
        /// Its value.
        found: u64,
        /// What it may be.
        expected: &'static str,
    },
}

/// Reads little-endian fields off the front of a message.
struct Reader<'a> {
    what: &'static str,
    len: usize,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    const fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            what,
            len: bytes.len(),
            rest: bytes,
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let short = CodecError::Short {
            what: self.what,
            len: self.len,
            needed: self.len.saturating_sub(self.rest.len()).saturating_add(N),
        };
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(short)?;
        self.rest = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, CodecError> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, CodecError> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, CodecError> {
        self.take().map(u32::from_le_bytes)
    }

    fn i32(&mut self) -> Result<i32, CodecError> {
        self.take().map(i32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, CodecError> {
        self.take().map(u64::from_le_bytes)
    }

    fn node(&mut self) -> Result<NodeId, CodecError> {
        self.u32().map(NodeId)
    }
}

bitflags! {
    /// Flags of a START (and of a PLOCKS_DONE, which is shaped like one).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct StartFlags: u32 {
        /// The sender is joining: this is its first start.
        const JOINING = 1;
        /// The sender has the POSIX locks of the lockspace.
        const HAVEPLOCK = 2;
        /// The change described is not the one the next START is about.
        const NACK = 4;
        /// Bits of newer daemons are kept.
        const _ = !0;
    }
}

bitflags! {
    /// Flags of a FENCE_CLEAR.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct FenceFlags: u32 {
        /// The sender does not know yet whether fencing is going on.
        const UNKNOWN = 1;
        /// The node named need not fence anybody because of its own startup.
        const CLEAR_STARTUP = 2;
        /// No fencing is going on: the node named can start lockspaces.
        const CLEAR_UNKNOWN = 4;
        /// Bits of newer daemons are kept.
        const _ = !0;
    }
}

/// What stands in front of every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Header {
    /// Version the sender runs; 0.0.0 in what is sent before that is agreed on.
    pub version: [u16; 3],
    /// Sender, as it says itself.
    pub from: u32,
    /// Addressee; 0 is everybody.
    pub to: u32,
    /// Lockspace; 0 in the group of the daemons.
    pub global_id: u32,
    /// Flags of the kind.
    pub flags: u32,
    /// Of the kind: in a START the sender's sequence number of the change.
    pub data: u32,
    /// Of the kind: in PLOCKS_DONE the number of PLOCKS_DATA messages.
    pub data2: u32,
    /// Padding to the stock daemon, which sends 0. Ours put the incarnation of the process there.
    pub stamp: u64,
}

/// One version of a protocol, with flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Version {
    /// Only equal ones understand each other.
    pub major: u16,
    /// The highest one understood.
    pub minor: u16,
    /// Informative.
    pub patch: u16,
    /// In the version run: see [`STATEFUL`].
    pub flags: u16,
}

/// Flag of the daemon's running version: a lockspace was started, the node cannot just come back.
pub const STATEFUL: u16 = 1;

impl Version {
    /// A version without flags.
    #[must_use]
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self {
            major,
            minor,
            patch,
            flags: 0,
        }
    }

    /// Is it set? No part of a version that is set may be zero.
    #[must_use]
    pub const fn is_set(self) -> bool {
        self.major != 0 && self.minor != 0 && self.patch != 0
    }

    /// The three numbers.
    #[must_use]
    pub const fn numbers(self) -> [u16; 3] {
        [self.major, self.minor, self.patch]
    }
}

/// PROTOCOL: what the sender can speak, and what it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Protocol {
    /// Highest version between daemons.
    pub daemon_max: Version,
    /// Highest version between lock engines.
    pub kernel_max: Version,
    /// Version in use between daemons; zero before the agreement.
    pub daemon_run: Version,
    /// Version in use between lock engines.
    pub kernel_run: Version,
}

impl Protocol {
    /// Has the sender ever started a lockspace?
    #[must_use]
    pub const fn is_stateful(&self) -> bool {
        self.daemon_run.flags & STATEFUL != 0
    }
}

/// START: how the sender saw a change of membership.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ChangeInfo {
    /// How many changes the sender has completed; 0 from a new member.
    pub started_count: u32,
    /// Members.
    pub member_count: u32,
    /// Those that joined.
    pub joined_count: u32,
    /// Those that went.
    pub remove_count: u32,
    /// Those of them that failed.
    pub failed_count: u32,
    /// The members.
    pub members: Vec<NodeId>,
}

/// What a PLOCK message asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlockKind {
    /// Lock the range.
    Lock,
    /// Unlock the range.
    Unlock,
    /// Who is in the way?
    Get,
    /// Take back a waiting lock (newer kernels).
    Cancel,
    /// Not known to us.
    Other(u8),
}

impl PlockKind {
    const fn number(self) -> u8 {
        match self {
            Self::Lock => 1,
            Self::Unlock => 2,
            Self::Get => 3,
            Self::Cancel => 4,
            Self::Other(number) => number,
        }
    }

    const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Lock,
            2 => Self::Unlock,
            3 => Self::Get,
            4 => Self::Cancel,
            other => Self::Other(other),
        }
    }
}

/// Flag of a PLOCK UNLOCK: the file is being closed, nobody waits for an answer, waiters of the owner go too.
pub const PLOCK_CLOSE: u8 = 1;
/// Version of the PLOCK layout.
pub const PLOCK_VERSION: [u32; 3] = [1, 2, 0];

/// PLOCK: one operation on POSIX locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlockInfo {
    /// The operation.
    pub kind: PlockKind,
    /// Exclusive (a write lock)?
    pub exclusive: bool,
    /// Wait for it?
    pub wait: bool,
    /// [`PLOCK_CLOSE`] or 0.
    pub flags: u8,
    /// The process.
    pub pid: u32,
    /// The node that asks.
    pub node: NodeId,
    /// Result; meaningful only towards a kernel.
    pub result: i32,
    /// The lockspace's global id.
    pub lockspace: u32,
    /// The file: its inode number.
    pub number: u64,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// Who holds or asks, within the node.
    pub owner: u64,
}

/// One lock in a PLOCKS_DATA message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlockRecord {
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// Its owner within the node.
    pub owner: u64,
    /// The process.
    pub pid: u32,
    /// The node.
    pub node: NodeId,
    /// Exclusive?
    pub exclusive: bool,
    /// Does it only wait?
    pub waiting: bool,
}

/// PLOCKS_DATA: locks of one file, for those that joined.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PlocksData {
    /// The file.
    pub number: u64,
    /// Node that owns the file alone; 0 without the ownership option.
    pub owner: u32,
    /// Does it continue the message before?
    pub continues: bool,
    /// The locks, then the waiters, each in order.
    pub locks: Vec<PlockRecord>,
}

/// FENCE_RESULT and FENCE_CLEAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FenceInfo {
    /// Version of the layout: 0.
    pub version: u32,
    /// Flags.
    pub flags: FenceFlags,
    /// The node it is about.
    pub node: u32,
    /// 0 is success; [`FENCE_ACKED`] a person's word; [`FENCE_NO_DATA`] see [`FenceFlags::UNKNOWN`].
    pub result: i32,
    /// Seconds since 1970.
    pub walltime: u64,
}

/// A person said that the node is down (ECANCELED).
pub const FENCE_ACKED: i32 = -125;
/// Startup without knowledge (ENODATA).
pub const FENCE_NO_DATA: i32 = -61;

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Body {
    /// Versions.
    Protocol(Protocol),
    /// The sender is ready to start the lockspace with the members of a change.
    Start(ChangeInfo),
    /// An operation on POSIX locks.
    Plock(PlockInfo),
    /// The end of the transfer of POSIX locks.
    PlocksDone(ChangeInfo),
    /// A part of the transfer.
    PlocksData(PlocksData),
    /// A node was fenced, or could not be.
    FenceResult(FenceInfo),
    /// News for those that start up.
    FenceClear(FenceInfo),
    /// A kind we have no use for.
    Other {
        /// Its number.
        kind: u16,
    },
}

const KIND_PROTOCOL: u16 = 1;
const KIND_START: u16 = 2;
const KIND_PLOCK: u16 = 3;
const KIND_PLOCKS_DONE: u16 = 8;
const KIND_PLOCKS_DATA: u16 = 9;
const KIND_FENCE_RESULT: u16 = 14;
const KIND_FENCE_CLEAR: u16 = 15;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What every message has.
    pub header: Header,
    /// What it says.
    pub body: Body,
}

impl Message {
    /// Reads a message.
    ///
    /// # Errors
    /// One that is cut off, or whose fields cannot be.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new("message header", bytes);
        let version = [reader.u16()?, reader.u16()?, reader.u16()?];
        let kind = reader.u16()?;
        let header = Header {
            version,
            from: reader.u32()?,
            to: reader.u32()?,
            global_id: reader.u32()?,
            flags: reader.u32()?,
            data: reader.u32()?,
            data2: reader.u32()?,
            stamp: reader.u64()?,
        };
        let mut named = |what| {
            reader.what = what;
        };
        let body = match kind {
            KIND_PROTOCOL => {
                named("PROTOCOL");
                Body::Protocol(decode_protocol(&mut reader)?)
            }
            KIND_START => {
                named("START");
                Body::Start(decode_change(&mut reader)?)
            }
            KIND_PLOCK => {
                named("PLOCK");
                Body::Plock(decode_plock(&mut reader)?)
            }
            KIND_PLOCKS_DONE => {
                named("PLOCKS_DONE");
                Body::PlocksDone(decode_change(&mut reader)?)
            }
            KIND_PLOCKS_DATA => {
                named("PLOCKS_DATA");
                Body::PlocksData(decode_plocks_data(&mut reader)?)
            }
            KIND_FENCE_RESULT => {
                named("FENCE_RESULT");
                Body::FenceResult(decode_fence(&mut reader)?)
            }
            KIND_FENCE_CLEAR => {
                named("FENCE_CLEAR");
                Body::FenceClear(decode_fence(&mut reader)?)
            }
            kind => Body::Other { kind },
        };
        Ok(Self { header, body })
    }

    /// The bytes of the message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let header = &self.header;
        let mut out = Vec::with_capacity(HEADER_LEN.saturating_add(64));
        for part in header.version {
            out.extend(part.to_le_bytes());
        }
        out.extend(self.body.kind().to_le_bytes());
        for field in [
            header.from,
            header.to,
            header.global_id,
            header.flags,
            header.data,
            header.data2,
        ] {
            out.extend(field.to_le_bytes());
        }
        out.extend(header.stamp.to_le_bytes());
        match &self.body {
            Body::Protocol(protocol) => encode_protocol(protocol, &mut out),
            Body::Start(change) | Body::PlocksDone(change) => encode_change(change, &mut out),
            Body::Plock(plock) => encode_plock(plock, &mut out),
            Body::PlocksData(data) => encode_plocks_data(data, &mut out),
            Body::FenceResult(fence) | Body::FenceClear(fence) => encode_fence(fence, &mut out),
            Body::Other { .. } => {}
        }
        out
    }
}

impl Body {
    const fn kind(&self) -> u16 {
        match self {
            Self::Protocol(_) => KIND_PROTOCOL,
            Self::Start(_) => KIND_START,
            Self::Plock(_) => KIND_PLOCK,
            Self::PlocksDone(_) => KIND_PLOCKS_DONE,
            Self::PlocksData(_) => KIND_PLOCKS_DATA,
            Self::FenceResult(_) => KIND_FENCE_RESULT,
            Self::FenceClear(_) => KIND_FENCE_CLEAR,
            Self::Other { kind } => *kind,
        }
    }
}

fn decode_version(reader: &mut Reader<'_>) -> Result<Version, CodecError> {
    Ok(Version {
        major: reader.u16()?,
        minor: reader.u16()?,
        patch: reader.u16()?,
        flags: reader.u16()?,
    })
}

fn decode_protocol(reader: &mut Reader<'_>) -> Result<Protocol, CodecError> {
    let protocol = Protocol {
        daemon_max: decode_version(reader)?,
        kernel_max: decode_version(reader)?,
        daemon_run: decode_version(reader)?,
        kernel_run: decode_version(reader)?,
    };
    for (what, version) in [
        ("daemon_max", protocol.daemon_max),
        ("kernel_max", protocol.kernel_max),
    ] {
        if !version.is_set() {
            return Err(CodecError::Value {
                what,
                found: 0,
                expected: "three numbers above zero",
            });
        }
    }
    if protocol.daemon_run.major != 0 && !(protocol.daemon_run.is_set() && protocol.kernel_run.is_set()) {
        return Err(CodecError::Value {
            what: "a part of the running version",
            found: 0,
            expected: "three numbers above zero, or none at all",
        });
    }
    Ok(protocol)
}

fn encode_protocol(protocol: &Protocol, out: &mut Vec<u8>) {
    for version in [
        protocol.daemon_max,
        protocol.kernel_max,
        protocol.daemon_run,
        protocol.kernel_run,
    ] {
        for part in [version.major, version.minor, version.patch, version.flags] {
            out.extend(part.to_le_bytes());
        }
    }
}

fn decode_change(reader: &mut Reader<'_>) -> Result<ChangeInfo, CodecError> {
    let expect = |what, found: u32, expected: u32, text| {
        if found == expected {
            Ok(())
        } else {
            Err(CodecError::Value {
                what,
                found: found.into(),
                expected: text,
            })
        }
    };
    expect("ls_info_size", reader.u32()?, CHANGE_INFO_LEN, "32")?;
    expect("id_info_size", reader.u32()?, ID_INFO_LEN, "4")?;
    let count = reader.u32()?;
    let count = usize::try_from(count)
        .ok()
        .filter(|count| *count <= MEMBERS_MAX)
        .ok_or(CodecError::Value {
            what: "id_info_count",
            found: count.into(),
            expected: "at most 128 members",
        })?;
    let mut change = ChangeInfo {
        started_count: reader.u32()?,
        member_count: reader.u32()?,
        joined_count: reader.u32()?,
        remove_count: reader.u32()?,
        failed_count: reader.u32()?,
        members: Vec::with_capacity(count),
    };
    for _ in 0..count {
        change.members.push(reader.node()?);
    }
    Ok(change)
}

fn encode_change(change: &ChangeInfo, out: &mut Vec<u8>) {
    let count = u32::try_from(change.members.len()).unwrap_or(u32::MAX);
    for field in [
        CHANGE_INFO_LEN,
        ID_INFO_LEN,
        count,
        change.started_count,
        change.member_count,
        change.joined_count,
        change.remove_count,
        change.failed_count,
    ] {
        out.extend(field.to_le_bytes());
    }
    for member in &change.members {
        out.extend(member.0.to_le_bytes());
    }
}

fn decode_plock(reader: &mut Reader<'_>) -> Result<PlockInfo, CodecError> {
    let major = reader.u32()?;
    let _minor_and_patch: [u8; 8] = reader.take()?;
    let expected_major = PLOCK_VERSION.first().copied();
    if Some(major) != expected_major {
        return Err(CodecError::Value {
            what: "major version of PLOCK",
            found: major.into(),
            expected: "1",
        });
    }
    let kind = PlockKind::from_number(reader.u8()?);
    let exclusive = reader.u8()? != 0;
    let wait = reader.u8()? != 0;
    let plock = PlockInfo {
        kind,
        exclusive,
        wait,
        flags: reader.u8()?,
        pid: reader.u32()?,
        node: reader.node()?,
        result: reader.i32()?,
        lockspace: reader.u32()?,
        number: reader.u64()?,
        start: reader.u64()?,
        end: reader.u64()?,
        owner: reader.u64()?,
    };
    if plock.start > plock.end {
        return Err(CodecError::Value {
            what: "first byte of the range of a PLOCK",
            found: plock.start,
            expected: "at most its last byte",
        });
    }
    Ok(plock)
}

fn encode_plock(plock: &PlockInfo, out: &mut Vec<u8>) {
    for part in PLOCK_VERSION {
        out.extend(part.to_le_bytes());
    }
    out.extend([
        plock.kind.number(),
        u8::from(plock.exclusive),
        u8::from(plock.wait),
        plock.flags,
    ]);
    out.extend(plock.pid.to_le_bytes());
    out.extend(plock.node.0.to_le_bytes());
    out.extend(plock.result.to_le_bytes());
    out.extend(plock.lockspace.to_le_bytes());
    for field in [plock.number, plock.start, plock.end, plock.owner] {
        out.extend(field.to_le_bytes());
    }
}

const RESOURCE_CONTINUES: u32 = 1;

fn decode_plocks_data(reader: &mut Reader<'_>) -> Result<PlocksData, CodecError> {
    let number = reader.u64()?;
    let owner = reader.u32()?;
    let count = reader.u32()?;
    let flags = reader.u32()?;
    let _pad = reader.u32()?;
    if usize::try_from(count).map_or(true, |count| count > PLOCKS_PER_MESSAGE) {
        return Err(CodecError::Value {
            what: "lock_count of PLOCKS_DATA",
            found: count.into(),
            expected: "at most 24",
        });
    }
    let mut data = PlocksData {
        number,
        owner,
        continues: flags & RESOURCE_CONTINUES != 0,
        locks: Vec::new(),
    };
    for _ in 0..count {
        let record = PlockRecord {
            start: reader.u64()?,
            end: reader.u64()?,
            owner: reader.u64()?,
            pid: reader.u32()?,
            node: reader.node()?,
            exclusive: reader.u8()? != 0,
            waiting: reader.u8()? != 0,
        };
        let _pad: [u8; 6] = reader.take()?;
        if record.start > record.end {
            return Err(CodecError::Value {
                what: "first byte of a lock in PLOCKS_DATA",
                found: record.start,
                expected: "at most its last byte",
            });
        }
        data.locks.push(record);
    }
    Ok(data)
}

fn encode_plocks_data(data: &PlocksData, out: &mut Vec<u8>) {
    out.extend(data.number.to_le_bytes());
    let count = u32::try_from(data.locks.len()).unwrap_or(u32::MAX);
    let flags = if data.continues { RESOURCE_CONTINUES } else { 0 };
    for field in [data.owner, count, flags, 0] {
        out.extend(field.to_le_bytes());
    }
    for lock in &data.locks {
        for field in [lock.start, lock.end, lock.owner] {
            out.extend(field.to_le_bytes());
        }
        out.extend(lock.pid.to_le_bytes());
        out.extend(lock.node.0.to_le_bytes());
        out.extend([u8::from(lock.exclusive), u8::from(lock.waiting), 0, 0, 0, 0, 0, 0]);
    }
}

fn decode_fence(reader: &mut Reader<'_>) -> Result<FenceInfo, CodecError> {
    let fence = FenceInfo {
        version: reader.u32()?,
        flags: FenceFlags::from_bits_retain(reader.u32()?),
        node: reader.u32()?,
        result: reader.i32()?,
        walltime: reader.u64()?,
    };
    let _unused: [u8; FENCE_UNUSED] = reader.take()?;
    Ok(fence)
}

fn encode_fence(fence: &FenceInfo, out: &mut Vec<u8>) {
    for field in [fence.version, fence.flags.bits(), fence.node] {
        out.extend(field.to_le_bytes());
    }
    out.extend(fence.result.to_le_bytes());
    out.extend(fence.walltime.to_le_bytes());
    out.extend([0; FENCE_UNUSED]);
}

/// The global id of a lockspace: the CRC-32 of its group's name with the terminating zero.
#[must_use]
pub fn global_id(lockspace: &str) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(b"dlm:ls:");
    hasher.update(lockspace.as_bytes());
    hasher.update(&[0]);
    hasher.finalize()
}

#[cfg(test)]
#[path = "codec/tests.rs"]
mod tests;
