//! The GFS2 on-disk format: bytes, geometry, and the algorithms over blocks.
//!
//! Rule for what lives here: whatever can be explained without the words node, lock, cache, commit or kernel.
//! mkfs, fsck and the driver call the same algorithms over the narrow traits of [`edit`]; who owns the blocks and
//! what a write means is the caller's business.
//!
//! Invariants: no unsafe code, no panic on any bytes read, every walk bounded.
//! Source of facts: `include/uapi/linux/gfs2_ondisk.h` and the project's format sheet (FORMAT.md).

pub mod addr;
pub mod bitmap;
#[cfg(any(test, feature = "testing"))]
pub mod damage;
pub mod describe;
pub mod device;
pub mod dir;
pub mod ea;
pub mod edit;
pub mod error;
pub mod geometry;
pub mod log;
#[cfg(any(test, feature = "testing"))]
pub mod memvol;
pub mod ondisk;
pub mod time;
pub mod tree;
pub mod volume;
pub mod walk;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod testing;

pub use addr::{BlockAddr, Extent, FileBlock, FormalIno, InodeNum, Jid, JournalBlock};
pub use edit::{Block, BlockEdit, BlockRead, BlockUse};
pub use error::{Corrupt, Error, Expected, Result};
pub use geometry::Geometry;
pub use time::Timestamp;
pub use volume::Volume;
