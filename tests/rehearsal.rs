//! Goal: locks may be taken away at any moment under a real mount: nothing that was written is lost or stale, and nothing
//! waits for ever, the kernel's caches included. Method: the daemon demotes locks at random (`FUSE_GFS2_REHEARSE`) while
//! threads write, read back what the kernel does not remember, cut and rename files; then the volume is checked and
//! read again. A mount that sticks is aborted and fails the test.

mod ours;

use fastrand::Rng;
use ours::Mount;
use ours::watch::watched;
use rustix::fs::{Advice, XattrFlags, fadvise, getxattr, setxattr};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Longest file.
const SIZE_MAX: usize = 300_000;
/// Operations of a thread, unless REHEARSAL_STEPS says more.
const STEPS: usize = 600;
/// A healthy run takes seconds.
const PATIENCE: Duration = Duration::from_secs(240);

/// One thread's file and what must be in it.
struct Worker {
    rng: Rng,
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Worker {
    fn run(&mut self, steps: usize) {
        let mut file = self.open();
        for step in 0..steps {
            match self.rng.u8(0..12) {
                0..5 => self.write(&file),
                5..9 => self.read(&file, step),
                9 => self.cut(&file),
                10 => file.sync_data().expect("fdatasync"),
                _ => {
                    self.rename();
                    file = self.open();
                }
            }
        }
    }

    fn open(&self) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(&self.path).expect("open")
    }

    fn write(&mut self, file: &File) {
        let at = self.rng.usize(0..SIZE_MAX - 1);
        let piece = vec![self.rng.u8(1..); self.rng.usize(1..(SIZE_MAX - at).min(20_000))];
        file.write_all_at(&piece, at as u64).expect("write");
        let end = at + piece.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes.splice(at..end, piece);
    }

    /// Reads what the kernel had to forget first, so that a READ comes to the daemon.
    fn read(&mut self, file: &File, step: usize) {
        if self.rng.bool() {
            file.sync_data().expect("fdatasync");
            fadvise(file, 0, None, Advice::DontNeed).expect("fadvise");
        }
        let at = self.rng.usize(0..=self.bytes.len());
        let want = &self.bytes[at..(at + 50_000).min(self.bytes.len())];
        let mut got = vec![0; want.len()];
        file.read_exact_at(&mut got, at as u64).expect("read");
        let differs = got.iter().zip(want).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{}: step {step}: from {at}", self.path.display());
        let size = file.metadata().expect("stat").len();
        assert_eq!(
            size,
            self.bytes.len() as u64,
            "{}: step {step}",
            self.path.display()
        );
    }

    fn cut(&mut self, file: &File) {
        let size = self.rng.usize(0..SIZE_MAX);
        file.set_len(size as u64).expect("truncate");
        self.bytes.resize(size, 0);
    }

    fn rename(&mut self) {
        let folder = self.path.parent().expect("a folder").to_owned();
        let stem = self
            .path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let stem = stem.split('.').next().unwrap_or_default();
        let to = folder.join(format!("{stem}.{}", self.rng.u32(..)));
        fs::rename(&self.path, &to).expect("rename");
        self.path = to;
    }
}

/// Folders come and go until told to stop.
fn churn(root: &Path, seed: u64, stop: &AtomicBool) {
    let mut rng = Rng::with_seed(seed);
    while !stop.load(Ordering::Relaxed) {
        let (from, to) = (root.join(format!("d{seed}")), root.join(format!("e{seed}")));
        fs::create_dir(&from).expect("mkdir");
        for n in 0..rng.usize(1..20) {
            fs::write(from.join(format!("f{n}")), [7; 100]).expect("a file");
        }
        fs::rename(&from, &to).expect("rename");
        assert!(fs::read_dir(&to).expect("a listing").count() > 0);
        fs::remove_dir_all(&to).expect("rm -r");
    }
}

#[test]
fn locks_go_at_any_moment_under_a_real_mount() {
    locks_go("no_io_uring");
}

/// With requests by io_uring, where the kernel has it.
#[test]
fn locks_go_at_any_moment_under_a_real_mount_by_io_uring() {
    let parameter = "/sys/module/fuse/parameters/enable_uring";
    match fs::read_to_string(parameter) {
        Ok(before) => {
            locks_go("io_uring");
            fs::write(parameter, before.trim()).expect("the parameter as it was");
        }
        Err(error) => eprintln!("only by /dev/fuse: no FUSE over io_uring ({parameter}: {error})"),
    }
}

