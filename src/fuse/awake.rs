//! `busy_poll=`: keeps the processors from halting while requests flow.
//!
//! On a virtual machine an idle processor halts, and to wake it takes an exit to the host; a request needs two such
//! wake-ups, of the daemon and of who asked. A thread for each processor, which gives way to any other at once, keeps it
//! busy from the [`FLOW`]th request that follows the one before within the window until nothing has come for as long.
//!
//! Invariants: without requests every thread sleeps, woken by nobody; a thread that does not get the policy that makes it
//! give way ends at once; these threads take no lock and nobody waits for them, not even at the end: where there is
//! other work, they may not run for long.

use super::idle::give_way;
use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};
use std::hint::spin_loop;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// Requests in a row, each within the window of the one before, that are a flow.
const FLOW: u32 = 8;
/// Pauses between two looks at the clock.
const PAUSES: u32 = 32;
/// With more processors than this none is kept awake: which of them a request and its answer will be on, nobody knows.
const PROCESSORS_MAX: usize = 16;

/// When requests came: a machine without a clock.
#[derive(Debug)]
struct Flow {
    /// Nanoseconds.
    window: u64,
    /// When the last one came.
    last: AtomicU64,
    /// How many came in a row.
    run: AtomicU32,
}

impl Flow {
    fn new(window: Duration) -> Self {
        Self {
            window: u64::try_from(window.as_nanos()).unwrap_or(u64::MAX),
            last: AtomicU64::new(0),
            run: AtomicU32::new(0),
        }
    }

    /// A request has come. True: they flow.
    fn beat(&self, now: u64) -> bool {
        // Two at once may count one: no harm.
        let before = self.last.swap(now, Ordering::Relaxed);
        let run = if now.saturating_sub(before) > self.window {
            0
        } else {
            self.run.load(Ordering::Relaxed).saturating_add(1).min(FLOW)
        };
        self.run.store(run, Ordering::Relaxed);
        run == FLOW
    }

    /// Has one come within the window?
    fn goes_on(&self, now: u64) -> bool {
        now.saturating_sub(self.last.load(Ordering::Relaxed)) <= self.window
    }
}

/// What requests tell, and threads listen to.
#[derive(Debug)]
pub(super) struct Awake {
    origin: Instant,
    flow: Flow,
    /// A flow has begun and none of the threads has found its end.
    flowing: AtomicBool,
    /// The mount has ended.
    over: AtomicBool,
    /// Threads that keep their processor awake now.
    busy: AtomicUsize,
    threads: OnceLock<Vec<Thread>>,
}

