//! The contract of the crate documentation, run against every backend.
//!
//! Each claim is a function over [`Session`], which knows only the trait. A backend adds itself with one
//! `contract!` line; what only it can do is tested below that.

mod cluster;
mod fake;

use std::sync::Arc;
use std::time::Duration;

use cluster::{Cluster, Joined, Wires, join};
use dlm_client::wire::Version;
use dlm_client::{
    Cast, Dlm, Event, EventQueue, JoinOptions, KernelDlm, Leave, Lkf, LocalDlm, LockError, LockId, Lockspace,
    Lvb, Mode, ResName, SbFlags, Status,
};

/// A freshly joined, empty lockspace.
struct Session {
    space: Arc<dyn Lockspace>,
    queue: EventQueue,
    /// How long nothing must come before we believe that nothing comes.
    quiet: Duration,
    /// Other nodes that must live meanwhile.
    _others: Vec<Joined>,
}

impl Session {
    fn next(&self) -> Event {
        self.queue
            .recv_timeout(Duration::from_secs(10))
            .expect("an event in time")
    }

    fn cast(&self) -> Cast {
        match self.next() {
            Event::Cast(cast) => cast,
            other => panic!("expected a Cast, found {other:?}"),
        }
    }

    #[track_caller]
    fn expect_cast(&self, id: LockId, status: Status, mode: Mode) -> Cast {
        let cast = self.cast();
        assert_eq!((cast.id, cast.status, cast.mode), (id, status, mode));
        cast
    }

    #[track_caller]
    fn expect_bast(&self, lock: LockId, wanted: Mode) {
        match self.next() {
            Event::Bast { id, mode, .. } => assert_eq!((id, mode), (lock, wanted)),
            other => panic!("expected a Bast, found {other:?}"),
        }
    }

    #[track_caller]
    fn expect_quiet(&self) {
        assert_eq!(self.queue.recv_timeout(self.quiet), None);
    }

    fn request(&self, name: &ResName, mode: Mode, flags: Lkf) -> LockId {
        self.space
            .request(name, mode, flags, 77)
            .expect("request accepted")
    }

    #[track_caller]
    fn granted(&self, name: &ResName, mode: Mode, flags: Lkf) -> LockId {
        let id = self.request(name, mode, flags);
        self.expect_cast(id, Status::Granted, mode);
        id
    }

    #[track_caller]
    fn converted(&self, id: LockId, mode: Mode, flags: Lkf, lvb: Option<&Lvb>) -> Cast {
        self.space
            .convert(id, mode, flags, lvb)
            .expect("convert accepted");
        self.expect_cast(id, Status::Granted, mode)
    }

    #[track_caller]
    fn unlocked(&self, id: LockId) {
        self.space
            .unlock(id, Lkf::empty(), None)
            .expect("unlock accepted");
        self.expect_cast(id, Status::Unlocked, Mode::Nl);
    }
}

fn name(text: &str) -> ResName {
    ResName::new(text.as_bytes()).unwrap()
}

const NONE: Lkf = Lkf::empty();

fn the_first_event_is_recover_done(s: &Session) {
    match s.next() {
        Event::RecoverDone {
            slots,
            our_slot,
            generation,
        } => {
            assert!(generation > 0);
            assert!(slots.iter().any(|slot| slot.slot == our_slot));
        }
        other => panic!("expected RecoverDone, found {other:?}"),
    }
}

fn every_pair_of_modes_is_granted_or_refused_by_the_table(s: &Session) {
    for first in Mode::ALL {
        for second in Mode::ALL {
            let resource = name(&format!("pair {first} {second}"));
            let held = s.granted(&resource, first, NONE);
            let id = s.request(&resource, second, Lkf::NOQUEUE);
            if first.compatible(second) {
                s.expect_cast(id, Status::Granted, second);
                s.unlocked(id);
            } else {
                s.expect_cast(id, Status::Again, Mode::Nl);
                assert_eq!(s.space.cancel(id), Err(LockError::NoSuchLock(id)));
            }
            s.unlocked(held);
        }
    }
    s.expect_quiet();
}

fn the_token_comes_back_in_casts_and_basts(s: &Session) {
    let holder = s.space.request(&name("t"), Mode::Ex, NONE, 1).unwrap();
    assert_eq!(s.cast().token, 1);
    let waiter = s.space.request(&name("t"), Mode::Pr, NONE, 2).unwrap();
    assert_eq!(
        s.next(),
        Event::Bast {
            id: holder,
            token: 1,
            mode: Mode::Pr
        }
    );
    s.space.unlock(holder, NONE, None).unwrap();
    assert_eq!((s.cast().token, s.cast().token), (1, 2));
    s.unlocked(waiter);
}

fn waiters_are_served_in_order_and_readers_do_not_overtake_a_writer(s: &Session) {
    let reader = s.granted(&name("q"), Mode::Pr, NONE);
    let writer = s.request(&name("q"), Mode::Ex, NONE);
    s.expect_bast(reader, Mode::Ex);
    let late = s.request(&name("q"), Mode::Pr, NONE);
    s.expect_quiet();
    s.space.unlock(reader, NONE, None).unwrap();
    s.expect_cast(reader, Status::Unlocked, Mode::Nl);
    s.expect_cast(writer, Status::Granted, Mode::Ex);
    s.expect_bast(writer, Mode::Pr);
    s.space.unlock(writer, NONE, None).unwrap();
    s.expect_cast(writer, Status::Unlocked, Mode::Nl);
    s.expect_cast(late, Status::Granted, Mode::Pr);
    s.unlocked(late);
}

