//! Encodes and decodes what stands in a journal: headers, descriptors, continuation blocks, block copies.
//!
//! One flush is, in this order and each only where there is something: jdata chunks, metadata chunks, one revoke
//! chunk, then the header that commits them (FORMAT.md 7.2). A chunk is a descriptor and the blocks it speaks of.
//! Nothing here knows where in the ring the blocks will stand; only the header names its own place.

use crate::addr::{BlockAddr, Jid, JournalBlock};
use crate::edit::Block;
use crate::error::{Error, Expected, Result};
use crate::geometry::Geometry;
use crate::ondisk::{
    DescriptorType, JdataTag, LOG_DESCRIPTOR_SIZE, LogDescriptor, LogFlags, LogHeader, MAGIC,
    META_HEADER_SIZE, MetaHeader, MetaType, log_header_crc, log_header_hash, view,
};
use zerocopy::big_endian::U64;
use zerocopy::{FromZeros, IntoBytes};

/// Time in a log header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LogTime {
    /// Seconds since 1970.
    pub sec: u64,
    /// Nanoseconds of the second.
    pub nsec: u32,
}

/// What the writing node had changed and not yet folded into the master statfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LocalStatfs {
    /// Change of the total, in blocks.
    pub total: i64,
    /// Change of the free count, in blocks.
    pub free: i64,
    /// Change of the dinode count.
    pub dinodes: i64,
}

impl LocalStatfs {
    /// Nothing changed?
    #[must_use]
    pub const fn is_zero(&self) -> bool {
        self.total == 0 && self.free == 0 && self.dinodes == 0
    }
}

/// How much of a header its writer filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HeaderVersion {
    /// Only the first 48 bytes and no `lh_crc`: kernels before 4.16, and `fsck.gfs2` to this day.
    V1,
    /// Everything, with `lh_crc` over the rest of the block.
    #[default]
    V2,
}

/// A log header: the commit of everything written before it since the header before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `mh_jid`: the writer's own journal, even in a header it writes while it recovers another.
    pub writer: Jid,
    /// `lh_sequence`.
    pub sequence: u64,
    /// `lh_flags`.
    pub flags: LogFlags,
    /// `lh_tail`: where the oldest commit starts whose blocks may not all be in place.
    pub tail: JournalBlock,
    /// `lh_blkno`: this header's own place.
    pub blkno: JournalBlock,
    /// Which of the fields below are on disk.
    pub version: HeaderVersion,
    /// `lh_sec`, `lh_nsec`.
    pub time: LogTime,
    /// `lh_addr`: this header's absolute block.
    pub addr: BlockAddr,
    /// `lh_jinode`: the journal's dinode.
    pub jinode: BlockAddr,
    /// `lh_statfs_addr`: the writer's statfs_change dinode; 0 in headers of tools and of recovery.
    pub statfs_addr: BlockAddr,
    /// `lh_quota_addr`: the writer's quota_change dinode; 0 likewise.
    pub quota_addr: BlockAddr,
    /// `lh_local_total`, `lh_local_free`, `lh_local_dinodes`.
    pub local: LocalStatfs,
}

impl Header {
    /// Does this header, as a journal's head, say that there is nothing to replay?
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.flags.contains(LogFlags::UNMOUNT)
    }
}

/// Decodes a journal block as a log header; `None` when it is none: wrong magic, type, hash or crc, or (with `at`)
/// not written for that place. A journal is full of blocks that are none, so that is no error.
#[must_use]
pub fn decode_header(block: &[u8], at: Option<JournalBlock>) -> Option<Header> {
    let raw: &LogHeader = view(block, 0, BlockAddr::new(0)).ok()?;
    if raw.header.magic.get() != MAGIC || raw.header.mh_type.get() != MetaType::Lh.raw() {
        return None;
    }
    if at.is_some_and(|at| raw.blkno.get() != at.get()) || raw.hash.get() != log_header_hash(block) {
        return None;
    }
    let version = match raw.crc.get() {
        0 => HeaderVersion::V1,
        stored if stored == log_header_crc(block) => HeaderVersion::V2,
        _ => return None,
    };
    Some(Header {
        writer: Jid::new(raw.header.jid.get()),
        sequence: raw.sequence.get(),
        flags: raw.flags(),
        tail: JournalBlock::new(raw.tail.get()),
        blkno: JournalBlock::new(raw.blkno.get()),
        version,
        time: LogTime {
            sec: raw.sec.get(),
            nsec: raw.nsec.get(),
        },
        addr: BlockAddr::new(raw.addr.get()),
        jinode: BlockAddr::new(raw.jinode.get()),
        statfs_addr: BlockAddr::new(raw.statfs_addr.get()),
        quota_addr: BlockAddr::new(raw.quota_addr.get()),
        local: LocalStatfs {
            total: raw.local_total.get().cast_signed(),
            free: raw.local_free.get().cast_signed(),
            dinodes: raw.local_dinodes.get().cast_signed(),
        },
    })
}

