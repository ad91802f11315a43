//! Maps keyed by what a volume's structures are known by: block addresses and glock names.
//!
//! The standard hasher withstands chosen keys at several times the price of the look-up itself. Keys here can be
//! chosen by a hostile volume, too: so the multiplier is drawn when the process starts.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;

/// A map with the quick hasher.
pub(crate) type QuickMap<K, V> = HashMap<K, V, Quick>;
/// A set with the quick hasher.
pub(crate) type QuickSet<K> = HashSet<K, Quick>;

/// Makes hashers; all of a process are alike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quick(u64);

impl Default for Quick {
    fn default() -> Self {
        static SEED: OnceLock<u64> = OnceLock::new();
        // Odd: so that no bit of a key is lost.
        Self(*SEED.get_or_init(|| RandomState::new().hash_one(0u64) | 1))
    }
}

impl BuildHasher for Quick {
    type Hasher = QuickHasher;

    fn build_hasher(&self) -> QuickHasher {
        QuickHasher {
            factor: self.0,
            state: self.0.rotate_left(32),
        }
    }
}

/// Multiplies and folds, a number at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QuickHasher {
    factor: u64,
    state: u64,
}

impl Hasher for QuickHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(u64::from(n));
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        // The low half of the product mixes upwards only, the high half brings it down again.
        let product = u128::from(self.state ^ n).wrapping_mul(u128::from(self.factor));
        self.state = product as u64 ^ (product >> 64) as u64;
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    fn write_isize(&mut self, n: isize) {
        self.write_u64(n as u64);
    }

    fn finish(&self) -> u64 {
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_and_strides_are_spread() {
        let build = Quick::default();
        for stride in [1u64, 64, 4096, 1 << 20, 1 << 40] {
            let mut low = [0u32; 256];
            let mut high = [0u32; 128];
            for n in 0..25_600u64 {
                let hash = build.hash_one(n.wrapping_mul(stride));
                low[(hash & 255) as usize] += 1;
                high[(hash >> 57) as usize] += 1;
            }
            // A hash table looks at the low bits, and at the seven highest.
            assert!(low.iter().all(|n| *n < 400), "stride {stride}: {low:?}");
            assert!(high.iter().all(|n| *n < 800), "stride {stride}: {high:?}");
        }
    }
}
