//! What is known of every block: what its bitmap says, and whether somebody uses it.
//!
//! Two bits a block where neighbours differ; [`CHUNK`] bytes of blocks that are all alike (all free, all data of a
//! large file) take one. The bitmap's states are taken over and change to `Seen` when an owner shows up. Unlinked
//! inodes have one more bit a block, only where there are any. Invariant: a block is `Seen` from its first owner on, so
//! a second owner is always noticed.

use gfs2_format::BlockAddr;
use gfs2_format::bitmap::RgrpLayout;
use gfs2_format::ondisk::BlockState;

/// What is known of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// The bitmap says free; nobody uses it so far.
    Free = 0,
    /// The bitmap says used; nobody uses it so far.
    Used = 1,
    /// In use.
    Seen = 2,
    /// The bitmap says that it is an inode, unlinked or not.
    Inode = 3,
}

impl Code {
    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Free,
            1 => Self::Used,
            2 => Self::Seen,
            _ => Self::Inode,
        }
    }
}

/// Bytes of codes that are kept together, four blocks a byte.
const CHUNK: usize = 1024;
/// Blocks of a chunk.
const BLOCKS: u32 = CHUNK as u32 * 4;

/// One resource group.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) layout: RgrpLayout,
    /// Codes, four a byte, where blocks of a chunk differ; no chunks when all are free.
    chunks: Box<[Option<Box<[u8; CHUNK]>>]>,
    /// The byte of a chunk whose blocks are alike.
    alike: Box<[u8]>,
    /// One bit a block: unlinked. Empty when there are none.
    unlinked: Box<[u8]>,
    /// The bitmap could not be read: what it says is not known.
    pub(crate) blind: bool,
}

/// Where a block's code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    group: usize,
    index: u32,
}

/// Every resource group, ascending.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    groups: Vec<Group>,
    last: usize,
    /// Chunks whose blocks differ.
    mixed: usize,
}

impl Observed {
    /// Adds a group behind the last one, with its bitmap bytes; `None`: they could not be read.
    pub(crate) fn push(&mut self, layout: RgrpLayout, bits: Option<&[u8]>) {
        let mut group = Group {
            layout,
            chunks: Box::default(),
            alike: Box::default(),
            unlinked: Box::default(),
            blind: bits.is_none(),
        };
        if let Some(bits) = bits.filter(|bits| bits.iter().any(|b| *b != 0)) {
            let mut chunks = Vec::with_capacity(bits.len().div_ceil(CHUNK));
            let mut alike = Vec::with_capacity(chunks.capacity());
            for (n, bits) in bits.chunks(CHUNK).enumerate() {
                let mut codes = Box::new([0; CHUNK]);
                codes.iter_mut().zip(bits).for_each(|(to, from)| *to = *from);
                group.take_unlinked(n, &mut *codes);
                let first = uniform(codes.get(..bits.len()).unwrap_or_default());
                alike.push(first.unwrap_or(0));
                chunks.push(first.is_none().then_some(codes));
            }
            self.mixed = self.mixed.saturating_add(chunks.iter().flatten().count());
            group.chunks = chunks.into();
            group.alike = alike.into();
        }
        self.groups.push(group);
    }

    /// Bytes in memory.
    pub(crate) fn memory(&self) -> u64 {
        let chunks = self.mixed.saturating_mul(CHUNK + 16);
        let groups = self.groups.capacity().saturating_mul(size_of::<Group>());
        let each = self
            .groups
            .iter()
            .map(|group| group.chunks.len() * 9 + group.unlinked.len());
        chunks.saturating_add(groups).saturating_add(each.sum()) as u64
    }

    /// Gives back the memory of chunks whose blocks are alike by now.
    pub(crate) fn compact(&mut self) {
        for group in &mut self.groups {
            for n in 0..group.chunks.len() {
                self.mixed = self.mixed.saturating_sub(usize::from(group.join(n)));
            }
        }
    }

    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Where the code of a block is; `None` when no group keeps its state.
    pub(crate) fn locate(&mut self, addr: BlockAddr) -> Option<Slot> {
        let same = self
            .groups
            .get(self.last)
            .is_some_and(|g| g.layout.contains_data(addr));
        if !same {
            let after = self.groups.partition_point(|g| g.layout.addr() <= addr);
            self.last = after.checked_sub(1)?;
        }
        let layout = &self.groups.get(self.last)?.layout;
        if !layout.contains_data(addr) {
            return None;
        }
        let index = u32::try_from(addr.get() - layout.data0().get()).ok()?;
        Some(Slot {
            group: self.last,
            index,
        })
    }

