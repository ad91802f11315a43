//! The device to be written: opened so that nobody else has it.
//!
//! Invariant: a device that is mounted or held is refused before anything is read of it. For block devices the kernel
//! says so (`O_EXCL`); image files are looked for in the mount table, directly and behind loop devices.

use super::Failure;
use crate::error::Error;
use crate::probe::{Found, probe};
use gfs2_format::device::{BlockDevice, FileDevice, Identity, OpenOptions};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// An opened device.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    device: FileDevice,
    real: Option<PathBuf>,
}

impl Target {
    /// Opens the device for this program alone.
    pub(super) fn open(path: &OsStr) -> Result<Self, Failure> {
        let path = Path::new(path);
        let shown = path.display();
        let metadata =
            std::fs::metadata(path).map_err(|e| Failure::device(format!("{shown}: {}", reason(&e))))?;
        if metadata.is_dir() {
            return Err(Failure::device(format!(
                "{shown}: Is a directory: give a block device or an image file"
            )));
        }
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(Failure::device(format!(
                "'{shown}' is not a block device or regular file"
            )));
        }
        let device = OpenOptions::new()
            .exclusive(true)
            .open(path)
            .map_err(|e| Failure::device(open_message(path, &e)))?;
        if let Some(mount) = device.identity().and_then(mounted_at) {
            return Err(Failure::device(format!(
                "{shown}: Device or resource busy: it is mounted on {}: unmount it first",
                mount.display()
            )));
        }
        if device.is_block_device() && device.size() == 0 {
            return Err(Failure::device(format!("Device '{shown}' is too small")));
        }
        let is_link = std::fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink());
        let real = is_link.then(|| std::fs::canonicalize(path).ok()).flatten();
        Ok(Self {
            path: path.to_owned(),
            device,
            real,
        })
    }

    pub(super) fn device(&self) -> &FileDevice {
        &self.device
    }

    pub(super) fn is_block_device(&self) -> bool {
        self.device.is_block_device()
    }

    /// What is on it already.
    pub(super) fn contents(&self) -> Result<Option<Found>, Failure> {
        probe(&self.device).map_err(|e| {
            let shown = self.path.display();
            Failure::device(format!("Failed to probe device {shown}: {e}"))
        })
    }

    /// The line that says where a symbolic link leads.
    pub(super) fn symlink(&self) -> Option<String> {
        let real = self.real.as_ref()?;
        Some(format!(
            "{} is a symbolic link to {}",
            self.path.display(),
            real.display()
        ))
    }

    /// The device's own name.
    pub(super) fn real_name(&self) -> String {
        self.real.as_ref().unwrap_or(&self.path).display().to_string()
    }

    /// What a failure half-way means.
    pub(super) fn write_failure(&self, error: &Error) -> Failure {
        Failure {
            code: error.exit_code(),
            message: Some(format!(
                "{}: {error}: there is no filesystem on it now; run mkfs.gfs2 again when that is mended",
                self.path.display()
            )),
        }
    }
}

/// The system's words without its number.
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

fn open_message(path: &Path, error: &gfs2_format::Error) -> String {
    let shown = path.display();
    let gfs2_format::Error::Io { source, .. } = error else {
        return format!("{shown}: {error}");
    };
    let advice = match source.kind() {
        std::io::ErrorKind::ResourceBusy => ": unmount it, or stop what uses it, first",
        std::io::ErrorKind::ReadOnlyFilesystem => ": make it writable first",
        std::io::ErrorKind::PermissionDenied => ": it must be readable and writable",
        _ => "",
    };
    format!("{shown}: {}{advice}", reason(source))
}

/// Where the device or file is mounted, if it is.
fn mounted_at(identity: Identity) -> Option<PathBuf> {
    let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
    let loops = loops_of(Path::new("/sys/block"), identity);
    mounts.split(|byte| *byte == b'\n').find_map(|line| {
        let mount = Mount::parse(line)?;
        let is_source = identity_of(Path::new(&mount.source)) == Some(identity);
        (is_source || loops.contains(&mount.device)).then(|| PathBuf::from(mount.point))
    })
}

/// Which device or file a path leads to.
fn identity_of(path: &Path) -> Option<Identity> {
    if !path.is_absolute() {
        return None;
    }
    let metadata = std::fs::metadata(path).ok()?;
    let split = |dev: u64| (rustix::fs::major(dev), rustix::fs::minor(dev));
    if metadata.file_type().is_block_device() {
        let (major, minor) = split(metadata.rdev());
        Some(Identity::Device { major, minor })
    } else if metadata.is_file() {
        let (major, minor) = split(metadata.dev());
        let inode = metadata.ino();
        Some(Identity::File { major, minor, inode })
    } else {
        None
    }
}

/// `major:minor` of the loop devices that a file is behind.
fn loops_of(sys_block: &Path, identity: Identity) -> Vec<String> {
    if matches!(identity, Identity::Device { .. }) {
        return Vec::new();
    }
    let Ok(entries) = std::fs::read_dir(sys_block) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let backing = std::fs::read(entry.path().join("loop/backing_file")).ok()?;
            let backing = OsStr::from_bytes(backing.trim_ascii_end());
            (identity_of(Path::new(backing)) == Some(identity)).then_some(())?;
            let device = std::fs::read_to_string(entry.path().join("dev")).ok()?;
            Some(device.trim().to_owned())
        })
        .collect()
}

/// A line of mountinfo (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    device: String,
    point: OsString,
    source: OsString,
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
        let point = unescape(fields.nth(1)?);
        fields.find(|field| *field == b"-")?;
        let source = unescape(fields.nth(1)?);
        Some(Self {
            device,
            point,
            source,
        })
    }
}

/// Undoes the octal escapes of mount tables.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_lines_give_device_point_and_source() {
        let line =
            b"36 35 7:0 /mnt1 /mnt\\040two rw,noatime shared:1 master:2 - fuse.gfs2 /img\\134x rw,errors=continue";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(
            mount,
            Mount {
                device: "7:0".into(),
                point: "/mnt two".into(),
                source: "/img\\x".into()
            }
        );
        assert_eq!(Mount::parse(b""), None);
        assert_eq!(Mount::parse(b"36 35 7:0 / /mnt rw"), None);
    }

    #[test]
    fn a_file_is_found_behind_its_loop_device() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, "x").unwrap();
        for (name, backing, dev) in [
            ("loop0", image.as_path(), "7:0\n"),
            ("loop1", Path::new("/"), "7:1\n"),
        ] {
            let device = dir.path().join("block").join(name);
            std::fs::create_dir_all(device.join("loop")).unwrap();
            std::fs::write(
                device.join("loop/backing_file"),
                format!("{}\n", backing.display()),
            )
            .unwrap();
            std::fs::write(device.join("dev"), dev).unwrap();
        }
        let identity = identity_of(&image).unwrap();
        assert_eq!(loops_of(&dir.path().join("block"), identity), ["7:0"]);
        assert_eq!(loops_of(&dir.path().join("missing"), identity), [""; 0]);
    }

    #[test]
    fn what_is_not_mounted_is_free() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(identity_of(file.path()).and_then(mounted_at), None);
        assert_eq!(identity_of(Path::new("relative")), None);
    }
}
