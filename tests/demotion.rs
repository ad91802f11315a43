//! Goal: locks may be taken away at any moment, and nothing is lost, stale or stuck: the rehearsal of the cluster.
//! Method: workers of every kind on one node (files, directories, mapped pages), while a demoter takes away any lock
//! in any way, and a second member of the lockspace, who knows nothing but `gfs2-format`, locks inodes and groups and
//! looks at the device.
//!
//! `DEMOTION_SEEDS=n` runs n more seeds, `DEMOTION_ROUNDS=n` runs n times as long as the shortest (3).

mod node;

use dlm_client::{Dlm, JoinOptions, Leave, LocalDlm};
use fastrand::Rng;
use fuse_gfs2::error::Errno;
use fuse_gfs2::glock::{
    GlockGuard, GlockName, GlockOps, GlockTable, HolderFlags, LockType, Presence, State, TableOptions,
};
use fuse_gfs2::ops::types::{RenameMode, SetAttr};
use fuse_gfs2::ops::{FsOptions, OpenFlags};
use gfs2_format::bitmap::decode_rindex;
use gfs2_format::device::{BlockDevice, MemDevice};
use gfs2_format::dir::{Cookie, read_from};
use gfs2_format::ondisk::BlockState;
use gfs2_format::volume::{Volume, read_file};
use gfs2_format::{BlockAddr, BlockRead};
use node::judge::Plain;
use node::pages::{Mapped, PAGE, PageCaches};
use node::tree::errno;
use node::{Node, NodeOptions, ROOT, Shape, judge, seeds};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// After this long without an end, somebody waits for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// The second member of the lockspace.
struct Reader {
    device: Arc<MemDevice>,
    volume: Volume,
    glocks: GlockTable,
    presence: Arc<dyn GlockOps>,
}

impl Reader {
    fn join(device: &Arc<MemDevice>, dlm: &LocalDlm) -> Self {
        let (space, queue) = dlm.join("fs", &JoinOptions::default()).expect("a lockspace");
        Self {
            device: Arc::clone(device),
            volume: Volume::open(&**device).expect("a volume"),
            glocks: GlockTable::new(space, queue, TableOptions::default()).expect("a lock table"),
            presence: Arc::new(Presence),
        }
    }

    /// Takes a lock from the node; it goes back when it is let go.
    fn lock(&self, name: GlockName, state: State) -> GlockGuard {
        let glock = self.glocks.get(name, &self.presence).expect("a lock");
        glock
            .acquire(state, HolderFlags::NOCACHE | HolderFlags::NOPID)
            .expect("a grant")
    }

    /// Asks for a lock that is held for the life of the mount: the holder hears of it, and keeps it.
    fn knock(&self, name: GlockName, state: State) {
        let glock = self.glocks.get(name, &self.presence).expect("a lock");
        let flags = HolderFlags::TRY_1CB | HolderFlags::NOCACHE | HolderFlags::NOPID;
        drop(glock.try_acquire(state, flags).expect("an answer"));
    }

