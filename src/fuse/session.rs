//! Mounting by mount(2), agreeing with the kernel on what is served, and serving it.

use super::abi::{self, InitFlags};
use super::awake::Keepers;
use super::convert::Nodes;
use super::crew::Crew;
use super::front::{Front, MAX_IO};
use super::notify::{Live, Notifications};
use super::reply::{Channel, Reply};
use super::request::{Op, decode};
use super::rings::{Rings, Transport};
use crate::error::Errno;
use crate::ops::Fs;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, statx};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Requests the kernel may have under way in the background (read-ahead, write-back, asynchronous direct I/O), and of
/// them those after which it holds back read-ahead.
const MAX_BACKGROUND: u16 = 64;
const CONGESTION: u16 = 48;
/// Unit of the kernel's page counts.
const PAGE: u32 = 4096;
/// Read-ahead asked for, in KiB: one full READ request.
const READ_AHEAD_KIB: u32 = 1024;

/// A filesystem that nobody sees yet. Dropping it ends it.
#[derive(Debug)]
pub struct MountedFuse {
    fd: OwnedFd,
    /// The mount, not attached to anything: with its last descriptor it goes.
    tree: OwnedFd,
    target: PathBuf,
    transport: Transport,
}

/// Makes a filesystem of type `fstype` (`fuse.NAME`) for `target`, `source` as it is to show in `/proc/mounts`.
///
/// # Errors
/// The system's: `/dev/fuse` missing, no permission.
pub fn mount(
    source: &Path,
    target: &Path,
    fstype: &str,
    flags: MountFlags,
    transport: Transport,
) -> io::Result<MountedFuse> {
    let target = target.canonicalize()?;
    // What is enabled when it is mounted is offered in INIT.
    let transport = transport.prepare();
    let fd =
        rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|error| {
            io::Error::new(
                io::Error::from(error).kind(),
                format!("/dev/fuse: {error}; load the fuse module (modprobe fuse)"),
            )
        })?;
    let (kind, subtype) = fstype.split_once('.').unwrap_or((fstype, ""));
    let rootmode = std::fs::metadata(&target)?.st_mode() & 0o170_000;
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: String| fsconfig_set_string(&context, key, value);
    fsconfig_set_string(&context, "source", source)?;
    set("fd", fd.as_raw_fd().to_string())?;
    set("rootmode", format!("{rootmode:o}"))?;
    set("user_id", rustix::process::geteuid().as_raw().to_string())?;
    set("group_id", rustix::process::getegid().as_raw().to_string())?;
    if !subtype.is_empty() {
        set("subtype", subtype.to_owned())?;
    }
    // default_permissions: the kernel checks modes (and ACLs), it alone knows the caller's groups.
    let of_filesystem = [
        (MountFlags::RDONLY, "ro"),
        (MountFlags::SYNCHRONOUS, "sync"),
        (MountFlags::DIRSYNC, "dirsync"),
    ];
    let given = of_filesystem.iter().filter(|(flag, _)| flags.contains(*flag));
    for word in ["default_permissions", "allow_other"]
        .iter()
        .chain(given.map(|(_, word)| word))
    {
        fsconfig_set_flag(&context, *word)?;
    }
    fsconfig_create(&context)?;
    let tree = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes(flags))?;
    Ok(MountedFuse {
        fd,
        tree,
        target,
        transport,
    })
}

/// What of the flags of mount(2) is the mount's and not the filesystem's.
fn attributes(flags: MountFlags) -> MountAttrFlags {
    let table = [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (MountFlags::STRICTATIME, MountAttrFlags::MOUNT_ATTR_STRICTATIME),
    ];
    let of = |(flag, attribute): (MountFlags, MountAttrFlags)| flags.contains(flag).then_some(attribute);
    table.into_iter().filter_map(of).collect()
}

/// Lets others see it.
fn attach(tree: OwnedFd, target: &Path) -> io::Result<()> {
    move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(|error| {
        io::Error::new(
            io::Error::from(error).kind(),
            format!("{}: {error}", target.display()),
        )
    })
}

/// How a mount is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// ACLs: the kernel checks them and leaves the umask to us.
    pub acl: bool,
    /// How long the kernel may believe names and attributes; infinite while we alone can change them.
    pub ttl: Duration,
    /// The kernel may keep the names of a directory, and the targets of symlinks: what it answers itself moves no access
    /// time.
    pub cache_dirs: bool,
    /// The kernel may keep writes, sizes and times, and write them back later: only while we alone have the volume.
    pub writeback_cache: bool,
    /// How long after a request the processors are kept from halting while requests flow; zero: not at all.
    pub busy_poll: Duration,
}

