//! Goal: whatever the medium does or says, an answer comes: no panic, no hang, no write after a withdraw, no write to
//! where nothing belongs; the journal stays for recovery, and unmount works. Method: a populated volume, one fault or
//! one lie at a time, and every verb on everything that can be found.

mod node;

use fuse_gfs2::error::{FsError, FsResult};
use fuse_gfs2::glock::{GlockName, State};
use fuse_gfs2::ops::OpenFlags;
use fuse_gfs2::ops::types::{RenameMode, SetAttr, XattrMode};
use gfs2_format::device::{BlockDevice, Fault, FaultDevice, FaultOp, FaultRule, MemDevice};
use gfs2_format::ondisk::FileType;
use gfs2_format::volume::{Volume, resolve_path};
use gfs2_format::walk::{Role, Scope, owned_blocks};
use gfs2_format::{BlockAddr, damage};
use gfs2_fsck::Kind;
use node::judge::{self, Plain};
use node::record::LEFT_BY_A_CRASH;
use node::{Node, ROOT, Shape};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// One case may take so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What verbs answered.
#[derive(Default)]
struct Answers {
    errors: Vec<String>,
    /// Errors that are no usual refusal.
    bad: usize,
}

impl Answers {
    fn hear<T>(&mut self, verb: &str, result: FsResult<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                if error.errno().0 == libc::EIO {
                    self.bad += 1;
                }
                self.errors.push(format!("{verb}: {error}"));
                None
            }
        }
    }

    fn said(&self, word: &str) -> bool {
        self.errors.iter().any(|error| error.contains(word))
    }
}

/// A volume with one of everything: stuffed, deep and sparse files, a linear and a hashed directory, attributes of all
/// sizes, links.
fn populated() -> MemDevice {
    let device = Arc::new(Shape::small(1024).make());
    let node = Node::mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>)).expect("a mount");
    let fs = &node.fs;
    let mkdir = |parent: BlockAddr, name: &str| {
        let made = fs.mkdir(&ROOT, parent, name.as_bytes(), 0o755, 0);
        made.expect("a directory").attr.num.addr
    };
    let file = |parent: BlockAddr, name: &str, at: u64, len: usize| {
        let addr = node.create(parent, name.as_bytes()).expect("a file");
        let handle = fs.open(addr, OpenFlags::WRITE).expect("a file");
        let bytes = vec![7; len];
        let written = fs.write(&ROOT, handle, at, &bytes, false, false);
        assert_eq!(written.expect("to write"), len);
        fs.release(handle);
        addr
    };
    let root = node.root();
    file(root, "small", 0, 300);
    file(root, "big", 0, 300_000);
    file(root, "sparse", 5_000_000, 3000);
    let deep = mkdir(mkdir(root, "d"), "sub");
    mkdir(mkdir(deep, "a"), "b");
    file(deep, "f", 0, 2000);
    let hash = mkdir(root, "hash");
    for n in 0..60 {
        let name = format!("{n:0100}");
        node.create(hash, name.as_bytes()).expect("a file");
    }
    let attributed = file(root, "x", 0, 10);
    for (name, len) in [("user.a", 30), ("user.b", 600), ("user.c", 5000)] {
        let value = vec![1; len];
        fs.setxattr(&ROOT, attributed, name.as_bytes(), &value, XattrMode::Any)
            .expect("an attribute");
    }
    fs.symlink(&ROOT, root, b"l", b"small").expect("a link");
    node.unmount();
    judge::clean_but(&*device, &[], "populated");
    MemDevice::clone(&device)
}

