//! Locks and resources in recovery: new masters, the locks they are told of, value blocks, what can be granted.

use super::Engine;
use super::barrier::Step;
use super::directory::From;
use super::interface::Level;
use super::receive::master_copy;
use super::store::{Index, List, NONE, Place, RsbBits};
use crate::lvb::LVB_LEN;
use crate::wire::{MsgFlags, MsgType, QueueStatus, RcomBody, RcomLock, WireResult};
use crate::{Lkf, Mode, NodeId};

impl Engine {
    fn resources(&self) -> Vec<Index> {
        self.store.rsbs.iter().map(|(index, _)| index).collect()
    }

    fn is_master(&self, index: Index) -> bool {
        self.store.rsbs.at(index).master == Some(self.config.node)
    }

    fn queues(&self, index: Index) -> [List; 3] {
        let rsb = self.store.rsbs.at(index);
        [rsb.granted, rsb.convert, rsb.waiting]
    }

    fn queued(&self, index: Index) -> Vec<Index> {
        let lists = self.queues(index);
        lists
            .into_iter()
            .flat_map(|list| self.store.indices(list))
            .collect()
    }

    /// Drops remembered masters and directory records: the directory is rebuilt.
    pub(super) fn forget_unused(&mut self) {
        for index in self.resources() {
            if self.store.rsbs.at(index).refs == 0 {
                self.store.free_rsb(index);
            }
        }
    }

    /// What an abandoned recovery was waiting for will not come.
    pub(super) fn reset_resources(&mut self) {
        for index in self.resources() {
            let rsb = self.store.rsbs.at_mut(index);
            rsb.bits.remove(RsbBits::RECOVER_LOOKUP);
            rsb.recover_locks = 0;
        }
    }

    pub(super) fn recover_directory_nodes(&mut self) {
        for index in self.resources() {
            let dir = self.directory_of(self.store.rsbs.at(index).hash);
            let (us, nodir) = (self.config.node, self.config.nodir);
            let rsb = self.store.rsbs.at_mut(index);
            rsb.dir = dir;
            // Until its master names it.
            let remote = rsb.master.is_some_and(|master| master != us);
            rsb.bits.set(RsbBits::UNNAMED, !nodir && dir == us && remote);
        }
    }

    /// Drops the locks of members that are gone.
    pub(super) fn recover_purge(&mut self) {
        let mut count = 0u64;
        for r in self.resources() {
            if !self.is_master(r) {
                continue;
            }
            for index in self.queued(r) {
                let lock = self.store.locks.at(index);
                let Place::Node(holder) = lock.place else { continue };
                if !lock.is_master_copy() || !self.gone.holders.contains(&holder) {
                    continue;
                }
                let wrote = lock.exflags.contains(Lkf::VALBLK) && lock.grmode >= Some(Mode::Pw);
                let rsb = self.store.rsbs.at_mut(r);
                rsb.bits.set(
                    RsbBits::RECOVER_LVB_INVAL,
                    wrote || rsb.bits.contains(RsbBits::RECOVER_LVB_INVAL),
                );
                rsb.bits |= RsbBits::RECOVER_GRANT;
                self.store.dequeue(index);
                self.end(index);
                count = count.saturating_add(1);
            }
        }
        let nodes = self.gone.holders.len();
        self.gone.holders.clear();
        if count > 0 {
            self.log(Level::Info, || {
                format!("recover_purge {count} locks for {nodes} nodes")
            });
        }
    }

    /// Finds new masters for resources whose master is gone.
    pub(super) fn recover_masters(&mut self) {
        let mut count = 0u64;
        for r in self.resources() {
            if self.config.nodir {
                self.recover_static_master(r);
                continue;
            }
            let us = self.config.node;
            let rsb = self.store.rsbs.at(r);
            let removed = rsb
                .master
                .is_some_and(|master| self.gone.masters.contains(&master));
            let remaster = removed || rsb.bits.contains(RsbBits::NEW_MASTER);
            // A master that is not known yet is found when the request is made again.
            if rsb.refs == 0 || self.is_master(r) || rsb.master.is_none() || !remaster {
                continue;
            }
            count = count.saturating_add(1);
            if rsb.dir == us {
                let master = if removed { Some(us) } else { rsb.master };
                self.set_new_master(r, master);
            } else {
                let (dir, name) = (rsb.dir, rsb.name);
                self.store.rsbs.at_mut(r).bits |= RsbBits::RECOVER_LOOKUP;
                if let Some(recovery) = &mut self.recovery {
                    recovery.pending = recovery.pending.saturating_add(1);
                }
                self.send_rcom(dir, u64::from(r), 0, RcomBody::Lookup { name });
            }
        }
        self.log(Level::Info, || format!("recover_masters {count}"));
    }

