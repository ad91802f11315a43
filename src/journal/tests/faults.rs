//! Goal: after any failed write or flush the node withdraws: nothing more reaches the device, modifying calls answer
//! EROFS, reads EIO, and what is on the disk recovers. Method: one workload, repeated with the fault one write later
//! each time until it no longer meets it.

use super::rig::{Layout, begin, create_one, ex, fill_meta, free_one};
use crate::error::{Errno, FsError, FsResult};
use crate::glock::GlockName;
use crate::journal::{FlushReason, Journal, Reservation, StatfsDelta, StopReason};
use crate::txn::Transaction;
use gfs2_format::device::{Fault, FaultDevice, FaultOp, FaultRule, MemDevice};
use std::sync::Arc;

fn workload(layout: &Layout, journal: &Arc<Journal>) -> FsResult<()> {
    for n in 0..12 {
        let mut txn = Transaction::begin(journal, Reservation::blocks(4).with_revokes(1))?;
        fill_meta(txn.create(&ex(n % 3), layout.block(n))?, n);
        txn.add_statfs(StatfsDelta {
            free: -1,
            ..StatfsDelta::default()
        });
        txn.commit()?;
        match n % 4 {
            0 => drop(journal.flush(FlushReason::Fsync)?),
            1 => journal.write_back()?,
            2 => journal.flush_glock(GlockName::inode(n % 3), FlushReason::InodeSync)?,
            _ => {
                let mut txn = Transaction::begin(journal, Reservation::blocks(1).with_revokes(1))?;
                txn.revoke(layout.block(n))?;
                txn.commit()?;
            }
        }
    }
    journal.stop(StopReason::Shutdown)
}

fn fail_each(op: FaultOp, fault: Fault) {
    let layout = Layout::new(1024, 60);
    let mut met = 0;
    for after in 0.. {
        let device = Arc::new(FaultDevice::new(layout.device()));
        let journal = layout.mount(device.clone());
        device.add(FaultRule::always(op, fault).after(after).times(1));
        let result = workload(&layout, &journal);
        if device.counts().faults == 0 {
            result.unwrap();
            assert!(layout.head(&*device).header.is_clean());
            break;
        }
        met += 1;
        let error = result.unwrap_err();
        assert!(
            matches!(error, FsError::Withdrawn(_)) || error.errno() == Errno::EROFS,
            "{after}: {error}"
        );
        let writes = device.counts();
        device.clear();
        assert_nothing_works(&layout, &journal, after);
        assert_eq!(
            (device.counts().writes, device.counts().flushes),
            (writes.writes, writes.flushes)
        );
        // What failed may have been stored all the same: even a clean header, but then it tells the truth.
        let head = layout.head(&*device).header;
        let stats = journal.stats();
        let truth = stats.ail + stats.running == 0 && (op, fault) != (FaultOp::Write, Fault::Errno(5));
        assert!(
            !head.is_clean() || head.sequence < 1_060 || truth,
            "{after}: a clean header after a withdraw, {stats:?}"
        );
        let image = MemDevice::copy_of(&*device).unwrap();
        layout.recover(&image).unwrap_or_else(|e| panic!("{after}: {e}"));
        layout.mount(Arc::new(image));
    }
    assert!(met > 15, "only {met} faults met");
}

fn assert_nothing_works(layout: &Layout, journal: &Arc<Journal>, after: u64) {
    let refused = Transaction::begin(journal, Reservation::blocks(1)).unwrap_err();
    assert_eq!(refused.errno(), Errno::EROFS, "{after}");
    let health = journal.cache().health();
    assert!(health.is_withdrawn() && health.cause().is_some());
    assert_eq!(
        journal.cache().read(&ex(0), layout.block(0)).unwrap_err().errno(),
        Errno::EIO
    );
    assert!(journal.flush(FlushReason::Fsync).is_err());
    assert!(journal.write_back().is_err());
    assert!(journal.maintain(true).is_err());
    assert!(
        journal
            .flush_glock(GlockName::inode(0), FlushReason::InodeSync)
            .is_err()
    );
    assert!(journal.fsync(journal.durable_seq()).is_err());
    assert!(journal.stop(StopReason::Shutdown).is_err());
    assert!(journal.start().is_err());
}

#[test]
fn a_failed_write_withdraws_wherever_it_happens() {
    fail_each(FaultOp::Write, Fault::Errno(5));
}

#[test]
fn a_torn_write_withdraws_wherever_it_happens() {
    fail_each(FaultOp::Write, Fault::Torn { sectors: 1, errno: 5 });
}

#[test]
fn a_failed_flush_withdraws_wherever_it_happens() {
    fail_each(FaultOp::Flush, Fault::Errno(5));
}

