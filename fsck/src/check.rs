//! The state of a check, and its two gates: every finding goes through `found`, every pointer through `claim`.
//!
//! In a run that repairs, findings that can be repaired are held back here, see [`crate::repair`].
//!
//! A check walks the volume once to observe. Only when blocks turn out to have several owners it walks again, quietly,
//! to find out who they are. Invariants: a block that has been claimed before is never descended into again, so
//! cycles end; memory is bounded by two bits a block of used groups, 32 bytes an inode, and what one directory or one
//! path of a tree holds.

use crate::observed::{Code, Observed};
use crate::problem::{Class, Kind, Problem};
use crate::repair::{Held, History, Phase, Seen};
use crate::report::{Control, Progress, Reporter, Stage};
use crate::table::Inodes;
use crate::{Outcome, Policy, pass};
use gfs2_format::device::BlockDevice;
use gfs2_format::ondisk::{BlockState, Superblock};
use gfs2_format::{BlockAddr, Error, Expected, Geometry};
use std::collections::BTreeMap;

/// Memory of any check: the program, what is read at a time, findings that wait.
const FIXED: u64 = 24 << 20;
/// This part of the memory may hold dinodes of directories.
const KEPT: u64 = 8;
/// Findings that wait for their paths at most.
const TOLD: usize = 1 << 14;

/// Blocks that are read at most to find out the heights of inodes, of a volume on which all are doubtful.
const SHAPE_READS: u32 = 1 << 20;

/// Why a check ends early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The caller wants no more.
    Abort,
    /// What was found so far has to be repaired before more is believed.
    Repair,
    /// A fatal finding has been reported.
    Fatal,
    /// The device or the caller's request is at fault.
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        Self::Failed(e)
    }
}

/// Result of a step of the check.
pub(crate) type Step<T = ()> = Result<T, Stop>;

/// What a pointer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Data,
    Indirect,
    Hash,
    Leaf,
    EaList,
    Ea,
    EaValue,
}

impl Role {
    const fn field(self) -> &'static str {
        match self {
            Self::Data | Self::Indirect | Self::Hash => "pointer",
            Self::Leaf => "leaf pointer",
            Self::EaList => "di_eattr",
            Self::Ea => "EA block pointer",
            Self::EaValue => "EA value pointer",
        }
    }

    const fn is_xattr(self) -> bool {
        matches!(self, Self::EaList | Self::Ea | Self::EaValue)
    }
}

/// What a block held that cannot be read and that, if it were wrong, would be a finding of this kind.
const fn held(kind: Kind) -> &'static str {
    match kind {
        Kind::NotADinode => "an inode that can be read",
        Kind::IndirectType => "a block of pointers that can be read",
        Kind::LeafBlock => "a leaf of the directory that can be read",
        Kind::HashBlock | Kind::TableEnd => "a block of the directory's hash table that can be read",
        Kind::EaBlock => "a block of extended attributes that can be read",
        Kind::RgrpHeader => "the header of a resource group that can be read",
        Kind::RgrpBitmap => "a bitmap that can be read",
        Kind::JournalInode | Kind::JournalHead | Kind::JournalReplay => "a journal that can be read",
        Kind::SystemFile | Kind::Rindex | Kind::Statfs => "a system file that can be read",
        _ => "a block that can be read",
    }
}

/// What came of claiming a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The first owner: go on into it.
    First,
    /// It has an owner already: it counts as owned, but nothing is read again.
    Again,
    /// No block of this volume's groups: it does not even count.
    Nowhere,
}

/// Who uses a block that several use.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Owners {
    count: u64,
    first: Option<(BlockAddr, Role)>,
    last: Option<(BlockAddr, Role)>,
    metadata: bool,
    xattr: bool,
}

/// See the module documentation.
pub(crate) struct Check<'a> {
    pub(crate) device: &'a dyn BlockDevice,
    pub(crate) geometry: Geometry,
    pub(crate) superblock: Superblock,
    reporter: &'a mut dyn Reporter,
    pub(crate) outcome: Outcome,
    /// A finding that may go on in the next block.
    pending: Option<Problem>,
    /// Findings that wait for the paths of their inodes.
    told: Vec<Problem>,
    pub(crate) observed: Observed,
    pub(crate) inodes: Inodes,
    pub(crate) directories: pass::directories::Found,
    /// Blocks with several owners; the second walk fills in who.
    shared: BTreeMap<BlockAddr, Owners>,
    /// How many of them are listed one by one.
    shared_listed: usize,
    shared_unlisted: u64,
    /// The second walk: look for owners, report nothing; or another look that reports nothing.
    searching: bool,
    now: Stage,
    /// Bytes this may take; and how many it took when that was last looked at.
    memory: u64,
    weight: u64,
    repairs: Option<Repairs<'a>>,
    /// Errors of this round that are not to be repaired (again).
    left: u64,
    /// Blocks that may still be read to find out the heights of inodes.
    pub(crate) shape_reads: u32,
}

/// Of a run that repairs: what waits for its repair, and what became of earlier findings.
#[derive(Debug)]
struct Repairs<'a> {
    held: Held,
    history: &'a mut History,
}