impl Awake {
    fn new(window: Duration) -> Self {
        Self {
            origin: Instant::now(),
            flow: Flow::new(window),
            flowing: AtomicBool::new(false),
            over: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            threads: OnceLock::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A request has come.
    pub(super) fn beat(&self) {
        let flows = self.flow.beat(self.now());
        if flows && !self.flowing.load(Ordering::Relaxed) && !self.flowing.swap(true, Ordering::SeqCst) {
            self.wake();
        }
    }

    fn wake(&self) {
        for thread in self.threads.get().into_iter().flatten() {
            thread.unpark();
        }
    }

    /// The life of a thread.
    fn keep_awake(&self) {
        while !self.over.load(Ordering::SeqCst) {
            // Not asked of the token alone: the channel of the start may have taken it.
            if !self.flowing.load(Ordering::SeqCst) {
                std::thread::park();
                continue;
            }
            self.busy.fetch_add(1, Ordering::SeqCst);
            while self.flow.goes_on(self.now()) && !self.over.load(Ordering::Relaxed) {
                for _ in 0..PAUSES {
                    spin_loop();
                }
            }
            // A request between the last look and here wakes nobody; the one after it does.
            self.flowing.store(false, Ordering::SeqCst);
            self.busy.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// The threads; told to end when dropped.
#[derive(Debug)]
pub(super) struct Keepers {
    awake: Arc<Awake>,
}

impl Keepers {
    /// A thread for each processor this process may use. `None`: there shall be none, or cannot.
    pub(super) fn start(window: Duration) -> Option<Self> {
        if window.is_zero() {
            return None;
        }
        let processors: Vec<usize> = match sched_getaffinity(None) {
            Ok(set) => (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
            Err(error) => {
                tracing::warn!("busy_poll= has no effect: which processors there are: {error}");
                return None;
            }
        };
        if processors.len() > PROCESSORS_MAX {
            let count = processors.len();
            tracing::warn!(
                "busy_poll= has no effect with {count} processors: at most {PROCESSORS_MAX} are kept awake"
            );
            return None;
        }
        Some(Self::start_on(&processors, window, give_way))
    }

    fn start_on(processors: &[usize], window: Duration, give_way: fn(Pid) -> io::Result<()>) -> Self {
        let awake = Arc::new(Awake::new(window));
        let mut threads = Vec::new();
        for cpu in processors {
            match start_one(&awake, *cpu, give_way) {
                Ok(thread) => threads.push(thread),
                Err(error) => tracing::warn!(cpu, "busy_poll= does not keep this processor awake: {error}"),
            }
        }
        let set = awake.threads.set(threads);
        debug_assert!(set.is_ok(), "threads are started once");
        Self { awake }
    }

    pub(super) fn awake(&self) -> &Arc<Awake> {
        &self.awake
    }
}

impl Drop for Keepers {
    fn drop(&mut self) {
        self.awake.over.store(true, Ordering::SeqCst);
        self.awake.wake();
    }
}

/// A thread that stays on its processor, and gives way there to whatever else wants to run.
fn start_one(awake: &Arc<Awake>, cpu: usize, give_way: fn(Pid) -> io::Result<()>) -> io::Result<Thread> {
    let (tell, told) = channel();
    let (let_go, go) = channel::<()>();
    let awake = Arc::clone(awake);
    let thread = std::thread::Builder::new()
        .name(format!("gfs2-awake-{cpu}"))
        .spawn(move || {
            if tell.send(gettid()).is_ok() && go.recv().is_ok() {
                awake.keep_awake();
            }
        })?;
    let id = told.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
    let mut here = CpuSet::new();
    here.set(cpu);
    // Without either it would take time from others, or keep the wrong processor awake: then it is not let go.
    sched_setaffinity(Some(id), &here)?;
    give_way(id)?;
    let_go.send(()).map_err(|_| io::ErrorKind::BrokenPipe)?;
    Ok(thread.thread().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn until(what: &str, done: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < end, "{what} did not come");
            std::thread::yield_now();
        }
    }

    /// Threads like any other: those that give way might not run while this machine has other work.
    fn keepers(window: Duration) -> Keepers {
        let set = sched_getaffinity(None).unwrap();
        let all: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect();
        Keepers::start_on(&all, window, |_| Ok(()))
    }

    #[test]
    fn requests_that_follow_each_other_closely_flow() {
        let flow = Flow::new(Duration::from_nanos(100));
        let mut now = 1000;
        assert!(!flow.beat(now));
        for turn in 1..20 {
            now += 100;
            assert_eq!(flow.beat(now), turn >= FLOW, "request {turn}");
        }
        assert!(flow.goes_on(now + 100) && !flow.goes_on(now + 101));
        // One that comes late is the first of others.
        assert!(!flow.beat(now + 101));
        assert!(!flow.beat(now + 102));
        // Two that look at the clock in another order than they tell.
        assert!(!flow.beat(now));
        assert!(flow.goes_on(0));
    }

    #[test]
    fn processors_are_awake_while_requests_flow_and_not_after() {
        let keepers = keepers(Duration::from_millis(50));
        let awake = Arc::clone(keepers.awake());
        assert!(!awake.threads.get().unwrap().is_empty());
        for _ in 0..3 {
            // However slow this machine is: some come close enough in the end.
            until("a flow", || {
                awake.beat();
                awake.busy.load(Ordering::SeqCst) > 0
            });
            until("its end", || {
                awake.busy.load(Ordering::SeqCst) == 0 && !awake.flowing.load(Ordering::SeqCst)
            });
        }
    }

    #[test]
    fn the_end_of_the_mount_is_the_end_of_the_threads() {
        let keepers = keepers(Duration::from_secs(1 << 30));
        let awake = Arc::clone(keepers.awake());
        let threads = awake.threads.get().unwrap().len();
        for _ in 0..=FLOW {
            awake.beat();
        }
        until("all at work", || awake.busy.load(Ordering::SeqCst) == threads);
        drop(keepers);
        until("their end", || Arc::strong_count(&awake) == 1);
        assert!(Keepers::start(Duration::ZERO).is_none());
    }

    #[test]
    fn a_thread_that_cannot_give_way_does_nothing() {
        let refuse = |_| Err(io::ErrorKind::PermissionDenied.into());
        let keepers = Keepers::start_on(&[0], Duration::from_secs(1 << 30), refuse);
        let awake = Arc::clone(keepers.awake());
        assert!(awake.threads.get().unwrap().is_empty());
        until("its end", || Arc::strong_count(&awake) == 2);
        for _ in 0..=FLOW {
            awake.beat();
        }
        assert_eq!(awake.busy.load(Ordering::SeqCst), 0);
    }
}
