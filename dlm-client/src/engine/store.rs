//! The locks and resources of an engine: slabs, intrusive queues, and the table of names.
//!
//! Invariants: index 0 is nobody; a lock is on at most one list, the one its status (or its LOOKUP bit) names; a
//! resource in use is on no list, an unused one at most on the scan list; iteration is by index and so the same in
//! every run. An index is a promise between parts of the engine; what comes from outside are lock ids, which carry a
//! generation and are looked up.

use std::collections::VecDeque;

use bitflags::bitflags;

use crate::wire::{Asts, MsgFlags, MsgType, QueueStatus};
use crate::{Lkf, Lvb, Mode, NodeId, ResName, SbFlags};

/// Slots of a chunk: growth never moves what is there.
const CHUNK: usize = 512;
/// Bits of a lock id that are its index; the others are the generation.
const INDEX_BITS: u32 = 24;
/// Freed indices that rest before one is used again, so that a dead id stays dead for long.
const RESTING: usize = 2048;

/// A place in a slab.
pub(super) type Index = u32;
/// No place.
pub(super) const NONE: Index = 0;

/// Neighbours on an intrusive list.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Links {
    prev: Index,
    next: Index,
}

pub(super) trait Linked {
    fn links(&self) -> Links;
    fn links_mut(&mut self) -> &mut Links;
}

fn split(index: Index) -> (usize, usize) {
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    (
        index.checked_div(CHUNK).unwrap_or(0),
        index.checked_rem(CHUNK).unwrap_or(0),
    )
}

#[derive(Debug)]
pub(super) struct Slab<T> {
    chunks: Vec<Vec<Option<T>>>,
    free: VecDeque<Index>,
    resting: usize,
    next: Index,
    used: usize,
}

impl<T> Slab<T> {
    fn new(resting: usize) -> Self {
        Self {
            chunks: Vec::new(),
            free: VecDeque::new(),
            resting,
            next: 1,
            used: 0,
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.used
    }

    /// A free index; `None` when all are taken.
    fn reserve(&mut self, limit: Index) -> Option<Index> {
        if self.free.len() <= self.resting && self.next < limit {
            let index = self.next;
            self.next = self.next.checked_add(1)?;
            return Some(index);
        }
        self.free.pop_front()
    }

    fn put(&mut self, index: Index, value: T) {
        let (chunk, at) = split(index);
        while self.chunks.len() <= chunk {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        if let Some(chunk) = self.chunks.get_mut(chunk) {
            while chunk.len() <= at {
                chunk.push(None);
            }
            if let Some(slot) = chunk.get_mut(at) {
                *slot = Some(value);
                self.used = self.used.saturating_add(1);
            }
        }
    }

    fn take(&mut self, index: Index) -> Option<T> {
        let (chunk, at) = split(index);
        let value = self.chunks.get_mut(chunk)?.get_mut(at)?.take()?;
        self.used = self.used.saturating_sub(1);
        self.free.push_back(index);
        Some(value)
    }

    pub(super) fn find(&self, index: Index) -> Option<&T> {
        let (chunk, at) = split(index);
        self.chunks.get(chunk)?.get(at)?.as_ref()
    }

    fn find_mut(&mut self, index: Index) -> Option<&mut T> {
        let (chunk, at) = split(index);
        self.chunks.get_mut(chunk)?.get_mut(at)?.as_mut()
    }

    pub(super) fn at(&self, index: Index) -> &T {
        self.find(index).expect("an index inside the engine is in use")
    }

    pub(super) fn at_mut(&mut self, index: Index) -> &mut T {
        self.find_mut(index)
            .expect("an index inside the engine is in use")
    }

    /// All indices in use, ascending, from after `index`.
    pub(super) fn after(&self, index: Index) -> Option<Index> {
        let mut index = index.checked_add(1)?;
        while index < self.next {
            if self.find(index).is_some() {
                return Some(index);
            }
            index = index.checked_add(1)?;
        }
        None
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Index, &T)> {
        (0..self.next).filter_map(|index| Some((index, self.find(index)?)))
    }
}

/// A list through the slab's entries.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct List {
    head: Index,
    tail: Index,
}

impl List {
    pub(super) const fn is_empty(&self) -> bool {
        self.head == NONE
    }

