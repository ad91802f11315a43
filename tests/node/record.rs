//! A mount that was recorded, the disks a power cut may leave of it, and what is asked of each.

use super::plan::{Mark, Plan, Step};
use super::tree::{Allowance, Bytes, Id, Seen, compare, observe};
use super::{Node, Shape, judge};
use fastrand::Rng;
use gfs2_format::BlockAddr;
use gfs2_format::device::{BlockDevice, LogEntry, MemDevice, RecordDevice, WriteLog};
use gfs2_format::volume::Volume;
use gfs2_fsck::Kind;
use std::sync::Arc;

/// What a crash may leave on a replayed volume: the next mount ends it.
pub const LEFT_BY_A_CRASH: &[Kind] = &[Kind::Unlinked, Kind::TruncateInProgress];

/// A mount that was recorded.
pub struct Record {
    pub seed: u64,
    pub shape: Shape,
    pub initial: MemDevice,
    pub log: WriteLog,
    pub steps: Vec<Step>,
    pub marks: Vec<Mark>,
}

/// Records a seeded mix of so many operations.
pub fn record(seed: u64, shape: Shape, steps: usize) -> Record {
    let initial = shape.make();
    let device = Arc::new(RecordDevice::new(initial.clone()));
    let node = Node::mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>)).expect("a mount");
    let mut plan = Plan::new(&node, seed, || device.log().entries().len());
    for _ in 0..steps {
        plan.step();
    }
    plan.close_all();
    let (steps, marks) = (std::mem::take(&mut plan.steps), std::mem::take(&mut plan.marks));
    drop(plan);
    let log = device.take_log();
    node.unmount();
    judge::clean_but(device.base(), &[], &format!("seed {seed}, at the end"));
    Record {
        seed,
        shape,
        initial,
        log,
        steps,
        marks,
    }
}

/// A possible disk.
pub struct Image {
    pub what: String,
    pub device: MemDevice,
    /// Entries of the log that had ended.
    pub ended: usize,
    /// Entries of the log that had begun.
    pub begun: usize,
}

impl Record {
    /// Calls `test` with images of every epoch that `wanted` (a chance of one in so many) lets through.
    pub fn images(&self, wanted: u32, mut test: impl FnMut(Image)) {
        let mut rng = Rng::with_seed(self.seed);
        let entries = self.log.entries();
        let mut durable = self.initial.clone();
        let mut start = 0;
        for end in self.log.flush_points() {
            let after = durable.clone();
            apply(&after, &entries[start..end], |_| true);
            if rng.u32(..wanted) == 0 {
                self.epoch(&durable, &after, start..end, &mut rng, &mut test);
            }
            (durable, start) = (after, end);
        }
    }

    fn epoch(
        &self,
        durable: &MemDevice,
        after: &MemDevice,
        range: std::ops::Range<usize>,
        rng: &mut Rng,
        test: &mut impl FnMut(Image),
    ) {
        let entries = self.log.entries();
        let name = |kind: &str, at: usize| format!("seed {}, {:?}, {kind} at {at}", self.seed, self.shape);
        test(Image {
            what: name("flush", range.end),
            device: after.clone(),
            ended: range.end,
            begun: range.end,
        });
        for sectors in [true, false] {
            let (position, chance) = (rng.usize(range.start..=range.end), rng.u64(..));
            let device = durable.clone();
            let kind = format!("sectors {sectors}, chance {chance}");
            let mut coin = Rng::with_seed(chance);
            apply_some(&device, &entries[range.start..position], sectors, &mut coin);
            test(Image {
                what: name(&kind, position),
                device,
                ended: position,
                begun: position,
            });
        }
        for at in range.clone() {
            let LogEntry::Write {
                offset,
                bytes,
                fua: true,
            } = &entries[at]
            else {
                continue;
            };
            let torn = [0..40.min(bytes.len()), 0..512, 512.min(bytes.len())..bytes.len()];
            let part = torn[rng.usize(..torn.len())].clone();
            let device = durable.clone();
            let mut coin = Rng::with_seed(rng.u64(..));
            apply_some(&device, &entries[range.start..at], false, &mut coin);
            // The medium may stop in the middle of a sector.
            device
                .write_at(offset + part.start as u64, &bytes[part.clone()])
                .expect("a write");
            test(Image {
                what: name(&format!("header torn to {part:?}"), at),
                device,
                ended: at,
                begun: at + 1,
            });
        }
    }

