//! Goal: after a power failure at any moment, replay leaves exactly the state after some transaction, and none that
//! was reported durable is missing. Method: a recorded run of seeded random transactions over small logs, which wrap
//! many times; images of every flush point, of random points, and of torn and lost unflushed writes; each is
//! recovered by `gfs2_format::log` and compared, block by block, with a model.

use super::rig::{Layout, MASTER, data, ex, fill_data, fill_meta, meta};
use crate::glock::GlockName;
use crate::journal::{CommitSeq, FlushReason, Journal, Reservation, StatfsDelta, StopReason};
use crate::txn::Transaction;
use gfs2_format::BlockAddr;
use gfs2_format::device::{BlockDevice, LogEntry, MemDevice, RecordDevice, WriteLog};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

const BLOCKS: u64 = 60;
/// The block that every transaction changes, as a bitmap would be.
const BITMAP: u64 = BLOCKS;

/// What a test block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Meta {
        owner: u64,
        value: u64,
    },
    Jdata {
        owner: u64,
        value: u64,
    },
    /// Written past the log, before the transaction that allocated it.
    Data {
        value: u64,
    },
}

type Model = BTreeMap<u64, Content>;

/// Everything a run did.
struct Run {
    layout: Layout,
    initial: MemDevice,
    log: WriteLog,
    /// The model, and the sum of all statfs changes, after each transaction; the first is the beginning.
    states: Vec<(Model, StatfsDelta)>,
    /// After this many log entries the transactions up to this one were durable.
    durable: Vec<(usize, usize)>,
}

struct Runner {
    layout: Layout,
    device: Arc<RecordDevice<MemDevice>>,
    journal: Arc<Journal>,
    random: fastrand::Rng,
    model: Model,
    sum: StatfsDelta,
    /// Freed blocks, and the commit that must be durable before they are used again.
    freed: BTreeMap<u64, CommitSeq>,
    states: Vec<(Model, StatfsDelta)>,
    /// Commit number of each transaction.
    seqs: Vec<CommitSeq>,
    durable: Vec<(usize, usize)>,
    value: u64,
}

impl Runner {
    fn new(layout: Layout, shared: bool, seed: u64) -> (Self, MemDevice) {
        let initial = layout.device();
        let device = Arc::new(RecordDevice::new(initial.clone()));
        let mut config = layout.config();
        config.shared = shared;
        let journal = layout.mount_with(device.clone(), config, 8 << 10);
        let runner = Self {
            layout,
            device,
            journal,
            random: fastrand::Rng::with_seed(seed),
            model: Model::new(),
            sum: StatfsDelta::default(),
            freed: BTreeMap::new(),
            states: vec![(Model::new(), StatfsDelta::default())],
            seqs: vec![CommitSeq::NONE],
            durable: Vec::new(),
            value: 0,
        };
        (runner, initial)
    }

    fn value(&mut self) -> u64 {
        self.value += 1;
        self.value
    }

    /// Notes what is durable now.
    fn note(&mut self) {
        let durable = self.journal.durable_seq();
        let newest = self.seqs.partition_point(|seq| *seq <= durable) - 1;
        if self.durable.last().is_none_or(|(_, n)| *n < newest) {
            self.durable.push((self.device.log().entries().len(), newest));
        }
    }

    fn free_block(&mut self) -> Option<u64> {
        let durable = self.journal.durable_seq();
        let usable: Vec<u64> = (0..BLOCKS)
            .filter(|n| !self.model.contains_key(n))
            .filter(|n| self.freed.get(n).is_none_or(|seq| *seq <= durable))
            .collect();
        self.random.choice(usable)
    }

