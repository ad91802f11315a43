//! Goal: log space is never overrun, never leaks, and whoever waits for it gets it. Method: small journals, large
//! reservations, many threads; no clock.

use super::rig::{Layout, begin, create_one, ex, fill_meta, meta};
use crate::error::Errno;
use crate::glock::Interrupt;
use crate::journal::{FlushReason, Reservation, StatfsDelta, StopReason};
use crate::txn::Transaction;
use gfs2_format::device::MemDevice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[test]
fn more_than_the_journal_is_refused_at_once() {
    let layout = Layout::new(1024, 100);
    let journal = layout.mount(Arc::new(layout.device()));
    let max = journal.max_blocks();
    assert!((80..100).contains(&max), "{max}");
    let refused = Transaction::begin(&journal, Reservation::blocks(max + 1)).unwrap_err();
    assert_eq!(refused.errno(), Errno::EINVAL);
    drop(Transaction::begin(&journal, Reservation::blocks(max)).unwrap());
    assert_eq!(journal.stats().reserved, 0);
}

#[test]
fn the_largest_transaction_fits_again_and_again() {
    let layout = Layout::new(1024, 100);
    let device = Arc::new(layout.device());
    let journal = layout.mount(device.clone());
    let max = journal.max_blocks();
    for round in 0..50 {
        let mut txn = Transaction::begin(&journal, Reservation::blocks(max)).unwrap();
        for n in 0..max {
            fill_meta(txn.create(&ex(1), layout.block(n)).unwrap(), round * 1_000 + n);
        }
        txn.add_statfs(StatfsDelta {
            free: 1,
            ..StatfsDelta::default()
        });
        txn.commit().unwrap();
    }
    journal.stop(StopReason::Shutdown).unwrap();
    assert_eq!(journal.stats().reserved, 0);
    assert_eq!(
        layout.get(&*device, layout.block(3)),
        meta(&layout.geometry, 49_003)
    );
    assert_eq!(layout.statfs(&*device, layout.statfs_change).1, 50);
}

#[test]
fn the_last_blocks_are_kept_for_headers() {
    let layout = Layout::new(1024, 100);
    let journal = layout.mount(Arc::new(layout.device()));
    for n in 0..10 {
        create_one(&journal, 1, layout.block(n), n);
        journal.flush(FlushReason::Fsync).unwrap();
    }
    let used = u64::from(journal.stats().used);
    assert_eq!(used, 30);
    // As much as is free and as much as that without the last four blocks.
    for (left, grows) in [(4, false), (3, true)] {
        let cost = 100 - used - left;
        // A transaction costs five blocks more than it may edit, up to a descriptor's worth.
        let blocks = (1..cost)
            .find(|n| journal.costs.transaction(Reservation::blocks(*n)) == cost)
            .unwrap();
        let txn = Transaction::begin(&journal, Reservation::blocks(blocks)).unwrap();
        assert_eq!(
            u64::from(journal.stats().used) < used,
            grows,
            "{left} blocks left"
        );
        drop(txn);
    }
}

#[test]
fn many_large_reservations_at_once_all_get_their_turn() {
    let layout = Layout::new(1024, 120);
    let device = Arc::new(layout.device());
    let journal = layout.mount(device.clone());
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (journal, layout, done) = (&journal, &layout, &done);
            scope.spawn(move || {
                for round in 0..40 {
                    let size = 1 + (thread * 13 + round * 7) % 90;
                    let mut txn = Transaction::begin(journal, Reservation::blocks(size)).unwrap();
                    for n in 0..size {
                        let addr = layout.block(thread * 100 + n);
                        fill_meta(txn.create(&ex(thread), addr).unwrap(), round * 100 + n);
                    }
                    if round % 5 != 4 {
                        txn.commit().unwrap();
                    }
                    if round % 9 == 0 {
                        journal.flush(FlushReason::Fsync).unwrap();
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(done.load(Ordering::Relaxed), 320);
    journal.write_back().unwrap();
    let stats = journal.stats();
    assert_eq!(
        (stats.used, stats.reserved, stats.running, stats.ail),
        (1, 0, 0, 0)
    );
    assert_eq!(journal.cache().stats().pinned, 0);
}

#[test]
fn a_waiter_is_woken_by_the_end_of_another_transaction() {
    for commit in [false, true] {
        let layout = Layout::new(1024, 60);
        let journal = layout.mount(Arc::new(layout.device()));
        let mut first = Transaction::begin(&journal, Reservation::blocks(40)).unwrap();
        fill_meta(first.create(&ex(1), layout.block(0)).unwrap(), 1);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let mut txn = Transaction::begin(&journal, Reservation::blocks(40)).unwrap();
                fill_meta(txn.create(&ex(2), layout.block(1)).unwrap(), 2);
                txn.commit().unwrap()
            });
            while crate::cache::lock(&journal.state).waiters.is_empty() {
                std::thread::yield_now();
            }
            if commit {
                first.commit().unwrap();
            } else {
                drop(first);
            }
            waiter.join().unwrap();
        });
    }
}

#[test]
fn who_is_killed_while_he_waits_for_space_gets_out_and_the_next_goes_on() {
    let layout = Layout::new(1024, 60);
    let journal = layout.mount(Arc::new(layout.device()));
    let first = Transaction::begin(&journal, Reservation::blocks(40)).unwrap();
    let interrupt = Arc::new(Interrupt::new());
    let waiting = |n: usize| {
        while crate::cache::lock(&journal.state).waiters.len() != n {
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        let killed = scope.spawn(|| {
            interrupt.install();
            Interrupt::allow(|| Transaction::begin(&journal, Reservation::blocks(40)).map(drop))
        });
        waiting(1);
        // Behind him, and with something to lose: he stays.
        let shielded = scope.spawn(|| {
            interrupt.install();
            let waited = Interrupt::shield(|| Transaction::begin(&journal, Reservation::blocks(30)));
            drop(waited.unwrap());
        });
        waiting(2);
        interrupt.interrupt();
        assert_eq!(killed.join().unwrap().unwrap_err().errno(), Errno::EINTR);
        waiting(1);
        drop(first);
        shielded.join().unwrap();
    });
    assert_eq!(journal.stats().reserved, 0);
}

