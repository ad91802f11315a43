//! Long runs of file data on their way to the device while those who wrote them go on.
//!
//! A stream is faster past the cache: one copy instead of three, and several writes under way at once. Invariants: at
//! most [`FLIGHTS_MAX`] runs of [`RUN_BYTES`] are on their way; a block is never in a run and dirty in the cache at once,
//! nor in two runs: whoever reads it, puts it or overwrites it past the cache lets the run land first
//! ([`DataCache::land`]), under the glock without which no new run of it begins; until it has landed its owner counts as
//! dirty; nobody who is waited for here takes any lock but this module's and the cache's own.

use super::super::buffers::lock;
use super::DataCache;
use crate::glock::GlockName;
use crate::hash::QuickSet;
use gfs2_format::device::AlignedBuf;
use gfs2_format::{BlockAddr, Extent};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

/// Runs on their way at once: waiting for a thread, or under way.
const FLIGHTS_MAX: usize = 8;
/// Bytes of one run, at most.
pub(crate) const RUN_BYTES: usize = 1 << 20;
/// Threads that write them.
pub(super) const WRITERS: usize = 4;

/// A run on its way.
#[derive(Debug)]
struct Flight {
    owner: GlockName,
    extent: Extent,
}

#[derive(Debug, Default)]
struct Air {
    /// By number.
    flights: BTreeMap<u64, Flight>,
    /// Those nobody writes yet, with their bytes.
    waiting: VecDeque<(u64, AlignedBuf)>,
    /// Number of the next one.
    next: u64,
    /// There are threads, and they are to stay.
    open: bool,
    /// Memory of those that have landed.
    memory: Vec<AlignedBuf>,
}

/// All runs of this node.
#[derive(Debug, Default)]
pub(super) struct Flights {
    air: Mutex<Air>,
    /// How many there are.
    count: AtomicUsize,
    /// Pieces of memory they have had so far; all are kept.
    pieces: AtomicUsize,
    /// Told when one has landed.
    landed: Condvar,
    /// Told when there is something to write, or no more.
    work: Condvar,
}

impl Flights {
    /// Nothing is on its way?
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Bytes they take, and what is kept for those to come.
    pub(super) fn bytes(&self) -> usize {
        self.pieces.load(Ordering::Relaxed) * RUN_BYTES
    }

    /// Is anything of this owner on its way?
    pub(super) fn has(&self, owner: GlockName) -> bool {
        !self.is_empty() && lock(&self.air).flights.values().any(|f| f.owner == owner)
    }

    /// Whose data is on its way?
    pub(super) fn owners(&self) -> QuickSet<GlockName> {
        lock(&self.air).flights.values().map(|f| f.owner).collect()
    }

    /// Waits for those that are on their way now and that `which` is true of.
    fn wait(&self, which: impl Fn(&Flight) -> bool) {
        if self.is_empty() {
            return;
        }
        let mut air = lock(&self.air);
        let mark = air.next;
        while air.flights.range(..mark).any(|(_, flight)| which(flight)) {
            air = self
                .landed
                .wait(air)
                .expect("a thread panicked in the data cache");
        }
    }

    pub(super) fn wait_all(&self) {
        self.wait(|_| true);
    }

    pub(super) fn wait_owners(&self, owners: &[GlockName]) {
        self.wait(|flight| owners.contains(&flight.owner));
    }

    fn wait_extent(&self, owner: GlockName, extent: Extent) {
        self.wait(|flight| flight.owner == owner && overlaps(flight.extent, extent));
    }

    /// From now on there are threads.
    pub(super) fn open(&self) {
        lock(&self.air).open = true;
    }

    /// The threads end when everything has landed; nothing new begins.
    pub(super) fn close(&self) {
        lock(&self.air).open = false;
        self.work.notify_all();
    }

    /// The next run to write; `None`: there will be no more.
    fn next(&self) -> Option<(u64, BlockAddr, GlockName, AlignedBuf)> {
        let mut air = lock(&self.air);
        loop {
            if let Some((number, bytes)) = air.waiting.pop_front() {
                let flight = air.flights.get(&number)?;
                return Some((number, flight.extent.start, flight.owner, bytes));
            }
            if !air.open {
                return None;
            }
            air = self.work.wait(air).expect("a thread panicked in the data cache");
        }
    }

    fn land(&self, number: u64, memory: AlignedBuf) {
        let mut air = lock(&self.air);
        air.flights.remove(&number);
        air.memory.push(memory);
        self.count.fetch_sub(1, Ordering::Release);
        drop(air);
        self.landed.notify_all();
    }
}

fn overlaps(one: Extent, other: Extent) -> bool {
    let end = |extent: Extent| extent.start.get().saturating_add(u64::from(extent.len));
    one.start.get() < end(other) && other.start.get() < end(one)
}

impl DataCache {
    /// Takes whole blocks (at most [`RUN_BYTES`]) that are to be written at `start`, and begins to write them; the caller
    /// has superseded what was there. Waits while too many are on their way. False: there is nobody to write them, the
    /// caller has to.
    pub(crate) fn launch(&self, owner: GlockName, start: BlockAddr, bytes: &[u8]) -> bool {
        let flights = &self.flights;
        let mut memory = {
            let mut air = lock(&flights.air);
            while air.open && air.flights.len() >= FLIGHTS_MAX {
                air = flights
                    .landed
                    .wait(air)
                    .expect("a thread panicked in the data cache");
            }
            if !air.open {
                return false;
            }
            air.memory.pop().unwrap_or_else(|| {
                flights.pieces.fetch_add(1, Ordering::Relaxed);
                AlignedBuf::zeroed(0)
            })
        };
        memory.resize(bytes.len());
        memory.copy_from_slice(bytes);
        let len = u32::try_from(bytes.len() / self.geometry.block_len()).unwrap_or(u32::MAX);
        let mut air = lock(&flights.air);
        if !air.open {
            return false;
        }
        let number = air.next;
        air.next += 1;
        let extent = Extent { start, len };
        air.flights.insert(number, Flight { owner, extent });
        air.waiting.push_back((number, memory));
        flights.count.fetch_add(1, Ordering::Release);
        drop(air);
        flights.work.notify_one();
        true
    }

    /// Waits until nothing of these blocks is on its way past the cache.
    pub(crate) fn land(&self, owner: GlockName, extent: Extent) {
        self.flights.wait_extent(owner, extent);
    }

    /// Waits until nothing of what these owners have on its way now is so any more.
    pub(crate) fn land_owners(&self, owners: &[GlockName]) {
        self.flights.wait_owners(owners);
    }

    /// The life of a thread that writes runs.
    pub(super) fn run_writer(&self) {
        while let Some((number, start, owner, bytes)) = self.flights.next() {
            let offset = self.geometry.byte_offset(start);
            let result = match self.health.write_gate() {
                Ok(_gate) => self.device.write_at(offset, &bytes).map_err(|error| {
                    tracing::error!(glock = %owner, block = start.get(), bytes = bytes.len(), "file data is lost: {error}");
                }),
                // Withdrawn: whoever asks hears of that.
                Err(_) => Err(()),
            };
            let blocks = bytes.len() / self.geometry.block_len();
            match result {
                Ok(()) => {
                    self.written.fetch_add(blocks as u64, Ordering::Relaxed);
                    self.writes.fetch_add(1, Ordering::Relaxed);
                }
                // Before it has landed: who waited for that looks for failures next.
                Err(()) => self.note_failure(&mut lock(&self.state), owner),
            }
            self.flights.land(number, bytes);
        }
    }
}
