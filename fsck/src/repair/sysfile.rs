//! Makes and rewrites the small files of the system tree.
//!
//! What a new one looks like is what mkfs makes (FORMAT.md section 8): root's, mode 0600, stuffed where it fits.

use super::Editor;
use gfs2_format::dir::{self, NewEntry};
use gfs2_format::log::{Header, HeaderVersion, JournalMap, LocalStatfs, LogTime, encode_header};
use gfs2_format::ondisk::{
    DINODE_SIZE, Dinode, DinodeFlags, Dirent, FileType, LogFlags, MetaHeader, MetaType, name_hash, view,
};
use gfs2_format::tree::{data_use, map_or_alloc};
use gfs2_format::{
    BlockAddr, BlockEdit, BlockRead, Error, Expected, FileBlock, InodeNum, Jid, JournalBlock, Timestamp,
};
use zerocopy::IntoBytes;

/// Blocks allocated at a time.
const RUN: u32 = 256;
/// Bytes of a ring written at a time.
const PIECE: usize = 1 << 20;
/// Size of a quota change file: what mkfs makes.
const QUOTA_CHANGE: u64 = 1 << 20;

/// The time for what is made or changed.
pub(super) fn now(edit: &Editor<'_>) -> Timestamp {
    Timestamp {
        sec: edit.now.sec.cast_signed(),
        nsec: edit.now.nsec,
    }
}

/// Writes a fresh dinode block: numbers, mode, times; nothing in it.
fn new_dinode(edit: &mut Editor<'_>, num: InodeNum, mode: u32, flags: DinodeFlags) -> Result<(), Error> {
    let time = edit.now.sec;
    edit.create(num.addr)?;
    edit.stamp(num.addr, MetaType::Di)?;
    edit.change::<Dinode>(num.addr, 0, |di| {
        di.num = num.into();
        di.mode = mode.into();
        di.nlink = 1.into();
        di.blocks = 1.into();
        for field in [&mut di.atime, &mut di.mtime, &mut di.ctime] {
            *field = time.into();
        }
        di.goal_meta = num.addr.get().into();
        di.goal_data = num.addr.get().into();
        di.set_flags(flags);
    })
}

/// Makes a system file in `parent`.
pub(super) fn new_file(
    edit: &mut Editor<'_>,
    parent: BlockAddr,
    name: &[u8],
    flags: DinodeFlags,
) -> Result<BlockAddr, Error> {
    let num = edit.new_inode(parent)?;
    let mode = FileType::Regular.mode_bits() | 0o600;
    new_dinode(edit, num, mode, flags | DinodeFlags::SYSTEM)?;
    link(edit, parent, name, num, FileType::Regular)?;
    Ok(num.addr)
}

/// Makes a system directory in `parent`, which gets a link more.
pub(super) fn new_dir(edit: &mut Editor<'_>, parent: BlockAddr, name: &[u8]) -> Result<BlockAddr, Error> {
    let num = edit.new_inode(parent)?;
    let above = edit.get::<Dinode>(parent, 0)?.inode_num();
    empty_dir(edit, num, above, 0o700, DinodeFlags::SYSTEM)?;
    link(edit, parent, name, num, FileType::Dir)?;
    edit.change::<Dinode>(parent, 0, |di| di.nlink = di.nlink.get().saturating_add(1).into())?;
    Ok(num.addr)
}

/// Makes the block of `num` an empty directory.
pub(super) fn empty_dir(
    edit: &mut Editor<'_>,
    num: InodeNum,
    parent: InodeNum,
    permissions: u32,
    flags: DinodeFlags,
) -> Result<(), Error> {
    new_dinode(edit, num, FileType::Dir.mode_bits() | permissions, flags)?;
    let geometry = edit.geometry().clone();
    dir::init_dir(edit.edit(num.addr)?, &geometry, num, parent)?;
    edit.change::<Dinode>(num.addr, 0, |di| di.nlink = 2.into())
}

