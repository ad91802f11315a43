//! One socket: connecting, what waits to be written, what was read.
//!
//! Invariants: never blocks; bytes leave in the order queued; the poller is asked for writability exactly while
//! something waits or the connection is being made.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use crate::midcomms::Framer;
use crate::transport::{Gone, Poller, Readiness, Token};
use crate::wire::Packet;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;
/// How often a socket is read before others get their turn.
const READS: usize = 4;
/// Written bytes that may stay in a queue before it is moved up.
const SLACK: usize = 1 << 20;

fn family(addr: SocketAddr) -> AddressFamily {
    match addr {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    }
}

fn new_socket(addr: SocketAddr) -> io::Result<std::os::fd::OwnedFd> {
    Ok(rustix::net::socket_with(
        family(addr),
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(ipproto::TCP),
    )?)
}

/// A listener on `addr`.
pub(super) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = new_socket(addr)?;
    // A node that comes back at once must not wait for its old connections to be forgotten.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &addr)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// Ends a connection so that the other side sees an error, not an end.
pub(super) fn reset(stream: TcpStream) {
    // Whatever the system answers, the socket is closed by the drop.
    let _ = sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
}

/// What a write achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Connecting,
    CameUp,
    Written,
}

#[derive(Debug)]
pub(super) struct Conn {
    stream: TcpStream,
    token: Token,
    up: bool,
    /// The poller tells of writability.
    wants_write: bool,
    framer: Framer,
    out: Vec<u8>,
    /// What of `out` the system took.
    written: usize,
}

impl Conn {
    /// Begins a connection from our address (any port) to a peer's.
    pub(super) fn connect(local: SocketAddr, to: SocketAddr, poller: &Poller) -> io::Result<Self> {
        let socket = new_socket(to)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        rustix::net::bind(&socket, &SocketAddr::new(local.ip(), 0))?;
        match rustix::net::connect(&socket, &to) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(e) => return Err(e.into()),
        }
        // Also when it came up at once: writability says so.
        Self::new(TcpStream::from(socket), false, poller)
    }

    pub(super) fn accepted(stream: TcpStream, poller: &Poller) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Self::new(stream, true, poller)
    }

    fn new(stream: TcpStream, up: bool, poller: &Poller) -> io::Result<Self> {
        let token = poller.add(
            &stream,
            Readiness {
                read: true,
                write: !up,
            },
        )?;
        Ok(Self {
            stream,
            token,
            up,
            wants_write: !up,
            framer: Framer::new(),
            out: Vec::new(),
            written: 0,
        })
    }

    pub(super) const fn token(&self) -> Token {
        self.token
    }

    pub(super) const fn is_up(&self) -> bool {
        self.up
    }

    /// Bytes the system has not taken.
    pub(super) fn queued(&self) -> usize {
        self.out.len().saturating_sub(self.written)
    }

    pub(super) fn queue(&mut self, bytes: &mut Vec<u8>) {
        if self.written > SLACK && self.written > self.queued() {
            self.out.drain(..self.written);
            self.written = 0;
        }
        self.out.append(bytes);
    }

    /// Writes what the system takes, and counts how often it was asked.
    pub(super) fn write(&mut self, poller: &Poller, calls: &mut u64) -> Result<Progress, Gone> {
        let mut progress = Progress::Written;
        if !self.up {
            match sockopt::socket_error(&self.stream) {
                Ok(Ok(())) => {}
                Ok(Err(e)) | Err(e) => return Err(Gone::Io(e.into())),
            }
            match self.stream.peer_addr() {
                Ok(_) => self.up = true,
                Err(e) if e.kind() == io::ErrorKind::NotConnected => return Ok(Progress::Connecting),
                Err(e) => return Err(Gone::Io(e)),
            }
            progress = Progress::CameUp;
        }
        while let Some(rest) = self.out.get(self.written..).filter(|r| !r.is_empty()) {
            *calls = calls.wrapping_add(1);
            match self.stream.write(rest) {
                Ok(n) => self.written = self.written.saturating_add(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(Gone::Io(e)),
            }
        }
        if self.queued() == 0 {
            self.out.clear();
            self.written = 0;
        }
        self.want_write(self.queued() > 0, poller)?;
        Ok(progress)
    }

    fn want_write(&mut self, wanted: bool, poller: &Poller) -> Result<(), Gone> {
        if wanted != self.wants_write {
            let readiness = Readiness {
                read: true,
                write: wanted,
            };
            poller
                .modify(&self.stream, self.token, readiness)
                .map_err(Gone::Io)?;
            self.wants_write = wanted;
        }
        Ok(())
    }

    /// Reads what is there and adds the packets in it; `Some` when the connection is at its end. Counts how often the
    /// system was asked.
    pub(super) fn read(
        &mut self,
        buffer: &mut [u8],
        packets: &mut Vec<Packet>,
        calls: &mut u64,
    ) -> Option<Gone> {
        for _ in 0..READS {
            *calls = calls.wrapping_add(1);
            let n = match self.stream.read(buffer) {
                Ok(0) => return Some(Gone::Closed),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(e) => return Some(Gone::Io(e)),
            };
            self.framer.push(buffer.get(..n).unwrap_or(&[]));
            loop {
                match self.framer.next_packet() {
                    Ok(Some(packet)) => packets.push(packet),
                    Ok(None) => break,
                    Err(e) => return Some(Gone::Broken(e)),
                }
            }
            if n < buffer.len() {
                // Level-triggered: were there more, we would be told again.
                return None;
            }
        }
        None
    }

    pub(super) fn close(self, poller: &Poller, with_reset: bool) {
        // A socket that is closed leaves the poller anyway.
        let _ = poller.remove(&self.stream);
        if with_reset {
            reset(self.stream);
        }
    }
}
