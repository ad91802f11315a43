//! The times of inodes and leaves: seconds and nanoseconds.
//!
//! Invariant: `nsec` is below one second in everything this crate writes; what is read is taken as it is.

use crate::ondisk::{Dinode, Leaf};

/// A moment: seconds since 1970 (negative before), and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 00:00 UTC.
    pub sec: i64,
    /// Nanoseconds, below 1e9.
    pub nsec: u32,
}

impl Timestamp {
    /// Puts together what two fields of a structure hold.
    #[must_use]
    pub const fn from_disk(sec: u64, nsec: u32) -> Self {
        Self {
            sec: sec.cast_signed(),
            nsec,
        }
    }

    /// The seconds as stored: two's complement.
    #[must_use]
    pub const fn disk_sec(self) -> u64 {
        self.sec.cast_unsigned()
    }
}

impl Dinode {
    /// `di_mtime`.
    #[must_use]
    pub fn mtime(&self) -> Timestamp {
        Timestamp::from_disk(self.mtime.get(), self.mtime_nsec.get())
    }

    /// Stores `di_mtime`.
    pub fn set_mtime(&mut self, time: Timestamp) {
        self.mtime = time.disk_sec().into();
        self.mtime_nsec = time.nsec.into();
    }

    /// `di_ctime`.
    #[must_use]
    pub fn ctime(&self) -> Timestamp {
        Timestamp::from_disk(self.ctime.get(), self.ctime_nsec.get())
    }

    /// Stores `di_ctime`.
    pub fn set_ctime(&mut self, time: Timestamp) {
        self.ctime = time.disk_sec().into();
        self.ctime_nsec = time.nsec.into();
    }

    /// `di_atime`.
    #[must_use]
    pub fn atime(&self) -> Timestamp {
        Timestamp::from_disk(self.atime.get(), self.atime_nsec.get())
    }

    /// Stores `di_atime`.
    pub fn set_atime(&mut self, time: Timestamp) {
        self.atime = time.disk_sec().into();
        self.atime_nsec = time.nsec.into();
    }
}

impl Leaf {
    /// Stores the time of the last insert or delete.
    pub fn set_time(&mut self, time: Timestamp) {
        self.sec = time.disk_sec().into();
        self.nsec = time.nsec.into();
    }
}
