//! The filesystem as its transport sees it.

use super::config::FsConfig;
use super::types::{Attr, Caller, DirEntry, Entry, RenameMode, SeekWhat, SetAttr, StatFs, XattrMode};
use crate::error::{Errno, FsResult};
use bitflags::bitflags;
use gfs2_format::{BlockAddr, InodeNum};

/// An open file or directory; unique for the life of an [`Fs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(pub u64);

bitflags! {
    /// How a file is opened.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct OpenFlags: u32 {
        /// Reads are wanted.
        const READ = 1;
        /// Writes are wanted.
        const WRITE = 2;
        /// `O_APPEND`.
        const APPEND = 4;
        /// `O_TRUNC`: size becomes 0 at open.
        const TRUNCATE = 8;
        /// `O_SYNC`: every write is durable, with its metadata, before it returns.
        const SYNC = 16;
        /// `O_DSYNC`: as `SYNC`, without pure timestamps.
        const DSYNC = 32;
    }
}

/// A mounted filesystem.
#[derive(Debug)]
pub struct Fs {
    config: FsConfig,
}

#[allow(clippy::unused_self, clippy::missing_errors_doc, unused_variables)]
impl Fs {
    /// Takes over a recovered volume: its journal is live (unless read-only), its glock table runs.
    pub fn new(config: FsConfig) -> FsResult<Self> {
        Ok(Self { config })
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> InodeNum {
        InodeNum {
            formal: gfs2_format::FormalIno::new(0),
            addr: BlockAddr::new(0),
        }
    }

    /// Finds a name. `.` and `..` are answered as well. Counts one knowledge of the inode found; `ENOENT`: no such name.
    pub fn lookup(&self, caller: &Caller, parent: BlockAddr, name: &[u8]) -> FsResult<Entry> {
        Err(Errno::ENOSYS.into())
    }

    /// Gives back `count` knowledges of an inode. The last one of an unlinked, closed inode deallocates it.
    pub fn forget(&self, ino: BlockAddr, count: u64) {}

    /// Attributes.
    pub fn getattr(&self, ino: BlockAddr) -> FsResult<Attr> {
        Err(Errno::ENOSYS.into())
    }

    /// Changes attributes and gives the new ones.
    pub fn setattr(&self, caller: &Caller, ino: BlockAddr, set: &SetAttr) -> FsResult<Attr> {
        Err(Errno::ENOSYS.into())
    }

    /// Target of a symlink.
    pub fn readlink(&self, ino: BlockAddr) -> FsResult<Vec<u8>> {
        Err(Errno::ENOSYS.into())
    }

    /// Makes a file of any type but directory and symlink. `mode` has type and permission bits; `umask` is applied
    /// here, unless the parent has a default ACL.
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: BlockAddr,
        name: &[u8],
        mode: u32,
        umask: u32,
        rdev: (u32, u32),
    ) -> FsResult<Entry> {
        Err(Errno::ENOSYS.into())
    }

    /// Makes a directory.
    pub fn mkdir(
        &self,
        caller: &Caller,
        parent: BlockAddr,
        name: &[u8],
        mode: u32,
        umask: u32,
    ) -> FsResult<Entry> {
        Err(Errno::ENOSYS.into())
    }

    /// Makes a symlink.
    pub fn symlink(&self, caller: &Caller, parent: BlockAddr, name: &[u8], target: &[u8]) -> FsResult<Entry> {
        Err(Errno::ENOSYS.into())
    }

    /// Gives an inode another name. Counts one more knowledge of it.
    pub fn link(&self, caller: &Caller, ino: BlockAddr, parent: BlockAddr, name: &[u8]) -> FsResult<Entry> {
        Err(Errno::ENOSYS.into())
    }

    /// Removes a name that is no directory's.
    pub fn unlink(&self, caller: &Caller, parent: BlockAddr, name: &[u8]) -> FsResult<()> {
        Err(Errno::ENOSYS.into())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, caller: &Caller, parent: BlockAddr, name: &[u8]) -> FsResult<()> {
        Err(Errno::ENOSYS.into())
    }

    /// Renames.
    pub fn rename(
        &self,
        caller: &Caller,
        parent: BlockAddr,
        name: &[u8],
        new_parent: BlockAddr,
        new_name: &[u8],
        mode: RenameMode,
    ) -> FsResult<()> {
        Err(Errno::ENOSYS.into())
    }

