//! The superblock: its fields, and the whole of it by a scan of the volume.

use super::{Editor, Repaired, Verdict};
use crate::problem::{Kind, Problem};
use crate::scan;
use gfs2_format::device::BlockDevice;
use gfs2_format::geometry::SUPERBLOCK_OFFSET;
use gfs2_format::ondisk::{FORMAT_MAX, FORMAT_MIN, MULTIHOST_FORMAT, MetaHeader, MetaType, Superblock};
use gfs2_format::volume::DeviceReader;
use gfs2_format::{BlockRead, Error, Geometry, InodeNum, Jid};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of the superblock that are read and written.
const SB_BYTES: usize = 4096;

/// See the module documentation.
pub(super) fn repair(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    match problem.kind {
        Kind::LockProtocol => lock_protocol(edit),
        _ => Ok(Verdict::Unable("it is no damage of the superblock")),
    }
}

/// An interrupted check put fsck_ in front: the protocol's own name comes back.
fn lock_protocol(edit: &mut Editor<'_>) -> Repaired {
    let proto = edit.superblock.lockproto();
    let Some(rest) = proto.strip_prefix("fsck_") else {
        return Ok(Verdict::Gone);
    };
    let field = text(&format!("lock_{rest}"));
    let at = edit.geometry().superblock();
    edit.superblock.lockproto = field;
    edit.change::<Superblock>(at, 0, |sb| sb.lockproto = field)?;
    Ok(Verdict::Done)
}

/// Finds out what the superblock must have been, and writes that.
pub(crate) fn rebuild(overlay: &dyn BlockDevice) -> Repaired {
    if overlay.size() < SUPERBLOCK_OFFSET.saturating_add(SB_BYTES as u64) {
        return Ok(Verdict::Unable("the device ends before the superblock"));
    }
    let Some(bsize) = scan::block_size(overlay) else {
        return Ok(Verdict::Unable(
            "no resource group is found: the device holds no GFS2 volume",
        ));
    };
    let geometry = Geometry::new(bsize, overlay.size() / u64::from(bsize))?;
    let mut bytes = vec![0; SB_BYTES];
    overlay.read_at(SUPERBLOCK_OFFSET, &mut bytes)?;
    let (found, _) = Superblock::read_from_prefix(&bytes)
        .map_err(|_| Error::NotFound)
        .map(|(sb, rest)| (sb, rest.len()))?;
    let mut sb = found;
    sb.header = MetaHeader::new(MetaType::Sb, Jid::new(0));
    sb.bsize = bsize.into();
    sb.bsize_shift = bsize.trailing_zeros().into();
    if !(FORMAT_MIN..=FORMAT_MAX).contains(&sb.fs_format.get()) {
        sb.fs_format = FORMAT_MAX.into();
    }
    sb.multihost_format = MULTIHOST_FORMAT.into();
    let reader = DeviceReader::new(overlay, &geometry);
    if !is_dir(&reader, sb.master_dir.num()) || !is_dir(&reader, sb.root_dir.num()) {
        let tree = scan::system_tree(overlay, &geometry);
        // What is not found may still be where the superblock says, and damaged.
        let inside = |num: &InodeNum| num.addr > geometry.superblock() && num.addr.get() < geometry.end();
        let at = |found: Option<InodeNum>, said: InodeNum, was: Option<InodeNum>| {
            found.or(Some(said).filter(inside)).or(was.filter(inside))
        };
        let master = at(tree.master, sb.master_dir.num(), tree.master_was);
        let root = at(tree.root, sb.root_dir.num(), tree.root_was);
        let (Some(master), Some(root)) = (master, root) else {
            return Ok(Verdict::Unable("master and root directory are not found"));
        };
        sb.master_dir = master.into();
        sb.root_dir = root.into();
    }
    if !is_protocol(&sb.lockproto()) || sb.lockproto.last() != Some(&0) {
        // The name of the cluster is gone with it; tunegfs2 sets it.
        sb.lockproto = text("lock_dlm");
        sb.locktable = text("unknown");
    }
    bytes
        .iter_mut()
        .zip(sb.as_bytes())
        .for_each(|(to, from)| *to = *from);
    overlay.write_at(SUPERBLOCK_OFFSET, &bytes)?;
    Ok(Verdict::Done)
}

/// Is it a directory that knows where it is?
fn is_dir(reader: &DeviceReader<'_>, num: InodeNum) -> bool {
    let geometry = reader.geometry();
    if num.addr <= geometry.superblock() || num.addr.get() >= geometry.end() {
        return false;
    }
    let block = reader.read(num.addr);
    let dinode = block.as_ref().ok().and_then(|bytes| {
        let di = gfs2_format::ondisk::Dinode::decode(bytes, num.addr, geometry);
        di.ok().filter(|di| di.is_dir())
    });
    dinode.is_some()
}

fn is_protocol(name: &str) -> bool {
    ["lock_nolock", "lock_dlm", "lock_gulm", "fsck_nolock", "fsck_dlm"].contains(&name)
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

const _: () = assert!(size_of::<Superblock>() < SB_BYTES);
