//! What a thread has of a glock: a guard while it holds it, a pending request while it waits.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::lock::Glock;
use super::machine::{FailReason, Holder, HolderId};
use super::state::{HolderFlags, State};
use super::wait::{Interrupt, Waiter};
use crate::error::{Errno, FsError};

/// The lock is held; dropping the guard lets it go (it stays cached unless NOCACHE was asked for).
#[must_use = "the lock is released when the guard is dropped"]
pub struct GlockGuard {
    glock: Arc<Glock>,
    id: HolderId,
    state: State,
    flags: HolderFlags,
}

impl GlockGuard {
    pub(crate) const fn new(glock: Arc<Glock>, id: HolderId, state: State, flags: HolderFlags) -> Self {
        Self {
            glock,
            id,
            state,
            flags,
        }
    }

    /// The state it was asked for in; the lock itself may be higher ([`Glock::held_state`]).
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// How it was asked for.
    #[must_use]
    pub const fn flags(&self) -> HolderFlags {
        self.flags
    }

    /// The lock.
    #[must_use]
    pub const fn glock(&self) -> &Arc<Glock> {
        &self.glock
    }

    /// Lets go, and waits until a demote that is wanted has happened (all of it, with NOCACHE). False: not in time.
    pub fn release_and_wait(self, timeout: Duration) -> bool {
        let glock = Arc::clone(&self.glock);
        drop(self);
        glock.wait_demoted(timeout)
    }
}

impl Drop for GlockGuard {
    fn drop(&mut self) {
        self.glock.release(self.id);
    }
}

impl fmt::Debug for GlockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GlockGuard({} {})", self.glock.name(), self.state)
    }
}

/// A request that is queued. Dropping it gives the request up; nothing has to be waited for then.
#[must_use = "the request is given up when this is dropped"]
pub struct PendingGlock {
    glock: Arc<Glock>,
    id: HolderId,
    state: State,
    flags: HolderFlags,
    waiter: Arc<Waiter>,
    /// The outcome, once it is known and not yet collected.
    outcome: Option<Result<(), FailReason>>,
    collected: bool,
    waiting_since: Option<Instant>,
}

impl PendingGlock {
    pub(crate) fn new(glock: Arc<Glock>, holder: &Holder, waiter: Arc<Waiter>) -> Self {
        let Holder { id, state, flags, .. } = *holder;
        Self {
            glock,
            id,
            state,
            flags,
            waiter,
            outcome: None,
            collected: false,
            waiting_since: None,
        }
    }

    /// The lock asked for.
    #[must_use]
    pub const fn glock(&self) -> &Arc<Glock> {
        &self.glock
    }

    /// Has it been granted or refused?
    #[must_use]
    pub fn is_ready(&mut self) -> bool {
        if self.outcome.is_none() && !self.collected {
            let waited = self.waiting_since.map_or(Duration::ZERO, |since| since.elapsed());
            self.outcome = self.glock.take_outcome(self.id, waited);
        }
        self.outcome.is_some()
    }

    /// Waits as long as it takes, or until the thread is interrupted where that is allowed ([`Interrupt::allow`]).
    ///
    /// # Errors
    /// As [`Glock::acquire`]; EINTR.
    pub fn wait(mut self) -> Result<GlockGuard, FsError> {
        if self.is_ready() {
            return self.collect();
        }
        let interrupt = Interrupt::current();
        loop {
            if let Some(result) = self.wait_until(None, interrupt.as_deref()) {
                return result;
            }
        }
    }

    /// Waits until it is granted or refused, the deadline passes (`None`: the request still stands) or the interrupt
    /// hits (EINTR: drop the request to give it up).
    pub fn wait_until(
        &mut self,
        deadline: Option<Instant>,
        interrupt: Option<&Interrupt>,
    ) -> Option<Result<GlockGuard, FsError>> {
        if let Some(interrupt) = interrupt {
            interrupt.watch(&self.waiter);
        }
        let mut in_time = true;
        let result = loop {
            let seen = self.waiter.signals();
            if self.is_ready() {
                break Some(self.collect());
            }
            if interrupt.is_some_and(Interrupt::is_hit) {
                break Some(Err(FsError::Posix(Errno::EINTR)));
            }
            if !in_time {
                break None;
            }
            self.note_waiting();
            in_time = self.waiter.wait_past(seen, deadline);
        };
        if let Some(interrupt) = interrupt {
            interrupt.unwatch();
        }
        result
    }

    pub(crate) fn note_waiting(&mut self) {
        if self.waiting_since.is_none() {
            self.waiting_since = Some(Instant::now());
            self.glock.shared.counters.waits.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The guard (with the object read) or the error; the outcome must be known.
    pub(crate) fn collect(&mut self) -> Result<GlockGuard, FsError> {
        let outcome = self.outcome.take();
        self.collected = true;
        match outcome {
            Some(Ok(())) => {
                let guard = GlockGuard::new(Arc::clone(&self.glock), self.id, self.state, self.flags);
                self.glock.make_ready(self.state, self.flags, false)?;
                Ok(guard)
            }
            Some(Err(reason)) => Err(self.glock.error_of(reason)),
            None => Err(FsError::Posix(Errno::EINVAL)),
        }
    }
}

impl Drop for PendingGlock {
    fn drop(&mut self) {
        if !self.collected && !matches!(self.outcome, Some(Err(_))) {
            self.glock.abandon(self.id);
        }
    }
}

impl fmt::Debug for PendingGlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PendingGlock({} {})", self.glock.name(), self.state)
    }
}
