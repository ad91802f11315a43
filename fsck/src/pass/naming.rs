//! The paths of the inodes that findings are about.
//!
//! A volume without findings pays nothing. With findings the directories are read once more at the end of a round,
//! and only the names on the ways to the inodes concerned are kept. Invariants: a way is as long as there are
//! directories at most, and cut off at [`PATH_MAX`]; what no entry leads to has no path.

use crate::check::Check;
use crate::pass::area::{Area, Record};
use crate::pass::system::System;
use crate::pass::tree::leaf_pointers;
use crate::problem::Problem;
use crate::reader::Reader;
use gfs2_format::BlockAddr;
use gfs2_format::ondisk::{
    DINODE_SIZE, Dinode, DinodeFlags, FileType, LEAF_SIZE, Leaf, MetaHeader, MetaType, view,
};
use std::collections::{BTreeMap, BTreeSet};

/// Directories read together.
const DIRECTORIES: usize = 256;
/// Inodes that get a path at a time.
const WANTED: usize = 1 << 16;
/// Longest path.
const PATH_MAX: usize = 4096;
/// What a path from the master directory begins with, as in the damage language.
const MASTER: &[u8] = b"master:";

/// The way to an inode: its directory, and its name there.
type Step = (BlockAddr, Box<[u8]>);

/// Ways to inodes, as far as they are known.
#[derive(Debug, Default)]
struct Ways {
    steps: BTreeMap<BlockAddr, Option<Step>>,
}

impl Ways {
    /// Takes what the records of a block tell of the inodes that are looked for.
    fn take(&mut self, dir: BlockAddr, block: BlockAddr, bytes: &[u8], first: usize) {
        for record in Area::new(bytes, block, first) {
            if let Record::Entry { dirent, name } = record
                && !matches!(name, b"." | b"..")
                && let Some(step @ None) = self.steps.get_mut(&BlockAddr::new(dirent.inum.addr.get()))
            {
                *step = Some((dir, name.into()));
            }
        }
    }

    /// Looks for `at` and every directory above it.
    fn want(&mut self, at: BlockAddr, parents: &BTreeMap<BlockAddr, BlockAddr>) {
        let mut at = Some(at);
        while let Some(inode) = at.filter(|inode| !self.steps.contains_key(inode)) {
            self.steps.insert(inode, None);
            at = parents.get(&inode).copied();
        }
    }
}

