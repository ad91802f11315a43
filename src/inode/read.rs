//! File data on its way out: by extents from the write-behind cache or straight from the device; stuffed and journaled
//! data through the cache of metadata.
//!
//! Invariant: every byte of the answer is written, also where the file has holes or the device's sectors do not fit.

use super::engine::Locked;
use crate::error::FsResult;
use gfs2_format::device::{AlignedBuf, ReadRequest};
use gfs2_format::ondisk::DinodeFlags;
use gfs2_format::tree::{self, Mapping};
use gfs2_format::{Block, BlockAddr, BlockRead, Extent, FileBlock};

/// Where a run of bytes is.
#[derive(Clone, Debug)]
enum Place {
    Hole,
    /// From this byte of the device on.
    Device(u64),
    /// From this byte of a block on that is newer than the device.
    Memory(Block, usize),
}

/// A run of bytes of a file.
#[derive(Clone, Debug)]
struct Piece {
    len: usize,
    place: Place,
}

/// Fills `buf` from `offset`; gives the bytes there were before the end of the file.
pub(crate) fn read(locked: &Locked<'_>, offset: u64, buf: &mut [u8]) -> FsResult<usize> {
    let engine = locked.engine;
    let dinode = locked.dinode();
    let size = dinode.size.get();
    let len = usize::try_from(size.saturating_sub(offset))
        .unwrap_or(usize::MAX)
        .min(buf.len());
    if len == 0 {
        return Ok(0);
    }
    if dinode.height.get() == 0 {
        let bytes = tree::stuffed(locked.block(), locked.addr(), engine.geometry())?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = bytes.get(from..from.saturating_add(len)).unwrap_or_default();
        buf[..len].fill(0);
        buf[..part.len()].copy_from_slice(part);
        return Ok(len);
    }
    if dinode.flags().contains(DinodeFlags::JDATA) {
        read_logged(locked, offset, &mut buf[..len])?;
        return Ok(len);
    }
    let pieces = pieces(locked, offset, len)?;
    read_pieces(locked, &pieces, buf, len)?;
    Ok(len)
}

/// Maps a run of bytes; neighbours on the device become one piece.
fn pieces(locked: &Locked<'_>, offset: u64, len: usize) -> FsResult<Vec<Piece>> {
    let geometry = locked.engine.geometry();
    let bsize = u64::from(geometry.bsize());
    let end = offset.saturating_add(len as u64);
    let mut pieces: Vec<Piece> = Vec::new();
    let mut at = offset;
    while at < end {
        let first = at / bsize;
        let want = (end - 1) / bsize - first + 1;
        let (blocks, start) = match map(locked, first, want)? {
            Mapping::Data(extent) => (u64::from(extent.len), Some(extent.start)),
            Mapping::Hole { len } => (len, None),
            // Not with a height; an inode without one was answered before.
            Mapping::Stuffed => (want, None),
        };
        let upto = first.saturating_add(blocks.max(1)).saturating_mul(bsize).min(end);
        let len = usize::try_from(upto - at).unwrap_or(usize::MAX);
        match start {
            None => push(&mut pieces, len, Place::Hole),
            Some(start) => {
                let len_blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
                let extent = Extent {
                    start,
                    len: len_blocks,
                };
                split(locked, extent, (at % bsize) as usize, len, &mut pieces);
            }
        }
        at = upto;
    }
    Ok(pieces)
}

/// Adds the pieces of `len` bytes that begin at byte `skip` of an extent.
fn split(locked: &Locked<'_>, extent: Extent, skip: usize, len: usize, pieces: &mut Vec<Piece>) {
    let geometry = locked.engine.geometry();
    let bsize = geometry.block_len();
    let base = geometry.byte_offset(extent.start);
    let newer = locked
        .engine
        .cache
        .data()
        .range(locked.guard().glock().name(), extent);
    // Bytes from the extent's beginning.
    let (mut at, end) = (skip, skip + len);
    for (addr, block) in newer {
        let start = usize::try_from(addr.get() - extent.start.get()).unwrap_or(usize::MAX) * bsize;
        let (from, upto) = (start.max(at), (start + bsize).min(end));
        if from >= upto {
            continue;
        }
        if at < from {
            push(pieces, from - at, Place::Device(base + at as u64));
        }
        push(pieces, upto - from, Place::Memory(block, from - start));
        at = upto;
    }
    if at < end {
        push(pieces, end - at, Place::Device(base + at as u64));
    }
}

