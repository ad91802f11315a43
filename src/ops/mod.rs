//! The POSIX verbs, on types that know no transport.
//!
//! [`Fs`] is the face: every method takes `&self`, may be called from any thread, and blocks. Inodes are named by the
//! address of their dinode; a transport maps its own root number to [`Fs::root`].
//!
//! Invariants: an inode given out in an [`Entry`] stays known until it was forgotten as often as it was given out;
//! whoever calls with an address that is not known gets `ESTALE`; an unlinked inode is deallocated when it is neither
//! known nor open, by whichever call makes that true. Several inodes are locked at once only here, parents before
//! children, unordered ones together.

mod attr;
mod config;
mod create;
mod flags;
mod fs;
mod handle;
mod io;
mod names;
mod readdir;
mod remount;
mod rename;
pub mod types;
mod xattrs;

pub use crate::inode::{AtimeMode, FsOptions, MemoryUse, Prune, Relief, Share};
pub use config::FsConfig;
pub use flags::FileFlags;
pub use fs::Fs;
pub use handle::{Dir, Handle, OpenFlags};
pub use types::Entry;

#[cfg(test)]
mod tests;
