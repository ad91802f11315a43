//! A directory opened: its shape, its hash table, its leaf chains.

use super::area;
use crate::addr::{BlockAddr, FileBlock};
use crate::edit::{Block, BlockEdit, BlockRead};
use crate::error::{Error, Expected, Result};
use crate::geometry::{Geometry, MAX_DIR_DEPTH};
use crate::ondisk::{
    DINODE_SIZE, Dinode, DinodeFlags, LEAF_SIZE, Leaf, META_HEADER_SIZE, MetaHeader, MetaType, view,
};
use crate::tree::{self, Mapping};
use zerocopy::big_endian::U64;

/// A directory's dinode, decoded and checked.
#[derive(Clone, Debug)]
pub(crate) struct Dir {
    pub(crate) addr: BlockAddr,
    pub(crate) di: Dinode,
    pub(crate) block: Block,
}

/// A run of slots of the hash table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u32,
    pub(crate) len: u32,
}

impl Dir {
    /// Reads the dinode at `addr`: a directory, and if hashed, one whose size fits its depth.
    pub(crate) fn open<R: BlockRead + ?Sized>(reader: &R, addr: BlockAddr) -> Result<Self> {
        let block = reader.read(addr)?;
        let di = *Dinode::decode(&block, addr, reader.geometry())?;
        let dir = Self { addr, di, block };
        let fail = |field, found, expected| Err(Error::corrupt(addr, "dinode", field, found, expected));
        if !di.is_dir() {
            return fail("di_mode", u64::from(di.mode.get()), Expected::Rule("a directory"));
        }
        let size = di.size.get();
        if dir.is_hashed() {
            let want = 8 << di.depth.get().min(MAX_DIR_DEPTH);
            if size != want {
                return fail("di_size", size, Expected::Value(want));
            }
        } else {
            if di.height.get() != 0 {
                return fail("di_height", u64::from(di.height.get()), Expected::Value(0));
            }
            let want = reader.geometry().max_stuffed();
            if size != want {
                return fail("di_size", size, Expected::Value(want));
            }
        }
        Ok(dir)
    }

    pub(crate) fn is_hashed(&self) -> bool {
        self.di.flags().contains(DinodeFlags::EXHASH)
    }

    /// log2 of the number of slots; at most 17.
    pub(crate) fn depth(&self) -> u32 {
        u32::from(self.di.depth.get().min(MAX_DIR_DEPTH))
    }

    pub(crate) fn slots(&self) -> u32 {
        1 << self.depth()
    }

    /// The slot of a hash.
    pub(crate) fn slot_of(&self, hash: u32) -> u32 {
        hash.checked_shr(32 - self.depth()).unwrap_or(0)
    }

    /// The hashes that belong to a run of slots, first and last.
    pub(crate) fn hashes(&self, run: Run) -> (u32, u32) {
        let shift = 32 - self.depth();
        let first = u64::from(run.start) << shift;
        let end = (u64::from(run.start) + u64::from(run.len)) << shift;
        (
            first as u32,
            end.saturating_sub(1).min(u64::from(u32::MAX)) as u32,
        )
    }

    /// Slots of one hash block (or of the dinode).
    pub(super) fn slots_per_block(&self, geometry: &Geometry) -> u32 {
        (geometry.jbsize() / 8) as u32
    }

    /// The block that holds a slot, its bytes, and where its slots start in it.
    fn slot_block<R: BlockRead + ?Sized>(&self, reader: &R, slot: u32) -> Result<(BlockAddr, Block, usize)> {
        let per_block = self.slots_per_block(reader.geometry()).max(1);
        let lblock = FileBlock::new(u64::from(slot / per_block));
        match tree::map(reader, self.addr, &self.block, lblock, 1)? {
            Mapping::Stuffed => Ok((self.addr, self.block.clone(), DINODE_SIZE)),
            Mapping::Data(run) => {
                let bytes = reader.read(run.start)?;
                MetaHeader::check(&bytes, run.start, MetaType::Jd)?;
                Ok((run.start, bytes, META_HEADER_SIZE))
            }
            Mapping::Hole { .. } => Err(Error::corrupt(
                self.addr,
                "dinode",
                "hash table block",
                lblock.get(),
                Expected::Rule("no hole in a hash table"),
            )),
        }
    }

