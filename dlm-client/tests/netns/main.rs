//! Real corosyncs in network namespaces, each with a process of ours: locks while nodes stop, vanish and come back.
//!
//! Needs root, corosync and its client libraries, Pacemaker, the stock `dlm_stonith`, iproute2 and util-linux; where one is
//! missing the tests fail and say which. The judge reads the logs of all nodes at the end: no two ever held what excludes
//! the other.

mod judge;
mod lab;
mod node;
mod pacemaker;
mod power;

use std::time::Duration;

use lab::{Lab, TOKEN, clock};
use rustix::process::Signal;

const LONG: Duration = Duration::from_secs(60);
/// Detection, post_join_delay, the agent and recovery, and as much again for a machine that does other things, too.
const RECOVERY: f64 = 2.0 * (2.2 * TOKEN as f64 / 1000.0 + 2.0 + 2.0);

type Scenario = (&'static str, fn());

const SCENARIOS: [Scenario; 12] = [
    (
        "bad_input_gets_one_line_that_says_what_to_do",
        bad_input_gets_one_line_that_says_what_to_do,
    ),
    (
        "a_node_that_is_not_in_the_nodelist_is_told_what_to_do",
        a_node_that_is_not_in_the_nodelist_is_told_what_to_do,
    ),
    (
        "a_fence_agent_that_never_works_is_named_and_nothing_is_granted",
        a_fence_agent_that_never_works_is_named_and_nothing_is_granted,
    ),
    (
        "daemons_that_start_at_the_same_moment_find_each_other",
        daemons_that_start_at_the_same_moment_find_each_other,
    ),
    (
        "three_nodes_lose_one_in_every_way_and_go_on",
        three_nodes_lose_one_in_every_way_and_go_on,
    ),
    (
        "five_nodes_lose_two_at_once_and_go_on",
        five_nodes_lose_two_at_once_and_go_on,
    ),
    (
        "five_nodes_without_quorum_wait_until_it_is_back",
        five_nodes_without_quorum_wait_until_it_is_back,
    ),
    (
        "the_last_node_goes_on_with_a_quorum_device",
        the_last_node_goes_on_with_a_quorum_device,
    ),
    (
        "two_and_then_one_of_five_go_on_with_a_quorum_device",
        two_and_then_one_of_five_go_on_with_a_quorum_device,
    ),
    (
        "posix_locks_are_the_same_on_all_nodes",
        posix_locks_are_the_same_on_all_nodes,
    ),
    (
        "pacemaker_fences_for_us_and_once",
        pacemaker::pacemaker_fences_for_us_and_once,
    ),
    (
        "without_pacemaker_nothing_is_granted_and_both_nodes_say_what_is_missing",
        pacemaker::without_pacemaker_nothing_is_granted_and_both_nodes_say_what_is_missing,
    ),
];

/// One after the other, those whose name contains the first argument that is no option; or a node's process; or, with
/// `NETNS_STARTS=NUMBER`, only the start of five nodes, so often.
fn main() {
    if std::env::var_os("NETNS_NODE").is_some() {
        return node::process();
    }
    let wanted = std::env::args()
        .skip(1)
        .find(|word| !word.starts_with('-'))
        .unwrap_or_default();
    if let Some(count) = std::env::var_os("NETNS_STARTS") {
        let count: u32 = count
            .to_str()
            .and_then(|text| text.parse().ok())
            .expect("a number");
        return (1..=count).for_each(|round| {
            let begin = std::time::Instant::now();
            let watch = start(5, false);
            println!("start {round}: {:.1} s", begin.elapsed().as_secs_f64());
            drop(watch);
            println!("down after {:.1} s", begin.elapsed().as_secs_f64());
        });
    }
    for (name, scenario) in SCENARIOS.iter().filter(|(name, _)| name.contains(&wanted)) {
        let begin = std::time::Instant::now();
        println!("{name} ...");
        scenario();
        println!("{name}: ok, {:.1} s", begin.elapsed().as_secs_f64());
    }
}

/// Shows what there is when a test fails.
struct Watch(Lab);

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.show();
        }
    }
}

fn members(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    format!(" members {}", ids.join(","))
}

