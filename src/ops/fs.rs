//! The filesystem as its transport sees it: start, end, and the frame around every verb.

use super::config::FsConfig;
use super::handle::Handles;
use super::types::StatFs;
use crate::cache::DataFlusher;
use crate::error::{Errno, FsError, FsResult};
use crate::glock::{GlockName, GlockOps, Interrupt};
use crate::inode::{
    Engine, InodeOps, InodeRef, InodeTable, IopenOps, MemoryUse, Prune, ReadAhead, Relief, Reviver,
    reclaim_orphans, run_evictions,
};
use crate::journal::StopReason;
use crate::rgrp::{IndexState, Rgrps};
use crate::statfs::{Figures, Totals};
use gfs2_format::ondisk::{Dinode, FileType};
use gfs2_format::{BlockAddr, InodeNum};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

/// How long a verb that found no space waits for evictions under way.
pub(super) const EVICTION_WAIT: Duration = Duration::from_secs(10);
/// How long after an unlink it may take until we hear that nobody uses the inode.
const FORGET_WAIT: Duration = Duration::from_secs(1);

/// Inodes a crash left unlinked that are deallocated for a verb that found no space, before it tries again.
const ORPHANS_AT_ONCE: u64 = 16;

/// A mounted filesystem.
#[derive(Debug)]
pub struct Fs {
    pub(super) engine: Engine,
    pub(super) handles: Handles,
    pub(super) totals: Totals,
    root: InodeNum,
    /// Writes data back in the background.
    pub(super) flusher: Mutex<Option<DataFlusher>>,
    /// Keeps the root known.
    root_ref: Mutex<Option<InodeRef>>,
}

impl Fs {
    /// Takes over a recovered volume: its journal is live (unless read-only), its glock table runs.
    ///
    /// # Errors
    /// Corruption of root or statfs file; I/O and lock errors.
    pub fn new(config: FsConfig) -> FsResult<Self> {
        let FsConfig {
            volume,
            cache,
            journal,
            glocks,
            options,
        } = config;
        let index = Arc::new(IndexState::default());
        let inodes = InodeTable::new();
        let rindex = volume.system.rindex;
        let inode_ops: Arc<dyn GlockOps> = Arc::new(InodeOps::new(
            Arc::clone(&cache),
            journal.clone(),
            (rindex, Arc::clone(&index)),
            Arc::clone(&inodes),
        ));
        let rindex_glock = glocks.get(GlockName::inode(rindex.get()), &inode_ops)?;
        let rgrps = Arc::new(Rgrps::new(
            Arc::clone(&cache),
            journal.clone(),
            Arc::clone(&glocks),
            (rindex, rindex_glock),
            index,
        ));
        let iopen_ops = IopenOps::start(&inodes, &glocks, &inode_ops)?;
        let alone = journal.as_ref().is_some_and(|journal| !journal.is_shared());
        let ops = (&inode_ops, &iopen_ops);
        inodes.set_reviver(Box::new(Reviver::new(&glocks, ops, (&rgrps, &cache), alone)));
        let engine = Engine {
            device: Arc::clone(cache.device()),
            cache,
            journal,
            glocks,
            inode_ops,
            iopen_ops,
            rgrps,
            inodes,
            ahead: ReadAhead::default(),
            budget: AtomicUsize::new(0),
            read_only: AtomicBool::new(options.read_only),
            options,
            fs_format: volume.superblock.fs_format.get(),
        };
        let totals = Totals::load(&engine, volume.system.statfs)?;
        let root = read_number(&engine, volume.system.root)?;
        let root_ref = engine.inode(root, FileType::Dir)?;
        drop(engine.shared_any(&root_ref)?);
        let writes = engine.journal.is_some() && !engine.is_read_only();
        let flusher = writes.then(|| DataFlusher::start(&engine.cache)).transpose()?;
        Ok(Self {
            flusher: Mutex::new(flusher),
            engine,
            handles: Handles::default(),
            totals,
            root,
            root_ref: Mutex::new(Some(root_ref)),
        })
    }

    /// The root directory. It is known without having been looked up.
    #[must_use]
    pub fn root(&self) -> InodeNum {
        self.root
    }

