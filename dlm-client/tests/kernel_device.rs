//! Goal: the kernel backend believes no grant too early, survives its own death, and takes nothing broken for true.
//! Method: a kernel in this process ([`fake`]) that is told what to say; the contract itself is run in `contract.rs`.

mod fake;

use std::sync::Arc;
use std::time::Duration;

use dlm_client::backend::kernel::{Kernel, abi};
use dlm_client::{
    Cast, CrashSafety, Dlm, Event, EventQueue, JoinOptions, KernelDlm, Leave, Lkf, LockError, LockId,
    Lockspace, Mode, NodeId, Plock, PlockOp, ResName, SbFlags, Slot, SlotSource, Status,
};
use fake::{FakeKernel, List, result};

const LIMIT: Duration = Duration::from_secs(20);
const NONE: Lkf = Lkf::empty();
/// What the backend puts where the address of a completion routine would be.
const CAST: u64 = 2;

struct Node {
    space: Arc<dyn Lockspace>,
    queue: EventQueue,
}

fn name(text: &str) -> ResName {
    ResName::new(text.as_bytes()).unwrap()
}

impl Node {
    fn join(kernel: &FakeKernel) -> Self {
        let dlm = KernelDlm::with(Arc::new(kernel.clone())).unwrap();
        let (space, queue) = dlm.join("foo", &JoinOptions::default()).unwrap();
        let node = Self { space, queue };
        assert!(matches!(node.next(), Event::RecoverDone { our_slot: 1, .. }));
        node
    }

    #[track_caller]
    fn next(&self) -> Event {
        self.queue.recv_timeout(LIMIT).expect("an event in time")
    }

    #[track_caller]
    fn cast(&self) -> Cast {
        match self.next() {
            Event::Cast(cast) => cast,
            other => panic!("expected a Cast, found {other:?}"),
        }
    }

    fn request(&self, text: &str, mode: Mode, flags: Lkf) -> LockId {
        self.space.request(&name(text), mode, flags, 5).unwrap()
    }

    #[track_caller]
    fn held(&self, text: &str, mode: Mode, flags: Lkf) -> LockId {
        let id = self.request(text, mode, flags);
        let cast = self.cast();
        assert_eq!((cast.id, cast.status, cast.mode), (id, Status::Granted, mode));
        id
    }

    #[track_caller]
    fn fatal(&self) -> String {
        loop {
            match self.next() {
                Event::Fatal(LockError::Service(text)) => return text,
                Event::Fatal(other) => panic!("{other}"),
                _ => {}
            }
        }
    }
}

#[test]
fn a_grant_of_a_recovery_comes_after_its_end_even_if_it_is_read_first() {
    let kernel = FakeKernel::default();
    kernel.recovery("foo", &["add member 2"], "2 1:1 2:2");
    let node = Node::join(&kernel);
    // Nothing is granted while the write sleeps.
    kernel.block(true);
    let id = node.request("grave", Mode::Ex, NONE);
    kernel.inject_after_line("dlm: foo: dlm_recover 77", &result(CAST, u64::from(id.0), 0, 9));
    assert_eq!(node.next(), Event::RecoverPrep);
    assert_eq!(node.queue.try_recv(), None);
    kernel.say("dlm: foo: remove member 2");
    kernel.say("dlm: foo: dlm_recover 77 error -4");
    kernel.recovery("foo", &[], "1 1:1");
    // Node 2 had gone before we came: in the lockspace we joined it had no slot.
    assert!(matches!(node.next(), Event::RecoverDone { our_slot: 1, .. }));
    let cast = node.cast();
    assert_eq!((cast.id, cast.status), (id, Status::Granted));
    kernel.block(false);
}

#[test]
fn a_member_that_goes_is_named_with_its_slot() {
    let kernel = FakeKernel::default();
    let node = Node::join(&kernel);
    kernel.recovery("foo", &["add member 7"], "2 1:1 2:7");
    assert_eq!(node.next(), Event::RecoverPrep);
    assert!(matches!(node.next(), Event::RecoverDone { slots, .. } if slots.len() == 2));
    kernel.recovery("foo", &["remove member 7"], "1 1:1");
    assert_eq!(node.next(), Event::RecoverPrep);
    let failed = Slot {
        node: NodeId(7),
        slot: 2,
    };
    assert_eq!(node.next(), Event::RecoverSlot { failed });
    assert!(matches!(node.next(), Event::RecoverDone { slots, .. } if slots.len() == 1));
}

