//! What happens by the clock while a volume is mounted (the journal has its own thread).

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Threads that call something every so often until they are stopped.
#[derive(Debug, Default)]
pub struct Timers {
    running: Vec<(Sender<()>, JoinHandle<()>)>,
}

impl Timers {
    /// Calls `what` every `period` on a thread named `name`.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub fn every(
        &mut self,
        name: &str,
        period: Duration,
        mut what: impl FnMut() + Send + 'static,
    ) -> std::io::Result<()> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(period) {
                what();
            }
        })?;
        self.running.push((stop, thread));
        Ok(())
    }

    /// Calls `what` once, on a thread named `name`.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub fn once(&mut self, name: &str, what: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let (stop, _) = channel();
        let thread = std::thread::Builder::new().name(name.into()).spawn(what)?;
        self.running.push((stop, thread));
        Ok(())
    }

    /// Ends all of them and waits for calls under way.
    pub fn stop(self) {
        for (stop, thread) in self.running {
            drop(stop);
            if thread.join().is_err() {
                tracing::error!("a timer's thread panicked; please report this");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_timer_calls_until_it_is_stopped() {
        let count = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&count);
        let (tell, told) = channel();
        let mut timers = Timers::default();
        timers
            .every("test", Duration::from_millis(1), move || {
                if seen.fetch_add(1, Ordering::Relaxed) == 3 {
                    let _ = tell.send(());
                }
            })
            .unwrap();
        told.recv_timeout(Duration::from_secs(30)).expect("four calls");
        timers.stop();
        let stopped_at = count.load(Ordering::Relaxed);
        assert!(stopped_at >= 4);
        assert_eq!(count.load(Ordering::Relaxed), stopped_at);
    }
}
