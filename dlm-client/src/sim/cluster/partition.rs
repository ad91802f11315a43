//! Partitions: the members fall into two sides, and nothing passes between them for a while.
//!
//! Either the sides find together before anybody noticed, and what was under way arrives late, in order; or one side is
//! given up: its nodes, some of them stopped because they see no quorum, go on by themselves until they are fenced, and
//! only then do the others recover.

use std::collections::BTreeSet;

use super::{Cluster, Happening, Life};
use crate::NodeId;
use crate::engine::Engine;

/// A partition that has not ended.
#[derive(Debug)]
pub(super) struct Partition {
    /// One of the sides; the one that is given up, if one is.
    side: BTreeSet<NodeId>,
    heals: u64,
}

/// Longest time until the sides are together again.
const HEALS_MAX: u64 = 2_000_000;
/// Longest time until somebody notices.
const NOTICED_MAX: u64 = 3_000_000;

impl Cluster {
    /// Until when nothing passes from one to the other.
    pub(super) fn cut_until(&self, one: NodeId, two: NodeId) -> Option<u64> {
        let partition = self.partition.as_ref()?;
        let across = partition.side.contains(&one) != partition.side.contains(&two);
        across.then_some(partition.heals)
    }

    /// A side is chosen, and how it goes on.
    pub(super) fn split(&mut self) {
        let alive: Vec<NodeId> = self.members.keys().copied().collect();
        let mut side: BTreeSet<NodeId> = alive.iter().copied().filter(|_| self.rng.one_in(2)).collect();
        if side.len() == alive.len() {
            side.pop_first();
        } else if side.is_empty() {
            side.extend(alive.last());
        }
        let heals = self
            .now
            .saturating_add(1)
            .saturating_add(self.rng.below(HEALS_MAX));
        let noticed = self
            .now
            .saturating_add(1)
            .saturating_add(self.rng.below(NOTICED_MAX));
        self.note(format!(
            "{} cut {side:?} till {heals}, noticed {noticed}",
            self.now
        ));
        self.partitions = self.partitions.saturating_add(1);
        let given_up = noticed < heals;
        if given_up {
            for node in side.clone() {
                if self.rng.one_in(2) {
                    let time = self.rng.below(noticed.saturating_sub(self.now));
                    let at = self.now.saturating_add(time);
                    self.at(at, Happening::NoQuorum(node));
                }
            }
        }
        self.partition = Some(Partition { side, heals });
        self.hold_back();
        self.at(heals.min(noticed), Happening::Together { given_up });
    }

    /// What was under way between the sides waits for the end; its order stays.
    fn hold_back(&mut self) {
        let ends = |happening: &Happening| match happening {
            Happening::Deliver { from, to, .. } | Happening::Bytes { from, to, .. } => Some((*from, *to)),
            _ => None,
        };
        let across: Vec<(u64, u64)> = self
            .queue
            .iter()
            .filter(|(_, happening)| {
                ends(happening).is_some_and(|(from, to)| self.cut_until(from.0, to.0).is_some())
            })
            .map(|(key, _)| *key)
            .collect();
        let mut pairs: BTreeSet<(Life, Life)> = BTreeSet::new();
        for key in across {
            let Some(happening) = self.queue.remove(&key) else {
                continue;
            };
            if let Some((from, to)) = ends(&happening) {
                pairs.insert((from.min(to), from.max(to)));
                let at = self.arrival(from, to);
                self.at(at, happening);
            }
        }
        if !self.plan.resets {
            return;
        }
        // Some connections do not survive it.
        for (one, two) in pairs {
            if self.rng.one_in(2)
                && let Some(heals) = self.cut_until(one.0, two.0)
            {
                self.resets = self.resets.saturating_add(1);
                self.wires.cut(one, two);
                let at = heals.saturating_add(1).saturating_add(self.rng.below(200_000));
                self.at(at, Happening::Mend(one, two));
            }
        }
    }

    /// A node of the side that is given up stops by itself.
    pub(super) fn no_quorum(&mut self, node: NodeId) {
        let cut_off = self.partition.as_ref().is_some_and(|p| p.side.contains(&node));
        if cut_off && self.members.contains_key(&node) {
            self.note(format!("{} no quorum {}", self.now, node.0));
            self.with(node, Engine::stop);
        }
    }

    /// The end: of the partition, or of one side.
    pub(super) fn together(&mut self, given_up: bool) {
        let Some(partition) = self.partition.take() else {
            return;
        };
        self.note(format!("{} together, given up {given_up}", self.now));
        if given_up {
            for node in partition.side {
                self.die(node, false);
            }
            self.change();
        }
    }
}
