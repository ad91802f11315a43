//! Goal: bad input and bad luck end in one clear line and the right exit code. Method: devices that fail, files that
//! may not be read, disks that are full, descriptors and helpers of fsck(8). Needs root: loop devices, name spaces.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must fail"
)]

mod support;

use gfs2_format::damage;
use gfs2_format::device::MemDevice;
use std::fs::{File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::{Map, fixture, save};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_fsck-gfs2");

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

fn damaged() -> MemDevice {
    let image = fixture("clean1k");
    damage::run("set dinode(/links/t).di_nlink = 9", &image).unwrap();
    image
}

fn saved(dir: &TempDir, device: &MemDevice) -> PathBuf {
    let path = dir.path().join("image");
    save(device, &path);
    path
}

/// A loop device; gone when dropped.
struct Loop(String);

impl Loop {
    fn over(file: &Path) -> Self {
        let output = Command::new("losetup")
            .args(["-f", "--show"])
            .arg(file)
            .output()
            .unwrap();
        assert!(output.status.success(), "losetup (as root): {}", said(&output));
        Self(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// Half of the device cannot be read: each block is told with what it held, and the check goes on to its end.
#[test]
fn a_device_with_read_errors_is_checked_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let image = damaged();
    let inode = Map::new(&image).path("xattr/f1");
    let path = saved(&dir, &image);
    let device = Loop::over(&path);
    // Behind the device's back: what it reads there is an error from now on.
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(inode * 1024)
        .unwrap();
    for args in [&["-n"][..], &["-y"]] {
        let output = Command::new(PROGRAM).args(args).arg(&device.0).output().unwrap();
        let text = said(&output);
        assert_eq!(output.status.code(), Some(4 | 8), "{args:?}: {text}");
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("E1: ")).collect();
        let about = format!("inode {inode}");
        let line = lines
            .iter()
            .find(|line| line.contains(&about))
            .unwrap_or_else(|| panic!("{text}"));
        assert!(line.contains("the block cannot be read"), "{line}");
        assert!(line.contains("expected an inode that can be read"), "{line}");
        assert!(text.contains("pass5 completed"), "it goes on: {text}");
    }
}

#[test]
fn what_may_not_be_read_is_said_to_be_so() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let path = saved(&dir, &fixture("clean1k"));
    let program = dir.path().join("fsck");
    // By a process of its own: what another thread starts meanwhile would inherit the descriptor the copy is written by,
    // and a program that is open for writing cannot be run.
    let copied = Command::new("cp").arg(PROGRAM).arg(&program).status();
    assert!(copied.unwrap().success());
    for (mode, args, code) in [(0o000, "-n", 16), (0o444, "-y", 16), (0o444, "-n", 0)] {
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let mut command = Command::new(&program);
        command.arg(args).arg(&path);
        if rustix::process::getuid().is_root() {
            command.uid(65534).gid(65534);
        }
        let output = command.output().unwrap();
        let text = said(&output);
        assert_eq!(output.status.code(), Some(code), "{mode:o} {args}: {text}");
        if code == 16 {
            assert!(
                text.contains("Permission denied") && text.lines().count() == 1,
                "{text}"
            );
        }
    }
}

/// The undo file's filesystem is full: nothing that could not be kept is overwritten.
#[test]
fn no_space_for_the_undo_file_is_said_before_anything_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = saved(&dir, &damaged());
    let before = std::fs::read(&path).unwrap();
    let small = dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    // Room for the head of the file, and for nothing else.
    let script = format!(
        "mount -t tmpfs -o size=8k none {0} && head -c 4096 /dev/zero >{0}/full && {PROGRAM} -y --undo {0}/undo {1}",
        small.display(),
        path.display()
    );
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .output()
        .unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(8), "{text}");
    let complaints: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("fsck.gfs2: "))
        .collect();
    assert_eq!(complaints.len(), 1, "{text}");
    assert!(
        complaints[0].contains("undo file: No space left on device"),
        "{text}"
    );
    assert!(std::fs::read(&path).unwrap() == before, "nothing was written");
    let repaired = Command::new(PROGRAM).arg("-y").arg(&path).output().unwrap();
    assert_eq!(repaired.status.code(), Some(1), "{}", said(&repaired));
}

/// `fsck -t fuse-gfs2`: fsck(8) finds the helper by its name, and what it hands on is understood.
#[test]
fn fsck_calls_us() {
    let dir = tempfile::tempdir().unwrap();
    symlink(PROGRAM, dir.path().join("fsck.fuse-gfs2")).unwrap();
    let path = saved(&dir, &damaged());
    let search = format!("{}:/usr/sbin:/sbin:/usr/bin:/bin", dir.path().display());
    let fsck = |args: &[&str]| {
        let output = Command::new("fsck")
            .args(["-T", "-t", "fuse-gfs2"])
            .args(args)
            .env("PATH", &search)
            .output()
            .unwrap();
        (output.status.code(), said(&output))
    };
    let image = path.to_str().unwrap();
    for (args, code) in [
        (&["-C0", image, "--", "-n"][..], 4),
        (&["-p", "-C", image], 0),
        (&["-a", "-C0", image], 0),
        (&["-y", "-C0", image], 1),
        (&["-n", image], 0),
    ] {
        let (found, text) = fsck(args);
        assert_eq!(found, Some(code), "{args:?}: {text}");
    }
    let output = Command::new(PROGRAM)
        .args(["-C0", "-T", "-n", image])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

/// `-C FD`: a line for each step of the progress.
#[test]
fn progress_goes_to_a_descriptor() {
    let dir = tempfile::tempdir().unwrap();
    let path = saved(&dir, &damaged());
    let log = dir.path().join("progress");
    let script = format!("{PROGRAM} -n -C9 {} 9>>{}", path.display(), log.display());
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    let text = std::fs::read_to_string(&log).unwrap();
    let name = path.to_str().unwrap();
    assert!(text.lines().count() > 3, "{text}");
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        let number = |n: usize| words[n].parse::<u64>().unwrap_or_else(|e| panic!("{line}: {e}"));
        assert!((1..=5).contains(&number(0)) && number(1) <= number(2), "{line}");
        assert_eq!(words[3], name);
    }
}

/// A device that is mounted, whatever as, is left alone; a forced run goes on.
#[test]
fn what_is_mounted_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-F"])
        .arg(&path)
        .status()
        .unwrap();
    assert!(made.success());
    let folder = dir.path().join("mounted here");
    std::fs::create_dir(&folder).unwrap();
    let device = Loop::over(&path);
    let mounted = Command::new("mount")
        .args(["-t", "ext4", &device.0])
        .arg(&folder)
        .status()
        .unwrap();
    assert!(mounted.success());
    let ours = |args: &[&str], target: &str| {
        let output = Command::new(PROGRAM).args(args).arg(target).output().unwrap();
        (output.status.code(), said(&output))
    };
    let results = [
        ours(&["-y"], &device.0),
        ours(&["-y"], path.to_str().unwrap()),
        ours(&["-n"], &device.0),
    ];
    let gone = Command::new("umount").arg(&folder).status().unwrap();
    assert!(gone.success());
    for (code, text) in &results[..2] {
        assert_eq!(*code, Some(16), "{text}");
        assert!(
            text.contains(&format!("is mounted on {} (ext4)", folder.display())),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    // Looking is allowed: it says where it is mounted, and that this is no volume.
    assert_eq!(results[2].0, Some(4), "{}", results[2].1);
    assert!(results[2].1.contains("is mounted on"), "{}", results[2].1);
}
