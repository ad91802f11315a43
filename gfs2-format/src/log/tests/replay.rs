use super::super::*;
use crate::Extent;
use crate::addr::{BlockAddr, Jid, JournalBlock};
use crate::device::{BlockDevice, OverlayDevice};
use crate::edit::{Block, BlockRead};
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::ondisk::{DINODE_SIZE, LogFlags, MetaHeader, MetaType, StatfsChange, view};
use crate::testing::{TestDevice, image};
use crate::volume::{DeviceReader, JournalFile, Volume};
use std::collections::BTreeMap;
use zerocopy::IntoBytes;

const NOW: LogTime = LogTime {
    sec: 1_800_000_000,
    nsec: 5,
};

fn recover(device: &TestDevice, jid: u32) -> Result<RecoveryReport> {
    let volume = Volume::open(device)?;
    recover_journal(device, &volume, &volume.journals[jid as usize], Jid::new(0), NOW)
}

fn statfs(device: &TestDevice, volume: &Volume, addr: BlockAddr) -> (i64, i64, i64) {
    let block = DeviceReader::new(device, &volume.geometry).read(addr).unwrap();
    let record: &StatfsChange = view(&block, DINODE_SIZE, addr).unwrap();
    record.signed()
}

#[test]
fn counters_and_statfs_are_those_the_kernel_logged() {
    // image, jid, replayed, found, revokes, change, master after (free, dinodes), total
    let rows = [
        ("dirty4k", 0, 22, 32, 58, (-332, 307), (32744, 30091, 319)),
        ("dirty1k", 0, 24, 36, 263, (-364, 307), (130_972, 121_305, 319)),
        (
            "cluster2j-dirty",
            0,
            15,
            33,
            10,
            (1045, -200),
            (65512, 60666, 200),
        ),
        ("cluster2j-dirty", 1, 11, 21, 9, (-142, 127), (65512, 60524, 327)),
    ];
    let mut devices: BTreeMap<&str, TestDevice> = BTreeMap::new();
    for (name, jid, replayed, found, revokes, (free, dinodes), totals) in rows {
        let device = devices.entry(name).or_insert_with(|| TestDevice::fixture(name));
        let report = recover(device, jid).unwrap();
        let want = ReplayCounts {
            found,
            replayed,
            revokes,
        };
        assert_eq!(report.counts, want, "{name} {jid}");
        assert_eq!(
            report.change,
            LocalStatfs {
                total: 0,
                free,
                dinodes
            },
            "{name} {jid}"
        );
        let volume = Volume::open(device).unwrap();
        assert_eq!(
            statfs(device, &volume, volume.system.statfs),
            totals,
            "{name} {jid}"
        );
        let own = volume.journals[jid as usize].statfs_change.unwrap();
        assert_eq!(statfs(device, &volume, own), (0, 0, 0), "{name} {jid}");
    }
}

/// Bytes the kernel's read-only walk after its replay touched: times of access and readdir's scratch field. Zeroes
/// them where `block` of both images is a dinode, a linear directory or a leaf.
fn blank_walk_traces(block: &mut [u8]) {
    let kind = u32::from_be_bytes(block[4..8].try_into().unwrap());
    let dirents = match kind {
        4 => {
            block[72..80].fill(0);
            block[176..180].fill(0);
            let mode = u32::from_be_bytes(block[40..44].try_into().unwrap());
            let flags = u32::from_be_bytes(block[128..132].try_into().unwrap());
            (mode >> 12 == 4 && flags & 2 == 0).then_some(232)
        }
        6 => Some(104),
        _ => None,
    };
    let Some(mut at) = dirents else { return };
    while at + 40 <= block.len() {
        block[at + 28..at + 32].fill(0);
        let len = u16::from_be_bytes(block[at + 20..at + 22].try_into().unwrap());
        at += usize::from(len.max(8));
    }
}

