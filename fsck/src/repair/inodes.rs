//! Dinodes and the trees of their pointers.

use super::{Editor, Repaired, Verdict, inode_of};
use crate::problem::{Kind, Problem};
use gfs2_format::Expected;
use gfs2_format::ondisk::Dinode;

/// See the module documentation.
pub(super) fn repair(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let at = inode_of(problem);
    match (problem.kind, problem.expected) {
        (Kind::DinodeBlocks, Expected::Value(blocks)) => {
            edit.change::<Dinode>(at, 0, |di| di.blocks = blocks.into())?;
            Ok(Verdict::Done)
        }
        (Kind::DinodeGoal, _) => {
            edit.change::<Dinode>(at, 0, |di| {
                di.goal_meta = at.get().into();
                di.goal_data = at.get().into();
            })?;
            Ok(Verdict::Done)
        }
        _ => Ok(Verdict::Unable("this version cannot repair it")),
    }
}
