//! Goal: every kind of damage is found, named as what it is, and nothing else is. Method: one lie at a time on a
//! volume the kernel made, written in the damage language, and the exact set of findings expected.
//!
//! Each check is read-only: it must write nothing, and say the same twice.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must fail"
)]

mod support;

use gfs2_format::damage;
use gfs2_format::device::{Fault, FaultDevice, FaultOp, FaultRule, MemDevice};
use gfs2_fsck::Kind::{self, *};
use gfs2_fsck::{Class, Collect, Outcome, Policy, check};
use std::collections::BTreeSet;
use std::fmt::Write;
use support::cases::{CASES, IMAGE, table_blocks};
use support::{Map, fixture};

fn look(device: &MemDevice, policy: &Policy) -> (Outcome, Collect) {
    let watched = FaultDevice::new(device);
    let mut found = Collect::default();
    let outcome = check(&watched, policy, &mut found).unwrap();
    let counts = watched.counts();
    assert_eq!(
        (counts.writes, counts.discards),
        (0, 0),
        "a read-only check writes nothing"
    );
    (outcome, found)
}

fn kinds(found: &Collect) -> BTreeSet<Kind> {
    found.problems.iter().map(|problem| problem.kind).collect()
}

fn listing(found: &Collect) -> String {
    found
        .problems
        .iter()
        .take(12)
        .fold(String::new(), |mut text, problem| {
            let _ = writeln!(text, "    {problem}");
            text
        })
}

#[test]
fn the_undamaged_volume_is_clean() {
    let (outcome, found) = look(&fixture(IMAGE), &Policy::read_only());
    assert_eq!(outcome, Outcome::default(), "{}", listing(&found));
}

