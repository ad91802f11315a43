//! Results as they travel: negative errno numbers, some of them fixed by the protocol, and the DLM's own two.

use std::fmt;

/// The result field of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WireResult(pub i32);

impl WireResult {
    /// Done, granted.
    pub const OK: Self = Self(0);
    /// Unknown lock.
    pub const NOENT: Self = Self(-2);
    /// Unknown lockspace.
    pub const SRCH: Self = Self(-3);
    /// NOQUEUE, and it would have to wait.
    pub const AGAIN: Self = Self(-11);
    /// No memory.
    pub const NOMEM: Self = Self(-12);
    /// Not the master (any more).
    pub const NOTBLK: Self = Self(-15);
    /// An operation is outstanding.
    pub const BUSY: Self = Self(-16);
    /// Known already.
    pub const EXIST: Self = Self(-17);
    /// Makes no sense.
    pub const INVAL: Self = Self(-22);
    /// A conversion deadlock.
    pub const DEADLK: Self = Self(-35);
    /// Unknown resource, or (recovery) not ready: ask again.
    pub const BADR: Self = Self(-53);
    /// The lockspaces' configurations differ.
    pub const PROTO: Self = Self(-71);
    /// Not supported.
    pub const OPNOTSUPP: Self = Self(-95);
    /// Gave up.
    pub const TIMEDOUT: Self = Self(-110);
    /// Queued; a GRANT follows.
    pub const INPROGRESS: Self = Self(-115);
    /// Cancelled.
    pub const CANCEL: Self = Self(-0x10001);
    /// Unlocked.
    pub const UNLOCK: Self = Self(-0x10002);
}

impl fmt::Display for WireResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::OK => "OK",
            Self::NOENT => "-ENOENT",
            Self::SRCH => "-ESRCH",
            Self::AGAIN => "-EAGAIN",
            Self::NOMEM => "-ENOMEM",
            Self::NOTBLK => "-ENOTBLK",
            Self::BUSY => "-EBUSY",
            Self::EXIST => "-EEXIST",
            Self::INVAL => "-EINVAL",
            Self::DEADLK => "-EDEADLK",
            Self::BADR => "-EBADR",
            Self::PROTO => "-EPROTO",
            Self::OPNOTSUPP => "-EOPNOTSUPP",
            Self::TIMEDOUT => "-ETIMEDOUT",
            Self::INPROGRESS => "-EINPROGRESS",
            Self::CANCEL => "-ECANCEL",
            Self::UNLOCK => "-EUNLOCK",
            Self(other) => return write!(f, "{other}"),
        };
        f.write_str(name)
    }
}
