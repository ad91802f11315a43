//! The name of a glock: its type and number.

use std::fmt;

/// `ln_type`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum LockType {
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
    pub ty: LockType,
    /// Number.
    pub number: u64,
}

impl GlockName {
    /// A name.
    #[must_use]
    pub const fn new(ty: LockType, number: u64) -> Self {
        Self { ty, number }
    }

    /// The inode lock of a dinode block.
    #[must_use]
    pub const fn inode(block: u64) -> Self {
        Self::new(LockType::Inode, block)
    }

    /// The lock of a resource group.
    #[must_use]
    pub const fn rgrp(block: u64) -> Self {
        Self::new(LockType::Rgrp, block)
    }
}

impl fmt::Display for GlockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:x}", self.ty as u8, self.number)
    }
}

impl fmt::Debug for GlockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
