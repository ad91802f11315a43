//! Byte buffers at page-aligned addresses, as direct I/O wants them, and a small pool of them.
//!
//! Invariants: a buffer's address is a multiple of [`ALIGNMENT`]; the pool never holds more than it was told.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Every buffer's address is a multiple of this many bytes: enough for direct I/O on any device.
pub const ALIGNMENT: usize = 4096;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; ALIGNMENT]);

const _: () = assert!(align_of::<Page>() == ALIGNMENT && size_of::<Page>() == ALIGNMENT);

/// A byte buffer at a page-aligned address.
#[derive(Clone)]
pub struct AlignedBuf {
    pages: Vec<Page>,
    len: usize,
}

impl AlignedBuf {
    /// `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let pages = vec![Page([0; ALIGNMENT]); len.div_ceil(ALIGNMENT)];
        Self { pages, len }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bytes at all?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Changes the length; new bytes are zero, bytes that come back after a shrink are as they were left.
    pub fn resize(&mut self, len: usize) {
        let pages = len.div_ceil(ALIGNMENT);
        if pages > self.pages.len() {
            self.pages.resize(pages, Page([0; ALIGNMENT]));
        }
        self.len = len;
    }
}

impl From<&[u8]> for AlignedBuf {
    fn from(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.pages.as_bytes().get(..self.len).unwrap_or_default()
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.pages.as_mut_bytes().get_mut(..self.len).unwrap_or_default()
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf").field("len", &self.len).finish()
    }
}

/// Is `buf` usable for direct I/O with an address alignment of `alignment` bytes (a power of two)?
#[must_use]
pub fn is_aligned(buf: &[u8], alignment: usize) -> bool {
    buf.as_ptr().addr() & alignment.saturating_sub(1) == 0
}

/// Keeps up to `capacity` returned buffers for reuse; more are freed.
#[derive(Debug)]
pub(crate) struct Pool {
    buffers: Mutex<Vec<AlignedBuf>>,
    capacity: usize,
}

impl Pool {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            buffers: Mutex::new(Vec::new()),
            capacity,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<AlignedBuf>> {
        // A buffer list is whole at every moment, whoever panicked while holding it.
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer of `len` bytes with arbitrary contents.
    pub(crate) fn take(&self, len: usize) -> AlignedBuf {
        let mut buf = self.lock().pop().unwrap_or_else(|| AlignedBuf::zeroed(len));
        buf.resize(len);
        buf
    }

    pub(crate) fn put(&self, buf: AlignedBuf) {
        let mut buffers = self.lock();
        if buffers.len() < self.capacity {
            buffers.push(buf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_page_aligned_and_zero() {
        for len in [0, 1, 511, 4096, 4097, 1 << 20] {
            let buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.len(), len);
            assert_eq!(buf.is_empty(), len == 0);
            assert!(is_aligned(&buf, ALIGNMENT));
            assert!(buf.iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn resize_keeps_bytes() {
        let mut buf = AlignedBuf::from(&b"abc"[..]);
        buf.resize(8192);
        assert_eq!(&buf[..4], b"abc\0");
        buf[8191] = 7;
        buf.resize(2);
        assert_eq!(&*buf, b"ab");
    }

    #[test]
    fn the_pool_is_bounded_and_reuses() {
        let pool = Pool::new(1);
        let (a, b) = (pool.take(10), pool.take(20));
        pool.put(a);
        pool.put(b);
        assert_eq!(pool.lock().len(), 1);
        assert_eq!(pool.take(5000).len(), 5000);
        assert_eq!(pool.lock().len(), 0);
    }
}
