//! Notifications to the kernel: what a demoted glock takes away from its caches.
//!
//! Traps (STRUCTURE.md B3, PERF.md A3): an invalidation writes dirty pages back *through us* before it returns, and
//! waits for pages whose READ is not answered; a name's waits for every LOOKUP in its directory. So they are called from
//! a demote worker that holds no lock of ours, never from a request's thread, and requests are served meanwhile.
//! The epoch, PRUNE and attributes alone wait for nothing: of attributes a request's thread may tell.

use super::abi::{self, notify};
use super::convert::Nodes;
use super::counters::Counters;
use super::reply::Channel;
use crate::error::{Errno, FsResult};
use crate::glock::KernelCache;
use gfs2_format::BlockAddr;
use std::sync::{Arc, OnceLock};
use zerocopy::IntoBytes;

/// What a live mount has.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) channel: Arc<Channel>,
    pub(super) nodes: Nodes,
    /// Minor version of the protocol that was agreed on.
    pub(super) minor: u32,
}

/// The kernel's caches of one mount; silent until the mount is live. A kernel that knows nothing of an inode or name has
/// nothing to forget of it: that is no error.
#[derive(Debug, Default)]
pub struct Notifications {
    live: OnceLock<Live>,
    counters: Arc<Counters>,
}

impl Notifications {
    /// From now on the kernel is told.
    pub(super) fn start(&self, live: Live) {
        // Started once, by serve(); a second start would be the same mount.
        let _ = self.live.set(live);
    }

    /// The requests the kernel has sent.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn tell(&self, code: i32, fixed: &[u8], data: &[u8]) -> FsResult<()> {
        let Some(live) = self.live.get() else {
            return Ok(());
        };
        match live.channel.notify(code, fixed, data) {
            Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NODEV) => Ok(()),
            Err(error) => Err(Errno(error.raw_os_error()).into()),
        }
    }

    fn node(&self, addr: BlockAddr) -> u64 {
        self.live.get().map_or(0, |live| live.nodes.node(addr))
    }

    fn speaks(&self, minor: u32) -> FsResult<()> {
        match self.live.get() {
            Some(live) if live.minor < minor => Err(Errno::EOPNOTSUPP.into()),
            _ => Ok(()),
        }
    }

    /// Has the inode's data written back and dropped from `offset` on (`len` 0: to the end), attributes forgotten; with
    /// a negative `offset` attributes alone.
    ///
    /// # Errors
    /// The kernel's, as when pages could not be written back.
    pub fn inval_inode(&self, inode: BlockAddr, offset: i64, len: i64) -> FsResult<()> {
        let fixed = abi::NotifyInvalInode {
            ino: self.node(inode),
            off: offset,
            len,
        };
        self.tell(notify::INVAL_INODE, fixed.as_bytes(), &[])
    }

    /// Has a name forgotten, or (`expire`) looked up again at its next use.
    ///
    /// # Errors
    /// The kernel's.
    pub fn inval_entry(&self, parent: BlockAddr, name: &[u8], expire: bool) -> FsResult<()> {
        let fixed = abi::NotifyInvalEntry {
            parent: self.node(parent),
            namelen: name_len(name)?,
            flags: if expire { abi::EXPIRE_ONLY } else { 0 },
        };
        self.tell(notify::INVAL_ENTRY, fixed.as_bytes(), &[name, b"\0"].concat())
    }

    /// Says that a name was removed: what watches it hears of it.
    ///
    /// # Errors
    /// The kernel's: ENOTEMPTY, EBUSY.
    pub fn delete(&self, parent: BlockAddr, child: BlockAddr, name: &[u8]) -> FsResult<()> {
        let fixed = abi::NotifyDelete {
            parent: self.node(parent),
            child: self.node(child),
            namelen: name_len(name)?,
            padding: 0,
        };
        self.tell(notify::DELETE, fixed.as_bytes(), &[name, b"\0"].concat())
    }

    /// Puts bytes into the kernel's cache of a file.
    ///
    /// # Errors
    /// The kernel's.
    pub fn store(&self, inode: BlockAddr, offset: u64, data: &[u8]) -> FsResult<()> {
        let fixed = abi::NotifyStore {
            nodeid: self.node(inode),
            offset,
            size: u32::try_from(data.len()).map_err(|_| Errno::E2BIG)?,
            padding: 0,
        };
        self.tell(notify::STORE, fixed.as_bytes(), data)
    }

    /// Has every name looked up again at its next use.
    ///
    /// # Errors
    /// EOPNOTSUPP: the kernel is older (Linux 6.16 brought it).
    pub fn inc_epoch(&self) -> FsResult<()> {
        self.speaks(notify::EPOCH_SINCE)?;
        self.tell(notify::INC_EPOCH, &[], &[])
    }

    /// Has inodes that nobody uses forgotten.
    ///
    /// # Errors
    /// EOPNOTSUPP: the kernel is older (Linux 6.18 brought it).
    pub fn prune(&self, inodes: &[BlockAddr]) -> FsResult<()> {
        self.speaks(notify::PRUNE_SINCE)?;
        let nodes: Vec<u64> = inodes.iter().map(|addr| self.node(*addr)).collect();
        let fixed = abi::NotifyPrune {
            count: u32::try_from(nodes.len()).map_err(|_| Errno::E2BIG)?,
            padding: 0,
            spare: 0,
        };
        self.tell(notify::PRUNE, fixed.as_bytes(), nodes.as_bytes())
    }
}

fn name_len(name: &[u8]) -> FsResult<u32> {
    u32::try_from(name.len()).map_err(|_| Errno::ENAMETOOLONG.into())
}

impl KernelCache for Notifications {
    fn flush_and_invalidate(&self, inode_number: u64, _keep_clean: bool) {
        if let Err(error) = self.inval_inode(BlockAddr::new(inode_number), 0, 0) {
            tracing::debug!(inode_number, "invalidation: {error}");
        }
    }

    fn invalidate_attributes(&self, inode_number: u64) {
        // A negative offset: no pages.
        if let Err(error) = self.inval_inode(BlockAddr::new(inode_number), -1, 0) {
            tracing::debug!(inode_number, "invalidation: {error}");
        }
    }
}
