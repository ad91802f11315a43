//! Goal: whatever the bytes, a repair ends, and says the truth about what it leaves. Method: seeded bit flips and
//! overwritten blocks all over the metadata; after a repair that claims success our check finds nothing.
//!
//! `ROUNDS`, `SEED` and `FIRST` (the first round) in the environment make it longer and other, `IMAGE` takes one volume
//! only, `STORY` tells all about a volume with errors left; with `REFERENCE_EVERY` each so-manieth volume goes through the reference, too (gfs2-utils; it can take minutes
//! over one).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must fail"
)]

mod support;

use gfs2_format::device::{BlockDevice, MemDevice};
use gfs2_format::log::LogTime;
use gfs2_format::ondisk::MAGIC;
use gfs2_format::volume::read_superblock;
use gfs2_fsck::{Collect, Outcome, Policy, check};
use std::collections::BTreeMap;
use support::cases::IMAGE;
use support::{Map, fixture};

struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below.max(1)
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// The volumes: the one whose inodes are known by name, and every other sort the kernel made.
const IMAGES: &[&str] = &[
    IMAGE,
    "clean512",
    "clean2k",
    "clean4k",
    "chain1k",
    "dirty1k",
    "dirty4k",
    "cluster2j-dirty",
];
/// The others get a part of the rounds.
const OTHERS: u64 = 20;
/// Blocks of a type of metadata that are worth damaging, on volumes where nobody says which.
const OF_A_TYPE: usize = 12;

/// Metadata worth damaging on any volume: some of each type, from all over it.
fn any_metadata(image: &MemDevice) -> Vec<u64> {
    let geometry = read_superblock(image).unwrap().1;
    let mut types: BTreeMap<u8, Vec<u64>> = BTreeMap::new();
    let mut bytes = vec![0; geometry.block_len()];
    for block in geometry.superblock().get()..geometry.end() {
        image
            .read_at(block * geometry.block_len() as u64, &mut bytes)
            .unwrap();
        if bytes[..4] == MAGIC.to_be_bytes() {
            types.entry(bytes[7]).or_default().push(block);
        }
    }
    let spread = |all: Vec<u64>| {
        let step = (all.len() / OF_A_TYPE).max(1);
        all.into_iter().step_by(step).collect::<Vec<u64>>()
    };
    types.into_values().flat_map(spread).collect()
}

/// Metadata worth damaging: the superblock, groups, the system tree, some inodes and what is below them.
fn metadata(map: &Map<'_>) -> Vec<u64> {
    let mut blocks: Vec<u64> = [
        "", "big", "data", "names", "xattr", "xattr/f1", "xattr/f2", "xattr/f3",
    ]
    .into_iter()
    .chain([
        "data/f3m",
        "data/f4k",
        "data/sparse_8T",
        "links",
        "links/soft",
        "deep/d1",
        "perm",
        "perm/m0755",
    ])
    .map(|path| map.path(path))
    .collect();
    blocks.extend(
        [
            "",
            "jindex",
            "per_node",
            "rindex",
            "statfs",
            "inum",
            "quota",
            "jindex/journal0",
            "jindex/journal1",
        ]
        .map(|path| map.master(path)),
    );
    blocks.extend(["per_node/quota_change0", "per_node/statfs_change1"].map(|path| map.master(path)));
    blocks.extend([
        64,
        map.top(map.path("data"), 0),
        map.top(map.path("big"), 0),
        map.pointer(map.top(map.path("big"), 0), 0),
        map.eattr(map.path("xattr/f2")),
        map.eattr(map.path("xattr/f3")),
        map.top(map.path("data/f3m"), 0),
        map.top(map.master("rindex"), 0),
    ]);
    blocks.extend(
        map.groups()
            .iter()
            .flat_map(|group| [group.addr().get(), group.addr().get() + 1]),
    );
    blocks.retain(|block| *block != 0);
    blocks
}

fn damage(device: &MemDevice, blocks: &[u64], random: &mut Random) {
    let geometry = read_superblock(device).unwrap().1;
    let (len, end) = (geometry.block_len(), geometry.end());
    let bsize = len as u64;
    for _ in 0..=random.next(6) {
        let block = blocks[random.next(blocks.len() as u64) as usize];
        let mut bytes = vec![0; len];
        device.read_at(block * bsize, &mut bytes).unwrap();
        match random.next(8) {
            0 => bytes.fill(0),
            1 => {
                let other = blocks[random.next(blocks.len() as u64) as usize];
                device.read_at(other * bsize, &mut bytes).unwrap();
            }
            2 => {
                let at = random.next(bsize / 8) as usize * 8;
                bytes[at..at + 8].copy_from_slice(&random.next(end).to_be_bytes());
            }
            // Most fields stand in the first part of a block.
            n => {
                let at = random.next(if n < 6 { 320 } else { bsize }) as usize;
                bytes[at] ^= 1 << random.next(8);
            }
        }
        device.write_at(block * bsize, &bytes).unwrap();
    }
}

