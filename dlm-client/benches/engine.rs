//! Goal: what the lock engine costs, alone and between two nodes in memory, without any transport.
//!
//! Method: wall time of many rounds; memory as growth of the resident set. Prints one line per figure; fails below the
//! targets (1,000,000 local pairs of request and unlock a second, 400 bytes per held lock) when built with optimisation.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Instant;

use dlm_client::engine::{Config, Engine, Member, Output, Start};
use dlm_client::wire::{LockspaceId, Payload};
use dlm_client::{Event, Lkf, LockId, Mode, NodeId, ResName, Status};

const PAIRS_MIN: f64 = 1_000_000.0;
const BYTES_MAX: f64 = 400.0;

fn name(number: u64) -> ResName {
    ResName::new(format!("{:8x}{number:16x}", 2).as_bytes()).unwrap()
}

/// Engines that share a lockspace; messages go at once, in order.
struct Cluster {
    engines: Vec<Engine>,
    messages: VecDeque<(NodeId, usize, Payload)>,
    casts: Vec<(usize, LockId, Status)>,
    basts: Vec<(usize, LockId)>,
    sent: u64,
}

impl Cluster {
    fn new(nodes: u32) -> Self {
        let engines = (1..=nodes)
            .map(|n| Engine::new(Config::new(NodeId(n), LockspaceId(1), u64::from(n))))
            .collect();
        let mut cluster = Self {
            engines,
            messages: VecDeque::new(),
            casts: Vec::new(),
            basts: Vec::new(),
            sent: 0,
        };
        cluster.restart(&(0..nodes as usize).collect::<Vec<_>>(), &[]);
        cluster
    }

    fn drain(&mut self, at: usize, timers: &mut Vec<(usize, dlm_client::engine::TimerId)>) {
        while let Some(output) = self.engines[at].output() {
            match output {
                Output::Send { to, payload } => {
                    let from = self.engines[at].node();
                    self.messages.push_back((from, to.0 as usize - 1, payload));
                    self.sent += 1;
                }
                Output::Event(Event::Cast(cast)) => self.casts.push((at, cast.id, cast.status)),
                Output::Event(Event::Bast { id, .. }) => self.basts.push((at, id)),
                Output::Timer { id, after } if after.as_secs() < 5 => timers.push((at, id)),
                _ => {}
            }
        }
    }

    /// Until nobody has anything to say. Polls of recovery do not wait.
    fn settle(&mut self) {
        let mut timers = Vec::new();
        for at in 0..self.engines.len() {
            self.drain(at, &mut timers);
        }
        loop {
            if let Some((from, to, payload)) = self.messages.pop_front() {
                self.engines[to].receive(from, payload);
                self.drain(to, &mut timers);
            } else if !timers.is_empty() {
                let (at, id) = timers.remove(0);
                self.engines[at].timer(id);
                self.drain(at, &mut timers);
            } else {
                return;
            }
        }
    }

    fn restart(&mut self, members: &[usize], failed: &[NodeId]) {
        let start = Start {
            members: members
                .iter()
                .map(|&at| Member {
                    node: NodeId(at as u32 + 1),
                    weight: 1,
                    renewed: false,
                })
                .collect(),
            failed: failed.to_vec(),
        };
        for &at in members {
            self.engines[at].stop();
        }
        for &at in members {
            self.engines[at].start(&start);
        }
        self.settle();
        assert!(members.iter().all(|&at| self.engines[at].is_running()));
    }
}

fn resident() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096.0
}

fn local_pairs() -> f64 {
    let mut cluster = Cluster::new(1);
    let names: Vec<ResName> = (0..1024).map(name).collect();
    let engine = &mut cluster.engines[0];
    let rounds = 2_000_000u64;
    let start = Instant::now();
    for round in 0..rounds {
        let id = engine
            .request(&names[round as usize & 1023], Mode::Ex, Lkf::empty(), round)
            .unwrap();
        engine.unlock(id, Lkf::empty(), None).unwrap();
        while let Some(output) = engine.output() {
            black_box(output);
        }
    }
    let rate = rounds as f64 / start.elapsed().as_secs_f64();
    println!("local request+unlock          {rate:>12.0} pairs/s");
    rate
}

