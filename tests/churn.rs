//! Goal: many processes in the same directories do each other no harm. Method: a generator in the manner of fsstress, in
//! several processes that share every name and make, fill, move, link and remove them under each other's hands, while
//! fio writes a file through a mapping, around the page cache and through it, side by side. Every byte that anybody
//! writes follows from inode number and place, so whoever reads may find that byte or zero and nothing else. Afterwards
//! link counts, both checkers, and everything again from the disk.
//!
//! `CHURN_OPS=n` makes each process do so many operations, `CHURN_SEED=n` chooses other ones (and takes other locks
//! away), `CHURN_OPTIONS=text` adds mount options.

mod ours;
mod support;

use fastrand::Rng;
use gfs2_format::device::AlignedBuf;
use ours::watch::watched;
use ours::{Mount, mkfs, program};
use rustix::fs::{self as calls, AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::host::{assert_fsck_clean, assert_ours_clean, sparse};

/// Operations of a process, unless CHURN_OPS says more.
const OPS: u64 = 4000;
/// While locks are taken away.
const OPS_REHEARSED: u64 = 800;
/// Processes at a time.
const PROCESSES: u64 = 4;
/// The variable that makes this program a process of the churn: seed, operations and folder.
const JOB: &str = "GFS2_CHURN";
/// Longest file.
const SIZE_MAX: u64 = 200_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{variable}={text}: {e}")))
}

/// What stands at a place of a file, whoever writes it.
fn byte(ino: u64, at: u64) -> u8 {
    let mixed = (ino << 20)
        .wrapping_add(at / 8)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed >> 32) as u8).wrapping_add(at as u8) | 1
}

/// The first place where there is neither that byte nor zero.
fn foreign(ino: u64, at: u64, bytes: &[u8]) -> Option<u64> {
    let wrong = (at..)
        .zip(bytes)
        .find(|(at, b)| **b != 0 && **b != byte(ino, *at));
    wrong.map(|(at, _)| at)
}

/// One process.
struct Churn<'a> {
    rng: Rng,
    root: &'a Path,
    direct: bool,
}

impl Churn<'_> {
    /// A path of few: others know it too.
    fn path(&mut self) -> PathBuf {
        let mut path = self.root.to_owned();
        for _ in 0..self.rng.u32(1..4) {
            path.push(format!("n{}", self.rng.u32(0..7)));
        }
        path
    }

    fn step(&mut self) -> Result<(), Errno> {
        let (path, other) = (self.path(), self.path());
        match self.rng.u32(0..20) {
            0..3 => calls::mkdir(&path, Mode::from(0o755)),
            3..9 => self.write(&path),
            9..11 => self.read(&path),
            11 => calls::rmdir(&path),
            12..14 => calls::unlink(&path),
            14 => {
                let flags = [
                    RenameFlags::empty(),
                    RenameFlags::EXCHANGE,
                    RenameFlags::NOREPLACE,
                ];
                calls::renameat_with(CWD, &path, CWD, &other, flags[self.rng.usize(0..3)])
            }
            15 => calls::linkat(CWD, &path, CWD, &other, AtFlags::empty()),
            16 => calls::symlink("nowhere", &path),
            17 => {
                let file = open(&path, OFlags::WRONLY)?;
                calls::ftruncate(&file, self.rng.u64(0..SIZE_MAX))
            }
            18 => self.list(&path),
            _ => {
                let file = open(&path, OFlags::RDONLY)?;
                calls::fsync(file)
            }
        }
    }

    fn write(&mut self, path: &Path) -> Result<(), Errno> {
        let direct = self.direct && self.rng.bool();
        let flags = if direct { OFlags::DIRECT } else { OFlags::empty() };
        let file = open(path, OFlags::CREATE | OFlags::RDWR | flags)?;
        let ino = stat(&file)?.ino();
        let (at, len) = if direct {
            (self.rng.u64(0..40) * 4096, self.rng.usize(1..5) * 4096)
        } else {
            (self.rng.u64(0..SIZE_MAX / 2), self.rng.usize(1..30_000))
        };
        let mut piece = AlignedBuf::zeroed(len.next_multiple_of(4096));
        for (at, b) in (at..).zip(piece[..len].iter_mut()) {
            *b = byte(ino, at);
        }
        file.write_all_at(&piece[..len], at)
            .map_err(|e| Errno::from_io_error(&e).expect("a number"))
    }

    fn read(&mut self, path: &Path) -> Result<(), Errno> {
        let direct = self.direct && self.rng.bool();
        let flags = if direct { OFlags::DIRECT } else { OFlags::empty() };
        let file = open(path, OFlags::RDONLY | flags)?;
        let ino = stat(&file)?.ino();
        let at = self.rng.u64(0..50) * 4096;
        let mut bytes = AlignedBuf::zeroed(16 * 4096);
        let n = rustix::io::pread(&file, &mut bytes[..], at)?;
        if let Some(place) = foreign(ino, at, &bytes[..n]) {
            panic!(
                "{}: inode {ino}: byte {place} is {:#x}, not {:#x} (direct: {direct})",
                path.display(),
                bytes[(place - at) as usize],
                byte(ino, place)
            );
        }
        Ok(())
    }

    fn list(&mut self, path: &Path) -> Result<(), Errno> {
        let dir = open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let listed = calls::Dir::read_from(&dir)?;
        let mut names = Vec::new();
        for entry in listed {
            names.push(entry?.file_name().to_owned());
        }
        let count = names.len();
        names.sort();
        names.dedup();
        // A name that goes and comes again while the list is read may be told twice; there are seven, and the dots.
        assert!(names.len() <= 9, "{}: {names:?}", path.display());
        assert!(count <= 64, "{}: {count} names", path.display());
        Ok(())
    }
}

