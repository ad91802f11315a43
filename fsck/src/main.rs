//! `fsck.gfs2`: options, prompts and exit codes of the reference tool over [`gfs2_fsck::check`].

use clap::Parser;
use gfs2_format::Error;
use gfs2_format::device::{BlockDevice, FileDevice, OpenOptions};
use gfs2_format::log::{LogTime, RecoveryReport};
use gfs2_fsck::{Class, Outcome, Policy, Problem, Question, Reporter, Stage};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

/// Everything found was repaired.
const FIXED: u8 = 1;
/// Damage is left.
const UNCORRECTED: u8 = 4;
/// The device failed.
const OPERATIONAL: u8 = 8;
/// Wrong usage: options, a device that cannot be opened, a volume this version does not know.
const USAGE: u8 = 16;

/// Checks a GFS2 volume; repairs dirty journals.
#[derive(Debug, Parser)]
#[command(
    name = "fsck.gfs2",
    disable_help_flag = true,
    disable_version_flag = true,
    after_help = "Exit codes, added up: 0 clean, 1 everything found was repaired, 4 damage is left, 8 the device \
                  failed, 16 usage.\nThe volume must not be mounted anywhere, on any node."
)]
struct Options {
    /// Preen: like -p
    #[arg(short = 'a')]
    auto: bool,
    /// Preen: replay journals without asking; stop there if the volume looks clean
    #[arg(short = 'p')]
    preen: bool,
    /// Check everything even when preening finds nothing
    #[arg(short = 'f')]
    force: bool,
    /// Show this help
    #[arg(short = 'h', long = "help")]
    help: bool,
    /// Answer no to every question: only look, write nothing
    #[arg(short = 'n')]
    no: bool,
    /// Say only what is wrong
    #[arg(short = 'q', long = "quiet")]
    quiet: bool,
    /// Say more
    #[arg(short = 'v', long = "verbose", action = clap::ArgAction::Count)]
    verbose: u8,
    /// Show the version
    #[arg(short = 'V', long = "version")]
    version: bool,
    /// Answer yes to every question
    #[arg(short = 'y')]
    yes: bool,
    /// The block device or image file
    device: Option<PathBuf>,
}

fn main() -> ExitCode {
    // Asked for by the installer, as of every program of the project.
    if let Some(shell) = std::env::var("FUSE_GFS2_COMPLETIONS")
        .ok()
        .and_then(|name| name.parse().ok())
    {
        let mut command = <Options as clap::CommandFactory>::command();
        clap_complete::generate::<clap_complete::Shell, _>(
            shell,
            &mut command,
            "fsck.gfs2",
            &mut io::stdout(),
        );
        return ExitCode::SUCCESS;
    }
    ExitCode::from(run())
}

fn run() -> u8 {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(e) => return usage(&e.to_string()),
    };
    if options.help {
        let help = <Options as clap::CommandFactory>::command().render_help();
        say(&help.to_string());
        return 0;
    }
    if options.version {
        say(concat!("fsck.gfs2 (fuse-gfs2) ", env!("CARGO_PKG_VERSION")));
        return 0;
    }
    let preen = options.auto || options.preen;
    if [preen, options.no, options.yes]
        .iter()
        .filter(|given| **given)
        .count()
        > 1
    {
        return usage("fsck.gfs2: only one of -p (or -a), -n and -y can be given");
    }
    let Some(path) = options.device.clone() else {
        return usage("fsck.gfs2: no device given; -h shows the usage");
    };
    let device = match open(&path, options.no) {
        Ok(device) => device,
        Err(e) => return usage(&format!("fsck.gfs2: {}: {e}", path.display())),
    };
    check(&options, &path, &device, preen)
}

fn open(path: &Path, read_only: bool) -> Result<FileDevice, Error> {
    // Another node may have written since this machine cached a shared device; image files are of this machine.
    let block_device = std::fs::metadata(path).is_ok_and(|meta| {
        use std::os::unix::fs::FileTypeExt;
        meta.file_type().is_block_device()
    });
    OpenOptions::new()
        .read_only(read_only)
        .exclusive(!read_only)
        .direct(block_device)
        .open(path)
}

