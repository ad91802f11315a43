//! The POSIX verbs, on types that know no transport.
//!
//! [`Fs`] is the face: every method takes `&self`, may be called from any thread, and blocks. Inodes are named by the
//! address of their dinode ([`BlockAddr`]); a transport maps its own root number to [`Fs::root`].
//!
//! Invariants: an inode given out in an [`Entry`] stays known until it was forgotten as often as it was given out;
//! whoever calls with an address that is not known gets `ESTALE`; an unlinked inode is deallocated when it is neither
//! known nor open, by whichever call makes that true.

mod config;
mod fs;
pub mod types;

pub use config::{AtimeMode, DataMode, FsConfig, FsOptions};
pub use fs::{Fs, Handle, OpenFlags};
pub use types::Entry;