/// Every verb that only looks, on everything below a directory.
fn look(
    node: &Node,
    dir: BlockAddr,
    depth: u32,
    answers: &mut Answers,
) -> Vec<(BlockAddr, String, BlockAddr, FileType)> {
    let fs = &node.fs;
    let mut found = Vec::new();
    let Some(handle) = answers.hear("opendir", fs.opendir(dir)) else {
        return found;
    };
    let mut names = Vec::new();
    let listed = fs.readdir(handle, 0, &mut |entry| {
        names.push((String::from_utf8_lossy(&entry.name).into_owned(), entry.kind));
        names.len() > 300
    });
    answers.hear("readdir", listed);
    fs.release(handle);
    for (name, kind) in names.into_iter().filter(|(name, _)| name != "." && name != "..") {
        let Some(entry) = answers.hear("lookup", fs.lookup(&ROOT, dir, name.as_bytes())) else {
            continue;
        };
        let addr = entry.attr.num.addr;
        found.push((dir, name, addr, kind));
        answers.hear("getattr", fs.getattr(addr));
        if let Some(list) = answers.hear("listxattr", fs.listxattr(&ROOT, addr)) {
            for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                answers.hear("getxattr", fs.getxattr(&ROOT, addr, name));
            }
        }
        match kind {
            FileType::Dir if depth < 8 => {
                answers.hear("lookup", fs.lookup(&ROOT, addr, b".."));
                found.extend(look(node, addr, depth + 1, answers));
            }
            FileType::Symlink => {
                answers.hear("readlink", fs.readlink(addr));
            }
            FileType::Regular => {
                if let Some(handle) = answers.hear("open", fs.open(addr, OpenFlags::READ)) {
                    for at in [0, 5_000_000] {
                        answers.hear("read", fs.read(handle, at, &mut vec![0; 400_000]));
                    }
                    fs.release(handle);
                }
            }
            _ => {}
        }
    }
    found
}

/// Every verb that changes, on all that was found.
fn meddle(node: &Node, found: &[(BlockAddr, String, BlockAddr, FileType)], answers: &mut Answers) {
    let fs = &node.fs;
    let sized = |size| SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    for (dir, name, addr, kind) in found
        .iter()
        .filter(|(_, name, _, _)| name.len() < 100 || name.ends_with('7'))
    {
        if *kind == FileType::Regular {
            if let Some(handle) = answers.hear("open", fs.open(*addr, OpenFlags::WRITE)) {
                for at in [0, 250_000, 6_000_000] {
                    let written = fs.write(&ROOT, handle, at, &[9; 5000], false, false);
                    // A short write tells, too.
                    let whole = answers.hear("write", written).is_none_or(|n| n == 5000);
                    answers.bad += usize::from(!whole);
                }
                answers.hear("fsync", fs.fsync(handle, false));
                fs.release(handle);
            }
            answers.hear("truncate", fs.setattr(&ROOT, *addr, &sized(100_000)));
        }
        answers.hear(
            "setxattr",
            fs.setxattr(&ROOT, *addr, b"user.b", &[2; 700], XattrMode::Any),
        );
        answers.hear("removexattr", fs.removexattr(&ROOT, *addr, b"user.c"));
        let other = format!("{name}-moved");
        let mode = RenameMode::Replace;
        let moved = fs.rename(&ROOT, *dir, name.as_bytes(), node.root(), other.as_bytes(), mode);
        if answers.hear("rename", moved).is_some() && *kind == FileType::Regular {
            answers.hear("unlink", fs.unlink(&ROOT, node.root(), other.as_bytes()));
            fs.forget(*addr, u64::MAX);
        }
        answers.hear(
            "create",
            node.fs
                .mkdir(&ROOT, *dir, format!("{name}+").as_bytes(), 0o755, 0),
        );
    }
    answers.hear("sync", fs.sync());
}

/// Runs a case on a thread of its own; one that does not end ends the test.
fn in_time(what: &str, case: impl FnOnce() + Send + 'static) {
    let (done, ended) = channel();
    let runner = thread::spawn(move || {
        case();
        let _nobody = done.send(());
    });
    if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
        eprintln!("{what}: no end");
        std::process::abort();
    }
    assert!(runner.join().is_ok(), "{what}: a panic");
}

/// After a withdraw nothing is written any more, what reads is refused, and unmount works.
fn after(node: Node, device: &FaultDevice<MemDevice>, what: &str) {
    let withdrawn = node.cache.health().is_withdrawn();
    if withdrawn {
        let before = device.counts();
        // Figures may still be known: that it answers is all that is asked of it.
        let _answered = node.fs.statfs();
        let refused = node.fs.mkdir(&ROOT, node.root(), b"late", 0o755, 0);
        assert!(refused.is_err(), "{what}: a change after a withdraw");
        assert!(
            node.fs.getattr(node.root()).is_err(),
            "{what}: a read after a withdraw"
        );
        let root = GlockName::inode(node.root().get());
        node.glocks.demote(root, State::Un);
        assert!(node.journal.maintain(true).is_err(), "{what}");
        let _ended = node.end();
        let after = device.counts();
        assert_eq!(
            (before.writes, before.discards),
            (after.writes, after.discards),
            "{what}: a late write"
        );
    } else {
        // The last writes may fail as well as any.
        let _ended = node.end();
    }
}

