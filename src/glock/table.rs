//! The lock table of a mounted filesystem.
//!
//! Invariants: glocks stay cached after their last user is gone, up to a budget; the threads (see the README) live as
//! long as the table; dropping a table that was not shut down abandons the lockspace, as a crash would.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dlm_client::{Event as DlmEvent, EventQueue, Leave, Lockspace};
use parking_lot::Mutex;

use super::dump;
use super::lock::{Glock, Place};
use super::machine::Event;
use super::name::GlockName;
use super::ops::{GlockOps, KernelCache};
use super::shared::Shared;
use super::state::State;
use crate::error::FsError;

/// Tokens from here up are never those of glocks: for locks somebody else keeps in the same lockspace.
pub const RAW_TOKENS: u64 = 0xf << 60;

/// How a table is set up.
pub struct TableOptions {
    /// Glocks kept before unused ones are given up.
    pub budget: usize,
    /// Threads that empty the kernel's cache.
    pub flush_workers: usize,
    /// Threads that sync and invalidate.
    pub demote_workers: usize,
    /// While clearing, say what is left this often.
    pub clear_report: Duration,
    /// Stop clearing after this long.
    pub clear_limit: Duration,
    /// Called once, with the first error that makes the node stop. Must only take note: it may run on a worker.
    pub on_withdraw: Arc<dyn Fn(FsError) + Send + Sync>,
    /// Lock service events that belong to no glock: recovery, fatal, and those of tokens from [`RAW_TOKENS`] up. In
    /// order, on the event thread: what it does (such as [`GlockTable::block_for_recovery`]) is done before the next
    /// grant is seen. Must not block.
    pub on_event: Arc<dyn Fn(DlmEvent) + Send + Sync>,
}

impl Default for TableOptions {
    fn default() -> Self {
        Self {
            budget: 65_536,
            flush_workers: 2,
            demote_workers: 4,
            clear_report: Duration::from_secs(30),
            clear_limit: Duration::from_secs(600),
            on_withdraw: Arc::new(|error| tracing::error!(%error, "withdraw")),
            on_event: Arc::new(|event| tracing::debug!(?event, "lockspace")),
        }
    }
}

impl fmt::Debug for TableOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableOptions")
            .field("budget", &self.budget)
            .field("flush_workers", &self.flush_workers)
            .field("demote_workers", &self.demote_workers)
            .finish_non_exhaustive()
    }
}

/// What happened since the mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GlockStats {
    /// Acquires, of any outcome.
    pub requests: u64,
    /// Acquires that found the lock cached and free: no queue, no message.
    pub hits: u64,
    /// Acquires that slept.
    pub waits: u64,
    /// Requests and conversions at the lock service.
    pub dlm_calls: u64,
    /// Those of them that stepped down.
    pub demotes: u64,
    /// Blocking callbacks.
    pub basts: u64,
    /// Calls of [`GlockOps::sync`].
    pub syncs: u64,
    /// Calls of [`GlockOps::invalidate`].
    pub invalidates: u64,
    /// Passes over the kernel's cache.
    pub kernel_flushes: u64,
    /// Glocks taken out of the table.
    pub freed: u64,
    /// Glocks in the table now.
    pub glocks: u64,
}

/// What [`GlockTable::clear_all`] left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClearReport {
    /// Locks that are still held by somebody, or on their way down, when time was up.
    pub left: Vec<GlockName>,
    /// Locks kept at the lock service on purpose, after a withdraw.
    pub kept: Vec<GlockName>,
    /// Unlocked ones that somebody still has in hand.
    pub referenced: Vec<GlockName>,
}

/// All glocks of a filesystem.
pub struct GlockTable {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    clear_report: Duration,
    clear_limit: Duration,
}

