//! Two nodes in one process, and the kernel's cache above one of them.

use std::sync::atomic::AtomicU64;

use super::*;

const INODE: GlockName = GlockName::inode(0x55);

fn two(from_afar: bool) -> (Node, Node) {
    let dlm = LocalDlm::new();
    (
        join(&dlm, from_afar, TableOptions::default()),
        join(&dlm, from_afar, TableOptions::default()),
    )
}

#[test]
fn a_lock_goes_from_node_to_node_with_everything_in_order() {
    for from_afar in [false, true] {
        let (one, two) = two(from_afar);
        let (ops_one, ops_two) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
        let (here, there) = (one.get(INODE, &ops_one), two.get(INODE, &ops_two));
        drop(here.acquire(Ex, NONE).unwrap());
        drop(there.acquire(Sh, NONE).unwrap());
        // The one that let go hears of it in its own time.
        let states = |wanted| eventually("states", || (here.held_state(), there.held_state()) == wanted);
        states((Sh, Sh));
        assert_eq!(
            ops_one.take(),
            ["instantiate", "held EX", "callback remote SH", "sync EX"]
        );
        drop(there.acquire(Ex, NONE).unwrap());
        states((Un, Ex));
        assert_eq!(ops_one.take(), ["callback remote UN", "invalidate SH to UN"]);
        drop(here.acquire(Df, NONE).unwrap());
        states((Df, Df));
        drop(here.acquire(Sh, F::ANY).unwrap());
        assert_eq!(here.held_state(), Df, "ANY does with what is there");
    }
}

#[test]
fn the_value_block_travels_with_the_lock() {
    let (one, two) = two(false);
    let (ops_one, ops_two) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
    let name = GlockName::rgrp(0x77);
    let (here, there) = (one.get(name, &ops_one), two.get(name, &ops_two));
    drop(there.acquire(Sh, NONE).unwrap());
    let guard = here.acquire(Ex, NONE).unwrap();
    here.set_lvb(&[3; 32]);
    assert_eq!(here.lvb(), [3; 32]);
    drop(guard);
    drop(there.acquire(Sh, NONE).unwrap());
    assert_eq!((there.lvb(), *ops_two.seen_lvb.lock()), ([3; 32], Some([3; 32])));
    *ops_two.lvb.lock() = Some([4; 32]);
    drop(there.acquire(Ex, NONE).unwrap());
    drop(here.acquire(Sh, NONE).unwrap());
    assert_eq!(here.lvb(), [4; 32], "filled in on the way down");
    // A writer that dies leaves the block invalid: its successor sees zeros.
    drop(here.acquire(Ex, NONE).unwrap());
    one.table.shutdown(Leave::AsFailed).unwrap();
    drop(there.acquire(Sh, NONE).unwrap());
    assert_eq!(*ops_two.seen_lvb.lock(), Some([0; 32]));
}

#[test]
fn a_try_knocks_at_the_other_node_and_the_lock_is_there_the_next_time() {
    let (one, two) = two(true);
    let name = GlockName::new(LockType::Flock, 1);
    let (here, there) = (one.presence(name), two.presence(name));
    drop(here.acquire(Ex, NONE).unwrap());
    assert!(there.try_acquire(Ex, F::TRY).unwrap().is_none());
    assert_eq!(one.table.stats().basts, 0);
    assert!(there.try_acquire(Ex, F::TRY_1CB).unwrap().is_none());
    eventually("it was only cached", || {
        there.try_acquire(Ex, F::TRY).unwrap().is_some()
    });
}

#[test]
fn both_upgrade_at_once_and_both_get_it() {
    for from_afar in [false, true] {
        let (one, two) = two(from_afar);
        let ops = Arc::new(Recorder::default());
        let (here, there) = (one.get(INODE, &ops), two.get(INODE, &ops));
        for _ in 0..50 {
            drop(here.acquire(Sh, F::ANY).unwrap());
            drop(there.acquire(Sh, F::ANY).unwrap());
            let both = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                for glock in [&here, &there] {
                    scope.spawn(|| {
                        both.wait();
                        drop(glock.acquire(Ex, NONE).unwrap());
                    });
                }
            });
        }
    }
}