    pub(super) const fn first(&self) -> Index {
        self.head
    }

    pub(super) fn push_back<T: Linked>(&mut self, slab: &mut Slab<T>, index: Index) {
        *slab.at_mut(index).links_mut() = Links {
            prev: self.tail,
            next: NONE,
        };
        if self.tail == NONE {
            self.head = index;
        } else {
            slab.at_mut(self.tail).links_mut().next = index;
        }
        self.tail = index;
    }

    /// Before `place`, which is on the list; at the end for none.
    pub(super) fn insert_before<T: Linked>(&mut self, slab: &mut Slab<T>, index: Index, place: Index) {
        if place == NONE {
            self.push_back(slab, index);
            return;
        }
        let prev = slab.at(place).links().prev;
        *slab.at_mut(index).links_mut() = Links { prev, next: place };
        slab.at_mut(place).links_mut().prev = index;
        if prev == NONE {
            self.head = index;
        } else {
            slab.at_mut(prev).links_mut().next = index;
        }
    }

    pub(super) fn remove<T: Linked>(&mut self, slab: &mut Slab<T>, index: Index) {
        let Links { prev, next } = std::mem::take(slab.at_mut(index).links_mut());
        if prev == NONE {
            self.head = next;
        } else {
            slab.at_mut(prev).links_mut().next = next;
        }
        if next == NONE {
            self.tail = prev;
        } else {
            slab.at_mut(next).links_mut().prev = prev;
        }
    }

    pub(super) fn iter<'a, T: Linked>(&self, slab: &'a Slab<T>) -> impl Iterator<Item = (Index, &'a T)> {
        let mut at = self.head;
        std::iter::from_fn(move || {
            let entry = slab.find(at)?;
            let index = at;
            at = entry.links().next;
            Some((index, entry))
        })
    }
}

/// Where the other end of a lock is: the master of one of ours, the holder of one we master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The master is not known yet.
    Unknown,
    /// Here: we hold it and master it.
    Us,
    /// There.
    Node(NodeId),
}

bitflags! {
    /// What is true of a lock.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub(super) struct Bits: u16 {
        /// Held by another node, mastered here.
        const MASTER_COPY = 0x1;
        /// An unlock overlaps the outstanding operation.
        const OVERLAP_UNLOCK = 0x2;
        /// A cancel overlaps the outstanding operation.
        const OVERLAP_CANCEL = 0x4;
        /// The outstanding operation is done again after recovery.
        const RESEND = 0x8;
        /// Its last Cast was queued: it goes when nothing is outstanding any more.
        const ENDED = 0x10;
        /// On the lookup list of its resource.
        const LOOKUP = 0x20;
        /// The grant being told of read the value block.
        const LVB_READ = 0x40;
        /// Its process is gone: nobody listens.
        const ORPHAN = 0x80;
        /// On the list of ended locks.
        const REAPED = 0x100;
    }
}

/// A lock: ours, or a peer's on a resource we master.
#[derive(Debug)]
pub(super) struct Lkb {
    pub(super) token: u64,
    pub(super) lvb: Option<Box<Lvb>>,
    pub(super) place: Place,
    links: Links,
    pub(super) id: u32,
    pub(super) rsb: Index,
    pub(super) remid: u32,
    pub(super) lvbseq: u32,
    pub(super) pid: u32,
    pub(super) wait_node: NodeId,
    /// Low half of the recovery it was rebuilt in.
    pub(super) rebuilt: u32,
    pub(super) exflags: Lkf,
    pub(super) sbflags: SbFlags,
    pub(super) flags: MsgFlags,
    pub(super) asts: Asts,
    pub(super) bits: Bits,
    pub(super) status: Option<QueueStatus>,
    pub(super) grmode: Option<Mode>,
    pub(super) rqmode: Option<Mode>,
    pub(super) highbast: Mode,
    pub(super) last_cast: Option<Mode>,
    pub(super) last_bast: Option<Mode>,
    pub(super) wait_type: Option<MsgType>,
    pub(super) wait_count: u8,
    /// Answers to cancels that come and mean nothing any more.
    pub(super) stale_cancels: u8,
    /// Calls of the user kept for the end of recovery.
    pub(super) held: u8,
}

