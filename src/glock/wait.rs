//! Waiting for one or several glocks, with a deadline and an interrupt.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

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

/// Takes a waiting thread out of its wait (a FUSE INTERRUPT of a rename or flock). Once hit, it stays hit.
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

    pub(crate) fn watch(&self, waiter: &Arc<Waiter>) {
        *self.sleeping.lock() = Some(Arc::clone(waiter));
    }

    pub(crate) fn unwatch(&self) {
        *self.sleeping.lock() = None;
    }
}
