//! Open files and directories.

use crate::error::{Errno, FsResult};
use crate::hash::QuickMap;
use crate::inode::InodeRef;
use bitflags::bitflags;
use gfs2_format::BlockAddr;
use parking_lot::RwLock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An open file or directory; unique for the life of an [`super::Fs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(pub u64);

/// A directory that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dir {
    /// By a handle of [`super::Fs::opendir`].
    Open(Handle),
    /// By its address alone: what the caller knows need not be opened.
    Inode(BlockAddr),
}

impl From<Handle> for Dir {
    fn from(handle: Handle) -> Self {
        Self::Open(handle)
    }
}

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
        /// `O_DIRECT`: whole blocks are on the device when a write returns.
        const DIRECT = 64;
    }
}

/// What a handle stands for.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) inode: InodeRef,
    pub(super) flags: OpenFlags,
    /// Where this opener stands among the file's write-back errors.
    pub(super) failures: AtomicU64,
}

/// All open handles.
#[derive(Debug, Default)]
pub(super) struct Handles {
    last: AtomicU64,
    open: RwLock<QuickMap<u64, Arc<Open>>>,
}

impl Handles {
    /// `failures`: of [`crate::cache::DataCache::failure_mark`].
    pub(super) fn add(&self, inode: InodeRef, flags: OpenFlags, failures: u64) -> Handle {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let open = Open {
            inode,
            flags,
            failures: AtomicU64::new(failures),
        };
        self.open.write().insert(id, Arc::new(open));
        Handle(id)
    }

    /// # Errors
    /// EBADF.
    pub(super) fn get(&self, handle: Handle) -> FsResult<Arc<Open>> {
        self.open
            .read()
            .get(&handle.0)
            .cloned()
            .ok_or_else(|| Errno::EBADF.into())
    }

    pub(super) fn remove(&self, handle: Handle) -> Option<Arc<Open>> {
        self.open.write().remove(&handle.0)
    }

    pub(super) fn clear(&self) {
        let all = std::mem::take(&mut *self.open.write());
        // Each lets go of its inode outside the lock.
        drop(all);
    }
}
