//! Every device write of the journal: through the withdraw latch, and an error closes it.
//!
//! Invariant: after a withdraw nothing here reaches the device.

use crate::cache::{Batch, DataCache, lock};
use crate::error::{FsError, FsResult};
use crate::glock::GlockName;
use crate::health::{Cause, Health};
use gfs2_format::device::{AlignedBuf, BlockDevice, WriteRequest};
use gfs2_format::{Block, BlockAddr, Error, Geometry, Jid};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes that are gathered and written as one batch, at most (a single block may be larger).
const BATCH_BYTES: usize = 4 << 20;
/// Bytes of one write, at most.
const PIECE_BYTES: usize = 1 << 20;
/// From this many bytes on, writing pieces one after the other is no slower than at once, and saves a copy.
const LONG_BYTES: usize = 256 << 10;
/// Gathering memory that is kept: for the log, and for what goes in place meanwhile.
const SPARE_MAX: usize = 2;

/// The journal's way to the device.
#[derive(Debug)]
pub(super) struct Writer {
    device: Arc<dyn BlockDevice>,
    geometry: Geometry,
    health: Arc<Health>,
    jid: Jid,
    barriers: bool,
    /// Device flushes begun.
    begun: AtomicU64,
    /// The newest one begun of those that have ended.
    done: AtomicU64,
    /// Memory in which blocks were gathered: fresh memory would cost as much as the gathering.
    spare: Mutex<Vec<AlignedBuf>>,
}

/// A mark in the sequence of device flushes; see [`Writer::mark`].
#[derive(Clone, Copy, Debug)]
pub(super) struct FlushMark(u64);

impl Writer {
    pub(super) fn new(
        device: Arc<dyn BlockDevice>,
        geometry: Geometry,
        health: Arc<Health>,
        jid: Jid,
        barriers: bool,
    ) -> Self {
        Self {
            device,
            geometry,
            health,
            jid,
            barriers,
            begun: AtomicU64::new(0),
            done: AtomicU64::new(0),
            spare: Mutex::default(),
        }
    }

    pub(super) fn device(&self) -> &dyn BlockDevice {
        &*self.device
    }

    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// Now; [`Writer::covers`] tells whether a device flush was begun after it and has ended.
    pub(super) fn mark(&self) -> FlushMark {
        FlushMark(self.begun.load(Ordering::SeqCst))
    }

    pub(super) fn covers(&self, mark: FlushMark) -> bool {
        self.done.load(Ordering::SeqCst) > mark.0
    }

    /// Makes what was written durable, on mounts with barriers.
    pub(super) fn flush(&self) -> FsResult<()> {
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        if self.barriers {
            let gate = self.health.write_gate()?;
            let result = self.device.flush();
            drop(gate);
            if let Err(error) = result {
                return Err(self.health.withdraw("journal::flush", &Cause::Io(None, error)));
            }
        }
        self.done.fetch_max(number, Ordering::SeqCst);
        Ok(())
    }

    /// Writes blocks to the log.
    pub(super) fn write_log(&self, blocks: &[(BlockAddr, &Block)]) -> FsResult<()> {
        self.write(blocks).map_err(|failed| match failed {
            Failed::Refused(error) => error,
            Failed::Device(_, error) => self.log_failed(error),
        })
    }

    /// Writes a log header, durably on mounts with barriers; what it speaks of has been flushed before.
    pub(super) fn write_header(&self, addr: BlockAddr, block: &Block) -> FsResult<()> {
        let offset = self.geometry.byte_offset(addr);
        // In memory that direct I/O takes as it is: a device may then write it durably in one go.
        let block = AlignedBuf::from(&block[..]);
        let gate = self.health.write_gate()?;
        let result = match self.barriers {
            true => self.device.write_fua(offset, &block),
            false => self.device.write_at(offset, &block),
        };
        drop(gate);
        result.map_err(|error| self.log_failed(error))
    }

    /// Writes blocks to the log, and before or along with them what `owners` have dirty of file data: the device flush
    /// that follows covers both.
    pub(super) fn write_ordered(
        &self,
        data: &DataCache,
        owners: Vec<GlockName>,
        log: &[(BlockAddr, &Block)],
    ) -> FsResult<()> {
        if owners.is_empty() || data.is_clean() {
            return self.write_log(log);
        }
        data.land_owners(&owners);
        let log_bytes = log.len() * self.geometry.block_len();
        let mut pass = data.pass(owners);
        loop {
            let batch = data.next_batch(&mut pass);
            if batch.is_last() && batch.len() > 0 && log_bytes <= PIECE_BYTES {
                return self.write_along(batch, log);
            }
            let last = batch.is_last();
            // A file's error is for its next fsync; the commit goes on, as the kernel's does.
            if let Err(error @ FsError::Withdrawn(_)) = batch.write() {
                return Err(error);
            }
            if last {
                return self.write_log(log);
            }
        }
    }

