//! What a node must conclude from what the lab saw corosync tell (left and joined lists; quorum is never lost).

use super::*;
use crate::membership::{NodeInfo, RingId};

const US: NodeId = NodeId(3);

fn safety(nodes: u32, qdevice: bool) -> (Safety, Cluster) {
    let info = |id| NodeInfo {
        node: NodeId(id),
        name: String::new(),
    };
    let config = ClusterConfig {
        name: "c".to_owned(),
        us: US,
        nodes: (1..=nodes).map(info).collect(),
        two_node: nodes == 2,
        qdevice,
        token: Duration::from_secs(1),
    };
    let mut cluster = Cluster::default();
    let all: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
    quorum(&mut Safety::new(&config, 7), &mut cluster, true, &all);
    (Safety::new(&config, 7), cluster)
}

fn at(millis: u64) -> Now {
    Now {
        mono: Duration::from_millis(millis),
        wall: 0,
    }
}

fn quorum(safety: &mut Safety, cluster: &mut Cluster, quorate: bool, members: &[NodeId]) {
    safety.on_quorum(quorate, members);
    let ring = RingId { node: US, seq: 4 };
    cluster.on_quorum(at(0), quorate, ring, members, &[]);
}

fn ids(nodes: &[u32]) -> Vec<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

fn with(nodes: &[u32], reason: Reason) -> Vec<(NodeId, Reason)> {
    nodes.iter().map(|node| (NodeId(*node), reason)).collect()
}

fn left(safety: &mut Safety, cluster: &Cluster, stay: &[u32], gone: &[u32]) -> Option<Fatal> {
    let gone = with(gone, Reason::NodeDown);
    let mut out = Out::default();
    let news = News {
        members: &ids(stay),
        joined: &[],
        left: &gone,
    };
    safety.on_confchg(at(9000), cluster, true, &news, &mut out)
}

/// What comes of nodes that come, and then say that they have state.
fn back(safety: &mut Safety, cluster: &Cluster, all: &[u32], come: &[u32], reason: Reason) -> Option<Fatal> {
    let mut out = Out::default();
    let come = with(come, reason);
    let news = News {
        members: &ids(all),
        joined: &come,
        left: &[],
    };
    let fatal = safety.on_confchg(at(9000), cluster, true, &news, &mut out);
    assert_eq!(fatal, None, "nothing was said yet");
    assert_eq!(out.0.contains(&Action::Suspend), safety.is_undecided());
    come.iter().find_map(|(node, _)| safety.on_protocol(*node, true))
}

#[test]
fn peers_that_go_and_come_back_without_word_of_the_quorum_have_evicted_us() {
    let (mut safety, cluster) = safety(3, false);
    assert_eq!(left(&mut safety, &cluster, &[3], &[1, 2]), None);
    let fatal = back(&mut safety, &cluster, &[1, 2, 3], &[1, 2], Reason::NodeUp);
    assert_eq!(fatal, Some(Fatal::Evicted { peers: ids(&[1]) }));
}

#[test]
fn peers_that_come_back_without_state_have_evicted_nobody_and_until_they_say_so_nothing_is_written() {
    let (mut safety, mut cluster) = safety(5, false);
    assert_eq!(left(&mut safety, &cluster, &[3, 4], &[1, 2, 5]), None);
    quorum(&mut safety, &mut cluster, false, &ids(&[3, 4]));
    let mut out = Out::default();
    let come = with(&[1, 2], Reason::NodeUp);
    let all = ids(&[1, 2, 3, 4]);
    let news = News {
        members: &all,
        joined: &come,
        left: &[],
    };
    let fatal = safety.on_confchg(at(9000), &cluster, true, &news, &mut out);
    assert!(fatal.is_none() && out.0.contains(&Action::Suspend) && safety.is_undecided());
    quorum(&mut safety, &mut cluster, true, &all);
    safety.marked(Mark::default());
    let resumed = |safety: &mut Safety| {
        let mut out = Out::default();
        safety.heard = at(9000).mono;
        safety.resume(at(9000), |_| true, &mut out);
        out.0 == [Action::Resume]
    };
    assert_eq!(safety.on_protocol(NodeId(1), false), None);
    assert!(!resumed(&mut safety) && safety.is_undecided(), "node 2 is silent");
    let mut doomed = left(&mut safety, &cluster, &[1, 3, 4], &[2]);
    assert!(doomed.is_none() && !safety.is_undecided(), "it is gone again");
    assert!(!resumed(&mut safety), "it may be that we are");
    quorum(&mut safety, &mut cluster, true, &ids(&[1, 3, 4]));
    assert!(resumed(&mut safety));
    doomed = safety.on_protocol(NodeId(1), true);
    assert_eq!(doomed, None, "it has got its state with us");
}

