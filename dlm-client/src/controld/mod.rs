//! The lock daemon's part of a cluster node: what `dlm_controld` does, so that no `dlm_controld` is needed.
//!
//! Pure machines, but for the last: events in, [`Action`]s out; no clock, socket or thread inside.
//!
//! - [`codec`]: the messages.
//! - `cluster`: quorum, and when nodes came.
//! - `daemon`: the group of the daemons: which protocol is spoken, who is to be fenced and by whom, merged partitions.
//! - `lockspace`: one lockspace's changes of membership, from the news to the start of the lock engine.
//! - `safety`: are we still part of the cluster that the others see?
//! - [`machine`]: all of them together.
//! - [`driver`]: gives the machine a clock, a membership and agents.
//!
//! What they must hold: the lock engine is stopped with the first news of a change and started only when all members
//! have said that they are ready for the same change; nothing starts while a node that failed may still write.

mod action;
mod change;
mod cluster;
pub mod codec;
mod daemon;
pub mod driver;
mod fencing;
pub(crate) mod hands;
mod lockspace;
pub mod machine;
mod safety;
mod status;

pub use action::{Action, Fatal, Gone, Job, Level, Now, Order, Start, StartMember};
pub use machine::{Controld, Input, JoinError};
pub use status::{ChangeStatus, FenceStatus, Fenced, LockspaceStatus, NodeStatus, Status, Wait};
