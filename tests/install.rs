//! Goal: what people type works after installing. Method: install into a folder, lay it over the system in a private
//! mount namespace, and use it as README and fstab(5) say: every command of the README is run here.

mod ours;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;
use support::host::{Host, Loop, checkout, sparse};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// The project's own command, as `cargo xtask` runs it.
fn xtask(args: &[&str]) -> String {
    let mut cargo = Host::new(env!("CARGO"));
    cargo.arg("--config").arg(checkout().join(".cargo/config.toml"));
    cargo
        .arg("run")
        .arg("--quiet")
        .arg("--manifest-path")
        .arg(checkout().join("Cargo.toml"));
    cargo.arg("--package").arg("xtask").arg("--").args(args);
    cargo.limit(Duration::from_secs(1800)).check()
}

/// Everything, installed once below a scratch folder.
fn installed() -> &'static Path {
    static PLACE: OnceLock<TempDir> = OnceLock::new();
    PLACE
        .get_or_init(|| {
            let dir = support::scratch("install");
            xtask(&["install", "--destdir", dir.path().to_str().unwrap()]);
            dir
        })
        .path()
}

/// Runs a script in a mount namespace of its own where our programs are installed and `/etc/fstab` is `fstab`.
fn with_system(fstab: &str, script: &str) -> String {
    let place = installed();
    let etc = support::scratch("etc");
    fs::write(etc.path().join("fstab"), fstab).unwrap();
    let lay = |over: &Path, on: &str| {
        format!(
            "mount -t overlay overlay -o lowerdir={}:{on} {on}\n",
            over.display()
        )
    };
    // /sbin is a link to /usr/sbin on every Debian since 12.
    let sbin = fs::canonicalize("/sbin").unwrap();
    let setup = format!(
        "set -eu\nmount --make-rprivate /\n{}{}{}",
        lay(&place.join("sbin"), sbin.to_str().unwrap()),
        lay(&place.join("usr/local/sbin"), "/usr/local/sbin"),
        lay(etc.path(), "/etc"),
    );
    Host::new("unshare")
        .args(["--mount", "bash", "-c", &format!("{setup}{script}")])
        .limit(Duration::from_secs(120))
        .check()
}

#[test]
fn everything_lands_under_the_names_people_type() {
    let place = installed();
    for name in ["mkfs.gfs2", "fsck.gfs2", "mount.fuse-gfs2", "gfs2ctl"] {
        let program = place.join("usr/local/sbin").join(name);
        let version = Host::new(&program).arg("-V").check();
        assert!(
            version.contains(env!("CARGO_PKG_VERSION")),
            "{name} -V: {version}"
        );
    }
    for helper in [
        "mount.fuse-gfs2",
        "mount.fuse.gfs2",
        "umount.fuse.gfs2",
        "fsck.fuse-gfs2",
    ] {
        let link = fs::read_link(place.join("sbin").join(helper)).unwrap_or_else(|e| panic!("{helper}: {e}"));
        assert!(
            link.starts_with("/usr/local/sbin"),
            "{helper} -> {}",
            link.display()
        );
    }
    for page in [
        "mkfs.gfs2",
        "fsck.gfs2",
        "mount.fuse-gfs2",
        "mount.fuse.gfs2",
        "gfs2ctl",
    ] {
        let path = place.join(format!("usr/local/share/man/man8/{page}.8"));
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(text.contains(".SH SYNOPSIS"), "{page} has no synopsis");
    }
    for name in ["mkfs.gfs2", "fsck.gfs2", "mount.fuse-gfs2", "gfs2ctl"] {
        for file in [
            format!("bash-completion/completions/{name}"),
            format!("zsh/site-functions/_{name}"),
            format!("fish/vendor_completions.d/{name}.fish"),
        ] {
            let text = fs::read_to_string(place.join("usr/local/share").join(&file))
                .unwrap_or_else(|e| panic!("{file}: {e}"));
            assert!(text.contains(name), "{file} does not complete {name}");
        }
    }
}

#[test]
fn uninstall_leaves_nothing() {
    let dir = support::scratch("uninstall");
    let destdir = dir.path().to_str().unwrap();
    xtask(&[
        "install",
        "--destdir",
        destdir,
        "--prefix",
        "/usr",
        "--replace-gfs2-utils",
    ]);
    xtask(&[
        "uninstall",
        "--destdir",
        destdir,
        "--prefix",
        "/usr",
        "--replace-gfs2-utils",
    ]);
    let left = Host::new("find")
        .arg(dir.path())
        .args(["-not", "-type", "d"])
        .check();
    assert_eq!(left, "", "left behind");
}