    /// Writes a batch of file data and the log's blocks at once.
    fn write_along(&self, batch: Batch<'_>, log: &[(BlockAddr, &Block)]) -> FsResult<()> {
        let gathered = self.gather(log);
        let mut requests = batch.requests();
        requests.extend(gathered.requests());
        let gate = self.health.write_gate()?;
        let result = self.device.write_batch(&requests);
        drop(gate);
        drop(requests);
        self.keep(gathered);
        match result {
            Ok(()) => {
                batch.done();
                Ok(())
            }
            Err(error) => {
                // Either may have failed: each by itself.
                if let Err(error @ FsError::Withdrawn(_)) = batch.write_each(&error) {
                    return Err(error);
                }
                self.write_log(log)
            }
        }
    }

    fn log_failed(&self, error: Error) -> FsError {
        self.health
            .withdraw("journal::write_log", &Cause::Log(self.jid, error))
    }

    /// Writes blocks in place.
    pub(super) fn write_in_place(&self, blocks: &[(BlockAddr, &Block)]) -> FsResult<()> {
        self.write(blocks).map_err(|failed| match failed {
            Failed::Refused(error) => error,
            Failed::Device(addr, error) => self
                .health
                .withdraw("journal::write_in_place", &Cause::Io(Some(addr), error)),
        })
    }

    /// Writes blocks, runs of neighbours in one piece.
    fn write(&self, blocks: &[(BlockAddr, &Block)]) -> Result<(), Failed> {
        let len = self.geometry.block_len();
        let per_batch = (BATCH_BYTES / len).max(1);
        for batch in blocks.chunks(per_batch) {
            let gathered = self.gather(batch);
            let requests: Vec<WriteRequest<'_>> = gathered.requests().collect();
            let gate = self.health.write_gate().map_err(Failed::Refused)?;
            let result = if requests.iter().all(|request| request.buf.len() >= LONG_BYTES) {
                requests
                    .iter()
                    .try_for_each(|request| self.device.write_at(request.offset, request.buf))
            } else {
                self.device.write_batch(&requests)
            };
            drop(gate);
            drop(requests);
            self.keep(gathered);
            let first = batch.first().map(|(addr, _)| *addr).unwrap_or_default();
            result.map_err(|error| Failed::Device(first, error))?;
        }
        Ok(())
    }

    /// Puts blocks together, one behind the other.
    fn gather(&self, blocks: &[(BlockAddr, &Block)]) -> Gathered {
        let len = self.geometry.block_len();
        let mut bytes = lock(&self.spare).pop().unwrap_or_else(|| AlignedBuf::zeroed(0));
        bytes.resize(blocks.len() * len);
        for (to, (_, block)) in bytes.chunks_exact_mut(len).zip(blocks) {
            to.copy_from_slice(block);
        }
        let per_piece = (PIECE_BYTES / len).max(1);
        let runs = blocks
            .chunk_by(|a, b| a.0.checked_add(1) == Some(b.0))
            .flat_map(|run| run.chunks(per_piece))
            .map(|run| (self.geometry.byte_offset(run[0].0), run.len() * len))
            .collect();
        Gathered { bytes, runs }
    }

    /// Keeps the memory for the next ones.
    fn keep(&self, gathered: Gathered) {
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE_MAX {
            spare.push(gathered.bytes);
        }
    }
}

/// Blocks in memory that direct I/O takes as it is.
struct Gathered {
    bytes: AlignedBuf,
    /// Neighbours on the device: where they go there, and how many bytes they are.
    runs: Vec<(u64, usize)>,
}

impl Gathered {
    fn requests(&self) -> impl Iterator<Item = WriteRequest<'_>> {
        let mut rest = &self.bytes[..];
        self.runs.iter().map(move |(offset, len)| {
            let (buf, tail) = rest.split_at(*len);
            rest = tail;
            WriteRequest { offset: *offset, buf }
        })
    }
}

enum Failed {
    /// Withdrawn before.
    Refused(FsError),
    /// The device failed in a batch that begins here.
    Device(BlockAddr, Error),
}
