//! Adding entries: linear, hashed, conversion, splits, doubling, chains.

use super::area;
use super::change::{check_linear_count, dirent_of};
use super::lookup::{check_name, find};
use super::table::{Chain, Dir, LeafBlock, Run};
use crate::addr::{BlockAddr, FileBlock, InodeNum};
use crate::edit::BlockEdit;
use crate::error::{Error, Expected, Result};
use crate::geometry::MAX_DIR_DEPTH;
use crate::ondisk::{
    DINODE_SIZE, Dinode, DinodeFlags, Dirent, FileType, LEAF_SIZE, Leaf, META_HEADER_SIZE, MetaType,
    name_hash, view_mut,
};
use crate::time::Timestamp;
use crate::tree::{self, Supply, clear_payload, edit_dinode};
use zerocopy::FromBytes;
use zerocopy::big_endian::U64;

/// An entry to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewEntry<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// The inode it names.
    pub num: InodeNum,
    /// The inode's file type.
    pub kind: FileType,
    /// The inode's first EA block directly follows its dinode: a hint for read-ahead (`de_rahead`).
    pub ea_follows: bool,
}

/// Adds an entry; converts, splits, doubles and chains as needed.
///
/// # Errors
/// [`crate::Error::Exists`] when the name is there; as [`super::lookup`] and [`check_name`], and those of
/// [`BlockEdit`].
pub fn insert<E: BlockEdit + ?Sized>(
    edit: &mut E,
    dir: BlockAddr,
    entry: &NewEntry<'_>,
    now: Timestamp,
) -> Result<()> {
    check_name(entry.name)?;
    let opened = Dir::open(edit, dir)?;
    let entries = opened.di.entries.get().checked_add(1);
    let entries = entries.ok_or(Error::TOO_MANY_ENTRIES)?;
    if find(edit, &opened, entry.name)?.is_some() {
        return Err(Error::Exists);
    }
    let need = Dirent::record_size(entry.name.len());
    let mut placed = false;
    if !opened.is_hashed() {
        match area::find_room(&opened.block, DINODE_SIZE, dir, need)? {
            Some(offset) => {
                area::place(edit.edit(dir)?, offset, dir, &dirent_of(entry), entry.name)?;
                placed = true;
            }
            None => convert(edit, &opened, now)?,
        }
    }
    // Each round makes the leaf's or the table's depth grow, or ends.
    let mut rounds = 2 * u32::from(MAX_DIR_DEPTH) + 2;
    while !placed {
        placed = insert_hashed(edit, dir, entry, need, now)?;
        rounds = rounds.checked_sub(1).ok_or_else(|| {
            let expected = Expected::Rule("a leaf that splits");
            Error::corrupt(
                dir,
                "dinode",
                "di_depth",
                u64::from(opened.di.depth.get()),
                expected,
            )
        })?;
    }
    edit_dinode(edit, dir, |di| {
        di.entries = entries.into();
        di.set_mtime(now);
        di.set_ctime(now);
    })
}

/// Places an entry in its leaf chain, or makes room and returns false.
fn insert_hashed<E: BlockEdit + ?Sized>(
    edit: &mut E,
    dir: BlockAddr,
    entry: &NewEntry<'_>,
    need: usize,
    now: Timestamp,
) -> Result<bool> {
    let dir = Dir::open(edit, dir)?;
    let slot = dir.slot_of(name_hash(entry.name));
    let head_addr = dir.leaf_of(edit, slot)?;
    let mut chain = Chain::new(head_addr);
    let mut ends: Option<(LeafBlock, LeafBlock, u32)> = None;
    while let Some(leaf) = chain.step(edit)? {
        if let Some(offset) = area::find_room(&leaf.block, LEAF_SIZE, leaf.addr, need)? {
            let bytes = edit.edit(leaf.addr)?;
            place_in_leaf(bytes, leaf.addr, offset, entry, now)?;
            return Ok(true);
        }
        ends = Some(match ends {
            None => (leaf.clone(), leaf, 1),
            Some((head, _, count)) => (head, leaf, count.saturating_add(1)),
        });
    }
    let Some((head, last, count)) = ends else {
        return Err(Error::corrupt(
            dir.addr,
            "dinode",
            "hash table slot",
            0,
            Expected::Rule("a leaf"),
        ));
    };
    let run = dir.run_of(slot, head.addr, head.depth())?;
    // A chain is not split: what it holds behind the head would be lost to one half.
    if run.len > 1 && count == 1 {
        split(edit, &dir, &head, run, now)?;
    } else if u32::from(MAX_DIR_DEPTH) > dir.depth() && count == 1 {
        double(edit, &dir)?;
    } else {
        let new = new_leaf(edit, dir.addr, head.depth(), count.saturating_add(1), now)?;
        place_in_leaf(edit.edit(new)?, new, LEAF_SIZE, entry, now)?;
        view_mut::<Leaf>(edit.edit(last.addr)?, 0, last.addr)?.next = new.get().into();
        return Ok(true);
    }
    Ok(false)
}

