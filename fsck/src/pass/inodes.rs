//! Every inode the bitmaps show: its dinode, the tree of its pointers, its extended attributes.
//!
//! Inodes come in disk order, some hundred at a time; the metadata blocks below them wait in a stack of which the top
//! is read at once, sorted. Invariants: no recursion; the stack holds at most what a few blocks at each level point
//! to; a block with an owner is not entered again; data is never read.

use crate::check::{Check, Claim, Role, Step};
use crate::observed::Code;
use crate::pass::shape::{self, Truth};
use crate::pass::tree::each_pointer;
use crate::problem::{Kind, Problem};
use crate::reader::Reader;
use crate::report::Stage;
use crate::table::Inode;
use gfs2_format::geometry::MAX_DIR_DEPTH;
use gfs2_format::ondisk::{
    BlockState, DINODE_SIZE, Dinode, DinodeFlags, FileType, META_HEADER_SIZE, MetaHeader, MetaType, view,
};
use gfs2_format::{Block, BlockAddr, Expected};

/// Inodes looked at together: so many that the device seldom waits for the next ones.
const INODES: usize = 1 << 15;
/// How often among them the first walk says how far it is.
const TOLD: usize = 256;
/// Groups whose bitmaps are looked through for them.
const GROUPS: usize = 1024;
/// Blocks that wait on the stack before inodes have to wait, too.
const STACK: usize = 1 << 17;
/// Metadata blocks read together: what each points to goes on the stack.
const BLOCKS: usize = 256;
/// Inodes whose shape is doubted that are kept before others are looked at.
const SUSPECTS: usize = 256;
/// The same of those that nothing goes on the stack for.
const LAST_BLOCKS: usize = 1 << 13;

/// An inode whose tree is being walked.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) addr: BlockAddr,
    is_dir: bool,
    is_exhash: bool,
    /// Blocks of the hash table, if this has one whose size is known.
    table: Option<u64>,
    /// Blocks owned, as counted.
    pub(crate) blocks: u64,
    /// `di_blocks`.
    claimed: u64,
}

/// What a metadata block on the stack is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Indirect block with so many levels below it (1: it points to data), and which pointer of its level is its first.
    Indirect(u16, u64),
    /// Of a hashed directory: behind the end of its table. Where it is pointed to, by which pointer.
    Beyond(BlockAddr, u64),
    /// List of xattr blocks.
    EaList,
    /// Xattr block.
    Ea,
    /// Block of an xattr's value.
    EaValue,
}

/// A metadata block to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) block: BlockAddr,
    /// Index of its inode among the active ones.
    pub(crate) owner: usize,
    pub(crate) what: What,
}

/// A walk over some inodes.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    pub(crate) active: Vec<Active>,
    pub(crate) stack: Vec<Task>,
    /// Inodes whose shape contradicts the rest of them.
    suspects: Vec<(BlockAddr, FoundBy, Box<[u8]>)>,
}

/// How an inode was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FoundBy {
    /// Its bitmap says inode.
    Bitmap {
        /// In state unlinked.
        unlinked: bool,
    },
    /// A directory entry leads to it, its bitmap does not say inode.
    Entry,
}

/// Has the inode no content, and a directory nothing but its own two entries?
fn is_empty(di: &Dinode) -> bool {
    let hashed = di.flags().contains(DinodeFlags::EXHASH);
    di.size.get() == 0 && di.eattr.get() == 0 && di.entries.get() <= 2 && !hashed
}

