//! Renders a journal: dinode, indirect blocks, and a log that is full of headers of a clean unmount.
//!
//! Invariant: a journal is one extent; every block of it follows from its position, so that any part can be rendered
//! alone, by any thread. Sequence numbers start anywhere below the number of log blocks, go up by one a block and wrap
//! to 0 there (FORMAT.md 7.1).

use crate::inode::dinode_of;
use gfs2_format::ondisk::{
    Dinode, DinodeFlags, FileType, LOG_HEADER_SIZE, LogFlags, LogHeader, META_HEADER_SIZE, MetaHeader,
    MetaType, log_header_crc, log_header_hash,
};
use gfs2_format::{Geometry, InodeNum, Jid};
use zerocopy::{FromZeros, IntoBytes};

/// What the checksums of a log header change by from one block to the next.
///
/// To add one to a number flips its lowest bits up to the first zero. CRCs are linear: how a checksum changes follows
/// from which bits flip, whatever else is in the header. `lh_hash` covers sequence and block number, `lh_crc` the
/// address.
#[derive(Debug)]
pub(crate) struct HeaderSteps {
    /// By the number of ones at the end of `lh_sequence`.
    sequence: [u32; 64],
    /// By that of `lh_blkno`.
    blkno: [u32; 32],
    /// By that of `lh_addr`.
    addr: [u32; 64],
}

impl HeaderSteps {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        let mut block = vec![0; geometry.block_len()];
        let (hash, crc) = (log_header_hash(&block), log_header_crc(&block));
        let flipped = |ones: usize| u64::MAX >> (63 - ones);
        let mut header = LogHeader::new_zeroed();
        let sequence = std::array::from_fn(|ones| {
            header.sequence = flipped(ones).into();
            hash ^ log_header_hash(header.as_bytes())
        });
        header = LogHeader::new_zeroed();
        let blkno = std::array::from_fn(|ones| {
            header.blkno = (flipped(ones) as u32).into();
            hash ^ log_header_hash(header.as_bytes())
        });
        header = LogHeader::new_zeroed();
        let addr = std::array::from_fn(|ones| {
            header.addr = flipped(ones).into();
            block[..LOG_HEADER_SIZE].copy_from_slice(header.as_bytes());
            crc ^ log_header_crc(&block)
        });
        Self {
            sequence,
            blkno,
            addr,
        }
    }

    /// Makes `header` the one of the next block; `false`: its sequence number does not go up by one there.
    fn advance(&self, header: &mut LogHeader, log: u64) -> bool {
        let (sequence, blkno, addr) = (header.sequence.get(), header.blkno.get(), header.addr.get());
        if sequence + 1 >= log {
            return false;
        }
        let hash =
            self.sequence[sequence.trailing_ones() as usize] ^ self.blkno[blkno.trailing_ones() as usize];
        header.hash = (header.hash.get() ^ hash).into();
        header.crc = (header.crc.get() ^ self.addr[addr.trailing_ones() as usize]).into();
        header.sequence = (sequence + 1).into();
        header.blkno = (blkno + 1).into();
        header.addr = (addr + 1).into();
        true
    }
}

/// One journal.
#[derive(Debug)]
pub(crate) struct Journal<'a> {
    geometry: &'a Geometry,
    steps: &'a HeaderSteps,
    num: InodeNum,
    first_sequence: u64,
    time: u64,
    /// Pointers of each level, the dinode's first; the last level points to the log.
    levels: Vec<u64>,
    log: u64,
}

impl<'a> Journal<'a> {
    /// A journal of `log` blocks behind its inode `num`.
    pub(crate) fn new(
        geometry: &'a Geometry,
        steps: &'a HeaderSteps,
        num: InodeNum,
        log: u64,
        first_sequence: u64,
        time: u64,
    ) -> Self {
        let mut levels = vec![log];
        let mut pointers = log;
        while pointers > geometry.diptrs() {
            pointers = pointers.div_ceil(geometry.inptrs());
            levels.insert(0, pointers);
        }
        Self {
            geometry,
            steps,
            num,
            first_sequence: first_sequence % log,
            time,
            levels,
            log,
        }
    }

