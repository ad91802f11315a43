//! Dinodes and the trees of their pointers.
//!
//! What can be told from the rest of the inode is set right; only an inode of which nothing can be made is deleted.

use super::slots::{clear_in_block, set_slot, slots_to, slots_where};
use super::sysfile::next_formal;
use super::{Editor, Repaired, Verdict, inode_of};
use crate::pass::area::{Area, Record};
use crate::pass::tree::pointers;
use crate::problem::{Kind, Problem};
use gfs2_format::geometry::MAX_DIR_DEPTH;
use gfs2_format::ondisk::{
    BlockState, DINODE_SIZE, Dinode, DinodeFlags, FileType, META_HEADER_SIZE, MetaHeader, MetaType,
};
use gfs2_format::{BlockAddr, BlockEdit, BlockRead, Error, Expected, Extent};

/// See the module documentation.
pub(super) fn repair(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let at = inode_of(problem);
    match (problem.kind, problem.expected) {
        (Kind::DinodeBlocks, Expected::Value(blocks)) => {
            edit.change::<Dinode>(at, 0, |di| di.blocks = blocks.into())?;
        }
        (Kind::DinodeGoal, _) => edit.change::<Dinode>(at, 0, |di| {
            di.goal_meta = at.get().into();
            di.goal_data = at.get().into();
        })?,
        (Kind::DinodeAddress, _) => edit.change::<Dinode>(at, 0, |di| di.num.addr = at.get().into())?,
        (Kind::DinodeFormal, _) => {
            let formal = edit.ledger_formal(next_formal(edit).saturating_sub(1));
            edit.change::<Dinode>(at, 0, |di| di.num.formal_ino = formal.get().into())?;
        }
        (Kind::DinodeMode, _) if !edit.get::<Dinode>(at, 0)?.flags().contains(DinodeFlags::SYSTEM) => {
            delete(edit, at)?;
        }
        (Kind::DinodeMode, _) => return mode(edit, at),
        (Kind::DinodeHeight, Expected::Value(depth)) if problem.field == "di_depth" => {
            let depth = u16::try_from(depth).unwrap_or(0);
            edit.change::<Dinode>(at, 0, |di| di.depth = depth.into())?;
        }
        (Kind::DinodeHeight, _) if problem.field == "di_depth" => depth(edit, at)?,
        (Kind::DinodeHeight, Expected::Value(height)) => {
            let height = u16::try_from(height).unwrap_or(0);
            edit.change::<Dinode>(at, 0, |di| di.height = height.into())?;
        }
        (Kind::DinodeHeight, _) => return height(edit, at),
        (Kind::DinodeSize, _) => return size(edit, at),
        (Kind::DinodeFlags, _) => flags(edit, at)?,
        (Kind::Pointer, _) => {
            if !clear_in_block(edit, problem.block, problem.found)? {
                return Ok(Verdict::Gone);
            }
        }
        (Kind::TableEnd, _) => {
            // The same block may stand in a place of the table, too: only this pointer is too many.
            let mut slots = slots_to(edit, at, problem.found)?;
            slots.retain(|slot| slot.block == problem.block && Some(slot.place as u64) == problem.place);
            let Some(slot) = slots.pop() else {
                return Ok(Verdict::Gone);
            };
            set_slot(edit, slot, 0)?;
        }
        (Kind::IndirectType, _) => {
            let bad = problem.range();
            let slots = slots_where(edit, at, |raw| bad.contains(&raw))?;
            if slots.is_empty() {
                return Ok(Verdict::Gone);
            }
            for slot in slots {
                set_slot(edit, slot, 0)?;
            }
        }
        _ => return Ok(Verdict::Unable("it is no damage of an inode")),
    }
    Ok(Verdict::Done)
}

/// Deletes an inode: its block is free, the next round finds what it owned. The block is no inode any more, or an
/// entry that leads there would bring it back.
pub(super) fn delete(edit: &mut Editor<'_>, at: BlockAddr) -> Result<(), Error> {
    edit.edit(at)?
        .iter_mut()
        .take(META_HEADER_SIZE)
        .for_each(|byte| *byte = 0);
    edit.set_state(Extent::single(at), BlockState::Free)
}

