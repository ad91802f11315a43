//! The ioctls that are ours: an inode's flags, in the two forms the kernel has for them.
//!
//! The kernel has looked at who asks (owner or CAP_FOWNER; CAP_LINUX_IMMUTABLE for what that takes), and has read the
//! old flags by `FS_IOC_FSGETXATTR` before it sets new ones. Whoever asks knows the size of the answer; ours is of that
//! size or an error.
//!
//! Invariant: the kernel keeps no attributes of before a change when whoever made it is told.

use super::abi::{Fsxattr, IoctlIn, IoctlOut};
use super::convert::errno;
use super::notify::Notifications;
use super::reply::Reply;
use crate::error::{Errno, FsResult};
use crate::ops::types::Caller;
use crate::ops::{FileFlags, Fs};
use gfs2_format::BlockAddr;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `FS_IOC_GETFLAGS`, `FS_IOC_SETFLAGS`: numbers that say `long`, of an `int`.
const GETFLAGS: u32 = 0x8008_6601;
const SETFLAGS: u32 = 0x4008_6602;
/// `FS_IOC_FSGETXATTR`, `FS_IOC_FSSETXATTR`: a structure.
const FSGETXATTR: u32 = 0x801c_581f;
const FSSETXATTR: u32 = 0x401c_5820;

/// Flags that have a bit in [`Fsxattr`], and that bit.
const COMMON: [(FileFlags, u32); 4] = [
    (FileFlags::IMMUTABLE, 0x8),
    (FileFlags::APPEND, 0x10),
    (FileFlags::SYNC, 0x20),
    (FileFlags::NOATIME, 0x40),
];
/// Bits that are flags elsewhere and nothing here: no dump, DAX, inheritance of projects.
const FLAGS_OF_OTHERS: u32 = 0x80 | 0x200 | 0x8000;

/// Calls the verb and answers.
pub(super) fn serve(
    (fs, notifications): (&Fs, &Notifications),
    caller: &Caller,
    node: BlockAddr,
    args: IoctlIn,
    data: &[u8],
    reply: Reply<'_>,
) {
    let done = match args.cmd {
        GETFLAGS => fs.flags(node).and_then(|flags| answer(args, &flags.bits())),
        FSGETXATTR => fs
            .flags(node)
            .and_then(|flags| answer(args, &structure_of(flags))),
        SETFLAGS => given(data).and_then(|bits| {
            let flags = FileFlags::from_bits_retain(bits);
            set(fs, notifications, caller, node, flags, FileFlags::all())
        }),
        FSSETXATTR => given(data)
            .and_then(|wanted| flags_in(&wanted))
            .and_then(|(flags, of)| set(fs, notifications, caller, node, flags, of)),
        _ => Err(Errno::ENOTTY.into()),
    };
    match done {
        Ok(bytes) => reply.bytes(IoctlOut::default().as_bytes(), &bytes),
        Err(error) => reply.error(errno("ioctl", &error)),
    }
}

fn answer(args: IoctlIn, value: &(impl IntoBytes + Immutable)) -> FsResult<Vec<u8>> {
    let bytes = value.as_bytes();
    if args.out_size as usize != bytes.len() {
        return Err(Errno::EINVAL.into());
    }
    Ok(bytes.to_vec())
}

fn given<T: FromBytes + KnownLayout + Immutable>(data: &[u8]) -> FsResult<T> {
    T::read_from_bytes(data).map_err(|_| Errno::EINVAL.into())
}

fn structure_of(flags: FileFlags) -> Fsxattr {
    let set = COMMON.iter().filter(|(flag, _)| flags.contains(*flag));
    Fsxattr {
        xflags: set.map(|(_, bit)| bit).sum(),
        ..Fsxattr::default()
    }
}

/// What a structure sets, and of which flags it speaks.
fn flags_in(wanted: &Fsxattr) -> FsResult<(FileFlags, FileFlags)> {
    let all = COMMON.iter().map(|(_, bit)| bit).sum::<u32>();
    let sizes = wanted.extsize | wanted.projid | wanted.cowextsize;
    if sizes != 0 || wanted.xflags & !(all | FLAGS_OF_OTHERS) != 0 {
        return Err(Errno::EOPNOTSUPP.into());
    }
    if wanted.xflags & FLAGS_OF_OTHERS != 0 {
        return Err(Errno::EINVAL.into());
    }
    let set = COMMON.iter().filter(|(_, bit)| wanted.xflags & bit != 0);
    let of = COMMON.iter().map(|(flag, _)| *flag).collect();
    Ok((set.map(|(flag, _)| *flag).collect(), of))
}

fn set(
    fs: &Fs,
    notifications: &Notifications,
    caller: &Caller,
    node: BlockAddr,
    flags: FileFlags,
    of: FileFlags,
) -> FsResult<Vec<u8>> {
    fs.set_flags(caller, node, flags, of)?;
    // The kernel does not expect a new ctime of this. Attributes alone: nothing is waited for.
    notifications.inval_inode(node, -1, 0)?;
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structure_says_what_the_flags_say() {
        let flags = FileFlags::IMMUTABLE | FileFlags::NOATIME | FileFlags::JOURNAL_DATA;
        let shown = structure_of(flags);
        assert_eq!(shown.xflags, 0x48);
        let (set, of) = flags_in(&shown).unwrap();
        assert_eq!(set, FileFlags::IMMUTABLE | FileFlags::NOATIME);
        assert_eq!(of, set | FileFlags::SYNC | FileFlags::APPEND);
        for (wrong, error) in [
            (Fsxattr { xflags: 1, ..shown }, Errno::EOPNOTSUPP),
            (Fsxattr { projid: 7, ..shown }, Errno::EOPNOTSUPP),
            (Fsxattr { extsize: 7, ..shown }, Errno::EOPNOTSUPP),
            (
                Fsxattr {
                    xflags: 0x80,
                    ..shown
                },
                Errno::EINVAL,
            ),
        ] {
            assert_eq!(flags_in(&wrong).unwrap_err().errno(), error, "{wrong:?}");
        }
    }

    #[test]
    fn sizes_other_than_the_kernels_are_refused() {
        let args = |out_size| IoctlIn {
            out_size,
            ..IoctlIn::default()
        };
        assert_eq!(answer(args(4), &5u32).unwrap(), 5u32.to_ne_bytes());
        assert_eq!(answer(args(8), &5u32).unwrap_err().errno(), Errno::EINVAL);
        assert!(given::<u32>(&[0; 3]).is_err() && given::<Fsxattr>(&[0; 29]).is_err());
    }
}
