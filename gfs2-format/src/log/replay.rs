//! Turns a dirty journal into a plan (which copy goes where) and carries the plan out.
//!
//! The plan is made from the whole active log before anything is written: a lie anywhere in it ends in an error and
//! an untouched volume. Rules: FORMAT.md 7.6 and 7.7. Invariants: memory is bounded by a small multiple of the
//! active log; each step of the walk moves forward; no planned target lies outside the volume, at or before its
//! superblock, or in the journal itself.

use super::codec::{Chunk, Tag, continuation_revokes, decode_chunk, decode_header, descriptor_revokes, tags};
use super::head::Head;
use super::map::{JournalMap, JournalRead};
use super::ring::Ring;
use crate::addr::{BlockAddr, JournalBlock};
use crate::device::{BlockDevice, WriteRequest};
use crate::error::{Error, Expected, Result};
use crate::geometry::Geometry;
use crate::ondisk::{DescriptorType, MAGIC, MetaHeader, MetaType};
use std::collections::HashSet;

/// Bytes of journal read, and of blocks written, at a time.
const BATCH: usize = 4 << 20;
/// Revokes kept before older ones of the same block are looked for and dropped.
const REVOKES_COMPACT: usize = 1 << 16;

/// What a logged copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CopyKind {
    /// Metadata: begins with the magic.
    Metadata,
    /// Data of a journaled file.
    Jdata,
}

/// One block to put in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedCopy {
    /// Where it belongs.
    pub target: BlockAddr,
    /// Where its newest copy stands in the journal.
    pub from: JournalBlock,
    /// What it is.
    pub kind: CopyKind,
    /// Word 0 of the copy is zero and must become the magic.
    pub escaped: bool,
}

/// A block whose copies before a place are not replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedRevoke {
    /// The revoked block.
    pub target: BlockAddr,
    /// The journal block that holds its last revoke.
    pub at: JournalBlock,
}

/// The numbers the kernel prints: "Replayed `replayed` of `found` blocks", "Found `revokes` revoke tags".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ReplayCounts {
    /// Copies in the active log.
    pub found: u64,
    /// Copies not revoked; one block may have several.
    pub replayed: u64,
    /// Distinct revoked blocks.
    pub revokes: u64,
}

/// What a replay does, as data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayPlan {
    /// The head it was made for.
    pub head: Head,
    /// The blocks to write, each once with its newest copy, in the order of the log.
    pub copies: Vec<PlannedCopy>,
    /// The revokes that were in force, by target.
    pub revokes: Vec<PlannedRevoke>,
    /// For reports.
    pub counts: ReplayCounts,
}

/// A copy met on the walk, not yet judged.
#[derive(Clone, Copy)]
struct FoundCopy {
    copy: PlannedCopy,
    has_magic: bool,
}

