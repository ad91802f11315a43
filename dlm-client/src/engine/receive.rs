//! Messages about locks from peers.
//!
//! Nothing of a message is believed before it fits what we know: the lock exists, the sender is its holder or its
//! master, and an answer is awaited. What does not fit is logged and changes nothing.

use super::Engine;
use super::directory::{From, Lookup};
use super::interface::Level;
use super::store::{Bits, Index, Lkb, Place, RsbBits};
use crate::lvb::{LVB_LEN, LvbMove, transfer};
use crate::wire::{Message, MsgFlags, MsgType, QueueStatus, WireResult};
use crate::{Lkf, Mode, NodeId, SbFlags};

/// Messages kept during recovery at most: all peers together have no more outstanding.
const REQUESTQUEUE_MAX: usize = 1 << 22;

impl Engine {
    pub(super) fn receive_message(&mut self, from: NodeId, message: Message) {
        if !self.blocked {
            self.handle_message(from, &message);
        } else if self.generation == 0 {
            // From before we were a member (again).
            self.log(Level::Debug, || {
                format!(
                    "{:?} from node {} before the first recovery",
                    message.kind, from.0
                )
            });
        } else if self.requestqueue.len() >= REQUESTQUEUE_MAX {
            self.fail(format!("node {} floods the lockspace during recovery", from.0));
        } else {
            self.requestqueue.push_back((from, message));
        }
    }

    /// The messages that came during recovery.
    pub(super) fn process_requestqueue(&mut self) {
        while let Some((from, message)) = self.requestqueue.pop_front() {
            self.handle_message(from, &message);
            self.reap();
        }
        self.blocked = false;
    }

    fn handle_message(&mut self, from: NodeId, message: &Message) {
        if !self.members.contains_key(&from) || from == self.config.node {
            self.log(Level::Error, || {
                format!("{:?} from node {}, which is no member", message.kind, from.0)
            });
            return;
        }
        match message.kind {
            MsgType::Request => self.receive_request(from, message),
            MsgType::Convert | MsgType::Unlock | MsgType::Cancel => {
                self.receive_operation(from, message);
            }
            MsgType::RequestReply
            | MsgType::ConvertReply
            | MsgType::UnlockReply
            | MsgType::CancelReply
            | MsgType::Grant
            | MsgType::Bast => self.receive_from_master(from, message),
            MsgType::Lookup => self.receive_lookup(from, message),
            MsgType::LookupReply => self.receive_lookup_reply(from, message),
            MsgType::Remove => self.receive_remove(from, message),
            MsgType::Purge => self.purge_orphans(message.pid),
        }
    }

    fn receive_request(&mut self, from: NodeId, message: &Message) {
        if let Err(error) = self.try_request(from, message) {
            self.log(Level::Debug, || {
                format!("request {:x} of node {}: {error}", message.lkid, from.0)
            });
            self.send_refusal(from, message, MsgType::RequestReply, error);
            if let (WireResult::NOTBLK | WireResult::BADR, Some(name)) = (error, message.name()) {
                self.wrongly_asked(name);
            }
        }
    }

    fn try_request(&mut self, from: NodeId, message: &Message) -> Result<(), WireResult> {
        let name = message.name().ok_or(WireResult::INVAL)?;
        let mode = message.rqmode.ok_or(WireResult::INVAL)?;
        let r = self.find_rsb(name, From::Request(from))?;
        if let Err(error) = self.validate_master(r, from) {
            self.release(r);
            return Err(error);
        }
        let mut lock = master_copy(from, message.lkid, message.pid);
        take_flags(&mut lock, message);
        lock.asts = message.asts;
        lock.rqmode = Some(mode);
        if lock.exflags.contains(Lkf::VALBLK) {
            lock.lvb = Some(Box::new([0; LVB_LEN]));
        }
        let Some(index) = self.create(lock) else {
            self.release(r);
            return Err(WireResult::NOMEM);
        };
        self.attach(index, r);
        let result = self.do_request(r, index);
        self.send_reply(r, index, MsgType::RequestReply, result);
        self.do_request_effects(r, index, result);
        Ok(())
    }