#[test]
fn every_lie_is_found_and_named() {
    let image = fixture(IMAGE);
    let map = Map::new(&image);
    let mut failures = String::new();
    for case in CASES {
        let device = image.clone();
        let script = (case.script)(&map);
        if let Err(e) = damage::run(&script, &device) {
            let _ = writeln!(failures, "{}: the script: {e}", case.name);
            continue;
        }
        let (outcome, found) = look(&device, &Policy::read_only());
        let expected: BTreeSet<Kind> = case.finds.iter().copied().collect();
        if kinds(&found) != expected {
            let got = kinds(&found);
            let _ = writeln!(
                failures,
                "{}: {got:?}, expected {expected:?}\n{}",
                case.name,
                listing(&found)
            );
        }
        let errors = expected.iter().any(|kind| kind.class() > Class::Warning);
        assert_eq!(outcome.errors > 0, errors, "{}", case.name);
        assert_eq!(
            look(&device, &Policy::read_only()).1,
            found,
            "{}: twice the same",
            case.name
        );
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn every_kind_has_a_case() {
    let mut covered: BTreeSet<Kind> = CASES.iter().flat_map(|case| case.finds.iter().copied()).collect();
    // These have tests of their own below.
    covered.extend([DuplicateMany, Unreadable]);
    let missing: Vec<&Kind> = Kind::ALL.iter().filter(|kind| !covered.contains(kind)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn duplicates_beyond_the_list_are_counted() {
    let image = fixture(IMAGE);
    let map = Map::new(&image);
    let script = format!("set pointer(/data/f4k, 1) = {}", map.top(map.path("data/jd"), 3));
    damage::run(&script, &image).unwrap();
    let policy = Policy {
        duplicates_listed: 0,
        ..Policy::read_only()
    };
    let (_, found) = look(&image, &policy);
    assert_eq!(kinds(&found), BTreeSet::from([DuplicateMany, Leaked]));
}

/// The catalogue's classes, each with a case that brings it (or a test named here).
#[test]
fn every_class_of_the_catalogue_has_a_case() {
    let codes: BTreeSet<&str> = CASES
        .iter()
        .chain(support::heavy::HEAVY)
        .flat_map(|case| case.finds.iter().map(|kind| kind.code()))
        .collect();
    // Classes that are told apart by what is damaged, or that have tests elsewhere.
    let elsewhere = [
        (
            "S2",
            "format, multihost format (heavy); cli: what_is_no_volume_is_refused",
        ),
        ("S3", "no magic; superblock zeroed (heavy)"),
        ("S4", "master elsewhere, root elsewhere, beyond (heavy)"),
        ("G9", "untouched: groups_with_gaps_between_them; kernel: grown"),
        ("J6", "control: a_journal_that_points_outside_is_not_obeyed"),
        (
            "J7",
            "reference: what_we_replayed_satisfies_the_reference (revokes)",
        ),
        ("U3", "inode as data, indirect block as data"),
        ("D16", "full leaves swapped"),
        ("L4", "repair: lost_found_is_made_and_used_again"),
    ];
    let range = |letter: char, last: u32| (1..=last).map(move |n| format!("{letter}{n}"));
    let listed = [
        ('S', 5),
        ('T', 6),
        ('G', 9),
        ('J', 8),
        ('I', 9),
        ('U', 4),
        ('X', 7),
        ('D', 16),
        ('C', 4),
        ('L', 4),
    ];
    for class in listed.into_iter().flat_map(|(letter, last)| range(letter, last)) {
        let known = codes.contains(&*class) || elsewhere.iter().any(|(name, _)| *name == class);
        assert!(known, "{class} has no case");
    }
}

#[test]
fn findings_name_the_paths_of_their_inodes() {
    let image = fixture(IMAGE);
    let map = Map::new(&image);
    let deep = "/deep/d1/d2/d3/d4/d5";
    let script = format!(
        "set dinode(/links/t).di_nlink = 9\nset dinode({deep}).di_goal_meta = 0\n\
         set dinode(/big/f100).di_blocks = 9\nset dinode(master:/inum).di_blocks = 7\n\
         set dinode(block {}).di_goal_meta = 0\nset pointer(/data/f4k, 1) = {}",
        map.path(""),
        map.top(map.path("data/jd"), 3)
    );
    damage::run(&script, &image).unwrap();
    let (_, found) = look(&image, &Policy::read_only());
    let text = |path: &Option<Box<[u8]>>| {
        path.as_ref()
            .map(|path| String::from_utf8(path.to_vec()).unwrap())
    };
    let paths: BTreeSet<(Kind, Option<String>)> = found
        .problems
        .iter()
        .map(|problem| (problem.kind, text(&problem.path)))
        .collect();
    for (kind, path) in [
        (LinkCount, "/links/t"),
        (DinodeGoal, deep),
        (DinodeGoal, "/"),
        (DinodeBlocks, "/big/f100"),
        (DinodeBlocks, "master:/inum"),
    ] {
        assert!(
            paths.contains(&(kind, Some(path.to_owned()))),
            "{kind:?} {path}: {paths:?}"
        );
    }
    let shared = found
        .problems
        .iter()
        .find(|problem| problem.kind == Duplicate)
        .unwrap();
    let both = BTreeSet::from([text(&shared.path), text(&shared.other_path)]);
    assert_eq!(
        both,
        BTreeSet::from([Some("/data/f4k".to_owned()), Some("/data/jd".to_owned())])
    );
}

#[test]
fn a_pointer_behind_the_end_of_a_hash_table_is_named_exactly() {
    let image = fixture(IMAGE);
    let map = Map::new(&image);
    let (big, blocks) = (map.path("big"), table_blocks(&map) as u64);
    let targets = [
        (blocks, map.top(map.path("data/f4k"), 1)),
        (blocks + 4, map.path("names")),
    ];
    for (place, target) in targets {
        damage::run(&format!("set pointer(/big, {place}) = {target}"), &image).unwrap();
    }
    let (_, found) = look(&image, &Policy::read_only());
    let mut told: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
    told.sort();
    let wanted = targets.map(|(place, target)| {
        format!(
            "D10: inode {big} (/big): block {big}: a pointer behind the end of the directory's hash table leads to no \
             hash block: pointer {place} is {target}, expected 0 (0x0)"
        )
    });
    assert_eq!(told, wanted);
}

/// A budget that is too small is no reason to say less, but it is said.
#[test]
fn memory_that_is_needed_is_said() {
    let image = fixture(IMAGE);
    damage::run("set dinode(/links/t).di_nlink = 9", &image).unwrap();
    let small = Policy {
        memory: 1 << 20,
        ..Policy::read_only()
    };
    let (outcome, found) = look(&image, &small);
    assert!(outcome.memory > 1 << 20, "{outcome:?}");
    let (usual, wanted) = look(&image, &Policy::read_only());
    assert_eq!((usual.memory, found), (0, wanted));
}

#[test]
fn an_unreadable_block_is_a_finding_and_the_check_goes_on() {
    let image = fixture(IMAGE);
    let map = Map::new(&image);
    let at = map.path("names/a") * 1024;
    let device = FaultDevice::new(&image);
    device.add(FaultRule::always(FaultOp::Read, Fault::Errno(5)).at(at..at + 1024));
    let mut found = Collect::default();
    let outcome = check(&device, &Policy::read_only(), &mut found).unwrap();
    assert_eq!(
        kinds(&found),
        BTreeSet::from([Unreadable, EntryTarget]),
        "{}",
        listing(&found)
    );
    assert_eq!(outcome.unreadable, 1);
}

#[test]
fn findings_of_many_blocks_in_a_row_are_one() {
    let image = fixture(IMAGE);
    let map = Map::new(&image);
    damage::run(
        &format!("zero block {}", map.top(map.path("data/f3m"), 0)),
        &image,
    )
    .unwrap();
    let (_, found) = look(&image, &Policy::read_only());
    let leaked: Vec<u64> = found
        .problems
        .iter()
        .filter(|p| p.kind == Leaked)
        .map(|p| p.blocks)
        .collect();
    assert_eq!(
        leaked.iter().sum::<u64>(),
        125,
        "the blocks below one indirect block"
    );
    assert!(leaked.len() < 5, "{leaked:?}");
}
