//! Goal: what an operation costs in FUSE requests is known, through the real kernel and the real daemon, and does not
//! grow. Method: the daemon counts what it is asked (SIGUSR1 has it say so); a workload of many equal operations, once
//! on a mount that knows everything and once on one that was just mounted, is compared with the table here, exactly.
//! What the device and the log are asked is the business of `src/ops/tests/amplify.rs`.
//!
//! One operation that changes a directory makes the kernel ask for the directory's attributes before it walks through
//! it again: no answer to such an operation carries them.

mod ours;
mod support;

use ours::{mkfs, program};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::host::sparse;

const PATIENCE: Duration = Duration::from_secs(60);
/// Operations of a workload.
const MANY: u64 = 200;
/// Directories of the tree, and files in each.
const FOLDERS: u64 = 12;
const FILES: u64 = 20;

type Counts = BTreeMap<String, u64>;

/// A mount whose daemon stays in the foreground and writes its log where the test reads it.
struct Daemon {
    process: Child,
    log: PathBuf,
    target: PathBuf,
}

impl Daemon {
    /// A mount whose root has been looked at: what every use begins with, and whether there are birth times (the kernel
    /// tries STATX once in a mount's life), is no part of any count.
    fn new(dir: &Path, image: &Path) -> Self {
        let daemon = Self::unused(dir, image, "noatime");
        fs::metadata(&daemon.target).unwrap();
        daemon
    }

    fn unused(dir: &Path, image: &Path, options: &str) -> Self {
        let (log, target) = (dir.join("daemon.log"), dir.join("mnt"));
        fs::create_dir_all(&target).unwrap();
        let process = Command::new(program("mount-fuse-gfs2"))
            .args(["-F", "-o", options])
            .args([image, &target])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut daemon = Self { process, log, target };
        // Not by a look at the mount: nobody is to ask it for anything but the test's work. This thread is the last that
        // a mount begins; signals are listened to before.
        daemon.wait_for("the mount", |daemon| mounted(&daemon.target).is_some());
        daemon.wait_for("the remount's thread", |daemon| daemon.has_thread("gfs2-control"));
        daemon
    }

    fn wait_for(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none(), "{what}: the daemon has ended: {}", self.said());
            assert!(Instant::now() < end, "{what} did not come: {}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn has_thread(&self, name: &str) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id()));
        tasks.unwrap().flatten().any(|task| {
            // One that ends meanwhile has no name any more.
            fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
        })
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    fn reports(&self) -> usize {
        self.said().matches("requests:").count()
    }

    /// The requests so far.
    fn counts(&mut self) -> Counts {
        let before = self.reports();
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
        self.wait_for("the report", |daemon| {
            daemon.reports() > before && daemon.said().ends_with('\n')
        });
        let said = self.said();
        let (_, last) = said.rsplit_once("requests:").unwrap();
        let words = last.lines().next().unwrap_or_default().split_whitespace();
        words
            .map(|word| {
                let (name, count) = word.split_once('=').unwrap();
                (name.to_owned(), count.parse().unwrap())
            })
            .collect()
    }

    /// The requests that `work` causes: what the kernel only sends some time later (the end of a handle, of a
    /// knowledge) is waited for or left out.
    fn requests(&mut self, work: impl FnOnce(&Path)) -> Counts {
        let before = self.counts();
        work(&self.target);
        let since = |after: Counts| -> Counts {
            let changed = after.into_iter().map(|(name, count)| {
                let old = before.get(&name).copied().unwrap_or(0);
                (name, count - old)
            });
            changed.filter(|(_, count)| *count > 0).collect()
        };
        let end = Instant::now() + PATIENCE;
        loop {
            let mut counts = since(self.counts());
            let count = |name: &str| counts.get(name).copied().unwrap_or(0);
            let open = count("open") + count("create") > count("release");
            if !open {
                counts.retain(|name, _| !name.contains("forget"));
                return counts;
            }
            assert!(Instant::now() < end, "handles stay open: {counts:?}");
        }
    }

    fn unmount(mut self) {
        rustix::mount::unmount(&self.target, rustix::mount::UnmountFlags::empty()).unwrap();
        let status = self.process.wait().unwrap();
        assert!(status.success(), "{}", self.said());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = rustix::mount::unmount(&self.target, rustix::mount::UnmountFlags::DETACH);
            let _ = self.process.wait();
        }
    }
}

/// The device number of the mount there, as `/proc` has it.
fn mounted(target: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let at = |line: &&str| line.split(' ').nth(4) == target.to_str();
    let line = table.lines().rev().find(at)?;
    line.split(' ').nth(2).map(str::to_owned)
}

