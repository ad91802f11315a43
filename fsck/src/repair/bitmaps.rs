//! What the bitmaps say of blocks: in use, free, an inode.

use super::{Editor, Repaired, Verdict};
use crate::problem::{Kind, Problem};
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
        Kind::NotMarked => BlockState::Used,
        Kind::DinodeNotMarked => BlockState::Dinode,
        _ => return Ok(Verdict::Unable("this version cannot repair it")),
    };
    edit.set_state(extent, state)?;
    Ok(Verdict::Done)
}