    /// Without a directory all locks are rebuilt, since nobody can know which were in a recovery that was abandoned.
    fn recover_static_master(&mut self, r: Index) {
        let seq = self.recover_seq;
        for index in self.queued(r) {
            let lock = self.store.locks.at(index);
            if lock.is_master_copy() && lock.rebuilt != low_half(seq) {
                self.store.dequeue(index);
                self.end(index);
            }
        }
        let dir = self.store.rsbs.at(r).dir;
        self.set_new_master(r, Some(dir));
    }

    fn set_new_master(&mut self, r: Index, master: Option<NodeId>) {
        let us = self.config.node;
        let rsb = self.store.rsbs.at_mut(r);
        rsb.master = master;
        rsb.bits.remove(RsbBits::UNNAMED);
        rsb.bits |= RsbBits::NEW_MASTER | RsbBits::NEW_MASTER2;
        let place = match master {
            Some(node) if node == us => Place::Us,
            Some(node) => Place::Node(node),
            None => Place::Unknown,
        };
        for index in self.queued(r) {
            let lock = self.store.locks.at_mut(index);
            // What this very master has already, it must not be told again: it may have ended it meanwhile.
            let known = lock.place == place && lock.remid != 0 && !self.config.nodir;
            if !lock.is_master_copy() && !known {
                lock.place = place;
                lock.remid = 0;
                lock.stale_cancels = 0;
            }
        }
    }

    /// The directory names a new master.
    pub(super) fn master_replied(&mut self, from: NodeId, id: u64, master: Result<NodeId, WireResult>) {
        let asked = Index::try_from(id).ok().filter(|&index| {
            let found = self.store.rsbs.find(index);
            found.is_some_and(|rsb| rsb.dir == from && rsb.bits.contains(RsbBits::RECOVER_LOOKUP))
        });
        let Some(r) = asked else {
            self.log(Level::Error, || {
                format!("new master from node {} nobody asked for", from.0)
            });
            return;
        };
        let master = match master {
            Ok(node) if self.members.contains_key(&node) => node,
            other => {
                let name = self.store.rsbs.at(r).name;
                self.fail(format!(
                    "node {} names {other:?} as the new master of {name:?}",
                    from.0
                ));
                return;
            }
        };
        self.store.rsbs.at_mut(r).bits.remove(RsbBits::RECOVER_LOOKUP);
        self.set_new_master(r, Some(master));
        if let Some(recovery) = &mut self.recovery {
            recovery.pending = recovery.pending.saturating_sub(1);
        }
        self.masters_found();
    }

    /// Tells new masters of our locks.
    pub(super) fn recover_locks(&mut self) {
        let mut count = 0u64;
        for r in self.resources() {
            if self.is_master(r) || self.store.rsbs.at(r).master.is_none() {
                self.store.rsbs.at_mut(r).bits.remove(RsbBits::NEW_MASTER);
                continue;
            }
            if !self.store.rsbs.at(r).bits.contains(RsbBits::NEW_MASTER) {
                continue;
            }
            let mut sent = 0u32;
            for index in self.queued(r) {
                let lock = self.store.locks.at(index);
                if !lock.is_master_copy() && lock.remid == 0 {
                    self.send_lock(r, index);
                    sent = sent.saturating_add(1);
                }
            }
            let rsb = self.store.rsbs.at_mut(r);
            rsb.recover_locks = sent;
            if sent == 0 {
                rsb.bits.remove(RsbBits::NEW_MASTER);
            }
            count = count.saturating_add(u64::from(sent));
        }
        if let Some(recovery) = &mut self.recovery {
            recovery.pending = count;
        }
        self.log(Level::Info, || format!("recover_locks {count} out"));
    }

    fn send_lock(&mut self, r: Index, index: Index) {
        let rsb = self.store.rsbs.at(r);
        let Some(to) = rsb.master else { return };
        let lock = self.store.locks.at(index);
        let body = RcomLock {
            ownpid: lock.pid,
            lkid: lock.id,
            remid: 0,
            exflags: lock.exflags,
            flags: lock.flags,
            lvbseq: lock.lvbseq,
            result: WireResult::OK,
            rqmode: lock.rqmode,
            grmode: lock.grmode,
            status: lock.status,
            asts: lock.asts,
            wait_type: lock.wait_type,
            name: rsb.name,
            lvb: lock.lvb.as_deref().copied(),
        };
        self.send_rcom(to, u64::from(r), 0, RcomBody::Lock(Box::new(body)));
    }

    /// We are the new master of a peer's lock, or will be when our own recovery gets there. Gives the answer.
    pub(super) fn receive_lock(&mut self, from: NodeId, told: RcomLock) -> RcomLock {
        let mut answer = told;
        answer.lvb = None;
        match self.rebuild_lock(from, &told, &mut answer) {
            Ok((remid, result)) => {
                answer.remid = remid;
                answer.result = result;
            }
            Err(result) => {
                self.log(Level::Debug, || {
                    format!("lock {:x} of node {}: {result}", told.lkid, from.0)
                });
                answer.result = result;
            }
        }
        answer
    }

