//! A cluster of processes on one machine: a small server on a unix socket orders what they say.
//!
//! Every process is a node. The server knows for sure who is alive: when a connection ends, the process behind it is
//! killed and its end waited for before anybody is told, so nothing else needs to fence it. A process that has left all
//! groups before is let go.
//!
//! Invariants: one order of events for all; a client that breaks the protocol, or does not read what it is sent, is cut
//! off like one that died.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use super::frame::{Reply, Request, split};
use super::memory::MemoryCluster;
use super::{ClusterConfig, Group, MemberEvent, Membership, MembershipError};
use crate::NodeId;
use crate::wake::Wake;

/// What waits for a client that does not read.
const BACKLOG_MAX: usize = 16 << 20;
const SERVICE: &str = "the group server";

/// A client.
#[derive(Debug)]
struct Client {
    stream: UnixStream,
    /// Its process, unless that is ours.
    process: Option<OwnedFd>,
    node: Option<NodeId>,
    input: Vec<u8>,
    output: Vec<u8>,
    broken: bool,
}

impl Client {
    fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        let peer = socket_peercred(&stream)?.pid;
        let process = if peer == getpid() {
            None
        } else {
            Some(pidfd_open(peer, PidfdFlags::empty())?)
        };
        Ok(Self {
            stream,
            process,
            node: None,
            input: Vec::new(),
            output: Vec::new(),
            broken: false,
        })
    }

    fn say(&mut self, reply: &Reply) {
        self.output.extend(reply.frame());
        self.broken = self.broken || self.output.len() > BACKLOG_MAX;
    }

    fn write(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(written) => drop(self.output.drain(..written)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.broken = self.broken || error.kind() != ErrorKind::WouldBlock;
                    return;
                }
            }
        }
    }

    fn read(&mut self) -> Vec<Request> {
        let mut buffer = [0; 65536];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.broken = true,
                Ok(len) => {
                    self.input.extend(buffer.get(..len).unwrap_or(&[]));
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => self.broken = self.broken || error.kind() != ErrorKind::WouldBlock,
            }
            break;
        }
        let bodies = split(&mut self.input).and_then(|bodies| {
            let read: Result<Vec<Request>, _> = bodies.iter().map(|body| Request::read(body)).collect();
            read
        });
        bodies.unwrap_or_else(|_| {
            self.broken = true;
            Vec::new()
        })
    }

    /// Makes sure that the process is dead.
    fn bury(&self) {
        let Some(process) = &self.process else { return };
        let _dead = pidfd_send_signal(process, Signal::KILL);
        let mut fds = [PollFd::new(process, PollFlags::IN)];
        while let Err(rustix::io::Errno::INTR) = poll(&mut fds, None) {}
    }
}

/// The server.
#[derive(Debug)]
pub struct GroupServer {
    name: String,
    nodes: u32,
    listener: UnixListener,
    cluster: MemoryCluster,
    clients: BTreeMap<u64, Client>,
    last_client: u64,
}

