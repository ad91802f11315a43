//! Checks a GFS2 volume.
//!
//! A check reads the whole of the metadata, in parallel and in disk order, believes nothing, and reports findings as
//! data (see [`problem`]). Of damage it repairs one class: dirty journals are replayed. When they may not be, the check
//! goes on with a replay in memory, so that what it reports is damage and not the crash.
//!
//! Invariants: a read-only check writes nothing; bytes of any kind end in findings, never in a panic, an endless loop
//! or unbounded memory (two bits a block of used resource groups, 32 bytes an inode, the blocks a replay changes).
//! This crate knows nothing of the driver: both are witnesses for each other.

mod check;
mod observed;
mod pass;
pub mod problem;
mod reader;
pub mod report;
mod table;

pub use problem::{Class, Kind, Problem};
pub use report::{Collect, Question, Reporter, Stage};

use check::{Check, Step, Stop};
use gfs2_format::device::{BlockDevice, OverlayDevice};
use gfs2_format::log::{LogTime, recover_journal};
use gfs2_format::ondisk::Superblock;
use gfs2_format::volume::{SystemFiles, read_superblock};
use gfs2_format::{Corrupt, Error, Expected, Geometry, Volume};
use pass::journals::Journal;
use pass::system::System;
use reader::Reader;

/// What a check may do and how far it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Write nothing, ask nothing.
    pub read_only: bool,
    /// Preening: clean journals and good resource groups are enough; a dirty journal of a volume that several nodes may have
    /// mounted is left alone.
    pub preen: bool,
    /// Preening goes all the way anyway.
    pub force: bool,
    /// Memory for a replay that may not be written, in bytes.
    pub overlay_limit: u64,
    /// Blocks with several owners that are listed one by one, with their owners.
    pub duplicates_listed: usize,
    /// Time for the headers of replayed journals.
    pub now: LogTime,
}

impl Policy {
    /// Looks at everything, writes nothing.
    #[must_use]
    pub fn read_only() -> Self {
        Self {
            read_only: true,
            preen: false,
            force: false,
            overlay_limit: 1 << 30,
            duplicates_listed: 65536,
            now: LogTime::default(),
        }
    }

    /// Looks at everything, repairs what it can and may.
    #[must_use]
    pub fn repair(now: LogTime) -> Self {
        Self {
            read_only: false,
            now,
            ..Self::read_only()
        }
    }
}

/// What came of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Findings of class error or fatal.
    pub errors: u64,
    /// Findings of class warning.
    pub warnings: u64,
    /// Errors that were repaired.
    pub corrected: u64,
    /// Blocks that could not be read (each is an error, too).
    pub unreadable: u64,
    /// A fatal finding ended the check.
    pub stopped: bool,
    /// Preening found journals and resource groups in order and looked no further.
    pub preened: bool,
}

impl Outcome {
    /// Damage that is still there.
    #[must_use]
    pub const fn uncorrected(&self) -> u64 {
        self.errors.saturating_sub(self.corrected)
    }
}

/// Checks the volume on `device`.
///
/// # Errors
/// [`Error::Unsupported`] for a volume this version does not know, I/O errors where nothing can be said without the
/// block. Damage is no error: it is reported.
pub fn check(
    device: &dyn BlockDevice,
    policy: &Policy,
    reporter: &mut dyn Reporter,
) -> Result<Outcome, Error> {
    let mut run = Run {
        device,
        policy: *policy,
        outcome: Outcome::default(),
    };
    match run.all(reporter) {
        Ok(()) => {}
        Err(Stop::Fatal) => run.outcome.stopped = true,
        Err(Stop::Failed(e)) => return Err(e),
    }
    Ok(run.outcome)
}

struct Run<'a> {
    device: &'a dyn BlockDevice,
    policy: Policy,
    outcome: Outcome,
}

