//! A resource group held for change: allocation, freeing, the change of a dinode's state.
//!
//! Invariants: bitmap, counts and checksum change in the transaction that is handed in, so they are rolled back with
//! it; what was taken from the in-core map comes back unless [`Hold::finish`] is told of the commit; the lock value
//! block shows the header's numbers before the glock can leave.

use super::group::{Group, Run};
use crate::error::{Errno, FsError, FsResult};
use crate::glock::GlockGuard;
use crate::journal::StatfsDelta;
use crate::txn::{CommitSeq, Transaction};
use gfs2_format::ondisk::{BlockState, MAGIC, RgFlags, Rgrp, RgrpLvb, view_mut};
use gfs2_format::{BlockAddr, Extent, FormalIno};
use std::sync::Arc;
use zerocopy::IntoBytes;

/// A group whose glock is held EX and whose local lock is ours.
#[derive(Debug)]
#[must_use]
pub(crate) struct Hold {
    group: Arc<Group>,
    lock: GlockGuard,
    taken: Vec<Run>,
    freed: Vec<Run>,
    unlinked: i64,
    /// The file that allocates and goes on growing.
    file: Option<u64>,
    /// The header as this operation leaves it.
    header: Option<Rgrp>,
    finished: bool,
}

/// A change of the counts in a header.
#[derive(Clone, Copy, Default)]
struct Counts {
    free: i64,
    dinodes: i64,
}

impl Hold {
    /// The caller has taken the local lock and loaded the group under `lock`.
    pub(super) fn new(group: Arc<Group>, lock: GlockGuard) -> Self {
        Self {
            group,
            lock,
            taken: Vec::new(),
            freed: Vec::new(),
            unlinked: 0,
            file: None,
            header: None,
            finished: false,
        }
    }

    /// The group.
    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    /// What is allocated is for this file, which goes on growing: it continues where the file's last allocation ended,
    /// and what lies behind is kept for it.
    pub(crate) fn grow(&mut self, file: BlockAddr) {
        self.file = Some(file.get());
    }

    /// The group's glock.
    pub(super) fn lock(&self) -> &GlockGuard {
        &self.lock
    }

    /// Blocks that may be allocated now.
    pub(crate) fn available(&self) -> u32 {
        let core = self.group.core();
        if core.noalloc { 0 } else { core.map.free() }
    }

    /// Metadata blocks that allocating `blocks` blocks edits at most.
    pub(crate) fn alloc_cost(&self, blocks: u64) -> u64 {
        blocks
            .saturating_add(1)
            .min(u64::from(self.group.layout().length()))
    }

    /// Metadata blocks that any change edits at most.
    pub(crate) fn length(&self) -> u64 {
        u64::from(self.group.layout().length())
    }

    fn run_of(&self, extent: Extent) -> FsResult<Run> {
        let layout = self.group.layout();
        let last = extent.start.checked_add(u64::from(extent.len).saturating_sub(1));
        if extent.len == 0
            || !layout.contains_data(extent.start)
            || !last.is_some_and(|last| layout.contains_data(last))
        {
            return Err(FsError::Inconsistent(format!(
                "RG = {}: blocks {} + {} are none of its data blocks",
                layout.addr(),
                extent.start,
                extent.len
            )));
        }
        Ok((self.group.position(extent.start), extent.len))
    }

    /// Changes the states of a run that may reach over several bitmap blocks.
    fn set_states(
        &self,
        txn: &mut Transaction,
        extent: Extent,
        from: BlockState,
        to: BlockState,
    ) -> FsResult<()> {
        let mut rest = extent;
        while rest.len > 0 {
            let slice = self.group.layout().locate(rest.start).ok_or_else(|| {
                FsError::Inconsistent(format!(
                    "RG = {}: no bitmap for block {}",
                    self.group.layout().addr(),
                    rest.start
                ))
            })?;
            let room = slice.end().get().saturating_sub(rest.start.get());
            let len = rest.len.min(u32::try_from(room).unwrap_or(u32::MAX)).max(1);
            let bytes = txn.edit(&self.lock, slice.block)?;
            slice.check_block(bytes)?;
            let part = Extent {
                start: rest.start,
                len,
            };
            slice.set_run(bytes, part, from, to)?;
            rest = Extent {
                start: BlockAddr::new(rest.start.get().saturating_add(u64::from(len))),
                len: rest.len - len,
            };
        }
        Ok(())
    }

