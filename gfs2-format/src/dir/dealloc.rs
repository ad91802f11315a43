//! Freeing the leaves of a hashed directory that is being deleted.

use super::table::{Chain, Dir, Run};
use crate::addr::BlockAddr;
use crate::edit::{BlockEdit, BlockRead, BlockUse};
use crate::error::Result;
use crate::ondisk::{Dinode, FileType};
use crate::tree::{StepBudget, StepOutcome, discharge, edit_dinode, runs};

/// Frees the leaves of a hashed directory that is being deleted, in steps; used like [`crate::tree::FreeCursor`].
/// Leaves go from the head of their chain while the slots of the hash table are pointed at what remains, so that
/// a new cursor resumes after a crash. With the last one the inode becomes a regular file, whose data (the hash
/// table) is then freed as any file's.
#[derive(Clone, Debug, Default)]
pub struct LeafCursor {
    slot: u32,
}

impl LeafCursor {
    /// From the first slot.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves to the next leaf to free and tells which it is; `None` when none is left, or nothing to do with this
    /// inode (linear directory, no directory). Reads only.
    ///
    /// # Errors
    /// As [`super::lookup`].
    pub fn seek<R: BlockRead + ?Sized>(&mut self, reader: &R, dir: BlockAddr) -> Result<Option<BlockAddr>> {
        let Some(dir) = open(reader, dir)? else {
            return Ok(None);
        };
        while self.slot < dir.slots() {
            let raw = dir.raw_slot(reader, self.slot)?;
            let found = reader
                .geometry()
                .check_pointer(raw, dir.addr, "dinode", "hash table slot")?;
            if found.is_some() {
                return Ok(found);
            }
            let empty = dir.equal_slots(reader, self.slot)?;
            self.slot = self.slot.saturating_add(empty.max(1));
        }
        Ok(None)
    }

    /// Frees leaves within the budget, only those for which `in_group` holds. The first leaf's slots are rewritten
    /// whatever the budget of edits says: a leaf may own up to half of the hash blocks.
    ///
    /// # Errors
    /// As [`super::lookup`], and those of [`BlockEdit`].
    pub fn step<E: BlockEdit + ?Sized>(
        &mut self,
        edit: &mut E,
        dir: BlockAddr,
        budget: StepBudget,
        in_group: &dyn Fn(BlockAddr) -> bool,
    ) -> Result<StepOutcome> {
        let (mut freed, mut edits) = (0u32, 1u32);
        let frees = budget.frees.max(1);
        while let Some(head) = self
            .seek(edit, dir)?
            .filter(|head| in_group(*head) && freed < frees)
        {
            let opened = Dir::open(edit, dir)?;
            let run = Run {
                start: self.slot,
                len: opened.equal_slots(edit, self.slot)?,
            };
            let hash_blocks = opened.blocks_of(edit.geometry(), run);
            edits = edits.saturating_add(hash_blocks);
            if freed > 0 && edits > budget.edits.max(2) {
                break;
            }
            let (gone, rest) = take_leaves(edit, head, frees.saturating_sub(freed), in_group)?;
            for run in runs(&gone) {
                edit.free(run, BlockUse::Meta)?;
            }
            opened.set_slots(edit, run, rest.map_or(0, BlockAddr::get))?;
            discharge(edit, dir, gone.len() as u32)?;
            freed = freed.saturating_add(gone.len() as u32);
        }
        let done = self.seek(edit, dir)?.is_none();
        if done {
            self.finish(edit, dir)?;
        }
        Ok(StepOutcome { freed, done })
    }

    /// Makes a hashed directory without leaves a regular file, if the last step has not; needed only when
    /// [`LeafCursor::seek`] found nothing at first.
    ///
    /// # Errors
    /// As [`LeafCursor::step`].
    pub fn finish<E: BlockEdit + ?Sized>(&mut self, edit: &mut E, dir: BlockAddr) -> Result<()> {
        if open(edit, dir)?.is_none() || self.seek(edit, dir)?.is_some() {
            return Ok(());
        }
        edit_dinode(edit, dir, |di| {
            let permissions = di.mode.get() & 0o7777;
            di.mode = (FileType::Regular.mode_bits() | permissions).into();
        })
    }
}

/// The directory, if it is a hashed one.
fn open<R: BlockRead + ?Sized>(reader: &R, addr: BlockAddr) -> Result<Option<Dir>> {
    let block = reader.read(addr)?;
    let di = Dinode::decode(&block, addr, reader.geometry())?;
    if !di.is_dir() {
        return Ok(None);
    }
    Ok(Some(Dir::open(reader, addr)?).filter(Dir::is_hashed))
}

/// The first leaves of a chain that one step may free, and the first one that it may not.
fn take_leaves<E: BlockEdit + ?Sized>(
    edit: &E,
    head: BlockAddr,
    most: u32,
    in_group: &dyn Fn(BlockAddr) -> bool,
) -> Result<(Vec<BlockAddr>, Option<BlockAddr>)> {
    let mut chain = Chain::new(head);
    let mut gone = Vec::new();
    while let Some(leaf) = chain.step(edit)? {
        if gone.len() as u64 >= u64::from(most) || !in_group(leaf.addr) {
            return Ok((gone, Some(leaf.addr)));
        }
        gone.push(leaf.addr);
    }
    Ok((gone, None))
}
