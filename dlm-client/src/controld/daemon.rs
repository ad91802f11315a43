//! The group of the lock daemons: which protocol they speak, who must be fenced, and what merged partitions do.
//!
//! Invariants: nothing but PROTOCOL is sent or believed before the running version is agreed on; a node that failed
//! stays "to be fenced" until some member reports success, a person acknowledges it, or it comes back clean; a node
//! that comes back with state is never taken for clean; agents run on one node at a time unless configured otherwise.

mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::action::{Action, Fatal, Now, Out};
use super::cluster::Cluster;
use super::codec::{Body, FenceFlags, Header, Message, Protocol, STATEFUL, Version};
use super::fencing::Need;
use super::status::{Fenced, NodeStatus};
use crate::NodeId;
use crate::fence::conf::DlmConf;
use crate::membership::{Group, Reason, RingId};

const DAEMON_MAX: Version = Version::new(3, 1, 1);
const ENGINE_MAX: Version = Version::new(1, 1, 1);

/// See [`Daemon::mark`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark(u64);

/// A node, as a daemon.
#[derive(Debug, Default)]
struct Node {
    member: bool,
    killed: bool,
    /// It came from a partition, with state.
    merged: bool,
    /// What it speaks; only from a node that came clean.
    protocol: Option<Protocol>,
    added: Option<Duration>,
    went: Option<Duration>,
    failed: Option<Duration>,
    fenced: Option<Fenced>,
    need: Option<Need>,
    /// It does not know of others' fencing either.
    unknown: bool,
    /// What it must be told before it can start.
    clear: FenceFlags,
    /// The change of members with which it came.
    came: u32,
    /// It was there before we were, and has not said yet whether it has state.
    in_doubt: bool,
}

impl Node {
    /// Has it said which protocol runs?
    fn has_agreed(&self) -> bool {
        self.protocol
            .is_some_and(|protocol| protocol.daemon_run.major != 0)
    }
}

/// The daemon group as we see it.
#[derive(Debug)]
pub(super) struct Daemon {
    us: NodeId,
    life: u32,
    nodes: BTreeMap<NodeId, Node>,
    members: Vec<NodeId>,
    /// Nodes of the configuration that were never seen.
    startup: BTreeSet<NodeId>,
    pub(super) ring: u64,
    ring_wait: bool,
    protocol: Protocol,
    proposed: bool,
    /// Is the running version agreed on?
    pub(super) agreed: bool,
    /// Do others fence somebody?
    pub(super) unknown: bool,
    wait_clear: bool,
    /// Nodes of the configuration.
    configured: BTreeSet<NodeId>,
    /// Members that were there before us: only they can tell what we wait for.
    elders: BTreeSet<NodeId>,
    joins: u32,
    changes: u32,
    told_unknown_at: u32,
    last_joined: Duration,
    last_job: u64,
    protocols_sent: u64,
    protocols_heard: u64,
    pub(super) merge_wait: bool,
}

/// What daemons need from around them.
pub(super) struct Near<'a> {
    pub(super) now: Now,
    pub(super) cluster: &'a Cluster,
    pub(super) conf: &'a DlmConf,
    pub(super) two_node: bool,
    /// There may be news that we have not heard.
    pub(super) behind: bool,
}

impl Daemon {
    pub(super) fn new(us: NodeId, life: u32, startup: BTreeSet<NodeId>) -> Self {
        Self {
            us,
            life,
            nodes: BTreeMap::new(),
            members: Vec::new(),
            configured: startup.clone(),
            elders: BTreeSet::new(),
            startup,
            ring: 0,
            ring_wait: false,
            protocol: Protocol {
                daemon_max: DAEMON_MAX,
                kernel_max: ENGINE_MAX,
                ..Protocol::default()
            },
            proposed: false,
            agreed: false,
            unknown: true,
            wait_clear: false,
            joins: 0,
            changes: 0,
            told_unknown_at: 0,
            last_joined: Duration::ZERO,
            last_job: 0,
            protocols_sent: 0,
            protocols_heard: 0,
            merge_wait: false,
        }
    }

    /// Which life of the node's daemon this is.
    pub(super) const fn life(&self) -> u32 {
        self.life
    }

    /// The header of what we send in lockspaces.
    pub(super) fn header(&self) -> Header {
        Header {
            version: self.protocol.daemon_run.numbers(),
            from: self.us.0,
            stamp: u64::from(self.life) << 32,
            ..Header::default()
        }
    }

    fn send(&self, body: Body, out: &mut Out) {
        let header = Header {
            from: self.us.0,
            stamp: u64::from(self.life) << 32,
            ..Header::default()
        };
        out.push(Action::Send {
            group: Group::Daemons,
            bytes: Message { header, body }.encode(),
        });
    }

    fn send_protocol(&mut self, protocol: Protocol, out: &mut Out) {
        self.protocols_sent = self.protocols_sent.saturating_add(1);
        self.send(Body::Protocol(protocol), out);
    }

