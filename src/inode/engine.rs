//! What every verb works with, and the lock of an inode as a verb holds it.
//!
//! Invariants: a dinode is decoded and compared with the inode it should be (formal number, type) each time it is
//! read under a fresh lock; an interrupted truncate is finished by whoever holds its inode EX next, before anything
//! else.

use super::ahead::ReadAhead;
use super::options::FsOptions;
use super::table::{Inode, InodeRef, InodeTable, NewInode};
use crate::cache::{BufferCache, LockProof};
use crate::error::{Errno, FsError, FsResult};
use crate::glock::{Glock, GlockGuard, GlockName, GlockOps, GlockTable, HolderFlags, LockType, State};
use crate::health::Health;
use crate::journal::Journal;
use crate::rgrp::{Edit, Hold, Reader, Rgrps};
use crate::txn::{CommitSeq, Reservation, Transaction};
use gfs2_format::device::BlockDevice;
use gfs2_format::ondisk::{Dinode, DinodeFlags, FileType, view_mut};
use gfs2_format::{Block, BlockAddr, BlockEdit, Geometry, InodeNum};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Everything below the verbs.
pub(crate) struct Engine {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) cache: Arc<BufferCache>,
    /// None: a spectator.
    pub(crate) journal: Option<Arc<Journal>>,
    pub(crate) glocks: Arc<GlockTable>,
    pub(crate) inode_ops: Arc<dyn GlockOps>,
    pub(crate) iopen_ops: Arc<dyn GlockOps>,
    pub(crate) rgrps: Arc<Rgrps>,
    pub(crate) inodes: Arc<InodeTable>,
    pub(crate) ahead: ReadAhead,
    /// Bytes the caches may take; 0: no matter.
    pub(crate) budget: AtomicUsize,
    /// No verb changes anything; a remount changes it.
    pub(crate) read_only: AtomicBool,
    pub(crate) options: FsOptions,
    /// `sb_fs_format`.
    pub(crate) fs_format: u32,
}

impl Engine {
    pub(crate) fn geometry(&self) -> &Geometry {
        self.cache.geometry()
    }

    pub(crate) fn health(&self) -> &Arc<Health> {
        self.cache.health()
    }

