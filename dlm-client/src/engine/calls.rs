//! Calls of the user: checked, kept while the lockspace is stopped, carried out here or sent to the master.

use super::Engine;
use super::store::{Bits, Index, Lkb, Place};
use crate::lvb::{LVB_LEN, LvbMove, transfer};
use crate::wire::{Message, MsgFlags, MsgType, Payload, QueueStatus, WireResult};
use crate::{Lkf, LockError, LockId, Lvb, Mode, NodeId, ResName, SbFlags};

/// A call that waits for the end of recovery.
#[derive(Clone, Copy, Debug)]
pub(super) enum Held {
    Request {
        id: u32,
        name: ResName,
    },
    Convert {
        id: u32,
        mode: Mode,
        flags: Lkf,
        lvb: Option<Lvb>,
    },
    Unlock {
        id: u32,
        flags: Lkf,
        lvb: Option<Lvb>,
    },
    Cancel {
        id: u32,
    },
    Purge {
        pid: u32,
    },
}

impl Engine {
    /// Asks for a new lock; as [`crate::Lockspace::request`].
    ///
    /// # Errors
    /// Flags that make no sense, or too many locks.
    pub fn request(
        &mut self,
        name: &ResName,
        mode: Mode,
        flags: Lkf,
        token: u64,
    ) -> Result<LockId, LockError> {
        self.check_alive()?;
        check_flags("request", None, mode, flags)?;
        let mut lock = Lkb::new(token, self.config.pid);
        lock.exflags = flags;
        lock.rqmode = Some(mode);
        if flags.contains(Lkf::VALBLK) {
            lock.lvb = Some(Box::new([0; LVB_LEN]));
        }
        let index = self.create(lock).ok_or(LockError::OutOfIds)?;
        let id = self.store.locks.at(index).id;
        if self.running {
            self.start_request(index, name);
            self.reap();
        } else {
            self.store.locks.at_mut(index).held = 1;
            self.held.push_back(Held::Request { id, name: *name });
        }
        Ok(LockId(id))
    }

    /// Asks for another mode; as [`crate::Lockspace::convert`].
    ///
    /// # Errors
    /// A lock that is busy or not ours, or flags that make no sense.
    pub fn convert(
        &mut self,
        id: LockId,
        mode: Mode,
        flags: Lkf,
        lvb: Option<&Lvb>,
    ) -> Result<(), LockError> {
        self.check_alive()?;
        let index = self.own(id)?;
        let lock = self.store.locks.at(index);
        if lock.is_busy() || lock.overlaps() {
            return Err(LockError::Busy(id));
        }
        check_flags("convert", lock.grmode, mode, flags)?;
        if self.running {
            self.start_convert(index, mode, flags, lvb);
            self.reap();
        } else {
            self.hold(
                index,
                Held::Convert {
                    id: id.0,
                    mode,
                    flags,
                    lvb: lvb.copied(),
                },
            );
        }
        Ok(())
    }

    /// Gives a lock up; as [`crate::Lockspace::unlock`].
    ///
    /// # Errors
    /// A lock that is busy (without FORCEUNLOCK) or not ours.
    pub fn unlock(&mut self, id: LockId, flags: Lkf, lvb: Option<&Lvb>) -> Result<(), LockError> {
        self.check_alive()?;
        let index = self.own(id)?;
        let lock = self.store.locks.at(index);
        let force = flags.contains(Lkf::FORCEUNLOCK);
        if !force && (lock.is_busy() || lock.overlaps()) {
            return Err(LockError::Busy(id));
        }
        if flags.intersects(!(Lkf::VALBLK | Lkf::IVVALBLK | Lkf::FORCEUNLOCK)) {
            return Err(LockError::InvalidFlags {
                operation: "unlock",
                mode: Mode::Nl,
                flags: flags.bits(),
            });
        }
        if self.running {
            self.start_unlock(index, flags, lvb);
            self.reap();
        } else {
            self.hold(
                index,
                Held::Unlock {
                    id: id.0,
                    flags,
                    lvb: lvb.copied(),
                },
            );
        }
        Ok(())
    }

    /// Takes back what is outstanding; as [`crate::Lockspace::cancel`].
    ///
    /// # Errors
    /// Nothing is outstanding, or the lock is not ours.
    pub fn cancel(&mut self, id: LockId) -> Result<(), LockError> {
        self.check_alive()?;
        let index = self.own(id)?;
        if !self.store.locks.at(index).is_busy() {
            return Err(LockError::NothingToCancel(id));
        }
        if self.running {
            self.start_cancel(index);
            self.reap();
        } else {
            self.hold(index, Held::Cancel { id: id.0 });
        }
        Ok(())
    }

