//! `memory=`: how much memory a mount may take, and the thread that sees to it.
//!
//! Invariant: the thread holds no lock of the daemon while it tells the kernel to forget inodes; nothing waits for it.

use super::heap;
use crate::error::Errno;
use crate::fuse::Notifications;
use crate::ops::{Fs, Relief};
use gfs2_format::BlockAddr;
use parking_lot::{Condvar, Mutex};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The least that can be asked for.
pub const LEAST: usize = 16 << 20;
/// Without the option: so much, but not more than an eighth of the machine's memory.
pub const DEFAULT: usize = 512 << 20;
/// The default on a machine with little memory.
pub const DEFAULT_LEAST: usize = 64 << 20;
/// Of the memory a mount may take, what its caches may count for themselves: the rest is lost between their pieces, which
/// come and go in all sizes. Measured: a process takes 1.6 times what its caches count, and 12 MiB.
const CACHES: (usize, usize) = (5, 8);
/// By how much the process may grow before free memory of the heap goes back to the system.
const GROWTH: usize = 12 << 20;
/// Of the time, what giving back may take at most: a twentieth.
const GIVE_BACK_SHARE: u32 = 20;
/// How often it is looked whether the budget is kept, without an alarm.
const LOOK: Duration = Duration::from_secs(1);

/// Reads a size: a number of bytes, with K, M, G or T for powers of 1024.
#[must_use]
pub fn parse_size(text: &str) -> Option<usize> {
    let (digits, shift) = match text.bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        b't' | b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    let number: usize = plain.then(|| digits.parse().ok())??;
    number.checked_mul(1 << shift)
}

/// The budget of a mount that was given none.
#[must_use]
pub fn default_budget() -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    budget_of(&text)
}

fn budget_of(meminfo: &str) -> usize {
    let total = meminfo.lines().find_map(|line| {
        let kib = line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?;
        kib.trim().parse::<usize>().ok()?.checked_mul(1024)
    });
    total.map_or(DEFAULT, |total| (total / 8).clamp(DEFAULT_LEAST, DEFAULT))
}

/// What the caches may count.
#[must_use]
pub fn of_caches(budget: usize) -> usize {
    budget / CACHES.1 * CACHES.0
}

#[derive(Debug, Default)]
struct Wanted {
    cut: bool,
    stop: bool,
}

/// How the thread is woken.
#[derive(Debug, Default)]
struct Alarm {
    /// Given, and not yet heard.
    given: AtomicBool,
    wanted: Mutex<Wanted>,
    wake: Condvar,
}

impl Alarm {
    fn give(&self) {
        if !self.given.swap(true, Ordering::AcqRel) {
            self.wanted.lock().cut = true;
            self.wake.notify_all();
        }
    }

    /// Waits until the caches are to be looked at; false: to stop.
    fn wait(&self) -> bool {
        let mut wanted = self.wanted.lock();
        if !wanted.cut && !wanted.stop {
            self.wake.wait_for(&mut wanted, LOOK);
        }
        wanted.cut = false;
        self.given.store(false, Ordering::Release);
        !wanted.stop
    }
}

/// What this process has in memory, in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    resident_of(&text)
}

fn resident_of(status: &str) -> usize {
    let kib = status.lines().find_map(|line| {
        let kib = line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?;
        kib.trim().parse::<usize>().ok()
    });
    kib.map_or(0, |kib| kib.saturating_mul(1024))
}

/// When free memory of the heap goes back to the system: a machine without a clock.
#[derive(Debug)]
struct Growth {
    /// What the process had when that was done last, or least since.
    least: usize,
    /// Not before.
    due: Instant,
}

impl Growth {
    fn new(resident: usize, now: Instant) -> Self {
        Self {
            least: resident,
            due: now,
        }
    }

    fn is_due(&mut self, resident: usize, now: Instant) -> bool {
        self.least = self.least.min(resident);
        now >= self.due && resident - self.least >= GROWTH
    }

    fn given_back(&mut self, resident: usize, began: Instant, now: Instant) {
        self.least = resident;
        self.due = now + now.saturating_duration_since(began) * GIVE_BACK_SHARE;
    }
}

