//! The end of an unlinked inode: who may deallocate it, and how.
//!
//! Invariants: an inode is deallocated only while its bitmap state is UNLINKED, its `di_nlink` 0 and its iopen glock
//! held EX by us (so nobody has it open anywhere); each step leaves an inode that the next eviction, of any node, goes on
//! with. Whatever forbids it is no error: somebody else deletes, or we try again later.

use super::engine::{Engine, Locked};
use super::sweep::sweep;
use super::table::{Inode, NewInode};
use crate::error::{Errno, FsError, FsResult};
use crate::glock::{GlockGuard, HolderFlags, State};
use crate::txn::Reservation;
use gfs2_format::dir::LeafCursor;
use gfs2_format::ea::EaCursor;
use gfs2_format::ondisk::{BlockState, Dinode, DinodeFlags, DinodeLvb, MAGIC};
use gfs2_format::tree::FreeCursor;
use gfs2_format::{BlockAddr, FileBlock};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// How long a deleting node waits for the others to let go of an inode.
const UPGRADE_WAIT: Duration = Duration::from_secs(5);
/// How often it looks whether one of them has knocked.
const UPGRADE_LOOK: Duration = Duration::from_millis(50);

/// How an eviction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evicted {
    /// Its blocks are free.
    Deallocated,
    /// Somebody else's business: another node has it open, or has deleted it.
    Left,
}

/// Deallocates an unlinked inode that nobody of this node needs any more.
///
/// # Errors
/// Corruption; I/O and lock errors.
pub(crate) fn evict(engine: &Engine, inode: &Inode) -> FsResult<Evicted> {
    if engine.check_writable().is_err() {
        return Ok(Evicted::Left);
    }
    let addr = inode.addr();
    let guard = inode.glock().acquire(State::Ex, HolderFlags::SKIP)?;
    if engine.rgrps.state(addr)? != Some(BlockState::Unlinked) {
        return Ok(Evicted::Left);
    }
    let mut locked = match Locked::new(engine, inode, guard) {
        Ok(locked) => locked,
        // Deleted and made anew by another node.
        Err(FsError::Posix(Errno::ESTALE)) => return Ok(Evicted::Left),
        Err(error) => return Err(error),
    };
    if locked.dinode().nlink.get() != 0 {
        return Ok(Evicted::Left);
    }
    // Ours goes, so that the others' show: EX is granted only if the inode is cached nowhere else.
    drop(inode.take_iopen());
    let Some(iopen) = upgrade_iopen(engine, inode)? else {
        return Ok(Evicted::Left);
    };
    deallocate(&mut locked)?;
    drop(locked);
    drop(iopen);
    Ok(Evicted::Deallocated)
}

/// The iopen lock EX: granted once no node has the inode cached. Gives up after a while, or when another node knocks at
/// the inode's lock: it has the inode open and deletes it later.
fn upgrade_iopen(engine: &Engine, inode: &Inode) -> FsResult<Option<GlockGuard>> {
    let flags = HolderFlags::NOCACHE | HolderFlags::NOPID;
    let mut pending = engine
        .iopen_glock(inode.addr())?
        .acquire_async(State::Ex, flags)?;
    let deadline = Instant::now() + UPGRADE_WAIT;
    loop {
        let now = Instant::now();
        match pending.wait_until(Some(deadline.min(now + UPGRADE_LOOK)), None) {
            Some(result) => return result.map(Some),
            None if now >= deadline || inode.glock().is_demote_wanted() => return Ok(None),
            None => {}
        }
    }
}

/// Frees all blocks of an inode, its dinode last.
fn deallocate(locked: &mut Locked<'_>) -> FsResult<()> {
    let engine = locked.engine;
    let addr = locked.addr();
    if locked.dinode().is_dir() && locked.dinode().flags().contains(DinodeFlags::EXHASH) {
        let mut leaves = LeafCursor::new();
        // A leaf may stand in half of the hash table.
        let table = locked.dinode().size.get() / engine.geometry().jbsize();
        sweep(
            locked,
            &mut leaves,
            u32::try_from(table).unwrap_or(u32::MAX).saturating_add(4),
        )?;
        if locked.dinode().is_dir() {
            let mut work = engine.begin(Reservation::blocks(1), None)?;
            leaves.finish(&mut work.edit(locked.guard()), addr)?;
            locked.commit(work, false)?;
        }
    }
    if locked.dinode().eattr.get() != 0 {
        sweep(locked, &mut EaCursor::dealloc(), 0)?;
    }
    sweep(locked, &mut FreeCursor::new(FileBlock::new(0), None), 0)?;
    free_dinode(locked)
}

