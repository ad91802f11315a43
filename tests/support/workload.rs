//! A long seeded random mix of operations on a mounted folder, checked one by one against a model.
//!
//! Invariants:
//! * number, order, operands and data of the operations follow from the seed and the mix alone: a workload can
//!   be imagined up to any point on one machine and go on from there on another;
//! * each operation is one change of the namespace or of one file, so a crash leaves the state after some
//!   number of them (the bytes of files not synced apart);
//! * an operation that must fail is as much part of it as one that must succeed.

use super::calls::{Calls, Wrong};
use super::manifest::Manifest;
use super::model::{Id, Kind, Model, Presence, ROOT};
use rustix::fs::RenameFlags;
use std::collections::{BTreeSet, VecDeque};
use std::path::Path;

/// A name in a folder.
type Place = (Id, Vec<u8>);

/// An operation and the bytes it writes.
#[derive(Clone, Debug)]
pub struct Op {
    /// What is called.
    pub call: Call,
    /// What it writes.
    pub data: Vec<u8>,
}

/// One call, on inodes of the model.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // the fields are those of the system calls
pub enum Call {
    Create {
        dir: Id,
        name: Vec<u8>,
        mode: u32,
    },
    Mkdir {
        dir: Id,
        name: Vec<u8>,
        mode: u32,
    },
    Symlink {
        dir: Id,
        name: Vec<u8>,
        target: Vec<u8>,
    },
    Mknod {
        dir: Id,
        name: Vec<u8>,
        kind: &'static str,
        device: Option<(u32, u32)>,
        mode: u32,
    },
    Link {
        node: Id,
        dir: Id,
        name: Vec<u8>,
    },
    Unlink {
        dir: Id,
        name: Vec<u8>,
    },
    Rmdir {
        dir: Id,
        name: Vec<u8>,
    },
    Rename {
        from: Place,
        to: Place,
        flags: RenameFlags,
    },
    Write {
        file: Id,
        at: u64,
        len: usize,
    },
    Append {
        file: Id,
        len: usize,
    },
    /// Opened with O_TRUNC and written.
    Rewrite {
        file: Id,
        len: usize,
    },
    Truncate {
        file: Id,
        size: u64,
    },
    Punch {
        file: Id,
        at: u64,
        len: u64,
    },
    Allocate {
        file: Id,
        at: u64,
        len: u64,
        keep: bool,
    },
    Chmod {
        node: Id,
        mode: u32,
    },
    Chown {
        node: Id,
        uid: u32,
        gid: u32,
    },
    Times {
        node: Id,
        mtime: (i64, u32),
    },
    SetXattr {
        node: Id,
        name: String,
        mode: Presence,
    },
    RemoveXattr {
        node: Id,
        name: String,
    },
    Fsync {
        node: Id,
    },
    Syncfs,
    /// Reads back a range.
    Read {
        file: Id,
        at: u64,
        len: usize,
    },
    /// Reads a folder.
    List {
        dir: Id,
    },
    /// Looks up a name that is not there, or stats what is.
    Stat {
        dir: Id,
        name: Vec<u8>,
    },
    /// Opened, unlinked, written, read back, closed.
    Orphan {
        dir: Id,
        name: Vec<u8>,
        len: usize,
    },
}

/// What a workload may ask of a filesystem.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// The longest value of an extended attribute; 0 for none at all.
    pub xattr_max: usize,
    /// Whether to preallocate and to punch holes.
    pub allocate: bool,
    /// The furthest a write may start.
    pub offset_max: u64,
    /// How many names a folder is filled with at a time.
    pub fill: usize,
    /// Whether to sync now and then.
    pub sync: bool,
    /// Whether syncfs(2) reaches the filesystem.
    pub syncfs: bool,
}

impl Mix {
    /// Everything GFS2 can do.
    pub const GFS2: Mix = Mix {
        xattr_max: 20_000,
        allocate: true,
        offset_max: 6 << 30,
        fill: 300,
        sync: true,
        syncfs: true,
    };

