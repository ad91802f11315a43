//! Every device write of the journal: through the withdraw latch, and an error closes it.
//!
//! Invariant: after a withdraw nothing here reaches the device.

use crate::cache::{Batch, DataCache};
use crate::error::{FsError, FsResult};
use crate::glock::GlockName;
use crate::health::{Cause, Health};
use gfs2_format::device::{AlignedBuf, BlockDevice, WriteRequest};
use gfs2_format::{Block, BlockAddr, Error, Geometry, Jid};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that are gathered and written as one batch, at most (a single block may be larger).
const BATCH_BYTES: usize = 4 << 20;
/// Bytes of one write, at most.
const PIECE_BYTES: usize = 1 << 20;

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
        let pieces = self.pieces(log);
        let mut requests = batch.requests();
        requests.extend(self.requests(&pieces));
        let gate = self.health.write_gate()?;
        let result = self.device.write_batch(&requests);
        drop(gate);
        drop(requests);
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
            let pieces = self.pieces(batch);
            let requests: Vec<WriteRequest<'_>> = self.requests(&pieces).collect();
            let gate = self.health.write_gate().map_err(Failed::Refused)?;
            let result = self.device.write_batch(&requests);
            drop(gate);
            let first = batch.first().map(|(addr, _)| *addr).unwrap_or_default();
            result.map_err(|error| Failed::Device(first, error))?;
        }
        Ok(())
    }

    /// Runs of neighbours, each put together.
    fn pieces(&self, blocks: &[(BlockAddr, &Block)]) -> Vec<Piece> {
        let per_piece = (PIECE_BYTES / self.geometry.block_len()).max(1);
        blocks
            .chunk_by(|a, b| a.0.checked_add(1) == Some(b.0))
            .flat_map(|run| run.chunks(per_piece))
            .map(|run| Piece {
                addr: run[0].0,
                bytes: self.join(run),
            })
            .collect()
    }

    fn join(&self, run: &[(BlockAddr, &Block)]) -> AlignedBuf {
        let len = self.geometry.block_len();
        let mut bytes = AlignedBuf::zeroed(run.len() * len);
        for (to, (_, block)) in bytes.chunks_exact_mut(len).zip(run) {
            to.copy_from_slice(block);
        }
        bytes
    }

    fn requests<'a>(&'a self, pieces: &'a [Piece]) -> impl Iterator<Item = WriteRequest<'a>> {
        pieces.iter().map(|piece| WriteRequest {
            offset: self.geometry.byte_offset(piece.addr),
            buf: &piece.bytes,
        })
    }
}

/// Neighbours on the device, in memory that direct I/O takes as it is.
struct Piece {
    addr: BlockAddr,
    bytes: AlignedBuf,
}

enum Failed {
    /// Withdrawn before.
    Refused(FsError),
    /// The device failed in a batch that begins here.
    Device(BlockAddr, Error),
}
