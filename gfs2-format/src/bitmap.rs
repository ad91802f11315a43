//! Resource group layout and the 2-bit block states: where they are, what they say, and their legal changes.
//!
//! Works on the bytes of one bitmap block at a time, so that the driver (buffers), fsck (overlay) and mkfs (plan)
//! share it. Invariants: an [`RgrpLayout`] exists only for an index entry whose numbers agree with each other and
//! with the device; a state changes only from the expected one, and only along a legal transition (FORMAT.md
//! section 6).

use crate::addr::{BlockAddr, Extent};
use crate::error::{Error, Expected, Result};
use crate::geometry::Geometry;
use crate::ondisk::{
    BlockState, META_HEADER_SIZE, MetaHeader, MetaType, RGRP_SIZE, RINDEX_SIZE, Rgrp, RindexEntry, view,
};
use zerocopy::FromBytes;

/// Blocks (and so states) per bitmap byte.
pub const BLOCKS_PER_BYTE: u32 = 4;

const LOW_BITS: u64 = 0x5555_5555_5555_5555;

/// A checked entry of the resource index: where a group's header, bitmaps and blocks are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgrpLayout {
    addr: BlockAddr,
    length: u32,
    data0: BlockAddr,
    data: u32,
    block_len: usize,
}

/// The part of a group's bitmap that stands in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapSlice {
    /// 0 for the header block, then 1, 2, ...
    pub index: u32,
    /// The block that holds it.
    pub block: BlockAddr,
    /// First byte of the bitmap in that block.
    pub offset: usize,
    /// Bytes of bitmap in that block.
    pub len: usize,
    /// The block whose state is the first one here.
    pub first: BlockAddr,
}

impl RgrpLayout {
    /// Checks an entry of the resource index (read from the rindex inode `rindex`) against itself and the device.
    ///
    /// # Errors
    /// [`Error::Corrupt`] naming the field that does not fit.
    pub fn check(entry: &RindexEntry, rindex: BlockAddr, geometry: &Geometry) -> Result<Self> {
        let fail = |field, found, expected| Err(Error::corrupt(rindex, "rindex", field, found, expected));
        let addr = geometry.check_address(entry.addr.get(), rindex, "rindex", "ri_addr")?;
        let (length, data, bytes) = (entry.length.get(), entry.data.get(), entry.bitbytes.get());
        if !data.is_multiple_of(BLOCKS_PER_BYTE) || data == 0 {
            return fail(
                "ri_data",
                u64::from(data),
                Expected::Rule("a multiple of 4 above 0"),
            );
        }
        if bytes != data / BLOCKS_PER_BYTE {
            return fail(
                "ri_bitbytes",
                u64::from(bytes),
                Expected::Value(u64::from(data / BLOCKS_PER_BYTE)),
            );
        }
        // The bitmap must end in the last of the `length` blocks.
        let capacity = |blocks: u32| geometry.bitmap_capacity(u64::from(blocks));
        let data64 = u64::from(data);
        if length == 0 || capacity(length) < data64 || capacity(length - 1) >= data64 {
            return fail(
                "ri_length",
                u64::from(length),
                Expected::Rule("the number of blocks that hold the bitmap"),
            );
        }
        let data0 = entry.data0.get();
        if addr.checked_add(u64::from(length)).map(BlockAddr::get) != Some(data0) {
            return fail("ri_data0", data0, Expected::Rule("ri_addr + ri_length"));
        }
        if data0.checked_add(data64).is_none_or(|end| end > geometry.end()) {
            return fail(
                "ri_data",
                data64,
                Expected::Range(4, geometry.end().saturating_sub(data0)),
            );
        }
        Ok(Self {
            addr,
            length,
            data0: BlockAddr::new(data0),
            data,
            block_len: geometry.block_len(),
        })
    }

    /// The header's block.
    #[must_use]
    pub const fn addr(&self) -> BlockAddr {
        self.addr
    }

    /// Header and bitmap blocks.
    #[must_use]
    pub const fn length(&self) -> u32 {
        self.length
    }

    /// First data block.
    #[must_use]
    pub const fn data0(&self) -> BlockAddr {
        self.data0
    }

    /// Data blocks.
    #[must_use]
    pub const fn data(&self) -> u32 {
        self.data
    }

    /// First block number past the data blocks.
    #[must_use]
    pub const fn end(&self) -> BlockAddr {
        // Cannot wrap: `check` has bounded it by the device's end.
        BlockAddr::new(self.data0.get().saturating_add(self.data as u64))
    }

    /// The data blocks as one run.
    #[must_use]
    pub const fn data_extent(&self) -> Extent {
        Extent {
            start: self.data0,
            len: self.data,
        }
    }

