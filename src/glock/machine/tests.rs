//! Each rule of the machine by itself.

use std::panic::Location;
use std::time::Duration;

use dlm_client::Lkf;

use super::*;
use HolderFlags as F;
use State::{Df, Ex, Sh, Un};

const INODE: Kind = Kind {
    has_hold_time: true,
    presence_only: false,
    kernel_cached: false,
    journaled: true,
    has_lvb: true,
};
const CACHED_INODE: Kind = Kind {
    kernel_cached: true,
    ..INODE
};
const RGRP: Kind = Kind {
    has_hold_time: false,
    ..INODE
};
const FLOCK: Kind = Kind {
    has_hold_time: false,
    presence_only: true,
    kernel_cached: false,
    journaled: false,
    has_lvb: false,
};

struct Rig {
    machine: Machine,
    now: Duration,
    next: HolderId,
}

impl Rig {
    fn new(kind: Kind) -> Self {
        Self {
            machine: Machine::new(kind),
            now: Duration::from_secs(1),
            next: 0,
        }
    }

    fn holder(&mut self, state: State, flags: F) -> Holder {
        self.next += 1;
        Holder::new(self.next, state, flags, Some(1), Location::caller())
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        self.machine.step(self.now, event);
        std::iter::from_fn(|| self.machine.pop_action()).collect()
    }

    fn ask(&mut self, state: State, flags: F) -> (HolderId, Vec<Action>) {
        let holder = self.holder(state, flags);
        (holder.id, self.step(Event::Enqueue(holder)))
    }

    fn reply(&mut self, outcome: Outcome, state: State) -> Vec<Action> {
        self.step(Event::Reply {
            outcome,
            state,
            hold: false,
        })
    }

    /// A machine whose lock is cached in `state` and not held.
    fn cached(kind: Kind, state: State) -> Self {
        let mut rig = Self::new(kind);
        let (id, _) = rig.ask(state, F::empty());
        rig.reply(Outcome::Granted, state);
        assert_eq!(rig.step(Event::Dequeue(id)), []);
        rig.now += Duration::from_secs(1);
        rig
    }

    fn held(kind: Kind, state: State) -> (Self, HolderId) {
        let mut rig = Self::cached(kind, state);
        let (id, actions) = rig.ask(state, F::empty());
        assert_eq!(actions, [Action::Grant(id)]);
        (rig, id)
    }

    fn bast(&mut self, wanted: State) -> Vec<Action> {
        let told = self.step(Event::Bast(wanted));
        assert!(
            matches!(told.first(), Some(Action::Callback { remote: true, .. })),
            "{told:?}"
        );
        self.step(Event::CallbackDone { ignore: false })
    }
}

fn call(target: State, flags: Lkf) -> Action {
    Action::Lock(LockCall { target, flags })
}

#[test]
fn the_grant_table_is_the_kernels() {
    let holder = |state, flags| Holder::new(0, state, flags, None, Location::caller());
    let grants = |state, current: Option<(State, F)>, new: (State, F)| {
        let current = current.map(|(state, flags)| holder(state, flags));
        may_grant(state, current.as_ref(), &holder(new.0, new.1))
    };
    let none = F::empty();
    // With a holder.
    assert!(grants(Ex, Some((Ex, F::NODE_SCOPE)), (Ex, F::NODE_SCOPE)));
    assert!(!grants(Ex, Some((Ex, F::NODE_SCOPE)), (Ex, none)));
    assert!(!grants(Ex, Some((Ex, none)), (Ex, F::NODE_SCOPE)));
    assert!(!grants(Ex, Some((Ex, none)), (Sh, none)));
    for state in [Sh, Df] {
        assert!(grants(state, Some((state, none)), (state, none)));
        assert!(grants(Ex, Some((state, none)), (state, none)));
        assert!(!grants(state, Some((state, none)), (Ex, none)));
    }
    assert!(!grants(Sh, Some((Sh, none)), (Df, F::ANY)));
    // Without a holder.
    for state in [Sh, Df, Ex] {
        assert!(grants(state, None, (state, F::EXACT)));
        assert!(!grants(Un, None, (state, F::ANY)));
    }
    assert!(grants(Ex, None, (Sh, none)) && grants(Ex, None, (Df, none)));
    assert!(!grants(Ex, None, (Sh, F::EXACT)));
    assert!(!grants(Sh, None, (Df, none)) && grants(Sh, None, (Df, F::ANY)));
    assert!(!grants(Df, None, (Sh, none)) && grants(Df, None, (Sh, F::ANY)));
    assert!(!grants(Df, None, (Sh, F::ANY | F::EXACT)));
    assert!(!grants(Sh, None, (Ex, F::ANY)));
}

