#![doc = include_str!("README.md")]

mod dump;
mod guard;
mod lock;
pub mod machine;
pub mod multi;
pub mod name;
pub mod ops;
pub mod order;
mod shared;
pub mod state;
mod table;
mod thread_id;
mod wait;
mod worker;

pub use guard::{GlockGuard, PendingGlock};
pub(crate) use lock::GLOCK_BYTES;
pub use lock::Glock;
pub use name::{GlockName, LockType};
pub use ops::{GlockOps, KernelCache, Presence, Verdict};
pub use order::LockClass;
pub use state::{HolderFlags, State};
pub use table::{ClearReport, GlockStats, GlockTable, RAW_TOKENS, TableOptions};
pub use wait::Interrupt;
pub(crate) use wait::Waiter;

#[cfg(test)]
mod tests;
