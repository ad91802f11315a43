//! The links to all peers, on the connections of a transport: messages of lockspaces in and out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use super::{Gone, Ready, Traffic, Transport, TransportEvent};
use crate::NodeId;
use crate::midcomms::{Ignored, Link, LinkError, Received, State};
use crate::wire::{LockspaceId, Payload, Version};

/// What the network tells the lockspaces, and whoever keeps the log.
#[derive(Debug)]
#[non_exhaustive]
pub enum NetEvent {
    /// A message arrived.
    Delivered {
        /// From whom.
        from: NodeId,
        /// For which lockspace.
        lockspace: LockspaceId,
        /// What.
        payload: Payload,
    },
    /// A connection to a peer is there.
    Connected(NodeId),
    /// It is lost; what was sent is sent again on the next one.
    Disconnected(NodeId, Gone),
    /// It is lost, and with protocol 3.1 messages may be: this node has to leave the cluster.
    MessagesLost(NodeId),
    /// A packet was dropped, as the kernel drops it.
    Ignored(NodeId, Ignored),
    /// A packet could not be the peer's; its connections were dropped.
    Refused(LinkError),
    /// Somebody unknown connected, and was dropped.
    Stranger(SocketAddr),
}

/// The links of one node.
#[derive(Debug)]
pub struct Network<T> {
    us: NodeId,
    version: Version,
    life: Option<u32>,
    transport: T,
    links: BTreeMap<NodeId, Link>,
    connected: BTreeSet<NodeId>,
    /// Links with something received since the last flush.
    received: BTreeSet<NodeId>,
    scratch: Vec<u8>,
    /// Something was given to the transport since the last flush.
    queued: bool,
    sent: u64,
    received_count: u64,
}

impl<T: Transport> Network<T> {
    /// No peers yet. `version` is the highest we speak, `life` the life of our daemon (never 0).
    pub const fn new(us: NodeId, version: Version, life: Option<u32>, transport: T) -> Self {
        Self {
            us,
            version,
            life,
            transport,
            links: BTreeMap::new(),
            connected: BTreeSet::new(),
            received: BTreeSet::new(),
            scratch: Vec::new(),
            queued: false,
            sent: 0,
            received_count: 0,
        }
    }

    /// What was sent and received so far; turns and readers are not this layer's.
    pub fn traffic(&self) -> Traffic {
        let (writes, reads) = self.transport.calls();
        Traffic {
            sent: self.sent,
            received: self.received_count,
            writes,
            reads,
            ..Traffic::default()
        }
    }

    /// The transport below.
    pub const fn transport(&mut self) -> &mut T {
        &mut self.transport
    }

    /// The link to a peer, to be looked at.
    #[must_use]
    pub fn link(&self, node: NodeId) -> Option<&Link> {
        self.links.get(&node)
    }

