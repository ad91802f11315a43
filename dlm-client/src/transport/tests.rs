//! Networks of nodes in one process, over loopback TCP and in memory, with connections that break.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::*;
use crate::wire::testing::random_packet;
use crate::wire::{Body, LockspaceId, Message, MsgType, Packet, Payload, Rcom, RcomBody, Version};

const SPACE: LockspaceId = LockspaceId(7);
/// A message that is sent for the disturbance it may be.
const UNCOUNTED: u32 = u32::MAX;

/// An address of our own on the loopback network: tests of one process run at once.
fn address(rng: &mut Rng) -> SocketAddr {
    let ip = Ipv4Addr::new(127, rng.u8(1..), rng.u8(..), rng.u8(1..255));
    SocketAddr::new(IpAddr::V4(ip), 0)
}

fn status() -> Payload {
    Payload::Rcom(Rcom {
        id: 1,
        seq: 1,
        seq_reply: 0,
        body: RcomBody::Status { need_slots: false },
    })
}

fn numbered(n: u32) -> Payload {
    let mut message = Message::new(MsgType::Grant);
    message.lkid = n;
    Payload::Message(message)
}

struct Node {
    id: NodeId,
    addr: SocketAddr,
    poller: Poller,
    net: Network<Box<dyn Transport>>,
    got: Vec<(NodeId, u32)>,
    seen: Vec<String>,
}

impl Node {
    fn tcp(id: u32, rng: &mut Rng) -> Self {
        let poller = Poller::new().unwrap();
        let transport = TcpTransport::listen(address(rng), poller.clone()).unwrap();
        let addr = transport.local_addr();
        Self::new(id, addr, poller, Box::new(transport))
    }

    fn memory(id: u32, hub: &MemoryHub) -> Self {
        let poller = Poller::new().unwrap();
        let transport = hub.attach(NodeId(id), poller.clone());
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::new(id, addr, poller, Box::new(transport))
    }

    fn new(id: u32, addr: SocketAddr, poller: Poller, transport: Box<dyn Transport>) -> Self {
        Self {
            id: NodeId(id),
            addr,
            poller,
            net: Network::new(NodeId(id), Version::V3_2, Some(id), transport),
            got: Vec::new(),
            seen: Vec::new(),
        }
    }

    fn meet(&mut self, other: &Self) {
        self.net.set_peer(other.id, other.addr);
        self.net.add_member(other.id);
    }

    /// One round of a daemon's loop.
    fn turn(&mut self, wait: Duration) {
        let mut ready = Vec::new();
        self.poller.wait(Some(wait), &mut ready).unwrap();
        let now = Instant::now();
        for one in ready {
            self.net.ready(one, now);
        }
        self.net.tick(now);
        while let Some(event) = self.net.next_event(now) {
            match event {
                NetEvent::Delivered {
                    from,
                    lockspace,
                    payload,
                } => {
                    if lockspace == SPACE
                        && let Payload::Message(message) = payload
                        && message.lkid != UNCOUNTED
                    {
                        self.got.push((from, message.lkid));
                    }
                }
                NetEvent::Connected(peer) => {
                    self.seen.push(format!("connected {}", peer.0));
                    self.net.send(peer, SPACE, status()).unwrap();
                }
                other => self.seen.push(format!("{other:?}")),
            }
        }
        self.net.flush(now);
    }

    fn send(&mut self, to: NodeId, n: u32) {
        self.net.send(to, SPACE, numbered(n)).unwrap();
    }
}

/// Turns all nodes until `done`; a minute is far more than any of it takes.
#[track_caller]
fn until(nodes: &mut [Node], mut done: impl FnMut(&[Node]) -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done(nodes) {
        assert!(
            Instant::now() < end,
            "{:#?}",
            nodes.iter().map(|n| (n.got.len(), &n.seen)).collect::<Vec<_>>()
        );
        for node in &mut *nodes {
            node.turn(Duration::from_millis(1));
        }
    }
}

fn meet_all(nodes: &mut [Node]) {
    for i in 0..nodes.len() {
        let (before, rest) = nodes.split_at_mut(i);
        let (node, after) = rest.split_first_mut().unwrap();
        for other in before.iter().chain(after.iter()) {
            node.meet(other);
        }
    }
}

