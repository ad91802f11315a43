//! A system inode while it is made: dinode, pointer blocks, contents.
//!
//! Invariants: blocks are allocated in the order in which the original allocates them (pointer blocks when first
//! passed through, a level of height before what needs it), because the order decides every address. A block leaves
//! for the sink once: when the inode is finished, or, of files written front to back, when the writer has moved on, so
//! that memory is bounded by the height of the tree.

use crate::alloc::Cursor;
use crate::error::Result;
use gfs2_format::ondisk::{
    DINODE_SIZE, Dinode, DinodeFlags, FileType, META_HEADER_SIZE, MetaHeader, MetaType, name_hash,
};
use gfs2_format::{BlockAddr, FormalIno, Geometry, InodeNum, Jid};
use std::collections::BTreeMap;
use zerocopy::{FromBytes, IntoBytes};

/// Receives finished blocks: address and bytes.
pub(crate) type Sink<'a> = dyn FnMut(u64, &[u8]) -> Result<()> + 'a;

/// Where blocks come from and where they go.
pub(crate) struct Builder<'a, 's> {
    pub(crate) geometry: Geometry,
    pub(crate) cursor: Cursor<'a>,
    pub(crate) sink: &'s mut Sink<'s>,
    pub(crate) next_formal: u64,
    pub(crate) time: u64,
}

impl Builder<'_, '_> {
    /// A new inode's numbers.
    pub(crate) fn new_num(&mut self) -> Result<InodeNum> {
        let addr = BlockAddr::new(self.cursor.take_dinode()?);
        let formal = FormalIno::new(self.next_formal);
        self.next_formal += 1;
        Ok(InodeNum { formal, addr })
    }
}

/// The dinode at the start of a block.
pub(crate) fn dinode_of(block: &mut [u8]) -> &mut Dinode {
    let (dinode, _) = Dinode::mut_from_prefix(block).expect("a block is longer than a dinode");
    dinode
}

/// How an inode's contents are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// Anywhere: all blocks are kept.
    Random,
    /// Front to back.
    Sequential,
}

/// An inode under construction.
pub(crate) struct Inode {
    num: InodeNum,
    block: Vec<u8>,
    /// Pointer and data blocks not yet in the sink.
    blocks: BTreeMap<u64, Vec<u8>>,
    access: Access,
    /// Blocks on the way to the last one looked up.
    path: Vec<u64>,
}

impl Inode {
    fn new(b: &Builder<'_, '_>, num: InodeNum, mode: u32, flags: DinodeFlags, access: Access) -> Self {
        let mut block = vec![0; b.geometry.block_len()];
        let di = dinode_of(&mut block);
        di.header = MetaHeader::new(MetaType::Di, Jid::new(0));
        di.num = num.into();
        di.mode = mode.into();
        di.nlink = 1.into();
        di.blocks = 1.into();
        for time in [&mut di.atime, &mut di.mtime, &mut di.ctime] {
            *time = b.time.into();
        }
        di.goal_meta = num.addr.get().into();
        di.goal_data = num.addr.get().into();
        di.set_flags(flags);
        Self {
            num,
            block,
            blocks: BTreeMap::new(),
            access,
            path: Vec::new(),
        }
    }

    /// An empty regular file, to be written front to back.
    pub(crate) fn new_file(b: &Builder<'_, '_>, num: InodeNum, flags: DinodeFlags) -> Self {
        Self::new(
            b,
            num,
            FileType::Regular.mode_bits() | 0o600,
            flags,
            Access::Sequential,
        )
    }

    /// A directory of "." and "..".
    pub(crate) fn new_dir(
        b: &Builder<'_, '_>,
        num: InodeNum,
        permissions: u32,
        flags: DinodeFlags,
        parent: InodeNum,
    ) -> Self {
        let mode = FileType::Dir.mode_bits() | permissions;
        let mut dir = Self::new(b, num, mode, flags | DinodeFlags::JDATA, Access::Random);
        let bs = b.geometry.block_len();
        let di = dir.di();
        di.nlink = 2.into();
        di.size = ((bs - DINODE_SIZE) as u64).into();
        di.payload_format = 1200.into();
        di.entries = 2.into();
        let dot = crate::dir::Record::SIZE_OF_DOT;
        crate::dir::Record::new(num, FileType::Dir, b".").write(&mut dir.block, DINODE_SIZE, dot);
        let rest = bs - DINODE_SIZE - dot;
        crate::dir::Record::new(parent, FileType::Dir, b"..").write(&mut dir.block, DINODE_SIZE + dot, rest);
        debug_assert_eq!(name_hash(b"."), 0x0ed4_e242);
        dir
    }

    /// The inode's numbers.
    pub(crate) fn num(&self) -> InodeNum {
        self.num
    }