    /// May a message of a lockspace be believed? Its version must be ours, and its sender who it says it is.
    pub(super) fn check(&self, from: NodeId, header: &Header) -> Result<(), String> {
        let [major, minor, _] = header.version;
        let ours = self.protocol.daemon_run;
        if (major, minor) != (ours.major, ours.minor) {
            return Err(format!(
                "version {major}.{minor}, ours is {}.{}",
                ours.major, ours.minor
            ));
        }
        if header.from != from.0 {
            return Err(format!("it says it is of node {}", header.from));
        }
        Ok(())
    }

    /// A lockspace was started: we cannot just come back any more.
    pub(super) fn set_stateful(&mut self) {
        self.protocol.daemon_run.flags |= STATEFUL;
    }

    pub(super) fn is_stateful(&self) -> bool {
        self.protocol.is_stateful()
    }

    pub(super) fn on_ring(&mut self, ring: RingId) {
        self.ring = ring.seq;
        self.ring_wait = false;
    }

    pub(super) fn on_confchg(
        &mut self,
        near: &Near<'_>,
        members: &[NodeId],
        joined: &[(NodeId, Reason)],
        left: &[(NodeId, Reason)],
        out: &mut Out,
    ) {
        self.members = members.to_vec();
        if left.iter().any(|(_, reason)| *reason == Reason::NodeDown) {
            self.ring_wait = true;
        }
        if !joined.is_empty() {
            self.send_protocol(self.protocol, out);
        }
        let we_joined = joined.iter().any(|(node, _)| *node == self.us);
        if we_joined {
            self.elders = members.iter().copied().filter(|node| *node != self.us).collect();
        }
        self.elders.retain(|node| members.contains(node));
        if self.wait_clear && self.elders.is_empty() {
            // Nobody is left who knew. What we do not know of was failed before we came: startup fencing is for that.
            self.wait_clear = false;
            self.startup.clone_from(&self.configured);
        }
        self.changes = self.changes.wrapping_add(1);
        let stateful = self.is_stateful();
        let with_node = joined.iter().filter(|(_, reason)| *reason == Reason::NodeUp);
        let with_node: BTreeSet<NodeId> = with_node.map(|(node, _)| *node).collect();
        for id in members {
            let node = self.nodes.entry(*id).or_default();
            if node.member {
                continue;
            }
            node.member = true;
            node.added = Some(near.now.mono);
            node.came = self.changes;
            let stranger = with_node.contains(id) && !stateful;
            node.in_doubt = *id != self.us && (we_joined || stranger);
            self.last_joined = near.now.mono;
            self.joins = self.joins.saturating_add(1);
            if !we_joined {
                node.clear = FenceFlags::CLEAR_STARTUP | FenceFlags::CLEAR_UNKNOWN;
            }
        }
        self.remove_members(near, members, joined, left, out);
    }

    fn remove_members(
        &mut self,
        near: &Near<'_>,
        members: &[NodeId],
        joined: &[(NodeId, Reason)],
        left: &[(NodeId, Reason)],
        out: &mut Out,
    ) {
        let witnesses: Vec<NodeId> = members
            .iter()
            .copied()
            .filter(|node| !joined.iter().any(|(new, _)| new == node))
            .collect();
        let mut harmless = Vec::new();
        for (id, node) in &mut self.nodes {
            if !node.member || members.contains(id) {
                continue;
            }
            let reason = left
                .iter()
                .find(|(gone, _)| gone == id)
                .map(|(_, reason)| *reason);
            node.member = false;
            node.killed = false;
            node.merged = false;
            node.went = Some(near.now.mono);
            // Whoever never said a word never had a lock, if it came after us; if it was there before, nobody knows.
            let dangerous = node.protocol.take().is_some() || node.in_doubt;
            let failed = reason.is_some_and(Reason::is_failure);
            if failed {
                node.failed = node.went;
            }
            if failed && !dangerous && node.need.is_none() {
                harmless.push((*id, node.came));
            }
            if failed && dangerous && near.conf.enable_fencing && node.need.is_none() {
                let devices = near.conf.devices(*id);
                let mut need = Need::new(*id, near.now, witnesses.clone(), devices);
                need.in_doubt = std::mem::take(&mut node.in_doubt);
                node.need = Some(need);
                out.error(format!(
                    "node {} failed ({}): it must be fenced",
                    id.0,
                    reason.map_or("unknown", Reason::word)
                ));
            }
        }
        for (id, came) in harmless {
            self.reassure(id, came, out);
        }
    }

    pub(super) fn on_message(&mut self, near: &Near<'_>, from: NodeId, message: &Message, out: &mut Out) {
        if message.header.from != from.0 {
            out.error(format!(
                "message of node {} says it is of node {}",
                from.0, message.header.from
            ));
            return;
        }
        if from == self.us && matches!(message.body, Body::Protocol(_)) {
            self.protocols_heard = self.protocols_heard.saturating_add(1);
        }
        match &message.body {
            Body::Protocol(protocol) => self.on_protocol(near, from, protocol, out),
            _ if !self.agreed => {}
            Body::FenceResult(info) => self.on_fence_result(near, from, info, out),
            Body::FenceClear(info) => self.on_fence_clear(from, info, out),
            body => out.debug(format!("no use for {body:?} from {}", from.0)),
        }
    }

