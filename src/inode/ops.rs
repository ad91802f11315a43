//! What an inode's glock does when it changes hands.

use super::table::InodeTable;
use crate::cache::BufferCache;
use crate::error::FsResult;
use crate::glock::{Glock, GlockName, GlockOps, State};
use crate::health::Cause;
use crate::journal::{FlushReason, Journal};
use crate::rgrp::IndexState;
use gfs2_format::BlockAddr;
use std::sync::Arc;

/// The operations of all inodes.
#[derive(Debug)]
pub(crate) struct InodeOps {
    cache: Arc<BufferCache>,
    journal: Option<Arc<Journal>>,
    /// The rindex inode, and who must know when its lock goes.
    rindex: (BlockAddr, Arc<IndexState>),
    inodes: Arc<InodeTable>,
}

impl InodeOps {
    pub(crate) fn new(
        cache: Arc<BufferCache>,
        journal: Option<Arc<Journal>>,
        rindex: (BlockAddr, Arc<IndexState>),
        inodes: Arc<InodeTable>,
    ) -> Self {
        Self {
            cache,
            journal,
            rindex,
            inodes,
        }
    }
}

impl GlockOps for InodeOps {
    fn sync(&self, glock: &Glock) -> FsResult<()> {
        // A file's write-back error keeps the lock, as the kernel's does: nobody may read what we could not write.
        self.cache.data().write_owner(glock.name())?;
        match &self.journal {
            Some(journal) => journal.flush_glock(glock.name(), FlushReason::InodeSync),
            None => Ok(()),
        }
    }

    fn invalidate(&self, glock: &Glock, target: State) {
        let data = self.cache.data().check_clean(glock.name());
        // Metadata stays in DF.
        let metadata = match target {
            State::Un => self.cache.drop_owner(glock.name()),
            _ => Ok(()),
        };
        if let Err(error) = data.and(metadata) {
            self.cache
                .health()
                .withdraw("inode::invalidate", &Cause::Consistency(error.to_string()));
        }
        if target == State::Un && glock.name().number == self.rindex.0.get() {
            self.rindex.1.outdated();
        }
    }

    fn is_settled(&self, name: GlockName) -> bool {
        let in_log = self
            .journal
            .as_ref()
            .is_some_and(|journal| journal.has_dirty(name));
        !in_log && !self.cache.data().has_dirty(name)
    }

    fn kernel_pages(&self, glock: &Glock) -> bool {
        // See `Engine::shared_pages`.
        let addr = BlockAddr::new(glock.name().number);
        glock.held_state() == State::Ex || !self.inodes.is_open_for_writing(addr)
    }

    fn instantiate(&self, _glock: &Glock) -> FsResult<()> {
        // A dinode is decoded whenever it is read under a fresh lock.
        Ok(())
    }
}
