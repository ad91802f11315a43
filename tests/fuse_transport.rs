//! Goal: the transport does what FUSE's own documents promise and the crates for it do not: whoever is killed while he
//! waits dies, waiting requests keep nobody else from being served, set-id bits go when they must, no time is too early,
//! and an operation costs the requests it must cost and no more. Method: a mount served by this process, whose locks
//! the test can hold; every test by `/dev/fuse` and, where the kernel has it, by io_uring.

mod ours;
mod support;

use fuse_gfs2::fuse::{MountedFuse, ServeOptions, Transport, mount, serve};
use fuse_gfs2::glock::{GlockGuard, GlockName, HolderFlags, State};
use fuse_gfs2::mount::options::MountOptions;
use fuse_gfs2::mount::start::{Plan, Started, start};
use fuse_gfs2::ops::OpenFlags;
use gfs2_format::device::MemDevice;
use gfs2_format::volume::Volume;
use gfs2_format::{BlockAddr, Jid};
use rustix::mount::MountFlags;
use rustix::thread::{Gid, Uid};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const TTL: Duration = Duration::from_secs(1 << 30);
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the tests over both transports.
macro_rules! over_both {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        mod device {
            $(#[test] fn $name() { super::$name(super::Transport::Device) })*
        }
        mod ring {
            $(#[test] fn $name() {
                if let Some(_enabled) = super::Enabled::take() {
                    super::$name(super::Transport::Ring);
                }
            })*
        }
    };
}

over_both!(
    a_process_that_is_killed_while_it_waits_for_a_lock_dies,
    requests_that_wait_keep_nobody_else_from_being_served,
    an_operation_costs_no_more_requests_than_it_must,
    set_id_bits_go_when_somebody_without_the_right_writes_truncates_or_sets_an_acl,
    a_program_that_runs_is_not_changed,
    no_time_is_too_early_or_too_late,
    a_cached_write_is_seen_appended_truncated_and_kept,
    pages_written_back_leave_the_times_to_the_kernel_that_keeps_them,
    a_cached_write_that_finds_no_room_is_told_at_fsync,
    the_end_of_a_connection_ends_what_waits,
    a_lazy_unmount_ends_when_the_last_file_is_closed,
    a_daemon_that_is_killed_leaves_errors_and_a_mount_that_can_be_made_again,
);

/// The kernel's parameter for io_uring is as it was once nobody needs it any more.
struct Enabled;

static ENABLED: Mutex<(usize, String)> = Mutex::new((0, String::new()));
const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";

impl Enabled {
    fn take() -> Option<Self> {
        let mut users = ENABLED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match fs::read_to_string(PARAMETER) {
            Ok(text) if users.0 == 0 => users.1 = text,
            Ok(_) => {}
            Err(error) => {
                eprintln!("only by /dev/fuse: the kernel has no FUSE over io_uring ({PARAMETER}: {error})");
                return None;
            }
        }
        users.0 += 1;
        Some(Self)
    }
}

impl Drop for Enabled {
    fn drop(&mut self) {
        let mut users = ENABLED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        users.0 -= 1;
        if users.0 == 0 {
            fs::write(PARAMETER, users.1.trim()).expect("the parameter as it was");
        }
    }
}

/// A volume in memory, mounted and served here.
struct Rig {
    folder: TempDir,
    transport: Transport,
    started: Option<Arc<Started>>,
    server: Option<JoinHandle<std::io::Result<()>>>,
}

