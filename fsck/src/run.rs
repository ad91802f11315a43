//! One run: rounds of the check and of repairs, until nothing is left to repair; then the changes are written.
//!
//! Invariants: without repairs there is one round; the rounds of a run come to an end, because a finding is repaired a
//! few times at most and there is a last round; what a run says about the volume is what its last round saw.

use crate::check::{Check, Step, Stop};
use crate::pass;
use crate::pass::journals::Journal;
use crate::pass::system::System;
use crate::problem::{Kind, Problem};
use crate::reader::Reader;
use crate::repair::{self, Changes, Editor, Held, History, Ledger, Phase, Request, Seen, Verdict};
use crate::report::{Control, Fate, Progress, Question, Reporter, Stage};
use crate::{Outcome, Policy};
use gfs2_format::bitmap::RgrpLayout;
use gfs2_format::device::BlockDevice;
use gfs2_format::log::{DeviceJournal, find_head, recover_journal};
use gfs2_format::ondisk::{MULTIHOST_FORMAT, Superblock};
use gfs2_format::volume::{SystemFiles, read_superblock};
use gfs2_format::{Corrupt, Error, Expected, Geometry, Volume};
use std::io;
use std::time::{Duration, Instant};

/// Changes that a run may keep in memory because it writes nothing: the largest journal, replayed.
const UNWRITTEN: u64 = 1 << 30;
/// After so many rounds what is left is left.
const ROUNDS_MAX: u32 = 100;

/// How often the journals of a shared volume are looked at while they are watched.
const WATCH_STEP: Duration = Duration::from_millis(250);

/// The oldest filesystem format.
const FORMAT_MIN: u64 = gfs2_format::ondisk::FORMAT_MIN as u64;

/// How a round ended.
#[derive(Debug)]
enum End {
    /// Something was repaired or replayed.
    Again,
    /// Nothing is left to repair; so many errors stay.
    Done(u64),
}

/// What is needed to write the changes.
#[derive(Debug, Default)]
struct Shape {
    geometry: Option<Geometry>,
    groups: Vec<RgrpLayout>,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    device: &'a dyn BlockDevice,
    policy: Policy,
    outcome: Outcome,
    /// Repairs are made.
    repairs: bool,
    /// Other nodes were looked for.
    watched: bool,
    /// The device was found to be large enough.
    measured: bool,
    history: History,
    ledger: Ledger,
    shape: Shape,
}

impl<'a> Run<'a> {
    pub(crate) fn new(device: &'a dyn BlockDevice, policy: &Policy) -> Self {
        Self {
            device,
            policy: *policy,
            outcome: Outcome::default(),
            repairs: !policy.read_only && (policy.dry_run || !device.is_read_only()),
            watched: false,
            measured: false,
            history: History::default(),
            ledger: Ledger::default(),
            shape: Shape::default(),
        }
    }

    pub(crate) fn all(mut self, reporter: &mut dyn Reporter) -> Result<Outcome, Error> {
        let sector = self.device.sector_size();
        // What may not be written has to stay in memory.
        let written = self.repairs && !self.policy.dry_run;
        let limit = if written {
            self.policy.memory / 2
        } else {
            self.policy.memory.max(UNWRITTEN)
        };
        let mut changes = Changes::new(self.device, sector, limit)?;
        let result = self.rounds(&mut changes, reporter);
        let left = match result {
            Ok(left) => left,
            Err(e) => {
                // Whatever happened: the volume must not stay one that nobody mounts.
                changes.unguard()?;
                return Err(e);
            }
        };
        if self.repairs {
            self.outcome.corrected = self.outcome.errors.saturating_sub(left);
            if self.outcome.stopped && !changes.has_repairs() {
                // Where it could not go on, and nothing is to be written: no finding was repaired (but by a replay).
                self.outcome.corrected = 0;
            }
        }
        if self.outcome.cancelled {
            changes.unguard()?;
        } else {
            self.write(&mut changes, reporter)?;
        }
        Ok(self.outcome)
    }

    fn rounds(&mut self, changes: &mut Changes<'a>, reporter: &mut dyn Reporter) -> Result<u64, Error> {
        let mut number = 1;
        loop {
            match self.round(changes, reporter) {
                Ok(End::Done(left)) => return Ok(left),
                Ok(End::Again) => {}
                Err(Stop::Abort) => {
                    self.outcome.cancelled = true;
                    return Ok(self.outcome.errors);
                }
                Err(Stop::Fatal | Stop::Repair) => {
                    self.outcome.stopped = true;
                    return Ok(1);
                }
                Err(Stop::Failed(e)) => return Err(e),
            }
            number += 1;
            if number >= ROUNDS_MAX {
                self.history.close();
            }
            reporter.round(number);
        }
    }

