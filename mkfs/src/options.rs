//! What the user wants and what the device is like.
//!
//! Invariant: values are as given; [`crate::plan`] checks every one of them before it computes with it.

use crate::error::{Error, Result};
use gfs2_format::device::BlockDevice;

/// Smallest journal in MiB.
pub const MIN_JOURNAL_MB: u32 = 8;
/// Largest journal in MiB.
pub const MAX_JOURNAL_MB: u32 = 1024;
/// Smallest target size of a resource group in MiB.
pub const MIN_RGRP_MB: u32 = 32;
/// Largest size of a resource group in MiB.
pub const MAX_RGRP_MB: u32 = 2048;
/// Target size of a resource group in MiB unless said otherwise.
pub const DEFAULT_RGRP_MB: u32 = 256;
/// Largest quota change file in MiB.
pub const MAX_QUOTA_CHANGE_MB: u32 = 64;
/// Block size in bytes unless the device suggests another.
pub(crate) const DEFAULT_BLOCK_SIZE: u32 = 4096;

/// Longest cluster name in bytes.
const MAX_CLUSTER_NAME: usize = 32;
/// Longest filesystem name in bytes.
const MAX_FS_NAME: usize = 30;

/// The locking protocol stored in the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockProto {
    /// `lock_nolock`: one node.
    Nolock,
    /// `lock_dlm`: a cluster.
    Dlm,
}

impl LockProto {
    /// As stored.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nolock => "lock_nolock",
            Self::Dlm => "lock_dlm",
        }
    }

    /// From the stored spelling.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Nolock, Self::Dlm].into_iter().find(|p| p.name() == name)
    }
}

/// Stripe unit and width of the device, overriding what it says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stripe {
    /// In bytes.
    pub unit: u64,
    /// In bytes.
    pub width: u64,
}

/// What to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Block size in bytes; `None`: 4096, or what the device suggests.
    pub block_size: Option<u32>,
    /// Size of the filesystem in blocks; `None`: the whole device.
    pub blocks: Option<u64>,
    /// How many journals.
    pub journals: u32,
    /// Size of each journal in MiB; `None`: chosen from the size of the filesystem.
    pub journal_mb: Option<u32>,
    /// Target size of resource groups in MiB.
    pub rgrp_mb: u32,
    /// Size of each quota change file in MiB.
    pub quota_change_mb: u32,
    /// Locking protocol.
    pub lock_proto: LockProto,
    /// Lock table, `clustername:fsname`; `None`: empty.
    pub lock_table: Option<String>,
    /// UUID; `None`: a random one.
    pub uuid: Option<[u8; 16]>,
    /// Filesystem format, 1801 or 1802.
    pub format: u32,
    /// Align resource groups to stripes?
    pub align: bool,
    /// Stripes to align to.
    pub stripe: Option<Stripe>,
    /// Do files made in the root directory journal their data?
    pub root_inherit_jdata: bool,
    /// Seconds since the epoch for all times of inodes; `None`: now.
    pub time: Option<u64>,
    /// Sequence number of every journal's first header, modulo the journal's blocks; `None`: random.
    pub first_sequence: Option<u64>,
}

impl Default for Options {
    /// The program's defaults. The protocol is `lock_dlm`, so that a lock table must be added.
    fn default() -> Self {
        Self {
            block_size: None,
            blocks: None,
            journals: 1,
            journal_mb: None,
            rgrp_mb: DEFAULT_RGRP_MB,
            quota_change_mb: 1,
            lock_proto: LockProto::Dlm,
            lock_table: None,
            uuid: None,
            format: 1802,
            align: true,
            stripe: None,
            root_inherit_jdata: false,
            time: None,
            first_sequence: None,
        }
    }
}

impl Options {
    /// Defaults for a single node.
    #[must_use]
    pub fn nolock() -> Self {
        Self {
            lock_proto: LockProto::Nolock,
            ..Self::default()
        }
    }

    /// Defaults for a cluster; `table` is `clustername:fsname`.
    #[must_use]
    pub fn dlm(table: &str) -> Self {
        Self {
            lock_table: Some(table.to_owned()),
            ..Self::default()
        }
    }

