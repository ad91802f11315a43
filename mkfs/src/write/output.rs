//! Where rendered blocks go: one queue of the device, or several threads where it has none.
//!
//! Invariants: what is handed over is written when [`Outputs::finish`] has returned; after the first error no new write
//! is started.

use crate::error::{Error, Result};
use gfs2_format::device::{BATCH, Batch, BlockDevice, Identity, PlainQueue, WriteQueue};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes under way at a time by threads: enough to keep a device busy, whatever the number of processors.
const THREADS: usize = 4;

/// A batch that is being filled, and the queue it goes to when it is full.
pub(super) struct Output<'d> {
    queue: Box<dyn WriteQueue + 'd>,
    batch: Option<Batch>,
}

impl<'d> Output<'d> {
    fn new(queue: Box<dyn WriteQueue + 'd>) -> Self {
        Self { queue, batch: None }
    }

    /// Hands over what there is.
    fn hand_over(&mut self) -> Result<()> {
        match self.batch.take() {
            Some(batch) => Ok(self.queue.submit(batch)?),
            None => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<()> {
        self.hand_over()?;
        Ok(self.queue.finish()?)
    }

    /// A batch of which all is free.
    pub(super) fn empty(&mut self) -> Result<&mut Batch> {
        if self.batch.as_ref().is_none_or(|batch| !batch.is_empty()) {
            self.hand_over()?;
            self.batch = Some(self.queue.batch()?);
        }
        Ok(self.batch.get_or_insert_default())
    }

    /// A batch with room for `len` bytes at `offset`. `len` is at most a batch.
    pub(super) fn with_room(&mut self, offset: u64, len: usize) -> Result<&mut Batch> {
        let full = |batch: &Batch| !batch.has_room(offset, len);
        if self.batch.as_ref().is_none_or(full) {
            self.empty()
        } else {
            Ok(self.batch.get_or_insert_default())
        }
    }

    /// Memory for `len` bytes at `offset`, of any content. `len` is at most a batch.
    fn place(&mut self, offset: u64, len: usize) -> Result<&mut [u8]> {
        let batch = self.with_room(offset, len)?;
        Ok(batch.push(offset, len).expect("there is room"))
    }

    /// Writes `bytes` at `offset`.
    pub(super) fn copy(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        for (n, part) in bytes.chunks(BATCH).enumerate() {
            self.place(offset + (n * BATCH) as u64, part.len())?
                .copy_from_slice(part);
        }
        Ok(())
    }

    /// Zeroes the bytes from `start` to `end`.
    pub(super) fn zero(&mut self, start: u64, end: u64) -> Result<()> {
        let mut at = start;
        while at < end {
            let now = (end - at).min(BATCH as u64);
            self.place(at, now as usize)?.fill(0);
            at += now;
        }
        Ok(())
    }
}

/// All ways to a device.
pub(super) struct Outputs<'d> {
    device: &'d dyn BlockDevice,
    /// The device's queue; `None`: each thread writes by itself.
    queue: Option<Output<'d>>,
}

impl<'d> Outputs<'d> {
    pub(super) fn new(device: &'d dyn BlockDevice) -> Self {
        let queue = device.write_queue().map(Output::new);
        Self { device, queue }
    }

    /// Threads for large writes.
    pub(super) fn for_large(&self) -> usize {
        if self.is_file() { 2 } else { THREADS }
    }

    /// Threads for small writes. Writers of one file wait for each other, and burn time while they do; those of a block
    /// device do not.
    pub(super) fn for_small(&self) -> usize {
        if self.is_file() { 1 } else { THREADS }
    }

    fn is_file(&self) -> bool {
        matches!(self.device.identity(), Some(Identity::File { .. }))
    }

    /// Runs `work` with one output.
    pub(super) fn single(&mut self, work: impl FnOnce(&mut Output<'_>) -> Result<()>) -> Result<()> {
        match &mut self.queue {
            Some(output) => work(output),
            None => {
                let mut output = self.plain();
                work(&mut output)?;
                output.finish()
            }
        }
    }

    fn plain(&self) -> Output<'d> {
        Output::new(Box::new(PlainQueue::new(self.device)))
    }

    /// Runs `work(output, item)` for every item, in order where the device has a queue, else on so many threads, each
    /// with an output of its own; stops at the first error.
    pub(super) fn for_each(
        &mut self,
        threads: usize,
        items: u64,
        work: impl Fn(&mut Output<'_>, u64) -> Result<()> + Sync,
    ) -> Result<()> {
        if let Some(output) = &mut self.queue {
            return (0..items).try_for_each(|item| work(output, item));
        }
        let next = AtomicU64::new(0);
        let failure: OnceLock<Error> = OnceLock::new();
        let (device, next, failure) = (self.device, &next, &failure);
        let run = || {
            let mut output = Output::new(Box::new(PlainQueue::new(device)));
            let mut outcome = Ok(());
            while outcome.is_ok() && failure.get().is_none() {
                let item = next.fetch_add(1, Ordering::Relaxed);
                if item >= items {
                    outcome = output.finish();
                    break;
                }
                outcome = work(&mut output, item);
            }
            if let Err(error) = outcome {
                // Only the first failure is told: others follow from it as often as not.
                let _ = failure.set(error);
            }
        };
        let threads = threads.min(usize::try_from(items).unwrap_or(threads));
        std::thread::scope(|scope| {
            for n in 1..threads {
                // Where no thread can be started, the ones there are do the work.
                let _ = std::thread::Builder::new()
                    .name(format!("mkfs-{n}"))
                    .spawn_scoped(scope, run);
            }
            run();
        });
        failure.get().cloned().map_or(Ok(()), Err)
    }

    /// Waits until everything is written.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.queue.as_mut().map_or(Ok(()), Output::finish)
    }
}