    /// Is there a connection to the peer?
    #[must_use]
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.connected.contains(&node)
    }

    /// A node of the cluster; it may connect from now on.
    pub fn set_peer(&mut self, node: NodeId, addr: SocketAddr) {
        if node != self.us {
            self.links
                .entry(node)
                .or_insert_with(|| Link::new(self.us, node, self.version).of_life(self.life));
            self.transport.set_peer(node, addr);
        }
    }

    /// The membership says which life of the node's daemon is a member: what another one said is forgotten, and its
    /// connections are dropped.
    pub fn expect_life(&mut self, node: NodeId, life: u32, now: Instant) {
        if self
            .links
            .get_mut(&node)
            .is_some_and(|link| link.expect_life(life))
        {
            self.transport.abort(node, now);
        }
    }

    /// The node left the cluster: nothing of its link is remembered.
    pub fn remove_peer(&mut self, node: NodeId) {
        self.transport.remove_peer(node);
        self.links.remove(&node);
        self.connected.remove(&node);
        self.received.remove(&node);
    }

    /// The peer shares a lockspace more with us: there should be a connection.
    pub fn add_member(&mut self, node: NodeId) {
        if let Some(link) = self.links.get_mut(&node) {
            link.add_member();
            self.transport.want(node, true);
        }
    }

    /// The peer shares a lockspace less with us.
    pub fn remove_member(&mut self, node: NodeId) {
        self.with_link(node, Link::remove_member);
        self.still_wanted(node);
    }

    /// We leave our last lockspace: every link is ended. [`Network::is_closed`] says when it is done; that may be never,
    /// see [`crate::midcomms::FIN_WAIT`].
    pub fn shutdown(&mut self, now: Instant) {
        let peers: Vec<NodeId> = self.links.keys().copied().collect();
        for node in peers {
            self.with_link(node, Link::shutdown);
        }
        self.flush(now);
    }

    /// Has every link ended?
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.links.values().all(|l| l.state() == State::Closed)
    }

    /// A message to a peer; it leaves with the next [`Network::flush`].
    ///
    /// # Errors
    /// See [`Link::send`]. An unknown peer is one whose link is closing: it left the cluster.
    pub fn send(&mut self, node: NodeId, lockspace: LockspaceId, payload: Payload) -> Result<(), LinkError> {
        let link = self
            .links
            .get_mut(&node)
            .ok_or(LinkError::Closing { peer: node })?;
        let sent = link.send(lockspace, payload, &mut self.scratch);
        self.sent = self.sent.wrapping_add(1);
        self.queued = self.queued || !self.scratch.is_empty();
        self.transport.send(node, &mut self.scratch);
        sent
    }

    /// Has [`Network::flush`] anything to do?
    pub fn wants_flush(&self) -> bool {
        self.queued || !self.received.is_empty()
    }

    /// Sends what is to be sent, acknowledgements with it.
    pub fn flush(&mut self, now: Instant) {
        self.queued = false;
        for node in std::mem::take(&mut self.received) {
            if let Some(link) = self.links.get_mut(&node) {
                // What the engine answered is in the transport already: the acknowledgement goes along with it.
                link.batch_end(&mut self.scratch);
                self.transport.send(node, &mut self.scratch);
            }
        }
        self.transport.flush(now);
    }

    /// Something registered with the poller is ready.
    pub fn ready(&mut self, ready: Ready, now: Instant) {
        self.transport.ready(ready, now);
    }

    /// The time is `now`.
    pub fn tick(&mut self, now: Instant) {
        self.transport.tick(now);
    }

    /// When [`Network::tick`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.transport.deadline()
    }

    /// The next event. After the last one: [`Network::flush`].
    pub fn next_event(&mut self, now: Instant) -> Option<NetEvent> {
        while let Some(event) = self.transport.next_event() {
            match event {
                TransportEvent::Connected(node) => {
                    self.connected.insert(node);
                    self.with_link(node, Link::connected);
                    return Some(NetEvent::Connected(node));
                }
                TransportEvent::Disconnected(node, gone) => {
                    self.connected.remove(&node);
                    let lost = self.links.get_mut(&node).is_some_and(Link::disconnected);
                    return Some(if lost {
                        NetEvent::MessagesLost(node)
                    } else {
                        NetEvent::Disconnected(node, gone)
                    });
                }
                TransportEvent::Received(node, packet) => {
                    let Some(link) = self.links.get_mut(&node) else {
                        continue;
                    };
                    self.received.insert(node);
                    let received = link.receive(packet, &mut self.scratch);
                    self.queued = self.queued || !self.scratch.is_empty();
                    self.transport.send(node, &mut self.scratch);
                    self.still_wanted(node);
                    match received {
                        Ok(Received::Payload(lockspace, payload)) => {
                            self.received_count = self.received_count.wrapping_add(1);
                            return Some(NetEvent::Delivered {
                                from: node,
                                lockspace,
                                payload,
                            });
                        }
                        Ok(Received::Nothing) => {}
                        Ok(Received::Ignored(why)) => return Some(NetEvent::Ignored(node, why)),
                        Err(error) => {
                            self.transport.abort(node, now);
                            return Some(NetEvent::Refused(error));
                        }
                    }
                }
                TransportEvent::Stranger(addr) => return Some(NetEvent::Stranger(addr)),
            }
        }
        None
    }

    fn with_link(&mut self, node: NodeId, act: impl FnOnce(&mut Link, &mut Vec<u8>)) {
        if let Some(link) = self.links.get_mut(&node) {
            act(link, &mut self.scratch);
            self.queued = self.queued || !self.scratch.is_empty();
            self.transport.send(node, &mut self.scratch);
        }
    }

    /// A link that ended needs no connection any more.
    fn still_wanted(&mut self, node: NodeId) {
        if let Some(link) = self.links.get(&node)
            && !link.wants_connection()
        {
            self.transport.want(node, false);
        }
    }
}
