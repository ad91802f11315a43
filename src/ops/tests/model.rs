//! Goal: whatever sequence of verbs is run, with locks taken away at random moments and remounts in between, the
//! filesystem says what a plain tree in memory says. Method: seeded random verbs on both, compared one by one.
//!
//! With two nodes, each verb is run on a node chosen at random: what one has written the other must see.

use super::rig::{ROOT_USER, Rig, check, mount_with, volume_with};
use crate::error::{Errno, FsResult};
use crate::glock::{GlockName, State};
use crate::ops::types::{RenameMode, SeekWhat, SetAttr, XattrMode};
use crate::ops::{FileFlags, Fs, FsOptions, Handle, OpenFlags, Relief};
use dlm_client::LocalDlm;
use fastrand::Rng;
use gfs2_format::BlockAddr;
use gfs2_format::device::{BlockDevice, MemDevice};
use gfs2_format::ondisk::FileType;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

type Id = usize;

const ROOT: Id = 0;
const SIZE_MAX: usize = 1_500_000;

#[derive(Debug)]
struct Node {
    kind: FileType,
    nlink: u32,
    data: Vec<u8>,
    xattrs: BTreeMap<String, Vec<u8>>,
    children: BTreeMap<String, Id>,
    parent: Id,
    addr: BlockAddr,
    /// Which rig knows it.
    known: Vec<bool>,
    perm: u16,
}

struct World {
    device: Arc<MemDevice>,
    dlm: LocalDlm,
    rigs: Vec<Rig>,
    nodes: HashMap<Id, Node>,
    last: Id,
    open: Vec<(usize, Handle, Id)>,
    rng: Rng,
    /// Memory is short all the time.
    tight: bool,
}

fn errno<T>(result: FsResult<T>) -> Result<T, Errno> {
    result.map_err(|error| error.errno())
}

impl World {
    fn new(seed: u64, bsize: u32, rigs: u32, jdata: bool) -> Self {
        let device = volume_with(96, bsize, rigs, jdata);
        let dlm = LocalDlm::new();
        let mut world = Self {
            device,
            dlm,
            rigs: Vec::new(),
            nodes: HashMap::new(),
            last: ROOT,
            open: Vec::new(),
            rng: Rng::with_seed(seed),
            tight: false,
        };
        world.mount(rigs);
        let root = Node {
            kind: FileType::Dir,
            nlink: 2,
            data: Vec::new(),
            xattrs: BTreeMap::new(),
            children: BTreeMap::new(),
            parent: ROOT,
            addr: world.rigs[0].root(),
            known: vec![true; rigs as usize],
            perm: 0o755,
        };
        world.nodes.insert(ROOT, root);
        world
    }

    fn mount(&mut self, rigs: u32) {
        let device = Arc::clone(&self.device) as Arc<dyn BlockDevice>;
        for jid in 0..rigs {
            self.rigs
                .push(mount_with(&device, &self.dlm, jid, FsOptions::default()));
        }
    }

    fn remount(&mut self) {
        while let Some((rig, handle, id)) = self.open.pop() {
            self.rigs[rig].fs.release(handle);
            // The last of its handles.
            self.reap(id);
        }
        let rigs = self.rigs.len();
        for rig in self.rigs.drain(..) {
            rig.unmount();
        }
        check(&self.device);
        for node in self.nodes.values_mut() {
            node.known = vec![false; rigs];
        }
        self.nodes.get_mut(&ROOT).unwrap().known = vec![true; rigs];
        self.mount(rigs as u32);
        self.compare_all();
    }

    fn dirs(&self) -> Vec<Id> {
        let mut ids: Vec<Id> = self
            .nodes
            .iter()
            .filter(|(_, n)| n.kind == FileType::Dir && n.nlink > 0)
            .map(|(id, _)| *id)
            .collect();
        ids.sort_unstable();
        ids
    }

    fn linked(&self, kind: FileType) -> Vec<Id> {
        let mut ids: Vec<Id> = self
            .nodes
            .iter()
            .filter(|(_, n)| n.kind == kind && n.nlink > 0)
            .map(|(id, _)| *id)
            .collect();
        ids.sort_unstable();
        ids
    }

