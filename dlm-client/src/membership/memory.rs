//! A cluster in memory: the groups, rings and quorum of N nodes as corosync would give them, without corosync.
//!
//! Nothing here happens by itself: what is asked for waits in the node's outbox until [`MemoryCluster::flush`] puts it
//! into the order of all, and events wait in queues until they are taken. A simulator chooses when and in which order,
//! from a seed; [`MemoryMembership`] does everything at once.
//!
//! Invariants: within one part of the cluster, events of a group come to all its members in one order; queues of
//! different groups, and the quorum's, are independent, as they are with corosync; a ring's number is never used twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::{ClusterConfig, Group, MemberEvent, Membership, MembershipError, NodeInfo, Reason, RingId};
use crate::NodeId;

/// So near the end of 16 bits that a history of some length passes it: numbers of rings live on disks and only grow.
const FIRST_RING: u64 = 0xff80;

#[derive(Debug)]
enum Request {
    Join(Group),
    Leave(Group),
    Send(Group, Vec<u8>),
}

/// Where events of a node come from: the quorum service, or a group.
pub type Source = Option<Group>;

#[derive(Debug, Default)]
struct Member {
    /// Part of the cluster it is in; nodes that are off are in none.
    part: Option<u32>,
    ring: u64,
    outbox: VecDeque<Request>,
    events: BTreeMap<Source, VecDeque<MemberEvent>>,
    /// Groups it is in, and the members it knows.
    groups: BTreeMap<Group, BTreeSet<NodeId>>,
    /// Groups it is about to join whose ring it was told already.
    early: BTreeSet<Group>,
}

impl Member {
    /// The ring of a group, as its members are told.
    fn push_ring(&mut self, group: &Group, representative: NodeId) {
        let ring = RingId {
            node: representative,
            seq: self.ring,
        };
        let group = group.clone();
        self.push(Some(group.clone()), MemberEvent::Ring { group, ring });
    }

    fn is_about_to_join(&self, group: &Group) -> bool {
        let joins = |request: &Request| matches!(request, Request::Join(joined) if joined == group);
        self.outbox.iter().any(joins)
    }

    fn push(&mut self, source: Source, event: MemberEvent) {
        self.events.entry(source).or_default().push_back(event);
    }
}

/// The cluster.
#[derive(Debug)]
pub struct MemoryCluster {
    nodes: BTreeMap<NodeId, Member>,
    two_node: bool,
    /// Somebody else knows for sure who is alive: no part of the cluster waits for a majority.
    always_quorate: bool,
    last_ring: u64,
    last_part: u32,
    killed: Vec<NodeId>,
}

impl MemoryCluster {
    /// A cluster of nodes 1 to `count`, all off.
    #[must_use]
    pub fn new(count: u32) -> Self {
        Self {
            nodes: (1..=count)
                .map(|node| (NodeId(node), Member::default()))
                .collect(),
            two_node: count == 2,
            always_quorate: false,
            last_ring: FIRST_RING,
            last_part: 0,
            killed: Vec::new(),
        }
    }

    /// A cluster of nodes 1 to `count` whose nodes are surely dead when they are off: always quorate.
    #[must_use]
    pub fn supervised(count: u32) -> Self {
        Self {
            two_node: false,
            always_quorate: true,
            ..Self::new(count)
        }
    }

    /// What a node is told of the cluster.
    #[must_use]
    pub fn config(&self, us: NodeId) -> ClusterConfig {
        ClusterConfig {
            name: "memory".to_owned(),
            us,
            nodes: self
                .nodes
                .keys()
                .map(|node| NodeInfo {
                    node: *node,
                    name: format!("n{}", node.0),
                })
                .collect(),
            two_node: self.two_node,
            qdevice: false,
            token: Duration::from_secs(1),
        }
    }

