//! What a run says, and how it asks: lines for people in the style of the reference tool, or JSON for machines.

use gfs2_format::log::RecoveryReport;
use gfs2_fsck::{Class, Control, Fate, Kind, Problem, Progress, Question, Reporter, Stage};
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGUSR1};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often the progress is drawn.
const DRAW: Duration = Duration::from_millis(250);

/// Writes a line; a closed pipe is no reason to stop a check half-way.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stdout().lock(), "{text}");
}

pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// How questions are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answers {
    Yes,
    Ask,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// 0: findings; 1: stages, too; 2: details.
    level: u8,
    answers: Answers,
    json: bool,
    stage: Option<(Stage, Instant)>,
    /// A progress line is on the terminal; when it was drawn.
    drawn: Option<Instant>,
    draws: bool,
    signals: Signals,
    /// Where a caller wants the progress told, and of what device.
    told: Option<(File, String)>,
    /// Journals that were found dirty.
    dirty: Vec<String>,
}

/// What was asked for by signals since the last look.
#[derive(Debug, Default)]
struct Signals {
    interrupt: Arc<AtomicBool>,
    tell: Arc<AtomicBool>,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        let signals = Self::default();
        signal_hook::flag::register(SIGINT, Arc::clone(&signals.interrupt))?;
        signal_hook::flag::register(SIGUSR1, Arc::clone(&signals.tell))?;
        Ok(signals)
    }
}

/// The reference's name of a stage.
fn pass(stage: Stage) -> &'static str {
    match stage {
        Stage::System => "Initializing fsck",
        Stage::Journals => "Checking journals",
        Stage::Rgrps => "Validating resource group index",
        Stage::Inodes => "pass1",
        Stage::Duplicates => "pass1b",
        Stage::Directories => "pass2",
        Stage::Connectivity => "pass3",
        Stage::Links => "pass4",
        Stage::Bitmaps => "pass5",
        Stage::Statfs => "check_statfs",
    }
}

const fn is_pass(stage: Stage) -> bool {
    !matches!(stage, Stage::System | Stage::Journals | Stage::Rgrps)
}

impl Terminal {
    /// Listens to the signals, too.
    pub(crate) fn new(level: u8, answers: Answers, json: bool) -> io::Result<Self> {
        Ok(Self {
            level,
            answers,
            json,
            stage: None,
            drawn: None,
            draws: level > 0 && !json && io::stdout().is_terminal(),
            signals: Signals::listen()?,
            told: None,
            dirty: Vec::new(),
        })
    }