/// The nodes come up for the first time, ours on corosyncs that have found each other.
#[track_caller]
fn up(lab: &mut Lab, all: &[u32]) {
    lab.boot_all(all, false);
    all.iter().for_each(|id| lab.run(*id));
    all_have(lab, all, all, 0.0);
}

fn start(count: u32, qdevice: bool) -> Watch {
    let mut watch = Watch(Lab::new(count, qdevice));
    let all: Vec<u32> = (1..=count).collect();
    up(&mut watch.0, &all);
    for id in all {
        watch.0.wait_line(id, 0.0, "ready", LONG);
    }
    watch
}

/// Waits until `ids` run with `with`, and each of them had a lock since.
#[track_caller]
fn all_have(lab: &Lab, ids: &[u32], with: &[u32], since: f64) -> f64 {
    let mut last = since;
    for id in ids {
        last = last.max(lab.wait_line(*id, since, &members(with), LONG));
    }
    for id in ids {
        lab.wait_line(*id, last, "grant", LONG);
    }
    last
}

/// The others lose a node, fence it and go on, in time; then it comes back as new.
#[track_caller]
fn survive(lab: &mut Lab, lost: u32, since: f64, what: &str) {
    let others: Vec<u32> = (1..=lab.count()).filter(|id| *id != lost).collect();
    let went_on = all_have(lab, &others, &others, since);
    let fenced = lab
        .fences()
        .iter()
        .any(|(time, node)| *node == lost && *time >= since);
    assert!(fenced, "{what}: nobody fenced node {lost}");
    eprintln!("{what}: the others went on after {:.2} s", went_on - since);
    assert!(
        went_on - since < RECOVERY,
        "{what}: the others went on only after {:.2} s",
        went_on - since
    );
}

fn come_back(lab: &mut Lab, id: u32) {
    lab.power_off(id);
    // No machine boots before the others have missed it; what they still send to the old one must not meet the new.
    std::thread::sleep(Duration::from_millis(TOKEN * 3));
    let since = clock();
    lab.power_on(id);
    let all: Vec<u32> = (1..=lab.count()).collect();
    all_have(lab, &all, &all, since);
}

/// Each on a corosync that is alone when its daemon comes, and all at once on one ring.
fn daemons_that_start_at_the_same_moment_find_each_other() {
    for count in [3, 5] {
        for ring_first in [false, true] {
            let mut watch = Watch(Lab::new(count, false));
            let lab = &mut watch.0;
            let all: Vec<u32> = (1..=count).collect();
            let since = clock();
            lab.boot_all(&all, !ring_first);
            if ring_first {
                all.iter().for_each(|id| lab.run(*id));
            }
            let found = all_have(lab, &all, &all, since);
            eprintln!("{count} nodes, ring first: {ring_first}: {:.2} s", found - since);
            assert!(lab.fences().is_empty(), "{:?}", lab.fences());
            judge::judge(lab);
        }
    }
}

fn three_nodes_lose_one_in_every_way_and_go_on() {
    let mut watch = start(3, false);
    let lab = &mut watch.0;

    let since = clock();
    lab.signal(3, None, Signal::STOP);
    survive(lab, 3, since, "freeze");
    let thawed = clock();
    lab.link(3, true);
    lab.signal(3, None, Signal::CONT);
    let fatal = lab.wait_line(3, thawed, "fatal", LONG);
    eprintln!("thaw: fatal after {:.3} s", fatal - thawed);
    come_back(lab, 3);

    let since = clock();
    lab.link(1, false);
    survive(lab, 1, since, "cut");
    lab.link(1, true);
    lab.wait_line(1, since, "fatal", LONG);
    come_back(lab, 1);

    let since = clock();
    lab.signal(2, Some(&lab::ours()), Signal::KILL);
    survive(lab, 2, since, "kill -9");
    come_back(lab, 2);

    let since = clock();
    lab.signal(2, Some("corosync"), Signal::KILL);
    lab.wait_line(2, since, "the membership service is gone", LONG);
    survive(lab, 2, since, "corosync's death");
    come_back(lab, 2);

    let since = clock();
    lab.power_off(1);
    survive(lab, 1, since, "power off");

    for id in [2, 3] {
        lab.tell(id, "quit");
        lab.wait_line(id, 0.0, "left", LONG);
    }
    let grants = judge::judge(lab);
    eprintln!("{grants} grants judged");
    assert!(grants > 500, "only {grants} grants");
}