    /// Is the node on?
    #[must_use]
    pub fn is_on(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.part.is_some())
    }

    /// Is the node's process in any group?
    #[must_use]
    pub fn is_in_groups(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|node| !node.groups.is_empty())
    }

    fn part_members(&self, part: u32) -> BTreeSet<NodeId> {
        let in_part = |(_, member): &(&NodeId, &Member)| member.part == Some(part);
        self.nodes.iter().filter(in_part).map(|(node, _)| *node).collect()
    }

    /// Turns a node on, into the part in which `with` is, or alone.
    pub fn turn_on(&mut self, node: NodeId, with: Option<NodeId>) {
        let part = with.and_then(|with| self.nodes.get(&with).and_then(|with| with.part));
        let part = part.unwrap_or_else(|| {
            self.last_part = self.last_part.wrapping_add(1);
            self.last_part
        });
        if let Some(member) = self.nodes.get_mut(&node) {
            *member = Member {
                part: Some(part),
                ..Member::default()
            };
        }
        self.form_ring(part, true);
    }

    /// Turns a node off. Its part of the cluster notices at once.
    pub fn turn_off(&mut self, node: NodeId) {
        let part = self.nodes.get_mut(&node).and_then(|member| {
            let part = member.part;
            *member = Member::default();
            part
        });
        if let Some(part) = part {
            self.form_ring(part, true);
        }
    }

    /// The daemon of a node dies; the node goes on.
    pub fn kill_process(&mut self, node: NodeId) {
        let Some(member) = self.nodes.get_mut(&node) else {
            return;
        };
        let groups = std::mem::take(&mut member.groups);
        member.outbox.clear();
        member.events.clear();
        let part = member.part;
        for group in groups.into_keys() {
            self.depart(part, node, &group, Reason::ProcDown);
        }
    }

    /// A new daemon starts on a node that is on: it is told of the quorum.
    pub fn start_process(&mut self, node: NodeId) {
        let Some(part) = self.nodes.get(&node).and_then(|member| member.part) else {
            return;
        };
        let members = self.part_members(part);
        let quorate = self.is_quorate(members.len());
        if let Some(member) = self.nodes.get_mut(&node) {
            let seq = member.ring;
            member.events.remove(&None);
            member.push(None, Self::quorum(quorate, seq, &members));
        }
    }

    /// Splits `nodes` off into a part of their own. With `seen`, they notice themselves; otherwise (they are paused)
    /// only the others do.
    pub fn split(&mut self, nodes: &[NodeId], seen: bool) {
        let mut parts = BTreeSet::new();
        self.last_part = self.last_part.wrapping_add(1);
        let new = self.last_part;
        for node in nodes {
            // One that is off stays so.
            let member = self.nodes.get_mut(node).filter(|member| member.part.is_some());
            parts.extend(member.and_then(|member| member.part.replace(new)));
        }
        for part in parts {
            self.form_ring(part, true);
        }
        self.form_ring(new, seen);
    }

    /// All parts become one again. Nodes that had not noticed a split see it now, without word from the quorum.
    pub fn merge(&mut self) {
        let parts: BTreeSet<u32> = self.nodes.values().filter_map(|member| member.part).collect();
        let Some(first) = parts.first().copied() else {
            return;
        };
        for part in &parts {
            self.inform_groups(*part, false);
        }
        if parts.len() > 1 {
            for member in self.nodes.values_mut().filter(|member| member.part.is_some()) {
                member.part = Some(first);
            }
            self.form_ring(first, true);
        }
    }

    fn is_quorate(&self, present: usize) -> bool {
        self.two_node || self.always_quorate || present.saturating_mul(2) > self.nodes.len()
    }

    fn quorum(quorate: bool, seq: u64, members: &BTreeSet<NodeId>) -> MemberEvent {
        let node = members.first().copied().unwrap_or(NodeId(0));
        MemberEvent::Quorum {
            quorate,
            ring: RingId { node, seq },
            members: members.iter().copied().collect(),
            renewed: Vec::new(),
        }
    }

    /// A new ring of a part; its nodes are told, when they can notice.
    fn form_ring(&mut self, part: u32, seen: bool) {
        self.last_ring = self.last_ring.saturating_add(4);
        let seq = self.last_ring;
        let members = self.part_members(part);
        let quorate = self.is_quorate(members.len());
        for node in &members {
            if let Some(member) = self.nodes.get_mut(node) {
                member.ring = seq;
                // Those that are about to join are told this one, too.
                member.early.clear();
            }
        }
        if !seen {
            return;
        }
        self.inform_groups(part, true);
        for node in &members {
            if let Some(member) = self.nodes.get_mut(node) {
                member.push(None, Self::quorum(quorate, seq, &members));
            }
        }
    }

    /// Tells the members of each group who went and who came; with `ring`, also the ring.
    fn inform_groups(&mut self, part: u32, ring: bool) {
        let members = self.part_members(part);
        let mut present: BTreeMap<Group, BTreeSet<NodeId>> = BTreeMap::new();
        for node in &members {
            for group in self
                .nodes
                .get(node)
                .map(|member| member.groups.keys())
                .into_iter()
                .flatten()
            {
                present.entry(group.clone()).or_default().insert(*node);
            }
        }
        for node in &members {
            let Some(member) = self.nodes.get_mut(node) else {
                continue;
            };
            let groups: Vec<Group> = member.groups.keys().cloned().collect();
            for group in groups {
                let now = present.get(&group).cloned().unwrap_or_default();
                Self::inform(member, group, &now, ring);
            }
        }
    }

    fn inform(member: &mut Member, group: Group, now: &BTreeSet<NodeId>, ring: bool) {
        let known = member
            .groups
            .insert(group.clone(), now.clone())
            .unwrap_or_default();
        let stayed: Vec<NodeId> = known.intersection(now).copied().collect();
        let left: Vec<_> = known.difference(now).map(|n| (*n, Reason::NodeDown)).collect();
        let source = Some(group.clone());
        if !left.is_empty() {
            let event = MemberEvent::Confchg {
                group: group.clone(),
                members: stayed,
                joined: Vec::new(),
                left,
            };
            member.push(source.clone(), event);
        }
        let joined: Vec<_> = now.difference(&known).map(|n| (*n, Reason::NodeUp)).collect();
        if !joined.is_empty() {
            let event = MemberEvent::Confchg {
                group: group.clone(),
                members: now.iter().copied().collect(),
                joined,
                left: Vec::new(),
            };
            member.push(source.clone(), event);
        }
        if ring {
            member.push_ring(&group, now.first().copied().unwrap_or(NodeId(0)));
        }
    }

    /// A member goes from a group, itself apart from that unharmed.
    fn depart(&mut self, part: Option<u32>, node: NodeId, group: &Group, reason: Reason) {
        let here: Vec<NodeId> = part
            .map(|part| self.part_members(part))
            .unwrap_or_default()
            .into_iter()
            .collect();
        for other in here {
            let Some(member) = self.nodes.get_mut(&other) else {
                continue;
            };
            let Some(known) = member.groups.get_mut(group) else {
                continue;
            };
            if known.remove(&node) {
                let members = known.iter().copied().collect();
                let event = MemberEvent::Confchg {
                    group: group.clone(),
                    members,
                    joined: Vec::new(),
                    left: vec![(node, reason)],
                };
                member.push(Some(group.clone()), event);
            }
        }
        if let Some(member) = self.nodes.get_mut(&node) {
            member.groups.remove(group);
        }
        self.tell_ring_early(part, group);
    }

    /// Corosync tells those that are about to join a group its ring with the first news of the group, though these are
    /// not for them yet: the ring comes before the change with which they come.
    fn tell_ring_early(&mut self, part: Option<u32>, group: &Group) {
        let here = part.map(|part| self.part_members(part)).unwrap_or_default();
        let first = here.first().copied();
        for node in here {
            if let (Some(member), Some(first)) = (self.nodes.get_mut(&node), first)
                && member.is_about_to_join(group)
                && member.early.insert(group.clone())
            {
                member.push_ring(group, first);
            }
        }
    }

    fn arrive(&mut self, part: u32, node: NodeId, group: &Group) {
        let here = self.part_members(part);
        let in_group = |other: &&NodeId| {
            **other == node
                || self
                    .nodes
                    .get(other)
                    .is_some_and(|m| m.groups.contains_key(group))
        };
        let members: BTreeSet<NodeId> = here.iter().filter(in_group).copied().collect();
        for other in &members {
            let Some(member) = self.nodes.get_mut(other) else {
                continue;
            };
            member.groups.insert(group.clone(), members.clone());
            let event = MemberEvent::Confchg {
                group: group.clone(),
                members: members.iter().copied().collect(),
                joined: vec![(node, Reason::Join)],
                left: Vec::new(),
            };
            member.push(Some(group.clone()), event);
            if *other == node && !member.early.remove(group) {
                member.push_ring(group, members.first().copied().unwrap_or(node));
            }
        }
        self.tell_ring_early(Some(part), group);
    }

    /// Puts the oldest request of a node into the order of all. False: there is none.
    pub fn flush(&mut self, node: NodeId) -> bool {
        let Some(member) = self.nodes.get_mut(&node) else {
            return false;
        };
        let Some(part) = member.part else { return false };
        let Some(request) = member.outbox.pop_front() else {
            return false;
        };
        match request {
            Request::Join(group) => self.arrive(part, node, &group),
            Request::Leave(group) => self.depart(Some(part), node, &group, Reason::Leave),
            Request::Send(group, bytes) => {
                for other in self.part_members(part) {
                    let Some(member) = self.nodes.get_mut(&other) else {
                        continue;
                    };
                    if member.groups.contains_key(&group) {
                        let event = MemberEvent::Deliver {
                            group: group.clone(),
                            from: node,
                            bytes: bytes.clone(),
                        };
                        member.push(Some(group.clone()), event);
                    }
                }
            }
        }
        true
    }

    /// Nodes with something in their outbox.
    #[must_use]
    pub fn busy(&self) -> Vec<NodeId> {
        let busy = |(_, member): &(&NodeId, &Member)| !member.outbox.is_empty();
        self.nodes.iter().filter(busy).map(|(node, _)| *node).collect()
    }

    /// Where events wait for a node.
    #[must_use]
    pub fn waiting(&self, node: NodeId) -> Vec<Source> {
        let member = self.nodes.get(&node);
        let queues = member.map(|member| member.events.iter());
        let full = queues
            .into_iter()
            .flatten()
            .filter(|(_, queue)| !queue.is_empty());
        full.map(|(source, _)| source.clone()).collect()
    }

    /// The next event of a source.
    pub fn take(&mut self, node: NodeId, source: &Source) -> Option<MemberEvent> {
        self.nodes.get_mut(&node)?.events.get_mut(source)?.pop_front()
    }

    /// Nodes that somebody wants to be thrown out; whoever drives the cluster turns them off.
    pub fn take_killed(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.killed)
    }

    fn request(&mut self, node: NodeId, request: Request) {
        if let Some(member) = self.nodes.get_mut(&node).filter(|member| member.part.is_some()) {
            member.outbox.push_back(request);
        }
    }

    /// A node asks to join a group.
    pub fn ask_join(&mut self, node: NodeId, group: &Group) {
        self.request(node, Request::Join(group.clone()));
    }

    /// A node asks to leave a group.
    pub fn ask_leave(&mut self, node: NodeId, group: &Group) {
        self.request(node, Request::Leave(group.clone()));
    }

    /// A node asks for a message to be sent.
    pub fn ask_send(&mut self, node: NodeId, group: &Group, bytes: &[u8]) {
        self.request(node, Request::Send(group.clone(), bytes.to_vec()));
    }

    /// A node asks for another to be thrown out.
    pub fn ask_kill(&mut self, victim: NodeId) {
        self.killed.push(victim);
    }
}

