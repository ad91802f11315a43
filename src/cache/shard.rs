//! One shard of the cache: a map, the owners' lists, and the clock that chooses what to evict.
//!
//! Invariants: every slot is listed under its owner; the clock may name blocks that are gone (their tick differs).

use crate::glock::GlockName;
use crate::hash::{QuickMap, QuickSet};
use gfs2_format::{Block, BlockAddr};
use std::collections::VecDeque;

/// Clock entries looked at for one insertion: pinned buffers must not make insertion slow.
const EVICT_STEPS_MAX: usize = 32;

/// A cached block.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) owner: GlockName,
    pub(super) block: Block,
    /// Sets (running, being flushed, committed but not in place) this block is in.
    pub(super) pins: u32,
    /// Number of the change that made these contents; 0 when they are as read.
    pub(super) version: u64,
    /// Freed: the contents are of no use, the buffer goes with its last pin.
    pub(super) freed: bool,
    referenced: bool,
    tick: u64,
}

/// What is known of an address.
#[derive(Debug)]
pub(super) enum Slot {
    /// Somebody reads it from the device; the ticket is his.
    Loading { owner: GlockName, ticket: u64 },
    /// Here.
    Ready(Buffer),
}

impl Slot {
    fn owner(&self) -> GlockName {
        match self {
            Self::Loading { owner, .. } => *owner,
            Self::Ready(buffer) => buffer.owner,
        }
    }
}

/// The blocks of one owner in a shard: an inode's are spread over all shards, so that there is mostly one.
#[derive(Debug)]
enum Owned {
    One(BlockAddr),
    Many(QuickSet<BlockAddr>),
}

impl Owned {
    fn add(&mut self, addr: BlockAddr) {
        match self {
            Self::One(own) if *own == addr => {}
            Self::One(own) => *self = Self::Many([*own, addr].into_iter().collect()),
            Self::Many(all) => {
                all.insert(addr);
            }
        }
    }

    /// True: nothing is left.
    fn remove(&mut self, addr: BlockAddr) -> bool {
        match self {
            Self::One(own) => *own == addr,
            Self::Many(all) => {
                all.remove(&addr);
                all.is_empty()
            }
        }
    }

    fn to_vec(&self) -> Vec<BlockAddr> {
        match self {
            Self::One(own) => vec![*own],
            Self::Many(all) => all.iter().copied().collect(),
        }
    }
}

/// The blocks of one shard.
#[derive(Debug, Default)]
pub(super) struct Shard {
    slots: QuickMap<BlockAddr, Slot>,
    owners: QuickMap<GlockName, Owned>,
    clock: VecDeque<(BlockAddr, u64)>,
    ticks: u64,
    ready: usize,
    /// Threads that wait for a load to end.
    pub(super) waiters: u32,
}

impl Shard {
    pub(super) fn ready(&self) -> usize {
        self.ready
    }

    pub(super) fn pinned(&self) -> usize {
        let pinned = |slot: &&Slot| matches!(slot, Slot::Ready(b) if b.pins > 0);
        self.slots.values().filter(pinned).count()
    }

    pub(super) fn get_mut(&mut self, addr: BlockAddr) -> Option<&mut Slot> {
        self.slots.get_mut(&addr)
    }

    pub(super) fn buffer_mut(&mut self, addr: BlockAddr) -> Option<&mut Buffer> {
        match self.slots.get_mut(&addr) {
            Some(Slot::Ready(buffer)) => Some(buffer),
            _ => None,
        }
    }

    /// The buffer, marked as used.
    pub(super) fn touch(buffer: &mut Buffer) -> (Block, u64) {
        buffer.referenced = true;
        (buffer.block.clone(), buffer.version)
    }

    /// Notes that `owner` reads `addr` now; the ticket tells later whether he still is the one.
    pub(super) fn start_loading(&mut self, addr: BlockAddr, owner: GlockName) -> u64 {
        self.remove(addr);
        self.ticks += 1;
        let ticket = self.ticks;
        self.slots.insert(addr, Slot::Loading { owner, ticket });
        self.list(addr, owner);
        ticket
    }

    /// Ends a load: `false` when somebody else put other contents there (or dropped them) meanwhile.
    pub(super) fn end_loading(
        &mut self,
        addr: BlockAddr,
        ticket: u64,
        block: Option<&Block>,
        limit: usize,
    ) -> bool {
        let owner = match self.slots.get(&addr) {
            Some(Slot::Loading { owner, ticket: own }) if *own == ticket => *owner,
            _ => return false,
        };
        self.remove(addr);
        if let Some(block) = block {
            self.insert(addr, owner, block.clone(), 0, limit);
        }
        true
    }

