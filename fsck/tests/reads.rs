//! Goal: each metadata block is read once. Method: a device that counts, for each block of a volume that the kernel made,
//! how often it is asked for; what is read again is named here with its reason, and nothing else may be.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must fail"
)]

mod support;

use gfs2_format::device::{BlockDevice, MemDevice, ReadRequest};
use gfs2_format::ondisk::MAGIC;
use gfs2_format::walk::{Owned, Scope, owned_blocks};
use gfs2_format::{BlockAddr, Error, Volume};
use gfs2_fsck::{Collect, Policy, check};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use support::{Map, fixture};

/// Counts how often each block is asked for. Reads of several blocks fail: then each block is read by itself, and not
/// those between them, which nobody asked for. But not reads in a
/// journal, which has nothing between its blocks.
#[derive(Debug)]
struct Counting<'a> {
    device: &'a MemDevice,
    volume: &'a Volume,
    shift: u32,
    counts: Vec<AtomicU32>,
}

impl BlockDevice for Counting<'_> {
    fn size(&self) -> u64 {
        self.device.size()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read_batch(&self, requests: &mut [ReadRequest<'_>]) -> Result<(), Error> {
        let in_journal = |offset: u64| {
            let block = BlockAddr::new(offset >> self.shift);
            self.volume
                .journals
                .iter()
                .any(|journal| journal.map.contains(block))
        };
        match requests {
            [one] if one.buf.len() == 1 << self.shift || in_journal(one.offset) => {
                self.read_at(one.offset, one.buf)
            }
            _ => Err(Error::io(
                "read",
                0,
                0,
                std::io::Error::other("one block at a time"),
            )),
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let blocks = offset >> self.shift..(offset + buf.len() as u64).div_ceil(1 << self.shift);
        for block in blocks {
            self.counts[block as usize].fetch_add(1, Ordering::Relaxed);
        }
        self.device.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, _: &[u8]) -> Result<(), Error> {
        panic!("a write at {offset} in a check that only looks");
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// The metadata blocks that a check with so much memory reads more than once, and how many it reads once.
fn read_again(image: &MemDevice, volume: &Volume, memory: u64) -> (BTreeSet<u64>, u64) {
    let shift = volume.geometry.bsize_shift();
    let device = Counting {
        device: image,
        volume,
        shift,
        counts: (0..image.size() >> shift).map(|_| AtomicU32::new(0)).collect(),
    };
    let policy = Policy {
        memory,
        ..Policy::read_only()
    };
    let outcome = check(&device, &policy, &mut Collect::default()).unwrap();
    assert_eq!(outcome.errors, 0, "{outcome:?}");
    let (mut again, mut once) = (BTreeSet::new(), 0);
    let mut bytes = [0; 4];
    for (block, count) in (0..).zip(&device.counts) {
        image.read_at(block << shift, &mut bytes).unwrap();
        if u32::from_be_bytes(bytes) == MAGIC {
            match count.load(Ordering::Relaxed) {
                0 => {}
                1 => once += 1,
                _ => {
                    again.insert(block);
                }
            }
        }
    }
    (again, once)
}

/// The blocks of the system tree: what is needed before anything can be checked, and is then checked like any other
/// inode; they are few whatever is on the volume.
fn system_blocks(map: &Map<'_>) -> BTreeSet<u64> {
    let mut files = vec![String::new()];
    files.extend(["jindex", "per_node", "inum", "statfs", "rindex", "quota"].map(str::to_owned));
    for jid in 0..map.volume.journals.len() {
        files.push(format!("jindex/journal{jid}"));
        for kind in ["inum_range", "statfs_change", "quota_change"] {
            files.push(format!("per_node/{kind}{jid}"));
        }
    }
    // The superblock is read in 4096 bytes, whatever the size of blocks.
    let superblock = map.volume.geometry.superblock().get();
    let end = superblock + (4096 >> map.volume.geometry.bsize_shift()).max(1);
    let mut blocks: BTreeSet<u64> = (superblock..end).collect();
    blocks.insert(map.path(""));
    for file in files {
        let reader = map.reader();
        let dinode = BlockAddr::new(map.master(&file));
        let mut add = |owned: Owned| {
            blocks.extend(owned.extent.blocks().map(BlockAddr::get));
            Ok(())
        };
        owned_blocks(&reader, dinode, Scope::All, &mut add).unwrap();
        blocks.insert(dinode.get());
    }
    blocks
}

#[test]
fn metadata_is_read_once() {
    for name in ["clean1k", "clean4k"] {
        let image = fixture(name);
        let map = Map::new(&image);
        let mut system = system_blocks(&map);
        let (again, once) = read_again(&image, &map.volume, gfs2_fsck::MEMORY);
        // Before a group is believed its header is asked whether a group follows that the index does not know.
        let headers: Vec<u64> = map.groups().iter().map(|group| group.addr().get()).collect();
        system.extend(&headers);
        let strangers: Vec<&u64> = again.difference(&system).collect();
        assert!(
            strangers.is_empty(),
            "{name}: read again: {strangers:?} {headers:?}"
        );
        assert!(once > 1000, "{name}: {once}");
        // Without memory to keep them in, directories are read a second time, and nothing else is.
        let (again, _) = read_again(&image, &map.volume, 8);
        let others: Vec<u64> = again.difference(&system).copied().collect();
        let is_dir = |block: &u64| map.block(*block)[42] >> 4 == 4;
        assert!(
            !others.is_empty() && others.iter().all(is_dir),
            "{name}: {others:?}"
        );
    }
}
