//! Writes that are under way while the next ones are being made: batches of memory that go to the device and come back.
//!
//! A batch is filled piece by piece, each piece with its place on the device; neighbours become one write. Memory is in
//! huge pages where the system has them: pinning a page costs about as much as all else that a direct write does per
//! page.
//!
//! Invariants: a batch is written from when it was submitted until [`WriteQueue::batch`] hands out its memory again or
//! [`WriteQueue::finish`] returns; pieces are written in any order, so those that are under way together must not
//! overlap; nothing is durable before the device is flushed. After an error nothing new is begun.

use super::aligned::{ALIGNMENT, AlignedBuf};
use super::{BlockDevice, FileDevice};
use crate::error::{Error, Result};
use compio_buf::{BufResult, IntoInner, IoBuf};
use compio_driver::op::{OpCodeFlag, WriteAt};
use compio_driver::{DriverType, Key, Proactor, PushEntry};
use memmap2::{Advice, MmapMut};
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a batch: a huge page of the usual size.
pub const BATCH: usize = 2 << 20;
/// Pieces of a batch, at most.
const PIECES: usize = 128;
/// Batches of a queue, the one being filled included.
const BATCHES: usize = 3;
/// A queue has one batch less until this many were handed over: to zero a new huge page costs more time of the processor
/// than to write it does.
const FEW: usize = 16;
/// Entries of the submission queue: never fewer than can be under way, for the reason given at the batched I/O.
const QUEUE: u32 = 512;
const _: () = assert!(QUEUE as usize > BATCHES * PIECES + 1);

/// Zeroed memory of [`BATCH`] bytes in one huge page, if there are any.
enum Memory {
    Mapped { map: MmapMut, range: Range<usize> },
    Heap(AlignedBuf),
}

impl Memory {
    fn new() -> Self {
        // Twice as much address space as is used: there is a whole huge page in it wherever it lies.
        match MmapMut::map_anon(2 * BATCH) {
            Ok(map) => {
                // Refused by systems without huge pages; pages of any size will do.
                let _ = map.advise(Advice::HugePage);
                let start = map.as_ptr().align_offset(BATCH).min(BATCH);
                let range = start..start.saturating_add(BATCH);
                Self::Mapped { map, range }
            }
            Err(_) => Self::Heap(AlignedBuf::zeroed(BATCH)),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped { map, range } => map.get(range.clone()).unwrap_or_default(),
            Self::Heap(buf) => buf,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Mapped { map, range } => map.get_mut(range.clone()).unwrap_or_default(),
            Self::Heap(buf) => buf,
        }
    }
}

#[derive(Clone, Debug)]
struct Piece {
    offset: u64,
    range: Range<usize>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.range.len() as u64)
    }
}

/// Memory for writes, and what of it goes where.
pub struct Batch {
    memory: Memory,
    pieces: Vec<Piece>,
    /// What is known of the beginning of the memory, and how far.
    kept: (u32, usize),
}

impl Batch {
    /// An empty batch; its memory is zero.
    #[must_use]
    pub fn new() -> Self {
        Self {
            memory: Memory::new(),
            pieces: Vec::new(),
            kept: (0, BATCH),
        }
    }

    /// Where a piece for `offset` would begin in the memory, and whether it continues the last piece.
    fn place(&self, offset: u64) -> (usize, bool) {
        let Some(last) = self.pieces.last() else {
            return (0, false);
        };
        if last.end() == offset {
            return (last.range.end, true);
        }
        (last.range.end.next_multiple_of(ALIGNMENT), false)
    }

    /// Is there room for a piece of `len` bytes at `offset`?
    #[must_use]
    pub fn has_room(&self, offset: u64, len: usize) -> bool {
        let (start, continues) = self.place(offset);
        let fits = start.checked_add(len).is_some_and(|end| end <= BATCH);
        fits && (continues || self.pieces.len() < PIECES)
    }

