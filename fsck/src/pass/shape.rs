//! How high an inode's tree is and how deep a directory's table, where the dinode cannot be right.
//!
//! A height that is wrong makes names and data look like pointers, and pointers like data: everything below it would
//! be a finding, and the repairs would destroy what is whole. So an inode that contradicts itself is looked at before
//! anything of it is believed. Invariants: only what contradicts itself is suspect (and a file whose size does not
//! tell its height); something else is believed only where it explains the inode and what it claims does not; no
//! more blocks are read than the caller allows.

use crate::pass::tree::pointers;
use gfs2_format::geometry::MAX_DIR_DEPTH;
use gfs2_format::ondisk::{
    DINODE_SIZE, Dinode, DinodeFlags, FileType, Leaf, META_HEADER_SIZE, MetaHeader, MetaType, view, view_mut,
};
use gfs2_format::{Block, BlockAddr, BlockRead, Error, FileBlock, Geometry};

/// Blocks that are read for one inode at most.
const READS: u32 = 1 << 12;
/// A system file of at most so many bytes is one record, which stands in the dinode.
const RECORD: u64 = 24;

/// What an inode of this kind holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Everything is in the dinode.
    Stuffed,
    /// A hash table.
    Table,
    /// Data, in the dinode or below it.
    Data,
}

/// Fields of a dinode that are not what they should be, as they should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Truth {
    /// `di_height`.
    pub(crate) height: Option<u16>,
    /// `di_depth`.
    pub(crate) depth: Option<u16>,
    /// `di_size` of a hash table.
    pub(crate) size: Option<u64>,
}

impl Truth {
    /// Sets the fields of a dinode that is looked at (and not written).
    pub(crate) fn apply(&self, bytes: &mut [u8]) {
        let Ok(di) = view_mut::<Dinode>(bytes, 0, BlockAddr::default()) else {
            return;
        };
        if let Some(height) = self.height {
            di.height = height.into();
        }
        if let Some(depth) = self.depth {
            di.depth = depth.into();
        }
        if let Some(size) = self.size {
            di.size = size.into();
        }
    }
}

fn form(di: &Dinode) -> Option<Form> {
    let (kind, size, flags) = (di.file_type()?, di.size.get(), di.flags());
    Some(match kind {
        FileType::Dir if flags.contains(DinodeFlags::EXHASH) => Form::Table,
        FileType::Regular if !(flags.contains(DinodeFlags::SYSTEM) && size <= RECORD) => Form::Data,
        _ => Form::Stuffed,
    })
}

/// Bytes of a hash table of this depth.
fn table_bytes(depth: u16) -> u64 {
    8u64.checked_shl(u32::from(depth)).unwrap_or(u64::MAX)
}

/// The height that a hash table of this depth has.
fn table_height(geometry: &Geometry, depth: u16) -> u16 {
    let bytes = table_bytes(depth);
    if bytes <= geometry.max_stuffed() {
        return 0;
    }
    let last = bytes.div_ceil(geometry.jbsize()).saturating_sub(1);
    geometry.height_for(FileBlock::new(last), 1)
}

fn top<'a>(geometry: &Geometry, bytes: &'a [u8]) -> impl Iterator<Item = u64> + 'a {
    let slots = geometry.diptrs() as usize;
    pointers(bytes, DINODE_SIZE).take(slots).filter(|raw| *raw != 0)
}

/// Does the dinode contradict itself in a way that another height might explain?
pub(crate) fn is_suspect(geometry: &Geometry, di: &Dinode, bytes: &[u8]) -> bool {
    let (height, size, blocks) = (di.height.get(), di.size.get(), di.blocks.get());
    let xattr = u64::from(di.eattr.get() != 0);
    match form(di) {
        None => false,
        Some(Form::Stuffed) => height != 0,
        Some(Form::Table) => {
            let depth = di.depth.get();
            !(geometry.initial_dir_depth()..=MAX_DIR_DEPTH).contains(&depth)
                || size != table_bytes(depth)
                || height != table_height(geometry, depth)
        }
        Some(Form::Data) => {
            let dense = size.div_ceil(u64::from(geometry.bsize()));
            let needed = match dense {
                0 => 0,
                _ => geometry.height_for(FileBlock::new(dense.saturating_sub(1)), 1),
            };
            let least = xattr.saturating_add(1);
            match height {
                0 if size <= geometry.max_stuffed() && (blocks <= 1 || xattr != 0) => false,
                // A file without a hole.
                1 if needed == 1 && blocks == least.saturating_add(dense) && dense > 0 => false,
                0 => top(geometry, bytes).next().is_some(),
                1 => {
                    let count = top(geometry, bytes).count() as u64;
                    count > 0 && (needed > 1 || blocks != least.saturating_add(count))
                }
                _ => {
                    let count = top(geometry, bytes).count() as u64;
                    // One that was higher once, or has room for more, has its blocks below the indirect ones.
                    let tall = height > 2 || xattr != 0;
                    let doubted = needed > height || (needed < height && tall);
                    count > 0 && (doubted || blocks <= least.saturating_add(count))
                }
            }
        }
    }
}

