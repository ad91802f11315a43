//! Goal: each way of mounting does what the kernel's does: read-only, spectator, read-only devices, the metadata view,
//! the commit timer, signals, a dead daemon; and mappings and direct I/O work through the transport. Method: the real
//! programs on image files and loop devices.

mod ours;
mod support;

use ours::{Mount, errors, is_of_the_dead, mkfs, program};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::host::{Host, Loop, assert_fsck_clean, reference_fsck, sparse};

const MIB: u64 = 1 << 20;

fn volume(dir: &Path) -> PathBuf {
    let image = sparse(&dir.join("volume.img"), 128 * MIB);
    mkfs(&image, &["-p", "lock_nolock", "-J", "8", "-j", "2"]);
    image
}

/// A volume whose journal is dirty, with `kept` fsynced in it.
fn dirty_volume(dir: &Path) -> PathBuf {
    let image = volume(dir);
    let mount = Mount::new(&image, "");
    write_synced(&mount.join("kept"), b"promised");
    mount.crash();
    image
}

fn write_synced(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_was_fsynced_survives_kill_9_and_the_volume_is_clean_after() {
    let dir = support::scratch("modes");
    let image = dirty_volume(dir.path());
    let mount = Mount::new(&image, "");
    assert_eq!(fs::read(mount.join("kept")).unwrap(), b"promised");
    mount.unmount();
    assert_fsck_clean(&image);
}

#[test]
fn a_read_only_mount_replays_and_refuses_changes() {
    let dir = support::scratch("modes");
    let image = dirty_volume(dir.path());
    let mount = Mount::new(&image, "ro");
    assert_eq!(fs::read(mount.join("kept")).unwrap(), b"promised");
    let error = File::create(mount.join("new")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    mount.unmount();
    assert_fsck_clean(&image);
    let before = fs::read(&image).unwrap();
    let mount = Mount::new(&image, "ro");
    fs::read(mount.join("kept")).unwrap();
    mount.unmount();
    assert!(
        before == fs::read(&image).unwrap(),
        "a clean volume was written by a read-only mount"
    );
}

#[test]
fn a_spectator_writes_nothing_and_refuses_a_dirty_journal() {
    let dir = support::scratch("modes");
    let image = dirty_volume(dir.path());
    for option in ["spectator", "norecovery"] {
        let before = fs::read(&image).unwrap();
        let (code, text) = Mount::try_new(&image, option).unwrap_err();
        assert_eq!(code, 32);
        assert!(
            text.contains("needs recovery") && text.contains("spectator"),
            "{text}"
        );
        assert!(before == fs::read(&image).unwrap(), "a refused mount wrote");
    }
    Mount::new(&image, "").unmount();
    let before = fs::read(&image).unwrap();
    let one = Mount::new(&image, "spectator");
    assert_eq!(fs::read(one.join("kept")).unwrap(), b"promised");
    assert_eq!(
        File::create(one.join("no")).unwrap_err().raw_os_error(),
        Some(libc::EROFS)
    );
    one.unmount();
    assert!(before == fs::read(&image).unwrap(), "a spectator wrote");
}

#[test]
fn a_read_only_device_is_read_when_clean_and_refused_when_dirty() {
    let dir = support::scratch("modes");
    let image = dirty_volume(dir.path());
    let device = Loop::attach(&image);
    let set = |flag: &str| Host::new("blockdev").arg(flag).arg(device.device()).check();
    // A loop device stays read-only for its next user too: whatever happens below, it is given back writable.
    struct Writable<'a>(&'a Loop);
    impl Drop for Writable<'_> {
        fn drop(&mut self) {
            let _ = Command::new("blockdev")
                .arg("--setrw")
                .arg(self.0.device())
                .status();
        }
    }
    let _writable = Writable(&device);
    set("--setro");
    let (code, text) = Mount::try_new(device.device(), "").unwrap_err();
    assert_eq!(code, 32);
    assert!(text.contains("cannot be written"), "{text}");
    set("--setrw");
    Mount::new(device.device(), "").unmount();
    set("--setro");
    let mount = Mount::new(device.device(), "ro");
    assert_eq!(fs::read(mount.join("kept")).unwrap(), b"promised");
    mount.unmount();
}

#[test]
fn the_metadata_view_shows_the_master_directory() {
    let dir = support::scratch("modes");
    let image = volume(dir.path());
    let mount = Mount::new(&image, "meta,ro");
    let mut names: Vec<String> = fs::read_dir(mount.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["inum", "jindex", "per_node", "quota", "rindex", "statfs"]);
    assert_eq!(
        fs::metadata(mount.join("jindex/journal1")).unwrap().len(),
        8 * MIB
    );
    mount.unmount();
}