    /// Writes what was changed, if it may be.
    fn write(&mut self, changes: &mut Changes<'a>, reporter: &mut dyn Reporter) -> Result<(), Error> {
        if !self.repairs {
            return Ok(());
        }
        if self.policy.dry_run {
            reporter.writing(&changes.ranges(), true);
            return Ok(());
        }
        match &self.shape.geometry {
            Some(geometry) if changes.has_repairs() => {
                reporter.writing(&changes.ranges(), false);
                changes.write(geometry, &self.shape.groups, &mut self.ledger)
            }
            _ => changes.unguard(),
        }
    }

    /// Writes now what has been repaired so far, and goes on.
    fn checkpoint(&mut self, changes: &mut Changes<'a>, reporter: &mut dyn Reporter) -> Result<(), Error> {
        if self.policy.dry_run {
            let full = io::Error::new(
                io::ErrorKind::OutOfMemory,
                "what would be changed does not fit the memory that is allowed",
            );
            return Err(Error::io("write", 0, 0, full));
        }
        let guarded = changes.is_guarded();
        self.write(changes, reporter)?;
        if guarded { changes.guard() } else { Ok(()) }
    }

    fn round(&mut self, changes: &mut Changes<'a>, reporter: &mut dyn Reporter) -> Result<End, Stop> {
        reporter.stage(Stage::System);
        self.outcome.unreadable = 0;
        let Some((superblock, geometry)) = self.superblock(changes, reporter)? else {
            return Ok(End::Again);
        };
        if !self.measured && !self.policy.force {
            self.measured = true;
            is_all_there(changes.overlay(), &geometry, &superblock)?;
        }
        changes.rebase(geometry.bsize())?;
        self.shape.geometry = Some(geometry.clone());
        // What an interrupted check left nobody can have mounted.
        let shared = !matches!(&*superblock.lockproto(), "lock_nolock" | "fsck_nolock");
        if shared && self.policy.preen && !self.policy.force {
            // Others may have it mounted.
            self.repairs = false;
        }
        let (system, journals, left, held) =
            match self.look_at_journals(changes, &superblock, &geometry, reporter)? {
                Some(found) => found,
                None => return Ok(End::Again),
            };
        if shared && self.repairs && !self.policy.dry_run {
            changes.guard()?;
        }
        if shared && !self.repairs && self.policy.preen && journals.iter().any(|journal| journal.dirty) {
            // It may be mounted: nothing that is seen now is true for long.
            return Ok(End::Done(left.saturating_add(held.problems.len() as u64)));
        }
        if self.replay(changes, &superblock, &geometry, &system, &journals, reporter)? {
            return Ok(End::Again);
        }
        // A replay may have changed anything but the superblock: everything is read afresh.
        let quiet = self.outcome.errors == 0 && self.outcome.warnings == 0 && held.problems.is_empty();
        let whole = !journals.iter().any(|journal| journal.bent) && !is_left_behind(&superblock);
        let short = self.policy.preen && !self.policy.force && quiet && whole;
        let overlay = changes.overlay();
        let mut check = Check::new(
            overlay,
            geometry.clone(),
            superblock,
            &mut *reporter,
            self.outcome,
            &self.policy,
        );
        if self.repairs {
            check = check.hold(&mut self.history, held);
        }
        let mut found = System::default();
        let result = everything(&mut check, short, &mut found);
        let left = left.saturating_add(check.left_errors());
        let changed = changes.size();
        if changed > self.policy.memory {
            check.outcome.memory = check.outcome.memory.max(changed);
        }
        let whole = result.is_ok() && !check.outcome.skipped;
        let (outcome, held, seen) = check.finish(found, whole);
        self.outcome = outcome;
        self.remember(&seen);
        if self.outcome.skipped || (self.outcome.unreadable > 0 && !self.policy.force) {
            // Half of what there is to know is no ground for repairs: what a block holds that cannot be read looks lost.
            for problem in held
                .problems
                .iter()
                .filter(|problem| self.history.is_news(problem))
            {
                self.outcome.errors += 1;
                reporter.problem(problem);
            }
            return Ok(End::Done(left.saturating_add(held.problems.len() as u64)));
        }
        match result {
            Err(Stop::Fatal) if held.problems.is_empty() => Err(Stop::Fatal),
            Err(stop @ (Stop::Failed(_) | Stop::Abort)) => Err(stop),
            Ok(()) if held.problems.is_empty() => Ok(End::Done(left)),
            Ok(()) | Err(Stop::Repair | Stop::Fatal) => {
                self.repair(changes, superblock, geometry, seen, held, reporter)?;
                Ok(End::Again)
            }
        }
    }

