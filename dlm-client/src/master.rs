//! One resource at its master: three queues, the grant rules, the lock value block. Pure: calls in, events out.
//!
//! Invariants: every lock is on exactly one queue; the granted modes of all locks (granted queue and convert queue)
//! are pairwise compatible; a lock on the convert or wait queue has an operation outstanding, one on the granted
//! queue has none.
//!
//! It knows nothing of names, members or transport; a lock's `owner` only says to whom its events go.

use std::collections::VecDeque;

use crate::lvb::{LvbMove, transfer};
use crate::{Cast, Event, Lkf, LockError, LockId, Lvb, Mode, SbFlags, Status};

/// An event and the owner it is for.
pub(crate) type Effect = (u32, Event);

/// What a call of the user brings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) mode: Mode,
    pub(crate) flags: Lkf,
    pub(crate) lvb: Option<Lvb>,
}

#[derive(Debug)]
struct Lock {
    id: LockId,
    owner: u32,
    token: u64,
    /// `None` until the first grant.
    granted: Option<Mode>,
    /// The operation under way, or the last one.
    ask: Ask,
    /// The highest blocked mode its holder was told of since the last grant.
    told: Option<Mode>,
    /// CONVDEADLK dropped its granted mode to NL; said in the Cast that ends the conversion.
    demoted: bool,
}

impl Lock {
    fn mode(&self) -> Mode {
        self.granted.unwrap_or(Mode::Nl)
    }

    fn cast(&self, status: Status, sb: SbFlags, lvb: Option<Lvb>) -> Effect {
        let mode = if status == Status::Unlocked {
            Mode::Nl
        } else {
            self.mode()
        };
        let cast = Cast {
            id: self.id,
            token: self.token,
            status,
            sb,
            mode,
            lvb,
        };
        (self.owner, Event::Cast(cast))
    }
}

/// Where a lock stands when it is examined.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// First attempt of a request or conversion: on no queue yet.
    New,
    /// On the convert or wait queue; the flag says whether it is the first there.
    Queued { first: bool },
}

enum Attempt {
    Granted(Mode, SbFlags),
    Deadlock,
    Blocked,
}

/// A resource.
#[derive(Debug, Default)]
pub(crate) struct Resource {
    granted: Vec<Lock>,
    convert: VecDeque<Lock>,
    waiting: VecDeque<Lock>,
    value: Option<Lvb>,
    value_invalid: bool,
}

