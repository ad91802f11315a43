//! Reading dinodes before somebody asks for them, many in one go.
//!
//! Invariants: a block is read only under the glock of the inode it is or was, and only if that can be had without
//! waiting for anybody, so any number may be held; what is read in vain costs time, never truth.

use super::engine::Engine;
use crate::error::FsResult;
use crate::glock::{GlockGuard, GlockName, HolderFlags, State};
use gfs2_format::BlockAddr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Blocks of the device that are looked at as one neighbourhood.
const NEIGHBOURS: u64 = 256;
/// Dinodes of a neighbourhood that are read one by one before the rest is read with the next.
const ALONE: u64 = 2;
/// Neighbourhoods that are remembered: 4 GiB of dinodes that lie together. With too few, those that take turns at one
/// place would never be read with their neighbours.
const REMEMBERED: usize = 4096;

/// Where dinodes had to be read lately, one by one.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    /// Each the number of a neighbourhood, times [`ALONE`] + 1, plus how many were read in it.
    lately: Box<[AtomicU64]>,
}

impl Default for ReadAhead {
    fn default() -> Self {
        Self {
            lately: std::iter::repeat_with(AtomicU64::default)
                .take(REMEMBERED)
                .collect(),
        }
    }
}

impl ReadAhead {
    /// A look-up has to read the dinode at `addr`. Gives the first block of its neighbourhood when others there have
    /// been read just before, so that more are probably wanted.
    fn missed(&self, addr: BlockAddr) -> Option<BlockAddr> {
        let number = addr.get() / NEIGHBOURS;
        let slot = &self.lately[usize::try_from(number).unwrap_or(0) % REMEMBERED];
        let base = number.saturating_mul(ALONE + 1);
        let seen = slot.load(Ordering::Relaxed);
        let count = seen
            .checked_sub(base)
            .filter(|count| *count <= ALONE)
            .unwrap_or(0);
        // Two that count at once lose one: then the read comes a look-up later.
        slot.store(base + (count + 1).min(ALONE), Ordering::Relaxed);
        (count >= ALONE).then(|| BlockAddr::new(number * NEIGHBOURS))
    }
}

impl Engine {
    /// Is the dinode to be read from the device?
    fn is_cold(&self, addr: BlockAddr) -> bool {
        !self.cache.holds(GlockName::inode(addr.get()), addr)
    }

    /// The inode at `addr` is about to be looked at: when its neighbours have been lately, those that have not are read
    /// with it. Only where no other node can have the locks of those.
    pub(crate) fn read_ahead_from(&self, addr: BlockAddr) {
        let alone = self.journal.as_ref().is_some_and(|journal| !journal.is_shared());
        if !alone || !self.is_cold(addr) {
            return;
        }
        let Some(first) = self.ahead.missed(addr) else {
            return;
        };
        // What goes wrong here shows when somebody asks for it.
        if let Ok(addresses) = self.rgrps.dinodes_in(first, addr, NEIGHBOURS) {
            self.read_ahead(addresses);
        }
    }

    /// How many of these dinodes are not in memory.
    pub(crate) fn cold(&self, addresses: impl Iterator<Item = BlockAddr>) -> usize {
        addresses.filter(|addr| self.is_cold(*addr)).count()
    }

    /// Reads the dinodes at these addresses, as far as they are not in memory.
    pub(crate) fn read_ahead(&self, addresses: impl IntoIterator<Item = BlockAddr>) {
        let flags = HolderFlags::ANY | HolderFlags::SKIP | HolderFlags::NOPID;
        let held: Vec<(BlockAddr, GlockGuard)> = addresses
            .into_iter()
            .filter(|addr| self.is_cold(*addr))
            .filter_map(|addr| Some((addr, self.try_shared(addr, flags).ok().flatten()?)))
            .collect();
        if held.len() > 1 {
            let wanted = held.iter().map(|(addr, guard)| (*addr, guard.glock().name()));
            self.cache.read_ahead_of(wanted.collect());
        }
    }

    fn try_shared(&self, addr: BlockAddr, flags: HolderFlags) -> FsResult<Option<GlockGuard>> {
        self.inode_glock(addr)?.try_acquire(State::Sh, flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_miss_of_a_neighbourhood_reads_it() {
        let ahead = ReadAhead::default();
        let missed = |n: u64| ahead.missed(BlockAddr::new(n)).map(BlockAddr::get);
        assert_eq!(missed(1000), None);
        assert_eq!(missed(1000 + NEIGHBOURS), None);
        assert_eq!(missed(1001), None);
        assert_eq!(missed(990), Some(768));
        // Another one takes its place.
        assert_eq!(missed(1000 + NEIGHBOURS * REMEMBERED as u64), None);
        assert_eq!(missed(1002), None);
        assert_eq!(missed(u64::MAX), None);
    }
}
