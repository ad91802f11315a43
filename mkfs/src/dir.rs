//! Adds entries to a directory while a volume is made.
//!
//! Invariants: records tile their area to the block's end; entries are added only, one after the other; byte for byte
//! what the original leaves, also where it differs from the kernel: a split packs the moved entries to the front of
//! the new leaf, and bytes of names that are gone stay where they were.
//! Facts: FORMAT.md section 4.

use crate::error::Result;
use crate::inode::{Builder, Inode};
use gfs2_format::InodeNum;
use gfs2_format::geometry::MAX_DIR_DEPTH;
use gfs2_format::ondisk::{
    DINODE_SIZE, DIRENT_SIZE, DinodeFlags, Dirent, FileType, LEAF_SIZE, Leaf, MetaType, RawInum, name_hash,
};
use zerocopy::{FromBytes, FromZeros};

/// What an entry says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    inum: RawInum,
    de_type: u16,
    hash: u32,
    name: &'a [u8],
}

impl<'a> Record<'a> {
    /// Bytes of the record of "." (and of any name of up to 8 bytes).
    pub(crate) const SIZE_OF_DOT: usize = Dirent::record_size(1);

    pub(crate) fn new(num: InodeNum, file_type: FileType, name: &'a [u8]) -> Self {
        Self {
            inum: num.into(),
            de_type: file_type.dirent_type(),
            hash: name_hash(name),
            name,
        }
    }

    /// Writes a whole record of `rec_len` bytes at byte `at`.
    pub(crate) fn write(&self, block: &mut [u8], at: usize, rec_len: usize) {
        let de = dirent_of(block, at);
        *de = Dirent::new_zeroed();
        de.rec_len = (rec_len as u16).into();
        de.name_len = (self.name.len() as u16).into();
        self.fill(block, at);
    }

    /// Fills in a record that [`claim`] has made.
    fn fill(&self, block: &mut [u8], at: usize) {
        let de = dirent_of(block, at);
        de.inum = self.inum;
        de.hash = self.hash.into();
        de.de_type = self.de_type.into();
        let name = at + DIRENT_SIZE;
        block[name..name + self.name.len()].copy_from_slice(self.name);
    }
}

fn dirent_of(block: &mut [u8], at: usize) -> &mut Dirent {
    let (de, _) = Dirent::mut_from_prefix(&mut block[at..]).expect("records end within their block");
    de
}

fn leaf_of(block: &mut [u8]) -> &mut Leaf {
    let (leaf, _) = Leaf::mut_from_prefix(block).expect("a block is longer than a leaf's header");
    leaf
}

/// Offsets of the records from byte `first` of a block on.
fn offsets(block: &mut [u8], first: usize) -> Vec<usize> {
    let mut all = Vec::new();
    let mut at = first;
    while at < block.len() {
        all.push(at);
        match usize::from(dirent_of(block, at).rec_len.get()) {
            0 => break,
            len => at += len,
        }
    }
    all
}

/// Makes a record for a name of `name_len` bytes: in an area without entries the first, else in a sentinel that is
/// large enough, or behind an entry with room to spare, whichever comes first. `None`: no room.
fn claim(block: &mut [u8], first: usize, entries: u32, name_len: usize) -> Option<usize> {
    let need = Dirent::record_size(name_len);
    let whole = block.len() - first;
    if entries == 0 {
        let de = dirent_of(block, first);
        de.rec_len = (whole as u16).into();
        de.name_len = (name_len as u16).into();
        return Some(first);
    }
    for at in offsets(block, first) {
        let de = dirent_of(block, at);
        let rec_len = usize::from(de.rec_len.get());
        if de.inum.formal_ino.get() == 0 {
            if rec_len >= need {
                de.name_len = (name_len as u16).into();
                return Some(at);
            }
            continue;
        }
        let used = Dirent::record_size(usize::from(de.name_len.get()));
        if rec_len >= used + need {
            de.rec_len = (used as u16).into();
            let new = dirent_of(block, at + used);
            *new = Dirent::new_zeroed();
            new.rec_len = ((rec_len - used) as u16).into();
            new.name_len = (name_len as u16).into();
            return Some(at + used);
        }
    }
    None
}

fn leaf_entries(block: &mut [u8]) -> u32 {
    u32::from(leaf_of(block).entries.get())
}

