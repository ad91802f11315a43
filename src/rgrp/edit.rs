//! The format crate's view of one inode's blocks: for reading under its glock, for changing in a transaction.
//!
//! Invariants: blocks are read and edited under the glock that was shown; allocation comes from the one group that is
//! held; file data that is not journaled goes to the device by way of the write-behind cache.

use super::hold::Hold;
use crate::cache::{BufferCache, LockProof};
use crate::error::FsError;
use crate::txn::Transaction;
use gfs2_format::{Block, BlockAddr, BlockEdit, BlockRead, BlockUse, Extent, Geometry, Result};

/// Reads blocks under a held glock.
pub(crate) struct Reader<'a> {
    cache: &'a BufferCache,
    lock: &'a dyn LockProof,
}

impl<'a> Reader<'a> {
    /// Reads what `lock` protects.
    pub(crate) fn new(cache: &'a BufferCache, lock: &'a dyn LockProof) -> Self {
        Self { cache, lock }
    }
}

impl BlockRead for Reader<'_> {
    fn geometry(&self) -> &Geometry {
        self.cache.geometry()
    }

    fn read(&self, addr: BlockAddr) -> Result<Block> {
        Ok(self.cache.read(self.lock, addr)?)
    }

    fn read_ahead(&self, blocks: &[BlockAddr]) {
        self.cache.read_ahead(self.lock, blocks);
    }
}

/// Changes blocks of one inode in a transaction.
pub(crate) struct Edit<'a> {
    txn: &'a mut Transaction,
    lock: &'a dyn LockProof,
    hold: Option<&'a mut Hold>,
}

impl<'a> Edit<'a> {
    /// Changes what `lock`, held EX, protects; blocks come from and go to `hold`.
    pub(crate) fn new(txn: &'a mut Transaction, lock: &'a dyn LockProof, hold: Option<&'a mut Hold>) -> Self {
        Self { txn, lock, hold }
    }
}

/// The group that is held, for a change that needs one.
fn held<'h>(hold: &'h mut Option<&mut Hold>, lock: &dyn LockProof) -> Result<&'h mut Hold> {
    hold.as_deref_mut().ok_or_else(|| {
        let what = "a change that was to cost no block allocates or frees one";
        FsError::Inconsistent(format!("glock {}: {what}", lock.name())).into()
    })
}

impl BlockRead for Edit<'_> {
    fn geometry(&self) -> &Geometry {
        self.txn.geometry()
    }

    fn read(&self, addr: BlockAddr) -> Result<Block> {
        Ok(self.txn.read(self.lock, addr)?)
    }

    fn read_ahead(&self, blocks: &[BlockAddr]) {
        self.txn.cache().read_ahead(self.lock, blocks);
    }
}

impl BlockEdit for Edit<'_> {
    fn edit(&mut self, addr: BlockAddr) -> Result<&mut [u8]> {
        Ok(self.txn.edit(self.lock, addr)?)
    }

    fn create(&mut self, addr: BlockAddr) -> Result<&mut [u8]> {
        Ok(self.txn.create(self.lock, addr)?)
    }

    fn write_data(&mut self, addr: BlockAddr, usage: BlockUse, bytes: &[u8]) -> Result<()> {
        match usage {
            BlockUse::Meta | BlockUse::JournaledData => {
                let block = if usage == BlockUse::Meta {
                    self.txn.create(self.lock, addr)?
                } else {
                    self.txn.create_data(self.lock, addr)?
                };
                block.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                Ok(())
            }
            BlockUse::Data => {
                let mut block = Block::zeroed(self.txn.geometry().block_len());
                let room = block.make_mut();
                room.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                Ok(self.txn.write_data(self.lock, addr, block)?)
            }
        }
    }

    fn alloc(&mut self, want: u32, goal: BlockAddr, _usage: BlockUse) -> Result<Extent> {
        Ok(held(&mut self.hold, self.lock)?.alloc(self.txn, goal, want)?)
    }

    fn free(&mut self, extent: Extent, usage: BlockUse) -> Result<()> {
        held(&mut self.hold, self.lock)?.free(self.txn, extent)?;
        if usage == BlockUse::Data {
            self.txn.free_data(self.lock, extent);
        } else {
            for block in extent.blocks() {
                self.txn.revoke(block)?;
            }
        }
        Ok(())
    }
}
