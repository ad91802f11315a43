//! A volume just large enough to have a log, and the locks to change its blocks with.

use crate::cache::{BufferCache, LockProof};
use crate::glock::GlockName;
use crate::health::Health;
use crate::journal::{Journal, JournalConfig, Reservation};
use crate::txn::Transaction;
use gfs2_format::device::{BlockDevice, MemDevice};
use gfs2_format::log::{
    DeviceJournal, Head, Header, HeaderVersion, JournalMap, LogTime, RecoveryReport, encode_header,
    find_head, recover_journal,
};
use gfs2_format::ondisk::{
    DINODE_SIZE, Dinode, FileType, LogFlags, MetaHeader, MetaType, StatfsChange, Superblock, view, view_mut,
};
use gfs2_format::volume::{JournalFile, SystemFiles, Volume};
use gfs2_format::{Block, BlockAddr, Extent, Geometry, Jid, JournalBlock};
use std::sync::Arc;
use std::time::Duration;
use zerocopy::{FromZeros, IntoBytes};

pub(crate) const JID: Jid = Jid::new(0);
/// Totals of the master statfs file in the beginning.
pub(crate) const MASTER: (i64, i64, i64) = (100_000, 50_000, 1_000);

/// A glock held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) name: GlockName,
    pub(crate) exclusive: bool,
}

impl LockProof for Held {
    fn name(&self) -> GlockName {
        self.name
    }

    fn is_exclusive(&self) -> bool {
        self.exclusive
    }
}

/// The inode glock of this number, held EX.
pub(crate) fn ex(number: u64) -> Held {
    Held {
        name: GlockName::inode(number),
        exclusive: true,
    }
}

/// Where things lie.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) geometry: Geometry,
    pub(crate) master: BlockAddr,
    pub(crate) statfs_change: BlockAddr,
    pub(crate) journal: JournalFile,
    /// First block that tests use as they like.
    pub(crate) first: u64,
}

impl Layout {
    /// A journal of `blocks` blocks in two pieces, its second half lying before its first.
    pub(crate) fn new(bsize: u32, blocks: u32) -> Self {
        let base = (65536 / u64::from(bsize)) + 10;
        let half = blocks / 2;
        let rest = blocks - half;
        let at = |n: u64| BlockAddr::new(base + n);
        let extents = [
            Extent {
                start: at(u64::from(rest) + 200),
                len: half,
            },
            Extent {
                start: at(100),
                len: rest,
            },
        ];
        let first = base + u64::from(blocks) + 300;
        Self {
            geometry: Geometry::new(bsize, first + 2_000).unwrap(),
            master: at(0),
            statfs_change: at(1),
            journal: JournalFile {
                jid: JID,
                dinode: at(3),
                map: JournalMap::new(extents).unwrap(),
                statfs_change: Some(at(1)),
                quota_change: Some(at(2)),
            },
            first,
        }
    }

    /// Test block `n`.
    pub(crate) fn block(&self, n: u64) -> BlockAddr {
        BlockAddr::new(self.first + n)
    }

    /// A fresh volume: both statfs dinodes, a journal full of headers as mkfs leaves it.
    pub(crate) fn device(&self) -> MemDevice {
        let g = &self.geometry;
        let device = MemDevice::new(g.end() << g.bsize_shift());
        self.put(&device, self.master, &statfs_dinode(g, self.master, MASTER));
        self.put(
            &device,
            self.statfs_change,
            &statfs_dinode(g, self.statfs_change, (0, 0, 0)),
        );
        let blocks = self.journal.map.ring().blocks();
        for n in 0..blocks {
            let header = Header {
                writer: JID,
                // The wrap from the largest to the smallest sequence stands in the middle, as in a used journal.
                sequence: 1000 + u64::from((n + blocks / 3) % blocks),
                flags: LogFlags::UNMOUNT | LogFlags::USERSPACE,
                tail: JournalBlock::new(0),
                blkno: JournalBlock::new(n),
                version: HeaderVersion::V2,
                time: LogTime::default(),
                addr: self.journal.map.address(JournalBlock::new(n)).unwrap(),
                jinode: self.journal.dinode,
                statfs_addr: BlockAddr::default(),
                quota_addr: BlockAddr::default(),
                local: Default::default(),
            };
            self.put(&device, header.addr, &encode_header(&header, g));
        }
        device
    }

    pub(crate) fn put(&self, device: &dyn BlockDevice, addr: BlockAddr, block: &[u8]) {
        device.write_at(self.geometry.byte_offset(addr), block).unwrap();
    }

    pub(crate) fn get(&self, device: &dyn BlockDevice, addr: BlockAddr) -> Block {
        let mut block = Block::zeroed(self.geometry.block_len());
        device
            .read_at(self.geometry.byte_offset(addr), block.make_mut())
            .unwrap();
        block
    }

    /// The numbers in a statfs dinode.
    pub(crate) fn statfs(&self, device: &dyn BlockDevice, addr: BlockAddr) -> (i64, i64, i64) {
        let block = self.get(device, addr);
        view::<StatfsChange>(&block, DINODE_SIZE, addr).unwrap().signed()
    }

