//! Directory entries, leaves, hash tables.
//!
//! A single entry or leaf is set right where it stands; where the table or a leaf cannot be used, the directory is
//! made anew from its entries.

use super::connectivity::cut;
use super::rebuild::rebuild;
use super::records::{delete, find, is_whole, name_of, records, true_length, true_name_len};
use super::sysfile::{link, now};
use super::{Editor, Repaired, Verdict, inode_of};
use crate::pass::shape::{self, Truth};
use crate::problem::{Kind, Problem};
use gfs2_format::dir::replace;
use gfs2_format::dir::{NewEntry, insert};
use gfs2_format::ondisk::{DIRENT_SIZE, Dinode, Dirent, FileType, Leaf, name_hash};
use gfs2_format::{BlockAddr, BlockEdit, BlockRead, Error, Expected, FormalIno, InodeNum};

/// `lf_dirent_format`.
const DIRENT_FORMAT: u32 = 1200;

/// See the module documentation.
pub(super) fn repair(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let dir = inode_of(problem);
    match (problem.kind, problem.expected) {
        (Kind::EntryCount, Expected::Value(entries)) => {
            let entries = u32::try_from(entries).unwrap_or(u32::MAX);
            edit.change::<Dinode>(dir, 0, |di| di.entries = entries.into())?;
        }
        (Kind::LeafCount, Expected::Value(entries)) => {
            let entries = u16::try_from(entries).unwrap_or(u16::MAX);
            edit.change::<Leaf>(problem.block, 0, |leaf| leaf.entries = entries.into())?;
        }
        (Kind::LeafDepth, Expected::Value(depth)) => {
            let depth = u16::try_from(depth).unwrap_or(0);
            edit.change::<Leaf>(problem.block, 0, |leaf| leaf.depth = depth.into())?;
        }
        (Kind::LeafFormat, _) => {
            edit.change::<Leaf>(problem.block, 0, |leaf| leaf.dirent_format = DIRENT_FORMAT.into())?;
        }
        (Kind::LeafNext, _) => {
            if edit.get::<Leaf>(problem.block, 0)?.next.get() != problem.found {
                return Ok(Verdict::Gone);
            }
            edit.change::<Leaf>(problem.block, 0, |leaf| leaf.next = 0.into())?;
        }
        (Kind::TableSize, Expected::Value(size)) if is_table_of(edit, dir, size)? => {
            edit.change::<Dinode>(dir, 0, |di| di.size = size.into())?;
        }
        (Kind::HashTable | Kind::HashBlock | Kind::TableSize | Kind::LeafBlock, _) => {
            return whole(edit, dir);
        }
        (Kind::DotMissing | Kind::DotdotMissing, _) => return dots(edit, dir, problem),
        (Kind::DotTarget, _) => return dot(edit, dir, problem.block),
        (Kind::EntryRecord, _) => return lengths(edit, dir, problem),
        (Kind::LeafPlace, _) => return moved(edit, dir, problem),
        _ => return entry(edit, dir, problem),
    }
    Ok(Verdict::Done)
}

/// A hashed directory that has to be made anew.
pub(super) fn whole(edit: &mut Editor<'_>, dir: BlockAddr) -> Repaired {
    if !edit.seen.directories.rebuilt.insert(dir) {
        return Ok(Verdict::Gone);
    }
    rebuild(edit, dir)
}

/// Do table and leaves show that the size is the one thing that is wrong?
fn is_table_of(edit: &Editor<'_>, dir: BlockAddr, size: u64) -> Result<bool, Error> {
    let bytes = edit.read(dir)?;
    let mut read = |block| edit.read(block).ok();
    let right = Truth {
        size: Some(size),
        ..Truth::default()
    };
    Ok(shape::truth_before(edit.geometry(), dir, &bytes, &mut read) == right)
}

/// Numbers of a directory.
fn num(edit: &Editor<'_>, dir: BlockAddr) -> Result<InodeNum, Error> {
    Ok(edit.get::<Dinode>(dir, 0)?.inode_num())
}

