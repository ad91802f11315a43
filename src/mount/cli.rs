//! The command line of the mount helper, `mount.fuse-gfs2 DEV DIR [-sfnvF] [-o OPTIONS]`, and of its umount twin.
//!
//! mount(8) calls helpers this way; exit codes are mount(8)'s.

use super::options::{BadOption, MountOptions};
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::ffi::OsString;
use std::path::PathBuf;

/// Exit codes of mount(8).
pub mod exit {
    /// Success.
    pub const OK: u8 = 0;
    /// Incorrect invocation or permissions.
    pub const USAGE: u8 = 1;
    /// System error (out of memory, cannot fork, no more loop devices).
    pub const SYSTEM: u8 = 2;
    /// Internal error.
    pub const SOFTWARE: u8 = 4;
    /// Mount failure.
    pub const FAIL: u8 = 32;
}

/// Something that ends the helper: one line for the user and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountError {
    /// Exit code of mount(8).
    pub code: u8,
    /// One line: what, and what to do.
    pub message: String,
}

impl MountError {
    /// A mount failure (exit code 32).
    #[must_use]
    pub fn fail(message: impl Into<String>) -> Self {
        Self {
            code: exit::FAIL,
            message: message.into(),
        }
    }

    /// Incorrect use (exit code 1).
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            code: exit::USAGE,
            message: message.into(),
        }
    }

    /// The system failed us (exit code 2).
    #[must_use]
    pub fn system(message: impl Into<String>) -> Self {
        Self {
            code: exit::SYSTEM,
            message: message.into(),
        }
    }
}

impl std::fmt::Display for MountError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<BadOption> for MountError {
    fn from(bad: BadOption) -> Self {
        Self::usage(bad.to_string())
    }
}

/// What one call of the helper asks for.
#[derive(Clone, Debug)]
pub struct MountRequest {
    /// The device or image file, as given.
    pub device: PathBuf,
    /// The mount point, as given.
    pub target: PathBuf,
    /// Parsed options.
    pub options: MountOptions,
    /// The options' text, for the daemon's own command line.
    pub options_text: String,
    /// `-s`.
    pub sloppy: bool,
    /// `-f`: everything but the mount.
    pub fake: bool,
    /// `-v`.
    pub verbose: bool,
    /// `-F`: stay in the foreground, log to standard error.
    pub foreground: bool,
    /// We are the background child; report to the parent.
    pub child: bool,
}

impl MountRequest {
    /// Makes the two paths absolute, the device's as given otherwise (a link stays a link), the target's without links.
    ///
    /// # Errors
    /// The current folder is gone, or the target is.
    pub fn make_absolute(&mut self) -> Result<(), MountError> {
        let fail = |path: &std::path::Path, error| MountError::fail(format!("{}: {error}", path.display()));
        self.device = std::path::absolute(&self.device).map_err(|e| fail(&self.device, e))?;
        self.target = self.target.canonicalize().map_err(|e| fail(&self.target, e))?;
        Ok(())
    }
}

/// The helper's command, for help, man page checks and completions.
#[must_use]
pub fn command() -> Command {
    let flag = |id: &'static str, short: char, help: &'static str| {
        Arg::new(id).short(short).action(ArgAction::SetTrue).help(help)
    };
    Command::new("mount.fuse-gfs2")
        .about("Mount a GFS2 volume without a kernel driver, through FUSE")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(true)
        .override_usage("mount.fuse-gfs2 [-sfnvFV] [-o OPTION[,OPTION]...] DEVICE|IMAGE MOUNTPOINT")
        .after_help("Options are those of mount(8) and gfs2(5); see mount.fuse-gfs2(8).")
        .arg(
            Arg::new("device")
                .value_name("DEVICE")
                .required(true)
                .value_parser(clap::value_parser!(PathBuf)),
        )
        .arg(
            Arg::new("target")
                .value_name("MOUNTPOINT")
                .required(true)
                .value_parser(clap::value_parser!(PathBuf)),
        )
        .arg(
            Arg::new("options")
                .short('o')
                .value_name("OPTIONS")
                .action(ArgAction::Append)
                .allow_hyphen_values(true)
                .help("Mount options, separated by commas"),
        )
        .arg(flag("sloppy", 's', "Pass over unknown options"))
        .arg(flag("fake", 'f', "Check everything, mount nothing"))
        .arg(flag("no-mtab", 'n', "Accepted; there is no mtab to write"))
        .arg(flag("verbose", 'v', "Say what is done"))
        .arg(flag("read-only", 'r', "The same as -o ro"))
        .arg(flag("read-write", 'w', "The same as -o rw"))
        .arg(
            flag(
                "foreground",
                'F',
                "Stay in the foreground and log to standard error",
            )
            .long("foreground"),
        )
        .arg(Arg::new("type").short('t').value_name("TYPE").hide(true))
        .arg(Arg::new("namespace").short('N').value_name("NS").hide(true))
        .arg(
            Arg::new("child")
                .long("daemon-child")
                .action(ArgAction::SetTrue)
                .hide(true),
        )
        .arg(
            Arg::new("version")
                .short('V')
                .long("version")
                .action(ArgAction::Version)
                .help("Print the version"),
        )
}

