//! Goal: what crosses the wire costs what it must: a message each way for a request and for an unlock, one write, one
//! read and one wake-up for each, one word to the reader. Method: two nodes over loopback TCP, and the node's own counts;
//! nothing is timed.

mod cluster;

use std::time::Duration;

use cluster::{Cluster, Joined, Wires, join};
use dlm_client::backend::wire::Observer;
use dlm_client::transport::Traffic;
use dlm_client::wire::Version;
use dlm_client::{Cast, Event, Lkf, LockId, Mode, ResName, Status};

const ROUNDS: u64 = 400;
/// Acknowledgements every 64 messages, the hourly work of a lockspace, and the end of what was before.
const BESIDES: u64 = ROUNDS / 8;
const LONG: Duration = Duration::from_secs(60);

struct Node {
    joined: Joined,
    observer: Observer,
}

/// Two nodes of a lockspace whose resources all have node 1 as their master.
fn nodes(wires: Wires) -> [Node; 2] {
    let cluster = Cluster::new(2, wires, "lockspace cost nodir=1\nmaster cost node=1\n");
    let node = |id| {
        let dlm = cluster.node(id, Version::V3_2);
        let observer = dlm.observer();
        let joined = join(dlm, "cost");
        joined.wait_recovered();
        Node { joined, observer }
    };
    let (one, two) = (node(1), node(2));
    one.joined.wait_recovered();
    [one, two]
}

impl Node {
    fn event(&self) -> Event {
        let event = self.joined.queue.recv_timeout(LONG);
        event.unwrap_or_else(|| panic!("no event in {LONG:?}"))
    }

    #[track_caller]
    fn cast(&self, status: Status) -> Cast {
        match self.event() {
            Event::Cast(cast) if cast.status == status => cast,
            other => panic!("{other:?} instead of {status:?}"),
        }
    }

    #[track_caller]
    fn bast(&self) {
        let event = self.event();
        assert!(matches!(event, Event::Bast { mode: Mode::Ex, .. }), "{event:?}");
    }

    fn convert(&self, id: LockId, mode: Mode) {
        let accepted = self.joined.space.convert(id, mode, Lkf::empty(), None);
        accepted.expect("accepted");
    }

    fn lock(&self, name: &[u8], mode: Mode) -> LockId {
        let name = ResName::new(name).expect("a name");
        let accepted = self.joined.space.request(&name, mode, Lkf::empty(), 1);
        let id = accepted.expect("accepted");
        self.cast(Status::Granted);
        id
    }
}

/// What both did meanwhile.
fn counted(nodes: &[Node; 2], act: impl FnOnce()) -> [Traffic; 2] {
    let before = [&nodes[0], &nodes[1]].map(|node| node.observer.traffic());
    act();
    let after = [&nodes[0], &nodes[1]].map(|node| node.observer.traffic());
    [0, 1].map(|at| {
        let (old, mut new) = (before[at], after[at]);
        new.sent -= old.sent;
        new.received -= old.received;
        new.writes -= old.writes;
        new.reads -= old.reads;
        new.turns -= old.turns;
        new.told -= old.told;
        new
    })
}

#[track_caller]
fn at_most(what: &str, found: u64, limit: u64) {
    assert!(
        found <= limit + BESIDES,
        "{what}: {found} in {ROUNDS} rounds, {limit} are enough"
    );
}

#[test]
fn a_remote_request_and_unlock_cost_four_messages() {
    for wires in [Wires::Memory, Wires::Tcp] {
        pairs_cost_four_messages(&nodes(wires), wires);
    }
}

fn pairs_cost_four_messages(nodes: &[Node; 2], wires: Wires) {
    nodes[1].lock(b"first", Mode::Ex);
    let [master, holder] = counted(nodes, || {
        for round in 0..ROUNDS {
            let id = nodes[1].lock(format!("name {}", round % 64).as_bytes(), Mode::Ex);
            let accepted = nodes[1].joined.space.unlock(id, Lkf::empty(), None);
            accepted.expect("accepted");
            nodes[1].cast(Status::Unlocked);
        }
    });
    assert_eq!(
        (holder.sent, holder.received),
        (2 * ROUNDS, 2 * ROUNDS),
        "{holder:?}"
    );
    assert_eq!(
        (master.sent, master.received),
        (2 * ROUNDS, 2 * ROUNDS),
        "{master:?}"
    );
    for (who, node, told) in [("master", master, 0), ("holder", holder, 2 * ROUNDS)] {
        if wires == Wires::Memory {
            // Has no system calls of its own, and wakes once too often for what was taken meanwhile.
            break;
        }
        at_most(&format!("writes of the {who}"), node.writes, 2 * ROUNDS);
        at_most(&format!("reads of the {who}"), node.reads, 2 * ROUNDS);
        at_most(&format!("wake-ups of the {who}"), node.turns, 2 * ROUNDS);
        assert_eq!(node.told, told, "readers of the {who} told");
    }
}

#[test]
fn a_lock_that_goes_there_and_back_costs_five_messages() {
    let nodes = nodes(Wires::Tcp);
    let locks = [nodes[0].lock(b"ball", Mode::Nl), nodes[1].lock(b"ball", Mode::Nl)];
    nodes[0].convert(locks[0], Mode::Ex);
    nodes[0].cast(Status::Granted);
    let pass = |from: usize, to: usize| {
        nodes[to].convert(locks[to], Mode::Ex);
        nodes[from].bast();
        nodes[from].convert(locks[from], Mode::Nl);
        nodes[from].cast(Status::Granted);
        assert_eq!(nodes[to].cast(Status::Granted).mode, Mode::Ex);
    };
    let [master, other] = counted(&nodes, || {
        for _ in 0..ROUNDS {
            pass(0, 1);
            pass(1, 0);
        }
    });
    // Two conversions up and down of the other; that it has to wait, the grant, and that the master wants it back.
    assert_eq!(
        (other.sent, other.received),
        (2 * ROUNDS, 3 * ROUNDS),
        "{other:?}"
    );
    assert_eq!(
        (master.sent, master.received),
        (3 * ROUNDS, 2 * ROUNDS),
        "{master:?}"
    );
    at_most("writes of the master", master.writes, 3 * ROUNDS);
    at_most("writes of the other", other.writes, 2 * ROUNDS);
    at_most("wake-ups of the master", master.turns, 2 * ROUNDS);
    at_most("wake-ups of the other", other.turns, 3 * ROUNDS);
}

#[test]
fn what_many_threads_ask_for_at_once_is_read_and_told_together() {
    let nodes = nodes(Wires::Tcp);
    let [_, holder] = counted(&nodes, || {
        for _ in 0..ROUNDS / 20 {
            for lock in 0..20 {
                let name = ResName::new(format!("many {lock}").as_bytes()).expect("a name");
                let accepted = nodes[1].joined.space.request(&name, Mode::Pr, Lkf::empty(), 1);
                accepted.expect("accepted");
            }
            for _ in 0..20 {
                let id = nodes[1].cast(Status::Granted).id;
                let accepted = nodes[1].joined.space.unlock(id, Lkf::empty(), None);
                accepted.expect("accepted");
            }
            for _ in 0..20 {
                nodes[1].cast(Status::Unlocked);
            }
        }
    });
    assert_eq!(holder.sent, 2 * ROUNDS);
    at_most("reads of the holder", holder.reads, 2 * ROUNDS);
    at_most("words to the reader", holder.told, holder.turns);
}