/// Adds a piece; neighbours on the device become one.
fn push(pieces: &mut Vec<Piece>, len: usize, place: Place) {
    if let Some(last) = pieces.last_mut() {
        let joins = match (&last.place, &place) {
            (Place::Hole, Place::Hole) => true,
            (Place::Device(before), Place::Device(at)) => before + last.len as u64 == *at,
            _ => false,
        };
        if joins {
            last.len += len;
            return;
        }
    }
    pieces.push(Piece { len, place });
}

pub(super) fn map(locked: &Locked<'_>, lblock: u64, want: u64) -> FsResult<Mapping> {
    let lblock = FileBlock::new(lblock);
    Ok(tree::map(
        &locked.reader(),
        locked.addr(),
        locked.block(),
        lblock,
        want,
    )?)
}

/// Reads pieces into `buf[..len]`; what lies behind in `buf` may be used to read whole sectors.
fn read_pieces(locked: &Locked<'_>, pieces: &[Piece], buf: &mut [u8], len: usize) -> FsResult<()> {
    let device = &locked.engine.device;
    let sector = u64::from(device.sector_size());
    let mut requests: Vec<ReadRequest<'_>> = Vec::with_capacity(pieces.len());
    let mut unaligned: Vec<(usize, usize, u64)> = Vec::new();
    // The last piece may be read up to the end of its sector when there is room for it.
    let spare = buf.len() - len;
    let mut rest = &mut *buf;
    let mut done = 0;
    for (index, piece) in pieces.iter().enumerate() {
        let room = piece.len + if index + 1 == pieces.len() { spare } else { 0 };
        let (part, after) = rest.split_at_mut(room);
        rest = after;
        match &piece.place {
            Place::Hole => part[..piece.len].fill(0),
            Place::Memory(block, skip) => {
                part[..piece.len].copy_from_slice(&block[*skip..*skip + piece.len]);
            }
            Place::Device(at) => {
                let at = *at;
                let whole = piece.len.next_multiple_of(sector as usize);
                if at % sector == 0 && whole <= part.len() {
                    let (part, _) = part.split_at_mut(whole);
                    requests.push(ReadRequest {
                        offset: at,
                        buf: part,
                    });
                } else {
                    unaligned.push((done, piece.len, at));
                }
            }
        }
        done += piece.len;
    }
    if !requests.is_empty() {
        device.read_batch(&mut requests)?;
    }
    drop(requests);
    for (start, len, at) in unaligned {
        let from = at - at % sector;
        let skip = (at - from) as usize;
        let mut sectors = AlignedBuf::zeroed((skip + len).next_multiple_of(sector as usize));
        device.read_at(from, &mut sectors)?;
        buf[start..start + len].copy_from_slice(&sectors[skip..skip + len]);
    }
    Ok(())
}

/// Reads journaled data: its newest contents may be in the log only.
fn read_logged(locked: &Locked<'_>, offset: u64, buf: &mut [u8]) -> FsResult<()> {
    let bsize = locked.engine.geometry().block_len();
    let reader = locked.reader();
    let mut at = offset;
    let mut rest = buf;
    while !rest.is_empty() {
        let (lblock, skip) = (at / bsize as u64, (at % bsize as u64) as usize);
        let want = (rest.len() + skip).div_ceil(bsize) as u64;
        let (blocks, start) = match map(locked, lblock, want)? {
            Mapping::Data(extent) => (u64::from(extent.len), Some(extent)),
            Mapping::Hole { len } => (len.min(want), None),
            Mapping::Stuffed => (want, None),
        };
        let addresses: Vec<BlockAddr> = start.map(|e| e.blocks().collect()).unwrap_or_default();
        reader.read_ahead(&addresses);
        for n in 0..blocks {
            let skip = if n == 0 { skip } else { 0 };
            let len = (bsize - skip).min(rest.len());
            let (part, after) = rest.split_at_mut(len);
            rest = after;
            match addresses.get(n as usize) {
                Some(addr) => part.copy_from_slice(&reader.read(*addr)?[skip..skip + len]),
                None => part.fill(0),
            }
            at += len as u64;
        }
    }
    Ok(())
}