impl Rig {
    fn new(transport: Transport, writeback_cache: bool, acl: bool) -> Self {
        let device = Arc::new(MemDevice::new(256 << 20));
        let options = gfs2_mkfs::Options {
            journal_mb: Some(32),
            ..gfs2_mkfs::Options::nolock()
        };
        gfs2_mkfs::format(device.as_ref(), &options).expect("mkfs");
        let options = MountOptions {
            acl,
            ..MountOptions::default()
        };
        let volume = Volume::open(device.as_ref()).expect("a volume");
        let plan = Plan {
            device,
            writable: true,
            options: &options,
            volume,
            jid: Jid::new(0),
        };
        let started = Arc::new(start(plan).expect("a filesystem"));
        let folder = tempfile::Builder::new()
            .prefix("gfs2-transport-")
            .tempdir()
            .expect("a folder");
        let mounted = mount(
            Path::new("memory"),
            folder.path(),
            "fuse.gfs2",
            MountFlags::empty(),
            transport,
        )
        .expect("a mount");
        let options = ServeOptions {
            acl,
            ttl: TTL,
            cache_dirs: true,
            writeback_cache,
            busy_poll: Duration::ZERO,
        };
        let server = Self::serve(Arc::clone(&started), mounted, options);
        Self {
            folder,
            transport,
            started: Some(started),
            server: Some(server),
        }
    }

    fn serve(
        started: Arc<Started>,
        mounted: MountedFuse,
        options: ServeOptions,
    ) -> JoinHandle<std::io::Result<()>> {
        let (tell, told) = std::sync::mpsc::channel();
        let server = std::thread::spawn(move || {
            let ready = move || tell.send(()).expect("a test that waits");
            serve(&started.fs, mounted, options, &started.notifications, ready)
        });
        told.recv_timeout(PATIENCE).expect("a mount that is live");
        server
    }

    fn started(&self) -> &Arc<Started> {
        self.started.as_ref().expect("a live mount")
    }

