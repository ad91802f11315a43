//! The state machine of one glock: events in, an ordered list of actions out.
//!
//! Pure: no clock, thread, lock service or I/O inside; time is passed in, and whoever drives it carries the actions out
//! and reports back. The same code runs in production, in unit tests and in the simulation.
//!
//! Invariants
//! - Granted holders are the front of the list and compatible with each other and with `state`; waiters follow in the
//!   order they came and are never overtaken by one that is not compatible with what is granted.
//! - At most one transition is under way ([`Phase`] other than Idle); its steps come in the order kernel cache, sync,
//!   invalidate, DLM, each started by one action and ended by one event.
//! - No holder exists while a transition syncs, invalidates or gives up the lock.
//! - A lock whose sync failed is never given up.
//!
//! It must not know: what is cached under the lock, or that there is FUSE.

mod end;
mod event;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use dlm_client::Lkf;

pub use event::{
    Action, Cause, Event, FailReason, GlockFlags, HOLD_MAX, HOLD_MIN, HOLD_STEP_DOWN, HOLD_STEP_UP, Holder,
    HolderId, Instantiate, Kind, LONG_WAIT, LockCall, Outcome, Phase, may_grant,
};

use super::state::{HolderFlags, State};

/// The machine.
#[derive(Debug)]
pub struct Machine {
    kind: Kind,
    state: State,
    target: State,
    demote: Option<State>,
    demote_since: Duration,
    phase: Phase,
    flags: GlockFlags,
    holders: Vec<Holder>,
    granted: usize,
    /// The holder the request at the lock service is for.
    asked_for: Option<HolderId>,
    frozen: Option<(Outcome, State)>,
    changed_at: Duration,
    hold_time: Duration,
    withdrawn: bool,
    recovered: bool,
    /// After a withdraw: what the lock service still holds for us although `state` is UN.
    kept: Option<State>,
    out: VecDeque<Action>,
}

