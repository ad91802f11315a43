//! What a glock asks of the layers above: one trait for the object under the lock, one for the kernel's cache.
//!
//! Dependency inversion: inode, rgrp, journal and so on implement [`GlockOps`] where they live; this layer never
//! names them. Rules for implementors
//! - No lock of this module is held during any call, so all of [`Glock`]'s methods may be used; but nothing here may
//!   *wait for a glock*: sync and invalidate run on the few demote workers, callback on the thread that brought the
//!   news. Queue such work elsewhere.
//! - The lock is held by nobody during `sync` and `invalidate` of a step to UN; it is still ours at the lock service.

use std::fmt;

use dlm_client::Lvb;

use super::lock::Glock;
use super::name::{GlockName, LockType};
use super::state::{HolderFlags, State};
use crate::error::FsError;

/// What the object says to a demote request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go down when the holders are gone.
    Demote,
    /// Keep the lock; the request was the message (the live lock).
    Ignore,
}

/// The object under a glock.
pub trait GlockOps: Send + Sync {
    /// Puts on disk all the lock covers: log flush for this glock, write-back, and no block of it left live in the
    /// log. Called before every step down from EX; work to do only if [`Glock::is_dirty`].
    ///
    /// # Errors
    /// The lock is then kept for ever, and the node withdraws.
    fn sync(&self, glock: &Glock) -> Result<(), FsError>;

    /// Forgets what may not be cached in `target`: UN everything, DF the data.
    fn invalidate(&self, glock: &Glock, target: State);

    /// Reads the object; runs before the first use after the lock came, by one holder at a time.
    ///
    /// # Errors
    /// The holder gets the error instead of the lock; the next one tries again.
    fn instantiate(&self, glock: &Glock) -> Result<(), FsError>;

    /// A holder has got the lock, the object is there (not with SKIP). It is the holder's thread.
    ///
    /// # Errors
    /// The holder gets the error instead of the lock.
    fn held(&self, _glock: &Glock, _state: State, _flags: HolderFlags) -> Result<(), FsError> {
        Ok(())
    }

    /// The lock is wanted down to `wanted`: by another node, or (`remote` false) by ourselves. Must not block.
    fn callback(&self, _glock: &Glock, _remote: bool, _wanted: State) -> Verdict {
        Verdict::Demote
    }

    /// Lines about the object for the dump, as the kernel prints them below the holders.
    ///
    /// # Errors
    /// Those of the writer.
    fn dump(&self, _glock: &Glock, _f: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }

    /// Last chance to write the lock value block before the lock goes down from EX; runs after a good sync.
    fn fill_lvb(&self, _glock: &Glock, _lvb: &mut Lvb) {}

    /// A grant has brought the lock value block (all zero when it is not valid). Must not block.
    fn use_lvb(&self, _glock: &Glock, _lvb: &Lvb) {}

    /// Nothing is ever cached under this lock: sync and invalidate are never called.
    fn presence_only(&self) -> bool {
        false
    }

    /// May the kernel have pages of the object now? If not, its emptying does not touch pages, so that it waits for no
    /// request that keeps one locked. Must not block.
    fn kernel_pages(&self, _glock: &Glock) -> bool {
        true
    }

    /// Can the lock be given up for the sake of memory now, without the log or the disk being waited for? Must not block.
    fn is_settled(&self, _name: GlockName) -> bool {
        true
    }

    /// May the kernel cache anything under this lock? Asked once, when the glock is made.
    fn kernel_cached(&self, name: GlockName) -> bool {
        name.ty == LockType::Inode
    }
}

/// A lock that only says that somebody is there: nondisk, journal, flock, superblock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Presence;

impl GlockOps for Presence {
    fn sync(&self, _glock: &Glock) -> Result<(), FsError> {
        Ok(())
    }

    fn invalidate(&self, _glock: &Glock, _target: State) {}

    fn instantiate(&self, _glock: &Glock) -> Result<(), FsError> {
        Ok(())
    }

    fn presence_only(&self) -> bool {
        true
    }

    fn kernel_cached(&self, _name: GlockName) -> bool {
        false
    }
}

/// The kernel's cache above us. Called from `glock-flush` threads only, with no lock of the daemon held.
pub trait KernelCache: Send + Sync {
    /// Has the kernel write back what is dirty of the inode and unmap it; then drop it, unless `keep_clean` (a step
    /// to SH: clean pages and attributes may stay). Returns when the kernel has done so. The writes it causes, and
    /// reads of pages it waits for, arrive meanwhile and must be served with [`HolderFlags::SERVE`].
    fn flush_and_invalidate(&self, inode_number: u64, keep_clean: bool);

    /// As [`KernelCache::flush_and_invalidate`] where it is known that the kernel has no pages of the inode: drops what
    /// else it remembers, and waits for no page.
    fn invalidate_attributes(&self, inode_number: u64) {
        self.flush_and_invalidate(inode_number, true);
    }

    /// Pass after pass, pages of the inode are being read again while they are dropped: a chance to take the file
    /// out of the kernel's cache for new opens. Called from pass [`CONTENDED_AFTER`] on.
    fn contended(&self, _inode_number: u64, _pass: u32) {}
}

/// Passes after which [`KernelCache::contended`] is called.
pub const CONTENDED_AFTER: u32 = 8;
