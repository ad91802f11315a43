//! `struct gfs2_meta_header`: the first 24 bytes of every metadata block.

use super::{MAGIC, META_HEADER_SIZE, OnDisk, view};
use crate::addr::{BlockAddr, Jid};
use crate::error::{Error, Expected, Result};
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `struct gfs2_meta_header`.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct MetaHeader {
    /// `mh_magic`.
    pub magic: U32,
    /// `mh_type`.
    pub mh_type: U32,
    /// `__pad0`.
    pub pad0: U64,
    /// `mh_format`: written, never checked by anybody.
    pub format: U32,
    /// `mh_jid`: journal through which the block was last logged; informational.
    pub jid: U32,
}

const _: () = assert!(size_of::<MetaHeader>() == META_HEADER_SIZE);

impl OnDisk for MetaHeader {
    const NAME: &'static str = "meta_header";
}

/// `mh_type` of a block, with the `mh_format` that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum MetaType {
    /// Superblock.
    Sb = 1,
    /// Resource group header.
    Rg = 2,
    /// Further bitmap block.
    Rb = 3,
    /// Dinode.
    Di = 4,
    /// Indirect block.
    In = 5,
    /// Directory leaf.
    Lf = 6,
    /// Block of a directory's hash table.
    Jd = 7,
    /// Log header.
    Lh = 8,
    /// Log descriptor.
    Ld = 9,
    /// Xattr block.
    Ea = 10,
    /// Xattr value block.
    Ed = 11,
    /// Log continuation block (revokes).
    Lb = 12,
    /// Quota change block.
    Qc = 14,
}

impl MetaType {
    /// From `mh_type`.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::Sb,
            2 => Self::Rg,
            3 => Self::Rb,
            4 => Self::Di,
            5 => Self::In,
            6 => Self::Lf,
            7 => Self::Jd,
            8 => Self::Lh,
            9 => Self::Ld,
            10 => Self::Ea,
            11 => Self::Ed,
            12 => Self::Lb,
            14 => Self::Qc,
            _ => return None,
        })
    }

    /// `mh_type`.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self as u32
    }

    /// The `mh_format` written with this type.
    #[must_use]
    pub const fn format(self) -> u32 {
        match self {
            Self::Ea => 1600,
            Self::Ed => 1700,
            Self::Lb => 1000,
            other => other.raw() * 100,
        }
    }

    /// Two-letter name of the project's texts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sb => "sb",
            Self::Rg => "rgrp",
            Self::Rb => "rgrp bitmap",
            Self::Di => "dinode",
            Self::In => "indirect",
            Self::Lf => "leaf",
            Self::Jd => "journaled data",
            Self::Lh => "log header",
            Self::Ld => "log descriptor",
            Self::Ea => "ea block",
            Self::Ed => "ea data",
            Self::Lb => "log block",
            Self::Qc => "quota change",
        }
    }
}

impl MetaHeader {
    /// A fresh header.
    #[must_use]
    pub fn new(kind: MetaType, jid: Jid) -> Self {
        Self {
            magic: MAGIC.into(),
            mh_type: kind.raw().into(),
            pad0: 0.into(),
            format: kind.format().into(),
            jid: jid.get().into(),
        }
    }

    /// Checks magic and type of a block, in that order: without the magic the type means nothing.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn check(bytes: &[u8], block: BlockAddr, kind: MetaType) -> Result<&Self> {
        let header = Self::check_magic(bytes, block, kind.name())?;
        if header.mh_type.get() != kind.raw() {
            let expected = Expected::Value(u64::from(kind.raw()));
            return Err(Error::corrupt(
                block,
                kind.name(),
                "mh_type",
                u64::from(header.mh_type.get()),
                expected,
            ));
        }
        Ok(header)
    }

    /// Checks the magic only.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn check_magic<'a>(bytes: &'a [u8], block: BlockAddr, structure: &'static str) -> Result<&'a Self> {
        let header: &Self = view(bytes, 0, block)?;
        if header.magic.get() != MAGIC {
            let expected = Expected::Value(u64::from(MAGIC));
            return Err(Error::corrupt(
                block,
                structure,
                "mh_magic",
                u64::from(header.magic.get()),
                expected,
            ));
        }
        Ok(header)
    }
}