impl Linked for Lkb {
    fn links(&self) -> Links {
        self.links
    }
    fn links_mut(&mut self) -> &mut Links {
        &mut self.links
    }
}

impl Lkb {
    pub(super) fn new(token: u64, pid: u32) -> Self {
        Self {
            token,
            lvb: None,
            place: Place::Unknown,
            links: Links::default(),
            id: 0,
            rsb: NONE,
            remid: 0,
            lvbseq: 0,
            pid,
            wait_node: NodeId(0),
            rebuilt: 0,
            exflags: Lkf::empty(),
            sbflags: SbFlags::empty(),
            flags: MsgFlags::empty(),
            asts: Asts::CAST | Asts::BAST,
            bits: Bits::empty(),
            status: None,
            grmode: None,
            rqmode: None,
            highbast: Mode::Nl,
            last_cast: None,
            last_bast: None,
            wait_type: None,
            wait_count: 0,
            stale_cancels: 0,
            held: 0,
        }
    }

    pub(super) fn is_master_copy(&self) -> bool {
        self.bits.contains(Bits::MASTER_COPY)
    }

    /// Ours, mastered elsewhere (or nobody knows where).
    pub(super) fn is_process_copy(&self) -> bool {
        !self.is_master_copy() && self.place != Place::Us
    }

    /// Is an operation of the user under way?
    pub(super) fn is_busy(&self) -> bool {
        self.wait_type.is_some()
            || self.wait_count > 0
            || self.held > 0
            || self.status != Some(QueueStatus::Granted)
    }

    /// The operation that a cancel was sent for is over: the cancel is moot, and the user need not wait for its answer.
    pub(super) fn settle_cancel(&mut self) {
        if self.wait_type == Some(MsgType::Cancel) {
            self.wait_type = None;
        } else if self.bits.contains(Bits::OVERLAP_CANCEL) {
            self.bits.remove(Bits::OVERLAP_CANCEL);
        } else {
            return;
        }
        self.wait_count = self.wait_count.saturating_sub(1);
        self.stale_cancels = self.stale_cancels.saturating_add(1);
    }

    pub(super) fn overlaps(&self) -> bool {
        self.bits.intersects(Bits::OVERLAP_UNLOCK | Bits::OVERLAP_CANCEL)
    }

    /// PR to CW or CW to PR: neither includes the other.
    pub(super) fn is_middle_conversion(&self) -> bool {
        matches!(
            (self.grmode, self.rqmode),
            (Some(Mode::Pr), Some(Mode::Cw)) | (Some(Mode::Cw), Some(Mode::Pr))
        )
    }

    pub(super) fn is_down_conversion(&self) -> bool {
        !self.is_middle_conversion() && self.rqmode < self.grmode
    }
}

bitflags! {
    /// What is true of a resource.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub(super) struct RsbBits: u16 {
        /// No lock is on it: it is a directory record, or remembered for a while.
        const INACTIVE = 0x1;
        /// The master is remembered from an earlier use and may have changed.
        const MASTER_UNCERTAIN = 0x2;
        /// The value block is not to be believed.
        const VALNOTVALID = 0x4;
        /// A new master must be told of our locks.
        const NEW_MASTER = 0x8;
        /// The master changed in this recovery.
        const NEW_MASTER2 = 0x10;
        /// A conversion between PR and CW has lost its granted mode.
        const RECOVER_CONVERT = 0x20;
        /// A failed node held PW or EX.
        const RECOVER_LVB_INVAL = 0x40;
        /// Locks may have become grantable.
        const RECOVER_GRANT = 0x80;
        /// The directory was asked for its new master.
        const RECOVER_LOOKUP = 0x100;
        /// On the scan list.
        const SCANNED = 0x200;
        /// Its master has not named it since we rebuilt our part of the directory, or said REMOVE: no record for others.
        const UNNAMED = 0x400;
    }
}

