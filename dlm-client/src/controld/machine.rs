//! All machines of the daemon together: one input at a time, and what follows from it.
//!
//! Invariants: a fatal verdict is final: it is said once, every engine is stopped before it, and nothing is sent after
//! it; lockspaces are joined only after the protocol is agreed on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::action::{Action, Fatal, Job, Now, Order, Out};
use super::cluster::Cluster;
use super::codec::{Body, Message};
use super::daemon::{Daemon, Near};
use super::lockspace::{Around, Lockspace};
use super::safety::{News, Safety};
use super::status::Status;
use crate::fence::conf::DlmConf;
use crate::membership::{ClusterConfig, Group, MemberEvent, Reason};
use crate::{LockError, NodeId, Plock, PlockOp};

/// Longest name of a lockspace.
const NAME_MAX: usize = 64;

/// What happens to the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// News of the membership service.
    Member(MemberEvent),
    /// Time has passed; to come at least ten times in a token time.
    Tick,
    /// A fence agent runs. What is shown of it, and nothing else, depends on this.
    AgentRuns {
        /// Which.
        job: Job,
        /// Its process.
        pid: u32,
    },
    /// A fence agent has ended, with its exit status; -1 when a signal ended it.
    AgentDone {
        /// Which.
        job: Job,
        /// 0 is success.
        status: i32,
    },
}

/// A lockspace cannot be joined or left.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The name is empty, too long, or contains what a name must not.
    #[error("lockspace name {name:?}: 1 to 64 bytes without zero bytes and slashes are allowed")]
    Name {
        /// The name.
        name: String,
    },
    /// We are in it.
    #[error("lockspace {name} is joined already")]
    Joined {
        /// The name.
        name: String,
    },
    /// We are not in it.
    #[error("lockspace {name} is not joined")]
    NotJoined {
        /// The name.
        name: String,
    },
    /// The daemon has given up.
    #[error("the lock daemon has stopped: {0}")]
    Dead(String),
}

/// The daemon.
#[derive(Debug)]
pub struct Controld {
    config: ClusterConfig,
    conf: DlmConf,
    cluster: Cluster,
    daemon: Daemon,
    group: Vec<NodeId>,
    lockspaces: BTreeMap<String, Lockspace>,
    /// To be joined when the protocol is agreed on.
    wanted: BTreeSet<String>,
    /// When lockspaces were left.
    left: BTreeMap<String, Duration>,
    safety: Safety,
    dead: Option<Fatal>,
    leaving: bool,
}

impl Controld {
    /// A daemon that starts. `life` tells this life of the node's daemon from others: any number but 0.
    #[must_use]
    pub fn new(config: ClusterConfig, conf: DlmConf, life: u32) -> (Self, Vec<Action>) {
        let startup = config.nodes.iter().map(|node| node.node);
        let startup: BTreeSet<NodeId> = if conf.enable_fencing && conf.enable_startup_fencing {
            startup.collect()
        } else {
            BTreeSet::new()
        };
        let daemon = Daemon::new(config.us, life, startup);
        let machine = Self {
            cluster: Cluster::default(),
            daemon,
            group: Vec::new(),
            lockspaces: BTreeMap::new(),
            wanted: BTreeSet::new(),
            left: BTreeMap::new(),
            safety: Safety::new(&config, life),
            dead: None,
            leaving: false,
            config,
            conf,
        };
        (
            machine,
            vec![Action::Join(Group::Daemons), Action::Join(Group::Beat)],
        )
    }

