//! Goal: transactions of many threads stay whole through flushes, write-back, glocks given up and crashes. Method:
//! threads move amounts between accounts (one block each, under its own lock); the sum never changes, neither in
//! memory nor in any image of the disk after replay.

use super::rig::{Layout, begin, create_one, ex, fill_meta};
use crate::glock::GlockName;
use crate::journal::ail::Pick;
use crate::journal::log::Ticket;
use crate::journal::{FlushReason, Journal, LogDaemon, Reservation, StatfsDelta, StopReason, WorkSet};
use gfs2_format::device::{BlockDevice, MemDevice, RecordDevice};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

const ACCOUNTS: u64 = 24;
const START: u64 = 1_000;

fn amount(block: &[u8]) -> u64 {
    let bytes = block.last_chunk::<8>().unwrap();
    let amount = u64::from_be_bytes(*bytes);
    // All words after the header say the same: a torn block would not.
    assert!(
        block[24..].chunks_exact(8).all(|word| word == bytes),
        "a torn block"
    );
    amount
}

fn total(layout: &Layout, device: &dyn BlockDevice) -> u64 {
    (0..ACCOUNTS)
        .map(|n| amount(&layout.get(device, layout.block(n))))
        .sum()
}

/// Moves amounts between accounts until told to stop.
fn clerk(layout: &Layout, journal: &Arc<Journal>, locks: &[Mutex<()>], seed: u64, rounds: usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..rounds {
        let (a, b) = (random.u64(0..ACCOUNTS), random.u64(0..ACCOUNTS));
        if a == b {
            continue;
        }
        let _first = locks[a.min(b) as usize].lock().unwrap();
        let _second = locks[a.max(b) as usize].lock().unwrap();
        let mut txn = begin(journal);
        let mut seq = None;
        for (n, gain) in [(a, true), (b, false)] {
            let lock = ex(n);
            let now = amount(&txn.read(&lock, layout.block(n)).unwrap());
            let now = if gain { now + 1 } else { now.wrapping_sub(1) };
            fill_meta(txn.edit(&lock, layout.block(n)).unwrap(), now);
        }
        txn.add_statfs(StatfsDelta {
            free: 1,
            ..StatfsDelta::default()
        });
        if random.u32(0..10) > 0 {
            seq = Some(txn.commit().unwrap());
        }
        match random.u32(0..40) {
            0 => drop(journal.flush(FlushReason::Fsync).unwrap()),
            1 => {
                let name = GlockName::inode(a);
                journal.flush_glock(name, FlushReason::InodeSync).unwrap();
                assert!(!journal.has_dirty(name));
                journal.cache().drop_owner(name).unwrap();
            }
            2 => {
                if let Some(seq) = seq {
                    journal.fsync(seq).unwrap();
                    assert!(journal.durable_seq() >= seq);
                }
            }
            3 => journal.write_back().unwrap(),
            _ => {}
        }
    }
}

fn open_accounts(layout: &Layout, journal: &Arc<Journal>) {
    for n in 0..ACCOUNTS {
        create_one(journal, n, layout.block(n), START);
    }
    journal.write_back().unwrap();
}

#[test]
fn sums_survive_threads_and_crashes() {
    for (seed, blocks, daemon) in [(1, 64, false), (2, 200, true), (3, 1_500, true)] {
        let layout = Layout::new(1024, blocks);
        let device = Arc::new(RecordDevice::new(layout.device()));
        let mut config = layout.config();
        config.commit_interval = Duration::from_millis(3);
        let journal = layout.mount_with(device.clone(), config, 16 << 10);
        open_accounts(&layout, &journal);
        let initial = MemDevice::copy_of(&*device).unwrap();
        drop(device.take_log());
        let logd = daemon.then(|| LogDaemon::start(&journal).unwrap());
        let locks: Vec<Mutex<()>> = (0..ACCOUNTS).map(|_| Mutex::new(())).collect();
        std::thread::scope(|scope| {
            for thread in 0..6 {
                let (layout, journal, locks) = (&layout, &journal, &locks);
                scope.spawn(move || clerk(layout, journal, locks, seed * 100 + thread, 250));
            }
        });
        drop(logd);
        let log = device.log();
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..60 {
            let (at, chance) = (random.usize(0..=log.entries().len()), random.u64(..));
            let image = log.crash_image(&initial, at, chance).unwrap();
            layout.recover(&image).unwrap();
            let sum = total(&layout, &image);
            assert_eq!(
                sum,
                ACCOUNTS * START,
                "seed {seed}: crash at {at}, chance {chance}"
            );
        }
        journal.stop(StopReason::Shutdown).unwrap();
        assert_eq!(total(&layout, &*device), ACCOUNTS * START);
        assert_eq!(journal.cache().stats().pinned, 0);
        let counted = layout.statfs(&*device, layout.statfs_change).1;
        assert_eq!(counted, journal.local_statfs().free);
    }
}

