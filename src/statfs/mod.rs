//! The filesystem's totals: the master's, and what this node has changed since it last added to them.
//!
//! Invariants: figures come from memory and take no lock of a resource group; between a fold and the memory of its
//! result nobody reads (a sum would count the local part twice or not at all).

use crate::error::FsResult;
use crate::glock::{Glock, HolderFlags, State};
use crate::inode::Engine;
use crate::journal::StatfsDelta;
use crate::rgrp::Reader;
use crate::txn::{Reservation, Transaction};
use gfs2_format::ondisk::{StatfsChange, view};
use gfs2_format::{BlockAddr, tree};
use parking_lot::Mutex;
use std::sync::Arc;

/// Totals of the volume; none is negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Figures {
    /// Blocks.
    pub(crate) total: u64,
    /// Free blocks.
    pub(crate) free: u64,
    /// Dinodes.
    pub(crate) dinodes: u64,
}

/// The master's totals in memory.
#[derive(Debug)]
pub(crate) struct Totals {
    addr: BlockAddr,
    glock: Arc<Glock>,
    master: Mutex<StatfsDelta>,
}

impl Totals {
    /// Reads the master file at `addr`.
    ///
    /// # Errors
    /// Corruption; I/O and lock errors.
    pub(crate) fn load(engine: &Engine, addr: BlockAddr) -> FsResult<Self> {
        let glock = engine.inode_glock(addr)?;
        let master = {
            let guard = glock.acquire(State::Sh, HolderFlags::NOCACHE)?;
            let mut bytes = [0; size_of::<StatfsChange>()];
            tree::read_bytes(&Reader::new(&engine.cache, &guard), addr, 0, &mut bytes)?;
            let (total, free, dinodes) = view::<StatfsChange>(&bytes, 0, addr)?.signed();
            StatfsDelta { total, free, dinodes }
        };
        Ok(Self {
            addr,
            glock,
            master: Mutex::new(master),
        })
    }

    /// The present figures.
    pub(crate) fn figures(&self, engine: &Engine) -> Figures {
        let master = self.master.lock();
        let local = engine
            .journal
            .as_ref()
            .map_or_else(StatfsDelta::default, |journal| journal.local_statfs());
        let sum = master.plus(local);
        let total = u64::try_from(sum.total).unwrap_or(0);
        Figures {
            total,
            free: u64::try_from(sum.free).unwrap_or(0).min(total),
            dinodes: u64::try_from(sum.dinodes).unwrap_or(0),
        }
    }

    /// Has this node changed so much that the master should know at once?
    pub(crate) fn is_due(&self, engine: &Engine) -> bool {
        let percent = i64::from(engine.options.statfs_percent);
        let Some(journal) = engine.journal.as_ref().filter(|_| percent > 0) else {
            return false;
        };
        let change = journal.local_statfs().free.saturating_abs();
        change.saturating_mul(100) >= self.master.lock().free.saturating_mul(percent)
    }

    /// Adds this node's changes to the master.
    ///
    /// # Errors
    /// Corruption; I/O and lock errors.
    pub(crate) fn sync(&self, engine: &Engine) -> FsResult<()> {
        engine.check_writable()?;
        let journal = engine.journal()?;
        if journal.local_statfs().is_zero() {
            return Ok(());
        }
        let guard = self.glock.acquire(State::Ex, HolderFlags::NOCACHE)?;
        let mut master = self.master.lock();
        let mut txn = Transaction::begin(journal, Reservation::blocks(2))?;
        let sum = txn.fold_statfs(&guard, self.addr)?;
        txn.commit()?;
        *master = sum;
        Ok(())
    }
}
