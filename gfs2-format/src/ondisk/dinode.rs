//! `struct gfs2_dinode`.

use super::{DINODE_SIZE, MetaHeader, MetaType, OnDisk, RawInum, view};
use crate::addr::{BlockAddr, InodeNum};
use crate::error::{Error, Expected, Result};
use crate::geometry::{Geometry, MAX_DIR_DEPTH};
use bitflags::bitflags;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The hash table of a directory has at least `bsize >> EXHASH_MIN_SHIFT` entries.
pub const EXHASH_MIN_SHIFT: u32 = 4;

bitflags! {
    /// `di_flags`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DinodeFlags: u32 {
        /// `GFS2_DIF_JDATA`: data is logged.
        const JDATA = 1;
        /// `GFS2_DIF_EXHASH`: hashed directory.
        const EXHASH = 2;
        /// `GFS2_DIF_EA_INDIRECT`: `di_eattr` is an indirect block.
        const EA_INDIRECT = 8;
        /// `GFS2_DIF_DIRECTIO`: ignored.
        const DIRECTIO = 0x10;
        /// `GFS2_DIF_IMMUTABLE`.
        const IMMUTABLE = 0x20;
        /// `GFS2_DIF_APPENDONLY`.
        const APPENDONLY = 0x40;
        /// `GFS2_DIF_NOATIME`.
        const NOATIME = 0x80;
        /// `GFS2_DIF_SYNC`.
        const SYNC = 0x100;
        /// `GFS2_DIF_SYSTEM`: a file of the master tree.
        const SYSTEM = 0x200;
        /// `GFS2_DIF_TOPDIR`.
        const TOPDIR = 0x400;
        /// `GFS2_DIF_TRUNC_IN_PROG`: an interrupted truncate must be resumed.
        const TRUNC_IN_PROG = 0x2000_0000;
        /// `GFS2_DIF_INHERIT_DIRECTIO`: ignored.
        const INHERIT_DIRECTIO = 0x4000_0000;
        /// `GFS2_DIF_INHERIT_JDATA`: new files here get JDATA.
        const INHERIT_JDATA = 0x8000_0000;
        /// Bits of newer writers are kept as they are.
        const _ = !0;
    }
}

/// File type in the top bits of `di_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileType {
    /// FIFO.
    Fifo,
    /// Character device.
    Char,
    /// Directory.
    Dir,
    /// Block device.
    Block,
    /// Regular file.
    Regular,
    /// Symbolic link.
    Symlink,
    /// Socket.
    Socket,
}

impl FileType {
    /// From a mode; `None` for a mode of no known type.
    #[must_use]
    pub const fn from_mode(mode: u32) -> Option<Self> {
        Self::from_dirent_type((mode >> 12) as u16)
    }

    /// From `de_type` (`mode >> 12`).
    #[must_use]
    pub const fn from_dirent_type(raw: u16) -> Option<Self> {
        Some(match raw {
            0o1 => Self::Fifo,
            0o2 => Self::Char,
            0o4 => Self::Dir,
            0o6 => Self::Block,
            0o10 => Self::Regular,
            0o12 => Self::Symlink,
            0o14 => Self::Socket,
            _ => return None,
        })
    }

    /// `de_type`.
    #[must_use]
    pub const fn dirent_type(self) -> u16 {
        match self {
            Self::Fifo => 0o1,
            Self::Char => 0o2,
            Self::Dir => 0o4,
            Self::Block => 0o6,
            Self::Regular => 0o10,
            Self::Symlink => 0o12,
            Self::Socket => 0o14,
        }
    }

    /// The type bits of a mode.
    #[must_use]
    pub const fn mode_bits(self) -> u32 {
        (self.dirent_type() as u32) << 12
    }
}

