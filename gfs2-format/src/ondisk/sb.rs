//! `struct gfs2_sb`.

use super::{MAGIC, MetaHeader, MetaType, OnDisk, view};
use crate::addr::{BlockAddr, FormalIno, InodeNum};
use crate::error::{Error, Expected, Result};
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Oldest filesystem format.
pub const FORMAT_MIN: u32 = 1801;
/// Newest filesystem format: 1801 plus `trusted.*` xattrs.
pub const FORMAT_MAX: u32 = 1802;
/// The only multihost format.
pub const MULTIHOST_FORMAT: u32 = 1900;

/// `struct gfs2_inum`: formal number first, address second, everywhere.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq, Default,
)]
#[repr(C)]
pub struct RawInum {
    /// `no_formal_ino`.
    pub formal_ino: U64,
    /// `no_addr`.
    pub addr: U64,
}

const _: () = assert!(size_of::<RawInum>() == 16);

impl From<InodeNum> for RawInum {
    fn from(num: InodeNum) -> Self {
        Self {
            formal_ino: num.formal.get().into(),
            addr: num.addr.get().into(),
        }
    }
}

impl RawInum {
    /// The two numbers with their units; bounds are not checked.
    #[must_use]
    pub fn num(&self) -> InodeNum {
        InodeNum {
            formal: FormalIno::new(self.formal_ino.get()),
            addr: BlockAddr::new(self.addr.get()),
        }
    }
}

/// `struct gfs2_sb`: 272 bytes at byte 65536 of the volume.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Superblock {
    /// `sb_header`.
    pub header: MetaHeader,
    /// `sb_fs_format`.
    pub fs_format: U32,
    /// `sb_multihost_format`.
    pub multihost_format: U32,
    /// `__pad0`.
    pub pad0: U32,
    /// `sb_bsize`, in bytes.
    pub bsize: U32,
    /// `sb_bsize_shift`.
    pub bsize_shift: U32,
    /// `__pad1`.
    pub pad1: U32,
    /// `sb_master_dir`.
    pub master_dir: RawInum,
    /// `__pad2`.
    pub pad2: RawInum,
    /// `sb_root_dir`.
    pub root_dir: RawInum,
    /// `sb_lockproto`, NUL-terminated.
    pub lockproto: [u8; 64],
    /// `sb_locktable`, NUL-terminated.
    pub locktable: [u8; 64],
    /// `__pad3`.
    pub pad3: RawInum,
    /// `__pad4`.
    pub pad4: RawInum,
    /// `sb_uuid`; all zero means none.
    pub uuid: [u8; 16],
}

const _: () = assert!(size_of::<Superblock>() == 272);
const _: () = assert!(std::mem::offset_of!(Superblock, master_dir) == 48);
const _: () = assert!(std::mem::offset_of!(Superblock, root_dir) == 80);
const _: () = assert!(std::mem::offset_of!(Superblock, lockproto) == 96);
const _: () = assert!(std::mem::offset_of!(Superblock, uuid) == 256);

impl OnDisk for Superblock {
    const NAME: &'static str = "sb";
}

impl Superblock {
    /// Decodes and checks the superblock in `bytes` (read from byte 65536).
    ///
    /// Order: magic and type first (else this is no GFS2 at all), then the formats (else the rest may mean something
    /// else), then the block size that everything is computed from.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Unsupported`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let block = BlockAddr::new(128);
        let sb: &Self = view(bytes, 0, block)?;
        if sb.header.magic.get() != MAGIC {
            let expected = Expected::Value(u64::from(MAGIC));
            return Err(Error::corrupt(
                block,
                "sb",
                "mh_magic",
                u64::from(sb.header.magic.get()),
                expected,
            ));
        }
        MetaHeader::check(bytes, block, MetaType::Sb)?;
        let format = sb.fs_format.get();
        if !(FORMAT_MIN..=FORMAT_MAX).contains(&format) {
            let found = u64::from(format);
            return Err(Error::Unsupported {
                what: "filesystem format",
                found,
                supported: "1801 and 1802",
            });
        }
        if sb.multihost_format.get() != MULTIHOST_FORMAT {
            let found = u64::from(sb.multihost_format.get());
            return Err(Error::Unsupported {
                what: "multihost format",
                found,
                supported: "1900",
            });
        }
        let bsize = sb.bsize.get();
        if !bsize.is_power_of_two() || !(512..=65536).contains(&bsize) {
            let expected = Expected::Rule("a power of two from 512 to 65536");
            return Err(Error::corrupt(
                block,
                "sb",
                "sb_bsize",
                u64::from(bsize),
                expected,
            ));
        }
        if sb.bsize_shift.get() != bsize.trailing_zeros() {
            let expected = Expected::Value(u64::from(bsize.trailing_zeros()));
            return Err(Error::corrupt(
                block,
                "sb",
                "sb_bsize_shift",
                u64::from(sb.bsize_shift.get()),
                expected,
            ));
        }
        Ok(*sb)
    }

    /// `sb_lockproto` up to its NUL.
    #[must_use]
    pub fn lockproto(&self) -> String {
        text(&self.lockproto)
    }

    /// `sb_locktable` up to its NUL.
    #[must_use]
    pub fn locktable(&self) -> String {
        text(&self.locktable)
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}
