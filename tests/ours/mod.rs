//! Our own programs in tests: where they are, and a mount that goes away with its value.

// Each test program takes the part it needs.
#![allow(dead_code, unreachable_pub)]

pub mod watch;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Time a daemon may take to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time a mount may stay busy for reasons of other tests.
const BUSY: Duration = Duration::from_secs(5);

/// One of our programs, beside the mount helper that cargo built for this test.
pub fn program(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_mount-fuse-gfs2")).with_file_name(name);
    assert!(
        path.exists(),
        "{} is not built; run cargo build --workspace first",
        path.display()
    );
    path
}

/// Runs one of our programs to its end.
pub fn run(name: &str, args: &[&str]) -> Output {
    Command::new(program(name))
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// What a program said on standard error.
pub fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Makes a volume with our mkfs.
#[track_caller]
pub fn mkfs(image: &Path, args: &[&str]) {
    let output = Command::new(program("mkfs-gfs2"))
        .args(["-O", "-q"])
        .args(args)
        .arg(image)
        .output()
        .expect("mkfs-gfs2");
    assert!(output.status.success(), "mkfs {args:?}: {}", errors(&output));
}

/// Is this what is said of a mount whose daemon is dead? ECANCELED and EINTR: the kernel had given the request to a
/// thread of a ring that was being ended, by io_uring's own end or while the thread's memory was looked up.
pub fn is_of_the_dead(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTCONN | libc::ECONNABORTED | libc::ECANCELED | libc::EINTR)
    )
}

/// A mount of ours; dropped, it is unmounted by force.
#[derive(Debug)]
pub struct Mount {
    image: PathBuf,
    folder: TempDir,
    live: bool,
}

impl Mount {
    /// Mounts; fails the test when that fails.
    #[track_caller]
    pub fn new(image: &Path, options: &str) -> Self {
        Self::try_new(image, options)
            .unwrap_or_else(|(code, text)| panic!("mount {}: {code}: {text}", image.display()))
    }

    /// Mounts; the exit code and what was said when that fails.
    pub fn try_new(image: &Path, options: &str) -> Result<Self, (i32, String)> {
        Self::try_new_in(image, options, &[])
    }

    /// Mounts with more in the daemon's environment.
    pub fn try_new_in(
        image: &Path,
        options: &str,
        environment: &[(&str, &str)],
    ) -> Result<Self, (i32, String)> {
        let folder = tempfile::Builder::new()
            .prefix("gfs2-mnt-")
            .tempdir()
            .expect("a mount point");
        std::fs::create_dir(folder.path().join("mnt")).expect("a mount point");
        symlink(program("mount-fuse-gfs2"), folder.path().join("umount.fuse.gfs2")).expect("a link");
        let mut command = Command::new(program("mount-fuse-gfs2"));
        command.arg(image).arg(folder.path().join("mnt"));
        command.envs(environment.iter().copied());
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        let output = command.output().expect("mount-fuse-gfs2");
        if output.status.success() {
            return Ok(Self {
                image: image.to_owned(),
                folder,
                live: true,
            });
        }
        Err((output.status.code().unwrap_or(-1), errors(&output)))
    }

    /// The root of the mount.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    /// A path below the root.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Unmounts as umount(8) does and returns with the journal clean.
    #[track_caller]
    pub fn unmount(mut self) {
        let end = Instant::now() + BUSY;
        loop {
            let output = Command::new(self.folder.path().join("umount.fuse.gfs2"))
                .arg(self.path())
                .output()
                .expect("umount.fuse.gfs2");
            if output.status.success() {
                break;
            }
            // Another test that starts a program has our open files for a moment, between its fork and its exec.
            let text = errors(&output);
            assert!(text.contains("busy") && Instant::now() < end, "umount: {text}");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.live = false;
    }

    /// The daemon's process.
    pub fn daemon(&self) -> Option<i32> {
        let image = self.image.to_string_lossy().into_owned();
        let target = self.path().to_string_lossy().into_owned();
        std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let words: Vec<String> = line
                .split(|b| *b == 0)
                .map(|w| String::from_utf8_lossy(w).into_owned())
                .collect();
            let ours = words.iter().any(|w| w == "--daemon-child")
                && words.contains(&image)
                && words.contains(&target);
            ours.then_some(pid)
        })
    }

    /// kill -9 of the daemon, as a power cut of this node; the dead mount is taken away.
    #[track_caller]
    pub fn crash(mut self) {
        let pid = self.daemon().expect("the daemon of a live mount");
        let status = Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()
            .expect("kill");
        assert!(status.success());
        let end = Instant::now() + PATIENCE;
        while Path::new(&format!("/proc/{pid}/exe")).exists() {
            assert!(Instant::now() < end, "daemon {pid} survives kill -9");
            std::thread::sleep(Duration::from_millis(5));
        }
        detach(&self.path());
        self.live = false;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.live {
            detach(&self.path());
            // The daemon may still write to the image that the test is about to delete: let it end.
            let end = Instant::now() + PATIENCE;
            while self.daemon().is_some() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn detach(target: &Path) {
    let _ = Command::new("umount").arg("-l").arg(target).output();
}
