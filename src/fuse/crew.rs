//! The threads that read requests and answer them: one at work while that is enough, more as soon as it sleeps.
//!
//! A thread reads a request and answers it itself; nothing is handed over. While it does so short work, nobody else
//! reads: a second reader would have the kernel wake them in turns, from one processor to the other. Another thread is
//! sent to read (relieves it) when the thread
//! - begins what is expected to take long (FSYNC, truncation),
//! - says that it is about to sleep ([`crate::sleep`]): before a lock, before a write to the device,
//! - waits for a read of the device, if others came during such reads lately: where there is one client, which waits for
//!   the answer, to wake another thread would be for nothing and cost more than many a read ([`Crowd`]),
//! - or is found at the same request by the watch, which looks every [`TICK`] while there is work.
//!
//! Invariants: while fewer than [`THREADS_MAX`] threads wait, a request that arrives is read within a tick, whatever the
//! others wait for (a request that waits for a cluster lock must not keep from us the write-back that gives the lock
//! away); threads that are not needed end.

use super::abi::Fattr;
use super::awake::Awake;
use super::counters::Counters;
use super::front::{Front, MAX_IO, Scratch, Target};
use super::interrupt::{Desk, Slot};
use super::notify::Notifications;
use super::reply::{Channel, Reply};
use super::request::{Op, Request, WRITE_HEAD, decode};
use crate::error::Errno;
use crate::sleep::{self, Moment};
use gfs2_format::device::AlignedBuf;
use memmap2::MmapMut;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Bound of threads, and so of requests that wait at a time: more than there are threads of programs to make them. For
/// requests that all wait for one lock may keep from us the WRITE that a demote of that lock waits for, and FUSE_INTERRUPT.
/// Each has a buffer of [`MAX_IO`] bytes for what it reads from the kernel, of which it takes in memory what was read,
/// and one as large as its largest READ.
const THREADS_MAX: usize = 16_384;
/// Threads without work that are kept for the next burst.
const PARKED_MAX: usize = 8;
/// Threads that read at a time at most, when requests wait for the device.
const READERS_MAX: usize = 4;
/// How often the watch looks.
const TICK: Duration = Duration::from_millis(1);
/// Ticks without a request after which the watch sleeps.
const QUIET_TICKS: u32 = 64;
/// Ticks between looks at processes that were interrupted.
const INTERRUPT_TICKS: u32 = 50;
/// Reads of the device without another request meanwhile, after which none is expected any more.
const PATIENCE: u32 = 64;
/// Where the payload of a WRITE begins in a buffer: at a page.
const PAYLOAD: usize = 4096;

#[derive(Debug, Default)]
struct State {
    running: usize,
    /// Threads without work.
    parked: usize,
    /// How many of them are on their way to read.
    woken: usize,
    /// The mount has ended.
    over: bool,
    /// The first error that ended it otherwise than by unmounting.
    failed: Option<io::Error>,
    watch_sleeps: bool,
    /// There were as many threads as there may be.
    bounded: bool,
}

/// Whether requests come while a thread waits for a read of the device.
#[derive(Debug, Default)]
struct Crowd {
    /// Such reads for which others are expected still.
    expected: AtomicU32,
}

impl Crowd {
    fn is_expected(&self) -> bool {
        self.expected.load(Ordering::Relaxed) > 0
    }

    /// A read has ended; did others come meanwhile? Two that count at once lose one: no harm.
    fn learn(&self, came: bool) {
        let expected = self.expected.load(Ordering::Relaxed);
        let now = if came {
            PATIENCE
        } else {
            expected.saturating_sub(1)
        };
        if now != expected {
            self.expected.store(now, Ordering::Relaxed);
        }
    }
}

/// The threads of one mount.
#[derive(Debug)]
pub(super) struct Crew {
    channel: Arc<Channel>,
    front: Front,
    notifications: Arc<Notifications>,
    desk: Desk,
    /// Told of every request (`busy_poll=`).
    awake: Option<Arc<Awake>>,
    /// Threads that read, or are on their way to.
    readers: AtomicUsize,
    /// Requests read so far.
    taken: AtomicU64,
    crowd: Crowd,
    /// The watch looks.
    watched: AtomicBool,
    state: Mutex<State>,
    /// For parked threads.
    work: Condvar,
    /// For the watch.
    watch: Condvar,
    /// For who waits for the end.
    ended: Condvar,
}

