//! A volume in memory, a mount of it, and the reference checker.

use crate::cache::BufferCache;
use crate::error::Errno;
use crate::glock::{
    GlockGuard, GlockName, GlockOps, GlockTable, HolderFlags, LockType, Presence, State, TableOptions,
};
use crate::health::Health;
use crate::journal::{Journal, JournalConfig, LogDaemon};
use crate::ops::types::{Attr, Caller};
use crate::ops::{Entry, Fs, FsConfig, FsOptions, OpenFlags};
use crate::recovery::{Access, recover_all};
use dlm_client::{Dlm, JoinOptions, Leave, LocalDlm};
use gfs2_format::device::{BlockDevice, MemDevice};
use gfs2_format::volume::Volume;
use gfs2_format::{BlockAddr, Jid};
use gfs2_mkfs::Options;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

pub(super) const ROOT_USER: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
};

/// Makes a volume.
pub(super) fn volume(mib: u64, bsize: u32, journals: u32) -> Arc<MemDevice> {
    volume_with(mib, bsize, journals, false)
}

/// Makes a volume, whose files journal their data or not.
pub(super) fn volume_with(mib: u64, bsize: u32, journals: u32, jdata: bool) -> Arc<MemDevice> {
    volume_over(MemDevice::new(mib << 20), bsize, journals, jdata)
}

/// Makes a volume on a device that has bytes already.
pub(super) fn volume_over(device: MemDevice, bsize: u32, journals: u32, jdata: bool) -> Arc<MemDevice> {
    let device = Arc::new(device);
    let options = Options {
        block_size: Some(bsize),
        journals,
        journal_mb: Some(8),
        rgrp_mb: 32,
        time: Some(1_700_000_000),
        first_sequence: Some(5),
        root_inherit_jdata: jdata,
        ..Options::nolock()
    };
    gfs2_mkfs::format(device.as_ref(), &options).unwrap();
    device
}

/// The reference checker must find nothing wrong.
pub(super) fn check(device: &MemDevice) {
    let file = tempfile::NamedTempFile::new().unwrap();
    dump(device, file.as_file());
    let out = Command::new("fsck.gfs2")
        .arg("-n")
        .arg(file.path())
        .output()
        .expect("these tests need the reference fsck.gfs2 (package gfs2-utils)");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    if !out.status.success() {
        let (_, path) = file.keep().unwrap();
        panic!("fsck.gfs2 -n on {}: {}\n{text}", path.display(), out.status);
    }
}

fn dump(device: &MemDevice, file: &File) {
    let mut at = 0;
    let mut chunk = vec![0; 1 << 20];
    file.set_len(device.size()).unwrap();
    while at < device.size() {
        let len = chunk.len().min((device.size() - at) as usize);
        device.read_at(at, &mut chunk[..len]).unwrap();
        if chunk[..len].iter().any(|b| *b != 0) {
            file.write_all_at(&chunk[..len], at).unwrap();
        }
        at += len as u64;
    }
}

/// A mounted node.
pub(super) struct Rig {
    pub(super) fs: Arc<Fs>,
    pub(super) glocks: Arc<GlockTable>,
    pub(super) journal: Arc<Journal>,
    pub(super) cache: Arc<BufferCache>,
    held: Vec<GlockGuard>,
    daemon: Option<LogDaemon>,
}

pub(super) fn mount(device: &Arc<dyn BlockDevice>) -> Rig {
    mount_with(device, &LocalDlm::new(), 0, FsOptions::default())
}

/// On a node that shares the device with nobody.
pub(super) fn mount_alone(device: &Arc<dyn BlockDevice>) -> Rig {
    mount_as(device, &LocalDlm::new(), 0, FsOptions::default(), false)
}

pub(super) fn mount_with(device: &Arc<dyn BlockDevice>, dlm: &LocalDlm, jid: u32, options: FsOptions) -> Rig {
    mount_as(device, dlm, jid, options, true)
}

