//! Writing commits to the log, and headers that move its tail.
//!
//! Order of one flush (FORMAT.md 7.3): file data the commit makes reachable and log blocks; device flush (which also covers file data written before the
//! commit, and in-place writes that the new tail passes); header, durably. Only then do its blocks become
//! eligible for writing in place, is the space before the tail used again, and is anybody told.

use super::ail::Tail;
use super::device::FlushMark;
use super::log::Journal;
use super::running::{Running, RunningBlock};
use super::state::State;
use super::types::{CommitHook, CommitSeq, FlushReason, StatfsDelta, stamp};
use crate::cache::lock;
use crate::error::{FsError, FsResult};
use crate::glock::GlockName;
use crate::health::Cause;
use gfs2_format::log::{Header, HeaderVersion, LogTime, encode_header};
use gfs2_format::ondisk::{DINODE_SIZE, LogFlags, StatfsChange, view_mut};
use gfs2_format::{Block, BlockAddr, JournalBlock};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

/// A commit taken out of the state, to be written.
struct Detached {
    commit: Arc<Running>,
    hooks: Vec<CommitHook>,
    first: JournalBlock,
    tail: Tail,
    used: u32,
    sequence: u64,
    local: StatfsDelta,
}

/// The right to write to the log.
#[must_use = "the token is given back when dropped"]
pub(super) struct FlushToken<'a> {
    journal: &'a Journal,
}

impl Drop for FlushToken<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Half a flush may be done: nobody may go on from there.
            let what = "a thread panicked while it wrote the log".to_owned();
            let health = self.journal.writer.health();
            health.withdraw("journal::flush", &Cause::Consistency(what));
        }
        if let Ok(mut state) = self.journal.state.lock() {
            state.flush_taken = false;
        }
        self.journal.flushed.notify_all();
    }
}

impl Journal {
    /// Makes everything up to `seq` durable; callers whose commits are in one flush share it.
    ///
    /// # Errors
    /// I/O errors (which withdraw).
    pub fn wait_durable(&self, seq: CommitSeq, reason: FlushReason) -> FsResult<()> {
        let mut state = lock(&self.state);
        while self.durable_seq() < seq {
            if state.newest() < seq {
                return Err(FsError::Inconsistent(format!("nobody has made commit {seq} yet")));
            }
            if !state.flush_taken {
                let _token = self.take_token(&mut state);
                drop(state);
                return self.flush_running(reason.flags());
            }
            // Not a queue on a mutex: all whom a flush has covered go on at once, and commit again together.
            state = self
                .flushed
                .wait(state)
                .expect("a thread panicked in the journal");
        }
        Ok(())
    }

