//! Several machines against one lock master, in every order a seed comes up with.
//!
//! Each node has one machine for the same lock. Calls, replies, basts, jobs and timers are delivered late and in any
//! order between nodes. A version number stands for the data under the lock: writers raise it in their cache, sync puts
//! it on the shared disk, invalidate forgets it, readers must see the last writer's. Checked at every step: no two
//! incompatible holders in the cluster, no invalidate under a holder, sync before invalidate. At the end everything
//! comes to rest, and nobody who waited is left without an answer.

use std::collections::VecDeque;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use dlm_client::{Cast, Dlm, EventQueue, JoinOptions, LocalDlm, LockId, Lockspace, ResName, Status};

use super::*;
use crate::glock::state::State;

/// A small seeded generator (splitmix64): the same seed gives the same run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % limit
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

enum Out {
    Call(LockCall),
    Cancel,
}

struct Node {
    machine: Machine,
    space: Arc<dyn Lockspace>,
    queue: EventQueue,
    lock: Option<LockId>,
    /// Calls on their way to the master.
    outbox: VecDeque<Out>,
    /// A result that came inside the call and is not processed yet.
    direct: Option<Cast>,
    job: Option<Action>,
    callback: bool,
    timers: Vec<Duration>,
    waiting: Vec<HolderId>,
    blocked: bool,
    /// The cached version of the data.
    cache: Option<u64>,
    dirty: bool,
    synced: bool,
}

#[derive(Default, Debug, PartialEq, Eq, Clone, Copy)]
struct Seen {
    grants: u64,
    tries_failed: u64,
    deadlocks: u64,
    parked: u64,
    abandoned: u64,
    served: u64,
    pending: u64,
    early_basts: u64,
    trace: u64,
}

struct World {
    random: Random,
    nodes: Vec<Node>,
    now: Duration,
    next_holder: HolderId,
    disk: u64,
    newest: u64,
    seen: Seen,
}

impl World {
    fn new(seed: u64, nodes: usize) -> Self {
        let mut random = Random(seed);
        let dlm = LocalDlm::new();
        let kind = Kind {
            has_hold_time: random.one_in(2),
            presence_only: false,
            kernel_cached: random.one_in(2),
            journaled: true,
            has_lvb: random.one_in(2),
        };
        let nodes = (0..nodes)
            .map(|_| {
                let (space, queue) = dlm.join("sim", &JoinOptions::default()).unwrap();
                Node {
                    machine: Machine::new(kind),
                    space,
                    queue,
                    lock: None,
                    outbox: VecDeque::new(),
                    direct: None,
                    job: None,
                    callback: false,
                    timers: Vec::new(),
                    waiting: Vec::new(),
                    blocked: false,
                    cache: None,
                    dirty: false,
                    synced: false,
                }
            })
            .collect();
        Self {
            random,
            nodes,
            now: Duration::ZERO,
            next_holder: 0,
            disk: 0,
            newest: 0,
            seen: Seen::default(),
        }
    }

