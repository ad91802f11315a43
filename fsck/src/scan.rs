//! Finds structures by reading the volume from one end to the other, when nothing leads to them any more.
//!
//! Invariants: reads in pieces of [`PIECE`]; a structure is believed only when it names its own place (the own address
//! of an inode, the first data block of a resource group), so copies in journals and in files are none.

use crate::pass::area::{Area, Record};
use crate::pass::system::names;
use crate::reader::Reader;
use gfs2_format::bitmap::RgrpLayout;
use gfs2_format::device::BlockDevice;
use gfs2_format::dir::lookup;
use gfs2_format::geometry::SUPERBLOCK_OFFSET;
use gfs2_format::ondisk::{
    BlockState, DINODE_SIZE, Dinode, DinodeFlags, FileType, MAGIC, MetaHeader, MetaType, Rgrp, RindexEntry,
    view,
};
use gfs2_format::volume::DeviceReader;
use gfs2_format::{BlockAddr, BlockRead, Error, Geometry, InodeNum};
use std::collections::{BTreeMap, HashSet};

/// `di_payload_format` of the resource index.
const FORMAT_RINDEX: u32 = 1100;
/// `di_payload_format` of the quota file.
const FORMAT_QUOTA: u32 = 1500;
/// Bytes of a quota record.
const QUOTA_SIZE: u64 = 88;
/// Bytes read at a time.
const PIECE: usize = 1 << 20;
/// Inodes looked at together.
const INODES: usize = 1024;
/// Directories that are remembered to tell which one is gone.
const DIRECTORIES: usize = 1 << 20;
/// How far behind the superblock the first resource group is looked for when the block size is not known.
const FIRST_GROUP: u64 = 64 << 20;

/// The layout a resource group's header claims for itself, with its `rg_skip`.
pub(crate) fn layout_of_header(
    geometry: &Geometry,
    addr: BlockAddr,
    bytes: &[u8],
) -> Option<(u64, RgrpLayout)> {
    MetaHeader::check(bytes, addr, MetaType::Rg).ok()?;
    let header = view::<Rgrp>(bytes, 0, addr).ok()?;
    let length = header.data0.get().checked_sub(addr.get())?;
    let entry = RindexEntry {
        addr: addr.get().into(),
        length: u32::try_from(length).ok()?.into(),
        pad: 0.into(),
        data0: header.data0,
        data: header.data,
        bitbytes: header.bitbytes,
        reserved: [0; 64],
    };
    let layout = RgrpLayout::check(&entry, addr, geometry).ok()?;
    Some((u64::from(header.skip.get()), layout))
}

/// Shows every block of `from..end` that begins with the magic number; the visitor ends the scan with `false`.
pub(crate) fn magic_blocks(
    device: &dyn BlockDevice,
    geometry: &Geometry,
    from: u64,
    end: u64,
    mut visit: impl FnMut(BlockAddr, &[u8]) -> bool,
) {
    let len = geometry.block_len();
    let step = (PIECE / len).max(1) as u64;
    let mut buf = vec![0; len.saturating_mul(step as usize)];
    let mut at = from;
    while at < end.min(geometry.end()) {
        let count = step.min(end.min(geometry.end()).saturating_sub(at));
        let bytes = buf
            .get_mut(..len.saturating_mul(count as usize))
            .unwrap_or_default();
        // What cannot be read holds nothing that can be found.
        if device
            .read_at(geometry.byte_offset(BlockAddr::new(at)), bytes)
            .is_ok()
        {
            for (n, block) in (at..).zip(bytes.chunks_exact(len)) {
                let found = block
                    .first_chunk::<4>()
                    .is_some_and(|m| *m == MAGIC.to_be_bytes());
                if found && !visit(BlockAddr::new(n), block) {
                    return;
                }
            }
        }
        at = at.saturating_add(count);
    }
}

