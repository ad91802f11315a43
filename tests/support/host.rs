//! The host's side: commands with a time limit, sparse images, loop devices, the reference tools.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What to do when a host program is missing.
pub const SETUP: &str = "run tests/lab/setup.sh as root";

/// What a killed process may take to go.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The top of the checkout, also for the tests of a package inside it.
pub fn checkout() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .find(|p| p.join("tests/lab/build-guest.sh").exists())
        .expect("a checkout")
        .to_owned()
}

/// Exit status and output (standard output, then standard error) of a finished command.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Exit status; 128 + n for signal n.
    pub rc: i32,
    /// What it printed.
    pub output: String,
}

/// A host command with a time limit.
#[derive(Debug)]
pub struct Host {
    program: OsString,
    args: Vec<OsString>,
    limit: Duration,
}

impl Host {
    /// A command that may take a minute.
    pub fn new(program: impl AsRef<OsStr>) -> Host {
        Host {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            limit: Duration::from_secs(60),
        }
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Host {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(&mut self, args: impl IntoIterator<Item = S>) -> &mut Host {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets the time limit.
    pub fn limit(&mut self, limit: Duration) -> &mut Host {
        self.limit = limit;
        self
    }

    /// Runs it to its end; fails the test when it cannot be started or takes too long.
    #[track_caller]
    pub fn run(&self) -> Ran {
        // Files, not pipes: a child that inherits the output and stays cannot block us.
        let mut out = tempfile::tempfile().expect("a temporary file");
        let mut err = tempfile::tempfile().expect("a temporary file");
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .env("PATH", path_with_sbin())
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a file handle"))
            .stderr(err.try_clone().expect("a file handle"))
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run {}: {e}; {SETUP}", self.line()));
        let waited = wait_within(&mut child, self.limit).expect("waiting for a child");
        let Some(status) = waited else {
            let stood = place(child.id());
            child.kill().expect("killing a child");
            // What the kernel keeps is left, rather than waited for without end.
            let gone = wait_within(&mut child, KILL_LIMIT).expect("waiting for a child");
            let left = if gone.is_some() {
                ""
            } else {
                " and cannot be killed"
            };
            panic!(
                "{} took more than {:?}{left}; it stood at {stood}:\n{}",
                self.line(),
                self.limit,
                slurp(&mut err)
            );
        };
        let rc = status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Ran {
            rc,
            output: slurp(&mut out) + &slurp(&mut err),
        }
    }

    /// Runs it; fails the test unless it exits with 0. Returns what it printed.
    #[track_caller]
    pub fn check(&self) -> String {
        let ran = self.run();
        assert!(
            ran.rc == 0,
            "{} exited with {}:\n{}",
            self.line(),
            ran.rc,
            ran.output
        );
        ran.output
    }

    fn line(&self) -> String {
        let words = std::iter::once(&self.program).chain(&self.args);
        words.map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }
}

/// Waits for a child; `None` when it has not ended in time.
pub fn wait_within(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        match child.try_wait()? {
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(2)),
            other => return Ok(other),
        }
    }
}

/// Where in the kernel a process waits.
fn place(pid: u32) -> String {
    let word = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    format!("{} ({})", word("wchan"), word("syscall").trim())
}

fn slurp(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.read_to_end(&mut bytes))
        .expect("a temporary file");
    String::from_utf8_lossy(&bytes).into_owned()
}

fn path_with_sbin() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    path
}

/// Creates a sparse image of this many bytes.
pub fn sparse(path: &Path, bytes: u64) -> PathBuf {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path);
    file.and_then(|f| f.set_len(bytes))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path.to_owned()
}

/// The reference `mkfs.gfs2` for one node, with the options given.
#[track_caller]
pub fn reference_mkfs(image: &Path, options: &[&str]) -> String {
    Host::new("mkfs.gfs2")
        .args(["-q", "-O", "-p", "lock_nolock"])
        .args(options)
        .arg(image)
        .check()
}

/// The reference `fsck.gfs2 -n -f`: 0 is clean, 4 is errors left as they were.
#[track_caller]
pub fn reference_fsck(image: &Path) -> Ran {
    Host::new("fsck.gfs2")
        .args(["-n", "-f"])
        .arg(image)
        .limit(Duration::from_secs(300))
        .run()
}

/// Fails the test unless the reference fsck finds the image clean.
#[track_caller]
pub fn assert_fsck_clean(image: &Path) {
    let ran = reference_fsck(image);
    assert!(
        ran.rc == 0,
        "fsck.gfs2 -n {} exited with {}:\n{}",
        image.display(),
        ran.rc,
        ran.output
    );
}

/// Fails the test unless our checker (`program`) finds nothing at all. Its exit code alone does not say so: as the
/// reference's, `-n` passes over journals that a mount would replay. That the volume was unmounted in order, it says.
#[track_caller]
pub fn assert_ours_clean(program: &Path, image: &Path) {
    let ran = Host::new(program)
        .arg("-n")
        .arg(image)
        .limit(Duration::from_secs(300))
        .run();
    assert!(
        ran.rc == 0 && ran.output.contains(": clean, "),
        "fsck-gfs2 -n {} exited with {}:\n{}",
        image.display(),
        ran.rc,
        ran.output
    );
}

/// Unpacks a `.zst` to a sparse file.
#[track_caller]
pub fn unzstd(packed: &Path, to: &Path) {
    let flags = ["-d", "-q", "-f", "--long=27", "--sparse"];
    Host::new("zstd")
        .args(flags)
        .arg(packed)
        .arg("-o")
        .arg(to)
        .check();
}

/// Packs a file as `.zst`, as small as zstd can.
#[track_caller]
pub fn zstd(file: &Path, to: &Path) {
    let flags = ["-q", "-f", "-19", "--long=27", "-T0"];
    Host::new("zstd")
        .args(flags)
        .arg(file)
        .arg("-o")
        .arg(to)
        .limit(Duration::from_secs(600))
        .check();
}

/// A copy of a program that can be run at once. By a process of its own: the descriptor it is written by would else be
/// inherited by whatever another thread is starting just now, and until that runs its own program this one is "busy".
pub fn copy_program(from: &Path, to: &Path) {
    Host::new("cp").args([from, to]).check();
}

/// Copies an image, holes kept.
#[track_caller]
pub fn copy_sparse(from: &Path, to: &Path) {
    Host::new("cp").arg("--sparse=always").arg(from).arg(to).check();
}

/// A loop device on a file; detached when dropped.
#[derive(Debug)]
pub struct Loop {
    device: PathBuf,
}

impl Loop {
    /// Attaches the file, with direct I/O.
    #[track_caller]
    pub fn attach(file: &Path) -> Loop {
        let out = Host::new("losetup")
            .args(["--find", "--show", "--direct-io=on"])
            .arg(file)
            .check();
        Loop {
            device: PathBuf::from(out.trim()),
        }
    }

    /// The device node.
    pub fn device(&self) -> &Path {
        &self.device
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let gone = Command::new("losetup").arg("-d").arg(&self.device).status();
        if !gone.is_ok_and(|s| s.success()) && !std::thread::panicking() {
            panic!("losetup -d {} failed", self.device.display());
        }
    }
}
