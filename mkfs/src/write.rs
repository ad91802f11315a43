//! Writes a plan to a device: large coalesced writes, from several threads, the superblock last.
//!
//! Invariants: nothing is written before the old superblock is durably gone; the new one is written when everything else
//! is durable. Memory is bounded: one buffer per thread. After the first error no new write is started.

use crate::bitmap::RgrpBuffer;
use crate::error::{Error, Result};
use crate::journal::HeaderCrc;
use crate::plan::Plan;
use gfs2_format::device::{AlignedBuf, BlockDevice, Identity};
use gfs2_format::geometry::SUPERBLOCK_OFFSET;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of one write, at most.
const CHUNK: usize = 1 << 20;
/// Groups a thread renders at a time.
const RGRPS_AT_ONCE: u64 = 64;
/// Writes under way at a time: enough to keep a device busy, whatever the number of processors.
const THREADS: usize = 4;

/// The parts of the work, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Journals; counted in journals.
    Journals,
    /// Resource groups; counted in groups.
    ResourceGroups,
    /// System files.
    SystemFiles,
    /// Flush, superblock, flush.
    Superblock,
}

/// Hears how far the work is. Called from several threads.
pub trait Progress: Sync {
    /// A phase of `total` units begins.
    fn begin(&self, phase: Phase, total: u64);
    /// That many units more are done.
    fn advance(&self, units: u64);
    /// The phase has ended.
    fn end(&self, phase: Phase);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn begin(&self, _phase: Phase, _total: u64) {}
    fn advance(&self, _units: u64) {}
    fn end(&self, _phase: Phase) {}
}

/// Writes the volume.
///
/// # Errors
/// The device's. What is on the device then is no filesystem.
pub fn write_plan(device: &dyn BlockDevice, plan: &Plan, progress: &dyn Progress) -> Result<()> {
    wipe(device, plan)?;

    let layout = plan.layout();
    progress.begin(Phase::Journals, layout.journals());
    write_journals(device, plan, progress)?;
    progress.end(Phase::Journals);

    progress.begin(Phase::ResourceGroups, layout.rgrps());
    write_rgrps(device, plan, progress)?;
    progress.end(Phase::ResourceGroups);

    progress.begin(Phase::SystemFiles, 1);
    write_system(device, plan)?;
    progress.end(Phase::SystemFiles);

    progress.begin(Phase::Superblock, 1);
    device.flush()?;
    device.write_fua(SUPERBLOCK_OFFSET, &plan.superblock())?;
    progress.end(Phase::Superblock);
    Ok(())
}

/// Zeroes what is before the first group. What another filesystem is known by goes first, and is gone for good before
/// anything else is touched.
fn wipe(device: &dyn BlockDevice, plan: &Plan) -> Result<()> {
    let mut old = vec![0; SUPERBLOCK_OFFSET as usize + plan.geometry().block_len()];
    device.read_at(0, &mut old)?;
    if old.iter().any(|byte| *byte != 0) {
        old.fill(0);
        device.write_at(0, &old)?;
        device.flush()?;
    }
    let first = plan.layout().rgrp(0).map_or(0, |rgrp| rgrp.addr);
    zero(device, 0, first << plan.geometry().bsize_shift())
}

/// Zeroes the bytes from `start` to `end`.
fn zero(device: &dyn BlockDevice, start: u64, end: u64) -> Result<()> {
    let len = (end - start).min(CHUNK as u64);
    let zeroes = vec![0; len as usize];
    let mut at = start;
    while at < end {
        let now = (end - at).min(len);
        device.write_at(at, &zeroes[..now as usize])?;
        at += now;
    }
    Ok(())
}

