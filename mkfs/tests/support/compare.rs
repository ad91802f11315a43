//! Compares two volumes: structure by structure, so that a difference has a name, then block by block, so that none is
//! missed.
//!
//! What may differ: sequence numbers of journals (they start anywhere) with the two checksums that cover them, and the
//! reserved bytes of rindex entries (the original leaves garbage in them). Times are made equal beforehand.

use super::volume::{Inode, Volume};
use gfs2_format::ondisk::{LogHeader, RINDEX_SIZE, log_header_crc, log_header_hash, rgrp_crc, view};
use gfs2_format::{BlockAddr, InodeNum};
use rustix::fs::SeekFrom;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs::File;
use std::ops::Range;

/// Differences beyond this many are not listed.
const ENOUGH: usize = 20;

/// Collects differences.
#[derive(Debug, Default)]
pub(crate) struct Differences(Vec<String>);

impl Differences {
    fn equal<T: PartialEq + Debug>(&mut self, what: &str, theirs: &T, ours: &T) {
        if theirs != ours && self.0.len() < ENOUGH {
            self.0
                .push(format!("{what}:\n  theirs {theirs:?}\n  ours   {ours:?}"));
        }
    }

    fn say(&mut self, text: String) {
        if self.0.len() < ENOUGH {
            self.0.push(text);
        }
    }

    /// All of them, or nothing.
    pub(crate) fn text(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| self.0.join("\n"))
    }
}

/// Compares the volume the original made with ours.
pub(crate) fn compare(theirs: &Volume, ours: &Volume) -> Differences {
    let mut diff = Differences::default();
    diff.equal("superblock", &theirs.sb, &ours.sb);
    if diff.text().is_some() {
        return diff;
    }
    let mut masks = Masks::default();
    compare_rindex(theirs, ours, &mut masks, &mut diff);
    compare_journals(theirs, ours, &mut masks, &mut diff);
    for (name, num) in [
        ("master", theirs.sb.master_dir.num()),
        ("root", theirs.sb.root_dir.num()),
    ] {
        compare_tree(theirs, ours, name, num, &mut diff, &mut BTreeSet::new());
    }
    if diff.text().is_none() {
        compare_raw(theirs, ours, &masks, &mut diff);
    }
    diff
}

/// Bytes that may differ.
#[derive(Debug, Default)]
struct Masks {
    /// Journals' logs, by first block, with their length.
    logs: Vec<Range<u64>>,
    /// Byte ranges on the device.
    bytes: BTreeMap<u64, u64>,
}

impl Masks {
    /// Blanks the bytes of a block that may differ.
    fn blank(&self, volume: &Volume, addr: u64, block: &mut [u8]) {
        if self.logs.iter().any(|log| log.contains(&addr)) {
            block[24..32].fill(0);
            block[44..52].fill(0);
        }
        let start = addr << volume.geometry.bsize_shift();
        let end = start + block.len() as u64;
        for (from, to) in self.bytes.range(start.saturating_sub(64)..end) {
            let from = (*from).max(start) - start;
            let to = (*to).min(end).saturating_sub(start);
            if from < to {
                block[from as usize..to as usize].fill(0);
            }
        }
    }
}

fn compare_rindex(theirs: &Volume, ours: &Volume, masks: &mut Masks, diff: &mut Differences) {
    let ((inode, their_entries), (_, our_entries)) = (theirs.rindex(), ours.rindex());
    diff.equal("number of groups", &their_entries.len(), &our_entries.len());
    for (n, (a, b)) in their_entries.iter().zip(&our_entries).enumerate() {
        let key = |e: &gfs2_format::ondisk::RindexEntry| {
            [
                e.addr.get(),
                u64::from(e.length.get()),
                e.data0.get(),
                u64::from(e.data.get()),
                u64::from(e.bitbytes.get()),
            ]
        };
        diff.equal(&format!("rindex entry {n}"), &key(a), &key(b));
        diff.equal(
            &format!("reserved bytes of our rindex entry {n}"),
            &(0, [0; 64]),
            &(b.pad.get(), b.reserved),
        );
        let (a, b) = (theirs.group(a), ours.group(b));
        diff.equal(&format!("header of group {n}"), &a.header, &b.header);
        diff.equal(
            &format!("rg_crc of group {n}"),
            &rgrp_crc(&b.header),
            &b.header.crc.get(),
        );
        if a.blocks != b.blocks {
            let at = a.blocks.iter().zip(&b.blocks).position(|(a, b)| a != b);
            diff.say(format!(
                "bitmaps of group {n} differ from byte {:?} on",
                at.unwrap_or_default()
            ));
        }
    }
    mask_rindex(theirs, &inode, masks);
}

fn mask_rindex(volume: &Volume, inode: &Inode, masks: &mut Masks) {
    let shift = volume.geometry.bsize_shift();
    let bs = volume.bs() as u64;
    let place = |offset: u64| match inode.data.get((offset / bs) as usize) {
        Some(block) => (block << shift) + offset % bs,
        None => (inode.di.num.addr.get() << shift) + 232 + offset,
    };
    for entry in (0..inode.di.size.get()).step_by(RINDEX_SIZE) {
        for field in [12..16, 32..RINDEX_SIZE as u64] {
            // Byte by byte: fields may straddle blocks that do not follow each other.
            for offset in field {
                let at = place(entry + offset);
                masks.bytes.insert(at, at + 1);
            }
        }
    }
}

