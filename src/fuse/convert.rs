//! Numbers between the protocol's types and the verbs'.

use crate::error::FsError;
use crate::ops::types::{Attr, RenameMode, SetTime, Timestamp};
use fuser::{FileAttr, INodeNo, RenameFlags, TimeOrNow};
use gfs2_format::BlockAddr;
use gfs2_format::ondisk::FileType;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The kernel's node id of the root.
const ROOT: u64 = 1;

/// Node ids are dinode addresses, but for the root, which the protocol numbers itself. (Block 1 is never a dinode.)
#[derive(Clone, Copy, Debug)]
pub(super) struct Nodes {
    pub(super) root: BlockAddr,
}

impl Nodes {
    pub(super) fn addr(self, ino: INodeNo) -> BlockAddr {
        if ino.0 == ROOT {
            self.root
        } else {
            BlockAddr::new(ino.0)
        }
    }

    pub(super) fn node(self, addr: BlockAddr) -> INodeNo {
        INodeNo(if addr == self.root { ROOT } else { addr.get() })
    }

    /// Attributes of an entry: the number is the node id.
    pub(super) fn entry_attr(self, attr: &Attr) -> FileAttr {
        FileAttr {
            ino: self.node(attr.num.addr),
            ..file_attr(attr)
        }
    }
}

/// Attributes as `stat` shows them: the number is the address.
pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.num.addr.get()),
        size: attr.size,
        blocks: attr.sectors,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: encode_dev(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

pub(super) fn file_type(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Char => fuser::FileType::CharDevice,
        FileType::Dir => fuser::FileType::Directory,
        FileType::Block => fuser::FileType::BlockDevice,
        FileType::Regular => fuser::FileType::RegularFile,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Socket => fuser::FileType::Socket,
    }
}

/// The protocol's 32-bit device number: 12 bits of major between 20 bits of minor.
pub(super) fn encode_dev((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

pub(super) fn decode_dev(dev: u32) -> (u32, u32) {
    ((dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}

pub(super) fn system_time(time: Timestamp) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nsec));
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let base = if time.sec >= 0 {
        UNIX_EPOCH.checked_add(whole)
    } else {
        UNIX_EPOCH.checked_sub(whole)
    };
    base.and_then(|t| t.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// A time of a SETATTR. fuser 0.18 turns (-2 s, 0.8 s) into 2.8 s *before* the epoch instead of 1.2 s: undone here.
pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp {
            sec: after.as_secs().cast_signed(),
            nsec: after.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            Timestamp {
                sec: before.as_secs().cast_signed().wrapping_neg(),
                nsec: before.subsec_nanos(),
            }
        }
    }
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

pub(super) fn rename_mode(flags: RenameFlags) -> Option<RenameMode> {
    if flags.is_empty() {
        Some(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Some(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Some(RenameMode::Exchange)
    } else {
        None
    }
}

/// The number for the kernel; what says that the disk is wrong goes to the log with the verb's name.
pub(super) fn errno(verb: &'static str, error: &FsError) -> fuser::Errno {
    let number = error.errno();
    if number == crate::error::Errno::EIO {
        tracing::error!(verb, "{error}");
    } else {
        tracing::trace!(verb, errno = number.name(), "refused");
    }
    fuser::Errno::from_i32(number.0)
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
    fn times_before_the_epoch_survive() {
        let time = Timestamp {
            sec: -2,
            nsec: 800_000_000,
        };
        assert_eq!(system_time(time), UNIX_EPOCH - Duration::from_millis(1200));
        // As fuser hands in (-2, 0.8 s).
        assert_eq!(timestamp(UNIX_EPOCH - Duration::new(2, 800_000_000)), time);
        let time = Timestamp {
            sec: 5_000_000_000,
            nsec: 1,
        };
        assert_eq!(timestamp(system_time(time)), time);
    }
}