    /// The holder of a lock we master wants something.
    fn receive_operation(&mut self, from: NodeId, message: &Message) {
        let kind = message.kind;
        let reply = kind.reply().unwrap_or(kind);
        let found = self.store.lock_by_id(message.remid);
        let known = found.filter(|&index| {
            let lock = self.store.locks.at(index);
            kind == MsgType::Cancel || lock.remid == message.lkid
        });
        let Some(index) = known.filter(|&index| !self.store.locks.at(index).bits.contains(Bits::ENDED))
        else {
            self.log(Level::Debug, || {
                format!("{kind:?} of node {} for unknown lock {:x}", from.0, message.remid)
            });
            self.send_refusal(from, message, reply, WireResult::NOENT);
            return;
        };
        if !self.is_valid(index, from, message) {
            return;
        }
        let lock = self.store.locks.at_mut(index);
        take_flags(lock, message);
        let r = lock.rsb;
        match kind {
            MsgType::Convert => self.receive_convert(r, index, message),
            MsgType::Unlock => {
                take_lvb(lock, message);
                self.do_unlock(r, index);
                self.send_reply(r, index, reply, WireResult::UNLOCK);
                self.grant_pending_locks(r);
            }
            _ => {
                let result = self.do_cancel(index);
                self.send_reply(r, index, reply, result);
                if result == WireResult::CANCEL {
                    self.grant_pending_locks(r);
                }
            }
        }
    }

    fn receive_convert(&mut self, r: Index, index: Index, message: &Message) {
        let lock = self.store.locks.at_mut(index);
        if lock.status != Some(QueueStatus::Granted) || message.rqmode.is_none() {
            self.send_reply(r, index, MsgType::ConvertReply, WireResult::BUSY);
            return;
        }
        take_lvb(lock, message);
        lock.rqmode = message.rqmode;
        lock.lvbseq = message.lvbseq;
        let down = lock.is_down_conversion();
        let result = self.do_convert(r, index);
        if !down {
            self.send_reply(r, index, MsgType::ConvertReply, result);
        }
        self.do_convert_effects(r, index, result);
    }

    fn is_valid(&mut self, index: Index, from: NodeId, message: &Message) -> bool {
        let lock = self.store.locks.at(index);
        let there = lock.place == Place::Node(from);
        let fits = match message.kind {
            MsgType::Convert | MsgType::Unlock | MsgType::Cancel => lock.is_master_copy() && there,
            MsgType::RequestReply => lock.is_process_copy() && (there || lock.place == Place::Unknown),
            _ => lock.is_process_copy() && there,
        };
        // A process's lock and the kernel's are not the same.
        let user = message.flags.contains(MsgFlags::USER) && !lock.flags.contains(MsgFlags::USER);
        let valid = fits && !user;
        if !valid {
            let id = lock.id;
            self.log(Level::Error, || {
                format!("{:?} from node {} does not fit lock {id:x}", message.kind, from.0)
            });
        }
        valid
    }

    /// The master of a lock of ours says something.
    fn receive_from_master(&mut self, from: NodeId, message: &Message) {
        let Some(index) = self.store.lock_by_id(message.remid) else {
            self.log(Level::Debug, || {
                format!(
                    "{:?} of node {} for unknown lock {:x}",
                    message.kind, from.0, message.remid
                )
            });
            return;
        };
        if !self.is_valid(index, from, message) {
            return;
        }
        match message.kind {
            MsgType::RequestReply => self.receive_request_reply(index, from, message),
            MsgType::Grant => self.receive_grant(index, message),
            MsgType::Bast => {
                if let Some(mode) = message.bastmode {
                    self.queue_bast(index, mode);
                    self.store.locks.at_mut(index).highbast = mode;
                }
            }
            kind => {
                if !self.remove_from_waiters(index, kind, Some(message.result)) {
                    return;
                }
                match kind {
                    MsgType::ConvertReply => self.convert_replied(index, message.result, Some(message)),
                    MsgType::UnlockReply => self.unlock_replied(index, message.result),
                    _ => self.cancel_replied(index, message.result, Some(message)),
                }
            }
        }
    }

    fn receive_grant(&mut self, index: Index, message: &Message) {
        let lock = self.store.locks.at_mut(index);
        let waits = matches!(lock.status, Some(QueueStatus::Waiting | QueueStatus::Convert));
        if !waits || lock.rqmode.is_none() {
            let id = lock.id;
            self.log(Level::Error, || {
                format!("GRANT for lock {id:x}, which waits for none")
            });
            return;
        }
        take_reply_flags(lock, message);
        alternative(lock);
        lock.settle_cancel();
        self.grant_copy(index, Some(message));
        self.queue_cast(index, WireResult::OK);
    }

    /// The master granted a lock of ours.
    fn grant_copy(&mut self, index: Index, message: Option<&Message>) {
        let lock = self.store.locks.at_mut(index);
        let from = lock.grmode.unwrap_or(Mode::Nl);
        let reads = lock.rqmode.is_some_and(|to| transfer(from, to) == LvbMove::Read);
        if let Some(message) = message
            && reads
            && lock.exflags.contains(Lkf::VALBLK)
            && let Some(value) = message.lvb()
        {
            lock.lvb = Some(Box::new(*value));
            lock.lvbseq = message.lvbseq;
            lock.bits |= Bits::LVB_READ;
        }
        self.settle_grant(index);
    }