impl Resource {
    /// No lock is left: the resource may be forgotten.
    pub(crate) fn is_empty(&self) -> bool {
        self.granted.is_empty() && self.convert.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn contains(&self, id: LockId) -> bool {
        self.all().any(|lock| lock.id == id)
    }

    fn all(&self) -> impl Iterator<Item = &Lock> {
        self.granted.iter().chain(&self.convert).chain(&self.waiting)
    }

    /// A new lock.
    pub(crate) fn request(
        &mut self,
        id: LockId,
        owner: u32,
        token: u64,
        ask: Ask,
        out: &mut Vec<Effect>,
    ) -> Result<(), LockError> {
        check_flags("request", None, &ask)?;
        let lock = Lock {
            id,
            owner,
            token,
            granted: None,
            ask,
            told: None,
            demoted: false,
        };
        match self.attempt(&lock, Place::New) {
            Attempt::Granted(mode, sb) => self.grant(lock, mode, sb, out),
            Attempt::Deadlock | Attempt::Blocked => {
                if ask.flags.contains(Lkf::NOQUEUE) {
                    out.push(lock.cast(Status::Again, SbFlags::empty(), None));
                    self.poke(&lock, out);
                } else {
                    self.tell(&lock, false, out);
                    enqueue(&mut self.waiting, lock);
                }
            }
        }
        Ok(())
    }

    /// Another mode for a granted lock.
    pub(crate) fn convert(&mut self, id: LockId, ask: Ask, out: &mut Vec<Effect>) -> Result<(), LockError> {
        let index = self
            .granted
            .iter()
            .position(|lock| lock.id == id)
            .ok_or(LockError::Busy(id))?;
        let from = self.granted.get(index).map_or(Mode::Nl, Lock::mode);
        check_flags("convert", Some(from), &ask)?;
        let mut lock = self.granted.swap_remove(index);
        lock.ask = ask;
        match self.attempt(&lock, Place::New) {
            Attempt::Granted(mode, sb) => {
                self.grant(lock, mode, sb, out);
                self.rescan(out);
            }
            Attempt::Deadlock if ask.flags.contains(Lkf::CONVDEADLK) => {
                lock.granted = Some(Mode::Nl);
                lock.demoted = true;
                self.queue_conversion(lock, out);
                self.rescan(out);
            }
            Attempt::Deadlock => {
                out.push(lock.cast(Status::Deadlock, SbFlags::empty(), None));
                self.granted.push(lock);
            }
            Attempt::Blocked if ask.flags.contains(Lkf::NOQUEUE) => {
                out.push(lock.cast(Status::Again, SbFlags::empty(), None));
                self.poke(&lock, out);
                self.granted.push(lock);
            }
            Attempt::Blocked => self.queue_conversion(lock, out),
        }
        Ok(())
    }

    fn queue_conversion(&mut self, lock: Lock, out: &mut Vec<Effect>) {
        self.tell(&lock, false, out);
        enqueue(&mut self.convert, lock);
    }

    /// Ends a lock.
    pub(crate) fn unlock(
        &mut self,
        id: LockId,
        flags: Lkf,
        lvb: Option<&Lvb>,
        out: &mut Vec<Effect>,
    ) -> Result<(), LockError> {
        let lock = if let Some(index) = self.granted.iter().position(|lock| lock.id == id) {
            self.granted.swap_remove(index)
        } else if !flags.contains(Lkf::FORCEUNLOCK) {
            return Err(LockError::Busy(id));
        } else {
            take(&mut self.convert, id)
                .or_else(|| take(&mut self.waiting, id))
                .ok_or(LockError::NoSuchLock(id))?
        };
        if lock.mode() >= Mode::Pw {
            self.write_value(flags, lvb);
        }
        out.push(lock.cast(Status::Unlocked, SbFlags::empty(), None));
        self.rescan(out);
        Ok(())
    }

    /// Takes back a request or conversion.
    pub(crate) fn cancel(&mut self, id: LockId, out: &mut Vec<Effect>) -> Result<(), LockError> {
        if let Some(lock) = take(&mut self.convert, id) {
            out.push(lock.cast(Status::Canceled, SbFlags::empty(), None));
            self.granted.push(lock);
        } else if let Some(lock) = take(&mut self.waiting, id) {
            out.push(lock.cast(Status::Canceled, SbFlags::empty(), None));
        } else {
            return Err(LockError::NothingToCancel(id));
        }
        self.rescan(out);
        Ok(())
    }

    /// Drops all locks of an owner that is gone. A lost writer leaves the value block invalid.
    pub(crate) fn purge(&mut self, owner: u32, out: &mut Vec<Effect>) {
        let lost_writer = self.all().any(|lock| {
            lock.owner == owner && lock.mode() >= Mode::Pw && lock.ask.flags.contains(Lkf::VALBLK)
        });
        self.value_invalid |= lost_writer && self.value.is_some();
        self.granted.retain(|lock| lock.owner != owner);
        self.convert.retain(|lock| lock.owner != owner);
        self.waiting.retain(|lock| lock.owner != owner);
        self.rescan(out);
    }

    /// The owners, ids and tokens of the granted locks that exclude `mode`; marks them as told.
    pub(crate) fn inject_bast(&mut self, mode: Mode, out: &mut Vec<Effect>) -> usize {
        let mut told = 0usize;
        for lock in self.granted.iter_mut().chain(&mut self.convert) {
            if lock.granted.is_some_and(|granted| !granted.compatible(mode)) {
                out.push((
                    lock.owner,
                    Event::Bast {
                        id: lock.id,
                        token: lock.token,
                        mode,
                    },
                ));
                told = told.saturating_add(1);
            }
        }
        told
    }

    /// Can `lock` have what it asks for, or the alternative it allows?
    fn attempt(&self, lock: &Lock, place: Place) -> Attempt {
        let wanted = lock.ask.mode;
        if self.grantable(lock, wanted, place) {
            return Attempt::Granted(wanted, SbFlags::empty());
        }
        let queueable = !lock.ask.flags.contains(Lkf::NOQUEUE);
        let deadlock = queueable
            && lock.granted.is_some()
            && !lock.ask.flags.contains(Lkf::NODLCKWT)
            && self.convert.iter().any(|earlier| {
                earlier.id != lock.id
                    && !earlier.ask.flags.contains(Lkf::NODLCKBLK)
                    && !lock.mode().compatible(earlier.ask.mode)
            });
        if deadlock && place == Place::New {
            return Attempt::Deadlock;
        }
        let alternative = if wanted != Mode::Pr && lock.ask.flags.contains(Lkf::ALTPR) {
            Some(Mode::Pr)
        } else if wanted != Mode::Cw && lock.ask.flags.contains(Lkf::ALTCW) {
            Some(Mode::Cw)
        } else {
            None
        };
        match alternative {
            Some(mode) if self.grantable(lock, mode, place) => Attempt::Granted(mode, SbFlags::ALTMODE),
            _ => Attempt::Blocked,
        }
    }

    /// The grant rules, in the order the DLM applies them.
    fn grantable(&self, lock: &Lock, mode: Mode, place: Place) -> bool {
        let flags = lock.ask.flags;
        if flags.contains(Lkf::EXPEDITE) {
            return true;
        }
        let conflict = self.granted.iter().chain(&self.convert).any(|other| {
            other.id != lock.id && other.granted.is_some_and(|granted| !granted.compatible(mode))
        });
        if conflict {
            return false;
        }
        match (lock.granted.is_some(), place) {
            (true, Place::New) if !flags.contains(Lkf::QUECVT) => true,
            (true, Place::New) if self.convert.is_empty() => true,
            _ if flags.contains(Lkf::NOORDER) => true,
            (true, Place::New) => false,
            (true, Place::Queued { first }) => first,
            (false, Place::New) => self.convert.is_empty() && self.waiting.is_empty(),
            (false, Place::Queued { first }) => first && self.convert.is_empty(),
        }
    }

    /// Grants what is asked: moves the value block, queues the Cast.
    fn grant(&mut self, mut lock: Lock, mode: Mode, mut sb: SbFlags, out: &mut Vec<Effect>) {
        let ask = lock.ask;
        let direction = transfer(lock.mode(), mode);
        let mut lvb = None;
        if direction == LvbMove::Write {
            self.write_value(ask.flags, ask.lvb.as_ref());
        } else if ask.flags.contains(Lkf::VALBLK) && self.value.is_some() {
            if direction == LvbMove::Read {
                lvb = self.value;
            }
            sb.set(SbFlags::VALNOTVALID, self.value_invalid);
        }
        sb.set(SbFlags::DEMOTED, std::mem::take(&mut lock.demoted));
        lock.granted = Some(mode);
        lock.told = None;
        out.push(lock.cast(Status::Granted, sb, lvb));
        self.granted.push(lock);
    }

    fn write_value(&mut self, flags: Lkf, lvb: Option<&Lvb>) {
        if flags.contains(Lkf::IVVALBLK) {
            self.value_invalid = true;
        } else if flags.contains(Lkf::VALBLK)
            && let Some(bytes) = lvb
        {
            self.value = Some(*bytes);
            self.value_invalid = false;
        }
    }

    /// Grants whatever has become possible, then tells holders what is still blocked.
    fn rescan(&mut self, out: &mut Vec<Effect>) {
        let mut blocked = Blocked::default();
        while self.grant_one_conversion(&mut blocked, out) {
            blocked = Blocked::default();
        }
        self.grant_waiting(&mut blocked, out);
        let Some(high) = blocked.high else { return };
        for lock in &mut self.granted {
            let Some(granted) = lock.granted else { continue };
            let (mode, due) = if granted == Mode::Pr && blocked.cw {
                let mode = if high == Mode::Pr { Mode::Cw } else { high };
                (mode, lock.told < Some(Mode::Ex) && lock.told != Some(mode))
            } else {
                (high, lock.told < Some(high))
            };
            if due && !granted.compatible(mode) {
                lock.told = Some(mode);
                out.push((
                    lock.owner,
                    Event::Bast {
                        id: lock.id,
                        token: lock.token,
                        mode,
                    },
                ));
            }
        }
    }

    fn grant_one_conversion(&mut self, blocked: &mut Blocked, out: &mut Vec<Effect>) -> bool {
        let mut found = None;
        for (index, lock) in self.convert.iter().enumerate() {
            match self.attempt(lock, Place::Queued { first: index == 0 }) {
                Attempt::Granted(mode, sb) => {
                    found = Some((index, mode, sb));
                    break;
                }
                Attempt::Deadlock | Attempt::Blocked => blocked.note(lock.ask.mode),
            }
        }
        let Some((index, mode, sb)) = found else {
            return false;
        };
        if let Some(lock) = self.convert.remove(index) {
            self.grant(lock, mode, sb, out);
        }
        true
    }

    fn grant_waiting(&mut self, blocked: &mut Blocked, out: &mut Vec<Effect>) {
        let mut index = 0usize;
        while let Some(lock) = self.waiting.get(index) {
            match self.attempt(lock, Place::Queued { first: index == 0 }) {
                Attempt::Granted(mode, sb) => {
                    if let Some(lock) = self.waiting.remove(index) {
                        self.grant(lock, mode, sb, out);
                    }
                }
                Attempt::Deadlock | Attempt::Blocked => {
                    blocked.note(lock.ask.mode);
                    index = index.saturating_add(1);
                }
            }
        }
    }

    /// A NOQUEUE attempt failed; with NOQUEUEBAST it still knocks.
    fn poke(&mut self, lock: &Lock, out: &mut Vec<Effect>) {
        if lock.ask.flags.contains(Lkf::NOQUEUEBAST) {
            self.tell(lock, true, out);
        }
    }

    /// Tells the holders that are in the way of `lock`.
    fn tell(&mut self, lock: &Lock, converting_too: bool, out: &mut Vec<Effect>) {
        let wanted = lock.ask.mode;
        let converting = converting_too.then_some(&mut self.convert);
        for other in self.granted.iter_mut().chain(converting.into_iter().flatten()) {
            let in_the_way = other.granted.is_some_and(|granted| !granted.compatible(wanted));
            if in_the_way && other.id != lock.id && other.told < Some(wanted) {
                other.told = Some(wanted);
                let (id, token) = (other.id, other.token);
                out.push((
                    other.owner,
                    Event::Bast {
                        id,
                        token,
                        mode: wanted,
                    },
                ));
            }
        }
    }
}

/// The modes that still wait after a scan; CW is noted apart because it does not order with PR.
#[derive(Default)]
struct Blocked {
    high: Option<Mode>,
    cw: bool,
}

impl Blocked {
    fn note(&mut self, mode: Mode) {
        self.high = self.high.max(Some(mode));
        self.cw |= mode == Mode::Cw;
    }
}

fn enqueue(queue: &mut VecDeque<Lock>, lock: Lock) {
    if lock.ask.flags.contains(Lkf::HEADQUE) {
        queue.push_front(lock);
    } else {
        queue.push_back(lock);
    }
}

fn take(queue: &mut VecDeque<Lock>, id: LockId) -> Option<Lock> {
    let index = queue.iter().position(|lock| lock.id == id)?;
    queue.remove(index)
}

fn check_flags(operation: &'static str, from: Option<Mode>, ask: &Ask) -> Result<(), LockError> {
    let flags = ask.flags;
    let foreign = Lkf::CANCEL | Lkf::CONVERT | Lkf::FORCEUNLOCK | Lkf::ORPHAN;
    let conversion_only = Lkf::QUECVT | Lkf::CONVDEADLK;
    let bad = flags.intersects(foreign)
        || (from.is_none() && flags.intersects(conversion_only))
        || (flags.contains(Lkf::CONVDEADLK) && flags.contains(Lkf::NOQUEUE))
        || (flags.contains(Lkf::EXPEDITE)
            && (from.is_some() || flags.contains(Lkf::NOQUEUE) || ask.mode != Mode::Nl))
        || (flags.contains(Lkf::QUECVT) && from.is_some_and(|from| !from.quecvt_legal(ask.mode)))
        || flags.contains(Lkf::ALTPR | Lkf::ALTCW);
    if bad {
        return Err(LockError::InvalidFlags {
            operation,
            mode: ask.mode,
            flags: flags.bits(),
        });
    }
    Ok(())
}
