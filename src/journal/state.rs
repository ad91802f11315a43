//! What the journal's one short mutex protects.

use super::ail::Ail;
use super::running::Running;
use super::space::{Costs, TABOO};
use super::types::{CommitHook, CommitSeq, StatfsDelta};
use crate::error::{Errno, FsError, FsResult};
use crate::hash::QuickSet;
use gfs2_format::log::Ring;
use gfs2_format::{Block, BlockAddr, JournalBlock};
use std::collections::VecDeque;
use std::sync::Arc;

/// What the journal accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing: never started, or stopped with a clean journal.
    Stopped,
    /// Everything.
    Live,
    /// Commits of open transactions; the journal is being stopped.
    Stopping,
    /// Nothing, for good: the node has withdrawn.
    Dead,
}

/// The state of the log.
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) running: Running,
    /// Of the running commit's transactions.
    pub(super) hooks: Vec<CommitHook>,
    pub(super) flushing: Option<Arc<Running>>,
    /// Somebody has the flush token.
    pub(super) flush_taken: bool,
    pub(super) ail: Ail,
    /// Blocks whose in-place write is under way.
    pub(super) in_flight: QuickSet<BlockAddr>,
    /// Where the next log block goes.
    pub(super) head: JournalBlock,
    /// Tail of the newest durable header.
    pub(super) tail: JournalBlock,
    /// Sequence of the newest header.
    pub(super) sequence: u64,
    /// Blocks from tail to head.
    pub(super) used: u32,
    /// The newest header says that nothing is to be replayed.
    pub(super) idle: bool,
    /// What the flush under way may use.
    pub(super) flush_need: u64,
    /// What open transactions may use.
    pub(super) reserved: u64,
    /// Open transactions.
    pub(super) open: usize,
    /// Tickets of those who wait for log space, in the order of arrival.
    pub(super) waiters: VecDeque<u64>,
    pub(super) next_waiter: u64,
    /// Counts everything that can make room, so that a waiter misses none.
    pub(super) events: u64,
    /// Counts changes of cached blocks.
    pub(super) change: u64,
    /// As of the newest merged transaction.
    pub(super) local: StatfsDelta,
    /// As of the newest durable commit.
    pub(super) logged_local: StatfsDelta,
    /// The node's statfs_change dinode; only the journal changes it while live.
    pub(super) statfs_block: Block,
}

impl State {
    pub(super) fn new(block_len: usize) -> Self {
        Self {
            phase: Phase::Stopped,
            running: Running::new(1),
            hooks: Vec::new(),
            flushing: None,
            flush_taken: false,
            ail: Ail::default(),
            in_flight: QuickSet::default(),
            head: JournalBlock::new(0),
            tail: JournalBlock::new(0),
            sequence: 0,
            used: 0,
            idle: true,
            flush_need: 0,
            reserved: 0,
            open: 0,
            waiters: VecDeque::new(),
            next_waiter: 0,
            events: 0,
            change: 0,
            local: StatfsDelta::default(),
            logged_local: StatfsDelta::default(),
            statfs_block: Block::zeroed(block_len),
        }
    }

    /// Blocks that are used or promised.
    pub(super) fn committed_space(&self, costs: &Costs) -> u64 {
        u64::from(self.used)
            .saturating_add(self.flush_need)
            .saturating_add(self.running.need(costs))
            .saturating_add(self.reserved)
    }

    /// May so many blocks be promised now?
    pub(super) fn fits(&self, cost: u64, costs: &Costs, ring: Ring) -> bool {
        let sum = self
            .committed_space(costs)
            .saturating_add(cost)
            .saturating_add(TABOO);
        sum <= u64::from(ring.blocks())
    }

    /// Can a copy of this block be in the log (also: after the flush under way)?
    pub(super) fn is_logged(&self, addr: BlockAddr) -> bool {
        self.ail.is_logged(addr) || self.flushing.as_ref().is_some_and(|f| f.contains(addr))
    }

    /// Is the block freed (or given up) by a commit that is not yet durable?
    pub(super) fn is_revoked(&self, addr: BlockAddr) -> bool {
        let by = |r: &Running| r.revokes().contains(&addr);
        by(&self.running) || self.flushing.as_deref().is_some_and(by)
    }

    /// The newest commit there is anything of.
    pub(super) fn newest(&self) -> CommitSeq {
        CommitSeq(self.running.seq - u64::from(self.nothing_runs()))
    }

    /// Nothing to write and nobody to tell.
    pub(super) fn nothing_runs(&self) -> bool {
        self.running.is_empty() && self.hooks.is_empty()
    }

    /// Refuses when the journal does not take transactions.
    pub(super) fn check_live(&self, internal: bool) -> FsResult<()> {
        match self.phase {
            Phase::Live => Ok(()),
            Phase::Stopping if internal => Ok(()),
            _ => Err(FsError::Posix(Errno::EROFS)),
        }
    }
}
