//! Unstuffing, growing, allocating.

use super::map::run_len;
use super::path::{Metapath, read_indirect};
use super::ptrs::{clear_payload, dinode_of, edit_dinode, ptr_offset, ptrs, put_ptr, stamp};
use super::read::stuffed;
use crate::addr::{BlockAddr, Extent, FileBlock};
use crate::edit::{BlockEdit, BlockUse};
use crate::error::{Error, Expected, Result};
use crate::geometry::MAX_HEIGHT;
use crate::ondisk::{Dinode, DinodeFlags, META_HEADER_SIZE, MetaType, view_mut};

/// How the data blocks of this inode are used: hash blocks of a directory are metadata, jdata is logged.
#[must_use]
pub fn data_use(dinode: &Dinode) -> BlockUse {
    if dinode.is_dir() {
        BlockUse::Meta
    } else if dinode.flags().contains(DinodeFlags::JDATA) {
        BlockUse::JournaledData
    } else {
        BlockUse::Data
    }
}

/// Where to look for blocks near those the inode got last.
pub(crate) fn goal_of(dinode: &Dinode, addr: BlockAddr) -> BlockAddr {
    match dinode.goal_meta.get() {
        0 => addr,
        goal => BlockAddr::new(goal),
    }
}

/// Adds a fresh run to `di_blocks` and makes its end the goal.
pub(crate) fn charge<E: BlockEdit + ?Sized>(edit: &mut E, addr: BlockAddr, run: Extent) -> Result<()> {
    let last = run
        .start
        .get()
        .saturating_add(u64::from(run.len).saturating_sub(1));
    edit_dinode(edit, addr, |di| {
        di.blocks = di.blocks.get().saturating_add(u64::from(run.len)).into();
        di.goal_meta = last.into();
        di.goal_data = last.into();
    })
}

/// Takes freed blocks off `di_blocks`, which must keep the dinode itself.
pub(crate) fn discharge<E: BlockEdit + ?Sized>(edit: &mut E, addr: BlockAddr, freed: u32) -> Result<()> {
    let blocks = dinode_of(edit, addr)?.blocks.get();
    let left = blocks
        .checked_sub(u64::from(freed))
        .filter(|left| *left > 0)
        .ok_or_else(|| {
            let expected = Expected::Range(u64::from(freed).saturating_add(1), u64::MAX);
            Error::corrupt(addr, "dinode", "di_blocks", blocks, expected)
        })?;
    edit_dinode(edit, addr, |di| di.blocks = left.into())
}

/// Hands out metadata blocks for one inode, asking for as many at once as are still wanted.
pub(crate) struct Supply {
    addr: BlockAddr,
    wanted: u32,
    run: Option<Extent>,
}

impl Supply {
    pub(crate) const fn new(addr: BlockAddr, wanted: u32) -> Self {
        Self {
            addr,
            wanted,
            run: None,
        }
    }

    /// A fresh block of `kind`, charged to the inode. The caller takes no more than it said.
    pub(crate) fn take<E: BlockEdit + ?Sized>(&mut self, edit: &mut E, kind: MetaType) -> Result<BlockAddr> {
        let run = match self.run.filter(|run| run.len > 0) {
            Some(run) => run,
            None => {
                let goal = goal_of(&dinode_of(edit, self.addr)?, self.addr);
                let run = edit.alloc(self.wanted.max(1), goal, BlockUse::Meta)?;
                charge(edit, self.addr, run)?;
                self.wanted = self.wanted.saturating_sub(run.len);
                run
            }
        };
        self.run = Some(Extent {
            start: BlockAddr::new(run.start.get().saturating_add(1)),
            len: run.len.saturating_sub(1),
        });
        stamp(edit.create(run.start)?, kind, run.start)?;
        Ok(run.start)
    }
}