#[test]
fn a_line_in_fstab_mounts_and_umount_leaves_a_clean_journal() {
    let dir = support::scratch("fstab");
    let image = sparse(&dir.path().join("volume.img"), 256 * MIB);
    ours::mkfs(&image, &["-p", "lock_nolock", "-J", "8"]);
    let target = dir.path().join("data");
    fs::create_dir(&target).unwrap();
    let (image, target) = (image.display(), target.display());
    let fstab = format!("{image} {target} fuse-gfs2 defaults,noatime,nofail,x-systemd.x=1 0 0\n");
    let said = with_system(
        &fstab,
        &format!(
            "mount {target}\n\
             grep '^{image} {target} fuse.gfs2 rw,' /proc/mounts\n\
             mkdir {target}/d; echo kept >{target}/d/f; cp /etc/services {target}/d/ || true\n\
             mount -o remount,ro {image} {target}; ! touch {target}/no 2>/dev/null\n\
             umount {target}\n\
             fsck.gfs2 -n {image}\n\
             fsck -t fuse-gfs2 {image} -- -n\n\
             mount -a; cat {target}/d/f; umount {image}\n\
             mount -t fuse.gfs2 -o ro {image} {target}; cat {target}/d/f; umount {target}\n"
        ),
    );
    assert_eq!(said.matches("kept").count(), 2, "{said}");
    // Both looks: the exit code alone would pass over a journal that was left dirty.
    assert_eq!(said.matches(": clean, ").count(), 2, "{said}");
}

/// The fenced shell blocks of the README, in order.
fn readme_blocks() -> Vec<String> {
    let text = fs::read_to_string(checkout().join("README.md")).unwrap();
    let blocks = text
        .split("```sh\n")
        .skip(1)
        .map(|b| b.split("```").next().unwrap().to_owned());
    blocks.collect()
}

#[test]
fn the_two_commands_of_the_readme_are_the_demo_and_these_tests() {
    let first = &readme_blocks()[0];
    let commands: Vec<&str> = first
        .lines()
        .map(|l| l.split('#').next().unwrap().trim())
        .collect();
    assert_eq!(commands, ["cargo xtask demo", "cargo xtask test"]);
    let said = xtask(&["demo"]);
    for step in [
        "make the filesystem",
        "mount it",
        "every byte is what was written",
        ": clean, ",
        "done:",
    ] {
        assert!(said.contains(step), "the demo did not say '{step}':\n{said}");
    }
    // The second command runs this test; .ci/run is that command.
    let ci = fs::read_to_string(checkout().join(".ci/run")).unwrap();
    assert!(ci.contains("cargo xtask test"), "{ci}");
}

#[test]
fn the_other_commands_of_the_readme_work_as_written() {
    let blocks = readme_blocks();
    assert_eq!(blocks.len(), 3, "a block without a test");
    let install = blocks[1]
        .lines()
        .next()
        .unwrap()
        .split('#')
        .next()
        .unwrap()
        .trim();
    assert_eq!(install, "cargo xtask install", "what installed() runs");
    let dir = support::scratch("readme");
    let image = sparse(&dir.path().join("volume.img"), 256 * MIB);
    let device = Loop::attach(&image);
    let target: PathBuf = dir.path().join("data");
    fs::create_dir(&target).unwrap();
    let script = blocks[2]
        .replace("/dev/sdb", device.device().to_str().unwrap())
        .replace("/data", target.to_str().unwrap())
        // Nobody is there to answer the question.
        .replace("mkfs.gfs2 ", "mkfs.gfs2 -O ");
    let writable = "mkdir -p /run/etc; mount -t tmpfs tmpfs /run/etc; touch /run/etc/fstab; mount --bind /run/etc/fstab /etc/fstab\n";
    let said = with_system("", &format!("{writable}{script}"));
    assert!(said.contains(": clean, "), "{said}");
}

#[test]
fn umount_of_the_directory_returns_when_the_journal_is_clean() {
    let dir = support::scratch("umount");
    let image = sparse(&dir.path().join("volume.img"), 512 * MIB);
    let device = Loop::attach(&image);
    let target: PathBuf = dir.path().join("data");
    fs::create_dir(&target).unwrap();
    let (device, target) = (device.device().display(), target.display());
    // Much to write at the end; whoever still has the device has a lock on it.
    let round = format!(
        "mount -t fuse-gfs2 -o _netdev {device} {target}; grep -c ' TARGET={target} ' /run/mount/utab\n\
         for n in 1 2 3 4; do dd if=/dev/zero of={target}/$n bs=1M count=24 status=none; done\n\
         umount {target}; flock -n -x {device} echo free; mkdir {target}/x; rmdir {target}/x\n\
         ! grep ' TARGET={target} ' /run/mount/utab\n"
    );
    let said = with_system(
        "",
        &format!(
            "mkfs.gfs2 -q -O -p lock_nolock -J 8 {device}\n{round}{round}fsck.gfs2 --dry-run -q {device}\n"
        ),
    );
    assert_eq!(said.matches("free").count(), 2, "{said}");
}

#[test]
fn every_program_says_how_it_is_used() {
    for name in ["mkfs-gfs2", "fsck-gfs2", "mount-fuse-gfs2", "gfs2ctl"] {
        let output = Command::new(ours::program(name)).arg("-h").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &ours::errors(&output);
        assert!(text.to_lowercase().contains("usage"), "{name} -h: {text}");
    }
}
