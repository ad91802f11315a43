//! The cache itself: shards, device reads, and the faces of readers and of the journal.

use super::data::DataCache;
use super::proof::LockProof;
use super::shard::{Shard, Slot};
use crate::error::{FsError, FsResult};
use crate::glock::GlockName;
use crate::health::Health;
use gfs2_format::device::{AlignedBuf, BlockDevice, ReadRequest};
use gfs2_format::{Block, BlockAddr, Error, Expected, Geometry};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

const SHARDS: usize = 64;
/// What a buffer takes beside its contents: its entries in map, clock and owner's list (of one block, mostly).
const BUFFER_OVERHEAD: usize = 320;
/// Smallest number of buffers per shard, whatever the budget.
const SHARD_BUFFERS_MIN: usize = 8;
/// Blocks read ahead in one batch.
const READ_AHEAD_BATCH: usize = 128;
/// Blocks between two wanted ones that are read rather than left out.
const READ_ALONG: u64 = 4;

/// Largest buffer that is kept for the next batch, in bytes.
const SPARE_MAX: usize = 1 << 20;

/// Locks a mutex of this driver. A thread that panicked with it locked may have left half a change behind: nobody
/// may go on with that.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("a thread panicked while it held this mutex")
}

#[derive(Default)]
struct Lane {
    shard: Mutex<Shard>,
    /// Told when a load ends, if somebody waits for one.
    loaded: Condvar,
}

impl Lane {
    /// Waits until something here has been loaded.
    fn wait<'a>(&self, mut shard: MutexGuard<'a, Shard>) -> MutexGuard<'a, Shard> {
        shard.waiters += 1;
        let mut shard = self.loaded.wait(shard).expect("a thread panicked in the cache");
        shard.waiters -= 1;
        shard
    }

    /// Unlocks; what was being loaded may be there, or never come. Telling nobody costs a system call, too.
    fn tell(&self, shard: MutexGuard<'_, Shard>) {
        let waiters = shard.waiters;
        drop(shard);
        if waiters > 0 {
            self.loaded.notify_all();
        }
    }
}

/// Figures of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CacheStats {
    /// Buffers held.
    pub buffers: usize,
    /// Of these, pinned.
    pub pinned: usize,
    /// Blocks read from the device so far.
    pub blocks_read: u64,
}

/// All metadata blocks this node knows.
pub struct BufferCache {
    device: Arc<dyn BlockDevice>,
    geometry: Geometry,
    health: Arc<Health>,
    lanes: Vec<Lane>,
    lane_limit: AtomicUsize,
    blocks_read: AtomicU64,
    /// What the last batch was read into.
    spare: Mutex<AlignedBuf>,
    data: DataCache,
}

