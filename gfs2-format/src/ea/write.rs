//! Setting and removing xattrs.

use super::chain::EaBlocks;
use super::record::{self, NewRecord, Stored, Value};
use super::{EaCost, Leftover, MAX_EA_NAME, MAX_EA_VALUE, SetMode, Xattrs};
use crate::addr::BlockAddr;
use crate::edit::BlockEdit;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::ondisk::{DinodeFlags, EaType, META_HEADER_SIZE, MetaType};
use crate::tree::{Supply, edit_dinode, ptrs_mut};

/// What setting a value costs at most, whatever the inode holds already.
#[must_use]
pub fn worst_case_blocks(geometry: &Geometry, name_len: usize, value_len: usize) -> EaCost {
    let values = match Stored::of(geometry, name_len, value_len) {
        Stored::Inline(_) => 0,
        Stored::Blocks(count) => u32::try_from(count).unwrap_or(u32::MAX),
    };
    // A new EA block, and the list when there was but one. Edited besides: the dinode, the block with the room or the
    // list, and the block of the old record.
    let blocks = values.saturating_add(2);
    EaCost {
        blocks,
        touched: blocks.saturating_add(3),
    }
}

/// A record that is to go.
#[derive(Clone, Copy, Debug)]
struct Old {
    block: BlockAddr,
    offset: usize,
    before: Option<usize>,
    holds: bool,
}

impl Xattrs {
    fn check(&self, space: EaType, name: &[u8], value: &[u8]) -> Result<()> {
        let limits = [
            ("length of an xattr name", name.len(), MAX_EA_NAME),
            ("length of an xattr value", value.len(), MAX_EA_VALUE),
        ];
        for (what, found, limit) in limits {
            if found > limit {
                return Err(Error::TooLarge {
                    what,
                    found: found as u64,
                    limit: limit as u64,
                });
            }
        }
        if space == EaType::Unused || space as u8 > self.most_type() {
            return Err(Error::Unsupported {
                what: "xattr space",
                found: u64::from(space as u8),
                supported: "1 to 3, and 4 (trusted.) from format 1802 on",
            });
        }
        if name.is_empty() {
            return Err(Error::Unsupported {
                what: "length of an xattr name",
                found: 0,
                supported: "1 to 255",
            });
        }
        Ok(())
    }

    fn find<E: BlockEdit + ?Sized>(
        &self,
        edit: &E,
        found: &EaBlocks,
        space: EaType,
        name: &[u8],
    ) -> Result<Option<Old>> {
        found.each(edit, self.most_type(), |block, record| {
            let same = record.space == Some(space) && record.name == name;
            Ok(same.then_some(Old {
                block,
                offset: record.offset,
                before: record.before,
                holds: matches!(record.value, Value::Blocks(_)),
            }))
        })
    }

    /// Sets a value: writes the new record, then takes the old one out.
    ///
    /// # Errors
    /// [`crate::Error::Exists`], [`crate::Error::NotFound`] by mode; [`crate::Error::TooLarge`];
    /// [`crate::Error::NoSpace`] also when the list of EA blocks is full; as [`Xattrs::get`], and those of
    /// [`BlockEdit`].
    pub fn set<E: BlockEdit + ?Sized>(
        &self,
        edit: &mut E,
        space: EaType,
        name: &[u8],
        value: &[u8],
        mode: SetMode,
    ) -> Result<Leftover> {
        self.check(space, name, value)?;
        let found = EaBlocks::open(edit, self.addr)?;
        let old = self.find(edit, &found, space, name)?;
        match mode {
            SetMode::Create if old.is_some() => return Err(Error::Exists),
            SetMode::Replace if old.is_none() => return Err(Error::NotFound),
            _ => {}
        }
        let stored = Stored::of(edit.geometry(), name.len(), value.len());
        let (need, room) = (record::needed(name.len(), stored), edit.geometry().jbsize());
        if need as u64 > room {
            // Only with the smallest blocks: the pointers of the largest values do not fit in one.
            return Err(Error::TooLarge {
                what: "bytes of an xattr record",
                found: need as u64,
                limit: room,
            });
        }
        let blocks = match stored {
            Stored::Inline(_) => Vec::new(),
            Stored::Blocks(count) => self.write_value(edit, value, count)?,
        };
        let new = NewRecord {
            space,
            name,
            value,
            blocks: &blocks,
        };
        self.add(edit, &found, &new)?;
        let Some(old) = old else {
            return Ok(Leftover(false));
        };
        // The new record may have split the old one's room off, but it stands behind it: offset and predecessor hold.
        self.take_out(edit, old)
    }

