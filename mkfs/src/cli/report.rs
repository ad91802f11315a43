//! What the program says while it works and at its end.

use super::Console;
use crate::plan::{Summary, Warning};
use crate::write::{Phase, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::ffi::OsStr;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Work that takes less than this needs no bar.
const BAR_AFTER: Duration = Duration::from_millis(400);

/// Tells how far the work is: a line for each part, and on a terminal a bar where a part takes long.
#[derive(Debug)]
pub(super) struct Reporter {
    quiet: bool,
    terminal: bool,
    journals: u64,
    part: Mutex<Option<Part>>,
}

#[derive(Debug)]
struct Part {
    label: &'static str,
    begun: Instant,
    total: u64,
    done: u64,
    bar: Option<ProgressBar>,
}

impl Reporter {
    pub(super) fn new(quiet: bool, journals: u64) -> Self {
        Self {
            quiet,
            terminal: std::io::stdout().is_terminal(),
            journals,
            part: Mutex::new(None),
        }
    }

    pub(super) fn discarding(&self) {
        self.start(
            "Discarding device contents (may take a while on large devices): ",
            1,
        );
    }

    pub(super) fn discarded(&self) {
        self.finish();
    }

    fn part(&self) -> std::sync::MutexGuard<'_, Option<Part>> {
        self.part
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn start(&self, label: &'static str, total: u64) {
        if self.quiet {
            return;
        }
        let mut out = std::io::stdout();
        let _ = write!(out, "{label}");
        let _ = out.flush();
        *self.part() = Some(Part {
            label,
            begun: Instant::now(),
            total,
            done: 0,
            bar: None,
        });
    }

    fn finish(&self) {
        let Some(part) = self.part().take() else {
            return;
        };
        let mut out = std::io::stdout();
        if let Some(bar) = part.bar {
            bar.finish_and_clear();
            let _ = write!(out, "{}", part.label);
        }
        let _ = writeln!(out, "Done");
    }
}

impl Part {
    /// The bar takes the place of the label, whose line it begins.
    fn start_bar(&self) -> ProgressBar {
        let mut out = std::io::stdout();
        let _ = write!(out, "\r");
        let _ = out.flush();
        let style = ProgressStyle::with_template("{prefix}[{pos}/{len}] {wide_bar} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::with_draw_target(Some(self.total), ProgressDrawTarget::stdout())
            .with_style(style)
            .with_prefix(self.label)
    }
}

impl Progress for Reporter {
    fn begin(&self, phase: Phase, total: u64) {
        match phase {
            Phase::Journals => self.start("Adding journals: ", total),
            Phase::ResourceGroups => self.start("Building resource groups: ", total.max(self.journals)),
            Phase::SystemFiles => self.start("Creating quota file: ", total),
            Phase::Superblock => self.start("Writing superblock and syncing: ", total),
        }
    }

    fn advance(&self, units: u64) {
        if !self.terminal {
            return;
        }
        let mut guard = self.part();
        let Some(part) = guard.as_mut() else {
            return;
        };
        part.done += units;
        if part.bar.is_none() && part.begun.elapsed() >= BAR_AFTER {
            part.bar = Some(part.start_bar());
        }
        if let Some(bar) = &part.bar {
            bar.set_position(part.done);
        }
    }

    fn end(&self, _phase: Phase) {
        self.finish();
    }
}

/// Tells a warning where the original tells it.
pub(super) fn warn(warning: &Warning, console: &mut Console<'_>) {
    match warning {
        Warning::Misaligned => {
            let _ = writeln!(std::io::stderr(), "{warning}");
        }
        Warning::Inefficient { .. } => console.say(&warning.to_string()),
    }
}

/// The ten lines at the end.
pub(super) fn print_summary(summary: &Summary, device: &OsStr, console: &mut Console<'_>) {
    let bsize = u64::from(summary.block_size);
    let lines = [
        ("Device:", device.to_string_lossy().into_owned()),
        ("Block size:", summary.block_size.to_string()),
        (
            "Device size:",
            format!(
                "{:.2} GB ({} blocks)",
                summary.device_gib(),
                summary.device_size / bsize
            ),
        ),
        (
            "Filesystem size:",
            format!("{:.2} GB ({} blocks)", summary.gib(), summary.blocks),
        ),
        ("Journals:", summary.journals.to_string()),
        ("Journal size:", format!("{}MB", summary.journal_mb)),
        ("Resource groups:", summary.resource_groups.to_string()),
        ("Locking protocol:", format!("\"{}\"", summary.lock_proto.name())),
        ("Lock table:", format!("\"{}\"", summary.lock_table)),
        (
            "UUID:",
            uuid::Uuid::from_bytes(summary.uuid).hyphenated().to_string(),
        ),
    ];
    for (label, value) in lines {
        console.say(&format!("{label:<27}{value}"));
    }
}
