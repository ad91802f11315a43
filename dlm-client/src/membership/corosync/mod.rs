//! The membership of a corosync cluster, through corosync's own client libraries, which need not be installed to start.
//!
//! Invariants: the quorum's news are read before those of groups; what was asked to be sent is sent in order, also when
//! corosync asks for patience; a group that was left is forgotten with the news of it.

mod ffi;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{CString, c_int};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::ffi::{Calls, LIBRARIES, OK, Raw, Service, TRY_AGAIN};
use super::{ClusterConfig, Group, MemberEvent, Membership, MembershipError, NodeInfo, Reason, RingId};
use crate::NodeId;
use crate::wake::Wake;

/// How long corosync may ask for patience when we connect or join.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
/// Nodes of a configuration.
const NODES_MAX: u32 = 128;

fn text(result: c_int) -> String {
    let words = match result {
        2 => "the connection is broken",
        5 => "timeout",
        6 => "it asks to try again",
        9 => "bad handle",
        11 => "access denied (root, or /etc/corosync/uidgid.d)",
        12 => "not there",
        18 => "out of resources",
        100 => "security",
        _ => return format!("corosync error {result}"),
    };
    format!("{words} (corosync error {result})")
}

fn failed(call: &'static str, result: c_int) -> MembershipError {
    MembershipError::Failed {
        service: "corosync".to_owned(),
        call,
        reason: text(result),
    }
}

/// Repeats a call while corosync asks for patience.
fn patiently(mut call: impl FnMut() -> c_int) -> c_int {
    let begin = Instant::now();
    loop {
        let result = call();
        if result != TRY_AGAIN || begin.elapsed() >= PATIENCE {
            return result;
        }
        thread::sleep(PAUSE);
    }
}

fn unavailable(reason: String, advice: &'static str) -> MembershipError {
    MembershipError::Unavailable {
        service: "corosync".to_owned(),
        reason,
        advice,
    }
}

fn load(libraries: [&str; 4]) -> Result<Calls, MembershipError> {
    Calls::load(libraries).map_err(|reason| {
        unavailable(
            reason,
            "install corosync with its libraries libcpg4, libquorum5, libcfg7, libcmap4",
        )
    })
}

/// Connects to a service of the corosync of this host.
fn open(calls: &Calls, service: Service) -> Result<u64, MembershipError> {
    let mut handle = 0;
    let result = patiently(|| match calls.connect(service) {
        Ok(new) => {
            handle = new;
            OK
        }
        Err(error) => error,
    });
    if result == OK {
        return Ok(handle);
    }
    Err(unavailable(
        text(result),
        "start corosync, or see why it does not start: corosync -t",
    ))
}

/// The nodes that have processes in a group of cluster `cluster`, ascending, as the corosync of this host knows them:
/// those of its part of the cluster. Nothing is joined and nobody is told. May take long ([`super::lookup`] does not).
pub(super) fn members(cluster: &str, group: &Group) -> Result<Vec<NodeId>, MembershipError> {
    let calls = load(LIBRARIES)?;
    let cpg = open(&calls, Service::Cpg)?;
    let found = members_by(&calls, cpg, cluster, group);
    calls.finalize(Service::Cpg, cpg);
    found
}

fn members_by(calls: &Calls, cpg: u64, cluster: &str, group: &Group) -> Result<Vec<NodeId>, MembershipError> {
    let values = calls
        .read_map(&[c"totem.cluster_name".to_owned()])
        .map_err(|error| failed("cmap_initialize", error))?;
    super::is_meant(&string(values.into_iter().next().flatten()), cluster)?;
    let nodes = calls
        .members(cpg, &group.name())
        .map_err(|error| failed("cpg_iteration_initialize", error))?;
    let nodes: BTreeSet<NodeId> = nodes.into_iter().map(NodeId).collect();
    Ok(nodes.into_iter().collect())
}

/// A text of the configuration.
fn string(value: Option<Vec<u8>>) -> String {
    let bytes = value.unwrap_or_default();
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or(&[])).into_owned()
}

#[derive(Debug)]
struct Connection {
    handle: u64,
    fd: RawFd,
}

/// A corosync cluster.
#[derive(Debug)]
pub struct CorosyncMembership {
    calls: Calls,
    config: ClusterConfig,
    cfg: Connection,
    quorum: Connection,
    groups: BTreeMap<Group, Connection>,
    outbox: VecDeque<(Group, Vec<u8>)>,
    renewed: BTreeSet<u32>,
    wake: Option<Wake>,
    lost: bool,
}

impl CorosyncMembership {
    /// Connects to the corosync of this host.
    ///
    /// # Errors
    /// Libraries that are not installed, a corosync that does not run, or a configuration it has no node id for.
    pub fn connect() -> Result<Self, MembershipError> {
        Self::connect_with(LIBRARIES)
    }

