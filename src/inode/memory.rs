//! What the caches of a node take in memory, and the cutting of them to a budget.
//!
//! Invariants: nothing that is newer than the device, in the log and not in place, open, locked, or without links goes;
//! above the budget all is cut to [`LOW`] of it, blocks first, then inodes nobody has in use, with their locks; what
//! the kernel alone keeps alive here (a ghost of an inode) goes when the kernel has been asked to forget it. Runs on a
//! thread of its own and holds no lock that a request waits for but for moments.
//!
//! Not counted, and bounded otherwise: what the log pins (the journal's size), the index of the resource groups,
//! a buffer of 1 MiB or two for each request under way, and memory in which blocks are gathered or kept (9 MiB).

use super::engine::Engine;
use super::table::{ENTRY_BYTES, GHOST_BYTES};
use crate::error::FsResult;
use crate::glock::{GLOCK_BYTES, GlockName, LockType};
use gfs2_format::BlockAddr;
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Of the budget, what is left after a cut: 85 percent.
const LOW: (usize, usize) = (17, 20);
/// Parts of the budget: blocks are not cut below a quarter of it for the sake of inodes, maps of resource groups not
/// below an eighth (and never more than a quarter); ghosts may take an eighth; dirty data may, too.
const BUFFERS_LEAST: usize = 4;
const MAPS_LEAST: usize = 8;
const MAPS_MOST: usize = 4;
const GHOSTS_MOST: usize = 8;
const DIRTY_MOST: usize = 8;
/// Inodes made ghosts in one go.
const BATCH: usize = 2048;
/// How long the locks of one go may take to come down without any of them doing so.
const DEMOTE_WAIT: Duration = Duration::from_millis(40);
/// Inodes the kernel is asked to forget in one message.
const PRUNE_BATCH: usize = 512;
/// New inodes at least between two alarms.
const ALARM_LEAST: usize = 256;

/// Bytes and pieces of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// How many.
    pub count: usize,
    /// What they take, about.
    pub bytes: usize,
}

/// What the caches take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// What they may take; 0: no matter.
    pub budget: usize,
    /// Metadata blocks.
    pub buffers: Share,
    /// Blocks of file data that the device has not got yet, and memory kept for more.
    pub data: Share,
    /// Inodes in use here, or lately.
    pub inodes: Share,
    /// Inodes that only the kernel remembers.
    pub ghosts: Share,
    /// Locks.
    pub glocks: Share,
    /// Resource groups, and the maps of their free blocks.
    pub groups: Share,
}

impl MemoryUse {
    /// Bytes in all.
    #[must_use]
    pub fn total(&self) -> usize {
        let shares = [
            self.buffers,
            self.data,
            self.inodes,
            self.ghosts,
            self.glocks,
            self.groups,
        ];
        shares.iter().map(|share| share.bytes).sum()
    }
}

/// `used=12M budget=512M buffers=2900/11M data=0/0K inodes=410/250K ghosts=0/0K glocks=900/1M groups=4/128K`.
impl fmt::Display for MemoryUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "used={} budget={}", Size(self.total()), Size(self.budget))?;
        let shares = [
            ("buffers", self.buffers),
            ("data", self.data),
            ("inodes", self.inodes),
            ("ghosts", self.ghosts),
            ("glocks", self.glocks),
            ("groups", self.groups),
        ];
        for (name, share) in shares {
            write!(f, " {name}={}/{}", share.count, Size(share.bytes))?;
        }
        Ok(())
    }
}

/// A size as people read it.
struct Size(usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 10 << 20 => write!(f, "{}M", bytes >> 20),
            bytes => write!(f, "{}K", bytes.div_ceil(1 << 10)),
        }
    }
}

/// Asks the kernel to forget inodes. False: it cannot be asked.
pub type Prune<'a> = &'a (dyn Fn(&[BlockAddr]) -> bool + Send + Sync);

/// The budget, and what is remembered from one cut to the next.
#[derive(Debug)]
pub struct Relief {
    budget: usize,
    /// Ghosts at which the kernel is asked to forget.
    prune_at: usize,
}

impl Relief {
    /// A budget in bytes.
    #[must_use]
    pub fn new(budget: usize) -> Self {
        Self {
            budget,
            prune_at: Self::ghosts_most(budget),
        }
    }

    fn ghosts_most(budget: usize) -> usize {
        budget / GHOSTS_MOST / GHOST_BYTES
    }

    fn low(&self) -> usize {
        self.budget / LOW.1 * LOW.0
    }
}

impl Engine {
    /// What the caches take.
    pub(crate) fn memory(&self) -> MemoryUse {
        let (buffers, buffer_bytes) = self.cache.usage();
        let data = self.cache.data();
        let (groups, map_bytes) = self.rgrps.usage();
        let share = |count: usize, each: usize| Share {
            count,
            bytes: count * each,
        };
        MemoryUse {
            budget: self.budget.load(Ordering::Relaxed),
            buffers: Share {
                count: buffers,
                bytes: buffer_bytes,
            },
            data: Share {
                count: data.stats().dirty_blocks,
                bytes: data.usage(),
            },
            inodes: share(self.inodes.len(), ENTRY_BYTES),
            ghosts: share(self.inodes.ghosts(), GHOST_BYTES),
            // Those of the groups are part of the index.
            glocks: share(self.glocks.len().saturating_sub(groups), GLOCK_BYTES),
            groups: Share {
                count: groups,
                bytes: map_bytes,
            },
        }
    }

