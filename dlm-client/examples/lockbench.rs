//! How fast the wire backend is between nodes of this process: `cargo run --release -p dlm-client --example lockbench`.
//!
//! Prints, per kind of connection: uncontended request and unlock with the master here and elsewhere, and how often a
//! resource in EX changes hands between two nodes that both want it.

#[path = "../tests/cluster/mod.rs"]
mod cluster;

use std::time::{Duration, Instant};

use cluster::{Cluster, Joined, Wires, join};
use dlm_client::wire::Version;
use dlm_client::{Cast, Event, Lkf, Mode, ResName, Status};

const CONF: [&str; 2] = [
    "lockspace bench nodir=1\nmaster bench node=1\n",
    "lockspace bench nodir=1\nmaster bench node=2\n",
];

fn two_nodes(wires: Wires, conf: &str) -> [Joined; 2] {
    let cluster = Cluster::new(2, wires, conf);
    let one = join(cluster.node(1, Version::V3_2), "bench");
    one.wait_recovered();
    let two = join(cluster.node(2, Version::V3_2), "bench");
    two.wait_recovered();
    one.wait_recovered();
    [one, two]
}

fn cast(node: &Joined, now: Option<Cast>) -> Cast {
    if let Some(cast) = now {
        return cast;
    }
    match node.queue.recv() {
        Some(Event::Cast(cast)) => cast,
        other => panic!("expected a Cast, found {other:?}"),
    }
}

/// Request and unlock, one after the other, over 64 names as GFS2 makes them.
fn pairs(node: &Joined, count: u32) -> Duration {
    let names: Vec<ResName> = (0..64)
        .map(|n| ResName::new(format!("{:8x}{n:16x}", 2).as_bytes()).expect("24 bytes"))
        .collect();
    let begin = Instant::now();
    for name in names.iter().cycle().take(usize::try_from(count).expect("small")) {
        let (id, now) = node
            .space
            .request_now(name, Mode::Ex, Lkf::empty(), 1)
            .expect("accepted");
        assert_eq!(cast(node, now).status, Status::Granted);
        node.space.unlock(id, Lkf::empty(), None).expect("accepted");
        assert_eq!(cast(node, None).status, Status::Unlocked);
    }
    begin.elapsed()
}

/// Converts to EX, gives it up when told to, and counts how often it was had.
fn want_ex(node: &Joined, until: Instant) -> u32 {
    let name = ResName::new(b"ping-pong").expect("a name");
    let (id, now) = node
        .space
        .request_now(&name, Mode::Nl, Lkf::empty(), 1)
        .expect("accepted");
    assert_eq!(cast(node, now).mode, Mode::Nl);
    node.space
        .convert(id, Mode::Ex, Lkf::empty(), None)
        .expect("accepted");
    let mut had = 0;
    let mut mode = Mode::Nl;
    loop {
        match node
            .queue
            .recv_timeout(Duration::from_secs(10))
            .expect("an event")
        {
            Event::Cast(cast) if cast.mode == Mode::Ex => {
                (mode, had) = (Mode::Ex, had + 1);
                if Instant::now() > until {
                    node.space
                        .convert(id, Mode::Nl, Lkf::empty(), None)
                        .expect("accepted");
                    return had;
                }
            }
            Event::Cast(_) => {
                mode = Mode::Nl;
                node.space
                    .convert(id, Mode::Ex, Lkf::empty(), None)
                    .expect("accepted");
            }
            Event::Bast { .. } if mode == Mode::Ex => node
                .space
                .convert(id, Mode::Nl, Lkf::empty(), None)
                .expect("accepted"),
            Event::Bast { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

fn main() {
    for wires in [Wires::Memory, Wires::Tcp] {
        for (conf, what, count) in [(CONF[1], "here", 200_000), (CONF[0], "elsewhere", 20_000)] {
            let [_one, two] = two_nodes(wires, conf);
            pairs(&two, count / 10);
            let took = pairs(&two, count);
            println!(
                "{wires:?}, master {what}: {:.0} pairs/s, {:?} a pair",
                f64::from(count) / took.as_secs_f64(),
                took / count
            );
        }
        let [one, two] = two_nodes(wires, CONF[0]);
        let until = Instant::now() + Duration::from_secs(2);
        let had = std::thread::scope(|scope| {
            let other = scope.spawn(|| want_ex(&one, until));
            want_ex(&two, until) + other.join().expect("no panic")
        });
        println!(
            "{wires:?}, EX between two nodes: {} changes of hands a second",
            had / 2
        );
    }
}
