//! From the write-behind cache to the device: sorted, neighbours in one piece, many pieces at once.
//!
//! Invariant: a pass writes everything that was dirty when it began, whatever is added meanwhile, and ends.

use super::super::buffers::lock;
use super::{DataCache, State};
use crate::error::{Errno, FsError, FsResult};
use crate::glock::GlockName;
use gfs2_format::device::{AlignedBuf, WriteRequest};
use gfs2_format::{Block, BlockAddr, Error};
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

/// Bytes of one batch, at most.
const BATCH_BYTES: usize = 4 << 20;
/// From this many bytes on, writing pieces one after the other is no slower than at once.
const LONG_BYTES: usize = 256 << 10;
/// Bytes of one write, at most.
const PIECE_BYTES: usize = 1 << 20;

/// What is being written: some owners' blocks, in batches.
#[derive(Debug)]
pub(crate) struct Pass {
    owners: Vec<GlockName>,
    index: usize,
    /// Where in the present owner's blocks the last batch ended.
    after: Option<BlockAddr>,
    /// Changes after this are not ours.
    mark: u64,
}

/// A block on its way to the device.
#[derive(Debug)]
struct Item {
    owner: GlockName,
    addr: BlockAddr,
    block: Block,
    stamp: u64,
}

/// Blocks that are written together; holds the right to write.
pub(crate) struct Batch<'a> {
    cache: &'a DataCache,
    /// Sorted by address.
    items: Vec<Item>,
    /// The blocks, one behind the other.
    bytes: MutexGuard<'a, AlignedBuf>,
    /// There is nothing behind it.
    last: bool,
}

impl DataCache {
    /// A pass over some owners.
    pub(crate) fn pass(&self, owners: Vec<GlockName>) -> Pass {
        Pass {
            owners,
            index: 0,
            after: None,
            mark: lock(&self.state).stamp,
        }
    }

    /// The next blocks to write. Waits until the batch before, of whomever, has ended.
    pub(crate) fn next_batch(&self, pass: &mut Pass) -> Batch<'_> {
        let mut bytes = lock(&self.writing);
        let len = self.geometry.block_len();
        let room = (BATCH_BYTES / len).max(1);
        let mut items = Vec::new();
        {
            let state = lock(&self.state);
            while let Some(owner) = pass.owners.get(pass.index)
                && items.len() < room
            {
                pass.take(*owner, &state, room, &mut items);
            }
        }
        items.sort_unstable_by_key(|item| item.addr);
        bytes.resize(items.len() * len);
        for (to, item) in bytes.chunks_exact_mut(len).zip(&items) {
            to.copy_from_slice(&item.block);
        }
        Batch {
            cache: self,
            items,
            bytes,
            last: pass.index >= pass.owners.len(),
        }
    }

    /// Writes everything that some owners have dirty now.
    ///
    /// # Errors
    /// EIO when some of it could not be written (it is given up then, as the kernel does; the next fsync of each file
    /// concerned tells too); EIO after a withdraw.
    pub(crate) fn write_owners(&self, owners: Vec<GlockName>) -> FsResult<()> {
        if self.is_clean() || owners.is_empty() {
            // One that is being written is not clean before it has ended.
            return Ok(());
        }
        let mark = lock(&self.state).failure_seq;
        let mut pass = self.pass(owners);
        let mut result = Ok(());
        loop {
            let batch = self.next_batch(&mut pass);
            let last = batch.last;
            result = result.and(batch.write());
            if matches!(result, Err(FsError::Withdrawn(_))) {
                return result;
            }
            if last {
                break;
            }
        }
        self.land_owners(&pass.owners);
        let state = lock(&self.state);
        let failed = |owner| {
            state
                .failures
                .get(owner)
                .is_some_and(|failure| failure.seq > mark)
        };
        if result.is_ok() && pass.owners.iter().any(failed) {
            drop(state);
            self.health.check()?;
            return Err(Errno::EIO.into());
        }
        result
    }

    /// Writes everything an owner has dirty now.
    ///
    /// # Errors
    /// As [`DataCache::write_owners`].
    pub(crate) fn write_owner(&self, owner: GlockName) -> FsResult<()> {
        if !self.has_dirty(owner) {
            return Ok(());
        }
        self.write_owners(vec![owner])
    }

    /// Writes everything that is dirty now.
    ///
    /// # Errors
    /// As [`DataCache::write_owners`].
    pub(crate) fn write_all(&self) -> FsResult<()> {
        if self.is_clean() {
            return Ok(());
        }
        let mut owners = self.flights.owners();
        owners.extend(lock(&self.state).owners.keys().copied());
        self.write_owners(owners.into_iter().collect())
    }

    /// Makes a writer wait, and write, while there is too much dirty data. Errors are for those whose data it is.
    pub(crate) fn throttle(&self) {
        while self.dirty.load(Ordering::Relaxed) > self.limit() {
            if !self.write_oldest(self.limit(), |_| true) {
                return;
            }
        }
    }

    /// Writes one batch of the owners that have been dirty the longest and that `due` is true of, unless no more than
    /// `target` blocks are dirty. False: there was nothing, or no writing any more.
    pub(super) fn write_oldest(&self, target: usize, due: impl Fn(std::time::Instant) -> bool) -> bool {
        let room = (BATCH_BYTES / self.geometry.block_len()).max(1);
        let mut owners = Vec::new();
        {
            let mut state = lock(&self.state);
            let State {
                queue, owners: all, ..
            } = &mut *state;
            while queue
                .front()
                .is_some_and(|(name, epoch)| all.get(name).is_none_or(|owned| owned.epoch != *epoch))
            {
                queue.pop_front();
            }
            let mut blocks = 0;
            for (name, epoch) in queue.iter() {
                if let Some(owned) = all.get(name).filter(|owned| owned.epoch == *epoch) {
                    if blocks >= room || !due(owned.since) {
                        break;
                    }
                    blocks += owned.blocks.len();
                    owners.push(*name);
                }
            }
            // Stale entries in the middle: no more of them than of good ones.
            if queue.len() > 2 * all.len() + 64 {
                queue.retain(|(name, epoch)| all.get(name).is_some_and(|owned| owned.epoch == *epoch));
            }
        }
        if owners.is_empty() {
            return false;
        }
        let mut pass = self.pass(owners);
        let batch = self.next_batch(&mut pass);
        if self.dirty.load(Ordering::Relaxed) <= target {
            return true;
        }
        !matches!(batch.write(), Err(FsError::Withdrawn(_)))
    }
}

