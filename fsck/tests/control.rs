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
use gfs2_format::log::LogTime;
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
    for (answer, code) in [("a", 32), ("s", 1), ("c", 1)] {
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