    fn plain(&self) -> Plain<'_> {
        Plain {
            device: &*self.device,
            geometry: &self.volume.geometry,
        }
    }

    /// The bytes of a file as they stand on the device.
    fn file(&self, addr: BlockAddr) -> Vec<u8> {
        let _lock = self.lock(GlockName::inode(addr.get()), State::Sh);
        read_file(&self.plain(), addr, 1 << 24).expect("a file")
    }

    /// The names in a directory as they stand on the device.
    fn names(&self, addr: BlockAddr) -> BTreeSet<String> {
        let _lock = self.lock(GlockName::inode(addr.get()), State::Sh);
        let mut names = BTreeSet::new();
        let listed = read_from(&self.plain(), addr, Cookie::default(), &mut |entry| {
            let name = String::from_utf8_lossy(entry.name).into_owned();
            if name != "." && name != ".." {
                assert!(names.insert(name), "a name twice");
            }
            ControlFlow::Continue(())
        });
        assert!(listed.expect("a directory"));
        names
    }

    /// Header and bitmaps of a group must tell the same story.
    fn group(&self, addr: BlockAddr) {
        let plain = self.plain();
        let rindex = self.volume.system.rindex;
        let content = read_file(&plain, rindex, 1 << 24).expect("the resource index");
        let groups = decode_rindex(&content, rindex, &self.volume.geometry).expect("an index");
        let layout = groups.iter().find(|g| g.addr() == addr).expect("the group");
        let _lock = self.lock(GlockName::rgrp(addr.get()), State::Sh);
        let block = plain.read(addr).expect("a header");
        let header = layout.check_header(&block).expect("a header");
        let mut counts = [0u32; 4];
        for slice in layout.slices() {
            let bytes = plain.read(slice.block).expect("a bitmap");
            for (sum, n) in counts.iter_mut().zip(slice.count(&bytes).expect("a bitmap")) {
                *sum += n;
            }
        }
        let of = |state: BlockState| counts[state as usize];
        let dinodes = of(BlockState::Dinode) + of(BlockState::Unlinked);
        assert_eq!(
            (header.free.get(), header.dinodes.get()),
            (of(BlockState::Free), dinodes),
            "group {addr}"
        );
    }
}

/// What all threads share.
struct Stage {
    node: Node,
    reader: Reader,
    caches: Arc<PageCaches>,
    rounds: u32,
    /// Inodes whose locks are worth taking away.
    known: Mutex<Vec<BlockAddr>>,
    stop: AtomicBool,
}

impl Stage {
    fn know(&self, addr: BlockAddr) {
        let mut known = self.known.lock().expect("a whole test");
        if known.len() >= 200 {
            known.swap_remove(7);
        }
        known.push(addr);
    }

    fn file(&self, dir: BlockAddr, name: &str) -> BlockAddr {
        let addr = self.node.create(dir, name.as_bytes()).expect("a file");
        self.know(addr);
        addr
    }

    fn mkdir(&self, name: &str) -> BlockAddr {
        let made = self
            .node
            .fs
            .mkdir(&ROOT, self.node.root(), name.as_bytes(), 0o755, 0);
        let addr = made.expect("a directory").attr.num.addr;
        self.know(addr);
        addr
    }
}

/// Takes any lock away, in any way, at any moment.
fn demoter(stage: &Stage, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let (glocks, system) = (&stage.node.glocks, stage.reader.volume.system);
    while !stage.stop.load(Ordering::Relaxed) {
        let name = match rng.u32(..10) {
            0..=5 => {
                let known = stage.known.lock().expect("a whole test");
                GlockName::inode(known[rng.usize(..known.len())].get())
            }
            6..=7 => GlockName::rgrp(stage.node.groups[rng.usize(..stage.node.groups.len())].get()),
            8 => GlockName::inode(if rng.bool() { system.statfs } else { system.rindex }.get()),
            _ => GlockName::inode(stage.node.root().get()),
        };
        let state = if rng.bool() { State::Un } else { State::Sh };
        match rng.u32(..8) {
            0..=4 => {
                glocks.demote(name, state);
            }
            5 => drop(stage.reader.lock(name, State::Sh)),
            6 => drop(stage.reader.lock(name, State::Ex)),
            _ => {
                stage
                    .reader
                    .knock(GlockName::new(LockType::Journal, 0), State::Ex);
                stage
                    .reader
                    .knock(GlockName::new(LockType::Iopen, name.number), State::Ex);
            }
        }
        thread::sleep(Duration::from_micros(rng.u64(..1500)));
    }
}

/// Looks at groups on the device.
fn looker(stage: &Stage, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    while !stage.stop.load(Ordering::Relaxed) {
        stage
            .reader
            .group(stage.node.groups[rng.usize(..stage.node.groups.len())]);
        thread::sleep(Duration::from_millis(rng.u64(..8)));
    }
}