    /// The dinode, for change.
    pub(crate) fn di(&mut self) -> &mut Dinode {
        dinode_of(&mut self.block)
    }

    fn di_ref(&self) -> &Dinode {
        let (di, _) = Dinode::ref_from_prefix(&self.block).expect("a block is longer than a dinode");
        di
    }

    /// Current `di_flags`, `di_depth`, `di_entries`.
    pub(crate) fn dir_state(&self) -> (DinodeFlags, u16, u32) {
        let di = self.di_ref();
        (di.flags(), di.depth.get(), di.entries.get())
    }

    /// `di_size`.
    pub(crate) fn size(&self) -> u64 {
        self.di_ref().size.get()
    }

    /// The dinode's block, for change.
    pub(crate) fn dinode_block(&mut self) -> &mut [u8] {
        &mut self.block
    }

    /// A block of the inode that is still here, for change.
    pub(crate) fn block_mut(&mut self, addr: u64) -> Option<&mut Vec<u8>> {
        self.blocks.get_mut(&addr)
    }

    /// Allocates a block, counts it, and starts it with a header of `kind` (or all zero).
    pub(crate) fn new_block(&mut self, b: &mut Builder<'_, '_>, kind: Option<MetaType>) -> Result<u64> {
        let addr = b.cursor.take()?;
        let mut block = vec![0; b.geometry.block_len()];
        if let Some(kind) = kind {
            let header = MetaHeader::new(kind, Jid::new(0));
            block[..META_HEADER_SIZE].copy_from_slice(header.as_bytes());
        }
        self.blocks.insert(addr, block);
        let di = self.di();
        di.goal_meta = addr.into();
        di.blocks = (di.blocks.get() + 1).into();
        Ok(addr)
    }

    fn is_dir(&self) -> bool {
        self.di_ref().is_dir()
    }

    /// Bytes of contents a block of the tree's lowest level holds, and where they begin in it.
    fn unit(&self, geometry: &Geometry) -> (u64, usize) {
        if self.is_dir() {
            (geometry.jbsize(), META_HEADER_SIZE)
        } else {
            (u64::from(geometry.bsize()), 0)
        }
    }

    /// Smallest height whose tree holds `bytes`, 0 being the dinode alone.
    fn height_for(&self, geometry: &Geometry, bytes: u64) -> u16 {
        let bytes = bytes.max(self.size());
        if bytes <= geometry.max_stuffed() {
            return 0;
        }
        let mut held = self.unit(geometry).0 * geometry.diptrs();
        let mut height = 1;
        while held < bytes && height < geometry.max_height() {
            held = held.saturating_mul(geometry.inptrs());
            height += 1;
        }
        height
    }

    /// Raises the tree to the height at which it holds `bytes`; a level costs a block if there are pointers to move.
    pub(crate) fn raise(&mut self, b: &mut Builder<'_, '_>, bytes: u64) -> Result<()> {
        let height = self.height_for(&b.geometry, bytes);
        while self.di_ref().height.get() < height {
            let tail = DINODE_SIZE..b.geometry.block_len();
            if self.block[tail.clone()].iter().any(|byte| *byte != 0) {
                let addr = self.new_block(b, Some(MetaType::In))?;
                self.move_tail(addr, META_HEADER_SIZE);
                self.block[DINODE_SIZE..DINODE_SIZE + 8].copy_from_slice(&addr.to_be_bytes());
            } else {
                self.block[tail].fill(0);
            }
            let di = self.di();
            di.height = (di.height.get() + 1).into();
        }
        Ok(())
    }

    /// Moves what follows the dinode to byte `at` of another block.
    pub(crate) fn move_tail(&mut self, to: u64, at: usize) {
        let tail = &mut self.block[DINODE_SIZE..];
        if let Some(target) = self.blocks.get_mut(&to) {
            target[at..at + tail.len()].copy_from_slice(tail);
        }
        tail.fill(0);
    }

    /// Moves the stuffed contents to a block of their own.
    fn unstuff(&mut self, b: &mut Builder<'_, '_>) -> Result<()> {
        if self.size() > 0 {
            let kind = self.is_dir().then_some(MetaType::Jd);
            let (_, at) = self.unit(&b.geometry);
            let addr = self.new_block(b, kind)?;
            self.move_tail(addr, at);
            self.block[DINODE_SIZE..DINODE_SIZE + 8].copy_from_slice(&addr.to_be_bytes());
        }
        self.di().height = 1.into();
        Ok(())
    }