impl Machine {
    /// A lock that is not held.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            state: State::Un,
            target: State::Un,
            demote: None,
            demote_since: Duration::ZERO,
            phase: Phase::Idle,
            flags: GlockFlags::INITIAL | GlockFlags::INSTANTIATE_NEEDED,
            holders: Vec::new(),
            granted: 0,
            asked_for: None,
            frozen: None,
            changed_at: Duration::ZERO,
            hold_time: HOLD_MAX,
            withdrawn: false,
            recovered: false,
            kept: None,
            out: VecDeque::new(),
        }
    }

    /// Takes the next action.
    pub fn pop_action(&mut self) -> Option<Action> {
        self.out.pop_front()
    }

    /// One event.
    pub fn step(&mut self, now: Duration, event: Event) {
        match event {
            Event::Enqueue(holder) => self.enqueue(now, holder),
            Event::Dequeue(id) => self.dequeue(now, id),
            Event::Bast(wanted) => self.bast(now, wanted),
            Event::Demote(wanted) => {
                if self.state != State::Un && self.phase != Phase::Stuck && wanted != State::Ex {
                    self.request_demote(now, wanted, false, false);
                }
            }
            Event::CallbackDone { ignore } => {
                if ignore && !self.flags.contains(GlockFlags::DEMOTE_IN_PROGRESS) {
                    self.demote_done();
                }
                self.run_queue(now);
            }
            Event::Tick => self.tick(now),
            Event::FlushDone => self.flush_done(now),
            Event::SyncDone { ok } => self.sync_done(now, ok),
            Event::InvalidateDone => self.invalidate_done(now),
            Event::Reply { outcome, state, hold } => self.reply(now, outcome, state, hold),
            Event::Unblock => self.unpark(now),
            Event::Withdrawn => self.withdraw(now),
            Event::Recovered => self.release_kept(now),
        }
        self.check();
    }

    /// The usual case without any action: grants `holder` if the lock is cached, not demanded and nobody waits.
    /// Whatever it grants, [`Event::Enqueue`] would have granted at once, too.
    #[inline]
    pub fn try_fast(&mut self, mut holder: Holder) -> bool {
        if !self.is_open_to(&holder) {
            return false;
        }
        holder.granted = true;
        self.holders.push(holder);
        self.granted += 1;
        true
    }

    /// The other half: a granted holder leaves and nothing follows from it.
    #[inline]
    pub fn release_fast(&mut self, id: HolderId) -> bool {
        if self.phase != Phase::Idle
            || self.flags.contains(GlockFlags::DEMOTE)
            || self.granted != self.holders.len()
        {
            return false;
        }
        let Some(index) = self.holders.iter().position(|holder| holder.id == id) else {
            return false;
        };
        if self
            .holders
            .get(index)
            .is_none_or(|holder| holder.flags.contains(HolderFlags::NOCACHE))
        {
            return false;
        }
        self.holders.remove(index);
        self.granted -= 1;
        true
    }

    #[inline]
    fn is_open_to(&self, holder: &Holder) -> bool {
        self.phase == Phase::Idle
            && !self.flags.contains(GlockFlags::DEMOTE)
            && self.granted == self.holders.len()
            && may_grant(self.state, self.holders.first(), holder)
            && !self.refuses(holder)
    }

    /// Journaled locks are closed after a withdraw, stuck ones always.
    fn refuses(&self, holder: &Holder) -> bool {
        self.phase == Phase::Stuck
            || (self.withdrawn && self.kind.journaled && !holder.flags.contains(HolderFlags::NOEXP))
    }

    fn enqueue(&mut self, now: Duration, holder: Holder) {
        if self.refuses(&holder) {
            self.out.push_back(Action::Fail(holder.id, FailReason::Withdrawn));
            return;
        }
        if self.try_fast(holder) {
            self.out.push_back(Action::Grant(holder.id));
            return;
        }
        if holder.flags.contains(HolderFlags::NOBLOCK) {
            self.out
                .push_back(Action::Fail(holder.id, FailReason::WouldBlock));
            return;
        }
        if holder.flags.is_try() && self.is_try_futile(&holder) {
            self.out.push_back(Action::Fail(holder.id, FailReason::TryFailed));
            return;
        }
        self.holders.push(holder);
        if holder.flags.contains(HolderFlags::NOEXP) {
            self.unpark(now);
        }
        if matches!(self.phase, Phase::Flush { .. }) {
            self.serve_waiters();
            self.fail_tries();
        } else {
            self.run_queue(now);
        }
    }

    fn is_try_futile(&self, holder: &Holder) -> bool {
        if self.flags.contains(GlockFlags::INVALIDATE_IN_PROGRESS) {
            return true;
        }
        let current = self.holders.first().filter(|first| first.granted);
        self.phase != Phase::Idle
            && !may_grant(self.state, current, holder)
            && self.holders.iter().any(|other| !other.flags.is_try())
    }

    fn dequeue(&mut self, now: Duration, id: HolderId) {
        let Some(index) = self.holders.iter().position(|holder| holder.id == id) else {
            return;
        };
        let holder = self.holders.remove(index);
        let nocache = holder.granted && holder.flags.contains(HolderFlags::NOCACHE);
        if holder.granted {
            self.granted -= 1;
            if nocache {
                self.request_demote(now, State::Un, false, false);
            }
        } else if self.asked_for == Some(id) && self.flags.contains(GlockFlags::PENDING_REPLY) {
            self.out.push_back(Action::Cancel);
        }
        match self.phase {
            Phase::Flush {
                pass, draining: true, ..
            } if self.granted == 0 => self.flush_pass(pass + 1),
            Phase::Flush { .. } => self.serve_waiters(),
            // After a demote request the queue runs when the object has answered the callback.
            _ if nocache => {}
            _ => self.run_queue(now),
        }
    }

    fn bast(&mut self, now: Duration, wanted: State) {
        // It may come before the grant it refers to: then a request is under way, and it waits for the reply.
        let asking = self.phase == Phase::Dlm && self.target != State::Un;
        if self.phase == Phase::Stuck || (self.state == State::Un && !asking) {
            return;
        }
        let wait_until = self.changed_at + self.hold_time;
        let delay = self.kind.has_hold_time
            && ((!self.holders.is_empty() && now < wait_until) || self.frozen.is_some());
        self.request_demote(now, wanted, delay, true);
        if delay {
            self.out.push_back(Action::Timer(wait_until.max(now)));
        }
    }

    fn request_demote(&mut self, now: Duration, wanted: State, delay: bool, remote: bool) {
        if !delay {
            self.flags.insert(GlockFlags::DEMOTE);
            self.flags.remove(GlockFlags::PENDING_DEMOTE);
        } else if !self.flags.contains(GlockFlags::DEMOTE) {
            self.flags.insert(GlockFlags::PENDING_DEMOTE);
        }
        let wanted = match self.demote {
            None => {
                self.demote_since = now;
                wanted
            }
            Some(pending) if pending == wanted => wanted,
            Some(_) => State::Un,
        };
        self.demote = Some(wanted);
        // The queue runs when the object has answered: a lock that ignores demotes must not have begun one.
        self.out.push_back(Action::Callback { remote, wanted });
    }

    fn demote_done(&mut self) {
        self.flags
            .remove(GlockFlags::DEMOTE | GlockFlags::PENDING_DEMOTE | GlockFlags::DEMOTE_IN_PROGRESS);
        self.demote = None;
        self.out.push_back(Action::DemoteDone);
    }

    fn tick(&mut self, now: Duration) {
        if self.flags.contains(GlockFlags::PENDING_DEMOTE) && self.state != State::Un && self.demote.is_some()
        {
            let due = self.changed_at + self.hold_time;
            if now < due {
                self.out.push_back(Action::Timer(due));
            } else {
                self.flags.remove(GlockFlags::PENDING_DEMOTE);
                self.flags.insert(GlockFlags::DEMOTE);
            }
        }
        self.run_queue(now);
    }

    /// Grants what can be granted and starts the transition that is due, if none is under way.
    fn run_queue(&mut self, now: Duration) {
        if self.phase != Phase::Idle {
            return;
        }
        if self.flags.contains(GlockFlags::DEMOTE) {
            match self.demote {
                Some(wanted) if wanted != self.state && self.state != State::Un => {
                    if self.granted > 0 {
                        // A try does not wait for the holders to leave.
                        self.fail_tries();
                        return;
                    }
                    self.flags.insert(GlockFlags::DEMOTE_IN_PROGRESS);
                    self.asked_for = None;
                    self.transition(now, wanted);
                    return;
                }
                _ => self.demote_done(),
            }
        }
        self.promote();
        if self.granted > 0 {
            return;
        }
        if let Some(head) = self.holders.first().copied() {
            if !head.flags.is_try() {
                self.fail_tries();
            }
            self.asked_for = Some(head.id);
            self.transition(now, head.state);
        }
    }

    /// Grants from the head of the queue up to the first that cannot be granted.
    fn promote(&mut self) {
        while let Some(waiter) = self.holders.get(self.granted) {
            let current = self.holders.first().filter(|first| first.granted);
            if !may_grant(self.state, current, waiter) {
                if self.granted > 0 {
                    self.fail_tries();
                }
                return;
            }
            self.grant_at(self.granted);
        }
    }

    /// Grants the waiter at `index`, moving it to the end of the granted ones.
    fn grant_at(&mut self, index: usize) {
        let mut holder = self.holders.remove(index);
        holder.granted = true;
        self.out.push_back(Action::Grant(holder.id));
        self.holders.insert(self.granted, holder);
        self.granted += 1;
    }

    fn fail_tries(&mut self) {
        self.fail_waiters(FailReason::TryFailed, |holder| holder.flags.is_try());
    }

    fn fail_waiters(&mut self, reason: FailReason, which: impl Fn(&Holder) -> bool) {
        let out = &mut self.out;
        self.holders.retain(|holder| {
            let fails = !holder.granted && which(holder);
            if fails {
                out.push_back(Action::Fail(holder.id, reason));
            }
            !fails
        });
    }

    fn transition(&mut self, now: Duration, target: State) {
        self.target = target;
        if self.state == State::Un {
            self.ask(now);
            return;
        }
        if matches!(target, State::Un | State::Df) && !self.kind.presence_only {
            self.flags.insert(GlockFlags::INVALIDATE_IN_PROGRESS);
            self.fail_tries();
        }
        if self.kind.kernel_cached && target != State::Ex {
            self.flush_pass(0);
        } else {
            self.start_sync(now);
        }
    }

    fn flush_pass(&mut self, pass: u32) {
        self.phase = Phase::Flush {
            pass,
            served: false,
            draining: false,
        };
        self.out.push_back(Action::FlushKernel {
            target: self.target,
            pass,
        });
        self.serve_waiters();
        // Who tries may hold a page that the kernel waits for: he must not wait for the kernel.
        self.fail_tries();
    }

    /// While the kernel's cache is emptied, pages it holds locked are served from the lock still held: they would
    /// block the emptying for ever.
    fn serve_waiters(&mut self) {
        let mut index = self.granted;
        while let Some(waiter) = self.holders.get(index) {
            let current = self.holders.first().filter(|first| first.granted);
            if waiter.flags.contains(HolderFlags::SERVE) && may_grant(self.state, current, waiter) {
                self.grant_at(index);
                if let Phase::Flush { served, .. } = &mut self.phase {
                    *served = true;
                }
            }
            index += 1;
        }
    }

    fn flush_done(&mut self, now: Duration) {
        let Phase::Flush { pass, served, .. } = self.phase else {
            return;
        };
        if self.granted > 0 {
            self.phase = Phase::Flush {
                pass,
                served,
                draining: true,
            };
        } else if served {
            self.flush_pass(pass + 1);
        } else {
            self.start_sync(now);
        }
    }

    fn start_sync(&mut self, now: Duration) {
        let dead = self.withdrawn && self.kind.journaled;
        if self.state == State::Ex && !self.kind.presence_only && !dead {
            self.phase = Phase::Sync;
            self.out.push_back(Action::Sync { target: self.target });
        } else {
            self.start_invalidate(now);
        }
    }

    fn sync_done(&mut self, now: Duration, ok: bool) {
        match self.phase {
            Phase::Sync if ok => self.start_invalidate(now),
            // An invalidate that broke down counts as a failed sync: what is cached is not known any more.
            Phase::Sync | Phase::Invalidate if !ok => self.get_stuck(Cause::SyncFailed),
            _ => {}
        }
    }

    fn start_invalidate(&mut self, now: Duration) {
        if self.flags.contains(GlockFlags::INVALIDATE_IN_PROGRESS) {
            self.phase = Phase::Invalidate;
            self.out.push_back(Action::Invalidate { target: self.target });
        } else {
            self.ask(now);
        }
    }

    fn invalidate_done(&mut self, now: Duration) {
        if self.phase != Phase::Invalidate {
            return;
        }
        self.flags.remove(GlockFlags::INVALIDATE_IN_PROGRESS);
        if self.target == State::Un {
            self.flags.insert(GlockFlags::INSTANTIATE_NEEDED);
        }
        self.ask(now);
    }

    /// Asks the lock service for the target.
    fn ask(&mut self, now: Duration) {
        if self.withdrawn && self.kind.journaled {
            self.fail_waiters(FailReason::Withdrawn, |_| true);
            self.asked_for = None;
            if !self.recovered || self.state == State::Un {
                self.keep_back(now);
                return;
            }
            self.target = State::Un;
        }
        if self
            .asked_for
            .is_some_and(|id| self.holders.iter().all(|holder| holder.id != id))
        {
            // Whoever wanted it gave up before the request went out.
            self.target = self.state;
            self.settle(now, false);
            return;
        }
        self.phase = Phase::Dlm;
        self.flags.insert(GlockFlags::PENDING_REPLY);
        let holder = self
            .asked_for
            .and_then(|id| self.holders.iter().find(|holder| holder.id == id));
        let wishes = holder
            .filter(|holder| holder.state == self.target)
            .map_or(HolderFlags::empty(), |holder| holder.flags);
        let blocking = self.target != State::Un && self.state != State::Ex && !wishes.is_try();
        self.flags.set(GlockFlags::BLOCKING, blocking);
        let mut flags = Lkf::empty();
        flags.set(Lkf::VALBLK, self.kind.has_lvb);
        flags.set(Lkf::QUECVT, blocking && !self.flags.contains(GlockFlags::INITIAL));
        flags.set(Lkf::NOQUEUE, wishes.is_try());
        flags.set(Lkf::NOQUEUEBAST, wishes.contains(HolderFlags::TRY_1CB));
        self.out.push_back(Action::Lock(LockCall {
            target: self.target,
            flags,
        }));
    }

    fn reply(&mut self, now: Duration, outcome: Outcome, state: State, hold: bool) {
        if self.phase != Phase::Dlm || !self.flags.contains(GlockFlags::PENDING_REPLY) {
            return;
        }
        self.flags.remove(GlockFlags::PENDING_REPLY);
        let passes = self
            .holders
            .iter()
            .any(|holder| holder.flags.contains(HolderFlags::NOEXP));
        if hold && outcome == Outcome::Granted && self.target != State::Un && !passes {
            self.frozen = Some((outcome, state));
            self.flags.insert(GlockFlags::HAVE_FROZEN_REPLY);
            return;
        }
        self.finish(now, outcome, state);
    }

    fn unpark(&mut self, now: Duration) {
        if let Some((outcome, state)) = self.frozen.take() {
            self.flags.remove(GlockFlags::HAVE_FROZEN_REPLY);
            self.finish(now, outcome, state);
        }
    }

    fn enter(&mut self, now: Duration, state: State) {
        self.state = state;
        self.changed_at = now;
        if state == State::Un {
            self.flags.insert(GlockFlags::INSTANTIATE_NEEDED);
        }
    }

    /// The reply is in: what it means for the transition.
    fn finish(&mut self, now: Duration, outcome: Outcome, state: State) {
        if state != self.target {
            self.hold_time = self.hold_time.saturating_sub(HOLD_STEP_DOWN).max(HOLD_MIN);
        }
        if outcome == Outcome::Granted {
            self.flags.remove(GlockFlags::INITIAL);
        }
        self.enter(now, state);
        self.flags.remove(GlockFlags::BLOCKING);
        if self.flags.contains(GlockFlags::PENDING_DEMOTE) {
            self.out
                .push_back(Action::Timer(self.changed_at + self.hold_time));
        }
        let demoting = self.flags.contains(GlockFlags::DEMOTE_IN_PROGRESS);
        if demoting && state != State::Un && self.demote == Some(State::Un) {
            // A second request came while we went down to SH or DF.
            self.target = State::Un;
        }
        if state == self.target {
            if demoting {
                self.demote_done();
            }
            self.settle(now, state != State::Un);
        } else if demoting {
            self.missed_demote(now, outcome, state);
        } else {
            self.missed_request(now, outcome, state);
        }
    }

    /// The transition is over.
    fn settle(&mut self, now: Duration, grant: bool) {
        self.phase = Phase::Idle;
        self.asked_for = None;
        if grant {
            // Even when a bast is waiting already: whoever asked gets the lock once, or nobody ever would.
            self.promote();
        }
        self.run_queue(now);
    }

    fn missed_demote(&mut self, now: Duration, outcome: Outcome, state: State) {
        match state {
            State::Un => {
                self.demote_done();
                self.settle(now, false);
            }
            State::Sh | State::Df if outcome != Outcome::Error => self.transition(now, State::Un),
            State::Sh | State::Df | State::Ex => {
                self.get_stuck(Cause::Protocol {
                    wanted: self.target,
                    got: state,
                });
            }
        }
    }

    fn missed_request(&mut self, now: Duration, outcome: Outcome, state: State) {
        let asker = self.asked_for.take();
        if outcome == Outcome::Error {
            self.fail_waiters(FailReason::Service, |_| true);
            if self.target == State::Un {
                return self.get_stuck(Cause::Protocol {
                    wanted: State::Un,
                    got: state,
                });
            }
            return self.restart(now);
        }
        let asker = asker.and_then(|id| self.holders.iter().position(|holder| holder.id == id));
        let Some(index) = asker else {
            // It gave up meanwhile: start over with who is first now.
            return self.restart(now);
        };
        if outcome == Outcome::Canceled {
            let holder = self.holders.remove(index);
            self.holders.push(holder);
            return self.restart(now);
        }
        if self
            .holders
            .get(index)
            .is_some_and(|holder| holder.flags.is_try())
        {
            self.fail_tries();
            return self.restart(now);
        }
        match state {
            State::Un => self.restart(now),
            // Give the old mode up entirely; the queue asks again from UN.
            State::Sh | State::Df => self.transition(now, State::Un),
            State::Ex => self.get_stuck(Cause::Protocol {
                wanted: self.target,
                got: state,
            }),
        }
    }

    /// The lock is what it was before; the queue decides anew.
    fn restart(&mut self, now: Duration) {
        self.target = self.state;
        self.settle(now, false);
    }

    /// Who may read the object now?
    pub fn begin_instantiate(&mut self) -> Instantiate {
        if !self.flags.contains(GlockFlags::INSTANTIATE_NEEDED) {
            return Instantiate::Ready;
        }
        if self.flags.contains(GlockFlags::INSTANTIATE_IN_PROG) {
            return Instantiate::Wait;
        }
        self.flags.insert(GlockFlags::INSTANTIATE_IN_PROG);
        Instantiate::Run
    }

    /// The read has ended; after a failure the next user tries again.
    pub fn end_instantiate(&mut self, ok: bool) {
        self.flags.remove(GlockFlags::INSTANTIATE_IN_PROG);
        if ok {
            self.flags.remove(GlockFlags::INSTANTIATE_NEEDED);
        }
    }

    /// The object on disk was changed behind the cache (or is to be read again for any other reason).
    pub fn need_instantiate(&mut self) {
        self.flags.insert(GlockFlags::INSTANTIATE_NEEDED);
    }

    /// A local thread waited this long for the lock.
    pub fn note_wait(&mut self, waited: Duration) {
        if waited > LONG_WAIT {
            self.hold_time = (self.hold_time + HOLD_STEP_UP).min(HOLD_MAX);
        }
    }

    /// What the lock service has granted.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Where the transition under way goes, or the last one went.
    #[must_use]
    pub const fn target(&self) -> State {
        self.target
    }

    /// The demote asked for, and since when.
    #[must_use]
    pub fn demote(&self) -> Option<(State, Duration)> {
        self.demote.map(|state| (state, self.demote_since))
    }

    /// The step under way.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// The flags.
    #[must_use]
    pub const fn flags(&self) -> GlockFlags {
        self.flags
    }

    /// Granted holders, then waiters.
    #[must_use]
    pub fn holders(&self) -> &[Holder] {
        &self.holders
    }

    /// The current minimum hold time.
    #[must_use]
    pub const fn hold_time(&self) -> Duration {
        self.hold_time
    }

    /// Must the object be read before use?
    #[must_use]
    pub const fn is_instantiate_needed(&self) -> bool {
        self.flags.contains(GlockFlags::INSTANTIATE_NEEDED)
    }

    /// Nothing is held, cached, wanted or under way.
    #[must_use]
    pub fn is_unlocked(&self) -> bool {
        self.phase == Phase::Idle && self.state == State::Un && self.holders.is_empty() && self.kept.is_none()
    }

    /// Nothing more can be done for it: unlocked, or kept for ever (or until recovery).
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.phase == Phase::Stuck
            || (self.phase == Phase::Idle && self.state == State::Un && self.holders.is_empty())
    }

    fn check(&self) {
        debug_assert!(
            self.holders
                .iter()
                .take(self.granted)
                .all(|holder| holder.granted)
        );
        debug_assert!(
            self.holders
                .iter()
                .skip(self.granted)
                .all(|holder| !holder.granted)
        );
        debug_assert!(
            self.granted == 0 || matches!(self.phase, Phase::Idle | Phase::Flush { .. } | Phase::Stuck),
            "a holder during {:?}",
            self.phase
        );
        debug_assert!(self.granted == 0 || self.state != State::Un);
    }
}
