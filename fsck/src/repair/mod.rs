//! Repairs what a check has found. How it works, and how a class adds its repair: `README.md` in this folder.
//!
//! The check only looks. Each of its rounds holds back the findings of the lowest [`Phase`] that it met; they are
//! repaired one after the other, each by its class through an [`Editor`], in an overlay, and the check begins anew,
//! until a round has nothing left to repair. Then the overlay is written.
//!
//! Invariants: a repair looks again before it changes anything (an earlier one may have done its work); a repair that
//! does not end well has changed nothing; what could not be repaired twice is left alone, so rounds come to an end.

mod bitmaps;
mod connectivity;
mod directories;
mod duplicates;
mod editor;
mod find;
mod inodes;
mod journals;
mod ledger;
mod rebuild;
mod records;
mod rgrps;
mod slots;
mod superblock;
mod sysfile;
mod system;
mod unlinked;
mod write;
mod xattrs;

pub(crate) use editor::{Editor, Seen};
pub(crate) use ledger::{Ledger, Ranges};
pub(crate) use superblock::rebuild as rebuild_superblock;
pub(crate) use write::Changes;

use crate::problem::{Class, Kind, Problem};
use crate::report::Fate;
use gfs2_format::{BlockAddr, Error, Expected};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Findings that are held back for one round of repairs; more of them come in the next one.
const HELD_MAX: usize = 1 << 16;
/// So often a finding that comes back is repaired.
const ATTEMPTS: u32 = 5;
/// Findings whose fate is remembered.
const REMEMBERED: usize = 1 << 18;

/// The order of repairs: what comes later is only believed when everything before it is in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Phase {
    /// Superblock, master and root directory: without them nothing else can be read.
    Fixed,
    /// Journals and their index.
    Journals,
    /// The resource index and the groups' headers and bitmap blocks.
    Rgrps,
    /// Heights of inodes: nothing that a wrong one shows is true.
    Shapes,
    /// Dinodes, their trees, their attributes; which blocks are in use. From here on blocks can be allocated.
    Inodes,
    /// Blocks with several owners.
    Duplicates,
    /// System files that have to be made anew.
    SystemFiles,
    /// Entries and leaves.
    Directories,
    /// Directories and inodes without a parent.
    Connectivity,
    /// Link counts.
    Links,
    /// Blocks in use by nobody.
    Bitmaps,
    /// The counts of the resource groups.
    Counts,
    /// The totals.
    Statfs,
}

/// What came of a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Edited as it should be.
    Done,
    /// An earlier repair did it.
    Gone,
    /// It cannot be repaired; why.
    Unable(&'static str),
}

/// Answer of a class.
pub(crate) type Repaired = Result<Verdict, Error>;

