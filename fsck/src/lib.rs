//! Checks a GFS2 volume.
//!
//! A check reads the whole of the metadata, in parallel and in disk order, believes nothing, and reports findings as
//! data (see [`problem`]). Dirty journals are replayed; when they may not be, the check goes on with a replay in
//! memory, so that what it reports is damage and not the crash (unless [`Policy::as_it_lies`]). Where it may, it repairs
//! what it found in an overlay, checks again until nothing is left to repair, and then writes the changes
//! (`repair/README.md`).
//!
//! Invariants: a read-only check writes nothing; bytes of any kind end in findings, never in a panic, an endless loop
//! or unbounded memory (two bits a block where neighbours differ, 32 bytes an inode, the blocks that change).
//! This crate knows nothing of the driver: both are witnesses for each other. Nor does this library know of a cluster; the
//! program asks one (`cluster.rs`).

mod check;
mod observed;
mod pass;
pub mod problem;
mod reader;
mod repair;
pub mod report;
mod run;
mod scan;
mod table;
pub mod undo;

pub use problem::{Class, Kind, Problem};
pub use repair::Request;
pub use report::{Collect, Control, Fate, Progress, Question, Reporter, Stage};

use gfs2_format::Error;
use gfs2_format::device::BlockDevice;
use gfs2_format::log::LogTime;
use std::time::Duration;

/// [`Policy::memory`] when nothing else is said.
pub const MEMORY: u64 = 64 << 20;

/// What a check may do and how far it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Write nothing, ask nothing.
    pub read_only: bool,
    /// With `read_only`: look at the volume as it lies, not as the replay of its dirty journals would leave it.
    pub as_it_lies: bool,
    /// Preening: clean journals and a resource index that can be read are enough, as for the original; a dirty journal of a volume that several nodes may have
    /// mounted is left alone.
    pub preen: bool,
    /// Preening goes all the way anyway; a volume whose end is missing, or of which blocks cannot be read, is repaired.
    pub force: bool,
    /// Repair in memory only, to see what would be done.
    pub dry_run: bool,
    /// Memory the check may take, in bytes. It takes more only where the volume cannot be checked in it (32 bytes for
    /// each inode, two bits for each block where neighbours differ; what a run that writes nothing would have written),
    /// and says so: [`Outcome::memory`].
    pub memory: u64,
    /// Blocks with several owners that are listed one by one, with their owners.
    pub duplicates_listed: usize,
    /// Of a volume that several nodes may have mounted, with a journal that is not clean: look so long whether a node
    /// writes a journal before anything is repaired. If one does, the check ends with an error of kind
    /// [`std::io::ErrorKind::ResourceBusy`].
    pub watch: Duration,
    /// Time for the headers of replayed journals.
    pub now: LogTime,
}

impl Policy {
    /// Looks at everything, writes nothing.
    #[must_use]
    pub fn read_only() -> Self {
        Self {
            read_only: true,
            as_it_lies: false,
            preen: false,
            force: false,
            dry_run: false,
            memory: MEMORY,
            duplicates_listed: 65536,
            watch: Duration::ZERO,
            now: LogTime::default(),
        }
    }

    /// Looks at everything, repairs what it can and may.
    #[must_use]
    pub fn repair(now: LogTime) -> Self {
        Self {
            read_only: false,
            now,
            ..Self::read_only()
        }
    }
}

/// What came of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Findings of class error or fatal.
    pub errors: u64,
    /// Findings of class warning.
    pub warnings: u64,
    /// Errors that were repaired.
    pub corrected: u64,
    /// Journals that were dirty (each is an error, too).
    pub dirty: u64,
    /// Inodes that were unlinked and never deleted (each is an error, too).
    pub unlinked: u64,
    /// Bytes that were needed, if that was more than [`Policy::memory`]; else 0.
    pub memory: u64,
    /// Blocks that could not be read (each is an error, too).
    pub unreadable: u64,
    /// A fatal finding ended the check.
    pub stopped: bool,
    /// The caller ended it.
    pub cancelled: bool,
    /// The caller left a part of it out.
    pub skipped: bool,
    /// Preening found the journals clean and looked no further than the resource index.
    pub preened: bool,
}

impl Outcome {
    /// Is there nothing but what a crash leaves without damage? Journals to be replayed, and inodes that were unlinked and
    /// not deleted: a mount deals with both.
    #[must_use]
    pub const fn is_crash_alone(&self) -> bool {
        self.dirty > 0 && self.errors == self.dirty.saturating_add(self.unlinked)
    }

    /// Damage that is still there.
    #[must_use]
    pub const fn uncorrected(&self) -> u64 {
        self.errors.saturating_sub(self.corrected)
    }
}

/// Checks the volume on `device`, and repairs what `policy` allows and `reporter` agrees to.
///
/// ```
/// use gfs2_format::device::MemDevice;
/// use gfs2_fsck::{Collect, Kind, Policy, check};
///
/// let device = MemDevice::new(64 << 20); // nothing on it; OpenOptions::new().read_only(true).open(path) for a real one
/// let mut found = Collect::default();
/// let outcome = check(&device, &Policy::read_only(), &mut found)?;
/// assert_eq!((outcome.errors, outcome.stopped), (1, true));
/// assert_eq!(found.problems[0].kind, Kind::Superblock);
/// println!("{}", found.problems[0]);
/// # Ok::<(), gfs2_format::Error>(())
/// ```
///
/// # Errors
/// [`Error::Unsupported`] for a volume this version does not know, [`std::io::ErrorKind::UnexpectedEof`] for a device
/// that ends before the volume does (unless forced), I/O errors where nothing can be said without the
/// block. Damage is no error: it is reported.
pub fn check(
    device: &dyn BlockDevice,
    policy: &Policy,
    reporter: &mut dyn Reporter,
) -> Result<Outcome, Error> {
    run::Run::new(device, policy).all(reporter)
}