#[test]
fn the_first_request_is_a_new_lock_and_later_ones_queue_their_conversion() {
    let mut rig = Rig::new(INODE);
    let (id, actions) = rig.ask(Sh, F::empty());
    assert_eq!(actions, [call(Sh, Lkf::VALBLK)]);
    assert!(
        rig.machine
            .flags()
            .contains(GlockFlags::INITIAL | GlockFlags::PENDING_REPLY)
    );
    assert_eq!(rig.reply(Outcome::Granted, Sh), [Action::Grant(id)]);
    assert!(!rig.machine.flags().contains(GlockFlags::INITIAL));
    rig.step(Event::Dequeue(id));
    let (id, actions) = rig.ask(Ex, F::empty());
    assert_eq!(actions, [call(Ex, Lkf::VALBLK | Lkf::QUECVT)]);
    assert_eq!(rig.reply(Outcome::Granted, Ex), [Action::Grant(id)]);
}

#[test]
fn a_cached_lock_is_granted_without_any_message() {
    let mut rig = Rig::cached(INODE, Ex);
    for state in [Sh, Df, Ex] {
        let holder = rig.holder(state, F::empty());
        assert!(rig.machine.try_fast(holder));
        assert!(rig.machine.release_fast(holder.id));
    }
    assert_eq!(rig.step(Event::Tick), []);
}

#[test]
fn the_fast_path_closes_when_somebody_waits_or_demotes() {
    let (mut rig, held) = Rig::held(INODE, Ex);
    let (_, actions) = rig.ask(Ex, F::empty());
    assert_eq!(actions, []);
    let late = rig.holder(Ex, F::empty());
    assert!(!rig.machine.try_fast(late), "behind a waiter");
    assert!(!rig.machine.release_fast(held), "a waiter must be granted");
    let (mut rig, held) = Rig::held(RGRP, Sh);
    assert_eq!(rig.bast(Un), []);
    let late = rig.holder(Sh, F::empty());
    assert!(!rig.machine.try_fast(late), "demote wanted");
    assert!(!rig.machine.release_fast(held), "the demote must run");
}

#[test]
fn waiters_are_first_come_first_served() {
    let (mut rig, reader) = Rig::held(RGRP, Ex);
    let (writer, _) = rig.ask(Ex, F::empty());
    let (late, actions) = rig.ask(Sh, F::empty());
    assert_eq!(actions, [], "a reader behind a writer waits");
    assert_eq!(rig.step(Event::Dequeue(reader)), [Action::Grant(writer)]);
    assert_eq!(rig.step(Event::Dequeue(writer)), [Action::Grant(late)]);
}

#[test]
fn a_reply_grants_every_compatible_waiter_up_to_the_first_that_is_not() {
    let mut rig = Rig::new(INODE);
    let (one, _) = rig.ask(Sh, F::empty());
    let (two, _) = rig.ask(Sh, F::empty());
    let (writer, _) = rig.ask(Ex, F::empty());
    let (three, _) = rig.ask(Sh, F::empty());
    assert_eq!(
        rig.reply(Outcome::Granted, Sh),
        [Action::Grant(one), Action::Grant(two)]
    );
    rig.step(Event::Dequeue(one));
    let actions = rig.step(Event::Dequeue(two));
    assert_eq!(actions, [call(Ex, Lkf::VALBLK | Lkf::QUECVT)]);
    assert_eq!(rig.reply(Outcome::Granted, Ex), [Action::Grant(writer)]);
    assert_eq!(
        rig.step(Event::Dequeue(writer)),
        [Action::Grant(three)],
        "a cached EX satisfies SH"
    );
}

#[test]
fn node_scope_holders_share_ex() {
    let mut rig = Rig::cached(RGRP, Ex);
    let (one, actions) = rig.ask(Ex, F::NODE_SCOPE);
    assert_eq!(actions, [Action::Grant(one)]);
    let (two, actions) = rig.ask(Ex, F::NODE_SCOPE);
    assert_eq!(actions, [Action::Grant(two)]);
    let (three, actions) = rig.ask(Ex, F::empty());
    assert_eq!(actions, []);
    rig.step(Event::Dequeue(one));
    assert_eq!(rig.step(Event::Dequeue(two)), [Action::Grant(three)]);
}