fn free_dinode(locked: &mut Locked<'_>) -> FsResult<()> {
    let addr = locked.addr();
    let blocks = locked.dinode().blocks.get();
    if blocks != 1 {
        return Err(FsError::Inconsistent(format!(
            "inode = {} {addr}: di_blocks is {blocks} after all its blocks were freed, not 1",
            locked.inode.num().formal
        )));
    }
    let hold = locked.engine.rgrps.hold_of(addr)?;
    let mut work = locked
        .engine
        .begin(Reservation::blocks(2).with_revokes(1), Some(hold))?;
    let (txn, hold) = work.hold()?;
    hold.free_dinode(txn, addr)?;
    txn.revoke(addr)?;
    let seq = work.commit()?;
    locked.committed(seq, false);
    // Whoever looks for this generation of the inode need not read the block.
    let lvb = DinodeLvb {
        magic: MAGIC.into(),
        pad: 0.into(),
        generation_deleted: locked.inode.num().formal.get().into(),
        rest: [0; 16],
    };
    if let Ok(bytes) = lvb.as_bytes().try_into() {
        locked.inode.glock().set_lvb(bytes);
    }
    Ok(())
}

/// Deallocates up to `most` inodes that were left unlinked: by a node that died, or by us before a crash. Gives their
/// number. Groups that were looked through before are passed over, unless there may be some again.
///
/// # Errors
/// Corruption; I/O and lock errors. What was reclaimed until then stays so.
pub(crate) fn reclaim_orphans(engine: &Engine, most: u64) -> FsResult<u64> {
    engine.check_writable()?;
    let mut reclaimed = 0;
    engine.rgrps.for_unlinked(|addr| {
        if engine.inodes.knows(addr) || !adopt(engine, addr)? {
            return Ok(ControlFlow::Continue(true));
        }
        let before = reclaimed;
        reclaimed += run_evictions(engine)?;
        Ok(match reclaimed >= most {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(reclaimed == before),
        })
    })?;
    Ok(reclaimed)
}

/// Makes an entry for an unlinked inode nobody here knows, and lets go of it: it is queued for eviction.
fn adopt(engine: &Engine, addr: BlockAddr) -> FsResult<bool> {
    let iopen = engine.iopen_glock(addr)?;
    let Some(iopen) = iopen.try_acquire(State::Sh, HolderFlags::EXACT | HolderFlags::NOPID)? else {
        // Another node is deleting it.
        return Ok(false);
    };
    let glock = engine.inode_glock(addr)?;
    let num = {
        let guard = glock.acquire(State::Ex, HolderFlags::SKIP)?;
        // Its block is not looked at before the bitmap says that it is a dinode.
        if engine.rgrps.state(addr)? != Some(BlockState::Unlinked) {
            return Ok(false);
        }
        let block = engine.cache.read(&guard, addr)?;
        let dinode = Dinode::decode(&block, addr, engine.geometry())?;
        if dinode.nlink.get() != 0 {
            return Ok(false);
        }
        dinode.file_type().map(|kind| (dinode.inode_num(), kind))
    };
    let Some((num, kind)) = num else { return Ok(false) };
    let entry = match engine
        .inodes
        .get_or_make(num, || Ok(NewInode { kind, glock, iopen }))
    {
        Ok(entry) => entry,
        Err(FsError::Posix(Errno::ESTALE)) => return Ok(false),
        Err(error) => return Err(error),
    };
    entry.mark_unlinked();
    Ok(true)
}

/// Carries out the evictions that are due. Called with no lock held. Gives the number of inodes deallocated.
///
/// # Errors
/// The first error; the other evictions are carried out nevertheless.
pub(crate) fn run_evictions(engine: &Engine) -> FsResult<u64> {
    let mut result = Ok(0);
    while let Some(inode) = engine.inodes.next_eviction() {
        let ended = evict(engine, &inode);
        engine.inodes.evicted(&inode);
        match (ended, &mut result) {
            (Ok(Evicted::Deallocated), Ok(count)) => *count += 1,
            (Ok(_), _) | (Err(_), Err(_)) => {}
            (Err(error), Ok(_)) => {
                tracing::error!(inode = inode.addr().get(), "evicting: {error}");
                result = Err(error);
            }
        }
    }
    result
}
