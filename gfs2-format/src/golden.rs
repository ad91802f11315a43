//! Goal: read and change what the kernel made. Method: walk the fixture images with the algorithms of this crate,
//! compare every fact with the manifest the kernel's own tree gave, and account for every block of every bitmap.

use crate::addr::{BlockAddr, FileBlock, FormalIno, InodeNum};
use crate::dir::{Cookie, LeafCursor, NewEntry, insert, is_empty, lookup, read_from, remove, replace};
use crate::ea::{EaCursor, SetMode, Xattrs};
use crate::edit::{BlockEdit, BlockRead};
use crate::memvol::MemVolume;
use crate::ondisk::{DINODE_SIZE, Dinode, DinodeFlags, EaType, FileType, view_mut};
use crate::time::Timestamp;
use crate::tree::{
    FreeCursor, Metapath, StepBudget, data_use, map_or_alloc, next_data, next_hole, read_bytes,
    truncate_begin, truncate_finish,
};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

const NOW: Timestamp = Timestamp { sec: 1, nsec: 2 };
const IMAGES: [&str; 3] = ["clean4k", "clean2k", "clean1k"];
/// What this walk can say of an inode, of what the manifest says.
const FIELDS: [&str; 10] = [
    "type", "ino", "mode", "uid", "gid", "nlink", "size", "blocks", "mtime", "ctime",
];

fn volume(name: &str) -> MemVolume {
    MemVolume::from_image(&mut crate::testing::image(name).as_slice()).unwrap()
}

fn manifest(name: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../fixtures/images/{name}.manifest.zst"));
    let output = Command::new("zstd")
        .args(["-dc"])
        .arg(&path)
        .output()
        .expect("the zstd program");
    assert!(output.status.success(), "zstd -d {}", path.display());
    let text = String::from_utf8(output.stdout).unwrap();
    let fields = |line: &str| {
        line.split(' ')
            .map(|f| f.split_once('=').unwrap())
            .map(|(k, v)| (k.into(), v.into()))
            .collect()
    };
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_once(' ').unwrap())
        .map(|(path, rest)| (path.to_owned(), fields(rest)))
        .collect()
}

