//! A sparse device in memory: what was never written costs nothing, so 16 TiB are no problem.
//!
//! Invariants: absent chunks read as zeroes; chunks are shared with snapshots and copied on the first write after one.

use super::{BlockDevice, check_range, granules};
use crate::error::Result;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// Bytes of a chunk.
const CHUNK: usize = 16 * 1024;

type Chunks = BTreeMap<u64, Arc<[u8]>>;

/// A sparse device in memory. `Clone` makes a cheap snapshot that goes its own way.
pub struct MemDevice {
    size: u64,
    sector: u32,
    chunks: RwLock<Chunks>,
}

impl MemDevice {
    /// `size` zero bytes with sectors of 512.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self {
            size,
            sector: 512,
            chunks: RwLock::default(),
        }
    }

    /// With sectors of `sector` bytes.
    #[must_use]
    pub fn with_sector_size(mut self, sector: u32) -> Self {
        self.sector = sector;
        self
    }

    /// A copy of another device; all-zero chunks stay absent.
    ///
    /// # Errors
    /// The other device's read errors.
    pub fn copy_of(other: &dyn BlockDevice) -> Result<Self> {
        let copy = Self::new(other.size()).with_sector_size(other.sector_size());
        let mut buf = vec![0u8; CHUNK];
        let mut offset = 0;
        while offset < copy.size {
            let len = (copy.size - offset).min(CHUNK as u64);
            let part = buf.get_mut(..len as usize).unwrap_or_default();
            other.read_at(offset, part)?;
            if part.iter().any(|b| *b != 0) {
                copy.write_at(offset, part)?;
            }
            offset += len;
        }
        Ok(copy)
    }

    /// Bytes of memory in use for contents.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.read_chunks(|chunks| chunks.len() as u64 * CHUNK as u64)
    }

    fn read_chunks<T>(&self, f: impl FnOnce(&Chunks) -> T) -> T {
        // Every write leaves the map whole, even one that panicked half-way: only bytes are at stake.
        f(&self.chunks.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write_chunks<T>(&self, f: impl FnOnce(&mut Chunks) -> T) -> T {
        f(&mut self.chunks.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Clone for MemDevice {
    fn clone(&self) -> Self {
        Self {
            size: self.size,
            sector: self.sector,
            chunks: RwLock::new(self.read_chunks(Chunks::clone)),
        }
    }
}

impl fmt::Debug for MemDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemDevice")
            .field("size", &self.size)
            .field("allocated", &self.allocated())
            .finish_non_exhaustive()
    }
}

impl BlockDevice for MemDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector_size(&self) -> u32 {
        self.sector
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range("read", offset, buf.len() as u64, self.size)?;
        self.read_chunks(|chunks| {
            for (first, start, at, n) in granules(offset, buf.len(), CHUNK) {
                let chunk = first / CHUNK as u64;
                let target = buf.get_mut(at..at + n).unwrap_or_default();
                match chunks.get(&chunk).and_then(|bytes| bytes.get(start..start + n)) {
                    Some(bytes) => target.copy_from_slice(bytes),
                    None => target.fill(0),
                }
            }
        });
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        check_range("write", offset, buf.len() as u64, self.size)?;
        self.write_chunks(|chunks| {
            for (first, start, at, n) in granules(offset, buf.len(), CHUNK) {
                let chunk = first / CHUNK as u64;
                let bytes = chunks.entry(chunk).or_insert_with(|| Arc::from([0u8; CHUNK]));
                if let (Some(target), Some(source)) = (
                    Arc::make_mut(bytes).get_mut(start..start + n),
                    buf.get(at..at + n),
                ) {
                    target.copy_from_slice(source);
                }
            }
        });
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<bool> {
        check_range("discard", offset, len, self.size)?;
        // Whole chunks are given back; the rest may keep its contents.
        let first = offset.div_ceil(CHUNK as u64);
        let end = (offset + len) / CHUNK as u64;
        self.write_chunks(|chunks| {
            let doomed: Vec<u64> = chunks
                .range(first..end.max(first))
                .map(|(chunk, _)| *chunk)
                .collect();
            for chunk in doomed {
                chunks.remove(&chunk);
            }
        });
        Ok(true)
    }
}
