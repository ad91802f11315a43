//! An entry again for an inode that was made a ghost.
//!
//! Invariant: on a shared volume the dinode's block is not looked at before the bitmap says that it is one: while there
//! was only a ghost, another node may have deleted the inode and put something else there.

use super::table::{NewInode, Revive};
use crate::cache::BufferCache;
use crate::error::{Errno, FsResult};
use crate::glock::{GlockName, GlockOps, GlockTable, HolderFlags, LockType, State};
use crate::rgrp::Rgrps;
use gfs2_format::InodeNum;
use gfs2_format::ondisk::{BlockState, Dinode, FileType};
use std::sync::{Arc, Weak};

/// What an entry is made with. The table belongs to what it refers to, so it keeps none of it alive.
#[derive(Debug)]
pub(crate) struct Reviver {
    glocks: Weak<GlockTable>,
    inode_ops: Weak<dyn GlockOps>,
    iopen_ops: Weak<dyn GlockOps>,
    rgrps: Weak<Rgrps>,
    cache: Weak<BufferCache>,
    /// No other node can have deleted it.
    alone: bool,
}

impl Reviver {
    pub(crate) fn new(
        glocks: &Arc<GlockTable>,
        (inode_ops, iopen_ops): (&Arc<dyn GlockOps>, &Arc<dyn GlockOps>),
        (rgrps, cache): (&Arc<Rgrps>, &Arc<BufferCache>),
        alone: bool,
    ) -> Self {
        Self {
            glocks: Arc::downgrade(glocks),
            inode_ops: Arc::downgrade(inode_ops),
            iopen_ops: Arc::downgrade(iopen_ops),
            rgrps: Arc::downgrade(rgrps),
            cache: Arc::downgrade(cache),
            alone,
        }
    }
}

impl Revive for Reviver {
    fn revive(&self, num: InodeNum, kind: FileType) -> FsResult<NewInode> {
        let parts = (
            self.glocks.upgrade(),
            self.inode_ops.upgrade(),
            self.iopen_ops.upgrade(),
            self.rgrps.upgrade(),
            self.cache.upgrade(),
        );
        let (Some(glocks), Some(inode_ops), Some(iopen_ops), Some(rgrps), Some(cache)) = parts else {
            return Err(Errno::ESTALE.into());
        };
        let name = GlockName::new(LockType::Iopen, num.addr.get());
        let iopen = glocks
            .get(name, &iopen_ops)?
            .acquire(State::Sh, HolderFlags::EXACT | HolderFlags::NOPID)?;
        let glock = glocks.get(GlockName::inode(num.addr.get()), &inode_ops)?;
        if !self.alone {
            let guard = glock.acquire(State::Sh, HolderFlags::ANY | HolderFlags::SKIP)?;
            match rgrps.state(num.addr)? {
                Some(BlockState::Dinode | BlockState::Unlinked) => {}
                _ => return Err(Errno::ESTALE.into()),
            }
            // With an entry we would be the ones who delete it at its last use: not if it is another inode.
            let block = cache.read(&guard, num.addr)?;
            let dinode = Dinode::decode(&block, num.addr, cache.geometry())?;
            if dinode.inode_num().formal != num.formal {
                return Err(Errno::ESTALE.into());
            }
        }
        Ok(NewInode { kind, glock, iopen })
    }
}