fn three_tcp(seed: u64) -> Vec<Node> {
    let mut rng = Rng::with_seed(seed);
    let mut nodes: Vec<_> = (1..=3).map(|id| Node::tcp(id, &mut rng)).collect();
    meet_all(&mut nodes);
    nodes
}

/// Sends in all directions while `disturb` breaks things, then checks that every node got all, in order.
fn all_arrives(nodes: &mut [Node], rng: &mut Rng, mut disturb: impl FnMut(&mut [Node], &mut Rng)) {
    const EACH: u32 = 2000;
    let ids: Vec<NodeId> = nodes.iter().map(|n| n.id).collect();
    let mut next = 0;
    while next < EACH {
        let batch = rng.u32(1..40).min(EACH - next);
        for node in &mut *nodes {
            let us = node.id;
            for to in ids.iter().filter(|id| **id != us) {
                for n in next..next + batch {
                    node.send(*to, n);
                }
            }
            node.turn(Duration::ZERO);
        }
        next += batch;
        disturb(nodes, rng);
    }
    let wanted = usize::try_from(EACH).unwrap() * (ids.len() - 1);
    until(nodes, |nodes| nodes.iter().all(|n| n.got.len() >= wanted));
    for node in nodes {
        for from in ids.iter().filter(|id| **id != node.id) {
            let got: Vec<u32> = node
                .got
                .iter()
                .filter(|(f, _)| f == from)
                .map(|(_, n)| *n)
                .collect();
            assert!(got.iter().copied().eq(0..EACH), "{from:?} to {:?}", node.id);
        }
    }
}

/// Goal: nothing is lost, repeated or reordered over TCP connections that are reset at any time, by either side.
#[test]
fn tcp_delivers_once_and_in_order_over_resets() {
    let mut rng = Rng::with_seed(11);
    let mut nodes = three_tcp(12);
    let mut resets = 0;
    all_arrives(&mut nodes, &mut rng, |nodes, rng| {
        if rng.u8(..4) == 0 {
            let (a, b) = (rng.usize(..3), NodeId(rng.u32(1..=3)));
            if nodes[a].id != b {
                nodes[a].net.transport().abort(b, Instant::now());
                resets += 1;
            }
        }
        for node in nodes {
            node.turn(Duration::from_millis(u64::from(rng.u8(..3))));
        }
    });
    assert!(resets > 10, "{resets}");
    let disconnects = nodes
        .iter()
        .flat_map(|n| &n.seen)
        .filter(|s| s.starts_with("Disconnected"))
        .count();
    assert!(disconnects >= resets, "{disconnects} of {resets}");
}

/// Goal: the same in memory.
#[test]
fn memory_delivers_once_and_in_order_over_resets() {
    let mut rng = Rng::with_seed(13);
    let hub = MemoryHub::new();
    let mut nodes: Vec<_> = (1..=3).map(|id| Node::memory(id, &hub)).collect();
    meet_all(&mut nodes);
    all_arrives(&mut nodes, &mut rng, |nodes, rng| {
        let (a, b) = (NodeId(rng.u32(1..=3)), NodeId(rng.u32(1..=3)));
        match rng.u8(..4) {
            0 if a != b => hub.reset(a, b),
            1 if a != b => {
                hub.cut(a, b, true);
                for node in &mut *nodes {
                    node.turn(Duration::ZERO);
                    node.send(if node.id == a { b } else { a }, UNCOUNTED);
                }
                hub.cut(a, b, false);
            }
            _ => {}
        }
    });
}

/// Goal: without disturbance nobody's connection breaks, though all connect to all at once.
#[test]
fn simultaneous_connects_do_not_break_each_other() {
    let mut rng = Rng::with_seed(14);
    let mut nodes = three_tcp(15);
    all_arrives(&mut nodes, &mut rng, |_, _| {});
    for node in &nodes {
        assert!(
            node.seen.iter().all(|s| s.starts_with("connected")),
            "{:?}",
            node.seen
        );
    }
}

