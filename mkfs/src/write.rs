//! Writes a plan to a device: large coalesced writes, many at a time, the superblock last.
//!
//! Invariants: nothing is written before the old superblock is durably gone; the new one is written when everything else
//! is durable. Memory is bounded: the few batches of a queue, or one batch per thread where the device has no queue.
//! After the first error no new write is started.

mod output;

use crate::error::Result;
use crate::journal::HeaderSteps;
use crate::plan::Plan;
use gfs2_format::device::{BATCH, BlockDevice};
use gfs2_format::geometry::SUPERBLOCK_OFFSET;
use output::{Output, Outputs};

/// Groups a thread renders at a time.
const RGRPS_AT_ONCE: u64 = 64;
/// What is known of a batch's memory: zeroes, or log headers one behind the other. Other numbers are the length of
/// groups of which nothing is used.
const LOG: u32 = 0;

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
    let shift = plan.geometry().bsize_shift();
    let mut outputs = Outputs::new(device);
    progress.begin(Phase::Journals, layout.journals());
    write_journals(&mut outputs, plan, progress)?;
    progress.end(Phase::Journals);

    progress.begin(Phase::ResourceGroups, layout.rgrps());
    write_rgrps(&mut outputs, device.is_blank(), plan, progress)?;
    progress.end(Phase::ResourceGroups);

    progress.begin(Phase::SystemFiles, 1);
    outputs.single(|output| plan.system_blocks(&mut |addr, block| output.copy(addr << shift, block)))?;
    progress.end(Phase::SystemFiles);

    progress.begin(Phase::Superblock, 1);
    outputs.finish()?;
    device.flush()?;
    device.write_fua(SUPERBLOCK_OFFSET, &plan.superblock())?;
    progress.end(Phase::Superblock);
    Ok(())
}

/// Zeroes what is before the first group. What another filesystem is known by goes first, and is gone for good before
/// anything else is touched.
fn wipe(device: &dyn BlockDevice, plan: &Plan) -> Result<()> {
    if device.is_blank() {
        return Ok(());
    }
    let mut old = vec![0; SUPERBLOCK_OFFSET as usize + plan.geometry().block_len()];
    device.read_at(0, &mut old)?;
    if old.iter().any(|byte| *byte != 0) {
        old.fill(0);
        device.write_at(0, &old)?;
        device.flush()?;
    }
    let mut at = old.len() as u64;
    old.fill(0);
    let first = plan.layout().rgrp(0).map_or(0, |rgrp| rgrp.addr);
    let end = first << plan.geometry().bsize_shift();
    while at < end {
        let now = (end - at).min(old.len() as u64);
        device.write_at(at, &old[..now as usize])?;
        at += now;
    }
    Ok(())
}

/// Journals are cut where the device's offsets are multiples of a batch, so that nearly all of what is written can
/// bypass the page cache.
fn write_journals(outputs: &mut Outputs<'_>, plan: &Plan, progress: &dyn Progress) -> Result<()> {
    let layout = plan.layout();
    let shift = plan.geometry().bsize_shift();
    let steps = HeaderSteps::new(plan.geometry());
    let chunk = (BATCH >> shift) as u64;
    // However a journal lies, it touches at most this many chunks.
    let chunks = layout.journal_file().div_ceil(chunk) + 1;
    let threads = outputs.for_large();
    outputs.for_each(threads, layout.journals() * chunks, |output, item| {
        let (jid, part) = (item / chunks, item % chunks);
        let (Some(journal), Some(rgrp)) = (plan.journal(&steps, jid), layout.rgrp(jid)) else {
            return Ok(());
        };
        let end = rgrp.data0 + journal.blocks();
        let cut = |part: u64| (rgrp.data0 / chunk + part) * chunk;
        let (from, to) = (cut(part).max(rgrp.data0), cut(part + 1).min(end));
        if from < to {
            let len = ((to - from) << shift) as usize;
            let batch = output.empty()?;
            // The parts of a log differ in little: what was in the memory before is mostly right.
            let blank = batch.kept(LOG) >= len;
            if let Some(bytes) = batch.push(from << shift, len) {
                let position = from - rgrp.data0;
                journal.render(position, bytes, blank);
                batch.keep(LOG, if journal.is_log(position) { len } else { 0 });
            }
        }
        if part + 1 == chunks {
            progress.advance(1);
        }
        Ok(())
    })
}

fn write_rgrps(outputs: &mut Outputs<'_>, blank: bool, plan: &Plan, progress: &dyn Progress) -> Result<()> {
    let total = plan.layout().rgrps();
    let threads = outputs.for_small();
    outputs.for_each(threads, total.div_ceil(RGRPS_AT_ONCE), |output, item| {
        let first = item * RGRPS_AT_ONCE;
        let end = (first + RGRPS_AT_ONCE).min(total);
        for index in first..end {
            write_rgrp(output, blank, plan, index)?;
        }
        progress.advance(end - first);
        Ok(())
    })
}

/// Writes one group's header and bitmaps, and zeroes the few blocks around them unless the device is `blank`.
fn write_rgrp(output: &mut Output<'_>, blank: bool, plan: &Plan, index: u64) -> Result<()> {
    let shift = plan.geometry().bsize_shift();
    let layout = plan.layout();
    let Some(rgrp) = layout.rgrp(index) else {
        return Ok(());
    };
    // The gap before the first group is wiped with the superblock.
    if !blank && index > 0 {
        output.zero(layout.gap_start(index) << shift, rgrp.addr << shift)?;
    }
    let (offset, len) = (rgrp.addr << shift, (rgrp.bitmap_blocks as usize) << shift);
    let batch = output.with_room(offset, len)?;
    let what = len as u32;
    let (start, known) = (batch.position(offset), batch.kept(what));
    let in_place = start.is_multiple_of(len);
    if let Some(bytes) = batch.push(offset, len) {
        let unused = plan.render_rgrp(&rgrp, bytes, in_place && start + len <= known);
        if unused && in_place && start <= known {
            batch.keep(what, known.max(start + len));
        }
    }
    if !blank {
        let zeroed = plan.zeroed_head(&rgrp);
        output.zero(zeroed.start << shift, zeroed.end << shift)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
