//! The table with real threads over the local lock service.

mod nodes;
mod stress;
mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use dlm_client::{
    Caps, Cast, Dlm, EventQueue, JoinOptions, Leave, Lkf, LocalDlm, LocalHook, LockError, LockId, Lockspace,
    Lvb, Mode, ResName,
};
use parking_lot::Mutex;

use super::*;
use crate::error::{Errno, FsError};
use HolderFlags as F;
use State::{Df, Ex, Sh, Un};

const NONE: F = F::empty();
const SOON: Duration = Duration::from_secs(20);

/// Hides that the local lock service answers inside the call: everything comes by the event queue, as from afar.
/// Optionally calls the first few calls busy.
struct FromAfar {
    space: Arc<dyn Lockspace>,
    busy: AtomicU32,
}

impl Lockspace for FromAfar {
    fn request(&self, name: &ResName, mode: Mode, flags: Lkf, token: u64) -> Result<LockId, LockError> {
        self.space.request(name, mode, flags, token)
    }

    fn convert(&self, id: LockId, mode: Mode, flags: Lkf, lvb: Option<&Lvb>) -> Result<(), LockError> {
        let left = |busy: u32| busy.checked_sub(1);
        if self
            .busy
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, left)
            .is_ok()
        {
            return Err(LockError::Busy(id));
        }
        self.space.convert(id, mode, flags, lvb)
    }

    fn unlock(&self, id: LockId, flags: Lkf, lvb: Option<&Lvb>) -> Result<(), LockError> {
        self.space.unlock(id, flags, lvb)
    }

    fn cancel(&self, id: LockId) -> Result<(), LockError> {
        self.space.cancel(id)
    }

    fn caps(&self) -> Caps {
        self.space.caps()
    }

    fn leave(&self, how: Leave) -> Result<(), LockError> {
        self.space.leave(how)
    }
}

/// One mounted node.
struct Node {
    table: GlockTable,
    hook: LocalHook,
    withdrawn: Arc<Mutex<Vec<String>>>,
    events: Arc<Mutex<Vec<dlm_client::Event>>>,
}

fn join(dlm: &LocalDlm, from_afar: bool, options: TableOptions) -> Node {
    let (space, queue): (Arc<dyn Lockspace>, EventQueue) = dlm.join("fs", &JoinOptions::default()).unwrap();
    let space = if from_afar {
        Arc::new(FromAfar {
            space,
            busy: AtomicU32::new(0),
        })
    } else {
        space
    };
    node(dlm, space, queue, options)
}

fn node(dlm: &LocalDlm, space: Arc<dyn Lockspace>, queue: EventQueue, options: TableOptions) -> Node {
    let withdrawn = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::new(Mutex::new(Vec::new()));
    let (errors, log) = (Arc::clone(&withdrawn), Arc::clone(&events));
    let options = TableOptions {
        on_withdraw: Arc::new(move |error| errors.lock().push(error.to_string())),
        on_event: Arc::new(move |event| log.lock().push(event)),
        ..options
    };
    let table = GlockTable::new(space, queue, options).unwrap();
    Node {
        table,
        hook: dlm.hook("fs").unwrap(),
        withdrawn,
        events,
    }
}

fn single() -> Node {
    join(&LocalDlm::new(), false, TableOptions::default())
}

impl Node {
    fn get(&self, name: GlockName, ops: &Arc<Recorder>) -> Arc<Glock> {
        let ops: Arc<dyn GlockOps> = Arc::clone(ops) as Arc<dyn GlockOps>;
        self.table.get(name, &ops).unwrap()
    }

    fn presence(&self, name: GlockName) -> Arc<Glock> {
        let ops: Arc<dyn GlockOps> = Arc::new(Presence);
        self.table.get(name, &ops).unwrap()
    }
}

/// Records the calls; fails or panics when told to.
#[derive(Default)]
struct Recorder {
    calls: Mutex<Vec<String>>,
    fail_sync: AtomicBool,
    panic_sync: AtomicBool,
    fail_instantiate: AtomicBool,
    panic_instantiate: AtomicBool,
    ignore_remote: AtomicBool,
    /// What fill_lvb writes, if anything.
    lvb: Mutex<Option<Lvb>>,
    seen_lvb: Mutex<Option<Lvb>>,
}

impl Recorder {
    fn note(&self, call: impl Into<String>) {
        self.calls.lock().push(call.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock())
    }
}

impl GlockOps for Recorder {
    fn sync(&self, glock: &Glock) -> Result<(), FsError> {
        assert!(!self.panic_sync.load(Ordering::SeqCst), "told to");
        self.note(format!("sync {}", glock.held_state()));
        if self.fail_sync.load(Ordering::SeqCst) {
            return Err(FsError::Inconsistent("disk on fire".into()));
        }
        Ok(())
    }

    fn invalidate(&self, glock: &Glock, target: State) {
        self.note(format!("invalidate {} to {target}", glock.held_state()));
    }

    fn instantiate(&self, _glock: &Glock) -> Result<(), FsError> {
        assert!(!self.panic_instantiate.load(Ordering::SeqCst), "told to");
        self.note("instantiate");
        if self.fail_instantiate.load(Ordering::SeqCst) {
            return Err(FsError::Posix(Errno::ESTALE));
        }
        Ok(())
    }

    fn held(&self, _glock: &Glock, state: State, _flags: HolderFlags) -> Result<(), FsError> {
        self.note(format!("held {state}"));
        Ok(())
    }

    fn callback(&self, _glock: &Glock, remote: bool, wanted: State) -> Verdict {
        self.note(format!(
            "callback {} {wanted}",
            if remote { "remote" } else { "local" }
        ));
        if remote && self.ignore_remote.load(Ordering::SeqCst) {
            Verdict::Ignore
        } else {
            Verdict::Demote
        }
    }

    fn dump(&self, glock: &Glock, f: &mut dyn std::fmt::Write) -> std::fmt::Result {
        writeln!(f, " I: n:1/{}", glock.name().number)
    }

    fn fill_lvb(&self, _glock: &Glock, lvb: &mut Lvb) {
        if let Some(bytes) = *self.lvb.lock() {
            *lvb = bytes;
        }
    }

    fn use_lvb(&self, _glock: &Glock, lvb: &Lvb) {
        *self.seen_lvb.lock() = Some(*lvb);
    }
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + SOON;
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// An answer that never comes from the local service, made up.
fn cast(id: LockId, token: u64, status: dlm_client::Status, mode: Mode) -> Cast {
    Cast {
        id,
        token,
        status,
        sb: dlm_client::SbFlags::empty(),
        mode,
        lvb: None,
    }
}
