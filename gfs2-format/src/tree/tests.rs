//! Goal: the vectors of FORMAT.md, and the tree against a map under random operations, with every block accounted
//! for.

use super::*;
use crate::addr::{BlockAddr, FileBlock};
use crate::edit::{BlockEdit, BlockRead, BlockUse};
use crate::geometry::Geometry;
use crate::memvol::MemVolume;
use crate::ondisk::{DINODE_SIZE, DinodeFlags, FileType, META_HEADER_SIZE};
use crate::testing::Rng;
use crate::time::Timestamp;
use std::collections::BTreeMap;

const NOW: Timestamp = Timestamp { sec: 7, nsec: 9 };

#[test]
fn metapaths_of_the_format_sheet() {
    let rows: [(u32, u64, u16, &[u16]); 9] = [
        (4096, 262144, 3, &[1, 6, 9]),
        (4096, 7864320, 3, &[30, 180, 270]),
        (4096, 268435456, 4, &[2, 18, 54, 54]),
        (4096, 2147483648, 4, &[16, 144, 432, 432]),
        (1024, 1048579, 3, &[67, 13, 79]),
        (1024, 31457283, 4, &[16, 13, 33, 33]),
        (1024, 1073741827, 5, &[4, 49, 94, 59, 77]),
        (2048, 524289, 3, &[8, 48, 73]),
        (2048, 4294967297, 5, &[1, 12, 54, 108, 82]),
    ];
    for (bs, lblock, height, want) in rows {
        let g = Geometry::new(bs, 1 << 30).unwrap();
        let lblock = FileBlock::new(lblock);
        assert_eq!(g.height_for(lblock, 1), height);
        assert_eq!(
            Metapath::of(&g, lblock, height).unwrap().indexes(),
            want,
            "bs {bs}"
        );
        assert_eq!(Metapath::of(&g, lblock, height - 1), None);
    }
    assert_eq!(
        Metapath::of(&Geometry::new(512, 1).unwrap(), FileBlock::new(0), 0),
        None
    );
}

fn file(bsize: u32, flags: DinodeFlags) -> (MemVolume, BlockAddr) {
    let mut volume = MemVolume::format(bsize, 4, 3000).unwrap();
    let num = volume.new_inode(FileType::Regular, flags).unwrap();
    (volume, num.addr)
}

fn write(volume: &mut MemVolume, addr: BlockAddr, lblock: u64, want: u32, fill: u8) -> Allocated {
    let usage = data_use(&volume.dinode(addr).unwrap());
    let got = map_or_alloc(volume, addr, FileBlock::new(lblock), want).unwrap();
    let bytes = vec![fill; volume.geometry().block_len()];
    for block in got.extent.blocks() {
        if got.new {
            volume.write_data(block, usage, &bytes).unwrap();
        } else {
            volume.damage(block, |to| to.copy_from_slice(&bytes));
        }
    }
    got
}

fn set_size(volume: &mut MemVolume, addr: BlockAddr, size: u64) {
    edit_dinode(volume, addr, |di| di.size = size.into()).unwrap();
}

/// What the map says, block by block.
fn mapped(volume: &MemVolume, addr: BlockAddr, end: u64) -> BTreeMap<u64, u64> {
    let dinode = volume.read(addr).unwrap();
    let mut found = BTreeMap::new();
    let mut at = 0;
    while at < end {
        match map(volume, addr, &dinode, FileBlock::new(at), end - at).unwrap() {
            Mapping::Stuffed => break,
            Mapping::Data(run) => {
                for block in run.blocks() {
                    found.insert(at, block.get());
                    at += 1;
                }
            }
            Mapping::Hole { len } => at += len,
        }
    }
    found
}

fn free_all(volume: &mut MemVolume, addr: BlockAddr, mut cursor: FreeCursor, budget: StepBudget) -> u32 {
    let mut steps = 0;
    while let Some(block) = cursor.seek(volume, addr).unwrap() {
        let group = volume.group_of(block).unwrap().clone();
        volume.take_freed();
        volume.take_edited();
        let done = cursor.step(volume, addr, budget, &|b| group.contains(b)).unwrap();
        let freed = volume.take_freed();
        assert_eq!(freed.len(), done.freed as usize);
        assert!(done.freed > 0 && done.freed <= budget.frees);
        assert!(freed.iter().all(|(b, _)| group.contains(*b)), "one group a step");
        assert!(volume.take_edited().len() <= budget.edits as usize);
        volume.verify(&[addr], true).unwrap();
        steps += 1;
    }
    steps
}

