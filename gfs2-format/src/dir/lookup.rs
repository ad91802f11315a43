//! Finding names.

use super::area::{self, Record};
use super::table::{Chain, Dir, LeafBlock};
use crate::addr::{BlockAddr, InodeNum};
use crate::edit::BlockRead;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::ondisk::{DINODE_SIZE, FileType, LEAF_SIZE, MAX_NAME, name_hash};

/// Where a dirent stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// The leaf, or the dinode of a linear directory.
    pub block: BlockAddr,
    /// Byte offset in that block.
    pub offset: u32,
}

/// An entry found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The inode it names.
    pub num: InodeNum,
    /// The file type it says.
    pub kind: FileType,
    /// Where it stands.
    pub at: Location,
}

/// An entry found, with what a change of it needs. Good for as long as the directory stays as it was.
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    pub(super) found: Found,
    /// Offset of the record before it in its area.
    pub(super) before: Option<usize>,
    pub(super) linear: bool,
}

impl Hit {
    /// The entry.
    #[must_use]
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// An entry that is used must point at a block of the volume.
    pub(super) fn check_target(&self, geometry: &Geometry) -> Result<()> {
        let Found { num, at, .. } = self.found;
        geometry.check_address(num.addr.get(), at.block, "dirent", "no_addr")?;
        Ok(())
    }

    pub(super) fn new(record: &Record<'_>, block: BlockAddr, linear: bool) -> Result<Self> {
        Ok(Self {
            found: Found {
                num: record.num(),
                kind: record.kind()?,
                at: Location {
                    block,
                    // A block has at most 64 KiB.
                    offset: record.offset as u32,
                },
            },
            before: record.before,
            linear,
        })
    }
}

/// Checks that a name can be stored: 1 to 255 bytes, no NUL, no slash.
///
/// # Errors
/// [`crate::Error::TooLarge`] for a long name; [`crate::Error::Unsupported`] for the others.
pub fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > MAX_NAME {
        return Err(Error::TooLarge {
            what: "length of a name",
            found: name.len() as u64,
            limit: MAX_NAME as u64,
        });
    }
    let bad = name.iter().find(|byte| matches!(byte, 0 | b'/'));
    match bad {
        _ if name.is_empty() => Err(Error::Unsupported {
            what: "length of a name",
            found: 0,
            supported: "1 to 255 bytes",
        }),
        Some(byte) => Err(Error::Unsupported {
            what: "byte in a name",
            found: u64::from(*byte),
            supported: "any but NUL and slash",
        }),
        None => Ok(()),
    }
}

/// Looks a name up.
///
/// # Errors
/// I/O errors; [`crate::Error::Corrupt`] for anything wrong on the way to the entry, and for an entry that points
/// off the volume.
pub fn lookup<R: BlockRead + ?Sized>(reader: &R, dir: BlockAddr, name: &[u8]) -> Result<Option<Found>> {
    let dir = Dir::open(reader, dir)?;
    let Some(hit) = find(reader, &dir, name)? else {
        return Ok(None);
    };
    hit.check_target(reader.geometry())?;
    Ok(Some(hit.found))
}

pub(super) fn find<R: BlockRead + ?Sized>(reader: &R, dir: &Dir, name: &[u8]) -> Result<Option<Hit>> {
    let hash = name_hash(name);
    if !dir.is_hashed() {
        let record = area::find_name(&dir.block, DINODE_SIZE, dir.addr, name, hash)?;
        return record.map(|record| Hit::new(&record, dir.addr, true)).transpose();
    }
    let mut chain = Chain::new(dir.leaf_of(reader, dir.slot_of(hash))?);
    while let Some(leaf) = chain.step(reader)? {
        if let Some(hit) = find_in_leaf(&leaf, name, hash)? {
            return Ok(Some(hit));
        }
    }
    Ok(None)
}

pub(super) fn find_in_leaf(leaf: &LeafBlock, name: &[u8], hash: u32) -> Result<Option<Hit>> {
    let record = area::find_name(&leaf.block, LEAF_SIZE, leaf.addr, name, hash)?;
    record
        .map(|record| Hit::new(&record, leaf.addr, false))
        .transpose()
}
