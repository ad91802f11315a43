//! Names: lookup, link, unlink, rmdir, readlink.

use super::attr::{attr, check_mutable};
use super::fs::Fs;
use super::io::touch;
use super::types::{Caller, Entry};
use crate::error::{Errno, FsError, FsResult};
use crate::inode::{Engine, Inode, InodeRef, Locked, now};
use crate::rgrp::{Hold, Want};
use crate::txn::Reservation;
use gfs2_format::dir::{self, Found, Hit, NewEntry, Probe, Room};
use gfs2_format::ondisk::FileType;
use gfs2_format::{BlockAddr, tree};

/// Longest name in bytes.
const NAME_MAX: usize = 255;
/// Metadata blocks that removing a name edits at most: two dinodes, a leaf and the one before it.
pub(super) const REMOVE_BLOCKS: u64 = 4;
/// Of the bitmap and the header of a group, when a dinode changes its state.
pub(super) const STATE_BLOCKS: u64 = 2;
/// How often a verb is begun again because an address was still in use by an inode on its way out.
const STALE_TRIES: u32 = 8;

/// Refuses names no directory can have.
pub(super) fn check_name(name: &[u8]) -> FsResult<()> {
    match name.len() {
        0 => Err(Errno::ENOENT.into()),
        1..=NAME_MAX => Ok(()),
        _ => Err(Errno::ENAMETOOLONG.into()),
    }
}

pub(super) fn check_dir(dir: &Inode) -> FsResult<()> {
    if dir.kind() == FileType::Dir {
        Ok(())
    } else {
        Err(Errno::ENOTDIR.into())
    }
}

/// Refuses a directory in which nothing may be made.
pub(super) fn check_can_add(dir: &Locked<'_>) -> FsResult<()> {
    if dir.dinode().nlink.get() == 0 {
        return Err(Errno::ENOENT.into());
    }
    check_mutable(dir.dinode(), false)?;
    if dir.dinode().entries.get() == u32::MAX {
        return Err(Errno::EFBIG.into());
    }
    Ok(())
}

/// The entry of a name in a directory that is locked.
pub(super) fn find(dir: &Locked<'_>, name: &[u8]) -> FsResult<Option<Found>> {
    Ok(dir::lookup(&dir.reader(), dir.addr(), name)?)
}

/// The entry of a name in a directory that is locked, or the room for one.
pub(super) fn probe(dir: &Locked<'_>, name: &[u8]) -> FsResult<Probe> {
    Ok(dir::probe(&dir.reader(), dir.addr(), name)?)
}

/// The entry of a name in a directory that is locked, as whoever changes it needs it.
pub(super) fn hit(dir: &Locked<'_>, name: &[u8]) -> FsResult<Hit> {
    match probe(dir, name)? {
        Probe::Here(hit) => Ok(hit),
        Probe::Absent(_) => Err(Errno::ENOENT.into()),
    }
}

/// The room for a name that is not to be there yet.
pub(super) fn room(dir: &Locked<'_>, name: &[u8]) -> FsResult<Room> {
    match probe(dir, name)? {
        Probe::Here(_) => Err(Errno::EEXIST.into()),
        Probe::Absent(room) => Ok(room),
    }
}

/// The group that the blocks of one more entry come from, if it needs any, and the bitmaps that are edited then.
pub(super) fn reserve_for(dir: &Locked<'_>, room: &Room) -> FsResult<(Option<Hold>, u64)> {
    let blocks = u64::from(room.cost().blocks);
    if blocks == 0 {
        return Ok((None, 0));
    }
    let hold = dir.engine.rgrps.reserve(&Want::near(dir.addr(), blocks))?;
    let bitmaps = hold.alloc_cost(blocks);
    Ok((Some(hold), bitmaps))
}

/// Runs a verb again that met an address still in use by an inode being evicted, after that has ended.
pub(super) fn while_stale<T>(
    engine: &Engine,
    mut verb: impl FnMut(&mut Option<BlockAddr>) -> FsResult<T>,
) -> FsResult<T> {
    for _ in 1..STALE_TRIES {
        let mut met = None;
        match (verb(&mut met), met) {
            (Err(FsError::Posix(Errno::ESTALE)), Some(addr)) => {
                let _free = engine.inodes.wait_evicted(addr);
            }
            (result, _) => return result,
        }
    }
    verb(&mut None)
}