    /// Does no verb change anything?
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    /// From now on, or no longer.
    pub(crate) fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only, Ordering::Release);
    }

    /// Refuses changes on a read-only mount and after a withdraw.
    pub(crate) fn check_writable(&self) -> FsResult<()> {
        if self.is_read_only() || self.journal.is_none() {
            return Err(Errno::EROFS.into());
        }
        self.health().check_modify()
    }

    /// The journal, for whoever changes something.
    pub(crate) fn journal(&self) -> FsResult<&Arc<Journal>> {
        self.journal.as_ref().ok_or_else(|| Errno::EROFS.into())
    }

    /// Begins a transaction, with the resource group it takes blocks from.
    pub(crate) fn begin(&self, reservation: Reservation, hold: Option<Hold>) -> FsResult<Work> {
        self.check_writable()?;
        let txn = Transaction::begin(self.journal()?, reservation)?;
        Ok(Work { txn, hold })
    }

    /// The glock of an inode.
    pub(crate) fn inode_glock(&self, addr: BlockAddr) -> FsResult<Arc<Glock>> {
        self.glocks.get(GlockName::inode(addr.get()), &self.inode_ops)
    }

    /// The iopen glock of an inode.
    pub(crate) fn iopen_glock(&self, addr: BlockAddr) -> FsResult<Arc<Glock>> {
        let name = GlockName::new(LockType::Iopen, addr.get());
        self.glocks.get(name, &self.iopen_ops)
    }

    /// The entry of an inode that a dirent names; taken while the directory is held.
    ///
    /// # Errors
    /// ESTALE when the address is still in use by the inode's predecessor.
    pub(crate) fn inode(&self, num: InodeNum, kind: FileType) -> FsResult<InodeRef> {
        self.inodes.get_or_make(num, || {
            let iopen = self
                .iopen_glock(num.addr)?
                .acquire(State::Sh, HolderFlags::EXACT | HolderFlags::NOPID)?;
            Ok(NewInode {
                kind,
                glock: self.inode_glock(num.addr)?,
                iopen,
            })
        })
    }

    /// Locks an inode for reading.
    pub(crate) fn shared<'e>(&'e self, inode: &'e Inode) -> FsResult<Locked<'e>> {
        self.lock(inode, State::Sh, HolderFlags::empty())
    }

    /// Locks an inode for reading what is no file data.
    pub(crate) fn shared_any<'e>(&'e self, inode: &'e Inode) -> FsResult<Locked<'e>> {
        self.lock(inode, State::Sh, HolderFlags::ANY)
    }

    /// Locks an inode for change.
    pub(crate) fn exclusive<'e>(&'e self, inode: &'e Inode) -> FsResult<Locked<'e>> {
        let mut locked = self.lock(inode, State::Ex, HolderFlags::empty())?;
        locked.resume()?;
        Ok(locked)
    }

    /// Locks an inode for change if nobody has to be waited for, here or on another node.
    pub(crate) fn try_exclusive<'e>(&'e self, inode: &'e Inode) -> FsResult<Option<Locked<'e>>> {
        let Some(guard) = inode.glock().try_acquire(State::Ex, HolderFlags::TRY)? else {
            return Ok(None);
        };
        let mut locked = Locked::new(self, inode, guard)?;
        locked.resume()?;
        Ok(Some(locked))
    }

    /// Locks an inode for reading pages of it. While it is open for writing, pages that the kernel has may be stored
    /// into without our being told, and come back in a demote as writes: so they are handed out only while the lock
    /// is ours EX (the holder itself may share it).
    pub(crate) fn shared_pages<'e>(&'e self, inode: &'e Inode) -> FsResult<Locked<'e>> {
        let shared = inode.glock().acquire(State::Sh, HolderFlags::SERVE)?;
        // Looked at under the lock: who opens for writing holds it EX when he counts himself.
        if inode.glock().held_state() == State::Ex || !inode.join_writers() {
            return Locked::new(self, inode, shared);
        }
        drop(shared);
        let locked = self.lock(inode, State::Ex, HolderFlags::SERVE);
        self.leave_writers(inode);
        locked
    }

    /// One of those who have an inode open for writing has gone; with the last one the room goes that it grew into.
    pub(crate) fn leave_writers(&self, inode: &Inode) {
        let last = inode.writers.fetch_sub(1, Ordering::Relaxed) == 1;
        if let Some(group) = last.then(|| inode.grow_in(None)).flatten() {
            self.rgrps.close_window(group, inode.addr());
        }
    }

    /// Locks an inode.
    pub(crate) fn lock<'e>(
        &'e self,
        inode: &'e Inode,
        state: State,
        flags: HolderFlags,
    ) -> FsResult<Locked<'e>> {
        let guard = inode.glock().acquire(state, flags)?;
        Locked::new(self, inode, guard)
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("inodes", &self.inodes.len())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// An inode whose lock is held, with its dinode as it stood when it was last looked at.
pub(crate) struct Locked<'e> {
    pub(crate) engine: &'e Engine,
    pub(crate) inode: &'e Inode,
    guard: GlockGuard,
    block: Block,
}

impl std::fmt::Debug for Locked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Locked")
            .field("num", &self.inode.num())
            .finish_non_exhaustive()
    }
}

impl<'e> Locked<'e> {
    /// Reads the dinode under a lock just taken.
    pub(crate) fn new(engine: &'e Engine, inode: &'e Inode, guard: GlockGuard) -> FsResult<Self> {
        let block = read_dinode(engine, inode, &guard)?;
        Ok(Self {
            engine,
            inode,
            guard,
            block,
        })
    }

    /// The address.
    pub(crate) fn addr(&self) -> BlockAddr {
        self.inode.addr()
    }

    /// The lock.
    pub(crate) fn guard(&self) -> &GlockGuard {
        &self.guard
    }

    /// The bytes of the dinode's block.
    pub(crate) fn block(&self) -> &Block {
        &self.block
    }

