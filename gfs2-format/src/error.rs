//! The three families of errors: operational (I/O, no space), unsupported, corrupt.
//!
//! A [`Corrupt`] always names what, where, found and expected; nothing in this crate logs.

use crate::addr::BlockAddr;
use std::fmt;
use std::sync::Arc;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a checked field was expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Exactly this value.
    Value(u64),
    /// A value from the first up to and including the second.
    Range(u64, u64),
    /// A rule in words.
    Rule(&'static str),
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(v) => write!(f, "{v} (0x{v:x})"),
            Self::Range(lo, hi) => write!(f, "{lo}..={hi}"),
            Self::Rule(text) => f.write_str(text),
        }
    }
}

/// A lie found on disk: which structure and field of which block, what it holds and what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corrupt {
    /// Block that holds the structure.
    pub block: BlockAddr,
    /// Structure as spelled in `gfs2_ondisk.h` without prefix: "dinode", "leaf", "rgrp".
    pub structure: &'static str,
    /// Field as spelled there: "mh_magic", "di_height".
    pub field: &'static str,
    /// What it holds.
    pub found: u64,
    /// What it should hold.
    pub expected: Expected,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "block {}: {}.{}: found {} (0x{:x}), expected {}",
            self.block, self.structure, self.field, self.found, self.found, self.expected
        )
    }
}

/// Any error of the format crate.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device failed.
    #[error("{op} of {len} bytes at byte {offset}: {source}")]
    Io {
        /// "read", "write", "flush", "discard".
        op: &'static str,
        /// Byte offset on the device.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// The system's error.
        source: Arc<std::io::Error>,
    },
    /// The bytes contradict the format.
    #[error("{0}")]
    Corrupt(Corrupt),
    /// Valid, but not something we can handle.
    #[error("unsupported {what}: found {found}, supported: {supported}")]
    Unsupported {
        /// What is not supported.
        what: &'static str,
        /// What was found.
        found: u64,
        /// What is supported.
        supported: &'static str,
    },
    /// No free block for this.
    #[error("no space left on the filesystem")]
    NoSpace,
    /// The caller asked for something that does not exist.
    #[error("no such entry")]
    NotFound,
    /// The caller asked to add what is already there.
    #[error("entry exists already")]
    Exists,
    /// A name, value or size is over its limit.
    #[error("{what} is {found}, the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// An owner of blocks above this crate refused or failed (its own error, kept for the way up).
    #[error("{0}")]
    Owner(Arc<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// A directory whose count of entries cannot grow.
    pub(crate) const TOO_MANY_ENTRIES: Self = Self::TooLarge {
        what: "entries of a directory",
        found: 1 << 32,
        limit: u32::MAX as u64,
    };
}

impl Error {
    /// A [`Corrupt`] error.
    #[must_use]
    pub fn corrupt(
        block: BlockAddr,
        structure: &'static str,
        field: &'static str,
        found: u64,
        expected: Expected,
    ) -> Self {
        Self::Corrupt(Corrupt {
            block,
            structure,
            field,
            found,
            expected,
        })
    }

    /// An [`Error::Io`].
    #[must_use]
    pub fn io(op: &'static str, offset: u64, len: u64, source: std::io::Error) -> Self {
        Self::Io {
            op,
            offset,
            len,
            source: Arc::new(source),
        }
    }
}