    /// May other nodes ask for our locks?
    #[must_use]
    pub fn is_shared(&self) -> bool {
        let journal = self.engine.journal.as_ref();
        journal.is_some_and(|journal| journal.is_shared())
    }

    /// Runs a verb: refused after a withdraw; what it leaves to be evicted is evicted when its locks are gone; an error
    /// that says that disk or state are wrong makes the node withdraw.
    pub(super) fn run<T>(
        &self,
        verb: &'static str,
        call: impl FnOnce(&Engine) -> FsResult<T>,
    ) -> FsResult<T> {
        let result = self.run_pages(verb, call);
        self.settle();
        result
    }

    /// [`Fs::run`] for a verb during which the kernel may keep a page locked: nothing is evicted before the answer. An
    /// eviction waits for other inodes' locks, and their demotes would wait for this page.
    pub(super) fn run_pages<T>(
        &self,
        verb: &'static str,
        call: impl FnOnce(&Engine) -> FsResult<T>,
    ) -> FsResult<T> {
        self.engine.health().check()?;
        let result = Interrupt::allow(|| call(&self.engine));
        result.map_err(|error| self.engine.health().observe(verb, error))
    }

    /// Runs a verb that changes something. One that finds no space is tried again when evictions were under way.
    pub(super) fn change<T>(&self, verb: &'static str, call: impl Fn(&Engine) -> FsResult<T>) -> FsResult<T> {
        self.run(verb, |engine| with_space(engine, call))
    }

    /// [`Fs::change`] as [`Fs::run_pages`].
    pub(super) fn change_pages<T>(
        &self,
        verb: &'static str,
        call: impl Fn(&Engine) -> FsResult<T>,
    ) -> FsResult<T> {
        self.run_pages(verb, |engine| with_space(engine, call))
    }

    /// What is due after a verb, with no lock held.
    pub(super) fn settle(&self) {
        if let Err(error) = run_evictions(&self.engine) {
            self.engine.health().observe("evict", error);
        }
        if self.totals.is_due(&self.engine)
            && let Err(error) = self.totals.sync(&self.engine)
        {
            self.engine.health().observe("statfs sync", error);
        }
    }

    /// Gives back `count` knowledges of an inode. The last one of an unlinked, closed inode deallocates it.
    pub fn forget(&self, ino: BlockAddr, count: u64) {
        self.engine.inodes.forget(ino, count);
        self.settle();
    }

    /// Figures of the filesystem.
    ///
    /// # Errors
    /// Corruption; I/O and lock errors.
    pub fn statfs(&self) -> FsResult<StatFs> {
        let figures = if self.engine.options.statfs_quantum.is_zero() {
            let (total, free, dinodes) = self.run("statfs", |engine| engine.rgrps.totals())?;
            Figures { total, free, dinodes }
        } else {
            self.totals.figures(&self.engine)
        };
        Ok(StatFs {
            bsize: self.engine.geometry().bsize(),
            blocks: figures.total,
            free: figures.free,
            files: figures.dinodes.saturating_add(figures.free),
            files_free: figures.free,
        })
    }

    /// Makes everything durable (`sync`, `syncfs`).
    ///
    /// # Errors
    /// I/O errors.
    pub fn sync(&self) -> FsResult<()> {
        self.run("sync", |engine| {
            let Some(journal) = engine.journal.as_ref().filter(|_| !engine.is_read_only()) else {
                return Ok(());
            };
            // The data first: the log then need not wait for it. An error of it does not keep the rest from being
            // synced.
            let data = engine.cache.data().write_all();
            journal.sync()?;
            data
        })
    }

    /// Folds this node's statfs changes into the master; called every `statfs_quantum`.
    ///
    /// # Errors
    /// EROFS; corruption; I/O and lock errors.
    pub fn sync_statfs(&self) -> FsResult<()> {
        self.run("statfs sync", |engine| self.totals.sync(engine))
    }

    /// Deallocates inodes that a dead node, or we before a crash, left unlinked. Gives their number. For mount, after
    /// recovery, on a thread of its own if it likes.
    ///
    /// # Errors
    /// EROFS; corruption; I/O and lock errors.
    pub fn reclaim_orphans(&self) -> FsResult<u64> {
        self.run("reclaim orphans", |engine| reclaim_orphans(engine, u64::MAX))
    }