impl GlockTable {
    /// A table on a lockspace that was just joined.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn new(space: Arc<dyn Lockspace>, queue: EventQueue, options: TableOptions) -> Result<Self, FsError> {
        let shared = Arc::new(Shared::new(
            space,
            options.budget,
            options.on_withdraw,
            options.on_event,
        ));
        let table = Self {
            shared: Arc::clone(&shared),
            threads: Mutex::new(Vec::new()),
            clear_report: options.clear_report,
            clear_limit: options.clear_limit,
        };
        let events = Arc::clone(&shared);
        table.spawn("glock-event".to_owned(), move || {
            while let Some(event) = queue.recv() {
                events.dispatch(event);
            }
        })?;
        let keeper = Arc::clone(&shared);
        table.spawn("glock-keeper".to_owned(), move || keeper.keep())?;
        for number in 0..options.flush_workers.max(1) {
            let shared = Arc::clone(&shared);
            table.spawn(format!("glock-flush-{number}"), move || shared.flush_pool.work())?;
        }
        for number in 0..options.demote_workers.max(1) {
            let shared = Arc::clone(&shared);
            table.spawn(format!("glock-demote-{number}"), move || {
                shared.demote_pool.work()
            })?;
        }
        Ok(table)
    }

    fn spawn(&self, name: String, work: impl FnOnce() + Send + 'static) -> Result<(), FsError> {
        let thread = std::thread::Builder::new().name(name.clone()).spawn(work);
        let thread = thread.map_err(|error| FsError::Lock {
            name,
            what: format!("thread not started: {error}"),
        })?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// The glock of a name, made with `ops` if there is none. A name always has the same kind of object, so the `ops`
    /// of a glock that exists already are as good.
    ///
    /// # Errors
    /// A number of 2^60 or more, or the table was shut down.
    pub fn get(&self, name: GlockName, ops: &Arc<dyn GlockOps>) -> Result<Arc<Glock>, FsError> {
        self.shared.get(name, ops)
    }

    /// The glock of a name, if it is in the table.
    #[must_use]
    pub fn find(&self, name: GlockName) -> Option<Arc<Glock>> {
        self.shared.find(name)
    }

    /// Who empties the kernel's cache in demotes of inodes; `None` while nothing is mounted.
    pub fn set_kernel_cache(&self, cache: Option<Arc<dyn KernelCache>>) {
        self.shared.set_kernel_cache(cache);
    }

    /// Acts as if another node had asked for the lock down to `state` (the kernel's `demote_rq` file). False: there is
    /// no such glock.
    pub fn demote(&self, name: GlockName, state: State) -> bool {
        let Some(glock) = self.find(name) else {
            return false;
        };
        glock.feed(Event::Bast(state), Place::Inline);
        true
    }

    /// The names of all glocks.
    #[must_use]
    pub fn names(&self) -> Vec<GlockName> {
        self.shared.all().iter().map(|glock| glock.name()).collect()
    }

    /// Gives up unused glocks until the budget is met; happens by itself when the table grows.
    pub fn shrink(&self) {
        self.shared.keeper.shrink();
    }

    /// Sets how many glocks are kept before unused ones are given up.
    pub fn set_budget(&self, budget: usize) {
        self.shared.set_budget(budget);
    }

    /// Asks unused glocks down until `target` are left, or none can go; they go when that has been done.
    pub fn shrink_to(&self, target: usize) {
        self.shared.shrink_to(target);
    }

    /// Gives up those of these glocks that nobody has in hand; those that are locked go when they have been demoted.
    pub fn retire(&self, names: impl Iterator<Item = GlockName>) {
        self.shared.retire(names);
    }

    /// Number of glocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.len()
    }

    /// No glock at all?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until there are no more than `target` glocks, or nothing has gone for `at_most`.
    pub fn wait_shrunk(&self, target: usize, at_most: Duration) {
        let (mut least, mut since) = (self.len(), Instant::now());
        while least > target && since.elapsed() < at_most {
            self.shared.wait_settled(at_most / 4);
            let now = self.len();
            if now < least {
                (least, since) = (now, Instant::now());
            }
        }
    }

    /// Parks grants from now on (recovery of another node's journal). NOEXP passes.
    pub fn block_for_recovery(&self) {
        self.shared.blocked.store(true, Ordering::SeqCst);
    }

    /// Delivers parked grants.
    pub fn unblock(&self) {
        self.shared.unblock();
    }

    /// Are grants parked?
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.shared.blocked.load(Ordering::SeqCst)
    }

    /// The node has withdrawn: inode and rgrp locks are refused (NOEXP passes where the lock is cached), their demotes
    /// write nothing, and the lock service is not told until [`GlockTable::set_recovered`].
    pub fn set_withdrawn(&self, cause: &str) {
        self.shared.set_withdrawn(cause);
    }

    /// Our journal was replayed after the withdraw: locks that were kept back may go.
    pub fn set_recovered(&self) {
        self.shared.set_recovered();
    }

    /// Demotes everything to UN and frees it (unmount). Reports what is left from time to time while waiting.
    pub fn clear_all(&self) -> ClearReport {
        self.shared.unmounting.store(true, Ordering::SeqCst);
        let start = Instant::now();
        let mut next_report = self.clear_report;
        loop {
            let left = self.demote_all();
            if left.is_empty() || start.elapsed() >= self.clear_limit {
                return self.free_all(left);
            }
            if start.elapsed() >= next_report {
                next_report += self.clear_report;
                tracing::warn!(
                    "{} glocks left after {} seconds; still waiting",
                    left.len(),
                    start.elapsed().as_secs()
                );
                tracing::warn!("{}", self.dump_text());
            }
            self.shared.wait_settled(Duration::from_millis(20));
        }
    }

    /// Asks every glock down; those not there yet.
    fn demote_all(&self) -> Vec<GlockName> {
        let mut left = Vec::new();
        for glock in self.shared.all() {
            let (settled, asked) = {
                let inner = glock.inner.lock();
                (
                    inner.machine.is_settled(),
                    inner
                        .machine
                        .demote()
                        .is_some_and(|(state, _)| state == State::Un),
                )
            };
            if !settled {
                left.push(glock.name());
                if !asked {
                    glock.request_demote(State::Un);
                }
            }
        }
        left
    }

    fn free_all(&self, left: Vec<GlockName>) -> ClearReport {
        let mut report = ClearReport {
            left,
            ..ClearReport::default()
        };
        let names: Vec<GlockName> = self.shared.all().iter().map(|glock| glock.name()).collect();
        for name in names {
            self.shared.try_free(name);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let all = self.shared.all();
            let waiting = all.iter().any(|glock| glock.dying.load(Ordering::Acquire));
            if !waiting || Instant::now() >= deadline {
                for glock in all.iter().filter(|glock| !report.left.contains(&glock.name())) {
                    let kept = !glock.inner.lock().machine.is_unlocked();
                    if kept {
                        &mut report.kept
                    } else {
                        &mut report.referenced
                    }
                    .push(glock.name());
                }
                return report;
            }
            drop(all);
            self.shared.wait_settled(Duration::from_millis(5));
        }
    }

    /// Leaves the lockspace and ends the threads. Whoever still waits for a lock gets an error.
    ///
    /// # Errors
    /// What the lock service answered; the threads are ended all the same.
    pub fn shutdown(&self, how: Leave) -> Result<(), FsError> {
        let left = self.shared.space.leave(how);
        self.shared.close();
        let me = std::thread::current().id();
        for thread in self.threads.lock().drain(..) {
            // Never from one of them in practice; it would wait for itself.
            if thread.thread().id() != me && thread.join().is_err() {
                tracing::error!("a glock thread had panicked");
            }
        }
        left.map_err(|error| FsError::Lock {
            name: "lockspace".to_owned(),
            what: error.to_string(),
        })
    }

    /// The table in the format of the kernel's `glocks` file.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn dump(&self, f: &mut dyn fmt::Write) -> fmt::Result {
        for glock in self.shared.all() {
            dump::glock(&glock, f)?;
        }
        Ok(())
    }

    /// [`GlockTable::dump`] as a text.
    #[must_use]
    pub fn dump_text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail; an object's dump that does has said what it could.
        let _incomplete = self.dump(&mut text);
        text
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> GlockStats {
        let counters = &self.shared.counters;
        let all = self.shared.all();
        let hits: u64 = all.iter().map(|glock| glock.inner.lock().hits).sum();
        let hits = hits + counters.hits_of_freed.load(Ordering::Relaxed);
        GlockStats {
            requests: hits + counters.queued.load(Ordering::Relaxed),
            hits,
            waits: counters.waits.load(Ordering::Relaxed),
            dlm_calls: counters.dlm_calls.load(Ordering::Relaxed),
            demotes: counters.demotes.load(Ordering::Relaxed),
            basts: counters.basts.load(Ordering::Relaxed),
            syncs: counters.syncs.load(Ordering::Relaxed),
            invalidates: counters.invalidates.load(Ordering::Relaxed),
            kernel_flushes: counters.kernel_flushes.load(Ordering::Relaxed),
            freed: counters.freed.load(Ordering::Relaxed),
            glocks: u64::try_from(all.len()).unwrap_or(u64::MAX),
        }
    }
}

impl Drop for GlockTable {
    fn drop(&mut self) {
        if !self.threads.lock().is_empty()
            && let Err(error) = self.shutdown(Leave::Abandon)
        {
            tracing::debug!(%error, "the lockspace was left before");
        }
    }
}

impl fmt::Debug for GlockTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GlockTable({} glocks)", self.shared.len())
    }
}
