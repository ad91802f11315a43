//! Are we still part of the cluster that the others see?
//!
//! A node that was paused (a frozen virtual machine, a stopped process) is taken for dead, fenced and recovered. When
//! it goes on it never sees that it lost the quorum: it sees its peers go and come back at once, with the same
//! processes. That, and only that, tells it. So:
//!
//! - Nodes that went with their node are *apart* until the quorum service said that we are quorate without them. One
//!   that is back while apart, and has state, has taken us for dead: [`Fatal::Evicted`]. Until it has said whether it
//!   has, we must not write. One without state was started anew meanwhile, and has taken nobody for dead.
//! - If we stood still for longer than it takes to be given up and nodes go shortly after, it was us who went:
//!   [`Fatal::Paused`]. (With two nodes both are quorate alone, so the first rule may not be enough.)
//! - After we stood still, whatever came meanwhile comes before what we send then: until that is back, nobody is fenced
//!   and no engine started on what we know.
//! - What we send to ourselves through the cluster comes back within a bounded time, counted from its sending; if not,
//!   or if we stood still, we must not write ([`Action::Suspend`]) until something that we sent after that is back and
//!   all that the group of the daemons had to tell before is heard.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::action::{Action, Fatal, Now, Out};
use super::cluster::Cluster;
use super::codec::{Body, Header, Message};
use super::daemon::Mark;
use crate::NodeId;
use crate::membership::{ClusterConfig, Group, Reason};

/// Kind of a heartbeat message, far from those of stock daemons.
const BEAT: u16 = 0x4242;
/// Heartbeats under way that are remembered.
const UNDER_WAY_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct Safety {
    us: NodeId,
    life: u32,
    qdevice: bool,
    token: Duration,
    /// Went with their nodes; not known yet who of us was given up.
    apart: BTreeSet<NodeId>,
    /// Of these, those that are here again and have not said yet whether they have state.
    returned: BTreeSet<NodeId>,
    /// While nodes were apart the quorum service said that we are not quorate.
    inquorate: bool,
    last_turn: Option<Duration>,
    /// When we noticed that we had stood still, and for how long.
    paused: Option<(Duration, Duration)>,
    /// We stood still, and the beat of this number, sent after it, has not come back: what we know may be long past.
    behind: Option<u32>,
    beating: bool,
    counter: u32,
    last_beat: Duration,
    under_way: VecDeque<(u32, Duration)>,
    /// When the last of our beats that came back was sent.
    heard: Duration,
    suspended: Option<Suspension>,
}

/// A change of the members of the daemons' group.
#[derive(Clone, Copy, Debug)]
pub(super) struct News<'a> {
    pub(super) members: &'a [NodeId],
    pub(super) joined: &'a [(NodeId, Reason)],
    pub(super) left: &'a [(NodeId, Reason)],
}

/// We must not go on.
#[derive(Clone, Copy, Debug)]
struct Suspension {
    since: Duration,
    /// What the group of the daemons must have told before it ends; none was asked for yet.
    mark: Option<Mark>,
}

impl Safety {
    pub(super) fn new(config: &ClusterConfig, life: u32) -> Self {
        Self {
            us: config.us,
            life,
            qdevice: config.qdevice,
            token: config.token.max(Duration::from_millis(100)),
            apart: BTreeSet::new(),
            returned: BTreeSet::new(),
            inquorate: false,
            last_turn: None,
            paused: None,
            behind: None,
            beating: false,
            counter: 0,
            last_beat: Duration::ZERO,
            under_way: VecDeque::new(),
            heard: Duration::ZERO,
            suspended: None,
        }
    }

    /// How long a change of the ring may keep messages: token and consensus time, and as much again for load.
    fn lease(&self) -> Duration {
        self.token.saturating_mul(4)
    }

