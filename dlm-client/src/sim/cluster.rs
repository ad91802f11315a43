//! The cluster: its queue of what happens, links, timers, membership and faults.

mod partition;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::client;
use super::oracle::{Life, Oracle};
use super::rng::Rng;
use super::wires::Wires;
use crate::NodeId;
use crate::engine::{Config, Engine, Member, Output, Start, TimerId};
use crate::wire::{LockspaceId, Payload, hash::jhash};
use partition::Partition;

/// What a run is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Everything that is left to chance.
    pub seed: u64,
    /// Nodes there can be.
    pub nodes: u32,
    /// Resources they share.
    pub resources: u64,
    /// Calls of users before all is given up.
    pub calls: u64,
    /// Deaths, joins, leaves and freezes.
    pub faults: u64,
    /// Static masters.
    pub nodir: bool,
    /// Links are connections that are reset now and then, instead of ones that only stall.
    pub resets: bool,
    /// Some of the faults are partitions.
    pub partitions: bool,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Of everything that went out of any engine, in order.
    pub hash: u64,
    /// Steps taken.
    pub steps: u64,
    /// Recoveries finished, over all nodes.
    pub recoveries: u64,
    /// Casts.
    pub casts: u64,
    /// Of these, grants.
    pub grants: u64,
    /// Grants whose value block was compared.
    pub reads: u64,
    /// Connections that were reset.
    pub resets: u64,
    /// Partitions.
    pub partitions: u64,
    /// Error lines of engines.
    pub errors: u64,
    /// What an oracle said, if it did.
    pub wrong: Option<String>,
    /// The last things that happened.
    pub tail: Vec<String>,
}

/// Steps after which a run counts as one that does not end.
const STEPS_MAX: u64 = 3_000_000;
/// Microseconds of a run after the last fault.
const SETTLE_MAX: u64 = 600_000_000;
const TAIL: usize = 400;

#[derive(Debug)]
enum Happening {
    Deliver {
        from: Life,
        to: Life,
        payload: Payload,
    },
    Bytes {
        from: Life,
        to: Life,
        connection: u64,
        bytes: Vec<u8>,
    },
    Mend(Life, Life),
    Timer {
        life: Life,
        id: TimerId,
    },
    Call(NodeId),
    Fault,
    Stop {
        round: u64,
        node: NodeId,
    },
    Start {
        round: u64,
        node: NodeId,
    },
    NoQuorum(NodeId),
    Together {
        given_up: bool,
    },
}

#[derive(Debug, Default)]
struct Node {
    engine: Option<Engine>,
    life: u64,
    frozen_until: u64,
    stopped: bool,
    /// What it was last started with.
    known: BTreeMap<NodeId, u64>,
    kept: bool,
}

#[derive(Debug)]
struct Cluster {
    plan: Plan,
    rng: Rng,
    now: u64,
    order: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    nodes: BTreeMap<NodeId, Node>,
    /// When the last message of a link arrives.
    links: BTreeMap<(Life, Life), u64>,
    wires: Wires,
    /// When what a dead life said is lost.
    cuts: BTreeMap<Life, u64>,
    left_cleanly: BTreeSet<Life>,
    members: BTreeMap<NodeId, u64>,
    round: u64,
    starting: bool,
    calls: u64,
    faults: u64,
    ending: bool,
    oracle: Oracle,
    hash: u64,
    steps: u64,
    recoveries: u64,
    errors: u64,
    resets: u64,
    partition: Option<Partition>,
    partitions: u64,
    tail: Vec<String>,
}

