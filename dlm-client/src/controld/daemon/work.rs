//! Fencing, as the group of the daemons does it: who has to be, whose turn it is, and what newcomers must be told of it.
//!
//! Invariants: nothing is fenced before the rings agree, nor without a quorum if that is asked for, nor while partitions
//! with state are not sorted out; a newcomer is told that nothing is pending only when nothing is.

use std::time::Duration;

use super::{Daemon, Near, Node};
use crate::NodeId;
use crate::controld::action::{Action, Fatal, Job, Now, Out};
use crate::controld::codec::{Body, FENCE_ACKED, FENCE_NO_DATA, FenceFlags, FenceInfo};
use crate::controld::fencing::{Need, Outcome};
use crate::controld::status::Fenced;

impl Daemon {
    pub(super) fn on_fence_result(&mut self, near: &Near<'_>, from: NodeId, info: &FenceInfo, out: &mut Out) {
        let victim = NodeId(info.node);
        let success = info.result == 0 || info.result == FENCE_ACKED;
        if victim == self.us && success && from != self.us {
            out.push(Action::Fatal(Fatal::Fenced { by: from }));
            return;
        }
        if self.startup.remove(&victim) {
            return;
        }
        let (us, repeat) = (self.us, near.conf.repeat_failed_fencing);
        let Some(node) = self.nodes.get_mut(&victim) else {
            return;
        };
        let Some(need) = node.need.as_mut() else {
            out.debug(format!(
                "node {} reports fencing of node {}, which needs none",
                from.0, victim.0
            ));
            return;
        };
        if from == us && info.result != FENCE_ACKED {
            need.result_sent = false;
        }
        out.error(format!(
            "fencing of node {} by node {}: {}",
            victim.0,
            from.0,
            match info.result {
                0 => "done".to_owned(),
                FENCE_ACKED => "acknowledged by hand".to_owned(),
                result => format!("failed with {result}"),
            }
        ));
        if !success {
            need.strike(near.now, from, info.result, repeat);
            return;
        }
        if info.result == FENCE_ACKED {
            need.stop(out);
        }
        node.need = None;
        node.fenced = Some(Fenced {
            by: from,
            at: near.now,
        });
        if node.member {
            out.push(Action::Kill(victim));
        }
    }

    pub(super) fn on_fence_clear(&mut self, from: NodeId, info: &FenceInfo, out: &mut Out) {
        let about = NodeId(info.node);
        let us = self.us;
        let Some(node) = self.nodes.get_mut(&about) else {
            return;
        };
        if info.result == FENCE_NO_DATA && info.flags.contains(FenceFlags::UNKNOWN) {
            node.unknown = node.unknown || self.unknown;
            return;
        }
        if info.result != 0 {
            return;
        }
        if info.flags.is_empty() && node.need.as_ref().is_some_and(|need| need.in_doubt) {
            out.info(format!(
                "node {} says that node {} had no locks yet",
                from.0, about.0
            ));
            if let Some(mut need) = node.need.take() {
                need.stop(out);
            }
        }
        // What we said ourselves was noted then, and may have been about an earlier coming of the node. Before it has
        // agreed on a protocol it listens to nobody.
        if from != us && node.has_agreed() {
            node.clear.remove(info.flags);
        }
        if about != us {
            return;
        }
        if info.flags.contains(FenceFlags::CLEAR_STARTUP) && !self.startup.is_empty() {
            self.startup.clear();
            self.wait_clear = true;
        }
        if info.flags.contains(FenceFlags::CLEAR_UNKNOWN) && self.unknown {
            out.info(format!("node {} says that no fencing is going on", from.0));
            self.unknown = false;
            self.wait_clear = false;
        }
    }

    /// A person says that a node is down.
    pub(in crate::controld) fn acknowledge(&self, now: Now, node: NodeId, out: &mut Out) {
        self.send_result(now, node, FENCE_ACKED, out);
    }

    fn send_result(&self, now: Now, node: NodeId, result: i32, out: &mut Out) {
        let info = FenceInfo {
            node: node.0,
            result,
            walltime: now.wall,
            ..FenceInfo::default()
        };
        self.send(Body::FenceResult(info), out);
    }