/// Where a kind is repaired, and what is asked before; `None`: not by a repair of its own.
pub(crate) const fn plan(kind: Kind) -> Option<(Phase, &'static str)> {
    use Kind::*;
    Some(match kind {
        Superblock => (Phase::Fixed, "Okay to fix the GFS2 superblock?"),
        LockProtocol => (Phase::Fixed, "Okay to set the lock protocol right?"),
        MasterDir => (Phase::Fixed, "Okay to rebuild the master system directory?"),
        RootDir => (Phase::Fixed, "Okay to reinitialize the root dinode?"),
        SystemFlag => (Phase::Fixed, "Okay to set the system flag?"),

        JournalHead | JournalSequence => (Phase::Journals, "The journal is corrupt. Okay to repair it?"),
        JournalReplay => (Phase::Journals, "Do you want to clear the journal instead?"),
        JournalInode => (Phase::Journals, "Okay to rebuild the journal?"),

        // The check goes on with the groups as they must be: the index can wait until blocks can be allocated.
        Rindex => (Phase::SystemFiles, "Okay to rebuild the resource index?"),
        RindexEntry | RindexMissing => (Phase::SystemFiles, "Fix the index?"),
        RindexSize => (Phase::SystemFiles, "Truncate the rindex size?"),
        RgrpHeader | RgrpBitmap | RgrpField | RgrpCrc | RgrpSkip => (Phase::Rgrps, "Fix the resource group?"),

        DinodeAddress => (Phase::Inodes, "Fix address in inode?"),
        DinodeFormal => (Phase::Inodes, "Fix formal inode number in inode?"),
        DinodeMode => (Phase::Inodes, "Remove the invalid inode?"),
        DinodeBlocks => (Phase::Inodes, "Okay to fix the block count for the inode?"),
        DinodeGoal => (Phase::Inodes, "Fix goal block in inode?"),
        DinodeHeight => (Phase::Shapes, "Fix the inode?"),
        DinodeSize | DinodeFlags => (Phase::Inodes, "Fix the inode?"),
        Pointer | IndirectType | TableEnd => (Phase::Inodes, "Zero the block pointer?"),
        NotMarked | DinodeNotMarked | NotADinode => (Phase::Inodes, "Fix the bitmap?"),
        Unlinked => (Phase::Inodes, "Clear the unlinked block?"),
        EaBlock | EaRecord | EaName | EaType | EaPointers | EaLast | EaPointer | EaGap => {
            (Phase::Inodes, "Repair the bad Extended Attribute?")
        }

        Duplicate => (Phase::Duplicates, "Okay to clone the duplicated reference?"),
        DuplicateMetadata => (Phase::Duplicates, "Okay to clear the duplicated reference?"),
        DuplicateXattr => (Phase::Duplicates, "Okay to remove the extended attributes?"),

        SystemFileMissing | PerNodeMissing => (Phase::SystemFiles, "Create new system inode?"),
        Jindex => (Phase::SystemFiles, "Okay to rebuild the journal index?"),
        SystemFile | QuotaChangeBlock => (Phase::SystemFiles, "Rebuild the system file?"),

        DotMissing | DotTarget => (Phase::Directories, "Is it okay to set the '.' entry right?"),
        DotdotMissing => (Phase::Directories, "Is it okay to set the '..' entry right?"),
        EntryTarget => (Phase::Directories, "Clear directory entry to non-inode block?"),
        EntryFormal => (Phase::Directories, "Clear stale directory entry?"),
        EntryType | EntryRecord | EntryName => (Phase::Directories, "Fix the bad directory entry?"),
        EntryHash => (Phase::Directories, "Fix directory hash?"),
        SecondLink => (Phase::Directories, "Clear hard link to directory?"),
        EntryCount => (Phase::Directories, "Fix the entry count?"),
        HashTable | TableSize | HashBlock => (Phase::Directories, "Fix the hash table?"),
        LeafPlace => (
            Phase::Directories,
            "Move the misplaced directory entry to a valid leaf block?",
        ),
        // A chain that bites its tail makes its leaf one with two owners.
        LeafNext => (Phase::Inodes, "Fix the leaf block?"),
        LeafDepth | LeafBlock | LeafFormat => (Phase::Directories, "Fix the leaf block?"),
        LeafCount => (Phase::Directories, "Update leaf entry count?"),
        DuplicateName => (Phase::Directories, "Clear the directory entry?"),

        // In the same round as the pointers of the inode: behind that nobody would know.
        BadOrphan => (Phase::Inodes, "Delete unlinked inode with bad blocks?"),
        EmptyDirectory => (Phase::Connectivity, "Remove zero-size unlinked directory?"),
        EmptyOrphan => (Phase::Connectivity, "Clear zero-size unlinked inode?"),
        Unreachable => (Phase::Connectivity, "Add unlinked directory to lost+found?"),
        DotdotTarget => (Phase::Connectivity, "Fix the '..' entry?"),
        Orphan => (Phase::Connectivity, "Add unlinked inode to lost+found?"),
        LinkCount => (Phase::Links, "Update link count for inode?"),
        Leaked => (Phase::Bitmaps, "Do you want to reclaim the block?"),
        RgrpCount => (Phase::Counts, "Update resource group counts?"),
        Statfs => (Phase::Statfs, "Okay to fix the master statfs file?"),

        // Replayed with the journals; found again one by one; accepted; not for us to mend.
        JournalDirty | DuplicateMany | LocalStatfs | RgrpFlags | TruncateInProgress | Unreadable => {
            return None;
        }
    })
}

