//! The journal's face: reserving, merging, waiting.

use super::changed::Changed;
use super::device::Writer;
use super::running::RunningBlock;
use super::space::{Costs, TABOO};
use super::state::{Phase, State};
use super::types::{
    CommitSeq, FlushReason, JournalConfig, JournalStats, Reservation, StatfsDelta, WorkSet, stamp,
};
use crate::cache::{BufferCache, lock};
use crate::error::{Errno, FsError, FsResult};
use crate::glock::{GlockName, Interrupt};
use gfs2_format::log::Ring;
use gfs2_format::ondisk::{MetaHeader, MetaType};
use gfs2_format::{BlockAddr, Jid};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

/// A reservation of log space; given back when dropped.
#[derive(Debug)]
pub struct Ticket {
    journal: Arc<Journal>,
    reservation: Reservation,
    cost: u64,
    settled: bool,
}

impl Ticket {
    /// What was reserved.
    #[must_use]
    pub fn reservation(&self) -> Reservation {
        self.reservation
    }

    pub(crate) fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Gives the space back: what is needed of it is counted in the running commit now. The caller tells
    /// [`Journal::changed`] when he has given up the state.
    pub(super) fn settle(&mut self, state: &mut State) {
        if !std::mem::replace(&mut self.settled, true) {
            state.reserved -= self.cost;
            state.open -= 1;
            state.events += 1;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let journal = Arc::clone(&self.journal);
        // Not `lock`: during a panic this must not panic again.
        if let Ok(mut state) = journal.state.lock() {
            self.settle(&mut state);
        }
        journal.changed.notify_all();
    }
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) headers: AtomicU64,
    pub(super) log_blocks: AtomicU64,
    pub(super) in_place_blocks: AtomicU64,
}

pub(super) struct Daemon {
    pub(super) interval: Duration,
    pub(super) work: bool,
    pub(super) stop: bool,
    /// Commits below this had been committed when the daemon last looked: they are old enough to go in place.
    pub(super) aged: u64,
}

