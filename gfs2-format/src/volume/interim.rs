//! Lookup and mapping of system files until `tree` and `dir` are here: same signatures, reading only.

use crate::addr::{BlockAddr, Extent, FileBlock, InodeNum};
use crate::edit::{Block, BlockRead};
use crate::error::{Error, Expected, Result};
use crate::ondisk::{
    DINODE_SIZE, DIRENT_SIZE, Dinode, DinodeFlags, Dirent, FileType, LEAF_SIZE, Leaf, META_HEADER_SIZE,
    MetaHeader, MetaType, name_hash, view,
};
use std::collections::HashSet;

pub(super) enum Mapping {
    Data(Extent),
    Hole,
}

pub(super) struct Found {
    pub(super) num: InodeNum,
    pub(super) kind: FileType,
}

fn pointer(
    reader: &dyn BlockRead,
    block: &[u8],
    at: BlockAddr,
    head: usize,
    n: usize,
) -> Result<Option<BlockAddr>> {
    let offset = head.saturating_add(n.saturating_mul(8));
    let raw = block
        .get(offset..)
        .and_then(|rest| rest.first_chunk::<8>())
        .map_or(0, |w| u64::from_be_bytes(*w));
    reader
        .geometry()
        .check_pointer(raw, at, "pointer block", "pointer")
}

pub(super) fn map(
    reader: &dyn BlockRead,
    addr: BlockAddr,
    dinode: &[u8],
    lblock: FileBlock,
    max_len: u64,
) -> Result<Mapping> {
    let geometry = reader.geometry();
    let di = Dinode::decode(dinode, addr, geometry)?;
    let inptrs = geometry.inptrs();
    let mut index = Vec::new();
    let mut rest = lblock.get();
    for _ in 0..di.height.get() {
        index.push(usize::try_from(rest % inptrs).unwrap_or(0));
        rest /= inptrs;
    }
    if rest != 0 || index.is_empty() {
        return Ok(Mapping::Hole);
    }
    let mut at = addr;
    let mut block = Block::from(dinode);
    let mut head = DINODE_SIZE;
    while index.len() > 1 {
        let n = index.pop().unwrap_or(0);
        let Some(next) = pointer(reader, &block, at, head, n)? else {
            return Ok(Mapping::Hole);
        };
        block = reader.read(next)?;
        MetaHeader::check(&block, next, MetaType::In)?;
        (at, head) = (next, META_HEADER_SIZE);
    }
    let n = index.pop().unwrap_or(0);
    let Some(start) = pointer(reader, &block, at, head, n)? else {
        return Ok(Mapping::Hole);
    };
    let mut len = 1u32;
    let slots = (block.len().saturating_sub(head)) / 8;
    while u64::from(len) < max_len && n.saturating_add(len as usize) < slots {
        let next = pointer(reader, &block, at, head, n.saturating_add(len as usize))?;
        if next.is_none() || next != start.checked_add(u64::from(len)) {
            break;
        }
        len = len.saturating_add(1);
    }
    Ok(Mapping::Data(Extent { start, len }))
}

fn scan(block: &[u8], at: BlockAddr, first: usize, name: &[u8]) -> Result<Option<Found>> {
    let mut offset = first;
    while offset < block.len() {
        let de: &Dirent = view(block, offset, at)?;
        let rec_len = usize::from(de.rec_len.get());
        let name_len = usize::from(de.name_len.get());
        let end = offset.saturating_add(rec_len);
        if rec_len < DIRENT_SIZE || rec_len % 8 != 0 || end > block.len() {
            let expected = Expected::Rule("a multiple of 8, at least 40, inside the block");
            return Err(Error::corrupt(
                at,
                "dirent",
                "de_rec_len",
                rec_len as u64,
                expected,
            ));
        }
        let start = offset.saturating_add(DIRENT_SIZE);
        if !de.is_sentinel() && block.get(start..start.saturating_add(name_len)) == Some(name) {
            let Some(kind) = FileType::from_dirent_type(de.de_type.get()) else {
                let expected = Expected::Rule("a file type");
                let found = u64::from(de.de_type.get());
                return Err(Error::corrupt(at, "dirent", "de_type", found, expected));
            };
            return Ok(Some(Found {
                num: de.inum.num(),
                kind,
            }));
        }
        offset = end;
    }
    Ok(None)
}

fn first_leaf(
    reader: &dyn BlockRead,
    dir: BlockAddr,
    block: &[u8],
    di: &Dinode,
    name: &[u8],
) -> Result<Option<BlockAddr>> {
    let slot = u64::from(name_hash(name))
        .checked_shr(32 - u32::from(di.depth.get()))
        .unwrap_or(0);
    if di.height.get() == 0 {
        return pointer(reader, block, dir, DINODE_SIZE, slot as usize);
    }
    let per_block = reader.geometry().jbsize() / 8;
    let Mapping::Data(extent) = map(reader, dir, block, FileBlock::new(slot / per_block), 1)? else {
        return Ok(None);
    };
    let hash = reader.read(extent.start)?;
    MetaHeader::check(&hash, extent.start, MetaType::Jd)?;
    pointer(
        reader,
        &hash,
        extent.start,
        META_HEADER_SIZE,
        (slot % per_block) as usize,
    )
}

pub(super) fn lookup(reader: &dyn BlockRead, dir: BlockAddr, name: &[u8]) -> Result<Option<Found>> {
    let block = reader.read(dir)?;
    let di = Dinode::decode(&block, dir, reader.geometry())?;
    if !di.is_dir() {
        let expected = Expected::Rule("a directory");
        return Err(Error::corrupt(
            dir,
            "dinode",
            "di_mode",
            u64::from(di.mode.get()),
            expected,
        ));
    }
    if !di.flags().contains(DinodeFlags::EXHASH) {
        return scan(&block, dir, DINODE_SIZE, name);
    }
    let mut next = first_leaf(reader, dir, &block, di, name)?;
    let mut seen = HashSet::new();
    while let Some(at) = next {
        if !seen.insert(at) {
            let expected = Expected::Rule("a chain without a cycle");
            return Err(Error::corrupt(at, "leaf", "lf_next", at.get(), expected));
        }
        let bytes = reader.read(at)?;
        MetaHeader::check(&bytes, at, MetaType::Lf)?;
        if let Some(found) = scan(&bytes, at, LEAF_SIZE, name)? {
            return Ok(Some(found));
        }
        let leaf: &Leaf = view(&bytes, 0, at)?;
        next = reader
            .geometry()
            .check_pointer(leaf.next.get(), at, "leaf", "lf_next")?;
    }
    Ok(None)
}