#[test]
fn a_failed_node_lets_go_of_its_locks_and_the_other_is_told() {
    let (one, two) = two(false);
    let ops = Arc::new(Recorder::default());
    let (here, there) = (one.get(INODE, &ops), two.get(INODE, &ops));
    let guard = here.acquire(Ex, NONE).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| drop(there.acquire(Ex, NONE).unwrap()));
        eventually("it waits", || two.table.stats().waits == 1);
        drop(guard);
        one.table.shutdown(Leave::AsFailed).unwrap();
        waiter.join().unwrap();
    });
    let failed = |event: &dlm_client::Event| matches!(event, dlm_client::Event::RecoverSlot { .. });
    assert!(two.events.lock().iter().any(failed));
}

#[test]
fn nodes_that_want_the_same_locks_in_any_order_all_get_them() {
    let (one, two) = two(true);
    let ops = Arc::new(Recorder::default());
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for (node, order) in [
            (&one, [1, 2, 3]),
            (&two, [3, 2, 1]),
            (&one, [2, 3, 1]),
            (&two, [1, 3, 1]),
        ] {
            let (ops, done) = (&ops, &done);
            scope.spawn(move || {
                let wants = order.map(|number| multi::Want {
                    glock: node.get(GlockName::inode(number), ops),
                    state: Ex,
                    flags: NONE,
                });
                for _ in 0..10 {
                    let guards = multi::acquire_together(&wants, None).unwrap();
                    let mut names = order.to_vec();
                    names.sort_unstable();
                    names.dedup();
                    assert_eq!(guards.len(), names.len());
                    assert!(guards.iter().all(|guard| guard.glock().is_held_by_me()));
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(done.load(Ordering::Relaxed), 40);
}

#[test]
fn taking_several_can_be_interrupted_and_leaves_nothing_behind() {
    let node = single();
    let ops = Arc::new(Recorder::default());
    let (held, free) = (
        node.get(GlockName::inode(1), &ops),
        node.get(GlockName::inode(2), &ops),
    );
    let guard = held.acquire(Ex, F::NOPID).unwrap();
    let interrupt = Interrupt::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(60));
            interrupt.interrupt();
        });
        let wants = [&free, &held].map(|glock| multi::Want {
            glock: Arc::clone(glock),
            state: Ex,
            flags: NONE,
        });
        let error = multi::acquire_together(&wants, Some(&interrupt)).unwrap_err();
        assert_eq!(error.errno(), Errno::EINTR);
    });
    assert!(free.try_acquire(Ex, NONE).unwrap().is_some());
    drop(guard);
    assert!(held.try_acquire(Ex, NONE).unwrap().is_some());
    node.table.set_withdrawn("test");
    let wants = [multi::Want {
        glock: held,
        state: Ex,
        flags: NONE,
    }];
    assert!(multi::acquire_together(&wants, None).is_err());
}

/// Plays the kernel: while its cache is emptied, a page read and a page write of the inode arrive and must be
/// answered before the emptying can go on.
struct Kernel {
    node: Arc<Mutex<Option<Arc<Glock>>>>,
    passes: Mutex<Vec<(u64, bool)>>,
    busy_passes: AtomicU32,
    contended: AtomicU32,
}