#[test]
fn outside_the_journal_the_volume_is_byte_for_byte_what_the_kernel_left() {
    for name in ["dirty4k", "dirty1k"] {
        let device = TestDevice::fixture(name);
        recover(&device, 0).unwrap();
        let volume = Volume::open(&device).unwrap();
        let bsize = volume.geometry.block_len();
        let ours = device.bytes();
        let kernel = image(&format!("{name}.after-replay"));
        assert_eq!(ours.len(), kernel.len());
        let mut differing = 0;
        for (n, (a, b)) in (0u64..).zip(ours.chunks(bsize).zip(kernel.chunks(bsize))) {
            if a == b || volume.journals[0].map.contains(BlockAddr::new(n)) {
                continue;
            }
            differing += 1;
            let (mut a, mut b) = (a.to_vec(), b.to_vec());
            blank_walk_traces(&mut a);
            blank_walk_traces(&mut b);
            assert_eq!(a, b, "{name} block {n}");
        }
        // The walk reads some 300 files: if it left no trace, something compares the wrong thing.
        assert!((1..400).contains(&differing), "{name}: {differing}");
    }
}

#[test]
fn the_clean_header_is_the_kernels_but_for_its_time() {
    for (name, at) in [("dirty4k", 687), ("dirty1k", 4720)] {
        let device = TestDevice::fixture(name);
        let report = recover(&device, 0).unwrap();
        assert_eq!(report.head.position, JournalBlock::new(at));
        let kernel = TestDevice::fixture(&format!("{name}.after-replay"));
        let volume = Volume::open(&kernel).unwrap();
        let map = &volume.journals[0].map;
        let read = |device: &TestDevice| {
            let addr = map.address(JournalBlock::new(at)).unwrap();
            let block = DeviceReader::new(device, &volume.geometry).read(addr).unwrap();
            decode_header(&block, Some(JournalBlock::new(at))).unwrap()
        };
        let mut ours = read(&device);
        assert_eq!(ours.time, NOW);
        ours.time = read(&kernel).time;
        assert_eq!(ours, read(&kernel), "{name}");
        // And it is the head now, for a scan from the journal's start.
        let reader = DeviceJournal::new(&device, &volume.geometry, map);
        assert_eq!(find_head(&reader, &volume.geometry).unwrap(), Some(report.head));
    }
}

#[test]
fn a_second_recovery_finds_a_clean_journal_and_writes_nothing() {
    let device = TestDevice::fixture("dirty4k");
    let first = recover(&device, 0).unwrap();
    assert!(!first.was_clean());
    let (changes, writes) = (device.changes(), device.writes());
    let second = recover(&device, 0).unwrap();
    assert!(second.was_clean());
    assert_eq!(second.head, first.head);
    assert_eq!(device.writes(), writes);
    assert_eq!(device.changes(), changes);
}

#[test]
fn a_read_only_volume_is_recovered_in_an_overlay() {
    let device = TestDevice::fixture("dirty4k");
    let volume = Volume::open(&device).unwrap();
    let overlay = OverlayDevice::new(&device, 4096, 16 << 20).unwrap();
    let report = recover_journal(&overlay, &volume, &volume.journals[0], Jid::new(0), NOW).unwrap();
    assert_eq!(report.counts.replayed, 22);
    assert_eq!(device.writes(), 0);
    let seen = Volume::open(&overlay).unwrap();
    let plan = plan_recovery(&overlay, &seen.geometry, &seen.journals[0]).unwrap();
    assert!(plan.unwrap().head.header.is_clean());
}

#[test]
fn replay_twice_is_replay_once() {
    let device = TestDevice::fixture("dirty1k");
    let volume = Volume::open(&device).unwrap();
    let journal = &volume.journals[0];
    let reader = DeviceJournal::new(&device, &volume.geometry, &journal.map);
    let plan = plan_recovery(&device, &volume.geometry, journal)
        .unwrap()
        .unwrap();
    apply_plan(&plan, &reader, &volume.geometry, &device).unwrap();
    let once = device.changes();
    let again = plan_recovery(&device, &volume.geometry, journal)
        .unwrap()
        .unwrap();
    assert_eq!(again, plan);
    apply_plan(&again, &reader, &volume.geometry, &device).unwrap();
    assert_eq!(device.changes(), once);
}

