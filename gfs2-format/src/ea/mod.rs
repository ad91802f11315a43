//! Extended attributes: a block of records, a list of such blocks, values in blocks of their own.
//!
//! Names are without prefix, their space is the [`EaType`]. Invariants: records tile their block exactly or it is
//! corrupt; an unused record is believed in nothing but its length and flags (and the value blocks it still
//! holds);
//! `di_blocks`, `di_eattr` and the EA_INDIRECT flag are kept in the same edit. Times are the caller's business.

mod chain;
mod free;
mod read;
mod record;
mod write;

pub use free::EaCursor;
pub use write::worst_case_blocks;

pub(crate) use read::owned;

use crate::addr::BlockAddr;
use crate::ondisk::EaType;

/// Largest value in bytes.
pub const MAX_EA_VALUE: usize = 65536;
/// Longest stored name in bytes.
pub const MAX_EA_NAME: usize = 255;

/// The `sb_fs_format` from which on `trusted.` attributes exist.
const FORMAT_TRUSTED: u32 = 1802;

/// The xattrs of one inode.
#[derive(Clone, Copy, Debug)]
pub struct Xattrs {
    addr: BlockAddr,
    fs_format: u32,
}

impl Xattrs {
    /// Of the inode at `addr`, on a volume of this `sb_fs_format`: below 1802 a record of `trusted.` is corrupt,
    /// and setting one is [`crate::Error::Unsupported`].
    #[must_use]
    pub const fn new(addr: BlockAddr, fs_format: u32) -> Self {
        Self { addr, fs_format }
    }

    const fn most_type(&self) -> u8 {
        if self.fs_format >= FORMAT_TRUSTED {
            EaType::Trusted as u8
        } else {
            EaType::Security as u8
        }
    }
}

/// Whether [`Xattrs::set`] may create or replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetMode {
    /// Either.
    Any,
    /// Only create: [`crate::Error::Exists`].
    Create,
    /// Only replace: [`crate::Error::NotFound`].
    Replace,
}

/// A name of [`Xattrs::list`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EaName<'a> {
    /// Its space.
    pub space: EaType,
    /// The name as stored, without prefix.
    pub name: &'a [u8],
    /// Bytes of the value.
    pub value_len: u32,
}

/// What setting an attribute costs. Unit: filesystem blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct EaCost {
    /// Blocks it allocates at most.
    pub blocks: u32,
    /// Metadata blocks it edits at most, the new ones and the dinode included (bitmaps not).
    pub touched: u32,
}

/// Whether a change of [`Xattrs::set`] or [`Xattrs::remove`] left value blocks of the old value behind, held by
/// an unused record: free them with [`EaCursor::reclaim`] afterwards (they may be of any rgrp). Until then
/// nothing is lost, not even by a crash: the record keeps them, and deletion of the inode frees them too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Leftover(pub bool);

#[cfg(test)]
mod tests;
