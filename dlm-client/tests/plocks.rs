//! The contract of POSIX locks (rule 12 of the crate documentation), run against every backend that has them.
//!
//! Each claim is a function over [`Session`], which knows only the trait. A backend adds itself with one `plocks!`
//! line. Conflicts need two owners, not two nodes.

mod cluster;

use std::sync::Arc;
use std::time::Duration;

use cluster::{Cluster, Joined, Wires, join};
use dlm_client::plock::OFFSET_MAX;
use dlm_client::wire::Version;
use dlm_client::{
    Dlm, Event, EventQueue, JoinOptions, Leave, LocalDlm, LockError, Lockspace, Plock, PlockOp, PlockStatus,
};

/// A freshly joined, empty lockspace.
struct Session {
    space: Arc<dyn Lockspace>,
    queue: EventQueue,
    /// How long nothing must come before we believe that nothing comes.
    quiet: Duration,
    /// Another node that must live meanwhile.
    _other: Option<Joined>,
}

const LOCK: PlockOp = PlockOp::Lock { wait: false };
const WAIT: PlockOp = PlockOp::Lock { wait: true };
const UNLOCK: PlockOp = PlockOp::Unlock { close: false };

fn range(owner: u64, start: u64, end: u64, exclusive: bool) -> Plock {
    Plock {
        number: 0x16,
        start,
        end,
        owner,
        pid: 1000,
        exclusive,
    }
}

impl Session {
    #[track_caller]
    fn done(&self, token: u64) -> PlockStatus {
        match self.queue.recv_timeout(Duration::from_secs(10)) {
            Some(Event::Plock(done)) => {
                assert_eq!(done.token, token);
                done.status
            }
            other => panic!("expected the end of operation {token}, found {other:?}"),
        }
    }

    #[track_caller]
    fn run(&self, op: PlockOp, lock: &Plock) -> PlockStatus {
        self.space.plock(op, lock, 5).unwrap();
        self.done(5)
    }

    #[track_caller]
    fn expect_quiet(&self) {
        assert_eq!(self.queue.recv_timeout(self.quiet), None);
    }
}

fn readers_share_and_writers_exclude(s: &Session) {
    assert_eq!(s.run(LOCK, &range(1, 0, 99, false)), PlockStatus::Granted);
    assert_eq!(s.run(LOCK, &range(2, 50, 149, false)), PlockStatus::Granted);
    assert_eq!(s.run(LOCK, &range(3, 99, 99, true)), PlockStatus::Again);
    assert_eq!(s.run(LOCK, &range(3, 150, 150, true)), PlockStatus::Granted);
    assert_eq!(s.run(LOCK, &range(1, 150, 150, false)), PlockStatus::Again);
    let other_file = Plock {
        number: 0x17,
        ..range(4, 0, OFFSET_MAX, true)
    };
    assert_eq!(s.run(LOCK, &other_file), PlockStatus::Granted);
}

fn ranges_split_and_convert(s: &Session) {
    assert_eq!(s.run(LOCK, &range(1, 0, 99, true)), PlockStatus::Granted);
    assert_eq!(s.run(LOCK, &range(1, 40, 59, false)), PlockStatus::Granted);
    assert_eq!(s.run(LOCK, &range(2, 40, 59, false)), PlockStatus::Granted);
    assert_eq!(s.run(LOCK, &range(2, 39, 40, false)), PlockStatus::Again);
    assert_eq!(s.run(UNLOCK, &range(1, 10, 19, false)), PlockStatus::Unlocked);
    assert_eq!(s.run(LOCK, &range(2, 10, 19, true)), PlockStatus::Granted);
    assert_eq!(s.run(LOCK, &range(2, 9, 10, true)), PlockStatus::Again);
    assert_eq!(
        s.run(UNLOCK, &range(1, 0, OFFSET_MAX, false)),
        PlockStatus::Unlocked
    );
    assert_eq!(
        s.run(UNLOCK, &range(2, 0, OFFSET_MAX, false)),
        PlockStatus::Unlocked
    );
    assert_eq!(s.run(LOCK, &range(3, 0, OFFSET_MAX, true)), PlockStatus::Granted);
}