    /// Removes a name.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`]; as [`Xattrs::get`], and those of [`BlockEdit`].
    pub fn remove<E: BlockEdit + ?Sized>(
        &self,
        edit: &mut E,
        space: EaType,
        name: &[u8],
    ) -> Result<Leftover> {
        let found = EaBlocks::open(edit, self.addr)?;
        let old = self.find(edit, &found, space, name)?.ok_or(Error::NotFound)?;
        self.take_out(edit, old)
    }

    fn take_out<E: BlockEdit + ?Sized>(&self, edit: &mut E, old: Old) -> Result<Leftover> {
        // The set may have filled a record between the old one's predecessor and itself.
        let bytes = edit.read(old.block)?;
        let mut before = old.before;
        for record in record::records(&bytes, old.block, self.most_type()) {
            let record = record?;
            if record.offset == old.offset {
                before = record.before;
            }
        }
        record::delete(edit.edit(old.block)?, old.offset, before, old.block)?;
        Ok(Leftover(old.holds))
    }

    /// Writes a value to fresh blocks.
    fn write_value<E: BlockEdit + ?Sized>(
        &self,
        edit: &mut E,
        value: &[u8],
        count: usize,
    ) -> Result<Vec<BlockAddr>> {
        let room = edit.geometry().jbsize() as usize;
        let mut supply = Supply::new(self.addr, count as u32);
        let mut blocks = Vec::with_capacity(count);
        for chunk in value.chunks(room.max(1)) {
            let block = supply.take(edit, MetaType::Ed)?;
            let payload = edit.edit(block)?.get_mut(META_HEADER_SIZE..).unwrap_or_default();
            payload.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            blocks.push(block);
        }
        Ok(blocks)
    }

    /// Writes a record where the first room is, or in a new EA block.
    fn add<E: BlockEdit + ?Sized>(&self, edit: &mut E, found: &EaBlocks, new: &NewRecord<'_>) -> Result<()> {
        let need = new.needed();
        let room = found.each(edit, self.most_type(), |block, record| {
            let fits = record.len().saturating_sub(record.used()) >= need;
            Ok(fits.then_some((block, record.offset, record.used())))
        })?;
        let (block, offset, used) = match room {
            Some(room) => room,
            None => (self.new_block(edit, found)?, META_HEADER_SIZE, 0),
        };
        new.place(edit.edit(block)?, offset, used, block)
    }

    /// A fresh EA block, linked to the inode.
    fn new_block<E: BlockEdit + ?Sized>(&self, edit: &mut E, found: &EaBlocks) -> Result<BlockAddr> {
        let single = found.blocks.first().filter(|_| found.indirect.is_none()).copied();
        let list_len = edit.geometry().inptrs();
        if found.blocks.len() as u64 >= list_len {
            return Err(Error::NoSpace);
        }
        let mut supply = Supply::new(self.addr, if single.is_some() { 2 } else { 1 });
        let list = match (&found.indirect, single) {
            (Some((list, _)), _) => Some(*list),
            (None, Some(single)) => {
                let list = supply.take(edit, MetaType::In)?;
                set_pointer(edit, list, 0, single.get())?;
                edit_dinode(edit, self.addr, |di| {
                    di.eattr = list.get().into();
                    di.set_flags(di.flags() | DinodeFlags::EA_INDIRECT);
                })?;
                Some(list)
            }
            (None, None) => None,
        };
        let block = supply.take(edit, MetaType::Ea)?;
        record::clear(edit.edit(block)?, block)?;
        match list {
            Some(list) => set_pointer(edit, list, found.blocks.len(), block.get())?,
            None => edit_dinode(edit, self.addr, |di| di.eattr = block.get().into())?,
        }
        Ok(block)
    }
}

/// Stores a pointer of a list of EA blocks.
pub(super) fn set_pointer<E: BlockEdit + ?Sized>(
    edit: &mut E,
    list: BlockAddr,
    index: usize,
    value: u64,
) -> Result<()> {
    let array = ptrs_mut(edit.edit(list)?, META_HEADER_SIZE, list)?;
    if let Some(slot) = array.get_mut(index) {
        *slot = value.into();
    }
    Ok(())
}
