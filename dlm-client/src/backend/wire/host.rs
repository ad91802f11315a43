//! Everything of a node that changes, behind one lock: the lock daemon, the network, and the engines of the lockspaces.
//!
//! Invariants: what an engine puts out is carried out in order and at once, so that the order of events on a queue is the
//! order of their effects; once dead, nothing is sent and no event but the one Fatal is delivered; while suspended,
//! events wait.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use rustix::time::{ClockId, clock_gettime};
use tracing::{debug, error, info};

use crate::controld::{self, Action, Controld, Input, Now, Order};
use crate::engine::{self, Engine, Output, TimerId};
use crate::event::EventSender;
use crate::midcomms::{FIN_WAIT, LinkError};
use crate::transport::{NetEvent, Network, Ready, Traffic, Transport};
use crate::wire::{LockspaceId, Payload, Rcom, RcomBody, StatusReply};
use crate::{Cast, Event, LockError, LockId, NodeId};

/// Lines of the daemon that are remembered.
const SAID_MAX: usize = 2000;

struct Space {
    name: String,
    engine: Engine,
    events: EventSender,
    /// Events on the queue whose reader was not woken yet.
    told: usize,
    /// Events that wait for the end of a suspension.
    waiting: Vec<Event>,
    /// Nodes the engine shares the lockspace with.
    members: BTreeSet<NodeId>,
    /// We asked to leave: of what still happens only a Fatal is the user's business.
    leaving: bool,
}

/// The last lockspace was left: its queue ends when the links have.
struct Closing {
    events: Vec<EventSender>,
    until: Instant,
}

pub(super) struct Host {
    us: NodeId,
    net: Network<Box<dyn Transport>>,
    controld: Controld,
    spaces: BTreeMap<LockspaceId, Space>,
    timers: BinaryHeap<Reverse<(Instant, LockspaceId, TimerId)>>,
    /// For the membership's thread.
    requests: VecDeque<Action>,
    suspended: bool,
    /// When the daemon was last asked.
    stepped: Duration,
    dead: Option<LockError>,
    closing: Option<Closing>,
    /// What the daemon said last, for those who ask.
    said: VecDeque<String>,
    /// How often the network's thread woke up, and readers were told something.
    turns: u64,
    told: u64,
    /// When the network's thread wakes up by itself.
    pub(super) sleeps_until: Option<Instant>,
}

/// The time since the machine started, suspended or not.
fn since_boot() -> Duration {
    let boot = clock_gettime(ClockId::Boottime);
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    Duration::from_secs(part(boot.tv_sec)).saturating_add(Duration::from_nanos(part(boot.tv_nsec)))
}

/// The time as the lock daemon wants it.
fn daemon_time() -> Now {
    Now {
        mono: since_boot(),
        wall: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |d| d.as_secs()),
    }
}

impl Host {
    pub(super) fn new(us: NodeId, net: Network<Box<dyn Transport>>, controld: Controld) -> Self {
        Self {
            us,
            net,
            controld,
            spaces: BTreeMap::new(),
            timers: BinaryHeap::new(),
            requests: VecDeque::new(),
            suspended: false,
            stepped: since_boot(),
            dead: None,
            closing: None,
            said: VecDeque::new(),
            turns: 0,
            told: 0,
            sleeps_until: None,
        }
    }

    pub(super) const fn network(&mut self) -> &mut Network<Box<dyn Transport>> {
        &mut self.net
    }

    pub(super) const fn controld(&self) -> &Controld {
        &self.controld
    }

    pub(super) fn engine(&self, id: LockspaceId) -> Option<&Engine> {
        self.spaces.get(&id).map(|s| &s.engine)
    }

    pub(super) fn status(&self) -> controld::Status {
        self.controld.status(daemon_time())
    }

