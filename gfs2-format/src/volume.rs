//! Opens a volume for reading: superblock, geometry, system files, journals.
//!
//! Invariants: every address in a [`Volume`] lies inside the volume; a [`JournalFile`]'s map covers exactly its size
//! without a hole and lies wholly inside the volume. Nothing here writes or locks, and nothing decides whether the
//! volume may be mounted.

#[cfg(test)]
mod tests;

use crate::addr::{BlockAddr, Extent, FileBlock, Jid};
use crate::device::BlockDevice;
use crate::dir::lookup;
use crate::edit::{Block, BlockRead};
use crate::error::{Corrupt, Error, Expected, Result};
use crate::geometry::{Geometry, SUPERBLOCK_OFFSET};
use crate::log::JournalMap;
use crate::ondisk::{Dinode, FileType, RindexEntry, Superblock};
use crate::tree::{Mapping, map, read_bytes};
use zerocopy::FromBytes;

/// Smallest journal in bytes.
pub const MIN_JOURNAL_SIZE: u64 = 8 << 20;
/// Largest journal in bytes.
pub const MAX_JOURNAL_SIZE: u64 = 1 << 30;
/// More journals than this are a lie: the lock manager's limit on nodes is far below.
const MAX_JOURNALS: u32 = 4096;

/// Blocks straight from a device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceReader<'a> {
    device: &'a dyn BlockDevice,
    geometry: &'a Geometry,
}

impl<'a> DeviceReader<'a> {
    /// Reads `device` in blocks of `geometry`.
    #[must_use]
    pub const fn new(device: &'a dyn BlockDevice, geometry: &'a Geometry) -> Self {
        Self { device, geometry }
    }
}

impl BlockRead for DeviceReader<'_> {
    fn geometry(&self) -> &Geometry {
        self.geometry
    }

    fn read(&self, addr: BlockAddr) -> Result<Block> {
        let mut block = Block::zeroed(self.geometry.block_len());
        self.device
            .read_at(self.geometry.byte_offset(addr), block.make_mut())?;
        Ok(block)
    }
}

/// The dinodes of the files in the master directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemFiles {
    /// `sb_master_dir`.
    pub master: BlockAddr,
    /// `sb_root_dir`.
    pub root: BlockAddr,
    /// `jindex`: the directory of the journals.
    pub jindex: BlockAddr,
    /// `per_node`: the directory of each node's own files.
    pub per_node: BlockAddr,
    /// `statfs`: the volume's totals.
    pub statfs: BlockAddr,
    /// `rindex`: where the resource groups are.
    pub rindex: BlockAddr,
    /// `quota`.
    pub quota: BlockAddr,
    /// `inum`; only tools use it, so it may be missing.
    pub inum: Option<BlockAddr>,
}

/// A journal and the files of the node that owns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalFile {
    /// The N of `journalN`.
    pub jid: Jid,
    /// Its dinode.
    pub dinode: BlockAddr,
    /// Where its blocks lie.
    pub map: JournalMap,
    /// Dinode of `per_node/statfs_changeN`; a mount needs it.
    pub statfs_change: Option<BlockAddr>,
    /// Dinode of `per_node/quota_changeN`; the mount that owns this journal needs it.
    pub quota_change: Option<BlockAddr>,
}

/// A volume's fixed points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The superblock.
    pub superblock: Superblock,
    /// Sizes that follow from it and from the device.
    pub geometry: Geometry,
    /// The system files.
    pub system: SystemFiles,
    /// The journals by jid, without a gap.
    pub journals: Vec<JournalFile>,
}

/// Reads and checks the superblock; the geometry's end is the device's.
///
/// # Errors
/// I/O errors; [`Error::Corrupt`] and [`Error::Unsupported`] as [`Superblock::decode`].
pub fn read_superblock(device: &dyn BlockDevice) -> Result<(Superblock, Geometry)> {
    // A whole page, since devices with large sectors read nothing smaller.
    let mut bytes = vec![0; 4096];
    device.read_at(SUPERBLOCK_OFFSET, &mut bytes)?;
    let superblock = Superblock::decode(&bytes)?;
    let blocks = device.size() >> superblock.bsize_shift.get();
    let geometry = Geometry::new(superblock.bsize.get(), blocks)?;
    Ok((superblock, geometry))
}

impl Volume {
    /// Opens the volume on `device`.
    ///
    /// # Errors
    /// I/O errors; [`Error::Corrupt`] naming what is wrong on the way from the superblock to the journals.
    pub fn open(device: &dyn BlockDevice) -> Result<Self> {
        let (superblock, geometry) = read_superblock(device)?;
        let reader = DeviceReader::new(device, &geometry);
        let system = SystemFiles::read(&reader, &superblock)?;
        let journals = read_journals(&reader, &system)?;
        Ok(Self {
            superblock,
            geometry,
            system,
            journals,
        })
    }