/// Goal: a peer that is not there yet is tried again; what was sent meanwhile arrives.
#[test]
fn a_peer_that_comes_late_gets_what_was_sent() {
    let mut rng = Rng::with_seed(16);
    let mut early = Node::tcp(1, &mut rng);
    let late_addr = {
        let probe = TcpListener::bind(address(&mut rng)).unwrap();
        probe.local_addr().unwrap()
    };
    early.net.set_peer(NodeId(2), late_addr);
    early.net.add_member(NodeId(2));
    early.send(NodeId(2), 5);
    for _ in 0..20 {
        early.turn(Duration::from_millis(2));
    }
    assert!(early.seen.is_empty(), "{:?}", early.seen);
    let poller = Poller::new().unwrap();
    let transport = TcpTransport::listen(late_addr, poller.clone()).unwrap();
    let mut late = Node::new(2, late_addr, poller, Box::new(transport));
    late.net.set_peer(early.id, early.addr);
    let mut nodes = [early, late];
    until(&mut nodes, |n| n[1].got == [(NodeId(1), 5)]);
}

fn talks_to(node: &Node, from: IpAddr) -> TcpStream {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    rustix::net::bind(&socket, &SocketAddr::new(from, 0)).unwrap();
    rustix::net::connect(&socket, &node.addr).unwrap();
    TcpStream::from(socket)
}

/// Is the connection at its end, whatever was said before it?
fn ends(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => true,
        Err(e) => e.kind() == io::ErrorKind::ConnectionReset,
    }
}

/// Goal: whoever is not of the cluster is dropped at once.
#[test]
fn strangers_are_dropped() {
    let mut rng = Rng::with_seed(17);
    let mut nodes = [Node::tcp(1, &mut rng)];
    let mut stranger = talks_to(&nodes[0], Ipv4Addr::new(127, 99, 99, 99).into());
    until(&mut nodes, |n| {
        n[0].seen.iter().any(|s| s.starts_with("Stranger(127.99.99.99:"))
    });
    assert!(ends(&mut stranger));
}

/// Goal: a peer's broken bytes, and a packet that says it is from another, cost the connection and nothing else.
#[test]
fn broken_bytes_cost_the_connection() {
    let mut rng = Rng::with_seed(18);
    let mut nodes = [Node::tcp(1, &mut rng)];
    let peer = IpAddr::from([127, 98, 97, 96]);
    nodes[0].net.set_peer(NodeId(2), SocketAddr::new(peer, 1));
    nodes[0]
        .net
        .set_peer(NodeId(3), SocketAddr::from(([127, 9, 9, 9], 1)));
    let lying = Packet {
        version: Version::V3_2,
        node: NodeId(3),
        life: None,
        body: Body::Payload {
            lockspace: SPACE,
            payload: status(),
        },
    };
    for (bytes, shown) in [
        (vec![0u8; 32], "Broken(WireError { field: \"h_length\""),
        (lying.to_bytes(), "Refused(WrongNode"),
    ] {
        nodes[0].seen.clear();
        let mut bad = talks_to(&nodes[0], peer);
        bad.write_all(&bytes).unwrap();
        until(&mut nodes, |n| n[0].seen.iter().any(|s| s.contains(shown)));
        assert!(ends(&mut bad));
    }
    let mut good = talks_to(&nodes[0], peer);
    let mut bytes = Vec::new();
    for (seq, n) in (0..).zip([8, 9]) {
        Packet {
            version: Version::V3_2,
            node: NodeId(2),
            life: None,
            body: Body::Opts {
                seq,
                options: Vec::new(),
                version: Version::V3_2,
                inner: crate::wire::Inner::Payload {
                    lockspace: SPACE,
                    payload: numbered(n),
                },
            },
        }
        .encode(&mut bytes);
    }
    good.write_all(&bytes).unwrap();
    until(&mut nodes, |n| n[0].got == [(NodeId(2), 8), (NodeId(2), 9)]);
}