/// EIO after the `n`-th operation of a kind, for once or for ever; afterwards the volume recovers.
fn fail_at(populated: &MemDevice, op: FaultOp, fault: Fault, n: u64, times: u64) -> bool {
    let device = Arc::new(FaultDevice::new(populated.clone()));
    let what = format!("{op:?} {n}, {times} times, {fault:?}");
    let node = Node::mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>)).expect("a mount");
    device.add(FaultRule::always(op, fault).after(n).times(times));
    let mut answers = Answers::default();
    let found = look(&node, node.root(), 0, &mut answers);
    meddle(&node, &found, &mut answers);
    let health = Arc::clone(node.cache.health());
    after(node, &device, &what);
    let (withdrawn, met) = (health.cause(), device.counts().faults > 0);
    if met {
        let told = answers.bad > 0 || withdrawn.is_some();
        // A read may have been nothing but reading ahead, or for an access time; a write of data is tried again.
        assert!(
            told || op == FaultOp::Read || times == 1,
            "{what}: nobody was told"
        );
        if let Some(cause) = &withdrawn {
            assert!(
                cause.contains("fatal: ") || cause.contains("Error "),
                "{what}: {cause}"
            );
        }
        let named = |text: &str| text.contains("byte") || text.contains("block") || text.contains("flush");
        let errors: Vec<&String> = answers
            .errors
            .iter()
            .filter(|e| e.contains("Input/output"))
            .collect();
        assert!(errors.iter().all(|e| named(e)), "{what}: {errors:?}");
    }
    // Only a write of file data may fail and leave the node alive.
    let lives = matches!(op, FaultOp::Read | FaultOp::Write);
    assert!(!met || lives || withdrawn.is_some(), "{what}: no withdraw");
    let image = device.base().clone();
    judge::replay(&image).unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut allowed = LEFT_BY_A_CRASH.to_vec();
    if op == FaultOp::Read {
        // A change of the totals that could not be folded at the end stays the node's own.
        allowed.extend([Kind::LocalStatfs, Kind::Statfs]);
    }
    judge::clean_but(&image, &allowed, &what);
    let again = Node::mount(&(Arc::new(image) as Arc<dyn BlockDevice>));
    let again = again.unwrap_or_else(|e| panic!("{what}: {e}"));
    again
        .fs
        .reclaim_orphans()
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    again.unmount();
    met
}

/// Faults at ever later operations, until none is met any more.
fn fail_everywhere(op: FaultOp, fault: Fault, times: u64, stride: u64) {
    let volume = populated();
    let mut met = 0;
    for n in 0.. {
        // Dense at the start, then in strides that hit different kinds of blocks.
        let at = if n < 12 { n } else { 12 + (n - 12) * stride };
        let volume = volume.clone();
        let (send, answer) = channel();
        in_time(&format!("{op:?} {at}"), move || {
            let _nobody = send.send(fail_at(&volume, op, fault, at, times));
        });
        if !answer.recv().expect("an answer") {
            break;
        }
        met += 1;
    }
    println!("{op:?}, {fault:?}: {met} faults met");
    assert!(met > 10, "only {met} faults met");
}

#[test]
fn a_write_that_fails_once() {
    fail_everywhere(FaultOp::Write, Fault::Errno(libc::EIO), 1, 1);
}

#[test]
fn writes_that_fail_from_some_moment_on() {
    fail_everywhere(
        FaultOp::Write,
        Fault::Torn {
            sectors: 1,
            errno: libc::EIO,
        },
        u64::MAX,
        3,
    );
}

#[test]
fn a_flush_that_fails() {
    fail_everywhere(FaultOp::Flush, Fault::Errno(libc::EIO), 1, 1);
}

#[test]
fn a_read_that_fails() {
    fail_everywhere(FaultOp::Read, Fault::Errno(libc::EIO), 1, 3);
    fail_everywhere(FaultOp::Read, Fault::Errno(libc::EIO), u64::MAX, 11);
}

/// Where things are on the populated volume.
struct Map<'a> {
    device: &'a MemDevice,
    volume: Volume,
}