/// The log of this node.
///
/// Lock order inside: the flush token, then `in_place`, then `state`, then a shard of the cache. Only the token and
/// `in_place` are held across device I/O.
pub struct Journal {
    pub(super) cache: Arc<BufferCache>,
    pub(super) config: JournalConfig,
    pub(super) costs: Costs,
    pub(super) ring: Ring,
    max_blocks: OnceLock<u64>,
    pub(super) writer: Writer,
    /// Held by the one batch of in-place writes.
    pub(super) in_place: Mutex<()>,
    pub(super) state: Mutex<State>,
    /// Told when [`State::events`] grows.
    pub(super) changed: Changed,
    /// Told when a flush has ended: its token is free, and more may be durable.
    pub(super) flushed: Condvar,
    pub(super) durable: AtomicU64,
    pub(super) counters: Counters,
    pub(super) daemon: Mutex<Daemon>,
    pub(super) daemon_wake: Condvar,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("jid", &self.config.jid)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Journal {
    /// A journal that is not live: every [`crate::txn::Transaction::begin`] answers EROFS until [`Journal::start`].
    #[must_use]
    pub fn new(cache: Arc<BufferCache>, config: JournalConfig) -> Arc<Self> {
        let geometry = cache.geometry().clone();
        let health = Arc::clone(cache.health());
        let writer = Writer::new(
            Arc::clone(cache.device()),
            geometry.clone(),
            Arc::clone(&health),
            config.jid,
            config.barriers,
        );
        let journal = Arc::new(Self {
            costs: Costs::new(&geometry),
            ring: config.map.ring(),
            max_blocks: OnceLock::new(),
            writer,
            in_place: Mutex::new(()),
            state: Mutex::new(State::new(geometry.block_len())),
            changed: Changed::default(),
            flushed: Condvar::new(),
            durable: AtomicU64::new(0),
            counters: Counters::default(),
            daemon: Mutex::new(Daemon {
                interval: config.commit_interval,
                work: false,
                stop: false,
                aged: 0,
            }),
            daemon_wake: Condvar::new(),
            cache,
            config,
        });
        let weak = Arc::downgrade(&journal);
        health.on_withdraw(move |_| {
            if let Some(journal) = weak.upgrade() {
                journal.die();
            }
        });
        journal
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> &Arc<BufferCache> {
        &self.cache
    }

    /// Number of our journal.
    #[must_use]
    pub fn jid(&self) -> Jid {
        self.config.jid
    }

    /// Can other nodes change what we gave up the glock of?
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.config.shared
    }

    /// Changes `commit=` (a remount).
    pub fn set_commit_interval(&self, interval: Duration) {
        let mut daemon = lock(&self.daemon);
        daemon.interval = interval;
        daemon.work = true;
        self.daemon_wake.notify_all();
    }

    /// The largest `blocks` of a [`Reservation`] (without revokes) that can ever be granted.
    #[must_use]
    pub fn max_blocks(&self) -> u64 {
        *self.max_blocks.get_or_init(|| self.find_max_blocks())
    }

    fn find_max_blocks(&self) -> u64 {
        let limit = self.cost_max();
        // cost(n) grows by one or two per block: close in from below.
        let mut blocks = limit.saturating_mul(9) / 10;
        while blocks > 0 && self.costs.transaction(Reservation::blocks(blocks)) > limit {
            blocks = blocks.saturating_mul(9) / 10;
        }
        while self.costs.transaction(Reservation::blocks(blocks + 1)) <= limit {
            blocks += 1;
        }
        blocks
    }

    /// Largest cost that an empty log has room for (its idle header takes a block).
    fn cost_max(&self) -> u64 {
        u64::from(self.ring.blocks()).saturating_sub(TABOO + 1)
    }

    /// Newest commit that survives a crash now.
    #[must_use]
    pub fn durable_seq(&self) -> CommitSeq {
        CommitSeq(self.durable.load(Ordering::Acquire))
    }

    /// Newest commit there is anything of; durable or not.
    #[must_use]
    pub fn newest(&self) -> CommitSeq {
        lock(&self.state).newest()
    }

    /// What this node has counted and not yet folded into the master statfs.
    #[must_use]
    pub fn local_statfs(&self) -> StatfsDelta {
        lock(&self.state).local
    }

    /// Is there anything of this glock that [`Journal::flush_glock`] would have to write?
    #[must_use]
    pub fn has_dirty(&self, name: GlockName) -> bool {
        let state = lock(&self.state);
        state.running.touches(name)
            || state.flushing.as_ref().is_some_and(|f| f.touches(name))
            || state.ail.has_copies(name)
    }

    /// Figures.
    #[must_use]
    pub fn stats(&self) -> JournalStats {
        let state = lock(&self.state);
        JournalStats {
            used: state.used,
            reserved: state.committed_space(&self.costs) - u64::from(state.used),
            running: state.running.blocks().len(),
            ail: state.ail.len(),
            headers: self.counters.headers.load(Ordering::Relaxed),
            log_blocks: self.counters.log_blocks.load(Ordering::Relaxed),
            in_place_blocks: self.counters.in_place_blocks.load(Ordering::Relaxed),
        }
    }

    /// The node has withdrawn: nobody waits any more.
    fn die(&self) {
        // Not `lock`: whoever panicked while he held these must still be able to withdraw.
        if let Ok(mut state) = self.state.lock() {
            if state.phase != Phase::Stopped {
                state.phase = Phase::Dead;
                if !self.config.shared {
                    let (fsid, jid) = (self.cache.health().fsid(), self.config.jid);
                    tracing::error!("fsid={fsid}: Journal recovery skipped for jid {jid} until next mount.");
                }
            }
            state.events += 1;
        }
        self.changed.notify_all();
        if let Ok(mut daemon) = self.daemon.lock() {
            daemon.work = true;
        }
        self.daemon_wake.notify_all();
    }

    /// Log space for a transaction.
    pub(crate) fn reserve(self: &Arc<Self>, reservation: Reservation) -> FsResult<Ticket> {
        self.reserve_as(reservation, false)
    }

    /// [`Journal::reserve`]; `internal` users go on while the journal is being stopped.
    pub(super) fn reserve_as(self: &Arc<Self>, reservation: Reservation, internal: bool) -> FsResult<Ticket> {
        let cost = self.costs.transaction(reservation);
        if cost > self.cost_max() {
            return Err(FsError::Posix(Errno::EINVAL));
        }
        let mut state = lock(&self.state);
        state.check_live(internal)?;
        if !(state.waiters.is_empty() && state.fits(cost, &self.costs, self.ring)) {
            state = self.wait_for_space(state, cost, internal)?;
        }
        state.reserved += cost;
        state.open += 1;
        drop(state);
        Ok(Ticket {
            journal: Arc::clone(self),
            reservation,
            cost,
            settled: false,
        })
    }

    /// Waits until it is our turn and `cost` blocks fit; the first in the queue does the work itself, so that this
    /// ends without any daemon. Whoever is being killed gets EINTR: nothing of the transaction has happened.
    fn wait_for_space<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        cost: u64,
        internal: bool,
    ) -> FsResult<MutexGuard<'a, State>> {
        let own = state.next_waiter;
        state.next_waiter += 1;
        state.waiters.push_back(own);
        let interrupt = if internal { None } else { Interrupt::current() };
        let waiting = self.changed.join(interrupt);
        let result = loop {
            if let Err(error) = state.check_live(internal) {
                break Err(error);
            }
            let signals = waiting.signals();
            let seen = state.events;
            if state.waiters.front() == Some(&own) {
                if state.fits(cost, &self.costs, self.ring) {
                    break Ok(());
                }
                drop(state);
                let made = self.make_room(cost, FlushReason::Reserve);
                state = lock(&self.state);
                if let Err(error) = made {
                    // Who finds the node withdrawn is told the same, whether he worked or slept when it happened.
                    break Err(match error {
                        FsError::Withdrawn(_) => FsError::Posix(Errno::EROFS),
                        other => other,
                    });
                }
                if state.fits(cost, &self.costs, self.ring) {
                    break Ok(());
                }
            }
            if waiting.is_interrupted() {
                break Err(FsError::Posix(Errno::EINTR));
            }
            // Everything that could be written is written: only the end of another transaction helps.
            if state.events == seen {
                drop(state);
                waiting.sleep(signals);
                state = lock(&self.state);
            }
        };
        drop(waiting);
        state.waiters.retain(|w| *w != own);
        state.events += 1;
        self.changed.notify_all();
        match result {
            Ok(()) => Ok(state),
            Err(error) => Err(error),
        }
    }

    /// A transaction ends: everything of it becomes visible and part of the running commit, or nothing.
    pub(crate) fn merge(&self, mut work: WorkSet, mut ticket: Ticket) -> FsResult<CommitSeq> {
        self.check_blocks(&mut work)?;
        let mut state = lock(&self.state);
        if state.phase == Phase::Dead {
            drop(state);
            self.cache.health().check()?;
            return Err(FsError::Posix(Errno::EROFS));
        }
        for (addr, change) in &work.blocks {
            if !change.reborn {
                self.cache.check_change(*addr, change.owner, change.version)?;
            }
        }
        self.merge_locked(&mut state, work);
        ticket.settle(&mut state);
        let seq = state.newest();
        let full = self.is_past_thresholds(&state);
        drop(state);
        self.changed.notify_all();
        if full {
            self.kick();
        }
        Ok(seq)
    }

    /// What can be said about a transaction's blocks without the state; stamps `mh_jid`.
    fn check_blocks(&self, work: &mut WorkSet) -> FsResult<()> {
        let superblock = self.cache.geometry().superblock();
        for (addr, change) in &mut work.blocks {
            if *addr <= superblock || self.config.map.contains(*addr) {
                return Err(FsError::Inconsistent(format!(
                    "a transaction changes block {addr}, which is the superblock's or the journal's"
                )));
            }
            if change.data {
                continue;
            }
            let header = MetaHeader::check_magic(&change.block, *addr, "changed metadata")?;
            // A resource group's header carries a checksum made after edit() had stamped it.
            if header.mh_type.get() != MetaType::Rg.raw() && header.jid.get() != self.config.jid.get() {
                stamp(change.block.make_mut(), self.config.jid);
            }
        }
        if work.blocks.contains_key(&self.config.statfs_change)
            || work.freed.contains(&self.config.statfs_change)
        {
            let addr = self.config.statfs_change;
            return Err(FsError::Inconsistent(format!(
                "a transaction changes block {addr}, the node's statfs_change, past the journal"
            )));
        }
        Ok(())
    }

    fn merge_locked(&self, state: &mut State, work: WorkSet) {
        state.change += 1;
        let version = state.change;
        for addr in work.freed {
            let was_running = state.running.remove(addr);
            let cached = self.cache.free(addr, was_running);
            if state.is_logged(addr) {
                let owner = cached.or_else(|| state.ail.owner_of(addr));
                state.running.revoke(addr, owner);
            }
        }
        for (owner, extent) in work.freed_data {
            self.cache.data().forget(owner, &[extent]);
            state.running.free_data();
        }
        // One owner's blocks mostly: one look-up for all of them.
        let mut data = work.data.into_iter().peekable();
        while let Some((owner, ..)) = data.peek() {
            let owner = *owner;
            let own = std::iter::from_fn(|| data.next_if(|next| next.0 == owner));
            self.cache
                .data()
                .put(owner, own.map(|(_, addr, block)| (addr, block)));
            state.running.order(owner);
        }
        for owner in work.ordered {
            state.running.order(owner);
        }
        for (addr, change) in work.blocks {
            let block = RunningBlock {
                owner: change.owner,
                block: change.block.clone(),
                data: change.data,
            };
            let pin = state.running.put(addr, block);
            self.cache.put(addr, change.owner, &change.block, version, pin);
        }
        if !work.statfs.is_zero() || !work.taken.is_zero() {
            state.local = state.local.plus(work.statfs).minus(work.taken);
            state.running.statfs = true;
        }
        state.hooks.extend(work.hooks);
    }

    /// 2/5 of the journal pinned, or 4/5 of it used: the daemon should do something.
    pub(super) fn is_past_thresholds(&self, state: &State) -> bool {
        let blocks = u64::from(self.ring.blocks());
        let need = state.running.need(&self.costs);
        need >= blocks * 2 / 5 || u64::from(state.used) + need >= blocks * 4 / 5
    }

    /// Addresses and blocks for the writer.
    pub(super) fn address(&self, at: gfs2_format::JournalBlock) -> FsResult<BlockAddr> {
        self.config
            .map
            .address(at)
            .ok_or_else(|| FsError::Inconsistent(format!("journal {} has no block {at}", self.config.jid)))
    }
}
