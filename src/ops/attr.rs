//! Attributes: getattr, setattr.

use super::fs::Fs;
use super::types::{Attr, Caller, SetAttr, SetTime};
use crate::error::{Errno, FsResult};
use crate::glock::{HolderFlags, State};
use crate::inode::{Engine, InodeRef, Locked, killed, now, set_size};
use crate::txn::Reservation;
use crate::xattr;
use gfs2_format::ondisk::{Dinode, DinodeFlags, FileType};
use gfs2_format::time::Timestamp;
use gfs2_format::{BlockAddr, Geometry};

/// Permission bits with set-id and sticky.
pub(super) const PERM: u32 = 0o7777;

/// What a dinode says about its inode.
pub(super) fn attr_of(dinode: &Dinode, geometry: &Geometry) -> FsResult<Attr> {
    let mode = dinode.mode.get();
    Ok(Attr {
        num: dinode.inode_num(),
        kind: dinode.file_type().ok_or(Errno::EIO)?,
        perm: (mode & PERM) as u16,
        nlink: dinode.nlink.get(),
        uid: dinode.uid.get(),
        gid: dinode.gid.get(),
        rdev: (dinode.major.get(), dinode.minor.get()),
        size: dinode.size.get(),
        sectors: dinode
            .blocks
            .get()
            .saturating_mul(u64::from(geometry.bsize()) / 512),
        blksize: geometry.bsize(),
        atime: dinode.atime(),
        mtime: dinode.mtime(),
        ctime: dinode.ctime(),
        flags: dinode.flags.get(),
    })
}

pub(super) fn attr(locked: &Locked<'_>) -> FsResult<Attr> {
    attr_of(locked.dinode(), locked.engine.geometry())
}

/// Refuses what immutable and append-only inodes do not allow.
pub(super) fn check_mutable(dinode: &Dinode, append_too: bool) -> FsResult<()> {
    let mut refused = DinodeFlags::IMMUTABLE;
    refused.set(DinodeFlags::APPENDONLY, append_too);
    if dinode.flags().intersects(refused) {
        return Err(Errno::EPERM.into());
    }
    Ok(())
}

impl Fs {
    /// Attributes.
    ///
    /// # Errors
    /// ESTALE; corruption; I/O and lock errors.
    pub fn getattr(&self, ino: BlockAddr) -> FsResult<Attr> {
        self.run("getattr", |engine| {
            let inode = engine.inodes.get(ino)?;
            let locked = engine.shared_any(&inode)?;
            attr(&locked)
        })
    }

    /// Changes attributes and gives the new ones.
    ///
    /// # Errors
    /// EPERM for immutable inodes, EISDIR and EINVAL for a size of what has none, EFBIG, ENOSPC.
    pub fn setattr(&self, _caller: &Caller, ino: BlockAddr, set: &SetAttr) -> FsResult<Attr> {
        self.change("setattr", |engine| {
            let inode = engine.inodes.get(ino)?;
            setattr(engine, &inode, set)
        })
    }
}

fn setattr(engine: &Engine, inode: &InodeRef, set: &SetAttr) -> FsResult<Attr> {
    // The kernel lets no page be written back while it waits for a change of size: a demote must not wait for this.
    let serve = if set.size.is_some() {
        HolderFlags::SERVE
    } else {
        HolderFlags::empty()
    };
    let mut locked = engine.lock(inode, State::Ex, serve)?;
    locked.resume()?;
    let now = now();
    let chowns = set.uid.is_some() || set.gid.is_some();
    let sets_time = |time| matches!(time, Some(SetTime::At(_)));
    // An append-only inode may have its times set to the present, and nothing else.
    // A ctime comes from a kernel that cached writes it has allowed: their times are no wish of anybody's.
    let wished = set.ctime.is_none() && (sets_time(set.atime) || sets_time(set.mtime));
    let more = set.perm.is_some() || chowns || set.size.is_some() || wished;
    check_mutable(locked.dinode(), more)?;
    if (chowns || set.size.is_some() && set.kill_suidgid) && inode.kind() == FileType::Regular {
        xattr::kill_capability(&mut locked, now)?;
    }
    let change = |dinode: &mut Dinode| apply(dinode, set, now);
    match set.size {
        Some(size) => {
            match inode.kind() {
                FileType::Regular => {}
                FileType::Dir => return Err(Errno::EISDIR.into()),
                _ => return Err(Errno::EINVAL.into()),
            }
            set_size(&mut locked, size, now, &change)?;
        }
        None => {
            let mut work = engine.begin(Reservation::blocks(1), None)?;
            work.change(locked.guard(), locked.addr(), change)?;
            let times_only = set.perm.is_none() && !chowns && !set.kill_suidgid;
            locked.commit(work, times_only)?;
        }
    }
    if set.perm.is_some() && engine.options.acl {
        xattr::chmod_acl(&mut locked, now)?;
    }
    attr(&locked)
}

fn time(set: SetTime, now: Timestamp) -> Timestamp {
    match set {
        SetTime::Now => now,
        SetTime::At(time) => time,
    }
}

fn apply(dinode: &mut Dinode, set: &SetAttr, now: Timestamp) {
    let mut mode = dinode.mode.get();
    let chowns = set.uid.is_some() || set.gid.is_some();
    if (chowns || set.kill_suidgid) && !dinode.is_dir() {
        mode = killed(mode);
    }
    if let Some(perm) = set.perm {
        mode = mode & !PERM | u32::from(perm) & PERM;
    }
    dinode.mode = mode.into();
    if let Some(uid) = set.uid {
        dinode.uid = uid.into();
    }
    if let Some(gid) = set.gid {
        dinode.gid = gid.into();
    }
    if let Some(atime) = set.atime {
        dinode.set_atime(time(atime, now));
    }
    if let Some(mtime) = set.mtime {
        dinode.set_mtime(time(mtime, now));
    }
    dinode.set_ctime(set.ctime.unwrap_or(now));
}