    fn remember(&mut self, seen: &Seen) {
        let groups = seen.observed.groups();
        if !groups.is_empty() {
            self.shape.groups = groups.iter().map(|group| group.layout.clone()).collect();
        }
    }

    /// Repairs what a round held back.
    fn repair(
        &mut self,
        changes: &mut Changes<'a>,
        superblock: Superblock,
        geometry: Geometry,
        seen: Seen,
        held: Held,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Error> {
        let mut full = false;
        let in_place = !self.policy.dry_run;
        if in_place
            && held
                .problems
                .iter()
                .any(|problem| repair::writes_at_once(problem.kind))
        {
            changes.guard()?;
        }
        let overlay = changes.overlay();
        let raw: &dyn BlockDevice = if in_place { self.device } else { overlay };
        let now = self.policy.now;
        let mut edit = Editor::new((overlay, raw), geometry, superblock, seen, now, &mut self.ledger);
        for problem in &held.problems {
            if self.history.is_news(problem) {
                self.outcome.errors += 1;
                reporter.problem(problem);
            }
            if !reporter.ask(Question::Repair(Request::new(problem))) {
                self.history.leave(problem);
                reporter.fate(problem, &Fate::Refused);
                continue;
            }
            let result = repair::carry_out(&mut edit, problem);
            full = matches!(&result, Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::OutOfMemory);
            if full && !changes.is_empty() {
                break;
            }
            reporter.fate(problem, &self.history.fate(problem, result));
        }
        if (full && !changes.is_empty()) || changes.is_filling() {
            self.checkpoint(changes, reporter)?;
        }
        Ok(())
    }

    /// Reads the superblock; `None` when it was just repaired.
    fn superblock(
        &mut self,
        changes: &mut Changes<'a>,
        reporter: &mut dyn Reporter,
    ) -> Result<Option<(Superblock, Geometry)>, Stop> {
        let problem = match read_superblock(changes.overlay()) {
            Ok(found) => return Ok(Some(found)),
            Err(e) => superblock_problem(self.device, e)?,
        };
        if self.history.is_news(&problem) {
            self.outcome.errors += 1;
            reporter.problem(&problem);
        }
        if !self.repairs || !self.history.is_open(&problem) {
            return Err(Stop::Fatal);
        }
        if !reporter.ask(Question::Repair(Request::new(&problem))) {
            self.history.leave(&problem);
            reporter.fate(&problem, &Fate::Refused);
            return Err(Stop::Fatal);
        }
        let result = repair::rebuild_superblock(changes.overlay());
        let done = matches!(result, Ok(Verdict::Done));
        reporter.fate(&problem, &self.history.fate(&problem, result));
        if done { Ok(None) } else { Err(Stop::Fatal) }
    }

    /// Finds system files and journals; `None` when something of them was just repaired.
    #[allow(clippy::type_complexity, reason = "the results of one step")]
    fn look_at_journals(
        &mut self,
        changes: &mut Changes<'a>,
        superblock: &Superblock,
        geometry: &Geometry,
        reporter: &mut dyn Reporter,
    ) -> Result<Option<(System, Vec<Journal>, u64, Held)>, Stop> {
        let overlay = changes.overlay();
        let mut check = Check::new(
            overlay,
            geometry.clone(),
            *superblock,
            &mut *reporter,
            self.outcome,
            &self.policy,
        );
        if self.repairs {
            check = check.hold(&mut self.history, Held::default());
        }
        let mut system = System::default();
        let result = std::thread::scope(|scope| {
            let mut reader = Reader::with_helpers(scope, overlay, geometry);
            journals(&mut check, &mut reader, &mut system)
        });
        let gate = check.gate(Phase::Journals);
        let left = check.left_errors();
        let (outcome, held, seen) = check.finish(system, false);
        self.outcome = outcome;
        if let Ok(journals) = &result
            && superblock.lockproto() != "lock_nolock"
        {
            self.watch(geometry, journals, reporter)?;
        }
        let result = result.and_then(|journals| gate.map(|()| journals));
        match result {
            Ok(journals) => Ok(Some((seen.system, journals, left, held))),
            Err(Stop::Fatal | Stop::Repair) if !held.problems.is_empty() => {
                self.repair(changes, *superblock, geometry.clone(), seen, held, reporter)?;
                Ok(None)
            }
            Err(stop) => Err(stop),
        }
    }

    /// Watches the journals of a volume that other nodes may have mounted, once: nobody but a node that has it mounted
    /// writes one.
    fn watch(
        &mut self,
        geometry: &Geometry,
        journals: &[Journal],
        reporter: &mut dyn Reporter,
    ) -> Result<(), Stop> {
        let unsure = journals.iter().any(|journal| journal.dirty);
        if !self.repairs || self.policy.dry_run || self.watched || !unsure {
            return Ok(());
        }
        self.watched = true;
        let heads = || -> Result<Vec<Option<u64>>, Error> {
            let head = |journal: &Journal| {
                let ring = DeviceJournal::new(self.device, geometry, &journal.file.map);
                Ok(find_head(&ring, geometry)?.map(|head| head.header.sequence))
            };
            journals.iter().map(head).collect()
        };
        let (before, since) = (heads()?, Instant::now());
        loop {
            let spent = since.elapsed();
            let now = heads()?;
            if let Some(journal) = (0..)
                .zip(&before)
                .zip(&now)
                .find_map(|((jid, a), b)| (a != b).then_some(jid))
            {
                let jid: u32 = journal;
                let text = format!("journal{jid} is being written: another node has the volume mounted");
                return Err(
                    Error::io("watch", 0, 0, io::Error::new(io::ErrorKind::ResourceBusy, text)).into(),
                );
            }
            let total = self.policy.watch.as_millis() as u64;
            let done = (spent.as_millis() as u64).min(total);
            let stage = Stage::Journals;
            match reporter.progress(Progress { stage, done, total }) {
                Control::Abort => return Err(Stop::Abort),
                Control::Continue if spent < self.policy.watch => {}
                Control::Continue | Control::Skip => return Ok(()),
            }
            std::thread::sleep(WATCH_STEP.min(self.policy.watch.saturating_sub(spent)));
        }
    }

    /// Replays dirty journals: on the device, or, where that is not wanted, in the overlay. Answers whether the device
    /// was changed.
    fn replay(
        &mut self,
        changes: &mut Changes<'a>,
        superblock: &Superblock,
        geometry: &Geometry,
        system: &System,
        journals: &[Journal],
        reporter: &mut dyn Reporter,
    ) -> Result<bool, Stop> {
        if self.policy.read_only && self.policy.as_it_lies {
            return Ok(false);
        }
        let dirty = journals
            .iter()
            .filter(|journal| journal.dirty && journal.replayable);
        let Some(volume) = volume(superblock, geometry, system, journals) else {
            return Ok(false);
        };
        let mut replayed = false;
        for journal in dirty {
            // In the order of the journals: what one replay may not write, a later one must not write either.
            if self.repairs && !reporter.ask(Question::ReplayJournal(journal.file.jid)) {
                // What is repaired now, a later replay would overwrite.
                self.repairs = false;
            }
            let on_device = self.repairs && !self.policy.dry_run;
            if on_device && changes.has_repairs() {
                self.checkpoint(changes, reporter)?;
            }
            let target: &dyn BlockDevice = if on_device { self.device } else { changes.overlay() };
            let now = self.policy.now;
            let problem = match recover_journal(target, &volume, &journal.file, journal.file.jid, now) {
                Ok(report) => {
                    reporter.replayed(&report, !on_device);
                    replayed |= on_device;
                    continue;
                }
                Err(Error::Corrupt(corrupt)) => Problem::from_corrupt(Kind::JournalReplay, &corrupt),
                Err(Error::NotFound) => {
                    let per_node = system.file("per_node").unwrap_or(journal.file.dinode);
                    let rule = Expected::Rule("a statfs change file of this journal");
                    Problem::new(Kind::JournalReplay, per_node, "entries", 0, rule)
                }
                Err(e) => return Err(e.into()),
            };
            if self.history.is_news(&problem) {
                self.outcome.errors += 1;
                reporter.problem(&problem);
            }
        }
        Ok(replayed)
    }
}

/// Refuses a device that ends before the volume does.
fn is_all_there(device: &dyn BlockDevice, geometry: &Geometry, superblock: &Superblock) -> Result<(), Error> {
    let Some(end) = pass::extent::end_behind_device(device, geometry, superblock) else {
        return Ok(());
    };
    let text = format!(
        "the device has {} blocks of {} bytes, the volume {end}: its end is missing; -f goes on without it",
        geometry.end(),
        geometry.bsize()
    );
    let short = io::Error::new(io::ErrorKind::UnexpectedEof, text);
    Err(Error::io(
        "measure",
        geometry.byte_offset(gfs2_format::BlockAddr::new(geometry.end())),
        0,
        short,
    ))
}

/// What an error of reading the superblock means: damage, or not for us.
fn superblock_problem(device: &dyn BlockDevice, error: Error) -> Result<Problem, Error> {
    let sb = gfs2_format::geometry::SUPERBLOCK_OFFSET;
    let at = gfs2_format::BlockAddr::new(sb / 512);
    Ok(match error {
        Error::Corrupt(corrupt) => Problem::from_corrupt(Kind::Superblock, &corrupt),
        // A device that ends before the superblock holds no volume either.
        Error::Io { .. } if device.size() < sb + 4096 => Problem::from_corrupt(
            Kind::Superblock,
            &Corrupt {
                block: at,
                structure: "sb",
                field: "size of the device",
                found: device.size(),
                expected: Expected::Range(sb + 4096, u64::MAX),
            },
        ),
        Error::Unsupported { what, found, .. } if what == "multihost format" || found < FORMAT_MIN => {
            let (field, rule) = match what {
                "multihost format" => (
                    "sb_multihost_format",
                    Expected::Value(u64::from(MULTIHOST_FORMAT)),
                ),
                _ => ("sb_fs_format", Expected::Rule("1801 or 1802")),
            };
            Problem::new(Kind::Superblock, at, field, found, rule)
        }
        other => return Err(other),
    })
}

fn journals(check: &mut Check<'_>, reader: &mut Reader<'_>, system: &mut System) -> Step<Vec<Journal>> {
    *system = find_system(check, reader)?;
    check.stage(Stage::Journals);
    check.journals(reader, system)
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

/// Did a check that was interrupted leave its guard?
fn is_left_behind(superblock: &Superblock) -> bool {
    superblock.lockproto().starts_with("fsck_")
}

/// Everything but the journals; `short`: when the resource index can be used, not even that.
fn everything(check: &mut Check<'_>, short: bool, system: &mut System) -> Step {
    let (device, geometry) = (check.device, check.geometry.clone());
    std::thread::scope(|scope| {
        let mut reader = Reader::with_helpers(scope, device, &geometry);
        everything_through(check, &mut reader, short, system)
    })
}

fn everything_through(
    check: &mut Check<'_>,
    reader: &mut Reader<'_>,
    short: bool,
    system: &mut System,
) -> Step {
    *system = find_system(check, reader)?;
    if short && check.can_find_groups(reader, system)? {
        check.outcome.preened = true;
        return Ok(());
    }
    check.system(reader, system)?;
    check.gate(Phase::Journals)?;
    check.stage(Stage::Rgrps);
    let (rindex, content) = check.rindex(reader, system)?;
    let total = check.statfs_total(reader, system);
    let totals = check.rgrps(reader, rindex, content.as_deref(), total)?;
    drop(content);
    check.gate(Phase::Rgrps)?;
    metadata(check, reader)?;
    check.stage(Stage::Statfs);
    match totals {
        Some(totals) => check.statfs(reader, system, totals),
        None => Ok(()),
    }
}

/// Inodes, directories, and what follows from them; ends where the caller leaves the rest of a stage out.
fn metadata(check: &mut Check<'_>, reader: &mut Reader<'_>) -> Step {
    check.stage(Stage::Inodes);
    check.inodes(reader)?;
    if check.outcome.skipped {
        return Ok(());
    }
    check.stage(Stage::Directories);
    let mut roots = [
        check.superblock.master_dir.num().addr,
        check.superblock.root_dir.num().addr,
    ];
    roots.sort_unstable();
    // Directories among them are looked at with all others.
    check.adopt(reader, &roots)?;
    check.directories(reader)?;
    if check.outcome.skipped {
        return Ok(());
    }
    check.stage(Stage::Connectivity);
    check.connectivity()?;
    check.stage(Stage::Links);
    check.links()?;
    check.stage(Stage::Bitmaps);
    check.leaks()?;
    if check.has_shared() {
        check.stage(Stage::Duplicates);
        check.begin_search();
        check.inodes_again(reader)?;
        check.directories(reader)?;
        check.end_search();
    }
    Ok(())
}