    fn transaction(&mut self) {
        let mut txn = Transaction::begin(&self.journal, Reservation::blocks(8).with_revokes(6)).unwrap();
        let mut model = self.model.clone();
        let mut touched: HashSet<u64> = HashSet::new();
        let mut freed_now = Vec::new();
        for _ in 0..self.random.usize(1..=5) {
            match self.random.u32(0..10) {
                0..4 => {
                    let Some(n) = self.free_block().filter(|n| touched.insert(*n)) else {
                        continue;
                    };
                    model.insert(n, self.allocate(&mut txn, n));
                }
                4..7 => {
                    let Some(n) = self.used_block(&model) else {
                        continue;
                    };
                    if touched.insert(n) {
                        let content = self.edit(&mut txn, n, model[&n]);
                        model.insert(n, content);
                    }
                }
                7..9 => {
                    let Some(n) = self.used_block(&model) else {
                        continue;
                    };
                    if touched.insert(n) {
                        if !matches!(model.remove(&n), Some(Content::Data { .. })) {
                            txn.revoke(self.layout.block(n)).unwrap();
                        }
                        freed_now.push(n);
                    }
                }
                _ => self.count(&mut txn),
            }
        }
        self.mark(&mut txn, &mut model);
        if self.random.u32(0..20) == 0 {
            txn.fold_statfs(&ex(1_000), self.layout.master).unwrap();
        }
        if self.random.u32(0..8) == 0 {
            // Rolled back: the model knows nothing of it.
            drop(txn);
            self.sum = self.states.last().unwrap().1;
            return;
        }
        let seq = txn.commit().unwrap();
        self.freed.extend(freed_now.into_iter().map(|n| (n, seq)));
        self.model = model;
        self.states.push((self.model.clone(), self.sum));
        self.seqs.push(seq);
    }

    fn mark(&mut self, txn: &mut Transaction, model: &mut Model) {
        let (addr, lock, value) = (self.layout.block(BITMAP), ex(BITMAP), self.value());
        let bytes = match model.contains_key(&BITMAP) {
            true => txn.edit(&lock, addr),
            false => txn.create(&lock, addr),
        };
        fill_meta(bytes.unwrap(), value);
        model.insert(BITMAP, Content::Meta { owner: BITMAP, value });
    }

    /// A block in use, of those that may be freed.
    fn used_block(&mut self, model: &Model) -> Option<u64> {
        let used: Vec<u64> = model.keys().copied().filter(|n| *n != BITMAP).collect();
        self.random.choice(used)
    }

    fn count(&mut self, txn: &mut Transaction) {
        let delta = StatfsDelta {
            total: 0,
            free: self.random.i64(-5..5),
            dinodes: self.random.i64(-2..2),
        };
        txn.add_statfs(delta);
        self.sum = self.sum.plus(delta);
    }

    fn allocate(&mut self, txn: &mut Transaction, n: u64) -> Content {
        let addr = self.layout.block(n);
        let (owner, value) = (self.random.u64(0..6), self.value());
        match self.random.u32(0..3) {
            0 => {
                fill_meta(txn.create(&ex(owner), addr).unwrap(), value);
                Content::Meta { owner, value }
            }
            1 => {
                fill_data(txn.create_data(&ex(owner), addr).unwrap(), value);
                Content::Jdata { owner, value }
            }
            _ => {
                self.layout
                    .put(&*self.device, addr, &data(&self.layout.geometry, value));
                Content::Data { value }
            }
        }
    }

    fn edit(&mut self, txn: &mut Transaction, n: u64, old: Content) -> Content {
        let addr = self.layout.block(n);
        let g = self.layout.geometry.clone();
        match old {
            Content::Meta { owner, value } => {
                assert_eq!(
                    *txn.read(&ex(owner), addr).unwrap(),
                    *meta(&g, value),
                    "block {n}"
                );
                let value = self.value();
                fill_meta(txn.edit(&ex(owner), addr).unwrap(), value);
                Content::Meta { owner, value }
            }
            Content::Jdata { owner, value } => {
                assert_eq!(
                    *txn.read(&ex(owner), addr).unwrap(),
                    *data(&g, value),
                    "block {n}"
                );
                let value = self.value();
                fill_data(txn.edit_data(&ex(owner), addr).unwrap(), value);
                Content::Jdata { owner, value }
            }
            Content::Data { .. } => old,
        }
    }

