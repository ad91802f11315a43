//! Goal: whoever runs a check keeps control of it: it can be ended, asked how far it is, and does not touch what it
//! must not. Method: reporters that end the check, and the program under signals at a point where it waits.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must fail"
)]

mod support;

use gfs2_format::damage;
use gfs2_format::device::{BlockDevice, Fault, FaultDevice, FaultOp, FaultRule, MemDevice};
use gfs2_format::log::{DeviceJournal, JournalRead, LogTime, find_head};
use gfs2_format::{JournalBlock, Volume};
use gfs2_fsck::{
    Collect, Control, Kind, Outcome, Policy, Problem, Progress, Question, Reporter, Stage, check,
};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use support::{Map, fixture};

/// Says yes, and wants out at a stage.
struct Ends {
    at: Stage,
    how: Control,
    collect: Collect,
}

impl Reporter for Ends {
    fn problem(&mut self, problem: &Problem) {
        self.collect.problem(problem);
    }

    fn ask(&mut self, _question: Question<'_>) -> bool {
        true
    }

    fn progress(&mut self, progress: Progress) -> Control {
        assert!(
            progress.done <= progress.total || progress.total == 0,
            "{progress:?}"
        );
        if progress.stage == self.at {
            self.how
        } else {
            Control::Continue
        }
    }
}

fn policy() -> Policy {
    Policy::repair(LogTime::default())
}

fn damaged() -> MemDevice {
    let image = fixture("clean1k");
    damage::run("set dinode(/links/t).di_nlink = 9", &image).unwrap();
    image
}

fn bytes(device: &MemDevice) -> Vec<u8> {
    let mut bytes = vec![0; device.size() as usize];
    device.read_at(0, &mut bytes).unwrap();
    bytes
}

fn ended(at: Stage, how: Control, device: &MemDevice) -> Outcome {
    let collect = Collect::default();
    check(device, &policy(), &mut Ends { at, how, collect }).unwrap()
}

#[test]
fn a_check_that_is_ended_writes_nothing() {
    for lock in ["lock_nolock", "lock_dlm"] {
        let image = damaged();
        damage::run(&format!("set sb.sb_lockproto = {lock}"), &image).unwrap();
        let before = bytes(&image);
        for at in [Stage::Rgrps, Stage::Inodes, Stage::Directories] {
            let outcome = ended(at, Control::Abort, &image);
            assert!(outcome.cancelled, "{lock} {at}: {outcome:?}");
            assert!(bytes(&image) == before, "{lock} {at}");
        }
    }
}

#[test]
fn a_pass_that_is_left_out_is_no_ground_for_repairs() {
    let image = damaged();
    let before = bytes(&image);
    for at in [Stage::Inodes, Stage::Directories] {
        let outcome = ended(at, Control::Skip, &image);
        assert!(outcome.skipped && !outcome.cancelled, "{at}: {outcome:?}");
        assert!(bytes(&image) == before, "{at}");
    }
    let outcome = ended(Stage::Rgrps, Control::Skip, &image);
    assert!(!outcome.skipped && outcome.corrected == 1, "{outcome:?}");
}

#[test]
fn what_cannot_be_read_is_not_taken_for_lost() {
    let image = damaged();
    let at = Map::new(&image).path("names/a") * 1024;
    let device = FaultDevice::new(&image);
    device.add(FaultRule::always(FaultOp::Read, Fault::Errno(5)).at(at..at + 1024));
    let mut found = Collect {
        answer: true,
        ..Collect::default()
    };
    let outcome = check(&device, &policy(), &mut found).unwrap();
    assert_eq!(device.counts().writes, 0);
    assert_eq!((outcome.unreadable, outcome.corrected), (1, 0), "{outcome:?}");
    let kinds: Vec<Kind> = found.problems.iter().map(|problem| problem.kind).collect();
    assert!(kinds.contains(&Kind::Unreadable) && kinds.len() > 1, "{kinds:?}");
}

#[test]
fn preening_a_shared_volume_that_may_be_mounted_touches_nothing() {
    let image = fixture("cluster2j-dirty");
    let before = bytes(&image);
    let policy = Policy {
        preen: true,
        ..policy()
    };
    let mut found = Collect {
        answer: true,
        ..Collect::default()
    };
    let device = FaultDevice::new(&image);
    let outcome = check(&device, &policy, &mut found).unwrap();
    assert_eq!(device.counts().writes, 0);
    let kinds: Vec<Kind> = found.problems.iter().map(|problem| problem.kind).collect();
    assert_eq!(kinds, vec![Kind::JournalDirty; 2], "{outcome:?}");
    assert!(bytes(&image) == before);
    // A clean one is as harmless.
    let image = fixture("clean4k");
    damage::run("set sb.sb_lockproto = lock_dlm", &image).unwrap();
    let device = FaultDevice::new(&image);
    let outcome = check(&device, &policy, &mut found).unwrap();
    assert!(outcome.preened, "{outcome:?}");
    assert_eq!(device.counts().writes, 0);
}

/// Writes a journal as a node does that has the volume mounted, as soon as the journals are watched.
struct Node<'a> {
    device: &'a MemDevice,
    collect: Collect,
}

