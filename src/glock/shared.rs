//! What all glocks of a filesystem share: the map, the lock service, the worker queues, the node's condition.
//!
//! Invariants: one glock per name at any time, also at the lock service: a name whose lock is being unlocked is given
//! out again only after the answer. Lock order inside this layer: shard, then a glock's `inner`, then worker queues
//! and the lock service.

use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dlm_client::{Event as DlmEvent, Lkf, LockId, Lockspace};
use parking_lot::{Condvar, Mutex, RwLock};

use super::lock::{Glock, Place};
use super::machine::Event;
use super::name::GlockName;
use super::ops::{GlockOps, KernelCache};
use super::state::State;
use super::worker::{Duty, Keeper, Pool, Task};
use crate::error::FsError;
use crate::hash::{Quick, QuickMap};

const SHARDS: usize = 64;
/// A glock that is to be freed but still in somebody's hands is looked at again after this long, so many times.
const FREE_RETRY: Duration = Duration::from_millis(2);
const FREE_RETRIES: u32 = 50;

/// Counts since the mount; see [`super::table::GlockStats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits_of_freed: AtomicU64,
    pub(crate) queued: AtomicU64,
    pub(crate) waits: AtomicU64,
    pub(crate) dlm_calls: AtomicU64,
    pub(crate) demotes: AtomicU64,
    pub(crate) basts: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) invalidates: AtomicU64,
    pub(crate) kernel_flushes: AtomicU64,
    pub(crate) freed: AtomicU64,
}

#[derive(Default)]
struct Shard {
    map: Mutex<QuickMap<GlockName, Arc<Glock>>>,
    /// A dying glock is gone.
    freed: Condvar,
}

/// Called once, with the first error that makes the node stop.
pub(crate) type WithdrawSink = Arc<dyn Fn(FsError) + Send + Sync>;
/// Called with lock service events that belong to no glock.
pub(crate) type EventSink = Arc<dyn Fn(DlmEvent) + Send + Sync>;

pub(crate) struct Shared {
    pub(crate) space: Arc<dyn Lockspace>,
    pub(crate) epoch: Instant,
    shards: Vec<Shard>,
    hasher: Quick,
    count: AtomicUsize,
    budget: AtomicUsize,
    /// The number of glocks at which the keeper is told: the budget, or more while most of them are in use.
    shrink_at: AtomicUsize,
    /// Where the cache-pressure hand stands.
    hand: AtomicUsize,
    pub(crate) blocked: AtomicBool,
    withdrawn: Mutex<Option<Arc<str>>>,
    is_withdrawn: AtomicBool,
    is_recovered: AtomicBool,
    withdraw_called: AtomicBool,
    pub(crate) unmounting: AtomicBool,
    closed: AtomicBool,
    kernel_cache: RwLock<Option<Arc<dyn KernelCache>>>,
    pub(crate) flush_pool: Pool,
    pub(crate) demote_pool: Pool,
    pub(crate) keeper: Keeper,
    pub(crate) counters: Counters,
    on_withdraw: WithdrawSink,
    on_event: EventSink,
    settled_lock: Mutex<()>,
    /// Some demote has ended.
    pub(crate) settled: Condvar,
}

impl Shared {
    pub(crate) fn new(
        space: Arc<dyn Lockspace>,
        budget: usize,
        on_withdraw: WithdrawSink,
        on_event: EventSink,
    ) -> Self {
        Self {
            space,
            epoch: Instant::now(),
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            hasher: Quick::default(),
            count: AtomicUsize::new(0),
            budget: AtomicUsize::new(budget),
            shrink_at: AtomicUsize::new(budget),
            hand: AtomicUsize::new(0),
            blocked: AtomicBool::new(false),
            withdrawn: Mutex::new(None),
            is_withdrawn: AtomicBool::new(false),
            is_recovered: AtomicBool::new(false),
            withdraw_called: AtomicBool::new(false),
            unmounting: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            kernel_cache: RwLock::new(None),
            flush_pool: Pool::new(Place::Flush),
            demote_pool: Pool::new(Place::Demote),
            keeper: Keeper::default(),
            counters: Counters::default(),
            on_withdraw,
            on_event,
            settled_lock: Mutex::new(()),
            settled: Condvar::new(),
        }
    }