fn open(path: &Path, flags: OFlags) -> Result<File, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    calls::openat(CWD, path, flags, Mode::from(0o644)).map(File::from)
}

fn stat(file: &File) -> Result<fs::Metadata, Errno> {
    file.metadata()
        .map_err(|e| Errno::from_io_error(&e).expect("a number"))
}

/// What may be said of a name that others move and remove.
fn is_usual(errno: Errno) -> bool {
    [
        Errno::NOENT,
        Errno::EXIST,
        Errno::NOTEMPTY,
        Errno::NOTDIR,
        Errno::ISDIR,
        Errno::LOOP,
        Errno::INVAL,
        Errno::PERM,
    ]
    .contains(&errno)
}

fn churn(job: &str) {
    let words: Vec<&str> = job.split('\n').collect();
    let [seed, ops, direct, root] = words[..] else {
        panic!("no job: {job:?}");
    };
    let seed: u64 = seed.parse().expect("a seed");
    let mut churn = Churn {
        rng: Rng::with_seed(seed),
        root: Path::new(root),
        direct: direct == "direct",
    };
    let mut done = 0;
    for step in 0..ops.parse::<u64>().expect("a number") {
        match churn.step() {
            Ok(()) => done += 1,
            Err(errno) => assert!(is_usual(errno), "seed {seed}, operation {step}: {errno:?}"),
        }
    }
    println!("seed {seed}: {done} of {ops} operations came through");
}

/// Processes of the churn, killed with this value.
struct Crowd(Vec<(Child, PathBuf)>);

impl Crowd {
    fn start(dir: &Path, root: &Path, seed: u64, ops: u64, direct: bool) -> Self {
        let direct = if direct { "direct" } else { "buffered" };
        let start = |seed: u64| {
            let said = dir.join(format!("churn-{seed}.said"));
            let log = File::create(&said).expect("a log file");
            let job = format!("{seed}\n{ops}\n{direct}\n{}", root.display());
            let child = Command::new(std::env::current_exe().expect("this program"))
                .args([
                    "--exact",
                    "a_crowd_on_another_filesystem_ends_well",
                    "--nocapture",
                ])
                .env(JOB, job)
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("a file handle"))
                .stderr(log)
                .spawn()
                .expect("this program");
            (child, said)
        };
        Self((0..PROCESSES).map(|n| start(seed * 100 + n)).collect())
    }

    #[track_caller]
    fn finish(mut self) {
        for (child, said) in &mut self.0 {
            let status = child.wait().expect("waiting for a process of the churn");
            let said = fs::read_to_string(said).unwrap_or_default();
            assert!(status.success(), "{status}:\n{said}");
            let line = said.lines().find(|l| l.contains("came through"));
            println!("{}", line.unwrap_or_else(|| panic!("no operations: {said}")));
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for (child, _) in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Every inode below: how many names were found, links it says it has, and its bytes.
#[track_caller]
fn assert_consistent(root: &Path) -> BTreeMap<u64, Vec<u8>> {
    let mut links: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let mut contents = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let mut below = 0;
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let meta = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            if meta.is_dir() {
                below += 1;
                folders.push(path);
                continue;
            }
            links.entry(meta.ino()).or_insert((0, meta.nlink())).0 += 1;
            if meta.is_file() {
                let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                assert_eq!(bytes.len() as u64, meta.len(), "{}", path.display());
                assert_eq!(foreign(meta.ino(), 0, &bytes), None, "{}", path.display());
                contents.insert(meta.ino(), bytes);
            }
        }
        let nlink = fs::metadata(&folder).expect("a folder").nlink();
        // Only ext4 and its like count subdirectories; so does GFS2.
        assert_eq!(nlink, 2 + below, "{}", folder.display());
    }
    for (ino, (found, said)) in links {
        assert_eq!(found, said, "links of inode {ino}");
    }
    contents
}

