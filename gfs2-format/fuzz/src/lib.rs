//! What the targets share: input bytes as choices, a volume with something on it, and damage.

use gfs2_format::memvol::MemVolume;
use gfs2_format::walk::{Scope, owned_blocks};
use gfs2_format::{BlockAddr, BlockRead, Error};

/// Bytes of the fuzzer taken as choices; after the end they are zeroes.
#[derive(Debug)]
pub struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// The next number below `n` (at least 1).
    pub fn below(&mut self, n: u64) -> u64 {
        let raw = u64::from_le_bytes(std::array::from_fn(|i| if i < 4 { self.byte() } else { 0 }));
        raw % n.max(1)
    }

    /// Is anything left?
    pub fn more(&self) -> bool {
        !self.0.is_empty()
    }
}

/// The inode's blocks, its dinode first.
///
/// # Panics
/// When a fresh volume is not in order.
pub fn blocks_of(volume: &MemVolume, addr: BlockAddr) -> Vec<BlockAddr> {
    let mut blocks = vec![addr];
    owned_blocks(volume, addr, Scope::All, &mut |owned| {
        blocks.extend(owned.extent.blocks());
        Ok(())
    })
    .expect("a fresh inode");
    blocks
}

/// Overwrites some bytes of these blocks.
pub fn damage(volume: &mut MemVolume, blocks: &[BlockAddr], choices: &mut Choices<'_>) {
    let len = volume.geometry().block_len() as u64;
    for _ in 0..choices.below(16) {
        let block = blocks[choices.below(blocks.len() as u64) as usize];
        let (at, value) = (choices.below(len) as usize, choices.byte());
        volume.damage(block, |bytes| bytes[at] = value);
    }
}

/// Damages the inode at `addr`, then does what the choices say; a change that fails leaves the volume as it was.
pub fn work_on_damaged(
    mut volume: MemVolume,
    addr: BlockAddr,
    choices: &mut Choices<'_>,
    operate: impl Fn(&mut MemVolume, BlockAddr, &mut Choices<'_>) -> Result<(), Error>,
) {
    let blocks = blocks_of(&volume, addr);
    damage(&mut volume, &blocks, choices);
    for _ in 0..20 {
        let mut edit = volume.clone();
        if operate(&mut edit, addr, choices).is_ok() {
            volume = edit;
        }
        if !choices.more() {
            break;
        }
    }
}
