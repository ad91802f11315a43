//! The connection to the kernel: requests read whole, answers written from where they lie.
//!
//! Invariants: every request that wants an answer gets exactly one ([`Reply`] dropped unsent answers EIO, also during
//! a panic); an answer or notification is one writev of a header and slices, nothing is copied.

use super::abi::OutHeader;
use crate::error::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno as Sys;
use std::cell::RefCell;
use std::io::{self, IoSlice};
use zerocopy::{Immutable, IntoBytes};

/// The device of one mount.
#[derive(Debug)]
pub(super) struct Channel {
    fd: OwnedFd,
}

impl Channel {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Waits for a request and gives its length. `None`: the filesystem has been unmounted.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn receive(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::io::read(&self.fd, &mut *buf) {
                Ok(len) => return Ok(Some(len)),
                // The request was taken back while it was being copied; a signal for the process; nothing yet.
                Err(Sys::NOENT | Sys::INTR | Sys::AGAIN) => {}
                Err(Sys::NODEV | Sys::CONNABORTED) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Is there a request that nobody has read?
    pub(super) fn has_request(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Tells the kernel something it has not asked for.
    ///
    /// # Errors
    /// The kernel's: ENOENT for what it does not know, EINVAL for what it does not understand.
    pub(super) fn notify(&self, code: i32, fixed: &[u8], data: &[u8]) -> Result<(), Sys> {
        self.send(
            OutHeader {
                len: 0,
                error: code,
                unique: 0,
            },
            fixed,
            data,
        )
    }

    fn send(&self, mut header: OutHeader, fixed: &[u8], data: &[u8]) -> Result<(), Sys> {
        let len = size_of::<OutHeader>() + fixed.len() + data.len();
        header.len = u32::try_from(len).map_err(|_| Sys::TOOBIG)?;
        let parts = [
            IoSlice::new(header.as_bytes()),
            IoSlice::new(fixed),
            IoSlice::new(data),
        ];
        // Empty parts are no parts: the kernel counts segments, and the header alone is the commonest answer.
        let count = if data.is_empty() {
            1 + usize::from(!fixed.is_empty())
        } else {
            3
        };
        loop {
            match rustix::io::writev(&self.fd, &parts[..count]) {
                Ok(_) => return Ok(()),
                Err(Sys::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// An answer that leaves with the entry of a ring its request came with.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// 0, or an error as the kernel has them (negative).
    pub(super) error: i32,
    /// What is answered,
    pub(super) bytes: Vec<u8>,
    /// or how much of it lies where the request's READ was to put it.
    pub(super) filled: Option<usize>,
}

/// Where an answer goes.
#[derive(Clone, Copy, Debug)]
enum Way<'a> {
    Device(&'a Channel, u64),
    Ring(&'a RefCell<Answer>),
}

/// The answer that one request is owed.
#[derive(Debug)]
#[must_use = "a request wants its answer"]
pub(super) struct Reply<'a> {
    way: Way<'a>,
    owed: bool,
}

impl<'a> Reply<'a> {
    /// To the device, for the request `unique`.
    pub(super) fn new(channel: &'a Channel, unique: u64) -> Self {
        Self {
            way: Way::Device(channel, unique),
            owed: true,
        }
    }

    /// To be sent by a ring.
    pub(super) fn by_ring(answer: &'a RefCell<Answer>) -> Self {
        Self {
            way: Way::Ring(answer),
            owed: true,
        }
    }

    /// Done, and nothing to say.
    pub(super) fn ok(self) {
        self.bytes(&[], &[]);
    }

    /// One structure.
    pub(super) fn fixed(self, value: &(impl IntoBytes + Immutable)) {
        self.bytes(value.as_bytes(), &[]);
    }

    /// Bytes in two pieces.
    pub(super) fn bytes(mut self, fixed: &[u8], data: &[u8]) {
        self.send(0, fixed, data);
    }

    /// The bytes at the start of the buffer that was given for a READ.
    pub(super) fn filled(mut self, data: &[u8]) {
        match self.way {
            Way::Device(..) => self.send(0, &[], data),
            Way::Ring(answer) => {
                self.owed = false;
                *answer.borrow_mut() = Answer {
                    filled: Some(data.len()),
                    ..Answer::default()
                };
            }
        }
    }

    /// It failed.
    pub(super) fn error(mut self, errno: Errno) {
        self.send(-errno.0, &[], &[]);
    }

    /// This kind of request gets no answer.
    pub(super) fn none(mut self) {
        self.owed = false;
    }

    fn send(&mut self, error: i32, fixed: &[u8], data: &[u8]) {
        self.owed = false;
        let (channel, unique) = match self.way {
            Way::Device(channel, unique) => (channel, unique),
            Way::Ring(answer) => {
                let mut answer = answer.borrow_mut();
                answer.error = error;
                answer.filled = None;
                answer.bytes.clear();
                answer.bytes.extend_from_slice(fixed);
                answer.bytes.extend_from_slice(data);
                return;
            }
        };
        let header = OutHeader {
            len: 0,
            error,
            unique,
        };
        match channel.send(header, fixed, data) {
            // Nobody waits any more: the mount was aborted.
            Ok(()) | Err(Sys::NOENT | Sys::NODEV) => {}
            Err(error) => {
                tracing::error!(unique, "the kernel refuses an answer: {error}");
                // Whoever waits must not wait for ever.
                let header = OutHeader {
                    len: 0,
                    error: -libc::EIO,
                    unique,
                };
                let _ = channel.send(header, &[], &[]);
            }
        }
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        if self.owed {
            self.send(-libc::EIO, &[], &[]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use zerocopy::FromBytes;

    /// What a reader of the other end sees.
    fn sent(act: impl FnOnce(&Channel)) -> Vec<u8> {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let channel = Channel::new(writer.into());
        act(&channel);
        drop(channel);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn header(bytes: &[u8]) -> OutHeader {
        OutHeader::read_from_prefix(bytes).unwrap().0
    }

    #[test]
    fn an_answer_is_a_header_and_its_pieces() {
        let bytes = sent(|channel| Reply::new(channel, 8).bytes(b"fixed", b"data"));
        assert_eq!(
            header(&bytes),
            OutHeader {
                len: 25,
                error: 0,
                unique: 8
            }
        );
        assert_eq!(&bytes[16..], b"fixeddata");
        let bytes = sent(|channel| Reply::new(channel, 8).bytes(b"", b"data"));
        assert_eq!(&bytes[16..], b"data");
        let bytes = sent(|channel| Reply::new(channel, 8).ok());
        assert_eq!(bytes.len(), 16);
        let bytes = sent(|channel| channel.notify(2, b"inode", b"").unwrap());
        assert_eq!(
            header(&bytes),
            OutHeader {
                len: 21,
                error: 2,
                unique: 0
            }
        );
    }

    #[test]
    fn a_request_is_answered_once_whatever_happens() {
        let bytes = sent(|channel| drop(Reply::new(channel, 8)));
        assert_eq!(
            header(&bytes),
            OutHeader {
                len: 16,
                error: -libc::EIO,
                unique: 8
            }
        );
        assert_eq!(bytes.len(), 16);
        let bytes = sent(|channel| Reply::new(channel, 8).error(Errno::ENOENT));
        assert_eq!(header(&bytes).error, -libc::ENOENT);
        assert_eq!(bytes.len(), 16);
        let bytes = sent(|channel| Reply::new(channel, 8).none());
        assert!(bytes.is_empty());
    }
}
