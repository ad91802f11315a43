//! N lock daemons in a simulated cluster, from a seed: joins, leaves, deaths, pauses, partitions, slow fencing.
//!
//! Oracles, checked with every start of a lock engine: whoever is not among the members and was once started is dead,
//! fenced, or left cleanly; all members are stopped or started with the same members; a node that was fenced never
//! starts. At the end, when all is whole again: every lockspace runs everywhere with the same members, the POSIX locks
//! are listed alike by all, and every operation on them has ended or is listed as waiting.

mod world;

use dlm_client::NodeId;
use dlm_client::controld::codec::{Body, Header, Message, PlockInfo, PlockKind, global_id};
use world::{Fault, Setup, World};

fn run(setup: Setup, seed: u64, steps: u32) -> World {
    let mut world = World::new(setup, seed);
    for _ in 0..steps {
        world.disturb();
        world.run(60);
    }
    world.heal();
    world
}

/// Seeds of each setup: `DLM_SEEDS` many from `DLM_SEED` on.
fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("DLM_SEEDS").map_or(1500, |text| text.parse().expect("DLM_SEEDS is a number"));
    let first = std::env::var("DLM_SEED").map_or(0, |text| text.parse().expect("DLM_SEED is a number"));
    first..first + count
}

#[test]
fn two_daemons_form_a_lockspace_and_agree() {
    let mut world = World::new(Setup::nodes(2), 1);
    world.boot(NodeId(1));
    world.boot(NodeId(2));
    world.heal();
    world.expect_running("fs", &[NodeId(1), NodeId(2)]);
    world.leave(NodeId(1), "fs");
    world.run_for(120);
    world.expect_running("fs", &[NodeId(2)]);
    assert_eq!(world.fenced(), 0, "a clean leave must not be fenced");
}

/// Nobody has anything more to say about a coming that all have said START for, so the next one need not wait.
#[test]
fn who_left_in_order_comes_back_at_once() {
    let all = [1, 2, 3].map(NodeId);
    for seed in 0..20 {
        let mut world = World::new(Setup::nodes(3), seed);
        world.boot_all();
        world.heal();
        for _ in 0..5 {
            world.leave(NodeId(2), "fs");
            world.run_at_once();
            world.expect_running("fs", &[1, 3].map(NodeId));
            world.join(NodeId(2), "fs");
            world.run_at_once();
            world.expect_running("fs", &all);
        }
        world.heal();
        world.expect_running("fs", &all);
    }
}

#[test]
fn a_dead_node_is_fenced_before_the_others_go_on_and_can_come_back() {
    let mut world = World::new(Setup::nodes(3), 2);
    world.boot_all();
    world.heal();
    let before = world.fenced();
    world.fault(Fault::ProcessDeath, NodeId(3));
    world.run_for(120);
    world.expect_running("fs", &[NodeId(1), NodeId(2)]);
    assert_eq!(world.fenced(), before + 1);
    world.heal();
    world.expect_running("fs", &[NodeId(1), NodeId(2), NodeId(3)]);
}

/// What a daemon sent before it died and came back is nothing to those who know the new one.
#[test]
fn a_message_of_another_life_of_its_daemon_is_dropped() {
    let (one, two) = (NodeId(1), NodeId(2));
    let mut world = World::new(Setup::nodes(2), 3);
    world.boot_all();
    world.heal();
    let forged = |world: &World| {
        let lines = world.plock_lines(one, "fs").into_iter();
        let of = lines.filter(|line| line.starts_with("777777 WR 0-9 nodeid 2 pid 5 "));
        of.count()
    };
    let lock = |life: u64| Message {
        header: Header {
            version: [3, 1, 1],
            from: 2,
            global_id: global_id("fs"),
            stamp: life << 32,
            ..Header::default()
        },
        body: Body::Plock(PlockInfo {
            kind: PlockKind::Lock,
            exclusive: true,
            wait: false,
            flags: 0,
            pid: 5,
            node: two,
            result: 0,
            lockspace: global_id("fs"),
            number: 777_777,
            start: 0,
            end: 9,
            owner: 1,
        }),
    };
    // The lives of this world have the numbers 1 and 2.
    world.forge(one, "fs", two, &lock(99));
    assert_eq!(forged(&world), 0);
    // The same without a stamp, as of a stock daemon, is obeyed.
    world.forge(one, "fs", two, &lock(0));
    assert_eq!(forged(&world), 1);
}

#[test]
fn a_paused_node_learns_that_it_was_given_up_and_starts_nothing() {
    for seed in 0..30 {
        let mut setup = Setup::nodes(3);
        setup.storage_fencing = true;
        let mut world = World::new(setup, seed);
        world.boot_all();
        world.heal();
        world.fault(Fault::Pause, NodeId(2));
        world.run_for(120);
        world.expect_running("fs", &[NodeId(1), NodeId(3)]);
        world.fault(Fault::Resume, NodeId(2));
        world.run_for(120);
        assert!(world.is_fatal(NodeId(2)), "seed {seed}: the thawed node is alive");
        world.expect_running("fs", &[NodeId(1), NodeId(3)]);
    }
}