/// Runs a plan to its end.
#[must_use]
pub fn run(plan: Plan) -> Outcome {
    let mut cluster = Cluster {
        rng: Rng::new(plan.seed),
        now: 0,
        order: 0,
        queue: BTreeMap::new(),
        nodes: (1..=plan.nodes).map(|n| (NodeId(n), Node::default())).collect(),
        links: BTreeMap::new(),
        wires: Wires::default(),
        cuts: BTreeMap::new(),
        left_cleanly: BTreeSet::new(),
        members: BTreeMap::new(),
        round: 0,
        starting: false,
        calls: 0,
        faults: 0,
        ending: false,
        oracle: Oracle::default(),
        hash: 0,
        steps: 0,
        recoveries: 0,
        errors: 0,
        resets: 0,
        partition: None,
        partitions: 0,
        tail: Vec::new(),
        plan,
    };
    cluster.run();
    Outcome {
        hash: cluster.hash,
        steps: cluster.steps,
        recoveries: cluster.recoveries,
        casts: cluster.oracle.casts,
        grants: cluster.oracle.grants,
        reads: cluster.oracle.reads,
        resets: cluster.resets,
        partitions: cluster.partitions,
        errors: cluster.errors,
        wrong: cluster.oracle.wrong.take(),
        tail: cluster.tail,
    }
}

impl Cluster {
    fn run(&mut self) {
        let first = 1 + self.rng.below(u64::from(self.plan.nodes));
        for n in 1..=self.plan.nodes {
            if u64::from(n) <= first {
                self.join(NodeId(n));
            }
        }
        self.change();
        self.later(50_000, Happening::Fault);
        let mut ended_at = 0;
        while let Some(((at, _), happening)) = self.queue.pop_first() {
            self.now = at;
            self.steps = self.steps.saturating_add(1);
            self.happen(happening);
            if self.oracle.wrong.is_some() {
                return;
            }
            if !self.ending && self.calls >= self.plan.calls && self.faults >= self.plan.faults {
                self.ending = true;
                ended_at = self.now;
            }
            if self.ending && self.is_settled() {
                self.check_end();
                return;
            }
            let slow = self.ending && self.now.saturating_sub(ended_at) > SETTLE_MAX;
            if slow || self.steps > STEPS_MAX {
                let left = self.oracle.left();
                let state: Vec<String> = self
                    .engines()
                    .map(|(id, engine)| {
                        let waiting = engine.waiting_count();
                        let (running, all) = (engine.is_running(), engine.resources_info());
                        format!("node {} running {running} waiting {waiting} {all:?}", id.0)
                    })
                    .collect();
                self.wrong(format!("it does not end: {left}\n{}", state.join("\n")));
                return;
            }
        }
        self.wrong("nothing more happens".to_owned());
    }

    fn engines(&self) -> impl Iterator<Item = (NodeId, &Engine)> {
        self.nodes
            .iter()
            .filter_map(|(&id, node)| Some((id, node.engine.as_ref()?)))
    }

    fn wrong(&mut self, what: String) {
        self.oracle.wrong.get_or_insert(what);
    }

    fn is_settled(&self) -> bool {
        !self.starting
            && self.partition.is_none()
            && self.oracle.is_quiet()
            && self.engines().all(|(_, engine)| engine.is_running())
            && !self.queue.values().any(|happening| {
                matches!(
                    happening,
                    Happening::Deliver { .. } | Happening::Bytes { .. } | Happening::Mend(..)
                )
            })
    }

    /// All was given up: nothing may be left.
    fn check_end(&mut self) {
        let left: Vec<String> = self
            .engines()
            .filter(|(_, engine)| engine.lock_count() > 0)
            .map(|(id, engine)| format!("node {}: {}", id.0, engine.lock_dump().join("\n")))
            .collect();
        if !left.is_empty() {
            self.wrong(format!("locks nobody holds: {left:?}"));
        }
    }

    fn note(&mut self, line: String) {
        let word = u64::from(jhash(line.as_bytes(), 0));
        self.hash = self.hash.rotate_left(5) ^ word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if self.tail.len() >= TAIL.saturating_mul(2) {
            self.tail.drain(..TAIL);
        }
        self.tail.push(line);
    }

    fn at(&mut self, at: u64, happening: Happening) {
        self.order = self.order.wrapping_add(1);
        self.queue.insert((at, self.order), happening);
    }

    fn later(&mut self, most: u64, happening: Happening) {
        let at = self.now.saturating_add(1).saturating_add(self.rng.below(most));
        self.at(at, happening);
    }

    fn life(&self, node: NodeId) -> Option<Life> {
        let known = self.nodes.get(&node)?;
        known.engine.as_ref()?;
        Some((node, known.life))
    }