#[test]
fn calls_return_while_the_device_sleeps() {
    let kernel = FakeKernel::default();
    let node = Node::join(&kernel);
    let held = node.held("one", Mode::Ex, NONE);
    kernel.block(true);
    let other = node.request("two", Mode::Pr, NONE);
    node.space.convert(held, Mode::Nl, NONE, None).unwrap();
    assert_eq!(
        node.space.convert(held, Mode::Pr, NONE, None),
        Err(LockError::Busy(held))
    );
    assert_eq!(node.queue.try_recv(), None);
    kernel.block(false);
    assert_eq!(node.cast().id, other);
    assert_eq!(node.cast().id, held);
}

#[test]
fn locks_of_a_dead_process_stay_in_the_way_until_they_are_adopted_or_purged() {
    let kernel = FakeKernel::default();
    let dead = Node::join(&kernel);
    let peer = Node::join(&kernel);
    let grave = dead.held("grave", Mode::Ex, Lkf::VALBLK);
    dead.space
        .convert(grave, Mode::Pw, Lkf::VALBLK, Some(&[7; 32]))
        .unwrap();
    assert_eq!(dead.cast().mode, Mode::Pw);
    dead.held("kept", Mode::Ex, NONE);
    drop(dead);
    let waits = peer.request("grave", Mode::Pr, Lkf::VALBLK);
    let again = Node::join(&kernel);
    for (text, mode, status) in [
        ("kept", Mode::Pr, Status::Again),
        ("never", Mode::Ex, Status::Err(2)),
        ("kept", Mode::Ex, Status::Granted),
        ("kept", Mode::Ex, Status::Err(2)),
    ] {
        let id = again.request(text, mode, Lkf::ORPHAN);
        let cast = again.cast();
        assert_eq!((cast.id, cast.status), (id, status), "{text} {mode}");
    }
    assert_eq!(
        peer.queue.try_recv(),
        None,
        "the dead writer's lock is in the way"
    );
    again.space.purge_orphans().unwrap();
    let cast = peer.cast();
    assert_eq!((cast.id, cast.status), (waits, Status::Granted));
    assert_eq!(cast.sb, SbFlags::VALNOTVALID);
    // The adopted one was not dropped.
    let none = peer.request("kept", Mode::Pr, Lkf::NOQUEUE);
    let cast = peer.cast();
    assert_eq!((cast.id, cast.status), (none, Status::Again));
}

