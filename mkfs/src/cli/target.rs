//! The device to be written: opened so that nobody else has it.
//!
//! Invariant: a device that is mounted or held is refused before anything is read of it. For block devices the kernel
//! says so (`O_EXCL`); image files are looked for in the mount table, directly and behind loop devices.

use super::Failure;
use crate::error::Error;
use crate::probe::{Found, probe};
use gfs2_format::device::{Batch, BlockDevice, FileDevice, Identity, OpenOptions, Topology, WriteQueue};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Writes of at least this many bytes bypass the page cache where they can: it would only copy them.
const DIRECT_FROM: usize = 256 << 10;
/// Files of at least this many bytes get blocks reserved before small writes: they have a thousand resource groups.
const RESERVE_FROM: u64 = 256 << 30;
/// What direct writes must be multiples of on any device, in bytes.
const DIRECT_UNIT: u64 = 4096;

/// A device with two ways to it: through the page cache for what is small and scattered, past it for the rest.
///
/// Both lead to one inode, so that a flush of one is a flush of both; nothing is written twice, by one way and then the
/// other, within a page.
///
/// Before a small write to a large file its blocks are reserved. Left to delayed allocation, the filesystem below may
/// look for a large free area around each of the many small ones, for minutes. For queued writes blocks are reserved
/// always: a direct write to a hole has the file to itself until it has ended, to reserved blocks many go at once.
#[derive(Debug)]
pub(super) struct TwoWays {
    cached: FileDevice,
    direct: Option<FileDevice>,
    /// The file to reserve blocks of; `None` for block devices.
    file: Option<File>,
    /// Does its filesystem reserve blocks?
    reserves: AtomicBool,
    /// The file was one hole when it was opened: it reads as zeroes where nothing is written.
    hole: bool,
}

impl TwoWays {
    fn new(cached: FileDevice, path: &Path) -> Self {
        let direct = OpenOptions::new()
            .direct(true)
            .open(path)
            .ok()
            .filter(|direct| direct.is_direct() && direct.identity() == cached.identity());
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .ok()
            .filter(|_| !cached.is_block_device())
            .filter(|file| {
                file.metadata()
                    .is_ok_and(|m| identity_by(&m) == cached.identity())
            });
        let hole = file
            .as_ref()
            .is_some_and(|file| rustix::fs::seek(file, SeekFrom::Data(0)) == Err(Errno::NXIO));
        Self {
            cached,
            direct,
            file,
            reserves: AtomicBool::new(true),
            hole,
        }
    }

    /// Reserves the blocks of a range.
    fn reserve(&self, offset: u64, len: u64) -> Result<(), gfs2_format::Error> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.size());
        if !fits || !self.reserves.load(Ordering::Relaxed) {
            return Ok(());
        }
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, len) {
            Ok(()) | Err(Errno::INTR) => Ok(()),
            Err(Errno::NOSPC) => {
                let error = std::io::Error::from(Errno::NOSPC);
                Err(gfs2_format::Error::io("write", offset, len, error))
            }
            Err(_) => {
                self.reserves.store(false, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// The way past the page cache, for a write that it suits.
    fn direct_way(&self, offset: u64, len: usize) -> Option<&FileDevice> {
        let suits = len >= DIRECT_FROM && (offset | len as u64).is_multiple_of(DIRECT_UNIT);
        self.direct.as_ref().filter(|_| suits)
    }
}

impl BlockDevice for TwoWays {
    fn size(&self) -> u64 {
        self.cached.size()
    }

    fn sector_size(&self) -> u32 {
        self.cached.sector_size()
    }

    fn topology(&self) -> Topology {
        self.cached.topology()
    }

    fn identity(&self) -> Option<Identity> {
        self.cached.identity()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), gfs2_format::Error> {
        self.cached.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), gfs2_format::Error> {
        if let Some(direct) = self.direct_way(offset, buf.len()) {
            return direct.write_at(offset, buf);
        }
        if self.size() >= RESERVE_FROM {
            self.reserve(offset, buf.len() as u64)?;
        }
        self.cached.write_at(offset, buf)
    }

    fn write_fua(&self, offset: u64, buf: &[u8]) -> Result<(), gfs2_format::Error> {
        self.cached.write_fua(offset, buf)
    }

    fn flush(&self) -> Result<(), gfs2_format::Error> {
        self.cached.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<bool, gfs2_format::Error> {
        self.cached.discard(offset, len)
    }

    fn write_queue(&self) -> Option<Box<dyn WriteQueue + '_>> {
        let inner = self.direct.as_ref()?.write_queue()?;
        Some(Box::new(Reserving { device: self, inner }))
    }

    fn is_blank(&self) -> bool {
        self.hole
    }
}

/// The queue of a [`TwoWays`]: past the page cache, except for what is not whole pages.
#[derive(Debug)]
struct Reserving<'a> {
    device: &'a TwoWays,
    inner: Box<dyn WriteQueue + 'a>,
}

impl WriteQueue for Reserving<'_> {
    fn batch(&mut self) -> Result<Batch, gfs2_format::Error> {
        self.inner.batch()
    }

    fn submit(&mut self, mut batch: Batch) -> Result<(), gfs2_format::Error> {
        batch.retain(|offset, bytes| {
            self.device.reserve(offset, bytes.len() as u64)?;
            let suits = (offset | bytes.len() as u64).is_multiple_of(DIRECT_UNIT);
            if !suits {
                self.device.cached.write_at(offset, bytes)?;
            }
            Ok(suits)
        })?;
        self.inner.submit(batch)
    }

    fn finish(&mut self) -> Result<(), gfs2_format::Error> {
        self.inner.finish()
    }
}

/// An opened device.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    device: TwoWays,
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
        if device.identity().is_some_and(is_read_only) {
            return Err(Failure::device(format!(
                "{shown}: Read-only device: make it writable first (blockdev --setrw)"
            )));
        }
        if device.is_block_device() && device.size() == 0 {
            return Err(Failure::device(format!("Device '{shown}' is too small")));
        }
        let is_link = std::fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink());
        let real = is_link.then(|| std::fs::canonicalize(path).ok()).flatten();
        Ok(Self {
            path: path.to_owned(),
            device: TwoWays::new(device, path),
            real,
        })
    }

    pub(super) fn device(&self) -> &TwoWays {
        &self.device
    }

    pub(super) fn is_block_device(&self) -> bool {
        self.device.cached.is_block_device()
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

/// A block device may be opened for writing all the same, and refuse the writes.
fn is_read_only(identity: Identity) -> bool {
    let Identity::Device { major, minor } = identity else {
        return false;
    };
    std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro")).is_ok_and(|text| text.trim() == "1")
}

/// Which device or file a path leads to.
fn identity_of(path: &Path) -> Option<Identity> {
    if !path.is_absolute() {
        return None;
    }
    identity_by(&std::fs::metadata(path).ok()?)
}

fn identity_by(metadata: &std::fs::Metadata) -> Option<Identity> {
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