/// Does its repair write the ring of a journal, which is done at once?
pub(crate) const fn writes_at_once(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::JournalHead | Kind::JournalSequence | Kind::JournalReplay | Kind::Jindex
    )
}

/// Hands a finding to its class.
fn dispatch(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    use Kind::*;
    match problem.kind {
        Superblock | LockProtocol => superblock::repair(edit, problem),
        MasterDir | RootDir | SystemFlag | SystemFileMissing | PerNodeMissing | SystemFile
        | QuotaChangeBlock | Statfs => system::repair(edit, problem),
        JournalHead | JournalSequence | JournalReplay | JournalInode | Jindex => {
            journals::repair(edit, problem)
        }
        Rindex | RindexEntry | RindexMissing | RindexSize | RgrpHeader | RgrpBitmap | RgrpField | RgrpCrc
        | RgrpSkip | RgrpCount => rgrps::repair(edit, problem),
        DinodeAddress | DinodeFormal | DinodeMode | DinodeBlocks | DinodeGoal | DinodeHeight | DinodeSize
        | DinodeFlags | Pointer | IndirectType | TableEnd => inodes::repair(edit, problem),
        Unlinked => unlinked::repair(edit, problem),
        NotMarked | DinodeNotMarked | NotADinode | Leaked => bitmaps::repair(edit, problem),
        EaBlock | EaRecord | EaName | EaType | EaPointers | EaLast | EaPointer | EaGap => {
            xattrs::repair(edit, problem)
        }
        Duplicate | DuplicateMetadata | DuplicateXattr => duplicates::repair(edit, problem),
        DotMissing | DotTarget | DotdotMissing | EntryTarget | EntryFormal | EntryType | EntryHash
        | EntryRecord | EntryName | SecondLink | EntryCount | HashTable | TableSize | HashBlock
        | LeafPlace | LeafDepth | LeafBlock | LeafNext | LeafFormat | LeafCount | DuplicateName => {
            directories::repair(edit, problem)
        }
        Unreachable | DotdotTarget | Orphan | LinkCount | EmptyDirectory | BadOrphan | EmptyOrphan => {
            connectivity::repair(edit, problem)
        }
        JournalDirty | DuplicateMany | LocalStatfs | RgrpFlags | TruncateInProgress | Unreadable => {
            Ok(Verdict::Unable("it is not repaired by itself"))
        }
    }
}

/// Carries one repair out: all of it, or nothing.
pub(crate) fn carry_out(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let result = dispatch(edit, problem);
    match result {
        Ok(Verdict::Done) => edit.save().map(|()| Verdict::Done),
        other => {
            edit.discard();
            other
        }
    }
}

/// What makes a finding the same one in the next round.
fn key(problem: &Problem) -> u64 {
    let mut hasher = DefaultHasher::new();
    (problem.kind, problem.inode, problem.block, problem.other).hash(&mut hasher);
    (problem.field, problem.place, &problem.name).hash(&mut hasher);
    hasher.finish()
}

/// What makes a repair the same one in the next round: a number that is expected to be another one by then, because
/// other repairs went before, is to be set again.
fn attempt(problem: &Problem) -> u64 {
    let mut hasher = DefaultHasher::new();
    key(problem).hash(&mut hasher);
    if let Expected::Value(value) = problem.expected {
        (problem.found, value).hash(&mut hasher);
    }
    hasher.finish()
}

