//! The course of a recovery: its steps, the barriers between them, the questions to other members.
//!
//! A barrier makes sure that all members have done a step before any begins the next: the lowest member asks each of
//! them until it has, and the others ask the lowest until it says that all have. One question is outstanding at a
//! time; an answer counts only if it names that question and this recovery.

use std::time::Duration;

use super::Engine;
use super::directory::Lookup;
use super::interface::{Level, Output, Start, TimerId};
use super::members::Gone;
use crate::lvb::LVB_LEN;
use crate::wire::{
    NAMES_ROOM, NamesReply, Payload, Rcom, RcomBody, RcomConfig, RcomType, Status, StatusReply,
};
use crate::{NodeId, ResName};

/// A recovery under way.
#[derive(Debug)]
pub(super) struct Recovery {
    /// Members are gone: locks must be rebuilt.
    pub(super) neg: bool,
    pub(super) step: Step,
    /// Members, ascending.
    nodes: Vec<NodeId>,
    /// Which of them is being asked.
    next: usize,
    /// How long the last poll waited.
    delay: u64,
    question: Option<Question>,
    poll: Option<TimerId>,
    /// Answers awaited from directory nodes or new masters.
    pub(super) pending: u64,
    pub(super) locks_in: u64,
}

#[derive(Debug)]
struct Question {
    to: NodeId,
    id: u64,
    body: RcomBody,
    timer: TimerId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Asking all for a sign of life, which also flushes what they sent before.
    Ping,
    /// Waiting until all have reached a stage.
    Barrier(Stage),
    /// Collecting the names of our part of the directory.
    Names,
    /// Asking directories for new masters.
    Masters,
    /// Telling new masters of our locks.
    Locks,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Nodes,
    Directory,
    Locks,
    Done,
}

impl Stage {
    const fn bit(self) -> Status {
        match self {
            Self::Nodes => Status::NODES,
            Self::Directory => Status::DIR,
            Self::Locks => Status::LOCKS,
            Self::Done => Status::DONE,
        }
    }

    const fn all(self) -> Status {
        match self {
            Self::Nodes => Status::NODES_ALL,
            Self::Directory => Status::DIR_ALL,
            Self::Locks => Status::LOCKS_ALL,
            Self::Done => Status::DONE_ALL,
        }
    }
}

impl Engine {
    pub(super) fn begin_recovery(&mut self, start: &Start) {
        let us = self.config.node;
        let seq = self.recover_seq;
        self.log(Level::Info, || format!("recover {seq}"));
        if !start.members.iter().any(|member| member.node == us) {
            self.fail(format!("node {} is started without being a member", us.0));
            return;
        }
        self.forget_unused();
        let neg = self.change_members(start);
        self.reset_resources();
        self.recovery = Some(Recovery {
            neg,
            step: Step::Ping,
            nodes: self.members.keys().copied().collect(),
            next: 0,
            delay: 0,
            question: None,
            poll: None,
            pending: 0,
            locks_in: 0,
        });
        self.poll();
    }

    pub(super) fn step(&self) -> Option<Step> {
        self.recovery.as_ref().map(|recovery| recovery.step)
    }

    fn enter(&mut self, step: Step) {
        if let Some(recovery) = &mut self.recovery {
            recovery.step = step;
            recovery.next = 0;
            recovery.delay = 0;
        }
    }

    fn barrier(&mut self, stage: Stage) {
        self.status |= stage.bit();
        self.enter(Step::Barrier(stage));
        self.poll();
    }

    /// The node to ask next; `None` when all were.
    fn next_node(&self) -> Option<NodeId> {
        let recovery = self.recovery.as_ref()?;
        recovery.nodes.get(recovery.next).copied()
    }

    fn advance(&mut self) {
        if let Some(recovery) = &mut self.recovery {
            recovery.next = recovery.next.saturating_add(1);
            recovery.delay = 0;
        }
    }