    fn connect_with(libraries: [&str; 4]) -> Result<Self, MembershipError> {
        let calls = load(libraries)?;
        let open = |service| {
            let handle = open(&calls, service)?;
            let fd = calls
                .fd(service, handle)
                .map_err(|error| failed("fd_get", error))?;
            Ok(Connection { handle, fd })
        };
        let cfg = open(Service::Cfg)?;
        let quorum = open(Service::Quorum)?;
        let us = calls
            .local_node(cfg.handle)
            .map_err(|error| failed("corosync_cfg_local_get", error))?;
        let config = read_config(&calls, us)?;
        let result = calls.track_quorum(quorum.handle);
        if result != OK {
            return Err(failed("quorum_trackstart", result));
        }
        Ok(Self {
            calls,
            config,
            cfg,
            quorum,
            groups: BTreeMap::new(),
            outbox: VecDeque::new(),
            renewed: BTreeSet::new(),
            wake: None,
            lost: false,
        })
    }

    /// Sends what waits, as far as corosync takes it.
    fn flush(&mut self) -> Result<(), MembershipError> {
        while let Some((group, bytes)) = self.outbox.front() {
            if let Some(connection) = self.groups.get(group) {
                match self.calls.send(connection.handle, bytes) {
                    OK => {}
                    TRY_AGAIN => return Ok(()),
                    error => return Err(failed("cpg_mcast_joined", error)),
                }
            }
            self.outbox.pop_front();
        }
        Ok(())
    }

    fn group(&self, handle: u64) -> Option<Group> {
        let mut groups = self.groups.iter();
        groups
            .find(|(_, connection)| connection.handle == handle)
            .map(|(group, _)| group.clone())
    }

    fn wait(&self, timeout: Duration) {
        let all = [self.quorum.fd, self.cfg.fd];
        let fds = all.into_iter().chain(self.groups.values().map(|c| c.fd));
        let mut fds: Vec<PollFd<'_>> = fds
            .map(|fd| PollFd::from_borrowed_fd(ffi::borrow(fd, &self.calls), PollFlags::IN))
            .collect();
        let services = fds.len();
        fds.extend(self.wake.as_ref().map(|wake| PollFd::new(wake, PollFlags::IN)));
        let timeout = if self.outbox.is_empty() {
            timeout
        } else {
            timeout.min(PAUSE)
        };
        let timeout = Timespec::try_from(timeout).ok();
        // Interrupted or not: what there is is dispatched.
        let _ready = poll(&mut fds, timeout.as_ref());
        let woken = fds.get(services).is_some_and(|fd| !fd.revents().is_empty());
        if let (true, Some(wake)) = (woken, &self.wake) {
            wake.seen();
        }
    }

    fn dispatch(&mut self, events: &mut Vec<MemberEvent>) {
        let mut all = vec![
            (Service::Quorum, self.quorum.handle),
            (Service::Cfg, self.cfg.handle),
        ];
        all.extend(self.groups.values().map(|c| (Service::Cpg, c.handle)));
        for (service, handle) in all {
            let result = self.calls.dispatch(service, handle);
            for raw in ffi::take() {
                self.translate(raw, events);
            }
            if result != OK && result != TRY_AGAIN {
                self.lost = true;
                events.push(MemberEvent::Lost(format!("{service:?}: {}", text(result))));
                return;
            }
        }
    }

    fn translate(&mut self, raw: Raw, events: &mut Vec<MemberEvent>) {
        match raw {
            Raw::Deliver { handle, node, bytes } => {
                if let Some(group) = self.group(handle) {
                    let from = NodeId(node);
                    events.push(MemberEvent::Deliver { group, from, bytes });
                }
            }
            Raw::Confchg {
                handle,
                members,
                left,
                joined,
            } => {
                let Some(group) = self.group(handle) else { return };
                let us = self.config.us;
                let gone = left.iter().any(|address| NodeId(address.node) == us);
                let changed = |list: &[ffi::Address]| {
                    list.iter()
                        .map(|address| (NodeId(address.node), reason(address.reason)))
                        .collect()
                };
                events.push(MemberEvent::Confchg {
                    group: group.clone(),
                    members: members.iter().map(|address| NodeId(address.node)).collect(),
                    joined: changed(&joined),
                    left: changed(&left),
                });
                if gone && let Some(connection) = self.groups.remove(&group) {
                    self.calls.finalize(Service::Cpg, connection.handle);
                }
            }
            Raw::Ring { handle, ring } => {
                if let Some(group) = self.group(handle) {
                    let ring = ring_id(ring);
                    events.push(MemberEvent::Ring { group, ring });
                }
            }
            Raw::Quorum {
                quorate,
                ring,
                members,
            } => {
                let renewed = std::mem::take(&mut self.renewed);
                events.push(MemberEvent::Quorum {
                    quorate,
                    ring: ring_id(ring),
                    members: members.into_iter().map(NodeId).collect(),
                    renewed: renewed.into_iter().map(NodeId).collect(),
                });
            }
            Raw::Nodes { joined, left } => {
                self.renewed
                    .extend(joined.into_iter().filter(|node| left.contains(node)));
            }
            Raw::Shutdown => events.push(MemberEvent::ShutdownAsked),
        }
    }
}

