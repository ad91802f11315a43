//! New inodes: create, mknod, mkdir, symlink.
//!
//! Invariant: block, dinode, ACLs and directory entry come in one transaction; the number of a new inode is chosen and
//! its locks are taken (only if nobody has them) before that transaction begins.

use super::attr::{PERM, attr};
use super::fs::Fs;
use super::handle::{Handle, OpenFlags};
use super::names::{check_can_add, check_dir, check_name, inode_of, known, probe, room, while_stale};
use super::types::{Caller, Entry};
use crate::error::{Errno, FsError, FsResult};
use crate::glock::{Glock, GlockGuard, HolderFlags, State};
use crate::inode::{Engine, InodeRef, Locked, NewInode, Work, now};
use crate::rgrp::{Hold, Want};
use crate::txn::Reservation;
use crate::xattr::{self, acl};
use gfs2_format::dir::{self, NewEntry, Probe, Room};
use gfs2_format::ondisk::{
    DINODE_SIZE, Dinode, DinodeFlags, FileType, MetaHeader, MetaType, RawInum, view_mut,
};
use gfs2_format::time::Timestamp;
use gfs2_format::{BlockAddr, Geometry, InodeNum, Jid};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Free blocks that are looked at for one whose locks nobody has.
const PICK_TRIES: usize = 64;

/// What is to be made.
#[derive(Clone, Copy, Debug)]
struct Wanted<'a> {
    kind: FileType,
    /// Permission bits asked for.
    perm: u32,
    umask: u32,
    rdev: (u32, u32),
    /// Of a symlink.
    target: &'a [u8],
    /// It is opened for writing at once.
    writes: bool,
}

impl Wanted<'_> {
    /// A file or directory of no special kind.
    fn new(kind: FileType, mode: u32, umask: u32) -> Self {
        Self {
            kind,
            perm: mode & PERM,
            umask,
            rdev: (0, 0),
            target: b"",
            writes: false,
        }
    }
}