/// A thread of the crew.
struct Worker {
    crew: Arc<Crew>,
    slot: Arc<Slot>,
    /// Of pages that take no memory before they are used: most requests are short, and threads can be many.
    buffer: MmapMut,
    read: AlignedBuf,
    names: Vec<u8>,
}

impl Crew {
    pub(super) fn new(
        channel: Arc<Channel>,
        front: Front,
        notifications: Arc<Notifications>,
        awake: Option<Arc<Awake>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            channel,
            front,
            notifications,
            desk: Desk::default(),
            awake,
            readers: AtomicUsize::new(0),
            taken: AtomicU64::new(0),
            crowd: Crowd::default(),
            watched: AtomicBool::new(false),
            state: Mutex::new(State {
                watch_sleeps: true,
                ..State::default()
            }),
            work: Condvar::new(),
            watch: Condvar::new(),
            ended: Condvar::new(),
        })
    }

    /// Serves until the filesystem is unmounted.
    ///
    /// # Errors
    /// The device's, or that there is no thread to be had.
    pub(super) fn run(self: &Arc<Self>) -> io::Result<()> {
        let watching = Arc::clone(self);
        let watch = std::thread::Builder::new()
            .name("gfs2-fuse-watch".into())
            .spawn(move || watching.look_after())?;
        let mut result = Ok(());
        let mut state = self.state.lock();
        if let Err(error) = self.add_reader(&mut state) {
            state.over = true;
            result = Err(error);
        }
        while state.running > 0 {
            self.ended.wait(&mut state);
        }
        let failed = state.failed.take();
        self.watch.notify_all();
        drop(state);
        if watch.join().is_err() {
            tracing::error!("the watch of the request threads panicked; please report this");
        }
        result.and(failed.map_or(Ok(()), Err))
    }

    /// Sends a thread to read: a parked one, or a new one.
    fn add_reader(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        if state.over {
            return Ok(());
        }
        if state.parked > state.woken {
            state.woken += 1;
            self.readers.fetch_add(1, Ordering::SeqCst);
            self.work.notify_one();
            return Ok(());
        }
        if state.running >= THREADS_MAX {
            if !std::mem::replace(&mut state.bounded, true) {
                tracing::error!(
                    "{THREADS_MAX} requests wait: no more are read until one of them is answered"
                );
            }
            return Ok(());
        }
        let buffer = MmapMut::map_anon(PAYLOAD + MAX_IO as usize)?;
        let crew = Arc::clone(self);
        // Before it runs: it may have read something before we are back.
        self.readers.fetch_add(1, Ordering::SeqCst);
        let spawned = std::thread::Builder::new()
            .name(format!("gfs2-req-{}", state.running))
            .spawn(move || Worker::new(crew, buffer).run());
        if let Err(error) = spawned {
            self.readers.fetch_sub(1, Ordering::SeqCst);
            return Err(error);
        }
        state.running += 1;
        Ok(())
    }

    /// Makes sure that somebody reads.
    fn relieve(self: &Arc<Self>) {
        if self.readers.load(Ordering::SeqCst) > 0 {
            return;
        }
        let mut state = self.state.lock();
        // Another one may have come to the same conclusion.
        if self.readers.load(Ordering::SeqCst) == 0
            && let Err(error) = self.add_reader(&mut state)
        {
            tracing::warn!("no thread for requests, the others go on: {error}");
        }
    }

    /// A thread has read a request.
    fn took(&self) {
        self.readers.fetch_sub(1, Ordering::SeqCst);
        self.taken.fetch_add(1, Ordering::SeqCst);
        if !self.watched.load(Ordering::SeqCst) {
            self.state.lock().watch_sleeps = false;
            self.watch.notify_one();
        }
    }

    /// Has anybody else read a request since there were so many, or could have?
    fn has_taken_since(&self, taken: u64) -> bool {
        self.taken.load(Ordering::SeqCst) != taken
            || self.readers.load(Ordering::SeqCst) == 0 && self.channel.has_request()
    }

    /// A thread is done with a request: true, it reads again; false, it is not needed and ends.
    fn next(&self, waited: bool) -> bool {
        let most = if waited { READERS_MAX } else { 1 };
        let others = self.readers.fetch_add(1, Ordering::SeqCst);
        if others < most {
            return true;
        }
        let mut state = self.state.lock();
        if self.readers.fetch_sub(1, Ordering::SeqCst) == 1 {
            // The other readers have all found work meanwhile.
            self.readers.fetch_add(1, Ordering::SeqCst);
            return true;
        }
        if state.over || state.parked >= PARKED_MAX {
            return false;
        }
        state.parked += 1;
        while state.woken == 0 && !state.over {
            self.work.wait(&mut state);
        }
        state.parked -= 1;
        if state.woken == 0 {
            return false;
        }
        state.woken -= 1;
        true
    }

    /// The filesystem is gone.
    fn end(&self) {
        self.state.lock().over = true;
        self.work.notify_all();
    }

    /// A thread cannot read; the others go on, if they can.
    fn fail(&self, error: io::Error) {
        tracing::error!("reading requests: {error}");
        self.readers.fetch_sub(1, Ordering::SeqCst);
        self.state.lock().failed.get_or_insert(error);
    }

    fn leave(&self) {
        let mut state = self.state.lock();
        state.running -= 1;
        if state.running == state.parked - state.woken {
            // Nobody is left to send the others to work.
            state.over = true;
            self.work.notify_all();
        }
        if state.running == 0 {
            self.ended.notify_all();
        }
    }

    /// The watch's life.
    fn look_after(self: &Arc<Self>) {
        self.watched.store(true, Ordering::SeqCst);
        let mut seen = 0;
        let (mut quiet, mut ticks) = (0u32, 0u32);
        let mut state = self.state.lock();
        while !(state.over && state.running == 0) {
            if quiet >= QUIET_TICKS && self.desk.is_quiet() {
                self.rest(&mut state, seen);
                quiet = 0;
            } else {
                self.watch.wait_for(&mut state, TICK);
            }
            MutexGuard::unlocked(&mut state, || {
                ticks = ticks.wrapping_add(1);
                if ticks.is_multiple_of(INTERRUPT_TICKS) {
                    self.desk.look_at_the_dying();
                }
                let taken = self.taken.load(Ordering::SeqCst);
                if taken != seen {
                    (seen, quiet) = (taken, 0);
                } else if self.readers.load(Ordering::SeqCst) == 0 {
                    self.relieve();
                    quiet = 0;
                } else {
                    quiet += 1;
                }
            });
        }
    }

    /// Nothing to watch: sleeps until a request comes.
    fn rest(&self, state: &mut MutexGuard<'_, State>, seen: u64) {
        state.watch_sleeps = true;
        self.watched.store(false, Ordering::SeqCst);
        // A request that did not see the flag any more is seen here.
        if self.taken.load(Ordering::SeqCst) == seen {
            while state.watch_sleeps && !(state.over && state.running == 0) {
                self.watch.wait(state);
            }
        }
        self.watched.store(true, Ordering::SeqCst);
    }
}

