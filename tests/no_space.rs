//! Goal: a volume that is full says so, at any point of any operation, and stays whole. Method: volumes with so many
//! blocks left, from none on; on each one verb; it succeeds or answers ENOSPC, with nothing changed but what a short
//! write says, and the checker finds nothing. What needs no block must succeed on the fullest volume.

mod node;

use fuse_gfs2::error::{Errno, FsResult};
use fuse_gfs2::ops::OpenFlags;
use fuse_gfs2::ops::types::{RenameMode, SetAttr, XattrMode};
use gfs2_format::BlockAddr;
use gfs2_format::device::{BlockDevice, MemDevice};
use node::tree::{Seen, errno, observe};
use node::{Node, ROOT, Shape, judge};
use std::sync::Arc;

/// Blocks left, at most: more than any verb here takes but the large writes, which are cut short.
const LEFT_MAX: u64 = 16;

/// A verb on a prepared volume.
type Verb = fn(&Node) -> FsResult<usize>;

fn addr(node: &Node, path: &str) -> BlockAddr {
    let mut at = node.root();
    for name in path.split('/') {
        let entry = node.fs.lookup(&ROOT, at, name.as_bytes()).expect("a path");
        at = entry.attr.num.addr;
    }
    at
}

fn write(node: &Node, path: &str, at: u64, len: usize) -> FsResult<usize> {
    let handle = node.fs.open(addr(node, path), OpenFlags::WRITE)?;
    let written = node.fs.write(&ROOT, handle, at, &vec![5; len], false, false);
    node.fs.release(handle);
    written
}

fn size(node: &Node, path: &str, size: u64) -> FsResult<usize> {
    let set = SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    node.fs.setattr(&ROOT, addr(node, path), &set).map(|_| 0)
}

fn xattr(node: &Node, path: &str, name: &str, len: usize) -> FsResult<usize> {
    let addr = addr(node, path);
    node.fs
        .setxattr(&ROOT, addr, name.as_bytes(), &vec![6; len], XattrMode::Any)
        .map(|()| 0)
}

fn create(node: &Node, dir: &str, name: &str) -> FsResult<usize> {
    let dir = addr(node, dir);
    let made = node
        .fs
        .create(&ROOT, dir, name.as_bytes(), 0o644, 0, true, OpenFlags::WRITE)?;
    node.fs.release(made.1);
    Ok(0)
}

fn rename(node: &Node, from: &str, name: &str, to: &str, new: &str) -> FsResult<usize> {
    let (from, to) = (addr(node, from), addr(node, to));
    let mode = RenameMode::Replace;
    node.fs
        .rename(&ROOT, from, name.as_bytes(), to, new.as_bytes(), mode)
        .map(|()| 0)
}

/// Verbs that take blocks.
const TAKING: &[(&str, Verb)] = &[
    ("create", |n| create(n, "empty", "f")),
    ("create where the directory is hashed first", |n| {
        create(n, "linear", &"f".repeat(200))
    }),
    ("create where a leaf is split", |n| {
        create(n, "hashed", &"f".repeat(250))
    }),
    ("mkdir", |n| {
        n.fs.mkdir(&ROOT, addr(n, "empty"), b"d", 0o755, 0).map(|_| 0)
    }),
    ("symlink", |n| {
        n.fs.symlink(&ROOT, addr(n, "linear"), &[b'l'; 200], b"target")
            .map(|_| 0)
    }),
    ("link", |n| {
        n.fs.link(&ROOT, addr(n, "small"), addr(n, "linear"), &[b'k'; 200])
            .map(|_| 0)
    }),
    ("rename where a directory grows", |n| {
        rename(n, "empty2", "e", "linear", &"g".repeat(200))
    }),
    ("rename of a directory", |n| {
        rename(n, "empty2", "sub", "hashed", &"h".repeat(250))
    }),
    ("write that ends stuffing", |n| write(n, "small", 100, 5000)),
    ("append", |n| write(n, "big", 300_000, 30_000)),
    ("write into a hole", |n| write(n, "sparse", 1_000_000, 9000)),
    ("write that needs more height", |n| {
        write(n, "big", 20_000_000, 5000)
    }),
    ("truncate that ends stuffing", |n| size(n, "small", 100_000)),
    ("small attribute", |n| xattr(n, "small", "user.a", 10)),
    ("large attribute", |n| xattr(n, "small", "user.a", 9000)),
    ("more attributes", |n| xattr(n, "attributed", "user.more", 700)),
    ("larger attribute", |n| xattr(n, "attributed", "user.b", 6000)),
];