/// Turns a stuffed inode into one with a tree of height 1: its bytes move to a block of their own (a directory's
/// with a meta header), unless it is empty. Does nothing to one that has a tree. Returns the new data block.
///
/// # Errors
/// As [`super::map`], and those of [`BlockEdit`].
pub fn unstuff<E: BlockEdit + ?Sized>(edit: &mut E, addr: BlockAddr) -> Result<Option<BlockAddr>> {
    let di = dinode_of(edit, addr)?;
    if di.height.get() > 0 {
        return Ok(None);
    }
    if di.is_dir() && !di.flags().contains(DinodeFlags::EXHASH) {
        return Err(Error::corrupt(
            addr,
            "dinode",
            "di_flags",
            u64::from(di.flags.get()),
            Expected::Rule("EXHASH in a directory whose payload moves out"),
        ));
    }
    let block = edit.read(addr)?;
    let payload = stuffed(&block, addr, edit.geometry())?;
    let new = if payload.is_empty() {
        None
    } else {
        Some(move_out(edit, addr, &di, payload)?)
    };
    let bytes = edit.edit(addr)?;
    clear_payload(bytes);
    if let Some(new) = new {
        put_ptr(bytes, ptr_offset(0), 0, new, addr)?;
    }
    let di: &mut Dinode = view_mut(bytes, 0, addr)?;
    di.height = 1.into();
    Ok(new)
}

/// Writes stuffed bytes to a fresh block.
fn move_out<E: BlockEdit + ?Sized>(
    edit: &mut E,
    addr: BlockAddr,
    di: &Dinode,
    payload: &[u8],
) -> Result<BlockAddr> {
    let usage = data_use(di);
    if usage == BlockUse::Meta {
        let new = Supply::new(addr, 1).take(edit, MetaType::Jd)?;
        let room = edit.edit(new)?.get_mut(META_HEADER_SIZE..).unwrap_or_default();
        room.iter_mut().zip(payload).for_each(|(to, from)| *to = *from);
        return Ok(new);
    }
    let run = edit.alloc(1, goal_of(di, addr), usage)?;
    charge(edit, addr, run)?;
    edit.write_data(run.start, usage, payload)?;
    Ok(run.start)
}

/// Grows the tree (which is no stuffed one) to `height`, with indirect blocks along its index 0 even when it is
/// empty; does nothing to one that is high enough.
///
/// # Errors
/// As [`unstuff`].
pub fn grow_height<E: BlockEdit + ?Sized>(edit: &mut E, addr: BlockAddr, height: u16) -> Result<()> {
    let di = dinode_of(edit, addr)?;
    let old = di.height.get();
    if height <= old {
        return Ok(());
    }
    let most = edit.geometry().max_height();
    if height > most || old == 0 {
        return Err(Error::TooLarge {
            what: "height of a tree",
            found: u64::from(height),
            limit: u64::from(most),
        });
    }
    let added = height - old;
    let mut supply = Supply::new(addr, u32::from(added));
    let block = edit.read(addr)?;
    let pointers = ptrs(&block, ptr_offset(0), addr)?;
    // The deepest new block takes over the dinode's pointers, the others point at the one below.
    let mut below = supply.take(edit, MetaType::In)?;
    let array = super::ptrs::ptrs_mut(edit.edit(below)?, ptr_offset(1), below)?;
    array.iter_mut().zip(pointers).for_each(|(to, from)| *to = *from);
    for _ in 1..added {
        let above = supply.take(edit, MetaType::In)?;
        put_ptr(edit.edit(above)?, ptr_offset(1), 0, below, above)?;
        below = above;
    }
    let bytes = edit.edit(addr)?;
    clear_payload(bytes);
    put_ptr(bytes, ptr_offset(0), 0, below, addr)?;
    let di: &mut Dinode = view_mut(bytes, 0, addr)?;
    di.height = height.into();
    Ok(())
}

/// Blocks found or made by [`map_or_alloc`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// The run that stands at the logical block asked for.
    pub extent: Extent,
    /// Freshly allocated: the caller must give every block of it its first contents in the same edit
    /// ([`BlockEdit::write_data`]).
    pub new: bool,
}

