//! Behaviour chosen by mount options.

use std::time::Duration;

/// When reads move the access time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AtimeMode {
    /// `noatime`.
    Never,
    /// `relatime`: when it is not after mtime and ctime, or a day old.
    #[default]
    Relative,
    /// `strictatime`.
    Always,
}

/// Behaviour chosen by mount options. `data=` is not among them: file data always reaches the device before the commit
/// that makes it reachable, which is what `ordered` promises and `writeback` allows.
#[derive(Clone, Copy, Debug)]
pub struct FsOptions {
    /// `ro`: at first no verb changes anything, and orphans are left alone.
    pub read_only: bool,
    /// `acl`: default ACLs are inherited.
    pub acl: bool,
    /// `suiddir`.
    pub suiddir: bool,
    /// `nodiratime`.
    pub nodiratime: bool,
    /// Access time.
    pub atime: AtimeMode,
    /// `statfs_quantum=`; zero: every statfs sums up the resource groups.
    pub statfs_quantum: Duration,
    /// `statfs_percent=`: local change of free blocks, in percent of the master's, that calls for a sync at once.
    pub statfs_percent: u32,
}

impl Default for FsOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            acl: false,
            suiddir: false,
            nodiratime: false,
            atime: AtimeMode::default(),
            statfs_quantum: Duration::from_secs(30),
            statfs_percent: 0,
        }
    }
}
