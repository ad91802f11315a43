//! Goal: the resource index and the groups are rebuilt where they follow no rule, too: on a volume that has grown (groups
//! of two sizes), on one whose groups are of any size with blocks between them that belong to none, and on one whose
//! headers are from before they held copies of the index (as a conversion from GFS1 leaves them). Method: volumes of
//! these shapes around the contents of a fixture, damaged and repaired in memory; afterwards every group is where and as
//! large as it was, and the contents are what they were. Where too little is left to know where the groups were, the
//! volume is repaired in a way that the reference agrees with and that keeps all contents, or not written to.
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
use gfs2_format::device::{BlockDevice, MemDevice};
use gfs2_format::ondisk::{
    BlockState, DINODE_SIZE, MetaHeader, MetaType, RINDEX_SIZE, Rgrp, RindexEntry, view_mut,
};
use gfs2_format::{BlockAddr, Jid};
use gfs2_fsck::{Collect, Policy, check};
use support::groups::lose_and_repair;
use support::{Map, fixture, reference};
use zerocopy::IntoBytes;

/// The volume that gets more groups.
const IMAGE: &str = "clean1k";

/// A shape of a volume.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    /// Groups behind those of the fixture: data blocks, and blocks before the group that belong to nobody.
    added: &'static [(u32, u64)],
    /// Blocks that the fixture's last group gives up at its end.
    cut: u32,
    /// The headers hold copies of the index.
    copies: bool,
}

const IRREGULAR: Shape = Shape {
    name: "irregular",
    added: &[(20_000, 37), (7_404, 200), (33_336, 5), (4_096, 64), (9_000, 90)],
    cut: 84,
    copies: true,
};

/// What growing adds: groups of another size, the last as large as what is left.
const GROWN: Shape = Shape {
    name: "grown",
    added: &[(60_000, 1), (60_000, 2), (60_000, 2), (12_344, 2)],
    cut: 0,
    copies: true,
};

const CONVERTED: Shape = Shape {
    name: "converted",
    copies: false,
    ..IRREGULAR
};

/// A volume of this shape.
fn volume(shape: Shape) -> MemDevice {
    let small = fixture(IMAGE);
    let map = Map::new(&small);
    let (geometry, rindex) = (map.volume.geometry.clone(), map.master("rindex"));
    let old = map.groups();
    let mut entries: Vec<(u64, u32, u32)> = old
        .iter()
        .map(|group| (group.addr().get(), group.length(), group.data()))
        .collect();
    let tail = old.last().unwrap();
    let first_cut = tail.end().get() - u64::from(shape.cut);
    for block in first_cut..tail.end().get() {
        let slice = tail.locate(BlockAddr::new(block)).unwrap();
        let state = slice.state(&map.block(slice.block.get()), BlockAddr::new(block));
        assert_eq!(state.unwrap(), BlockState::Free, "{block} cannot be cut off");
    }
    entries.last_mut().unwrap().2 -= shape.cut;
    let mut at = tail.end().get();
    for (data, before) in shape.added {
        let length = (1..)
            .find(|n| geometry.bitmap_capacity(*n) >= u64::from(*data))
            .unwrap();
        entries.push((at + before, length as u32, *data));
        at += before + length + u64::from(*data);
    }
    let bsize = u64::from(geometry.bsize());
    let device = MemDevice::new((at + 40) * bsize);
    let mut block = vec![0; bsize as usize];
    for n in 0..small.size() / bsize {
        small.read_at(n * bsize, &mut block).unwrap();
        if block.iter().any(|byte| *byte != 0) {
            device.write_at(n * bsize, &block).unwrap();
        }
    }
    for (n, (addr, length, data)) in entries.iter().enumerate() {
        let entry = RindexEntry {
            addr: (*addr).into(),
            length: (*length).into(),
            pad: 0.into(),
            data0: (addr + u64::from(*length)).into(),
            data: (*data).into(),
            bitbytes: (data / 4).into(),
            reserved: [0; 64],
        };
        let place = rindex * bsize + (DINODE_SIZE + n * RINDEX_SIZE) as u64;
        device.write_at(place, entry.as_bytes()).unwrap();
        let last = n + 1 == old.len();
        if n >= old.len() || last || !shape.copies {
            write_group(&device, bsize, &entry, n >= old.len(), shape);
        }
    }
    let total = entries.iter().map(|(_, _, data)| i64::from(*data)).sum::<i64>();
    let more = total - old.iter().map(|group| i64::from(group.data())).sum::<i64>();
    let statfs = map.block(map.master("statfs"));
    let free = i64::from_be_bytes(statfs[DINODE_SIZE + 8..DINODE_SIZE + 16].try_into().unwrap());
    let script = format!(
        "set dinode(master:/rindex).di_size = {}\nset statfs.sc_total = {total}\nset statfs.sc_free = {}",
        entries.len() * RINDEX_SIZE,
        free + more
    );
    damage::run(&script, &device).unwrap();
    device
}

/// Writes a group's header; of a new one the bitmap, too.
fn write_group(device: &MemDevice, bsize: u64, entry: &RindexEntry, new: bool, shape: Shape) {
    let addr = entry.addr.get();
    let mut block = vec![0; bsize as usize];
    if new {
        let bitmap = MetaHeader::new(MetaType::Rb, Jid::default());
        block[..size_of::<MetaHeader>()].copy_from_slice(bitmap.as_bytes());
        for n in 1..u64::from(entry.length.get()) {
            device.write_at((addr + n) * bsize, &block).unwrap();
        }
        let header = MetaHeader::new(MetaType::Rg, Jid::default());
        block[..size_of::<MetaHeader>()].copy_from_slice(header.as_bytes());
    } else {
        device.read_at(addr * bsize, &mut block).unwrap();
    }
    let header = view_mut::<Rgrp>(&mut block, 0, BlockAddr::new(addr)).unwrap();
    if new {
        header.free = entry.data;
    } else if header.data.get() > entry.data.get() {
        header.free = (header.free.get() - (header.data.get() - entry.data.get())).into();
    }
    // Zero before a group that was added later is what growing leaves.
    header.skip = 0.into();
    let copies = u32::from(shape.copies);
    header.data0 = (entry.data0.get() * u64::from(copies)).into();
    header.data = (entry.data.get() * copies).into();
    header.bitbytes = (entry.bitbytes.get() * copies).into();
    header.seal();
    if !shape.copies {
        header.crc = 0.into();
    }
    device.write_at(addr * bsize, &block).unwrap();
}

#[track_caller]
fn all(shape: Shape) {
    let device = volume(shape);
    reference(&device).unwrap();
    let outcome = check(&device, &Policy::read_only(), &mut Collect::default()).unwrap();
    assert_eq!(outcome.errors, 0, "{}: {outcome:?}", shape.name);
    let failures = lose_and_repair(&device, &[]);
    assert!(failures.is_empty(), "{}:\n{}", shape.name, failures.join("\n"));
}

#[test]
fn groups_of_a_grown_volume() {
    all(GROWN);
}

#[test]
fn groups_of_any_size() {
    all(IRREGULAR);
}

#[test]
fn groups_of_a_converted_volume() {
    all(CONVERTED);
}
