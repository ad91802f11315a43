//! Soft reservations: the free blocks behind a growing file's last ones, kept from others as long as there is room
//! elsewhere, so that files that grow side by side do not interleave.
//!
//! Invariants: `open` is the allocatable blocks without those of any window; a window's blocks are all allocatable. A
//! window is a hint in this node's memory: nothing is lost with it, and no space is ever refused because of it.

use super::freemap::FreeMap;
use super::group::Run;
use crate::hash::QuickMap;

/// Blocks of a first window.
const FIRST: u32 = 32;
/// By how much the next one of the same file is larger.
const MORE: u32 = 64;
/// Blocks of a window, at most.
const MOST: u32 = 1024;

/// A file's window.
#[derive(Clone, Copy, Debug)]
struct Window {
    run: Run,
    /// Its size when it was made.
    size: u32,
}

/// The windows of one group.
#[derive(Debug, Default)]
pub(super) struct Windows {
    open: FreeMap,
    files: QuickMap<u64, Window>,
}

impl Windows {
    /// No windows yet in a group of `len` blocks.
    pub(super) fn new(len: u32) -> Self {
        Self {
            open: FreeMap::new(len),
            files: QuickMap::default(),
        }
    }

    /// Bytes they take.
    pub(super) fn bytes(&self) -> usize {
        self.open.bytes() + self.files.capacity() * size_of::<(u64, Window)>()
    }

    /// These blocks may be allocated now.
    pub(super) fn insert(&mut self, run: Run) {
        self.open.insert(run.0, run.1);
    }

    /// A run of up to `want` blocks that may be allocated (`map` knows which): of the file's own window, else of
    /// nobody's, else of whoever has some.
    pub(super) fn find(&mut self, map: &FreeMap, file: Option<u64>, goal: u32, want: u32) -> Option<Run> {
        if let Some(window) = file.and_then(|file| self.files.get(&file))
            && window.run.1 > 0
        {
            return Some((window.run.0, window.run.1.min(want.max(1))));
        }
        self.open.find(goal, want).or_else(|| {
            let found = map.find(goal, want)?;
            self.clear(map);
            Some(found)
        })
    }

    /// Blocks were taken, by `file` if it is one that goes on growing; they are out of `map` already.
    pub(super) fn taken(&mut self, map: &FreeMap, file: Option<u64>, run: Run) {
        let end = run.0 + run.1;
        self.open.remove(run.0, run.1);
        let Some(file) = file else {
            // Chosen in passing over the windows (see `find`), or outside of all.
            return;
        };
        let last = self.files.get(&file).copied();
        if let Some(window) = last
            && window.run.0 == run.0
            && window.run.1 > run.1
        {
            let rest = (end, window.run.1 - run.1);
            self.files.insert(file, Window { run: rest, ..window });
            return;
        }
        self.close(map, file);
        let size = last.map_or(FIRST, |window| window.size.saturating_add(MORE).min(MOST));
        let run = (end, self.open.run_at(end, size));
        self.open.remove(run.0, run.1);
        self.files.insert(file, Window { run, size });
    }

    /// The file does not grow any more: its window is anybody's.
    pub(super) fn close(&mut self, map: &FreeMap, file: u64) {
        if let Some(window) = self.files.remove(&file) {
            self.open.insert_common(map, window.run);
        }
    }

    fn clear(&mut self, map: &FreeMap) {
        for (_, window) in self.files.drain() {
            self.open.insert_common(map, window.run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group and its windows, as allocations change them.
    struct Bench {
        map: FreeMap,
        windows: Windows,
    }

    impl Bench {
        fn new(len: u32) -> Self {
            let mut bench = Self {
                map: FreeMap::new(len),
                windows: Windows::new(len),
            };
            bench.map.insert(0, len);
            bench.windows.insert((0, len));
            bench
        }

        fn take(&mut self, file: Option<u64>, goal: u32, want: u32) -> Option<Run> {
            let run = self.windows.find(&self.map, file, goal, want)?;
            for at in run.0..run.0 + run.1 {
                assert!(self.map.contains(at), "block {at} is not free");
            }
            self.map.remove(run.0, run.1);
            self.windows.taken(&self.map, file, run);
            Some(run)
        }
    }

    #[test]
    fn files_that_grow_side_by_side_stay_apart() {
        let mut bench = Bench::new(10_000);
        let mut last = [0; 4];
        let mut breaks = 0;
        for _ in 0..200 {
            for (file, last) in (0..).zip(&mut last) {
                let (start, len) = bench.take(Some(file), *last, 1).unwrap();
                breaks += u32::from(start != *last);
                *last = start + len;
            }
        }
        assert!(breaks <= 4 * 8, "{breaks} breaks in 800 blocks");
    }

    #[test]
    fn every_block_can_be_had_whatever_is_kept() {
        let mut bench = Bench::new(500);
        for file in 0..5 {
            bench.take(Some(file), 0, 1).unwrap();
        }
        let mut blocks = 5;
        while let Some((_, len)) = bench.take(None, 0, 7) {
            blocks += len;
        }
        assert_eq!((blocks, bench.map.free()), (500, 0));
        assert_eq!(bench.take(Some(1), 0, 1), None);
    }

    #[test]
    fn a_closed_file_leaves_no_gap() {
        let mut bench = Bench::new(500);
        assert_eq!(bench.take(Some(1), 0, 4), Some((0, 4)));
        bench.windows.close(&bench.map, 1);
        assert_eq!(bench.take(None, 4, 4), Some((4, 4)));
    }

    #[test]
    fn seeded_files_never_meet() {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut bench = Bench::new(3000);
        let mut owned: Vec<Vec<Run>> = vec![Vec::new(); 8];
        for _ in 0..20_000 {
            let file = rng.usize(..8);
            match rng.u32(..10) {
                0 => bench.windows.close(&bench.map, file as u64),
                1..=3 => {
                    for (start, len) in owned[file].drain(..) {
                        bench.map.insert(start, len);
                        bench.windows.insert((start, len));
                    }
                }
                _ => {
                    let growing = rng.bool().then_some(file as u64);
                    let run = bench.take(growing, rng.u32(..3000), rng.u32(1..60));
                    owned[file].extend(run);
                }
            }
            let used: u32 = owned.iter().flatten().map(|run| run.1).sum();
            assert_eq!(bench.map.free() + used, 3000);
        }
    }
}
