//! The inodes this node knows: by whom they are used, and when that ends.
//!
//! Invariants: an address has at most one entry, for one formal number; an entry stays while an operation uses it, a
//! handle is open or the kernel knows it (`nlookup`); while it stays, its iopen glock is held SH. An entry nobody
//! needs any more goes at once if its inode has links; else it goes to the queue of evictions and stays, marked, until
//! the deallocation has ended.

use crate::cache::QuickMap;
use crate::error::{Errno, FsResult};
use crate::glock::{Glock, GlockGuard};
use crate::txn::CommitSeq;
use gfs2_format::ondisk::FileType;
use gfs2_format::{BlockAddr, InodeNum};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SHARDS: usize = 64;

/// What a node remembers of an inode beside its blocks.
#[derive(Debug)]
pub(crate) struct Inode {
    num: InodeNum,
    kind: FileType,
    glock: Arc<Glock>,
    iopen: Mutex<Option<GlockGuard>>,
    /// The last link is gone: whoever lets go last deallocates.
    unlinked: AtomicBool,
    /// Open handles that may write; grows under the lock EX only.
    pub(crate) writers: AtomicU32,
    /// Resource group that keeps blocks for it to grow into; 0: none.
    window: AtomicU64,
    commits: Mutex<Commits>,
}

/// The newest commits with something of an inode in them, as far as this entry has seen them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Commits {
    /// Any change.
    pub(crate) any: CommitSeq,
    /// A change of more than times.
    pub(crate) meta: CommitSeq,
    /// Changes of before this entry was made are known to be durable.
    pub(crate) complete: bool,
}

impl Inode {
    /// Its two numbers.
    pub(crate) fn num(&self) -> InodeNum {
        self.num
    }

    /// Its address.
    pub(crate) fn addr(&self) -> BlockAddr {
        self.num.addr
    }

    /// Its type.
    pub(crate) fn kind(&self) -> FileType {
        self.kind
    }

    /// Its lock.
    pub(crate) fn glock(&self) -> &Arc<Glock> {
        &self.glock
    }

    /// Somebody saw that it has no links.
    pub(crate) fn mark_unlinked(&self) {
        self.unlinked.store(true, Ordering::Release);
    }

    /// No links left?
    pub(crate) fn is_unlinked(&self) -> bool {
        self.unlinked.load(Ordering::Acquire)
    }

    /// A transaction changed it; `times_only` when it changed nothing but times.
    pub(crate) fn committed(&self, seq: CommitSeq, times_only: bool) {
        let mut commits = self.commits.lock();
        commits.any = commits.any.max(seq);
        if !times_only {
            commits.meta = commits.meta.max(seq);
        }
    }

    /// It grows in this group from now on (`None`: nowhere); gives where it grew before, if that is another.
    pub(crate) fn grow_in(&self, group: Option<BlockAddr>) -> Option<BlockAddr> {
        let group = group.map_or(0, BlockAddr::get);
        let before = self.window.swap(group, Ordering::Relaxed);
        (before != group && before != 0).then(|| BlockAddr::new(before))
    }

    /// What is known of its commits.
    pub(crate) fn commits(&self) -> Commits {
        *self.commits.lock()
    }

    /// Nothing was changed before this entry was made, or it is durable by now.
    pub(crate) fn all_seen(&self) {
        self.commits.lock().complete = true;
    }

    /// Another node wants to delete it, and waits for us to let go.
    fn is_wanted(&self) -> bool {
        let iopen = self.iopen.lock();
        iopen
            .as_ref()
            .is_some_and(|guard| guard.glock().is_demote_wanted())
    }

    /// Gives the iopen lock out of hand: for the one who deletes, or when the entry goes.
    pub(crate) fn take_iopen(&self) -> Option<GlockGuard> {
        self.iopen.lock().take()
    }
}

#[derive(Debug)]
struct Slot {
    inode: Arc<Inode>,
    /// Operations and handles.
    users: u64,
    /// What the kernel knows.
    nlookup: u64,
    evicting: bool,
}

#[derive(Debug, Default)]
struct Lane {
    slots: Mutex<QuickMap<BlockAddr, Slot>>,
    /// Told when an evicted entry is gone.
    gone: Condvar,
}