    /// Asks the next question of the current step, or goes on to the next step.
    fn poll(&mut self) {
        let us = self.config.node;
        while let Some(step) = self.step() {
            if let Step::Barrier(stage) = step
                && self.low != us
            {
                let need_slots = stage == Stage::Nodes;
                self.ask(self.low, RcomBody::Status { need_slots });
                return;
            }
            match self.next_node() {
                Some(node) if node == us => self.advance(),
                Some(node) => {
                    let body = match step {
                        Step::Names => RcomBody::Names { after: None },
                        _ => RcomBody::Status { need_slots: false },
                    };
                    self.ask(node, body);
                    return;
                }
                None => {
                    self.all_asked(step);
                    return;
                }
            }
        }
    }

    fn all_asked(&mut self, step: Step) {
        match step {
            Step::Ping => {
                let count = self.members.len();
                self.log(Level::Info, || format!("recover_members {count} nodes"));
                self.recover_directory_nodes();
                self.barrier(Stage::Nodes);
            }
            Step::Barrier(stage) => {
                if stage == Stage::Nodes {
                    self.assign_slots();
                }
                self.status |= stage.all();
                self.passed(stage);
            }
            Step::Names => self.barrier(Stage::Directory),
            Step::Masters | Step::Locks => {}
        }
    }

    /// All members have reached the stage.
    fn passed(&mut self, stage: Stage) {
        if self.is_failed() {
            return;
        }
        match stage {
            Stage::Nodes if self.config.nodir => self.barrier(Stage::Directory),
            Stage::Nodes => {
                self.enter(Step::Names);
                self.poll();
            }
            Stage::Directory => {
                self.recover_waiters_pre();
                self.reap();
                if !self.rebuilds() {
                    self.barrier(Stage::Locks);
                    return;
                }
                self.recover_purge();
                self.enter(Step::Masters);
                self.recover_masters();
                self.masters_found();
            }
            Stage::Locks => {
                if self.rebuilds() {
                    let count = self.recovery.as_ref().map_or(0, |recovery| recovery.locks_in);
                    self.log(Level::Info, || format!("recover_locks {count} in"));
                    self.recover_rsbs();
                }
                self.purge_requestqueue();
                self.barrier(Stage::Done);
            }
            Stage::Done => self.finish(),
        }
    }

    fn rebuilds(&self) -> bool {
        self.config.nodir || self.recovery.as_ref().is_some_and(|recovery| recovery.neg)
    }

    /// Goes on when every resource has its master.
    pub(super) fn masters_found(&mut self) {
        let done = |recovery: &&Recovery| recovery.step == Step::Masters && recovery.pending == 0;
        if self.recovery.as_ref().filter(done).is_some() {
            self.gone.masters.clear();
            self.enter(Step::Locks);
            self.recover_locks();
            self.locks_told();
        }
    }

    /// Goes on when every new master has our locks.
    pub(super) fn locks_told(&mut self) {
        let done = |recovery: &&Recovery| recovery.step == Step::Locks && recovery.pending == 0;
        if self.recovery.as_ref().filter(done).is_some() {
            self.barrier(Stage::Locks);
        }
    }

    fn finish(&mut self) {
        self.recovery = None;
        self.gone = Gone::default();
        self.running = true;
        self.arm_scan();
        self.process_requestqueue();
        self.recover_waiters_post();
        self.recover_grant();
        self.reap();
        if self.is_failed() {
            return;
        }
        let done = self.recover_done_event();
        self.emit(Output::Event(done));
        self.deliver_delayed();
        let (seq, generation) = (self.recover_seq, self.generation);
        self.log(Level::Info, || {
            format!("recover {seq} generation {generation} done")
        });
        self.emit(Output::RecoveryDone { seq, generation });
        self.run_held();
    }

    fn ask(&mut self, to: NodeId, body: RcomBody) {
        self.rcom_id = self.rcom_id.wrapping_add(1);
        let id = self.rcom_id;
        let timer = self.set_timer(self.config.recover_timer);
        self.send_rcom(to, id, 0, body.clone());
        if let Some(recovery) = &mut self.recovery {
            recovery.question = Some(Question { to, id, body, timer });
        }
    }