    fn happen(&mut self, happening: Happening) {
        let to = match &happening {
            Happening::Deliver { to, .. } | Happening::Bytes { to, .. } => Some(to.0),
            Happening::Timer { life, .. } => Some(life.0),
            Happening::Call(node)
            | Happening::NoQuorum(node)
            | Happening::Stop { node, .. }
            | Happening::Start { node, .. } => Some(*node),
            Happening::Fault | Happening::Mend(..) | Happening::Together { .. } => None,
        };
        if let Some(node) = to.and_then(|to| self.nodes.get(&to))
            && node.frozen_until > self.now
            && node.engine.is_some()
        {
            // The order of what waits for a frozen node stays.
            let until = node.frozen_until;
            self.at(until, happening);
            return;
        }
        match happening {
            Happening::Deliver { from, to, payload } => self.deliver(from, to, payload),
            Happening::Bytes {
                from,
                to,
                connection,
                bytes,
            } => self.bytes(from, to, connection, &bytes),
            Happening::Mend(one, two) => {
                let (connection, [forth, back]) = self.wires.mend(one, two);
                self.carry(one, two, connection, forth);
                self.carry(two, one, connection, back);
            }
            Happening::Timer { life, id } => {
                if self.life(life.0) == Some(life) {
                    self.with(life.0, |engine| engine.timer(id));
                }
            }
            Happening::Call(node) => self.call(node),
            Happening::Fault => self.fault(),
            Happening::Stop { round, node } => self.stop(round, node),
            Happening::Start { round, node } => self.start(round, node),
            Happening::NoQuorum(node) => self.no_quorum(node),
            Happening::Together { given_up } => self.together(given_up),
        }
    }

    fn arrives(&self, from: Life, to: Life) -> bool {
        // A node that comes back is another one to the links.
        if self.life(to.0) != Some(to) {
            return false;
        }
        let current = self.life(from.0) == Some(from);
        let reborn = self.nodes.get(&from.0).is_some_and(|node| node.life != from.1);
        let cut = self.cuts.get(&from).is_some_and(|cut| *cut <= self.now);
        current || !(reborn || cut)
    }

    fn bytes(&mut self, from: Life, to: Life, connection: u64, bytes: &[u8]) {
        if !self.arrives(from, to) {
            return;
        }
        match self.wires.receive(from, to, connection, bytes) {
            Ok((payloads, answer)) => {
                self.carry(to, from, connection, answer);
                for payload in payloads {
                    self.with(to.0, |engine| engine.receive(from.0, payload));
                }
            }
            Err(error) => self.wrong(format!("{from:?} to {to:?}: {error}")),
        }
    }

    /// Bytes set out on a connection, in order with those before.
    fn carry(&mut self, from: Life, to: Life, connection: u64, bytes: Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let at = self.arrival(from, to);
        let happening = Happening::Bytes {
            from,
            to,
            connection,
            bytes,
        };
        self.at(at, happening);
        if self.rng.one_in(40) {
            self.note(format!("{} reset {from:?} {to:?}", self.now));
            self.resets = self.resets.saturating_add(1);
            self.wires.cut(from, to);
            self.later(200_000, Happening::Mend(from, to));
        }
    }

    fn arrival(&mut self, from: Life, to: Life) -> u64 {
        // Mostly quick; now and then a stalled link needs a while.
        let delay = match self.rng.below(200) {
            0 => self.rng.below(3_000_000),
            1..=10 => self.rng.below(20_000),
            _ => self.rng.below(400),
        };
        let open = self.cut_until(from.0, to.0).unwrap_or(0).max(self.now);
        let last = self.links.entry((from, to)).or_default();
        *last = open.saturating_add(1).saturating_add(delay).max(*last);
        *last
    }

    fn deliver(&mut self, from: Life, to: Life, payload: Payload) {
        if !self.arrives(from, to) {
            return;
        }
        self.with(to.0, |engine| engine.receive(from.0, payload));
    }

    /// Does something with an engine that is alive, and carries out what it wants done.
    fn with(&mut self, node: NodeId, what: impl FnOnce(&mut Engine)) {
        let Some(engine) = self.nodes.get_mut(&node).and_then(|node| node.engine.as_mut()) else {
            return;
        };
        what(engine);
        self.carry_out(node);
    }