#[test]
fn the_timer_commits_what_nobody_synced() {
    let dir = support::scratch("modes");
    let image = volume(dir.path());
    let mount = Mount::new(&image, "commit=1");
    fs::create_dir(mount.join("unsynced")).unwrap();
    let journal = |image: &Path| {
        let output = Command::new(program("gfs2ctl"))
            .args(["dump", image.to_str().unwrap(), "journal", "0"])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let before = journal(&image);
    wait_for("a commit by the timer", || journal(&image) != before);
    mount.crash();
    let mount = Mount::new(&image, "");
    assert!(mount.join("unsynced").is_dir());
    mount.unmount();
    assert_fsck_clean(&image);
}

#[test]
fn sigterm_unmounts_with_a_clean_journal() {
    let dir = support::scratch("modes");
    let image = volume(dir.path());
    let mount = Mount::new(&image, "");
    fs::write(mount.join("f"), "x").unwrap();
    let pid = mount.daemon().expect("a daemon");
    Host::new("kill").args(["-TERM", &pid.to_string()]).check();
    wait_for("the end of the daemon", || mount.daemon().is_none());
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(image.to_str().unwrap()), "still mounted");
    drop(mount);
    assert_fsck_clean(&image);
    let again = Mount::new(&image, "spectator");
    assert_eq!(fs::read_to_string(again.join("f")).unwrap(), "x");
    again.unmount();
}

#[test]
fn an_open_unlinked_file_of_a_crash_is_deallocated_at_the_next_mount() {
    let dir = support::scratch("modes");
    let image = volume(dir.path());
    let mount = Mount::new(&image, "");
    let open = File::create_new(mount.join("ghost")).unwrap();
    let reader = File::open(mount.join("ghost")).unwrap();
    open.write_all_at(&vec![7; 3 << 20], 0).unwrap();
    fs::remove_file(mount.join("ghost")).unwrap();
    open.sync_all().unwrap();
    let mut still = vec![0; 5];
    reader.read_exact_at(&mut still, 1 << 20).unwrap();
    assert_eq!(still, [7; 5], "an unlinked file is readable while open");
    mount.crash();
    drop((open, reader));
    let mount = Mount::new(&image, "");
    mount.unmount();
    // The scan for orphans may have been cut short by the unmount; a second mount has the time it needs.
    let mount = Mount::new(&image, "");
    wait_for("the orphan's deallocation", || {
        let output = Host::new(program("gfs2ctl"))
            .args(["dump", image.to_str().unwrap(), "rgrps"])
            .run();
        output.rc == 0 && !output.output.contains("unlinked 1")
    });
    mount.unmount();
    assert_fsck_clean(&image);
}

#[test]
fn direct_io_agrees_with_read_and_write() {
    let dir = support::scratch("modes");
    let image = volume(dir.path());
    let mount = Mount::new(&image, "");
    let path = mount.join("mapped");
    fs::write(&path, vec![1u8; 3 * 4096 + 17]).unwrap();
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .unwrap();
    let mut block = gfs2_format::device::AlignedBuf::zeroed(4096);
    block.fill(9);
    direct.write_all_at(&block, 4096).unwrap();
    let mut seen = vec![0; 4096];
    File::open(&path).unwrap().read_exact_at(&mut seen, 4096).unwrap();
    assert!(
        seen.iter().all(|b| *b == 9),
        "a direct write is seen by a buffered read"
    );
    let mut buffered = OpenOptions::new().write(true).open(&path).unwrap();
    buffered.seek(SeekFrom::Start(0)).unwrap();
    buffered.write_all(&[5; 4096]).unwrap();
    direct.read_exact_at(&mut block, 0).unwrap();
    assert!(
        block.iter().all(|b| *b == 5),
        "a buffered write is seen by a direct read"
    );
    assert_eq!(fs::metadata(&path).unwrap().len(), 3 * 4096 + 17);
    drop((direct, buffered));
    mount.unmount();
    assert_fsck_clean(&image);
}

