//! One change of a lockspace's members, and which START belongs to it.
//!
//! A START does not name the change it is about in a way all members share; it describes it: the members and the
//! counts of those that came, went and failed. Descriptions can repeat (a node that bounces), so a sender takes back
//! (NACK) older changes that look alike, and receivers never match a START to a change older than one they matched, or
//! older than the sender's coming.

use std::collections::BTreeMap;

use super::codec::{ChangeInfo, StartFlags};
use super::daemon::Mark;
use crate::NodeId;

/// Where a change stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Waiting for the ring, the quorum and fencing.
    Conditions,
    /// Our START is sent; waiting for those of all members.
    Messages,
}

/// A member in a change.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Member {
    pub(super) added: bool,
    /// Its START has come.
    pub(super) started: bool,
    /// It comes from a partition with state of its own: its START does not count.
    pub(super) disallowed: bool,
    pub(super) flags: StartFlags,
}

/// A change.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) seq: u32,
    pub(super) stage: Stage,
    /// What the daemons' group must have told before this change can be judged.
    pub(super) mark: Mark,
    pub(super) members: BTreeMap<NodeId, Member>,
    /// Who went, and whether it failed.
    pub(super) removed: Vec<(NodeId, bool)>,
    pub(super) joined_count: u32,
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl Change {
    fn failed_count(&self) -> u32 {
        count(self.removed.iter().filter(|(_, failed)| *failed).count())
    }

    /// The description of the change.
    pub(super) fn info(&self, started_count: u32) -> ChangeInfo {
        ChangeInfo {
            started_count,
            member_count: count(self.members.len()),
            joined_count: self.joined_count,
            remove_count: count(self.removed.len()),
            failed_count: self.failed_count(),
            members: self.members.keys().copied().collect(),
        }
    }

    /// Does a description fit?
    pub(super) fn looks_like(&self, info: &ChangeInfo) -> bool {
        info.member_count == count(self.members.len())
            && info.joined_count == self.joined_count
            && info.remove_count == count(self.removed.len())
            && info.failed_count == self.failed_count()
            && info
                .members
                .iter()
                .all(|member| self.members.contains_key(member))
    }

    /// Who came and who went, in 16 bits: changes of as many members look alike without it.
    pub(super) fn digest(&self) -> u16 {
        let came = self.members.iter().filter(|(_, member)| member.added);
        let came = came.map(|(node, _)| (node.0, 1_u32));
        let went: BTreeMap<u32, u32> = self.removed.iter().map(|(node, _)| (node.0, 2)).collect();
        let mut hash = 0x811c_9dc5_u32;
        for (node, how) in came.chain(went) {
            for word in [node, how] {
                for byte in word.to_le_bytes() {
                    hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
                }
            }
        }
        let [a, b, c, d] = hash.to_le_bytes();
        u16::from_le_bytes([a ^ c, b ^ d])
    }

    pub(super) fn all_started(&self) -> bool {
        self.members.values().all(|member| member.started)
    }

    /// Members whose START has not come.
    pub(super) fn missing(&self) -> Vec<NodeId> {
        self.members
            .iter()
            .filter(|(_, member)| !member.started)
            .map(|(node, _)| *node)
            .collect()
    }
}
