//! `gfs2ctl dump`: on-disk structures as text or JSON.
//!
//! Shows what is there, also when it is wrong: whatever can be read is printed, what contradicts the format is named
//! beside it. The device is opened for reading only.

mod blocks;
mod journal;
mod report;
mod what;

use gfs2_format::device::{BlockDevice, OpenOptions};
use report::Item;
use std::ffi::OsString;
use std::path::PathBuf;
use what::{What, Words};

#[cfg(test)]
pub(super) use what::WORDS;

/// Command line of `dump`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Device or image
    #[arg(value_name = "DEVICE")]
    device: PathBuf,
    /// What to print: sb, rindex, rgrps, rgrp N, master, root, jindex, journal N, statfs, block N, inode N, or paths
    /// from the root (/...) or from the master directory (master:/...) [default: sb]
    #[arg(value_name = "WHAT")]
    what: Vec<OsString>,
    /// Print JSON: an array with one element for each WHAT
    #[arg(long)]
    json: bool,
    /// Leave nothing out: every extent of a file, every run of a bitmap, every block of a journal, all bytes
    #[arg(long)]
    all: bool,
}

/// What a dump prints.
#[derive(Debug)]
pub(super) struct Output {
    /// For standard output.
    pub(super) text: String,
    /// For standard error, one line each.
    pub(super) problems: Vec<String>,
}

/// Why there is nothing to print.
#[derive(Debug)]
pub(super) enum Failure {
    /// The command line is wrong.
    Usage(String),
    /// The device cannot be opened or is no volume.
    Device(String),
}

/// Dumps what the command line asks for.
///
/// # Errors
/// [`Failure`]; what is wrong with single structures is in the output.
pub(super) fn run(args: &Args) -> Result<Output, Failure> {
    let words = if args.what.is_empty() {
        vec![What::Superblock]
    } else {
        Words::parse(&args.what).map_err(Failure::Usage)?
    };
    let name = args.device.display();
    let device = OpenOptions::new()
        .read_only(true)
        .open(&args.device)
        .map_err(|error| Failure::Device(format!("{name}: {error}")))?;
    let items =
        dump(&device, &words, args.all).map_err(|error| Failure::Device(format!("{name}: {error}")))?;
    let text = if args.json {
        let values = items.iter().map(Item::to_json).collect();
        format!("{:#}\n", serde_json::Value::Array(values))
    } else {
        let parts: Vec<String> = items.iter().map(Item::to_text).collect();
        parts.join("\n")
    };
    let problems = items.iter().flat_map(Item::problems).collect();
    Ok(Output { text, problems })
}

fn dump(device: &dyn BlockDevice, words: &[What], all: bool) -> gfs2_format::Result<Vec<Item>> {
    let volume = what::Dump::open(device, all)?;
    Ok(words.iter().map(|word| volume.item(word)).collect())
}