    /// Readers to be woken, and for how many events each; to be done without the host's lock, which they will want.
    pub(super) fn take_told(&mut self) -> Vec<(EventSender, usize)> {
        let told = self.spaces.values_mut().filter(|space| space.told > 0);
        let told: Vec<_> = told
            .map(|space| (space.events.clone(), std::mem::take(&mut space.told)))
            .collect();
        let readers = u64::try_from(told.len()).unwrap_or(u64::MAX);
        self.told = self.told.wrapping_add(readers);
        told
    }

    /// What was done for messages so far.
    pub(super) fn traffic(&self) -> Traffic {
        Traffic {
            turns: self.turns,
            told: self.told,
            ..self.net.traffic()
        }
    }

    /// Does [`Host::turn`] have something to do before the network's thread wakes up by itself?
    pub(super) fn is_due_early(&self) -> bool {
        match (self.deadline(), self.sleeps_until) {
            (Some(due), Some(sleeps)) => due < sleeps,
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    pub(super) const fn dead(&self) -> Option<&LockError> {
        self.dead.as_ref()
    }

    pub(super) fn take_requests(&mut self) -> VecDeque<Action> {
        std::mem::take(&mut self.requests)
    }

    pub(super) fn has_requests(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Is there nothing left that somebody waits for?
    pub(super) fn is_quiet(&self) -> bool {
        self.dead.is_some() || (self.requests.is_empty() && self.closing.is_none())
    }

    /// When [`Host::turn`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((at, ..))| *at);
        let closing = self.closing.as_ref().map(|c| c.until);
        [timer, closing, self.net.deadline()].into_iter().flatten().min()
    }

    /// Joins a lockspace.
    pub(super) fn join(
        &mut self,
        name: &str,
        config: engine::Config,
        events: EventSender,
    ) -> Result<(), LockError> {
        let actions = self
            .controld
            .join(daemon_time(), name)
            .map_err(|e| LockError::Service(e.to_string()))?;
        self.spaces.insert(
            config.lockspace,
            Space {
                name: name.to_owned(),
                engine: Engine::new(config),
                events,
                told: 0,
                waiting: Vec::new(),
                members: BTreeSet::new(),
                leaving: false,
            },
        );
        self.carry_out(actions);
        Ok(())
    }

    /// Begins to leave a lockspace; its queue ends when that is done.
    pub(super) fn leave(&mut self, id: LockspaceId) -> Result<(), LockError> {
        let space = self.spaces.get_mut(&id).ok_or(LockError::Left)?;
        if space.leaving {
            return Err(LockError::Left);
        }
        let actions = self
            .controld
            .leave(&space.name)
            .map_err(|e| LockError::Service(e.to_string()))?;
        space.leaving = true;
        self.carry_out(actions);
        Ok(())
    }

    /// Stops taking part, without a word.
    pub(super) fn abandon(&mut self, reason: &str) {
        self.die(LockError::Service(reason.to_owned()));
    }

    /// Leaves the daemons' group; nothing is joined any more.
    pub(super) fn shut_down(&mut self) {
        match self.controld.shut_down() {
            Ok(actions) => self.carry_out(actions),
            Err(e) => self.abandon(&e.to_string()),
        }
    }

    /// Something happened to the lock daemon.
    pub(super) fn input(&mut self, input: Input) {
        let now = daemon_time();
        self.stepped = now.mono;
        let actions = self.controld.step(now, input);
        self.carry_out(actions);
        self.extend();
    }

    /// What users were told may be believed until the cluster could have given us up.
    fn extend(&self) {
        if self.dead.is_none() && !self.suspended {
            let grace = self.controld.grace();
            self.spaces.values().for_each(|space| space.events.extend(grace));
        }
    }

    /// Before anything is believed that came while this process stood still, the daemon has to see that it did.
    fn notice_pause(&mut self) {
        if since_boot().saturating_sub(self.stepped) > self.controld.grace() {
            self.input(Input::Tick);
        }
    }

    pub(super) fn plock(
        &mut self,
        id: LockspaceId,
        op: crate::PlockOp,
        lock: &crate::Plock,
        token: u64,
    ) -> Result<(), LockError> {
        let space = self
            .spaces
            .get(&id)
            .filter(|s| !s.leaving)
            .ok_or(LockError::Left)?;
        let actions = self.controld.plock(daemon_time(), &space.name, op, lock, token)?;
        self.carry_out(actions);
        Ok(())
    }

    pub(super) fn plock_cancel(&mut self, id: LockspaceId, token: u64) -> Result<(), LockError> {
        let space = self
            .spaces
            .get(&id)
            .filter(|s| !s.leaving)
            .ok_or(LockError::Left)?;
        let actions = self.controld.plock_cancel(daemon_time(), &space.name, token)?;
        self.carry_out(actions);
        Ok(())
    }

    pub(super) fn acknowledge_fencing(&mut self, node: NodeId) {
        let actions = self.controld.acknowledge_fencing(daemon_time(), node);
        self.carry_out(actions);
    }

    /// A call of the user on the engine of a lockspace. `caught` gets the Cast of the lock the call returns when it is
    /// the first thing to be told; everything else goes to the queue.
    pub(super) fn call<T>(
        &mut self,
        id: LockspaceId,
        call: impl FnOnce(&mut Engine) -> Result<T, LockError>,
        lock: impl FnOnce(&T) -> Option<LockId>,
    ) -> Result<(T, Option<Cast>), LockError> {
        self.notice_pause();
        if let Some(error) = &self.dead {
            return Err(error.clone());
        }
        let space = self
            .spaces
            .get_mut(&id)
            .filter(|s| !s.leaving)
            .ok_or(LockError::Left)?;
        let done = call(&mut space.engine)?;
        let wanted = lock(&done).filter(|_| !self.suspended);
        let cast = self.drain(id, wanted);
        if self.net.wants_flush() {
            self.net.flush(Instant::now());
        }
        Ok((done, cast))
    }

    /// Carries out what an engine put out. With `wanted`, a Cast of that lock that comes before any other event is
    /// returned instead of queued.
    fn drain(&mut self, id: LockspaceId, mut wanted: Option<LockId>) -> Option<Cast> {
        let mut caught = None;
        loop {
            let space = self.spaces.get_mut(&id)?;
            let Some(output) = space.engine.output() else {
                return caught;
            };
            match output {
                Output::Send { to, payload } => {
                    if let Err(e) = self.net.send(to, id, payload) {
                        self.cannot_send(e);
                    }
                }
                Output::Event(event) => match (event, wanted.take()) {
                    (Event::Cast(cast), Some(lock)) if cast.id == lock => caught = Some(cast),
                    (event, _) => self.deliver(id, event),
                },
                Output::Timer { id: timer, after } => {
                    if let Some(at) = Instant::now().checked_add(after) {
                        self.timers.push(Reverse((at, id, timer)));
                    }
                }
                Output::AddMember(node) => {
                    space.members.insert(node);
                    self.net.add_member(node);
                }
                Output::RemoveMember(node) => {
                    space.members.remove(&node);
                    self.net.remove_member(node);
                }
                Output::RecoveryDone { seq, generation } => {
                    info!(lockspace = %space.name, seq, generation, "recovery done");
                }
                Output::Log { level, text } => match level {
                    engine::Level::Error => error!(lockspace = %space.name, "{text}"),
                    engine::Level::Info => info!(lockspace = %space.name, "{text}"),
                    engine::Level::Debug => debug!(lockspace = %space.name, "{text}"),
                },
            }
        }
    }

    fn deliver(&mut self, id: LockspaceId, event: Event) {
        let Some(space) = self.spaces.get_mut(&id) else {
            return;
        };
        let fatal = matches!(event, Event::Fatal(_));
        if space.leaving && !fatal {
            return;
        }
        if self.suspended && !fatal {
            space.waiting.push(event);
        } else if space.events.push(event) {
            space.told = space.told.saturating_add(1);
        } else {
            let name = space.name.clone();
            self.abandon(&format!("the reader of lockspace {name} is gone"));
        }
    }

    fn cannot_send(&mut self, error: LinkError) {
        match error {
            // It left the cluster, or is about to: recovery takes care of what it should have got.
            LinkError::Closing { .. } => debug!("{error}"),
            other => self.die(LockError::Service(other.to_string())),
        }
    }

    pub(super) fn carry_out(&mut self, actions: Vec<Action>) {
        // The membership's thread of a dead node is gone: nobody would ever take a request.
        if self.dead.is_some() {
            return;
        }
        for action in actions {
            self.carry_out_one(action);
        }
        self.net.flush(Instant::now());
    }

    fn carry_out_one(&mut self, action: Action) {
        match action {
            Action::Engine { lockspace, order } => self.order(&lockspace, order),
            Action::Plock { lockspace, done } => {
                let id = self.id_of(&lockspace);
                id.into_iter().for_each(|id| self.deliver(id, Event::Plock(done)));
            }
            Action::Suspend => self.suspended = true,
            Action::Resume => self.resume(),
            Action::Fatal(fatal) => self.die(LockError::Service(fatal.to_string())),
            Action::Log(level, text) => {
                self.remember(&text);
                match level {
                    controld::Level::Error => error!("{text}"),
                    controld::Level::Info => info!("{text}"),
                    controld::Level::Debug => debug!("{text}"),
                }
            }
            for_members => self.requests.push_back(for_members),
        }
    }

    fn remember(&mut self, text: &str) {
        if self.said.len() >= SAID_MAX {
            self.said.pop_front();
        }
        let now = daemon_time();
        self.said
            .push_back(format!("{} {} {text}", now.wall, now.mono.as_secs()));
    }

    /// What the daemon said last.
    pub(super) fn said(&self) -> Vec<String> {
        self.said.iter().cloned().collect()
    }

    fn id_of(&self, name: &str) -> Option<LockspaceId> {
        self.spaces
            .iter()
            .find(|(_, space)| space.name == name)
            .map(|(id, _)| *id)
    }

    fn order(&mut self, name: &str, order: Order) {
        let Some(id) = self.id_of(name) else { return };
        if matches!(order, Order::Start(_)) {
            // Before the engines speak: what another life said on a link that looks the same is not to be heard.
            let now = Instant::now();
            for (node, life) in self.controld.lives(name).filter(|(node, _)| *node != self.us) {
                self.net.expect_life(node, life, now);
            }
        }
        let Some(space) = self.spaces.get_mut(&id) else {
            return;
        };
        match order {
            Order::Stop => space.engine.stop(),
            Order::Start(start) => space.engine.start(&engine_start(&start)),
            Order::Left => return self.left(id),
        }
        self.drain(id, None);
    }

    fn left(&mut self, id: LockspaceId) {
        let Some(space) = self.spaces.remove(&id) else {
            return;
        };
        for node in space.members {
            self.net.remove_member(node);
        }
        if self.spaces.is_empty() {
            let now = Instant::now();
            self.net.shutdown(now);
            let until = now.checked_add(FIN_WAIT).unwrap_or(now);
            let closing = self.closing.get_or_insert(Closing {
                events: Vec::new(),
                until,
            });
            closing.events.push(space.events);
        } else {
            space.events.close();
        }
    }

    fn resume(&mut self) {
        self.suspended = false;
        let ids: Vec<LockspaceId> = self.spaces.keys().copied().collect();
        for id in ids {
            let waiting = self.spaces.get_mut(&id).map(|s| std::mem::take(&mut s.waiting));
            for event in waiting.into_iter().flatten() {
                self.deliver(id, event);
            }
        }
    }

    /// The end: says Fatal on every queue and sends nothing more.
    fn die(&mut self, reason: LockError) {
        if self.dead.is_some() {
            return;
        }
        error!("lock service: {reason}");
        for space in self.spaces.values() {
            space.events.send(Event::Fatal(reason.clone()));
            space.events.close();
        }
        for closing in self.closing.take().into_iter().flat_map(|c| c.events) {
            closing.close();
        }
        self.spaces.clear();
        self.timers.clear();
        self.requests.clear();
        self.dead = Some(reason);
    }

    /// The network's turn: what is ready, what is due, and all that follows from it. Returns when it began.
    pub(super) fn turn(&mut self, ready: &[Ready]) -> Instant {
        self.turns = self.turns.wrapping_add(1);
        self.notice_pause();
        let now = Instant::now();
        for one in ready {
            self.net.ready(*one, now);
        }
        self.net.tick(now);
        while let Some(event) = self.net.next_event(now) {
            self.on_net(event);
        }
        while self.timers.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
            if let Some(Reverse((_, id, timer))) = self.timers.pop()
                && let Some(space) = self.spaces.get_mut(&id)
            {
                space.engine.timer(timer);
                self.drain(id, None);
            }
        }
        if self.dead.is_none() && self.net.wants_flush() {
            self.net.flush(now);
        }
        if self
            .closing
            .as_ref()
            .is_some_and(|c| c.until <= now || self.net.is_closed())
        {
            for events in self.closing.take().into_iter().flat_map(|c| c.events) {
                events.close();
            }
        }
        now
    }

    fn on_net(&mut self, event: NetEvent) {
        if self.dead.is_some() {
            return;
        }
        match event {
            NetEvent::Delivered {
                from,
                lockspace,
                payload,
            } => match self.spaces.get_mut(&lockspace) {
                Some(space) => {
                    space.engine.receive(from, payload);
                    self.drain(lockspace, None);
                }
                None => self.no_lockspace(from, lockspace, &payload),
            },
            NetEvent::Connected(node) => info!(node = node.0, "connected"),
            NetEvent::Disconnected(node, gone) => info!(node = node.0, "connection lost: {gone}"),
            NetEvent::MessagesLost(node) => self.die(LockError::Service(format!(
                "the connection to node {} was lost; it speaks protocol 3.1, which cannot send again",
                node.0
            ))),
            NetEvent::Ignored(node, why) => debug!(node = node.0, "packet ignored: {why:?}"),
            NetEvent::Refused(error) => error!("connection dropped: {error}"),
            NetEvent::Stranger(addr) => error!("connection from {addr}, which is no node of the cluster"),
        }
    }

    /// Whoever asks how far we are in a lockspace that we are not in has to know.
    fn no_lockspace(&mut self, from: NodeId, lockspace: LockspaceId, payload: &Payload) {
        let Payload::Rcom(Rcom {
            id,
            seq,
            body: RcomBody::Status { .. },
            ..
        }) = payload
        else {
            return debug!(
                node = from.0,
                "a message for lockspace {:#x}, which is not here", lockspace.0
            );
        };
        let reply = Rcom {
            id: *id,
            seq: 0,
            seq_reply: *seq,
            body: RcomBody::StatusReply(StatusReply::NoLockspace),
        };
        if let Err(e) = self.net.send(from, lockspace, Payload::Rcom(reply)) {
            self.cannot_send(e);
        }
    }

    pub(super) const fn us(&self) -> NodeId {
        self.us
    }
}

/// The daemon's start in the engine's words.
fn engine_start(start: &controld::Start) -> engine::Start {
    let renewed = |node: NodeId| start.gone.iter().any(|g| g.node == node);
    engine::Start {
        members: start
            .members
            .iter()
            .map(|m| engine::Member {
                node: m.node,
                weight: m.weight,
                renewed: renewed(m.node),
            })
            .collect(),
        failed: start.gone.iter().filter(|g| g.failed).map(|g| g.node).collect(),
    }
}