    /// A new buffer, without pins; the caller has removed what was there.
    pub(super) fn insert(
        &mut self,
        addr: BlockAddr,
        owner: GlockName,
        block: Block,
        version: u64,
        limit: usize,
    ) -> Option<&mut Buffer> {
        self.evict(limit.saturating_sub(1), EVICT_STEPS_MAX);
        self.ticks += 1;
        let tick = self.ticks;
        self.clock.push_back((addr, tick));
        self.list(addr, owner);
        let buffer = Buffer {
            owner,
            block,
            pins: 0,
            version,
            freed: false,
            referenced: false,
            tick,
        };
        self.ready += 1;
        self.slots.insert(addr, Slot::Ready(buffer));
        self.buffer_mut(addr)
    }

    /// Gives a buffer to another owner (its block was freed and allocated again before the old copy left the log).
    pub(super) fn change_owner(&mut self, addr: BlockAddr, owner: GlockName) {
        let Some(buffer) = self.buffer_mut(addr) else {
            return;
        };
        let old = std::mem::replace(&mut buffer.owner, owner);
        self.unlist(addr, old);
        self.list(addr, owner);
    }

    pub(super) fn remove(&mut self, addr: BlockAddr) {
        if let Some(slot) = self.slots.remove(&addr) {
            self.ready -= usize::from(matches!(slot, Slot::Ready(_)));
            self.unlist(addr, slot.owner());
        }
    }

    fn list(&mut self, addr: BlockAddr, owner: GlockName) {
        let list = self.owners.entry(owner);
        list.and_modify(|list| list.add(addr)).or_insert(Owned::One(addr));
    }

    fn unlist(&mut self, addr: BlockAddr, owner: GlockName) {
        if let Some(list) = self.owners.get_mut(&owner)
            && list.remove(addr)
        {
            self.owners.remove(&owner);
        }
    }

    /// Drops everything of `owner`; gives back a pinned block, which stays, when there is one.
    pub(super) fn drop_owner(&mut self, owner: GlockName) -> Option<BlockAddr> {
        let list = self.owners.get(&owner)?.to_vec();
        let mut pinned = None;
        for addr in list {
            match self.slots.get(&addr) {
                Some(Slot::Ready(buffer)) if buffer.pins > 0 && !buffer.freed => pinned = Some(addr),
                Some(Slot::Ready(buffer)) if buffer.pins > 0 => {}
                _ => self.remove(addr),
            }
        }
        pinned
    }

    /// Drops everything that is not pinned.
    pub(super) fn drop_clean(&mut self) {
        let clean: Vec<BlockAddr> = self
            .slots
            .iter()
            .filter(|(_, slot)| !matches!(slot, Slot::Ready(buffer) if buffer.pins > 0))
            .map(|(addr, _)| *addr)
            .collect();
        for addr in clean {
            self.remove(addr);
        }
        self.clock.clear();
        self.clock
            .extend(self.slots.iter().filter_map(|(addr, slot)| match slot {
                Slot::Ready(buffer) => Some((*addr, buffer.tick)),
                Slot::Loading { .. } => None,
            }));
    }

    /// Evicts unpinned buffers until `limit` are left, or only pinned ones.
    pub(super) fn shrink(&mut self, limit: usize) {
        // Once round to forget who was used, once round to evict.
        self.evict(limit, self.clock.len().saturating_mul(2));
        if self.slots.capacity() > self.slots.len().saturating_mul(4) {
            self.slots.shrink_to(self.slots.len() * 2);
            self.owners.shrink_to(self.owners.len() * 2);
            self.clock.shrink_to(self.clock.len() * 2);
        }
    }

    /// Evicts unpinned buffers, those not used since the clock last passed first, until `limit` are left (or the
    /// step bound is reached: pinned buffers may exceed any limit).
    fn evict(&mut self, limit: usize, steps: usize) {
        for _ in 0..steps {
            let stale = self.clock.len() > self.ready.saturating_mul(2) + EVICT_STEPS_MAX;
            if self.ready <= limit && !stale {
                return;
            }
            let Some((addr, tick)) = self.clock.pop_front() else {
                return;
            };
            let over = self.ready > limit;
            match self.slots.get_mut(&addr) {
                Some(Slot::Ready(buffer)) if buffer.tick == tick => {
                    if !over || buffer.pins > 0 || buffer.referenced {
                        buffer.referenced &= !over;
                        self.clock.push_back((addr, tick));
                    } else {
                        self.remove(addr);
                    }
                }
                _ => {}
            }
        }
    }
}
