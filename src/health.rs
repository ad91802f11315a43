//! The withdraw latch: once something on disk or in memory is known to be wrong, this node writes nothing more.
//!
//! Invariants: the latch closes once and keeps its first cause; when [`Health::withdraw`] has returned, no device
//! write that asked [`Health::write_gate`] is under way and none begins. What follows a withdraw (locks, lockspace,
//! kernel caches) is the business of the mount, which registers itself with [`Health::on_withdraw`].

use crate::error::{Errno, FsError, FsResult};
use gfs2_format::{BlockAddr, Corrupt, Error, InodeNum, Jid};
use std::fmt;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};

/// Why a node withdraws; displayed as the kernel's log line says it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Cause {
    /// Our state and the disk contradict each other.
    Consistency(String),
    /// The same, about an inode.
    Inode(InodeNum, String),
    /// The same, about a resource group (its header's block).
    Rgrp(BlockAddr, String),
    /// A block that is not what it should be.
    Metadata(Corrupt),
    /// Reading or writing failed; the block where one is known.
    Io(Option<BlockAddr>, Error),
    /// Writing to our own journal failed.
    Log(Jid, Error),
    /// The administrator asked for it.
    Requested,
}

impl Cause {
    /// The cause that a failed operation is, if its error is one that a node must withdraw for.
    #[must_use]
    pub fn of(error: &FsError) -> Option<Self> {
        match error {
            FsError::Inconsistent(what) => Some(Self::Consistency(what.clone())),
            FsError::Format(Error::Corrupt(corrupt)) => Some(Self::Metadata(corrupt.clone())),
            _ => None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Consistency(what) => write!(f, "fatal: filesystem consistency error - {what}"),
            Self::Inode(num, what) => write!(
                f,
                "fatal: filesystem consistency error - inode = {} {}, {what}",
                num.formal, num.addr
            ),
            Self::Rgrp(addr, what) => {
                write!(f, "fatal: filesystem consistency error - RG = {addr}, {what}")
            }
            Self::Metadata(corrupt) => write!(
                f,
                "fatal: invalid metadata block - bh = {} ({}.{}: exp={}, found={})",
                corrupt.block, corrupt.structure, corrupt.field, corrupt.expected, corrupt.found
            ),
            Self::Io(Some(addr), error) => write!(f, "fatal: I/O error - block = {addr}, {error}"),
            Self::Io(None, error) => write!(f, "fatal: I/O error - {error}"),
            Self::Log(jid, error) => write!(f, "Error {error} writing to journal, jid={jid}"),
            Self::Requested => f.write_str("withdraw requested"),
        }
    }
}

/// A permission to write to the device; to be held as long as the write lasts.
#[derive(Debug)]
#[must_use = "the gate must stay open while the device is written"]
pub struct WriteGate<'a>(#[expect(dead_code, reason = "held for its drop")] RwLockReadGuard<'a, ()>);

type Hook = Box<dyn FnOnce(&str) + Send>;

/// The latch, and the name under which the filesystem speaks in the log.
pub struct Health {
    fsid: String,
    withdrawn: AtomicBool,
    cause: OnceLock<Arc<str>>,
    /// Read-held by writers of the device, write-held while the latch closes.
    gate: RwLock<()>,
    hooks: Mutex<Vec<Hook>>,
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("fsid", &self.fsid)
            .field("cause", &self.cause)
            .finish_non_exhaustive()
    }
}

impl Health {
    /// A healthy filesystem that logs as `fsid` (`table.jid`, as the kernel does).
    #[must_use]
    pub fn new(fsid: impl Into<String>) -> Self {
        Self {
            fsid: fsid.into(),
            withdrawn: AtomicBool::new(false),
            cause: OnceLock::new(),
            gate: RwLock::new(()),
            hooks: Mutex::new(Vec::new()),
        }
    }

    /// `table.jid`.
    #[must_use]
    pub fn fsid(&self) -> &str {
        &self.fsid
    }