#[test]
fn a_store_through_a_shared_mapping_reaches_the_file() {
    let dir = support::scratch("modes");
    let image = volume(dir.path());
    let mount = Mount::new(&image, "");
    let path = mount.join("mapped");
    fs::write(&path, vec![0u8; 65536]).unwrap();
    // fio's mmap engine stores through a shared mapping and reads back with checksums.
    Host::new("fio")
        .args([
            "--name=map",
            "--ioengine=mmap",
            "--rw=randrw",
            "--bs=4k",
            "--size=64k",
            "--io_size=2m",
        ])
        .args([
            "--verify=crc32c",
            "--verify_state_save=0",
            "--do_verify=1",
            "--fsync=16",
            "--output-format=terse",
        ])
        .arg(format!("--filename={}", path.display()))
        .check();
    let mut before = Vec::new();
    File::open(&path).unwrap().read_to_end(&mut before).unwrap();
    assert!(before.iter().any(|b| *b != 0), "the mapping wrote nothing");
    mount.unmount();
    let mount = Mount::new(&image, "");
    assert!(
        fs::read(mount.join("mapped")).unwrap() == before,
        "other bytes after a remount"
    );
    mount.unmount();
    assert_fsck_clean(&image);
}

#[test]
fn df_and_inode_numbers_are_those_of_the_volume() {
    let dir = support::scratch("modes");
    let image = volume(dir.path());
    let mount = Mount::new(&image, "");
    let root = fs::metadata(mount.path()).unwrap().ino();
    assert!(root > 16, "the root's inode number is its block, not {root}");
    let free = || {
        let text = Host::new("stat")
            .args(["-f", "-c", "%f"])
            .arg(mount.path())
            .check();
        text.trim().parse::<u64>().unwrap()
    };
    let before = free();
    fs::write(mount.join("f"), vec![1; 4 << 20]).unwrap();
    let after = free();
    assert!(
        before - after >= 1024 && before - after < 1100,
        "{before} to {after}"
    );
    fs::remove_file(mount.join("f")).unwrap();
    wait_for("the blocks of a deleted file", || free() == before);
    mount.unmount();
    assert_eq!(reference_fsck(&image).rc, 0);
}

#[test]
fn a_dead_daemon_leaves_errors_not_waits_and_the_volume_can_be_mounted_again() {
    let dir = support::scratch("modes");
    let image = volume(dir.path());
    let mount = Mount::new(&image, "");
    write_synced(&mount.join("kept"), b"promised");
    let open = File::open(mount.join("kept")).unwrap();
    let pid = mount.daemon().expect("a daemon");
    Host::new("kill").args(["-KILL", &pid.to_string()]).check();
    wait_for("the end of the daemon", || mount.daemon().is_none());
    let refused = |result: std::io::Result<()>| {
        let error = result.expect_err("an answer from a dead daemon");
        assert!(is_of_the_dead(&error), "{error}");
    };
    refused(fs::metadata(mount.join("other")).map(drop));
    refused(File::create(mount.join("new")).map(drop));
    refused(open.sync_all());
    drop(open);
    let (code, text) = Mount::try_new(&image, "").unwrap_err();
    assert!(code == 32 && text.contains("unmount it first"), "{code}: {text}");
    mount.unmount();
    let again = Mount::new(&image, "");
    assert_eq!(fs::read(again.join("kept")).unwrap(), b"promised");
    again.unmount();
    assert_fsck_clean(&image);
}

#[test]
fn unmounting_under_load_is_refused_as_busy_and_a_lazy_one_ends_when_the_load_does() {
    let dir = support::scratch("modes");
    let image = volume(dir.path());
    let mount = Mount::new(&image, "");
    let file = File::create(mount.join("busy")).unwrap();
    let daemon = mount.daemon().expect("a daemon");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut at = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                file.write_all_at(&[at as u8; 4096], at % 256 * 4096).unwrap();
                at += 1;
            }
        });
        let umount = |flag: &[&str]| {
            Command::new("umount")
                .args(flag)
                .arg(mount.path())
                .output()
                .unwrap()
        };
        let busy = umount(&[]);
        assert!(!busy.status.success());
        assert!(String::from_utf8_lossy(&busy.stderr).contains("busy"));
        assert!(umount(&["-l"]).status.success());
        assert!(!mount.join("busy").exists(), "the mount has left the tree");
        file.write_all_at(b"after", 0).unwrap();
        assert!(mount.daemon().is_some(), "what is open goes on");
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    file.sync_all().unwrap();
    drop(file);
    wait_for("the end of the daemon", || {
        !Path::new(&format!("/proc/{daemon}/exe")).exists()
    });
    drop(mount);
    assert_fsck_clean(&image);
    let again = Mount::new(&image, "spectator");
    assert_eq!(fs::metadata(again.join("busy")).unwrap().len() % 4096, 0);
    again.unmount();
}