/// Killed while it holds, waits and converts; the conversion with and without an answer till then.
#[test]
fn who_is_killed_leaves_nothing_in_the_way_and_who_lives_loses_nothing() {
    for slow in [false, true] {
        let kernel = FakeKernel::default();
        let [dead, peer, again] = [1, 2, 3].map(|_| Node::join(&kernel));
        let (busy, theirs) = (
            peer.held("busy", Mode::Ex, NONE),
            peer.held("theirs", Mode::Ex, NONE),
        );
        let kept = dead.held("kept", Mode::Ex, NONE);
        let wrote = dead.held("a\0\"b\n", Mode::Ex, Lkf::VALBLK);
        let block = Some(&[7; 32]);
        dead.space.convert(wrote, Mode::Pw, Lkf::VALBLK, block).unwrap();
        assert_eq!(dead.cast().mode, Mode::Pw);
        peer.held("a\0\"b\n", Mode::Nl, NONE);
        let turn = dead.held("turn", Mode::Pr, NONE);
        let reads = peer.held("turn", Mode::Pr, NONE);
        if !slow {
            dead.request("busy", Mode::Ex, NONE);
            assert!(matches!(peer.next(), Event::Bast { id, .. } if id == busy));
        }
        dead.space.convert(turn, Mode::Ex, NONE, None).unwrap();
        assert!(matches!(peer.next(), Event::Bast { id, .. } if id == reads));
        let waits = peer.request("kept", Mode::Pr, NONE);
        assert!(matches!(dead.next(), Event::Bast { id, .. } if id == kept));
        // A process of others that lives on, though the thread that asked does not.
        let other = kernel.open("foo").unwrap();
        for (name, flags) in [("theirs", Lkf::PERSISTENT), ("open", Lkf::PERSISTENT)] {
            let name = ResName::new(name.as_bytes()).unwrap();
            let mut bytes = abi::request(LockId(9), &name, Mode::Ex, flags);
            bytes[32..40].fill(0);
            other.write(&bytes).unwrap();
        }
        assert!(matches!(peer.next(), Event::Bast { id, .. } if id == theirs));
        kernel.end_thread(4);
        let own = again.held("mine", Mode::Ex, NONE);
        let told = |kernel: &FakeKernel| kernel.locks("foo");
        let before = told(&kernel);

        kernel.slow(slow);
        kernel.kill("foo", 1);
        std::mem::forget(dead);
        again.space.purge_orphans().unwrap();
        if slow {
            kernel.wait_for("all but the conversion", |kernel| told(kernel) == before - 2);
            kernel.answer("foo");
        }
        let cast = peer.cast();
        assert_eq!((cast.id, cast.status), (waits, Status::Granted), "{slow}");
        kernel.wait_for("nothing of the dead", |kernel| {
            told(kernel) == before - if slow { 3 } else { 4 }
        });

        for id in [busy, reads, theirs] {
            peer.space.unlock(id, NONE, None).unwrap();
            assert_eq!(peer.cast().status, Status::Unlocked);
        }
        again.held("busy", Mode::Ex, NONE);
        again.held("turn", Mode::Ex, NONE);
        let id = again.request("a\0\"b\n", Mode::Pr, Lkf::VALBLK);
        let cast = again.cast();
        assert_eq!(
            (cast.id, cast.sb, cast.lvb.as_ref()),
            (id, SbFlags::VALNOTVALID, block)
        );
        let mut buffer = [0; abi::RESULT_MAX];
        let grants = std::iter::from_fn(|| other.read(&mut buffer).ok()).count();
        assert_eq!(grants, 2, "who lives was not granted what it waited for");
        for name in ["mine", "theirs", "open"] {
            let none = peer.request(name, Mode::Pr, Lkf::NOQUEUE);
            let cast = peer.cast();
            assert_eq!((cast.id, cast.status), (none, Status::Again), "{name}");
        }
        again.space.unlock(own, NONE, None).unwrap();
        assert_eq!(again.cast().status, Status::Unlocked);
    }
}

/// What becomes of such a request the kernel tells a process that is no more.
#[test]
fn a_request_that_had_no_answer_when_its_process_was_killed_makes_the_node_unfit() {
    let kernel = FakeKernel::default();
    let [dead, peer, again] = [1, 2, 3].map(|_| Node::join(&kernel));
    let busy = peer.held("busy", Mode::Ex, NONE);
    dead.held("kept", Mode::Ex, NONE);
    dead.request("busy", Mode::Ex, NONE);
    assert!(matches!(peer.next(), Event::Bast { id, .. } if id == busy));
    kernel.slow(true);
    kernel.kill("foo", 1);
    std::mem::forget(dead);
    again.space.purge_orphans().unwrap();
    let said = again.fatal();
    let words = [
        "orphans could not be dropped: 1 requests were on their way",
        "restart this node",
        "dlm_tool leave foo",
    ];
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    // What was granted is dropped all the same; nobody touched what waits.
    assert_eq!(kernel.locks("foo"), 2);
    peer.held("kept", Mode::Ex, NONE);
}

/// More than are taken in at once.
#[test]
fn any_number_of_orphans_is_dropped() {
    const MANY: usize = 70_000;
    let kernel = FakeKernel::default();
    let dead = Node::join(&kernel);
    let mut granted = 0;
    for n in 0..MANY {
        dead.request(&format!("lock {n}"), Mode::Pr, NONE);
        granted += std::iter::from_fn(|| dead.queue.try_recv()).count();
    }
    while granted < MANY {
        assert_eq!(dead.cast().status, Status::Granted);
        granted += 1;
    }
    assert_eq!(kernel.locks("foo"), MANY);
    drop(dead);
    let again = Node::join(&kernel);
    again.space.purge_orphans().unwrap();
    again.held(&format!("lock {}", MANY - 1), Mode::Ex, NONE);
    assert_eq!(kernel.locks("foo"), 1);
}