impl Check<'_> {
    /// The first walk.
    pub(crate) fn inodes(&mut self, reader: &mut Reader<'_>) -> Step {
        let end = self.geometry.end();
        let (mut group, mut start) = (0, 0);
        while let Some(at) = self.observed.groups().get(group) {
            let at = at.layout.addr().get().saturating_add(u64::from(start));
            if !self.tick(at, end)? {
                return Ok(());
            }
            let batch = self.next_inodes(&mut group, &mut start);
            if !self.walk_inodes(reader, &batch)? {
                return Ok(());
            }
            self.weigh();
        }
        Ok(())
    }

    /// The next inodes the bitmaps show, from data block `start` of group `group` on; both move on behind them.
    fn next_inodes(&self, group: &mut usize, start: &mut u32) -> Vec<(BlockAddr, FoundBy)> {
        let mut batch: Vec<(BlockAddr, FoundBy)> = Vec::new();
        let end = group.saturating_add(GROUPS);
        while let Some(found) = self.observed.groups().get(*group).filter(|_| *group < end) {
            let data0 = found.layout.data0();
            for (index, unlinked) in found.with_code(Code::Inode, *start) {
                if batch.len() >= INODES {
                    *start = index;
                    return batch;
                }
                let addr = data0.checked_add(u64::from(index));
                batch.extend(addr.map(|addr| (addr, FoundBy::Bitmap { unlinked })));
            }
            (*group, *start) = (group.saturating_add(1), 0);
        }
        batch
    }

    /// The second walk: the same inodes again.
    pub(crate) fn inodes_again(&mut self, reader: &mut Reader<'_>) -> Step {
        let all: Vec<(BlockAddr, FoundBy)> = self
            .inodes
            .iter()
            .map(|inode| {
                let unlinked = inode.unlinked;
                (inode.addr, FoundBy::Bitmap { unlinked })
            })
            .collect();
        for batch in all.chunks(INODES) {
            self.walk_inodes(reader, batch)?;
        }
        Ok(())
    }

    /// Looks at these inodes (ascending) and everything below them but leaves. Only the first walk says how far it is;
    /// false: the rest of it is left out.
    pub(crate) fn walk_inodes(
        &mut self,
        reader: &mut Reader<'_>,
        batch: &[(BlockAddr, FoundBy)],
    ) -> Step<bool> {
        let mut from = 0usize;
        while let Some(rest) = batch.get(from..).filter(|rest| !rest.is_empty()) {
            match self.walk_some(reader, rest)? {
                0 => return Ok(false),
                seen => from = from.saturating_add(seen),
            }
        }
        Ok(true)
    }

    /// The same; answers how many: the others have to wait, because so much is below these. 0: they are left out.
    fn walk_some(&mut self, reader: &mut Reader<'_>, batch: &[(BlockAddr, FoundBy)]) -> Step<usize> {
        let addrs: Vec<BlockAddr> = batch.iter().map(|(addr, _)| *addr).collect();
        let (end, first_walk) = (self.geometry.end(), self.is_stage(Stage::Inodes));
        let mut walk = Walk::default();
        let mut more = Ok(true);
        let seen = reader.blocks_while(&addrs, |index, bytes| {
            if let Some((addr, by)) = batch.get(index).copied() {
                match bytes {
                    Ok(bytes) if self.is_suspect(addr, bytes) => walk.suspects.push((addr, by, bytes.into())),
                    Ok(bytes) => self.inode(&mut walk, addr, by, bytes),
                    Err(e) => self.error(Kind::NotADinode, Some(addr), addr, e),
                }
                if first_walk && index % TOLD == TOLD - 1 {
                    more = self.tick(addr.get(), end);
                }
            }
            walk.stack.len() < STACK && walk.suspects.len() < SUSPECTS && matches!(more, Ok(true))
        });
        for (addr, by, mut bytes) in std::mem::take(&mut walk.suspects) {
            self.set_right(reader, addr, &mut bytes);
            self.inode(&mut walk, addr, by, &bytes);
        }
        if !more? {
            return Ok(0);
        }
        self.walk_down(reader, &mut walk);
        for active in walk.active {
            if active.is_exhash {
                self.directories.note_blocks(active.addr, active.blocks);
            } else if active.blocks != active.claimed {
                let expected = Expected::Value(active.blocks);
                self.found(
                    Problem::new(
                        Kind::DinodeBlocks,
                        active.addr,
                        "di_blocks",
                        active.claimed,
                        expected,
                    )
                    .of(active.addr),
                );
            }
        }
        Ok(seen)
    }

    /// Looks at what waits on the stack, and at everything below it.
    fn walk_down(&mut self, reader: &mut Reader<'_>, walk: &mut Walk) {
        while !walk.stack.is_empty() {
            // Pointers behind the end of a hash table are the exception: each of them is looked at.
            let table = |task: &Task| walk.active.get(task.owner).is_some_and(|a| a.table.is_some());
            let last = |task: &&Task| match task.what {
                What::Indirect(1, _) => !table(task),
                What::EaValue | What::Beyond(..) => true,
                _ => false,
            };
            let last = walk.stack.iter().rev().take(LAST_BLOCKS).take_while(last).count();
            let keep = walk.stack.len().saturating_sub(last.max(BLOCKS));
            let mut tasks = walk.stack.split_off(keep);
            tasks.sort_unstable_by_key(|task| task.block);
            let addrs: Vec<BlockAddr> = tasks.iter().map(|task| task.block).collect();
            reader.blocks(&addrs, |index, bytes| {
                let (Some(task), Some(inode)) = (
                    tasks.get(index),
                    tasks.get(index).and_then(|t| walk.active.get(t.owner)),
                ) else {
                    return;
                };
                let inode = inode.addr;
                match bytes {
                    Ok(bytes) => self.metadata(walk, *task, inode, bytes),
                    Err(e) => {
                        // Nobody knows what it is: it stays as it is.
                        if let What::Beyond(at, _) = task.what {
                            self.claim_hash_block(walk, *task, at);
                        }
                        let kind = match task.what {
                            What::Indirect(..) => Kind::IndirectType,
                            What::Beyond(..) => Kind::TableEnd,
                            What::EaList | What::Ea | What::EaValue => Kind::EaBlock,
                        };
                        self.error(kind, Some(inode), task.block, e);
                    }
                }
            });
        }
    }

    fn metadata(&mut self, walk: &mut Walk, task: Task, inode: BlockAddr, bytes: &[u8]) {
        let kind = match task.what {
            What::Indirect(below, start) => {
                if let Err(e) = MetaHeader::check(bytes, task.block, MetaType::In) {
                    self.inodes.spoil(inode);
                    return self.error(Kind::IndirectType, Some(inode), task.block, &e);
                }
                let below_it = (bytes, META_HEADER_SIZE, usize::MAX);
                return self.follow(walk, (task.owner, task.block), below_it, below, start);
            }
            What::Beyond(at, place) => return self.beyond(walk, task, at, place, bytes),
            What::EaList => MetaType::In,
            What::Ea => MetaType::Ea,
            What::EaValue => MetaType::Ed,
        };
        if let Err(e) = MetaHeader::check(bytes, task.block, kind) {
            return self.error(Kind::EaBlock, Some(inode), task.block, &e);
        }
        match task.what {
            What::EaList => self.ea_list(walk, task, bytes),
            What::Ea => self.ea_block(walk, task, bytes),
            What::Indirect(..) | What::Beyond(..) | What::EaValue => {}
        }
    }

    /// Looks at a block behind the end of a hash table. A hash block may be there: the kernel leaves those it had when
    /// there was no room for all of a table of twice the size. Anything else is not the directory's.
    fn beyond(&mut self, walk: &mut Walk, task: Task, at: BlockAddr, place: u64, bytes: &[u8]) {
        if MetaHeader::check(bytes, task.block, MetaType::Jd).is_ok() {
            return self.claim_hash_block(walk, task, at);
        }
        let Some(active) = walk.active.get(task.owner) else {
            return;
        };
        let raw = task.block.get();
        let problem = Problem::new(Kind::TableEnd, at, "pointer", raw, Expected::Value(0));
        self.found(problem.of(active.addr).at(place));
    }

    fn claim_hash_block(&mut self, walk: &mut Walk, task: Task, at: BlockAddr) {
        if let Some(active) = walk.active.get_mut(task.owner) {
            self.claim(active.addr, Role::Hash, task.block.get(), at);
            active.blocks = active.blocks.saturating_add(1);
        }
    }

    /// Claims what a dinode or indirect block of an inode points to, from a byte of it on and so many pointers at most;
    /// `below`: levels below that block; `start`: which pointer of its level is its first.
    fn follow(
        &mut self,
        walk: &mut Walk,
        (owner, at): (usize, BlockAddr),
        (bytes, from, count): (&[u8], usize, usize),
        below: u16,
        start: u64,
    ) {
        let Some(active) = walk.active.get_mut(owner) else {
            return;
        };
        let role = match below {
            1 if active.is_dir => Role::Hash,
            1 => Role::Data,
            _ => Role::Indirect,
        };
        let table = active.table.filter(|_| below == 1).unwrap_or(u64::MAX);
        each_pointer(bytes, from, count, |n, raw| {
            let place = start.saturating_add(n);
            let block = BlockAddr::new(raw);
            if place >= table && self.observed.locate(block).is_some() {
                let what = What::Beyond(at, n);
                walk.stack.push(Task { block, owner, what });
                return;
            }
            let claim = self.claim(active.addr, role, raw, at);
            if claim == Claim::Nowhere {
                self.inodes.spoil(active.addr);
            } else {
                active.blocks = active.blocks.saturating_add(1);
            }
            if claim == Claim::First && below > 1 {
                let what = What::Indirect(below - 1, place.saturating_mul(self.geometry.inptrs()));
                walk.stack.push(Task { block, owner, what });
            }
        });
    }

    /// Has the inode's shape to be looked into before it is believed?
    fn is_suspect(&self, addr: BlockAddr, bytes: &[u8]) -> bool {
        MetaHeader::check(bytes, addr, MetaType::Di).is_ok()
            && view::<Dinode>(bytes, 0, addr).is_ok_and(|di| shape::is_suspect(&self.geometry, di, bytes))
    }

    /// Looks into the shape of a suspect inode; what is wrong with it is a finding, and all there is to find then.
    fn set_right(&mut self, reader: &mut Reader<'_>, addr: BlockAddr, bytes: &mut [u8]) {
        let mut read = |block: BlockAddr| reader.block(block).ok().map(|bytes| Block::new(bytes.into()));
        let mut inside = |block: BlockAddr| self.observed.locate(block).is_some();
        let mut budget = self.shape_reads;
        let truth = shape::truth(&self.geometry, bytes, &mut read, &mut inside, &mut budget);
        self.shape_reads = budget;
        let Some(di) = view::<Dinode>(bytes, 0, addr)
            .ok()
            .filter(|_| truth != Truth::default())
        else {
            return;
        };
        let fields = [
            (
                Kind::DinodeHeight,
                "di_height",
                u64::from(di.height.get()),
                truth.height.map(u64::from),
            ),
            (
                Kind::DinodeHeight,
                "di_depth",
                u64::from(di.depth.get()),
                truth.depth.map(u64::from),
            ),
            (Kind::TableSize, "di_size", di.size.get(), truth.size),
        ];
        for (kind, field, found, expected) in fields {
            if let Some(expected) = expected.map(Expected::Value) {
                self.found(Problem::new(kind, addr, field, found, expected).of(addr));
            }
        }
        truth.apply(bytes);
        self.directories.note_truth(addr, truth);
    }

    fn inode(&mut self, walk: &mut Walk, addr: BlockAddr, by: FoundBy, bytes: &[u8]) {
        if let Err(e) = MetaHeader::check(bytes, addr, MetaType::Di) {
            self.forget(addr);
            return self.error(Kind::NotADinode, None, addr, &e);
        }
        let Ok(di) = view::<Dinode>(bytes, 0, addr) else {
            return;
        };
        let followed = self.check_dinode(addr, di);
        let unlinked = by == FoundBy::Bitmap { unlinked: true };
        if !self.is_search() {
            self.inodes.add(Inode {
                addr,
                formal: di.num.formal_ino.get(),
                nlink: di.nlink.get(),
                links: 0,
                kind: di.file_type(),
                unlinked,
                skipped: !followed,
                empty: is_empty(di),
                bad: false,
            });
            if unlinked {
                let found = BlockState::Unlinked as u64;
                let expected = Expected::Rule("0 (free) once it is deleted");
                self.found(Problem::new(Kind::Unlinked, addr, "block state", found, expected).of(addr));
            }
        }
        if !followed {
            return;
        }
        if di.is_dir() && !self.is_search() {
            self.keep_directory(addr, bytes);
        }
        let owner = walk.active.len();
        let is_exhash = di.flags().contains(DinodeFlags::EXHASH);
        walk.active.push(Active {
            addr,
            is_dir: di.is_dir(),
            is_exhash,
            table: is_exhash.then(|| self.table_blocks(di)).flatten(),
            blocks: 1,
            claimed: di.blocks.get(),
        });
        let height = di.height.get();
        if height > 0 {
            let top = (bytes, DINODE_SIZE, self.geometry.diptrs() as usize);
            self.follow(walk, (owner, addr), top, height, 0);
        }
        let eattr = di.eattr.get();
        if eattr != 0 {
            let list = di.flags().contains(DinodeFlags::EA_INDIRECT);
            let (role, what) = if list {
                (Role::EaList, What::EaList)
            } else {
                (Role::Ea, What::Ea)
            };
            self.claim_xattr(walk, owner, addr, eattr, role, what);
        }
    }

    /// Blocks of a directory's hash table. Not where size and depth contradict each other, and not of a table that
    /// belongs into the dinode: what seem to be pointers to hash blocks are its slots then.
    fn table_blocks(&self, di: &Dinode) -> Option<u64> {
        let bytes = 8u64.checked_shl(u32::from(di.depth.get()))?;
        let known = di.is_dir() && di.size.get() == bytes && bytes > self.geometry.max_stuffed();
        known.then(|| bytes.div_ceil(self.geometry.jbsize()))
    }

    /// A block that is no inode after all: nobody misses it, but a pointer to it is no surprise.
    fn forget(&mut self, addr: BlockAddr) {
        if let Some(slot) = self.observed.locate(addr) {
            self.observed.set_seen(slot);
        }
    }

    /// Checks the dinode by itself; answers whether its pointers can be followed.
    fn check_dinode(&mut self, addr: BlockAddr, di: &Dinode) -> bool {
        let mut wrong = |kind, field, found: u64, expected| {
            self.found(Problem::new(kind, addr, field, found, expected).of(addr));
        };
        if di.num.addr.get() != addr.get() {
            wrong(
                Kind::DinodeAddress,
                "no_addr",
                di.num.addr.get(),
                Expected::Value(addr.get()),
            );
        }
        if di.num.formal_ino.get() == 0 {
            wrong(
                Kind::DinodeFormal,
                "no_formal_ino",
                0,
                Expected::Range(1, u64::MAX),
            );
        }
        let kind = di.file_type();
        if kind.is_none() {
            let rule = Expected::Rule("a mode with a file type");
            wrong(Kind::DinodeMode, "di_mode", u64::from(di.mode.get()), rule);
        }
        let flags = di.flags();
        if flags.contains(DinodeFlags::TRUNC_IN_PROG) {
            let rule = Expected::Rule("no GFS2_DIF_TRUNC_IN_PROG");
            wrong(
                Kind::TruncateInProgress,
                "di_flags",
                u64::from(flags.bits()),
                rule,
            );
        }
        self.check_goal(addr, di);
        self.check_layout(addr, di)
    }

    fn check_goal(&mut self, addr: BlockAddr, di: &Dinode) {
        // Inodes of the system tree have goals of their own; the kernel does not look at them.
        if di.flags().contains(DinodeFlags::SYSTEM) {
            return;
        }
        let sb = self.geometry.superblock().get();
        let end = self
            .observed
            .groups()
            .last()
            .map_or(self.geometry.end(), |g| g.layout.end().get());
        let goal = di.goal_meta.get();
        if goal <= sb || goal > end {
            let expected = Expected::Range(sb.saturating_add(1), end);
            self.found(Problem::new(Kind::DinodeGoal, addr, "di_goal_meta", goal, expected).of(addr));
        }
    }

    /// Height, depth, size, flags: do they describe a layout?
    fn check_layout(&mut self, addr: BlockAddr, di: &Dinode) -> bool {
        let (height, depth, size) = (di.height.get(), di.depth.get(), di.size.get());
        let (max_height, stuffed) = (self.geometry.max_height(), self.geometry.max_stuffed());
        let initial = self.geometry.initial_dir_depth();
        let flags = di.flags();
        let mut wrong = |kind, field, found: u64, expected| {
            self.found(Problem::new(kind, addr, field, found, expected).of(addr));
        };
        if height > max_height {
            let expected = Expected::Range(0, u64::from(max_height));
            wrong(Kind::DinodeHeight, "di_height", u64::from(height), expected);
            return false;
        }
        let (is_dir, exhash) = (di.is_dir(), flags.contains(DinodeFlags::EXHASH));
        let least = if exhash && is_dir { initial } else { 0 };
        if depth > MAX_DIR_DEPTH || depth < least {
            let expected = Expected::Range(u64::from(least), u64::from(MAX_DIR_DEPTH));
            wrong(Kind::DinodeHeight, "di_depth", u64::from(depth), expected);
            return false;
        }
        if exhash && !is_dir {
            let rule = Expected::Rule("no GFS2_DIF_EXHASH on what is no directory");
            wrong(Kind::DinodeFlags, "di_flags", u64::from(flags.bits()), rule);
        }
        if flags.contains(DinodeFlags::EA_INDIRECT) && di.eattr.get() == 0 {
            let rule = Expected::Rule("no GFS2_DIF_EA_INDIRECT without attributes");
            wrong(Kind::DinodeFlags, "di_flags", u64::from(flags.bits()), rule);
        }
        if is_dir && !flags.contains(DinodeFlags::JDATA) {
            let rule = Expected::Rule("GFS2_DIF_JDATA on a directory");
            wrong(Kind::DinodeFlags, "di_flags", u64::from(flags.bits()), rule);
        }
        if is_dir && !exhash {
            // Its entries fill the dinode, however few they are; other readers refuse anything else. One of no size
            // may be what is left of a deletion, which only its entry tells.
            if size != stuffed && !is_empty(di) {
                wrong(Kind::DinodeSize, "di_size", size, Expected::Value(stuffed));
            }
        } else if height == 0 && size > stuffed {
            wrong(Kind::DinodeSize, "di_size", size, Expected::Range(0, stuffed));
        }
        match di.file_type() {
            Some(FileType::Dir) if exhash => {
                let table = 8u64 << depth;
                if size != table {
                    wrong(Kind::TableSize, "di_size", size, Expected::Value(table));
                }
            }
            Some(FileType::Dir) if height != 0 => {
                wrong(
                    Kind::DinodeHeight,
                    "di_height",
                    u64::from(height),
                    Expected::Value(0),
                );
            }
            Some(FileType::Symlink) if size == 0 || height != 0 => {
                wrong(Kind::DinodeSize, "di_size", size, Expected::Range(1, stuffed));
            }
            _ => {}
        }
        true
    }
}
