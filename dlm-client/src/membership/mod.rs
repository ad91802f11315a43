//! Who is in the cluster, and messages that all members see in the same order: what corosync gives.
//!
//! A [`Membership`] knows groups (of CPG's kind). Within a group, messages and changes of the members come to all
//! members in one order ("virtual synchrony"): members that see a change together have seen the same messages before
//! it. Apart from that there is the quorum of the whole cluster. Both name the ring they belong to; what they say fits
//! together only when the rings are equal.

pub mod corosync;
mod frame;
pub mod lookup;
pub mod memory;
pub mod server;

use std::net::IpAddr;
use std::time::Duration;

use crate::NodeId;
use crate::wake::Wake;

/// A group of processes, at most one per node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// The lock daemons (`dlm:controld`).
    Daemons,
    /// The members of a lockspace (`dlm:ls:NAME`).
    Lockspace(String),
    /// Our own daemons' heartbeat (`dlm:beat`), which a stock daemon does not join.
    Beat,
}

impl Group {
    /// The name of the group, without the zero byte that belongs to it in CPG.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Daemons => "dlm:controld".to_owned(),
            Self::Lockspace(name) => format!("dlm:ls:{name}"),
            Self::Beat => "dlm:beat".to_owned(),
        }
    }

    /// The group of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "dlm:controld" => Some(Self::Daemons),
            "dlm:beat" => Some(Self::Beat),
            other => other
                .strip_prefix("dlm:ls:")
                .filter(|name| !name.is_empty())
                .map(|name| Self::Lockspace(name.to_owned())),
        }
    }
}

/// Why a member came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It joined the group.
    Join,
    /// It left the group.
    Leave,
    /// Its node went.
    NodeDown,
    /// Its node came (back) with the process in the group: a partition healed, or a pause ended.
    NodeUp,
    /// Its process died.
    ProcDown,
}

impl Reason {
    /// Did it go without saying so?
    #[must_use]
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::NodeDown | Self::ProcDown)
    }

    /// The word the stock daemon uses.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Leave => "leave",
            Self::NodeDown => "nodedown",
            Self::NodeUp => "nodeup",
            Self::ProcDown => "procdown",
        }
    }
}

/// One configuration of the cluster. Sequence numbers grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingId {
    /// The node that formed it.
    pub node: NodeId,
    /// Its number.
    pub seq: u64,
}

/// What a membership service tells.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberEvent {
    /// A message, of us too.
    Deliver {
        /// The group.
        group: Group,
        /// The sender, as the service knows it.
        from: NodeId,
        /// The message.
        bytes: Vec<u8>,
    },
    /// The members of a group changed.
    Confchg {
        /// The group.
        group: Group,
        /// All members now.
        members: Vec<NodeId>,
        /// Those that came with this change.
        joined: Vec<(NodeId, Reason)>,
        /// Those that went.
        left: Vec<(NodeId, Reason)>,
    },
    /// The ring that later events of the group belong to.
    Ring {
        /// The group.
        group: Group,
        /// The ring.
        ring: RingId,
    },
    /// The cluster as a whole changed.
    Quorum {
        /// May this part of the cluster act?
        quorate: bool,
        /// The ring.
        ring: RingId,
        /// All nodes in it.
        members: Vec<NodeId>,
        /// Nodes in it that were also in the ring before, but had gone in between.
        renewed: Vec<NodeId>,
    },
    /// The service is about to stop and asks whether that is all right.
    ShutdownAsked,
    /// The service is gone, and we with it: the reason.
    Lost(String),
}

/// A node of the cluster's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its id.
    pub node: NodeId,
    /// Its name; empty when it has none.
    pub name: String,
}

/// What does not change while the service runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Name of the cluster.
    pub name: String,
    /// Our node.
    pub us: NodeId,
    /// The nodes configured.
    pub nodes: Vec<NodeInfo>,
    /// Two nodes that are both quorate alone: whoever fences first goes on.
    pub two_node: bool,
    /// Is there a device that votes?
    pub qdevice: bool,
    /// How long a silent node is waited for before the ring is formed anew.
    pub token: Duration,
}

impl ClusterConfig {
    /// Is this the cluster that somebody means?
    ///
    /// # Errors
    /// It is another one.
    pub fn check_name(&self, wanted: &str) -> Result<(), MembershipError> {
        is_meant(&self.name, wanted)
    }
}

fn is_meant(ours: &str, wanted: &str) -> Result<(), MembershipError> {
    if ours == wanted {
        return Ok(());
    }
    Err(MembershipError::Unavailable {
        service: format!("cluster {wanted:?}"),
        reason: format!("this node is in cluster {ours:?}"),
        advice: "correct the cluster's name, or go to a node of that cluster",
    })
}

/// A call of the service failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MembershipError {
    /// It is not there.
    #[error("{service} is not available: {reason}; {advice}")]
    Unavailable {
        /// Which service.
        service: String,
        /// What happened.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// A call failed.
    #[error("{service}: {call} failed: {reason}")]
    Failed {
        /// Which service.
        service: String,
        /// The call.
        call: &'static str,
        /// What it answered.
        reason: String,
    },
    /// We are not in the group.
    #[error("not a member of {0}")]
    NotMember(String),
}

/// A membership service.
pub trait Membership {
    /// The cluster.
    fn config(&self) -> &ClusterConfig;

    /// Asks to join a group; its first events are a Confchg that names us and a Ring.
    ///
    /// # Errors
    /// What the service answered.
    fn join(&mut self, group: &Group) -> Result<(), MembershipError>;

    /// Asks to leave; the last event of the group is the Confchg in which we are gone.
    ///
    /// # Errors
    /// What the service answered.
    fn leave(&mut self, group: &Group) -> Result<(), MembershipError>;

    /// Sends to all members of a group, in order with all that is sent.
    ///
    /// # Errors
    /// What the service answered.
    fn send(&mut self, group: &Group, bytes: &[u8]) -> Result<(), MembershipError>;

    /// Throws a node out of the cluster.
    ///
    /// # Errors
    /// What the service answered.
    fn kill(&mut self, node: NodeId) -> Result<(), MembershipError>;

    /// Answers [`MemberEvent::ShutdownAsked`].
    ///
    /// # Errors
    /// What the service answered.
    fn answer_shutdown(&mut self, _allowed: bool) -> Result<(), MembershipError> {
        Ok(())
    }

    /// The addresses of a node, first the one the lock engine uses.
    ///
    /// # Errors
    /// What the service answered.
    fn addresses(&mut self, node: NodeId) -> Result<Vec<IpAddr>, MembershipError>;

    /// Lets `wake` end a [`Membership::poll`] under way. False: this service cannot be woken so, and has to be asked
    /// often.
    fn wake_by(&mut self, _wake: &Wake) -> bool {
        false
    }

    /// Waits at most `timeout` for events and returns those there are, quorum before groups. After
    /// [`MemberEvent::Lost`] there is nothing more to come.
    fn poll(&mut self, timeout: Duration) -> Vec<MemberEvent>;
}
