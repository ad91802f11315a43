//! Who waits for something to change in the log, and how they are woken.
//!
//! Invariant: [`super::state::State::events`] grows before anybody is told; who waits looks at it, with the state locked,
//! after he has said that he waits. So whoever changed it under that lock and then sees nobody waiting has nobody to
//! tell: telling costs no system call while nobody waits, and every change is told.

use crate::cache::lock;
use crate::glock::{Interrupt, Waiter};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// The waiters of a journal.
#[derive(Debug, Default)]
pub(super) struct Changed {
    condvar: Condvar,
    /// How many have said that they wait, of both kinds. Changes with the state locked (growing) or any time (falling).
    waiting: AtomicUsize,
    /// Those whose wait may end otherwise, too.
    others: Mutex<Vec<Arc<Waiter>>>,
}

impl Changed {
    /// Something has changed, under the lock of the state that was given up since (or is held still).
    pub(super) fn notify_all(&self) {
        if self.waiting() == 0 {
            return;
        }
        self.condvar.notify_all();
        for waiter in lock(&self.others).iter() {
            waiter.signal();
        }
    }

    /// How many wait now.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Gives up `guard` until something has changed (or not).
    pub(super) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let guard = self
            .condvar
            .wait(guard)
            .expect("a thread panicked in the journal");
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        guard
    }

    /// Joins those who wait; `interrupt` wakes him, too. The caller has the state locked.
    pub(super) fn join(&self, interrupt: Option<Arc<Interrupt>>) -> Waiting<'_> {
        let waiter = Arc::new(Waiter::default());
        self.waiting.fetch_add(1, Ordering::SeqCst);
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
        self.changed.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