    /// Checks everything that can be judged without the device, in the original's order.
    ///
    /// # Errors
    /// [`Error`], naming the first value out of range.
    pub fn check(&self) -> Result<()> {
        match &self.lock_table {
            Some(table) => check_lock_table(table)?,
            None if self.lock_proto == LockProto::Dlm => return Err(Error::LockTableMissing),
            None => {}
        }
        if !(MIN_RGRP_MB..=MAX_RGRP_MB).contains(&self.rgrp_mb) {
            return Err(Error::RgrpSize { found: self.rgrp_mb });
        }
        if self.journals == 0 {
            return Err(Error::NoJournals);
        }
        if let Some(found) = self.journal_mb
            && !(MIN_JOURNAL_MB..=MAX_JOURNAL_MB).contains(&found)
        {
            return Err(Error::JournalSize { found });
        }
        if !(1..=MAX_QUOTA_CHANGE_MB).contains(&self.quota_change_mb) {
            let found = self.quota_change_mb;
            return Err(Error::QuotaChangeSize { found });
        }
        if !(gfs2_format::ondisk::FORMAT_MIN..=gfs2_format::ondisk::FORMAT_MAX).contains(&self.format) {
            return Err(Error::Format { found: self.format });
        }
        Ok(())
    }
}

/// Checks the form of a lock table: `clustername:fsname`.
///
/// # Errors
/// [`Error::LockTable`] or [`Error::LockTableEmpty`].
pub fn check_lock_table(table: &str) -> Result<()> {
    let fail = |reason: String| Err(Error::LockTable { reason });
    if table.is_empty() {
        return Err(Error::LockTableEmpty);
    }
    let legal = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | ':');
    if let Some(bad) = table.chars().find(|c| !legal(c)) {
        return fail(format!(
            "invalid character '{bad}' (letters, digits, '-' and '_' are valid)"
        ));
    }
    let Some((cluster, fs)) = table.split_once(':') else {
        return fail("missing colon: it must be of the form clustername:fsname".into());
    };
    if cluster.is_empty() {
        return fail("cluster name is missing".into());
    }
    if cluster.len() > MAX_CLUSTER_NAME {
        return fail(format!(
            "cluster name is too long (the limit is {MAX_CLUSTER_NAME} characters)"
        ));
    }
    if fs.contains(':') {
        return fail("contains more than one colon".into());
    }
    if fs.is_empty() {
        return fail("file system name is missing".into());
    }
    if fs.len() > MAX_FS_NAME {
        return fail(format!(
            "file system name is too long (the limit is {MAX_FS_NAME} characters)"
        ));
    }
    Ok(())
}

/// What a block device says of its I/O sizes, in bytes; 0 where it says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct IoLimits {
    /// Offset of the device's start from its natural alignment.
    pub alignment_offset: u64,
    /// Smallest addressable unit.
    pub logical_sector: u64,
    /// Preferred unit of I/O: a RAID's stripe unit.
    pub minimum_io: u64,
    /// Largest I/O without a penalty: a RAID's stripe width.
    pub optimal_io: u64,
    /// Smallest unit written atomically.
    pub physical_sector: u64,
}

impl IoLimits {
    /// Does the device say what its sectors are?
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.logical_sector != 0 && self.physical_sector != 0
    }
}

/// What the device is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Size in bytes.
    pub size: u64,
    /// I/O sizes; all zero for a file.
    pub limits: IoLimits,
    /// Largest legal block size in bytes: the machine's page size, because the kernel mounts no larger ones.
    pub max_block_size: u32,
}

impl Topology {
    /// A file of `size` bytes, on this machine.
    #[must_use]
    pub fn of_size(size: u64) -> Self {
        let page = u32::try_from(rustix::param::page_size()).unwrap_or(DEFAULT_BLOCK_SIZE);
        Self {
            size,
            limits: IoLimits::default(),
            max_block_size: page.min(gfs2_format::geometry::MAX_BLOCK_SIZE),
        }
    }

    /// A device, as it describes itself.
    #[must_use]
    pub fn of_device(device: &dyn BlockDevice) -> Self {
        let said = device.topology();
        let mut topology = Self::of_size(device.size());
        topology.limits = IoLimits {
            alignment_offset: said.alignment_offset.into(),
            logical_sector: said.logical_sector.max(device.sector_size()).into(),
            minimum_io: said.minimum_io.into(),
            optimal_io: said.optimal_io.into(),
            physical_sector: said.physical_sector.into(),
        };
        topology
    }
}
