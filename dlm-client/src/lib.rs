//! A lock service that has never heard of GFS2: the DLM model as a trait, with backends.
//!
//! A [`Lockspace`] is a set of named resources. A client holds any number of locks on a resource, each in a
//! [`Mode`]; incompatible locks wait for each other, also two locks of the same client. Every call returns at
//! once; what came of it arrives as an [`Event`] on the one [`EventQueue`] of the lockspace.
//!
//! # The contract every backend keeps (`tests/contract.rs` runs it)
//!
//! 1. **One queue, total order.** All events of a lockspace go through one queue in the order of their effects.
//!    [`Event::Bast`] is never delivered for a mode that is compatible with the mode of the last [`Cast`] of that
//!    lock *at the master*. The holder may still see a Bast before the Cast it refers to when it took that Cast
//!    by [`Lockspace::request_now`] and has not processed it yet: remember the Bast, apply it after the Cast.
//! 2. **One operation at a time per lock.** From a call until its Cast was queued the lock is busy: another
//!    `convert` or `unlock` fails with [`LockError::Busy`] (`unlock` with [`Lkf::FORCEUNLOCK`] and `cancel` pass).
//! 3. **Every accepted call ends in exactly one Cast**, down-conversions too. `cancel` has no Cast of its own:
//!    the cancelled operation ends as [`Status::Canceled`], or as whatever overtook the cancel (a grant, say). A
//!    forced unlock ends the operation it cuts off, too: [`Status::Unlocked`] is then the Cast of both.
//! 4. **Dead ids.** A new request that ends in anything but [`Status::Granted`] leaves no lock behind, and
//!    [`Status::Unlocked`] ends one: the [`LockId`] is dead with that Cast, and is not reused while events that
//!    name it may still be queued. A failed *conversion* leaves the lock in its old mode, named in the Cast.
//! 5. **Grant order** is the DLM's: conversions before new requests, first come first served inside each, a
//!    conversion without [`Lkf::QUECVT`] may be granted in place. A queued request tells the holders in its way
//!    by a Bast, once per blocked mode and grant. [`Lkf::NOQUEUE`] ends in [`Status::Again`] instead of waiting,
//!    and tells nobody unless [`Lkf::NOQUEUEBAST`] is given.
//! 6. **Conversion deadlock.** A conversion that would wait for a conversion which waits for it ends in
//!    [`Status::Deadlock`] and keeps its old mode.
//! 7. **LVB.** 32 bytes per resource, moved as [`lvb::transfer`] says and only with [`Lkf::VALBLK`]: a grant that
//!    reads carries them in [`Cast::lvb`]; a conversion or unlock down from PW or EX writes the bytes given with
//!    the call. [`SbFlags::VALNOTVALID`] says that the last writer died or invalidated them. A resource without
//!    any lock (NL counts) may be forgotten together with its LVB.
//! 8. **Recovery.** Between [`Event::RecoverPrep`] and [`Event::RecoverDone`] no Cast is delivered, and no Cast that
//!    recovery made possible precedes the RecoverDone. [`Event::RecoverSlot`] names a member only after it can no
//!    longer write (fencing is the membership's business). The first event after a join is a RecoverDone.
//! 9. **[`Event::Fatal`]**: the lockspace is lost; stop writing now.
//! 10. Dropping the [`EventQueue`] is [`Leave::Abandon`]. No thread of a backend ever calls code of the user.
//! 11. The queue needs no bound of its own: per lock at most one Cast and, per blocked mode, one Bast are
//!     outstanding, so its length is bounded by the locks the user asked for.
//! 12. **POSIX locks** ([`Lockspace::plock`]) are apart from all this: every accepted operation ends in exactly one
//!     [`Event::Plock`] with its token, also while the lockspace recovers; a waiting one ends when it is granted or
//!     taken back. Ranges split and merge as POSIX says, locks of a member that is gone are gone. All members see the
//!     same order of operations.

