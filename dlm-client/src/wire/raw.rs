//! The layouts on the wire, little-endian, offsets fixed at compile time.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `dlm_header`: at the front of every packet.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawHeader {
    pub(crate) version: U32,
    /// Lockspace (messages, rcoms) or sequence (OPTS, ACK).
    pub(crate) u: U32,
    pub(crate) nodeid: U32,
    pub(crate) length: U16,
    pub(crate) cmd: u8,
    pub(crate) pad: u8,
}
const _: () = assert!(size_of::<RawHeader>() == 16);
const _: () = assert!(offset_of!(RawHeader, length) == 12);
const _: () = assert!(offset_of!(RawHeader, cmd) == 14);

/// `dlm_opts`, after its header.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawOpts {
    pub(crate) nextcmd: u8,
    /// `o_pad`: says that `life` is one.
    pub(crate) mark: u8,
    pub(crate) optlen: U16,
    /// `o_pad2`: the life of the sender's daemon, from one of ours.
    pub(crate) life: U32,
}
const _: () = assert!(size_of::<RawOpts>() == 8);
const _: () = assert!(offset_of!(RawOpts, optlen) == 2);

/// `dlm_message`, after its header.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawMessage {
    pub(crate) kind: U32,
    pub(crate) nodeid: I32,
    pub(crate) pid: U32,
    pub(crate) lkid: U32,
    pub(crate) remid: U32,
    pub(crate) parent_lkid: U32,
    pub(crate) parent_remid: U32,
    pub(crate) exflags: U32,
    pub(crate) sbflags: U32,
    pub(crate) flags: U32,
    pub(crate) lvbseq: U32,
    pub(crate) hash: U32,
    pub(crate) status: I32,
    pub(crate) grmode: I32,
    pub(crate) rqmode: I32,
    pub(crate) bastmode: I32,
    pub(crate) asts: U32,
    pub(crate) result: I32,
}
const _: () = assert!(size_of::<RawMessage>() == 88 - 16);
const _: () = assert!(offset_of!(RawMessage, exflags) == 44 - 16);
const _: () = assert!(offset_of!(RawMessage, hash) == 60 - 16);
const _: () = assert!(offset_of!(RawMessage, result) == 84 - 16);

/// `dlm_rcom`, after its header.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawRcom {
    pub(crate) kind: U32,
    pub(crate) result: I32,
    pub(crate) id: U64,
    pub(crate) seq: U64,
    pub(crate) seq_reply: U64,
}
const _: () = assert!(size_of::<RawRcom>() == 48 - 16);
const _: () = assert!(offset_of!(RawRcom, seq) == 32 - 16);

/// `rcom_status`: the data of STATUS.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawStatus {
    pub(crate) flags: U32,
    pub(crate) unused1: U32,
    pub(crate) unused2: U64,
}
const _: () = assert!(size_of::<RawStatus>() == 16);

/// `rcom_config`: the data of STATUS_REPLY, followed by the slots.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawConfig {
    pub(crate) lvblen: U32,
    pub(crate) lsflags: U32,
    pub(crate) flags: U32,
    pub(crate) our_slot: U16,
    pub(crate) num_slots: U16,
    pub(crate) generation: U32,
    pub(crate) unused1: U32,
    pub(crate) unused2: U64,
}
const _: () = assert!(size_of::<RawConfig>() == 32);
const _: () = assert!(offset_of!(RawConfig, generation) == 16);

/// `rcom_slot`.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawSlot {
    pub(crate) nodeid: U32,
    pub(crate) slot: U16,
    pub(crate) unused1: U16,
    pub(crate) unused2: U64,
}
const _: () = assert!(size_of::<RawSlot>() == 16);

/// `rcom_lock`, followed by the value block if the lock has one.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawLock {
    pub(crate) ownpid: U32,
    pub(crate) lkid: U32,
    pub(crate) remid: U32,
    pub(crate) parent_lkid: U32,
    pub(crate) parent_remid: U32,
    pub(crate) exflags: U32,
    pub(crate) flags: U32,
    pub(crate) lvbseq: U32,
    pub(crate) result: I32,
    pub(crate) rqmode: i8,
    pub(crate) grmode: i8,
    pub(crate) status: i8,
    pub(crate) asts: u8,
    pub(crate) wait_type: U16,
    pub(crate) namelen: U16,
    pub(crate) name: [u8; 64],
}
const _: () = assert!(size_of::<RawLock>() == 108);
const _: () = assert!(offset_of!(RawLock, rqmode) == 36);
const _: () = assert!(offset_of!(RawLock, wait_type) == 40);
const _: () = assert!(offset_of!(RawLock, name) == 44);