fn a_holder_is_told_once_per_blocked_mode(s: &Session) {
    let holder = s.granted(&name("once"), Mode::Ex, NONE);
    let first = s.request(&name("once"), Mode::Pr, NONE);
    s.expect_bast(holder, Mode::Pr);
    let second = s.request(&name("once"), Mode::Pr, NONE);
    s.expect_quiet();
    let third = s.request(&name("once"), Mode::Ex, NONE);
    s.expect_bast(holder, Mode::Ex);
    s.converted(holder, Mode::Pr, NONE, None);
    s.expect_cast(first, Status::Granted, Mode::Pr);
    s.expect_cast(second, Status::Granted, Mode::Pr);
    for _ in 0..3 {
        match s.next() {
            Event::Bast { mode, .. } => assert_eq!(mode, Mode::Ex),
            other => panic!("expected a Bast, found {other:?}"),
        }
    }
    s.space.cancel(third).unwrap();
    s.expect_cast(third, Status::Canceled, Mode::Nl);
    s.expect_quiet();
}

fn noqueue_tells_nobody_unless_asked_to(s: &Session) {
    let holder = s.granted(&name("poke"), Mode::Pr, NONE);
    let id = s.request(&name("poke"), Mode::Ex, Lkf::NOQUEUE);
    s.expect_cast(id, Status::Again, Mode::Nl);
    s.expect_quiet();
    let id = s.request(&name("poke"), Mode::Ex, Lkf::NOQUEUE | Lkf::NOQUEUEBAST);
    s.expect_cast(id, Status::Again, Mode::Nl);
    s.expect_bast(holder, Mode::Ex);
    s.expect_quiet();
}

fn a_failed_conversion_keeps_the_old_mode(s: &Session) {
    let one = s.granted(&name("keep"), Mode::Pr, NONE);
    let two = s.granted(&name("keep"), Mode::Pr, NONE);
    s.space.convert(one, Mode::Ex, Lkf::NOQUEUE, None).unwrap();
    s.expect_cast(one, Status::Again, Mode::Pr);
    let writer = s.request(&name("keep"), Mode::Cw, Lkf::NOQUEUE);
    s.expect_cast(writer, Status::Again, Mode::Nl);
    s.unlocked(one);
    s.unlocked(two);
}

fn a_conversion_goes_before_new_requests(s: &Session) {
    let one = s.granted(&name("conv"), Mode::Pr, NONE);
    let two = s.granted(&name("conv"), Mode::Pr, NONE);
    let new = s.request(&name("conv"), Mode::Ex, NONE);
    // In which order the holders are told is nobody's business.
    let mut told: Vec<Event> = (0..2).map(|_| s.next()).collect();
    told.sort_by_key(|event| match event {
        Event::Bast {
            id, mode: Mode::Ex, ..
        } => *id,
        other => panic!("expected a Bast, found {other:?}"),
    });
    assert!(
        matches!(told[..], [Event::Bast { id: a, .. }, Event::Bast { id: b, .. }] if (a, b) == (one, two))
    );
    s.space.convert(one, Mode::Ex, Lkf::QUECVT, None).unwrap();
    s.space.unlock(two, NONE, None).unwrap();
    s.expect_cast(two, Status::Unlocked, Mode::Nl);
    s.expect_cast(one, Status::Granted, Mode::Ex);
    s.expect_bast(one, Mode::Ex);
    s.space.unlock(one, NONE, None).unwrap();
    s.expect_cast(one, Status::Unlocked, Mode::Nl);
    s.expect_cast(new, Status::Granted, Mode::Ex);
    s.unlocked(new);
}

fn a_down_conversion_has_a_cast_and_lets_waiters_in(s: &Session) {
    let holder = s.granted(&name("down"), Mode::Ex, NONE);
    let waiter = s.request(&name("down"), Mode::Pr, NONE);
    s.expect_bast(holder, Mode::Pr);
    s.converted(holder, Mode::Pr, NONE, None);
    s.expect_cast(waiter, Status::Granted, Mode::Pr);
    s.converted(holder, Mode::Nl, NONE, None);
    s.expect_quiet();
}

fn quecvt_waits_behind_an_earlier_conversion_and_without_it_overtakes(s: &Session) {
    let nl = s.granted(&name("que"), Mode::Nl, NONE);
    let nl2 = s.granted(&name("que"), Mode::Nl, NONE);
    let reader = s.granted(&name("que"), Mode::Pr, NONE);
    s.space.convert(nl, Mode::Ex, Lkf::QUECVT, None).unwrap();
    s.expect_bast(reader, Mode::Ex);
    s.space.convert(nl2, Mode::Pr, Lkf::QUECVT, None).unwrap();
    s.expect_quiet();
    s.space.cancel(nl2).unwrap();
    s.expect_cast(nl2, Status::Canceled, Mode::Nl);
    s.converted(nl2, Mode::Pr, NONE, None);
    s.expect_bast(nl2, Mode::Ex);
    s.unlocked(nl2);
    s.space.unlock(reader, NONE, None).unwrap();
    s.expect_cast(reader, Status::Unlocked, Mode::Nl);
    s.expect_cast(nl, Status::Granted, Mode::Ex);
}

fn two_upgraders_deadlock_and_the_second_is_told(s: &Session) {
    let one = s.granted(&name("dead"), Mode::Pr, NONE);
    let two = s.granted(&name("dead"), Mode::Pr, NONE);
    s.space.convert(one, Mode::Ex, Lkf::QUECVT, None).unwrap();
    s.expect_bast(two, Mode::Ex);
    s.space.convert(two, Mode::Ex, Lkf::QUECVT, None).unwrap();
    s.expect_cast(two, Status::Deadlock, Mode::Pr);
    s.space.convert(two, Mode::Nl, NONE, None).unwrap();
    s.expect_cast(two, Status::Granted, Mode::Nl);
    s.expect_cast(one, Status::Granted, Mode::Ex);
    s.unlocked(one);
}

