//! One transaction.

use crate::cache::{BufferCache, LockProof};
use crate::error::{FsError, FsResult};
use crate::glock::GlockName;
use crate::journal::{Change, CommitSeq, Journal, Reservation, StatfsDelta, Ticket, WorkSet, stamp};
use gfs2_format::ondisk::{DINODE_SIZE, StatfsChange, view_mut};
use gfs2_format::{Block, BlockAddr, Extent, Geometry};
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// Blocks that a transaction usually edits.
const BLOCKS_USUAL: usize = 7;

/// Changes to blocks that take effect together or not at all.
///
/// A thread holds at most one: beginning a second while the first holds its reservation could wait for ever.
#[derive(Debug)]
#[must_use = "a dropped transaction is rolled back"]
pub struct Transaction {
    ticket: Ticket,
    work: WorkSet,
}

impl Transaction {
    /// Reserves log space and begins. Waits, in the order of arrival, while the log is full: so the caller holds all
    /// glocks he needs already (order: inode, resource group, log) and holds no lock that a log flush may need.
    ///
    /// # Errors
    /// EROFS when the journal is not live or the node has withdrawn; EINVAL for more than the journal could ever
    /// hold.
    pub fn begin(journal: &Arc<Journal>, reservation: Reservation) -> FsResult<Self> {
        let ticket = journal.reserve(reservation)?;
        let mut work = WorkSet::default();
        // Most transactions edit a handful of blocks: room for them is made once.
        work.blocks.reserve(BLOCKS_USUAL);
        Ok(Self { ticket, work })
    }

    /// The journal it belongs to.
    #[must_use]
    pub fn journal(&self) -> &Arc<Journal> {
        self.ticket.journal()
    }

    /// The cache below.
    #[must_use]
    pub fn cache(&self) -> &Arc<BufferCache> {
        self.ticket.journal().cache()
    }