impl Check<'_> {
    /// Gives findings the paths of their inodes. `complete`: the directories have been looked at.
    pub(crate) fn name_paths(&self, problems: &mut [&mut Problem], system: &System, complete: bool) {
        let inodes = problems.iter().flat_map(|problem| [problem.inode, problem.other]);
        let inodes: BTreeSet<BlockAddr> = inodes.flatten().take(WANTED).collect();
        if inodes.is_empty() {
            return;
        }
        let ways = if complete {
            self.ways(&inodes)
        } else {
            Ways::default()
        };
        let fixed = self.fixed_paths(system);
        let path = |inode: Option<BlockAddr>| {
            let inode = inode?;
            fixed.get(&inode).cloned().or_else(|| self.path_of(inode, &ways))
        };
        for problem in problems {
            problem.path = path(problem.inode);
            problem.other_path = path(problem.other);
        }
    }

    /// The paths that are known before any directory is read.
    fn fixed_paths(&self, system: &System) -> BTreeMap<BlockAddr, Box<[u8]>> {
        let folders: [(&[u8], &BTreeMap<_, _>); 3] = [
            (b"/", &system.master),
            (b"/jindex/", &system.jindex),
            (b"/per_node/", &system.per_node),
        ];
        let mut paths = BTreeMap::new();
        for (folder, files) in folders {
            for (name, num) in files.iter().filter(|(name, _)| !matches!(&***name, b"." | b"..")) {
                paths.insert(num.addr, [MASTER, folder, name].concat().into());
            }
        }
        paths.insert(
            self.superblock.master_dir.num().addr,
            [MASTER, b"/"].concat().into(),
        );
        paths.insert(self.superblock.root_dir.num().addr, (*b"/").into());
        paths
    }

    fn ways(&self, inodes: &BTreeSet<BlockAddr>) -> Ways {
        let parents = &self.directories.parents;
        let mut ways = Ways::default();
        inodes.iter().for_each(|inode| ways.want(*inode, parents));
        let is_dir = |inode| {
            self.inodes
                .get(inode)
                .is_some_and(|i| i.kind == Some(FileType::Dir))
        };
        let mut reader = Reader::new(self.device, &self.geometry);
        if inodes.iter().any(|inode| !is_dir(*inode)) {
            let dirs = self
                .inodes
                .iter()
                .filter(|i| i.kind == Some(FileType::Dir) && !i.skipped && !i.unlinked);
            let mut dirs: Vec<BlockAddr> = dirs.map(|inode| inode.addr).collect();
            dirs.sort_unstable();
            self.look_for(&mut reader, &dirs, &mut ways);
        }
        let found: Vec<BlockAddr> = ways.steps.values().flatten().map(|(dir, _)| *dir).collect();
        found.into_iter().for_each(|dir| ways.want(dir, parents));
        let open = ways.steps.iter().filter(|(_, step)| step.is_none());
        let dirs: BTreeSet<BlockAddr> = open
            .filter_map(|(inode, _)| parents.get(inode).copied())
            .collect();
        let dirs: Vec<BlockAddr> = dirs.into_iter().collect();
        self.look_for(&mut reader, &dirs, &mut ways);
        ways
    }

    /// Looks into these directories (ascending).
    fn look_for(&self, reader: &mut Reader<'_>, dirs: &[BlockAddr], ways: &mut Ways) {
        for batch in dirs.chunks(DIRECTORIES) {
            let mut hashed: Vec<(BlockAddr, Box<[u8]>)> = Vec::new();
            reader.blocks(batch, |index, bytes| {
                let (Some(addr), Ok(bytes)) = (batch.get(index).copied(), bytes) else {
                    return;
                };
                let Ok(di) = view::<Dinode>(bytes, 0, addr) else {
                    return;
                };
                if di.flags().contains(DinodeFlags::EXHASH) {
                    hashed.push((addr, bytes.into()));
                } else if di.height.get() == 0 {
                    ways.take(addr, addr, bytes, DINODE_SIZE);
                }
            });
            for (dir, bytes) in hashed {
                if let Ok(di) = view::<Dinode>(&bytes, 0, dir) {
                    let leaves = leaf_pointers(reader, &self.geometry, di, &bytes);
                    self.look_into(reader, dir, leaves, ways);
                }
            }
        }
    }

    /// Looks into leaves and the chains behind them; each once.
    fn look_into(&self, reader: &mut Reader<'_>, dir: BlockAddr, leaves: Vec<u64>, ways: &mut Ways) {
        let mut seen = BTreeSet::new();
        let mut next = leaves;
        while !next.is_empty() {
            let fresh = std::mem::take(&mut next).into_iter();
            let inside = fresh.filter(|raw| *raw != 0 && *raw < self.geometry.end() && seen.insert(*raw));
            let mut blocks: Vec<BlockAddr> = inside.map(BlockAddr::new).collect();
            blocks.sort_unstable();
            reader.blocks(&blocks, |index, bytes| {
                let (Some(block), Ok(bytes)) = (blocks.get(index).copied(), bytes) else {
                    return;
                };
                if MetaHeader::check(bytes, block, MetaType::Lf).is_ok()
                    && let Ok(leaf) = view::<Leaf>(bytes, 0, block)
                {
                    next.push(leaf.next.get());
                    ways.take(dir, block, bytes, LEAF_SIZE);
                }
            });
        }
    }

    /// Puts a path together from its end; `None` when its way does not come from a root.
    fn path_of(&self, inode: BlockAddr, ways: &Ways) -> Option<Box<[u8]>> {
        let root = self.superblock.root_dir.num().addr;
        let master = self.superblock.master_dir.num().addr;
        let mut names: Vec<&[u8]> = Vec::new();
        let (mut at, mut len) = (inode, 0usize);
        while at != root && at != master {
            let (dir, name) = ways.steps.get(&at)?.as_ref()?;
            len = len.saturating_add(name.len()).saturating_add(1);
            if len > PATH_MAX {
                return None;
            }
            names.push(name);
            at = *dir;
        }
        let mut path = if at == master { MASTER.to_vec() } else { Vec::new() };
        for name in names.into_iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        Some(path.into())
    }
}
