//! The flags of chattr(1): what they are to who asks, and what they are in the dinode.
//!
//! Invariant: no copy of a file's data is live in the log when the file stops being journaled, and none waits to go past
//! the log when it begins to be.

use super::fs::Fs;
use super::types::Caller;
use crate::error::{Errno, FsResult};
use crate::inode::{Engine, Locked, now};
use crate::journal::FlushReason;
use crate::txn::Reservation;
use bitflags::bitflags;
use gfs2_format::BlockAddr;
use gfs2_format::ondisk::{Dinode, DinodeFlags, FileType};

bitflags! {
    /// Flags of an inode, with the numbers of `FS_IOC_GETFLAGS`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FileFlags: u32 {
        /// `FS_SYNC_FL`: every write is durable before it returns.
        const SYNC = 0x8;
        /// `FS_IMMUTABLE_FL`: nothing of it may change.
        const IMMUTABLE = 0x10;
        /// `FS_APPEND_FL`: it may only grow.
        const APPEND = 0x20;
        /// `FS_NOATIME_FL`: reading moves no access time.
        const NOATIME = 0x80;
        /// `FS_INDEX_FL`: a hashed directory; nobody can set it.
        const INDEX = 0x1000;
        /// `FS_JOURNAL_DATA_FL`: data goes through the log; of a directory: that of what is made in it.
        const JOURNAL_DATA = 0x4000;
        /// `FS_TOPDIR_FL`, of a directory: what is made in it has nothing to do with each other.
        const TOPDIR = 0x2_0000;
        /// Bits of others are kept, to be refused.
        const _ = !0;
    }
}

/// Each flag, and its bit in the dinode; of the flag that means one thing of a file and another of a directory, a file's.
const TABLE: [(FileFlags, DinodeFlags); 7] = [
    (FileFlags::SYNC, DinodeFlags::SYNC),
    (FileFlags::IMMUTABLE, DinodeFlags::IMMUTABLE),
    (FileFlags::APPEND, DinodeFlags::APPENDONLY),
    (FileFlags::NOATIME, DinodeFlags::NOATIME),
    (FileFlags::INDEX, DinodeFlags::EXHASH),
    (FileFlags::JOURNAL_DATA, DinodeFlags::JDATA),
    (FileFlags::TOPDIR, DinodeFlags::TOPDIR),
];

/// The bit of a flag in such an inode. A directory's own blocks are always journaled, whatever the flag says.
fn bit(flag: FileFlags, bit: DinodeFlags, is_dir: bool) -> DinodeFlags {
    if is_dir && flag == FileFlags::JOURNAL_DATA {
        DinodeFlags::INHERIT_JDATA
    } else {
        bit
    }
}

/// The flags that a dinode has.
fn flags_of(dinode: &Dinode) -> FileFlags {
    let has = dinode.flags();
    let set = TABLE
        .iter()
        .filter(|(flag, own)| has.contains(bit(*flag, *own, dinode.is_dir())));
    set.map(|(flag, _)| *flag).collect()
}

fn set_in(dinode: &mut Dinode, flags: FileFlags) {
    let mut bits = dinode.flags();
    for (flag, own) in TABLE {
        bits.set(bit(flag, own, dinode.is_dir()), flags.contains(flag));
    }
    dinode.set_flags(bits);
}

/// Has such an inode flags?
fn check_kind(kind: FileType) -> FsResult<()> {
    match kind {
        FileType::Regular | FileType::Dir => Ok(()),
        _ => Err(Errno::ENOTTY.into()),
    }
}

impl Fs {
    /// The flags of a file or directory.
    ///
    /// # Errors
    /// ENOTTY for other inodes; ESTALE; corruption; I/O and lock errors.
    pub fn flags(&self, ino: BlockAddr) -> FsResult<FileFlags> {
        self.run("getflags", |engine| {
            let inode = engine.inodes.get(ino)?;
            check_kind(inode.kind())?;
            Ok(flags_of(engine.shared_any(&inode)?.dinode()))
        })
    }

    /// Sets those of `flags` that are in `of`, and clears the others that are in it. That the caller owns the inode, and
    /// may set and clear what only a privileged one may, has been looked at.
    ///
    /// # Errors
    /// EINVAL for flags that there are not, of a directory only, or nobody's to set; EACCES for who may not write;
    /// ENOTTY as [`Fs::flags`]; I/O errors of data that goes into its place.
    pub fn set_flags(
        &self,
        caller: &Caller,
        ino: BlockAddr,
        flags: FileFlags,
        of: FileFlags,
    ) -> FsResult<()> {
        self.change("setflags", |engine| {
            engine.check_writable()?;
            let inode = engine.inodes.get(ino)?;
            check_kind(inode.kind())?;
            let mut locked = engine.exclusive(&inode)?;
            let old = flags_of(locked.dinode());
            let new = (old - of) | (flags & of);
            check_change(caller, locked.dinode(), old, new)?;
            if new == old {
                return Ok(());
            }
            if inode.kind() == FileType::Regular && (new ^ old).contains(FileFlags::JOURNAL_DATA) {
                put_in_place(engine, &mut locked)?;
            }
            let mut work = engine.begin(Reservation::blocks(1), None)?;
            work.change(locked.guard(), locked.addr(), |dinode| {
                set_in(dinode, new);
                dinode.set_ctime(now());
            })?;
            locked.commit(work, false)
        })
    }
}

fn check_change(caller: &Caller, dinode: &Dinode, old: FileFlags, new: FileFlags) -> FsResult<()> {
    let known = TABLE.iter().map(|(flag, _)| *flag).collect::<FileFlags>();
    let wrong = !known.contains(new)
        || (new ^ old).contains(FileFlags::INDEX)
        || new.contains(FileFlags::TOPDIR) && !dinode.is_dir();
    if wrong {
        return Err(Errno::EINVAL.into());
    }
    // Setting flags is writing, but of what is immutable: that one has to end first. Groups and capabilities are not
    // ours to know; an owner's own bit is.
    let owns = caller.uid != 0 && caller.uid == dinode.uid.get();
    if new != old && owns && !old.contains(FileFlags::IMMUTABLE) && dinode.mode.get() & libc::S_IWUSR == 0 {
        return Err(Errno::EACCES.into());
    }
    Ok(())
}

/// Puts everything of a file into its place, with no copy left in the log and none in a cache, for it changes the way
/// its data goes.
fn put_in_place(engine: &Engine, locked: &mut Locked<'_>) -> FsResult<()> {
    let name = locked.guard().glock().name();
    let data = engine.cache.data();
    data.write_owner(name)?;
    engine.journal()?.revoke_glock(name, FlushReason::InodeSync)?;
    data.check_clean(name)?;
    engine.cache.drop_owner(name)?;
    locked.refresh()
}
