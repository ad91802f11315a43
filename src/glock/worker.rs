//! The threads behind a table: a pool of named workers per kind of job, and the keeper of timers.
//!
//! Invariants: a glock has at most one job in all pools (its machine has at most one step under way), so the queues
//! are bounded by the number of glocks and never overflow; a worker holds no lock while it carries a job out.

use std::cmp::Ordering as Order;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::lock::{Glock, Place};
use super::machine::Action;
use super::name::GlockName;

/// A step of a transition that may block.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) glock: Arc<Glock>,
    pub(crate) action: Action,
}

#[derive(Debug, Default)]
struct PoolState {
    jobs: VecDeque<Job>,
    stopped: bool,
}

/// Workers that carry out one kind of step.
#[derive(Debug)]
pub(crate) struct Pool {
    place: Place,
    state: Mutex<PoolState>,
    arrived: Condvar,
}

impl Pool {
    pub(crate) fn new(place: Place) -> Self {
        Self {
            place,
            state: Mutex::default(),
            arrived: Condvar::new(),
        }
    }

    pub(crate) fn push(&self, job: Job) {
        let mut state = self.state.lock();
        if !state.stopped {
            state.jobs.push_back(job);
            self.arrived.notify_one();
        }
    }

    /// Ends the workers; jobs still queued are dropped (their glocks' waiters were failed before).
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        state.jobs.clear();
        self.arrived.notify_all();
    }

    /// The life of a worker.
    pub(crate) fn work(&self) {
        loop {
            let job = {
                let mut state = self.state.lock();
                loop {
                    if state.stopped {
                        return;
                    }
                    if let Some(job) = state.jobs.pop_front() {
                        break job;
                    }
                    self.arrived.wait(&mut state);
                }
            };
            job.glock.work(job.action, self.place);
        }
    }
}

/// Something to be done at a time.
#[derive(Debug)]
pub(crate) enum Task {
    /// Feed a tick to the machine.
    Tick(Weak<Glock>),
    /// Repeat a lock call that found the lock busy.
    Retry(Weak<Glock>),
    /// Take the glock out of the table if it is unlocked and unused.
    Free(GlockName, u32),
}

#[derive(Debug)]
struct Timed {
    at: Instant,
    sequence: u64,
    task: Task,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

/// The earliest is the greatest: `BinaryHeap` gives out the greatest.
impl Ord for Timed {
    fn cmp(&self, other: &Self) -> Order {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

/// What the keeper has to do next.
#[derive(Debug)]
pub(crate) enum Duty {
    Run(Task),
    Shrink,
    Stop,
}

#[derive(Debug, Default)]
struct KeeperState {
    tasks: BinaryHeap<Timed>,
    sequence: u64,
    shrink: bool,
    stopped: bool,
}

/// The queue of the keeper thread.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    state: Mutex<KeeperState>,
    arrived: Condvar,
}

impl Keeper {
    pub(crate) fn at(&self, at: Instant, task: Task) {
        let mut state = self.state.lock();
        if state.stopped {
            return;
        }
        state.sequence += 1;
        let sequence = state.sequence;
        state.tasks.push(Timed { at, sequence, task });
        self.arrived.notify_one();
    }

    /// There are more glocks than the budget allows.
    pub(crate) fn shrink(&self) {
        let mut state = self.state.lock();
        if !state.shrink {
            state.shrink = true;
            self.arrived.notify_one();
        }
    }

    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        state.tasks.clear();
        self.arrived.notify_one();
    }

    /// Waits for the next duty.
    pub(crate) fn next(&self) -> Duty {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return Duty::Stop;
            }
            if std::mem::take(&mut state.shrink) {
                return Duty::Shrink;
            }
            let next = state.tasks.peek().map(|timed| timed.at);
            match next {
                Some(at) if at <= Instant::now() => {
                    if let Some(timed) = state.tasks.pop() {
                        return Duty::Run(timed.task);
                    }
                }
                Some(at) => {
                    self.arrived.wait_until(&mut state, at);
                }
                None => self.arrived.wait(&mut state),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_keeper_gives_out_tasks_by_time_then_by_arrival() {
        let keeper = Keeper::default();
        let now = Instant::now();
        for (number, after) in [(1, 2), (2, 1), (3, 2), (4, 0)] {
            keeper.at(
                now + Duration::from_millis(after),
                Task::Free(GlockName::inode(number), 0),
            );
        }
        let mut order = Vec::new();
        while order.len() < 4 {
            if let Duty::Run(Task::Free(name, _)) = keeper.next() {
                order.push(name.number);
            }
        }
        assert_eq!(order, [4, 2, 1, 3]);
        keeper.shrink();
        assert!(matches!(keeper.next(), Duty::Shrink));
        keeper.stop();
        assert!(matches!(keeper.next(), Duty::Stop));
    }
}
