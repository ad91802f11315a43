//! All resource groups: the index, and the choice of one.
//!
//! Invariants: the index is what the rindex inode held when its lock was last ours; groups are added, never moved or
//! taken away; a [`Hold`] has at least as many allocatable blocks as were asked for, and nobody else of this node can
//! take them.

use super::edit::Reader;
use super::group::Group;
use super::hold::Hold;
use crate::cache::BufferCache;
use crate::error::{Errno, FsError, FsResult};
use crate::glock::{Glock, GlockName, GlockOps, GlockTable, HolderFlags, State};
use crate::journal::{FlushReason, Journal};
use crate::txn::CommitSeq;
use gfs2_format::bitmap::{self, RgrpLayout};
use gfs2_format::ondisk::{BlockState, Dinode, RINDEX_SIZE};
use gfs2_format::{BlockAddr, BlockRead, Error, Expected, tree};
use parking_lot::RwLock;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// What an allocation needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    /// Block to be near of.
    pub(crate) goal: BlockAddr,
    /// Blocks wanted.
    pub(crate) need: u64,
    /// Blocks that will do when there are not as many.
    pub(crate) min: u64,
    /// Somewhere else than its neighbours: a directory that will have files of its own.
    pub(crate) spread: bool,
}

impl Want {
    /// Blocks near a goal, all or none.
    pub(crate) fn near(goal: BlockAddr, need: u64) -> Self {
        Self {
            goal,
            need,
            min: need,
            spread: false,
        }
    }
}

/// A group and its glock.
#[derive(Debug)]
struct Entry {
    group: Arc<Group>,
    glock: Arc<Glock>,
}

/// What of the index must be dropped when the rindex inode's lock goes.
#[derive(Debug, Default)]
pub(crate) struct IndexState {
    current: AtomicBool,
}

impl IndexState {
    /// The rindex may have changed.
    pub(crate) fn outdated(&self) {
        self.current.store(false, Ordering::Release);
    }
}

/// The resource groups of the volume.
#[derive(Debug)]
pub(crate) struct Rgrps {
    cache: Arc<BufferCache>,
    journal: Option<Arc<Journal>>,
    glocks: Arc<GlockTable>,
    rindex: (BlockAddr, Arc<Glock>),
    state: Arc<IndexState>,
    entries: RwLock<Arc<Vec<Arc<Entry>>>>,
    /// Spreads directories.
    turn: AtomicU64,
    /// Bytes that what is known of the groups' blocks may take.
    maps_most: AtomicUsize,
}

/// The passes over the groups, each less choosy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Groups known to have the room, without waiting for anybody of this node.
    Easy,
    /// Any.
    Any,
    /// Any, for the least, after what was freed has become durable.
    Least,
}

impl Rgrps {
    /// Nothing is read yet. `rindex` is the rindex inode's address and glock, whose owner calls
    /// [`IndexState::outdated`] when that is given up.
    pub(crate) fn new(
        cache: Arc<BufferCache>,
        journal: Option<Arc<Journal>>,
        glocks: Arc<GlockTable>,
        rindex: (BlockAddr, Arc<Glock>),
        state: Arc<IndexState>,
    ) -> Self {
        Self {
            cache,
            journal,
            glocks,
            rindex,
            state,
            entries: RwLock::default(),
            turn: AtomicU64::new(0),
            maps_most: AtomicUsize::new(usize::MAX),
        }
    }

    /// Sets how many bytes the maps of the groups may take.
    pub(crate) fn set_limit(&self, bytes: usize) {
        self.maps_most.store(bytes, Ordering::Relaxed);
    }

    fn durable(&self) -> CommitSeq {
        self.journal
            .as_ref()
            .map_or(CommitSeq::NONE, |journal| journal.durable_seq())
    }

    /// The groups, read again first if the index may have grown. Must not be called with a group's lock held.
    fn entries(&self) -> FsResult<Arc<Vec<Arc<Entry>>>> {
        if self.state.current.load(Ordering::Acquire) {
            return Ok(Arc::clone(&self.entries.read()));
        }
        let guard = self.rindex.1.acquire(State::Sh, HolderFlags::empty())?;
        let layouts = self.read_index(&Reader::new(&self.cache, &guard))?;
        let mut entries = self.entries.write();
        let mut new = Vec::with_capacity(layouts.len());
        for layout in layouts {
            let known = entries.binary_search_by_key(&layout.addr(), |e| e.group.layout().addr());
            match known.ok().and_then(|index| entries.get(index)) {
                Some(entry) if *entry.group.layout() == layout => new.push(Arc::clone(entry)),
                Some(entry) => {
                    return Err(FsError::Inconsistent(format!(
                        "RG = {}: the resource index changed an entry that exists",
                        entry.group.layout().addr()
                    )));
                }
                None => new.push(Arc::new(self.entry(layout)?)),
            }
        }
        if new.is_empty() {
            return Err(FsError::Inconsistent("the resource index is empty".into()));
        }
        *entries = Arc::new(new);
        // Still under the rindex lock: nobody has changed the index since it was read.
        self.state.current.store(true, Ordering::Release);
        Ok(Arc::clone(&entries))
    }

