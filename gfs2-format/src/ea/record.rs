//! Records in one EA block.
//!
//! They tile bytes 24 to the end exactly; the last says so. An unused record is believed in its length and flags
//! only, and in the number of value pointers it still holds.

use crate::addr::BlockAddr;
use crate::error::{Error, Expected, Result};
use crate::geometry::Geometry;
use crate::ondisk::{EA_FLAG_LAST, EA_HEADER_SIZE, EaHeader, EaType, META_HEADER_SIZE, view, view_mut};
use zerocopy::big_endian::U64;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// What a record holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    /// The bytes themselves.
    Inline(&'a [u8]),
    /// Blocks of it, `jbsize` bytes each.
    Blocks(&'a [U64]),
}

/// A checked record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub(super) offset: usize,
    /// Offset of the record before it, if any.
    pub(super) before: Option<usize>,
    pub(super) header: &'a EaHeader,
    /// `None`: unused.
    pub(super) space: Option<EaType>,
    pub(super) name: &'a [u8],
    pub(super) value: Value<'a>,
}

impl Record<'_> {
    pub(super) fn len(&self) -> usize {
        self.header.rec_len.get() as usize
    }

    /// Bytes its attribute needs; an unused record that still holds value blocks is as full as can be.
    pub(super) fn used(&self) -> usize {
        match self.space {
            None if self.header.num_ptrs == 0 => 0,
            None => self.len(),
            Some(_) => needed(self.name.len(), self.value.stored()),
        }
    }
}

impl Value<'_> {
    /// How the value stands in the record.
    pub(super) fn stored(&self) -> Stored {
        match self {
            Self::Inline(bytes) => Stored::Inline(bytes.len()),
            Self::Blocks(pointers) => Stored::Blocks(pointers.len()),
        }
    }
}

/// How a value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// Bytes in the record.
    Inline(usize),
    /// Blocks of its own.
    Blocks(usize),
}

impl Stored {
    /// How a new value is stored: in the record if that fits an empty block.
    pub(super) fn of(geometry: &Geometry, name_len: usize, value_len: usize) -> Self {
        let room = geometry.jbsize() as usize;
        if needed(name_len, Self::Inline(value_len)) <= room {
            Self::Inline(value_len)
        } else {
            Self::Blocks(value_len.div_ceil(room))
        }
    }
}

/// Bytes a record needs.
pub(super) fn needed(name_len: usize, stored: Stored) -> usize {
    match stored {
        Stored::Inline(len) => round8(EA_HEADER_SIZE.saturating_add(name_len).saturating_add(len)),
        Stored::Blocks(count) => pointers_at(name_len).saturating_add(count.saturating_mul(8)),
    }
}

const fn round8(len: usize) -> usize {
    len.saturating_add(7) & !7
}

/// Where the value pointers start in a record.
const fn pointers_at(name_len: usize) -> usize {
    EA_HEADER_SIZE.saturating_add(round8(name_len))
}

/// The records of one EA block, each checked before it is believed.
pub(super) struct Records<'a> {
    bytes: &'a [u8],
    block: BlockAddr,
    jbsize: usize,
    most_type: u8,
    offset: usize,
    before: Option<usize>,
}

/// `trusted` records are legal when `most_type` is that of `trusted.` at least (255: any type, for freeing).
pub(super) fn records(bytes: &[u8], block: BlockAddr, most_type: u8) -> Records<'_> {
    Records {
        bytes,
        block,
        jbsize: bytes.len().saturating_sub(META_HEADER_SIZE),
        most_type,
        offset: META_HEADER_SIZE,
        before: None,
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.bytes.len() {
            return None;
        }
        let item = self.decode();
        match &item {
            Ok(record) => {
                self.before = Some(record.offset);
                self.offset = self.offset.saturating_add(record.len());
            }
            Err(_) => self.offset = usize::MAX,
        }
        Some(item)
    }
}

impl<'a> Records<'a> {
    fn fail<T>(&self, field: &'static str, found: u64, expected: Expected) -> Result<T> {
        Err(Error::corrupt(self.block, "ea_header", field, found, expected))
    }