#[test]
fn without_the_list_of_locks_nothing_is_purged_and_it_is_said() {
    let kernel = FakeKernel::default();
    let node = Node::join(&kernel);
    kernel.list(List::Missing);
    assert_eq!(
        node.space.purge_orphans(),
        Err(LockError::Service("no debugfs".to_owned()))
    );
    node.held("one", Mode::Ex, NONE);
    kernel.list(List::Broken("version rsb 1.1 lvb 1.1 lkb 1.1\nrsb none\n"));
    node.space.purge_orphans().unwrap();
    assert_eq!(
        node.fatal(),
        "orphans could not be dropped: the list of locks: line 2: not a resource"
    );
}

/// What a kernel finds waiting when its device is closed it does not forget, and tells nobody of later.
#[test]
fn what_waits_is_taken_back_before_the_device_is_closed() {
    let kernel = FakeKernel::default();
    let [node, peer] = [1, 2].map(|_| Node::join(&kernel));
    for text in ["one", "two"] {
        let holder = node.held(text, Mode::Ex, NONE);
        node.request(text, Mode::Ex, NONE);
        // It has been written, and waits.
        assert!(matches!(node.next(), Event::Bast { id, .. } if id == holder));
    }
    let turn = node.held("turn", Mode::Pr, NONE);
    peer.held("turn", Mode::Pr, NONE);
    node.space.convert(turn, Mode::Ex, NONE, None).unwrap();
    assert!(matches!(peer.next(), Event::Bast { .. }));
    assert_eq!(kernel.locks("foo"), 6);
    // Nothing is answered after the close.
    kernel.slow(true);
    drop(node);
    assert_eq!(kernel.locks("foo"), 4, "those that were granted");
    let again = Node::join(&kernel);
    again.space.purge_orphans().unwrap();
    again.held("one", Mode::Ex, NONE);
    again.held("two", Mode::Ex, NONE);
    again.held("turn", Mode::Pr, NONE);
}

#[test]
fn leaving_takes_the_locks_along_and_abandoning_does_not() {
    let kernel = FakeKernel::default();
    let node = Node::join(&kernel);
    node.held("one", Mode::Ex, NONE);
    node.space.leave(Leave::AsFailed).unwrap();
    assert_eq!(node.queue.recv(), None);
    assert_eq!((kernel.locks("foo"), kernel.is_left("foo")), (1, false));
    let node = Node::join(&kernel);
    node.space.leave(Leave::Clean).unwrap();
    assert_eq!(node.queue.recv(), None);
    assert!(kernel.is_left("foo"));
    assert_eq!(node.space.purge_orphans(), Err(LockError::Left));
}

#[test]
fn a_dropped_queue_abandons() {
    let kernel = FakeKernel::default();
    let Node { space, queue } = Node::join(&kernel);
    drop(queue);
    space.request(&name("one"), Mode::Ex, NONE, 1).unwrap();
    kernel.wait_for("an orphan", |kernel| {
        kernel.locks("foo") == 1 && matches!(space.purge_orphans(), Err(LockError::Left))
    });
    assert!(!kernel.is_left("foo"));
}

#[test]
fn a_busy_kernel_is_asked_again() {
    let kernel = FakeKernel::default();
    let node = Node::join(&kernel);
    let id = node.held("one", Mode::Ex, NONE);
    kernel.refuse(16);
    node.space.convert(id, Mode::Nl, NONE, None).unwrap();
    assert_eq!(node.cast().mode, Mode::Nl);
}

#[test]
fn a_refused_write_ends_its_operation() {
    let kernel = FakeKernel::default();
    let node = Node::join(&kernel);
    kernel.refuse(12);
    let id = node.request("one", Mode::Ex, NONE);
    let cast = node.cast();
    assert_eq!((cast.id, cast.status, cast.mode), (id, Status::Err(12), Mode::Nl));
    assert_eq!(node.space.unlock(id, NONE, None), Err(LockError::NoSuchLock(id)));
    let id = node.held("one", Mode::Pr, NONE);
    kernel.refuse(22);
    node.space.convert(id, Mode::Ex, NONE, None).unwrap();
    let cast = node.cast();
    assert_eq!((cast.id, cast.status, cast.mode), (id, Status::Err(22), Mode::Pr));
}