    fn receive_request_reply(&mut self, index: Index, from: NodeId, message: &Message) {
        let was = self.store.locks.at(index).wait_type;
        if !matches!(was, Some(MsgType::Request | MsgType::Lookup)) {
            self.log(Level::Error, || {
                format!("REQUEST_REPLY from node {} nobody waits for", from.0)
            });
            return;
        }
        self.remove_from_waiters(index, MsgType::RequestReply, Some(message.result));
        let r = self.store.locks.at(index).rsb;
        if was == Some(MsgType::Lookup) {
            // The directory node is the master, and took the question for a request.
            self.store.rsbs.at_mut(r).master = Some(from);
            self.store.locks.at_mut(index).place = Place::Node(from);
        }
        match message.result {
            WireResult::OK | WireResult::INPROGRESS => {
                let lock = self.store.locks.at_mut(index);
                take_reply_flags(lock, message);
                lock.remid = message.lkid;
                alternative(lock);
                if message.result == WireResult::OK {
                    self.grant_copy(index, Some(message));
                    self.queue_cast(index, WireResult::OK);
                } else {
                    self.store.enqueue(index, QueueStatus::Waiting);
                }
                self.store.rsbs.at_mut(r).bits.remove(RsbBits::UNNAMED);
                self.confirm_master(r);
                self.send_overlapping(r, index, message.result);
            }
            WireResult::BADR | WireResult::NOTBLK => self.ask_again(r, index),
            other => {
                let id = self.store.locks.at(index).id;
                if other != WireResult::AGAIN {
                    self.log(Level::Error, || {
                        format!("request {id:x}: node {} says {other}", from.0)
                    });
                }
                self.queue_cast(index, other);
                self.end(index);
                self.pass_first(r, id);
            }
        }
    }

    /// The node we took for the master is none: ask the directory.
    fn ask_again(&mut self, r: Index, index: Index) {
        let us = self.config.node;
        let rsb = self.store.rsbs.at_mut(r);
        let lock = self.store.locks.at_mut(index);
        if rsb.dir != us && rsb.master != Some(us) {
            rsb.master = None;
            lock.place = Place::Unknown;
        }
        if lock.overlaps() {
            let id = lock.id;
            self.cast_overlap(index);
            self.pass_first(r, id);
            return;
        }
        self.request_lock(r, index);
        if !self.is_remote(r) {
            self.confirm_master(r);
        }
    }

    /// The unlock or cancel that overlapped a request is the answer to it.
    fn cast_overlap(&mut self, index: Index) {
        let lock = self.store.locks.at_mut(index);
        let result = if lock.bits.contains(Bits::OVERLAP_UNLOCK) {
            WireResult::UNLOCK
        } else {
            WireResult::CANCEL
        };
        lock.bits.remove(Bits::OVERLAP_UNLOCK | Bits::OVERLAP_CANCEL);
        self.queue_cast(index, result);
        self.end(index);
    }

    /// What was held back until the request was answered.
    fn send_overlapping(&mut self, r: Index, index: Index, result: WireResult) {
        let lock = self.store.locks.at_mut(index);
        let unlock = lock.bits.contains(Bits::OVERLAP_UNLOCK);
        let cancel = lock.bits.contains(Bits::OVERLAP_CANCEL);
        lock.bits.remove(Bits::OVERLAP_UNLOCK | Bits::OVERLAP_CANCEL);
        if unlock {
            // Nothing was written under it.
            lock.exflags.remove(Lkf::VALBLK | Lkf::IVVALBLK);
            lock.exflags |= Lkf::FORCEUNLOCK;
            self.send_common(r, index, MsgType::Unlock);
        } else if cancel && result == WireResult::INPROGRESS {
            lock.exflags |= Lkf::CANCEL;
            self.send_common(r, index, MsgType::Cancel);
        }
    }

    /// A conversion of ours was answered; `None`: by ourselves.
    pub(super) fn convert_replied(&mut self, index: Index, result: WireResult, message: Option<&Message>) {
        let lock = self.store.locks.at_mut(index);
        if let Some(message) = message
            && result != WireResult::AGAIN
        {
            take_reply_flags(lock, message);
        }
        let demoted = lock.sbflags.contains(SbFlags::DEMOTED);
        match result {
            WireResult::OK | WireResult::INPROGRESS => {
                if demoted && lock.grmode.is_some() {
                    lock.grmode = Some(Mode::Nl);
                }
                alternative(lock);
                if result == WireResult::OK {
                    self.grant_copy(index, message);
                    self.queue_cast(index, WireResult::OK);
                } else {
                    self.store.requeue(index, QueueStatus::Convert);
                }
            }
            other => {
                lock.rqmode = None;
                if !matches!(other, WireResult::AGAIN | WireResult::DEADLK) {
                    let id = lock.id;
                    self.log(Level::Error, || {
                        format!("conversion of {id:x}: its master says {other}")
                    });
                }
                self.queue_cast(index, other);
            }
        }
    }

