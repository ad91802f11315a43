//! A volume in memory for tests: real resource groups and bitmaps, an editor that keeps account, and a checker.
//!
//! Invariants: every bitmap change goes through [`crate::bitmap`]; a freed block is filled with a pattern that is
//! no valid structure; a fresh block must be given contents before the checker is asked. Not for production use.

use crate::addr::{BlockAddr, Extent, InodeNum};
use crate::bitmap::{RgrpLayout, decode_rindex, find_rgrp};
use crate::edit::{Block, BlockEdit, BlockRead, BlockUse};
use crate::error::{Error, Expected, Result};
use crate::geometry::Geometry;
use crate::ondisk::{
    BlockState, Dinode, DinodeFlags, FileType, MetaHeader, MetaType, Rgrp, RindexEntry, Superblock, view,
    view_mut,
};
use crate::tree::{read_bytes, stamp};
use crate::walk::{Scope, owned_blocks};
use std::collections::{BTreeMap, BTreeSet};
use zerocopy::FromZeros;

/// What a freed block is filled with.
const FREED: u8 = 0xdb;

/// A volume in memory. A clone is cheap and independent: take one to roll back to.
#[derive(Clone, Debug)]
pub struct MemVolume {
    geometry: Geometry,
    blocks: BTreeMap<u64, Block>,
    groups: Vec<RgrpLayout>,
    fresh: BTreeSet<u64>,
    short_runs: Option<u64>,
    budget: Option<u64>,
    allocated: u64,
    freed: Vec<(BlockAddr, BlockUse)>,
    edited: BTreeSet<u64>,
}

impl MemVolume {
    /// An empty volume of `groups` resource groups, each with about `blocks` blocks.
    ///
    /// # Errors
    /// A block size that is none, or groups too small to be one.
    pub fn format(bsize: u32, groups: u32, blocks: u32) -> Result<Self> {
        let first = BlockAddr::superblock(bsize.trailing_zeros()).get() + 1;
        let end = first + u64::from(groups) * u64::from(blocks);
        let geometry = Geometry::new(bsize, end)?;
        let mut volume = Self::bare(geometry);
        for n in 0..u64::from(groups) {
            let addr = first + n * u64::from(blocks);
            let entry = index_entry(&volume.geometry, addr, blocks);
            let group = RgrpLayout::check(&entry, BlockAddr::new(0), &volume.geometry)?;
            volume.write_group(&group)?;
            volume.groups.push(group);
        }
        Ok(volume)
    }

    fn bare(geometry: Geometry) -> Self {
        Self {
            geometry,
            blocks: BTreeMap::new(),
            groups: Vec::new(),
            fresh: BTreeSet::new(),
            short_runs: None,
            budget: None,
            allocated: 0,
            freed: Vec::new(),
            edited: BTreeSet::new(),
        }
    }

    fn write_group(&mut self, group: &RgrpLayout) -> Result<()> {
        for slice in group.slices() {
            let mut block = Block::zeroed(self.geometry.block_len());
            let kind = if slice.index == 0 {
                MetaType::Rg
            } else {
                MetaType::Rb
            };
            stamp(block.make_mut(), kind, slice.block)?;
            self.blocks.insert(slice.block.get(), block);
        }
        let data = group.data();
        self.change_header(group.addr(), |rgrp| {
            rgrp.free = data.into();
            rgrp.data = data.into();
            rgrp.data0 = group.data0().get().into();
            rgrp.bitbytes = (data / 4).into();
        })
    }

    /// A volume image, whole blocks of zeroes left out; the resource groups are those of its rindex file.
    ///
    /// # Errors
    /// An image that is no GFS2 volume.
    pub fn from_image(image: &mut dyn std::io::Read) -> Result<Self> {
        let io = |e| Error::io("read", 0, 0, e);
        let mut head = vec![0; 65536 + 4096];
        image.read_exact(&mut head).map_err(io)?;
        let sb = Superblock::decode(head.get(65536..).unwrap_or_default())?;
        let len = sb.bsize.get() as usize;
        let mut volume = Self::bare(Geometry::new(sb.bsize.get(), u64::MAX >> 16)?);
        let (mut number, mut rest) = (0u64, head);
        loop {
            let whole = rest.len() / len * len;
            for bytes in rest.get(..whole).unwrap_or_default().chunks(len) {
                if bytes.iter().any(|b| *b != 0) {
                    volume.blocks.insert(number, Block::from(bytes));
                }
                number += 1;
            }
            rest.drain(..whole);
            let kept = rest.len();
            rest.resize(1 << 20, 0);
            let got = image.read(rest.get_mut(kept..).unwrap_or_default()).map_err(io)?;
            rest.truncate(kept + got);
            if got == 0 {
                break;
            }
        }
        volume.geometry = Geometry::new(sb.bsize.get(), number)?;
        volume.load_groups(&sb)?;
        Ok(volume)
    }