    /// Adds a piece of `len` bytes for `offset` and gives its memory, which holds what was in it the last time. A piece
    /// that begins where the last one ends continues it. `None` where there is no room.
    pub fn push(&mut self, offset: u64, len: usize) -> Option<&mut [u8]> {
        if !self.has_room(offset, len) {
            return None;
        }
        let (start, continues) = self.place(offset);
        let end = start.checked_add(len)?;
        self.kept.1 = self.kept.1.min(start);
        match self.pieces.last_mut() {
            Some(last) if continues => last.range.end = end,
            _ => self.pieces.push(Piece {
                offset,
                range: start..end,
            }),
        }
        self.memory.bytes_mut().get_mut(start..end)
    }

    /// No pieces?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// How much of the beginning of the memory holds what [`Batch::keep`] was told last, if that was `what`. Of new
    /// memory all is known as 0: zeroes. To add a piece makes it less.
    #[must_use]
    pub fn kept(&self, what: u32) -> usize {
        if self.kept.0 == what { self.kept.1 } else { 0 }
    }

    /// Says what the first `len` bytes of the memory hold, for whoever fills them the next time: they may need to change
    /// little. `what` is of the filler's own choice.
    pub fn keep(&mut self, what: u32, len: usize) {
        self.kept = (what, len);
    }

    /// Where in the memory a piece for `offset` would begin.
    #[must_use]
    pub fn position(&self, offset: u64) -> usize {
        self.place(offset).0
    }

    /// The pieces: where each goes, and its bytes.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let bytes = self.memory.bytes();
        self.pieces
            .iter()
            .map(move |piece| (piece.offset, bytes.get(piece.range.clone()).unwrap_or_default()))
    }

    /// Leaves out the pieces that `f` says no to.
    ///
    /// # Errors
    /// The first that `f` returns; the batch is then as it was.
    pub fn retain(&mut self, mut f: impl FnMut(u64, &[u8]) -> Result<bool>) -> Result<()> {
        let mut keep = Vec::with_capacity(self.pieces.len());
        for (offset, bytes) in self.pieces() {
            keep.push(f(offset, bytes)?);
        }
        let mut keep = keep.into_iter();
        self.pieces.retain(|_| keep.next().unwrap_or(true));
        Ok(())
    }

    fn clear(&mut self) {
        self.pieces.clear();
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("pieces", &self.pieces).finish()
    }
}

/// Takes batches of writes.
pub trait WriteQueue: fmt::Debug {
    /// An empty batch. Waits for one that is under way when there are enough of them.
    ///
    /// # Errors
    /// Those of the writes under way.
    fn batch(&mut self) -> Result<Batch>;

    /// Begins to write a batch.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; some of its pieces may be under way or written all the same.
    fn submit(&mut self, batch: Batch) -> Result<()>;

    /// Waits until everything that was submitted is written.
    ///
    /// # Errors
    /// The first error of the writes under way; all of them have ended.
    fn finish(&mut self) -> Result<()>;
}

/// The queue of a device that has none of its own: a batch is written when it is submitted.
#[derive(Debug)]
pub struct PlainQueue<D> {
    device: D,
    spare: Option<Batch>,
}

impl<D: BlockDevice> PlainQueue<D> {
    /// A queue to that device.
    pub fn new(device: D) -> Self {
        Self { device, spare: None }
    }
}

impl<D: BlockDevice> WriteQueue for PlainQueue<D> {
    fn batch(&mut self) -> Result<Batch> {
        Ok(self.spare.take().unwrap_or_default())
    }

    fn submit(&mut self, mut batch: Batch) -> Result<()> {
        batch
            .pieces()
            .try_for_each(|(offset, bytes)| self.device.write_at(offset, bytes))?;
        batch.clear();
        self.spare = Some(batch);
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A piece under way. The batch is back when the last of its pieces has ended.
struct Part {
    batch: Arc<Batch>,
    piece: Piece,
}

impl IoBuf for Part {
    fn as_init(&self) -> &[u8] {
        let bytes = self.batch.memory.bytes();
        bytes.get(self.piece.range.clone()).unwrap_or_default()
    }
}

/// A queue to a file by an io_uring of its own.
pub(super) struct RingQueue<'a> {
    device: &'a FileDevice,
    file: Arc<File>,
    ring: Proactor,
    running: Vec<Key<WriteAt<Part, Arc<File>>>>,
    spare: Vec<Batch>,
    /// Batches there are, wherever.
    batches: usize,
    /// Batches handed over.
    submitted: usize,
    failed: Option<Error>,
}

impl<'a> RingQueue<'a> {
    /// A queue to `file`, which is the one below `device`.
    pub(super) fn new(device: &'a FileDevice, file: Arc<File>) -> io::Result<Self> {
        let ring = Proactor::builder()
            .capacity(QUEUE)
            .driver_type(DriverType::IoUring)
            // Without it a ring that cannot write would be found out by a panic.
            .detect_opcode_support(OpCodeFlag::Write)
            .build()?;
        Ok(Self {
            device,
            file,
            ring,
            running: Vec::with_capacity(PIECES),
            spare: Vec::new(),
            batches: 0,
            submitted: 0,
            failed: None,
        })
    }