/// As fsx: writes, truncates and reads of a file that is compared with one in memory; now and then by the reader.
fn exerciser(stage: &Stage, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let addr = stage.file(stage.node.root(), &format!("fsx{seed}"));
    let fs = &stage.node.fs;
    let handle = fs.open(addr, OpenFlags::READ | OpenFlags::WRITE).expect("a file");
    let mut model: Vec<u8> = Vec::new();
    for round in 0..900 * stage.rounds {
        match rng.u32(..10) {
            0..=3 => {
                let (at, len) = (rng.usize(..120_000), rng.usize(1..40_000));
                let fill = (round as u8) | 1;
                let written = fs.write(&ROOT, handle, at as u64, &vec![fill; len], false, false);
                assert_eq!(written.expect("to write"), len);
                model.resize(model.len().max(at + len), 0);
                model[at..at + len].fill(fill);
            }
            4 => {
                let size = rng.usize(..150_000);
                let set = SetAttr {
                    size: Some(size as u64),
                    ..SetAttr::default()
                };
                fs.setattr(&ROOT, addr, &set).expect("to truncate");
                model.resize(size, 0);
            }
            5..=7 => {
                let mut buf = vec![0xee; 30_000];
                let at = rng.usize(..=model.len());
                let n = fs.read(handle, at as u64, &mut buf).expect("to read");
                let want = &model[at..(at + buf.len()).min(model.len())];
                assert!(
                    buf[..n] == *want,
                    "seed {seed}, round {round}: other bytes at {at}"
                );
            }
            8 => fs.fsync(handle, rng.bool()).expect("to sync"),
            _ => assert!(
                stage.reader.file(addr) == model,
                "seed {seed}, round {round}: the reader sees other bytes"
            ),
        }
    }
    fs.release(handle);
}

/// A file that holds one number all over: whoever locks it sees one number, no older than what was acknowledged.
struct Counter {
    addr: BlockAddr,
    begun: AtomicU64,
    ended: AtomicU64,
}

const COUNTER_WORDS: usize = 3000;

impl Counter {
    fn check(bytes: &[u8], least: u64, most: u64, who: &str) {
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
            .collect();
        let number = words.first().copied().unwrap_or(0);
        assert!(
            words.iter().all(|word| *word == number),
            "{who} sees a torn write"
        );
        assert!(
            (least..=most).contains(&number),
            "{who} sees {number}, not one of {least}..={most}"
        );
    }

    fn write(&self, stage: &Stage) {
        let fs = &stage.node.fs;
        let handle = fs.open(self.addr, OpenFlags::WRITE).expect("a file");
        for number in 1..=u64::from(700 * stage.rounds) {
            self.begun.store(number, Ordering::SeqCst);
            let bytes: Vec<u8> = std::iter::repeat_n(number.to_le_bytes(), COUNTER_WORDS)
                .flatten()
                .collect();
            fs.write(&ROOT, handle, 0, &bytes, false, false)
                .expect("to write");
            self.ended.store(number, Ordering::SeqCst);
            if number % 32 == 0 {
                fs.fsync(handle, false).expect("to sync");
            }
        }
        fs.release(handle);
    }

