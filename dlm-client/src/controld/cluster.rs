//! The cluster as a whole: quorum and its ring.

use std::collections::BTreeSet;
use std::time::Duration;

use super::action::Now;
use crate::NodeId;
use crate::membership::RingId;

/// What the quorum service told.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    pub(super) quorate: bool,
    pub(super) quorate_since: Duration,
    pub(super) ring: u64,
    pub(super) members: BTreeSet<NodeId>,
    /// Our first news of the cluster.
    pub(super) since: Option<Now>,
    /// The last time a node came.
    pub(super) last_added: Duration,
}

impl Cluster {
    pub(super) fn on_quorum(
        &mut self,
        now: Now,
        quorate: bool,
        ring: RingId,
        members: &[NodeId],
        renewed: &[NodeId],
    ) {
        self.since.get_or_insert(now);
        if quorate && !self.quorate {
            self.quorate_since = now.mono;
        }
        self.quorate = quorate;
        self.ring = ring.seq;
        for node in members {
            if renewed.contains(node) || !self.members.contains(node) {
                self.last_added = now.mono;
            }
        }
        self.members = members.iter().copied().collect();
    }
}
