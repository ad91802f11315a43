//! Goal: xattrs against a map under random operations, every block accounted for; records on the wire; lies.

use super::record::{self, Value};
use super::*;
use crate::edit::BlockRead;
use crate::error::Error;
use crate::geometry::Geometry;
use crate::memvol::MemVolume;
use crate::ondisk::{
    DinodeFlags, EA_FLAG_LAST, EaHeader, FileType, META_HEADER_SIZE, MetaType, view, view_mut,
};
use crate::testing::Rng;
use crate::tree::{StepBudget, stamp};
use crate::walk::{Role, Scope, owned_blocks};
use std::collections::BTreeMap;

type Model = BTreeMap<(EaType, Vec<u8>), Vec<u8>>;

fn inode(bsize: u32) -> (MemVolume, BlockAddr, Xattrs) {
    let mut volume = MemVolume::format(bsize, 6, 6000).unwrap();
    let addr = volume
        .new_inode(FileType::Regular, DinodeFlags::empty())
        .unwrap()
        .addr;
    (volume, addr, Xattrs::new(addr, 1802))
}

/// Runs a cursor to its end, one group a step.
fn free(volume: &mut MemVolume, addr: BlockAddr, mut cursor: EaCursor, budget: StepBudget) -> u32 {
    let mut freed = 0;
    while let Some(block) = cursor.seek(volume, addr).unwrap() {
        let group = volume.group_of(block).unwrap().clone();
        volume.take_freed();
        volume.take_edited();
        let done = cursor.step(volume, addr, budget, &|b| group.contains(b)).unwrap();
        let gone = volume.take_freed();
        assert!(done.freed > 0 && done.freed <= budget.frees, "{done:?}");
        assert!(
            gone.iter()
                .all(|(b, usage)| group.contains(*b) && *usage == crate::BlockUse::Meta)
        );
        assert!(volume.take_edited().len() <= budget.edits as usize);
        volume.verify(&[addr], true).unwrap();
        freed += done.freed;
    }
    freed
}

/// Sets within the cost said before, and reclaims.
fn set(volume: &mut MemVolume, ea: Xattrs, key: &(EaType, Vec<u8>), value: &[u8]) {
    let cost = worst_case_blocks(volume.geometry(), key.1.len(), value.len());
    volume.take_allocated();
    volume.take_edited();
    let left = ea.set(volume, key.0, &key.1, value, SetMode::Any).unwrap();
    assert!(volume.take_allocated() <= u64::from(cost.blocks));
    assert!(volume.take_edited().len() <= cost.touched as usize);
    volume.verify(&[ea.addr], true).unwrap();
    reclaim(volume, ea.addr, left);
}

fn reclaim(volume: &mut MemVolume, addr: BlockAddr, left: Leftover) {
    let freed = free(
        volume,
        addr,
        EaCursor::reclaim(),
        StepBudget { frees: 3, edits: 3 },
    );
    assert_eq!(left.0, freed > 0);
}

fn check(volume: &MemVolume, ea: Xattrs, model: &Model) {
    let mut seen = BTreeMap::new();
    ea.list(volume, &mut |name| {
        assert!(
            seen.insert((name.space, name.name.to_vec()), name.value_len)
                .is_none()
        );
    })
    .unwrap();
    assert!(
        seen.iter()
            .map(|(k, len)| (k.clone(), *len))
            .eq(model.iter().map(|(k, v)| (k.clone(), v.len() as u32)))
    );
    for ((space, name), value) in model {
        assert!(ea.get(volume, *space, name).unwrap().as_ref() == Some(value));
        assert_eq!(
            ea.value_len(volume, *space, name).unwrap(),
            Some(value.len() as u32)
        );
    }
}

