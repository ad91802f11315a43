//! One glock: its machine, and the threads and services that carry out what the machine says.
//!
//! Invariants
//! - `inner` is held for moments only: never across code of the layers above, never across a wait. Lock service calls
//!   are made under it (they return at once), so a reply cannot be seen before the lock id it belongs to.
//! - Actions are carried out in the order the machine gave them; a step that may block is carried out by a worker of
//!   its own kind only.
//! - The uncontended cached acquire and release take `inner` once each, and nothing else.

mod facts;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use dlm_client::{Cast, LockError, LockId, Lvb, ResName, SbFlags, Status};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::guard::{GlockGuard, PendingGlock};
use super::machine::{
    Action, Cause, Event, FailReason, Holder, HolderId, Instantiate, Kind, LockCall, Machine, Outcome,
};
use super::name::{GlockName, LockType};
use super::ops::{CONTENDED_AFTER, GlockOps, Verdict};
use super::shared::Shared;
use super::state::{HolderFlags, State};
use super::thread_id;
use super::wait::Waiter;
use super::worker::{Job, Task};
use crate::error::{Errno, FsError};

/// How long a lock the service calls busy is left alone.
const BUSY_RETRY: Duration = Duration::from_millis(20);

/// Which thread carries actions out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Any that must not block: a caller, the event thread, the keeper.
    Inline,
    /// A `glock-flush` worker: may wait for the kernel.
    Flush,
    /// A `glock-demote` worker: may wait for the disk.
    Demote,
}

struct Waiting {
    id: HolderId,
    waiter: Arc<Waiter>,
    outcome: Option<Result<(), FailReason>>,
}

pub(crate) struct Inner {
    pub(crate) machine: Machine,
    waiting: Vec<Waiting>,
    last_id: HolderId,
    pub(crate) lock: Option<LockId>,
    lvb: Lvb,
    retry: Option<LockCall>,
    sync_error: Option<FsError>,
    pub(crate) free_when_unlocked: bool,
    pub(crate) hits: u64,
}

impl Inner {
    fn new_id(&mut self) -> HolderId {
        self.last_id += 1;
        self.last_id
    }

    fn set_outcome(&mut self, id: HolderId, outcome: Result<(), FailReason>) {
        if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.id == id) {
            waiting.outcome = Some(outcome);
            waiting.waiter.signal();
        }
    }
}

/// Bytes a cached glock takes: itself, its entry in the table, and its lock and resource at the lock service.
pub(crate) const GLOCK_BYTES: usize = size_of::<Glock>() + 640;

/// A cluster lock; see the module's README. Obtained from [`super::table::GlockTable::get`].
pub struct Glock {
    name: GlockName,
    res_name: ResName,
    token: u64,
    ops: Arc<dyn GlockOps>,
    pub(crate) shared: Arc<Shared>,
    dirty: AtomicBool,
    lflush: AtomicBool,
    ail: AtomicI64,
    revokes: AtomicI64,
    /// Used since the cache-pressure hand came by last.
    pub(crate) referenced: AtomicBool,
    /// Being unlocked at the lock service; whoever wants the name waits until it is gone.
    pub(crate) dying: AtomicBool,
    object: Mutex<Option<Weak<dyn Any + Send + Sync>>>,
    pub(crate) inner: Mutex<Inner>,
    /// Demote done, object read, state changed.
    changed: Condvar,
}