/// The inode of an entry, taken while its directory is locked; notes the address in `met` when it is in use.
pub(super) fn inode_of(engine: &Engine, found: &Found, met: &mut Option<BlockAddr>) -> FsResult<InodeRef> {
    *met = Some(found.num.addr);
    let inode = engine.inode(found.num, found.kind)?;
    *met = None;
    if inode.kind() != found.kind && !inode.is_unlinked() {
        return Err(FsError::Inconsistent(format!(
            "inode = {} {}: the directory entry's type {:?} is not {:?}",
            found.num.formal,
            found.num.addr,
            found.kind,
            inode.kind()
        )));
    }
    Ok(inode)
}

impl Fs {
    /// Finds a name. `.` and `..` are answered as well. Counts one knowledge of the inode found.
    ///
    /// # Errors
    /// ENOENT: no such name; ENOTDIR, ENAMETOOLONG, ESTALE.
    pub fn lookup(&self, _caller: &Caller, parent: BlockAddr, name: &[u8]) -> FsResult<Entry> {
        self.run("lookup", |engine| {
            check_name(name)?;
            let dir = engine.inodes.get(parent)?;
            check_dir(&dir)?;
            while_stale(engine, |met| {
                let inode = {
                    let dir = engine.shared(&dir)?;
                    let found = find(&dir, name)?.ok_or(Errno::ENOENT)?;
                    inode_of(engine, &found, met)?
                };
                known(engine, &inode)
            })
        })
    }

    /// Target of a symlink.
    ///
    /// # Errors
    /// EINVAL for what is no symlink.
    pub fn readlink(&self, ino: BlockAddr) -> FsResult<Vec<u8>> {
        self.run_pages("readlink", |engine| {
            let inode = engine.inodes.get(ino)?;
            if inode.kind() != FileType::Symlink {
                return Err(Errno::EINVAL.into());
            }
            // The kernel keeps symlinks in its page cache, the page locked while it waits for us.
            let (target, dinode) = {
                let locked = engine.shared_pages(&inode)?;
                let target = tree::stuffed(locked.block(), ino, engine.geometry())?.to_vec();
                (target, *locked.dinode())
            };
            if target.is_empty() {
                return Err(FsError::Inconsistent(format!("inode {ino}: a symlink of size 0")));
            }
            touch(engine, &inode, &dinode)?;
            Ok(target)
        })
    }

    /// Gives an inode another name. Counts one more knowledge of it.
    ///
    /// # Errors
    /// EPERM for directories and immutable files, EEXIST, ENOENT, EMLINK, EFBIG, ENOSPC.
    pub fn link(&self, _caller: &Caller, ino: BlockAddr, parent: BlockAddr, name: &[u8]) -> FsResult<Entry> {
        self.change("link", |engine| {
            check_name(name)?;
            let inode = engine.inodes.get(ino)?;
            let dir = engine.inodes.get(parent)?;
            check_dir(&dir)?;
            if inode.kind() == FileType::Dir {
                return Err(Errno::EPERM.into());
            }
            link(engine, &inode, &dir, name)
        })
    }