/// The resource groups whose headers are whole, from block `from` on: along the headers, and by a search where they
/// do not lead on.
pub(crate) fn groups(device: &dyn BlockDevice, geometry: &Geometry, from: u64, end: u64) -> Vec<RgrpLayout> {
    let reader = DeviceReader::new(device, geometry);
    let mut found: Vec<RgrpLayout> = Vec::new();
    let mut at = from;
    while at < end.min(geometry.end()) {
        let addr = BlockAddr::new(at);
        let here = reader
            .read(addr)
            .ok()
            .and_then(|bytes| layout_of_header(geometry, addr, &bytes));
        let here = here.or_else(|| {
            let mut next = None;
            magic_blocks(device, geometry, at, end, |addr, bytes| {
                next = layout_of_header(geometry, addr, bytes);
                next.is_none()
            });
            next
        });
        let Some((skip, layout)) = here else {
            break;
        };
        let behind = layout.end().get();
        let skipped = layout.addr().get().saturating_add(skip);
        // A distance is believed only when it leads on.
        at = if skip != 0 && (behind..behind.saturating_add(4)).contains(&skipped) {
            skipped
        } else {
            behind
        };
        found.push(layout);
    }
    found
}

/// Every inode that the bitmaps of whole groups show.
fn inodes(
    device: &dyn BlockDevice,
    geometry: &Geometry,
    groups: &[RgrpLayout],
    mut visit: impl FnMut(BlockAddr, &Dinode, &[u8]),
) {
    let reader = DeviceReader::new(device, geometry);
    let mut blocks = Reader::new(device, geometry);
    for slice in groups.iter().flat_map(RgrpLayout::slices) {
        let Ok(bitmap) = reader.read(slice.block) else {
            continue;
        };
        let Ok(states) = slice.iter(&bitmap).map(|states| {
            let inodes = states.filter(|(_, state)| *state == BlockState::Dinode);
            inodes.map(|(addr, _)| addr).collect::<Vec<BlockAddr>>()
        }) else {
            continue;
        };
        for batch in states.chunks(INODES) {
            blocks.blocks(batch, |index, bytes| {
                let (Some(addr), Ok(bytes)) = (batch.get(index).copied(), bytes) else {
                    return;
                };
                if let Ok(di) = Dinode::decode(bytes, addr, geometry) {
                    visit(addr, di, bytes);
                }
            });
        }
    }
}