impl Map<'_> {
    fn plain(&self) -> Plain<'_> {
        Plain {
            device: self.device,
            geometry: &self.volume.geometry,
        }
    }

    fn path(&self, path: &str) -> BlockAddr {
        let root = self.volume.system.root;
        resolve_path(&self.plain(), root, path.as_bytes()).expect("a path")
    }

    /// The `n`-th block of a role.
    fn owned(&self, path: &str, n: usize, wanted: impl Fn(Role) -> bool) -> BlockAddr {
        let mut blocks = Vec::new();
        owned_blocks(&self.plain(), self.path(path), Scope::All, &mut |owned| {
            if wanted(owned.role) {
                blocks.extend(owned.extent.blocks());
            }
            Ok(())
        })
        .expect("a walk");
        blocks[n]
    }

    fn group(&self, n: usize) -> BlockAddr {
        judge::groups(self.device, &self.volume).expect("groups")[n]
    }
}

/// A lie: its name, its script, and what somebody must say of it (nothing: it may go unnoticed).
struct Lie {
    name: &'static str,
    script: String,
    said: Vec<String>,
}

fn lies(map: &Map<'_>) -> Vec<Lie> {
    let mut lies = Vec::new();
    let mut lie = |name, script: String, said: &[&str]| {
        let said = said.iter().map(|word| (*word).to_owned()).collect();
        lies.push(Lie { name, script, said });
    };
    let is_leaf = |role| matches!(role, Role::Leaf(_));
    let is_ea = |role| matches!(role, Role::Ea);
    let indirect = map.owned("big", 0, |role| role == Role::Indirect);
    let (leaf, leaf2) = (map.owned("hash", 0, is_leaf), map.owned("hash", 1, is_leaf));
    let ea = map.owned("x", 0, is_ea);
    let file = map.path("d/sub/f");
    let (dir, sub, a, b) = (
        map.path("d"),
        map.path("d/sub"),
        map.path("d/sub/a"),
        map.path("d/sub/a/b"),
    );
    let at = |addr: BlockAddr| addr.to_string();
    let (group, data) = (
        map.group(0),
        map.owned("big", 3, |role| matches!(role, Role::Data(_))),
    );

    lie("no dinode", format!("zero block {file}"), &[&at(file)]);
    lie(
        "no magic",
        format!("set dinode(block {file}).mh_magic = 1"),
        &[&at(file), "mh_magic"],
    );
    lie(
        "another type",
        format!("set dinode(block {file}).mh_type = 5"),
        &[&at(file), "mh_type"],
    );
    lie(
        "address of another",
        format!("set dinode(block {file}).no_addr = 5"),
        &[&at(file)],
    );
    lie(
        "formal number of another",
        format!("set dinode(block {file}).no_formal_ino = 5"),
        &[],
    );
    lie(
        "a mode of nothing",
        format!("set dinode(block {file}).di_mode = 0"),
        &[],
    );
    lie(
        "a directory's mode",
        format!("set dinode(block {file}).di_mode = 0x41ed"),
        &[],
    );
    lie(
        "too high",
        format!("set dinode(block {file}).di_height = 200"),
        &["di_height"],
    );
    lie(
        "too deep",
        "set dinode(/hash).di_depth = 40".into(),
        &["di_depth"],
    );
    lie("another depth", "set dinode(/hash).di_depth = 2".into(), &[]);
    lie("no size", "set dinode(/hash).di_size = 0".into(), &[]);
    lie(
        "a huge size, stuffed",
        "set dinode(/small).di_size = 0x7fffffffffffffff".into(),
        &["di_size"],
    );
    lie(
        "a negative size",
        "set dinode(/big).di_size = 0xffffffffffffffff".into(),
        &[],
    );
    lie("no links", format!("set dinode(block {file}).di_nlink = 0"), &[]);
    lie("too few blocks", "set dinode(/big).di_blocks = 0".into(), &[]);
    lie(
        "pointer beyond the end",
        "set pointer(/big, 0) = 0xffffffffff".into(),
        &["pointer"],
    );
    lie(
        "pointer to the superblock",
        "set pointer(/big, 0) = 64".into(),
        &["64"],
    );
    lie(
        "pointer to a journal",
        {
            let journal = map.volume.journals[0]
                .map
                .address(gfs2_format::JournalBlock::new(9));
            format!("set pointer(/big, 0) = {}", journal.expect("a block"))
        },
        &[],
    );
    lie(
        "data pointer beyond the end",
        format!("set pointer(block {indirect}, 2) = 0xffffffffff"),
        &[],
    );
    lie(
        "data pointer to a group header",
        format!("set pointer(block {indirect}, 2) = {group}"),
        &[],
    );
    lie(
        "data pointer to the superblock",
        format!("set pointer(block {indirect}, 2) = 64"),
        &[],
    );
    lie(
        "no indirect block",
        format!("zero block {indirect}"),
        &[&at(indirect)],
    );
    lie(
        "indirect block to itself",
        format!("set pointer(block {indirect}, 3) = {indirect}"),
        &[],
    );
    lie(
        "tree to itself",
        format!("set pointer(/big, 1) = {}", map.path("big")),
        &[],
    );
    lie("no leaf", format!("zero block {leaf}"), &[&at(leaf)]);
    lie(
        "leaf to itself",
        format!("set leaf(block {leaf}).lf_next = {leaf}"),
        &[&at(leaf)],
    );
    lie(
        "leaves in a ring",
        format!("set leaf(block {leaf}).lf_next = {leaf2}\nset leaf(block {leaf2}).lf_next = {leaf}"),
        &[],
    );
    lie(
        "leaf beyond the end",
        format!("set leaf(block {leaf}).lf_next = 0xffffffffff"),
        &[&at(leaf)],
    );
    lie(
        "leaf too deep",
        format!("set leaf(block {leaf}).lf_depth = 90"),
        &[&at(leaf)],
    );
    lie(
        "leaf's count",
        format!("set leaf(block {leaf}).lf_entries = 9999"),
        &[&at(leaf)],
    );
    lie("slot to nothing", "set pointer(/hash, 0) = 0".into(), &[]);
    lie(
        "slot to a file",
        format!("set pointer(/hash, 0) = {file}"),
        &[&at(file)],
    );
    lie(
        "entry without length",
        "set dirent(/d/sub/f).de_rec_len = 0".into(),
        &["de_rec_len"],
    );
    lie(
        "entry too long",
        "set dirent(/d/sub/f).de_rec_len = 0xffff".into(),
        &["de_rec_len"],
    );
    lie(
        "name too long",
        "set dirent(/d/sub/f).de_name_len = 0xffff".into(),
        &["de_name_len"],
    );
    lie(
        "entry beyond the end",
        "set dirent(/d/sub/f).no_addr = 0xffffffffff".into(),
        &["no_addr"],
    );
    lie(
        "entry to a bitmap",
        format!("set dirent(/d/sub/f).no_addr = {group}"),
        &[&at(group)],
    );
    lie(
        "entry of another type",
        "set dirent(/d/sub/f).de_type = 4".into(),
        &[],
    );
    lie("entries", "set dinode(/d/sub).di_entries = 77".into(), &[]);
    lie(
        "directory in itself",
        format!("set dirent(/d/sub/a).no_addr = {sub}\nset dirent(/d/sub/a).no_formal_ino = 0"),
        &[],
    );
    lie(
        "parent is the child",
        format!("set dirent(/d/sub/..).no_addr = {b}"),
        &[],
    );
    lie(
        "parents in a ring",
        format!("set dirent(/d/..).no_addr = {a}\nset dirent(/d/sub/..).no_addr = {b}"),
        &[],
    );
    lie("no attribute block", format!("zero block {ea}"), &[&at(ea)]);
    lie(
        "attribute without length",
        format!("set ea_header(block {ea} at 24).ea_rec_len = 0"),
        &["ea_rec_len"],
    );
    lie(
        "attribute too long",
        format!("set ea_header(block {ea} at 24).ea_rec_len = 0xffffff"),
        &["ea_rec_len"],
    );
    lie(
        "attribute of many blocks",
        format!("set ea_header(block {ea} at 24).ea_num_ptrs = 255"),
        &[],
    );
    lie(
        "attributes nowhere",
        "set dinode(/x).di_eattr = 0xffffffffff".into(),
        &["di_eattr"],
    );
    lie(
        "attributes in the inode",
        format!("set dinode(/x).di_eattr = {}", map.path("x")),
        &[],
    );
    lie("no group header", format!("zero block {group}"), &[&at(group)]);
    lie("group's sum", "set rgrp(0).rg_free = 5".into(), &[]);
    lie(
        "group's count",
        "set rgrp(0).rg_free = 0xffffff, fix crc".into(),
        &[],
    );
    lie(
        "group's dinodes",
        "set rgrp(0).rg_dinodes = 0, fix crc".into(),
        &[],
    );
    lie(
        "no bitmap",
        format!("zero block {}", group.get() + 1),
        &[&at(BlockAddr::new(group.get() + 1))],
    );
    lie("used block free", format!("bitmap block {data} = free"), &[]);
    lie(
        "used block an inode",
        format!("bitmap block {data} = dinode"),
        &[&at(data)],
    );
    lie("inode free", format!("bitmap block {file} = free"), &[&at(file)]);
    lie("inode unlinked", format!("bitmap block {file} = unlinked"), &[]);
    lie("directory free", format!("bitmap block {dir} = free"), &[]);
    lie("totals", "set statfs.sc_free = 0x7fffffffffffffff".into(), &[]);
    lies
}

