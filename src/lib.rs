//! The node: whatever needs a lock, a cache, a log or a kernel.
//!
//! Layers, lowest first; a module may use those above it in this list only (held by `tests/layering.rs`):
//! `error`, `hash`, `health`, `sleep`; `glock`; `cache`, `journal`; `txn`; `rgrp`, `inode`; `dir`, `xattr`, `statfs`; `recovery`;
//! `ops`; `fuse`; `mount`.

pub mod cache;
pub mod completions;
pub mod ctl;
pub mod error;
pub mod fuse;
pub mod glock;
pub(crate) mod hash;
pub mod health;
pub(crate) mod inode;
pub mod journal;
pub mod mount;
pub mod ops;
pub mod recovery;
pub(crate) mod rgrp;
pub mod sleep;
pub(crate) mod statfs;
pub mod txn;
pub(crate) mod xattr;
