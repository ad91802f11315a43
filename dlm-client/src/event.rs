//! Events, and the one totally ordered queue they arrive on.
//!
//! Invariants: events come out in the order they went in; a closed queue still gives out what is on it; a dropped
//! [`EventQueue`] makes the sender notice (rule 10 of the contract).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::time::{ClockId, clock_gettime};

use crate::{LockError, LockId, Lvb, Mode, NodeId, PlockDone, SbFlags};

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Granted in the mode the Cast names.
    Granted,
    /// Not without waiting, which NOQUEUE forbids.
    Again,
    /// A conversion deadlock; the lock keeps its old mode.
    Deadlock,
    /// Unlocked: the lock is no more.
    Unlocked,
    /// Cancelled.
    Canceled,
    /// The lock service gave up on the request.
    TimedOut,
    /// Any other error, a positive errno.
    Err(i32),
}

/// The end of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cast {
    /// The lock.
    pub id: LockId,
    /// The token given at its request.
    pub token: u64,
    /// How it ended.
    pub status: Status,
    /// More about the result.
    pub sb: SbFlags,
    /// The mode held now (NL when the lock is gone).
    pub mode: Mode,
    /// The lock value block, when this transition read it.
    pub lvb: Option<Lvb>,
}

/// A member and its slot; a journal id is the slot minus one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The member.
    pub node: NodeId,
    /// Its slot, from 1; 0 where it is not known ([`crate::JoinOptions::need_slots`]).
    pub slot: u16,
}

/// What the lock service tells.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// An operation ended (completion AST).
    Cast(Cast),
    /// A lock held is in the way of a request for `mode` (blocking AST).
    Bast {
        /// Our lock.
        id: LockId,
        /// Its token.
        token: u64,
        /// The mode somebody waits for.
        mode: Mode,
    },
    /// Membership changes: no Cast until RecoverDone.
    RecoverPrep,
    /// This member failed, and can no longer write.
    RecoverSlot {
        /// The failed member.
        failed: Slot,
    },
    /// Membership is settled, all locks are where they belong.
    RecoverDone {
        /// The members; none where slots are not known ([`crate::JoinOptions::need_slots`]).
        slots: Vec<Slot>,
        /// Our own slot; 0 where it is not known.
        our_slot: u16,
        /// Grows with every membership.
        generation: u32,
    },
    /// An operation on POSIX locks ended.
    Plock(PlockDone),
    /// The lockspace is lost.
    Fatal(LockError),
}

#[derive(Debug)]
struct Shared {
    events: Mutex<VecDeque<Event>>,
    arrived: Condvar,
    closed: AtomicBool,
    abandoned: AtomicBool,
    /// Until when what is queued may be believed, in nanoseconds of [`now`].
    good_until: AtomicU64,
}

/// Nanoseconds of CLOCK_BOOTTIME: it goes on while the machine sleeps.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    part(time.tv_sec)
        .saturating_mul(1_000_000_000)
        .saturating_add(part(time.tv_nsec))
}

impl Shared {
    /// The next event that may be given out. A process that stood still may have been given up meanwhile: what is queued
    /// from before then waits until the backend says that it goes on, and a Fatal overtakes it.
    fn next(&self, events: &mut VecDeque<Event>) -> Option<Event> {
        if events.is_empty() {
            return None;
        }
        let until = self.good_until.load(Ordering::Acquire);
        if until == u64::MAX || now() <= until {
            return events.pop_front();
        }
        let fatal = events.iter().position(|event| matches!(event, Event::Fatal(_)))?;
        events.drain(..fatal);
        events.pop_front()
    }
}

/// A backend's end of a queue.
#[derive(Clone, Debug)]
pub struct EventSender(Arc<Shared>);

/// The user's end of a queue: one reader, or several that agree among themselves who handles what.
#[derive(Debug)]
pub struct EventQueue(Arc<Shared>);

/// A new queue; backends make one per join.
#[must_use]
pub fn queue() -> (EventSender, EventQueue) {
    let shared = Arc::new(Shared {
        events: Mutex::new(VecDeque::new()),
        arrived: Condvar::new(),
        closed: AtomicBool::new(false),
        abandoned: AtomicBool::new(false),
        good_until: AtomicU64::new(u64::MAX),
    });
    (EventSender(Arc::clone(&shared)), EventQueue(shared))
}

impl EventSender {
    /// Queues an event. False: the reader dropped its end, the lockspace is abandoned.
    pub fn send(&self, event: Event) -> bool {
        let heard = self.push(event);
        if heard {
            self.wake(1);
        }
        heard
    }