    /// For a look of which only the number of findings is wanted; who runs it keeps control.
    pub(crate) fn counting(&mut self) -> Counting<'_> {
        self.line(1, "Checking again without the replay.");
        Counting(self)
    }

    /// The journals that were found dirty, by name.
    pub(crate) fn dirty(&self) -> &[String] {
        &self.dirty
    }

    /// Tells the progress to this descriptor, too: a line with pass, done, total and device, as other checkers do for
    /// fsck(8). A descriptor that is none is left alone.
    pub(crate) fn tell_progress_to(&mut self, fd: Option<u32>, device: &Path) {
        let file = fd.and_then(|fd| {
            OpenOptions::new()
                .append(true)
                .open(format!("/proc/self/fd/{fd}"))
                .ok()
        });
        self.told = file.map(|file| (file, device.display().to_string()));
    }

    fn tell(&mut self, progress: Progress) {
        if let Some((file, device)) = &mut self.told {
            let pass = match progress.stage {
                Stage::System | Stage::Journals | Stage::Rgrps | Stage::Inodes => 1,
                Stage::Directories => 2,
                Stage::Connectivity => 3,
                Stage::Links => 4,
                Stage::Duplicates | Stage::Bitmaps | Stage::Statfs => 5,
            };
            let line = format!("{pass} {} {} {device}\n", progress.done, progress.total);
            if file.write_all(line.as_bytes()).is_err() {
                self.told = None;
            }
        }
    }

    fn line(&mut self, least: u8, text: &str) {
        if self.level >= least && !self.json {
            self.wipe();
            say(text);
        }
    }

    /// Takes the progress line off the terminal.
    fn wipe(&mut self) {
        if self.drawn.take().is_some() {
            let mut out = io::stdout().lock();
            let _ = write!(out, "\r\x1b[K");
            let _ = out.flush();
        }
    }

    fn draw(&mut self, progress: Progress) {
        let now = Instant::now();
        let due = self.drawn.is_none_or(|drawn| now.duration_since(drawn) >= DRAW);
        let young = self
            .stage
            .is_none_or(|(_, since)| now.duration_since(since) < DRAW);
        if self.draws && due && !young {
            let mut out = io::stdout().lock();
            let _ = write!(out, "\r\x1b[K{}", self.how_far(progress));
            let _ = out.flush();
            self.drawn = Some(now);
        }
    }

    /// Pass, percentage, time left.
    fn how_far(&self, progress: Progress) -> String {
        let name = pass(progress.stage);
        if progress.total == 0 {
            return name.to_owned();
        }
        let share = progress.done.min(progress.total) as f64 / progress.total as f64;
        let spent = self.stage.map_or(0.0, |(_, since)| since.elapsed().as_secs_f64());
        let percent = share * 100.0;
        if share < 0.01 {
            return format!("{name}: {percent:.0} percent complete.");
        }
        let left = spent / share - spent;
        format!("{name}: {percent:.0} percent complete, {left:.0}s left.")
    }

    /// Asks as the reference does what to do after Ctrl-C; the end of the input is the end of the check.
    fn interrupted(&mut self, progress: Progress) -> Control {
        self.wipe();
        let mut out = io::stdout().lock();
        let _ = writeln!(
            out,
            "\nfsck.gfs2 interrupted during {}:  {}",
            pass(progress.stage),
            self.how_far(progress)
        );
        loop {
            let _ = write!(
                out,
                "Do you want to abort fsck.gfs2, skip the rest of this pass or continue (a/s/c)? "
            );
            let _ = out.flush();
            let mut answer = String::new();
            match io::stdin().lock().read_line(&mut answer) {
                Ok(0) | Err(_) => return Control::Abort,
                Ok(_) => match answer.trim() {
                    "a" | "A" => return Control::Abort,
                    "s" | "S" => return Control::Skip,
                    "c" | "C" => return Control::Continue,
                    _ => {}
                },
            }
        }
    }

    fn event(&self, event: Value) {
        if self.json {
            say(&event.to_string());
        }
    }

    /// Says how long the last stage took.
    pub(crate) fn finish(&mut self) {
        self.wipe();
        if let Some((stage, since)) = self.stage.take()
            && is_pass(stage)
        {
            let seconds = since.elapsed().as_secs_f64();
            self.line(1, &format!("{} completed in {seconds:.3}s", pass(stage)));
        }
    }

    fn ask_aloud(question: Question<'_>) -> bool {
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
                    other => {
                        let _ = writeln!(out, "Bad response {other:?}, please type 'y' or 'n'.");
                    }
                },
            }
        }
    }
}

fn class_name(class: Class) -> &'static str {
    match class {
        Class::Warning => "warning",
        Class::Error => "error",
        Class::Fatal => "fatal",
    }
}

fn finding(problem: &Problem) -> Value {
    let text = |bytes: &Option<Box<[u8]>>| bytes.as_ref().map(|bytes| bytes.escape_ascii().to_string());
    json!({
        "event": "finding",
        "code": problem.kind.code(),
        "kind": format!("{:?}", problem.kind),
        "class": class_name(problem.kind.class()),
        "text": problem.kind.text(),
        "inode": problem.inode.map(|inode| inode.get()),
        "path": text(&problem.path),
        "block": problem.block.get(),
        "blocks": problem.blocks,
        "name": text(&problem.name),
        "field": problem.field,
        "pointer": problem.place,
        "found": problem.found,
        "expected": problem.expected.to_string(),
        "other": problem.other.map(|other| other.get()),
        "other_path": text(&problem.other_path),
    })
}

impl Reporter for Terminal {
    fn stage(&mut self, stage: Stage) {
        self.finish();
        if is_pass(stage) {
            self.line(1, &format!("Starting {}", pass(stage)));
        } else {
            self.line(1, &format!("{}.", pass(stage)));
        }
        self.event(json!({"event": "stage", "stage": pass(stage)}));
        self.stage = Some((stage, Instant::now()));
    }

    fn problem(&mut self, problem: &Problem) {
        self.event(finding(problem));
        if problem.kind == Kind::JournalDirty {
            let name = problem.name.as_deref().unwrap_or_default();
            self.dirty.push(name.escape_ascii().to_string());
        }
        match problem.kind.class() {
            Class::Warning => self.line(0, &format!("Warning: {problem}")),
            Class::Error | Class::Fatal => self.line(0, &problem.to_string()),
        }
    }