    /// Takes an input in.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Action> {
        let mut out = Out::default();
        if self.dead.is_some() {
            return out.0;
        }
        self.safety.on_turn(now, self.daemon.is_stateful(), &mut out);
        let fatal = match input {
            Input::Tick => None,
            Input::AgentRuns { job, pid } => {
                self.daemon.on_agent_runs(job, pid);
                None
            }
            Input::AgentDone { job, status } => {
                let (daemon, near) = self.near(now);
                daemon.on_agent(&near, job, status, &mut out);
                None
            }
            Input::Member(event) => self.on_event(now, event, &mut out),
        };
        if let Some(fatal) = fatal {
            out.push(Action::Fatal(fatal));
        }
        self.settle(now, &mut out);
        out.0
    }

    fn near(&mut self, now: Now) -> (&mut Daemon, Near<'_>) {
        let near = Near {
            now,
            cluster: &self.cluster,
            conf: &self.conf,
            two_node: self.config.two_node,
            behind: self.safety.is_behind() || self.safety.is_undecided(),
        };
        (&mut self.daemon, near)
    }

    /// One lockspace, and what is around it.
    fn within(&mut self, now: Now, name: &str) -> Option<(&mut Lockspace, Around<'_>)> {
        let around = Around {
            now,
            cluster: &self.cluster,
            daemon: &self.daemon,
            options: &self.conf,
            suspended: self.safety.is_suspended() || self.safety.is_behind(),
            grace: self.safety.grace(),
        };
        self.lockspaces.get_mut(name).map(|lockspace| (lockspace, around))
    }

    fn on_event(&mut self, now: Now, event: MemberEvent, out: &mut Out) -> Option<Fatal> {
        match event {
            MemberEvent::Quorum {
                quorate,
                ring,
                members,
                renewed,
            } => {
                if quorate != self.cluster.quorate {
                    out.info(format!("quorum {}", if quorate { "gained" } else { "lost" }));
                }
                self.safety.on_quorum(quorate, &members);
                self.cluster.on_quorum(now, quorate, ring, &members, &renewed);
            }
            MemberEvent::Ring { group, ring } => match group {
                Group::Daemons => self.daemon.on_ring(ring),
                Group::Lockspace(name) => {
                    if let Some(lockspace) = self.lockspaces.get_mut(&name) {
                        lockspace.on_ring(ring);
                    }
                }
                Group::Beat => {}
            },
            MemberEvent::Confchg {
                group,
                members,
                joined,
                left,
            } => return self.on_confchg(now, group, &members, &joined, &left, out),
            MemberEvent::Deliver { group, from, bytes } => match Message::decode(&bytes) {
                Ok(message) => return self.on_message(now, &group, from, &message, out),
                Err(error) => out.error(format!("message of node {} in {}: {error}", from.0, group.name())),
            },
            MemberEvent::ShutdownAsked => {
                out.push(Action::AnswerShutdown(
                    self.lockspaces.is_empty() && self.wanted.is_empty(),
                ));
            }
            MemberEvent::Lost(reason) => return Some(Fatal::Lost(reason)),
        }
        None
    }

    fn on_confchg(
        &mut self,
        now: Now,
        group: Group,
        members: &[NodeId],
        joined: &[(NodeId, Reason)],
        left: &[(NodeId, Reason)],
        out: &mut Out,
    ) -> Option<Fatal> {
        let us = self.config.us;
        let we_left = left.iter().any(|(node, _)| *node == us);
        match group {
            Group::Daemons => {
                if we_left && !self.leaving {
                    return Some(Fatal::ThrownOut { group: group.name() });
                }
                let stateful = self.daemon.is_stateful();
                let news = News {
                    members,
                    joined,
                    left,
                };
                let fatal = self.safety.on_confchg(now, &self.cluster, stateful, &news, out);
                if fatal.is_some() {
                    return fatal;
                }
                self.group = members.to_vec();
                let (daemon, near) = self.near(now);
                daemon.on_confchg(&near, members, joined, left, out);
            }
            Group::Beat => self.safety.on_beat_confchg(now, members),
            Group::Lockspace(name) => {
                let mark = self.daemon.mark(out);
                let (lockspace, around) = self.within(now, &name)?;
                if we_left && !lockspace.is_leaving() {
                    let group = Group::Lockspace(name).name();
                    return Some(Fatal::ThrownOut { group });
                }
                if lockspace.on_confchg(&around, mark, members, joined, left, out)
                    && let Some(gone) = self.lockspaces.remove(&name)
                {
                    if gone.rejoining {
                        self.wanted.insert(name.clone());
                    }
                    if !gone.is_settled() {
                        self.left.insert(name, now.mono);
                    }
                }
            }
        }
        None
    }

    fn on_message(
        &mut self,
        now: Now,
        group: &Group,
        from: NodeId,
        message: &Message,
        out: &mut Out,
    ) -> Option<Fatal> {
        match group {
            Group::Daemons => {
                if let (Body::Protocol(protocol), true) = (&message.body, message.header.from == from.0) {
                    let fatal = self.safety.on_protocol(from, protocol.is_stateful());
                    if fatal.is_some() {
                        return fatal;
                    }
                }
                let (daemon, near) = self.near(now);
                daemon.on_message(&near, from, message, out);
            }
            Group::Beat => self.safety.on_beat(from, message),
            Group::Lockspace(name) => {
                if let Err(why) = self.daemon.check(from, &message.header) {
                    out.error(format!(
                        "lockspace {name}: message of node {} rejected: {why}",
                        from.0
                    ));
                } else if let Some((lockspace, around)) = self.within(now, name) {
                    lockspace.on_message(&around, from, message, out);
                }
            }
        }
        None
    }

    /// What follows by itself from what is known now.
    fn settle(&mut self, now: Now, out: &mut Out) {
        if !out.0.iter().any(|action| matches!(action, Action::Fatal(_))) {
            let (daemon, near) = self.near(now);
            daemon.advance(&near, out);
            if self.daemon.agreed {
                self.join_wanted(now, out);
            }
            let around = Around {
                now,
                cluster: &self.cluster,
                daemon: &self.daemon,
                options: &self.conf,
                suspended: self.safety.is_suspended() || self.safety.is_behind(),
                grace: self.safety.grace(),
            };
            for lockspace in self.lockspaces.values_mut() {
                lockspace.advance(&around, out);
            }
            if self.lockspaces.values().any(Lockspace::is_started) {
                self.daemon.set_stateful();
            }
            self.go_on(now, out);
        }
        self.give_up(out);
    }

    /// Joins the lockspaces that are wanted.
    ///
    /// One that was left before all had said START has to wait: what others still send about our last coming looks, to
    /// us, the same as what they will send about the next one. When all have, nobody sends anything more that names us.
    fn join_wanted(&mut self, now: Now, out: &mut Out) {
        let grace = self.safety.grace();
        self.left
            .retain(|_, left| now.mono.saturating_sub(*left) <= grace);
        let ready = |name: &String| !self.left.contains_key(name);
        let names: Vec<String> = self.wanted.iter().filter(|name| ready(name)).cloned().collect();
        for name in names {
            self.wanted.remove(&name);
            let lockspace = Lockspace::new(self.config.us, &name, &self.conf, now);
            self.lockspaces.insert(name.clone(), lockspace);
            out.push(Action::Join(Group::Lockspace(name)));
        }
    }

    /// Ends a suspension, and starts lock engines whose members are agreed on, if that is not outdated.
    fn go_on(&mut self, now: Now, out: &mut Out) {
        if self.safety.wants_mark() && self.daemon.agreed {
            self.safety.marked(self.daemon.mark(out));
        }
        let daemon = &self.daemon;
        self.safety.resume(now, |mark| daemon.has_passed(mark), out);
        let grace = self.safety.grace();
        for lockspace in self.lockspaces.values_mut() {
            if lockspace.wants_mark(now, grace) {
                lockspace.marked(now, self.daemon.mark(out));
            }
            let around = Around {
                now,
                cluster: &self.cluster,
                daemon: &self.daemon,
                options: &self.conf,
                suspended: self.safety.is_suspended() || self.safety.is_behind(),
                grace,
            };
            lockspace.go_on(&around, out);
        }
    }

    /// A fatal verdict among the actions: engines stop first, and nothing is sent any more.
    fn give_up(&mut self, out: &mut Out) {
        let verdict = out.0.iter().find_map(|action| match action {
            Action::Fatal(fatal) => Some(fatal.clone()),
            _ => None,
        });
        let Some(fatal) = verdict else { return };
        self.daemon.stop(out);
        let keep = |action: &Action| {
            matches!(
                action,
                Action::Log(..)
                    | Action::StopAgent(_)
                    | Action::Engine {
                        order: Order::Stop,
                        ..
                    }
            )
        };
        out.0.retain(keep);
        for lockspace in self.lockspaces.values_mut() {
            lockspace.stop(out);
        }
        out.error(format!("giving up: {fatal}"));
        out.push(Action::Fatal(fatal.clone()));
        self.dead = Some(fatal);
    }

    fn alive(&self) -> Result<(), JoinError> {
        match &self.dead {
            Some(fatal) => Err(JoinError::Dead(fatal.to_string())),
            None => Ok(()),
        }
    }

    /// Joins a lockspace; its first order is a start.
    ///
    /// # Errors
    /// A name that cannot be, one that is joined, or a daemon that has given up.
    pub fn join(&mut self, now: Now, name: &str) -> Result<Vec<Action>, JoinError> {
        self.alive()?;
        if name.is_empty() || name.len() > NAME_MAX || name.contains(['\0', '/']) {
            return Err(JoinError::Name {
                name: name.to_owned(),
            });
        }
        if self.lockspaces.contains_key(name) || !self.wanted.insert(name.to_owned()) {
            return Err(JoinError::Joined {
                name: name.to_owned(),
            });
        }
        let mut out = Out::default();
        self.settle(now, &mut out);
        Ok(out.0)
    }

    /// Leaves a lockspace; the last order is [`Order::Left`].
    ///
    /// # Errors
    /// One that is not joined, or is being left, or a daemon that has given up.
    pub fn leave(&mut self, name: &str) -> Result<Vec<Action>, JoinError> {
        self.alive()?;
        let mut out = Out::default();
        if self.wanted.remove(name) {
            let lockspace = name.to_owned();
            out.push(Action::Engine {
                lockspace,
                order: Order::Left,
            });
            return Ok(out.0);
        }
        match self.lockspaces.get_mut(name) {
            Some(lockspace) if lockspace.rejoining => lockspace.rejoining = false,
            Some(lockspace) if !lockspace.is_leaving() => lockspace.leave(&mut out),
            _ => {
                return Err(JoinError::NotJoined {
                    name: name.to_owned(),
                });
            }
        }
        Ok(out.0)
    }

    /// Leaves the daemons' group, for good. Lockspaces must have been left before.
    ///
    /// # Errors
    /// The first lockspace that is still joined.
    pub fn shut_down(&mut self) -> Result<Vec<Action>, JoinError> {
        let joined = self.lockspaces.keys().chain(&self.wanted).next();
        if let (Some(name), None) = (joined, &self.dead) {
            return Err(JoinError::Joined { name: name.clone() });
        }
        self.leaving = true;
        let mut out = Out::default();
        self.daemon.stop(&mut out);
        if self.dead.is_none() {
            out.push(Action::Leave(Group::Beat));
            out.push(Action::Leave(Group::Daemons));
        }
        Ok(out.0)
    }

    /// An operation on POSIX locks.
    ///
    /// # Errors
    /// [`LockError::Left`] for a lockspace that is not joined, [`LockError::NoPlocks`] before its first start, or a
    /// range that cannot be.
    pub fn plock(
        &mut self,
        now: Now,
        lockspace: &str,
        op: PlockOp,
        lock: &Plock,
        token: u64,
    ) -> Result<Vec<Action>, LockError> {
        let mut out = Out::default();
        let dead = self.dead.is_some();
        let (lockspace, around) = self
            .within(now, lockspace)
            .filter(|_| !dead)
            .ok_or(LockError::Left)?;
        lockspace.plock(&around, op, lock, token, &mut out)?;
        Ok(out.0)
    }

    /// Takes a waiting POSIX lock back.
    ///
    /// # Errors
    /// [`LockError::NoSuchPlock`] when it has ended, [`LockError::Left`] for a lockspace that is not joined.
    pub fn plock_cancel(&mut self, now: Now, lockspace: &str, token: u64) -> Result<Vec<Action>, LockError> {
        let mut out = Out::default();
        let dead = self.dead.is_some();
        let (lockspace, around) = self
            .within(now, lockspace)
            .filter(|_| !dead)
            .ok_or(LockError::Left)?;
        lockspace.plock_cancel(&around, token, &mut out)?;
        Ok(out.0)
    }

    /// A person says that a node is surely down.
    #[must_use]
    pub fn acknowledge_fencing(&self, now: Now, node: NodeId) -> Vec<Action> {
        let mut out = Out::default();
        if self.dead.is_none() {
            self.daemon.acknowledge(now, node, &mut out);
        }
        out.0
    }

    /// The POSIX locks of a lockspace, as `dlm_tool plocks` lists them.
    #[must_use]
    pub fn plock_lines(&self, lockspace: &str) -> Option<Vec<String>> {
        self.lockspaces.get(lockspace).map(Lockspace::plock_lines)
    }

    /// Which lives of the members' daemons a lockspace is with; stock daemons do not tell theirs.
    pub fn lives(&self, lockspace: &str) -> impl Iterator<Item = (NodeId, u32)> {
        self.lockspaces
            .get(lockspace)
            .into_iter()
            .flat_map(Lockspace::lives)
    }

    /// Why the daemon has given up, if it has.
    #[must_use]
    pub const fn fatal(&self) -> Option<&Fatal> {
        self.dead.as_ref()
    }

    /// How long the daemon may be left without a step before it must be asked whether locks are still to be believed.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.safety.grace()
    }

    /// How things stand.
    #[must_use]
    pub fn status(&self, now: Now) -> Status {
        let around = Around {
            now,
            cluster: &self.cluster,
            daemon: &self.daemon,
            options: &self.conf,
            suspended: self.safety.is_suspended() || self.safety.is_behind(),
            grace: self.safety.grace(),
        };
        Status {
            quorate: self.cluster.quorate,
            now: now.mono,
            ring: self.cluster.ring,
            daemon_ring: self.daemon.ring,
            fencing_unknown: self.daemon.unknown,
            merge_wait: self.daemon.merge_wait,
            nodes: self.daemon.status(now),
            lockspaces: self
                .lockspaces
                .values()
                .map(|lockspace| lockspace.status(&around))
                .collect(),
        }
    }
}
