//! The DLM of the kernel, through its misc device: locks that survive us, and its log for what the device does not tell.
//!
//! Calls are written by a thread of their own, for a write sleeps as long as the lockspace recovers; another thread reads
//! what came of them. Invariants:
//!
//! * every lock is persistent: when this process dies, its locks stay in the way of others as orphans, until
//!   [`Lockspace::purge_orphans`] or a request with [`Lkf::ORPHAN`]; nobody is granted what a dead writer may have left
//!   half written;
//! * no result is handed out before the kernel's log was read to its end after it: a grant that a recovery brought about
//!   comes after the [`Event::RecoverPrep`] of that recovery, and is held back until its [`Event::RecoverDone`];
//! * what cannot be understood or followed is [`Event::Fatal`], not a guess.
//!
//! Orphans are dropped one by one (`orphans`), as the kernel's list of locks in debugfs names them ([`list`]), and not by
//! the command it has for that: at that one 6.12 panics if a process died while a request of its waited, or is only just
//! dying (list corruption in `_unlock_lock` below `do_purge`; the second seen once in the contract suite, where one
//! session's end and the next one's beginning met). Nobody else may use it on such a node either (`dlm_ls_purge` of
//! libdlm, or the message of another node): what the kernel ended itself stays on its list until the lockspace is left. A
//! process should purge only once the one before it has ended wholly (its end waited for, not only its file locks): what
//! becomes an orphan while the list is read may be missed. In a PID namespace of its own it cannot see whether a process
//! is dead, and so not what `orphans` says of requests without an answer.
//!
//! Where this backend is weaker than the contract: the kernel does not tell whether a member left or failed, so every
//! member that goes is named by a RecoverSlot (a journal that was left clean is looked at once too often); POSIX locks
//! are refused ([`LockError::NoPlocks`]: the kernel takes them from its own file systems only); the slots of more members
//! than the log has room for are not known ([`LockError::NoSlots`]); [`Leave::AsFailed`] is [`Leave::Abandon`]; before
//! kernel 6.12 callbacks are in order per lock, but not between locks; a value block is written by an unlock only if an
//! earlier call on the lock had [`Lkf::VALBLK`].

pub mod abi;
mod books;
mod device;
pub mod list;
mod log;
mod orphans;
mod reader;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::event::{EventSender, queue};
use crate::{
    Caps, ClusterInfo, CrashSafety, Dlm, Event, EventQueue, JoinOptions, Leave, Lkf, LockError, LockId,
    Lockspace, Lvb, Mode, ResName, SlotSource,
};
use books::{Asked, Books, Call};
pub use device::{Device, Kernel, Machine};
use writer::{Outbox, Task};

/// How long a handle that is dropped waits for the device to be closed: a write that the kernel holds until its recovery
/// ends may take longer.
const CLOSE: Duration = Duration::from_secs(5);

/// The kernel's lock manager.
#[derive(Clone)]
pub struct KernelDlm {
    kernel: Arc<dyn Kernel>,
    cluster: ClusterInfo,
}

impl std::fmt::Debug for KernelDlm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelDlm")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl KernelDlm {
    /// The lock manager of this machine's kernel.
    ///
    /// # Errors
    /// No DLM in the kernel, no dlm_controld, no permission.
    pub fn new() -> Result<Self, LockError> {
        Self::with(Arc::new(Machine))
    }

    /// A lock manager behind the trait.
    ///
    /// # Errors
    /// What it says of its cluster.
    pub fn with(kernel: Arc<dyn Kernel>) -> Result<Self, LockError> {
        let cluster = kernel.cluster()?;
        Ok(Self { kernel, cluster })
    }
}

impl Dlm for KernelDlm {
    fn cluster(&self) -> ClusterInfo {
        self.cluster.clone()
    }

    fn join(&self, name: &str, options: &JoinOptions) -> Result<(Arc<dyn Lockspace>, EventQueue), LockError> {
        ResName::new(name.as_bytes())?;
        // Whether the kernel still is as it was when we came.
        self.kernel.cluster()?;
        let (sender, events) = queue();
        let shared = Arc::new(Shared {
            books: Mutex::new(State::default()),
            outbox: Outbox::default(),
            closed: Closed::default(),
            sender,
            us: self.cluster.node,
            name: name.to_owned(),
            need_slots: options.need_slots,
        });
        writer::start(Arc::clone(&self.kernel), Arc::clone(&shared))?;
        let kernel = Arc::clone(&self.kernel);
        Ok((Arc::new(KernelLockspace { kernel, shared }), events))
    }
}

