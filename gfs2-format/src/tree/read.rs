//! Reading the bytes of system files through the tree.

use super::map::{Mapping, map};
use super::ptrs::dinode_of;
use crate::addr::{BlockAddr, FileBlock};
use crate::edit::BlockRead;
use crate::error::{Error, Expected, Result};
use crate::geometry::Geometry;
use crate::ondisk::{DINODE_SIZE, Dinode};

/// The stuffed bytes of a dinode block: `di_size` of them.
///
/// # Errors
/// [`crate::Error::Corrupt`] for a bad dinode and for one that is not stuffed.
pub fn stuffed<'a>(dinode: &'a [u8], addr: BlockAddr, geometry: &Geometry) -> Result<&'a [u8]> {
    let di = Dinode::decode(dinode, addr, geometry)?;
    if di.height.get() != 0 {
        let found = u64::from(di.height.get());
        return Err(Error::corrupt(
            addr,
            "dinode",
            "di_height",
            found,
            Expected::Value(0),
        ));
    }
    // `decode` has bounded the size of a stuffed inode.
    let size = di.size.get() as usize;
    dinode
        .get(DINODE_SIZE..DINODE_SIZE.saturating_add(size))
        .ok_or_else(|| {
            let expected = Expected::Range(0, geometry.max_stuffed());
            Error::corrupt(addr, "dinode", "di_size", size as u64, expected)
        })
}

/// Reads file bytes through [`BlockRead`] (system files, whose data is metadata to everybody: rindex, statfs,
/// quota); stuffed or not, holes read as zeroes. Returns how many bytes there were before the end of the file.
///
/// # Errors
/// As [`map`].
pub fn read_bytes<R: BlockRead + ?Sized>(
    reader: &R,
    addr: BlockAddr,
    offset: u64,
    buf: &mut [u8],
) -> Result<usize> {
    let geometry = reader.geometry();
    let di = dinode_of(reader, addr)?;
    let left = di.size.get().saturating_sub(offset);
    let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
    let mut rest = buf.get_mut(..len).unwrap_or_default();
    let mut at = offset;
    let dinode = reader.read(addr)?;
    while !rest.is_empty() {
        let lblock = FileBlock::new(at >> geometry.bsize_shift());
        let within = (at & u64::from(geometry.bsize() - 1)) as usize;
        let (source, from) = match map(reader, addr, &dinode, lblock, 1)? {
            Mapping::Stuffed => (
                Some(reader.read(addr)?),
                (at as usize).saturating_add(DINODE_SIZE),
            ),
            Mapping::Data(extent) => (Some(reader.read(extent.start)?), within),
            Mapping::Hole { .. } => (None, within),
        };
        // A stuffed file has at most one block's bytes, so one round ends the loop.
        let room = geometry.block_len().saturating_sub(from).min(rest.len());
        let (now, later) = rest.split_at_mut_checked(room).unwrap_or_default();
        if now.is_empty() {
            break;
        }
        match source
            .as_ref()
            .and_then(|bytes| bytes.get(from..from.saturating_add(room)))
        {
            Some(bytes) => now.copy_from_slice(bytes),
            None => now.fill(0),
        }
        at = at.saturating_add(room as u64);
        rest = later;
    }
    Ok(len)
}
