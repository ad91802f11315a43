//! Goal: the mount keeps its word when things around it go wrong, and its options mean what the kernel's do. Method: the
//! daemon is killed under the load of many threads; scripts run on mounts of ours and of the kernel's gfs2 in a guest
//! with the same options, and what they print must be the same.

mod ours;
mod support;

use ours::watch::watched;
use ours::{Mount, is_of_the_dead, mkfs, program};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::guest::Kernel;
use support::host::{Host, assert_fsck_clean, assert_ours_clean, reference_mkfs, sparse};
use support::vm::Vm;

/// Threads of the load.
const WRITERS: usize = 6;
/// Records that must be durable before the daemon is killed.
const RECORDS: usize = 60;

fn volume(dir: &Path) -> PathBuf {
    let image = sparse(&dir.join("volume.img"), 256 << 20);
    mkfs(&image, &["-p", "lock_nolock", "-J", "16"]);
    image
}

fn record(writer: usize, n: usize) -> Vec<u8> {
    format!("record {n} of writer {writer}\n")
        .repeat(1 + n % 40)
        .into_bytes()
}

/// Appends records and syncs each, and makes, moves and removes files, until the mount fails. Gives the number of
/// records that were synced, and the error.
fn write_until_the_end(root: &Path, writer: usize, synced: &AtomicUsize) -> (usize, std::io::Error) {
    let mut known = 0;
    let mut one = |n: usize| -> std::io::Result<()> {
        let folder = root.join(format!("w{writer}"));
        if n == 0 {
            fs::create_dir(&folder)?;
        }
        let path = folder.join("records");
        let mut file = File::options().append(true).create(true).open(&path)?;
        file.write_all(&record(writer, n))?;
        file.sync_all()?;
        known = n + 1;
        synced.fetch_add(1, Ordering::Relaxed);
        let (new, moved) = (folder.join(format!("f{n}")), folder.join(format!("g{n}")));
        fs::write(&new, [1; 3000])?;
        fs::rename(&new, &moved)?;
        if n > 5 {
            fs::remove_file(folder.join(format!("g{}", n - 5)))?;
        }
        fs::read_dir(&folder)?.try_for_each(|entry| entry.map(drop))
    };
    for n in 0.. {
        if let Err(error) = one(n) {
            return (known, error);
        }
    }
    unreachable!("the numbers have an end")
}

#[test]
fn a_daemon_killed_under_load_leaves_errors_and_what_was_synced() {
    let dir = support::scratch("trust");
    let image = volume(dir.path());
    for round in 0..3 {
        let mount = Mount::new(&image, "");
        let root = mount.join(format!("round{round}"));
        fs::create_dir(&root).expect("a folder");
        let pid = mount.daemon().expect("a daemon").to_string();
        let synced = AtomicUsize::new(0);
        let ended = watched(&mount, Duration::from_secs(120), || {
            std::thread::scope(|scope| {
                let writers: Vec<_> = (0..WRITERS)
                    .map(|n| {
                        let (root, synced) = (&root, &synced);
                        scope.spawn(move || write_until_the_end(root, n, synced))
                    })
                    .collect();
                while synced.load(Ordering::Relaxed) < RECORDS * (round + 1) {
                    let alive = writers.iter().all(|w| !w.is_finished());
                    assert!(alive, "a writer ended while the daemon was there");
                    std::thread::sleep(Duration::from_millis(1));
                }
                Host::new("kill").args(["-KILL", &pid]).check();
                let ends = writers.into_iter().map(|w| w.join().expect("a writer"));
                ends.collect::<Vec<_>>()
            })
        });
        for (_, error) in &ended {
            // EIO: a write that was under way.
            let fits = is_of_the_dead(error) || error.raw_os_error() == Some(libc::EIO);
            assert!(fits, "a dead daemon's mount says {error}");
        }
        let asked = fs::metadata(root.join("anything")).map(drop);
        let error = asked.expect_err("an answer from a dead daemon");
        assert!(is_of_the_dead(&error), "{error}");
        mount.unmount();
        let mount = Mount::new(&image, "");
        for (writer, (known, _)) in ended.iter().enumerate() {
            let path = mount.join(format!("round{round}/w{writer}/records"));
            let found = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let promised: Vec<u8> = (0..*known).flat_map(|n| record(writer, n)).collect();
            assert!(
                found.starts_with(&promised),
                "round {round}: writer {writer}: {} bytes of {known} synced records, {} found",
                promised.len(),
                found.len()
            );
        }
        fs::remove_dir_all(mount.join(format!("round{round}"))).expect("rm -r");
        mount.unmount();
        assert_ours_clean(&program("fsck-gfs2"), &image);
        assert_fsck_clean(&image);
    }
}