#[test]
fn fsyncs_at_once_share_flushes() {
    /// Makes flushes slow enough for others to arrive.
    #[derive(Debug)]
    struct Slow(MemDevice, AtomicU64);
    impl BlockDevice for Slow {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> gfs2_format::Result<()> {
            self.0.read_at(offset, buf)
        }
        fn write_at(&self, offset: u64, buf: &[u8]) -> gfs2_format::Result<()> {
            self.0.write_at(offset, buf)
        }
        fn flush(&self) -> gfs2_format::Result<()> {
            self.1.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(2));
            self.0.flush()
        }
    }
    let layout = Layout::new(1024, 400);
    let device = Arc::new(Slow(layout.device(), AtomicU64::new(0)));
    let journal = layout.mount(device.clone());
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (journal, layout) = (&journal, &layout);
            scope.spawn(move || {
                for n in 0..20 {
                    let seq = create_one(journal, thread, layout.block(thread * 20 + n), n);
                    journal.fsync(seq).unwrap();
                    assert!(journal.durable_seq() >= seq);
                }
            });
        }
    });
    let headers = journal.stats().headers;
    assert!(headers < 100, "{headers} flushes for 160 fsyncs");
    // Nothing new in the log, but perhaps in the file: the device is flushed all the same.
    let before = device.1.load(Ordering::Relaxed);
    journal.fsync(journal.durable_seq()).unwrap();
    assert_eq!(device.1.load(Ordering::Relaxed), before + 1);
    assert_eq!(journal.stats().headers, headers);
}