    /// Opens the regular file `name`, made if it does not exist (`EEXIST` if it does and `excl`). Counts one
    /// knowledge, and the handle must be released. The flag says whether the file was made.
    #[allow(clippy::too_many_arguments)]
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
        Err(Errno::ENOSYS.into())
    }

    /// Opens a file.
    pub fn open(&self, ino: BlockAddr, flags: OpenFlags) -> FsResult<Handle> {
        Err(Errno::ENOSYS.into())
    }

    /// Closes a handle of [`Fs::open`], [`Fs::create`] or [`Fs::opendir`]. The last one of an unlinked, forgotten
    /// inode deallocates it.
    pub fn release(&self, handle: Handle) {}

    /// Fills `buf` from `offset`; fewer bytes only at the end of the file. Device I/O goes straight into `buf` where
    /// its alignment allows.
    pub fn read(&self, handle: Handle, offset: u64, buf: &mut [u8]) -> FsResult<usize> {
        Err(Errno::ENOSYS.into())
    }

    /// Writes; `append` puts the bytes at the true end of the file whatever `offset` says. `kill_suidgid`: set-id
    /// bits are cleared in the same transaction. Fewer bytes than asked for only when space ran out after some.
    pub fn write(
        &self,
        caller: &Caller,
        handle: Handle,
        offset: u64,
        data: &[u8],
        append: bool,
        kill_suidgid: bool,
    ) -> FsResult<usize> {
        Err(Errno::ENOSYS.into())
    }

    /// Makes the file's data durable, and its metadata (`datasync`: without pure timestamps).
    pub fn fsync(&self, handle: Handle, datasync: bool) -> FsResult<()> {
        Err(Errno::ENOSYS.into())
    }

    /// Finds data or a hole at or after `offset`; `ENXIO` beyond the end.
    pub fn lseek(&self, handle: Handle, offset: u64, what: SeekWhat) -> FsResult<u64> {
        Err(Errno::ENOSYS.into())
    }

    /// Opens a directory.
    pub fn opendir(&self, ino: BlockAddr) -> FsResult<Handle> {
        Err(Errno::ENOSYS.into())
    }

    /// Hands out entries after `cookie` (0: from the start) until `visit` answers `true` for "full, this one was not
    /// taken".
    pub fn readdir(
        &self,
        handle: Handle,
        cookie: u64,
        visit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> FsResult<()> {
        Err(Errno::ENOSYS.into())
    }

    /// As [`Fs::readdir`], with attributes. An entry that was taken together with its attributes counts one
    /// knowledge; `None` (for `.`, `..` and what cannot be had) counts none.
    pub fn readdir_plus(
        &self,
        handle: Handle,
        cookie: u64,
        visit: &mut dyn FnMut(&DirEntry, Option<&Attr>) -> bool,
    ) -> FsResult<()> {
        Err(Errno::ENOSYS.into())
    }

    /// Makes the directory's names durable.
    pub fn fsyncdir(&self, handle: Handle, datasync: bool) -> FsResult<()> {
        Err(Errno::ENOSYS.into())
    }

    /// Figures of the filesystem.
    pub fn statfs(&self) -> FsResult<StatFs> {
        Err(Errno::ENOSYS.into())
    }

    /// Value of an xattr (full name with its prefix); `ENODATA`: none. The caller compares sizes (`ERANGE`).
    pub fn getxattr(&self, caller: &Caller, ino: BlockAddr, name: &[u8]) -> FsResult<Vec<u8>> {
        Err(Errno::ENOSYS.into())
    }

    /// Names of all xattrs the caller may see, each ended by a NUL.
    pub fn listxattr(&self, caller: &Caller, ino: BlockAddr) -> FsResult<Vec<u8>> {
        Err(Errno::ENOSYS.into())
    }

    /// Sets an xattr.
    pub fn setxattr(
        &self,
        caller: &Caller,
        ino: BlockAddr,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> FsResult<()> {
        Err(Errno::ENOSYS.into())
    }

    /// Removes an xattr.
    pub fn removexattr(&self, caller: &Caller, ino: BlockAddr, name: &[u8]) -> FsResult<()> {
        Err(Errno::ENOSYS.into())
    }

    /// Makes everything durable (`sync`, `syncfs`).
    pub fn sync(&self) -> FsResult<()> {
        Err(Errno::ENOSYS.into())
    }

    /// Folds this node's statfs changes into the master; called every `statfs_quantum`.
    pub fn sync_statfs(&self) -> FsResult<()> {
        Err(Errno::ENOSYS.into())
    }

    /// Deallocates inodes that a dead node, or we before a crash, left unlinked. Gives their number. For mount, after
    /// recovery, on a thread of its own if it likes.
    pub fn reclaim_orphans(&self) -> FsResult<u64> {
        Err(Errno::ENOSYS.into())
    }

    /// Ends it: evicts every inode, syncs statfs, leaves the journal clean. No method may be called afterwards.
    pub fn shutdown(&self) -> FsResult<()> {
        Err(Errno::ENOSYS.into())
    }
}
