//! Inodes: which this node knows, their locks, their data, their end.
//!
//! Invariants: nothing of an inode is read without its glock, nothing changed without EX; the truth is the dinode block
//! in the cache, there is no copy of it that could differ. Must not know: names, several inodes at once.

mod ahead;
mod engine;
mod evict;
mod iopen;
mod memory;
mod ops;
mod options;
mod read;
mod revive;
mod sweep;
mod table;
mod time;
mod truncate;
mod write;

pub(crate) use ahead::ReadAhead;
pub(crate) use engine::{Engine, Locked, Work, dinode_of};
pub(crate) use evict::{reclaim_orphans, run_evictions};
pub(crate) use iopen::IopenOps;
pub use memory::{MemoryUse, Prune, Relief, Share};
pub(crate) use ops::InodeOps;
pub use options::{AtimeMode, FsOptions};
pub(crate) use read::read;
pub(crate) use revive::Reviver;
pub(crate) use sweep::sweep;
pub(crate) use table::{Inode, InodeRef, InodeTable, NewInode};
pub(crate) use time::now;
pub(crate) use truncate::{MAX_FILE_SIZE, set_size};
pub(crate) use write::{WriteOptions, killed, write};
