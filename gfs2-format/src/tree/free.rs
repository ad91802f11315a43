//! Freeing ranges in steps, and truncation around it.

use super::grow::{data_use, discharge};
use super::path::{PointerBlock, Root, read_indirect};
use super::ptrs::{clear_payload, dinode_of, edit_dinode, ptr_offset, ptrs, ptrs_mut};
use crate::addr::{BlockAddr, Extent, FileBlock};
use crate::edit::{BlockEdit, BlockRead, BlockUse};
use crate::error::{Error, Expected, Result};
use crate::ondisk::{DINODE_SIZE, Dinode, DinodeFlags, view_mut};
use crate::time::Timestamp;

/// Pointer blocks a step may look at once it has freed something.
const LOOKS: u32 = 64;

/// Bounds of one step of freeing, so that it fits one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepBudget {
    /// Most blocks freed; at least 1.
    pub frees: u32,
    /// Most metadata blocks edited (the dinode included, bitmaps not); at least 2.
    pub edits: u32,
}

/// What a step of freeing did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct StepOutcome {
    /// Blocks freed.
    pub freed: u32,
    /// Nothing is left to free in the cursor's range.
    pub done: bool,
}

/// Frees a range of logical blocks in steps: data pointers first, then each higher level of indirect blocks that
/// lie wholly in the range. The cursor is only a memory of how far the sweep has come: a new one over the same
/// range resumes after a crash. Height, size and flags stay as they are.
///
/// ```text
/// let mut cursor = FreeCursor::new(from, end);
/// while let Some(block) = cursor.seek(&reader, addr)? {
///     // lock the rgrp of `block`, begin a transaction
///     cursor.step(&mut edit, addr, budget, &|b| rgrp.contains(b))?;
///     // commit
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreeCursor {
    from: u64,
    end: u64,
    /// Level of the pointers being freed; `None` before the first look.
    level: Option<u16>,
    pos: u64,
    done: bool,
}

/// Pointers of one pointer block that a step may free.
struct Batch {
    indexes: Vec<usize>,
    blocks: Vec<BlockAddr>,
    /// Position of the first pointer that has to wait for another step.
    waits: Option<u64>,
}

impl FreeCursor {
    /// Frees the logical blocks `from..end`; `end` = `None` is the end of all trees.
    #[must_use]
    pub fn new(from: FileBlock, end: Option<FileBlock>) -> Self {
        Self {
            from: from.get(),
            end: end.map_or(u64::MAX, FileBlock::get),
            level: None,
            pos: from.get(),
            done: false,
        }
    }

    /// Moves to the next block to free and tells which it is, so that the caller can lock its rgrp; `None` when
    /// nothing is left. Reads only.
    ///
    /// # Errors
    /// As [`super::map`].
    pub fn seek<R: BlockRead + ?Sized>(&mut self, reader: &R, addr: BlockAddr) -> Result<Option<BlockAddr>> {
        let mut visits = 0;
        while let Some(found) = self.next_block(reader, addr, &mut visits)? {
            let first = self.freeable(reader, &found)?.next();
            if let Some((index, block)) = first {
                self.pos = found.start_of(index);
                return Ok(Some(block?));
            }
            self.pos = found.end()?;
        }
        Ok(None)
    }

    /// The pointer block at the cursor, which moves to higher levels by itself; `None` at its end.
    fn next_block<R: BlockRead + ?Sized>(
        &mut self,
        reader: &R,
        addr: BlockAddr,
        visits: &mut u64,
    ) -> Result<Option<PointerBlock>> {
        let block = reader.read(addr)?;
        let di = Dinode::decode(&block, addr, reader.geometry())?;
        let root = Root::new(di, addr, reader.geometry());
        let Some(bottom) = root.height.checked_sub(1).filter(|_| !self.done) else {
            self.done = true;
            return Ok(None);
        };
        let mut level = self.level.unwrap_or(bottom).min(bottom);
        loop {
            self.level = Some(level);
            let found = root.find(reader, &block, level, self.pos, self.end, visits)?;
            if found.is_some() {
                return Ok(found);
            }
            *visits = 0;
            self.pos = self.from;
            match level.checked_sub(1) {
                Some(above) => level = above,
                None => {
                    self.done = true;
                    return Ok(None);
                }
            }
        }
    }

