//! Blocks with several owners: data is cloned for the later one; of metadata the owner stays for whom it is metadata.

use super::directories::whole;
use super::slots::{Slot, leaf_slots, set_slot, slots_to};
use super::{Editor, Repaired, Verdict, inode_of, xattrs};
use crate::problem::Problem;
use gfs2_format::dir::lookup;
use gfs2_format::ondisk::{Dinode, MAGIC, MetaHeader, MetaType};
use gfs2_format::tree::data_use;
use gfs2_format::{BlockAddr, BlockEdit, BlockRead, BlockUse};

/// Blocks of one finding that are dealt with in a round.
const BLOCKS: u64 = 1 << 10;

/// See the module documentation.
pub(super) fn repair(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let first = inode_of(problem);
    let last = problem.other.unwrap_or(first);
    let blocks = (0..problem.blocks.min(BLOCKS)).filter_map(|n| problem.block.checked_add(n));
    let mut verdict = Verdict::Gone;
    for target in blocks {
        // What was done for one block may have ended it for the others.
        match block(edit, first, last, target)? {
            Verdict::Done => verdict = Verdict::Done,
            other if verdict == Verdict::Gone => verdict = other,
            _ => {}
        }
    }
    Ok(verdict)
}

/// One block and two of its owners.
fn block(edit: &mut Editor<'_>, first: BlockAddr, last: BlockAddr, target: BlockAddr) -> Repaired {
    let of_first = slots_to(edit, first, target.get())?;
    let of_last = if last == first {
        Vec::new()
    } else {
        slots_to(edit, last, target.get())?
    };
    let bytes = edit.read(target)?;
    let is_leaf = MetaHeader::check(&bytes, target, MetaType::Lf).is_ok();
    if first == last && is_leaf && !leaf_slots(edit, first, target.get())?.is_empty() {
        // Which of the slots is the leaf's, its entries tell.
        return whole(edit, first);
    }
    if first != last && is_leaf {
        let (slots, others) = (
            leaf_slots(edit, first, target.get())?,
            leaf_slots(edit, last, target.get())?,
        );
        if !slots.is_empty() && !others.is_empty() {
            return leaf(edit, (first, slots), (last, others));
        }
    }
    if !is_leaf {
        // Another's block, where a directory has a leaf: of the directory the table is made anew.
        let mut slots = leaf_slots(edit, first, target.get())?;
        if first != last {
            slots.extend(leaf_slots(edit, last, target.get())?);
        }
        for slot in &slots {
            set_slot(edit, *slot, 0)?;
        }
        if !slots.is_empty() {
            return Ok(Verdict::Done);
        }
    }
    let is_metadata = bytes
        .first_chunk::<4>()
        .is_some_and(|m| *m == MAGIC.to_be_bytes());
    let all: Vec<(BlockAddr, Slot)> = of_first
        .iter()
        .map(|slot| (first, *slot))
        .chain(of_last.iter().map(|slot| (last, *slot)))
        .collect();
    let is_data = |(_, slot): &&(BlockAddr, Slot)| slot.data;
    // Somebody's metadata is no file's data, wherever its owner has it: in a tree, a leaf, an attribute.
    let elsewhere = (of_last.is_empty() && last != first) || of_first.is_empty();
    let mixed = all.iter().any(|(_, slot)| !slot.data) || elsewhere;
    if mixed && is_metadata {
        let data: Vec<_> = all.iter().filter(is_data).copied().collect();
        if !data.is_empty() {
            for (_, slot) in data {
                set_slot(edit, slot, 0)?;
            }
            return Ok(Verdict::Done);
        }
    }
    match all.last().copied() {
        // No tree has it twice: it stands in the attributes of one or both.
        _ if all.len() < 2 => attributes(edit, first, last, target),
        Some((owner, slot)) if slot.data && all.iter().all(|(_, slot)| slot.data) => {
            clone(edit, owner, slot, target)
        }
        Some((_, slot)) => {
            // Two trees with one indirect block: the later one loses it.
            set_slot(edit, slot, 0)?;
            Ok(Verdict::Done)
        }
        None => Ok(Verdict::Gone),
    }
}

/// Two directories with one leaf: it stays with the one that "." leads to, or with the first. Of the other the table
/// is made anew.
fn leaf(
    edit: &mut Editor<'_>,
    (_, slots): (BlockAddr, Vec<Slot>),
    (last, others): (BlockAddr, Vec<Slot>),
) -> Repaired {
    let own = lookup(edit, last, b".").ok().flatten();
    let loses = match own {
        Some(found) if found.num.addr == last => slots,
        _ => others,
    };
    for slot in loses {
        set_slot(edit, slot, 0)?;
    }
    Ok(Verdict::Done)
}

/// Gives an owner a copy of a data block.
fn clone(edit: &mut Editor<'_>, owner: BlockAddr, slot: Slot, target: BlockAddr) -> Repaired {
    let di = edit.get::<Dinode>(owner, 0)?;
    let usage = if di.is_dir() {
        BlockUse::Meta
    } else {
        data_use(&di)
    };
    let bytes = edit.read(target)?;
    let copy = edit.alloc(1, target, usage)?;
    edit.replace(copy.start, &bytes)?;
    set_slot(edit, slot, copy.start.get())?;
    Ok(Verdict::Done)
}

/// A block of attributes that is used for something else, too: the later owner has no attributes any more.
fn attributes(edit: &mut Editor<'_>, first: BlockAddr, last: BlockAddr, target: BlockAddr) -> Repaired {
    for inode in [last, first] {
        let in_tree = !slots_to(edit, inode, target.get())?.is_empty();
        if !in_tree && edit.get::<Dinode>(inode, 0)?.eattr.get() != 0 {
            xattrs::clear(edit, inode)?;
            return Ok(Verdict::Done);
        }
    }
    Ok(Verdict::Unable(
        "the pointers to it are not in the trees of its owners",
    ))
}
