//! The pointer tree of an inode: mapping, growing, freeing, stuffed data.
//!
//! One tree for files (logical blocks of `bsize` bytes) and for the hash tables of directories (logical blocks of
//! `jbsize` bytes of payload); the pointers are the same. Invariants: a walk never goes deeper than `di_height`, never
//! meets one of its own ancestors, and reads at most as many indirect blocks as the volume can hold; pointers leave
//! this module only checked. Every function that changes something does all of it in the edit it is given.

use crate::addr::{BlockAddr, Extent, FileBlock};
use crate::edit::{BlockEdit, BlockRead, BlockUse};
use crate::error::Result;
use crate::geometry::Geometry;
use crate::ondisk::Dinode;
use crate::pending;
use crate::time::Timestamp;

/// What stands at a logical block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// The inode has no tree: its bytes stand in the dinode's block.
    Stuffed,
    /// Allocated blocks; never more than asked for, never past one bottom pointer block.
    Data(Extent),
    /// No blocks; unit: filesystem blocks, never more than asked for. Spans missing subtrees.
    Hole {
        /// Length, at least 1.
        len: u64,
    },
}

/// Maps up to `max_len` (at least 1) logical blocks from `lblock` on. `dinode` are the bytes of block `addr`.
///
/// # Errors
/// I/O errors; [`crate::Error::Corrupt`] for a bad dinode, indirect block or pointer.
pub fn map<R: BlockRead + ?Sized>(
    _reader: &R,
    _addr: BlockAddr,
    _dinode: &[u8],
    _lblock: FileBlock,
    _max_len: u64,
) -> Result<Mapping> {
    pending()
}

/// The first allocated logical block in `from..end` (SEEK_DATA); a stuffed inode has its data at block 0.
///
/// # Errors
/// As [`map`].
pub fn next_data<R: BlockRead + ?Sized>(
    _reader: &R,
    _addr: BlockAddr,
    _dinode: &[u8],
    _from: FileBlock,
    _end: FileBlock,
) -> Result<Option<FileBlock>> {
    pending()
}

/// The first logical block of `from..end` that is not allocated (SEEK_HOLE).
///
/// # Errors
/// As [`map`].
pub fn next_hole<R: BlockRead + ?Sized>(
    _reader: &R,
    _addr: BlockAddr,
    _dinode: &[u8],
    _from: FileBlock,
    _end: FileBlock,
) -> Result<Option<FileBlock>> {
    pending()
}

/// The stuffed bytes of a dinode block: `di_size` of them.
///
/// # Errors
/// [`crate::Error::Corrupt`] for a bad dinode and for one that is not stuffed.
pub fn stuffed<'a>(_dinode: &'a [u8], _addr: BlockAddr, _geometry: &Geometry) -> Result<&'a [u8]> {
    pending()
}

/// Reads file bytes through [`BlockRead`] (system files, whose data is metadata to everybody: rindex, statfs, quota);
/// stuffed or not, holes read as zeroes. Returns how many bytes there were before the end of the file.
///
/// # Errors
/// As [`map`].
pub fn read_bytes<R: BlockRead + ?Sized>(
    _reader: &R,
    _addr: BlockAddr,
    _offset: u64,
    _buf: &mut [u8],
) -> Result<usize> {
    pending()
}

/// How the data blocks of this inode are used: hash blocks of a directory are metadata, jdata is logged.
#[must_use]
pub fn data_use(_dinode: &Dinode) -> BlockUse {
    BlockUse::Data
}

/// Turns a stuffed inode into one with a tree of height 1: its bytes move to a block of their own (a directory's with
/// a meta header), unless it is empty. Does nothing to one that has a tree. Returns the new data block.
///
/// # Errors
/// As [`map`], and those of [`BlockEdit`].
pub fn unstuff<E: BlockEdit + ?Sized>(_edit: &mut E, _addr: BlockAddr) -> Result<Option<BlockAddr>> {
    pending()
}

/// Grows the tree (which is no stuffed one) to `height`, with indirect blocks along its index 0 even when it is
/// empty; does nothing to one that is high enough.
///
/// # Errors
/// As [`unstuff`].
pub fn grow_height<E: BlockEdit + ?Sized>(_edit: &mut E, _addr: BlockAddr, _height: u16) -> Result<()> {
    pending()
}

/// Blocks found or made by [`map_or_alloc`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// The run that stands at the logical block asked for.
    pub extent: Extent,
    /// Freshly allocated: the caller must give every block of it its first contents in the same edit
    /// ([`BlockEdit::write_data`]).
    pub new: bool,
}