    fn feed(&mut self, n: usize, event: Event) {
        let text = format!("{} {n} {event:?}", self.now.as_millis());
        self.seen.trace = text.bytes().fold(self.seen.trace, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        let early = self.nodes[n].machine.phase() == Phase::Dlm;
        self.seen.early_basts += u64::from(early && matches!(event, Event::Bast(_)));
        self.nodes[n].machine.step(self.now, event);
        while let Some(action) = self.nodes[n].machine.pop_action() {
            self.act(n, action);
        }
        self.check();
    }

    fn act(&mut self, n: usize, action: Action) {
        let node = &mut self.nodes[n];
        match action {
            Action::Grant(id) => {
                let index = node.waiting.iter().position(|waiting| *waiting == id);
                node.waiting.remove(index.expect("only a waiter is granted"));
                self.seen.grants += 1;
                self.seen.served += u64::from(matches!(node.machine.phase(), Phase::Flush { .. }));
            }
            Action::Fail(id, reason) => {
                let index = node.waiting.iter().position(|waiting| *waiting == id);
                node.waiting.remove(index.expect("only a waiter fails"));
                assert!(
                    matches!(reason, FailReason::TryFailed | FailReason::WouldBlock),
                    "{reason:?}"
                );
                self.seen.tries_failed += 1;
            }
            Action::FlushKernel { .. } | Action::Sync { .. } | Action::Invalidate { .. } => {
                assert_eq!(node.job, None, "one job at a time");
                node.job = Some(action);
            }
            Action::Lock(call) => {
                assert!(!node.dirty || call.target == State::Ex, "given up while dirty");
                assert_eq!(node.job, None);
                node.outbox.push_back(Out::Call(call));
            }
            Action::Cancel => node.outbox.push_back(Out::Cancel),
            Action::Callback { .. } => node.callback = true,
            Action::Timer(at) => node.timers.push(at),
            Action::DemoteDone => {}
            Action::Withdraw(cause) => panic!("{cause:?}"),
        }
    }

    /// No two nodes have holders in states that exclude each other.
    fn check(&self) {
        let active: Vec<State> = self
            .nodes
            .iter()
            .filter(|node| node.machine.holders().first().is_some_and(Holder::is_granted))
            .map(|node| node.machine.state())
            .collect();
        for (index, one) in active.iter().enumerate() {
            for two in &active[index + 1..] {
                assert!(one.mode().compatible(two.mode()), "holders in {one} and {two}");
            }
        }
    }

    fn enqueue(&mut self, n: usize) {
        let state = self.random.pick(&[State::Sh, State::Sh, State::Df, State::Ex]);
        let mut flags = HolderFlags::empty();
        let wishes = [
            (HolderFlags::TRY, 6),
            (HolderFlags::TRY_1CB, 8),
            (HolderFlags::EXACT, 5),
            (HolderFlags::ANY, 5),
            (HolderFlags::NOCACHE, 8),
            (HolderFlags::NODE_SCOPE, 3),
            (HolderFlags::NOBLOCK, 12),
            (HolderFlags::SERVE, 4),
            (HolderFlags::NOEXP, 10),
        ];
        for (flag, chance) in wishes {
            flags.set(flag, self.random.one_in(chance));
        }
        self.next_holder += 1;
        let holder = Holder::new(self.next_holder, state, flags, None, Location::caller());
        if self.random.one_in(2) && self.nodes[n].machine.try_fast(holder) {
            self.seen.grants += 1;
            self.check();
            return;
        }
        self.nodes[n].waiting.push(holder.id);
        self.feed(n, Event::Enqueue(holder));
    }

    /// Uses the lock as its state allows, then lets go.
    fn use_and_release(&mut self, n: usize) {
        let granted: Vec<Holder> = self.nodes[n]
            .machine
            .holders()
            .iter()
            .copied()
            .filter(Holder::is_granted)
            .collect();
        if granted.is_empty() {
            return;
        }
        let holder = self.random.pick(&granted);
        let node = &mut self.nodes[n];
        assert!(
            !matches!(node.job, Some(Action::Sync { .. } | Action::Invalidate { .. })),
            "holder during a demote"
        );
        let value = *node.cache.get_or_insert(self.disk);
        node.machine.end_instantiate(true);
        assert_eq!(value, self.newest, "node {n} reads what the last writer wrote");
        if holder.state == State::Ex && node.machine.state() == State::Ex {
            self.newest += 1;
            node.cache = Some(self.newest);
            node.dirty = true;
        }
        if self.random.one_in(2) && self.nodes[n].machine.release_fast(holder.id) {
            return;
        }
        self.feed(n, Event::Dequeue(holder.id));
    }

    fn abandon(&mut self, n: usize) {
        if self.nodes[n].waiting.is_empty() {
            return;
        }
        let index = self.random.below(self.nodes[n].waiting.len());
        let id = self.nodes[n].waiting.remove(index);
        self.seen.abandoned += 1;
        self.feed(n, Event::Dequeue(id));
    }

    fn finish_job(&mut self, n: usize) {
        let Some(job) = self.nodes[n].job.take() else {
            return;
        };
        let node = &mut self.nodes[n];
        let event = match job {
            Action::FlushKernel { .. } => Event::FlushDone,
            Action::Sync { .. } => {
                if node.dirty {
                    self.disk = node.cache.expect("dirty data is cached");
                }
                node.dirty = false;
                node.synced = true;
                Event::SyncDone { ok: true }
            }
            _ => {
                assert!(!node.dirty, "invalidated while dirty");
                assert!(
                    node.machine
                        .holders()
                        .first()
                        .is_none_or(|first| !first.is_granted())
                );
                node.cache = None;
                Event::InvalidateDone
            }
        };
        self.feed(n, event);
    }

    fn send_call(&mut self, n: usize) {
        let at_once = self.random.one_in(2);
        let name = ResName::new(b"lock").unwrap();
        let node = &mut self.nodes[n];
        match node.outbox.pop_front() {
            None => {}
            Some(Out::Cancel) => {
                if let Some(id) = node.lock {
                    // Nothing to cancel: the answer is on its way already.
                    let _late = node.space.cancel(id);
                }
            }
            Some(Out::Call(call)) => {
                let mode = call.target.mode();
                let cast = match node.lock {
                    None if at_once => {
                        let (id, cast) = node.space.request_now(&name, mode, call.flags, 0).unwrap();
                        node.lock = Some(id);
                        cast
                    }
                    None => {
                        node.lock = Some(node.space.request(&name, mode, call.flags, 0).unwrap());
                        None
                    }
                    Some(id) if at_once => node.space.convert_now(id, mode, call.flags, None).unwrap(),
                    Some(id) => {
                        node.space.convert(id, mode, call.flags, None).unwrap();
                        None
                    }
                };
                assert!(node.direct.is_none());
                node.direct = cast;
            }
        }
    }

    fn receive(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if node.direct.is_some() && self.random.one_in(2) {
            if let Some(cast) = node.direct.take() {
                self.reply(n, cast);
            }
            return;
        }
        match node.queue.try_recv() {
            Some(dlm_client::Event::Cast(cast)) => self.reply(n, cast),
            Some(dlm_client::Event::Bast { mode, .. }) => {
                self.feed(n, Event::Bast(State::making_room_for(mode)));
            }
            _ => {}
        }
    }

    fn reply(&mut self, n: usize, cast: Cast) {
        let node = &mut self.nodes[n];
        let outcome = match cast.status {
            Status::Granted => Outcome::Granted,
            Status::Again => Outcome::Again,
            Status::Deadlock => {
                self.seen.deadlocks += 1;
                Outcome::Deadlock
            }
            Status::Canceled => Outcome::Canceled,
            other => panic!("{other:?}"),
        };
        if outcome != Outcome::Granted && node.machine.flags().contains(GlockFlags::INITIAL) {
            node.lock = None;
        }
        let state = State::from_mode(cast.mode).unwrap();
        let hold = node.blocked;
        self.feed(n, Event::Reply { outcome, state, hold });
        self.seen.parked += u64::from(
            self.nodes[n]
                .machine
                .flags()
                .contains(GlockFlags::HAVE_FROZEN_REPLY),
        );
        self.seen.pending += u64::from(self.nodes[n].machine.flags().contains(GlockFlags::PENDING_DEMOTE));
    }

    fn timers(&mut self, n: usize) {
        self.now += Duration::from_millis(u64::try_from(self.random.below(40)).unwrap());
        let now = self.now;
        let due = self.nodes[n].timers.iter().filter(|at| **at <= now).count();
        self.nodes[n].timers.retain(|at| *at > now);
        for _ in 0..due {
            self.feed(n, Event::Tick);
        }
    }

    fn recovery(&mut self, n: usize) {
        self.nodes[n].blocked = !self.nodes[n].blocked;
        if !self.nodes[n].blocked {
            self.feed(n, Event::Unblock);
        }
    }

    fn step(&mut self, quiesce: bool) {
        let n = self.random.below(self.nodes.len());
        match self.random.below(16) {
            0 | 1 if !quiesce => self.enqueue(n),
            2..=4 => self.use_and_release(n),
            5..=7 => self.send_call(n),
            8..=10 => self.receive(n),
            11 | 12 => self.finish_job(n),
            13 if self.nodes[n].callback => {
                self.nodes[n].callback = false;
                self.feed(n, Event::CallbackDone { ignore: false });
            }
            14 => self.timers(n),
            15 if !quiesce && self.random.one_in(3) => self.abandon(n),
            15 if !quiesce && self.random.one_in(3) => {
                let wanted = self.random.pick(&[State::Un, State::Sh, State::Df]);
                self.feed(n, Event::Demote(wanted));
            }
            15 if !quiesce && self.random.one_in(6) || self.nodes[n].blocked => self.recovery(n),
            _ => {}
        }
    }

    fn is_at_rest(&self) -> bool {
        self.nodes.iter().all(|node| {
            node.waiting.is_empty()
                && node.machine.holders().is_empty()
                && node.machine.phase() == Phase::Idle
                && node.outbox.is_empty()
                && node.direct.is_none()
                && node.job.is_none()
                && !node.callback
        })
    }

    fn run(seed: u64, nodes: usize, steps: usize) -> Seen {
        let mut world = Self::new(seed, nodes);
        for _ in 0..steps {
            world.step(false);
        }
        for _ in 0..400_000 {
            if world.is_at_rest() {
                return world.seen;
            }
            world.step(true);
        }
        for (n, node) in world.nodes.iter().enumerate() {
            eprintln!("node {n}: waiting {:?} {:#?}", node.waiting, node.machine);
        }
        panic!("seed {seed}: somebody waits for ever");
    }
}

#[test]
fn holders_exclude_each_other_and_no_waiter_is_lost() {
    let mut all = Seen::default();
    for seed in 0..300 {
        let seen = std::panic::catch_unwind(|| World::run(seed, 2 + usize::from(seed % 2 == 0), 3000));
        let seen = seen.unwrap_or_else(|_| panic!("failed with seed {seed}"));
        all.grants += seen.grants;
        all.tries_failed += seen.tries_failed;
        all.deadlocks += seen.deadlocks;
        all.parked += seen.parked;
        all.abandoned += seen.abandoned;
        all.served += seen.served;
        all.pending += seen.pending;
        all.early_basts += seen.early_basts;
    }
    // The simulation is worth something only if it went through all this.
    let reached = [
        all.grants,
        all.tries_failed,
        all.deadlocks,
        all.parked,
        all.abandoned,
        all.served,
        all.pending,
        all.early_basts,
    ];
    assert!(reached.iter().all(|count| *count > 100), "{all:?}");
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in [1, 77, 4096] {
        assert_eq!(World::run(seed, 3, 2000), World::run(seed, 3, 2000));
    }
}