    pub(crate) fn code(&self, slot: Slot) -> Code {
        self.groups
            .get(slot.group)
            .map_or(Code::Free, |g| g.code(slot.index))
    }

    /// Is the bitmap of the block's group unknown?
    pub(crate) fn is_blind(&self, slot: Slot) -> bool {
        self.groups.get(slot.group).is_none_or(|g| g.blind)
    }

    /// What the bitmap says of a block that nobody has used so far.
    pub(crate) fn state(&self, slot: Slot) -> BlockState {
        let unlinked = self
            .groups
            .get(slot.group)
            .is_some_and(|g| g.is_unlinked(slot.index));
        match self.code(slot) {
            Code::Free => BlockState::Free,
            Code::Used | Code::Seen => BlockState::Used,
            Code::Inode if unlinked => BlockState::Unlinked,
            Code::Inode => BlockState::Dinode,
        }
    }

    /// The bitmap says free, and nobody uses the block.
    pub(crate) fn is_unused(&self, addr: BlockAddr) -> bool {
        let after = self.groups.partition_point(|g| g.layout.addr() <= addr);
        let Some(group) = after.checked_sub(1).and_then(|n| self.groups.get(n)) else {
            return false;
        };
        let index = addr.get().saturating_sub(group.layout.data0().get());
        let index = u32::try_from(index).ok();
        let known = group.layout.contains_data(addr) && !group.blind;
        known && index.is_some_and(|index| group.code(index) == Code::Free)
    }

    /// A repair gave the block this state: free is free, anything else is in use.
    pub(crate) fn note_state(&mut self, addr: BlockAddr, state: BlockState) {
        if let Some(slot) = self.locate(addr) {
            let code = match state {
                BlockState::Free => Code::Free,
                _ => Code::Seen,
            };
            self.set_code(slot, code);
        }
    }

    pub(crate) fn set_seen(&mut self, slot: Slot) {
        self.set_code(slot, Code::Seen);
    }

    fn set_code(&mut self, slot: Slot, code: Code) {
        let Some(group) = self.groups.get_mut(slot.group) else {
            return;
        };
        if group.chunks.is_empty() {
            let count = (group.layout.data().div_ceil(BLOCKS)) as usize;
            group.chunks = (0..count).map(|_| None).collect();
            group.alike = vec![0; count].into();
        }
        let n = (slot.index / BLOCKS) as usize;
        let (Some(chunk), Some(alike)) = (group.chunks.get_mut(n), group.alike.get(n)) else {
            return;
        };
        if chunk.is_none() {
            if Code::from_bits(*alike) == code {
                return;
            }
            self.mixed = self.mixed.saturating_add(1);
        }
        let codes = chunk.get_or_insert_with(|| Box::new([*alike; CHUNK]));
        if let Some(byte) = codes.get_mut((slot.index % BLOCKS) as usize / 4) {
            let shift = slot.index % 4 * 2;
            *byte = *byte & !(3 << shift) | (code as u8) << shift;
        }
        // The blocks of a large file are seen in order: behind the last one of a chunk all may be alike.
        let last = slot.index % BLOCKS == BLOCKS - 1 || slot.index + 1 == group.layout.data();
        if last && group.join(n) {
            self.mixed = self.mixed.saturating_sub(1);
        }
    }
}

/// The byte that all of these are, if it says the same of its four blocks.
fn uniform(codes: &[u8]) -> Option<u8> {
    let first = *codes.first()?;
    let same = [0, 0x55, 0xaa, 0xff].contains(&first) && codes.iter().all(|byte| *byte == first);
    same.then_some(first)
}

