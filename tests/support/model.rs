//! A filesystem in memory: what a tree must look like after a sequence of operations.
//!
//! Invariants:
//! * an operation changes the model exactly when it must succeed, and otherwise names the errno it must fail
//!   with, by the rules of Linux for root;
//! * nothing here touches a disk.

use super::manifest::{Fields, Manifest, escape, hex};
use super::workload::{Call, Op};
use rustix::fs::RenameFlags;
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// An inode of the model.
pub type Id = usize;
/// The root.
pub const ROOT: Id = 0;

const PAGE: usize = 4096;
const WHOLE_MAX: u64 = 8 << 20;
const VALUE_MAX: usize = 256;

/// What an inode is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A regular file.
    File(Content),
    /// A directory: names in order.
    Dir(BTreeMap<Vec<u8>, Id>),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A fifo, socket or device: its name in manifests, and the device's numbers.
    Special(&'static str, Option<(u32, u32)>),
}

/// The bytes of a regular file.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// Length in bytes.
    pub size: u64,
    /// Pages that were written; others are zero.
    pages: BTreeMap<u64, Box<[u8]>>,
    /// The operation that last changed it.
    pub changed_at: usize,
    /// The operation that last synced it.
    pub synced_at: usize,
    /// Its digest, once asked for and until it changes.
    digest: OnceLock<String>,
}

/// An inode.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The modification time when it is known: set, and nothing modified since.
    pub mtime: Option<(i64, u32)>,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Its names: folder and name.
    pub names: Vec<(Id, Vec<u8>)>,
    /// The operation that last changed what it holds or what is said of it.
    changed_at: usize,
}

/// The whole tree.
#[derive(Clone, Debug)]
pub struct Model {
    nodes: Vec<Option<Node>>,
    /// The operation under way.
    now: usize,
    /// The operation that last made everything durable.
    synced_at: usize,
    /// The last operation known to be durable, but for the bytes of files not synced by then.
    pub committed_at: usize,
}

impl Content {
    /// Reads a range, cut at the end of the file.
    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let len = usize::try_from(self.size.saturating_sub(at)).map_or(len, |rest| rest.min(len));
        let mut out = vec![0; len];
        self.each_page(at, len, |page, in_page, in_range| {
            if let Some(bytes) = self.pages.get(&page) {
                out[in_range.clone()].copy_from_slice(&bytes[in_page..in_page + in_range.len()]);
            }
        });
        out
    }

    fn each_page(&self, at: u64, len: usize, mut f: impl FnMut(u64, usize, std::ops::Range<usize>)) {
        let mut done = 0;
        while done < len {
            let place = at + done as u64;
            let in_page = (place % PAGE as u64) as usize;
            let n = (PAGE - in_page).min(len - done);
            f(place / PAGE as u64, in_page, done..done + n);
            done += n;
        }
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        let mut pages = std::mem::take(&mut self.pages);
        self.each_page(at, data.len(), |page, in_page, range| {
            let bytes = pages
                .entry(page)
                .or_insert_with(|| vec![0; PAGE].into_boxed_slice());
            bytes[in_page..in_page + range.len()].copy_from_slice(&data[range]);
        });
        self.pages = pages;
        self.size = self.size.max(at + data.len() as u64);
    }

    fn zero(&mut self, at: u64, end: u64) {
        let (first, last) = (at / PAGE as u64, end.div_ceil(PAGE as u64));
        let touched: Vec<u64> = self.pages.range(first..last).map(|(p, _)| *p).collect();
        for page in touched {
            let start = page * PAGE as u64;
            let from = at.saturating_sub(start).min(PAGE as u64) as usize;
            let to = (end - start).min(PAGE as u64) as usize;
            if (from, to) == (0, PAGE) {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                bytes[from..to].fill(0);
            }
        }
    }

    fn truncate(&mut self, size: u64) {
        if size < self.size {
            let end = self.size.next_multiple_of(PAGE as u64);
            self.zero(size, end);
        }
        self.size = size;
    }

    /// As `walk` describes a file's content.
    fn digest(&self) -> String {
        self.digest.get_or_init(|| self.compute_digest()).clone()
    }

    fn compute_digest(&self) -> String {
        let mut hash = Sha256::new();
        if self.size <= WHOLE_MAX {
            hash.update(self.read(0, self.size as usize));
            return hex(&hash.finalize());
        }
        for (page, bytes) in &self.pages {
            let at = page * PAGE as u64;
            let n = (self.size.saturating_sub(at)).min(PAGE as u64) as usize;
            if bytes[..n].iter().any(|&b| b != 0) {
                hash.update(at.to_be_bytes());
                hash.update(&bytes[..n]);
            }
        }
        format!("pages:{}", hex(&hash.finalize()))
    }
}