    /// What our driver can do so far; syncfs(2) the kernel keeps from drivers in userspace.
    pub const DRIVER: Mix = Mix {
        allocate: false,
        syncfs: false,
        ..Mix::GFS2
    };
}

/// The seed of a test's workload: itself, or another for every value of GFS2_SEED, to look further than once.
pub fn seed(own: u64) -> u64 {
    let more = std::env::var("GFS2_SEED").map_or(0, |text| text.parse().expect("GFS2_SEED: a number"));
    own + 1000 * more
}

/// A workload and how far it has come.
#[derive(Clone, Debug)]
pub struct Workload {
    seed: u64,
    mix: Mix,
    rng: fastrand::Rng,
    model: Model,
    /// What is already decided of the next operations.
    queue: VecDeque<Call>,
    at: usize,
}

const DEPTH_MAX: usize = 12;
const FILE_MAX: u64 = 4 << 20;

impl Workload {
    /// A workload on an empty folder.
    pub fn new(seed: u64, mix: Mix) -> Workload {
        Workload {
            seed,
            mix,
            rng: fastrand::Rng::with_seed(seed),
            model: Model::new(),
            queue: VecDeque::new(),
            at: 0,
        }
    }

    /// What makes this workload again at its start: seed, and whether to preallocate and punch.
    pub fn recipe(&self) -> String {
        let kind = if self.mix.allocate { "gfs2" } else { "driver" };
        format!("{kind}:{}", self.seed)
    }

    /// The workload of a recipe.
    pub fn of_recipe(recipe: &str) -> Workload {
        let (kind, seed) = recipe.split_once(':').expect("KIND:SEED");
        let mix = match kind {
            "gfs2" => Mix::GFS2,
            "driver" => Mix::DRIVER,
            _ => panic!("no such mix: {kind}"),
        };
        Workload::new(seed.parse().expect("a seed"), mix)
    }

    /// The number of operations done.
    pub fn at(&self) -> usize {
        self.at
    }

    /// What the tree must look like.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Goes on to operation `to` in the model alone.
    pub fn imagine(&mut self, to: usize) {
        while self.at < to {
            let op = self.next_op();
            let _expected = self.model.apply(&op, self.at);
        }
    }

    /// Goes on to operation `to` on this folder, which must be in the state the model is in.
    #[track_caller]
    pub fn run(&mut self, root: &Path, to: usize) {
        while self.at < to {
            self.step(root);
        }
    }

    /// One operation; returns it.
    #[track_caller]
    pub fn step(&mut self, root: &Path) -> Op {
        let op = self.next_op();
        let calls = Calls {
            root,
            model: &self.model,
            data: &op.data,
        };
        let got = calls.call(&op.call);
        let wanted = self.model.apply(&op, self.at);
        let said = format!("seed {}, operation {}, {:?}", self.seed, self.at, op.call);
        match got {
            Ok(()) => assert_eq!(Ok(()), wanted, "{said}: succeeded, wanted the right side"),
            Err(Wrong::Errno(e)) => {
                assert_eq!(Err(e), wanted, "{said}: failed with {e:?}, wanted the right side")
            }
            Err(Wrong::Seen(what)) => panic!("{said}: {what}"),
        }
        op
    }

    /// Fails the test unless a walk of the folder saw what the model has.
    #[track_caller]
    pub fn assert_seen(&self, walked: &Manifest, who: &str) {
        let wanted = self.model.manifest();
        let said = format!("the model of seed {} at {}", self.seed, self.at);
        wanted.assert_same(&said, &comparable(walked, &wanted), who);
    }

    /// The same of a walk on the kernel's mount, which forgets device numbers.
    #[track_caller]
    pub fn assert_seen_by_kernel(&self, walked: &Manifest) {
        self.assert_seen(&walked.with_devices_of(&self.model.manifest()), "kernel");
    }

