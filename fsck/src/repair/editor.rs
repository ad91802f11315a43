//! The volume under repair: reads through the changes made so far, collects the edits of one repair, and allocates and
//! frees blocks against the bitmaps and what the check has seen.
//!
//! Invariants: the edits of a repair reach the overlay together, with [`Editor::save`], or not at all; a block is
//! allocated only when its bitmap says free, nothing uses it, and it was not freed in this run; counts of the resource
//! group follow every change of a bitmap. Must not know what is damaged: that is for the classes.

use super::ledger::Ledger;
use crate::observed::Observed;
use crate::pass::directories::Found;
use crate::pass::system::System;
use crate::table::Inodes;
use gfs2_format::bitmap::{BitmapSlice, RgrpLayout};
use gfs2_format::device::BlockDevice;
use gfs2_format::log::LogTime;
use gfs2_format::ondisk::{BlockState, MetaHeader, MetaType, OnDisk, Rgrp, Superblock, view, view_mut};
use gfs2_format::volume::DeviceReader;
use gfs2_format::{
    Block, BlockAddr, BlockEdit, BlockRead, BlockUse, Error, Expected, Extent, FormalIno, Geometry, InodeNum,
    Jid,
};
use std::collections::BTreeMap;
use zerocopy::FromBytes;

/// What a round of the check has seen, for the repairs.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) observed: Observed,
    pub(crate) inodes: Inodes,
    pub(crate) directories: Found,
    pub(crate) system: System,
    /// The round went to its end: every use of a block is known, so blocks can be allocated.
    pub(crate) complete: bool,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Editor<'e> {
    overlay: &'e dyn BlockDevice,
    raw: &'e dyn BlockDevice,
    geometry: Geometry,
    pub(crate) superblock: Superblock,
    pub(crate) seen: Seen,
    pub(crate) now: LogTime,
    ledger: &'e mut Ledger,
    /// Edits that are not saved.
    blocks: BTreeMap<BlockAddr, Block>,
    /// New states that are not saved.
    states: Vec<(Extent, BlockState)>,
    allocated: Vec<Extent>,
    /// The group that had room last.
    group: usize,
}

impl<'e> Editor<'e> {
    pub(crate) fn new(
        (overlay, raw): (&'e dyn BlockDevice, &'e dyn BlockDevice),
        geometry: Geometry,
        superblock: Superblock,
        seen: Seen,
        now: LogTime,
        ledger: &'e mut Ledger,
    ) -> Self {
        Self {
            overlay,
            raw,
            geometry,
            superblock,
            seen,
            now,
            ledger,
            blocks: BTreeMap::new(),
            states: Vec::new(),
            allocated: Vec::new(),
            group: 0,
        }
    }

