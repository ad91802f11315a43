//! Statements to bytes: finds every place first, then writes.

use super::DamageError;
use super::parse::{Place, Statement, Target};
use crate::addr::{BlockAddr, FileBlock, Jid, JournalBlock};
use crate::bitmap::decode_rindex;
use crate::device::BlockDevice;
use crate::dir::lookup;
use crate::edit::{Block, BlockRead};
use crate::error::{Error, Expected, Result};
use crate::geometry::Geometry;
use crate::ondisk::{
    BlockState, DINODE_SIZE, Dinode, LogHeader, META_HEADER_SIZE, MetaHeader, MetaType, RINDEX_SIZE, Rgrp,
    RindexEntry, Superblock, log_header_crc, log_header_hash, view_mut,
};
use crate::tree::{Mapping, map};
use crate::volume::{DeviceReader, SystemFiles, map_journal, read_rindex, read_superblock, resolve_path};
use zerocopy::{FromBytes, IntoBytes};

/// One change of one block, found and ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    block: BlockAddr,
    change: Change,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Bytes {
        offset: usize,
        bytes: Vec<u8>,
        fix: bool,
    },
    State {
        byte: usize,
        shift: u32,
        state: BlockState,
    },
    Fill(u8),
    CopyOf(BlockAddr),
}

impl Damage {
    /// The block that changes.
    #[must_use]
    pub const fn block(&self) -> BlockAddr {
        self.block
    }
}

/// Finds the places of all statements on the volume as it is. Writes nothing.
///
/// # Errors
/// [`DamageError`].
pub fn plan(statements: &[Statement], device: &dyn BlockDevice) -> Result<Vec<Damage>, DamageError> {
    let (superblock, geometry) = read_superblock(device)?;
    let finder = Finder {
        superblock,
        geometry: &geometry,
        reader: DeviceReader::new(device, &geometry),
    };
    statements
        .iter()
        .map(|statement| finder.plan(statement))
        .collect()
}

/// Carries the changes out, in their order, and flushes.
///
/// # Errors
/// Those of the device.
pub fn apply(damage: &[Damage], device: &dyn BlockDevice) -> Result<(), DamageError> {
    // The block size is taken once: a script may begin by destroying the superblock.
    let (_, geometry) = read_superblock(device)?;
    let reader = DeviceReader::new(device, &geometry);
    for Damage { block: addr, change } in damage {
        let mut block = match change {
            Change::CopyOf(from) => reader.read(*from)?,
            _ => reader.read(*addr)?,
        };
        change_block(&mut block, *addr, change)?;
        device.write_at(geometry.byte_offset(*addr), &block)?;
    }
    Ok(device.flush()?)
}

fn change_block(block: &mut Block, addr: BlockAddr, change: &Change) -> Result<()> {
    match change {
        Change::CopyOf(_) => {}
        Change::Fill(byte) => block.make_mut().fill(*byte),
        Change::State { byte, shift, state } => {
            if let Some(byte) = block.make_mut().get_mut(*byte) {
                *byte = *byte & !(3 << shift) | (*state as u8) << shift;
            }
        }
        Change::Bytes { offset, bytes, fix } => {
            let target = block.make_mut().get_mut(*offset..);
            if let Some(target) = target.and_then(|rest| rest.get_mut(..bytes.len())) {
                target.copy_from_slice(bytes);
            }
            if *fix {
                fix_checksum(block, addr)?;
            }
        }
    }
    Ok(())
}

fn fix_checksum(block: &mut Block, addr: BlockAddr) -> Result<()> {
    let kind = MetaHeader::ref_from_prefix(block).map(|(h, _)| h.mh_type.get());
    if kind == Ok(MetaType::Lh.raw()) {
        let hash = log_header_hash(block);
        view_mut::<LogHeader>(block.make_mut(), 0, addr)?.hash = hash.into();
        let crc = log_header_crc(block);
        view_mut::<LogHeader>(block.make_mut(), 0, addr)?.crc = crc.into();
    } else {
        view_mut::<Rgrp>(block.make_mut(), 0, addr)?.seal();
    }
    Ok(())
}