fn count_entry(block: &mut [u8]) {
    let leaf = leaf_of(block);
    leaf.entries = (leaf.entries.get() + 1).into();
}

impl Inode {
    /// Adds an entry.
    pub(crate) fn add_entry(&mut self, b: &mut Builder<'_, '_>, record: &Record<'_>) -> Result<()> {
        let (flags, _, entries) = self.dir_state();
        if !flags.contains(DinodeFlags::EXHASH) {
            let block = self.dinode_block();
            if let Some(at) = claim(block, DINODE_SIZE, entries, record.name.len()) {
                record.fill(block, at);
                self.count_dir_entry();
                return Ok(());
            }
            self.make_exhash(b)?;
        }
        self.add_hashed(b, record)
    }

    fn count_dir_entry(&mut self) {
        let di = self.di();
        di.entries = (di.entries.get() + 1).into();
    }

    fn new_leaf(&mut self, b: &mut Builder<'_, '_>) -> Result<u64> {
        let addr = self.new_block(b, Some(MetaType::Lf))?;
        let inode = self.num().addr.get();
        if let Some(block) = self.block_mut(addr) {
            let leaf = leaf_of(block);
            leaf.dirent_format = 1200.into();
            leaf.inode = inode.into();
        }
        Ok(addr)
    }

    /// Moves all entries to one leaf and makes the dinode's payload the hash table.
    fn make_exhash(&mut self, b: &mut Builder<'_, '_>) -> Result<()> {
        let (_, _, entries) = self.dir_state();
        let addr = self.new_leaf(b)?;
        self.move_tail(addr, LEAF_SIZE);
        if let Some(block) = self.block_mut(addr) {
            leaf_of(block).entries = (entries as u16).into();
            // The records tiled the dinode's payload; a leaf's is larger.
            let end = block.len() - (DINODE_SIZE - LEAF_SIZE);
            let mut last = LEAF_SIZE;
            let mut at = LEAF_SIZE;
            while at < end {
                last = at;
                at += usize::from(dirent_of(block, at).rec_len.get());
            }
            let de = dirent_of(block, last);
            de.rec_len = (de.rec_len.get() + (DINODE_SIZE - LEAF_SIZE) as u16).into();
        }
        let slots = b.geometry.block_len() / 16;
        for slot in self.dinode_block()[DINODE_SIZE..].chunks_exact_mut(8).take(slots) {
            slot.copy_from_slice(&addr.to_be_bytes());
        }
        let depth = b.geometry.initial_dir_depth();
        let di = self.di();
        di.size = ((slots * 8) as u64).into();
        di.set_flags(di.flags() | DinodeFlags::EXHASH);
        di.payload_format = 0.into();
        di.depth = depth.into();
        Ok(())
    }

    fn add_hashed(&mut self, b: &mut Builder<'_, '_>, record: &Record<'_>) -> Result<()> {
        // Every turn splits a leaf, doubles the table, follows or makes a chain: all of them bounded by the depth.
        loop {
            let (_, depth, _) = self.dir_state();
            let index = record.hash.checked_shr(32 - u32::from(depth)).unwrap_or(0);
            let mut addr = self.read_u64(b, u64::from(index) * 8)?;
            loop {
                let Some(block) = self.block_mut(addr) else {
                    unreachable!("a directory keeps its leaves until it is finished");
                };
                let entries = leaf_entries(block);
                if let Some(at) = claim(block, LEAF_SIZE, entries, record.name.len()) {
                    record.fill(block, at);
                    count_entry(block);
                    self.count_dir_entry();
                    return Ok(());
                }
                let leaf = *leaf_of(block);
                if leaf.depth.get() < depth {
                    let owned = 1u32 << (depth - leaf.depth.get());
                    self.split(b, addr, index & !(owned - 1), depth)?;
                    break;
                }
                if depth < MAX_DIR_DEPTH {
                    self.double_table(b)?;
                    break;
                }
                if leaf.next.get() == 0 {
                    let next = self.new_leaf(b)?;
                    if let Some(block) = self.block_mut(next) {
                        leaf_of(block).depth = leaf.depth;
                    }
                    if let Some(block) = self.block_mut(addr) {
                        leaf_of(block).next = next.into();
                    }
                    addr = next;
                } else {
                    addr = leaf.next.get();
                }
            }
        }
    }

