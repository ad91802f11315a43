//! One resource group in memory: which blocks may be allocated, and who is at it.
//!
//! Invariants: [`Core`] says something about the disk only while the group's glock is held (it is dropped when the
//! glock is given up); a block freed by a commit that is not durable is free on disk and not in [`Core::map`]; the
//! local lock is held from the first allocation of an operation to its commit, so that two operations of this node
//! never edit the same bitmap block at once.

use super::freemap::FreeMap;
use super::windows::Windows;
use crate::error::FsResult;
use crate::txn::CommitSeq;
use gfs2_format::bitmap::RgrpLayout;
use gfs2_format::ondisk::{BlockState, RgFlags, Rgrp};
use gfs2_format::{BlockAddr, BlockRead, Extent};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Free blocks of a group nobody has looked at.
const UNKNOWN: u32 = u32::MAX;

/// A run of blocks, counted from the group's first data block.
pub(super) type Run = (u32, u32);

/// What is known of a group while its glock is held.
#[derive(Debug, Default)]
pub(super) struct Core {
    /// The bitmaps have been read.
    pub(super) loaded: bool,
    /// Blocks that may be allocated now.
    pub(super) map: FreeMap,
    /// Which of them are kept for growing files.
    windows: Windows,
    /// Freed by commits that are not durable yet, oldest first.
    pending: VecDeque<(CommitSeq, Vec<Run>)>,
    /// Where the last allocation ended.
    pub(super) last: u32,
    /// Dinodes without links.
    pub(super) unlinked: u32,
    /// NOALLOC is set.
    pub(super) noalloc: bool,
}

impl Core {
    /// Makes blocks allocatable.
    fn insert(&mut self, run: Run) {
        self.map.insert(run.0, run.1);
        self.windows.insert(run);
    }

    /// A run of up to `want` blocks near `goal`, for a file that goes on growing or for anything else.
    pub(super) fn find(&mut self, file: Option<u64>, goal: u32, want: u32) -> Option<Run> {
        self.windows.find(&self.map, file, goal, want)
    }

    /// Takes a run that [`Core::find`] gave.
    pub(super) fn take(&mut self, file: Option<u64>, run: Run) {
        self.map.remove(run.0, run.1);
        self.windows.taken(&self.map, file, run);
        self.last = run.0.saturating_add(run.1);
    }

    /// Makes what was freed by durable commits allocatable.
    fn release(&mut self, durable: CommitSeq) {
        while self.pending.front().is_some_and(|(seq, _)| *seq <= durable) {
            for run in self.pending.pop_front().map(|(_, runs)| runs).unwrap_or_default() {
                self.insert(run);
            }
        }
    }
}

/// A resource group.
#[derive(Debug)]
pub(crate) struct Group {
    layout: RgrpLayout,
    core: Mutex<Core>,
    /// The local lock: is somebody between his first allocation and his commit?
    busy: Mutex<bool>,
    idle: Condvar,
    /// Allocatable blocks when last seen.
    free_hint: AtomicU32,
    /// Somebody wanted blocks of it since memory was last looked for.
    used: AtomicBool,
    /// There may be dinodes without links that nobody has (the kernel's GFS2_RDF_CHECK).
    check: AtomicBool,
}

impl Group {
    pub(super) fn new(layout: RgrpLayout) -> Self {
        Self {
            layout,
            core: Mutex::default(),
            busy: Mutex::new(false),
            idle: Condvar::new(),
            free_hint: AtomicU32::new(UNKNOWN),
            used: AtomicBool::new(false),
            check: AtomicBool::new(true),
        }
    }

    /// Bytes that what is known of it takes, beside the group itself.
    pub(super) fn bytes(&self) -> usize {
        let core = self.core();
        core.map.bytes() + core.windows.bytes()
    }

    /// Forgets the map, for the sake of memory, when nobody is at it, nobody was since the last call, and the bitmap on
    /// disk says the same. Gives the bytes that are free now.
    pub(super) fn unload(&self, durable: CommitSeq) -> usize {
        if self.used.swap(false, Ordering::Relaxed) || !self.lock_local(false) {
            return 0;
        }
        let bytes = {
            let mut core = self.core();
            core.release(durable);
            // What was freed and is not durable is free in the bitmap, and may not be taken.
            if core.loaded && core.pending.is_empty() {
                let old = std::mem::take(&mut *core);
                core.last = old.last;
                old.map.bytes() + old.windows.bytes()
            } else {
                0
            }
        };
        self.unlock_local();
        bytes
    }

    /// May it have dinodes without links that nobody has?
    pub(super) fn needs_check(&self) -> bool {
        self.check.load(Ordering::Relaxed)
    }

    /// There may be some again.
    pub(super) fn recheck(&self) {
        self.check.store(true, Ordering::Relaxed);
    }

    /// What was looked for is not there.
    pub(super) fn checked(&self) {
        self.check.store(false, Ordering::Relaxed);
    }