struct Finder<'a> {
    superblock: Superblock,
    geometry: &'a Geometry,
    reader: DeviceReader<'a>,
}

impl Finder<'_> {
    fn plan(&self, statement: &Statement) -> Result<Damage, DamageError> {
        let (line, found) = match statement {
            Statement::Set {
                line,
                target,
                field,
                bytes,
                fix,
                ..
            } => (*line, self.set(target, field.offset, bytes, *fix)),
            Statement::Pointer {
                line,
                place,
                index,
                value,
            } => (*line, self.pointer(place, *index, *value)),
            Statement::Bitmap { line, block, state } => (*line, self.bitmap(*block, *state)),
            Statement::Fill { line, place, byte } => (*line, self.whole(place, Change::Fill(*byte))),
            Statement::Copy { line, from, to } => {
                let from = self.place(from);
                (*line, from.and_then(|from| self.whole(to, Change::CopyOf(from))))
            }
            Statement::Poke {
                line,
                place,
                offset,
                bytes,
            } => {
                let target = Target::At(place.clone(), *offset);
                (*line, self.set(&target, 0, bytes, false))
            }
        };
        found.map_err(|source| DamageError::Place { line, source })
    }

    fn system(&self) -> Result<SystemFiles> {
        SystemFiles::read(&self.reader, &self.superblock)
    }

    /// The root's address, which needs nothing but the superblock.
    fn root(&self) -> Result<BlockAddr> {
        let raw = self.superblock.root_dir.addr.get();
        self.geometry
            .check_address(raw, self.geometry.superblock(), "sb", "sb_root_dir")
    }

    fn master(&self) -> Result<BlockAddr> {
        let raw = self.superblock.master_dir.addr.get();
        self.geometry
            .check_address(raw, self.geometry.superblock(), "sb", "sb_master_dir")
    }

    fn rindex(&self) -> Result<Vec<RindexEntry>> {
        read_rindex(&self.reader, self.system()?.rindex)
    }

    fn whole(&self, place: &Place, change: Change) -> Result<Damage> {
        let block = self.place(place)?;
        Ok(Damage { block, change })
    }

    fn place(&self, place: &Place) -> Result<BlockAddr> {
        match place {
            Place::Superblock => Ok(self.geometry.superblock()),
            Place::Block(n) if *n < self.geometry.end() => Ok(BlockAddr::new(*n)),
            Place::Block(n) => Err(Error::TooLarge {
                what: "block number",
                found: *n,
                limit: self.geometry.end().saturating_sub(1),
            }),
            Place::Rgrp(n) => {
                let entries = self.rindex()?;
                let entry = usize::try_from(*n).ok().and_then(|n| entries.get(n));
                let raw = entry.ok_or(Error::NotFound)?.addr.get();
                self.geometry
                    .check_address(raw, self.system()?.rindex, "rindex", "ri_addr")
            }
            Place::Journal { jid, block } => {
                let name = format!("journal{}", Jid::new(*jid));
                let jindex = self.system()?.jindex;
                let dinode = resolve_path(&self.reader, jindex, name.as_bytes())?;
                let map = map_journal(&self.reader, dinode)?;
                map.address(JournalBlock::new(*block)).ok_or(Error::NotFound)
            }
            Place::Path(path) => resolve_path(&self.reader, self.root()?, path.as_bytes()),
            Place::Master(path) => resolve_path(&self.reader, self.master()?, path.as_bytes()),
        }
    }

    fn set(&self, target: &Target, field_offset: usize, bytes: &[u8], fix: bool) -> Result<Damage> {
        let (block, start) = match target {
            Target::At(place, offset) => (self.place(place)?, *offset),
            Target::Dirent(path) => self.dirent(path)?,
            Target::Rindex(n) => self.rindex_entry(*n)?,
            Target::Statfs => (self.system()?.statfs, DINODE_SIZE as u64),
            Target::StatfsChange(n) => {
                let name = format!("statfs_change{n}");
                let at = resolve_path(&self.reader, self.system()?.per_node, name.as_bytes())?;
                (at, DINODE_SIZE as u64)
            }
        };
        let offset = start.saturating_add(field_offset as u64);
        let room = (self.geometry.block_len() as u64).saturating_sub(bytes.len() as u64);
        if offset > room {
            return Err(Error::TooLarge {
                what: "byte offset in the block",
                found: offset,
                limit: room,
            });
        }
        let change = Change::Bytes {
            offset: usize::try_from(offset).unwrap_or(usize::MAX),
            bytes: bytes.to_vec(),
            fix,
        };
        Ok(Damage { block, change })
    }

    fn dirent(&self, path: &Place) -> Result<(BlockAddr, u64)> {
        let (from, path) = match path {
            Place::Master(path) => (self.master()?, path),
            Place::Path(path) => (self.root()?, path),
            _ => return Err(Error::NotFound),
        };
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = resolve_path(&self.reader, from, dir.as_bytes())?;
        let found = lookup(&self.reader, dir, name.as_bytes())?.ok_or(Error::NotFound)?;
        Ok((found.at.block, u64::from(found.at.offset)))
    }

    /// Block and offset of a rindex entry; of one that straddles two blocks, only its first part can be set.
    fn rindex_entry(&self, n: u64) -> Result<(BlockAddr, u64)> {
        let rindex = self.system()?.rindex;
        let block = self.reader.read(rindex)?;
        let di = Dinode::decode(&block, rindex, self.geometry)?;
        let start = n.saturating_mul(RINDEX_SIZE as u64);
        if start.saturating_add(RINDEX_SIZE as u64) > di.size.get() {
            return Err(Error::NotFound);
        }
        if di.height.get() == 0 {
            return Ok((rindex, start.saturating_add(DINODE_SIZE as u64)));
        }
        let lblock = FileBlock::new(start >> self.geometry.bsize_shift());
        match map(&self.reader, rindex, &block, lblock, 1)? {
            Mapping::Data(extent) => Ok((extent.start, start & u64::from(self.geometry.bsize() - 1))),
            Mapping::Hole { .. } | Mapping::Stuffed => Err(Error::NotFound),
        }
    }

    fn pointer(&self, place: &Place, index: u64, value: u64) -> Result<Damage> {
        let at = self.place(place)?;
        let block = self.reader.read(at)?;
        let header = MetaHeader::check_magic(&block, at, "pointer block")?;
        let head = match MetaType::from_raw(header.mh_type.get()) {
            Some(MetaType::Di) => DINODE_SIZE,
            Some(MetaType::In | MetaType::Jd) => META_HEADER_SIZE,
            _ => {
                let found = u64::from(header.mh_type.get());
                let expected = Expected::Rule("a dinode, an indirect or a hash block");
                return Err(Error::corrupt(at, "pointer block", "mh_type", found, expected));
            }
        };
        let offset = (head as u64).saturating_add(index.saturating_mul(8));
        let target = Target::At(Place::Block(at.get()), offset);
        self.set(&target, 0, &value.to_be_bytes(), false)
    }

    fn bitmap(&self, block: u64, state: BlockState) -> Result<Damage> {
        let rindex = self.system()?.rindex;
        let content: Vec<RindexEntry> = self.rindex()?;
        let groups = decode_rindex(content.as_bytes(), rindex, self.geometry)?;
        let addr = BlockAddr::new(block);
        let slice = groups
            .iter()
            .find_map(|group| group.locate(addr))
            .ok_or(Error::NotFound)?;
        let n = block.saturating_sub(slice.first.get());
        let byte = slice
            .offset
            .saturating_add(usize::try_from(n / 4).unwrap_or(usize::MAX));
        Ok(Damage {
            block: slice.block,
            change: Change::State {
                byte,
                shift: (n % 4) as u32 * 2,
                state,
            },
        })
    }
}
