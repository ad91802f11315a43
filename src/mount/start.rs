//! From a device that has been looked at to a filesystem with its locks, log and threads, and back.
//!
//! The order of locks is the kernel's at mount (RUNTIME.md 6.1): mount, live, superblock, then the journal and the
//! node's own files, which are held as long as the mount lives; the mount lock goes when the journal is live.

use super::cli::MountError;
use super::memory::{MemoryKeeper, default_budget, of_caches};
use super::options::{Atime, MountOptions, OnError};
use super::rehearse;
use super::timers::Timers;
use crate::cache::BufferCache;
use crate::error::{Errno, FsError, FsResult};
use crate::fuse::Notifications;
use crate::glock::name::nondisk;
use crate::glock::{GlockGuard, GlockName, GlockOps, GlockTable, HolderFlags, Presence, State, TableOptions};
use crate::health::{Cause, Health};
use crate::journal::{Journal, JournalConfig, LogDaemon};
use crate::ops::{AtimeMode, Fs, FsConfig, FsOptions};
use crate::recovery::{Access, recover_all};
use dlm_client::{Dlm, JoinOptions, LocalDlm};
use gfs2_format::Jid;
use gfs2_format::device::BlockDevice;
use gfs2_format::volume::{JournalFile, Volume};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// Between two turns of a rehearsal.
const REHEARSE_PERIOD: Duration = Duration::from_millis(1);

/// A filesystem with its threads, not yet seen by anybody.
#[derive(Debug)]
pub struct Started {
    /// The verbs.
    pub fs: Arc<Fs>,
    /// What demotes tell the kernel.
    pub notifications: Arc<Notifications>,
    glocks: Arc<GlockTable>,
    /// Held as long as the mount lives; last taken, first given back.
    held: Vec<GlockGuard>,
    /// Keeps the caches within `memory=`.
    memory: MemoryKeeper,
    journal: Option<Arc<Journal>>,
    writers: Mutex<Writers>,
    /// Why this mount cannot be made writable, if it cannot.
    never: Option<&'static str>,
    options: MountOptions,
}

/// The threads that only a mount has that may write.
#[derive(Debug, Default)]
struct Writers {
    timers: Timers,
    /// Commits by the clock and keeps the log short.
    log_daemon: Option<LogDaemon>,
}

/// What a start needs.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The device.
    pub device: Arc<dyn BlockDevice>,
    /// May it be written?
    pub writable: bool,
    /// Mount options.
    pub options: &'a MountOptions,
    /// The volume.
    pub volume: Volume,
    /// Our journal.
    pub jid: Jid,
}

impl Plan<'_> {
    fn read_only(&self) -> bool {
        self.options.read_only || self.options.spectator || !self.writable
    }

    /// `table.jid`, as the kernel names a mount in its log.
    fn fsid(&self) -> String {
        let table = self
            .options
            .locktable
            .clone()
            .unwrap_or_else(|| self.volume.superblock.locktable());
        let table = if table.is_empty() {
            "gfs2".to_owned()
        } else {
            table.replace('/', "_")
        };
        if self.options.spectator {
            format!("{table}.s")
        } else {
            format!("{table}.{}", self.jid)
        }
    }

    /// Why a remount cannot make it writable, if it cannot.
    fn never_writable(&self) -> Option<&'static str> {
        match self.options {
            MountOptions { spectator: true, .. } => Some("a spectator has no journal"),
            MountOptions { meta: true, .. } => Some("the metadata view is read-only"),
            _ if !self.writable => Some("the device cannot be written"),
            _ => None,
        }
    }

    fn access(&self) -> Access {
        match (self.options.spectator, self.writable, self.options.read_only) {
            (true, ..) => Access::Spectator,
            (_, false, _) => Access::ReadOnlyDevice,
            (_, _, true) => Access::ReadOnlyMount,
            _ => Access::ReadWrite,
        }
    }
}