/// With the variable set, a process of the churn; without, the generator's own test: on the host's filesystem nothing
/// is found, and a foreign byte is.
#[test]
fn a_crowd_on_another_filesystem_ends_well() {
    if let Ok(job) = std::env::var(JOB) {
        return churn(&job);
    }
    let dir = support::scratch("churn");
    let root = dir.path().join("tree");
    fs::create_dir(&root).expect("a folder");
    Crowd::start(dir.path(), &root, 9, 3000, true).finish();
    let contents = assert_consistent(&root);
    let nonempty = contents.values().filter(|bytes| !bytes.is_empty()).count();
    assert!(nonempty > 5, "{nonempty} files have bytes");
    let lie = root.join("lie");
    fs::write(&lie, "some bytes that are not of this place").expect("a file");
    let refused = std::panic::catch_unwind(|| assert_consistent(&root));
    assert!(refused.is_err(), "foreign bytes were taken for ours");
}

/// One file through a mapping, around the page cache and through it, each in a third of its own, by fio.
struct Stripes {
    child: Child,
    job: PathBuf,
    said: PathBuf,
}

impl Stripes {
    fn start(dir: &Path, file: &Path, loops: u64) -> Self {
        let job = dir.join("stripes.fio");
        let text = format!(
            "[global]\nfilename={}\nrw=randwrite\nbs=4k\nverify=crc32c\nverify_state_save=0\n\
             do_verify=1\nsize=4m\nloops={loops}\nfallocate=none\n\
             randseed=17\n\
             [mapped]\nioengine=mmap\noffset=0\n[direct]\nioengine=psync\ndirect=1\noffset=4m\n\
             [buffered]\nioengine=psync\nfsync=64\noffset=8m\n",
            file.display()
        );
        fs::write(&job, text).expect("a job file");
        File::create(file)
            .and_then(|f| f.set_len(12 << 20))
            .expect("the striped file");
        let said = dir.join("stripes.said");
        let log = File::create(&said).expect("a log file");
        let child = Command::new("fio")
            .args(["--output-format=terse", "--exitall_on_error=1"])
            .arg(format!("--aux-path={}", dir.display()))
            .arg(&job)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle"))
            .stderr(log)
            .spawn()
            .expect("fio; run tests/lab/setup.sh as root");
        Self { child, job, said }
    }

    #[track_caller]
    fn finish(mut self) {
        let status = self.child.wait().expect("waiting for fio");
        let said = fs::read_to_string(&self.said).unwrap_or_default();
        assert!(status.success(), "{status}: {}:\n{said}", self.job.display());
    }
}

