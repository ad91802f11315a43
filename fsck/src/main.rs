//! `fsck.gfs2`: options, prompts and exit codes of the reference tool over [`gfs2_fsck::check`].

use clap::Parser;
use gfs2_format::Error;
use gfs2_format::device::{BlockDevice, FileDevice, OpenOptions};
use gfs2_format::log::LogTime;
use gfs2_fsck::undo::{self, UndoDevice};
use gfs2_fsck::{MEMORY, Outcome, Policy};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

mod cluster;
mod mounted;
mod terminal;

use terminal::{Answers, Terminal, complain, say};

/// Everything found was repaired.
const FIXED: u8 = 1;
/// The root filesystem was repaired under the running system.
const REBOOT: u8 = 2;
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
/// How long a shared volume with a dirty journal is watched: nodes write their journals every 30 seconds at least when
/// they have something to write.
const WATCH: u64 = 35;

/// Checks and repairs a GFS2 volume.
#[derive(Debug, Parser)]
#[command(
    name = "fsck.gfs2",
    disable_help_flag = true,
    disable_version_flag = true,
    after_help = "Exit codes, added up: 0 clean, 1 everything found was repaired, 2 reboot, 4 damage is left, 8 the \
                  device failed, 16 usage or in use, 32 cancelled, 128 library.\nThe volume must not be mounted anywhere, on any node."
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
    /// Go on although the volume is in use
    #[arg(long = "force-mounted")]
    force_mounted: bool,
    /// Watch the journals of a shared volume so long before it is repaired: is another node writing?
    #[arg(long = "watch", value_name = "SECONDS", default_value_t = WATCH)]
    watch: u64,
    /// Memory the check may take, in bytes (K, M, G); more only where it cannot do with less
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

/// Takes out what fsck(8) may hand on from its own command line: `-C[FD]` (progress, to a descriptor), `-T` (no title).
fn of_fsck(args: impl Iterator<Item = OsString>) -> (Vec<OsString>, Option<u32>) {
    let mut progress = None;
    let own = args.filter(|arg| match arg.to_str().and_then(|arg| arg.strip_prefix("-C")) {
        Some("" | "-") => false,
        Some(fd) => match fd.trim_start_matches('-').parse() {
            Ok(fd) => {
                progress = Some(fd).filter(|fd| *fd != 0);
                false
            }
            Err(_) => true,
        },
        None => arg != "-T",
    });
    let own = own.collect();
    (own, progress)
}

