//! The engine's state, its outputs, and the life of its locks.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::barrier::Recovery;
use super::calls::Held;
use super::interface::{Config, Level, Output, Start, TimerId};
use super::members::{Gone, MemberState};
use super::store::{Bits, Index, Lkb, NONE, RsbBits, Store};
use crate::wire::{Message, Payload, RcomSlot, Status as RecoverStatus, WireResult};
use crate::{Cast, Event, LockError, LockId, Mode, NodeId, SbFlags, Status};

/// One lockspace on one node. The module documentation says how it is driven.
#[derive(Debug)]
pub struct Engine {
    pub(super) config: Config,
    pub(super) store: Store,
    out: VecDeque<Output>,
    /// Casts and Basts that must not come before RecoverDone.
    delayed: VecDeque<Event>,
    /// Locks whose last Cast was queued, to be freed at the end of the call.
    ended: Vec<Index>,
    /// Locks may be asked for and granted.
    pub(super) running: bool,
    /// Between RecoverDone and the next stop: events go to the user at once.
    pub(super) delivering: bool,
    /// A start is under way or done.
    pub(super) started: bool,
    /// Messages about locks are kept for the end of recovery.
    pub(super) blocked: bool,
    /// The lockspace is lost.
    failed: bool,
    pub(super) recover_seq: u64,
    pub(super) rcom_id: u64,
    pub(super) status: RecoverStatus,
    pub(super) members: BTreeMap<NodeId, MemberState>,
    pub(super) gone: Gone,
    pub(super) low: NodeId,
    pub(super) table: Vec<NodeId>,
    pub(super) our_slot: u16,
    pub(super) generation: u32,
    pub(super) slots: Vec<RcomSlot>,
    pub(super) recovery: Option<Recovery>,
    pub(super) requestqueue: VecDeque<(NodeId, Message)>,
    pub(super) held: VecDeque<Held>,
    next_timer: u64,
    pub(super) scan_timer: Option<TimerId>,
    pub(super) epoch: u32,
    /// How often we were wrongly asked for a name, by its hash.
    pub(super) wrongly_asked: BTreeMap<u32, u32>,
}

