//! Freeing xattr blocks in steps.

use super::chain::EaBlocks;
use super::record::{self, Value, pointers_mut};
use super::write::set_pointer;
use crate::addr::BlockAddr;
use crate::edit::{BlockEdit, BlockRead, BlockUse};
use crate::error::Result;
use crate::ondisk::{DinodeFlags, EaHeader, EaType, MetaHeader, MetaType, view_mut};
use crate::tree::{StepBudget, StepOutcome, discharge, edit_dinode, runs};

/// Frees xattr blocks in steps; used like [`crate::tree::FreeCursor`], and resumable like it: what it has done
/// stands on disk. Not to be kept across other changes of the xattrs.
#[derive(Clone, Debug)]
pub struct EaCursor {
    all: bool,
    /// EA blocks, from the first on, that are known to hold no value blocks to free.
    clean: usize,
}

/// The next thing to free.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// Value blocks of the record at `offset` in `block`, `first` the first of them.
    Values {
        block: BlockAddr,
        offset: usize,
        first: BlockAddr,
    },
    /// The record has no value blocks any more but still says it has.
    Emptied { block: BlockAddr, offset: usize },
    /// The last EA block of the list.
    Listed {
        list: BlockAddr,
        index: usize,
        block: BlockAddr,
    },
    /// The block of `di_eattr`.
    Root(BlockAddr),
}

impl EaCursor {
    /// Frees the value blocks of unused records only.
    #[must_use]
    pub const fn reclaim() -> Self {
        Self { all: false, clean: 0 }
    }

    /// Frees everything: value blocks, EA blocks, the block of `di_eattr`; for an inode that is being deleted.
    #[must_use]
    pub const fn dealloc() -> Self {
        Self { all: true, clean: 0 }
    }

    /// Finds the next block to free; `None` when none is left. Reads only.
    ///
    /// # Errors
    /// As [`super::Xattrs::get`].
    pub fn seek<R: BlockRead + ?Sized>(&mut self, reader: &R, addr: BlockAddr) -> Result<Option<BlockAddr>> {
        Ok(self.next(reader, addr)?.map(|next| match next {
            Next::Values { first, .. } => first,
            Next::Emptied { block, .. } | Next::Listed { block, .. } | Next::Root(block) => block,
        }))
    }

    fn next<R: BlockRead + ?Sized>(&mut self, reader: &R, addr: BlockAddr) -> Result<Option<Next>> {
        let found = EaBlocks::open(reader, addr)?;
        while let Some(block) = found.blocks.get(self.clean) {
            let values = self.values_of(reader, *block)?;
            if values.is_some() {
                return Ok(values);
            }
            self.clean = self.clean.saturating_add(1);
        }
        if !self.all {
            return Ok(None);
        }
        Ok(match (&found.indirect, found.blocks.last()) {
            (Some((list, _)), Some(block)) => Some(Next::Listed {
                list: *list,
                index: found.blocks.len().saturating_sub(1),
                block: *block,
            }),
            (Some((list, _)), None) => Some(Next::Root(*list)),
            (None, Some(block)) => Some(Next::Root(*block)),
            (None, None) => None,
        })
    }

    /// The first record of an EA block that holds value blocks to free.
    fn values_of<R: BlockRead + ?Sized>(&self, reader: &R, block: BlockAddr) -> Result<Option<Next>> {
        let bytes = reader.read(block)?;
        MetaHeader::check(&bytes, block, MetaType::Ea)?;
        for record in record::records(&bytes, block, u8::MAX) {
            let record = record?;
            let Value::Blocks(pointers) = record.value else {
                continue;
            };
            if !self.all && record.space.is_some() {
                continue;
            }
            let offset = record.offset;
            let raw = pointers
                .iter()
                .map(|p| p.get())
                .find(|raw| *raw != 0)
                .unwrap_or(0);
            let first = reader
                .geometry()
                .check_pointer(raw, block, "ea_header", "value pointer")?;
            return Ok(Some(match first {
                Some(first) => Next::Values { block, offset, first },
                None => Next::Emptied { block, offset },
            }));
        }
        Ok(None)
    }

    /// Frees blocks within the budget, only those for which `in_group` holds.
    ///
    /// # Errors
    /// As [`super::Xattrs::get`], and those of [`BlockEdit`].
    pub fn step<E: BlockEdit + ?Sized>(
        &mut self,
        edit: &mut E,
        addr: BlockAddr,
        budget: StepBudget,
        in_group: &dyn Fn(BlockAddr) -> bool,
    ) -> Result<StepOutcome> {
        let (mut freed, mut edits) = (0u32, 1u32);
        let frees = budget.frees.max(1);
        while let Some(next) = self.next(edit, addr)? {
            edits = edits.saturating_add(1);
            if freed >= frees || edits > budget.edits.max(2) {
                return Ok(StepOutcome { freed, done: false });
            }
            let gone = match next {
                Next::Values { block, offset, first } if in_group(first) => {
                    free_values(edit, block, offset, frees.saturating_sub(freed), in_group)?
                }
                Next::Listed { list, index, block } if in_group(block) => {
                    set_pointer(edit, list, index, 0)?;
                    vec![block]
                }
                Next::Root(block) if in_group(block) => {
                    edit_dinode(edit, addr, |di| {
                        di.eattr = 0.into();
                        di.set_flags(di.flags() - DinodeFlags::EA_INDIRECT);
                    })?;
                    vec![block]
                }
                Next::Emptied { block, offset } => {
                    forget_values(edit, block, offset)?;
                    Vec::new()
                }
                _ => return Ok(StepOutcome { freed, done: false }),
            };
            if !gone.is_empty() {
                for run in runs(&gone) {
                    edit.free(run, BlockUse::Meta)?;
                }
                discharge(edit, addr, gone.len() as u32)?;
            }
            freed = freed.saturating_add(gone.len() as u32);
        }
        Ok(StepOutcome { freed, done: true })
    }
}

/// Zeroes the pointers of a record that may be freed in this step; the record forgets them with the last.
fn free_values<E: BlockEdit + ?Sized>(
    edit: &mut E,
    block: BlockAddr,
    offset: usize,
    most: u32,
    in_group: &dyn Fn(BlockAddr) -> bool,
) -> Result<Vec<BlockAddr>> {
    let geometry = edit.geometry().clone();
    let mut gone = Vec::new();
    let pointers = pointers_mut(edit.edit(block)?, offset, block)?;
    for slot in pointers.iter_mut() {
        let value = geometry.check_pointer(slot.get(), block, "ea_header", "value pointer")?;
        let Some(value) = value.filter(|value| in_group(*value)) else {
            continue;
        };
        if gone.len() as u64 >= u64::from(most) {
            break;
        }
        gone.push(value);
        *slot = 0.into();
    }
    if pointers.iter().all(|slot| slot.get() == 0) {
        forget_values(edit, block, offset)?;
    }
    Ok(gone)
}

/// A record whose value blocks are gone becomes an unused one without any, and joins the record before it.
fn forget_values<E: BlockEdit + ?Sized>(edit: &mut E, block: BlockAddr, offset: usize) -> Result<()> {
    let bytes = edit.read(block)?;
    let mut before = None;
    for record in record::records(&bytes, block, u8::MAX) {
        let record = record?;
        if record.offset == offset {
            before = record.before;
        }
    }
    let bytes = edit.edit(block)?;
    let header: &mut EaHeader = view_mut(bytes, offset, block)?;
    header.ea_type = EaType::Unused as u8;
    header.num_ptrs = 0;
    record::delete(bytes, offset, before, block)
}