impl Pass {
    /// Takes what there is room for of the present owner; goes on to the next one at its end.
    fn take(&mut self, owner: GlockName, state: &State, room: usize, items: &mut Vec<Item>) {
        if let Some(owned) = state.owners.get(&owner) {
            let from = match self.after {
                Some(addr) => std::ops::Bound::Excluded(addr),
                None => std::ops::Bound::Unbounded,
            };
            for (addr, dirty) in owned.blocks.range((from, std::ops::Bound::Unbounded)) {
                if dirty.born > self.mark {
                    continue;
                }
                if items.len() >= room {
                    return;
                }
                self.after = Some(*addr);
                items.push(Item {
                    owner,
                    addr: *addr,
                    block: dirty.block.clone(),
                    stamp: dirty.stamp,
                });
            }
        }
        self.index += 1;
        self.after = None;
    }
}

impl Batch<'_> {
    /// There is nothing behind it.
    pub(crate) fn is_last(&self) -> bool {
        self.last
    }

    /// Bytes it writes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The writes it is made of.
    pub(crate) fn requests(&self) -> Vec<WriteRequest<'_>> {
        let len = self.cache.geometry.block_len();
        let per_piece = (PIECE_BYTES / len).max(1);
        let mut requests = Vec::new();
        let mut rest = &self.bytes[..];
        let runs = self.items.chunk_by(|a, b| a.addr.checked_add(1) == Some(b.addr));
        for piece in runs.flat_map(|run| run.chunks(per_piece)) {
            let (buf, tail) = rest.split_at(piece.len() * len);
            rest = tail;
            requests.push(WriteRequest {
                offset: self.cache.geometry.byte_offset(piece[0].addr),
                buf,
            });
        }
        requests
    }

    /// Writes it.
    ///
    /// # Errors
    /// EIO when some of it could not be written; EIO after a withdraw (then it stays dirty).
    pub(crate) fn write(self) -> FsResult<()> {
        if self.items.is_empty() {
            return Ok(());
        }
        let gate = self.cache.health.write_gate()?;
        let requests = self.requests();
        let device = &self.cache.device;
        // Long pieces keep a device busy by themselves, and go to it without another copy.
        let result = if requests.iter().all(|request| request.buf.len() >= LONG_BYTES) || requests.len() == 1
        {
            requests
                .iter()
                .try_for_each(|request| device.write_at(request.offset, request.buf))
        } else {
            device.write_batch(&requests)
        };
        drop(requests);
        drop(gate);
        match result {
            Ok(()) => {
                self.done();
                Ok(())
            }
            Err(error) => self.write_each(&error),
        }
    }

    /// All of it is on the device.
    pub(crate) fn done(self) {
        let writes = self.requests().len() as u64;
        self.finish(writes, |_| true);
    }

    /// Something of a batch has failed: every piece by itself, to know what.
    pub(crate) fn write_each(self, first: &Error) -> FsResult<()> {
        tracing::warn!("writing file data back: {first}; trying each piece by itself");
        let len = self.cache.geometry.block_len();
        let mut good = vec![true; self.items.len()];
        let mut index = 0;
        for request in self.requests() {
            let gate = self.cache.health.write_gate()?;
            let result = self.cache.device.write_at(request.offset, request.buf);
            drop(gate);
            let count = request.buf.len() / len;
            if let Err(error) = result {
                let range = index..index + count;
                for (item, good) in self.items[range.clone()].iter().zip(&mut good[range]) {
                    *good = false;
                    let (owner, addr) = (item.owner, item.addr);
                    tracing::error!(glock = %owner, block = addr.get(), "file data is lost: {error}");
                }
            }
            index += count;
        }
        let all = good.iter().all(|good| *good);
        self.finish(0, |index| good[index]);
        if all { Ok(()) } else { Err(Errno::EIO.into()) }
    }

    fn finish(self, writes: u64, good: impl Fn(usize) -> bool) {
        let cache = self.cache;
        let mut state = lock(&cache.state);
        let mut gone = 0;
        for (index, item) in self.items.iter().enumerate() {
            if !good(index) {
                cache.note_failure(&mut state, item.owner);
            }
            let Some(owned) = state.owners.get_mut(&item.owner) else {
                continue;
            };
            match owned.blocks.get_mut(&item.addr) {
                Some(dirty) if dirty.stamp == item.stamp => {
                    owned.blocks.remove(&item.addr);
                    gone += 1;
                }
                // Changed while it was written: the device is behind since then.
                Some(dirty) => dirty.born = item.stamp + 1,
                None => {}
            }
            if owned.blocks.is_empty() {
                state.owners.remove(&item.owner);
            }
        }
        cache.dirty.fetch_sub(gone, Ordering::Release);
        cache
            .written
            .fetch_add(self.items.len() as u64, Ordering::Relaxed);
        cache.writes.fetch_add(writes, Ordering::Relaxed);
        cache.spare.keep(self.items.into_iter().map(|item| item.block));
    }
}
