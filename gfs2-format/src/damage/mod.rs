//! A small language that puts lies on a volume: the tests of fsck, of the driver and of recovery are written in it.
//!
//! One statement per line, `#` begins a comment. Numbers are decimal or 0x...; values are what
//! [`crate::describe::Field::parse`] takes.
//!
//! ```text
//! set sb.sb_bsize = 1024
//! set rgrp(3).rg_free = 5                     # the fourth resource group
//! set rgrp(3).rg_free = 5, fix crc            # and make the checksum fit again
//! set rindex(0).ri_data = 7
//! set statfs.sc_free = -1                     # the master totals
//! set statfs_change(1).sc_free = 12           # those of node 1
//! set dinode(/dir/file).di_size = 0
//! set dinode(master:/jindex/journal0).di_flags = SYSTEM|JDATA
//! set dinode(block 1234).di_nlink = 9
//! set dirent(/dir/file).de_hash = 0           # the entry of that name
//! set leaf(block 77).lf_depth = 3             # any structure, at the start of any block
//! set ea_header(block 99 at 24).ea_rec_len = 0
//! set log_header(journal 0 block 12).lh_sequence = 5, fix crc
//! set pointer(/big, 3) = 17                   # 4th pointer of a dinode or of an indirect, hash or EA list block
//! bitmap block 1234 = unlinked                # free, used, unlinked, dinode
//! zero block 1234
//! fill /dir/file with 0x5a
//! copy block 5 to block 6
//! poke sb at 100 hex:00ff
//! ```
//!
//! A place is `sb`, `block N`, `rgrp N`, `journal J block B`, a path from the root, or `master:` and a path from the
//! master directory. All places of a script are looked up before anything is written, so a statement may destroy
//! what another one's path leads through.
//!
//! Invariants: nothing is written when any statement is wrong; what is written lies on the device.

mod apply;
mod parse;

pub use apply::{Damage, apply, plan};
pub use parse::{Place, Statement, Target, parse};

use crate::device::BlockDevice;
use crate::error::Error;

/// Why a script was not carried out.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DamageError {
    /// A statement is no statement.
    #[error("line {line}: {message}")]
    Syntax {
        /// Line in the script, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A statement's place could not be found.
    #[error("line {line}: {source}")]
    Place {
        /// Line in the script, from 1.
        line: usize,
        /// Why not.
        source: Error,
    },
    /// The device failed.
    #[error("{0}")]
    Device(#[from] Error),
}

impl DamageError {
    fn syntax(line: usize, message: impl Into<String>) -> Self {
        Self::Syntax {
            line,
            message: message.into(),
        }
    }
}

/// Parses and carries out a script.
///
/// # Errors
/// [`DamageError`]; after an error of the device part of the script may have been carried out.
pub fn run(script: &str, device: &dyn BlockDevice) -> Result<(), DamageError> {
    let statements = parse(script)?;
    let damage = plan(&statements, device)?;
    apply(&damage, device)
}

#[cfg(test)]
mod tests;
