//! Entries made small: inodes the kernel knows and nobody here uses.
//!
//! Invariants: an address has an entry or a ghost, never both; a ghost keeps what the kernel counts (`nlookup`) and the
//! number it counts it for, nothing else: no lock is held for it, so that on a shared volume another node may have
//! deleted the inode by the time it is asked for. An inode without links is never made a ghost: its entry is what
//! deallocates it; nor one that another node was told we shall deallocate.

use super::{Inode, InodeRef, InodeTable, Known, NewInode, SHARDS, Slot};
use crate::error::{Errno, FsResult};
use crate::glock::GlockGuard;
use gfs2_format::ondisk::FileType;
use gfs2_format::{BlockAddr, FormalIno, InodeNum};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Entries looked at in a turn, with their lane locked.
const LOOKED_AT: usize = 256;

/// What is left of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ghost {
    formal: FormalIno,
    pub(super) nlookup: u32,
    kind: FileType,
}

/// Bytes a ghost takes in its map, on average between two doublings of it.
pub(crate) const GHOST_BYTES: usize = (size_of::<(BlockAddr, Ghost)>() + 1) * 8 / 5;
/// Bytes an entry takes, its locks apart.
pub(crate) const ENTRY_BYTES: usize =
    (size_of::<(BlockAddr, Slot)>() + 1) * 8 / 5 + size_of::<Inode>() + 16 + 2 * size_of::<BlockAddr>();

/// Makes an entry of a ghost.
pub(crate) trait Revive: Send + Sync + fmt::Debug {
    /// Takes the iopen lock, after which nobody can delete the inode.
    ///
    /// # Errors
    /// ESTALE when somebody has deleted it; lock and I/O errors.
    fn revive(&self, num: InodeNum, kind: FileType) -> FsResult<NewInode>;
}

/// What [`InodeTable::shrink`] did.
#[derive(Debug, Default)]
pub(crate) struct Shrunk {
    /// Inodes that are ghosts now.
    pub(crate) gone: Vec<BlockAddr>,
    /// Entries that could have become ghosts, were they not waiting for the log or the disk.
    pub(crate) unsettled: usize,
}

impl Known {
    /// The clock has every entry once, and perhaps some that are gone.
    pub(super) fn track(&mut self, addr: BlockAddr) {
        if self.clock.len() > 2 * self.slots.len() + LOOKED_AT {
            self.clock.clear();
            self.clock.extend(self.slots.keys());
        } else {
            self.clock.push_back(addr);
        }
    }

    /// Makes ghosts of up to `most` entries that were not used since the clock came by.
    fn shrink(
        &mut self,
        most: usize,
        settled: &dyn Fn(&Inode) -> bool,
        shrunk: &mut Shrunk,
    ) -> Vec<Option<GlockGuard>> {
        let mut locks = Vec::new();
        for _ in 0..self.clock.len().min(LOOKED_AT) {
            if locks.len() >= most {
                break;
            }
            let Some(addr) = self.clock.pop_front() else { break };
            let Some(slot) = self.slots.get_mut(&addr) else {
                continue;
            };
            let used = std::mem::take(&mut slot.referenced);
            // One that another node wants to delete was promised to be deleted here, at its last use.
            if used || !slot.may_be_ghost() || slot.inode.is_unlinked() || slot.inode.is_wanted() {
                self.clock.push_back(addr);
                continue;
            }
            if !settled(&slot.inode) {
                shrunk.unsettled += 1;
                self.clock.push_back(addr);
                continue;
            }
            let ghost = Ghost {
                formal: slot.inode.num.formal,
                nlookup: u32::try_from(slot.nlookup).unwrap_or(u32::MAX),
                kind: slot.inode.kind,
            };
            locks.push(slot.inode.take_iopen());
            self.slots.remove(&addr);
            self.ghosts.insert(addr, ghost);
            shrunk.gone.push(addr);
        }
        if self.slots.capacity() > self.slots.len().saturating_mul(4) + LOOKED_AT {
            self.slots.shrink_to(self.slots.len() * 2);
        }
        locks
    }
}

impl Slot {
    /// Known to the kernel, and to nobody else.
    fn may_be_ghost(&self) -> bool {
        self.users == 0 && !self.evicting && self.nlookup > 0 && u32::try_from(self.nlookup).is_ok()
    }
}

impl InodeTable {
    /// Who makes entries of ghosts; once.
    pub(crate) fn set_reviver(&self, reviver: Box<dyn Revive>) {
        let set = self.reviver.set(reviver);
        debug_assert!(set.is_ok(), "a table is given its reviver once");
    }

    /// The entry of an address the kernel knows, of which there was only a ghost.
    pub(super) fn wake(self: &Arc<Self>, addr: BlockAddr) -> FsResult<InodeRef> {
        let ghost = self.lane(addr).known.lock().ghosts.get(&addr).copied();
        let (Some(ghost), Some(reviver)) = (ghost, self.reviver.get()) else {
            return Err(Errno::ESTALE.into());
        };
        let num = InodeNum {
            formal: ghost.formal,
            addr,
        };
        self.get_or_make(num, || reviver.revive(num, ghost.kind))
    }

    /// Makes ghosts of up to `most` entries, those nobody has used for the longest time first, but of none that is
    /// not `settled` (asked with a lane locked: must not wait).
    pub(crate) fn shrink(&self, most: usize, settled: &dyn Fn(&Inode) -> bool) -> Shrunk {
        let mut shrunk = Shrunk::default();
        let turns = self.len() * 2 / LOOKED_AT + 2 * SHARDS;
        for _ in 0..turns {
            let rest = most.saturating_sub(shrunk.gone.len());
            if rest == 0 {
                break;
            }
            let hand = self.hand.fetch_add(1, Ordering::Relaxed) % SHARDS;
            let lane = &self.lanes[hand];
            let locks = lane.known.lock().shrink(rest, settled, &mut shrunk);
            self.count.fetch_sub(locks.len(), Ordering::Relaxed);
            // The iopen locks go here, outside the table's own lock.
            drop(locks);
        }
        shrunk
    }

    /// Number of ghosts.
    pub(crate) fn ghosts(&self) -> usize {
        self.lanes.iter().map(|lane| lane.known.lock().ghosts.len()).sum()
    }

    /// The ghosts of one lane after the other, as often as this is called; `None` when `target` or fewer are left or
    /// every lane has had its turn.
    pub(crate) fn ghosts_to_prune(&self, turn: usize, target: usize) -> Option<Vec<BlockAddr>> {
        if turn >= SHARDS || self.ghosts() <= target {
            return None;
        }
        let hand = self.hand.fetch_add(1, Ordering::Relaxed) % SHARDS;
        Some(self.lanes[hand].known.lock().ghosts.keys().copied().collect())
    }
}
