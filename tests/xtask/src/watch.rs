//! A test program under watch: one that does not end says where it stands, is ended, and has failed.
//!
//! Invariants: whatever hangs (a deadlock of ours, a process in the kernel, an emulator), the run goes on with the next
//! program and its log tells what every thread was waiting for; mounts of ours below the target folder are cut off, for
//! a dead one can hold others in the kernel for ever.

use crate::steps::target_dir;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Seconds a test program may take; the longest (the lock managers beside real kernels) takes 4 minutes on two idle
/// processors.
const LIMIT: u64 = 1200;
/// Changes it.
const LIMIT_VARIABLE: &str = "FUSE_GFS2_TEST_LIMIT";
/// What a killed process may take to go.
const PATIENCE: Duration = Duration::from_secs(10);

/// A test program and its arguments.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

/// Runs the program; its exit status is ours.
pub(crate) fn run(args: &Args) -> Result<ExitCode, String> {
    let shown = Path::new(&args.command[0]).display();
    let limit = match std::env::var(LIMIT_VARIABLE) {
        Ok(text) => text
            .parse()
            .map_err(|_| format!("{LIMIT_VARIABLE}={text}: seconds expected"))?,
        Err(_) => LIMIT,
    };
    let mut child = Command::new(&args.command[0])
        .args(&args.command[1..])
        .spawn()
        .map_err(|error| format!("cannot run {shown}: {error}"))?;
    let pid = child.id();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(child.wait()));
    match told.recv_timeout(Duration::from_secs(limit)) {
        Ok(Ok(status)) => return Ok(ended(status)),
        Ok(Err(error)) => return Err(format!("waiting for {shown}: {error}")),
        Err(_) => {}
    }
    eprintln!(
        "\nxtask: {shown} has not ended after {limit} s ({LIMIT_VARIABLE} changes that). Where it stands:"
    );
    let processes = concerned(pid);
    for process in &processes {
        process.describe();
    }
    cut_off_mounts();
    for process in &processes {
        // It may have gone by itself.
        let _ = Command::new("kill")
            .args(["-KILL", &process.pid.to_string()])
            .stderr(Stdio::null())
            .status();
    }
    let gone = told.recv_timeout(PATIENCE).is_ok();
    let left = if gone { "" } else { " and cannot be killed" };
    Err(format!("{shown} took more than {limit} s{left}"))
}

fn ended(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    if let Some(signal) = status.signal() {
        eprintln!("xtask: the test program was ended by signal {signal}");
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(101))
}

/// A process that is looked at.
struct Process {
    pid: u32,
    parent: u32,
    program: PathBuf,
}

impl Process {
    fn read(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may hold any byte; then come the state and the parent.
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        Some(Self { pid, parent, program })
    }

    /// Every thread: what it is called, its state, where in the kernel it waits, and where in the program.
    fn describe(&self) {
        let pid = self.pid;
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line: Vec<_> = line
            .split(|b| *b == 0)
            .map(String::from_utf8_lossy)
            .take(8)
            .collect();
        eprintln!("\n== {pid} (of {}) {}", self.parent, line.join(" "));
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
            return eprintln!("gone");
        };
        for thread in threads.flatten().take(64) {
            let word = |name: &str| {
                let text = fs::read_to_string(thread.path().join(name)).unwrap_or_default();
                text.trim().to_owned()
            };
            let state = word("status");
            let state = state.lines().find(|l| l.starts_with("State:")).unwrap_or("gone");
            let tid = thread.file_name();
            eprintln!(
                "-- {} {}, {state}, in {}, call {}",
                tid.display(),
                word("comm"),
                word("wchan"),
                word("syscall")
            );
            for frame in word("stack").lines().take(16) {
                eprintln!("   {frame}");
            }
        }
        if self.program.starts_with(target_dir()) {
            backtraces(pid);
        }
    }
}

/// What the debugger says, if it is there and can stop the process.
fn backtraces(pid: u32) {
    let said = Command::new("timeout")
        .args([
            "--signal=KILL",
            "60",
            "gdb",
            "-nx",
            "-batch",
            "-p",
            &pid.to_string(),
        ])
        .args([
            "-ex",
            "set pagination off",
            "-ex",
            "thread apply all backtrace 40",
        ])
        .stdin(Stdio::null())
        .output();
    match said {
        Ok(said) if said.status.success() => eprintln!("{}", String::from_utf8_lossy(&said.stdout)),
        Ok(said) => eprintln!("gdb: {}: {}", said.status, String::from_utf8_lossy(&said.stderr)),
        Err(error) => eprintln!("gdb: {error}"),
    }
}

/// The program, what it started, and daemons of ours that have left it.
fn concerned(root: u32) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok());
    let all: Vec<Process> = pids.filter_map(Process::read).collect();
    let mut ours = HashSet::from([root]);
    loop {
        let before = ours.len();
        ours.extend(
            all.iter()
                .filter(|p| ours.contains(&p.parent))
                .map(|p| p.pid)
                .collect::<Vec<_>>(),
        );
        if ours.len() == before {
            break;
        }
    }
    // Cargo and this watch run programs of the same folder: what is not below the root must have left its parent.
    let (target, tasks) = (target_dir(), std::env::current_exe().unwrap_or_default());
    all.into_iter()
        .filter(|p| {
            let left = p.parent == 1 && p.program.starts_with(&target) && p.program != tasks;
            ours.contains(&p.pid) || left
        })
        .collect()
}

/// Ends the connections of our mounts below the target folder.
fn cut_off_mounts() {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in table.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (Some(device), Some(target)) = (fields.get(2), fields.get(4)) else {
            continue;
        };
        if !line.contains(" - fuse.gfs2 ") || !Path::new(target).starts_with(target_dir()) {
            continue;
        }
        let number = device.split_once(':').map_or("", |(_, minor)| minor);
        let waiting = fs::read_to_string(format!("/sys/fs/fuse/connections/{number}/waiting"));
        eprintln!(
            "mount {target}: {} requests wait",
            waiting.unwrap_or_default().trim()
        );
        if let Err(error) = fs::write(format!("/sys/fs/fuse/connections/{number}/abort"), "1") {
            eprintln!("cannot end it: {error}");
        }
    }
}

/// The `--config` that makes cargo run every test program under this watch.
pub(crate) fn as_runner() -> Result<String, String> {
    let own = std::env::current_exe().map_err(|error| format!("the path of xtask: {error}"))?;
    let own = own
        .to_str()
        .filter(|path| !path.contains(['\'', '\n']))
        .ok_or_else(|| format!("{}: no path that cargo's configuration can hold", own.display()))?;
    Ok(format!("target.'cfg(all())'.runner=['{own}', 'watch']"))
}
