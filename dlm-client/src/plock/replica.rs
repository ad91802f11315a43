//! One member's part in keeping POSIX locks alike on all members of a lockspace.
//!
//! Every operation is sent to all and applied by all in the order it is delivered, by the sender too. A member that
//! joins ignores operations until the last START of its change was delivered, saves those after it, takes over the
//! table that the lowest member with a table sends, and then applies what it saved.
//!
//! Invariants: a member that lacks the table never says it has it; a transfer that was cut off is thrown away whole;
//! each operation of ours ends exactly once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::table::{Locked, NodeLock, PlockTable, Waiter};
use super::{Plock, PlockDone, PlockOp, PlockStatus};
use crate::controld::codec::{
    PLOCK_CLOSE, PLOCKS_PER_MESSAGE, PlockInfo, PlockKind, PlockRecord, PlocksData,
};
use crate::{LockError, NodeId};

/// The byte no file has: a close of just this byte takes back waiting locks and unlocks nothing. A message of its own
/// for that (CANCEL) is not understood by all stock daemons, and one that some apply and others do not would make
/// tables differ.
const NO_BYTE: u64 = u64::MAX;
const EINVAL: i32 = 22;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Operation(u64),
    /// Takes back waiters of an owner.
    CancelAll,
}

/// What happened while the table was on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saved {
    Operation(NodeId, PlockInfo),
    Purge(NodeId),
}

/// What to do after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Send this operation to all.
    Send(PlockInfo),
    /// Tell our user.
    Done(PlockDone),
}

/// How far a member has the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not at all; what is delivered is part of what will be transferred.
    Lacking,
    /// It is being transferred.
    Saving,
    /// It is here.
    Having,
}

/// The replica.
#[derive(Debug)]
pub(crate) struct Replica {
    us: NodeId,
    lockspace: u32,
    table: PlockTable,
    state: State,
    saved: Vec<Saved>,
    /// Operations of our user that wait for the table.
    held: VecDeque<(u64, PlockInfo)>,
    received: u32,
    sent: VecDeque<Sent>,
    /// Locks of ours on their way or waiting, by token.
    pending: BTreeMap<u64, Plock>,
    canceling: BTreeSet<u64>,
    apply_cancel: bool,
}

impl Replica {
    pub(crate) fn new(us: NodeId, lockspace: u32, apply_cancel: bool) -> Self {
        Self {
            us,
            lockspace,
            table: PlockTable::default(),
            state: State::Lacking,
            saved: Vec::new(),
            held: VecDeque::new(),
            received: 0,
            sent: VecDeque::new(),
            pending: BTreeMap::new(),
            canceling: BTreeSet::new(),
            apply_cancel,
        }
    }

    pub(crate) fn has_table(&self) -> bool {
        self.state == State::Having
    }

    pub(crate) fn is_saving(&self) -> bool {
        self.state == State::Saving
    }

    pub(crate) const fn table(&self) -> &PlockTable {
        &self.table
    }

    fn info(&self, kind: PlockKind, lock: &Plock) -> PlockInfo {
        PlockInfo {
            kind,
            exclusive: lock.exclusive,
            wait: false,
            flags: 0,
            pid: lock.pid,
            node: self.us,
            result: 0,
            lockspace: self.lockspace,
            number: lock.number,
            start: lock.start,
            end: lock.end,
            owner: lock.owner,
        }
    }

    /// An operation of our user.
    pub(crate) fn submit(&mut self, op: PlockOp, lock: &Plock, token: u64) -> Result<Vec<Effect>, LockError> {
        lock.check()?;
        let info = match op {
            PlockOp::Lock { wait } => {
                self.pending.insert(token, *lock);
                PlockInfo {
                    wait,
                    ..self.info(PlockKind::Lock, lock)
                }
            }
            PlockOp::Unlock { close } => PlockInfo {
                flags: if close { PLOCK_CLOSE } else { 0 },
                ..self.info(PlockKind::Unlock, lock)
            },
            PlockOp::Test => self.info(PlockKind::Get, lock),
        };
        if self.state != State::Having {
            self.held.push_back((token, info));
            return Ok(Vec::new());
        }
        self.sent.push_back(Sent::Operation(token));
        Ok(vec![Effect::Send(info)])
    }

    /// The table is here: what waited for it is sent.
    fn release(&mut self) -> Vec<Effect> {
        self.state = State::Having;
        let mut effects = Vec::new();
        for (token, info) in std::mem::take(&mut self.held) {
            self.sent.push_back(Sent::Operation(token));
            effects.push(Effect::Send(info));
        }
        effects
    }

    /// Takes back a waiting lock of our user.
    pub(crate) fn cancel(&mut self, token: u64) -> Result<Vec<Effect>, LockError> {
        let lock = *self.pending.get(&token).ok_or(LockError::NoSuchPlock(token))?;
        if let Some(at) = self.held.iter().position(|(held, _)| *held == token) {
            self.held.remove(at);
            let mut effects = Vec::new();
            self.done(token, PlockStatus::Canceled, &mut effects);
            return Ok(effects);
        }
        self.canceling.insert(token);
        self.sent.push_back(Sent::CancelAll);
        let nothing = Plock {
            start: NO_BYTE,
            end: NO_BYTE,
            ..lock
        };
        Ok(vec![Effect::Send(PlockInfo {
            flags: PLOCK_CLOSE,
            ..self.info(PlockKind::Unlock, &nothing)
        })])
    }

    /// A PLOCK message was delivered.
    pub(crate) fn deliver(&mut self, from: NodeId, info: &PlockInfo) -> Vec<Effect> {
        let ours = if from == self.us {
            self.sent.pop_front()
        } else {
            None
        };
        if info.node != from || (info.kind == PlockKind::Get && ours.is_none()) {
            return Vec::new();
        }
        match self.state {
            State::Lacking => Vec::new(),
            State::Saving => {
                self.saved.push(Saved::Operation(from, *info));
                Vec::new()
            }
            State::Having => self.apply(from, info, ours),
        }
    }