/// `struct gfs2_dinode`: the first 232 bytes of an inode's block; pointers or stuffed data follow.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Dinode {
    /// `di_header`.
    pub header: MetaHeader,
    /// `di_num`.
    pub num: RawInum,
    /// `di_mode`.
    pub mode: U32,
    /// `di_uid`.
    pub uid: U32,
    /// `di_gid`.
    pub gid: U32,
    /// `di_nlink`.
    pub nlink: U32,
    /// `di_size`, in bytes.
    pub size: U64,
    /// `di_blocks`: every block owned, the dinode too (unit: filesystem blocks).
    pub blocks: U64,
    /// `di_atime`, in seconds (two's complement).
    pub atime: U64,
    /// `di_mtime`, in seconds.
    pub mtime: U64,
    /// `di_ctime`, in seconds.
    pub ctime: U64,
    /// `di_major`.
    pub major: U32,
    /// `di_minor`.
    pub minor: U32,
    /// `di_goal_meta`.
    pub goal_meta: U64,
    /// `di_goal_data`.
    pub goal_data: U64,
    /// `di_generation`.
    pub generation: U64,
    /// `di_flags`.
    pub flags: U32,
    /// `di_payload_format`.
    pub payload_format: U32,
    /// `__pad1`.
    pub pad1: U16,
    /// `di_height`.
    pub height: U16,
    /// `__pad2`.
    pub pad2: U32,
    /// `__pad3`.
    pub pad3: U16,
    /// `di_depth`: log2 of the hash table's entries.
    pub depth: U16,
    /// `di_entries`.
    pub entries: U32,
    /// `__pad4`.
    pub pad4: RawInum,
    /// `di_eattr`.
    pub eattr: U64,
    /// `di_atime_nsec`.
    pub atime_nsec: U32,
    /// `di_mtime_nsec`.
    pub mtime_nsec: U32,
    /// `di_ctime_nsec`.
    pub ctime_nsec: U32,
    /// `di_reserved`.
    pub reserved: [u8; 44],
}

const _: () = assert!(size_of::<Dinode>() == DINODE_SIZE);
const _: () = assert!(std::mem::offset_of!(Dinode, size) == 56);
const _: () = assert!(std::mem::offset_of!(Dinode, flags) == 128);
const _: () = assert!(std::mem::offset_of!(Dinode, height) == 138);
const _: () = assert!(std::mem::offset_of!(Dinode, depth) == 146);
const _: () = assert!(std::mem::offset_of!(Dinode, eattr) == 168);
const _: () = assert!(std::mem::offset_of!(Dinode, reserved) == 188);

impl OnDisk for Dinode {
    const NAME: &'static str = "dinode";
}

impl Dinode {
    /// Decodes and checks the dinode in `bytes`, which were read from `addr`: magic and type, own address, height,
    /// depth, stuffed size (the kernel's checks when it loads an inode; FORMAT.md 1.5).
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn decode<'a>(bytes: &'a [u8], addr: BlockAddr, geometry: &Geometry) -> Result<&'a Self> {
        MetaHeader::check(bytes, addr, MetaType::Di)?;
        let di: &Self = view(bytes, 0, addr)?;
        let fail = |field, found: u64, expected| Err(Error::corrupt(addr, "dinode", field, found, expected));
        if di.num.addr.get() != addr.get() {
            return fail("no_addr", di.num.addr.get(), Expected::Value(addr.get()));
        }
        if FileType::from_mode(di.mode.get()).is_none() {
            return fail(
                "di_mode",
                u64::from(di.mode.get()),
                Expected::Rule("a mode with a file type"),
            );
        }
        let height = di.height.get();
        if height > geometry.max_height() {
            return fail(
                "di_height",
                u64::from(height),
                Expected::Range(0, u64::from(geometry.max_height())),
            );
        }
        let depth = di.depth.get();
        if depth > MAX_DIR_DEPTH {
            return fail(
                "di_depth",
                u64::from(depth),
                Expected::Range(0, u64::from(MAX_DIR_DEPTH)),
            );
        }
        if di.flags().contains(DinodeFlags::EXHASH) {
            let least = geometry.initial_dir_depth();
            if depth < least {
                let expected = Expected::Range(u64::from(least), u64::from(MAX_DIR_DEPTH));
                return fail("di_depth", u64::from(depth), expected);
            }
        }
        if height == 0 && di.size.get() > geometry.max_stuffed() {
            return fail(
                "di_size",
                di.size.get(),
                Expected::Range(0, geometry.max_stuffed()),
            );
        }
        Ok(di)
    }

    /// `di_flags`.
    #[must_use]
    pub fn flags(&self) -> DinodeFlags {
        DinodeFlags::from_bits_retain(self.flags.get())
    }

    /// Stores `di_flags`.
    pub fn set_flags(&mut self, flags: DinodeFlags) {
        self.flags = flags.bits().into();
    }

    /// The inode's two numbers.
    #[must_use]
    pub fn inode_num(&self) -> InodeNum {
        self.num.num()
    }

    /// File type; `None` for a mode of no known type.
    #[must_use]
    pub fn file_type(&self) -> Option<FileType> {
        FileType::from_mode(self.mode.get())
    }

    /// Is it a directory?
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.file_type() == Some(FileType::Dir)
    }
}