    /// In this time nobody is given up: that takes 2.2 token times of silence.
    pub(super) fn grace(&self) -> Duration {
        self.token.saturating_mul(3).checked_div(2).unwrap_or(self.token)
    }

    pub(super) const fn is_suspended(&self) -> bool {
        self.suspended.is_some()
    }

    /// May others have taken us for dead?
    pub(super) fn is_undecided(&self) -> bool {
        !self.returned.is_empty()
    }

    /// Called with every step, before anything else is done with it.
    pub(super) fn on_turn(&mut self, now: Now, stateful: bool, out: &mut Out) {
        let gap = self
            .last_turn
            .map_or(Duration::ZERO, |last| now.mono.saturating_sub(last));
        self.last_turn = Some(now.mono);
        if gap > self.grace() {
            self.paused = Some((now.mono, gap));
            if stateful {
                self.suspend(now, &format!("stood still for {} ms", gap.as_millis()), out);
            }
            self.behind = Some(self.counter.wrapping_add(1));
        }
        if !self.beating {
            return;
        }
        let since_beat = now.mono.saturating_sub(self.last_beat);
        if since_beat.saturating_mul(4) >= self.token {
            self.beat(now, out);
        }
        let silence = now.mono.saturating_sub(self.heard);
        if stateful && self.suspended.is_none() && silence > self.lease() {
            let why = format!("nothing of our own has come back for {} ms", silence.as_millis());
            self.suspend(now, &why, out);
        }
    }

    fn suspend(&mut self, now: Now, why: &str, out: &mut Out) {
        let news = self.suspended.is_none();
        self.suspended = Some(Suspension {
            since: now.mono,
            mark: None,
        });
        if news {
            out.error(format!("suspended: {why}"));
            out.push(Action::Suspend);
        }
    }

    /// Is a mark of the daemons' group to be sent for the end of a suspension?
    pub(super) fn wants_mark(&self) -> bool {
        self.suspended.is_some_and(|suspended| suspended.mark.is_none())
    }

    pub(super) fn marked(&mut self, mark: Mark) {
        if let Some(suspended) = self.suspended.as_mut() {
            suspended.mark = Some(mark);
        }
    }

    /// Ends a suspension, if all that must be known is known, and good.
    pub(super) fn resume(&mut self, now: Now, passed: impl Fn(Mark) -> bool, out: &mut Out) {
        let fresh = now.mono.saturating_sub(self.heard) <= self.lease();
        let over = |suspended: Suspension| {
            self.heard >= suspended.since && suspended.mark.is_some_and(&passed) && fresh
        };
        if self.suspended.is_some_and(over) && self.apart.is_empty() {
            self.suspended = None;
            out.push(Action::Resume);
        }
    }

    fn beat(&mut self, now: Now, out: &mut Out) {
        self.last_beat = now.mono;
        self.counter = self.counter.wrapping_add(1);
        if self.under_way.len() >= UNDER_WAY_MAX {
            self.under_way.pop_front();
        }
        self.under_way.push_back((self.counter, now.mono));
        let header = Header {
            from: self.us.0,
            data: self.counter,
            stamp: u64::from(self.life) << 32,
            ..Header::default()
        };
        let body = Body::Other { kind: BEAT };
        out.push(Action::Send {
            group: Group::Beat,
            bytes: Message { header, body }.encode(),
        });
    }

    /// May there be a backlog of news that we have not heard?
    pub(super) const fn is_behind(&self) -> bool {
        self.behind.is_some()
    }

    /// The heartbeat's group: we are in it from the first change that names us.
    pub(super) fn on_beat_confchg(&mut self, now: Now, members: &[NodeId]) {
        if !self.beating && members.contains(&self.us) {
            self.beating = true;
            self.heard = now.mono;
        }
    }

