//! What the bitmaps say of blocks: in use, free, an inode.

use super::slots::{set_slot, slots_to};
use super::{Editor, Repaired, Verdict, inode_of};
use crate::problem::{Kind, Problem};
use crate::scan;
use gfs2_format::Extent;
use gfs2_format::ondisk::BlockState;

/// See the module documentation.
pub(super) fn repair(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let extent = Extent {
        start: problem.block,
        len: u32::try_from(problem.blocks).unwrap_or(u32::MAX),
    };
    let state = match problem.kind {
        Kind::Leaked | Kind::NotADinode => BlockState::Free,
        Kind::NotMarked if problem.found == BlockState::Dinode as u64 => {
            return inode_as_block(edit, problem);
        }
        Kind::NotMarked => BlockState::Used,
        Kind::DinodeNotMarked => BlockState::Dinode,
        _ => return Ok(Verdict::Unable("it is no damage of a bitmap")),
    };
    edit.set_state(extent, state)?;
    Ok(Verdict::Done)
}

/// An inode's tree uses blocks that are marked as inodes: those that are inodes stay so, and the pointer goes.
fn inode_as_block(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let owner = inode_of(problem);
    let extent = Extent {
        start: problem.block,
        len: u32::try_from(problem.blocks).unwrap_or(u32::MAX),
    };
    for block in extent.blocks() {
        if !scan::is_inode(edit, block)? {
            edit.set_state(Extent::single(block), BlockState::Used)?;
            continue;
        }
        for slot in slots_to(edit, owner, block.get())? {
            set_slot(edit, slot, 0)?;
        }
    }
    Ok(match edit.is_changed() {
        true => Verdict::Done,
        false => Verdict::Unable("no pointer of the inode's tree leads there"),
    })
}