impl KernelCache for Kernel {
    fn flush_and_invalidate(&self, inode_number: u64, keep_clean: bool) {
        self.passes.lock().push((inode_number, keep_clean));
        let left = |busy: u32| busy.checked_sub(1);
        if self
            .busy_passes
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, left)
            .is_err()
        {
            return;
        }
        let glock = self.node.lock().clone().unwrap();
        let request = std::thread::spawn(move || {
            drop(glock.acquire(Sh, F::SERVE).unwrap());
            let write = glock.acquire(Ex, F::SERVE).unwrap();
            glock.mark_dirty();
            drop(write);
        });
        request.join().unwrap();
    }

    fn contended(&self, _inode_number: u64, _pass: u32) {
        self.contended.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn page_requests_are_served_while_the_kernels_cache_is_emptied() {
    let node = single();
    let ops = Arc::new(Recorder::default());
    let glock = node.get(INODE, &ops);
    let kernel = Arc::new(Kernel {
        node: Arc::new(Mutex::new(Some(Arc::clone(&glock)))),
        passes: Mutex::default(),
        busy_passes: AtomicU32::new(12),
        contended: AtomicU32::new(0),
    });
    node.table
        .set_kernel_cache(Some(Arc::clone(&kernel) as Arc<dyn KernelCache>));
    drop(glock.acquire(Ex, NONE).unwrap());
    glock.request_demote(Sh);
    assert!(glock.wait_demoted(SOON), "{}", node.table.dump_text());
    assert_eq!(
        *kernel.passes.lock(),
        [(0x55, true); 13],
        "twelve with pages served, one without"
    );
    assert_eq!(
        kernel.contended.load(Ordering::SeqCst),
        5,
        "from the eighth repetition on"
    );
    let calls = ops.take();
    assert_eq!(calls.last().unwrap(), "sync EX", "after the pages: {calls:?}");
    assert!(!glock.is_dirty());
    glock.request_demote(Un);
    assert!(glock.wait_demoted(SOON));
    assert_eq!(kernel.passes.lock().last(), Some(&(0x55, false)));
    assert_eq!(node.table.stats().kernel_flushes, 14);
    // Locks without kernel cache do not ask it.
    let rgrp = node.get(GlockName::rgrp(1), &ops);
    drop(rgrp.acquire(Ex, NONE).unwrap());
    rgrp.request_demote(Un);
    assert!(rgrp.wait_demoted(SOON));
    assert_eq!(node.table.stats().kernel_flushes, 14);
    *kernel.node.lock() = None;
}

#[test]
fn page_requests_that_need_other_locks_do_not_starve_the_demote_workers() {
    // All flush workers wait for the kernel, which waits for requests that need a lock whose demote needs a worker.
    let dlm = LocalDlm::new();
    let options = TableOptions {
        flush_workers: 2,
        demote_workers: 1,
        ..TableOptions::default()
    };
    let (one, two) = (
        join(&dlm, false, options),
        join(&dlm, false, TableOptions::default()),
    );
    let ops = Arc::new(Recorder::default());
    let rgrp = GlockName::rgrp(1);
    drop(two.get(rgrp, &ops).acquire(Ex, NONE).unwrap());
    struct Allocating(Arc<Glock>, Arc<Glock>);
    impl KernelCache for Allocating {
        fn flush_and_invalidate(&self, inode_number: u64, _keep_clean: bool) {
            if inode_number == 1 {
                drop((
                    self.0.acquire(Ex, NONE).unwrap(),
                    self.1.acquire(Ex, NONE).unwrap(),
                ));
            }
        }
    }
    let (here, there) = (
        one.get(rgrp, &ops),
        one.get(GlockName::inode(9), &Arc::new(Recorder::default())),
    );
    drop(there.acquire(Sh, F::EXACT).unwrap());
    one.table
        .set_kernel_cache(Some(Arc::new(Allocating(here, there))));
    let glocks = [1, 2, 3].map(|number| one.get(GlockName::inode(number), &ops));
    for glock in &glocks {
        drop(glock.acquire(Ex, NONE).unwrap());
    }
    for glock in &glocks {
        glock.request_demote(Un);
    }
    for glock in &glocks {
        assert!(glock.wait_demoted(SOON), "{}", one.table.dump_text());
    }
    one.table.set_kernel_cache(None);
}
