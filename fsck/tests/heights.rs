//! Goal: an inode whose height, depth or table size is wrong by one is one finding, and is repaired in place. Method:
//! every sort of inode on volumes of the kernel (stuffed, of each height, sparse, preallocated, with attributes,
//! journaled data, directories, system files, journals), each with a height too much and one too little; after the
//! repair every byte of the volume is as it was.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must fail"
)]

mod support;

use gfs2_format::device::{BlockDevice, LogEntry, MemDevice, RecordDevice};
use gfs2_format::log::LogTime;
use gfs2_format::ondisk::{Dinode, DinodeFlags, FileType, MetaHeader, MetaType, view};
use gfs2_format::volume::read_superblock;
use gfs2_format::{BlockAddr, Geometry};
use gfs2_fsck::{Collect, Kind, Outcome, Policy, check};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::mem::offset_of;
use support::fixture;

/// Inodes of one sort that are tried.
const OF_A_SORT: u32 = 1;

/// An inode and where it is.
struct Found {
    at: u64,
    di: Dinode,
    /// Has it a pointer, or content that could be taken for one?
    below: bool,
}

fn geometry(device: &MemDevice) -> Geometry {
    read_superblock(device).unwrap().1
}

/// Every sort of inode there is, a few of each.
fn sorts(device: &MemDevice) -> Vec<Found> {
    let geometry = geometry(device);
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let mut found = Vec::new();
    let mut bytes = vec![0; geometry.block_len()];
    for at in geometry.superblock().get() + 1..geometry.end() {
        let addr = BlockAddr::new(at);
        device.read_at(geometry.byte_offset(addr), &mut bytes).unwrap();
        let own = MetaHeader::check(&bytes, addr, MetaType::Di).is_ok();
        let di = *view::<Dinode>(&bytes, 0, addr).unwrap();
        if !own || di.num.addr.get() != at {
            continue;
        }
        let below = bytes[size_of::<Dinode>()..].iter().any(|byte| *byte != 0);
        let dense = di.size.get().div_ceil(u64::from(geometry.bsize())) < di.blocks.get();
        let sort = format!(
            "{:?} {} {:?} {} {} {} {}",
            di.file_type(),
            di.height.get(),
            di.flags() & (DinodeFlags::EXHASH | DinodeFlags::JDATA | DinodeFlags::SYSTEM),
            di.eattr.get() != 0,
            di.size.get() <= geometry.max_stuffed(),
            dense,
            below,
        );
        let count = counts.entry(sort).or_default();
        *count += 1;
        if *count <= OF_A_SORT {
            found.push(Found { at, di, below });
        }
    }
    found
}

fn run(device: &dyn BlockDevice, policy: &Policy) -> (Outcome, Collect) {
    let mut found = Collect {
        answer: true,
        ..Collect::default()
    };
    let outcome = check(device, policy, &mut found).unwrap();
    (outcome, found)
}

/// Where the volumes differ in what was written.
fn differs(image: &MemDevice, device: &RecordDevice<MemDevice>) -> Option<u64> {
    let log = device.log();
    let written = log.entries().iter().filter_map(|entry| match entry {
        LogEntry::Write { offset, bytes, .. } => Some((*offset, bytes.len())),
        _ => None,
    });
    written.into_iter().find_map(|(offset, len)| {
        let (mut a, mut b) = (vec![0; len], vec![0; len]);
        image.read_at(offset, &mut a).unwrap();
        device.read_at(offset, &mut b).unwrap();
        (0..len).find(|n| a[*n] != b[*n]).map(|n| offset + n as u64)
    })
}

/// Writes a lie into one inode; answers what is wrong with what came of it.
fn lie(image: &MemDevice, at: u64, offset: usize, bytes: &[u8], wanted: &str) -> Result<(), String> {
    let device = RecordDevice::new(image.clone());
    let place = geometry(image).byte_offset(BlockAddr::new(at)) + offset as u64;
    // Writes are whole sectors.
    let mut sector = vec![0; 512];
    let first = place & !511;
    device.read_at(first, &mut sector).unwrap();
    let from = (place - first) as usize;
    sector[from..from + bytes.len()].copy_from_slice(bytes);
    device.write_at(first, &sector).unwrap();
    let told = |found: &Collect| {
        found
            .problems
            .iter()
            .take(8)
            .fold(String::new(), |mut text, problem| {
                let _ = write!(text, "\n    {problem}");
                text
            })
    };
    let (_, found) = run(&device, &Policy::read_only());
    let said = told(&found);
    if found.problems.len() != 1 || !said.contains(wanted) {
        return Err(format!("{} findings, not {wanted}:{said}", found.problems.len()));
    }
    let now = LogTime { sec: 1, nsec: 0 };
    let (outcome, found) = run(&device, &Policy::repair(now));
    if outcome.uncorrected() != 0 {
        return Err(format!("{outcome:?}:{}", told(&found)));
    }
    match differs(image, &device) {
        None => Ok(()),
        Some(at) => Err(format!("byte {at} is another one:{}", told(&found))),
    }
}

fn every_height(name: &str) {
    let image = fixture(name);
    let max = geometry(&image).max_height();
    let mut failures = Vec::new();
    let mut tried = 0;
    for Found { at, di, below } in sorts(&image) {
        let height = di.height.get();
        // Where nothing is below and nothing in the dinode either, any height says the same of a file.
        if !below && di.file_type() == Some(FileType::Regular) {
            continue;
        }
        let wrong = [
            height.checked_sub(1),
            Some(height + 1).filter(|more| *more <= max),
        ];
        for wrong in wrong.into_iter().flatten() {
            let wanted = format!("di_height is {wrong}, expected {height}");
            tried += 1;
            let result = lie(
                &image,
                at,
                offset_of!(Dinode, height),
                &wrong.to_be_bytes(),
                &wanted,
            );
            if let Err(e) = result {
                let (kind, size, blocks) = (di.file_type(), di.size.get(), di.blocks.get());
                failures.push(format!(
                    "inode {at} ({kind:?}, {size} bytes, {blocks} blocks): {e}"
                ));
            }
        }
    }
    assert!(tried > 20, "only {tried} lies on {name}");
    assert!(
        failures.is_empty(),
        "{name}: {} of {tried}:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn heights_on_blocks_of_1k() {
    every_height("clean1k");
}

#[test]
fn heights_on_blocks_of_512() {
    every_height("clean512");
}

#[test]
fn heights_on_blocks_of_4k() {
    every_height("clean4k");
}

#[test]
fn depth_against_the_table() {
    let image = fixture("clean1k");
    let mut failures = Vec::new();
    for Found { at, di, .. } in sorts(&image) {
        if !di.is_dir() || !di.flags().contains(DinodeFlags::EXHASH) {
            continue;
        }
        let (depth, size) = (di.depth.get(), di.size.get());
        for wrong in [depth - 1, depth + 1] {
            let bytes = wrong.to_be_bytes();
            let result = lie(&image, at, offset_of!(Dinode, depth), &bytes, "di_depth");
            failures.extend(result.err().map(|e| format!("inode {at}, depth {wrong}: {e}")));
        }
        for wrong in [size / 2, size * 2] {
            let bytes = wrong.to_be_bytes();
            let result = lie(&image, at, offset_of!(Dinode, size), &bytes, "di_size");
            failures.extend(result.err().map(|e| format!("inode {at}, size {wrong}: {e}")));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(Kind::ALL.contains(&Kind::TableSize));
}