/// `lookup=3 create=1`, as a table.
fn table(text: &str) -> Counts {
    let words = text.split_whitespace().map(|word| word.split_once('=').unwrap());
    words
        .map(|(name, count)| (name.to_owned(), count.parse().unwrap()))
        .collect()
}

/// So many of each, and these once or twice.
fn times(count: u64, each: &str, more: &str) -> Counts {
    let mut all = table(more);
    for (name, n) in table(each) {
        *all.entry(name).or_default() += n * count;
    }
    all
}

fn file(root: &Path, n: u64, suffix: &str) -> PathBuf {
    root.join(format!("many/file-{n:04}{suffix}"))
}

/// Goal: what a test counts is what it asked for. Method: a mount that nobody uses, by both transports, has served
/// nothing, though its read-ahead is set and its remount socket is there.
#[test]
fn a_mount_that_nobody_uses_is_asked_nothing() {
    let dir = support::scratch("requests");
    let image = sparse(&dir.path().join("volume.img"), 256 << 20);
    mkfs(&image, &["-p", "lock_nolock", "-j", "1"]);
    for options in [
        "no_io_uring",
        "io_uring",
        "busy_poll=200",
        "writeback_cache",
        "ro",
    ] {
        let mut daemon = Daemon::unused(dir.path(), &image, options);
        let device = mounted(&daemon.target).unwrap();
        let knob = fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb")).unwrap();
        assert_eq!(knob.trim(), "1024", "{options}: read-ahead");
        assert_eq!(daemon.counts(), Counts::new(), "{options}");
        daemon.unmount();
    }
}

/// Goal: mounts do not ask each other: one whose daemon is stuck would hold up the next. Method: another volume is mounted
/// and unmounted meanwhile, as mount(8) does it.
#[test]
fn a_mount_asks_no_other_mount() {
    let dir = support::scratch("requests");
    let image = |name: &str| {
        let image = sparse(&dir.path().join(name), 256 << 20);
        mkfs(&image, &["-p", "lock_nolock", "-j", "1"]);
        image
    };
    let (first, second) = (image("first.img"), image("second.img"));
    let mut daemon = Daemon::unused(dir.path(), &first, "noatime");
    for _ in 0..2 {
        let other = ours::Mount::new(&second, "");
        fs::write(other.join("file"), "x").unwrap();
        other.unmount();
    }
    assert_eq!(daemon.counts(), Counts::new());
    daemon.unmount();
}

#[test]
fn operations_cost_the_requests_they_did() {
    let dir = support::scratch("requests");
    let image = sparse(&dir.path().join("volume.img"), 256 << 20);
    mkfs(&image, &["-p", "lock_nolock", "-j", "1"]);
    let mut warm = Daemon::new(dir.path(), &image);
    fs::create_dir(warm.target.join("many")).unwrap();
    let create = warm.requests(|root| {
        for n in 0..MANY {
            File::create_new(file(root, n, ""))
                .unwrap()
                .write_all(&[7; 100])
                .unwrap();
        }
    });
    // GETXATTR: may the first write have to take a capability off? GETATTR: of the root, which the directory was made
    // in, before the first one, then of the directory.
    let each = "lookup=1 create=1 getxattr=1 write=1 release=1 getattr=1";
    assert_eq!(create, times(MANY, each, ""), "create and write");
    let stat = |root: &Path| {
        for n in 0..MANY {
            assert_eq!(fs::metadata(file(root, n * 83 % MANY, "")).unwrap().len(), 100);
        }
    };
    // A write changes times and size.
    let first = warm.requests(stat);
    assert_eq!(first, times(MANY, "getattr=1", "getattr=1"), "stat after a write");
    assert_eq!(warm.requests(stat), Counts::new(), "stat of what is known");
    let rename = warm.requests(|root| {
        for n in 0..MANY {
            fs::rename(file(root, n, ""), file(root, n, ".r")).unwrap();
        }
    });
    // The directory was known before the first one.
    let each = "lookup=1 rename=1 getattr=1";
    assert_eq!(rename, less_one(times(MANY, each, ""), "getattr"), "rename");
    for n in 0..MANY {
        fs::rename(file(&warm.target, n, ".r"), file(&warm.target, n, "")).unwrap();
    }
    warm.unmount();
    let mut cold = Daemon::new(dir.path(), &image);
    let count = cold.requests(stat);
    assert_eq!(count, times(MANY, "lookup=1", "lookup=1"), "stat, cold");
    cold.unmount();
    let mut cold = Daemon::new(dir.path(), &image);
    let read = cold.requests(|root| {
        for n in 0..MANY {
            assert_eq!(fs::read(file(root, n, "")).unwrap().len(), 100);
        }
    });
    let each = "lookup=1 open=1 read=1 release=1";
    assert_eq!(read, times(MANY, each, "lookup=1"), "open, read, close, cold");
    cold.unmount();
    let mut cold = Daemon::new(dir.path(), &image);
    let unlink = cold.requests(|root| {
        for n in 0..MANY {
            fs::remove_file(file(root, n, "")).unwrap();
        }
    });
    let each = "lookup=1 unlink=1 getattr=1";
    assert_eq!(
        unlink,
        less_one(times(MANY, each, "lookup=1"), "getattr"),
        "unlink, cold"
    );
    cold.unmount();
    support::host::assert_fsck_clean(&image);
}