    /// Marks a lock as left behind by its process: it stays in everybody's way, nobody hears of it, and
    /// [`Engine::purge`] drops it.
    ///
    /// # Errors
    /// The lock is not ours.
    pub fn orphan(&mut self, id: LockId, pid: u32) -> Result<(), LockError> {
        let index = self.own(id)?;
        let lock = self.store.locks.at_mut(index);
        lock.bits |= Bits::ORPHAN;
        lock.flags |= MsgFlags::ORPHAN;
        lock.pid = pid;
        match self.cancel(id) {
            Ok(()) | Err(LockError::NothingToCancel(_)) => Ok(()),
            Err(other) => Err(other),
        }
    }

    /// Drops the locks that dead processes of `node` left behind; `pid` 0 means of all processes.
    pub fn purge(&mut self, node: NodeId, pid: u32) {
        if node != self.config.node {
            let mut message = Message::new(MsgType::Purge);
            message.nodeid = i32::try_from(node.0).unwrap_or(0);
            message.pid = pid;
            self.send(node, Payload::Message(message));
        } else if self.running {
            self.purge_orphans(pid);
            self.reap();
        } else {
            self.held.push_back(Held::Purge { pid });
        }
    }

    pub(super) fn purge_orphans(&mut self, pid: u32) {
        let orphans: Vec<Index> = self
            .store
            .locks
            .iter()
            .filter(|(_, lock)| lock.bits.contains(Bits::ORPHAN) && !lock.bits.contains(Bits::ENDED))
            .filter(|(_, lock)| pid == 0 || lock.pid == pid)
            .map(|(index, _)| index)
            .collect();
        for index in orphans {
            self.start_unlock(index, Lkf::FORCEUNLOCK | Lkf::IVVALBLK, None);
        }
    }

    fn check_alive(&self) -> Result<(), LockError> {
        if self.is_failed() {
            return Err(LockError::Left);
        }
        Ok(())
    }

    /// A lock of ours that has not ended.
    pub(super) fn own(&self, id: LockId) -> Result<Index, LockError> {
        let index = self.store.lock_by_id(id.0).ok_or(LockError::NoSuchLock(id))?;
        let bits = self.store.locks.at(index).bits;
        if bits.intersects(Bits::MASTER_COPY | Bits::ENDED) {
            return Err(LockError::NoSuchLock(id));
        }
        Ok(index)
    }

    pub(super) fn hold(&mut self, index: Index, call: Held) {
        let lock = self.store.locks.at_mut(index);
        lock.held = lock.held.saturating_add(1);
        self.held.push_back(call);
    }

    /// Carries out what was asked for during recovery.
    pub(super) fn run_held(&mut self) {
        while let Some(call) = self.held.pop_front() {
            let id = match call {
                Held::Purge { pid } => {
                    self.purge_orphans(pid);
                    continue;
                }
                Held::Request { id, .. }
                | Held::Convert { id, .. }
                | Held::Unlock { id, .. }
                | Held::Cancel { id } => id,
            };
            let Ok(index) = self.own(LockId(id)) else {
                continue;
            };
            let lock = self.store.locks.at_mut(index);
            lock.held = lock.held.saturating_sub(1);
            match call {
                Held::Request { name, .. } => self.start_request(index, &name),
                Held::Convert { mode, flags, lvb, .. } => {
                    self.start_convert(index, mode, flags, lvb.as_ref())
                }
                Held::Unlock { flags, lvb, .. } => self.start_unlock(index, flags, lvb.as_ref()),
                Held::Cancel { .. } => self.start_cancel(index),
                Held::Purge { .. } => {}
            }
            self.reap();
        }
    }

    fn start_request(&mut self, index: Index, name: &ResName) {
        match self.find_for_request(name) {
            Some(rsb) => {
                self.attach(index, rsb);
                self.request_lock(rsb, index);
            }
            None => {
                self.queue_cast(index, WireResult::NOMEM);
                self.end(index);
            }
        }
    }

    fn start_convert(&mut self, index: Index, mode: Mode, flags: Lkf, lvb: Option<&Lvb>) {
        let lock = self.store.locks.at_mut(index);
        lock.exflags = flags | Lkf::CONVERT;
        lock.sbflags = SbFlags::empty();
        lock.rqmode = Some(mode);
        let writes = lock
            .grmode
            .is_some_and(|from| transfer(from, mode) == LvbMove::Write);
        set_lvb(lock, writes, lvb);
        let rsb = lock.rsb;
        self.convert_lock(rsb, index);
    }

    fn start_unlock(&mut self, index: Index, flags: Lkf, lvb: Option<&Lvb>) {
        let force = flags.contains(Lkf::FORCEUNLOCK);
        if self.store.unlist(index) {
            self.queue_cast(index, WireResult::UNLOCK);
            self.end(index);
            return;
        }
        let lock = self.store.locks.at_mut(index);
        if force {
            // A second one adds nothing.
            if lock.exflags.contains(Lkf::FORCEUNLOCK) || lock.bits.contains(Bits::OVERLAP_UNLOCK) {
                return;
            }
            if lock.bits.contains(Bits::RESEND)
                || matches!(lock.wait_type, Some(MsgType::Lookup | MsgType::Request))
            {
                lock.bits |= Bits::OVERLAP_UNLOCK;
                return;
            }
            if lock.wait_type == Some(MsgType::Unlock) {
                return;
            }
        }
        // As in the kernel the flags of the operation before stay in force, VALBLK and IVVALBLK too.
        lock.exflags = (lock.exflags & !Lkf::CANCEL) | flags;
        lock.sbflags = SbFlags::empty();
        set_lvb(lock, true, lvb);
        let rsb = lock.rsb;
        self.unlock_lock(rsb, index);
    }

