//! A seeded mix of operations on a node, each of which must do what the model says; with a diary of when what was
//! durable.
//!
//! One thread, no daemon, the clock only by its ticks: a seed is one sequence of device writes.

use super::tree::{Bytes, File, Id, TOP, Tree, errno};
use super::{Node, ROOT};
use fastrand::Rng;
use fuse_gfs2::error::Errno;
use fuse_gfs2::glock::{GlockName, State};
use fuse_gfs2::ops::types::{RenameMode, SetAttr, XattrMode};
use fuse_gfs2::ops::{Handle, OpenFlags};
use gfs2_format::BlockAddr;
use gfs2_format::ondisk::FileType;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Largest file.
const SIZE_MAX: usize = 200_000;

/// After an operation.
#[derive(Clone, Debug)]
pub struct Step {
    /// What was done.
    pub said: String,
    /// The tree then.
    pub tree: Tree,
    /// The device's log was so long then.
    pub position: usize,
}

/// Something became durable.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// The device's log was so long then.
    pub position: usize,
    /// Names, sizes and attributes are at least those after this step.
    pub step: usize,
    /// The contents of this file are at least those of now ([`Mark::now`]).
    pub file: Option<Id>,
    /// The step at which it was asked for.
    pub now: usize,
}

/// The sequence of operations.
pub struct Plan<'a> {
    pub node: &'a Node,
    pub rng: Rng,
    pub tree: Tree,
    /// Tells how long the device's log is.
    position: Box<dyn Fn() -> usize + 'a>,
    addrs: BTreeMap<Id, BlockAddr>,
    /// The step that last changed more than times of an inode, itself or its entries.
    changed: BTreeMap<Id, usize>,
    open: Vec<(Handle, Id)>,
    last: Id,
    pub steps: Vec<Step>,
    pub marks: Vec<Mark>,
}

impl<'a> Plan<'a> {
    pub fn new(node: &'a Node, seed: u64, position: impl Fn() -> usize + 'a) -> Self {
        let tree = Tree::default();
        let first = Step {
            said: "mount".to_owned(),
            tree: tree.clone(),
            position: position(),
        };
        Self {
            node,
            rng: Rng::with_seed(seed),
            tree,
            position: Box::new(position),
            addrs: BTreeMap::from([(TOP, node.root())]),
            changed: BTreeMap::new(),
            open: Vec::new(),
            last: TOP,
            steps: vec![first],
            marks: Vec::new(),
        }
    }

    /// The number of the step under way.
    fn now(&self) -> usize {
        self.steps.len()
    }

    /// Where a file of the model is.
    pub fn addr(&self, id: Id) -> BlockAddr {
        self.addrs[&id]
    }

    fn touch(&mut self, ids: &[Id]) {
        let now = self.now();
        self.changed.extend(ids.iter().map(|id| (*id, now)));
    }

    fn pick(&mut self, ids: &[Id]) -> Option<Id> {
        (!ids.is_empty()).then(|| ids[self.rng.usize(..ids.len())])
    }

    fn some_dir(&mut self) -> Id {
        let dirs = self.tree.named(FileType::Dir);
        self.pick(&dirs).unwrap_or(TOP)
    }

    fn some_file(&mut self) -> Option<Id> {
        let files = self.tree.named(FileType::Regular);
        self.pick(&files)
    }

    fn new_name(&mut self) -> String {
        match self.rng.u32(..10) {
            0 => format!("{}-{}", "long".repeat(40), self.rng.u32(..30)),
            _ => format!("n{}", self.rng.u32(..20)),
        }
    }

    fn old_name(&mut self, dir: Id) -> String {
        let names: Vec<String> = self.tree.get(dir).children.keys().cloned().collect();
        match names.len() {
            0 => self.new_name(),
            len => names[self.rng.usize(..len)].clone(),
        }
    }