    /// The device with all changes that are saved.
    pub(crate) const fn device(&self) -> &'e dyn BlockDevice {
        self.overlay
    }

    /// Where the rings of journals are written: the device itself (in a dry run the overlay).
    pub(crate) const fn raw(&self) -> &'e dyn BlockDevice {
        self.raw
    }

    /// Makes the edits part of the repaired volume.
    pub(crate) fn save(&mut self) -> Result<(), Error> {
        for (addr, block) in &self.blocks {
            self.overlay.write_at(self.geometry.byte_offset(*addr), block)?;
        }
        self.blocks.clear();
        for (extent, state) in std::mem::take(&mut self.states) {
            for block in extent.blocks() {
                self.seen.observed.note_state(block, state);
            }
            if state == BlockState::Free {
                self.ledger.freed(extent);
            }
        }
        for extent in std::mem::take(&mut self.allocated) {
            self.ledger.allocated(extent);
        }
        Ok(())
    }

    /// Forgets the edits.
    pub(crate) fn discard(&mut self) {
        self.blocks.clear();
        self.states.clear();
        self.allocated.clear();
    }

    /// Has anything been edited and not been saved?
    pub(crate) fn is_changed(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// Changes a structure that stands at byte `offset` of a block.
    pub(crate) fn change<T: OnDisk + FromBytes>(
        &mut self,
        addr: BlockAddr,
        offset: usize,
        change: impl FnOnce(&mut T),
    ) -> Result<(), Error> {
        change(view_mut(self.edit(addr)?, offset, addr)?);
        Ok(())
    }

    /// A copy of a structure that stands at byte `offset` of a block.
    pub(crate) fn get<T: OnDisk + FromBytes + Copy>(
        &self,
        addr: BlockAddr,
        offset: usize,
    ) -> Result<T, Error> {
        let block = self.read(addr)?;
        view::<T>(&block, offset, addr).copied()
    }

    /// Replaces the bytes of a block, whatever it holds now.
    pub(crate) fn replace(&mut self, addr: BlockAddr, bytes: &[u8]) -> Result<(), Error> {
        self.create(addr)?
            .iter_mut()
            .zip(bytes)
            .for_each(|(to, from)| *to = *from);
        Ok(())
    }

    /// Gives a block a fresh header of this type; the rest of it stays.
    pub(crate) fn stamp(&mut self, addr: BlockAddr, kind: MetaType) -> Result<(), Error> {
        self.change::<MetaHeader>(addr, 0, |header| *header = MetaHeader::new(kind, Jid::new(0)))
    }

    /// The group that keeps a block's state, if its bitmap can be used.
    pub(crate) fn group_of(&self, block: BlockAddr) -> Option<&RgrpLayout> {
        let groups = self.seen.observed.groups();
        let after = groups.partition_point(|group| group.layout.addr() <= block);
        let group = groups.get(after.checked_sub(1)?)?;
        (group.layout.contains_data(block) && !group.blind).then_some(&group.layout)
    }

    /// What the bitmap says of a block, edits included.
    pub(crate) fn state(&self, block: BlockAddr) -> Result<BlockState, Error> {
        let slice = self.slice(block)?;
        let bytes = self.read(slice.block)?;
        slice.check_block(&bytes)?;
        slice.state(&bytes, block)
    }

    fn slice(&self, block: BlockAddr) -> Result<BitmapSlice, Error> {
        let slice = self.group_of(block).and_then(|group| group.locate(block));
        slice.ok_or_else(|| {
            let rule = Expected::Rule("a block of a resource group whose bitmap can be used");
            Error::corrupt(block, "rgrp", "block", block.get(), rule)
        })
    }

    /// Sets the state of blocks, whatever it was, and the counts of their groups with it.
    pub(crate) fn set_state(&mut self, extent: Extent, to: BlockState) -> Result<(), Error> {
        let mut at = extent.start;
        let end = at.checked_add(u64::from(extent.len)).unwrap_or(at);
        while at < end {
            let slice = self.slice(at)?;
            let group = self.group_of(at).map(RgrpLayout::addr).ok_or(Error::NotFound)?;
            let stop = slice.end().min(end);
            let (mut free, mut dinodes) = (0i64, 0i64);
            let mut bytes = self.read(slice.block)?;
            slice.check_block(&bytes)?;
            for block in at.get()..stop.get() {
                let block = BlockAddr::new(block);
                let from = slice.state(&bytes, block)?;
                if from == to {
                    continue;
                }
                set_bits(&slice, bytes.make_mut(), block, from, to)?;
                free += i64::from(to == BlockState::Free) - i64::from(from == BlockState::Free);
                dinodes += i64::from(is_inode(to)) - i64::from(is_inode(from));
            }
            self.blocks.insert(slice.block, bytes);
            self.count(group, free, dinodes)?;
            at = stop;
        }
        self.states.push((extent, to));
        Ok(())
    }

    fn count(&mut self, group: BlockAddr, free: i64, dinodes: i64) -> Result<(), Error> {
        if free == 0 && dinodes == 0 {
            return Ok(());
        }
        let moved = |count: u32, by: i64| {
            u32::try_from(i64::from(count).saturating_add(by).max(0)).unwrap_or(u32::MAX)
        };
        self.change::<Rgrp>(group, 0, |rgrp| {
            rgrp.free = moved(rgrp.free.get(), free).into();
            rgrp.dinodes = moved(rgrp.dinodes.get(), dinodes).into();
            if rgrp.crc.get() != 0 {
                rgrp.seal();
            }
        })
    }

    /// Allocates a block for a new inode and gives it a formal number that no inode of the volume has.
    pub(crate) fn new_inode(&mut self, goal: BlockAddr) -> Result<InodeNum, Error> {
        let extent = self.find(1, goal)?;
        self.set_state(extent, BlockState::Dinode)?;
        self.allocated.push(extent);
        let highest = self.seen.inodes.iter().map(|inode| inode.formal).max();
        let formal = self.ledger.next_formal(highest.unwrap_or(0));
        Ok(InodeNum {
            formal,
            addr: extent.start,
        })
    }

    /// Keeps what is allocated in this run away from a block: until the changes are written, something on the device
    /// still leads there.
    pub(crate) fn avoid(&mut self, block: BlockAddr) {
        self.ledger.freed(Extent::single(block));
    }

    /// A formal number above `highest` that was not given out before.
    pub(crate) fn ledger_formal(&mut self, highest: u64) -> FormalIno {
        self.ledger.next_formal(highest)
    }

    /// Free blocks, at most `want` in a row.
    fn find(&mut self, want: u32, goal: BlockAddr) -> Result<Extent, Error> {
        if !self.seen.complete {
            let what = "a repair that needs blocks before their use is known";
            return Err(Error::Unsupported {
                what,
                found: 0,
                supported: "after a whole round of the check",
            });
        }
        let groups = self.seen.observed.groups();
        let count = groups.len();
        let near = groups.partition_point(|group| group.layout.addr() <= goal);
        let near = near.checked_sub(1).unwrap_or(self.group);
        let order = [near, self.group].into_iter().chain(0..count);
        for index in order {
            let Some(group) = self.seen.observed.groups().get(index) else {
                continue;
            };
            if group.blind || group.is_full() {
                continue;
            }
            let layout = group.layout.clone();
            if let Some(extent) = self.find_in(&layout, want, goal)? {
                self.group = index;
                return Ok(extent);
            }
        }
        Err(Error::NoSpace)
    }

    fn find_in(&mut self, layout: &RgrpLayout, want: u32, goal: BlockAddr) -> Result<Option<Extent>, Error> {
        let from = if layout.contains_data(goal) {
            goal
        } else {
            layout.data0()
        };
        for start in [from, layout.data0()] {
            for slice in layout.slices() {
                if slice.end() <= start {
                    continue;
                }
                let bytes = self.read(slice.block)?;
                slice.check_block(&bytes)?;
                let mut at = start;
                while let Some(found) = slice.find_free(&bytes, at, 1, want)? {
                    let good = found.blocks().take_while(|block| self.is_usable(*block));
                    let len = u32::try_from(good.count()).unwrap_or(0);
                    if len > 0 {
                        let start = found.start;
                        return Ok(Some(Extent { start, len }));
                    }
                    at = found.start.checked_add(1).unwrap_or(slice.end());
                }
            }
        }
        Ok(None)
    }

    /// Nobody uses it, and nobody did when the run began.
    fn is_usable(&self, block: BlockAddr) -> bool {
        self.seen.observed.is_unused(block) && !self.ledger.was_freed(block)
    }
}