    fn start_cancel(&mut self, index: Index) {
        if self.store.unlist(index) {
            self.queue_cast(index, WireResult::CANCEL);
            self.end(index);
            return;
        }
        let lock = self.store.locks.at_mut(index);
        if lock.exflags.contains(Lkf::CANCEL) || lock.overlaps() {
            return;
        }
        if lock.bits.contains(Bits::RESEND)
            || matches!(lock.wait_type, Some(MsgType::Lookup | MsgType::Request))
        {
            lock.bits |= Bits::OVERLAP_CANCEL;
            return;
        }
        if lock.status == Some(QueueStatus::Granted) && lock.wait_type.is_none()
            || matches!(lock.wait_type, Some(MsgType::Unlock | MsgType::Cancel))
        {
            return;
        }
        lock.exflags |= Lkf::CANCEL;
        lock.sbflags = SbFlags::empty();
        let rsb = lock.rsb;
        self.cancel_lock(rsb, index);
    }

    /// Is the resource mastered by another node?
    pub(super) fn is_remote(&self, rsb: Index) -> bool {
        self.store.rsbs.at(rsb).master != Some(self.config.node)
    }

    /// A new lock on its resource, whose master may have to be found first.
    pub(super) fn request_lock(&mut self, rsb: Index, index: Index) {
        if !self.set_master(rsb, index) {
            return;
        }
        if self.is_remote(rsb) {
            self.send_common(rsb, index, MsgType::Request);
        } else {
            self.store.locks.at_mut(index).place = Place::Us;
            let result = self.do_request(rsb, index);
            self.do_request_effects(rsb, index, result);
        }
    }

    pub(super) fn convert_lock(&mut self, rsb: Index, index: Index) {
        if !self.is_remote(rsb) {
            let result = self.do_convert(rsb, index);
            self.do_convert_effects(rsb, index, result);
            return;
        }
        if self.send_common(rsb, index, MsgType::Convert) && self.store.locks.at(index).is_down_conversion() {
            // The master sends no reply to a conversion down: it cannot fail.
            self.remove_from_waiters(index, MsgType::ConvertReply, Some(WireResult::OK));
            self.convert_replied(index, WireResult::OK, None);
        }
    }

    pub(super) fn unlock_lock(&mut self, rsb: Index, index: Index) {
        if self.is_remote(rsb) {
            self.send_common(rsb, index, MsgType::Unlock);
        } else {
            self.do_unlock(rsb, index);
            self.grant_pending_locks(rsb);
        }
    }

    fn cancel_lock(&mut self, rsb: Index, index: Index) {
        if self.is_remote(rsb) {
            self.send_common(rsb, index, MsgType::Cancel);
        } else if self.do_cancel(index) == WireResult::CANCEL {
            self.grant_pending_locks(rsb);
        }
    }
}

/// The value block of a call. One that would write, but was given no bytes, does not move it; what the user gives with
/// one that reads is nothing.
fn set_lvb(lock: &mut Lkb, writes: bool, lvb: Option<&Lvb>) {
    if !lock.exflags.contains(Lkf::VALBLK) {
        return;
    }
    let writes = writes && !lock.exflags.contains(Lkf::IVVALBLK);
    match (writes, lvb) {
        (true, None) => lock.exflags.remove(Lkf::VALBLK),
        (true, Some(bytes)) => lock.lvb = Some(Box::new(*bytes)),
        (false, _) if lock.lvb.is_none() => lock.lvb = Some(Box::new([0; LVB_LEN])),
        (false, _) => {}
    }
}

/// Refuses flags that contradict the operation or each other.
pub(crate) fn check_flags(
    operation: &'static str,
    from: Option<Mode>,
    mode: Mode,
    flags: Lkf,
) -> Result<(), LockError> {
    let foreign = Lkf::CANCEL | Lkf::CONVERT | Lkf::FORCEUNLOCK | Lkf::ORPHAN;
    let bad = flags.intersects(foreign)
        || (from.is_none() && flags.intersects(Lkf::QUECVT | Lkf::CONVDEADLK))
        || flags.contains(Lkf::CONVDEADLK | Lkf::NOQUEUE)
        || (flags.contains(Lkf::EXPEDITE)
            && (from.is_some() || flags.contains(Lkf::NOQUEUE) || mode != Mode::Nl))
        || (flags.contains(Lkf::QUECVT) && from.is_some_and(|from| !from.quecvt_legal(mode)));
    if bad {
        return Err(LockError::InvalidFlags {
            operation,
            mode,
            flags: flags.bits(),
        });
    }
    Ok(())
}