/// A resource: one we use, one we master, or a record of our part of the directory.
#[derive(Debug)]
pub(super) struct Rsb {
    pub(super) lvb: Option<Box<Lvb>>,
    links: Links,
    chain: Index,
    pub(super) hash: u32,
    pub(super) dir: NodeId,
    /// `None` while unknown.
    pub(super) master: Option<NodeId>,
    /// Locks attached.
    pub(super) refs: u32,
    pub(super) granted: List,
    pub(super) convert: List,
    pub(super) waiting: List,
    pub(super) lookup: List,
    /// Id of the lock whose operation finds out the master; 0 when it is known.
    pub(super) first: u32,
    pub(super) lvbseq: u32,
    pub(super) epoch: u32,
    pub(super) recover_locks: u32,
    pub(super) bits: RsbBits,
    pub(super) name: ResName,
}

impl Linked for Rsb {
    fn links(&self) -> Links {
        self.links
    }
    fn links_mut(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// All locks and resources.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) locks: Slab<Lkb>,
    generations: Vec<u8>,
    pub(super) rsbs: Slab<Rsb>,
    buckets: Vec<Index>,
    pub(super) scan: List,
}

impl Store {
    pub(super) fn new() -> Self {
        Self {
            locks: Slab::new(RESTING),
            generations: Vec::new(),
            rsbs: Slab::new(0),
            buckets: vec![NONE; 64],
            scan: List::default(),
        }
    }

    /// Gives the lock an id. `None`: all are in use.
    pub(super) fn add_lock(&mut self, mut lock: Lkb) -> Option<Index> {
        let index = self.locks.reserve(1 << INDEX_BITS)?;
        let at = usize::try_from(index).ok()?;
        if self.generations.len() <= at {
            self.generations.resize(at.checked_add(1)?, 0);
        }
        let generation = self.generations.get(at).copied().unwrap_or(0);
        lock.id = (u32::from(generation) << INDEX_BITS) | index;
        self.locks.put(index, lock);
        Some(index)
    }

    pub(super) fn free_lock(&mut self, index: Index) {
        self.locks.take(index);
        if let Some(generation) = usize::try_from(index)
            .ok()
            .and_then(|at| self.generations.get_mut(at))
        {
            *generation = generation.wrapping_add(1);
        }
    }

    pub(super) fn lock_by_id(&self, id: u32) -> Option<Index> {
        let index = id & ((1 << INDEX_BITS) - 1);
        (self.locks.find(index)?.id == id).then_some(index)
    }

    fn bucket(&mut self, hash: u32) -> Option<&mut Index> {
        let mask = self.buckets.len().saturating_sub(1);
        self.buckets.get_mut(usize::try_from(hash).ok()? & mask)
    }

    pub(super) fn rsb_by_name(&self, name: &ResName, hash: u32) -> Option<Index> {
        let mask = self.buckets.len().saturating_sub(1);
        let mut at = *self.buckets.get(usize::try_from(hash).ok()? & mask)?;
        while at != NONE {
            let rsb = self.rsbs.at(at);
            if rsb.hash == hash && rsb.name == *name {
                return Some(at);
            }
            at = rsb.chain;
        }
        None
    }

    pub(super) fn add_rsb(
        &mut self,
        name: &ResName,
        hash: u32,
        dir: NodeId,
        master: Option<NodeId>,
    ) -> Option<Index> {
        let index = self.rsbs.reserve(Index::MAX)?;
        if self.rsbs.len() >= self.buckets.len() {
            self.grow();
        }
        let chain = std::mem::replace(self.bucket(hash)?, index);
        self.rsbs.put(
            index,
            Rsb {
                lvb: None,
                links: Links::default(),
                chain,
                hash,
                dir,
                master,
                refs: 0,
                granted: List::default(),
                convert: List::default(),
                waiting: List::default(),
                lookup: List::default(),
                first: 0,
                lvbseq: 0,
                epoch: 0,
                recover_locks: 0,
                bits: RsbBits::empty(),
                name: *name,
            },
        );
        Some(index)
    }