/// The journal block of a header, hash and crc filled in.
#[must_use]
pub fn encode_header(header: &Header, geometry: &Geometry) -> Block {
    let mut raw = LogHeader::new_zeroed();
    raw.header = MetaHeader::new(MetaType::Lh, header.writer);
    raw.sequence = header.sequence.into();
    raw.flags = header.flags.bits().into();
    raw.tail = header.tail.get().into();
    raw.blkno = header.blkno.get().into();
    raw.hash = log_header_hash(raw.as_bytes()).into();
    if header.version == HeaderVersion::V2 {
        raw.nsec = header.time.nsec.into();
        raw.sec = header.time.sec.into();
        raw.addr = header.addr.get().into();
        raw.jinode = header.jinode.get().into();
        raw.statfs_addr = header.statfs_addr.get().into();
        raw.quota_addr = header.quota_addr.get().into();
        raw.local_total = header.local.total.cast_unsigned().into();
        raw.local_free = header.local.free.cast_unsigned().into();
        raw.local_dinodes = header.local.dinodes.cast_unsigned().into();
    }
    let mut block = Block::zeroed(geometry.block_len());
    put(&mut block, 0, raw.as_bytes());
    if header.version == HeaderVersion::V2 {
        // The crc covers the whole rest of the block, so it is taken when that has its final bytes.
        raw.crc = log_header_crc(&block).into();
        put(&mut block, 0, raw.as_bytes());
    }
    block
}

/// Copies `bytes` to `offset`; what does not fit is cut (callers compute offsets below the block's length).
fn put(block: &mut Block, offset: usize, bytes: &[u8]) {
    let target = block
        .make_mut()
        .get_mut(offset..)
        .and_then(|rest| rest.get_mut(..bytes.len()));
    debug_assert!(target.is_some(), "{} bytes at {offset} do not fit", bytes.len());
    if let Some(target) = target {
        target.copy_from_slice(bytes);
    }
}

/// Journal blocks that `count` metadata blocks take, descriptors included.
#[must_use]
pub const fn metadata_blocks(geometry: &Geometry, count: u64) -> u64 {
    count.saturating_add(count.div_ceil(geometry.ldptrs()))
}

/// Journal blocks that `count` jdata blocks take, descriptors included.
#[must_use]
pub const fn jdata_blocks(geometry: &Geometry, count: u64) -> u64 {
    count.saturating_add(count.div_ceil(jdata_tags(geometry)))
}

/// Journal blocks that `count` revokes take: the descriptor and its continuation blocks; 0 for none.
#[must_use]
pub const fn revoke_blocks(geometry: &Geometry, count: u64) -> u64 {
    if count == 0 {
        0
    } else {
        1 + count
            .saturating_sub(geometry.ldptrs())
            .div_ceil(geometry.inptrs())
    }
}

/// Revokes that fit into a revoke chunk of `blocks` blocks.
#[must_use]
pub const fn revokes_in_blocks(geometry: &Geometry, blocks: u64) -> u64 {
    match blocks {
        0 => 0,
        n => (n - 1)
            .saturating_mul(geometry.inptrs())
            .saturating_add(geometry.ldptrs()),
    }
}

/// Journal blocks of one flush *without* its header (which takes one more, always).
#[must_use]
pub const fn blocks_needed(geometry: &Geometry, metadata: u64, jdata: u64, revokes: u64) -> u64 {
    metadata_blocks(geometry, metadata)
        .saturating_add(jdata_blocks(geometry, jdata))
        .saturating_add(revoke_blocks(geometry, revokes))
}

const fn jdata_tags(geometry: &Geometry) -> u64 {
    geometry.ldptrs() / 2
}

/// What one flush logs, apart from its header.
///
/// The same block must not be logged and revoked in one flush unless its copy is meant to die: the revoke stands
/// behind the copy and kills it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flush<'a> {
    /// Blocks of journaled files with their final contents, in any order.
    pub jdata: &'a [(BlockAddr, Block)],
    /// Metadata blocks with their final contents, in any order; each begins with the magic.
    pub metadata: &'a [(BlockAddr, Block)],
    /// Blocks whose older copies must not be replayed, in any order.
    pub revokes: &'a [BlockAddr],
}

