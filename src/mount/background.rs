//! Going to the background: the helper starts itself again as the daemon and ends when the mount is live or failed.
//!
//! The daemon's standard output is a pipe to the helper; the first line on it is the verdict: `ready`, or
//! `failed CODE MESSAGE`. A pipe that closes without a line says that the daemon died.

use super::cli::{MountError, MountRequest, exit};
use std::ffi::CStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// The name of the daemon's process; as long as the kernel keeps names.
const PROCESS_NAME: &CStr = c"mount.fuse-gfs2";

/// How many heaps the C library may make. Its own choice is eight for each processor, and what many threads free in many
/// heaps goes back to none of them: a million files made with `memory=32M` then took 398 MiB, and 139 MiB like this.
const ARENAS: &str = "MALLOC_ARENA_MAX";

/// Starts the daemon and waits for its verdict.
///
/// # Errors
/// The daemon's failure, or that it could not be started.
pub fn start_and_wait(request: &MountRequest) -> Result<(), MountError> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("mount.fuse-gfs2")
        .arg("--daemon-child")
        .arg(&request.device)
        .arg(&request.target);
    if !request.options_text.is_empty() {
        command.arg("-o").arg(&request.options_text);
    }
    for (given, flag) in [
        (request.sloppy, "-s"),
        (request.verbose, "-v"),
        (request.fake, "-f"),
    ] {
        if given {
            command.arg(flag);
        }
    }
    if std::env::var_os(ARENAS).is_none() {
        let cpus = std::thread::available_parallelism().map_or(2, |n| n.get().max(2));
        command.env(ARENAS, cpus.to_string());
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| MountError::system(format!("cannot start the daemon: {error}")))?;
    let mut verdict = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output)
            .read_line(&mut verdict)
            .map_err(|error| MountError::system(format!("cannot hear from the daemon: {error}")))?;
    }
    parse_verdict(verdict.trim_end()).unwrap_or_else(|| {
        let status = child.wait().map(|s| s.to_string()).unwrap_or_default();
        Err(MountError {
            code: exit::SOFTWARE,
            message: format!("the daemon died before the mount was live ({status}); its log says why"),
        })
    })
}

fn parse_verdict(line: &str) -> Option<Result<(), MountError>> {
    if line == "ready" {
        return Some(Ok(()));
    }
    let (code, message) = line.strip_prefix("failed ")?.split_once(' ')?;
    Some(Err(MountError {
        code: code.parse().ok()?,
        message: message.to_owned(),
    }))
}

/// The daemon's end of the pipe.
#[derive(Debug, Default)]
pub struct Verdict;

impl Verdict {
    /// Makes us a daemon proper: own session, no working directory kept busy.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn detach() -> Result<Self, MountError> {
        // Started as /proc/self/exe, it would be "exe" in process lists.
        rustix::thread::set_name(PROCESS_NAME)
            .map_err(|error| MountError::system(format!("cannot name the process: {error}")))?;
        // Already a session leader (started by an init system directly): nothing to leave.
        let _ = rustix::process::setsid();
        rustix::process::chdir("/").map_err(|error| MountError::system(format!("chdir /: {error}")))?;
        Ok(Self)
    }

    /// The mount is live: lets the helper end, and lets go of the caller's terminal.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn ready(self) -> Result<(), MountError> {
        say("ready\n");
        let null = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(|error| MountError::system(format!("/dev/null: {error}")))?;
        rustix::stdio::dup2_stdout(&null)
            .and_then(|()| rustix::stdio::dup2_stderr(&null))
            .map_err(|error| MountError::system(format!("cannot leave the terminal: {error}")))
    }

    /// There was nothing to serve (a fake mount): lets the helper end.
    pub fn done(self) {
        say("ready\n");
    }

    /// It failed.
    pub fn failed(self, error: &MountError) {
        say(&format!(
            "failed {} {}\n",
            error.code,
            error.message.replace('\n', " ")
        ));
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout();
    // The helper may be gone (killed by the user): then nobody wants to know.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_understood_and_anything_else_is_a_death() {
        assert_eq!(parse_verdict("ready"), Some(Ok(())));
        let failed = parse_verdict("failed 32 no free journal").unwrap().unwrap_err();
        assert_eq!((failed.code, failed.message.as_str()), (32, "no free journal"));
        assert_eq!(parse_verdict(""), None);
        assert_eq!(parse_verdict("failed x"), None);
    }
}