impl Engine {
    /// A lockspace that was not started yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            store: Store::new(),
            out: VecDeque::new(),
            delayed: VecDeque::new(),
            ended: Vec::new(),
            running: false,
            delivering: false,
            started: false,
            blocked: true,
            failed: false,
            recover_seq: config.first_seq,
            rcom_id: config.first_seq.rotate_left(32),
            status: RecoverStatus::empty(),
            members: BTreeMap::new(),
            gone: Gone::default(),
            low: config.node,
            table: Vec::new(),
            our_slot: 0,
            generation: 0,
            slots: Vec::new(),
            recovery: None,
            requestqueue: VecDeque::new(),
            held: VecDeque::new(),
            next_timer: 1,
            scan_timer: None,
            epoch: 0,
            wrongly_asked: BTreeMap::new(),
            config,
        }
    }

    /// What is to be done next.
    pub fn output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// Our node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.config.node
    }

    /// The membership stops the lockspace: no lock is granted until the next start is done.
    pub fn stop(&mut self) {
        if self.failed {
            return;
        }
        if self.running {
            self.out.push_back(Output::Event(Event::RecoverPrep));
        }
        self.running = false;
        self.delivering = false;
        self.started = false;
        self.blocked = true;
        self.recover_seq = self.recover_seq.wrapping_add(1);
        self.status = RecoverStatus::empty();
        self.slots.clear();
        self.recovery = None;
        self.scan_timer = None;
    }

    /// The membership starts the lockspace with these members, after all of them have stopped.
    pub fn start(&mut self, start: &Start) {
        if self.failed {
            return;
        }
        if self.started {
            self.log(Level::Error, || {
                "start ignored: the lockspace was not stopped".to_owned()
            });
            return;
        }
        self.started = true;
        self.recover_seq = self.recover_seq.wrapping_add(1);
        self.begin_recovery(start);
        self.reap();
    }

    /// A message of this lockspace from a peer.
    pub fn receive(&mut self, from: NodeId, payload: Payload) {
        if self.failed || from == self.config.node {
            return;
        }
        match payload {
            Payload::Message(message) => self.receive_message(from, message),
            Payload::Rcom(rcom) => self.receive_rcom(from, rcom),
        }
        self.reap();
    }

    /// A timer is due.
    pub fn timer(&mut self, id: TimerId) {
        if self.failed {
            return;
        }
        if self.scan_timer == Some(id) {
            self.scan_timer = None;
            self.scan_unused();
        } else {
            self.recovery_timer(id);
        }
        self.reap();
    }

    /// The lockspace is lost: say so, once, and do nothing more.
    pub(super) fn fail(&mut self, why: String) {
        if self.failed {
            return;
        }
        self.failed = true;
        self.running = false;
        self.delivering = false;
        self.recovery = None;
        self.out
            .push_back(Output::Event(Event::Fatal(LockError::Service(why))));
    }

    pub(super) const fn is_failed(&self) -> bool {
        self.failed
    }

    pub(super) fn log(&mut self, level: Level, text: impl FnOnce() -> String) {
        let text = text();
        self.out.push_back(Output::Log { level, text });
    }

    pub(super) fn emit(&mut self, output: Output) {
        self.out.push_back(output);
    }

    pub(super) fn send(&mut self, to: NodeId, payload: Payload) {
        debug_assert_ne!(to, self.config.node, "{payload:?}");
        self.out.push_back(Output::Send { to, payload });
    }

    pub(super) fn set_timer(&mut self, after: Duration) -> TimerId {
        let id = TimerId(self.next_timer);
        self.next_timer = self.next_timer.wrapping_add(1);
        self.out.push_back(Output::Timer { id, after });
        id
    }

    /// An event of a lock, now or when recovery is done.
    fn deliver(&mut self, event: Event) {
        if self.delivering {
            self.out.push_back(Output::Event(event));
        } else {
            self.delayed.push_back(event);
        }
    }

    /// Recovery is done: the user hears of it, and then what was held back.
    pub(super) fn deliver_delayed(&mut self) {
        self.delivering = true;
        while let Some(event) = self.delayed.pop_front() {
            self.out.push_back(Output::Event(event));
        }
    }

    /// The end of an operation, told to its user; nothing for a lock of another node.
    pub(super) fn queue_cast(&mut self, index: Index, result: WireResult) {
        let lock = self.store.locks.at_mut(index);
        if lock.is_master_copy() {
            return;
        }
        let read = lock.bits.contains(Bits::LVB_READ);
        lock.bits.remove(Bits::LVB_READ);
        lock.last_cast = lock.grmode;
        lock.last_bast = None;
        if lock.bits.contains(Bits::ORPHAN) {
            return;
        }
        let status = status_of(result);
        let mode = match status {
            Status::Unlocked => Mode::Nl,
            _ => lock.grmode.unwrap_or(Mode::Nl),
        };
        let lvb = match (&lock.lvb, read && status == Status::Granted) {
            (Some(value), true) => Some(**value),
            _ => None,
        };
        let cast = Cast {
            id: LockId(lock.id),
            token: lock.token,
            status,
            sb: lock.sbflags & SbFlags::all(),
            mode,
            lvb,
        };
        self.deliver(Event::Cast(cast));
    }

    /// Somebody waits for `mode`: told to the holder, here or there.
    pub(super) fn queue_bast(&mut self, index: Index, mode: Mode) {
        let lock = self.store.locks.at_mut(index);
        if lock.is_master_copy() {
            self.send_bast(index, mode);
            return;
        }
        // What was let go already, or said already, is not said (again).
        let moot = lock.last_cast.is_some_and(|cast| mode.compatible(cast));
        let said = lock
            .last_bast
            .is_some_and(|last| last == mode || (last > mode && last > Mode::Pr));
        if moot || said || lock.bits.intersects(Bits::ORPHAN | Bits::ENDED) {
            return;
        }
        lock.last_bast = Some(mode);
        let event = Event::Bast {
            id: LockId(lock.id),
            token: lock.token,
            mode,
        };
        self.deliver(event);
    }

    /// The lock is no more, but for what is still outstanding.
    pub(super) fn end(&mut self, index: Index) {
        let lock = self.store.locks.at_mut(index);
        lock.bits |= Bits::ENDED;
        self.reap_later(index);
    }

    pub(super) fn reap_later(&mut self, index: Index) {
        let lock = self.store.locks.at_mut(index);
        if !lock.bits.contains(Bits::REAPED) {
            lock.bits |= Bits::REAPED;
            self.ended.push(index);
        }
    }

    /// Frees the locks that ended, and what of their resources is unused now.
    pub(super) fn reap(&mut self) {
        while let Some(index) = self.ended.pop() {
            let lock = self.store.locks.at_mut(index);
            lock.bits.remove(Bits::REAPED);
            if lock.status.is_some() || lock.wait_count > 0 || lock.bits.contains(Bits::LOOKUP) {
                continue;
            }
            let rsb = lock.rsb;
            self.store.free_lock(index);
            if rsb != NONE {
                let rsb_ref = self.store.rsbs.at_mut(rsb);
                rsb_ref.refs = rsb_ref.refs.saturating_sub(1);
                self.release(rsb);
            }
        }
    }

    /// A new lock; `None` when there are too many.
    pub(super) fn create(&mut self, lock: Lkb) -> Option<Index> {
        self.store.add_lock(lock)
    }

    pub(super) fn attach(&mut self, index: Index, rsb: Index) {
        self.store.locks.at_mut(index).rsb = rsb;
        let rsb = self.store.rsbs.at_mut(rsb);
        rsb.refs = rsb.refs.saturating_add(1);
    }

    /// A resource may have become unused.
    pub(super) fn release(&mut self, index: Index) {
        let us = self.config.node;
        let (nodir, epoch) = (self.config.nodir, self.epoch);
        let rsb = self.store.rsbs.at_mut(index);
        if rsb.refs > 0 || rsb.bits.contains(RsbBits::INACTIVE) {
            return;
        }
        rsb.bits |= RsbBits::INACTIVE;
        rsb.lvb = None;
        let alone = self.config.toss.is_zero() && (nodir || (rsb.master == Some(us) && rsb.dir == us));
        if rsb.bits.contains(RsbBits::UNNAMED) || alone {
            self.store.free_rsb(index);
            return;
        }
        // A record of our part of the directory stays until its master says REMOVE.
        if nodir || rsb.master == Some(us) || rsb.dir != us {
            rsb.epoch = epoch;
            rsb.bits |= RsbBits::SCANNED;
            self.store.scan.push_back(&mut self.store.rsbs, index);
            self.arm_scan();
        }
    }
}

/// What the user is told of a result.
fn status_of(result: WireResult) -> Status {
    match result {
        WireResult::OK => Status::Granted,
        WireResult::AGAIN => Status::Again,
        WireResult::DEADLK => Status::Deadlock,
        WireResult::UNLOCK => Status::Unlocked,
        WireResult::CANCEL => Status::Canceled,
        WireResult::TIMEDOUT => Status::TimedOut,
        WireResult(other) => Status::Err(other.checked_neg().unwrap_or(i32::MAX)),
    }
}