/// Looks below a dinode.
struct Below<'a> {
    geometry: &'a Geometry,
    di: &'a Dinode,
    bytes: &'a [u8],
    read: &'a mut dyn FnMut(BlockAddr) -> Option<Block>,
    inside: &'a mut dyn FnMut(BlockAddr) -> bool,
    reads: u32,
}

impl Below<'_> {
    fn block(&mut self, addr: BlockAddr) -> Option<Block> {
        self.reads = self.reads.checked_sub(1)?;
        (self.read)(addr)
    }

    fn is(&mut self, addr: BlockAddr, kind: MetaType) -> bool {
        self.block(addr)
            .is_some_and(|bytes| MetaHeader::check(&bytes, addr, kind).is_ok())
    }

    /// The first block of the lowest level of a tree of this height, if the pointers lead there.
    fn first(&mut self, height: u16) -> Option<BlockAddr> {
        let mut stack: Vec<(u64, u16)> = top(self.geometry, self.bytes).map(|raw| (raw, height)).collect();
        stack.reverse();
        // An indirect block may be without a pointer: a tree that grew higher has such.
        while let Some((raw, below)) = stack.pop() {
            let at = BlockAddr::new(raw);
            if !(self.inside)(at) {
                return None;
            }
            if below <= 1 {
                return Some(at);
            }
            let bytes = self.block(at)?;
            MetaHeader::check(&bytes, at, MetaType::In).ok()?;
            let next = pointers(&bytes, META_HEADER_SIZE).filter(|raw| *raw != 0);
            let from = stack.len();
            stack.extend(next.map(|raw| (raw, below.saturating_sub(1))));
            stack.get_mut(from..).unwrap_or_default().reverse();
        }
        None
    }

    /// Of a hashed directory: does its table stand where a tree of this height has it?
    fn leads_to_table(&mut self, height: u16) -> bool {
        let kind = if height == 0 { MetaType::Lf } else { MetaType::Jd };
        self.first(height.max(1)).is_some_and(|addr| self.is(addr, kind))
    }

    /// Of a file: do the first pointers lead through that many levels, and no further?
    fn leads_to_data(&mut self, height: u16) -> bool {
        self.first(height)
            .is_some_and(|addr| !self.is(addr, MetaType::In))
    }

    /// The blocks of a tree of this height, all of which could be one; `None` if it is none. No more are counted than
    /// the inode says it has, or than may be read.
    fn count(&mut self, height: u16) -> Option<u64> {
        let most = self.di.blocks.get();
        let mut count = 0u64;
        let mut stack: Vec<(BlockAddr, u16)> = Vec::new();
        let mut level: Vec<u64> = top(self.geometry, self.bytes).collect();
        let mut below = height;
        loop {
            for raw in level.drain(..).filter(|raw| *raw != 0) {
                let addr = BlockAddr::new(raw);
                if !(self.inside)(addr) {
                    return None;
                }
                count = count.saturating_add(1);
                if below > 1 {
                    stack.push((addr, below.saturating_sub(1)));
                }
            }
            let Some((addr, next)) = stack.pop() else {
                return Some(count);
            };
            if count > most || self.reads == 0 {
                return Some(count);
            }
            let bytes = self.block(addr)?;
            MetaHeader::check(&bytes, addr, MetaType::In).ok()?;
            level.extend(pointers(&bytes, META_HEADER_SIZE));
            below = next;
        }
    }

    /// Does this height explain how many blocks the file has?
    fn fits(&mut self, height: u16) -> bool {
        if !self.leads_to_data(height) {
            return false;
        }
        let blocks = self.di.blocks.get();
        match self.count(height) {
            None => false,
            Some(_) if self.reads == 0 => true,
            // How many blocks its attributes have is not counted here.
            Some(count) if self.di.eattr.get() != 0 => count.saturating_add(1) < blocks,
            Some(count) => count.saturating_add(1) == blocks,
        }
    }

    fn of_data(&mut self) -> Option<u16> {
        let (claimed, max) = (self.di.height.get(), self.geometry.max_height());
        let in_range = (1..=max).contains(&claimed);
        let sound = in_range && self.leads_to_data(claimed);
        if sound && (claimed > 1 || self.count(1).is_some()) {
            return None;
        }
        if let Some(height) = (1..=max).find(|height| *height != claimed && self.fits(*height)) {
            return Some(height);
        }
        let blocks = self.di.blocks.get();
        let alone = if self.di.eattr.get() == 0 {
            blocks == 1
        } else {
            blocks > 1
        };
        let small = self.di.size.get() <= self.geometry.max_stuffed();
        // Its pointers make no tree of any height: they are no pointers.
        (claimed != 0 && small && alone && self.count(claimed.min(max)).is_none()).then_some(0)
    }

    /// The height at which a hashed directory's table stands: the claimed one if it can be, or the one of its depth.
    fn of_table(&mut self, depth: u16) -> Option<u16> {
        let (claimed, max) = (self.di.height.get(), self.geometry.max_height());
        let wanted = [claimed.min(max), table_height(self.geometry, depth)];
        let all = wanted.into_iter().chain(1..=max);
        all.into_iter().find(|height| self.leads_to_table(*height))
    }

    /// The depth that a hashed directory's first leaf shows: its own, and one more for each doubling of its slots.
    fn depth(&mut self) -> Option<u16> {
        let height = self.of_table(self.di.depth.get().min(MAX_DIR_DEPTH))?;
        let table = match height {
            0 => None,
            _ => Some(self.first(height)?),
        };
        let block = match table {
            Some(addr) => Some(self.block(addr)?),
            None => None,
        };
        let words: Vec<u64> = match &block {
            Some(block) => pointers(block, META_HEADER_SIZE).collect(),
            None => pointers(self.bytes, DINODE_SIZE)
                .take(self.geometry.diptrs() as usize)
                .collect(),
        };
        let first = *words.first()?;
        let slots = words.iter().take_while(|word| **word == first).count();
        // A run that goes on behind the block tells nothing.
        if slots == words.len() || !slots.is_power_of_two() {
            return None;
        }
        let leaf = BlockAddr::new(first);
        let bytes = Some(leaf)
            .filter(|leaf| (self.inside)(*leaf))
            .and_then(|leaf| self.block(leaf))?;
        MetaHeader::check(&bytes, leaf, MetaType::Lf).ok()?;
        let own = view::<Leaf>(&bytes, 0, leaf).ok()?.depth.get();
        let depth = own.checked_add(slots.ilog2() as u16)?;
        (self.geometry.initial_dir_depth()..=MAX_DIR_DEPTH)
            .contains(&depth)
            .then_some(depth)
    }

    fn of_directory(&mut self) -> Truth {
        let (claimed, size) = (self.di.depth.get(), self.di.size.get());
        let agree = size == table_bytes(claimed);
        let depth = if agree { Some(claimed) } else { self.depth() };
        let Some(depth) = depth else {
            return Truth::default();
        };
        Truth {
            height: self.of_table(depth),
            depth: Some(depth),
            size: Some(table_bytes(depth)),
        }
    }
}