#[test]
fn the_daemon_has_its_name_and_counts_requests() {
    let dir = support::scratch("modes");
    let image = volume(dir.path());
    let mount = Mount::new(&image, "");
    let pid = mount.daemon().expect("a daemon");
    assert_eq!(
        fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(),
        "mount.fuse-gfs2\n"
    );
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(line.starts_with(b"mount.fuse-gfs2\0"));
    mount.unmount();
    // In the foreground, where the log is ours to read.
    let folder = support::scratch("modes");
    let target = folder.path().join("mnt");
    fs::create_dir(&target).unwrap();
    let log = folder.path().join("log");
    let mut daemon = Command::new(program("mount-fuse-gfs2"))
        .arg("-F")
        .args([&image, &target])
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mounted = || {
        fs::read_to_string("/proc/mounts")
            .unwrap()
            .contains(target.to_str().unwrap())
    };
    wait_for("the mount", mounted);
    fs::create_dir(target.join("counted")).unwrap();
    let signal = |name: &str| Host::new("kill").args([name, &daemon.id().to_string()]).check();
    signal("-USR1");
    let counted = || {
        let text = fs::read_to_string(&log).unwrap();
        text.lines()
            .any(|line| line.contains("requests: ") && line.contains("mkdir=1"))
    };
    wait_for("the counts", counted);
    signal("-TERM");
    assert!(daemon.wait().unwrap().success());
    assert_fsck_clean(&image);
}

/// `mount -o remount,OPTIONS` as the helper is called for it: the exit code, and what was said.
fn remount(image: &Path, mount: &Mount, options: &str) -> (Option<i32>, String) {
    let output = Command::new(program("mount-fuse-gfs2"))
        .args(["-o", &format!("remount,{options}")])
        .arg(image)
        .arg(mount.path())
        .output()
        .unwrap();
    (output.status.code(), errors(&output))
}

#[track_caller]
fn assert_remounts(image: &Path, mount: &Mount, options: &str) {
    assert_eq!(
        remount(image, mount, options),
        (Some(0), String::new()),
        "{options}"
    );
}

/// The image as it is now, looked at by the reference checker, which replays nothing.
#[track_caller]
fn assert_clean_now(image: &Path) {
    let copy = image.with_extension("copy");
    Host::new("cp")
        .arg("--sparse=always")
        .arg(image)
        .arg(&copy)
        .check();
    assert_fsck_clean(&copy);
    fs::remove_file(&copy).unwrap();
}

#[track_caller]
fn assert_read_only(mount: &Mount) {
    let error = File::create(mount.join("refused")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
}

#[test]
fn a_mount_is_made_writable_and_read_only_again_with_its_journal() {
    let dir = support::scratch("modes");
    let image = dirty_volume(dir.path());
    let mount = Mount::new(&image, "ro");
    assert_read_only(&mount);
    assert_remounts(&image, &mount, "rw");
    assert_eq!(fs::read(mount.join("kept")).unwrap(), b"promised");
    write_synced(&mount.join("one"), b"first");
    // Whoever may write keeps it from going.
    let writer = File::options().append(true).open(mount.join("one")).unwrap();
    let (code, text) = remount(&image, &mount, "ro");
    assert_eq!(code, Some(32));
    assert!(text.contains("busy"), "{text}");
    drop(writer);
    // So does what is open and has no name.
    write_synced(&mount.join("nameless"), &[7; 300_000]);
    let nameless = File::open(mount.join("nameless")).unwrap();
    fs::remove_file(mount.join("nameless")).unwrap();
    assert_eq!(remount(&image, &mount, "ro").0, Some(32));
    write_synced(&mount.join("two"), b"second");
    drop(nameless);
    fs::write(mount.join("three"), b"nobody waited for it").unwrap();
    // Another test's fork has our open files for a moment.
    wait_for("the end of all writing", || {
        remount(&image, &mount, "ro").0 == Some(0)
    });
    assert_read_only(&mount);
    assert_clean_now(&image);
    let before = fs::read(&image).unwrap();
    assert_eq!(fs::read(mount.join("three")).unwrap(), b"nobody waited for it");
    assert_remounts(&image, &mount, "ro,noatime");
    assert!(before == fs::read(&image).unwrap(), "read-only, it wrote");
    // Live again: what is fsynced survives, and what was written lazily arrives.
    assert_remounts(&image, &mount, "rw");
    write_synced(&mount.join("four"), b"fourth");
    mount.crash();
    let mount = Mount::new(&image, "");
    for (name, text) in [("kept", "promised"), ("two", "second"), ("four", "fourth")] {
        assert_eq!(fs::read_to_string(mount.join(name)).unwrap(), text);
    }
    // From the other end: as it was left, the journal needs nobody.
    wait_for("the end of all writing", || {
        remount(&image, &mount, "ro").0 == Some(0)
    });
    mount.crash();
    let mount = Mount::new(&image, "spectator");
    assert_eq!(fs::read_to_string(mount.join("four")).unwrap(), "fourth");
    let (code, text) = remount(&image, &mount, "rw");
    assert_eq!(code, Some(32));
    assert!(text.contains("spectator") && text.contains("read-only"), "{text}");
    assert_read_only(&mount);
    mount.unmount();
    assert_fsck_clean(&image);
}

#[test]
fn a_mount_of_a_device_that_cannot_be_written_stays_read_only() {
    let dir = support::scratch("modes");
    let image = volume(dir.path());
    let device = Loop::attach(&image);
    let set = |flag: &str| Host::new("blockdev").arg(flag).arg(device.device()).check();
    struct Writable<'a>(&'a Loop);
    impl Drop for Writable<'_> {
        fn drop(&mut self) {
            let _ = Command::new("blockdev")
                .arg("--setrw")
                .arg(self.0.device())
                .status();
        }
    }
    let _writable = Writable(&device);
    set("--setro");
    let mount = Mount::new(device.device(), "ro");
    let (code, text) = remount(device.device(), &mount, "rw");
    assert_eq!(code, Some(32));
    assert!(text.contains("the device cannot be written"), "{text}");
    assert_read_only(&mount);
    mount.unmount();
}