    pub(super) fn on_beat(&mut self, from: NodeId, message: &Message) {
        let ours = from == self.us && message.header.stamp == u64::from(self.life) << 32;
        if !ours || message.body != (Body::Other { kind: BEAT }) {
            return;
        }
        while let Some((counter, sent)) = self.under_way.pop_front() {
            if counter == message.header.data {
                self.heard = self.heard.max(sent);
                break;
            }
        }
        let passed = |mark: u32| message.header.data.wrapping_sub(mark) <= u32::MAX >> 1;
        if self.behind.is_some_and(passed) {
            self.behind = None;
        }
    }

    /// Members of the daemons' group changed.
    pub(super) fn on_confchg(
        &mut self,
        now: Now,
        cluster: &Cluster,
        stateful: bool,
        news: &News<'_>,
        out: &mut Out,
    ) -> Option<Fatal> {
        let News {
            members,
            joined,
            left,
        } = *news;
        let went = left
            .iter()
            .filter(|(node, reason)| *reason == Reason::NodeDown && *node != self.us);
        let went: Vec<NodeId> = went.map(|(node, _)| *node).collect();
        if let Some((at, pause)) = self.paused
            && stateful
            && !went.is_empty()
            && now.mono.saturating_sub(at) <= self.lease()
        {
            return Some(Fatal::Paused { pause });
        }
        for node in went {
            let confirmed = cluster.quorate && !cluster.members.contains(&node);
            if !confirmed {
                self.apart.insert(node);
                self.inquorate = self.inquorate || !cluster.quorate;
            }
        }
        self.returned.retain(|node| members.contains(node));
        let mut back = Vec::new();
        for (node, reason) in joined {
            if *reason == Reason::NodeUp {
                back.push(*node);
            } else {
                // Started anew: it knows nothing of us.
                self.apart.remove(node);
                self.returned.remove(node);
            }
        }
        let stayed = members.iter().copied().filter(|node| !back.contains(node));
        let judges = self.judges(stateful, &stayed.collect::<Vec<_>>(), &back);
        // If there are none, we had nothing to lose, or are the ones that go on: that they were away is over.
        self.apart
            .retain(|node| !back.contains(node) || judges.contains(node));
        if !judges.is_empty() {
            self.suspend(now, &format!("apart from nodes {judges:?}, which are back"), out);
            self.returned.extend(judges);
        }
        None
    }

    /// A daemon says whether it ever started a lockspace.
    pub(super) fn on_protocol(&mut self, from: NodeId, stateful: bool) -> Option<Fatal> {
        if !self.returned.contains(&from) {
            return None;
        }
        if stateful {
            return Some(Fatal::Evicted { peers: vec![from] });
        }
        self.returned.remove(&from);
        self.apart.remove(&from);
        if self.apart.is_empty() {
            self.inquorate = false;
        }
        None
    }

    pub(super) fn on_quorum(&mut self, quorate: bool, members: &[NodeId]) {
        if !self.apart.is_empty() && !quorate {
            self.inquorate = true;
        }
        if quorate {
            self.apart.retain(|node| members.contains(node));
        }
        if self.apart.is_empty() {
            self.inquorate = false;
        }
    }

    /// Nodes are here again: which of them may have taken us for dead?
    fn judges(&self, stateful: bool, stayed: &[NodeId], here: &[NodeId]) -> BTreeSet<NodeId> {
        let back: BTreeSet<NodeId> = here
            .iter()
            .copied()
            .filter(|node| self.apart.contains(node))
            .collect();
        if back.is_empty() || !stateful {
            return BTreeSet::new();
        }
        // An even split in which nobody was quorate: nobody was recovered, and the side with the lowest node goes on.
        let ours = stayed.iter().filter(|node| !self.apart.contains(node));
        let lowest_is_ours = ours.clone().min() < self.apart.iter().min();
        if self.inquorate && !self.qdevice && ours.count() >= self.apart.len() && lowest_is_ours {
            return BTreeSet::new();
        }
        back
    }
}

#[cfg(test)]
#[path = "safety/tests.rs"]
mod tests;