fn remote_pairs() {
    let mut cluster = Cluster::new(2);
    // Node 1 keeps a lock on each, and so masters them all.
    for number in 0..256 {
        cluster.engines[0]
            .request(&name(number), Mode::Nl, Lkf::empty(), 0)
            .unwrap();
        cluster.settle();
    }
    cluster.casts.clear();
    cluster.sent = 0;
    let rounds = 300_000u64;
    let start = Instant::now();
    for round in 0..rounds {
        let id = cluster.engines[1]
            .request(&name(round & 255), Mode::Ex, Lkf::empty(), round)
            .unwrap();
        cluster.settle();
        cluster.engines[1].unlock(id, Lkf::empty(), None).unwrap();
        cluster.settle();
    }
    let took = start.elapsed();
    assert_eq!(cluster.casts.len() as u64, 2 * rounds);
    println!(
        "remote request+unlock         {:>12.0} pairs/s   {:.2} messages each",
        rounds as f64 / took.as_secs_f64(),
        cluster.sent as f64 / rounds as f64
    );
}

fn ping_pong() {
    let mut cluster = Cluster::new(2);
    let ids: Vec<LockId> = (0..2)
        .map(|at| {
            let id = cluster.engines[at]
                .request(&name(1), Mode::Nl, Lkf::empty(), 0)
                .unwrap();
            cluster.settle();
            id
        })
        .collect();
    cluster.engines[0]
        .convert(ids[0], Mode::Ex, Lkf::empty(), None)
        .unwrap();
    cluster.settle();
    let rounds = 200_000;
    let start = Instant::now();
    for round in 0..rounds {
        let (holder, wants) = (round & 1, 1 - (round & 1));
        cluster.basts.clear();
        cluster.engines[wants]
            .convert(ids[wants], Mode::Ex, Lkf::QUECVT, None)
            .unwrap();
        cluster.settle();
        assert_eq!(cluster.basts, [(holder, ids[holder])]);
        cluster.engines[holder]
            .convert(ids[holder], Mode::Nl, Lkf::empty(), None)
            .unwrap();
        cluster.settle();
    }
    let rate = rounds as f64 / start.elapsed().as_secs_f64();
    println!("EX ping-pong of two nodes     {rate:>12.0} hand-overs/s");
}

fn memory() -> f64 {
    let mut cluster = Cluster::new(1);
    let count = 500_000u64;
    let before = resident();
    for number in 0..count {
        cluster.engines[0]
            .request(&name(number), Mode::Pr, Lkf::VALBLK, number)
            .unwrap();
        while let Some(output) = cluster.engines[0].output() {
            black_box(output);
        }
    }
    let each = (resident() - before) / count as f64;
    println!("memory per held lock          {each:>12.0} bytes (own resource, VALBLK)");
    each
}

fn recovery() {
    let mut cluster = Cluster::new(3);
    let count = 100_000u64;
    // Node 3 masters all of them, nodes 1 and 2 hold half each.
    for number in 0..count {
        let keeper = cluster.engines[2]
            .request(&name(number), Mode::Nl, Lkf::empty(), 0)
            .unwrap();
        cluster.settle();
        let at = (number & 1) as usize;
        cluster.engines[at]
            .request(&name(number), Mode::Ex, Lkf::VALBLK, number)
            .unwrap();
        cluster.settle();
        black_box(keeper);
    }
    let held = cluster.engines[0].lock_count() + cluster.engines[1].lock_count();
    let start = Instant::now();
    cluster.restart(&[0, 1], &[NodeId(3)]);
    let took = start.elapsed();
    assert!(cluster.engines[0].is_running() && cluster.engines[1].is_running());
    println!(
        "recovery after a death        {:>12.0} ms        {held} locks rebuilt, polls not waited for",
        took.as_secs_f64() * 1000.0
    );
}

fn main() {
    let each = memory();
    let rate = local_pairs();
    remote_pairs();
    ping_pong();
    recovery();
    if !cfg!(debug_assertions) {
        assert!(rate >= PAIRS_MIN, "{rate:.0} pairs/s, {PAIRS_MIN:.0} are wanted");
        assert!(
            each <= BYTES_MAX,
            "{each:.0} bytes a lock, {BYTES_MAX:.0} are allowed"
        );
    }
}