/// Verbs that must succeed on a full volume.
const FREE: &[(&str, Verb)] = &[
    ("overwrite", |n| write(n, "big", 1000, 100_000)),
    ("overwrite of what is stuffed", |n| write(n, "small", 0, 100)),
    ("unlink", |n| n.fs.unlink(&ROOT, n.root(), b"big").map(|()| 0)),
    ("rmdir", |n| n.fs.rmdir(&ROOT, n.root(), b"empty").map(|()| 0)),
    ("truncate", |n| size(n, "big", 777)),
    ("truncate to more", |n| size(n, "big", 7_000_000)),
    ("chmod", |n| {
        let set = SetAttr {
            perm: Some(0o700),
            ..SetAttr::default()
        };
        n.fs.setattr(&ROOT, addr(n, "big"), &set).map(|_| 0)
    }),
    ("remove an attribute", |n| {
        n.fs.removexattr(&ROOT, addr(n, "attributed"), b"user.b")
            .map(|()| 0)
    }),
    ("rename", |n| rename(n, "empty2", "e", "empty2", "f")),
    ("rename over another", |n| {
        rename(n, "empty2", "e", "hashed", &format!("{:0200}", 3))
    }),
    ("exchange", |n| {
        let (from, to) = (addr(n, "empty2"), n.root());
        n.fs.rename(&ROOT, from, b"e", to, b"small", RenameMode::Exchange)
            .map(|()| 0)
    }),
];

/// A volume on which every verb of the tables can be tried, with nothing free.
fn prepare(bsize: u32) -> Arc<MemDevice> {
    let shape = Shape {
        mib: 17,
        ..Shape::small(bsize)
    };
    let device = Arc::new(shape.make());
    let node = Node::mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>)).expect("a mount");
    let fs = &node.fs;
    for name in ["empty", "empty2", "linear", "hashed"] {
        fs.mkdir(&ROOT, node.root(), name.as_bytes(), 0o755, 0)
            .expect("a directory");
    }
    for name in ["small", "big", "sparse", "attributed", "filler"] {
        node.create(node.root(), name.as_bytes()).expect("a file");
    }
    node.create(addr(&node, "empty2"), b"e").expect("a file");
    fs.mkdir(&ROOT, addr(&node, "empty2"), b"sub", 0o755, 0)
        .expect("a directory");
    write(&node, "small", 0, 200).expect("to write");
    write(&node, "big", 0, 300_000).expect("to write");
    write(&node, "sparse", 3_000_000, 10).expect("to write");
    for (name, len) in [("user.a", 40), ("user.b", 2500), ("user.c", 100)] {
        xattr(&node, "attributed", name, len).expect("an attribute");
    }
    // As full as it gets without a block more.
    let linear = addr(&node, "linear");
    let hashed_at = (0..).find(|n| {
        node.create(linear, format!("{n:0200}").as_bytes())
            .expect("a file");
        fs.getattr(linear).expect("attributes").flags & 2 != 0
    });
    let last = hashed_at.expect("a directory that is hashed in the end");
    for n in 0..=last {
        fs.unlink(&ROOT, linear, format!("{n:0200}").as_bytes())
            .expect("to unlink");
    }
    fs.rmdir(&ROOT, node.root(), b"linear").expect("to remove it");
    let linear = fs
        .mkdir(&ROOT, node.root(), b"linear", 0o755, 0)
        .expect("a directory");
    for n in 0..last {
        let name = format!("{n:0200}");
        node.create(linear.attr.num.addr, name.as_bytes())
            .expect("a file");
    }
    let hashed = addr(&node, "hashed");
    for n in 0..40 {
        node.create(hashed, format!("{n:0200}").as_bytes())
            .expect("a file");
    }
    node.unmount();
    fill(&device);
    device
}

