//! The inodes this node knows: by whom they are used, and when that ends.
//!
//! Invariants: an address has at most one entry, for one formal number; an entry stays while an operation uses it, a
//! handle is open or the kernel knows it (`nlookup`); while it stays, its iopen glock is held SH. An entry nobody
//! needs any more goes at once if its inode has links; else it goes to the queue of evictions and stays, marked, until
//! the deallocation has ended. When memory is short, an entry that only the kernel knows is made a ghost (see there).

mod ghosts;

use crate::error::{Errno, FsResult};
use crate::glock::{Glock, GlockGuard};
use crate::hash::QuickMap;
use crate::txn::CommitSeq;
use gfs2_format::ondisk::FileType;
use gfs2_format::{BlockAddr, InodeNum};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ghosts::Ghost;
pub(crate) use ghosts::{ENTRY_BYTES, GHOST_BYTES, Revive};

const SHARDS: usize = 64;
/// New entries for which room is made on the heap in one go, and what they and their locks take.
const HEAP_ENTRIES: usize = 32;
const HEAP_BYTES: usize = HEAP_ENTRIES * 3072;

/// How often somebody who waits looks whether he still should.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a node remembers of an inode beside its blocks.
#[derive(Debug)]
pub(crate) struct Inode {
    num: InodeNum,
    kind: FileType,
    glock: Arc<Glock>,
    iopen: Mutex<Option<GlockGuard>>,
    /// The last link is gone: whoever lets go last deallocates. Since when, in milliseconds of [`now_ms`]; 0: it is not.
    unlinked: AtomicU64,
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

/// Milliseconds since a moment of this process, never 0.
fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let passed = START.get_or_init(Instant::now).elapsed().as_millis();
    u64::try_from(passed).unwrap_or(u64::MAX).saturating_add(1)
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
        // The first to see it says when.
        let _ = self
            .unlinked
            .compare_exchange(0, now_ms(), Ordering::AcqRel, Ordering::Relaxed);
    }

    /// No links left?
    pub(crate) fn is_unlinked(&self) -> bool {
        self.unlinked.load(Ordering::Acquire) != 0
    }

    /// A transaction changed it; `times_only` when it changed nothing but times.
    pub(crate) fn committed(&self, seq: CommitSeq, times_only: bool) {
        let mut commits = self.commits.lock();
        commits.any = commits.any.max(seq);
        if !times_only {
            commits.meta = commits.meta.max(seq);
        }
    }

    /// Counts the caller as somebody who has it open for writing, if anybody has. Found and counted in one: a demote that
    /// sees no writer between the two would wait for the page the caller is about, and the caller for the demote.
    pub(crate) fn join_writers(&self) -> bool {
        join(&self.writers)
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

fn join(count: &AtomicU32) -> bool {
    let joined = |count: u32| (count > 0).then(|| count.saturating_add(1));
    let (set, seen) = (Ordering::Relaxed, Ordering::Relaxed);
    count.fetch_update(set, seen, joined).is_ok()
}

#[derive(Debug)]
struct Slot {
    inode: Arc<Inode>,
    /// Operations and handles.
    users: u64,
    /// What the kernel knows.
    nlookup: u64,
    evicting: bool,
    /// Used since the clock came by.
    referenced: bool,
}

/// What is known of the inodes of one lane.
#[derive(Debug, Default)]
struct Known {
    slots: QuickMap<BlockAddr, Slot>,
    ghosts: QuickMap<BlockAddr, Ghost>,
    clock: VecDeque<BlockAddr>,
}

#[derive(Debug, Default)]
struct Lane {
    known: Mutex<Known>,
    /// Told when an evicted entry is gone.
    gone: Condvar,
}

/// All known inodes.
pub(crate) struct InodeTable {
    lanes: Vec<Lane>,
    evictions: Mutex<VecDeque<Arc<Inode>>>,
    waiting: AtomicUsize,
    /// Evictions queued and under way.
    evicting: Mutex<usize>,
    /// Evictions that have ended; grows under `evicting`.
    evictions_ended: AtomicU64,
    /// Told when one of them has ended.
    ended: Condvar,
    /// Entries.
    count: AtomicUsize,
    /// At so many somebody wants to be told.
    alarm_at: AtomicUsize,
    alarm: OnceLock<Box<dyn Fn() + Send + Sync>>,
    reviver: OnceLock<Box<dyn Revive>>,
    /// Where the clock's hand stands.
    hand: AtomicUsize,
}

impl std::fmt::Debug for InodeTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InodeTable({} inodes)", self.len())
    }
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
        let mut known = self.table.lane(self.addr()).known.lock();
        if let Some(slot) = known.slots.get_mut(&self.addr()) {
            slot.users += 1;
        }
        drop(known);
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
            evictions_ended: AtomicU64::new(0),
            ended: Condvar::new(),
            count: AtomicUsize::new(0),
            alarm_at: AtomicUsize::new(usize::MAX),
            alarm: OnceLock::new(),
            reviver: OnceLock::new(),
            hand: AtomicUsize::new(0),
        })
    }

    /// Who is told when there are many entries, see [`InodeTable::set_alarm`]; once. Must not wait.
    pub(crate) fn on_alarm(&self, alarm: Box<dyn Fn() + Send + Sync>) {
        let set = self.alarm.set(alarm);
        debug_assert!(set.is_ok(), "a table is given its alarm once");
    }

    /// From so many entries on, each new one gives the alarm.
    pub(crate) fn set_alarm(&self, entries: usize) {
        self.alarm_at.store(entries, Ordering::Relaxed);
    }

    fn lane(&self, addr: BlockAddr) -> &Lane {
        let hash = addr.get().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58;
        &self.lanes[hash as usize % SHARDS]
    }

    fn using(self: &Arc<Self>, slot: &mut Slot) -> InodeRef {
        slot.users += 1;
        slot.referenced = true;
        InodeRef {
            table: Arc::clone(self),
            inode: Arc::clone(&slot.inode),
        }
    }

    /// The entry of an address. Called with no lock held: one that was made a ghost needs its own again.
    ///
    /// # Errors
    /// ESTALE when there is none.
    pub(crate) fn get(self: &Arc<Self>, addr: BlockAddr) -> FsResult<InodeRef> {
        let mut known = self.lane(addr).known.lock();
        match known.slots.get_mut(&addr) {
            Some(slot) if !slot.evicting => return Ok(self.using(slot)),
            Some(_) => return Err(Errno::ESTALE.into()),
            None => {}
        }
        drop(known);
        self.wake(addr)
    }

    /// Is there an entry (a ghost is none)?
    pub(crate) fn knows(&self, addr: BlockAddr) -> bool {
        self.lane(addr).known.lock().slots.contains_key(&addr)
    }

    /// Has somebody the inode at this address open for writing?
    pub(crate) fn is_open_for_writing(&self, addr: BlockAddr) -> bool {
        let known = self.lane(addr).known.lock();
        known
            .slots
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
        let mut lane = self.lane(num.addr).known.lock();
        if let Some(slot) = lane.slots.get_mut(&num.addr) {
            let found = if slot.evicting || slot.inode.num != num {
                Err(Errno::ESTALE.into())
            } else {
                Ok(self.using(slot))
            };
            drop(lane);
            return found;
        }
        // Of a predecessor, too: the kernel names both by the address, and counts them together.
        let nlookup = lane
            .ghosts
            .remove(&num.addr)
            .map_or(0, |ghost| u64::from(ghost.nlookup));
        lane.track(num.addr);
        let slot = lane.slots.entry(num.addr).or_insert(Slot {
            inode: Arc::new(Inode {
                num,
                kind: new.kind,
                glock: new.glock,
                iopen: Mutex::new(Some(new.iopen)),
                unlinked: AtomicU64::new(0),
                writers: AtomicU32::new(0),
                window: AtomicU64::new(0),
                commits: Mutex::default(),
            }),
            users: 0,
            nlookup,
            evicting: false,
            referenced: true,
        });
        let made = self.using(slot);
        drop(lane);
        self.grown();
        Ok(made)
    }

    fn grown(&self) {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_multiple_of(HEAP_ENTRIES) {
            // The heap of a thread grows by what is asked for, with a system call each time: it is asked for many.
            drop(std::hint::black_box(Vec::<u8>::with_capacity(HEAP_BYTES)));
        }
        if count >= self.alarm_at.load(Ordering::Relaxed)
            && let Some(alarm) = self.alarm.get()
        {
            alarm();
        }
    }

    fn find(self: &Arc<Self>, num: InodeNum) -> FsResult<Option<InodeRef>> {
        let mut known = self.lane(num.addr).known.lock();
        match known.slots.get_mut(&num.addr) {
            None => Ok(None),
            Some(slot) if slot.evicting || slot.inode.num != num => Err(Errno::ESTALE.into()),
            Some(slot) => Ok(Some(self.using(slot))),
        }
    }

    /// The kernel knows it once more.
    pub(crate) fn remember(&self, inode: &InodeRef) {
        let mut known = self.lane(inode.addr()).known.lock();
        if let Some(slot) = known.slots.get_mut(&inode.addr()) {
            slot.nlookup = slot.nlookup.saturating_add(1);
        }
    }

    /// The kernel knows it `count` times less.
    pub(crate) fn forget(&self, addr: BlockAddr, count: u64) {
        {
            let mut known = self.lane(addr).known.lock();
            if let Some(ghost) = known.ghosts.get_mut(&addr) {
                let less = u32::try_from(count).unwrap_or(u32::MAX);
                ghost.nlookup = ghost.nlookup.saturating_sub(less);
                if ghost.nlookup == 0 {
                    known.ghosts.remove(&addr);
                    if known.ghosts.capacity() > 1024 + known.ghosts.len().saturating_mul(4) {
                        let len = known.ghosts.len();
                        known.ghosts.shrink_to(len * 2);
                    }
                }
                return;
            }
        }
        self.release(addr, |slot| slot.nlookup = slot.nlookup.saturating_sub(count));
    }

    /// The kernel has gone: it knows nothing any more.
    pub(crate) fn forget_all(&self) {
        for lane in &self.lanes {
            let known: Vec<BlockAddr> = {
                let mut known = lane.known.lock();
                known.ghosts = QuickMap::default();
                known.slots.keys().copied().collect()
            };
            for addr in known {
                self.forget(addr, u64::MAX);
            }
        }
    }

    fn release(&self, addr: BlockAddr, change: impl FnOnce(&mut Slot)) {
        let lane = self.lane(addr);
        let mut known = lane.known.lock();
        let Some(slot) = known.slots.get_mut(&addr) else {
            return;
        };
        change(slot);
        if slot.users > 0 || slot.nlookup > 0 || slot.evicting {
            return;
        }
        if slot.inode.is_unlinked() || slot.inode.is_wanted() {
            slot.evicting = true;
            let inode = Arc::clone(&slot.inode);
            drop(known);
            *self.evicting.lock() += 1;
            let mut evictions = self.evictions.lock();
            evictions.push_back(inode);
            self.waiting.store(evictions.len(), Ordering::Release);
            return;
        }
        let removed = known.slots.remove(&addr);
        drop(known);
        self.count.fetch_sub(1, Ordering::Relaxed);
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
        let removed = lane.known.lock().slots.remove(&inode.addr());
        self.count
            .fetch_sub(usize::from(removed.is_some()), Ordering::Relaxed);
        drop(removed);
        lane.gone.notify_all();
        let mut evicting = self.evicting.lock();
        *evicting = evicting.saturating_sub(1);
        self.evictions_ended.fetch_add(1, Ordering::AcqRel);
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

    /// Waits until no inode is known that has no links, but no longer than `limit`. Gives how many are left.
    pub(crate) fn wait_unlinked(&self, limit: Duration) -> usize {
        let deadline = Instant::now() + limit;
        let mut evicting = self.evicting.lock();
        loop {
            let left = self.unlinked();
            if left == 0 || self.ended.wait_until(&mut evicting, deadline).timed_out() {
                return left;
            }
        }
    }

    /// How many evictions there have been.
    pub(crate) fn evictions_ended(&self) -> u64 {
        self.evictions_ended.load(Ordering::Acquire)
    }

    /// Waits for another eviction than the first `seen`, as long as there may be one soon: that nobody uses an inode any
    /// more we hear some time after its last unlink, and only then it is deallocated. What is still there `grace` after
    /// it is in use, and not waited for. Gives whether there was one.
    pub(crate) fn wait_forgotten(&self, seen: u64, grace: Duration) -> bool {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let mut evicting = self.evicting.lock();
        while self.evictions_ended() == seen {
            if self.unlinked_since(now_ms().saturating_sub(grace_ms)) == 0 {
                return false;
            }
            self.ended.wait_for(&mut evicting, LOOK_AGAIN);
        }
        true
    }

    /// Entries without links.
    fn unlinked(&self) -> usize {
        self.unlinked_since(0)
    }

    /// Entries that lost their last link at that moment or later.
    fn unlinked_since(&self, moment: u64) -> usize {
        let counts = |slot: &&Slot| match slot.inode.unlinked.load(Ordering::Acquire) {
            0 => false,
            at => at >= moment,
        };
        let of = |lane: &Lane| lane.known.lock().slots.values().filter(counts).count();
        self.lanes.iter().map(of).sum()
    }

    /// Waits until an eviction of this address, if there is one, has ended. Gives false when the address is known
    /// otherwise.
    pub(crate) fn wait_evicted(&self, addr: BlockAddr) -> bool {
        let lane = self.lane(addr);
        let mut known = lane.known.lock();
        while known.slots.get(&addr).is_some_and(|slot| slot.evicting) {
            lane.gone.wait(&mut known);
        }
        !known.slots.contains_key(&addr)
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn whoever_joins_writers_joins_one_that_is_there() {
        let count = AtomicU32::new(0);
        assert!(!join(&count));
        assert_eq!(count.load(Ordering::Relaxed), 0);
        // One comes and goes all the time; the count is 1 while he is there, and what joined leaves again.
        let joined = thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..100_000 {
                    count.fetch_add(1, Ordering::Relaxed);
                    count.fetch_sub(1, Ordering::Relaxed);
                }
            });
            let mut joined = 0;
            for _ in 0..100_000 {
                if join(&count) {
                    joined += 1;
                    assert!(count.fetch_sub(1, Ordering::Relaxed) >= 1);
                }
            }
            joined
        });
        assert_eq!(count.load(Ordering::Relaxed), 0, "{joined} joined");
        count.store(1, Ordering::Relaxed);
        assert!(join(&count) && join(&count));
        assert_eq!(count.load(Ordering::Relaxed), 3);
    }
}