    /// Is the block in this group, its header and bitmap included?
    #[must_use]
    pub fn contains(&self, block: BlockAddr) -> bool {
        (self.addr..self.end()).contains(&block)
    }

    /// Is the block one of those whose state this group keeps?
    #[must_use]
    pub fn contains_data(&self, block: BlockAddr) -> bool {
        (self.data0..self.end()).contains(&block)
    }

    /// The part of the bitmap in the `index`-th block of the group.
    #[must_use]
    pub fn slice(&self, index: u32) -> Option<BitmapSlice> {
        if index >= self.length {
            return None;
        }
        let block = self.addr.checked_add(u64::from(index))?;
        let rg_len = self.block_len.checked_sub(RGRP_SIZE)?;
        let rb_len = self.block_len.checked_sub(META_HEADER_SIZE)?;
        let (offset, skipped, room) = match index {
            0 => (RGRP_SIZE, 0, rg_len),
            n => {
                let before = rb_len.checked_mul(n as usize - 1)?;
                (META_HEADER_SIZE, rg_len.checked_add(before)?, rb_len)
            }
        };
        let total = (self.data / BLOCKS_PER_BYTE) as usize;
        Some(BitmapSlice {
            index,
            block,
            offset,
            len: room.min(total.checked_sub(skipped)?),
            first: self
                .data0
                .checked_add(skipped as u64 * u64::from(BLOCKS_PER_BYTE))?,
        })
    }

    /// All parts of the bitmap, in order.
    pub fn slices(&self) -> impl Iterator<Item = BitmapSlice> {
        (0..self.length).map_while(|index| self.slice(index))
    }

    /// The part that keeps a block's state; `None` for a block of elsewhere.
    #[must_use]
    pub fn locate(&self, block: BlockAddr) -> Option<BitmapSlice> {
        if !self.contains_data(block) {
            return None;
        }
        let byte = (block.get() - self.data0.get()) as usize / BLOCKS_PER_BYTE as usize;
        let rg_len = self.block_len.checked_sub(RGRP_SIZE)?;
        let rb_len = self.block_len.checked_sub(META_HEADER_SIZE)?;
        let index = byte.checked_sub(rg_len).map_or(0, |rest| rest / rb_len + 1);
        self.slice(u32::try_from(index).ok()?)
    }

    /// Checks the header block of the group: magic, type, and counts that the group can hold. The checksum and the
    /// copies of the index entry are not checked: the kernel does not either, and old writers left them unset.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn check_header<'a>(&self, bytes: &'a [u8]) -> Result<&'a Rgrp> {
        MetaHeader::check(bytes, self.addr, MetaType::Rg)?;
        let rgrp: &Rgrp = view(bytes, 0, self.addr)?;
        let (free, dinodes) = (rgrp.free.get(), rgrp.dinodes.get());
        let most = u64::from(self.data);
        if free > self.data {
            let expected = Expected::Range(0, most);
            return Err(Error::corrupt(
                self.addr,
                "rgrp",
                "rg_free",
                u64::from(free),
                expected,
            ));
        }
        if dinodes > self.data - free {
            let expected = Expected::Range(0, most - u64::from(free));
            return Err(Error::corrupt(
                self.addr,
                "rgrp",
                "rg_dinodes",
                u64::from(dinodes),
                expected,
            ));
        }
        Ok(rgrp)
    }
}

impl BitmapSlice {
    /// Number of states here.
    #[must_use]
    pub const fn states(&self) -> u32 {
        // A block holds at most 64 KiB of bitmap.
        self.len as u32 * BLOCKS_PER_BYTE
    }

    /// First block number past this part.
    #[must_use]
    pub const fn end(&self) -> BlockAddr {
        BlockAddr::new(self.first.get().saturating_add(self.states() as u64))
    }

    /// Is the block's state kept here?
    #[must_use]
    pub fn contains(&self, block: BlockAddr) -> bool {
        (self.first..self.end()).contains(&block)
    }