/// What is wrong with a suspect inode. `inside`: can a block be one of a tree? `budget`: blocks that may be read, of
/// which what is read is taken.
pub(crate) fn truth(
    geometry: &Geometry,
    bytes: &[u8],
    read: &mut dyn FnMut(BlockAddr) -> Option<Block>,
    inside: &mut dyn FnMut(BlockAddr) -> bool,
    budget: &mut u32,
) -> Truth {
    let Ok(di) = view::<Dinode>(bytes, 0, BlockAddr::default()) else {
        return Truth::default();
    };
    let allowed = READS.min(*budget);
    let mut below = Below {
        geometry,
        di,
        bytes,
        read,
        inside,
        reads: allowed,
    };
    let of_height = |height| Truth {
        height,
        ..Truth::default()
    };
    let truth = match form(di) {
        None => Truth::default(),
        Some(Form::Stuffed) => of_height(Some(0)),
        Some(Form::Table) => below.of_directory(),
        Some(Form::Data) => of_height(below.of_data()),
    };
    *budget = budget.saturating_sub(allowed.saturating_sub(below.reads));
    Truth {
        height: truth.height.filter(|height| *height != di.height.get()),
        depth: truth.depth.filter(|depth| *depth != di.depth.get()),
        size: truth.size.filter(|size| *size != di.size.get()),
    }
}

/// The same before anything is known of the volume but where it ends.
pub(crate) fn truth_before(
    geometry: &Geometry,
    addr: BlockAddr,
    bytes: &[u8],
    read: &mut dyn FnMut(BlockAddr) -> Option<Block>,
) -> Truth {
    let whole = MetaHeader::check(bytes, addr, MetaType::Di).is_ok();
    let suspect = view::<Dinode>(bytes, 0, addr).is_ok_and(|di| is_suspect(geometry, di, bytes));
    if !whole || !suspect {
        return Truth::default();
    }
    let mut inside = |addr: BlockAddr| addr.get() < geometry.end();
    let mut budget = READS;
    truth(geometry, bytes, read, &mut inside, &mut budget)
}

/// A reader that shows one dinode as it should be.
pub(crate) struct Righted<'a> {
    reader: &'a dyn BlockRead,
    dinode: BlockAddr,
}

impl<'a> Righted<'a> {
    pub(crate) fn new(reader: &'a dyn BlockRead, dinode: BlockAddr) -> Self {
        Self { reader, dinode }
    }
}

impl BlockRead for Righted<'_> {
    fn geometry(&self) -> &Geometry {
        self.reader.geometry()
    }

    fn read(&self, addr: BlockAddr) -> Result<Block, Error> {
        let block = self.reader.read(addr)?;
        if addr != self.dinode {
            return Ok(block);
        }
        let mut bytes: Box<[u8]> = (*block).into();
        let mut read = |addr| self.reader.read(addr).ok();
        truth_before(self.reader.geometry(), addr, &block, &mut read).apply(&mut bytes);
        Ok(Block::new(bytes.into()))
    }
}
