//! Looking at a name once: where it stands, or where it would go and what that costs.

use super::area;
use super::change::dirent_of;
use super::cost::{InsertCost, needs_blocks};
use super::insert::{NewEntry, insert, place_in_leaf};
use super::lookup::{Found, Hit, Location, check_name};
use super::table::{Chain, Dir};
use crate::addr::BlockAddr;
use crate::edit::{BlockEdit, BlockRead};
use crate::error::{Error, Result};
use crate::ondisk::{DINODE_SIZE, Dirent, LEAF_SIZE, name_hash};
use crate::time::Timestamp;
use crate::tree::edit_dinode;

/// What a directory says about a name.
#[derive(Clone, Copy, Debug)]
pub enum Probe {
    /// It is there.
    Here(Hit),
    /// It is not.
    Absent(Room),
}

impl Probe {
    /// The entry, if it is there.
    #[must_use]
    pub fn found(&self) -> Option<&Found> {
        match self {
            Self::Here(hit) => Some(hit.found()),
            Self::Absent(_) => None,
        }
    }
}

/// Where an entry of a name that is not there would go. Good for as long as the directory stays as it was.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    cost: InsertCost,
    /// The record with room enough; `None`: room has to be made.
    at: Option<Location>,
}

impl Room {
    /// What the entry costs.
    #[must_use]
    pub fn cost(&self) -> InsertCost {
        self.cost
    }

    /// The same after the removal of an entry of this directory ([`super::remove_at`]).
    #[must_use]
    pub fn without(mut self, gone: &Hit) -> Self {
        if let (Some(at), Some(before)) = (&mut self.at, gone.before)
            && *at == gone.found.at
        {
            // Its room went to the record before it; offsets in a block fit.
            at.offset = before as u32;
        }
        self
    }
}

/// Looks a name up, and where it is not there looks for room for it: [`super::lookup`] and [`needs_blocks`] in one walk.
///
/// # Errors
/// As [`super::lookup`].
pub fn probe<R: BlockRead + ?Sized>(reader: &R, dir: BlockAddr, name: &[u8]) -> Result<Probe> {
    let dir = Dir::open(reader, dir)?;
    let mut look = Look {
        name,
        hash: name_hash(name),
        need: Dirent::record_size(name.len()),
        room: None,
    };
    let mut hit = None;
    if dir.is_hashed() {
        let mut chain = Chain::new(dir.leaf_of(reader, dir.slot_of(look.hash))?);
        while let Some(leaf) = chain.step(reader)? {
            hit = look.through(&leaf.block, LEAF_SIZE, leaf.addr, false)?;
            if hit.is_some() {
                break;
            }
        }
    } else {
        hit = look.through(&dir.block, DINODE_SIZE, dir.addr, true)?;
    }
    if let Some(hit) = hit {
        hit.check_target(reader.geometry())?;
        return Ok(Probe::Here(hit));
    }
    let cost = match look.room {
        Some(_) => InsertCost::FITS,
        None => needs_blocks(reader, dir.addr, name)?,
    };
    Ok(Probe::Absent(Room { cost, at: look.room }))
}

/// What is looked for, and the first room met on the way.
struct Look<'n> {
    name: &'n [u8],
    hash: u32,
    need: usize,
    room: Option<Location>,
}

impl Look<'_> {
    fn through(&mut self, bytes: &[u8], start: usize, block: BlockAddr, linear: bool) -> Result<Option<Hit>> {
        for record in area::records(bytes, start, block) {
            let record = record?;
            if record.live && record.hash() == self.hash && record.name == self.name {
                return Hit::new(&record, block, linear).map(Some);
            }
            if self.room.is_none() && record.spare() >= self.need {
                self.room = Some(Location {
                    block,
                    // A block has at most 64 KiB.
                    offset: record.offset as u32,
                });
            }
        }
        Ok(None)
    }
}

/// [`insert`] of a name that is known to be absent, into the room that [`probe`] found. The directory must not have
/// changed since, but for a removal that [`Room::without`] was told of.
///
/// # Errors
/// As [`insert`], except [`Error::Exists`].
pub fn insert_at<E: BlockEdit + ?Sized>(
    edit: &mut E,
    dir: BlockAddr,
    entry: &NewEntry<'_>,
    room: &Room,
    now: Timestamp,
) -> Result<()> {
    let Some(at) = room.at else {
        return insert(edit, dir, entry, now);
    };
    check_name(entry.name)?;
    let bytes = edit.edit(at.block)?;
    if at.block == dir {
        area::place(bytes, at.offset as usize, dir, &dirent_of(entry), entry.name)?;
    } else {
        place_in_leaf(bytes, at.block, at.offset as usize, entry, now)?;
    }
    let mut fits = true;
    edit_dinode(edit, dir, |di| {
        let entries = di.entries.get().checked_add(1);
        fits = entries.is_some();
        di.entries = entries.unwrap_or(u32::MAX).into();
        di.set_mtime(now);
        di.set_ctime(now);
    })?;
    if fits {
        Ok(())
    } else {
        Err(Error::TOO_MANY_ENTRIES)
    }
}
