//! Hashed directories: the table, the spans of its leaves, the leaves and their chains.
//!
//! A leaf of depth d owns 2^(di_depth - d) aligned slots. Invariants: the table is at most 2^17 slots; each leaf is
//! claimed before it is read, so a chain that comes back ends.

use crate::check::{Check, Claim, Role};
use crate::pass::area::{Area, Record};
use crate::pass::directories::Directory;
use crate::pass::tree::{list_blocks, pointers};
use crate::problem::{Kind, Problem};
use crate::reader::Reader;
use gfs2_format::ondisk::{
    DINODE_SIZE, Dinode, LEAF_SIZE, Leaf, META_HEADER_SIZE, MetaHeader, MetaType, view,
};
use gfs2_format::{BlockAddr, Expected};
use std::collections::HashSet;

/// Leaves of one or several directories read together, but for those of a large one.
const SPANS: usize = 1 << 15;
/// Leaves with others behind them that are kept until those are read.
const CHAINS: usize = 256;
/// A slot of a hash block that cannot be read: nothing is known of it.
const UNKNOWN: u64 = u64::MAX;
/// `lf_dirent_format`.
const DIRENT_FORMAT: u32 = 1200;
/// Names of a chain that are remembered to find a name twice.
const CHAIN_NAMES: usize = 1 << 16;

/// A leaf and the slots that lead to it.
#[derive(Clone, Copy, Debug)]
struct Span {
    leaf: BlockAddr,
    start: u32,
    len: u32,
}

/// A hashed directory whose leaves wait to be looked at.
#[derive(Debug)]
struct Open {
    dir: Directory,
    bytes: Box<[u8]>,
    depth: u32,
}

