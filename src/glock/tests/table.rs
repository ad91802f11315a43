//! One node: guards, demotes, errors, cache pressure, unmount, dump.

use super::*;

const INODE: GlockName = GlockName::inode(0x1234);
const RGRP: GlockName = GlockName::rgrp(0x20);

#[test]
fn a_cached_lock_costs_no_message_and_no_queue() {
    let node = single();
    let ops = Arc::new(Recorder::default());
    let glock = node.get(INODE, &ops);
    drop(glock.acquire(Ex, NONE).unwrap());
    let before = node.table.stats();
    assert_eq!((before.dlm_calls, before.hits), (1, 0));
    for state in [Ex, Sh, Df] {
        let guard = glock.acquire(state, NONE).unwrap();
        assert_eq!((guard.state(), guard.glock().name()), (state, INODE));
    }
    let after = node.table.stats();
    assert_eq!(
        (after.dlm_calls, after.hits, after.requests, after.waits),
        (1, 3, 4, 0)
    );
    assert_eq!(glock.held_state(), Ex);
    assert_eq!(
        ops.take(),
        ["instantiate", "held EX", "held EX", "held SH", "held DF"]
    );
}

#[test]
fn a_demote_syncs_invalidates_and_then_tells_the_lock_service() {
    let node = single();
    let ops = Arc::new(Recorder::default());
    let glock = node.get(RGRP, &ops);
    let guard = glock.acquire(Ex, NONE).unwrap();
    glock.mark_dirty();
    assert_eq!(node.hook.bast(&RGRP.res_name(), Mode::Ex), 1);
    eventually("bast seen", || glock.is_demote_wanted());
    assert_eq!(glock.held_state(), Ex, "the holder is still there");
    assert!(guard.release_and_wait(SOON));
    assert_eq!((glock.held_state(), glock.is_dirty()), (Un, false));
    let calls = [
        "instantiate",
        "held EX",
        "callback remote UN",
        "sync EX",
        "invalidate EX to UN",
    ];
    assert_eq!(ops.take(), calls);
    drop(glock.acquire(Sh, NONE).unwrap());
    assert_eq!(ops.take(), ["instantiate", "held SH"]);
    assert!(node.table.demote(RGRP, Un) && glock.wait_demoted(SOON));
    assert_eq!(
        ops.take(),
        ["callback remote UN", "invalidate SH to UN"],
        "nothing to sync under SH"
    );
    assert!(!node.table.demote(GlockName::rgrp(99), Un));
}

#[test]
fn a_failed_sync_keeps_the_lock_and_calls_for_a_withdraw_once() {
    let node = single();
    let ops = Arc::new(Recorder::default());
    ops.fail_sync.store(true, Ordering::SeqCst);
    for number in [1, 2] {
        let glock = node.get(GlockName::rgrp(number), &ops);
        drop(glock.acquire(Ex, NONE).unwrap());
        glock.request_demote(Un);
        assert!(!glock.wait_demoted(SOON), "it never gets down");
        assert_eq!(glock.held_state(), Ex);
        let error = glock.acquire(Sh, F::NOEXP).unwrap_err();
        assert_eq!(error.errno(), Errno::EIO);
        assert!(error.to_string().contains("disk on fire"), "{error}");
    }
    assert_eq!(node.withdrawn.lock().len(), 1);
    assert!(!ops.take().iter().any(|call| call.starts_with("invalidate")));
    assert_eq!(
        node.table.clear_all().kept,
        [GlockName::rgrp(1), GlockName::rgrp(2)]
    );
}

#[test]
fn blocks_left_in_the_log_after_a_sync_are_a_failed_sync() {
    let node = single();
    let ops = Arc::new(Recorder::default());
    let glock = node.get(RGRP, &ops);
    drop(glock.acquire(Ex, NONE).unwrap());
    glock.add_ail(3);
    glock.request_demote(Un);
    assert!(!glock.wait_demoted(SOON));
    assert!(node.withdrawn.lock()[0].contains("glock 3/20: 3 blocks left in the log"));
}

