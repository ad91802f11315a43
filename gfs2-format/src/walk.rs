//! Every block an inode owns, one after the other: for eviction, fsck and tests of accounting.
//!
//! Invariants: bounded memory (one path of the tree, one leaf, one EA block); the walk ends after a number of
//! blocks bounded by what the inode can own, whatever the pointers say. A bad block ends it with an error that
//! names it.

use crate::addr::{BlockAddr, Extent, FileBlock};
use crate::dir::{Chain, Dir};
use crate::edit::{Block, BlockRead};
use crate::error::Result;
use crate::ondisk::{Dinode, DinodeFlags};
use crate::tree::{Root, runs};

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
    /// The blocks; more than one only where neighbouring pointers of the tree point at neighbouring blocks.
    pub extent: Extent,
    /// What they are; a logical block is that of the first.
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
    reader: &R,
    addr: BlockAddr,
    scope: Scope,
    visit: &mut dyn FnMut(Owned) -> Result<()>,
) -> Result<()> {
    let block = reader.read(addr)?;
    let di = *Dinode::decode(&block, addr, reader.geometry())?;
    tree_blocks(reader, addr, &block, &di, scope, visit)?;
    if di.is_dir() && di.flags().contains(DinodeFlags::EXHASH) {
        leaf_blocks(reader, addr, visit)?;
    }
    crate::ea::owned(reader, addr, visit)
}

fn tree_blocks<R: BlockRead + ?Sized>(
    reader: &R,
    addr: BlockAddr,
    block: &Block,
    di: &Dinode,
    scope: Scope,
    visit: &mut dyn FnMut(Owned) -> Result<()>,
) -> Result<()> {
    let geometry = reader.geometry();
    let root = Root::new(di, addr, geometry);
    for level in 0..root.height {
        let bottom = level + 1 == root.height;
        if bottom && !di.is_dir() && scope == Scope::Metadata {
            continue;
        }
        let (mut pos, mut visits) = (0, 0);
        while let Some(found) = root.find(reader, block, level, pos, u64::MAX, &mut visits)? {
            let (structure, field) = found.field();
            let mut present = Vec::new();
            for (index, raw) in found.ptrs()?.iter().enumerate() {
                if let Some(child) = geometry.check_pointer(raw.get(), found.addr, structure, field)? {
                    present.push((index, child));
                }
            }
            for run in present.chunk_by(|(i, a), (j, b)| i + 1 == *j && a.checked_add(1) == Some(*b)) {
                let Some((index, _)) = run.first() else { continue };
                let lblock = FileBlock::new(found.start_of(*index));
                let role = match (bottom, di.is_dir()) {
                    (false, _) => Role::Indirect,
                    (true, true) => Role::Hash(lblock),
                    (true, false) => Role::Data(lblock),
                };
                let blocks: Vec<BlockAddr> = run.iter().map(|(_, block)| *block).collect();
                for extent in runs(&blocks) {
                    visit(Owned {
                        extent,
                        role,
                        parent: found.addr,
                    })?;
                }
            }
            pos = found.end()?;
        }
    }
    Ok(())
}

fn leaf_blocks<R: BlockRead + ?Sized>(
    reader: &R,
    addr: BlockAddr,
    visit: &mut dyn FnMut(Owned) -> Result<()>,
) -> Result<()> {
    let dir = Dir::open(reader, addr)?;
    let mut slot = 0;
    while slot < dir.slots() {
        let raw = dir.raw_slot(reader, slot)?;
        let head = reader
            .geometry()
            .check_pointer(raw, addr, "dinode", "hash table slot")?;
        let mut parent = addr;
        if let Some(head) = head {
            let mut chain = Chain::new(head);
            while let Some(leaf) = chain.step(reader)? {
                visit(Owned {
                    extent: Extent::single(leaf.addr),
                    role: Role::Leaf(slot),
                    parent,
                })?;
                parent = leaf.addr;
            }
        }
        slot = slot.saturating_add(dir.equal_slots(reader, slot)?.max(1));
    }
    Ok(())
}
