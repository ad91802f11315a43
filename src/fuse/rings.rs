//! Requests that come by io_uring: on every processor a queue, at every entry of a queue a thread.
//!
//! A thread has a ring with one entry ([`Station`]), takes a request from it, answers it itself, and sends the answer
//! with the same system call that waits for the next request. It runs on the processor whose queue it serves, which is
//! the one the request was made on: nobody has to be woken on another processor, which in a virtual machine costs more
//! than most requests do. The kernel gives a request to the entry that was used last.
//!
//! Invariants: a thread that sleeps (before a lock, a device) keeps its own entry and nothing else, the others of its
//! queue go on being used. All entries are there from the beginning:
//! one made later would not be given what waits already, for the kernel looks at a queue only when an entry has answered
//! (and it has no way to take an entry back). It begins at the first entry of the last queue: until the others are there,
//! the mount is not attached to anything, and nobody asks. An entry has 1 MiB of address space for payload, of which it keeps 64 KiB
//! once it has nothing to do. FORGET, INTERRUPT and notifications go by the device as ever, where the crew reads.

use super::abi::{InHeader, Opcode, ring};
use super::crew::Crew;
use super::front::{MAX_IO, Scratch, Target};
use super::interrupt::Slot;
use super::reply::{Answer, Channel, Reply};
use super::request::{decode, decode_write};
use super::station::{Parts, Station};
use crate::error::Errno;
use crate::sleep::{self, Moment};
use gfs2_format::device::AlignedBuf;
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::cell::RefCell;
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use zerocopy::FromBytes;

/// Whether the kernel hands out requests by io_uring; writable for root.
const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";
/// The processors there may ever be: the kernel has a queue for each.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
/// Entries of all queues, if that leaves each one enough.
const ENTRIES: usize = 256;
/// Threads of a queue, at least.
const DEPTH_MIN: usize = 16;
/// How often requests that sleep are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// With more processors than this the device is used.
const QUEUES_MAX: usize = 128;

/// How requests come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// By io_uring if the administrator has enabled it, else by the device.
    #[default]
    Auto,
    /// By io_uring, which is enabled if need be; where that cannot be, by the device.
    Ring,
    /// By `/dev/fuse`.
    Device,
}

impl Transport {
    /// Before a mount: enables io_uring if that is asked for. Gives what is left to try.
    pub(super) fn prepare(self) -> Self {
        let enabled = match self {
            Self::Device => return self,
            Self::Auto if !is_enabled() => return Self::Device,
            Self::Auto => Ok(()),
            Self::Ring => enable(),
        };
        enabled.map_or_else(|why| Self::by_device(&why), |()| self)
    }

    /// Of a connection before INIT: shall it be io_uring? The kernel that is told yes waits for our rings.
    pub(super) fn wants_ring(self, channel: &Arc<Channel>) -> bool {
        if self == Self::Device {
            return false;
        }
        probe(channel).map_or_else(|why| Self::by_device(&why), |()| self) != Self::Device
    }

    fn by_device(why: &str) -> Self {
        tracing::warn!("requests come by /dev/fuse and not by io_uring: {why}");
        Self::Device
    }
}

fn is_enabled() -> bool {
    fs::read_to_string(PARAMETER).is_ok_and(|text| text.trim() == "Y")
}

fn enable() -> Result<(), String> {
    if is_enabled() {
        return Ok(());
    }
    match fs::write(PARAMETER, "Y") {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err("this kernel has no FUSE over io_uring (Linux 6.14, CONFIG_FUSE_IO_URING)".into())
        }
        Err(error) => Err(format!(
            "{PARAMETER}: {error}; enable it with fuse.enable_uring=1"
        )),
    }
}

/// Is there anything against it?
fn probe(channel: &Arc<Channel>) -> Result<(), String> {
    queues().map_err(|error| format!("{POSSIBLE}: {error}"))?;
    match Station::new(channel, 0, MAX_IO as usize) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("io_uring: {error}")),
    }
}