    /// Changes the header and its checksum.
    fn edit_header<T>(
        &mut self,
        txn: &mut Transaction,
        change: impl FnOnce(&mut Rgrp) -> FsResult<T>,
    ) -> FsResult<T> {
        let addr = self.group.layout().addr();
        let bytes = txn.edit(&self.lock, addr)?;
        self.group.layout().check_header(bytes)?;
        let header: &mut Rgrp = view_mut(bytes, 0, addr)?;
        let value = change(header)?;
        header.seal();
        self.header = Some(*header);
        Ok(value)
    }

    /// Adds to the counts of a header; one that cannot hold the result is a lie of the disk.
    fn count(header: &mut Rgrp, addr: BlockAddr, counts: Counts) -> FsResult<()> {
        let free = i64::from(header.free.get()) + counts.free;
        let dinodes = i64::from(header.dinodes.get()) + counts.dinodes;
        let limit = i64::from(header.data.get());
        match (u32::try_from(free), u32::try_from(dinodes)) {
            (Ok(new_free), Ok(new_dinodes)) if free + dinodes <= limit => {
                header.free = new_free.into();
                header.dinodes = new_dinodes.into();
                if counts.free > 0 {
                    let flags = RgFlags::from_bits_retain(header.flags.get()) - RgFlags::TRIMMED;
                    header.flags = flags.bits().into();
                }
                Ok(())
            }
            _ => {
                tracing::error!(
                    rgrp = addr.get(),
                    "rgrp {addr} has an error, marking it readonly until umount"
                );
                Err(Errno::EIO.into())
            }
        }
    }

    fn apply(&mut self, txn: &mut Transaction, counts: Counts) -> FsResult<()> {
        let addr = self.group.layout().addr();
        let result = self.edit_header(txn, |header| Self::count(header, addr, counts));
        if result.is_err() {
            self.group.core().noalloc = true;
        }
        result?;
        txn.add_statfs(StatfsDelta {
            total: 0,
            free: counts.free,
            dinodes: counts.dinodes,
        });
        Ok(())
    }

    fn take(&mut self, run: Run) {
        self.group.core().take(self.file, run);
        self.taken.push(run);
    }

    /// Allocates 1 to `want` contiguous blocks, near `goal` when that is in this group.
    ///
    /// # Errors
    /// [`gfs2_format::Error::NoSpace`] when nothing is left.
    pub(crate) fn alloc(&mut self, txn: &mut Transaction, goal: BlockAddr, want: u32) -> FsResult<Extent> {
        let run = {
            let mut core = self.group.core();
            let goal = if self.group.layout().contains_data(goal) {
                self.group.position(goal)
            } else {
                core.last
            };
            core.find(self.file, goal, want)
        };
        let run = run.ok_or(FsError::Format(gfs2_format::Error::NoSpace))?;
        self.take(run);
        let extent = self.group.extent(run);
        self.set_states(txn, extent, BlockState::Free, BlockState::Used)?;
        self.apply(
            txn,
            Counts {
                free: -i64::from(extent.len),
                dinodes: 0,
            },
        )?;
        Ok(extent)
    }

    /// A block a new dinode could take, none of `avoid`; nothing is changed.
    pub(crate) fn pick(&self, goal: BlockAddr, avoid: &[BlockAddr]) -> Option<BlockAddr> {
        let mut core = self.group.core();
        // Inodes and what belongs to them follow each other; the goal only says where the first one goes.
        let mut at = if core.last == 0 && self.group.layout().contains_data(goal) {
            self.group.position(goal)
        } else {
            core.last
        };
        for _ in 0..=avoid.len() {
            let (start, _) = core.find(None, at, 1)?;
            let block = self.group.extent((start, 1)).start;
            if !avoid.contains(&block) {
                return Some(block);
            }
            at = start.saturating_add(1);
        }
        None
    }