    /// This workload at the last operation after which everything done was to be durable.
    pub fn durable(&self) -> Workload {
        let mut past = Workload::new(self.seed, self.mix);
        past.imagine(self.model.committed_at);
        past
    }

    /// After a crash during operation `last`: fails the test unless a walk saw the state after some operation
    /// from this one, the last that is durable, on. Bytes of files that were not synced are not looked at.
    /// Returns the number of that operation.
    #[track_caller]
    pub fn assert_survived(&self, last: usize, walked: &Manifest) -> usize {
        let mut candidate = self.clone();
        let mut best: Option<(usize, Vec<String>)> = None;
        while candidate.at <= last {
            let wanted = candidate.model.manifest();
            let torn: BTreeSet<String> = candidate.model.unsynced().into_iter().collect();
            let walked = walked.with_devices_of(&wanted);
            let seen = loosen(&comparable(&walked, &wanted), &torn);
            let found = loosen(&wanted, &torn).differences(&seen);
            if found.is_empty() {
                return candidate.at;
            }
            if best.as_ref().is_none_or(|(_, least)| found.len() < least.len()) {
                best = Some((candidate.at, found));
            }
            let next = candidate.at + 1;
            candidate.imagine(next);
        }
        let (at, found) = best.expect("at least one candidate");
        let shown = found[..found.len().min(40)].join("\n");
        let (seed, first, n) = (self.seed, self.at, found.len());
        panic!(
            "seed {seed}: the tree is that after no operation of {first}..={last}; {n} differences to {at}, \
             model | seen:\n{shown}"
        );
    }