#[test]
fn a_demote_syncs_then_invalidates_then_tells_the_dlm() {
    let mut rig = Rig::cached(INODE, Ex);
    assert_eq!(rig.bast(Un), [Action::Sync { target: Un }]);
    assert!(
        rig.machine
            .flags()
            .contains(GlockFlags::DEMOTE_IN_PROGRESS | GlockFlags::INVALIDATE_IN_PROGRESS)
    );
    assert_eq!(
        rig.step(Event::SyncDone { ok: true }),
        [Action::Invalidate { target: Un }]
    );
    assert_eq!(rig.step(Event::InvalidateDone), [call(Un, Lkf::VALBLK)]);
    assert!(rig.machine.is_instantiate_needed());
    assert_eq!(rig.reply(Outcome::Granted, Un), [Action::DemoteDone]);
    assert!(rig.machine.is_unlocked());
}

#[test]
fn a_demote_from_ex_to_sh_keeps_what_is_clean() {
    let mut rig = Rig::cached(INODE, Ex);
    assert_eq!(rig.bast(Sh), [Action::Sync { target: Sh }]);
    assert_eq!(rig.step(Event::SyncDone { ok: true }), [call(Sh, Lkf::VALBLK)]);
    assert_eq!(rig.reply(Outcome::Granted, Sh), [Action::DemoteDone]);
    assert_eq!(rig.machine.state(), Sh);
}

#[test]
fn nothing_is_synced_that_was_not_exclusive() {
    let mut rig = Rig::cached(INODE, Sh);
    assert_eq!(rig.bast(Un), [Action::Invalidate { target: Un }]);
    let mut rig = Rig::cached(INODE, Df);
    assert_eq!(rig.bast(Sh), [call(Sh, Lkf::VALBLK | Lkf::QUECVT)]);
    let mut rig = Rig::cached(FLOCK, Ex);
    assert_eq!(rig.bast(Un), [call(Un, Lkf::empty())]);
}

#[test]
fn a_demote_waits_for_holders_and_newcomers_wait_for_the_demote() {
    let (mut rig, held) = Rig::held(RGRP, Ex);
    assert_eq!(rig.bast(Un), []);
    let (late, actions) = rig.ask(Ex, F::empty());
    assert_eq!(actions, []);
    assert_eq!(rig.step(Event::Dequeue(held)), [Action::Sync { target: Un }]);
    rig.step(Event::SyncDone { ok: true });
    rig.step(Event::InvalidateDone);
    let actions = rig.reply(Outcome::Granted, Un);
    assert_eq!(actions, [Action::DemoteDone, call(Ex, Lkf::VALBLK | Lkf::QUECVT)]);
    assert_eq!(rig.reply(Outcome::Granted, Ex), [Action::Grant(late)]);
}

#[test]
fn only_inodes_with_holders_delay_a_demote_and_only_for_the_hold_time() {
    let (mut rig, held) = Rig::held(RGRP, Sh);
    rig.bast(Un);
    assert!(rig.machine.flags().contains(GlockFlags::DEMOTE));
    rig.step(Event::Dequeue(held));

    let mut rig = Rig::new(INODE);
    let (held, _) = rig.ask(Sh, F::empty());
    rig.reply(Outcome::Granted, Sh);
    let start = rig.now;
    rig.now += Duration::from_millis(50);
    let actions = rig.step(Event::Bast(Un));
    assert_eq!(
        actions,
        [
            Action::Callback {
                remote: true,
                wanted: Un
            },
            Action::Timer(start + HOLD_MAX)
        ]
    );
    assert_eq!(rig.step(Event::CallbackDone { ignore: false }), []);
    assert!(rig.machine.flags().contains(GlockFlags::PENDING_DEMOTE));
    let (join, actions) = rig.ask(Sh, F::empty());
    assert_eq!(
        actions,
        [Action::Grant(join)],
        "until then the lock is as good as before"
    );
    rig.step(Event::Dequeue(join));
    assert_eq!(rig.step(Event::Dequeue(held)), []);
    assert_eq!(
        rig.step(Event::Tick),
        [Action::Timer(start + HOLD_MAX)],
        "too early"
    );
    rig.now = start + HOLD_MAX;
    assert_eq!(rig.step(Event::Tick), [Action::Invalidate { target: Un }]);

    let mut idle = Rig::cached(INODE, Sh);
    idle.machine.step(idle.now, Event::Tick);
    assert_eq!(
        idle.bast(Un),
        [Action::Invalidate { target: Un }],
        "nobody holds it"
    );
}