impl<'a> Check<'a> {
    pub(crate) fn new(
        device: &'a dyn BlockDevice,
        geometry: Geometry,
        superblock: Superblock,
        reporter: &'a mut dyn Reporter,
        outcome: Outcome,
        policy: &Policy,
    ) -> Self {
        Self {
            device,
            geometry,
            superblock,
            reporter,
            outcome,
            pending: None,
            told: Vec::new(),
            observed: Observed::default(),
            inodes: Inodes::default(),
            directories: pass::directories::Found::default(),
            shared: BTreeMap::new(),
            shared_listed: policy.duplicates_listed,
            shared_unlisted: 0,
            searching: false,
            now: Stage::System,
            memory: policy.memory,
            weight: 0,
            repairs: None,
            left: 0,
            shape_reads: SHAPE_READS,
        }
    }

    /// Holds back what can be repaired from now on, besides what is held already.
    pub(crate) fn hold(mut self, history: &'a mut History, held: Held) -> Self {
        self.repairs = Some(Repairs { held, history });
        self
    }

    /// Errors of this round that stay.
    pub(crate) fn left_errors(&mut self) -> u64 {
        self.settle();
        self.left
    }

    /// Ends the round here if something of this phase or an earlier one waits for its repair.
    pub(crate) fn gate(&mut self, phase: Phase) -> Step {
        self.settle();
        match &self.repairs {
            Some(repairs) if repairs.held.wants(phase) => Err(Stop::Repair),
            _ => Ok(()),
        }
    }

    /// What waits for its repair, and what the round has seen.
    pub(crate) fn finish(mut self, system: pass::system::System, complete: bool) -> (Outcome, Held, Seen) {
        self.settle();
        let mut held = self
            .repairs
            .take()
            .map(|repairs| repairs.held)
            .unwrap_or_default();
        let mut told = std::mem::take(&mut self.told);
        let mut all: Vec<&mut Problem> = told.iter_mut().chain(&mut held.problems).collect();
        self.name_paths(&mut all, &system, complete);
        told.iter().for_each(|problem| self.reporter.problem(problem));
        let seen = Seen {
            observed: self.observed,
            inodes: self.inodes,
            directories: self.directories,
            system,
            complete,
        };
        (self.outcome, held, seen)
    }

    pub(crate) fn stage(&mut self, stage: Stage) {
        self.settle();
        self.now = stage;
        self.reporter.stage(stage);
    }

    /// Says how far the stage is. False: the rest of it is left out.
    pub(crate) fn tick(&mut self, done: u64, total: u64) -> Step<bool> {
        let stage = self.now;
        match self.reporter.progress(Progress { stage, done, total }) {
            Control::Continue => Ok(true),
            Control::Skip => {
                // What comes before the inodes cannot be left out.
                self.outcome.skipped = stage >= Stage::Inodes;
                Ok(stage < Stage::Inodes)
            }
            Control::Abort => Err(Stop::Abort),
        }
    }

    /// Keeps to the memory that is allowed where that is possible, and says where it is not.
    pub(crate) fn weigh(&mut self) {
        let (observed, inodes) = (self.observed.memory(), self.inodes.memory());
        let mut all = observed
            .saturating_add(inodes)
            .saturating_add(self.directories.memory());
        all = all.saturating_add(FIXED);
        if all <= self.memory || all < self.weight.saturating_add(self.weight / 8) {
            return;
        }
        self.observed.compact();
        let saved = observed.saturating_sub(self.observed.memory());
        self.weight = all.saturating_sub(saved);
        if self.weight > self.memory {
            self.outcome.memory = self.outcome.memory.max(self.weight);
        }
    }

    /// Keeps a directory's dinode for when directories are looked at, if there is room.
    pub(crate) fn keep_directory(&mut self, addr: BlockAddr, bytes: &[u8]) {
        self.directories.keep(addr, bytes, self.memory / KEPT);
    }

