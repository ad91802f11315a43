//! A node inside the test's process: the verbs over any block device, without FUSE and without the lab.
//!
//! Invariants: nothing runs by itself (no log daemon unless asked for), so that one thread of verbs writes the same
//! log twice; what a test leaves mounted is gone with its value.

// Each test program takes the part it needs.
#![allow(dead_code, unreachable_pub)]

pub mod judge;
pub mod pages;
pub mod plan;
pub mod record;
pub mod tree;

use dlm_client::{Dlm, JoinOptions, Leave, LocalDlm};
use fuse_gfs2::cache::BufferCache;
use fuse_gfs2::error::{Errno, FsResult};
use fuse_gfs2::glock::{
    GlockGuard, GlockName, GlockOps, GlockTable, HolderFlags, LockType, Presence, State, TableOptions,
};
use fuse_gfs2::health::Health;
use fuse_gfs2::journal::{Journal, JournalConfig, LogDaemon};
use fuse_gfs2::ops::types::Caller;
use fuse_gfs2::ops::{Fs, FsConfig, FsOptions, OpenFlags};
use fuse_gfs2::recovery::{Access, recover_all};
use gfs2_format::device::{BlockDevice, MemDevice};
use gfs2_format::volume::Volume;
use gfs2_format::{BlockAddr, Jid};
use std::sync::Arc;
use std::time::Duration;

/// The one who asks.
pub const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
};

/// A volume to be made.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its size.
    pub mib: u64,
    /// Block size.
    pub bsize: u32,
    /// Journals, of 8 MiB each.
    pub journals: u32,
    /// Every file journals its data.
    pub jdata: bool,
}

impl Shape {
    /// A small volume of one node.
    pub const fn small(bsize: u32) -> Self {
        Self {
            mib: 24,
            bsize,
            journals: 1,
            jdata: false,
        }
    }

    /// Makes it.
    pub fn make(&self) -> MemDevice {
        let device = MemDevice::new(self.mib << 20);
        let options = gfs2_mkfs::Options {
            block_size: Some(self.bsize),
            journals: self.journals,
            journal_mb: Some(8),
            rgrp_mb: 32,
            time: Some(1_700_000_000),
            first_sequence: Some(5),
            root_inherit_jdata: self.jdata,
            uuid: Some([7; 16]),
            ..gfs2_mkfs::Options::nolock()
        };
        gfs2_mkfs::format(&device, &options).expect("a volume");
        device
    }
}

/// How a node is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeOptions {
    /// Journal.
    pub jid: u32,
    /// The log daemon runs.
    pub daemon: bool,
    /// Mount options.
    pub fs: FsOptions,
}

/// A mounted node.
pub struct Node {
    pub fs: Arc<Fs>,
    pub glocks: Arc<GlockTable>,
    pub journal: Arc<Journal>,
    pub cache: Arc<BufferCache>,
    pub groups: Vec<BlockAddr>,
    statfs: BlockAddr,
    held: Vec<GlockGuard>,
    daemon: Option<LogDaemon>,
}

impl Node {
    /// Mounts as the only node, with nothing running by itself.
    pub fn mount(device: &Arc<dyn BlockDevice>) -> FsResult<Self> {
        Self::mount_with(device, &LocalDlm::new(), NodeOptions::default())
    }

    /// Mounts. The node of journal 0 recovers all journals first.
    pub fn mount_with(device: &Arc<dyn BlockDevice>, dlm: &LocalDlm, options: NodeOptions) -> FsResult<Self> {
        let volume = Volume::open(device.as_ref())?;
        let health = Arc::new(Health::new(format!("test.{}", options.jid)));
        let cache = Arc::new(BufferCache::new(
            Arc::clone(device),
            volume.geometry.clone(),
            Arc::clone(&health),
            64 << 20,
        ));
        if options.jid == 0 {
            recover_all(&cache, &volume, Jid::new(0), Access::ReadWrite)?;
        }
        let statfs = volume.system.statfs;
        let groups = judge::groups(device.as_ref(), &volume)?;
        let (space, queue) = dlm
            .join("fs", &JoinOptions::default())
            .expect("a lockspace of this process");
        let glocks = Arc::new(GlockTable::new(space, queue, TableOptions::default())?);
        let own = volume
            .journal(Jid::new(options.jid))
            .expect("our journal")
            .clone();
        let statfs_change = own.statfs_change.expect("a statfs change file");
        let statfs_glock = GlockName::inode(statfs_change.get());
        let journal_glock = GlockName::new(LockType::Journal, u64::from(options.jid));
        let presence: Arc<dyn GlockOps> = Arc::new(Presence);
        let for_life = HolderFlags::NOPID | HolderFlags::NOCACHE;
        let mut held = Vec::new();
        for name in [statfs_glock, journal_glock] {
            held.push(glocks.get(name, &presence)?.acquire(State::Ex, for_life)?);
        }
        let journal = Journal::new(
            Arc::clone(&cache),
            JournalConfig {
                jid: own.jid,
                dinode: own.dinode,
                map: own.map.clone(),
                statfs_change,
                statfs_glock,
                quota_change: own.quota_change.expect("a quota change file"),
                commit_interval: Duration::from_secs(30),
                shared: true,
                barriers: true,
            },
        );
        journal.start()?;
        let daemon = if options.daemon {
            Some(LogDaemon::start(&journal)?)
        } else {
            None
        };
        let withdrawn = Arc::downgrade(&glocks);
        health.on_withdraw(move |cause| {
            if let Some(glocks) = withdrawn.upgrade() {
                glocks.set_withdrawn(cause);
            }
        });
        let fs = Fs::new(FsConfig {
            volume,
            cache: Arc::clone(&cache),
            journal: Some(Arc::clone(&journal)),
            glocks: Arc::clone(&glocks),
            options: options.fs,
        })?;
        Ok(Self {
            fs: Arc::new(fs),
            glocks,
            journal,
            cache,
            groups,
            statfs,
            held,
            daemon,
        })
    }

