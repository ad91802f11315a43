//! Drives the daemon's machine with a real membership, real fence agents and the real clock.
//!
//! One thread calls [`Driver::turn`] over and over and does what it returns; other threads ask for things through a
//! [`Handle`] and are heard within one turn. Nothing here decides anything.

use std::fs::File;
use std::io::Read;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use super::action::{Action, Fatal, Job, Level, Now, Order};
use super::machine::{Controld, Input, JoinError};
use super::status::Status;
use crate::fence::agent::Agents;
use crate::fence::conf::DlmConf;
use crate::membership::{MemberEvent, Membership, MembershipError};
use crate::{LockError, NodeId, Plock, PlockDone, PlockOp};

/// What the user of the daemon must do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Deed {
    /// Tell the lock engine.
    Engine {
        /// The lockspace.
        lockspace: String,
        /// What.
        order: Order,
    },
    /// Tell the user: an operation on POSIX locks ended.
    Plock {
        /// The lockspace.
        lockspace: String,
        /// Which, and how.
        done: PlockDone,
    },
    /// See [`Action::Suspend`].
    Suspend,
    /// See [`Action::Resume`].
    Resume,
    /// Stop writing; the daemon is dead.
    Fatal(Fatal),
    /// For the log.
    Log(Level, String),
}

/// What others ask for.
#[derive(Debug)]
enum Request {
    AgentDone(Job, i32),
    Join(String, Sender<Result<(), JoinError>>),
    Leave(String, Sender<Result<(), JoinError>>),
    Plock(String, PlockOp, Plock, u64, Sender<Result<(), LockError>>),
    Cancel(String, u64, Sender<Result<(), LockError>>),
    Acknowledge(NodeId),
    Status(Sender<Status>),
    PlockLines(String, Sender<Option<Vec<String>>>),
}

/// A way to ask the daemon for things, from any thread.
#[derive(Clone, Debug)]
pub struct Handle(Sender<Request>);

impl Handle {
    fn ask<T>(&self, request: impl FnOnce(Sender<T>) -> Request) -> Option<T> {
        let (sender, receiver) = channel();
        self.0.send(request(sender)).ok()?;
        receiver.recv().ok()
    }

    /// Joins a lockspace; its first order is a start.
    ///
    /// # Errors
    /// See [`Controld::join`].
    pub fn join(&self, name: &str) -> Result<(), JoinError> {
        let answer = self.ask(|answer| Request::Join(name.to_owned(), answer));
        answer.unwrap_or_else(|| Err(JoinError::Dead("its thread has ended".to_owned())))
    }

    /// Leaves a lockspace; its last order is [`Order::Left`].
    ///
    /// # Errors
    /// See [`Controld::leave`].
    pub fn leave(&self, name: &str) -> Result<(), JoinError> {
        let answer = self.ask(|answer| Request::Leave(name.to_owned(), answer));
        answer.unwrap_or_else(|| Err(JoinError::Dead("its thread has ended".to_owned())))
    }

    /// An operation on POSIX locks; its end is a [`Deed::Plock`].
    ///
    /// # Errors
    /// See [`Controld::plock`].
    pub fn plock(&self, lockspace: &str, op: PlockOp, lock: &Plock, token: u64) -> Result<(), LockError> {
        let answer = self.ask(|answer| Request::Plock(lockspace.to_owned(), op, *lock, token, answer));
        answer.unwrap_or(Err(LockError::Left))
    }

    /// Takes a waiting POSIX lock back.
    ///
    /// # Errors
    /// See [`Controld::plock_cancel`].
    pub fn plock_cancel(&self, lockspace: &str, token: u64) -> Result<(), LockError> {
        let answer = self.ask(|answer| Request::Cancel(lockspace.to_owned(), token, answer));
        answer.unwrap_or(Err(LockError::Left))
    }

    /// A person says that a node is surely down.
    pub fn acknowledge_fencing(&self, node: NodeId) {
        let _heard = self.0.send(Request::Acknowledge(node));
    }

    /// How things stand; none when the daemon is gone.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        self.ask(Request::Status)
    }

    /// The POSIX locks of a lockspace, as `dlm_tool plocks` lists them.
    #[must_use]
    pub fn plock_lines(&self, lockspace: &str) -> Option<Vec<String>> {
        self.ask(|answer| Request::PlockLines(lockspace.to_owned(), answer))?
    }
}

/// The daemon at work.
#[derive(Debug)]
pub struct Driver<M> {
    membership: M,
    machine: Controld,
    agents: Agents<Job>,
    requests: Receiver<Request>,
    sender: Sender<Request>,
    begin: Instant,
    tick: Duration,
    deeds: Vec<Deed>,
}

/// A number that no other life of this node's daemon has.
fn new_life() -> u32 {
    let mut bytes = [0; 4];
    let random = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    let time = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(1, |since| since.subsec_nanos());
    let number = if random.is_ok() {
        u32::from_le_bytes(bytes)
    } else {
        time
    };
    number.max(1)
}

