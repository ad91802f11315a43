//! Byte ranges, their holders and those who wait, per file.
//!
//! Invariants: ranges of one owner in one file do not overlap; locks of different owners that overlap are both shared;
//! a file without locks and waiters is not in the table. Records split, shrink and move in a fixed way (the stock
//! daemon's), so that a listing of the locks is the same on every member. Adjacent ranges stay apart.

use std::collections::BTreeMap;

use super::Plock;
use crate::NodeId;
use crate::controld::codec::PlockRecord;

/// A lock and its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeLock {
    /// The node.
    pub node: NodeId,
    /// The lock.
    pub lock: Plock,
}

impl NodeLock {
    fn same_owner(&self, other: &Self) -> bool {
        self.node == other.node && self.lock.owner == other.lock.owner
    }

    const fn overlaps(&self, other: &Self) -> bool {
        self.lock.start <= other.lock.end && other.lock.start <= self.lock.end
    }

    const fn covers(&self, other: &Self) -> bool {
        self.lock.start <= other.lock.start && self.lock.end >= other.lock.end
    }

    fn excludes(&self, other: &Self) -> bool {
        !self.same_owner(other) && self.overlaps(other) && (self.lock.exclusive || other.lock.exclusive)
    }

    /// The lock without the part that `cut` overlaps at one of its ends.
    const fn shrunk(mut self, cut: &Self) -> Self {
        if self.lock.start < cut.lock.start {
            self.lock.end = cut.lock.start.saturating_sub(1);
        } else {
            self.lock.start = cut.lock.end.saturating_add(1);
        }
        self
    }

    /// What is left of the lock in front of and behind `cut`.
    fn fragments(self, cut: &Self) -> impl Iterator<Item = Self> {
        let mut front = self;
        front.lock.end = cut.lock.start.saturating_sub(1);
        let mut back = self;
        back.lock.start = cut.lock.end.saturating_add(1);
        let front = (self.lock.start < cut.lock.start).then_some(front);
        let back = (self.lock.end > cut.lock.end).then_some(back);
        front.into_iter().chain(back)
    }
}

/// A lock somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// What is asked for.
    pub want: NodeLock,
    /// Whoever is to be told; the table only hands it back. 0: nobody here.
    pub token: u64,
}

/// What became of a lock operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// It is locked.
    Granted,
    /// Somebody is in the way.
    Again,
    /// It waits.
    Waiting,
}

#[derive(Clone, Debug, Default)]
struct File {
    locks: Vec<NodeLock>,
    waiters: Vec<Waiter>,
}

impl File {
    fn conflict(&self, want: &NodeLock) -> Option<&NodeLock> {
        self.locks.iter().find(|held| held.excludes(want))
    }

    /// Index of the next record, from `from`, of the owner of `range` that overlaps it.
    fn next_overlap(&self, from: usize, range: &NodeLock) -> Option<(usize, NodeLock)> {
        let hit = |(_, held): &(usize, &NodeLock)| held.same_owner(range) && held.overlaps(range);
        self.locks
            .iter()
            .enumerate()
            .skip(from)
            .find(hit)
            .map(|(at, held)| (at, *held))
    }

    fn set(&mut self, at: usize, lock: NodeLock) {
        if let Some(place) = self.locks.get_mut(at) {
            *place = lock;
        }
    }

    fn insert(&mut self, want: NodeLock) {
        let mut from = 0;
        while let Some((at, held)) = self.next_overlap(from, &want) {
            if held.covers(&want) {
                if held.lock.exclusive == want.lock.exclusive {
                    return;
                }
                let mut rest = held;
                rest.lock.pid = want.lock.pid;
                let mut converted = want;
                converted.lock.pid = held.lock.pid;
                self.set(at, converted);
                self.locks.extend(rest.fragments(&want));
                return;
            }
            if want.covers(&held) {
                self.locks.remove(at);
                from = at;
            } else {
                self.set(at, held.shrunk(&want));
                from = at.saturating_add(1);
            }
        }
        self.locks.push(want);
    }

    fn remove(&mut self, range: &NodeLock) {
        let mut from = 0;
        while let Some((at, held)) = self.next_overlap(from, range) {
            if range.covers(&held) {
                self.locks.remove(at);
                from = at;
            } else if held.lock.start < range.lock.start && held.lock.end > range.lock.end {
                let mut parts = held.fragments(range);
                let (front, back) = (parts.next(), parts.next());
                if let (Some(front), Some(mut back)) = (front, back) {
                    back.lock.pid = range.lock.pid;
                    self.set(at, front);
                    self.locks.push(back);
                }
                return;
            } else {
                self.set(at, held.shrunk(range));
                from = at.saturating_add(1);
            }
        }
    }