fn five_nodes_lose_two_at_once_and_go_on() {
    let mut watch = start(5, false);
    let lab = &mut watch.0;
    let since = clock();
    lab.signal(3, Some(&lab::ours()), Signal::KILL);
    survive(lab, 3, since, "kill -9");
    come_back(lab, 3);

    let since = clock();
    lab.signal(5, None, Signal::STOP);
    lab.link(4, false);
    let rest = [1, 2, 3];
    let went_on = all_have(lab, &rest, &rest, since);
    eprintln!(
        "one frozen, one cut off: the others went on after {:.2} s",
        went_on - since
    );
    for lost in [4, 5] {
        let fenced = |(time, node): &(f64, u32)| *node == lost && *time >= since;
        assert!(lab.fences().iter().any(fenced), "nobody fenced node {lost}");
    }
    let back = clock();
    lab.link(4, true);
    lab.link(5, true);
    lab.signal(5, None, Signal::CONT);
    for lost in [4, 5] {
        lab.wait_line(lost, since, "fatal", LONG);
    }
    eprintln!("both know it after {:.2} s", clock() - back);
    let grants = judge::judge(lab);
    eprintln!("{grants} grants judged");
    assert!(grants > 500, "only {grants} grants");
}

fn five_nodes_without_quorum_wait_until_it_is_back() {
    let mut watch = Watch(Lab::new(5, false));
    let lab = &mut watch.0;
    // Long enough for all of them to boot after the quorum is back: whoever is not there by then is fenced, as it must.
    lab.fence_with(15, &lab.agent());
    let all = [1, 2, 3, 4, 5];
    up(lab, &all);
    let since = clock();
    lab.power_off(1);
    lab.power_off(2);
    let went_on = all_have(lab, &[3, 4, 5], &[3, 4, 5], since);
    eprintln!(
        "two of five off: the others went on after {:.2} s",
        went_on - since
    );
    let mut fenced: Vec<u32> = lab.fences().iter().map(|(_, node)| *node).collect();
    fenced.sort_unstable();
    assert_eq!(fenced, [1, 2]);

    let off = clock();
    lab.power_off(5);
    for id in [3, 4] {
        lab.wait_line(id, off, "prepare", LONG);
    }
    // Long enough for a recovery, had there been a quorum.
    let stopped = clock();
    std::thread::sleep(Duration::from_secs_f64(RECOVERY));
    for id in [3, 4] {
        let late = lab
            .lines(id)
            .into_iter()
            .find(|line| line.contains("grant") && lab::time_of(line) > stopped);
        assert_eq!(late, None, "node {id} goes on without a quorum");
    }
    assert_eq!(lab.fences().len(), 2, "nobody is fenced without a quorum");

    let since = clock();
    for id in [1, 2, 5] {
        lab.power_on(id);
    }
    let whole = all_have(lab, &all, &all, since);
    eprintln!("whole again after {:.2} s", whole - since);
    let grants = judge::judge(lab);
    eprintln!("{grants} grants judged");
    assert!(grants > 500, "only {grants} grants");
}

fn the_last_node_goes_on_with_a_quorum_device() {
    with_a_quorum_device(3, &[&[1, 2]]);
}

fn two_and_then_one_of_five_go_on_with_a_quorum_device() {
    with_a_quorum_device(5, &[&[1, 2, 3], &[4]]);
}

/// Nodes lose their power, those of a group at once; those that are left go on by the votes of the device.
fn with_a_quorum_device(count: u32, losses: &[&[u32]]) {
    let mut watch = start(count, true);
    let lab = &mut watch.0;
    let mut left: Vec<u32> = (1..=count).collect();
    for id in &left {
        let all = 2 * count - 1;
        lab::wait_for("the device's votes", LONG, || {
            (lab.votes(*id)? == all).then_some(())
        });
    }
    let mut off = Vec::new();
    for lost in losses {
        let since = clock();
        lost.iter().for_each(|id| lab.power_off(*id));
        left.retain(|id| !lost.contains(id));
        off.extend_from_slice(lost);
        let went_on = all_have(lab, &left, &left, since);
        eprintln!("{lost:?} off: {left:?} went on after {:.2} s", went_on - since);
        assert!(
            went_on - since < RECOVERY + 12.0,
            "{left:?} went on only after {:.2} s",
            went_on - since
        );
        let mut fenced: Vec<u32> = lab.fences().iter().map(|(_, node)| *node).collect();
        fenced.sort_unstable();
        assert_eq!(fenced, off, "who was fenced when {off:?} were off");
    }
    assert!(judge::judge(lab) > 100);
}