    /// Does one operation and writes it into the diary.
    #[track_caller]
    pub fn step(&mut self) {
        let said = match self.rng.u32(..100) {
            0..=12 => self.make(FileType::Regular),
            13..=16 => self.make(FileType::Dir),
            17 => self.make(FileType::Symlink),
            18..=21 => self.link(),
            22..=28 => self.remove(false),
            29..=31 => self.remove(true),
            32..=40 => self.rename(),
            41..=58 => self.write(),
            59..=65 => self.truncate(),
            66..=67 => self.chmod(),
            68..=75 => self.xattr(),
            76..=79 => self.handles(),
            80..=88 => self.fsync(),
            89..=90 => self.fsync_dir(),
            91 => self.sync(),
            92..=95 => self.demote(),
            96..=98 => self.maintain(),
            _ => {
                self.node.sync_statfs();
                "statfs".to_owned()
            }
        };
        self.steps.push(Step {
            said,
            tree: self.tree.clone(),
            position: (self.position)(),
        });
    }

    fn make(&mut self, kind: FileType) -> String {
        let (dir, name) = (self.some_dir(), self.new_name());
        let (parent, bytes) = (self.addr(dir), name.as_bytes());
        let target = "t".repeat(self.rng.usize(1..250));
        let fs = &self.node.fs;
        let made = errno(match kind {
            FileType::Dir => fs.mkdir(&ROOT, parent, bytes, 0o755, 0),
            FileType::Symlink => fs.symlink(&ROOT, parent, bytes, target.as_bytes()),
            _ => fs
                .create(&ROOT, parent, bytes, 0o644, 0, true, OpenFlags::WRITE)
                .map(|(entry, handle, _)| {
                    fs.release(handle);
                    entry
                }),
        });
        let said = format!("make {kind:?} {name} in {dir}");
        if let Some(old) = self.tree.child(dir, &name) {
            let want = match (kind, self.tree.get(old).kind) {
                (FileType::Regular, FileType::Dir) => Errno::EISDIR,
                _ => Errno::EEXIST,
            };
            assert_eq!(made.map(|e| e.attr.size), Err(want), "{said}");
            return said;
        }
        let attr = made.unwrap_or_else(|e| panic!("{said}: {e:?}")).attr;
        self.last += 1;
        let id = self.last;
        let mut file = File::new(kind, dir);
        file.perm = attr.perm;
        if kind == FileType::Symlink {
            file.data = Bytes::new(target.into_bytes());
        }
        self.tree.files.insert(id, Arc::new(file));
        self.addrs.insert(id, attr.num.addr);
        let parent = self.tree.edit(dir);
        parent.children.insert(name, id);
        parent.nlink += u32::from(kind == FileType::Dir);
        self.touch(&[dir, id]);
        format!("{said}: {id}")
    }

    fn link(&mut self) -> String {
        let Some(id) = self.some_file() else {
            return "nothing to link".to_owned();
        };
        let (dir, name) = (self.some_dir(), self.new_name());
        let linked = self
            .node
            .fs
            .link(&ROOT, self.addr(id), self.addr(dir), name.as_bytes());
        let said = format!("link {id} as {name} in {dir}");
        if self.tree.child(dir, &name).is_some() {
            assert_eq!(errno(linked).map(|_| ()), Err(Errno::EEXIST), "{said}");
            return said;
        }
        linked.unwrap_or_else(|e| panic!("{said}: {e}"));
        self.node.fs.forget(self.addr(id), 1);
        self.tree.edit(dir).children.insert(name, id);
        self.tree.edit(id).nlink += 1;
        self.touch(&[dir, id]);
        said
    }

    /// The last name has gone: the inode goes too, unless it is open.
    fn gone(&mut self, id: Id) {
        if !self.open.iter().any(|(_, open)| *open == id) {
            self.node.fs.forget(self.addr(id), u64::MAX);
            self.tree.files.remove(&id);
        }
    }