    /// [`EventSender::send`] for a sender that holds a lock the reader will want: [`EventSender::wake`] must follow
    /// without it.
    pub fn push(&self, event: Event) -> bool {
        if self.0.abandoned.load(Ordering::Acquire) {
            return false;
        }
        self.0.events.lock().push_back(event);
        true
    }

    /// Wakes as many readers, if they sleep, for so many events pushed.
    pub fn wake(&self, events: usize) {
        // With nobody asleep it costs nothing; one reader is woken once.
        for _ in 0..events {
            if !self.0.arrived.notify_one() {
                return;
            }
        }
    }

    /// For backends that others may give up when they stand still: what is queued may be believed for so long from now.
    /// Without a call of this, for ever.
    pub fn extend(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let now = now();
        let before = self
            .0
            .good_until
            .swap(now.saturating_add(nanos).min(u64::MAX - 1), Ordering::AcqRel);
        if before < now {
            // Readers may wait for this. The lock: none is between its look and its sleep.
            let _events = self.0.events.lock();
            self.0.arrived.notify_all();
        }
    }

    /// Ends the queue after what is on it.
    pub fn close(&self) {
        let events = self.0.events.lock();
        if !events.iter().any(|event| matches!(event, Event::Fatal(_))) {
            // Left in order: there is nothing to lose any more.
            self.0.good_until.store(u64::MAX, Ordering::Release);
        }
        self.0.closed.store(true, Ordering::Release);
        self.0.arrived.notify_all();
    }
}

impl EventQueue {
    /// The next event; waits for it. `None`: the lockspace was left and all was read.
    #[must_use]
    pub fn recv(&self) -> Option<Event> {
        let mut events = self.0.events.lock();
        loop {
            if let Some(event) = self.0.next(&mut events) {
                return Some(event);
            }
            if self.0.closed.load(Ordering::Acquire) {
                return None;
            }
            self.0.arrived.wait(&mut events);
        }
    }

    /// The next event if there is one.
    #[must_use]
    pub fn try_recv(&self) -> Option<Event> {
        self.0.next(&mut self.0.events.lock())
    }

    /// The next event, waited for at most `timeout`.
    #[must_use]
    pub fn recv_timeout(&self, timeout: Duration) -> Option<Event> {
        let deadline = Instant::now().checked_add(timeout)?;
        let mut events = self.0.events.lock();
        loop {
            if let Some(event) = self.0.next(&mut events) {
                return Some(event);
            }
            if self.0.closed.load(Ordering::Acquire)
                || self.0.arrived.wait_until(&mut events, deadline).timed_out()
            {
                return self.0.next(&mut events);
            }
        }
    }

    /// Has the lockspace been left (and no event remains)?
    #[must_use]
    pub fn is_ended(&self) -> bool {
        let events = self.0.events.lock();
        events.is_empty() && self.0.closed.load(Ordering::Acquire)
    }
}

impl Drop for EventQueue {
    fn drop(&mut self) {
        self.0.abandoned.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_queue_gives_out_what_is_on_it_and_then_ends() {
        let (sender, queue) = queue();
        assert!(sender.send(Event::RecoverPrep));
        sender.close();
        assert!(!queue.is_ended());
        assert_eq!(queue.recv(), Some(Event::RecoverPrep));
        assert_eq!(queue.recv(), None);
        assert!(queue.is_ended());
        assert_eq!(queue.recv_timeout(Duration::from_secs(60)), None);
    }

    #[test]
    fn what_is_outdated_waits_and_a_fatal_overtakes_it() {
        let (sender, queue) = queue();
        assert!(sender.send(Event::RecoverPrep));
        sender.extend(Duration::ZERO);
        while now() <= queue.0.good_until.load(Ordering::Acquire) {}
        assert_eq!(queue.try_recv(), None);
        sender.extend(Duration::from_secs(3600));
        assert_eq!(queue.try_recv(), Some(Event::RecoverPrep));
        sender.extend(Duration::ZERO);
        let fatal = Event::Fatal(LockError::Left);
        assert!(sender.send(Event::RecoverPrep) && sender.send(fatal.clone()));
        while now() <= queue.0.good_until.load(Ordering::Acquire) {}
        sender.close();
        assert_eq!(queue.recv(), Some(fatal));
        assert_eq!(queue.recv(), None);
    }

    #[test]
    fn a_waiting_reader_is_woken() {
        let (sender, queue) = queue();
        let reader = std::thread::spawn(move || (queue.recv(), queue.recv()));
        assert!(sender.send(Event::RecoverPrep));
        sender.close();
        assert_eq!(reader.join().unwrap(), (Some(Event::RecoverPrep), None));
    }

    #[test]
    fn the_sender_notices_a_dropped_reader() {
        let (sender, queue) = queue();
        drop(queue);
        assert!(!sender.send(Event::RecoverPrep));
    }
}
