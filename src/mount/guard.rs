//! Who holds a device: refuses one that is mounted already, by us or by others, and keeps others out while we have it.
//!
//! Block devices are opened exclusively (the kernel's own claim, which mkfs, fsck, device mapper and other
//! filesystems take too); files and block devices carry a lock (`flock`) besides, which is held until the journal is
//! clean: what `umount` waits for, and what a new mount waits for when the old daemon is still at it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};

/// How long a new mount waits for an unmounted daemon to finish writing.
const FINISH_WAIT: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(20);

/// The type our mounts show in `/proc/mounts`: systemd takes `fuse.gfs2` for the network filesystem it may be.
pub const FS_TYPE: &str = "fuse.gfs2";

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// Mounted by us.
    #[error("{device} is already mounted on {on}; unmount it first (umount {on})")]
    Mounted {
        /// The device.
        device: String,
        /// Where it is mounted.
        on: String,
    },
    /// Held by somebody else.
    #[error(
        "{0} is in use by another program (a mounted filesystem, fsck, mkfs, device mapper, a loop device); stop it first"
    )]
    Busy(String),
    /// Not a block device and not a file.
    #[error(
        "{0} is neither a block device nor a regular file; name the device or image that holds the volume"
    )]
    Kind(String),
    /// The system says no.
    #[error("cannot open {device}: {source}{hint}")]
    Open {
        /// The device.
        device: String,
        /// What to do about it, with its own separator; may be empty.
        hint: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// A device kept from others for as long as this lives.
#[derive(Debug)]
pub struct DeviceGuard {
    file: File,
    /// May it be written?
    pub writable: bool,
    /// Is it a block device?
    pub is_block: bool,
}

impl DeviceGuard {
    /// Takes the device: for ourselves alone when `exclusive`, else together with other readers.
    ///
    /// `want_write`: try to open for writing; a device that is read-only by itself is then opened for reading.
    ///
    /// # Errors
    /// [`GuardError`], each saying what to do.
    pub fn take(device: &Path, want_write: bool, exclusive: bool) -> Result<Self, GuardError> {
        let name = device.display().to_string();
        let open_error = |source: io::Error| GuardError::Open {
            device: name.clone(),
            hint: hint(&source),
            source,
        };
        let meta = std::fs::metadata(device).map_err(open_error)?;
        let is_block = meta.file_type().is_block_device();
        if !is_block && !meta.file_type().is_file() {
            return Err(GuardError::Kind(name));
        }
        if let Some(on) = mounted_on(&meta) {
            return Err(GuardError::Mounted { device: name, on });
        }
        if !is_block && let Some(loop_device) = loop_over(device) {
            return Err(GuardError::Busy(format!("{name} (attached to {loop_device})")));
        }
        let deadline = Instant::now() + FINISH_WAIT;
        let mut last = false;
        loop {
            match Self::try_take(device, is_block, want_write, exclusive) {
                Ok(guard) => return Ok(guard),
                Err(error) if is_busy(&error) => {
                    // A daemon of ours whose mount is gone still writes: worth waiting for. Everybody else is not,
                    // but cannot be told apart on a block device until the claim is free.
                    if let Some(on) = mounted_on(&meta) {
                        return Err(GuardError::Mounted { device: name, on });
                    }
                    if last {
                        return Err(GuardError::Busy(name));
                    }
                    // When it is not ours now, it may have been when we tried: it ended in between.
                    last = Instant::now() >= deadline || !held_by_us(device);
                    if !last {
                        std::thread::sleep(RETRY);
                    }
                }
                Err(error) => return Err(open_error(error)),
            }
        }
    }

    fn try_take(device: &Path, is_block: bool, want_write: bool, exclusive: bool) -> io::Result<Self> {
        let claim = if is_block && exclusive {
            OFlags::EXCL
        } else {
            OFlags::empty()
        };
        let open = |access: OFlags| rustix::fs::open(device, access | claim | OFlags::CLOEXEC, Mode::empty());
        let (fd, writable) = match (
            want_write,
            open(if want_write { OFlags::RDWR } else { OFlags::RDONLY }),
        ) {
            (true, Err(rustix::io::Errno::ROFS | rustix::io::Errno::ACCESS | rustix::io::Errno::PERM)) => {
                (open(OFlags::RDONLY)?, false)
            }
            (_, opened) => (opened?, want_write),
        };
        // Linux lets a read-only block device be opened for writing and fails the writes.
        let writable = writable && !(is_block && is_set_read_only(device));
        let lock = if exclusive {
            FlockOperation::NonBlockingLockExclusive
        } else {
            FlockOperation::NonBlockingLockShared
        };
        rustix::fs::flock(&fd, lock)?;
        Ok(Self {
            file: File::from(fd),
            writable,
            is_block,
        })
    }

    /// The open device.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Waits until no daemon of ours holds the device any more.
///
/// # Errors
/// The system's error; `TimedOut` when it is still held after `patience`.
pub fn wait_released(device: &Path, patience: Duration) -> io::Result<()> {
    let file = File::open(device)?;
    let deadline = Instant::now() + patience;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(RETRY),
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// What the kernel says of a block device (`blockdev --getro`); when it says nothing, writes will tell.
fn is_set_read_only(device: &Path) -> bool {
    let Ok(meta) = std::fs::metadata(device) else {
        return false;
    };
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro")).is_ok_and(|text| text.trim() == "1")
}

fn is_busy(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ResourceBusy | io::ErrorKind::WouldBlock
    )
}

/// Does somebody hold our kind of lock on it?
fn held_by_us(device: &Path) -> bool {
    File::open(device).is_ok_and(|file| {
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    })
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; check the name",
        io::ErrorKind::PermissionDenied => "; run as root",
        _ => "",
    }
}

/// A line of `/proc/self/mountinfo` of our type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// The device as given at mount.
    pub source: PathBuf,
    /// The mount point.
    pub target: PathBuf,
    /// Its device number, as the kernel shows it (`0:57`).
    pub device: String,
    /// Is the filesystem read-only, wherever it is mounted?
    pub read_only: bool,
}