impl GroupServer {
    /// A server for the cluster `name` with nodes 1 to `nodes`, on a socket that must not exist yet.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn bind(path: &Path, name: &str, nodes: u32) -> std::io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            name: name.to_owned(),
            nodes,
            listener,
            cluster: MemoryCluster::supervised(nodes),
            clients: BTreeMap::new(),
            last_client: 0,
        })
    }

    /// Waits at most `timeout` for something to do, and does it.
    pub fn turn(&mut self, timeout: Duration) {
        self.wait(timeout);
        while let Ok((stream, _)) = self.listener.accept() {
            if let Ok(client) = Client::new(stream) {
                self.last_client = self.last_client.wrapping_add(1);
                self.clients.insert(self.last_client, client);
            }
        }
        for key in self.clients.keys().copied().collect::<Vec<_>>() {
            let requests = self.clients.get_mut(&key).map(Client::read).unwrap_or_default();
            for request in requests {
                self.serve(key, request);
            }
        }
        self.deliver();
        while self.cut_off() {
            self.deliver();
        }
    }

    fn wait(&self, timeout: Duration) {
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        for client in self.clients.values() {
            let flags = if client.output.is_empty() {
                PollFlags::IN
            } else {
                PollFlags::IN | PollFlags::OUT
            };
            fds.push(PollFd::new(&client.stream, flags));
        }
        let timeout = Timespec::try_from(timeout).ok();
        // Interrupted or not: everybody is asked.
        let _ready = poll(&mut fds, timeout.as_ref());
    }

    fn serve(&mut self, key: u64, request: Request) {
        let Some(client) = self.clients.get_mut(&key) else {
            return;
        };
        match (client.node, request) {
            (None, Request::Hello { node, cluster }) => {
                let id = NodeId(node);
                if cluster != self.name {
                    client.say(&Reply::Refused(format!(
                        "this is cluster {}, not {cluster}",
                        self.name
                    )));
                } else if node == 0 || node > self.nodes {
                    client.say(&Reply::Refused(format!(
                        "nodes are 1 to {}, not {node}",
                        self.nodes
                    )));
                } else if self.cluster.is_on(id) {
                    client.say(&Reply::Refused(format!("node {node} is here already")));
                } else {
                    client.node = Some(id);
                    client.say(&Reply::Welcome { nodes: self.nodes });
                    let with = (1..=self.nodes)
                        .map(NodeId)
                        .find(|other| self.cluster.is_on(*other));
                    self.cluster.turn_on(id, with);
                }
            }
            (Some(node), Request::Join(group)) => self.cluster.ask_join(node, &group),
            (Some(node), Request::Leave(group)) => self.cluster.ask_leave(node, &group),
            (Some(node), Request::Send(group, bytes)) => self.cluster.ask_send(node, &group, &bytes),
            (Some(_), Request::Kill(victim)) => {
                let victim = Some(NodeId(victim));
                for client in self.clients.values_mut().filter(|client| client.node == victim) {
                    client.broken = true;
                }
            }
            _ => client.broken = true,
        }
        if let Some(node) = self.clients.get(&key).and_then(|client| client.node) {
            while self.cluster.flush(node) {}
        }
    }

    fn deliver(&mut self) {
        for client in self.clients.values_mut() {
            if let Some(node) = client.node {
                for source in self.cluster.waiting(node) {
                    while let Some(event) = self.cluster.take(node, &source) {
                        client.say(&Reply::Event(event));
                    }
                }
            }
            client.write();
        }
    }

    /// Buries those that are broken, and tells the others. False: there are none.
    fn cut_off(&mut self) -> bool {
        let broken = self.clients.iter().filter(|(_, client)| client.broken);
        let broken: Vec<u64> = broken.map(|(key, _)| *key).collect();
        for key in &broken {
            if let Some(client) = self.clients.remove(key)
                && let Some(node) = client.node
            {
                // Whoever has left all groups has said that nothing of it is to be feared any more; it may finish.
                if self.cluster.is_in_groups(node) {
                    client.bury();
                }
                self.cluster.turn_off(node);
            }
        }
        !broken.is_empty()
    }
}

/// A process's place in the cluster of a [`GroupServer`].
#[derive(Debug)]
pub struct ServerMembership {
    stream: UnixStream,
    input: Vec<u8>,
    config: ClusterConfig,
    wake: Option<Wake>,
    lost: bool,
}

