//! Superblock and system files: found by name, checked against what they must be.

use crate::check::{Check, Step};
use crate::pass::area::{Area, Record};
use crate::pass::rgrps::Totals;
use crate::pass::shape;
use crate::pass::tree::{leaf_pointers, list_blocks};
use crate::problem::{Kind, Problem};
use crate::reader::Reader;
use gfs2_format::ondisk::{
    DINODE_SIZE, Dinode, DinodeFlags, FileType, InumRange, LEAF_SIZE, Leaf, MetaHeader, MetaType,
    RINDEX_SIZE, StatfsChange, Superblock, view,
};
use gfs2_format::{Block, BlockAddr, Error, Expected, Geometry, InodeNum};
use std::collections::{BTreeMap, HashSet};

/// A quota change file is at most so large.
const QUOTA_CHANGE_MAX: u64 = 64 << 20;
/// Names read from a system directory at most: three files for each of 4096 journals, and then some.
const NAMES_MAX: usize = 1 << 16;

/// The files of the system tree, by name; what is missing is absent.
#[derive(Debug, Default)]
pub(crate) struct System {
    pub(crate) master: BTreeMap<Box<[u8]>, InodeNum>,
    pub(crate) jindex: BTreeMap<Box<[u8]>, InodeNum>,
    pub(crate) per_node: BTreeMap<Box<[u8]>, InodeNum>,
}

impl System {
    pub(crate) fn file(&self, name: &str) -> Option<BlockAddr> {
        self.master.get(name.as_bytes()).map(|num| num.addr)
    }

    pub(crate) fn journal(&self, jid: u32) -> Option<BlockAddr> {
        self.jindex
            .get(format!("journal{jid}").as_bytes())
            .map(|num| num.addr)
    }

    pub(crate) fn node_file(&self, prefix: &str, jid: u32) -> Option<BlockAddr> {
        self.per_node
            .get(format!("{prefix}{jid}").as_bytes())
            .map(|num| num.addr)
    }

    /// Journals from journal0 on until one is missing.
    pub(crate) fn journals(&self) -> u32 {
        let most = u32::try_from(self.jindex.len()).unwrap_or(u32::MAX);
        (0..most).take_while(|jid| self.journal(*jid).is_some()).count() as u32
    }
}

/// A decoded dinode with its block.
pub(crate) struct Loaded {
    pub(crate) dinode: Dinode,
    pub(crate) bytes: Box<[u8]>,
}

/// Reads and decodes a dinode, with its shape as it must be: that it is wrong is said with all inodes.
pub(crate) fn load(reader: &mut Reader<'_>, geometry: &Geometry, addr: BlockAddr) -> Result<Loaded, Error> {
    if addr.get() >= geometry.end() {
        let last = geometry.end().saturating_sub(1);
        return Err(Error::corrupt(
            addr,
            "dinode",
            "no_addr",
            addr.get(),
            Expected::Range(1, last),
        ));
    }
    let mut bytes: Box<[u8]> = reader.block(addr)?.into();
    let mut read = |block: BlockAddr| {
        let inside = Some(block).filter(|block| block.get() < geometry.end())?;
        reader.block(inside).ok().map(|bytes| Block::new(bytes.into()))
    };
    shape::truth_before(geometry, addr, &bytes, &mut read).apply(&mut bytes);
    let dinode = *Dinode::decode(&bytes, addr, geometry)?;
    Ok(Loaded { dinode, bytes })
}

/// The entries of a system directory, as far as they can be read.
pub(crate) fn names(
    reader: &mut Reader<'_>,
    geometry: &Geometry,
    addr: BlockAddr,
) -> Result<BTreeMap<Box<[u8]>, InodeNum>, Error> {
    let Loaded { dinode, bytes } = load(reader, geometry, addr)?;
    let mut names = BTreeMap::new();
    let mut add = |bytes: &[u8], block, first| {
        for record in Area::new(bytes, block, first) {
            if let Record::Entry { dirent, name } = record
                && names.len() < NAMES_MAX
            {
                names.insert(name.into(), dirent.inum.num());
            }
        }
    };
    if !dinode.flags().contains(DinodeFlags::EXHASH) {
        add(&bytes, addr, DINODE_SIZE);
        return Ok(names);
    }
    let mut leaves = leaf_pointers(reader, geometry, &dinode, &bytes);
    let mut seen = HashSet::new();
    while let Some(raw) = leaves.pop() {
        if raw == 0 || raw >= geometry.end() || !seen.insert(raw) {
            continue;
        }
        let block = BlockAddr::new(raw);
        let bytes = reader.block(block)?;
        if MetaHeader::check(bytes, block, MetaType::Lf).is_ok() {
            add(bytes, block, LEAF_SIZE);
            leaves.extend(view::<Leaf>(bytes, 0, block).ok().map(|leaf| leaf.next.get()));
        }
    }
    Ok(names)
}

