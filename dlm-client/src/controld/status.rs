//! What the daemon can tell of itself.

use std::time::Duration;

use super::action::Now;
use super::codec::ChangeInfo;
use crate::NodeId;
use crate::fence::agent::{NOT_RUN, repair};
use crate::fence::conf::DEFAULT_AGENT;

/// What a lockspace waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The services agree on the ring.
    Ring,
    /// Quorum.
    Quorum,
    /// These nodes, or some of other lockspaces, to be fenced.
    Fencing(Vec<NodeId>),
    /// The START of these members.
    Messages(Vec<NodeId>),
}

/// A change of members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeStatus {
    /// Our number of it.
    pub seq: u32,
    /// Members and counts.
    pub info: ChangeInfo,
    /// Who went, and whether it failed.
    pub removed: Vec<(NodeId, bool)>,
}

/// A lockspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockspaceStatus {
    /// Its name.
    pub name: String,
    /// Its global id.
    pub global_id: u32,
    /// Not started yet?
    pub joining: bool,
    /// Being left?
    pub leaving: bool,
    /// Is the lock engine stopped?
    pub stopped: bool,
    /// Are the POSIX locks here?
    pub has_plocks: bool,
    /// What it waits for.
    pub wait: Option<Wait>,
    /// For how long the last change is known.
    pub since: Duration,
    /// The change it runs with.
    pub started: Option<ChangeStatus>,
    /// The change that is to come.
    pub next: Option<ChangeStatus>,
}

/// Fencing of a node that is awaited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceStatus {
    /// For how long.
    pub since: Duration,
    /// The node that is to do it; none is left when there is no such node.
    pub actor: Option<NodeId>,
    /// The agent that runs here, or ran last.
    pub agent: Option<String>,
    /// The process of the agent that runs here.
    pub pid: Option<u32>,
    /// How many agents were started here.
    pub attempts: u32,
    /// Is it waiting for nodes to come back by themselves first?
    pub delayed: bool,
    /// The last failure: the node that tried, and its result.
    pub last_failure: Option<(NodeId, i32)>,
}

/// Fencing that was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fenced {
    /// The node that says so.
    pub by: NodeId,
    /// When that was heard.
    pub at: Now,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Which.
    pub node: NodeId,
    /// Does its daemon run?
    pub member: bool,
    /// Was it thrown out by us?
    pub killed: bool,
    /// Did it come from a partition, with state?
    pub merged: bool,
    /// When its daemon came last.
    pub added: Option<Duration>,
    /// When it went last.
    pub removed: Option<Duration>,
    /// When it failed last.
    pub failed: Option<Duration>,
    /// Its last fencing.
    pub fenced: Option<Fenced>,
    /// Is its fencing awaited?
    pub fencing: Option<FenceStatus>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Quorate?
    pub quorate: bool,
    /// When this was asked, on the clock of all times here ([`Now::mono`]); the wire backend's begins with the machine.
    pub now: Duration,
    /// Ring of the quorum.
    pub ring: u64,
    /// Ring of the daemons' group.
    pub daemon_ring: u64,
    /// Is it unknown yet whether others are fencing somebody?
    pub fencing_unknown: bool,
    /// Partitions have merged that nobody can sort out but a person.
    pub merge_wait: bool,
    /// The nodes.
    pub nodes: Vec<NodeStatus>,
    /// The lockspaces.
    pub lockspaces: Vec<LockspaceStatus>,
}

impl Status {
    /// What a person is to be told of fencing that is awaited, one line per node.
    #[must_use]
    pub fn fencing_lines(&self) -> Vec<String> {
        let awaited = self
            .nodes
            .iter()
            .filter_map(|node| node.fencing.as_ref().map(|fencing| (node.node, fencing)));
        awaited
            .map(|(node, fencing)| {
                let actor = match fencing.actor {
                    Some(actor) => format!("node {}", actor.0),
                    None => "no node that saw it fail is left".to_owned(),
                };
                let agent = fencing.agent.as_deref().unwrap_or("none started here");
                let failure = match fencing.last_failure {
                    Some((by, NOT_RUN)) => {
                        format!(", which cannot be run on node {}: {}", by.0, repair(agent))
                    }
                    Some((by, result)) if agent == DEFAULT_AGENT => format!(
                        ", last failure {result} on node {}: it asks Pacemaker, which must run there and have a fence \
                         device for node {}",
                        by.0, node.0
                    ),
                    Some((by, result)) => format!(", last failure {result} on node {}", by.0),
                    None => String::new(),
                };
                format!(
                    "waiting {} s for node {} to be fenced: by {actor}, agent {agent}, attempt {}{failure}; \
                     if that node is surely down: gfs2ctl dlm fence-ack {}",
                    fencing.since.as_secs(),
                    node.0,
                    fencing.attempts,
                    node.0
                )
            })
            .collect()
    }
}