    fn rebuild_lock(
        &mut self,
        from: NodeId,
        told: &RcomLock,
        answer: &mut RcomLock,
    ) -> Result<(u32, WireResult), WireResult> {
        let r = self.find_rsb(&told.name, From::Recovery)?;
        if self.config.nodir && self.store.rsbs.at(r).dir != self.config.node {
            self.release(r);
            return Err(WireResult::BADR);
        }
        let seq = low_half(self.recover_seq);
        let known = self.queued(r).into_iter().find(|&index| {
            let lock = self.store.locks.at(index);
            lock.place == Place::Node(from) && lock.is_master_copy() && lock.remid == told.lkid
        });
        if let Some(index) = known {
            let lock = self.store.locks.at_mut(index);
            if !self.config.nodir || lock.rebuilt == seq {
                lock.rebuilt = seq;
                return Ok((lock.id, WireResult::EXIST));
            }
            // Without a directory all is built anew: what we said of the old copy since is void.
            self.store.dequeue(index);
            self.end(index);
        }
        let mut lock = master_copy(from, told.lkid, told.ownpid);
        lock.exflags = told.exflags;
        lock.flags = told.flags & MsgFlags::all();
        lock.lvbseq = told.lvbseq;
        lock.rqmode = told.rqmode;
        lock.grmode = told.grmode;
        lock.asts = told.asts;
        lock.rebuilt = seq;
        if told.exflags.contains(Lkf::VALBLK) {
            lock.lvb = Some(Box::new(told.lvb.unwrap_or([0; LVB_LEN])));
        }
        let mut status = told.status;
        let middle = told.wait_type == Some(MsgType::Convert) && lock.is_middle_conversion();
        if middle {
            // Whether the old master granted it is found out when all locks are here.
            status = Some(QueueStatus::Convert);
            lock.grmode = None;
            answer.status = status;
        }
        // A lock that waits must say for what; one that is granted, that it is.
        let sound = match status {
            Some(QueueStatus::Granted) => told.grmode.is_some(),
            Some(QueueStatus::Waiting) => told.rqmode.is_some() && told.grmode.is_none(),
            Some(QueueStatus::Convert) => told.rqmode.is_some(),
            None => false,
        };
        let created = if sound { self.create(lock) } else { None };
        let (Some(index), Some(status)) = (created, status) else {
            self.release(r);
            return Err(if sound {
                WireResult::NOMEM
            } else {
                WireResult::INVAL
            });
        };
        self.attach(index, r);
        let granted_unknown = self.store.locks.at(index).grmode.is_none();
        self.store.enqueue(index, status);
        let rsb = self.store.rsbs.at_mut(r);
        if status == QueueStatus::Convert && granted_unknown {
            rsb.bits |= RsbBits::RECOVER_CONVERT;
        }
        if !rsb.waiting.is_empty() || !rsb.convert.is_empty() {
            rsb.bits |= RsbBits::RECOVER_GRANT;
        }
        if self.config.nodir {
            // Made just now, maybe: its value block comes from the locks all the same.
            rsb.bits |= RsbBits::NEW_MASTER2;
        }
        if let Some(recovery) = &mut self.recovery {
            recovery.locks_in = recovery.locks_in.saturating_add(1);
        }
        Ok((self.store.locks.at(index).id, WireResult::OK))
    }

    /// A new master has our lock.
    pub(super) fn lock_replied(&mut self, from: NodeId, told: &RcomLock) {
        let expected = self.store.lock_by_id(told.lkid).filter(|&index| {
            let lock = self.store.locks.at(index);
            lock.is_process_copy() && lock.place == Place::Node(from) && lock.rsb != NONE
        });
        let Some(index) = expected.filter(|&index| {
            let rsb = self.store.rsbs.at(self.store.locks.at(index).rsb);
            self.step() == Some(Step::Locks)
                && rsb.recover_locks > 0
                && rsb.bits.contains(RsbBits::NEW_MASTER)
        }) else {
            self.log(Level::Error, || {
                format!("LOCK_REPLY from node {} for lock {:x}", from.0, told.lkid)
            });
            return;
        };
        let r = self.store.locks.at(index).rsb;
        match told.result {
            WireResult::BADR => {
                // Our lock was there before the news that it masters the resource.
                self.send_lock(r, index);
                return;
            }
            WireResult::OK | WireResult::EXIST => {
                self.store.locks.at_mut(index).remid = told.remid;
            }
            other => {
                self.fail(format!(
                    "node {}, the new master, refuses lock {:x}: {other}",
                    from.0, told.lkid
                ));
                return;
            }
        }
        let rsb = self.store.rsbs.at_mut(r);
        rsb.recover_locks = rsb.recover_locks.saturating_sub(1);
        if rsb.recover_locks == 0 {
            rsb.bits.remove(RsbBits::NEW_MASTER);
        }
        if let Some(recovery) = &mut self.recovery {
            recovery.pending = recovery.pending.saturating_sub(1);
        }
        self.locks_told();
    }

