//! The narrow traits every algorithm over blocks is written against.
//!
//! fsck implements them over an overlay, mkfs over a plan, the driver over a journaled transaction under glocks.
//! Algorithms borrow one block at a time: they read (a cheap shared snapshot), compute, then edit.

use crate::addr::{BlockAddr, Extent};
use crate::error::Result;
use crate::geometry::Geometry;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Blocks whose memory is kept for those to come.
const KEPT_MAX: usize = 256;
/// Blocks that are allocated together when none is kept.
const TOGETHER: usize = 16;

/// Memory of blocks that nobody has any more: blocks come and go by the thousand, and all of a volume are as long.
static KEPT: Mutex<Vec<Arc<[u8]>>> = Mutex::new(Vec::new());

fn kept() -> MutexGuard<'static, Vec<Arc<[u8]>>> {
    // A list is whole at every moment, whoever panicked while holding it.
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory of `len` bytes with arbitrary contents, of which there is no other reference.
fn memory(len: usize) -> Arc<[u8]> {
    let mut list = kept();
    if let Some(mut bytes) = list.pop()
        && bytes.len() == len
        && Arc::get_mut(&mut bytes).is_some()
    {
        return bytes;
    }
    // Those that are left are as long as this one: of another volume.
    list.clear();
    drop(list);
    let fresh = || std::iter::repeat_n(0u8, len).collect::<Arc<[u8]>>();
    // The heap of a thread grows by what is asked for, with a system call each time: it is asked for all of it first.
    let whole = len.saturating_add(64).saturating_mul(TOGETHER);
    drop(std::hint::black_box(Vec::<u8>::with_capacity(whole)));
    let more: Vec<_> = std::iter::repeat_with(fresh).take(TOGETHER).collect();
    let mut list = kept();
    if list.is_empty() {
        list.extend(more);
    }
    drop(list);
    fresh()
}

/// A shared, immutable snapshot of one block's bytes (`geometry.bsize()` long). Cloning is a reference count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block(Arc<[u8]>);

impl Drop for Block {
    fn drop(&mut self) {
        if self.0.is_empty() || Arc::get_mut(&mut self.0).is_none() {
            return;
        }
        let mut kept = kept();
        if kept.len() < KEPT_MAX && kept.first().is_none_or(|other| other.len() == self.0.len()) {
            kept.push(std::mem::take(&mut self.0));
        }
    }
}

impl Block {
    /// Takes the bytes.
    #[must_use]
    pub fn new(bytes: Arc<[u8]>) -> Self {
        Self(bytes)
    }

    /// A block of zeroes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let mut bytes = memory(len);
        if let Some(bytes) = Arc::get_mut(&mut bytes) {
            bytes.fill(0);
        }
        Self(bytes)
    }

    /// The shared bytes.
    #[must_use]
    pub fn into_inner(mut self) -> Arc<[u8]> {
        std::mem::take(&mut self.0)
    }

    /// Mutable bytes; copies first when somebody else holds this snapshot.
    pub fn make_mut(&mut self) -> &mut [u8] {
        if Arc::get_mut(&mut self.0).is_none() {
            *self = Self::from(&*self.0);
        }
        Arc::make_mut(&mut self.0)
    }
}

impl From<&[u8]> for Block {
    fn from(bytes: &[u8]) -> Self {
        let mut copy = memory(bytes.len());
        if let Some(copy) = Arc::get_mut(&mut copy) {
            copy.copy_from_slice(bytes);
        }
        Self(copy)
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// What a block is used for: decides its bitmap state, whether a copy of it can stand in a journal (so that freeing
/// it needs a revoke), and how its first contents are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockUse {
    /// Metadata with a meta header: indirect block, leaf, hash block, EA block.
    Meta,
    /// Plain file data, never in a journal.
    Data,
    /// File data of a jdata file: logged like metadata.
    JournaledData,
}

/// Read access to metadata blocks.
pub trait BlockRead {
    /// The volume's geometry.
    fn geometry(&self) -> &Geometry;

    /// A snapshot of the block as this reader sees it (an editor sees its own edits).
    ///
    /// # Errors
    /// I/O errors and the owner's refusal. Contents are not checked: decoders do that.
    fn read(&self, addr: BlockAddr) -> Result<Block>;

    /// Says that these blocks will be read soon. Only a hint.
    fn read_ahead(&self, _blocks: &[BlockAddr]) {}
}

/// Edit access: what an algorithm does between the owner's begin and commit. Nothing of it is seen by others, and
/// nothing may have happened, when the owner drops the edit after an error.
pub trait BlockEdit: BlockRead {
    /// The block's bytes for change, its present contents in them.
    ///
    /// # Errors
    /// As [`BlockRead::read`].
    fn edit(&mut self, addr: BlockAddr) -> Result<&mut [u8]>;

    /// The bytes of a freshly allocated metadata block, zeroed, without reading the old contents.
    ///
    /// # Errors
    /// The owner's refusal.
    fn create(&mut self, addr: BlockAddr) -> Result<&mut [u8]>;

    /// Gives a freshly allocated *file data* block its first contents (`bytes` may be shorter than a block: the rest
    /// is zeroed). `Data` reaches the disk before the edit is committed; `JournaledData` goes through the log.
    ///
    /// # Errors
    /// I/O errors and the owner's refusal.
    fn write_data(&mut self, addr: BlockAddr, usage: BlockUse, bytes: &[u8]) -> Result<()>;

    /// Allocates between 1 and `want` contiguous blocks, near `goal`.
    ///
    /// # Errors
    /// [`crate::Error::NoSpace`], I/O errors, corruption in the bitmap.
    fn alloc(&mut self, want: u32, goal: BlockAddr, usage: BlockUse) -> Result<Extent>;

    /// Frees blocks (bitmap USED to FREE) and, unless `usage` is `Data`, makes sure that no journal copy of them is
    /// replayed.
    ///
    /// # Errors
    /// I/O errors, corruption in the bitmap.
    fn free(&mut self, extent: Extent, usage: BlockUse) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_used_again_shows_nothing_of_before() {
        for len in [512, 4096, 1, 4096, 0] {
            let old = vec![7u8; len];
            for _ in 0..3 * TOGETHER {
                drop(Block::from(&old[..]));
            }
            let blocks: Vec<Block> = (0..3 * TOGETHER).map(|_| Block::zeroed(len)).collect();
            assert!(blocks.iter().all(|block| **block == vec![0u8; len]));
        }
    }

    #[test]
    fn a_block_that_somebody_has_is_neither_changed_nor_used_again() {
        let seen = Block::from(&[1u8; 512][..]);
        let mut changed = seen.clone();
        changed.make_mut().fill(2);
        drop(changed);
        let others: Vec<Block> = (0..2 * TOGETHER).map(|_| Block::from(&[3u8; 512][..])).collect();
        assert_eq!(seen, Block::new([1u8; 512].into()));
        assert!(others.iter().all(|block| **block == [3u8; 512]));
        assert_eq!(*seen.into_inner(), [1u8; 512]);
    }

    #[test]
    fn no_more_is_kept_than_said() {
        let blocks: Vec<Block> = (0..2 * KEPT_MAX).map(|_| Block::zeroed(512)).collect();
        drop(blocks);
        assert!(kept().len() <= KEPT_MAX);
    }
}