#[test]
fn the_hold_time_adapts_within_its_bounds() {
    let mut rig = Rig::new(INODE);
    for _ in 0..40 {
        let (id, _) = rig.ask(Sh, F::TRY);
        assert_eq!(
            rig.reply(Outcome::Again, Un),
            [Action::Fail(id, FailReason::TryFailed)]
        );
    }
    assert_eq!(rig.machine.hold_time(), HOLD_MIN);
    rig.machine.note_wait(LONG_WAIT);
    assert_eq!(rig.machine.hold_time(), HOLD_MIN);
    rig.machine.note_wait(LONG_WAIT + Duration::from_millis(1));
    assert_eq!(rig.machine.hold_time(), HOLD_MIN + HOLD_STEP_UP);
    for _ in 0..10 {
        rig.machine.note_wait(Duration::from_secs(2));
    }
    assert_eq!(rig.machine.hold_time(), HOLD_MAX);
}

#[test]
fn two_different_demote_requests_mean_un() {
    let (mut rig, held) = Rig::held(RGRP, Ex);
    rig.bast(Sh);
    let told = rig.step(Event::Bast(Df));
    assert_eq!(
        told,
        [Action::Callback {
            remote: true,
            wanted: Un
        }]
    );
    rig.step(Event::CallbackDone { ignore: false });
    assert_eq!(rig.step(Event::Dequeue(held)), [Action::Sync { target: Un }]);
}

#[test]
fn a_demote_to_un_that_comes_while_going_to_sh_is_done_in_the_same_breath() {
    let mut rig = Rig::cached(RGRP, Ex);
    rig.bast(Sh);
    assert_eq!(rig.bast(Un), []);
    rig.step(Event::SyncDone { ok: true });
    assert_eq!(
        rig.reply(Outcome::Granted, Sh),
        [Action::Invalidate { target: Un }]
    );
    rig.step(Event::InvalidateDone);
    assert_eq!(rig.reply(Outcome::Granted, Un), [Action::DemoteDone]);
}

#[test]
fn a_bast_before_its_grant_is_remembered_and_the_asker_gets_its_turn() {
    let mut rig = Rig::new(RGRP);
    let (id, _) = rig.ask(Ex, F::empty());
    assert_eq!(rig.bast(Un), []);
    let (late, _) = rig.ask(Ex, F::NOPID);
    assert_eq!(rig.reply(Outcome::Granted, Ex), [Action::Grant(id)]);
    assert_eq!(rig.step(Event::Dequeue(id)), [Action::Sync { target: Un }]);
    let _ = late;
    // And one for a lock we neither have nor want is nobody's.
    let mut rig = Rig::new(RGRP);
    assert_eq!(rig.step(Event::Bast(Un)), []);
    assert_eq!(rig.machine.demote(), None);
}

#[test]
fn a_callback_that_ignores_the_demote_leaves_the_lock_alone() {
    let (mut rig, held) = Rig::held(FLOCK, Sh);
    rig.step(Event::Bast(Un));
    rig.step(Event::CallbackDone { ignore: true });
    assert_eq!(rig.step(Event::Dequeue(held)), []);
    assert_eq!(rig.machine.state(), Sh);
}

#[test]
fn nocache_gives_the_lock_back_at_release() {
    let mut rig = Rig::cached(FLOCK, Ex);
    let (id, _) = rig.ask(Ex, F::NOCACHE);
    assert_eq!(
        rig.step(Event::Dequeue(id)),
        [Action::Callback {
            remote: false,
            wanted: Un
        }]
    );
    assert_eq!(
        rig.step(Event::CallbackDone { ignore: false }),
        [call(Un, Lkf::empty())]
    );
}

#[test]
fn a_try_does_not_queue_at_the_dlm_and_knocks_only_if_told_to() {
    let mut rig = Rig::new(FLOCK);
    let (id, actions) = rig.ask(Ex, F::TRY);
    assert_eq!(actions, [call(Ex, Lkf::NOQUEUE)]);
    assert_eq!(
        rig.reply(Outcome::Again, Un),
        [Action::Fail(id, FailReason::TryFailed)]
    );
    let (id, actions) = rig.ask(Ex, F::TRY_1CB);
    assert_eq!(actions, [call(Ex, Lkf::NOQUEUE | Lkf::NOQUEUEBAST)]);
    assert_eq!(rig.reply(Outcome::Granted, Ex), [Action::Grant(id)]);
}

