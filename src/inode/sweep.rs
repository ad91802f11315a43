//! Freeing blocks of an inode in steps: one resource group and one transaction each.

use super::engine::Locked;
use crate::error::{FsError, FsResult};
use crate::rgrp::{Edit, Reader};
use crate::txn::Reservation;
use gfs2_format::bitmap::RgrpLayout;
use gfs2_format::dir::LeafCursor;
use gfs2_format::ea::EaCursor;
use gfs2_format::tree::{FreeCursor, StepBudget, StepOutcome};
use gfs2_format::{BlockAddr, Result};

/// Blocks freed per step, at most.
const FREES_MAX: u32 = 4096;
/// Metadata blocks edited per step, at most.
const EDITS_MAX: u32 = 64;

/// What the format crate frees in steps.
pub(crate) enum Sweep<'c> {
    /// File data and the tree over it.
    Tree(&'c mut FreeCursor),
    /// A directory's leaves.
    Leaves(&'c mut LeafCursor),
    /// Extended attributes.
    Attributes(&'c mut EaCursor),
}

impl<'c> From<&'c mut FreeCursor> for Sweep<'c> {
    fn from(cursor: &'c mut FreeCursor) -> Self {
        Self::Tree(cursor)
    }
}

impl<'c> From<&'c mut LeafCursor> for Sweep<'c> {
    fn from(cursor: &'c mut LeafCursor) -> Self {
        Self::Leaves(cursor)
    }
}

impl<'c> From<&'c mut EaCursor> for Sweep<'c> {
    fn from(cursor: &'c mut EaCursor) -> Self {
        Self::Attributes(cursor)
    }
}

impl Sweep<'_> {
    /// The next block to free.
    fn seek(&mut self, reader: &Reader<'_>, addr: BlockAddr) -> Result<Option<BlockAddr>> {
        match self {
            Self::Tree(cursor) => cursor.seek(reader, addr),
            Self::Leaves(cursor) => cursor.seek(reader, addr),
            Self::Attributes(cursor) => cursor.seek(reader, addr),
        }
    }

    /// Frees some of those that are in the group.
    fn step(
        &mut self,
        edit: &mut Edit<'_>,
        addr: BlockAddr,
        budget: StepBudget,
        group: &RgrpLayout,
    ) -> Result<StepOutcome> {
        let inside = |block| group.contains_data(block);
        match self {
            Self::Tree(cursor) => cursor.step(edit, addr, budget, &inside),
            Self::Leaves(cursor) => cursor.step(edit, addr, budget, &inside),
            Self::Attributes(cursor) => cursor.step(edit, addr, budget, &inside),
        }
    }
}

/// Frees all the cursor finds. The inode is held EX. `least_edits`: metadata blocks that one step must be able to edit.
pub(crate) fn sweep<'c>(
    locked: &mut Locked<'_>,
    cursor: impl Into<Sweep<'c>>,
    least_edits: u32,
) -> FsResult<()> {
    let mut cursor = cursor.into();
    let engine = locked.engine;
    let addr = locked.addr();
    let max = engine.journal()?.max_blocks();
    while let Some(block) = cursor.seek(&locked.reader(), addr)? {
        let hold = engine.rgrps.hold_of(block)?;
        let length = hold.length();
        let budget = StepBudget {
            frees: FREES_MAX.min(u32::try_from(max).unwrap_or(u32::MAX)),
            edits: EDITS_MAX
                .min(u32::try_from(max.saturating_sub(length) / 2).unwrap_or(u32::MAX))
                .max(2)
                .max(least_edits),
        };
        let bitmaps = length.min(u64::from(budget.frees) + 1);
        let reservation =
            Reservation::blocks(u64::from(budget.edits) + bitmaps).with_revokes(u64::from(budget.frees));
        let layout = hold.group().layout().clone();
        let mut work = engine.begin(reservation, Some(hold))?;
        let outcome = cursor.step(&mut work.edit(locked.guard()), addr, budget, &layout)?;
        if outcome.freed == 0 && !outcome.done {
            return Err(FsError::Inconsistent(format!(
                "inode {addr}: block {block} was to be freed and was not"
            )));
        }
        locked.commit(work, false)?;
        if outcome.done {
            break;
        }
    }
    Ok(())
}