    /// The error of a write under way, told once.
    fn check(&mut self) -> Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    fn begin(&mut self, batch: &Arc<Batch>, piece: &Piece) {
        let part = Part {
            batch: Arc::clone(batch),
            piece: piece.clone(),
        };
        let op = WriteAt::new(Arc::clone(&self.file), piece.offset, part);
        match self.ring.push(op) {
            PushEntry::Pending(key) => self.running.push(key),
            PushEntry::Ready(BufResult(result, op)) => self.ended(&result, op.into_inner()),
        }
    }

    /// What the ring did not do in one go (short writes, errors) is done again by a plain call.
    fn ended(&mut self, result: &io::Result<usize>, part: Part) {
        let bytes = part.as_init();
        if !matches!(result, Ok(n) if *n == bytes.len()) && self.failed.is_none() {
            self.failed = self.device.write_at(part.piece.offset, bytes).err();
        }
        self.release(part.batch);
    }

    fn release(&mut self, batch: Arc<Batch>) {
        if let Some(mut batch) = Arc::into_inner(batch) {
            batch.clear();
            self.spare.push(batch);
        }
    }

    /// Waits for at least one write to end.
    fn reap(&mut self) -> Result<()> {
        match self.ring.poll(None) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::TimedOut) => {}
            // A write of a broken ring may reach the device at any time: that cannot be mended by writing again.
            Err(e) => return Err(Error::io("write", 0, 0, e)),
        }
        let mut still = Vec::with_capacity(self.running.len());
        for key in std::mem::take(&mut self.running) {
            match self.ring.pop(key) {
                PushEntry::Pending(key) => still.push(key),
                PushEntry::Ready(BufResult(result, op)) => self.ended(&result, op.into_inner()),
            }
        }
        self.running = still;
        Ok(())
    }
}

impl WriteQueue for RingQueue<'_> {
    fn batch(&mut self) -> Result<Batch> {
        loop {
            self.check()?;
            if let Some(batch) = self.spare.pop() {
                return Ok(batch);
            }
            let most = if self.submitted < FEW {
                BATCHES - 1
            } else {
                BATCHES
            };
            if self.batches < most || self.running.is_empty() {
                self.batches = self.batches.saturating_add(1);
                return Ok(Batch::new());
            }
            self.reap()?;
        }
    }

    fn submit(&mut self, batch: Batch) -> Result<()> {
        self.check()?;
        for (offset, bytes) in batch.pieces() {
            self.device.check_write("write", offset, bytes.len() as u64)?;
        }
        self.submitted = self.submitted.saturating_add(1);
        let batch = Arc::new(batch);
        for piece in &batch.pieces {
            if self.device.fits(piece.offset, piece.range.len()) {
                self.begin(&batch, piece);
            } else {
                let bytes = batch.memory.bytes().get(piece.range.clone());
                self.device.write_at(piece.offset, bytes.unwrap_or_default())?;
            }
        }
        // What could not be submitted now is when the queue is waited for.
        self.ring.flush();
        self.release(batch);
        self.check()
    }

    fn finish(&mut self) -> Result<()> {
        while !self.running.is_empty() {
            self.reap()?;
        }
        self.check()
    }
}

impl Drop for RingQueue<'_> {
    fn drop(&mut self) {
        // After an error some are under way: they end before the device is anybody else's.
        let _ = self.finish();
    }
}

impl fmt::Debug for RingQueue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingQueue")
            .field("device", &self.device)
            .field("running", &self.running.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