impl Worker {
    fn new(crew: Arc<Crew>, buffer: MmapMut) -> Self {
        let slot = crew.desk.slot();
        Self {
            crew,
            slot,
            buffer,
            read: AlignedBuf::zeroed(0),
            names: Vec::new(),
        }
    }

    fn run(mut self) {
        let crew = Arc::clone(&self.crew);
        // Says that this thread has gone, whatever ends it.
        struct Leaving<'a>(&'a Crew, Arc<Slot>);
        impl Drop for Leaving<'_> {
            fn drop(&mut self) {
                self.0.desk.give_back(&self.1);
                self.0.leave();
            }
        }
        let _leaving = Leaving(&crew, Arc::clone(&self.slot));
        let relieved = Arc::new(AtomicBool::new(false));
        let (hook, flag) = (Arc::clone(&crew), Arc::clone(&relieved));
        let before = AtomicU64::new(0);
        sleep::register(move |moment| {
            let sleeps = match moment {
                Moment::Sleep => true,
                Moment::Read => {
                    before.store(hook.taken.load(Ordering::SeqCst), Ordering::Relaxed);
                    hook.crowd.is_expected()
                }
                Moment::Woke => {
                    hook.crowd
                        .learn(hook.has_taken_since(before.load(Ordering::Relaxed)));
                    false
                }
            };
            if sleeps && !flag.swap(true, Ordering::Relaxed) {
                hook.relieve();
            }
        });
        self.slot.enter();
        loop {
            // The head of a WRITE lies before a page, its payload in it: the device takes it from there.
            let buffer = self.buffer.get_mut(PAYLOAD - WRITE_HEAD..).unwrap_or_default();
            let len = match crew.channel.receive(buffer) {
                Ok(Some(len)) => len,
                Ok(None) => return crew.end(),
                Err(error) => return crew.fail(error),
            };
            crew.took();
            relieved.store(false, Ordering::Relaxed);
            let bytes = self.buffer.get(PAYLOAD - WRITE_HEAD..).and_then(|b| b.get(..len));
            let mut scratch = Scratch {
                read: Target::Own(&mut self.read),
                names: &mut self.names,
            };
            handle(&crew, &self.slot, bytes.unwrap_or_default(), &mut scratch);
            if !crew.next(relieved.load(Ordering::Relaxed)) {
                return;
            }
        }
    }
}

