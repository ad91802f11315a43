//! Many threads, many glocks, demotes from a hook at any time. The operations themselves check the promise.

use std::sync::atomic::{AtomicI64, AtomicU64};

use super::*;
use crate::glock::multi::{Want, acquire_sorted, acquire_together};

/// An object that checks at every call that the glock keeps its promise.
#[derive(Default)]
struct Checked {
    readers: AtomicI64,
    writers: AtomicI64,
    /// What the object is, while it is cached: 0 is "not read".
    cached: AtomicU64,
    /// What all nodes would read from the disk.
    disk: Arc<AtomicU64>,
    newest: Arc<AtomicU64>,
    synced: AtomicBool,
    invalidates: AtomicU64,
    syncs: AtomicU64,
}

impl Checked {
    fn nobody_holds(&self, when: &str) {
        assert_eq!(self.readers.load(Ordering::SeqCst), 0, "readers during {when}");
        assert_eq!(self.writers.load(Ordering::SeqCst), 0, "writers during {when}");
    }

    fn use_it(&self, glock: &Glock, state: State) {
        let cached = self.cached.load(Ordering::SeqCst);
        assert_ne!(cached, 0, "used without having been read");
        if state == Ex {
            assert_eq!(self.writers.fetch_add(1, Ordering::SeqCst), 0, "two writers");
            assert_eq!(
                self.readers.load(Ordering::SeqCst),
                0,
                "a reader beside the writer"
            );
            assert_eq!(
                cached,
                self.newest.load(Ordering::SeqCst),
                "the last writer's value"
            );
            glock.mark_dirty();
            self.synced.store(false, Ordering::SeqCst);
            let new = self.newest.fetch_add(1, Ordering::SeqCst) + 1;
            self.cached.store(new, Ordering::SeqCst);
            std::thread::yield_now();
            self.writers.fetch_sub(1, Ordering::SeqCst);
        } else {
            self.readers.fetch_add(1, Ordering::SeqCst);
            assert_eq!(self.writers.load(Ordering::SeqCst), 0, "a writer beside a reader");
            assert_eq!(
                cached,
                self.newest.load(Ordering::SeqCst),
                "the last writer's value"
            );
            std::thread::yield_now();
            self.readers.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl GlockOps for Checked {
    fn sync(&self, glock: &Glock) -> Result<(), FsError> {
        self.nobody_holds("sync");
        assert_eq!(glock.held_state(), Ex, "given up before the sync");
        if glock.is_dirty() {
            self.disk
                .store(self.cached.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        self.synced.store(true, Ordering::SeqCst);
        self.syncs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn invalidate(&self, glock: &Glock, target: State) {
        self.nobody_holds("invalidate");
        assert!(
            glock.held_state() != Un && !glock.is_dirty(),
            "invalidate comes after sync, before release"
        );
        if glock.held_state() == Ex {
            assert!(self.synced.load(Ordering::SeqCst), "not synced");
        }
        if target == Un {
            self.cached.store(0, Ordering::SeqCst);
        }
        self.invalidates.fetch_add(1, Ordering::SeqCst);
    }

    fn instantiate(&self, _glock: &Glock) -> Result<(), FsError> {
        self.cached
            .store(self.disk.load(Ordering::SeqCst), Ordering::SeqCst);
        Ok(())
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// The objects of one node, with what is "on disk" shared by all nodes.
fn objects(node: &Node, disks: &[(Arc<AtomicU64>, Arc<AtomicU64>)]) -> Vec<(Arc<Glock>, Arc<Checked>)> {
    let make = |(index, (disk, newest)): (usize, &(Arc<AtomicU64>, Arc<AtomicU64>))| {
        let ops = Arc::new(Checked {
            disk: Arc::clone(disk),
            newest: Arc::clone(newest),
            ..Checked::default()
        });
        let number = u64::try_from(index).unwrap();
        let name = if index % 2 == 0 {
            GlockName::inode(number)
        } else {
            GlockName::rgrp(number)
        };
        let as_ops: Arc<dyn GlockOps> = Arc::clone(&ops) as Arc<dyn GlockOps>;
        (node.table.get(name, &as_ops).unwrap(), ops)
    };
    disks.iter().enumerate().map(make).collect()
}

fn one_round(objects: &[(Arc<Glock>, Arc<Checked>)], random: &mut Random) {
    let count = u64::try_from(objects.len()).unwrap();
    let (glock, ops) = &objects[usize::try_from(random.below(count)).unwrap()];
    let state = if random.below(3) == 0 { Ex } else { Sh };
    match random.below(12) {
        0 => {
            if let Some(guard) = glock.try_acquire(state, NONE).unwrap() {
                ops.use_it(glock, guard.state());
            }
        }
        1 => {
            let mut pending = glock.acquire_async(state, NONE).unwrap();
            let patience = std::time::Instant::now() + Duration::from_micros(random.below(300));
            if let Some(guard) = pending.wait_until(Some(patience), None) {
                ops.use_it(glock, guard.unwrap().state());
            }
        }
        2 => {
            let other = &objects[usize::try_from(random.below(count)).unwrap()];
            let want = |glock: &Arc<Glock>| Want {
                glock: Arc::clone(glock),
                state: Ex,
                flags: NONE,
            };
            let guards = acquire_together(&[want(glock), want(&other.0)], None).unwrap();
            for guard in &guards {
                let (glock, ops) = objects
                    .iter()
                    .find(|(one, _)| one.name() == guard.glock().name())
                    .unwrap();
                ops.use_it(glock, Ex);
            }
        }
        3 => {
            let some = objects
                .iter()
                .filter(|_| random.below(8) == 0)
                .map(|(glock, _)| Arc::clone(glock));
            for guard in acquire_sorted(some.collect(), Sh, NONE).unwrap() {
                let (glock, ops) = objects
                    .iter()
                    .find(|(one, _)| one.name() == guard.glock().name())
                    .unwrap();
                ops.use_it(glock, Sh);
            }
        }
        4 => {
            let guard = glock.acquire(state, F::NOCACHE).unwrap();
            ops.use_it(glock, guard.state());
        }
        _ => {
            let guard = glock.acquire(state, NONE).unwrap();
            ops.use_it(glock, guard.state());
        }
    }
}

fn run(from_afar: bool, nodes: usize, threads: usize, rounds: u64) {
    let dlm = LocalDlm::new();
    let nodes: Vec<Node> = (0..nodes)
        .map(|_| join(&dlm, from_afar, TableOptions::default()))
        .collect();
    let disks: Vec<_> = (0..24)
        .map(|_| (Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(1))))
        .collect();
    let objects: Vec<_> = nodes.iter().map(|node| objects(node, &disks)).collect();
    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let hook = &nodes[0].hook;
        let (finished, objects) = (&finished, &objects);
        scope.spawn(move || {
            let mut random = Random(4711);
            while !finished.load(Ordering::SeqCst) {
                let objects = &objects[usize::try_from(random.below(objects.len() as u64)).unwrap()];
                let (glock, _) = &objects[usize::try_from(random.below(24)).unwrap()];
                let mode = [Mode::Ex, Mode::Pr, Mode::Cw][usize::try_from(random.below(3)).unwrap()];
                match random.below(3) {
                    0 => glock.request_demote([Un, Sh][usize::try_from(random.below(2)).unwrap()]),
                    _ => {
                        hook.bast(&glock.name().res_name(), mode);
                    }
                }
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let objects = &objects[thread % objects.len()];
                scope.spawn(move || {
                    let mut random = Random(thread as u64 + 1);
                    for _ in 0..rounds {
                        one_round(objects, &mut random);
                    }
                })
            })
            .collect();
        let results: Vec<_> = workers
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        finished.store(true, Ordering::SeqCst);
        for result in results {
            result.unwrap();
        }
    });
    for node in &nodes {
        let stats = node.table.stats();
        assert!(
            stats.hits > 0 && stats.demotes > 0 && stats.syncs > 0 && stats.invalidates > 0,
            "{stats:?}"
        );
        assert_eq!(*node.withdrawn.lock(), Vec::<String>::new());
    }
    for (node, objects) in nodes.iter().zip(objects) {
        let ops: Vec<_> = objects.into_iter().map(|(_, ops)| ops).collect();
        assert_eq!(node.table.clear_all(), ClearReport::default());
        let syncs: u64 = ops.iter().map(|ops| ops.syncs.load(Ordering::SeqCst)).sum();
        assert_eq!(syncs, node.table.stats().syncs);
    }
    for (disk, newest) in &disks {
        assert_eq!(
            disk.load(Ordering::SeqCst),
            newest.load(Ordering::SeqCst),
            "all was written back"
        );
    }
    assert_eq!(nodes[0].hook.locks(), 0);
}

#[test]
fn eight_threads_and_random_demotes_on_one_node() {
    run(false, 1, 8, 4000);
}

#[test]
fn eight_threads_and_random_demotes_with_answers_from_afar() {
    run(true, 1, 8, 2000);
}

#[test]
fn eight_threads_on_two_nodes_see_each_others_writes() {
    run(true, 2, 8, 150);
}

/// Asserts counts, never times; run with `--release -- --nocapture` to see the cost of a cached acquire.
#[test]
fn a_cached_acquire_is_always_a_hit() {
    let node = single();
    let glock = node.presence(GlockName::inode(1));
    drop(glock.acquire(Ex, NONE).unwrap());
    const ROUNDS: u32 = 200_000;
    let start = std::time::Instant::now();
    for _ in 0..ROUNDS {
        drop(std::hint::black_box(glock.acquire(Sh, NONE).unwrap()));
    }
    println!(
        "acquire + release, cached: {} ns",
        start.elapsed().as_nanos() / u128::from(ROUNDS)
    );
    assert_eq!(node.table.stats().hits, u64::from(ROUNDS));
    for (what, new) in [("within", 20_000), ("over", 80_000)] {
        let start = std::time::Instant::now();
        for number in 0..new {
            drop(node.presence(GlockName::iopen(number)).acquire(Sh, NONE).unwrap());
        }
        let cost = start.elapsed().as_nanos() / u128::from(new);
        println!("a new glock, locked, {what} the budget: {cost} ns");
    }
}
