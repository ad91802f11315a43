//! Operations of ours that wait for an answer, and what recovery does with them.
//!
//! At most two answers are outstanding for a lock: that of an operation, and that of an unlock or cancel which
//! overlaps it.

use super::Engine;
use super::calls::Held;
use super::interface::Level;
use super::store::{Bits, Index, Place, RsbBits};
use crate::wire::{MsgType, WireResult};
use crate::{Lkf, NodeId};

impl Engine {
    /// Notes that an answer is awaited. False: the operation is refused, another one is in the way.
    pub(super) fn add_to_waiters(&mut self, index: Index, kind: MsgType, to: NodeId) -> bool {
        let lock = self.store.locks.at_mut(index);
        if lock.bits.contains(Bits::OVERLAP_UNLOCK)
            || (lock.bits.contains(Bits::OVERLAP_CANCEL) && kind == MsgType::Cancel)
        {
            return false;
        }
        if lock.wait_type.is_some() || lock.bits.contains(Bits::OVERLAP_CANCEL) {
            match kind {
                MsgType::Unlock => lock.bits |= Bits::OVERLAP_UNLOCK,
                MsgType::Cancel => lock.bits |= Bits::OVERLAP_CANCEL,
                _ => return false,
            }
        } else {
            lock.wait_type = Some(kind);
            lock.wait_node = to;
        }
        lock.wait_count = lock.wait_count.saturating_add(1);
        true
    }

    /// An answer is here. False: nobody waits for it.
    pub(super) fn remove_from_waiters(
        &mut self,
        index: Index,
        kind: MsgType,
        result: Option<WireResult>,
    ) -> bool {
        let ends = kind == MsgType::ConvertReply && result != Some(WireResult::INPROGRESS);
        let lock = self.store.locks.at_mut(index);
        if kind == MsgType::CancelReply && lock.stale_cancels > 0 {
            lock.stale_cancels = lock.stale_cancels.saturating_sub(1);
            return false;
        }
        let overlap = match kind {
            MsgType::UnlockReply => Bits::OVERLAP_UNLOCK,
            MsgType::CancelReply => Bits::OVERLAP_CANCEL,
            _ => Bits::empty(),
        };
        if !overlap.is_empty() && lock.bits.contains(overlap) {
            lock.bits.remove(overlap);
            if lock.wait_type.take().is_some() {
                // The answer to the operation that was overlapped is not awaited any more.
                lock.wait_count = lock.wait_count.saturating_sub(1);
            }
        } else if lock.wait_type.take().is_none() {
            let id = lock.id;
            self.log(Level::Error, || {
                format!("{kind:?} for lock {id:x}, which waits for nothing")
            });
            return false;
        }
        let lock = self.store.locks.at_mut(index);
        if ends {
            lock.settle_cancel();
        }
        lock.bits.remove(Bits::RESEND);
        lock.wait_count = lock.wait_count.saturating_sub(1);
        if lock.wait_count == 0 && lock.bits.contains(Bits::ENDED) {
            self.reap_later(index);
        }
        true
    }

    fn waiting(&self) -> Vec<Index> {
        self.store
            .locks
            .iter()
            .filter(|(_, lock)| lock.wait_count > 0)
            .map(|(index, _)| index)
            .collect()
    }

    /// Before the locks are rebuilt: what was asked of nodes that are gone is ended or marked to be asked again.
    pub(super) fn recover_waiters_pre(&mut self) {
        for index in self.waiting() {
            // The answer to an operation, and to what overlaps it.
            while self.recover_waiter(index) {}
        }
        self.gone.awaited.clear();
    }