/// A node's membership in a cluster in memory that several threads share: all at once, in order.
#[derive(Clone, Debug)]
pub struct MemoryMembership {
    cluster: Arc<Mutex<MemoryCluster>>,
    config: ClusterConfig,
}

impl MemoryMembership {
    /// Node `us` of a cluster; it is turned on, together with those that are.
    #[must_use]
    pub fn new(cluster: &Arc<Mutex<MemoryCluster>>, us: NodeId) -> Self {
        let mut locked = cluster.lock();
        let with = locked.nodes.iter().find(|(_, member)| member.part.is_some());
        let with = with.map(|(node, _)| *node);
        locked.turn_on(us, with);
        Self {
            cluster: Arc::clone(cluster),
            config: locked.config(us),
        }
    }

    fn ask(&self, request: Request) {
        let mut cluster = self.cluster.lock();
        cluster.request(self.config.us, request);
        while cluster.flush(self.config.us) {}
    }
}

impl Membership for MemoryMembership {
    fn config(&self) -> &ClusterConfig {
        &self.config
    }

    fn join(&mut self, group: &Group) -> Result<(), MembershipError> {
        self.ask(Request::Join(group.clone()));
        Ok(())
    }

    fn leave(&mut self, group: &Group) -> Result<(), MembershipError> {
        self.ask(Request::Leave(group.clone()));
        Ok(())
    }

    fn send(&mut self, group: &Group, bytes: &[u8]) -> Result<(), MembershipError> {
        self.ask(Request::Send(group.clone(), bytes.to_vec()));
        Ok(())
    }

    fn kill(&mut self, node: NodeId) -> Result<(), MembershipError> {
        self.cluster.lock().turn_off(node);
        Ok(())
    }

    fn addresses(&mut self, node: NodeId) -> Result<Vec<IpAddr>, MembershipError> {
        let [high, low] = u16::try_from(node.0).unwrap_or(u16::MAX).to_be_bytes();
        Ok(vec![IpAddr::V4(Ipv4Addr::new(127, 0, high, low))])
    }

    fn poll(&mut self, timeout: Duration) -> Vec<MemberEvent> {
        let mut cluster = self.cluster.lock();
        let us = self.config.us;
        let mut events = Vec::new();
        for source in cluster.waiting(us) {
            events.extend(std::iter::from_fn(|| cluster.take(us, &source)));
        }
        if !cluster.is_on(us) {
            events.push(MemberEvent::Lost("the node was turned off".to_owned()));
        }
        drop(cluster);
        if events.is_empty() {
            std::thread::park_timeout(timeout);
        }
        events
    }
}
