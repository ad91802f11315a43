//! How a check talks to its caller: stages, findings, questions.

use crate::problem::{Kind, Problem};
use crate::repair::Request;
use gfs2_format::Jid;
use gfs2_format::log::RecoveryReport;
use std::fmt;

/// The stages of a check, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Superblock and system files.
    System,
    /// Journals: read, and replayed where that is wanted.
    Journals,
    /// Resource groups: headers, bitmaps, counts.
    Rgrps,
    /// Every inode and what it points to.
    Inodes,
    /// Every directory entry.
    Directories,
    /// Owners of blocks that are used more than once; only when there are any.
    Duplicates,
    /// Directories that cannot be reached.
    Connectivity,
    /// Link counts.
    Links,
    /// Blocks marked used that nothing uses.
    Bitmaps,
    /// The totals.
    Statfs,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "system files",
            Self::Journals => "journals",
            Self::Rgrps => "resource groups",
            Self::Inodes => "inodes",
            Self::Directories => "directories",
            Self::Duplicates => "duplicate blocks",
            Self::Connectivity => "connectivity",
            Self::Links => "link counts",
            Self::Bitmaps => "bitmaps",
            Self::Statfs => "statfs",
        })
    }
}

/// A repair that needs consent.
#[derive(Clone, Copy, Debug)]
pub enum Question<'a> {
    /// Replay the dirty journal of this jid?
    ReplayJournal(Jid),
    /// Repair this finding?
    Repair(Request<'a>),
}

impl fmt::Display for Question<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReplayJournal(jid) => {
                write!(
                    f,
                    "Journal #{jid} (\"journal{jid}\") is dirty.  Okay to replay it?"
                )
            }
            Self::Repair(request) => request.fmt(f),
        }
    }
}

/// What became of a finding that was to be repaired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Repaired (in a dry run: it would be).
    Repaired,
    /// The answer was no.
    Refused,
    /// It cannot be repaired; why.
    Unable(String),
}

/// How far a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The stage.
    pub stage: Stage,
    /// Steps done (blocks, mostly).
    pub done: u64,
    /// Steps of the stage; 0: not known.
    pub total: u64,
}

/// What the caller wants of a check under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Control {
    /// Go on.
    #[default]
    Continue,
    /// Leave the rest of this stage out.
    Skip,
    /// End; nothing more is written.
    Abort,
}

/// Receives what a check has to say.
pub trait Reporter {
    /// A stage begins.
    fn stage(&mut self, _stage: Stage) {}

    /// Something was found.
    fn problem(&mut self, problem: &Problem);

    /// May this be repaired? Not asked of a read-only check.
    fn ask(&mut self, question: Question<'_>) -> bool;

    /// What became of the finding that was reported last.
    fn fate(&mut self, _problem: &Problem, _fate: &Fate) {}

    /// The check begins anew, to see what the repairs have changed.
    fn round(&mut self, _number: u32) {}

    /// How far the stage is; called often. The answer is obeyed soon.
    fn progress(&mut self, _progress: Progress) -> Control {
        Control::Continue
    }

    /// These ranges (byte offset, length) are about to be written; in a dry run (`dry`) they would be.
    fn writing(&mut self, _ranges: &[(u64, u64)], _dry: bool) {}

    /// A journal was replayed: on the device, or (`in_memory`) only for this check's eyes.
    fn replayed(&mut self, _report: &RecoveryReport, _in_memory: bool) {}
}

/// Keeps the findings; answers every question alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collect {
    /// The findings in the order they came.
    pub problems: Vec<Problem>,
    /// The stages in the order they began.
    pub stages: Vec<Stage>,
    /// What became of those that were to be repaired.
    pub fates: Vec<(Kind, Fate)>,
    /// What to answer.
    pub answer: bool,
}

impl Reporter for Collect {
    fn stage(&mut self, stage: Stage) {
        self.stages.push(stage);
    }

    fn problem(&mut self, problem: &Problem) {
        self.problems.push(problem.clone());
    }

    fn ask(&mut self, _question: Question<'_>) -> bool {
        self.answer
    }

    fn fate(&mut self, problem: &Problem, fate: &Fate) {
        self.fates.push((problem.kind, fate.clone()));
    }
}