    pub(super) fn send_rcom(&mut self, to: NodeId, id: u64, seq_reply: u64, body: RcomBody) {
        let rcom = Rcom {
            id,
            seq: self.recover_seq,
            seq_reply,
            body,
        };
        self.send(to, Payload::Rcom(rcom));
    }

    pub(super) fn recovery_timer(&mut self, id: TimerId) {
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        if recovery.poll == Some(id) {
            recovery.poll = None;
            self.poll();
        } else if let Some(question) = recovery.question.take_if(|question| question.timer == id) {
            self.ask(question.to, question.body);
        }
    }

    pub(super) fn receive_rcom(&mut self, from: NodeId, rcom: Rcom) {
        let kind = rcom.kind();
        if kind == RcomType::Status {
            self.receive_status(from, &rcom);
            return;
        }
        let reply = matches!(
            kind,
            RcomType::StatusReply | RcomType::NamesReply | RcomType::LookupReply | RcomType::LockReply
        );
        let needs = match kind {
            RcomType::Status | RcomType::StatusReply => Status::empty(),
            RcomType::Names | RcomType::NamesReply => Status::NODES,
            _ => Status::NODES | Status::DIR,
        };
        let stale = reply && rcom.seq_reply != self.recover_seq;
        if !self.started || stale || !self.status.contains(needs) || !self.members.contains_key(&from) {
            let (seq, status) = (self.recover_seq, self.status);
            self.log(Level::Debug, || {
                format!(
                    "{kind:?} from node {} ignored: seq {} for {}, we are at {seq}, {status:?}",
                    from.0, rcom.seq, rcom.seq_reply
                )
            });
            return;
        }
        let (id, seq) = (rcom.id, rcom.seq);
        match rcom.body {
            RcomBody::Status { .. } => {}
            RcomBody::StatusReply(answer) => {
                if self.is_answer(from, id, RcomType::Status) {
                    self.status_replied(from, answer);
                }
            }
            RcomBody::NamesReply(answer) => {
                if self.is_answer(from, id, RcomType::Names) {
                    self.names_replied(from, &answer);
                }
            }
            RcomBody::Names { after } => {
                let names = self.master_names(from, after);
                self.send_rcom(from, id, seq, RcomBody::NamesReply(names));
            }
            RcomBody::Lookup { name } => {
                let master = self.master_lookup(from, &name, Lookup::RecoverMaster);
                self.send_rcom(from, id, seq, RcomBody::LookupReply { master });
            }
            RcomBody::LookupReply { master } => self.master_replied(from, id, master),
            RcomBody::Lock(lock) => {
                let answer = self.receive_lock(from, *lock);
                self.send_rcom(from, id, seq, RcomBody::LockReply(Box::new(answer)));
            }
            RcomBody::LockReply(lock) => self.lock_replied(from, &lock),
        }
    }

    /// Is this the answer to the question we ask? Then the question is settled.
    fn is_answer(&mut self, from: NodeId, id: u64, asked: RcomType) -> bool {
        let Some(recovery) = &mut self.recovery else {
            return false;
        };
        recovery
            .question
            .take_if(|question| {
                let kind = match question.body {
                    RcomBody::Names { .. } => RcomType::Names,
                    _ => RcomType::Status,
                };
                question.to == from && question.id == id && kind == asked
            })
            .is_some()
    }

    fn receive_status(&mut self, from: NodeId, rcom: &Rcom) {
        let slots = match rcom.body {
            RcomBody::Status { need_slots: true } => self.slots.clone(),
            _ => Vec::new(),
        };
        let reply = StatusReply::Member {
            status: self.status,
            config: RcomConfig {
                lvblen: u32::try_from(LVB_LEN).unwrap_or(0),
                lsflags: 0,
                our_slot: self.our_slot,
                generation: self.generation,
            },
            slots,
        };
        self.send_rcom(from, rcom.id, rcom.seq, RcomBody::StatusReply(reply));
    }

