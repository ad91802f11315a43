//! The small records: statfs, quota, inum range, and the lock value blocks.

use super::OnDisk;
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `GFS2_QCF_USER`: the change is of a user, not of a group.
pub const QUOTA_CHANGE_USER: u32 = 1;

/// `struct gfs2_statfs_change`: totals (master `statfs`) or deltas (`statfs_changeN`), all two's complement.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq, Default,
)]
#[repr(C)]
pub struct StatfsChange {
    /// `sc_total`, in blocks.
    pub total: U64,
    /// `sc_free`, in blocks.
    pub free: U64,
    /// `sc_dinodes`.
    pub dinodes: U64,
}

const _: () = assert!(size_of::<StatfsChange>() == 24);

impl OnDisk for StatfsChange {
    const NAME: &'static str = "statfs_change";
}

impl StatfsChange {
    /// From signed numbers.
    #[must_use]
    pub fn from_signed(total: i64, free: i64, dinodes: i64) -> Self {
        Self {
            total: total.cast_unsigned().into(),
            free: free.cast_unsigned().into(),
            dinodes: dinodes.cast_unsigned().into(),
        }
    }

    /// `(total, free, dinodes)` as signed numbers.
    #[must_use]
    pub fn signed(&self) -> (i64, i64, i64) {
        (
            self.total.get().cast_signed(),
            self.free.get().cast_signed(),
            self.dinodes.get().cast_signed(),
        )
    }
}

/// `struct gfs2_quota`: a record of the quota file (index 2*id for users, 2*id+1 for groups).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Quota {
    /// `qu_limit`, in blocks; 0 = none.
    pub limit: U64,
    /// `qu_warn`, in blocks; 0 = none.
    pub warn: U64,
    /// `qu_value`, in blocks.
    pub value: U64,
    /// `qu_reserved`.
    pub reserved: [u8; 64],
}

const _: () = assert!(size_of::<Quota>() == 88);

impl OnDisk for Quota {
    const NAME: &'static str = "quota";
}

/// `struct gfs2_quota_change`: a slot of a quota change block.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct QuotaChange {
    /// `qc_change`, in blocks, two's complement; 0 = free slot.
    pub change: U64,
    /// `qc_flags`.
    pub flags: U32,
    /// `qc_id`.
    pub id: U32,
}

const _: () = assert!(size_of::<QuotaChange>() == 16);

impl OnDisk for QuotaChange {
    const NAME: &'static str = "quota_change";
}

/// `struct gfs2_inum_range`: unused by the kernel, made by mkfs.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq, Default,
)]
#[repr(C)]
pub struct InumRange {
    /// `ir_start`.
    pub start: U64,
    /// `ir_length`.
    pub length: U64,
}

const _: () = assert!(size_of::<InumRange>() == 16);

impl OnDisk for InumRange {
    const NAME: &'static str = "inum_range";
}

/// `struct gfs2_rgrp_lvb`: the value block of a resource group's lock; mirrors the header.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RgrpLvb {
    /// `rl_magic`: the magic, or 0 = not valid, read the disk.
    pub magic: U32,
    /// `rl_flags`.
    pub flags: U32,
    /// `rl_free`.
    pub free: U32,
    /// `rl_dinodes`.
    pub dinodes: U32,
    /// `rl_igeneration`.
    pub igeneration: U64,
    /// `rl_unlinked`.
    pub unlinked: U32,
    /// `__pad`.
    pub pad: U32,
}

const _: () = assert!(size_of::<RgrpLvb>() == 32);

impl OnDisk for RgrpLvb {
    const NAME: &'static str = "rgrp_lvb";
}

/// `struct gfs2_inode_lvb`, padded to a value block: the newest deleted generation of this inode number.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct DinodeLvb {
    /// `ri_magic`.
    pub magic: U32,
    /// `__pad`.
    pub pad: U32,
    /// `ri_generation_deleted`.
    pub generation_deleted: U64,
    /// Rest of the 32-byte value block.
    pub rest: [u8; 16],
}

const _: () = assert!(size_of::<DinodeLvb>() == 32);

impl OnDisk for DinodeLvb {
    const NAME: &'static str = "inode_lvb";
}

/// `struct gfs2_quota_lvb`.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct QuotaLvb {
    /// `qb_magic`.
    pub magic: U32,
    /// `__pad`.
    pub pad: U32,
    /// `qb_limit`.
    pub limit: U64,
    /// `qb_warn`.
    pub warn: U64,
    /// `qb_value`.
    pub value: U64,
}

const _: () = assert!(size_of::<QuotaLvb>() == 32);

impl OnDisk for QuotaLvb {
    const NAME: &'static str = "quota_lvb";
}
