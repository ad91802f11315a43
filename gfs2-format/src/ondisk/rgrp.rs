//! `struct gfs2_rindex` and `struct gfs2_rgrp`.

use super::{MetaHeader, OnDisk, RGRP_SIZE, RINDEX_SIZE};
use bitflags::bitflags;
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `struct gfs2_rindex`: one entry of the rindex file.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RindexEntry {
    /// `ri_addr`: block of the header.
    pub addr: U64,
    /// `ri_length`: header and bitmap blocks.
    pub length: U32,
    /// `__pad`.
    pub pad: U32,
    /// `ri_data0`: first data block.
    pub data0: U64,
    /// `ri_data`: data blocks.
    pub data: U32,
    /// `ri_bitbytes`.
    pub bitbytes: U32,
    /// `ri_reserved`.
    pub reserved: [u8; 64],
}

const _: () = assert!(size_of::<RindexEntry>() == RINDEX_SIZE);

impl OnDisk for RindexEntry {
    const NAME: &'static str = "rindex";
}

bitflags! {
    /// `rg_flags`. Bits 0xf0000000 are the kernel's in-core ones and are never stored.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RgFlags: u32 {
        /// `GFS2_RGF_JOURNAL` (historical).
        const JOURNAL = 1;
        /// `GFS2_RGF_METAONLY` (historical).
        const METAONLY = 2;
        /// `GFS2_RGF_DATAONLY` (historical).
        const DATAONLY = 4;
        /// `GFS2_RGF_NOALLOC`: nothing may be allocated here.
        const NOALLOC = 8;
        /// `GFS2_RGF_TRIMMED`.
        const TRIMMED = 0x10;
    }
}

/// `struct gfs2_rgrp`: the first 128 bytes of a resource group; bitmap bytes follow.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Rgrp {
    /// `rg_header`.
    pub header: MetaHeader,
    /// `rg_flags`.
    pub flags: U32,
    /// `rg_free`: blocks in state free.
    pub free: U32,
    /// `rg_dinodes`: blocks in state dinode or unlinked.
    pub dinodes: U32,
    /// `rg_skip`: blocks to the next header, 0 in the last group.
    pub skip: U32,
    /// `rg_igeneration`: next formal inode number given out here.
    pub igeneration: U64,
    /// `rg_data0`.
    pub data0: U64,
    /// `rg_data`.
    pub data: U32,
    /// `rg_bitbytes`.
    pub bitbytes: U32,
    /// `rg_crc`: 0 means unset.
    pub crc: U32,
    /// `rg_reserved`.
    pub reserved: [u8; 60],
}

const _: () = assert!(size_of::<Rgrp>() == RGRP_SIZE);
const _: () = assert!(std::mem::offset_of!(Rgrp, igeneration) == 40);
const _: () = assert!(std::mem::offset_of!(Rgrp, crc) == 64);

impl OnDisk for Rgrp {
    const NAME: &'static str = "rgrp";
}

impl Rgrp {
    /// Sets `rg_crc` to what the rest of the header says; the last step of every change of a header.
    pub fn seal(&mut self) {
        self.crc = rgrp_crc(self).into();
    }
}

/// The value of `rg_crc`: CRC-32 over the 128 header bytes with the field itself zero.
#[must_use]
pub fn rgrp_crc(rgrp: &Rgrp) -> u32 {
    let mut copy = *rgrp;
    copy.crc = 0.into();
    crc32fast::hash(copy.as_bytes())
}

/// The 2-bit state of a block in a resource group's bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum BlockState {
    /// Free.
    Free = 0,
    /// Used by data or metadata other than a dinode.
    Used = 1,
    /// A dinode without links, not yet deallocated.
    Unlinked = 2,
    /// A dinode.
    Dinode = 3,
}

impl BlockState {
    /// From the low two bits.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Free,
            1 => Self::Used,
            2 => Self::Unlinked,
            _ => Self::Dinode,
        }
    }
}
