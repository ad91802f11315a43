//! File data that is newer than the device: the write-behind cache of everything that is not journaled.
//!
//! Invariants: a block is here at most once, under the inode glock that protects it, and whoever reads file data looks
//! here first; an entry leaves when the device has these very contents, or when its block was freed, overwritten past
//! this cache, or cannot be written; one batch of writes is under way at a time (and long runs that have no block with it
//! in common), so that two versions of a block never race to the device; a freed block's entry is gone before the commit that frees it can become durable, and a write
//! of it that was under way has ended by then ([`DataCache::wait_writes`]). What must reach the device before which
//! commit (`data=ordered`) is the journal's business: it knows owners, this module writes them. Must not know: log
//! positions, files, sizes.

mod flights;
mod flusher;
mod spare;
mod write_back;

use super::buffers::lock;
use crate::error::{Errno, FsError, FsResult};
use crate::glock::GlockName;
use crate::hash::QuickMap;
use crate::health::Health;
use gfs2_format::device::{AlignedBuf, BlockDevice};
use gfs2_format::{Block, BlockAddr, Extent, Geometry};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use flights::Flights;
pub(crate) use flights::RUN_BYTES;
pub use flusher::DataFlusher;
use spare::Spare;
pub(crate) use write_back::Batch;

/// Bytes of dirty data, at most (but for what operations under way add), unless set otherwise.
pub const DIRTY_BYTES: usize = 64 << 20;
/// Age at which dirty data is written in the background.
pub const DIRTY_AGE: Duration = Duration::from_secs(30);
/// What a dirty block takes beside its contents.
const DIRTY_OVERHEAD: usize = 96;
/// Inodes whose write-back errors are remembered after somebody has been told.
const FAILURES_KEPT: usize = 4096;

/// A block that is newer than the device.
#[derive(Debug)]
struct Dirty {
    block: Block,
    /// The change that made the contents.
    stamp: u64,
    /// The change since which the device is behind.
    born: u64,
}

/// The dirty blocks of one glock.
#[derive(Debug)]
struct Owned {
    blocks: BTreeMap<BlockAddr, Dirty>,
    since: Instant,
    /// Which entry of [`State::queue`] speaks of this life of it.
    epoch: u64,
}

/// Write-back of an inode's data has failed.
#[derive(Clone, Copy, Debug)]
struct Failure {
    seq: u64,
    /// Somebody was told.
    seen: bool,
}

#[derive(Debug, Default)]
struct State {
    owners: QuickMap<GlockName, Owned>,
    /// Owners in the order in which they became dirty; stale entries have another epoch.
    queue: VecDeque<(GlockName, u64)>,
    /// Counts changes.
    stamp: u64,
    failures: QuickMap<GlockName, Failure>,
    failure_seq: u64,
    /// The flusher has something to do.
    work: bool,
    stop: bool,
}

/// Figures of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DataStats {
    /// Blocks that are newer than the device.
    pub dirty_blocks: usize,
    /// Blocks written so far.
    pub blocks_written: u64,
    /// Device writes these took.
    pub writes: u64,
}

/// All dirty file data of this node.
pub struct DataCache {
    device: Arc<dyn BlockDevice>,
    geometry: Geometry,
    health: Arc<Health>,
    state: Mutex<State>,
    /// Held by the one batch of writes, with the memory in which neighbours are put together. Taken before `state`.
    writing: Mutex<AlignedBuf>,
    /// Told when the flusher has something to do.
    wake: Condvar,
    dirty: AtomicUsize,
    limit_blocks: AtomicUsize,
    written: AtomicU64,
    writes: AtomicU64,
    spare: Spare,
    flights: Flights,
}