/// Finds the system files. An error means that the master directory cannot be used.
pub(crate) fn find(reader: &mut Reader<'_>, geometry: &Geometry, sb: &Superblock) -> Result<System, Error> {
    let master = names(reader, geometry, sb.master_dir.num().addr)?;
    let mut system = System {
        master,
        ..System::default()
    };
    if let Some(addr) = system.file("jindex") {
        system.jindex = names(reader, geometry, addr).unwrap_or_default();
    }
    if let Some(addr) = system.file("per_node") {
        system.per_node = names(reader, geometry, addr).unwrap_or_default();
    }
    Ok(system)
}

impl Check<'_> {
    /// Checks the superblock's pointers and every system file by itself.
    pub(crate) fn system(&mut self, reader: &mut Reader<'_>, system: &System) -> Step {
        let sb = self.superblock;
        let geometry = self.geometry.clone();
        let at = geometry.superblock();
        if sb.lockproto().starts_with("fsck_") {
            let expected = Expected::Rule("a protocol that does not start with fsck_");
            let problem = Problem::new(Kind::LockProtocol, at, "sb_lockproto", 0, expected);
            self.found(problem.named(sb.lockproto().as_bytes()));
        }
        for (kind, num) in [
            (Kind::MasterDir, sb.master_dir.num()),
            (Kind::RootDir, sb.root_dir.num()),
        ] {
            self.root(reader, kind, num)?;
        }
        self.system_flag(reader, sb.master_dir.num().addr);
        let files = [
            ("jindex", FileType::Dir),
            ("per_node", FileType::Dir),
            ("inum", FileType::Regular),
            ("statfs", FileType::Regular),
            ("rindex", FileType::Regular),
            ("quota", FileType::Regular),
        ];
        for (name, kind) in files {
            match system.file(name) {
                Some(addr) => {
                    self.system_file(reader, addr, name, kind);
                    if name == "inum" {
                        self.record_file(reader, addr, name, size_of::<u64>());
                    }
                }
                None => {
                    let expected = Expected::Rule("an entry in the master directory");
                    let master = sb.master_dir.num().addr;
                    let problem = Problem::new(Kind::SystemFileMissing, master, "entries", 0, expected);
                    self.found(problem.of(master).named(name.as_bytes()));
                }
            }
        }
        self.node_files(reader, system);
        Ok(())
    }

    fn root(&mut self, reader: &mut Reader<'_>, kind: Kind, num: InodeNum) -> Step {
        let problem = match load(reader, &self.geometry, num.addr) {
            Ok(loaded) if loaded.dinode.is_dir() => {
                let formal = loaded.dinode.num.formal_ino.get();
                if formal == num.formal.get() {
                    return Ok(());
                }
                // Only tools look at this number: the volume can be used.
                let sb = self.geometry.superblock();
                let expected = Expected::Value(formal);
                let found = num.formal.get();
                self.found(Problem::new(Kind::SystemFile, sb, "no_formal_ino", found, expected).of(num.addr));
                return Ok(());
            }
            Ok(loaded) => {
                let mode = u64::from(loaded.dinode.mode.get());
                let rule = Expected::Rule("a directory");
                Problem::new(kind, num.addr, "di_mode", mode, rule).of(num.addr)
            }
            Err(Error::Corrupt(corrupt)) => Problem::from_corrupt(kind, &corrupt).of(num.addr),
            Err(e) => return Err(e.into()),
        };
        Err(self.fatal(problem))
    }

    fn system_flag(&mut self, reader: &mut Reader<'_>, addr: BlockAddr) {
        let Ok(loaded) = load(reader, &self.geometry, addr) else {
            return;
        };
        let flags = loaded.dinode.flags();
        if !flags.contains(DinodeFlags::SYSTEM) {
            let rule = Expected::Rule("GFS2_DIF_SYSTEM");
            let found = u64::from(flags.bits());
            self.found(Problem::new(Kind::SystemFlag, addr, "di_flags", found, rule).of(addr));
        }
    }

    fn system_file(&mut self, reader: &mut Reader<'_>, addr: BlockAddr, name: &str, kind: FileType) {
        let name = name.as_bytes();
        match load(reader, &self.geometry, addr) {
            Ok(loaded) if loaded.dinode.file_type() == Some(kind) => self.system_flag(reader, addr),
            Ok(loaded) => {
                let mode = u64::from(loaded.dinode.mode.get());
                let rule = match kind {
                    FileType::Dir => Expected::Rule("a directory"),
                    _ => Expected::Rule("a regular file"),
                };
                let problem = Problem::new(Kind::SystemFile, addr, "di_mode", mode, rule);
                self.found(problem.of(addr).named(name));
            }
            Err(Error::Corrupt(corrupt)) => {
                let problem = Problem::from_corrupt(Kind::SystemFile, &corrupt);
                self.found(problem.of(addr).named(name));
            }
            Err(e) => self.error(Kind::SystemFile, Some(addr), addr, &e),
        }
    }

    /// The files every node needs.
    fn node_files(&mut self, reader: &mut Reader<'_>, system: &System) {
        let Some(per_node) = system.file("per_node") else {
            return;
        };
        for jid in 0..system.journals() {
            if let Some(journal) = system.journal(jid) {
                self.system_flag(reader, journal);
            }
            for prefix in ["inum_range", "statfs_change", "quota_change"] {
                let name = format!("{prefix}{jid}");
                let Some(addr) = system.node_file(prefix, jid) else {
                    let expected = Expected::Rule("an entry in per_node");
                    let problem = Problem::new(Kind::PerNodeMissing, per_node, "entries", 0, expected);
                    self.found(problem.of(per_node).named(name.as_bytes()));
                    continue;
                };
                self.system_file(reader, addr, &name, FileType::Regular);
                match prefix {
                    "inum_range" => drop(self.record_file(reader, addr, &name, size_of::<InumRange>())),
                    "statfs_change" => self.local_statfs(reader, addr, &name),
                    "quota_change" => self.quota_change(reader, addr, &name),
                    _ => {}
                }
            }
        }
    }

    fn local_statfs(&mut self, reader: &mut Reader<'_>, addr: BlockAddr, name: &str) {
        let Some(record) = self.statfs_record(reader, addr, name) else {
            return;
        };
        let (total, free, dinodes) = record.signed();
        for (field, value) in [("sc_total", total), ("sc_free", free), ("sc_dinodes", dinodes)] {
            if value != 0 {
                let found = value.cast_unsigned();
                let problem = Problem::new(Kind::LocalStatfs, addr, field, found, Expected::Value(0));
                self.found(problem.of(addr).named(name.as_bytes()));
            }
        }
    }

    /// The record of a statfs file.
    fn statfs_record(
        &mut self,
        reader: &mut Reader<'_>,
        addr: BlockAddr,
        name: &str,
    ) -> Option<StatfsChange> {
        let loaded = self.record_file(reader, addr, name, size_of::<StatfsChange>())?;
        view::<StatfsChange>(&loaded.bytes, DINODE_SIZE, addr)
            .ok()
            .copied()
    }

    /// A file of one record: stuffed, and of just that size. Other tools read as much as the size says.
    fn record_file(
        &mut self,
        reader: &mut Reader<'_>,
        addr: BlockAddr,
        name: &str,
        record: usize,
    ) -> Option<Loaded> {
        let loaded = load(reader, &self.geometry, addr).ok()?;
        let (height, size) = (loaded.dinode.height.get(), loaded.dinode.size.get());
        let record = record as u64;
        let (field, found, expected) = if height != 0 {
            ("di_height", u64::from(height), Expected::Value(0))
        } else if size != record {
            ("di_size", size, Expected::Value(record))
        } else {
            return Some(loaded);
        };
        let problem = Problem::new(Kind::SystemFile, addr, field, found, expected);
        self.found(problem.of(addr).named(name.as_bytes()));
        None
    }

    /// A quota change file: whole blocks without a hole, each with its header.
    fn quota_change(&mut self, reader: &mut Reader<'_>, addr: BlockAddr, name: &str) {
        let Ok(loaded) = load(reader, &self.geometry, addr) else {
            return;
        };
        let size = loaded.dinode.size.get();
        let bsize = u64::from(self.geometry.bsize());
        if size == 0
            || size > QUOTA_CHANGE_MAX
            || !size.is_multiple_of(bsize)
            || loaded.dinode.height.get() == 0
        {
            let rule = Expected::Rule("whole blocks of at most 64 MiB, not stuffed");
            let problem = Problem::new(Kind::SystemFile, addr, "di_size", size, rule);
            return self.found(problem.of(addr).named(name.as_bytes()));
        }
        let count = size / bsize;
        let mut blocks = list_blocks(reader, &self.geometry, &loaded.dinode, &loaded.bytes, count);
        blocks.resize(count as usize, None);
        let holes = blocks.iter().filter(|block| block.is_none()).count() as u64;
        if holes != 0 {
            let problem = Problem::new(Kind::SystemFile, addr, "holes", holes, Expected::Value(0));
            self.found(problem.of(addr).named(name.as_bytes()));
        }
        let mut blocks: Vec<BlockAddr> = blocks.into_iter().flatten().collect();
        blocks.sort_unstable();
        reader.blocks(&blocks, |index, bytes| {
            let Some(block) = blocks.get(index).copied() else {
                return;
            };
            let checked = bytes
                .map_err(Clone::clone)
                .and_then(|bytes| MetaHeader::check(bytes, block, MetaType::Qc).map(drop));
            if let Err(e) = checked {
                self.error(Kind::QuotaChangeBlock, Some(addr), block, &e);
            }
        });
    }

    /// The data blocks of all groups as the master statfs file says.
    pub(crate) fn statfs_total(&self, reader: &mut Reader<'_>, system: &System) -> Option<u64> {
        let addr = system.file("statfs")?;
        let loaded = load(reader, &self.geometry, addr).ok()?;
        let record = view::<StatfsChange>(&loaded.bytes, DINODE_SIZE, addr).ok()?;
        let (total, _, _) = record.signed();
        u64::try_from(total)
            .ok()
            .filter(|total| *total < self.geometry.end())
    }

    /// The content of the resource index, if it can be read, and where it stands.
    pub(crate) fn rindex(
        &mut self,
        reader: &mut Reader<'_>,
        system: &System,
    ) -> Step<(BlockAddr, Option<Vec<u8>>)> {
        let Some(addr) = system.file("rindex") else {
            let master = self.superblock.master_dir.num().addr;
            let expected = Expected::Rule("an entry in the master directory");
            let problem = Problem::new(Kind::Rindex, master, "entries", 0, expected);
            self.found(problem.of(master).named(b"rindex"));
            return Ok((master, None));
        };
        let loaded = match load(reader, &self.geometry, addr) {
            Ok(loaded) => loaded,
            Err(Error::Corrupt(corrupt)) => {
                self.found(Problem::from_corrupt(Kind::Rindex, &corrupt).of(addr));
                return Ok((addr, None));
            }
            Err(e) => {
                self.error(Kind::Rindex, Some(addr), addr, &e);
                return Ok((addr, None));
            }
        };
        let size = loaded.dinode.size.get();
        // Not even groups of one mebibyte would take more.
        let device = self
            .geometry
            .end()
            .saturating_mul(u64::from(self.geometry.bsize()));
        let most = (device >> 20)
            .saturating_add(64)
            .saturating_mul(RINDEX_SIZE as u64);
        if size > most {
            let problem = Problem::new(Kind::Rindex, addr, "di_size", size, Expected::Range(0, most));
            self.found(problem.of(addr));
            return Ok((addr, None));
        }
        if loaded.dinode.height.get() == 0 {
            let content = loaded.bytes.get(DINODE_SIZE..).unwrap_or_default();
            let content = content.get(..size as usize).unwrap_or(content);
            return Ok((addr, Some(content.to_vec())));
        }
        let bsize = u64::from(self.geometry.bsize());
        let count = size.div_ceil(bsize);
        let blocks = list_blocks(reader, &self.geometry, &loaded.dinode, &loaded.bytes, count);
        let mut content = vec![0u8; size as usize];
        let mut order: Vec<(BlockAddr, usize)> = blocks
            .iter()
            .enumerate()
            .filter_map(|(n, block)| block.map(|block| (block, n)))
            .collect();
        order.sort_unstable();
        let addrs: Vec<BlockAddr> = order.iter().map(|(block, _)| *block).collect();
        reader.blocks(&addrs, |index, bytes| {
            let Some((block, n)) = order.get(index).copied() else {
                return;
            };
            match bytes {
                Ok(bytes) => {
                    let start = n.saturating_mul(bytes.len());
                    let target = content.get_mut(start..).unwrap_or_default();
                    target.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                }
                Err(e) => self.error(Kind::Rindex, Some(addr), block, e),
            }
        });
        Ok((addr, Some(content)))
    }

    /// The master statfs file against the resource groups.
    pub(crate) fn statfs(&mut self, reader: &mut Reader<'_>, system: &System, totals: Totals) -> Step {
        let Some(addr) = system.file("statfs") else {
            return Ok(());
        };
        let Some(record) = self.statfs_record(reader, addr, "statfs") else {
            return Ok(());
        };
        let fields = [
            ("sc_total", record.total.get(), totals.blocks),
            ("sc_free", record.free.get(), totals.free),
            ("sc_dinodes", record.dinodes.get(), totals.dinodes),
        ];
        for (field, stored, counted) in fields {
            if stored != counted {
                let problem = Problem::new(Kind::Statfs, addr, field, stored, Expected::Value(counted));
                self.found(problem.of(addr));
            }
        }
        Ok(())
    }
}
