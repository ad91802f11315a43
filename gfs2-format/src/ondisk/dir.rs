//! `struct gfs2_dirent` and `struct gfs2_leaf`.

use super::{DIRENT_SIZE, LEAF_SIZE, MetaHeader, OnDisk, RawInum};
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `struct gfs2_dirent`: 40 bytes, the name follows; records are multiples of 8 bytes.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Dirent {
    /// `de_inum`; both words zero in a sentinel.
    pub inum: RawInum,
    /// `de_hash`.
    pub hash: U32,
    /// `de_rec_len`, in bytes.
    pub rec_len: U16,
    /// `de_name_len`, in bytes.
    pub name_len: U16,
    /// `de_type`: mode >> 12.
    pub de_type: U16,
    /// `de_rahead`: a hint, garbage on real images.
    pub rahead: U16,
    /// `de_cookie`: scratch, garbage on real images.
    pub cookie: U32,
    /// `pad3`.
    pub pad3: [u8; 8],
}

const _: () = assert!(size_of::<Dirent>() == DIRENT_SIZE);
const _: () = assert!(std::mem::offset_of!(Dirent, rec_len) == 20);

impl OnDisk for Dirent {
    const NAME: &'static str = "dirent";
}

impl Dirent {
    /// Bytes a record for a name of `name_len` bytes needs.
    #[must_use]
    pub const fn record_size(name_len: usize) -> usize {
        (DIRENT_SIZE + name_len + 7) & !7
    }

    /// A first record without an entry?
    #[must_use]
    pub fn is_sentinel(&self) -> bool {
        self.inum.formal_ino.get() == 0 || self.inum.addr.get() == 0
    }
}

/// `struct gfs2_leaf`: 104 bytes at the start of a leaf block; dirents follow.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Leaf {
    /// `lf_header`.
    pub header: MetaHeader,
    /// `lf_depth`.
    pub depth: U16,
    /// `lf_entries`: live entries of this block.
    pub entries: U16,
    /// `lf_dirent_format`: 1200.
    pub dirent_format: U32,
    /// `lf_next`: next leaf of an overflow chain, 0 at its end.
    pub next: U64,
    /// `lf_inode`: the directory.
    pub inode: U64,
    /// `lf_dist`: 1 for the first leaf of a chain, then 2, 3, ...
    pub dist: U32,
    /// `lf_nsec`.
    pub nsec: U32,
    /// `lf_sec`.
    pub sec: U64,
    /// `lf_reserved2`.
    pub reserved: [u8; 40],
}

const _: () = assert!(size_of::<Leaf>() == LEAF_SIZE);
const _: () = assert!(std::mem::offset_of!(Leaf, sec) == 56);

impl OnDisk for Leaf {
    const NAME: &'static str = "leaf";
}

/// `de_hash` of a name: CRC-32 of its bytes.
#[must_use]
pub fn name_hash(name: &[u8]) -> u32 {
    crc32fast::hash(name)
}
