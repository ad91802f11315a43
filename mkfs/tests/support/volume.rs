//! Reads a volume by following it from its superblock, with nothing of the code under test but the decoders.

use gfs2_format::ondisk::{
    DINODE_SIZE, DIRENT_SIZE, Dinode, DinodeFlags, Dirent, LEAF_SIZE, Leaf, META_HEADER_SIZE, MetaHeader,
    MetaType, RINDEX_SIZE, Rgrp, RindexEntry, Superblock, view,
};
use gfs2_format::{BlockAddr, Geometry, InodeNum};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use zerocopy::FromBytes;

/// An opened volume.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) file: File,
    pub(crate) sb: Superblock,
    pub(crate) geometry: Geometry,
}

/// A file: dinode's block, where its contents lie, in order.
#[derive(Debug, Clone)]
pub(crate) struct Inode {
    pub(crate) di: Dinode,
    pub(crate) block: Vec<u8>,
    /// Pointer blocks, address and bytes.
    pub(crate) indirect: BTreeMap<u64, Vec<u8>>,
    /// Blocks of the contents; empty when stuffed.
    pub(crate) data: Vec<u64>,
}

/// A directory entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) num: InodeNum,
    pub(crate) de_type: u16,
}

/// A resource group as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) header: Rgrp,
    pub(crate) blocks: Vec<u8>,
}

impl Volume {
    pub(crate) fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let size = file.metadata().unwrap().len();
        let mut bytes = [0; 512];
        file.read_exact_at(&mut bytes, 65536).unwrap();
        let sb = Superblock::decode(&bytes).unwrap();
        let bsize = sb.bsize.get();
        let geometry = Geometry::new(bsize, size / u64::from(bsize)).unwrap();
        Self { file, sb, geometry }
    }

    pub(crate) fn bs(&self) -> usize {
        self.geometry.block_len()
    }

    pub(crate) fn block(&self, addr: u64) -> Vec<u8> {
        self.blocks(addr, 1)
    }

    pub(crate) fn blocks(&self, addr: u64, count: u64) -> Vec<u8> {
        let mut bytes = vec![0; count as usize * self.bs()];
        self.file
            .read_exact_at(&mut bytes, addr << self.geometry.bsize_shift())
            .unwrap_or_else(|e| panic!("block {addr}: {e}"));
        bytes
    }

    pub(crate) fn inode(&self, num: InodeNum) -> Inode {
        let block = self.block(num.addr.get());
        let di = *Dinode::decode(&block, num.addr, &self.geometry).unwrap();
        assert_eq!(di.inode_num(), num, "dinode and entry agree");
        let mut inode = Inode {
            di,
            block,
            indirect: BTreeMap::new(),
            data: Vec::new(),
        };
        let mut level: Vec<u64> = if di.height.get() == 0 {
            Vec::new()
        } else {
            pointers(&inode.block[DINODE_SIZE..])
        };
        for _ in 1..di.height.get() {
            level = level
                .into_iter()
                .flat_map(|addr| {
                    let block = self.block(addr);
                    MetaHeader::check(&block, BlockAddr::new(addr), MetaType::In).unwrap();
                    let next = pointers(&block[META_HEADER_SIZE..]);
                    inode.indirect.insert(addr, block);
                    next
                })
                .collect();
        }
        inode.data = level;
        inode
    }

    /// Bytes of a file, by its size.
    pub(crate) fn contents(&self, inode: &Inode) -> Vec<u8> {
        let size = inode.di.size.get() as usize;
        if inode.di.height.get() == 0 {
            return inode.block[DINODE_SIZE..DINODE_SIZE + size].to_vec();
        }
        let skip = if inode.di.is_dir() { META_HEADER_SIZE } else { 0 };
        let mut bytes: Vec<u8> = inode
            .data
            .iter()
            .flat_map(|addr| self.block(*addr).split_off(skip))
            .collect();
        bytes.truncate(size);
        bytes
    }

    /// Entries of a directory in the order of their blocks, and the leaves.
    pub(crate) fn entries(&self, dir: &Inode) -> (Vec<Entry>, BTreeMap<u64, Vec<u8>>) {
        let mut leaves = BTreeMap::new();
        if !dir.di.flags().contains(DinodeFlags::EXHASH) {
            return (records(&dir.block, DINODE_SIZE), leaves);
        }
        for slot in self.contents(dir).chunks_exact(8) {
            let mut addr = u64::from_be_bytes(slot.try_into().unwrap());
            while addr != 0 && !leaves.contains_key(&addr) {
                let block = self.block(addr);
                let leaf: &Leaf = view(&block, 0, BlockAddr::new(addr)).unwrap();
                let next = leaf.next.get();
                leaves.insert(addr, block);
                addr = next;
            }
        }
        let entries = leaves
            .values()
            .flat_map(|leaf| records(leaf, LEAF_SIZE))
            .collect();
        (entries, leaves)
    }

    pub(crate) fn lookup(&self, dir: &Inode, name: &str) -> Inode {
        let (entries, _) = self.entries(dir);
        let entry = entries
            .iter()
            .find(|entry| entry.name == name)
            .unwrap_or_else(|| panic!("no {name}"));
        self.inode(entry.num)
    }

    pub(crate) fn master(&self) -> Inode {
        self.inode(self.sb.master_dir.num())
    }

    pub(crate) fn rindex(&self) -> (Inode, Vec<RindexEntry>) {
        let inode = self.lookup(&self.master(), "rindex");
        let bytes = self.contents(&inode);
        assert_eq!(bytes.len() % RINDEX_SIZE, 0);
        let entries = bytes
            .chunks_exact(RINDEX_SIZE)
            .map(|entry| RindexEntry::read_from_bytes(entry).unwrap())
            .collect();
        (inode, entries)
    }

    pub(crate) fn group(&self, entry: &RindexEntry) -> Group {
        let blocks = self.blocks(entry.addr.get(), u64::from(entry.length.get()));
        let header = *view::<Rgrp>(&blocks, 0, BlockAddr::new(entry.addr.get())).unwrap();
        Group { header, blocks }
    }

    /// Journals by id, in order.
    pub(crate) fn journals(&self) -> Vec<Inode> {
        let jindex = self.lookup(&self.master(), "jindex");
        let (entries, _) = self.entries(&jindex);
        let names: BTreeMap<&str, &Entry> = entries.iter().map(|e| (e.name.as_str(), e)).collect();
        (0..)
            .map_while(|n| names.get(format!("journal{n}").as_str()))
            .map(|entry| self.inode(entry.num))
            .collect()
    }
}

fn pointers(area: &[u8]) -> Vec<u64> {
    area.chunks_exact(8)
        .map(|p| u64::from_be_bytes(p.try_into().unwrap()))
        .filter(|p| *p != 0)
        .collect()
}

fn records(block: &[u8], first: usize) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut at = first;
    while at < block.len() {
        let de: &Dirent = view(block, at, BlockAddr::new(0)).unwrap();
        let len = usize::from(de.name_len.get());
        if !de.is_sentinel() {
            entries.push(Entry {
                name: String::from_utf8_lossy(&block[at + DIRENT_SIZE..][..len]).into_owned(),
                num: de.inum.num(),
                de_type: de.de_type.get(),
            });
        }
        let step = usize::from(de.rec_len.get());
        assert!(step >= DIRENT_SIZE, "record length {step} at {at}");
        at += step;
    }
    assert_eq!(at, block.len(), "records end with their block");
    entries
}