#[test]
fn a_stuffed_file_moves_out_whole() {
    for flags in [DinodeFlags::empty(), DinodeFlags::JDATA] {
        let (mut volume, addr) = file(1024, flags);
        volume.damage(addr, |b| {
            b[DINODE_SIZE..DINODE_SIZE + 5].copy_from_slice(b"hello")
        });
        set_size(&mut volume, addr, 5);
        let block = volume.read(addr).unwrap();
        assert_eq!(stuffed(&block, addr, volume.geometry()).unwrap(), b"hello");
        assert_eq!(
            map(&volume, addr, &block, FileBlock::new(0), 1).unwrap(),
            Mapping::Stuffed
        );
        assert_eq!(
            next_hole(&volume, addr, &block, FileBlock::new(0), FileBlock::new(9)).unwrap(),
            Some(FileBlock::new(1))
        );

        let new = unstuff(&mut volume, addr).unwrap().unwrap();
        let mut bytes = [9; 8];
        assert_eq!(read_bytes(&volume, addr, 1, &mut bytes).unwrap(), 4);
        assert_eq!(&bytes, b"ello\x09\x09\x09\x09");
        assert_eq!(mapped(&volume, addr, 9), BTreeMap::from([(0, new.get())]));
        assert!(unstuff(&mut volume, addr).unwrap().is_none());
        let block = volume.read(addr).unwrap();
        assert!(stuffed(&block, addr, volume.geometry()).is_err());
        volume.verify(&[addr], true).unwrap();
    }
}

/// The shape of FORMAT.md section 3: an empty tree grows a spine, then the branch to the block.
#[test]
fn a_sparse_gigabyte_owns_six_blocks() {
    let (mut volume, addr) = file(4096, DinodeFlags::empty());
    let last = (1u64 << 30) / 4096 - 1;
    write(&mut volume, addr, last, 1, 1);
    let di = volume.dinode(addr).unwrap();
    assert_eq!((di.height.get(), di.blocks.get()), (3, 6));
    volume.verify(&[addr], true).unwrap();
    let dinode = volume.read(addr).unwrap();
    let end = FileBlock::new(1 << 40);
    let at = next_data(&volume, addr, &dinode, FileBlock::new(0), end).unwrap();
    assert_eq!(at, Some(FileBlock::new(last)));
    assert_eq!(
        next_hole(&volume, addr, &dinode, FileBlock::new(last), end).unwrap(),
        Some(FileBlock::new(last + 1))
    );
    assert_eq!(
        next_data(&volume, addr, &dinode, FileBlock::new(last + 1), end).unwrap(),
        None
    );
    let Mapping::Hole { len } = map(&volume, addr, &dinode, FileBlock::new(0), 1 << 40).unwrap() else {
        panic!("a hole")
    };
    assert_eq!(len, 509, "the empty bottom block of the spine");
    let Mapping::Hole { len } = map(&volume, addr, &dinode, FileBlock::new(509), 1 << 40).unwrap() else {
        panic!("a hole")
    };
    assert_eq!(
        len,
        508 * 509,
        "the rest of the spine's middle block in one piece"
    );
    let Mapping::Hole { len } = map(&volume, addr, &dinode, FileBlock::new(509 * 509), 1 << 40).unwrap()
    else {
        panic!("a hole")
    };
    assert_eq!(len, 6 * 509, "to the branch that is there");
}

#[test]
fn blocks_out_of_reach_are_too_large() {
    let (mut volume, addr) = file(512, DinodeFlags::empty());
    let error = map_or_alloc(&mut volume, addr, FileBlock::new(u64::MAX), 1).unwrap_err();
    assert!(matches!(error, crate::Error::TooLarge { .. }), "{error}");
    write(&mut volume, addr, 1 << 45, 1, 1);
    volume.verify(&[addr], true).unwrap();
}