    /// The journal of a jid.
    #[must_use]
    pub fn journal(&self, jid: Jid) -> Option<&JournalFile> {
        self.journals.get(usize::try_from(jid.get()).ok()?)
    }
}

impl SystemFiles {
    /// Finds the system files by their names in the master directory.
    ///
    /// # Errors
    /// I/O errors; [`Error::Corrupt`].
    pub fn read(reader: &dyn BlockRead, superblock: &Superblock) -> Result<Self> {
        let geometry = reader.geometry();
        let sb = geometry.superblock();
        let address = |raw: u64, field| geometry.check_address(raw, sb, "sb", field);
        let master = address(superblock.master_dir.addr.get(), "sb_master_dir")?;
        let root = address(superblock.root_dir.addr.get(), "sb_root_dir")?;
        let find = |name: &'static str, kind| find_file(reader, master, name, kind);
        let need = |name: &'static str, kind| {
            find(name, kind)?.ok_or_else(|| {
                let expected = Expected::Rule(missing_rule(name));
                Error::corrupt(master, "dinode", "directory entries", 0, expected)
            })
        };
        Ok(Self {
            master,
            root,
            jindex: need("jindex", FileType::Dir)?,
            per_node: need("per_node", FileType::Dir)?,
            statfs: need("statfs", FileType::Regular)?,
            rindex: need("rindex", FileType::Regular)?,
            quota: need("quota", FileType::Regular)?,
            inum: find("inum", FileType::Regular)?,
        })
    }
}

fn missing_rule(name: &str) -> &'static str {
    match name {
        "jindex" => "an entry named jindex",
        "per_node" => "an entry named per_node",
        "statfs" => "an entry named statfs",
        "rindex" => "an entry named rindex",
        "quota" => "an entry named quota",
        _ => "an entry named journal0",
    }
}

/// Looks a system file up and checks where the entry points and what type it says.
fn find_file(
    reader: &dyn BlockRead,
    dir: BlockAddr,
    name: &str,
    kind: FileType,
) -> Result<Option<BlockAddr>> {
    let Some(found) = lookup(reader, dir, name.as_bytes())? else {
        return Ok(None);
    };
    if found.kind != kind {
        let expected = Expected::Value(u64::from(kind.dirent_type()));
        let was = u64::from(found.kind.dirent_type());
        return Err(Error::corrupt(dir, "dirent", "de_type", was, expected));
    }
    let geometry = reader.geometry();
    geometry
        .check_address(found.num.addr.get(), dir, "dirent", "no_addr")
        .map(Some)
}

/// The journals of `jindex`, probed by name from `journal0` on until one is missing.
///
/// # Errors
/// I/O errors; [`Error::Corrupt`] when there is none, or one is no proper journal.
pub fn read_journals(reader: &dyn BlockRead, system: &SystemFiles) -> Result<Vec<JournalFile>> {
    let mut journals = Vec::new();
    for jid in (0..MAX_JOURNALS).map(Jid::new) {
        let name = format!("journal{jid}");
        let Some(dinode) = find_file(reader, system.jindex, &name, FileType::Regular)? else {
            break;
        };
        let own = |prefix: &str| {
            let name = format!("{prefix}{jid}");
            find_file(reader, system.per_node, &name, FileType::Regular)
        };
        journals.push(JournalFile {
            jid,
            dinode,
            map: map_journal(reader, dinode)?,
            statfs_change: own("statfs_change")?,
            quota_change: own("quota_change")?,
        });
    }
    if journals.is_empty() {
        let expected = Expected::Rule(missing_rule("journal0"));
        return Err(Error::corrupt(
            system.jindex,
            "dinode",
            "directory entries",
            0,
            expected,
        ));
    }
    Ok(journals)
}

/// Maps a journal's blocks, with the kernel's checks: size in bounds and whole blocks, not stuffed, no hole.
///
/// # Errors
/// I/O errors; [`Error::Corrupt`], whose structure is "journal" when it is the journal's dinode that lies.
pub fn map_journal(reader: &dyn BlockRead, dinode: BlockAddr) -> Result<JournalMap> {
    map_journal_blocks(reader, dinode).map_err(|error| match error {
        Error::Corrupt(lie) if lie.structure == "dinode" => Error::Corrupt(Corrupt {
            structure: "journal",
            ..lie
        }),
        other => other,
    })
}