    fn remove(&mut self, is_dir: bool) -> String {
        let dir = self.some_dir();
        let name = self.old_name(dir);
        let (fs, parent) = (&self.node.fs, self.addr(dir));
        let removed = errno(if is_dir {
            fs.rmdir(&ROOT, parent, name.as_bytes())
        } else {
            fs.unlink(&ROOT, parent, name.as_bytes())
        });
        let said = format!("remove {name} from {dir}");
        let want = match self.tree.child(dir, &name).map(|id| self.tree.get(id)) {
            None => Err(Errno::ENOENT),
            Some(file) => match (file.kind == FileType::Dir, is_dir) {
                (true, false) => Err(Errno::EISDIR),
                (false, true) => Err(Errno::ENOTDIR),
                (true, true) if !file.children.is_empty() => Err(Errno::ENOTEMPTY),
                _ => Ok(()),
            },
        };
        assert_eq!(removed, want, "{said}");
        if want.is_ok() {
            let id = self.tree.child(dir, &name).expect("what was removed");
            self.touch(&[dir, id]);
            if let Some(gone) = self.tree.unlink(dir, &name) {
                self.gone(gone);
            }
        }
        said
    }

    fn rename_answer(&self, from: (Id, &str), to: (Id, &str), mode: RenameMode) -> Result<bool, Errno> {
        let tree = &self.tree;
        let source = tree.child(from.0, from.1).ok_or(Errno::ENOENT)?;
        let target = tree.child(to.0, to.1);
        let is_dir = |id: Id| tree.get(id).kind == FileType::Dir;
        match (target, mode) {
            (None, RenameMode::Exchange) => return Err(Errno::ENOENT),
            (Some(_), RenameMode::NoReplace) => return Err(Errno::EEXIST),
            (Some(target), _) if target == source => return Ok(false),
            (Some(target), RenameMode::Replace) => match (is_dir(source), is_dir(target)) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                _ => {}
            },
            _ => {}
        }
        if is_dir(source) && tree.is_below(to.0, source) {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = target.filter(|target| is_dir(*target)) {
            let exchange = mode == RenameMode::Exchange;
            if tree.is_below(from.0, target) {
                return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
            }
            if !exchange && !tree.get(target).children.is_empty() {
                return Err(Errno::ENOTEMPTY);
            }
        }
        Ok(true)
    }

    fn rename(&mut self) -> String {
        let (from, to) = (self.some_dir(), self.some_dir());
        let (name, new) = (self.old_name(from), self.new_name());
        let modes = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
        let mode = modes[self.rng.usize(..3)];
        let want = self.rename_answer((from, &name), (to, &new), mode);
        let (old_dir, new_dir) = (self.addr(from), self.addr(to));
        let fs = &self.node.fs;
        let got = errno(fs.rename(&ROOT, old_dir, name.as_bytes(), new_dir, new.as_bytes(), mode));
        let said = format!("rename {name} in {from} to {new} in {to}, {mode:?}");
        assert_eq!(got, want.map(|_| ()), "{said}");
        if want == Ok(true) {
            self.renamed((from, &name), (to, &new), mode == RenameMode::Exchange);
        }
        said
    }

    fn renamed(&mut self, (from, name): (Id, &str), (to, new): (Id, &str), exchange: bool) {
        let source = self.tree.edit(from).children.remove(name).expect("the source");
        let target = self.tree.edit(to).children.insert(new.to_owned(), source);
        let is_dir = |tree: &Tree, id: Id| u32::from(tree.get(id).kind == FileType::Dir);
        let moved = is_dir(&self.tree, source);
        self.tree.edit(from).nlink -= moved;
        self.tree.edit(to).nlink += moved;
        self.tree.edit(source).parent = to;
        self.touch(&[from, to]);
        let Some(target) = target else { return };
        if exchange {
            let back = is_dir(&self.tree, target);
            self.tree.edit(from).children.insert(name.to_owned(), target);
            self.tree.edit(to).nlink -= back;
            self.tree.edit(from).nlink += back;
            self.tree.edit(target).parent = from;
        } else {
            self.touch(&[target]);
            if let Some(gone) = self.tree.lose_link(to, target) {
                self.gone(gone);
            }
        }
    }

