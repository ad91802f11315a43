//! A rehearsal of other nodes, for tests: locks go at any moment, as if somebody else wanted them.
//!
//! With `FUSE_GFS2_REHEARSE=SEED` in the daemon's environment, locks of the mount are demoted at random all the time:
//! log flushes, write-back and the emptying of the kernel's caches happen in the middle of everything. The journal then
//! behaves as on a volume of several nodes. Data is as safe as without; it is slow.

use crate::glock::{GlockTable, LockType, State};
use std::sync::Arc;

/// The variable.
const VARIABLE: &str = "FUSE_GFS2_REHEARSE";

/// Turns after which the names of the locks are looked up again.
const NAMES_AGE: u32 = 50;

/// The seed, when a rehearsal is wanted.
pub(crate) fn wanted() -> Option<u64> {
    std::env::var(VARIABLE).ok()?.parse().ok()
}

/// What takes locks away; to be called again and again.
pub(crate) fn taker(glocks: &Arc<GlockTable>, seed: u64) -> impl FnMut() + Send + use<> {
    let glocks = Arc::downgrade(glocks);
    let mut random = seed | 1;
    let mut names = Vec::new();
    let mut turn = 0;
    move || {
        let Some(glocks) = glocks.upgrade() else { return };
        if turn % NAMES_AGE == 0 {
            names = glocks.names();
            names.retain(|name| matches!(name.ty, LockType::Inode | LockType::Rgrp));
        }
        turn = turn.wrapping_add(1);
        for _ in 0..3 {
            // xorshift64: good enough to pick with, and the same everywhere.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let len = u64::try_from(names.len()).unwrap_or(u64::MAX).max(1);
            let index = usize::try_from((random >> 8) % len).unwrap_or(0);
            let state = if random & 1 == 0 { State::Un } else { State::Sh };
            if let Some(name) = names.get(index) {
                glocks.demote(*name, state);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::glock::{GlockName, GlockOps, HolderFlags, Presence, TableOptions};
    use dlm_client::{Dlm, JoinOptions, LocalDlm};

    #[test]
    fn every_lock_goes_in_time() {
        let (space, queue) = LocalDlm::new().join("fs", &JoinOptions::default()).unwrap();
        let glocks = Arc::new(GlockTable::new(space, queue, TableOptions::default()).unwrap());
        let ops: Arc<dyn GlockOps> = Arc::new(Presence);
        let locks: Vec<_> = (1..20)
            .map(|n| {
                let lock = glocks.get(GlockName::inode(n), &ops).unwrap();
                drop(lock.acquire(State::Ex, HolderFlags::empty()).unwrap());
                lock
            })
            .collect();
        let mut take = taker(&glocks, 7);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while locks.iter().any(|lock| lock.held_state() != State::Un) {
            assert!(std::time::Instant::now() < end, "a lock stays");
            take();
            std::thread::yield_now();
        }
    }
}