/// Random writes, truncates and holes against a map, in fragmented and whole allocations; each write must stay
/// within the cost said before.
#[test]
fn the_tree_agrees_with_a_map() {
    for (bsize, seed) in [(512, 1), (512, 2), (512, 3), (1024, 4), (1024, 5), (4096, 6)] {
        let mut rng = Rng(seed * 0x1234_5677 + 1);
        let flags = if seed % 2 == 0 {
            DinodeFlags::JDATA
        } else {
            DinodeFlags::empty()
        };
        let (mut volume, addr) = file(bsize, flags);
        if seed % 3 != 0 {
            volume.short_runs(seed);
        }
        let mut model: BTreeMap<u64, u8> = BTreeMap::new();
        let mut size = 0u64;
        let bs = u64::from(bsize);
        for round in 0..300 {
            let pick = rng.below(5) as usize;
            let reach = [30, 300, 5000, 70_000, 1 << 33][pick];
            let lblock = rng.below(reach);
            match rng.below(10) {
                0 => {
                    size = lblock * bs;
                    model.retain(|at, _| at * bs < size);
                    if let Some(cursor) = truncate_begin(&mut volume, addr, size, NOW).unwrap() {
                        let budget = StepBudget {
                            frees: 1 + rng.below(200) as u32,
                            edits: 2 + rng.below(9) as u32,
                        };
                        free_all(&mut volume, addr, cursor, budget);
                        truncate_finish(&mut volume, addr).unwrap();
                    }
                    let di = volume.dinode(addr).unwrap();
                    assert_eq!(di.mtime(), NOW);
                    assert!(!di.flags().contains(DinodeFlags::TRUNC_IN_PROG));
                    assert!(size > 0 || (di.height.get(), di.blocks.get()) == (0, 1));
                }
                1 => {
                    let end = lblock + rng.below(500);
                    model.retain(|at, _| !(lblock..end).contains(at));
                    let cursor = FreeCursor::new(FileBlock::new(lblock), Some(FileBlock::new(end)));
                    free_all(&mut volume, addr, cursor, StepBudget { frees: 100, edits: 5 });
                }
                _ => {
                    let want = 1 + rng.below(80);
                    size = size.max((lblock + want) * bs);
                    let di = volume.dinode(addr).unwrap();
                    let cost =
                        worst_case_blocks(volume.geometry(), di.height.get(), FileBlock::new(lblock), want);
                    volume.take_allocated();
                    volume.take_edited();
                    let mut at = lblock;
                    while at < lblock + want {
                        let left = (lblock + want - at) as u32;
                        let got = write(&mut volume, addr, at, left, round as u8 | 1);
                        assert!((1..=left).contains(&got.extent.len));
                        assert_eq!(got.new, !model.contains_key(&at));
                        for n in at..at + u64::from(got.extent.len) {
                            assert_eq!(model.insert(n, round as u8 | 1).is_none(), got.new);
                        }
                        at += u64::from(got.extent.len);
                    }
                    assert!(volume.take_allocated() <= cost.blocks());
                    assert!(volume.take_edited().len() as u64 <= cost.touched);
                    set_size(&mut volume, addr, size);
                }
            }
            volume.verify(&[addr], true).unwrap();
            check_against(&volume, addr, &model, &mut rng);
        }
        let cursor = FreeCursor::new(FileBlock::new(0), None);
        free_all(
            &mut volume,
            addr,
            cursor,
            StepBudget {
                frees: 1000,
                edits: 20,
            },
        );
        assert_eq!(volume.dinode(addr).unwrap().blocks.get(), 1);
    }
}