/// Reads the active log of a journal and plans its replay. A clean head gives an empty plan.
///
/// # Errors
/// [`Error::Corrupt`] for a head whose tail or own place is wrong, anything but headers and whole chunks between
/// tail and head, targets outside the volume or inside this journal, metadata copies without the magic; I/O errors.
pub fn plan_replay(
    journal: &dyn JournalRead,
    map: &JournalMap,
    geometry: &Geometry,
    head: &Head,
) -> Result<ReplayPlan> {
    let empty = ReplayPlan {
        head: *head,
        copies: Vec::new(),
        revokes: Vec::new(),
        counts: ReplayCounts::default(),
    };
    if head.header.is_clean() {
        return Ok(empty);
    }
    check_head(journal, head)?;
    let mut walk = Walk::new(journal, map, geometry, head);
    while walk.left > 0 {
        walk.step()?;
    }
    let (found, revokes) = (walk.copies, walk.revokes.into_sorted());
    let order = |at: JournalBlock| journal.ring().distance(head.header.tail, at);
    let is_revoked = |copy: &PlannedCopy| {
        let nth = revokes.binary_search_by_key(&copy.target, |r| r.target);
        nth.ok()
            .and_then(|n| revokes.get(n))
            .is_some_and(|r| order(copy.from) < order(r.at))
    };
    let live: Vec<FoundCopy> = found.iter().filter(|f| !is_revoked(&f.copy)).copied().collect();
    if let Some(bad) = live
        .iter()
        .find(|f| f.copy.kind == CopyKind::Metadata && !f.has_magic)
    {
        let at = journal.address(bad.copy.from);
        let expected = Expected::Value(u64::from(MAGIC));
        let mut word = vec![0; geometry.block_len()];
        journal.read(bad.copy.from, &mut word)?;
        return Err(Error::corrupt(
            at,
            "logged metadata",
            "mh_magic",
            first_word(&word),
            expected,
        ));
    }
    let counts = ReplayCounts {
        found: found.len() as u64,
        replayed: live.len() as u64,
        revokes: revokes.len() as u64,
    };
    let mut seen = HashSet::with_capacity(live.len());
    let mut copies: Vec<PlannedCopy> = live
        .iter()
        .rev()
        .map(|f| f.copy)
        .filter(|copy| seen.insert(copy.target))
        .collect();
    copies.reverse();
    Ok(ReplayPlan {
        copies,
        revokes,
        counts,
        ..empty
    })
}

fn first_word(block: &[u8]) -> u64 {
    block
        .first_chunk::<4>()
        .map_or(0, |word| u64::from(u32::from_be_bytes(*word)))
}

fn check_head(journal: &dyn JournalRead, head: &Head) -> Result<()> {
    let at = journal.address(head.position);
    let last = u64::from(journal.ring().blocks()) - 1;
    let fail = |field, found: JournalBlock, expected| {
        Err(Error::corrupt(
            at,
            "log_header",
            field,
            u64::from(found.get()),
            expected,
        ))
    };
    if head.header.blkno != head.position {
        let expected = Expected::Value(u64::from(head.position.get()));
        return fail("lh_blkno", head.header.blkno, expected);
    }
    if !journal.ring().contains(head.header.tail) {
        return fail("lh_tail", head.header.tail, Expected::Range(0, last));
    }
    Ok(())
}

/// The revokes met so far, the last of each block winning.
struct Revokes {
    list: Vec<PlannedRevoke>,
    compact_at: usize,
}

impl Revokes {
    fn push(&mut self, revoke: PlannedRevoke) {
        if self.list.len() >= self.compact_at {
            self.compact();
            self.compact_at = REVOKES_COMPACT.max(self.list.len().saturating_mul(2));
        }
        self.list.push(revoke);
    }

    fn compact(&mut self) {
        // A stable sort keeps the order of the log among the revokes of one block.
        self.list.sort_by_key(|r| r.target);
        self.list.dedup_by(|later, kept| {
            let same = later.target == kept.target;
            if same {
                kept.at = later.at;
            }
            same
        });
    }

    fn into_sorted(mut self) -> Vec<PlannedRevoke> {
        self.compact();
        self.list
    }
}

/// The walk from tail to head: always at the start of a chunk or at a header.
struct Walk<'a> {
    window: Window<'a>,
    map: &'a JournalMap,
    geometry: &'a Geometry,
    at: JournalBlock,
    /// Blocks between here and the head.
    left: u32,
    copies: Vec<FoundCopy>,
    revokes: Revokes,
}

impl<'a> Walk<'a> {
    fn new(journal: &'a dyn JournalRead, map: &'a JournalMap, geometry: &'a Geometry, head: &Head) -> Self {
        let ring = journal.ring();
        let left = ring.distance(head.header.tail, head.header.blkno);
        Self {
            window: Window::new(journal, geometry, head.header.blkno),
            map,
            geometry,
            at: head.header.tail,
            left,
            copies: Vec::new(),
            revokes: Revokes {
                list: Vec::new(),
                compact_at: REVOKES_COMPACT,
            },
        }
    }