    fn join(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Keeps everybody from the inode of a path.
    fn hold(&self, path: &Path) -> GlockGuard {
        let inode = fs::metadata(path).expect("an inode").ino();
        let glock = self
            .started()
            .glocks()
            .find(GlockName::inode(inode))
            .expect("a lock in use");
        glock.acquire(State::Ex, HolderFlags::empty()).expect("the lock")
    }

    fn waits(&self) -> u64 {
        self.started().glocks().stats().waits
    }

    /// The requests that `act` causes.
    fn requests(&self, act: impl FnOnce()) -> BTreeMap<String, u64> {
        let counters = self.started().notifications.counters();
        let before: BTreeMap<_, _> = counters.snapshot().into_iter().collect();
        act();
        let after = counters.snapshot().into_iter();
        after
            .filter_map(|(name, count)| {
                let more = count - before.get(&name).copied().unwrap_or(0);
                // The kernel forgets and releases when it likes, and asks for a time of birth when some other program
                // looks at all mounts.
                let later = matches!(
                    name.as_str(),
                    "forget" | "batch_forget" | "release" | "releasedir" | "statx"
                );
                (more > 0 && !later).then_some((name, more))
            })
            .collect()
    }

    /// Waits for the end of who serves, and leaves the volume clean.
    fn end(mut self) {
        let server = self.server.take().expect("a server");
        server.join().expect("no panic").expect("served to the end");
        let started = self.started.take().expect("a live mount");
        let by_ring = started.notifications.counters().by_ring();
        assert_eq!(
            by_ring > 0,
            self.transport == Transport::Ring,
            "{by_ring} by a ring"
        );
        Arc::into_inner(started)
            .expect("nobody else")
            .shutdown()
            .expect("a clean end");
    }

    fn unmount(self) {
        until("a mount that is not busy", || {
            rustix::mount::unmount(self.folder.path(), rustix::mount::UnmountFlags::empty()).is_ok()
        });
        self.end();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.started.is_some() {
            let _ = rustix::mount::unmount(self.folder.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn mkdir(path: &Path) -> Child {
    let mut command = Command::new("mkdir");
    command.arg(path).stderr(Stdio::null());
    command.spawn().expect("mkdir")
}

fn stat(path: &Path) -> Child {
    let mut command = Command::new("stat");
    command.arg(path).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("stat")
}

/// Waits for the end of a process, which must come while it is killed and not when the lock is given back.
fn end_of(child: &mut Child) -> std::process::ExitStatus {
    let mut status = None;
    until("the end of a killed process", || {
        status = child.try_wait().expect("a child");
        status.is_some()
    });
    status.expect("an end")
}

fn a_process_that_is_killed_while_it_waits_for_a_lock_dies(transport: Transport) {
    let rig = Rig::new(transport, false, false);
    fs::create_dir(rig.join("held")).unwrap();
    let lock = rig.hold(&rig.join("held"));
    let before = rig.waits();
    let mut one = mkdir(&rig.join("held/one"));
    until("a request that waits", || rig.waits() > before);
    // Not every signal ends the wait: only what ends the process.
    rustix::process::kill_process(pid(&one), rustix::process::Signal::CONT).unwrap();
    assert!(one.try_wait().unwrap().is_none());
    one.kill().unwrap();
    assert!(!end_of(&mut one).success());
    // A process is out of its wait also when the deadly signal is not the first: this one stops it.
    let before = rig.waits();
    let mut two = mkdir(&rig.join("held/two"));
    until("a request that waits", || rig.waits() > before);
    rustix::process::kill_process(pid(&two), rustix::process::Signal::STOP).unwrap();
    until("the interrupt of a stopped process", || {
        let counts = rig.started().notifications.counters().snapshot();
        counts
            .iter()
            .any(|(name, count)| name == "interrupt" && *count >= 2)
    });
    two.kill().unwrap();
    assert!(!end_of(&mut two).success());
    drop(lock);
    assert!(!rig.join("held/one").exists() && !rig.join("held/two").exists());
    fs::create_dir(rig.join("held/one")).unwrap();
    rig.unmount();
}

fn pid(child: &Child) -> rustix::process::Pid {
    rustix::process::Pid::from_child(child)
}

fn counted(what: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for one in what {
        *counts.entry(one).or_default() += 1;
    }
    counts
}

/// The threads of this process, by name, the processor they stay on, and where in the kernel they are.
fn threads() -> BTreeMap<String, usize> {
    let tasks = fs::read_dir("/proc/self/task").expect("our threads").flatten();
    counted(tasks.map(|task| {
        let of = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let (name, place, syscall) = (of("comm"), of("wchan"), of("syscall"));
        let number = syscall
            .split(' ')
            .next()
            .unwrap_or_default()
            .trim_end()
            .to_owned();
        format!("{} {place} {number}", name.trim_end())
    }))
}

fn requests_that_wait_keep_nobody_else_from_being_served(transport: Transport) {
    let rig = Rig::new(transport, false, false);
    fs::create_dir(rig.join("held")).unwrap();
    fs::create_dir(rig.join("free")).unwrap();
    let lock = rig.hold(&rig.join("held"));
    let before = rig.waits();
    let look = |n: u32| stat(&rig.join(&format!("held/{n}")));
    let mut waiting: Vec<Child> = (0..90).map(look).collect();
    let end = Instant::now() + PATIENCE;
    while rig.waits() < before + 90
        && waiting
            .iter_mut()
            .all(|child| matches!(child.try_wait(), Ok(None)))
    {
        if Instant::now() > end {
            let asleep =
                |child: &Child| fs::read_to_string(format!("/proc/{}/wchan", child.id())).unwrap_or_default();
            let wait = counted(waiting.iter().map(asleep));
            panic!(
                "{} of ninety requests wait, processes in {wait:?}, threads {:?}, requests {:?}",
                rig.waits() - before,
                threads(),
                rig.started().notifications.counters()
            );
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let ended: Vec<_> = waiting
        .iter_mut()
        .filter_map(|child| child.try_wait().ok()?)
        .collect();
    assert!(ended.is_empty(), "somebody did not wait for the lock: {ended:?}");
    for n in 0..20 {
        let path = rig.join(&format!("free/{n}"));
        let mut file = File::create(&path).unwrap();
        file.write_all(&[7; 10_000]).unwrap();
        file.sync_all().unwrap();
        assert_eq!(fs::read(&path).unwrap(), [7; 10_000]);
    }
    drop(lock);
    for child in &mut waiting {
        assert_eq!(child.wait().unwrap().code(), Some(1), "there is no such file");
    }
    rig.unmount();
}

/// What the kernel asks for each time something is done, when it knows all that it may know. A line that grows is a price
/// that everybody pays. A kernel that checks permissions itself asks for the attributes of a directory again after each
/// change in it, and for the capability of a file before the first write after each look at its attributes.
fn an_operation_costs_no_more_requests_than_it_must(transport: Transport) {
    let rig = Rig::new(transport, false, false);
    fs::create_dir(rig.join("d")).unwrap();
    fs::write(rig.join("d/before"), "x").unwrap();
    let wrong = std::cell::RefCell::new(Vec::new());
    let costs = |text: &str, act: &dyn Fn()| {
        let got = rig.requests(act);
        let got: Vec<String> = got
            .iter()
            .map(|(name, count)| format!("{name}={count}"))
            .collect();
        if got.join(" ") != text {
            wrong
                .borrow_mut()
                .push(format!("'{}' instead of '{text}'", got.join(" ")));
        }
    };
    costs("create=1 getattr=1 getxattr=1 lookup=1 write=1", &|| {
        fs::write(rig.join("d/f"), [1; 100]).unwrap()
    });
    // The write has changed times and size.
    costs("getattr=2", &|| assert!(fs::metadata(rig.join("d/f")).is_ok()));
    costs("", &|| assert!(fs::metadata(rig.join("d/f")).is_ok()));
    costs("lookup=1", &|| assert!(!rig.join("d/none").exists()));
    costs("", &|| assert!(!rig.join("d/none").exists()));
    costs("open=1", &|| drop(File::open(rig.join("d/f")).unwrap()));
    costs("open=1 read=1", &|| drop(fs::read(rig.join("d/f")).unwrap()));
    // Reading may have moved the access time.
    costs("getattr=1 open=1", &|| drop(fs::read(rig.join("d/f")).unwrap()));
    costs("getxattr=1 open=1 setattr=1", &|| {
        drop(File::create(rig.join("d/f")).unwrap())
    });
    let mode = |mode| fs::set_permissions(rig.join("d/f"), fs::Permissions::from_mode(mode)).unwrap();
    costs("setattr=1", &|| mode(0o600));
    costs("lookup=1 rename2=1", &|| {
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            rig.join("d/f"),
            rustix::fs::CWD,
            rig.join("d/g"),
            rustix::fs::RenameFlags::NOREPLACE,
        )
        .unwrap();
    });
    costs("getattr=1 unlink=1", &|| {
        fs::remove_file(rig.join("d/g")).unwrap()
    });
    costs("getattr=1 lookup=1 mkdir=1", &|| {
        fs::create_dir(rig.join("d/e")).unwrap()
    });
    costs("getattr=1 rmdir=1", &|| fs::remove_dir(rig.join("d/e")).unwrap());
    for n in 0..100 {
        File::create(rig.join(&format!("d/{n}"))).unwrap();
    }
    let list = || assert_eq!(fs::read_dir(rig.join("d")).unwrap().count(), 101);
    let first = rig.requests(list);
    let reads: u64 = first
        .iter()
        .filter(|(name, _)| name.starts_with("readdir"))
        .map(|(_, count)| count)
        .sum();
    // A page of names with attributes holds about 25.
    assert!((2..=8).contains(&reads), "{first:?}");
    // Nothing is opened: the names are kept, and the first of the mount said that there are no handles.
    costs("getattr=1", &list);
    let wrong = wrong.into_inner();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    File::create(rig.join("d/last")).unwrap();
    assert_eq!(fs::read_dir(rig.join("d")).unwrap().count(), 102);
    rig.unmount();
}

/// Runs as somebody who is not root, in a thread of its own.
fn as_user(uid: u32, gid: u32, act: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            act();
        });
        thread.join().unwrap();
    });
}

/// An access ACL: owner, group and others.
fn access_acl(perms: [u16; 3]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, perm) in [1u16, 4, 0x20].into_iter().zip(perms) {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&perm.to_le_bytes());
        bytes.extend_from_slice(&u32::MAX.to_le_bytes());
    }
    bytes
}