/// Maps up to `want` logical blocks from `lblock` on, allocating where there is a hole: unstuffs, grows the height,
/// adds indirect blocks, then allocates one contiguous run within one bottom pointer block. Keeps `di_blocks`,
/// `di_height` and the goals. `di_size` and the times are the caller's business.
///
/// # Errors
/// As [`unstuff`]; [`crate::Error::TooLarge`] for a logical block no tree can reach.
pub fn map_or_alloc<E: BlockEdit + ?Sized>(
    _edit: &mut E,
    _addr: BlockAddr,
    _lblock: FileBlock,
    _want: u32,
) -> Result<Allocated> {
    pending()
}

/// Upper bounds of what an allocation needs. Unit: filesystem blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cost {
    /// Data blocks to allocate.
    pub data: u64,
    /// Indirect blocks to allocate.
    pub indirect: u64,
    /// Metadata blocks edited, the new ones and the dinode included (bitmaps not).
    pub touched: u64,
}

impl Cost {
    /// All blocks to allocate.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.data.saturating_add(self.indirect)
    }
}

/// What allocating all of `count` logical blocks from `lblock` on costs at most, in a tree of height `height` (0:
/// stuffed) that is all holes; exact but for blocks that are there already.
#[must_use]
pub fn worst_case_blocks(_geometry: &Geometry, _height: u16, _lblock: FileBlock, _count: u64) -> Cost {
    Cost::default()
}

/// Bounds of one step of freeing, so that it fits one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepBudget {
    /// Most blocks freed.
    pub frees: u32,
    /// Most metadata blocks edited (the dinode included, bitmaps not); at least 2.
    pub edits: u32,
}

/// What a step of freeing did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepOutcome {
    /// Blocks freed.
    pub freed: u32,
    /// Nothing is left to free in the cursor's range.
    pub done: bool,
}

/// Frees a range of logical blocks in steps: data pointers first, then each higher level of indirect blocks that lie
/// wholly in the range. The cursor is only a memory of how far the sweep has come: a new one over the same range
/// resumes after a crash. Height, size and flags stay as they are.
///
/// ```text
/// let mut cursor = FreeCursor::new(from, end);
/// while let Some(block) = cursor.seek(&reader, addr)? {
///     // lock the rgrp of `block`, begin a transaction
///     cursor.step(&mut edit, addr, budget, &|b| rgrp.contains(b))?;
///     // commit
/// }
/// ```
#[derive(Clone, Debug)]
pub struct FreeCursor {}

impl FreeCursor {
    /// Frees the logical blocks `from..end`; `end` = `None` is the end of all trees.
    #[must_use]
    pub fn new(_from: FileBlock, _end: Option<FileBlock>) -> Self {
        Self {}
    }

    /// Moves to the next block to free and tells which it is, so that the caller can lock its rgrp; `None` when
    /// nothing is left. Reads only.
    ///
    /// # Errors
    /// As [`map`].
    pub fn seek<R: BlockRead + ?Sized>(
        &mut self,
        _reader: &R,
        _addr: BlockAddr,
    ) -> Result<Option<BlockAddr>> {
        pending()
    }

    /// Frees what it can within the budget, only blocks for which `in_group` holds; zeroes their pointers and lowers
    /// `di_blocks` in the same edit. Frees nothing when the next block is of another group.
    ///
    /// # Errors
    /// As [`map`], and those of [`BlockEdit`].
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

/// First edit of a truncate to a smaller `size` of an inode with a tree (and all of one within a stuffed inode, whose
/// tail it zeroes): stores size, times and, with a tree, `TRUNC_IN_PROG`. Returns the range to free with a
/// [`FreeCursor`], `None` when there is nothing to free and no finish needed. Zeroing the tail of the last
/// remaining block of a tree is the caller's business.
///
/// # Errors
/// As [`map`], and those of [`BlockEdit`].
pub fn truncate_begin<E: BlockEdit + ?Sized>(
    _edit: &mut E,
    _addr: BlockAddr,
    _size: u64,
    _now: Timestamp,
) -> Result<Option<FreeCursor>> {
    pending()
}

/// The cursor that resumes a truncate to the present `di_size` (`TRUNC_IN_PROG` found set).
///
/// # Errors
/// As [`map`].
pub fn truncate_resume<R: BlockRead + ?Sized>(_reader: &R, _addr: BlockAddr) -> Result<FreeCursor> {
    pending()
}

/// Last edit of a truncate: clears `TRUNC_IN_PROG`; an inode of size 0 becomes stuffed again.
///
/// # Errors
/// As [`map`], and those of [`BlockEdit`].
pub fn truncate_finish<E: BlockEdit + ?Sized>(_edit: &mut E, _addr: BlockAddr) -> Result<()> {
    pending()
}