    /// True: one awaited answer was made up, there may be another.
    fn recover_waiter(&mut self, index: Index) -> bool {
        let lock = self.store.locks.at_mut(index);
        if lock.wait_count == 0 || lock.bits.contains(Bits::RESEND) {
            return false;
        }
        if lock.wait_type == Some(MsgType::Lookup) {
            lock.bits |= Bits::RESEND;
            return false;
        }
        if !self.config.nodir && !self.gone.awaited.contains(&lock.wait_node) {
            return false;
        }
        // Where nothing is left of the lock, the operation that was overlapped has ended it.
        let (mut wait, mut unlocked, mut canceled) = (lock.wait_type, WireResult::UNLOCK, WireResult::CANCEL);
        if wait.is_none() {
            let left = lock.status.is_some();
            if lock.bits.contains(Bits::OVERLAP_CANCEL) {
                wait = Some(MsgType::Cancel);
                canceled = if left { canceled } else { WireResult::OK };
            }
            if lock.bits.contains(Bits::OVERLAP_UNLOCK) {
                wait = Some(MsgType::Unlock);
                unlocked = if left { unlocked } else { WireResult::NOENT };
            }
        }
        match wait {
            Some(MsgType::Request) => {
                lock.bits |= Bits::RESEND;
                false
            }
            Some(MsgType::Convert) => self.recover_converting(index),
            Some(MsgType::Unlock) => {
                if self.remove_from_waiters(index, MsgType::UnlockReply, Some(unlocked)) {
                    self.unlock_replied(index, unlocked);
                }
                true
            }
            Some(MsgType::Cancel) => {
                self.store.locks.at_mut(index).stale_cancels = 0;
                if self.remove_from_waiters(index, MsgType::CancelReply, Some(canceled)) {
                    self.cancel_replied(index, canceled, None);
                }
                true
            }
            _ => false,
        }
    }

    fn recover_converting(&mut self, index: Index) -> bool {
        let lock = self.store.locks.at_mut(index);
        if !lock.is_middle_conversion() {
            lock.bits |= Bits::RESEND;
            return false;
        }
        // Nobody knows whether the old master granted it: the new one finds out from the other locks.
        if self.remove_from_waiters(index, MsgType::ConvertReply, Some(WireResult::INPROGRESS)) {
            self.convert_replied(index, WireResult::INPROGRESS, None);
        }
        let lock = self.store.locks.at_mut(index);
        if lock.bits.contains(Bits::OVERLAP_CANCEL) && !lock.bits.contains(Bits::OVERLAP_UNLOCK) {
            // Taken back when it is known again what is held.
            lock.settle_cancel();
            lock.stale_cancels = 0;
            lock.exflags.remove(Lkf::CANCEL);
            let id = lock.id;
            self.hold(index, Held::Cancel { id });
        }
        let lock = self.store.locks.at_mut(index);
        lock.grmode = None;
        self.store.rsbs.at_mut(lock.rsb).bits |= RsbBits::RECOVER_CONVERT;
        true
    }

    /// After recovery: what is marked is done again, wherever the master is now.
    pub(super) fn recover_waiters_post(&mut self) {
        for index in self.waiting() {
            // An earlier one of these may have ended it.
            let Some(lock) = self.store.locks.find(index) else {
                continue;
            };
            if lock.bits.contains(Bits::RESEND) {
                self.redo(index);
                self.reap();
            }
        }
    }

    fn redo(&mut self, index: Index) {
        let lock = self.store.locks.at_mut(index);
        let wait = lock.wait_type.take();
        let cancel = lock.bits.contains(Bits::OVERLAP_CANCEL);
        let unlock = lock.bits.contains(Bits::OVERLAP_UNLOCK);
        lock.bits
            .remove(Bits::OVERLAP_CANCEL | Bits::OVERLAP_UNLOCK | Bits::RESEND);
        lock.wait_count = 0;
        let r = lock.rsb;
        match wait {
            Some(MsgType::Lookup | MsgType::Request) if cancel || unlock => {
                let result = if unlock {
                    WireResult::UNLOCK
                } else {
                    WireResult::CANCEL
                };
                let id = lock.id;
                self.queue_cast(index, result);
                self.end(index);
                self.pass_first(r, id);
            }
            Some(MsgType::Lookup | MsgType::Request) => {
                lock.place = Place::Unknown;
                self.request_lock(r, index);
                if !self.is_remote(r) {
                    self.confirm_master(r);
                }
            }
            Some(MsgType::Convert) if unlock => {
                lock.exflags.remove(Lkf::VALBLK | Lkf::IVVALBLK);
                lock.exflags |= Lkf::FORCEUNLOCK;
                self.unlock_lock(r, index);
            }
            Some(MsgType::Convert) if cancel => {
                lock.rqmode = None;
                self.queue_cast(index, WireResult::CANCEL);
            }
            Some(MsgType::Convert) => self.convert_lock(r, index),
            other => {
                let id = lock.id;
                self.log(Level::Error, || {
                    format!("lock {id:x} waited for {other:?} and is to be redone")
                });
            }
        }
    }
}
