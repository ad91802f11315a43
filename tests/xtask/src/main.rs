//! The project's own commands: `cargo xtask demo`, `cargo xtask test`, `cargo xtask install`, `cargo xtask tools`.

mod demo;
mod install;
mod steps;
mod test;
mod tools;
mod watch;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser, Debug)]
#[command(name = "cargo xtask", about = "The project's own commands")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand, Debug)]
enum Task {
    /// Make a volume in an image file, mount it, write, read, unmount, check; says at each step what it did
    Demo(demo::Args),
    /// Install what the tests need (Debian, root) and run them all: format, lints, docs, tests, the real kernel
    Test(test::Args),
    /// Build the test suites that come from crates.io into target/tools, once
    Tools,
    /// Run one test program, and end it with a report when it hangs
    #[command(hide = true)]
    Watch(watch::Args),
    /// Build and install the programs, man pages and completions
    Install(install::Args),
    /// Remove what `install` put in place
    Uninstall(install::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Tools => tools::install(),
        Task::Watch(args) => match watch::run(&args) {
            Ok(code) => return code,
            Err(message) => Err(message),
        },
        Task::Install(args) => install::install(&args),
        Task::Uninstall(args) => install::uninstall(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
