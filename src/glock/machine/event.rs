//! What goes into the machine and what comes out: holders, events, actions, phases, and the rule who may join.

use std::panic::Location;
use std::time::Duration;

use bitflags::bitflags;
use dlm_client::Lkf;

use crate::glock::state::{HolderFlags, State};

/// A holder's number, unique within its glock.
pub type HolderId = u64;

/// Minimum hold time at start, and its upper bound.
pub const HOLD_MAX: Duration = Duration::from_millis(200);
/// Lower bound of the minimum hold time (10 jiffies).
pub const HOLD_MIN: Duration = Duration::from_millis(10);
/// What a local wait of more than [`LONG_WAIT`] adds to the hold time.
pub const HOLD_STEP_UP: Duration = Duration::from_millis(50);
/// What a reply that missed its target takes from the hold time.
pub const HOLD_STEP_DOWN: Duration = Duration::from_millis(25);
/// A local wait that asks for a longer hold time.
pub const LONG_WAIT: Duration = Duration::from_secs(1);

/// One who has or wants the lock.
#[derive(Clone, Copy, Debug)]
pub struct Holder {
    /// Its number.
    pub id: HolderId,
    /// What it asked for.
    pub state: State,
    /// How.
    pub flags: HolderFlags,
    /// The thread, unless NOPID.
    pub owner: Option<u32>,
    /// The call, for dumps.
    pub site: &'static Location<'static>,
    pub(super) granted: bool,
}

impl Holder {
    /// A request.
    #[must_use]
    pub const fn new(
        id: HolderId,
        state: State,
        flags: HolderFlags,
        owner: Option<u32>,
        site: &'static Location<'static>,
    ) -> Self {
        Self {
            id,
            state,
            flags,
            owner,
            site,
            granted: false,
        }
    }

    /// Has it the lock?
    #[must_use]
    pub const fn is_granted(&self) -> bool {
        self.granted
    }
}

/// Why a request was not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailReason {
    /// TRY: it would have to wait (`GLR_TRYFAILED`).
    TryFailed,
    /// NOBLOCK: it would need more than the cached lock.
    WouldBlock,
    /// The filesystem has withdrawn, or this lock is kept because its sync failed.
    Withdrawn,
    /// The lock service failed.
    Service,
}

/// How the lock service answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Granted.
    Granted,
    /// NOQUEUE: busy.
    Again,
    /// Conversion deadlock; the old mode stands.
    Deadlock,
    /// Cancelled; the old mode stands.
    Canceled,
    /// Anything else.
    Error,
}

/// What happens to a glock.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// Somebody wants the lock.
    Enqueue(Holder),
    /// A holder lets go, or a waiter gives up.
    Dequeue(HolderId),
    /// Another node waits: go down to this state (soon).
    Bast(State),
    /// We want to go down ourselves: cache pressure, unmount, NOCACHE.
    Demote(State),
    /// [`Action::Callback`] was carried out; `ignore` takes the demote back.
    CallbackDone {
        /// The object does not follow this request by a demote.
        ignore: bool,
    },
    /// A [`Action::Timer`] is due.
    Tick,
    /// One pass of [`Action::FlushKernel`] has ended.
    FlushDone,
    /// [`Action::Sync`] has ended.
    SyncDone {
        /// Everything is on disk.
        ok: bool,
    },
    /// [`Action::Invalidate`] has ended.
    InvalidateDone,
    /// The answer to [`Action::Lock`].
    Reply {
        /// How it ended.
        outcome: Outcome,
        /// What the lock service holds for us now.
        state: State,
        /// Recovery blocks locks: park a grant.
        hold: bool,
    },
    /// Recovery is over: deliver a parked grant.
    Unblock,
    /// The filesystem has withdrawn.
    Withdrawn,
    /// Our journal was replayed by somebody after the withdraw: locks kept back may go.
    Recovered,
}

/// A request to the lock service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockCall {
    /// The state asked for.
    pub target: State,
    /// DLM flags.
    pub flags: Lkf,
}

/// Why the node must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A sync failed; the lock is kept.
    SyncFailed,
    /// The lock service gave something that was not asked for.
    Protocol {
        /// Asked for.
        wanted: State,
        /// Got.
        got: State,
    },
}

