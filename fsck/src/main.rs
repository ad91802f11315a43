//! `fsck.gfs2`: options, prompts and exit codes of the reference tool over [`gfs2_fsck::check`].

use clap::Parser;
use gfs2_format::Error;
use gfs2_format::device::{BlockDevice, FileDevice, OpenOptions};
use gfs2_format::log::LogTime;
use gfs2_fsck::undo::{self, UndoDevice};
use gfs2_fsck::{Outcome, Policy};
use std::fs::File;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

mod terminal;

use terminal::{Answers, Terminal, complain, say};

/// Everything found was repaired.
const FIXED: u8 = 1;
/// Damage is left.
const UNCORRECTED: u8 = 4;
/// The device failed.
const OPERATIONAL: u8 = 8;
/// Wrong usage: options, a device that cannot be opened, a volume this version does not know.
const USAGE: u8 = 16;

/// The user ended it.
const CANCELLED: u8 = 32;
/// The system's libraries failed.
const LIBRARY: u8 = 128;
/// Memory for changes when nothing else is said.
const MEMORY: u64 = 64 << 20;

/// Checks and repairs a GFS2 volume.
#[derive(Debug, Parser)]
#[command(
    name = "fsck.gfs2",
    disable_help_flag = true,
    disable_version_flag = true,
    after_help = "Exit codes, added up: 0 clean, 1 everything found was repaired, 4 damage is left, 8 the device \
                  failed, 16 usage, 32 cancelled, 128 library.\nThe volume must not be mounted anywhere, on any node."
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
    /// Repair in memory only, and show what would be written
    #[arg(long = "dry-run")]
    dry_run: bool,
    /// Keep what is overwritten in this new file
    #[arg(long = "undo", value_name = "FILE")]
    undo: Option<PathBuf>,
    /// Put back what such a file has kept, and do nothing else
    #[arg(long = "restore", value_name = "FILE")]
    restore: Option<PathBuf>,
    /// Memory for changes before they are written, in bytes (K, M, G)
    #[arg(long = "memory", value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
    /// One JSON object a line instead of text
    #[arg(long = "json")]
    json: bool,
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
    let look = options.no || (options.dry_run && options.restore.is_none());
    let device = match open(&path, look) {
        Ok(device) => device,
        Err(e) => return usage(&format!("fsck.gfs2: {}: {e}", path.display())),
    };
    if let Some(file) = &options.restore {
        return restore(&path, &device, file);
    }
    let Some(file) = options.undo.as_ref().filter(|_| !look) else {
        return check(&options, &path, &device, preen);
    };
    let kept = File::create_new(file).map_err(|e| e.to_string());
    let kept = kept.and_then(|file| UndoDevice::new(&device, file).map_err(|e| e.to_string()));
    match kept {
        Ok(device) => check(&options, &path, &device, preen),
        Err(e) => usage(&format!("fsck.gfs2: {}: {e}", file.display())),
    }
}

/// A number of bytes with K, M or G behind it.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..).unwrap_or_default() {
        "" => 0,
        "k" | "K" | "KiB" => 10,
        "m" | "M" | "MiB" => 20,
        "g" | "G" | "GiB" => 30,
        other => return Err(format!("{other} is no unit; K, M and G are")),
    };
    let number: u64 = digits.parse().map_err(|e| format!("{digits}: {e}"))?;
    let bytes = number.checked_mul(1 << shift).ok_or("too large")?;
    match bytes {
        0..0x10_0000 => Err("at least 1M is needed".to_owned()),
        _ => Ok(bytes),
    }
}