impl Glock {
    pub(crate) fn new(name: GlockName, token: u64, ops: Arc<dyn GlockOps>, shared: Arc<Shared>) -> Self {
        let kind = Kind {
            has_hold_time: name.ty == LockType::Inode,
            presence_only: ops.presence_only(),
            kernel_cached: ops.kernel_cached(name),
            journaled: name.ty.is_journaled(),
            has_lvb: name.ty.has_lvb(),
        };
        Self {
            name,
            res_name: name.res_name(),
            token,
            ops,
            shared,
            dirty: AtomicBool::new(false),
            lflush: AtomicBool::new(false),
            ail: AtomicI64::new(0),
            revokes: AtomicI64::new(0),
            referenced: AtomicBool::new(true),
            dying: AtomicBool::new(false),
            object: Mutex::new(None),
            inner: Mutex::new(Inner {
                machine: Machine::new(kind),
                waiting: Vec::new(),
                last_id: 0,
                lock: None,
                lvb: [0; 32],
                retry: None,
                sync_error: None,
                free_when_unlocked: false,
                hits: 0,
            }),
            changed: Condvar::new(),
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> GlockName {
        self.name
    }

    /// The object's side.
    #[must_use]
    pub fn ops(&self) -> &Arc<dyn GlockOps> {
        &self.ops
    }

    /// Takes the lock; waits for other holders and other nodes as long as it takes. The guard gives it back.
    ///
    /// Cached and uncontended it costs one mutex and no message.
    ///
    /// # Errors
    /// EAGAIN for a failed try, ECHILD for NOBLOCK, withdrawn, a lock service error, or what reading the object gave.
    #[track_caller]
    pub fn acquire(self: &Arc<Self>, state: State, flags: HolderFlags) -> Result<GlockGuard, FsError> {
        let site = Location::caller();
        let mut inner = self.inner.lock();
        let holder = Holder::new(inner.new_id(), state, flags, owner(flags), site);
        if cfg!(debug_assertions) {
            inner = self.check_recursion(inner, &holder)?;
        }
        if state == State::Un || !inner.machine.try_fast(holder) {
            return self.enqueue(inner, holder, Arc::default())?.wait();
        }
        inner.hits += 1;
        let ready = !inner.machine.is_instantiate_needed();
        drop(inner);
        let guard = GlockGuard::new(Arc::clone(self), holder.id, state, flags);
        self.make_ready(state, flags, ready)?;
        Ok(guard)
    }

    /// As [`Glock::acquire`] without waiting for others: `None` if somebody is in the way.
    ///
    /// # Errors
    /// As [`Glock::acquire`], except EAGAIN.
    #[track_caller]
    pub fn try_acquire(
        self: &Arc<Self>,
        state: State,
        flags: HolderFlags,
    ) -> Result<Option<GlockGuard>, FsError> {
        let flags = if flags.is_try() {
            flags
        } else {
            flags | HolderFlags::TRY
        };
        match self.acquire(state, flags) {
            Ok(guard) => Ok(Some(guard)),
            Err(FsError::Posix(Errno::EAGAIN)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Queues for the lock and returns; wait on what it gives, or drop it to give up.
    ///
    /// # Errors
    /// Recursive locking.
    #[track_caller]
    pub fn acquire_async(
        self: &Arc<Self>,
        state: State,
        flags: HolderFlags,
    ) -> Result<PendingGlock, FsError> {
        self.acquire_async_with(state, flags, &Arc::default())
    }

    /// [`Glock::acquire_async`], waking a waiter that several requests may share.
    #[track_caller]
    pub(crate) fn acquire_async_with(
        self: &Arc<Self>,
        state: State,
        flags: HolderFlags,
        waiter: &Arc<Waiter>,
    ) -> Result<PendingGlock, FsError> {
        let site = Location::caller();
        let flags = flags | HolderFlags::ASYNC;
        let mut inner = self.inner.lock();
        let holder = Holder::new(inner.new_id(), state, flags, owner(flags), site);
        self.enqueue(inner, holder, Arc::clone(waiter))
    }

    fn enqueue<'a>(
        self: &'a Arc<Self>,
        inner: MutexGuard<'a, Inner>,
        holder: Holder,
        waiter: Arc<Waiter>,
    ) -> Result<PendingGlock, FsError> {
        if holder.state == State::Un {
            debug_assert!(false, "{} asked for in UN at {}", self.name, holder.site);
            return Err(FsError::Posix(Errno::EINVAL));
        }
        let mut inner = self.check_recursion(inner, &holder)?;
        self.shared.counters.queued.fetch_add(1, Ordering::Relaxed);
        let pending = PendingGlock::new(Arc::clone(self), &holder, Arc::clone(&waiter));
        inner.free_when_unlocked = false;
        inner.waiting.push(Waiting {
            id: holder.id,
            waiter,
            outcome: None,
        });
        inner.machine.step(self.shared.now(), Event::Enqueue(holder));
        self.drive(inner, Place::Inline);
        Ok(pending)
    }

    /// A thread that has the lock, or waits for it, would wait for itself.
    fn check_recursion<'a>(
        &self,
        inner: MutexGuard<'a, Inner>,
        new: &Holder,
    ) -> Result<MutexGuard<'a, Inner>, FsError> {
        let mut others = inner.machine.holders().iter();
        let same = others.find(|other| other.owner.is_some() && other.owner == new.owner);
        let Some(original) = same.filter(|_| self.name.ty != LockType::Flock) else {
            return Ok(inner);
        };
        let original = original.site;
        drop(inner);
        tracing::error!(glock = %self.name, %original, new = %new.site, "recursive locking");
        debug_assert!(
            false,
            "{} taken at {original} and again at {}",
            self.name, new.site
        );
        let what = format!("taken at {original} and again at {} by the same thread", new.site);
        Err(FsError::Lock {
            name: self.name.to_string(),
            what,
        })
    }

    pub(crate) fn take_outcome(&self, id: HolderId, waited: Duration) -> Option<Result<(), FailReason>> {
        let mut inner = self.inner.lock();
        let index = inner.waiting.iter().position(|waiting| waiting.id == id)?;
        let outcome = inner.waiting.get(index)?.outcome?;
        inner.waiting.swap_remove(index);
        inner.machine.note_wait(waited);
        Some(outcome)
    }

    /// A pending request is given up: as a holder if it was granted meanwhile, as a waiter otherwise.
    pub(crate) fn abandon(self: &Arc<Self>, id: HolderId) {
        let mut inner = self.inner.lock();
        inner.waiting.retain(|waiting| waiting.id != id);
        inner.machine.step(self.shared.now(), Event::Dequeue(id));
        self.drive(inner, Place::Inline);
    }

    pub(crate) fn release(self: &Arc<Self>, id: HolderId) {
        let mut inner = self.inner.lock();
        if !inner.machine.release_fast(id) {
            inner.machine.step(self.shared.now(), Event::Dequeue(id));
            self.drive(inner, Place::Inline);
        }
    }

    pub(crate) fn error_of(&self, reason: FailReason) -> FsError {
        match reason {
            FailReason::TryFailed => FsError::Posix(Errno::EAGAIN),
            FailReason::WouldBlock => FsError::Posix(Errno(libc::ECHILD)),
            FailReason::Withdrawn => self.shared.withdrawn_error(),
            FailReason::Service => FsError::Lock {
                name: self.name.to_string(),
                what: "the lock service refused the request".to_owned(),
            },
        }
    }

    /// Has the object read if need be, and tells it of its new holder.
    pub(crate) fn make_ready(&self, state: State, flags: HolderFlags, ready: bool) -> Result<(), FsError> {
        if flags.contains(HolderFlags::SKIP) {
            return Ok(());
        }
        if !ready {
            self.instantiate()?;
        }
        self.ops.held(self, state, flags)
    }

    fn instantiate(&self) -> Result<(), FsError> {
        /// Clears "in progress" also when the read panics.
        struct Reading<'a>(&'a Glock, bool);
        impl Drop for Reading<'_> {
            fn drop(&mut self) {
                self.0.inner.lock().machine.end_instantiate(self.1);
                self.0.changed.notify_all();
            }
        }
        let mut inner = self.inner.lock();
        loop {
            match inner.machine.begin_instantiate() {
                Instantiate::Ready => return Ok(()),
                Instantiate::Wait => self.changed.wait(&mut inner),
                Instantiate::Run => break,
            }
        }
        drop(inner);
        let mut reading = Reading(self, false);
        self.ops.instantiate(self)?;
        reading.1 = true;
        Ok(())
    }

