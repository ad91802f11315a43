//! A tree in memory: what a volume should hold after each operation, and the comparison with what one holds.
//!
//! States share what did not change, so that all states of a run are kept.

use super::{Node, ROOT};
use fuse_gfs2::error::Errno;
use gfs2_format::BlockAddr;
use gfs2_format::ondisk::FileType;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A file of the model; never used again.
pub type Id = usize;

/// The root directory.
pub const TOP: Id = 0;

/// Bytes that are shared between states.
pub type Bytes = Arc<Vec<u8>>;

/// One inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub kind: FileType,
    pub nlink: u32,
    pub perm: u16,
    /// Contents, or a symlink's target.
    pub data: Bytes,
    pub xattrs: BTreeMap<String, Bytes>,
    pub children: BTreeMap<String, Id>,
    pub parent: Id,
}

impl File {
    pub fn new(kind: FileType, parent: Id) -> Self {
        Self {
            kind,
            nlink: if kind == FileType::Dir { 2 } else { 1 },
            perm: if kind == FileType::Dir { 0o755 } else { 0o644 },
            data: Bytes::default(),
            xattrs: BTreeMap::new(),
            children: BTreeMap::new(),
            parent,
        }
    }
}

/// A state of the tree.
#[derive(Clone, Debug)]
pub struct Tree {
    pub files: BTreeMap<Id, Arc<File>>,
}

impl Default for Tree {
    fn default() -> Self {
        let files = BTreeMap::from([(TOP, Arc::new(File::new(FileType::Dir, TOP)))]);
        Self { files }
    }
}

impl Tree {
    #[track_caller]
    pub fn get(&self, id: Id) -> &File {
        &self.files[&id]
    }

    #[track_caller]
    pub fn edit(&mut self, id: Id) -> &mut File {
        Arc::make_mut(self.files.get_mut(&id).expect("a file of the model"))
    }

    pub fn child(&self, dir: Id, name: &str) -> Option<Id> {
        self.get(dir).children.get(name).copied()
    }

    /// Files with a name, of a kind.
    pub fn named(&self, kind: FileType) -> Vec<Id> {
        let files = self.files.iter();
        files
            .filter(|(_, file)| file.kind == kind && file.nlink > 0)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Is `dir` below `above`, or the same?
    pub fn is_below(&self, mut dir: Id, above: Id) -> bool {
        while dir != above {
            if dir == TOP {
                return false;
            }
            dir = self.get(dir).parent;
        }
        true
    }

    /// Takes a name away; gives the inode if that was its last.
    pub fn unlink(&mut self, dir: Id, name: &str) -> Option<Id> {
        let id = self.edit(dir).children.remove(name)?;
        self.lose_link(dir, id)
    }

    /// `dir` has lost its entry of `id`.
    pub fn lose_link(&mut self, dir: Id, id: Id) -> Option<Id> {
        let file = self.edit(id);
        if file.kind == FileType::Dir {
            file.nlink = 0;
            self.edit(dir).nlink -= 1;
        } else {
            file.nlink -= 1;
        }
        (self.get(id).nlink == 0).then_some(id)
    }
}

/// What is found on a volume under one path.
#[derive(Clone, Debug)]
pub struct Seen {
    pub addr: BlockAddr,
    pub kind: FileType,
    pub nlink: u32,
    pub perm: u16,
    pub data: Vec<u8>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    pub children: BTreeMap<String, Seen>,
}

/// Reads a whole tree through the verbs.
pub fn observe(node: &Node) -> Seen {
    observe_at(node, node.root(), 0)
}

fn names(node: &Node, dir: BlockAddr) -> Vec<(String, FileType)> {
    let handle = node.fs.opendir(dir).expect("to open a directory");
    let mut names = Vec::new();
    let mut cookie = 0;
    loop {
        let before = names.len();
        let mut taken = 0;
        let listed = node.fs.readdir(handle, cookie, &mut |entry| {
            if taken == 50 {
                return true;
            }
            taken += 1;
            cookie = entry.cookie;
            let name = String::from_utf8(entry.name.clone()).expect("a name of the model");
            if name != "." && name != ".." {
                names.push((name, entry.kind));
            }
            false
        });
        listed.expect("to list a directory");
        if taken == 0 {
            break;
        }
        assert!(names.len() >= before);
    }
    node.fs.release(handle);
    names
}

fn observe_at(node: &Node, addr: BlockAddr, depth: u32) -> Seen {
    assert!(depth < 100, "a directory below itself");
    let attr = node.fs.getattr(addr).expect("attributes");
    let list = node.fs.listxattr(&ROOT, addr).expect("names of attributes");
    let xattrs = list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let value = node.fs.getxattr(&ROOT, addr, name).expect("a listed attribute");
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect();
    let data = match attr.kind {
        FileType::Regular => node.read_all(addr).expect("contents"),
        FileType::Symlink => node.fs.readlink(addr).expect("a target"),
        _ => Vec::new(),
    };
    let mut children = BTreeMap::new();
    if attr.kind == FileType::Dir {
        for (name, kind) in names(node, addr) {
            let entry = node
                .fs
                .lookup(&ROOT, addr, name.as_bytes())
                .expect("a listed name");
            let child = entry.attr.num.addr;
            let seen = observe_at(node, child, depth + 1);
            assert_eq!(seen.kind, kind, "{name}");
            let up = (kind == FileType::Dir).then(|| node.fs.lookup(&ROOT, child, b".."));
            if let Some(up) = up {
                let up = up.expect("..").attr.num.addr;
                assert_eq!(up, addr, "the .. of {name}");
                node.fs.forget(up, 1);
            }
            node.fs.forget(child, 1);
            assert!(children.insert(name, seen).is_none(), "a name twice");
        }
    }
    Seen {
        addr,
        kind: attr.kind,
        nlink: attr.nlink,
        perm: attr.perm,
        data,
        xattrs,
        children,
    }
}

/// What a comparison lets pass.
pub trait Allowance {
    /// May a file of the state have this size instead of its own?
    fn size(&self, id: Id, state: usize, found: usize) -> bool;
    /// May a byte of a file be this, instead of the state's?
    fn bytes(&self, id: Id, found: &[u8]) -> Result<(), String>;
}

/// Lets nothing pass.
pub struct Exact;

impl Allowance for Exact {
    fn size(&self, _id: Id, state: usize, found: usize) -> bool {
        state == found
    }