    fn some_dir(&mut self) -> Id {
        let dirs = self.dirs();
        dirs[self.rng.usize(..dirs.len())]
    }

    fn some_file(&mut self) -> Option<Id> {
        let files = self.linked(FileType::Regular);
        (!files.is_empty()).then(|| files[self.rng.usize(..files.len())])
    }

    /// Names come from a small set, so that they meet.
    fn name(&mut self) -> String {
        match self.rng.u32(..20) {
            0 => "x".repeat(255),
            1..=4 => format!("long-name-of-an-entry-{:03}", self.rng.u32(..200)),
            _ => format!("n{}", self.rng.u32(..12)),
        }
    }

    fn some_rig(&mut self) -> usize {
        self.rng.usize(..self.rigs.len())
    }

    /// Makes an inode known to a rig, by walking to it.
    fn addr(&mut self, rig: usize, id: Id) -> BlockAddr {
        if self.nodes[&id].known[rig] {
            return self.nodes[&id].addr;
        }
        let (dir, name) = self
            .nodes
            .iter()
            .find_map(|(dir, node)| {
                node.children
                    .iter()
                    .find(|(_, child)| **child == id)
                    .map(|(name, _)| (*dir, name.clone()))
            })
            .expect("a linked node");
        let parent = self.addr(rig, dir);
        let entry = self.rigs[rig]
            .fs
            .lookup(&ROOT_USER, parent, name.as_bytes())
            .unwrap();
        let node = self.nodes.get_mut(&id).unwrap();
        assert_eq!(entry.attr.num.addr, node.addr, "{name} is another inode");
        node.known[rig] = true;
        node.addr
    }

    /// What a lookup of an existing name in a model directory gives.
    fn child(&self, dir: Id, name: &str) -> Option<Id> {
        self.nodes[&dir].children.get(name).copied()
    }

    /// A node has lost a link: forget it everywhere if that was the last, in any order.
    fn reap(&mut self, id: Id) {
        let node = &self.nodes[&id];
        if node.nlink > 0 || self.open.iter().any(|(_, _, open)| *open == id) {
            return;
        }
        let (addr, known) = (node.addr, node.known.clone());
        for rig in (0..self.rigs.len()).rev() {
            if known[rig] {
                self.rigs[rig].fs.forget(addr, u64::MAX);
            }
        }
        self.nodes.remove(&id);
    }

    fn unlinked(&mut self, id: Id, last: bool) {
        let node = self.nodes.get_mut(&id).unwrap();
        node.nlink = if last { 0 } else { node.nlink - 1 };
        self.reap(id);
    }

    fn make(&mut self, kind: FileType) {
        let (rig, dir, name) = (self.some_rig(), self.some_dir(), self.name());
        let parent = self.addr(rig, dir);
        let target = "t".repeat(self.rng.usize(1..270));
        let fs = Arc::clone(&self.rigs[rig].fs);
        let name_bytes = name.as_bytes();
        let got = errno(match kind {
            FileType::Dir => fs.mkdir(&ROOT_USER, parent, name_bytes, 0o755, 0),
            FileType::Symlink => fs.symlink(&ROOT_USER, parent, name_bytes, target.as_bytes()),
            FileType::Fifo => fs.mknod(&ROOT_USER, parent, name_bytes, libc::S_IFIFO | 0o644, 0, (0, 0)),
            _ => fs
                .create(
                    &ROOT_USER,
                    parent,
                    name_bytes,
                    0o666,
                    0o022,
                    true,
                    OpenFlags::WRITE,
                )
                .map(|(entry, handle, _)| {
                    fs.release(handle);
                    entry
                }),
        });
        if self.child(dir, &name).is_some() {
            let want = if kind == FileType::Regular
                && self.nodes[&self.child(dir, &name).unwrap()].kind == FileType::Dir
            {
                Errno::EISDIR
            } else {
                Errno::EEXIST
            };
            assert_eq!(got.unwrap_err(), want);
            return;
        }
        let attr = got.unwrap().attr;
        assert_eq!(attr.kind, kind);
        self.last += 1;
        let id = self.last;
        let mut known = vec![false; self.rigs.len()];
        known[rig] = true;
        let node = Node {
            kind,
            nlink: if kind == FileType::Dir { 2 } else { 1 },
            data: if kind == FileType::Symlink {
                target.into_bytes()
            } else {
                Vec::new()
            },
            xattrs: BTreeMap::new(),
            children: BTreeMap::new(),
            parent: dir,
            addr: attr.num.addr,
            known,
            perm: attr.perm,
        };
        self.nodes.insert(id, node);
        let parent = self.nodes.get_mut(&dir).unwrap();
        parent.children.insert(name, id);
        parent.nlink += u32::from(kind == FileType::Dir);
    }