    fn carry_out(&mut self, node: NodeId) {
        let Some(life) = self.life(node) else { return };
        loop {
            let engine = self.nodes.get_mut(&node).and_then(|node| node.engine.as_mut());
            let Some(output) = engine.and_then(Engine::output) else {
                return;
            };
            let mut line = String::new();
            // Writing to a string does not fail.
            let _written = write!(line, "{} {}/{} {output:?}", self.now, life.0.0, life.1);
            self.note(line);
            match output {
                Output::Send { to, payload } => self.transmit(life, to, payload),
                Output::Event(event) => self.oracle.event(life, &event),
                Output::Timer { id, after } => {
                    let after = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
                    let at = self.now.saturating_add(after);
                    self.at(at, Happening::Timer { life, id });
                }
                Output::RecoveryDone { .. } => self.recovered(node),
                Output::Log { level, .. } => {
                    if level == crate::engine::Level::Error {
                        self.errors = self.errors.saturating_add(1);
                    }
                }
                Output::AddMember(_) | Output::RemoveMember(_) => {}
            }
        }
    }

    fn transmit(&mut self, from: Life, to: NodeId, payload: Payload) {
        let Some(to) = self.life(to) else { return };
        if self.plan.resets {
            match self.wires.send(from, to, payload) {
                Ok((connection, bytes)) => self.carry(from, to, connection, bytes),
                Err(error) => self.wrong(format!("{from:?} to {to:?}: {error}")),
            }
            return;
        }
        let at = self.arrival(from, to);
        self.at(at, Happening::Deliver { from, to, payload });
    }

    fn recovered(&mut self, node: NodeId) {
        self.recoveries = self.recoveries.saturating_add(1);
        let Some(life) = self.life(node) else { return };
        let resources = self.plan.resources;
        let Some(known) = self.nodes.get_mut(&node) else {
            return;
        };
        if !known.kept
            && let Some(engine) = known.engine.as_mut()
        {
            known.kept = true;
            client::keep(engine, life, resources, &mut self.oracle);
            self.later(200, Happening::Call(node));
        }
    }

    fn call(&mut self, node: NodeId) {
        let Some(life) = self.life(node) else { return };
        if self.nodes.get(&node).is_some_and(|node| !node.kept) {
            return;
        }
        self.calls = self.calls.saturating_add(1);
        let (resources, ending) = (self.plan.resources, self.ending);
        if let Some(engine) = self.nodes.get_mut(&node).and_then(|n| n.engine.as_mut()) {
            client::act(engine, life, resources, ending, &mut self.oracle, &mut self.rng);
        }
        self.carry_out(node);
        let pause = if self.oracle.is_ready(life) { 600 } else { 20_000 };
        self.later(pause, Happening::Call(node));
    }

    fn join(&mut self, node: NodeId) {
        let seq = self.rng.next();
        let Some(known) = self.nodes.get_mut(&node) else {
            return;
        };
        known.life = known.life.wrapping_add(1);
        let mut config = Config::new(node, LockspaceId(1), seq);
        config.nodir = self.plan.nodir;
        // Short, so that unused resources are forgotten in the middle of it all.
        config.toss = std::time::Duration::from_millis(4);
        known.engine = Some(Engine::new(config));
        known.stopped = true;
        known.frozen_until = 0;
        known.known.clear();
        known.kept = false;
        let life = known.life;
        self.members.insert(node, life);
        self.note(format!("{} join {}/{life}", self.now, node.0));
    }

    /// The node is no more; what it sent last may or may not arrive.
    fn die(&mut self, node: NodeId, cleanly: bool) {
        let Some(life) = self.life(node) else { return };
        self.note(format!("{} die {}/{} {cleanly}", self.now, node.0, life.1));
        if let Some(known) = self.nodes.get_mut(&node) {
            known.engine = None;
        }
        let cut = self.now.saturating_add(self.rng.below(1000));
        self.cuts.insert(life, cut);
        if cleanly {
            self.left_cleanly.insert(life);
        }
        self.members.remove(&node);
        self.wires.forget(life);
        self.oracle.ended(life);
    }