    fn step(&mut self) {
        match self.random.u32(0..100) {
            0..76 => self.transaction(),
            76..84 => {
                self.journal.flush(FlushReason::Fsync).unwrap();
            }
            84..88 => self.journal.write_back().unwrap(),
            88..92 => self.journal.maintain(true).unwrap(),
            92..94 => self.journal.maintain(false).unwrap(),
            94..99 => self.give_up(),
            _ => {
                self.journal.stop(StopReason::Shutdown).unwrap();
                assert!(self.layout.head(&*self.device).header.is_clean());
                self.journal.start().unwrap();
            }
        }
        self.note();
    }

    /// Gives a glock away, as a demote does.
    fn give_up(&mut self) {
        let owner = GlockName::inode(self.random.u64(0..6));
        self.journal.flush_glock(owner, FlushReason::InodeSync).unwrap();
        self.journal.cache().drop_owner(owner).unwrap();
    }
}

fn run(layout: Layout, shared: bool, seed: u64, steps: usize) -> Run {
    let (mut runner, initial) = Runner::new(layout, shared, seed);
    for _ in 0..steps {
        runner.step();
    }
    Run {
        layout: runner.layout,
        initial,
        log: runner.device.take_log(),
        states: runner.states,
        durable: runner.durable,
    }
}

impl Run {
    /// Which state is this? The totals of master and node are part of it.
    fn check(&self, image: &MemDevice, position: usize, what: &str) {
        let report = self
            .layout
            .recover(image)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        let least = self.durable.iter().rev().find(|(at, _)| *at <= position);
        let least = least.map_or(0, |(_, n)| *n);
        let matches = (least..self.states.len()).any(|n| self.is_state(image, n));
        assert!(
            matches,
            "{what}: the image is no state from transaction {least} on"
        );
        assert!(self.layout.head(image).header.is_clean(), "{what}");
        if !report.was_clean() {
            let local = self.layout.statfs(image, self.layout.statfs_change);
            assert_eq!(local, (0, 0, 0), "{what}");
        }
    }

    fn is_state(&self, image: &MemDevice, n: usize) -> bool {
        let (model, sum) = &self.states[n];
        let master = self.layout.statfs(image, self.layout.master);
        // Not zero behind a clean header: replay folds, these stops did not.
        let local = self.layout.statfs(image, self.layout.statfs_change);
        let found = (master.0 + local.0, master.1 + local.1, master.2 + local.2);
        if found != (MASTER.0 + sum.total, MASTER.1 + sum.free, MASTER.2 + sum.dinodes) {
            return false;
        }
        let g = &self.layout.geometry;
        model.iter().all(|(n, content)| {
            let want = match content {
                Content::Meta { value, .. } => meta(g, *value),
                Content::Jdata { value, .. } | Content::Data { value } => data(g, *value),
            };
            self.layout.get(image, self.layout.block(*n)) == want
        })
    }

    /// Positions after which something is durable: flushes, and writes with FUA.
    fn barriers(&self) -> Vec<usize> {
        let is_barrier = |e: &LogEntry| matches!(e, LogEntry::Flush | LogEntry::Write { fua: true, .. });
        let entries = self.log.entries().iter().enumerate();
        entries
            .filter(|(_, e)| is_barrier(e))
            .map(|(n, _)| n + 1)
            .collect()
    }

    /// Every flush point, and `random` others in three kinds.
    fn check_images(&self, seed: u64, random: usize) {
        let entries = self.log.entries().len();
        let mut image = self.initial.clone();
        let mut done = 0;
        for point in self.barriers() {
            let part = self.log.image_between(&image, done, point);
            image = part;
            done = point;
            self.check(
                &image.clone(),
                point,
                &format!("seed {seed}, flush point {point}"),
            );
        }
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..random {
            let (point, chance) = (rng.usize(0..=entries), rng.u64(..));
            let what = |kind: &str| format!("seed {seed}, {kind} at {point}, chance {chance}");
            let ordered = self.log.image_at(&self.initial, point).unwrap();
            self.check(&ordered, point, &what("ordered"));
            let torn = self.log.crash_image(&self.initial, point, chance).unwrap();
            self.check(&torn, point, &what("torn"));
            let lost = self.log.crash_image_untorn(&self.initial, point, chance).unwrap();
            self.check(&lost, point, &what("lost"));
        }
    }
}