    /// Everything that is asked of one image.
    pub fn survive(&self, image: &Image, hard: bool) {
        let what = &image.what;
        let replayed = image.device.clone();
        judge::replay(&replayed).unwrap_or_else(|e| panic!("{what}: {e}"));
        judge::clean_but(&replayed, LEFT_BY_A_CRASH, what);
        let again = replayed.clone();
        judge::replay(&again).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(
            judge::differences(&replayed, &again).is_empty(),
            "{what}: replayed twice"
        );
        if hard {
            interrupted(image, &replayed);
        }
        let device = Arc::new(again);
        let node = Node::mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>))
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        node.fs
            .reclaim_orphans()
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        let seen = observe(&node);
        self.find(&seen, image.ended, image.begun)
            .unwrap_or_else(|why| panic!("{what}: {why}"));
        node.unmount();
        judge::clean_but(&*device, &[Kind::TruncateInProgress], what);
        if hard {
            judge::reference_clean(&device, what);
        }
    }

    /// Finds the state that was seen; it must not be older than what was synced.
    pub fn find(&self, seen: &Seen, ended: usize, begun: usize) -> Result<usize, String> {
        let known = self.marks.iter().filter(|mark| mark.position <= ended);
        let least = known.map(|mark| mark.step).max().unwrap_or(0);
        let most = self.steps.partition_point(|step| step.position < begun);
        let most = most.min(self.steps.len() - 1);
        let mut why = Vec::new();
        for state in (least..=most).rev() {
            let allow = Crash {
                record: self,
                ended,
                state,
                most,
            };
            match compare(&self.steps[state].tree, seen, &allow) {
                Ok(()) => return Ok(state),
                Err(said) => why.push(format!("after {state} ({}): {said}", self.steps[state].said)),
            }
        }
        let why = why.join("\n");
        Err(format!("the tree is none of {least}..={most}:\n{why}"))
    }
}

/// What a crash may do to a state.
struct Crash<'a> {
    record: &'a Record,
    ended: usize,
    state: usize,
    most: usize,
}

impl Crash<'_> {
    fn content(&self, step: usize, id: Id) -> Option<&Bytes> {
        let file = self.record.steps.get(step)?.tree.files.get(&id)?;
        Some(&file.data)
    }
}

impl Allowance for Crash<'_> {
    /// A write of several transactions may have been cut between them.
    fn size(&self, id: Id, state: usize, found: usize) -> bool {
        let next = (self.state < self.most)
            .then(|| self.content(self.state + 1, id))
            .flatten();
        found == state || next.is_some_and(|next| state < found && found < next.len())
    }

    /// Of data that is written in place each byte is that of some state since its last sync; journaled data goes with
    /// its transaction.
    fn bytes(&self, id: Id, found: &[u8]) -> Result<(), String> {
        let marks = self.record.marks.iter();
        let synced = marks.filter(|mark| mark.file == Some(id) && mark.position <= self.ended);
        let range = if self.record.shape.jdata {
            self.state..=(self.state + 1).min(self.most)
        } else {
            synced.map(|mark| mark.now).max().unwrap_or(0)..=self.most
        };
        let mut versions: Vec<&Bytes> = range.clone().filter_map(|step| self.content(step, id)).collect();
        versions.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let fits = |at: usize| {
            versions
                .iter()
                .any(|v| v.get(at).copied().unwrap_or(0) == found[at])
        };
        match (0..found.len()).find(|at| !fits(*at)) {
            None => Ok(()),
            Some(at) => Err(format!(
                "byte {at} of {} is {:#x}, in none of {} versions of steps {range:?}",
                found.len(),
                found[at],
                versions.len()
            )),
        }
    }
}

fn apply(image: &MemDevice, entries: &[LogEntry], mut keep: impl FnMut(usize) -> bool) {
    for (n, entry) in entries.iter().enumerate() {
        if let LogEntry::Write { offset, bytes, .. } = entry
            && keep(n)
        {
            image.write_at(*offset, bytes).expect("a write");
        }
    }
}

/// What is unflushed is there or not, by the sector or by the request.
fn apply_some(image: &MemDevice, entries: &[LogEntry], sectors: bool, coin: &mut Rng) {
    for entry in entries {
        let LogEntry::Write { offset, bytes, fua } = entry else {
            continue;
        };
        let unit = if sectors && !fua { 512 } else { bytes.len().max(1) };
        for (n, part) in bytes.chunks(unit).enumerate() {
            if *fua || coin.bool() {
                image.write_at(offset + (n * unit) as u64, part).expect("a write");
            }
        }
    }
}

/// A replay that is cut itself, and begun again, leaves the same. Only the totals may have been counted twice, as by
/// the kernel: our checker says so of them and of nothing else.
fn interrupted(image: &Image, replayed: &MemDevice) {
    let whole = RecordDevice::new(image.device.clone());
    judge::replay(&whole).expect("a replay");
    let log = whole.log();
    let statfs = Volume::open(replayed).expect("a volume").system.statfs;
    let mut rng = Rng::with_seed(log.entries().len() as u64);
    for _ in 0..3 {
        let (cut, chance) = (rng.usize(..=log.entries().len()), rng.u64(..));
        let again = log.crash_image(&image.device, cut, chance).expect("an image");
        let what = format!("{}, its replay cut at {cut}, chance {chance}", image.what);
        judge::replay(&again).unwrap_or_else(|e| panic!("{what}: {e}"));
        let others: Vec<BlockAddr> = judge::differences(replayed, &again)
            .into_iter()
            .filter(|addr| *addr != statfs)
            .collect();
        assert!(others.is_empty(), "{what}: other bytes in {others:?}");
        let mut allowed = LEFT_BY_A_CRASH.to_vec();
        allowed.push(Kind::Statfs);
        judge::clean_but(&again, &allowed, &what);
    }
}