fn escape(name: &[u8]) -> String {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'\\' | b'=');
    name.iter().fold(String::new(), |mut text, b| {
        match plain(*b) {
            true => text.push(char::from(*b)),
            false => write!(text, "\\x{b:02x}").unwrap(),
        }
        text
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Every inode of a tree by path, "." and ".." left out.
fn walk(volume: &MemVolume, root: BlockAddr, system: bool) -> BTreeMap<String, BlockAddr> {
    let mut found = BTreeMap::from([(".".to_owned(), root)]);
    let mut todo = vec![(".".to_owned(), root)];
    while let Some((path, dir)) = todo.pop() {
        let mut cookies = BTreeSet::new();
        let end = read_from(volume, dir, Cookie::START, &mut |entry| {
            assert!(cookies.insert(entry.cookie));
            if entry.name == b"." || entry.name == b".." {
                return ControlFlow::Continue(());
            }
            let at = lookup(volume, dir, entry.name).unwrap().unwrap();
            assert_eq!((at.num, at.kind), (entry.num, entry.kind));
            let di = volume.dinode(entry.num.addr).unwrap();
            assert_eq!((di.inode_num(), di.file_type()), (entry.num, Some(entry.kind)));
            let path = format!("{path}/{}", escape(entry.name));
            if entry.kind == FileType::Dir {
                todo.push((path.clone(), entry.num.addr));
            }
            found.insert(path, entry.num.addr);
            ControlFlow::Continue(())
        });
        assert!(end.unwrap());
        let own = lookup(volume, dir, b".").unwrap().unwrap();
        assert_eq!(own.num.addr, dir);
        let entries = volume.dinode(dir).unwrap().entries.get();
        assert_eq!(is_empty(volume, dir).unwrap(), entries == 2);
        assert_eq!(cookies.len(), entries as usize);
    }
    assert!(system || found.len() > 100);
    found
}

fn text(time: Timestamp) -> String {
    format!("{}.{:09}", time.sec, time.nsec)
}

fn describe(volume: &MemVolume, addr: BlockAddr) -> BTreeMap<String, String> {
    let di = volume.dinode(addr).unwrap();
    let kind = di.file_type().unwrap();
    let type_name = match kind {
        FileType::Fifo => "fifo",
        FileType::Char => "char",
        FileType::Dir => "dir",
        FileType::Block => "block",
        FileType::Regular => "file",
        FileType::Symlink => "symlink",
        FileType::Socket => "socket",
    };
    let sectors = di.blocks.get() * u64::from(volume.geometry().bsize()) / 512;
    let values = [
        type_name.to_owned(),
        addr.to_string(),
        format!("{:04o}", di.mode.get() & 0o7777),
        di.uid.get().to_string(),
        di.gid.get().to_string(),
        di.nlink.get().to_string(),
        di.size.get().to_string(),
        sectors.to_string(),
        text(di.mtime()),
        text(di.ctime()),
    ];
    let mut facts: BTreeMap<String, String> = FIELDS.map(str::to_owned).into_iter().zip(values).collect();
    if kind == FileType::Regular {
        facts.insert("data".into(), extents(volume, addr, &di));
        if di.size.get() <= 8 << 20 {
            facts.insert("content".into(), hex(&Sha256::digest(content(volume, addr))));
        }
    }
    if kind == FileType::Symlink {
        facts.insert("target".into(), escape(&content(volume, addr)));
    }
    let ea = Xattrs::new(addr, 1802);
    ea.list(volume, &mut |found| {
        let value = ea.get(volume, found.space, found.name).unwrap().unwrap();
        let text = match value.len() {
            0..=256 => hex(&value),
            len => format!("{len}:{}", hex(&Sha256::digest(&value))),
        };
        facts.insert(format!("x.{}{}", found.space.prefix(), escape(found.name)), text);
    })
    .unwrap();
    facts
}

fn content(volume: &MemVolume, addr: BlockAddr) -> Vec<u8> {
    let mut bytes = vec![0; volume.dinode(addr).unwrap().size.get() as usize];
    assert_eq!(read_bytes(volume, addr, 0, &mut bytes).unwrap(), bytes.len());
    bytes
}

fn extents(volume: &MemVolume, addr: BlockAddr, di: &Dinode) -> String {
    let (bs, size) = (u64::from(volume.geometry().bsize()), di.size.get());
    let end = FileBlock::new(size.div_ceil(bs));
    let block = volume.read(addr).unwrap();
    let mut texts = vec![];
    let mut at = FileBlock::new(0);
    while let Some(data) = next_data(volume, addr, &block, at, end).unwrap() {
        at = next_hole(volume, addr, &block, data, end).unwrap().unwrap_or(end);
        let (from, to) = (data.get() * bs, (at.get() * bs).min(size));
        texts.push(format!("{from}+{}", to - from));
    }
    texts.join(",")
}

fn all_inodes(volume: &MemVolume) -> (BTreeMap<String, BlockAddr>, Vec<BlockAddr>) {
    let sb = volume.superblock().unwrap();
    let users = walk(volume, sb.root_dir.num().addr, false);
    let system = walk(volume, sb.master_dir.num().addr, true);
    let all: BTreeSet<BlockAddr> = users.values().chain(system.values()).copied().collect();
    (users, all.into_iter().collect())
}

#[test]
fn the_kernels_trees_read_as_the_kernel_reads_them() {
    for name in IMAGES {
        let volume = volume(name);
        let want = manifest(name);
        let (users, all) = all_inodes(&volume);
        assert!(users.keys().eq(want.keys()), "{name}: the same names");
        for (path, addr) in &users {
            let found = describe(&volume, *addr);
            let known = |key: &str| found.contains_key(key) || key.starts_with("x.");
            let want: BTreeMap<String, String> = want[path]
                .iter()
                .filter(|(key, value)| known(key) && !value.starts_with("pages:"))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            assert_eq!(found, want, "{name}: {path}");
        }
        volume.verify(&all, true).unwrap();
    }
}

/// FORMAT.md section 10: where the kernel put the far blocks of sparse files.
#[test]
fn metapaths_lead_where_the_kernel_put_the_block() {
    let volume = volume("clean4k");
    let (users, _) = all_inodes(&volume);
    let addr = users["./data/sparse_1G"];
    assert_eq!(addr.get(), 26021);
    let block = volume.read(addr).unwrap();
    let lblock = FileBlock::new(262_144);
    let crate::tree::Mapping::Data(run) = crate::tree::map(&volume, addr, &block, lblock, 9).unwrap() else {
        panic!("data there")
    };
    assert_eq!((run.start.get(), run.len), (26026, 1));
    let path = Metapath::of(volume.geometry(), lblock, 3).unwrap();
    assert_eq!(path.indexes(), [1, 6, 9]);
}

/// The kernel's large directory under our changes: many names in and out, all accounted for.
#[test]
fn a_directory_of_the_kernel_takes_our_changes() {
    for name in IMAGES {
        let mut volume = volume(name);
        let (users, all) = all_inodes(&volume);
        let dir = users["./big"];
        let old = volume.dinode(dir).unwrap().entries.get();
        for n in 0..3000u64 {
            let name = format!("added-{n}-{}", "x".repeat((n % 40) as usize));
            let num = InodeNum {
                formal: FormalIno::new(n + 1),
                addr: dir,
            };
            let entry = NewEntry {
                name: name.as_bytes(),
                num,
                kind: FileType::Regular,
                ea_follows: false,
            };
            insert(&mut volume, dir, &entry, NOW).unwrap();
        }
        volume.verify(&all, true).unwrap();
        let mut names = vec![];
        read_from(&volume, dir, Cookie::START, &mut |entry| {
            names.push(entry.name.to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(names.len() as u32, old + 3000);
        for name in &names {
            remove(&mut volume, dir, name, NOW).unwrap();
        }
        assert!(is_empty(&volume, dir).unwrap());
        volume.verify(&all, true).unwrap();
        let budget = StepBudget { frees: 50, edits: 20 };
        let mut cursor = LeafCursor::new();
        while let Some(block) = cursor.seek(&volume, dir).unwrap() {
            let group = volume.group_of(block).unwrap().clone();
            cursor
                .step(&mut volume, dir, budget, &|b| group.contains(b))
                .unwrap();
        }
        free_tree(&mut volume, dir, FreeCursor::new(FileBlock::new(0), None));
        assert_eq!(volume.dinode(dir).unwrap().blocks.get(), 1);
        volume.verify(&all, true).unwrap();
    }
}

fn free_tree(volume: &mut MemVolume, addr: BlockAddr, mut cursor: FreeCursor) {
    while let Some(block) = cursor.seek(volume, addr).unwrap() {
        let group = volume.group_of(block).unwrap().clone();
        let budget = StepBudget { frees: 500, edits: 5 };
        cursor.step(volume, addr, budget, &|b| group.contains(b)).unwrap();
    }
}

/// The kernel's files and xattrs under our changes, down to nothing.
#[test]
fn files_of_the_kernel_take_our_changes() {
    for name in IMAGES {
        let mut volume = volume(name);
        let (users, all) = all_inodes(&volume);
        let files: Vec<BlockAddr> = users
            .iter()
            .filter(|(path, _)| path.starts_with("./data/") || path.starts_with("./xattr/"))
            .map(|(_, addr)| *addr)
            .filter(|addr| volume.dinode(*addr).unwrap().file_type() == Some(FileType::Regular))
            .collect();
        assert!(files.len() > 20);
        for addr in &files {
            let usage = data_use(&volume.dinode(*addr).unwrap());
            for lblock in [1, 700, 1 << 30] {
                let got = map_or_alloc(&mut volume, *addr, FileBlock::new(lblock), 3).unwrap();
                for block in got.extent.blocks().filter(|_| got.new) {
                    volume.write_data(block, usage, b"x").unwrap();
                }
            }
            let ea = Xattrs::new(*addr, 1802);
            let left = ea
                .set(&mut volume, EaType::User, b"ours", &[1; 30_000], SetMode::Create)
                .unwrap();
            assert!(!left.0);
        }
        volume.verify(&all, true).unwrap();
        for addr in &files {
            // Its size is what the kernel left: what we wrote behind it goes first, then the rest.
            for size in [volume.dinode(*addr).unwrap().size.get() / 2, 0] {
                if let Some(cursor) = truncate_begin(&mut volume, *addr, size, NOW).unwrap() {
                    free_tree(&mut volume, *addr, cursor);
                    truncate_finish(&mut volume, *addr).unwrap();
                }
            }
            free_tree(&mut volume, *addr, FreeCursor::new(FileBlock::new(0), None));
            let mut cursor = EaCursor::dealloc();
            while let Some(block) = cursor.seek(&volume, *addr).unwrap() {
                let group = volume.group_of(block).unwrap().clone();
                let budget = StepBudget { frees: 9, edits: 3 };
                cursor
                    .step(&mut volume, *addr, budget, &|b| group.contains(b))
                    .unwrap();
            }
            assert_eq!(volume.dinode(*addr).unwrap().blocks.get(), 1);
        }
        volume.verify(&all, true).unwrap();
    }
}

/// Writes the volume as an image file.
fn save(volume: &MemVolume, path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    let bs = u64::from(volume.geometry().bsize());
    file.set_len(volume.geometry().end() * bs).unwrap();
    for n in 0..volume.geometry().end() {
        let block = volume.read(BlockAddr::new(n)).unwrap();
        if block.iter().any(|b| *b != 0) {
            file.write_all_at(&block, n * bs).unwrap();
        }
    }
}

/// Makes the master statfs file say what the resource groups say.
fn settle_statfs(volume: &mut MemVolume) {
    let master = volume.superblock().unwrap().master_dir.num().addr;
    let statfs = lookup(volume, master, b"statfs").unwrap().unwrap().num.addr;
    let sums = volume
        .groups()
        .iter()
        .fold([0u64; 3], |[total, free, dinodes], group| {
            let bytes = volume.read(group.addr()).unwrap();
            let rgrp = group.check_header(&bytes).unwrap();
            let (more, dinode) = (u64::from(rgrp.free.get()), u64::from(rgrp.dinodes.get()));
            [total + u64::from(group.data()), free + more, dinodes + dinode]
        });
    let content: Vec<u8> = sums.iter().flat_map(|n| n.to_be_bytes()).collect();
    volume.damage(statfs, |b| {
        b[DINODE_SIZE..DINODE_SIZE + 24].copy_from_slice(&content)
    });
}

fn link(volume: &mut MemVolume, dir: BlockAddr, name: &str, num: InodeNum, kind: FileType) {
    let entry = NewEntry {
        name: name.as_bytes(),
        num,
        kind,
        ea_follows: false,
    };
    insert(volume, dir, &entry, NOW).unwrap();
}

fn add_nlink(volume: &mut MemVolume, addr: BlockAddr, more: u32) {
    volume.damage(addr, |b| {
        let di: &mut Dinode = view_mut(b, 0, addr).unwrap();
        di.nlink = (di.nlink.get() + more).into();
    });
}

/// All our writers at once: names (linear, converted, split, doubled, renamed), trees grown, punched, cut and
/// resumed, xattrs of every layout.
fn change_everything(volume: &mut MemVolume, users: &BTreeMap<String, BlockAddr>) {
    let root = users["."];
    let file = volume.new_inode(FileType::Regular, DinodeFlags::empty()).unwrap();
    add_nlink(volume, file.addr, 6000);
    link(volume, root, "ours", file, FileType::Regular);
    for n in 0..5000 {
        link(
            volume,
            users["./big"],
            &format!("{}{n}", "y".repeat(n % 90)),
            file,
            FileType::Regular,
        );
    }
    for n in 0..1500 {
        let old = format!("f{n}");
        let was = remove(volume, users["./big"], old.as_bytes(), NOW).unwrap();
        link(
            volume,
            users["./big"],
            &format!("renamed {old}"),
            was.num,
            was.kind,
        );
    }
    let dir = volume.new_inode(FileType::Dir, DinodeFlags::JDATA).unwrap();
    add_nlink(volume, dir.addr, 1);
    add_nlink(volume, root, 1);
    link(volume, root, "our dir", dir, FileType::Dir);
    let up = NewEntry {
        name: b"..",
        num: volume.dinode(root).unwrap().inode_num(),
        kind: FileType::Dir,
        ea_follows: false,
    };
    replace(volume, dir.addr, &up, NOW).unwrap();
    for n in 0..1000 {
        link(volume, dir.addr, &format!("{n:0>200}"), file, FileType::Regular);
    }
    for (flags, name) in [(DinodeFlags::empty(), "sparse"), (DinodeFlags::JDATA, "jdata")] {
        let num = volume.new_inode(FileType::Regular, flags).unwrap();
        link(volume, dir.addr, name, num, FileType::Regular);
        for lblock in [0, 100, 2000, 300_000, 1 << 32] {
            let got = map_or_alloc(volume, num.addr, FileBlock::new(lblock), 90).unwrap();
            let usage = data_use(&volume.dinode(num.addr).unwrap());
            got.extent
                .blocks()
                .for_each(|block| volume.write_data(block, usage, b"data").unwrap());
        }
        let size = (1u64 << 33) * u64::from(volume.geometry().bsize());
        truncate_begin(volume, num.addr, size, NOW).unwrap();
        free_tree(
            volume,
            num.addr,
            FreeCursor::new(FileBlock::new(110), Some(FileBlock::new(200_000))),
        );
        let cursor = truncate_begin(volume, num.addr, 1 << 30, NOW).unwrap().unwrap();
        free_tree(volume, num.addr, cursor);
        truncate_finish(volume, num.addr).unwrap();
        let ea = Xattrs::new(num.addr, 1802);
        for n in 0..60usize {
            let name = format!("{name}{}", n % 45);
            let left = ea
                .set(
                    volume,
                    EaType::User,
                    name.as_bytes(),
                    &vec![7; n * n * 9],
                    SetMode::Any,
                )
                .unwrap();
            let mut cursor = EaCursor::reclaim();
            let budget = StepBudget { frees: 99, edits: 9 };
            assert_eq!(left.0, cursor.seek(volume, num.addr).unwrap().is_some());
            while cursor.seek(volume, num.addr).unwrap().is_some() {
                cursor.step(volume, num.addr, budget, &|_| true).unwrap();
            }
        }
    }
}

#[test]
fn the_reference_checker_finds_nothing_wrong_with_our_changes() {
    for (name, seed) in [
        ("clean4k", None),
        ("clean2k", Some(3)),
        ("clean1k", None),
        ("clean1k", Some(5)),
    ] {
        let mut volume = volume(name);
        if let Some(seed) = seed {
            volume.short_runs(seed);
        }
        let (users, _) = all_inodes(&volume);
        change_everything(&mut volume, &users);
        let (_, all) = all_inodes(&volume);
        volume.verify(&all, true).unwrap();
        settle_statfs(&mut volume);
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        save(&volume, &image);
        let output = Command::new("fsck.gfs2")
            .args(["-n", "-f"])
            .arg(&image)
            .output()
            .expect("fsck.gfs2 of gfs2-utils; run tests/lab/setup.sh as root");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{name}: {}\n{text}", output.status);
    }
}
