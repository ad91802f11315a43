//! Recovers one journal of a volume: head, plan, replay, statfs, clean header.
//!
//! Steps and their order: FORMAT.md 7.7. Who may do this (the first mounter, the winner of a dead node's journal
//! lock, a checker) is the caller's business. May be interrupted anywhere and begun again until the clean header is
//! written; as with the kernel, an interruption between the statfs update and that header counts the dead node's
//! statfs change twice, which a check of the volume repairs.

use super::codec::{Header, HeaderVersion, LocalStatfs, LogTime, encode_header};
use super::head::{Head, find_head};
use super::map::{DeviceJournal, JournalRead};
use super::replay::{ReplayCounts, ReplayPlan, apply_plan, plan_replay};
use crate::addr::{BlockAddr, Jid, JournalBlock};
use crate::device::BlockDevice;
use crate::edit::Block;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::ondisk::{DINODE_SIZE, LogFlags, StatfsChange, view_mut};
use crate::tree::stuffed;
use crate::volume::{JournalFile, Volume};

/// What a recovery found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The journal.
    pub jid: Jid,
    /// Its head before; `None` when there was no valid header (then there was nothing to replay either).
    pub found: Option<Head>,
    /// Its head now: the one found when the journal was clean, else the clean header just written.
    pub head: Head,
    /// What was replayed.
    pub counts: ReplayCounts,
    /// The statfs change that was added to the master totals.
    pub change: LocalStatfs,
    /// The master totals after that, if they changed.
    pub master: Option<LocalStatfs>,
}

impl RecoveryReport {
    /// Was there nothing to do?
    #[must_use]
    pub fn was_clean(&self) -> bool {
        self.found.is_some_and(|head| head.header.is_clean())
    }
}

/// Looks at a journal and, when it is dirty, plans its replay. Writes nothing.
///
/// # Errors
/// I/O errors and [`Error::Corrupt`] as [`plan_replay`].
pub fn plan_recovery(
    device: &dyn BlockDevice,
    geometry: &Geometry,
    journal: &JournalFile,
) -> Result<Option<ReplayPlan>> {
    let reader = DeviceJournal::new(device, geometry, &journal.map);
    match find_head(&reader, geometry)? {
        Some(head) => plan_replay(&reader, &journal.map, geometry, &head).map(Some),
        None => Ok(None),
    }
}

/// Recovers `journal`, writing its clean header as the node of journal `writer` at time `now`. A clean journal is
/// left as it is. On a device that cannot be written, hand in an overlay of it.
///
/// # Errors
/// I/O errors; [`Error::Corrupt`] for a journal that cannot be replayed or statfs files that are none. Of a journal
/// that cannot be replayed nothing has been written.
pub fn recover_journal(
    device: &dyn BlockDevice,
    volume: &Volume,
    journal: &JournalFile,
    writer: Jid,
    now: LogTime,
) -> Result<RecoveryReport> {
    let geometry = &volume.geometry;
    let plan = plan_recovery(device, geometry, journal)?;
    let mut report = RecoveryReport {
        jid: journal.jid,
        found: plan.as_ref().map(|plan| plan.head),
        head: plan.as_ref().map_or_else(|| no_head(journal), |plan| plan.head),
        counts: plan.as_ref().map(|plan| plan.counts).unwrap_or_default(),
        change: LocalStatfs::default(),
        master: None,
    };
    if report.was_clean() {
        return Ok(report);
    }
    let reader = DeviceJournal::new(device, geometry, &journal.map);
    // Looked at before anything is written, so that a volume whose statfs cannot be folded is left as it is.
    let local_statfs = journal.statfs_change.ok_or(Error::NotFound)?;
    for addr in [volume.system.statfs, local_statfs] {
        let block = planned_block(plan.as_ref(), &reader, geometry, device, addr)?;
        // A statfs file is a stuffed dinode.
        stuffed(&block, addr, geometry)?;
    }
    if let Some(plan) = &plan {
        apply_plan(plan, &reader, geometry, device)?;
        device.flush()?;
        report.change = plan.head.header.local;
    }
    if !report.change.is_zero() {
        report.master = Some(add_to_statfs(
            device,
            geometry,
            volume.system.statfs,
            report.change,
        )?);
    }
    zero_statfs(device, geometry, local_statfs)?;
    report.head = write_clean_header(device, geometry, journal, &report.head, writer, now)?;
    Ok(report)
}