/// Starts everything behind the transport.
///
/// # Errors
/// One line and mount(8)'s exit code.
pub fn start(plan: Plan<'_>) -> Result<Started, MountError> {
    let fsid = plan.fsid();
    let health = Arc::new(Health::new(fsid.clone()));
    if plan.options.on_error == OnError::Panic {
        // The kernel panics; a daemon ends at once, and its journal is replayed by the next mount.
        health.on_withdraw(|_| std::process::abort());
    }
    let glocks = lock_table(&fsid, &health).map_err(|error| MountError::fail(error.to_string()))?;
    let result = start_locked(plan, &health, &glocks);
    if result.is_err() {
        glocks.clear_all();
    }
    result
}

fn lock_table(fsid: &str, health: &Arc<Health>) -> FsResult<Arc<GlockTable>> {
    let lock_error = |what: String| FsError::Lock {
        name: fsid.to_owned(),
        what,
    };
    let dlm = LocalDlm::new();
    let (space, queue) = dlm
        .join(fsid, &JoinOptions::default())
        .map_err(|error| lock_error(error.to_string()))?;
    let told = Arc::clone(health);
    let options = TableOptions {
        on_withdraw: Arc::new(move |error| {
            let cause = Cause::of(&error).unwrap_or_else(|| Cause::Consistency(error.to_string()));
            told.withdraw("glock", &cause);
        }),
        ..TableOptions::default()
    };
    let table = Arc::new(GlockTable::new(space, queue, options)?);
    let weak = Arc::downgrade(&table);
    health.on_withdraw(move |cause| {
        if let Some(table) = weak.upgrade() {
            table.set_withdrawn(cause);
        }
    });
    Ok(table)
}

/// Locks that only say that we are here.
struct Held<'a> {
    glocks: &'a GlockTable,
    ops: Arc<dyn GlockOps>,
    guards: Vec<GlockGuard>,
}

impl Held<'_> {
    fn take(&self, name: GlockName, state: State, flags: HolderFlags) -> FsResult<GlockGuard> {
        self.glocks
            .get(name, &self.ops)?
            .acquire(state, flags | HolderFlags::NOPID)
    }

    fn keep(&mut self, name: GlockName, state: State, flags: HolderFlags) -> FsResult<()> {
        let guard = self.take(name, state, flags)?;
        self.guards.push(guard);
        Ok(())
    }
}

fn start_locked(
    plan: Plan<'_>,
    health: &Arc<Health>,
    glocks: &Arc<GlockTable>,
) -> Result<Started, MountError> {
    let refused = |error: FsError| MountError::fail(explain(&error));
    let read_only = plan.read_only();
    let budget = match plan.options.memory {
        0 => default_budget(),
        bytes => bytes,
    };
    let cache = Arc::new(BufferCache::new(
        Arc::clone(&plan.device),
        plan.volume.geometry.clone(),
        Arc::clone(health),
        of_caches(budget),
    ));
    let mut held = Held {
        glocks,
        ops: Arc::new(Presence),
        guards: Vec::new(),
    };
    let always = HolderFlags::NOEXP | HolderFlags::EXACT;
    let mounting = held
        .take(
            GlockName::nondisk(nondisk::MOUNT),
            State::Ex,
            HolderFlags::NOEXP | HolderFlags::NOCACHE,
        )
        .map_err(refused)?;
    held.keep(GlockName::nondisk(nondisk::LIVE), State::Sh, always)
        .map_err(refused)?;
    let own = (!plan.options.spectator)
        .then(|| plan.volume.journal(plan.jid).cloned())
        .flatten();
    if let Some(own) = &own {
        held.keep(
            GlockName::journal(own.jid.get()),
            State::Ex,
            HolderFlags::NOEXP | HolderFlags::NOCACHE,
        )
        .map_err(refused)?;
        held.keep(
            GlockName::inode(own.dinode.get()),
            State::Sh,
            always | HolderFlags::NOCACHE,
        )
        .map_err(refused)?;
    }
    recover_all(&cache, &plan.volume, plan.jid, plan.access()).map_err(|error| not_recovered(&error))?;
    held.keep(GlockName::nondisk(nondisk::FREEZE), State::Sh, always)
        .map_err(refused)?;
    let journal = match &own {
        Some(own) => {
            let journal = own_journal(&plan, own, &cache, &mut held).map_err(refused)?;
            if !read_only {
                journal.start().map_err(refused)?;
            }
            Some(journal)
        }
        None => None,
    };
    let config = FsConfig {
        volume: plan.volume.clone(),
        cache,
        journal: journal.clone(),
        glocks: Arc::clone(glocks),
        options: fs_options(plan.options, read_only),
    };
    let fs = Arc::new(Fs::new(config).map_err(refused)?);
    drop(mounting);
    let notifications = Arc::new(Notifications::default());
    // Alone nobody changes anything behind the kernel's back: what it has stays true when a lock is given up for the
    // sake of memory.
    if rehearse::wanted().is_some() {
        glocks.set_kernel_cache(Some(Arc::clone(&notifications) as _));
    }
    let memory = MemoryKeeper::start(&fs, &notifications, budget)
        .map_err(|error| MountError::system(format!("cannot start a thread: {error}")))?;
    let started = Started {
        fs,
        notifications,
        glocks: Arc::clone(glocks),
        held: held.guards,
        memory,
        journal,
        writers: Mutex::default(),
        never: plan.never_writable(),
        options: plan.options.clone(),
    };
    if !read_only {
        *started.writers.lock() = started.start_writers()?;
    }
    Ok(started)
}

