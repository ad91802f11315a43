//! Mounting by mount(2), and the loop that hands requests to the front end.

use super::convert::Nodes;
use super::front::Front;
use super::notify::Notifications;
use super::pool::Pool;
use crate::ops::Fs;
use fuser::{Config, Session, SessionACL};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Read-ahead asked for, in KiB: one full READ request.
const READ_AHEAD_KIB: u32 = 1024;

/// A mount whose requests nobody answers yet. Dropping it unmounts (lazily).
#[derive(Debug)]
pub struct MountedFuse {
    fd: Option<OwnedFd>,
    target: PathBuf,
    live: bool,
}

impl MountedFuse {
    /// Keeps the mount in place when this is dropped.
    fn keep(mut self) -> Option<OwnedFd> {
        self.live = false;
        self.fd.take()
    }
}

impl Drop for MountedFuse {
    fn drop(&mut self) {
        if self.live {
            let _ = rustix::mount::unmount(&self.target, UnmountFlags::DETACH);
        }
    }
}

/// Mounts `source` (as it is to show in `/proc/mounts`) of type `fstype` on `target`.
///
/// # Errors
/// The system's: `/dev/fuse` missing, no permission, a busy target.
pub fn mount(source: &Path, target: &Path, fstype: &str, flags: MountFlags) -> io::Result<MountedFuse> {
    let target = target.canonicalize()?;
    let fd =
        rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|error| {
            io::Error::new(
                io::Error::from(error).kind(),
                format!("/dev/fuse: {error}; load the fuse module (modprobe fuse)"),
            )
        })?;
    let rootmode = std::fs::metadata(&target)?.st_mode() & 0o170_000;
    let (uid, gid) = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    // default_permissions: the kernel checks modes (and ACLs), it alone knows the caller's groups.
    let data = format!(
        "fd={},rootmode={rootmode:o},user_id={uid},group_id={gid},default_permissions,allow_other",
        fd.as_raw_fd()
    );
    let data = CString::new(data)?;
    let source = CString::new(source.as_os_str().as_bytes())?;
    rustix::mount::mount(source.as_c_str(), &target, fstype, flags, Some(data.as_c_str()))?;
    Ok(MountedFuse {
        fd: Some(fd),
        target,
        live: true,
    })
}

/// How a mount is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// ACLs: the kernel checks them and leaves the umask to us.
    pub acl: bool,
    /// How long the kernel may believe names and attributes; infinite while we alone can change them.
    pub ttl: Duration,
}

/// Answers requests until the filesystem is unmounted. `ready` is called once the mount is live.
///
/// # Errors
/// The session's; the filesystem is still to be shut down by the caller.
pub fn serve(
    fs: &Arc<Fs>,
    mounted: MountedFuse,
    options: ServeOptions,
    notifications: &Notifications,
    ready: impl FnOnce(),
) -> io::Result<()> {
    let nodes = Nodes { root: fs.root().addr };
    let pool = Pool::default();
    let target = mounted.target.clone();
    let front = Front::new(Arc::clone(fs), nodes, options, pool.clone());
    let fd = match &mounted.fd {
        Some(fd) => fd.try_clone()?,
        None => return Err(io::ErrorKind::NotConnected.into()),
    };
    let mut config = Config::default();
    config.acl = SessionACL::All;
    let session = Session::from_fd(front, fd, SessionACL::All, config)?;
    notifications.start(session.notifier(), nodes);
    // The session has its own descriptor; the mount ends when the kernel says so.
    drop(mounted.keep());
    set_read_ahead(target);
    ready();
    let result = session.run();
    pool.stop();
    result
}

/// Asks for larger read-ahead than the kernel's default of 128 KiB. A matter of speed only. On a thread of its own:
/// finding the mount's device number asks the mount itself.
fn set_read_ahead(target: PathBuf) {
    let set = move || {
        let Ok(meta) = std::fs::metadata(&target) else {
            return;
        };
        let (major, minor) = (rustix::fs::major(meta.st_dev()), rustix::fs::minor(meta.st_dev()));
        let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        if let Err(error) = std::fs::write(&path, READ_AHEAD_KIB.to_string()) {
            tracing::debug!(path, "read-ahead stays at the kernel's default: {error}");
        }
    };
    if let Err(error) = std::thread::Builder::new()
        .name("gfs2-readahead".into())
        .spawn(set)
    {
        tracing::debug!("read-ahead stays at the kernel's default: {error}");
    }
}