fn a_test_names_who_is_in_the_way_and_locks_nothing(s: &Session) {
    let held = range(1, 10, 19, true);
    assert_eq!(s.run(PlockOp::Test, &range(2, 0, 99, true)), PlockStatus::Free);
    assert_eq!(s.run(LOCK, &held), PlockStatus::Granted);
    match s.run(PlockOp::Test, &range(2, 0, 99, false)) {
        PlockStatus::Held { lock, .. } => assert_eq!(lock, held),
        other => panic!("{other:?}"),
    }
    assert_eq!(s.run(PlockOp::Test, &range(1, 0, 99, true)), PlockStatus::Free);
    assert_eq!(s.run(LOCK, &range(1, 0, 99, true)), PlockStatus::Granted);
}

fn waiters_are_granted_in_order_when_the_holder_goes(s: &Session) {
    assert_eq!(s.run(LOCK, &range(1, 0, 99, true)), PlockStatus::Granted);
    s.space.plock(WAIT, &range(2, 0, 49, true), 20).unwrap();
    s.space.plock(WAIT, &range(3, 0, 49, true), 30).unwrap();
    s.expect_quiet();
    s.space.plock(UNLOCK, &range(1, 50, 99, false), 11).unwrap();
    assert_eq!(s.done(11), PlockStatus::Unlocked);
    s.expect_quiet();
    s.space.plock(UNLOCK, &range(1, 0, 49, false), 12).unwrap();
    assert_eq!(
        (s.done(12), s.done(20)),
        (PlockStatus::Unlocked, PlockStatus::Granted)
    );
    s.expect_quiet();
    s.space.plock(UNLOCK, &range(2, 0, 49, false), 13).unwrap();
    assert_eq!(
        (s.done(13), s.done(30)),
        (PlockStatus::Unlocked, PlockStatus::Granted)
    );
}

fn a_wait_can_be_taken_back_without_losing_what_is_held(s: &Session) {
    assert_eq!(s.run(LOCK, &range(1, 0, 99, false)), PlockStatus::Granted);
    assert_eq!(s.run(LOCK, &range(2, 0, 49, false)), PlockStatus::Granted);
    s.space.plock(WAIT, &range(2, 0, 99, true), 21).unwrap();
    s.space.plock(WAIT, &range(2, 0, 9, true), 22).unwrap();
    s.expect_quiet();
    s.space.plock_cancel(21).unwrap();
    assert_eq!(s.done(21), PlockStatus::Canceled);
    assert_eq!(s.space.plock_cancel(21), Err(LockError::NoSuchPlock(21)));
    assert_eq!(s.run(LOCK, &range(1, 40, 40, true)), PlockStatus::Again);
    assert_eq!(s.run(UNLOCK, &range(1, 50, 99, false)), PlockStatus::Unlocked);
    s.expect_quiet();
    s.space.plock(UNLOCK, &range(1, 0, 49, false), 12).unwrap();
    assert_eq!(
        (s.done(12), s.done(22)),
        (PlockStatus::Unlocked, PlockStatus::Granted)
    );
}

fn a_close_takes_back_what_waits(s: &Session) {
    assert_eq!(s.run(LOCK, &range(1, 0, 99, true)), PlockStatus::Granted);
    assert_eq!(s.run(LOCK, &range(2, 200, 299, true)), PlockStatus::Granted);
    s.space.plock(WAIT, &range(2, 0, 9, true), 21).unwrap();
    s.space
        .plock(
            PlockOp::Unlock { close: true },
            &range(2, 0, OFFSET_MAX, false),
            22,
        )
        .unwrap();
    let mut ended = [s.queue.recv_timeout(s.quiet.max(Duration::from_secs(10))), None];
    ended[1] = s.queue.recv_timeout(Duration::from_secs(10));
    let mut found: Vec<_> = ended
        .into_iter()
        .map(|event| match event {
            Some(Event::Plock(done)) => (done.token, done.status),
            other => panic!("{other:?}"),
        })
        .collect();
    found.sort_by_key(|(token, _)| *token);
    assert_eq!(found, [(21, PlockStatus::Canceled), (22, PlockStatus::Unlocked)]);
    assert_eq!(s.run(LOCK, &range(1, 200, 299, true)), PlockStatus::Granted);
}

fn ranges_that_no_file_has_are_refused(s: &Session) {
    for (start, end) in [(1, 0), (0, OFFSET_MAX + 1), (u64::MAX, u64::MAX)] {
        assert_eq!(
            s.space.plock(LOCK, &range(1, start, end, true), 1),
            Err(LockError::PlockRange { start, end })
        );
    }
    s.expect_quiet();
}

