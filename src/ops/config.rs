//! What a filesystem is started with.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use gfs2_format::device::BlockDevice;

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

/// Mount option `data=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DataMode {
    /// File data is on disk before the commit that makes it reachable.
    #[default]
    Ordered,
    /// No such promise.
    Writeback,
}

/// Behaviour chosen by mount options.
#[derive(Clone, Copy, Debug)]
pub struct FsOptions {
    /// `ro`: no verb changes anything; orphans are left alone.
    pub read_only: bool,
    /// `spectator`: read-only and without a journal of our own.
    pub spectator: bool,
    /// `acl`: default ACLs are inherited.
    pub acl: bool,
    /// `suiddir`.
    pub suiddir: bool,
    /// `nodiratime`.
    pub nodiratime: bool,
    /// Access time.
    pub atime: AtimeMode,
    /// `data=`.
    pub data: DataMode,
    /// `statfs_quantum=`; zero: every statfs sums up the resource groups.
    pub statfs_quantum: Duration,
    /// `statfs_percent=`: local change of free blocks, in percent of the master's, that calls for a sync at once.
    pub statfs_percent: u32,
}

impl Default for FsOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            spectator: false,
            acl: true,
            suiddir: false,
            nodiratime: false,
            atime: AtimeMode::default(),
            data: DataMode::default(),
            statfs_quantum: Duration::from_secs(30),
            statfs_percent: 0,
        }
    }
}

/// Everything [`super::Fs::new`] needs.
#[derive(Clone)]
pub struct FsConfig {
    /// The volume's device: file data goes straight to it.
    pub device: Arc<dyn BlockDevice>,
    /// Options.
    pub options: FsOptions,
}

impl fmt::Debug for FsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FsConfig")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
