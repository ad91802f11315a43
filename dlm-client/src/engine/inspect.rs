//! What there is to see of an engine: for lists, dumps and oracles.

use super::Engine;
use super::store::{Bits, Place, Rsb, RsbBits};
use crate::wire::{QueueStatus, hash};
use crate::{Lkf, LockId, Lvb, Mode, NodeId, ResName, Slot};

/// What a lock is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockRole {
    /// Ours, and we master it.
    Local,
    /// Ours, mastered by another node (`None`: not known yet).
    Held {
        /// The master.
        master: Option<NodeId>,
    },
    /// Another node's, mastered by us.
    Mastered {
        /// The holder.
        holder: NodeId,
    },
}

/// The queue a lock stands on.
pub type Queue = Option<QueueStatus>;

/// A lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockInfo {
    /// Its id here.
    pub id: LockId,
    /// The token of its request; 0 for another node's.
    pub token: u64,
    /// Its id at the other end; 0 when there is none.
    pub remid: u32,
    /// What it is to us.
    pub role: LockRole,
    /// Its queue; `None` while its first answer is awaited.
    pub queue: Queue,
    /// Mode granted.
    pub granted: Option<Mode>,
    /// Mode asked for.
    pub requested: Option<Mode>,
    /// Flags of the last call.
    pub flags: Lkf,
    /// The holder's process.
    pub pid: u32,
    /// An answer is awaited.
    pub waits: bool,
}

/// A resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceInfo {
    /// Its name.
    pub name: ResName,
    /// Its master, if known.
    pub master: Option<NodeId>,
    /// Its directory node.
    pub directory: NodeId,
    /// No lock of ours or mastered by us is on it.
    pub inactive: bool,
    /// The value block, at its master.
    pub lvb: Option<Lvb>,
    /// It is not to be believed.
    pub lvb_invalid: bool,
    /// Its locks: granted, converting, waiting.
    pub locks: Vec<LockInfo>,
}

impl Engine {
    /// How many locks there are, ours and those we master.
    #[must_use]
    pub const fn lock_count(&self) -> usize {
        self.store.locks.len()
    }

    /// How many resources are known, directory records included.
    #[must_use]
    pub const fn resource_count(&self) -> usize {
        self.store.rsbs.len()
    }

    /// Do locks work (no recovery is under way or awaited)?
    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.running
    }

    /// The members and their slots (0: none yet).
    #[must_use]
    pub fn slots(&self) -> Vec<Slot> {
        match self.recover_done_event() {
            crate::Event::RecoverDone { slots, .. } => slots,
            _ => Vec::new(),
        }
    }

    /// The sequence number of the current recovery, and the generation of the slots.
    #[must_use]
    pub const fn recovery_state(&self) -> (u64, u32) {
        (self.recover_seq, self.generation)
    }

    /// Operations of ours that wait for an answer.
    #[must_use]
    pub fn waiting_count(&self) -> usize {
        self.store
            .locks
            .iter()
            .filter(|(_, lock)| lock.wait_count > 0 || lock.bits.contains(Bits::LOOKUP))
            .count()
    }

    fn info(&self, index: super::store::Index) -> LockInfo {
        let lock = self.store.locks.at(index);
        let role = match lock.place {
            Place::Node(holder) if lock.is_master_copy() => LockRole::Mastered { holder },
            Place::Node(master) => LockRole::Held { master: Some(master) },
            Place::Unknown => LockRole::Held { master: None },
            Place::Us => LockRole::Local,
        };
        LockInfo {
            id: LockId(lock.id),
            token: lock.token,
            remid: lock.remid,
            role,
            queue: lock.status,
            granted: lock.grmode,
            requested: lock.rqmode,
            flags: lock.exflags,
            pid: lock.pid,
            waits: lock.wait_count > 0 || lock.bits.contains(Bits::LOOKUP),
        }
    }

    /// Every lock with all that is known of it, for people who look for a fault.
    #[must_use]
    pub fn lock_dump(&self) -> Vec<String> {
        self.store
            .locks
            .iter()
            .map(|(_, lock)| format!("{lock:?}"))
            .collect()
    }

    /// Is there such a lock of ours, that has not ended?
    #[must_use]
    pub fn has_lock(&self, id: LockId) -> bool {
        self.own(id).is_ok()
    }

    /// A lock of ours that has not ended.
    #[must_use]
    pub fn lock_info(&self, id: LockId) -> Option<LockInfo> {
        self.own(id).ok().map(|index| self.info(index))
    }

    /// A resource and its locks.
    #[must_use]
    pub fn resource_info(&self, name: &ResName) -> Option<ResourceInfo> {
        let index = self.store.rsb_by_name(name, hash::name_hash(name))?;
        Some(self.describe(self.store.rsbs.at(index)))
    }

    /// All resources with their locks, in a stable order.
    #[must_use]
    pub fn resources_info(&self) -> Vec<ResourceInfo> {
        self.store
            .rsbs
            .iter()
            .map(|(_, rsb)| self.describe(rsb))
            .collect()
    }

    fn describe(&self, rsb: &Rsb) -> ResourceInfo {
        ResourceInfo {
            name: rsb.name,
            master: rsb.master,
            directory: rsb.dir,
            inactive: rsb.bits.contains(RsbBits::INACTIVE),
            lvb: rsb.lvb.as_deref().copied(),
            lvb_invalid: rsb.bits.contains(RsbBits::VALNOTVALID),
            locks: [rsb.granted, rsb.convert, rsb.waiting, rsb.lookup]
                .into_iter()
                .flat_map(|list| self.store.indices(list))
                .map(|index| self.info(index))
                .collect(),
        }
    }
}
