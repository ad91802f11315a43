//! The simulated cluster the daemons live in, and the oracles.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dlm_client::controld::codec::{Body, Message};
use dlm_client::controld::{Action, Controld, Fatal, Input, Job, Level, Now, Order};
use dlm_client::fence::conf::DlmConf;
use dlm_client::membership::memory::MemoryCluster;
use dlm_client::membership::{Group, MemberEvent};
use dlm_client::{NodeId, Plock, PlockOp, PlockStatus};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) nodes: u32,
    pub(crate) startup_fencing: bool,
    /// Agents cut a node off from the storage instead of turning it off.
    pub(crate) storage_fencing: bool,
}

impl Setup {
    pub(crate) fn nodes(nodes: u32) -> Self {
        Self {
            nodes,
            startup_fencing: true,
            storage_fencing: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    PowerOff,
    ProcessDeath,
    Pause,
    Resume,
}

/// A lock engine, reduced to what it was told.
#[derive(Debug, Default)]
struct Engine {
    /// Members it runs with.
    running: Option<Vec<NodeId>>,
    /// It was started and has not left since: it may have dirty data.
    dirty: bool,
    seq: u32,
}

#[derive(Debug, Default)]
struct Node {
    machine: Option<Controld>,
    paused: bool,
    paused_at: Duration,
    /// It was paused for so long that the others have given it up.
    missed: bool,
    /// Its storage is out of reach.
    fenced: bool,
    fatal: Option<Fatal>,
    engines: BTreeMap<String, Engine>,
    /// Victim, its life when the agent was started, and when the agent will end.
    jobs: BTreeMap<Job, (NodeId, u32, Duration)>,
    life: u32,
    /// Operations on POSIX locks that have not ended, per lockspace.
    plocks: BTreeMap<String, BTreeSet<u64>>,
    /// Locks that wait, as far as we know.
    token: u64,
}

pub(crate) struct World {
    setup: Setup,
    seed: u64,
    cluster: MemoryCluster,
    nodes: BTreeMap<NodeId, Node>,
    now: Duration,
    random: fastrand::Rng,
    fenced: u32,
    lives: u32,
    trace: Vec<String>,
}

/// Corosync gives a silent node up after 2.2 token times.
const DETECTION: Duration = Duration::from_millis(2200);

const SPACES: [&str; 2] = ["fs", "other"];

/// An event in the trace; POSIX locks and heartbeats are too many.
fn shown(event: &MemberEvent) -> Option<String> {
    let MemberEvent::Deliver { group, from, bytes } = event else {
        return Some(format!("{event:?}"));
    };
    let message = Message::decode(bytes).ok()?;
    let quiet = matches!(
        message.body,
        Body::Plock(_) | Body::PlocksData(_) | Body::Other { .. }
    );
    (!quiet).then(|| {
        format!(
            "{group:?} {from:?} flags {} data {} {:?}",
            message.header.flags, message.header.data, message.body
        )
    })
}

impl World {
    pub(crate) fn new(setup: Setup, seed: u64) -> Self {
        let nodes = (1..=setup.nodes).map(|node| (NodeId(node), Node::default()));
        Self {
            setup,
            seed,
            cluster: MemoryCluster::new(setup.nodes),
            nodes: nodes.collect(),
            now: Duration::from_secs(1000),
            random: fastrand::Rng::with_seed(seed),
            fenced: 0,
            lives: 0,
            trace: Vec::new(),
        }
    }

    pub(crate) fn trace(self) -> Vec<String> {
        self.trace
    }

    pub(crate) fn fenced(&self) -> u32 {
        self.fenced
    }

    /// Does a node's daemon know that another's runs?
    pub(crate) fn sees(&self, node: NodeId, other: NodeId) -> bool {
        let machine = self.nodes[&node].machine.as_ref();
        let status = machine.map(|machine| machine.status(self.time()));
        let member =
            |nodes: &[dlm_client::controld::NodeStatus]| nodes.iter().any(|n| n.node == other && n.member);
        status.is_some_and(|status| member(&status.nodes))
    }

    pub(crate) fn is_fatal(&self, node: NodeId) -> bool {
        self.nodes[&node].fatal.is_some()
    }

    /// Brings a node a message of a lockspace that nobody in this cluster sent.
    pub(crate) fn forge(&mut self, to: NodeId, space: &str, from: NodeId, message: &Message) {
        let event = MemberEvent::Deliver {
            group: Group::Lockspace(space.to_owned()),
            from,
            bytes: message.encode(),
        };
        self.step(to, Input::Member(event));
    }

    pub(crate) fn plock_lines(&self, node: NodeId, space: &str) -> Vec<String> {
        let machine = self.nodes[&node].machine.as_ref().expect("it runs");
        machine.plock_lines(space).expect("it is joined")
    }

    fn note(&mut self, text: String) {
        self.trace.push(format!("{:?} {text}", self.now));
    }

    fn fail(&self, what: &str) -> ! {
        let from = self
            .trace
            .len()
            .saturating_sub(std::env::var("DLM_TRACE").map_or(400, |n| n.parse().unwrap()));
        // POSIX locks are too many to be shown.
        let shown = |line: &&String| !line.contains("Plock") && !line.ends_with(" cancel");
        for line in self.trace[from..].iter().filter(shown) {
            eprintln!("{line}");
        }
        panic!("seed {} of {:?}: {what}", self.seed, self.setup);
    }

    fn time(&self) -> Now {
        Now {
            mono: self.now,
            wall: 1_700_000_000 + self.now.as_secs(),
        }
    }

    fn conf(&self) -> DlmConf {
        let text = format!(
            "post_join_delay=3\nenable_startup_fencing={}\nenable_concurrent_fencing={}\nfence_all fence_sim\n",
            u8::from(self.setup.startup_fencing),
            self.seed % 2
        );
        DlmConf::parse(&text).unwrap()
    }

    pub(crate) fn boot(&mut self, id: NodeId) {
        let with = self
            .nodes
            .keys()
            .copied()
            .find(|other| *other != id && self.cluster.is_on(*other));
        self.boot_with(id, with);
    }

    /// A node comes into the part of the cluster in which another is, or alone.
    pub(crate) fn boot_with(&mut self, id: NodeId, with: Option<NodeId>) {
        self.note(format!("{id:?} boots"));
        self.cluster.turn_on(id, with);
        self.lives += 1;
        let (machine, actions) = Controld::new(self.cluster.config(id), self.conf(), self.lives);
        self.nodes.insert(
            id,
            Node {
                machine: Some(machine),
                life: self.lives,
                ..Node::default()
            },
        );
        self.obey(id, actions);
        for space in SPACES {
            self.join(id, space);
        }
    }

    pub(crate) fn boot_all(&mut self) {
        for id in self.ids() {
            self.boot(id);
        }
    }

    fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    fn machine(&mut self, id: NodeId) -> Option<&mut Controld> {
        let node = self.nodes.get_mut(&id)?;
        if node.paused {
            return None;
        }
        node.machine.as_mut()
    }

    pub(crate) fn join(&mut self, id: NodeId, space: &str) {
        let now = self.time();
        if let Some(Ok(actions)) = self.machine(id).map(|machine| machine.join(now, space)) {
            self.obey(id, actions);
        }
    }

    pub(crate) fn leave(&mut self, id: NodeId, space: &str) {
        if let Some(Ok(actions)) = self.machine(id).map(|machine| machine.leave(space)) {
            self.note(format!("{id:?} leaves {space}"));
            self.obey(id, actions);
            // Whoever leaves has written everything back before.
            if let Some(engine) = self.nodes.get_mut(&id).unwrap().engines.get_mut(space) {
                engine.dirty = false;
            }
        }
    }

    fn step(&mut self, id: NodeId, input: Input) {
        let now = self.time();
        if let Some(machine) = self.machine(id) {
            let actions = machine.step(now, input);
            self.obey(id, actions);
        }
    }

    fn obey(&mut self, id: NodeId, actions: Vec<Action>) {
        for action in actions {
            if !matches!(action, Action::Send { .. } | Action::Log(Level::Debug, _)) {
                self.note(format!("{id:?}: {action:?}"));
            }
            match action {
                Action::Join(group) => self.cluster.ask_join(id, &group),
                Action::Leave(group) => self.cluster.ask_leave(id, &group),
                Action::Send { group, bytes } => self.cluster.ask_send(id, &group, &bytes),
                Action::Kill(victim) => self.cluster.ask_kill(victim),
                Action::RunAgent { job, node, .. } => {
                    // A node is missed at once here; corosync needs 2.2 token times for that, and nobody is fenced
                    // earlier.
                    let due = self.now + Duration::from_millis(self.random.u64(2200..8000));
                    let life = self.nodes[&node].life;
                    self.nodes
                        .get_mut(&id)
                        .unwrap()
                        .jobs
                        .insert(job, (node, life, due));
                }
                Action::StopAgent(job) => drop(self.nodes.get_mut(&id).unwrap().jobs.remove(&job)),
                Action::Engine { lockspace, order } => self.engine(id, &lockspace, order),
                Action::Plock { lockspace, done } => {
                    let node = self.nodes.get_mut(&id).unwrap();
                    let known = node.plocks.entry(lockspace).or_default().remove(&done.token);
                    if !known || matches!(done.status, PlockStatus::Err(_)) {
                        self.fail(&format!("{id:?}: unexpected {done:?}"));
                    }
                }
                Action::Fatal(fatal) => {
                    let node = self.nodes.get_mut(&id).unwrap();
                    let running: Vec<_> = node.engines.values().filter(|e| e.running.is_some()).collect();
                    if !running.is_empty() {
                        self.fail(&format!("{id:?} says {fatal:?} with a running engine"));
                    }
                    node.fatal = Some(fatal);
                    node.machine = None;
                    node.jobs.clear();
                    node.plocks.clear();
                    self.cluster.kill_process(id);
                }
                Action::AnswerShutdown(_) | Action::Suspend | Action::Resume | Action::Log(..) => {}
                other => self.fail(&format!("unknown action {other:?}")),
            }
        }
    }

    fn engine(&mut self, id: NodeId, space: &str, order: Order) {
        match order {
            Order::Stop => {
                let engine = self.nodes.get_mut(&id).unwrap().engines.entry(space.to_owned());
                engine.or_default().running = None;
            }
            Order::Left => {
                let node = self.nodes.get_mut(&id).unwrap();
                node.engines.remove(space);
                node.plocks.remove(space);
            }
            Order::Start(start) => {
                let members: Vec<NodeId> = start.members.iter().map(|member| member.node).collect();
                self.check_start(id, space, &members, start.gone.iter().any(|gone| gone.node == id));
                let node = self.nodes.get_mut(&id).unwrap();
                let engine = node.engines.entry(space.to_owned()).or_default();
                if engine.running.is_some() || start.seq <= engine.seq || start.joining == engine.dirty {
                    let engine = format!("{engine:?}");
                    self.fail(&format!("{id:?}: {start:?} of {engine}"));
                }
                *engine = Engine {
                    running: Some(members),
                    dirty: true,
                    seq: start.seq,
                };
            }
        }
    }

    /// The safety of a start.
    fn check_start(&self, id: NodeId, space: &str, members: &[NodeId], we_are_gone: bool) {
        if !members.contains(&id) || we_are_gone || self.nodes[&id].fenced {
            self.fail(&format!(
                "{id:?} starts {space} with {members:?}, fenced or not a member"
            ));
        }
        for (other, node) in &self.nodes {
            let Some(engine) = node.engines.get(space) else {
                continue;
            };
            if members.contains(other) {
                if node.fenced {
                    self.fail(&format!("{id:?} starts {space} with {other:?}, which is fenced"));
                }
                if engine.running.as_ref().is_some_and(|running| running != members) {
                    self.fail(&format!(
                        "{id:?} starts {space} with {members:?}, {other:?} runs with {:?}",
                        engine.running
                    ));
                }
            } else if engine.dirty && !node.fenced && self.setup.startup_fencing {
                // Without startup fencing nobody remembers those that failed before all others were restarted.
                self.fail(&format!(
                    "{id:?} starts {space} with {members:?}; {other:?} was started and is not fenced"
                ));
            }
        }
    }

    /// The power goes off: nothing is left that could write.
    fn power_off(&mut self, id: NodeId) {
        self.note(format!("{id:?} is off"));
        self.cluster.turn_off(id);
        self.nodes.insert(id, Node::default());
    }

    pub(crate) fn fault(&mut self, fault: Fault, id: NodeId) {
        self.note(format!("{fault:?} of {id:?}"));
        match fault {
            Fault::PowerOff => self.power_off(id),
            Fault::ProcessDeath => {
                let node = self.nodes.get_mut(&id).unwrap();
                node.machine = None;
                node.jobs.clear();
                node.plocks.clear();
                self.cluster.kill_process(id);
            }
            Fault::Pause => {
                let node = self.nodes.get_mut(&id).unwrap();
                if node.machine.is_some() && !node.paused {
                    node.paused = true;
                    node.paused_at = self.now;
                }
            }
            Fault::Resume => {
                let node = self.nodes.get_mut(&id).unwrap();
                if std::mem::take(&mut node.paused) && std::mem::take(&mut node.missed) {
                    self.cluster.merge();
                }
            }
        }
    }

    pub(crate) fn split(&mut self, nodes: &[NodeId]) {
        self.note(format!("{nodes:?} split off"));
        self.cluster.split(nodes, true);
    }

    pub(crate) fn merge(&mut self) {
        self.note("merge".to_owned());
        self.cluster.merge();
    }

    /// One thing happens to the cluster from outside.
    pub(crate) fn disturb(&mut self) {
        let ids = self.ids();
        let id = ids[self.random.usize(0..ids.len())];
        let space = SPACES[self.random.usize(0..SPACES.len())];
        let dead = self.nodes[&id].machine.is_none();
        match self.random.u8(0..20) {
            0..=5 if dead => {
                let with = ids[self.random.usize(0..ids.len())];
                let with = (self.random.u8(0..4) > 0 && with != id).then_some(with);
                self.reboot(id, with);
            }
            0 => self.fault(Fault::PowerOff, id),
            1 => self.fault(Fault::ProcessDeath, id),
            2 | 3 => self.fault(Fault::Pause, id),
            4..=6 => self.fault(Fault::Resume, id),
            7 | 8 => {
                let apart: Vec<NodeId> = ids.iter().copied().filter(|_| self.random.bool()).collect();
                self.split(&apart);
            }
            9..=11 => self.merge(),
            12 | 13 => self.leave(id, space),
            14 | 15 => self.join(id, space),
            _ => {}
        }
    }

    /// A node that is off, or whose daemon is dead, starts anew.
    fn reboot(&mut self, id: NodeId, with: Option<NodeId>) {
        if self.cluster.is_on(id) {
            self.power_off(id);
        }
        self.boot_with(id, with);
    }

    /// A node starts anew, where the others are.
    fn reset(&mut self, id: NodeId) {
        if self.cluster.is_on(id) {
            self.power_off(id);
        }
        self.boot(id);
    }

    /// Random things happen inside the cluster for some time.
    pub(crate) fn run_for(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        while self.now < end {
            self.run(50);
        }
    }

    /// All that is under way arrives, and no time passes.
    pub(crate) fn run_at_once(&mut self) {
        let before = self.now;
        for _ in 0..10_000 {
            for id in self.cluster.busy() {
                self.cluster.flush(id);
            }
            self.deliver();
        }
        assert_eq!(self.now, before);
    }

    /// `turns` random things happen inside the cluster.
    pub(crate) fn run(&mut self, turns: u32) {
        for _ in 0..turns {
            match self.random.u8(0..16) {
                0 => {
                    let time = Duration::from_millis(self.random.u64(1..200));
                    self.pass(time);
                }
                1..=5 => {
                    let busy = self.cluster.busy();
                    let busy: Vec<_> = busy.into_iter().filter(|id| !self.nodes[id].paused).collect();
                    if !busy.is_empty() {
                        let id = busy[self.random.usize(0..busy.len())];
                        self.cluster.flush(id);
                    }
                }
                6 => self.plock(),
                // A message comes to all, so what a turn can do must grow with them, or queues would only grow.
                _ => (0..self.random.u32(1..=self.setup.nodes)).for_each(|_| self.deliver()),
            }
            for victim in self.cluster.take_killed() {
                self.note(format!("{victim:?} is thrown out"));
                self.cluster.turn_off(victim);
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for id in self.ids() {
            let node = self.nodes.get_mut(&id).unwrap();
            if node.paused && !node.missed && self.now - node.paused_at > DETECTION {
                node.missed = true;
                self.cluster.split(&[id], false);
            }
            let due: Vec<_> = self.nodes[&id]
                .jobs
                .iter()
                .filter(|(_, (_, _, due))| *due <= self.now)
                .map(|(job, (victim, life, _))| (*job, *victim, *life))
                .collect();
            for (job, victim, life) in due {
                if self.nodes[&id].paused {
                    continue;
                }
                self.nodes.get_mut(&id).unwrap().jobs.remove(&job);
                let works = self.random.u8(0..4) > 0;
                if works {
                    self.fence(victim, life);
                }
                let status = i32::from(!works);
                self.step(id, Input::AgentDone { job, status });
            }
            self.step(id, Input::Tick);
            if !self.cluster.is_on(id) && self.nodes[&id].machine.is_some() {
                let lost = MemberEvent::Lost("corosync is gone".to_owned());
                self.step(id, Input::Member(lost));
            }
        }
    }

    fn fence(&mut self, victim: NodeId, life: u32) {
        self.fenced += 1;
        // One that was started anew meanwhile gets an error from its first write, and is of no more use.
        if self.setup.storage_fencing && self.nodes[&victim].life == life {
            self.note(format!("{victim:?} is cut off from the storage"));
            self.nodes.get_mut(&victim).unwrap().fenced = true;
        } else {
            self.power_off(victim);
        }
    }

    fn deliver(&mut self) {
        let mut sources = Vec::new();
        for id in self.ids() {
            let node = &self.nodes[&id];
            if node.machine.is_some() && !node.paused {
                sources.extend(self.cluster.waiting(id).into_iter().map(|source| (id, source)));
            }
        }
        if sources.is_empty() {
            return;
        }
        let (id, source) = &sources[self.random.usize(0..sources.len())];
        while let Some(event) = self.cluster.take(*id, source) {
            if let Some(text) = shown(&event) {
                self.note(format!("{id:?} <- {text}"));
            }
            let beat = matches!(
                &event,
                MemberEvent::Deliver {
                    group: Group::Beat,
                    ..
                }
            );
            self.step(*id, Input::Member(event));
            // Heartbeats come in bundles: one at a time they would come ever later.
            if !beat {
                break;
            }
        }
    }

    fn plock(&mut self) {
        let ids = self.ids();
        let id = ids[self.random.usize(0..ids.len())];
        let space = SPACES[self.random.usize(0..SPACES.len())];
        if !self.nodes[&id]
            .engines
            .get(space)
            .is_some_and(|engine| engine.dirty)
        {
            return;
        }
        let start = self.random.u64(0..40);
        let lock = Plock {
            number: self.random.u64(1..3),
            start,
            end: self.random.u64(start..40),
            owner: self.random.u64(1..4),
            pid: 7,
            exclusive: self.random.bool(),
        };
        let waiting: Vec<u64> = self.nodes[&id]
            .plocks
            .get(space)
            .into_iter()
            .flatten()
            .copied()
            .collect();
        let now = self.time();
        let node = self.nodes.get_mut(&id).unwrap();
        if node.paused || node.machine.is_none() {
            return;
        }
        let machine = node.machine.as_mut().unwrap();
        if self.random.u8(0..6) == 0 && !waiting.is_empty() {
            let token = waiting[self.random.usize(0..waiting.len())];
            if let Ok(actions) = machine.plock_cancel(now, space, token) {
                self.trace
                    .push(format!("{:?} {id:?} {space} {token} cancel", self.now));
                self.obey(id, actions);
            }
            return;
        }
        let op = match self.random.u8(0..8) {
            0..=2 => PlockOp::Lock { wait: false },
            3 if waiting.len() < 4 => PlockOp::Lock { wait: true },
            4 => PlockOp::Test,
            5 => PlockOp::Unlock { close: true },
            _ => PlockOp::Unlock { close: false },
        };
        node.token += 1;
        let token = node.token;
        if let Ok(actions) = machine.plock(now, space, op, &lock, token) {
            self.trace
                .push(format!("{:?} {id:?} {space} {token} {op:?} {lock:?}", self.now));
            node.plocks.entry(space.to_owned()).or_default().insert(token);
            self.obey(id, actions);
        }
    }

    /// Nodes whose engine runs.
    pub(crate) fn running(&self, space: &str) -> Vec<NodeId> {
        let runs = |node: &Node| {
            let started = node.engines.get(space).is_some_and(|e| e.running.is_some());
            started && node.machine.is_some() && !node.paused
        };
        let running = self.nodes.iter().filter(|(_, node)| runs(node));
        running.map(|(id, _)| *id).collect()
    }

    #[track_caller]
    pub(crate) fn expect_running(&self, space: &str, expected: &[NodeId]) {
        let found = self.running(space);
        if found != expected {
            self.fail(&format!("{space} runs on {found:?} instead of {expected:?}"));
        }
    }

    /// Everything is repaired; then everything must run.
    pub(crate) fn heal(&mut self) {
        self.note("heal".to_owned());
        for id in self.ids() {
            self.fault(Fault::Resume, id);
        }
        self.cluster.merge();
        for _ in 0..400 {
            for id in self.ids() {
                if self.nodes[&id].machine.is_none() || self.nodes[&id].fenced {
                    self.reset(id);
                }
                let merge_wait = self.nodes[&id]
                    .machine
                    .as_ref()
                    .is_some_and(|machine| machine.status(self.time()).merge_wait);
                if merge_wait {
                    self.note(format!("a person resets {id:?}"));
                    self.reset(id);
                }
                for space in SPACES {
                    self.join(id, space);
                }
            }
            self.run(500);
            if self.is_whole() {
                self.quiesce();
                self.check_plocks();
                return;
            }
        }
        for (id, node) in &self.nodes {
            let status = node.machine.as_ref().map(|machine| machine.status(self.time()));
            eprintln!("{id:?}: {status:?}");
        }
        self.fail("the cluster does not become whole");
    }

    fn is_whole(&self) -> bool {
        let all = self.ids();
        SPACES.iter().all(|space| {
            let full = |node: &Node| {
                node.machine.is_some()
                    && node
                        .engines
                        .get(*space)
                        .is_some_and(|engine| engine.running.as_ref() == Some(&all))
            };
            self.nodes.values().all(full)
        })
    }

    /// Delivers what is under way, without letting time pass or asking for anything new.
    fn quiesce(&mut self) {
        loop {
            let busy = self.cluster.busy();
            for id in &busy {
                self.cluster.flush(*id);
            }
            let mut moved = !busy.is_empty();
            for id in self.ids() {
                for source in self.cluster.waiting(id) {
                    if let Some(event) = self.cluster.take(id, &source) {
                        moved = true;
                        self.step(id, Input::Member(event));
                    }
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn check_plocks(&self) {
        for space in SPACES {
            let lines = |node: &Node| node.machine.as_ref().unwrap().plock_lines(space).unwrap();
            let first = lines(self.nodes.values().next().unwrap());
            for (id, node) in &self.nodes {
                if lines(node) != first {
                    eprintln!("first: {first:#?}\n{id:?}: {:#?}", lines(node));
                    self.fail(&format!("{id:?} has other POSIX locks in {space}"));
                }
                let waiting = format!("nodeid {} ", id.0);
                let listed = first
                    .iter()
                    .filter(|line| line.contains("WAITING") && line.contains(&waiting))
                    .count();
                let open = node.plocks.get(space).map_or(0, BTreeSet::len);
                if listed != open {
                    eprintln!("{first:#?}");
                    self.fail(&format!(
                        "{id:?}: {open} operations in {space} are open, {listed} wait"
                    ));
                }
            }
        }
    }
}