pub(super) fn place_in_leaf(
    bytes: &mut [u8],
    at: BlockAddr,
    offset: usize,
    entry: &NewEntry<'_>,
    now: Timestamp,
) -> Result<()> {
    area::place(bytes, offset, at, &dirent_of(entry), entry.name)?;
    let leaf: &mut Leaf = view_mut(bytes, 0, at)?;
    let entries = leaf.entries.get().checked_add(1).ok_or_else(|| {
        let expected = Expected::Range(0, u64::from(u16::MAX) - 1);
        Error::corrupt(at, "leaf", "lf_entries", u64::from(u16::MAX), expected)
    })?;
    leaf.entries = entries.into();
    leaf.set_time(now);
    Ok(())
}

/// A fresh leaf with one sentinel.
fn new_leaf<E: BlockEdit + ?Sized>(
    edit: &mut E,
    dir: BlockAddr,
    depth: u16,
    dist: u32,
    now: Timestamp,
) -> Result<BlockAddr> {
    let new = Supply::new(dir, 1).take(edit, MetaType::Lf)?;
    let bytes = edit.edit(new)?;
    area::clear(bytes, LEAF_SIZE, new)?;
    let leaf: &mut Leaf = view_mut(bytes, 0, new)?;
    leaf.depth = depth.into();
    leaf.dirent_format = super::change::FORMAT_DE.into();
    leaf.inode = dir.get().into();
    leaf.dist = dist.into();
    leaf.set_time(now);
    Ok(new)
}

/// Linear to hashed: the records move to one leaf, to which all slots of a stuffed table point.
fn convert<E: BlockEdit + ?Sized>(edit: &mut E, dir: &Dir, now: Timestamp) -> Result<()> {
    let mut last = DINODE_SIZE;
    let mut live = 0u32;
    for record in area::records(&dir.block, DINODE_SIZE, dir.addr) {
        let record = record?;
        last = record.offset;
        live = live.saturating_add(u32::from(record.live));
    }
    check_linear_count(dir, live)?;
    let new = new_leaf(edit, dir.addr, 0, 1, now)?;
    let bytes = edit.edit(new)?;
    let area = bytes.get_mut(LEAF_SIZE..).unwrap_or_default();
    area.fill(0);
    let payload = dir.block.get(DINODE_SIZE..).unwrap_or_default();
    area.iter_mut().zip(payload).for_each(|(to, from)| *to = *from);
    let last: &mut Dirent = view_mut(bytes, last - DINODE_SIZE + LEAF_SIZE, new)?;
    let grown = last
        .rec_len
        .get()
        .saturating_add((DINODE_SIZE - LEAF_SIZE) as u16);
    last.rec_len = grown.into();
    // A linear directory has fewer entries than one block has bytes.
    view_mut::<Leaf>(bytes, 0, new)?.entries = (live as u16).into();

    let depth = edit.geometry().initial_dir_depth();
    let bytes = edit.edit(dir.addr)?;
    clear_payload(bytes);
    let slots = tree::ptrs_mut(bytes, DINODE_SIZE, dir.addr)?;
    slots
        .iter_mut()
        .take(1 << depth)
        .for_each(|slot| *slot = new.get().into());
    let di: &mut Dinode = view_mut(bytes, 0, dir.addr)?;
    di.size = (8u64 << depth).into();
    di.depth = depth.into();
    di.payload_format = 0.into();
    di.set_flags(di.flags() | DinodeFlags::EXHASH);
    Ok(())
}

