//! `struct gfs2_log_header` and `struct gfs2_log_descriptor`.

use super::{LOG_DESCRIPTOR_SIZE, LOG_HEADER_SIZE, MetaHeader, OnDisk};
use bitflags::bitflags;
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

bitflags! {
    /// `lh_flags`. Only UNMOUNT means anything; the rest says who wrote the header.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct LogFlags: u32 {
        /// Clean: nothing to replay.
        const UNMOUNT = 1;
        /// Normal flush.
        const FLUSH_NORMAL = 2;
        /// Sync flush.
        const FLUSH_SYNC = 4;
        /// Shutdown flush.
        const FLUSH_SHUTDOWN = 8;
        /// Freeze flush.
        const FLUSH_FREEZE = 0x10;
        /// Written by journal recovery.
        const RECOVERY = 0x20;
        /// Caller: shutdown.
        const LFC_SHUTDOWN = 0x100;
        /// Caller: AIL flush.
        const LFC_AIL_FLUSH = 0x1000;
        /// Caller: resource group sync.
        const LFC_RGRP_GO_SYNC = 0x2000;
        /// Caller: inode sync.
        const LFC_INODE_GO_SYNC = 0x4000;
        /// Caller: quota sync.
        const LFC_DO_SYNC = 0x4_0000;
        /// Caller: log reservation.
        const LFC_RESERVE = 0x8_0000;
        /// Caller: write_inode (fsync).
        const LFC_WRITE_INODE = 0x10_0000;
        /// Caller: make read-only.
        const LFC_MAKE_FS_RO = 0x20_0000;
        /// Caller: sync_fs.
        const LFC_SYNC_FS = 0x40_0000;
        /// Caller: transaction end.
        const LFC_TRANS_END = 0x100_0000;
        /// Caller: logd, journal filling up.
        const LFC_LOGD_JFLUSH_REQD = 0x200_0000;
        /// Caller: logd, AIL flush wanted.
        const LFC_LOGD_AIL_FLUSH_REQD = 0x400_0000;
        /// Written by a tool, not by a mounted filesystem.
        const USERSPACE = 0x8000_0000;
        /// Bits of other writers are kept.
        const _ = !0;
    }
}

/// `struct gfs2_log_header`: 120 bytes at the start of a journal block whose rest is zero.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct LogHeader {
    /// `lh_header`; its jid is the writer's own.
    pub header: MetaHeader,
    /// `lh_sequence`.
    pub sequence: U64,
    /// `lh_flags`.
    pub flags: U32,
    /// `lh_tail`, journal-relative.
    pub tail: U32,
    /// `lh_blkno`: this header's own journal-relative block.
    pub blkno: U32,
    /// `lh_hash`: CRC-32 of bytes 0..48 with this field zero.
    pub hash: U32,
    /// `lh_crc`: CRC-32C of bytes 52 to the block's end, without final inversion; 0 = old header, not checked.
    pub crc: U32,
    /// `lh_nsec`.
    pub nsec: U32,
    /// `lh_sec`.
    pub sec: U64,
    /// `lh_addr`: this header's own absolute block.
    pub addr: U64,
    /// `lh_jinode`: the journal's dinode.
    pub jinode: U64,
    /// `lh_statfs_addr`: the node's statfs_change dinode.
    pub statfs_addr: U64,
    /// `lh_quota_addr`: the node's quota_change dinode.
    pub quota_addr: U64,
    /// `lh_local_total`, two's complement.
    pub local_total: U64,
    /// `lh_local_free`, two's complement.
    pub local_free: U64,
    /// `lh_local_dinodes`, two's complement.
    pub local_dinodes: U64,
}

const _: () = assert!(size_of::<LogHeader>() == LOG_HEADER_SIZE);
const _: () = assert!(std::mem::offset_of!(LogHeader, hash) == 44);
const _: () = assert!(std::mem::offset_of!(LogHeader, crc) == 48);
const _: () = assert!(std::mem::offset_of!(LogHeader, addr) == 64);

impl OnDisk for LogHeader {
    const NAME: &'static str = "log_header";
}

impl LogHeader {
    /// `lh_flags`.
    #[must_use]
    pub fn flags(&self) -> LogFlags {
        LogFlags::from_bits_retain(self.flags.get())
    }
}

/// The value of `lh_hash` for a header block (at least 48 bytes; a shorter one hashes what is there).
#[must_use]
pub fn log_header_hash(block: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(block.get(..44).unwrap_or(block));
    hasher.update(&[0; 4]);
    hasher.finalize()
}

/// The value of `lh_crc` for a whole header block.
#[must_use]
pub fn log_header_crc(block: &[u8]) -> u32 {
    // The usual CRC-32C inverts its result at the end; the format's does not.
    !crc32c::crc32c(block.get(52..).unwrap_or_default())
}

/// `ld_type` of a log descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DescriptorType {
    /// 300: one u64 per tag, the target block.
    Metadata = 300,
    /// 301: u64 block numbers, going on in continuation blocks.
    Revoke = 301,
    /// 302: pairs of u64, target block and escaped flag.
    Jdata = 302,
}

impl DescriptorType {
    /// From `ld_type`.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            300 => Some(Self::Metadata),
            301 => Some(Self::Revoke),
            302 => Some(Self::Jdata),
            _ => None,
        }
    }
}

/// `struct gfs2_log_descriptor`: 72 bytes; tags follow.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct LogDescriptor {
    /// `ld_header`.
    pub header: MetaHeader,
    /// `ld_type`.
    pub ld_type: U32,
    /// `ld_length`: journal blocks of the chunk, the descriptor included.
    pub length: U32,
    /// `ld_data1`: tags, or revokes.
    pub data1: U32,
    /// `ld_data2`: 0.
    pub data2: U32,
    /// `ld_reserved`.
    pub reserved: [u8; 32],
}

const _: () = assert!(size_of::<LogDescriptor>() == LOG_DESCRIPTOR_SIZE);

impl OnDisk for LogDescriptor {
    const NAME: &'static str = "log_descriptor";
}

/// Tag of a jdata descriptor.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct JdataTag {
    /// Target block.
    pub block: U64,
    /// 1: word 0 was the magic and is zeroed in the journal's copy.
    pub escaped: U64,
}

impl OnDisk for JdataTag {
    const NAME: &'static str = "jdata tag";
}