    /// Blocks before the log.
    fn meta_blocks(&self) -> u64 {
        1 + self.levels[..self.levels.len() - 1].iter().sum::<u64>()
    }

    /// Blocks in all.
    pub(crate) fn blocks(&self) -> u64 {
        self.meta_blocks() + self.log
    }

    /// Renders the journal's blocks from `from` (0 is the dinode) on into `buf`, which is whole blocks. Only what is
    /// not zero in a log header's block is written where `buf` holds log headers already, or nothing (`blank`).
    pub(crate) fn render(&self, from: u64, buf: &mut [u8], blank: bool) {
        let meta = self.meta_blocks();
        let mut header: Option<LogHeader> = None;
        for (n, block) in buf.chunks_exact_mut(self.geometry.block_len()).enumerate() {
            let position = from + n as u64;
            match position.checked_sub(meta) {
                Some(blkno) => {
                    if !blank {
                        block[LOG_HEADER_SIZE..].fill(0);
                    }
                    if !header
                        .as_mut()
                        .is_some_and(|last| self.steps.advance(last, self.log))
                    {
                        header = Some(self.header(blkno, block));
                    }
                    let header = header.get_or_insert_with(LogHeader::new_zeroed);
                    block[..LOG_HEADER_SIZE].copy_from_slice(header.as_bytes());
                }
                None if position == 0 => self.render_dinode(block),
                None => self.render_indirect(position - 1, block),
            }
        }
    }

    /// Does a range of blocks from `from` on hold nothing but log headers?
    pub(crate) fn is_log(&self, from: u64) -> bool {
        from >= self.meta_blocks()
    }

    /// The header of log block `blkno`, made from nothing; `block`, zero after the header, is changed on the way.
    fn header(&self, blkno: u64, block: &mut [u8]) -> LogHeader {
        let mut header = LogHeader::new_zeroed();
        header.header = MetaHeader::new(MetaType::Lh, Jid::new(0));
        header.sequence = ((self.first_sequence + blkno) % self.log).into();
        header.flags = (LogFlags::UNMOUNT | LogFlags::USERSPACE).bits().into();
        header.blkno = (blkno as u32).into();
        header.addr = (self.num.addr.get() + self.meta_blocks() + blkno).into();
        header.jinode = self.num.addr.get().into();
        header.hash = log_header_hash(header.as_bytes()).into();
        block[..LOG_HEADER_SIZE].copy_from_slice(header.as_bytes());
        header.crc = log_header_crc(block).into();
        header
    }

    fn render_dinode(&self, block: &mut [u8]) {
        block.fill(0);
        let blocks = self.blocks();
        let last = self.num.addr.get() + blocks - 1;
        let di = dinode_of(block);
        di.header = MetaHeader::new(MetaType::Di, Jid::new(0));
        di.num = self.num.into();
        di.mode = (FileType::Regular.mode_bits() | 0o600).into();
        di.nlink = 1.into();
        di.size = (self.log * u64::from(self.geometry.bsize())).into();
        di.blocks = blocks.into();
        for time in [&mut di.atime, &mut di.mtime, &mut di.ctime] {
            *time = self.time.into();
        }
        di.goal_data = last.into();
        di.goal_meta = (last - self.log).into();
        di.height = (self.levels.len() as u16).into();
        di.set_flags(DinodeFlags::SYSTEM);
        let first = self.num.addr.get() + 1;
        fill_pointers(&mut block[size_of::<Dinode>()..], first, self.levels[0]);
    }