fn set_id_bits_go_when_somebody_without_the_right_writes_truncates_or_sets_an_acl(transport: Transport) {
    let rig = Rig::new(transport, false, true);
    fs::set_permissions(rig.folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let path = rig.join("f");
    let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
    fs::write(&path, "1234").unwrap();
    // Owned by the user, of a group he is not in.
    std::os::unix::fs::chown(&path, Some(1000), Some(2000)).unwrap();
    let set = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    let acl = || {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&path, "system.posix_acl_access", &access_acl([7, 5, 5]), flags).unwrap();
    };
    set(0o2755);
    acl();
    assert_eq!(mode(), 0o2755, "root keeps the bit");
    as_user(1000, 1000, acl);
    assert_eq!(mode(), 0o755, "an ACL set from outside the group");
    set(0o6755);
    as_user(1000, 2000, acl);
    assert_eq!(mode(), 0o6755, "an ACL set from inside the group");
    let append = || {
        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"5")
            .unwrap()
    };
    append();
    assert_eq!(mode(), 0o6755, "root writes");
    as_user(1000, 1000, append);
    assert_eq!(mode(), 0o755, "a user writes");
    set(0o6777);
    as_user(1000, 1000, || {
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(2)
            .unwrap()
    });
    assert_eq!(mode(), 0o777, "a user truncates");
    set(0o6777);
    as_user(1000, 1000, || drop(File::create(&path).unwrap()));
    assert_eq!(mode(), 0o777, "a user opens with O_TRUNC");
    set(0o6755);
    std::os::unix::fs::chown(&path, Some(1001), None).unwrap();
    assert_eq!(mode(), 0o755, "a change of owner, also by root");
    rig.unmount();
}