/// What the driver has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wake this holder: it has the lock.
    Grant(HolderId),
    /// Wake this holder: it is off the list.
    Fail(HolderId, FailReason),
    /// Empty the kernel's cache of this inode (SH: dirty pages only, and write-protect), then FlushDone.
    FlushKernel {
        /// Where the transition goes.
        target: State,
        /// Counts the repetitions.
        pass: u32,
    },
    /// Put on disk what the lock covers, then SyncDone.
    Sync {
        /// Where the transition goes.
        target: State,
    },
    /// Forget what may not be cached in the target state, then InvalidateDone.
    Invalidate {
        /// UN or DF.
        target: State,
    },
    /// Ask the lock service, then Reply.
    Lock(LockCall),
    /// Take the outstanding request back; it ends in its own Reply.
    Cancel,
    /// Tell the object that the lock is wanted, then CallbackDone.
    Callback {
        /// By another node.
        remote: bool,
        /// The state it shall go down to.
        wanted: State,
    },
    /// Send a Tick at this time.
    Timer(Duration),
    /// Whoever waits for the end of a demote: it has come.
    DemoteDone,
    /// Stop the node.
    Withdraw(Cause),
}

/// Whether an object must be read before use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instantiate {
    /// It is there.
    Ready,
    /// Read it, then [`super::Machine::end_instantiate`].
    Run,
    /// Somebody else is reading it.
    Wait,
}

/// The step of the transition under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// None.
    Idle,
    /// The kernel's cache is being emptied, in repeated passes until no page was served meanwhile.
    Flush {
        /// How many passes came before.
        pass: u32,
        /// A page was served during this pass.
        served: bool,
        /// The pass is over; holders that serve pages are not.
        draining: bool,
    },
    /// Syncing.
    Sync,
    /// Invalidating.
    Invalidate,
    /// The lock service was asked, or its grant is parked.
    Dlm,
    /// A sync failed: the lock stays as it is for ever.
    Stuck,
}

bitflags! {
    /// The kernel's glock flags that belong to the machine (`GLF_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct GlockFlags: u32 {
        /// Demote now.
        const DEMOTE = 0x1;
        /// Demote when the hold time is over.
        const PENDING_DEMOTE = 0x2;
        /// The transition under way is a demote.
        const DEMOTE_IN_PROGRESS = 0x4;
        /// Between the start of a transition to UN or DF and the end of its invalidate.
        const INVALIDATE_IN_PROGRESS = 0x8;
        /// The lock service was asked.
        const PENDING_REPLY = 0x10;
        /// A grant is parked by recovery.
        const HAVE_FROZEN_REPLY = 0x20;
        /// No lock at the lock service yet.
        const INITIAL = 0x40;
        /// The request may have to wait for other nodes.
        const BLOCKING = 0x80;
        /// The object must be read before use.
        const INSTANTIATE_NEEDED = 0x100;
        /// Somebody reads it.
        const INSTANTIATE_IN_PROG = 0x200;
    }
}

/// What a machine must know of its lock's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// A demote for another node waits for the minimum hold time (inodes).
    pub has_hold_time: bool,
    /// Nothing is cached under it: no sync, no invalidate.
    pub presence_only: bool,
    /// The kernel may cache something under it.
    pub kernel_cached: bool,
    /// It covers journaled blocks: refused after a withdraw, kept until recovery.
    pub journaled: bool,
    /// A lock value block travels with it.
    pub has_lvb: bool,
}

/// May `new` join, given the state of the lock and one current holder (RUNTIME 1.4)?
#[must_use]
pub fn may_grant(state: State, current: Option<&Holder>, new: &Holder) -> bool {
    if let Some(current) = current {
        return match current.state {
            State::Ex => {
                new.state == State::Ex
                    && new.flags.contains(HolderFlags::NODE_SCOPE)
                    && current.flags.contains(HolderFlags::NODE_SCOPE)
            }
            State::Sh | State::Df => new.state == current.state,
            State::Un => false,
        };
    }
    if new.state == state {
        return true;
    }
    if new.flags.contains(HolderFlags::EXACT) {
        return false;
    }
    match state {
        State::Ex => matches!(new.state, State::Sh | State::Df),
        State::Sh | State::Df => {
            new.flags.contains(HolderFlags::ANY) && matches!(new.state, State::Sh | State::Df)
        }
        State::Un => false,
    }
}