    /// Removes a name that is no directory's.
    ///
    /// # Errors
    /// ENOENT, EISDIR, EPERM.
    pub fn unlink(&self, _caller: &Caller, parent: BlockAddr, name: &[u8]) -> FsResult<()> {
        self.remove_name("unlink", parent, name, false)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ENOTEMPTY, EPERM, EINVAL for ".".
    pub fn rmdir(&self, _caller: &Caller, parent: BlockAddr, name: &[u8]) -> FsResult<()> {
        self.remove_name("rmdir", parent, name, true)
    }

    fn remove_name(&self, verb: &'static str, parent: BlockAddr, name: &[u8], is_dir: bool) -> FsResult<()> {
        self.change(verb, |engine| {
            check_name(name)?;
            match name {
                b"." => return Err(Errno::EINVAL.into()),
                b".." => return Err(Errno::ENOTEMPTY.into()),
                _ => {}
            }
            let dir = engine.inodes.get(parent)?;
            check_dir(&dir)?;
            while_stale(engine, |met| unlink(engine, &dir, name, is_dir, met))
        })
    }
}

/// The entry of an inode, whose parent is no longer locked; counts a knowledge.
pub(super) fn known(engine: &Engine, inode: &InodeRef) -> FsResult<Entry> {
    engine.read_ahead_from(inode.addr());
    let attr = attr(&engine.shared_any(inode)?)?;
    engine.inodes.remember(inode);
    Ok(Entry { attr })
}

fn link(engine: &Engine, inode: &InodeRef, dir: &InodeRef, name: &[u8]) -> FsResult<Entry> {
    let dir = engine.exclusive(dir)?;
    let mut target = engine.exclusive(inode)?;
    check_mutable(target.dinode(), true)?;
    if target.dinode().nlink.get() == 0 {
        return Err(Errno::ENOENT.into());
    }
    check_can_add(&dir)?;
    let room = room(&dir, name)?;
    let links = target.dinode().nlink.get().checked_add(1).ok_or(Errno::EMLINK)?;
    let now = now();
    let (hold, bitmaps) = reserve_for(&dir, &room)?;
    let reservation = Reservation::blocks(u64::from(room.cost().touched) + 2 + bitmaps);
    let mut work = engine.begin(reservation, hold)?;
    let entry = NewEntry {
        name,
        num: inode.num(),
        kind: inode.kind(),
        ea_follows: false,
    };
    dir::insert_at(&mut work.edit(dir.guard()), dir.addr(), &entry, &room, now)?;
    work.change(target.guard(), target.addr(), |dinode| {
        dinode.nlink = links.into();
        dinode.set_ctime(now);
    })?;
    let seq = work.commit()?;
    dir.committed(seq, false);
    target.committed(seq, false);
    target.refresh()?;
    let attr = attr(&target)?;
    engine.inodes.remember(inode);
    Ok(Entry { attr })
}

/// Refuses to take the name of an inode that is locked away from its directory, which is locked too.
pub(super) fn check_can_remove(dir: &Locked<'_>, target: &Locked<'_>) -> FsResult<()> {
    if target.dinode().nlink.get() == 0 {
        return Err(Errno::ENOENT.into());
    }
    check_mutable(dir.dinode(), true)?;
    check_mutable(target.dinode(), true)?;
    Ok(())
}

/// Refuses to remove a directory that is not empty.
pub(super) fn check_empty(target: &Locked<'_>) -> FsResult<()> {
    if target.dinode().nlink.get() > 2 || !dir::is_empty(&target.reader(), target.addr())? {
        return Err(Errno::ENOTEMPTY.into());
    }
    Ok(())
}

fn unlink(
    engine: &Engine,
    dir: &InodeRef,
    name: &[u8],
    is_dir: bool,
    met: &mut Option<BlockAddr>,
) -> FsResult<()> {
    let dir = engine.exclusive(dir)?;
    let hit = hit(&dir, name)?;
    let found = hit.found();
    match (found.kind == FileType::Dir, is_dir) {
        (true, false) => return Err(Errno::EISDIR.into()),
        (false, true) => return Err(Errno::ENOTDIR.into()),
        _ => {}
    }
    let inode = inode_of(engine, found, met)?;
    let target = engine.exclusive(&inode)?;
    check_can_remove(&dir, &target)?;
    if is_dir {
        check_empty(&target)?;
    }
    let last = is_dir || target.dinode().nlink.get() == 1;
    let hold = if last {
        Some(engine.rgrps.hold_of(target.addr())?)
    } else {
        None
    };
    let mut work = engine.begin(Reservation::blocks(REMOVE_BLOCKS + STATE_BLOCKS), hold)?;
    let now = now();
    dir::remove_at(&mut work.edit(dir.guard()), dir.addr(), &hit, now)?;
    if is_dir {
        work.change(dir.guard(), dir.addr(), |dinode| {
            dinode.nlink = dinode.nlink.get().saturating_sub(1).into()
        })?;
    }
    drop_link(&mut work, &target, last, now)?;
    let seq = work.commit()?;
    dir.committed(seq, false);
    target.committed(seq, false);
    if last {
        inode.mark_unlinked();
    }
    Ok(())
}

/// Takes one link off an inode, the last one (a directory's both) with what follows from it.
pub(super) fn drop_link(
    work: &mut crate::inode::Work,
    target: &Locked<'_>,
    last: bool,
    now: gfs2_format::time::Timestamp,
) -> FsResult<()> {
    let addr = target.addr();
    work.change(target.guard(), addr, |dinode| {
        dinode.set_ctime(now);
        if last {
            dinode.nlink = 0.into();
        } else {
            dinode.nlink = dinode.nlink.get().saturating_sub(1).into();
        }
        if last && dinode.is_dir() {
            dinode.entries = 0.into();
        }
    })?;
    if last {
        let (txn, hold) = work.hold()?;
        hold.set_unlinked(txn, addr)?;
    }
    Ok(())
}