/// Not cut, not written, not even by an open that only truncates.
fn a_program_that_runs_is_not_changed(transport: Transport) {
    let rig = Rig::new(transport, false, false);
    let path = rig.join("sleep");
    support::host::copy_program(Path::new("/bin/sleep"), &path);
    let size = fs::metadata(&path).unwrap().len();
    let mut running = Command::new(&path).arg("1000").spawn().unwrap();
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        let flags = rustix::fs::OFlags::from_bits_retain(flags.cast_unsigned());
        let opened = rustix::fs::open(&path, flags, rustix::fs::Mode::empty());
        assert_eq!(opened.unwrap_err(), rustix::io::Errno::TXTBSY, "{flags:?}");
        assert_eq!(fs::metadata(&path).unwrap().len(), size, "{flags:?}");
    }
    assert!(running.try_wait().unwrap().is_none());
    running.kill().unwrap();
    running.wait().unwrap();
    rig.unmount();
}

fn no_time_is_too_early_or_too_late(transport: Transport) {
    let rig = Rig::new(transport, false, false);
    let path = rig.join("f");
    File::create(&path).unwrap();
    // At both ends the kernel has no fractions.
    for (sec, nsec) in [
        (i64::MIN, 0),
        (-2, 800_000_000),
        (0, 1),
        (1 << 40, 999_999_999),
        (i64::MAX, 0),
    ] {
        let time = rustix::fs::Timespec {
            tv_sec: sec,
            tv_nsec: nsec,
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty()).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (sec, nsec));
    }
    assert!(fs::metadata(&path).is_ok(), "the mount lives");
    rig.unmount();
}

/// With the kernel's write cache, sizes and times are the kernel's: what is seen at once is what is there after it has
/// forgotten everything, and what was fsynced is on the device.
fn a_cached_write_is_seen_appended_truncated_and_kept(transport: Transport) {
    let rig = Rig::new(transport, true, false);
    let path = rig.join("f");
    let mut file = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .unwrap();
    for n in 0..1000u32 {
        file.write_all(&n.to_le_bytes()).unwrap();
    }
    let expected: Vec<u8> = (0..1000u32).flat_map(u32::to_le_bytes).collect();
    assert_eq!(fs::metadata(&path).unwrap().len(), 4000);
    assert_eq!(fs::read(&path).unwrap(), expected);
    let few = rig.requests(|| file.sync_all().unwrap());
    assert_eq!(few.get("fsync"), Some(&1), "{few:?}");
    assert!(few.get("write").copied().unwrap_or(0) <= 1, "{few:?}");
    // A partial page over what only the device has: the kernel reads through a handle opened for writing.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let other = fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&other, b"xyz", 1001).unwrap();
    other.set_len(2001).unwrap();
    file.write_all(b"end").unwrap();
    let mut expected = expected;
    expected[1001..1004].copy_from_slice(b"xyz");
    expected.truncate(2001);
    expected.extend_from_slice(b"end");
    let times = |meta: fs::Metadata| {
        (
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
        )
    };
    let before = times(fs::metadata(&path).unwrap());
    drop((file, other));
    rig.unmount_and_check(transport, &expected, before, times);
}