    fn read_index(&self, reader: &Reader<'_>) -> FsResult<Vec<RgrpLayout>> {
        let (addr, geometry) = (self.rindex.0, self.cache.geometry());
        let block = reader.read(addr)?;
        let size = Dinode::decode(&block, addr, geometry)?.size.get();
        // A group has at least two blocks; more entries than that are a lie and would cost memory.
        let most = (geometry.end() / 2).saturating_mul(RINDEX_SIZE as u64);
        if size > most {
            return Err(Error::corrupt(addr, "dinode", "di_size", size, Expected::Range(0, most)).into());
        }
        let mut content = vec![0; usize::try_from(size).unwrap_or(0)];
        let len = tree::read_bytes(reader, addr, 0, &mut content)?;
        content.truncate(len);
        Ok(bitmap::decode_rindex(&content, addr, geometry)?)
    }

    fn entry(&self, layout: RgrpLayout) -> FsResult<Entry> {
        let name = GlockName::rgrp(layout.addr().get());
        let group = Arc::new(Group::new(layout));
        let ops: Arc<dyn GlockOps> = Arc::new(super::ops::RgrpOps::new(
            Arc::clone(&group),
            Arc::clone(&self.cache),
            self.journal.clone(),
        ));
        Ok(Entry {
            glock: self.glocks.get(name, &ops)?,
            group,
        })
    }

    fn find(entries: &[Arc<Entry>], block: BlockAddr) -> Option<usize> {
        let after = entries.partition_point(|e| e.group.layout().addr() <= block);
        let index = after.checked_sub(1)?;
        entries
            .get(index)?
            .group
            .layout()
            .contains(block)
            .then_some(index)
    }

    fn owner(&self, block: BlockAddr) -> FsResult<Arc<Entry>> {
        let entries = self.entries()?;
        let found = Self::find(&entries, block).and_then(|index| entries.get(index));
        found.cloned().ok_or_else(|| {
            let expected = Expected::Rule("a block of a resource group");
            Error::corrupt(block, "rindex", "block", block.get(), expected).into()
        })
    }

    /// Holds the group of a block, to change the block's state. The caller holds no other group.
    ///
    /// # Errors
    /// Corruption; I/O and lock errors.
    pub(crate) fn hold_of(&self, block: BlockAddr) -> FsResult<Hold> {
        let entry = self.owner(block)?;
        self.hold(&entry, true)?.ok_or_else(|| Errno::EAGAIN.into())
    }

    /// A file that grew in the group at `group` does not grow there any more.
    pub(crate) fn close_window(&self, group: BlockAddr, file: BlockAddr) {
        let entries = Arc::clone(&self.entries.read());
        let found = entries.binary_search_by_key(&group, |e| e.group.layout().addr());
        if let Some(entry) = found.ok().and_then(|index| entries.get(index)) {
            entry.group.close_window(file.get());
        }
    }

    /// `None`: somebody of this node is at it and `wait` is not wanted.
    fn hold(&self, entry: &Entry, wait: bool) -> FsResult<Option<Hold>> {
        if !wait && entry.group.is_busy() {
            return Ok(None);
        }
        let lock = entry.glock.acquire(State::Ex, HolderFlags::NODE_SCOPE)?;
        if !entry.group.lock_local(wait) {
            return Ok(None);
        }
        // From here on the hold gives the local lock back.
        let hold = Hold::new(Arc::clone(&entry.group), lock);
        let reader = Reader::new(&self.cache, hold.lock());
        if entry.group.load(&reader, self.durable())? {
            let most = self.maps_most.load(Ordering::Relaxed);
            if self.usage().1 > most {
                // Ours stays: somebody is at it.
                self.shrink_to(most / 2);
            }
        }
        Ok(Some(hold))
    }

    /// Holds a group with room for what is wanted.
    ///
    /// # Errors
    /// ENOSPC; corruption, I/O and lock errors.
    pub(crate) fn reserve(&self, want: &Want) -> FsResult<Hold> {
        let entries = self.entries()?;
        let start = self.start(&entries, want);
        for pass in [Pass::Easy, Pass::Any, Pass::Least] {
            let need = if pass == Pass::Least { want.min } else { want.need };
            if pass == Pass::Least {
                self.flush()?;
            }
            if let Some(hold) = self.pass(&entries, start, pass, need)? {
                return Ok(hold);
            }
        }
        Err(Errno::ENOSPC.into())
    }

    fn start(&self, entries: &[Arc<Entry>], want: &Want) -> usize {
        let near = Self::find(entries, want.goal).unwrap_or(0);
        if !want.spread {
            return near;
        }
        // Steps through the groups in an order that repeats only after all of them.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let len = entries.len() as u64;
        ((near as u64).wrapping_add(turn.wrapping_mul(7).wrapping_add(turn / len)) % len) as usize
    }

