//! A device that logs every write, flush and discard, so that a test can rebuild what a disk may hold after the power
//! failed at any moment.
//!
//! Invariants: the log's order is the order in which the operations reached the device; a write is durable once a
//! later flush is in the log, a FUA write at once; every image is a function of the log, a position and a seed. The
//! log holds all bytes written since it was last cleared: this device is for tests and diagnosis.

use super::{BlockDevice, Identity, MemDevice, ReadRequest, Topology};
use crate::error::{Error, Result};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One logged operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEntry {
    /// Bytes written.
    Write {
        /// Byte offset.
        offset: u64,
        /// The bytes.
        bytes: Arc<[u8]>,
        /// Durable by itself.
        fua: bool,
    },
    /// Everything before is durable.
    Flush,
    /// A range given up.
    Discard {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// The operations of a [`RecordDevice`], in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteLog {
    entries: Vec<LogEntry>,
    sector: u32,
}

impl WriteLog {
    /// The entries in order.
    #[must_use]
    pub fn entries(&self) -> &[LogEntry] {
        &self.entries
    }

    /// How many writes (not flushes or discards) there are.
    #[must_use]
    pub fn writes(&self) -> usize {
        let is_write = |e: &&LogEntry| matches!(e, LogEntry::Write { .. });
        self.entries.iter().filter(is_write).count()
    }

    /// Positions just after each flush, in order: `image_at` of one of them holds exactly what is durable.
    #[must_use]
    pub fn flush_points(&self) -> Vec<usize> {
        let flushes = self.entries.iter().enumerate();
        flushes
            .filter(|(_, e)| **e == LogEntry::Flush)
            .map(|(n, _)| n + 1)
            .collect()
    }

    /// `initial` with the first `position` entries applied: power lost there, by a device that keeps its order.
    ///
    /// # Errors
    /// When `initial` is smaller than the device that was recorded.
    pub fn image_at(&self, initial: &MemDevice, position: usize) -> Result<MemDevice> {
        let image = initial.clone();
        for entry in self.entries.iter().take(position) {
            apply(&image, entry)?;
        }
        Ok(image)
    }

    /// Power lost after `position` entries, by a device that keeps unflushed writes as it likes: of the writes after
    /// the last flush each *sector* reaches the medium or not, as `seed` decides (so writes may be torn). Every seed
    /// is one possible disk; equal seeds give equal disks.
    ///
    /// # Errors
    /// As [`WriteLog::image_at`].
    pub fn crash_image(&self, initial: &MemDevice, position: usize, seed: u64) -> Result<MemDevice> {
        self.crash(initial, position, seed, true)
    }

    /// [`WriteLog::crash_image`] for a device that writes each request whole or not at all.
    ///
    /// # Errors
    /// As [`WriteLog::image_at`].
    pub fn crash_image_untorn(&self, initial: &MemDevice, position: usize, seed: u64) -> Result<MemDevice> {
        self.crash(initial, position, seed, false)
    }

    fn crash(&self, initial: &MemDevice, position: usize, seed: u64, torn: bool) -> Result<MemDevice> {
        let position = position.min(self.entries.len());
        let before = self.entries.get(..position).unwrap_or_default();
        let durable = before
            .iter()
            .rposition(|e| *e == LogEntry::Flush)
            .map_or(0, |n| n + 1);
        let image = self.image_at(initial, durable)?;
        let mut random = Random(seed);
        for entry in before.get(durable..).unwrap_or_default() {
            match entry {
                LogEntry::Write {
                    offset,
                    bytes,
                    fua: false,
                } => {
                    let unit = if torn {
                        self.sector.max(1) as usize
                    } else {
                        bytes.len().max(1)
                    };
                    let mut at = *offset;
                    for part in bytes.chunks(unit) {
                        if random.coin() {
                            image.write_at(at, part)?;
                        }
                        at += part.len() as u64;
                    }
                }
                LogEntry::Discard { .. } => {
                    if random.coin() {
                        apply(&image, entry)?;
                    }
                }
                LogEntry::Write { fua: true, .. } | LogEntry::Flush => apply(&image, entry)?,
            }
        }
        Ok(image)
    }
}

fn apply(image: &MemDevice, entry: &LogEntry) -> Result<()> {
    match entry {
        LogEntry::Write { offset, bytes, .. } => image.write_at(*offset, bytes),
        LogEntry::Flush => Ok(()),
        LogEntry::Discard { offset, len } => image.discard(*offset, *len).map(drop),
    }
}

/// SplitMix64: written out so that a seed means the same disk for ever.
struct Random(u64);

impl Random {
    fn coin(&mut self) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) & 1 == 1
    }
}