impl Reporter for Node<'_> {
    fn problem(&mut self, problem: &Problem) {
        self.collect.problem(problem);
    }

    fn ask(&mut self, _question: Question<'_>) -> bool {
        true
    }

    fn progress(&mut self, progress: Progress) -> Control {
        if progress.stage == Stage::Journals {
            let volume = Volume::open(self.device).unwrap();
            let map = &volume.journals[1].map;
            let ring = DeviceJournal::new(self.device, &volume.geometry, map);
            let head = find_head(&ring, &volume.geometry).unwrap().unwrap();
            let (at, next) = (head.position.get(), head.position.get() + 1);
            let script = format!(
                "copy journal 1 block {at} to journal 1 block {next}\n\
                 set log_header(journal 1 block {next}).lh_blkno = {next}\n\
                 set log_header(journal 1 block {next}).lh_sequence = {}, fix crc",
                head.header.sequence + 1
            );
            damage::run(&script, self.device).unwrap();
        }
        Control::Continue
    }
}

/// A journal that grows while it is watched is that of a live node: hands off.
#[test]
fn a_volume_that_another_node_writes_is_not_repaired() {
    let image = fixture("cluster2j-dirty");
    let device = FaultDevice::new(&image);
    let policy = Policy {
        watch: std::time::Duration::from_secs(20),
        ..policy()
    };
    let mut node = Node {
        device: &image,
        collect: Collect::default(),
    };
    let error = check(&device, &policy, &mut node).unwrap_err().to_string();
    assert!(error.contains("journal1 is being written"), "{error}");
    assert_eq!(device.counts().writes, 0);
}

/// J6: block numbers in a journal are believed only where they may be written.
#[test]
fn a_journal_that_points_outside_is_not_obeyed() {
    for target in [u64::MAX / 2, 99_999_999, 16] {
        let image = fixture("dirty4k");
        let volume = Volume::open(&image).unwrap();
        let sb = volume.geometry.superblock().get();
        let target = if target == 16 { sb } else { target };
        let ring = DeviceJournal::new(&image, &volume.geometry, &volume.journals[0].map);
        let len = volume.geometry.block_len();
        let mut changed = 0;
        for n in 0..ring.ring().blocks() {
            let at = ring.address(JournalBlock::new(n)).get() * len as u64;
            let mut block = vec![0; len];
            image.read_at(at, &mut block).unwrap();
            // A log descriptor: its entries begin at byte 72.
            if block[..4] == [1, 0x16, 0x19, 0x70] && block[7] == 9 {
                block[72..80].copy_from_slice(&target.to_be_bytes());
                image.write_at(at, &block).unwrap();
                changed += 1;
            }
        }
        assert!(changed > 0);
        let mut before = vec![0; 4096];
        image.read_at(65536, &mut before).unwrap();
        let mut found = Collect {
            answer: true,
            ..Collect::default()
        };
        let outcome = check(&image, &policy(), &mut found).unwrap();
        let kinds: Vec<Kind> = found.problems.iter().map(|problem| problem.kind).collect();
        assert!(kinds.contains(&Kind::JournalReplay), "{target}: {kinds:?}");
        assert_eq!(outcome.uncorrected(), 0, "{target}: {outcome:?}");
        let mut after = vec![0; 4096];
        image.read_at(65536, &mut after).unwrap();
        assert!(after == before, "{target}: the superblock");
        let again = check(&image, &Policy::read_only(), &mut Collect::default()).unwrap();
        assert_eq!(again.errors, 0, "{target}: {again:?}");
    }
}

/// Everything the program said so far, up to and including `until`.
fn read_until(out: &mut impl BufRead, until: &str) -> String {
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).ends_with(until) {
        let mut byte = [0];
        assert_eq!(
            out.read(&mut byte).unwrap(),
            1,
            "{}",
            String::from_utf8_lossy(&text)
        );
        text.push(byte[0]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn ctrl_c_asks_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, bytes(&damaged())).unwrap();
    // The first place that asks is before the inodes, where nothing can be left out.
    for (answer, code) in [("a", 36), ("s", 1), ("c", 1)] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_fsck-gfs2"))
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        // It waits for an answer: the signal is there before the next pass.
        read_until(&mut out, "(y/n) ");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        input.write_all(b"y\n").unwrap();
        let said = read_until(&mut out, "(a/s/c)? ");
        assert!(said.contains("interrupted during"), "{said}");
        input.write_all(format!("what\n{answer}\n").as_bytes()).unwrap();
        drop(input);
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{answer}: {rest}");
        std::fs::write(&path, bytes(&damaged())).unwrap();
    }
}

/// SIGUSR1 has it say how far it is, on the error output, and changes nothing else.
#[test]
fn sigusr1_tells_the_progress() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, bytes(&damaged())).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_fsck-gfs2"))
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    // It waits for an answer: the signal is there before the next pass.
    read_until(&mut out, "(y/n) ");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    input.write_all(b"y\n").unwrap();
    drop(input);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    let mut told = String::new();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}\n{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains(" percent complete"), "{told}");
}