    fn send_clear(&self, node: NodeId, result: i32, flags: FenceFlags, out: &mut Out) {
        let info = FenceInfo {
            flags,
            node: node.0,
            result,
            ..FenceInfo::default()
        };
        self.send(Body::FenceClear(info), out);
    }

    /// An agent of ours has ended.
    pub(in crate::controld) fn on_agent(&mut self, near: &Near<'_>, job: Job, status: i32, out: &mut Out) {
        let found = self.nodes.iter_mut().find_map(|(id, node)| {
            let need = node.need.as_mut()?;
            (need.job() == Some(job)).then_some((*id, need))
        });
        let Some((id, need)) = found else { return };
        match need.ended(status) {
            Outcome::GoOn => {}
            Outcome::Result(result) => {
                need.result_sent = true;
                self.send_result(near.now, id, result, out);
            }
        }
    }

    /// The process of a fence agent, to be shown.
    pub(in crate::controld) fn on_agent_runs(&mut self, job: Job, pid: u32) {
        let need = self.nodes.values_mut().filter_map(|node| node.need.as_mut());
        if let Some(need) = need.into_iter().find(|need| need.job() == Some(job)) {
            need.pid = Some(pid);
        }
    }

    /// Goes as far as it can be gone.
    pub(in crate::controld) fn advance(&mut self, near: &Near<'_>, out: &mut Out) {
        self.negotiate(out);
        if !self.agreed || near.behind || self.ring_wait || self.ring != near.cluster.ring {
            return;
        }
        if !near.conf.enable_quorum_fencing || near.cluster.quorate {
            if self.sort_out_merge(near, out) {
                return;
            }
            self.fence_startup(near, out);
            self.fence(near, out);
        }
        self.clear_unknown(near, out);
    }

    /// Partitions that merged with state: nothing is fenced before one side is gone. True: not sorted out yet.
    fn sort_out_merge(&mut self, near: &Near<'_>, out: &mut Out) -> bool {
        let us = self.us;
        let present = || self.nodes.iter().filter(|(_, node)| node.member);
        let merged: Vec<NodeId> = present()
            .filter(|(_, node)| node.merged)
            .map(|(id, _)| *id)
            .collect();
        if near.two_node || merged.is_empty() {
            self.merge_wait = false;
            return false;
        }
        let partial = present().any(|(_, node)| !node.merged && node.protocol.is_none());
        // Those of our side that see the merge: nodes without state see nothing strange.
        let stateful = |id: &NodeId, node: &Node| {
            let has_state = node.protocol.is_some_and(|protocol| protocol.is_stateful());
            *id == us || (!node.merged && has_state)
        };
        let ours: Vec<NodeId> = present()
            .filter(|(id, node)| stateful(id, node))
            .map(|(id, _)| *id)
            .collect();
        let (first, other) = (ours.first(), merged.first());
        let stronger = ours.len() > merged.len() || (ours.len() == merged.len() && first < other);
        // Whoever is not the stronger side waits to be thrown out. If the others do not see it that way, because news
        // crossed, only a person can help.
        self.merge_wait = !partial && !stronger;
        if !partial && stronger && first == Some(&us) {
            for (id, node) in self.nodes.iter_mut().filter(|(_, node)| node.merged) {
                if !node.killed {
                    node.killed = true;
                    out.push(Action::Kill(*id));
                }
            }
        }
        true
    }

    fn delay_over(&self, near: &Near<'_>) -> bool {
        let begin = self.last_joined.max(near.cluster.last_added);
        let delay = Duration::from_secs(near.conf.post_join_delay.into());
        near.now.mono.saturating_sub(begin) >= delay
    }

    fn fence_startup(&mut self, near: &Near<'_>, out: &mut Out) {
        let clean: Vec<NodeId> = self
            .startup
            .iter()
            .copied()
            .filter(|node| self.is_clean(*node))
            .collect();
        for node in clean {
            self.startup.remove(&node);
        }
        if !near.conf.enable_startup_fencing || !self.delay_over(near) {
            return;
        }
        // The agents are to count what happened to the node since just before we came.
        let since = near.cluster.since.unwrap_or(near.now);
        let since = Now {
            wall: since.wall.saturating_sub(1),
            ..since
        };
        for id in std::mem::take(&mut self.startup) {
            let members = self.members.clone();
            let node = self.nodes.entry(id).or_default();
            if node.need.is_none() {
                out.error(format!(
                    "node {} was never seen since we started: it must be fenced",
                    id.0
                ));
                node.need = Some(Need::new(id, since, members, near.conf.devices(id)));
            }
        }
    }

