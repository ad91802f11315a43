//! The superblock: its fields, and the whole of it by a scan of the volume.

use super::{Editor, Repaired, Verdict};
use crate::problem::{Kind, Problem};
use gfs2_format::BlockRead;
use gfs2_format::device::BlockDevice;
use gfs2_format::ondisk::Superblock;

/// See the module documentation.
pub(super) fn repair(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    match problem.kind {
        Kind::LockProtocol => lock_protocol(edit),
        _ => Ok(Verdict::Unable("this version cannot repair it")),
    }
}

/// An interrupted check put fsck_ in front: the protocol's own name comes back.
fn lock_protocol(edit: &mut Editor<'_>) -> Repaired {
    let proto = edit.superblock.lockproto();
    let Some(rest) = proto.strip_prefix("fsck_") else {
        return Ok(Verdict::Gone);
    };
    let name = format!("lock_{rest}");
    let field = text(&name);
    let at = edit.geometry().superblock();
    edit.superblock.lockproto = field;
    edit.change::<Superblock>(at, 0, |sb| sb.lockproto = field)?;
    Ok(Verdict::Done)
}

/// Finds out what the superblock must have been, and writes that.
pub(crate) fn rebuild(_overlay: &dyn BlockDevice) -> Repaired {
    Ok(Verdict::Unable("no superblock can be made of what is there"))
}

/// A name as the superblock holds it: zeroes to the end, at least one.
fn text(name: &str) -> [u8; 64] {
    let mut field = [0; 64];
    field
        .iter_mut()
        .zip(name.bytes())
        .take(63)
        .for_each(|(to, from)| *to = from);
    field
}
