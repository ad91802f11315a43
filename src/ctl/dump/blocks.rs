//! What stands in one block: its structure's fields, then what follows them.

use super::report::{Item, List, hex_rows, name_hex, printable};
use gfs2_format::describe::{structure, structure_of_block};
use gfs2_format::log::{decode_chunk, descriptor_revokes, tags};
use gfs2_format::ondisk::{
    DINODE_SIZE, DIRENT_SIZE, DescriptorType, Dinode, DinodeFlags, Dirent, EA_HEADER_SIZE, EaHeader, EaType,
    FileType, LEAF_SIZE, META_HEADER_SIZE, MetaHeader, MetaType, OnDisk, Rgrp, view,
};
use gfs2_format::{BlockAddr, Geometry};
use serde_json::{Value, json};

/// Bytes of contents shown without `--all`.
const PREVIEW: usize = 256;

/// Any block, by what its meta header says it is.
pub(super) fn block(bytes: &[u8], addr: BlockAddr, geometry: &Geometry, all: bool) -> Item {
    let Some(described) = structure_of_block(bytes) else {
        let mut item = Item::at_block("data", addr);
        item.list(hex(bytes, 0, all));
        return item;
    };
    let mut item = Item::at_block(described.name, addr);
    item.structure(described, bytes);
    match described.block_type {
        Some(MetaType::Di) => dinode_rest(&mut item, bytes, geometry, all),
        Some(MetaType::In) => item.list(pointers(bytes, META_HEADER_SIZE)),
        Some(MetaType::Jd) => item.list(hash_slots(bytes, META_HEADER_SIZE)),
        Some(MetaType::Lf) => dirents(&mut item, bytes, LEAF_SIZE, addr),
        Some(MetaType::Ld) => descriptor_rest(&mut item, bytes, addr, geometry),
        Some(MetaType::Lb) => item.list(revokes(words(bytes, META_HEADER_SIZE).filter(|n| *n != 0))),
        Some(MetaType::Ea) => ea_records(&mut item, bytes, addr),
        Some(MetaType::Ed) => item.list(hex(bytes, META_HEADER_SIZE, all)),
        Some(MetaType::Qc) => item.list(quota_slots(bytes)),
        Some(MetaType::Rg) => rgrp_checksum(&mut item, bytes, addr),
        _ => {}
    }
    item
}

fn words(bytes: &[u8], from: usize) -> impl Iterator<Item = u64> + '_ {
    let (words, _) = bytes.get(from..).unwrap_or_default().as_chunks::<8>();
    words.iter().map(|word| u64::from_be_bytes(*word))
}

/// Bytes from an offset on, all of them or the first few.
pub(super) fn hex(bytes: &[u8], from: usize, all: bool) -> List {
    let mut list = List::new("bytes");
    let rest = bytes.get(from..).unwrap_or_default();
    let shown = if all { rest.len() } else { rest.len().min(PREVIEW) };
    hex_rows(&mut list, rest.get(..shown).unwrap_or_default(), from);
    if shown < rest.len() {
        let left = rest.len() - shown;
        list.row(
            format!("({left} more bytes; --all shows them)"),
            json!({ "left_out": left }),
        );
    }
    list
}

/// Block pointers that are not zero, runs of neighbours in one row.
fn pointers(bytes: &[u8], from: usize) -> List {
    let mut list = List::new("pointers");
    let mut run: Option<(usize, u64, u64)> = None;
    let mut show = |run: Option<(usize, u64, u64)>| {
        if let Some((index, start, len)) = run {
            let text = format!("{index}: {start} (0x{start:x}), {len} block(s)");
            list.row(text, json!({ "index": index, "block": start, "blocks": len }));
        }
    };
    for (index, word) in words(bytes, from).enumerate() {
        run = match run {
            Some((first, start, len)) if word != 0 && start.checked_add(len) == Some(word) => {
                Some((first, start, len + 1))
            }
            other => {
                show(other);
                (word != 0).then_some((index, word, 1))
            }
        };
    }
    show(run);
    list
}