/// A system file's mode without a type: a directory shows what it is, anything else is a file.
fn mode(edit: &mut Editor<'_>, at: BlockAddr) -> Repaired {
    let di = edit.get::<Dinode>(at, 0)?;
    let bytes = edit.read(at)?;
    let mut records = Area::new(&bytes, at, DINODE_SIZE);
    let starts_with_dot = matches!(records.next(), Some(Record::Entry { name: b".", .. }));
    let exhash = di.flags().contains(DinodeFlags::EXHASH);
    let is_dir =
        di.flags().contains(DinodeFlags::JDATA) && (exhash || (starts_with_dot && di.height.get() == 0));
    let (kind, least) = if is_dir {
        (FileType::Dir, 0o700)
    } else {
        (FileType::Regular, 0o600)
    };
    let permissions = match di.mode.get() & 0o7777 {
        0 => least,
        set => set,
    };
    edit.change::<Dinode>(at, 0, |di| di.mode = (kind.mode_bits() | permissions).into())?;
    Ok(Verdict::Done)
}

/// The depth of a hash table follows from its size; what has none has no depth.
fn depth(edit: &mut Editor<'_>, at: BlockAddr) -> Result<(), Error> {
    let di = edit.get::<Dinode>(at, 0)?;
    let slots = di.size.get() / 8;
    let (least, most) = (edit.geometry().initial_dir_depth(), MAX_DIR_DEPTH);
    let depth = if di.flags().contains(DinodeFlags::EXHASH) && di.is_dir() {
        u16::try_from(slots.max(1).ilog2())
            .unwrap_or(most)
            .clamp(least, most)
    } else {
        0
    };
    edit.change::<Dinode>(at, 0, |di| di.depth = depth.into())
}

/// The height is what the pointers lead to; an inode whose pointers make no tree is deleted.
fn height(edit: &mut Editor<'_>, at: BlockAddr) -> Repaired {
    let di = edit.get::<Dinode>(at, 0)?;
    let linear = di.is_dir() && !di.flags().contains(DinodeFlags::EXHASH);
    let stuffed = di.size.get() <= edit.geometry().max_stuffed() && di.blocks.get() <= 1;
    let max = edit.geometry().max_height();
    let found = match linear || stuffed {
        true => Some(0),
        false => (1..=max).find(|height| is_tree(edit, at, *height)),
    };
    match found {
        Some(height) => edit.change::<Dinode>(at, 0, |di| di.height = height.into())?,
        None => delete(edit, at)?,
    }
    Ok(Verdict::Done)
}

/// Do the inode's first pointers lead down through so many levels of indirect blocks, and no further?
fn is_tree(edit: &Editor<'_>, at: BlockAddr, height: u16) -> bool {
    let mut block = at;
    for level in 0..height {
        let Ok(bytes) = edit.read(block) else {
            return false;
        };
        let head = if level == 0 { DINODE_SIZE } else { META_HEADER_SIZE };
        let Some(raw) = pointers(&bytes, head).find(|raw| *raw != 0) else {
            return false;
        };
        if raw >= edit.geometry().end() {
            return false;
        }
        block = BlockAddr::new(raw);
        let indirect = edit
            .read(block)
            .is_ok_and(|bytes| MetaHeader::check(&bytes, block, MetaType::In).is_ok());
        if indirect != (level.saturating_add(1) < height) {
            return false;
        }
    }
    true
}

/// A size that the layout cannot have.
fn size(edit: &mut Editor<'_>, at: BlockAddr) -> Repaired {
    let di = edit.get::<Dinode>(at, 0)?;
    let stuffed = edit.geometry().max_stuffed();
    let size = match di.file_type() {
        Some(FileType::Dir) if di.flags().contains(DinodeFlags::EXHASH) => {
            8u64.checked_shl(u32::from(di.depth.get())).unwrap_or(8)
        }
        Some(FileType::Symlink) => {
            let block = edit.read(at)?;
            let payload = block.get(DINODE_SIZE..).unwrap_or_default();
            let len = payload.iter().take_while(|byte| **byte != 0).count() as u64;
            if di.height.get() != 0 || len == 0 || len > stuffed {
                delete(edit, at)?;
                return Ok(Verdict::Done);
            }
            len
        }
        Some(FileType::Dir) => stuffed,
        _ if di.height.get() == 0 => stuffed,
        _ => return Ok(Verdict::Gone),
    };
    edit.change::<Dinode>(at, 0, |di| di.size = size.into())?;
    Ok(Verdict::Done)
}

fn flags(edit: &mut Editor<'_>, at: BlockAddr) -> Result<(), Error> {
    edit.change::<Dinode>(at, 0, |di| {
        let mut flags = di.flags();
        if !di.is_dir() {
            flags.remove(DinodeFlags::EXHASH);
        } else {
            flags.insert(DinodeFlags::JDATA);
        }
        if di.eattr.get() == 0 {
            flags.remove(DinodeFlags::EA_INDIRECT);
        }
        di.set_flags(flags);
    })
}