/// Answers one request of the device.
fn handle(crew: &Arc<Crew>, slot: &Slot, bytes: &[u8], scratch: &mut Scratch<'_>) {
    let request = match decode(bytes) {
        Ok(request) => request,
        Err((header, malformed)) => {
            tracing::error!("FUSE: {malformed}");
            if let Some(header) = header {
                Reply::new(&crew.channel, header.unique).error(Errno::EIO);
            }
            return;
        }
    };
    let reply = Reply::new(&crew.channel, request.header.unique);
    if let Op::Interrupt(interrupt) = request.op {
        crew.notifications.counters().count(request.header.opcode);
        return crew.desk.interrupt(interrupt.unique, reply);
    }
    if is_long(&request) {
        sleep::about_to_sleep();
    }
    crew.answer(slot, &request, scratch, reply);
}

impl Crew {
    /// Answers one request, however it came.
    pub(super) fn answer(
        &self,
        slot: &Slot,
        request: &Request<'_>,
        scratch: &mut Scratch<'_>,
        reply: Reply<'_>,
    ) {
        if let Some(awake) = &self.awake {
            awake.beat();
        }
        self.notifications.counters().count(request.header.opcode);
        slot.begin(request.header.unique, request.header.pid);
        // One bad request must not take the mount down; its reply, dropped, answers EIO.
        if catch_unwind(AssertUnwindSafe(|| self.front.serve(request, scratch, reply))).is_err() {
            tracing::error!(
                opcode = request.header.opcode,
                "a request ended in a panic and was answered with EIO; please report this"
            );
        }
        slot.finish();
    }

    pub(super) fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    pub(super) fn counters(&self) -> &Counters {
        self.notifications.counters()
    }

    pub(super) fn desk(&self) -> &Desk {
        &self.desk
    }
}

/// Is the request expected to take long?
fn is_long(request: &Request<'_>) -> bool {
    matches!(request.op, Op::Fsync(_) | Op::Fsyncdir(_) | Op::Syncfs)
        || matches!(request.op, Op::Setattr(set) if set.valid & Fattr::SIZE.bits() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_expected_for_a_while_after_some_came() {
        let crowd = Crowd::default();
        assert!(!crowd.is_expected());
        crowd.learn(false);
        assert!(!crowd.is_expected());
        crowd.learn(true);
        for _ in 0..PATIENCE {
            assert!(crowd.is_expected());
            crowd.learn(false);
        }
        assert!(!crowd.is_expected());
    }
}