impl ServerMembership {
    /// Becomes node `us` of cluster `name`.
    ///
    /// # Errors
    /// No server there, or one that refuses us.
    pub fn connect(path: &Path, name: &str, us: NodeId) -> Result<Self, MembershipError> {
        let unavailable = |reason: String, advice| MembershipError::Unavailable {
            service: format!("{SERVICE} at {}", path.display()),
            reason,
            advice,
        };
        let start = |error: std::io::Error| unavailable(error.to_string(), "start it first");
        let mut stream = UnixStream::connect(path).map_err(start)?;
        let hello = Request::Hello {
            node: us.0,
            cluster: name.to_owned(),
        };
        stream.write_all(&hello.frame()).map_err(start)?;
        let mut head = [0; 4];
        stream.read_exact(&mut head).map_err(start)?;
        let len = usize::try_from(u32::from_le_bytes(head))
            .unwrap_or(usize::MAX)
            .min(4096);
        let mut body = vec![0; len];
        stream.read_exact(&mut body).map_err(start)?;
        let nodes = match Reply::read(&body) {
            Ok(Reply::Welcome { nodes }) => nodes,
            Ok(Reply::Refused(why)) => return Err(unavailable(why, "choose another node or cluster")),
            _ => {
                return Err(unavailable(
                    "it does not speak our language".to_owned(),
                    "use one of our version",
                ));
            }
        };
        stream.set_nonblocking(true).map_err(start)?;
        Ok(Self {
            stream,
            input: Vec::new(),
            config: ClusterConfig {
                name: name.to_owned(),
                ..MemoryCluster::supervised(nodes).config(us)
            },
            wake: None,
            lost: false,
        })
    }

    fn ask(&mut self, call: &'static str, request: &Request) -> Result<(), MembershipError> {
        let frame = request.frame();
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or(&[]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(&self.stream, PollFlags::OUT)];
                    let _ready = poll(&mut fds, None);
                }
                Err(error) => {
                    return Err(MembershipError::Failed {
                        service: SERVICE.to_owned(),
                        call,
                        reason: error.to_string(),
                    });
                }
            }
        }
        Ok(())
    }

    fn lose(&mut self, why: String, events: &mut Vec<MemberEvent>) {
        self.lost = true;
        events.push(MemberEvent::Lost(why));
    }
}

impl Membership for ServerMembership {
    fn config(&self) -> &ClusterConfig {
        &self.config
    }

    fn join(&mut self, group: &Group) -> Result<(), MembershipError> {
        self.ask("join", &Request::Join(group.clone()))
    }

    fn leave(&mut self, group: &Group) -> Result<(), MembershipError> {
        self.ask("leave", &Request::Leave(group.clone()))
    }

    fn send(&mut self, group: &Group, bytes: &[u8]) -> Result<(), MembershipError> {
        self.ask("send", &Request::Send(group.clone(), bytes.to_vec()))
    }

    fn kill(&mut self, node: NodeId) -> Result<(), MembershipError> {
        self.ask("kill", &Request::Kill(node.0))
    }

    fn addresses(&mut self, node: NodeId) -> Result<Vec<IpAddr>, MembershipError> {
        let [high, low] = u16::try_from(node.0).unwrap_or(u16::MAX).to_be_bytes();
        Ok(vec![IpAddr::V4(Ipv4Addr::new(127, 0, high, low))])
    }

    fn wake_by(&mut self, wake: &Wake) -> bool {
        self.wake = Some(wake.clone());
        true
    }

    fn poll(&mut self, timeout: Duration) -> Vec<MemberEvent> {
        let mut events = Vec::new();
        if self.lost {
            return events;
        }
        let timeout = Timespec::try_from(timeout).ok();
        let mut fds = vec![PollFd::new(&self.stream, PollFlags::IN)];
        fds.extend(self.wake.as_ref().map(|wake| PollFd::new(wake, PollFlags::IN)));
        let _ready = poll(&mut fds, timeout.as_ref());
        let woken = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        if let (true, Some(wake)) = (woken, &self.wake) {
            wake.seen();
        }
        let mut buffer = [0; 65536];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.lose("it has closed the connection".to_owned(), &mut events),
                Ok(len) => {
                    self.input.extend(buffer.get(..len).unwrap_or(&[]));
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => self.lose(error.to_string(), &mut events),
            }
            break;
        }
        let replies = split(&mut self.input).and_then(|bodies| {
            bodies
                .iter()
                .map(|body| Reply::read(body))
                .collect::<Result<Vec<_>, _>>()
        });
        match replies {
            Ok(replies) => {
                let told = replies.into_iter().filter_map(|reply| match reply {
                    Reply::Event(event) => Some(event),
                    _ => None,
                });
                // What was told before the end comes before the news of it.
                events.splice(0..0, told);
            }
            Err(error) => self.lose(error.to_string(), &mut events),
        }
        events
    }
}
