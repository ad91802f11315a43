//! Which directories can be reached from the root and the master directory, and whether links are counted right.
//!
//! Invariant: each directory is visited once, whatever loops the entries form.

use crate::check::{Check, Step};
use crate::problem::{Kind, Problem};
use gfs2_format::ondisk::FileType;
use gfs2_format::{BlockAddr, Expected};
use std::collections::HashMap;

/// What is known of a directory's way up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// On the way that is being followed.
    Here,
    /// Followed to its end.
    Done,
}

impl Check<'_> {
    /// Directories that nothing leads to; ".." that leads elsewhere.
    pub(crate) fn connectivity(&mut self) -> Step {
        let roots = [
            self.superblock.root_dir.num().addr,
            self.superblock.master_dir.num().addr,
        ];
        let mut dirs: Vec<BlockAddr> = self
            .inodes
            .iter()
            .filter(|inode| inode.kind == Some(FileType::Dir) && !inode.unlinked)
            .map(|inode| inode.addr)
            .collect();
        dirs.sort_unstable();
        let mut ways: HashMap<BlockAddr, Way> = roots.iter().map(|root| (*root, Way::Done)).collect();
        let whole = self.is_tree_whole();
        for dir in &dirs {
            self.follow_up(*dir, whole, &mut ways);
        }
        for dir in &dirs {
            let parent = if roots.contains(dir) {
                Some(*dir)
            } else {
                self.directories.parents.get(dir).copied()
            };
            if parent.is_some() && self.inodes.get(*dir).is_some_and(|inode| inode.empty) {
                let expected = Expected::Value(self.geometry.max_stuffed());
                self.found(Problem::new(Kind::DinodeSize, *dir, "di_size", 0, expected).of(*dir));
            }
            let dotdot = self.directories.dotdots.get(dir).copied();
            let (Some(parent), Some(dotdot)) = (parent, dotdot) else {
                continue;
            };
            if parent != dotdot {
                let expected = Expected::Value(parent.get());
                let field = "de_inum.no_addr";
                let problem = Problem::new(Kind::DotdotTarget, *dir, field, dotdot.get(), expected);
                self.found(problem.of(*dir).named(b".."));
            }
        }
        Ok(())
    }

    /// Was every entry seen? Else what looks like an orphan may have one.
    fn is_tree_whole(&self) -> bool {
        let hidden = |kind: Option<FileType>| kind.is_none_or(|kind| kind == FileType::Dir);
        !self.directories.is_partial
            && !self
                .inodes
                .iter()
                .any(|inode| inode.skipped && hidden(inode.kind))
    }

    /// Follows the entries from `dir` up; reports where the way ends without a root.
    fn follow_up(&mut self, dir: BlockAddr, whole: bool, ways: &mut HashMap<BlockAddr, Way>) {
        let mut path = Vec::new();
        let mut at = dir;
        loop {
            match ways.get(&at) {
                Some(Way::Done) => break,
                Some(Way::Here) => {
                    let rule = Expected::Rule("a way up to the root");
                    let found = self.directories.parents.get(&at).map_or(0, |parent| parent.get());
                    let problem = Problem::new(Kind::Unreachable, at, "parent (in a loop)", found, rule);
                    self.found(problem.of(at));
                    break;
                }
                None => {}
            }
            ways.insert(at, Way::Here);
            path.push(at);
            match self.directories.parents.get(&at) {
                Some(parent) => at = *parent,
                None => {
                    let inode = self.inodes.get(at);
                    let kind = match inode {
                        Some(inode) if inode.bad && whole => Kind::BadOrphan,
                        Some(inode) if inode.empty => Kind::EmptyDirectory,
                        _ => Kind::Unreachable,
                    };
                    let problem = Problem::new(kind, at, "entries", 0, Expected::Value(1));
                    self.found(problem.of(at));
                    break;
                }
            }
        }
        for dir in path {
            ways.insert(dir, Way::Done);
        }
    }

    /// Link counts; inodes that nothing leads to.
    pub(crate) fn links(&mut self) -> Step {
        let mut problems = Vec::new();
        let whole = self.is_tree_whole();
        for inode in self.inodes.iter().filter(|inode| !inode.unlinked) {
            let (nlink, links) = (u64::from(inode.nlink), u64::from(inode.links));
            let is_dir = inode.kind == Some(FileType::Dir);
            // A directory counts itself, its entry (a root: "..") and the directories in it.
            let expected = if is_dir { links.saturating_add(2) } else { links };
            let at = inode.addr;
            if !is_dir && links == 0 {
                let kind = match inode.kind {
                    _ if inode.bad && whole => Kind::BadOrphan,
                    Some(FileType::Regular) if inode.empty => Kind::EmptyOrphan,
                    _ => Kind::Orphan,
                };
                problems.push(Problem::new(kind, at, "di_nlink", nlink, Expected::Value(0)).of(at));
            } else if nlink != expected {
                let expected = Expected::Value(expected);
                problems.push(Problem::new(Kind::LinkCount, at, "di_nlink", nlink, expected).of(at));
            }
        }
        problems.into_iter().for_each(|problem| self.found(problem));
        Ok(())
    }
}
