//! Which blocks of one resource group may be allocated now: one bit per block.
//!
//! This is the in-core "clone" of the bitmap: a block is in it when it is free on disk *and* the commit that freed it
//! is durable. Positions are counted from the group's first data block. Invariant: `free` is the number of set bits.

/// A set of allocatable blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FreeMap {
    words: Vec<u64>,
    len: u32,
    free: u32,
}

impl FreeMap {
    /// No block of `len` may be allocated.
    pub(crate) fn new(len: u32) -> Self {
        Self {
            words: vec![0; (len as usize).div_ceil(64)],
            len,
            free: 0,
        }
    }

    /// Bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }

    /// Blocks that may be allocated.
    pub(crate) fn free(&self) -> u32 {
        self.free
    }

    /// May this block be allocated?
    pub(crate) fn contains(&self, at: u32) -> bool {
        self.word(at as usize / 64) >> (at % 64) & 1 == 1
    }

    fn word(&self, index: usize) -> u64 {
        self.words.get(index).copied().unwrap_or(0)
    }

    /// Calls `change` for each word the range touches, with the mask of the range in it.
    fn for_words(&mut self, start: u32, len: u32, mut change: impl FnMut(&mut u64, u64)) {
        let end = start.saturating_add(len).min(self.len);
        let mut at = start;
        while at < end {
            let upto = ((at / 64 + 1) * 64).min(end);
            let mask = (u64::MAX >> (64 - (upto - at))) << (at % 64);
            if let Some(word) = self.words.get_mut(at as usize / 64) {
                change(word, mask);
            }
            at = upto;
        }
    }

    /// Adds a run; what is in the set already stays.
    pub(crate) fn insert(&mut self, start: u32, len: u32) {
        let mut added = 0;
        self.for_words(start, len, |word, mask| {
            added += (mask & !*word).count_ones();
            *word |= mask;
        });
        self.free += added;
    }

    /// Adds those blocks of a run that `other` has.
    pub(super) fn insert_common(&mut self, other: &Self, (start, len): (u32, u32)) {
        let mut at = start;
        let end = start.saturating_add(len).min(self.len);
        while at < end {
            let from = other.next(at, true).min(end);
            let upto = other.next(from, false).min(end);
            self.insert(from, upto - from);
            at = upto;
        }
    }

    /// How many blocks follow each other from `start` on, `most` at most.
    pub(super) fn run_at(&self, start: u32, most: u32) -> u32 {
        if start >= self.len {
            return 0;
        }
        self.next(start, false).min(start.saturating_add(most)) - start
    }

    /// Takes a run out; what is not in the set stays out.
    pub(crate) fn remove(&mut self, start: u32, len: u32) {
        let mut removed = 0;
        self.for_words(start, len, |word, mask| {
            removed += (mask & *word).count_ones();
            *word &= !mask;
        });
        self.free -= removed;
    }

    /// First position at or after `from` whose bit is `set`; `len` when there is none.
    fn next(&self, from: u32, set: bool) -> u32 {
        let mut at = from;
        while at < self.len {
            let word = self.word(at as usize / 64);
            let hits = if set { word } else { !word } >> (at % 64);
            if hits != 0 {
                return (at + hits.trailing_zeros()).min(self.len);
            }
            at = (at / 64 + 1) * 64;
        }
        self.len
    }

    /// The first run that starts in `from..until`, at least `min` long, cut to `want`.
    fn find_between(&self, from: u32, until: u32, min: u32, want: u32) -> Option<(u32, u32)> {
        let mut at = from;
        loop {
            let start = self.next(at, true);
            if start >= until.min(self.len) {
                return None;
            }
            let limit = start.saturating_add(want).min(self.len);
            let end = self.next(start, false).min(limit);
            if end - start >= min {
                return Some((start, end - start));
            }
            at = end;
        }
    }

    /// A run of 1 to `want` blocks, the nearest after `goal` of those that are `want` long, else of those half as
    /// long, and so on; wraps around at the end.
    pub(crate) fn find(&self, goal: u32, want: u32) -> Option<(u32, u32)> {
        if self.free == 0 {
            return None;
        }
        let goal = if goal < self.len { goal } else { 0 };
        let want = want.max(1);
        // Whatever follows the goal directly is best: it continues what stands there.
        let direct = self.next(goal, false).min(goal.saturating_add(want));
        if direct - goal >= want.min(8) {
            return Some((goal, direct - goal));
        }
        let mut min = want.min(self.free);
        loop {
            let found = self
                .find_between(goal, self.len, min, want)
                .or_else(|| self.find_between(0, goal, min, want));
            if found.is_some() || min <= 1 {
                return found;
            }
            min = (min / 4).max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_follow_inserts_and_removes() {
        let mut map = FreeMap::new(200);
        assert_eq!(map.find(0, 1), None);
        map.insert(10, 150);
        map.insert(100, 70);
        assert_eq!(map.free(), 160);
        map.remove(0, 20);
        map.remove(60, 5);
        assert_eq!(map.free(), 145);
        assert!(map.contains(20) && !map.contains(19) && !map.contains(62) && map.contains(65));
        map.insert(190, 100);
        assert_eq!(map.free(), 155);
    }

    #[test]
    fn a_search_goes_on_at_the_goal_then_takes_the_nearest_long_run_then_wraps() {
        let mut map = FreeMap::new(1000);
        map.insert(0, 4);
        map.insert(100, 30);
        map.insert(300, 600);
        assert_eq!(map.find(105, 20), Some((105, 20)));
        assert_eq!(map.find(128, 100), Some((300, 100)));
        assert_eq!(map.find(950, 4), Some((0, 4)));
        assert_eq!(map.find(950, 30), Some((100, 30)));
        assert_eq!(map.find(5000, 600), Some((300, 600)));
        assert_eq!(map.find(0, 100_000), Some((300, 600)));
        map.remove(0, 1000);
        map.insert(999, 1);
        assert_eq!(map.find(3, 64), Some((999, 1)));
        assert_eq!(map.free(), 1);
    }

    #[test]
    fn agrees_with_a_plain_list_of_flags() {
        let mut map = FreeMap::new(517);
        let mut plain = vec![false; 517];
        let mut seed = 12345u64;
        for _ in 0..4000 {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let start = (seed >> 33) as u32 % 517;
            let len = (seed >> 20) as u32 % 90;
            let set = seed >> 60 & 1 == 1;
            let end = (start + len).min(517);
            plain[start as usize..end as usize].fill(set);
            if set {
                map.insert(start, len)
            } else {
                map.remove(start, len)
            }
            assert_eq!(map.free() as usize, plain.iter().filter(|b| **b).count());
            if let Some((at, n)) = map.find(start, len.max(1)) {
                assert!(plain[at as usize..(at + n) as usize].iter().all(|b| *b) && n <= len.max(1));
            } else {
                assert!(!plain.contains(&true));
            }
        }
    }
}