    fn link(&mut self) {
        let Some(id) = self.some_file() else { return };
        let (rig, dir, name) = (self.some_rig(), self.some_dir(), self.name());
        let (file, parent) = (self.addr(rig, id), self.addr(rig, dir));
        let got = errno(self.rigs[rig].fs.link(&ROOT_USER, file, parent, name.as_bytes()));
        if self.child(dir, &name).is_some() {
            assert_eq!(got.unwrap_err(), Errno::EEXIST);
            return;
        }
        got.unwrap();
        self.nodes.get_mut(&dir).unwrap().children.insert(name, id);
        self.nodes.get_mut(&id).unwrap().nlink += 1;
    }

    fn remove(&mut self, is_dir: bool) {
        let (rig, dir) = (self.some_rig(), self.some_dir());
        let names: Vec<String> = self.nodes[&dir].children.keys().cloned().collect();
        let name = if names.is_empty() {
            self.name()
        } else {
            names[self.rng.usize(..names.len())].clone()
        };
        let parent = self.addr(rig, dir);
        let fs = &self.rigs[rig].fs;
        let got = errno(if is_dir {
            fs.rmdir(&ROOT_USER, parent, name.as_bytes())
        } else {
            fs.unlink(&ROOT_USER, parent, name.as_bytes())
        });
        let want = match self.child(dir, &name) {
            None => Err(Errno::ENOENT),
            Some(id) => match (self.nodes[&id].kind == FileType::Dir, is_dir) {
                (true, false) => Err(Errno::EISDIR),
                (false, true) => Err(Errno::ENOTDIR),
                (true, true) if !self.nodes[&id].children.is_empty() => Err(Errno::ENOTEMPTY),
                _ => Ok(id),
            },
        };
        assert_eq!(got, want.map(|_| ()), "removing {name}");
        if let Ok(id) = want {
            let parent = self.nodes.get_mut(&dir).unwrap();
            parent.children.remove(&name);
            parent.nlink -= u32::from(is_dir);
            let last = is_dir || self.nodes[&id].nlink == 1;
            self.unlinked(id, last);
        }
    }

    fn is_above(&self, which: Id, mut dir: Id) -> bool {
        loop {
            if dir == which {
                return true;
            }
            if dir == ROOT {
                return false;
            }
            dir = self.nodes[&dir].parent;
        }
    }

    fn rename_answer(&self, from: (Id, &str), to: (Id, &str), mode: RenameMode) -> Result<bool, Errno> {
        let source = self.child(from.0, from.1).ok_or(Errno::ENOENT)?;
        let target = self.child(to.0, to.1);
        match (target, mode) {
            (None, RenameMode::Exchange) => return Err(Errno::ENOENT),
            (Some(_), RenameMode::NoReplace) => return Err(Errno::EEXIST),
            (Some(target), _) if target == source => return Ok(false),
            _ => {}
        }
        let is_dir = |id: Id| self.nodes[&id].kind == FileType::Dir;
        if let (Some(target), RenameMode::Replace) = (target, mode) {
            match (is_dir(source), is_dir(target)) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                _ => {}
            }
        }
        if is_dir(source) && self.is_above(source, to.0) {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = target.filter(|target| is_dir(*target)) {
            if self.is_above(target, from.0) {
                return Err(if mode == RenameMode::Exchange {
                    Errno::EINVAL
                } else {
                    Errno::ENOTEMPTY
                });
            }
            if mode == RenameMode::Replace && !self.nodes[&target].children.is_empty() {
                return Err(Errno::ENOTEMPTY);
            }
        }
        Ok(true)
    }