#[test]
fn an_interrupted_recovery_begins_again_and_ends_the_same() {
    let want = {
        let device = TestDevice::fixture("dirty4k");
        recover(&device, 0).unwrap();
        device.changes()
    };
    let total = TestDevice::fixture("dirty4k");
    recover(&total, 0).unwrap();
    // The last three blocks written are master statfs, local statfs, clean header: between the first and the last of
    // them the kernel's own recovery cannot be told to have added the change already, and neither can ours.
    let sectors = 8;
    let before_statfs = total.writes() - 3 * sectors;
    for cut in (0..=before_statfs).step_by(5) {
        let device = TestDevice::fixture("dirty4k");
        device.fail_after(Some(cut));
        assert!(matches!(recover(&device, 0), Err(Error::Io { .. })), "cut {cut}");
        device.fail_after(None);
        recover(&device, 0).unwrap();
        assert_eq!(device.changes(), want, "cut {cut}");
    }
}

#[test]
fn a_torn_head_leaves_the_commit_before_it() {
    let device = TestDevice::fixture("dirty4k");
    let volume = Volume::open(&device).unwrap();
    let map = &volume.journals[0].map;
    let g = &volume.geometry;
    let reader = DeviceJournal::new(&device, g, map);
    let head = find_head(&reader, g).unwrap().unwrap();
    assert_eq!(
        (head.position, head.header.sequence),
        (JournalBlock::new(686), 2057)
    );
    // Half of the header block holds what was there before: zeroes will do.
    let offset = g.byte_offset(map.address(head.position).unwrap());
    device.write_at(offset, &[0; 512]).unwrap();
    let older = find_head(&reader, g).unwrap().unwrap();
    assert_eq!(older.header.sequence, 2056);
    assert!(plan_replay(&reader, map, g, &older).is_ok());
}

/// A small journal of its own on a small device: blocks 100..100+n, targets from 300 on.
struct Lab {
    device: TestDevice,
    geometry: Geometry,
    map: JournalMap,
}

impl Lab {
    fn new(blocks: u32) -> Self {
        let extent = Extent {
            start: BlockAddr::new(200),
            len: blocks,
        };
        Self {
            device: TestDevice::zeroed(512 * 1000),
            geometry: Geometry::new(512, 1000).unwrap(),
            map: JournalMap::new([extent]).unwrap(),
        }
    }

    fn reader(&self) -> DeviceJournal<'_> {
        DeviceJournal::new(&self.device, &self.geometry, &self.map)
    }

    fn put(&self, at: u32, block: &[u8]) {
        let at = self.map.ring().advance(JournalBlock::new(at), 0);
        let addr = self.map.address(at).unwrap();
        self.device
            .write_at(self.geometry.byte_offset(addr), block)
            .unwrap();
    }

    fn header(&self, at: u32, sequence: u64, tail: u32, flags: LogFlags) {
        let blkno = self.map.ring().advance(JournalBlock::new(at), 0);
        let header = Header {
            writer: Jid::new(0),
            sequence,
            flags,
            tail: JournalBlock::new(tail),
            blkno,
            version: HeaderVersion::V2,
            time: NOW,
            addr: self.map.address(blkno).unwrap(),
            jinode: BlockAddr::new(199),
            statfs_addr: BlockAddr::new(0),
            quota_addr: BlockAddr::new(0),
            local: LocalStatfs::default(),
        };
        self.put(blkno.get(), &encode_header(&header, &self.geometry));
    }

    /// Writes a flush and its header from `at` on and returns the place after it.
    fn commit(&self, at: u32, sequence: u64, tail: u32, flush: &Flush<'_>) -> u32 {
        let blocks = flush.encode(&self.geometry).unwrap();
        for (n, block) in (at..).zip(&blocks) {
            self.put(n, block);
        }
        let end = at + blocks.len() as u32;
        self.header(end, sequence, tail, LogFlags::FLUSH_NORMAL);
        end + 1
    }

    fn head(&self) -> Option<Head> {
        find_head(&self.reader(), &self.geometry).unwrap()
    }

    fn plan(&self) -> Result<ReplayPlan> {
        plan_replay(&self.reader(), &self.map, &self.geometry, &self.head().unwrap())
    }

    fn target(&self, n: u64) -> Vec<u8> {
        let mut block = vec![0; 512];
        self.device.read_at(n * 512, &mut block).unwrap();
        block
    }
}

