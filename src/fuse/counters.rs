//! How many requests of each kind the kernel has sent: what an operation costs is first of all their number.

use super::abi::{OPCODES, Opcode};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the mount, by operation.
pub struct Counters {
    by_opcode: [AtomicU64; OPCODES],
    by_ring: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            by_opcode: [const { AtomicU64::new(0) }; OPCODES],
            by_ring: AtomicU64::new(0),
        }
    }
}

impl Counters {
    pub(super) fn count(&self, opcode: u32) {
        // Numbers from the future share the place no operation has.
        let counter = self.by_opcode.get(opcode as usize).or(self.by_opcode.first());
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn count_by_ring(&self) {
        self.by_ring.fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests came by io_uring.
    #[must_use]
    pub fn by_ring(&self) -> u64 {
        self.by_ring.load(Ordering::Relaxed)
    }

    /// Names (the protocol's, in lower case) and counts of the operations that were asked for.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(String, u64)> {
        let counts = Opcode::ALL.iter().filter_map(|opcode| {
            let count = self.by_opcode.get(*opcode as usize)?.load(Ordering::Relaxed);
            (count > 0).then(|| (opcode.name(), count))
        });
        counts.collect()
    }
}

/// `lookup=12 getattr=3`.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, count)) in self.snapshot().iter().enumerate() {
            let gap = if index == 0 { "" } else { " " };
            write!(f, "{gap}{name}={count}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Counters({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_is_named() {
        let counters = Counters::default();
        for opcode in [1, 1, 45, 4096] {
            counters.count(opcode);
        }
        assert_eq!(counters.to_string(), "lookup=2 rename2=1");
    }
}