    fn load_groups(&mut self, sb: &Superblock) -> Result<()> {
        let master = sb.master_dir.num().addr;
        let rindex = crate::dir::lookup(self, master, b"rindex")?
            .ok_or(Error::NotFound)?
            .num
            .addr;
        let block = self.read(rindex)?;
        let size = Dinode::decode(&block, rindex, &self.geometry)?.size.get();
        let mut content = vec![0; usize::try_from(size).unwrap_or(0).min(1 << 24)];
        read_bytes(self, rindex, 0, &mut content)?;
        self.groups = decode_rindex(&content, rindex, &self.geometry)?;
        Ok(())
    }

    /// The superblock of a volume made from an image.
    ///
    /// # Errors
    /// A volume without one.
    pub fn superblock(&self) -> Result<Superblock> {
        Superblock::decode(&self.read(self.geometry.superblock())?)
    }

    /// The resource groups.
    #[must_use]
    pub fn groups(&self) -> &[RgrpLayout] {
        &self.groups
    }

    /// Makes allocations give runs of random, mostly short length from now on.
    pub const fn short_runs(&mut self, seed: u64) {
        self.short_runs = Some(seed | 1);
    }

    /// Fails allocations with [`Error::NoSpace`] after this many more blocks (`None`: no such limit).
    pub const fn limit_allocations(&mut self, blocks: Option<u64>) {
        self.budget = blocks;
    }

    /// Blocks allocated since the last call.
    pub const fn take_allocated(&mut self) -> u64 {
        std::mem::replace(&mut self.allocated, 0)
    }

    /// Blocks freed since the last call, with their use.
    pub fn take_freed(&mut self) -> Vec<(BlockAddr, BlockUse)> {
        std::mem::take(&mut self.freed)
    }