    fn progress(&mut self, progress: Progress) -> Control {
        if self.signals.tell.swap(false, Ordering::Relaxed) {
            let text = self.how_far(progress);
            self.wipe();
            complain(&text);
        }
        if self.signals.interrupt.swap(false, Ordering::Relaxed) {
            return self.interrupted(progress);
        }
        self.draw(progress);
        self.tell(progress);
        Control::Continue
    }

    fn ask(&mut self, question: Question<'_>) -> bool {
        self.wipe();
        match self.answers {
            Answers::Yes => true,
            Answers::Ask => Self::ask_aloud(question),
        }
    }

    fn fate(&mut self, problem: &Problem, fate: &Fate) {
        let code = problem.kind.code();
        let (word, why) = match fate {
            Fate::Repaired => ("repaired", None),
            Fate::Refused => ("refused", None),
            Fate::Unable(why) => ("unable", Some(why)),
        };
        self.event(json!({
            "event": "repair", "code": code, "kind": format!("{:?}", problem.kind),
            "block": problem.block.get(), "fate": word, "why": why,
        }));
        match why {
            Some(why) => self.line(0, &format!("{code}: not repaired: {why}")),
            None => self.line(2, &format!("{code}: block {}: {word}", problem.block)),
        }
    }

    fn round(&mut self, number: u32) {
        self.finish();
        self.line(1, &format!("Checking again what was changed (round {number})."));
        self.event(json!({"event": "round", "number": number}));
    }

    fn writing(&mut self, ranges: &[(u64, u64)], dry: bool) {
        let bytes: u64 = ranges.iter().map(|(_, len)| len).sum();
        self.event(json!({"event": if dry { "plan" } else { "write" }, "bytes": bytes, "ranges": ranges}));
        if !dry {
            return self.line(2, &format!("Writing {bytes} bytes."));
        }
        self.line(0, &format!("{bytes} bytes would be written:"));
        for (offset, len) in ranges {
            self.line(0, &format!("  {len} bytes at byte {offset}"));
        }
    }

    fn replayed(&mut self, report: &RecoveryReport, in_memory: bool) {
        let counts = report.counts;
        let how = if in_memory {
            "in memory only, for this check"
        } else {
            "on the device"
        };
        self.event(json!({
            "event": "replay", "jid": report.jid.get(), "blocks": counts.replayed, "found": counts.found,
            "revokes": counts.revokes, "in_memory": in_memory,
        }));
        self.line(
            0,
            &format!(
                "journal{}: {} of {} blocks replayed {how}, {} revokes.",
                report.jid, counts.replayed, counts.found, counts.revokes
            ),
        );
    }
}

/// See [`Terminal::counting`].
#[derive(Debug)]
pub(crate) struct Counting<'a>(&'a mut Terminal);

impl Reporter for Counting<'_> {
    fn stage(&mut self, stage: Stage) {
        self.0.stage = Some((stage, Instant::now()));
    }

    fn problem(&mut self, _problem: &Problem) {}

    fn progress(&mut self, progress: Progress) -> Control {
        self.0.progress(progress)
    }

    fn ask(&mut self, _question: Question<'_>) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_is_pass_share_and_time_left() {
        let mut terminal = Terminal::new(0, Answers::Yes, false).unwrap();
        let at = |done, total| Progress {
            stage: Stage::Inodes,
            done,
            total,
        };
        assert_eq!(terminal.how_far(at(0, 0)), "pass1");
        assert_eq!(terminal.how_far(at(0, 500)), "pass1: 0 percent complete.");
        let since = Instant::now()
            .checked_sub(std::time::Duration::from_secs(1000))
            .unwrap();
        terminal.stage = Some((Stage::Inodes, since));
        let told = terminal.how_far(at(250, 500));
        let left = told
            .strip_prefix("pass1: 50 percent complete, ")
            .unwrap_or_else(|| panic!("{told}"));
        let seconds: u64 = left.strip_suffix("s left.").unwrap().parse().unwrap();
        assert!((1000..1100).contains(&seconds), "{told}");
        assert!(
            terminal
                .how_far(at(700, 500))
                .starts_with("pass1: 100 percent complete, 0s"),
            "{told}"
        );
    }
}
