//! What only the local backend can do: hooks, and several members in one process.

use std::sync::Arc;

use dlm_client::{
    Dlm, Event, EventQueue, JoinOptions, Leave, Lkf, LocalDlm, LockError, Lockspace, Mode, ResName, SbFlags,
    Status,
};

fn join(dlm: &LocalDlm) -> (Arc<dyn Lockspace>, EventQueue) {
    dlm.join("fs", &JoinOptions::default()).unwrap()
}

fn drain(queue: &EventQueue) -> Vec<Event> {
    std::iter::from_fn(|| queue.try_recv()).collect()
}

fn name() -> ResName {
    ResName::new(b"r").unwrap()
}

#[test]
fn the_hook_tells_only_holders_in_the_way() {
    let dlm = LocalDlm::new();
    assert!(dlm.hook("fs").is_none());
    let (space, queue) = join(&dlm);
    let hook = dlm.hook("fs").unwrap();
    assert_eq!(hook.bast(&name(), Mode::Ex), 0);
    let id = space.request(&name(), Mode::Pr, Lkf::empty(), 3).unwrap();
    let nl = space.request(&name(), Mode::Nl, Lkf::empty(), 4).unwrap();
    drain(&queue);
    assert_eq!(hook.bast(&name(), Mode::Pr), 0);
    assert_eq!(hook.bast(&name(), Mode::Ex), 1);
    assert_eq!(
        drain(&queue),
        [Event::Bast {
            id,
            token: 3,
            mode: Mode::Ex
        }]
    );
    assert_eq!(hook.locks(), 2);
    space.unlock(nl, Lkf::empty(), None).unwrap();
    assert_eq!(hook.locks(), 1);
    hook.inject(&Event::Fatal(LockError::Left));
    assert_eq!(drain(&queue).last(), Some(&Event::Fatal(LockError::Left)));
    drop((space, queue, dlm));
    assert_eq!(hook.bast(&name(), Mode::Ex), 0);
}

#[test]
fn members_get_slots_and_generations_and_exclude_each_other() {
    let dlm = LocalDlm::new();
    let (one, events_one) = join(&dlm);
    drain(&events_one);
    let (two, events_two) = join(&dlm);
    let seen = drain(&events_one);
    assert_eq!(seen[0], Event::RecoverPrep);
    let Event::RecoverDone {
        ref slots,
        our_slot: 1,
        generation: 2,
    } = seen[1]
    else {
        panic!("{seen:?}");
    };
    assert_eq!(slots.iter().map(|slot| slot.slot).collect::<Vec<_>>(), [1, 2]);
    drain(&events_two);
    let held = one.request(&name(), Mode::Ex, Lkf::empty(), 1).unwrap();
    let wanted = two.request(&name(), Mode::Pr, Lkf::empty(), 2).unwrap();
    assert!(matches!(
        drain(&events_one)[..],
        [Event::Cast(_), Event::Bast { mode: Mode::Pr, .. }]
    ));
    assert_eq!(drain(&events_two), []);
    assert_eq!(
        two.unlock(held, Lkf::empty(), None),
        Err(LockError::NoSuchLock(held))
    );
    one.unlock(held, Lkf::empty(), None).unwrap();
    assert!(
        matches!(drain(&events_two)[..], [Event::Cast(cast)] if cast.id == wanted && cast.mode == Mode::Pr)
    );
}

#[test]
fn a_failed_member_is_named_between_prep_and_done_and_its_locks_go_after_that() {
    let dlm = LocalDlm::new();
    let (one, events_one) = join(&dlm);
    let (two, events_two) = join(&dlm);
    let keeper = two.request(&name(), Mode::Nl, Lkf::VALBLK, 9).unwrap();
    let held = one.request(&name(), Mode::Ex, Lkf::VALBLK, 1).unwrap();
    one.convert(held, Mode::Ex, Lkf::VALBLK, Some(&[5; 32])).unwrap();
    two.convert(keeper, Mode::Ex, Lkf::VALBLK | Lkf::QUECVT, None)
        .unwrap();
    drain(&events_one);
    drain(&events_two);
    one.leave(Leave::AsFailed).unwrap();
    let seen = drain(&events_two);
    assert_eq!(seen[0], Event::RecoverPrep);
    assert!(matches!(seen[1], Event::RecoverSlot { failed } if failed.slot == 1));
    assert!(matches!(&seen[2], Event::RecoverDone { slots, our_slot: 2, .. } if slots.len() == 1));
    let Event::Cast(cast) = seen[3] else {
        panic!("{seen:?}")
    };
    assert_eq!(
        (cast.id, cast.status, cast.sb, cast.lvb),
        (keeper, Status::Granted, SbFlags::VALNOTVALID, Some([5; 32]))
    );
    assert_eq!(seen.len(), 4);
}

#[test]
fn a_clean_leave_names_no_slot_and_frees_it_for_the_next() {
    let dlm = LocalDlm::new();
    let (one, _events_one) = join(&dlm);
    let (_two, events_two) = join(&dlm);
    drain(&events_two);
    one.leave(Leave::Clean).unwrap();
    assert!(matches!(
        drain(&events_two)[..],
        [Event::RecoverPrep, Event::RecoverDone { .. }]
    ));
    let (_three, events_three) = join(&dlm);
    assert!(matches!(
        drain(&events_three)[..],
        [Event::RecoverDone { our_slot: 1, .. }]
    ));
}

#[test]
fn dropping_the_queue_abandons_the_lockspace() {
    let dlm = LocalDlm::new();
    let (one, events_one) = join(&dlm);
    let (two, events_two) = join(&dlm);
    one.request(&name(), Mode::Ex, Lkf::empty(), 1).unwrap();
    drop(events_one);
    drain(&events_two);
    let wanted = two.request(&name(), Mode::Ex, Lkf::empty(), 2).unwrap();
    let seen = drain(&events_two);
    assert!(matches!(
        seen[..],
        [Event::RecoverPrep, Event::RecoverSlot { .. }, Event::RecoverDone { .. }, Event::Cast(cast)]
            if cast.id == wanted && cast.status == Status::Granted
    ));
    assert_eq!(
        one.request(&name(), Mode::Nl, Lkf::empty(), 0),
        Err(LockError::Left)
    );
}

#[test]
fn lockspace_names_have_one_to_sixty_four_bytes() {
    let dlm = LocalDlm::new();
    for bad in [String::new(), "x".repeat(65)] {
        let answer = dlm.join(&bad, &JoinOptions::default()).map(|_| ());
        assert_eq!(answer, Err(LockError::NameLength { len: bad.len() }));
    }
}
