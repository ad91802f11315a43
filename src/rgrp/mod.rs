//! Resource groups: who has blocks to give, and the one place where bitmaps change.
//!
//! Invariants: a group is used only under its glock; all blocks of one transaction come from one group, which is held
//! from before the transaction begins until after it has committed; a freed block is not given out again before the
//! commit that freed it is durable. Must not know: inodes, names.

mod edit;
mod freemap;
mod group;
mod hold;
mod ops;
mod set;
mod windows;

pub(crate) use edit::{Edit, Reader};
pub(crate) use hold::Hold;
pub(crate) use set::{IndexState, Rgrps, Want};
