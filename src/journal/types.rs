//! The plain types of the log: what a caller asks for and what he is told.

use crate::glock::GlockName;
use crate::hash::{QuickMap, QuickSet};
use gfs2_format::log::{JournalMap, LocalStatfs};
use gfs2_format::ondisk::{LogFlags, MAGIC, MetaHeader, view_mut};
use gfs2_format::{Block, BlockAddr, Extent, Jid};
use std::fmt;
use std::time::Duration;

/// Which flush a commit belongs to. A commit is durable when [`super::Journal::durable_seq`] has reached its number;
/// commits of one number become durable together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CommitSeq(pub(super) u64);

impl CommitSeq {
    /// Before any commit: always durable.
    pub const NONE: Self = Self(0);

    /// The bare number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for CommitSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// How much of the log a transaction may use, at most. Unit: blocks; descriptors, headers and the node's
/// statfs_change block are added by the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Reservation {
    /// Different blocks edited or created.
    pub blocks: u64,
    /// Different blocks revoked.
    pub revokes: u64,
}

impl Reservation {
    /// Blocks and no revokes.
    #[must_use]
    pub const fn blocks(blocks: u64) -> Self {
        Self { blocks, revokes: 0 }
    }

    /// The same with so many revokes.
    #[must_use]
    pub const fn with_revokes(self, revokes: u64) -> Self {
        Self { revokes, ..self }
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            blocks: self.blocks.saturating_add(other.blocks),
            revokes: self.revokes.saturating_add(other.revokes),
        }
    }
}

/// Changes of the filesystem's totals, in blocks and dinodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct StatfsDelta {
    /// Blocks there are.
    pub total: i64,
    /// Blocks that are free.
    pub free: i64,
    /// Dinodes.
    pub dinodes: i64,
}

impl StatfsDelta {
    /// Sum; wraps like the two's complement numbers on disk.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            total: self.total.wrapping_add(other.total),
            free: self.free.wrapping_add(other.free),
            dinodes: self.dinodes.wrapping_add(other.dinodes),
        }
    }

    /// Difference.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self {
            total: self.total.wrapping_sub(other.total),
            free: self.free.wrapping_sub(other.free),
            dinodes: self.dinodes.wrapping_sub(other.dinodes),
        }
    }

    /// Nothing changed?
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.total == 0 && self.free == 0 && self.dinodes == 0
    }
}

impl From<StatfsDelta> for LocalStatfs {
    fn from(delta: StatfsDelta) -> Self {
        Self {
            total: delta.total,
            free: delta.free,
            dinodes: delta.dinodes,
        }
    }
}

impl From<LocalStatfs> for StatfsDelta {
    fn from(local: LocalStatfs) -> Self {
        Self {
            total: local.total,
            free: local.free,
            dinodes: local.dinodes,
        }
    }
}

/// Who wants a flush; goes into the header's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FlushReason {
    /// fsync, O_SYNC: write_inode.
    Fsync,
    /// sync, syncfs.
    SyncFs,
    /// An inode's glock is given up.
    InodeSync,
    /// A resource group's glock is given up.
    RgrpSync,
    /// Quota sync.
    QuotaSync,
    /// A transaction needs log space.
    Reserve,
    /// A transaction ended on a mount with `sync`.
    TransactionEnd,
    /// The log daemon: commit interval, or much pinned.
    Logd,
    /// The log daemon, or a glock: blocks went into place, the tail moves.
    Ail,
    /// The mount becomes read-only.
    MakeReadOnly,
}

impl FlushReason {
    pub(super) fn flags(self) -> LogFlags {
        let caller = match self {
            Self::Fsync => LogFlags::LFC_WRITE_INODE,
            Self::SyncFs => LogFlags::LFC_SYNC_FS,
            Self::InodeSync => LogFlags::LFC_INODE_GO_SYNC,
            Self::RgrpSync => LogFlags::LFC_RGRP_GO_SYNC,
            Self::QuotaSync => LogFlags::LFC_DO_SYNC,
            Self::Reserve => LogFlags::LFC_RESERVE,
            Self::TransactionEnd => LogFlags::LFC_TRANS_END,
            Self::Logd => LogFlags::LFC_LOGD_JFLUSH_REQD,
            Self::Ail => LogFlags::LFC_AIL_FLUSH,
            Self::MakeReadOnly => LogFlags::LFC_MAKE_FS_RO,
        };
        caller | LogFlags::FLUSH_NORMAL
    }
}

