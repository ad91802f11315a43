//! Requests that come by io_uring: on every processor a queue, at every entry of a queue a thread.
//!
//! A thread has a ring with one entry ([`Station`]), takes a request from it, answers it itself, and sends the answer
//! with the same system call that waits for the next request. It runs on the processor whose queue it serves, which is
//! the one the request was made on: nobody has to be woken on another processor, which in a virtual machine costs more
//! than most requests do. The kernel gives a request to the entry that was used last.
//!
//! Invariants: a thread that sleeps (before a lock, a device) keeps its own entry and nothing else, the others of its
//! queue go on being used; there are as many entries as the crew of the device may have threads, so that as many
//! requests can wait. FORGET, INTERRUPT and notifications go by the device as ever, where the crew reads.

use super::abi::{InHeader, Opcode, ring};
use super::crew::{Crew, THREADS_MAX};
use super::front::{MAX_IO, Scratch, Target};
use super::interrupt::Slot;
use super::reply::{Answer, Channel, Reply};
use super::request::{decode, decode_write};
use super::station::{Parts, Station};
use crate::error::Errno;
use gfs2_format::device::AlignedBuf;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::cell::RefCell;
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use zerocopy::FromBytes;

/// Whether the kernel hands out requests by io_uring; writable for root.
const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";
/// The processors there may ever be: the kernel has a queue for each.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
/// Entries of a queue, at least.
const DEPTH_MIN: usize = 16;
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

/// The threads of all queues.
#[derive(Debug)]
pub(super) struct Rings {
    threads: Vec<JoinHandle<()>>,
}

impl Rings {
    /// Begins to take requests by rings, once INIT has agreed on it. Where that fails the kernel goes back to the device.
    pub(super) fn start(crew: &Arc<Crew>) -> Self {
        let mut rings = Self { threads: Vec::new() };
        let all = queues().and_then(|queues| {
            // The kernel begins when every queue has an entry.
            rings.add_to_all(crew, queues, 1)?;
            Ok(queues)
        });
        let queues = match all {
            Ok(queues) => queues,
            Err(error) => {
                tracing::warn!("requests come by /dev/fuse and not by io_uring: {error}");
                refuse(crew.channel());
                return rings;
            }
        };
        let more = (THREADS_MAX / queues).max(DEPTH_MIN) - 1;
        if let Err(error) = rings.add_to_all(crew, queues, more) {
            tracing::warn!("fewer requests can wait at a time than should: {error}");
        }
        tracing::debug!(queues, threads = rings.threads.len(), "requests come by io_uring");
        rings
    }

    /// Adds so many threads to every queue.
    fn add_to_all(&mut self, crew: &Arc<Crew>, queues: usize, count: usize) -> io::Result<()> {
        let (sender, results) = channel();
        for _ in 0..count {
            for queue in 0..queues {
                self.add(crew, queue, &sender)?;
            }
        }
        drop(sender);
        results.iter().collect()
    }

    fn add(&mut self, crew: &Arc<Crew>, queue: usize, result: &Sender<io::Result<()>>) -> io::Result<()> {
        let (crew, result) = (Arc::clone(crew), result.clone());
        let thread = std::thread::Builder::new()
            .name(format!("gfs2-ring-{queue}"))
            .spawn(move || work(&crew, queue, &result))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Waits for the end of the mount.
    pub(super) fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of a ring panicked; please report this");
            }
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

/// The life of a thread.
fn work(crew: &Arc<Crew>, queue: usize, result: &Sender<io::Result<()>>) {
    // One that cannot be kept on its processor is still right, only slower.
    let mut here = CpuSet::new();
    if queue < CpuSet::MAX_CPU {
        here.set(queue);
        let _ = sched_setaffinity(None, &here);
    }
    let station = u16::try_from(queue)
        .map_err(|_| io::ErrorKind::InvalidInput.into())
        .and_then(|queue| Station::new(crew.channel(), queue, MAX_IO as usize))
        .and_then(|mut station| station.register().map(|()| station));
    let mut station = match station {
        Ok(station) => station,
        Err(error) => {
            let _ = result.send(Err(error));
            return;
        }
    };
    // Whoever counts may have given up.
    let _ = result.send(Ok(()));
    let slot = crew.desk().slot();
    slot.enter();
    let mut place = Place::default();
    loop {
        match station.next() {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                tracing::error!(queue, "a ring has failed: {error}");
                break;
            }
        }
        if let Err(error) = place.serve(crew, &slot, &mut station) {
            tracing::error!(queue, "a ring does not take an answer: {error}");
            break;
        }
    }
    crew.desk().give_back(&slot);
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