#[test]
fn a_panic_in_an_operation_does_not_take_the_table_along() {
    let node = single();
    let ops = Arc::new(Recorder::default());
    let glock = node.get(RGRP, &ops);
    ops.panic_instantiate.store(true, Ordering::SeqCst);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| glock.acquire(Sh, NONE)));
    assert!(panicked.is_err());
    ops.panic_instantiate.store(false, Ordering::SeqCst);
    drop(glock.acquire(Ex, NONE).unwrap());
    ops.panic_sync.store(true, Ordering::SeqCst);
    glock.request_demote(Un);
    assert!(!glock.wait_demoted(SOON));
    assert!(node.withdrawn.lock()[0].contains("sync panicked"));
    // The worker lives on.
    let other = node.get(GlockName::rgrp(9), &Arc::new(Recorder::default()));
    drop(other.acquire(Ex, NONE).unwrap());
    other.request_demote(Un);
    assert!(other.wait_demoted(SOON));
}

#[test]
fn a_failed_read_of_the_object_fails_the_holder_and_is_tried_again() {
    let node = single();
    let ops = Arc::new(Recorder::default());
    ops.fail_instantiate.store(true, Ordering::SeqCst);
    let glock = node.get(INODE, &ops);
    assert_eq!(glock.acquire(Sh, NONE).unwrap_err().errno(), Errno::ESTALE);
    assert_eq!(glock.acquire(Sh, NONE).unwrap_err().errno(), Errno::ESTALE);
    drop(glock.acquire(Ex, F::SKIP).unwrap());
    assert_eq!(
        ops.take(),
        ["instantiate", "instantiate"],
        "SKIP neither reads nor reports"
    );
    ops.fail_instantiate.store(false, Ordering::SeqCst);
    drop(glock.acquire(Sh, NONE).unwrap());
    drop(glock.acquire(Sh, NONE).unwrap());
    assert_eq!(ops.take(), ["instantiate", "held SH", "held SH"]);
    glock.need_instantiate();
    drop(glock.acquire(Sh, NONE).unwrap());
    assert_eq!(ops.take(), ["instantiate", "held SH"]);
}

#[test]
fn tries_do_not_wait_for_other_threads() {
    let node = single();
    let glock = node.get(INODE, &Arc::new(Recorder::default()));
    let guard = glock.acquire(Ex, NONE).unwrap();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            assert!(glock.try_acquire(Sh, NONE).unwrap().is_none());
            assert!(glock.try_acquire(Ex, F::TRY_1CB).unwrap().is_none());
            assert_eq!(glock.acquire(Sh, F::TRY).unwrap_err().errno(), Errno::EAGAIN);
            assert_eq!(
                glock.acquire(Sh, F::NOBLOCK).unwrap_err().errno(),
                Errno(libc::ECHILD)
            );
        });
        other.join().unwrap();
    });
    drop(guard);
    assert!(glock.try_acquire(Sh, NONE).unwrap().is_some());
    assert!(glock.acquire(Sh, F::NOBLOCK).is_ok());
    // The knock of TRY_1CB goes to other nodes; locally it is a plain failure.
    assert_eq!(node.table.stats().basts, 0);
}

#[test]
fn a_thread_knows_what_it_holds_and_may_not_take_it_twice() {
    let node = single();
    let glock = node.get(INODE, &Arc::new(Recorder::default()));
    assert!(!glock.is_held_by_me());
    let guard = glock.acquire(Sh, NONE).unwrap();
    assert_eq!(glock.state_held_by_me(), Some(Sh));
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(!glock.is_held_by_me()));
    });
    let twice = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| glock.acquire(Sh, NONE).map(drop)));
    if cfg!(debug_assertions) {
        assert!(twice.is_err());
    }
    let not_owned = glock.acquire(Sh, F::NOPID).unwrap();
    drop(guard);
    assert!(!glock.is_held_by_me());
    drop(not_owned);
    // flock: one process may hold several.
    let flock = node.presence(GlockName::new(LockType::Flock, 7));
    let _one = flock.acquire(Sh, F::EXACT | F::NOPID).unwrap();
    let _two = flock.acquire(Sh, F::EXACT | F::NOPID).unwrap();
}

#[test]
fn a_pending_request_can_be_polled_timed_abandoned_and_interrupted() {
    let node = single();
    let glock = node.get(INODE, &Arc::new(Recorder::default()));
    let guard = glock.acquire(Ex, NONE).unwrap();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut pending = glock.acquire_async(Ex, NONE).unwrap();
            let soon = std::time::Instant::now() + Duration::from_millis(5);
            assert!(pending.wait_until(Some(soon), None).is_none());
            assert!(!pending.is_ready());
            drop(pending);
            let mut pending = glock.acquire_async(Sh, NONE).unwrap();
            let interrupt = Interrupt::new();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(5));
                    interrupt.interrupt();
                });
                let answer = pending.wait_until(None, Some(&interrupt)).unwrap();
                assert_eq!(answer.unwrap_err().errno(), Errno::EINTR);
            });
            drop(pending);
        });
        other.join().unwrap();
    });
    let mut pending = std::thread::scope(|scope| {
        scope
            .spawn(|| glock.acquire_async(Sh, F::NOPID).unwrap())
            .join()
            .unwrap()
    });
    drop(guard);
    let granted = pending.wait_until(None, None).unwrap().unwrap();
    assert_eq!(granted.state(), Sh);
    drop(granted);
    assert_eq!(glock.acquire_async(Ex, NONE).unwrap().wait().unwrap().state(), Ex);
    assert!(
        node.table
            .dump_text()
            .lines()
            .all(|line| !line.starts_with(" H:")),
        "no holder is left"
    );
}

