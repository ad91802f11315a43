//! How a lock ends when things have gone wrong: kept after a failed sync, kept back after a withdraw, shut down.

use std::time::Duration;

use super::{Action, Cause, FailReason, GlockFlags, Machine, Phase};
use crate::glock::state::{HolderFlags, State};

impl Machine {
    /// The lock is kept as it is, and nobody gets it any more.
    pub(super) fn get_stuck(&mut self, cause: Cause) {
        self.phase = Phase::Stuck;
        self.out.push_back(Action::Withdraw(cause));
        self.fail_waiters(FailReason::Withdrawn, |_| true);
        self.out.push_back(Action::DemoteDone);
    }

    /// Nobody may touch the blocks before our journal was replayed: keep the lock, forget what is under it.
    pub(super) fn keep_back(&mut self, now: Duration) {
        if self.state != State::Un {
            self.kept = Some(self.state);
        }
        self.enter(now, State::Un);
        self.target = State::Un;
        self.phase = Phase::Idle;
        self.demote_done();
    }

    pub(super) fn withdraw(&mut self, now: Duration) {
        self.withdrawn = true;
        if !self.kind.journaled {
            return;
        }
        let asker = self.asked_for;
        self.fail_waiters(FailReason::Withdrawn, |holder| {
            !holder.flags.contains(HolderFlags::NOEXP)
        });
        let still_there = self.holders.iter().any(|holder| Some(holder.id) == asker);
        if asker.is_some() && !still_there && self.flags.contains(GlockFlags::PENDING_REPLY) {
            self.out.push_back(Action::Cancel);
        }
        self.run_queue(now);
    }

    /// Recovery of our journal is done: what was kept back goes.
    pub(super) fn release_kept(&mut self, now: Duration) {
        self.recovered = true;
        if let Some(state) = self.kept.take()
            && self.phase == Phase::Idle
        {
            self.enter(now, state);
            self.request_demote(now, State::Un, false, false);
        }
    }

    /// The lock service is gone: refuses everybody from now on.
    pub fn shut_down(&mut self) {
        self.phase = Phase::Stuck;
        self.fail_waiters(FailReason::Withdrawn, |_| true);
        self.out.push_back(Action::DemoteDone);
    }

    /// Exempts the lock from the consequences of a withdraw (the inode of our own journal).
    pub fn set_not_journaled(&mut self) {
        self.kind.journaled = false;
    }
}