#[test]
fn a_failed_try_to_upgrade_keeps_the_cached_lock() {
    let mut rig = Rig::cached(INODE, Sh);
    let (id, actions) = rig.ask(Ex, F::TRY);
    assert_eq!(actions, [call(Ex, Lkf::VALBLK | Lkf::NOQUEUE)]);
    assert_eq!(
        rig.reply(Outcome::Again, Sh),
        [Action::Fail(id, FailReason::TryFailed)]
    );
    assert_eq!((rig.machine.state(), rig.machine.phase()), (Sh, Phase::Idle));
}

#[test]
fn a_try_behind_an_incompatible_holder_fails_at_once() {
    let (mut rig, _) = Rig::held(INODE, Ex);
    let (id, actions) = rig.ask(Sh, F::TRY);
    assert_eq!(actions, [Action::Fail(id, FailReason::TryFailed)]);
    // Also when a demote waits for that holder.
    let (mut rig, _) = Rig::held(RGRP, Sh);
    rig.bast(Un);
    let (id, actions) = rig.ask(Sh, F::TRY);
    assert_eq!(actions, [Action::Fail(id, FailReason::TryFailed)]);
}

#[test]
fn a_try_fails_while_invalidating_or_behind_anothers_request() {
    let mut rig = Rig::cached(INODE, Ex);
    rig.bast(Un);
    let (id, actions) = rig.ask(Sh, F::TRY);
    assert_eq!(actions, [Action::Fail(id, FailReason::TryFailed)]);
    let mut rig = Rig::new(INODE);
    rig.ask(Ex, F::empty());
    let (id, actions) = rig.ask(Ex, F::TRY);
    assert_eq!(actions, [Action::Fail(id, FailReason::TryFailed)]);
}

#[test]
fn noblock_takes_only_what_is_cached() {
    let mut rig = Rig::new(INODE);
    let (id, actions) = rig.ask(Sh, F::NOBLOCK);
    assert_eq!(actions, [Action::Fail(id, FailReason::WouldBlock)]);
    let mut rig = Rig::cached(INODE, Ex);
    let (id, actions) = rig.ask(Sh, F::NOBLOCK);
    assert_eq!(actions, [Action::Grant(id)]);
    let (_, _) = rig.ask(Ex, F::empty());
    let (id, actions) = rig.ask(Sh, F::NOBLOCK);
    assert_eq!(
        actions,
        [Action::Fail(id, FailReason::WouldBlock)],
        "somebody waits"
    );
}

#[test]
fn a_cancelled_waiter_goes_to_the_tail() {
    let mut rig = Rig::new(FLOCK);
    let (one, _) = rig.ask(Ex, F::empty());
    let (two, _) = rig.ask(Sh, F::empty());
    assert_eq!(rig.reply(Outcome::Canceled, Un), [call(Sh, Lkf::empty())]);
    assert_eq!(rig.reply(Outcome::Granted, Sh), [Action::Grant(two)]);
    assert_eq!(rig.step(Event::Dequeue(two)), [call(Ex, Lkf::QUECVT)]);
    assert_eq!(rig.reply(Outcome::Granted, Ex), [Action::Grant(one)]);
}

#[test]
fn an_abandoned_request_is_cancelled_and_whatever_comes_is_used() {
    // Cancelled in time: the next waiter's turn.
    let mut rig = Rig::new(FLOCK);
    let (one, _) = rig.ask(Ex, F::ASYNC);
    let (two, _) = rig.ask(Sh, F::empty());
    assert_eq!(rig.step(Event::Dequeue(one)), [Action::Cancel]);
    assert_eq!(rig.reply(Outcome::Canceled, Un), [call(Sh, Lkf::empty())]);
    assert_eq!(rig.reply(Outcome::Granted, Sh), [Action::Grant(two)]);
    // The grant was faster: it serves the next waiter, or stays cached.
    let mut rig = Rig::new(FLOCK);
    let (one, _) = rig.ask(Ex, F::ASYNC);
    let (two, _) = rig.ask(Sh, F::empty());
    rig.step(Event::Dequeue(one));
    assert_eq!(rig.reply(Outcome::Granted, Ex), [Action::Grant(two)]);
    let mut rig = Rig::new(FLOCK);
    let (one, _) = rig.ask(Ex, F::ASYNC);
    rig.step(Event::Dequeue(one));
    assert_eq!(rig.reply(Outcome::Granted, Ex), []);
    assert_eq!((rig.machine.state(), rig.machine.phase()), (Ex, Phase::Idle));
}