    /// Checks magic and type of the block that holds this part.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn check_block(&self, bytes: &[u8]) -> Result<()> {
        let kind = if self.index == 0 {
            MetaType::Rg
        } else {
            MetaType::Rb
        };
        MetaHeader::check(bytes, self.block, kind).map(|_| ())
    }

    /// The bitmap's bytes of the block's bytes.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when `bytes` is too short.
    pub fn bits<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8]> {
        let len = bytes.len();
        bytes
            .get(self.offset..self.offset + self.len)
            .ok_or_else(|| self.too_short(len))
    }

    fn bits_mut<'a>(&self, bytes: &'a mut [u8]) -> Result<&'a mut [u8]> {
        let len = bytes.len();
        bytes
            .get_mut(self.offset..self.offset + self.len)
            .ok_or_else(|| self.too_short(len))
    }

    fn too_short(&self, len: usize) -> Error {
        let least = (self.offset + self.len) as u64;
        Error::corrupt(
            self.block,
            "rgrp",
            "length in bytes",
            len as u64,
            Expected::Range(least, u64::MAX),
        )
    }

    /// Index of a block's state within this part.
    fn index_of(&self, block: BlockAddr) -> Result<usize> {
        if self.contains(block) {
            return Ok((block.get() - self.first.get()) as usize);
        }
        let expected = Expected::Range(self.first.get(), self.end().get().saturating_sub(1));
        Err(Error::corrupt(self.block, "rgrp", "block", block.get(), expected))
    }

    /// A block's state.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a block of elsewhere or too few bytes.
    pub fn state(&self, bytes: &[u8], block: BlockAddr) -> Result<BlockState> {
        let index = self.index_of(block)?;
        let bits = self.bits(bytes)?;
        Ok(state_at(bits, index))
    }

    /// Changes a block's state.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the block is not in state `from`, when `from` to `to` is no legal transition, or
    /// for a block of elsewhere.
    pub fn set(&self, bytes: &mut [u8], block: BlockAddr, from: BlockState, to: BlockState) -> Result<()> {
        self.set_run(bytes, Extent::single(block), from, to)
    }

    /// Changes the states of a run of blocks, all or none; the run must lie within this part.
    ///
    /// # Errors
    /// As [`BitmapSlice::set`].
    pub fn set_run(&self, bytes: &mut [u8], run: Extent, from: BlockState, to: BlockState) -> Result<()> {
        if !legal(from, to) {
            return Err(Error::corrupt(
                run.start,
                "rgrp",
                "new block state",
                to as u64,
                Expected::Rule("a legal transition: 0 to 1 or 3, 1 to 0, 2 to 0, 3 to 0 or 2"),
            ));
        }
        if run.len == 0 {
            return Ok(());
        }
        let start = self.index_of(run.start)?;
        let last = run.start.checked_add(u64::from(run.len) - 1);
        let last = self.index_of(last.unwrap_or(BlockAddr::new(u64::MAX)))?;
        let bits = self.bits_mut(bytes)?;
        for index in start..=last {
            let found = state_at(bits, index);
            if found != from {
                let block = self.first.checked_add(index as u64).unwrap_or(run.start);
                let expected = Expected::Value(from as u64);
                return Err(Error::corrupt(
                    block,
                    "rgrp",
                    "block state",
                    found as u64,
                    expected,
                ));
            }
        }
        for index in start..=last {
            let shift = (index % 4) * 2;
            if let Some(byte) = bits.get_mut(index / 4) {
                *byte = *byte & !(3 << shift) | (to as u8) << shift;
            }
        }
        Ok(())
    }

    /// The first run of free blocks at or after `from` (blocks before this part count as its first), at least
    /// `min` long, cut to `want`. `None` when there is none in this part.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for too few bytes.
    pub fn find_free(&self, bytes: &[u8], from: BlockAddr, min: u32, want: u32) -> Result<Option<Extent>> {
        let bits = self.bits(bytes)?;
        let mut at = from.get().saturating_sub(self.first.get());
        let want = want.max(min).max(1) as usize;
        while let Some(start) = next_in(bits, at, BlockState::Free, true) {
            let limit = start.saturating_add(want).min(self.states() as usize);
            let end =
                next_in(bits, start as u64, BlockState::Free, false).map_or(limit, |end| end.min(limit));
            let len = (end - start) as u32;
            if len >= min {
                return Ok(self
                    .first
                    .checked_add(start as u64)
                    .map(|start| Extent { start, len }));
            }
            at = end as u64;
        }
        Ok(None)
    }

    /// The first block at or after `from` in state `state`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for too few bytes.
    pub fn find_state(&self, bytes: &[u8], from: BlockAddr, state: BlockState) -> Result<Option<BlockAddr>> {
        let at = from.get().saturating_sub(self.first.get());
        let found = next_in(self.bits(bytes)?, at, state, true);
        Ok(found.and_then(|index| self.first.checked_add(index as u64)))
    }

    /// How many blocks are in each state, indexed by the state's number.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for too few bytes.
    pub fn count(&self, bytes: &[u8]) -> Result<[u32; 4]> {
        let bits = self.bits(bytes)?;
        let mut low_high_both = [0u32; 3];
        let mut add = |word: u64| {
            let (low, high) = (word & LOW_BITS, word >> 1 & LOW_BITS);
            for (sum, bits) in low_high_both.iter_mut().zip([low, high, low & high]) {
                *sum += bits.count_ones();
            }
        };
        let (words, rest) = bits.as_chunks::<8>();
        words.iter().for_each(|word| add(u64::from_le_bytes(*word)));
        rest.iter().for_each(|byte| add(u64::from(*byte)));
        let [low, high, both] = low_high_both;
        let (used, unlinked) = (low - both, high - both);
        Ok([self.states() - used - unlinked - both, used, unlinked, both])
    }

    /// Every block of this part with its state.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for too few bytes.
    pub fn iter<'a>(
        &self,
        bytes: &'a [u8],
    ) -> Result<impl Iterator<Item = (BlockAddr, BlockState)> + use<'a>> {
        let bits = self.bits(bytes)?;
        let first = self.first.get();
        let states = bits
            .iter()
            .flat_map(|byte| [0, 2, 4, 6].map(|shift| BlockState::from_bits(byte >> shift)));
        Ok(states
            .enumerate()
            .map(move |(n, state)| (BlockAddr::new(first.saturating_add(n as u64)), state)))
    }
}