fn map_journal_blocks(reader: &dyn BlockRead, dinode: BlockAddr) -> Result<JournalMap> {
    let block = reader.read(dinode)?;
    let geometry = reader.geometry();
    let di = Dinode::decode(&block, dinode, geometry)?;
    let fail = |field, found, expected| Err(Error::corrupt(dinode, "dinode", field, found, expected));
    let size = di.size.get();
    if !(MIN_JOURNAL_SIZE..=MAX_JOURNAL_SIZE).contains(&size) {
        return fail(
            "di_size",
            size,
            Expected::Range(MIN_JOURNAL_SIZE, MAX_JOURNAL_SIZE),
        );
    }
    if !size.is_multiple_of(u64::from(geometry.bsize())) {
        return fail("di_size", size, Expected::Rule("a multiple of the block size"));
    }
    if di.height.get() == 0 {
        let expected = Expected::Range(1, u64::from(geometry.max_height()));
        return fail("di_height", 0, expected);
    }
    let blocks = size >> geometry.bsize_shift();
    if blocks > geometry.end() {
        return fail("di_size", size, Expected::Rule("no more than the volume holds"));
    }
    let mut extents: Vec<Extent> = Vec::new();
    let mut at = 0;
    while at < blocks {
        match map(reader, dinode, &block, FileBlock::new(at), blocks - at)? {
            Mapping::Data(extent) => {
                at = at.saturating_add(u64::from(extent.len.max(1)));
                extents.push(extent);
            }
            Mapping::Hole { .. } | Mapping::Stuffed => {
                return fail("di_size", at, Expected::Rule("a journal without a hole"));
            }
        }
    }
    check_journal_extents(&extents, dinode, geometry)?;
    match JournalMap::new(extents) {
        Some(map) if u64::from(map.ring().blocks()) == blocks => Ok(map),
        _ => fail("di_size", size, Expected::Rule("as many bytes as the tree maps")),
    }
}

/// Each block inside the volume, and none twice.
fn check_journal_extents(extents: &[Extent], dinode: BlockAddr, geometry: &Geometry) -> Result<()> {
    let mut sorted: Vec<Extent> = extents.to_vec();
    sorted.sort_unstable_by_key(|e| e.start);
    let mut free_from = 0;
    for extent in sorted {
        let last = extent.start.get().saturating_add(u64::from(extent.len) - 1);
        geometry.check_address(extent.start.get(), dinode, "journal", "block pointer")?;
        geometry.check_address(last, dinode, "journal", "block pointer")?;
        if extent.start.get() < free_from {
            let expected = Expected::Rule("a block the journal does not have twice");
            let found = extent.start.get();
            return Err(Error::corrupt(
                dinode,
                "journal",
                "block pointer",
                found,
                expected,
            ));
        }
        free_from = last.saturating_add(1);
    }
    Ok(())
}

/// The dinode a path leads to from the directory `from`: components between slashes, symbolic links not followed.
///
/// # Errors
/// [`Error::NotFound`]; I/O errors; [`Error::Corrupt`].
pub fn resolve_path(reader: &dyn BlockRead, from: BlockAddr, path: &[u8]) -> Result<BlockAddr> {
    let mut at = from;
    for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        let found = lookup(reader, at, name)?.ok_or(Error::NotFound)?;
        let raw = found.num.addr.get();
        at = reader.geometry().check_address(raw, at, "dirent", "no_addr")?;
    }
    Ok(at)
}

/// Reads a whole system file of at most `limit` bytes.
///
/// # Errors
/// I/O errors; [`Error::Corrupt`] for a bad dinode or tree and for a larger file.
pub fn read_file(reader: &dyn BlockRead, addr: BlockAddr, limit: u64) -> Result<Vec<u8>> {
    let block = reader.read(addr)?;
    let size = Dinode::decode(&block, addr, reader.geometry())?.size.get();
    let len = usize::try_from(size).ok().filter(|_| size <= limit);
    let Some(len) = len else {
        return Err(Error::corrupt(
            addr,
            "dinode",
            "di_size",
            size,
            Expected::Range(0, limit),
        ));
    };
    let mut bytes = vec![0; len];
    let got = read_bytes(reader, addr, 0, &mut bytes)?;
    bytes.truncate(got);
    Ok(bytes)
}

/// The whole entries of the rindex file as they stand there, unchecked.
///
/// # Errors
/// As [`read_file`]; a file larger than resource groups of this volume could need.
pub fn read_rindex(reader: &dyn BlockRead, rindex: BlockAddr) -> Result<Vec<RindexEntry>> {
    // A group has a header and at least one bitmap byte's worth of blocks.
    let limit = (reader.geometry().end() / 5).saturating_add(1).saturating_mul(96);
    let bytes = read_file(reader, rindex, limit)?;
    let (entries, _) = bytes.as_chunks::<96>();
    Ok(entries
        .iter()
        .filter_map(|entry| RindexEntry::read_from_bytes(entry).ok())
        .collect())
}