impl Check<'_> {
    /// Looks at the tables and leaves of hashed directories: at the leaves of many together, in disk order.
    pub(crate) fn hashed_directories(
        &mut self,
        reader: &mut Reader<'_>,
        hashed: Vec<(BlockAddr, Box<[u8]>)>,
    ) {
        let mut open: Vec<Open> = Vec::new();
        let mut spans: Vec<(Span, usize)> = Vec::new();
        for (addr, bytes) in hashed {
            let Ok(di) = view::<Dinode>(&bytes, 0, addr) else {
                continue;
            };
            let mut dir = self.open(addr, di);
            let owner = open.len();
            let own = self.spans(reader, &mut dir, di, &bytes);
            spans.extend(own.into_iter().map(|span| (span, owner)));
            let depth = u32::from(di.depth.get());
            open.push(Open { dir, bytes, depth });
            if spans.len() >= SPANS {
                self.leaves(reader, &mut open, &mut spans);
            }
        }
        self.leaves(reader, &mut open, &mut spans);
    }

    /// The leaves that the table of a directory leads to, each claimed.
    fn spans(
        &mut self,
        reader: &mut Reader<'_>,
        dir: &mut Directory,
        di: &Dinode,
        bytes: &[u8],
    ) -> Vec<Span> {
        let table = self.hash_table(reader, dir.addr, di, bytes);
        let mut spans: Vec<Span> = Vec::new();
        let mut start = 0u32;
        for run in table.chunk_by(|a, b| a == b) {
            let len = run.len() as u32;
            let raw = run.first().copied().unwrap_or(UNKNOWN);
            match raw {
                UNKNOWN => dir.partial = true,
                0 => {
                    dir.partial = true;
                    let expected = Expected::Rule("a leaf in every slot");
                    let slot = u64::from(start);
                    let problem = Problem::new(Kind::HashTable, dir.addr, "empty slot", slot, expected);
                    self.found(problem.of(dir.addr));
                }
                raw => {
                    if self.claim_leaf(dir, raw, dir.addr) == Claim::First {
                        let leaf = BlockAddr::new(raw);
                        spans.push(Span { leaf, start, len });
                    }
                }
            }
            start = start.saturating_add(len);
        }
        spans
    }

    /// Looks at these leaves and what hangs on them, and closes their directories.
    fn leaves(&mut self, reader: &mut Reader<'_>, open: &mut Vec<Open>, spans: &mut Vec<(Span, usize)>) {
        spans.sort_unstable_by_key(|(span, _)| span.leaf);
        let addrs: Vec<BlockAddr> = spans.iter().map(|(span, _)| span.leaf).collect();
        let mut chains: Vec<(Span, usize, u64, Box<[u8]>)> = Vec::new();
        let mut from = 0usize;
        while let Some(rest) = addrs.get(from..).filter(|rest| !rest.is_empty()) {
            let batch = spans.get(from..).unwrap_or_default();
            let seen = reader.blocks_while(rest, |index, bytes| {
                let Some((span, owner)) = batch.get(index).copied() else {
                    return true;
                };
                let Some(Open { dir, depth, .. }) = open.get_mut(owner) else {
                    return true;
                };
                match bytes {
                    Ok(bytes) => {
                        let next = self.leaf(dir, span, *depth, span.leaf, bytes);
                        if next != 0 {
                            chains.push((span, owner, next, bytes.into()));
                        }
                    }
                    Err(e) => self.bad_leaf(dir, span.leaf, e),
                }
                chains.len() < CHAINS
            });
            from = from.saturating_add(seen.max(1));
            for (span, owner, next, bytes) in chains.drain(..) {
                if let Some(Open { dir, depth, .. }) = open.get_mut(owner) {
                    self.chain(reader, dir, span, *depth, next, &bytes);
                }
            }
        }
        spans.clear();
        for Open { dir, bytes, .. } in open.drain(..) {
            if let Ok(di) = view::<Dinode>(&bytes, 0, dir.addr) {
                self.close_hashed(&dir, di);
            }
        }
    }

    fn claim_leaf(&mut self, dir: &mut Directory, raw: u64, at: BlockAddr) -> Claim {
        let claim = self.claim(dir.addr, Role::Leaf, raw, at);
        if claim != Claim::Nowhere {
            dir.blocks = dir.blocks.saturating_add(1);
        }
        claim
    }

    /// The slots of the table; [`UNKNOWN`] where it cannot be read.
    fn hash_table(&mut self, reader: &mut Reader<'_>, dir: BlockAddr, di: &Dinode, bytes: &[u8]) -> Vec<u64> {
        let slots = 1usize << di.depth.get().min(gfs2_format::geometry::MAX_DIR_DEPTH);
        if di.height.get() == 0 {
            let mut table: Vec<u64> = pointers(bytes, DINODE_SIZE).take(slots).collect();
            table.resize(slots, UNKNOWN);
            return table;
        }
        let per_block = (self.geometry.jbsize() / 8) as usize;
        let count = slots.div_ceil(per_block) as u64;
        let blocks = list_blocks(reader, &self.geometry, di, bytes, count);
        let mut order: Vec<(BlockAddr, usize)> = Vec::new();
        for (n, block) in blocks.iter().enumerate() {
            match block {
                Some(addr) => order.push((*addr, n)),
                None => {
                    let expected = Expected::Rule("a hash block without a hole");
                    let problem =
                        Problem::new(Kind::HashBlock, dir, "missing hash block", n as u64, expected);
                    self.found(problem.of(dir));
                }
            }
        }
        order.sort_unstable();
        let addrs: Vec<BlockAddr> = order.iter().map(|(addr, _)| *addr).collect();
        let mut table = vec![UNKNOWN; slots];
        reader.blocks(&addrs, |index, bytes| {
            let Some((addr, n)) = order.get(index).copied() else {
                return;
            };
            let checked = bytes.map_err(Clone::clone).and_then(|bytes| {
                MetaHeader::check(bytes, addr, MetaType::Jd)?;
                Ok(bytes)
            });
            match checked {
                Ok(bytes) => {
                    let targets = table.get_mut(n.saturating_mul(per_block)..).unwrap_or_default();
                    let slots = targets.iter_mut().zip(pointers(bytes, META_HEADER_SIZE));
                    slots.for_each(|(slot, raw)| *slot = raw);
                }
                Err(e) => self.error(Kind::HashBlock, Some(dir), addr, &e),
            }
        });
        table
    }

    /// Looks at one leaf block; answers `lf_next`.
    fn leaf(&mut self, dir: &mut Directory, span: Span, depth: u32, at: BlockAddr, bytes: &[u8]) -> u64 {
        if let Err(e) = MetaHeader::check(bytes, at, MetaType::Lf) {
            self.bad_leaf(dir, at, &e);
            return 0;
        }
        let Ok(leaf) = view::<Leaf>(bytes, 0, at) else {
            return 0;
        };
        self.check_span(dir.addr, span, depth, at, leaf);
        let format = leaf.dirent_format.get();
        if ![DIRENT_FORMAT, DIRENT_FORMAT << 16, 0].contains(&format) {
            let expected = Expected::Value(u64::from(DIRENT_FORMAT));
            let found = u64::from(format);
            let problem = Problem::new(Kind::LeafFormat, at, "lf_dirent_format", found, expected);
            self.found(problem.of(dir.addr));
        }
        let range = hashes(span, depth);
        let live = self.records(dir, at, bytes, LEAF_SIZE, range);
        let entries = u64::from(leaf.entries.get());
        if let Some(live) = live.filter(|live| *live != entries) {
            let expected = Expected::Value(live);
            self.found(Problem::new(Kind::LeafCount, at, "lf_entries", entries, expected).of(dir.addr));
        }
        leaf.next.get()
    }

    fn bad_leaf(&mut self, dir: &mut Directory, at: BlockAddr, error: &gfs2_format::Error) {
        dir.partial = true;
        self.inodes.spoil(dir.addr);
        self.error(Kind::LeafBlock, Some(dir.addr), at, error);
    }

    fn check_span(&mut self, dir: BlockAddr, span: Span, depth: u32, at: BlockAddr, leaf: &Leaf) {
        let own = u32::from(leaf.depth.get());
        if !span.len.is_power_of_two() || !span.start.is_multiple_of(span.len) {
            let rule = Expected::Rule("a power of two of slots, aligned");
            let found = u64::from(span.len);
            return self.found(Problem::new(Kind::HashTable, at, "slots of the leaf", found, rule).of(dir));
        }
        let expected = depth.saturating_sub(span.len.trailing_zeros());
        if own != expected {
            let problem = Problem::new(
                Kind::LeafDepth,
                at,
                "lf_depth",
                u64::from(own),
                Expected::Value(u64::from(expected)),
            );
            self.found(problem.of(dir));
        }
    }

    /// Follows a chain from its first leaf `first` on.
    fn chain(
        &mut self,
        reader: &mut Reader<'_>,
        dir: &mut Directory,
        span: Span,
        depth: u32,
        next: u64,
        first: &[u8],
    ) {
        let mut names: HashSet<Box<[u8]>> = HashSet::new();
        self.chain_names(dir, span.leaf, first, &mut names);
        let (mut at, mut next) = (span.leaf, next);
        while next != 0 {
            let addr = BlockAddr::new(next);
            match self.claim_leaf(dir, next, at) {
                Claim::First => {}
                Claim::Nowhere => return,
                Claim::Again => {
                    let rule = Expected::Rule("a leaf that nothing else leads to");
                    let problem = Problem::new(Kind::LeafNext, at, "lf_next", next, rule);
                    return self.found(problem.of(dir.addr));
                }
            }
            let bytes: Box<[u8]> = match reader.block(addr) {
                Ok(bytes) => bytes.into(),
                Err(e) => return self.bad_leaf(dir, addr, &e),
            };
            next = self.leaf(dir, span, depth, addr, &bytes);
            self.chain_names(dir, addr, &bytes, &mut names);
            at = addr;
        }
    }

    /// A name twice in one block is found there; here in different blocks of a chain.
    fn chain_names(&mut self, dir: &Directory, at: BlockAddr, bytes: &[u8], names: &mut HashSet<Box<[u8]>>) {
        let mut fresh: Vec<Box<[u8]>> = Vec::new();
        for record in Area::new(bytes, at, LEAF_SIZE) {
            if let Record::Entry { name, dirent } = record {
                if names.contains(name) {
                    self.duplicate_name(dir.addr, at, name, dirent.hash.get());
                }
                fresh.push(name.into());
            }
        }
        if names.len() < CHAIN_NAMES {
            names.extend(fresh);
        }
    }
}

/// The first and last hash that may stand in a leaf of this span.
fn hashes(span: Span, depth: u32) -> Option<(u32, u32)> {
    let shift = 32u32.checked_sub(depth).filter(|shift| *shift < 32)?;
    let last = span.start.checked_add(span.len)?.checked_sub(1)?;
    let low = span.start.checked_shl(shift)?;
    let high = last.checked_shl(shift)? | ((1u32 << shift) - 1);
    Some((low, high))
}