/// Slots of a hash table; those of one leaf in one row.
fn hash_slots(bytes: &[u8], from: usize) -> List {
    let mut list = List::new("leaves");
    let slots: Vec<u64> = words(bytes, from).collect();
    let mut first = 0;
    for part in slots.chunk_by(|a, b| a == b) {
        let last = first + part.len() - 1;
        let leaf = part.first().copied().unwrap_or(0);
        let text = format!("slots {first} to {last}: {leaf} (0x{leaf:x})");
        list.row(text, json!({ "first": first, "last": last, "block": leaf }));
        first = last + 1;
    }
    list
}

/// What follows a dinode, by what the dinode itself says: it may be a copy in a journal.
fn dinode_rest(item: &mut Item, bytes: &[u8], geometry: &Geometry, all: bool) {
    let addr = view::<Dinode>(bytes, 0, BlockAddr::default())
        .map_or_else(|_| BlockAddr::default(), |di| di.num.num().addr);
    let di = match Dinode::decode(bytes, addr, geometry) {
        Ok(di) => di,
        Err(error) => {
            item.problem(error);
            return;
        }
    };
    if di.flags().contains(DinodeFlags::EXHASH) && di.height.get() == 0 {
        item.list(hash_slots(bytes, DINODE_SIZE));
    } else if di.height.get() > 0 {
        item.list(pointers(bytes, DINODE_SIZE));
    } else if di.is_dir() {
        dirents(item, bytes, DINODE_SIZE, addr);
    } else {
        let len = usize::try_from(di.size.get()).unwrap_or(usize::MAX);
        let end = DINODE_SIZE.saturating_add(len);
        let contents = bytes.get(..end).unwrap_or(bytes);
        if di.file_type() == Some(FileType::Symlink) {
            let target = printable(contents.get(DINODE_SIZE..).unwrap_or_default());
            item.field("target", &target, Value::from(target.as_str()));
        } else if len > 0 {
            item.list(hex(contents, DINODE_SIZE, all));
        }
    }
}

/// The records of a directory area as they stand there, sentinels too.
fn dirents(item: &mut Item, bytes: &[u8], from: usize, addr: BlockAddr) {
    let mut list = List::new("dirents");
    let mut at = from;
    while at < bytes.len() {
        let de: &Dirent = match view(bytes, at, addr) {
            Ok(de) => de,
            Err(error) => {
                item.problem(error);
                break;
            }
        };
        let start = at.saturating_add(DIRENT_SIZE);
        let end = start.saturating_add(usize::from(de.name_len.get()));
        let name = bytes.get(start..end).unwrap_or_default();
        list.row(dirent_text(de, name, at), dirent_json(de, name, at));
        let step = usize::from(de.rec_len.get());
        if step < DIRENT_SIZE || at.saturating_add(step) > bytes.len() {
            item.problem(format!("block {addr}: dirent at byte {at}: de_rec_len is {step}"));
            break;
        }
        at = at.saturating_add(step);
    }
    item.list(list);
}

fn dirent_text(de: &Dirent, name: &[u8], at: usize) -> String {
    if de.is_sentinel() {
        return format!("byte {at}: empty, {} bytes", de.rec_len.get());
    }
    let (num, kind) = (de.inum.num(), de.de_type.get());
    format!(
        "byte {at}: {:?} -> {} (formal {}), type {kind}, hash 0x{:08x}, {} bytes",
        printable(name),
        num.addr,
        num.formal,
        de.hash.get(),
        de.rec_len.get()
    )
}

fn dirent_json(de: &Dirent, name: &[u8], at: usize) -> Value {
    let num = de.inum.num();
    json!({
        "offset": at,
        "name": if de.is_sentinel() { Value::Null } else { printable(name).into() },
        "name_hex": name_hex(name),
        "no_addr": num.addr.get(),
        "no_formal_ino": num.formal.get(),
        "de_hash": de.hash.get(),
        "de_rec_len": de.rec_len.get(),
        "de_type": de.de_type.get(),
    })
}

fn descriptor_rest(item: &mut Item, bytes: &[u8], addr: BlockAddr, geometry: &Geometry) {
    let chunk = match decode_chunk(bytes, addr, geometry) {
        Ok(chunk) => chunk,
        Err(error) => {
            item.problem(error);
            return;
        }
    };
    if chunk.kind == DescriptorType::Revoke {
        item.list(revokes(descriptor_revokes(bytes, chunk.count)));
        return;
    }
    let mut list = List::new("tags");
    for tag in tags(bytes, &chunk) {
        let escaped = if tag.escaped { ", escaped" } else { "" };
        let json = json!({ "block": tag.target, "escaped": tag.escaped });
        list.row(format!("{} (0x{:x}){escaped}", tag.target, tag.target), json);
    }
    item.list(list);
}