    /// Takes in what stands here and moves past it.
    fn step(&mut self) -> Result<()> {
        let (at, addr) = (self.at, self.window.journal.address(self.at));
        let block = self.window.block(at)?;
        let meta = MetaHeader::check_magic(block, addr, "log block")?;
        if meta.mh_type.get() == MetaType::Lh.raw() {
            if decode_header(block, Some(at)).is_none() {
                let expected = Expected::Rule("a header with valid hash and crc, written for this place");
                return Err(Error::corrupt(
                    addr,
                    "log_header",
                    "lh_blkno",
                    u64::from(at.get()),
                    expected,
                ));
            }
            self.forward(1);
            return Ok(());
        }
        let chunk = decode_chunk(block, addr, self.geometry)?;
        if chunk.length > self.left {
            let expected = Expected::Range(1, u64::from(self.left));
            let found = u64::from(chunk.length);
            return Err(Error::corrupt(
                addr,
                "log_descriptor",
                "ld_length",
                found,
                expected,
            ));
        }
        match chunk.kind {
            DescriptorType::Revoke => self.take_revokes(&chunk, addr)?,
            DescriptorType::Metadata => self.take_copies(&chunk, addr, CopyKind::Metadata)?,
            DescriptorType::Jdata => self.take_copies(&chunk, addr, CopyKind::Jdata)?,
        }
        self.forward(chunk.length);
        Ok(())
    }

    fn forward(&mut self, blocks: u32) {
        self.at = self.window.ring().advance(self.at, blocks);
        self.left = self.left.saturating_sub(blocks);
    }

    fn take_copies(&mut self, chunk: &Chunk, addr: BlockAddr, kind: CopyKind) -> Result<()> {
        let found: Vec<Tag> = tags(self.window.block(self.at)?, chunk).collect();
        for (n, tag) in (1u32..).zip(found) {
            let from = self.window.ring().advance(self.at, n);
            let target = self.check_target(tag.target, addr)?;
            let has_magic = first_word(self.window.block(from)?) == u64::from(MAGIC);
            let copy = PlannedCopy {
                target,
                from,
                kind,
                escaped: tag.escaped,
            };
            self.copies.push(FoundCopy { copy, has_magic });
        }
        Ok(())
    }

    fn check_target(&self, raw: u64, addr: BlockAddr) -> Result<BlockAddr> {
        let target = self
            .geometry
            .check_address(raw, addr, "log_descriptor", "block tag")?;
        if self.map.contains(target) {
            let expected = Expected::Rule("a block outside the journal it is logged in");
            return Err(Error::corrupt(addr, "log_descriptor", "block tag", raw, expected));
        }
        Ok(target)
    }

    fn take_revokes(&mut self, chunk: &Chunk, addr: BlockAddr) -> Result<()> {
        let mut left = chunk.count;
        let mut at = self.at;
        for n in 0..chunk.length {
            if left == 0 {
                break;
            }
            at = self.window.ring().advance(self.at, n);
            let here = self.window.journal.address(at);
            let block = self.window.block(at)?;
            let revoked: Vec<u64> = match n {
                0 => descriptor_revokes(block, left).collect(),
                _ => continuation_revokes(block, here, left)?.collect(),
            };
            left = left.saturating_sub(u32::try_from(revoked.len()).unwrap_or(u32::MAX));
            for raw in revoked {
                // No copy can belong outside the volume, so such a revoke has nothing to prevent.
                if let Ok(target) = self.geometry.check_address(raw, addr, "log_descriptor", "revoke") {
                    self.revokes.push(PlannedRevoke { target, at });
                }
            }
        }
        debug_assert_eq!(left, 0, "revokes left over at journal block {at}");
        Ok(())
    }
}

/// Reads the log ahead of the walk in large pieces and never past the head.
struct Window<'a> {
    journal: &'a dyn JournalRead,
    block_len: usize,
    end: JournalBlock,
    start: JournalBlock,
    blocks: u32,
    buf: Vec<u8>,
}