    /// All locks are where they belong: what could not be known before is settled.
    pub(super) fn recover_rsbs(&mut self) {
        for r in self.resources() {
            let bits = self.store.rsbs.at(r).bits;
            if self.is_master(r) {
                if bits.contains(RsbBits::RECOVER_CONVERT) {
                    self.recover_conversion(r);
                }
                self.recover_lvb(r);
                let rsb = self.store.rsbs.at_mut(r);
                if bits.contains(RsbBits::NEW_MASTER2) && (!rsb.waiting.is_empty() || !rsb.convert.is_empty())
                {
                    rsb.bits |= RsbBits::RECOVER_GRANT;
                }
            } else {
                self.store.rsbs.at_mut(r).bits.remove(RsbBits::VALNOTVALID);
            }
            self.store
                .rsbs
                .at_mut(r)
                .bits
                .remove(RsbBits::RECOVER_CONVERT | RsbBits::RECOVER_LVB_INVAL | RsbBits::NEW_MASTER2);
        }
    }

    /// Conversions between PR and CW that were under way: granted is what the granted ones of these modes have.
    fn recover_conversion(&mut self, r: Index) {
        let rsb = self.store.rsbs.at(r);
        let known = rsb
            .granted
            .iter(&self.store.locks)
            .map(|(_, lock)| lock.grmode)
            .find(|mode| matches!(mode, Some(Mode::Pr | Mode::Cw)))
            .flatten();
        for index in self.store.indices(rsb.convert) {
            let lock = self.store.locks.at_mut(index);
            if lock.grmode.is_none() {
                lock.grmode = known.or(lock.rqmode);
            }
        }
    }

    fn recover_lvb(&mut self, r: Index) {
        let rsb = self.store.rsbs.at(r);
        if !rsb.bits.contains(RsbBits::NEW_MASTER2) {
            if rsb.bits.contains(RsbBits::RECOVER_LVB_INVAL) {
                self.store.rsbs.at_mut(r).bits |= RsbBits::VALNOTVALID;
            }
            return;
        }
        let (mut best, mut high) = (NONE, 0u32);
        let (mut any, mut sure) = (false, false);
        for list in [rsb.granted, rsb.convert] {
            for (index, lock) in list.iter(&self.store.locks) {
                if sure || !lock.exflags.contains(Lkf::VALBLK) {
                    continue;
                }
                any = true;
                if lock.grmode > Some(Mode::Cr) {
                    // Nobody can have written since this one was granted.
                    (best, high, sure) = (index, lock.lvbseq, true);
                } else if lock.lvbseq.wrapping_sub(high) < 1 << 31 {
                    (best, high) = (index, lock.lvbseq);
                }
            }
        }
        if !any {
            return;
        }
        let value = self
            .store
            .locks
            .find(best)
            .and_then(|lock| lock.lvb.clone())
            .unwrap_or_else(|| Box::new([0; LVB_LEN]));
        let rsb = self.store.rsbs.at_mut(r);
        if !sure {
            rsb.bits |= RsbBits::VALNOTVALID;
        }
        rsb.lvb = Some(value);
        rsb.lvbseq = high;
    }

    /// Grants what recovery made possible.
    pub(super) fn recover_grant(&mut self) {
        for r in self.resources() {
            let Some(rsb) = self.store.rsbs.find(r) else {
                continue;
            };
            if !rsb.bits.contains(RsbBits::RECOVER_GRANT) {
                continue;
            }
            if self.is_master(r) {
                self.grant_pending_locks(r);
                self.confirm_master(r);
            }
            self.store.rsbs.at_mut(r).bits.remove(RsbBits::RECOVER_GRANT);
        }
    }

    /// Drops messages that recovery has made void: from members that are gone, and all about the directory.
    pub(super) fn purge_requestqueue(&mut self) {
        let gone = std::mem::take(&mut self.gone.senders);
        let nodir = self.config.nodir;
        self.requestqueue.retain(|(from, message)| {
            let directory = matches!(
                message.kind,
                MsgType::Lookup | MsgType::Remove | MsgType::LookupReply
            );
            !nodir && !directory && !gone.contains(from)
        });
    }
}

/// Enough of a sequence number to tell this recovery's locks.
fn low_half(seq: u64) -> u32 {
    u32::try_from(seq & 0xffff_ffff).unwrap_or(0)
}
