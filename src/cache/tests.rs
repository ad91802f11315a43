//! Goal: one read per missing block, eviction of what is clean only, owners kept apart.

use super::BufferCache;
use crate::error::Errno;
use crate::glock::GlockName;
use crate::health::{Cause, Health};
use crate::journal::tests::rig::{Held, ex};
use gfs2_format::device::{BlockDevice, MemDevice};
use gfs2_format::{Block, BlockAddr, Geometry};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

const BSIZE: usize = 1024;

/// Counts reads and holds them back while closed.
#[derive(Debug)]
struct Counting {
    base: MemDevice,
    reads: AtomicU64,
    requests: AtomicU64,
    closed: Mutex<bool>,
    opened: Condvar,
}

impl BlockDevice for Counting {
    fn size(&self) -> u64 {
        self.base.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> gfs2_format::Result<()> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let mut closed = self.closed.lock().unwrap();
        while *closed {
            closed = self.opened.wait(closed).unwrap();
        }
        drop(closed);
        self.reads.fetch_add((buf.len() / BSIZE) as u64, Ordering::SeqCst);
        self.base.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> gfs2_format::Result<()> {
        self.base.write_at(offset, buf)
    }
    fn flush(&self) -> gfs2_format::Result<()> {
        self.base.flush()
    }
}

fn bench(budget: usize) -> (Arc<Counting>, BufferCache) {
    let blocks = 4_000;
    let device = Arc::new(Counting {
        base: MemDevice::new(blocks * BSIZE as u64),
        reads: AtomicU64::new(0),
        requests: AtomicU64::new(0),
        closed: Mutex::new(false),
        opened: Condvar::new(),
    });
    for n in 0..blocks {
        device.base.write_at(n * BSIZE as u64, &n.to_be_bytes()).unwrap();
    }
    let geometry = Geometry::new(BSIZE as u32, blocks).unwrap();
    let health = Arc::new(Health::new("test:fs.0"));
    let cache = BufferCache::new(device.clone(), geometry, health, budget);
    (device, cache)
}

fn at(n: u64) -> BlockAddr {
    BlockAddr::new(n)
}

fn number(block: &Block) -> u64 {
    u64::from_be_bytes(*block.first_chunk().unwrap())
}

#[test]
fn readers_of_one_missing_block_share_one_read() {
    let (device, cache) = bench(1 << 20);
    *device.closed.lock().unwrap() = true;
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| number(&cache.read(&ex(1), at(77)).unwrap())))
            .collect();
        while device.requests.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        *device.closed.lock().unwrap() = false;
        device.opened.notify_all();
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 77);
        }
    });
    assert_eq!(device.reads.load(Ordering::SeqCst), 1);
}

#[test]
fn the_budget_holds_for_clean_blocks_and_pinned_ones_stay() {
    let (_device, cache) = bench(256 * BSIZE);
    let pinned = Block::from(&[9u8; BSIZE][..]);
    for n in 0..100 {
        cache.put(at(n), GlockName::inode(5), &pinned, 1, true);
    }
    for n in 100..4_000 {
        assert_eq!(number(&cache.read(&ex(1), at(n)).unwrap()), n);
    }
    let stats = cache.stats();
    assert_eq!(stats.pinned, 100);
    // 64 lanes of at least 8 buffers; pinned ones may be on top.
    assert!(stats.buffers <= 64 * 8 + 100, "{stats:?}");
    for n in 0..100 {
        assert_eq!(cache.read(&ex(5), at(n)).unwrap(), pinned);
        cache.unpin(at(n));
    }
    assert_eq!(cache.stats().pinned, 0);
}

#[test]
fn what_is_used_often_stays() {
    let (device, cache) = bench(0);
    for n in 0..3_000 {
        cache.read(&ex(1), at(2)).unwrap();
        cache.read(&ex(1), at(3 + n % 997)).unwrap();
    }
    let reads = device.reads.load(Ordering::SeqCst);
    cache.read(&ex(1), at(2)).unwrap();
    assert_eq!(device.reads.load(Ordering::SeqCst), reads);
}