/// "." or ".." that is missing, or there more than once.
fn dots(edit: &mut Editor<'_>, dir: BlockAddr, problem: &Problem) -> Repaired {
    let name = problem.name.as_deref().unwrap_or_default();
    let now = now(edit);
    if problem.found > 1 {
        gfs2_format::dir::remove(edit, dir, name, now)?;
        return Ok(Verdict::Done);
    }
    let own = num(edit, dir)?;
    let target = match name {
        b"." => own,
        _ => match edit.seen.directories.parents.get(&dir).copied() {
            Some(parent) => num(edit, parent)?,
            None => own,
        },
    };
    // The count must be right for an insert to believe the directory; the next round sees to it.
    count(edit, dir)?;
    let entry = NewEntry {
        name,
        num: target,
        kind: FileType::Dir,
        ea_follows: false,
    };
    match insert(edit, dir, &entry, now) {
        Err(Error::Exists) => Ok(Verdict::Gone),
        other => other.map(|()| Verdict::Done),
    }
}

/// Sets the entry count of a linear directory to what is there.
fn count(edit: &mut Editor<'_>, dir: BlockAddr) -> Result<(), Error> {
    let bytes = edit.read(dir)?;
    let di = edit.get::<Dinode>(dir, 0)?;
    if di.flags().contains(gfs2_format::ondisk::DinodeFlags::EXHASH) {
        return Ok(());
    }
    let live = records(&bytes, dir)
        .iter()
        .filter(|record| !record.dirent.is_sentinel())
        .count();
    let live = u32::try_from(live).unwrap_or(u32::MAX);
    edit.change::<Dinode>(dir, 0, |di| di.entries = live.into())
}

/// "." that does not lead to its own directory.
fn dot(edit: &mut Editor<'_>, dir: BlockAddr, block: BlockAddr) -> Repaired {
    let own = num(edit, dir)?;
    let Some(record) = find(edit, block, b".", |_| true)? else {
        return Ok(Verdict::Gone);
    };
    edit.change::<Dirent>(block, record.at, |dirent| {
        dirent.inum = own.into();
        dirent.de_type = FileType::Dir.dirent_type().into();
    })?;
    Ok(Verdict::Done)
}

/// A record whose lengths are wrong, or an empty one between others.
fn lengths(edit: &mut Editor<'_>, dir: BlockAddr, problem: &Problem) -> Repaired {
    let block = problem.block;
    let bytes = edit.read(block)?;
    for record in records(&bytes, block) {
        let left = bytes.len().saturating_sub(record.at);
        if !is_whole(&record.dirent, left) {
            let len = u16::try_from(true_length(&bytes, block, record.at)).unwrap_or(u16::MAX);
            edit.change::<Dirent>(block, record.at, |dirent| dirent.rec_len = len.into())?;
            return Ok(Verdict::Done);
        }
        if record.dirent.is_sentinel() {
            if let Some(previous) = record.previous {
                edit.change::<Dirent>(block, previous, |before| {
                    let len = before.rec_len.get().saturating_add(record.dirent.rec_len.get());
                    before.rec_len = len.into();
                })?;
                return Ok(Verdict::Done);
            }
            continue;
        }
        let room = usize::from(record.dirent.rec_len.get()).saturating_sub(DIRENT_SIZE);
        let name_len = usize::from(record.dirent.name_len.get());
        if !(1..=room.min(gfs2_format::ondisk::MAX_NAME)).contains(&name_len) {
            match true_name_len(&bytes, &record) {
                Some(len) => {
                    edit.change::<Dirent>(block, record.at, |dirent| dirent.name_len = len.into())?
                }
                None => delete(edit, dir, &record)?,
            }
            return Ok(Verdict::Done);
        }
    }
    Ok(Verdict::Gone)
}

/// An entry in a leaf its hash does not lead to.
fn moved(edit: &mut Editor<'_>, dir: BlockAddr, problem: &Problem) -> Repaired {
    let name = problem.name.as_deref().unwrap_or_default();
    let Some(record) = find(edit, problem.block, name, |_| true)? else {
        return Ok(Verdict::Gone);
    };
    let Some(kind) = FileType::from_dirent_type(record.dirent.de_type.get()) else {
        return Ok(Verdict::Unable("the entry's type is none"));
    };
    delete(edit, dir, &record)?;
    match link(edit, dir, name, record.dirent.inum.num(), kind) {
        Err(Error::Exists) => Ok(Verdict::Done),
        other => other.map(|()| Verdict::Done),
    }
}

