//! Writing committed blocks in place, and what gives room or gives a glock away by it.
//!
//! Invariants: only durably committed contents are written, never the newer ones of the running commit; one batch is
//! under way at a time, so two writes of one block never race; a block whose freeing is being committed is not begun.

use super::ail::Pick;
use super::log::{Journal, Ticket};
use super::types::{CommitSeq, FlushReason, Reservation};
use crate::cache::lock;
use crate::error::FsResult;
use crate::glock::GlockName;
use gfs2_format::{Block, BlockAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Blocks of a batch, at most: a flush that freed one of them waits for the whole batch.
const BATCH_BLOCKS: usize = 1024;

impl Journal {
    /// Writes everything that is committed in place and moves the tail: sync's thorough form.
    ///
    /// # Errors
    /// I/O errors (which withdraw).
    pub fn write_back(&self) -> FsResult<()> {
        self.flush(FlushReason::SyncFs)?;
        let all = lock(&self.state).ail.next_commit();
        self.write_in_place(Pick::Before(all))?;
        let _one = self.flush_token();
        self.move_tail(FlushReason::Ail.flags()).map(drop)
    }

    /// Writes what `what` names until none of it is left; gives the number of blocks written.
    pub(super) fn write_in_place(&self, what: Pick) -> FsResult<u64> {
        let mut total = 0;
        loop {
            let one = lock(&self.in_place);
            self.cache.health().check()?;
            let mut state = lock(&self.state);
            let mut batch = state.ail.pick(what, BATCH_BLOCKS, |addr| state.is_revoked(addr));
            if batch.is_empty() {
                return Ok(total);
            }
            state.in_flight = batch.iter().map(|b| b.addr).collect();
            drop(state);
            batch.sort_unstable_by_key(|b| b.addr);
            let blocks: Vec<(BlockAddr, &Block)> = batch.iter().map(|b| (b.addr, &b.block)).collect();
            self.writer.write_in_place(&blocks)?;
            total += blocks.len() as u64;
            let mut state = lock(&self.state);
            state.in_flight.clear();
            for block in &batch {
                if state.ail.written(block) {
                    self.cache.unpin(block.addr);
                }
            }
            state.events += 1;
            drop(state);
            drop(one);
            self.changed.notify_all();
            self.counters
                .in_place_blocks
                .fetch_add(batch.len() as u64, Ordering::Relaxed);
        }
    }

    /// Makes room for a reservation of `cost` blocks: commits what runs, writes the oldest commits in place, moves
    /// the tail. Looks a quarter of the journal further than needed, so that the next one need not do it again.
    pub(super) fn make_room(&self, cost: u64, reason: FlushReason) -> FsResult<()> {
        {
            let _one = self.flush_token();
            self.flush_running(reason.flags())?;
        }
        let target = {
            let state = lock(&self.state);
            let want = cost.saturating_add(u64::from(self.ring.blocks()) / 4);
            let distance = |at| self.ring.distance(state.tail, at);
            state.ail.commits_to_free(want, distance)
        };
        self.write_in_place(Pick::Before(target))?;
        let _one = self.flush_token();
        self.move_tail(FlushReason::Ail.flags()).map(drop)
    }

    /// go_sync of a glock's blocks: everything committed, in place, and (when other nodes are there) no copy of them
    /// left live in the log. Nobody may hold the glock for change meanwhile.
    ///
    /// # Errors
    /// I/O errors (which withdraw): then the glock must not be given up.
    pub fn flush_glock(self: &Arc<Self>, name: GlockName, reason: FlushReason) -> FsResult<()> {
        if self.config.shared {
            return self.revoke_glock(name, reason);
        }
        self.settle_glock(name, reason)
    }

    /// [`Journal::flush_glock`] that always leaves no copy in the log: before blocks of the glock are written past
    /// the log (a file that stops being journaled).
    ///
    /// # Errors
    /// As [`Journal::flush_glock`].
    pub fn revoke_glock(self: &Arc<Self>, name: GlockName, reason: FlushReason) -> FsResult<()> {
        self.settle_glock(name, reason)?;
        let copies = lock(&self.state).ail.settled_copies(name).len() as u64;
        if copies == 0 {
            return Ok(());
        }
        let ticket = match self.reserve_as(Reservation::default().with_revokes(copies), true) {
            // The journal was stopped meanwhile: a clean log has no copies.
            Err(_) if lock(&self.state).ail.settled_copies(name).is_empty() => return Ok(()),
            result => result?,
        };
        let seq = self.revoke_copies(name, copies as usize, ticket);
        self.wait_durable(seq, FlushReason::Ail)
    }

    /// Puts at most `most` revokes of a glock's copies into the running commit, and ends their transaction.
    pub(super) fn revoke_copies(&self, name: GlockName, most: usize, mut ticket: Ticket) -> CommitSeq {
        let mut state = lock(&self.state);
        // Fewer, when the tail has moved meanwhile. A block in the running commit gets a newer copy instead.
        for addr in state.ail.settled_copies(name).into_iter().take(most) {
            if !state.running.contains(addr) {
                state.running.revoke(addr, Some(name));
            }
        }
        ticket.settle(&mut state);
        let seq = state.newest();
        drop(state);
        // Not left to the commit that follows: when the tail took every copy with it there is none.
        self.changed.notify_all();
        seq
    }

    /// Commits what runs of a glock and writes its blocks in place.
    fn settle_glock(&self, name: GlockName, reason: FlushReason) -> FsResult<()> {
        self.cache.health().check()?;
        let state = lock(&self.state);
        let runs = state.running.touches(name) || state.flushing.as_ref().is_some_and(|f| f.touches(name));
        let seq = state.newest();
        drop(state);
        if runs {
            self.wait_durable(seq, reason)?;
        }
        self.write_in_place(Pick::Owner(name)).map(drop)
    }
}
