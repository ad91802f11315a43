//! A copy-on-write overlay over any device: dropped, nothing happened (dry run); committed, the changes are written.
//!
//! Invariants: the base is not written before [`OverlayDevice::commit`]; changes are kept in granules of one size and
//! take at most the memory the overlay was given (a write beyond fails, nothing of it is kept).

use super::{BlockDevice, Identity, ReadRequest, Topology, WriteRequest, check_range, granules};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::io;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Granules written to the base in one batch.
const COMMIT_BATCH: usize = 256;

/// See the module documentation.
#[derive(Debug)]
pub struct OverlayDevice<D> {
    base: D,
    granule: usize,
    limit: u64,
    changed: RwLock<BTreeMap<u64, Box<[u8]>>>,
}

impl<D: BlockDevice> OverlayDevice<D> {
    /// Over `base`, keeping changes in granules of `granule` bytes (a multiple of the sector; the filesystem's block
    /// size is a good choice) that take at most `limit` bytes together.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a granule that is no power of two or smaller than a sector.
    pub fn new(base: D, granule: u32, limit: u64) -> Result<Self> {
        if !granule.is_power_of_two() || granule < base.sector_size() {
            return Err(Error::Unsupported {
                what: "overlay granule",
                found: u64::from(granule),
                supported: "a power of two of at least one sector",
            });
        }
        Ok(Self {
            base,
            granule: granule as usize,
            limit,
            changed: RwLock::default(),
        })
    }

    /// The device below.
    pub fn base(&self) -> &D {
        &self.base
    }

    /// Gives up the changes and returns the device below.
    pub fn discard_changes(self) -> D {
        self.base
    }

    fn changes(&self) -> RwLockReadGuard<'_, BTreeMap<u64, Box<[u8]>>> {
        self.changed.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory held by changes, in bytes.
    #[must_use]
    pub fn changed_bytes(&self) -> u64 {
        self.changes().len() as u64 * self.granule as u64
    }

    /// The changed ranges as (byte offset, length), ascending, neighbours joined.
    #[must_use]
    pub fn changed_ranges(&self) -> Vec<(u64, u64)> {
        let granule = self.granule as u64;
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for start in self.changes().keys() {
            let len = granule.min(self.base.size().saturating_sub(*start));
            match ranges.last_mut() {
                Some((offset, joined)) if *offset + *joined == *start => *joined += len,
                _ => ranges.push((*start, len)),
            }
        }
        ranges
    }

    /// Writes all changes to the base, granules of lower `rank` (computed of the byte offset) first, and flushes the
    /// base after each rank. On success the overlay is empty again.
    ///
    /// # Errors
    /// The base's; then nothing is forgotten, and a prefix of the ranks is durable.
    pub fn commit(&self, rank: impl Fn(u64) -> u32) -> Result<()> {
        let mut changed = self.changed.write().unwrap_or_else(PoisonError::into_inner);
        let mut order: Vec<(u32, u64)> = changed.keys().map(|start| (rank(*start), *start)).collect();
        order.sort_unstable();
        for same_rank in order.chunk_by(|a, b| a.0 == b.0) {
            for group in same_rank.chunks(COMMIT_BATCH) {
                let requests: Vec<WriteRequest<'_>> = group
                    .iter()
                    .filter_map(|(_, start)| {
                        let bytes = changed.get(start)?;
                        let len = self.base.size().saturating_sub(*start).min(bytes.len() as u64);
                        let buf = bytes.get(..len as usize)?;
                        Some(WriteRequest { offset: *start, buf })
                    })
                    .collect();
                self.base.write_batch(&requests)?;
            }
            self.base.flush()?;
        }
        changed.clear();
        Ok(())
    }

    fn patch(&self, changed: &BTreeMap<u64, Box<[u8]>>, offset: u64, buf: &mut [u8]) {
        let first = offset - offset % self.granule as u64;
        let end = offset + buf.len() as u64;
        if changed.range(first..end.max(first)).next().is_none() {
            return;
        }
        for (start, skip, at, n) in granules(offset, buf.len(), self.granule) {
            let source = changed.get(&start).and_then(|bytes| bytes.get(skip..skip + n));
            if let (Some(source), Some(target)) = (source, buf.get_mut(at..at + n)) {
                target.copy_from_slice(source);
            }
        }
    }
}

impl<D: BlockDevice> BlockDevice for OverlayDevice<D> {
    facts_of!(self, self.base);

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range("read", offset, buf.len() as u64, self.size())?;
        let changed = self.changes();
        self.base.read_at(offset, buf)?;
        self.patch(&changed, offset, buf);
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let len = buf.len() as u64;
        check_range("write", offset, len, self.size())?;
        let mut changed = self.changed.write().unwrap_or_else(PoisonError::into_inner);
        let mut fresh = BTreeMap::new();
        for (start, _, _, n) in granules(offset, buf.len(), self.granule) {
            if changed.contains_key(&start) {
                continue;
            }
            let mut bytes = vec![0u8; self.granule].into_boxed_slice();
            let present = self.size().saturating_sub(start).min(self.granule as u64) as usize;
            if n < present {
                let part = bytes.get_mut(..present).unwrap_or_default();
                self.base.read_at(start, part)?;
            }
            fresh.insert(start, bytes);
            let held = (changed.len() + fresh.len()) as u64 * self.granule as u64;
            if held > self.limit {
                let what = format!("the overlay's limit of {} bytes is reached", self.limit);
                let full = io::Error::new(io::ErrorKind::OutOfMemory, what);
                return Err(Error::io("write", offset, len, full));
            }
        }
        changed.append(&mut fresh);
        for (start, skip, at, n) in granules(offset, buf.len(), self.granule) {
            let target = changed.get_mut(&start).and_then(|b| b.get_mut(skip..skip + n));
            if let (Some(target), Some(source)) = (target, buf.get(at..at + n)) {
                target.copy_from_slice(source);
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn read_batch(&self, requests: &mut [ReadRequest<'_>]) -> Result<()> {
        for r in requests.iter() {
            check_range("read", r.offset, r.buf.len() as u64, self.size())?;
        }
        let changed = self.changes();
        self.base.read_batch(requests)?;
        for request in requests {
            self.patch(&changed, request.offset, request.buf);
        }
        Ok(())
    }
}