#[test]
fn nocache_gives_the_lock_back_at_once() {
    let node = single();
    let glock = node.presence(GlockName::nondisk(name::nondisk::MOUNT));
    let guard = glock.acquire(Ex, F::NOCACHE | F::NOEXP).unwrap();
    assert!(guard.release_and_wait(SOON));
    assert_eq!(glock.held_state(), Un);
}

#[test]
fn a_lock_that_ignores_callbacks_stays_held() {
    let node = single();
    let ops = Arc::new(Recorder::default());
    ops.ignore_remote.store(true, Ordering::SeqCst);
    let live = node.get(GlockName::nondisk(name::nondisk::LIVE), &ops);
    let guard = live.acquire(Sh, F::EXACT | F::NOPID).unwrap();
    assert_eq!(node.hook.bast(&live.name().res_name(), Mode::Ex), 1);
    eventually("callback", || {
        ops.take().contains(&"callback remote UN".to_owned())
    });
    eventually("demote taken back", || !live.is_demote_wanted());
    drop(guard);
    assert_eq!(live.held_state(), Sh);
}

#[test]
fn grants_are_parked_during_recovery_except_for_those_who_may_pass() {
    let node = single();
    let glock = node.presence(INODE);
    let cached = node.presence(RGRP);
    drop(cached.acquire(Sh, NONE).unwrap());
    node.table.block_for_recovery();
    assert!(node.table.is_blocked());
    drop(cached.acquire(Sh, NONE).unwrap());
    let mut parked = glock.acquire_async(Sh, F::NOPID).unwrap();
    let soon = std::time::Instant::now() + Duration::from_millis(10);
    assert!(parked.wait_until(Some(soon), None).is_none());
    assert!(node.table.dump_text().contains("f:laFqbn"));
    let journal = node.presence(GlockName::journal(1));
    drop(journal.acquire(Ex, F::NOEXP).unwrap());
    node.table.unblock();
    assert!(parked.wait_until(None, None).unwrap().is_ok());
}

#[test]
fn after_a_withdraw_inode_and_rgrp_locks_are_refused_and_kept() {
    let node = single();
    let ops = Arc::new(Recorder::default());
    let (inode, other) = (node.get(INODE, &ops), node.get(GlockName::inode(2), &ops));
    drop(inode.acquire(Ex, NONE).unwrap());
    let exempt = node.get(GlockName::inode(3), &ops);
    exempt.set_not_journaled();
    node.table.set_withdrawn("cable pulled");
    for glock in [&inode, &other, &node.get(RGRP, &ops)] {
        let error = glock.acquire(Sh, NONE).unwrap_err();
        assert_eq!(error.to_string(), "the filesystem has withdrawn: cable pulled");
    }
    assert!(exempt.acquire(Sh, NONE).is_ok());
    assert!(node.presence(GlockName::iopen(2)).acquire(Sh, NONE).is_ok());
    assert!(inode.acquire(Sh, F::NOEXP).is_ok(), "cached, and allowed to pass");
    ops.take();
    drop((inode, other, exempt));
    let report = node.table.clear_all();
    assert_eq!((report.left, report.kept), (vec![], vec![INODE]));
    let calls = ops.take();
    assert!(
        !calls.iter().any(|call| call.starts_with("sync")),
        "nothing may be written: {calls:?}"
    );
    assert!(calls.contains(&"invalidate EX to UN".to_owned()));
    node.table.set_recovered();
    assert_eq!(node.table.clear_all(), ClearReport::default());
}

