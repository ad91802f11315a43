//! mkfs.gfs2 as a library: plans a GFS2 volume and writes it.
//!
//! Invariants: [`plan`] is pure (same options, topology, identity: same blocks) and holds a description of the volume
//! in memory bounded by the number of journals, never the volume's blocks; those are rendered while they are written.
//! The result is that of gfs2-utils 3.5, block for block. The superblock is written last, after everything else is
//! durable, and the old one is wiped first: a volume whose making was interrupted is plainly no filesystem.
//!
//! ```
//! # use gfs2_mkfs::{Options, Topology, plan};
//! let options = Options::nolock();
//! let plan = plan(&options, &Topology::of_size(1 << 30))?;
//! assert_eq!(plan.summary().resource_groups, 5);
//! # Ok::<(), gfs2_mkfs::Error>(())
//! ```
//!
//! The directory and tree code here does not use the algorithms of `gfs2-format`: those follow the kernel, while the
//! volumes made here follow the original mkfs, which packs entries differently when a leaf is split.

mod alloc;
mod bitmap;
pub mod cli;
mod dir;
mod error;
mod inode;
mod journal;
mod layout;
mod options;
mod plan;
pub mod probe;
mod system;
mod write;

pub use error::{Error, Result};
pub use layout::{Layout, RgrpSpan};
pub use options::{
    DEFAULT_RGRP_MB, IoLimits, LockProto, MAX_JOURNAL_MB, MAX_QUOTA_CHANGE_MB, MAX_RGRP_MB, MIN_JOURNAL_MB,
    MIN_RGRP_MB, Options, Stripe, Topology, check_lock_table,
};
pub use plan::{Plan, Summary, Warning, plan};
pub use write::{NoProgress, Phase, Progress, write_plan};

use gfs2_format::device::BlockDevice;

/// Plans a volume for the whole device and writes it, without asking and without a word.
///
/// # Errors
/// [`Error`]: options that do not fit, before anything is written; or the device's errors.
pub fn format(device: &dyn BlockDevice, options: &Options) -> Result<Summary> {
    let plan = plan(options, &Topology::of_device(device))?;
    write_plan(device, &plan, &NoProgress)?;
    Ok(plan.summary())
}
