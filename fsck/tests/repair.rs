//! Goal: every kind of damage is repaired, and nothing else changes. Method: the cases of the damage tests, each
//! repaired in memory; then our check and the reference's find nothing, a second repair writes nothing, and what the
//! damage did not touch is as it was.
//!
//! Needs gfs2-utils, which `tests/lab/setup.sh` installs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must fail"
)]

mod support;

use gfs2_format::damage;
use gfs2_format::device::{BlockDevice, Fault, FaultDevice, FaultOp, FaultRule};
use gfs2_format::log::LogTime;
use gfs2_format::volume::read_superblock;
use gfs2_fsck::{Collect, Outcome, Policy, check};
use std::fmt::Write;
use std::sync::{LazyLock, Mutex, mpsc};
use support::cases::{CASES, Case, IMAGE};
use support::contents::{Contents, contents};
use support::heavy::HEAVY;
use support::{Map, fixture, reference};

/// Paths that a case's damage touches, or whose repair must: what else changes is a mistake.
const TOUCHED: &[(&str, &[&str])] = &[
    ("mode", &["/names/a"]),
    ("size", &["/names/a"]),
    ("pointer", &["/data/f4k"]),
    ("pointer to a bitmap", &["/data/f4k"]),
    ("indirect block", &["/data/f3m"]),
    ("inode as data", &["/data/f4k"]),
    ("indirect block as data", &["/data/f4k"]),
    ("indirect block to itself", &["/data/f3m"]),
    ("data of two files", &["/data/f4k"]),
    ("xattr block as data", &["/data/f4k"]),
    // A directory with another entry has another time.
    ("dotdot elsewhere", &["/deep/d1/"]),
    ("no dot", &["/names/"]),
    ("no dotdot", &["/names/"]),
    ("entry to a free block", &["/names/a"]),
    ("entry to nowhere", &["/names/a"]),
    ("slash", &["/names/-d"]),
    ("second link", &["/names/a"]),
    ("empty slot", &["/data/"]),
    ("leaves swapped", &["/data/"]),
    ("full leaves swapped", &["/big/"]),
    ("leaf lost", &["/big/"]),
    ("file's block as leaf", &["/data/"]),
    ("hash block twice", &["/big/"]),
    ("hash block", &["/big/"]),
    ("name twice", &["/perm/m0755"]),
    ("subtree lost", &["/"]),
    ("directory lost, and empty", &["/data/topdir"]),
    ("file lost, with a bad pointer", &["/data/f4k"]),
    // The root gets an entry for lost+found.
    ("rindex is a directory", &["/"]),
    ("file lost", &["/", "/data/jd"]),
    ("file lost, and empty", &["/data/append"]),
];

/// A path of this list stands for itself only where it ends with a slash: what is in such a directory is untouched.
const THEMSELVES: &[&str] = &[
    "dotdot elsewhere",
    "no dot",
    "no dotdot",
    "empty slot",
    "leaves swapped",
    "full leaves swapped",
    "file's block as leaf",
    "hash block twice",
    "hash block",
    "file lost",
    "rindex is a directory",
];

static BEFORE: LazyLock<Contents> = LazyLock::new(|| contents(&fixture(IMAGE)));

fn policy() -> Policy {
    Policy::repair(LogTime {
        sec: 1_700_000_000,
        nsec: 0,
    })
}

fn run(device: &dyn BlockDevice, policy: &Policy) -> (Outcome, Collect) {
    let mut found = Collect {
        answer: true,
        ..Collect::default()
    };
    let outcome = check(device, policy, &mut found).unwrap();
    (outcome, found)
}

fn told(found: &Collect) -> String {
    let mut text = String::new();
    for problem in found.problems.iter().take(20) {
        let _ = writeln!(text, "    {problem}");
    }
    for (kind, fate) in found.fates.iter().take(20) {
        let _ = writeln!(text, "    {kind:?}: {fate:?}");
    }
    text
}

/// What differs and should not.
fn strangers(case: &Case, after: &Contents) -> Vec<String> {
    let touched = TOUCHED
        .iter()
        .filter(|(name, _)| *name == case.name)
        .flat_map(|(_, paths)| paths.iter());
    let touched: Vec<&&str> = touched.collect();
    let alone = THEMSELVES.contains(&case.name);
    let is_touched = |path: &str| {
        touched.iter().any(|prefix| match alone {
            true => path == **prefix,
            false => path.starts_with(**prefix),
        })
    };
    let changed = BEFORE
        .iter()
        .filter(|(path, digest)| after.get(*path) != Some(*digest) && !is_touched(path));
    let new = after
        .keys()
        .filter(|path| !BEFORE.contains_key(*path) && !path.starts_with("/lost+found") && !is_touched(path));
    changed
        .map(|(path, _)| path.clone())
        .chain(new.cloned())
        .collect()
}

fn repaired(case: &Case) -> Result<(), String> {
    let device = fixture(IMAGE);
    damage::run(&(case.script)(&Map::new(&fixture(IMAGE))), &device).map_err(|e| e.to_string())?;
    let (outcome, found) = run(&device, &policy());
    let wanted = case
        .finds
        .iter()
        .any(|kind| kind.class() > gfs2_fsck::Class::Warning);
    if outcome.uncorrected() != 0 || wanted != (outcome.errors > 0) || outcome.stopped {
        return Err(format!("{outcome:?}\n{}", told(&found)));
    }
    let (again, found) = run(&device, &Policy::read_only());
    if again.errors != 0 {
        return Err(format!("after the repair: {again:?}\n{}", told(&found)));
    }
    reference(&device)?;
    let watched = FaultDevice::new(&device);
    run(&watched, &policy());
    // A volume of several nodes is guarded while it is checked.
    let shared = read_superblock(&device).unwrap().0.lockproto() != "lock_nolock";
    if watched.counts().writes != 0 && !shared {
        return Err(format!(
            "a second repair writes {} times",
            watched.counts().writes
        ));
    }
    match strangers(case, &contents(&device)) {
        strangers if strangers.is_empty() => Ok(()),
        strangers => Err(format!("changed: {strangers:?}")),
    }
}