/// Runs every verb on a volume with one lie.
fn meet(volume: &MemDevice, lie: &Lie) {
    let image = volume.clone();
    damage::run(&lie.script, &image).unwrap_or_else(|e| panic!("{}: {e}", lie.name));
    let device = Arc::new(FaultDevice::new(image));
    let start = sectors(device.base());
    let what = lie.name;
    let mut answers = Answers::default();
    let mut cause = None;
    match Node::mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>)) {
        // A mount may refuse, with a word.
        Err(error) => answers.errors.push(error.to_string()),
        Ok(node) => {
            if let Err(error) = node.fs.reclaim_orphans() {
                answers.errors.push(error.to_string());
            }
            let found = look(&node, node.root(), 0, &mut answers);
            meddle(&node, &found, &mut answers);
            cause = node.cache.health().cause();
            after(node, &device, what);
        }
    }
    let text = answers.errors.join("\n") + "\n" + cause.as_deref().unwrap_or("");
    for word in &lie.said {
        assert!(text.contains(word), "{what}: nobody said {word}:\n{text}");
    }
    assert!(
        !answers.said("past the device"),
        "{what}: I/O outside of the volume:\n{text}"
    );
    assert_eq!(
        sectors(device.base()),
        start,
        "{what}: the boot area or the superblock was written"
    );
}

