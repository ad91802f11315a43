//! The grant rules of a resource at its master: who gets what when, who is told, and the value block.
//!
//! References are to the chapter on the lock manager in Davis, "VAXcluster Principles", whose rules the DLM follows.
//!
//! Invariants: granted modes on the granted and convert queues are pairwise compatible; nothing is sent or queued but
//! through [`Engine::queue_cast`], [`Engine::queue_bast`] and [`Engine::send_grant`].

use super::Engine;
use super::store::{Bits, Index, List, Lkb, RsbBits};
use crate::lvb::{LVB_LEN, LvbMove, transfer};
use crate::wire::{Asts, QueueStatus, WireResult};
use crate::{Lkf, Mode, SbFlags};

fn compatible(one: Option<Mode>, two: Option<Mode>) -> bool {
    match (one, two) {
        (Some(one), Some(two)) => one.compatible(two),
        _ => true,
    }
}

/// What an attempt to grant found.
#[derive(Clone, Copy, Default)]
struct Attempt {
    granted: bool,
    deadlock: bool,
}

/// The modes that still wait after a scan; CW is noted apart because it does not order with PR.
#[derive(Clone, Copy, Default)]
struct Blocked {
    high: Option<Mode>,
    cw: bool,
}

impl Blocked {
    fn note(&mut self, mode: Option<Mode>) {
        self.high = self.high.max(mode);
        self.cw |= mode == Some(Mode::Cw);
    }
}

impl Engine {
    fn conflicts(&self, list: List, index: Index) -> bool {
        let wanted = self.store.locks.at(index).rqmode;
        list.iter(&self.store.locks)
            .any(|(other, lock)| other != index && !compatible(lock.grmode, wanted))
    }

    /// Would the granted mode of a converting lock keep an earlier conversion from being granted?
    fn conversion_deadlock(&self, r: Index, index: Index) -> bool {
        let lock = self.store.locks.at(index);
        let mut ahead = false;
        for (other, earlier) in self.store.rsbs.at(r).convert.iter(&self.store.locks) {
            if other == index {
                ahead = true;
                continue;
            }
            let we_block = !compatible(lock.grmode, earlier.rqmode);
            if we_block && (!ahead || !compatible(earlier.grmode, lock.rqmode)) {
                return true;
            }
        }
        false
    }

    /// The rules, in the order the DLM applies them. `now`: the first attempt, the lock is on no waiting queue yet.
    fn grantable(&self, r: Index, index: Index, now: bool, recover: bool) -> bool {
        let lock = self.store.locks.at(index);
        let rsb = self.store.rsbs.at(r);
        let converts = lock.grmode.is_some();
        if lock.exflags.contains(Lkf::EXPEDITE) {
            return true;
        }
        if self.conflicts(rsb.granted, index) || self.conflicts(rsb.convert, index) {
            return false;
        }
        // Recovery rebuilt the queues in another order than they had: order means nothing now.
        if converts && recover {
            return true;
        }
        // 6-5, 6-7: in place, unless QUECVT asks for fairness.
        if now && converts {
            return !lock.exflags.contains(Lkf::QUECVT) || rsb.convert.is_empty();
        }
        if lock.exflags.contains(Lkf::NOORDER) {
            return true;
        }
        match (converts, now) {
            // 6-3: conversions in their order.
            (true, _) => rsb.convert.first() == index,
            // 6-4: new requests after all conversions, in their order.
            (false, true) => rsb.convert.is_empty() && rsb.waiting.is_empty(),
            (false, false) => rsb.convert.is_empty() && rsb.waiting.first() == index,
        }
    }

