//! Goal: on the same damage the program ends as the reference's does, whatever it was asked. Method: the volume of every
//! case of the damage tests through both programs side by side: looking only, repairing, preening, and asked with no for
//! an answer. Where the exit codes differ a closed table says how and why; what differs in another way fails, and so
//! does a line of the table that is no longer true. Needs gfs2-utils, which `tests/lab/setup.sh` installs.
//!
//! Each case is tried in one way, the next one in the next; `ALL=1` in the environment tries each in every way (some
//! minutes), `CASE` takes one case only.

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
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, mpsc};
use support::cases::{CASES, IMAGE};
use support::{Map, fixture, save};

/// What both are asked to do, and what is said to them.
const WAYS: &[(&str, &str)] = &[("-n", ""), ("-y", ""), ("-p", ""), ("", "n\n")];
/// What ours ends with where the table says that the codes differ: damage is left, or all of it was repaired.
const OURS: &[(&str, i32)] = &[("-n", 4), ("-y", 1), ("-p", 1), ("", 4)];
/// How long a program may take over one volume, in seconds.
const PATIENCE: &str = "120";
/// The same for the reference where the table says that it does not end: it did not within a minute.
const NO_PATIENCE: &str = "5";
/// Exit code of `timeout` for a program that had to be ended.
const ENDED: i32 = 124;
/// The program was killed by a signal.
const CRASHED: i32 = -1;

const GIVES_UP: &str = "the reference cannot go on and repairs nothing; ours can";
const CRASHES: &str = "the reference crashes";
const NO_END: &str = "the reference does not end: it asks, or tries, the same again and again";
const LEFT: &str =
    "the reference puts the name back and says nothing; that a repair was cut short is worth a check";
const RING: &str =
    "the kernel refuses such a journal, or replays the wrong part of it; the reference does not look there";
const COPIES: &str = "the header's copies of the index: the reference repairs them only with other damage";
const SHAPE: &str = "a size, height or depth that no such inode has: the reference does not look";
const FLAGS: &str = "flags that contradict the inode's layout: the reference does not look";
const XATTR: &str = "pointers that do not fit the length of the value: the reference does not look";
const ENTRIES: &str =
    "an entry, or a leaf, that lookups do not find or do not believe: the reference does not look";