fn ring_id(ring: ffi::RingId) -> RingId {
    RingId {
        node: NodeId(ring.node),
        seq: ring.seq,
    }
}

fn reason(number: u32) -> Reason {
    match number {
        1 => Reason::Join,
        2 => Reason::Leave,
        3 => Reason::NodeDown,
        4 => Reason::NodeUp,
        // Whatever else it may be, it did not say goodbye.
        _ => Reason::ProcDown,
    }
}

fn read_config(calls: &Calls, us: u32) -> Result<ClusterConfig, MembershipError> {
    let fixed = [
        "totem.cluster_name",
        "quorum.two_node",
        "quorum.device.model",
        "runtime.config.totem.token",
    ];
    let mut names: Vec<String> = fixed.iter().map(|name| (*name).to_owned()).collect();
    for position in 0..NODES_MAX {
        for part in ["nodeid", "name"] {
            names.push(format!("nodelist.node.{position}.{part}"));
        }
    }
    let keys: Vec<CString> = names
        .into_iter()
        .filter_map(|name| CString::new(name).ok())
        .collect();
    let values = calls
        .read_map(&keys)
        .map_err(|error| failed("cmap_initialize", error))?;
    config_of(values, us)
}

/// The configuration from the values of its keys, in the order in which they were asked for.
fn config_of(values: Vec<Option<Vec<u8>>>, us: u32) -> Result<ClusterConfig, MembershipError> {
    let mut values = values.into_iter();
    let mut next = || values.next().flatten();
    // Numbers of the map are in the host's order and of different sizes; the low byte tells all we ask.
    let number = |value: Option<Vec<u8>>| {
        let bytes = value.unwrap_or_default();
        let mut wide = [0; 8];
        wide.iter_mut().zip(&bytes).for_each(|(to, from)| *to = *from);
        u64::from_le_bytes(wide)
    };
    let name = string(next());
    let two_node = number(next()) != 0;
    let qdevice = next().is_some();
    let token = number(next());
    let mut nodes = Vec::new();
    for _ in 0..NODES_MAX {
        let (id, name) = (next(), next());
        if id.is_none() {
            break;
        }
        let node = NodeId(u32::try_from(number(id)).unwrap_or_default());
        nodes.push(NodeInfo {
            node,
            name: string(name),
        });
    }
    if !nodes.iter().any(|node| node.node == NodeId(us)) {
        return Err(MembershipError::Unavailable {
            service: "corosync".to_owned(),
            reason: format!("our node id {us} is not in its nodelist"),
            advice: "give each node of corosync.conf a nodeid and start corosync anew",
        });
    }
    Ok(ClusterConfig {
        name,
        us: NodeId(us),
        two_node: two_node && nodes.len() == 2,
        nodes,
        qdevice,
        token: Duration::from_millis(if token == 0 { 3000 } else { token }),
    })
}

/// The address in a `sockaddr`: family in the host's order, then port, then address.
fn address(bytes: &[u8; 28]) -> Option<IpAddr> {
    let family = bytes
        .first_chunk::<2>()
        .map(|family| u16::from_le_bytes(*family))?;
    match family {
        2 => {
            let part = bytes.get(4..8)?.first_chunk::<4>()?;
            Some(IpAddr::V4(Ipv4Addr::from(*part)))
        }
        10 => {
            let part = bytes.get(8..24)?.first_chunk::<16>()?;
            Some(IpAddr::V6(Ipv6Addr::from(*part)))
        }
        _ => None,
    }
}

impl Membership for CorosyncMembership {
    fn config(&self) -> &ClusterConfig {
        &self.config
    }

    fn join(&mut self, group: &Group) -> Result<(), MembershipError> {
        let mut handle = 0;
        let result = patiently(|| match self.calls.connect(Service::Cpg) {
            Ok(new) => {
                handle = new;
                OK
            }
            Err(error) => error,
        });
        if result != OK {
            return Err(failed("cpg_model_initialize", result));
        }
        let fd = self
            .calls
            .fd(Service::Cpg, handle)
            .map_err(|error| failed("cpg_fd_get", error))?;
        let name = group.name();
        let result = patiently(|| self.calls.join(handle, &name, true));
        if result != OK {
            self.calls.finalize(Service::Cpg, handle);
            return Err(failed("cpg_join", result));
        }
        self.groups.insert(group.clone(), Connection { handle, fd });
        Ok(())
    }