    /// Grants, once through in order, every waiter that nobody is in the way of.
    fn serve(&mut self, granted: &mut Vec<Waiter>) {
        let waiters = std::mem::take(&mut self.waiters);
        for waiter in waiters {
            if self.conflict(&waiter.want).is_some() {
                self.waiters.push(waiter);
            } else {
                self.insert(waiter.want);
                granted.push(waiter);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.locks.is_empty() && self.waiters.is_empty()
    }
}

/// The POSIX locks of a lockspace.
#[derive(Clone, Debug, Default)]
pub struct PlockTable {
    files: BTreeMap<u64, File>,
}

impl PlockTable {
    /// Runs `change` on the file, then serves its waiters; those granted are returned.
    fn on_file<R>(&mut self, number: u64, change: impl FnOnce(&mut File) -> R) -> (R, Vec<Waiter>) {
        let file = self.files.entry(number).or_default();
        let result = change(file);
        let mut granted = Vec::new();
        file.serve(&mut granted);
        if file.is_empty() {
            self.files.remove(&number);
        }
        (result, granted)
    }

    /// Locks. `token` comes back when a waiting lock is granted. Also returned: the waiters this grants.
    pub fn lock(&mut self, want: NodeLock, wait: bool, token: u64) -> (Locked, Vec<Waiter>) {
        self.on_file(want.lock.number, |file| {
            if file.conflict(&want).is_none() {
                file.insert(want);
                Locked::Granted
            } else if wait {
                file.waiters.push(Waiter { want, token });
                Locked::Waiting
            } else {
                Locked::Again
            }
        })
    }

    /// Unlocks a range; with `close` also takes back the owner's waiting locks on the file. Returned: those taken
    /// back, and the waiters this grants.
    pub fn unlock(&mut self, range: NodeLock, close: bool) -> (Vec<Waiter>, Vec<Waiter>) {
        self.on_file(range.lock.number, |file| {
            file.remove(&range);
            let mut cleared = Vec::new();
            if close {
                file.waiters.retain(|waiter| {
                    let drop = waiter.want.same_owner(&range);
                    if drop {
                        cleared.push(*waiter);
                    }
                    !drop
                });
            }
            cleared
        })
    }

    /// Takes back the first waiting lock that asks for exactly this (and, if given, has this token). Returned: it, and
    /// the waiters this grants.
    pub fn cancel(&mut self, want: &NodeLock, token: Option<u64>) -> (Option<Waiter>, Vec<Waiter>) {
        let meant = |waiter: &Waiter| waiter.want == *want && token.is_none_or(|token| waiter.token == token);
        self.on_file(want.lock.number, |file| {
            let at = file.waiters.iter().position(meant);
            at.map(|at| file.waiters.remove(at))
        })
    }

    /// Who is in the way of a lock?
    #[must_use]
    pub fn test(&self, want: &NodeLock) -> Option<NodeLock> {
        self.files.get(&want.lock.number)?.conflict(want).copied()
    }

    /// Forgets all of a node that is gone. Returned: the waiters this grants.
    pub fn purge(&mut self, node: NodeId) -> Vec<Waiter> {
        let mut granted = Vec::new();
        self.files.retain(|_, file| {
            file.locks.retain(|held| held.node != node);
            file.waiters.retain(|waiter| waiter.want.node != node);
            file.serve(&mut granted);
            !file.is_empty()
        });
        granted
    }

    /// What a node waits for under a token.
    #[must_use]
    pub fn waiter(&self, node: NodeId, token: u64) -> Option<NodeLock> {
        let mut waiters = self.files.values().flat_map(|file| &file.waiters);
        waiters
            .find(|waiter| waiter.want.node == node && waiter.token == token)
            .map(|waiter| waiter.want)
    }

    /// Is nothing locked, and nothing waited for?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Everything, file by file: the records of the locks and then of the waiters, in order.
    pub fn records(&self) -> impl Iterator<Item = (u64, Vec<PlockRecord>)> {
        self.files.iter().map(|(&number, file)| {
            let record = |lock: &NodeLock, waiting| PlockRecord {
                start: lock.lock.start,
                end: lock.lock.end,
                owner: lock.lock.owner,
                pid: lock.lock.pid,
                node: lock.node,
                exclusive: lock.lock.exclusive,
                waiting,
            };
            let locks = file.locks.iter().map(|lock| record(lock, false));
            let waiters = file.waiters.iter().map(|waiter| record(&waiter.want, true));
            (number, locks.chain(waiters).collect())
        })
    }

    /// Takes over a record of another member's table, after those before it.
    pub fn adopt(&mut self, number: u64, record: &PlockRecord) {
        let want = NodeLock {
            node: record.node,
            lock: Plock {
                number,
                start: record.start,
                end: record.end,
                owner: record.owner,
                pid: record.pid,
                exclusive: record.exclusive,
            },
        };
        let file = self.files.entry(number).or_default();
        if record.waiting {
            file.waiters.push(Waiter { want, token: 0 });
        } else {
            file.locks.push(want);
        }
    }
}

#[cfg(test)]
mod tests;