fn mount_as(
    device: &Arc<dyn BlockDevice>,
    dlm: &LocalDlm,
    jid: u32,
    options: FsOptions,
    shared: bool,
) -> Rig {
    let volume = Volume::open(device.as_ref()).unwrap();
    let health = Arc::new(Health::new(format!("test.{jid}")));
    let cache = Arc::new(BufferCache::new(
        Arc::clone(device),
        volume.geometry.clone(),
        health,
        64 << 20,
    ));
    let (space, queue) = dlm.join("fs", &JoinOptions::default()).unwrap();
    let glocks = Arc::new(GlockTable::new(space, queue, TableOptions::default()).unwrap());
    if jid == 0 {
        recover_all(&cache, &volume, Jid::new(0), Access::ReadWrite).unwrap();
    }
    let own = volume.journal(Jid::new(jid)).unwrap().clone();
    let statfs_change = own.statfs_change.unwrap();
    let statfs_glock = GlockName::inode(statfs_change.get());
    let presence: Arc<dyn GlockOps> = Arc::new(Presence);
    let for_life = HolderFlags::NOPID | HolderFlags::NOCACHE;
    let held = [statfs_glock, GlockName::new(LockType::Journal, u64::from(jid))].map(|name| {
        glocks
            .get(name, &presence)
            .unwrap()
            .acquire(State::Ex, for_life)
            .unwrap()
    });
    let journal = Journal::new(
        Arc::clone(&cache),
        JournalConfig {
            jid: own.jid,
            dinode: own.dinode,
            map: own.map.clone(),
            statfs_change,
            statfs_glock,
            quota_change: own.quota_change.unwrap(),
            commit_interval: Duration::from_secs(30),
            shared,
            barriers: true,
        },
    );
    journal.start().unwrap();
    let daemon = LogDaemon::start(&journal).unwrap();
    let fs = Fs::new(FsConfig {
        volume,
        cache: Arc::clone(&cache),
        journal: Some(Arc::clone(&journal)),
        glocks: Arc::clone(&glocks),
        options,
    })
    .unwrap();
    Rig {
        fs: Arc::new(fs),
        glocks,
        journal,
        cache,
        held: held.into(),
        daemon: Some(daemon),
    }
}

impl Rig {
    /// Unmounts; nothing may be left.
    pub(super) fn unmount(mut self) {
        self.fs.shutdown().unwrap();
        if let Some(daemon) = self.daemon.take() {
            daemon.stop();
        }
        self.held.clear();
        let Self {
            fs,
            glocks,
            journal,
            cache,
            ..
        } = self;
        assert_eq!(Arc::strong_count(&fs), 1, "somebody still has the filesystem");
        drop(fs);
        let report = glocks.clear_all();
        assert!(report.left.is_empty(), "glocks left: {report:?}");
        assert_eq!(cache.health().cause(), None);
        glocks.shutdown(Leave::Clean).unwrap();
        drop((journal, cache));
    }

    pub(super) fn root(&self) -> BlockAddr {
        self.fs.root().addr
    }

    /// Walks a path of names from the root; every inode on the way is forgotten again but the last.
    pub(super) fn walk(&self, path: &str) -> Result<Entry, Errno> {
        let mut at = self.root();
        let mut entry = None;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let found = self.fs.lookup(&ROOT_USER, at, name.as_bytes());
            if let Some(Entry { attr }) = entry {
                self.fs.forget(attr.num.addr, 1);
            }
            let found = found.map_err(|e| e.errno())?;
            at = found.attr.num.addr;
            entry = Some(found);
        }
        Ok(entry.unwrap_or_else(|| Entry {
            attr: self.fs.getattr(self.root()).unwrap(),
        }))
    }

    pub(super) fn create(&self, dir: BlockAddr, name: &str) -> Attr {
        let (entry, handle, made) = self
            .fs
            .create(
                &ROOT_USER,
                dir,
                name.as_bytes(),
                0o644,
                0o022,
                true,
                OpenFlags::READ | OpenFlags::WRITE,
            )
            .unwrap();
        assert!(made);
        self.fs.release(handle);
        entry.attr
    }

    pub(super) fn mkdir(&self, dir: BlockAddr, name: &str) -> Attr {
        self.fs
            .mkdir(&ROOT_USER, dir, name.as_bytes(), 0o755, 0)
            .unwrap()
            .attr
    }

    pub(super) fn write(&self, ino: BlockAddr, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let handle = self
            .fs
            .open(ino, OpenFlags::READ | OpenFlags::WRITE)
            .map_err(|e| e.errno())?;
        let written = self.fs.write(&ROOT_USER, handle, offset, data, false, false);
        self.fs.release(handle);
        written.map_err(|e| e.errno())
    }

    pub(super) fn read(&self, ino: BlockAddr, offset: u64, len: usize) -> Vec<u8> {
        let handle = self.fs.open(ino, OpenFlags::READ).unwrap();
        let mut buf = vec![0xee; len];
        let n = self.fs.read(handle, offset, &mut buf).unwrap();
        self.fs.release(handle);
        buf.truncate(n);
        buf
    }

    /// Names and addresses of a directory, "." and ".." left out; read in small pieces.
    pub(super) fn list(&self, dir: BlockAddr) -> BTreeMap<Vec<u8>, BlockAddr> {
        let handle = self.fs.opendir(dir).unwrap();
        let mut names = BTreeMap::new();
        let mut cookie = 0;
        loop {
            let mut taken = 0;
            self.fs
                .readdir(handle, cookie, &mut |entry| {
                    if taken == 7 {
                        return true;
                    }
                    taken += 1;
                    cookie = entry.cookie;
                    if !matches!(entry.name.as_slice(), b"." | b"..") {
                        let old = names.insert(entry.name.clone(), entry.num.addr);
                        assert_eq!(old, None, "{:?} twice", entry.name);
                    }
                    false
                })
                .unwrap();
            if taken == 0 {
                break;
            }
        }
        self.fs.release(handle);
        names
    }
}
