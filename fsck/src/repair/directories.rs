//! Directory entries, leaves, hash tables.

use super::{Editor, Repaired, Verdict, inode_of};
use crate::problem::{Kind, Problem};
use gfs2_format::Expected;
use gfs2_format::ondisk::Dinode;

/// See the module documentation.
pub(super) fn repair(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let at = inode_of(problem);
    match (problem.kind, problem.expected) {
        (Kind::EntryCount, Expected::Value(entries)) => {
            let entries = u32::try_from(entries).unwrap_or(u32::MAX);
            edit.change::<Dinode>(at, 0, |di| di.entries = entries.into())?;
            Ok(Verdict::Done)
        }
        _ => Ok(Verdict::Unable("this version cannot repair it")),
    }
}
