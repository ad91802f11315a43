//! The driver's one error type, and the errno each of its cases becomes.
//!
//! Invariant: [`FsError::errno`] is exhaustive; nothing else in the driver picks an errno for a format error.

use std::fmt;
use std::sync::Arc;

/// Result of the driver.
pub type FsResult<T> = Result<T, FsError>;

/// A POSIX error number (positive, as in `errno.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident),* $(,)?) => {
        impl Errno {
            $(
                #[doc = concat!("`", stringify!($name), "`")]
                pub const $name: Self = Self(libc::$name);
            )*

            /// The symbol of the number, for logs.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self.0 {
                    $(libc::$name => stringify!($name),)*
                    _ => "errno",
                }
            }
        }
    };
}

errnos!(
    EPERM,
    ENOENT,
    EINTR,
    EIO,
    ENXIO,
    EBADF,
    EAGAIN,
    ENOMEM,
    EACCES,
    EBUSY,
    EEXIST,
    EXDEV,
    ENODEV,
    ENOTDIR,
    EISDIR,
    EINVAL,
    ENOTTY,
    EFBIG,
    ENOSPC,
    EROFS,
    EMLINK,
    ERANGE,
    ENAMETOOLONG,
    ENOTEMPTY,
    ENODATA,
    EOPNOTSUPP,
    EDQUOT,
    ESTALE,
    E2BIG,
    EUSERS,
    ENOSYS,
    ETIMEDOUT,
    ELOOP
);

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

/// Any failure of an operation of the driver.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FsError {
    /// What the caller asked for is refused: the POSIX answer.
    #[error("{}", .0.name())]
    Posix(Errno),
    /// The device or the bytes on it.
    #[error("{0}")]
    Format(gfs2_format::Error),
    /// The filesystem has withdrawn after an earlier error.
    #[error("the filesystem has withdrawn: {0}")]
    Withdrawn(Arc<str>),
    /// A lock service error.
    #[error("lock {name}: {what}")]
    Lock {
        /// The glock, as the kernel's dumps spell it.
        name: String,
        /// What went wrong.
        what: String,
    },
    /// Our own state contradicts itself, or the disk contradicts our state: a consistency error (the kernel's word).
    #[error("consistency error: {0}")]
    Inconsistent(String),
}

impl FsError {
    /// The number an application sees.
    #[must_use]
    pub fn errno(&self) -> Errno {
        use gfs2_format::Error as F;
        match self {
            Self::Posix(errno) => *errno,
            Self::Withdrawn(_) | Self::Lock { .. } | Self::Inconsistent(_) => Errno::EIO,
            Self::Format(format) => match format {
                F::NoSpace => Errno::ENOSPC,
                F::NotFound => Errno::ENOENT,
                F::Exists => Errno::EEXIST,
                F::TooLarge { .. } => Errno::ERANGE,
                F::Unsupported { .. } => Errno::EINVAL,
                // Io, Corrupt and whatever the format crate adds: the bytes could not be had.
                _ => Errno::EIO,
            },
        }
    }

    /// Must the node stop writing because of this? True for everything that says the disk or our state is wrong.
    #[must_use]
    pub fn is_consistency(&self) -> bool {
        matches!(
            self,
            Self::Inconsistent(_) | Self::Format(gfs2_format::Error::Corrupt(_))
        )
    }
}

impl From<Errno> for FsError {
    fn from(errno: Errno) -> Self {
        Self::Posix(errno)
    }
}

/// A driver error that travelled through a format algorithm (as [`gfs2_format::Error::Owner`]) comes out as itself.
impl From<gfs2_format::Error> for FsError {
    fn from(error: gfs2_format::Error) -> Self {
        if let gfs2_format::Error::Owner(inner) = &error
            && let Some(own) = inner.downcast_ref::<Self>()
        {
            return own.clone();
        }
        Self::Format(error)
    }
}

/// The way down: an owner of blocks fails inside a format algorithm.
impl From<FsError> for gfs2_format::Error {
    fn from(error: FsError) -> Self {
        match error {
            FsError::Format(inner) => inner,
            other => Self::Owner(Arc::new(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_error_survives_the_way_through_the_format_crate() {
        let down: gfs2_format::Error = FsError::from(Errno::EDQUOT).into();
        assert_eq!(FsError::from(down).errno(), Errno::EDQUOT);
        let down: gfs2_format::Error = FsError::Format(gfs2_format::Error::NoSpace).into();
        assert_eq!(FsError::from(down).errno(), Errno::ENOSPC);
    }
}