/// What is asked of a connection that is aborted fails; who serves it ends.
fn the_end_of_a_connection_ends_what_waits(transport: Transport) {
    let rig = Rig::new(transport, false, false);
    fs::create_dir(rig.join("held")).unwrap();
    let dev = fs::metadata(rig.folder.path()).unwrap().dev();
    let connections = Path::new("/sys/fs/fuse/connections");
    if fs::read_dir(connections).is_ok_and(|mut dir| dir.next().is_none()) {
        let mut mount = Command::new("mount");
        let status = mount.args(["-t", "fusectl", "fusectl"]).arg(connections).status();
        assert!(status.unwrap().success(), "fusectl");
    }
    let lock = rig.hold(&rig.join("held"));
    let before = rig.waits();
    let mut waiting: Vec<Child> = (0..3).map(|n| stat(&rig.join(&format!("held/{n}")))).collect();
    until("three requests that wait", || rig.waits() >= before + 3);
    let abort = connections.join(rustix::fs::minor(dev).to_string()).join("abort");
    fs::write(abort, "1").unwrap();
    for child in &mut waiting {
        assert!(!end_of(child).success());
    }
    let error = File::create(rig.join("new")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    drop(lock);
    rustix::mount::unmount(rig.folder.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    rig.end();
}

fn a_lazy_unmount_ends_when_the_last_file_is_closed(transport: Transport) {
    let rig = Rig::new(transport, false, false);
    let mut file = File::create(rig.join("f")).unwrap();
    rustix::mount::unmount(rig.folder.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(!rig.join("f").exists());
    for _ in 0..100 {
        file.write_all(&[7; 100]).unwrap();
    }
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().len(), 10_000);
    drop(file);
    rig.end();
}

fn a_daemon_that_is_killed_leaves_errors_and_a_mount_that_can_be_made_again(transport: Transport) {
    let options = match transport {
        Transport::Ring => "io_uring",
        _ => "no_io_uring",
    };
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    File::create(&image).unwrap().set_len(256 << 20).unwrap();
    ours::mkfs(&image, &["-p", "lock_nolock"]);
    let mount = ours::Mount::new(&image, options);
    let mut file = File::create(mount.join("f")).unwrap();
    file.write_all(b"kept").unwrap();
    file.sync_all().unwrap();
    let threads = fs::read_dir(format!("/proc/{}/task", mount.daemon().unwrap())).unwrap();
    let by_ring = threads.flatten().any(|task| {
        let name = fs::read_to_string(task.path().join("comm"));
        name.is_ok_and(|name| name.starts_with("gfs2-ring-"))
    });
    assert_eq!(by_ring, transport == Transport::Ring);
    mount.crash();
    let error = file.sync_all().unwrap_err();
    assert!(ours::is_of_the_dead(&error), "{error}");
    drop(file);
    let mount = ours::Mount::new(&image, options);
    assert_eq!(fs::read(mount.join("f")).unwrap(), b"kept");
    mount.unmount();
}

/// A time that a program has set stays: pages written back after it leave it alone where the kernel keeps the times.
fn pages_written_back_leave_the_times_to_the_kernel_that_keeps_them(transport: Transport) {
    let rig = Rig::new(transport, true, false);
    let path = rig.join("f");
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(&[1; 100_000]).unwrap();
    let set = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    file.set_modified(set).unwrap();
    file.sync_all().unwrap();
    let inode = BlockAddr::new(fs::metadata(&path).unwrap().ino());
    let fs = &rig.started().fs;
    let seen = fs.getattr(inode).unwrap();
    assert_eq!((seen.size, seen.mtime.sec), (100_000, 1_000_000_000));
    // As the kernel sends them: over what is there, and behind it.
    let handle = fs.open(inode, OpenFlags::WRITE).unwrap();
    assert_eq!(fs.write_back(handle, 4096, &[1; 4096], false).unwrap(), 4096);
    assert_eq!(fs.write_back(handle, 98_304, &[1; 4096], false).unwrap(), 4096);
    let after = fs.getattr(inode).unwrap();
    assert_eq!(
        (after.size, after.mtime, after.ctime),
        (102_400, seen.mtime, seen.ctime)
    );
    // Without its cache they are stores into a mapping, of whose time nobody else knows.
    assert_eq!(fs.write_back(handle, 0, &[1; 4096], true).unwrap(), 4096);
    assert!(fs.getattr(inode).unwrap().mtime.sec > 1_000_000_000);
    fs.release(handle);
    drop(file);
    rig.unmount();
}

/// What the kernel has taken from a program and finds no room for is told at the next fsync, and at close.
fn a_cached_write_that_finds_no_room_is_told_at_fsync(transport: Transport) {
    let rig = Rig::new(transport, true, false);
    let path = rig.join("f");
    drop(fs::File::create(&path).unwrap());
    let filler = fs::File::create(rig.join("filler")).unwrap();
    let block = vec![3; 1 << 20];
    for at in 0.. {
        if std::os::unix::fs::FileExt::write_all_at(&filler, &block, at << 20).is_err()
            || filler.sync_all().is_err()
        {
            break;
        }
        assert!(at < 256, "a volume of 256 MiB takes {at} MiB");
    }
    drop(filler);
    let free = rig.started().fs.statfs().unwrap().free;
    assert!(free < 256, "{free} blocks are left");
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all(&vec![4; 3 << 20]).unwrap();
    let told = file.sync_all().unwrap_err();
    assert_eq!(told.raw_os_error(), Some(libc::ENOSPC), "fsync");
    drop(file);
    // A dropped file does not say what close(2) answers; this program does.
    let dd = Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", "count=3", "status=none"])
        .arg(format!("of={}", path.display()))
        .output()
        .expect("dd");
    let said = String::from_utf8_lossy(&dd.stderr);
    assert!(
        !dd.status.success() && said.contains("No space left"),
        "close: {said}"
    );
    rig.unmount();
}

impl Rig {
    /// Unmounts; another mount of the same volume shows the file `f` with these bytes.
    fn unmount_and_check<T: PartialEq + std::fmt::Debug>(
        mut self,
        transport: Transport,
        expected: &[u8],
        before: T,
        look: impl Fn(fs::Metadata) -> T,
    ) {
        let path = self.join("f");
        assert_eq!(fs::read(&path).unwrap(), expected);
        assert_eq!(look(fs::metadata(&path).unwrap()), before);
        until("a mount that is not busy", || {
            rustix::mount::unmount(self.folder.path(), rustix::mount::UnmountFlags::empty()).is_ok()
        });
        self.server
            .take()
            .expect("a server")
            .join()
            .expect("no panic")
            .expect("served");
        let started = Arc::clone(self.started());
        let mounted = mount(
            Path::new("memory"),
            self.folder.path(),
            "fuse.gfs2",
            MountFlags::empty(),
            transport,
        )
        .expect("a mount");
        let options = ServeOptions {
            acl: false,
            ttl: TTL,
            cache_dirs: true,
            writeback_cache: false,
            busy_poll: Duration::ZERO,
        };
        self.server = Some(Self::serve(started, mounted, options));
        assert_eq!(fs::read(&path).unwrap(), expected);
        assert_eq!(look(fs::metadata(&path).unwrap()), before);
        self.unmount();
    }
}
