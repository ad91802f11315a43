//! The FUSE transport: requests in, verbs called, replies out; nothing outside this module knows the protocol.
//!
//! It speaks to `/dev/fuse` itself. Of the crates, fuser (0.18) was tried and does not fit: it cannot answer an INTERRUPT
//! (whoever waits for a lock survives SIGKILL), a time in a SETATTR can end its loop, it hands out neither the flags of
//! SETATTR, OPEN and SETXATTR that HANDLE_KILLPRIV_V2 and ACLs need nor whole requests in aligned buffers, and it has
//! no epoch and no prune notification. Requests answered where they were read save two switches of threads each.
//!
//! Requests come by reads of the device (`crew`) or, where the kernel can, by io_uring (`rings`); all else is the
//! same. Unsafe code is in `station` and `idle` alone.
//!
//! The seam is [`mount`] and [`serve`] plus [`Notifications`].
//!
//! Invariants: every request is answered once; notifications to the kernel are sent from the caller's thread, which
//! must not be one that answers requests (but for attributes alone, which wait for nothing) and must hold no lock of ours.

mod abi;
mod awake;
mod convert;
mod counters;
mod crew;
mod front;
mod idle;
mod interrupt;
mod ioctl;
mod notify;
mod reply;
mod request;
mod rings;
mod session;
mod station;

pub use counters::Counters;
pub use notify::Notifications;
pub use rings::Transport;
pub use session::{MountedFuse, ServeOptions, mount, serve};
