//! Tests of the log: in one process, over devices of memory that record or fail.

pub(crate) mod rig;

mod concurrency;
mod crash;
mod faults;
mod revokes;
mod space;
