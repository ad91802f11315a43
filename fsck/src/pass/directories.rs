//! Every directory: its entries, and what they lead to.
//!
//! Entries are checked against the inodes found before; one that leads to an inode the bitmaps did not show brings
//! that inode into the check. Invariants: directories are looked at once, some hundred at a time; leaves are claimed
//! like any block, so chains that bite their tail end.

use crate::check::{Check, Step};
use crate::observed::Code;
use crate::pass::area::{Area, Record};
use crate::pass::inodes::FoundBy;
use crate::pass::shape::Truth;
use crate::problem::{Kind, Problem};
use crate::reader::Reader;
use gfs2_format::ondisk::{
    BlockState, DINODE_SIZE, Dinode, DinodeFlags, Dirent, FileType, MetaHeader, MetaType, name_hash, view,
};
use gfs2_format::{BlockAddr, Expected};
use std::collections::{BTreeMap, BTreeSet};

/// Directories looked at together.
const DIRECTORIES: usize = 256;
/// Entries that wait for their inode to be looked at; more are answered at once.
const PENDING: usize = 1 << 16;

/// True shapes that are remembered; the kept dinodes have theirs without it.
const TRUTHS: usize = 1 << 16;
/// Bytes that a kept dinode takes besides its own.
const KEPT: usize = 64;

/// An entry that leads to a block of which no inode is known.
#[derive(Debug)]
struct Pending {
    dir: BlockAddr,
    block: BlockAddr,
    name: Box<[u8]>,
    target: BlockAddr,
    formal: u64,
    de_type: u16,
}

/// What is known of the directories.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Blocks counted so far of hashed directories, whose leaves come later.
    blocks: BTreeMap<BlockAddr, u64>,
    /// Which directory has the entry of a directory.
    pub(crate) parents: BTreeMap<BlockAddr, BlockAddr>,
    /// Where ".." leads.
    pub(crate) dotdots: BTreeMap<BlockAddr, BlockAddr>,
    /// Made anew by a repair of this round.
    pub(crate) rebuilt: BTreeSet<BlockAddr>,
    pending: Vec<Pending>,
    /// Dinodes of directories from when inodes were looked at, without the zeroes at their end.
    kept: BTreeMap<BlockAddr, Box<[u8]>>,
    kept_bytes: usize,
    /// Directories that claim another shape than they have.
    truths: BTreeMap<BlockAddr, Truth>,
    /// A directory was seen in part only: there may be entries that nobody knows of.
    pub(crate) is_partial: bool,
}

impl Found {
    /// Bytes in memory, about.
    pub(crate) fn memory(&self) -> u64 {
        let entries = self.blocks.len().saturating_add(self.parents.len());
        // Keys and values of a tree whose nodes are not full.
        let entries = entries.saturating_add(self.dotdots.len()).saturating_mul(24);
        let kept = self
            .kept
            .len()
            .saturating_mul(KEPT)
            .saturating_add(self.kept_bytes);
        entries.saturating_add(kept) as u64
    }

    /// Keeps the dinode of a directory until it is looked at, unless that takes more than `most` bytes of all of them:
    /// then it is read again.
    pub(crate) fn keep(&mut self, dir: BlockAddr, bytes: &[u8], most: u64) {
        let used = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last.saturating_add(1));
        let all = self
            .kept
            .len()
            .saturating_mul(KEPT)
            .saturating_add(self.kept_bytes);
        if all.saturating_add(used).saturating_add(KEPT) as u64 <= most {
            let used = bytes.get(..used).unwrap_or_default();
            self.kept_bytes = self.kept_bytes.saturating_add(used.len());
            self.kept.insert(dir, used.into());
        }
    }

    fn take_kept(&mut self, dir: BlockAddr) -> Option<Box<[u8]>> {
        let kept = self.kept.remove(&dir)?;
        self.kept_bytes = self.kept_bytes.saturating_sub(kept.len());
        Some(kept)
    }

    /// Notes the true shape of a directory, for when it has to be read again.
    pub(crate) fn note_truth(&mut self, dir: BlockAddr, truth: Truth) {
        if self.truths.len() < TRUTHS {
            self.truths.insert(dir, truth);
        }
    }

    pub(crate) fn note_blocks(&mut self, dir: BlockAddr, blocks: u64) {
        self.blocks.insert(dir, blocks);
    }
}

