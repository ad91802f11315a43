//! Blocks with several owners.

use super::{Editor, Repaired, Verdict};
use crate::problem::Problem;

/// See the module documentation.
pub(super) fn repair(_edit: &mut Editor<'_>, _problem: &Problem) -> Repaired {
    Ok(Verdict::Unable("this version cannot repair it"))
}
