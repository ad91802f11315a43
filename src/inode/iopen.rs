//! What the iopen glock, "this inode is cached here", does when another node wants it: that node deletes the inode.
//!
//! Invariant: a node that still has the inode in use keeps the lock, tells the deleting node so at once (by a knock at
//! the inode's own lock, which the deleter holds EX), and deletes the inode itself when its last use ends.

use super::table::InodeTable;
use crate::error::{FsError, FsResult};
use crate::glock::{Glock, GlockName, GlockOps, GlockTable, HolderFlags, State, Verdict};
use gfs2_format::BlockAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread;

/// The operations of all iopen locks.
#[derive(Debug)]
pub(crate) struct IopenOps {
    wanted: Sender<BlockAddr>,
}

impl IopenOps {
    /// Starts the thread that answers; it ends with the last iopen lock.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(
        inodes: &Arc<InodeTable>,
        glocks: &Arc<GlockTable>,
        inode_ops: &Arc<dyn GlockOps>,
    ) -> FsResult<Arc<dyn GlockOps>> {
        let (wanted, queue) = channel();
        let answerer = Answerer {
            inodes: Arc::downgrade(inodes),
            glocks: Arc::downgrade(glocks),
            inode_ops: Arc::clone(inode_ops),
        };
        thread::Builder::new()
            .name("gfs2_delete".into())
            .spawn(move || answerer.run(&queue))
            .map_err(|error| FsError::Inconsistent(format!("no thread for deletes: {error}")))?;
        Ok(Arc::new(Self { wanted }))
    }
}

impl GlockOps for IopenOps {
    fn sync(&self, _glock: &Glock) -> FsResult<()> {
        Ok(())
    }

    fn invalidate(&self, _glock: &Glock, _target: State) {}

    fn instantiate(&self, _glock: &Glock) -> FsResult<()> {
        Ok(())
    }

    fn callback(&self, glock: &Glock, remote: bool, wanted: State) -> Verdict {
        if remote && wanted == State::Un {
            // The thread may be gone at unmount: then nobody has the inode in use either.
            let _gone = self.wanted.send(BlockAddr::new(glock.name().number));
        }
        // It goes as soon as nobody has the inode in use.
        Verdict::Demote
    }

    fn presence_only(&self) -> bool {
        true
    }

    fn kernel_cached(&self, _name: GlockName) -> bool {
        false
    }
}

struct Answerer {
    inodes: Weak<InodeTable>,
    glocks: Weak<GlockTable>,
    inode_ops: Arc<dyn GlockOps>,
}

impl Answerer {
    /// At most one message per iopen lock and demote is queued.
    fn run(&self, queue: &Receiver<BlockAddr>) {
        while let Ok(addr) = queue.recv() {
            let (Some(inodes), Some(glocks)) = (self.inodes.upgrade(), self.glocks.upgrade()) else {
                return;
            };
            if !inodes.knows(addr) {
                continue;
            }
            let name = GlockName::inode(addr.get());
            let flags = HolderFlags::TRY_1CB | HolderFlags::ANY | HolderFlags::SKIP;
            let knock = glocks
                .get(name, &self.inode_ops)
                .and_then(|glock| glock.try_acquire(State::Sh, flags));
            if let Err(error) = knock {
                tracing::debug!(inode = addr.get(), "knocking at the deleting node: {error}");
            }
        }
    }
}
