//! Goal: directories of any number of entries hold each of them once, where a reader looks for it.
//! Method: build per_node-like directories at every block size, then walk the blocks with the format's own decoders.

use super::*;
use crate::alloc::Cursor;
use crate::layout::Layout;
use crate::options::{Options, Topology};
use gfs2_format::ondisk::{Dinode, META_HEADER_SIZE, view};
use gfs2_format::{BlockAddr, FormalIno};
use std::collections::{BTreeMap, BTreeSet};

type Blocks = BTreeMap<u64, Vec<u8>>;

fn build(bsize: u32, entries: u64) -> (Layout, u64, Blocks) {
    let options = Options {
        block_size: Some(bsize),
        ..Options::nolock()
    };
    let layout = Layout::new(&options, &Topology::of_size(1 << 30), &mut Vec::new()).unwrap();
    let mut blocks = Blocks::new();
    let mut sink = |addr, bytes: &[u8]| {
        assert!(
            blocks.insert(addr, bytes.to_vec()).is_none(),
            "block {addr} twice"
        );
        Ok(())
    };
    let mut b = Builder {
        geometry: layout.geometry().clone(),
        cursor: Cursor::new(&layout).unwrap(),
        sink: &mut sink,
        next_formal: 1,
        time: 0,
    };
    let num = b.new_num().unwrap();
    let mut dir = Inode::new_dir(&b, num, 0o700, DinodeFlags::SYSTEM, num);
    for n in 0..entries {
        let name = format!("quota_change{n}");
        let inum = InodeNum {
            formal: FormalIno::new(n + 2),
            addr: BlockAddr::new(1_000_000 + n),
        };
        dir.add_entry(&mut b, &Record::new(inum, FileType::Regular, name.as_bytes()))
            .unwrap();
    }
    dir.finish(&mut b).unwrap();
    (layout, num.addr.get(), blocks)
}

/// Bytes of a file, by its pointers.
fn contents(blocks: &Blocks, addr: u64, height: u16, first: usize, last: usize) -> Vec<u8> {
    let block = &blocks[&addr];
    if height == 0 {
        return block[last..].to_vec();
    }
    block[first..]
        .chunks_exact(8)
        .map(|p| u64::from_be_bytes(p.try_into().unwrap()))
        .take_while(|p| *p != 0)
        .flat_map(|p| contents(blocks, p, height - 1, META_HEADER_SIZE, META_HEADER_SIZE))
        .collect()
}

fn table(blocks: &Blocks, addr: u64) -> (Dinode, Vec<u64>) {
    let di = *view::<Dinode>(&blocks[&addr], 0, BlockAddr::new(addr)).unwrap();
    let bytes = contents(blocks, addr, di.height.get(), DINODE_SIZE, DINODE_SIZE);
    let table = bytes[..di.size.get() as usize]
        .chunks_exact(8)
        .map(|p| u64::from_be_bytes(p.try_into().unwrap()))
        .collect();
    (di, table)
}

#[test]
fn entries_are_found_where_their_hash_says() {
    for (bsize, entries) in [(512, 700), (1024, 700), (2048, 700), (4096, 3000), (4096, 60)] {
        let (_, addr, mut blocks) = build(bsize, entries);
        let (di, table) = table(&blocks, addr);
        assert_eq!(u64::from(di.entries.get()), entries + 2);
        assert_eq!(di.blocks.get() as usize, blocks.len(), "bs {bsize}");
        if !di.flags().contains(DinodeFlags::EXHASH) {
            let found = names(blocks.get_mut(&addr).unwrap(), DINODE_SIZE);
            assert_eq!(found.len() as u64, entries + 2);
            continue;
        }
        assert_eq!(table.len(), 1 << di.depth.get());
        let mut seen = BTreeSet::new();
        for leaf_addr in table.iter().collect::<BTreeSet<_>>() {
            let block = blocks.get_mut(leaf_addr).unwrap();
            let leaf = *leaf_of(block);
            let slots = table.iter().filter(|slot| *slot == leaf_addr).count();
            assert_eq!(
                slots,
                1 << (di.depth.get() - leaf.depth.get()),
                "leaf {leaf_addr}"
            );
            let found = names(block, LEAF_SIZE);
            assert_eq!(found.len(), usize::from(leaf.entries.get()));
            for name in found {
                let slot = name_hash(&name) >> (32 - u32::from(di.depth.get()));
                assert_eq!(table[slot as usize], *leaf_addr);
                assert!(seen.insert(name));
            }
        }
        assert_eq!(seen.len() as u64, entries + 2);
    }
}

#[test]
fn records_tile_their_area_to_the_end() {
    let (_, addr, mut blocks) = build(512, 300);
    for (at, block) in &mut blocks {
        let first = match block[7] {
            6 => LEAF_SIZE,
            _ => continue,
        };
        let last = *offsets(block, first).last().unwrap();
        let end = last + usize::from(dirent_of(block, last).rec_len.get());
        assert_eq!(end, 512, "leaf {at} of {addr}");
    }
}
