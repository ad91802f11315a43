//! Goal: a plan is pure, complete and bounded: same input, same blocks; every block once; huge volumes cost nothing.

use super::*;
use gfs2_format::device::{BlockDevice, MemDevice};
use gfs2_format::ondisk::{Dinode, StatfsChange, view};

fn fixed(options: Options) -> Options {
    Options {
        uuid: Some([7; 16]),
        time: Some(1_700_000_000),
        first_sequence: Some(100),
        ..options
    }
}

#[test]
fn the_same_options_give_the_same_volume() {
    let images: Vec<Vec<u8>> = (0..2)
        .map(|_| {
            let device = MemDevice::new(48 << 20);
            crate::format(&device, &fixed(Options::nolock())).unwrap();
            let mut bytes = vec![0; 48 << 20];
            device.read_at(0, &mut bytes).unwrap();
            bytes
        })
        .collect();
    assert!(images[0] == images[1]);
}

#[test]
fn a_volume_can_be_read_back_at_every_block_size_and_protocol() {
    for bsize in [512, 1024, 2048, 4096] {
        for options in [Options::nolock(), Options::dlm("cluster:fs")] {
            let options = Options {
                block_size: Some(bsize),
                journals: 2,
                ..options
            };
            let device = MemDevice::new(100 << 20);
            let summary = crate::format(&device, &options).unwrap();
            let mut bytes = vec![0; bsize as usize];
            device.read_at(65536, &mut bytes).unwrap();
            let sb = Superblock::decode(&bytes).unwrap();
            assert_eq!(sb.bsize.get(), bsize);
            assert_eq!(sb.lockproto(), options.lock_proto.name());
            assert_eq!(sb.locktable(), options.lock_table.clone().unwrap_or_default());
            assert_eq!(sb.uuid, summary.uuid);
            for num in [sb.master_dir.num(), sb.root_dir.num()] {
                let geometry = Geometry::new(bsize, summary.blocks).unwrap();
                device
                    .read_at(geometry.byte_offset(num.addr), &mut bytes)
                    .unwrap();
                assert!(Dinode::decode(&bytes, num.addr, &geometry).unwrap().is_dir());
            }
        }
    }
}

#[test]
fn statfs_says_what_the_groups_say() {
    let plan = plan(&fixed(Options::nolock()), &Topology::of_size(1 << 30)).unwrap();
    let (mut free, mut dinodes) = (0, 0);
    for index in 0..plan.layout().rgrps() {
        let rgrp = plan.layout().rgrp(index).unwrap();
        let mut bytes = vec![0; rgrp.bitmap_blocks as usize * plan.geometry().block_len()];
        plan.render_rgrp(&rgrp, &mut bytes, false);
        let header: &gfs2_format::ondisk::Rgrp = view(&bytes, 0, plan.geometry().superblock()).unwrap();
        free += u64::from(header.free.get());
        dinodes += u64::from(header.dinodes.get());
    }
    assert_eq!(plan.totals(), (plan.layout().total_data(), free, dinodes));

    let want = StatfsChange::from_signed(plan.totals().0 as i64, free as i64, dinodes as i64);
    let mut found = false;
    plan.system_blocks(&mut |_, block| {
        found |= block[232..].starts_with(want.as_bytes());
        Ok(())
    })
    .unwrap();
    assert!(found);
}

#[test]
fn every_system_block_is_rendered_once_and_marked_in_a_bitmap() {
    let options = Options {
        block_size: Some(512),
        journals: 9,
        ..Options::nolock()
    };
    let plan = plan(&fixed(options), &Topology::of_size(1 << 30)).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    let mut dinodes = Vec::new();
    plan.system_blocks(&mut |addr, block| {
        assert!(seen.insert(addr), "block {addr} twice");
        if block[..8] == [0x01, 0x16, 0x19, 0x70, 0, 0, 0, 4] {
            dinodes.push(addr);
        }
        Ok(())
    })
    .unwrap();
    dinodes.sort_unstable();
    assert_eq!(seen.len() as u64, plan.tree.usage.taken());
    assert_eq!(dinodes, plan.tree.usage.dinodes());
}

#[test]
fn planning_sixteen_tebibytes_keeps_no_list_of_groups() {
    let options = Options {
        journals: 5,
        ..Options::nolock()
    };
    let plan = plan(&options, &Topology::of_size(16 << 40)).unwrap();
    assert_eq!(plan.summary().journal_mb, 512);
    assert!(plan.summary().resource_groups > 65_000);
}

#[test]
fn sequences_start_within_the_journal() {
    let options = Options {
        first_sequence: Some(u64::MAX),
        ..Options::nolock()
    };
    let plan = plan(&options, &Topology::of_size(1 << 30)).unwrap();
    assert_eq!(plan.sequences, [u64::MAX % 4096]);
}
