//! The pointer tree of an inode: mapping, growing, freeing, stuffed data.
//!
//! One tree for files (logical blocks of `bsize` bytes) and for the hash tables of directories (logical blocks of
//! `jbsize` bytes of payload); the pointers are the same. Invariants: a walk never goes deeper than `di_height`, never
//! meets one of its own ancestors, and reads at most as many indirect blocks as the inode can own; pointers leave
//! this module only checked. Every function that changes something does all of it in the edit it is given.

mod cost;
mod free;
mod grow;
mod map;
mod path;
mod ptrs;
mod read;

pub use cost::{Cost, worst_case_blocks};
pub use free::{FreeCursor, StepBudget, StepOutcome, truncate_begin, truncate_finish, truncate_resume};
pub use grow::{Allocated, data_use, grow_height, map_or_alloc, unstuff};
pub use map::{Mapping, map, next_data, next_hole};
pub use path::{Metapath, coverage};
pub use read::{read_bytes, stuffed};

pub(crate) use free::runs;
pub(crate) use grow::{Supply, discharge};
pub(crate) use path::Root;
pub(crate) use ptrs::{clear_payload, dinode_of, edit_dinode, ptrs, ptrs_mut, stamp};

#[cfg(test)]
mod tests;