impl Group {
    /// State 2 has another meaning here: those blocks of chunk `n` move to their own map.
    fn take_unlinked(&mut self, n: usize, codes: &mut [u8]) {
        for (at, byte) in codes.iter_mut().enumerate() {
            let high = *byte & 0xaa;
            let low = *byte & 0x55;
            let unlinked = high & !(low << 1);
            if unlinked == 0 {
                continue;
            }
            if self.unlinked.is_empty() {
                self.unlinked = vec![0; (self.layout.data() as usize).div_ceil(8)].into();
            }
            *byte |= unlinked >> 1;
            let at = n.saturating_mul(CHUNK).saturating_add(at);
            for block in 0..4usize {
                if unlinked >> (block * 2) & 2 != 0
                    && let Some(map) = self.unlinked.get_mut(at / 2)
                {
                    *map |= 1 << (at % 2 * 4 + block);
                }
            }
        }
    }

    /// Gives back the memory of chunk `n` if its blocks are alike.
    fn join(&mut self, n: usize) -> bool {
        let (Some(chunk), Some(alike)) = (self.chunks.get_mut(n), self.alike.get_mut(n)) else {
            return false;
        };
        // The last chunk is not always filled.
        let used = ((self.layout.data() / 4) as usize)
            .saturating_sub(n.saturating_mul(CHUNK))
            .min(CHUNK);
        let first = chunk.as_ref().and_then(|codes| uniform(codes.get(..used)?));
        if let Some(first) = first {
            *alike = first;
            *chunk = None;
        }
        first.is_some()
    }

    /// The codes of four blocks.
    fn byte(&self, at: usize) -> u8 {
        let n = at / CHUNK;
        match self.chunks.get(n) {
            Some(Some(codes)) => codes.get(at % CHUNK).copied().unwrap_or(0),
            Some(None) => self.alike.get(n).copied().unwrap_or(0),
            None => 0,
        }
    }

    /// No block is free, as far as a quick look tells.
    pub(crate) fn is_full(&self) -> bool {
        let all = (self.layout.data() / 4) as usize;
        !self.chunks.is_empty()
            && (0..all)
                .map(|at| self.byte(at))
                .all(|byte| byte & 3 != 0 && byte & 0xc != 0 && byte & 0x30 != 0 && byte & 0xc0 != 0)
    }

    fn code(&self, index: u32) -> Code {
        Code::from_bits(self.byte(index as usize / 4) >> (index % 4 * 2))
    }

    fn is_unlinked(&self, index: u32) -> bool {
        let byte = self.unlinked.get(index as usize / 8).copied().unwrap_or(0);
        byte >> (index % 8) & 1 == 1
    }