#[test]
fn xattrs_agree_with_a_map() {
    for (bsize, seed) in [(512, 1), (512, 2), (1024, 3), (4096, 4), (4096, 5)] {
        let mut rng = Rng(seed * 0x1234_5679);
        let (mut volume, addr, ea) = inode(bsize);
        if seed % 2 == 1 {
            volume.short_runs(seed);
        }
        let mut model = Model::new();
        for op in 0..400u64 {
            let space =
                [EaType::User, EaType::System, EaType::Security, EaType::Trusted][rng.below(4) as usize];
            let mut name = format!("attr{}", rng.below(if bsize == 512 { 12 } else { 40 })).into_bytes();
            name.resize(name.len() + (name.len() * 37 + name[4] as usize * 11) % 200, b'_');
            let key = (space, name);
            if rng.below(3) == 0 {
                match (ea.remove(&mut volume, key.0, &key.1), model.remove(&key)) {
                    (Ok(left), Some(_)) => {
                        volume.verify(&[addr], true).unwrap();
                        reclaim(&mut volume, addr, left);
                    }
                    (result, old) => assert!(matches!(result, Err(Error::NotFound)) && old.is_none()),
                }
            } else {
                // The pointers of larger values do not fit a block of 512 bytes.
                let most = [30, 300, 5000, if bsize == 512 { 8000 } else { 20_000 }][rng.below(4) as usize];
                let len = rng.below(most) as usize;
                let value: Vec<u8> = (0..len).map(|n| (n as u64 * 7 + op) as u8).collect();
                set(&mut volume, ea, &key, &value);
                model.insert(key.clone(), value);
            }
            if op % 10 == 0 {
                check(&volume, ea, &model);
            }
            let mut edit = volume.clone();
            let (create, replace) = (SetMode::Create, SetMode::Replace);
            match model.contains_key(&key) {
                true => assert!(matches!(
                    ea.set(&mut edit, key.0, &key.1, b"", create),
                    Err(Error::Exists)
                )),
                false => assert!(matches!(
                    ea.set(&mut edit, key.0, &key.1, b"", replace),
                    Err(Error::NotFound)
                )),
            }
        }
        check(&volume, ea, &model);
        assert!(
            volume
                .dinode(addr)
                .unwrap()
                .flags()
                .contains(DinodeFlags::EA_INDIRECT)
        );
        free(
            &mut volume,
            addr,
            EaCursor::dealloc(),
            StepBudget { frees: 7, edits: 4 },
        );
        let di = volume.dinode(addr).unwrap();
        assert_eq!((di.eattr.get(), di.blocks.get()), (0, 1));
        assert!(!di.flags().contains(DinodeFlags::EA_INDIRECT));
    }
}

#[test]
fn a_dealloc_resumes_after_any_step() {
    let (mut volume, addr, ea) = inode(1024);
    volume.short_runs(9);
    for n in 0..30 {
        let key = (EaType::User, format!("name-{n}").into_bytes());
        set(&mut volume, ea, &key, &vec![n; usize::from(n) * 200]);
    }
    while let Some(block) = EaCursor::dealloc().seek(&volume, addr).unwrap() {
        let group = volume.group_of(block).unwrap().clone();
        let budget = StepBudget { frees: 1, edits: 2 };
        EaCursor::dealloc()
            .step(&mut volume, addr, budget, &|b| group.contains(b))
            .unwrap();
        volume.verify(&[addr], true).unwrap();
    }
    assert_eq!(volume.dinode(addr).unwrap().blocks.get(), 1);
}

/// FORMAT.md section 10: 20000 bytes take 5 value blocks and a record of 64 bytes; 60000 take 15.
#[test]
fn large_values_take_the_blocks_the_kernel_gives_them() {
    let (mut volume, addr, ea) = inode(4096);
    for (name, len, blocks) in [(b"big".as_slice(), 20_000, 5), (b"big2", 60_000, 15)] {
        let before = volume.dinode(addr).unwrap().blocks.get();
        set(&mut volume, ea, &(EaType::User, name.to_vec()), &vec![b'B'; len]);
        let after = volume.dinode(addr).unwrap().blocks.get();
        assert_eq!(after - before, blocks + u64::from(before == 1));
    }
    let block = BlockAddr::new(volume.dinode(addr).unwrap().eattr.get());
    let bytes = volume.read(block).unwrap();
    let first: &EaHeader = view(&bytes, META_HEADER_SIZE, block).unwrap();
    assert_eq!((first.rec_len.get(), first.num_ptrs, first.flags), (64, 5, 0));
}

