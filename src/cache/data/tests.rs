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