fn convdeadlk_drops_the_granted_mode_and_says_so(s: &Session) {
    let one = s.granted(&name("cdl"), Mode::Pr, NONE);
    let two = s.granted(&name("cdl"), Mode::Pr, NONE);
    s.space.convert(one, Mode::Ex, Lkf::QUECVT, None).unwrap();
    s.expect_bast(two, Mode::Ex);
    s.space
        .convert(two, Mode::Ex, Lkf::QUECVT | Lkf::CONVDEADLK, None)
        .unwrap();
    s.expect_cast(one, Status::Granted, Mode::Ex);
    s.expect_bast(one, Mode::Ex);
    s.space.convert(one, Mode::Nl, NONE, None).unwrap();
    s.expect_cast(one, Status::Granted, Mode::Nl);
    let cast = s.expect_cast(two, Status::Granted, Mode::Ex);
    assert_eq!(cast.sb, SbFlags::DEMOTED);
}

fn pr_and_cw_exclude_each_other_both_ways(s: &Session) {
    let reader = s.granted(&name("cw"), Mode::Pr, NONE);
    let writer = s.request(&name("cw"), Mode::Cw, NONE);
    s.expect_bast(reader, Mode::Cw);
    s.converted(reader, Mode::Nl, NONE, None);
    s.expect_cast(writer, Status::Granted, Mode::Cw);
    s.space.convert(reader, Mode::Pr, Lkf::QUECVT, None).unwrap();
    s.expect_bast(writer, Mode::Pr);
    // Queued behind the reader it blocks, the writer would wait for itself; in place it is granted.
    s.space.convert(writer, Mode::Pr, Lkf::QUECVT, None).unwrap();
    s.expect_cast(writer, Status::Deadlock, Mode::Cw);
    s.space.convert(writer, Mode::Pr, NONE, None).unwrap();
    s.expect_cast(writer, Status::Granted, Mode::Pr);
    s.expect_cast(reader, Status::Granted, Mode::Pr);
}

fn altmode_is_granted_and_named(s: &Session) {
    let reader = s.granted(&name("alt"), Mode::Pr, NONE);
    let id = s.request(&name("alt"), Mode::Cw, Lkf::NOQUEUE | Lkf::ALTPR);
    let cast = s.expect_cast(id, Status::Granted, Mode::Pr);
    assert_eq!(cast.sb, SbFlags::ALTMODE);
    s.unlocked(id);
    s.unlocked(reader);
}

fn a_busy_lock_refuses_convert_and_unlock_but_not_force(s: &Session) {
    let holder = s.granted(&name("busy"), Mode::Ex, NONE);
    let waiter = s.request(&name("busy"), Mode::Ex, NONE);
    s.expect_bast(holder, Mode::Ex);
    assert_eq!(
        s.space.convert(waiter, Mode::Pr, NONE, None),
        Err(LockError::Busy(waiter))
    );
    assert_eq!(s.space.unlock(waiter, NONE, None), Err(LockError::Busy(waiter)));
    s.space.unlock(waiter, Lkf::FORCEUNLOCK, None).unwrap();
    s.expect_cast(waiter, Status::Unlocked, Mode::Nl);
    assert_eq!(
        s.space.unlock(waiter, NONE, None),
        Err(LockError::NoSuchLock(waiter))
    );
    s.unlocked(holder);
    s.expect_quiet();
}

fn cancel_ends_requests_and_conversions_and_unblocks_others(s: &Session) {
    let one = s.granted(&name("can"), Mode::Pr, NONE);
    assert_eq!(s.space.cancel(one), Err(LockError::NothingToCancel(one)));
    let writer = s.request(&name("can"), Mode::Ex, NONE);
    s.expect_bast(one, Mode::Ex);
    let reader = s.request(&name("can"), Mode::Pr, NONE);
    s.space.cancel(writer).unwrap();
    s.expect_cast(writer, Status::Canceled, Mode::Nl);
    s.expect_cast(reader, Status::Granted, Mode::Pr);
    assert_eq!(s.space.cancel(writer), Err(LockError::NoSuchLock(writer)));
    s.space.convert(one, Mode::Ex, Lkf::QUECVT, None).unwrap();
    s.expect_bast(reader, Mode::Ex);
    s.space.cancel(one).unwrap();
    s.expect_cast(one, Status::Canceled, Mode::Pr);
    s.unlocked(one);
    s.unlocked(reader);
}

fn nonsense_flags_are_refused(s: &Session) {
    let held = s.granted(&name("flags"), Mode::Ex, NONE);
    let refused = [
        (Mode::Ex, Lkf::QUECVT),
        (Mode::Ex, Lkf::CONVDEADLK),
        (Mode::Ex, Lkf::EXPEDITE),
        (Mode::Nl, Lkf::EXPEDITE | Lkf::NOQUEUE),
        (Mode::Ex, Lkf::CONVERT),
        (Mode::Ex, Lkf::CANCEL),
    ];
    for (mode, flags) in refused {
        let answer = s.space.request(&name("flags"), mode, flags, 0);
        assert!(
            matches!(answer, Err(LockError::InvalidFlags { .. })),
            "{flags:?}: {answer:?}"
        );
    }
    let down = s.space.convert(held, Mode::Pr, Lkf::QUECVT, None);
    assert!(matches!(down, Err(LockError::InvalidFlags { .. })), "{down:?}");
    let both = s
        .space
        .convert(held, Mode::Ex, Lkf::CONVDEADLK | Lkf::NOQUEUE, None);
    assert!(matches!(both, Err(LockError::InvalidFlags { .. })), "{both:?}");
    s.unlocked(held);
    s.expect_quiet();
}

