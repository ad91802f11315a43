//! Lays out the system files and the root directory: master, jindex, per_node, inum, statfs, rindex, quota, root.
//!
//! Invariant: the order of creation is the original's; with first-fit allocation it decides every address and formal
//! inode number (FORMAT.md section 8). The same layout always gives the same blocks, so that it can be run dry first.

use crate::alloc::{Cursor, Usage};
use crate::dir::Record;
use crate::error::Result;
use crate::inode::{Builder, Inode, Sink};
use crate::layout::Layout;
use gfs2_format::ondisk::{
    DinodeFlags, FileType, InumRange, META_HEADER_SIZE, MetaHeader, MetaType, Quota, RindexEntry,
    StatfsChange,
};
use gfs2_format::{BlockAddr, FormalIno, InodeNum, Jid};
use zerocopy::{FromZeros, IntoBytes};

/// `di_payload_format` of rindex.
const FORMAT_RINDEX: u32 = 1100;
/// `di_payload_format` of the quota file.
const FORMAT_QUOTA: u32 = 1500;

/// What the layout of system files depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SystemSpec {
    pub(crate) quota_change_mb: u32,
    pub(crate) root_inherit_jdata: bool,
    pub(crate) time: u64,
}

/// What the superblock and the bitmaps need to know of the system files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SystemTree {
    pub(crate) master: InodeNum,
    pub(crate) root: InodeNum,
    pub(crate) usage: Usage,
}

/// Numbers of a journal's inode: journals take the first formal numbers.
pub(crate) fn journal_num(layout: &Layout, jid: u64) -> Option<InodeNum> {
    let rgrp = layout.rgrp(jid).filter(|_| jid < layout.journals())?;
    Some(InodeNum {
        formal: FormalIno::new(jid + 1),
        addr: BlockAddr::new(rgrp.data0),
    })
}

/// Lays out the system files, each block to `sink` when it is complete (not in address order).
pub(crate) fn build(layout: &Layout, spec: &SystemSpec, sink: &mut Sink<'_>) -> Result<SystemTree> {
    let mut forward = |addr: u64, bytes: &[u8]| sink(addr, bytes);
    let mut b = Builder {
        geometry: layout.geometry().clone(),
        cursor: Cursor::new(layout)?,
        sink: &mut forward,
        next_formal: layout.journals() + 1,
        time: spec.time,
    };
    let num = b.new_num()?;
    let mut master = Inode::new_dir(&b, num, 0o755, DinodeFlags::SYSTEM, num);
    build_jindex(&mut b, &mut master, layout)?;
    build_per_node(&mut b, &mut master, layout, spec)?;
    let plain = DinodeFlags::SYSTEM | DinodeFlags::JDATA;
    let mut inum = create_file(&mut b, &mut master, b"inum", plain)?;
    let mut statfs = create_file(&mut b, &mut master, b"statfs", plain)?;
    build_rindex(&mut b, &mut master, layout)?;
    build_quota(&mut b, &mut master)?;

    let root_num = b.new_num()?;
    let mut root = Inode::new_dir(&b, root_num, 0o755, DinodeFlags::empty(), root_num);
    if spec.root_inherit_jdata {
        let di = root.di();
        di.set_flags(di.flags() | DinodeFlags::INHERIT_JDATA);
    }
    root.finish(&mut b)?;

    let next = b.next_formal.to_be_bytes();
    inum.write(&mut b, 0, &next, true)?;
    inum.finish(&mut b)?;
    // Nothing more is allocated: the files that are still open are stuffed.
    let usage = b.cursor.usage();
    let (total, free, dinodes) = totals(layout, &usage);
    let content = StatfsChange::from_signed(total.cast_signed(), free.cast_signed(), dinodes.cast_signed());
    statfs.write(&mut b, 0, content.as_bytes(), true)?;
    statfs.finish(&mut b)?;
    let master_num = master.num();
    master.finish(&mut b)?;
    Ok(SystemTree {
        master: master_num,
        root: root_num,
        usage,
    })
}

/// Data blocks, free ones of them, and dinodes of the whole volume.
pub(crate) fn totals(layout: &Layout, usage: &Usage) -> (u64, u64, u64) {
    let journals = layout.journals();
    let total = layout.total_data();
    let used = journals * layout.journal_file() + usage.taken();
    (total, total - used, journals + usage.dinodes().len() as u64)
}

