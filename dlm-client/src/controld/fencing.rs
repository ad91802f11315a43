//! One node that must be fenced: who does it, with which devices, and how far that is.
//!
//! The actor is the lowest member that saw the node fail and is still there. An actor that fails is struck from the
//! list; when all have failed, all may try again. Devices are tried in order; those that are parallel must all
//! succeed.

use std::time::Duration;

use super::action::{Action, Job, Now, Out};
use super::status::FenceStatus;
use crate::NodeId;
use crate::fence::conf::Device;

/// Between two rounds in which all actors failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A node whose fencing is awaited.
#[derive(Debug)]
pub(super) struct Need {
    node: NodeId,
    pub(super) failed: Now,
    actors: Vec<NodeId>,
    all_actors: Vec<NodeId>,
    devices: Vec<Device>,
    position: usize,
    job: Option<Job>,
    /// We have sent a result and not heard it yet.
    pub(super) result_sent: bool,
    pub(super) delayed: bool,
    /// All have failed: no agent is started before.
    pub(super) not_before: Duration,
    /// The node never told us whether it has state; those that were there before it know.
    pub(super) in_doubt: bool,
    attempts: u32,
    agent: Option<String>,
    last_failure: Option<(NodeId, i32)>,
}

/// How an agent's end changes things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Another device is to be used.
    GoOn,
    /// That was it: the result for all.
    Result(i32),
}

impl Need {
    pub(super) fn new(node: NodeId, failed: Now, mut actors: Vec<NodeId>, devices: Vec<Device>) -> Self {
        actors.sort_unstable();
        Self {
            node,
            failed,
            all_actors: actors.clone(),
            actors,
            devices,
            position: 0,
            job: None,
            result_sent: false,
            delayed: false,
            not_before: Duration::ZERO,
            in_doubt: false,
            attempts: 0,
            agent: None,
            last_failure: None,
        }
    }

    pub(super) const fn job(&self) -> Option<Job> {
        self.job
    }

    /// Who is to do it: the lowest actor that is still a member.
    pub(super) fn actor(&mut self, members: &[NodeId]) -> Option<NodeId> {
        self.actors.retain(|actor| members.contains(actor));
        self.actors.first().copied()
    }

    /// An actor has failed. When all have, they begin again, after a while: an agent that is not there fails at once.
    pub(super) fn strike(&mut self, now: Now, actor: NodeId, result: i32, repeat: bool) {
        self.last_failure = Some((actor, result));
        self.actors.retain(|other| *other != actor);
        if self.actors.is_empty() && repeat {
            self.actors.clone_from(&self.all_actors);
            self.not_before = now.mono.saturating_add(RETRY_PAUSE);
        }
        self.position = 0;
    }

    /// Starts the agent of the device at hand. False: there is none.
    pub(super) fn run(&mut self, job: Job, out: &mut Out) -> bool {
        let Some(device) = self.devices.get(self.position) else {
            return false;
        };
        self.job = Some(job);
        self.attempts = self.attempts.saturating_add(1);
        self.agent = Some(device.agent.clone());
        out.error(format!(
            "fencing node {} with {} ({}), attempt {}",
            self.node.0, device.agent, device.name, self.attempts
        ));
        out.push(Action::RunAgent {
            job,
            node: self.node,
            agent: device.agent.clone(),
            input: device.input(self.node, &format!("fail_time={}\n", self.failed.wall)),
        });
        true
    }

    /// The agent has ended.
    pub(super) fn ended(&mut self, status: i32) -> Outcome {
        self.job = None;
        let current = self.devices.get(self.position).cloned();
        let next = self.position.saturating_add(1);
        let parallel = |at: usize| {
            self.devices
                .get(at)
                .zip(current.as_ref())
                .is_some_and(|(other, current)| other.parallel_to(current))
        };
        if status == 0 {
            if parallel(next) {
                self.position = next;
                return Outcome::GoOn;
            }
            return Outcome::Result(0);
        }
        let other = (next..self.devices.len()).find(|at| !parallel(*at));
        match other {
            Some(at) => {
                self.position = at;
                Outcome::GoOn
            }
            None => {
                self.position = 0;
                Outcome::Result(status)
            }
        }
    }

    /// Stops an agent that runs.
    pub(super) fn stop(&mut self, out: &mut Out) {
        if let Some(job) = self.job.take() {
            out.push(Action::StopAgent(job));
        }
    }

    pub(super) fn status(&self, now: Now) -> FenceStatus {
        FenceStatus {
            since: now.mono.saturating_sub(self.failed.mono),
            actor: self.actors.first().copied(),
            agent: self.agent.clone(),
            attempts: self.attempts,
            delayed: self.delayed,
            last_failure: self.last_failure,
        }
    }
}