fn expedite_passes_the_queues(s: &Session) {
    let holder = s.granted(&name("exp"), Mode::Ex, NONE);
    let waiter = s.request(&name("exp"), Mode::Ex, NONE);
    s.expect_bast(holder, Mode::Ex);
    let queued = s.request(&name("exp"), Mode::Nl, NONE);
    s.expect_quiet();
    let nl = s.granted(&name("exp"), Mode::Nl, Lkf::EXPEDITE);
    s.space.unlock(holder, NONE, None).unwrap();
    s.expect_cast(holder, Status::Unlocked, Mode::Nl);
    s.expect_cast(waiter, Status::Granted, Mode::Ex);
    s.expect_cast(queued, Status::Granted, Mode::Nl);
    s.unlocked(nl);
}

fn the_value_block_moves_by_the_direction_table(s: &Session) {
    let resource = name("lvb");
    let keeper = s.granted(&resource, Mode::Nl, Lkf::VALBLK);
    let one = s.granted(&resource, Mode::Ex, Lkf::VALBLK);
    s.converted(one, Mode::Pr, Lkf::VALBLK, Some(&[1; 32]));
    // PR down to NL writes nothing and reads nothing.
    assert_eq!(s.converted(one, Mode::Nl, Lkf::VALBLK, Some(&[9; 32])).lvb, None);
    assert_eq!(s.converted(one, Mode::Cr, Lkf::VALBLK, None).lvb, Some([1; 32]));
    // Without VALBLK nothing moves in either direction.
    assert_eq!(s.converted(one, Mode::Ex, NONE, None).lvb, None);
    s.converted(one, Mode::Nl, NONE, Some(&[8; 32]));
    assert_eq!(s.converted(one, Mode::Pw, Lkf::VALBLK, None).lvb, Some([1; 32]));
    // PW up to EX reads, EX to EX writes.
    assert_eq!(
        s.converted(one, Mode::Ex, Lkf::VALBLK, Some(&[7; 32])).lvb,
        Some([1; 32])
    );
    assert_eq!(s.converted(one, Mode::Ex, Lkf::VALBLK, Some(&[2; 32])).lvb, None);
    s.space.unlock(one, Lkf::VALBLK, Some(&[3; 32])).unwrap();
    s.expect_cast(one, Status::Unlocked, Mode::Nl);
    assert_eq!(
        s.converted(keeper, Mode::Pr, Lkf::VALBLK, None).lvb,
        Some([3; 32])
    );
}

fn ivvalblk_makes_the_value_block_unbelievable_until_the_next_write(s: &Session) {
    let resource = name("ival");
    let keeper = s.granted(&resource, Mode::Nl, Lkf::VALBLK);
    let one = s.granted(&resource, Mode::Ex, Lkf::VALBLK);
    s.converted(one, Mode::Nl, Lkf::VALBLK, Some(&[1; 32]));
    let cast = s.converted(one, Mode::Ex, Lkf::VALBLK, None);
    assert_eq!((cast.sb, cast.lvb), (SbFlags::empty(), Some([1; 32])));
    s.converted(one, Mode::Nl, Lkf::VALBLK | Lkf::IVVALBLK, Some(&[2; 32]));
    let cast = s.converted(keeper, Mode::Ex, Lkf::VALBLK, None);
    assert_eq!(cast.sb, SbFlags::VALNOTVALID);
    s.converted(keeper, Mode::Nl, Lkf::VALBLK, Some(&[4; 32]));
    let cast = s.converted(one, Mode::Pr, Lkf::VALBLK, None);
    assert_eq!((cast.sb, cast.lvb), (SbFlags::empty(), Some([4; 32])));
}

fn a_forgotten_resource_has_no_value_block(s: &Session) {
    let one = s.granted(&name("gone"), Mode::Ex, Lkf::VALBLK);
    s.space.unlock(one, Lkf::VALBLK, Some(&[3; 32])).unwrap();
    s.expect_cast(one, Status::Unlocked, Mode::Nl);
    let two = s.request(&name("other"), Mode::Pr, Lkf::VALBLK);
    // A master elsewhere sends zeros for what it does not have.
    let lvb = s.expect_cast(two, Status::Granted, Mode::Pr).lvb;
    assert_eq!(lvb.unwrap_or_default(), [0; 32]);
}

fn completion_inside_the_call_is_the_same_as_on_the_queue(s: &Session) {
    let cast = |now: Option<Cast>| now.unwrap_or_else(|| s.cast());
    let (one, now) = s.space.request_now(&name("now"), Mode::Pr, NONE, 5).unwrap();
    let got = cast(now);
    assert_eq!(
        (got.id, got.token, got.status, got.mode),
        (one, 5, Status::Granted, Mode::Pr)
    );
    let (two, now) = s.space.request_now(&name("now"), Mode::Ex, NONE, 6).unwrap();
    assert_eq!(now, None, "a request that waits cannot be complete");
    s.expect_bast(one, Mode::Ex);
    let (three, now) = s
        .space
        .request_now(&name("now"), Mode::Ex, Lkf::NOQUEUE, 7)
        .unwrap();
    let got = cast(now);
    assert_eq!((got.id, got.status), (three, Status::Again));
    let got = cast(s.space.convert_now(one, Mode::Nl, NONE, None).unwrap());
    assert_eq!((got.id, got.status, got.mode), (one, Status::Granted, Mode::Nl));
    s.expect_cast(two, Status::Granted, Mode::Ex);
    s.expect_quiet();
}

