//! Block devices under one trait: files and block devices, memory, overlays, recorders, faults.
//!
//! Invariants: every method may be called from many threads; offsets and lengths handed in by this project are
//! multiples of the device's logical sector unless said otherwise; a write is durable only after a later
//! [`BlockDevice::flush`] has returned (or it was a [`BlockDevice::write_fua`]).

/// What every device says about itself, as another one says it.
macro_rules! facts_of {
    ($self:ident, $base:expr) => {
        fn size(&$self) -> u64 {
            $base.size()
        }

        fn sector_size(&$self) -> u32 {
            $base.sector_size()
        }

        fn topology(&$self) -> Topology {
            $base.topology()
        }

        fn identity(&$self) -> Option<Identity> {
            $base.identity()
        }
    };
}

pub mod aligned;
mod batch;
mod fault;
mod file;
mod mem;
mod overlay;
mod queue;
mod record;
mod topology;

pub use aligned::AlignedBuf;
pub use batch::Engine;
pub use fault::{Fault, FaultCounts, FaultDevice, FaultOp, FaultRule};
pub use file::{FileDevice, OpenOptions};
pub use mem::MemDevice;
pub use overlay::OverlayDevice;
pub use queue::{BATCH, Batch, PlainQueue, WriteQueue};
pub use record::{LogEntry, RecordDevice, WriteLog};
pub use topology::{Identity, Topology};

use crate::error::{Error, Result};
use std::fmt::Debug;
use std::io;
use std::sync::Arc;

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

    /// What the device says about itself: sectors, preferred I/O sizes, discard. All zero: nothing known.
    fn topology(&self) -> Topology {
        Topology::default()
    }

    /// Which device or file this is, for "is it in use?"; `None` for devices that exist in this process only.
    fn identity(&self) -> Option<Identity> {
        None
    }

    /// Writes are refused?
    fn is_read_only(&self) -> bool {
        false
    }

    /// Fills `buf` from `offset` or fails.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; reading past the end is an error too.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Writes all of `buf` at `offset` or fails (then any part may have been written).
    ///
    /// # Errors
    /// [`crate::Error::Io`]; writing past the end is an error too.
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()>;

    /// [`BlockDevice::write_at`] that is durable when it returns. Says nothing about earlier writes.
    ///
    /// # Errors
    /// As [`BlockDevice::write_at`] and [`BlockDevice::flush`].
    fn write_fua(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.write_at(offset, buf)?;
        self.flush()
    }

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
        first_error(requests.iter_mut().map(|r| self.read_at(r.offset, r.buf)))
    }

    /// Many writes at once, in any order (so they must not overlap); the first error is returned after all have
    /// ended.
    ///
    /// # Errors
    /// As [`BlockDevice::write_at`].
    fn write_batch(&self, requests: &[WriteRequest<'_>]) -> Result<()> {
        first_error(requests.iter().map(|r| self.write_at(r.offset, r.buf)))
    }

    /// A way to have writes under way while others are made; `None` where [`BlockDevice::write_at`] is the only one.
    fn write_queue(&self) -> Option<Box<dyn WriteQueue + '_>> {
        None
    }

    /// Does it read as zeroes wherever nothing was written since it was opened?
    fn is_blank(&self) -> bool {
        false
    }
}

/// Runs every step, then answers with the first error.
fn first_error(results: impl Iterator<Item = Result<()>>) -> Result<()> {
    let mut outcome = Ok(());
    for result in results {
        outcome = outcome.and(result);
    }
    outcome
}

/// Refuses ranges that do not lie on a device of `size` bytes.
fn check_range(op: &'static str, offset: u64, len: u64, size: u64) -> Result<()> {
    if offset.checked_add(len).is_some_and(|end| end <= size) {
        return Ok(());
    }
    let what = format!("range ends past the device's end at byte {size}");
    Err(Error::io(
        op,
        offset,
        len,
        io::Error::new(io::ErrorKind::UnexpectedEof, what),
    ))
}

/// The parts of a range, cut at multiples of `granule`: where the granule begins, first byte in it, first byte in the
/// range, length.
fn granules(offset: u64, len: usize, granule: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0usize;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let at = offset + done as u64;
        let skip = (at % granule as u64) as usize;
        let n = (granule - skip).min(len - done);
        let part = (at - skip as u64, skip, done, n);
        done += n;
        Some(part)
    })
}

macro_rules! forward {
    ($($wrapper:ty),*) => {$(
        impl<D: BlockDevice + ?Sized> BlockDevice for $wrapper {
            facts_of!(self, (**self));

            fn is_read_only(&self) -> bool {
                (**self).is_read_only()
            }
            fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
                (**self).read_at(offset, buf)
            }
            fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
                (**self).write_at(offset, buf)
            }
            fn write_fua(&self, offset: u64, buf: &[u8]) -> Result<()> {
                (**self).write_fua(offset, buf)
            }
            fn flush(&self) -> Result<()> {
                (**self).flush()
            }
            fn discard(&self, offset: u64, len: u64) -> Result<bool> {
                (**self).discard(offset, len)
            }
            fn read_batch(&self, requests: &mut [ReadRequest<'_>]) -> Result<()> {
                (**self).read_batch(requests)
            }
            fn write_batch(&self, requests: &[WriteRequest<'_>]) -> Result<()> {
                (**self).write_batch(requests)
            }
            fn write_queue(&self) -> Option<Box<dyn WriteQueue + '_>> {
                (**self).write_queue()
            }
            fn is_blank(&self) -> bool {
                (**self).is_blank()
            }
        }
    )*};
}

forward!(&D, Box<D>, Arc<D>);

#[cfg(test)]
mod tests;