fn bad_input_gets_one_line_that_says_what_to_do() {
    let mut watch = start(2, false);
    let lab = &mut watch.0;
    let says = |line: String, what: &[&str]| {
        eprintln!("{line}");
        what.iter()
            .for_each(|what| assert!(line.contains(what), "{line:?} does not say {what:?}"));
    };
    says(
        lab.attempt(2, "", lab::CLUSTER),
        &["10.77.0.2:21064", "stop it first"],
    );
    says(
        lab.attempt(2, "port=21065\n", "other"),
        &["\"other\"", "\"lab\"", "correct the cluster's name"],
    );
    says(
        lab.attempt(2, "post_join_delay=2\nfence_al fence_x\n", lab::CLUSTER),
        &["dlm.conf line 2:", "fence_al", ";"],
    );
    let since = clock();
    lab.signal(2, Some("corosync"), Signal::KILL);
    let fatal = lab.wait_line(2, since, " fatal ", LONG);
    let lines = lab.lines(2);
    let line = lines
        .iter()
        .find(|line| line.contains(" fatal "))
        .expect("was there");
    says(line.clone(), &["the membership service is gone"]);
    let late = lines
        .iter()
        .find(|line| line.contains("grant") && lab::time_of(line) > fatal);
    assert_eq!(late, None, "a grant after the end");
    says(
        lab.attempt(2, "port=21065\n", lab::CLUSTER),
        &["corosync is not available", "start corosync"],
    );
    judge::judge(lab);
}

/// Corosync takes a nodelist without the node that reads it when it is told to read its configuration again.
fn a_node_that_is_not_in_the_nodelist_is_told_what_to_do() {
    let mut watch = Watch(Lab::new(1, false));
    let lab = &mut watch.0;
    lab.boot(1);
    lab::wait_for("corosync", LONG, || (lab.votes(1)? == 1).then_some(()));
    lab.reload(1, "nodeid: 1\n", "nodeid: 9\n");
    let line = lab.attempt(1, "", lab::CLUSTER);
    eprintln!("{line}");
    assert_eq!(
        line,
        "corosync is not available: our node id 1 is not in its nodelist; give each node of corosync.conf a nodeid and \
         start corosync anew"
    );
}

fn a_fence_agent_that_never_works_is_named_and_nothing_is_granted() {
    for (agent, says) in [
        ("/nowhere/fence_gone", "cannot be run on node"),
        ("false", "last failure 1 on node"),
    ] {
        let mut watch = Watch(Lab::new(3, false));
        let lab = &mut watch.0;
        lab.fence_with(2, agent);
        let all = [1, 2, 3];
        up(lab, &all);
        let off = clock();
        lab.power_off(3);
        for id in [1, 2] {
            lab.wait_line(id, off, "prepare", LONG);
        }
        let stopped = clock();
        std::thread::sleep(Duration::from_secs_f64(RECOVERY));
        let asked = clock();
        for id in [1, 2] {
            lab.tell(id, "fencing");
            lab.wait_line(id, asked, "for node 3 to be fenced", LONG);
            let lines = lab.lines(id);
            let line = lines
                .iter()
                .find(|line| line.contains(" fencing "))
                .expect("was there");
            eprintln!("{line}");
            for what in [agent, says, "gfs2ctl dlm fence-ack 3"] {
                // Who does not run the agent does not know its name.
                assert!(id != 1 || line.contains(what), "{line:?} does not say {what:?}");
            }
            let late = lines
                .iter()
                .find(|line| line.contains("grant") && lab::time_of(line) > stopped);
            assert_eq!(late, None, "node {id} goes on though nobody was fenced");
        }
        let since = clock();
        lab.acknowledge(2, 3);
        all_have(lab, &[1, 2], &[1, 2], since);
        judge::judge(lab);
    }
}