/// The times of a symlink's last access and change of contents are set to these seconds; then somebody reads it.
fn read_link_of(path: &Path, atime: i64, mtime: i64) -> i64 {
    let at = |tv_sec| rustix::fs::Timespec { tv_sec, tv_nsec: 0 };
    let times = rustix::fs::Timestamps {
        last_access: at(atime),
        last_modification: at(mtime),
    };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
    assert_eq!(fs::read_link(path).unwrap(), Path::new("target"));
    fs::symlink_metadata(path).unwrap().atime()
}

/// The kernel keeps the targets of symlinks, and so reads that move no access time, but where each must move it.
#[test]
fn reading_a_symlink_moves_its_access_time_as_it_should() {
    let dir = support::scratch("modes");
    let image = volume(dir.path());
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64;
    let link = |mount: &Mount| mount.join("link");
    let mount = Mount::new(&image, "strictatime");
    std::os::unix::fs::symlink("target", link(&mount)).unwrap();
    for _ in 0..3 {
        assert!(
            read_link_of(&link(&mount), now - 100, now - 200) >= now,
            "strictatime"
        );
    }
    mount.unmount();
    let mount = Mount::new(&image, "noatime");
    for _ in 0..2 {
        assert_eq!(
            read_link_of(&link(&mount), now - 100, now - 200),
            now - 100,
            "noatime"
        );
    }
    mount.unmount();
    let mount = Mount::new(&image, "relatime");
    // The first read reaches us. Setting the times has changed the inode after its last access.
    assert!(
        read_link_of(&link(&mount), now - 100, now - 200) >= now,
        "relatime"
    );
    mount.unmount();
}

#[test]
fn processors_are_kept_awake_by_threads_that_give_way() {
    let dir = support::scratch("modes");
    let image = volume(dir.path());
    for (option, wrong) in [
        ("busy_poll=100001", true),
        ("busy_poll=", true),
        ("busy_poll=0", false),
    ] {
        match Mount::try_new(&image, option) {
            Err((code, text)) => assert!(wrong && code == 1 && text.contains("busy_poll"), "{text}"),
            Ok(mount) => {
                assert!(!wrong, "{option} was taken");
                assert!(awake_threads(&mount).is_empty());
                mount.unmount();
            }
        }
    }
    let mount = Mount::new(&image, "busy_poll=200");
    let processors = rustix::thread::sched_getaffinity(None).unwrap().count() as usize;
    let threads = awake_threads(&mount);
    if processors <= 16 {
        assert_eq!(threads, vec![libc::SCHED_IDLE; processors]);
    } else {
        assert!(threads.is_empty(), "{threads:?}");
    }
    for n in 0..200 {
        fs::write(mount.join(format!("{n}")), b"abc").unwrap();
    }
    mount.unmount();
    assert_fsck_clean(&image);
}

/// The scheduling policies of the daemon's threads that keep processors awake.
fn awake_threads(mount: &Mount) -> Vec<i32> {
    let pid = mount.daemon().expect("a daemon");
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let policy = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("stat")).ok()?;
        let (name, rest) = text.rsplit_once(')')?;
        let policy = rest.split_whitespace().nth(38)?;
        name.contains("gfs2-awake-").then(|| policy.parse().unwrap())
    };
    tasks.flatten().filter_map(policy).collect()
}