/// Splits a leaf: a new one takes the lower half of its slots and the entries that belong there.
fn split<E: BlockEdit + ?Sized>(
    edit: &mut E,
    dir: &Dir,
    old: &LeafBlock,
    run: Run,
    now: Timestamp,
) -> Result<()> {
    if dir.equal_slots(edit, run.start)? < run.len || dir.leaf_of(edit, run.start)? != old.addr {
        return Err(Error::corrupt(
            old.addr,
            "leaf",
            "lf_depth",
            u64::from(old.depth()),
            Expected::Rule("a depth that fits the slots which point here"),
        ));
    }
    let lower = Run {
        start: run.start,
        len: run.len / 2,
    };
    let (_, last_low) = dir.hashes(lower);
    let (mut low, mut high) = (Vec::new(), Vec::new());
    for record in old.records() {
        let record = record?;
        if record.live {
            let half = if record.hash() <= last_low {
                &mut low
            } else {
                &mut high
            };
            half.push(record.bytes);
        }
    }
    old.check_count((low.len() + high.len()) as u32)?;
    let depth = old.depth().saturating_add(1);
    let new = new_leaf(edit, dir.addr, depth, 1, now)?;
    for (at, half) in [(new, &low), (old.addr, &high)] {
        let bytes = edit.edit(at)?;
        area::pack(bytes, LEAF_SIZE, at, half)?;
        let leaf: &mut Leaf = view_mut(bytes, 0, at)?;
        leaf.depth = depth.into();
        leaf.entries = (half.len() as u16).into();
    }
    dir.set_slots(edit, lower, new.get())
}

/// Doubles the hash table: each slot becomes two.
fn double<E: BlockEdit + ?Sized>(edit: &mut E, dir: &Dir) -> Result<()> {
    // At most 2^16 slots, as the depth is below 17.
    let old = (0..dir.slots())
        .step_by(dir.slots_per_block(edit.geometry()).max(1) as usize)
        .map(|slot| dir.copy_slots(edit, slot))
        .collect::<Result<Vec<_>>>()?
        .concat();
    tree::unstuff(edit, dir.addr)?;
    let per_block = dir.slots_per_block(edit.geometry()).max(2) as usize;
    let doubled: Vec<u64> = old.iter().flat_map(|slot| [*slot, *slot]).collect();
    let blocks = doubled.len().div_ceil(per_block) as u32;
    let mut lblock = 0u32;
    let mut chunks = doubled.chunks(per_block);
    while lblock < blocks {
        let want = blocks - lblock;
        let got = tree::map_or_alloc(edit, dir.addr, FileBlock::new(u64::from(lblock)), want)?;
        for block in got.extent.blocks() {
            write_hash_block(edit, block, got.new, chunks.next().unwrap_or_default())?;
        }
        lblock = lblock.saturating_add(got.extent.len.max(1));
    }
    edit_dinode(edit, dir.addr, |di| {
        di.depth = di.depth.get().saturating_add(1).into();
        di.size = di.size.get().saturating_mul(2).into();
    })
}

fn write_hash_block<E: BlockEdit + ?Sized>(
    edit: &mut E,
    block: BlockAddr,
    new: bool,
    slots: &[u64],
) -> Result<()> {
    let bytes = if new {
        let bytes = edit.create(block)?;
        tree::stamp(bytes, MetaType::Jd, block)?;
        bytes
    } else {
        edit.edit(block)?
    };
    let room = bytes.get_mut(META_HEADER_SIZE..).unwrap_or_default();
    room.fill(0);
    let array = <[U64]>::mut_from_bytes(room).unwrap_or_default();
    array
        .iter_mut()
        .zip(slots)
        .for_each(|(to, from)| *to = (*from).into());
    Ok(())
}