#[test]
fn what_is_broken_or_lost_is_fatal_and_says_so() {
    let bytes = |text: &'static str, bytes: Vec<u8>| {
        let kernel = FakeKernel::default();
        let node = Node::join(&kernel);
        node.held("one", Mode::Ex, NONE);
        kernel.inject(&bytes);
        let said = node.fatal();
        assert!(said.contains(text), "{said}");
        assert_eq!(
            node.space.request(&name("two"), Mode::Nl, NONE, 0),
            Err(LockError::Left)
        );
        assert_eq!(node.queue.recv(), None);
        // Whatever it held stays in the way of others.
        assert_eq!((kernel.locks("foo"), kernel.is_left("foo")), (1, false));
    };
    bytes("length of a result is 71", vec![6; 71]);
    bytes("which did not ask", result(CAST, 1, 0, 1));
    bytes("which did not ask", result(CAST, 99, 0, 1));
    bytes("routine is 17", result(17, 1, 0, 1));
    let mut version = result(CAST, 1, 0, 1);
    version[0] = 5;
    bytes("interface version is 5, expected 6", version);

    let kernel = FakeKernel::default();
    let node = Node::join(&kernel);
    kernel.overrun();
    assert!(node.fatal().contains("overwritten before it was read"));
    let node = Node::join(&kernel);
    kernel.say("dlm: dlm user daemon left 1 lockspaces");
    assert!(node.fatal().contains("dlm_controld is gone"));
}

/// The device has no POSIX locks, and the log no room for any number of slots: both are refused by name.
#[test]
fn what_the_kernel_does_not_give_is_refused_and_not_made_up() {
    let kernel = FakeKernel::default();
    let node = Node::join(&kernel);
    let caps = node.space.caps();
    assert_eq!(
        (caps.slots, caps.crash_safety),
        (SlotSource::KernelLog, CrashSafety::Orphans)
    );
    let lock = Plock {
        number: 7,
        start: 0,
        end: 9,
        owner: 1,
        pid: 1,
        exclusive: true,
    };
    for op in [PlockOp::Lock { wait: true }, PlockOp::Unlock { close: false }] {
        assert_eq!(node.space.plock(op, &lock, 1), Err(LockError::NoPlocks));
    }
    assert_eq!(node.space.plock_cancel(1), Err(LockError::NoPlocks));
    assert_eq!(
        LockError::NoPlocks.to_string(),
        "this lock service has no POSIX locks"
    );

    let mut options = JoinOptions::default();
    assert!(options.need_slots);
    options.need_slots = false;
    let dlm = KernelDlm::with(Arc::new(kernel.clone())).unwrap();
    let (space, queue) = dlm.join("foo", &options).unwrap();
    let without = Node { space, queue };
    assert!(matches!(without.next(), Event::RecoverDone { our_slot: 1, .. }));
    let crowd: String = (1..40).map(|n| format!(" {n}:{}", n + 100)).collect();
    kernel.recovery("foo", &["add member 140"], &format!("40{}", &crowd[..126]));
    for node in [&node, &without] {
        assert_eq!(node.next(), Event::RecoverPrep);
    }
    let Event::Fatal(LockError::NoSlots(why)) = node.next() else {
        panic!("a lockspace whose slots nobody knows is used");
    };
    assert!(why.contains("no room for those of so many members"), "{why}");
    assert_eq!(node.queue.recv(), None);
    assert!(matches!(
        without.next(),
        Event::RecoverDone { slots, our_slot: 0, .. } if slots.is_empty()
    ));
    without.held("one", Mode::Ex, NONE);
    // Who comes now is told at once, and does not wait for a recovery.
    let (_space, queue) = dlm.join("foo", &JoinOptions::default()).unwrap();
    assert!(matches!(
        queue.recv_timeout(LIMIT),
        Some(Event::Fatal(LockError::NoSlots(_)))
    ));
}

/// What there is no way around on most machines: no DLM in the kernel. Where there is one, it says who we are.
#[test]
fn a_kernel_without_dlm_is_named_in_one_line() {
    match KernelDlm::new() {
        Ok(dlm) => assert!(dlm.cluster().node.0 > 0),
        Err(error) => {
            let said = error.to_string();
            assert!(said.starts_with("lock service: "), "{said}");
            let known = [
                "has no DLM",
                "dlm_controld",
                "for root",
                "device node",
                "log_info",
            ];
            assert!(known.iter().any(|word| said.contains(word)), "{said}");
            assert_eq!(said.lines().count(), 1);
        }
    }
}
