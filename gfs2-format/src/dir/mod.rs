//! Directories: linear ones in the dinode, hashed ones in leaves.
//!
//! Every function takes the block of the directory's dinode. Invariants: dirents tile their area exactly or the
//! area is corrupt; a leaf chain is walked with cycle detection; `di_entries`, `lf_entries`, `di_blocks`, the
//! leaf's time and the directory's mtime and ctime are kept in the same edit as the entries. Link counts are the
//! caller's business.

mod area;
mod change;
mod cost;
mod dealloc;
mod insert;
mod lookup;
mod probe;
mod readdir;
mod table;

pub use change::{init_dir, is_empty, remove, remove_at, replace};
pub use cost::{InsertCost, needs_blocks};
pub use dealloc::LeafCursor;
pub use insert::{NewEntry, insert};
pub use lookup::{Found, Hit, Location, check_name, lookup};
pub use probe::{Probe, Room, insert_at, probe};
pub use readdir::{Cookie, Entry, read_from};

pub(crate) use table::{Chain, Dir};

#[cfg(test)]
mod tests;
