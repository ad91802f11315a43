//! What the repairs of one run did with blocks: which ones are new, which ones were freed.
//!
//! Invariant: ranges are kept joined, so memory grows with the pieces, not with the blocks.

use gfs2_format::{BlockAddr, Extent, FormalIno};
use std::collections::BTreeMap;

/// Block numbers as joined ranges.
#[derive(Debug, Default)]
pub(crate) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds `start..end`.
    pub(crate) fn add(&mut self, start: u64, end: u64) {
        let (mut start, mut end) = (start, end);
        if start >= end {
            return;
        }
        while let Some((from, to)) = self.0.range(..=end).next_back().map(|(a, b)| (*a, *b)) {
            if to < start {
                break;
            }
            start = start.min(from);
            end = end.max(to);
            self.0.remove(&from);
        }
        self.0.insert(start, end);
    }

    pub(crate) fn contains(&self, n: u64) -> bool {
        self.0.range(..=n).next_back().is_some_and(|(_, end)| n < *end)
    }

    /// The parts of `start..end` that are not in here.
    pub(crate) fn missing(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut parts = Vec::new();
        let mut at = start;
        let before = self.0.range(..=start).next_back();
        let after = self.0.range(start.saturating_add(1)..end);
        for (from, to) in before.into_iter().chain(after) {
            if *from > at {
                parts.push((at, *from));
            }
            at = at.max(*to);
        }
        if at < end {
            parts.push((at, end));
        }
        parts
    }
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    new: Ranges,
    freed: Ranges,
    formal: u64,
}

impl Ledger {
    fn range(extent: Extent) -> (u64, u64) {
        let start = extent.start.get();
        (start, start.saturating_add(u64::from(extent.len)))
    }

    pub(crate) fn allocated(&mut self, extent: Extent) {
        let (start, end) = Self::range(extent);
        self.new.add(start, end);
    }

    pub(crate) fn freed(&mut self, extent: Extent) {
        let (start, end) = Self::range(extent);
        self.freed.add(start, end);
    }

    /// Did nothing use this block before the run?
    pub(crate) fn is_new(&self, block: BlockAddr) -> bool {
        self.new.contains(block.get())
    }

    pub(crate) fn was_freed(&self, block: BlockAddr) -> bool {
        self.freed.contains(block.get())
    }

    /// A formal number above `highest` and above those given out before.
    pub(crate) fn next_formal(&mut self, highest: u64) -> FormalIno {
        self.formal = self.formal.max(highest).saturating_add(1);
        FormalIno::new(self.formal)
    }

    /// What was changed is on the device: everything may be used again.
    pub(crate) fn written(&mut self) {
        self.new = Ranges::default();
        self.freed = Ranges::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_and_their_gaps_are_known() {
        let mut ranges = Ranges::default();
        for (start, end) in [(10, 20), (30, 40), (20, 25), (5, 5), (39, 50), (100, 101)] {
            ranges.add(start, end);
        }
        assert_eq!(ranges.0.len(), 3);
        assert!(ranges.contains(24) && !ranges.contains(25) && ranges.contains(49) && !ranges.contains(99));
        assert_eq!(
            ranges.missing(0, 110),
            vec![(0, 10), (25, 30), (50, 100), (101, 110)]
        );
        assert_eq!(ranges.missing(12, 18), vec![]);
        assert_eq!(ranges.missing(12, 27), vec![(25, 27)]);
        assert_eq!(ranges.missing(60, 70), vec![(60, 70)]);
        ranges.add(0, 200);
        assert_eq!(ranges.missing(0, 200), vec![]);
        assert_eq!(ranges.0.len(), 1);
    }
}