fn less_one(mut counts: Counts, name: &str) -> Counts {
    *counts.get_mut(name).unwrap() -= 1;
    counts
}

/// Runs a program over the tree.
fn over(root: &Path, program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).current_dir(root).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let failed = !output.status.success() && program != "grep";
    assert!(!failed, "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

fn make_tar(dir: &Path) -> PathBuf {
    let top = dir.join("source/tree");
    for folder in 0..FOLDERS {
        let folder = top.join(format!("folder-{folder:02}"));
        fs::create_dir_all(&folder).unwrap();
        for n in 0..FILES {
            fs::write(folder.join(format!("file-{n:02}.c")), vec![b'a'; 3000]).unwrap();
        }
    }
    let tar = dir.join("tree.tar");
    let (archive, source) = (tar.to_string_lossy(), dir.join("source"));
    over(&source, "tar", &["cf", &archive, "tree"]);
    tar
}

#[test]
fn trees_cost_the_requests_they_did() {
    let dir = support::scratch("requests");
    let image = sparse(&dir.path().join("volume.img"), 256 << 20);
    mkfs(&image, &["-p", "lock_nolock", "-j", "1"]);
    let tar = make_tar(dir.path());
    let mut daemon = Daemon::new(dir.path(), &image);
    let untar = daemon.requests(|root| over(root, "tar", &["xf", &tar.to_string_lossy()]));
    let of = |name: &str| untar.get(name).copied().unwrap_or(0);
    let (folders, files) = (FOLDERS + 1, FOLDERS * FILES);
    assert_eq!((of("mkdir"), of("create")), (folders, files));
    // tar writes what it has of a record of 10 KiB: every third file or so in two pieces.
    assert!((files..=files * 3 / 2).contains(&of("write")), "untar: {untar:?}");
    // What tar asks for itself: times, owner and mode of each; before the first write and at the change of owner the
    // kernel looks for capabilities.
    assert!(of("setattr") <= 3 * (files + folders), "untar: {untar:?}");
    assert!(of("getxattr") <= 2 * files, "untar: {untar:?}");
    assert!(of("lookup") <= files + 2 * folders, "untar: {untar:?}");
    assert!(of("getattr") <= files + 2 * folders, "untar: {untar:?}");
    daemon.unmount();
    // Attributes come with the names: an entry costs no request of its own.
    let walks: [(&str, &[&str]); 2] = [("find", &["tree", "-ls"]), ("du", &["-s", "tree"])];
    for (program, args) in walks {
        let mut daemon = Daemon::new(dir.path(), &image);
        let walk = daemon.requests(|root| over(root, program, args));
        let of = |name: &str| walk.get(name).copied().unwrap_or(0);
        // Told once that directories have no handles, the kernel neither opens nor closes them.
        assert!(of("opendir") <= 1, "{program}: {walk:?}");
        assert_eq!(of("releasedir"), 0, "{program}: {walk:?}");
        assert!(
            of("readdirplus") + of("readdir") <= 2 * folders,
            "{program}: {walk:?}"
        );
        assert!(of("lookup") + of("getattr") <= 3, "{program}: {walk:?}");
        daemon.unmount();
    }
    let mut daemon = Daemon::new(dir.path(), &image);
    let remove = daemon.requests(|root| over(root, "rm", &["-r", "tree"]));
    let of = |name: &str| remove.get(name).copied().unwrap_or(0);
    assert_eq!((of("unlink"), of("rmdir")), (files, folders));
    assert!(of("lookup") <= 2, "rm: {remove:?}");
    // The directory's attributes, after each change of it.
    assert!(of("getattr") <= files + 2 * folders, "rm: {remove:?}");
    daemon.unmount();
    support::host::assert_fsck_clean(&image);
}