#[test]
fn an_edit_beyond_the_reservation_is_refused_and_leaves_no_trace() {
    let layout = Layout::new(1024, 100);
    let device = Arc::new(layout.device());
    let journal = layout.mount(device.clone());
    create_one(&journal, 1, layout.block(0), 5);
    let before = journal.stats();
    let mut txn = Transaction::begin(&journal, Reservation::blocks(2).with_revokes(1)).unwrap();
    fill_meta(txn.edit(&ex(1), layout.block(0)).unwrap(), 6);
    fill_meta(txn.create(&ex(1), layout.block(1)).unwrap(), 7);
    assert_eq!((txn.blocks_left(), txn.revokes_left()), (0, 1));
    assert!(txn.create(&ex(1), layout.block(2)).is_err());
    txn.revoke(layout.block(3)).unwrap();
    assert!(txn.revoke(layout.block(4)).is_err());
    // Its own view, and nobody else's.
    assert_eq!(
        *txn.read(&ex(1), layout.block(0)).unwrap(),
        *meta(&layout.geometry, 6)
    );
    assert_eq!(
        *journal.cache().read(&ex(1), layout.block(0)).unwrap(),
        *meta(&layout.geometry, 5)
    );
    drop(txn);
    assert_eq!(journal.stats(), before);
    journal.stop(StopReason::Shutdown).unwrap();
    assert_eq!(layout.get(&*device, layout.block(0)), meta(&layout.geometry, 5));
    assert_ne!(layout.get(&*device, layout.block(1)), meta(&layout.geometry, 7));
}

#[test]
fn an_untouched_transaction_costs_nothing() {
    let layout = Layout::new(1024, 100);
    let journal = layout.mount(Arc::new(layout.device()));
    let txn = begin(&journal);
    assert!(txn.is_untouched() && journal.stats().reserved > 0);
    let seq = txn.commit().unwrap();
    assert_eq!(journal.stats().reserved, 0);
    journal.wait_durable(seq, FlushReason::Fsync).unwrap();
    assert_eq!(journal.stats().headers, 0);
}

#[test]
fn a_stopped_journal_refuses_and_starts_again_behind_its_head() {
    let layout = Layout::new(1024, 100);
    let device = Arc::new(layout.device());
    let journal = layout.mount(device.clone());
    let found = layout.head(&*device);
    create_one(&journal, 1, layout.block(0), 5);
    journal.stop(StopReason::Freeze).unwrap();
    journal.stop(StopReason::Shutdown).unwrap();
    let head = layout.head(&*device);
    assert_eq!(head.header.flags.bits(), 0x101);
    assert_eq!(head.header.tail, head.position);
    // The commit (descriptor, block, header), then the clean header.
    assert_eq!(head.header.sequence, found.header.sequence + 2);
    let ring = layout.journal.map.ring();
    assert_eq!(ring.distance(found.position, head.position), 4);
    let refused = Transaction::begin(&journal, Reservation::blocks(1)).unwrap_err();
    assert_eq!(refused.errno(), Errno::EROFS);
    journal.start().unwrap();
    assert!(journal.start().is_err());
    create_one(&journal, 1, layout.block(0), 6);
    journal.flush(FlushReason::SyncFs).unwrap();
    let next = layout.head(&*device);
    assert_eq!(next.header.sequence, head.header.sequence + 1);
    assert_eq!(next.header.flags.bits(), 0x40_0002);
    assert_eq!(next.header.tail, ring.advance(head.position, 1));
}

#[test]
fn a_dirty_or_empty_journal_does_not_start() {
    let layout = Layout::new(1024, 100);
    let device = Arc::new(layout.device());
    let journal = layout.mount(device.clone());
    create_one(&journal, 1, layout.block(0), 5);
    journal.flush(FlushReason::Fsync).unwrap();
    let start = |device: MemDevice| {
        let health = Arc::new(crate::health::Health::new("t:f.0"));
        let cache = crate::cache::BufferCache::new(Arc::new(device), layout.geometry.clone(), health, 0);
        crate::journal::Journal::new(Arc::new(cache), layout.config()).start()
    };
    assert!(
        start(MemDevice::clone(&device))
            .unwrap_err()
            .to_string()
            .contains("dirty")
    );
    let empty = MemDevice::new(layout.geometry.end() << layout.geometry.bsize_shift());
    assert!(
        start(empty)
            .unwrap_err()
            .to_string()
            .contains("no valid log header")
    );
}

#[test]
fn an_idle_log_writes_no_headers() {
    let layout = Layout::new(1024, 100);
    let device = Arc::new(layout.device());
    let journal = layout.mount(device.clone());
    create_one(&journal, 1, layout.block(0), 5);
    for _ in 0..3 {
        journal.maintain(true).unwrap();
    }
    // The commit, then one header that says that everything is in place.
    assert_eq!(journal.stats().headers, 2);
    let head = layout.head(&*device);
    assert_eq!(head.header.tail, head.position);
    assert!(!head.header.is_clean());
    for _ in 0..3 {
        journal.maintain(true).unwrap();
        journal.flush(FlushReason::Fsync).unwrap();
    }
    assert_eq!(journal.stats().headers, 2);
    assert_eq!(
        layout.recover(&MemDevice::clone(&device)).unwrap().counts.found,
        0
    );
}
