#![doc = include_str!("README.md")]

mod ail;
mod changed;
mod daemon;
mod device;
mod flush;
mod in_place;
mod log;
mod running;
mod space;
mod start;
mod state;
mod types;

pub use daemon::LogDaemon;
pub use log::{Journal, Ticket};
pub(crate) use types::{Change, WorkSet, stamp};
pub use types::{CommitSeq, FlushReason, JournalConfig, JournalStats, Reservation, StatfsDelta, StopReason};

#[cfg(test)]
pub(crate) mod tests;
