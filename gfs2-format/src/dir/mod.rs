//! Directories: linear ones in the dinode, hashed ones in leaves.
//!
//! Every function takes the block of the directory's dinode. Invariants: dirents tile their area exactly or the area
//! is corrupt; a leaf chain is walked with cycle detection; `di_entries`, `lf_entries`, `di_blocks`, the leaf's time and
//! the directory's mtime and ctime are kept in the same edit as the entries. Link counts are the caller's business.

use crate::addr::{BlockAddr, InodeNum};
use crate::edit::{BlockEdit, BlockRead};
use crate::error::Result;
use crate::geometry::Geometry;
use crate::ondisk::FileType;
use crate::pending;
use crate::time::Timestamp;
use crate::tree::{StepBudget, StepOutcome};
use std::ops::ControlFlow;

/// Where a dirent stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// The leaf, or the dinode of a linear directory.
    pub block: BlockAddr,
    /// Byte offset in that block.
    pub offset: u32,
}

/// An entry found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The inode it names.
    pub num: InodeNum,
    /// The file type it says.
    pub kind: FileType,
    /// Where it stands.
    pub at: Location,
}

/// An entry to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewEntry<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// The inode it names.
    pub num: InodeNum,
    /// The inode's file type.
    pub kind: FileType,
    /// The inode's first EA block directly follows its dinode: a hint for read-ahead (`de_rahead`).
    pub ea_follows: bool,
}

/// Checks that a name can be stored: 1 to 255 bytes, no NUL, no slash.
///
/// # Errors
/// [`crate::Error::TooLarge`] for a long name; [`crate::Error::Unsupported`] for the others.
pub fn check_name(_name: &[u8]) -> Result<()> {
    pending()
}

/// Looks a name up.
///
/// # Errors
/// I/O errors; [`crate::Error::Corrupt`] for anything wrong on the way to the entry.
pub fn lookup<R: BlockRead + ?Sized>(_reader: &R, _dir: BlockAddr, _name: &[u8]) -> Result<Option<Found>> {
    pending()
}

/// What an insert costs. Unit: filesystem blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct InsertCost {
    /// Blocks it allocates at most (leaves, hash blocks, indirect blocks); 0: the entry fits where there is room.
    pub blocks: u32,
    /// Metadata blocks it edits at most, the new ones and the dinode included (bitmaps not).
    pub touched: u32,
}

/// What inserting this name costs at most in the directory's present state. Exact but for indirect blocks.
///
/// # Errors
/// As [`lookup`].
pub fn needs_blocks<R: BlockRead + ?Sized>(_reader: &R, _dir: BlockAddr, _name: &[u8]) -> Result<InsertCost> {
    pending()
}

/// Adds an entry; converts, splits, doubles and chains as needed.
///
/// # Errors
/// [`crate::Error::Exists`] when the name is there; as [`lookup`] and [`check_name`], and those of [`BlockEdit`].
pub fn insert<E: BlockEdit + ?Sized>(
    _edit: &mut E,
    _dir: BlockAddr,
    _entry: &NewEntry<'_>,
    _now: Timestamp,
) -> Result<()> {
    pending()
}

/// Removes an entry and tells what it said.
///
/// # Errors
/// [`crate::Error::NotFound`]; as [`lookup`], and those of [`BlockEdit`].
pub fn remove<E: BlockEdit + ?Sized>(
    _edit: &mut E,
    _dir: BlockAddr,
    _name: &[u8],
    _now: Timestamp,
) -> Result<Found> {
    pending()
}

/// Makes the entry of that name say another inode and type (rename over a target, exchange, ".."); tells what it
/// said before.
///
/// # Errors
/// As [`remove`].
pub fn replace<E: BlockEdit + ?Sized>(
    _edit: &mut E,
    _dir: BlockAddr,
    _entry: &NewEntry<'_>,
    _now: Timestamp,
) -> Result<Found> {
    pending()
}

/// Makes the bytes of a fresh dinode block (header, numbers and mode are there) a linear directory with "." and "..":
/// payload, `di_size`, `di_entries`, `di_payload_format`, height, depth and the JDATA flag. `di_nlink` is the caller's.
///
/// # Errors
/// [`crate::Error::Corrupt`] when `bytes` is no whole block.
pub fn init_dir(_bytes: &mut [u8], _geometry: &Geometry, _own: InodeNum, _parent: InodeNum) -> Result<()> {
    pending()
}

/// Has the directory no entries but "." and ".."? Believes `di_entries`, as the kernel does; of a linear directory it
/// also counts.
///
/// # Errors
/// As [`lookup`].
pub fn is_empty<R: BlockRead + ?Sized>(_reader: &R, _dir: BlockAddr) -> Result<bool> {
    pending()
}

/// A position in a directory: after one entry and before the next, in an order made of the names alone (hash first).
/// Stable across inserts, deletes, splits and conversion; below 2^62, so that it fits a signed offset. Entries whose
/// names agree in 50 bits of two checksums are told apart by their rank among each other (up to 4096 of them), the
/// only part of a cookie that a delete can move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cookie(u64);

impl Cookie {
    /// Before the first entry.
    pub const START: Self = Self(0);

    /// From a number handed out before.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The number to hand out.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// An entry as [`read_from`] shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// The inode it names.
    pub num: InodeNum,
    /// The file type it says.
    pub kind: FileType,
    /// The position after this entry.
    pub cookie: Cookie,
}

/// Shows the entries after a position, "." and ".." among them, in cookie order, until the visitor breaks. Reads
/// leaf chain by leaf chain, so that a call costs what it shows. Returns whether the end was reached.
///
/// # Errors
/// As [`lookup`]; [`crate::Error::Corrupt`] when `lf_entries` (or `di_entries` of a linear directory) is not the number of
/// entries found.
pub fn read_from<R: BlockRead + ?Sized>(
    _reader: &R,
    _dir: BlockAddr,
    _after: Cookie,
    _visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
) -> Result<bool> {
    pending()
}

/// Frees the leaves of a hashed directory that is being deleted, in steps; used like [`crate::tree::FreeCursor`]. Leaves go
/// from the head of their chain while the slots of the hash table are pointed at what remains, so that a new
/// cursor resumes after a crash. With the last one the inode becomes a regular file, whose data (the hash table) is
/// then freed as any file's.
#[derive(Clone, Debug, Default)]
pub struct LeafCursor {}

impl LeafCursor {
    /// From the first slot.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves to the next leaf to free and tells which it is; `None` when none is left, or nothing to do with this inode
    /// (linear directory, no directory). Reads only.
    ///
    /// # Errors
    /// As [`lookup`].
    pub fn seek<R: BlockRead + ?Sized>(&mut self, _reader: &R, _dir: BlockAddr) -> Result<Option<BlockAddr>> {
        pending()
    }

    /// Frees leaves within the budget, only those for which `in_group` holds.
    ///
    /// # Errors
    /// As [`lookup`], and those of [`BlockEdit`].
    pub fn step<E: BlockEdit + ?Sized>(
        &mut self,
        _edit: &mut E,
        _dir: BlockAddr,
        _budget: StepBudget,
        _in_group: &dyn Fn(BlockAddr) -> bool,
    ) -> Result<StepOutcome> {
        pending()
    }

    /// Makes a hashed directory without leaves a regular file, if the last step has not; needed only when
    /// [`LeafCursor::seek`] found nothing at first.
    ///
    /// # Errors
    /// As [`LeafCursor::step`].
    pub fn finish<E: BlockEdit + ?Sized>(&mut self, _edit: &mut E, _dir: BlockAddr) -> Result<()> {
        pending()
    }
}