/// Tells others to stop, whatever ends it.
struct Stops<'a>(&'a AtomicUsize);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(1, Ordering::Relaxed);
    }
}

/// Goal: `umount` of a mount that many use is refused and harms nobody; when it is lazy it ends with the last of them.
#[test]
fn unmounting_under_the_load_of_many_is_refused_and_lazily_comes_to_its_end() {
    let dir = support::scratch("trust");
    let image = volume(dir.path());
    let mount = Mount::new(&image, "");
    let pid = mount.daemon().expect("a daemon");
    let root = mount.path();
    let (done, stop) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for n in 0..WRITERS {
            let (root, done, stop) = (&root, &done, &stop);
            scope.spawn(move || {
                let mut file = File::create(root.join(format!("w{n}"))).expect("a file");
                while stop.load(Ordering::Relaxed) == 0 {
                    file.write_all(&[n as u8; 5000]).expect("a write");
                    file.sync_data().expect("fdatasync");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Whatever fails here, the writers end.
        let _stops = Stops(&stop);
        let go_on = || {
            let until = done.load(Ordering::Relaxed) + 3 * WRITERS;
            let end = std::time::Instant::now() + Duration::from_secs(60);
            while done.load(Ordering::Relaxed) < until {
                let written = done.load(Ordering::Relaxed);
                assert!(
                    std::time::Instant::now() < end,
                    "the writers stand still: {written} of {until} writes"
                );
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        go_on();
        for _ in 0..5 {
            let busy = Command::new("umount").arg(&root).output().expect("umount");
            let said = String::from_utf8_lossy(&busy.stderr);
            assert!(!busy.status.success() && said.contains("busy"), "{said}");
            go_on();
        }
        Host::new("umount").arg("-l").arg(&root).check();
        go_on();
    });
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while Path::new(&format!("/proc/{pid}/exe")).exists() {
        assert!(
            std::time::Instant::now() < end,
            "the daemon stays after umount -l"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(mount);
    assert_fsck_clean(&image);
    let mount = Mount::new(&image, "spectator");
    for n in 0..WRITERS {
        let bytes = fs::read(mount.join(format!("w{n}"))).expect("a file");
        assert!(bytes.len() >= 5000 && bytes.iter().all(|b| *b == n as u8));
    }
    mount.unmount();
}

/// Who owns what is made in set-id directories, by whoever makes it.
const OWNERS: &str = "
mkdir d r g; chown 1001:1002 d g; chmod 4755 d r; chmod 6775 g
for x in d r g; do (umask 022; touch $x/f; mkdir $x/s; ln -s t $x/l; mknod $x/p p; touch $x/s/f; mkdir $x/s/s)
  ln d/f $x/hard 2>/dev/null || true; touch moved; mv moved $x/moved; done
stat -c '%n %a %u %g %f' d r g d/* r/* g/* d/s/* r/s/* g/s/*
";

/// Which accesses move the access time: it is set before or after everything else first. What is read is fresh, for a
/// FUSE mount's kernel remembers targets of links.
const TIMES: &str = "
look() { case $1 in f*) cat $1 >/dev/null ;; d*) ls $1 >/dev/null ;; l*) readlink $1 >/dev/null ;; esac; }
for t in 2001-01-01 2030-01-01; do for x in f d l; do
  n=$x-$t; case $x in f) echo text >$n ;; d) mkdir $n; touch $n/x ;; l) ln -s f $n ;; esac
  touch -h -a -d \"$t 00:00:00\" $n; was=$(stat -c %X $n); look $n; now=$(stat -c %X $n)
  if [ $was = $now ]; then echo $n stays; else echo $n moves; fi
done; done
";

fn on_ours(dir: &Path, name: &str, options: &str, script: &str) -> String {
    let image = sparse(&dir.join(format!("{name}.img")), 128 << 20);
    mkfs(&image, &["-p", "lock_nolock", "-J", "8"]);
    let mount = Mount::new(&image, options);
    let script = format!("set -e; cd {}\n{script}", mount.path().display());
    let said = Host::new("bash").args(["-c", &script]).check();
    mount.unmount();
    assert_fsck_clean(&image);
    said
}

/// What flags can be set, what they show, what they forbid, what they hand on. Nothing that has data in the log ceases to
/// be journaled: the 6.12 kernel dies of that, ours is asked in [`WAYS`].
const FLAGS: &str = "
try() { if \"$@\" >/dev/null 2>&1; then echo \"$*: done\"; else echo \"$*: refused\"; fi; }
show() { for y in \"$@\"; do echo $y $(lsattr -d $y | cut -d ' ' -f 1 | tr -d -); done; }
mkdir d e; echo a >f; echo b >g; ln -s f l; mkfifo p; mkdir many; for n in $(seq 300); do : >many/name-$n; done
head -c 300000 /dev/zero | tr '\\0' z >big; cp big same
for x in +A +S +j +T +d +c +u +s +e; do for n in f d; do try chattr $x $n; show $n; done; done
try chattr =A f; try chattr -A f; try chattr +A p; try lsattr -d l
show f d many; echo x >d/new; mkdir d/sub; show d/new d/sub; chattr -j d; echo x >d/later; show d/later
chattr +j big; for x in big same; do dd if=/dev/zero bs=1000 count=5 seek=7 conv=notrunc of=$x status=none; done
cmp big same && show big
changed=$(stat -c %z f); written=$(stat -c %y f); sleep 0.1; chattr +A f
[ \"$(stat -c %z f)\" != \"$changed\" ] && [ \"$(stat -c %y f)\" = \"$written\" ] && echo changed and not written
for x in i a; do
  chattr =$x f; show f
  for c in 'echo >>f' ': >f' 'cat f' 'chmod 600 f' 'chown 7 f' 'touch f' 'touch -d 2001-01-01 f' 'truncate -s 1 f' \
    'mv f h' 'mv g f' 'ln f h' 'rm -f f' 'setfattr -n user.a -v 1 f' 'dd if=g of=f conv=notrunc' 'cat g >>f'
  do try sh -c \"$c\"; done
  chattr =$x d e; show d e
  for c in 'touch d/new' 'echo y >d/new' 'rm -f d/new' 'touch d/$$' 'mkdir d/m' 'mv f d/f' 'mv d/new h' 'rmdir d/sub' 'rmdir e' 'mv e k' \
    'ln g d/g' 'ln -s g d/s' 'mkfifo d/q' 'chmod 700 d' 'touch d'
  do try sh -c \"$c\"; done
  chattr -$x f d e
  rm -f d/m d/g d/s d/q 2>/dev/null || true
done
cat f; show f d e
";

/// Data that changes the way it goes to the device.
const WAYS: &str = "
head -c 300000 /dev/zero | tr '\\0' z >big; cp big same
for x in + - + -; do
  chattr ${x}j big
  for y in big same; do dd if=/dev/zero bs=1000 count=5 seek=7 conv=notrunc of=$y status=none; echo more >>$y; done
  cmp big same; lsattr big | tr -d -
done
";

/// Goal: suiddir, the options of access times and the flags of chattr(1) are the kernel's.
#[test]
fn options_mean_what_the_kernels_do() {
    let dir = support::scratch("trust");
    let disk = sparse(&dir.path().join("kernel.img"), 128 << 20);
    reference_mkfs(&disk, &["-j", "1", "-J", "8"]);
    let vm = Vm::start(Kernel::V6_12, &[&disk]);
    vm.check("modprobe gfs2");
    let cases = [
        ("suiddir", OWNERS),
        ("nosuiddir", OWNERS),
        ("strictatime", TIMES),
        ("strictatime,nodiratime", TIMES),
        ("noatime", TIMES),
        ("relatime", TIMES),
        ("relatime,nodiratime", TIMES),
        ("rw", FLAGS),
    ];
    for (n, (options, script)) in cases.into_iter().enumerate() {
        vm.check(&format!(
            "mount -t gfs2 -o {options} /dev/vda /mnt; mkdir /mnt/{n}"
        ));
        let kernel = vm.check(&format!("cd /mnt/{n}\n{script}"));
        vm.check("umount /mnt");
        let ours = on_ours(dir.path(), &n.to_string(), options, script);
        assert!(ours.lines().count() >= 6, "{options}: {ours}");
        assert_eq!(kernel, ours, "{options}: the kernel's (left), ours (right)");
    }
    vm.assert_kernel_content();
    assert_eq!(
        on_ours(dir.path(), "ways", "rw", WAYS),
        "j big\n big\nj big\n big\n"
    );
}

/// Goal: a file that may be run loses those bits when suiddir gives it to somebody else (what GFS2 says of it), and not
/// when it stays with who made it.
#[test]
fn suiddir_takes_the_right_to_run_from_what_it_gives_away() {
    let dir = support::scratch("trust");
    let image = volume(dir.path());
    let mount = Mount::new(&image, "suiddir");
    let make = |owner: u32| {
        let folder = mount.join(format!("of-{owner}"));
        fs::create_dir(&folder).expect("a folder");
        std::os::unix::fs::chown(&folder, Some(owner), Some(owner)).expect("an owner");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o4777)).expect("a mode");
        let path = folder.join("program");
        let mut how = File::options();
        let made = how.write(true).create_new(true).mode(0o755).open(&path);
        let meta = made.and_then(|f| f.metadata()).expect("a file");
        (meta.uid(), meta.mode() & 0o7777)
    };
    assert_eq!(make(1001), (1001, 0o644));
    assert_eq!(make(0), (0, 0o755));
    mount.unmount();
    assert_fsck_clean(&image);
}

/// Goal: a spectator only looks. Method: every kind of change is refused with EROFS, access times stay, and not one byte
/// of the volume is another afterwards.
#[test]
fn a_spectator_changes_nothing_whatever_is_tried() {
    let dir = support::scratch("trust");
    let image = volume(dir.path());
    let mount = Mount::new(&image, "");
    fs::create_dir(mount.join("d")).expect("a folder");
    fs::write(mount.join("d/f"), "text").expect("a file");
    mount.unmount();
    let before = fs::read(&image).expect("the image");
    let mount = Mount::new(&image, "spectator,strictatime");
    let (f, d) = (mount.join("d/f"), mount.join("d"));
    assert_eq!(fs::read(&f).expect("the file"), b"text");
    assert_eq!(fs::read_dir(&d).expect("the folder").count(), 1);
    let attempts = [
        fs::write(mount.join("new"), "x"),
        fs::create_dir(mount.join("new")),
        fs::remove_file(&f),
        fs::rename(&f, mount.join("moved")),
        fs::hard_link(&f, mount.join("hard")),
        std::os::unix::fs::symlink("x", mount.join("soft")),
        fs::set_permissions(&f, fs::Permissions::from_mode(0o600)),
        std::os::unix::fs::chown(&f, Some(1), None),
        File::options().write(true).open(&f).map(drop),
        rustix::fs::setxattr(&f, "user.x", b"v", rustix::fs::XattrFlags::empty()).map_err(Into::into),
    ];
    for (n, attempt) in attempts.into_iter().enumerate() {
        let error = attempt.expect_err("a change of a spectator");
        assert_eq!(
            error.kind(),
            ErrorKind::ReadOnlyFilesystem,
            "attempt {n}: {error}"
        );
    }
    mount.unmount();
    assert!(
        before == fs::read(&image).expect("the image"),
        "a spectator wrote"
    );
}

/// Goal: with `writeback_cache` a volume that is full is reported by fsync(2) and close(2), once to each who has the file
/// open; what was synced before stays, the volume is whole, and there is a way on. (Without it write(2) says so:
/// tests/no_space.rs.)
#[test]
fn a_full_volume_is_told_by_fsync_and_close_when_the_kernel_keeps_writes() {
    let dir = support::scratch("trust");
    let image = sparse(&dir.path().join("volume.img"), 64 << 20);
    mkfs(&image, &["-p", "lock_nolock", "-J", "8"]);
    let mount = Mount::new(&image, "writeback_cache");
    let small = mount.join("small");
    fs::write(&small, "x").expect("a small file");
    let full = |result: std::io::Result<()>| {
        let error = result.expect_err("the volume is full");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    };
    let mut filler = File::create(mount.join("filler")).expect("a file");
    let (mut synced, piece) = (0, vec![9; 1 << 20]);
    let told = loop {
        assert!(synced < 64, "{synced} MiB fit into a volume of 64");
        let written = filler.write_all(&piece).and_then(|()| filler.sync_all());
        match written {
            Ok(()) => synced += 1,
            Err(error) => break error,
        }
    };
    assert!(synced > 20, "full after {synced} MiB: {told}");
    full(Err(told));
    // Told once.
    filler.sync_all().expect("nothing new is wrong");
    let mut file = File::options().append(true).open(&small).expect("the small file");
    file.write_all(&piece).expect("the kernel keeps it");
    full(file.sync_all());
    drop(file);
    let wrote = Command::new("dd")
        .args([
            "if=/dev/zero",
            "bs=64k",
            "count=20",
            "oflag=append",
            "conv=notrunc",
        ])
        .arg(format!("of={}", small.display()))
        .output()
        .expect("dd");
    let said = String::from_utf8_lossy(&wrote.stderr);
    assert!(
        !wrote.status.success() && said.contains("No space left"),
        "close: {said}"
    );
    drop(filler);
    mount.unmount();
    assert_fsck_clean(&image);
    let mount = Mount::new(&image, "writeback_cache");
    let bytes = fs::read(mount.join("filler")).expect("the filler");
    assert!(
        bytes.len() >= synced << 20,
        "{} bytes of {synced} MiB",
        bytes.len()
    );
    assert!(bytes[..synced << 20].iter().all(|byte| *byte == 9), "other bytes");
    assert_eq!(fs::read(mount.join("small")).expect("the small file")[0], b'x');
    let free = || rustix::fs::statvfs(mount.path()).expect("statvfs").f_bfree;
    let before = free();
    fs::remove_file(mount.join("filler")).expect("rm");
    // Deallocated when the kernel has said that nobody has it open.
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while free() < before + 2000 {
        assert!(std::time::Instant::now() < end, "{} blocks are free", free());
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut file = File::create(mount.join("small")).expect("the small file");
    file.write_all(&piece)
        .and_then(|()| file.sync_all())
        .expect("there is room");
    drop(file);
    mount.unmount();
    assert_fsck_clean(&image);
}

/// Goal: with `writeback_cache` the times are those of the calls, not of the write-back, and last.
#[test]
fn times_are_those_of_the_calls_when_the_kernel_keeps_writes() {
    let dir = support::scratch("trust");
    let image = volume(dir.path());
    let times = |path: &Path| {
        let meta = fs::metadata(path).expect("its times");
        let (mtime, ctime) = (
            (meta.mtime(), meta.mtime_nsec()),
            (meta.ctime(), meta.ctime_nsec()),
        );
        (meta.len(), mtime, ctime)
    };
    let old = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    let mount = Mount::new(&image, "writeback_cache");
    // Kept and written back; with a time that was set while the bytes were kept; with one set before them.
    let mut files = ["plain", "set", "rewritten"].map(|name| File::create(mount.join(name)).expect("a file"));
    files[2].set_modified(old).expect("a time");
    for file in &mut files {
        file.write_all(&[3; 10_000]).expect("kept bytes");
    }
    files[1].set_modified(old).expect("a time");
    let see = |mount: &Mount| ["plain", "set", "rewritten"].map(|name| times(&mount.join(name)));
    let kept = see(&mount);
    files.iter().for_each(|file| file.sync_all().expect("fsync"));
    assert_eq!(see(&mount), kept, "after the write-back");
    assert_eq!((kept[1].0, kept[1].1), (10_000, (1_000_000_000, 123_456_789)));
    let (seconds, _) = kept[2].1;
    assert!(
        seconds > 1_000_000_000,
        "a write after a time was set leaves it at {seconds}"
    );
    drop(files);
    mount.unmount();
    let mount = Mount::new(&image, "");
    assert_eq!(see(&mount), kept, "after a remount");
    mount.unmount();
    assert_fsck_clean(&image);
}