    /// Present pointers from the cursor on whose whole coverage lies in the range.
    fn freeable<'a, R: BlockRead + ?Sized>(
        &'a self,
        reader: &'a R,
        found: &'a PointerBlock,
    ) -> Result<impl Iterator<Item = (usize, Result<BlockAddr>)> + use<'a, R>> {
        let start = found.index_of(self.pos);
        let (structure, field) = found.field();
        let present = found.ptrs()?.iter().enumerate().skip(start);
        Ok(present
            .filter(|(_, raw)| raw.get() != 0)
            .map(|(index, raw)| (index, found.start_of(index), raw.get()))
            .skip_while(|(_, first, _)| *first < self.from)
            .take_while(|(_, first, _)| first.saturating_add(found.span) <= self.end)
            .map(move |(index, _, raw)| {
                let block = reader.geometry().check_address(raw, found.addr, structure, field);
                (index, block)
            }))
    }

    /// Frees what it can within the budget, only blocks for which `in_group` holds; zeroes their pointers and
    /// lowers
    /// `di_blocks` in the same edit. Frees nothing when the next block is of another group.
    ///
    /// # Errors
    /// As [`super::map`], and those of [`BlockEdit`].
    pub fn step<E: BlockEdit + ?Sized>(
        &mut self,
        edit: &mut E,
        addr: BlockAddr,
        budget: StepBudget,
        in_group: &dyn Fn(BlockAddr) -> bool,
    ) -> Result<StepOutcome> {
        let usage = data_use(&dinode_of(edit, addr)?);
        let (mut freed, mut edits, mut looks, mut visits) = (0u32, 1u32, 0u32, 0u64);
        let frees = budget.frees.max(1);
        while let Some(found) = self.next_block(edit, addr, &mut visits)? {
            looks = looks.saturating_add(1);
            if freed > 0 && looks > LOOKS {
                break;
            }
            let batch = self.gather(edit, &found, frees.saturating_sub(freed), in_group)?;
            if !batch.blocks.is_empty() {
                edits = edits.saturating_add(u32::from(found.level > 0));
                if edits > budget.edits.max(2) {
                    break;
                }
                freed = freed.saturating_add(batch.blocks.len() as u32);
                self.free_batch(edit, addr, &found, &batch, usage)?;
            }
            if let Some(pos) = batch.waits {
                self.pos = pos;
                break;
            }
            self.pos = found.end()?;
        }
        Ok(StepOutcome {
            freed,
            done: self.done,
        })
    }

    fn gather<E: BlockEdit + ?Sized>(
        &self,
        edit: &E,
        found: &PointerBlock,
        most: u32,
        in_group: &dyn Fn(BlockAddr) -> bool,
    ) -> Result<Batch> {
        let mut batch = Batch {
            indexes: Vec::new(),
            blocks: Vec::new(),
            waits: None,
        };
        for (index, block) in self.freeable(edit, found)? {
            let block = block?;
            if (batch.blocks.len() as u64) < u64::from(most) && in_group(block) {
                batch.indexes.push(index);
                batch.blocks.push(block);
            } else {
                batch.waits.get_or_insert(found.start_of(index));
            }
        }
        Ok(batch)
    }

    /// Frees the blocks of one pointer block and zeroes their pointers.
    fn free_batch<E: BlockEdit + ?Sized>(
        &self,
        edit: &mut E,
        addr: BlockAddr,
        found: &PointerBlock,
        batch: &Batch,
        usage: BlockUse,
    ) -> Result<()> {
        let bottom = found.span == 1;
        if !bottom {
            for child in &batch.blocks {
                check_empty(edit, *child, found.addr)?;
            }
        }
        let usage = if bottom { usage } else { BlockUse::Meta };
        for run in runs(&batch.blocks) {
            edit.free(run, usage)?;
        }
        let array = ptrs_mut(edit.edit(found.addr)?, ptr_offset(found.level), found.addr)?;
        for index in &batch.indexes {
            if let Some(slot) = array.get_mut(*index) {
                *slot = 0.into();
            }
        }
        discharge(edit, addr, batch.blocks.len() as u32)
    }
}