/// Our journal, with the node's own files locked.
fn own_journal(
    plan: &Plan<'_>,
    own: &JournalFile,
    cache: &Arc<BufferCache>,
    held: &mut Held<'_>,
) -> FsResult<Arc<Journal>> {
    let missing = |what: &str| FsError::Inconsistent(format!("per_node/{what}{} is missing", own.jid));
    let statfs_change = own.statfs_change.ok_or_else(|| missing("statfs_change"))?;
    let quota_change = own.quota_change.ok_or_else(|| missing("quota_change"))?;
    for file in [statfs_change, quota_change] {
        held.keep(
            GlockName::inode(file.get()),
            State::Ex,
            HolderFlags::NOEXP | HolderFlags::NOCACHE,
        )?;
    }
    let config = JournalConfig {
        jid: own.jid,
        dinode: own.dinode,
        map: own.map.clone(),
        statfs_change,
        statfs_glock: GlockName::inode(statfs_change.get()),
        quota_change,
        commit_interval: Duration::from_secs(u64::from(plan.options.commit_secs)),
        // One node: nobody else ever writes a block of ours.
        shared: rehearse::wanted().is_some(),
        barriers: plan.options.barrier,
    };
    Ok(Journal::new(Arc::clone(cache), config))
}

fn fs_options(options: &MountOptions, read_only: bool) -> FsOptions {
    FsOptions {
        read_only,
        acl: options.acl,
        suiddir: options.suiddir,
        nodiratime: options.nodiratime,
        atime: match options.atime {
            Atime::Relative => AtimeMode::Relative,
            Atime::Strict => AtimeMode::Always,
            Atime::Never => AtimeMode::Never,
        },
        statfs_quantum: Duration::from_secs(u64::from(options.statfs_quantum_secs)),
        statfs_percent: u32::from(options.statfs_percent),
    }
}

fn timers(fs: &Arc<Fs>, options: &MountOptions, glocks: &Arc<GlockTable>) -> Result<Timers, MountError> {
    let no_thread = |error: std::io::Error| MountError::system(format!("cannot start a thread: {error}"));
    let mut timers = Timers::default();
    if options.statfs_quantum_secs > 0 {
        let fs = Arc::clone(fs);
        let period = Duration::from_secs(u64::from(options.statfs_quantum_secs));
        timers
            .every("gfs2-quotad", period, move || {
                if let Err(error) = fs.sync_statfs() {
                    tracing::warn!("statfs sync: {error}");
                }
            })
            .map_err(no_thread)?;
    }
    if let Some(seed) = rehearse::wanted() {
        tracing::warn!(seed, "locks are taken away at random, for a rehearsal");
        timers
            .every("gfs2-rehearse", REHEARSE_PERIOD, rehearse::taker(glocks, seed))
            .map_err(no_thread)?;
    }
    let fs = Arc::clone(fs);
    timers
        .once("gfs2-orphans", move || match fs.reclaim_orphans() {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "deallocated inodes that a crash had left unlinked"),
            Err(error) => tracing::warn!("looking for unlinked inodes: {error}"),
        })
        .map_err(no_thread)?;
    Ok(timers)
}