    /// Tries to grant, with the deadlock rule and the alternative modes.
    fn attempt(&mut self, r: Index, index: Index, now: bool, recover: bool) -> Attempt {
        let mut result = Attempt::default();
        if self.grantable(r, index, now, recover) {
            result.granted = true;
            return result;
        }
        let lock = self.store.locks.at(index);
        let (flags, wanted) = (lock.exflags, lock.rqmode);
        let queues = lock.grmode.is_some() && !flags.contains(Lkf::NOQUEUE);
        if queues && self.conversion_deadlock(r, index) {
            if flags.contains(Lkf::CONVDEADLK) {
                let lock = self.store.locks.at_mut(index);
                lock.grmode = Some(Mode::Nl);
                lock.sbflags |= SbFlags::DEMOTED;
            } else if !now && self.grantable(r, index, false, true) {
                // HEADQUE, or a recovery that changed the order, put one before it that waits for it. The kernel's
                // master leaves both there for ever; granting this one first harms nobody.
                result.granted = true;
            } else {
                result.deadlock = true;
            }
            return result;
        }
        let other = if wanted != Some(Mode::Pr) && flags.contains(Lkf::ALTPR) {
            Mode::Pr
        } else if wanted != Some(Mode::Cw) && flags.contains(Lkf::ALTCW) {
            Mode::Cw
        } else {
            return result;
        };
        self.store.locks.at_mut(index).rqmode = Some(other);
        result.granted = self.grantable(r, index, now, false);
        let lock = self.store.locks.at_mut(index);
        if result.granted {
            lock.sbflags |= SbFlags::ALTMODE;
        } else {
            lock.rqmode = wanted;
        }
        result
    }

    /// Moves the value block for a grant at the master.
    fn move_lvb(&mut self, r: Index, index: Index) {
        let lock = self.store.locks.at_mut(index);
        let rsb = self.store.rsbs.at_mut(r);
        let valblk = lock.exflags.contains(Lkf::VALBLK);
        let from = lock.grmode.unwrap_or(Mode::Nl);
        match lock.rqmode.map_or(LvbMove::Keep, |to| transfer(from, to)) {
            LvbMove::Read => {
                let (true, Some(value)) = (valblk, &rsb.lvb) else {
                    return;
                };
                lock.lvb = Some(value.clone());
                lock.lvbseq = rsb.lvbseq;
                lock.bits |= Bits::LVB_READ;
            }
            LvbMove::Write => {
                if lock.exflags.contains(Lkf::IVVALBLK) {
                    rsb.bits |= RsbBits::VALNOTVALID;
                    return;
                }
                if !valblk {
                    return;
                }
                rsb.lvb = Some(lock.lvb.clone().unwrap_or_else(|| Box::new([0; LVB_LEN])));
                rsb.lvbseq = rsb.lvbseq.wrapping_add(1);
                lock.lvbseq = rsb.lvbseq;
                rsb.bits.remove(RsbBits::VALNOTVALID);
            }
            LvbMove::Keep => {}
        }
        if rsb.bits.contains(RsbBits::VALNOTVALID) {
            lock.sbflags |= SbFlags::VALNOTVALID;
        }
    }

    /// Moves the value block for an unlock at the master.
    fn move_lvb_at_unlock(&mut self, r: Index, index: Index) {
        let lock = self.store.locks.at(index);
        let rsb = self.store.rsbs.at_mut(r);
        if lock.grmode < Some(Mode::Pw) {
            return;
        }
        if lock.exflags.contains(Lkf::IVVALBLK) {
            rsb.bits |= RsbBits::VALNOTVALID;
        } else if let (true, Some(value)) = (lock.exflags.contains(Lkf::VALBLK), &lock.lvb) {
            rsb.lvb = Some(value.clone());
            rsb.lvbseq = rsb.lvbseq.wrapping_add(1);
            rsb.bits.remove(RsbBits::VALNOTVALID);
        }
    }

    /// The lock has what it asked for (also at the holder, when its master says so).
    pub(super) fn settle_grant(&mut self, index: Index) {
        let lock = self.store.locks.at_mut(index);
        let moves = lock.grmode != lock.rqmode || lock.status != Some(QueueStatus::Granted);
        lock.grmode = lock.rqmode;
        if moves {
            // Its place among the granted depends on what the others ask for, not on its own request.
            self.store.requeue(index, QueueStatus::Granted);
        }
        let lock = self.store.locks.at_mut(index);
        lock.rqmode = None;
        lock.highbast = Mode::Nl;
    }

    fn grant(&mut self, r: Index, index: Index) {
        self.move_lvb(r, index);
        self.settle_grant(index);
    }