    fn take_token(&self, state: &mut State) -> FlushToken<'_> {
        state.flush_taken = true;
        FlushToken { journal: self }
    }

    /// The right to write to the log; one at a time.
    pub(super) fn flush_token(&self) -> FlushToken<'_> {
        let mut state = lock(&self.state);
        while state.flush_taken {
            state = self
                .flushed
                .wait(state)
                .expect("a thread panicked in the journal");
        }
        self.take_token(&mut state)
    }

    /// Commits everything that has been committed by transactions so far; gives the newest durable number.
    ///
    /// # Errors
    /// As [`Journal::wait_durable`].
    pub fn flush(&self, reason: FlushReason) -> FsResult<CommitSeq> {
        self.cache.health().check()?;
        let seq = lock(&self.state).newest();
        self.wait_durable(seq, reason)?;
        Ok(self.durable_seq())
    }

    /// [`Journal::wait_durable`] for somebody who also wrote file data to the device: flushes the device even when
    /// no log header had to be written.
    ///
    /// # Errors
    /// As [`Journal::wait_durable`].
    pub fn fsync(&self, seq: CommitSeq) -> FsResult<()> {
        let mark = self.writer.mark();
        self.wait_durable(seq, FlushReason::Fsync)?;
        self.flush_since(mark)
    }

    /// Everything that was committed and written so far is durable.
    ///
    /// # Errors
    /// As [`Journal::wait_durable`].
    pub fn sync(&self) -> FsResult<()> {
        let mark = self.writer.mark();
        self.flush(FlushReason::SyncFs)?;
        self.flush_since(mark)
    }

    /// [`Journal::fsync`] for a file: what `owner` has dirty of file data is durable too. Write-back errors are told
    /// by the data cache to each opener.
    ///
    /// # Errors
    /// As [`Journal::wait_durable`].
    pub fn fsync_data(&self, owner: GlockName, seq: CommitSeq) -> FsResult<()> {
        // In this order: what is not dirty now was written before the mark.
        let dirty = self.cache.data().has_dirty(owner);
        let mut mark = self.writer.mark();
        let mut covered = !dirty;
        if dirty && self.durable_seq() < seq {
            let mut state = lock(&self.state);
            // One flush for both, if the commit is still to be written.
            if state.running.seq == seq.0 && !state.running.is_empty() {
                state.running.order(owner);
                covered = true;
            }
        }
        self.wait_durable(seq, FlushReason::Fsync)?;
        if !covered || self.cache.data().has_dirty(owner) {
            match self.cache.data().write_owner(owner) {
                Err(error @ FsError::Withdrawn(_)) => return Err(error),
                // Remembered for whoever has the file open.
                _ => mark = self.writer.mark(),
            }
        }
        self.flush_since(mark)
    }

    fn flush_since(&self, mark: FlushMark) -> FsResult<()> {
        if self.writer.covers(mark) {
            return Ok(());
        }
        self.writer.flush()
    }

    /// Writes the running commit. The caller holds the flush token.
    pub(super) fn flush_running(&self, flags: LogFlags) -> FsResult<()> {
        self.cache.health().check()?;
        let mut state = lock(&self.state);
        if state.nothing_runs() {
            return Ok(());
        }
        let detached = self.detach(&mut state)?;
        drop(state);
        if !detached.commit.is_empty() {
            let blocks = self.write_commit(&detached, flags)?;
            self.wait_for_freed(&detached.commit);
            self.complete(&detached, blocks);
        }
        let seq = CommitSeq(detached.commit.seq);
        for hook in detached.hooks {
            hook(seq);
        }
        let mut state = lock(&self.state);
        self.durable.store(seq.0, Ordering::Release);
        state.events += 1;
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    fn detach(&self, state: &mut State) -> FsResult<Detached> {
        if state.running.statfs {
            self.log_statfs(state)?;
        }
        let next = Running::new(state.running.seq + 1);
        let commit = std::mem::replace(&mut state.running, next);
        let hooks = std::mem::take(&mut state.hooks);
        state.flush_need = commit.need(&self.costs);
        for addr in commit.blocks().keys().chain(commit.revokes()) {
            state.ail.supersede(*addr);
        }
        let commit = Arc::new(commit);
        if !commit.is_empty() {
            state.flushing = Some(Arc::clone(&commit));
        }
        Ok(Detached {
            commit,
            hooks,
            first: state.head,
            tail: state.ail.tail(),
            used: state.used,
            sequence: state.sequence + 1,
            local: state.local,
        })
    }

    /// Puts the node's statfs_change dinode, with the numbers of this commit, into the running commit.
    fn log_statfs(&self, state: &mut State) -> FsResult<()> {
        let addr = self.config.statfs_change;
        let owner = self.config.statfs_glock;
        let local = state.local;
        let raw: &mut StatfsChange = view_mut(state.statfs_block.make_mut(), DINODE_SIZE, addr)?;
        *raw = StatfsChange::from_signed(local.total, local.free, local.dinodes);
        stamp(state.statfs_block.make_mut(), self.config.jid);
        let block = state.statfs_block.clone();
        state.change += 1;
        let entry = RunningBlock {
            owner,
            block: block.clone(),
            data: false,
        };
        let pin = state.running.put(addr, entry);
        self.cache.put(addr, owner, &block, state.change, pin);
        state.running.statfs = false;
        Ok(())
    }

    /// Log blocks, device flush, durable header; gives the number of blocks before the header.
    fn write_commit(&self, detached: &Detached, flags: LogFlags) -> FsResult<u32> {
        let geometry = self.cache.geometry();
        let encoded = detached.commit.with_flush(|flush| flush.encode(geometry));
        // merge() lets only blocks in that the codec takes.
        let blocks = encoded.map_err(|error| self.fail(format!("a commit cannot be encoded: {error}")))?;
        let count = u32::try_from(blocks.len()).unwrap_or(u32::MAX);
        self.check_room(detached.used, u64::from(count) + 1)?;
        let placed = self.place(detached.first, &blocks)?;
        let ordered = detached.commit.ordered().iter().copied().collect();
        self.writer.write_ordered(self.cache.data(), ordered, &placed)?;
        self.writer.flush()?;
        self.counters
            .log_blocks
            .fetch_add(u64::from(count), Ordering::Relaxed);
        let at = self.ring.advance(detached.first, count);
        let tail = detached.tail.at.unwrap_or(detached.first);
        self.write_header(at, detached.sequence, tail, flags, detached.local)?;
        Ok(count)
    }

    /// A log that runs over its own tail would destroy what a crash needs.
    fn check_room(&self, used: u32, blocks: u64) -> FsResult<()> {
        let total = u64::from(self.ring.blocks());
        if u64::from(used) + blocks < total {
            return Ok(());
        }
        Err(self.fail(format!(
            "journal {}: {used} of {total} blocks used and {blocks} to be written",
            self.config.jid
        )))
    }

    pub(super) fn fail(&self, what: String) -> FsError {
        let health = self.writer.health();
        health.withdraw("journal::flush", &Cause::Consistency(what))
    }

    /// The device addresses of blocks that go to `first` and behind.
    fn place<'a>(&self, first: JournalBlock, blocks: &'a [Block]) -> FsResult<Vec<(BlockAddr, &'a Block)>> {
        let count = u32::try_from(blocks.len()).unwrap_or(u32::MAX);
        let runs = self.config.map.runs(first, count);
        let addresses = runs.iter().flat_map(|extent| extent.blocks());
        let placed: Vec<_> = addresses.zip(blocks).collect();
        if placed.len() != blocks.len() {
            return Err(self.fail(format!(
                "journal {} has no room for {count} blocks from block {first} on",
                self.config.jid
            )));
        }
        Ok(placed)
    }

    /// Writes one header durably; everything it speaks of is durable already.
    pub(super) fn write_header(
        &self,
        at: JournalBlock,
        sequence: u64,
        tail: JournalBlock,
        flags: LogFlags,
        local: StatfsDelta,
    ) -> FsResult<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let header = Header {
            writer: self.config.jid,
            sequence,
            flags,
            tail,
            blkno: at,
            version: HeaderVersion::V2,
            time: LogTime {
                sec: now.as_secs(),
                nsec: now.subsec_nanos(),
            },
            addr: self.address(at)?,
            jinode: self.config.dinode,
            statfs_addr: self.config.statfs_change,
            quota_addr: self.config.quota_change,
            local: local.into(),
        };
        let block = encode_header(&header, self.cache.geometry());
        self.writer.write_header(header.addr, &block)?;
        self.counters.headers.fetch_add(1, Ordering::Relaxed);
        self.counters.log_blocks.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Waits for writes of blocks that this commit freed, in place or of file data: they may be allocated again, and written past the
    /// log, as soon as it is durable. None can begin any more.
    fn wait_for_freed(&self, commit: &Running) {
        let state = lock(&self.state);
        let busy =
            !state.in_flight.is_empty() && commit.revokes().iter().any(|a| state.in_flight.contains(a));
        drop(state);
        if busy {
            drop(lock(&self.in_place));
        }
        if commit.frees_data() {
            self.cache.data().wait_writes();
        }
    }

    fn complete(&self, detached: &Detached, blocks: u32) {
        let mut state = lock(&self.state);
        let commit = &detached.commit;
        let written = commit.blocks().iter().map(|(addr, b)| (*addr, b.owner, &b.block));
        let unpin = state.ail.commit_done(detached.first, written, commit.revokes());
        for addr in unpin {
            self.cache.unpin(addr);
        }
        state.logged_local = detached.local;
        state.flushing = None;
        state.flush_need = 0;
        state.idle = false;
        let header = self.ring.advance(detached.first, blocks);
        self.advance(
            &mut state,
            header,
            detached.tail.at.unwrap_or(detached.first),
            detached.tail.keep,
        );
    }

    /// A header at `header` with this tail is durable.
    pub(super) fn advance(&self, state: &mut State, header: JournalBlock, tail: JournalBlock, keep: u64) {
        state.sequence += 1;
        state.head = self.ring.advance(header, 1);
        state.tail = tail;
        state.used = self.ring.distance(tail, state.head);
        state.ail.retire(keep);
        state.events += 1;
    }

    /// Writes a header alone when that moves the tail (or makes the log idle). The caller holds the flush token.
    pub(super) fn move_tail(&self, flags: LogFlags) -> FsResult<bool> {
        self.cache.health().check()?;
        let state = lock(&self.state);
        let tail = state.ail.tail();
        let header = state.head;
        let at = tail.at.unwrap_or(header);
        if state.idle || at == state.tail {
            return Ok(false);
        }
        let (used, sequence, local) = (state.used, state.sequence + 1, state.logged_local);
        drop(state);
        self.check_room(used, 1)?;
        // What went into place must be there before the tail says that it is.
        self.writer.flush()?;
        self.write_header(header, sequence, at, flags, local)?;
        let mut state = lock(&self.state);
        state.idle = tail.at.is_none();
        self.advance(&mut state, header, at, tail.keep);
        drop(state);
        self.changed.notify_all();
        Ok(true)
    }
}