/// The transitions the kernel allows.
const fn legal(from: BlockState, to: BlockState) -> bool {
    use BlockState::{Dinode, Free, Unlinked, Used};
    matches!(
        (from, to),
        (Free, Used | Dinode) | (Used | Unlinked | Dinode, Free) | (Dinode, Unlinked)
    )
}

fn state_at(bits: &[u8], index: usize) -> BlockState {
    let byte = bits.get(index / 4).copied().unwrap_or(0);
    BlockState::from_bits(byte >> ((index % 4) * 2))
}

/// Index of the first state at or after `from` that is (or, with `equal` false, is not) `state`. Looks at 32
/// states a step: a state is right where both bits of its difference to the pattern are clear.
fn next_in(bits: &[u8], from: u64, state: BlockState, equal: bool) -> Option<usize> {
    let from = usize::try_from(from).ok()?;
    let pattern = LOW_BITS * (state as u64);
    let mut byte = from / 32 * 8;
    // States before `from` in the first word are masked out.
    let mut mask = LOW_BITS << ((from % 32) * 2);
    while let Some(rest) = bits.get(byte..).filter(|rest| !rest.is_empty()) {
        let (word, valid) = match rest.first_chunk::<8>() {
            Some(word) => (u64::from_le_bytes(*word), LOW_BITS),
            None => {
                let mut word = [0; 8];
                word.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
                (u64::from_le_bytes(word), LOW_BITS & ((1 << (rest.len() * 8)) - 1))
            }
        };
        let differs = word ^ pattern;
        let differs = (differs | differs >> 1) & LOW_BITS;
        let hits = if equal { !differs } else { differs } & valid & mask;
        if hits != 0 {
            return Some(byte * 4 + hits.trailing_zeros() as usize / 2);
        }
        mask = LOW_BITS;
        byte = byte.checked_add(8)?;
    }
    None
}

/// Decodes the content of the rindex file: its whole entries, sorted by address (a tail shorter than an entry is
/// not looked at, as in the kernel).
///
/// # Errors
/// [`Error::Corrupt`] for an entry that does not fit and for groups that overlap.
pub fn decode_rindex(content: &[u8], rindex: BlockAddr, geometry: &Geometry) -> Result<Vec<RgrpLayout>> {
    let (entries, _) = content.as_chunks::<RINDEX_SIZE>();
    let mut groups = entries
        .iter()
        .filter_map(|bytes| RindexEntry::ref_from_bytes(bytes).ok())
        .map(|entry| RgrpLayout::check(entry, rindex, geometry))
        .collect::<Result<Vec<_>>>()?;
    groups.sort_by_key(RgrpLayout::addr);
    let mut free_from = BlockAddr::new(0);
    for group in &groups {
        if group.addr() < free_from {
            let expected = Expected::Range(free_from.get(), geometry.end().saturating_sub(1));
            return Err(Error::corrupt(
                rindex,
                "rindex",
                "ri_addr",
                group.addr().get(),
                expected,
            ));
        }
        free_from = group.end();
    }
    Ok(groups)
}

/// The group that contains a block (header and bitmap included), among groups sorted by address.
#[must_use]
pub fn find_rgrp(groups: &[RgrpLayout], block: BlockAddr) -> Option<usize> {
    let after = groups.partition_point(|group| group.addr() <= block);
    let index = after.checked_sub(1)?;
    groups.get(index)?.contains(block).then_some(index)
}

#[cfg(test)]
mod tests;