#[test]
fn a_minority_stops_and_the_majority_goes_on() {
    for seed in 0..30 {
        let mut world = World::new(Setup::nodes(5), seed);
        world.boot_all();
        world.heal();
        world.split(&[NodeId(1), NodeId(2)]);
        world.run_for(120);
        world.expect_running("fs", &[NodeId(3), NodeId(4), NodeId(5)]);
        world.heal();
    }
}

#[test]
fn a_minority_that_meets_new_daemons_goes_on_with_them() {
    for seed in 0..30 {
        let mut world = World::new(Setup::nodes(5), seed);
        world.boot_all();
        world.heal();
        for id in [1, 2, 5] {
            world.fault(Fault::PowerOff, NodeId(id));
        }
        world.run_for(30);
        world.expect_running("fs", &[]);
        // They come alone, and find the others when their rings merge.
        for id in [1, 2] {
            world.boot_with(NodeId(id), None);
        }
        world.run(50);
        world.merge();
        world.run_for(120);
        world.expect_running("fs", &[1, 2, 3, 4].map(NodeId));
        for id in [3, 4] {
            assert!(!world.is_fatal(NodeId(id)), "seed {seed}: node {id} gave up");
        }
        world.heal();
    }
}

/// Node 2 comes and dies, in the best case before it said a word; node 3 came in between and cannot know.
#[test]
fn whoever_came_before_knows_that_a_node_had_no_locks_yet() {
    let mut reassured = 0;
    for seed in 0..30 {
        let mut world = World::new(Setup::nodes(3), seed);
        world.boot(NodeId(1));
        world.boot(NodeId(3));
        world.run_for(60);
        world.expect_running("fs", &[1, 3].map(NodeId));
        world.fault(Fault::PowerOff, NodeId(3));
        world.boot(NodeId(2));
        while !world.sees(NodeId(1), NodeId(2)) {
            world.run(1);
        }
        world.fault(Fault::Pause, NodeId(2));
        world.boot(NodeId(3));
        while !world.sees(NodeId(3), NodeId(2)) {
            world.run(1);
        }
        let before = world.fenced();
        world.fault(Fault::ProcessDeath, NodeId(2));
        world.run_for(60);
        world.expect_running("fs", &[1, 3].map(NodeId));
        let fenced = world.fenced() - before;
        if world.trace().iter().any(|line| line.contains("had no locks yet")) {
            reassured += 1;
            assert_eq!(fenced, 0, "seed {seed}");
        }
    }
    assert!(reassured > 5, "only {reassured} of 30");
}

#[test]
fn an_even_split_that_heals_keeps_the_side_of_the_lowest_node() {
    for seed in 0..30 {
        let mut world = World::new(Setup::nodes(4), seed);
        world.boot_all();
        world.heal();
        world.split(&[NodeId(2), NodeId(3)]);
        world.run_for(120);
        world.expect_running("fs", &[]);
        world.merge();
        world.run_for(120);
        let fatal: Vec<bool> = (1..=4).map(|id| world.is_fatal(NodeId(id))).collect();
        assert_eq!(fatal, [false, true, true, false], "seed {seed}");
        world.heal();
    }
}

#[test]
fn random_histories_of_three_nodes_hold_the_oracles() {
    for seed in seeds() {
        run(Setup::nodes(3), seed, 25);
    }
}

#[test]
fn random_histories_of_five_nodes_hold_the_oracles() {
    for seed in seeds() {
        run(Setup::nodes(5), seed, 20);
    }
}

#[test]
fn random_histories_of_two_nodes_hold_the_oracles() {
    for seed in seeds() {
        run(Setup::nodes(2), seed, 25);
    }
}

#[test]
fn random_histories_with_storage_fencing_hold_the_oracles() {
    for seed in seeds() {
        let mut setup = Setup::nodes(4);
        setup.storage_fencing = true;
        run(setup, seed, 20);
    }
}

#[test]
fn random_histories_without_startup_fencing_hold_the_oracles() {
    for seed in seeds() {
        let mut setup = Setup::nodes(3);
        setup.startup_fencing = false;
        run(setup, seed, 25);
    }
}

#[test]
fn a_seed_replays_exactly() {
    let trace = |seed| run(Setup::nodes(4), seed, 15).trace();
    for seed in 0..5 {
        let first = trace(seed);
        assert!(first.len() > 300, "{} lines", first.len());
        assert!(first == trace(seed), "seed {seed}");
    }
}
