//! The on-disk structures, one file per subject, as big-endian zerocopy types.
//!
//! Field names are those of `include/uapi/linux/gfs2_ondisk.h` without the structure's prefix. Invariants: every
//! type is unaligned plain bytes of asserted size; a value read is *raw* until a decoder has checked it. Reserved
//! bytes are ignored on read and zero on write (real images hold garbage in some).

mod dinode;
mod dir;
mod ea;
mod log;
mod meta_header;
mod rgrp;
mod sb;
mod small;

pub use dinode::{Dinode, DinodeFlags, EXHASH_MIN_SHIFT, FileType};
pub use dir::{Dirent, Leaf, name_hash};
pub use ea::{EA_FLAG_LAST, EaHeader, EaType};
pub use log::{
    DescriptorType, JdataTag, LogDescriptor, LogFlags, LogHeader, log_header_crc, log_header_hash,
};
pub use meta_header::{MetaHeader, MetaType};
pub use rgrp::{BlockState, RgFlags, Rgrp, RindexEntry, rgrp_crc};
pub use sb::{FORMAT_MAX, FORMAT_MIN, MULTIHOST_FORMAT, RawInum, Superblock};
pub use small::{
    DinodeLvb, InumRange, QUOTA_CHANGE_USER, Quota, QuotaChange, QuotaLvb, RgrpLvb, StatfsChange,
};

use crate::addr::BlockAddr;
use crate::error::{Error, Expected, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The magic number in word 0 of every metadata block.
pub const MAGIC: u32 = 0x0116_1970;
/// Bytes of `struct gfs2_meta_header`.
pub const META_HEADER_SIZE: usize = 24;
/// Bytes of `struct gfs2_dinode`.
pub const DINODE_SIZE: usize = 232;
/// Bytes of `struct gfs2_leaf`.
pub const LEAF_SIZE: usize = 104;
/// Bytes of `struct gfs2_rgrp`.
pub const RGRP_SIZE: usize = 128;
/// Bytes of `struct gfs2_log_descriptor`.
pub const LOG_DESCRIPTOR_SIZE: usize = 72;
/// Bytes of `struct gfs2_log_header`.
pub const LOG_HEADER_SIZE: usize = 120;
/// Bytes of `struct gfs2_dirent` without the name.
pub const DIRENT_SIZE: usize = 40;
/// Bytes of `struct gfs2_rindex`.
pub const RINDEX_SIZE: usize = 96;
/// Bytes of `struct gfs2_ea_header` without name and value.
pub const EA_HEADER_SIZE: usize = 16;
/// Longest file name in bytes.
pub const MAX_NAME: usize = 255;

/// A plain structure at the start of some bytes.
pub trait OnDisk: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned {
    /// Name of the structure as spelled in `gfs2_ondisk.h`, without prefix.
    const NAME: &'static str;
}

/// Views the structure at byte `offset` of a block.
///
/// # Errors
/// [`Error::Corrupt`] when the bytes end before the structure does.
pub fn view<T: OnDisk>(bytes: &[u8], offset: usize, block: BlockAddr) -> Result<&T> {
    bytes
        .get(offset..)
        .and_then(|rest| T::ref_from_prefix(rest).ok())
        .map(|(value, _)| value)
        .ok_or_else(|| too_short::<T>(bytes.len(), offset, block))
}

/// Views the structure at byte `offset` of a block for change.
///
/// # Errors
/// As [`view`].
pub fn view_mut<T: OnDisk>(bytes: &mut [u8], offset: usize, block: BlockAddr) -> Result<&mut T> {
    let len = bytes.len();
    bytes
        .get_mut(offset..)
        .and_then(|rest| T::mut_from_prefix(rest).ok())
        .map(|(value, _)| value)
        .ok_or_else(|| too_short::<T>(len, offset, block))
}

fn too_short<T: OnDisk>(len: usize, offset: usize, block: BlockAddr) -> Error {
    let need = offset.saturating_add(size_of::<T>()) as u64;
    Error::corrupt(
        block,
        T::NAME,
        "length in bytes",
        len as u64,
        Expected::Range(need, u64::MAX),
    )
}

#[cfg(test)]
mod tests;
