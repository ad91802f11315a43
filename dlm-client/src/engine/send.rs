//! Messages about locks, filled in as the kernel does.

use super::Engine;
use super::store::{Index, Place};
use crate::wire::{Extra, Message, MsgType, Payload, WireResult};
use crate::{Lkf, Mode, NodeId};

/// A node as messages spell it.
pub(super) fn signed(node: NodeId) -> i32 {
    i32::try_from(node.0).unwrap_or(-1)
}

impl Engine {
    /// A message about a lock, all but its result and mode.
    fn message(&self, r: Index, index: Index, kind: MsgType) -> Message {
        let lock = self.store.locks.at(index);
        let rsb = self.store.rsbs.at(r);
        let mut message = Message::new(kind);
        message.nodeid = match lock.place {
            Place::Us => 0,
            Place::Unknown => -1,
            Place::Node(node) => signed(node),
        };
        message.pid = lock.pid;
        message.lkid = lock.id;
        message.remid = lock.remid;
        message.exflags = lock.exflags;
        message.sbflags = lock.sbflags;
        message.flags = lock.flags;
        message.lvbseq = lock.lvbseq;
        message.status = lock.status;
        message.grmode = lock.grmode;
        message.rqmode = lock.rqmode;
        message.hash = rsb.hash;
        message.asts = lock.asts;
        message.extra = match &lock.lvb {
            _ if kind.has_name() => Extra::Name(rsb.name),
            Some(value) if kind.may_have_lvb() && lock.exflags.contains(Lkf::VALBLK) => Extra::Lvb(**value),
            _ => Extra::None,
        };
        message
    }

    /// Sends an operation of ours to the master (or the directory) and waits for its answer. False: refused, another
    /// operation is in the way.
    pub(super) fn send_common(&mut self, r: Index, index: Index, kind: MsgType) -> bool {
        let rsb = self.store.rsbs.at(r);
        let to = match kind {
            MsgType::Lookup => Some(rsb.dir),
            _ => rsb.master,
        };
        let Some(to) = to else { return false };
        if !self.add_to_waiters(index, kind, to) {
            return false;
        }
        let message = self.message(r, index, kind);
        self.send(to, Payload::Message(message));
        true
    }

    fn holder(&self, index: Index) -> Option<NodeId> {
        match self.store.locks.at(index).place {
            Place::Node(node) => Some(node),
            Place::Us | Place::Unknown => None,
        }
    }

    pub(super) fn send_reply(&mut self, r: Index, index: Index, kind: MsgType, result: WireResult) {
        let Some(to) = self.holder(index) else { return };
        let mut message = self.message(r, index, kind);
        message.result = result;
        self.send(to, Payload::Message(message));
    }

    pub(super) fn send_grant(&mut self, r: Index, index: Index) {
        self.send_reply(r, index, MsgType::Grant, WireResult::OK);
    }

    pub(super) fn send_bast(&mut self, index: Index, mode: Mode) {
        let Some(to) = self.holder(index) else { return };
        let mut message = self.message(self.store.locks.at(index).rsb, index, MsgType::Bast);
        message.bastmode = Some(mode);
        self.send(to, Payload::Message(message));
    }

    /// An answer about a lock we do not have.
    pub(super) fn send_refusal(&mut self, to: NodeId, asked: &Message, kind: MsgType, result: WireResult) {
        let mut message = Message::new(kind);
        message.nodeid = signed(to);
        message.remid = asked.lkid;
        message.result = result;
        self.send(to, Payload::Message(message));
    }

    pub(super) fn send_lookup_reply(
        &mut self,
        to: NodeId,
        asked: &Message,
        master: Result<NodeId, WireResult>,
    ) {
        let mut message = Message::new(MsgType::LookupReply);
        message.lkid = asked.lkid;
        message.nodeid = master.map_or(-1, signed);
        message.result = master.err().unwrap_or(WireResult::OK);
        self.send(to, Payload::Message(message));
    }
}
