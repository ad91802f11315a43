//! Change of a file's size without writing.
//!
//! Invariants: a truncate to a smaller size is restartable from its first commit on (`TRUNC_IN_PROG`); the bytes of the
//! last block beyond the new end are zero on disk before the size says so.

use super::engine::{Locked, dinode_of};
use super::sweep::sweep;
use super::write;
use crate::error::{Errno, FsResult};
use crate::rgrp::Want;
use crate::txn::Reservation;
use gfs2_format::ondisk::Dinode;
use gfs2_format::time::Timestamp;
use gfs2_format::tree;

/// Largest size of a file: the kernel's offsets are signed.
pub(crate) const MAX_FILE_SIZE: u64 = i64::MAX as u64;

/// Gives a file a size, with what `change` does to the dinode in the same transaction as the new size.
pub(crate) fn set_size(
    locked: &mut Locked<'_>,
    size: u64,
    now: Timestamp,
    change: &dyn Fn(&mut Dinode),
) -> FsResult<()> {
    if size > MAX_FILE_SIZE {
        return Err(Errno::EFBIG.into());
    }
    let old = locked.dinode().size.get();
    if size < old {
        shrink(locked, size, now, change)
    } else {
        extend(locked, size, now, change)
    }
}

fn stamp(dinode: &mut Dinode, now: Timestamp) {
    dinode.set_mtime(now);
    dinode.set_ctime(now);
}

fn extend(locked: &mut Locked<'_>, size: u64, now: Timestamp, change: &dyn Fn(&mut Dinode)) -> FsResult<()> {
    let engine = locked.engine;
    let addr = locked.addr();
    let (old, height) = (locked.dinode().size.get(), locked.dinode().height.get());
    if height > 0 && size > old {
        write::zero_tail(locked, old)?;
    }
    let unstuff = height == 0 && size > engine.geometry().max_stuffed();
    let (reservation, hold) = if unstuff {
        let hold = engine.rgrps.reserve(&Want::near(write::goal(locked), 1))?;
        // The dinode, the block its bytes move to when they are journaled.
        (Reservation::blocks(2 + hold.alloc_cost(1)), Some(hold))
    } else {
        (Reservation::blocks(1), None)
    };
    let mut work = engine.begin(reservation, hold)?;
    work.txn.order_data(locked.guard());
    let mut edit = work.edit(locked.guard());
    if unstuff {
        tree::unstuff(&mut edit, addr)?;
    }
    let dinode = dinode_of(&mut edit, addr)?;
    dinode.size = size.into();
    stamp(dinode, now);
    change(dinode);
    locked.commit(work, false)
}

fn shrink(locked: &mut Locked<'_>, size: u64, now: Timestamp, change: &dyn Fn(&mut Dinode)) -> FsResult<()> {
    let engine = locked.engine;
    let addr = locked.addr();
    write::zero_tail(locked, size)?;
    let mut work = engine.begin(Reservation::blocks(1), None)?;
    work.txn.order_data(locked.guard());
    let mut edit = work.edit(locked.guard());
    let cursor = tree::truncate_begin(&mut edit, addr, size, now)?;
    let dinode = dinode_of(&mut edit, addr)?;
    stamp(dinode, now);
    change(dinode);
    locked.commit(work, false)?;
    if let Some(mut cursor) = cursor {
        sweep(locked, &mut cursor, 0)?;
        finish(locked)?;
    }
    Ok(())
}

fn finish(locked: &mut Locked<'_>) -> FsResult<()> {
    let mut work = locked.engine.begin(Reservation::blocks(1), None)?;
    tree::truncate_finish(&mut work.edit(locked.guard()), locked.addr())?;
    locked.commit(work, false)
}

/// Goes on with a truncate found in the middle.
pub(super) fn resume(locked: &mut Locked<'_>) -> FsResult<()> {
    tracing::info!(inode = locked.addr().get(), "resuming an interrupted truncate");
    let mut cursor = tree::truncate_resume(&locked.reader(), locked.addr())?;
    sweep(locked, &mut cursor, 0)?;
    finish(locked)
}