/// Runs `work(state, item)` for every item on several threads, each with a state of its own; stops at the first error.
fn for_each<S>(
    threads: usize,
    items: u64,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, u64) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicU64::new(0);
    let failure: OnceLock<Error> = OnceLock::new();
    let run = || {
        let mut state = state();
        while failure.get().is_none() {
            let item = next.fetch_add(1, Ordering::Relaxed);
            if item >= items {
                return;
            }
            if let Err(error) = work(&mut state, item) {
                // Only the first failure is told: others follow from it as often as not.
                let _ = failure.set(error);
            }
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
    match failure.into_inner() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Journals are cut where the device's offsets are multiples of the chunk, so that nearly all of what is written can
/// bypass the page cache.
fn write_journals(device: &dyn BlockDevice, plan: &Plan, progress: &dyn Progress) -> Result<()> {
    let layout = plan.layout();
    let shift = plan.geometry().bsize_shift();
    let crc = HeaderCrc::new(plan.geometry());
    let chunk = (CHUNK >> shift) as u64;
    // However a journal lies, it touches at most this many chunks.
    let chunks = layout.journal_file().div_ceil(chunk) + 1;
    // A buffer, and whether all of it holds log headers from the last time.
    let state = || (AlignedBuf::zeroed(CHUNK), false);
    let (threads, _) = threads(device);
    for_each(
        threads,
        layout.journals() * chunks,
        state,
        |(buf, holds_log), item| {
            let (jid, part) = (item / chunks, item % chunks);
            let (Some(journal), Some(rgrp)) = (plan.journal(&crc, jid), layout.rgrp(jid)) else {
                return Ok(());
            };
            let end = rgrp.data0 + journal.blocks();
            let cut = |part: u64| (rgrp.data0 / chunk + part) * chunk;
            let (from, to) = (cut(part).max(rgrp.data0), cut(part + 1).min(end));
            if from < to {
                let bytes = &mut buf[..((to - from) << shift) as usize];
                let position = from - rgrp.data0;
                journal.render(position, bytes, *holds_log);
                *holds_log = journal.is_log(position) && (*holds_log || bytes.len() == CHUNK);
                device.write_at(from << shift, bytes)?;
            }
            if part + 1 == chunks {
                progress.advance(1);
            }
            Ok(())
        },
    )
}

/// Threads for large writes and for small ones. Writers of one file wait for each other, and burn time while they do;
/// those of a block device do not.
fn threads(device: &dyn BlockDevice) -> (usize, usize) {
    match device.identity() {
        Some(Identity::File { .. }) => (2, 1),
        _ => (THREADS, THREADS),
    }
}

fn write_rgrps(device: &dyn BlockDevice, plan: &Plan, progress: &dyn Progress) -> Result<()> {
    let total = plan.layout().rgrps();
    let state = || (RgrpBuffer::new(plan.geometry()), Vec::new());
    let (_, threads) = threads(device);
    for_each(
        threads,
        total.div_ceil(RGRPS_AT_ONCE),
        state,
        |(buffer, joined), item| {
            let first = item * RGRPS_AT_ONCE;
            let end = (first + RGRPS_AT_ONCE).min(total);
            for index in first..end {
                write_rgrp(device, plan, index, buffer, joined)?;
            }
            progress.advance(end - first);
            Ok(())
        },
    )
}

/// Writes one group's header and bitmaps, together with the few zeroed blocks around them.
fn write_rgrp(
    device: &dyn BlockDevice,
    plan: &Plan,
    index: u64,
    buffer: &mut RgrpBuffer,
    joined: &mut Vec<u8>,
) -> Result<()> {
    let shift = plan.geometry().bsize_shift();
    let layout = plan.layout();
    let Some(rgrp) = layout.rgrp(index) else {
        return Ok(());
    };
    let head = plan.render_rgrp(buffer, &rgrp);
    // The gap before the first group is wiped with the superblock.
    let gap = if index == 0 {
        0
    } else {
        rgrp.addr - layout.gap_start(index)
    };
    let gap = (gap << shift) as usize;
    let zeroed = plan.zeroed_head(&rgrp);
    let start = rgrp.addr << shift;
    let tail = ((zeroed.end - zeroed.start) << shift) as usize;
    let adjoining = zeroed.start == rgrp.data0;

    joined.clear();
    joined.resize(gap, 0);
    joined.extend_from_slice(head);
    if adjoining && joined.len() + tail <= CHUNK {
        joined.resize(joined.len() + tail, 0);
        device.write_at(start - gap as u64, joined)?;
    } else {
        device.write_at(start - gap as u64, joined)?;
        zero(device, zeroed.start << shift, zeroed.end << shift)?;
    }
    Ok(())
}

/// Collects blocks that come in nearly ascending order and writes them in runs.
struct Window<'a> {
    device: &'a dyn BlockDevice,
    shift: u32,
    /// Runs by first block, none adjoining another.
    runs: BTreeMap<u64, Vec<u8>>,
    bytes: usize,
}

impl Window<'_> {
    fn add(&mut self, addr: u64, block: &[u8]) -> Result<()> {
        if self.bytes + block.len() > CHUNK {
            self.flush()?;
        }
        self.bytes += block.len();
        let before = self.runs.range_mut(..addr).next_back();
        if let Some((first, run)) = before
            && first + (run.len() as u64 >> self.shift) == addr
        {
            run.extend_from_slice(block);
        } else {
            self.runs.insert(addr, block.to_vec());
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let mut joined: Option<(u64, Vec<u8>)> = None;
        for (addr, run) in std::mem::take(&mut self.runs) {
            match &mut joined {
                Some((first, bytes)) if *first + (bytes.len() as u64 >> self.shift) == addr => {
                    bytes.extend_from_slice(&run);
                }
                _ => {
                    if let Some((first, bytes)) = joined.replace((addr, run)) {
                        self.device.write_at(first << self.shift, &bytes)?;
                    }
                }
            }
        }
        self.bytes = 0;
        match joined {
            Some((first, bytes)) => Ok(self.device.write_at(first << self.shift, &bytes)?),
            None => Ok(()),
        }
    }
}

fn write_system(device: &dyn BlockDevice, plan: &Plan) -> Result<()> {
    let mut window = Window {
        device,
        shift: plan.geometry().bsize_shift(),
        runs: BTreeMap::new(),
        bytes: 0,
    };
    plan.system_blocks(&mut |addr, block| window.add(addr, block))?;
    window.flush()
}

#[cfg(test)]
mod tests;
