//! The journal's face.

use super::types::{
    CommitSeq, FlushReason, JournalConfig, JournalStats, Reservation, StatfsDelta, StopReason, WorkSet,
};
use crate::cache::BufferCache;
use crate::error::FsResult;
use crate::glock::GlockName;
use gfs2_format::Jid;
use std::sync::Arc;

/// A reservation of log space; given back when dropped.
#[derive(Debug)]
pub struct Ticket {
    reservation: Reservation,
}

impl Ticket {
    /// What was reserved.
    #[must_use]
    pub fn reservation(&self) -> Reservation {
        self.reservation
    }
}

/// The log of this node.
#[derive(Debug)]
pub struct Journal {
    cache: Arc<BufferCache>,
    config: JournalConfig,
}

impl Journal {
    /// A journal that is not live: every [`crate::txn::Transaction::begin`] answers EROFS until [`Journal::start`].
    #[must_use]
    pub fn new(cache: Arc<BufferCache>, config: JournalConfig) -> Arc<Self> {
        Arc::new(Self { cache, config })
    }

    /// Goes live: the head must be a clean header (recovery is done before); the log goes on behind it.
    ///
    /// # Errors
    /// I/O errors; [`crate::error::FsError::Inconsistent`] when the journal is not clean.
    pub fn start(&self) -> FsResult<()> {
        todo!()
    }

    /// Leaves the journal clean: waits for open transactions, flushes, writes everything in place, writes the
    /// UNMOUNT header. Does nothing when not live. [`Journal::start`] may follow.
    ///
    /// # Errors
    /// I/O errors (which withdraw); after a withdraw no header is written.
    pub fn stop(&self, _reason: StopReason) -> FsResult<()> {
        todo!()
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> &Arc<BufferCache> {
        &self.cache
    }

    /// Number of our journal.
    #[must_use]
    pub fn jid(&self) -> Jid {
        self.config.jid
    }

    /// The largest reservation that has a chance, in blocks without revokes.
    #[must_use]
    pub fn max_blocks(&self) -> u64 {
        todo!()
    }

    /// Newest commit that survives a crash now.
    #[must_use]
    pub fn durable_seq(&self) -> CommitSeq {
        todo!()
    }

    /// Makes everything up to `seq` durable; callers whose commits are in one flush share it.
    ///
    /// # Errors
    /// I/O errors (which withdraw).
    pub fn wait_durable(&self, _seq: CommitSeq, _reason: FlushReason) -> FsResult<()> {
        todo!()
    }

    /// Commits everything that has been committed by transactions so far; gives the newest durable number.
    ///
    /// # Errors
    /// As [`Journal::wait_durable`].
    pub fn flush(&self, _reason: FlushReason) -> FsResult<CommitSeq> {
        todo!()
    }

    /// [`Journal::wait_durable`] for somebody who also wrote file data to the device: flushes the device even when
    /// no log header had to be written.
    ///
    /// # Errors
    /// As [`Journal::wait_durable`].
    pub fn fsync(&self, _seq: CommitSeq) -> FsResult<()> {
        todo!()
    }

    /// go_sync of a glock's blocks: everything committed, in place, and (when other nodes are there) no copy of them
    /// left live in the log. Nobody may hold the glock for change meanwhile.
    ///
    /// # Errors
    /// I/O errors (which withdraw): then the glock must not be given up.
    pub fn flush_glock(&self, _name: GlockName, _reason: FlushReason) -> FsResult<()> {
        todo!()
    }

    /// [`Journal::flush_glock`] that always leaves no copy in the log: before blocks of the glock are written past
    /// the log (a file that stops being journaled).
    ///
    /// # Errors
    /// As [`Journal::flush_glock`].
    pub fn revoke_glock(&self, _name: GlockName, _reason: FlushReason) -> FsResult<()> {
        todo!()
    }

    /// Is there anything of this glock that [`Journal::flush_glock`] would have to write?
    #[must_use]
    pub fn has_dirty(&self, _name: GlockName) -> bool {
        todo!()
    }

    /// Writes everything that is committed in place and moves the tail: sync's thorough form.
    ///
    /// # Errors
    /// I/O errors (which withdraw).
    pub fn write_back(&self) -> FsResult<()> {
        todo!()
    }

    /// What this node has counted and not yet folded into the master statfs.
    #[must_use]
    pub fn local_statfs(&self) -> StatfsDelta {
        todo!()
    }

    /// Figures.
    #[must_use]
    pub fn stats(&self) -> JournalStats {
        todo!()
    }

    /// For [`crate::txn::Transaction`]: log space for a transaction.
    pub(crate) fn reserve(self: &Arc<Self>, _reservation: Reservation) -> FsResult<Ticket> {
        todo!()
    }

    /// For [`crate::txn::Transaction`]: the commit.
    pub(crate) fn merge(self: &Arc<Self>, _work: WorkSet, _ticket: Ticket) -> FsResult<CommitSeq> {
        todo!()
    }
}
