//! Goal: the cases of freed, reused and given-up blocks, each by itself (RUNTIME.md 9.1, 9.7, 9.8; FORMAT.md traps
//! 35 to 37). Method: one small journal, explicit steps, a copy of the device recovered as after a crash.

use super::rig::{Layout, begin, create_one, data, ex, fill_data, fill_meta, free_one, meta};
use crate::glock::GlockName;
use crate::journal::ail::Pick;
use crate::journal::{FlushReason, Journal, JournalStats};
use gfs2_format::device::{BlockDevice, MemDevice};
use gfs2_format::log::{RecoveryReport, plan_recovery};
use gfs2_format::{Block, BlockAddr};
use std::sync::{Arc, Condvar, Mutex};

struct Bench {
    layout: Layout,
    device: Arc<MemDevice>,
    journal: Arc<Journal>,
}

impl Bench {
    fn new() -> Self {
        let layout = Layout::new(1024, 400);
        let device = Arc::new(layout.device());
        let journal = layout.mount(device.clone());
        Self {
            layout,
            device,
            journal,
        }
    }

    fn at(&self, n: u64) -> BlockAddr {
        self.layout.block(n)
    }

    fn flush(&self) {
        self.journal.flush(FlushReason::Fsync).unwrap();
    }

    fn stats(&self) -> JournalStats {
        self.journal.stats()
    }

    /// The disk after a power failure now and a replay.
    fn crashed(&self) -> (MemDevice, RecoveryReport) {
        let image = MemDevice::clone(&self.device);
        let report = self.layout.recover(&image).unwrap();
        (image, report)
    }

    fn after_crash(&self, n: u64) -> Block {
        self.layout.get(&self.crashed().0, self.at(n))
    }

    fn on_disk(&self, n: u64) -> Block {
        self.layout.get(&*self.device, self.at(n))
    }

    fn meta(&self, value: u64) -> Block {
        meta(&self.layout.geometry, value)
    }

    fn revokes_in_log(&self) -> u64 {
        let plan = plan_recovery(&*self.device, &self.layout.geometry, &self.layout.journal).unwrap();
        plan.unwrap().counts.revokes
    }
}

#[test]
fn a_freed_block_reused_as_data_is_not_overwritten_by_replay() {
    let bench = Bench::new();
    create_one(&bench.journal, 1, bench.at(0), 5);
    create_one(&bench.journal, 1, bench.at(1), 6);
    bench.flush();
    let seq = free_one(&bench.journal, bench.at(0));
    // Freed but not durable: the old owner's contents come back.
    assert_eq!(bench.after_crash(0), bench.meta(5));
    bench.journal.wait_durable(seq, FlushReason::Fsync).unwrap();
    let file = data(&bench.layout.geometry, 77);
    bench.layout.put(&*bench.device, bench.at(0), &file);
    assert_eq!(bench.after_crash(0), file);
    assert_eq!(bench.after_crash(1), bench.meta(6));
    // And it never goes in place later.
    bench.journal.write_back().unwrap();
    assert_eq!(bench.on_disk(0), file);
}

#[test]
fn a_block_only_in_the_running_commit_needs_no_revoke() {
    let bench = Bench::new();
    create_one(&bench.journal, 1, bench.at(0), 5);
    free_one(&bench.journal, bench.at(0));
    assert_eq!(bench.stats().running, 0);
    bench.flush();
    assert_eq!(bench.stats().headers, 0, "nothing was left to log");
}

#[test]
fn a_block_whose_copies_are_behind_the_tail_needs_no_revoke() {
    let bench = Bench::new();
    create_one(&bench.journal, 1, bench.at(0), 5);
    bench.journal.write_back().unwrap();
    create_one(&bench.journal, 1, bench.at(1), 6);
    free_one(&bench.journal, bench.at(0));
    bench.flush();
    assert_eq!(bench.revokes_in_log(), 0);
}