impl Model {
    /// An empty folder of root's.
    pub fn new() -> Model {
        let root = Node::new(Kind::Dir(BTreeMap::new()), 0o755);
        Model {
            nodes: vec![Some(root)],
            now: 0,
            synced_at: 0,
            committed_at: 0,
        }
    }

    /// The inode of this id.
    #[track_caller]
    pub fn node(&self, id: Id) -> &Node {
        self.nodes[id].as_ref().expect("an inode that exists")
    }

    #[track_caller]
    fn node_mut(&mut self, id: Id) -> &mut Node {
        self.nodes[id].as_mut().expect("an inode that exists")
    }

    /// The inodes that satisfy this.
    pub fn find(&self, want: impl Fn(&Node) -> bool) -> Vec<Id> {
        let live = self
            .nodes
            .iter()
            .enumerate()
            .filter_map(|(id, n)| n.as_ref().map(|n| (id, n)));
        live.filter(|(_, n)| want(n)).map(|(id, _)| id).collect()
    }

    /// The entries of a folder.
    #[track_caller]
    pub fn entries(&self, dir: Id) -> &BTreeMap<Vec<u8>, Id> {
        match &self.node(dir).kind {
            Kind::Dir(entries) => entries,
            other => panic!("no folder: {other:?}"),
        }
    }

    /// The content of a file.
    #[track_caller]
    pub fn content(&self, file: Id) -> &Content {
        match &self.node(file).kind {
            Kind::File(content) => content,
            other => panic!("no file: {other:?}"),
        }
    }

    #[track_caller]
    fn content_mut(&mut self, file: Id) -> &mut Content {
        match &mut self.node_mut(file).kind {
            Kind::File(content) => content,
            other => panic!("no file: {other:?}"),
        }
    }

    #[track_caller]
    fn entries_mut(&mut self, dir: Id) -> &mut BTreeMap<Vec<u8>, Id> {
        match &mut self.node_mut(dir).kind {
            Kind::Dir(entries) => entries,
            other => panic!("no folder: {other:?}"),
        }
    }

    /// One path of an inode, relative to the root.
    pub fn path(&self, mut id: Id) -> Vec<u8> {
        let mut parts: Vec<&[u8]> = Vec::new();
        while id != ROOT {
            let (dir, name) = self.node(id).names.first().expect("a name");
            parts.push(name);
            id = *dir;
        }
        parts.push(b".");
        parts.reverse();
        parts.join(&b'/')
    }

    /// How many folders are above this one.
    pub fn depth(&self, mut id: Id) -> usize {
        let mut depth = 0;
        while id != ROOT {
            id = self.node(id).names[0].0;
            depth += 1;
        }
        depth
    }

    /// How many levels of folders a folder holds.
    pub fn levels(&self, id: Id) -> usize {
        match &self.node(id).kind {
            Kind::Dir(entries) => entries.values().map(|&c| self.levels(c) + 1).max().unwrap_or(0),
            _ => 0,
        }
    }

    fn is_above(&self, above: Id, mut id: Id) -> bool {
        while id != ROOT {
            id = self.node(id).names[0].0;
            if id == above {
                return true;
            }
        }
        false
    }

    fn look(&self, dir: Id, name: &[u8]) -> Result<Id, Errno> {
        self.entries(dir).get(name).copied().ok_or(Errno::NOENT)
    }

