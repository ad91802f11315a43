//! `umount.fuse.gfs2`: unmounts and returns only when the daemon has left the journal clean.
//!
//! umount(8) calls it by the type in `/proc/mounts`. umount(2) on FUSE returns while the daemon still writes; the
//! daemon keeps its lock on the device until it is done, so waiting for that lock is waiting for the clean journal.

use super::cli::{MountError, exit};
use super::guard::{our_mounts, wait_released};
use rustix::mount::UnmountFlags;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A journal of 1 GiB can hold what takes a slow disk minutes to put in place.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs the helper: `umount.fuse.gfs2 DIR [-flnrv] [-N ns] [-t type]`.
///
/// # Errors
/// One line and the exit code of umount(8).
pub fn run(args: impl IntoIterator<Item = OsString>) -> Result<(), MountError> {
    let mut target: Option<PathBuf> = None;
    let mut flags = UnmountFlags::empty();
    let mut lazy = false;
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("-t" | "-N" | "-o") => {
                args.next();
            }
            Some(word) if word.starts_with('-') && word.len() > 1 => {
                for letter in word.chars().skip(1) {
                    match letter {
                        'f' => flags |= UnmountFlags::FORCE,
                        'l' => {
                            flags |= UnmountFlags::DETACH;
                            lazy = true;
                        }
                        'n' | 'r' | 'v' | 's' => {}
                        other => return Err(MountError::usage(format!("option -{other} is not known"))),
                    }
                }
            }
            _ if target.is_none() => target = Some(arg.into()),
            _ => return Err(MountError::usage("more than one mount point; name one")),
        }
    }
    let target = target.ok_or_else(|| MountError::usage("usage: umount.fuse.gfs2 MOUNTPOINT [-fl]"))?;
    unmount(&target, flags, lazy)
}

fn unmount(target: &Path, flags: UnmountFlags, lazy: bool) -> Result<(), MountError> {
    let name = target.display();
    // A dead mount has no metadata to resolve by: then as given.
    let target = target
        .canonicalize()
        .or_else(|_| std::path::absolute(target))
        .unwrap_or_else(|_| target.to_owned());
    let target = target.as_path();
    // The last mount on a path is the visible one.
    let entry = our_mounts()
        .into_iter()
        .rev()
        .find(|m| m.target == target || m.source == target);
    let Some(entry) = entry else {
        return Err(MountError::fail(format!(
            "{name}: not mounted as {}",
            super::guard::FS_TYPE
        )));
    };
    rustix::mount::unmount(&entry.target, flags).map_err(|error| match error {
        rustix::io::Errno::BUSY => MountError::fail(format!("{name}: target is busy.")),
        rustix::io::Errno::PERM => MountError {
            code: exit::USAGE,
            message: "must be superuser to unmount.".into(),
        },
        other => MountError::fail(format!("{name}: {other}")),
    })?;
    // After a lazy unmount the mount lives on as long as its users do.
    if lazy || our_mounts().iter().any(|m| m.source == entry.source) {
        return Ok(());
    }
    wait_released(&entry.source, PATIENCE).map_err(|error| {
        MountError::fail(format!(
            "{name}: unmounted, but its daemon still holds {}: {error}",
            entry.source.display()
        ))
    })
}