pub(super) fn link(
    edit: &mut Editor<'_>,
    parent: BlockAddr,
    name: &[u8],
    num: InodeNum,
    kind: FileType,
) -> Result<(), Error> {
    let entry = NewEntry {
        name,
        num,
        kind,
        ea_follows: false,
    };
    let now = now(edit);
    dir::insert(edit, parent, &entry, now)
}

/// Gives a file these bytes and this size, in the blocks it has and in new ones.
pub(super) fn set_content(edit: &mut Editor<'_>, addr: BlockAddr, content: &[u8]) -> Result<(), Error> {
    let di = edit.get::<Dinode>(addr, 0)?;
    let size = content.len() as u64;
    if di.height.get() == 0 && size <= edit.geometry().max_stuffed() {
        let payload = edit.edit(addr)?.get_mut(DINODE_SIZE..).unwrap_or_default();
        payload.fill(0);
        payload.iter_mut().zip(content).for_each(|(to, from)| *to = *from);
    } else {
        let len = edit.geometry().block_len();
        let usage = data_use(&di);
        let mut chunks = content.chunks(len).peekable();
        let mut at = 0u64;
        while chunks.peek().is_some() {
            let left = content.len().div_ceil(len) as u64 - at;
            let want = u32::try_from(left).unwrap_or(RUN).min(RUN);
            let run = map_or_alloc(edit, addr, FileBlock::new(at), want)?;
            for (block, bytes) in run.extent.blocks().zip(&mut chunks) {
                edit.write_data(block, usage, bytes)?;
                at = at.saturating_add(1);
            }
        }
    }
    edit.change::<Dinode>(addr, 0, |di| di.size = size.into())
}

/// Makes a file an empty one; what it had is found as leaked.
pub(super) fn reset(edit: &mut Editor<'_>, addr: BlockAddr) -> Result<(), Error> {
    edit.edit(addr)?
        .get_mut(DINODE_SIZE..)
        .unwrap_or_default()
        .fill(0);
    edit.change::<Dinode>(addr, 0, |di| {
        di.size = 0.into();
        di.blocks = 1.into();
        di.height = 0.into();
        di.goal_meta = addr.get().into();
        di.goal_data = addr.get().into();
    })
}

/// Fills a file with empty quota change blocks.
pub(super) fn fill_quota_change(edit: &mut Editor<'_>, addr: BlockAddr) -> Result<(), Error> {
    reset(edit, addr)?;
    edit.change::<Dinode>(addr, 0, |di| {
        // Its blocks have headers: they are no file data for a journal.
        di.set_flags((di.flags() | DinodeFlags::SYSTEM) - DinodeFlags::JDATA);
        di.height = 1.into();
    })?;
    let bsize = u64::from(edit.geometry().bsize());
    let blocks = QUOTA_CHANGE / bsize;
    let header = MetaHeader::new(MetaType::Qc, Jid::new(0));
    let mut at = 0;
    while at < blocks {
        let want = u32::try_from(blocks - at).unwrap_or(RUN).min(RUN);
        let run = map_or_alloc(edit, addr, FileBlock::new(at), want)?;
        for block in run.extent.blocks() {
            edit.replace(block, header.as_bytes())?;
            at = at.saturating_add(1);
        }
    }
    let size = blocks.saturating_mul(bsize);
    edit.change::<Dinode>(addr, 0, |di| di.size = size.into())
}

