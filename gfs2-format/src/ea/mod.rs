//! Extended attributes: a block of records, a list of such blocks, values in blocks of their own.
//!
//! Names are without prefix, their space is the [`EaType`]. Invariants: records tile their block exactly or it is
//! corrupt; an unused record is believed in nothing but its length and flags (and the value blocks it still holds);
//! `di_blocks`, `di_eattr` and the EA_INDIRECT flag are kept in the same edit. Times are the caller's business.

use crate::addr::BlockAddr;
use crate::edit::{BlockEdit, BlockRead};
use crate::error::Result;
use crate::geometry::Geometry;
use crate::ondisk::EaType;
use crate::pending;
use crate::tree::{StepBudget, StepOutcome};

/// Largest value in bytes.
pub const MAX_EA_VALUE: usize = 65536;
/// Longest stored name in bytes.
pub const MAX_EA_NAME: usize = 255;

/// The xattrs of one inode.
#[derive(Clone, Copy, Debug)]
pub struct Xattrs {
    addr: BlockAddr,
    fs_format: u32,
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

/// What setting a value costs at most, whatever the inode holds already.
#[must_use]
pub fn worst_case_blocks(_geometry: &Geometry, _name_len: usize, _value_len: usize) -> EaCost {
    EaCost::default()
}

/// A change of [`Xattrs::set`] or [`Xattrs::remove`] left value blocks of the old value behind, held by an unused record:
/// free them with [`EaCursor::reclaim`] afterwards (they may be of any rgrp). Until then nothing is lost, not even
/// by a crash: the record keeps them, deletion of the inode frees them too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Leftover(pub bool);

impl Xattrs {
    /// Of the inode at `addr`, on a volume of this `sb_fs_format`: below 1802 a record of `trusted.` is corrupt, and
    /// setting one is [`crate::Error::Unsupported`].
    #[must_use]
    pub const fn new(addr: BlockAddr, fs_format: u32) -> Self {
        Self { addr, fs_format }
    }

    /// The value of a name.
    ///
    /// # Errors
    /// I/O errors; [`crate::Error::Corrupt`].
    pub fn get<R: BlockRead + ?Sized>(
        &self,
        _reader: &R,
        _space: EaType,
        _name: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        let _ = (self.addr, self.fs_format);
        pending()
    }

    /// The length of a name's value, without reading it.
    ///
    /// # Errors
    /// As [`Xattrs::get`].
    pub fn value_len<R: BlockRead + ?Sized>(
        &self,
        _reader: &R,
        _space: EaType,
        _name: &[u8],
    ) -> Result<Option<u32>> {
        pending()
    }

    /// Shows every name, in the order of the records.
    ///
    /// # Errors
    /// As [`Xattrs::get`].
    pub fn list<R: BlockRead + ?Sized>(&self, _reader: &R, _visit: &mut dyn FnMut(EaName<'_>)) -> Result<()> {
        pending()
    }

    /// Sets a value.
    ///
    /// # Errors
    /// [`crate::Error::Exists`], [`crate::Error::NotFound`] by mode; [`crate::Error::TooLarge`]; [`crate::Error::NoSpace`] also when the list of
    /// EA blocks is full; as [`Xattrs::get`], and those of [`BlockEdit`].
    pub fn set<E: BlockEdit + ?Sized>(
        &self,
        _edit: &mut E,
        _space: EaType,
        _name: &[u8],
        _value: &[u8],
        _mode: SetMode,
    ) -> Result<Leftover> {
        pending()
    }

    /// Removes a name.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`]; as [`Xattrs::get`], and those of [`BlockEdit`].
    pub fn remove<E: BlockEdit + ?Sized>(
        &self,
        _edit: &mut E,
        _space: EaType,
        _name: &[u8],
    ) -> Result<Leftover> {
        pending()
    }
}

/// Frees xattr blocks in steps; used like [`crate::tree::FreeCursor`], and resumable like it.
#[derive(Clone, Debug)]
pub struct EaCursor {}

impl EaCursor {
    /// Frees the value blocks of unused records only.
    #[must_use]
    pub fn reclaim() -> Self {
        Self {}
    }

    /// Frees everything: value blocks, EA blocks, the block of `di_eattr`; for an inode that is being deleted.
    #[must_use]
    pub fn dealloc() -> Self {
        Self {}
    }

    /// Finds the next block to free; `None` when none is left. Reads only.
    ///
    /// # Errors
    /// As [`Xattrs::get`].
    pub fn seek<R: BlockRead + ?Sized>(
        &mut self,
        _reader: &R,
        _addr: BlockAddr,
    ) -> Result<Option<BlockAddr>> {
        pending()
    }

    /// Frees blocks within the budget, only those for which `in_group` holds.
    ///
    /// # Errors
    /// As [`Xattrs::get`], and those of [`BlockEdit`].
    pub fn step<E: BlockEdit + ?Sized>(
        &mut self,
        _edit: &mut E,
        _addr: BlockAddr,
        _budget: StepBudget,
        _in_group: &dyn Fn(BlockAddr) -> bool,
    ) -> Result<StepOutcome> {
        pending()
    }
}

/// Shows the xattr blocks of an inode.
pub(crate) fn owned<R: BlockRead + ?Sized>(
    _reader: &R,
    _addr: BlockAddr,
    _visit: &mut dyn FnMut(crate::walk::Owned) -> Result<()>,
) -> Result<()> {
    Ok(())
}