    /// Where it is.
    pub(crate) fn layout(&self) -> &RgrpLayout {
        &self.layout
    }

    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock()
    }

    /// Allocatable blocks when last seen; `None` when nobody has looked since the glock came.
    pub(super) fn free_hint(&self) -> Option<u32> {
        Some(self.free_hint.load(Ordering::Relaxed)).filter(|free| *free != UNKNOWN)
    }

    fn set_hint(&self, core: &Core) {
        let free = if core.noalloc { 0 } else { core.map.free() };
        self.free_hint.store(free, Ordering::Relaxed);
    }

    /// The glock is being given up: nothing is known any more. The log has been flushed, so nothing is pending.
    pub(super) fn forget(&self) {
        *self.core() = Core::default();
        self.free_hint.store(UNKNOWN, Ordering::Relaxed);
        self.recheck();
    }

    /// Reads header and bitmaps, unless that has been done since the glock came; then lets go of what has become
    /// durable. True: they had to be read.
    pub(super) fn load<R: BlockRead + ?Sized>(&self, reader: &R, durable: CommitSeq) -> FsResult<bool> {
        let mut core = self.core();
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        let fresh = !core.loaded;
        if fresh {
            let last = core.last;
            let read = self.read(reader)?;
            *core = Core { last, ..read };
        }
        core.release(durable);
        self.set_hint(&core);
        Ok(fresh)
    }

    fn read<R: BlockRead + ?Sized>(&self, reader: &R) -> FsResult<Core> {
        let mut core = Core {
            map: FreeMap::new(self.layout.data()),
            windows: Windows::new(self.layout.data()),
            ..Core::default()
        };
        let blocks: Vec<BlockAddr> = self.layout.slices().map(|slice| slice.block).collect();
        reader.read_ahead(&blocks);
        for slice in self.layout.slices() {
            let block = reader.read(slice.block)?;
            slice.check_block(&block)?;
            if slice.index == 0 {
                let header = self.layout.check_header(&block)?;
                let flags = RgFlags::from_bits_retain(header.flags.get());
                core.noalloc = flags.contains(RgFlags::NOALLOC);
            }
            let mut from = slice.first;
            while let Some(run) = slice.find_free(&block, from, 1, u32::MAX)? {
                core.insert((self.position(run.start), run.len));
                from = BlockAddr::new(run.start.get().saturating_add(u64::from(run.len)));
            }
            let [_, _, unlinked, _] = slice.count(&block)?;
            core.unlinked += unlinked;
        }
        core.loaded = true;
        Ok(core)
    }

    /// Position of a data block of this group.
    pub(super) fn position(&self, block: BlockAddr) -> u32 {
        u32::try_from(block.get().saturating_sub(self.layout.data0().get())).unwrap_or(u32::MAX)
    }

    /// The run as block addresses.
    pub(super) fn extent(&self, (start, len): Run) -> Extent {
        let first = self.layout.data0().get().saturating_add(u64::from(start));
        Extent {
            start: BlockAddr::new(first),
            len,
        }
    }

    /// The operation that took and freed these runs has committed.
    pub(super) fn committed(&self, seq: CommitSeq, freed: Vec<Run>) {
        let mut core = self.core();
        if !freed.is_empty() {
            core.pending.push_back((seq, freed));
        }
        self.set_hint(&core);
    }

    /// The operation that took these runs was rolled back.
    pub(super) fn rolled_back(&self, taken: &[Run]) {
        let mut core = self.core();
        for run in taken {
            core.insert(*run);
        }
        self.set_hint(&core);
    }

    /// A file does not grow here any more.
    pub(super) fn close_window(&self, file: u64) {
        let mut core = self.core();
        let Core { map, windows, .. } = &mut *core;
        windows.close(map, file);
    }

    /// Takes the local lock; without waiting unless `wait`.
    pub(super) fn lock_local(&self, wait: bool) -> bool {
        let mut busy = self.busy.lock();
        while *busy {
            if !wait {
                return false;
            }
            self.idle.wait(&mut busy);
        }
        *busy = true;
        true
    }

    /// Has somebody the local lock?
    pub(super) fn is_busy(&self) -> bool {
        *self.busy.lock()
    }

    pub(super) fn unlock_local(&self) {
        *self.busy.lock() = false;
        self.idle.notify_one();
    }

    /// The header as read; for figures under a shared lock.
    pub(super) fn header<R: BlockRead + ?Sized>(&self, reader: &R) -> FsResult<Rgrp> {
        let block = reader.read(self.layout.addr())?;
        Ok(*self.layout.check_header(&block)?)
    }

    /// State of one of the group's data blocks on disk.
    pub(super) fn state<R: BlockRead + ?Sized>(
        &self,
        reader: &R,
        block: BlockAddr,
    ) -> FsResult<Option<BlockState>> {
        let Some(slice) = self.layout.locate(block) else {
            return Ok(None);
        };
        let bytes = reader.read(slice.block)?;
        slice.check_block(&bytes)?;
        Ok(Some(slice.state(&bytes, block)?))
    }

    /// The dinodes in a range, as far as the part of the bitmap that `block` is in knows.
    pub(super) fn dinodes_in<R: BlockRead + ?Sized>(
        &self,
        reader: &R,
        range: Range<BlockAddr>,
        block: BlockAddr,
    ) -> FsResult<Vec<BlockAddr>> {
        let Some(slice) = self.layout.locate(block) else {
            return Ok(Vec::new());
        };
        let bytes = reader.read(slice.block)?;
        slice.check_block(&bytes)?;
        let mut found = Vec::new();
        let mut from = range.start.max(slice.first);
        while let Some(next) = slice.find_state(&bytes, from, BlockState::Dinode)?
            && next < range.end
        {
            found.push(next);
            from = BlockAddr::new(next.get().saturating_add(1));
        }
        Ok(found)
    }

    /// All dinodes without links.
    pub(super) fn unlinked<R: BlockRead + ?Sized>(&self, reader: &R) -> FsResult<Vec<BlockAddr>> {
        let mut found = Vec::new();
        for slice in self.layout.slices() {
            let bytes = reader.read(slice.block)?;
            slice.check_block(&bytes)?;
            let mut from = slice.first;
            while let Some(block) = slice.find_state(&bytes, from, BlockState::Unlinked)? {
                found.push(block);
                from = BlockAddr::new(block.get().saturating_add(1));
            }
        }
        Ok(found)
    }
}
