//! What the machines ask their surroundings to do.

use std::fmt;
use std::time::Duration;

use crate::membership::Group;
use crate::{NodeId, PlockDone};

/// The time, as the surroundings see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Since some fixed moment; never goes back, and goes on while the machine is suspended.
    pub mono: Duration,
    /// Seconds since 1970.
    pub wall: u64,
}

/// A running fence agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Job(pub u64);

/// How loud a line of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For those who look into it.
    Debug,
    /// A change of state.
    Info,
    /// Somebody should know.
    Error,
}

/// A member the lock engine starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartMember {
    /// The member.
    pub node: NodeId,
    /// Its share of the resources to master; 0: none.
    pub weight: u32,
}

/// A member that is no longer what it was when the engine was last started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The member. One that came back is in the list of members, too.
    pub node: NodeId,
    /// Did it fail? It can no longer write; what it left must be recovered.
    pub failed: bool,
}

/// The start of the lock engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Grows with every start.
    pub seq: u32,
    /// The lockspace's global id.
    pub global_id: u32,
    /// Is it our first start?
    pub joining: bool,
    /// No directory: the master follows from the name.
    pub nodir: bool,
    /// The members, by id.
    pub members: Vec<StartMember>,
    /// Who has gone, or gone and come back, since the last start.
    pub gone: Vec<Gone>,
}

/// What a lock engine is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Stop: no lock is granted until the next start. Takes effect before the call returns.
    Stop,
    /// Recover with these members, then go on.
    Start(Start),
    /// We have left the lockspace.
    Left,
}

/// Why we can no longer be part of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fatal {
    /// The membership service is gone.
    Lost(String),
    /// Nodes we took for dead are back, and it was not us who had the quorum meanwhile: they have taken us for dead.
    Evicted {
        /// Those nodes.
        peers: Vec<NodeId>,
    },
    /// We stood still for so long that the others must have given us up.
    Paused {
        /// How long.
        pause: Duration,
    },
    /// Another node says that it fenced us.
    Fenced {
        /// That node.
        by: NodeId,
    },
    /// The group says that we have left it; we have not.
    ThrownOut {
        /// The group.
        group: String,
    },
    /// The others speak a protocol that we do not.
    Protocol {
        /// What they run: daemons.
        daemon: [u16; 3],
        /// What they run: lock engines.
        engine: [u16; 3],
    },
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(reason) => write!(f, "the membership service is gone: {reason}"),
            Self::Evicted { peers } => {
                let peers: Vec<String> = peers.iter().map(|node| node.0.to_string()).collect();
                write!(
                    f,
                    "evicted: node {} was taken for dead and is back, so it took us for dead",
                    peers.join(", ")
                )
            }
            Self::Paused { pause } => {
                write!(
                    f,
                    "this node stood still for {pause:?} and was given up by the others"
                )
            }
            Self::Fenced { by } => write!(f, "node {} has fenced this node", by.0),
            Self::ThrownOut { group } => write!(f, "thrown out of {group}"),
            Self::Protocol { daemon, engine } => write!(
                f,
                "the cluster runs daemon protocol {daemon:?} and lock protocol {engine:?}; this node speaks 3.1 and 1.1"
            ),
        }
    }
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Join a group.
    Join(Group),
    /// Leave a group.
    Leave(Group),
    /// Send to a group.
    Send {
        /// The group.
        group: Group,
        /// The message.
        bytes: Vec<u8>,
    },
    /// Throw a node out of the cluster.
    Kill(NodeId),
    /// Tell the membership service whether it may stop.
    AnswerShutdown(bool),
    /// Run a fence agent; its end comes back as [`super::Input::AgentDone`].
    RunAgent {
        /// Its handle.
        job: Job,
        /// The victim.
        node: NodeId,
        /// The program.
        agent: String,
        /// What it gets on its standard input.
        input: String,
    },
    /// Kill a running agent; its end is of no interest.
    StopAgent(Job),
    /// Tell the lock engine.
    Engine {
        /// The lockspace.
        lockspace: String,
        /// What.
        order: Order,
    },
    /// An operation on POSIX locks ended.
    Plock {
        /// The lockspace.
        lockspace: String,
        /// Which, and how.
        done: PlockDone,
    },
    /// We have not heard from ourselves through the cluster for too long: write nothing until [`Action::Resume`].
    Suspend,
    /// We have, again, and nobody has given us up.
    Resume,
    /// It is over: stop writing, now. Comes once.
    Fatal(Fatal),
    /// For the log.
    Log(Level, String),
}

/// The list actions are gathered in.
#[derive(Debug, Default)]
pub(super) struct Out(pub(super) Vec<Action>);

impl Out {
    pub(super) fn push(&mut self, action: Action) {
        self.0.push(action);
    }

    pub(super) fn debug(&mut self, text: String) {
        self.push(Action::Log(Level::Debug, text));
    }

    pub(super) fn info(&mut self, text: String) {
        self.push(Action::Log(Level::Info, text));
    }

    pub(super) fn error(&mut self, text: String) {
        self.push(Action::Log(Level::Error, text));
    }
}