    /// The dinode.
    pub(crate) fn dinode(&self) -> &Dinode {
        // The block was decoded when it was read, so that it is long enough.
        gfs2_format::ondisk::view(&self.block, 0, self.inode.addr()).expect("a decoded dinode block")
    }

    /// Reads the dinode again, after a transaction changed it.
    pub(crate) fn refresh(&mut self) -> FsResult<()> {
        self.block = read_dinode(self.engine, self.inode, &self.guard)?;
        Ok(())
    }

    /// Makes work on this inode visible, and looks at the dinode again.
    pub(crate) fn commit(&mut self, work: Work, times_only: bool) -> FsResult<()> {
        let seq = work.commit()?;
        self.committed(seq, times_only);
        self.refresh()
    }

    /// A transaction with something of this inode has been committed.
    pub(crate) fn committed(&self, seq: CommitSeq, times_only: bool) {
        self.inode.committed(seq, times_only);
        self.guard.glock().mark_dirty();
    }

    /// For the format crate's algorithms.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader::new(&self.engine.cache, &self.guard)
    }

    /// Finishes a truncate that somebody left in the middle.
    pub(crate) fn resume(&mut self) -> FsResult<()> {
        if self.dinode().flags().contains(DinodeFlags::TRUNC_IN_PROG) && self.engine.check_writable().is_ok()
        {
            super::truncate::resume(self)?;
        }
        Ok(())
    }
}

/// Reads and checks a dinode under its lock.
fn read_dinode(engine: &Engine, inode: &Inode, lock: &dyn LockProof) -> FsResult<Block> {
    let addr = inode.addr();
    let block = engine.cache.read(lock, addr)?;
    let dinode = Dinode::decode(&block, addr, engine.geometry())?;
    if dinode.inode_num().formal != inode.num().formal {
        return Err(Errno::ESTALE.into());
    }
    if dinode.nlink.get() == 0 {
        inode.mark_unlinked();
    }
    // A hashed directory that is being deleted becomes a regular file on the way.
    if dinode.file_type() != Some(inode.kind()) && dinode.nlink.get() != 0 {
        return Err(FsError::Inconsistent(format!(
            "inode = {} {addr}: mode {:o} contradicts the directory entry's type {:?}",
            inode.num().formal,
            dinode.mode.get(),
            inode.kind()
        )));
    }
    Ok(block)
}

/// A transaction, and the resource group it works on.
#[must_use = "dropped work is rolled back"]
pub(crate) struct Work {
    // First, so that it is rolled back before the group is let go.
    pub(crate) txn: Transaction,
    pub(crate) hold: Option<Hold>,
}

impl Work {
    /// For the format crate's algorithms on one inode.
    pub(crate) fn edit<'a>(&'a mut self, lock: &'a dyn LockProof) -> Edit<'a> {
        Edit::new(&mut self.txn, lock, self.hold.as_mut())
    }

    /// Changes a dinode's fields.
    pub(crate) fn change(
        &mut self,
        lock: &dyn LockProof,
        addr: BlockAddr,
        change: impl FnOnce(&mut Dinode),
    ) -> FsResult<()> {
        let dinode: &mut Dinode = view_mut(self.txn.edit(lock, addr)?, 0, addr)?;
        change(dinode);
        Ok(())
    }

    /// The group that is held.
    pub(crate) fn hold(&mut self) -> FsResult<(&mut Transaction, &mut Hold)> {
        match &mut self.hold {
            Some(hold) => Ok((&mut self.txn, hold)),
            None => Err(FsError::Inconsistent(
                "a change of the bitmap without its resource group".into(),
            )),
        }
    }

    /// Makes it all visible.
    pub(crate) fn commit(self) -> FsResult<CommitSeq> {
        let seq = self.txn.commit()?;
        if let Some(hold) = self.hold {
            hold.finish(seq);
        }
        Ok(seq)
    }
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work")
            .field("txn", &self.txn)
            .finish_non_exhaustive()
    }
}

/// A dinode in an edit.
pub(crate) fn dinode_of<E: BlockEdit>(edit: &mut E, addr: BlockAddr) -> FsResult<&mut Dinode> {
    Ok(view_mut(edit.edit(addr)?, 0, addr)?)
}
