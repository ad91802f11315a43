//! What a resource group's glock does when it changes hands.

use super::group::Group;
use crate::cache::BufferCache;
use crate::error::FsResult;
use crate::glock::{GlockName, GlockOps, State};
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
        Self { group, cache, journal }
    }
}
