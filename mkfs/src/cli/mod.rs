//! The program: arguments, questions, progress, exit status.
//!
//! Invariants: options, defaults, messages and exit statuses are the original's (gfs2-utils 3.5); nothing is written
//! to the device before everything that can be checked has been, and before the user has agreed.

mod args;
mod debug;
mod extended;
mod prompt;
mod report;
mod target;

pub use args::command;
pub use clap_complete::Shell;

use crate::error::Error;
use crate::options::{LockProto, Options, Topology};
use crate::plan::plan;
use crate::write::write_plan;
use args::{Invocation, Request};
use gfs2_format::device::BlockDevice;
use report::Reporter;
use std::ffi::OsString;
use std::io::{BufRead, Write};
use std::process::ExitCode;
use target::Target;

/// Why the program ends without a volume: an exit status and a line for the user, who may have been told already.
#[derive(Debug)]
struct Failure {
    code: u8,
    message: Option<String>,
}

impl Failure {
    /// An argument that cannot be honoured.
    fn usage(message: impl Into<String>) -> Self {
        Self {
            code: 255,
            message: Some(message.into()),
        }
    }

    /// A device that cannot be used.
    fn device(message: impl Into<String>) -> Self {
        Self {
            code: 1,
            message: Some(message.into()),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            code: error.exit_code(),
            message: Some(error.to_string()),
        }
    }
}

/// Where the program talks to its user.
struct Console<'a> {
    input: &'a mut dyn BufRead,
    output: &'a mut dyn Write,
}

impl Console<'_> {
    /// Prints a line. A user who does not listen (a closed pipe) is no reason to stop half-way.
    fn say(&mut self, line: &str) {
        let _ = writeln!(self.output, "{line}");
    }
}

/// Runs the program with these arguments, the first of which is its own name.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.collect();
    let mut input = std::io::stdin().lock();
    let mut output = std::io::stdout();
    let mut console = Console {
        input: &mut input,
        output: &mut output,
    };
    match run(&args, &mut console) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            let _ = console.output.flush();
            if let Some(message) = message {
                let _ = writeln!(std::io::stderr(), "{message}");
            }
            ExitCode::from(code)
        }
    }
}

/// Writes the completion script of a shell for the program.
pub fn completions(shell: Shell, out: &mut dyn Write) {
    clap_complete::generate(shell, &mut command(), "mkfs.gfs2", out);
}

fn run(args: &[OsString], console: &mut Console<'_>) -> Result<(), Failure> {
    match args::parse(args)? {
        Request::Help => {
            let _ = write!(console.output, "{}", args::help());
            Ok(())
        }
        Request::ExtendedHelp => {
            let _ = write!(console.output, "{}", extended::help());
            Ok(())
        }
        Request::Version => {
            console.say(concat!(
                "mkfs.gfs2 ",
                env!("CARGO_PKG_VERSION"),
                " (fuse-gfs2; options and result as of gfs2-utils 3.5.0)"
            ));
            Ok(())
        }
        Request::Make(invocation) => make(&invocation, console),
    }
}

fn make(invocation: &Invocation, console: &mut Console<'_>) -> Result<(), Failure> {
    let options = options_of(invocation)?;
    options.check()?;
    let target = Target::open(&invocation.device)?;
    let say = |console: &mut Console<'_>, line: &str| {
        if !invocation.quiet || !invocation.override_prompt {
            console.say(line);
        }
    };
    let topology = topology_of(invocation, &target);
    if !invocation.topology.is_some_and(|limits| limits.is_known())
        && let Some(found) = target.contents()?
    {
        say(console, &found.to_string());
    }
    let plan = plan(&options, &topology)?;
    for warning in plan.warnings().iter().filter(|_| !invocation.quiet) {
        report::warn(warning, console);
    }
    if invocation.debug {
        debug::print_options(&plan, &options, &topology, invocation, console);
    }
    if let Some(link) = target.symlink() {
        say(console, &link);
    }
    say(
        console,
        &format!("This will destroy any data on {}", target.real_name()),
    );
    if !invocation.override_prompt && !prompt::confirm(console) {
        return Err(Failure {
            code: 255,
            message: None,
        });
    }
    if invocation.debug {
        debug::print_plan(&plan, console)?;
    }
    let reporter = Reporter::new(invocation.quiet, plan.layout().journals());
    if target.is_block_device() && invocation.discard {
        reporter.discarding();
        // Only an advice: devices that cannot are as good.
        let _ = target.device().discard(0, target.device().size());
        reporter.discarded();
    }
    write_plan(target.device(), &plan, &reporter).map_err(|error| target.write_failure(&error))?;
    if !invocation.quiet {
        report::print_summary(&plan.summary(), &invocation.device, console);
    }
    Ok(())
}

fn options_of(invocation: &Invocation) -> Result<Options, Failure> {
    let lock_proto = LockProto::from_name(&invocation.lock_proto).ok_or_else(|| {
        Failure::usage(format!(
            "Invalid lock protocol: {} (it can be lock_dlm or lock_nolock)",
            invocation.lock_proto
        ))
    })?;
    let mut options = invocation.options.clone();
    options.lock_proto = lock_proto;
    Ok(options)
}

fn topology_of(invocation: &Invocation, target: &Target) -> Topology {
    let mut topology = Topology::of_device(target.device());
    if let Some(limits) = invocation.topology
        && (limits.is_known() || !target.is_block_device())
    {
        topology.limits = limits;
    }
    topology
}