    /// Time of the machines.
    pub(crate) fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    pub(crate) fn pool(&self, place: Place) -> &Pool {
        if place == Place::Flush {
            &self.flush_pool
        } else {
            &self.demote_pool
        }
    }

    pub(crate) fn kernel_cache(&self) -> Option<Arc<dyn KernelCache>> {
        self.kernel_cache.read().clone()
    }

    pub(crate) fn set_kernel_cache(&self, cache: Option<Arc<dyn KernelCache>>) {
        *self.kernel_cache.write() = cache;
    }

    fn shard(&self, name: GlockName) -> &Shard {
        let hash = self.hasher.hash_one(name);
        // Neither the low bits nor the highest: those choose the place within the shard's map.
        let index = usize::try_from((hash >> 32) % (SHARDS as u64)).unwrap_or(0);
        &self.shards[index]
    }

    fn lock_error(name: GlockName, what: &str) -> FsError {
        FsError::Lock {
            name: name.to_string(),
            what: what.to_owned(),
        }
    }

    /// The glock of a name, made if there is none.
    pub(crate) fn get(
        self: &Arc<Self>,
        name: GlockName,
        ops: &Arc<dyn GlockOps>,
    ) -> Result<Arc<Glock>, FsError> {
        let token = name
            .token()
            .ok_or_else(|| Self::lock_error(name, "number out of range: below 2^60 expected"))?;
        let shard = self.shard(name);
        let mut map = shard.map.lock();
        loop {
            if self.closed.load(Ordering::SeqCst) {
                return Err(Self::lock_error(name, "the lock table is closed"));
            }
            match map.get(&name) {
                None => break,
                Some(glock) if glock.dying.load(Ordering::Acquire) => shard.freed.wait(&mut map),
                Some(glock) => {
                    if !glock.referenced.load(Ordering::Relaxed) {
                        glock.referenced.store(true, Ordering::Relaxed);
                    }
                    return Ok(Arc::clone(glock));
                }
            }
        }
        let glock = Arc::new(Glock::new(name, token, Arc::clone(ops), Arc::clone(self)));
        if self.is_withdrawn.load(Ordering::SeqCst) {
            glock.feed(Event::Withdrawn, Place::Inline);
        }
        if self.is_recovered.load(Ordering::SeqCst) {
            glock.feed(Event::Recovered, Place::Inline);
        }
        map.insert(name, Arc::clone(&glock));
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.shrink_at.load(Ordering::Relaxed) {
            self.keeper.shrink();
        }
        Ok(glock)
    }

    /// The glock of a name if there is one.
    pub(crate) fn find(&self, name: GlockName) -> Option<Arc<Glock>> {
        self.shard(name).map.lock().get(&name).cloned()
    }

    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// All glocks there are, sorted by name.
    pub(crate) fn all(&self) -> Vec<Arc<Glock>> {
        let mut all: Vec<_> = self
            .shards
            .iter()
            .flat_map(|shard| shard.map.lock().values().cloned().collect::<Vec<_>>())
            .collect();
        all.sort_by_key(|glock| glock.name());
        all
    }

    fn remove(&self, map: &mut QuickMap<GlockName, Arc<Glock>>, name: GlockName) {
        if let Some(glock) = map.remove(&name) {
            self.count.fetch_sub(1, Ordering::Relaxed);
            self.counters.freed.fetch_add(1, Ordering::Relaxed);
            self.counters
                .hits_of_freed
                .fetch_add(glock.inner.lock().hits, Ordering::Relaxed);
        }
    }

    /// The lock service has unlocked it: the name is free.
    fn forget(&self, name: GlockName) {
        let shard = self.shard(name);
        self.remove(&mut shard.map.lock(), name);
        shard.freed.notify_all();
        self.settled.notify_all();
    }