#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::host_endian_bytes
    )
)]

pub mod backend;
pub mod control;
pub mod controld;
pub mod engine;
pub mod error;
pub mod event;
pub mod fence;
pub mod flags;
pub mod lvb;
pub mod membership;
pub mod midcomms;
pub mod mode;
pub mod plock;
pub mod resource;
#[cfg(any(test, feature = "testing"))]
pub mod sim;
pub mod transport;
pub mod wake;
pub mod wire;

use std::sync::Arc;

pub use backend::kernel::KernelDlm;
pub use backend::local::{LocalDlm, LocalHook};
pub use error::LockError;
pub use event::{Cast, Event, EventQueue, Slot, Status};
pub use flags::{Lkf, SbFlags};
pub use lvb::{LVB_LEN, Lvb};
pub use mode::Mode;
pub use plock::{Plock, PlockDone, PlockOp, PlockStatus};
pub use resource::ResName;

/// A lock of ours in a lockspace; see rule 4 of the contract for its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockId(pub u32);

/// A cluster node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// Who we are to the lock service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterInfo {
    /// Name of the cluster; empty when there is none.
    pub name: String,
    /// Our node.
    pub node: NodeId,
}

/// How a lockspace is joined.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JoinOptions {
    /// The lockspace is lost ([`LockError::NoSlots`] in its [`Event::Fatal`], the first event if it is so from the
    /// beginning) as soon as the slots of its members cannot be told. Without this they are then left out:
    /// [`Event::RecoverDone`] names none, and slots are 0. Only [`SlotSource::KernelLog`] can come to that.
    pub need_slots: bool,
}

impl Default for JoinOptions {
    fn default() -> Self {
        Self { need_slots: true }
    }
}

/// How well a backend knows the slots of the members (a journal id is a slot minus one).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotSource {
    /// From the lock service itself.
    Exact,
    /// Put together from what the kernel prints, which has no room for those of very many members; see
    /// [`JoinOptions::need_slots`].
    KernelLog,
    /// Not at all.
    Unknown,
}

/// What happens to our locks when our process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashSafety {
    /// The node counts as failed: it is fenced, peers recover before the locks go.
    Fenced,
    /// The locks stay as orphans in everybody's way until somebody purges them.
    Orphans,
    /// There is nobody else.
    SingleNode,
}

/// What a backend can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Knowledge of slots.
    pub slots: SlotSource,
    /// Are RecoverPrep, RecoverSlot and RecoverDone delivered?
    pub recovery_events: bool,
    /// What a crash of ours leaves behind.
    pub crash_safety: CrashSafety,
    /// Can another node ever want a lock of ours?
    pub has_peers: bool,
}

/// How a lockspace is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// All is written back: locks that remain are dropped, nobody recovers anything of ours.
    Clean,
    /// Peers treat us as a failed node and recover us.
    AsFailed,
    /// Just stop; peers find out by themselves.
    Abandon,
}

/// A host's way into lockspaces; one per cluster identity.
pub trait Dlm: Send + Sync {
    /// The cluster and our place in it.
    fn cluster(&self) -> ClusterInfo;

    /// Joins the lockspace `name` (1 to 64 bytes). The first event on the queue is a [`Event::RecoverDone`].
    ///
    /// # Errors
    /// A name that is too long, or what the lock service answered.
    fn join(&self, name: &str, options: &JoinOptions) -> Result<(Arc<dyn Lockspace>, EventQueue), LockError>;
}

/// A joined lockspace. All calls return at once; results are events. The crate documentation is the contract.
pub trait Lockspace: Send + Sync {
    /// Asks for a new lock on `name`. `token` is the caller's and comes back in every event of this lock.
    ///
    /// # Errors
    /// Flags that make no sense for a new request, or a lockspace already left.
    fn request(&self, name: &ResName, mode: Mode, flags: Lkf, token: u64) -> Result<LockId, LockError>;

