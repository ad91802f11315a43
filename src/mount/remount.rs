//! `-o remount`: the generic flags of a live mount; what is GFS2's own stays as it was mounted.

use super::cli::{MountError, MountRequest};
use super::guard::our_mounts;
use super::options::{Atime, MountOptions};
use rustix::mount::MountFlags;

/// The flags of mount(2) that the options ask for.
#[must_use]
pub fn mount_flags(options: &MountOptions) -> MountFlags {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, options.read_only);
    flags.set(MountFlags::NOSUID, options.nosuid);
    flags.set(MountFlags::NODEV, options.nodev);
    flags.set(MountFlags::NOEXEC, options.noexec);
    flags.set(MountFlags::SYNCHRONOUS, options.sync);
    flags.set(MountFlags::DIRSYNC, options.dirsync);
    flags.set(MountFlags::NODIRATIME, options.nodiratime);
    match options.atime {
        Atime::Never => flags |= MountFlags::NOATIME,
        Atime::Relative => flags |= MountFlags::RELATIME,
        Atime::Strict => flags |= MountFlags::STRICTATIME,
    }
    flags
}

/// Changes the flags of the mount on the request's target.
///
/// # Errors
/// One line and the exit code.
pub fn run(request: &MountRequest) -> Result<(), MountError> {
    let target = request.target.display();
    let Some(mount) = our_mounts()
        .into_iter()
        .rev()
        .find(|m| m.target == request.target)
    else {
        return Err(MountError::fail(format!(
            "{target} is not mounted as {}; mount it first",
            super::guard::FS_TYPE
        )));
    };
    if let Some(word) = request.options.specific.first() {
        return Err(MountError::fail(format!(
            "option '{word}' cannot be changed while mounted; unmount {target} and mount it again (to change only generic options name the device too: mount -o remount,... {} {target})",
            mount.source.display()
        )));
    }
    if mount.read_only && !request.options.read_only {
        return Err(MountError::fail(format!(
            "{target} is mounted read-only and cannot be made writable in place; unmount it and mount it read-write"
        )));
    }
    rustix::mount::mount_remount(&request.target, mount_flags(&request.options), "")
        .map_err(|error| MountError::fail(format!("{target}: remount: {error}")))
}