fn after_leaving_calls_are_refused(s: &Session) {
    assert_eq!(s.run(LOCK, &range(1, 0, 99, true)), PlockStatus::Granted);
    s.space.leave(Leave::Clean).unwrap();
    assert_eq!(
        s.space.plock(LOCK, &range(1, 0, 9, true), 1),
        Err(LockError::Left)
    );
    assert_eq!(s.space.plock_cancel(1), Err(LockError::Left));
}

/// Runs every claim against a backend: `$make` gives a freshly joined session.
macro_rules! plocks {
    ($backend:ident, $make:expr, [$($claim:ident),* $(,)?]) => {
        mod $backend {
            use super::*;
            $(
                #[test]
                fn $claim() {
                    let session: Session = $make();
                    let first = session.queue.recv_timeout(Duration::from_secs(10));
                    assert!(matches!(first, Some(Event::RecoverDone { .. })), "{first:?}");
                    super::$claim(&session);
                }
            )*
        }
    };
}

fn local() -> Session {
    let (space, queue) = LocalDlm::new().join("plocks", &JoinOptions::default()).unwrap();
    Session {
        space,
        queue,
        quiet: Duration::from_millis(1),
        _other: None,
    }
}

plocks!(
    local_backend,
    local,
    [
        readers_share_and_writers_exclude,
        ranges_split_and_convert,
        a_test_names_who_is_in_the_way_and_locks_nothing,
        waiters_are_granted_in_order_when_the_holder_goes,
        a_wait_can_be_taken_back_without_losing_what_is_held,
        a_close_takes_back_what_waits,
        ranges_that_no_file_has_are_refused,
        after_leaving_calls_are_refused,
    ]
);

/// The second of two nodes, whose locks the first sees, too.
fn wire(wires: Wires) -> Session {
    let cluster = Cluster::new(2, wires, "");
    let first = join(cluster.node(1, Version::V3_2), "plocks");
    first.wait_recovered();
    let Joined { space, queue } = join(cluster.node(2, Version::V3_2), "plocks");
    Session {
        space,
        queue,
        quiet: Duration::from_millis(50),
        _other: Some(first),
    }
}

plocks!(
    wire_in_memory,
    || wire(Wires::Memory),
    [
        readers_share_and_writers_exclude,
        ranges_split_and_convert,
        a_test_names_who_is_in_the_way_and_locks_nothing,
        waiters_are_granted_in_order_when_the_holder_goes,
        a_wait_can_be_taken_back_without_losing_what_is_held,
        a_close_takes_back_what_waits,
        ranges_that_no_file_has_are_refused,
        after_leaving_calls_are_refused,
    ]
);

plocks!(
    wire_over_tcp,
    || wire(Wires::Tcp),
    [
        readers_share_and_writers_exclude,
        ranges_split_and_convert,
        a_test_names_who_is_in_the_way_and_locks_nothing,
        waiters_are_granted_in_order_when_the_holder_goes,
        a_wait_can_be_taken_back_without_losing_what_is_held,
        a_close_takes_back_what_waits,
        ranges_that_no_file_has_are_refused,
        after_leaving_calls_are_refused,
    ]
);

#[test]
fn locks_of_a_member_that_is_gone_are_gone() {
    let dlm = LocalDlm::new();
    let join = || {
        let (space, queue) = dlm.join("two", &JoinOptions::default()).unwrap();
        let quiet = Duration::from_millis(1);
        Session {
            space,
            queue,
            quiet,
            _other: None,
        }
    };
    let (first, second) = (join(), join());
    while second.queue.try_recv().is_some() {}
    while first.queue.try_recv().is_some() {}
    assert_eq!(first.run(LOCK, &range(1, 0, 99, true)), PlockStatus::Granted);
    second.space.plock(WAIT, &range(1, 0, 99, true), 8).unwrap();
    second.expect_quiet();
    first.space.leave(Leave::AsFailed).unwrap();
    let events: Vec<_> = std::iter::from_fn(|| second.queue.try_recv()).collect();
    assert!(
        matches!(events.last(), Some(Event::Plock(done)) if (done.token, done.status) == (8, PlockStatus::Granted)),
        "{events:?}"
    );
}
