//! Who masters a resource: finding it, being asked for it, forgetting it.
//!
//! The first node to ask the directory node of a name becomes its master. A master that has no use for a resource any
//! more tells the directory (REMOVE) after a while. A request that meets a node which is not the master (any more) is
//! answered so, and its sender asks the directory again; a request from the directory node itself is an order to be
//! the master.

use super::Engine;
use super::interface::Level;
use super::store::{Bits, Index, NONE, Place, RsbBits};
use crate::wire::{Message, MsgType, Payload, WireResult, hash};
use crate::{NodeId, ResName};

/// Requests for a name we do not know, in a row, that show the directory to be wrong.
const WRONG_ENOUGH: u32 = 3;
/// Names for which they are counted at a time.
const WRONG_NAMES: usize = 256;

/// Why a resource is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// Our user asks for a lock.
    Local,
    /// A node asks us for a lock.
    Request(NodeId),
    /// A node tells the new master of its lock.
    Recovery,
}

/// Why the directory is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    /// For a request.
    Normal,
    /// The asker is the master and tells its new directory node.
    RecoverDirectory,
    /// The master is gone, a new one is needed.
    RecoverMaster,
}

impl Engine {
    /// The directory node of a hash.
    pub(super) fn directory_of(&self, hash: u32) -> NodeId {
        if self.members.len() <= 1 {
            return self.config.node;
        }
        hash::directory_node(&self.table, hash).unwrap_or(self.config.node)
    }

    /// The resource our user asks for; made if it is not there. `None`: too many.
    pub(super) fn find_for_request(&mut self, name: &ResName) -> Option<Index> {
        self.find_rsb(name, From::Local).ok()
    }

    /// The resource in use, or why there is none.
    pub(super) fn find_rsb(&mut self, name: &ResName, from: From) -> Result<Index, WireResult> {
        let hash = hash::name_hash(name);
        match self.store.rsb_by_name(name, hash) {
            Some(index) => {
                if self.store.rsbs.at(index).bits.contains(RsbBits::INACTIVE) {
                    self.activate(index, from)?;
                }
                Ok(index)
            }
            None => self.make_rsb(name, hash, from),
        }
    }

    fn activate(&mut self, index: Index, from: From) -> Result<(), WireResult> {
        let us = self.config.node;
        let nodir = self.config.nodir;
        let rsb = self.store.rsbs.at_mut(index);
        if rsb.master != Some(us) {
            match from {
                From::Request(node) if nodir || node != rsb.dir => return Err(WireResult::NOTBLK),
                From::Request(_) => {
                    // The directory node says that we are the master.
                    rsb.master = Some(us);
                    rsb.bits.remove(RsbBits::MASTER_UNCERTAIN);
                    rsb.first = 0;
                }
                From::Local => {
                    // Nothing kept the master from changing while we held no lock.
                    rsb.bits
                        .set(RsbBits::MASTER_UNCERTAIN, !nodir && rsb.master.is_some());
                    rsb.first = 0;
                }
                From::Recovery => {}
            }
        }
        rsb.bits.remove(RsbBits::INACTIVE);
        self.store.unscan(index);
        Ok(())
    }

    fn make_rsb(&mut self, name: &ResName, hash: u32, from: From) -> Result<Index, WireResult> {
        let us = self.config.node;
        let dir = self.directory_of(hash);
        let master = if self.config.nodir {
            Some(dir)
        } else {
            match from {
                From::Recovery => return Err(WireResult::BADR),
                From::Request(node) if node == dir => Some(us),
                From::Request(_) if dir != us => return Err(WireResult::NOTBLK),
                _ if dir == us => Some(us),
                _ => None,
            }
        };
        self.store
            .add_rsb(name, hash, dir, master)
            .ok_or(WireResult::NOMEM)
    }

