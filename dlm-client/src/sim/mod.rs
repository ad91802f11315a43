//! A deterministic cluster: engines, links, a membership, clients and faults, all driven by one seed.
//!
//! Time is a number; what happens next is the earliest entry of one queue. Links keep the order of what one node sends
//! to another and nothing else, or are the connections of [`crate::midcomms`], reset at any time; nodes freeze, die at any step, come back, join and leave; the membership stops all and
//! starts all as dlm_controld does, and may begin anew in the middle. [`oracle`] watches what the users see.
//!
//! Invariants: the same [`Plan`] gives the same run, step by step, as [`Outcome::hash`] tells; nothing outside the plan
//! has any influence.

mod client;
mod cluster;
mod oracle;
mod rng;
mod wires;

#[cfg(test)]
mod tests;

pub use cluster::{Outcome, Plan, run};
