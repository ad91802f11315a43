//! The FUSE transport: requests in, verbs called, replies out; nothing outside this module knows `fuser`.
//!
//! The seam is [`mount`] and [`serve`] plus [`Notifications`]: another front end (one that answers interrupts, that
//! tells flock from POSIX locks, that speaks epoch and prune notifications) replaces this module without a change
//! behind it.
//!
//! Invariants: a request is answered off the dispatch thread, from a pool; notifications to the kernel are sent from
//! the caller's thread, which must not be one of the pool's and must hold no lock of ours.

mod convert;
mod front;
mod notify;
mod pool;
mod session;

pub use notify::Notifications;
pub use session::{MountedFuse, ServeOptions, mount, serve};
