//! Mapping logical blocks, and finding data and holes.

use super::path::{Metapath, Root, coverage, read_indirect};
use super::ptrs::{ptr_offset, ptrs};
use crate::addr::{BlockAddr, Extent, FileBlock};
use crate::edit::{Block, BlockRead};
use crate::error::Result;
use crate::geometry::{Geometry, MAX_HEIGHT};
use crate::ondisk::Dinode;
use zerocopy::big_endian::U64;

/// What stands at a logical block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// The inode has no tree: its bytes stand in the dinode's block.
    Stuffed,
    /// Allocated blocks; never more than asked for, never past one bottom pointer block.
    Data(Extent),
    /// No blocks; unit: filesystem blocks, never more than asked for. Spans missing subtrees.
    Hole {
        /// Length, at least 1.
        len: u64,
    },
}

/// Maps up to `max_len` (at least 1) logical blocks from `lblock` on. `dinode` are the bytes of block `addr`.
///
/// # Errors
/// I/O errors; [`crate::Error::Corrupt`] for a bad dinode, indirect block or pointer.
pub fn map<R: BlockRead + ?Sized>(
    reader: &R,
    addr: BlockAddr,
    dinode: &[u8],
    lblock: FileBlock,
    max_len: u64,
) -> Result<Mapping> {
    let geometry = reader.geometry();
    let max_len = max_len.max(1);
    let height = Dinode::decode(dinode, addr, geometry)?.height.get();
    if height == 0 {
        return Ok(Mapping::Stuffed);
    }
    let Some(path) = Metapath::of(geometry, lblock, height) else {
        return Ok(Mapping::Hole { len: max_len });
    };
    let mut ancestors = [addr; MAX_HEIGHT];
    let mut here = addr;
    let mut child: Option<Block> = None;
    for (level, index) in (0..height).zip(path.indexes()) {
        let array = match &child {
            None => ptrs(dinode, ptr_offset(0), here)?,
            Some(block) => ptrs(block, ptr_offset(level), here)?,
        };
        let rest = array.get(usize::from(*index)..).unwrap_or_default();
        let below = height.saturating_sub(level).saturating_sub(1);
        let structure = if level == 0 { "dinode" } else { "indirect block" };
        let raw = rest.first().map_or(0, |p| p.get());
        let Some(next) = geometry.check_pointer(raw, here, structure, "pointer")? else {
            let len = hole_len(geometry, rest, below, lblock.get());
            return Ok(Mapping::Hole {
                len: len.min(max_len),
            });
        };
        if below == 0 {
            let len = run_len(rest, next, max_len);
            // The run's far end must lie on the device as well as its start.
            let last = next.get().saturating_add(u64::from(len) - 1);
            geometry.check_address(last, here, structure, "pointer")?;
            return Ok(Mapping::Data(Extent { start: next, len }));
        }
        let way = ancestors.get(..usize::from(level)).unwrap_or_default();
        let bytes = read_indirect(reader, next, here, way)?;
        if let Some(slot) = ancestors.get_mut(usize::from(level)) {
            *slot = here;
        }
        child = Some(bytes);
        here = next;
    }
    Ok(Mapping::Hole { len: 1 })
}

/// Length of the hole at the first of these pointers, which is 0.
fn hole_len(geometry: &Geometry, rest: &[U64], below: u16, lblock: u64) -> u64 {
    let span = coverage(geometry, below).max(1);
    let empty = rest.iter().take_while(|p| p.get() == 0).count() as u64;
    let behind = lblock % span;
    span.saturating_mul(empty).saturating_sub(behind).max(1)
}

/// Length of the contiguous run that the first of these pointers starts.
pub(super) fn run_len(rest: &[U64], start: BlockAddr, max_len: u64) -> u32 {
    let most = usize::try_from(max_len).unwrap_or(usize::MAX);
    let run = rest
        .iter()
        .take(most)
        .zip(start.get()..)
        .take_while(|(p, want)| p.get() == *want);
    // A block holds fewer than 2^16 pointers.
    (run.count() as u32).max(1)
}

/// The first allocated logical block in `from..end` (SEEK_DATA); a stuffed inode has its data at block 0.
///
/// # Errors
/// As [`map`].
pub fn next_data<R: BlockRead + ?Sized>(
    reader: &R,
    addr: BlockAddr,
    dinode: &[u8],
    from: FileBlock,
    end: FileBlock,
) -> Result<Option<FileBlock>> {
    let di = Dinode::decode(dinode, addr, reader.geometry())?;
    let end = end.get();
    if di.height.get() == 0 {
        return Ok((from.get() == 0 && end > 0).then_some(from));
    }
    let root = Root::new(di, addr, reader.geometry());
    let block = Block::from(dinode);
    let (mut pos, mut visits) = (from.get(), 0);
    let bottom = root.height.saturating_sub(1);
    while let Some(found) = root.find(reader, &block, bottom, pos, end, &mut visits)? {
        let start = found.index_of(pos);
        let array = found.ptrs()?;
        if let Some(n) = array.iter().skip(start).position(|p| p.get() != 0) {
            let at = found.start_of(start.saturating_add(n));
            return Ok((at < end).then_some(FileBlock::new(at)));
        }
        pos = found.end()?;
    }
    Ok(None)
}

/// The first logical block of `from..end` that is not allocated (SEEK_HOLE).
///
/// # Errors
/// As [`map`].
pub fn next_hole<R: BlockRead + ?Sized>(
    reader: &R,
    addr: BlockAddr,
    dinode: &[u8],
    from: FileBlock,
    end: FileBlock,
) -> Result<Option<FileBlock>> {
    let di = Dinode::decode(dinode, addr, reader.geometry())?;
    let end = end.get();
    let at = |pos: u64| Ok((pos < end).then_some(FileBlock::new(pos)));
    if di.height.get() == 0 {
        return at(from.get().max(1));
    }
    let root = Root::new(di, addr, reader.geometry());
    let block = Block::from(dinode);
    let (mut pos, mut visits) = (from.get(), 0);
    let bottom = root.height.saturating_sub(1);
    while let Some(found) = root.find(reader, &block, bottom, pos, end, &mut visits)? {
        if found.first > pos {
            break;
        }
        let start = found.index_of(pos);
        let array = found.ptrs()?;
        if let Some(n) = array.iter().skip(start).position(|p| p.get() == 0) {
            return at(found.start_of(start.saturating_add(n)));
        }
        pos = found.end()?;
    }
    at(pos)
}