    fn leave(&mut self, group: &Group) -> Result<(), MembershipError> {
        let name = group.name();
        let handle = self.groups.get(group).map(|connection| connection.handle);
        let handle = handle.ok_or(MembershipError::NotMember(name.clone()))?;
        match patiently(|| self.calls.join(handle, &name, false)) {
            OK => Ok(()),
            error => Err(failed("cpg_leave", error)),
        }
    }

    fn send(&mut self, group: &Group, bytes: &[u8]) -> Result<(), MembershipError> {
        if !self.groups.contains_key(group) {
            return Err(MembershipError::NotMember(group.name()));
        }
        self.outbox.push_back((group.clone(), bytes.to_vec()));
        self.flush()
    }

    fn kill(&mut self, node: NodeId) -> Result<(), MembershipError> {
        match self.calls.kill(self.cfg.handle, node.0, c"dlm") {
            OK => Ok(()),
            error => Err(failed("corosync_cfg_kill_node", error)),
        }
    }

    fn answer_shutdown(&mut self, allowed: bool) -> Result<(), MembershipError> {
        match self.calls.answer_shutdown(self.cfg.handle, allowed) {
            OK => Ok(()),
            error => Err(failed("corosync_cfg_replyto_shutdown", error)),
        }
    }

    fn addresses(&mut self, node: NodeId) -> Result<Vec<IpAddr>, MembershipError> {
        let found = self
            .calls
            .addresses(self.cfg.handle, node.0)
            .map_err(|error| failed("corosync_cfg_get_node_addrs", error))?;
        Ok(found.iter().filter_map(address).collect())
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
        self.wait(timeout);
        self.dispatch(&mut events);
        if let (false, Err(error)) = (self.lost, self.flush()) {
            self.lost = true;
            events.push(MemberEvent::Lost(error.to_string()));
        }
        events
    }
}

impl Drop for CorosyncMembership {
    fn drop(&mut self) {
        for connection in self.groups.values() {
            self.calls.finalize(Service::Cpg, connection.handle);
        }
        self.calls.finalize(Service::Quorum, self.quorum.handle);
        self.calls.finalize(Service::Cfg, self.cfg.handle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cluster "lab" with a device, and these nodes.
    fn values(nodes: &[u32]) -> Vec<Option<Vec<u8>>> {
        let mut values = vec![
            Some(b"lab\0".to_vec()),
            None,
            Some(b"net\0".to_vec()),
            Some(1500_u32.to_le_bytes().to_vec()),
        ];
        for node in nodes {
            values.push(Some(node.to_le_bytes().to_vec()));
            values.push(Some(format!("n{node}\0").into_bytes()));
        }
        values
    }

    #[test]
    fn a_node_that_is_not_in_the_nodelist_is_told_what_to_do() {
        let config = config_of(values(&[1, 700]), 700).expect("node 700 is in it");
        assert_eq!((config.name.as_str(), config.qdevice), ("lab", true));
        assert_eq!(config.token, Duration::from_millis(1500));
        assert_eq!(config.nodes[1].name, "n700");
        for nodes in [&[1, 2][..], &[]] {
            let line = config_of(values(nodes), 3).expect_err("not in it").to_string();
            assert_eq!(
                line,
                "corosync is not available: our node id 3 is not in its nodelist; give each node of corosync.conf a \
                 nodeid and start corosync anew"
            );
        }
    }

    /// One program for hosts with corosync and hosts without: it is not linked to it, and where it is asked for and missing
    /// one line says so.
    #[test]
    fn a_host_without_corosync_is_told_what_to_install() {
        let mapped = || std::fs::read_to_string("/proc/self/maps").expect("our own maps");
        assert!(!LIBRARIES.iter().any(|name| mapped().contains(name)), "linked");
        let mut libraries = LIBRARIES;
        libraries[0] = "libcpg.so.nosuch";
        let line = CorosyncMembership::connect_with(libraries)
            .expect_err("no such library")
            .to_string();
        assert!(
            line.starts_with("corosync is not available: libcpg.so.nosuch: ")
                && line.ends_with(
                    "; install corosync with its libraries libcpg4, libquorum5, libcfg7, libcmap4"
                ),
            "{line}"
        );
        assert_eq!(line.lines().count(), 1, "{line}");
    }

    #[test]
    fn another_cluster_than_the_one_that_is_meant_is_refused() {
        let config = config_of(values(&[1]), 1).expect("node 1 is in it");
        assert_eq!(config.check_name("lab"), Ok(()));
        let line = config.check_name("other").expect_err("another").to_string();
        assert!(line.contains("\"other\"") && line.contains("\"lab\""), "{line}");
    }
}