#[test]
fn an_abandoned_waiter_frees_those_behind_it() {
    let (mut rig, _) = Rig::held(RGRP, Sh);
    let (writer, _) = rig.ask(Ex, F::empty());
    let (reader, actions) = rig.ask(Sh, F::empty());
    assert_eq!(actions, []);
    assert_eq!(rig.step(Event::Dequeue(writer)), [Action::Grant(reader)]);
}

#[test]
fn a_deadlock_gives_up_the_old_mode_with_full_invalidate_and_asks_again() {
    let mut rig = Rig::cached(INODE, Sh);
    let (id, _) = rig.ask(Ex, F::empty());
    assert_eq!(
        rig.reply(Outcome::Deadlock, Sh),
        [Action::Invalidate { target: Un }]
    );
    assert_eq!(rig.step(Event::InvalidateDone), [call(Un, Lkf::VALBLK)]);
    assert_eq!(
        rig.reply(Outcome::Granted, Un),
        [call(Ex, Lkf::VALBLK | Lkf::QUECVT)]
    );
    assert_eq!(rig.reply(Outcome::Granted, Ex), [Action::Grant(id)]);
}

#[test]
fn a_deadlock_in_a_demote_goes_all_the_way_down() {
    let mut rig = Rig::cached(RGRP, Sh);
    assert_eq!(rig.bast(Df), [Action::Invalidate { target: Df }]);
    assert_eq!(
        rig.step(Event::InvalidateDone),
        [call(Df, Lkf::VALBLK | Lkf::QUECVT)]
    );
    assert_eq!(
        rig.reply(Outcome::Deadlock, Sh),
        [Action::Invalidate { target: Un }]
    );
    rig.step(Event::InvalidateDone);
    assert_eq!(rig.reply(Outcome::Granted, Un), [Action::DemoteDone]);
}

#[test]
fn a_lock_service_error_fails_all_waiters() {
    let mut rig = Rig::new(FLOCK);
    let (one, _) = rig.ask(Ex, F::empty());
    let (two, _) = rig.ask(Sh, F::empty());
    let service = FailReason::Service;
    assert_eq!(
        rig.reply(Outcome::Error, Un),
        [Action::Fail(one, service), Action::Fail(two, service)]
    );
    let (_, actions) = rig.ask(Sh, F::empty());
    assert_eq!(actions, [call(Sh, Lkf::empty())], "the next user tries again");
}

#[test]
fn a_lock_that_cannot_be_given_up_is_kept_and_the_node_stops() {
    let mut rig = Rig::cached(FLOCK, Ex);
    rig.bast(Un);
    let cause = Cause::Protocol { wanted: Un, got: Ex };
    assert_eq!(
        rig.reply(Outcome::Error, Ex),
        [Action::Withdraw(cause), Action::DemoteDone]
    );
    assert!(rig.machine.is_settled());
}

#[test]
fn a_failed_sync_keeps_the_lock_for_ever() {
    let mut rig = Rig::cached(RGRP, Ex);
    rig.bast(Un);
    let (waiter, _) = rig.ask(Ex, F::empty());
    assert_eq!(
        rig.step(Event::SyncDone { ok: false }),
        [
            Action::Withdraw(Cause::SyncFailed),
            Action::Fail(waiter, FailReason::Withdrawn),
            Action::DemoteDone
        ]
    );
    assert_eq!(rig.machine.state(), Ex);
    let (id, actions) = rig.ask(Ex, F::NOEXP);
    assert_eq!(actions, [Action::Fail(id, FailReason::Withdrawn)]);
    assert_eq!(rig.step(Event::Bast(Un)), []);
    assert_eq!(rig.step(Event::Demote(Un)), []);
}

#[test]
fn grants_are_parked_while_recovery_blocks_and_noexp_passes() {
    let mut rig = Rig::new(INODE);
    let (id, _) = rig.ask(Sh, F::empty());
    let parked = Event::Reply {
        outcome: Outcome::Granted,
        state: Sh,
        hold: true,
    };
    assert_eq!(rig.step(parked), []);
    assert!(rig.machine.flags().contains(GlockFlags::HAVE_FROZEN_REPLY));
    assert_eq!(rig.step(Event::Unblock), [Action::Grant(id)]);
    // Errors and steps to UN are not parked.
    let mut rig = Rig::cached(FLOCK, Ex);
    rig.bast(Un);
    let reply = Event::Reply {
        outcome: Outcome::Granted,
        state: Un,
        hold: true,
    };
    assert_eq!(rig.step(reply), [Action::DemoteDone]);
    // One that recovery itself needs passes, and takes the parked ones along.
    let mut rig = Rig::new(INODE);
    let (one, _) = rig.ask(Sh, F::empty());
    rig.step(parked);
    let (two, actions) = rig.ask(Sh, F::NOEXP);
    assert_eq!(actions, [Action::Grant(one), Action::Grant(two)]);
}