    /// The membership changed: all stop, and when all have, all start.
    fn change(&mut self) {
        self.round = self.round.wrapping_add(1);
        self.starting = true;
        let round = self.round;
        for node in self.members.keys().copied().collect::<Vec<_>>() {
            if let Some(known) = self.nodes.get_mut(&node) {
                known.stopped = false;
            }
            self.later(3000, Happening::Stop { round, node });
        }
    }

    fn stop(&mut self, round: u64, node: NodeId) {
        if round != self.round || !self.members.contains_key(&node) {
            return;
        }
        self.with(node, Engine::stop);
        if let Some(known) = self.nodes.get_mut(&node) {
            known.stopped = true;
        }
        let all = self
            .members
            .keys()
            .all(|node| self.nodes.get(node).is_some_and(|node| node.stopped));
        if !all {
            return;
        }
        for node in self.members.keys().copied().collect::<Vec<_>>() {
            self.later(3000, Happening::Start { round, node });
        }
    }

    fn start(&mut self, round: u64, node: NodeId) {
        if round != self.round {
            return;
        }
        let Some(known) = self.nodes.get_mut(&node) else {
            return;
        };
        if !known.stopped {
            return;
        }
        known.stopped = false;
        let mut start = Start::default();
        for (&member, &life) in &self.members {
            start.members.push(Member {
                node: member,
                weight: 1,
                renewed: known.known.get(&member).is_some_and(|old| *old != life),
            });
        }
        for (&member, &life) in &known.known {
            let gone = self.members.get(&member) != Some(&life);
            if gone && !self.left_cleanly.contains(&(member, life)) {
                start.failed.push(member);
            }
        }
        known.known = self.members.clone();
        self.with(node, |engine| engine.start(&start));
        let pending = self
            .queue
            .values()
            .any(|happening| matches!(happening, Happening::Start { round: other, .. } if *other == round));
        self.starting = pending;
    }

    fn fault(&mut self) {
        if self.faults >= self.plan.faults {
            return;
        }
        if self.partition.is_some() {
            // Nobody comes or goes meanwhile: no membership would be agreed on.
            self.later(200_000, Happening::Fault);
            return;
        }
        self.faults = self.faults.saturating_add(1);
        let alive: Vec<NodeId> = self.members.keys().copied().collect();
        let dead: Vec<NodeId> = self
            .nodes
            .keys()
            .filter(|node| !self.members.contains_key(node))
            .copied()
            .collect();
        let kinds = if self.plan.partitions { 12 } else { 8 };
        match self.rng.below(kinds) {
            8..=11 if alive.len() > 1 => self.split(),
            0..=2 if alive.len() > 1 => {
                let victims = 1 + self.rng.below(u64::try_from(alive.len()).unwrap_or(1) - 1);
                let victims = if self.rng.one_in(3) { victims } else { 1 };
                let cleanly = self.rng.one_in(4);
                for _ in 0..victims {
                    let alive: Vec<NodeId> = self.members.keys().copied().collect();
                    if let Some(node) = self.rng.pick(&alive) {
                        self.die(node, cleanly);
                    }
                }
                if self.rng.one_in(4) {
                    // Back at once: the others see it gone and come in one change.
                    if let Some(node) = self.rng.pick(&dead) {
                        self.join(node);
                    }
                }
                self.change();
            }
            3..=5 => {
                if let Some(node) = self.rng.pick(&dead) {
                    self.join(node);
                    self.change();
                }
            }
            _ => {
                if let Some(node) = self.rng.pick(&alive) {
                    let until = self.now.saturating_add(self.rng.below(2_000_000));
                    self.note(format!("{} freeze {} until {until}", self.now, node.0));
                    if let Some(known) = self.nodes.get_mut(&node) {
                        // A second freeze would mix up what waits for the first to end.
                        if known.frozen_until <= self.now {
                            known.frozen_until = until;
                        }
                    }
                }
            }
        }
        // Soon, also in the middle of a recovery, or after a while.
        let pause = if self.rng.one_in(2) { 30_000 } else { 1_500_000 };
        self.later(pause, Happening::Fault);
    }
}
