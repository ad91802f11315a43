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
}

const _: () = assert!(size_of::<Inode>() == 32);

/// All inodes by address.
#[derive(Debug, Default)]
pub(crate) struct Inodes {
    sorted: Vec<Inode>,
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
        match self.sorted.binary_search_by_key(&addr, |inode| inode.addr) {
            Ok(n) => self.sorted.get_mut(n),
            Err(_) => self.extra.get_mut(&addr),
        }
    }

    pub(crate) fn get(&self, addr: BlockAddr) -> Option<&Inode> {
        match self.sorted.binary_search_by_key(&addr, |inode| inode.addr) {
            Ok(n) => self.sorted.get(n),
            Err(_) => self.extra.get(&addr),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Inode> {
        self.sorted.iter().chain(self.extra.values())
    }
}