    /// `n` counts the indirect blocks of all levels.
    fn render_indirect(&self, n: u64, block: &mut [u8]) {
        let mut index = n;
        let mut level = 1;
        while index >= self.levels[level - 1] {
            index -= self.levels[level - 1];
            level += 1;
        }
        let per_block = self.geometry.inptrs();
        // The blocks this level points to begin behind all the blocks of the levels above and of this one.
        let children = self.num.addr.get() + 1 + self.levels[..level].iter().sum::<u64>();
        let first = index * per_block;
        let count = per_block.min(self.levels[level] - first);
        block.fill(0);
        let header = MetaHeader::new(MetaType::In, Jid::new(0));
        block[..META_HEADER_SIZE].copy_from_slice(header.as_bytes());
        fill_pointers(&mut block[META_HEADER_SIZE..], children + first, count);
    }
}

fn fill_pointers(area: &mut [u8], first: u64, count: u64) {
    for (slot, pointer) in area.chunks_exact_mut(8).zip(first..first + count) {
        slot.copy_from_slice(&pointer.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs2_format::ondisk::view;
    use gfs2_format::{BlockAddr, FormalIno};

    fn render(bsize: u32, log: u64, sequence: u64) -> (Geometry, Vec<u8>) {
        let geometry = Geometry::new(bsize, 1 << 40).unwrap();
        let steps = HeaderSteps::new(&geometry);
        let num = InodeNum {
            formal: FormalIno::new(1),
            addr: BlockAddr::new(1000),
        };
        let journal = Journal::new(&geometry, &steps, num, log, sequence, 5);
        let mut buf = vec![0xaa; journal.blocks() as usize * geometry.block_len()];
        journal.render(0, &mut buf, false);
        (geometry, buf)
    }

    #[test]
    fn headers_carry_both_checksums_and_one_drop_in_sequence() {
        for bsize in [512, 1024, 2048, 4096, 65536] {
            let (geometry, buf) = render(bsize, 300, 250);
            let blocks: Vec<&[u8]> = buf.chunks_exact(geometry.block_len()).collect();
            let log = &blocks[blocks.len() - 300..];
            for (n, block) in log.iter().enumerate() {
                let header: &LogHeader = view(block, 0, BlockAddr::new(0)).unwrap();
                assert_eq!(header.sequence.get(), (250 + n as u64) % 300);
                assert_eq!(header.blkno.get() as usize, n);
                assert_eq!(header.addr.get(), 1000 + (blocks.len() - 300) as u64 + n as u64);
                assert_eq!(header.hash.get(), log_header_hash(block));
                assert_eq!(header.crc.get(), log_header_crc(block));
                assert!(block[LOG_HEADER_SIZE..].iter().all(|b| *b == 0));
            }
        }
    }

    /// Follows every pointer from the dinode: the log's blocks come out once each, in order.
    #[test]
    fn the_tree_leads_to_every_log_block_in_order() {
        for (bsize, log, height) in [
            (512, 262_144, 4),
            (512, 16384, 3),
            (512, 35, 1),
            (1024, 12376, 3),
            (4096, 2048, 2),
        ] {
            let (geometry, buf) = render(bsize, log, 0);
            let bs = geometry.block_len();
            let block = |addr: u64| &buf[(addr - 1000) as usize * bs..][..bs];
            let di: &Dinode = view(block(1000), 0, BlockAddr::new(0)).unwrap();
            assert_eq!(di.height.get(), height, "bs {bsize} log {log}");
            assert_eq!(di.blocks.get() as usize * bs, buf.len());
            let pointers = |addr: u64| {
                let skip = if addr == 1000 {
                    size_of::<Dinode>()
                } else {
                    META_HEADER_SIZE
                };
                block(addr)[skip..]
                    .chunks_exact(8)
                    .map(|p| u64::from_be_bytes(p.try_into().unwrap()))
                    .take_while(|p| *p != 0)
                    .collect::<Vec<_>>()
            };
            let mut level = vec![1000];
            for _ in 0..height {
                level = level.into_iter().flat_map(pointers).collect();
            }
            let end = 1000 + di.blocks.get();
            assert_eq!(level, (end - log..end).collect::<Vec<_>>());
        }
    }
}