    /// One event for the machine, and what follows from it.
    pub(crate) fn feed(self: &Arc<Self>, event: Event, place: Place) {
        let mut inner = self.inner.lock();
        inner.machine.step(self.shared.now(), event);
        self.drive(inner, place);
    }

    /// Carries out what the machine says, as far as this thread may.
    fn drive<'a>(self: &'a Arc<Self>, mut inner: MutexGuard<'a, Inner>, place: Place) {
        while let Some(action) = inner.machine.pop_action() {
            match action {
                Action::Grant(id) => inner.set_outcome(id, Ok(())),
                Action::Fail(id, reason) => inner.set_outcome(id, Err(reason)),
                Action::DemoteDone => self.demote_done(&inner),
                Action::Timer(at) => {
                    self.shared
                        .keeper
                        .at(self.shared.epoch + at, Task::Tick(Arc::downgrade(self)));
                }
                Action::Cancel => self.cancel(&inner),
                Action::Lock(call) => inner = self.call(inner, call),
                Action::Callback { remote, wanted } => {
                    drop(inner);
                    let verdict = guarded("callback", || self.ops.callback(self, remote, wanted));
                    inner = self.inner.lock();
                    let ignore = verdict == Some(Verdict::Ignore);
                    inner
                        .machine
                        .step(self.shared.now(), Event::CallbackDone { ignore });
                }
                Action::Withdraw(cause) => {
                    let error = self.withdraw_error(&mut inner, cause);
                    drop(inner);
                    self.shared.withdraw(&self.name, error);
                    inner = self.inner.lock();
                }
                Action::FlushKernel { .. } if self.shared.kernel_cache().is_none() => {
                    inner.machine.step(self.shared.now(), Event::FlushDone);
                }
                Action::FlushKernel { .. } | Action::Sync { .. } | Action::Invalidate { .. } => {
                    let flush = matches!(action, Action::FlushKernel { .. });
                    let own = if flush { Place::Flush } else { Place::Demote };
                    if own == place {
                        drop(inner);
                        inner = self.carry_out(action);
                    } else {
                        self.shared.pool(own).push(Job {
                            glock: Arc::clone(self),
                            action,
                        });
                    }
                }
            }
        }
    }

    /// A worker's turn.
    pub(crate) fn work(self: &Arc<Self>, action: Action, place: Place) {
        let inner = self.carry_out(action);
        self.drive(inner, place);
    }

    /// Carries out a step that may block, and reports it to the machine.
    fn carry_out(&self, action: Action) -> MutexGuard<'_, Inner> {
        let counters = &self.shared.counters;
        let mut failed = None;
        let event = match action {
            Action::FlushKernel { target, pass } => {
                counters.kernel_flushes.fetch_add(1, Ordering::Relaxed);
                self.flush_kernel(target, pass);
                Event::FlushDone
            }
            Action::Sync { target } => {
                counters.syncs.fetch_add(1, Ordering::Relaxed);
                failed = self.sync(target).err();
                Event::SyncDone { ok: failed.is_none() }
            }
            Action::Invalidate { target } => {
                counters.invalidates.fetch_add(1, Ordering::Relaxed);
                if guarded("invalidate", || self.ops.invalidate(self, target)).is_some() {
                    Event::InvalidateDone
                } else {
                    failed = Some(self.broken("invalidate panicked"));
                    Event::SyncDone { ok: false }
                }
            }
            other => unreachable!("{other:?} is not a worker's step"),
        };
        let mut inner = self.inner.lock();
        inner.sync_error = failed;
        inner.machine.step(self.shared.now(), event);
        inner
    }

    fn flush_kernel(&self, target: State, pass: u32) {
        let Some(cache) = self.shared.kernel_cache() else {
            return;
        };
        let number = self.name.number;
        let flushed = guarded("kernel cache", || {
            if pass >= CONTENDED_AFTER {
                cache.contended(number, pass);
            }
            if self.ops.kernel_pages(self) {
                cache.flush_and_invalidate(number, target == State::Sh);
            } else {
                cache.invalidate_attributes(number);
            }
        });
        if flushed.is_none() {
            self.shared
                .withdraw(&self.name, self.broken("the kernel cache's notifier panicked"));
        }
    }

    fn sync(&self, target: State) -> Result<(), FsError> {
        let synced = guarded("sync", || self.ops.sync(self));
        synced.unwrap_or_else(|| Err(self.broken("sync panicked")))?;
        let ail = self.ail.load(Ordering::Acquire);
        if ail != 0 {
            return Err(self.broken(&format!("{ail} blocks left in the log on the way to {target}")));
        }
        self.dirty.store(false, Ordering::Release);
        if self.name.ty.has_lvb() {
            let mut lvb = self.lvb();
            self.ops.fill_lvb(self, &mut lvb);
            self.inner.lock().lvb = lvb;
        }
        Ok(())
    }

    fn broken(&self, what: &str) -> FsError {
        FsError::Inconsistent(format!("glock {}: {what}", self.name))
    }

    fn withdraw_error(&self, inner: &mut Inner, cause: Cause) -> FsError {
        match cause {
            Cause::SyncFailed => inner
                .sync_error
                .take()
                .unwrap_or_else(|| self.broken("sync failed")),
            Cause::Protocol { wanted, got } => self.broken(&format!("wanted {wanted}, got {got}")),
        }
    }

    fn demote_done(&self, inner: &Inner) {
        self.changed.notify_all();
        if inner.free_when_unlocked && inner.machine.is_unlocked() {
            self.shared.keeper.at(Instant::now(), Task::Free(self.name, 0));
        }
        self.shared.settled.notify_all();
    }

    fn cancel(&self, inner: &Inner) {
        if let Some(id) = inner.lock {
            match self.shared.space.cancel(id) {
                // Its answer is on the way already, and counts.
                Ok(()) | Err(LockError::NothingToCancel(_) | LockError::NoSuchLock(_)) => {}
                Err(error) => tracing::warn!(glock = %self.name, %error, "cancel"),
            }
        }
    }

    /// Asks the lock service. An answer that is known at once is processed at once.
    fn call<'a>(
        self: &'a Arc<Self>,
        mut inner: MutexGuard<'a, Inner>,
        call: LockCall,
    ) -> MutexGuard<'a, Inner> {
        let shared = &self.shared;
        shared.counters.dlm_calls.fetch_add(1, Ordering::Relaxed);
        if call.target < inner.machine.state() {
            shared.counters.demotes.fetch_add(1, Ordering::Relaxed);
        }
        let mode = call.target.mode();
        let answer = match inner.lock {
            None => shared
                .space
                .request_now(&self.res_name, mode, call.flags, self.token)
                .map(|(id, cast)| {
                    inner.lock = Some(id);
                    cast
                }),
            Some(id) => shared.space.convert_now(id, mode, call.flags, Some(&inner.lvb)),
        };
        match answer {
            Ok(Some(cast)) => self.apply(inner, cast),
            Ok(None) => inner,
            Err(LockError::Busy(_)) => {
                inner.retry = Some(call);
                shared
                    .keeper
                    .at(Instant::now() + BUSY_RETRY, Task::Retry(Arc::downgrade(self)));
                inner
            }
            Err(error) => {
                tracing::error!(glock = %self.name, %error, wanted = %call.target, "lock service");
                let state = inner.machine.state();
                let reply = Event::Reply {
                    outcome: Outcome::Error,
                    state,
                    hold: false,
                };
                inner.machine.step(shared.now(), reply);
                inner
            }
        }
    }

    /// Repeats a call that found the lock busy.
    pub(crate) fn retry_call(self: &Arc<Self>) {
        let mut inner = self.inner.lock();
        if let Some(call) = inner.retry.take() {
            let inner = self.call(inner, call);
            self.drive(inner, Place::Inline);
        }
    }

    /// The event thread brings an answer. True: the lock was unlocked for good.
    pub(crate) fn answered(self: &Arc<Self>, cast: Cast) -> bool {
        let inner = self.inner.lock();
        if inner.lock != Some(cast.id) {
            tracing::debug!(glock = %self.name, ?cast, "an answer for a lock of the past");
            return false;
        }
        if cast.status == Status::Unlocked {
            return self.dying.load(Ordering::Acquire);
        }
        let inner = self.apply(inner, cast);
        self.drive(inner, Place::Inline);
        false
    }

    fn apply<'a>(self: &'a Arc<Self>, mut inner: MutexGuard<'a, Inner>, cast: Cast) -> MutexGuard<'a, Inner> {
        let before = inner.machine.state();
        let granted = cast.status == Status::Granted;
        let mut outcome = match cast.status {
            Status::Granted => Outcome::Granted,
            Status::Again => Outcome::Again,
            Status::Deadlock => Outcome::Deadlock,
            Status::Canceled => Outcome::Canceled,
            Status::TimedOut | Status::Unlocked | Status::Err(_) => Outcome::Error,
        };
        let state = State::from_mode(cast.mode).unwrap_or(before);
        if cast.sb.contains(SbFlags::DEMOTED) || State::from_mode(cast.mode).is_none() {
            // Our cache's protection was taken without our knowing, or we hold what we never ask for.
            outcome = Outcome::Error;
        }
        if outcome == Outcome::Error {
            tracing::error!(glock = %self.name, ?cast, "lock service");
        }
        if !granted
            && inner
                .machine
                .flags()
                .contains(super::machine::GlockFlags::INITIAL)
        {
            inner.lock = None;
        }
        if granted && self.name.ty.has_lvb() {
            let fresh = if cast.sb.contains(SbFlags::VALNOTVALID) {
                Some([0; 32])
            } else {
                cast.lvb
            };
            if let Some(lvb) = fresh {
                inner.lvb = lvb;
                drop(inner);
                guarded("use_lvb", || self.ops.use_lvb(self, &lvb));
                inner = self.inner.lock();
            }
        }
        let hold = self.shared.blocked.load(Ordering::SeqCst);
        inner
            .machine
            .step(self.shared.now(), Event::Reply { outcome, state, hold });
        tracing::debug!(glock = %self.name, from = %before, to = %inner.machine.state(), ?outcome, "glock");
        self.changed.notify_all();
        inner
    }

    /// The lock service is gone: nobody will be answered any more.
    pub(crate) fn shut_down(self: &Arc<Self>) {
        let mut inner = self.inner.lock();
        inner.machine.shut_down();
        self.drive(inner, Place::Inline);
    }
}

impl fmt::Debug for Glock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Glock({} {})", self.name, self.held_state())
    }
}

fn owner(flags: HolderFlags) -> Option<u32> {
    (!flags.contains(HolderFlags::NOPID)).then(thread_id::current)
}

/// Runs code of another layer; a panic there must not take our threads along. `None`: it panicked (and was reported).
fn guarded<T>(what: &str, code: impl FnOnce() -> T) -> Option<T> {
    let result = catch_unwind(AssertUnwindSafe(code));
    if result.is_err() {
        tracing::error!(what, "panic in a glock operation");
    }
    result.ok()
}