    /// Grants a lock that waited: its holder hears of it on its own.
    fn grant_pending(&mut self, r: Index, index: Index) {
        self.grant(r, index);
        if self.store.locks.at(index).is_master_copy() {
            self.send_grant(r, index);
        } else {
            self.queue_cast(index, WireResult::OK);
        }
    }

    pub(super) fn do_request(&mut self, r: Index, index: Index) -> WireResult {
        if self.attempt(r, index, true, false).granted {
            self.grant(r, index);
            self.queue_cast(index, WireResult::OK);
            return WireResult::OK;
        }
        if self.store.locks.at(index).exflags.contains(Lkf::NOQUEUE) {
            self.queue_cast(index, WireResult::AGAIN);
            self.end(index);
            return WireResult::AGAIN;
        }
        self.store.enqueue(index, QueueStatus::Waiting);
        WireResult::INPROGRESS
    }

    pub(super) fn do_request_effects(&mut self, r: Index, index: Index, result: WireResult) {
        match result {
            WireResult::AGAIN => self.knock(r, index),
            WireResult::INPROGRESS => self.tell(self.store.rsbs.at(r).granted, index),
            _ => {}
        }
    }

    pub(super) fn do_convert(&mut self, r: Index, index: Index) -> WireResult {
        let attempt = self.attempt(r, index, true, false);
        if attempt.granted {
            self.grant(r, index);
            self.queue_cast(index, WireResult::OK);
            return WireResult::OK;
        }
        let lock = self.store.locks.at(index);
        let (flags, demoted) = (lock.exflags, lock.sbflags.contains(SbFlags::DEMOTED));
        if attempt.deadlock && !flags.contains(Lkf::NODLCKWT) {
            self.revert(index);
            self.queue_cast(index, WireResult::DEADLK);
            return WireResult::DEADLK;
        }
        if demoted {
            // Having let go may let others, and then us, through.
            let mut blocked = Blocked::default();
            self.grant_conversions(r, &mut blocked);
            if self.grantable(r, index, true, false) {
                self.grant(r, index);
                self.queue_cast(index, WireResult::OK);
                return WireResult::OK;
            }
        }
        if !flags.contains(Lkf::NOQUEUE) {
            self.store.requeue(index, QueueStatus::Convert);
            return WireResult::INPROGRESS;
        }
        self.queue_cast(index, WireResult::AGAIN);
        WireResult::AGAIN
    }

    pub(super) fn do_convert_effects(&mut self, r: Index, index: Index, result: WireResult) {
        match result {
            WireResult::OK => self.grant_pending_locks(r),
            WireResult::AGAIN => self.knock(r, index),
            WireResult::INPROGRESS => self.tell(self.store.rsbs.at(r).granted, index),
            _ => {}
        }
    }

    pub(super) fn do_unlock(&mut self, r: Index, index: Index) {
        self.move_lvb_at_unlock(r, index);
        self.store.dequeue(index);
        self.store.locks.at_mut(index).grmode = None;
        self.queue_cast(index, WireResult::UNLOCK);
        self.end(index);
    }

    /// Takes a waiting operation back: `CANCEL`, or `OK` when there was none.
    pub(super) fn do_cancel(&mut self, index: Index) -> WireResult {
        if !self.revert(index) {
            return WireResult::OK;
        }
        self.queue_cast(index, WireResult::CANCEL);
        WireResult::CANCEL
    }

    /// A conversion goes back to granted, a request goes. False: neither was waiting.
    pub(super) fn revert(&mut self, index: Index) -> bool {
        let lock = self.store.locks.at_mut(index);
        lock.rqmode = None;
        match lock.status {
            Some(QueueStatus::Convert) => self.store.requeue(index, QueueStatus::Granted),
            Some(QueueStatus::Waiting) => {
                lock.grmode = None;
                self.store.dequeue(index);
                self.end(index);
            }
            Some(QueueStatus::Granted) | None => return false,
        }
        true
    }