fn create_file(
    b: &mut Builder<'_, '_>,
    parent: &mut Inode,
    name: &[u8],
    flags: DinodeFlags,
) -> Result<Inode> {
    let num = b.new_num()?;
    parent.add_entry(b, &Record::new(num, FileType::Regular, name))?;
    Ok(Inode::new_file(b, num, flags))
}

fn create_dir(b: &mut Builder<'_, '_>, parent: &mut Inode, name: &[u8]) -> Result<Inode> {
    let num = b.new_num()?;
    parent.add_entry(b, &Record::new(num, FileType::Dir, name))?;
    let di = parent.di();
    di.nlink = (di.nlink.get() + 1).into();
    Ok(Inode::new_dir(b, num, 0o700, DinodeFlags::SYSTEM, parent.num()))
}

fn build_jindex(b: &mut Builder<'_, '_>, master: &mut Inode, layout: &Layout) -> Result<()> {
    let mut jindex = create_dir(b, master, b"jindex")?;
    for jid in 0..layout.journals() {
        if let Some(num) = journal_num(layout, jid) {
            let name = format!("journal{jid}");
            jindex.add_entry(b, &Record::new(num, FileType::Regular, name.as_bytes()))?;
        }
    }
    jindex.finish(b)
}

fn build_per_node(
    b: &mut Builder<'_, '_>,
    master: &mut Inode,
    layout: &Layout,
    spec: &SystemSpec,
) -> Result<()> {
    let mut per_node = create_dir(b, master, b"per_node")?;
    let plain = DinodeFlags::SYSTEM | DinodeFlags::JDATA;
    for jid in 0..layout.journals() {
        for (name, content) in [
            ("inum_range", InumRange::default().as_bytes()),
            ("statfs_change", StatfsChange::default().as_bytes()),
        ] {
            let name = format!("{name}{jid}");
            let mut file = create_file(b, &mut per_node, name.as_bytes(), plain)?;
            file.write(b, 0, content, true)?;
            file.finish(b)?;
        }
        let name = format!("quota_change{jid}");
        let file = create_file(b, &mut per_node, name.as_bytes(), DinodeFlags::SYSTEM)?;
        fill_quota_change(b, file, spec.quota_change_mb)?;
    }
    per_node.finish(b)
}

/// Fills a quota change file with empty blocks. Its height is that of a file one block longer.
fn fill_quota_change(b: &mut Builder<'_, '_>, mut file: Inode, mb: u32) -> Result<()> {
    let bs = u64::from(b.geometry.bsize());
    let blocks = (u64::from(mb) << 20) / bs;
    let header = MetaHeader::new(MetaType::Qc, Jid::new(0));
    file.raise(b, (blocks + 1) * bs)?;
    for lblock in 0..blocks {
        let addr = file.map(b, lblock)?;
        if let Some(block) = file.block_mut(addr) {
            block[..META_HEADER_SIZE].copy_from_slice(header.as_bytes());
        }
        file.di().size = ((lblock + 1) * bs).into();
    }
    file.finish(b)
}

fn build_rindex(b: &mut Builder<'_, '_>, master: &mut Inode, layout: &Layout) -> Result<()> {
    let flags = DinodeFlags::SYSTEM | DinodeFlags::JDATA;
    let mut rindex = create_file(b, master, b"rindex", flags)?;
    rindex.di().payload_format = FORMAT_RINDEX.into();
    for index in 0..layout.rgrps() {
        if let Some(rgrp) = layout.rgrp(index) {
            let mut entry = RindexEntry::new_zeroed();
            entry.addr = rgrp.addr.into();
            entry.length = rgrp.bitmap_blocks.into();
            entry.data0 = rgrp.data0.into();
            entry.data = rgrp.data.into();
            entry.bitbytes = (rgrp.data / 4).into();
            let end = rindex.size();
            rindex.write(b, end, entry.as_bytes(), true)?;
        }
    }
    // One empty entry behind the end, not counted in the size: it may cost a block.
    let end = rindex.size();
    rindex.write(b, end, RindexEntry::new_zeroed().as_bytes(), false)?;
    rindex.finish(b)
}

/// The records of root, as user and as group.
fn build_quota(b: &mut Builder<'_, '_>, master: &mut Inode) -> Result<()> {
    let flags = DinodeFlags::SYSTEM | DinodeFlags::JDATA;
    let mut quota = create_file(b, master, b"quota", flags)?;
    quota.di().payload_format = FORMAT_QUOTA.into();
    let mut record = Quota::new_zeroed();
    record.value = 1.into();
    for _ in 0..2 {
        let end = quota.size();
        quota.write(b, end, record.as_bytes(), true)?;
    }
    quota.finish(b)
}