fn check_against(volume: &MemVolume, addr: BlockAddr, model: &BTreeMap<u64, u8>, rng: &mut Rng) {
    let found = mapped(volume, addr, 1 << 34);
    assert!(found.keys().eq(model.keys()));
    for (at, block) in &found {
        assert_eq!(
            volume.read(BlockAddr::new(*block)).unwrap()[0],
            model[at],
            "content of {at}"
        );
    }
    let dinode = volume.read(addr).unwrap();
    if volume.dinode(addr).unwrap().height.get() == 0 {
        return;
    }
    for _ in 0..3 {
        let pick = rng.below(3) as usize;
        let from = rng.below([400, 80_000, 1 << 34][pick]);
        let end = from + rng.below(1 << 34);
        let (first, last) = (FileBlock::new(from), FileBlock::new(end));
        let data = next_data(volume, addr, &dinode, first, last)
            .unwrap()
            .map(FileBlock::get);
        assert_eq!(data, model.range(from..end).next().map(|(at, _)| *at));
        let hole = next_hole(volume, addr, &dinode, first, last)
            .unwrap()
            .map(FileBlock::get);
        assert_eq!(hole, (from..end).find(|at| !model.contains_key(at)));
    }
}

/// A new cursor in the middle of things ends where the old one would have.
#[test]
fn a_truncate_resumes_after_any_step() {
    let (mut volume, addr) = file(512, DinodeFlags::empty());
    volume.short_runs(77);
    for lblock in [0, 40, 900, 4000, 200_000] {
        write(&mut volume, addr, lblock, 40, 3);
    }
    set_size(&mut volume, addr, 512 * 300_000);
    let budget = StepBudget { frees: 7, edits: 2 };
    truncate_begin(&mut volume, addr, 100, NOW).unwrap().unwrap();
    let mut steps = 0;
    loop {
        let mut cursor = truncate_resume(&volume, addr).unwrap();
        let Some(block) = cursor.seek(&volume, addr).unwrap() else {
            break;
        };
        let group = volume.group_of(block).unwrap().clone();
        cursor
            .step(&mut volume, addr, budget, &|b| group.contains(b))
            .unwrap();
        volume.verify(&[addr], true).unwrap();
        steps += 1;
    }
    truncate_finish(&mut volume, addr).unwrap();
    assert!(steps > 5);
    assert_eq!(mapped(&volume, addr, 1 << 30).len(), 1);
    let di = volume.dinode(addr).unwrap();
    assert_eq!(di.size.get(), 100);
    assert!(di.height.get() > 1, "the height stays unless the size is 0");
}

#[test]
fn a_stuffed_truncate_zeroes_the_tail() {
    let (mut volume, addr) = file(512, DinodeFlags::empty());
    volume.damage(addr, |b| b[DINODE_SIZE..].fill(b'x'));
    set_size(&mut volume, addr, 280);
    assert_eq!(truncate_begin(&mut volume, addr, 3, NOW).unwrap(), None);
    let bytes = volume.read(addr).unwrap();
    assert_eq!(&bytes[DINODE_SIZE..DINODE_SIZE + 4], b"xxx\0");
    assert!(bytes[DINODE_SIZE + 3..].iter().all(|b| *b == 0));
    assert_eq!(truncate_begin(&mut volume, addr, 1 << 20, NOW).unwrap(), None);
    let di = volume.dinode(addr).unwrap();
    assert_eq!((di.height.get(), di.size.get(), di.blocks.get()), (1, 1 << 20, 2));
    volume.verify(&[addr], true).unwrap();
}

#[test]
fn no_space_in_the_middle_is_an_error_and_nothing_else() {
    let (volume, addr) = file(512, DinodeFlags::empty());
    for limit in 0..5 {
        let mut edit = volume.clone();
        edit.limit_allocations(Some(limit));
        let result = map_or_alloc(&mut edit, addr, FileBlock::new(40_000), 1);
        assert!(
            matches!(result, Err(crate::Error::NoSpace)),
            "limit {limit}: {result:?}"
        );
    }
}