impl fmt::Debug for BufferCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferCache")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl BufferCache {
    /// An empty cache over `device` that holds about `budget_bytes` of unpinned blocks.
    #[must_use]
    pub fn new(
        device: Arc<dyn BlockDevice>,
        geometry: Geometry,
        health: Arc<Health>,
        budget_bytes: usize,
    ) -> Self {
        let cache = Self {
            data: DataCache::new(Arc::clone(&device), geometry.clone(), Arc::clone(&health)),
            device,
            geometry,
            health,
            lanes: std::iter::repeat_with(Lane::default).take(SHARDS).collect(),
            lane_limit: AtomicUsize::new(0),
            blocks_read: AtomicU64::new(0),
            spare: Mutex::new(AlignedBuf::zeroed(0)),
        };
        cache.set_limit(budget_bytes);
        cache
    }

    /// Sets about how many bytes of unpinned blocks are held.
    pub fn set_limit(&self, bytes: usize) {
        self.lane_limit.store(self.per_lane(bytes), Ordering::Relaxed);
    }

    fn per_lane(&self, bytes: usize) -> usize {
        (bytes / (self.geometry.block_len() + BUFFER_OVERHEAD) / SHARDS).max(SHARD_BUFFERS_MIN)
    }

    fn lane_limit(&self) -> usize {
        self.lane_limit.load(Ordering::Relaxed)
    }

    /// Buffers held, and the bytes they take.
    #[must_use]
    pub fn usage(&self) -> (usize, usize) {
        let buffers = self.lanes.iter().map(|lane| lock(&lane.shard).ready()).sum();
        (buffers, buffers * (self.geometry.block_len() + BUFFER_OVERHEAD))
    }

    /// Evicts blocks that nobody needs to be kept, the least used first, until about `bytes` are held.
    pub fn shrink_to(&self, bytes: usize) {
        let limit = self.per_lane(bytes);
        for lane in &self.lanes {
            lock(&lane.shard).shrink(limit);
        }
    }

    /// The volume's geometry.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The device below.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// The file data that is newer than the device.
    #[must_use]
    pub fn data(&self) -> &DataCache {
        &self.data
    }

    /// The withdraw latch.
    #[must_use]
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Figures, for dumps and tests; walks the whole cache.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let mut stats = CacheStats {
            blocks_read: self.blocks_read.load(Ordering::Relaxed),
            ..CacheStats::default()
        };
        for lane in &self.lanes {
            let shard = lock(&lane.shard);
            stats.buffers += shard.ready();
            stats.pinned += shard.pinned();
        }
        stats
    }

    fn lane(&self, addr: BlockAddr) -> &Lane {
        // Fibonacci hashing: neighbours go to different lanes.
        let hash = addr.get().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58;
        &self.lanes[hash as usize % SHARDS]
    }

    /// The newest committed contents of a block that `owner` protects: from memory, else from the device. Concurrent
    /// readers of a missing block share one device read.
    ///
    /// # Errors
    /// I/O errors; EIO after a withdraw; [`FsError::Inconsistent`] when the block is pinned under another glock.
    pub fn read(&self, owner: &dyn LockProof, addr: BlockAddr) -> FsResult<Block> {
        self.read_versioned(owner.name(), addr).map(|(block, _)| block)
    }

    /// [`BufferCache::read`], with the number of the change that made the contents.
    pub(crate) fn read_versioned(&self, owner: GlockName, addr: BlockAddr) -> FsResult<(Block, u64)> {
        self.health.check()?;
        let lane = self.lane(addr);
        let mut shard = lock(&lane.shard);
        loop {
            match shard.get_mut(addr) {
                Some(Slot::Ready(buffer)) if buffer.owner == owner => return Ok(Shard::touch(buffer)),
                Some(Slot::Ready(buffer)) if buffer.pins > 0 => {
                    return Err(two_owners(addr, buffer.owner, owner));
                }
                Some(Slot::Loading { .. }) => {
                    shard = lane.wait(shard);
                }
                // Not here, or left over from the block's last life under another owner.
                _ => break,
            }
        }
        let ticket = shard.start_loading(addr, owner);
        drop(shard);
        let result = self.read_device(addr);
        let mut shard = lock(&lane.shard);
        let own = shard.end_loading(addr, ticket, result.as_ref().ok(), self.lane_limit());
        let newer = match shard.buffer_mut(addr) {
            Some(buffer) if !own && buffer.owner == owner => Some(Shard::touch(buffer)),
            _ => None,
        };
        lane.tell(shard);
        newer.map_or_else(|| result.map(|block| (block, 0)), Ok)
    }

    fn check_address(&self, addr: BlockAddr) -> FsResult<()> {
        if addr.get() < self.geometry.end() {
            return Ok(());
        }
        let expected = Expected::Range(0, self.geometry.end().saturating_sub(1));
        Err(Error::corrupt(addr, "block", "address", addr.get(), expected).into())
    }

    fn read_device(&self, addr: BlockAddr) -> FsResult<Block> {
        self.check_address(addr)?;
        let mut block = Block::zeroed(self.geometry.block_len());
        self.device
            .read_at(self.geometry.byte_offset(addr), block.make_mut())?;
        self.blocks_read.fetch_add(1, Ordering::Relaxed);
        Ok(block)
    }

    /// Reads the missing ones of `blocks`, which `owner` protects, in few device requests. Only a hint: errors show
    /// when somebody reads the block.
    pub fn read_ahead(&self, owner: &dyn LockProof, blocks: &[BlockAddr]) {
        let wanted = blocks.iter().map(|addr| (*addr, owner.name())).collect();
        self.read_ahead_of(wanted);
    }

    /// [`BufferCache::read_ahead`] of blocks of several owners, whose glocks are all held.
    pub(crate) fn read_ahead_of(&self, mut wanted: Vec<(BlockAddr, GlockName)>) {
        let mut missing: Vec<(BlockAddr, u64)> = Vec::new();
        wanted.sort_unstable();
        wanted.dedup_by_key(|(addr, _)| *addr);
        for (addr, owner) in wanted {
            if self.check_address(addr).is_err() || self.health.is_withdrawn() {
                continue;
            }
            let mut shard = lock(&self.lane(addr).shard);
            if shard.get_mut(addr).is_none() {
                missing.push((addr, shard.start_loading(addr, owner)));
            }
        }
        for batch in missing.chunks(READ_AHEAD_BATCH) {
            self.load_batch(batch);
        }
    }

    /// Reads blocks whose load has been started; sorted by address. What lies between near neighbours is read along:
    /// that costs less than another request.
    fn load_batch(&self, batch: &[(BlockAddr, u64)]) {
        let len = self.geometry.block_len();
        let near = |a: &(BlockAddr, u64), b: &(BlockAddr, u64)| b.0.get() - a.0.get() <= READ_ALONG + 1;
        // Of a run: its first block, and the bytes from there to the end of its last one.
        let span = |run: &[(BlockAddr, u64)]| {
            let (first, last) = (run[0].0, run[run.len() - 1].0);
            (first, (last.get() - first.get() + 1) as usize * len)
        };
        let total = batch.chunk_by(near).map(|run| span(run).1).sum();
        // Fresh memory would cost as much as the reading of it.
        let mut bytes = std::mem::replace(&mut *lock(&self.spare), AlignedBuf::zeroed(0));
        if bytes.len() < total {
            bytes = AlignedBuf::zeroed(total);
        }
        let mut requests: Vec<ReadRequest<'_>> = Vec::new();
        let mut rest = &mut bytes[..];
        for run in batch.chunk_by(near) {
            let (first, span) = span(run);
            let (part, tail) = rest.split_at_mut(span);
            rest = tail;
            requests.push(ReadRequest {
                offset: self.geometry.byte_offset(first),
                buf: part,
            });
        }
        let good = match requests.as_mut_slice() {
            [one] => self.device.read_at(one.offset, one.buf).is_ok(),
            many => self.device.read_batch(many).is_ok(),
        };
        drop(requests);
        let mut start = 0;
        for run in batch.chunk_by(near) {
            let (first, span) = span(run);
            for (addr, ticket) in run {
                let at = start + (addr.get() - first.get()) as usize * len;
                let block = good.then(|| Block::from(&bytes[at..at + len]));
                let lane = self.lane(*addr);
                let mut shard = lock(&lane.shard);
                shard.end_loading(*addr, *ticket, block.as_ref(), self.lane_limit());
                lane.tell(shard);
            }
            start += span;
        }
        if good {
            self.blocks_read.fetch_add(batch.len() as u64, Ordering::Relaxed);
        }
        if bytes.len() <= SPARE_MAX {
            *lock(&self.spare) = bytes;
        }
    }

    /// Is the newest contents of this block in memory?
    pub(crate) fn holds(&self, owner: GlockName, addr: BlockAddr) -> bool {
        let mut shard = lock(&self.lane(addr).shard);
        shard.buffer_mut(addr).is_some_and(|buffer| buffer.owner == owner)
    }

    /// Forgets every block of a glock that is being given up (go_inval).
    ///
    /// # Errors
    /// [`FsError::Inconsistent`] when one of them is pinned, that is, not yet in place: the glock must not be given
    /// up.
    pub fn drop_owner(&self, owner: GlockName) -> FsResult<()> {
        let mut pinned = None;
        for lane in &self.lanes {
            let mut shard = lock(&lane.shard);
            pinned = shard.drop_owner(owner).or(pinned);
            lane.tell(shard);
        }
        match pinned {
            None => Ok(()),
            Some(addr) => Err(FsError::Inconsistent(format!(
                "block {addr} of glock {owner} is not in place, the glock cannot be given up"
            ))),
        }
    }

    /// Forgets everything that is not pinned: after a recovery or a thaw, when others may have written.
    pub fn drop_clean(&self) {
        for lane in &self.lanes {
            let mut shard = lock(&lane.shard);
            shard.drop_clean();
            lane.tell(shard);
        }
    }

    /// May a transaction put contents in place of those it read as change `version` (`None`: it did not read)?
    pub(crate) fn check_change(
        &self,
        addr: BlockAddr,
        owner: GlockName,
        version: Option<u64>,
    ) -> FsResult<()> {
        let mut shard = lock(&self.lane(addr).shard);
        let Some(buffer) = shard.buffer_mut(addr) else {
            return Ok(());
        };
        if buffer.owner != owner && buffer.pins > 0 && !buffer.freed {
            return Err(two_owners(addr, buffer.owner, owner));
        }
        match version {
            Some(version) if buffer.owner == owner && buffer.version > version => {
                Err(FsError::Inconsistent(format!(
                    "block {addr} changed under a transaction: glock {owner} was given up before its commit"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Puts the contents of a commit in place of what is cached, and pins once more if `pin`.
    pub(crate) fn put(&self, addr: BlockAddr, owner: GlockName, block: &Block, version: u64, pin: bool) {
        let lane = self.lane(addr);
        let mut shard = lock(&lane.shard);
        if let Some(buffer) = shard.buffer_mut(addr) {
            let moved = buffer.owner != owner;
            buffer.block = block.clone();
            buffer.version = version;
            buffer.freed = false;
            buffer.pins += u32::from(pin);
            if moved {
                shard.change_owner(addr, owner);
            }
            return;
        }
        // Absent, or being loaded by somebody whose contents are no longer the newest.
        shard.remove(addr);
        if let Some(buffer) = shard.insert(addr, owner, block.clone(), version, self.lane_limit()) {
            buffer.pins = u32::from(pin);
        }
        lane.tell(shard);
    }

    /// Takes one pin away.
    pub(crate) fn unpin(&self, addr: BlockAddr) {
        let mut shard = lock(&self.lane(addr).shard);
        let Some(buffer) = shard.buffer_mut(addr) else {
            debug_assert!(false, "unpin of block {addr}, which is not cached");
            return;
        };
        debug_assert!(buffer.pins > 0, "unpin of block {addr}, which is not pinned");
        buffer.pins = buffer.pins.saturating_sub(1);
        if buffer.pins == 0 && buffer.freed {
            shard.remove(addr);
        }
    }

    /// The block was freed: its contents are of no use any more. Gives its owner, when it was cached.
    pub(crate) fn free(&self, addr: BlockAddr, unpin: bool) -> Option<GlockName> {
        let lane = self.lane(addr);
        let mut shard = lock(&lane.shard);
        let Some(buffer) = shard.buffer_mut(addr) else {
            shard.remove(addr);
            lane.tell(shard);
            return None;
        };
        let owner = buffer.owner;
        buffer.freed = true;
        buffer.pins = buffer.pins.saturating_sub(u32::from(unpin));
        if buffer.pins == 0 {
            shard.remove(addr);
        }
        Some(owner)
    }
}

fn two_owners(addr: BlockAddr, holds: GlockName, wants: GlockName) -> FsError {
    FsError::Inconsistent(format!(
        "block {addr} belongs to glock {holds} in the journal and is used under glock {wants}"
    ))
}
