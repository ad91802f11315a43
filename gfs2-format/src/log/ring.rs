//! The circle of a journal's blocks: every position is taken modulo its length.

use crate::addr::JournalBlock;
use std::num::NonZeroU32;

/// A journal of so many blocks, the last followed by the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    blocks: NonZeroU32,
}

impl Ring {
    /// A ring of `blocks` blocks; `None` for an empty one.
    #[must_use]
    pub const fn new(blocks: u32) -> Option<Self> {
        match NonZeroU32::new(blocks) {
            Some(blocks) => Some(Self { blocks }),
            None => None,
        }
    }

    /// Length in blocks.
    #[must_use]
    pub const fn blocks(self) -> u32 {
        self.blocks.get()
    }

    /// Is `at` a position of this ring?
    #[must_use]
    pub const fn contains(self, at: JournalBlock) -> bool {
        at.get() < self.blocks.get()
    }

    /// The position `steps` blocks further on.
    #[must_use]
    pub const fn advance(self, at: JournalBlock, steps: u32) -> JournalBlock {
        let sum = (at.get() as u64) + (steps as u64);
        JournalBlock::new((sum % (self.blocks.get() as u64)) as u32)
    }

    /// The position before: where a block stood before the last [`Ring::advance`] by one.
    #[must_use]
    pub const fn previous(self, at: JournalBlock) -> JournalBlock {
        self.advance(at, self.blocks.get() - 1)
    }

    /// Steps forward from `from` to `to`: below [`Ring::blocks`], 0 when they are equal.
    #[must_use]
    pub const fn distance(self, from: JournalBlock, to: JournalBlock) -> u32 {
        let n = self.blocks.get() as u64;
        let (from, to) = (from.get() as u64 % n, to.get() as u64 % n);
        ((to + n - from) % n) as u32
    }

    /// The at most two unwrapped runs (start, length) that `len` blocks from `at` on consist of; `len` is cut to one
    /// round.
    pub fn runs(self, at: JournalBlock, len: u32) -> impl Iterator<Item = (JournalBlock, u32)> {
        let start = self.advance(at, 0);
        let len = len.min(self.blocks());
        let first = len.min(self.blocks() - start.get());
        [(start, first), (JournalBlock::new(0), len - first)]
            .into_iter()
            .filter(|(_, len)| *len > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u32) -> JournalBlock {
        JournalBlock::new(n)
    }

    #[test]
    fn positions_wrap() {
        let ring = Ring::new(10).unwrap();
        assert_eq!(ring.advance(at(9), 1), at(0));
        assert_eq!(ring.advance(at(7), u32::MAX), at(2));
        assert_eq!(ring.previous(at(0)), at(9));
        assert_eq!(ring.distance(at(8), at(3)), 5);
        assert_eq!(ring.distance(at(3), at(3)), 0);
        assert!(ring.contains(at(9)) && !ring.contains(at(10)));
        assert!(Ring::new(0).is_none());
    }

    #[test]
    fn a_run_over_the_end_is_two_runs() {
        let ring = Ring::new(10).unwrap();
        assert_eq!(ring.runs(at(8), 5).collect::<Vec<_>>(), [(at(8), 2), (at(0), 3)]);
        assert_eq!(ring.runs(at(2), 5).collect::<Vec<_>>(), [(at(2), 5)]);
        assert_eq!(ring.runs(at(2), 8).collect::<Vec<_>>(), [(at(2), 8)]);
        assert_eq!(ring.runs(at(2), 0).count(), 0);
        assert_eq!(ring.runs(at(1), 99).collect::<Vec<_>>(), [(at(1), 9), (at(0), 1)]);
    }
}