/// How a journal is left clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Unmount, or remount read-only.
    Shutdown,
    /// Freeze: [`super::Journal::start`] thaws.
    Freeze,
}

impl StopReason {
    pub(super) fn flags(self) -> LogFlags {
        match self {
            Self::Shutdown => LogFlags::FLUSH_SHUTDOWN,
            Self::Freeze => LogFlags::FLUSH_FREEZE,
        }
    }
}

/// What does not change while the filesystem is mounted.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Number of our journal.
    pub jid: Jid,
    /// Its dinode.
    pub dinode: BlockAddr,
    /// Where its blocks lie.
    pub map: JournalMap,
    /// The node's statfs_change dinode, whose glock the mount holds EX as long as the journal is live.
    pub statfs_change: BlockAddr,
    /// The glock of that dinode.
    pub statfs_glock: GlockName,
    /// The node's quota_change dinode.
    pub quota_change: BlockAddr,
    /// `commit=`: age at which a commit is written at the latest.
    pub commit_interval: Duration,
    /// Can other nodes change blocks once we have given up their glock? Then no copy of them may be left in the log.
    pub shared: bool,
    /// `barrier`: flush the device around log headers.
    pub barriers: bool,
}

/// Figures of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct JournalStats {
    /// Journal blocks between tail and head.
    pub used: u32,
    /// Journal blocks reserved by open transactions and for the running commit.
    pub reserved: u64,
    /// Blocks in the running commit.
    pub running: usize,
    /// Committed blocks not yet in place.
    pub ail: usize,
    /// Log headers written.
    pub headers: u64,
    /// Journal blocks written, headers included.
    pub log_blocks: u64,
    /// Blocks written in place.
    pub in_place_blocks: u64,
}

pub(crate) type CommitHook = Box<dyn FnOnce(CommitSeq) + Send>;

/// New contents of one block.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) owner: GlockName,
    pub(crate) block: Block,
    /// Journaled file data, not metadata.
    pub(crate) data: bool,
    /// The change whose contents were edited; `None`: created.
    pub(crate) version: Option<u64>,
    /// Freed by this transaction before it was created again: whose it was does not matter any more.
    pub(crate) reborn: bool,
}

/// All that a transaction did.
#[derive(Default)]
pub(crate) struct WorkSet {
    pub(crate) blocks: QuickMap<BlockAddr, Change>,
    /// Disjoint from `blocks`.
    pub(crate) freed: QuickSet<BlockAddr>,
    /// New contents of blocks of file data, by whose they are: on the device before the commit is durable.
    pub(crate) data: Vec<(GlockName, BlockAddr, Block)>,
    /// Blocks of file data that were freed, by whose they were.
    pub(crate) freed_data: Vec<(GlockName, Extent)>,
    /// Owners whose dirty file data must be on the device before the commit is durable, beside those of `data`.
    pub(crate) ordered: Vec<GlockName>,
    pub(crate) statfs: StatfsDelta,
    /// Part of the local statfs that this transaction moves to the master.
    pub(crate) taken: StatfsDelta,
    pub(crate) hooks: Vec<CommitHook>,
}

impl WorkSet {
    pub(crate) fn is_untouched(&self) -> bool {
        self.blocks.is_empty()
            && self.freed.is_empty()
            && self.data.is_empty()
            && self.freed_data.is_empty()
            && self.statfs.is_zero()
            && self.taken.is_zero()
    }
}

impl fmt::Debug for WorkSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkSet")
            .field("blocks", &self.blocks.keys())
            .field("freed", &self.freed)
            .field("data", &self.data.len())
            .field("freed_data", &self.freed_data)
            .field("statfs", &self.statfs)
            .field("hooks", &self.hooks.len())
            .finish_non_exhaustive()
    }
}

/// Stamps our journal's number, and zeroes what the kernel does, into a block that has a meta header.
pub(crate) fn stamp(bytes: &mut [u8], jid: Jid) {
    if let Ok(header) = view_mut::<MetaHeader>(bytes, 0, BlockAddr::default())
        && header.magic.get() == MAGIC
    {
        header.pad0 = 0.into();
        header.jid = jid.get().into();
    }
}