/// The thread that keeps the caches within their budget; stopped and joined when dropped.
#[derive(Debug)]
pub(super) struct MemoryKeeper {
    alarm: Arc<Alarm>,
    thread: Option<JoinHandle<()>>,
}

impl MemoryKeeper {
    /// # Errors
    /// The system has no thread for it.
    pub(super) fn start(fs: &Arc<Fs>, notifications: &Arc<Notifications>, budget: usize) -> io::Result<Self> {
        let caches = of_caches(budget);
        let alarm = Arc::new(Alarm::default());
        let given = Arc::clone(&alarm);
        fs.set_memory(caches, Box::new(move || given.give()));
        let (fs, notifications) = (Arc::clone(fs), Arc::clone(notifications));
        let heard = Arc::clone(&alarm);
        let thread = std::thread::Builder::new()
            .name("gfs2-memory".into())
            .spawn(move || {
                let mut relief = Relief::new(caches);
                let mut growth = Growth::new(resident(), Instant::now());
                while heard.wait() {
                    fs.relieve(&mut relief, &|inodes| prune(&notifications, inodes));
                    let began = Instant::now();
                    if growth.is_due(resident(), began) {
                        heap::give_back();
                        growth.given_back(resident(), began, Instant::now());
                    }
                }
            })?;
        Ok(Self {
            alarm,
            thread: Some(thread),
        })
    }
}

impl Drop for MemoryKeeper {
    fn drop(&mut self) {
        self.alarm.wanted.lock().stop = true;
        self.alarm.wake.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the memory thread panicked; please report this");
        }
    }
}

/// Has the kernel forget inodes it has no use for. False: this kernel cannot be asked.
fn prune(notifications: &Notifications, inodes: &[BlockAddr]) -> bool {
    match notifications.prune(inodes) {
        Ok(()) => true,
        Err(error) if error.errno() == Errno::EOPNOTSUPP => {
            tracing::info!(
                "this kernel cannot be asked to forget inodes (Linux 6.18 can); it does when it is short of memory itself"
            );
            false
        }
        Err(error) => {
            tracing::debug!("asking the kernel to forget inodes: {error}");
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("4096"), Some(4096));
        assert_eq!(parse_size("16m"), Some(16 << 20));
        assert_eq!(parse_size("2G"), Some(2 << 30));
        for wrong in ["", "M", "-1", "+1", "1.5G", "1KB", "99999999999999T", " 1M"] {
            assert_eq!(parse_size(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_default_follows_the_machine() {
        let of = |mib: usize| budget_of(&format!("MemTotal: {} kB\nMemFree: 1 kB\n", mib << 10)) >> 20;
        assert_eq!((of(128), of(1024), of(65_536)), (64, 128, 512));
        assert_eq!(budget_of("no such line"), DEFAULT);
        assert!((DEFAULT_LEAST..=DEFAULT).contains(&default_budget()));
    }

    #[test]
    fn an_alarm_is_heard_once() {
        let alarm = Alarm::default();
        alarm.give();
        alarm.give();
        assert!(alarm.wait());
        assert!(!alarm.wanted.lock().cut);
        alarm.wanted.lock().stop = true;
        assert!(!alarm.wait());
    }

    #[test]
    fn memory_goes_back_when_the_process_grew_and_not_all_the_time() {
        assert_eq!(resident_of("VmHWM:\t  900 kB\nVmRSS:\t  512 kB\n"), 512 << 10);
        assert!(resident() > 0);
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut growth = Growth::new(50 << 20, start);
        assert!(!growth.is_due((50 << 20) + GROWTH - 1, at(1)));
        // It has shrunk by itself: that is where it grows from.
        assert!(!growth.is_due(40 << 20, at(2)));
        assert!(growth.is_due((40 << 20) + GROWTH, at(3)));
        growth.given_back(45 << 20, at(3), at(13));
        assert!(!growth.is_due(90 << 20, at(13 + 199)));
        assert!(growth.is_due(90 << 20, at(13 + 200)));
    }
}