impl Drop for Stripes {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn crowd_on(options: &str, environment: &[(&str, &str)], ops: u64) {
    let dir = support::scratch("churn");
    let image = sparse(&dir.path().join("volume.img"), 512 << 20);
    mkfs(&image, &["-p", "lock_nolock"]);
    let more = std::env::var("CHURN_OPTIONS").unwrap_or_default();
    let options = [options, &more].map(|text| text.trim_matches(','));
    let options = options.join(",").trim_matches(',').to_owned();
    let mount = Mount::try_new_in(&image, &options, environment).expect("a mount");
    let (root, striped) = (mount.join("tree"), mount.join("striped"));
    fs::create_dir(&root).expect("a folder");
    let ops = number("CHURN_OPS").unwrap_or(ops);
    let seed = number("CHURN_SEED").unwrap_or(1);
    watched(&mount, Duration::from_secs(240 + ops / 20), || {
        let stripes = Stripes::start(dir.path(), &striped, 1 + ops / 4000);
        Crowd::start(dir.path(), &root, seed, ops, true).finish();
        stripes.finish();
    });
    let contents = assert_consistent(&root);
    let stripes = fs::read(&striped).expect("the striped file");
    assert!(stripes.iter().filter(|b| **b != 0).count() > 6 << 20);
    mount.unmount();
    assert_ours_clean(&program("fsck-gfs2"), &image);
    assert_fsck_clean(&image);
    let mount = Mount::new(&image, "ro");
    assert!(
        assert_consistent(&mount.join("tree")) == contents,
        "other bytes after a remount"
    );
    assert!(
        fs::read(mount.join("striped")).expect("the striped file") == stripes,
        "other stripes after a remount"
    );
    mount.unmount();
}

#[test]
fn a_crowd_in_the_same_directories() {
    crowd_on("", &[], OPS);
}

#[test]
fn a_crowd_while_the_kernel_keeps_writes_back() {
    crowd_on("writeback_cache", &[], OPS);
}

#[test]
fn a_crowd_while_locks_are_taken_away() {
    let seed = number("CHURN_SEED").unwrap_or(21).to_string();
    crowd_on("", &[("FUSE_GFS2_REHEARSE", &seed)], OPS_REHEARSED);
}

/// Goal: what is written around the page cache and what is written through it meet in the file, whoever comes first.
/// Method: one file, one page at a time, by turns of a random order, read back both ways.
#[test]
fn direct_and_buffered_turns_meet_in_the_file() {
    let dir = support::scratch("churn");
    let image = sparse(&dir.path().join("volume.img"), 256 << 20);
    mkfs(&image, &["-p", "lock_nolock"]);
    for options in ["", "writeback_cache"] {
        let mount = Mount::new(&image, options);
        let path = mount.join("turns");
        let both = |flags: i32| {
            let mut how = File::options();
            how.read(true).write(true).create(true).truncate(false);
            how.custom_flags(flags).open(&path).expect("the file")
        };
        let (direct, buffered) = (both(libc::O_DIRECT), both(0));
        let mut rng = Rng::with_seed(31);
        let mut pages = [0u8; 64];
        let mut page = AlignedBuf::zeroed(4096);
        buffered.set_len(64 * 4096).expect("a size");
        pages.fill(0);
        for turn in 0..4000 {
            let n = rng.usize(0..64);
            let file = if rng.bool() { &direct } else { &buffered };
            if rng.bool() {
                pages[n] = rng.u8(1..);
                page.fill(pages[n]);
                file.write_all_at(&page, n as u64 * 4096).expect("a write");
            } else {
                file.read_exact_at(&mut page, n as u64 * 4096).expect("a read");
                let wrong = page.iter().position(|b| *b != pages[n]);
                assert_eq!(wrong, None, "'{options}': turn {turn}: page {n}");
            }
        }
        drop((direct, buffered));
        fs::remove_file(&path).expect("the file");
        mount.unmount();
        assert_fsck_clean(&image);
    }
}

/// Goal: names are taken and given back in crowded directories. Method: four threads fill and empty folders of some
/// thousand names beside each other, until hash tables have grown and shrunk.
#[test]
fn crowded_directories_grow_and_shrink_beside_each_other() {
    let dir = support::scratch("churn");
    let image = sparse(&dir.path().join("volume.img"), 256 << 20);
    mkfs(&image, &["-p", "lock_nolock"]);
    let mount = Mount::new(&image, "");
    let root = mount.path();
    std::thread::scope(|scope| {
        for n in 0..4u32 {
            let root = &root;
            scope.spawn(move || {
                let folder = root.join(format!("d{n}"));
                fs::create_dir(&folder).expect("a folder");
                for i in 0..1500 {
                    let path = folder.join(format!("a name of some length {i}"));
                    match i % 3 {
                        0 => drop(File::create(&path).expect("a file")),
                        1 => fs::create_dir(&path).expect("a folder"),
                        _ => symlink("x", &path).expect("a link"),
                    }
                }
                assert_eq!(fs::read_dir(&folder).expect("a listing").count(), 1500);
                fs::rename(&folder, root.join(format!("e{n}"))).expect("rename");
                fs::remove_dir_all(root.join(format!("e{n}"))).expect("rm -r");
            });
        }
    });
    assert_eq!(fs::read_dir(&root).expect("a listing").count(), 0);
    mount.unmount();
    assert_fsck_clean(&image);
}