    fn write(&mut self) -> String {
        let Some(id) = self.some_file() else {
            return "nothing to write to".to_owned();
        };
        let size = self.tree.get(id).data.len();
        let len = match self.rng.u32(..10) {
            0..=4 => self.rng.usize(1..600),
            5..=7 => self.rng.usize(1..10_000),
            _ => self.rng.usize(1..60_000),
        };
        let append = self.rng.u32(..4) == 0;
        let offset = match self.rng.u32(..4) {
            _ if append => size,
            0 => self.rng.usize(..SIZE_MAX - len),
            _ => self.rng.usize(..=size.min(SIZE_MAX - len)),
        };
        if offset + len > SIZE_MAX {
            return "a file at its limit".to_owned();
        }
        let now = self.now();
        let bytes: Vec<u8> = (0..len).map(|n| pattern(now, offset + n)).collect();
        let synced = self.rng.u32(..10) == 0;
        let mut flags = OpenFlags::WRITE;
        flags.set(OpenFlags::APPEND, append);
        flags.set(OpenFlags::SYNC, synced);
        let fs = &self.node.fs;
        let said = format!("write {len} at {offset} of {id} (size {size}, sync {synced})");
        next_tick();
        let handle = fs.open(self.addr(id), flags).expect("to open a file");
        let told = if append { 3 } else { offset as u64 };
        let written = fs.write(&ROOT, handle, told, &bytes, append, false);
        assert_eq!(errno(written), Ok(len), "{said}");
        fs.release(handle);
        let data = Arc::make_mut(&mut self.tree.edit(id).data);
        data.resize(data.len().max(offset + len), 0);
        data[offset..offset + len].copy_from_slice(&bytes);
        if offset + len > size {
            self.touch(&[id]);
        }
        if synced {
            self.synced(id);
        }
        said
    }

    fn truncate(&mut self) -> String {
        let Some(id) = self.some_file() else {
            return "nothing to truncate".to_owned();
        };
        let size = match self.rng.u32(..4) {
            0 => 0,
            1 => self.rng.usize(..5000),
            _ => self.rng.usize(..SIZE_MAX),
        };
        let set = SetAttr {
            size: Some(size as u64),
            ..SetAttr::default()
        };
        let said = format!("truncate {id} to {size}");
        let done = self.node.fs.setattr(&ROOT, self.addr(id), &set);
        assert_eq!(errno(done).map(|attr| attr.size), Ok(size as u64), "{said}");
        Arc::make_mut(&mut self.tree.edit(id).data).resize(size, 0);
        self.touch(&[id]);
        said
    }

    fn chmod(&mut self) -> String {
        let Some(id) = self.some_file() else {
            return "nothing to chmod".to_owned();
        };
        let perm = self.rng.u16(..0o1000);
        let set = SetAttr {
            perm: Some(perm),
            ..SetAttr::default()
        };
        self.node
            .fs
            .setattr(&ROOT, self.addr(id), &set)
            .expect("to set a mode");
        self.tree.edit(id).perm = perm;
        self.touch(&[id]);
        format!("chmod {id} to {perm:o}")
    }

    fn xattr(&mut self) -> String {
        let mut ids = self.tree.named(FileType::Regular);
        ids.extend(self.tree.named(FileType::Dir));
        let id = self.pick(&ids).unwrap_or(TOP);
        let name = format!("user.a{}", self.rng.u32(..5));
        let (fs, addr) = (&self.node.fs, self.addrs[&id]);
        if self.rng.u32(..3) == 0 {
            let removed = errno(fs.removexattr(&ROOT, addr, name.as_bytes()));
            let had = self.tree.edit(id).xattrs.remove(&name);
            assert_eq!(removed, had.map(|_| ()).ok_or(Errno::ENODATA), "{name} of {id}");
            if removed.is_ok() {
                self.touch(&[id]);
            }
            return format!("remove {name} of {id}");
        }
        let len = match self.rng.u32(..3) {
            0 => self.rng.usize(..40),
            1 => self.rng.usize(..3000),
            _ => self.rng.usize(..12_000),
        };
        let value: Vec<u8> = (0..len).map(|n| pattern(self.steps.len(), n)).collect();
        fs.setxattr(&ROOT, addr, name.as_bytes(), &value, XattrMode::Any)
            .expect("to set an attribute");
        self.tree.edit(id).xattrs.insert(name.clone(), Bytes::new(value));
        self.touch(&[id]);
        format!("set {name} of {id} to {len} bytes")
    }

