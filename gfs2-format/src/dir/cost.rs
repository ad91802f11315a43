//! What an insert costs, found by playing it through on hashes and sizes.

use super::area;
use super::table::{Chain, Dir, Run};
use crate::addr::{BlockAddr, FileBlock};
use crate::edit::BlockRead;
use crate::error::Result;
use crate::geometry::{Geometry, MAX_DIR_DEPTH};
use crate::ondisk::{DINODE_SIZE, Dirent, LEAF_SIZE, name_hash};
use crate::tree;

/// What an insert costs. Unit: filesystem blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct InsertCost {
    /// Blocks it allocates at most (leaves, hash blocks, indirect blocks); 0: the entry fits where there is room.
    pub blocks: u32,
    /// Metadata blocks it edits at most, the new ones and the dinode included (bitmaps not).
    pub touched: u32,
}

impl InsertCost {
    /// Of an entry for which there is room.
    pub(super) const FITS: Self = Self {
        blocks: 0,
        touched: 2,
    };
}

/// The state of the one leaf an insert goes to, and of the table.
struct Play {
    /// Hash and record size of each entry.
    entries: Vec<(u32, usize)>,
    leaf_depth: u32,
    depth: u32,
    leaves: u32,
    /// Hash blocks edited by splits.
    hash_blocks: u32,
}

/// What inserting this name costs at most in the directory's present state. Exact but for indirect blocks.
///
/// # Errors
/// As [`super::lookup`].
pub fn needs_blocks<R: BlockRead + ?Sized>(reader: &R, dir: BlockAddr, name: &[u8]) -> Result<InsertCost> {
    let dir = Dir::open(reader, dir)?;
    let hash = name_hash(name);
    let need = Dirent::record_size(name.len());
    let start = if dir.is_hashed() {
        hashed(reader, &dir, hash, need)?
    } else {
        linear(reader, &dir, need)?
    };
    Ok(match start {
        Start::Fits => InsertCost::FITS,
        Start::Chains => InsertCost {
            blocks: 1,
            touched: 3,
        },
        Start::Splits(mut play, placed) => {
            if !placed {
                play.run(&dir, reader.geometry(), hash, need);
            }
            play.cost(&dir, reader.geometry())
        }
    })
}

enum Start {
    Fits,
    Chains,
    /// The leaf, and whether the entry is in it already.
    Splits(Play, bool),
}

/// A linear directory: where its only area has no room, it is converted first.
fn linear<R: BlockRead + ?Sized>(reader: &R, dir: &Dir, need: usize) -> Result<Start> {
    let mut entries = Vec::new();
    let (mut most, mut last) = (0, 0);
    for record in area::records(&dir.block, DINODE_SIZE, dir.addr) {
        let record = record?;
        last = record.spare();
        most = most.max(last);
        if record.live {
            entries.push((record.hash(), record.used()));
        }
    }
    if most >= need {
        return Ok(Start::Fits);
    }
    let depth = u32::from(reader.geometry().initial_dir_depth());
    let play = Play {
        entries,
        leaf_depth: 0,
        depth,
        leaves: 1,
        hash_blocks: 0,
    };
    // In the leaf the last record has more room.
    Ok(Start::Splits(play, last + (DINODE_SIZE - LEAF_SIZE) >= need))
}

fn hashed<R: BlockRead + ?Sized>(reader: &R, dir: &Dir, hash: u32, need: usize) -> Result<Start> {
    let slot = dir.slot_of(hash);
    let mut chain = Chain::new(dir.leaf_of(reader, slot)?);
    let mut head = None;
    let mut length = 0u32;
    while let Some(leaf) = chain.step(reader)? {
        if area::find_room(&leaf.block, LEAF_SIZE, leaf.addr, need)?.is_some() {
            return Ok(Start::Fits);
        }
        length = length.saturating_add(1);
        head.get_or_insert(leaf);
    }
    let Some(head) = head.filter(|_| length == 1) else {
        return Ok(Start::Chains);
    };
    dir.run_of(slot, head.addr, head.depth())?;
    let mut entries = Vec::new();
    for record in head.records() {
        let record = record?;
        if record.live {
            entries.push((record.hash(), record.used()));
        }
    }
    let play = Play {
        entries,
        leaf_depth: u32::from(head.depth()),
        depth: dir.depth(),
        leaves: 0,
        hash_blocks: 0,
    };
    Ok(Start::Splits(play, false))
}

impl Play {
    /// Splits, doubles and chains until the entry fits.
    fn run(&mut self, dir: &Dir, geometry: &Geometry, hash: u32, need: usize) {
        loop {
            if self.leaf_depth < self.depth {
                let owned = Run {
                    start: 0,
                    len: 1u32 << (self.depth - self.leaf_depth).min(u32::from(MAX_DIR_DEPTH)),
                };
                self.hash_blocks = self
                    .hash_blocks
                    .saturating_add(dir.blocks_of(geometry, owned).saturating_add(1));
                self.leaves = self.leaves.saturating_add(1);
                self.leaf_depth += 1;
                let half = |hash: u32| hash.checked_shr(32 - self.leaf_depth).unwrap_or(0);
                self.entries.retain(|(other, _)| half(*other) == half(hash));
                let used: usize = self.entries.iter().map(|(_, size)| *size).sum();
                if used.saturating_add(need) <= geometry.leaf_area() {
                    return;
                }
            } else if self.depth < u32::from(MAX_DIR_DEPTH) {
                self.depth += 1;
            } else {
                self.leaves = self.leaves.saturating_add(1);
                return;
            }
        }
    }

    fn cost(&self, dir: &Dir, geometry: &Geometry) -> InsertCost {
        let jbsize = geometry.jbsize();
        let new_blocks = (8u64 << self.depth).div_ceil(jbsize);
        let hashed = dir.is_hashed();
        let old_depth = if hashed {
            dir.depth()
        } else {
            u32::from(geometry.initial_dir_depth())
        };
        let stuffed = dir.di.height.get() == 0;
        let old_blocks = if stuffed {
            0
        } else {
            (8u64 << old_depth).div_ceil(jbsize)
        };
        // The dinode, the leaf the entries come from, the leaves made.
        let mut touched = 2u64.saturating_add(u64::from(self.leaves));
        let mut blocks = u64::from(self.leaves);
        if self.depth > old_depth {
            let height = dir.di.height.get().max(1);
            let indirect = tree::worst_case_blocks(geometry, height, FileBlock::new(0), new_blocks).indirect;
            blocks = blocks
                .saturating_add(new_blocks - old_blocks)
                .saturating_add(indirect);
            touched = touched.saturating_add(new_blocks).saturating_add(indirect);
        } else if !stuffed {
            touched = touched.saturating_add(u64::from(self.hash_blocks).min(new_blocks));
        }
        InsertCost {
            blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
            touched: u32::try_from(touched).unwrap_or(u32::MAX),
        }
    }
}