fn posix_locks_are_the_same_on_all_nodes() {
    let mut watch = start(3, false);
    let lab = &mut watch.0;
    let mut token = 0;
    let mut ask = |lab: &mut Lab, id: u32, rest: &str| {
        token += 1;
        lab.tell(id, &format!("plock {token} {rest}"));
        format!(" plock {token} ")
    };
    let done = |lab: &Lab, id: u32, answer: &str, status: &str| {
        lab.wait_line(id, 0.0, &format!("{answer}{status}"), LONG);
    };
    // Ping-pong: two nodes walk over three bytes, each taking the next before it gives up the last.
    for (id, byte) in [(1, 0), (2, 1)] {
        let answer = ask(lab, id, &format!("lock 7 {byte} {byte} {id} w"));
        done(lab, id, &answer, "Granted");
    }
    let mut at = [0, 1];
    for round in 0..30 {
        let id = if round % 2 == 0 { 2 } else { 1 };
        let held = &mut at[id as usize - 1];
        let next = (*held + 1) % 3;
        let answer = ask(lab, id, &format!("lock 7 {next} {next} {id} w"));
        done(lab, id, &answer, "Granted");
        let answer = ask(lab, id, &format!("unlock 7 {held} {held} {id} w"));
        done(lab, id, &answer, "Unlocked");
        *held = next;
    }
    for id in [1, 2] {
        let answer = ask(lab, id, &format!("unlock 7 0 9 {id} w"));
        done(lab, id, &answer, "Unlocked");
    }
    // A range is split by an unlock, and cut where the same owner locks anew (as the stock daemon does it, both stay); a waiter of another node gets what falls free.
    let answer = ask(lab, 1, "lock 8 0 99 1 w");
    done(lab, 1, &answer, "Granted");
    let answer = ask(lab, 1, "unlock 8 40 59 1 w");
    done(lab, 1, &answer, "Unlocked");
    let waiter = ask(lab, 2, "lock 8 50 69 2 w");
    let refused = ask(lab, 3, "try 8 60 60 3 r");
    done(lab, 3, &refused, "Again");
    let answer = ask(lab, 1, "unlock 8 60 69 1 w");
    done(lab, 1, &answer, "Unlocked");
    done(lab, 2, &waiter, "Granted");
    let answer = ask(lab, 1, "lock 8 30 49 1 w");
    done(lab, 1, &answer, "Granted");
    let expected = "8 WR 0-29 nodeid 1 | 8 WR 30-49 nodeid 1 | 8 WR 70-99 nodeid 1 | 8 WR 50-69 nodeid 2";
    same_plocks(lab, &[1, 2, 3], expected);
    // A node that dies loses its own; one that comes gets all.
    let since = clock();
    lab.power_off(1);
    survive(lab, 1, since, "power off");
    same_plocks(lab, &[2, 3], "8 WR 50-69 nodeid 2");
    lab.power_on(1);
    all_have(lab, &[1, 2, 3], &[1, 2, 3], since);
    same_plocks(lab, &[1, 2, 3], "8 WR 50-69 nodeid 2");
    judge::judge(lab);
}

/// All nodes list these locks; the order of owners in a file is not told.
fn same_plocks(lab: &mut Lab, ids: &[u32], expected: &str) {
    let sorted = |text: &str| {
        let mut locks: Vec<String> = text
            .split(" | ")
            .map(|lock| lock.split(" pid ").next().unwrap_or_default().to_owned())
            .filter(|lock| !lock.is_empty())
            .collect();
        locks.sort();
        locks
    };
    for id in ids {
        let since = clock();
        lab.tell(*id, "plocks");
        let time = lab.wait_line(*id, since, " plocks ", LONG);
        let lines = lab.lines(*id);
        let line = lines
            .iter()
            .find(|line| line.contains(" plocks ") && lab::time_of(line) >= time);
        let listed = line
            .and_then(|line| line.split_once(" plocks "))
            .expect("was there")
            .1;
        assert_eq!(sorted(listed), sorted(expected), "node {id}");
    }
}