    /// A node asks us for a lock on a resource we do not master: an error, or an order to master it.
    pub(super) fn validate_master(&mut self, index: Index, from: NodeId) -> Result<(), WireResult> {
        let us = self.config.node;
        let rsb = self.store.rsbs.at_mut(index);
        if rsb.master == Some(us) {
            return Ok(());
        }
        if self.config.nodir || rsb.dir != from {
            return Err(WireResult::NOTBLK);
        }
        rsb.master = Some(us);
        Ok(())
    }

    /// We are the directory node of a name and another node asks for its master.
    pub(super) fn master_lookup(
        &mut self,
        from: NodeId,
        name: &ResName,
        why: Lookup,
    ) -> Result<NodeId, WireResult> {
        let us = self.config.node;
        let hash = hash::name_hash(name);
        if from == us || self.directory_of(hash) != us {
            return Err(WireResult::INVAL);
        }
        let Some(index) = self.store.rsb_by_name(name, hash) else {
            let index = self
                .store
                .add_rsb(name, hash, us, Some(from))
                .ok_or(WireResult::NOMEM)?;
            self.store.rsbs.at_mut(index).bits |= RsbBits::INACTIVE;
            return Ok(from);
        };
        let gone = self
            .store
            .rsbs
            .at(index)
            .master
            .is_some_and(|master| self.gone.masters.contains(&master));
        let rsb = self.store.rsbs.at_mut(index);
        rsb.dir = us;
        if why == Lookup::RecoverDirectory {
            rsb.bits.remove(RsbBits::UNNAMED);
        }
        if why == Lookup::RecoverMaster && gone {
            rsb.master = Some(from);
            rsb.bits |= RsbBits::NEW_MASTER;
        }
        if why == Lookup::RecoverDirectory && rsb.master != Some(from) {
            if rsb.master == Some(us) {
                let name = rsb.name;
                self.log(Level::Error, || {
                    format!("node {} says it masters {name:?}, which we master", from.0)
                });
                return Ok(us);
            }
            rsb.master = Some(from);
            rsb.bits |= RsbBits::NEW_MASTER;
        }
        Ok(*rsb.master.get_or_insert(from))
    }

    /// Is the master of the resource known, so that a request can go on? If not, the lock is put where the answer of
    /// the directory finds it.
    pub(super) fn set_master(&mut self, r: Index, index: Index) -> bool {
        let us = self.config.node;
        let id = self.store.locks.at(index).id;
        let rsb = self.store.rsbs.at_mut(r);
        if rsb.bits.contains(RsbBits::MASTER_UNCERTAIN) {
            rsb.bits.remove(RsbBits::MASTER_UNCERTAIN);
            rsb.first = id;
            self.store.locks.at_mut(index).place = rsb.master.map_or(Place::Unknown, Place::Node);
            return rsb.master.is_some();
        }
        if rsb.first != 0 && rsb.first != id {
            rsb.lookup.push_back(&mut self.store.locks, index);
            self.store.locks.at_mut(index).bits |= Bits::LOOKUP;
            return false;
        }
        if rsb.master.is_none() && rsb.dir == us {
            rsb.master = Some(us);
        }
        match rsb.master {
            Some(master) => {
                self.store.locks.at_mut(index).place = if master == us {
                    Place::Us
                } else {
                    Place::Node(master)
                };
                true
            }
            None => {
                rsb.first = id;
                self.send_common(r, index, MsgType::Lookup);
                false
            }
        }
    }

    /// The locks that waited for the master to be known go on.
    pub(super) fn process_lookup_list(&mut self, r: Index) {
        for index in self.store.indices(self.store.rsbs.at(r).lookup) {
            if self.store.unlist(index) {
                self.request_lock(r, index);
            }
        }
    }

    /// A request has shown that the master is the master: the others go on.
    pub(super) fn confirm_master(&mut self, r: Index) {
        let rsb = self.store.rsbs.at_mut(r);
        rsb.first = 0;
        if !rsb.lookup.is_empty() {
            self.process_lookup_list(r);
        }
    }