/// What the kernel takes a journal without any valid header for: sequence, tail and place 0, dirty, empty.
fn no_head(journal: &JournalFile) -> Head {
    let header = Header {
        writer: journal.jid,
        sequence: 0,
        flags: LogFlags::empty(),
        tail: JournalBlock::new(0),
        blkno: JournalBlock::new(0),
        version: HeaderVersion::V1,
        time: LogTime::default(),
        addr: BlockAddr::default(),
        jinode: journal.dinode,
        statfs_addr: BlockAddr::default(),
        quota_addr: BlockAddr::default(),
        local: LocalStatfs::default(),
    };
    Head {
        header,
        position: header.blkno,
    }
}

/// Makes everything so far durable, then writes the header that ends a recovery behind `head`, durably.
///
/// # Errors
/// I/O errors.
pub fn write_clean_header(
    device: &dyn BlockDevice,
    geometry: &Geometry,
    journal: &JournalFile,
    head: &Head,
    writer: Jid,
    now: LogTime,
) -> Result<Head> {
    let reader = DeviceJournal::new(device, geometry, &journal.map);
    let position = reader.ring().advance(head.header.blkno, 1);
    let header = Header {
        writer,
        sequence: head.header.sequence.wrapping_add(1),
        flags: LogFlags::UNMOUNT | LogFlags::RECOVERY,
        tail: JournalBlock::new(0),
        blkno: position,
        version: HeaderVersion::V2,
        time: now,
        addr: reader.address(position),
        jinode: journal.dinode,
        statfs_addr: BlockAddr::default(),
        quota_addr: BlockAddr::default(),
        local: LocalStatfs::default(),
    };
    device.flush()?;
    let block = encode_header(&header, geometry);
    device.write_fua(geometry.byte_offset(header.addr), &block)?;
    Ok(Head { header, position })
}

/// Adds `change` to the master totals in place and returns the sums.
///
/// # Errors
/// I/O errors; [`Error::Corrupt`] when `addr` is no stuffed statfs file.
pub fn add_to_statfs(
    device: &dyn BlockDevice,
    geometry: &Geometry,
    addr: BlockAddr,
    change: LocalStatfs,
) -> Result<LocalStatfs> {
    edit_statfs(device, geometry, addr, |record| {
        let (total, free, dinodes) = record.signed();
        let sum = LocalStatfs {
            total: total.wrapping_add(change.total),
            free: free.wrapping_add(change.free),
            dinodes: dinodes.wrapping_add(change.dinodes),
        };
        *record = StatfsChange::from_signed(sum.total, sum.free, sum.dinodes);
        sum
    })
}

/// Zeroes a node's statfs change in place.
///
/// # Errors
/// As [`add_to_statfs`].
pub fn zero_statfs(device: &dyn BlockDevice, geometry: &Geometry, addr: BlockAddr) -> Result<()> {
    edit_statfs(device, geometry, addr, |record| *record = StatfsChange::default())
}

/// A block as it will be when the plan has been carried out.
fn planned_block(
    plan: Option<&ReplayPlan>,
    journal: &dyn JournalRead,
    geometry: &Geometry,
    device: &dyn BlockDevice,
    addr: BlockAddr,
) -> Result<Block> {
    let mut block = Block::zeroed(geometry.block_len());
    match plan.and_then(|plan| plan.copies.iter().find(|copy| copy.target == addr)) {
        Some(copy) => journal.read(copy.from, block.make_mut())?,
        None => device.read_at(geometry.byte_offset(addr), block.make_mut())?,
    }
    Ok(block)
}

fn edit_statfs<R>(
    device: &dyn BlockDevice,
    geometry: &Geometry,
    addr: BlockAddr,
    change: impl FnOnce(&mut StatfsChange) -> R,
) -> Result<R> {
    let mut block = Block::zeroed(geometry.block_len());
    device.read_at(geometry.byte_offset(addr), block.make_mut())?;
    stuffed(&block, addr, geometry)?;
    let result = change(view_mut(block.make_mut(), DINODE_SIZE, addr)?);
    device.write_at(geometry.byte_offset(addr), &block)?;
    Ok(result)
}
