//! Members of the lockspace and their slots.
//!
//! Slots are given by the member with the lowest node id, in the first barrier of a recovery: whoever has one keeps it,
//! the others get the lowest free ones. A slot once known never changes while its member stays.

use std::collections::BTreeSet;

use super::Engine;
use super::interface::{Level, Output, Start};
use crate::wire::{RcomSlot, SLOTS_MAX, hash};
use crate::{Event, NodeId, Slot};

/// What recovery knows of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MemberState {
    weight: u32,
    /// The slot it says it has; 0 needs one, `None` was not heard.
    pub(super) slot: Option<u16>,
    pub(super) generation: u32,
    /// The slot all know it has; 0 none yet.
    settled: u16,
}

/// Members that are gone, for each step of recovery that has not dealt with it yet.
///
/// A recovery may be stopped when others have finished theirs already. What such a one says and holds since then, if it
/// came back between two starts, is not that of its life before: what was dealt with once is not dealt with again.
#[derive(Clone, Debug, Default)]
pub(super) struct Gone {
    /// Their answers do not come.
    pub(super) awaited: BTreeSet<NodeId>,
    /// Their locks go.
    pub(super) holders: BTreeSet<NodeId>,
    /// What they mastered needs another master.
    pub(super) masters: BTreeSet<NodeId>,
    /// What they said before is void.
    pub(super) senders: BTreeSet<NodeId>,
    /// No recovery was finished since somebody went.
    unfinished: bool,
}

impl Gone {
    fn insert(&mut self, node: NodeId) {
        for step in [
            &mut self.awaited,
            &mut self.holders,
            &mut self.masters,
            &mut self.senders,
        ] {
            step.insert(node);
        }
        self.unfinished = true;
    }
}

/// A slot number no node can have.
const NO_SLOTS: u16 = u16::MAX;

impl Engine {
    /// Takes over the new members. True: somebody is gone, since this or an earlier start that was not finished.
    pub(super) fn change_members(&mut self, start: &Start) -> bool {
        for member in &start.members {
            if member.renewed && member.node != self.config.node {
                self.remove_member(member.node, start);
            }
        }
        let stays = |node: &NodeId| start.members.iter().any(|member| member.node == *node);
        let left: Vec<NodeId> = self.members.keys().filter(|node| !stays(node)).copied().collect();
        for node in left {
            self.remove_member(node, start);
        }
        for member in &start.members {
            if let Some(known) = self.members.get_mut(&member.node) {
                known.weight = member.weight;
                continue;
            }
            let state = MemberState {
                weight: member.weight,
                ..MemberState::default()
            };
            self.members.insert(member.node, state);
            if member.node != self.config.node {
                self.emit(Output::AddMember(member.node));
            }
            self.log(Level::Info, || format!("add member {}", member.node.0));
        }
        self.low = self.members.keys().next().copied().unwrap_or(self.config.node);
        let weighted: Vec<hash::Weighted> = self
            .members
            .iter()
            .map(|(&node, state)| hash::Weighted {
                node,
                weight: state.weight,
            })
            .collect();
        self.table = hash::directory_nodes(&weighted);
        self.gone.unfinished
    }

    fn remove_member(&mut self, node: NodeId, start: &Start) {
        let Some(state) = self.members.remove(&node) else {
            return;
        };
        self.gone.insert(node);
        self.emit(Output::RemoveMember(node));
        self.log(Level::Info, || format!("remove member {}", node.0));
        if start.failed.contains(&node) {
            let failed = Slot {
                node,
                slot: state.settled,
            };
            self.emit(Output::Event(Event::RecoverSlot { failed }));
        }
    }

    /// The lowest member gives out slots, once it has heard all.
    pub(super) fn assign_slots(&mut self) {
        if let Some(ours) = self.members.get_mut(&self.config.node) {
            ours.slot = Some(self.our_slot);
            ours.generation = self.generation;
        }
        let mut slots: Vec<RcomSlot> = Vec::new();
        for (&node, state) in &self.members {
            let slot = state.slot.unwrap_or(NO_SLOTS);
            let changed = state.settled != 0 && slot != 0 && state.settled != slot;
            if slot == NO_SLOTS || changed || slots.iter().any(|other| other.slot == slot) {
                self.log(Level::Error, || {
                    format!("slot {slot} of node {} cannot be: no slots are given out", node.0)
                });
                return;
            }
            if slot != 0 {
                slots.push(RcomSlot { node, slot });
            }
        }
        let wanting: Vec<NodeId> = self
            .members
            .iter()
            .filter(|(_, state)| state.slot == Some(0))
            .map(|(&node, _)| node)
            .collect();
        for node in wanting {
            let free = (1..NO_SLOTS).find(|slot| slots.iter().all(|other| other.slot != *slot));
            slots.push(RcomSlot {
                node,
                slot: free.unwrap_or(NO_SLOTS),
            });
        }
        if slots.len() > SLOTS_MAX {
            self.log(Level::Error, || {
                format!("{} members, more than {SLOTS_MAX} slots", slots.len())
            });
            return;
        }
        let highest = self.members.values().map(|state| state.generation).max();
        self.generation = highest.unwrap_or(0).wrapping_add(1);
        slots.sort_by_key(|slot| slot.slot);
        self.settle_slots(&slots);
        self.slots = slots;
    }

    /// The other members take over what the lowest says.
    pub(super) fn copy_slots(&mut self, slots: &[RcomSlot], generation: u32) {
        if generation <= self.generation {
            let old = self.generation;
            self.log(Level::Error, || {
                format!("generation {generation} of the slots is not after {old}")
            });
        }
        self.generation = generation;
        if slots.is_empty() {
            self.log(Level::Error, || {
                "the lowest node has given out no slots".to_owned()
            });
            return;
        }
        self.settle_slots(slots);
    }

    fn settle_slots(&mut self, slots: &[RcomSlot]) {
        let us = self.config.node;
        for slot in slots {
            if let Some(state) = self.members.get_mut(&slot.node) {
                state.settled = slot.slot;
            }
        }
        let ours = slots
            .iter()
            .find(|slot| slot.node == us)
            .map_or(0, |slot| slot.slot);
        if ours == 0 || (self.our_slot != 0 && self.our_slot != ours) {
            let old = self.our_slot;
            self.fail(format!("our slot was {old}, and now the lowest node says {ours}"));
            return;
        }
        self.our_slot = ours;
        let generation = self.generation;
        self.log(Level::Info, || {
            let list: Vec<String> = slots
                .iter()
                .map(|slot| format!(" {}:{}", slot.slot, slot.node.0))
                .collect();
            format!("generation {generation} slots {}{}", slots.len(), list.concat())
        });
    }

    /// What the user is told when recovery is done.
    pub(super) fn recover_done_event(&self) -> Event {
        let slots = self
            .members
            .iter()
            .map(|(&node, state)| Slot {
                node,
                slot: state.settled,
            })
            .collect();
        Event::RecoverDone {
            slots,
            our_slot: self.our_slot,
            generation: self.generation,
        }
    }
}