#[test]
fn unused_glocks_are_given_up_when_the_budget_is_exceeded() {
    let options = TableOptions {
        budget: 128,
        ..TableOptions::default()
    };
    let dlm = LocalDlm::new();
    let node = join(&dlm, false, options);
    let ops = Arc::new(Recorder::default());
    let pinned = node.get(GlockName::inode(0), &ops);
    drop(pinned.acquire(Ex, NONE).unwrap());
    let flush_first = node.get(GlockName::inode(1), &ops);
    drop(flush_first.acquire(Ex, NONE).unwrap());
    flush_first.set_lflush();
    drop(flush_first);
    for number in 2..2000 {
        drop(
            node.get(GlockName::inode(number), &ops)
                .acquire(Ex, NONE)
                .unwrap(),
        );
    }
    eventually("the table shrinks", || {
        node.table.shrink();
        node.table.stats().glocks <= 128
    });
    assert!(node.table.stats().freed >= 1800);
    eventually("locks are unlocked", || node.hook.locks() <= 128);
    assert_eq!(pinned.held_state(), Ex, "somebody has it");
    assert_eq!(
        node.table.find(GlockName::inode(1)).unwrap().held_state(),
        Ex,
        "needs a log flush first"
    );
    node.table.find(GlockName::inode(1)).unwrap().clear_lflush();
    // A name that is being freed is given out again only when it is gone.
    for number in (2..2000).rev() {
        drop(
            node.get(GlockName::inode(number), &ops)
                .acquire(Sh, NONE)
                .unwrap(),
        );
    }
    drop(pinned);
    assert_eq!(node.table.clear_all(), ClearReport::default());
    assert_eq!(node.hook.locks(), 0);
    let stats = node.table.stats();
    assert_eq!((stats.glocks, stats.requests), (0, 2000 + 1998));
}

#[test]
fn clearing_demotes_everything_and_names_what_it_cannot() {
    let options = TableOptions {
        clear_limit: Duration::from_millis(100),
        clear_report: Duration::from_millis(10),
        ..TableOptions::default()
    };
    let node = join(&LocalDlm::new(), true, options);
    let ops = Arc::new(Recorder::default());
    let held = node.get(INODE, &ops).acquire(Ex, F::NOPID).unwrap();
    let in_hand = node.get(GlockName::inode(7), &ops);
    drop(in_hand.acquire(Sh, NONE).unwrap());
    drop(node.get(RGRP, &ops).acquire(Ex, NONE).unwrap());
    let report = node.table.clear_all();
    assert_eq!(
        (report.left, report.referenced),
        (vec![INODE], vec![GlockName::inode(7)])
    );
    assert!(node.table.find(RGRP).is_none());
    drop((held, in_hand));
    assert_eq!(node.table.clear_all(), ClearReport::default());
    node.table.shutdown(Leave::Clean).unwrap();
    let ops: Arc<dyn GlockOps> = Arc::new(Presence);
    assert!(node.table.get(INODE, &ops).is_err());
    assert!(node.table.shutdown(Leave::Clean).is_err(), "left before");
}

#[test]
fn a_shutdown_answers_whoever_waits() {
    let node = single();
    let glock = node.presence(RGRP);
    let guard = glock.acquire(Ex, NONE).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| glock.acquire(Ex, NONE).map(drop));
        eventually("it waits", || node.table.stats().waits == 1);
        node.table.shutdown(Leave::AsFailed).unwrap();
        assert_eq!(waiter.join().unwrap().unwrap_err().errno(), Errno::EIO);
    });
    drop(guard);
}

#[test]
fn the_dump_is_in_the_kernels_format() {
    let node = single();
    let ops = Arc::new(Recorder::default());
    let glock = node.get(INODE, &ops);
    let guard = glock.acquire(Ex, F::NOEXP).unwrap();
    glock.mark_dirty();
    glock.set_lflush();
    glock.add_ail(2);
    glock.add_revokes(1);
    let idle = node.presence(GlockName::new(LockType::Flock, 0xff));
    let line = guard_site(&node.table.dump_text());
    let mut lines = line.lines();
    assert_eq!(
        lines.next(),
        Some("G:  s:EX n:2/1234 f:yfq t:EX d:EX/0 a:2 v:1 r:2 m:200 p:0")
    );
    let holder = lines.next().unwrap();
    let thread = thread_id::current();
    let name = thread_id::name_of(thread).unwrap();
    assert_eq!(holder, format!(" H: s:EX f:eH e:0 p:{thread} [{name}] SITE"));
    assert_eq!(lines.next(), Some(" I: n:1/4660"));
    assert_eq!(
        lines.next(),
        Some("G:  s:UN n:6/ff f:an t:UN d:EX/0 a:0 v:0 r:1 m:200 p:0")
    );
    assert_eq!(lines.next(), None);
    glock.add_ail(-2);
    glock.add_revokes(-1);
    drop((guard, idle));
}

