//! Metapath arithmetic, and finding pointer blocks by level and position.

use super::ptrs::{most_blocks, ptr_offset, ptrs};
use crate::addr::{BlockAddr, FileBlock};
use crate::edit::{Block, BlockRead};
use crate::error::{Error, Expected, Result};
use crate::geometry::{Geometry, MAX_HEIGHT};
use crate::ondisk::{Dinode, MetaHeader, MetaType};
use zerocopy::big_endian::U64;

/// The pointer index to take at each level on the way to a logical block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metapath {
    index: [u16; MAX_HEIGHT],
    height: u16,
}

impl Metapath {
    /// In a tree of `height`; `None` for a stuffed inode and for a block such a tree does not reach.
    #[must_use]
    pub fn of(geometry: &Geometry, lblock: FileBlock, height: u16) -> Option<Self> {
        let mut index = [0; MAX_HEIGHT];
        let mut rest = lblock.get();
        let (root, lower) = index.get_mut(..usize::from(height))?.split_first_mut()?;
        for slot in lower.iter_mut().rev() {
            *slot = (rest % geometry.inptrs()) as u16;
            rest /= geometry.inptrs();
        }
        if rest >= geometry.diptrs() {
            return None;
        }
        *root = rest as u16;
        Some(Self { index, height })
    }

    /// The indexes, the dinode's first.
    #[must_use]
    pub fn indexes(&self) -> &[u16] {
        self.index.get(..usize::from(self.height)).unwrap_or_default()
    }
}

/// Logical blocks under one pointer that has `below` levels of indirect blocks below it (saturating).
#[must_use]
pub fn coverage(geometry: &Geometry, below: u16) -> u64 {
    geometry.inptrs().saturating_pow(u32::from(below))
}

/// The root of a tree: what walks need of a decoded dinode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Root {
    pub(crate) addr: BlockAddr,
    pub(crate) height: u16,
    /// Most blocks the inode can own.
    pub(crate) most: u64,
}

/// A pointer block found, with what its pointers cover.
#[derive(Clone, Debug)]
pub(crate) struct PointerBlock {
    pub(crate) addr: BlockAddr,
    pub(crate) level: u16,
    bytes: Block,
    /// First logical block under its first pointer.
    pub(crate) first: u64,
    /// Logical blocks under each pointer.
    pub(crate) span: u64,
}

impl PointerBlock {
    pub(crate) fn ptrs(&self) -> Result<&[U64]> {
        ptrs(&self.bytes, ptr_offset(self.level), self.addr)
    }

    /// First logical block under the pointer.
    pub(crate) fn start_of(&self, index: usize) -> u64 {
        self.first.saturating_add(self.span.saturating_mul(index as u64))
    }

    /// Index of the pointer that covers the position (or the first one after it).
    pub(crate) fn index_of(&self, pos: u64) -> usize {
        let index = pos.saturating_sub(self.first) / self.span.max(1);
        usize::try_from(index).unwrap_or(usize::MAX)
    }

    /// First logical block after all its pointers.
    pub(crate) fn end(&self) -> Result<u64> {
        Ok(self.start_of(self.ptrs()?.len()))
    }

    /// What its pointers point at, for error texts.
    pub(crate) fn field(&self) -> (&'static str, &'static str) {
        if self.level == 0 {
            ("dinode", "pointer")
        } else {
            ("indirect block", "pointer")
        }
    }
}

/// Reads an indirect block that is no ancestor of itself.
pub(crate) fn read_indirect<R: BlockRead + ?Sized>(
    reader: &R,
    child: BlockAddr,
    parent: BlockAddr,
    ancestors: &[BlockAddr],
) -> Result<Block> {
    if child == parent || ancestors.contains(&child) {
        return Err(Error::corrupt(
            parent,
            "indirect block",
            "pointer",
            child.get(),
            Expected::Rule("no block of the way to itself"),
        ));
    }
    let block = reader.read(child)?;
    MetaHeader::check(&block, child, MetaType::In)?;
    Ok(block)
}