fn a_bast_is_never_for_a_compatible_mode(s: &Session) {
    // Seeded mix of everything; the mode of the last Cast is followed per lock.
    let mut seed = 0x5eed_u64;
    let mut next = move |n: usize| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % n
    };
    let mut held: std::collections::HashMap<LockId, Mode> = std::collections::HashMap::new();
    let mut ids: Vec<LockId> = Vec::new();
    for step in 0..4000 {
        match next(10) {
            0..=3 if ids.len() < 12 => {
                let mode = Mode::ALL[next(6)];
                let flags = if next(3) == 0 {
                    Lkf::NOQUEUE | Lkf::NOQUEUEBAST
                } else {
                    NONE
                };
                ids.push(s.request(&name("mix"), mode, flags));
            }
            4..=6 if !ids.is_empty() => {
                let _busy = s
                    .space
                    .convert(ids[next(ids.len())], Mode::ALL[next(6)], NONE, None);
            }
            7 if !ids.is_empty() => {
                let _nothing = s.space.cancel(ids[next(ids.len())]);
            }
            _ if !ids.is_empty() => {
                let _busy = s.space.unlock(ids[next(ids.len())], NONE, None);
            }
            _ => {}
        }
        while let Some(event) = s.queue.try_recv() {
            match event {
                Event::Cast(cast) if cast.status == Status::Unlocked => {
                    held.remove(&cast.id);
                    ids.retain(|id| *id != cast.id);
                }
                Event::Cast(cast) if !held.contains_key(&cast.id) && cast.status != Status::Granted => {
                    ids.retain(|id| *id != cast.id);
                }
                Event::Cast(cast) => {
                    for (&other, mode) in held.iter().filter(|(other, _)| **other != cast.id) {
                        assert!(
                            mode.compatible(cast.mode),
                            "step {step}: {other:?} {mode} {cast:?}"
                        );
                    }
                    held.insert(cast.id, cast.mode);
                }
                Event::Bast { id, mode, .. } => {
                    assert!(!held[&id].compatible(mode), "step {step}: {id:?} {mode}");
                }
                other => panic!("step {step}: {other:?}"),
            }
        }
    }
}

fn leaving_ends_the_queue_and_refuses_calls(s: &Session) {
    let id = s.granted(&name("l"), Mode::Ex, NONE);
    s.space.leave(Leave::Clean).unwrap();
    assert_eq!(s.queue.recv(), None);
    assert!(s.queue.is_ended());
    assert_eq!(s.space.leave(Leave::Clean), Err(LockError::Left));
    assert_eq!(s.space.convert(id, Mode::Nl, NONE, None), Err(LockError::Left));
    assert_eq!(
        s.space.request(&name("l"), Mode::Nl, NONE, 0),
        Err(LockError::Left)
    );
}

/// Runs every claim against a backend: `$make` gives a freshly joined session.
macro_rules! contract {
    ($backend:ident, $make:expr, [$($claim:ident),* $(,)?]) => {
        mod $backend {
            use super::*;

            #[test]
            fn the_first_event_is_recover_done() {
                super::the_first_event_is_recover_done(&$make());
            }

            $(
                #[test]
                fn $claim() {
                    let session: Session = $make();
                    super::the_first_event_is_recover_done(&session);
                    super::$claim(&session);
                }
            )*
        }
    };
}

fn local() -> Session {
    let (space, queue) = LocalDlm::new().join("contract", &JoinOptions::default()).unwrap();
    Session {
        space,
        queue,
        quiet: Duration::from_millis(1),
        _others: Vec::new(),
    }
}

/// The last of three nodes to join; `conf` and the versions of nodes 1, 3 and ours, 2, are the variants.
fn wire(wires: Wires, conf: &str, versions: [Version; 3]) -> Session {
    let cluster = Cluster::new(3, wires, conf);
    let others: Vec<Joined> = [1, 3]
        .into_iter()
        .zip(versions)
        .map(|(id, version)| {
            let one = join(cluster.node(id, version), "contract");
            one.wait_recovered();
            one
        })
        .collect();
    let ours = join(cluster.node(2, versions[2]), "contract");
    Session {
        space: ours.space,
        queue: ours.queue,
        quiet: Duration::from_millis(30),
        _others: others,
    }
}

const NEW: [Version; 3] = [Version::V3_2; 3];
/// Every resource's master is the node.
const MASTER_1: &str = "lockspace contract nodir=1\nmaster contract node=1\n";
const MASTER_2: &str = "lockspace contract nodir=1\nmaster contract node=2\n";

contract!(
    local_backend,
    local,
    [
        every_pair_of_modes_is_granted_or_refused_by_the_table,
        the_token_comes_back_in_casts_and_basts,
        waiters_are_served_in_order_and_readers_do_not_overtake_a_writer,
        a_holder_is_told_once_per_blocked_mode,
        noqueue_tells_nobody_unless_asked_to,
        a_failed_conversion_keeps_the_old_mode,
        a_conversion_goes_before_new_requests,
        a_down_conversion_has_a_cast_and_lets_waiters_in,
        quecvt_waits_behind_an_earlier_conversion_and_without_it_overtakes,
        two_upgraders_deadlock_and_the_second_is_told,
        convdeadlk_drops_the_granted_mode_and_says_so,
        pr_and_cw_exclude_each_other_both_ways,
        altmode_is_granted_and_named,
        a_busy_lock_refuses_convert_and_unlock_but_not_force,
        cancel_ends_requests_and_conversions_and_unblocks_others,
        nonsense_flags_are_refused,
        expedite_passes_the_queues,
        the_value_block_moves_by_the_direction_table,
        ivvalblk_makes_the_value_block_unbelievable_until_the_next_write,
        a_forgotten_resource_has_no_value_block,
        completion_inside_the_call_is_the_same_as_on_the_queue,
        a_bast_is_never_for_a_compatible_mode,
        leaving_ends_the_queue_and_refuses_calls,
    ]
);