/// One entry that says something wrong.
fn entry(edit: &mut Editor<'_>, dir: BlockAddr, problem: &Problem) -> Repaired {
    let (block, name) = (problem.block, problem.name.as_deref().unwrap_or_default());
    let found = problem.found;
    let Some(record) = find(edit, block, name, |dirent| match problem.kind {
        Kind::EntryHash => u64::from(dirent.hash.get()) == found,
        Kind::EntryType => u64::from(dirent.de_type.get()) == found,
        Kind::EntryFormal => dirent.inum.formal_ino.get() == found,
        _ => true,
    })?
    else {
        return Ok(Verdict::Gone);
    };
    let target = record.dirent.inum.num().addr;
    match (problem.kind, problem.expected) {
        (Kind::EntryHash, Expected::Value(hash)) => {
            let hash = u32::try_from(hash).unwrap_or(0);
            edit.change::<Dirent>(block, record.at, |dirent| dirent.hash = hash.into())?;
        }
        (Kind::EntryType, Expected::Value(kind)) => {
            let kind = u16::try_from(kind).unwrap_or(0);
            edit.change::<Dirent>(block, record.at, |dirent| dirent.de_type = kind.into())?;
        }
        (Kind::EntryFormal, Expected::Value(formal)) => {
            // Of an inode with more entries than links this is one of another time.
            let surplus = edit.seen.inodes.get_mut(target).is_some_and(|inode| {
                let stale = inode.links > inode.nlink && name != b"..";
                inode.links = inode.links.saturating_sub(u32::from(stale));
                stale
            });
            if surplus {
                delete(edit, dir, &record)?;
            } else {
                edit.change::<Dirent>(block, record.at, |dirent| {
                    dirent.inum.formal_ino = FormalIno::new(formal).get().into();
                })?;
            }
        }
        (Kind::EntryName, _) => rename(edit, &record)?,
        (Kind::SecondLink, _) => return second(edit, dir, &record),
        (Kind::EntryTarget, _) => {
            edit.avoid(target);
            delete(edit, dir, &record)?;
        }
        (Kind::DuplicateName, _) => delete(edit, dir, &record)?,
        _ => return Ok(Verdict::Unable("it is no damage of an entry")),
    }
    Ok(Verdict::Done)
}

/// A second entry for a directory: it goes, unless the directory itself says that this is the right one.
fn second(edit: &mut Editor<'_>, dir: BlockAddr, record: &super::records::Record) -> Repaired {
    let target = record.dirent.inum.num().addr;
    let seen = &mut edit.seen.directories;
    let first = seen.parents.get(&target).copied();
    let right = seen.dotdots.get(&target) == Some(&dir);
    match first.filter(|first| right && *first != dir) {
        Some(first) => {
            seen.parents.insert(target, dir);
            cut(edit, first, target)?;
        }
        None => delete(edit, dir, record)?,
    }
    Ok(Verdict::Done)
}

/// A name with bytes that no name can have.
fn rename(edit: &mut Editor<'_>, record: &super::records::Record) -> Result<(), Error> {
    let bytes = edit.read(record.block)?;
    let mut name = name_of(&bytes, record).to_vec();
    for byte in name.iter_mut().filter(|byte| matches!(**byte, 0 | b'/')) {
        *byte = b'_';
    }
    let hash = name_hash(&name);
    let start = record.at.saturating_add(DIRENT_SIZE);
    let place = edit.edit(record.block)?.get_mut(start..).unwrap_or_default();
    place.iter_mut().zip(&name).for_each(|(to, from)| *to = *from);
    edit.change::<Dirent>(record.block, record.at, |dirent| dirent.hash = hash.into())
}

/// Makes ".." of a directory lead to its parent.
pub(super) fn set_dotdot(edit: &mut Editor<'_>, dir: BlockAddr, parent: InodeNum) -> Result<(), Error> {
    let entry = NewEntry {
        name: b"..",
        num: parent,
        kind: FileType::Dir,
        ea_follows: false,
    };
    let now = now(edit);
    match replace(edit, dir, &entry, now) {
        Ok(_) => Ok(()),
        Err(Error::NotFound) => insert(edit, dir, &entry, now),
        Err(e) => Err(e),
    }
}