    /// Opens a file to be kept open, perhaps beyond its last name; or closes one.
    fn handles(&mut self) -> String {
        if self.open.len() < 4 && self.rng.bool() {
            let Some(id) = self.some_file() else {
                return "nothing to open".to_owned();
            };
            let handle = self.node.fs.open(self.addr(id), OpenFlags::READ);
            self.open.push((handle.expect("to open a file"), id));
            return format!("open {id}");
        }
        if self.open.is_empty() {
            return "nothing to close".to_owned();
        }
        let (handle, id) = self.open.swap_remove(self.rng.usize(..self.open.len()));
        self.node.fs.release(handle);
        if self.tree.get(id).nlink == 0 {
            self.gone(id);
        }
        format!("close {id}")
    }

    /// Closes all that is kept open.
    pub fn close_all(&mut self) {
        while let Some((handle, id)) = self.open.pop() {
            self.node.fs.release(handle);
            if self.tree.get(id).nlink == 0 {
                self.gone(id);
            }
        }
    }

    /// A file has just been made durable.
    fn synced(&mut self, id: Id) {
        self.marks.push(Mark {
            position: (self.position)(),
            step: self.changed.get(&id).copied().unwrap_or(0),
            file: Some(id),
            now: self.now(),
        });
    }

    fn fsync(&mut self) -> String {
        let Some(id) = self.some_file() else {
            return "nothing to sync".to_owned();
        };
        let datasync = self.rng.bool();
        let fs = &self.node.fs;
        let handle = fs.open(self.addr(id), OpenFlags::READ).expect("to open a file");
        fs.fsync(handle, datasync).expect("to sync");
        fs.release(handle);
        self.synced(id);
        format!("fsync {id}, datasync {datasync}")
    }

    fn fsync_dir(&mut self) -> String {
        let dir = self.some_dir();
        let fs = &self.node.fs;
        let handle = fs.opendir(self.addr(dir)).expect("to open a directory");
        fs.fsyncdir(handle, self.rng.bool()).expect("to sync");
        fs.release(handle);
        self.marks.push(Mark {
            position: (self.position)(),
            step: self.changed.get(&dir).copied().unwrap_or(0),
            file: None,
            now: self.now(),
        });
        format!("fsync of directory {dir}")
    }

    fn sync(&mut self) -> String {
        self.node.fs.sync().expect("to sync");
        let (position, now) = ((self.position)(), self.now());
        for id in self.tree.named(FileType::Regular) {
            self.marks.push(Mark {
                position,
                step: now - 1,
                file: Some(id),
                now,
            });
        }
        "sync".to_owned()
    }

    fn demote(&mut self) -> String {
        let state = if self.rng.bool() { State::Un } else { State::Sh };
        let ids: Vec<Id> = self.tree.files.keys().copied().collect();
        let id = self.pick(&ids).unwrap_or(TOP);
        self.node.demote(GlockName::inode(self.addr(id).get()), state);
        let group = self.node.groups[self.rng.usize(..self.node.groups.len())];
        self.node.demote(GlockName::rgrp(group.get()), state);
        format!("demote {id} and group {group} to {state:?}")
    }

    fn maintain(&mut self) -> String {
        let all = self.rng.bool();
        self.node
            .journal
            .maintain(all)
            .expect("a round of the log daemon");
        format!("log daemon, interval over: {all}")
    }
}

/// Waits until inode times have moved on: a write then changes its inode's times, on a fast machine and on a slow one.
fn next_tick() {
    let tick = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.expect("a clock after 1970").as_millis() / 4
    };
    let then = tick();
    while tick() == then {
        std::thread::yield_now();
    }
}

/// The byte that a step writes at an offset.
fn pattern(step: usize, at: usize) -> u8 {
    let mixed = (step * 0x9E37 + 1).wrapping_mul(at / 5 + 3);
    (mixed ^ (mixed >> 9)) as u8 | 1
}