    /// Unmounts a node that is well.
    #[track_caller]
    pub fn unmount(self) {
        let health = Arc::clone(self.cache.health());
        let ended = self.end();
        assert_eq!(health.cause(), None);
        ended.expect("a clean end");
    }

    /// Unmounts; nothing may be left, whether that went well or not.
    #[track_caller]
    pub fn end(mut self) -> FsResult<()> {
        let ended = self.fs.shutdown();
        if let Some(daemon) = self.daemon.take() {
            daemon.stop();
        }
        self.held.clear();
        assert_eq!(
            Arc::strong_count(&self.fs),
            1,
            "somebody still has the filesystem"
        );
        let Self { fs, glocks, .. } = self;
        drop(fs);
        let report = glocks.clear_all();
        assert!(report.left.is_empty(), "glocks left: {report:?}");
        glocks.shutdown(Leave::Clean).expect("to leave the lockspace");
        ended
    }

    /// Leaves everything as it stands: a crash, seen from the device.
    pub fn abandon(mut self) {
        self.journal
            .cache()
            .health()
            .withdraw("test", &fuse_gfs2::health::Cause::Requested);
        self.daemon.take();
        self.held.clear();
        let _withdrawn = self.fs.shutdown();
        let _left = self.glocks.shutdown(Leave::Abandon);
    }

    pub fn root(&self) -> BlockAddr {
        self.fs.root().addr
    }

    /// Demotes a glock as another node's wish would, and waits until it is down.
    pub fn demote(&self, name: GlockName, state: State) {
        if self.glocks.demote(name, state) {
            self.settle(name);
        }
    }

    /// Waits for a demotion that is under way.
    fn settle(&self, name: GlockName) {
        if let Some(glock) = self.glocks.find(name) {
            let again = glock.acquire(State::Sh, HolderFlags::SKIP | HolderFlags::NOPID);
            drop(again.expect("the lock after its demotion"));
        }
    }

    /// Folds the statfs changes, and waits until the master's lock is given up again.
    pub fn sync_statfs(&self) {
        self.fs.sync_statfs().expect("to fold statfs changes");
        self.settle(GlockName::inode(self.statfs.get()));
    }

    /// Makes an empty file that is not open.
    pub fn create(&self, dir: BlockAddr, name: &[u8]) -> Result<BlockAddr, Errno> {
        let made = self.fs.create(&ROOT, dir, name, 0o644, 0, true, OpenFlags::WRITE);
        let (entry, handle, _) = made.map_err(|e| e.errno())?;
        self.fs.release(handle);
        Ok(entry.attr.num.addr)
    }

    /// All bytes of a file.
    pub fn read_all(&self, ino: BlockAddr) -> Result<Vec<u8>, Errno> {
        let size = self.fs.getattr(ino).map_err(|e| e.errno())?.size;
        let handle = self.fs.open(ino, OpenFlags::READ).map_err(|e| e.errno())?;
        let mut buf = vec![0xee; usize::try_from(size).expect("a small file") + 1];
        let n = self.fs.read(handle, 0, &mut buf);
        self.fs.release(handle);
        buf.truncate(n.map_err(|e| e.errno())?);
        Ok(buf)
    }
}

/// Seeds of a test: `fixed`, and as many more as the environment variable says (for a long run); or just the one it
/// names as `=SEED`.
pub fn seeds(fixed: &[u64], variable: &str) -> Vec<u64> {
    let Ok(text) = std::env::var(variable) else {
        return fixed.to_vec();
    };
    if let Some(one) = text.strip_prefix('=') {
        return vec![one.parse().expect("=SEED")];
    }
    let more: u64 = text.parse().expect("a number of seeds, or =SEED");
    fixed.iter().copied().chain((0..more).map(|n| 1000 + n)).collect()
}
