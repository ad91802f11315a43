//! The threads of the data cache: one writes back when much is dirty, or when it has become old; some write long runs.
//!
//! Nothing depends on it running: whoever dirties too much writes himself, fsync and the log write what they need.

use super::super::buffers::lock;
use super::flights::WRITERS;
use super::{DIRTY_AGE, DataCache};
use crate::cache::BufferCache;
use crate::error::{FsError, FsResult};
use gfs2_format::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// How often it looks for old data.
const LOOK: Duration = Duration::from_secs(5);

impl DataCache {
    fn run_flusher(&self) {
        loop {
            let mut state = lock(&self.state);
            if !state.work && !state.stop {
                let woken = self.wake.wait_timeout(state, LOOK);
                state = woken.expect("a thread panicked in the data cache").0;
            }
            if state.stop {
                return;
            }
            state.work = false;
            drop(state);
            if self.health.is_withdrawn() {
                return;
            }
            let target = self.background() / 2;
            if self.dirty.load(Ordering::Relaxed) > self.background() {
                while self.dirty.load(Ordering::Relaxed) > target && self.write_oldest(target, |_| true) {}
            }
            let now = Instant::now();
            while self.write_oldest(0, |since| now.duration_since(since) >= DIRTY_AGE) {}
        }
    }
}

/// The running threads; stopped and joined when dropped. What is dirty then stays so.
#[derive(Debug)]
pub struct DataFlusher {
    cache: Arc<BufferCache>,
    threads: Vec<JoinHandle<()>>,
}

impl DataFlusher {
    /// Starts the threads; one at a time.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(cache: &Arc<BufferCache>) -> FsResult<Self> {
        lock(&cache.data().state).stop = false;
        // Dropped on an error, it ends what has begun.
        let mut own = Self {
            cache: Arc::clone(cache),
            threads: Vec::new(),
        };
        own.spawn("gfs2_flusher", DataCache::run_flusher)?;
        cache.data().flights.open();
        for _ in 0..WRITERS {
            own.spawn("gfs2_writer", DataCache::run_writer)?;
        }
        Ok(own)
    }

    fn spawn(&mut self, name: &str, life: fn(&DataCache)) -> FsResult<()> {
        let cache = Arc::clone(&self.cache);
        let thread = Builder::new()
            .name(name.into())
            .spawn(move || life(cache.data()))
            .map_err(|error| FsError::Format(Error::io("spawn", 0, 0, error)))?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for DataFlusher {
    fn drop(&mut self) {
        lock(&self.cache.data().state).stop = true;
        self.cache.data().wake.notify_all();
        self.cache.data().flights.close();
        for thread in self.threads.drain(..) {
            // A panic has been printed; the mutexes pass it on to whoever needs them.
            drop(thread.join());
        }
    }
}
