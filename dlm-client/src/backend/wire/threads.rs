//! The two threads of a node: one waits for the network and for time, one for the membership service.
//!
//! Both only wait outside the host's lock, and end when the node is stopped and nobody waits for anything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tracing::debug;

use super::Shared;
use crate::NodeId;
use crate::controld::Input;
use crate::controld::hands::{Hands, lost};
use crate::membership::{MemberEvent, Membership, MembershipError};

/// How long a membership service that cannot be woken is waited for before requests of others are looked at.
const MEMBERSHIP_WAIT: Duration = Duration::from_millis(10);

/// The network's thread.
pub(super) fn network(shared: &Arc<Shared>) {
    let mut ready = Vec::new();
    loop {
        // One wake-up, one hold of the lock, and whoever is told something is woken once, when the lock is free.
        let mut host = shared.host.lock();
        let now = host.turn(&ready);
        host.sleeps_until = host.deadline();
        let stopping = shared.stop.load(Ordering::Acquire);
        let ends = stopping && host.is_quiet();
        let timeout = host.sleeps_until.map(|at| at.saturating_duration_since(now));
        shared.release(host);
        if ends {
            return;
        }
        // What is waited for at the end is the other thread's to do.
        let timeout = if stopping {
            Some(timeout.map_or(MEMBERSHIP_WAIT, |t| t.min(MEMBERSHIP_WAIT)))
        } else {
            timeout
        };
        ready.clear();
        if let Err(e) = shared.poller.wait(timeout, &mut ready) {
            return shared.with(|host| host.abandon(&format!("cannot wait: {e}")));
        }
    }
}

/// The membership's thread.
pub(super) struct MembershipThread<M> {
    shared: Arc<Shared>,
    hands: Hands<M>,
    port: u16,
    nodes: BTreeSet<NodeId>,
    /// When the daemon was last told that time passes.
    ticked: Instant,
    tick: Duration,
    /// How long the membership service is waited for.
    wait: Duration,
}

impl<M: Membership> MembershipThread<M> {
    pub(super) fn new(shared: Arc<Shared>, membership: M, port: u16) -> Self {
        let tick = membership
            .config()
            .token
            .checked_div(20)
            .unwrap_or(MEMBERSHIP_WAIT);
        let tick = tick.clamp(MEMBERSHIP_WAIT, Duration::from_secs(1));
        let mut hands = Hands::new(membership);
        let wait = if hands.wake_by(&shared.wake_members) {
            tick
        } else {
            MEMBERSHIP_WAIT
        };
        Self {
            shared,
            hands,
            wait,
            port,
            nodes: BTreeSet::new(),
            ticked: Instant::now(),
            tick,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            let requests = self.shared.host.lock().take_requests();
            for request in requests {
                if let Err(e) = self.hands.carry_out(request) {
                    self.lost(&e);
                }
            }
            let left = self.tick.saturating_sub(self.ticked.elapsed());
            let events = self.hands.poll(self.wait.min(left));
            for event in events {
                if !matches!(event, MemberEvent::Deliver { .. }) {
                    debug!("{event:?}");
                }
                if let MemberEvent::Quorum { members, renewed, .. } = &event
                    && let Err(e) = self.new_ring(members, renewed)
                {
                    self.lost(&e);
                }
                self.input(Input::Member(event));
            }
            for input in self.hands.agents() {
                self.input(input);
            }
            if self.ticked.elapsed() >= self.tick {
                self.ticked = Instant::now();
                self.input(Input::Tick);
            }
            let host = self.shared.host.lock();
            let dead = host.dead().is_some();
            if dead || (self.shared.stop.load(Ordering::Acquire) && host.is_quiet()) {
                drop(host);
                // The network's thread may sleep because a request was waiting for us when it looked last.
                self.shared.poller.wake();
                // A node that is dead drops out of the membership with this thread: its peers must not wait for it.
                return;
            }
        }
    }

    /// Tells the daemon something; what it asks of the membership service is done in the next turn of this thread.
    fn input(&self, input: Input) {
        self.shared.with(|host| host.input(input));
    }

    fn lost(&self, error: &MembershipError) {
        self.input(lost(error));
    }

    /// Who may connect follows from who is in the cluster; a node that was away is not the one it was.
    fn new_ring(&mut self, members: &[NodeId], renewed: &[NodeId]) -> Result<(), MembershipError> {
        let now: BTreeSet<NodeId> = members.iter().copied().collect();
        let mut addresses = BTreeMap::new();
        for node in now
            .iter()
            .filter(|n| !self.nodes.contains(n) || renewed.contains(n))
        {
            if let Some(ip) = self.hands.membership.addresses(*node)?.first() {
                addresses.insert(*node, SocketAddr::new(*ip, self.port));
            }
        }
        let mut host = self.shared.host.lock();
        let us = host.us();
        let net = host.network();
        for node in self
            .nodes
            .iter()
            .filter(|n| !now.contains(n) || renewed.contains(n))
        {
            net.remove_peer(*node);
        }
        for (node, addr) in addresses.into_iter().filter(|(node, _)| *node != us) {
            net.set_peer(node, addr);
        }
        drop(host);
        self.nodes = now;
        Ok(())
    }
}