/// What a scan knows of the system tree.
#[derive(Debug, Default)]
pub(crate) struct SystemTree {
    /// A directory with the names of the master directory.
    pub(crate) master: Option<InodeNum>,
    /// A directory that is its own parent and no system file.
    pub(crate) root: Option<InodeNum>,
    /// Where directories say that the root is, and system directories that the master directory is, though no
    /// directory is there any more.
    pub(crate) root_was: Option<InodeNum>,
    pub(crate) master_was: Option<InodeNum>,
    /// What belongs into the master directory.
    pub(crate) files: Vec<(&'static str, InodeNum, FileType)>,
    groups: Vec<RgrpLayout>,
}

impl SystemTree {
    /// The bitmaps' state of a block.
    pub(crate) fn state(&self, reader: &dyn BlockRead, addr: BlockAddr) -> Option<BlockState> {
        let index = gfs2_format::bitmap::find_rgrp(&self.groups, addr)?;
        let slice = self.groups.get(index)?.locate(addr)?;
        slice.state(&reader.read(slice.block).ok()?, addr).ok()
    }
}

/// Looks for the master and the root directory and for the files of the master directory.
pub(crate) fn system_tree(device: &dyn BlockDevice, geometry: &Geometry) -> SystemTree {
    let first = geometry.superblock().get().saturating_add(1);
    let groups = groups(device, geometry, first, geometry.end());
    let mut tree = SystemTree::default();
    let mut files: Vec<(InodeNum, u64)> = Vec::new();
    let mut of_nodes: Vec<BlockAddr> = Vec::new();
    let mut above = Above::default();
    let addresses: Vec<BlockAddr> = groups.iter().map(RgrpLayout::addr).collect();
    let mut visit = |addr: BlockAddr, di: &Dinode, bytes: &[u8]| {
        let num = di.inode_num();
        let system = di.flags().contains(DinodeFlags::SYSTEM);
        if di.is_dir() {
            let (names, parent) = match di.flags().contains(DinodeFlags::EXHASH) {
                true => hashed_entries(device, geometry, addr, system),
                false => entries(addr, bytes),
            };
            let has = |name: &str| names.iter().any(|(found, _)| **found == *name.as_bytes());
            above.add(addr, parent, system);
            if parent.is_some_and(|parent| parent.addr == addr) && !system {
                tree.root.get_or_insert(num);
            } else if system && has("jindex") && has("per_node") {
                tree.master.get_or_insert(num);
            } else if system && has("journal0") {
                tree.files.push(("jindex", num, FileType::Dir));
            } else if system && has("inum_range0") {
                tree.files.push(("per_node", num, FileType::Dir));
            }
            if system {
                of_nodes.extend(names.iter().map(|(_, target)| *target));
            }
        } else if system && di.file_type() == Some(FileType::Regular) {
            let format = di.payload_format.get();
            let jdata = di.flags().contains(DinodeFlags::JDATA);
            let index = format == FORMAT_RINDEX || is_index(device, geometry, di, bytes, &addresses);
            match di.size.get() {
                _ if index => tree.files.push(("rindex", num, FileType::Regular)),
                _ if format == FORMAT_QUOTA => tree.files.push(("quota", num, FileType::Regular)),
                size @ (8 | 24) => files.push((num, size)),
                // The kernel forgets the format; it makes the file as large as the largest user number asks for.
                size if jdata && size.is_multiple_of(QUOTA_SIZE) => files.push((num, QUOTA_SIZE)),
                _ => {}
            }
        }
    };
    inodes(device, geometry, &groups, &mut visit);
    // Where groups are that have lost their headers.
    let mut at = first;
    for (next, behind) in groups
        .iter()
        .map(|group| (group.addr().get(), group.end().get()))
        .chain([(geometry.end(), geometry.end())])
    {
        magic_blocks(device, geometry, at, next, |addr, bytes| {
            // What was deleted there may still be seen: that is the price.
            let decoded = Dinode::decode(bytes, addr, geometry);
            if let Some(di) = decoded.ok().filter(|di| di.num.addr.get() == addr.get()) {
                visit(addr, di, bytes);
            }
            true
        });
        at = behind;
    }
    files.retain(|(num, _)| !of_nodes.contains(&num.addr));
    for (num, size) in files {
        let name = match size {
            8 => "inum",
            24 => "statfs",
            _ => "quota",
        };
        if !tree.files.iter().any(|(known, _, _)| *known == name) {
            tree.files.push((name, num, FileType::Regular));
        }
    }
    (tree.root_was, tree.master_was) = (above.gone(false), above.gone(true));
    tree.groups = groups;
    tree
}

/// Where the ".." of directories lead.
#[derive(Debug, Default)]
struct Above {
    directories: HashSet<BlockAddr>,
    /// By place and whether it is one of the system tree: its numbers, and how many directories name it.
    named: BTreeMap<(bool, BlockAddr), (InodeNum, u64)>,
}

impl Above {
    fn add(&mut self, directory: BlockAddr, parent: Option<InodeNum>, system: bool) {
        if self.directories.len() >= DIRECTORIES {
            return;
        }
        self.directories.insert(directory);
        if let Some(parent) = parent {
            let (_, count) = self.named.entry((system, parent.addr)).or_insert((parent, 0));
            *count = count.saturating_add(1);
        }
    }