impl Flush<'_> {
    /// [`blocks_needed`] of this flush.
    #[must_use]
    pub const fn blocks_needed(&self, geometry: &Geometry) -> u64 {
        blocks_needed(
            geometry,
            self.metadata.len() as u64,
            self.jdata.len() as u64,
            self.revokes.len() as u64,
        )
    }

    /// The journal blocks of this flush without its header, to be written one after the other around the ring.
    /// Copies share the memory of what was handed in, except jdata blocks that had to be escaped.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a block of the wrong length or metadata without the magic: replay would refuse it.
    pub fn encode(&self, geometry: &Geometry) -> Result<Vec<Block>> {
        let mut out = Vec::with_capacity(usize::try_from(self.blocks_needed(geometry)).unwrap_or(0));
        for part in sorted(self.jdata).chunks(jdata_tags(geometry) as usize) {
            encode_jdata_chunk(part, geometry, &mut out)?;
        }
        for part in sorted(self.metadata).chunks(geometry.ldptrs() as usize) {
            encode_metadata_chunk(part, geometry, &mut out)?;
        }
        encode_revoke_chunk(self.revokes, geometry, &mut out);
        debug_assert_eq!(out.len() as u64, self.blocks_needed(geometry));
        Ok(out)
    }
}

/// References in block order: not required by any reader, but in-place reads and writes of a replay come out sorted.
fn sorted(blocks: &[(BlockAddr, Block)]) -> Vec<&(BlockAddr, Block)> {
    let mut refs: Vec<_> = blocks.iter().collect();
    refs.sort_by_key(|(addr, _)| *addr);
    refs
}

fn check_len(addr: BlockAddr, block: &Block, geometry: &Geometry) -> Result<()> {
    if block.len() == geometry.block_len() {
        return Ok(());
    }
    let expected = Expected::Value(u64::from(geometry.bsize()));
    Err(Error::corrupt(
        addr,
        "log block",
        "length in bytes",
        block.len() as u64,
        expected,
    ))
}

fn descriptor(kind: DescriptorType, length: u64, count: usize, geometry: &Geometry) -> Block {
    let mut raw = LogDescriptor::new_zeroed();
    // The kernel leaves mh_jid zero in descriptors and continuation blocks.
    raw.header = MetaHeader::new(MetaType::Ld, Jid::new(0));
    raw.ld_type = (kind as u32).into();
    raw.length = u32::try_from(length).unwrap_or(u32::MAX).into();
    raw.data1 = u32::try_from(count).unwrap_or(u32::MAX).into();
    let mut block = Block::zeroed(geometry.block_len());
    put(&mut block, 0, raw.as_bytes());
    block
}

fn encode_jdata_chunk(part: &[&(BlockAddr, Block)], geometry: &Geometry, out: &mut Vec<Block>) -> Result<()> {
    let mut head = descriptor(DescriptorType::Jdata, part.len() as u64 + 1, part.len(), geometry);
    let magic = MAGIC.to_be_bytes();
    let at = out.len();
    for (n, (addr, block)) in part.iter().enumerate() {
        check_len(*addr, block, geometry)?;
        let escaped = block.starts_with(&magic);
        let tag = JdataTag {
            block: addr.get().into(),
            escaped: u64::from(escaped).into(),
        };
        put(
            &mut head,
            LOG_DESCRIPTOR_SIZE + n * size_of::<JdataTag>(),
            tag.as_bytes(),
        );
        let mut copy = block.clone();
        if escaped {
            put(&mut copy, 0, &[0; 4]);
        }
        out.push(copy);
    }
    out.insert(at, head);
    Ok(())
}

fn encode_metadata_chunk(
    part: &[&(BlockAddr, Block)],
    geometry: &Geometry,
    out: &mut Vec<Block>,
) -> Result<()> {
    let mut head = descriptor(
        DescriptorType::Metadata,
        part.len() as u64 + 1,
        part.len(),
        geometry,
    );
    let at = out.len();
    for (n, (addr, block)) in part.iter().enumerate() {
        check_len(*addr, block, geometry)?;
        MetaHeader::check_magic(block, *addr, "logged metadata")?;
        put(
            &mut head,
            LOG_DESCRIPTOR_SIZE + n * size_of::<U64>(),
            U64::new(addr.get()).as_bytes(),
        );
        out.push(block.clone());
    }
    out.insert(at, head);
    Ok(())
}