fn locks_go(transport: &str) {
    let steps = std::env::var("REHEARSAL_STEPS")
        .ok()
        .map_or(STEPS, |n| n.parse().expect("a number"));
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    File::create(&image)
        .and_then(|f| f.set_len(256 << 20))
        .expect("an image");
    ours::mkfs(&image, &["-p", "lock_nolock"]);
    for seed in [3, 4] {
        let seed_text = seed.to_string();
        let mount = Mount::try_new_in(
            &image,
            &format!("strictatime,{transport}"),
            &[("FUSE_GFS2_REHEARSE", &seed_text)],
        )
        .expect("a mount");
        let stop = AtomicBool::new(false);
        let workers = watched(&mount, PATIENCE, || {
            std::thread::scope(|scope| {
                let root = mount.path();
                let churning = scope.spawn({
                    let (root, stop) = (root.clone(), &stop);
                    move || churn(&root, seed, stop)
                });
                let threads: Vec<_> = (0..4)
                    .map(|n| {
                        let path = root.join(format!("w{seed}-{n}"));
                        let rng = Rng::with_seed(seed * 100 + n);
                        let mut worker = Worker {
                            rng,
                            path,
                            bytes: Vec::new(),
                        };
                        scope.spawn(move || {
                            worker.run(steps);
                            worker
                        })
                    })
                    .collect();
                let workers: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
                stop.store(true, Ordering::Relaxed);
                churning.join().expect("the churn");
                workers
            })
        });
        let root = mount.path();
        mount.unmount();
        assert_fsck_clean(&image);
        let mount = Mount::new(&image, "ro");
        for worker in workers {
            let worker = worker.expect("a worker");
            let name = worker.path.strip_prefix(&root).expect("below the mount");
            assert!(
                fs::read(mount.join(name)).expect("a file") == worker.bytes,
                "{}",
                name.display()
            );
        }
        mount.unmount();
    }
}

#[track_caller]
fn assert_fsck_clean(image: &Path) {
    let check = Command::new("fsck.gfs2")
        .arg("-n")
        .arg(image)
        .output()
        .expect("fsck.gfs2");
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(check.status.success(), "{said}");
}

/// Threads that ask at a time: more than the daemon once had to answer with.
const CROWD: usize = 320;
/// How often each of them asks.
const QUESTIONS: usize = 40;

/// Whoever takes the lock away waits for the file's dirty pages, and these for a thread of the daemon: there must be one,
/// whatever the others wait for.
#[test]
fn a_lock_goes_however_many_wait_for_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    File::create(&image)
        .and_then(|f| f.set_len(256 << 20))
        .expect("an image");
    ours::mkfs(&image, &["-p", "lock_nolock"]);
    let rehearsed = [("FUSE_GFS2_REHEARSE", "77")];
    let mount = Mount::try_new_in(&image, "writeback_cache,no_io_uring", &rehearsed).expect("a mount");
    let path = mount.join("file");
    let file = File::create(&path).expect("a file");
    setxattr(&path, "user.name", b"value", XattrFlags::empty()).expect("an xattr");
    let stop = AtomicBool::new(false);
    let passes = watched(&mount, PATIENCE, || {
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let mut passes = 0u8;
                while !stop.load(Ordering::Relaxed) {
                    passes = passes.wrapping_add(1).max(1);
                    for page in 0..64 {
                        file.write_all_at(&[passes; 4096], page * 4096).expect("a write");
                    }
                }
                passes
            });
            let ask = || {
                let mut value = [0; 16];
                for _ in 0..QUESTIONS {
                    let len = getxattr(&path, "user.name", &mut value[..]).expect("the xattr");
                    assert_eq!(&value[..len], b"value");
                }
            };
            let crowd: Vec<_> = (0..CROWD).map(|_| scope.spawn(ask)).collect();
            let asked: Vec<_> = crowd.into_iter().map(|thread| thread.join()).collect();
            stop.store(true, Ordering::Relaxed);
            assert!(asked.iter().all(Result::is_ok), "somebody was not answered");
            writing.join().expect("the writer")
        })
    });
    let bytes = fs::read(&path).expect("the file");
    assert!(bytes.len() == 64 * 4096 && bytes.iter().all(|b| *b == passes));
    drop(file);
    mount.unmount();
    assert_fsck_clean(&image);
}
