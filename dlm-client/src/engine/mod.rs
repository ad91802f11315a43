//! The lock engine of one lockspace on one node: holder, master, directory node and recovery, as a pure machine.
//!
//! Everything that happens goes in through a method of [`Engine`], everything that is to be done comes out of
//! [`Engine::output`]: no socket, clock, thread or random number inside, and the same inputs give the same outputs.
//!
//! # How the owner drives it
//! * [`Engine::request`], [`Engine::convert`], [`Engine::unlock`], [`Engine::cancel`]: calls of the user, as in
//!   [`crate::Lockspace`]. While the lockspace is stopped they are kept and carried out when recovery is done.
//! * [`Engine::receive`]: a message of this lockspace from a peer, in the order the peer sent them. The transport
//!   answers a STATUS for a lockspace it has no engine for with `StatusReply::NoLockspace` itself.
//! * [`Engine::stop`] and [`Engine::start`]: the membership layer, which guarantees that all members have stopped
//!   before any is started, and that a started set of members is the same everywhere. A stop may come at any time, also
//!   in the middle of a recovery, which is then abandoned; the next start begins it anew. The first start joins.
//! * [`Engine::timer`]: a timer from [`Output::Timer`] is due.
//!
//! After each call, take outputs until there are none.
//!
//! # Events
//! The first event is a RecoverDone. `stop` of a running lockspace gives RecoverPrep; `start` gives a RecoverSlot for
//! each failed member; the end of recovery gives RecoverDone. Casts and Basts that fall between are held back until after
//! it. [`crate::Event::Fatal`] ends it all: the engine does nothing more.

mod barrier;
mod calls;
mod directory;
mod grant;
mod inspect;
mod interface;
mod members;
mod rebuild;
mod receive;
mod send;
mod state;
mod store;
mod waiters;

#[cfg(test)]
mod tests;

pub(crate) use calls::check_flags;
pub use inspect::{LockInfo, LockRole, Queue, ResourceInfo};
pub use interface::{Config, Level, Member, Output, Start, TimerId};
pub use state::Engine;