#[test]
fn a_flush_never_sees_half_a_transaction_however_long_it_is_open() {
    let layout = Layout::new(1024, 400);
    let device = Arc::new(layout.device());
    let journal = layout.mount(device.clone());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                journal.flush(FlushReason::Fsync).unwrap();
            }
        });
        for value in 1..200 {
            let mut txn = begin(&journal);
            for n in 0..4 {
                fill_meta(txn.create(&ex(n), layout.block(n)).unwrap(), value);
                std::thread::yield_now();
            }
            let seq = txn.commit().unwrap();
            journal.wait_durable(seq, FlushReason::Fsync).unwrap();
            let image = MemDevice::clone(&device);
            layout.recover(&image).unwrap();
            for n in 0..4 {
                assert_eq!(amount(&layout.get(&image, layout.block(n))), value);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn folding_statfs_loses_no_count_of_others() {
    let layout = Layout::new(1024, 400);
    let device = Arc::new(layout.device());
    let journal = layout.mount(device.clone());
    let count = |free: i64| {
        let mut txn = begin(&journal);
        txn.add_statfs(StatfsDelta {
            free,
            ..StatfsDelta::default()
        });
        txn.commit().unwrap()
    };
    count(-7);
    let mut fold = begin(&journal);
    let sums = fold.fold_statfs(&ex(1_000), layout.master).unwrap();
    assert_eq!(sums.free, super::rig::MASTER.1 - 7);
    // Somebody counts between the fold's edit and its commit.
    count(-2);
    fold.commit().unwrap();
    assert_eq!(journal.local_statfs().free, -2);
    journal.flush(FlushReason::Fsync).unwrap();
    let image = MemDevice::clone(&device);
    let report = layout.recover(&image).unwrap();
    assert_eq!(report.change.free, -2);
    assert_eq!(layout.statfs(&image, layout.master).1, super::rig::MASTER.1 - 9);
    // A rolled back fold takes nothing.
    assert_eq!(begin(&journal).take_statfs().free, -2);
    assert_eq!(journal.local_statfs().free, -2);
}

#[test]
fn a_header_alone_carries_the_numbers_of_the_last_commit_not_of_the_running_one() {
    let layout = Layout::new(1024, 400);
    let device = Arc::new(layout.device());
    let journal = layout.mount(device.clone());
    let count = |free: i64| {
        let mut txn = begin(&journal);
        txn.add_statfs(StatfsDelta {
            free,
            ..StatfsDelta::default()
        });
        txn.commit().unwrap()
    };
    count(-7);
    journal.flush(FlushReason::Fsync).unwrap();
    count(-100);
    journal.write_in_place(Pick::Before(u64::MAX)).unwrap();
    let token = journal.flush_token();
    assert!(journal.move_tail(FlushReason::Ail.flags()).unwrap());
    drop(token);
    let image = MemDevice::clone(&device);
    assert_eq!(layout.recover(&image).unwrap().change.free, -7);
    assert_eq!(layout.statfs(&image, layout.master).1, super::rig::MASTER.1 - 7);
}

#[test]
fn the_daemon_commits_and_writes_in_place_by_itself() {
    let layout = Layout::new(1024, 400);
    let device = Arc::new(layout.device());
    let mut config = layout.config();
    config.commit_interval = Duration::from_millis(2);
    let journal = layout.mount_with(device, config, 64 << 10);
    let logd = LogDaemon::start(&journal).unwrap();
    let seq = create_one(&journal, 1, layout.block(0), 5);
    while journal.durable_seq() < seq || journal.stats().ail > 0 || journal.stats().used > 1 {
        std::thread::yield_now();
    }
    logd.stop();
    // And again after a remount with another interval, which a running daemon notices.
    journal.set_commit_interval(Duration::from_secs(3_600));
    let logd = LogDaemon::start(&journal).unwrap();
    journal.set_commit_interval(Duration::from_millis(1));
    let seq = create_one(&journal, 1, layout.block(0), 5);
    while journal.durable_seq() < seq {
        std::thread::yield_now();
    }
    drop(logd);
}

/// Stops a journal while a transaction is open, ends that by `end` when the stop surely waits: the stop must end.
fn stop_ends_after(open: impl FnOnce(&Arc<Journal>) -> Ticket, end: impl FnOnce(&Arc<Journal>, Ticket)) {
    let layout = Layout::new(1024, 400);
    let journal = layout.mount(Arc::new(layout.device()));
    let ticket = open(&journal);
    let (said, heard) = mpsc::channel();
    let stopping = Arc::clone(&journal);
    // Not in a scope: a stop that never ends shall fail the test, not hang it.
    std::thread::spawn(move || said.send(stopping.stop(StopReason::Shutdown)));
    let limit = Instant::now() + Duration::from_secs(60);
    while journal.changed.waiting() == 0 {
        assert!(
            Instant::now() < limit,
            "the stop does not wait for the open transaction"
        );
        std::thread::yield_now();
    }
    end(&journal, ticket);
    heard
        .recv_timeout(Duration::from_secs(60))
        .expect("the stop was not told of the end of the last transaction")
        .unwrap();
}

/// A glock is given up while the node unmounts: when the tail has taken all its copies with it, no commit follows that
/// would tell the stop of the end of the transaction (an unmount in ten thousand hung for ever by that).
#[test]
fn a_stop_is_told_of_the_last_transaction_however_it_ends() {
    let reserve = |journal: &Arc<Journal>| {
        let revokes = Reservation::default().with_revokes(1);
        journal.reserve_as(revokes, true).unwrap()
    };
    stop_ends_after(reserve, |journal, ticket| {
        journal.revoke_copies(GlockName::inode(1), 1, ticket);
    });
    stop_ends_after(reserve, |_, ticket| drop(ticket));
    stop_ends_after(reserve, |journal, ticket| {
        journal.merge(WorkSet::default(), ticket).unwrap();
    });
}