/// Attaches the mount to its target and answers requests until it is unmounted. `ready` is called once the mount is live.
///
/// Nobody may ask for anything before all rings are known to the kernel: what finds no entry then waits until another one
/// of the same queue has been answered, though new entries have come meanwhile, and that one may wait for a lock.
///
/// # Errors
/// The device's; the filesystem is still to be shut down by the caller.
pub fn serve(
    fs: &Arc<Fs>,
    mounted: MountedFuse,
    options: ServeOptions,
    notifications: &Arc<Notifications>,
    ready: impl FnOnce(),
) -> io::Result<()> {
    let nodes = Nodes { root: fs.root().addr };
    let MountedFuse {
        fd,
        tree,
        target,
        transport,
    } = mounted;
    let channel = Arc::new(Channel::new(fd));
    let by_ring = transport.wants_ring(&channel);
    let agreed = agree(&channel, options, by_ring)?;
    let options = ServeOptions {
        writeback_cache: agreed.flags.contains(InitFlags::WRITEBACK_CACHE),
        ..options
    };
    notifications.start(Live {
        channel: Arc::clone(&channel),
        nodes,
        minor: agreed.minor,
    });
    // Whose names may be kept needs no handle: told once that there are none, the kernel neither opens nor closes
    // directories any more.
    let dir_handles = !options.cache_dirs || !agreed.flags.contains(InitFlags::NO_OPENDIR_SUPPORT);
    let front = Front::new(
        Arc::clone(fs),
        nodes,
        options,
        dir_handles,
        Arc::clone(notifications),
    );
    let keepers = Keepers::start(options.busy_poll);
    let awake = keepers.as_ref().map(|keepers| Arc::clone(keepers.awake()));
    let crew = Crew::new(channel, front, Arc::clone(notifications), awake);
    let rings = agreed
        .flags
        .contains(InitFlags::OVER_IO_URING)
        .then(|| Rings::start(&crew));
    set_read_ahead(&tree);
    let result = attach(tree, &target).and_then(|()| {
        ready();
        crew.run()
    });
    if let Some(rings) = rings {
        if result.is_err() {
            // Its threads wait for what the kernel sends as long as there is a mount.
            let _ = rustix::mount::unmount(&target, UnmountFlags::FORCE | UnmountFlags::DETACH);
        }
        rings.join();
    }
    result
}

/// What was agreed on.
#[derive(Clone, Copy, Debug)]
struct Agreed {
    minor: u32,
    flags: InitFlags,
}

/// Answers INIT, the first request of a mount.
fn agree(channel: &Channel, options: ServeOptions, by_ring: bool) -> io::Result<Agreed> {
    let mut buffer = vec![0; abi::MIN_READ_BUFFER];
    loop {
        let Some(len) = channel.receive(&mut buffer)? else {
            return Err(io::Error::other("unmounted before it was live"));
        };
        let request = decode(buffer.get(..len).unwrap_or_default())
            .map_err(|(_, malformed)| io::Error::other(malformed.to_string()))?;
        let reply = Reply::new(channel, request.header.unique);
        let Op::Init(init) = request.op else {
            reply.error(Errno::EIO);
            return Err(io::Error::other(format!(
                "the kernel's first request is operation {}, not INIT",
                request.header.opcode
            )));
        };
        if init.major > abi::MAJOR {
            // A newer kernel begins again with our version.
            reply.fixed(&abi::InitOut {
                major: abi::MAJOR,
                minor: abi::MINOR,
                ..Default::default()
            });
            continue;
        }
        if init.major < abi::MAJOR || init.minor < abi::MINOR_MIN {
            reply.error(Errno(libc::EPROTO));
            return Err(io::Error::other(format!(
                "the kernel speaks version {}.{} of the FUSE protocol, {}.{} (Linux 5.17) is the oldest that is served",
                init.major,
                init.minor,
                abi::MAJOR,
                abi::MINOR_MIN
            )));
        }
        let (out, agreed) = answer_init(&init, options, by_ring);
        tracing::debug!(minor = agreed.minor, flags = ?agreed.flags, "FUSE");
        reply.fixed(&out);
        return Ok(agreed);
    }
}

