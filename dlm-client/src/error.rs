//! What a call of the lock service can refuse.

use crate::{LockId, Mode};

/// A call was not accepted (or, in [`crate::Event::Fatal`], the lockspace is lost).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// A resource or lockspace name is empty or longer than 64 bytes.
    #[error("name of {len} bytes: 1 to 64 are allowed")]
    NameLength {
        /// Its length.
        len: usize,
    },
    /// The lock has an operation under way.
    #[error("lock {:#x} is busy", .0.0)]
    Busy(LockId),
    /// There is no such lock of ours.
    #[error("no lock {:#x}", .0.0)]
    NoSuchLock(LockId),
    /// Nothing is outstanding on the lock.
    #[error("lock {:#x} has nothing to cancel", .0.0)]
    NothingToCancel(LockId),
    /// The flags contradict each other or the operation.
    #[error("flags {flags:#x} are not valid for {operation} to {mode}")]
    InvalidFlags {
        /// The operation.
        operation: &'static str,
        /// The mode asked for.
        mode: Mode,
        /// The flags given.
        flags: u32,
    },
    /// The lockspace was left.
    #[error("the lockspace was left")]
    Left,
    /// The slots of the members cannot be told, and the join asked for them.
    #[error("the slots of the members, which journals go by, are not known: {0}")]
    NoSlots(String),
    /// All 2^32 lock ids are in use.
    #[error("out of lock ids")]
    OutOfIds,
    /// The backend has no POSIX locks.
    #[error("this lock service has no POSIX locks")]
    NoPlocks,
    /// A range that ends before it starts, or beyond the end of any file.
    #[error("POSIX lock range {start}-{end}: it must not end before it starts, nor beyond {max}", max = crate::plock::OFFSET_MAX)]
    PlockRange {
        /// First byte.
        start: u64,
        /// Last byte.
        end: u64,
    },
    /// No POSIX lock waits under this token.
    #[error("no POSIX lock waits under token {0:#x}")]
    NoSuchPlock(u64),
    /// The lock service is gone.
    #[error("lock service: {0}")]
    Service(String),
}
