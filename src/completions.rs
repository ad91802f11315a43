//! Shell completions: every program prints its own when `FUSE_GFS2_COMPLETIONS` names a shell.

use clap::Command;
use clap_complete::Shell;

/// The variable that asks.
const VARIABLE: &str = "FUSE_GFS2_COMPLETIONS";

/// Prints the completions of `command` when they are asked for; says whether they were.
pub fn print(command: &mut Command) -> bool {
    let Some(shell) = std::env::var(VARIABLE).ok().and_then(|s| s.parse::<Shell>().ok()) else {
        return false;
    };
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, command, name, &mut std::io::stdout());
    true
}