/// The engine as the only member of a lockspace: what it does with peers is the simulator's business.
mod engine_alone {
    use std::sync::{Arc, Mutex};

    use dlm_client::engine::{Config, Engine, Member, Output, Start};
    use dlm_client::event::{EventQueue, EventSender, queue};
    use dlm_client::wire::LockspaceId;
    use dlm_client::{
        Caps, CrashSafety, Leave, Lkf, LockError, LockId, Lockspace, Lvb, Mode, NodeId, ResName, SlotSource,
    };

    struct Alone(Mutex<(Option<Engine>, EventSender)>);

    impl Alone {
        fn with<T>(&self, call: impl FnOnce(&mut Engine) -> Result<T, LockError>) -> Result<T, LockError> {
            let mut state = self.0.lock().unwrap();
            let (engine, sender) = &mut *state;
            let engine = engine.as_mut().ok_or(LockError::Left)?;
            let result = call(engine);
            while let Some(output) = engine.output() {
                match output {
                    Output::Event(event) => assert!(sender.send(event)),
                    Output::Send { .. } | Output::AddMember(_) | Output::RemoveMember(_) => {
                        panic!("there is nobody else: {output:?}")
                    }
                    Output::Timer { .. } | Output::RecoveryDone { .. } | Output::Log { .. } => {}
                }
            }
            result
        }
    }

    impl Lockspace for Alone {
        fn request(&self, name: &ResName, mode: Mode, flags: Lkf, token: u64) -> Result<LockId, LockError> {
            self.with(|engine| engine.request(name, mode, flags, token))
        }

        fn convert(&self, id: LockId, mode: Mode, flags: Lkf, lvb: Option<&Lvb>) -> Result<(), LockError> {
            self.with(|engine| engine.convert(id, mode, flags, lvb))
        }

        fn unlock(&self, id: LockId, flags: Lkf, lvb: Option<&Lvb>) -> Result<(), LockError> {
            self.with(|engine| engine.unlock(id, flags, lvb))
        }

        fn cancel(&self, id: LockId) -> Result<(), LockError> {
            self.with(|engine| engine.cancel(id))
        }

        fn caps(&self) -> Caps {
            Caps {
                slots: SlotSource::Exact,
                recovery_events: true,
                crash_safety: CrashSafety::Fenced,
                has_peers: true,
            }
        }

        fn leave(&self, _how: Leave) -> Result<(), LockError> {
            let mut state = self.0.lock().unwrap();
            state.0.take().ok_or(LockError::Left)?;
            state.1.close();
            Ok(())
        }
    }

    pub(super) fn join() -> (Arc<dyn Lockspace>, EventQueue) {
        let (sender, events) = queue();
        let node = NodeId(1);
        let engine = Engine::new(Config::new(node, LockspaceId(1), 7));
        let alone = Alone(Mutex::new((Some(engine), sender)));
        let member = Member {
            node,
            weight: 1,
            renewed: false,
        };
        let start = Start {
            members: vec![member],
            failed: Vec::new(),
        };
        alone
            .with(|engine| {
                engine.start(&start);
                Ok(())
            })
            .unwrap();
        (Arc::new(alone), events)
    }
}

fn engine() -> Session {
    let (space, queue) = engine_alone::join();
    Session {
        space,
        queue,
        quiet: Duration::from_millis(1),
        _others: Vec::new(),
    }
}

contract!(
    engine_backend,
    engine,
    [
        every_pair_of_modes_is_granted_or_refused_by_the_table,
        the_token_comes_back_in_casts_and_basts,
        waiters_are_served_in_order_and_readers_do_not_overtake_a_writer,
        a_holder_is_told_once_per_blocked_mode,
        noqueue_tells_nobody_unless_asked_to,
        a_failed_conversion_keeps_the_old_mode,
        a_conversion_goes_before_new_requests,
        a_down_conversion_has_a_cast_and_lets_waiters_in,
        quecvt_waits_behind_an_earlier_conversion_and_without_it_overtakes,
        two_upgraders_deadlock_and_the_second_is_told,
        convdeadlk_drops_the_granted_mode_and_says_so,
        pr_and_cw_exclude_each_other_both_ways,
        altmode_is_granted_and_named,
        a_busy_lock_refuses_convert_and_unlock_but_not_force,
        cancel_ends_requests_and_conversions_and_unblocks_others,
        nonsense_flags_are_refused,
        expedite_passes_the_queues,
        the_value_block_moves_by_the_direction_table,
        ivvalblk_makes_the_value_block_unbelievable_until_the_next_write,
        a_forgotten_resource_has_no_value_block,
        completion_inside_the_call_is_the_same_as_on_the_queue,
        a_bast_is_never_for_a_compatible_mode,
        leaving_ends_the_queue_and_refuses_calls,
    ]
);