fn run() -> u8 {
    let (args, progress) = of_fsck(std::env::args_os());
    let options = match Options::try_parse_from(args) {
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
    let refused = |why: String| usage(&format!("fsck.gfs2: {}: {why}", path.display()));
    let (device, root) = match claim(&path, look, options.force_mounted) {
        Ok(opened) => opened,
        Err(why) => return refused(why),
    };
    // Preening alone writes nothing to what other nodes may have mounted, and says so itself.
    let preens = preen && !options.force && options.restore.is_none();
    if !preens && let Err(why) = ask_cluster(&path, &device, look || options.force_mounted) {
        return refused(why);
    }
    let task = Task {
        options: &options,
        path: &path,
        progress,
        root,
    };
    if let Some(file) = &options.restore {
        return restore(&path, &device, file);
    }
    let Some(file) = options.undo.as_ref().filter(|_| !look) else {
        return check(&task, &device, preen);
    };
    let kept = File::create_new(file).map_err(|e| e.to_string());
    let kept = kept.and_then(|file| UndoDevice::new(&device, file).map_err(|e| e.to_string()));
    match kept {
        Ok(device) => check(&task, &device, preen),
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

/// What is to be done with what.
#[derive(Clone, Copy, Debug)]
struct Task<'a> {
    options: &'a Options,
    path: &'a Path,
    /// A descriptor for the progress.
    progress: Option<u32>,
    /// It is the root filesystem, mounted read-only.
    root: bool,
}

/// Opens the device, unless it is in use; tells whether it is the root filesystem. An error is its text.
fn claim(path: &Path, look: bool, forced: bool) -> Result<(FileDevice, bool), String> {
    let mounts = mounted::mounts_of(path);
    let root = mounts.iter().any(mounted::Mount::is_root_read_only);
    let in_use = mounts.iter().find(|mount| !mount.is_root_read_only());
    if let Some(mount) = in_use {
        let (on, kind) = (mount.target.display(), &mount.kind);
        if !look && !forced {
            return Err(format!(
                "is mounted on {on} ({kind}); unmount it first (umount {on})"
            ));
        }
        complain(&format!(
            "fsck.gfs2: {}: is mounted on {on} ({kind}): what is found may be about to change",
            path.display()
        ));
    }
    let exclusive = !look && !forced && mounts.is_empty();
    let opened = open(path, look, exclusive).map_err(|e| match &e {
        Error::Io { source, .. } if source.kind() == io::ErrorKind::ResourceBusy => {
            "is in use by another program (a mounted filesystem, fsck, mkfs, device mapper); stop it first"
                .to_owned()
        }
        _ => e.to_string(),
    });
    Ok((opened?, root && !look))
}

/// Asks whether nodes of this machine's cluster have the volume mounted; who may not go on (`anyway`) is told why.
fn ask_cluster(path: &Path, device: &FileDevice, anyway: bool) -> Result<(), String> {
    match cluster::users_of(device) {
        None => {}
        Some(Ok(users)) if !anyway => return Err(format!("{users}; unmount it there first")),
        Some(Ok(users)) => complain(&format!(
            "fsck.gfs2: {}: {users}: what is found may be about to change",
            path.display()
        )),
        Some(Err(why)) => complain(&format!(
            "fsck.gfs2: {}: cannot tell whether other nodes have it mounted: {why}",
            path.display()
        )),
    }
    Ok(())
}

fn open(path: &Path, read_only: bool, exclusive: bool) -> Result<FileDevice, Error> {
    // Another node may have written since this machine cached a shared device; image files are of this machine.
    let block_device = std::fs::metadata(path).is_ok_and(|meta| {
        use std::os::unix::fs::FileTypeExt;
        meta.file_type().is_block_device()
    });
    OpenOptions::new()
        .read_only(read_only)
        .exclusive(exclusive)
        .direct(block_device)
        .open(path)
}

fn check(task: &Task<'_>, device: &dyn BlockDevice, preen: bool) -> u8 {
    let Task { options, path, .. } = *task;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut policy = Policy::repair(LogTime {
        sec: now.as_secs(),
        nsec: now.subsec_nanos(),
    });
    policy.read_only = options.no;
    policy.preen = preen;
    policy.force = options.force;
    policy.dry_run = options.dry_run;
    policy.memory = options.memory.unwrap_or(MEMORY);
    if !options.force_mounted {
        policy.watch = Duration::from_secs(options.watch);
    }
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
    terminal.tell_progress_to(task.progress, path);
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
    let result = result.and_then(|outcome| without_replay(outcome, device, &policy, &mut terminal));
    let code = match result {
        Ok((outcome, lies)) => conclude(task, &outcome, lies, terminal.dirty()),
        Err(e @ Error::Unsupported { .. }) => usage(&format!("fsck.gfs2: {}: {e}", path.display())),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::ResourceBusy => {
            usage(&format!("fsck.gfs2: {}: {source}", path.display()))
        }
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::UnexpectedEof => {
            complain(&format!("fsck.gfs2: {}: {source}", path.display()));
            OPERATIONAL
        }
        Err(e) => {
            complain(&format!("fsck.gfs2: {}: {e}", path.display()));
            OPERATIONAL
        }
    };
    syslog(&format!("{}: exits with {code}", path.display()));
    code
}

/// When a crash is all that a look has found: the number of errors on the device as it lies, without the replay, besides
/// the dirty journals. The reference's -n does not replay in memory, and finds these.
fn without_replay(
    mut outcome: Outcome,
    device: &dyn BlockDevice,
    policy: &Policy,
    terminal: &mut Terminal,
) -> Result<(Outcome, u64), Error> {
    if !policy.read_only || !is_whole(&outcome) || !outcome.is_crash_alone() {
        return Ok((outcome, 0));
    }
    let policy = Policy {
        as_it_lies: true,
        ..*policy
    };
    let found = gfs2_fsck::check(device, &policy, &mut terminal.counting())?;
    terminal.finish();
    outcome.cancelled = found.cancelled;
    outcome.skipped = found.skipped;
    Ok((outcome, found.errors.saturating_sub(found.dirty)))
}

/// The check came to its end, with all that belongs to it.
fn is_whole(outcome: &Outcome) -> bool {
    !outcome.cancelled && !outcome.skipped && !outcome.stopped
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

/// Says what came of it. `lies`: [`without_replay`]; `dirty`: the journals that were.
fn conclude(task: &Task<'_>, outcome: &Outcome, lies: u64, dirty: &[String]) -> u8 {
    let Task { options, path, .. } = *task;
    let code = exit_code(task, outcome, lies);
    if options.json {
        let summary = serde_json::json!({
            "event": "summary", "device": path.display().to_string(), "errors": outcome.errors,
            "warnings": outcome.warnings, "repaired": outcome.corrected,
            "dirty": dirty, "unlinked": outcome.unlinked, "without_replay": lies, "unreadable": outcome.unreadable,
            "preened": outcome.preened, "stopped": outcome.stopped, "cancelled": outcome.cancelled, "memory": outcome.memory, "exit": code,
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
    } else if is_passed_over(options, outcome, lies) {
        let crash = match outcome.unlinked {
            0 => "",
            _ => "what a crash leaves, and ",
        };
        say(&format!(
            "{device}: nothing is wrong but {crash}{}.",
            left_dirty(dirty)
        ));
        return code;
    } else if outcome.uncorrected() == 0 {
        say(&format!(
            "{device}: {errors} problems found, all of them repaired."
        ));
    } else {
        say(&format!(
            "{device}: {errors} problems found, {corrected} repaired."
        ));
    }
    if options.no && outcome.dirty > 0 {
        say(&format!("{device}: {}.", left_dirty(dirty)));
    }
    if lies > 0 {
        say(&format!(
            "{device}: without the replay there are {lies} problems more, which it solves."
        ));
    }
    advise(task, outcome, code);
    code
}

/// Which journals were left as they are by a run that only looks.
fn left_dirty(journals: &[String]) -> String {
    let (is, was) = match journals.len() {
        1 => ("is", "was"),
        _ => ("are", "were"),
    };
    format!("{} {is} dirty and {was} not replayed", journals.join(", "))
}

/// What the user should know besides.
fn advise(task: &Task<'_>, outcome: &Outcome, code: u8) {
    let Task { options, path, .. } = *task;
    if outcome.memory > 0 {
        let allowed = options.memory.unwrap_or(MEMORY) >> 20;
        complain(&format!(
            "fsck.gfs2: {}: {} MiB of memory were needed, not the {allowed} MiB of --memory: the volume cannot be checked in less.",
            path.display(),
            outcome.memory.div_ceil(1 << 20)
        ));
    }
    if code & REBOOT != 0 {
        complain(&format!(
            "fsck.gfs2: {}: the root filesystem was repaired: reboot now.",
            path.display()
        ));
    }
    if outcome.unreadable > 0 && outcome.errors > 0 && !options.no && !options.force {
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
}

/// As the reference's, a look passes over a journal that a mount will replay, when nothing else is wrong with the volume
/// as it lies. `lies`: [`without_replay`].
fn is_passed_over(options: &Options, outcome: &Outcome, lies: u64) -> bool {
    options.no && !options.dry_run && is_whole(outcome) && outcome.is_crash_alone() && lies == 0
}

/// `lies`: [`without_replay`].
fn exit_code(task: &Task<'_>, outcome: &Outcome, lies: u64) -> u8 {
    let damage = match outcome {
        Outcome {
            cancelled: true,
            errors: 0,
            ..
        } => CANCELLED,
        Outcome { cancelled: true, .. } => CANCELLED | UNCORRECTED,
        Outcome { skipped: true, .. } => UNCORRECTED,
        Outcome { preened: true, .. } | Outcome { errors: 0, .. } => 0,
        _ if is_passed_over(task.options, outcome, lies) => 0,
        _ if task.options.dry_run || outcome.uncorrected() > 0 => UNCORRECTED,
        _ => FIXED,
    };
    let wrote = outcome.corrected > 0 && !outcome.cancelled && !task.options.dry_run;
    let reboot = if task.root && wrote { REBOOT } else { 0 };
    damage | reboot | if outcome.unreadable > 0 { OPERATIONAL } else { 0 }
}

fn usage(text: &str) -> u8 {
    complain(text.trim_end());
    USAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(args: &[&str]) -> (Vec<OsString>, Option<u32>) {
        of_fsck(args.iter().map(OsString::from))
    }

    #[test]
    fn what_fsck_hands_on_is_no_option_of_ours() {
        for args in [
            &["fsck", "-C", "-n", "d"][..],
            &["fsck", "-C0", "-T", "-n", "d"],
            &["fsck", "-n", "d"],
        ] {
            assert_eq!(
                split(args),
                (["fsck", "-n", "d"].map(OsString::from).to_vec(), None)
            );
        }
        assert_eq!(
            split(&["fsck", "-C7", "d"]),
            (["fsck", "d"].map(OsString::from).to_vec(), Some(7))
        );
        assert_eq!(
            split(&["fsck", "-Cx"]).0,
            ["fsck", "-Cx"].map(OsString::from).to_vec()
        );
    }

    #[test]
    fn exit_codes_are_sums() {
        let options = Options::try_parse_from(["fsck", "-y", "d"]).unwrap();
        let code = |root, outcome| {
            let (options, path) = (&options, Path::new("d"));
            let task = Task {
                options,
                path,
                progress: None,
                root,
            };
            exit_code(&task, &outcome, 0)
        };
        let of = |errors, corrected, unreadable| Outcome {
            errors,
            corrected,
            unreadable,
            ..Outcome::default()
        };
        assert_eq!(code(false, of(0, 0, 0)), 0);
        assert_eq!(code(false, of(3, 3, 0)), 1);
        assert_eq!(code(true, of(3, 3, 0)), 1 | 2);
        assert_eq!(code(true, of(3, 2, 0)), 2 | 4);
        assert_eq!(code(true, of(0, 0, 0)), 0);
        assert_eq!(code(false, of(3, 0, 1)), 4 | 8);
        let looks = Options::try_parse_from(["fsck", "-n", "d"]).unwrap();
        let look = |errors, dirty, lies| {
            let task = Task {
                options: &looks,
                path: Path::new("d"),
                progress: None,
                root: false,
            };
            let outcome = Outcome {
                dirty,
                ..of(errors, 0, 0)
            };
            exit_code(&task, &outcome, lies)
        };
        assert_eq!((look(2, 2, 0), look(3, 2, 0), look(2, 2, 1)), (0, 4, 4));
        assert_eq!((look(0, 0, 0), look(1, 0, 0)), (0, 4));
        let cancelled = |errors| Outcome {
            errors,
            cancelled: true,
            ..Outcome::default()
        };
        assert_eq!(
            (code(true, cancelled(0)), code(false, cancelled(2))),
            (32, 32 | 4)
        );
    }
}
