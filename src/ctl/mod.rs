//! `gfs2ctl`: the operator's tool. What looks at volumes only reads, and needs neither a mount nor a lock.
//!
//! Exit codes: 0 done, 1 something could not be read or contradicts the format, 2 wrong use.

mod dlm;
mod dump;

use crate::completions;
use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

/// Exit code of a wrong command line.
const USAGE: u8 = 2;

/// Look at GFS2 volumes and at the lock daemon.
#[derive(Debug, Parser)]
#[command(name = "gfs2ctl", version, after_help = "See gfs2ctl(8).")]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print on-disk structures of a device or image
    Dump(dump::Args),
    /// Ask the lock daemon of a mounted node
    Dlm(dlm::Args),
}

/// The command, for help, completions and the check of the manual.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the tool with its command line, its own name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    if completions::print(&mut command()) {
        return ExitCode::SUCCESS;
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output and are no error; clap knows which is which.
            let failed = error.use_stderr();
            let printed = error.print();
            return match (failed, printed) {
                (true, _) => ExitCode::from(USAGE),
                (false, Ok(())) => ExitCode::SUCCESS,
                (false, Err(_)) => ExitCode::FAILURE,
            };
        }
    };
    let done = match &cli.command {
        Verb::Dump(args) => dump::run(args),
        Verb::Dlm(args) => dlm::run(args)
            .map(|text| dump::Output {
                text,
                problems: Vec::new(),
            })
            .map_err(dump::Failure::Device),
    };
    match done {
        Ok(output) => print(&output),
        Err(dump::Failure::Usage(message)) => {
            eprintln!("gfs2ctl: {message}");
            ExitCode::from(USAGE)
        }
        Err(dump::Failure::Device(message)) => {
            eprintln!("gfs2ctl: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Prints what there is, problems to standard error. A reader that has seen enough is no failure.
fn print(output: &dump::Output) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    let written = stdout
        .write_all(output.text.as_bytes())
        .and_then(|()| stdout.flush());
    for problem in &output.problems {
        eprintln!("gfs2ctl: {problem}");
    }
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("gfs2ctl: standard output: {error}");
            ExitCode::FAILURE
        }
        _ if output.problems.is_empty() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_option_is_in_the_manual() {
        command().debug_assert();
        let manual = include_str!("gfs2ctl.8").replace('\\', "");
        let command = command();
        let dump = command.find_subcommand("dump").unwrap();
        for argument in dump.get_arguments().filter(|a| !a.is_hide_set()) {
            let name = match argument.get_long() {
                Some(long) => format!("--{long}"),
                None => argument.get_id().as_str().to_lowercase(),
            };
            assert!(manual.contains(&name), "{name} is not in gfs2ctl.8");
        }
        let dlm = command.find_subcommand("dlm").unwrap();
        for verb in dlm.get_subcommands().filter(|verb| verb.get_name() != "help") {
            let name = format!("dlm {}", verb.get_name());
            assert!(manual.contains(&name), "{name} is not in gfs2ctl.8");
        }
        for argument in dlm.get_arguments().filter_map(|argument| argument.get_long()) {
            assert!(
                manual.contains(&format!("--{argument}")),
                "--{argument} is not in gfs2ctl.8"
            );
        }
        for word in dump::WORDS {
            assert!(manual.contains(word), "{word} is not in gfs2ctl.8");
        }
    }
}