    /// Blocks edited or created since the last call (no bitmaps, no file data).
    pub fn take_edited(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.edited)
    }

    /// Replaces a block's bytes without any account: for damage.
    pub fn damage(&mut self, addr: BlockAddr, change: impl FnOnce(&mut [u8])) {
        let len = self.geometry.block_len();
        change(
            self.blocks
                .entry(addr.get())
                .or_insert_with(|| Block::zeroed(len))
                .make_mut(),
        );
    }

    /// Allocates and writes a dinode of this type and these flags; a directory gets "." and "..", of itself.
    ///
    /// # Errors
    /// No space.
    pub fn new_inode(&mut self, kind: FileType, flags: DinodeFlags) -> Result<InodeNum> {
        let addr = self.alloc_state(1, BlockAddr::new(0), BlockState::Dinode)?.start;
        self.fresh.remove(&addr.get());
        let group = self.group_of(addr)?.addr();
        let mut formal = 0;
        self.change_header(group, |rgrp| {
            formal = rgrp.igeneration.get().max(1);
            rgrp.igeneration = (formal + 1).into();
            rgrp.dinodes = (rgrp.dinodes.get() + 1).into();
        })?;
        let mut block = Block::zeroed(self.geometry.block_len());
        let bytes = block.make_mut();
        stamp(bytes, MetaType::Di, addr)?;
        let di: &mut Dinode = view_mut(bytes, 0, addr)?;
        di.num.formal_ino = formal.into();
        di.num.addr = addr.get().into();
        di.generation = formal.into();
        di.mode = (kind.mode_bits() | 0o644).into();
        di.nlink = 1.into();
        di.blocks = 1.into();
        di.goal_meta = addr.get().into();
        di.goal_data = addr.get().into();
        di.set_flags(flags);
        let num = di.inode_num();
        if kind == FileType::Dir {
            crate::dir::init_dir(bytes, &self.geometry, num, num)?;
        }
        self.blocks.insert(addr.get(), block);
        Ok(num)
    }

    /// The decoded dinode.
    ///
    /// # Errors
    /// A bad one.
    pub fn dinode(&self, addr: BlockAddr) -> Result<Dinode> {
        Dinode::decode(&self.read(addr)?, addr, &self.geometry).copied()
    }

    /// The group of a block.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a block of none.
    pub fn group_of(&self, block: BlockAddr) -> Result<&RgrpLayout> {
        find_rgrp(&self.groups, block)
            .and_then(|index| self.groups.get(index))
            .ok_or_else(|| {
                let expected = Expected::Rule("a block of a resource group");
                Error::corrupt(block, "rgrp", "block", block.get(), expected)
            })
    }

    /// The bitmap's state of a block.
    ///
    /// # Errors
    /// A block of no group.
    pub fn state(&self, block: BlockAddr) -> Result<BlockState> {
        let slice = self.group_of(block)?.locate(block).ok_or(Error::NotFound)?;
        slice.state(&self.read(slice.block)?, block)
    }

    fn change_header(&mut self, addr: BlockAddr, change: impl FnOnce(&mut Rgrp)) -> Result<()> {
        let block = self.blocks.get_mut(&addr.get()).ok_or(Error::NotFound)?;
        let rgrp: &mut Rgrp = view_mut(block.make_mut(), 0, addr)?;
        change(rgrp);
        rgrp.seal();
        Ok(())
    }

    fn set_states(&mut self, run: Extent, from: BlockState, to: BlockState) -> Result<()> {
        for block in run.blocks() {
            let group = self.group_of(block)?.clone();
            let slice = group.locate(block).ok_or(Error::NotFound)?;
            let bytes = self.blocks.get_mut(&slice.block.get()).ok_or(Error::NotFound)?;
            slice.set(bytes.make_mut(), block, from, to)?;
            self.change_header(group.addr(), |rgrp| {
                let free = rgrp.free.get();
                rgrp.free = if to == BlockState::Free {
                    free + 1
                } else {
                    free.saturating_sub(1)
                }
                .into();
            })?;
        }
        Ok(())
    }

    fn random(&mut self, below: u64) -> Option<u64> {
        let seed = self.short_runs.as_mut()?;
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        Some(*seed % below.max(1))
    }

    fn alloc_state(&mut self, want: u32, goal: BlockAddr, state: BlockState) -> Result<Extent> {
        let most = self.random(4).map_or(want, |n| want.min(n as u32 + 1));
        let most = self
            .budget
            .map_or(most, |left| most.min(u32::try_from(left).unwrap_or(u32::MAX)));
        let start = find_rgrp(&self.groups, goal).unwrap_or(0);
        let groups = self.groups.len();
        let found = (0..groups)
            .filter(|_| most > 0)
            .flat_map(|n| {
                let index = (start + n) % groups;
                let goal = if n == 0 { goal } else { BlockAddr::new(0) };
                self.groups
                    .get(index)
                    .into_iter()
                    .flat_map(move |g| g.slices().map(move |s| (s, goal)))
            })
            .chain(
                self.groups
                    .iter()
                    .flat_map(|g| g.slices().map(|s| (s, BlockAddr::new(0)))),
            )
            .find_map(|(slice, goal)| {
                let bytes = self.blocks.get(&slice.block.get())?;
                slice.find_free(bytes, goal, 1, most).ok()?
            });
        let run = found.filter(|_| most > 0).ok_or(Error::NoSpace)?;
        self.set_states(run, BlockState::Free, state)?;
        self.fresh.extend(run.blocks().map(BlockAddr::get));
        self.allocated += u64::from(run.len);
        self.budget = self.budget.map(|left| left.saturating_sub(u64::from(run.len)));
        Ok(run)
    }

    /// Checks the account of everything: each group's counts against its bitmap, and each of these inodes' blocks
    /// (tree, leaves, xattrs) against `di_blocks` and the bitmap. With `complete`, no other block may be in use.
    ///
    /// # Errors
    /// The first thing that does not add up, in words.
    pub fn verify(&self, inodes: &[BlockAddr], complete: bool) -> Result<(), String> {
        if let Some(block) = self.fresh.first() {
            return Err(format!("block {block} was allocated and never written"));
        }
        let mut owned: BTreeMap<u64, BlockState> = BTreeMap::new();
        for inode in inodes {
            self.own_inode(*inode, &mut owned)?;
        }
        for group in &self.groups {
            self.verify_group(group, &owned, complete)?;
        }
        Ok(())
    }

    fn own_inode(&self, inode: BlockAddr, owned: &mut BTreeMap<u64, BlockState>) -> Result<(), String> {
        let mut blocks = vec![];
        owned_blocks(self, inode, Scope::All, &mut |found| {
            blocks.extend(found.extent.blocks());
            Ok(())
        })
        .map_err(|e| format!("inode {inode}: {e}"))?;
        let said = self.dinode(inode).map_err(|e| e.to_string())?.blocks.get();
        if said != blocks.len() as u64 + 1 {
            return Err(format!(
                "inode {inode}: di_blocks {said}, owns {}",
                blocks.len() + 1
            ));
        }
        blocks.push(inode);
        for block in blocks {
            let want = if block == inode {
                BlockState::Dinode
            } else {
                BlockState::Used
            };
            if owned.insert(block.get(), want).is_some() {
                return Err(format!("inode {inode}: block {block} is owned twice"));
            }
            let found = self.state(block).map_err(|e| e.to_string())?;
            if found != want {
                return Err(format!("inode {inode}: block {block} is {found:?}, not {want:?}"));
            }
        }
        Ok(())
    }

    fn verify_group(
        &self,
        group: &RgrpLayout,
        owned: &BTreeMap<u64, BlockState>,
        complete: bool,
    ) -> Result<(), String> {
        let text = |e: Error| e.to_string();
        let mut counts = [0u32; 4];
        for slice in group.slices() {
            let bytes = self.read(slice.block).map_err(text)?;
            slice.check_block(&bytes).map_err(text)?;
            for (sum, n) in counts.iter_mut().zip(slice.count(&bytes).map_err(text)?) {
                *sum += n;
            }
            for (block, state) in slice.iter(&bytes).map_err(text)? {
                if complete && state != BlockState::Free && !owned.contains_key(&block.get()) {
                    return Err(format!("block {block} is {state:?} and nobody's"));
                }
            }
        }
        let bytes = self.read(group.addr()).map_err(text)?;
        let rgrp = group.check_header(&bytes).map_err(text)?;
        let [free, _, unlinked, dinodes] = counts;
        if (rgrp.free.get(), rgrp.dinodes.get()) != (free, dinodes + unlinked) {
            return Err(format!(
                "group {}: header and bitmap disagree: {counts:?}",
                group.addr()
            ));
        }
        Ok(())
    }
}