    fn rename(&mut self) {
        let rig = self.some_rig();
        let (from, to) = (self.some_dir(), self.some_dir());
        let names: Vec<String> = self.nodes[&from].children.keys().cloned().collect();
        let name = if names.is_empty() {
            self.name()
        } else {
            names[self.rng.usize(..names.len())].clone()
        };
        let new = self.name();
        let mode = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange][self.rng.usize(..3)];
        let (old_dir, new_dir) = (self.addr(rig, from), self.addr(rig, to));
        let want = self.rename_answer((from, &name), (to, &new), mode);
        let got = errno(self.rigs[rig].fs.rename(
            &ROOT_USER,
            old_dir,
            name.as_bytes(),
            new_dir,
            new.as_bytes(),
            mode,
        ));
        assert_eq!(got, want.map(|_| ()), "rename {name} to {new}, {mode:?}");
        if want != Ok(true) {
            return;
        }
        let source = self.nodes.get_mut(&from).unwrap().children.remove(&name).unwrap();
        let target = self.nodes.get_mut(&to).unwrap().children.insert(new, source);
        let is_dir = |world: &Self, id: Id| u32::from(world.nodes[&id].kind == FileType::Dir);
        let moved = is_dir(self, source);
        self.nodes.get_mut(&from).unwrap().nlink -= moved;
        self.nodes.get_mut(&to).unwrap().nlink += moved;
        self.nodes.get_mut(&source).unwrap().parent = to;
        if let Some(target) = target {
            let was_dir = is_dir(self, target);
            self.nodes.get_mut(&to).unwrap().nlink -= was_dir;
            if mode == RenameMode::Exchange {
                self.nodes.get_mut(&from).unwrap().children.insert(name, target);
                self.nodes.get_mut(&from).unwrap().nlink += was_dir;
                self.nodes.get_mut(&target).unwrap().parent = from;
            } else {
                let last = was_dir == 1 || self.nodes[&target].nlink == 1;
                self.unlinked(target, last);
            }
        }
    }

    fn write(&mut self) {
        let Some(id) = self.some_file() else { return };
        let rig = self.some_rig();
        let addr = self.addr(rig, id);
        let size = self.nodes[&id].data.len();
        let len = match self.rng.u32(..10) {
            0..=4 => self.rng.usize(1..300),
            5..=7 => self.rng.usize(1..20_000),
            _ => self.rng.usize(1..300_000),
        };
        let append = self.rng.u32(..6) == 0;
        let offset = match self.rng.u32(..4) {
            _ if append => size,
            0 => size.min(SIZE_MAX - len),
            1 => self.rng.usize(..=SIZE_MAX - len),
            _ => self.rng.usize(..=size.min(SIZE_MAX - len)),
        };
        if append && size + len > SIZE_MAX {
            return;
        }
        let fill = self.rng.u8(1..);
        let bytes: Vec<u8> = (0..len).map(|n| fill ^ (n / 7) as u8).collect();
        let fs = &self.rigs[rig].fs;
        let handle = fs.open(addr, OpenFlags::WRITE).unwrap();
        let told = if append { 3 } else { offset as u64 };
        let n = fs.write(&ROOT_USER, handle, told, &bytes, append, false).unwrap();
        assert_eq!(n, len);
        if self.rng.u32(..10) == 0 {
            fs.fsync(handle, self.rng.bool()).unwrap();
        }
        fs.release(handle);
        let data = &mut self.nodes.get_mut(&id).unwrap().data;
        if data.len() < offset + len {
            data.resize(offset + len, 0);
        }
        data[offset..offset + len].copy_from_slice(&bytes);
    }

    fn truncate(&mut self) {
        let Some(id) = self.some_file() else { return };
        let rig = self.some_rig();
        let addr = self.addr(rig, id);
        let size = match self.rng.u32(..4) {
            0 => 0,
            1 => self.rng.usize(..5000),
            _ => self.rng.usize(..SIZE_MAX),
        };
        let set = SetAttr {
            size: Some(size as u64),
            ..SetAttr::default()
        };
        let attr = self.rigs[rig].fs.setattr(&ROOT_USER, addr, &set).unwrap();
        assert_eq!(attr.size, size as u64);
        self.nodes.get_mut(&id).unwrap().data.resize(size, 0);
    }

    fn read(&mut self) {
        let Some(id) = self.some_file() else { return };
        let rig = self.some_rig();
        let addr = self.addr(rig, id);
        let data = &self.nodes[&id].data;
        let offset = self.rng.usize(..=data.len());
        let len = self.rng.usize(1..400_000);
        let got = self.rigs[rig].read(addr, offset as u64, len);
        let want = &data[offset..(offset + len).min(data.len())];
        assert!(
            got == want,
            "read of {len} at {offset} of {}: {}",
            data.len(),
            first_difference(&got, want)
        );
    }

    fn chmod(&mut self) {
        let Some(id) = self.some_file() else { return };
        let rig = self.some_rig();
        let addr = self.addr(rig, id);
        let perm = self.rng.u16(..0o1000);
        let set = SetAttr {
            perm: Some(perm),
            ..SetAttr::default()
        };
        assert_eq!(
            self.rigs[rig].fs.setattr(&ROOT_USER, addr, &set).unwrap().perm,
            perm
        );
        self.nodes.get_mut(&id).unwrap().perm = perm;
    }

    /// Has a file's data go through the log from now on, or past it.
    fn change_way(&mut self) {
        let Some(id) = self.some_file() else { return };
        let rig = self.some_rig();
        let addr = self.addr(rig, id);
        let fs = &self.rigs[rig].fs;
        let flags = fs.flags(addr).unwrap() ^ FileFlags::JOURNAL_DATA;
        fs.set_flags(&ROOT_USER, addr, flags, FileFlags::all()).unwrap();
        assert_eq!(fs.flags(addr).unwrap(), flags);
    }

    fn xattr(&mut self) {
        let ids: Vec<Id> = self
            .dirs()
            .into_iter()
            .chain(self.linked(FileType::Regular))
            .collect();
        let id = ids[self.rng.usize(..ids.len())];
        let rig = self.some_rig();
        let addr = self.addr(rig, id);
        let name = format!("user.a{}", self.rng.u32(..6));
        let fs = &self.rigs[rig].fs;
        let node = self.nodes.get_mut(&id).unwrap();
        match self.rng.u32(..4) {
            0 => {
                let got = errno(fs.removexattr(&ROOT_USER, addr, name.as_bytes()));
                assert_eq!(got, node.xattrs.remove(&name).map(|_| ()).ok_or(Errno::ENODATA));
            }
            1 => {
                let got = errno(fs.getxattr(&ROOT_USER, addr, name.as_bytes()));
                assert_eq!(got, node.xattrs.get(&name).cloned().ok_or(Errno::ENODATA));
            }
            _ => {
                let len = [
                    self.rng.usize(..40),
                    self.rng.usize(..3000),
                    self.rng.usize(..12_000),
                ][self.rng.usize(..3)];
                let value = vec![self.rng.u8(..); len];
                let mode = [XattrMode::Any, XattrMode::Create, XattrMode::Replace][self.rng.usize(..3)];
                let got = errno(fs.setxattr(&ROOT_USER, addr, name.as_bytes(), &value, mode));
                let want = match (mode, node.xattrs.contains_key(&name)) {
                    (XattrMode::Create, true) => Err(Errno::EEXIST),
                    (XattrMode::Replace, false) => Err(Errno::ENODATA),
                    _ => Ok(()),
                };
                assert_eq!(got, want);
                if want.is_ok() {
                    node.xattrs.insert(name, value);
                }
            }
        }
    }

    /// Opens a file to be kept open, or looks through an open one and closes it.
    fn handles(&mut self) {
        if self.open.len() < 5 && self.rng.bool() {
            let Some(id) = self.some_file() else { return };
            let rig = self.some_rig();
            let addr = self.addr(rig, id);
            let handle = self.rigs[rig].fs.open(addr, OpenFlags::READ).unwrap();
            self.open.push((rig, handle, id));
        } else if !self.open.is_empty() {
            let (rig, handle, id) = self.open.swap_remove(self.rng.usize(..self.open.len()));
            let data = &self.nodes[&id].data;
            let mut buf = vec![0; data.len() + 10];
            let n = self.rigs[rig].fs.read(handle, 0, &mut buf).unwrap();
            assert!(
                buf[..n] == data[..],
                "through a handle: {}",
                first_difference(&buf[..n], data)
            );
            if !data.is_empty() {
                let hole = self.rigs[rig].fs.lseek(handle, 0, SeekWhat::Hole).unwrap();
                assert!(hole <= data.len() as u64);
            }
            self.rigs[rig].fs.release(handle);
            self.reap(id);
        }
    }

    fn demote(&mut self) {
        let rig = self.some_rig();
        for _ in 0..self.rng.u32(1..6) {
            let state = if self.rng.bool() { State::Un } else { State::Sh };
            let ids: Vec<BlockAddr> = self.nodes.values().map(|node| node.addr).collect();
            let addr = ids[self.rng.usize(..ids.len())];
            self.rigs[rig].glocks.demote(GlockName::inode(addr.get()), state);
            for group in self.rigs[rig].fs.engine.rgrps.addresses() {
                if self.rng.u32(..3) == 0 {
                    self.rigs[rig].glocks.demote(GlockName::rgrp(group.get()), state);
                }
            }
        }
    }

    fn compare(&mut self, id: Id) {
        let rig = self.some_rig();
        let addr = self.addr(rig, id);
        let (this, node) = (&self.rigs[rig], &self.nodes[&id]);
        let attr = this.fs.getattr(addr).unwrap();
        assert_eq!(
            (attr.kind, attr.nlink, attr.perm),
            (node.kind, node.nlink, node.perm),
            "node {id}"
        );
        match node.kind {
            FileType::Dir => {
                let want: BTreeMap<Vec<u8>, BlockAddr> = node
                    .children
                    .iter()
                    .map(|(name, id)| (name.clone().into_bytes(), self.nodes[id].addr))
                    .collect();
                assert_eq!(this.list(addr), want);
                let up = this.fs.lookup(&ROOT_USER, addr, b"..").unwrap().attr.num.addr;
                assert_eq!(up, self.nodes[&node.parent].addr);
            }
            FileType::Regular => {
                let got = this.read(addr, 0, node.data.len() + 1);
                assert!(
                    got == node.data,
                    "node {id}: {}",
                    first_difference(&got, &node.data)
                );
            }
            FileType::Symlink => assert_eq!(this.fs.readlink(addr).unwrap(), node.data),
            _ => {}
        }
        let names = this.fs.listxattr(&ROOT_USER, addr).unwrap();
        let mut names: Vec<String> = names
            .split(|b| *b == 0)
            .filter(|n| !n.is_empty())
            .map(|n| String::from_utf8_lossy(n).into_owned())
            .collect();
        names.sort_unstable();
        assert_eq!(names, node.xattrs.keys().cloned().collect::<Vec<_>>());
        for (name, value) in &node.xattrs {
            assert_eq!(
                &this.fs.getxattr(&ROOT_USER, addr, name.as_bytes()).unwrap(),
                value
            );
        }
    }

    fn compare_all(&mut self) {
        let mut ids: Vec<Id> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.nlink > 0)
            .map(|(id, _)| *id)
            .collect();
        ids.sort_unstable();
        ids.into_iter().for_each(|id| self.compare(id));
    }

    fn step(&mut self) {
        match self.rng.u32(..100) {
            0..=11 => self.make(FileType::Regular),
            12..=15 => self.make(FileType::Dir),
            16..=17 => self.make(FileType::Symlink),
            18 => self.make(FileType::Fifo),
            19..=23 => self.link(),
            24..=33 => self.remove(false),
            34..=36 => self.remove(true),
            37..=46 => self.rename(),
            47..=62 => self.write(),
            63..=66 => self.truncate(),
            67..=74 => self.read(),
            75 => self.chmod(),
            76 => self.change_way(),
            77..=83 => self.xattr(),
            84..=88 => self.handles(),
            89..=93 => self.demote(),
            94..=96 => {
                let dir = self.some_dir();
                self.compare(dir);
            }
            97 => {
                let rig = self.some_rig();
                self.rigs[rig].fs.sync().unwrap();
            }
            98 => {
                let rig = self.some_rig();
                self.rigs[rig].fs.sync_statfs().unwrap();
            }
            _ => {
                let rig = self.some_rig();
                let ids: Vec<Id> = self.linked(FileType::Regular);
                if let Some(id) = ids.first() {
                    self.addr(rig, *id);
                }
            }
        }
    }

    fn run(mut self, steps: u32, remounts: u32) {
        for _ in 0..remounts {
            let stop = AtomicBool::new(false);
            let nodes: Vec<_> = self.rigs.iter().map(|rig| Arc::clone(&rig.fs)).collect();
            thread::scope(|scope| {
                if self.tight {
                    let (stop, nodes) = (&stop, &nodes);
                    scope.spawn(move || squeeze(nodes, stop));
                }
                let _stop = StopAtEnd(&stop);
                for _ in 0..steps {
                    self.step();
                }
            });
            drop(nodes);
            self.compare_all();
            self.remount();
        }
        for rig in self.rigs.drain(..) {
            rig.unmount();
        }
        check(&self.device);
    }
}