    /// What a slot says: 0 in a directory that is being deleted only.
    pub(crate) fn raw_slot<R: BlockRead + ?Sized>(&self, reader: &R, slot: u32) -> Result<u64> {
        let (at, bytes, start) = self.slot_block(reader, slot)?;
        let index = self.index_in_block(reader.geometry(), slot);
        let raw = slots(&bytes, start, at)?.get(index).map_or(0, |p| p.get());
        Ok(raw)
    }

    fn index_in_block(&self, geometry: &Geometry, slot: u32) -> usize {
        (slot % self.slots_per_block(geometry).max(1)) as usize
    }

    /// The leaf of a slot.
    pub(crate) fn leaf_of<R: BlockRead + ?Sized>(&self, reader: &R, slot: u32) -> Result<BlockAddr> {
        let raw = self.raw_slot(reader, slot)?;
        reader
            .geometry()
            .check_address(raw, self.addr, "dinode", "hash table slot")
    }

    /// The aligned run of slots around `slot` that a leaf of this depth owns.
    pub(crate) fn run_of(&self, slot: u32, leaf: BlockAddr, leaf_depth: u16) -> Result<Run> {
        let depth = self.di.depth.get();
        let Some(shift) = depth.checked_sub(leaf_depth) else {
            let expected = Expected::Range(0, u64::from(depth));
            return Err(Error::corrupt(
                leaf,
                "leaf",
                "lf_depth",
                u64::from(leaf_depth),
                expected,
            ));
        };
        let len = 1u32 << shift.min(MAX_DIR_DEPTH);
        Ok(Run {
            start: slot & !(len - 1),
            len,
        })
    }

    /// Number of equal slots from `slot` on, whatever the leaf says.
    pub(crate) fn equal_slots<R: BlockRead + ?Sized>(&self, reader: &R, slot: u32) -> Result<u32> {
        let raw = self.raw_slot(reader, slot)?;
        let mut end = slot;
        while end < self.slots() {
            let (at, bytes, start) = self.slot_block(reader, end)?;
            let index = self.index_in_block(reader.geometry(), end);
            let left = (self.slots() - end) as usize;
            let rest = slots(&bytes, start, at)?.get(index..).unwrap_or_default();
            let seen = rest.len().min(left);
            let equal = rest.iter().take(left).take_while(|p| p.get() == raw).count();
            end = end.saturating_add(equal as u32);
            if equal < seen || seen == 0 {
                break;
            }
        }
        Ok(end.saturating_sub(slot))
    }

    /// The slots that stand in one block with `slot`, from it on.
    pub(super) fn copy_slots<R: BlockRead + ?Sized>(&self, reader: &R, slot: u32) -> Result<Vec<u64>> {
        let (at, bytes, start) = self.slot_block(reader, slot)?;
        let index = self.index_in_block(reader.geometry(), slot);
        let rest = slots(&bytes, start, at)?.get(index..).unwrap_or_default();
        let left = self.slots().saturating_sub(slot) as usize;
        Ok(rest.iter().take(left).map(|p| p.get()).collect())
    }

    /// Points a run of slots at `leaf` (0: nothing).
    pub(crate) fn set_slots<E: BlockEdit + ?Sized>(&self, edit: &mut E, run: Run, leaf: u64) -> Result<()> {
        let end = run.start.saturating_add(run.len).min(self.slots());
        let mut slot = run.start;
        while slot < end {
            let (at, _, start) = self.slot_block(edit, slot)?;
            let index = self.index_in_block(edit.geometry(), slot);
            let array = slots_mut(edit.edit(at)?, start, at)?;
            let rest = array.get_mut(index..).unwrap_or_default();
            let mut set = 0u32;
            for entry in rest.iter_mut().take((end - slot) as usize) {
                *entry = leaf.into();
                set = set.saturating_add(1);
            }
            slot = slot.saturating_add(set.max(1));
        }
        Ok(())
    }