fn revokes(blocks: impl Iterator<Item = u64>) -> List {
    let mut list = List::new("revokes");
    for block in blocks {
        list.row(format!("{block} (0x{block:x})"), block.into());
    }
    list
}

/// The records of an EA block.
fn ea_records(item: &mut Item, bytes: &[u8], addr: BlockAddr) {
    let mut list = List::new("xattrs");
    let mut at = META_HEADER_SIZE;
    while at < bytes.len() {
        let ea: &EaHeader = match view(bytes, at, addr) {
            Ok(ea) => ea,
            Err(error) => {
                item.problem(error);
                break;
            }
        };
        list.item(ea_record(ea, bytes, at));
        let step = ea.rec_len.get() as usize;
        if ea.flags & 1 != 0 {
            break;
        }
        if step < EA_HEADER_SIZE || at.saturating_add(step) > bytes.len() {
            item.problem(format!(
                "block {addr}: ea_header at byte {at}: ea_rec_len is {step}"
            ));
            break;
        }
        at = at.saturating_add(step);
    }
    item.list(list);
}

fn ea_record(ea: &EaHeader, bytes: &[u8], at: usize) -> Item {
    let name_at = at.saturating_add(EA_HEADER_SIZE);
    let value_at = name_at.saturating_add(usize::from(ea.name_len));
    let name = bytes.get(name_at..value_at).unwrap_or_default();
    let space = EaType::from_raw(ea.ea_type).map_or("?.", EaType::prefix);
    let unused = ea.ea_type == EaType::Unused as u8;
    let mut item = Item::at_offset("ea_header", at);
    if let Some(described) = structure(EaHeader::NAME) {
        item.structure(described, bytes.get(at..).unwrap_or_default());
    }
    if unused {
        return item;
    }
    let full = format!("{space}{}", printable(name));
    item.field("name", format!("{full:?}"), full.as_str().into());
    if ea.num_ptrs == 0 {
        let end = value_at.saturating_add(ea.data_len.get() as usize);
        let value = printable(bytes.get(value_at..end).unwrap_or_default());
        item.field("value", format!("{value:?}"), value.as_str().into());
    } else {
        // The pointers begin at the next multiple of 8 bytes behind the name, counted from the name's start.
        let padded = usize::from(ea.name_len).next_multiple_of(8);
        let from = name_at.saturating_add(padded);
        let mut list = List::new("value_blocks");
        for block in words(bytes, from).take(usize::from(ea.num_ptrs)) {
            list.row(format!("{block} (0x{block:x})"), block.into());
        }
        item.list(list);
    }
    item
}

fn quota_slots(bytes: &[u8]) -> List {
    let mut list = List::new("slots");
    let (slots, _) = bytes
        .get(META_HEADER_SIZE..)
        .unwrap_or_default()
        .as_chunks::<16>();
    for (n, slot) in slots.iter().enumerate().filter(|(_, slot)| **slot != [0; 16]) {
        let mut item = Item::new(&format!("quota_change {n}"));
        if let Some(described) = structure("quota_change") {
            item.structure(described, slot);
        }
        list.item(item);
    }
    list
}

fn rgrp_checksum(item: &mut Item, bytes: &[u8], addr: BlockAddr) {
    let Ok(rgrp) = view::<Rgrp>(bytes, 0, addr) else {
        return;
    };
    let (stored, right) = (rgrp.crc.get(), gfs2_format::ondisk::rgrp_crc(rgrp));
    if stored != 0 && stored != right {
        item.problem(format!(
            "block {addr}: rgrp.rg_crc: found 0x{stored:08x}, expected 0x{right:08x} (or 0: unset)"
        ));
    }
}

/// Does the block carry the meta header of an indirect block?
pub(super) fn is_indirect(bytes: &[u8], addr: BlockAddr) -> bool {
    MetaHeader::check(bytes, addr, MetaType::In).is_ok()
}

/// The pointers of an indirect block up to the first zero: how the list of EA blocks ends.
pub(super) fn leading_pointers(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    words(bytes, META_HEADER_SIZE).take_while(|n| *n != 0)
}
