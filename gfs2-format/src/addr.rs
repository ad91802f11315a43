//! Newtypes for every unit a number on this filesystem can have, so that they cannot be swapped.
//!
//! Invariant: arithmetic is checked and returns `Option`; there is no `From<u64>` and no `Deref`.

use std::fmt;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty), $label:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name($inner);

        impl $name {
            /// Wraps a number whose unit the caller knows.
            #[must_use]
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }

            /// The bare number.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }

            /// `self + n`, or `None` on overflow.
            #[must_use]
            pub const fn checked_add(self, n: $inner) -> Option<Self> {
                match self.0.checked_add(n) {
                    Some(v) => Some(Self(v)),
                    None => None,
                }
            }

            /// `self - n`, or `None` below zero.
            #[must_use]
            pub const fn checked_sub(self, n: $inner) -> Option<Self> {
                match self.0.checked_sub(n) {
                    Some(v) => Some(Self(v)),
                    None => None,
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($label, "{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

unit!(
    /// An absolute filesystem block number (unit: filesystem blocks).
    BlockAddr(u64),
    "blk#"
);
unit!(
    /// A logical block within a file (unit: filesystem blocks; for directories' hash tables: blocks of `jbsize` payload).
    FileBlock(u64),
    "lblk#"
);
unit!(
    /// A block index within a journal (unit: filesystem blocks from the journal's start).
    JournalBlock(u32),
    "jblk#"
);
unit!(
    /// A formal inode number: unique only together with the inode's address.
    FormalIno(u64),
    "formal#"
);
unit!(
    /// A journal id: the N of `jindex/journalN`.
    Jid(u32),
    "jid#"
);

impl BlockAddr {
    /// The superblock's address for a block size (byte 65536).
    #[must_use]
    pub const fn superblock(bsize_shift: u32) -> Self {
        Self(65536 >> bsize_shift)
    }
}

/// What names an inode: its formal number and the block of its dinode (`struct gfs2_inum`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct InodeNum {
    /// The formal inode number (`no_formal_ino`).
    pub formal: FormalIno,
    /// The dinode's block (`no_addr`).
    pub addr: BlockAddr,
}

/// A run of contiguous blocks; `len` is at least 1 wherever one is handed out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Extent {
    /// First block.
    pub start: BlockAddr,
    /// Length in blocks.
    pub len: u32,
}

impl Extent {
    /// One block.
    #[must_use]
    pub const fn single(start: BlockAddr) -> Self {
        Self { start, len: 1 }
    }

    /// The addresses of the run; stops short where numbers would overflow.
    pub fn blocks(self) -> impl Iterator<Item = BlockAddr> {
        (0..u64::from(self.len)).map_while(move |n| self.start.checked_add(n))
    }
}