#[test]
fn a_glock_given_up_takes_its_blocks_along() {
    let (device, cache) = bench(1 << 20);
    for n in 0..50 {
        cache.read(&ex(n % 2), at(n)).unwrap();
    }
    cache.drop_owner(GlockName::inode(0)).unwrap();
    assert_eq!(cache.stats().buffers, 25);
    cache.read(&ex(1), at(1)).unwrap();
    assert_eq!(device.reads.load(Ordering::SeqCst), 50);
    cache.read(&ex(0), at(0)).unwrap();
    assert_eq!(device.reads.load(Ordering::SeqCst), 51);
    let block = Block::zeroed(BSIZE);
    cache.put(at(0), GlockName::inode(0), &block, 1, true);
    assert!(
        cache
            .drop_owner(GlockName::inode(0))
            .unwrap_err()
            .is_consistency()
    );
    cache.drop_clean();
    assert_eq!(cache.stats().buffers, 1);
}

#[test]
fn a_clean_block_of_another_owner_is_read_again_a_pinned_one_is_a_lie() {
    let (device, cache) = bench(1 << 20);
    cache.read(&ex(1), at(9)).unwrap();
    device
        .base
        .write_at(9 * BSIZE as u64, &1234u64.to_be_bytes())
        .unwrap();
    assert_eq!(number(&cache.read(&ex(2), at(9)).unwrap()), 1234);
    cache.put(at(9), GlockName::inode(2), &Block::zeroed(BSIZE), 1, true);
    assert!(cache.read(&ex(1), at(9)).unwrap_err().is_consistency());
    cache.drop_owner(GlockName::inode(1)).unwrap();
    assert_eq!(number(&cache.read(&ex(2), at(9)).unwrap()), 0);
}

#[test]
fn contents_that_came_while_a_read_was_under_way_win() {
    let (device, cache) = bench(1 << 20);
    *device.closed.lock().unwrap() = true;
    let newer = Block::from(&[7u8; BSIZE][..]);
    std::thread::scope(|scope| {
        let ahead = scope.spawn(|| cache.read_ahead(&ex(1), &[at(8), at(9), at(10)]));
        while device.requests.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        cache.put(at(9), GlockName::inode(1), &newer, 1, true);
        // Freed while it is read: nobody may find the old contents.
        cache.free(at(10), false);
        *device.closed.lock().unwrap() = false;
        device.opened.notify_all();
        ahead.join().unwrap();
    });
    assert_eq!(cache.read(&ex(1), at(9)).unwrap(), newer);
    assert_eq!(cache.stats().buffers, 2);
}

#[test]
fn read_ahead_reads_what_is_missing_in_few_requests() {
    let (device, cache) = bench(4 << 20);
    cache.read(&ex(1), at(20)).unwrap();
    let blocks: Vec<BlockAddr> = (10..40).rev().map(at).chain([at(1 << 40), at(12)]).collect();
    cache.read_ahead(&ex(1), &blocks);
    // The one that is there already is read along.
    assert_eq!(device.reads.load(Ordering::SeqCst), 31);
    assert_eq!(device.requests.load(Ordering::SeqCst), 2);
    for n in 10..40 {
        assert_eq!(number(&cache.read(&ex(1), at(n)).unwrap()), n);
    }
    cache.read_ahead(&ex(1), &[at(50), at(55), at(61)]);
    assert_eq!(device.requests.load(Ordering::SeqCst), 4);
    for n in [50, 55, 61] {
        assert_eq!(number(&cache.read(&ex(1), at(n)).unwrap()), n);
    }
    assert_eq!(device.requests.load(Ordering::SeqCst), 4);
}

#[test]
fn addresses_past_the_volume_are_corrupt_and_a_withdrawn_node_reads_nothing() {
    let (_device, cache) = bench(1 << 20);
    let shared = Held {
        exclusive: false,
        ..ex(1)
    };
    assert!(cache.read(&shared, at(1 << 60)).unwrap_err().is_consistency());
    cache.read(&shared, at(3)).unwrap();
    cache.health().withdraw("test", &Cause::Requested);
    assert_eq!(cache.read(&shared, at(3)).unwrap_err().errno(), Errno::EIO);
}
