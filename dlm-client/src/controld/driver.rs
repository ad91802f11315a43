//! Drives the daemon's machine with a real membership, real fence agents and the real clock.
//!
//! One thread calls [`Driver::turn`] over and over and does what it returns; other threads ask for things through a
//! [`Handle`] and are heard within one turn. Nothing here decides anything.

use std::fs::File;
use std::io::Read;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use super::action::{Action, Fatal, Level, Now, Order};
use super::hands::{Hands, lost};
use super::machine::{Controld, Input, JoinError};
use super::status::Status;
use crate::fence::conf::DlmConf;
use crate::membership::{Membership, MembershipError};
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
    hands: Hands<M>,
    machine: Controld,
    requests: Receiver<Request>,
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
        let handle = Handle(sender);
        let mut driver = Self {
            hands: Hands::new(membership),
            machine,
            requests,
            begin: Instant::now(),
            tick,
            deeds: Vec::new(),
        };
        for action in actions {
            driver.hands.carry_out(action)?;
        }
        Ok((driver, handle))
    }

    /// The membership.
    pub const fn membership(&mut self) -> &mut M {
        &mut self.hands.membership
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
        let events = self.hands.poll(wait.min(Duration::from_millis(20)));
        let inputs = events.into_iter().map(Input::Member);
        for input in inputs.chain(self.hands.agents()) {
            let actions = self.machine.step(self.now(), input);
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
            match self.hands.carry_out(action) {
                Ok(rest) => self.deeds.extend(rest.and_then(deed)),
                Err(error) => {
                    let actions = self.machine.step(self.now(), lost(&error));
                    return self.obey(actions);
                }
            }
        }
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

/// What is the user's to do.
fn deed(action: Action) -> Option<Deed> {
    Some(match action {
        Action::Engine { lockspace, order } => Deed::Engine { lockspace, order },
        Action::Plock { lockspace, done } => Deed::Plock { lockspace, done },
        Action::Suspend => Deed::Suspend,
        Action::Resume => Deed::Resume,
        Action::Fatal(fatal) => Deed::Fatal(fatal),
        Action::Log(level, text) => Deed::Log(level, text),
        _ => return None,
    })
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