#[test]
fn a_survivor_that_was_quorate_without_the_other_goes_on() {
    for quorum_first in [false, true] {
        let (mut safety, mut cluster) = safety(3, false);
        if quorum_first {
            quorum(&mut safety, &mut cluster, true, &ids(&[2, 3]));
        }
        assert_eq!(left(&mut safety, &cluster, &[2, 3], &[1]), None);
        if !quorum_first {
            quorum(&mut safety, &mut cluster, true, &ids(&[2, 3]));
        }
        let fatal = back(&mut safety, &cluster, &[1, 2, 3], &[1], Reason::NodeUp);
        assert_eq!(fatal, None, "quorum first: {quorum_first}");
    }
}

#[test]
fn a_node_that_was_started_anew_has_evicted_nobody() {
    let (mut safety, cluster) = safety(3, false);
    assert_eq!(left(&mut safety, &cluster, &[2, 3], &[1]), None);
    assert_eq!(back(&mut safety, &cluster, &[1, 2, 3], &[1], Reason::Join), None);
}

#[test]
fn a_minority_that_knew_it_is_evicted_and_an_even_split_keeps_the_lowest_side() {
    for (nodes, qdevice, stay, gone, survives) in [
        (3, false, &[3][..], &[1, 2][..], false),
        (4, false, &[3, 4], &[1, 2], false),
        (4, false, &[1, 3], &[2, 4], true),
        (4, true, &[1, 3], &[2, 4], false),
    ] {
        let (mut safety, mut cluster) = safety(nodes, qdevice);
        assert_eq!(left(&mut safety, &cluster, stay, gone), None);
        quorum(&mut safety, &mut cluster, false, &ids(stay));
        let all: Vec<u32> = (1..=nodes).collect();
        let fatal = back(&mut safety, &cluster, &all, gone, Reason::NodeUp);
        assert_eq!(fatal.is_none(), survives, "{nodes} {qdevice} {stay:?}: {fatal:?}");
    }
}

#[test]
fn a_pause_before_peers_go_means_that_it_was_us() {
    let (mut safety, cluster) = safety(2, false);
    let mut out = Out::default();
    safety.on_turn(at(1000), true, &mut out);
    safety.on_turn(at(2400), true, &mut out);
    assert_eq!(safety.paused, None);
    safety.on_turn(at(6000), true, &mut out);
    let fatal = left(&mut safety, &cluster, &[3], &[1]);
    let pause = Duration::from_millis(3600);
    assert_eq!(fatal, Some(Fatal::Paused { pause }));
}

#[test]
fn silence_of_our_own_suspends_until_a_fresh_heartbeat_comes_back() {
    let (mut safety, _) = safety(3, false);
    safety.on_beat_confchg(at(0), &ids(&[3]));
    let mut out = Out::default();
    let mut beats = Vec::new();
    for turn in 1..=50 {
        safety.on_turn(at(turn * 100), true, &mut out);
    }
    for action in &out.0 {
        if let Action::Send { bytes, .. } = action {
            beats.push(Message::decode(bytes).unwrap());
        }
    }
    assert_eq!(
        out.0.iter().filter(|action| **action == Action::Suspend).count(),
        1
    );
    let resumed = |safety: &mut Safety, passed: bool| {
        let mut out = Out::default();
        safety.resume(at(5000), |_| passed, &mut out);
        out.0 == [Action::Resume]
    };
    assert!(safety.wants_mark());
    safety.marked(Mark::default());
    safety.on_beat(US, &beats[0]);
    assert!(!resumed(&mut safety, true), "sent too long ago");
    let mut stranger = beats.last().unwrap().clone();
    stranger.header.stamp = 0;
    safety.on_beat(US, &stranger);
    assert!(!resumed(&mut safety, true), "of another life");
    safety.on_beat(US, beats.last().unwrap());
    assert!(!resumed(&mut safety, false), "there may be more to tell");
    assert!(resumed(&mut safety, true));
}

#[test]
fn a_node_that_stood_still_is_suspended_at_once() {
    let (mut safety, _) = safety(3, false);
    let mut out = Out::default();
    safety.on_turn(at(1000), true, &mut out);
    safety.on_turn(at(2700), true, &mut out);
    assert!(out.0.contains(&Action::Suspend) && safety.is_suspended());
}

#[test]
fn peers_that_come_back_without_having_given_us_up_do_not_keep_a_node_suspended() {
    let (mut safety, cluster) = safety(3, false);
    let gone = with(&[1, 2], Reason::NodeDown);
    let up = with(&[1, 2], Reason::NodeUp);
    let mut out = Out::default();
    let all = ids(&[1, 2, 3]);
    for (members, joined, left) in [(&all[2..], &[][..], &gone[..]), (&all[..], &up[..], &[][..])] {
        let news = News {
            members,
            joined,
            left,
        };
        let fatal = safety.on_confchg(at(0), &cluster, false, &news, &mut out);
        assert_eq!(fatal, None);
    }
    assert!(out.0.is_empty(), "{out:?}");
    assert!(safety.apart.is_empty());
}
