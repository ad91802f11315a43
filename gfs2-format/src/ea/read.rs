//! Reading xattrs.

use super::chain::EaBlocks;
use super::record::Value;
use super::{EaName, Xattrs};
use crate::addr::{BlockAddr, Extent};
use crate::edit::BlockRead;
use crate::error::{Error, Expected, Result};
use crate::ondisk::{EaType, META_HEADER_SIZE, MetaHeader, MetaType};
use crate::walk::{Owned, Role};
use zerocopy::big_endian::U64;

impl Xattrs {
    /// The value of a name.
    ///
    /// # Errors
    /// I/O errors; [`crate::Error::Corrupt`].
    pub fn get<R: BlockRead + ?Sized>(
        &self,
        reader: &R,
        space: EaType,
        name: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        EaBlocks::open(reader, self.addr)?.each(reader, self.most_type(), |at, record| {
            if record.space != Some(space) || record.name != name {
                return Ok(None);
            }
            let len = record.header.data_len.get() as usize;
            match record.value {
                Value::Inline(bytes) => Ok(Some(bytes.to_vec())),
                Value::Blocks(pointers) => read_value(reader, at, pointers, len).map(Some),
            }
        })
    }

    /// The length of a name's value, without reading it.
    ///
    /// # Errors
    /// As [`Xattrs::get`].
    pub fn value_len<R: BlockRead + ?Sized>(
        &self,
        reader: &R,
        space: EaType,
        name: &[u8],
    ) -> Result<Option<u32>> {
        EaBlocks::open(reader, self.addr)?.each(reader, self.most_type(), |_, record| {
            let found = record.space == Some(space) && record.name == name;
            Ok(found.then(|| record.header.data_len.get()))
        })
    }

    /// Shows every name, in the order of the records.
    ///
    /// # Errors
    /// As [`Xattrs::get`].
    pub fn list<R: BlockRead + ?Sized>(&self, reader: &R, visit: &mut dyn FnMut(EaName<'_>)) -> Result<()> {
        EaBlocks::open(reader, self.addr)?.each(reader, self.most_type(), |_, record| {
            if let Some(space) = record.space {
                visit(EaName {
                    space,
                    name: record.name,
                    value_len: record.header.data_len.get(),
                });
            }
            Ok(None::<()>)
        })?;
        Ok(())
    }
}

/// Puts a value together from its blocks; `len` has been checked against their number, which is at most 255.
fn read_value<R: BlockRead + ?Sized>(
    reader: &R,
    at: BlockAddr,
    pointers: &[U64],
    len: usize,
) -> Result<Vec<u8>> {
    let mut value = Vec::with_capacity(len);
    for raw in pointers {
        let left = len.saturating_sub(value.len());
        if left == 0 {
            break;
        }
        let block = reader
            .geometry()
            .check_address(raw.get(), at, "ea_header", "value pointer")?;
        let bytes = reader.read(block)?;
        MetaHeader::check(&bytes, block, MetaType::Ed)?;
        let payload = bytes.get(META_HEADER_SIZE..).unwrap_or_default();
        value.extend(payload.iter().take(left));
    }
    if value.len() != len {
        let expected = Expected::Range(0, value.len() as u64);
        return Err(Error::corrupt(
            at,
            "ea_header",
            "ea_data_len",
            len as u64,
            expected,
        ));
    }
    Ok(value)
}

/// Shows the xattr blocks of an inode.
pub(crate) fn owned<R: BlockRead + ?Sized>(
    reader: &R,
    addr: BlockAddr,
    visit: &mut dyn FnMut(Owned) -> Result<()>,
) -> Result<()> {
    let found = EaBlocks::open(reader, addr)?;
    let mut show = |block, role, parent| {
        visit(Owned {
            extent: Extent::single(block),
            role,
            parent,
        })
    };
    if let Some((indirect, _)) = &found.indirect {
        show(*indirect, Role::EaIndirect, addr)?;
    }
    let parent = found.indirect.as_ref().map_or(addr, |(indirect, _)| *indirect);
    for block in &found.blocks {
        show(*block, Role::Ea, parent)?;
    }
    found.each(reader, u8::MAX, |at, record| {
        if let Value::Blocks(pointers) = record.value {
            for raw in pointers {
                let value = reader
                    .geometry()
                    .check_pointer(raw.get(), at, "ea_header", "value pointer")?;
                value.map_or(Ok(()), |value| show(value, Role::EaValue, at))?;
            }
        }
        Ok(None::<()>)
    })?;
    Ok(())
}