/// What a new inode takes from its parent and its maker.
#[derive(Debug)]
struct Traits {
    perm: u32,
    uid: u32,
    gid: u32,
    flags: DinodeFlags,
    /// Stored names and values.
    acls: Vec<(&'static [u8], Vec<u8>)>,
}

impl Fs {
    /// Makes a file of any type but directory and symlink. `mode` has type and permission bits; `umask` is applied
    /// here, unless the parent has a default ACL.
    ///
    /// # Errors
    /// EEXIST, ENOENT, EINVAL for those types, ENOSPC.
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: BlockAddr,
        name: &[u8],
        mode: u32,
        umask: u32,
        rdev: (u32, u32),
    ) -> FsResult<Entry> {
        let kind = match FileType::from_mode(mode) {
            Some(FileType::Dir | FileType::Symlink) => return Err(Errno::EINVAL.into()),
            Some(kind) => kind,
            None if mode & libc::S_IFMT == 0 => FileType::Regular,
            None => return Err(Errno::EINVAL.into()),
        };
        let wanted = Wanted {
            rdev,
            ..Wanted::new(kind, mode, umask)
        };
        self.make(caller, parent, name, &wanted)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As [`Fs::mknod`]; EMLINK.
    pub fn mkdir(
        &self,
        caller: &Caller,
        parent: BlockAddr,
        name: &[u8],
        mode: u32,
        umask: u32,
    ) -> FsResult<Entry> {
        self.make(caller, parent, name, &Wanted::new(FileType::Dir, mode, umask))
    }

    /// Makes a symlink.
    ///
    /// # Errors
    /// As [`Fs::mknod`]; ENAMETOOLONG for a target that does not fit in a dinode.
    pub fn symlink(&self, caller: &Caller, parent: BlockAddr, name: &[u8], target: &[u8]) -> FsResult<Entry> {
        if target.is_empty() {
            return Err(Errno::ENOENT.into());
        }
        if target.len() as u64 >= self.engine.geometry().max_stuffed() {
            return Err(Errno::ENAMETOOLONG.into());
        }
        let wanted = Wanted {
            target,
            ..Wanted::new(FileType::Symlink, 0o777, 0)
        };
        self.make(caller, parent, name, &wanted)
    }

    fn make(&self, caller: &Caller, parent: BlockAddr, name: &[u8], wanted: &Wanted<'_>) -> FsResult<Entry> {
        self.change("create", |engine| {
            check_name(name)?;
            let dir = engine.inodes.get(parent)?;
            check_dir(&dir)?;
            let dir = engine.exclusive(&dir)?;
            check_can_add(&dir)?;
            let room = room(&dir, name)?;
            let (_inode, entry) = make(caller, dir, name, &room, wanted, self.root().addr)?;
            Ok(entry)
        })
    }

    /// Opens the regular file `name`, made if it does not exist. Counts one knowledge, and the handle must be released.
    /// The flag says whether the file was made.
    ///
    /// # Errors
    /// EEXIST if it exists and `excl`, or is no regular file; EISDIR; as [`Fs::mknod`] and [`Fs::open`].
    #[expect(clippy::too_many_arguments, reason = "the verb has as many")]
    pub fn create(
        &self,
        caller: &Caller,
        parent: BlockAddr,
        name: &[u8],
        mode: u32,
        umask: u32,
        excl: bool,
        flags: OpenFlags,
    ) -> FsResult<(Entry, Handle, bool)> {
        // What is made need not be cut.
        let opens = flags - OpenFlags::TRUNCATE;
        let wanted = Wanted {
            writes: opens.contains(OpenFlags::WRITE),
            ..Wanted::new(FileType::Regular, mode, umask)
        };
        let (inode, entry, made) = self.change("create", |engine| {
            check_name(name)?;
            let parent = engine.inodes.get(parent)?;
            check_dir(&parent)?;
            while_stale(engine, |met| {
                let dir = engine.exclusive(&parent)?;
                let hit = match probe(&dir, name)? {
                    Probe::Here(hit) => hit,
                    Probe::Absent(room) => {
                        check_can_add(&dir)?;
                        let (inode, entry) = make(caller, dir, name, &room, &wanted, self.root().addr)?;
                        return Ok((inode, entry, true));
                    }
                };
                match hit.found().kind {
                    FileType::Dir => return Err(Errno::EISDIR.into()),
                    FileType::Regular if !excl => {}
                    _ => return Err(Errno::EEXIST.into()),
                }
                let inode = inode_of(engine, hit.found(), met)?;
                drop(dir);
                let entry = known(engine, &inode)?;
                Ok((inode, entry, false))
            })
        })?;
        if made {
            let failures = self.engine.cache.data().failure_mark(inode.glock().name());
            return Ok((entry, self.handles.add(inode, opens, failures), true));
        }
        let addr = inode.addr();
        drop(inode);
        match self.open(addr, flags) {
            Ok(handle) => Ok((entry, handle, false)),
            Err(error) => {
                self.forget(addr, 1);
                Err(error)
            }
        }
    }
}

/// Makes an inode, and its name in a directory that is locked EX, has no such name and may have one more. Counts a
/// knowledge of it.
fn make(
    caller: &Caller,
    dir: Locked<'_>,
    name: &[u8],
    room: &Room,
    wanted: &Wanted<'_>,
    root: BlockAddr,
) -> FsResult<(InodeRef, Entry)> {
    let engine = dir.engine;
    let is_dir = wanted.kind == FileType::Dir;
    if is_dir && dir.dinode().nlink.get() == u32::MAX {
        return Err(Errno::EMLINK.into());
    }
    let traits = inherit(&dir, caller, wanted)?;
    let acls: Vec<(&[u8], &[u8])> = traits
        .acls
        .iter()
        .map(|(name, value)| (*name, value.as_slice()))
        .collect();
    let cost = room.cost();
    let acl_cost = xattr::acl_cost(&dir, &acls);
    let need = 1 + u64::from(acl_cost.blocks) + u64::from(cost.blocks);
    let top = dir.addr() == root || dir.dinode().flags().contains(DinodeFlags::TOPDIR);
    let goal = BlockAddr::new(dir.dinode().goal_meta.get());
    let want = Want {
        spread: is_dir && top,
        ..Want::near(goal, need)
    };
    let Place { hold, addr, locks } = place(engine, &want)?;
    let touched = u64::from(acl_cost.touched) + u64::from(cost.touched) + 2;
    let reservation = Reservation::blocks(touched + hold.alloc_cost(need));
    let mut work = engine.begin(reservation, Some(hold))?;
    let now = now();
    let (txn, hold) = work.hold()?;
    let formal = hold.alloc_dinode(txn, addr)?;
    let num = InodeNum { formal, addr };
    fill(
        &mut work,
        &locks.guard,
        engine.geometry(),
        num,
        dir.inode.num(),
        wanted,
        &traits,
        now,
    )?;
    xattr::put_acls(&mut work.edit(&locks.guard), addr, engine.fs_format, &acls)?;
    let entry = NewEntry {
        name,
        num,
        kind: wanted.kind,
        ea_follows: false,
    };
    dir::insert_at(&mut work.edit(dir.guard()), dir.addr(), &entry, room, now)?;
    if is_dir {
        work.change(dir.guard(), dir.addr(), |dinode| {
            dinode.nlink = dinode.nlink.get().saturating_add(1).into()
        })?;
    }
    let seq = work.commit()?;
    dir.committed(seq, false);
    let Locks { guard, glock, iopen } = locks;
    let inode = engine.inodes.get_or_make(num, || {
        Ok(NewInode {
            kind: wanted.kind,
            glock,
            iopen,
        })
    })?;
    let attr = {
        let locked = Locked::new(engine, &inode, guard)?;
        locked.committed(seq, false);
        inode.all_seen();
        let attr = attr(&locked)?;
        if wanted.writes {
            inode.writers.fetch_add(1, Ordering::Relaxed);
        }
        attr
    };
    engine.inodes.remember(&inode);
    Ok((inode, Entry { attr }))
}

/// The locks of a new inode.
#[derive(Debug)]
struct Locks {
    guard: GlockGuard,
    glock: Arc<Glock>,
    iopen: GlockGuard,
}

/// Where a new inode goes: its group, held, a free block of that, and the locks of the inode there.
#[derive(Debug)]
struct Place {
    hold: Hold,
    addr: BlockAddr,
    locks: Locks,
}

/// What a look at the free blocks of a group gave.
#[derive(Debug)]
enum Picked {
    /// A block whose locks nobody had.
    Free(BlockAddr, Locks),
    /// None: these may be cached by other nodes, the others are in use here.
    Cached(Vec<BlockAddr>),
}

/// Chooses the block of a new inode and holds its group.
///
/// First one whose locks can be had at once. If other nodes cache those of all of them (they deleted the inodes that
/// stood there), they are asked for them: with no group held, for inode locks come before those of groups; that of the
/// parent is held, as it should be.
fn place(engine: &Engine, want: &Want) -> FsResult<Place> {
    let hold = engine.rgrps.reserve(want)?;
    let cached = match pick(engine, &hold, want.goal)? {
        Picked::Free(addr, locks) => return Ok(Place { hold, addr, locks }),
        Picked::Cached(cached) => cached,
    };
    drop(hold);
    for addr in cached {
        let iopen = engine.iopen_glock(addr)?;
        let iopen = iopen.acquire(State::Sh, HolderFlags::EXACT | HolderFlags::NOPID)?;
        let glock = engine.inode_glock(addr)?;
        let guard = glock.acquire(State::Ex, HolderFlags::SKIP)?;
        let locks = Locks { guard, glock, iopen };
        // Meanwhile somebody may have come to know an inode there, or have taken the block for something else.
        if engine.inodes.knows(addr) {
            continue;
        }
        let hold = engine.rgrps.hold_of(addr)?;
        if u64::from(hold.available()) >= want.need && hold.is_free(addr)? {
            return Ok(Place { hold, addr, locks });
        }
    }
    Err(Errno::ENOSPC.into())
}

/// Looks for a free block of a held group whose locks can be had without waiting for anybody. (Somebody may still be at
/// the inode that stood there before.)
fn pick(engine: &Engine, hold: &Hold, goal: BlockAddr) -> FsResult<Picked> {
    let (mut avoid, mut cached) = (Vec::new(), Vec::new());
    while avoid.len() < PICK_TRIES {
        let Some(addr) = hold.pick(goal, &avoid) else {
            break;
        };
        if !engine.inodes.knows(addr) {
            let iopen = engine.iopen_glock(addr)?;
            let glock = engine.inode_glock(addr)?;
            if let Some(iopen) = iopen.try_acquire(State::Sh, HolderFlags::EXACT | HolderFlags::NOPID)?
                && let Some(guard) = glock.try_acquire(State::Ex, HolderFlags::SKIP)?
            {
                return Ok(Picked::Free(addr, Locks { guard, glock, iopen }));
            }
            cached.push(addr);
        }
        avoid.push(addr);
    }
    Ok(Picked::Cached(cached))
}

/// Owner, mode, flags and ACLs of a new inode.
fn inherit(dir: &Locked<'_>, caller: &Caller, wanted: &Wanted<'_>) -> FsResult<Traits> {
    let parent = dir.dinode();
    let parent_mode = parent.mode.get();
    let is_dir = wanted.kind == FileType::Dir;
    let mut perm = wanted.perm;
    let mut acls: Vec<(&'static [u8], Vec<u8>)> = Vec::new();
    let default = if dir.engine.options.acl && wanted.kind != FileType::Symlink {
        xattr::default_acl(dir)?
    } else {
        None
    };
    match &default {
        Some(default) => {
            let inherited = default.inherit(perm);
            perm = inherited.mode;
            if is_dir {
                acls.push((acl::DEFAULT, default.to_bytes()));
            }
            if let Some(access) = inherited.access {
                acls.push((acl::ACCESS, access));
            }
        }
        None => perm &= !(wanted.umask & 0o777),
    }
    let mut gid = caller.gid;
    if parent_mode & libc::S_ISGID != 0 {
        gid = parent.gid.get();
        if is_dir {
            perm |= libc::S_ISGID;
        }
    }
    let mut uid = caller.uid;
    let owner = parent.uid.get();
    if dir.engine.options.suiddir && parent_mode & libc::S_ISUID != 0 && owner != 0 {
        if is_dir {
            perm |= libc::S_ISUID;
        } else if owner != caller.uid {
            perm &= !0o7111;
        }
        uid = owner;
    }
    let mut flags = parent.flags() & DinodeFlags::SYSTEM;
    if parent.flags().contains(DinodeFlags::INHERIT_JDATA) {
        match wanted.kind {
            FileType::Dir => flags |= DinodeFlags::INHERIT_JDATA,
            FileType::Regular => flags |= DinodeFlags::JDATA,
            _ => {}
        }
    }
    Ok(Traits {
        perm,
        uid,
        gid,
        flags,
        acls,
    })
}

/// Writes a new dinode.
#[expect(clippy::too_many_arguments, reason = "all that a dinode is made of")]
fn fill(
    work: &mut Work,
    lock: &GlockGuard,
    geometry: &Geometry,
    num: InodeNum,
    parent: InodeNum,
    wanted: &Wanted<'_>,
    traits: &Traits,
    now: Timestamp,
) -> FsResult<()> {
    let bytes = work.txn.create(lock, num.addr)?;
    let is_dir = wanted.kind == FileType::Dir;
    let dinode: &mut Dinode = view_mut(bytes, 0, num.addr)?;
    dinode.header = MetaHeader::new(MetaType::Di, Jid::new(0));
    dinode.num = RawInum::from(num);
    dinode.mode = (wanted.kind.mode_bits() | traits.perm).into();
    dinode.uid = traits.uid.into();
    dinode.gid = traits.gid.into();
    dinode.nlink = if is_dir { 2 } else { 1 }.into();
    dinode.blocks = 1.into();
    dinode.set_atime(now);
    dinode.set_mtime(now);
    dinode.set_ctime(now);
    if matches!(wanted.kind, FileType::Char | FileType::Block) {
        dinode.major = wanted.rdev.0.into();
        dinode.minor = wanted.rdev.1.into();
    }
    dinode.goal_meta = num.addr.get().into();
    dinode.goal_data = num.addr.get().into();
    dinode.generation = num.formal.get().into();
    dinode.set_flags(traits.flags);
    match wanted.kind {
        FileType::Dir => dir::init_dir(bytes, geometry, num, parent)?,
        FileType::Symlink => {
            dinode.size = (wanted.target.len() as u64).into();
            let place = bytes.get_mut(DINODE_SIZE..DINODE_SIZE + wanted.target.len());
            place.ok_or_else(too_long)?.copy_from_slice(wanted.target);
        }
        _ => {}
    }
    Ok(())
}

fn too_long() -> FsError {
    Errno::ENAMETOOLONG.into()
}