/// Ends what waits for it also when the test fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Cuts the caches of the nodes to nothing, again and again.
fn squeeze(nodes: &[Arc<Fs>], stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for fs in nodes {
            fs.relieve(&mut Relief::new(0), &|_| true);
        }
        thread::yield_now();
    }
}

fn first_difference(got: &[u8], want: &[u8]) -> String {
    match got.iter().zip(want).position(|(a, b)| a != b) {
        Some(at) => format!(
            "byte {at} is {}, not {} (lengths {} and {})",
            got[at],
            want[at],
            got.len(),
            want.len()
        ),
        None => format!("lengths {} and {}", got.len(), want.len()),
    }
}

/// The seeds of a test, and as many more as `MODEL_SEEDS` says (for a long run).
fn seeds(fixed: &[(u64, u32)]) -> Vec<(u64, u32)> {
    let more: u64 = std::env::var("MODEL_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    let mut all = fixed.to_vec();
    for n in 0..more {
        all.push((1000 + n, [4096, 1024, 512, 2048][n as usize % 4]));
    }
    all
}

#[test]
fn one_node_agrees_with_a_tree_in_memory() {
    for (seed, bsize) in seeds(&[(1, 4096), (2, 1024), (3, 512), (4, 4096)]) {
        eprintln!("seed {seed}, block size {bsize}");
        World::new(seed, bsize, 1, false).run(700, 2);
    }
}

#[test]
fn journaled_data_agrees_with_a_tree_in_memory() {
    for (seed, bsize) in seeds(&[(11, 4096), (12, 1024)]) {
        eprintln!("seed {seed}, block size {bsize}");
        World::new(seed, bsize, 1, true).run(500, 2);
    }
}

#[test]
fn nodes_without_memory_agree_with_a_tree() {
    for (seed, bsize) in seeds(&[(31, 4096), (32, 1024)]) {
        eprintln!("seed {seed}, block size {bsize}");
        for rigs in [1, 2] {
            let mut world = World::new(seed, bsize, rigs, false);
            world.tight = true;
            world.run(500, 2);
        }
    }
}

#[test]
fn two_nodes_agree_with_one_tree() {
    for (seed, bsize) in seeds(&[(21, 4096), (22, 1024)]) {
        eprintln!("seed {seed}, block size {bsize}");
        World::new(seed, bsize, 2, false).run(500, 2);
    }
}