#[test]
fn limits_are_kept() {
    let (mut volume, addr, ea) = inode(512);
    let too_large = |result| matches!(result, Err(Error::TooLarge { .. }));
    assert!(too_large(ea.set(
        &mut volume,
        EaType::User,
        &[b'n'; 256],
        b"",
        SetMode::Any
    )));
    assert!(too_large(ea.set(
        &mut volume,
        EaType::User,
        b"n",
        &[0; 65537],
        SetMode::Any
    )));
    assert!(
        too_large(ea.set(&mut volume, EaType::User, b"n", &[0; 65536], SetMode::Any)),
        "135 pointers in 488 bytes"
    );
    let old = Xattrs::new(addr, 1801);
    for (space, name) in [
        (EaType::Trusted, b"n".as_slice()),
        (EaType::Unused, b"n"),
        (EaType::User, b""),
    ] {
        assert!(matches!(
            old.set(&mut volume, space, name, b"", SetMode::Any),
            Err(Error::Unsupported { .. })
        ));
    }
    assert_eq!(volume.dinode(addr).unwrap().blocks.get(), 1);
    let _ = ea
        .set(&mut volume, EaType::Trusted, b"n", b"v", SetMode::Any)
        .unwrap();
    assert!(
        old.get(&volume, EaType::User, b"x")
            .unwrap_err()
            .to_string()
            .contains("ea_type")
    );
    let (mut volume, _, ea) = inode(1024);
    set(&mut volume, ea, &(EaType::User, vec![b'n'; 255]), &[7; 65536]);
}

/// The list of EA blocks has an end.
#[test]
fn a_full_list_is_no_space() {
    let (mut volume, addr, ea) = inode(512);
    let mut n = 0u64;
    let error = loop {
        let name = format!("{n:0>250}");
        match ea.set(
            &mut volume,
            EaType::User,
            name.as_bytes(),
            &[1; 200],
            SetMode::Any,
        ) {
            Ok(left) => assert!(!left.0),
            Err(error) => break error,
        }
        n += 1;
    };
    assert!(matches!(error, Error::NoSpace), "{error}");
    assert_eq!(n, 61);
    assert_eq!(volume.dinode(addr).unwrap().blocks.get(), 63);
}

fn one_block() -> (MemVolume, BlockAddr, Xattrs, BlockAddr) {
    let (mut volume, addr, ea) = inode(512);
    for (name, len) in [("one", 10), ("two", 700), ("three", 20)] {
        set(&mut volume, ea, &(EaType::User, name.into()), &vec![b'v'; len]);
    }
    let block = BlockAddr::new(volume.dinode(addr).unwrap().eattr.get());
    (volume, addr, ea, block)
}