fn restore(path: &Path, device: &FileDevice, file: &Path) -> u8 {
    let opened = match File::open(file) {
        Ok(opened) => opened,
        Err(e) => return usage(&format!("fsck.gfs2: {}: {e}", file.display())),
    };
    match undo::restore(device, opened) {
        Ok(bytes) => {
            say(&format!("{}: {bytes} bytes put back.", path.display()));
            0
        }
        Err(e) => {
            complain(&format!("fsck.gfs2: {}: {e}", path.display()));
            OPERATIONAL
        }
    }
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

fn check(options: &Options, path: &Path, device: &dyn BlockDevice, preen: bool) -> u8 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut policy = Policy::repair(LogTime {
        sec: now.as_secs(),
        nsec: now.subsec_nanos(),
    });
    policy.read_only = options.no;
    policy.preen = preen;
    policy.force = options.force;
    policy.dry_run = options.dry_run;
    // What may not be written stays in memory: of a journal as much as it holds.
    let unwritten = options.no || options.dry_run;
    policy.memory = options.memory.unwrap_or(if unwritten { 1 << 30 } else { MEMORY });
    let level = u8::from(!options.quiet) + options.verbose;
    let answers = if options.yes || preen || options.dry_run {
        Answers::Yes
    } else {
        Answers::Ask
    };
    let mut terminal = match Terminal::new(level, answers, options.json) {
        Ok(terminal) => terminal,
        Err(e) => {
            complain(&format!("fsck.gfs2: signals: {e}"));
            return LIBRARY;
        }
    };
    syslog(&format!("{}: started", path.display()));
    if level > 1 && !options.json {
        say(&format!(
            "{}: {} bytes, sectors of {}",
            path.display(),
            device.size(),
            device.sector_size()
        ));
    }
    let result = gfs2_fsck::check(device, &policy, &mut terminal);
    terminal.finish();
    let code = match result {
        Ok(outcome) => conclude(options, path, &outcome),
        Err(e @ Error::Unsupported { .. }) => usage(&format!("fsck.gfs2: {}: {e}", path.display())),
        Err(e) => {
            complain(&format!("fsck.gfs2: {}: {e}", path.display()));
            OPERATIONAL
        }
    };
    syslog(&format!("{}: exits with {code}", path.display()));
    code
}

/// As the reference, a run leaves its traces in the system's log; where there is none, it does without.
fn syslog(text: &str) {
    // Facility user, severity info.
    let line = format!("<14>fsck.gfs2[{}]: {text}", std::process::id());
    if let Ok(socket) = UnixDatagram::unbound() {
        let _ = socket.set_nonblocking(true);
        let _ = socket.send_to(line.as_bytes(), "/dev/log");
    }
}

fn conclude(options: &Options, path: &Path, outcome: &Outcome) -> u8 {
    let code = exit_code(options, outcome);
    if options.json {
        let summary = serde_json::json!({
            "event": "summary", "device": path.display().to_string(), "errors": outcome.errors,
            "warnings": outcome.warnings, "repaired": outcome.corrected, "unreadable": outcome.unreadable,
            "preened": outcome.preened, "stopped": outcome.stopped, "cancelled": outcome.cancelled, "exit": code,
        });
        say(&summary.to_string());
        return code;
    }
    let device = path.display();
    let (errors, corrected) = (outcome.errors, outcome.corrected);
    if outcome.cancelled {
        say(&format!("{device}: interrupted; nothing more was written."));
    } else if outcome.skipped {
        say(&format!(
            "{device}: {errors} problems found; a part was left out."
        ));
    } else if outcome.preened {
        say(&format!("{device}: clean."));
    } else if errors == 0 {
        if !options.quiet {
            say(&format!("{device}: clean, {} warnings.", outcome.warnings));
        }
    } else if options.dry_run {
        say(&format!(
            "{device}: {errors} problems found, {corrected} could be repaired."
        ));
    } else if outcome.uncorrected() == 0 {
        say(&format!(
            "{device}: {errors} problems found, all of them repaired."
        ));
    } else {
        say(&format!(
            "{device}: {errors} problems found, {corrected} repaired."
        ));
    }
    if outcome.unreadable > 0 && errors > 0 && !options.no && !options.force {
        complain(
            "fsck.gfs2: blocks cannot be read, and what they hold looks lost: nothing is repaired without -f.",
        );
    }
    if (options.preen || options.auto) && !options.force && outcome.uncorrected() > 0 {
        complain(
            "Please make sure no node has the file system mounted then rerun fsck.gfs2 manually without -a or -p.",
        );
    }
    if outcome.stopped {
        complain("fsck.gfs2: the check ended early: what comes after that damage cannot be judged.");
    }
    code
}

fn exit_code(options: &Options, outcome: &Outcome) -> u8 {
    let damage = match outcome {
        Outcome { cancelled: true, .. } => CANCELLED,
        Outcome { skipped: true, .. } => UNCORRECTED,
        Outcome { preened: true, .. } | Outcome { errors: 0, .. } => 0,
        _ if options.dry_run || outcome.uncorrected() > 0 => UNCORRECTED,
        _ => FIXED,
    };
    damage | if outcome.unreadable > 0 { OPERATIONAL } else { 0 }
}

fn usage(text: &str) -> u8 {
    complain(text.trim_end());
    USAGE
}
