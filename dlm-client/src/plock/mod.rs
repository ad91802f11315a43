//! POSIX locks on byte ranges of files: the table all members keep alike, and how it is kept alike.
//!
//! The table ([`table`]) is a pure function of the order of operations. Members that apply the same operations in the
//! same order have the same table, so what is replicated is the operations.

pub(crate) mod replica;
pub mod table;

use crate::{LockError, NodeId};

/// A range of a file, locked or to be locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Plock {
    /// The file: for GFS2 the block address of its inode.
    pub number: u64,
    /// First byte.
    pub start: u64,
    /// Last byte; `i64::MAX` is the end of any file.
    pub end: u64,
    /// Whoever shares its locks: locks of one owner never exclude each other, and merge.
    pub owner: u64,
    /// Process to show to a person or in `F_GETLK`.
    pub pid: u32,
    /// A write lock?
    pub exclusive: bool,
}

/// What to do with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlockOp {
    /// Lock it, or turn what is locked of it into this kind (`F_SETLK`, with `wait` `F_SETLKW`).
    Lock {
        /// Wait for those in the way.
        wait: bool,
    },
    /// Unlock it (`F_UNLCK`). With `close`, waiting locks of the owner on the file are taken back, too.
    Unlock {
        /// The owner closes the file.
        close: bool,
    },
    /// Who would be in the way (`F_GETLK`)?
    Test,
}

/// How an operation on POSIX locks ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlockStatus {
    /// Locked.
    Granted,
    /// Unlocked, or was not locked.
    Unlocked,
    /// Somebody is in the way, and waiting was not asked for.
    Again,
    /// A test: nobody is in the way.
    Free,
    /// A test: this lock is in the way.
    Held {
        /// Its node.
        node: NodeId,
        /// The lock.
        lock: Plock,
    },
    /// The waiting lock was taken back.
    Canceled,
    /// It failed, with a positive errno.
    Err(i32),
}

/// The end of an operation on POSIX locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlockDone {
    /// The token given with the operation.
    pub token: u64,
    /// How it ended.
    pub status: PlockStatus,
}

/// The last byte a file can have: no lock of a kernel or of ours ends beyond.
pub const OFFSET_MAX: u64 = 0x7fff_ffff_ffff_ffff;

impl Plock {
    /// Is the range one a file can have?
    ///
    /// # Errors
    /// [`LockError::PlockRange`].
    pub const fn check(&self) -> Result<(), LockError> {
        if self.start <= self.end && self.end <= OFFSET_MAX {
            Ok(())
        } else {
            Err(LockError::PlockRange {
                start: self.start,
                end: self.end,
            })
        }
    }
}