#[derive(Debug)]
struct State {
    log: WriteLog,
    writes: u64,
    cut_after: Option<u64>,
}

/// Logs what reaches the device below; see the module documentation.
#[derive(Debug)]
pub struct RecordDevice<D> {
    base: D,
    state: Mutex<State>,
}

impl<D: BlockDevice> RecordDevice<D> {
    /// Over `base`, with an empty log.
    pub fn new(base: D) -> Self {
        let log = WriteLog {
            entries: Vec::new(),
            sector: base.sector_size(),
        };
        Self {
            base,
            state: Mutex::new(State {
                log,
                writes: 0,
                cut_after: None,
            }),
        }
    }

    /// The device below.
    pub fn base(&self) -> &D {
        &self.base
    }

    /// A copy of the log (the bytes are shared).
    #[must_use]
    pub fn log(&self) -> WriteLog {
        self.lock().log.clone()
    }

    /// Takes the log and starts an empty one.
    pub fn take_log(&self) -> WriteLog {
        let mut state = self.lock();
        let sector = state.log.sector;
        let empty = WriteLog {
            entries: Vec::new(),
            sector,
        };
        std::mem::replace(&mut state.log, empty)
    }

    /// Cuts the power after `writes` more writes: everything afterwards, reads too, fails with EIO.
    pub fn cut_power_after(&self, writes: u64) {
        let mut state = self.lock();
        state.cut_after = Some(state.writes.saturating_add(writes));
    }

    /// Has the power been cut?
    #[must_use]
    pub fn is_cut(&self) -> bool {
        let state = self.lock();
        state.cut_after.is_some_and(|n| state.writes >= n)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log for one more operation. Held while the operation runs: so its order is the device's.
    fn admit(&self, op: &'static str, offset: u64, len: u64) -> Result<MutexGuard<'_, State>> {
        let state = self.lock();
        if state.cut_after.is_some_and(|n| state.writes >= n) {
            let gone = io::Error::from(rustix::io::Errno::IO);
            return Err(Error::io(op, offset, len, gone));
        }
        Ok(state)
    }

    fn write(&self, offset: u64, buf: &[u8], fua: bool) -> Result<()> {
        let mut state = self.admit("write", offset, buf.len() as u64)?;
        if fua {
            self.base.write_fua(offset, buf)?;
        } else {
            self.base.write_at(offset, buf)?;
        }
        state.writes += 1;
        state.log.entries.push(LogEntry::Write {
            offset,
            bytes: buf.into(),
            fua,
        });
        Ok(())
    }
}

impl<D: BlockDevice> BlockDevice for RecordDevice<D> {
    facts_of!(self, self.base);

    fn is_read_only(&self) -> bool {
        self.base.is_read_only()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        drop(self.admit("read", offset, buf.len() as u64)?);
        self.base.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.write(offset, buf, false)
    }

    fn write_fua(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.write(offset, buf, true)
    }

    fn flush(&self) -> Result<()> {
        let mut state = self.admit("flush", 0, self.size())?;
        self.base.flush()?;
        state.log.entries.push(LogEntry::Flush);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<bool> {
        let mut state = self.admit("discard", offset, len)?;
        let done = self.base.discard(offset, len)?;
        if done {
            state.log.entries.push(LogEntry::Discard { offset, len });
        }
        Ok(done)
    }

    fn read_batch(&self, requests: &mut [ReadRequest<'_>]) -> Result<()> {
        drop(self.admit("read", requests.first().map_or(0, |r| r.offset), 0)?);
        self.base.read_batch(requests)
    }
}