    fn fence(&mut self, near: &Near<'_>, out: &mut Out) {
        let due: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.need.is_some())
            .map(|(id, _)| *id)
            .collect();
        let delay_over = self.delay_over(near);
        let patience = Duration::from_secs(near.conf.post_join_delay.into()).saturating_mul(2);
        for id in due {
            let clean = self.is_clean(id);
            let busy = self
                .nodes
                .values()
                .any(|node| node.need.as_ref().is_some_and(|need| need.job().is_some()));
            let members = &self.members;
            let Some(node) = self.nodes.get_mut(&id) else {
                continue;
            };
            let Some(need) = node.need.as_mut() else { continue };
            if clean {
                out.info(format!("node {} came back clean: it need not be fenced", id.0));
                need.stop(out);
                node.need = None;
                continue;
            }
            if need.job().is_some() || need.result_sent || near.now.mono < need.not_before {
                continue;
            }
            need.delayed = !delay_over || (busy && !near.conf.enable_concurrent_fencing);
            let ours = need.actor(members) == Some(self.us);
            // Whoever else is to do it may know that it need not be done, and a stock daemon does not tell.
            let alone = need.in_doubt && near.now.mono.saturating_sub(need.failed.mono) > patience;
            if need.delayed || !(ours || alone) {
                continue;
            }
            self.last_job = self.last_job.wrapping_add(1);
            if !need.run(Job(self.last_job), out) {
                need.result_sent = true;
                self.send_result(near.now, id, -1, out);
            }
        }
    }

    /// Whoever starts must learn that nobody is being fenced; whoever knows says so.
    fn clear_unknown(&mut self, near: &Near<'_>, out: &mut Out) {
        let startup_fencing = near.conf.enable_startup_fencing;
        if startup_fencing && self.unknown && self.startup.is_empty() && !self.wait_clear && !self.any_need()
        {
            self.unknown = false;
        }
        if !self.unknown {
            self.tell_newcomers(out);
        } else if !startup_fencing {
            let mut present = self.nodes.values().filter(|node| node.member);
            if !self.members.is_empty() && present.all(|node| node.unknown) {
                self.unknown = false;
                self.nodes.values_mut().for_each(|node| node.unknown = false);
            } else if self.joins > self.told_unknown_at {
                self.told_unknown_at = self.joins;
                self.send_clear(self.us, FENCE_NO_DATA, FenceFlags::UNKNOWN, out);
            }
        }
    }

    /// The lowest of those that know and were there before a newcomer tells it; one that came later does not know that
    /// it has to.
    fn speaker(&self, came: u32) -> Option<NodeId> {
        let knows = |node: &Node| node.member && node.clear.is_empty() && node.came < came;
        self.nodes.iter().find(|(_, node)| knows(node)).map(|(id, _)| *id)
    }

    fn tell_newcomers(&mut self, out: &mut Out) {
        let fencing = self.any_need();
        if let Some(node) = self.nodes.get_mut(&self.us) {
            node.clear = FenceFlags::empty();
        }
        let mut told = Vec::new();
        for (id, node) in self.nodes.iter().filter(|(_, node)| node.member) {
            let mut flags = node.clear;
            if fencing {
                flags.remove(FenceFlags::CLEAR_UNKNOWN);
            }
            if !flags.is_empty() && node.has_agreed() && self.speaker(node.came) == Some(self.us) {
                told.push((*id, flags));
            }
        }
        for (id, flags) in told {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.clear.remove(flags);
            }
            self.send_clear(id, 0, flags, out);
        }
    }

    /// A node failed before it said a word. Members that came after it cannot know that, and wait for its fencing.
    ///
    /// A clearance that clears nothing means nothing to stock daemons.
    pub(super) fn reassure(&self, node: NodeId, came: u32, out: &mut Out) {
        let younger = |other: &Node| other.member && other.came > came;
        if self.agreed && !self.unknown && self.nodes.values().any(younger) {
            self.send_clear(node, 0, FenceFlags::empty(), out);
        }
    }
}