/// Indirect blocks that lead to themselves, to an ancestor, to no indirect block, off the volume.
#[test]
fn wild_pointers_end_in_errors() {
    let (mut volume, addr) = file(512, DinodeFlags::empty());
    write(&mut volume, addr, 40_000, 1, 1);
    let mut chain = vec![];
    crate::walk::owned_blocks(&volume, addr, crate::walk::Scope::Metadata, &mut |o| {
        chain.push(o.extent.start);
        Ok(())
    })
    .unwrap();
    let inner = chain[0];
    for bad in [
        inner.get(),
        addr.get(),
        1,
        u64::MAX,
        volume.groups()[0].addr().get(),
    ] {
        let mut hurt = volume.clone();
        hurt.damage(inner, |b| b[META_HEADER_SIZE..].fill(0));
        hurt.damage(inner, |b| {
            b[META_HEADER_SIZE..META_HEADER_SIZE + 8].copy_from_slice(&bad.to_be_bytes())
        });
        let dinode = hurt.read(addr).unwrap();
        let error = map(&hurt, addr, &dinode, FileBlock::new(0), 1).unwrap_err();
        assert!(matches!(error, crate::Error::Corrupt(_)), "{error}");
        let end = FileBlock::new(1 << 40);
        assert!(next_data(&hurt, addr, &dinode, FileBlock::new(0), end).is_err());
        assert!(map_or_alloc(&mut hurt, addr, FileBlock::new(1), 1).is_err());
        assert!(
            FreeCursor::new(FileBlock::new(0), None)
                .seek(&hurt, addr)
                .is_err()
        );
    }
}

/// Two full levels that share one block each have 61^n ways: the walk must give up by count, not by patience.
#[test]
fn a_tree_of_shared_blocks_is_bounded() {
    let (mut volume, addr) = file(512, DinodeFlags::empty());
    let reach = Geometry::new(512, 1).unwrap().height_size(8) / 512;
    write(&mut volume, addr, reach, 1, 1);
    assert_eq!(volume.dinode(addr).unwrap().height.get(), 9);
    let mut path = vec![];
    let mut here = addr;
    for level in 0..8 {
        let bytes = volume.read(here).unwrap();
        here = BlockAddr::new(ptrs(&bytes, ptrs::ptr_offset(level), here).unwrap()[0].get());
        path.push(here);
    }
    for pair in path.windows(2) {
        volume.damage(pair[0], |b| {
            ptrs_mut(b, META_HEADER_SIZE, pair[0])
                .unwrap()
                .fill(pair[1].get().into());
        });
    }
    let dinode = volume.read(addr).unwrap();
    let end = FileBlock::new(u64::MAX);
    let error = next_data(&volume, addr, &dinode, FileBlock::new(0), end).unwrap_err();
    assert!(error.to_string().contains("di_blocks"), "{error}");
    let mut visits = 0;
    let walk = crate::walk::owned_blocks(&volume, addr, crate::walk::Scope::All, &mut |_| {
        visits += 1;
        Ok(())
    });
    assert!(walk.is_err() && visits < 20_000, "{visits}");
    assert!(
        FreeCursor::new(FileBlock::new(0), None)
            .seek(&volume, addr)
            .is_err()
    );
}

/// A block freed twice, through two pointers, is caught by the bitmap.
#[test]
fn a_block_with_two_owners_is_not_freed_twice() {
    let (mut volume, addr) = file(512, DinodeFlags::empty());
    let got = write(&mut volume, addr, 0, 2, 1);
    volume.damage(addr, |b| {
        let raw = got.extent.start.get().to_be_bytes();
        b[DINODE_SIZE + 8..DINODE_SIZE + 16].copy_from_slice(&raw);
    });
    let mut cursor = FreeCursor::new(FileBlock::new(0), None);
    let budget = StepBudget { frees: 10, edits: 10 };
    let error = cursor.step(&mut volume, addr, budget, &|_| true).unwrap_err();
    assert!(error.to_string().contains("block state"), "{error}");
}

#[test]
fn freed_blocks_keep_their_use() {
    let uses = [
        (DinodeFlags::empty(), BlockUse::Data),
        (DinodeFlags::JDATA, BlockUse::JournaledData),
    ];
    for (flags, usage) in uses {
        let (mut volume, addr) = file(512, flags);
        write(&mut volume, addr, 50, 3, 1);
        let mut cursor = FreeCursor::new(FileBlock::new(0), None);
        let budget = StepBudget { frees: 10, edits: 10 };
        assert!(cursor.step(&mut volume, addr, budget, &|_| true).unwrap().done);
        let freed: Vec<BlockUse> = volume.take_freed().into_iter().map(|(_, usage)| usage).collect();
        assert_eq!(freed, [usage, usage, usage, BlockUse::Meta]);
    }
}