/// How many queues the kernel has.
fn queues() -> io::Result<usize> {
    let text = fs::read_to_string(POSSIBLE)?;
    let count = count_list(text.trim()).ok_or(io::ErrorKind::InvalidData)?;
    if count > QUEUES_MAX {
        let text = format!("{count} processors, at most {QUEUES_MAX} are served");
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    Ok(count)
}

/// How many numbers there are in a list like `0-3,8`.
fn count_list(text: &str) -> Option<usize> {
    let mut count = 0usize;
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

#[derive(Debug, Default)]
struct Tasks {
    /// Threads sleep: their processes may be killed.
    look: bool,
    /// The mount has ended.
    over: bool,
}

#[derive(Debug)]
struct Shared {
    crew: Arc<Crew>,
    /// `Tasks::look` is set.
    looking: AtomicBool,
    tasks: Mutex<Tasks>,
    wake: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// The threads of all queues.
#[derive(Debug)]
pub(super) struct Rings {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
}

impl Rings {
    /// Begins to take requests by rings, once INIT has agreed on it. Where that fails the kernel goes back to the device.
    pub(super) fn start(crew: &Arc<Crew>) -> Self {
        let shared = Arc::new(Shared {
            crew: Arc::clone(crew),
            looking: AtomicBool::new(false),
            tasks: Mutex::default(),
            wake: Condvar::new(),
            threads: Mutex::default(),
        });
        let keeping = Arc::clone(&shared);
        let keeper = std::thread::Builder::new()
            .name("gfs2-ring-keep".into())
            .spawn(move || keeping.keep());
        let (keeper, begun) = match keeper {
            Ok(keeper) => (Some(keeper), shared.begin()),
            Err(error) => (None, Err(error)),
        };
        if let Err(error) = begun {
            tracing::warn!("requests come by /dev/fuse and not by io_uring: {error}");
            refuse(crew.channel());
        }
        Self { shared, keeper }
    }

    /// Waits for the end of the mount.
    pub(super) fn join(self) {
        self.shared.tasks.lock().over = true;
        self.shared.wake.notify_one();
        let mut panics = self
            .keeper
            .map_or(0, |keeper| usize::from(keeper.join().is_err()));
        let threads = std::mem::take(&mut *self.shared.threads.lock());
        for thread in threads {
            panics += usize::from(thread.join().is_err());
        }
        if panics > 0 {
            tracing::error!("a thread of a ring panicked; please report this");
        }
    }
}

impl Shared {
    /// Begins the threads of all queues.
    fn begin(self: &Arc<Self>) -> io::Result<()> {
        let queues = queues()?;
        let depth = (ENTRIES / queues).max(DEPTH_MIN);
        // The kernel begins when the last queue has its first entry: what fails after that is no way back to the device.
        let (last, others) = (queues - 1, 0..queues - 1);
        for queue in others {
            self.add(queue, depth)?;
        }
        self.add(last, 1)?;
        if let Err(error) = self.add(last, depth - 1) {
            tracing::warn!("fewer requests can wait at a time than should: {error}");
        }
        tracing::debug!(queues, depth, "requests come by io_uring");
        Ok(())
    }

    /// Adds threads to a queue, and waits until the kernel knows their entries.
    fn add(self: &Arc<Self>, queue: usize, count: usize) -> io::Result<()> {
        let (sender, results) = channel();
        for _ in 0..count {
            let (shared, sender) = (Arc::clone(self), sender.clone());
            let thread = std::thread::Builder::new()
                .name(format!("gfs2-ring-{queue}"))
                .spawn(move || shared.work(queue, &sender))?;
            self.threads.lock().push(thread);
        }
        drop(sender);
        results.iter().take(count).collect()
    }

    /// The life of the thread that looks at those who sleep.
    fn keep(&self) {
        let mut seen = Vec::new();
        let mut tasks = self.tasks.lock();
        while !tasks.over {
            if !tasks.look {
                self.wake.wait(&mut tasks);
                continue;
            }
            self.wake.wait_for(&mut tasks, LOOK);
            // Whoever goes to sleep from here on says so again.
            tasks.look = false;
            self.looking.store(false, Ordering::SeqCst);
            let more = MutexGuard::unlocked(&mut tasks, || self.crew.desk().look_at_the_waiting(&mut seen));
            if more {
                tasks.look = true;
                self.looking.store(true, Ordering::SeqCst);
            }
        }
    }

    /// A thread is about to sleep.
    fn look(&self) {
        if !self.looking.swap(true, Ordering::SeqCst) {
            self.tasks.lock().look = true;
            self.wake.notify_one();
        }
    }

    /// The life of a thread of a queue.
    fn work(self: &Arc<Self>, queue: usize, result: &Sender<io::Result<()>>) {
        stay_on(queue);
        let station = u16::try_from(queue)
            .map_err(|_| io::ErrorKind::InvalidInput.into())
            .and_then(|queue| Station::new(self.crew.channel(), queue, MAX_IO as usize))
            .and_then(|mut station| station.register().map(|()| station));
        let mut station = match station {
            Ok(station) => station,
            Err(error) => {
                let _ = result.send(Err(error));
                return;
            }
        };
        let slot = self.crew.desk().slot();
        slot.enter();
        let shared = Arc::clone(self);
        sleep::register(move |moment| {
            if moment != Moment::Woke {
                shared.look();
            }
        });
        // Whoever counts may have given up.
        let _ = result.send(Ok(()));
        if let Err(error) = self.serve(&slot, &mut station) {
            tracing::error!(queue, "a ring has failed: {error}");
        }
        self.crew.desk().give_back(&slot);
    }

    fn serve(&self, slot: &Slot, station: &mut Station) -> io::Result<()> {
        let mut place = Place::default();
        while station.next()? {
            place.serve(&self.crew, slot, station)?;
        }
        Ok(())
    }
}

/// One that cannot be kept on its processor is still right, only slower.
fn stay_on(queue: usize) {
    if queue < CpuSet::MAX_CPU {
        let mut here = CpuSet::new();
        here.set(queue);
        if let Err(error) = sched_setaffinity(None, &here) {
            tracing::debug!(queue, "a ring's thread runs anywhere: {error}");
        }
    }
}

/// Has the kernel no longer wait for our rings: a ring that it refuses makes it go back to the device.
fn refuse(channel: &Arc<Channel>) {
    let none = Station::new(channel, u16::MAX, MAX_IO as usize).and_then(|mut station| station.register());
    if none.is_ok() {
        tracing::error!("the kernel has taken a ring for a processor that there is not");
    }
}

/// What a thread needs besides its station.
struct Place {
    /// The request in one piece, a WRITE's payload apart.
    message: Vec<u8>,
    names: Vec<u8>,
    nothing: AlignedBuf,
    answer: RefCell<Answer>,
}

impl Default for Place {
    fn default() -> Self {
        Self {
            message: Vec::new(),
            names: Vec::new(),
            nothing: AlignedBuf::zeroed(0),
            answer: RefCell::default(),
        }
    }
}

impl Place {
    /// Answers the request that is at the station.
    fn serve(&mut self, crew: &Crew, slot: &Slot, station: &mut Station) -> io::Result<()> {
        let Some(parts) = station.parts() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        *self.answer.get_mut() = Answer::default();
        let unique = self.act(crew, slot, parts);
        let answer = self.answer.get_mut();
        let (mut error, mut len) = (answer.error, answer.filled.unwrap_or(answer.bytes.len()));
        if error != 0 {
            len = 0;
        } else if answer.filled.is_none() && len > 0 {
            let room = station.parts().and_then(|parts| parts.payload.get_mut(..len));
            match room {
                Some(room) => room.copy_from_slice(&answer.bytes),
                None => (error, len) = (-libc::EIO, 0),
            }
        }
        station.commit(unique, error, len)
    }

    /// Has the answer made, and gives the request's number.
    fn act(&mut self, crew: &Crew, slot: &Slot, parts: Parts<'_>) -> u64 {
        let Parts {
            headers,
            entry,
            payload,
        } = parts;
        let reply = Reply::by_ring(&self.answer);
        let Ok((header, _)) = InHeader::read_from_prefix(headers) else {
            reply.error(Errno::EIO);
            return 0;
        };
        crew.counters().count_by_ring();
        let given = (entry.payload_sz as usize).min(payload.len());
        put_head(&mut self.message, &header, headers, given);
        // Nothing large is copied: a WRITE's payload stays where it is, a READ's is made where it leaves from.
        let (request, read) = if header.opcode == Opcode::WRITE as u32 {
            let data = payload.get(..given).unwrap_or_default();
            (decode_write(&self.message, data), Target::Own(&mut self.nothing))
        } else {
            self.message
                .extend_from_slice(payload.get(..given).unwrap_or_default());
            (decode(&self.message), Target::Lent(payload))
        };
        match request {
            Ok(request) => {
                let names = &mut self.names;
                crew.answer(slot, &request, &mut Scratch { read, names }, reply);
            }
            Err((_, malformed)) => {
                tracing::error!("FUSE: {malformed}");
                reply.error(Errno::EIO);
            }
        }
        header.unique
    }
}

/// Puts the headers together as a read of the device gives them. The operation's has the length that is left of the
/// whole; one that cannot be is cut, and what is understood of it is an error.
fn put_head(message: &mut Vec<u8>, header: &InHeader, headers: &[u8], payload: usize) {
    let fixed = size_of::<InHeader>();
    let operation = (header.len as usize).saturating_sub(fixed + payload);
    message.clear();
    message.extend_from_slice(headers.get(..fixed).unwrap_or_default());
    let operation = headers
        .get(ring::HEADER..)
        .and_then(|rest| rest.get(..operation.min(ring::HEADER)));
    message.extend_from_slice(operation.unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted() {
        assert_eq!(count_list("0"), Some(1));
        assert_eq!(count_list("0-1"), Some(2));
        assert_eq!(count_list("0-3,8,10-11"), Some(7));
        for bad in ["", "-", "3-1", "a", "0-", "0-18446744073709551615"] {
            assert_eq!(count_list(bad), None, "{bad}");
        }
    }
}
