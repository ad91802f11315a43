//! How a check talks to its caller: stages, findings, questions.

use crate::problem::Problem;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Replay the dirty journal of this jid?
    ReplayJournal(Jid),
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReplayJournal(jid) => write!(f, "Journal journal{jid} is dirty. Okay to replay it?"),
        }
    }
}

/// Receives what a check has to say.
pub trait Reporter {
    /// A stage begins.
    fn stage(&mut self, _stage: Stage) {}

    /// Something was found.
    fn problem(&mut self, problem: &Problem);

    /// May this be repaired? Not asked of a read-only check.
    fn ask(&mut self, question: Question) -> bool;

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

    fn ask(&mut self, _question: Question) -> bool {
        self.answer
    }
}
