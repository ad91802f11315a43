//! A journal: where it lies, its head, and the log between tail and head.

use super::report::{Item, List};
use gfs2_format::device::BlockDevice;
use gfs2_format::log::{
    DeviceJournal, Head, Header, JournalRead, decode_chunk, decode_header, find_head, plan_replay, tags,
};
use gfs2_format::ondisk::DescriptorType;
use gfs2_format::volume::JournalFile;
use gfs2_format::{Geometry, JournalBlock, Result};
use serde_json::{Value, json};

pub(super) fn journal(device: &dyn BlockDevice, geometry: &Geometry, file: &JournalFile, all: bool) -> Item {
    let mut item = Item::new("journal").titled(format!("journal{}", file.jid));
    let ring = file.map.ring();
    item.field("jid", file.jid, file.jid.get().into());
    item.field("dinode", file.dinode, file.dinode.get().into());
    item.field("blocks", ring.blocks(), ring.blocks().into());
    for (name, addr) in [
        ("statfs_change", file.statfs_change),
        ("quota_change", file.quota_change),
    ] {
        match addr {
            Some(addr) => item.field(name, addr, addr.get().into()),
            None => {
                item.field(name, "missing", Value::Null);
                item.problem(format!("per_node/{name}{} is missing", file.jid));
            }
        }
    }
    let reader = DeviceJournal::new(device, geometry, &file.map);
    match find_head(&reader, geometry) {
        Ok(Some(head)) => {
            show_head(&mut item, &head);
            if let Err(error) = show_replay(&mut item, &reader, file, geometry, &head) {
                item.problem(error);
            }
        }
        Ok(None) => item.problem("no valid log header"),
        Err(error) => item.problem(error),
    }
    let mut extents = List::new("extents");
    for extent in file.map.extents() {
        let text = format!(
            "{} (0x{:x}), {} block(s)",
            extent.start,
            extent.start.get(),
            extent.len
        );
        extents.row(text, json!({ "block": extent.start.get(), "blocks": extent.len }));
    }
    item.list(extents);
    let log = match find_head(&reader, geometry) {
        Ok(Some(head)) if !all => {
            let tail = ring.advance(head.header.tail, 0);
            let len = ring.distance(tail, head.position).saturating_add(1);
            show_log(&reader, geometry, tail, len)
        }
        _ => show_log(&reader, geometry, JournalBlock::new(0), ring.blocks()),
    };
    match log {
        Ok(list) => item.list(list),
        Err(error) => item.problem(error),
    }
    item
}

fn show_head(item: &mut Item, head: &Head) {
    let header = &head.header;
    let state = if header.is_clean() { "clean" } else { "dirty" };
    item.field("state", state, state.into());
    item.field("head", head.position, head.position.get().into());
    item.field("sequence", header.sequence, header.sequence.into());
    item.field("tail", header.tail, header.tail.get().into());
}

/// What a replay would do; of a clean journal nothing.
fn show_replay(
    item: &mut Item,
    reader: &DeviceJournal<'_>,
    file: &JournalFile,
    geometry: &Geometry,
    head: &Head,
) -> Result<()> {
    if head.header.is_clean() {
        return Ok(());
    }
    let counts = plan_replay(reader, &file.map, geometry, head)?.counts;
    let local = head.header.local;
    let text = format!(
        "{} of {} blocks, {} revoke tags, statfs change {:+} {:+} {:+}",
        counts.replayed, counts.found, counts.revokes, local.total, local.free, local.dinodes
    );
    let json = json!({
        "replayed": counts.replayed,
        "found": counts.found,
        "revokes": counts.revokes,
        "statfs_change": [local.total, local.free, local.dinodes],
    });
    item.field("replay", text, json);
    Ok(())
}

/// Headers and descriptors of `len` blocks from `from` on; what is neither is one row for each run.
fn show_log(reader: &DeviceJournal<'_>, geometry: &Geometry, from: JournalBlock, len: u32) -> Result<List> {
    let mut list = List::new("log");
    let mut block = vec![0; geometry.block_len()];
    let mut other: Option<(JournalBlock, u32)> = None;
    let flush = |list: &mut List, other: &mut Option<(JournalBlock, u32)>| {
        if let Some((first, count)) = other.take() {
            let json = json!({ "at": first.get(), "other_blocks": count });
            list.row(
                format!("{first}: {count} block(s) that are no part of a chunk"),
                json,
            );
        }
    };
    let mut done = 0;
    while done < len {
        let at = reader.ring().advance(from, done);
        reader.read(at, &mut block)?;
        if let Some(header) = decode_header(&block, None) {
            flush(&mut list, &mut other);
            list.row(header_text(at, &header), header_json(at, &header));
        } else if let Ok(chunk) = decode_chunk(&block, reader.address(at), geometry) {
            flush(&mut list, &mut other);
            let targets: Vec<u64> = tags(&block, &chunk).map(|tag| tag.target).collect();
            let (name, unit) = match chunk.kind {
                DescriptorType::Metadata => ("metadata", "block(s)"),
                DescriptorType::Jdata => ("jdata", "block(s)"),
                DescriptorType::Revoke => ("revoke", "revoke(s)"),
            };
            let text = format!("{at}: {name}, length {}, {} {unit}", chunk.length, chunk.count);
            let json = json!({
                "at": at.get(), "chunk": name, "length": chunk.length, "count": chunk.count,
                "targets": targets,
            });
            list.row(text, json);
            done = done.saturating_add(chunk.length - 1);
        } else {
            other = match other {
                Some((first, count)) => Some((first, count + 1)),
                None => Some((at, 1)),
            };
        }
        done = done.saturating_add(1);
    }
    flush(&mut list, &mut other);
    Ok(list)
}

fn header_text(at: JournalBlock, header: &Header) -> String {
    let flags: Vec<&str> = header.flags.iter_names().map(|(name, _)| name).collect();
    let local = header.local;
    format!(
        "{at}: header, sequence {}, tail {}, flags 0x{:x} ({}), by jid {}, statfs change {:+} {:+} {:+}",
        header.sequence,
        header.tail,
        header.flags.bits(),
        flags.join("|"),
        header.writer,
        local.total,
        local.free,
        local.dinodes
    )
}

fn header_json(at: JournalBlock, header: &Header) -> Value {
    let local = header.local;
    json!({
        "at": at.get(),
        "sequence": header.sequence,
        "tail": header.tail.get(),
        "blkno": header.blkno.get(),
        "flags": header.flags.bits(),
        "writer": header.writer.get(),
        "time": [header.time.sec, u64::from(header.time.nsec)],
        "statfs_change": [local.total, local.free, local.dinodes],
    })
}
