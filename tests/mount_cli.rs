//! Goal: whatever is wrong at mount gets one line that says what and what to do, mount(8)'s exit code, and the device
//! untouched. Method: run the helper on each kind of bad input and hash the device before and after.

mod ours;
mod support;

use ours::{Mount, errors, mkfs, program, run};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::host::{Loop, reference_mkfs, sparse};

const MIB: u64 = 1 << 20;

fn volume(dir: &Path, args: &[&str]) -> PathBuf {
    let image = sparse(&dir.join("volume.img"), 64 * MIB);
    mkfs(&image, args);
    image
}

/// Mounting fails with this code and a line that holds every one of `words`; the device stays as it was.
#[track_caller]
fn refused(image: &Path, options: &str, code: i32, words: &[&str]) {
    let before = fs::read(image).ok();
    let (got, text) = Mount::try_new(image, options)
        .err()
        .unwrap_or_else(|| panic!("{} with '{options}' was mounted", image.display()));
    assert_eq!(got, code, "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "more than one line: {text}");
    assert!(text.starts_with("mount.fuse-gfs2: "), "{text}");
    for word in words {
        assert!(text.contains(word), "'{word}' is not in: {text}");
    }
    assert!(before == fs::read(image).ok(), "the device was written: {text}");
}

/// Overwrites bytes of the image.
fn poke(image: &Path, offset: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().write(true).open(image).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

#[test]
fn what_is_no_gfs2_is_refused() {
    let dir = support::scratch("mount-cli");
    refused(
        &sparse(&dir.path().join("zero"), MIB),
        "",
        32,
        &["no GFS2", "mkfs.gfs2"],
    );
    refused(&sparse(&dir.path().join("tiny"), 512), "", 32, &["no GFS2"]);
    refused(&dir.path().join("none"), "", 32, &["check the name"]);
    refused(dir.path(), "", 32, &["neither a block device nor a regular file"]);
}

#[test]
fn unknown_formats_and_sizes_are_refused() {
    let dir = support::scratch("mount-cli");
    let image = volume(dir.path(), &["-p", "lock_nolock", "-J", "8"]);
    let good = fs::read(&image).unwrap();
    for (offset, value, words) in [
        (65536 + 24, 1803u32, &["format", "1803"]),
        (65536 + 28, 1901, &["multihost format", "1901"]),
        (65536 + 36, 4095, &["sb_bsize", "4095"]),
    ] {
        poke(&image, offset, &value.to_be_bytes());
        refused(&image, "", 32, words);
        fs::write(&image, &good).unwrap();
    }
}

#[test]
fn a_truncated_device_is_refused() {
    let dir = support::scratch("mount-cli");
    let image = volume(dir.path(), &["-p", "lock_nolock", "-J", "8"]);
    fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(40 * MIB)
        .unwrap();
    refused(&image, "", 32, &["truncated"]);
}

#[test]
fn lock_dlm_volumes_say_how_to_mount_them_alone() {
    let dir = support::scratch("mount-cli");
    let image = volume(dir.path(), &["-p", "lock_dlm", "-t", "alpha:fs", "-J", "8"]);
    refused(&image, "", 32, &["lock_dlm", "lockproto=lock_nolock"]);
    Mount::new(&image, "lockproto=lock_nolock").unmount();
}

#[test]
fn options_and_places_that_are_wrong_are_refused() {
    let dir = support::scratch("mount-cli");
    let image = volume(dir.path(), &["-p", "lock_nolock", "-J", "8"]);
    refused(&image, "noatme", 1, &["noatme", "noatime"]);
    refused(&image, "commit=0", 1, &["commit=0", "at least 1"]);
    refused(&image, "quota=on", 1, &["quota"]);
    refused(&image, "hostdata=jid=7", 32, &["journal", "7"]);
    let output = run("mount-fuse-gfs2", &[image.to_str().unwrap(), "/nonexistent/mnt"]);
    assert_eq!(output.status.code(), Some(32));
    assert!(errors(&output).contains("mkdir -p"), "{}", errors(&output));
    let output = run(
        "mount-fuse-gfs2",
        &[image.to_str().unwrap(), image.to_str().unwrap()],
    );
    assert_eq!(output.status.code(), Some(32));
    assert!(errors(&output).contains("not a directory"), "{}", errors(&output));
    let output = run("mount-fuse-gfs2", &[]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn nobody_but_root_mounts() {
    let dir = support::scratch("mount-cli");
    let image = volume(dir.path(), &["-p", "lock_nolock", "-J", "8"]);
    // A copy where everybody may run it: the checkout may be private.
    let copy = tempfile::Builder::new().prefix("gfs2-cli-").tempdir().unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let helper = copy.path().join("mount.fuse-gfs2");
    support::host::copy_program(&program("mount-fuse-gfs2"), &helper);
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&helper)
        .arg(&image)
        .arg("/mnt")
        .output()
        .expect("setpriv of util-linux");
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    assert!(errors(&output).contains("run as root"), "{}", errors(&output));
}

#[test]
fn a_volume_is_mounted_once_and_held() {
    let dir = support::scratch("mount-cli");
    let image = volume(dir.path(), &["-p", "lock_nolock", "-J", "8"]);
    let mount = Mount::new(&image, "");
    let (code, text) = Mount::try_new(&image, "").unwrap_err();
    assert_eq!(code, 32);
    assert!(text.contains("already mounted on"), "{text}");
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|l| l.starts_with(image.to_str().unwrap()))
        .expect("our line");
    assert!(line.contains(" fuse.gfs2 rw,"), "{line}");
    mount.unmount();

    let device = Loop::attach(&image);
    refused(&image, "", 32, &["in use", "/dev/loop"]);
    let mount = Mount::new(device.device(), "");
    assert!(
        !run("mkfs-gfs2", &["-O", device.device().to_str().unwrap()])
            .status
            .success()
    );
    mount.unmount();
    Mount::new(device.device(), "ro").unmount();
}

#[test]
fn a_journal_outside_the_volume_is_refused_not_obeyed() {
    let dir = support::scratch("mount-cli");
    let image = sparse(&dir.path().join("volume.img"), 64 * MIB);
    reference_mkfs(&image, &["-p", "lock_nolock", "-j", "1", "-J", "8"]);
    let dump = run(
        "gfs2ctl",
        &["dump", image.to_str().unwrap(), "master:/jindex/journal0"],
    );
    assert!(dump.status.success(), "{}", errors(&dump));
    let text = String::from_utf8(dump.stdout).unwrap();
    let at: u64 = text
        .split_whitespace()
        .nth(3)
        .unwrap()
        .parse()
        .expect("dinode at block N");
    poke(&image, at * 4096 + 232, &u64::MAX.to_be_bytes());
    refused(&image, "", 32, &["journal"]);
}

#[test]
fn help_and_version_are_said_on_standard_output() {
    let help = run("mount-fuse-gfs2", &["--help"]);
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("MOUNTPOINT"));
    let version = run("mount-fuse-gfs2", &["-V"]);
    assert!(String::from_utf8_lossy(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
}