    fn decode(&self) -> Result<Record<'a>> {
        let header: &EaHeader = view(self.bytes, self.offset, self.block)?;
        let len = header.rec_len.get() as usize;
        let room = self.bytes.len().saturating_sub(self.offset);
        if len < EA_HEADER_SIZE || len > room {
            return self.fail(
                "ea_rec_len",
                len as u64,
                Expected::Range(EA_HEADER_SIZE as u64, room as u64),
            );
        }
        if (header.flags & EA_FLAG_LAST != 0) != (len == room) {
            let expected =
                Expected::Rule("the last flag in the record that ends with the block, and only there");
            return self.fail("ea_flags", u64::from(header.flags), expected);
        }
        let end = self.offset.saturating_add(len);
        let record = self.bytes.get(self.offset..end).unwrap_or_default();
        let mut decoded = Record {
            offset: self.offset,
            before: self.before,
            header,
            space: None,
            name: &[],
            value: Value::Inline(&[]),
        };
        if header.ea_type == EaType::Unused as u8 {
            if header.num_ptrs > 0 {
                decoded.value = Value::Blocks(self.pointers(record, header)?);
            }
            return Ok(decoded);
        }
        decoded.space = self.space(header)?;
        self.live(record, header, decoded)
    }

    fn space(&self, header: &EaHeader) -> Result<Option<EaType>> {
        let raw = header.ea_type;
        let known = EaType::from_raw(raw);
        if raw > self.most_type || known.is_none() && self.most_type < u8::MAX {
            let most = self.most_type.min(EaType::Trusted as u8);
            return self.fail("ea_type", u64::from(raw), Expected::Range(0, u64::from(most)));
        }
        // Of a type that only freeing accepts nothing but the blocks matters.
        Ok(known.or(Some(EaType::User)))
    }

    fn live(&self, record: &'a [u8], header: &'a EaHeader, decoded: Record<'a>) -> Result<Record<'a>> {
        let name_len = usize::from(header.name_len);
        let name_end = EA_HEADER_SIZE.saturating_add(name_len);
        let name = record
            .get(EA_HEADER_SIZE..name_end)
            .filter(|name| !name.is_empty());
        let Some(name) = name else {
            let most = record.len().saturating_sub(EA_HEADER_SIZE) as u64;
            return self.fail("ea_name_len", name_len as u64, Expected::Range(1, most));
        };
        let data_len = header.data_len.get() as usize;
        let value = if header.num_ptrs == 0 {
            match record.get(name_end..name_end.saturating_add(data_len)) {
                Some(bytes) => Value::Inline(bytes),
                None => {
                    let most = record.len().saturating_sub(name_end) as u64;
                    return self.fail("ea_data_len", data_len as u64, Expected::Range(0, most));
                }
            }
        } else {
            let least = data_len.div_ceil(self.jbsize.max(1));
            if usize::from(header.num_ptrs) < least {
                let expected = Expected::Range(least as u64, u64::from(u8::MAX));
                return self.fail("ea_num_ptrs", u64::from(header.num_ptrs), expected);
            }
            Value::Blocks(self.pointers(record, header)?)
        };
        Ok(Record {
            name,
            value,
            ..decoded
        })
    }

    /// The pointer array of a record, which must lie in it.
    fn pointers(&self, record: &'a [u8], header: &EaHeader) -> Result<&'a [U64]> {
        let start = pointers_at(usize::from(header.name_len));
        let end = start.saturating_add(usize::from(header.num_ptrs).saturating_mul(8));
        match record.get(start..end).map(<[U64]>::ref_from_bytes) {
            Some(Ok(pointers)) => Ok(pointers),
            _ => {
                let most = record.len().saturating_sub(start) / 8;
                self.fail(
                    "ea_num_ptrs",
                    u64::from(header.num_ptrs),
                    Expected::Range(0, most as u64),
                )
            }
        }
    }
}

/// The value pointers of the record at `offset`, for change; the record has been decoded before.
pub(super) fn pointers_mut(bytes: &mut [u8], offset: usize, block: BlockAddr) -> Result<&mut [U64]> {
    let header: EaHeader = *view(bytes, offset, block)?;
    let start = offset.saturating_add(pointers_at(usize::from(header.name_len)));
    let end = start.saturating_add(usize::from(header.num_ptrs).saturating_mul(8));
    let found = bytes
        .get_mut(start..end)
        .and_then(|room| <[U64]>::mut_from_bytes(room).ok());
    found.ok_or_else(|| {
        let expected = Expected::Rule("pointers inside the record");
        Error::corrupt(
            block,
            "ea_header",
            "ea_num_ptrs",
            u64::from(header.num_ptrs),
            expected,
        )
    })
}

/// A new attribute.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewRecord<'a> {
    pub(super) space: EaType,
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    /// Where the value stands, when not in the record.
    pub(super) blocks: &'a [BlockAddr],
}

