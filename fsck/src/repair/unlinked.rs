//! Inodes in state unlinked: deleted when nothing counts on them, else made inodes again.

use super::{Editor, Repaired, Verdict, inode_of};
use crate::problem::Problem;
use gfs2_format::Extent;
use gfs2_format::ondisk::{BlockState, Dinode};

/// The last name of an inode goes with its link count: where there is one, the state is what is wrong. Of a deleted
/// inode the next round finds the blocks.
pub(super) fn repair(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let at = inode_of(problem);
    if edit.state(at)? != BlockState::Unlinked {
        return Ok(Verdict::Gone);
    }
    let state = match edit.get::<Dinode>(at, 0)?.nlink.get() {
        0 => BlockState::Free,
        _ => BlockState::Dinode,
    };
    edit.set_state(Extent::single(at), state)?;
    Ok(Verdict::Done)
}