    /// Asks for another mode on a lock held. `lvb` is what a conversion down from PW or EX writes under
    /// [`Lkf::VALBLK`].
    ///
    /// # Errors
    /// [`LockError::Busy`] while an operation is outstanding, an unknown lock, or flags that make no sense.
    fn convert(&self, id: LockId, mode: Mode, flags: Lkf, lvb: Option<&Lvb>) -> Result<(), LockError>;

    /// Gives the lock up entirely; ends in [`Status::Unlocked`]. `lvb` as in [`Lockspace::convert`].
    ///
    /// # Errors
    /// [`LockError::Busy`] while an operation is outstanding and [`Lkf::FORCEUNLOCK`] is not given; an unknown lock.
    fn unlock(&self, id: LockId, flags: Lkf, lvb: Option<&Lvb>) -> Result<(), LockError>;

    /// Takes back the outstanding request or conversion.
    ///
    /// # Errors
    /// [`LockError::NothingToCancel`] when nothing is outstanding any more: its Cast is on the queue.
    fn cancel(&self, id: LockId) -> Result<(), LockError>;

    /// [`Lockspace::request`] for a caller that can use the result at once (VMS: synchronous completion): a backend
    /// that can decide inside the call may return the Cast instead of queueing it. `None`: it will be queued.
    ///
    /// # Errors
    /// As [`Lockspace::request`].
    fn request_now(
        &self,
        name: &ResName,
        mode: Mode,
        flags: Lkf,
        token: u64,
    ) -> Result<(LockId, Option<Cast>), LockError> {
        self.request(name, mode, flags, token).map(|id| (id, None))
    }

    /// [`Lockspace::convert`], with the result at once where the backend can; see [`Lockspace::request_now`].
    ///
    /// # Errors
    /// As [`Lockspace::convert`].
    fn convert_now(
        &self,
        id: LockId,
        mode: Mode,
        flags: Lkf,
        lvb: Option<&Lvb>,
    ) -> Result<Option<Cast>, LockError> {
        self.convert(id, mode, flags, lvb).map(|()| None)
    }

    /// Does something with a POSIX lock; ends in an [`Event::Plock`] with `token`, which must be unique among the
    /// operations that have not ended.
    ///
    /// # Errors
    /// [`LockError::NoPlocks`] from a backend without them, [`LockError::PlockRange`], or a lockspace already left.
    fn plock(&self, _op: PlockOp, _lock: &Plock, _token: u64) -> Result<(), LockError> {
        Err(LockError::NoPlocks)
    }

    /// Takes back the waiting POSIX lock with `token`: its event says [`PlockStatus::Canceled`], or
    /// [`PlockStatus::Granted`] if that came first.
    ///
    /// # Errors
    /// [`LockError::NoPlocks`], a lockspace already left, or [`LockError::NoSuchPlock`] when it has ended: its event is
    /// on the queue.
    fn plock_cancel(&self, _token: u64) -> Result<(), LockError> {
        Err(LockError::NoPlocks)
    }

    /// Drops the locks that processes of this node left behind when they died ([`CrashSafety::Orphans`]); what they had
    /// written must have been recovered before. Calls that follow find them gone. Backends without orphans do nothing.
    ///
    /// On the kernel's device it is the locks of any process of this node, found through debugfs. A value block that a
    /// dead process could have written is marked as not valid. What cannot be dropped makes the lockspace
    /// [`Event::Fatal`].
    ///
    /// # Errors
    /// A lockspace already left, or debugfs that is not there.
    fn purge_orphans(&self) -> Result<(), LockError> {
        Ok(())
    }

    /// What this backend can do.
    fn caps(&self) -> Caps;

    /// Leaves. The queue ends after the events already on it; later calls fail with [`LockError::Left`].
    ///
    /// # Errors
    /// [`LockError::Left`] when it was left before, or what the lock service answered.
    fn leave(&self, how: Leave) -> Result<(), LockError>;
}
