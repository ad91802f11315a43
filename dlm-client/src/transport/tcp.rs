//! TCP between nodes as the kernel does it.
//!
//! Every node listens on its address in the cluster and connects to every peer it wants. A peer is who its address says,
//! whatever its port. The connection we made, or, when we had none, the one the peer made, is the one we send on; a
//! further one of the peer's is only read from, and a newer one takes its place. So two nodes that connect at the same
//! time end with two connections, each sending on its own. When the one we send on is lost and the other lives, that one
//! takes over.
//!
//! Invariants: every socket is registered with the poller under the token that finds it; a peer is `up` from its
//! Connected to its Disconnected event, and what it is sent goes to one socket between them.

mod socket;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use super::{Gone, Poller, QUEUED_MAX, Readiness, Ready, Token, Transport, TransportError, TransportEvent};
use crate::NodeId;
use crate::wire::Packet;
use socket::{Conn, Progress};

/// The first pause before a connection is tried again; doubled up to [`RETRY_MAX`], the kernel's.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Connections accepted before others get their turn.
const ACCEPT_BATCH: usize = 16;
/// How long to leave the listener alone when the system cannot accept.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Bytes read from a socket at once.
const READ_SIZE: usize = 64 << 10;

#[derive(Debug)]
struct Peer {
    addr: SocketAddr,
    wanted: bool,
    /// The one we send on: up, or being connected.
    primary: Option<Conn>,
    /// One of the peer's that is only read.
    other: Option<Conn>,
    retry_at: Option<Instant>,
    pause: Duration,
}

impl Peer {
    fn is_up(&self) -> bool {
        self.primary.as_ref().is_some_and(Conn::is_up)
    }
}

/// Connections over TCP.
#[derive(Debug)]
pub struct TcpTransport {
    local: SocketAddr,
    poller: Poller,
    listener: TcpListener,
    listener_token: Token,
    listener_rests_until: Option<Instant>,
    peers: BTreeMap<NodeId, Peer>,
    tokens: BTreeMap<Token, NodeId>,
    /// Peers with something to write.
    dirty: BTreeSet<NodeId>,
    events: VecDeque<TransportEvent>,
    /// Where all sockets are read to.
    buffer: Vec<u8>,
    packets: Vec<Packet>,
    /// System calls.
    writes: u64,
    reads: u64,
}

impl TcpTransport {
    /// Listens on our address in the cluster (a port of 0 is for tests: the system picks one).
    ///
    /// # Errors
    /// The address cannot be had; the message says what to do.
    pub fn listen(local: SocketAddr, poller: Poller) -> Result<Self, TransportError> {
        let failed = |source| TransportError::Listen { addr: local, source };
        let listener = socket::listen(local).map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        let listener_token = poller.add(&listener, READ).map_err(TransportError::Poll)?;
        Ok(Self {
            local,
            poller,
            listener,
            listener_token,
            listener_rests_until: None,
            peers: BTreeMap::new(),
            tokens: BTreeMap::new(),
            dirty: BTreeSet::new(),
            events: VecDeque::new(),
            buffer: vec![0; READ_SIZE],
            packets: Vec::new(),
            writes: 0,
            reads: 0,
        })
    }

    /// Where peers reach us.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn connect(&mut self, node: NodeId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        peer.retry_at = None;
        if peer.primary.is_some() || !peer.wanted {
            return;
        }
        match Conn::connect(self.local, peer.addr, &self.poller) {
            Ok(conn) => {
                self.tokens.insert(conn.token(), node);
                peer.primary = Some(conn);
            }
            Err(_) => self.retry_later(node, now),
        }
    }

    /// Peers come and go; that one is not there yet is no event, only a pause before the next try.
    fn retry_later(&mut self, node: NodeId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&node)
            && peer.wanted
        {
            peer.retry_at = now.checked_add(peer.pause);
            peer.pause = peer.pause.saturating_mul(2).min(RETRY_MAX);
        }
    }

    fn drop_conn(&mut self, conn: Conn, reset: bool) {
        self.tokens.remove(&conn.token());
        conn.close(&self.poller, reset);
    }

    /// The socket we send on is gone: the peer's own takes over, or we connect again.
    fn lose_primary(&mut self, node: NodeId, gone: Gone, reset: bool, now: Instant) {
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        let Some(conn) = peer.primary.take() else {
            return;
        };
        self.dirty.remove(&node);
        let was_up = conn.is_up();
        let next = peer.other.take();
        let takes_over = next.is_some();
        peer.primary = next;
        self.drop_conn(conn, reset);
        if was_up {
            self.events.push_back(TransportEvent::Disconnected(node, gone));
        }
        if takes_over {
            self.events.push_back(TransportEvent::Connected(node));
        } else {
            self.retry_later(node, now);
        }
    }

    fn lose_other(&mut self, node: NodeId, reset: bool) {
        if let Some(conn) = self.peers.get_mut(&node).and_then(|p| p.other.take()) {
            self.drop_conn(conn, reset);
        }
    }

    fn came_up(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.pause = RETRY_MIN;
        }
        self.events.push_back(TransportEvent::Connected(node));
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPT_BATCH {
            match self.listener.accept() {
                Ok((stream, from)) => self.accepted(stream, from),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                // Out of descriptors, most likely: asking again at once would only burn time.
                Err(_) => {
                    if self.poller.remove(&self.listener).is_ok() {
                        self.listener_rests_until = now.checked_add(ACCEPT_PAUSE);
                    }
                    return;
                }
            }
        }
    }

    fn accepted(&mut self, stream: std::net::TcpStream, from: SocketAddr) {
        let known = self
            .peers
            .iter()
            .find(|(_, peer)| peer.addr.ip() == from.ip().to_canonical())
            .map(|(node, _)| *node);
        let Some(node) = known else {
            socket::reset(stream);
            self.events.push_back(TransportEvent::Stranger(from));
            return;
        };
        let Ok(conn) = Conn::accepted(stream, &self.poller) else {
            return;
        };
        self.tokens.insert(conn.token(), node);
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        if peer.primary.is_none() {
            peer.primary = Some(conn);
            peer.retry_at = None;
            return self.came_up(node);
        }
        if let Some(older) = peer.other.replace(conn) {
            self.drop_conn(older, false);
        }
    }

    fn read(&mut self, node: NodeId, token: Token, now: Instant) {
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        let is_primary = peer.primary.as_ref().is_some_and(|c| c.token() == token);
        let conn = if is_primary {
            &mut peer.primary
        } else {
            &mut peer.other
        };
        let Some(conn) = conn.as_mut().filter(|c| c.token() == token) else {
            return;
        };
        let ended = conn.read(&mut self.buffer, &mut self.packets, &mut self.reads);
        let received = self.packets.drain(..).map(|p| TransportEvent::Received(node, p));
        self.events.extend(received);
        let Some(gone) = ended else { return };
        let reset = !matches!(gone, Gone::Closed);
        if is_primary {
            self.lose_primary(node, gone, reset, now);
        } else {
            self.lose_other(node, reset);
        }
    }

    fn write(&mut self, node: NodeId, now: Instant) {
        let Some(conn) = self.peers.get_mut(&node).and_then(|p| p.primary.as_mut()) else {
            return;
        };
        match conn.write(&self.poller, &mut self.writes) {
            Ok(Progress::Connecting | Progress::Written) => {}
            Ok(Progress::CameUp) => self.came_up(node),
            Err(gone) => self.lose_primary(node, gone, true, now),
        }
    }
}

