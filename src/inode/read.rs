//! File data on its way out: by extents straight from the device; stuffed and journaled data through the cache.
//!
//! Invariant: every byte of the answer is written, also where the file has holes or the device's sectors do not fit.

use super::engine::Locked;
use crate::error::FsResult;
use gfs2_format::device::{AlignedBuf, ReadRequest};
use gfs2_format::ondisk::DinodeFlags;
use gfs2_format::tree::{self, Mapping};
use gfs2_format::{BlockAddr, BlockRead, FileBlock};

/// A run of bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    len: usize,
    /// Byte offset on the device; `None`: a hole.
    at: Option<u64>,
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
        let piece = Piece {
            len: usize::try_from(upto - at).unwrap_or(usize::MAX),
            at: start.map(|start| geometry.byte_offset(start) + at % bsize),
        };
        match pieces.last_mut() {
            Some(last) if joins(last, &piece) => last.len += piece.len,
            _ => pieces.push(piece),
        }
        at = upto;
    }
    Ok(pieces)
}

fn joins(last: &Piece, next: &Piece) -> bool {
    match (last.at, next.at) {
        (Some(a), Some(b)) => a + last.len as u64 == b,
        (None, None) => true,
        _ => false,
    }
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
        match piece.at {
            None => part[..piece.len].fill(0),
            Some(at) => {
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
