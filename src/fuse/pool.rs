//! The threads that answer requests: as many as wait at once, up to a bound, and a few kept idle.
//!
//! Invariants: a job never waits for another job to be *started* while fewer than [`THREADS_MAX`] run (a request that
//! waits for a cluster lock must not keep from the pool the write-back that gives the lock away); beyond that jobs
//! queue in order. The kernel bounds what can queue (its own limit of background requests, and one synchronous
//! request a thread).

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Bound of threads.
pub(super) const THREADS_MAX: usize = 256;
/// Idle threads kept for the next burst.
const IDLE_MAX: usize = 8;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
    running: usize,
    stopping: bool,
    threads: Vec<JoinHandle<()>>,
}

/// A pool of request threads.
#[derive(Clone, Default)]
pub(super) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pool")
    }
}

impl Pool {
    /// Runs the job on a thread of the pool.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.lock();
        state.jobs.push_back(Box::new(job));
        // Idle threads that have been woken for earlier jobs are still counted: compare with the queue.
        if state.idle >= state.jobs.len() {
            drop(state);
            self.shared.wake.notify_one();
            return;
        }
        if state.running < THREADS_MAX {
            let shared = Arc::clone(&self.shared);
            let name = format!("gfs2-req-{}", state.running);
            if let Ok(thread) = std::thread::Builder::new()
                .name(name)
                .spawn(move || shared.work())
            {
                state.running += 1;
                state.threads.retain(|t| !t.is_finished());
                state.threads.push(thread);
            } else if state.running == 0 {
                // No thread to be had at all: answer on the dispatch thread rather than never.
                let job = state.jobs.pop_back();
                drop(state);
                job.into_iter().for_each(|job| job());
            }
        }
    }

    /// Waits for all jobs and ends the threads.
    pub(super) fn stop(&self) {
        let threads = {
            let mut state = self.lock();
            state.stopping = true;
            std::mem::take(&mut state.threads)
        };
        self.shared.wake.notify_all();
        for thread in threads {
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn work(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                // Dropping a request unanswered answers EIO; one bad request must not take the mount down.
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    tracing::error!(
                        "a request ended in a panic and was answered with EIO; please report this"
                    );
                }
                state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            if state.stopping || state.idle >= IDLE_MAX {
                state.running -= 1;
                return;
            }
            state.idle += 1;
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn jobs_that_wait_for_each_other_all_run() {
        let pool = Pool::default();
        let barrier = Arc::new(Barrier::new(65));
        for _ in 0..64 {
            let barrier = Arc::clone(&barrier);
            pool.run(move || {
                barrier.wait();
            });
        }
        barrier.wait();
        pool.stop();
    }

    #[test]
    fn every_job_runs_once_also_after_a_panic() {
        let pool = Pool::default();
        let count = Arc::new(AtomicUsize::new(0));
        pool.run(|| panic!("one bad request (this panic is part of the test)"));
        for _ in 0..10_000 {
            let count = Arc::clone(&count);
            pool.run(move || {
                count.fetch_add(1, Ordering::Relaxed);
            });
        }
        pool.stop();
        assert_eq!(count.load(Ordering::Relaxed), 10_000);
    }
}