const READ: Readiness = Readiness {
    read: true,
    write: false,
};

impl Transport for TcpTransport {
    fn set_peer(&mut self, node: NodeId, addr: SocketAddr) {
        let moved = self.peers.get(&node).is_some_and(|p| p.addr != addr);
        if moved {
            self.remove_peer(node);
        }
        self.peers.entry(node).or_insert(Peer {
            addr,
            wanted: false,
            primary: None,
            other: None,
            retry_at: None,
            pause: RETRY_MIN,
        });
    }

    fn remove_peer(&mut self, node: NodeId) {
        self.dirty.remove(&node);
        if let Some(peer) = self.peers.remove(&node) {
            for conn in [peer.primary, peer.other].into_iter().flatten() {
                self.drop_conn(conn, false);
            }
        }
    }

    fn want(&mut self, node: NodeId, wanted: bool) {
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        peer.wanted = wanted;
        if !wanted {
            peer.retry_at = None;
        } else if peer.primary.is_none() && peer.retry_at.is_none() {
            // Due at once: the next tick connects.
            peer.retry_at = Some(Instant::now());
        }
    }

    fn send(&mut self, node: NodeId, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        match self.peers.get_mut(&node) {
            Some(peer) if peer.is_up() => {
                if let Some(conn) = &mut peer.primary {
                    conn.queue(bytes);
                    self.dirty.insert(node);
                }
            }
            _ => bytes.clear(),
        }
    }

    fn flush(&mut self, now: Instant) {
        for node in std::mem::take(&mut self.dirty) {
            self.write(node, now);
            let queued = self
                .peers
                .get(&node)
                .and_then(|p| p.primary.as_ref())
                .map_or(0, Conn::queued);
            if queued > QUEUED_MAX {
                self.lose_primary(node, Gone::Stuck { queued }, true, now);
            }
        }
    }

    fn abort(&mut self, node: NodeId, now: Instant) {
        self.lose_other(node, true);
        self.lose_primary(node, Gone::Dropped, true, now);
    }

    fn ready(&mut self, ready: Ready, now: Instant) {
        if ready.token == self.listener_token {
            return self.accept(now);
        }
        let Some(node) = self.tokens.get(&ready.token).copied() else {
            return;
        };
        let is_primary = self
            .peers
            .get(&node)
            .and_then(|p| p.primary.as_ref())
            .is_some_and(|c| c.token() == ready.token);
        if ready.readiness.write && is_primary {
            self.write(node, now);
        }
        if ready.readiness.read {
            self.read(node, ready.token, now);
        }
    }

    fn tick(&mut self, now: Instant) {
        if self.listener_rests_until.is_some_and(|t| t <= now) {
            match self.poller.add(&self.listener, READ) {
                Ok(token) => {
                    self.listener_token = token;
                    self.listener_rests_until = None;
                }
                Err(_) => self.listener_rests_until = now.checked_add(ACCEPT_PAUSE),
            }
        }
        let due: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(_, p)| p.retry_at.is_some_and(|t| t <= now))
            .map(|(node, _)| *node)
            .collect();
        for node in due {
            self.connect(node, now);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let retries = self.peers.values().filter_map(|p| p.retry_at);
        retries.chain(self.listener_rests_until).min()
    }

    fn next_event(&mut self) -> Option<TransportEvent> {
        self.events.pop_front()
    }

    fn calls(&self) -> (u64, u64) {
        (self.writes, self.reads)
    }
}
