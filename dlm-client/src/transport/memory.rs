//! Connections inside one process: for clusters in one process, and for tests.
//!
//! A connection of two nodes is there when both have the other as a peer, unless it was cut. What is cut takes with it
//! what was not received yet, as a reset does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::{Gone, Poller, Ready, Transport, TransportEvent};
use crate::NodeId;
use crate::midcomms::Framer;

#[derive(Debug)]
struct Node {
    poller: Poller,
    peers: BTreeSet<NodeId>,
    inbox: VecDeque<Parcel>,
}

#[derive(Debug)]
enum Parcel {
    Up(NodeId),
    Down(NodeId),
    Bytes(NodeId, Vec<u8>),
}

#[derive(Debug, Default)]
struct Switch {
    nodes: BTreeMap<NodeId, Node>,
    /// Pairs, lower first.
    up: BTreeSet<(NodeId, NodeId)>,
    cut: BTreeSet<(NodeId, NodeId)>,
}

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

impl Switch {
    fn knows(&self, node: NodeId, peer: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|n| n.peers.contains(&peer))
    }

    fn connect(&mut self, a: NodeId, b: NodeId) {
        let pair = pair(a, b);
        if self.knows(a, b) && self.knows(b, a) && !self.cut.contains(&pair) && self.up.insert(pair) {
            self.deliver(a, Parcel::Up(b));
            self.deliver(b, Parcel::Up(a));
        }
    }

    fn disconnect(&mut self, a: NodeId, b: NodeId) {
        if !self.up.remove(&pair(a, b)) {
            return;
        }
        for (to, from) in [(a, b), (b, a)] {
            if let Some(node) = self.nodes.get_mut(&to) {
                node.inbox
                    .retain(|p| !matches!(p, Parcel::Bytes(f, _) if *f == from));
            }
            self.deliver(to, Parcel::Down(from));
        }
    }

    fn deliver(&mut self, to: NodeId, parcel: Parcel) {
        if let Some(node) = self.nodes.get_mut(&to) {
            node.inbox.push_back(parcel);
            node.poller.wake();
        }
    }
}

/// What nodes of one process are connected by; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct MemoryHub(Arc<Mutex<Switch>>);

impl MemoryHub {
    /// No nodes yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A node's transport; `poller` is woken when something came.
    #[must_use]
    pub fn attach(&self, node: NodeId, poller: Poller) -> MemoryTransport {
        let mut switch = self.0.lock();
        let old = switch.nodes.insert(
            node,
            Node {
                poller,
                peers: BTreeSet::new(),
                inbox: VecDeque::new(),
            },
        );
        for peer in old.into_iter().flat_map(|n| n.peers) {
            switch.disconnect(node, peer);
        }
        MemoryTransport {
            hub: self.clone(),
            node,
            framers: BTreeMap::new(),
            out: BTreeMap::new(),
            events: VecDeque::new(),
        }
    }

    /// Resets the connection of two nodes; it comes back at once.
    pub fn reset(&self, a: NodeId, b: NodeId) {
        let mut switch = self.0.lock();
        switch.disconnect(a, b);
        switch.connect(a, b);
    }

    /// Cuts two nodes off each other, or lets them connect again.
    pub fn cut(&self, a: NodeId, b: NodeId, cut: bool) {
        let mut switch = self.0.lock();
        if cut {
            switch.cut.insert(pair(a, b));
            switch.disconnect(a, b);
        } else {
            switch.cut.remove(&pair(a, b));
            switch.connect(a, b);
        }
    }
}

/// One node's connections.
#[derive(Debug)]
pub struct MemoryTransport {
    hub: MemoryHub,
    node: NodeId,
    /// A framer per connection that is up, as far as we have been told.
    framers: BTreeMap<NodeId, Framer>,
    out: BTreeMap<NodeId, Vec<u8>>,
    events: VecDeque<TransportEvent>,
}

impl MemoryTransport {
    fn receive(&mut self, from: NodeId, bytes: &[u8]) {
        let Some(framer) = self.framers.get_mut(&from) else {
            return;
        };
        framer.push(bytes);
        loop {
            match framer.next_packet() {
                Ok(Some(packet)) => self.events.push_back(TransportEvent::Received(from, packet)),
                Ok(None) => return,
                Err(error) => {
                    self.framers.remove(&from);
                    self.events
                        .push_back(TransportEvent::Disconnected(from, Gone::Broken(error)));
                    return self.hub.reset(self.node, from);
                }
            }
        }
    }

    fn take_parcels(&mut self) {
        let parcels = {
            let mut switch = self.hub.0.lock();
            let Some(node) = switch.nodes.get_mut(&self.node) else {
                return;
            };
            std::mem::take(&mut node.inbox)
        };
        for parcel in parcels {
            match parcel {
                Parcel::Up(peer) => {
                    self.framers.insert(peer, Framer::new());
                    self.events.push_back(TransportEvent::Connected(peer));
                }
                Parcel::Down(peer) => {
                    self.out.remove(&peer);
                    if self.framers.remove(&peer).is_some() {
                        self.events
                            .push_back(TransportEvent::Disconnected(peer, Gone::Closed));
                    }
                }
                Parcel::Bytes(peer, bytes) => self.receive(peer, &bytes),
            }
        }
    }
}

impl Transport for MemoryTransport {
    fn set_peer(&mut self, node: NodeId, _addr: SocketAddr) {
        let mut switch = self.hub.0.lock();
        if let Some(us) = switch.nodes.get_mut(&self.node) {
            us.peers.insert(node);
        }
        switch.connect(self.node, node);
    }

    fn remove_peer(&mut self, node: NodeId) {
        let mut switch = self.hub.0.lock();
        if let Some(us) = switch.nodes.get_mut(&self.node) {
            us.peers.remove(&node);
        }
        switch.disconnect(self.node, node);
    }

    fn want(&mut self, _node: NodeId, _wanted: bool) {}

    fn send(&mut self, node: NodeId, bytes: &mut Vec<u8>) {
        if self.framers.contains_key(&node) {
            self.out.entry(node).or_default().append(bytes);
        }
        bytes.clear();
    }

    fn flush(&mut self, _now: Instant) {
        let mut switch = self.hub.0.lock();
        for (to, bytes) in std::mem::take(&mut self.out) {
            // A connection that was lost meanwhile, perhaps with another since, takes nothing of the old one.
            let told = switch
                .nodes
                .get(&self.node)
                .is_some_and(|us| us.inbox.iter().any(|p| matches!(p, Parcel::Down(n) if *n == to)));
            if !told && switch.up.contains(&pair(self.node, to)) {
                switch.deliver(to, Parcel::Bytes(self.node, bytes));
            }
        }
    }

    fn abort(&mut self, node: NodeId, _now: Instant) {
        self.hub.reset(self.node, node);
    }

    fn ready(&mut self, _ready: Ready, _now: Instant) {}

    fn tick(&mut self, _now: Instant) {
        self.take_parcels();
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn next_event(&mut self) -> Option<TransportEvent> {
        if self.events.is_empty() {
            self.take_parcels();
        }
        self.events.pop_front()
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        let mut switch = self.hub.0.lock();
        let peers: Vec<NodeId> = switch
            .nodes
            .get(&self.node)
            .into_iter()
            .flat_map(|n| n.peers.iter().copied())
            .collect();
        for peer in peers {
            switch.disconnect(self.node, peer);
        }
        switch.nodes.remove(&self.node);
    }
}
