//! One entry of a FUSE-over-io_uring queue, with a ring and memory of its own: the only unsafe code of the transport.
//!
//! What is unsafe is that the kernel writes into memory it was told of once, when a command is answered. It is contained
//! thus: the ring is made with SINGLE_ISSUER and DEFER_TASKRUN, so the kernel touches the memory nowhere but inside
//! `io_uring_enter` called by the thread that made the ring, and this type calls it only in methods that have the
//! [`Station`] to themselves and cannot leave their thread. It is as if `enter` were a read into the memory. The device
//! and the length of the memory are fixed for the life of the ring, and the ring goes before the memory does.
//!
//! Source: the kernel's `include/uapi/linux/fuse.h` and `Documentation/filesystems/fuse/fuse-io-uring.rst`.

#![allow(unsafe_code)]

use super::abi::{OutHeader, RingEntry, ring};
use super::reply::Channel;
use io_uring::squeue::Entry128;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use memmap2::{MmapMut, UncheckedAdvice};
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

/// Where the payload begins: at a page, for the device takes it from there.
const PAYLOAD: usize = 4096;
const _: () = assert!(ring::HEADERS <= PAYLOAD);
/// Payload that is left in memory while there is nothing to do.
const KEPT: usize = 64 << 10;
/// How long there must be nothing to do before the rest is given back.
const IDLE: Timespec = Timespec::new().sec(5);
/// Entries of a ring: one command is under way at a time.
const COMMANDS: u32 = 2;
/// Where in a submission the pointer to the memory's vector and its length lie.
const SQE_LEN: usize = 24;

type Ring = IoUring<Entry128, cqueue::Entry>;

/// The parts of an entry's memory.
pub(super) struct Parts<'a> {
    /// The request's header and the operation's, [`ring::HEADER`] bytes each.
    pub(super) headers: &'a [u8],
    pub(super) entry: RingEntry,
    pub(super) payload: &'a mut [u8],
}

/// A ring with one entry of a queue.
pub(super) struct Station {
    ring: Ring,
    memory: MmapMut,
    /// What the kernel is told of the memory.
    vector: Box<[libc::iovec; 2]>,
    channel: Arc<Channel>,
    queue: u16,
    /// What `register` found to have arrived.
    arrived: Option<i32>,
    /// A request is here.
    held: bool,
    /// More than [`KEPT`] of the payload was used since it was given back.
    large: bool,
    /// A ring of that kind is its thread's.
    _here: PhantomData<*const ()>,
}