    fn grant_conversions(&mut self, r: Index, blocked: &mut Blocked) {
        let recover = self.store.rsbs.at(r).bits.contains(RsbBits::RECOVER_GRANT);
        let mut demoted_before = false;
        loop {
            *blocked = Blocked::default();
            let (mut granted, mut demoted) = (false, false);
            for index in self.store.indices(self.store.rsbs.at(r).convert) {
                if self.store.locks.at(index).status != Some(QueueStatus::Convert) {
                    continue;
                }
                let was = self.store.locks.at(index).sbflags.contains(SbFlags::DEMOTED);
                let attempt = self.attempt(r, index, false, recover);
                if attempt.granted {
                    self.grant_pending(r, index);
                    granted = true;
                    continue;
                }
                let lock = self.store.locks.at(index);
                if !was && lock.sbflags.contains(SbFlags::DEMOTED) {
                    demoted = true;
                } else if attempt.deadlock {
                    self.tell_deadlocked(index);
                } else {
                    blocked.note(lock.rqmode);
                }
            }
            if !granted && (!demoted || demoted_before) {
                return;
            }
            demoted_before |= demoted && !granted;
        }
    }

    /// NODLCKWT: the waiting conversion itself is asked to give way.
    fn tell_deadlocked(&mut self, index: Index) {
        let lock = self.store.locks.at(index);
        if let Some(mode) = lock.rqmode
            && lock.exflags.contains(Lkf::NODLCKWT)
            && lock.highbast < mode
        {
            self.store.locks.at_mut(index).highbast = mode;
            self.queue_bast(index, mode);
        }
    }

    /// Grants whatever has become possible, then tells holders what is still blocked.
    pub(super) fn grant_pending_locks(&mut self, r: Index) {
        let rsb = self.store.rsbs.at(r);
        if rsb.convert.is_empty() && rsb.waiting.is_empty() {
            return;
        }
        let mut blocked = Blocked::default();
        self.grant_conversions(r, &mut blocked);
        for index in self.store.indices(self.store.rsbs.at(r).waiting) {
            if self.attempt(r, index, false, false).granted {
                self.grant_pending(r, index);
            } else {
                blocked.note(self.store.locks.at(index).rqmode);
            }
        }
        let Some(high) = blocked.high else { return };
        for index in self.store.indices(self.store.rsbs.at(r).granted) {
            let lock = self.store.locks.at(index);
            if !lock.asts.contains(Asts::BAST) || !needs_bast(lock, high, blocked.cw) {
                continue;
            }
            let cw = blocked.cw && high == Mode::Pr && lock.grmode == Some(Mode::Pr);
            self.store.locks.at_mut(index).highbast = high;
            self.queue_bast(index, if cw { Mode::Cw } else { high });
        }
    }

    /// A NOQUEUE attempt failed; with NOQUEUEBAST it still knocks, at the converting ones too.
    fn knock(&mut self, r: Index, index: Index) {
        if self.store.locks.at(index).exflags.contains(Lkf::NOQUEUEBAST) {
            let (granted, convert) = (self.store.rsbs.at(r).granted, self.store.rsbs.at(r).convert);
            self.tell(granted, index);
            self.tell(convert, index);
        }
    }

    /// Tells those on `list` that are in the way of a lock.
    fn tell(&mut self, list: List, index: Index) {
        let Some(wanted) = self.store.locks.at(index).rqmode else {
            return;
        };
        for at in self.store.indices(list) {
            let lock = self.store.locks.at(at);
            let middle = matches!(
                (lock.grmode, wanted),
                (Some(Mode::Pr), Mode::Cw) | (Some(Mode::Cw), Mode::Pr)
            );
            let due = if middle {
                lock.highbast < Mode::Ex
            } else {
                lock.highbast < wanted && !compatible(lock.grmode, Some(wanted))
            };
            if at != index && due && lock.asts.contains(Asts::BAST) {
                self.store.locks.at_mut(at).highbast = wanted;
                self.queue_bast(at, wanted);
            }
        }
    }
}

fn needs_bast(lock: &Lkb, high: Mode, cw: bool) -> bool {
    if lock.grmode == Some(Mode::Pr) && cw {
        return lock.highbast < Mode::Ex;
    }
    lock.highbast < high && !compatible(lock.grmode, Some(high))
}