    fn is_dir(&self, id: Id) -> bool {
        matches!(self.node(id).kind, Kind::Dir(_))
    }

    fn touch(&mut self, id: Id) {
        self.node_mut(id).mtime = None;
        self.note(id);
    }

    fn note(&mut self, id: Id) {
        let now = self.now;
        self.node_mut(id).changed_at = now;
    }

    fn add(&mut self, dir: Id, name: &[u8], mut node: Node) -> Result<(), Errno> {
        if self.entries(dir).contains_key(name) {
            return Err(Errno::EXIST);
        }
        let parent = self.node(dir);
        if parent.mode & 0o2000 != 0 {
            node.gid = parent.gid;
            if matches!(node.kind, Kind::Dir(_)) {
                node.mode |= 0o2000;
            }
        }
        node.names.push((dir, name.to_vec()));
        node.changed_at = self.now;
        let id = self.nodes.len();
        self.nodes.push(Some(node));
        self.entries_mut(dir).insert(name.to_vec(), id);
        self.touch(dir);
        Ok(())
    }

    fn drop_name(&mut self, dir: Id, name: &[u8]) {
        let id = self
            .entries_mut(dir)
            .remove(name)
            .expect("a name that was looked up");
        let names = &mut self.node_mut(id).names;
        names.retain(|(d, n)| *d != dir || n != name);
        if names.is_empty() {
            self.nodes[id] = None;
        }
        self.touch(dir);
    }

    /// Does operation number `at`.
    pub fn apply(&mut self, op: &Op, at: usize) -> Result<(), Errno> {
        self.now = at;
        match &op.call {
            Call::Create { dir, name, mode } => {
                let content = Content {
                    changed_at: at,
                    ..Content::default()
                };
                self.add(*dir, name, Node::new(Kind::File(content), *mode))
            }
            Call::Mkdir { dir, name, mode } => {
                self.add(*dir, name, Node::new(Kind::Dir(BTreeMap::new()), *mode))
            }
            Call::Symlink { dir, name, target } => {
                self.add(*dir, name, Node::new(Kind::Symlink(target.clone()), 0o777))
            }
            Call::Mknod {
                dir,
                name,
                kind,
                device,
                mode,
            } => self.add(*dir, name, Node::new(Kind::Special(kind, *device), *mode)),
            Call::Link { node, dir, name } => self.link(*node, *dir, name),
            Call::Unlink { dir, name } | Call::Orphan { dir, name, .. } => self.unlink(*dir, name),
            Call::Rmdir { dir, name } => self.rmdir(*dir, name),
            Call::Rename { from, to, flags } => self.rename(from, to, *flags),
            Call::Write { file, at: offset, .. } => self.change(*file, at, |c| c.write(*offset, &op.data)),
            Call::Append { file, .. } => self.change(*file, at, |c| c.write(c.size, &op.data)),
            Call::Rewrite { file, .. } => self.change(*file, at, |c| {
                c.truncate(0);
                c.write(0, &op.data);
            }),
            Call::Truncate { file, size } => self.change(*file, at, |c| c.truncate(*size)),
            Call::Punch {
                file,
                at: offset,
                len,
            } => self.change(*file, at, |c| c.zero(*offset, offset + len)),
            Call::Allocate {
                file,
                at: offset,
                len,
                keep,
            } => self.change(*file, at, |c| {
                if !keep {
                    c.size = c.size.max(offset + len);
                }
            }),
            Call::SetXattr { node, name, mode } => self.set_xattr(*node, name, *mode, &op.data),
            Call::RemoveXattr { node, name } => self
                .node_mut(*node)
                .xattrs
                .remove(name)
                .map(drop)
                .ok_or(Errno::NODATA),
            _ => {
                self.apply_small(op, at);
                Ok(())
            }
        }
    }