/// An indirect block is freed only after all its pointers: anything left would be lost.
fn check_empty<E: BlockEdit + ?Sized>(edit: &E, child: BlockAddr, parent: BlockAddr) -> Result<()> {
    let block = read_indirect(edit, child, parent, &[])?;
    let left = ptrs(&block, ptr_offset(1), child)?.iter().find(|p| p.get() != 0);
    match left {
        Some(raw) => Err(Error::corrupt(
            child,
            "indirect block",
            "pointer",
            raw.get(),
            Expected::Rule("0 in an indirect block that is freed"),
        )),
        None => Ok(()),
    }
}

/// Neighbouring blocks, in the order given, as runs.
pub(crate) fn runs(blocks: &[BlockAddr]) -> impl Iterator<Item = Extent> {
    blocks
        .chunk_by(|a, b| a.get().checked_add(1) == Some(b.get()))
        .filter_map(|run| {
            let start = *run.first()?;
            Some(Extent {
                start,
                len: u32::try_from(run.len()).ok()?,
            })
        })
}

/// First edit of a truncate. Stores size and times. A stuffed inode gets its tail zeroed, and moves its bytes out
/// when the new size does not fit (costs as [`super::unstuff`]); a tree that becomes shorter gets
/// `TRUNC_IN_PROG`, and the cursor that frees its end is returned: the truncate must then be ended with
/// [`truncate_finish`]. `None`: nothing more to do. Zeroing the tail of the last remaining block of a tree is the
/// caller's business.
///
/// # Errors
/// As [`super::map`], and those of [`BlockEdit`].
pub fn truncate_begin<E: BlockEdit + ?Sized>(
    edit: &mut E,
    addr: BlockAddr,
    size: u64,
    now: Timestamp,
) -> Result<Option<FreeCursor>> {
    let di = dinode_of(edit, addr)?;
    let stuffed = di.height.get() == 0;
    if stuffed && size > edit.geometry().max_stuffed() {
        super::unstuff(edit, addr)?;
    }
    let shorter = size < di.size.get();
    let bytes = edit.edit(addr)?;
    if stuffed && shorter {
        let keep = DINODE_SIZE.saturating_add(usize::try_from(size).unwrap_or(usize::MAX));
        bytes.get_mut(keep..).unwrap_or_default().fill(0);
    }
    let target: &mut Dinode = view_mut(bytes, 0, addr)?;
    target.size = size.into();
    target.set_mtime(now);
    target.set_ctime(now);
    if stuffed || !shorter {
        return Ok(None);
    }
    target.set_flags(di.flags() | DinodeFlags::TRUNC_IN_PROG);
    truncate_resume(edit, addr).map(Some)
}

/// The cursor that resumes a truncate to the present `di_size` (`TRUNC_IN_PROG` found set).
///
/// # Errors
/// As [`super::map`].
pub fn truncate_resume<R: BlockRead + ?Sized>(reader: &R, addr: BlockAddr) -> Result<FreeCursor> {
    let size = dinode_of(reader, addr)?.size.get();
    let from = size.div_ceil(u64::from(reader.geometry().bsize()));
    Ok(FreeCursor::new(FileBlock::new(from), None))
}

/// Last edit of a truncate: clears `TRUNC_IN_PROG`; an inode of size 0 becomes stuffed again.
///
/// # Errors
/// As [`super::map`], and those of [`BlockEdit`].
pub fn truncate_finish<E: BlockEdit + ?Sized>(edit: &mut E, addr: BlockAddr) -> Result<()> {
    let di = dinode_of(edit, addr)?;
    if di.size.get() == 0 && di.height.get() > 0 {
        let block = edit.read(addr)?;
        let left = ptrs(&block, ptr_offset(0), addr)?.iter().find(|p| p.get() != 0);
        if let Some(raw) = left {
            let expected = Expected::Rule("0 after everything was freed");
            return Err(Error::corrupt(addr, "dinode", "pointer", raw.get(), expected));
        }
        clear_payload(edit.edit(addr)?);
        edit_dinode(edit, addr, |di| {
            di.height = 0.into();
            di.goal_meta = addr.get().into();
            di.goal_data = addr.get().into();
        })?;
    }
    edit_dinode(edit, addr, |target| {
        target.set_flags(di.flags() - DinodeFlags::TRUNC_IN_PROG);
    })
}