    /// Hash blocks that a run of slots stands in: 0 when the table is stuffed.
    pub(crate) fn blocks_of(&self, geometry: &Geometry, run: Run) -> u32 {
        let per_block = self.slots_per_block(geometry).max(1);
        if self.di.height.get() == 0 || run.len == 0 {
            return 0;
        }
        let last = run.start.saturating_add(run.len).saturating_sub(1);
        (last / per_block)
            .saturating_sub(run.start / per_block)
            .saturating_add(1)
    }
}

fn slots(bytes: &[u8], start: usize, block: BlockAddr) -> Result<&[U64]> {
    tree::ptrs(bytes, start, block)
}

fn slots_mut(bytes: &mut [u8], start: usize, block: BlockAddr) -> Result<&mut [U64]> {
    tree::ptrs_mut(bytes, start, block)
}

/// A leaf read and checked.
#[derive(Clone, Debug)]
pub(crate) struct LeafBlock {
    pub(crate) addr: BlockAddr,
    pub(crate) block: Block,
    pub(crate) leaf: Leaf,
}

impl LeafBlock {
    pub(crate) fn read<R: BlockRead + ?Sized>(reader: &R, addr: BlockAddr) -> Result<Self> {
        let block = reader.read(addr)?;
        MetaHeader::check(&block, addr, MetaType::Lf)?;
        let leaf = *view::<Leaf>(&block, 0, addr)?;
        Ok(Self { addr, block, leaf })
    }

    /// The next leaf of the chain.
    pub(crate) fn next<R: BlockRead + ?Sized>(&self, reader: &R) -> Result<Option<BlockAddr>> {
        reader
            .geometry()
            .check_pointer(self.leaf.next.get(), self.addr, "leaf", "lf_next")
    }

    pub(crate) fn depth(&self) -> u16 {
        self.leaf.depth.get()
    }

    pub(super) fn records(&self) -> area::Records<'_> {
        area::records(&self.block, LEAF_SIZE, self.addr)
    }

    /// The number of live entries must be what the leaf says.
    pub(super) fn check_count(&self, live: u32) -> Result<()> {
        let said = u32::from(self.leaf.entries.get());
        if said == live {
            return Ok(());
        }
        let expected = Expected::Value(u64::from(live));
        Err(Error::corrupt(
            self.addr,
            "leaf",
            "lf_entries",
            u64::from(said),
            expected,
        ))
    }
}

/// A walk along a leaf chain that ends with an error where the chain meets itself.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    next: Option<BlockAddr>,
    /// Brent's method: the walk meets a mark that is moved up at every power of two.
    mark: BlockAddr,
    steps: u64,
    limit: u64,
}

impl Chain {
    pub(crate) const fn new(head: BlockAddr) -> Self {
        Self {
            next: Some(head),
            mark: BlockAddr::new(0),
            steps: 0,
            limit: 1,
        }
    }

    pub(crate) fn step<R: BlockRead + ?Sized>(&mut self, reader: &R) -> Result<Option<LeafBlock>> {
        let Some(here) = self.next else { return Ok(None) };
        if here == self.mark {
            let expected = Expected::Rule("a chain that ends");
            return Err(Error::corrupt(here, "leaf", "lf_next", here.get(), expected));
        }
        if self.steps == self.limit {
            self.mark = here;
            self.limit = self.limit.saturating_mul(2);
            self.steps = 0;
        }
        self.steps = self.steps.saturating_add(1);
        let leaf = LeafBlock::read(reader, here)?;
        self.next = leaf.next(reader)?;
        Ok(Some(leaf))
    }
}