/// An index entry for a group of `blocks` blocks (FORMAT.md section 2, sizing).
fn index_entry(geometry: &Geometry, addr: u64, blocks: u32) -> RindexEntry {
    let total = u64::from(blocks);
    let mut length = 1;
    while geometry.bitmap_capacity(length) < (total - length) / 4 * 4 {
        length += 1;
    }
    let data = (total - length) / 4 * 4;
    let mut entry = RindexEntry::new_zeroed();
    entry.addr = addr.into();
    entry.length = (length as u32).into();
    entry.data0 = (addr + length).into();
    entry.data = (data as u32).into();
    entry.bitbytes = (data as u32 / 4).into();
    entry
}

impl BlockRead for MemVolume {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn read(&self, addr: BlockAddr) -> Result<Block> {
        if addr.get() >= self.geometry.end() {
            let expected = Expected::Range(0, self.geometry.end());
            return Err(Error::corrupt(addr, "volume", "block", addr.get(), expected));
        }
        let absent = || Block::zeroed(self.geometry.block_len());
        Ok(self.blocks.get(&addr.get()).cloned().unwrap_or_else(absent))
    }
}

impl BlockEdit for MemVolume {
    fn edit(&mut self, addr: BlockAddr) -> Result<&mut [u8]> {
        if self.fresh.contains(&addr.get()) {
            let expected = Expected::Rule("contents before an edit");
            return Err(Error::corrupt(
                addr,
                "volume",
                "fresh block",
                addr.get(),
                expected,
            ));
        }
        self.edited.insert(addr.get());
        let block = self.read(addr)?;
        Ok(self.blocks.entry(addr.get()).or_insert(block).make_mut())
    }

    fn create(&mut self, addr: BlockAddr) -> Result<&mut [u8]> {
        self.write_data(addr, BlockUse::Meta, &[])?;
        self.edited.insert(addr.get());
        let block = self.blocks.get_mut(&addr.get()).ok_or(Error::NotFound)?;
        Ok(block.make_mut())
    }

    fn write_data(&mut self, addr: BlockAddr, _usage: BlockUse, bytes: &[u8]) -> Result<()> {
        if !self.fresh.remove(&addr.get()) {
            let expected = Expected::Rule("a fresh block");
            return Err(Error::corrupt(
                addr,
                "volume",
                "first contents",
                addr.get(),
                expected,
            ));
        }
        let mut block = Block::zeroed(self.geometry.block_len());
        block
            .make_mut()
            .iter_mut()
            .zip(bytes)
            .for_each(|(to, from)| *to = *from);
        self.blocks.insert(addr.get(), block);
        Ok(())
    }

    fn alloc(&mut self, want: u32, goal: BlockAddr, _usage: BlockUse) -> Result<Extent> {
        self.alloc_state(want, goal, BlockState::Used)
    }

    fn free(&mut self, extent: Extent, usage: BlockUse) -> Result<()> {
        self.set_states(extent, BlockState::Used, BlockState::Free)?;
        for block in extent.blocks() {
            // A header where one was logged: freeing it without a revoke would be found by replay.
            let bytes = self.read(block)?;
            let logged = MetaHeader::check_magic(&bytes, block, "freed block").is_ok();
            if logged && usage == BlockUse::Data {
                let kind = u64::from(view::<MetaHeader>(&bytes, 0, block)?.mh_type.get());
                let expected = Expected::Rule("a use that revokes metadata");
                return Err(Error::corrupt(
                    block,
                    "volume",
                    "use of a freed block",
                    kind,
                    expected,
                ));
            }
            self.damage(block, |bytes| bytes.fill(FREED));
            self.fresh.remove(&block.get());
            self.freed.push((block, usage));
        }
        Ok(())
    }
}