fn check(options: &Options, path: &Path, device: &FileDevice, preen: bool) -> u8 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut policy = Policy::repair(LogTime {
        sec: now.as_secs(),
        nsec: now.subsec_nanos(),
    });
    policy.read_only = options.no;
    policy.preen = preen;
    policy.force = options.force;
    let mut terminal = Terminal {
        level: u8::from(!options.quiet) + options.verbose,
        yes: options.yes || preen,
    };
    if terminal.level > 1 {
        say(&format!(
            "{}: {} bytes, sectors of {}",
            path.display(),
            device.size(),
            device.sector_size()
        ));
    }
    match gfs2_fsck::check(device, &policy, &mut terminal) {
        Ok(outcome) => conclude(options, path, &outcome),
        Err(e @ Error::Unsupported { .. }) => usage(&format!("fsck.gfs2: {}: {e}", path.display())),
        Err(e) => {
            complain(&format!("fsck.gfs2: {}: {e}", path.display()));
            OPERATIONAL
        }
    }
}

fn conclude(options: &Options, path: &Path, outcome: &Outcome) -> u8 {
    let device = path.display();
    let mut code = 0;
    if outcome.preened {
        say(&format!("{device}: clean."));
    } else if outcome.errors == 0 {
        if !options.quiet {
            say(&format!("{device}: clean, {} warnings.", outcome.warnings));
        }
    } else if outcome.uncorrected() == 0 {
        code = FIXED;
        say(&format!(
            "{device}: {} problems found, all of them repaired.",
            outcome.errors
        ));
    } else {
        code = UNCORRECTED;
        say(&format!(
            "{device}: {} problems found, {} repaired. This version repairs dirty journals only: for the rest use \
             the fsck.gfs2 of gfs2-utils.",
            outcome.errors, outcome.corrected
        ));
    }
    if outcome.stopped {
        complain("fsck.gfs2: the check ended early: what comes after that damage cannot be judged.");
    }
    code | if outcome.unreadable > 0 { OPERATIONAL } else { 0 }
}

/// Writes a line; a closed pipe is no reason to stop a check half-way.
fn say(text: &str) {
    let _ = writeln!(io::stdout().lock(), "{text}");
}

fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

fn usage(text: &str) -> u8 {
    complain(text.trim_end());
    USAGE
}

#[derive(Debug)]
struct Terminal {
    /// 0: findings; 1: stages, too; 2: details.
    level: u8,
    yes: bool,
}

impl Reporter for Terminal {
    fn stage(&mut self, stage: Stage) {
        if self.level > 0 {
            say(&format!("Checking {stage}."));
        }
    }

    fn problem(&mut self, problem: &Problem) {
        match problem.kind.class() {
            Class::Warning => say(&format!("Warning: {problem}")),
            Class::Error | Class::Fatal => say(&problem.to_string()),
        }
    }

    fn ask(&mut self, question: Question) -> bool {
        if self.yes {
            say(&format!("{question} (y/n) y"));
            return true;
        }
        loop {
            let mut out = io::stdout().lock();
            let _ = write!(out, "{question} (y/n) ");
            let _ = out.flush();
            let mut answer = String::new();
            match io::stdin().lock().read_line(&mut answer) {
                // The end of the input is a no.
                Ok(0) | Err(_) => return false,
                Ok(_) => match answer.trim() {
                    "y" | "Y" | "yes" => return true,
                    "n" | "N" | "no" => return false,
                    _ => {}
                },
            }
        }
    }

    fn replayed(&mut self, report: &RecoveryReport, in_memory: bool) {
        let counts = report.counts;
        let how = if in_memory {
            "in memory only, for this check"
        } else {
            "on the device"
        };
        say(&format!(
            "journal{}: {} of {} blocks replayed {how}, {} revokes.",
            report.jid, counts.replayed, counts.found, counts.revokes
        ));
    }
}