    pub(crate) fn volume(&self) -> Volume {
        let nowhere = BlockAddr::default();
        Volume {
            superblock: Superblock::new_zeroed(),
            geometry: self.geometry.clone(),
            system: SystemFiles {
                master: nowhere,
                root: nowhere,
                jindex: nowhere,
                per_node: nowhere,
                statfs: self.master,
                rindex: nowhere,
                quota: nowhere,
                inum: None,
            },
            journals: vec![self.journal.clone()],
        }
    }

    pub(crate) fn head(&self, device: &dyn BlockDevice) -> Head {
        let reader = DeviceJournal::new(device, &self.geometry, &self.journal.map);
        find_head(&reader, &self.geometry).unwrap().expect("a head")
    }

    /// What the next mount does.
    pub(crate) fn recover(&self, device: &dyn BlockDevice) -> gfs2_format::Result<RecoveryReport> {
        recover_journal(device, &self.volume(), &self.journal, JID, LogTime::default())
    }

    pub(crate) fn config(&self) -> JournalConfig {
        JournalConfig {
            jid: JID,
            dinode: self.journal.dinode,
            map: self.journal.map.clone(),
            statfs_change: self.statfs_change,
            statfs_glock: GlockName::inode(self.statfs_change.get()),
            quota_change: BlockAddr::new(self.statfs_change.get() + 1),
            commit_interval: Duration::from_secs(30),
            shared: true,
            barriers: true,
        }
    }

    /// A journal on `device`, live.
    pub(crate) fn mount(&self, device: Arc<dyn BlockDevice>) -> Arc<Journal> {
        self.mount_with(device, self.config(), 64 << 10)
    }

    pub(crate) fn mount_with(
        &self,
        device: Arc<dyn BlockDevice>,
        config: JournalConfig,
        budget: usize,
    ) -> Arc<Journal> {
        let health = Arc::new(Health::new("test:fs.0"));
        let cache = Arc::new(BufferCache::new(device, self.geometry.clone(), health, budget));
        let journal = Journal::new(cache, config);
        journal.start().unwrap();
        journal
    }
}

fn statfs_dinode(g: &Geometry, addr: BlockAddr, numbers: (i64, i64, i64)) -> Block {
    let mut dinode = Dinode::new_zeroed();
    dinode.header = MetaHeader::new(MetaType::Di, Jid::new(7));
    dinode.num.addr = addr.get().into();
    dinode.mode = (FileType::Regular.mode_bits() | 0o600).into();
    dinode.size = 24.into();
    let mut block = Block::zeroed(g.block_len());
    block.make_mut()[..DINODE_SIZE].copy_from_slice(dinode.as_bytes());
    let change = StatfsChange::from_signed(numbers.0, numbers.1, numbers.2);
    *view_mut(block.make_mut(), DINODE_SIZE, addr).unwrap() = change;
    block
}

/// Fills a metadata block with a header and a value, over all its sectors.
pub(crate) fn fill_meta(bytes: &mut [u8], value: u64) {
    let header = MetaHeader::new(MetaType::In, JID);
    fill_data(bytes, value);
    bytes[..24].copy_from_slice(header.as_bytes());
}

/// Fills a data block with a value; every fourth one begins with the magic, which the log must escape.
pub(crate) fn fill_data(bytes: &mut [u8], value: u64) {
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&value.to_be_bytes());
    }
    if value.is_multiple_of(4) {
        bytes[..4].copy_from_slice(&gfs2_format::ondisk::MAGIC.to_be_bytes());
    }
}

/// What [`fill_meta`] makes.
pub(crate) fn meta(g: &Geometry, value: u64) -> Block {
    let mut block = Block::zeroed(g.block_len());
    fill_meta(block.make_mut(), value);
    block
}

/// What [`fill_data`] makes.
pub(crate) fn data(g: &Geometry, value: u64) -> Block {
    let mut block = Block::zeroed(g.block_len());
    fill_data(block.make_mut(), value);
    block
}

/// A transaction with room for a few blocks.
pub(crate) fn begin(journal: &Arc<Journal>) -> Transaction {
    Transaction::begin(journal, Reservation::blocks(6).with_revokes(6)).unwrap()
}

/// Commits one created block of glock `owner`.
pub(crate) fn create_one(
    journal: &Arc<Journal>,
    owner: u64,
    addr: BlockAddr,
    value: u64,
) -> crate::journal::CommitSeq {
    let mut txn = begin(journal);
    fill_meta(txn.create(&ex(owner), addr).unwrap(), value);
    txn.commit().unwrap()
}

/// Commits the freeing of one block.
pub(crate) fn free_one(journal: &Arc<Journal>, addr: BlockAddr) -> crate::journal::CommitSeq {
    let mut txn = begin(journal);
    txn.revoke(addr).unwrap();
    txn.commit().unwrap()
}
