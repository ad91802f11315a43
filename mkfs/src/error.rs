//! What can go wrong, in the words of the original where it has any, followed by what to do.
//!
//! Invariant: every message is one line. [`Error::exit_code`] is the original's: 255 for arguments that cannot be
//! honoured, 1 for a device that cannot be opened or written and for a volume that turns out not to fit.

use std::sync::Arc;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error of making a volume.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A block size that is no power of two, or out of range.
    #[error("Block size must be a power of two between 512 and {max} (it is {found})")]
    BlockSize {
        /// What was asked for.
        found: u32,
        /// The machine's page size, or the format's limit.
        max: u32,
    },
    /// Blocks smaller than the device's sectors.
    #[error(
        "Error: Block size {bsize} is less than minimum logical block size ({sector}): use -b {sector} or larger"
    )]
    BelowSector {
        /// Block size in bytes.
        bsize: u32,
        /// Logical sector size in bytes.
        sector: u64,
    },
    /// A resource group size out of range.
    #[error("Bad resource group size: {found} (it can be from 32 to 2048 megabytes)")]
    RgrpSize {
        /// In MiB.
        found: u32,
    },
    /// A journal size out of range.
    #[error("Bad journal size: {found} (it can be from 8 to 1024 megabytes)")]
    JournalSize {
        /// In MiB.
        found: u32,
    },
    /// A quota change file size out of range.
    #[error("Bad quota change size: {found} (it can be from 1 to 64 megabytes)")]
    QuotaChangeSize {
        /// In MiB.
        found: u32,
    },
    /// No journal at all.
    #[error("No journals specified: at least one is needed for each node that mounts")]
    NoJournals,
    /// A filesystem format this program does not write.
    #[error("Invalid filesystem format: {found} (it can be 1801 or 1802)")]
    Format {
        /// What was asked for.
        found: u32,
    },
    /// The lock table is missing, though the protocol needs one.
    #[error("No lock table specified: lock_dlm needs -t clustername:fsname")]
    LockTableMissing,
    /// The lock table is given, but empty.
    #[error("Lock table is empty: it must be of the form clustername:fsname")]
    LockTableEmpty,
    /// The lock table has the wrong form.
    #[error("Invalid lock table: {reason}")]
    LockTable {
        /// What is wrong with it.
        reason: String,
    },
    /// A stripe unit that is not whole blocks.
    #[error("Stripe unit ({unit}) must be a multiple of block size ({bsize})")]
    StripeUnit {
        /// In bytes.
        unit: u64,
        /// In bytes.
        bsize: u32,
    },
    /// A stripe width that is not whole units.
    #[error("Stripe width ({width}) must be a multiple of stripe unit ({unit})")]
    StripeWidth {
        /// In bytes.
        width: u64,
        /// In bytes.
        unit: u64,
    },
    /// Stripes as wide as resource groups.
    #[error(
        "Resource groups cannot be aligned to stripes of {width} blocks: use smaller stripes, or -o align=0"
    )]
    StripeTooWide {
        /// Stripe width and unit together, in blocks.
        width: u64,
    },
    /// More blocks asked for than there are.
    #[error(
        "Specified size ({wanted} blocks) is bigger than the device. Device size: {gib:.2} GB ({device} blocks)"
    )]
    BiggerThanDevice {
        /// Blocks asked for.
        wanted: u64,
        /// Blocks of the device.
        device: u64,
        /// Size of the device in GiB.
        gib: f32,
    },
    /// Not even the smallest journals fit.
    #[error(
        "gfs2 will not fit on this device: {journals} journal(s) of 8MB need at least {need} blocks, there are {have}"
    )]
    WillNotFit {
        /// Journals asked for.
        journals: u32,
        /// Blocks needed at least.
        need: u64,
        /// Blocks there are.
        have: u64,
    },
    /// Journals of the wanted size do not fit.
    #[error("gfs2 will not fit on this device.{}", max_journal_text(*journals, *max_mb))]
    JournalsWillNotFit {
        /// Journals asked for.
        journals: u32,
        /// The largest size in MiB that fits, if any does.
        max_mb: Option<u32>,
    },
    /// The blocks left after the journals do not hold the rest.
    #[error(
        "gfs2 will not fit on this device: no space left for {what}: use fewer or smaller journals, or a larger device"
    )]
    NoRoom {
        /// What has no room.
        what: &'static str,
    },
    /// The device failed.
    #[error("{0}")]
    Device(Arc<gfs2_format::Error>),
}

fn max_journal_text(journals: u32, max_mb: Option<u32>) -> String {
    match max_mb {
        Some(mb) => format!(" Maximum size for {journals} journals on this device is {mb}MB."),
        None => format!(" Not even the smallest size of {journals} journals does."),
    }
}

impl From<gfs2_format::Error> for Error {
    fn from(error: gfs2_format::Error) -> Self {
        Self::Device(Arc::new(error))
    }
}

impl Error {
    /// The exit status the original ends with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Device(_) | Self::NoRoom { .. } => 1,
            _ => 255,
        }
    }
}
