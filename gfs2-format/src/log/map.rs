//! Where a journal's blocks lie on the device, and the reader the head search and the replay are written against.
//!
//! Invariant: a [`JournalMap`] covers blocks 0 to `blocks()` without a hole and without overflow.

use super::ring::Ring;
use crate::addr::{BlockAddr, Extent, JournalBlock};
use crate::device::{BlockDevice, ReadRequest};
use crate::error::{Error, Expected, Result};
use crate::geometry::Geometry;

/// A run of journal blocks that lie one after the other on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    first: u32,
    extent: Extent,
}

/// The extents of a journal, in the order of its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalMap {
    ring: Ring,
    pieces: Vec<Piece>,
    /// The same extents by address, for [`JournalMap::contains`].
    by_addr: Vec<Extent>,
}

impl JournalMap {
    /// From the journal's extents in logical order; `None` for an empty journal, one of 2^32 blocks or more, or an
    /// extent that wraps.
    #[must_use]
    pub fn new(extents: impl IntoIterator<Item = Extent>) -> Option<Self> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut blocks = 0u32;
        for extent in extents.into_iter().filter(|e| e.len > 0) {
            extent.start.checked_add(u64::from(extent.len))?;
            let first = blocks;
            blocks = blocks.checked_add(extent.len)?;
            match pieces.last_mut() {
                Some(last)
                    if last.extent.start.checked_add(u64::from(last.extent.len)) == Some(extent.start) =>
                {
                    last.extent.len = last.extent.len.checked_add(extent.len)?;
                }
                _ => pieces.push(Piece { first, extent }),
            }
        }
        let mut by_addr: Vec<Extent> = pieces.iter().map(|p| p.extent).collect();
        by_addr.sort_unstable_by_key(|e| e.start);
        Some(Self {
            ring: Ring::new(blocks)?,
            pieces,
            by_addr,
        })
    }

    /// The ring of these blocks.
    #[must_use]
    pub const fn ring(&self) -> Ring {
        self.ring
    }

    /// The extents, neighbours joined.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.pieces.iter().map(|p| p.extent)
    }

    /// Where journal block `at` lies; `None` past the journal's end.
    #[must_use]
    pub fn address(&self, at: JournalBlock) -> Option<BlockAddr> {
        self.run(at, 1).map(|extent| extent.start)
    }

    /// The run from journal block `at` on that is contiguous on the device: at most `len` blocks, no wrapping.
    #[must_use]
    pub fn run(&self, at: JournalBlock, len: u32) -> Option<Extent> {
        let n = self.pieces.partition_point(|p| p.first <= at.get());
        let piece = self.pieces.get(n.checked_sub(1)?)?;
        let skip = at.get().checked_sub(piece.first)?;
        let left = piece.extent.len.checked_sub(skip).filter(|left| *left > 0)?;
        Some(Extent {
            start: piece.extent.start.checked_add(u64::from(skip))?,
            len: left.min(len),
        })
    }

    /// The device extents of `len` blocks from `at` on, around the ring's end (`len` is cut to one round).
    #[must_use]
    pub fn runs(&self, at: JournalBlock, len: u32) -> Vec<Extent> {
        let mut out = Vec::new();
        for (start, len) in self.ring.runs(at, len) {
            let (mut at, mut left) = (start, len);
            while left > 0 {
                let Some(extent) = self.run(at, left) else { break };
                left -= extent.len;
                at = self.ring.advance(at, extent.len);
                out.push(extent);
            }
        }
        out
    }

    /// Is `addr` one of the journal's own blocks?
    #[must_use]
    pub fn contains(&self, addr: BlockAddr) -> bool {
        let n = self.by_addr.partition_point(|e| e.start <= addr);
        n.checked_sub(1)
            .and_then(|n| self.by_addr.get(n))
            .is_some_and(|e| addr.get() - e.start.get() < u64::from(e.len))
    }
}

/// Reads journal blocks by their place in the ring.
pub trait JournalRead {
    /// The ring.
    fn ring(&self) -> Ring;

    /// The absolute block of a journal block, for error texts (block 0 when it has none).
    fn address(&self, at: JournalBlock) -> BlockAddr;

    /// Fills `buf`, a multiple of the block size, with the blocks from `at` on, around the ring's end.
    ///
    /// # Errors
    /// I/O errors; `at` outside the journal or more than one round.
    fn read(&self, at: JournalBlock, buf: &mut [u8]) -> Result<()>;
}

/// A journal on a block device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceJournal<'a> {
    device: &'a dyn BlockDevice,
    geometry: &'a Geometry,
    map: &'a JournalMap,
}

impl<'a> DeviceJournal<'a> {
    /// The journal that lies at `map` on `device`.
    #[must_use]
    pub const fn new(device: &'a dyn BlockDevice, geometry: &'a Geometry, map: &'a JournalMap) -> Self {
        Self {
            device,
            geometry,
            map,
        }
    }
}

impl JournalRead for DeviceJournal<'_> {
    fn ring(&self) -> Ring {
        self.map.ring()
    }

    fn address(&self, at: JournalBlock) -> BlockAddr {
        self.map.address(at).unwrap_or_default()
    }

    fn read(&self, at: JournalBlock, buf: &mut [u8]) -> Result<()> {
        let blocks = buf.len() / self.geometry.block_len();
        let count = u32::try_from(blocks)
            .ok()
            .filter(|n| *n <= self.ring().blocks() && self.ring().contains(at))
            .ok_or_else(|| {
                let last = u64::from(self.ring().blocks()) - 1;
                let found = u64::from(at.get());
                Error::corrupt(
                    self.address(at),
                    "journal",
                    "block",
                    found,
                    Expected::Range(0, last),
                )
            })?;
        let mut requests = Vec::new();
        let mut rest = buf;
        for extent in self.map.runs(at, count) {
            let len = (extent.len as usize).saturating_mul(self.geometry.block_len());
            let Some((part, tail)) = rest.split_at_mut_checked(len) else {
                break;
            };
            rest = tail;
            requests.push(ReadRequest {
                offset: self.geometry.byte_offset(extent.start),
                buf: part,
            });
        }
        self.device.read_batch(&mut requests)
    }
}
