//! The kernel's FUSE protocol as it stands in memory: numbers and structures, nothing that acts.
//!
//! Source: the kernel's `include/uapi/linux/fuse.h` (under the BSD-2-Clause licence). Names are the header's without
//! `fuse_`/`FUSE_`; integers are native-endian, as both ends are one machine. Invariant: the size of every structure is
//! asserted.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Major version of the protocol.
pub(super) const MAJOR: u32 = 7;
/// The newest minor version whose structures these are.
pub(super) const MINOR: u32 = 45;
/// The oldest we serve: the 64-bit INIT flags (Linux 5.17; Debian 12's 6.1 speaks 7.37).
pub(super) const MINOR_MIN: u32 = 36;
/// Node id of the root.
pub(super) const ROOT_ID: u64 = 1;
/// Set in the unique number of an INTERRUPT.
#[cfg(test)]
pub(super) const INTERRUPT_BIT: u64 = 1;

/// Declares a structure with its size.
macro_rules! layout {
    ($($(#[$doc:meta])* $name:ident $size:literal { $($field:ident: $ty:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
            #[repr(C)]
            pub(super) struct $name {
                $(pub(super) $field: $ty,)*
            }
            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}

layout! {
    /// Begins every request.
    InHeader 40 {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32,
        total_extlen: u16, padding: u16,
    }
    /// Begins every answer and every notification.
    OutHeader 16 { len: u32, error: i32, unique: u64 }
    Attr 88 {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32,
        blksize: u32, flags: u32,
    }
    EntryOut 128 {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32,
        attr_valid_nsec: u32, attr: Attr,
    }
    AttrOut 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    ForgetIn 8 { nlookup: u64 }
    ForgetOne 16 { nodeid: u64, nlookup: u64 }
    BatchForgetIn 8 { count: u32, dummy: u32 }
    GetattrIn 16 { getattr_flags: u32, dummy: u32, fh: u64 }
    SetattrIn 88 {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    MknodIn 16 { mode: u32, rdev: u32, umask: u32, padding: u32 }
    MkdirIn 8 { mode: u32, umask: u32 }
    RenameIn 8 { newdir: u64 }
    Rename2In 16 { newdir: u64, flags: u32, padding: u32 }
    LinkIn 8 { oldnodeid: u64 }
    OpenIn 8 { flags: u32, open_flags: u32 }
    CreateIn 16 { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    OpenOut 16 { fh: u64, open_flags: u32, padding: u32 }
    ReleaseIn 24 { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    ReadIn 40 {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    WriteIn 40 {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    WriteOut 8 { size: u32, padding: u32 }
    StatfsOut 80 {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    FsyncIn 16 { fh: u64, fsync_flags: u32, padding: u32 }
    SetxattrIn 16 { size: u32, flags: u32, setxattr_flags: u32, padding: u32 }
    GetxattrIn 8 { size: u32, padding: u32 }
    GetxattrOut 8 { size: u32, padding: u32 }
    LseekIn 24 { fh: u64, offset: u64, whence: u32, padding: u32 }
    LseekOut 8 { offset: u64 }
    /// Followed by `in_size` bytes.
    IoctlIn 32 { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }
    /// Followed by as many bytes as were asked for.
    IoctlOut 16 { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    /// The kernel's own, of `FS_IOC_FSGETXATTR`.
    Fsxattr 28 {
        xflags: u32, extsize: u32, nextents: u32, projid: u32, cowextsize: u32, pad: [u8; 8],
    }
    InterruptIn 8 { unique: u64 }
    InitIn 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11],
    }
    InitOut 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }
    /// Followed by the name, padded to eight bytes.
    Dirent 24 { ino: u64, off: u64, namelen: u32, r#type: u32 }
    NotifyInvalInode 24 { ino: u64, off: i64, len: i64 }
    /// Followed by the name and a NUL.
    NotifyInvalEntry 16 { parent: u64, namelen: u32, flags: u32 }
    /// Followed by the name and a NUL.
    NotifyDelete 24 { parent: u64, child: u64, namelen: u32, padding: u32 }
    /// Followed by the bytes.
    NotifyStore 24 { nodeid: u64, offset: u64, size: u32, padding: u32 }
    /// Followed by the node ids.
    NotifyPrune 16 { count: u32, padding: u32, spare: u64 }
    /// What of an entry of a ring is neither header nor payload.
    RingEntry 32 { flags: u64, commit_id: u64, payload_sz: u32, padding: u32, reserved: u64 }
}

bitflags! {
    /// INIT: what the kernel offers and what we take.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct InitFlags: u64 {
        const ASYNC_READ = 1;
        const EXPORT_SUPPORT = 1 << 4;
        const BIG_WRITES = 1 << 5;
        const DONT_MASK = 1 << 6;
        const DO_READDIRPLUS = 1 << 13;
        const READDIRPLUS_AUTO = 1 << 14;
        const ASYNC_DIO = 1 << 15;
        const WRITEBACK_CACHE = 1 << 16;
        const PARALLEL_DIROPS = 1 << 18;
        const POSIX_ACL = 1 << 20;
        const MAX_PAGES = 1 << 22;
        const CACHE_SYMLINKS = 1 << 23;
        const NO_OPENDIR_SUPPORT = 1 << 24;
        const EXPLICIT_INVAL_DATA = 1 << 25;
        const HANDLE_KILLPRIV_V2 = 1 << 28;
        const SETXATTR_EXT = 1 << 29;
        const INIT_EXT = 1 << 30;
        const HAS_EXPIRE_ONLY = 1 << 35;
        const OVER_IO_URING = 1 << 41;
        const _ = !0;
    }

    /// SETATTR: which fields count.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Fattr: u32 {
        const MODE = 1;
        const UID = 1 << 1;
        const GID = 1 << 2;
        const SIZE = 1 << 3;
        const ATIME = 1 << 4;
        const MTIME = 1 << 5;
        const ATIME_NOW = 1 << 7;
        const MTIME_NOW = 1 << 8;
        const CTIME = 1 << 10;
        const KILL_SUIDGID = 1 << 11;
        const _ = !0;
    }

    /// What the answer to OPEN says.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Fopen: u32 {
        const KEEP_CACHE = 1 << 1;
        const CACHE_DIR = 1 << 3;
        const NOFLUSH = 1 << 5;
        const PARALLEL_DIRECT_WRITES = 1 << 6;
    }
}

/// WRITE: from the page cache; the handle is any that was open for writing.
pub(super) const WRITE_CACHE: u32 = 1;
/// WRITE: the set-id bits go.
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// SETXATTR: the set-group-id bit goes.
pub(super) const SETXATTR_ACL_KILL_SGID: u32 = 1;
/// FSYNC: data only.
pub(super) const FSYNC_FDATASYNC: u32 = 1;
/// INVAL_ENTRY: the name has to be looked up again, no more.
pub(super) const EXPIRE_ONLY: u32 = 1;

/// Requests by io_uring: the commands, and where the parts of an entry's headers lie.
pub(super) mod ring {
    /// Makes an entry known, and waits for its first request.
    pub(in super::super) const REGISTER: u32 = 1;
    /// Answers the entry's request, and waits for its next.
    pub(in super::super) const COMMIT_AND_FETCH: u32 = 2;
    /// Length of each of the two headers: the request's (or answer's), the operation's.
    pub(in super::super) const HEADER: usize = 128;
    /// Length of all headers: those two and a [`super::RingEntry`].
    pub(in super::super) const HEADERS: usize = 2 * HEADER + size_of::<super::RingEntry>();
}

/// Codes of notifications (in `OutHeader::error`).
pub(super) mod notify {
    pub(in super::super) const INVAL_INODE: i32 = 2;
    pub(in super::super) const INVAL_ENTRY: i32 = 3;
    pub(in super::super) const STORE: i32 = 4;
    pub(in super::super) const DELETE: i32 = 6;
    pub(in super::super) const INC_EPOCH: i32 = 8;
    pub(in super::super) const PRUNE: i32 = 9;
    /// Protocol minor that brought the epoch.
    pub(in super::super) const EPOCH_SINCE: u32 = 44;
    /// Protocol minor that brought PRUNE.
    pub(in super::super) const PRUNE_SINCE: u32 = 45;
}

/// Declares the operations with their numbers and names.
macro_rules! opcodes {
    ($($name:ident $number:literal),* $(,)?) => {
        /// What a request asks for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(clippy::upper_case_acronyms, reason = "the header's names")]
        #[allow(non_camel_case_types, reason = "the header's names")]
        #[repr(u32)]
        pub(super) enum Opcode {
            $($name = $number,)*
        }

        impl Opcode {
            /// All of them.
            pub(super) const ALL: &[Self] = &[$(Self::$name,)*];

            pub(super) const fn from_raw(raw: u32) -> Option<Self> {
                match raw {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The header's name, in lower case.
            pub(super) fn name(self) -> String {
                match self {
                    $(Self::$name => stringify!($name).to_ascii_lowercase(),)*
                }
            }
        }
    };
}

opcodes! {
    LOOKUP 1, FORGET 2, GETATTR 3, SETATTR 4, READLINK 5, SYMLINK 6, MKNOD 8, MKDIR 9, UNLINK 10, RMDIR 11,
    RENAME 12, LINK 13, OPEN 14, READ 15, WRITE 16, STATFS 17, RELEASE 18, FSYNC 20, SETXATTR 21, GETXATTR 22,
    LISTXATTR 23, REMOVEXATTR 24, FLUSH 25, INIT 26, OPENDIR 27, READDIR 28, RELEASEDIR 29, FSYNCDIR 30, GETLK 31,
    SETLK 32, SETLKW 33, ACCESS 34, CREATE 35, INTERRUPT 36, BMAP 37, DESTROY 38, IOCTL 39, POLL 40,
    NOTIFY_REPLY 41, BATCH_FORGET 42, FALLOCATE 43, READDIRPLUS 44, RENAME2 45, LSEEK 46, COPY_FILE_RANGE 47,
    SETUPMAPPING 48, REMOVEMAPPING 49, SYNCFS 50, TMPFILE 51, STATX 52, COPY_FILE_RANGE_64 53,
}

/// Least length of a buffer for a read of the device, before INIT has said more.
pub(super) const MIN_READ_BUFFER: usize = 8192;

/// Numbers below this are counted one by one.
pub(super) const OPCODES: usize = 54;