#[test]
fn lies_in_records_are_refused() {
    let (volume, _, ea, block) = one_block();
    let bytes = volume.read(block).unwrap();
    let all: Vec<usize> = record::records(&bytes, block, 4)
        .map(|r| r.unwrap().offset)
        .collect();
    assert_eq!(all.len(), 3);
    type Harm = fn(&mut EaHeader);
    let damage: [(usize, &str, Harm); 10] = [
        (0, "ea_rec_len", |h| h.rec_len = 0.into()),
        (0, "ea_rec_len", |h| h.rec_len = 8.into()),
        (1, "ea_rec_len", |h| h.rec_len = u32::MAX.into()),
        (1, "ea_flags", |h| h.flags = EA_FLAG_LAST),
        (2, "ea_flags", |h| h.flags = 0),
        (0, "ea_type", |h| h.ea_type = 5),
        (0, "ea_name_len", |h| h.name_len = 0),
        (0, "ea_name_len", |h| h.name_len = 255),
        (0, "ea_data_len", |h| h.data_len = 4000.into()),
        (1, "ea_num_ptrs", |h| h.num_ptrs = 1),
    ];
    for (which, field, harm) in damage {
        let mut hurt = volume.clone();
        hurt.damage(block, |b| harm(view_mut(b, all[which], block).unwrap()));
        let error = ea.list(&hurt, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
    let mut hurt = volume.clone();
    hurt.damage(block, |b| {
        view_mut::<EaHeader>(b, all[1], block).unwrap().num_ptrs = 200
    });
    assert!(
        ea.get(&hurt, EaType::User, b"two").is_err(),
        "pointers past the record"
    );
    let mut hurt = volume.clone();
    hurt.damage(block, |b| b[4..8].copy_from_slice(&11u32.to_be_bytes()));
    assert!(
        ea.list(&hurt, &mut |_| ())
            .unwrap_err()
            .to_string()
            .contains("mh_type")
    );
}

/// An unused record is believed in its length and flags only.
#[test]
fn garbage_in_unused_records_is_ignored() {
    let mut bytes = vec![0; 512];
    let at = BlockAddr::new(300);
    stamp(&mut bytes, MetaType::Ea, at).unwrap();
    record::clear(&mut bytes, at).unwrap();
    let header: &mut EaHeader = view_mut(&mut bytes, META_HEADER_SIZE, at).unwrap();
    header.name_len = 255;
    header.data_len = u32::MAX.into();
    let found: Vec<_> = record::records(&bytes, at, 4).map(|r| r.unwrap()).collect();
    assert_eq!((found.len(), found[0].space, found[0].used()), (1, None, 0));
    assert!(matches!(found[0].value, Value::Inline(&[])));
}

/// Records behind a zero in the list do not exist (FORMAT.md 9.43).
#[test]
fn a_hole_in_the_list_hides_what_follows() {
    let (mut volume, addr, ea) = inode(512);
    for n in 0..20u8 {
        set(&mut volume, ea, &(EaType::User, vec![b'a' + n; 100]), &[n; 100]);
    }
    let list = BlockAddr::new(volume.dinode(addr).unwrap().eattr.get());
    let mut before = 0;
    ea.list(&volume, &mut |_| before += 1).unwrap();
    volume.damage(list, |b| b[META_HEADER_SIZE + 16..META_HEADER_SIZE + 24].fill(0));
    let mut after = 0;
    ea.list(&volume, &mut |_| after += 1).unwrap();
    assert!(before == 20 && after > 0 && after < 20);
}

#[test]
fn no_space_in_the_middle_is_an_error_and_nothing_else() {
    let (volume, _, ea, _) = one_block();
    for limit in 0..10 {
        let mut edit = volume.clone();
        edit.limit_allocations(Some(limit));
        let result = ea.set(&mut edit, EaType::User, b"more", &[0; 4880], SetMode::Any);
        assert!(matches!(result, Err(Error::NoSpace)), "limit {limit}");
    }
}

#[test]
fn value_costs_follow_the_block_size() {
    let g = Geometry::new(4096, 1).unwrap();
    assert_eq!(worst_case_blocks(&g, 3, 100).blocks, 2);
    assert_eq!(
        worst_case_blocks(&g, 3, 4053).blocks,
        2,
        "16 + 3 + 4053 fills a block"
    );
    assert_eq!(worst_case_blocks(&g, 3, 4054).blocks, 3);
    assert_eq!(worst_case_blocks(&g, 3, 65536).blocks, 2 + 17);
}

/// Seeded bit flips: errors or answers, never a panic or an endless loop.
#[test]
fn flipped_bits_never_panic() {
    let (mut clean, addr, ea) = inode(512);
    for n in 0..25u8 {
        set(
            &mut clean,
            ea,
            &(EaType::User, vec![b'a' + n; 30]),
            &vec![n; usize::from(n) * 60],
        );
    }
    let mut blocks = vec![addr];
    owned_blocks(&clean, addr, Scope::All, &mut |o| {
        assert!(matches!(o.role, Role::Ea | Role::EaIndirect | Role::EaValue));
        blocks.extend(o.extent.blocks());
        Ok(())
    })
    .unwrap();
    let mut rng = Rng(1234);
    for _ in 0..2000 {
        let mut volume = clean.clone();
        for _ in 0..1 + rng.below(4) {
            let block = blocks[rng.below(blocks.len() as u64) as usize];
            let (at, bit) = (rng.below(512) as usize, rng.below(8));
            volume.damage(block, |b| b[at] ^= 1 << bit);
        }
        let _ = ea.list(&volume, &mut |_| ());
        for n in 0..4 {
            let name = vec![b'a' + rng.below(30) as u8; 30];
            let _ = ea.get(&volume, EaType::User, &name);
            let mut edit = volume.clone();
            let value = vec![1; rng.below(2000) as usize];
            let done = if n % 2 == 0 {
                ea.set(&mut edit, EaType::User, &name, &value, SetMode::Any)
            } else {
                ea.remove(&mut edit, EaType::User, &name)
            };
            if done.is_ok() {
                volume = edit;
            }
        }
        for mut cursor in [EaCursor::reclaim(), EaCursor::dealloc()] {
            let budget = StepBudget { frees: 9, edits: 9 };
            while let Ok(Some(_)) = cursor.seek(&volume, addr) {
                if cursor.step(&mut volume, addr, budget, &|_| true).is_err() {
                    break;
                }
            }
        }
    }
}