    /// Gives each cache its own limit.
    pub(crate) fn set_memory(&self, budget: usize) {
        self.budget.store(budget, Ordering::Relaxed);
        self.cache.set_limit(budget / 4 * 3);
        let dirty = (budget / DIRTY_MOST).min(crate::cache::DIRTY_BYTES);
        self.cache.data().set_limit(dirty);
        self.rgrps.set_limit(budget / MAPS_MOST);
        self.glocks.set_budget(budget / 2 / GLOCK_BYTES);
        self.inodes
            .set_alarm(budget / 2 / (ENTRY_BYTES + 2 * GLOCK_BYTES));
    }

    /// Cuts the caches when they take more than the budget.
    pub(crate) fn relieve(&self, relief: &mut Relief, prune: Prune<'_>) {
        let mut used = self.memory();
        if used.total() > relief.budget {
            used = self.cut(relief);
            if used.total() > relief.budget && self.settle_all().is_ok() {
                used = self.cut(relief);
            }
        }
        self.prune(relief, used.ghosts.count, prune);
        self.inodes.set_alarm(self.next_alarm(relief, &used));
    }

    /// One round over all caches; what they take then.
    fn cut(&self, relief: &Relief) -> MemoryUse {
        let used = self.memory();
        let mut excess = used.total().saturating_sub(relief.low());
        excess -= less(used.groups.bytes, relief.budget / MAPS_LEAST, excess, |left| {
            self.rgrps.shrink_to(left)
        });
        excess -= less(
            used.buffers.bytes,
            relief.budget / BUFFERS_LEAST,
            excess,
            |left| self.cache.shrink_to(left),
        );
        self.cut_inodes(excess);
        let used = self.memory();
        let excess = used.total().saturating_sub(relief.low());
        // Locks of no inode that is known: those read ahead.
        let of_inodes = 2 * used.inodes.count + used.groups.count;
        let others = self.glocks.len().saturating_sub(of_inodes);
        let go = others.min(excess.div_ceil(GLOCK_BYTES));
        if go > 0 {
            let target = self.glocks.len().saturating_sub(go);
            self.glocks.shrink_to(target);
            self.glocks.wait_shrunk(target, DEMOTE_WAIT);
        }
        self.memory()
    }

    /// Makes ghosts of inodes and gives up their locks, for so many bytes.
    fn cut_inodes(&self, excess: usize) {
        let each = ENTRY_BYTES + 2 * GLOCK_BYTES - GHOST_BYTES;
        let mut rest = excess.div_ceil(each);
        while rest > 0 {
            let settled = |inode: &super::Inode| inode.glock().ops().is_settled(inode.glock().name());
            let gone = self.inodes.shrink(rest.min(BATCH), &settled).gone;
            if gone.is_empty() {
                return;
            }
            rest = rest.saturating_sub(gone.len());
            let target = self.glocks.len().saturating_sub(2 * gone.len());
            self.glocks.retire(gone.iter().flat_map(|addr| {
                let number = addr.get();
                [GlockName::new(LockType::Iopen, number), GlockName::inode(number)]
            }));
            self.glocks.wait_shrunk(target, DEMOTE_WAIT);
        }
    }

    /// Lets nothing wait for the device any more, so that it can go.
    fn settle_all(&self) -> FsResult<()> {
        let Some(journal) = self.journal.as_ref().filter(|_| !self.is_read_only()) else {
            return Ok(());
        };
        self.cache.data().write_all()?;
        journal.write_back()
    }

    fn prune(&self, relief: &mut Relief, ghosts: usize, prune: Prune<'_>) {
        if ghosts < relief.prune_at {
            return;
        }
        let most = Relief::ghosts_most(relief.budget);
        let mut turn = 0;
        'asking: while let Some(lane) = self.inodes.ghosts_to_prune(turn, most / 2) {
            turn += 1;
            for batch in lane.chunks(PRUNE_BATCH) {
                if !prune(batch) {
                    relief.prune_at = usize::MAX;
                    break 'asking;
                }
            }
        }
        if relief.prune_at != usize::MAX {
            // What the kernel still has in use it does not forget: not asked again for the same ones.
            relief.prune_at = most.max(self.inodes.ghosts() + most / 4);
        }
    }

    /// The number of inodes at which the budget may be reached.
    fn next_alarm(&self, relief: &Relief, used: &MemoryUse) -> usize {
        let each = ENTRY_BYTES + 2 * GLOCK_BYTES + 2 * self.geometry().block_len();
        let room = relief.budget.saturating_sub(used.total()) / each;
        self.inodes.len() + room.max(ALARM_LEAST)
    }
}

/// Cuts a cache by `excess`, but not below `least`; gives what went.
fn less(bytes: usize, least: usize, excess: usize, cut: impl FnOnce(usize)) -> usize {
    let left = bytes.saturating_sub(excess).max(least);
    if left >= bytes {
        return 0;
    }
    cut(left);
    bytes - left
}
