//! `-o remount`: the generic flags of a live mount, read-only and read-write among them; what is GFS2's own stays as it
//! was mounted.
//!
//! The kernel changes flags, the daemon takes its journal into use or leaves it clean. Order: nobody may write before the
//! journal is live, nor after it has been left.

use super::cli::{MountError, MountRequest};
use super::control::{Command, ask};
use super::guard::{MountEntry, our_mounts};
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
    let change = || {
        rustix::mount::mount_remount(&request.target, mount_flags(&request.options), "")
            .map_err(|error| MountError::fail(format!("{target}: remount: {error}")))
    };
    if request.options.read_only {
        change()?;
        return tell(&mount, Command::ReadOnly);
    }
    tell(&mount, Command::ReadWrite)?;
    let changed = change();
    if changed.is_err() && mount.read_only {
        tell(&mount, Command::ReadOnly)?;
    }
    changed
}

/// Has the daemon do its part.
fn tell(mount: &MountEntry, command: Command) -> Result<(), MountError> {
    let target = mount.target.display();
    let read_only = command == Command::ReadOnly;
    match ask(&mount.device, command) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(why)) if read_only => Err(MountError::fail(format!("{target}: remount,ro: {why}"))),
        Ok(Err(why)) => Err(MountError::fail(format!(
            "{target} cannot be made writable: {why}; it stays read-only"
        ))),
        // Nothing is to be done.
        Err(_) if mount.read_only == read_only => Ok(()),
        Err(error) => Err(MountError::fail(format!(
            "{target}: its daemon does not answer ({error}); unmount it and mount it again"
        ))),
    }
}