/// The books, and what is held back.
#[derive(Debug, Default)]
struct State {
    books: Books,
    /// Results that wait for the end of a recovery.
    held: Vec<Event>,
    /// Is what comes to be held back?
    settled: bool,
    left: bool,
}

/// Whether the device is closed, or never was open.
#[derive(Debug, Default)]
struct Closed {
    closed: Mutex<bool>,
    changed: Condvar,
}

impl Closed {
    fn set(&self) {
        *self.closed.lock() = true;
        self.changed.notify_all();
    }

    /// Waits for it; false: in vain.
    fn wait(&self, limit: Duration) -> bool {
        let mut closed = self.closed.lock();
        self.changed.wait_while_for(&mut closed, |closed| !*closed, limit);
        *closed
    }
}

/// What the threads and the handle share.
#[derive(Debug)]
struct Shared {
    books: Mutex<State>,
    outbox: Outbox,
    closed: Closed,
    sender: EventSender,
    us: crate::NodeId,
    name: String,
    need_slots: bool,
}

impl Shared {
    /// Hands an event out, or holds it back. False: nobody listens any more.
    fn deliver(&self, state: &mut State, event: Event) -> bool {
        if state.left {
            return true;
        }
        if state.settled {
            return self.sender.send(event);
        }
        state.held.push(event);
        true
    }

    /// The lockspace is lost: the user is told, and no call is taken any more.
    fn fatal(&self, error: LockError) {
        let mut state = self.books.lock();
        if !std::mem::replace(&mut state.left, true) {
            tracing::error!("lockspace {}: {error}", self.name);
            let _nobody_listens = self.sender.send(Event::Fatal(error));
        }
        drop(state);
        self.outbox.push_last(Task::Leave(Leave::Abandon));
    }
}

struct KernelLockspace {
    kernel: Arc<dyn Kernel>,
    shared: Arc<Shared>,
}

impl KernelLockspace {
    /// Notes a call in the books and queues its write.
    fn call(&self, note: impl FnOnce(&mut Books) -> Result<Call, LockError>) -> Result<LockId, LockError> {
        let mut state = self.shared.books.lock();
        if state.left {
            return Err(LockError::Left);
        }
        let call = note(&mut state.books)?;
        let id = call.id;
        // Under the lock: writes are in the order of the books.
        self.shared.outbox.push(Task::Call(call));
        Ok(id)
    }
}

impl Lockspace for KernelLockspace {
    fn request(&self, name: &ResName, mode: Mode, flags: Lkf, token: u64) -> Result<LockId, LockError> {
        self.call(|books| {
            let id = books.request(mode, flags, token)?;
            let name = *name;
            Ok(Call {
                id,
                what: Asked::Request { name, mode, flags },
            })
        })
    }

    fn convert(&self, id: LockId, mode: Mode, flags: Lkf, lvb: Option<&Lvb>) -> Result<(), LockError> {
        self.call(|books| books.convert(id, mode, flags, lvb)).map(|_| ())
    }

    fn unlock(&self, id: LockId, flags: Lkf, lvb: Option<&Lvb>) -> Result<(), LockError> {
        self.call(|books| books.unlock(id, flags, lvb)).map(|_| ())
    }

    fn cancel(&self, id: LockId) -> Result<(), LockError> {
        self.call(|books| books.cancel(id)).map(|_| ())
    }

    fn purge_orphans(&self) -> Result<(), LockError> {
        let state = self.shared.books.lock();
        if state.left {
            return Err(LockError::Left);
        }
        self.kernel.has_list()?;
        self.shared.outbox.push(Task::Purge);
        Ok(())
    }

    fn caps(&self) -> Caps {
        Caps {
            slots: SlotSource::KernelLog,
            recovery_events: true,
            crash_safety: CrashSafety::Orphans,
            has_peers: true,
        }
    }

    fn leave(&self, how: Leave) -> Result<(), LockError> {
        let mut state = self.shared.books.lock();
        if std::mem::replace(&mut state.left, true) {
            return Err(LockError::Left);
        }
        self.shared.outbox.push_last(Task::Leave(how));
        Ok(())
    }
}

impl Drop for KernelLockspace {
    /// Waits until the device is closed, if it can be: who comes next in this process may purge, and must find orphans
    /// and not locks that the kernel is still taking from us.
    fn drop(&mut self) {
        self.shared.books.lock().left = true;
        self.shared.outbox.push_last(Task::Leave(Leave::Abandon));
        if !self.shared.closed.wait(CLOSE) {
            tracing::warn!(
                "lockspace {}: the kernel has not let the device go after {CLOSE:?}",
                self.shared.name
            );
        }
    }
}