/// The place of the call differs from build to build.
fn guard_site(dump: &str) -> String {
    let cut = |line: &str| match line.find("] ") {
        Some(end) if line.starts_with(" H:") => {
            let site = &line[end + 2..];
            assert!(site.contains("glock/tests/table.rs:"), "{site}");
            format!("{} SITE", &line[..=end])
        }
        _ => line.to_owned(),
    };
    dump.lines().map(|line| cut(line) + "\n").collect()
}

#[test]
fn objects_are_found_through_their_glock_while_they_live() {
    let node = single();
    let glock = node.presence(INODE);
    assert!(glock.object::<String>().is_none());
    let object = Arc::new("dinode".to_owned());
    let weak: std::sync::Weak<dyn std::any::Any + Send + Sync> = Arc::downgrade(&object) as _;
    glock.set_object(Some(weak));
    assert_eq!(
        glock.object::<String>().as_deref().map(String::as_str),
        Some("dinode")
    );
    assert!(glock.object::<u64>().is_none());
    drop(object);
    assert!(glock.object::<String>().is_none());
    glock.set_object(None);
}

#[test]
fn a_number_that_cannot_be_a_block_is_refused() {
    let node = single();
    let ops: Arc<dyn GlockOps> = Arc::new(Presence);
    let error = node.table.get(GlockName::inode(u64::MAX), &ops).unwrap_err();
    assert!(error.to_string().contains("number out of range"), "{error}");
}

#[test]
fn a_busy_lock_is_asked_again() {
    let dlm = LocalDlm::new();
    let (space, queue) = dlm.join("fs", &JoinOptions::default()).unwrap();
    let node = node(
        &dlm,
        Arc::new(FromAfar {
            space,
            busy: AtomicU32::new(3),
        }),
        queue,
        TableOptions::default(),
    );
    let glock = node.presence(INODE);
    drop(glock.acquire(Sh, NONE).unwrap());
    drop(glock.acquire(Ex, NONE).unwrap());
    assert_eq!(glock.held_state(), Ex);
}

#[test]
fn events_of_nobodys_glock_go_to_the_sink_and_fatal_ones_stop_the_node() {
    let node = single();
    let raw = cast(LockId(4), RAW_TOKENS | 4, dlm_client::Status::Granted, Mode::Ex);
    node.hook.inject(&dlm_client::Event::Cast(raw));
    node.hook.inject(&dlm_client::Event::RecoverPrep);
    node.hook.inject(&dlm_client::Event::Fatal(LockError::Left));
    eventually("all heard", || node.events.lock().len() == 4);
    let events = node.events.lock();
    assert!(matches!(
        events[0],
        dlm_client::Event::RecoverDone { our_slot: 1, .. }
    ));
    assert_eq!(events[1], dlm_client::Event::Cast(raw));
    assert_eq!(events[2], dlm_client::Event::RecoverPrep);
    assert_eq!(node.withdrawn.lock().len(), 1);
}

#[test]
fn answers_for_locks_of_the_past_are_ignored() {
    let node = single();
    let glock = node.presence(INODE);
    drop(glock.acquire(Sh, NONE).unwrap());
    let token = INODE.token().unwrap();
    node.hook.inject(&dlm_client::Event::Cast(cast(
        LockId(999),
        token,
        dlm_client::Status::Granted,
        Mode::Ex,
    )));
    node.hook.inject(&dlm_client::Event::Bast {
        id: LockId(999),
        token,
        mode: Mode::Ex,
    });
    node.hook.inject(&dlm_client::Event::RecoverPrep);
    eventually("both passed", || node.events.lock().len() == 2);
    assert_eq!((glock.held_state(), glock.is_demote_wanted()), (Sh, false));
}

#[test]
fn sorted_locks_come_in_order_once_each() {
    let node = single();
    let ops = Arc::new(Recorder::default());
    let glocks = [5, 1, 9, 5]
        .map(|number| node.get(GlockName::rgrp(number), &ops))
        .to_vec();
    let guards = multi::acquire_sorted(glocks.clone(), Ex, F::NODE_SCOPE).unwrap();
    let numbers: Vec<u64> = guards.iter().map(|guard| guard.glock().name().number).collect();
    assert_eq!(numbers, [1, 5, 9]);
    drop(guards);
    node.table.set_withdrawn("test");
    assert!(multi::acquire_sorted(glocks, Ex, NONE).is_err());
}
