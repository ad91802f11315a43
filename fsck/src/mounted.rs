//! Is a device or image mounted on this machine, by the kernel or by us?
//!
//! The kernel's list is asked, by device number and by what a mount names as its source; of an image file also the
//! loop devices on it. What other nodes do cannot be seen here.

use rustix::fs::{major, minor};
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A mount of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) target: PathBuf,
    pub(crate) kind: String,
    pub(crate) read_only: bool,
}

impl Mount {
    /// The root of a system that is starting up: repaired in place, as every fsck does; then it has to start anew.
    pub(crate) fn is_root_read_only(&self) -> bool {
        self.read_only && self.target == Path::new("/")
    }
}

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    device: String,
    source: String,
    mount: Mount,
}

/// The mounts of the device or image at `path`.
pub(crate) fn mounts_of(path: &Path) -> Vec<Mount> {
    let Ok(meta) = std::fs::metadata(path) else {
        return Vec::new();
    };
    let numbers = if meta.file_type().is_block_device() {
        vec![format!("{}:{}", major(meta.rdev()), minor(meta.rdev()))]
    } else {
        loops_over(path)
    };
    let same = |source: &str| std::fs::metadata(source).is_ok_and(|other| is_same(&meta, &other));
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let lines = text.lines().filter_map(parse);
    let mounts = lines.filter(|line| {
        numbers.contains(&line.device) || (line.source.starts_with('/') && same(&line.source))
    });
    mounts.map(|line| line.mount).collect()
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    if one.file_type().is_block_device() {
        other.file_type().is_block_device() && one.rdev() == other.rdev()
    } else {
        (one.dev(), one.ino()) == (other.dev(), other.ino())
    }
}

/// Numbers of the loop devices that stand on this file.
fn loops_over(file: &Path) -> Vec<String> {
    let (Ok(file), Ok(entries)) = (file.canonicalize(), std::fs::read_dir("/sys/block")) else {
        return Vec::new();
    };
    let number = |entry: std::fs::DirEntry| {
        let backing = std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        let number = std::fs::read_to_string(entry.path().join("dev")).ok()?;
        (Path::new(backing.trim_end_matches('\n')) == file).then(|| number.trim().to_owned())
    };
    entries.flatten().filter_map(number).collect()
}

fn parse(line: &str) -> Option<Line> {
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    let (kind, source) = (after.next()?, unescape(after.next()?));
    let of_all = after.next()?;
    let mut before = before.split(' ').skip(2);
    let device = before.next()?.to_owned();
    let target = unescape(before.nth(1)?);
    let of_mount = before.next()?;
    let says_ro = |options: &str| options.split(',').any(|word| word == "ro");
    let mount = Mount {
        target: target.into(),
        kind: kind.to_owned(),
        read_only: says_ro(of_mount) || says_ro(of_all),
    };
    Some(Line {
        device,
        source,
        mount,
    })
}

/// Undoes the octal escapes of `/proc/*/mountinfo`.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.first_chunk::<3>().filter(|_| *first == b'\\');
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tell_device_source_target_and_whether_read_only() {
        let line =
            parse(r"36 25 7:3 / /mnt/a\040b rw,noatime shared:1 - fuse.gfs2 /dev/my\134disk rw,user_id=0")
                .unwrap();
        assert_eq!((&*line.device, &*line.source), ("7:3", r"/dev/my\disk"));
        let target = PathBuf::from("/mnt/a b");
        assert_eq!((line.mount.target, line.mount.read_only), (target, false));
        let root = parse("25 1 253:1 / / ro,relatime - gfs2 /dev/vda1 ro,localflocks").unwrap();
        assert!(root.mount.is_root_read_only());
        let writable = parse("25 1 253:1 / / rw,relatime - gfs2 /dev/vda1 rw").unwrap();
        assert!(!writable.mount.is_root_read_only());
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn what_is_mounted_here_is_found() {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let on_device = text.lines().filter_map(parse).find(|line| {
            std::fs::metadata(&line.source).is_ok_and(|meta| {
                let number = format!("{}:{}", major(meta.rdev()), minor(meta.rdev()));
                meta.file_type().is_block_device() && number == line.device
            })
        });
        // A machine may have no filesystem on a device of its own (a container): then there is nothing to find.
        if let Some(line) = on_device {
            let found = mounts_of(Path::new(&line.source));
            assert!(
                found.iter().any(|mount| mount.target == line.mount.target),
                "{found:?}"
            );
        }
        assert_eq!(mounts_of(Path::new("/proc/self/mountinfo")), Vec::new());
    }
}