/// A case, ways in which the codes differ, the reference's code, and why.
type Different = (&'static str, &'static [&'static str], i32, &'static str);

const DIFFERENT: &[Different] = &[
    ("no block size", &["-n", "-y", "-p", ""], CRASHED, CRASHES),
    ("no magic", &["-n", "-y", "-p", ""], CRASHED, CRASHES),
    ("interrupted check", &["-n", "-y", "-p", ""], 0, LEFT),
    ("master lost", &["-n", "-y", "-p", ""], 8, GIVES_UP),
    ("root lost", &["-n"], 8, GIVES_UP),
    ("root lost", &[""], ENDED, NO_END),
    ("inum renamed", &["-n", ""], 8, GIVES_UP),
    ("rindex renamed", &["-n", "-y", "-p", ""], 8, GIVES_UP),
    ("statfs too short", &["-n", "-y", ""], 8, GIVES_UP),
    ("statfs too long", &["-n", "-y", ""], CRASHED, CRASHES),
    ("inum too long", &["-n", "-y", ""], CRASHED, CRASHES),
    ("no system flag", &["-y"], CRASHED, CRASHES),
    ("rgrp header", &["-n", ""], 8, GIVES_UP),
    ("rgrp bitmap", &["-n", ""], 8, GIVES_UP),
    ("rindex data", &["-n", "-y", "-p", ""], 8, GIVES_UP),
    ("rindex address", &["-n", "-y", "-p", ""], 8, GIVES_UP),
    ("rindex twice", &["-n", "-y", "-p", ""], 8, GIVES_UP),
    ("rindex short", &["-n", "-y"], 8, GIVES_UP),
    ("rindex short", &[""], ENDED, NO_END),
    ("rindex odd", &["-n", ""], 8, GIVES_UP),
    ("rgrp data0", &["-n", "-y", ""], 0, COPIES),
    ("rgrp crc", &["-n", ""], CRASHED, CRASHES),
    ("rgrp skip", &["-n", "-y", ""], 0, COPIES),
    ("no log headers", &["-n", ""], 8, GIVES_UP),
    ("sequence twice", &["-p"], 0, RING),
    ("sequence twice", &["-n", ""], 8, GIVES_UP),
    ("journal size", &["-n", "-y", "-p", ""], 0, RING),
    ("journal tail", &["-n"], 0, RING),
    ("formal number", &["-n", "-y", ""], 0, ENTRIES),
    ("height", &["-n", "-y", ""], 0, SHAPE),
    ("depth", &["-n", "-y", ""], 0, SHAPE),
    ("size", &["-n", "-y", ""], 0, SHAPE),
    ("size of a directory", &["-n", "-y", ""], 0, SHAPE),
    ("directory of no size", &["-n", "-y", ""], 0, SHAPE),
    ("symlink", &["-n", "-y", ""], 0, SHAPE),
    ("flags", &["-n", "-y", ""], 0, FLAGS),
    ("directory flags", &["-n", "-y", ""], 0, FLAGS),
    ("xattr record", &["-y"], ENDED, NO_END),
    ("xattr pointers", &["-n", "-y", ""], 0, XATTR),
    ("dotdot elsewhere", &["-n", "-y", ""], 0, ENTRIES),
    ("entry to nowhere", &["-n", ""], CRASHED, CRASHES),
    ("entry's formal number", &["-n", "-y", ""], 0, ENTRIES),
    ("entry's type", &["-n", ""], 8, GIVES_UP),
    ("hash block twice", &[""], ENDED, NO_END),
    ("leaf chain", &["-n", "-y", ""], ENDED, NO_END),
    ("table size", &["-n", "-y", ""], 0, SHAPE),
    ("height of a table in its dinode", &["-n", ""], CRASHED, CRASHES),
    ("height of a table", &["-n", ""], CRASHED, CRASHES),
    ("depth of a table", &[""], ENDED, NO_END),
    ("height of a directory", &["-n", ""], 8, GIVES_UP),
    ("height of a journal", &["-n", ""], 8, GIVES_UP),
    ("hash block", &["-y"], ENDED, NO_END),
    ("leaf format", &["-n", "-y", ""], 0, ENTRIES),
    ("name twice", &["-n", "-y", ""], 0, ENTRIES),
];

/// The reference's code and ours for a case and a way, if the table says that they differ.
fn differ(name: &str, way: &str) -> Option<(i32, i32)> {
    let line = DIFFERENT
        .iter()
        .find(|(known, ways, ..)| *known == name && ways.contains(&way))?;
    let ours = OURS.iter().find(|(known, _)| *known == way)?;
    Some((line.2, ours.1))
}

fn exit(program: &str, patience: &str, (way, answers): (&str, &str), image: &Path) -> i32 {
    let mut child = Command::new("timeout")
        .args([patience, program])
        .args(Some(way).filter(|way| !way.is_empty()))
        .arg(image)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The same answer to every question; the program may end without having heard all of them.
    let _ = child
        .stdin
        .take()
        .unwrap()
        .write_all(answers.repeat(4096).as_bytes());
    child.wait().unwrap().code().unwrap_or(CRASHED)
}

/// The exit codes of both.
fn both(device: &MemDevice, name: &str, way: (&str, &str), dir: &Path) -> (i32, i32) {
    let image = dir.join("image");
    let endless = differ(name, way.0).is_some_and(|(theirs, _)| theirs == ENDED);
    let patience = if endless { NO_PATIENCE } else { PATIENCE };
    save(device, &image);
    let theirs = exit("fsck.gfs2", patience, way, &image);
    save(device, &image);
    (
        theirs,
        exit(env!("CARGO_BIN_EXE_fsck-gfs2"), PATIENCE, way, &image),
    )
}

#[test]
fn exit_codes_are_those_of_the_reference() {
    let only = std::env::var("CASE").ok();
    let of = |name: &str| only.as_ref().is_none_or(|only| only == name);
    let all = std::env::var_os("ALL").is_some();
    let chosen = |n: usize| {
        WAYS.iter()
            .enumerate()
            .filter(move |(way, _)| all || n % WAYS.len() == *way)
    };
    let queue = Mutex::new(CASES.iter().enumerate().filter(|(_, case)| of(case.name)));
    let (tell, told) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (tell, queue, chosen) = (tell.clone(), &queue, &chosen);
            scope.spawn(move || {
                let dir = tempfile::tempdir().unwrap();
                loop {
                    let Some((n, case)) = queue.lock().unwrap().next() else {
                        break;
                    };
                    let device = fixture(IMAGE);
                    damage::run(&(case.script)(&Map::new(&fixture(IMAGE))), &device).unwrap();
                    for (_, way) in chosen(n) {
                        let (theirs, ours) = both(&device, case.name, *way, dir.path());
                        tell.send((case.name, way.0, theirs, ours)).unwrap();
                    }
                }
            });
        }
    });
    drop(tell);
    let mut wrong = Vec::new();
    let mut ran = 0;
    for (name, way, theirs, ours) in told {
        ran += 1;
        let known = differ(name, way);
        if (theirs, ours) != known.unwrap_or((ours, ours)) || ours == ENDED || ours == CRASHED {
            wrong.push(format!(
                "{name} {way:?}: the reference {theirs}, ours {ours}; in the table: {known:?}"
            ));
        }
    }
    let cases = CASES.iter().enumerate().filter(|(_, case)| of(case.name));
    assert_eq!(ran, cases.map(|(n, _)| chosen(n).count()).sum::<usize>());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_is_of_cases_and_says_why() {
    for (name, ways, theirs, why) in DIFFERENT {
        assert!(CASES.iter().any(|case| case.name == *name), "{name} is no case");
        for way in *ways {
            assert!(
                WAYS.iter().any(|(known, _)| known == way),
                "{name}: {way:?} is no way"
            );
            let lines = DIFFERENT
                .iter()
                .filter(|line| line.0 == *name && line.1.contains(way));
            assert_eq!(lines.count(), 1, "{name} {way:?}");
            let ours = OURS.iter().find(|(known, _)| known == way);
            assert_ne!(
                ours.map(|(_, code)| code),
                Some(theirs),
                "{name} {way:?}: no difference"
            );
        }
        assert!(!why.is_empty(), "{name}");
    }
}
