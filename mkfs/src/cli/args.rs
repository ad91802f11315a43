//! Arguments, taken in order as the original takes them: the first one that is wrong, or asks for help, decides.

use super::{Failure, extended};
use crate::options::{IoLimits, Options};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, CommandFactory, Parser};
use std::ffi::{OsStr, OsString};
use std::fmt::Write;

/// Create a gfs2 file system on a device. If a size, in blocks, is not specified, the whole device will be used.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "mkfs.gfs2",
    version,
    disable_help_flag = true,
    disable_version_flag = true,
    args_override_self = true,
    override_usage = "mkfs.gfs2 [options] <device> [size]"
)]
struct Args {
    /// File system block size, in bytes
    #[arg(short = 'b', value_name = "size", allow_hyphen_values = true)]
    block_size: Option<OsString>,
    /// Size of quota change file, in megabytes
    #[arg(short = 'c', value_name = "size", allow_hyphen_values = true)]
    quota_change: Option<OsString>,
    /// Enable debugging code
    #[arg(short = 'D')]
    debug: bool,
    /// Display this help, then exit
    #[arg(short = 'h', long = "help", action = ArgAction::SetTrue)]
    help: bool,
    /// Size of journals, in megabytes
    #[arg(short = 'J', value_name = "size", allow_hyphen_values = true)]
    journal_size: Option<OsString>,
    /// Number of journals
    #[arg(short = 'j', value_name = "number", allow_hyphen_values = true)]
    journals: Option<OsString>,
    /// Don't try to discard unused blocks
    #[arg(short = 'K')]
    keep: bool,
    /// Don't ask for confirmation
    #[arg(short = 'O')]
    override_prompt: bool,
    /// Extended options. The help is given apart: of a comment, the full stop at its end would be lost.
    #[arg(help = "Specify extended options. See '-o help'.", short = 'o', value_name = "key>[=<value>][,...]", action = ArgAction::Append, allow_hyphen_values = true)]
    extended: Vec<OsString>,
    /// Name of the locking protocol
    #[arg(short = 'p', value_name = "name", allow_hyphen_values = true)]
    protocol: Option<OsString>,
    /// Don't print anything
    #[arg(short = 'q')]
    quiet: bool,
    /// Size of resource groups, in megabytes
    #[arg(short = 'r', value_name = "size", allow_hyphen_values = true)]
    rgrp_size: Option<OsString>,
    /// Name of the lock table
    #[arg(short = 't', value_name = "name", allow_hyphen_values = true)]
    table: Option<OsString>,
    /// The UUID of the file system
    #[arg(short = 'U', value_name = "UUID", allow_hyphen_values = true)]
    uuid: Option<OsString>,
    /// Display program version information, then exit
    #[arg(short = 'V', long = "version", action = ArgAction::SetTrue)]
    version: bool,
    #[arg(value_name = "device", hide = true, value_hint = clap::ValueHint::FilePath)]
    operands: Vec<OsString>,
}

/// The program's command line, for completions and documentation.
#[must_use]
pub fn command() -> clap::Command {
    Args::command()
}

/// The text of `-h`, in the original's layout.
pub(super) fn help() -> String {
    let command = command();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let mut text = format!("Usage:\nmkfs.gfs2 [options] <device> [size]\n\n{about}.\n\nOptions:\n");
    for arg in command.get_arguments().filter(|arg| !arg.is_positional()) {
        let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
        let value = arg
            .get_value_names()
            .and_then(<[_]>::first)
            .filter(|_| takes_value);
        let value = match value {
            Some(name) if name.ends_with(']') => format!("<{name}"),
            Some(name) => format!("<{name}>"),
            None => String::new(),
        };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = writeln!(text, " -{} {value:<22} {help}", arg.get_short().unwrap_or(' '));
    }
    text
}

/// What the user asks for.
#[derive(Debug)]
pub(super) enum Request {
    Help,
    ExtendedHelp,
    Version,
    Make(Box<Invocation>),
}

/// A volume to be made.
#[derive(Debug)]
pub(super) struct Invocation {
    pub(super) device: OsString,
    pub(super) options: Options,
    pub(super) lock_proto: String,
    pub(super) topology: Option<IoLimits>,
    pub(super) discard: bool,
    pub(super) override_prompt: bool,
    pub(super) quiet: bool,
    pub(super) debug: bool,
}

/// Takes the arguments; the first is the program's own name.
pub(super) fn parse(args: &[OsString]) -> Result<Request, Failure> {
    let mut extended = extended::Extended::default();
    let mut taken = 0;
    let mut last = None;
    for end in 1..=args.len() {
        let parsed = match Args::try_parse_from(&args[..end]) {
            Ok(parsed) => parsed,
            // An option whose value is the next argument.
            Err(error) if end < args.len() && is_missing_value(&error) => continue,
            Err(error) => return Err(Failure::usage(complaint(&error))),
        };
        if parsed.help {
            return Ok(Request::Help);
        }
        if parsed.version {
            return Ok(Request::Version);
        }
        let block_size = number("-b", parsed.block_size.as_deref(), "bytes")?;
        for text in &parsed.extended[taken..] {
            if extended.take(&lossy(text), block_size)? == extended::Taken::Help {
                return Ok(Request::ExtendedHelp);
            }
        }
        taken = parsed.extended.len();
        check_operands(&operands(&parsed))?;
        last = Some(parsed);
    }
    let Some(parsed) = last else {
        return Err(Failure::usage("No device specified. Use -h for help"));
    };
    finish(&parsed, extended).map(|invocation| Request::Make(Box::new(invocation)))
}