/// An entry whose hash and length are those of `name`, but whose name is another one, gets its name back. Answers
/// whether there was one.
pub(super) fn rename_by_hash(edit: &mut Editor<'_>, dir: BlockAddr, name: &[u8]) -> Result<bool, Error> {
    let di = edit.get::<Dinode>(dir, 0)?;
    let (block, first) = if di.flags().contains(DinodeFlags::EXHASH) {
        if di.height.get() > 0 {
            return Ok(false);
        }
        let depth = u32::from(di.depth.get()).clamp(1, 31);
        let slot = name_hash(name) >> (32 - depth);
        let block = edit.read(dir)?;
        let raw = crate::pass::tree::pointers(&block, DINODE_SIZE)
            .nth(slot as usize)
            .unwrap_or(0);
        let leaf = edit
            .geometry()
            .check_address(raw, dir, "dinode", "leaf pointer")?;
        MetaHeader::check(&edit.read(leaf)?, leaf, MetaType::Lf)?;
        (leaf, gfs2_format::ondisk::LEAF_SIZE)
    } else {
        (dir, DINODE_SIZE)
    };
    let bytes = edit.read(block)?;
    let mut at = first;
    while let Ok(dirent) = view::<Dirent>(&bytes, at, block) {
        let (rec_len, len) = (
            usize::from(dirent.rec_len.get()),
            usize::from(dirent.name_len.get()),
        );
        let start = at.saturating_add(size_of::<Dirent>());
        let end = start.saturating_add(len);
        let found = bytes.get(start..end).unwrap_or_default();
        let same = !dirent.is_sentinel() && dirent.hash.get() == name_hash(name) && len == name.len();
        if same && found != name {
            let target = edit.edit(block)?.get_mut(start..end).unwrap_or_default();
            target.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
            return Ok(true);
        }
        if rec_len < size_of::<Dirent>() {
            break;
        }
        at = at.saturating_add(rec_len);
    }
    Ok(false)
}

/// The formal number a new inode's would follow, for the inum file.
pub(super) fn next_formal(edit: &Editor<'_>) -> u64 {
    let highest = edit.seen.inodes.iter().map(|inode| inode.formal).max();
    highest.unwrap_or(0).saturating_add(1)
}

/// A system file that is not there.
pub(super) fn no_file(parent: BlockAddr) -> Error {
    let rule = Expected::Rule("a system file of this name");
    Error::corrupt(parent, "dinode", "directory entries", 0, rule)
}

/// Writes a journal's ring as mkfs makes it: every block the header of an empty, finished log.
pub(super) fn fill_ring(edit: &mut Editor<'_>, dinode: BlockAddr, ring: &JournalMap) -> Result<(), Error> {
    let geometry = edit.geometry().clone();
    let mut buf: Vec<u8> = Vec::new();
    let mut sequence = 0u64;
    for extent in ring.extents() {
        let mut first = extent.start;
        for addr in extent.blocks() {
            let blkno = JournalBlock::new(u32::try_from(sequence).unwrap_or(u32::MAX));
            sequence = sequence.saturating_add(1);
            let header = Header {
                writer: Jid::new(0),
                sequence,
                flags: LogFlags::UNMOUNT | LogFlags::USERSPACE,
                tail: JournalBlock::new(0),
                blkno,
                version: HeaderVersion::V2,
                time: LogTime::default(),
                addr,
                jinode: dinode,
                statfs_addr: BlockAddr::default(),
                quota_addr: BlockAddr::default(),
                local: LocalStatfs::default(),
            };
            buf.extend_from_slice(&encode_header(&header, &geometry));
            if buf.len() >= PIECE {
                write_through(edit, first, &buf)?;
                buf.clear();
                first = addr.checked_add(1).unwrap_or(addr);
            }
        }
        if !buf.is_empty() {
            write_through(edit, first, &buf)?;
            buf.clear();
        }
    }
    edit.raw().flush()
}

/// Writes past the overlay, but where that holds a change of its own, which would come back over it.
fn write_through(edit: &Editor<'_>, first: BlockAddr, bytes: &[u8]) -> Result<(), Error> {
    let at = edit.geometry().byte_offset(first);
    edit.raw().write_at(at, bytes)?;
    let mut seen = vec![0; bytes.len()];
    edit.device().read_at(at, &mut seen)?;
    let len = edit.geometry().block_len();
    let blocks = bytes.chunks(len).zip(seen.chunks(len));
    for (offset, (wanted, seen)) in (0u64..).step_by(len).zip(blocks) {
        if wanted != seen {
            edit.device().write_at(at.saturating_add(offset), wanted)?;
        }
    }
    Ok(())
}
