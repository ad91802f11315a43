//! Goal: on the same damage the program ends as the reference's does, whatever it was asked. Method: damaged volumes
//! through both programs side by side: looking only, repairing, preening, and asked with no for an answer; where the
//! exit codes differ a table says why. Needs gfs2-utils, which `tests/lab/setup.sh` installs.
//!
//! Some cases of the damage tests are taken each time; `EVERY=1` in the environment takes all of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must fail"
)]

mod support;

use gfs2_format::damage;
use gfs2_format::device::MemDevice;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use support::cases::{CASES, Case, IMAGE};
use support::{Map, fixture, save};

/// Each so-manieth case is taken.
const EVERY: usize = 11;
/// What both are asked to do, and what is said to them.
const WAYS: &[(&str, &str)] = &[("-n", ""), ("-y", ""), ("-p", ""), ("", "n\n")];
/// How long the reference may take over one volume, in seconds: on some damage it does not end.
const PATIENCE: &str = "60";
/// Exit code of `timeout` for a program that had to be ended.
const ENDED: i32 = 124;

/// Cases in which the exit codes differ, and why.
const DIFFERENT: &[(&str, &str)] = &[];

fn exit(program: &str, (way, answers): (&str, &str), image: &Path) -> i32 {
    let mut child = Command::new("timeout")
        .args([PATIENCE, program])
        .args(Some(way).filter(|way| !way.is_empty()))
        .arg(image)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The same answer to every question; the program may end without having heard all of them.
    let _ = child.stdin.take().unwrap().write_all(answers.repeat(4096).as_bytes());
    child.wait().unwrap().code().unwrap_or(-1)
}

fn both(device: &MemDevice, way: (&str, &str), dir: &Path) -> (i32, i32) {
    let image = dir.join("image");
    let ours = env!("CARGO_BIN_EXE_fsck-gfs2");
    let codes = ["fsck.gfs2", ours].map(|program| {
        save(device, &image);
        exit(program, way, &image)
    });
    (codes[0], codes[1])
}

fn damaged(case: &Case) -> MemDevice {
    let device = fixture(IMAGE);
    damage::run(&(case.script)(&Map::new(&fixture(IMAGE))), &device).unwrap();
    device
}

#[test]
fn exit_codes_are_those_of_the_reference() {
    let every = std::env::var("EVERY").map_or(EVERY, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut differ = BTreeSet::new();
    let mut told = String::new();
    for case in CASES.iter().step_by(every) {
        let device = damaged(case);
        for way in WAYS {
            let (theirs, ours) = both(&device, *way, dir.path());
            if theirs != ours && theirs != ENDED {
                differ.insert(case.name);
                let _ = writeln!(told, "{} {:?}: the reference {theirs}, ours {ours}", case.name, way.0);
            }
        }
    }
    println!("{told}");
    let known: BTreeSet<&str> = DIFFERENT.iter().map(|(name, _)| *name).collect();
    let unknown: Vec<_> = differ.difference(&known).collect();
    assert!(unknown.is_empty(), "{unknown:?}\n{told}");
}