fn repair(device: &MemDevice) -> Result<(Outcome, Collect), String> {
    let mut found = Collect {
        answer: true,
        ..Collect::default()
    };
    let now = LogTime { sec: 1, nsec: 0 };
    let outcome = check(device, &Policy::repair(now), &mut found);
    outcome.map(|outcome| (outcome, found)).map_err(|e| e.to_string())
}

/// Repairs of one volume, damaged in so many ways; answers how many ended without an error, and how many did not.
fn rounds(name: &str, seed: u64, (first, rounds): (u64, u64)) -> (u64, u64) {
    let image = fixture(name);
    let blocks = if name == IMAGE {
        metadata(&Map::new(&image))
    } else {
        any_metadata(&image)
    };
    let reference_every = number("REFERENCE_EVERY", 0);
    let (mut clean, mut left) = (0, 0);
    for round in first..first.saturating_add(rounds) {
        let mut random = Random((seed << 32 | round).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let device = image.clone();
        damage(&device, &blocks, &mut random);
        let shown = format!("{name} seed {seed} round {round}");
        let (outcome, found) = match repair(&device) {
            Ok(result) => result,
            Err(e) => {
                // Only a format that is not ours may be refused.
                let newer = read_superblock(&device).is_err();
                assert!(newer, "{shown}: {e}");
                continue;
            }
        };
        let mut after = Collect::default();
        let looked = check(&device, &Policy::read_only(), &mut after).unwrap();
        if outcome.uncorrected() == 0 && !outcome.stopped {
            clean += 1;
            if reference_every > 0 && round % reference_every == 0 {
                let said = support::reference(&device);
                assert!(
                    said.is_ok(),
                    "{shown}: {}\nrepaired: {:?}",
                    said.unwrap_err(),
                    found.problems
                );
            }
            assert_eq!(
                looked.errors, 0,
                "{shown}: {:?}\nrepaired: {:?}",
                after.problems, found.problems
            );
        } else {
            left += 1;
            let told: Vec<String> = after.problems.iter().take(5).map(ToString::to_string).collect();
            let fates: Vec<_> = found.fates.iter().rev().take(5).collect();
            println!("{shown}: {outcome:?}: {told:#?} {fates:?}");
            if std::env::var_os("STORY").is_some() {
                found
                    .problems
                    .iter()
                    .for_each(|problem| println!("    {problem}"));
                found.fates.iter().for_each(|fate| println!("    {fate:?}"));
            }
        }
    }
    println!("{name}: {clean} clean, {left} with errors left");
    (clean, left)
}

#[test]
fn a_repair_ends_and_says_the_truth() {
    let only = std::env::var("IMAGE").ok();
    let (first, all) = (number("FIRST", 0), number("ROUNDS", 40));
    let (mut clean, mut left) = (0, 0);
    for name in IMAGES {
        let part = match &only {
            Some(only) if only != name => continue,
            None if *name != IMAGE => all / OTHERS,
            _ => all,
        };
        let (a, b) = rounds(name, number("SEED", 1), (first, part));
        clean += a;
        left += b;
    }
    // A repair that gives up on everything would pass the rest.
    assert!(clean >= left * 4, "{clean} clean, {left} with errors left");
}

/// Volume, seed and round of damage that was not repaired once, each for a reason of its own.
const ONCE_LEFT: &[(&str, u64, u64)] = &[
    // A file could not be made before the directory's records were repaired.
    (IMAGE, 2000, 18),
    // The index was written over a directory that stood in its place.
    (IMAGE, 2000, 663),
    // A leaf pointer into a file.
    (IMAGE, 2000, 109),
    // The root and the header of its group.
    (IMAGE, 2000, 460),
    // Superblock and root.
    (IMAGE, 2000, 620),
    // Master directory and the header of the last group.
    (IMAGE, 2000, 1333),
    // A new ring of a journal below older changes in memory.
    ("clean512", 3000, 32),
    // Superblock and root where system directories are hashed.
    ("clean512", 3000, 95),
    // A hash block twice.
    ("clean512", 3000, 129),
    // Hundreds of blocks in a row that are no indirect blocks.
    ("clean2k", 6000, 241),
];

#[test]
fn what_was_left_once_is_repaired() {
    for (name, seed, round) in ONCE_LEFT {
        assert_eq!(
            rounds(name, *seed, (*round, 1)),
            (1, 0),
            "{name} seed {seed} round {round}"
        );
    }
}