/// Takes every block that is left.
fn fill(device: &Arc<MemDevice>) {
    let node = Node::mount(&(Arc::clone(device) as Arc<dyn BlockDevice>)).expect("a mount");
    let mut at = 0;
    loop {
        match errno(write(&node, "filler", at, 500_000)) {
            Ok(n) => at += n as u64,
            Err(errno) => {
                assert_eq!(errno, Errno::ENOSPC);
                break;
            }
        }
    }
    // What a file cannot take for want of its indirect blocks, inodes take.
    for n in 0.. {
        match create(&node, "hashed", &format!("{n}")).map_err(|e| e.errno()) {
            Ok(_) => {}
            Err(errno) => {
                assert_eq!(errno, Errno::ENOSPC);
                break;
            }
        }
    }
    node.unmount();
}

fn left(device: &Arc<MemDevice>, blocks: u64) -> MemDevice {
    let image = Arc::new(MemDevice::clone(device));
    let node = Node::mount(&(Arc::clone(&image) as Arc<dyn BlockDevice>)).expect("a mount");
    let attr = node.fs.getattr(addr(&node, "filler")).expect("attributes");
    let bsize = u64::from(attr.blksize);
    let blocks_of_data = attr.size.div_ceil(bsize) - blocks;
    size(&node, "filler", blocks_of_data * bsize).expect("to truncate");
    node.unmount();
    MemDevice::clone(&image)
}

/// Everything, data apart, to be compared.
fn shown(seen: &Seen, out: &mut Vec<String>, path: &str) {
    let xattrs: Vec<(&String, usize)> = seen.xattrs.iter().map(|(name, v)| (name, v.len())).collect();
    let facts = (seen.addr, seen.nlink, seen.perm, seen.data.len(), xattrs);
    out.push(format!("{path} {facts:?}"));
    for (name, child) in &seen.children {
        shown(child, out, &format!("{path}/{name}"));
    }
}

fn all(node: &Node) -> Vec<String> {
    let mut out = Vec::new();
    shown(&observe(node), &mut out, "");
    out
}

/// Runs a verb; answers whether there was space for it.
fn run(image: MemDevice, what: &str, verb: Verb) -> bool {
    let device = Arc::new(image);
    let node = Node::mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>)).expect("a mount");
    let before = all(&node);
    let free = node.fs.statfs().expect("figures").free;
    let done = errno(verb(&node));
    if let Err(errno) = done {
        assert_eq!(errno, Errno::ENOSPC, "{what}");
        assert_eq!(all(&node), before, "{what}: refused, and something has changed");
        // A file may have lost what it was stuffed with to a block of its own, no more.
        let now = node.fs.statfs().expect("figures").free;
        assert!(
            now <= free && now + 1 >= free,
            "{what}: {free} blocks were free, {now} are"
        );
    }
    let after = all(&node);
    node.unmount();
    judge::clean_but(&*device, &[], what);
    let again = Node::mount(&(device as Arc<dyn BlockDevice>)).expect("a mount");
    assert_eq!(all(&again), after, "{what}: otherwise after a mount");
    again.unmount();
    done.is_ok()
}

fn at_any_point(bsize: u32) {
    let full = prepare(bsize);
    judge::reference_clean(&full, "full");
    for (name, verb) in FREE {
        let what = format!("{name}, bsize {bsize}");
        assert!(
            run(MemDevice::clone(&full), &what, *verb),
            "{what}: needs a block"
        );
    }
    let mut refused = vec![0; TAKING.len()];
    let mut enough = vec![false; TAKING.len()];
    for blocks in 0..=LEFT_MAX {
        let image = left(&full, blocks);
        for (n, (name, verb)) in TAKING.iter().enumerate() {
            if enough[n] {
                continue;
            }
            let what = format!("{name}, bsize {bsize}, {blocks} blocks left");
            let done = run(image.clone(), &what, *verb);
            refused[n] += u32::from(!done);
            // A short write is a success; the next volume may show more of it.
            enough[n] = done && !name.contains("write") && !name.contains("append");
        }
    }
    for (n, (name, _)) in TAKING.iter().enumerate() {
        println!("{name}, bsize {bsize}: refused {} times", refused[n]);
        assert!(u64::from(refused[n]) <= LEFT_MAX, "{name}: never succeeds");
    }
    let never = refused.iter().filter(|n| **n == 0).count();
    assert!(never <= 4, "{never} of {} verbs took no block", TAKING.len());
}

#[test]
fn no_space_at_any_point_of_any_operation() {
    at_any_point(4096);
}

#[test]
fn nor_with_small_blocks() {
    at_any_point(1024);
}
