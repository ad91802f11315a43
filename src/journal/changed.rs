//! Who waits for something to change in the log, and how they are woken.
//!
//! Invariant: [`super::state::State::events`] grows before anybody is told; who waits looks at it, with the state locked,
//! after he has said that he waits.

use crate::cache::lock;
use crate::glock::{Interrupt, Waiter};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// The waiters of a journal.
#[derive(Debug, Default)]
pub(super) struct Changed {
    condvar: Condvar,
    /// Those whose wait may end otherwise, too.
    others: Mutex<Vec<Arc<Waiter>>>,
}

impl Changed {
    /// Something has changed.
    pub(super) fn notify_all(&self) {
        self.condvar.notify_all();
        for waiter in lock(&self.others).iter() {
            waiter.signal();
        }
    }

    /// Gives up `guard` until something has changed (or not).
    pub(super) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.condvar
            .wait(guard)
            .expect("a thread panicked in the journal")
    }

    /// Joins those who wait; `interrupt` wakes him, too.
    pub(super) fn join(&self, interrupt: Option<Arc<Interrupt>>) -> Waiting<'_> {
        let waiter = Arc::new(Waiter::default());
        lock(&self.others).push(Arc::clone(&waiter));
        if let Some(interrupt) = &interrupt {
            interrupt.watch(&waiter);
        }
        Waiting {
            changed: self,
            waiter,
            interrupt,
        }
    }
}

/// One who waits.
pub(super) struct Waiting<'a> {
    changed: &'a Changed,
    waiter: Arc<Waiter>,
    interrupt: Option<Arc<Interrupt>>,
}

impl Waiting<'_> {
    /// How often he was woken so far; to be asked before looking at what he waits for.
    pub(super) fn signals(&self) -> u64 {
        self.waiter.signals()
    }

    /// Sleeps until woken more often than `seen` times. No lock of the journal may be held.
    pub(super) fn sleep(&self, seen: u64) {
        self.waiter.wait_past(seen, None);
    }

    /// Was he taken out of his wait?
    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupt
            .as_ref()
            .is_some_and(|interrupt| interrupt.is_hit())
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(interrupt) = &self.interrupt {
            interrupt.unwatch();
        }
        // Not `lock`: during a panic this must not panic again.
        if let Ok(mut others) = self.changed.others.lock() {
            others.retain(|other| !Arc::ptr_eq(other, &self.waiter));
        }
    }
}