/// Runs the cases whose first finding has a code of these letters.
#[track_caller]
fn all(letters: &str) {
    run_cases(CASES, letters);
}

#[track_caller]
fn run_cases(cases: &[Case], letters: &str) {
    let of_letters = |case: &&Case| letters.contains(&case.finds[0].code()[..1]);
    let only = std::env::var("CASE").ok();
    let chosen = cases
        .iter()
        .filter(of_letters)
        .filter(|case| only.as_ref().is_none_or(|only| case.name == only));
    let queue = Mutex::new(chosen);
    let (tell, failures) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let tell = tell.clone();
            let queue = &queue;
            scope.spawn(move || {
                loop {
                    let Some(case) = queue.lock().unwrap().next() else {
                        break;
                    };
                    if let Err(e) = repaired(case) {
                        tell.send(format!("{}: {e}", case.name)).unwrap();
                    }
                }
            });
        }
    });
    drop(tell);
    let failures: Vec<String> = failures.iter().collect();
    assert!(
        failures.is_empty(),
        "{} cases:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn superblock_and_system_files() {
    all("ST");
}

#[test]
fn resource_groups() {
    all("G");
}

#[test]
fn journals() {
    all("J");
}

#[test]
fn inodes_and_bitmaps() {
    all("I");
}

#[test]
fn duplicates() {
    all("U");
}

#[test]
fn attributes() {
    all("X");
}

#[test]
fn directories() {
    all("D");
}

#[test]
fn connectivity_and_links() {
    all("CL");
}

/// L4: made when it is missing, used when it is there, and a file of that name is in nobody's way.
#[test]
fn lost_found_is_made_and_used_again() {
    let device = fixture(IMAGE);
    let names = |device: &_| -> Vec<String> {
        contents(device)
            .into_keys()
            .filter(|path| path.starts_with("/lost+found"))
            .collect()
    };
    assert_eq!(names(&device), Vec::<String>::new());
    for (path, count) in [("/data/jd", 2), ("/data/f100k", 3)] {
        let map = Map::new(&device);
        let inode = map.path(path.trim_start_matches('/'));
        let free = map.blank(gfs2_format::ondisk::BlockState::Free);
        damage::run(&format!("set dirent({path}).no_addr = {free}"), &device).unwrap();
        let (outcome, found) = run(&device, &policy());
        assert_eq!(outcome.uncorrected(), 0, "{}", told(&found));
        let names = names(&device);
        assert_eq!(names.len(), count, "{names:?}");
        assert!(
            names.contains(&format!("/lost+found/lost_file_{inode}")),
            "{names:?}"
        );
        assert_eq!(run(&device, &Policy::read_only()).0.errors, 0);
    }
    reference(&device).unwrap();
}

#[test]
fn several_structures_of_the_system_tree_at_once() {
    run_cases(HEAVY, "ST");
}

#[test]
fn several_structures_of_groups_and_journals_at_once() {
    run_cases(HEAVY, "GJ");
}

/// Power fails after some of a repair's writes: the next one finishes it, and what was whole is still as it was.
#[test]
fn a_repair_cut_short_leaves_nothing_worse() {
    const CUTS: u64 = 4;
    for name in [
        "full leaves swapped",
        "data of two files",
        "file lost",
        "rindex is a directory",
    ] {
        let mut cases = CASES.iter().chain(HEAVY);
        let case = cases.find(|case| case.name == name).unwrap();
        let image = fixture(IMAGE);
        damage::run(&(case.script)(&Map::new(&fixture(IMAGE))), &image).unwrap();
        let counted = FaultDevice::new(image.clone());
        run(&counted, &policy());
        let writes = counted.counts().writes;
        assert!(writes > CUTS, "{name}: {writes} writes");
        for cut in 0..CUTS {
            let after = writes * cut / CUTS;
            let device = image.clone();
            let failing = FaultDevice::new(&device);
            failing.add(FaultRule::always(FaultOp::Write, Fault::Errno(5)).after(after));
            let mut found = Collect {
                answer: true,
                ..Collect::default()
            };
            assert!(
                check(&failing, &policy(), &mut found).is_err(),
                "{name}: {after} of {writes}"
            );
            let (outcome, found) = run(&device, &policy());
            assert_eq!(
                outcome.uncorrected(),
                0,
                "{name}: {after} of {writes}: {}",
                told(&found)
            );
            assert_eq!(
                run(&device, &Policy::read_only()).0.errors,
                0,
                "{name}: {after} of {writes}"
            );
            let strangers = strangers(case, &contents(&device));
            assert!(strangers.is_empty(), "{name}: {after} of {writes}: {strangers:?}");
        }
    }
}

#[test]
fn every_case_belongs_to_a_group() {
    for case in CASES {
        assert!("STGJIUXDCL".contains(&case.finds[0].code()[..1]), "{}", case.name);
    }
    for name in TOUCHED.iter().map(|(name, _)| name).chain(THEMSELVES) {
        assert!(
            CASES.iter().chain(HEAVY).any(|case| case.name == *name),
            "{name} is no case"
        );
    }
}