impl Root {
    pub(crate) fn new(dinode: &Dinode, addr: BlockAddr, geometry: &Geometry) -> Self {
        Self {
            addr,
            height: dinode.height.get(),
            most: most_blocks(dinode, geometry),
        }
    }

    /// Logical blocks the tree can map (saturating).
    pub(crate) fn capacity(&self, geometry: &Geometry) -> u64 {
        match self.height.checked_sub(1) {
            Some(below) => geometry.diptrs().saturating_mul(coverage(geometry, below)),
            None => 0,
        }
    }

    /// The first pointer block of `level` that covers a position in `pos..end`, missing subtrees skipped. Every
    /// way down ends at a block no other way of the same sweep ends at, so that `visits`, their number, cannot
    /// pass that of the inode's blocks by more than its height.
    pub(crate) fn find<R: BlockRead + ?Sized>(
        &self,
        reader: &R,
        dinode: &Block,
        level: u16,
        pos: u64,
        end: u64,
        visits: &mut u64,
    ) -> Result<Option<PointerBlock>> {
        let geometry = reader.geometry();
        let end = end.min(self.capacity(geometry));
        let mut pos = pos;
        while pos < end {
            *visits = visits.saturating_add(1);
            if *visits > self.most.saturating_add(MAX_HEIGHT as u64) {
                let expected = Expected::Range(*visits, geometry.end());
                return Err(Error::corrupt(
                    self.addr,
                    "dinode",
                    "di_blocks",
                    self.most,
                    expected,
                ));
            }
            match self.descend(reader, dinode, level, pos, end)? {
                Descent::Found(block) => return Ok(Some(block)),
                // Moves on by at least one pointer each time, past a pointer block whose rest is empty.
                Descent::Missing(next) => pos = next.max(pos.saturating_add(1)),
                Descent::End => break,
            }
        }
        Ok(None)
    }

    /// One way down to the first present block of `level` at or after `pos`.
    fn descend<R: BlockRead + ?Sized>(
        &self,
        reader: &R,
        dinode: &Block,
        level: u16,
        pos: u64,
        end: u64,
    ) -> Result<Descent> {
        let geometry = reader.geometry();
        let bottom = self.height.saturating_sub(1);
        let mut ancestors = [self.addr; MAX_HEIGHT];
        let mut here = PointerBlock {
            addr: self.addr,
            level: 0,
            bytes: dinode.clone(),
            first: 0,
            span: coverage(geometry, bottom),
        };
        let mut pos = pos;
        for depth in 0..level.min(bottom) {
            let array = here.ptrs()?;
            let start = here.index_of(pos);
            let present = array.iter().skip(start).position(|p| p.get() != 0);
            let Some(index) = present.map(|n| start.saturating_add(n)) else {
                return Ok(Descent::Missing(here.end()?));
            };
            let first = here.start_of(index);
            pos = pos.max(first);
            if pos >= end {
                return Ok(Descent::End);
            }
            let raw = array.get(index).map_or(0, |p| p.get());
            let (structure, field) = here.field();
            let child = geometry.check_address(raw, here.addr, structure, field)?;
            let way = ancestors.get(..usize::from(depth)).unwrap_or_default();
            let bytes = read_indirect(reader, child, here.addr, way)?;
            if let Some(slot) = ancestors.get_mut(usize::from(depth)) {
                *slot = here.addr;
            }
            let level = depth.saturating_add(1);
            here = PointerBlock {
                addr: child,
                level,
                bytes,
                first,
                span: coverage(geometry, bottom.saturating_sub(level)),
            };
        }
        Ok(Descent::Found(here))
    }
}

enum Descent {
    Found(PointerBlock),
    /// Nothing more under one pointer block: go on here.
    Missing(u64),
    End,
}