    /// The blocks of this code from data block `from` on, ascending, with whether they are marked unlinked.
    pub(crate) fn with_code(&self, code: Code, from: u32) -> impl Iterator<Item = (u32, bool)> + '_ {
        let pattern = (code as u8).wrapping_mul(0x55);
        let first = (from / BLOCKS) as usize;
        // A chunk whose blocks are alike and of another code has none of them.
        let some = move |n: &usize| {
            !matches!(self.chunks.get(*n), Some(None)) || self.alike.get(*n) == Some(&pattern)
        };
        let chunks = (first..self.chunks.len()).filter(some);
        let bytes = chunks.flat_map(|n| n * CHUNK..(n + 1) * CHUNK);
        bytes.flat_map(move |at| {
            let differs = self.byte(at) ^ pattern;
            let hits = !(differs | differs >> 1) & 0x55;
            (0..4u32)
                .filter(move |k| hits >> (k * 2) & 1 == 1)
                .map(move |k| (at as u32).saturating_mul(4).saturating_add(k))
                .filter(move |index| *index >= from && *index < self.layout.data())
                .map(|index| (index, self.is_unlinked(index)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs2_format::Geometry;
    use gfs2_format::ondisk::RindexEntry;

    fn large(data: u32) -> RgrpLayout {
        let geometry = Geometry::new(4096, 100_000).unwrap();
        let length = (1..)
            .find(|n| geometry.bitmap_capacity(*n) >= u64::from(data))
            .unwrap();
        let entry = RindexEntry {
            addr: 100.into(),
            length: (length as u32).into(),
            pad: 0.into(),
            data0: (100 + length).into(),
            data: data.into(),
            bitbytes: (data / 4).into(),
            reserved: [0; 64],
        };
        RgrpLayout::check(&entry, BlockAddr::new(1), &geometry).unwrap()
    }

    /// Chunks of blocks that are alike take no memory, before and after they are seen, and say the same.
    #[test]
    fn blocks_that_are_alike_take_no_memory() {
        let data = 5 * BLOCKS + 40;
        let mut observed = Observed::default();
        let mut bits = vec![0x55u8; data as usize / 4];
        bits[3 * CHUNK + 7] = 0b01_11_01_01;
        observed.push(large(data), Some(&bits));
        let base = observed.memory();
        assert_eq!(observed.mixed, 1);
        let data0 = observed.groups()[0].layout.data0();
        let at = |n: u32| data0.checked_add(u64::from(n)).unwrap();
        for n in 0..data {
            let slot = observed.locate(at(n)).unwrap();
            let wanted = if n == 3 * BLOCKS + 30 {
                Code::Inode
            } else {
                Code::Used
            };
            assert_eq!(observed.code(slot), wanted, "{n}");
            if wanted == Code::Used {
                observed.set_seen(slot);
            }
            assert!(observed.memory() <= base + 2 * 2048, "{n}");
        }
        let group = &observed.groups()[0];
        assert_eq!(group.with_code(Code::Used, 0).count(), 0);
        assert_eq!(group.with_code(Code::Free, 0).count(), 0);
        assert_eq!(group.with_code(Code::Seen, 0).count() as u32, data - 1);
        assert_eq!(
            group.with_code(Code::Inode, 0).collect::<Vec<_>>(),
            vec![(3 * BLOCKS + 30, false)]
        );
        assert!(group.is_full());
        assert!(
            group
                .with_code(Code::Seen, 2 * BLOCKS + 3)
                .all(|(n, _)| n >= 2 * BLOCKS + 3)
        );
        observed.compact();
        assert_eq!(observed.mixed, 1, "the chunk of the inode");
        observed.note_state(at(4 * BLOCKS), BlockState::Free);
        assert!(!observed.groups()[0].is_full());
        assert!(observed.is_unused(at(4 * BLOCKS)));
    }

    fn layout(addr: u64) -> RgrpLayout {
        let entry = RindexEntry {
            addr: addr.into(),
            length: 1.into(),
            pad: 0.into(),
            data0: (addr + 1).into(),
            data: 40.into(),
            bitbytes: 10.into(),
            reserved: [0; 64],
        };
        let geometry = Geometry::new(4096, 10_000).unwrap();
        RgrpLayout::check(&entry, BlockAddr::new(1), &geometry).unwrap()
    }

    #[test]
    fn states_are_taken_over_and_seen_once_used() {
        let mut observed = Observed::default();
        let bits = [0b11_10_01_00, 0, 0, 0, 0, 0, 0, 0, 0b10_00_00_00, 0];
        observed.push(layout(100), Some(&bits));
        observed.push(layout(200), Some(&[0; 10]));
        observed.push(layout(300), None);
        let mut at = |addr| observed.locate(BlockAddr::new(addr));
        assert_eq!(
            (at(100), at(141), at(99), at(199), at(5000)),
            (None, None, None, None, None)
        );
        let slots: Vec<Slot> = [101, 102, 103, 104, 136, 201, 340]
            .map(|a| at(a).unwrap())
            .to_vec();
        let states: Vec<BlockState> = slots.iter().map(|s| observed.state(*s)).collect();
        use BlockState::{Dinode, Free, Unlinked, Used};
        assert_eq!(states, vec![Free, Used, Unlinked, Dinode, Unlinked, Free, Free]);
        let blind: Vec<bool> = slots.iter().map(|s| observed.is_blind(*s)).collect();
        assert_eq!(blind, vec![false, false, false, false, false, false, true]);
        let inodes: Vec<(u32, bool)> = observed.groups()[0].with_code(Code::Inode, 0).collect();
        assert_eq!(inodes, vec![(2, true), (3, false), (35, true)]);
        let later: Vec<(u32, bool)> = observed.groups()[0].with_code(Code::Inode, 3).collect();
        assert_eq!(later, vec![(3, false), (35, true)]);
        for slot in &slots {
            observed.set_seen(*slot);
            assert_eq!(observed.code(*slot), Code::Seen);
        }
        assert_eq!(observed.groups()[0].with_code(Code::Used, 0).count(), 0);
        assert_eq!(observed.groups()[0].with_code(Code::Seen, 0).count(), 5);
    }
}
