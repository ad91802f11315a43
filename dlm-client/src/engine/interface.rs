//! What goes into an [`super::Engine`] and what comes out.

use std::time::Duration;

use crate::wire::{LockspaceId, Payload};
use crate::{Event, NodeId};

/// What an engine is made for. Nothing of it changes while the lockspace is joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Our node.
    pub node: NodeId,
    /// The lockspace, for log lines; the owner of the engine puts it on packets.
    pub lockspace: LockspaceId,
    /// Static masters: the directory node of a name is its master (`nodir=1`). All members must agree.
    pub nodir: bool,
    /// The process id our locks carry.
    pub pid: u32,
    /// Where recovery sequence and handles start: random, so that answers to an earlier life of ours are recognised.
    pub first_seq: u64,
    /// Unanswered recovery questions are asked again after this (`recover_timer`, 5 s).
    pub recover_timer: Duration,
    /// Unused resources are forgotten after this (`toss_secs`, 10 s), checked twice in that time. Zero: at once, where
    /// we are their directory too.
    pub toss: Duration,
}

impl Config {
    /// The kernel's defaults.
    #[must_use]
    pub const fn new(node: NodeId, lockspace: LockspaceId, first_seq: u64) -> Self {
        Self {
            node,
            lockspace,
            nodir: false,
            pid: 0,
            first_seq,
            recover_timer: Duration::from_secs(5),
            toss: Duration::from_secs(10),
        }
    }
}

/// A member of the lockspace, as the membership layer configures it before a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its node.
    pub node: NodeId,
    /// Its share of the directory; 0 is none (unless all are 0). The usual weight is 1.
    pub weight: u32,
    /// It left and came back since the last start we were given: what it held before is gone.
    pub renewed: bool,
}

/// The membership's word that all members have stopped, and who they are now.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Start {
    /// All members, we included.
    pub members: Vec<Member>,
    /// Of the members that are gone (or renewed) since the start before: those that failed, that is which left the
    /// cluster and were fenced. The others left cleanly and have nothing that must be recovered.
    pub failed: Vec<NodeId>,
}

/// A timer the engine asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerId(pub u64);

/// Importance of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something that cannot be, mostly a peer's doing.
    Error,
    /// Steps of recovery.
    Info,
    /// Expected races.
    Debug,
}

/// What the engine wants done. Outputs are to be carried out in the order they come out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send to a member, in order with all else sent to it.
    Send {
        /// To whom; never ourselves.
        to: NodeId,
        /// What.
        payload: Payload,
    },
    /// For the user's queue.
    Event(Event),
    /// Give the id back through [`super::Engine::timer`] after this time. Timers are never taken back: one that lost
    /// its meaning is ignored.
    Timer {
        /// Which.
        id: TimerId,
        /// When, from now.
        after: Duration,
    },
    /// The lockspace is shared with this node now: connect, and count it as a user of the link.
    AddMember(NodeId),
    /// It is no more.
    RemoveMember(NodeId),
    /// The recovery of the last start is done: all locks work (the kernel's word to dlm_controld is `event_done`).
    RecoveryDone {
        /// The sequence number this recovery ran with.
        seq: u64,
        /// Generation of the slots.
        generation: u32,
    },
    /// A line for the log.
    Log {
        /// How important.
        level: Level,
        /// The line.
        text: String,
    },
}