    /// What cannot fail.
    fn apply_small(&mut self, op: &Op, at: usize) {
        match &op.call {
            Call::Chmod { node, mode } => {
                self.node_mut(*node).mode = *mode;
                self.note(*node);
            }
            Call::Chown { node, uid, gid } => {
                self.note(*node);
                let n = self.node_mut(*node);
                (n.uid, n.gid) = (*uid, *gid);
                if !matches!(n.kind, Kind::Dir(_) | Kind::Symlink(_)) {
                    n.mode &= if n.mode & 0o010 != 0 { !0o6000 } else { !0o4000 };
                }
            }
            Call::Times { node, mtime } => self.node_mut(*node).mtime = Some(*mtime),
            Call::Fsync { node } => self.fsync(*node, at),
            Call::Syncfs => (self.synced_at, self.committed_at) = (at, at),
            _ => {}
        }
    }

    fn change(&mut self, file: Id, at: usize, f: impl FnOnce(&mut Content)) -> Result<(), Errno> {
        let content = self.content_mut(file);
        f(content);
        content.changed_at = at;
        content.digest = OnceLock::new();
        self.touch(file);
        Ok(())
    }

    /// Makes durable what an inode holds, and what was done before it last changed: the log has one order. What was
    /// done since on others may stay in memory.
    fn fsync(&mut self, node: Id, at: usize) {
        self.committed_at = self.committed_at.max(self.node(node).changed_at);
        if let Kind::File(content) = &mut self.node_mut(node).kind {
            content.synced_at = at;
        }
    }

    fn link(&mut self, node: Id, dir: Id, name: &[u8]) -> Result<(), Errno> {
        if self.entries(dir).contains_key(name) {
            return Err(Errno::EXIST);
        }
        self.entries_mut(dir).insert(name.to_vec(), node);
        self.node_mut(node).names.push((dir, name.to_vec()));
        self.touch(dir);
        Ok(())
    }

    fn unlink(&mut self, dir: Id, name: &[u8]) -> Result<(), Errno> {
        if self.is_dir(self.look(dir, name)?) {
            return Err(Errno::ISDIR);
        }
        self.drop_name(dir, name);
        Ok(())
    }

    fn rmdir(&mut self, dir: Id, name: &[u8]) -> Result<(), Errno> {
        let id = self.look(dir, name)?;
        if !self.is_dir(id) {
            return Err(Errno::NOTDIR);
        }
        if !self.entries(id).is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.drop_name(dir, name);
        Ok(())
    }