#[test]
fn a_block_in_place_whose_copy_is_still_in_the_log_is_revoked() {
    let bench = Bench::new();
    create_one(&bench.journal, 1, bench.at(0), 5);
    create_one(&bench.journal, 2, bench.at(1), 6);
    bench.flush();
    let only = Pick::Owner(GlockName::inode(1));
    assert_eq!(bench.journal.write_in_place(only).unwrap(), 1);
    free_one(&bench.journal, bench.at(0));
    bench.flush();
    assert_eq!(bench.revokes_in_log(), 1);
    // A second life as data, freed again: the revoke still stands, no other is needed.
    create_one(&bench.journal, 2, bench.at(2), 7);
    free_one(&bench.journal, bench.at(0));
    bench.flush();
    assert_eq!(bench.revokes_in_log(), 1);
}

#[test]
fn a_revoke_is_cancelled_when_the_block_is_created_before_its_flush() {
    for separate in [false, true] {
        let bench = Bench::new();
        create_one(&bench.journal, 1, bench.at(0), 5);
        bench.flush();
        let mut txn = begin(&bench.journal);
        txn.revoke(bench.at(0)).unwrap();
        if separate {
            txn.commit().unwrap();
            txn = begin(&bench.journal);
        }
        fill_meta(txn.create(&ex(2), bench.at(0)).unwrap(), 9);
        txn.commit().unwrap();
        bench.flush();
        assert_eq!(bench.revokes_in_log(), 0);
        assert_eq!(bench.after_crash(0), bench.meta(9), "separate: {separate}");
        assert_eq!(
            *bench.journal.cache().read(&ex(2), bench.at(0)).unwrap(),
            *bench.meta(9)
        );
        bench.journal.write_back().unwrap();
        assert_eq!(bench.on_disk(0), bench.meta(9));
    }
}

#[test]
fn a_block_logged_again_after_its_revoke_is_replayed() {
    let bench = Bench::new();
    create_one(&bench.journal, 1, bench.at(0), 5);
    bench.flush();
    free_one(&bench.journal, bench.at(0));
    bench.flush();
    create_one(&bench.journal, 2, bench.at(0), 9);
    bench.flush();
    assert_eq!(bench.after_crash(0), bench.meta(9));
    // And dies again.
    free_one(&bench.journal, bench.at(0));
    bench.flush();
    let file = data(&bench.layout.geometry, 3);
    bench.layout.put(&*bench.device, bench.at(0), &file);
    assert_eq!(bench.after_crash(0), file);
}

#[test]
fn a_block_freed_and_never_in_place_holds_the_tail_until_its_freeing_is_durable() {
    let bench = Bench::new();
    create_one(&bench.journal, 1, bench.at(0), 5);
    bench.flush();
    free_one(&bench.journal, bench.at(0));
    // The running commit says it is free, the disk does not: no header may forget the copy.
    let all = Pick::Before(u64::MAX);
    assert_eq!(
        bench.journal.write_in_place(all).unwrap(),
        0,
        "not written in place any more"
    );
    bench.journal.maintain(false).unwrap();
    assert_eq!(bench.after_crash(0), bench.meta(5));
    bench.flush();
    bench.journal.write_back().unwrap();
    assert_eq!(bench.stats().used, 1, "idle");
    assert_ne!(
        bench.on_disk(0),
        bench.meta(5),
        "its contents were never needed in place"
    );
}

#[test]
fn giving_a_glock_up_leaves_no_live_copy_in_the_log() {
    let bench = Bench::new();
    let name = GlockName::inode(1);
    create_one(&bench.journal, 2, bench.at(1), 6);
    create_one(&bench.journal, 1, bench.at(0), 5);
    assert!(bench.journal.has_dirty(name));
    bench.journal.flush_glock(name, FlushReason::InodeSync).unwrap();
    assert!(!bench.journal.has_dirty(name));
    bench.journal.cache().drop_owner(name).unwrap();
    assert_eq!(bench.on_disk(0), bench.meta(5));
    assert_ne!(bench.on_disk(1), bench.meta(6), "only this glock's blocks");
    assert!(bench.journal.cache().drop_owner(GlockName::inode(2)).is_err());
    // The other node changes the block under its own journal; then we crash.
    bench.layout.put(&*bench.device, bench.at(0), &bench.meta(99));
    assert_eq!(bench.after_crash(0), bench.meta(99));
    assert_eq!(bench.after_crash(1), bench.meta(6));
    // The lock comes back.
    let mut txn = begin(&bench.journal);
    assert_eq!(*txn.read(&ex(1), bench.at(0)).unwrap(), *bench.meta(99));
    fill_meta(txn.edit(&ex(1), bench.at(0)).unwrap(), 100);
    txn.commit().unwrap();
    bench.flush();
    assert_eq!(bench.after_crash(0), bench.meta(100));
}