    /// Frees a glock that is unlocked, clean and in nobody's hands. False: it is still in somebody's hands.
    pub(crate) fn try_free(&self, name: GlockName) -> bool {
        let shard = self.shard(name);
        let mut map = shard.map.lock();
        let Some(glock) = map.get(&name) else { return true };
        // Under the shard's lock nobody can get hold of it who has not got it now.
        if Arc::strong_count(glock) > 1 {
            return false;
        }
        let inner = glock.inner.lock();
        if glock.dying.load(Ordering::Acquire) || !inner.machine.is_unlocked() || !glock.is_clean() {
            return true;
        }
        let Some(id) = inner.lock else {
            drop(inner);
            self.remove(&mut map, name);
            return true;
        };
        glock.dying.store(true, Ordering::Release);
        drop(inner);
        if let Err(error) = self.space.unlock(id, Lkf::empty(), None) {
            tracing::warn!(glock = %name, %error, "unlock");
            self.remove(&mut map, name);
            shard.freed.notify_all();
        }
        true
    }

    /// Cache pressure: goes round the glocks like a clock hand; what was not used since the last round and is in
    /// nobody's hands is demoted, then freed.
    pub(crate) fn shrink(self: &Arc<Self>) {
        let budget = self.budget.load(Ordering::Relaxed);
        self.shrink_to(budget - budget / 16);
        // Those in use cannot go: looking again is worth it only when there are a good many more.
        let next = self.len().saturating_add(budget / 16).max(budget);
        self.shrink_at.store(next, Ordering::Relaxed);
    }

    /// Sets the number of glocks that are kept.
    pub(crate) fn set_budget(&self, budget: usize) {
        self.budget.store(budget, Ordering::Relaxed);
        self.shrink_at.store(budget, Ordering::Relaxed);
    }

    /// Asks unused glocks down until `target` are left, or none can go.
    pub(crate) fn shrink_to(self: &Arc<Self>, target: usize) {
        let mut excess = self.len().saturating_sub(target);
        for _ in 0..2 * SHARDS {
            if excess == 0 {
                return;
            }
            let hand = self.hand.fetch_add(1, Ordering::Relaxed) % SHARDS;
            let mut victims = self.unused(hand, excess);
            excess -= victims.len();
            victims.sort_by_key(|glock| glock.name());
            self.let_go(victims);
        }
    }

    /// Demotes these, and frees those that are unlocked; the others are freed when they are.
    fn let_go(self: &Arc<Self>, victims: Vec<Arc<Glock>>) {
        let mut unlocked = Vec::new();
        for glock in victims {
            let name = glock.name();
            if self.demote_to_free(&glock) {
                unlocked.push(name);
            }
        }
        for name in unlocked {
            self.try_free(name);
        }
    }

    /// Gives up those of these glocks that nobody has.
    pub(crate) fn retire(self: &Arc<Self>, names: impl Iterator<Item = GlockName>) {
        let idle = names.filter_map(|name| {
            let map = self.shard(name).map.lock();
            let glock = map.get(&name)?;
            let idle = Arc::strong_count(glock) == 1 && !glock.dying.load(Ordering::Acquire);
            idle.then(|| Arc::clone(glock))
        });
        let idle: Vec<_> = idle.collect();
        self.let_go(idle);
    }

    /// Up to `limit` glocks of a shard that nobody has; those used lately get a second chance.
    fn unused(&self, shard: usize, limit: usize) -> Vec<Arc<Glock>> {
        let map = self.shards[shard].map.lock();
        map.values()
            .filter(|glock| Arc::strong_count(glock) == 1 && !glock.dying.load(Ordering::Acquire))
            .filter(|glock| !glock.referenced.swap(false, Ordering::Relaxed))
            .take(limit)
            .cloned()
            .collect()
    }

    /// True: it is unlocked and can go.
    fn demote_to_free(&self, glock: &Arc<Glock>) -> bool {
        let unmounting = self.unmounting.load(Ordering::Relaxed);
        {
            let inner = glock.inner.lock();
            if inner.machine.is_unlocked() {
                return true;
            }
            let busy =
                inner.machine.phase() != super::machine::Phase::Idle || !inner.machine.holders().is_empty();
            if busy || (glock.needs_log_flush() && !unmounting) {
                return false;
            }
        }
        // Asked with `inner` let go: it is the code of another layer. Whoever comes in between takes the mark off.
        if !unmounting && !glock.ops().is_settled(glock.name()) {
            return false;
        }
        glock.inner.lock().free_when_unlocked = true;
        glock.feed(Event::Demote(State::Un), Place::Inline);
        false
    }

