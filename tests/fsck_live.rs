//! Goal: a volume that is in use is not repaired under whoever uses it, a root filesystem that was repaired asks for a
//! reboot, and what a crash leaves is told as the reference tells it. Method: our own live mount, a namespace whose root
//! says that it comes from a damaged image, and mounts whose daemon is killed.

mod ours;
mod support;

use gfs2_format::damage;
use gfs2_format::device::OpenOptions;
use ours::{Mount, errors, mkfs, program, run};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::host::{Host, reference_fsck, sparse};

const MIB: u64 = 1 << 20;

fn volume(dir: &Path) -> PathBuf {
    let image = sparse(&dir.join("volume.img"), 64 * MIB);
    mkfs(&image, &["-p", "lock_nolock", "-J", "8"]);
    image
}

fn fsck(args: &[&str], image: &Path) -> Output {
    let image = image.to_str().expect("a path in UTF-8");
    run("fsck-gfs2", &[args, &[image]].concat())
}

#[test]
fn our_own_live_mount_is_not_repaired() {
    let dir = support::scratch("fsck-live");
    let image = volume(dir.path());
    let mount = Mount::new(&image, "");
    fs::write(mount.join("file"), [7; 100_000]).unwrap();
    for args in [&["-y"][..], &["-p"], &[]] {
        let output = fsck(args, &image);
        let text = errors(&output);
        assert_eq!(output.status.code(), Some(16), "{args:?}: {text}");
        assert_eq!(text.trim_end().lines().count(), 1, "{args:?}: {text}");
        let place = mount.path();
        for word in ["is mounted on", place.to_str().unwrap(), "fuse.gfs2", "umount"] {
            assert!(text.contains(word), "{args:?}: '{word}' is not in: {text}");
        }
    }
    // Only looking is allowed, with a warning: what is found may be about to change.
    let output = fsck(&["-n"], &image);
    assert!(errors(&output).contains("is mounted on"), "{}", errors(&output));
    assert_eq!(fs::read(mount.join("file")).unwrap(), [7; 100_000]);
    mount.unmount();
    let output = fsck(&["-y"], &image);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
}

/// Runs the program where the root filesystem is one that names `image` as its source, mounted read-only. What is on it
/// is memory with the system's own folders in it: the root of a system that starts up, as far as fsck can tell.
fn under_a_root_of(image: &Path, new_root: &Path, args: &str) -> Output {
    let script = format!(
        "set -e\n\
         mount -t tmpfs {image} {root}\n\
         for dir in /*; do\n\
             [ -d \"$dir\" ] || continue\n\
             if [ -L \"$dir\" ]; then cp -P \"$dir\" {root}; continue; fi\n\
             mkdir {root}\"$dir\"\n\
             mount --rbind \"$dir\" {root}\"$dir\"\n\
         done\n\
         umount -R -l {root}{root}\n\
         mkdir {root}/before\n\
         cd {root}\n\
         pivot_root . before\n\
         mount -o remount,ro /\n\
         exec {program} {args} {image}\n",
        image = image.display(),
        root = new_root.display(),
        program = program("fsck-gfs2").display(),
    );
    Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .output()
        .expect("unshare of util-linux, as root")
}

#[test]
fn a_root_filesystem_that_was_repaired_asks_for_a_reboot() {
    let dir = support::scratch("fsck-live");
    let image = volume(dir.path());
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let clean = under_a_root_of(&image, &root, "-y");
    assert_eq!(clean.status.code(), Some(0), "{}", errors(&clean));
    let device = OpenOptions::new().open(&image).unwrap();
    damage::run("set statfs.sc_free = 5", &device).unwrap();
    drop(device);
    let looked = under_a_root_of(&image, &root, "-n");
    assert_eq!(looked.status.code(), Some(4), "{}", errors(&looked));
    let repaired = under_a_root_of(&image, &root, "-y");
    let text = errors(&repaired);
    assert_eq!(repaired.status.code(), Some(1 | 2), "{text}");
    assert!(text.contains("reboot now"), "{text}");
    let again = under_a_root_of(&image, &root, "-y");
    assert_eq!(again.status.code(), Some(0), "{}", errors(&again));
}

/// What is done before the power goes: files that are made, then how many of them are removed again, and whether what was
/// done is synced.
const LIVES: &[(u32, u32, bool)] = &[
    (3, 0, false),
    (3, 0, true),
    (3, 2, true),
    (300, 0, true),
    (300, 200, true),
];

/// A crash of a volume without damage: `-n` exits as the reference's does, says which journal is dirty, and a look that is
/// to be strict has another code. The reference does not replay in memory: what is not in its place yet is an error to it.
#[test]
fn a_crash_is_told_as_the_reference_tells_it() {
    let dir = support::scratch("fsck-live");
    let mut codes = Vec::new();
    for (made, removed, synced) in LIVES {
        let image = volume(dir.path());
        let mount = Mount::new(&image, "");
        for n in 0..*made {
            let folder = mount.join(format!("folder{}", n % 7));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(format!("file{n}")), vec![7; n as usize * 97]).unwrap();
        }
        if *synced {
            Host::new("sync").arg("-f").arg(mount.path()).check();
        }
        for n in 0..*removed {
            fs::remove_file(mount.join(format!("folder{}/file{n}", n % 7))).unwrap();
        }
        if *synced {
            fs::File::open(mount.path()).unwrap().sync_all().unwrap();
        }
        mount.crash();
        let what = format!("{made} made, {removed} removed, synced: {synced}");
        let output = fsck(&["-n"], &image);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let theirs = reference_fsck(&image);
        // What was not written by then leaves no trace.
        let dirty = said.contains("journal0 is dirty and was not replayed.");
        assert_eq!(
            dirty,
            theirs.output.contains("Journal #1 (\"journal0\") is dirty"),
            "{what}:\n{said}\n--- the reference:\n{}",
            theirs.output
        );
        let ours = output.status.code().unwrap();
        assert_eq!(
            ours, theirs.rc,
            "{what}:\n{said}\n--- the reference:\n{}",
            theirs.output
        );
        println!("{what}: dirty: {dirty}, exit code {ours}");
        if !dirty {
            continue;
        }
        let strict = fsck(&["--dry-run"], &image);
        assert_eq!(strict.status.code(), Some(4), "{what}: {}", errors(&strict));
        codes.push(ours);
        let repaired = fsck(&["-y"], &image);
        assert_eq!(repaired.status.code(), Some(1), "{what}: {}", errors(&repaired));
        support::host::assert_ours_clean(&program("fsck-gfs2"), &image);
        support::host::assert_fsck_clean(&image);
    }
    assert!(codes.contains(&0), "no crash was passed over: {codes:?}");
}
