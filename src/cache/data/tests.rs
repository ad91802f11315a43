//! The write-behind cache over a device that counts and records.

use super::*;
use gfs2_format::device::{Fault, FaultDevice, FaultOp, FaultRule, LogEntry, MemDevice, RecordDevice};

const BSIZE: usize = 4096;

fn at(n: u64) -> BlockAddr {
    BlockAddr::new(n)
}

fn block(byte: u8) -> Block {
    Block::from(&[byte; BSIZE][..])
}

fn bench(device: Arc<dyn BlockDevice>) -> DataCache {
    let geometry = Geometry::new(BSIZE as u32, device.size() / BSIZE as u64).unwrap();
    DataCache::new(device, geometry, Arc::new(Health::new("t:fs.0")))
}

fn recorded() -> (Arc<RecordDevice<MemDevice>>, DataCache) {
    let device = Arc::new(RecordDevice::new(MemDevice::new(64 << 20)));
    let cache = bench(Arc::clone(&device) as Arc<dyn BlockDevice>);
    (device, cache)
}

fn writes(device: &RecordDevice<MemDevice>) -> Vec<(u64, usize)> {
    let log = device.log();
    let writes = log.entries().iter().filter_map(|entry| match entry {
        LogEntry::Write { offset, bytes, .. } => Some((offset / BSIZE as u64, bytes.len() / BSIZE)),
        _ => None,
    });
    writes.collect()
}

const A: GlockName = GlockName::inode(1000);
const B: GlockName = GlockName::inode(2000);

#[test]
fn what_is_put_is_read_and_written_once_sorted_and_together() {
    let (device, cache) = recorded();
    for n in (100..140).rev() {
        cache.put(A, [(at(n), block(1))]);
        cache.put(A, [(at(n), block(n as u8))]);
    }
    cache.put(B, [(at(140), block(9)), (at(7), block(8))]);
    assert_eq!(cache.get(A, at(120)), Some(block(120)));
    assert_eq!(cache.get(A, at(140)), None);
    let extent = Extent {
        start: at(130),
        len: 20,
    };
    assert_eq!(cache.range(A, extent).len(), 10);
    assert_eq!(cache.stats().dirty_blocks, 42);
    cache.write_all().unwrap();
    assert_eq!(writes(&device), [(7, 1), (100, 41)]);
    assert!(cache.is_clean() && !cache.has_dirty(A));
    let mut bytes = [0; BSIZE];
    device.read_at(120 * BSIZE as u64, &mut bytes).unwrap();
    assert_eq!(bytes, [120; BSIZE]);
    cache.check_clean(A).unwrap();
}

#[test]
fn one_owner_is_written_without_the_others() {
    let (device, cache) = recorded();
    cache.put(A, [(at(1), block(1))]);
    cache.put(B, [(at(2), block(2))]);
    cache.write_owner(A).unwrap();
    assert_eq!(writes(&device), [(1, 1)]);
    assert!(cache.check_clean(B).unwrap_err().is_consistency());
    assert!(cache.has_dirty(B));
}

#[test]
fn what_was_freed_or_superseded_is_not_written() {
    let (device, cache) = recorded();
    cache.put(A, (10..20).map(|n| (at(n), block(1))));
    cache.forget(
        A,
        &[Extent {
            start: at(0),
            len: 12,
        }],
    );
    cache.supersede(
        A,
        Extent {
            start: at(15),
            len: 100,
        },
    );
    assert_eq!(cache.stats().dirty_blocks, 3);
    cache.write_all().unwrap();
    assert_eq!(writes(&device), [(12, 3)]);
}

#[test]
fn a_large_pass_goes_in_batches_and_ends() {
    let (device, cache) = recorded();
    cache.put(A, (1000..4000).map(|n| (at(n), block(3))));
    cache.put(B, (5000..5010).map(|n| (at(n), block(4))));
    cache.write_all().unwrap();
    let blocks: usize = writes(&device).iter().map(|w| w.1).sum();
    assert_eq!(blocks, 3010);
    assert!(writes(&device).len() <= 15, "{:?}", writes(&device));
    assert!(cache.is_clean());
}

#[test]
fn a_block_changed_while_it_is_written_stays_dirty() {
    let (_device, cache) = recorded();
    cache.put(A, [(at(1), block(1)), (at(2), block(1))]);
    let mut pass = cache.pass(vec![A]);
    let batch = cache.next_batch(&mut pass);
    cache.put(A, [(at(1), block(2)), (at(3), block(3))]);
    assert!(batch.is_last());
    batch.write().unwrap();
    assert_eq!(cache.stats().dirty_blocks, 2);
    assert_eq!(cache.get(A, at(1)), Some(block(2)));
    assert_eq!(cache.get(A, at(2)), None);
    cache.write_owner(A).unwrap();
    assert!(cache.is_clean());
}

#[test]
fn superseding_waits_for_an_older_write() {
    let (_device, cache) = recorded();
    cache.put(A, [(at(1), block(1))]);
    let mut pass = cache.pass(vec![A]);
    let batch = cache.next_batch(&mut pass);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| cache.supersede(A, Extent::single(at(1))));
        while cache.has_dirty(A) {
            std::thread::yield_now();
        }
        assert!(!other.is_finished(), "the older write is still under way");
        batch.write().unwrap();
        other.join().unwrap();
    });
}

