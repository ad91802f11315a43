//! The log daemon (the kernel's logd): commits what has grown old or large, writes committed blocks in place.
//!
//! Everything it does can be called directly ([`Journal::maintain`]); nothing depends on it running.

use super::ail::Pick;
use super::log::Journal;
use super::types::FlushReason;
use crate::cache::lock;
use crate::error::{FsError, FsResult};
use gfs2_format::Error;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

impl Journal {
    /// One round of the log daemon; `interval_over` when the commit interval has passed since the last such round.
    /// Then everything running is committed, and what had been committed at the last such round goes in place.
    /// Otherwise only what the thresholds demand is done.
    ///
    /// # Errors
    /// I/O errors (which withdraw).
    pub fn maintain(&self, interval_over: bool) -> FsResult<()> {
        self.cache.health().check()?;
        let blocks = u64::from(self.ring.blocks());
        let (pinned, used) = {
            let state = lock(&self.state);
            let need = state.running.need(&self.costs);
            (need, u64::from(state.used) + need)
        };
        if interval_over || pinned >= blocks * 2 / 5 {
            let _one = self.flush_token();
            self.flush_running(FlushReason::Logd.flags())?;
        }
        if used >= blocks * 4 / 5 {
            // Down to half.
            self.make_room(blocks / 4, FlushReason::Logd)?;
        }
        if interval_over {
            let newest = lock(&self.state).ail.next_commit();
            let aged = std::mem::replace(&mut lock(&self.daemon).aged, newest);
            self.write_in_place(Pick::Before(aged))?;
            let _one = self.flush_token();
            self.move_tail(FlushReason::Ail.flags())?;
        }
        Ok(())
    }

    /// Wakes the daemon.
    pub(super) fn kick(&self) {
        let mut daemon = lock(&self.daemon);
        if !std::mem::replace(&mut daemon.work, true) {
            self.daemon_wake.notify_all();
        }
    }

    fn run_daemon(&self) {
        let mut last = Instant::now();
        loop {
            let mut daemon = lock(&self.daemon);
            while !daemon.work && !daemon.stop && last.elapsed() < daemon.interval {
                let left = daemon.interval.saturating_sub(last.elapsed());
                let woken = self.daemon_wake.wait_timeout(daemon, left);
                daemon = woken.expect("a thread panicked in the log daemon").0;
            }
            if daemon.stop {
                return;
            }
            daemon.work = false;
            let interval_over = last.elapsed() >= daemon.interval;
            drop(daemon);
            if interval_over {
                last = Instant::now();
            }
            if self.maintain(interval_over).is_err() {
                // Withdrawn (that has been logged): there is nothing left to do.
                return;
            }
        }
    }
}

/// The thread that keeps the log short; stopped and joined when dropped.
#[derive(Debug)]
pub struct LogDaemon {
    journal: Arc<Journal>,
    thread: Option<JoinHandle<()>>,
}

impl LogDaemon {
    /// Starts the daemon of a journal; one at a time.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(journal: &Arc<Journal>) -> FsResult<Self> {
        lock(&journal.daemon).stop = false;
        let own = Arc::clone(journal);
        let thread = Builder::new()
            .name("gfs2_logd".into())
            .spawn(move || own.run_daemon())
            .map_err(|error| FsError::Format(Error::io("spawn", 0, 0, error)))?;
        Ok(Self {
            journal: Arc::clone(journal),
            thread: Some(thread),
        })
    }

    /// Stops it and waits for the round under way.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for LogDaemon {
    fn drop(&mut self) {
        lock(&self.journal.daemon).stop = true;
        self.journal.daemon_wake.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the daemon has been printed; the journal's mutexes pass it on to whoever needs them.
            drop(thread.join());
        }
    }
}