    fn status_replied(&mut self, from: NodeId, reply: StatusReply) {
        let (status, config, slots) = match reply {
            StatusReply::NoLockspace => (Status::empty(), None, Vec::new()),
            StatusReply::Member {
                status,
                config,
                slots,
            } => (status, Some(config), slots),
        };
        if let Some(config) = config
            && (usize::try_from(config.lvblen) != Ok(LVB_LEN) || config.lsflags != 0)
        {
            self.fail(format!(
                "node {} has value blocks of {} bytes and lockspace flags {:#x}, we have {LVB_LEN} and 0",
                from.0, config.lvblen, config.lsflags
            ));
            return;
        }
        let us = self.config.node;
        match self.step() {
            Some(Step::Ping) => {
                self.advance();
                self.poll();
            }
            Some(Step::Barrier(stage)) if self.low == us => {
                if stage == Stage::Nodes
                    && let Some(member) = self.members.get_mut(&from)
                {
                    member.slot = Some(config.map_or(0, |config| config.our_slot));
                    member.generation = config.map_or(0, |config| config.generation);
                }
                if status.contains(stage.bit()) {
                    self.advance();
                    self.poll();
                } else {
                    self.poll_later();
                }
            }
            Some(Step::Barrier(stage)) => {
                if !status.contains(stage.all()) {
                    self.poll_later();
                    return;
                }
                if stage == Stage::Nodes {
                    self.copy_slots(&slots, config.map_or(0, |config| config.generation));
                }
                self.passed(stage);
            }
            _ => {}
        }
    }

    fn poll_later(&mut self) {
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        recovery.delay = recovery.delay.saturating_add(20).min(1000);
        let after = Duration::from_millis(recovery.delay);
        let timer = self.set_timer(after);
        if let Some(recovery) = &mut self.recovery {
            recovery.poll = Some(timer);
        }
    }

    fn names_replied(&mut self, from: NodeId, reply: &NamesReply) {
        for name in &reply.names {
            if let Err(error) = self.master_lookup(from, name, Lookup::RecoverDirectory) {
                self.fail(format!(
                    "node {} says it masters {name:?}, whose directory node we are not: {error}",
                    from.0
                ));
                return;
            }
        }
        if !reply.more {
            self.advance();
            self.poll();
            return;
        }
        match reply.names.last() {
            Some(last) => self.ask(from, RcomBody::Names { after: Some(*last) }),
            None => self.fail(format!("node {} has more names and names none", from.0)),
        }
    }

    /// The names we master whose directory node is `to`, after the last one it knows, as many as fit.
    fn master_names(&mut self, to: NodeId, after: Option<ResName>) -> NamesReply {
        let us = self.config.node;
        let mut at = 0;
        if let Some(name) = after {
            match self.store.rsb_by_name(&name, crate::wire::hash::name_hash(&name)) {
                Some(index) => at = index,
                None => self.log(Level::Error, || {
                    format!("node {} asks for names after unknown {name:?}", to.0)
                }),
            }
        }
        let mut names = Vec::new();
        let mut room = NAMES_ROOM.saturating_sub(2);
        while let Some(index) = self.store.rsbs.after(at) {
            at = index;
            let rsb = self.store.rsbs.at(index);
            if rsb.master != Some(us) || rsb.dir != to || rsb.refs == 0 {
                continue;
            }
            let Some(left) = room.checked_sub(NamesReply::cost(&rsb.name)) else {
                return full_reply(names, true);
            };
            room = left;
            names.push(rsb.name);
        }
        full_reply(names, false)
    }
}

/// As long as the kernel's always is.
fn full_reply(names: Vec<ResName>, more: bool) -> NamesReply {
    let mut reply = NamesReply::new(names, more);
    reply.room = NAMES_ROOM;
    reply
}