fn meta(mark: u8) -> Block {
    let mut block = Block::from([mark; 512].as_slice());
    block.make_mut()[..24].copy_from_slice(MetaHeader::new(MetaType::Di, Jid::new(0)).as_bytes());
    block
}

fn at(n: u64) -> BlockAddr {
    BlockAddr::new(n)
}

#[test]
fn an_empty_journal_has_no_head_and_a_fresh_one_has_the_largest_sequence() {
    let lab = Lab::new(20);
    assert_eq!(lab.head(), None);
    // As mkfs fills it: sequences from some start, wrapping to 0.
    for n in 0..20 {
        lab.header(
            n,
            u64::from((n + 13) % 20),
            0,
            LogFlags::UNMOUNT | LogFlags::USERSPACE,
        );
    }
    assert_eq!(lab.head().unwrap().position, JournalBlock::new(6));
    // Invalid blocks in between do not count, a valid header with a lower sequence ends the search.
    lab.put(3, &[0; 512]);
    assert_eq!(lab.head().unwrap().position, JournalBlock::new(6));
    lab.header(4, 2, 0, LogFlags::UNMOUNT);
    assert_eq!(lab.head().unwrap().position, JournalBlock::new(2));
}

#[test]
fn the_last_of_equal_sequences_is_the_head() {
    let lab = Lab::new(8);
    lab.header(2, 5, 0, LogFlags::UNMOUNT);
    lab.header(4, 5, 0, LogFlags::empty());
    assert_eq!(lab.head().unwrap().position, JournalBlock::new(4));
    // A header that stands in the wrong place counts here, as it does for the kernel, but is not replayed from.
    let mut block = lab.target(204);
    block[4..8].copy_from_slice(&8u32.to_be_bytes());
    lab.put(6, &block);
    assert_eq!(lab.head().unwrap().position, JournalBlock::new(6));
    match lab.plan() {
        Err(Error::Corrupt(c)) => assert_eq!((c.field, c.found), ("lh_blkno", 4)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn later_copies_win_and_revokes_kill_only_earlier_ones_around_the_ring() {
    for start in [0, 5, 9, 13, 17] {
        let lab = Lab::new(20);
        lab.header(start + 19, 9, (start + 19) % 20, LogFlags::UNMOUNT);
        let one = [
            (at(300), meta(1)),
            (at(301), meta(1)),
            (at(302), meta(1)),
            (at(303), meta(1)),
        ];
        let next = lab.commit(
            start,
            10,
            start,
            &Flush {
                metadata: &one,
                ..Flush::default()
            },
        );
        let two = [(at(301), meta(2)), (at(303), meta(2))];
        let gone = [at(300), at(303), at(700)];
        let flush = Flush {
            metadata: &two,
            revokes: &gone,
            ..Flush::default()
        };
        let next = lab.commit(next, 11, start, &flush);
        let three = [(at(303), Block::from([7; 512].as_slice()))];
        lab.commit(
            next,
            12,
            start,
            &Flush {
                jdata: &three,
                ..Flush::default()
            },
        );
        let plan = lab.plan().unwrap();
        assert_eq!(
            plan.counts,
            ReplayCounts {
                found: 7,
                replayed: 4,
                revokes: 3
            },
            "{start}"
        );
        let targets: Vec<u64> = plan.copies.iter().map(|c| c.target.get()).collect();
        assert_eq!(targets, [302, 301, 303], "{start}");
        apply_plan(&plan, &lab.reader(), &lab.geometry, &lab.device).unwrap();
        let marks = [300, 301, 302, 303].map(|n| lab.target(n)[100]);
        assert_eq!(marks, [0, 2, 1, 7], "{start}");
        assert_eq!(lab.target(303), [7; 512]);
    }
}

#[test]
fn the_tail_decides_what_is_replayed() {
    let lab = Lab::new(20);
    let one = [(at(300), meta(1))];
    let next = lab.commit(
        0,
        10,
        0,
        &Flush {
            metadata: &one,
            ..Flush::default()
        },
    );
    let two = [(at(301), meta(2))];
    lab.commit(
        next,
        11,
        next,
        &Flush {
            metadata: &two,
            ..Flush::default()
        },
    );
    let plan = lab.plan().unwrap();
    assert_eq!(plan.counts.found, 1);
    // A tail that points at a header is legal: it is stepped over.
    let blkno = lab.head().unwrap().position.get();
    lab.header(blkno, 11, next - 1, LogFlags::empty());
    assert_eq!(lab.plan().unwrap().copies, plan.copies);
}

/// Applies `harm` to a journal with one good commit and tells what planning says.
fn plan_with(harm: impl Fn(&Lab)) -> Result<ReplayPlan> {
    let lab = Lab::new(20);
    let blocks = [(at(300), meta(1)), (at(301), meta(1))];
    let revokes = [at(400)];
    let flush = Flush {
        metadata: &blocks,
        revokes: &revokes,
        ..Flush::default()
    };
    assert_eq!(lab.commit(2, 10, 2, &flush), 7);
    harm(&lab);
    lab.plan()
}

fn poke(lab: &Lab, journal_block: u32, offset: usize, bytes: &[u8]) {
    let mut block = lab.target(200 + u64::from(journal_block));
    block[offset..offset + bytes.len()].copy_from_slice(bytes);
    lab.put(journal_block, &block);
}

#[test]
fn each_lie_in_the_active_log_is_named_and_nothing_is_planned() {
    type Harm = Box<dyn Fn(&Lab)>;
    let word = |block: u32, offset: usize, value: u32| -> Harm {
        Box::new(move |lab: &Lab| poke(lab, block, offset, &value.to_be_bytes()))
    };
    let tag = |value: u64| -> Harm { Box::new(move |lab: &Lab| poke(lab, 2, 72, &value.to_be_bytes())) };
    let stray = |lab: &Lab| {
        // One copy fewer than the chunk is long: the walk lands on a copy.
        poke(lab, 2, 28, &2u32.to_be_bytes());
        poke(lab, 2, 32, &1u32.to_be_bytes());
    };
    let cases: Vec<(&str, Harm)> = vec![
        // Targets: hole, before and at the superblock (block 128), past the end, the journal itself.
        ("block tag", tag(0)),
        ("block tag", tag(127)),
        ("block tag", tag(128)),
        ("block tag", tag(1000)),
        ("block tag", tag(u64::MAX)),
        ("block tag", tag(200)),
        ("block tag", tag(219)),
        // The descriptor's own numbers.
        ("ld_length", word(2, 28, 0)),
        ("ld_length", word(2, 28, 5)),
        ("ld_length", word(2, 28, u32::MAX)),
        ("ld_data1", word(2, 32, 3)),
        ("ld_data1", word(5, 32, 1000)),
        ("ld_type", word(2, 24, 77)),
        // Garbage where a descriptor should stand, and a walk that lands in the middle of a chunk.
        ("mh_magic", word(2, 0, 0)),
        ("mh_type", word(2, 4, 4)),
        ("mh_type", Box::new(stray)),
        ("ld_data1", word(2, 28, 2)),
        // A copy without the magic.
        ("mh_magic", word(4, 0, 5)),
        // A header in the middle that is none.
        ("lh_blkno", word(2, 4, 8)),
        (
            "lh_tail",
            Box::new(|lab: &Lab| lab.header(6, 10, 20, LogFlags::empty())),
        ),
    ];
    assert!(plan_with(|_| ()).is_ok());
    for (n, (field, harm)) in cases.into_iter().enumerate() {
        match plan_with(harm) {
            Err(Error::Corrupt(c)) => assert_eq!(c.field, field, "case {n}: {c}"),
            other => panic!("case {n} {field}: {other:?}"),
        }
    }
}

#[test]
fn a_revoked_copy_may_be_anything_and_a_revoke_outside_the_volume_means_nothing() {
    let plan = plan_with(|lab| {
        poke(lab, 5, 72, &300u64.to_be_bytes());
        poke(lab, 3, 0, &[0; 4]);
    });
    let plan = plan.unwrap();
    assert_eq!(
        (plan.copies.len(), plan.counts.found, plan.counts.replayed),
        (1, 2, 1)
    );
    let plan = plan_with(|lab| poke(lab, 5, 72, &u64::MAX.to_be_bytes())).unwrap();
    assert_eq!((plan.copies.len(), plan.counts.revokes), (2, 0));
}

#[test]
fn a_clean_head_plans_nothing_whatever_its_tail() {
    let plan = plan_with(|lab| lab.header(6, 10, 2, LogFlags::UNMOUNT)).unwrap();
    assert!(plan.copies.is_empty());
    assert_eq!(plan.counts, ReplayCounts::default());
}

/// A generator good enough to choose damage, the same everywhere.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Recovers and checks the promise: either all went well, or nothing of a corrupt journal was written.
fn recover_hostile(device: &TestDevice, what: &str) {
    let before = device.changes();
    let Ok(volume) = Volume::open(device) else { return };
    for journal in &volume.journals {
        match recover_journal(device, &volume, journal, Jid::new(0), NOW) {
            Ok(_) => return,
            Err(Error::Corrupt(_)) => assert!(device.changes() == before, "{what}: something was written"),
            Err(other) => panic!("{what}: {other}"),
        }
    }
}

#[test]
fn hostile_journals_end_in_an_error_or_a_replay() {
    for (name, active) in [("dirty4k", 630..690u32), ("dirty1k", 4660..4725)] {
        let volume = Volume::open(&TestDevice::fixture(name)).unwrap();
        let (g, map) = (&volume.geometry, &volume.journals[0].map);
        let span = u64::from(active.end - active.start);
        for seed in 1..=600u64 {
            let mut random = Seeded(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let device = TestDevice::fixture(name);
            for _ in 0..=random.below(4) {
                let at = active.start + random.below(span) as u32;
                let offset = g.byte_offset(map.address(JournalBlock::new(at)).unwrap());
                let mut block = vec![0; g.block_len()];
                device.read_at(offset, &mut block).unwrap();
                // Mostly in the descriptor's fields and first tags, where a lie leads furthest.
                let byte = match random.below(4) {
                    0 => random.below(block.len() as u64),
                    1 => 24 + random.below(12),
                    _ => random.below(120),
                } as usize;
                match random.below(3) {
                    0 => block[byte] ^= 1 << random.below(8),
                    1 => block[byte] = 0xff,
                    _ => block[byte] = random.next() as u8,
                }
                device.write_at(offset, &block).unwrap();
            }
            recover_hostile(&device, &format!("{name} seed {seed}"));
        }
    }
}

#[test]
fn every_word_of_every_descriptor_at_its_extremes() {
    let device = TestDevice::fixture("dirty1k");
    let volume = Volume::open(&device).unwrap();
    let (g, map) = (&volume.geometry, &volume.journals[0].map);
    let reader = DeviceJournal::new(&device, g, map);
    let head = find_head(&reader, g).unwrap().unwrap();
    let mut at = head.header.tail;
    let mut descriptors = 0;
    while at != head.position {
        let mut block = vec![0; g.block_len()];
        reader.read(at, &mut block).unwrap();
        let offset = g.byte_offset(map.address(at).unwrap());
        let Ok(chunk) = decode_chunk(&block, at_addr(map, at), g) else {
            at = map.ring().advance(at, 1);
            continue;
        };
        descriptors += 1;
        for field in (0..40).step_by(4).chain([72, 76, 80]) {
            for value in [0, 1, 2, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
                let device = TestDevice::fixture("dirty1k");
                let mut bad = block.clone();
                bad[field..field + 4].copy_from_slice(&value.to_be_bytes());
                device.write_at(offset, &bad).unwrap();
                recover_hostile(&device, &format!("{at:?} byte {field} = {value}"));
            }
        }
        at = map.ring().advance(at, chunk.length);
    }
    assert!(descriptors >= 3, "{descriptors}");
}

fn at_addr(map: &JournalMap, at: JournalBlock) -> BlockAddr {
    map.address(at).unwrap()
}

#[test]
fn a_journal_full_of_revokes_is_bounded_by_its_distinct_blocks() {
    let lab = Lab::new(700);
    // 600 commits of 55 revokes of the same blocks, then one copy of one of them: it is live, they are older.
    let gone: Vec<BlockAddr> = (0..55).map(|n| at(130 + n)).collect();
    let mut next = 0;
    for n in 0..300 {
        next = lab.commit(
            next,
            n,
            0,
            &Flush {
                revokes: &gone,
                ..Flush::default()
            },
        );
    }
    let last = [(at(131), meta(9))];
    lab.commit(
        next,
        300,
        0,
        &Flush {
            metadata: &last,
            ..Flush::default()
        },
    );
    let plan = lab.plan().unwrap();
    assert_eq!(
        plan.counts,
        ReplayCounts {
            found: 1,
            replayed: 1,
            revokes: 55
        }
    );
    assert!(
        plan.revokes.iter().all(|r| r.at == JournalBlock::new(598)),
        "{:?}",
        plan.revokes
    );
}

#[test]
fn a_recovery_without_a_valid_header_starts_a_new_sequence() {
    let device = TestDevice::fixture("clean4k");
    let volume = Volume::open(&device).unwrap();
    let journal: &JournalFile = &volume.journals[1];
    for extent in journal.map.extents() {
        let zeroes = vec![0; extent.len as usize * 4096];
        device
            .write_at(volume.geometry.byte_offset(extent.start), &zeroes)
            .unwrap();
    }
    let report = recover(&device, 1).unwrap();
    assert_eq!((report.found, report.was_clean()), (None, false));
    assert_eq!(report.head.position, JournalBlock::new(1));
    assert_eq!(report.head.header.sequence, 1);
    assert!(report.head.header.is_clean());
    assert!(recover(&device, 1).unwrap().was_clean());
}

#[test]
fn a_volume_whose_statfs_change_is_missing_or_not_stuffed_is_not_half_recovered() {
    let device = TestDevice::fixture("dirty4k");
    let mut volume = Volume::open(&device).unwrap();
    volume.journals[0].statfs_change = None;
    let result = recover_journal(&device, &volume, &volume.journals[0], Jid::new(0), NOW);
    assert!(matches!(result, Err(Error::NotFound)));
    assert_eq!(device.writes(), 0);
    // A logged copy of the own statfs change that is no stuffed file: refused before it is put in place.
    let volume = Volume::open(&device).unwrap();
    let addr = volume.journals[0].statfs_change.unwrap();
    let plan = plan_recovery(&device, &volume.geometry, &volume.journals[0])
        .unwrap()
        .unwrap();
    let copy = plan.copies.iter().find(|copy| copy.target == addr).unwrap();
    let offset = volume
        .geometry
        .byte_offset(volume.journals[0].map.address(copy.from).unwrap());
    let mut block = vec![0; 4096];
    device.read_at(offset, &mut block).unwrap();
    block[139] = 1;
    device.write_at(offset, &block).unwrap();
    let before = device.changes();
    match recover(&device, 0) {
        Err(Error::Corrupt(c)) => assert_eq!((c.block, c.field), (addr, "di_height")),
        other => panic!("{other:?}"),
    }
    assert_eq!(device.changes(), before);
}