    /// The volume's geometry.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        self.ticket.journal().cache().geometry()
    }

    /// Blocks that may still be edited or created.
    #[must_use]
    pub fn blocks_left(&self) -> u64 {
        let used = self.work.blocks.len() as u64;
        self.ticket.reservation().blocks.saturating_sub(used)
    }

    /// Blocks that may still be revoked.
    #[must_use]
    pub fn revokes_left(&self) -> u64 {
        let used = self.work.freed.len() as u64;
        self.ticket.reservation().revokes.saturating_sub(used)
    }

    /// Nothing edited, created, freed or counted yet?
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.work.is_untouched()
    }

    /// A block as this transaction sees it: its own edit, else the newest committed contents.
    ///
    /// # Errors
    /// As [`BufferCache::read`].
    pub fn read(&self, lock: &dyn LockProof, addr: BlockAddr) -> FsResult<Block> {
        match self.work.blocks.get(&addr) {
            Some(change) if change.owner == lock.name() => Ok(change.block.clone()),
            Some(change) => Err(self.wrong_lock(addr, change.owner, lock.name())),
            None => self.cache().read(lock, addr),
        }
    }

    /// The contents of a metadata block for change; `mh_jid` has been set to our journal's (a checksum over the
    /// block must be computed after this call).
    ///
    /// # Errors
    /// As [`BufferCache::read`]; [`FsError::Inconsistent`] when the reservation is used up, the glock is not held
    /// EX, or the block was freed by this transaction.
    pub fn edit(&mut self, lock: &dyn LockProof, addr: BlockAddr) -> FsResult<&mut [u8]> {
        self.open(lock, addr, false)
    }

    /// [`Transaction::edit`] for a block of journaled file data.
    ///
    /// # Errors
    /// As [`Transaction::edit`].
    pub fn edit_data(&mut self, lock: &dyn LockProof, addr: BlockAddr) -> FsResult<&mut [u8]> {
        self.open(lock, addr, true)
    }

    /// The zeroed contents of a freshly allocated metadata block. Cancels a revoke that is not yet on disk. The
    /// caller writes the meta header; the commit stamps `mh_jid` (rgrp headers, which carry a checksum, excepted).
    ///
    /// # Errors
    /// As [`Transaction::edit`], I/O excepted.
    pub fn create(&mut self, lock: &dyn LockProof, addr: BlockAddr) -> FsResult<&mut [u8]> {
        self.make(lock, addr, false)
    }

    /// [`Transaction::create`] for a block of journaled file data.
    ///
    /// # Errors
    /// As [`Transaction::create`].
    pub fn create_data(&mut self, lock: &dyn LockProof, addr: BlockAddr) -> FsResult<&mut [u8]> {
        self.make(lock, addr, true)
    }

    /// Says that a block of metadata or journaled data was freed: no copy of it in the log is replayed once this
    /// transaction is durable. The block must not be allocated again before that (unless by this transaction).
    ///
    /// # Errors
    /// [`FsError::Inconsistent`] when more is revoked than was reserved.
    pub fn revoke(&mut self, addr: BlockAddr) -> FsResult<()> {
        if !self.work.freed.contains(&addr) && self.revokes_left() == 0 {
            let limit = self.ticket.reservation().revokes;
            return Err(FsError::Inconsistent(format!(
                "a transaction revokes block {addr}, more than the {limit} blocks it reserved revokes for"
            )));
        }
        self.work.blocks.remove(&addr);
        self.work.freed.insert(addr);
        Ok(())
    }

    /// New contents of a block of file data that is not journaled. They go to the device before this transaction
    /// becomes durable; nobody sees them before it is committed, or if it is not.
    ///
    /// # Errors
    /// [`FsError::Inconsistent`] when the glock is not held EX.
    pub fn write_data(&mut self, lock: &dyn LockProof, addr: BlockAddr, block: Block) -> FsResult<()> {
        let owner = self.check_edit(lock, addr)?;
        self.work.data.push((owner, addr, block));
        Ok(())
    }

    /// The contents that [`Transaction::write_data`] was given for a block.
    #[must_use]
    pub fn written_data(&self, addr: BlockAddr) -> Option<&Block> {
        let newest = self.work.data.iter().rev().find(|(_, at, _)| *at == addr);
        newest.map(|(_, _, block)| block)
    }

    /// What is dirty of the owner's file data reaches the device before this transaction becomes durable.
    pub fn order_data(&mut self, lock: &dyn LockProof) {
        self.work.ordered.push(lock.name());
    }

    /// Says that blocks of file data were freed: their contents are not written any more once this is committed.
    pub fn free_data(&mut self, lock: &dyn LockProof, extent: Extent) {
        self.work.freed_data.push((lock.name(), extent));
    }

    /// Counts a change of the filesystem's totals: logged with this transaction as the node's statfs_change.
    pub fn add_statfs(&mut self, delta: StatfsDelta) {
        self.work.statfs = self.work.statfs.plus(delta);
    }

    /// Moves what this node has counted so far into the master statfs dinode, whose lock is `lock`: the master's
    /// numbers grow by the local ones and these become zero, both in this commit. Costs one block. Gives the
    /// master's new numbers.
    ///
    /// # Errors
    /// As [`Transaction::edit`].
    pub fn fold_statfs(&mut self, lock: &dyn LockProof, master: BlockAddr) -> FsResult<StatfsDelta> {
        let local = self.take_statfs();
        let raw: &mut StatfsChange = view_mut(self.edit(lock, master)?, DINODE_SIZE, master)?;
        let (total, free, dinodes) = raw.signed();
        let sum = StatfsDelta { total, free, dinodes }.plus(local);
        *raw = StatfsChange::from_signed(sum.total, sum.free, sum.dinodes);
        Ok(sum)
    }

    /// What this node has counted so far; it is counted down by as much when this transaction is committed. For a
    /// caller who changes the master himself.
    pub fn take_statfs(&mut self) -> StatfsDelta {
        let all = self.journal().local_statfs();
        let fresh = all.minus(self.work.taken);
        self.work.taken = all;
        fresh
    }

    /// Calls `hook` once this transaction is durable: on the thread that flushes, before anyone who waits for that
    /// is told. It must be quick and must not call the journal or wait for a lock held while the journal is called.
    pub fn on_commit(&mut self, hook: impl FnOnce(CommitSeq) + Send + 'static) {
        self.work.hooks.push(Box::new(hook));
    }

    /// Makes everything visible and part of the next flush. Nothing waits for the device here; whoever needs it
    /// durable hands the number to [`Journal::wait_durable`].
    ///
    /// # Errors
    /// After a withdraw: as if it had been dropped. [`FsError::Inconsistent`] (and then nothing has happened): a
    /// metadata block without the magic, a block of two owners, a lock given up before the commit.
    pub fn commit(self) -> FsResult<CommitSeq> {
        let Self { ticket, work } = self;
        let journal = Arc::clone(ticket.journal());
        journal.merge(work, ticket)
    }

    fn open(&mut self, lock: &dyn LockProof, addr: BlockAddr, data: bool) -> FsResult<&mut [u8]> {
        let owner = self.check_edit(lock, addr)?;
        if self.work.freed.contains(&addr) {
            return Err(FsError::Inconsistent(format!(
                "block {addr} is edited by the transaction that freed it"
            )));
        }
        let jid = self.journal().jid();
        let left = self.blocks_left();
        let change = match self.work.blocks.entry(addr) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                if left == 0 {
                    return Err(over_reservation(addr, self.ticket.reservation()));
                }
                let (block, version) = self.ticket.journal().cache().read_versioned(owner, addr)?;
                let change = entry.insert(Change {
                    owner,
                    // An own copy at once: the cached one is shared.
                    block: Block::from(&*block),
                    data,
                    version: Some(version),
                    reborn: false,
                });
                if !data {
                    stamp(change.block.make_mut(), jid);
                }
                change
            }
        };
        change.data = data;
        Ok(change.block.make_mut())
    }

    fn make(&mut self, lock: &dyn LockProof, addr: BlockAddr, data: bool) -> FsResult<&mut [u8]> {
        let owner = self.check_edit(lock, addr)?;
        if self.blocks_left() == 0 && !self.work.blocks.contains_key(&addr) {
            return Err(over_reservation(addr, self.ticket.reservation()));
        }
        let reborn =
            self.work.freed.remove(&addr) || self.work.blocks.get(&addr).is_some_and(|change| change.reborn);
        let fresh = Change {
            owner,
            block: Block::zeroed(self.geometry().block_len()),
            data,
            version: None,
            reborn,
        };
        let change = match self.work.blocks.entry(addr) {
            Entry::Occupied(mut entry) => {
                entry.insert(fresh);
                entry.into_mut()
            }
            Entry::Vacant(entry) => entry.insert(fresh),
        };
        Ok(change.block.make_mut())
    }

    fn check_edit(&self, lock: &dyn LockProof, addr: BlockAddr) -> FsResult<GlockName> {
        let owner = lock.name();
        if !lock.is_exclusive() {
            return Err(FsError::Inconsistent(format!(
                "block {addr} is edited under glock {owner}, which is not held EX"
            )));
        }
        match self.work.blocks.get(&addr) {
            Some(change) if change.owner != owner => Err(self.wrong_lock(addr, change.owner, owner)),
            _ => Ok(owner),
        }
    }

    fn wrong_lock(&self, addr: BlockAddr, holds: GlockName, wants: GlockName) -> FsError {
        FsError::Inconsistent(format!(
            "block {addr} was edited under glock {holds} and is used under glock {wants} by one transaction"
        ))
    }
}

fn over_reservation(addr: BlockAddr, reservation: Reservation) -> FsError {
    FsError::Inconsistent(format!(
        "a transaction edits block {addr}, more than the {} blocks it reserved",
        reservation.blocks
    ))
}