impl NewRecord<'_> {
    fn stored(&self) -> Stored {
        if self.blocks.is_empty() {
            Stored::Inline(self.value.len())
        } else {
            Stored::Blocks(self.blocks.len())
        }
    }

    pub(super) fn needed(&self) -> usize {
        needed(self.name.len(), self.stored())
    }

    /// Writes it to the record at `offset`, behind the `used` bytes that stay with the attribute there.
    pub(super) fn place(&self, bytes: &mut [u8], offset: usize, used: usize, block: BlockAddr) -> Result<()> {
        let old: &mut EaHeader = view_mut(bytes, offset, block)?;
        let (len, flags) = (old.rec_len.get(), old.flags);
        if used > 0 {
            old.rec_len = (used as u32).into();
            old.flags &= !EA_FLAG_LAST;
        }
        let at = offset.saturating_add(used);
        let rec_len = len.saturating_sub(used as u32);
        let mut header = EaHeader::new_zeroed();
        header.rec_len = rec_len.into();
        header.flags = flags & EA_FLAG_LAST;
        header.ea_type = self.space as u8;
        header.name_len = self.name.len() as u8;
        header.data_len = (self.value.len() as u32).into();
        header.num_ptrs = self.blocks.len() as u8;

        let mut image = header.as_bytes().to_vec();
        image.extend_from_slice(self.name);
        match self.stored() {
            Stored::Inline(_) => image.extend_from_slice(self.value),
            Stored::Blocks(_) => {
                image.resize(pointers_at(self.name.len()), 0);
                self.blocks
                    .iter()
                    .for_each(|b| image.extend_from_slice(&b.get().to_be_bytes()));
            }
        }
        image.resize(self.needed(), 0);
        let room = bytes.get_mut(at..at.saturating_add(image.len()));
        match room.filter(|_| image.len() <= rec_len as usize) {
            Some(room) => {
                room.copy_from_slice(&image);
                Ok(())
            }
            None => {
                let expected = Expected::Range(image.len() as u64, u64::MAX);
                Err(Error::corrupt(
                    block,
                    "ea_header",
                    "ea_rec_len",
                    u64::from(rec_len),
                    expected,
                ))
            }
        }
    }
}

/// Fills a fresh EA block with one unused record.
pub(super) fn clear(bytes: &mut [u8], block: BlockAddr) -> Result<()> {
    let len = bytes.len().saturating_sub(META_HEADER_SIZE);
    let header: &mut EaHeader = view_mut(bytes, META_HEADER_SIZE, block)?;
    *header = EaHeader::new_zeroed();
    header.rec_len = (len as u32).into();
    header.flags = EA_FLAG_LAST;
    Ok(())
}

/// Takes the record at `offset` out: its room goes to the record before it (which inherits the last flag), or it
/// becomes unused. One that holds value blocks becomes unused in its place and keeps them.
pub(super) fn delete(bytes: &mut [u8], offset: usize, before: Option<usize>, block: BlockAddr) -> Result<()> {
    let own: &mut EaHeader = view_mut(bytes, offset, block)?;
    let (len, last, holds) = (own.rec_len.get(), own.flags & EA_FLAG_LAST, own.num_ptrs > 0);
    own.ea_type = EaType::Unused as u8;
    let Some(before) = before.filter(|_| !holds) else {
        return Ok(());
    };
    let previous: &mut EaHeader = view_mut(bytes, before, block)?;
    previous.rec_len = previous.rec_len.get().saturating_add(len).into();
    previous.flags |= last;
    Ok(())
}
