//! Between lockspaces and a byte stream: every message to a peer arrives once and in order, whatever becomes of the
//! connections below.
//!
//! Invariants: no socket, clock or thread; what a peer makes us keep is bounded; a peer's nonsense is an error or
//! ignored as the kernel ignores it, and never changes what was delivered before. Must not know what messages mean,
//! except which recovery messages travel outside the sequence.

mod framer;
mod link;

#[cfg(test)]
mod tests;

pub use framer::Framer;
pub use link::{ACK_AT_MOST_AFTER, FIN_WAIT, Ignored, KEPT_MAX, Link, LinkError, Received, State};
