//! What can be asked and noted about one glock: its holders, its demote, and what is dirty or pinned under it.

use std::any::Any;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use dlm_client::Lvb;

use super::{Glock, Place};
use crate::glock::machine::{Event, Phase};
use crate::glock::state::State;
use crate::glock::thread_id;

impl Glock {
    /// The state the lock service has granted us.
    #[must_use]
    pub fn held_state(&self) -> State {
        self.inner.lock().machine.state()
    }

    /// Has the calling thread got this lock?
    #[must_use]
    pub fn is_held_by_me(&self) -> bool {
        self.state_held_by_me().is_some()
    }

    /// In which state the calling thread has got this lock (what it asked for; the lock itself may be higher).
    #[must_use]
    pub fn state_held_by_me(&self) -> Option<State> {
        let me = Some(thread_id::current());
        let inner = self.inner.lock();
        let mut holders = inner.machine.holders().iter();
        holders
            .find(|holder| holder.is_granted() && holder.owner == me)
            .map(|holder| holder.state)
    }

    /// Is a demote wanted or under way?
    #[must_use]
    pub fn is_demote_wanted(&self) -> bool {
        self.inner.lock().machine.demote().is_some()
    }

    /// Asks for a step down by ourselves; it happens when the holders are gone. [`Glock::wait_demoted`] waits for it.
    pub fn request_demote(self: &Arc<Self>, wanted: State) {
        self.feed(Event::Demote(wanted), Place::Inline);
    }

    /// Waits until no demote is wanted or under way any more. False: not in time, or the lock is kept for ever.
    #[must_use]
    pub fn wait_demoted(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut inner = self.inner.lock();
        while inner.machine.demote().is_some() {
            if inner.machine.phase() == Phase::Stuck
                || self.changed.wait_until(&mut inner, deadline).timed_out()
            {
                return inner.machine.demote().is_none();
            }
        }
        true
    }

    /// An EX holder changed something: sync has work to do.
    pub fn mark_dirty(&self) {
        debug_assert_eq!(self.held_state(), State::Ex, "{} changed without EX", self.name);
        self.dirty.store(true, Ordering::Release);
    }

    /// Was something changed since the last sync?
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    /// The log holds pinned blocks or unwritten revokes of this lock: it must be flushed for it.
    pub fn set_lflush(&self) {
        self.lflush.store(true, Ordering::Release);
    }

    /// The log was flushed.
    pub fn clear_lflush(&self) {
        self.lflush.store(false, Ordering::Release);
    }

    /// See [`Glock::set_lflush`].
    #[must_use]
    pub fn needs_log_flush(&self) -> bool {
        self.lflush.load(Ordering::Acquire)
    }

    /// Blocks of this lock entered (positive) or left (negative) the list of those in the log and not in place.
    pub fn add_ail(&self, blocks: i64) {
        let before = self.ail.fetch_add(blocks, Ordering::AcqRel);
        debug_assert!(
            before + blocks >= 0,
            "{}: {before} {blocks:+} blocks in the AIL",
            self.name
        );
    }

    /// Blocks of this lock in the log and not in place. Must be none after a sync.
    #[must_use]
    pub fn ail_count(&self) -> i64 {
        self.ail.load(Ordering::Acquire)
    }

    /// Revokes that keep this glock alive came (positive) or went (negative).
    pub fn add_revokes(&self, revokes: i64) {
        let before = self.revokes.fetch_add(revokes, Ordering::AcqRel);
        debug_assert!(
            before + revokes >= 0,
            "{}: {before} {revokes:+} revokes",
            self.name
        );
    }

    /// Revokes that keep this glock alive.
    #[must_use]
    pub fn revokes(&self) -> i64 {
        self.revokes.load(Ordering::Acquire)
    }

    /// Is nothing of this lock on its way to the disk?
    pub(crate) fn is_clean(&self) -> bool {
        !self.is_dirty() && !self.needs_log_flush() && self.ail_count() == 0 && self.revokes() == 0
    }

    /// The lock value block, as it came with the last grant or was set since.
    #[must_use]
    pub fn lvb(&self) -> Lvb {
        self.inner.lock().lvb
    }

    /// Sets the lock value block; it goes to the cluster with the step down from EX. Needs EX.
    pub fn set_lvb(&self, lvb: &Lvb) {
        let mut inner = self.inner.lock();
        debug_assert!(self.name.ty.has_lvb(), "{} has no lock value block", self.name);
        debug_assert_eq!(
            inner.machine.state(),
            State::Ex,
            "{}: LVB set without EX",
            self.name
        );
        inner.lvb = *lvb;
    }

    /// Has the object read again by its next holder.
    pub fn need_instantiate(&self) {
        self.inner.lock().machine.need_instantiate();
    }

    /// Exempts the lock from the consequences of a withdraw: the inode of our own journal.
    pub fn set_not_journaled(&self) {
        self.inner.lock().machine.set_not_journaled();
    }

    /// Attaches the object the lock protects, for `GlockOps` to find it; `None` takes it off.
    pub fn set_object(&self, object: Option<Weak<dyn Any + Send + Sync>>) {
        *self.object.lock() = object;
    }

    /// The object, if one of that type is attached and alive.
    #[must_use]
    pub fn object<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        let object = self.object.lock().as_ref()?.upgrade()?;
        object.downcast().ok()
    }

    pub(crate) fn has_object(&self) -> bool {
        self.object
            .lock()
            .as_ref()
            .is_some_and(|object| object.strong_count() > 0)
    }
}