    /// May a new dinode take this block?
    ///
    /// # Errors
    /// It is not of this group.
    pub(crate) fn is_free(&self, block: BlockAddr) -> FsResult<bool> {
        let (at, _) = self.run_of(Extent::single(block))?;
        Ok(self.group.core().map.contains(at))
    }

    /// Makes the block of [`Hold::pick`] a dinode and gives its formal number.
    ///
    /// # Errors
    /// Corruption in the bitmap.
    pub(crate) fn alloc_dinode(&mut self, txn: &mut Transaction, block: BlockAddr) -> FsResult<FormalIno> {
        let run = self.run_of(Extent::single(block))?;
        self.take(run);
        self.set_states(txn, Extent::single(block), BlockState::Free, BlockState::Dinode)?;
        self.apply(txn, Counts { free: -1, dinodes: 1 })?;
        self.edit_header(txn, |header| {
            // 0 is no formal number: mkfs leaves the counter there.
            let formal = header.igeneration.get().max(1);
            header.igeneration = formal.wrapping_add(1).into();
            Ok(FormalIno::new(formal))
        })
    }

    /// Frees used blocks (no dinodes).
    ///
    /// # Errors
    /// Corruption in the bitmap, blocks of elsewhere.
    pub(crate) fn free(&mut self, txn: &mut Transaction, extent: Extent) -> FsResult<()> {
        let run = self.run_of(extent)?;
        self.set_states(txn, extent, BlockState::Used, BlockState::Free)?;
        self.apply(
            txn,
            Counts {
                free: i64::from(extent.len),
                dinodes: 0,
            },
        )?;
        self.freed.push(run);
        Ok(())
    }

    /// Frees an unlinked dinode's block.
    ///
    /// # Errors
    /// As [`Hold::free`].
    pub(crate) fn free_dinode(&mut self, txn: &mut Transaction, block: BlockAddr) -> FsResult<()> {
        let run = self.run_of(Extent::single(block))?;
        self.set_states(txn, Extent::single(block), BlockState::Unlinked, BlockState::Free)?;
        self.apply(txn, Counts { free: 1, dinodes: -1 })?;
        self.unlinked -= 1;
        self.freed.push(run);
        Ok(())
    }

    /// Says that a dinode has no links any more.
    ///
    /// # Errors
    /// As [`Hold::free`].
    pub(crate) fn set_unlinked(&mut self, txn: &mut Transaction, block: BlockAddr) -> FsResult<()> {
        self.run_of(Extent::single(block))?;
        self.set_states(
            txn,
            Extent::single(block),
            BlockState::Dinode,
            BlockState::Unlinked,
        )?;
        // The header goes with every change of the bitmap.
        self.edit_header(txn, |_| Ok(()))?;
        self.unlinked += 1;
        // Whoever has it open may die, or leave it to us.
        self.group.recheck();
        Ok(())
    }

    /// The transaction has been committed as `seq`.
    pub(crate) fn finish(mut self, seq: CommitSeq) {
        self.finished = true;
        self.group.committed(seq, std::mem::take(&mut self.freed));
        let unlinked = {
            let mut core = self.group.core();
            core.unlinked = core
                .unlinked
                .saturating_add_signed(i32::try_from(self.unlinked).unwrap_or(0));
            core.unlinked
        };
        if let Some(header) = self.header {
            let lvb = RgrpLvb {
                magic: MAGIC.into(),
                flags: header.flags,
                free: header.free,
                dinodes: header.dinodes,
                igeneration: header.igeneration,
                unlinked: unlinked.into(),
                pad: 0.into(),
            };
            if let Ok(bytes) = lvb.as_bytes().try_into() {
                self.lock.glock().set_lvb(bytes);
            }
            self.lock.glock().mark_dirty();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.finished {
            self.group.rolled_back(&self.taken);
        }
        self.group.unlock_local();
    }
}