#[test]
fn a_transaction_that_is_open_when_the_node_withdraws_ends_in_an_error() {
    let layout = Layout::new(1024, 60);
    let device = Arc::new(FaultDevice::new(layout.device()));
    let journal = layout.mount(device.clone());
    let mut open = begin(&journal);
    fill_meta(open.create(&ex(1), layout.block(1)).unwrap(), 1);
    create_one(&journal, 2, layout.block(0), 2);
    device.add(FaultRule::always(FaultOp::Write, Fault::Errno(5)));
    assert!(journal.flush(FlushReason::Fsync).is_err());
    assert_eq!(open.commit().unwrap_err().errno(), Errno::EIO);
    assert!(journal.durable_seq() < free_seq());
}

fn free_seq() -> crate::journal::CommitSeq {
    crate::journal::CommitSeq(1)
}

#[test]
fn those_who_wait_for_space_are_told_of_a_withdraw() {
    let layout = Layout::new(1024, 60);
    let device = Arc::new(layout.device());
    let journal = layout.mount(device);
    let first = Transaction::begin(&journal, Reservation::blocks(40)).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            Transaction::begin(&journal, Reservation::blocks(40))
                .unwrap_err()
                .errno()
        });
        while crate::cache::lock(&journal.state).waiters.is_empty() {
            std::thread::yield_now();
        }
        let health = journal.cache().health();
        health.withdraw("test", &crate::health::Cause::Requested);
        assert_eq!(waiter.join().unwrap(), Errno::EROFS);
    });
    drop(first);
    assert_eq!(journal.stats().reserved, 0);
}

#[test]
fn hooks_run_once_their_commit_is_durable_and_never_after_a_withdraw() {
    let layout = Layout::new(1024, 60);
    let device = Arc::new(FaultDevice::new(layout.device()));
    let journal = layout.mount(device.clone());
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let commit = |n: u64| {
        let mut txn = begin(&journal);
        fill_meta(txn.create(&ex(1), layout.block(n)).unwrap(), n);
        let told = Arc::clone(&told);
        txn.on_commit(move |seq| told.lock().unwrap().push((n, seq)));
        txn.commit().unwrap()
    };
    let seq = commit(1);
    assert_eq!(seq, commit(2));
    assert!(told.lock().unwrap().is_empty());
    journal.wait_durable(seq, FlushReason::Fsync).unwrap();
    assert_eq!(*told.lock().unwrap(), [(1, seq), (2, seq)]);
    commit(3);
    free_one(&journal, layout.block(1));
    device.add(FaultRule::always(FaultOp::Flush, Fault::Errno(5)));
    assert!(journal.flush(FlushReason::Fsync).is_err());
    assert_eq!(told.lock().unwrap().len(), 2);
}

#[test]
fn lies_of_the_layers_above_are_refused_and_change_nothing() {
    let layout = Layout::new(1024, 60);
    let journal = layout.mount(Arc::new(layout.device()));
    create_one(&journal, 1, layout.block(0), 5);
    let before = journal.stats();
    let shared = super::rig::Held {
        exclusive: false,
        ..ex(1)
    };
    let mut txn = begin(&journal);
    assert!(txn.edit(&shared, layout.block(0)).is_err(), "not EX");
    assert!(
        txn.edit(&ex(2), layout.block(0)).is_err(),
        "pinned under another glock"
    );
    txn.create(&ex(1), layout.block(1)).unwrap();
    assert!(
        txn.read(&ex(2), layout.block(1)).is_err(),
        "another glock than the edit's"
    );
    assert!(txn.commit().is_err(), "metadata without the magic");
    for addr in [
        layout.geometry.superblock(),
        layout
            .journal
            .map
            .address(gfs2_format::JournalBlock::new(3))
            .unwrap(),
        layout.statfs_change,
    ] {
        let mut txn = begin(&journal);
        fill_meta(txn.create(&ex(1), addr).unwrap(), 1);
        assert!(txn.commit().is_err(), "block {addr}");
    }
    // Two transactions that both hold "EX": the second to commit read what the first has changed since.
    let (mut a, mut b) = (begin(&journal), begin(&journal));
    fill_meta(a.edit(&ex(1), layout.block(0)).unwrap(), 6);
    fill_meta(b.edit(&ex(1), layout.block(0)).unwrap(), 7);
    b.revoke(layout.block(9)).unwrap();
    assert_eq!(journal.stats().running, before.running);
    a.commit().unwrap();
    assert!(b.commit().unwrap_err().is_consistency());
    assert_eq!(
        *journal.cache().read(&ex(1), layout.block(0)).unwrap(),
        *super::rig::meta(&layout.geometry, 6)
    );
}
