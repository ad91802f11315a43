//! What a resource group's glock does when it changes hands.

use super::group::Group;
use crate::cache::BufferCache;
use crate::error::FsResult;
use crate::glock::{Glock, GlockName, GlockOps, State};
use crate::health::Cause;
use crate::journal::{FlushReason, Journal};
use std::sync::Arc;

/// The operations of one group.
#[derive(Debug)]
pub(super) struct RgrpOps {
    group: Arc<Group>,
    cache: Arc<BufferCache>,
    journal: Option<Arc<Journal>>,
}

impl RgrpOps {
    pub(super) fn new(group: Arc<Group>, cache: Arc<BufferCache>, journal: Option<Arc<Journal>>) -> Self {
        Self {
            group,
            cache,
            journal,
        }
    }
}

impl GlockOps for RgrpOps {
    fn sync(&self, glock: &Glock) -> FsResult<()> {
        match &self.journal {
            Some(journal) => journal.flush_glock(glock.name(), FlushReason::RgrpSync),
            None => Ok(()),
        }
    }

    fn invalidate(&self, glock: &Glock, _target: State) {
        if let Err(error) = self.cache.drop_owner(glock.name()) {
            self.cache
                .health()
                .withdraw("rgrp::invalidate", &Cause::Consistency(error.to_string()));
        }
        self.group.forget();
    }

    fn instantiate(&self, _glock: &Glock) -> FsResult<()> {
        // Bitmaps are read when somebody looks for blocks.
        Ok(())
    }

    fn kernel_cached(&self, _name: GlockName) -> bool {
        false
    }
}