#[test]
fn a_single_node_gives_a_glock_up_without_revokes() {
    let layout = Layout::new(1024, 400);
    let device = Arc::new(layout.device());
    let mut config = layout.config();
    config.shared = false;
    let journal = layout.mount_with(device.clone(), config, 64 << 10);
    create_one(&journal, 1, layout.block(0), 5);
    journal
        .flush_glock(GlockName::inode(1), FlushReason::InodeSync)
        .unwrap();
    journal.cache().drop_owner(GlockName::inode(1)).unwrap();
    assert_eq!(journal.stats().headers, 1);
    journal
        .revoke_glock(GlockName::inode(1), FlushReason::InodeSync)
        .unwrap();
    assert_eq!(journal.stats().headers, 2);
    layout.put(&*device, layout.block(0), &data(&layout.geometry, 8));
    let image = MemDevice::clone(&device);
    layout.recover(&image).unwrap();
    assert_eq!(layout.get(&image, layout.block(0)), data(&layout.geometry, 8));
}

#[test]
fn freeing_jdata_revokes_too_and_escapes_survive() {
    let bench = Bench::new();
    let mut txn = begin(&bench.journal);
    // 4: begins with the magic.
    fill_data(txn.create_data(&ex(1), bench.at(0)).unwrap(), 4);
    fill_data(txn.create_data(&ex(1), bench.at(1)).unwrap(), 8);
    txn.commit().unwrap();
    bench.flush();
    assert_eq!(bench.after_crash(0), data(&bench.layout.geometry, 4));
    free_one(&bench.journal, bench.at(1));
    bench.flush();
    assert_eq!(bench.revokes_in_log(), 1);
    bench.journal.write_back().unwrap();
    assert_eq!(
        bench.on_disk(0),
        data(&bench.layout.geometry, 4),
        "unescaped in place"
    );
}

#[test]
fn in_place_goes_the_committed_snapshot_not_the_running_one() {
    let bench = Bench::new();
    create_one(&bench.journal, 1, bench.at(0), 5);
    bench.flush();
    let mut txn = begin(&bench.journal);
    fill_meta(txn.edit(&ex(1), bench.at(0)).unwrap(), 6);
    txn.commit().unwrap();
    let all = Pick::Before(u64::MAX);
    assert_eq!(bench.journal.write_in_place(all).unwrap(), 1);
    assert_eq!(bench.on_disk(0), bench.meta(5));
    assert_eq!(
        *bench.journal.cache().read(&ex(1), bench.at(0)).unwrap(),
        *bench.meta(6)
    );
    bench.journal.write_back().unwrap();
    assert_eq!(bench.on_disk(0), bench.meta(6));
}

/// Holds writes to one place back until told.
#[derive(Debug)]
struct Gate {
    base: MemDevice,
    at: u64,
    /// Closed; somebody waits.
    state: Mutex<(bool, bool)>,
    wake: Condvar,
}

impl Gate {
    fn new(base: MemDevice, at: u64) -> Arc<Self> {
        Arc::new(Self {
            base,
            at,
            state: Mutex::new((true, false)),
            wake: Condvar::new(),
        })
    }

    /// Waits until a writer stands before the gate; what is returned opens it at the latest when dropped, so that a
    /// failing test ends.
    fn wait_for_writer(&self) -> OpenAtEnd<'_> {
        let mut state = self.state.lock().unwrap();
        while !state.1 {
            state = self.wake.wait(state).unwrap();
        }
        OpenAtEnd(self)
    }

    fn open(&self) {
        self.state.lock().unwrap().0 = false;
        self.wake.notify_all();
    }
}

struct OpenAtEnd<'a>(&'a Gate);

impl Drop for OpenAtEnd<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

