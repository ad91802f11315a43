//! Every inode found: what entries must agree with, and the links counted so far.
//!
//! 32 bytes an inode. Inodes the bitmaps show come in ascending order; the few that only directory entries lead to
//! are kept apart.

use gfs2_format::BlockAddr;
use gfs2_format::ondisk::FileType;
use std::collections::BTreeMap;

/// One inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) addr: BlockAddr,
    pub(crate) formal: u64,
    /// `di_nlink`.
    pub(crate) nlink: u32,
    /// Entries that lead here.
    pub(crate) links: u32,
    pub(crate) kind: Option<FileType>,
    /// The bitmap says unlinked.
    pub(crate) unlinked: bool,
    /// Its tree was not followed: too much of it is wrong.
    pub(crate) skipped: bool,
    /// Neither content nor attributes nor entries.
    pub(crate) empty: bool,
    /// A pointer of its tree leads nowhere, or to a block of the wrong type.
    pub(crate) bad: bool,
}

const _: () = assert!(size_of::<Inode>() == 32);

/// All inodes by address.
#[derive(Debug, Default)]
pub(crate) struct Inodes {
    sorted: Vec<Inode>,
    /// Where an inode was found last: its neighbours in a directory are often its neighbours here.
    last: usize,
    extra: BTreeMap<BlockAddr, Inode>,
}

impl Inodes {
    pub(crate) fn add(&mut self, inode: Inode) {
        if self.sorted.last().is_none_or(|last| last.addr < inode.addr) {
            self.sorted.push(inode);
        } else {
            self.extra.insert(inode.addr, inode);
        }
    }

    pub(crate) fn get_mut(&mut self, addr: BlockAddr) -> Option<&mut Inode> {
        let next = self.last.saturating_add(1);
        if self.sorted.get(next).is_some_and(|inode| inode.addr == addr) {
            self.last = next;
            return self.sorted.get_mut(next);
        }
        match self.sorted.binary_search_by_key(&addr, |inode| inode.addr) {
            Ok(n) => {
                self.last = n;
                self.sorted.get_mut(n)
            }
            Err(_) => self.extra.get_mut(&addr),
        }
    }

    pub(crate) fn get(&self, addr: BlockAddr) -> Option<&Inode> {
        match self.sorted.binary_search_by_key(&addr, |inode| inode.addr) {
            Ok(n) => self.sorted.get(n),
            Err(_) => self.extra.get(&addr),
        }
    }

    /// Notes that blocks of an inode are damaged.
    pub(crate) fn spoil(&mut self, addr: BlockAddr) {
        if let Some(inode) = self.get_mut(addr) {
            inode.bad = true;
        }
    }

    /// Bytes in memory.
    pub(crate) fn memory(&self) -> u64 {
        let sorted = self.sorted.capacity().saturating_mul(size_of::<Inode>());
        // A node of a tree is not always full.
        let extra = self.extra.len().saturating_mul(2 * size_of::<Inode>());
        sorted.saturating_add(extra) as u64
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Inode> {
        self.sorted.iter().chain(self.extra.values())
    }
}