    fn pass(&self, entries: &[Arc<Entry>], start: usize, pass: Pass, need: u64) -> FsResult<Option<Hold>> {
        let (after, before) = (entries.iter().skip(start), entries.iter().take(start));
        let mut crowded = false;
        for (turn, entry) in after.chain(before).enumerate() {
            if pass == Pass::Easy {
                match entry.group.free_hint() {
                    Some(free) if u64::from(free) < need => continue,
                    Some(_) => {}
                    // An unread group costs reads: only where we wanted to be, or to get out of each other's way.
                    None if turn > 0 && !crowded => continue,
                    None => {}
                }
            }
            match self.hold(entry, pass != Pass::Easy)? {
                None => crowded = true,
                Some(hold) if u64::from(hold.available()) >= need => return Ok(Some(hold)),
                Some(_) => {}
            }
        }
        Ok(None)
    }

    fn flush(&self) -> FsResult<()> {
        match &self.journal {
            Some(journal) => journal.flush(FlushReason::Reserve).map(|_| ()),
            None => Ok(()),
        }
    }

    /// State of a block on disk.
    ///
    /// # Errors
    /// Corruption, also when no group has the block; I/O and lock errors.
    pub(crate) fn state(&self, block: BlockAddr) -> FsResult<Option<BlockState>> {
        let entry = self.owner(block)?;
        let guard = entry.glock.acquire(State::Sh, HolderFlags::empty())?;
        entry.group.state(&Reader::new(&self.cache, &guard), block)
    }

    /// The dinodes among the `count` blocks from `first` on, as far as the part of the bitmap that `block` (one of
    /// them) is in knows.
    ///
    /// # Errors
    /// As [`Rgrps::state`].
    pub(crate) fn dinodes_in(
        &self,
        first: BlockAddr,
        block: BlockAddr,
        count: u64,
    ) -> FsResult<Vec<BlockAddr>> {
        let entry = self.owner(block)?;
        let guard = entry.glock.acquire(State::Sh, HolderFlags::empty())?;
        let reader = Reader::new(&self.cache, &guard);
        let end = BlockAddr::new(first.get().saturating_add(count));
        entry.group.dinodes_in(&reader, first..end, block)
    }

    /// Every dinode without links of the groups that have not been looked through, group by group. `visit` says
    /// whether somebody is to come back for this one.
    ///
    /// # Errors
    /// Whatever `visit` fails with; corruption; I/O and lock errors.
    pub(crate) fn for_unlinked(
        &self,
        mut visit: impl FnMut(BlockAddr) -> FsResult<ControlFlow<(), bool>>,
    ) -> FsResult<()> {
        for entry in self.entries()?.iter().filter(|entry| entry.group.needs_check()) {
            let found = {
                let guard = entry.glock.acquire(State::Sh, HolderFlags::empty())?;
                entry.group.unlinked(&Reader::new(&self.cache, &guard))?
            };
            let mut left = false;
            for addr in found {
                match visit(addr)? {
                    ControlFlow::Continue(again) => left |= again,
                    ControlFlow::Break(()) => return Ok(()),
                }
            }
            if !left {
                entry.group.checked();
            }
        }
        Ok(())
    }

    /// Number of groups, and the bytes that what is known of their blocks takes.
    pub(crate) fn usage(&self) -> (usize, usize) {
        let entries = Arc::clone(&self.entries.read());
        (
            entries.len(),
            entries.iter().map(|entry| entry.group.bytes()).sum(),
        )
    }

    /// Forgets what is known of groups nobody is at, those not used lately first, until about `bytes` are left.
    pub(crate) fn shrink_to(&self, bytes: usize) {
        let entries = Arc::clone(&self.entries.read());
        let mut left = self.usage().1;
        let durable = self.durable();
        // The first time round a group loses its mark of use.
        for entry in entries.iter().chain(entries.iter()) {
            if left <= bytes {
                return;
            }
            left = left.saturating_sub(entry.group.unload(durable));
        }
    }

    /// Sums of all headers: blocks, free ones, dinodes.
    ///
    /// # Errors
    /// Corruption; I/O and lock errors.
    pub(crate) fn totals(&self) -> FsResult<(u64, u64, u64)> {
        let mut sums = (0, 0, 0);
        for entry in self.entries()?.iter() {
            let guard = entry.glock.acquire(State::Sh, HolderFlags::empty())?;
            let header = entry.group.header(&Reader::new(&self.cache, &guard))?;
            sums.0 += u64::from(entry.group.layout().data());
            sums.1 += u64::from(header.free.get());
            sums.2 += u64::from(header.dinodes.get());
        }
        Ok(sums)
    }

    /// Addresses of all groups read so far.
    #[cfg(test)]
    pub(crate) fn addresses(&self) -> Vec<BlockAddr> {
        self.entries
            .read()
            .iter()
            .map(|entry| entry.group.layout().addr())
            .collect()
    }
}
