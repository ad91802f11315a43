//! Pointer arrays in dinodes and indirect blocks, as slices.

use crate::addr::BlockAddr;
use crate::edit::{BlockEdit, BlockRead};
use crate::error::{Error, Expected, Result};
use crate::geometry::Geometry;
use crate::ondisk::{DINODE_SIZE, Dinode, META_HEADER_SIZE, MetaHeader, MetaType, view_mut};
use zerocopy::big_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

/// Byte where the pointers of a pointer block start: level 0 is the dinode.
pub(crate) const fn ptr_offset(level: u16) -> usize {
    if level == 0 { DINODE_SIZE } else { META_HEADER_SIZE }
}

/// The pointers from byte `offset` to the end of the block.
pub(crate) fn ptrs(bytes: &[u8], offset: usize, block: BlockAddr) -> Result<&[U64]> {
    bytes
        .get(offset..)
        .and_then(|rest| <[U64]>::ref_from_bytes(rest).ok())
        .ok_or_else(|| no_array(bytes.len(), block))
}

/// The pointers from byte `offset` to the end of the block, for change.
pub(crate) fn ptrs_mut(bytes: &mut [u8], offset: usize, block: BlockAddr) -> Result<&mut [U64]> {
    let len = bytes.len();
    bytes
        .get_mut(offset..)
        .and_then(|rest| <[U64]>::mut_from_bytes(rest).ok())
        .ok_or_else(|| no_array(len, block))
}

fn no_array(len: usize, block: BlockAddr) -> Error {
    let expected = Expected::Rule("a whole block");
    Error::corrupt(block, "meta_header", "length in bytes", len as u64, expected)
}

/// Stores one pointer; `index` is one this crate has computed from the block size.
pub(crate) fn put_ptr(
    bytes: &mut [u8],
    offset: usize,
    index: usize,
    value: BlockAddr,
    block: BlockAddr,
) -> Result<()> {
    let array = ptrs_mut(bytes, offset, block)?;
    let len = array.len() as u64;
    let slot = array.get_mut(index).ok_or_else(|| {
        let expected = Expected::Range(0, len.saturating_sub(1));
        Error::corrupt(block, "indirect block", "pointer index", index as u64, expected)
    })?;
    *slot = value.get().into();
    Ok(())
}

/// Reads and decodes a dinode; the copy is of the 232 bytes.
pub(crate) fn dinode_of<R: BlockRead + ?Sized>(reader: &R, addr: BlockAddr) -> Result<Dinode> {
    let block = reader.read(addr)?;
    Dinode::decode(&block, addr, reader.geometry()).copied()
}

/// Changes the dinode at `addr`, which the caller has decoded before.
pub(crate) fn edit_dinode<E: BlockEdit + ?Sized>(
    edit: &mut E,
    addr: BlockAddr,
    change: impl FnOnce(&mut Dinode),
) -> Result<()> {
    let bytes = edit.edit(addr)?;
    change(view_mut(bytes, 0, addr)?);
    Ok(())
}

/// Makes the zeroed bytes of a fresh block one of `kind`.
pub(crate) fn stamp(bytes: &mut [u8], kind: MetaType, block: BlockAddr) -> Result<()> {
    let header = MetaHeader::new(kind, crate::Jid::new(0));
    let len = bytes.len();
    match bytes.get_mut(..META_HEADER_SIZE) {
        Some(room) => {
            room.copy_from_slice(header.as_bytes());
            Ok(())
        }
        None => Err(no_array(len, block)),
    }
}

/// Zeroes the payload of a dinode's block.
pub(crate) fn clear_payload(bytes: &mut [u8]) {
    if let Some(payload) = bytes.get_mut(DINODE_SIZE..) {
        payload.fill(0);
    }
}

/// What this inode may own at most besides its dinode, for bounds of walks: `di_blocks`, but no more than the
/// volume has.
pub(crate) fn most_blocks(dinode: &Dinode, geometry: &Geometry) -> u64 {
    dinode.blocks.get().min(geometry.end())
}
