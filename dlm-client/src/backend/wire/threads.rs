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

/// How long the membership service is waited for before requests of others are looked at, unless it is woken.
const MEMBERSHIP_WAIT: Duration = Duration::from_millis(10);

/// The network's thread.
pub(super) fn network(shared: &Arc<Shared>) {
    let mut ready = Vec::new();
    loop {
        let timeout = {
            let mut host = shared.host.lock();
            let stopping = shared.stop.load(Ordering::Acquire);
            if stopping && host.is_quiet() {
                return;
            }
            host.sleeps_until = host.deadline();
            let timeout = host
                .sleeps_until
                .map(|at| at.saturating_duration_since(Instant::now()));
            // What is waited for at the end is the other thread's to do.
            if stopping {
                Some(timeout.map_or(MEMBERSHIP_WAIT, |t| t.min(MEMBERSHIP_WAIT)))
            } else {
                timeout
            }
        };
        ready.clear();
        if let Err(e) = shared.poller.wait(timeout, &mut ready) {
            return shared.host.lock().abandon(&format!("cannot wait: {e}"));
        }
        let mut host = shared.host.lock();
        host.turn(&ready);
        if host.has_requests() {
            shared.wake_membership();
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
}

impl<M: Membership> MembershipThread<M> {
    pub(super) fn new(shared: Arc<Shared>, membership: M, port: u16) -> Self {
        let tick = membership
            .config()
            .token
            .checked_div(20)
            .unwrap_or(MEMBERSHIP_WAIT);
        Self {
            shared,
            hands: Hands::new(membership),
            port,
            nodes: BTreeSet::new(),
            ticked: Instant::now(),
            tick: tick.clamp(MEMBERSHIP_WAIT, Duration::from_secs(1)),
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
            let events = self.hands.poll(MEMBERSHIP_WAIT.min(self.tick));
            for event in events {
                if !matches!(event, MemberEvent::Deliver { .. }) {
                    debug!("{event:?}");
                }
                if let MemberEvent::Quorum { members, renewed, .. } = &event
                    && let Err(e) = self.new_ring(members, renewed)
                {
                    self.lost(&e);
                }
                self.shared.host.lock().input(Input::Member(event));
            }
            for input in self.hands.ended() {
                self.shared.host.lock().input(input);
            }
            if self.ticked.elapsed() >= self.tick {
                self.ticked = Instant::now();
                self.shared.host.lock().input(Input::Tick);
            }
            let host = self.shared.host.lock();
            self.shared.wake_if_due(&host);
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

    fn lost(&self, error: &MembershipError) {
        self.shared.host.lock().input(lost(error));
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
