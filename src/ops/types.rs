//! What goes in and out of the POSIX verbs: plain types that know no transport.

use gfs2_format::InodeNum;
use gfs2_format::ondisk::FileType;

pub use gfs2_format::time::Timestamp;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Filesystem user id.
    pub uid: u32,
    /// Filesystem group id.
    pub gid: u32,
    /// Process id, 0 when unknown.
    pub pid: u32,
}

/// The attributes of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Formal number and address; `st_ino` is the address, the generation is the formal number.
    pub num: InodeNum,
    /// File type.
    pub kind: FileType,
    /// Permission bits with set-id and sticky, without the type.
    pub perm: u16,
    /// Links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, for character and block devices.
    pub rdev: (u32, u32),
    /// Bytes.
    pub size: u64,
    /// Unit: 512-byte sectors.
    pub sectors: u64,
    /// Preferred I/O size in bytes: the block size.
    pub blksize: u32,
    /// Access time.
    pub atime: Timestamp,
    /// Modification time.
    pub mtime: Timestamp,
    /// Change time.
    pub ctime: Timestamp,
    /// `di_flags`.
    pub flags: u32,
}

/// What a successful lookup, create, mknod, mkdir, symlink or link gives out: one count of knowledge of the inode
/// (to be given back by `forget`) and its attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The attributes; `attr.num` names the inode.
    pub attr: Attr,
}

/// A time to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The present.
    Now,
    /// This one.
    At(Timestamp),
}

/// Changes to attributes; `None` leaves one alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permission bits (07777).
    pub perm: Option<u16>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// Truncate or extend.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Change time (a kernel that caches writes hands in its own).
    pub ctime: Option<Timestamp>,
    /// Clear set-user-id and set-group-id as a write by this caller does.
    pub kill_suidgid: bool,
}

/// One name of a directory as readdir gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The inode.
    pub num: InodeNum,
    /// Its type, from the dirent.
    pub kind: FileType,
    /// Name bytes.
    pub name: Vec<u8>,
    /// Where the next readdir goes on.
    pub cookie: u64,
}

/// Figures of the whole filesystem, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct StatFs {
    /// Block size in bytes.
    pub bsize: u32,
    /// All data blocks.
    pub blocks: u64,
    /// Free ones.
    pub free: u64,
    /// Inodes there can be: dinodes and free blocks.
    pub files: u64,
    /// Inodes there still can be.
    pub files_free: u64,
}

/// How an existing entry is treated by rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RenameMode {
    /// Replaced.
    #[default]
    Replace,
    /// `RENAME_NOREPLACE`: refused.
    NoReplace,
    /// `RENAME_EXCHANGE`: swapped.
    Exchange,
}

/// How an existing xattr is treated by setxattr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum XattrMode {
    /// Created or replaced.
    #[default]
    Any,
    /// `XATTR_CREATE`: must not exist.
    Create,
    /// `XATTR_REPLACE`: must exist.
    Replace,
    /// As `Any`, of an ACL by somebody outside the file's group: an access ACL clears the set-group-id bit.
    AclKillsSgid,
}

/// What `lseek` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekWhat {
    /// `SEEK_DATA`.
    Data,
    /// `SEEK_HOLE`.
    Hole,
}
