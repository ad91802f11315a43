//! Goal: whatever the bytes, a repair ends, and says the truth about what it leaves. Method: seeded bit flips and
//! overwritten blocks all over the metadata; after a repair that claims success our check finds nothing.
//!
//! `ROUNDS` and `SEED` in the environment make it longer and other. Every fourth volume goes through the reference, too
//! (gfs2-utils, which `tests/lab/setup.sh` installs).

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
use gfs2_format::ondisk::BlockState;
use gfs2_format::volume::read_superblock;
use gfs2_fsck::{Collect, Outcome, Policy, check};
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
    for _ in 0..=random.next(6) {
        let block = blocks[random.next(blocks.len() as u64) as usize];
        let mut bytes = vec![0; 1024];
        device.read_at(block * 1024, &mut bytes).unwrap();
        match random.next(8) {
            0 => bytes.fill(0),
            1 => {
                let other = blocks[random.next(blocks.len() as u64) as usize];
                device.read_at(other * 1024, &mut bytes).unwrap();
            }
            2 => {
                let at = random.next(128) as usize * 8;
                bytes[at..at + 8].copy_from_slice(&random.next(204_800).to_be_bytes());
            }
            // Most fields stand in the first part of a block.
            n => {
                let at = random.next(if n < 6 { 320 } else { 1024 }) as usize;
                bytes[at] ^= 1 << random.next(8);
            }
        }
        device.write_at(block * 1024, &bytes).unwrap();
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

#[test]
fn a_repair_ends_and_says_the_truth() {
    let image = fixture("clean1k");
    let blocks = metadata(&Map::new(&image));
    let (seed, rounds) = (number("SEED", 1), number("ROUNDS", 40));
    let reference_every = number("REFERENCE_EVERY", 4);
    let (mut clean, mut left) = (0, 0);
    for round in 0..rounds {
        let mut random = Random((seed << 32 | round).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let device = image.clone();
        damage(&device, &blocks, &mut random);
        let shown = format!("seed {seed} round {round}");
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
            if round % reference_every == 0 {
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
        }
    }
    println!("{clean} clean, {left} with errors left");
    // A repair that gives up on everything would pass the rest.
    assert!(clean >= left * 4, "{clean} clean, {left} with errors left");
    let free = Map::new(&image).blank(BlockState::Free);
    assert!(free > 0);
}
