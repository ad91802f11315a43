//! Directories and inodes that nothing leads to, link counts.

use super::{Editor, Repaired, Verdict, inode_of};
use crate::problem::{Kind, Problem};
use gfs2_format::ondisk::{BlockState, Dinode, DinodeFlags};
use gfs2_format::{BlockAddr, Error, Expected, Extent};

/// See the module documentation.
pub(super) fn repair(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let at = inode_of(problem);
    match (problem.kind, problem.expected) {
        (Kind::LinkCount, Expected::Value(links)) => {
            let links = u32::try_from(links).unwrap_or(u32::MAX);
            edit.change::<Dinode>(at, 0, |di| di.nlink = links.into())?;
            Ok(Verdict::Done)
        }
        (Kind::Orphan, _) if is_system(edit, at)? => {
            // It has been replaced by another one.
            edit.set_state(Extent::single(at), BlockState::Free)?;
            Ok(Verdict::Done)
        }
        _ => Ok(Verdict::Unable("this version cannot repair it")),
    }
}

/// A file of the system tree has no place anywhere else.
fn is_system(edit: &Editor<'_>, at: BlockAddr) -> Result<bool, Error> {
    Ok(edit.get::<Dinode>(at, 0)?.flags().contains(DinodeFlags::SYSTEM))
}