    /// Address of the block that holds logical block `lblock`, allocated if need be. The inode is not stuffed.
    pub(crate) fn map(&mut self, b: &mut Builder<'_, '_>, lblock: u64) -> Result<u64> {
        let (unit, _) = self.unit(&b.geometry);
        self.raise(b, (lblock + 1) * unit)?;
        let height = usize::from(self.di_ref().height.get());
        let mut indices = vec![0; height];
        let mut rest = lblock;
        for index in indices.iter_mut().rev() {
            *index = (rest % b.geometry.inptrs()) as usize;
            rest /= b.geometry.inptrs();
        }
        let mut path: Vec<u64> = Vec::with_capacity(height);
        for (level, index) in indices.into_iter().enumerate() {
            let parent = path.last().copied();
            let addr = match self.pointer(parent, index) {
                0 => {
                    let kind = if level + 1 < height {
                        Some(MetaType::In)
                    } else {
                        self.is_dir().then_some(MetaType::Jd)
                    };
                    let addr = self.new_block(b, kind)?;
                    self.set_pointer(parent, index, addr);
                    addr
                }
                addr => addr,
            };
            path.push(addr);
        }
        let addr = path.last().copied().unwrap_or_default();
        self.retire(b, path)?;
        Ok(addr)
    }

    /// Hands over what a file written front to back has left behind.
    fn retire(&mut self, b: &mut Builder<'_, '_>, path: Vec<u64>) -> Result<()> {
        if self.access == Access::Sequential {
            for addr in self.path.iter().filter(|addr| !path.contains(addr)) {
                if let Some(block) = self.blocks.remove(addr) {
                    (b.sink)(*addr, &block)?;
                }
            }
        }
        self.path = path;
        Ok(())
    }

    fn slot(index: usize, in_dinode: bool) -> std::ops::Range<usize> {
        let start = if in_dinode { DINODE_SIZE } else { META_HEADER_SIZE } + index * 8;
        start..start + 8
    }

    fn pointer(&self, parent: Option<u64>, index: usize) -> u64 {
        let block = match parent {
            None => Some(&self.block),
            Some(addr) => self.blocks.get(&addr),
        };
        let bytes = block.and_then(|block| block.get(Self::slot(index, parent.is_none())));
        bytes
            .and_then(|bytes| <[u8; 8]>::try_from(bytes).ok())
            .map_or(0, u64::from_be_bytes)
    }

    fn set_pointer(&mut self, parent: Option<u64>, index: usize, to: u64) {
        let block = match parent {
            None => Some(&mut self.block),
            Some(addr) => self.blocks.get_mut(&addr),
        };
        if let Some(block) = block {
            block[Self::slot(index, parent.is_none())].copy_from_slice(&to.to_be_bytes());
        }
    }

    /// Writes contents, and raises `di_size` to their end if `grow`.
    pub(crate) fn write(
        &mut self,
        b: &mut Builder<'_, '_>,
        offset: u64,
        bytes: &[u8],
        grow: bool,
    ) -> Result<()> {
        let end = offset + bytes.len() as u64;
        if self.di_ref().height.get() == 0 && end > b.geometry.max_stuffed() {
            self.unstuff(b)?;
        }
        if self.di_ref().height.get() == 0 {
            let at = DINODE_SIZE + offset as usize;
            self.block[at..at + bytes.len()].copy_from_slice(bytes);
        } else {
            let (unit, start) = self.unit(&b.geometry);
            let mut lblock = offset / unit;
            let mut at = start + (offset % unit) as usize;
            let mut left = bytes;
            while !left.is_empty() {
                let (now, later) = left.split_at(left.len().min(b.geometry.block_len() - at));
                let addr = self.map(b, lblock)?;
                if let Some(block) = self.blocks.get_mut(&addr) {
                    block[at..at + now.len()].copy_from_slice(now);
                }
                left = later;
                lblock += 1;
                at = start;
            }
        }
        if grow && self.size() < end {
            self.di().size = end.into();
        }
        Ok(())
    }

    /// Reads contents of a directory. The range is allocated.
    pub(crate) fn read_u64(&mut self, b: &mut Builder<'_, '_>, offset: u64) -> Result<u64> {
        let (unit, start) = self.unit(&b.geometry);
        let mut bytes = [0; 8];
        if self.di_ref().height.get() == 0 {
            bytes.copy_from_slice(&self.block[DINODE_SIZE + offset as usize..][..8]);
        } else {
            let addr = self.map(b, offset / unit)?;
            if let Some(block) = self.blocks.get(&addr) {
                bytes.copy_from_slice(&block[start + (offset % unit) as usize..][..8]);
            }
        }
        Ok(u64::from_be_bytes(bytes))
    }

    /// Hands everything over.
    pub(crate) fn finish(self, b: &mut Builder<'_, '_>) -> Result<()> {
        (b.sink)(self.num.addr.get(), &self.block)?;
        self.blocks
            .iter()
            .try_for_each(|(addr, block)| (b.sink)(*addr, block))
    }
}
