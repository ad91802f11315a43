//! The locks of one lockspace: what was asked for, what the kernel said, what may be asked next.
//!
//! Invariants: a lock is busy from a call until the Cast of it was handed out; every accepted call has exactly one; an id
//! is not reused while it is known. The kernel's own id comes with the write of the request, perhaps later than what came
//! of it; calls wait in one queue, so that whoever needs it comes after it is known.

use std::collections::{HashMap, HashSet};

use super::abi::{self, Told, What};
use crate::engine::check_flags;
use crate::lvb::{LVB_LEN, LvbMove, transfer};
use crate::{Cast, Event, Lkf, LockError, LockId, Lvb, Mode, ResName, SbFlags, Status};

const EAGAIN: i32 = 11;
const EDEADLK: i32 = 35;
const ETIMEDOUT: i32 = 110;
const ECANCEL: i32 = 0x1_0001;
const EUNLOCK: i32 = 0x1_0002;

/// What is under way on a lock.
#[derive(Clone, Copy, Debug)]
struct Op {
    mode: Mode,
    flags: Lkf,
    /// The kernel has it.
    written: bool,
}

#[derive(Clone, Debug)]
struct Lock {
    token: u64,
    lkid: Option<u32>,
    held: Option<Mode>,
    op: Option<Op>,
    unlocking: bool,
    /// What the kernel last got or gave.
    lvb: Lvb,
}

/// A call that is to be written.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) id: LockId,
    pub(super) what: Asked,
}

#[derive(Clone, Debug)]
pub(super) enum Asked {
    Request { name: ResName, mode: Mode, flags: Lkf },
    Convert { mode: Mode, flags: Lkf, lvb: Lvb },
    Unlock { flags: Lkf, lvb: Lvb },
    Cancel,
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// Whatever comes of it will be read.
    Fine,
    /// An operation of the kernel's is still under way: to be written again a little later.
    Later,
    /// It is over already.
    Over(Event),
    /// What cannot be.
    Broken(String),
}

#[derive(Debug, Default)]
pub(super) struct Books {
    locks: HashMap<LockId, Lock>,
    last: u32,
}

fn status(number: i32) -> Status {
    match number.saturating_neg() {
        0 => Status::Granted,
        EAGAIN => Status::Again,
        EDEADLK => Status::Deadlock,
        EUNLOCK => Status::Unlocked,
        ECANCEL => Status::Canceled,
        ETIMEDOUT => Status::TimedOut,
        other => Status::Err(other),
    }
}

impl Books {
    fn lock(&mut self, id: LockId) -> Result<&mut Lock, LockError> {
        self.locks.get_mut(&id).ok_or(LockError::NoSuchLock(id))
    }

    pub(super) fn request(&mut self, mode: Mode, flags: Lkf, token: u64) -> Result<LockId, LockError> {
        check_flags("request", None, mode, flags.difference(Lkf::ORPHAN))?;
        if self.locks.len() >= usize::try_from(u32::MAX).unwrap_or(usize::MAX) {
            return Err(LockError::OutOfIds);
        }
        loop {
            self.last = self.last.wrapping_add(1).max(1);
            if !self.locks.contains_key(&LockId(self.last)) {
                break;
            }
        }
        let id = LockId(self.last);
        self.locks.insert(
            id,
            Lock {
                token,
                lkid: None,
                held: None,
                op: Some(Op {
                    mode,
                    flags,
                    written: false,
                }),
                unlocking: false,
                lvb: [0; LVB_LEN],
            },
        );
        Ok(id)
    }

    pub(super) fn convert(
        &mut self,
        id: LockId,
        mode: Mode,
        flags: Lkf,
        lvb: Option<&Lvb>,
    ) -> Result<Call, LockError> {
        let lock = self.lock(id)?;
        if lock.op.is_some() || lock.unlocking {
            return Err(LockError::Busy(id));
        }
        check_flags("convert", lock.held, mode, flags)?;
        lock.op = Some(Op {
            mode,
            flags,
            written: false,
        });
        // Of a resource without a value block the device gives back what it was given.
        let lvb = match transfer(lock.held.unwrap_or(Mode::Nl), mode) {
            LvbMove::Read => [0; LVB_LEN],
            LvbMove::Write | LvbMove::Keep => {
                lock.lvb = lvb.copied().unwrap_or(lock.lvb);
                lock.lvb
            }
        };
        Ok(Call {
            id,
            what: Asked::Convert { mode, flags, lvb },
        })
    }