/// Our mounts, as the kernel lists them.
#[must_use]
pub fn our_mounts() -> Vec<MountEntry> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(parse_mountinfo).collect()
}

fn parse_mountinfo(line: &str) -> Option<MountEntry> {
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    if after.next()? != FS_TYPE {
        return None;
    }
    let source = unescape(after.next()?);
    let super_options = after.next()?;
    let mut before = before.split(' ').skip(2);
    let device = before.next()?.to_owned();
    let target = unescape(before.nth(1)?);
    let says_ro = |options: &str| options.split(',').any(|word| word == "ro");
    Some(MountEntry {
        source: source.into(),
        target: target.into(),
        device,
        read_only: says_ro(super_options),
    })
}

/// Undoes the octal escapes of `/proc/*/mount*`.
pub(super) fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'\\')
            .then(|| bytes.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Where one of our mounts has the same device or file, whatever its name.
fn mounted_on(meta: &std::fs::Metadata) -> Option<String> {
    let same = |other: &std::fs::Metadata| {
        if meta.file_type().is_block_device() {
            other.file_type().is_block_device() && other.rdev() == meta.rdev()
        } else {
            other.dev() == meta.dev() && other.ino() == meta.ino()
        }
    };
    our_mounts()
        .into_iter()
        .find(|entry| std::fs::metadata(&entry.source).is_ok_and(|m| same(&m)))
        .map(|entry| entry.target.display().to_string())
}

/// The loop device that stands on this file, if there is one.
fn loop_over(file: &Path) -> Option<String> {
    let file = file.canonicalize().ok()?;
    let entries = std::fs::read_dir("/sys/block").ok()?;
    entries.flatten().find_map(|entry| {
        let backing = std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        (Path::new(backing.trim_end_matches('\n')) == file)
            .then(|| format!("/dev/{}", entry.file_name().to_string_lossy()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_of_our_type_are_found_and_unescaped() {
        let line = r"36 35 0:50 / /mnt/a\040b rw,relatime shared:1 - fuse.gfs2 /dev/disk\134x rw,user_id=0";
        let entry = parse_mountinfo(line).unwrap();
        assert_eq!(entry.target, Path::new("/mnt/a b"));
        assert_eq!(entry.source, Path::new("/dev/disk\\x"));
        assert!(!entry.read_only);
        assert_eq!(entry.device, "0:50");
        // A mount that is read-only, of a filesystem that is not.
        let bound = line.replacen("rw,relatime", "ro,relatime", 1);
        assert!(!parse_mountinfo(&bound).unwrap().read_only);
        assert!(
            parse_mountinfo(&line.replace("rw,user", "ro,user"))
                .unwrap()
                .read_only
        );
        assert_eq!(parse_mountinfo(&line.replace("fuse.gfs2", "ext4")), None);
        assert_eq!(unescape(r"end\0"), r"end\0");
    }

    #[test]
    fn a_file_can_be_taken_once_and_is_free_again_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, [0; 512]).unwrap();
        let guard = DeviceGuard::take(&path, true, true).unwrap();
        assert!(guard.writable && !guard.is_block);
        assert!(held_by_us(&path));
        assert!(wait_released(&path, Duration::from_millis(50)).is_err());
        drop(guard);
        wait_released(&path, Duration::from_secs(1)).unwrap();
        let one = DeviceGuard::take(&path, false, false).unwrap();
        let two = DeviceGuard::take(&path, false, false).unwrap();
        assert!(!one.writable && !two.writable);
    }

    #[test]
    fn a_directory_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let error = DeviceGuard::take(dir.path(), true, true).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("neither a block device nor a regular file"),
            "{error}"
        );
        let error = DeviceGuard::take(&dir.path().join("none"), true, true).unwrap_err();
        assert!(error.to_string().contains("check the name"), "{error}");
    }
}
