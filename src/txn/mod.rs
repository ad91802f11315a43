//! Transactions: private working sets over the cache that become visible, and part of the log, all at once.
//!
//! Invariants: nothing of a transaction is seen by others before [`Transaction::commit`]; dropping one leaves no
//! trace; every edit shows a glock held EX, which its holder keeps until the commit has returned; what a transaction
//! may use of the log is reserved before its first edit, so a transaction never waits. Must not know: allocation,
//! inodes, where anything stands in the log.

mod transaction;

pub use transaction::Transaction;

pub use crate::journal::{CommitSeq, Reservation};

#[cfg(test)]
mod tests;