    fn apply(&mut self, from: NodeId, info: &PlockInfo, ours: Option<Sent>) -> Vec<Effect> {
        let want = NodeLock {
            node: from,
            lock: Plock {
                number: info.number,
                start: info.start,
                end: info.end,
                owner: info.owner,
                pid: info.pid,
                exclusive: info.exclusive,
            },
        };
        let token = match ours {
            Some(Sent::Operation(token)) => Some(token),
            _ => None,
        };
        let mut effects = Vec::new();
        let mut granted = Vec::new();
        let status = match info.kind {
            PlockKind::Lock => {
                let (locked, served) = self.table.lock(want, info.wait, token.unwrap_or(0));
                granted = served;
                match locked {
                    Locked::Granted => Some(PlockStatus::Granted),
                    Locked::Again => Some(PlockStatus::Again),
                    Locked::Waiting => None,
                }
            }
            PlockKind::Unlock => {
                let close = info.flags & PLOCK_CLOSE != 0;
                let (cleared, served) = self.table.unlock(want, close);
                granted = served;
                self.cleared(&cleared, ours == Some(Sent::CancelAll), &mut effects);
                Some(PlockStatus::Unlocked)
            }
            PlockKind::Get => {
                Some(
                    self.table
                        .test(&want)
                        .map_or(PlockStatus::Free, |held| PlockStatus::Held {
                            node: held.node,
                            lock: held.lock,
                        }),
                )
            }
            PlockKind::Cancel if self.apply_cancel => {
                granted = self.table.cancel(&want, None).1;
                None
            }
            PlockKind::Cancel | PlockKind::Other(_) => Some(PlockStatus::Err(EINVAL)),
        };
        if let (Some(token), Some(status)) = (token, status) {
            self.done(token, status, &mut effects);
        }
        self.granted(&granted, &mut effects);
        effects
    }

    fn done(&mut self, token: u64, status: PlockStatus, effects: &mut Vec<Effect>) {
        self.pending.remove(&token);
        self.canceling.remove(&token);
        effects.push(Effect::Done(PlockDone { token, status }));
    }

    fn granted(&mut self, granted: &[Waiter], effects: &mut Vec<Effect>) {
        let us = self.us;
        for waiter in granted.iter().filter(|waiter| waiter.want.node == us) {
            self.done(waiter.token, PlockStatus::Granted, effects);
        }
    }

    /// Waiters of an owner were taken back; those of ours that nobody wanted to take back wait again.
    fn cleared(&mut self, cleared: &[Waiter], only_canceling: bool, effects: &mut Vec<Effect>) {
        let us = self.us;
        for waiter in cleared.iter().filter(|waiter| waiter.want.node == us) {
            if only_canceling && !self.canceling.contains(&waiter.token) {
                self.sent.push_back(Sent::Operation(waiter.token));
                effects.push(Effect::Send(PlockInfo {
                    wait: true,
                    ..self.info(PlockKind::Lock, &waiter.want.lock)
                }));
            } else {
                self.done(waiter.token, PlockStatus::Canceled, effects);
            }
        }
    }

    /// A member is gone.
    pub(crate) fn purge(&mut self, node: NodeId) -> Vec<Effect> {
        match self.state {
            State::Lacking => Vec::new(),
            State::Saving => {
                self.saved.push(Saved::Purge(node));
                Vec::new()
            }
            State::Having => self.apply_purge(node),
        }
    }

    fn apply_purge(&mut self, node: NodeId) -> Vec<Effect> {
        let mut effects = Vec::new();
        let granted = self.table.purge(node);
        self.granted(&granted, &mut effects);
        effects
    }

    /// All members have started with a change. `source`: the lowest member that has the table, if there is one.
    pub(crate) fn started(&mut self, source: Option<NodeId>, alone: bool) -> Vec<Effect> {
        if self.state == State::Having {
            return Vec::new();
        }
        self.table = PlockTable::default();
        self.saved.clear();
        self.received = 0;
        if alone || source.is_none() {
            // Nobody has it (any more): what came of it is of members that are gone.
            return self.release();
        }
        self.state = State::Saving;
        Vec::new()
    }

    /// The table, as messages for those that lack it.
    pub(crate) fn transfer(&self) -> Vec<PlocksData> {
        let mut messages = Vec::new();
        for (number, records) in self.table.records() {
            for (at, locks) in records.chunks(PLOCKS_PER_MESSAGE).enumerate() {
                messages.push(PlocksData {
                    number,
                    owner: 0,
                    continues: at > 0,
                    locks: locks.to_vec(),
                });
            }
        }
        messages
    }

    /// A part of the table was delivered.
    pub(crate) fn receive(&mut self, data: &PlocksData) {
        if self.state == State::Saving {
            self.received = self.received.saturating_add(1);
            for record in &data.locks {
                let record: &PlockRecord = record;
                self.table.adopt(data.number, record);
            }
        }
    }

    /// The transfer is said to be over after `count` messages. False: it is not what we have.
    pub(crate) fn complete(&mut self, count: u32) -> (bool, Vec<Effect>) {
        if self.state != State::Saving {
            return (true, Vec::new());
        }
        if self.received != count {
            return (false, Vec::new());
        }
        let saved = std::mem::take(&mut self.saved);
        let mut effects = Vec::new();
        for event in saved {
            effects.extend(match event {
                Saved::Operation(from, info) => self.apply(from, &info, None),
                Saved::Purge(node) => self.apply_purge(node),
            });
        }
        effects.extend(self.release());
        (true, effects)
    }
}
