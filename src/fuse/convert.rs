//! Numbers between the protocol's types and the verbs'.

use super::abi;
use crate::error::{Errno, FsError};
use crate::ops::OpenFlags as Open;
use crate::ops::types::{Attr, RenameMode, Timestamp};
use gfs2_format::BlockAddr;
use gfs2_format::ondisk::FileType;
use std::time::Duration;

/// Node ids are dinode addresses, but for the root, which the protocol numbers itself. (Block 1 is never a dinode.)
#[derive(Clone, Copy, Debug)]
pub(super) struct Nodes {
    pub(super) root: BlockAddr,
}

impl Nodes {
    pub(super) fn addr(self, node: u64) -> BlockAddr {
        if node == abi::ROOT_ID {
            self.root
        } else {
            BlockAddr::new(node)
        }
    }

    pub(super) fn node(self, addr: BlockAddr) -> u64 {
        if addr == self.root {
            abi::ROOT_ID
        } else {
            addr.get()
        }
    }

    /// An entry: what the kernel knows the inode by, and its attributes.
    pub(super) fn entry(self, attr: &Attr, ttl: Duration) -> abi::EntryOut {
        abi::EntryOut {
            nodeid: self.node(attr.num.addr),
            generation: attr.num.formal.get(),
            attr: raw_attr(attr),
            ..nothing(ttl)
        }
    }
}

/// Node id 0: the kernel remembers for as long as the time says that there is no such name.
pub(super) fn nothing(ttl: Duration) -> abi::EntryOut {
    abi::EntryOut {
        entry_valid: ttl.as_secs(),
        attr_valid: ttl.as_secs(),
        entry_valid_nsec: ttl.subsec_nanos(),
        attr_valid_nsec: ttl.subsec_nanos(),
        ..Default::default()
    }
}

/// Attributes as an answer.
pub(super) fn attr_out(attr: &Attr, ttl: Duration) -> abi::AttrOut {
    abi::AttrOut {
        attr_valid: ttl.as_secs(),
        attr_valid_nsec: ttl.subsec_nanos(),
        dummy: 0,
        attr: raw_attr(attr),
    }
}

/// Attributes as `stat` shows them: the number is the address.
fn raw_attr(attr: &Attr) -> abi::Attr {
    abi::Attr {
        ino: attr.num.addr.get(),
        size: attr.size,
        blocks: attr.sectors,
        atime: attr.atime.sec.cast_unsigned(),
        mtime: attr.mtime.sec.cast_unsigned(),
        ctime: attr.ctime.sec.cast_unsigned(),
        atimensec: attr.atime.nsec,
        mtimensec: attr.mtime.nsec,
        ctimensec: attr.ctime.nsec,
        mode: mode_type(attr.kind) | u32::from(attr.perm),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: encode_dev(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// The type's bits of a mode.
pub(super) fn mode_type(kind: FileType) -> u32 {
    match kind {
        FileType::Fifo => libc::S_IFIFO,
        FileType::Char => libc::S_IFCHR,
        FileType::Dir => libc::S_IFDIR,
        FileType::Block => libc::S_IFBLK,
        FileType::Regular => libc::S_IFREG,
        FileType::Symlink => libc::S_IFLNK,
        FileType::Socket => libc::S_IFSOCK,
    }
}

/// The protocol's 32-bit device number: 12 bits of major between 20 bits of minor.
pub(super) fn encode_dev((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

pub(super) fn decode_dev(dev: u32) -> (u32, u32) {
    ((dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}

/// A time of a SETATTR. `None`: its nanoseconds are none.
pub(super) fn timestamp(sec: u64, nsec: u32) -> Option<Timestamp> {
    (nsec < 1_000_000_000).then(|| Timestamp {
        sec: sec.cast_signed(),
        nsec,
    })
}

pub(super) fn rename_mode(flags: u32) -> Option<RenameMode> {
    match flags {
        0 => Some(RenameMode::Replace),
        libc::RENAME_NOREPLACE => Some(RenameMode::NoReplace),
        libc::RENAME_EXCHANGE => Some(RenameMode::Exchange),
        _ => None,
    }
}

/// Flags of open(2), without O_TRUNC, O_CREAT and O_EXCL.
pub(super) fn open_flags(flags: u32) -> Open {
    let has = |flag: i32| flags & flag.cast_unsigned() == flag.cast_unsigned();
    let mut open = match flags.cast_signed() & libc::O_ACCMODE {
        libc::O_WRONLY => Open::WRITE,
        libc::O_RDWR => Open::READ | Open::WRITE,
        _ => Open::READ,
    };
    open.set(Open::APPEND, has(libc::O_APPEND));
    // O_SYNC has O_DSYNC's bit in it.
    open.set(Open::SYNC, has(libc::O_SYNC));
    open.set(Open::DSYNC, has(libc::O_DSYNC));
    open.set(Open::DIRECT, has(libc::O_DIRECT));
    open
}

/// The number for the kernel; what says that the disk is wrong goes to the log with the verb's name.
pub(super) fn errno(verb: &'static str, error: &FsError) -> Errno {
    let number = error.errno();
    if number == Errno::EIO {
        tracing::error!(verb, "{error}");
    } else {
        tracing::trace!(verb, errno = number.name(), "refused");
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_go_there_and_back() {
        for dev in [(0, 0), (8, 1), (4095, 1_048_575), (1, 3), (254, 300)] {
            assert_eq!(decode_dev(encode_dev(dev)), dev);
        }
        assert_eq!(encode_dev((8, 1)), 0x801);
    }

    #[test]
    fn times_go_through_as_they_are() {
        for sec in [i64::MIN, -2, -1, 0, 5_000_000_000, i64::MAX] {
            let time = timestamp(sec.cast_unsigned(), 999_999_999).unwrap();
            assert_eq!((time.sec, time.nsec), (sec, 999_999_999));
        }
        assert_eq!(timestamp(0, 1_000_000_000), None);
    }

    #[test]
    fn flags_of_open_are_understood() {
        let flags = |flags: i32| open_flags(flags.cast_unsigned());
        assert_eq!(
            flags(libc::O_RDWR | libc::O_APPEND),
            Open::READ | Open::WRITE | Open::APPEND
        );
        assert_eq!(flags(libc::O_WRONLY | libc::O_DSYNC), Open::WRITE | Open::DSYNC);
        assert_eq!(flags(libc::O_SYNC), Open::READ | Open::SYNC | Open::DSYNC);
    }
}
