//! Notifications to the kernel: what a demoted glock takes away from its caches.
//!
//! Traps (STRUCTURE.md B3, PERF.md A3): an invalidation writes dirty pages back *through us* before it returns, and
//! waits for pages whose READ is not answered; so it is called from a demote worker that holds no lock of ours,
//! never from a request's thread, and the inode's requests are served meanwhile.

use super::convert::Nodes;
use crate::glock::KernelCache;
use fuser::Notifier;
use std::sync::OnceLock;

/// The kernel's caches of one mount; silent until the mount is live.
#[derive(Debug, Default)]
pub struct Notifications {
    live: OnceLock<(Notifier, Nodes)>,
}

impl Notifications {
    /// From now on the kernel is told.
    pub(super) fn start(&self, notifier: Notifier, nodes: Nodes) {
        // Started once, by serve(); a second start would be the same mount.
        let _ = self.live.set((notifier, nodes));
    }
}

impl KernelCache for Notifications {
    fn flush_and_invalidate(&self, inode_number: u64, _keep_clean: bool) {
        let Some((notifier, nodes)) = self.live.get() else {
            return;
        };
        let node = nodes.node(gfs2_format::BlockAddr::new(inode_number));
        if let Err(error) = notifier.inval_inode(node, 0, 0) {
            tracing::debug!(inode_number, "invalidation: {error}");
        }
    }

    fn invalidate_attributes(&self, inode_number: u64) {
        let Some((notifier, nodes)) = self.live.get() else {
            return;
        };
        let node = nodes.node(gfs2_format::BlockAddr::new(inode_number));
        // A negative offset: no pages.
        if let Err(error) = notifier.inval_inode(node, -1, 0) {
            tracing::debug!(inode_number, "invalidation: {error}");
        }
    }
}
