use super::*;
use crate::NodeId;

fn start(seq: u32, joining: bool, gone: &[(u32, bool)]) -> Action {
    let gone = gone.iter().map(|(node, failed)| Gone {
        node: NodeId(*node),
        failed: *failed,
    });
    order(Order::Start(Start {
        seq,
        global_id: 1,
        joining,
        nodir: false,
        members: Vec::new(),
        gone: gone.collect(),
    }))
}

fn order(order: Order) -> Action {
    Action::Engine {
        lockspace: "fs".to_owned(),
        order,
    }
}

fn sifted(hold: &mut Hold, actions: &[Action]) -> Vec<Action> {
    let mut out = Out(actions.to_vec());
    hold.sift(false, &mut out);
    out.0
}

#[test]
fn nothing_is_held_in_ordinary_times() {
    let actions = [
        start(1, true, &[]),
        order(Order::Stop),
        start(2, false, &[(2, true)]),
    ];
    assert_eq!(sifted(&mut Hold::default(), &actions), actions);
}

#[test]
fn a_start_waits_for_the_end_of_the_suspension() {
    let mut hold = Hold::default();
    let actions = [Action::Suspend, start(1, true, &[])];
    assert_eq!(sifted(&mut hold, &actions), [Action::Suspend]);
    assert_eq!(
        sifted(&mut hold, &[Action::Resume]),
        [Action::Resume, start(1, true, &[])]
    );
    assert_eq!(sifted(&mut hold, &[order(Order::Stop)]), [order(Order::Stop)]);
}

#[test]
fn a_start_waits_for_the_end_of_the_backlog() {
    let mut hold = Hold::default();
    let mut out = Out(vec![start(1, true, &[])]);
    hold.sift(true, &mut out);
    assert_eq!(out.0, []);
    hold.sift(false, &mut out);
    assert_eq!(out.0, [start(1, true, &[])]);
}

#[test]
fn an_overtaken_start_is_not_given_but_what_it_told_of_the_gone_is() {
    let mut hold = Hold::default();
    let actions = [
        Action::Suspend,
        start(1, true, &[(2, true), (3, false)]),
        order(Order::Stop),
        Action::Resume,
    ];
    assert_eq!(sifted(&mut hold, &actions), [Action::Suspend, Action::Resume]);
    let next = [start(2, false, &[(3, true)])];
    assert_eq!(
        sifted(&mut hold, &next),
        [start(2, true, &[(3, true), (2, true)])]
    );
    // And only once.
    assert_eq!(sifted(&mut hold, &[start(3, false, &[])]), [start(3, false, &[])]);
}

#[test]
fn who_leaves_is_not_started() {
    let mut hold = Hold::default();
    let actions = [
        Action::Suspend,
        start(1, true, &[]),
        order(Order::Left),
        Action::Resume,
    ];
    let left = [Action::Suspend, order(Order::Left), Action::Resume];
    assert_eq!(sifted(&mut hold, &actions), left);
}