/// What is known of findings over the rounds of a run.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// How often a finding was repaired.
    attempts: HashMap<u64, u32>,
    /// Refused: not tried again.
    left: HashSet<u64>,
    /// Could not be repaired: how often, and how many repairs had been made by then. Tried again when there are more.
    failed: HashMap<u64, (u32, u64)>,
    /// Repairs made.
    made: u64,
    /// Told to the reporter.
    reported: HashSet<u64>,
    closed: bool,
}

impl History {
    /// May this be repaired (again)?
    pub(crate) fn is_open(&self, problem: &Problem) -> bool {
        let key = key(problem);
        let tried = self.attempts.get(&attempt(problem)).copied().unwrap_or(0);
        let failed = self.failed.get(&key);
        let hopeless = failed.is_some_and(|(times, made)| *times >= ATTEMPTS || *made == self.made);
        let room = self.left.len() < REMEMBERED && self.failed.len() < REMEMBERED;
        !self.closed && !self.left.contains(&key) && !hopeless && tried < ATTEMPTS && room
    }

    /// Nothing more is repaired.
    pub(crate) const fn close(&mut self) {
        self.closed = true;
    }

    /// What came of a repair, for the reporter. What could not be repaired waits for other repairs: what stood in its
    /// way may be damage of a later phase.
    pub(crate) fn fate(&mut self, problem: &Problem, result: Repaired) -> Fate {
        let why = match result {
            Ok(verdict @ (Verdict::Done | Verdict::Gone)) => {
                self.made = self.made.saturating_add(u64::from(verdict == Verdict::Done));
                self.attempted(problem);
                return Fate::Repaired;
            }
            Ok(Verdict::Unable(why)) => why.to_owned(),
            Err(e) => e.to_string(),
        };
        let (times, made) = self.failed.entry(key(problem)).or_default();
        *times = times.saturating_add(1);
        *made = self.made;
        Fate::Unable(why)
    }

    /// Notes that the reporter hears of it; answers whether for the first time.
    pub(crate) fn is_news(&mut self, problem: &Problem) -> bool {
        self.reported.len() >= REMEMBERED || self.reported.insert(key(problem))
    }

    fn attempted(&mut self, problem: &Problem) {
        if self.attempts.len() < REMEMBERED {
            *self.attempts.entry(attempt(problem)).or_default() += 1;
        } else {
            self.leave(problem);
        }
    }

    /// Not to be tried again.
    pub(crate) fn leave(&mut self, problem: &Problem) {
        self.left.insert(key(problem));
    }
}

/// Findings of one round that wait for their repair: those of the lowest phase.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) phase: Option<Phase>,
    pub(crate) problems: Vec<Problem>,
}

impl Held {
    /// Takes a finding if it is to be repaired in this run; answers false when it is only to be reported.
    pub(crate) fn take(&mut self, problem: &Problem, history: &History) -> bool {
        let Some((phase, _)) = plan(problem.kind) else {
            return false;
        };
        if problem.kind.class() == Class::Warning || !history.is_open(problem) {
            return false;
        }
        if self.phase.is_none_or(|held| phase < held) {
            self.phase = Some(phase);
            self.problems.clear();
        }
        if self.phase == Some(phase) && self.problems.len() < HELD_MAX {
            self.problems.push(problem.clone());
        }
        true
    }

    /// Is there something to repair up to and including this phase?
    pub(crate) fn wants(&self, phase: Phase) -> bool {
        self.phase.is_some_and(|held| held <= phase)
    }
}

/// What is asked before a repair.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What was found.
    pub problem: &'a Problem,
    text: &'static str,
}

impl<'a> Request<'a> {
    pub(crate) fn new(problem: &'a Problem) -> Self {
        let text = plan(problem.kind).map_or("Okay to fix it?", |(_, text)| text);
        Self { problem, text }
    }
}

impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

/// The inode a finding is about, or else its block.
pub(crate) fn inode_of(problem: &Problem) -> BlockAddr {
    problem.inode.unwrap_or(problem.block)
}
