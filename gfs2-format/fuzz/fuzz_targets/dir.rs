//! A directory with damaged blocks under lookups, changes, listing and deletion.
//!
//! Invariants: no panic; every call ends; cookies rise; what was inserted is found.

#![no_main]

use gfs2_format::dir::{
    Cookie, LeafCursor, NewEntry, insert, is_empty, lookup, needs_blocks, read_from, remove, replace,
};
use gfs2_format::memvol::MemVolume;
use gfs2_format::ondisk::{DinodeFlags, FileType};
use gfs2_format::tree::StepBudget;
use gfs2_format::{BlockAddr, FormalIno, InodeNum, Result, Timestamp};
use gfs2_format_fuzz::{Choices, work_on_damaged};
use libfuzzer_sys::fuzz_target;
use std::ops::ControlFlow;
use std::sync::LazyLock;

const NUM: InodeNum = InodeNum {
    formal: FormalIno::new(1),
    addr: BlockAddr::new(300),
};

/// A linear and a hashed directory.
static CLEAN: LazyLock<(MemVolume, [BlockAddr; 2])> = LazyLock::new(|| {
    let mut volume = MemVolume::format(512, 3, 2000).expect("a volume");
    let dirs = [3, 200].map(|names| {
        let addr = volume
            .new_inode(FileType::Dir, DinodeFlags::JDATA)
            .expect("an inode")
            .addr;
        for n in 0..names {
            insert(
                &mut volume,
                addr,
                &entry(format!("n{n}").as_bytes()),
                Timestamp::default(),
            )
            .expect("room");
        }
        addr
    });
    (volume, dirs)
});

fn entry(name: &[u8]) -> NewEntry<'_> {
    NewEntry {
        name,
        num: NUM,
        kind: FileType::Regular,
        ea_follows: false,
    }
}

fn operate(volume: &mut MemVolume, dir: BlockAddr, choices: &mut Choices<'_>) -> Result<()> {
    let mut name = format!("n{}", choices.below(400)).into_bytes();
    name.resize(name.len() + usize::from(choices.byte() % 4) * 60, b'-');
    let now = Timestamp::default();
    match choices.byte() % 8 {
        0 => drop(lookup(volume, dir, &name)?),
        1 => drop(needs_blocks(volume, dir, &name)?),
        2 => drop(remove(volume, dir, &name, now)?),
        3 => drop(replace(volume, dir, &entry(&name), now)?),
        4 => drop(is_empty(volume, dir)?),
        5 => {
            let mut last = Cookie::new(choices.below(1 << 32) << 30);
            let mut left = 5000u32;
            read_from(volume, dir, last, &mut |entry| {
                assert!(entry.cookie > last || entry.cookie == last && left < 5000);
                last = entry.cookie;
                left -= 1;
                if left == 0 {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
        }
        6 => {
            let mut cursor = LeafCursor::new();
            while cursor.seek(volume, dir)?.is_some() {
                cursor.step(volume, dir, StepBudget { frees: 9, edits: 9 }, &|_| true)?;
            }
        }
        _ => {
            insert(volume, dir, &entry(&name), now)?;
            assert_eq!(lookup(volume, dir, &name)?.map(|found| found.num), Some(NUM));
        }
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let (volume, dirs) = CLEAN.clone();
    let mut choices = Choices(data);
    let dir = dirs[usize::from(choices.byte() % 2)];
    work_on_damaged(volume, dir, &mut choices, operate);
});