    pub(super) fn unlock_replied(&mut self, index: Index, result: WireResult) {
        match result {
            WireResult::UNLOCK => {
                let id = self.store.locks.at(index).id;
                let r = self.store.locks.at(index).rsb;
                self.store.dequeue(index);
                self.store.locks.at_mut(index).grmode = None;
                self.queue_cast(index, WireResult::UNLOCK);
                self.end(index);
                self.pass_first(r, id);
            }
            // The request it overlapped had failed: that was the Cast.
            WireResult::NOENT => {}
            other => {
                let id = self.store.locks.at(index).id;
                self.log(Level::Error, || {
                    format!("unlock of {id:x}: its master says {other}")
                });
            }
        }
    }

    pub(super) fn cancel_replied(&mut self, index: Index, result: WireResult, message: Option<&Message>) {
        if result != WireResult::CANCEL {
            return;
        }
        let lock = self.store.locks.at_mut(index);
        if let Some(message) = message {
            take_reply_flags(lock, message);
            if lock.status == Some(QueueStatus::Convert) && message.grmode.is_some() {
                // Lost in recovery, or given up for CONVDEADLK: the master knows.
                lock.grmode = message.grmode;
            }
        }
        if self.revert(index) || self.store.locks.at(index).status == Some(QueueStatus::Granted) {
            self.queue_cast(index, WireResult::CANCEL);
        }
    }

    fn receive_lookup(&mut self, from: NodeId, message: &Message) {
        let Some(name) = message.name() else { return };
        match self.master_lookup(from, name, Lookup::Normal) {
            Ok(master) if master == self.config.node => self.receive_request(from, message),
            answer => self.send_lookup_reply(from, message, answer),
        }
    }

    fn receive_lookup_reply(&mut self, from: NodeId, message: &Message) {
        let found = self.store.lock_by_id(message.lkid).filter(|&index| {
            let lock = self.store.locks.at(index);
            lock.wait_type == Some(MsgType::Lookup) && lock.wait_node == from
        });
        let Some(index) = found else {
            self.log(Level::Error, || {
                format!("LOOKUP_REPLY from node {} nobody waits for", from.0)
            });
            return;
        };
        self.remove_from_waiters(index, MsgType::LookupReply, None);
        let r = self.store.locks.at(index).rsb;
        let master = u32::try_from(message.nodeid)
            .map(NodeId)
            .ok()
            .filter(|node| self.members.contains_key(node));
        if master.is_none() {
            self.log(Level::Error, || {
                format!("LOOKUP_REPLY from node {}: master {}", from.0, message.nodeid)
            });
        }
        let ours = master == Some(self.config.node);
        let rsb = self.store.rsbs.at_mut(r);
        rsb.master = master;
        if ours {
            rsb.first = 0;
        }
        let lock = self.store.locks.at(index);
        if lock.overlaps() {
            let id = lock.id;
            self.cast_overlap(index);
            self.pass_first(r, id);
        } else {
            self.request_lock(r, index);
        }
        if ours {
            self.process_lookup_list(r);
        }
    }
}

pub(super) fn master_copy(holder: NodeId, remid: u32, pid: u32) -> Lkb {
    let mut lock = Lkb::new(0, pid);
    lock.bits |= Bits::MASTER_COPY;
    lock.place = Place::Node(holder);
    lock.remid = remid;
    lock
}

fn take_flags(lock: &mut Lkb, message: &Message) {
    lock.exflags = message.exflags;
    take_reply_flags(lock, message);
}

fn take_reply_flags(lock: &mut Lkb, message: &Message) {
    lock.sbflags = message.sbflags;
    lock.flags = message.flags & MsgFlags::all();
}

fn take_lvb(lock: &mut Lkb, message: &Message) {
    if lock.exflags.contains(Lkf::VALBLK) {
        let value = message.lvb().copied();
        match (&mut lock.lvb, value) {
            (Some(place), Some(value)) => **place = value,
            (place @ None, value) => *place = Some(Box::new(value.unwrap_or([0; LVB_LEN]))),
            (Some(_), None) => {}
        }
    }
}

/// ALTPR, ALTCW: the master chose the other mode.
fn alternative(lock: &mut Lkb) {
    if !lock.sbflags.contains(SbFlags::ALTMODE) {
        return;
    }
    if lock.exflags.contains(Lkf::ALTPR) {
        lock.rqmode = Some(Mode::Pr);
    } else if lock.exflags.contains(Lkf::ALTCW) {
        lock.rqmode = Some(Mode::Cw);
    }
}