fn encode_revoke_chunk(revokes: &[BlockAddr], geometry: &Geometry, out: &mut Vec<Block>) {
    if revokes.is_empty() {
        return;
    }
    let mut sorted = revokes.to_vec();
    sorted.sort_unstable();
    let words: Vec<U64> = sorted.iter().map(|addr| U64::new(addr.get())).collect();
    let length = revoke_blocks(geometry, words.len() as u64);
    let (first, rest) = words
        .split_at_checked(geometry.ldptrs() as usize)
        .unwrap_or((&words, &[]));
    let mut head = descriptor(DescriptorType::Revoke, length, words.len(), geometry);
    put(&mut head, LOG_DESCRIPTOR_SIZE, first.as_bytes());
    out.push(head);
    for part in rest.chunks(geometry.inptrs() as usize) {
        let mut block = Block::zeroed(geometry.block_len());
        put(
            &mut block,
            0,
            MetaHeader::new(MetaType::Lb, Jid::new(0)).as_bytes(),
        );
        put(&mut block, META_HEADER_SIZE, part.as_bytes());
        out.push(block);
    }
}

/// A checked descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// What the chunk holds.
    pub kind: DescriptorType,
    /// Journal blocks of the chunk, the descriptor included; at least 1.
    pub length: u32,
    /// Tags or revokes; as many as the chunk has room for, at most.
    pub count: u32,
}

/// A tag of a jdata or metadata descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Where the copy belongs, as stored: not checked.
    pub target: u64,
    /// Jdata: word 0 was the magic and is zero in the copy.
    pub escaped: bool,
}

/// Decodes the descriptor in `block`, which stands at the absolute block `addr`.
///
/// Order: magic and type (else the numbers mean nothing), kind, length (which everything after is found by), then
/// the count against what descriptor and length have room for.
///
/// # Errors
/// [`Error::Corrupt`].
pub fn decode_chunk(block: &[u8], addr: BlockAddr, geometry: &Geometry) -> Result<Chunk> {
    MetaHeader::check(block, addr, MetaType::Ld)?;
    let raw: &LogDescriptor = view(block, 0, addr)?;
    let fail = |field, found: u32, expected| {
        Err(Error::corrupt(
            addr,
            "log_descriptor",
            field,
            u64::from(found),
            expected,
        ))
    };
    let Some(kind) = DescriptorType::from_raw(raw.ld_type.get()) else {
        return fail("ld_type", raw.ld_type.get(), Expected::Range(300, 302));
    };
    let (length, count) = (raw.length.get(), raw.data1.get());
    if length == 0 {
        return fail("ld_length", length, Expected::Range(1, u64::from(u32::MAX)));
    }
    let room = match kind {
        DescriptorType::Metadata => geometry.ldptrs().min(u64::from(length) - 1),
        DescriptorType::Jdata => jdata_tags(geometry).min(u64::from(length) - 1),
        DescriptorType::Revoke => revokes_in_blocks(geometry, u64::from(length)),
    };
    if u64::from(count) > room {
        return fail("ld_data1", count, Expected::Range(0, room));
    }
    Ok(Chunk { kind, length, count })
}

/// The tags of a jdata or metadata descriptor, in the order of the copies that follow it; none for revokes.
pub fn tags<'a>(block: &'a [u8], chunk: &Chunk) -> impl Iterator<Item = Tag> + 'a {
    let jdata = chunk.kind == DescriptorType::Jdata;
    let count = match chunk.kind {
        DescriptorType::Revoke => 0,
        _ => chunk.count as usize,
    };
    words(block, LOG_DESCRIPTOR_SIZE)
        .chunks(if jdata { 2 } else { 1 })
        .take(count)
        .filter_map(move |pair| {
            Some(Tag {
                target: pair.first()?.get(),
                escaped: jdata && pair.get(1)?.get() != 0,
            })
        })
}

/// The revoked blocks that stand in the descriptor itself; `left` is what of [`Chunk::count`] is not yet read.
pub fn descriptor_revokes(block: &[u8], left: u32) -> impl Iterator<Item = u64> + '_ {
    words(block, LOG_DESCRIPTOR_SIZE)
        .iter()
        .take(left as usize)
        .map(|w| w.get())
}

/// The revoked blocks of a continuation block.
///
/// # Errors
/// [`Error::Corrupt`] when the block is no continuation block.
pub fn continuation_revokes(
    block: &[u8],
    addr: BlockAddr,
    left: u32,
) -> Result<impl Iterator<Item = u64> + '_> {
    MetaHeader::check(block, addr, MetaType::Lb)?;
    Ok(words(block, META_HEADER_SIZE)
        .iter()
        .take(left as usize)
        .map(|w| w.get()))
}

/// The big-endian words from byte `offset` to the block's end.
fn words(block: &[u8], offset: usize) -> &[U64] {
    let rest = block.get(offset..).unwrap_or_default();
    let whole = rest.len() - rest.len() % size_of::<U64>();
    rest.get(..whole)
        .and_then(|bytes| zerocopy::Ref::<_, [U64]>::from_bytes(bytes).ok())
        .map(zerocopy::Ref::into_ref)
        .unwrap_or_default()
}