    fn rename(&mut self, from: &(Id, Vec<u8>), to: &(Id, Vec<u8>), flags: RenameFlags) -> Result<(), Errno> {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let id = self.look(from.0, &from.1)?;
        let target = self.look(to.0, &to.1);
        match target {
            Ok(_) if flags.contains(RenameFlags::NOREPLACE) => return Err(Errno::EXIST),
            Err(e) if exchange => return Err(e),
            _ => {}
        }
        if self.is_dir(id) && (id == to.0 || self.is_above(id, to.0)) {
            return Err(Errno::INVAL);
        }
        if let Ok(victim) = target {
            if self.is_dir(victim) && (victim == from.0 || self.is_above(victim, from.0)) {
                return Err(if exchange { Errno::INVAL } else { Errno::NOTEMPTY });
            }
            if victim == id {
                return Ok(());
            }
            if exchange {
                self.swap(from, id, to, victim);
                return Ok(());
            }
            match (self.is_dir(id), self.is_dir(victim)) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (true, true) if !self.entries(victim).is_empty() => return Err(Errno::NOTEMPTY),
                _ => self.drop_name(to.0, &to.1),
            }
        }
        self.entries_mut(from.0).remove(&from.1);
        self.entries_mut(to.0).insert(to.1.clone(), id);
        self.rename_in(id, from, to);
        self.touch(from.0);
        self.touch(to.0);
        self.moved(id, from.0, to.0);
        Ok(())
    }

    fn swap(&mut self, from: &(Id, Vec<u8>), id: Id, to: &(Id, Vec<u8>), other: Id) {
        self.entries_mut(from.0).insert(from.1.clone(), other);
        self.entries_mut(to.0).insert(to.1.clone(), id);
        self.rename_in(id, from, to);
        self.rename_in(other, to, from);
        self.touch(from.0);
        self.touch(to.0);
        self.moved(id, from.0, to.0);
        self.moved(other, to.0, from.0);
    }

    /// A directory that comes below another one has a new `..`, which GFS2 takes for a modification.
    fn moved(&mut self, id: Id, from: Id, to: Id) {
        if from != to && self.is_dir(id) {
            self.touch(id);
        }
    }

    fn rename_in(&mut self, id: Id, from: &(Id, Vec<u8>), to: &(Id, Vec<u8>)) {
        let names = &mut self.node_mut(id).names;
        let place = names.iter().position(|n| n == from).expect("the old name");
        names[place] = to.clone();
    }

    fn set_xattr(&mut self, id: Id, name: &str, mode: Presence, value: &[u8]) -> Result<(), Errno> {
        let xattrs = &mut self.node_mut(id).xattrs;
        match (mode, xattrs.contains_key(name)) {
            (Presence::MustNot, true) => Err(Errno::EXIST),
            (Presence::Must, false) => Err(Errno::NODATA),
            _ => {
                xattrs.insert(name.to_owned(), value.to_vec());
                self.note(id);
                Ok(())
            }
        }
    }

    /// The tree as `walk` would describe it, as far as the operations say.
    pub fn manifest(&self) -> Manifest {
        let mut out = Manifest::default();
        let mut todo = vec![(b".".to_vec(), ROOT)];
        while let Some((path, id)) = todo.pop() {
            if let Kind::Dir(entries) = &self.node(id).kind {
                todo.extend(
                    entries
                        .iter()
                        .map(|(name, &child)| ([&path[..], b"/", name].concat(), child)),
                );
            }
            out.entries.insert(escape(&path), self.describe(id));
        }
        out
    }

    fn describe(&self, id: Id) -> Fields {
        let node = self.node(id);
        let mut f = Fields::new();
        let mut put = |key: &str, value: String| f.insert(key.to_owned(), value);
        put("mode", format!("{:04o}", node.mode));
        put("uid", node.uid.to_string());
        put("gid", node.gid.to_string());
        if let Some((sec, nsec)) = node.mtime {
            put("mtime", format!("{sec}.{nsec:09}"));
        }
        let mut nlink = node.names.len();
        match &node.kind {
            Kind::File(content) => {
                put("type", "file".to_owned());
                put("size", content.size.to_string());
                put("content", content.digest());
            }
            Kind::Dir(entries) => {
                put("type", "dir".to_owned());
                nlink = 2 + entries.values().filter(|&&c| self.is_dir(c)).count();
            }
            Kind::Symlink(target) => {
                put("type", "symlink".to_owned());
                put("size", target.len().to_string());
                put("target", escape(target));
            }
            Kind::Special(kind, device) => {
                put("type", (*kind).to_owned());
                if let Some((major, minor)) = device {
                    put("rdev", format!("{major},{minor}"));
                }
            }
        }
        put("nlink", nlink.to_string());
        for (name, value) in &node.xattrs {
            let text = if value.len() <= VALUE_MAX {
                hex(value)
            } else {
                format!("{}:{}", value.len(), hex(&Sha256::digest(value)))
            };
            put(&format!("x.{}", escape(name.as_bytes())), text);
        }
        f
    }

    /// Paths of files whose bytes a crash may have torn: changed and not synced since.
    pub fn unsynced(&self) -> Vec<String> {
        let torn = |n: &Node| match &n.kind {
            Kind::File(c) => c.changed_at > c.synced_at.max(self.synced_at),
            _ => false,
        };
        let ids = self.find(torn);
        let names = ids.iter().flat_map(|&id| &self.node(id).names);
        names
            .map(|(dir, name)| escape(&[&self.path(*dir)[..], b"/", name].concat()))
            .collect()
    }
}

impl Node {
    fn new(kind: Kind, mode: u32) -> Node {
        Node {
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: None,
            xattrs: BTreeMap::new(),
            names: Vec::new(),
            changed_at: 0,
        }
    }
}

/// Whether an extended attribute must be there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Either way.
    Any,
    /// XATTR_REPLACE.
    Must,
    /// XATTR_CREATE.
    MustNot,
}
