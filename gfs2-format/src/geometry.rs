//! All that follows from the block size, and the only gate from a raw pointer to a [`BlockAddr`].
//!
//! Formulas: FORMAT.md section 2. Invariant: a `Geometry` exists only for a legal block size.

use crate::addr::{BlockAddr, FileBlock};
use crate::error::{Error, Expected, Result};
use crate::ondisk::{DINODE_SIZE, LEAF_SIZE, LOG_DESCRIPTOR_SIZE, META_HEADER_SIZE, RGRP_SIZE};

/// Smallest block size in bytes.
pub const MIN_BLOCK_SIZE: u32 = 512;
/// Largest block size in bytes the format allows.
pub const MAX_BLOCK_SIZE: u32 = 65536;
/// Array bound of any metapath.
pub const MAX_HEIGHT: usize = 10;
/// Largest depth of a directory's hash table.
pub const MAX_DIR_DEPTH: u16 = 17;
/// Byte offset of the superblock, whatever the block size.
pub const SUPERBLOCK_OFFSET: u64 = 65536;

/// Sizes derived from the block size, and the volume's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    shift: u32,
    end: u64,
    heightsize: [u64; MAX_HEIGHT + 1],
    max_height: u16,
}

impl Geometry {
    /// For blocks of `bsize` bytes on a device of `blocks` whole blocks.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when `bsize` is no power of two in 512..=65536.
    pub fn new(bsize: u32, blocks: u64) -> Result<Self> {
        if !bsize.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&bsize) {
            return Err(Error::Unsupported {
                what: "block size",
                found: u64::from(bsize),
                supported: "a power of two from 512 to 65536",
            });
        }
        let shift = bsize.trailing_zeros();
        let mut heightsize = [u64::MAX; MAX_HEIGHT + 1];
        let bs = u64::from(bsize);
        let inptrs = (bs - META_HEADER_SIZE as u64) / 8;
        let mut max_height = MAX_HEIGHT as u16;
        let mut size = bs * ((bs - DINODE_SIZE as u64) / 8);
        for (height, slot) in heightsize.iter_mut().enumerate() {
            if height == 0 {
                *slot = bs - DINODE_SIZE as u64;
                continue;
            }
            if height > 1 {
                match size.checked_mul(inptrs) {
                    Some(next) => size = next,
                    None => {
                        // The first height that overflows 64 bits is the largest; it holds any file.
                        max_height = height as u16;
                        break;
                    }
                }
            }
            *slot = size;
        }
        Ok(Self {
            shift,
            end: blocks,
            heightsize,
            max_height,
        })
    }

    /// Block size in bytes.
    #[must_use]
    pub const fn bsize(&self) -> u32 {
        1 << self.shift
    }

    /// Block size as a length.
    #[must_use]
    pub const fn block_len(&self) -> usize {
        1 << self.shift
    }

    /// log2 of the block size.
    #[must_use]
    pub const fn bsize_shift(&self) -> u32 {
        self.shift
    }

    /// First block number past the device.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// The superblock's block.
    #[must_use]
    pub const fn superblock(&self) -> BlockAddr {
        BlockAddr::superblock(self.shift)
    }

    /// Byte offset of a block.
    #[must_use]
    pub const fn byte_offset(&self, addr: BlockAddr) -> u64 {
        addr.get() << self.shift
    }

    /// Pointers in a dinode.
    #[must_use]
    pub const fn diptrs(&self) -> u64 {
        (self.bsize() as u64 - DINODE_SIZE as u64) / 8
    }

    /// Pointers in an indirect block; also revokes in a log continuation block.
    #[must_use]
    pub const fn inptrs(&self) -> u64 {
        (self.bsize() as u64 - META_HEADER_SIZE as u64) / 8
    }

    /// Metadata tags (or first revokes) in a log descriptor.
    #[must_use]
    pub const fn ldptrs(&self) -> u64 {
        (self.bsize() as u64 - LOG_DESCRIPTOR_SIZE as u64) / 8
    }

    /// Payload of a block with a meta header: hash blocks, EA values, quota changes.
    #[must_use]
    pub const fn jbsize(&self) -> u64 {
        self.bsize() as u64 - META_HEADER_SIZE as u64
    }

    /// Largest stuffed size in bytes.
    #[must_use]
    pub const fn max_stuffed(&self) -> u64 {
        self.bsize() as u64 - DINODE_SIZE as u64
    }

    /// Depth of a freshly hashed directory.
    #[must_use]
    pub const fn initial_dir_depth(&self) -> u16 {
        (self.shift - 4) as u16
    }

    /// Bytes for dirents in a leaf.
    #[must_use]
    pub const fn leaf_area(&self) -> usize {
        self.block_len() - LEAF_SIZE
    }

    /// Bitmap bytes in a resource group's header block.
    #[must_use]
    pub const fn rg_bitmap_len(&self) -> usize {
        self.block_len() - RGRP_SIZE
    }

    /// Bitmap bytes in each further bitmap block.
    #[must_use]
    pub const fn rb_bitmap_len(&self) -> usize {
        self.block_len() - META_HEADER_SIZE
    }

    /// Blocks mappable by `k` header/bitmap blocks (FORMAT.md section 2, `cap(k)`).
    #[must_use]
    pub const fn bitmap_capacity(&self, k: u64) -> u64 {
        if k == 0 {
            0
        } else {
            4 * (self.rg_bitmap_len() as u64) + (k - 1) * 4 * (self.rb_bitmap_len() as u64)
        }
    }

    /// Largest legal `di_height`.
    #[must_use]
    pub const fn max_height(&self) -> u16 {
        self.max_height
    }

    /// Bytes a tree of `height` can map (`u64::MAX` from the largest height on).
    #[must_use]
    pub fn height_size(&self, height: u16) -> u64 {
        self.heightsize
            .get(usize::from(height))
            .copied()
            .unwrap_or(u64::MAX)
    }

    /// Smallest height, at least `current` and 1, whose tree can map logical block `lblock` of a file.
    #[must_use]
    pub fn height_for(&self, lblock: FileBlock, current: u16) -> u16 {
        let mut height = current.max(1);
        let need = lblock
            .get()
            .saturating_add(1)
            .saturating_mul(u64::from(self.bsize()));
        while height < self.max_height && self.height_size(height) < need {
            height += 1;
        }
        height
    }

    /// The gate for pointers read from disk: 0 is a hole, anything outside the volume's blocks is corrupt.
    ///
    /// # Errors
    /// [`Error::Corrupt`] naming `structure.field` of `block`.
    pub fn check_pointer(
        &self,
        raw: u64,
        block: BlockAddr,
        structure: &'static str,
        field: &'static str,
    ) -> Result<Option<BlockAddr>> {
        if raw == 0 {
            return Ok(None);
        }
        let first = self.superblock().get() + 1;
        if raw < first || raw >= self.end {
            let expected = Expected::Range(first, self.end.saturating_sub(1));
            return Err(Error::corrupt(block, structure, field, raw, expected));
        }
        Ok(Some(BlockAddr::new(raw)))
    }

    /// [`Geometry::check_pointer`] where a hole is a lie too.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn check_address(
        &self,
        raw: u64,
        block: BlockAddr,
        structure: &'static str,
        field: &'static str,
    ) -> Result<BlockAddr> {
        self.check_pointer(raw, block, structure, field)?.ok_or_else(|| {
            let first = self.superblock().get() + 1;
            let expected = Expected::Range(first, self.end.saturating_sub(1));
            Error::corrupt(block, structure, field, raw, expected)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_the_format_sheet() {
        let rows = [
            (512, 35, 61, 55, 280, 5, 10),
            (1024, 99, 125, 119, 792, 6, 8),
            (2048, 227, 253, 247, 1816, 7, 7),
            (4096, 483, 509, 503, 3864, 8, 6),
            (65536, 8163, 8189, 8183, 65304, 12, 4),
        ];
        for (bs, diptrs, inptrs, ldptrs, stuffed, depth, height) in rows {
            let g = Geometry::new(bs, 1 << 40).unwrap();
            assert_eq!(
                (g.diptrs(), g.inptrs(), g.ldptrs()),
                (diptrs, inptrs, ldptrs),
                "bs {bs}"
            );
            assert_eq!(
                (g.max_stuffed(), g.initial_dir_depth()),
                (stuffed, depth),
                "bs {bs}"
            );
            assert_eq!(g.max_height(), height, "bs {bs}");
        }
    }

    #[test]
    fn height_sizes_of_4k_and_1k() {
        let g = Geometry::new(4096, 0).unwrap();
        let sizes: Vec<u64> = (0..=6).map(|h| g.height_size(h)).collect();
        let want = [
            3864,
            1978368,
            1006989312,
            512557559808,
            260891797942272,
            132793925152616448,
            u64::MAX,
        ];
        assert_eq!(sizes, want);
        let g = Geometry::new(1024, 0).unwrap();
        assert_eq!(g.height_size(4), 198000000000);
        assert_eq!(g.height_size(5), 24750000000000);
        assert_eq!(g.height_size(8), u64::MAX);
    }

    #[test]
    fn heights_grow_with_the_highest_block() {
        let g = Geometry::new(4096, 0).unwrap();
        assert_eq!(g.height_for(FileBlock::new(482), 0), 1);
        assert_eq!(g.height_for(FileBlock::new(483), 0), 2);
        assert_eq!(g.height_for(FileBlock::new(0), 3), 3);
        assert_eq!(g.height_for(FileBlock::new(u64::MAX), 0), 6);
    }

    #[test]
    fn pointers_outside_the_volume_are_refused() {
        let g = Geometry::new(4096, 100).unwrap();
        let at = BlockAddr::new(20);
        assert_eq!(g.check_pointer(0, at, "dinode", "di_ptr").unwrap(), None);
        assert_eq!(
            g.check_pointer(17, at, "dinode", "di_ptr").unwrap(),
            Some(BlockAddr::new(17))
        );
        for bad in [1, 16, 100, u64::MAX] {
            assert!(g.check_pointer(bad, at, "dinode", "di_ptr").is_err(), "{bad}");
        }
        assert!(g.check_address(0, at, "dinode", "di_ptr").is_err());
    }

    #[test]
    fn block_sizes_out_of_range_are_unsupported() {
        for bs in [0, 1, 256, 513, 131072] {
            assert!(Geometry::new(bs, 1).is_err(), "{bs}");
        }
    }
}