/// Parses the command line (without the program's name).
///
/// # Errors
/// `Err(Ok(text))`: help or version was asked for. `Err(Err(error))`: it is wrong.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<MountRequest, Result<String, MountError>> {
    let matches = command()
        .no_binary_name(true)
        .try_get_matches_from(args)
        .map_err(|error| {
            use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
            match error.kind() {
                DisplayHelp | DisplayVersion => Ok(error.to_string()),
                _ => {
                    let text = error.to_string();
                    let line = text
                        .lines()
                        .next()
                        .unwrap_or_default()
                        .trim_start_matches("error: ")
                        .to_owned();
                    Err(MountError::usage(format!(
                        "{line}; usage: mount.fuse-gfs2 [-o OPTIONS] DEVICE MOUNTPOINT"
                    )))
                }
            }
        })?;
    request(&matches).map_err(Err)
}

fn request(matches: &ArgMatches) -> Result<MountRequest, MountError> {
    let path = |id: &str| matches.get_one::<PathBuf>(id).cloned().unwrap_or_default();
    let mut words: Vec<String> = matches
        .get_many::<String>("options")
        .into_iter()
        .flatten()
        .cloned()
        .collect();
    for (flag, word) in [("read-only", "ro"), ("read-write", "rw")] {
        if matches.get_flag(flag) {
            words.push(word.to_owned());
        }
    }
    let options_text = words.join(",");
    let sloppy = matches.get_flag("sloppy");
    Ok(MountRequest {
        device: path("device"),
        target: path("target"),
        options: MountOptions::parse(&options_text, sloppy)?,
        options_text,
        sloppy,
        fake: matches.get_flag("fake"),
        verbose: matches.get_flag("verbose"),
        foreground: matches.get_flag("foreground"),
        child: matches.get_flag("child"),
    })
}

/// Checks the mount point and our permission, as mount(8) would say it.
///
/// # Errors
/// One line and the exit code.
pub fn check_target(request: &MountRequest) -> Result<(), MountError> {
    if !rustix::process::geteuid().is_root() {
        return Err(MountError::usage(
            "must be superuser to mount; run as root (sudo mount ...)",
        ));
    }
    let target = request.target.display();
    match std::fs::metadata(&request.target) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(MountError::fail(format!(
            "mount point {target} does not exist; make it with mkdir -p {target}"
        ))),
        Err(error) => Err(MountError::fail(format!("mount point {target}: {error}"))),
        Ok(meta) if !meta.is_dir() => Err(MountError::fail(format!(
            "mount point {target} is not a directory; name a directory"
        ))),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &str) -> Vec<OsString> {
        words.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_ways_mount_calls_its_helpers() {
        let request = parse(args("/dev/sdb /mnt -n -o rw,noatime")).unwrap();
        assert_eq!(request.device, PathBuf::from("/dev/sdb"));
        assert!(!request.options.read_only);
        let request = parse(args("/dev/sdb /mnt -v -s -r -o colour -t fuse.gfs2 -o commit=5")).unwrap();
        assert!(request.options.read_only && request.options.commit_secs == 5 && request.verbose);
    }

    #[test]
    fn wrong_use_is_one_line_and_exit_code_1() {
        for words in [
            "",
            "/dev/sdb",
            "-x /dev/sdb /mnt",
            "/dev/sdb /mnt -o noatme",
            "/a /b /c",
        ] {
            let error = parse(args(words)).unwrap_err().unwrap_err();
            assert_eq!(error.code, exit::USAGE, "{words}");
            assert!(!error.message.contains('\n'), "{words}: {error}");
        }
        assert!(parse(args("--help")).unwrap_err().is_ok());
        assert!(
            parse(args("-V"))
                .unwrap_err()
                .unwrap()
                .contains(env!("CARGO_PKG_VERSION"))
        );
    }
}