/// Applies a part of a recorded log.
trait ImageBetween {
    fn image_between(&self, from: &MemDevice, start: usize, end: usize) -> MemDevice;
}

impl ImageBetween for WriteLog {
    fn image_between(&self, from: &MemDevice, start: usize, end: usize) -> MemDevice {
        let image = from.clone();
        for entry in &self.entries()[start..end] {
            if let LogEntry::Write { offset, bytes, .. } = entry {
                image.write_at(*offset, bytes).unwrap();
            }
        }
        image
    }
}

#[test]
fn a_crash_leaves_the_state_after_a_transaction_and_all_durable_ones() {
    for (seed, bsize, blocks, shared) in [
        (1, 1024, 48, true),
        (2, 1024, 80, false),
        (3, 4096, 64, true),
        (4, 512, 200, true),
        (5, 1024, 1024, false),
        (6, 1024, 40, true),
    ] {
        let run = run(Layout::new(bsize, blocks), shared, seed, 500);
        run.check_images(seed, 40);
    }
}

#[test]
fn a_minimal_journal_wraps_many_times() {
    let layout = Layout::new(4096, 2048);
    let device = Arc::new(layout.device());
    let journal = layout.mount(device.clone());
    let first = layout.head(&*device).header.sequence;
    let mut value = 0;
    for round in 0..60 {
        let mut txn = Transaction::begin(&journal, Reservation::blocks(1_000)).unwrap();
        for n in 0..1_000 {
            let addr = layout.block(n);
            let bytes = if round == 0 {
                txn.create(&ex(1), addr)
            } else {
                txn.edit(&ex(1), addr)
            };
            value += 1;
            fill_meta(bytes.unwrap(), value);
        }
        txn.commit().unwrap();
        if round % 3 > 0 {
            journal.flush(FlushReason::Fsync).unwrap();
        }
    }
    assert!(journal.stats().log_blocks > 15 * 2048, "{:?}", journal.stats());
    journal.flush(FlushReason::Fsync).unwrap();
    let crashed = MemDevice::clone(&device);
    layout.recover(&crashed).unwrap();
    for n in 0..1_000u64 {
        let want = meta(&layout.geometry, value - 999 + n);
        assert_eq!(layout.get(&crashed, layout.block(n)), want, "block {n}");
    }
    journal.stop(StopReason::Shutdown).unwrap();
    let head = layout.head(&*device).header;
    assert_eq!((head.flags.bits(), head.tail), (0x101, head.blkno));
    assert!(head.sequence > first + 40);
    assert_eq!(
        layout.get(&*device, layout.block(7)),
        meta(&layout.geometry, value - 992)
    );
}

#[test]
fn sequences_rise_along_the_ring_with_one_drop() {
    let layout = Layout::new(1024, 50);
    let device = Arc::new(layout.device());
    let journal = layout.mount(device.clone());
    for n in 0..300 {
        super::rig::create_one(&journal, 1, layout.block(n % 20), n);
        if n % 3 == 0 {
            journal.flush(FlushReason::Fsync).unwrap();
        }
        let head = layout.head(&*device);
        let ring = layout.journal.map.ring();
        let mut last = head.header.sequence;
        for back in 1..ring.blocks() {
            let at = ring.advance(head.position, ring.blocks() - back);
            let addr: BlockAddr = layout.journal.map.address(at).unwrap();
            let block = layout.get(&*device, addr);
            if let Some(header) = gfs2_format::log::decode_header(&block, Some(at)) {
                assert!(header.sequence < last, "block {at}");
                last = header.sequence;
            }
        }
    }
}