fn lossy(text: &OsStr) -> String {
    text.to_string_lossy().into_owned()
}

/// Operands that count: "gfs2" is what mkfs(8) hands on of its `-t gfs2`.
fn operands(args: &Args) -> Vec<&OsStr> {
    args.operands
        .iter()
        .map(OsString::as_os_str)
        .filter(|operand| *operand != "gfs2")
        .collect()
}

fn check_operands(operands: &[&OsStr]) -> Result<(), Failure> {
    match operands {
        [] | [_] => Ok(()),
        [_, size] if size.as_encoded_bytes().first().is_some_and(u8::is_ascii_digit) => Ok(()),
        _ => Err(Failure::usage("More than one device specified (try -h for help)")),
    }
}

fn is_missing_value(error: &clap::Error) -> bool {
    error.kind() == ErrorKind::InvalidValue
}

/// The complaint in getopt's words.
fn complaint(error: &clap::Error) -> String {
    let named = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let letter = named
        .trim_start_matches('-')
        .split(' ')
        .next()
        .unwrap_or_default();
    let what = if is_missing_value(error) {
        format!("option requires an argument -- '{letter}'")
    } else if named.starts_with("--") {
        format!("unrecognized option '{named}'")
    } else {
        format!("invalid option -- '{letter}'")
    };
    format!("mkfs.gfs2: {what}\nPlease use '-h' for help.")
}

/// A whole number, as far as it was given. Trailing letters are refused: they would be silently ignored units.
fn number(option: &str, text: Option<&OsStr>, unit: &str) -> Result<Option<i64>, Failure> {
    let Some(text) = text else {
        return Ok(None);
    };
    let text = lossy(text);
    let value = text.trim_start().parse::<i64>().map_err(|_| {
        Failure::usage(format!(
            "Bad value for {option}: '{text}' is not a whole number ({unit})"
        ))
    })?;
    Ok(Some(value))
}

/// A number as the original keeps it; one that is out of range there is out of every range checked later.
fn unsigned(option: &str, text: Option<&OsStr>, unit: &str) -> Result<Option<u32>, Failure> {
    let value = number(option, text, unit)?;
    Ok(value.map(|value| u32::try_from(value).unwrap_or(u32::MAX)))
}

fn finish(args: &Args, extended: extended::Extended) -> Result<Invocation, Failure> {
    let operands = operands(args);
    let Some(device) = operands.first() else {
        return Err(Failure::usage("No device specified. Use -h for help"));
    };
    let mut options = Options {
        block_size: unsigned("-b", args.block_size.as_deref(), "bytes")?,
        journal_mb: unsigned("-J", args.journal_size.as_deref(), "megabytes")?,
        lock_table: args.table.as_deref().map(lossy),
        align: extended.align,
        root_inherit_jdata: extended.root_inherit_jdata,
        stripe: extended.stripe()?,
        time: source_date_epoch(),
        ..Options::default()
    };
    if let Some(format) = extended.format {
        options.format = format;
    }
    if let Some(journals) = number("-j", args.journals.as_deref(), "journals")? {
        options.journals = u32::try_from(journals).map_err(|_| {
            Failure::usage(if journals < 0 {
                format!("Number of journals cannot be negative: {journals}")
            } else {
                format!("Too many journals: {journals}")
            })
        })?;
    }
    if let Some(mb) = unsigned("-c", args.quota_change.as_deref(), "megabytes")? {
        options.quota_change_mb = mb;
    }
    if let Some(mb) = unsigned("-r", args.rgrp_size.as_deref(), "megabytes")? {
        options.rgrp_mb = mb;
    }
    if let Some(blocks) = number("size", operands.get(1).copied(), "file system blocks")? {
        options.blocks = u64::try_from(blocks).ok();
    }
    if let Some(text) = args.uuid.as_deref() {
        options.uuid = Some(parse_uuid(&lossy(text))?);
    }
    Ok(Invocation {
        device: (*device).to_owned(),
        options,
        lock_proto: args.protocol.as_deref().map_or("lock_dlm".into(), lossy),
        topology: extended.topology,
        discard: !args.keep,
        override_prompt: args.override_prompt,
        quiet: args.quiet,
        debug: args.debug,
    })
}

/// Only the usual form of 36 characters.
fn parse_uuid(text: &str) -> Result<[u8; 16], Failure> {
    let uuid = Some(text)
        .filter(|text| text.len() == 36)
        .and_then(|text| uuid::Uuid::try_parse(text).ok());
    uuid.map(uuid::Uuid::into_bytes).ok_or_else(|| {
        Failure::usage(format!(
            "Failed to parse UUID option. '{text}' is not of the form 1b4e28ba-2fa1-11d2-883f-b9a761bde3fb"
        ))
    })
}

/// The time for reproducible images, by the convention of that variable.
fn source_date_epoch() -> Option<u64> {
    std::env::var("SOURCE_DATE_EPOCH").ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