    /// The node must stop writing. The first cause counts.
    pub(crate) fn withdraw(&self, who: &dyn fmt::Display, error: FsError) {
        tracing::error!(glock = %who, %error, "the node must withdraw");
        if !self.withdraw_called.swap(true, Ordering::SeqCst) {
            *self.withdrawn.lock() = Some(error.to_string().into());
            (self.on_withdraw)(error);
        }
    }

    pub(crate) fn withdrawn_error(&self) -> FsError {
        let cause = self.withdrawn.lock().clone();
        FsError::Withdrawn(cause.unwrap_or_else(|| "lock service left".into()))
    }

    pub(crate) fn set_withdrawn(&self, cause: &str) {
        self.withdraw_called.store(true, Ordering::SeqCst);
        self.withdrawn.lock().get_or_insert_with(|| cause.into());
        self.is_withdrawn.store(true, Ordering::SeqCst);
        for glock in self.all() {
            glock.feed(Event::Withdrawn, Place::Inline);
        }
    }

    pub(crate) fn set_recovered(&self) {
        self.is_recovered.store(true, Ordering::SeqCst);
        for glock in self.all() {
            glock.feed(Event::Recovered, Place::Inline);
        }
    }

    pub(crate) fn unblock(&self) {
        self.blocked.store(false, Ordering::SeqCst);
        for glock in self.all() {
            glock.feed(Event::Unblock, Place::Inline);
        }
    }

    /// Sleeps until some demote has ended, or for `at_most`.
    pub(crate) fn wait_settled(&self, at_most: Duration) {
        let mut lock = self.settled_lock.lock();
        self.settled.wait_for(&mut lock, at_most);
    }

    /// The life of the event thread: one event after the other, in the order of the lock service.
    pub(crate) fn dispatch(&self, event: DlmEvent) {
        match &event {
            DlmEvent::Cast(cast) => {
                if let Some(glock) = self.glock_of(cast.token) {
                    if glock.answered(*cast) {
                        self.forget(glock.name());
                    }
                    return;
                }
            }
            DlmEvent::Bast { id, token, mode } => {
                if let Some(glock) = self.glock_of(*token) {
                    self.blocking_callback(&glock, *id, State::making_room_for(*mode));
                    return;
                }
            }
            DlmEvent::Fatal(error) => {
                let error = FsError::Lock {
                    name: "lockspace".to_owned(),
                    what: error.to_string(),
                };
                self.withdraw(&"lockspace", error);
            }
            _ => {}
        }
        (self.on_event)(event);
    }

    fn glock_of(&self, token: u64) -> Option<Arc<Glock>> {
        self.find(GlockName::from_token(token)?)
    }

    fn blocking_callback(&self, glock: &Arc<Glock>, id: LockId, wanted: State) {
        self.counters.basts.fetch_add(1, Ordering::Relaxed);
        if glock.inner.lock().lock == Some(id) {
            glock.feed(Event::Bast(wanted), Place::Inline);
        }
    }

    /// The life of the keeper thread.
    pub(crate) fn keep(self: &Arc<Self>) {
        loop {
            match self.keeper.next() {
                Duty::Stop => return,
                Duty::Shrink => self.shrink(),
                Duty::Run(Task::Tick(glock)) => {
                    if let Some(glock) = glock.upgrade() {
                        glock.feed(Event::Tick, Place::Inline);
                    }
                }
                Duty::Run(Task::Retry(glock)) => {
                    if let Some(glock) = glock.upgrade() {
                        glock.retry_call();
                    }
                }
                Duty::Run(Task::Free(name, tries)) => {
                    if !self.try_free(name) && tries < FREE_RETRIES {
                        self.keeper
                            .at(Instant::now() + FREE_RETRY, Task::Free(name, tries + 1));
                    }
                }
            }
        }
    }

    /// No lock service any more: fails everybody who waits, empties the map, ends the threads.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for glock in self.all() {
            glock.shut_down();
        }
        self.flush_pool.stop();
        self.demote_pool.stop();
        self.keeper.stop();
        for shard in &self.shards {
            shard.map.lock().clear();
            shard.freed.notify_all();
        }
        self.count.store(0, Ordering::Relaxed);
        self.set_kernel_cache(None);
    }
}