    /// Has the latch closed?
    #[must_use]
    pub fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::Acquire)
    }

    /// The first cause, when withdrawn.
    #[must_use]
    pub fn cause(&self) -> Option<Arc<str>> {
        self.cause.get().filter(|_| self.is_withdrawn()).cloned()
    }

    /// Refuses everything that reads, after a withdraw.
    ///
    /// # Errors
    /// [`FsError::Withdrawn`] (EIO).
    pub fn check(&self) -> FsResult<()> {
        match self.cause() {
            None => Ok(()),
            Some(cause) => Err(FsError::Withdrawn(cause)),
        }
    }

    /// Refuses everything that begins a change, after a withdraw.
    ///
    /// # Errors
    /// EROFS, as the kernel's transactions answer then.
    pub fn check_modify(&self) -> FsResult<()> {
        if self.is_withdrawn() {
            return Err(Errno::EROFS.into());
        }
        Ok(())
    }

    /// Permission for one write (or a batch) to the device.
    ///
    /// # Errors
    /// [`FsError::Withdrawn`].
    pub fn write_gate(&self) -> FsResult<WriteGate<'_>> {
        let guard = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        Ok(WriteGate(guard))
    }

    /// Calls `hook` with the first cause when (or if already) withdrawn. It runs on the thread that withdraws, which
    /// may hold any lock: it must only wake somebody.
    pub fn on_withdraw(&self, hook: impl FnOnce(&str) + Send + 'static) {
        let mut hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cause) = self.cause() {
            drop(hooks);
            hook(&cause);
            return;
        }
        hooks.push(Box::new(hook));
    }

    /// Closes the latch, unless it is closed, and returns what every caller sees from now on. Waits for device
    /// writes under way: a caller must not hold a [`WriteGate`].
    #[track_caller]
    pub fn withdraw(&self, function: &'static str, cause: &Cause) -> FsError {
        let place = Location::caller();
        let mut first = false;
        let text = self.cause.get_or_init(|| {
            first = true;
            let (file, line) = (place.file(), place.line());
            format!("{cause}, function = {function}, file = {file}, line = {line}").into()
        });
        self.withdrawn.store(true, Ordering::Release);
        drop(self.gate.write().unwrap_or_else(PoisonError::into_inner));
        if first {
            tracing::error!("fsid={}: {text}", self.fsid);
            tracing::error!("fsid={}: about to withdraw this file system", self.fsid);
            let hooks = std::mem::take(&mut *self.hooks.lock().unwrap_or_else(PoisonError::into_inner));
            for hook in hooks {
                hook(text);
            }
            tracing::error!("fsid={}: File system withdrawn", self.fsid);
        }
        FsError::Withdrawn(text.clone())
    }

    /// Passes an error on; withdraws first when it is one that says disk or state are wrong ([`Cause::of`]).
    #[track_caller]
    pub fn observe(&self, function: &'static str, error: FsError) -> FsError {
        if let Some(cause) = Cause::of(&error) {
            self.withdraw(function, &cause);
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn the_first_cause_is_kept_and_told_once() {
        let health = Health::new("t:fs.0");
        let (send, told) = mpsc::channel();
        let late = send.clone();
        health.on_withdraw(move |cause| send.send(cause.to_owned()).unwrap());
        assert!(health.check().is_ok() && health.check_modify().is_ok() && health.cause().is_none());
        let first = health.withdraw("here", &Cause::Consistency("one".into()));
        let second = health.withdraw("there", &Cause::Requested);
        assert_eq!(first.to_string(), second.to_string());
        assert!(
            first
                .to_string()
                .contains("one, function = here, file = src/health.rs")
        );
        assert_eq!(told.try_iter().count(), 1);
        health.on_withdraw(move |cause| late.send(cause.to_owned()).unwrap());
        assert_eq!(told.try_iter().count(), 1);
        assert_eq!(health.check().unwrap_err().errno(), Errno::EIO);
        assert_eq!(health.check_modify().unwrap_err().errno(), Errno::EROFS);
        assert!(health.write_gate().is_err());
    }

    #[test]
    fn a_withdraw_waits_for_writes_under_way() {
        let health = Arc::new(Health::new("t:fs.0"));
        let gate = health.write_gate().unwrap();
        let other = Arc::clone(&health);
        let (send, done) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            other.withdraw("here", &Cause::Requested);
            send.send(()).unwrap();
        });
        while !health.is_withdrawn() {
            std::thread::yield_now();
        }
        assert!(done.try_recv().is_err());
        drop(gate);
        thread.join().unwrap();
        assert!(done.try_recv().is_ok());
    }

    #[test]
    fn only_consistency_errors_withdraw() {
        let health = Health::new("t:fs.0");
        health.observe("here", Errno::ENOSPC.into());
        assert!(!health.is_withdrawn());
        health.observe("here", FsError::Inconsistent("two owners".into()));
        assert!(health.is_withdrawn());
    }
}
