//! What must be true of what users see, whatever happens to the cluster.
//!
//! * No two users hold incompatible modes. A user holds from the Cast until it asks to give up (or to go down).
//! * Every call ends in one Cast; a dead lock says nothing more; no Bast for what was let go.
//! * A grant that reads the value block sees the last bytes written, or is told not to believe them; and that only
//!   after a failure.
//! * A slot does not change, no two members have the same, and members of one generation agree.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Cast, Event, Lkf, LockId, Lvb, Mode, NodeId, SbFlags, Slot, Status};

/// A life of a node.
pub(super) type Life = (NodeId, u64);

/// What a user's lock is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Idle,
    Requesting,
    Converting {
        to: Mode,
        demotable: bool,
    },
    Unlocking,
    /// A forced unlock of an operation under way.
    Cutting,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct UserLock {
    pub(super) resource: u64,
    pub(super) held: Option<Mode>,
    pub(super) doing: Doing,
    pub(super) keeper: bool,
    /// Its last conversion carried IVVALBLK, and an unlock adds its flags to those: what it brings is not written, the
    /// value becomes invalid (seen with two kernels: `tests/data/kernel-stream-*.txt`).
    pub(super) invalidates: bool,
    cast_mode: Option<Mode>,
}

#[derive(Clone, Debug, Default)]
struct Value {
    /// The last bytes written; `None`: nobody knows.
    bytes: Option<Lvb>,
    /// A failure (or an invalidation) since they were.
    doubtful: bool,
}

#[derive(Debug, Default)]
pub(super) struct Oracle {
    locks: BTreeMap<(Life, LockId), UserLock>,
    values: BTreeMap<u64, Value>,
    slots: BTreeMap<Life, u16>,
    generations: BTreeMap<Life, (u32, Vec<Slot>)>,
    ready: BTreeSet<Life>,
    preparing: BTreeSet<Life>,
    pub(super) casts: u64,
    pub(super) grants: u64,
    pub(super) reads: u64,
    pub(super) wrong: Option<String>,
}

/// What a lock in the middle of a conversion certainly keeps.
fn kept(from: Mode, to: Mode, demotable: bool) -> Mode {
    let middle = matches!((from, to), (Mode::Pr, Mode::Cw) | (Mode::Cw, Mode::Pr));
    if demotable {
        Mode::Nl
    } else if middle {
        Mode::Cr
    } else {
        from.min(to)
    }
}

impl Oracle {
    fn fault(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }

    pub(super) fn value(&mut self, resource: u64, bytes: Lvb) {
        self.values.insert(
            resource,
            Value {
                bytes: Some(bytes),
                doubtful: false,
            },
        );
        self.forget_unkept(resource);
    }

    /// A member failed or left, or IVVALBLK: from now on VALNOTVALID may be said.
    pub(super) fn doubt(&mut self, resource: Option<u64>) {
        match resource {
            Some(resource) => self.values.entry(resource).or_default().doubtful = true,
            None => {
                for value in self.values.values_mut() {
                    value.doubtful = true;
                }
            }
        }
    }

    pub(super) fn requested(&mut self, life: Life, id: LockId, resource: u64, keeper: bool) {
        let lock = UserLock {
            resource,
            held: None,
            doing: Doing::Requesting,
            keeper,
            invalidates: false,
            cast_mode: None,
        };
        self.values.entry(resource).or_insert(Value {
            bytes: Some([0; 32]),
            doubtful: false,
        });
        if let Some(old) = self.locks.insert((life, id), lock) {
            self.fault(format!("{life:?} {id:?} is used again while {old:?}"));
        }
    }

    pub(super) fn converting(&mut self, life: Life, id: LockId, to: Mode, flags: Lkf) {
        let demotable = flags.contains(Lkf::CONVDEADLK);
        if let Some(lock) = self.locks.get_mut(&(life, id)) {
            lock.invalidates = flags.contains(Lkf::IVVALBLK);
            lock.doing = Doing::Converting { to, demotable };
            lock.held = lock.held.map(|from| kept(from, to, demotable));
        }
    }

    pub(super) fn unlocking(&mut self, life: Life, id: LockId) {
        let mut resource = None;
        if let Some(lock) = self.locks.get_mut(&(life, id)) {
            lock.held = None;
            lock.doing = match lock.doing {
                Doing::Idle => Doing::Unlocking,
                _ => Doing::Cutting,
            };
            if lock.keeper {
                lock.keeper = false;
                resource = Some(lock.resource);
            }
        }
        if let Some(resource) = resource {
            self.forget_unkept(resource);
        }
    }

    /// Without a lock that keeps it the value may be forgotten at any time.
    fn forget_unkept(&mut self, resource: u64) {
        let kept = self
            .locks
            .values()
            .any(|lock| lock.resource == resource && lock.keeper && lock.held.is_some());
        if !kept {
            self.values.entry(resource).or_default().bytes = None;
        }
    }

    /// A life ended: nobody sees its locks any more.
    pub(super) fn ended(&mut self, life: Life) {
        let resources: BTreeSet<u64> = self
            .locks
            .iter()
            .filter(|((owner, _), lock)| *owner == life && lock.keeper)
            .map(|(_, lock)| lock.resource)
            .collect();
        self.locks.retain(|(owner, _), _| *owner != life);
        self.ready.remove(&life);
        self.preparing.remove(&life);
        self.generations.remove(&life);
        for resource in resources {
            self.forget_unkept(resource);
        }
        self.doubt(None);
    }

