//! The running commit: what has been committed by transactions and not yet written to the log.
//!
//! Invariant: no block is logged and revoked in one commit (the revoke would kill the copy, FORMAT.md 7.6).

use super::space::Costs;
use crate::glock::GlockName;
use crate::hash::{QuickMap, QuickSet};
use gfs2_format::log::Flush;
use gfs2_format::{Block, BlockAddr};

/// A block of the running commit.
pub(super) struct RunningBlock {
    pub(super) owner: GlockName,
    pub(super) block: Block,
    pub(super) data: bool,
}

/// The running commit, or one that is being flushed.
pub(super) struct Running {
    pub(super) seq: u64,
    blocks: QuickMap<BlockAddr, RunningBlock>,
    jdata: u64,
    revokes: QuickSet<BlockAddr>,
    owners: QuickSet<GlockName>,
    /// Owners whose file data must be on the device before this is durable.
    ordered: QuickSet<GlockName>,
    /// It frees blocks of file data.
    frees_data: bool,
    /// The local statfs changed: the statfs_change block is logged too.
    pub(super) statfs: bool,
}

impl Running {
    pub(super) fn new(seq: u64) -> Self {
        Self {
            seq,
            blocks: QuickMap::default(),
            jdata: 0,
            revokes: QuickSet::default(),
            owners: QuickSet::default(),
            ordered: QuickSet::default(),
            frees_data: false,
            statfs: false,
        }
    }

    /// Nothing to write?
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.revokes.is_empty() && !self.statfs
    }

    /// Journal blocks that this takes.
    pub(super) fn need(&self, costs: &Costs) -> u64 {
        if self.is_empty() {
            return 0;
        }
        let metadata = self.blocks.len() as u64 - self.jdata + u64::from(self.statfs);
        costs.commit(metadata, self.jdata, self.revokes.len() as u64)
    }

    pub(super) fn contains(&self, addr: BlockAddr) -> bool {
        self.blocks.contains_key(&addr)
    }

    pub(super) fn revokes(&self) -> &QuickSet<BlockAddr> {
        &self.revokes
    }

    pub(super) fn blocks(&self) -> &QuickMap<BlockAddr, RunningBlock> {
        &self.blocks
    }

    pub(super) fn touches(&self, owner: GlockName) -> bool {
        self.owners.contains(&owner)
    }

    pub(super) fn ordered(&self) -> &QuickSet<GlockName> {
        &self.ordered
    }

    pub(super) fn frees_data(&self) -> bool {
        self.frees_data
    }

    /// The file data of this owner comes first.
    pub(super) fn order(&mut self, owner: GlockName) {
        self.ordered.insert(owner);
    }

    /// Blocks of file data were freed.
    pub(super) fn free_data(&mut self) {
        self.frees_data = true;
    }

    /// Adds or replaces a block, cancelling its revoke; true when it was not in this commit before.
    pub(super) fn put(&mut self, addr: BlockAddr, block: RunningBlock) -> bool {
        self.revokes.remove(&addr);
        self.owners.insert(block.owner);
        self.jdata += u64::from(block.data);
        let old = self.blocks.insert(addr, block);
        self.jdata -= u64::from(old.as_ref().is_some_and(|b| b.data));
        old.is_none()
    }

    /// Takes a block out, because it was freed; true when it was there.
    pub(super) fn remove(&mut self, addr: BlockAddr) -> bool {
        let old = self.blocks.remove(&addr);
        self.jdata -= u64::from(old.as_ref().is_some_and(|b| b.data));
        old.is_some()
    }

    /// Adds a revoke of a block that is not logged in this commit.
    pub(super) fn revoke(&mut self, addr: BlockAddr, owner: Option<GlockName>) {
        debug_assert!(
            !self.contains(addr),
            "block {addr} logged and revoked in one commit"
        );
        self.revokes.insert(addr);
        self.owners.extend(owner);
    }

    /// Hands the contents to the codec.
    pub(super) fn with_flush<R>(&self, encode: impl FnOnce(Flush<'_>) -> R) -> R {
        // By address: the same work gives the same log, and a replay goes through the volume once.
        let part = |data: bool| -> Vec<(BlockAddr, Block)> {
            let blocks = self.blocks.iter().filter(|(_, b)| b.data == data);
            let mut part: Vec<_> = blocks.map(|(addr, b)| (*addr, b.block.clone())).collect();
            part.sort_unstable_by_key(|(addr, _)| *addr);
            part
        };
        let mut revokes: Vec<BlockAddr> = self.revokes.iter().copied().collect();
        revokes.sort_unstable();
        encode(Flush {
            jdata: &part(true),
            metadata: &part(false),
            revokes: &revokes,
        })
    }
}