    /// Gives the lower half of a leaf's slots, from slot `start` on, to a new leaf, with the entries that belong there.
    fn split(&mut self, b: &mut Builder<'_, '_>, old_addr: u64, start: u32, depth: u16) -> Result<()> {
        let new_addr = self.new_leaf(b)?;
        let Some(mut old) = self.block_mut(old_addr).map(std::mem::take) else {
            unreachable!("a directory keeps its leaves until it is finished");
        };
        let half = (1u32 << (depth - leaf_of(&mut old).depth.get())) >> 1;
        let pointers: Vec<u8> = (0..half).flat_map(|_| new_addr.to_be_bytes()).collect();
        self.write(b, u64::from(start) * 8, &pointers, true)?;
        let divider = u64::from(start + half) << (32 - u32::from(depth));

        let Some(new) = self.block_mut(new_addr) else {
            unreachable!("the new leaf was just made");
        };
        let mut previous: Option<usize> = None;
        let mut moved = false;
        for at in offsets(&mut old, LEAF_SIZE) {
            let de = *dirent_of(&mut old, at);
            let goes = de.inum.formal_ino.get() != 0 && u64::from(de.hash.get()) < divider;
            if !goes {
                previous = Some(at);
                continue;
            }
            moved = true;
            move_entry(&mut old, at, previous, new);
            // A first record stays, as a sentinel, and takes in the ones behind it.
            previous = previous.or(Some(at));
        }
        if !moved {
            claim(new, LEAF_SIZE, 0, 0);
        }
        let leaf_depth = leaf_of(&mut old).depth.get() + 1;
        leaf_of(&mut old).depth = leaf_depth.into();
        leaf_of(new).depth = leaf_depth.into();
        if let Some(slot) = self.block_mut(old_addr) {
            *slot = old;
        }
        Ok(())
    }

    /// Doubles the hash table, block after block from its end, as the original does: it decides where new blocks go.
    fn double_table(&mut self, b: &mut Builder<'_, '_>) -> Result<()> {
        let chunk = u64::from(b.geometry.bsize()) / 2;
        for n in (0..self.size() / chunk).rev() {
            let mut doubled = Vec::with_capacity(2 * chunk as usize);
            for slot in 0..chunk / 8 {
                let pointer = self.read_u64(b, n * chunk + slot * 8)?.to_be_bytes();
                doubled.extend_from_slice(&pointer);
                doubled.extend_from_slice(&pointer);
            }
            self.write(b, n * 2 * chunk, &doubled, true)?;
        }
        let di = self.di();
        di.depth = (di.depth.get() + 1).into();
        Ok(())
    }
}

/// Moves the entry at `at` of a leaf, with `previous` before it, to another that has room.
fn move_entry(old: &mut [u8], at: usize, previous: Option<usize>, new: &mut [u8]) {
    let de = *dirent_of(old, at);
    let len = usize::from(de.name_len.get());
    let entries = leaf_entries(new);
    let Some(to) = claim(new, LEAF_SIZE, entries, len) else {
        unreachable!("an empty leaf holds what another one of its size held");
    };
    let target = dirent_of(new, to);
    target.inum = de.inum;
    target.hash = de.hash;
    target.de_type = de.de_type;
    let name = &old[at + DIRENT_SIZE..][..len];
    new[to + DIRENT_SIZE..][..len].copy_from_slice(name);
    count_entry(new);

    let leaf = leaf_of(old);
    leaf.entries = (leaf.entries.get() - 1).into();
    match previous {
        None => dirent_of(old, at).inum = RawInum::default(),
        Some(previous) => {
            let previous = dirent_of(old, previous);
            previous.rec_len = (previous.rec_len.get() + de.rec_len.get()).into();
        }
    }
}

/// Bytes of a name in a directory; only here so that tests can read what was made.
#[cfg(test)]
fn names(block: &mut [u8], first: usize) -> Vec<Vec<u8>> {
    offsets(block, first)
        .into_iter()
        .filter_map(|at| {
            let de = *dirent_of(block, at);
            let len = usize::from(de.name_len.get());
            (!de.is_sentinel()).then(|| block[at + DIRENT_SIZE..][..len].to_vec())
        })
        .collect()
}

#[cfg(test)]
mod tests;