impl BlockDevice for Gate {
    fn size(&self) -> u64 {
        self.base.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> gfs2_format::Result<()> {
        self.base.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> gfs2_format::Result<()> {
        if offset == self.at {
            let mut state = self.state.lock().unwrap();
            state.1 = true;
            self.wake.notify_all();
            while state.0 {
                state = self.wake.wait(state).unwrap();
            }
        }
        self.base.write_at(offset, buf)
    }
    fn flush(&self) -> gfs2_format::Result<()> {
        self.base.flush()
    }
}

#[test]
fn a_flush_that_frees_a_block_waits_for_its_in_place_write() {
    let layout = Layout::new(1024, 400);
    let gate = Gate::new(layout.device(), layout.geometry.byte_offset(layout.block(0)));
    let journal = layout.mount(gate.clone());
    create_one(&journal, 1, layout.block(0), 5);
    journal.flush(FlushReason::Fsync).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| journal.write_in_place(Pick::Before(u64::MAX)).unwrap());
        let _end = gate.wait_for_writer();
        let seq = free_one(&journal, layout.block(0));
        let waiting = &journal;
        let flush = scope.spawn(move || waiting.wait_durable(seq, FlushReason::Fsync).unwrap());
        // The header gets written, yet the commit is not announced.
        while journal.stats().headers < 2 {
            std::thread::yield_now();
        }
        for _ in 0..100 {
            std::thread::yield_now();
            assert!(journal.durable_seq() < seq);
        }
        gate.open();
        flush.join().unwrap();
        assert!(journal.durable_seq() >= seq);
    });
}

#[test]
fn a_block_freed_while_its_first_copy_is_being_logged_is_revoked() {
    let layout = Layout::new(1024, 400);
    let ring = layout.journal.map.ring();
    let start = ring.advance(layout.head(&layout.device()).position, 1);
    let first_log_block = layout.journal.map.address(start).unwrap();
    let gate = Gate::new(layout.device(), layout.geometry.byte_offset(first_log_block));
    let journal = layout.mount(gate.clone());
    create_one(&journal, 1, layout.block(0), 5);
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| journal.flush(FlushReason::Fsync).unwrap());
        let _end = gate.wait_for_writer();
        assert!(journal.has_dirty(GlockName::inode(1)));
        let seq = free_one(&journal, layout.block(0));
        gate.open();
        assert!(flush.join().unwrap() < seq);
        // Durable and not freed yet for the disk, freed for us: it does not go in place.
        assert_eq!(journal.write_in_place(Pick::Before(u64::MAX)).unwrap(), 0);
        journal.wait_durable(seq, FlushReason::Fsync).unwrap();
    });
    let file = data(&layout.geometry, 3);
    layout.put(&*gate, layout.block(0), &file);
    let image = MemDevice::clone(&gate.base);
    layout.recover(&image).unwrap();
    assert_eq!(layout.get(&image, layout.block(0)), file);
    journal.write_back().unwrap();
    assert_eq!(layout.get(&*gate, layout.block(0)), file);
    assert_eq!(journal.cache().stats().pinned, 0);
}

#[test]
fn a_reader_during_a_flush_sees_the_newest_commit() {
    let layout = Layout::new(1024, 400);
    let ring = layout.journal.map.ring();
    let start = ring.advance(layout.head(&layout.device()).position, 1);
    let first_log_block = layout.journal.map.address(start).unwrap();
    let gate = Gate::new(layout.device(), layout.geometry.byte_offset(first_log_block));
    let journal = layout.mount(gate.clone());
    create_one(&journal, 1, layout.block(0), 5);
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| journal.flush(FlushReason::Fsync).unwrap());
        let _end = gate.wait_for_writer();
        // Neither the commit nor the read waits for the flush.
        let mut txn = begin(&journal);
        fill_meta(txn.edit(&ex(1), layout.block(0)).unwrap(), 6);
        txn.commit().unwrap();
        let read = journal.cache().read(&ex(1), layout.block(0)).unwrap();
        assert_eq!(read, meta(&layout.geometry, 6));
        gate.open();
        flush.join().unwrap();
    });
    let image = MemDevice::clone(&gate.base);
    layout.recover(&image).unwrap();
    assert_eq!(layout.get(&image, layout.block(0)), meta(&layout.geometry, 5));
    journal.write_back().unwrap();
    assert_eq!(layout.get(&*gate, layout.block(0)), meta(&layout.geometry, 6));
}
