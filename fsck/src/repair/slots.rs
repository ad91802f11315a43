//! Where an inode's tree points to a block.
//!
//! Invariants: no recursion; each block of the tree is read once; what is no indirect block is not followed.

use super::Editor;
use gfs2_format::ondisk::{DINODE_SIZE, Dinode, DinodeFlags, META_HEADER_SIZE, MetaHeader, MetaType};
use gfs2_format::{BlockAddr, BlockEdit, BlockRead, Error};
use std::collections::HashSet;

/// A pointer of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// The block that holds it.
    pub(super) block: BlockAddr,
    /// Byte in that block.
    pub(super) offset: usize,
    /// Which of that block's pointers it is.
    pub(super) place: usize,
    /// It points to data (of a directory: to a block of the hash table).
    pub(super) data: bool,
}

/// Every pointer of the inode's tree to `target`, in the order of the tree's levels.
pub(super) fn slots_to(edit: &Editor<'_>, inode: BlockAddr, target: u64) -> Result<Vec<Slot>, Error> {
    slots_where(edit, inode, |raw| raw == target)
}

/// The same of several targets.
pub(super) fn slots_where(
    edit: &Editor<'_>,
    inode: BlockAddr,
    wanted: impl Fn(u64) -> bool,
) -> Result<Vec<Slot>, Error> {
    let di = edit.get::<Dinode>(inode, 0)?;
    let height = di.height.get().min(edit.geometry().max_height());
    let mut found = Vec::new();
    let mut level = vec![inode];
    let mut seen: HashSet<u64> = HashSet::new();
    for depth in 0..height {
        let data = depth.saturating_add(1) == height;
        let mut below = Vec::new();
        for block in std::mem::take(&mut level) {
            let bytes = edit.read(block)?;
            let head = if depth == 0 { DINODE_SIZE } else { META_HEADER_SIZE };
            if depth > 0 && MetaHeader::check(&bytes, block, MetaType::In).is_err() {
                continue;
            }
            for (n, raw) in crate::pass::tree::pointers(&bytes, head).enumerate() {
                if wanted(raw) {
                    let offset = head.saturating_add(n.saturating_mul(8));
                    found.push(Slot {
                        block,
                        offset,
                        place: n,
                        data,
                    });
                }
                if !data && raw != 0 && raw < edit.geometry().end() && seen.insert(raw) {
                    below.push(BlockAddr::new(raw));
                }
            }
        }
        level = below;
    }
    Ok(found)
}

/// Every slot of a hashed directory's table that leads to a leaf.
pub(super) fn leaf_slots(edit: &Editor<'_>, dir: BlockAddr, leaf: u64) -> Result<Vec<Slot>, Error> {
    let di = edit.get::<Dinode>(dir, 0)?;
    let geometry = edit.geometry();
    if !di.is_dir() || !di.flags().contains(DinodeFlags::EXHASH) {
        return Ok(Vec::new());
    }
    let mut level = vec![dir];
    for depth in 0..di.height.get().min(geometry.max_height()) {
        let mut below = Vec::new();
        for block in std::mem::take(&mut level) {
            let bytes = edit.read(block)?;
            let head = if depth == 0 { DINODE_SIZE } else { META_HEADER_SIZE };
            if depth == 0 || MetaHeader::check(&bytes, block, MetaType::In).is_ok() {
                let inside = |raw: &u64| *raw != 0 && *raw < geometry.end();
                below.extend(
                    crate::pass::tree::pointers(&bytes, head)
                        .filter(inside)
                        .map(BlockAddr::new),
                );
            }
        }
        below.sort_unstable();
        below.dedup();
        level = below;
    }
    let mut found = Vec::new();
    for block in level {
        let bytes = edit.read(block)?;
        let head = if block == dir {
            DINODE_SIZE
        } else {
            META_HEADER_SIZE
        };
        if block != dir && MetaHeader::check(&bytes, block, MetaType::Jd).is_err() {
            continue;
        }
        let words = crate::pass::tree::pointers(&bytes, head).enumerate();
        found.extend(words.filter(|(_, raw)| *raw == leaf).map(|(place, _)| Slot {
            block,
            offset: head.saturating_add(place.saturating_mul(8)),
            place,
            data: true,
        }));
    }
    Ok(found)
}

/// Makes a pointer say something else; 0: nothing.
pub(super) fn set_slot(edit: &mut Editor<'_>, slot: Slot, to: u64) -> Result<(), Error> {
    let bytes = edit.edit(slot.block)?.get_mut(slot.offset..).unwrap_or_default();
    bytes
        .iter_mut()
        .zip(to.to_be_bytes())
        .for_each(|(to, from)| *to = from);
    Ok(())
}

/// Zeroes every pointer in one block that says `raw`; answers whether there was one.
pub(super) fn clear_in_block(edit: &mut Editor<'_>, block: BlockAddr, raw: u64) -> Result<bool, Error> {
    let bytes = edit.read(block)?;
    let head = match MetaHeader::check(&bytes, block, MetaType::Di) {
        Ok(_) => DINODE_SIZE,
        Err(_) => META_HEADER_SIZE,
    };
    let places: Vec<(usize, usize)> = crate::pass::tree::pointers(&bytes, head)
        .enumerate()
        .filter(|(_, found)| *found == raw)
        .map(|(n, _)| (n, head.saturating_add(n.saturating_mul(8))))
        .collect();
    for (place, offset) in places.iter().copied() {
        let slot = Slot {
            block,
            offset,
            place,
            data: false,
        };
        set_slot(edit, slot, 0)?;
    }
    Ok(!places.is_empty())
}