/// The kernel backend on a kernel of this process, or, with `DLM_DEVICE` set, on the real one of this machine: there all
/// share a lockspace of this name, which the first joins; each then takes it up from a "process" that died.
fn kernel() -> Session {
    let real = std::env::var("DLM_DEVICE");
    let dlm = match &real {
        Ok(_) => KernelDlm::new(),
        Err(_) => KernelDlm::with(Arc::new(fake::FakeKernel::default())),
    };
    let lockspace = real.as_deref().unwrap_or("contract");
    let joined = dlm.expect("a kernel").join(lockspace, &JoinOptions::default());
    let (space, queue) = joined.expect("a lockspace");
    space.purge_orphans().expect("joined");
    Session {
        space,
        queue,
        quiet: Duration::from_millis(if real.is_ok() { 300 } else { 20 }),
        _others: Vec::new(),
    }
}

contract!(
    kernel_backend,
    kernel,
    [
        every_pair_of_modes_is_granted_or_refused_by_the_table,
        the_token_comes_back_in_casts_and_basts,
        waiters_are_served_in_order_and_readers_do_not_overtake_a_writer,
        a_holder_is_told_once_per_blocked_mode,
        noqueue_tells_nobody_unless_asked_to,
        a_failed_conversion_keeps_the_old_mode,
        a_conversion_goes_before_new_requests,
        a_down_conversion_has_a_cast_and_lets_waiters_in,
        quecvt_waits_behind_an_earlier_conversion_and_without_it_overtakes,
        two_upgraders_deadlock_and_the_second_is_told,
        convdeadlk_drops_the_granted_mode_and_says_so,
        pr_and_cw_exclude_each_other_both_ways,
        altmode_is_granted_and_named,
        a_busy_lock_refuses_convert_and_unlock_but_not_force,
        cancel_ends_requests_and_conversions_and_unblocks_others,
        nonsense_flags_are_refused,
        expedite_passes_the_queues,
        the_value_block_moves_by_the_direction_table,
        ivvalblk_makes_the_value_block_unbelievable_until_the_next_write,
        a_forgotten_resource_has_no_value_block,
        completion_inside_the_call_is_the_same_as_on_the_queue,
        a_bast_is_never_for_a_compatible_mode,
        leaving_ends_the_queue_and_refuses_calls,
    ]
);

contract!(
    wire_in_memory,
    || wire(Wires::Memory, "", NEW),
    [
        every_pair_of_modes_is_granted_or_refused_by_the_table,
        the_token_comes_back_in_casts_and_basts,
        waiters_are_served_in_order_and_readers_do_not_overtake_a_writer,
        a_holder_is_told_once_per_blocked_mode,
        noqueue_tells_nobody_unless_asked_to,
        a_failed_conversion_keeps_the_old_mode,
        a_conversion_goes_before_new_requests,
        a_down_conversion_has_a_cast_and_lets_waiters_in,
        quecvt_waits_behind_an_earlier_conversion_and_without_it_overtakes,
        two_upgraders_deadlock_and_the_second_is_told,
        convdeadlk_drops_the_granted_mode_and_says_so,
        pr_and_cw_exclude_each_other_both_ways,
        altmode_is_granted_and_named,
        a_busy_lock_refuses_convert_and_unlock_but_not_force,
        cancel_ends_requests_and_conversions_and_unblocks_others,
        nonsense_flags_are_refused,
        expedite_passes_the_queues,
        the_value_block_moves_by_the_direction_table,
        ivvalblk_makes_the_value_block_unbelievable_until_the_next_write,
        a_forgotten_resource_has_no_value_block,
        completion_inside_the_call_is_the_same_as_on_the_queue,
        a_bast_is_never_for_a_compatible_mode,
        leaving_ends_the_queue_and_refuses_calls,
    ]
);

contract!(
    wire_over_tcp,
    || wire(Wires::Tcp, "", NEW),
    [
        every_pair_of_modes_is_granted_or_refused_by_the_table,
        the_token_comes_back_in_casts_and_basts,
        waiters_are_served_in_order_and_readers_do_not_overtake_a_writer,
        a_holder_is_told_once_per_blocked_mode,
        noqueue_tells_nobody_unless_asked_to,
        a_failed_conversion_keeps_the_old_mode,
        a_conversion_goes_before_new_requests,
        a_down_conversion_has_a_cast_and_lets_waiters_in,
        quecvt_waits_behind_an_earlier_conversion_and_without_it_overtakes,
        two_upgraders_deadlock_and_the_second_is_told,
        convdeadlk_drops_the_granted_mode_and_says_so,
        pr_and_cw_exclude_each_other_both_ways,
        altmode_is_granted_and_named,
        a_busy_lock_refuses_convert_and_unlock_but_not_force,
        cancel_ends_requests_and_conversions_and_unblocks_others,
        nonsense_flags_are_refused,
        expedite_passes_the_queues,
        the_value_block_moves_by_the_direction_table,
        ivvalblk_makes_the_value_block_unbelievable_until_the_next_write,
        a_forgotten_resource_has_no_value_block,
        completion_inside_the_call_is_the_same_as_on_the_queue,
        a_bast_is_never_for_a_compatible_mode,
        leaving_ends_the_queue_and_refuses_calls,
    ]
);