/// All known inodes.
#[derive(Debug)]
pub(crate) struct InodeTable {
    lanes: Vec<Lane>,
    evictions: Mutex<VecDeque<Arc<Inode>>>,
    waiting: AtomicUsize,
    /// Evictions queued and under way.
    evicting: Mutex<usize>,
    /// Told when one of them has ended.
    ended: Condvar,
}

/// One use of an inode; what is needed to make an entry for it.
#[derive(Debug)]
pub(crate) struct InodeRef {
    table: Arc<InodeTable>,
    inode: Arc<Inode>,
}

impl Deref for InodeRef {
    type Target = Inode;

    fn deref(&self) -> &Inode {
        &self.inode
    }
}

impl Clone for InodeRef {
    fn clone(&self) -> Self {
        if let Some(slot) = self.table.lane(self.addr()).slots.lock().get_mut(&self.addr()) {
            slot.users += 1;
        }
        Self {
            table: Arc::clone(&self.table),
            inode: Arc::clone(&self.inode),
        }
    }
}

impl Drop for InodeRef {
    fn drop(&mut self) {
        self.table.release(self.inode.addr(), |slot| {
            slot.users = slot.users.saturating_sub(1)
        });
    }
}

impl InodeTable {
    /// An empty table.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            lanes: std::iter::repeat_with(Lane::default).take(SHARDS).collect(),
            evictions: Mutex::default(),
            waiting: AtomicUsize::new(0),
            evicting: Mutex::new(0),
            ended: Condvar::new(),
        })
    }

    fn lane(&self, addr: BlockAddr) -> &Lane {
        let hash = addr.get().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58;
        &self.lanes[hash as usize % SHARDS]
    }

    fn using(self: &Arc<Self>, slot: &mut Slot) -> InodeRef {
        slot.users += 1;
        InodeRef {
            table: Arc::clone(self),
            inode: Arc::clone(&slot.inode),
        }
    }

    /// The entry of an address.
    ///
    /// # Errors
    /// ESTALE when there is none.
    pub(crate) fn get(self: &Arc<Self>, addr: BlockAddr) -> FsResult<InodeRef> {
        let mut slots = self.lane(addr).slots.lock();
        match slots.get_mut(&addr) {
            Some(slot) if !slot.evicting => Ok(self.using(slot)),
            _ => Err(Errno::ESTALE.into()),
        }
    }

    /// Is there an entry?
    pub(crate) fn knows(&self, addr: BlockAddr) -> bool {
        self.lane(addr).slots.lock().contains_key(&addr)
    }

    /// Has somebody the inode at this address open for writing?
    pub(crate) fn is_open_for_writing(&self, addr: BlockAddr) -> bool {
        let slots = self.lane(addr).slots.lock();
        slots
            .get(&addr)
            .is_some_and(|slot| slot.inode.writers.load(Ordering::Relaxed) > 0)
    }

    /// The entry of an inode, made with `make` (which takes the iopen lock) when there is none.
    ///
    /// # Errors
    /// ESTALE when the address is still known for another formal number; whatever `make` fails with.
    pub(crate) fn get_or_make(
        self: &Arc<Self>,
        num: InodeNum,
        make: impl FnOnce() -> FsResult<NewInode>,
    ) -> FsResult<InodeRef> {
        if let Some(found) = self.find(num)? {
            return Ok(found);
        }
        let new = make()?;
        // Somebody may have been faster; then the lock just taken is dropped, after the table's.
        let mut slots = self.lane(num.addr).slots.lock();
        if let Some(slot) = slots.get_mut(&num.addr) {
            let found = if slot.evicting || slot.inode.num != num {
                Err(Errno::ESTALE.into())
            } else {
                Ok(self.using(slot))
            };
            drop(slots);
            return found;
        }
        let slot = slots.entry(num.addr).or_insert(Slot {
            inode: Arc::new(Inode {
                num,
                kind: new.kind,
                glock: new.glock,
                iopen: Mutex::new(Some(new.iopen)),
                unlinked: AtomicBool::new(false),
                writers: AtomicU32::new(0),
                window: AtomicU64::new(0),
                commits: Mutex::default(),
            }),
            users: 0,
            nlookup: 0,
            evicting: false,
        });
        Ok(self.using(slot))
    }

    fn find(self: &Arc<Self>, num: InodeNum) -> FsResult<Option<InodeRef>> {
        let mut slots = self.lane(num.addr).slots.lock();
        match slots.get_mut(&num.addr) {
            None => Ok(None),
            Some(slot) if slot.evicting || slot.inode.num != num => Err(Errno::ESTALE.into()),
            Some(slot) => Ok(Some(self.using(slot))),
        }
    }

    /// The kernel knows it once more.
    pub(crate) fn remember(&self, inode: &InodeRef) {
        if let Some(slot) = self.lane(inode.addr()).slots.lock().get_mut(&inode.addr()) {
            slot.nlookup = slot.nlookup.saturating_add(1);
        }
    }

    /// The kernel knows it `count` times less.
    pub(crate) fn forget(&self, addr: BlockAddr, count: u64) {
        self.release(addr, |slot| slot.nlookup = slot.nlookup.saturating_sub(count));
    }

    /// The kernel has gone: it knows nothing any more.
    pub(crate) fn forget_all(&self) {
        for lane in &self.lanes {
            let known: Vec<BlockAddr> = lane.slots.lock().keys().copied().collect();
            for addr in known {
                self.forget(addr, u64::MAX);
            }
        }
    }

    fn release(&self, addr: BlockAddr, change: impl FnOnce(&mut Slot)) {
        let lane = self.lane(addr);
        let mut slots = lane.slots.lock();
        let Some(slot) = slots.get_mut(&addr) else { return };
        change(slot);
        if slot.users > 0 || slot.nlookup > 0 || slot.evicting {
            return;
        }
        if slot.inode.is_unlinked() || slot.inode.is_wanted() {
            slot.evicting = true;
            let inode = Arc::clone(&slot.inode);
            drop(slots);
            *self.evicting.lock() += 1;
            let mut evictions = self.evictions.lock();
            evictions.push_back(inode);
            self.waiting.store(evictions.len(), Ordering::Release);
            return;
        }
        let removed = slots.remove(&addr);
        drop(slots);
        // The iopen lock goes here, outside the table's own lock.
        drop(removed);
    }

    /// An unlinked inode nobody needs any more, to be deallocated by the caller, who says [`InodeTable::evicted`]
    /// when he has done (or could not do) so.
    pub(crate) fn next_eviction(&self) -> Option<Arc<Inode>> {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut evictions = self.evictions.lock();
        let next = evictions.pop_front();
        self.waiting.store(evictions.len(), Ordering::Release);
        next
    }

    /// The end of an eviction.
    pub(crate) fn evicted(&self, inode: &Inode) {
        let lane = self.lane(inode.addr());
        let removed = lane.slots.lock().remove(&inode.addr());
        drop(removed);
        lane.gone.notify_all();
        let mut evicting = self.evicting.lock();
        *evicting = evicting.saturating_sub(1);
        self.ended.notify_all();
    }

    /// Waits until the evictions under way have ended, but no longer than `limit`. False: there were none.
    pub(crate) fn wait_evictions(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut evicting = self.evicting.lock();
        let any = *evicting > 0;
        while *evicting > 0 && !self.ended.wait_until(&mut evicting, deadline).timed_out() {}
        any
    }

    /// Waits until an eviction of this address, if there is one, has ended. Gives false when the address is known
    /// otherwise.
    pub(crate) fn wait_evicted(&self, addr: BlockAddr) -> bool {
        let lane = self.lane(addr);
        let mut slots = lane.slots.lock();
        while slots.get(&addr).is_some_and(|slot| slot.evicting) {
            lane.gone.wait(&mut slots);
        }
        !slots.contains_key(&addr)
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.lanes.iter().map(|lane| lane.slots.lock().len()).sum()
    }
}

/// What an entry is made of.
#[derive(Debug)]
pub(crate) struct NewInode {
    /// Type, from the dirent.
    pub(crate) kind: FileType,
    /// The inode's lock.
    pub(crate) glock: Arc<Glock>,
    /// Its iopen lock, held SH.
    pub(crate) iopen: GlockGuard,
}