    fn watch(&self, stage: &Stage) {
        while !stage.stop.load(Ordering::Relaxed) {
            let least = self.ended.load(Ordering::SeqCst);
            let own = stage.node.read_all(self.addr).expect("to read");
            Self::check(&own, least, self.begun.load(Ordering::SeqCst), "the node");
            let least = self.ended.load(Ordering::SeqCst);
            let bytes = stage.reader.file(self.addr);
            Self::check(&bytes, least, self.begun.load(Ordering::SeqCst), "the reader");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Stores into mapped pages, which nobody is told of.
fn mapper(stage: &Stage, seed: u64) {
    const PAGES: usize = 24;
    let mut rng = Rng::with_seed(seed);
    let addr = stage.file(stage.node.root(), &format!("map{seed}"));
    let set = SetAttr {
        size: Some((PAGES * PAGE) as u64),
        ..SetAttr::default()
    };
    stage.node.fs.setattr(&ROOT, addr, &set).expect("a size");
    let mapped = Mapped::new(&stage.node.fs, addr, PAGES);
    stage.caches.add(&mapped);
    let mut model = vec![0u8; PAGES * PAGE];
    let mut writable = false;
    for round in 0..2500 * stage.rounds {
        let (page, at) = (rng.usize(..PAGES), rng.usize(..PAGE - 100));
        let bytes: Vec<u8> = (0..rng.usize(1..100)).map(|_| rng.u8(..)).collect();
        match rng.u32(..20) {
            0..=7 if writable => {
                mapped.store(page, at, &bytes);
                model[page * PAGE + at..][..bytes.len()].copy_from_slice(&bytes);
            }
            8..=10 if writable => {
                mapped.write(page, at, &bytes);
                model[page * PAGE + at..][..bytes.len()].copy_from_slice(&bytes);
            }
            11 if writable => mapped.sync(),
            12 => {
                if writable {
                    mapped.close_writable();
                } else {
                    mapped.open_writable();
                }
                writable = !writable;
            }
            13 => assert!(
                stage.reader.file(addr) == model,
                "seed {seed}, round {round}: the reader sees other bytes than were stored"
            ),
            _ => assert!(
                mapped.load(page) == model[page * PAGE..][..PAGE],
                "seed {seed}, round {round}: page {page} is stale"
            ),
        }
    }
    mapped.close();
    assert!(stage.reader.file(addr) == model, "seed {seed}: at the end");
}

fn may_fail(result: Result<(), Errno>) {
    const USUAL: [Errno; 7] = [
        Errno::EEXIST,
        Errno::ENOENT,
        Errno::ENOTEMPTY,
        Errno::EISDIR,
        Errno::ENOTDIR,
        Errno::EINVAL,
        Errno::ESTALE,
    ];
    if let Err(errno) = result {
        assert!(USUAL.contains(&errno), "{errno:?}");
    }
}

/// Churns a directory of its own, which the reader compares with a set; and shared ones, in which others meddle.
fn churner(stage: &Stage, seed: u64, shared: &[BlockAddr]) {
    let mut rng = Rng::with_seed(seed);
    let fs = &stage.node.fs;
    let own = stage.mkdir(&format!("dir{seed}"));
    let mut names = BTreeSet::new();
    for round in 0..700 * stage.rounds {
        let name = format!("{}{}", "n".repeat(rng.usize(1..60)), rng.u32(..40));
        let dir = shared[rng.usize(..shared.len())];
        match rng.u32(..9) {
            0..=2 if names.insert(name.clone()) => {
                let addr = stage.file(own, &name);
                fs.forget(addr, 1);
            }
            3..=4 => {
                if let Some(name) = names.pop_first() {
                    fs.unlink(&ROOT, own, name.as_bytes()).expect("to unlink");
                }
            }
            5 => {
                let made = fs.mkdir(&ROOT, dir, name.as_bytes(), 0o755, 0);
                may_fail(errno(made.map(|entry| fs.forget(entry.attr.num.addr, 1))));
                may_fail(errno(fs.rmdir(&ROOT, dir, name.as_bytes())));
            }
            6 => {
                let made = fs.create(&ROOT, dir, name.as_bytes(), 0o644, 0, false, OpenFlags::WRITE);
                may_fail(errno(made.map(|(entry, handle, _)| {
                    let bytes = vec![1; rng.usize(1..20_000)];
                    fs.write(&ROOT, handle, 0, &bytes, false, false)
                        .expect("to write");
                    fs.release(handle);
                    fs.forget(entry.attr.num.addr, 1);
                })));
                may_fail(errno(fs.unlink(&ROOT, dir, name.as_bytes())));
            }
            7 => {
                let other = shared[rng.usize(..shared.len())];
                let old = format!("n{}", rng.u32(..40));
                let mode = RenameMode::Replace;
                may_fail(errno(fs.rename(
                    &ROOT,
                    dir,
                    old.as_bytes(),
                    other,
                    name.as_bytes(),
                    mode,
                )));
            }
            _ => assert_eq!(
                stage.reader.names(own),
                names,
                "seed {seed}, round {round}: the reader sees other names"
            ),
        }
    }
}

type Work<'a> = Box<dyn FnOnce() + Send + 'a>;

/// Runs workers to their end beside those that run until then. Fails the test when there is no end.
fn play(stage: &Stage, workers: Vec<Work<'_>>, others: Vec<Work<'_>>) {
    thread::scope(|scope| {
        let (done, ended) = channel();
        let count = workers.len();
        for work in workers {
            let done = done.clone();
            scope.spawn(move || {
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
                let _nobody = done.send(result.is_ok());
            });
        }
        others.into_iter().for_each(|work| {
            scope.spawn(work);
        });
        let mut well = true;
        for _ in 0..count {
            match ended.recv_timeout(PATIENCE) {
                Ok(good) => well &= good,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    // The scope would wait for those who wait for ever.
                    eprintln!("stuck:\n{}", stage.node.glocks.dump_text());
                    std::process::abort();
                }
            }
            if !well {
                break;
            }
        }
        stage.stop.store(true, Ordering::Relaxed);
        assert!(well, "a worker failed");
    });
}

fn rehearse(seed: u64, shape: Shape) {
    println!("seed {seed}, {shape:?}");
    let rounds = std::env::var("DEMOTION_ROUNDS").map_or(3, |n| n.parse().expect("a number"));
    let device = Arc::new(shape.make());
    let dlm = LocalDlm::new();
    let options = NodeOptions {
        daemon: true,
        fs: FsOptions::default(),
        ..NodeOptions::default()
    };
    let disk = Arc::clone(&device) as Arc<dyn BlockDevice>;
    let node = Node::mount_with(&disk, &dlm, options).expect("a mount");
    let caches = Arc::new(PageCaches::default());
    node.glocks.set_kernel_cache(Some(caches.clone()));
    let known = Mutex::new(vec![node.root()]);
    let stage = Stage {
        reader: Reader::join(&device, &dlm),
        node,
        caches,
        rounds,
        known,
        stop: AtomicBool::new(false),
    };
    let shared = [stage.mkdir("shared0"), stage.mkdir("shared1")];
    let counter = Counter {
        addr: stage.file(stage.node.root(), "counter"),
        begun: AtomicU64::new(0),
        ended: AtomicU64::new(0),
    };
    let (on, names, number) = (&stage, &shared, &counter);
    let mut workers: Vec<Work<'_>> = vec![Box::new(|| number.write(on))];
    for n in 0..2 {
        let own = seed * 100 + n;
        workers.push(Box::new(move || exerciser(on, own)));
        workers.push(Box::new(move || mapper(on, own)));
        workers.push(Box::new(move || churner(on, own, names)));
    }
    let others: Vec<Work<'_>> = vec![
        Box::new(|| demoter(on, seed + 1)),
        Box::new(|| demoter(on, seed + 2)),
        Box::new(|| looker(on, seed + 3)),
        Box::new(|| number.watch(on)),
    ];
    play(&stage, workers, others);
    let stats = stage.node.glocks.stats();
    println!("{stats:?}");
    assert!(stats.demotes > 100 && stats.syncs > 20, "{stats:?}");
    let Stage { node, reader, .. } = stage;
    reader.glocks.clear_all();
    reader.glocks.shutdown(Leave::Clean).expect("to leave");
    node.glocks.set_kernel_cache(None);
    node.unmount();
    judge::clean_but(&*device, &[], &format!("seed {seed}"));
    judge::reference_clean(&device, &format!("seed {seed}"));
}

#[test]
fn locks_go_at_any_moment() {
    let shape = Shape {
        mib: 96,
        ..Shape::small(4096)
    };
    for seed in seeds(&[1, 2, 3], "DEMOTION_SEEDS") {
        rehearse(seed, shape);
    }
}

#[test]
fn locks_of_small_blocks_and_journaled_data_go_at_any_moment() {
    let shape = Shape {
        mib: 96,
        jdata: true,
        ..Shape::small(1024)
    };
    rehearse(11, shape);
}