contract!(
    wire_master_elsewhere,
    || wire(Wires::Memory, MASTER_1, NEW),
    [
        every_pair_of_modes_is_granted_or_refused_by_the_table,
        the_token_comes_back_in_casts_and_basts,
        waiters_are_served_in_order_and_readers_do_not_overtake_a_writer,
        a_holder_is_told_once_per_blocked_mode,
        noqueue_tells_nobody_unless_asked_to,
        a_failed_conversion_keeps_the_old_mode,
        a_conversion_goes_before_new_requests,
        a_down_conversion_has_a_cast_and_lets_waiters_in,
        quecvt_waits_behind_an_earlier_conversion_and_without_it_overtakes,
        two_upgraders_deadlock_and_the_second_is_told,
        convdeadlk_drops_the_granted_mode_and_says_so,
        pr_and_cw_exclude_each_other_both_ways,
        altmode_is_granted_and_named,
        a_busy_lock_refuses_convert_and_unlock_but_not_force,
        cancel_ends_requests_and_conversions_and_unblocks_others,
        nonsense_flags_are_refused,
        expedite_passes_the_queues,
        the_value_block_moves_by_the_direction_table,
        ivvalblk_makes_the_value_block_unbelievable_until_the_next_write,
        a_forgotten_resource_has_no_value_block,
        completion_inside_the_call_is_the_same_as_on_the_queue,
        a_bast_is_never_for_a_compatible_mode,
        leaving_ends_the_queue_and_refuses_calls,
    ]
);

contract!(
    wire_master_elsewhere_over_tcp,
    || wire(Wires::Tcp, MASTER_1, NEW),
    [
        every_pair_of_modes_is_granted_or_refused_by_the_table,
        the_token_comes_back_in_casts_and_basts,
        waiters_are_served_in_order_and_readers_do_not_overtake_a_writer,
        a_holder_is_told_once_per_blocked_mode,
        noqueue_tells_nobody_unless_asked_to,
        a_failed_conversion_keeps_the_old_mode,
        a_conversion_goes_before_new_requests,
        a_down_conversion_has_a_cast_and_lets_waiters_in,
        quecvt_waits_behind_an_earlier_conversion_and_without_it_overtakes,
        two_upgraders_deadlock_and_the_second_is_told,
        convdeadlk_drops_the_granted_mode_and_says_so,
        pr_and_cw_exclude_each_other_both_ways,
        altmode_is_granted_and_named,
        a_busy_lock_refuses_convert_and_unlock_but_not_force,
        cancel_ends_requests_and_conversions_and_unblocks_others,
        nonsense_flags_are_refused,
        expedite_passes_the_queues,
        the_value_block_moves_by_the_direction_table,
        ivvalblk_makes_the_value_block_unbelievable_until_the_next_write,
        a_forgotten_resource_has_no_value_block,
        completion_inside_the_call_is_the_same_as_on_the_queue,
        a_bast_is_never_for_a_compatible_mode,
        leaving_ends_the_queue_and_refuses_calls,
    ]
);

contract!(
    wire_master_here,
    || wire(Wires::Memory, MASTER_2, NEW),
    [
        every_pair_of_modes_is_granted_or_refused_by_the_table,
        the_token_comes_back_in_casts_and_basts,
        waiters_are_served_in_order_and_readers_do_not_overtake_a_writer,
        a_holder_is_told_once_per_blocked_mode,
        noqueue_tells_nobody_unless_asked_to,
        a_failed_conversion_keeps_the_old_mode,
        a_conversion_goes_before_new_requests,
        a_down_conversion_has_a_cast_and_lets_waiters_in,
        quecvt_waits_behind_an_earlier_conversion_and_without_it_overtakes,
        two_upgraders_deadlock_and_the_second_is_told,
        convdeadlk_drops_the_granted_mode_and_says_so,
        pr_and_cw_exclude_each_other_both_ways,
        altmode_is_granted_and_named,
        a_busy_lock_refuses_convert_and_unlock_but_not_force,
        cancel_ends_requests_and_conversions_and_unblocks_others,
        nonsense_flags_are_refused,
        expedite_passes_the_queues,
        the_value_block_moves_by_the_direction_table,
        ivvalblk_makes_the_value_block_unbelievable_until_the_next_write,
        a_forgotten_resource_has_no_value_block,
        completion_inside_the_call_is_the_same_as_on_the_queue,
        a_bast_is_never_for_a_compatible_mode,
        leaving_ends_the_queue_and_refuses_calls,
    ]
);

contract!(
    wire_old_protocol,
    || wire(
        Wires::Tcp,
        MASTER_1,
        [Version::V3_1, Version::V3_2, Version::V3_2]
    ),
    [
        every_pair_of_modes_is_granted_or_refused_by_the_table,
        the_token_comes_back_in_casts_and_basts,
        waiters_are_served_in_order_and_readers_do_not_overtake_a_writer,
        a_holder_is_told_once_per_blocked_mode,
        noqueue_tells_nobody_unless_asked_to,
        a_failed_conversion_keeps_the_old_mode,
        a_conversion_goes_before_new_requests,
        a_down_conversion_has_a_cast_and_lets_waiters_in,
        quecvt_waits_behind_an_earlier_conversion_and_without_it_overtakes,
        two_upgraders_deadlock_and_the_second_is_told,
        convdeadlk_drops_the_granted_mode_and_says_so,
        pr_and_cw_exclude_each_other_both_ways,
        altmode_is_granted_and_named,
        a_busy_lock_refuses_convert_and_unlock_but_not_force,
        cancel_ends_requests_and_conversions_and_unblocks_others,
        nonsense_flags_are_refused,
        expedite_passes_the_queues,
        the_value_block_moves_by_the_direction_table,
        ivvalblk_makes_the_value_block_unbelievable_until_the_next_write,
        a_forgotten_resource_has_no_value_block,
        completion_inside_the_call_is_the_same_as_on_the_queue,
        a_bast_is_never_for_a_compatible_mode,
        leaving_ends_the_queue_and_refuses_calls,
    ]
);