const fn is_inode(state: BlockState) -> bool {
    matches!(state, BlockState::Dinode | BlockState::Unlinked)
}

/// Any state to any other, by way of those the format allows.
fn set_bits(
    slice: &BitmapSlice,
    bytes: &mut [u8],
    block: BlockAddr,
    from: BlockState,
    to: BlockState,
) -> Result<(), Error> {
    if from != BlockState::Free {
        slice.set(bytes, block, from, BlockState::Free)?;
    }
    match to {
        BlockState::Free => Ok(()),
        BlockState::Used | BlockState::Dinode => slice.set(bytes, block, BlockState::Free, to),
        BlockState::Unlinked => {
            slice.set(bytes, block, BlockState::Free, BlockState::Dinode)?;
            slice.set(bytes, block, BlockState::Dinode, to)
        }
    }
}

impl BlockRead for Editor<'_> {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn read(&self, addr: BlockAddr) -> Result<Block, Error> {
        match self.blocks.get(&addr) {
            Some(block) => Ok(block.clone()),
            None => DeviceReader::new(self.overlay, &self.geometry).read(addr),
        }
    }
}

impl BlockEdit for Editor<'_> {
    fn edit(&mut self, addr: BlockAddr) -> Result<&mut [u8], Error> {
        if !self.blocks.contains_key(&addr) {
            let block = self.read(addr)?;
            self.blocks.insert(addr, block);
        }
        let block = self.blocks.get_mut(&addr).ok_or(Error::NotFound)?;
        Ok(block.make_mut())
    }

    fn create(&mut self, addr: BlockAddr) -> Result<&mut [u8], Error> {
        if addr.get() >= self.geometry.end() {
            let last = self.geometry.end().saturating_sub(1);
            let expected = Expected::Range(0, last);
            return Err(Error::corrupt(addr, "block", "number", addr.get(), expected));
        }
        self.blocks.insert(addr, Block::zeroed(self.geometry.block_len()));
        let block = self.blocks.get_mut(&addr).ok_or(Error::NotFound)?;
        Ok(block.make_mut())
    }

    fn write_data(&mut self, addr: BlockAddr, _usage: BlockUse, bytes: &[u8]) -> Result<(), Error> {
        self.replace(addr, bytes)
    }

    fn alloc(&mut self, want: u32, goal: BlockAddr, _usage: BlockUse) -> Result<Extent, Error> {
        let extent = self.find(want.max(1), goal)?;
        self.set_state(extent, BlockState::Used)?;
        self.allocated.push(extent);
        Ok(extent)
    }

    fn free(&mut self, extent: Extent, _usage: BlockUse) -> Result<(), Error> {
        for block in extent.blocks() {
            self.blocks.remove(&block);
        }
        self.set_state(extent, BlockState::Free)
    }
}
