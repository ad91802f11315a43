//! Goal: on the same damage the program ends as the reference's does, whatever it was asked. Method: the volume of every
//! case of the damage tests through both programs side by side: looking only, repairing, preening, and asked with no for
//! an answer. Where the exit codes differ a closed table says how and why; what differs in another way fails, and so
//! does a line of the table that is no longer true. Needs gfs2-utils, which `tests/lab/setup.sh` installs.
//!
//! `CASE` in the environment takes one case only.

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
/// How long a program may take over one volume, in seconds: on some damage the reference does not end.
const PATIENCE: &str = "12";
/// Exit code of `timeout` for a program that had to be ended.
const ENDED: i32 = 124;

/// A case and a way in which the codes differ: the reference's, ours, and why.
type Different = (&'static str, &'static str, i32, i32, &'static str);

const DIFFERENT: &[Different] = &[];

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
    let _ = child
        .stdin
        .take()
        .unwrap()
        .write_all(answers.repeat(4096).as_bytes());
    child.wait().unwrap().code().unwrap_or(-1)
}

/// The exit codes of both.
fn both(device: &MemDevice, way: (&str, &str), dir: &Path) -> (i32, i32) {
    let image = dir.join("image");
    let ours = env!("CARGO_BIN_EXE_fsck-gfs2");
    let codes = ["fsck.gfs2", ours].map(|program| {
        save(device, &image);
        exit(program, way, &image)
    });
    (codes[0], codes[1])
}

#[test]
fn exit_codes_are_those_of_the_reference() {
    let only = std::env::var("CASE").ok();
    let of = |name: &str| only.as_ref().is_none_or(|only| only == name);
    let queue = Mutex::new(CASES.iter().filter(|case| of(case.name)));
    let (tell, told) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (tell, queue) = (tell.clone(), &queue);
            scope.spawn(move || {
                let dir = tempfile::tempdir().unwrap();
                loop {
                    let Some(case) = queue.lock().unwrap().next() else {
                        break;
                    };
                    let device = fixture(IMAGE);
                    damage::run(&(case.script)(&Map::new(&fixture(IMAGE))), &device).unwrap();
                    for way in WAYS {
                        let (theirs, ours) = both(&device, *way, dir.path());
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
        let known = DIFFERENT.iter().find(|line| (line.0, line.1) == (name, way));
        let right = known.map_or((ours, ours), |line| (line.2, line.3));
        if (theirs, ours) != right || (known.is_none() && ours == ENDED) {
            wrong.push(format!(
                "(\"{name}\", \"{way}\", {theirs}, {ours}), in the table: {known:?}"
            ));
        }
    }
    let cases = CASES.iter().filter(|case| of(case.name)).count();
    assert_eq!(ran, cases * WAYS.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_is_of_cases_and_says_why() {
    for (name, way, theirs, ours, why) in DIFFERENT {
        assert!(CASES.iter().any(|case| case.name == *name), "{name} is no case");
        assert!(
            WAYS.iter().any(|(known, _)| known == way),
            "{name}: {way:?} is no way"
        );
        assert!(theirs != ours && !why.is_empty(), "{name} {way:?}");
        assert_ne!(*ours, ENDED, "{name} {way:?}: ours must end");
    }
}