    /// What the caches take in memory.
    #[must_use]
    pub fn memory(&self) -> MemoryUse {
        self.engine.memory()
    }

    /// Gives each cache the limit that a budget of so many bytes leaves it, and has `alarm` called when there are so
    /// many inodes that the budget may be reached: then, and from time to time, [`Fs::relieve`] is due. For the start.
    pub fn set_memory(&self, budget: usize, alarm: Box<dyn Fn() + Send + Sync>) {
        self.engine.inodes.on_alarm(alarm);
        self.engine.set_memory(budget);
    }

    /// Cuts the caches to the budget: on a thread that holds no lock and serves no request.
    pub fn relieve(&self, relief: &mut Relief, prune: Prune<'_>) {
        self.engine.relieve(relief, prune);
    }

    /// Ends it: forgets and evicts every inode, syncs statfs, leaves the journal clean. Every verb after it fails.
    /// After a withdraw nothing is written.
    ///
    /// # Errors
    /// I/O errors; everything that can be done was done nevertheless.
    pub fn shutdown(&self) -> FsResult<()> {
        self.handles.clear();
        self.root_ref.lock().take();
        self.engine.inodes.forget_all();
        let mut result = run_evictions(&self.engine).map(|_| ());
        self.flusher.lock().take();
        let journal = self
            .engine
            .journal
            .as_ref()
            .filter(|_| !self.engine.is_read_only());
        if let Some(journal) = journal.filter(|_| !self.engine.health().is_withdrawn()) {
            result = result.and(self.engine.cache.data().write_all());
            result = result.and(self.totals.sync(&self.engine));
            result = result.and(journal.stop(StopReason::Shutdown));
        }
        result.map_err(|error| self.engine.health().observe("shutdown", error))
    }
}

/// Calls what changes something, and again when it found no space and evictions were under way.
fn with_space<T>(engine: &Engine, call: impl Fn(&Engine) -> FsResult<T>) -> FsResult<T> {
    engine.check_writable()?;
    let is_full = |result: &FsResult<T>| matches!(result, Err(error) if error.errno() == Errno::ENOSPC);
    // Looked at before the call: an eviction that ends while it runs may be what it lacks.
    let mut seen = engine.inodes.evictions_ended();
    let mut result = call(engine);
    if !is_full(&result) {
        return result;
    }
    if let Err(error) = Interrupt::shield(|| run_evictions(engine)) {
        tracing::debug!("evictions for want of space: {error}");
    }
    engine.inodes.wait_evictions(EVICTION_WAIT);
    // What was unlinked a moment ago has gone for whoever did it, but not yet for us.
    while is_full(&result) && engine.inodes.wait_forgotten(seen, FORGET_WAIT) {
        seen = engine.inodes.evictions_ended();
        result = call(engine);
    }
    // Inodes that nobody knows of any more have space, too; each round makes them fewer.
    while is_full(&result) && reclaim_some(engine) > 0 {
        result = call(engine);
    }
    result
}

/// Deallocates a few inodes that a crash left unlinked; what is wrong with them is not the caller's error.
fn reclaim_some(engine: &Engine) -> u64 {
    match Interrupt::shield(|| reclaim_orphans(engine, ORPHANS_AT_ONCE)) {
        Ok(count) => count,
        Err(error) => {
            let error = engine.health().observe("reclaim orphans", error);
            tracing::warn!("looking for unlinked inodes: {error}");
            0
        }
    }
}

/// The formal number of an inode known by its address only: the superblock's copy is not kept by everybody.
fn read_number(engine: &Engine, addr: BlockAddr) -> FsResult<InodeNum> {
    use crate::glock::{HolderFlags, State};
    let guard = engine
        .inode_glock(addr)?
        .acquire(State::Sh, HolderFlags::empty())?;
    let block = engine.cache.read(&guard, addr)?;
    let dinode = Dinode::decode(&block, addr, engine.geometry())?;
    if !dinode.is_dir() {
        return Err(FsError::Inconsistent(format!(
            "inode {addr}: the root is no directory"
        )));
    }
    Ok(dinode.inode_num())
}