#[test]
fn a_parked_grant_whose_asker_gave_up_stays_cached() {
    let mut rig = Rig::new(INODE);
    let (id, _) = rig.ask(Sh, F::ASYNC);
    rig.step(Event::Reply {
        outcome: Outcome::Granted,
        state: Sh,
        hold: true,
    });
    assert_eq!(rig.step(Event::Dequeue(id)), []);
    assert_eq!(rig.step(Event::Unblock), []);
    assert_eq!(rig.machine.state(), Sh);
}

#[test]
fn after_a_withdraw_journaled_locks_are_refused_and_kept_at_the_dlm_until_recovery() {
    let mut rig = Rig::cached(INODE, Ex);
    assert_eq!(rig.step(Event::Withdrawn), []);
    let (id, actions) = rig.ask(Ex, F::empty());
    assert_eq!(actions, [Action::Fail(id, FailReason::Withdrawn)]);
    let (id, actions) = rig.ask(Ex, F::NOEXP);
    assert_eq!(actions, [Action::Grant(id)]);
    rig.step(Event::Dequeue(id));
    // No sync (nothing may be written), no message.
    assert_eq!(rig.bast(Un), [Action::Invalidate { target: Un }]);
    assert_eq!(rig.step(Event::InvalidateDone), [Action::DemoteDone]);
    assert_eq!(rig.machine.state(), Un);
    assert!(rig.machine.is_settled() && !rig.machine.is_unlocked());
    let (id, actions) = rig.ask(Sh, F::NOEXP);
    assert_eq!(
        actions,
        [Action::Fail(id, FailReason::Withdrawn), Action::DemoteDone]
    );
    let told = rig.step(Event::Recovered);
    assert_eq!(
        told,
        [Action::Callback {
            remote: false,
            wanted: Un
        }]
    );
    assert_eq!(
        rig.step(Event::CallbackDone { ignore: false }),
        [Action::Invalidate { target: Un }]
    );
    assert_eq!(rig.step(Event::InvalidateDone), [call(Un, Lkf::VALBLK)]);
    rig.reply(Outcome::Granted, Un);
    assert!(rig.machine.is_unlocked());
}

#[test]
fn a_withdraw_fails_those_who_wait_and_takes_their_request_back() {
    let mut rig = Rig::new(INODE);
    let (id, _) = rig.ask(Ex, F::empty());
    let actions = rig.step(Event::Withdrawn);
    assert_eq!(actions, [Action::Fail(id, FailReason::Withdrawn), Action::Cancel]);
    assert_eq!(rig.reply(Outcome::Canceled, Un), []);
    let mut rig = Rig::new(FLOCK);
    let (id, _) = rig.ask(Ex, F::empty());
    assert_eq!(rig.step(Event::Withdrawn), [], "other types work on");
    assert_eq!(rig.reply(Outcome::Granted, Ex), [Action::Grant(id)]);
}

#[test]
fn the_kernels_cache_is_emptied_before_the_sync() {
    let mut rig = Rig::cached(CACHED_INODE, Ex);
    assert_eq!(rig.bast(Un), [Action::FlushKernel { target: Un, pass: 0 }]);
    assert_eq!(rig.step(Event::FlushDone), [Action::Sync { target: Un }]);
    let mut rig = Rig::cached(CACHED_INODE, Sh);
    assert_eq!(rig.bast(Un), [Action::FlushKernel { target: Un, pass: 0 }]);
    assert_eq!(rig.step(Event::FlushDone), [Action::Invalidate { target: Un }]);
    let mut rig = Rig::cached(CACHED_INODE, Sh);
    let (_, actions) = rig.ask(Ex, F::empty());
    assert_eq!(
        actions,
        [call(Ex, Lkf::VALBLK | Lkf::QUECVT)],
        "going up drops nothing"
    );
}