    pub(super) fn unlock(&mut self, id: LockId, flags: Lkf, lvb: Option<&Lvb>) -> Result<Call, LockError> {
        let lock = self.lock(id)?;
        let force = flags.contains(Lkf::FORCEUNLOCK);
        if !force && (lock.op.is_some() || lock.unlocking) {
            return Err(LockError::Busy(id));
        }
        if flags.intersects(!(Lkf::VALBLK | Lkf::IVVALBLK | Lkf::FORCEUNLOCK)) {
            return Err(LockError::InvalidFlags {
                operation: "unlock",
                mode: Mode::Nl,
                flags: flags.bits(),
            });
        }
        lock.unlocking = true;
        let lvb = lvb.copied().unwrap_or(lock.lvb);
        Ok(Call {
            id,
            what: Asked::Unlock { flags, lvb },
        })
    }

    pub(super) fn cancel(&mut self, id: LockId) -> Result<Call, LockError> {
        if self.lock(id)?.op.is_none() {
            return Err(LockError::NothingToCancel(id));
        }
        Ok(Call {
            id,
            what: Asked::Cancel,
        })
    }

    /// The kernel's ids of all locks.
    pub(super) fn kernel_ids(&self) -> HashSet<u32> {
        self.locks.values().filter_map(|lock| lock.lkid).collect()
    }

    /// Calls that take back all requests and conversions the kernel has and that have not ended.
    pub(super) fn waiting(&self) -> Vec<Call> {
        let waits = |lock: &Lock| lock.op.is_some_and(|op| op.written);
        let locks = self.locks.iter().filter(|(_, lock)| waits(lock));
        let what = Asked::Cancel;
        locks
            .map(|(id, _)| Call {
                id: *id,
                what: what.clone(),
            })
            .collect()
    }

    /// The bytes of a call; `None` when the lock has ended meanwhile, and the call with it.
    pub(super) fn bytes(&self, call: &Call) -> Option<Vec<u8>> {
        let lock = self.locks.get(&call.id)?;
        // The lock is to stay in everybody's way when this process dies.
        let stays = Lkf::PERSISTENT;
        match &call.what {
            Asked::Request { name, mode, flags } => Some(abi::request(call.id, name, *mode, *flags | stays)),
            Asked::Convert { mode, flags, lvb } => {
                Some(abi::convert(call.id, lock.lkid?, *mode, *flags | stays, lvb))
            }
            Asked::Unlock { flags, lvb } => Some(abi::unlock(call.id, lock.lkid?, *flags, lvb)),
            Asked::Cancel => Some(abi::cancel(call.id, lock.lkid?)),
        }
    }

    /// The write of a call returned a number, or this errno.
    pub(super) fn written(&mut self, call: &Call, returned: Result<u32, i32>) -> Written {
        const ENOENT: i32 = 2;
        const EBUSY: i32 = 16;
        let Some(lock) = self.locks.get_mut(&call.id) else {
            // What came of it was read before.
            return Written::Fine;
        };
        if let (Asked::Request { .. } | Asked::Convert { .. }, Ok(_), Some(op)) =
            (&call.what, returned, &mut lock.op)
        {
            op.written = true;
        }
        match (&call.what, returned) {
            (Asked::Request { flags, mode, .. }, Ok(lkid)) => {
                lock.lkid = Some(lkid);
                if !flags.contains(Lkf::ORPHAN) {
                    return Written::Fine;
                }
                // Nothing will be read of an adoption.
                lock.op = None;
                lock.held = Some(*mode);
                Written::Over(Event::Cast(Cast {
                    id: call.id,
                    token: lock.token,
                    status: Status::Granted,
                    sb: SbFlags::empty(),
                    mode: *mode,
                    lvb: None,
                }))
            }
            (_, Ok(_)) => Written::Fine,
            // Nothing was under way any more; the last word on the lock is still to be read.
            (Asked::Cancel, Err(ENOENT)) => Written::Fine,
            (Asked::Unlock { flags, .. }, Err(ENOENT)) if flags.contains(Lkf::FORCEUNLOCK) => Written::Fine,
            (Asked::Convert { .. } | Asked::Unlock { .. }, Err(EBUSY)) => Written::Later,
            (Asked::Request { .. } | Asked::Convert { .. }, Err(errno)) => self
                .ended(call.id, errno.saturating_neg(), 0, None)
                .map_or(Written::Fine, Written::Over),
            (Asked::Unlock { .. } | Asked::Cancel, Err(errno)) => Written::Broken(format!(
                "the kernel did not take {:?} of lock {:#x} ({errno})",
                call.what, call.id.0
            )),
        }
    }

