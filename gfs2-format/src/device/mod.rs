//! Block devices under one trait: files and block devices, memory, overlays, recorders, faults.
//!
//! Invariants: every method may be called from many threads; offsets and lengths handed in by this project are
//! multiples of the device's logical sector unless said otherwise; a write is durable only after a later
//! [`BlockDevice::flush`] has returned.

use crate::error::Result;
use std::fmt::Debug;

/// One read of a batch.
#[derive(Debug)]
pub struct ReadRequest<'a> {
    /// Byte offset.
    pub offset: u64,
    /// Filled exactly.
    pub buf: &'a mut [u8],
}

/// One write of a batch.
#[derive(Debug, Clone, Copy)]
pub struct WriteRequest<'a> {
    /// Byte offset.
    pub offset: u64,
    /// Written exactly.
    pub buf: &'a [u8],
}

/// A device of fixed size, addressed in bytes.
pub trait BlockDevice: Send + Sync + Debug {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Logical sector size in bytes: the smallest unit of a write.
    fn sector_size(&self) -> u32 {
        512
    }

    /// Fills `buf` from `offset` or fails.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; reading past the end is an error too.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Writes all of `buf` at `offset` or fails (then any part may have been written).
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()>;

    /// Makes every write that returned before this call durable.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    fn flush(&self) -> Result<()>;

    /// Says that the range holds nothing of value. `Ok(false)`: the device cannot discard.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    fn discard(&self, _offset: u64, _len: u64) -> Result<bool> {
        Ok(false)
    }

    /// Many reads at once, in any order; the first error is returned after all have ended.
    ///
    /// # Errors
    /// As [`BlockDevice::read_at`].
    fn read_batch(&self, requests: &mut [ReadRequest<'_>]) -> Result<()> {
        requests
            .iter_mut()
            .try_for_each(|r| self.read_at(r.offset, r.buf))
    }

    /// Many writes at once, in any order; the first error is returned after all have ended.
    ///
    /// # Errors
    /// As [`BlockDevice::write_at`].
    fn write_batch(&self, requests: &[WriteRequest<'_>]) -> Result<()> {
        requests.iter().try_for_each(|r| self.write_at(r.offset, r.buf))
    }
}