    fn grow(&mut self) {
        let size = self.buckets.len().saturating_mul(2);
        self.buckets.clear();
        self.buckets.resize(size, NONE);
        let mut at = NONE;
        while let Some(index) = self.rsbs.after(at) {
            let hash = self.rsbs.at(index).hash;
            let chain = self
                .bucket(hash)
                .map_or(NONE, |bucket| std::mem::replace(bucket, index));
            self.rsbs.at_mut(index).chain = chain;
            at = index;
        }
    }

    /// Forgets a resource nobody uses.
    pub(super) fn free_rsb(&mut self, index: Index) {
        self.unscan(index);
        let (hash, chain) = {
            let rsb = self.rsbs.at(index);
            debug_assert_eq!(rsb.refs, 0, "{rsb:?}");
            (rsb.hash, rsb.chain)
        };
        let Some(bucket) = self.bucket(hash) else { return };
        if *bucket == index {
            *bucket = chain;
        } else {
            let mut at = *bucket;
            while at != NONE {
                let next = self.rsbs.at(at).chain;
                if next == index {
                    self.rsbs.at_mut(at).chain = chain;
                    break;
                }
                at = next;
            }
        }
        self.rsbs.take(index);
    }

    pub(super) fn unscan(&mut self, index: Index) {
        if self.rsbs.at(index).bits.contains(RsbBits::SCANNED) {
            self.rsbs.at_mut(index).bits.remove(RsbBits::SCANNED);
            self.scan.remove(&mut self.rsbs, index);
        }
    }

    /// Puts a lock on a queue of its resource.
    pub(super) fn enqueue(&mut self, index: Index, status: QueueStatus) {
        let lock = self.locks.at_mut(index);
        debug_assert!(lock.status.is_none(), "{lock:?}");
        lock.status = Some(status);
        let head = lock.exflags.contains(Lkf::HEADQUE);
        let (mode, rsb) = (lock.grmode, self.rsbs.at_mut(lock.rsb));
        match status {
            QueueStatus::Granted => {
                let place = rsb
                    .granted
                    .iter(&self.locks)
                    .find(|(_, other)| other.rqmode < mode)
                    .map_or(NONE, |(place, _)| place);
                rsb.granted.insert_before(&mut self.locks, index, place);
            }
            QueueStatus::Waiting | QueueStatus::Convert => {
                let list = if status == QueueStatus::Waiting {
                    &mut rsb.waiting
                } else {
                    &mut rsb.convert
                };
                let place = if head { list.first() } else { NONE };
                list.insert_before(&mut self.locks, index, place);
            }
        }
    }

    /// Takes a lock off the queue it is on, if any.
    pub(super) fn dequeue(&mut self, index: Index) {
        let lock = self.locks.at_mut(index);
        let status = lock.status.take();
        let rsb = lock.rsb;
        let list = match status {
            None => return,
            Some(QueueStatus::Granted) => &mut self.rsbs.at_mut(rsb).granted,
            Some(QueueStatus::Convert) => &mut self.rsbs.at_mut(rsb).convert,
            Some(QueueStatus::Waiting) => &mut self.rsbs.at_mut(rsb).waiting,
        };
        list.remove(&mut self.locks, index);
    }

    pub(super) fn requeue(&mut self, index: Index, status: QueueStatus) {
        self.dequeue(index);
        self.enqueue(index, status);
    }

    /// Takes a lock off the lookup list of its resource, if it is there.
    pub(super) fn unlist(&mut self, index: Index) -> bool {
        let lock = self.locks.at_mut(index);
        if !lock.bits.contains(Bits::LOOKUP) {
            return false;
        }
        lock.bits.remove(Bits::LOOKUP);
        let rsb = lock.rsb;
        let list = &mut self.rsbs.at_mut(rsb).lookup;
        list.remove(&mut self.locks, index);
        true
    }

    pub(super) fn indices(&self, list: List) -> Vec<Index> {
        list.iter(&self.locks).map(|(index, _)| index).collect()
    }
}
