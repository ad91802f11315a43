//! Waiting for one or several glocks, with a deadline and an interrupt.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::sleep::about_to_sleep;

/// Where a thread sleeps; signalled whenever something it waits for has changed.
#[derive(Debug, Default)]
pub(crate) struct Waiter {
    signals: Mutex<u64>,
    woken: Condvar,
}

impl Waiter {
    /// Something changed.
    pub(crate) fn signal(&self) {
        *self.signals.lock() += 1;
        self.woken.notify_all();
    }

    /// How many signals came so far; take it *before* looking at the state.
    pub(crate) fn signals(&self) -> u64 {
        *self.signals.lock()
    }

    /// Sleeps until more than `seen` signals have come. False: the deadline has passed.
    pub(crate) fn wait_past(&self, seen: u64, deadline: Option<Instant>) -> bool {
        let mut signals = self.signals.lock();
        if *signals <= seen {
            MutexGuard::unlocked(&mut signals, about_to_sleep);
        }
        while *signals <= seen {
            match deadline {
                None => self.woken.wait(&mut signals),
                Some(deadline) => {
                    if self.woken.wait_until(&mut signals, deadline).timed_out() {
                        return *signals > seen;
                    }
                }
            }
        }
        true
    }
}

thread_local! {
    /// What interrupts this thread's waits.
    static INSTALLED: RefCell<Option<Arc<Interrupt>>> = const { RefCell::new(None) };
    /// May they be interrupted now?
    static ALLOWED: Cell<bool> = const { Cell::new(false) };
}

/// Takes a waiting thread out of its wait (a FUSE INTERRUPT). Once hit, it stays hit until it is reset.
#[derive(Debug, Default)]
pub struct Interrupt {
    hit: AtomicBool,
    sleeping: Mutex<Option<Arc<Waiter>>>,
}

impl Interrupt {
    /// Not interrupted yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Interrupts whoever waits with it, now or later.
    pub fn interrupt(&self) {
        self.hit.store(true, Ordering::SeqCst);
        if let Some(waiter) = self.sleeping.lock().as_ref() {
            waiter.signal();
        }
    }

    /// Was it interrupted?
    #[must_use]
    pub fn is_hit(&self) -> bool {
        self.hit.load(Ordering::SeqCst)
    }

    /// Not interrupted any more.
    pub fn reset(&self) {
        self.hit.store(false, Ordering::SeqCst);
    }

    /// From now on this thread's waits for locks end when `self` is hit, wherever that is [allowed](Self::allow).
    pub fn install(self: &Arc<Self>) {
        INSTALLED.set(Some(Arc::clone(self)));
    }

    /// Runs what may be taken out of a wait: it has nothing to lose by EINTR.
    pub fn allow<T>(code: impl FnOnce() -> T) -> T {
        Self::with_allowed(true, code)
    }

    /// Runs what must not be taken out of a wait.
    pub fn shield<T>(code: impl FnOnce() -> T) -> T {
        Self::with_allowed(false, code)
    }

    fn with_allowed<T>(allowed: bool, code: impl FnOnce() -> T) -> T {
        /// Puts it back also when the code panics.
        struct Before(bool);
        impl Drop for Before {
            fn drop(&mut self) {
                ALLOWED.set(self.0);
            }
        }
        let _before = Before(ALLOWED.replace(allowed));
        code()
    }

    /// What interrupts this thread now.
    pub(crate) fn current() -> Option<Arc<Self>> {
        if ALLOWED.get() {
            INSTALLED.with_borrow(Clone::clone)
        } else {
            None
        }
    }

    pub(crate) fn watch(&self, waiter: &Arc<Waiter>) {
        *self.sleeping.lock() = Some(Arc::clone(waiter));
    }

    pub(crate) fn unwatch(&self) {
        *self.sleeping.lock() = None;
    }
}
