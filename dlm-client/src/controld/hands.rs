//! What the daemon's machine wants done outside of it: in the groups of the membership service, and with fence agents.
//!
//! Invariant: an error of the membership service means that it is lost, unless it only says that we are not in a group,
//! or cannot throw a node out.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tracing::{error, info};

use super::action::{Action, Job};
use super::machine::Input;
use crate::fence::agent::Agents;
use crate::membership::{MemberEvent, Membership, MembershipError};
use crate::wake::Wake;

/// A fence agent, and its exit status.
type Ended = (Job, i32);

/// The membership service and the fence agents.
#[derive(Debug)]
pub(crate) struct Hands<M> {
    pub(crate) membership: M,
    agents: Agents<Job>,
    /// Agents that nobody was told of yet, with their processes.
    started: Vec<(Job, u32)>,
    /// Agents that have ended, and how.
    ended: (Sender<Ended>, Receiver<Ended>),
    /// Ends the wait for the membership service when an agent has ended.
    wake: Option<Wake>,
}

impl<M: Membership> Hands<M> {
    pub(crate) fn new(membership: M) -> Self {
        Self {
            membership,
            agents: Agents::default(),
            started: Vec::new(),
            ended: channel(),
            wake: None,
        }
    }

    /// Lets `wake` end a wait for news. False: the membership service has to be asked often.
    pub(crate) fn wake_by(&mut self, wake: &Wake) -> bool {
        self.wake = Some(wake.clone());
        self.membership.wake_by(wake)
    }

    /// Does what is its business; anything else is given back.
    pub(crate) fn carry_out(&mut self, action: Action) -> Result<Option<Action>, MembershipError> {
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
                    error!(node = node.0, "{error}");
                }
            }
            Action::AnswerShutdown(allowed) => self.membership.answer_shutdown(allowed)?,
            Action::RunAgent {
                job,
                node,
                agent,
                input,
            } => {
                info!(node = node.0, "fence agent {agent} runs");
                let ended = self.ended.0.clone();
                let wake = self.wake.clone();
                let done = move |job, status| {
                    // Whoever waited for it is gone when nobody listens.
                    let _ = ended.send((job, status));
                    if let Some(wake) = wake {
                        wake.wake();
                    }
                };
                match self.agents.run(job, &agent, &input, done) {
                    Ok(pid) => self.started.push((job, pid)),
                    Err(error) => error!(node = node.0, "{error}"),
                }
            }
            Action::StopAgent(job) => self.agents.stop(job),
            other => return Ok(Some(other)),
        }
        Ok(None)
    }

    /// Waits a little for news of the membership service.
    pub(crate) fn poll(&mut self, timeout: Duration) -> Vec<MemberEvent> {
        self.membership.poll(timeout)
    }

    /// Agents that run and agents that have ended, in this order.
    pub(crate) fn agents(&mut self) -> Vec<Input> {
        let started = self.started.drain(..);
        let mut inputs: Vec<Input> = started.map(|(job, pid)| Input::AgentRuns { job, pid }).collect();
        for (job, status) in self.ended.1.try_iter() {
            self.agents.ended(job);
            inputs.push(Input::AgentDone { job, status });
        }
        inputs
    }
}

/// What the machine is told when the service fails.
pub(crate) fn lost(error: &MembershipError) -> Input {
    error!("{error}");
    Input::Member(MemberEvent::Lost(error.to_string()))
}