    pub(super) fn locks_of(&self, life: Life) -> Vec<(LockId, UserLock)> {
        self.locks
            .range((life, LockId(0))..=(life, LockId(u32::MAX)))
            .map(|((_, id), lock)| (*id, *lock))
            .collect()
    }

    pub(super) fn lock(&self, life: Life, id: LockId) -> Option<UserLock> {
        self.locks.get(&(life, id)).copied()
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.locks.is_empty()
    }

    pub(super) fn is_ready(&self, life: Life) -> bool {
        self.ready.contains(&life)
    }

    pub(super) fn left(&self) -> String {
        format!("{:?}", self.locks.iter().next())
    }

    pub(super) fn event(&mut self, life: Life, event: &Event) {
        match event {
            Event::Cast(cast) => {
                if !self.ready.contains(&life) {
                    self.fault(format!("{life:?}: {cast:?} outside RecoverDone and RecoverPrep"));
                }
                self.casts = self.casts.saturating_add(1);
                self.cast(life, cast);
            }
            Event::Bast { id, mode, .. } => match self.locks.get(&(life, *id)) {
                Some(lock) if lock.cast_mode.is_some_and(|held| !held.compatible(*mode)) => {}
                other => {
                    let text = format!("{life:?} {id:?}: Bast for {mode} while {other:?}");
                    self.fault(text);
                }
            },
            Event::RecoverPrep => {
                if !self.ready.remove(&life) {
                    self.fault(format!("{life:?}: RecoverPrep while not ready"));
                }
                self.preparing.insert(life);
            }
            Event::RecoverSlot { failed } => {
                if self.ready.contains(&life) {
                    self.fault(format!("{life:?}: {failed:?} while ready"));
                }
            }
            Event::RecoverDone {
                slots,
                our_slot,
                generation,
            } => self.done(life, slots, *our_slot, *generation),
            other => self.fault(format!("{life:?}: {other:?}")),
        }
    }

    fn done(&mut self, life: Life, slots: &[Slot], our_slot: u16, generation: u32) {
        // Recovery may say VALNOTVALID of anything; without a directory it does so at every change.
        self.doubt(None);
        self.preparing.remove(&life);
        if !self.ready.insert(life) {
            self.fault(format!("{life:?}: two RecoverDone"));
        }
        let known = *self.slots.entry(life).or_insert(our_slot);
        let unique: BTreeSet<u16> = slots.iter().map(|slot| slot.slot).collect();
        let ours = slots
            .iter()
            .any(|slot| slot.node == life.0 && slot.slot == our_slot);
        if known != our_slot || our_slot == 0 || unique.len() != slots.len() || !ours {
            self.fault(format!("{life:?}: slot {our_slot} was {known}, all {slots:?}"));
        }
        self.generations.insert(life, (generation, slots.to_vec()));
        let other = self
            .generations
            .values()
            .find(|(other, theirs)| *other == generation && theirs != slots)
            .cloned();
        if let Some(other) = other {
            self.fault(format!(
                "{life:?}: generation {generation} {slots:?}, others {other:?}"
            ));
        }
    }

    fn cast(&mut self, life: Life, cast: &Cast) {
        let Some(mut lock) = self.locks.remove(&(life, cast.id)) else {
            self.fault(format!("{life:?}: {cast:?} for no lock"));
            return;
        };
        let was = lock;
        let expected = match (lock.doing, cast.status) {
            (Doing::Requesting, Status::Granted | Status::Again | Status::Canceled)
            | (Doing::Unlocking, Status::Unlocked)
            | (Doing::Cutting, _) => true,
            (Doing::Converting { to, .. }, Status::Granted) => {
                cast.mode == to || cast.sb.contains(SbFlags::ALTMODE)
            }
            (Doing::Converting { .. }, Status::Again | Status::Deadlock | Status::Canceled) => true,
            _ => false,
        };
        if !expected {
            self.fault(format!("{life:?}: {cast:?} while {was:?}"));
        }
        let dead =
            cast.status == Status::Unlocked || (lock.cast_mode.is_none() && cast.status != Status::Granted);
        if dead {
            return;
        }
        lock.cast_mode = Some(cast.mode);
        if lock.doing == Doing::Cutting {
            self.locks.insert((life, cast.id), lock);
            return;
        }
        lock.doing = Doing::Idle;
        lock.held = Some(cast.mode);
        for ((other_life, other), held) in &self.locks {
            let clash =
                held.resource == lock.resource && held.held.is_some_and(|mode| !mode.compatible(cast.mode));
            if clash && self.wrong.is_none() {
                self.wrong = Some(format!(
                    "resource {}: {life:?} {cast:?} while {other_life:?} {other:?} {held:?}",
                    lock.resource
                ));
            }
        }
        self.locks.insert((life, cast.id), lock);
        if cast.status == Status::Granted {
            self.grants = self.grants.saturating_add(1);
            self.check_value(life, lock.resource, cast);
        }
    }

    fn check_value(&mut self, life: Life, resource: u64, cast: &Cast) {
        // CR and NL do not keep a writer away.
        if cast.mode < Mode::Cw {
            return;
        }
        let value = self.values.entry(resource).or_default().clone();
        if cast.sb.contains(SbFlags::VALNOTVALID) {
            if !value.doubtful && value.bytes.is_some() {
                self.fault(format!(
                    "resource {resource}: {life:?} {cast:?} though nothing failed"
                ));
            }
            return;
        }
        if let (Some(read), Some(written)) = (cast.lvb, value.bytes) {
            self.reads = self.reads.saturating_add(1);
            if read != written {
                self.fault(format!(
                    "resource {resource}: {life:?} {cast:?} read other bytes than were written: {written:?}"
                ));
            }
        }
    }
}
