//! Removing and re-pointing entries, fresh directories, emptiness.

use super::area;
use super::insert::NewEntry;
use super::lookup::{Found, Hit, find};
use super::table::Dir;
use crate::addr::{BlockAddr, InodeNum};
use crate::edit::{BlockEdit, BlockRead};
use crate::error::{Error, Expected, Result};
use crate::geometry::Geometry;
use crate::ondisk::{
    DINODE_SIZE, Dinode, DinodeFlags, Dirent, FileType, Leaf, MetaHeader, MetaType, name_hash, view_mut,
};
use crate::time::Timestamp;
use crate::tree::{clear_payload, edit_dinode};
use zerocopy::FromZeros;

/// `di_payload_format` of a linear directory: `GFS2_FORMAT_DE`.
pub(super) const FORMAT_DE: u32 = 1200;

/// Removes an entry and tells what it said.
///
/// # Errors
/// [`crate::Error::NotFound`]; as [`super::lookup`], and those of [`BlockEdit`].
pub fn remove<E: BlockEdit + ?Sized>(
    edit: &mut E,
    dir: BlockAddr,
    name: &[u8],
    now: Timestamp,
) -> Result<Found> {
    let opened = Dir::open(edit, dir)?;
    let hit = find(edit, &opened, name)?.ok_or(Error::NotFound)?;
    remove_at(edit, dir, &hit, now)?;
    Ok(hit.found)
}

/// Removes an entry that was just found ([`super::probe`]). The directory must not have changed since.
///
/// # Errors
/// As [`remove`], except [`crate::Error::NotFound`].
pub fn remove_at<E: BlockEdit + ?Sized>(
    edit: &mut E,
    dir: BlockAddr,
    hit: &Hit,
    now: Timestamp,
) -> Result<()> {
    let at = hit.found.at;
    let bytes = edit.edit(at.block)?;
    area::delete(bytes, at.offset as usize, hit.before, at.block)?;
    if !hit.linear {
        let leaf: &mut Leaf = view_mut(bytes, 0, at.block)?;
        let left = leaf.entries.get().checked_sub(1).ok_or_else(|| {
            let expected = Expected::Range(1, u64::from(u16::MAX));
            Error::corrupt(at.block, "leaf", "lf_entries", 0, expected)
        })?;
        leaf.entries = left.into();
        leaf.set_time(now);
    }
    let mut left = None;
    edit_dinode(edit, dir, |di| {
        left = di.entries.get().checked_sub(1);
        di.entries = left.unwrap_or(0).into();
        di.set_mtime(now);
        di.set_ctime(now);
    })?;
    left.map(|_| ()).ok_or_else(|| {
        let expected = Expected::Range(1, u64::from(u32::MAX));
        Error::corrupt(dir, "dinode", "di_entries", 0, expected)
    })
}

/// Makes the entry of that name say another inode and type (rename over a target, exchange, ".."); tells what it
/// said before.
///
/// # Errors
/// As [`remove`].
pub fn replace<E: BlockEdit + ?Sized>(
    edit: &mut E,
    dir: BlockAddr,
    entry: &NewEntry<'_>,
    now: Timestamp,
) -> Result<Found> {
    let dir = Dir::open(edit, dir)?;
    let Hit { found, linear, .. } = find(edit, &dir, entry.name)?.ok_or(Error::NotFound)?;
    let bytes = edit.edit(found.at.block)?;
    if !linear {
        view_mut::<Leaf>(bytes, 0, found.at.block)?.set_time(now);
    }
    let dirent: &mut Dirent = view_mut(bytes, found.at.offset as usize, found.at.block)?;
    dirent.inum = entry.num.into();
    dirent.de_type = entry.kind.dirent_type().into();
    dirent.rahead = u16::from(entry.ea_follows).into();
    edit_dinode(edit, dir.addr, |di| {
        di.set_mtime(now);
        di.set_ctime(now);
    })?;
    Ok(found)
}

/// A dirent of its own for an entry; lengths are set where it is written.
pub(super) fn dirent_of(entry: &NewEntry<'_>) -> Dirent {
    let mut dirent = Dirent::new_zeroed();
    dirent.inum = entry.num.into();
    dirent.hash = name_hash(entry.name).into();
    dirent.de_type = entry.kind.dirent_type().into();
    dirent.rahead = u16::from(entry.ea_follows).into();
    dirent
}

/// Makes the bytes of a fresh dinode block (header, numbers and mode are there) a linear directory with "." and
/// "..": payload, `di_size`, `di_entries`, `di_payload_format`, height, depth and the JDATA flag. `di_nlink` is
/// the caller's.
///
/// # Errors
/// [`crate::Error::Corrupt`] when `bytes` is no whole block.
pub fn init_dir(bytes: &mut [u8], geometry: &Geometry, own: InodeNum, parent: InodeNum) -> Result<()> {
    MetaHeader::check(bytes, own.addr, MetaType::Di)?;
    if bytes.len() != geometry.block_len() {
        let expected = Expected::Value(u64::from(geometry.bsize()));
        return Err(Error::corrupt(
            own.addr,
            "dinode",
            "length in bytes",
            bytes.len() as u64,
            expected,
        ));
    }
    clear_payload(bytes);
    area::clear(bytes, DINODE_SIZE, own.addr)?;
    for (name, num) in [(b".".as_slice(), own), (b"..", parent)] {
        let entry = NewEntry {
            name,
            num,
            kind: FileType::Dir,
            ea_follows: false,
        };
        let need = Dirent::record_size(name.len());
        let offset = area::find_room(bytes, DINODE_SIZE, own.addr, need)?.unwrap_or(DINODE_SIZE);
        area::place(bytes, offset, own.addr, &dirent_of(&entry), name)?;
    }
    let di: &mut Dinode = view_mut(bytes, 0, own.addr)?;
    di.size = geometry.max_stuffed().into();
    di.entries = 2.into();
    di.payload_format = FORMAT_DE.into();
    di.height = 0.into();
    di.depth = 0.into();
    di.set_flags((di.flags() - DinodeFlags::EXHASH) | DinodeFlags::JDATA);
    Ok(())
}

/// Has the directory no entries but "." and ".."? Believes `di_entries`, as the kernel does; of a linear
/// directory it also counts.
///
/// # Errors
/// As [`super::lookup`].
pub fn is_empty<R: BlockRead + ?Sized>(reader: &R, dir: BlockAddr) -> Result<bool> {
    let dir = Dir::open(reader, dir)?;
    if !dir.is_hashed() {
        let live = area::count(&dir.block, DINODE_SIZE, dir.addr)?;
        check_linear_count(&dir, live)?;
    }
    Ok(dir.di.entries.get() <= 2)
}

/// The number of live entries of a linear directory must be what its dinode says.
pub(super) fn check_linear_count(dir: &Dir, live: u32) -> Result<()> {
    let said = dir.di.entries.get();
    if said == live {
        return Ok(());
    }
    let expected = Expected::Value(u64::from(live));
    Err(Error::corrupt(
        dir.addr,
        "dinode",
        "di_entries",
        u64::from(said),
        expected,
    ))
}