impl Run<'_> {
    fn all(&mut self, reporter: &mut dyn Reporter) -> Step {
        reporter.stage(Stage::System);
        let (superblock, geometry) = self.superblock(reporter)?;
        let overlay = OverlayDevice::new(
            self.device,
            geometry.bsize().max(self.device.sector_size()),
            self.policy.overlay_limit,
        )?;
        let written = self.journals(&superblock, &geometry, &overlay, reporter)?;
        let device: &dyn BlockDevice = if written { self.device } else { &overlay };
        // A replay may have changed anything but the superblock: everything is read afresh.
        let short = self.policy.preen && !self.policy.force && self.outcome == Outcome::default();
        let mut check = Check::new(device, geometry, superblock, reporter, self.outcome, &self.policy);
        let result = everything(&mut check, short);
        check.settle();
        self.outcome = check.outcome;
        result
    }

    fn superblock(&mut self, reporter: &mut dyn Reporter) -> Step<(Superblock, Geometry)> {
        let corrupt = match read_superblock(self.device) {
            Ok(found) => return Ok(found),
            Err(Error::Corrupt(corrupt)) => corrupt,
            // A device that ends before the superblock holds no volume either.
            Err(Error::Io { .. }) if self.device.size() < gfs2_format::geometry::SUPERBLOCK_OFFSET + 4096 => {
                Corrupt {
                    block: gfs2_format::BlockAddr::new(128),
                    structure: "sb",
                    field: "size of the device",
                    found: self.device.size(),
                    expected: Expected::Range(gfs2_format::geometry::SUPERBLOCK_OFFSET + 4096, u64::MAX),
                }
            }
            Err(e) => return Err(e.into()),
        };
        self.outcome.errors += 1;
        reporter.problem(&Problem::from_corrupt(Kind::Superblock, &corrupt));
        Err(Stop::Fatal)
    }

    /// Looks at the journals and replays dirty ones: on the device, or in `overlay`. Answers whether the rest of the
    /// check reads the device itself.
    fn journals(
        &mut self,
        superblock: &Superblock,
        geometry: &Geometry,
        overlay: &OverlayDevice<&dyn BlockDevice>,
        reporter: &mut dyn Reporter,
    ) -> Step<bool> {
        let (system, journals) = {
            let mut check = Check::new(
                self.device,
                geometry.clone(),
                *superblock,
                &mut *reporter,
                self.outcome,
                &self.policy,
            );
            let mut reader = Reader::new(self.device, geometry);
            let result = look_at_journals(&mut check, &mut reader);
            check.settle();
            self.outcome = check.outcome;
            result?
        };
        let dirty: Vec<&Journal> = journals.iter().filter(|journal| journal.dirty).collect();
        let volume = volume(superblock, geometry, &system, &journals);
        let single = superblock.lockproto() == "lock_nolock";
        let mut may_write =
            !self.policy.read_only && !self.device.is_read_only() && (single || !self.policy.preen);
        for journal in dirty.into_iter().filter(|journal| journal.replayable) {
            let Some(volume) = &volume else {
                break;
            };
            // In the order of the journals: what one replay may not write, a later one must not write either.
            may_write = may_write && reporter.ask(Question::ReplayJournal(journal.file.jid));
            let target: &dyn BlockDevice = if may_write { self.device } else { overlay };
            match recover_journal(target, volume, &journal.file, journal.file.jid, self.policy.now) {
                Ok(report) => {
                    self.outcome.corrected += u64::from(may_write);
                    reporter.replayed(&report, !may_write);
                }
                Err(Error::Corrupt(corrupt)) => {
                    self.no_replay(reporter, &Problem::from_corrupt(Kind::JournalReplay, &corrupt))
                }
                Err(Error::NotFound) => {
                    let per_node = system.file("per_node").unwrap_or(journal.file.dinode);
                    let rule = Expected::Rule("a statfs change file of this journal");
                    self.no_replay(
                        reporter,
                        &Problem::new(Kind::JournalReplay, per_node, "entries", 0, rule),
                    );
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(overlay.changed_bytes() == 0)
    }

    fn no_replay(&mut self, reporter: &mut dyn Reporter, problem: &Problem) {
        self.outcome.errors += 1;
        reporter.problem(problem);
    }
}

fn look_at_journals(check: &mut Check<'_>, reader: &mut Reader<'_>) -> Step<(System, Vec<Journal>)> {
    let system = find_system(check, reader)?;
    check.stage(Stage::Journals);
    let journals = check.journals(&system)?;
    Ok((system, journals))
}

fn find_system(check: &mut Check<'_>, reader: &mut Reader<'_>) -> Step<System> {
    match pass::system::find(reader, &check.geometry, &check.superblock) {
        Ok(system) => Ok(system),
        Err(Error::Corrupt(corrupt)) => {
            let problem = Problem::from_corrupt(Kind::MasterDir, &corrupt);
            Err(check.fatal(problem.of(check.superblock.master_dir.num().addr)))
        }
        Err(e) => Err(e.into()),
    }
}

/// The volume as the replay wants it; `None` when a file it needs is missing.
fn volume(
    superblock: &Superblock,
    geometry: &Geometry,
    system: &System,
    journals: &[Journal],
) -> Option<Volume> {
    Some(Volume {
        superblock: *superblock,
        geometry: geometry.clone(),
        system: SystemFiles {
            master: superblock.master_dir.num().addr,
            root: superblock.root_dir.num().addr,
            jindex: system.file("jindex")?,
            per_node: system.file("per_node")?,
            statfs: system.file("statfs")?,
            rindex: system.file("rindex")?,
            quota: system.file("quota")?,
            inum: system.file("inum"),
        },
        journals: journals.iter().map(|journal| journal.file.clone()).collect(),
    })
}

/// Everything but the journals; `short`: only as far as the resource groups, if nothing is wrong so far.
fn everything(check: &mut Check<'_>, short: bool) -> Step {
    let mut reader = Reader::new(check.device, &check.geometry);
    let reader = &mut reader;
    let system = find_system(check, reader)?;
    check.system(reader, &system)?;
    check.stage(Stage::Rgrps);
    let (rindex, content) = check.rindex(reader, &system)?;
    let totals = check.rgrps(reader, rindex, &content)?;
    drop(content);
    check.settle();
    if short && check.outcome.errors == 0 {
        check.outcome.preened = true;
        return Ok(());
    }
    check.stage(Stage::Inodes);
    check.inodes(reader)?;
    check.stage(Stage::Directories);
    let mut roots = [
        check.superblock.master_dir.num().addr,
        check.superblock.root_dir.num().addr,
    ];
    roots.sort_unstable();
    // Directories among them are looked at with all others.
    check.adopt(reader, &roots);
    check.directories(reader)?;
    check.stage(Stage::Connectivity);
    check.connectivity()?;
    check.stage(Stage::Links);
    check.links()?;
    check.stage(Stage::Bitmaps);
    check.leaks()?;
    if check.has_shared() {
        check.stage(Stage::Duplicates);
        check.begin_search();
        check.inodes_again(reader);
        check.directories(reader)?;
        check.end_search();
    }
    check.stage(Stage::Statfs);
    match totals {
        Some(totals) => check.statfs(reader, &system, totals),
        None => Ok(()),
    }
}
