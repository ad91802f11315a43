//! What the test programs share: running the two mkfs, and reading volumes.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod compare;
pub(crate) mod volume;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The program under test.
pub(crate) fn ours() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mkfs-gfs2"));
    command
        .env_remove("SOURCE_DATE_EPOCH")
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    command
}

/// A program of gfs2-utils 3.5; `None` when the user says that there is none here, aloud.
pub(crate) fn reference(name: &str) -> Option<Command> {
    let path = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.exists());
    let Some(path) = path else {
        assert!(
            std::env::var_os("MKFS_TESTS_WITHOUT_REFERENCE").is_some(),
            "{name} of gfs2-utils 3.5 is needed: install it, or set MKFS_TESTS_WITHOUT_REFERENCE=1 to do without"
        );
        eprintln!("NOT TESTED against the original: {name} is not installed");
        return None;
    };
    let mut command = Command::new(path);
    command.env("LC_ALL", "C").stdin(Stdio::null());
    Some(command)
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// Runs a command that must succeed.
pub(crate) fn run_ok(command: &mut Command) -> Output {
    let output = run(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A sparse image file.
pub(crate) fn image(dir: &Path, name: &str, size: u64) -> PathBuf {
    let path = dir.join(name);
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(size).unwrap_or_else(|e| panic!("{size} bytes: {e}"));
    path
}
