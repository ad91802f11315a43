//! The node's log: reservation of its space, commits, their way into place, the tail.
//!
//! Invariants are stated in `README.md` beside this file. Must not know: who allocates, inodes, lock states.

mod journal;
mod types;

pub use journal::{Journal, Ticket};
pub(crate) use types::{Change, WorkSet};
pub use types::{CommitSeq, FlushReason, JournalConfig, JournalStats, Reservation, StatfsDelta, StopReason};
