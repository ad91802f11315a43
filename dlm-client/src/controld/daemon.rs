//! The group of the lock daemons: which protocol they speak, who must be fenced, and what merged partitions do.
//!
//! Invariants: nothing but PROTOCOL is sent or believed before the running version is agreed on; a node that failed
//! stays "to be fenced" until some member reports success, a person acknowledges it, or it comes back clean; a node
//! that comes back with state is never taken for clean; agents run on one node at a time unless configured otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::action::{Action, Fatal, Job, Now, Out};
use super::cluster::Cluster;
use super::codec::{
    Body, FENCE_ACKED, FENCE_NO_DATA, FenceFlags, FenceInfo, Header, Message, Protocol, STATEFUL, Version,
};
use super::fencing::{Need, Outcome};
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
        self.protocol.daemon_run.flags & STATEFUL != 0
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
        for id in members {
            let node = self.nodes.entry(*id).or_default();
            if node.member {
                continue;
            }
            node.member = true;
            node.added = Some(near.now.mono);
            node.came = self.changes;
            self.last_joined = near.now.mono;
            self.joins = self.joins.saturating_add(1);
            if !we_joined {
                node.clear = FenceFlags::CLEAR_STARTUP | FenceFlags::CLEAR_UNKNOWN;
            }
        }
        let witnesses: Vec<NodeId> = members
            .iter()
            .copied()
            .filter(|node| !joined.iter().any(|(new, _)| new == node))
            .collect();
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
            let was_clean = node.protocol.take().is_some();
            let failed = reason.is_some_and(Reason::is_failure);
            if failed {
                node.failed = node.went;
            }
            if was_clean && failed && near.conf.enable_fencing && node.need.is_none() {
                node.need = Some(Need::new(
                    *id,
                    near.now,
                    witnesses.clone(),
                    near.conf.devices(*id),
                ));
                out.error(format!(
                    "node {} failed ({}): it must be fenced",
                    id.0,
                    reason.map_or("unknown", Reason::word)
                ));
            }
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
        let theirs = protocol.daemon_run.flags & STATEFUL != 0;
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

    fn on_fence_result(&mut self, near: &Near<'_>, from: NodeId, info: &FenceInfo, out: &mut Out) {
        let victim = NodeId(info.node);
        let success = info.result == 0 || info.result == FENCE_ACKED;
        if victim == self.us && success && from != self.us {
            out.push(Action::Fatal(Fatal::Fenced { by: from }));
            return;
        }
        if self.startup.remove(&victim) {
            return;
        }
        let (us, repeat) = (self.us, near.conf.repeat_failed_fencing);
        let Some(node) = self.nodes.get_mut(&victim) else {
            return;
        };
        let Some(need) = node.need.as_mut() else {
            out.debug(format!(
                "node {} reports fencing of node {}, which needs none",
                from.0, victim.0
            ));
            return;
        };
        if from == us && info.result != FENCE_ACKED {
            need.result_sent = false;
        }
        out.error(format!(
            "fencing of node {} by node {}: {}",
            victim.0,
            from.0,
            match info.result {
                0 => "done".to_owned(),
                FENCE_ACKED => "acknowledged by hand".to_owned(),
                result => format!("failed with {result}"),
            }
        ));
        if !success {
            need.strike(from, info.result, repeat);
            return;
        }
        if info.result == FENCE_ACKED {
            need.stop(out);
        }
        node.need = None;
        node.fenced = Some(Fenced {
            by: from,
            at: near.now,
        });
        if node.member {
            out.push(Action::Kill(victim));
        }
    }

    fn on_fence_clear(&mut self, from: NodeId, info: &FenceInfo, out: &mut Out) {
        let about = NodeId(info.node);
        let us = self.us;
        let Some(node) = self.nodes.get_mut(&about) else {
            return;
        };
        if info.result == FENCE_NO_DATA && info.flags.contains(FenceFlags::UNKNOWN) {
            node.unknown = node.unknown || self.unknown;
            return;
        }
        if info.result != 0 {
            return;
        }
        // What we said ourselves was noted then, and may have been about an earlier coming of the node. Before it has
        // agreed on a protocol it listens to nobody.
        if from != us && node.has_agreed() {
            node.clear.remove(info.flags);
        }
        if about != us {
            return;
        }
        if info.flags.contains(FenceFlags::CLEAR_STARTUP) && !self.startup.is_empty() {
            self.startup.clear();
            self.wait_clear = true;
        }
        if info.flags.contains(FenceFlags::CLEAR_UNKNOWN) && self.unknown {
            out.info(format!("node {} says that no fencing is going on", from.0));
            self.unknown = false;
            self.wait_clear = false;
        }
    }

    /// A person says that a node is down.
    pub(super) fn acknowledge(&self, now: Now, node: NodeId, out: &mut Out) {
        self.send_result(now, node, FENCE_ACKED, out);
    }

    fn send_result(&self, now: Now, node: NodeId, result: i32, out: &mut Out) {
        let info = FenceInfo {
            node: node.0,
            result,
            walltime: now.wall,
            ..FenceInfo::default()
        };
        self.send(Body::FenceResult(info), out);
    }

    fn send_clear(&self, node: NodeId, result: i32, flags: FenceFlags, out: &mut Out) {
        let info = FenceInfo {
            flags,
            node: node.0,
            result,
            ..FenceInfo::default()
        };
        self.send(Body::FenceClear(info), out);
    }

    /// An agent of ours has ended.
    pub(super) fn on_agent(&mut self, near: &Near<'_>, job: Job, status: i32, out: &mut Out) {
        let found = self.nodes.iter_mut().find_map(|(id, node)| {
            let need = node.need.as_mut()?;
            (need.job() == Some(job)).then_some((*id, need))
        });
        let Some((id, need)) = found else { return };
        match need.ended(status) {
            Outcome::GoOn => {}
            Outcome::Result(result) => {
                need.result_sent = true;
                self.send_result(near.now, id, result, out);
            }
        }
    }

    /// Goes as far as it can be gone.
    pub(super) fn advance(&mut self, near: &Near<'_>, out: &mut Out) {
        self.negotiate(out);
        if !self.agreed || near.behind || self.ring_wait || self.ring != near.cluster.ring {
            return;
        }
        if !near.conf.enable_quorum_fencing || near.cluster.quorate {
            if self.sort_out_merge(near, out) {
                return;
            }
            self.fence_startup(near, out);
            self.fence(near, out);
        }
        self.clear_unknown(near, out);
    }

    /// Partitions that merged with state: nothing is fenced before one side is gone. True: not sorted out yet.
    fn sort_out_merge(&mut self, near: &Near<'_>, out: &mut Out) -> bool {
        let us = self.us;
        let present = || self.nodes.iter().filter(|(_, node)| node.member);
        let merged: Vec<NodeId> = present()
            .filter(|(_, node)| node.merged)
            .map(|(id, _)| *id)
            .collect();
        if near.two_node || merged.is_empty() {
            self.merge_wait = false;
            return false;
        }
        let partial = present().any(|(_, node)| !node.merged && node.protocol.is_none());
        // Those of our side that see the merge: nodes without state see nothing strange.
        let stateful = |id: &NodeId, node: &Node| {
            let flags = node.protocol.map_or(0, |protocol| protocol.daemon_run.flags);
            *id == us || (!node.merged && flags & STATEFUL != 0)
        };
        let ours: Vec<NodeId> = present()
            .filter(|(id, node)| stateful(id, node))
            .map(|(id, _)| *id)
            .collect();
        let (first, other) = (ours.first(), merged.first());
        let stronger = ours.len() > merged.len() || (ours.len() == merged.len() && first < other);
        // Whoever is not the stronger side waits to be thrown out. If the others do not see it that way, because news
        // crossed, only a person can help.
        self.merge_wait = !partial && !stronger;
        if !partial && stronger && first == Some(&us) {
            for (id, node) in self.nodes.iter_mut().filter(|(_, node)| node.merged) {
                if !node.killed {
                    node.killed = true;
                    out.push(Action::Kill(*id));
                }
            }
        }
        true
    }

    fn delay_over(&self, near: &Near<'_>) -> bool {
        let begin = self.last_joined.max(near.cluster.last_added);
        let delay = Duration::from_secs(near.conf.post_join_delay.into());
        near.now.mono.saturating_sub(begin) >= delay
    }

    fn fence_startup(&mut self, near: &Near<'_>, out: &mut Out) {
        let clean: Vec<NodeId> = self
            .startup
            .iter()
            .copied()
            .filter(|node| self.is_clean(*node))
            .collect();
        for node in clean {
            self.startup.remove(&node);
        }
        if !near.conf.enable_startup_fencing || !self.delay_over(near) {
            return;
        }
        // The agents are to count what happened to the node since just before we came.
        let since = near.cluster.since.unwrap_or(near.now);
        let since = Now {
            wall: since.wall.saturating_sub(1),
            ..since
        };
        for id in std::mem::take(&mut self.startup) {
            let members = self.members.clone();
            let node = self.nodes.entry(id).or_default();
            if node.need.is_none() {
                out.error(format!(
                    "node {} was never seen since we started: it must be fenced",
                    id.0
                ));
                node.need = Some(Need::new(id, since, members, near.conf.devices(id)));
            }
        }
    }

    fn fence(&mut self, near: &Near<'_>, out: &mut Out) {
        let due: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.need.is_some())
            .map(|(id, _)| *id)
            .collect();
        let delay_over = self.delay_over(near);
        for id in due {
            let clean = self.is_clean(id);
            let busy = self
                .nodes
                .values()
                .any(|node| node.need.as_ref().is_some_and(|need| need.job().is_some()));
            let members = &self.members;
            let Some(node) = self.nodes.get_mut(&id) else {
                continue;
            };
            let Some(need) = node.need.as_mut() else { continue };
            if clean {
                out.info(format!("node {} came back clean: it need not be fenced", id.0));
                need.stop(out);
                node.need = None;
                continue;
            }
            if need.job().is_some() || need.result_sent {
                continue;
            }
            need.delayed = !delay_over || (busy && !near.conf.enable_concurrent_fencing);
            if need.delayed || need.actor(members) != Some(self.us) {
                continue;
            }
            self.last_job = self.last_job.wrapping_add(1);
            if !need.run(Job(self.last_job), out) {
                need.result_sent = true;
                self.send_result(near.now, id, -1, out);
            }
        }
    }

    /// Whoever starts must learn that nobody is being fenced; whoever knows says so.
    fn clear_unknown(&mut self, near: &Near<'_>, out: &mut Out) {
        let startup_fencing = near.conf.enable_startup_fencing;
        if startup_fencing && self.unknown && self.startup.is_empty() && !self.wait_clear && !self.any_need()
        {
            self.unknown = false;
        }
        if !self.unknown {
            self.tell_newcomers(out);
        } else if !startup_fencing {
            let mut present = self.nodes.values().filter(|node| node.member);
            if !self.members.is_empty() && present.all(|node| node.unknown) {
                self.unknown = false;
                self.nodes.values_mut().for_each(|node| node.unknown = false);
            } else if self.joins > self.told_unknown_at {
                self.told_unknown_at = self.joins;
                self.send_clear(self.us, FENCE_NO_DATA, FenceFlags::UNKNOWN, out);
            }
        }
    }

    /// The lowest of those that know and were there before a newcomer tells it; one that came later does not know that
    /// it has to.
    fn speaker(&self, came: u32) -> Option<NodeId> {
        let knows = |node: &Node| node.member && node.clear.is_empty() && node.came < came;
        self.nodes.iter().find(|(_, node)| knows(node)).map(|(id, _)| *id)
    }

    fn tell_newcomers(&mut self, out: &mut Out) {
        let fencing = self.any_need();
        if let Some(node) = self.nodes.get_mut(&self.us) {
            node.clear = FenceFlags::empty();
        }
        let mut told = Vec::new();
        for (id, node) in self.nodes.iter().filter(|(_, node)| node.member) {
            let mut flags = node.clear;
            if fencing {
                flags.remove(FenceFlags::CLEAR_UNKNOWN);
            }
            if !flags.is_empty() && node.has_agreed() && self.speaker(node.came) == Some(self.us) {
                told.push((*id, flags));
            }
        }
        for (id, flags) in told {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.clear.remove(flags);
            }
            self.send_clear(id, 0, flags, out);
        }
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
