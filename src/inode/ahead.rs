//! Reading dinodes before somebody asks for them, many in one go.
//!
//! Invariants: a block is read only under the glock of the inode it is or was, and only if that can be had without
//! waiting for anybody, so any number may be held; what is read in vain costs time, never truth.

use super::engine::Engine;
use crate::error::FsResult;
use crate::glock::{GlockGuard, GlockName, HolderFlags, State};
use gfs2_format::BlockAddr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Dinodes read for the first look-up that follows another closely on the device.
const WINDOW_MIN: u64 = 8;
/// Dinodes read at once, at most.
const WINDOW_MAX: u64 = 128;
/// How far apart look-ups may be, in blocks, to count as following each other.
const NEAR: u64 = 64;

/// Where look-ups have been lately.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    /// Dinodes up to this one have been read, or the last look-up that had to read was of it.
    reached: AtomicU64,
    window: AtomicU64,
}

impl ReadAhead {
    /// A look-up has to read the dinode at `addr`: how many behind it are worth reading too.
    fn window(&self, addr: BlockAddr) -> u64 {
        let reached = self.reached.swap(addr.get(), Ordering::Relaxed);
        let follows = addr.get() > reached && addr.get() - reached <= NEAR;
        let window = match self.window.load(Ordering::Relaxed) {
            _ if !follows => 0,
            0 => WINDOW_MIN,
            window => (window * 2).min(WINDOW_MAX),
        };
        self.window.store(window, Ordering::Relaxed);
        window
    }
}

impl Engine {
    /// Is the dinode to be read from the device?
    fn is_cold(&self, addr: BlockAddr) -> bool {
        !self.cache.holds(GlockName::inode(addr.get()), addr)
    }

    /// The inode at `addr` is about to be looked at: when that is one of a row of reads along the device, the next ones
    /// are read with it. Only where no other node can have the locks of those.
    pub(crate) fn read_ahead_from(&self, addr: BlockAddr) {
        let alone = self.journal.as_ref().is_some_and(|journal| !journal.is_shared());
        if !alone || !self.is_cold(addr) {
            return;
        }
        let window = self.ahead.window(addr);
        if window == 0 {
            return;
        }
        // What goes wrong here shows when somebody asks for it.
        if let Ok(mut addresses) = self.rgrps.next_dinodes(addr, window) {
            if let Some(last) = addresses.last() {
                self.ahead.reached.store(last.get(), Ordering::Relaxed);
            }
            addresses.push(addr);
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
