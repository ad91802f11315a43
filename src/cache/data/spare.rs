//! Memory of blocks that have been written, kept for those to come: fresh memory costs more than filling it.

use super::super::buffers::lock;
use gfs2_format::Block;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes kept, at most, unless set otherwise.
const KEPT_BYTES: usize = 16 << 20;

/// Blocks whose contents nobody wants.
#[derive(Debug)]
pub(super) struct Spare {
    blocks: Mutex<Vec<Block>>,
    limit: AtomicUsize,
}

impl Default for Spare {
    fn default() -> Self {
        Self {
            blocks: Mutex::default(),
            limit: AtomicUsize::new(KEPT_BYTES),
        }
    }
}

impl Spare {
    /// Sets how many bytes are kept.
    pub(super) fn set_limit(&self, bytes: usize) {
        self.limit.store(bytes.min(KEPT_BYTES), Ordering::Relaxed);
    }

    /// Bytes kept now.
    pub(super) fn bytes(&self) -> usize {
        let blocks = lock(&self.blocks);
        blocks.len() * blocks.first().map_or(0, |block| block.len())
    }

    /// A block with these contents.
    pub(super) fn filled(&self, bytes: &[u8]) -> Block {
        let spare = lock(&self.blocks).pop();
        match spare {
            Some(mut block) if block.len() == bytes.len() => {
                block.make_mut().copy_from_slice(bytes);
                block
            }
            _ => Block::from(bytes),
        }
    }

    /// Keeps those blocks that nobody else has, as far as there is room.
    pub(super) fn keep(&self, blocks: impl Iterator<Item = Block>) {
        let mut kept = lock(&self.blocks);
        for block in blocks {
            let room = self.limit.load(Ordering::Relaxed) / block.len().max(1);
            let mut bytes = block.into_inner();
            if kept.len() < room && Arc::get_mut(&mut bytes).is_some() {
                kept.push(Block::new(bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_somebody_has_is_left_alone() {
        let spare = Spare::default();
        let (mine, yours) = (Block::from(&[1u8; 512][..]), Block::from(&[2u8; 512][..]));
        let seen = yours.clone();
        spare.keep([mine, yours].into_iter());
        assert_eq!(lock(&spare.blocks).len(), 1);
        assert_eq!(spare.filled(&[3; 512]), Block::from(&[3u8; 512][..]));
        assert_eq!(seen, Block::from(&[2u8; 512][..]));
        assert_eq!(spare.filled(&[4; 1024]).len(), 1024);
    }

    #[test]
    fn no_more_is_kept_than_allowed() {
        let spare = Spare::default();
        spare.keep((0..6000).map(|_| Block::zeroed(4096)));
        assert_eq!(lock(&spare.blocks).len(), KEPT_BYTES / 4096);
    }
}
