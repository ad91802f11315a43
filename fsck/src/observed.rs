//! What is known of every block: what its bitmap says, and whether somebody uses it.
//!
//! Two bits a block, only for resource groups in which anything is marked; the bitmap's states are taken over and
//! change to `Seen` when an owner shows up. Unlinked inodes have one more bit a block, only where there are any.
//! Invariant: a block is `Seen` from its first owner on, so a second owner is always noticed.

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

/// One resource group.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) layout: RgrpLayout,
    /// Codes, four a byte; empty when all are free.
    codes: Box<[u8]>,
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
}

impl Observed {
    /// Adds a group behind the last one, with its bitmap bytes; `None`: they could not be read.
    pub(crate) fn push(&mut self, layout: RgrpLayout, bits: Option<&[u8]>) {
        let mut group = Group {
            layout,
            codes: Box::default(),
            unlinked: Box::default(),
            blind: bits.is_none(),
        };
        if let Some(bits) = bits.filter(|bits| bits.iter().any(|b| *b != 0)) {
            group.codes = bits.into();
            // State 2 has another meaning here: those blocks move to their own map.
            for (n, byte) in group.codes.iter_mut().enumerate() {
                let high = *byte & 0xaa;
                let low = *byte & 0x55;
                let unlinked = high & !(low << 1);
                if unlinked == 0 {
                    continue;
                }
                if group.unlinked.is_empty() {
                    group.unlinked = vec![0; bits.len().div_ceil(2)].into();
                }
                *byte |= unlinked >> 1;
                for block in 0..4usize {
                    if unlinked >> (block * 2) & 2 != 0
                        && let Some(map) = group.unlinked.get_mut(n / 2)
                    {
                        *map |= 1 << (n % 2 * 4 + block);
                    }
                }
            }
        }
        self.groups.push(group);
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
        if group.codes.is_empty() {
            group.codes = vec![0; (group.layout.data() as usize).div_ceil(4)].into();
        }
        if let Some(byte) = group.codes.get_mut(slot.index as usize / 4) {
            let shift = slot.index % 4 * 2;
            *byte = *byte & !(3 << shift) | (code as u8) << shift;
        }
    }
}

impl Group {
    /// No block is free, as far as a quick look tells.
    pub(crate) fn is_full(&self) -> bool {
        !self.codes.is_empty()
            && self
                .codes
                .iter()
                .all(|byte| byte & 3 != 0 && byte & 0xc != 0 && byte & 0x30 != 0 && byte & 0xc0 != 0)
    }

    fn code(&self, index: u32) -> Code {
        let byte = self.codes.get(index as usize / 4).copied().unwrap_or(0);
        Code::from_bits(byte >> (index % 4 * 2))
    }

    fn is_unlinked(&self, index: u32) -> bool {
        let byte = self.unlinked.get(index as usize / 8).copied().unwrap_or(0);
        byte >> (index % 8) & 1 == 1
    }

    /// The blocks of this code from data block `from` on, ascending, with whether they are marked unlinked.
    pub(crate) fn with_code(&self, code: Code, from: u32) -> impl Iterator<Item = (u32, bool)> + '_ {
        let pattern = (code as u8).wrapping_mul(0x55);
        let first = from as usize / 4;
        let bytes = self.codes.iter().enumerate().skip(first);
        bytes.flat_map(move |(n, byte)| {
            let differs = byte ^ pattern;
            let hits = !(differs | differs >> 1) & 0x55;
            (0..4u32)
                .filter(move |k| hits >> (k * 2) & 1 == 1)
                .map(move |k| (n as u32).saturating_mul(4).saturating_add(k))
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
