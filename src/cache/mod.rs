//! The node's copy of metadata (and journaled file data) blocks, each owned by the glock it was read under.
//!
//! Invariants: a block is cached at most once, under one owner; a block that is *pinned* (newer than its place on
//! the device: in the running commit, in a commit being written, or committed and not yet in place) is never evicted
//! nor dropped; a snapshot handed out never changes. Must not know: transactions, log positions, lock modes.

mod buffers;
mod data;
mod proof;
mod shard;

pub(crate) use buffers::lock;
pub use buffers::{BufferCache, CacheStats};
pub(crate) use data::{Batch, RUN_BYTES};
pub use data::{DIRTY_AGE, DIRTY_BYTES, DataCache, DataFlusher, DataStats};
pub use proof::LockProof;

#[cfg(test)]
mod tests;