/// A directory being looked at.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) addr: BlockAddr,
    formal: u64,
    /// Unlinked: its blocks count, its entries do not.
    dead: bool,
    pub(crate) entries: u64,
    dots: u32,
    dotdots: u32,
    /// Leaves.
    pub(crate) blocks: u64,
    /// Not all of its entries could be seen: they cannot be counted.
    pub(crate) partial: bool,
}

impl Check<'_> {
    /// Looks at every directory found.
    pub(crate) fn directories(&mut self, reader: &mut Reader<'_>) -> Step {
        let mut all: Vec<BlockAddr> = self
            .inodes
            .iter()
            .filter(|inode| inode.kind == Some(FileType::Dir) && !inode.skipped)
            .map(|inode| inode.addr)
            .collect();
        all.sort_unstable();
        self.walk_directories(reader, &all)?;
        while !self.directories.pending.is_empty() {
            let pending = std::mem::take(&mut self.directories.pending);
            let mut targets: Vec<BlockAddr> = pending.iter().map(|entry| entry.target).collect();
            targets.sort_unstable();
            targets.dedup();
            let dirs = self.adopt(reader, &targets)?;
            self.walk_directories(reader, &dirs)?;
            for entry in pending {
                self.link(&entry, true);
            }
        }
        Ok(())
    }

    fn walk_directories(&mut self, reader: &mut Reader<'_>, dirs: &[BlockAddr]) -> Step {
        for (n, batch) in dirs.chunks(DIRECTORIES).enumerate() {
            let done = (n as u64).saturating_mul(DIRECTORIES as u64);
            if !self.tick(done, dirs.len() as u64)? {
                return Ok(());
            }
            let mut hashed: Vec<(BlockAddr, Box<[u8]>)> = Vec::new();
            self.weigh();
            let mut block = vec![0; self.geometry.block_len()];
            let mut others = Vec::new();
            for addr in batch.iter().copied() {
                let Some(kept) = self.directories.take_kept(addr) else {
                    others.push(addr);
                    continue;
                };
                let len = block.len();
                let (used, rest) = block.split_at_mut(kept.len().min(len));
                used.copy_from_slice(&kept);
                rest.fill(0);
                self.directory(addr, &block, &mut hashed);
            }
            reader.blocks(&others, |index, bytes| {
                let (Some(addr), Ok(bytes)) = (others.get(index).copied(), bytes) else {
                    return;
                };
                match self.directories.truths.get(&addr).copied() {
                    Some(truth) => {
                        let mut bytes: Box<[u8]> = bytes.into();
                        truth.apply(&mut bytes);
                        self.directory(addr, &bytes, &mut hashed);
                    }
                    None => self.directory(addr, bytes, &mut hashed),
                }
            });
            self.hashed_directories(reader, hashed);
        }
        Ok(())
    }

    /// Looks at a directory, or, if it is a hashed one, puts it aside.
    fn directory(&mut self, addr: BlockAddr, bytes: &[u8], hashed: &mut Vec<(BlockAddr, Box<[u8]>)>) {
        let Ok(di) = view::<Dinode>(bytes, 0, addr) else {
            return;
        };
        if di.flags().contains(DinodeFlags::EXHASH) {
            hashed.push((addr, bytes.into()));
        } else {
            self.linear_directory(addr, di, bytes);
        }
    }

    /// Closes a hashed directory all of whose leaves have been looked at.
    pub(crate) fn close_hashed(&mut self, dir: &Directory, di: &Dinode) {
        let counted = self.directories.blocks.remove(&dir.addr).unwrap_or(1);
        self.close(dir, di, Some(counted.saturating_add(dir.blocks)));
    }

    pub(crate) fn open(&self, addr: BlockAddr, di: &Dinode) -> Directory {
        Directory {
            addr,
            formal: di.num.formal_ino.get(),
            dead: self.inodes.get(addr).is_some_and(|inode| inode.unlinked),
            entries: 0,
            dots: 0,
            dotdots: 0,
            blocks: 0,
            partial: false,
        }
    }

    fn linear_directory(&mut self, addr: BlockAddr, di: &Dinode, bytes: &[u8]) {
        let mut dir = self.open(addr, di);
        // The layout was checked with the inode; what has a tree is no linear directory.
        if di.height.get() == 0 {
            self.records(&mut dir, addr, bytes, DINODE_SIZE, None);
        }
        self.close(&dir, di, None);
    }

    fn close(&mut self, dir: &Directory, di: &Dinode, blocks: Option<u64>) {
        let at = dir.addr;
        let blocks = blocks.filter(|_| !dir.partial);
        if let Some(blocks) = blocks.filter(|blocks| *blocks != di.blocks.get()) {
            let expected = Expected::Value(blocks);
            self.found(Problem::new(Kind::DinodeBlocks, at, "di_blocks", di.blocks.get(), expected).of(at));
        }
        self.directories.is_partial |= dir.partial;
        if dir.dead || dir.partial {
            return;
        }
        let entries = u64::from(di.entries.get());
        if entries != dir.entries {
            let expected = Expected::Value(dir.entries);
            self.found(Problem::new(Kind::EntryCount, at, "di_entries", entries, expected).of(at));
        }
        for (kind, name, count) in [
            (Kind::DotMissing, ".", dir.dots),
            (Kind::DotdotMissing, "..", dir.dotdots),
        ] {
            if count != 1 {
                let expected = Expected::Value(1);
                let problem = Problem::new(kind, at, "entries", u64::from(count), expected);
                self.found(problem.of(at).named(name.as_bytes()));
            }
        }
    }

    /// The records of one block; `range`: the hashes that may stand in it. Answers how many are live, or `None` when
    /// the walk could not be finished.
    pub(crate) fn records(
        &mut self,
        dir: &mut Directory,
        block: BlockAddr,
        bytes: &[u8],
        first: usize,
        range: Option<(u32, u32)>,
    ) -> Option<u64> {
        if dir.dead || self.is_search() {
            return None;
        }
        let (at, mut live, mut whole) = (dir.addr, 0u64, true);
        let mut names: Vec<(u32, &[u8])> = Vec::new();
        for record in Area::new(bytes, block, first) {
            let (field, found, expected) = match record {
                Record::Entry { dirent, name } => {
                    live += 1;
                    self.entry(dir, block, dirent, name, range);
                    names.push((dirent.hash.get(), name));
                    continue;
                }
                Record::BadName { name_len, room } => {
                    live += 1;
                    (
                        "de_name_len",
                        u64::from(name_len),
                        Expected::Range(1, room as u64),
                    )
                }
                Record::Empty => ("de_inum", 0, Expected::Range(1, u64::MAX)),
                Record::BadLength { rec_len, left } => {
                    whole = false;
                    dir.partial = true;
                    ("de_rec_len", u64::from(rec_len), Expected::Range(40, left as u64))
                }
            };
            self.found(Problem::new(Kind::EntryRecord, block, field, found, expected).of(at));
        }
        names.sort_unstable();
        for pair in names.windows(2) {
            if let [(_, one), (hash, other)] = pair
                && one == other
            {
                self.duplicate_name(at, block, other, *hash);
            }
        }
        dir.entries = dir.entries.saturating_add(live);
        whole.then_some(live)
    }

    pub(crate) fn duplicate_name(&mut self, dir: BlockAddr, block: BlockAddr, name: &[u8], hash: u32) {
        let rule = Expected::Rule("a name that no other entry has");
        let problem = Problem::new(Kind::DuplicateName, block, "de_hash", u64::from(hash), rule);
        self.found(problem.of(dir).named(name));
    }

    fn entry(
        &mut self,
        dir: &mut Directory,
        block: BlockAddr,
        dirent: &Dirent,
        name: &[u8],
        range: Option<(u32, u32)>,
    ) {
        let at = dir.addr;
        let mut wrong = |kind, field, found: u64, expected| {
            self.found(
                Problem::new(kind, block, field, found, expected)
                    .of(at)
                    .named(name),
            );
        };
        if let Some(byte) = name.iter().find(|byte| **byte == 0 || **byte == b'/') {
            let rule = Expected::Rule("any byte but 0 and /");
            wrong(Kind::EntryName, "name byte", u64::from(*byte), rule);
        }
        let (stored, hash) = (dirent.hash.get(), name_hash(name));
        if stored != hash {
            wrong(
                Kind::EntryHash,
                "de_hash",
                u64::from(stored),
                Expected::Value(u64::from(hash)),
            );
        } else if let Some((low, high)) = range.filter(|(low, high)| !(*low..=*high).contains(&hash)) {
            let expected = Expected::Range(u64::from(low), u64::from(high));
            wrong(Kind::LeafPlace, "de_hash", u64::from(hash), expected);
        }
        let entry = Pending {
            dir: at,
            block,
            name: name.into(),
            target: BlockAddr::new(dirent.inum.addr.get()),
            formal: dirent.inum.formal_ino.get(),
            de_type: dirent.de_type.get(),
        };
        match name {
            b"." => {
                dir.dots += 1;
                self.dot(dir, &entry);
            }
            b".." => {
                dir.dotdots += 1;
                self.dotdot(&entry);
            }
            _ => self.link(&entry, false),
        }
    }

    fn dot(&mut self, dir: &Directory, entry: &Pending) {
        let own = dir.addr.get();
        let (field, found, expected) = if entry.target != dir.addr {
            ("de_inum.no_addr", entry.target.get(), own)
        } else if entry.formal != dir.formal {
            ("de_inum.no_formal_ino", entry.formal, dir.formal)
        } else {
            return self.check_type(entry, FileType::Dir);
        };
        let problem = Problem::new(
            Kind::DotTarget,
            entry.block,
            field,
            found,
            Expected::Value(expected),
        );
        self.found(problem.of(dir.addr).named(&entry.name));
    }

    fn dotdot(&mut self, entry: &Pending) {
        self.directories.dotdots.insert(entry.dir, entry.target);
        let formal = self.inodes.get(entry.target).map(|inode| inode.formal);
        if let Some(formal) = formal.filter(|formal| *formal != entry.formal) {
            self.wrong_formal(entry, formal);
        }
        self.check_type(entry, FileType::Dir);
    }

    fn wrong_formal(&mut self, entry: &Pending, formal: u64) {
        let field = "de_inum.no_formal_ino";
        let problem = Problem::new(
            Kind::EntryFormal,
            entry.block,
            field,
            entry.formal,
            Expected::Value(formal),
        );
        self.found(problem.of(entry.dir).named(&entry.name));
    }

    fn check_type(&mut self, entry: &Pending, kind: FileType) {
        let expected = kind.dirent_type();
        if entry.de_type != expected {
            let found = u64::from(entry.de_type);
            let expected = Expected::Value(u64::from(expected));
            let problem = Problem::new(Kind::EntryType, entry.block, "de_type", found, expected);
            self.found(problem.of(entry.dir).named(&entry.name));
        }
    }

    /// An entry other than "." and "..": counts it for its inode. `last`: the inode has been looked for already.
    fn link(&mut self, entry: &Pending, last: bool) {
        let Some(inode) = self.inodes.get_mut(entry.target).filter(|inode| !inode.unlinked) else {
            return self.link_to_none(entry, last);
        };
        let (kind, formal) = (inode.kind, inode.formal);
        // Whether the entry or the inode is to be believed is for a repair to say; the link counts either way.
        if kind != Some(FileType::Dir) {
            inode.links = inode.links.saturating_add(1);
        }
        if formal != entry.formal {
            self.wrong_formal(entry, formal);
        }
        if kind == Some(FileType::Dir) {
            return self.link_to_directory(entry);
        }
        if let Some(kind) = kind {
            self.check_type(entry, kind);
        }
    }

    fn link_to_directory(&mut self, entry: &Pending) {
        self.check_type(entry, FileType::Dir);
        let roots = [
            self.superblock.root_dir.num().addr,
            self.superblock.master_dir.num().addr,
        ];
        let root = roots.contains(&entry.target);
        if let Some(first) = self.directories.parents.get(&entry.target).copied() {
            let expected = Expected::Rule("one entry for a directory");
            let problem = Problem::new(
                Kind::SecondLink,
                entry.block,
                "first parent",
                first.get(),
                expected,
            );
            return self.found(problem.of(entry.dir).named(&entry.name));
        }
        if root {
            let expected = Expected::Rule("no entry for a root directory");
            let found = entry.target.get();
            let problem = Problem::new(Kind::SecondLink, entry.block, "de_inum.no_addr", found, expected);
            return self.found(problem.of(entry.dir).named(&entry.name));
        }
        self.directories.parents.insert(entry.target, entry.dir);
        // A directory's count: one for each directory in it.
        if let Some(parent) = self.inodes.get_mut(entry.dir) {
            parent.links = parent.links.saturating_add(1);
        }
    }

    fn link_to_none(&mut self, entry: &Pending, last: bool) {
        let slot = self.observed.locate(entry.target);
        let waits = slot.is_some() && !last && self.inodes.get(entry.target).is_none();
        if waits && self.directories.pending.len() < PENDING {
            self.directories.pending.push(Pending {
                name: entry.name.clone(),
                ..*entry
            });
            return;
        }
        let (field, found, expected) = match slot {
            Some(slot) => {
                let state = self.observed.state(slot) as u64;
                ("block state", state, Expected::Value(BlockState::Dinode as u64))
            }
            None => {
                let rule = Expected::Rule("a block of a resource group");
                ("de_inum.no_addr", entry.target.get(), rule)
            }
        };
        let problem = Problem::new(Kind::EntryTarget, entry.block, field, found, expected);
        self.found(problem.of(entry.dir).named(&entry.name));
    }

    /// Takes inodes into the check that their bitmaps do not show; `targets` ascending. Answers which of them are
    /// directories, still to be looked at.
    pub(crate) fn adopt(&mut self, reader: &mut Reader<'_>, targets: &[BlockAddr]) -> Step<Vec<BlockAddr>> {
        let mut inodes: Vec<(BlockAddr, FoundBy)> = Vec::new();
        let mut dirs = Vec::new();
        reader.blocks(targets, |index, bytes| {
            let (Some(addr), Ok(bytes)) = (targets.get(index).copied(), bytes) else {
                return;
            };
            let Some(slot) = self
                .observed
                .locate(addr)
                .filter(|_| self.inodes.get(addr).is_none())
            else {
                return;
            };
            let whole = MetaHeader::check(bytes, addr, MetaType::Di).is_ok();
            let Some(di) = view::<Dinode>(bytes, 0, addr).ok().filter(|_| whole) else {
                return;
            };
            let free = matches!(self.observed.code(slot), Code::Free | Code::Used);
            if di.num.addr.get() != addr.get() || !free {
                return;
            }
            if !self.observed.is_blind(slot) {
                let found = self.observed.state(slot) as u64;
                let expected = Expected::Value(BlockState::Dinode as u64);
                self.found(
                    Problem::new(Kind::DinodeNotMarked, addr, "block state", found, expected).of(addr),
                );
            }
            self.observed.set_seen(slot);
            inodes.push((addr, FoundBy::Entry));
            if di.is_dir() {
                dirs.push(addr);
            }
        });
        self.walk_inodes(reader, &inodes)?;
        dirs.retain(|addr| self.inodes.get(*addr).is_some_and(|inode| !inode.skipped));
        Ok(dirs)
    }
}