impl<M: Membership> Driver<M> {
    /// Starts the daemon: it joins the group of daemons.
    ///
    /// # Errors
    /// What the membership service answered.
    pub fn start(membership: M, conf: DlmConf) -> Result<(Self, Handle), MembershipError> {
        let config = membership.config().clone();
        let tick = config
            .token
            .checked_div(10)
            .unwrap_or_default()
            .min(Duration::from_millis(200));
        let (machine, actions) = Controld::new(config, conf, new_life());
        let (sender, requests) = channel();
        let handle = Handle(sender.clone());
        let mut driver = Self {
            membership,
            machine,
            agents: Agents::default(),
            requests,
            sender,
            begin: Instant::now(),
            tick,
            deeds: Vec::new(),
        };
        for action in actions {
            if let Action::Join(group) = &action {
                driver.membership.join(group)?;
            }
        }
        Ok((driver, handle))
    }

    /// The membership.
    pub const fn membership(&mut self) -> &mut M {
        &mut self.membership
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Now {
            mono: self.begin.elapsed(),
            wall: wall.map_or(0, |since| since.as_secs()),
        }
    }

    /// Waits a little for news, takes them in, and returns what is to be done.
    pub fn turn(&mut self) -> Vec<Deed> {
        let wait = if self.deeds.is_empty() {
            self.tick
        } else {
            Duration::ZERO
        };
        let events = self.membership.poll(wait.min(Duration::from_millis(20)));
        for event in events {
            let actions = self.machine.step(self.now(), Input::Member(event));
            self.obey(actions);
        }
        while let Ok(request) = self.requests.try_recv() {
            self.serve(request);
        }
        let actions = self.machine.step(self.now(), Input::Tick);
        self.obey(actions);
        std::mem::take(&mut self.deeds)
    }

    /// Answers a request; whoever asked may have gone.
    fn serve(&mut self, request: Request) {
        let now = self.now();
        let actions = match request {
            Request::AgentDone(job, status) => {
                self.agents.ended(job);
                self.machine.step(now, Input::AgentDone { job, status })
            }
            Request::Join(name, answer) => reply(&answer, self.machine.join(now, &name)),
            Request::Leave(name, answer) => reply(&answer, self.machine.leave(&name)),
            Request::Plock(lockspace, op, lock, token, answer) => {
                reply(&answer, self.machine.plock(now, &lockspace, op, &lock, token))
            }
            Request::Cancel(lockspace, token, answer) => {
                reply(&answer, self.machine.plock_cancel(now, &lockspace, token))
            }
            Request::Acknowledge(node) => self.machine.acknowledge_fencing(now, node),
            Request::Status(answer) => {
                let _heard = answer.send(self.machine.status(now));
                Vec::new()
            }
            Request::PlockLines(lockspace, answer) => {
                let _heard = answer.send(self.machine.plock_lines(&lockspace));
                Vec::new()
            }
        };
        self.obey(actions);
    }

    fn obey(&mut self, actions: Vec<Action>) {
        for action in actions {
            if let Err(error) = self.carry_out(action) {
                let lost = Input::Member(MemberEvent::Lost(error.to_string()));
                let actions = self.machine.step(self.now(), lost);
                self.obey(actions);
                return;
            }
        }
    }

    fn carry_out(&mut self, action: Action) -> Result<(), MembershipError> {
        match action {
            Action::Join(group) => self.membership.join(&group)?,
            Action::Leave(group) => self.membership.leave(&group)?,
            Action::Send { group, bytes } => match self.membership.send(&group, &bytes) {
                // Between our leaving and the news of it there is nobody to tell.
                Err(MembershipError::NotMember(_)) => {}
                sent => sent?,
            },
            Action::Kill(node) => {
                if let Err(error) = self.membership.kill(node) {
                    self.deeds.push(Deed::Log(Level::Error, error.to_string()));
                }
            }
            Action::AnswerShutdown(allowed) => self.membership.answer_shutdown(allowed)?,
            Action::RunAgent {
                job, agent, input, ..
            } => {
                let sender = self.sender.clone();
                let done = move |job, status| drop(sender.send(Request::AgentDone(job, status)));
                if let Err(error) = self.agents.run(job, &agent, &input, done) {
                    self.deeds.push(Deed::Log(Level::Error, error));
                }
            }
            Action::StopAgent(job) => self.agents.stop(job),
            Action::Engine { lockspace, order } => self.deeds.push(Deed::Engine { lockspace, order }),
            Action::Plock { lockspace, done } => self.deeds.push(Deed::Plock { lockspace, done }),
            Action::Suspend => self.deeds.push(Deed::Suspend),
            Action::Resume => self.deeds.push(Deed::Resume),
            Action::Fatal(fatal) => self.deeds.push(Deed::Fatal(fatal)),
            Action::Log(level, text) => self.deeds.push(Deed::Log(level, text)),
        }
        Ok(())
    }

    /// Leaves the cluster. Lockspaces must have been left before.
    ///
    /// # Errors
    /// The first lockspace that is still joined.
    pub fn shut_down(&mut self) -> Result<(), JoinError> {
        let actions = self.machine.shut_down()?;
        self.obey(actions);
        Ok(())
    }
}

/// Tells the one who asked how it went; whoever asked may have gone.
fn reply<E>(answer: &Sender<Result<(), E>>, result: Result<Vec<Action>, E>) -> Vec<Action> {
    let (said, actions) = match result {
        Ok(actions) => (Ok(()), actions),
        Err(error) => (Err(error), Vec::new()),
    };
    let _heard = answer.send(said);
    actions
}