    /// The event of what the device told, if it is one.
    pub(super) fn told(&mut self, told: &Told) -> Result<Option<Event>, String> {
        match told.what {
            What::Dropped => Ok(None),
            What::Bast(mode) => {
                let Some(lock) = self.locks.get(&told.id) else {
                    return Ok(None);
                };
                let in_the_way = lock.held.is_some_and(|held| !held.compatible(mode));
                let (id, token) = (told.id, lock.token);
                Ok(in_the_way.then_some(Event::Bast { id, token, mode }))
            }
            What::Cast {
                status,
                sb_flags,
                lvb,
                ..
            } => {
                let known = self.locks.get(&told.id);
                if status == 0 && known.is_none_or(|lock| lock.op.is_none()) {
                    return Err(format!(
                        "the DLM's device: lock {:#x} was granted, which did not ask",
                        told.id.0
                    ));
                }
                Ok(self.ended(told.id, status, sb_flags, lvb))
            }
        }
    }

    /// An operation ended. `None`: of one that we do not know any more, or of which more is to come.
    fn ended(&mut self, id: LockId, number: i32, sb_flags: u8, lvb: Option<Lvb>) -> Option<Event> {
        let lock = self.locks.get_mut(&id)?;
        let sb = SbFlags::from_bits_truncate(u32::from(sb_flags));
        let mut status = status(number);
        if lock.op.is_none() && status != Status::Unlocked {
            return None;
        }
        let op = lock.op.take();
        let from = lock.held;
        let mut read = None;
        match (status, op) {
            (Status::Granted, Some(op)) => {
                let mode = granted(op, sb);
                let before = if sb.contains(SbFlags::DEMOTED) { None } else { from };
                if op.flags.contains(Lkf::VALBLK)
                    && transfer(before.unwrap_or(Mode::Nl), mode) == LvbMove::Read
                {
                    read = lvb;
                    lock.lvb = lvb.unwrap_or(lock.lvb);
                }
                lock.held = Some(mode);
            }
            (Status::Unlocked, _) => lock.held = None,
            _ if sb.contains(SbFlags::DEMOTED) && from.is_some() => lock.held = Some(Mode::Nl),
            _ => {}
        }
        let (token, mode) = (lock.token, lock.held.unwrap_or(Mode::Nl));
        if status == Status::Unlocked || lock.held.is_none() {
            if lock.unlocking {
                // The unlock found nothing to unlock: this is the end of both.
                status = Status::Unlocked;
            }
            self.locks.remove(&id);
        } else if lock.unlocking && status != Status::Granted {
            // The unlock that cut it off ends it.
            return None;
        }
        Some(Event::Cast(Cast {
            id,
            token,
            status,
            sb,
            mode,
            lvb: read,
        }))
    }
}

const fn granted(op: Op, sb: SbFlags) -> Mode {
    match (sb.contains(SbFlags::ALTMODE), op.flags.contains(Lkf::ALTPR)) {
        (false, _) => op.mode,
        (true, true) => Mode::Pr,
        (true, false) => Mode::Cw,
    }
}
