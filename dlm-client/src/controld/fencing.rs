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
    /// The process of the agent that runs.
    pub(super) pid: Option<u32>,
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
            pid: None,
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
        self.pid = None;
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
        self.pid = None;
        if let Some(job) = self.job.take() {
            out.push(Action::StopAgent(job));
        }
    }

    pub(super) fn status(&self, now: Now) -> FenceStatus {
        FenceStatus {
            since: now.mono.saturating_sub(self.failed.mono),
            actor: self.actors.first().copied(),
            agent: self.agent.clone(),
            pid: self.pid,
            attempts: self.attempts,
            delayed: self.delayed,
            last_failure: self.last_failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::conf::DlmConf;

    fn at(seconds: u64) -> Now {
        Now {
            mono: Duration::from_secs(seconds),
            wall: 1000 + seconds,
        }
    }

    fn need(conf: &str) -> Need {
        let devices = DlmConf::parse(conf).unwrap().devices(NodeId(9));
        Need::new(NodeId(9), at(0), [3, 1, 2].map(NodeId).to_vec(), devices)
    }

    fn agents(out: Out) -> Vec<String> {
        let agent = |action| match action {
            Action::RunAgent { agent, .. } => Some(agent),
            _ => None,
        };
        out.0.into_iter().filter_map(agent).collect()
    }

    #[test]
    fn the_lowest_that_saw_it_acts_and_who_fails_makes_room_until_all_have() {
        let all = [1, 2, 3, 4].map(NodeId);
        let mut need = need("fence_all /bin/false\n");
        assert_eq!(need.actor(&all), Some(NodeId(1)));
        need.strike(at(1), NodeId(1), 7, true);
        assert_eq!(need.actor(&all), Some(NodeId(2)));
        assert_eq!(need.status(at(5)).last_failure, Some((NodeId(1), 7)));
        assert_eq!(need.status(at(5)).since, Duration::from_secs(5));
        // Node 2 has gone; node 4 never saw it fail.
        assert_eq!(need.actor(&[1, 3, 4].map(NodeId)), Some(NodeId(3)));
        need.strike(at(9), NodeId(3), 7, true);
        assert_eq!(need.actor(&all), Some(NodeId(1)), "they begin again");
        assert_eq!(need.not_before, at(10).mono, "after a while");
        for actor in [1, 2, 3].map(NodeId) {
            need.strike(at(11), actor, 7, false);
        }
        assert_eq!(need.actor(&all), None);
    }

    #[test]
    fn devices_are_tried_in_order_and_parallel_ones_must_all_succeed() {
        let conf = "device a:1 /a1 ip=1\nconnect a:1 node=9\n\ndevice a:2 /a2 ip=2\nconnect a:2 node=9\n\n\
                    device b /b ip=3\nconnect b node=9\n";
        let mut need = need(conf);
        let run = |need: &mut Need, job| {
            let mut out = Out::default();
            assert!(need.run(Job(job), &mut out));
            agents(out)
        };
        assert_eq!(run(&mut need, 1), ["/a1"]);
        need.pid = Some(77);
        assert_eq!(need.status(at(1)).pid, Some(77));
        assert_eq!(need.ended(0), Outcome::GoOn);
        assert_eq!(need.status(at(1)).pid, None);
        assert_eq!(run(&mut need, 2), ["/a2"]);
        assert_eq!(need.ended(3), Outcome::GoOn);
        assert_eq!(run(&mut need, 3), ["/b"]);
        assert_eq!(need.ended(4), Outcome::Result(4));
        assert_eq!(run(&mut need, 4), ["/a1"]);
        assert_eq!(need.ended(0), Outcome::GoOn);
        assert_eq!(run(&mut need, 5), ["/a2"]);
        assert_eq!(need.ended(0), Outcome::Result(0));
        assert_eq!(need.status(at(1)).attempts, 5);
    }
}