impl<'a> Window<'a> {
    fn new(journal: &'a dyn JournalRead, geometry: &Geometry, end: JournalBlock) -> Self {
        Self {
            journal,
            block_len: geometry.block_len(),
            end,
            start: end,
            blocks: 0,
            buf: Vec::new(),
        }
    }

    fn ring(&self) -> Ring {
        self.journal.ring()
    }

    fn block(&mut self, at: JournalBlock) -> Result<&[u8]> {
        if self.ring().distance(self.start, at) >= self.blocks {
            let most = u32::try_from(BATCH / self.block_len).unwrap_or(1).max(1);
            let count = self.ring().distance(at, self.end).clamp(1, most);
            self.blocks = 0;
            self.buf
                .resize((count as usize).saturating_mul(self.block_len), 0);
            self.journal.read(at, &mut self.buf)?;
            (self.start, self.blocks) = (at, count);
        }
        let offset = (self.ring().distance(self.start, at) as usize).saturating_mul(self.block_len);
        Ok(self
            .buf
            .get(offset..offset.saturating_add(self.block_len))
            .unwrap_or_default())
    }
}

/// Puts the planned blocks in place. Nothing is flushed. May be interrupted and begun again: the same plan from the
/// same journal gives the same bytes.
///
/// # Errors
/// I/O errors; [`Error::Corrupt`] when a copy is not what it was when the plan was made.
pub fn apply_plan(
    plan: &ReplayPlan,
    journal: &dyn JournalRead,
    geometry: &Geometry,
    device: &dyn BlockDevice,
) -> Result<()> {
    let most = u32::try_from(BATCH / geometry.block_len()).unwrap_or(1).max(1);
    let mut rest = plan.copies.as_slice();
    let mut buf = Vec::new();
    while let Some(first) = rest.first() {
        // The copies are in log order: one span of the journal covers as many as fit into a batch.
        let offset_of = |copy: &PlannedCopy| journal.ring().distance(first.from, copy.from);
        let count = rest.partition_point(|copy| offset_of(copy) < most).max(1);
        let (batch, later) = rest.split_at(count.min(rest.len()));
        let span = batch.last().map_or(1, |last| offset_of(last).saturating_add(1));
        buf.resize((span as usize).saturating_mul(geometry.block_len()), 0);
        journal.read(first.from, &mut buf)?;
        apply_batch(batch, &mut buf, journal, geometry, device)?;
        rest = later;
    }
    Ok(())
}

/// Writes the copies of one span of the journal that stands in `buf`.
fn apply_batch(
    batch: &[PlannedCopy],
    buf: &mut [u8],
    journal: &dyn JournalRead,
    geometry: &Geometry,
    device: &dyn BlockDevice,
) -> Result<()> {
    let block_len = geometry.block_len();
    let Some(first) = batch.first() else { return Ok(()) };
    let place = |copy: &PlannedCopy| {
        let start = (journal.ring().distance(first.from, copy.from) as usize).saturating_mul(block_len);
        start..start.saturating_add(block_len)
    };
    for copy in batch {
        let block = buf.get_mut(place(copy)).unwrap_or_default();
        match copy.kind {
            CopyKind::Jdata if copy.escaped => {
                if let Some(word) = block.first_chunk_mut::<4>() {
                    *word = MAGIC.to_be_bytes();
                }
            }
            CopyKind::Jdata => {}
            CopyKind::Metadata => {
                MetaHeader::check_magic(block, journal.address(copy.from), "logged metadata")?;
            }
        }
    }
    let mut writes: Vec<WriteRequest<'_>> = batch
        .iter()
        .filter_map(|copy| {
            Some(WriteRequest {
                offset: geometry.byte_offset(copy.target),
                buf: buf.get(place(copy))?,
            })
        })
        .collect();
    debug_assert_eq!(writes.len(), batch.len());
    writes.sort_unstable_by_key(|w| w.offset);
    device.write_batch(&writes)
}