    fn next_op(&mut self) -> Op {
        let call = match self.queue.pop_front() {
            Some(call) => call,
            None => self.choose(),
        };
        self.at += 1;
        let len = match &call {
            Call::Write { len, .. } | Call::Append { len, .. } | Call::Rewrite { len, .. } => *len,
            Call::Orphan { len, .. } => *len,
            Call::SetXattr { .. } => self.value_len(),
            _ => 0,
        };
        // data of its own generator: its length does not shift the choices that follow
        let mut bytes =
            fastrand::Rng::with_seed(self.seed ^ (self.at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut data = vec![0; len];
        bytes.fill(&mut data);
        if len > 8 && self.at.is_multiple_of(7) {
            // journaled data that looks like metadata must be escaped
            data[..4].copy_from_slice(&[0x01, 0x16, 0x19, 0x70]);
        }
        Op { call, data }
    }

    fn value_len(&mut self) -> usize {
        let max = self.mix.xattr_max;
        let len = match self.rng.u32(0..10) {
            0 => 0,
            1..=5 => self.rng.usize(1..60),
            6..=8 => self.rng.usize(60..900),
            _ => self.rng.usize(900..20_000),
        };
        len.min(max)
    }

    fn choose(&mut self) -> Call {
        loop {
            let call = match self.rng.u32(0..100) {
                0..=13 => self.choose_create(),
                14..=19 => Some(Call::Mkdir {
                    dir: self.dir(),
                    name: self.short_name(),
                    mode: self.mode(),
                }),
                20..=22 => Some(self.choose_symlink()),
                23..=24 => Some(self.choose_mknod()),
                25..=28 => self.choose_link(),
                29..=36 => self.choose_removal(),
                37..=45 => self.choose_rename(),
                46..=69 => self.choose_data(),
                70..=79 => self.choose_attributes(),
                80..=85 => self.choose_xattr(),
                86..=96 => self.choose_look(),
                97 => self.choose_fill(),
                _ => self.mix.sync.then(|| self.choose_sync()),
            };
            match call {
                Some(Call::Mkdir { dir, .. }) if self.model.depth(dir) >= DEPTH_MAX => {}
                Some(call) => return call,
                None => {}
            }
        }
    }

    fn pick(&mut self, from: &[Id]) -> Option<Id> {
        if from.is_empty() {
            None
        } else {
            Some(from[self.rng.usize(0..from.len())])
        }
    }

    fn dir(&mut self) -> Id {
        let dirs = self.model.find(|n| matches!(n.kind, Kind::Dir(_)));
        self.pick(&dirs).unwrap_or(ROOT)
    }

    fn file(&mut self) -> Option<Id> {
        let files = self.model.find(|n| matches!(n.kind, Kind::File(_)));
        self.pick(&files)
    }

    /// A name that is likely to be taken.
    fn short_name(&mut self) -> Vec<u8> {
        let len = self.rng.usize(1..3);
        (0..len).map(|_| self.rng.u8(b'a'..b'f')).collect()
    }

    fn name(&mut self) -> Vec<u8> {
        match self.rng.u32(0..20) {
            0 => vec![self.rng.u8(b'a'..b'd'); 255],
            1 => "n\u{fc}\u{6587}".into(),
            2 => b"a\nb c\\d=".to_vec(),
            3 => vec![self.rng.u8(0x80..0xff), self.rng.u8(1..0x1f)],
            4..=7 => format!("file-{}", self.rng.u32(0..400)).into_bytes(),
            _ => self.short_name(),
        }
    }

    fn mode(&mut self) -> u32 {
        // no bits a umask of 022 would take away
        const MODES: [u32; 5] = [0o755, 0o644, 0o600, 0o711, 0o400];
        MODES[self.rng.usize(0..MODES.len())]
    }

    fn choose_create(&mut self) -> Option<Call> {
        Some(Call::Create {
            dir: self.dir(),
            name: self.name(),
            mode: self.mode(),
        })
    }

    fn choose_symlink(&mut self) -> Call {
        let len = if self.rng.u32(0..4) == 0 {
            self.rng.usize(1..200)
        } else {
            self.rng.usize(1..20)
        };
        Call::Symlink {
            dir: self.dir(),
            name: self.name(),
            target: vec![self.rng.u8(b'a'..=b'z'); len],
        }
    }

    fn choose_mknod(&mut self) -> Call {
        let (kind, device) = match self.rng.u32(0..4) {
            0 => ("fifo", None),
            1 => ("socket", None),
            2 => ("char", Some((self.rng.u32(0..4096), self.rng.u32(0..1 << 20)))),
            _ => ("block", Some((self.rng.u32(1..4096), self.rng.u32(0..256)))),
        };
        Call::Mknod {
            dir: self.dir(),
            name: self.name(),
            kind,
            device,
            mode: self.mode(),
        }
    }

    fn choose_link(&mut self) -> Option<Call> {
        let nodes = self
            .model
            .find(|n| matches!(n.kind, Kind::File(_) | Kind::Special(..)));
        Some(Call::Link {
            node: self.pick(&nodes)?,
            dir: self.dir(),
            name: self.name(),
        })
    }

    /// Mostly a name that exists.
    fn place(&mut self) -> Place {
        let dir = self.dir();
        let entries = self.model.entries(dir);
        if entries.is_empty() || self.rng.u32(0..12) == 0 {
            return (dir, self.short_name());
        }
        let n = self.rng.usize(0..entries.len());
        (dir, entries.keys().nth(n).expect("an entry").clone())
    }

    fn choose_removal(&mut self) -> Option<Call> {
        let (dir, name) = self.place();
        Some(match self.rng.u32(0..8) {
            0..=3 => Call::Unlink { dir, name },
            4..=5 => Call::Rmdir { dir, name },
            _ => {
                let id = *self.model.entries(dir).get(&name)?;
                let Kind::File(_) = self.model.node(id).kind else {
                    return None;
                };
                Call::Orphan {
                    dir,
                    name,
                    len: self.rng.usize(1..30_000),
                }
            }
        })
    }

    fn choose_rename(&mut self) -> Option<Call> {
        let (from, mut to) = (self.place(), self.place());
        if self.rng.bool() {
            to.1 = self.short_name();
        }
        let flags = match self.rng.u32(0..6) {
            0 => RenameFlags::EXCHANGE,
            1 => RenameFlags::NOREPLACE,
            _ => RenameFlags::empty(),
        };
        // deep trees would make paths the kernel does not take
        let levels = |p: &Place| {
            self.model
                .entries(p.0)
                .get(&p.1)
                .map_or(0, |&id| self.model.levels(id))
        };
        let too_deep = |levels: usize, dir: Id| self.model.depth(dir) + levels + 1 > DEPTH_MAX;
        let back = flags.contains(RenameFlags::EXCHANGE) && too_deep(levels(&to), from.0);
        if too_deep(levels(&from), to.0) || back {
            return None;
        }
        Some(Call::Rename { from, to, flags })
    }

    fn length(&mut self) -> usize {
        match self.rng.u32(0..10) {
            0..=3 => self.rng.usize(1..300),
            4..=6 => self.rng.usize(300..9000),
            7..=8 => self.rng.usize(9000..70_000),
            _ => self.rng.usize(70_000..400_000),
        }
    }

    fn offset(&mut self, size: u64) -> u64 {
        match self.rng.u32(0..20) {
            0 => self.rng.u64(0..self.mix.offset_max),
            1..=3 => size + self.rng.u64(0..100_000),
            4..=9 => size,
            10..=12 => self.rng.u64(0..64) * 4096,
            _ => self.rng.u64(0..=size),
        }
    }

    fn choose_data(&mut self) -> Option<Call> {
        let file = self.file()?;
        let size = self.model.content(file).size;
        let at = self.offset(size);
        let len = self.length();
        Some(match self.rng.u32(0..12) {
            0..=4 => Call::Write { file, at, len },
            5..=6 if size < FILE_MAX => Call::Append { file, len },
            7 => Call::Rewrite { file, len },
            8..=9 => {
                let size = if self.rng.bool() {
                    self.rng.u64(0..=size)
                } else {
                    at
                };
                Call::Truncate { file, size }
            }
            10 if self.mix.allocate => Call::Punch {
                file,
                at: self.rng.u64(0..=size),
                len: len as u64 * 2,
            },
            11 if self.mix.allocate => Call::Allocate {
                file,
                at: at.min(FILE_MAX),
                len: len as u64,
                keep: self.rng.bool(),
            },
            _ => Call::Write {
                file,
                at: self.rng.u64(0..=size),
                len: 1,
            },
        })
    }

    fn any(&mut self) -> Id {
        let nodes = self.model.find(|n| !matches!(n.kind, Kind::Symlink(_)));
        self.pick(&nodes).unwrap_or(ROOT)
    }

    fn choose_attributes(&mut self) -> Option<Call> {
        const MODES: [u32; 9] = [0o777, 0o000, 0o755, 0o4755, 0o2755, 0o2644, 0o6711, 0o1777, 0o640];
        const IDS: [u32; 5] = [0, 1, 1000, 65534, 4_000_000_000];
        const SECONDS: [i64; 6] = [0, 1, -86_400, 1_000_000_000, 2_147_483_647, 4_102_444_800];
        let node = self.any();
        Some(match self.rng.u32(0..3) {
            0 => Call::Chmod {
                node,
                mode: MODES[self.rng.usize(0..MODES.len())],
            },
            1 => {
                let (uid, gid) = (
                    IDS[self.rng.usize(0..IDS.len())],
                    IDS[self.rng.usize(0..IDS.len())],
                );
                Call::Chown { node, uid, gid }
            }
            _ => {
                let seconds = SECONDS[self.rng.usize(0..SECONDS.len())];
                Call::Times {
                    node,
                    mtime: (seconds, self.rng.u32(0..1_000_000_000)),
                }
            }
        })
    }

    fn choose_xattr(&mut self) -> Option<Call> {
        if self.mix.xattr_max == 0 {
            return None;
        }
        let nodes = self
            .model
            .find(|n| matches!(n.kind, Kind::File(_) | Kind::Dir(_)));
        let node = self.pick(&nodes)?;
        let prefix = if self.rng.u32(0..5) == 0 {
            "trusted"
        } else {
            "user"
        };
        let name = format!("{prefix}.{}", char::from(self.rng.u8(b'a'..b'g')));
        Some(match self.rng.u32(0..6) {
            0 => Call::RemoveXattr { node, name },
            1 => Call::SetXattr {
                node,
                name,
                mode: Presence::Must,
            },
            2 => Call::SetXattr {
                node,
                name,
                mode: Presence::MustNot,
            },
            _ => Call::SetXattr {
                node,
                name,
                mode: Presence::Any,
            },
        })
    }

    fn choose_look(&mut self) -> Option<Call> {
        Some(match self.rng.u32(0..3) {
            0 => {
                let file = self.file()?;
                let size = self.model.content(file).size;
                Call::Read {
                    file,
                    at: self.rng.u64(0..=size),
                    len: self.length(),
                }
            }
            1 => Call::List { dir: self.dir() },
            _ => {
                let (dir, name) = self.place();
                Call::Stat { dir, name }
            }
        })
    }

    fn choose_sync(&mut self) -> Call {
        let nodes = self
            .model
            .find(|n| matches!(n.kind, Kind::File(_) | Kind::Dir(_)));
        let kind = self.rng.u32(0..8);
        if kind < 2 && self.mix.syncfs {
            return Call::Syncfs;
        }
        if let (5.., Some(file)) = (kind, self.file()) {
            // A file that was just written has everything done before it made durable.
            self.queue.push_back(Call::Fsync { node: file });
            return Call::Append { file, len: 9 };
        }
        let node = self.pick(&nodes).unwrap_or(ROOT);
        Call::Fsync { node }
    }

    /// Fills a folder with many names, or empties one: operations of their own, one name each.
    fn choose_fill(&mut self) -> Option<Call> {
        let dir = self.dir();
        let count = self.rng.usize(1..=self.mix.fill);
        let names: Vec<Vec<u8>> = self.model.entries(dir).keys().cloned().collect();
        if names.len() > 100 && self.rng.bool() {
            let gone = names.into_iter().filter(|n| n.starts_with(b"fill-")).take(count);
            self.queue.extend(gone.map(|name| Call::Unlink { dir, name }));
        } else {
            let start = self.rng.u32(0..100_000);
            let new = (0..count).map(|i| format!("fill-{}", start as usize + i).into_bytes());
            self.queue.extend(new.map(|name| Call::Create {
                dir,
                name,
                mode: 0o644,
            }));
        }
        self.queue.pop_front()
    }
}

/// The walked tree, cut down to what the model knows.
fn comparable(walked: &Manifest, wanted: &Manifest) -> Manifest {
    let unknown = ["ino", "blocks", "atime", "ctime", "flags", "data"];
    let mut seen = walked.without(&unknown);
    seen.entries.remove("#statfs");
    for (path, fields) in &mut seen.entries {
        let known = wanted.entries.get(path);
        if fields.get("type").is_some_and(|t| t != "file" && t != "symlink") {
            fields.remove("size");
        }
        if known.is_none_or(|k| !k.contains_key("mtime")) {
            fields.remove("mtime");
        }
    }
    seen
}

/// Without what a crash may tear: times, and the bytes of these files.
fn loosen(manifest: &Manifest, torn: &BTreeSet<String>) -> Manifest {
    let mut out = manifest.without(&["mtime"]);
    for path in torn {
        if let Some(fields) = out.entries.get_mut(path) {
            fields.retain(|k: &String, _| k != "content" && k != "size");
        }
    }
    out
}