    /// What most directories name that is no directory.
    fn gone(&self, system: bool) -> Option<InodeNum> {
        let gone = self
            .named
            .iter()
            .filter(|((of_system, addr), _)| *of_system == system && !self.directories.contains(addr));
        gone.max_by_key(|(_, (_, count))| *count)
            .map(|(_, (num, _))| *num)
    }
}

/// Names with the inodes they lead to.
type Names = Vec<(Box<[u8]>, BlockAddr)>;

/// Names and targets of a directory whose entries stand in its dinode, and where ".." leads.
fn entries(addr: BlockAddr, bytes: &[u8]) -> (Names, Option<InodeNum>) {
    let mut names = Vec::new();
    let mut parent = None;
    for record in Area::new(bytes, addr, DINODE_SIZE) {
        if let Record::Entry { dirent, name } = record {
            let target = dirent.inum.num();
            match name {
                b"." => {}
                b".." => parent = Some(target),
                _ => names.push((name.into(), target.addr)),
            }
        }
    }
    (names, parent)
}

/// The same of a hashed directory; the names only of one of the system tree.
fn hashed_entries(
    device: &dyn BlockDevice,
    geometry: &Geometry,
    addr: BlockAddr,
    system: bool,
) -> (Names, Option<InodeNum>) {
    if !system {
        let found = lookup(&DeviceReader::new(device, geometry), addr, b"..");
        return (Names::new(), found.ok().flatten().map(|found| found.num));
    }
    let mut reader = Reader::new(device, geometry);
    let mut all = names(&mut reader, geometry, addr).unwrap_or_default();
    let parent = all.remove(b"..".as_slice());
    all.remove(b".".as_slice());
    (
        all.into_iter().map(|(name, num)| (name, num.addr)).collect(),
        parent,
    )
}

/// Does the file begin with the entry of a resource group?
fn is_index(
    device: &dyn BlockDevice,
    geometry: &Geometry,
    di: &Dinode,
    bytes: &[u8],
    groups: &[BlockAddr],
) -> bool {
    let first = match di.height.get() {
        0 => bytes.get(DINODE_SIZE..).map(Box::<[u8]>::from),
        _ => {
            let raw = crate::pass::tree::pointers(bytes, DINODE_SIZE)
                .next()
                .unwrap_or(0);
            let mut reader = Reader::new(device, geometry);
            let inside = raw != 0 && raw < geometry.end() && di.height.get() == 1;
            inside
                .then(|| reader.block(BlockAddr::new(raw)).ok().map(Box::from))
                .flatten()
        }
    };
    let first = first.unwrap_or_default();
    let addr = first.first_chunk::<8>().map(|raw| u64::from_be_bytes(*raw));
    addr.is_some_and(|addr| groups.contains(&BlockAddr::new(addr)))
}

/// The block size of a volume whose superblock does not tell: that with which a resource group's header makes sense.
pub(crate) fn block_size(device: &dyn BlockDevice) -> Option<u32> {
    let mut buf = vec![0; PIECE];
    let mut at = SUPERBLOCK_OFFSET;
    let end = device.size().min(SUPERBLOCK_OFFSET.saturating_add(FIRST_GROUP));
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
        let bytes = buf.get_mut(..len).unwrap_or_default();
        if device.read_at(at, bytes).is_ok() {
            for (n, sector) in bytes.chunks_exact(512).enumerate() {
                let offset = at.saturating_add(n as u64 * 512);
                let found = sector
                    .first_chunk::<4>()
                    .is_some_and(|m| *m == MAGIC.to_be_bytes());
                if let Some(bsize) = found.then(|| size_for(device, offset, sector)).flatten() {
                    return Some(bsize);
                }
            }
        }
        at = at.saturating_add(len as u64);
    }
    None
}

fn size_for(device: &dyn BlockDevice, offset: u64, sector: &[u8]) -> Option<u32> {
    let sizes = (9..=16).map(|shift| 1u32 << shift);
    let mut fitting = sizes.filter(|bsize| offset.is_multiple_of(u64::from(*bsize)));
    fitting.find(|bsize| {
        let blocks = device.size() / u64::from(*bsize);
        let Ok(geometry) = Geometry::new(*bsize, blocks) else {
            return false;
        };
        let addr = BlockAddr::new(offset / u64::from(*bsize));
        layout_of_header(&geometry, addr, sector).is_some()
    })
}

/// Is the block an inode that knows where it is?
pub(crate) fn is_inode(reader: &dyn BlockRead, addr: BlockAddr) -> Result<bool, Error> {
    let block = reader.read(addr)?;
    let own = view::<Dinode>(&block, 0, addr).is_ok_and(|di| di.num.addr.get() == addr.get());
    Ok(own && MetaHeader::check(&block, addr, MetaType::Di).is_ok())
}