/// Maps up to `want` logical blocks from `lblock` on, allocating where there is a hole: unstuffs, grows the
/// height, adds indirect blocks, then allocates one contiguous run within one bottom pointer block. Keeps
/// `di_blocks`,
/// `di_height` and the goals. `di_size` and the times are the caller's business.
///
/// # Errors
/// As [`unstuff`]; [`crate::Error::TooLarge`] for a logical block no tree can reach.
pub fn map_or_alloc<E: BlockEdit + ?Sized>(
    edit: &mut E,
    addr: BlockAddr,
    lblock: FileBlock,
    want: u32,
) -> Result<Allocated> {
    let height = dinode_of(edit, addr)?.height.get();
    let needed = edit.geometry().height_for(lblock, height);
    let Some(path) = Metapath::of(edit.geometry(), lblock, needed) else {
        return Err(Error::TooLarge {
            what: "logical block",
            found: lblock.get(),
            limit: super::coverage(edit.geometry(), needed),
        });
    };
    if height == 0 {
        unstuff(edit, addr)?;
    }
    grow_height(edit, addr, needed)?;
    let (bottom, level) = fill_path(edit, addr, &path)?;
    let index = path.indexes().last().copied().map_or(0, usize::from);
    let block = edit.read(bottom)?;
    let array = ptrs(&block, ptr_offset(level), bottom)?;
    let rest = array.get(index..).unwrap_or_default();
    let raw = rest.first().map_or(0, |p| p.get());
    let want = want.max(1);
    if let Some(start) = edit
        .geometry()
        .check_pointer(raw, bottom, "indirect block", "pointer")?
    {
        let len = run_len(rest, start, u64::from(want));
        let last = start.get().saturating_add(u64::from(len) - 1);
        edit.geometry()
            .check_address(last, bottom, "indirect block", "pointer")?;
        let extent = Extent { start, len };
        return Ok(Allocated { extent, new: false });
    }
    let hole = rest
        .iter()
        .take(want as usize)
        .take_while(|p| p.get() == 0)
        .count() as u32;
    let di = dinode_of(edit, addr)?;
    let extent = edit.alloc(hole.max(1), goal_of(&di, addr), data_use(&di))?;
    charge(edit, addr, extent)?;
    let array = super::ptrs::ptrs_mut(edit.edit(bottom)?, ptr_offset(level), bottom)?;
    let slots = array.get_mut(index..).unwrap_or_default();
    for (slot, block) in slots.iter_mut().zip(extent.blocks()) {
        *slot = block.get().into();
    }
    Ok(Allocated { extent, new: true })
}

/// Walks down to the bottom pointer block of a path and adds the indirect blocks that are missing on the way.
fn fill_path<E: BlockEdit + ?Sized>(
    edit: &mut E,
    addr: BlockAddr,
    path: &Metapath,
) -> Result<(BlockAddr, u16)> {
    let mut ancestors = [addr; MAX_HEIGHT];
    let mut here = addr;
    let mut level = 0u16;
    let mut supply: Option<Supply> = None;
    let (_, inner) = path.indexes().split_last().unwrap_or((&0, &[]));
    for index in inner {
        let index = usize::from(*index);
        let block = edit.read(here)?;
        let raw = ptrs(&block, ptr_offset(level), here)?
            .get(index)
            .map_or(0, |p| p.get());
        let structure = if level == 0 { "dinode" } else { "indirect block" };
        let child = match edit.geometry().check_pointer(raw, here, structure, "pointer")? {
            Some(child) => {
                let way = ancestors.get(..usize::from(level)).unwrap_or_default();
                read_indirect(edit, child, here, way)?;
                child
            }
            None => {
                // From the first missing block on, all further ones are missing too.
                let missing = inner.len().saturating_sub(usize::from(level)) as u32;
                let source = supply.get_or_insert_with(|| Supply::new(addr, missing));
                let child = source.take(edit, MetaType::In)?;
                put_ptr(edit.edit(here)?, ptr_offset(level), index, child, here)?;
                child
            }
        };
        if let Some(slot) = ancestors.get_mut(usize::from(level)) {
            *slot = here;
        }
        here = child;
        level = level.saturating_add(1);
    }
    Ok((here, level))
}
