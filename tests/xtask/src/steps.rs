//! Running programs, step by step, and saying so.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A failure in one line.
pub(crate) type Step<T = ()> = Result<T, String>;

/// The checkout's top folder.
pub(crate) fn top() -> PathBuf {
    // tests/xtask is two below it.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("."))
        .to_path_buf()
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top().join("target"), PathBuf::from)
}

/// A cargo command in the checkout.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(top());
    command
}

/// Runs a program to its end; its output is the user's.
pub(crate) fn run(command: &mut Command) -> Step {
    let shown = show(command);
    let status = command
        .status()
        .map_err(|error| format!("cannot run {shown}: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{shown}: {status}"))
    }
}

/// Runs a program to its end and gives what it printed.
pub(crate) fn output(command: &mut Command) -> Step<String> {
    let shown = show(command);
    let output = command
        .output()
        .map_err(|error| format!("cannot run {shown}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{shown}: {}\n{text}{errors}", output.status))
}

/// The command as a person would type it.
pub(crate) fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Builds the four programs; gives the folder they are in.
pub(crate) fn build_programs() -> Step<PathBuf> {
    run(cargo().args(["build", "--release", "--locked", "--quiet"]))?;
    Ok(target_dir().join("release"))
}