impl Station {
    /// A ring of this thread for an entry of `queue`, which the kernel does not know yet.
    ///
    /// # Errors
    /// The system's: io_uring is forbidden, or too old.
    pub(super) fn new(channel: &Arc<Channel>, queue: u16, payload: usize) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun();
        let ring: Ring = builder.build(COMMANDS)?;
        if !ring.params().is_feature_ext_arg() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut memory = MmapMut::map_anon(PAYLOAD + payload)?;
        let start = memory.as_mut_ptr();
        let part = |at: usize, iov_len| libc::iovec {
            iov_base: start.wrapping_add(at).cast(),
            iov_len,
        };
        Ok(Self {
            ring,
            vector: Box::new([part(0, ring::HEADERS), part(PAYLOAD, payload)]),
            memory,
            channel: Arc::clone(channel),
            queue,
            arrived: None,
            held: false,
            large: false,
            _here: PhantomData,
        })
    }

    /// Makes the entry known to the kernel.
    ///
    /// # Errors
    /// The kernel's; it then has all requests come by the device, if no ring of this mount was in use yet.
    pub(super) fn register(&mut self) -> io::Result<()> {
        let vector = self.vector.as_ptr().addr() as u64;
        let mut command = self.command(ring::REGISTER, 0, Some(vector));
        let len = (self.vector.len() as u32).to_ne_bytes();
        // SAFETY: Entry128 is the kernel's structure of 128 bytes, for which all bytes are valid; no reference to it is
        // alive. The crate has no name for this field of a command.
        unsafe {
            std::ptr::copy_nonoverlapping(
                len.as_ptr(),
                (&raw mut command).cast::<u8>().add(SQE_LEN),
                len.len(),
            );
        }
        self.push(&command)?;
        self.ring.submit()?;
        // What the kernel refuses it answers at once. A request may be here already; that one stays.
        self.arrived = self.ring.completion().next().map(|entry| entry.result());
        match self.arrived {
            Some(result) if result < 0 => Err(io::Error::from_raw_os_error(-result)),
            _ => Ok(()),
        }
    }

    /// Sends the answer that was committed, if any, and waits for a request. False: there will be no more.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn next(&mut self) -> io::Result<bool> {
        self.held = false;
        loop {
            if let Some(result) = self.take() {
                return match -result {
                    0 => {
                        self.held = true;
                        Ok(true)
                    }
                    // The mount was aborted or unmounted, or this thread is being ended.
                    libc::ENOTCONN | libc::ECONNABORTED | libc::ECANCELED | libc::ENODEV => Ok(false),
                    error => Err(io::Error::from_raw_os_error(error)),
                };
            }
            self.wait()?;
        }
    }

    /// The result of a command, if there is one.
    fn take(&mut self) -> Option<i32> {
        let arrived = self.arrived.take();
        arrived.or_else(|| self.ring.completion().next().map(|entry| entry.result()))
    }

    fn wait(&mut self) -> io::Result<()> {
        let entered = if self.large {
            let args = SubmitArgs::new().timespec(&IDLE);
            self.ring.submitter().submit_with_args(1, &args)
        } else {
            self.ring.submit_and_wait(1)
        };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
                Some(libc::ETIME) => {
                    self.give_back();
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    /// Gives the memory back that only large requests need.
    fn give_back(&mut self) {
        self.large = false;
        let from = PAYLOAD + KEPT;
        if let Some(len) = self.memory.len().checked_sub(from) {
            // SAFETY: the mapping is private and anonymous: the pages read as zero afterwards. Nobody refers to them,
            // and the kernel fills them in `enter` alone.
            let advised = unsafe {
                self.memory
                    .unchecked_advise_range(UncheckedAdvice::DontNeed, from, len)
            };
            if let Err(error) = advised {
                tracing::debug!("memory of a ring is kept: {error}");
            }
        }
    }

    /// The request that is here. `None`: there is none.
    pub(super) fn parts(&mut self) -> Option<Parts<'_>> {
        if !self.held {
            return None;
        }
        let (head, payload) = self.memory.split_at_mut_checked(PAYLOAD)?;
        let head = head.get(..ring::HEADERS)?;
        let (headers, entry) = head.split_at_checked(2 * ring::HEADER)?;
        let entry = RingEntry::read_from_bytes(entry).ok()?;
        self.large |= entry.payload_sz as usize > KEPT;
        Some(Parts {
            headers,
            entry,
            payload,
        })
    }

    /// Answers the request that is here with what the payload begins with; [`Station::next`] sends it.
    ///
    /// # Errors
    /// There is no request, or the answer is longer than the payload.
    pub(super) fn commit(&mut self, unique: u64, error: i32, len: usize) -> io::Result<()> {
        let Some(parts) = self.parts() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let (mut entry, room) = (parts.entry, parts.payload.len());
        if len > room {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let head = OutHeader {
            // No longer than the payload.
            len: (size_of::<OutHeader>() + len) as u32,
            error,
            unique,
        };
        entry.payload_sz = len as u32;
        let headers = self.memory.get_mut(..ring::HEADERS).unwrap_or_default();
        for (at, bytes) in [(0, head.as_bytes()), (2 * ring::HEADER, entry.as_bytes())] {
            if let Some(place) = headers.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }
        self.large |= len > KEPT;
        self.held = false;
        let command = self.command(ring::COMMIT_AND_FETCH, entry.commit_id, None);
        self.push(&command)
    }

    fn command(&self, op: u32, commit: u64, addr: Option<u64>) -> Entry128 {
        let mut bytes = [0u8; 80];
        bytes[8..16].copy_from_slice(&commit.to_ne_bytes());
        bytes[16..18].copy_from_slice(&self.queue.to_ne_bytes());
        let fd = Fd(self.channel.fd().as_raw_fd());
        opcode::UringCmd80::new(fd, op).cmd(bytes).addr(addr).build()
    }

    fn push(&mut self, command: &Entry128) -> io::Result<()> {
        // SAFETY: the kernel uses the memory it was told of by REGISTER, which lives as long as the ring does, and only
        // in `enter` (see above). So does the vector that REGISTER points to.
        unsafe { self.ring.submission().push(command) }.map_err(|_| io::ErrorKind::QuotaExceeded.into())
    }
}

impl fmt::Debug for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Station")
            .field("queue", &self.queue)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}
