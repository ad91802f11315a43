//! Everything that must hold before a change lands.

use crate::steps::{Step, cargo, run as step, top};
use crate::{tools, watch};
use std::process::Command;

/// `cargo xtask test`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Install nothing (everything the tests need is there)
    #[arg(long)]
    no_setup: bool,
}

pub(crate) fn run(args: &Args) -> Step {
    if !args.no_setup {
        println!("==> installing what the tests need");
        step(Command::new("bash").arg(top().join("tests/lab/setup.sh")))?;
        tools::install()?;
    }
    println!("==> format");
    step(cargo().args(["fmt", "--all", "--check"]))?;
    println!("==> lints");
    step(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))?;
    println!("==> documentation");
    step(
        cargo()
            .args(["doc", "--workspace", "--no-deps", "--locked", "--quiet"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    println!("==> programs");
    step(cargo().args(["build", "--release", "--locked"]))?;
    println!("==> tests");
    step(cargo().arg("--config").arg(watch::as_runner()?).args([
        "test",
        "--workspace",
        "--locked",
        "--no-fail-fast",
    ]))
}