    fn on_protocol(&mut self, near: &Near<'_>, from: NodeId, protocol: &Protocol, out: &mut Out) {
        let stateful = self.is_stateful();
        let Some(node) = self.nodes.get_mut(&from).filter(|node| node.member) else {
            return;
        };
        let theirs = protocol.is_stateful();
        if from != self.us && node.protocol.is_none() && stateful && theirs {
            let quorate_all_along =
                near.cluster.quorate && node.went.is_some_and(|went| near.cluster.quorate_since < went);
            let first = !node.merged;
            node.merged = true;
            if first {
                out.error(format!("node {} comes back from a partition, with state", from.0));
            }
            // With two nodes both sides are quorate: the one whose fencing succeeded does it, when it is told so.
            let racing = near.two_node && node.need.is_some();
            if quorate_all_along && !node.killed {
                node.killed = true;
                if !racing {
                    out.push(Action::Kill(from));
                }
            }
            return;
        }
        node.protocol = Some(*protocol);
        node.in_doubt = false;
        if self.protocol.daemon_run.major == 0 && protocol.daemon_run.major != 0 {
            self.protocol.daemon_run = Version {
                flags: 0,
                ..protocol.daemon_run
            };
            self.protocol.kernel_run = Version {
                flags: 0,
                ..protocol.kernel_run
            };
        }
    }

    /// Agrees on the running version, as far as that can be done now. True: it just was.
    fn negotiate(&mut self, out: &mut Out) -> bool {
        if self.agreed {
            return false;
        }
        if self.protocol.daemon_run.major == 0 {
            if !self.proposed
                && let Some(proposal) = self.propose()
            {
                self.proposed = true;
                self.send_protocol(proposal, out);
            }
            return false;
        }
        let fits = |run: Version, max: Version| run.major == max.major && run.minor <= max.minor;
        let (daemon, engine) = (self.protocol.daemon_run, self.protocol.kernel_run);
        if !fits(daemon, DAEMON_MAX) || !fits(engine, ENGINE_MAX) {
            out.push(Action::Fatal(Fatal::Protocol {
                daemon: daemon.numbers(),
                engine: engine.numbers(),
            }));
            return false;
        }
        self.agreed = true;
        out.info(format!("daemon protocol {}.{}", daemon.major, daemon.minor));
        self.send_protocol(self.protocol, out);
        true
    }

    /// The lowest versions of all members, once all have said theirs.
    fn propose(&self) -> Option<Protocol> {
        let mut all = Vec::new();
        for member in &self.members {
            all.push(self.nodes.get(member)?.protocol?);
        }
        let lowest = |pick: fn(&Protocol) -> Version| {
            let versions = || all.iter().map(pick);
            let major = versions().map(|v| v.major).min()?;
            let minor = versions().filter(|v| v.major == major).map(|v| v.minor).min()?;
            let patch = versions()
                .filter(|v| (v.major, v.minor) == (major, minor))
                .map(|v| v.patch)
                .min()?;
            Some(Version::new(major, minor, patch))
        };
        Some(Protocol {
            daemon_run: lowest(|p| p.daemon_max)?,
            kernel_run: lowest(|p| p.kernel_max)?,
            ..self.protocol
        })
    }

    /// Is the node a member that came clean?
    fn is_clean(&self, node: NodeId) -> bool {
        self.nodes
            .get(&node)
            .is_some_and(|node| node.member && node.protocol.is_some())
    }

    /// A mark in the order of all groups: whatever the group of the daemons tells up to now is known when it is passed.
    ///
    /// News of different groups come by different ways. That a node's daemon failed may be heard in a lockspace before
    /// it is heard here; asking right then whether it needs fencing would be too early. A message to ourselves tells
    /// when it is not, and one that repeats our protocol harms nobody.
    pub(super) fn mark(&mut self, out: &mut Out) -> Mark {
        self.send_protocol(self.protocol, out);
        Mark(self.protocols_sent)
    }

    /// Has everything come that was told before the mark?
    pub(super) fn has_passed(&self, mark: Mark) -> bool {
        self.protocols_heard >= mark.0
    }

    /// Must the node be fenced?
    pub(super) fn needs_fencing(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.need.is_some())
    }

    fn any_need(&self) -> bool {
        self.nodes.values().any(|node| node.need.is_some())
    }

    /// May there be a node that still writes?
    pub(super) fn fencing_in_progress(&self) -> bool {
        self.unknown || !self.startup.is_empty() || self.any_need()
    }

    /// Stops everything that runs.
    pub(super) fn stop(&mut self, out: &mut Out) {
        for node in self.nodes.values_mut() {
            if let Some(need) = node.need.as_mut() {
                need.stop(out);
            }
        }
    }

    pub(super) fn status(&self, now: Now) -> Vec<NodeStatus> {
        self.nodes
            .iter()
            .map(|(id, node)| NodeStatus {
                node: *id,
                member: node.member,
                killed: node.killed,
                merged: node.merged,
                added: node.added,
                removed: node.went,
                failed: node.failed,
                fenced: node.fenced,
                fencing: node.need.as_ref().map(|need| need.status(now)),
            })
            .collect()
    }
}
