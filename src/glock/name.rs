//! The name of a glock: its type and number.

use std::fmt;

/// `ln_type`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum GlockType {
    /// Non-disk.
    Nondisk = 1,
    /// Inode.
    Inode = 2,
    /// Resource group.
    Rgrp = 3,
}

/// `struct lm_lockname` without the superblock.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GlockName {
    /// Type.
    pub kind: GlockType,
    /// Number.
    pub number: u64,
}

impl fmt::Display for GlockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:x}", self.kind as u8, self.number)
    }
}

impl fmt::Debug for GlockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