impl fmt::Debug for DataCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataCache")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl DataCache {
    /// An empty cache over `device`.
    pub(super) fn new(device: Arc<dyn BlockDevice>, geometry: Geometry, health: Arc<Health>) -> Self {
        let cache = Self {
            device,
            geometry,
            health,
            state: Mutex::default(),
            writing: Mutex::new(AlignedBuf::zeroed(0)),
            wake: Condvar::new(),
            dirty: AtomicUsize::new(0),
            limit_blocks: AtomicUsize::new(0),
            written: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            spare: Spare::default(),
            flights: Flights::default(),
        };
        cache.set_limit(DIRTY_BYTES);
        cache
    }

    /// Sets the bytes of dirty data at which writers have to wait for the device; a quarter of it starts write-back.
    pub fn set_limit(&self, bytes: usize) {
        let blocks = (bytes / self.geometry.block_len()).max(1);
        self.limit_blocks.store(blocks, Ordering::Relaxed);
        self.spare.set_limit(bytes / 4);
    }

    /// Bytes of dirty data, of runs on their way past this cache, and of memory kept for more of both.
    #[must_use]
    pub fn usage(&self) -> usize {
        let dirty = self.dirty.load(Ordering::Relaxed);
        dirty * (self.geometry.block_len() + DIRTY_OVERHEAD) + self.spare.bytes() + self.flights.bytes()
    }

    /// Figures.
    #[must_use]
    pub fn stats(&self) -> DataStats {
        DataStats {
            dirty_blocks: self.dirty.load(Ordering::Relaxed),
            blocks_written: self.written.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
        }
    }

    fn limit(&self) -> usize {
        self.limit_blocks.load(Ordering::Relaxed)
    }

    fn background(&self) -> usize {
        self.limit() / 4
    }

    /// A block with these contents, to be put here.
    pub(crate) fn block_of(&self, bytes: &[u8]) -> Block {
        self.spare.filled(bytes)
    }

    /// Nothing newer than the device, of anybody?
    pub(crate) fn is_clean(&self) -> bool {
        // Whoever asks holds a glock; what that protects was counted before he got it.
        self.dirty.load(Ordering::Acquire) == 0 && self.flights.is_empty()
    }

    /// Puts contents in place of whatever the device or this cache has of the blocks.
    pub(crate) fn put(&self, owner: GlockName, blocks: impl IntoIterator<Item = (BlockAddr, Block)>) {
        let mut state = lock(&self.state);
        state.stamp += 1;
        let stamp = state.stamp;
        let State { owners, queue, .. } = &mut *state;
        let owned = owners.entry(owner).or_insert_with(|| {
            queue.push_back((owner, stamp));
            Owned {
                blocks: BTreeMap::new(),
                since: Instant::now(),
                epoch: stamp,
            }
        });
        let mut added = 0;
        for (addr, block) in blocks {
            match owned.blocks.entry(addr) {
                Entry::Occupied(mut entry) => {
                    let dirty = entry.get_mut();
                    dirty.block = block;
                    dirty.stamp = stamp;
                }
                Entry::Vacant(entry) => {
                    entry.insert(Dirty {
                        block,
                        stamp,
                        born: stamp,
                    });
                    added += 1;
                }
            }
        }
        if owned.blocks.is_empty() {
            owners.remove(&owner);
        }
        let dirty = self.dirty.fetch_add(added, Ordering::Release) + added;
        let wakes = dirty > self.background() && !std::mem::replace(&mut state.work, true);
        drop(state);
        if wakes {
            self.wake.notify_all();
        }
    }

    /// The newest contents of a block, when the device is behind.
    pub(crate) fn get(&self, owner: GlockName, addr: BlockAddr) -> Option<Block> {
        if self.is_clean() {
            return None;
        }
        self.land(owner, Extent { start: addr, len: 1 });
        let state = lock(&self.state);
        let dirty = state.owners.get(&owner)?.blocks.get(&addr)?;
        Some(dirty.block.clone())
    }

    /// The blocks of `extent` of which the device is behind, in order.
    pub(crate) fn range(&self, owner: GlockName, extent: Extent) -> Vec<(BlockAddr, Block)> {
        if self.is_clean() {
            return Vec::new();
        }
        self.land(owner, extent);
        let end = BlockAddr::new(extent.start.get().saturating_add(u64::from(extent.len)));
        let state = lock(&self.state);
        let Some(owned) = state.owners.get(&owner) else {
            return Vec::new();
        };
        let range = owned.blocks.range(extent.start..end);
        range.map(|(addr, dirty)| (*addr, dirty.block.clone())).collect()
    }

    /// Has this owner anything the device has not?
    pub(crate) fn has_dirty(&self, owner: GlockName) -> bool {
        !self.is_clean() && (lock(&self.state).owners.contains_key(&owner) || self.flights.has(owner))
    }

    /// Forgets blocks without writing them: they were freed. A write of one of them may be under way.
    pub(crate) fn forget(&self, owner: GlockName, extents: &[Extent]) {
        if self.is_clean() {
            return;
        }
        let mut state = lock(&self.state);
        for extent in extents {
            self.remove_range(&mut state, owner, *extent);
        }
    }

    /// Forgets blocks that are about to be written past this cache; when this returns no older write of them is under
    /// way and none begins.
    pub(crate) fn supersede(&self, owner: GlockName, extent: Extent) {
        if self.is_clean() {
            return;
        }
        let removed = {
            let mut state = lock(&self.state);
            self.remove_range(&mut state, owner, extent)
        };
        // An entry stays while it is written: without one nothing can be under way.
        if removed {
            drop(lock(&self.writing));
        }
        self.land(owner, extent);
    }

    fn remove_range(&self, state: &mut State, owner: GlockName, extent: Extent) -> bool {
        let Some(owned) = state.owners.get_mut(&owner) else {
            return false;
        };
        let end = BlockAddr::new(extent.start.get().saturating_add(u64::from(extent.len)));
        let found: Vec<BlockAddr> = owned
            .blocks
            .range(extent.start..end)
            .map(|(addr, _)| *addr)
            .collect();
        for addr in &found {
            owned.blocks.remove(addr);
        }
        if owned.blocks.is_empty() {
            state.owners.remove(&owner);
        }
        self.dirty.fetch_sub(found.len(), Ordering::Release);
        !found.is_empty()
    }

    /// Waits for the writes that are under way.
    pub(crate) fn wait_writes(&self) {
        drop(lock(&self.writing));
        self.flights.wait_all();
    }

    /// The glock is being given up. What it protected must have been written.
    ///
    /// # Errors
    /// [`FsError::Inconsistent`] when it has not.
    pub(crate) fn check_clean(&self, owner: GlockName) -> FsResult<()> {
        if !self.has_dirty(owner) {
            return Ok(());
        }
        Err(FsError::Inconsistent(format!(
            "file data of glock {owner} is not on the device, the glock cannot be given up"
        )))
    }

    /// Where an opener of the file stands among its write-back errors: one that nobody was told of is still to come.
    pub(crate) fn failure_mark(&self, owner: GlockName) -> u64 {
        let state = lock(&self.state);
        match state.failures.get(&owner) {
            Some(failure) if failure.seen => failure.seq,
            _ => 0,
        }
    }

    /// Tells of a write-back error since `mark`, once.
    ///
    /// # Errors
    /// EIO.
    pub(crate) fn check_failure(&self, owner: GlockName, mark: &AtomicU64) -> FsResult<()> {
        let mut state = lock(&self.state);
        let Some(failure) = state.failures.get_mut(&owner) else {
            return Ok(());
        };
        if mark.fetch_max(failure.seq, Ordering::Relaxed) >= failure.seq {
            return Ok(());
        }
        failure.seen = true;
        Err(Errno::EIO.into())
    }

    fn note_failure(&self, state: &mut State, owner: GlockName) {
        state.failure_seq += 1;
        let seq = state.failure_seq;
        if state.failures.len() >= FAILURES_KEPT {
            state.failures.retain(|_, failure| !failure.seen);
        }
        state.failures.insert(owner, Failure { seq, seen: false });
    }
}

#[cfg(test)]
mod tests;