    /// The request that was to show it has ended without: the next one goes in its stead.
    pub(super) fn pass_first(&mut self, r: Index, id: u32) {
        let rsb = self.store.rsbs.at_mut(r);
        if rsb.first != id {
            return;
        }
        rsb.first = 0;
        let next = rsb.lookup.first();
        if next != NONE && self.store.unlist(next) {
            self.store.rsbs.at_mut(r).first = self.store.locks.at(next).id;
            self.request_lock(r, next);
            if !self.is_remote(r) {
                self.confirm_master(r);
            }
        }
    }

    /// The master of a name of ours says that nobody uses it.
    pub(super) fn receive_remove(&mut self, from: NodeId, message: &Message) {
        let Some(name) = message.name() else { return };
        let hash = hash::name_hash(name);
        let found = self.store.rsb_by_name(name, hash);
        let Some(index) = found.filter(|_| self.directory_of(hash) == self.config.node) else {
            let name = *name;
            self.log(Level::Error, || {
                format!("REMOVE of unknown {name:?} from node {}", from.0)
            });
            return;
        };
        let rsb = self.store.rsbs.at(index);
        if rsb.master != Some(from) {
            let (name, master) = (rsb.name, rsb.master);
            self.log(Level::Error, || {
                format!(
                    "REMOVE of {name:?} from node {}: its master is {master:?}",
                    from.0
                )
            });
            return;
        }
        if rsb.bits.contains(RsbBits::INACTIVE) {
            self.store.free_rsb(index);
        } else {
            // In use: our request and the REMOVE cross, and the request makes its receiver the master again. Should the
            // request not be sent after all, this is no record.
            self.store.rsbs.at_mut(index).bits |= RsbBits::UNNAMED;
        }
    }

    /// A node asks us, as the directory told it, for a name we do not know: again and again, if the directory's record
    /// of us is left over from an unlock that crossed a recovery. Then the record has to go.
    pub(super) fn wrongly_asked(&mut self, name: &ResName) {
        let hash = hash::name_hash(name);
        let dir = self.directory_of(hash);
        let known = self.store.rsb_by_name(name, hash).is_some();
        if self.wrongly_asked.len() >= WRONG_NAMES {
            self.wrongly_asked.clear();
        }
        let count = self.wrongly_asked.entry(hash).or_default();
        *count = count.saturating_add(1);
        if known || self.config.nodir || dir == self.config.node || *count < WRONG_ENOUGH {
            return;
        }
        self.wrongly_asked.remove(&hash);
        self.send_remove(dir, hash, *name);
    }

    fn send_remove(&mut self, dir: NodeId, hash: u32, name: ResName) {
        let mut message = Message::new(MsgType::Remove);
        message.hash = hash;
        message.extra = crate::wire::Extra::Name(name);
        self.send(dir, Payload::Message(message));
    }

    pub(super) fn arm_scan(&mut self) {
        if self.scan_timer.is_none() && self.running && !self.store.scan.is_empty() {
            let half = self.config.toss.checked_div(2).unwrap_or(self.config.toss);
            self.scan_timer = Some(self.set_timer(half));
        }
    }

    /// Forgets what was unused for two turns of the timer.
    pub(super) fn scan_unused(&mut self) {
        if !self.running {
            return;
        }
        self.epoch = self.epoch.wrapping_add(1);
        while let Some(rsb) = self.store.rsbs.find(self.store.scan.first()) {
            if self.epoch.wrapping_sub(rsb.epoch) < 2 {
                break;
            }
            let index = self.store.scan.first();
            let (name, hash, dir) = (rsb.name, rsb.hash, rsb.dir);
            let us = self.config.node;
            let tell = !self.config.nodir && rsb.master == Some(us) && dir != us;
            self.store.free_rsb(index);
            if tell {
                self.send_remove(dir, hash, name);
            }
        }
        self.arm_scan();
    }
}