fn not_recovered(error: &FsError) -> MountError {
    let text = match error.errno() {
        Errno::EROFS => "a journal needs recovery and the device cannot be written; mount a writable device".to_owned(),
        Errno::EPERM => {
            "a journal needs recovery, which a spectator may not do; mount once without spectator (norecovery)".to_owned()
        }
        _ => format!("journal recovery failed: {error}; check the volume with fsck.gfs2"),
    };
    MountError::fail(text)
}

fn explain(error: &FsError) -> String {
    match error {
        FsError::Format(gfs2_format::Error::Corrupt(_)) | FsError::Inconsistent(_) => {
            format!("the volume is damaged: {error}; check it with fsck.gfs2")
        }
        _ => error.to_string(),
    }
}

impl Started {
    /// The locks.
    #[must_use]
    pub fn glocks(&self) -> &Arc<GlockTable> {
        &self.glocks
    }

    fn start_writers(&self) -> Result<Writers, MountError> {
        let log_daemon = self.journal.as_ref().map(LogDaemon::start).transpose();
        Ok(Writers {
            log_daemon: log_daemon.map_err(|error| MountError::fail(explain(&error)))?,
            timers: timers(&self.fs, &self.options, &self.glocks)?,
        })
    }

    /// Makes the mount writable, as the kernel does: behind a clean head of our journal, whose lock was ours all the time.
    ///
    /// # Errors
    /// One line: it cannot be, or the journal is not clean. The mount stays read-only.
    pub fn make_writable(&self) -> Result<(), MountError> {
        let mut writers = self.writers.lock();
        if !self.fs.is_read_only() {
            return Ok(());
        }
        if let Some(why) = self.never {
            return Err(MountError::fail(why));
        }
        self.fs
            .make_writable()
            .map_err(|error| MountError::fail(explain(&error)))?;
        match self.start_writers() {
            Ok(started) => *writers = started,
            Err(error) => {
                // Nothing has been written: the kernel still refuses that.
                if let Err(second) = self.fs.make_read_only() {
                    tracing::error!("the journal is left for recovery at the next mount: {second}");
                }
                return Err(error);
            }
        }
        tracing::info!("remounted read-write");
        Ok(())
    }

    /// Makes the mount read-only, with everything in place and the journal clean. The kernel must have ended all writing.
    ///
    /// # Errors
    /// One line: what could not be written. The mount is read-only all the same.
    pub fn make_read_only(&self) -> Result<(), MountError> {
        let mut writers = self.writers.lock();
        if self.fs.is_read_only() {
            return Ok(());
        }
        let Writers { timers, log_daemon } = std::mem::take(&mut *writers);
        timers.stop();
        let result = self.fs.make_read_only();
        drop(log_daemon);
        result.map_err(|error| {
            MountError::fail(format!(
                "the journal is left for recovery at the next mount: {error}"
            ))
        })?;
        tracing::info!("remounted read-only");
        Ok(())
    }

    /// Evicts, syncs, leaves the journal clean and the locks free.
    ///
    /// # Errors
    /// What kept the journal from being left clean.
    pub fn shutdown(self) -> FsResult<()> {
        let Self {
            fs,
            notifications: _,
            glocks,
            held,
            memory,
            journal,
            writers,
            never: _,
            options: _,
        } = self;
        let Writers { timers, log_daemon } = writers.into_inner();
        timers.stop();
        drop(memory);
        glocks.set_kernel_cache(None);
        let result = fs.shutdown();
        drop(log_daemon);
        drop((fs, journal));
        for guard in held.into_iter().rev() {
            drop(guard);
        }
        let report = glocks.clear_all();
        if !report.left.is_empty() {
            tracing::warn!(left = ?report.left, "glocks left at unmount");
        }
        result
    }
}