/// Goal: random garbage and flipped packets from a peer never stop a node. Method: connections that each send such
/// bytes; afterwards the node still talks.
#[test]
fn garbage_never_stops_a_node() {
    let mut rng = Rng::with_seed(19);
    let mut nodes = [Node::tcp(1, &mut rng)];
    let peer = IpAddr::from([127, 98, 97, 95]);
    nodes[0].net.set_peer(NodeId(2), SocketAddr::new(peer, 1));
    for _ in 0..60 {
        let mut bytes = Vec::new();
        for _ in 0..rng.usize(1..20) {
            let mut packet = random_packet(&mut rng);
            if rng.bool() {
                packet.node = NodeId(2);
            }
            packet.encode(&mut bytes);
        }
        for _ in 0..rng.usize(..4) {
            let at = rng.usize(..bytes.len());
            bytes[at] ^= 1 << rng.u8(..8);
        }
        let mut bad = talks_to(&nodes[0], peer);
        // The node may have dropped us already.
        let _ = bad.write_all(&bytes);
        nodes[0].turn(Duration::from_millis(2));
    }
    let mut good = Node::tcp(3, &mut rng);
    good.meet(&nodes[0]);
    nodes[0].meet(&good);
    good.send(NodeId(1), 77);
    let [first] = nodes;
    let mut nodes = [first, good];
    until(&mut nodes, |n| n[0].got.contains(&(NodeId(3), 77)));
}

/// Goal: a port that is taken is said in one line, with what to do.
#[test]
fn a_taken_port_is_named() {
    let mut rng = Rng::with_seed(20);
    let taken = TcpListener::bind(address(&mut rng)).unwrap();
    let addr = taken.local_addr().unwrap();
    let error = TcpTransport::listen(addr, Poller::new().unwrap()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("cannot listen on {addr}: ")) && text.contains("stop it first"),
        "{text}"
    );
    assert!(!text.contains('\n'));
}

/// Goal: the end of a link over TCP, and that a node gone from the cluster is forgotten.
#[test]
fn links_end_over_tcp_and_gone_nodes_are_forgotten() {
    let mut nodes = three_tcp(21);
    until(&mut nodes, |n| {
        n.iter()
            .all(|n| (1..=3).all(|p| n.id.0 == p || n.net.link(NodeId(p)).unwrap().version().is_some()))
    });
    for peer in [2, 3] {
        nodes[0].net.remove_member(NodeId(peer));
        nodes[usize::try_from(peer).unwrap() - 1]
            .net
            .remove_member(NodeId(1));
    }
    nodes[0].net.shutdown(Instant::now());
    until(&mut nodes, |n| n[0].net.is_closed());
    nodes[1].net.remove_peer(NodeId(3));
    assert!(nodes[1].net.link(NodeId(3)).is_none());
    let refused = nodes[1].net.send(NodeId(3), SPACE, numbered(1));
    assert!(refused.is_err());
}

/// Goal: a wake before or during a wait ends it, once.
#[test]
fn a_wake_is_neither_lost_nor_doubled() {
    let poller = Poller::new().unwrap();
    let mut ready = Vec::new();
    poller.wake();
    poller.wake();
    poller.wait(None, &mut ready).unwrap();
    assert!(ready.is_empty());
    let begin = Instant::now();
    poller.wait(Some(Duration::from_millis(20)), &mut ready).unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(20));
    let other = poller.clone();
    let thread = std::thread::spawn(move || other.wake());
    poller.wait(None, &mut ready).unwrap();
    thread.join().unwrap();
}

/// Goal: what a life of a daemon that is no member says is not heard, however often it connects; once the membership says
/// that it is the member, all it has to say arrives. Method: node 1 is told that another life of node 2 is the member.
#[test]
fn a_life_that_is_no_member_is_not_heard() {
    let mut nodes = three_tcp(77);
    nodes[0].net.expect_life(NodeId(2), 99, Instant::now());
    for n in 0..20 {
        nodes[1].send(NodeId(1), n);
        nodes[2].send(NodeId(1), n);
    }
    let refused = |node: &Node| {
        let all = node.seen.iter().filter(|s| s.starts_with("Refused(WrongLife"));
        all.count()
    };
    until(&mut nodes, |nodes| {
        refused(&nodes[0]) >= 3 && nodes[0].got.len() == 20
    });
    assert!(nodes[0].got.iter().all(|(from, _)| *from == NodeId(3)));
    nodes[0].net.expect_life(NodeId(2), 2, Instant::now());
    until(&mut nodes, |nodes| nodes[0].got.len() == 40);
    let theirs = nodes[0].got.iter().filter(|(from, _)| *from == NodeId(2));
    assert!(theirs.map(|(_, n)| *n).eq(0..20));
}
