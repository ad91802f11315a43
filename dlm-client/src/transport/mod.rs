//! Connections to peers: bytes out, packets in.
//!
//! Invariants: no call blocks except [`Poller::wait`]; bytes to a peer leave in the order given, on one connection; a
//! connection is given up, with a reset so that the peer's side notices and sends again, when what comes on it is no
//! packet. Must not know what packets mean; [`Network`] puts the links of [`crate::midcomms`] on top.

mod memory;
mod network;
mod poll;
mod tcp;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

pub use memory::{MemoryHub, MemoryTransport};
pub use network::{NetEvent, Network};
pub use poll::{Poller, Readiness, Ready, Token};
pub use tcp::TcpTransport;

use crate::NodeId;
use crate::wire::{Packet, WireError};

/// The port of the DLM.
pub const DLM_PORT: u16 = 21064;

/// Bytes that may wait for a peer's socket; more, and the connection is given up.
pub const QUEUED_MAX: usize = 1 << 30;
// What a link sends again at once has to fit.
const _: () = assert!(QUEUED_MAX > crate::midcomms::KEPT_MAX);

/// What happened on the connections.
#[derive(Debug)]
#[non_exhaustive]
pub enum TransportEvent {
    /// Bytes can be sent to this peer; nothing sent before is still on its way.
    Connected(NodeId),
    /// What was sent to this peer may be lost from here on.
    Disconnected(NodeId, Gone),
    /// A packet came from this peer's address, on any of its connections.
    Received(NodeId, Packet),
    /// Somebody who is no member of the cluster connected, and was dropped.
    Stranger(SocketAddr),
}

/// Why a connection ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum Gone {
    /// The peer closed it.
    Closed,
    /// The system reports an error.
    Io(io::Error),
    /// What came is no packet.
    Broken(WireError),
    /// The peer does not read what it is sent.
    Stuck {
        /// Bytes that wait.
        queued: usize,
    },
    /// We gave it up.
    Dropped,
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed by the peer"),
            Self::Io(e) => write!(f, "{e}"),
            Self::Broken(e) => write!(f, "{e}"),
            Self::Stuck { queued } => write!(f, "the peer does not read: {queued} bytes wait"),
            Self::Dropped => f.write_str("dropped"),
        }
    }
}

/// A transport that cannot begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}: {source}; {}", advice(.source))]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The system refuses what polling needs.
    #[error("cannot poll: {0}")]
    Poll(io::Error),
}

/// What to do about a port that cannot be had.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "is the kernel's DLM or another lock daemon running with this address? stop it first"
        }
        io::ErrorKind::AddrNotAvailable => "is this address of the cluster configured on this machine?",
        _ => "check the address in the cluster's configuration",
    }
}

/// What was done for the messages of a node since it started; to be counted, not timed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Messages of lockspaces sent.
    pub sent: u64,
    /// Messages of lockspaces received.
    pub received: u64,
    /// System calls that wrote to connections.
    pub writes: u64,
    /// System calls that read from connections.
    pub reads: u64,
    /// How often the network's thread woke up.
    pub turns: u64,
    /// How often a reader of events was told that there are some.
    pub told: u64,
}

/// Connections to the nodes of a cluster.
pub trait Transport: Send {
    /// The address of a peer; connections from it are accepted from now on.
    fn set_peer(&mut self, node: NodeId, addr: SocketAddr);

    /// The peer is gone from the cluster: its connections are dropped, none is accepted.
    fn remove_peer(&mut self, node: NodeId);

    /// Keep a connection to this peer (or no longer insist on one). Without insisting, a connection lasts until the
    /// peer ends it.
    fn want(&mut self, node: NodeId, wanted: bool);

    /// Bytes to a peer that is connected; they leave with the next [`Transport::flush`]. Empties `bytes`.
    fn send(&mut self, node: NodeId, bytes: &mut Vec<u8>);

    /// Hands everything that was sent to the system, a peer's all at once.
    fn flush(&mut self, now: Instant);

    /// Gives the connections of a peer up with a reset, because of what it said; connects again later when wanted.
    fn abort(&mut self, node: NodeId, now: Instant);

    /// Something registered with the poller is ready; not every one of them is this transport's.
    fn ready(&mut self, ready: Ready, now: Instant);

    /// The time is `now`: do what was due.
    fn tick(&mut self, now: Instant);

    /// When [`Transport::tick`] has something to do.
    fn deadline(&self) -> Option<Instant>;

    /// The next event.
    fn next_event(&mut self) -> Option<TransportEvent>;

    /// System calls that wrote and read so far.
    fn calls(&self) -> (u64, u64) {
        (0, 0)
    }
}

impl<T: Transport + ?Sized> Transport for Box<T> {
    fn set_peer(&mut self, node: NodeId, addr: SocketAddr) {
        (**self).set_peer(node, addr);
    }
    fn remove_peer(&mut self, node: NodeId) {
        (**self).remove_peer(node);
    }
    fn want(&mut self, node: NodeId, wanted: bool) {
        (**self).want(node, wanted);
    }
    fn send(&mut self, node: NodeId, bytes: &mut Vec<u8>) {
        (**self).send(node, bytes);
    }
    fn flush(&mut self, now: Instant) {
        (**self).flush(now);
    }
    fn abort(&mut self, node: NodeId, now: Instant) {
        (**self).abort(node, now);
    }
    fn ready(&mut self, ready: Ready, now: Instant) {
        (**self).ready(ready, now);
    }
    fn tick(&mut self, now: Instant) {
        (**self).tick(now);
    }
    fn deadline(&self) -> Option<Instant> {
        (**self).deadline()
    }
    fn next_event(&mut self) -> Option<TransportEvent> {
        (**self).next_event()
    }
    fn calls(&self) -> (u64, u64) {
        (**self).calls()
    }
}