#[test]
fn writers_are_throttled_at_the_limit() {
    let (device, cache) = recorded();
    cache.set_limit(10 * BSIZE);
    cache.throttle();
    cache.put(A, (1..9).map(|n| (at(n), block(1))));
    cache.put(B, (20..26).map(|n| (at(n), block(1))));
    cache.throttle();
    assert!(cache.stats().dirty_blocks <= 10);
    // The oldest first.
    assert!(!cache.has_dirty(A) && writes(&device).contains(&(1, 8)));
}

#[test]
fn an_error_is_told_once_to_each_opener_and_costs_only_what_failed() {
    let base = Arc::new(MemDevice::new(64 << 20));
    let device = Arc::new(FaultDevice::new(Arc::clone(&base)));
    let cache = bench(Arc::clone(&device) as Arc<dyn BlockDevice>);
    let early = AtomicU64::new(cache.failure_mark(A));
    let place = 5 * BSIZE as u64..6 * BSIZE as u64;
    device.add(FaultRule::always(FaultOp::Write, Fault::Errno(libc::EIO)).at(place));
    cache.put(A, [(at(3), block(3)), (at(5), block(5))]);
    cache.put(B, [(at(9), block(9))]);
    assert_eq!(cache.write_all().unwrap_err().errno(), Errno::EIO);
    assert!(cache.is_clean());
    let mut bytes = [0; BSIZE];
    base.read_at(9 * BSIZE as u64, &mut bytes).unwrap();
    assert_eq!(bytes, [9; BSIZE]);
    let late = AtomicU64::new(cache.failure_mark(A));
    assert!(cache.check_failure(B, &early).is_ok());
    assert!(cache.check_failure(A, &early).is_err());
    assert!(cache.check_failure(A, &early).is_ok());
    assert!(
        cache.check_failure(A, &late).is_err(),
        "nobody had been told when it was opened"
    );
    let told = AtomicU64::new(cache.failure_mark(A));
    assert!(cache.check_failure(A, &told).is_ok());
}

/// Runs a test while a thread writes what is on its way.
fn with_writer(cache: &DataCache, test: impl FnOnce()) {
    /// Lets the writer end also when the test fails.
    struct Closing<'a>(&'a DataCache);
    impl Drop for Closing<'_> {
        fn drop(&mut self) {
            self.0.flights.close();
        }
    }
    cache.flights.open();
    std::thread::scope(|scope| {
        scope.spawn(|| cache.run_writer());
        let _closing = Closing(cache);
        test();
    });
}

fn run_of(start: u64, len: u32) -> Extent {
    Extent {
        start: at(start),
        len,
    }
}

#[test]
fn a_run_is_dirty_until_it_has_landed() {
    let (device, cache) = recorded();
    let bytes = vec![7; 64 * BSIZE];
    assert!(!cache.launch(A, at(100), &bytes), "nobody writes it");
    cache.flights.open();
    // Nobody writes yet: what is on its way stays so.
    assert!(cache.launch(A, at(100), &bytes));
    assert!(!cache.is_clean() && cache.has_dirty(A) && !cache.has_dirty(B));
    assert!(cache.check_clean(A).is_err());
    // Of these, nobody waits.
    cache.land(A, run_of(164, 100));
    cache.land(A, run_of(90, 10));
    cache.land(B, run_of(100, 64));
    cache.write_owner(B).unwrap();
    assert!(writes(&device).is_empty());
    with_writer(&cache, || {
        // A reader gets what is written, from the device or from here.
        assert_eq!(cache.get(A, at(120)), None);
        assert_eq!(writes(&device), [(100, 64)]);
        assert!(cache.launch(A, at(200), &bytes) && cache.launch(B, at(300), &bytes));
        cache.write_owner(A).unwrap();
        assert!(!cache.has_dirty(A));
        cache.check_clean(A).unwrap();
        assert!(cache.launch(A, at(100), &bytes));
        cache.put(B, [(at(10_000), block(1))]);
        cache.write_all().unwrap();
        assert!(cache.is_clean());
        // More than can be on their way at once.
        for n in 0..40 {
            assert!(cache.launch(A, at(1000 + 64 * n), &bytes));
        }
        cache.wait_writes();
        assert_eq!(writes(&device).len(), 45);
    });
    assert!(!cache.launch(A, at(100), &bytes), "nobody writes it any more");
    assert_eq!(cache.stats().blocks_written, 44 * 64 + 1);
}

#[test]
fn a_run_that_fails_is_told_to_who_waits_and_to_each_opener() {
    let faulty = Arc::new(FaultDevice::new(MemDevice::new(64 << 20)));
    let cache = bench(Arc::clone(&faulty) as Arc<dyn BlockDevice>);
    let bad = 100 * BSIZE as u64..101 * BSIZE as u64;
    faulty.add(FaultRule::always(FaultOp::Write, Fault::Errno(libc::EIO)).at(bad));
    let mark = AtomicU64::new(cache.failure_mark(A));
    with_writer(&cache, || {
        assert!(cache.launch(A, at(200), &vec![1; 64 * BSIZE]));
        cache.write_owner(A).unwrap();
        assert!(cache.launch(A, at(90), &vec![1; 64 * BSIZE]));
        let told = cache.write_owner(A);
        // It may have failed before anybody waited: then the opener alone is told.
        if let Err(error) = told {
            assert_eq!(error.errno(), Errno::EIO);
        }
        assert!(cache.is_clean());
        assert_eq!(cache.check_failure(A, &mark).unwrap_err().errno(), Errno::EIO);
        cache.check_failure(A, &mark).unwrap();
        // The writer lives on.
        assert!(cache.launch(A, at(300), &vec![1; 64 * BSIZE]));
        cache.write_owner(A).unwrap();
    });
    assert_eq!(cache.stats().writes, 2);
}
