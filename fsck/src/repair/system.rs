//! The system tree: master and root directory, the files of all nodes and of each one.

use super::{Editor, Repaired, Verdict, inode_of};
use crate::problem::{Kind, Problem};
use gfs2_format::Expected;
use gfs2_format::ondisk::{DINODE_SIZE, Dinode, DinodeFlags, StatfsChange};

/// See the module documentation.
pub(super) fn repair(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    match problem.kind {
        Kind::SystemFlag => {
            edit.change::<Dinode>(inode_of(problem), 0, |di| {
                di.set_flags(di.flags() | DinodeFlags::SYSTEM);
            })?;
            Ok(Verdict::Done)
        }
        Kind::Statfs => statfs(edit, problem),
        _ => Ok(Verdict::Unable("this version cannot repair it")),
    }
}

/// One total of the master statfs file.
fn statfs(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let Expected::Value(value) = problem.expected else {
        return Ok(Verdict::Unable("the right total is not known"));
    };
    edit.change::<StatfsChange>(inode_of(problem), DINODE_SIZE, |record| match problem.field {
        "sc_total" => record.total = value.into(),
        "sc_free" => record.free = value.into(),
        _ => record.dinodes = value.into(),
    })?;
    Ok(Verdict::Done)
}
