//! Every block an inode owns, one after the other: for eviction, fsck and tests of accounting.
//!
//! Invariants: bounded memory (one path of the tree, one chain, one EA block); the walk ends after at most as many
//! blocks as the volume has, whatever the pointers say. A bad block ends it with an error that names the block.

use crate::addr::{BlockAddr, Extent, FileBlock};
use crate::edit::BlockRead;
use crate::error::Result;
use crate::pending;

/// What an owned block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Indirect block of the tree.
    Indirect,
    /// File data from this logical block on.
    Data(FileBlock),
    /// Hash block of a directory, from this logical block on.
    Hash(FileBlock),
    /// Leaf, or chained leaf, of this slot of the hash table.
    Leaf(u32),
    /// The list of EA blocks.
    EaIndirect,
    /// EA block.
    Ea,
    /// Block of an EA value.
    EaValue,
}

/// Blocks of one role, and the block that points at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    /// The blocks; more than one only for data.
    pub extent: Extent,
    /// What they are.
    pub role: Role,
    /// The block that holds the pointer.
    pub parent: BlockAddr,
}

/// Which blocks a walk shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All but the dinode itself.
    All,
    /// No file data: only what has a meta header.
    Metadata,
}

/// Shows the blocks the inode at `addr` owns besides its dinode: tree (parents before children), leaves, xattrs. A
/// leaf is shown once for its run of slots.
///
/// # Errors
/// I/O errors; [`crate::Error::Corrupt`]; what the visitor returns.
pub fn owned_blocks<R: BlockRead + ?Sized>(
    _reader: &R,
    _addr: BlockAddr,
    _scope: Scope,
    _visit: &mut dyn FnMut(Owned) -> Result<()>,
) -> Result<()> {
    pending()
}