/// What we take of what the kernel offers.
fn answer_init(init: &abi::InitIn, options: ServeOptions, by_ring: bool) -> (abi::InitOut, Agreed) {
    let offered = InitFlags::from_bits_retain(u64::from(init.flags) | u64::from(init.flags2) << 32);
    // Not ATOMIC_O_TRUNC: open(O_TRUNC) would cut a program that is being run before the kernel finds it busy.
    let mut wanted = InitFlags::ASYNC_READ
        | InitFlags::EXPORT_SUPPORT
        | InitFlags::BIG_WRITES
        | InitFlags::DO_READDIRPLUS
        | InitFlags::READDIRPLUS_AUTO
        | InitFlags::ASYNC_DIO
        | InitFlags::PARALLEL_DIROPS
        | InitFlags::MAX_PAGES
        | InitFlags::NO_OPENDIR_SUPPORT
        | InitFlags::EXPLICIT_INVAL_DATA
        | InitFlags::HANDLE_KILLPRIV_V2
        | InitFlags::SETXATTR_EXT
        | InitFlags::INIT_EXT
        | InitFlags::HAS_EXPIRE_ONLY;
    wanted.set(InitFlags::POSIX_ACL | InitFlags::DONT_MASK, options.acl);
    wanted.set(InitFlags::CACHE_SYMLINKS, options.cache_dirs);
    wanted.set(InitFlags::WRITEBACK_CACHE, options.writeback_cache);
    wanted.set(InitFlags::OVER_IO_URING, by_ring);
    let flags = offered & wanted;
    let agreed = Agreed {
        minor: init.minor.min(abi::MINOR),
        flags,
    };
    let out = abi::InitOut {
        major: abi::MAJOR,
        minor: agreed.minor,
        max_readahead: init.max_readahead,
        // The halves of one number.
        flags: flags.bits() as u32,
        flags2: (flags.bits() >> 32) as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: CONGESTION,
        max_write: MAX_IO,
        time_gran: 1,
        max_pages: (MAX_IO / PAGE) as u16,
        ..Default::default()
    };
    (out, agreed)
}

/// Asks for larger read-ahead than the kernel's default of 128 KiB. A matter of speed only. The device's number is what
/// the kernel knows by itself: nothing is asked of the mount, which is not served yet.
fn set_read_ahead(tree: &OwnedFd) {
    let known = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let set = statx(tree, "", known, StatxFlags::empty())
        .map_err(io::Error::from)
        .and_then(|stat| {
            let path = format!(
                "/sys/class/bdi/{}:{}/read_ahead_kb",
                stat.stx_dev_major, stat.stx_dev_minor
            );
            std::fs::write(path, READ_AHEAD_KIB.to_string())
        });
    if let Err(error) = set {
        tracing::debug!("read-ahead stays at the kernel's default: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: ServeOptions = ServeOptions {
        acl: false,
        ttl: Duration::ZERO,
        cache_dirs: true,
        writeback_cache: false,
        busy_poll: Duration::ZERO,
    };

    fn init(minor: u32) -> abi::InitIn {
        abi::InitIn {
            major: 7,
            minor,
            max_readahead: 131_072,
            flags: u32::MAX,
            flags2: u32::MAX,
            unused: [0; 11],
        }
    }

    #[test]
    fn no_more_is_taken_than_is_served_and_offered() {
        let (out, agreed) = answer_init(&init(37), OPTIONS, false);
        assert_eq!((out.major, out.minor, agreed.minor), (7, 37, 37));
        assert_eq!(
            (out.max_write, out.max_pages, out.max_readahead),
            (1 << 20, 256, 131_072)
        );
        // POSIX locks, flock, writeback, ACLs, and what we have no name for.
        let refused = (1 << 1) | (1 << 10) | (1 << 16) | (1 << 20) | (1 << 6);
        assert_eq!(out.flags & refused, 0);
        assert_eq!(out.flags2, 1 << 3);
        assert!(agreed.flags.contains(InitFlags::CACHE_SYMLINKS));
        let strict = ServeOptions {
            cache_dirs: false,
            ..OPTIONS
        };
        let (_, agreed) = answer_init(&init(37), strict, false);
        assert!(!agreed.flags.contains(InitFlags::CACHE_SYMLINKS));
        let all = ServeOptions {
            acl: true,
            writeback_cache: true,
            ..OPTIONS
        };
        let (out, _) = answer_init(&init(99), all, true);
        assert_eq!(out.minor, abi::MINOR);
        assert_eq!(out.flags2, (1 << 3) | (1 << 9));
        assert_eq!(
            out.flags & ((1 << 16) | (1 << 20) | (1 << 6)),
            (1 << 16) | (1 << 20) | (1 << 6)
        );
        let nothing = abi::InitIn {
            flags: 0,
            flags2: 0,
            ..init(45)
        };
        let (out, agreed) = answer_init(&nothing, all, true);
        assert_eq!((out.flags, out.flags2, agreed.flags), (0, 0, InitFlags::empty()));
    }
}