#[test]
fn pages_are_served_from_the_held_lock_and_the_pass_is_repeated_until_none_was() {
    let mut rig = Rig::cached(CACHED_INODE, Ex);
    rig.bast(Un);
    let (read, actions) = rig.ask(Sh, F::SERVE);
    assert_eq!(actions, [Action::Grant(read)]);
    let (write, actions) = rig.ask(Ex, F::SERVE);
    assert_eq!(actions, [], "a page write waits for the page read");
    let (other, actions) = rig.ask(Sh, F::empty());
    assert_eq!(actions, [], "others wait for the demote");
    assert_eq!(rig.step(Event::Dequeue(read)), [Action::Grant(write)]);
    assert_eq!(rig.step(Event::FlushDone), [], "a page is still being written");
    assert_eq!(
        rig.step(Event::Dequeue(write)),
        [Action::FlushKernel { target: Un, pass: 1 }]
    );
    let (read, actions) = rig.ask(Sh, F::SERVE);
    assert_eq!(actions, [Action::Grant(read)]);
    assert_eq!(rig.step(Event::Dequeue(read)), []);
    assert_eq!(
        rig.step(Event::FlushDone),
        [Action::FlushKernel { target: Un, pass: 2 }]
    );
    assert_eq!(rig.step(Event::FlushDone), [Action::Sync { target: Un }]);
    let (late, actions) = rig.ask(Sh, F::SERVE);
    assert_eq!(actions, [], "once the cache is empty, nobody joins");
    rig.step(Event::SyncDone { ok: true });
    rig.step(Event::InvalidateDone);
    rig.reply(Outcome::Granted, Un);
    assert_eq!(
        rig.reply(Outcome::Granted, Sh),
        [Action::Grant(other), Action::Grant(late)]
    );
}

#[test]
fn a_page_request_that_waited_before_the_demote_began_is_served_in_it() {
    let (mut rig, held) = Rig::held(CACHED_INODE, Ex);
    rig.bast(Un);
    let (read, actions) = rig.ask(Sh, F::SERVE);
    assert_eq!(actions, []);
    let actions = rig.step(Event::Dequeue(held));
    assert_eq!(
        actions,
        [Action::FlushKernel { target: Un, pass: 0 }, Action::Grant(read)]
    );
}

#[test]
fn a_waiter_that_gives_up_during_the_invalidate_is_not_asked_for() {
    let mut rig = Rig::cached(INODE, Sh);
    let (id, actions) = rig.ask(Df, F::ASYNC);
    assert_eq!(actions, [Action::Invalidate { target: Df }]);
    assert_eq!(rig.step(Event::Dequeue(id)), []);
    assert_eq!(rig.step(Event::InvalidateDone), []);
    assert_eq!((rig.machine.state(), rig.machine.phase()), (Sh, Phase::Idle));
}

#[test]
fn one_reads_the_object_and_the_others_wait() {
    let mut rig = Rig::cached(INODE, Sh);
    assert_eq!(rig.machine.begin_instantiate(), Instantiate::Run);
    assert_eq!(rig.machine.begin_instantiate(), Instantiate::Wait);
    rig.machine.end_instantiate(false);
    assert_eq!(
        rig.machine.begin_instantiate(),
        Instantiate::Run,
        "the next user tries again"
    );
    rig.machine.end_instantiate(true);
    assert_eq!(rig.machine.begin_instantiate(), Instantiate::Ready);
}

#[test]
fn a_local_demote_of_an_unlocked_or_equal_lock_is_nothing() {
    let mut rig = Rig::new(INODE);
    assert_eq!(rig.step(Event::Demote(Un)), []);
    let mut rig = Rig::cached(INODE, Sh);
    rig.step(Event::Demote(Sh));
    assert_eq!(
        rig.step(Event::CallbackDone { ignore: false }),
        [Action::DemoteDone]
    );
    assert_eq!(rig.machine.state(), Sh);
}

#[test]
fn a_try_does_not_wait_for_the_emptying_of_the_kernels_cache() {
    let mut rig = Rig::cached(CACHED_INODE, Ex);
    assert_eq!(rig.bast(Sh), [Action::FlushKernel { target: Sh, pass: 0 }]);
    let (id, actions) = rig.ask(Ex, F::TRY);
    assert_eq!(actions, [Action::Fail(id, FailReason::TryFailed)]);
    // What keeps a page locked is served, also as a try.
    let (read, actions) = rig.ask(Sh, F::TRY | F::SERVE);
    assert_eq!(actions, [Action::Grant(read)]);
}