/// The first 64 KiB and the superblock: nothing of the driver's business.
fn sectors(device: &MemDevice) -> Vec<u8> {
    let mut bytes = vec![0; 65536 + 1024];
    device.read_at(0, &mut bytes).expect("to read");
    bytes
}

#[test]
fn lies_on_the_medium_are_answered() {
    let volume = populated();
    let map = Map {
        volume: Volume::open(&volume).expect("a volume"),
        device: &volume,
    };
    let lies = lies(&map);
    println!("{} lies", lies.len());
    let mut failed = Vec::new();
    for lie in lies {
        let (name, volume) = (lie.name, volume.clone());
        let case = move || in_time(name, move || meet(&volume, &lie));
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(case)).is_err() {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

/// Goal: damage that makes a node withdraw is written down nowhere else: the journal stays as it was for recovery.
/// Method: a bitmap that contradicts an inode; what was committed before is there after recovery.
#[test]
fn a_withdraw_leaves_what_was_synced_to_recovery() {
    let image = populated();
    let map = Map {
        volume: Volume::open(&image).expect("a volume"),
        device: &image,
    };
    let doomed = map.owned("big", 3, |role| matches!(role, Role::Data(_)));
    damage::run(&format!("bitmap block {doomed} = free"), &image).expect("a lie");
    let device = Arc::new(FaultDevice::new(image.clone()));
    let node = Node::mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>)).expect("a mount");
    let kept = node.create(node.root(), b"kept").expect("a file");
    let handle = node.fs.open(kept, OpenFlags::WRITE).expect("a file");
    node.fs
        .write(&ROOT, handle, 0, &[3; 100], false, false)
        .expect("to write");
    node.fs.fsync(handle, false).expect("to sync");
    node.fs.release(handle);
    let big = node
        .fs
        .lookup(&ROOT, node.root(), b"big")
        .expect("a file")
        .attr
        .num
        .addr;
    node.fs.unlink(&ROOT, node.root(), b"big").expect("to unlink");
    node.fs.forget(big, 1);
    let cause = node.cache.health().cause().expect("a withdraw");
    assert!(cause.contains(&doomed.to_string()), "{cause}");
    let refused = node.fs.sync().expect_err("a sync after a withdraw");
    assert!(matches!(refused, FsError::Withdrawn(_)), "{refused}");
    after(node, &device, "withdraw");
    let image = device.base().clone();
    judge::replay(&image).expect("a replay");
    let again = Node::mount(&(Arc::new(image) as Arc<dyn BlockDevice>)).expect("a mount");
    let found = again
        .fs
        .lookup(&ROOT, again.root(), b"kept")
        .expect("what was synced");
    assert_eq!(again.read_all(found.attr.num.addr), Ok(vec![3; 100]));
    again.unmount();
}