fn compare_journals(theirs: &Volume, ours: &Volume, masks: &mut Masks, diff: &mut Differences) {
    let (a, b) = (theirs.journals(), ours.journals());
    diff.equal("number of journals", &a.len(), &b.len());
    for (jid, (a, b)) in a.iter().zip(&b).enumerate() {
        diff.equal(&format!("dinode of journal{jid}"), &a.di, &b.di);
        diff.equal(&format!("blocks of journal{jid}"), &a.data, &b.data);
        let Some(first) = b.data.first().copied() else {
            diff.say(format!("journal{jid} is empty"));
            continue;
        };
        let log = first..first + b.data.len() as u64;
        check_log(ours, jid, &b.data, diff);
        masks.logs.push(log);
    }
}

/// Our log is full of headers with valid checksums whose sequence goes up by one and drops once.
fn check_log(volume: &Volume, jid: usize, log: &[u64], diff: &mut Differences) {
    let blocks = log.len() as u64;
    let mut first = None;
    for chunk in (0..blocks).step_by(1024) {
        let count = (blocks - chunk).min(1024);
        let bytes = volume.blocks(log[chunk as usize], count);
        for (n, block) in bytes.chunks_exact(volume.bs()).enumerate() {
            let blkno = chunk + n as u64;
            let header: &LogHeader = view(block, 0, BlockAddr::new(log[blkno as usize])).unwrap();
            let start = *first.get_or_insert(header.sequence.get());
            let good = header.sequence.get() == (start + blkno) % blocks
                && u64::from(header.blkno.get()) == blkno
                && header.hash.get() == log_header_hash(block)
                && header.crc.get() == log_header_crc(block);
            if !good {
                diff.say(format!("journal{jid} block {blkno}: {header:?}"));
                return;
            }
        }
    }
}

fn compare_tree(
    theirs: &Volume,
    ours: &Volume,
    path: &str,
    num: InodeNum,
    diff: &mut Differences,
    seen: &mut BTreeSet<u64>,
) {
    if !seen.insert(num.addr.get()) {
        return;
    }
    let (a, b) = (theirs.inode(num), ours.inode(num));
    diff.equal(&format!("dinode of {path}"), &a.di, &b.di);
    diff.equal(
        &format!("pointer blocks of {path}"),
        &a.indirect.keys().collect::<Vec<_>>(),
        &b.indirect.keys().collect::<Vec<_>>(),
    );
    diff.equal(&format!("blocks of {path}"), &a.data, &b.data);
    if !a.di.is_dir() || !b.di.is_dir() {
        return;
    }
    let ((their_entries, their_leaves), (our_entries, our_leaves)) = (theirs.entries(&a), ours.entries(&b));
    diff.equal(&format!("entries of {path}"), &their_entries, &our_entries);
    diff.equal(
        &format!("leaves of {path}"),
        &their_leaves.keys().collect::<Vec<_>>(),
        &our_leaves.keys().collect::<Vec<_>>(),
    );
    for (addr, leaf) in &their_leaves {
        if our_leaves.get(addr).is_some_and(|ours| ours != leaf) {
            diff.say(format!("leaf {addr} of {path} differs"));
        }
    }
    for entry in their_entries {
        let below = format!("{path}/{}", entry.name);
        if our_entries.contains(&entry) {
            compare_tree(theirs, ours, &below, entry.num, diff, seen);
        }
    }
}

/// Ranges of a file that are not holes.
fn data_ranges(file: &File, size: u64) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let Ok(start) = rustix::fs::seek(file, SeekFrom::Data(at)) else {
            break;
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap().min(size);
        ranges.push(start..end);
        at = end;
    }
    ranges
}

/// Every block that is not a hole in one of the two.
fn compare_raw(theirs: &Volume, ours: &Volume, masks: &Masks, diff: &mut Differences) {
    const CHUNK: u64 = 1 << 20;
    let bs = volume_bs(theirs);
    let size = theirs.file.metadata().unwrap().len();
    diff.equal("size of the image", &size, &ours.file.metadata().unwrap().len());
    let mut chunks = BTreeSet::new();
    for volume in [theirs, ours] {
        for range in data_ranges(&volume.file, size) {
            chunks.extend(range.start / CHUNK..range.end.div_ceil(CHUNK));
        }
    }
    for chunk in chunks {
        let start = chunk * CHUNK / bs;
        let count = (CHUNK.min(size - chunk * CHUNK)) / bs;
        let (a, b) = (theirs.blocks(start, count), ours.blocks(start, count));
        if a == b {
            continue;
        }
        let pairs = a.chunks_exact(bs as usize).zip(b.chunks_exact(bs as usize));
        for (n, (a, b)) in pairs.enumerate().filter(|(_, (a, b))| a != b) {
            let addr = start + n as u64;
            let (mut a, mut b) = (a.to_vec(), b.to_vec());
            masks.blank(theirs, addr, &mut a);
            masks.blank(theirs, addr, &mut b);
            if let Some(at) = a.iter().zip(&b).position(|(a, b)| a != b) {
                diff.say(format!(
                    "block {addr} differs from byte {at} on: theirs {:02x?}, ours {:02x?}",
                    &a[at..(at + 16).min(a.len())],
                    &b[at..(at + 16).min(b.len())]
                ));
            }
        }
    }
}

fn volume_bs(volume: &Volume) -> u64 {
    volume.bs() as u64
}
