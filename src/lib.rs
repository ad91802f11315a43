//! The node: whatever needs a lock, a cache, a log or a kernel.
//!
//! Layers, lowest first; a module may use those above it in this list only (held by `tests/layering.rs`):
//! `error`; `glock`; `cache`, `journal`; `txn`; `rgrp`, `inode`; `dir`, `xattr`, `statfs`; `ops`; `mount`; `fuse`.

pub mod completions;
pub mod error;
pub mod mount;
pub mod ops;