    /// Looks at something without saying what is wrong with it.
    pub(crate) fn quietly<T>(&mut self, look: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.searching, true);
        let seen = look(self);
        self.searching = before;
        seen
    }

    /// Is this the stage the check is in?
    pub(crate) fn is_stage(&self, stage: Stage) -> bool {
        self.now == stage
    }

    /// Is this the second walk?
    pub(crate) const fn is_search(&self) -> bool {
        self.searching
    }

    /// The one gate for findings.
    pub(crate) fn found(&mut self, problem: Problem) {
        if self.searching {
            return;
        }
        if let Some(pending) = &mut self.pending
            && pending.continued_by(&problem)
        {
            pending.blocks = pending.blocks.saturating_add(problem.blocks);
            return;
        }
        self.settle();
        self.pending = Some(problem);
    }

    /// Hands on the finding that waits for its continuation.
    pub(crate) fn settle(&mut self) {
        let Some(problem) = self.pending.take() else {
            return;
        };
        if let Some(repairs) = &mut self.repairs {
            if repairs.held.take(&problem, repairs.history) {
                return;
            }
            self.left += u64::from(problem.kind.class() != Class::Warning);
            if !repairs.history.is_news(&problem) {
                return;
            }
        }
        match problem.kind.class() {
            Class::Warning => self.outcome.warnings += 1,
            Class::Error | Class::Fatal => self.outcome.errors += 1,
        }
        self.outcome.dirty += u64::from(problem.kind == Kind::JournalDirty);
        self.outcome.unlinked += u64::from(problem.kind == Kind::Unlinked);
        self.told.push(problem);
        if self.told.len() >= TOLD {
            // So many need no path.
            let told = std::mem::take(&mut self.told);
            told.iter().for_each(|problem| self.reporter.problem(problem));
        }
    }

    /// A fatal finding: to be returned as error.
    pub(crate) fn fatal(&mut self, problem: Problem) -> Stop {
        self.found(problem);
        self.settle();
        Stop::Fatal
    }

    /// What an error of a read or a decoder means for block `addr` of `inode`.
    pub(crate) fn error(&mut self, kind: Kind, inode: Option<BlockAddr>, addr: BlockAddr, error: &Error) {
        let mut problem = match error {
            Error::Corrupt(corrupt) => Problem::from_corrupt(kind, corrupt),
            _ => {
                let errno = match error {
                    Error::Io { source, .. } => source.raw_os_error().unwrap_or_default(),
                    _ => 0,
                };
                if !self.searching {
                    self.outcome.unreadable += 1;
                }
                let rule = Expected::Rule(held(kind));
                Problem::new(
                    Kind::Unreadable,
                    addr,
                    "errno",
                    u64::from(errno.unsigned_abs()),
                    rule,
                )
            }
        };
        problem.inode = inode;
        self.found(problem);
    }

    /// The one gate for pointers: `inode` uses block `raw` for `role`, as block `at` says.
    pub(crate) fn claim(&mut self, inode: BlockAddr, role: Role, raw: u64, at: BlockAddr) -> Claim {
        let addr = BlockAddr::new(raw);
        let Some(slot) = self.observed.locate(addr) else {
            self.stray(inode, role, raw, at);
            return Claim::Nowhere;
        };
        if self.searching {
            return self.note_owner(inode, role, addr);
        }
        let code = self.observed.code(slot);
        if code == Code::Seen {
            self.share(addr);
            return Claim::Again;
        }
        if code != Code::Used && !self.observed.is_blind(slot) {
            let found = self.observed.state(slot) as u64;
            let expected = Expected::Value(BlockState::Used as u64);
            self.found(Problem::new(Kind::NotMarked, addr, "block state", found, expected).of(inode));
        }
        // What claims to be an inode keeps that claim: it is looked at as one, too.
        if code != Code::Inode {
            self.observed.set_seen(slot);
        }
        Claim::First
    }

    fn stray(&mut self, inode: BlockAddr, role: Role, raw: u64, at: BlockAddr) {
        let kind = match role {
            Role::Data | Role::Indirect | Role::Hash => Kind::Pointer,
            Role::Leaf => Kind::HashTable,
            Role::EaList | Role::Ea | Role::EaValue => Kind::EaPointer,
        };
        let expected = Expected::Rule("a block of a resource group");
        self.found(Problem::new(kind, at, role.field(), raw, expected).of(inode));
    }

    /// Notes that a block has more than one owner.
    pub(crate) fn share(&mut self, addr: BlockAddr) {
        if self.shared.len() < self.shared_listed || self.shared.contains_key(&addr) {
            self.shared.entry(addr).or_default();
        } else {
            self.shared_unlisted += 1;
        }
    }

    fn note_owner(&mut self, inode: BlockAddr, role: Role, addr: BlockAddr) -> Claim {
        let Some(owners) = self.shared.get_mut(&addr) else {
            return Claim::First;
        };
        owners.count += 1;
        owners.metadata |= role != Role::Data;
        owners.xattr |= role.is_xattr();
        owners.last = Some((inode, role));
        if owners.first.is_some() {
            return Claim::Again;
        }
        owners.first = owners.last;
        Claim::First
    }

    pub(crate) fn has_shared(&self) -> bool {
        !self.shared.is_empty() || self.shared_unlisted > 0
    }

    pub(crate) fn begin_search(&mut self) {
        self.settle();
        self.searching = true;
    }

    /// Ends the second walk and reports the blocks with several owners.
    pub(crate) fn end_search(&mut self) {
        self.searching = false;
        for (addr, owners) in std::mem::take(&mut self.shared) {
            let kind = match owners {
                Owners { xattr: true, .. } => Kind::DuplicateXattr,
                Owners { metadata: true, .. } => Kind::DuplicateMetadata,
                _ => Kind::Duplicate,
            };
            let mut problem = Problem::new(kind, addr, "owners", owners.count, Expected::Value(1));
            problem.inode = owners.first.map(|(inode, _)| inode);
            problem.other = owners.last.map(|(inode, _)| inode);
            self.found(problem);
        }
        if self.shared_unlisted > 0 {
            let sb = self.geometry.superblock();
            let more = Problem::new(
                Kind::DuplicateMany,
                sb,
                "claims",
                self.shared_unlisted,
                Expected::Value(0),
            );
            self.found(more);
        }
        self.settle();
    }
}
