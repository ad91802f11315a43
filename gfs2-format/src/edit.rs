//! The narrow traits every algorithm over blocks is written against.
//!
//! fsck implements them over an overlay, mkfs over a plan, the driver over a journaled transaction under glocks.
//! Algorithms borrow one block at a time: they read (a cheap shared snapshot), compute, then edit.

use crate::addr::{BlockAddr, Extent};
use crate::error::Result;
use crate::geometry::Geometry;
use std::ops::Deref;
use std::sync::Arc;

/// A shared, immutable snapshot of one block's bytes (`geometry.bsize()` long). Cloning is a reference count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block(Arc<[u8]>);

impl Block {
    /// Takes the bytes.
    #[must_use]
    pub fn new(bytes: Arc<[u8]>) -> Self {
        Self(bytes)
    }

    /// A block of zeroes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self(std::iter::repeat_n(0u8, len).collect())
    }

    /// The shared bytes.
    #[must_use]
    pub fn into_inner(self) -> Arc<[u8]> {
        self.0
    }

    /// Mutable bytes; copies first when somebody else holds this snapshot.
    pub fn make_mut(&mut self) -> &mut [u8] {
        Arc::make_mut(&mut self.0)
    }
}

impl From<&[u8]> for Block {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
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