    fn bytes(&self, _id: Id, _found: &[u8]) -> Result<(), String> {
        Err("other bytes".to_owned())
    }
}

/// Compares what was seen with a state; the first difference.
pub fn compare(tree: &Tree, seen: &Seen, allow: &dyn Allowance) -> Result<(), String> {
    let mut known = BTreeMap::new();
    compare_at(tree, TOP, seen, "", allow, &mut known)
}

fn compare_at(
    tree: &Tree,
    id: Id,
    seen: &Seen,
    path: &str,
    allow: &dyn Allowance,
    known: &mut BTreeMap<BlockAddr, Id>,
) -> Result<(), String> {
    let file = tree.get(id);
    let shown = if path.is_empty() { "/" } else { path };
    let facts = (file.kind, file.nlink, file.perm);
    if facts != (seen.kind, seen.nlink, seen.perm) {
        let found = (seen.kind, seen.nlink, seen.perm);
        return Err(format!("{shown}: {found:?} instead of {facts:?}"));
    }
    if *known.entry(seen.addr).or_insert(id) != id {
        return Err(format!("{shown}: two files at block {}", seen.addr));
    }
    let same = |(name, value): (&String, &Bytes)| seen.xattrs.get(name) == Some(&**value);
    if file.xattrs.len() != seen.xattrs.len() || !file.xattrs.iter().all(same) {
        let lens = |found: Vec<(&String, usize)>| format!("{found:?}");
        let want = lens(file.xattrs.iter().map(|(name, v)| (name, v.len())).collect());
        let got = lens(seen.xattrs.iter().map(|(name, v)| (name, v.len())).collect());
        return Err(format!("{shown}: attributes {got} instead of {want}"));
    }
    if file.kind == FileType::Symlink && *file.data != seen.data {
        return Err(format!("{shown}: another target"));
    }
    if file.kind == FileType::Regular {
        if !allow.size(id, file.data.len(), seen.data.len()) {
            let (found, want) = (seen.data.len(), file.data.len());
            return Err(format!("{shown}: {found} bytes instead of {want}"));
        }
        if *file.data != seen.data {
            allow
                .bytes(id, &seen.data)
                .map_err(|why| format!("{shown}: {why}"))?;
        }
    }
    if !file.children.keys().eq(seen.children.keys()) {
        let extra = seen
            .children
            .keys()
            .filter(|name| !file.children.contains_key(*name));
        let missing = file
            .children
            .keys()
            .filter(|name| !seen.children.contains_key(*name));
        let (extra, missing): (Vec<_>, Vec<_>) = (extra.collect(), missing.collect());
        return Err(format!("{shown}: without {missing:?}, but with {extra:?}"));
    }
    for (name, child) in &file.children {
        let path = format!("{path}/{name}");
        compare_at(tree, *child, &seen.children[name], &path, allow, known)?;
    }
    Ok(())
}

/// The errno that a verb gave, or what it gave.
pub fn errno<T>(result: fuse_gfs2::error::FsResult<T>) -> Result<T, Errno> {
    result.map_err(|error| error.errno())
}
