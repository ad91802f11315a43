//! Goal: our mount is the filesystem in memory, whatever is asked of it and however it is stopped. Method: the seeded
//! workload of tests/support, each result and errno compared with the model's, on real mounts that are unmounted and
//! mounted again, and killed and replayed, in between; calls that must fail, with the errno Linux gives; at the end a
//! kill in the middle, and both checkers.
//!
//! A failure names seed and operation: `MODEL_SEED=n` begins with that seed (and ends with it, if MODEL_OPS is not
//! given). `MODEL_OPS=n` does at least so many operations, seed after seed.

mod ours;
mod support;

use fastrand::Rng;
use ours::watch::watched;
use ours::{Mount, mkfs, program};
use rustix::fs::{self as calls, AtFlags, CWD, Mode, OFlags, RenameFlags, SeekFrom, XattrFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::host::{assert_fsck_clean, assert_ours_clean, sparse};
use support::model::Kind;
use support::walk::walk;
use support::workload::{Mix, Workload};

/// Operations of a life: the model looks through all inodes it ever had.
const LIFE: usize = 4000;
/// Lives of a short run.
const SHORT: usize = 3;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{variable}={text}: {e}")))
}

/// How a life is lived: everything follows from the seed.
#[derive(Clone, Copy, Debug)]
struct Life {
    seed: u64,
    block_size: u32,
    /// Locks are taken away at random.
    rehearsed: bool,
}

impl Life {
    fn of(seed: u64) -> Self {
        Self {
            seed,
            block_size: [4096, 1024, 4096, 512, 2048][(seed % 5) as usize],
            rehearsed: seed % 3 == 2,
        }
    }

    fn mount(&self, image: &Path) -> Mount {
        let seed = self.seed.to_string();
        let rehearse = [("FUSE_GFS2_REHEARSE", seed.as_str())];
        let environment: &[_] = if self.rehearsed { &rehearse } else { &[] };
        Mount::try_new_in(image, "noatime", environment)
            .unwrap_or_else(|(code, text)| panic!("{self:?}: mount: {code}: {text}"))
    }
}

#[track_caller]
fn compare(workload: &Workload, mount: &Mount, who: &str) {
    let folder = mount.join("w");
    let seen = walk(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    workload.assert_seen(&seen, who);
}

/// Makes everything durable, as fsync can: each file's bytes, then whatever the log has.
fn settle(workload: &Workload, mount: &Mount) {
    let model = workload.model();
    for id in model.find(|node| matches!(node.kind, Kind::File(_) | Kind::Dir(_))) {
        let path = mount.join("w").join(OsStr::from_bytes(&model.path(id)));
        let file = File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        file.sync_all()
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    let mut last = File::options()
        .append(true)
        .create(true)
        .open(mount.join("settled"))
        .expect("a file");
    last.write_all(b"x").expect("a byte");
    last.sync_all().expect("fsync");
}

/// Our checker and the reference's.
#[track_caller]
fn assert_clean(image: &Path) {
    assert_ours_clean(&program("fsck-gfs2"), image);
    assert_fsck_clean(image);
}

/// Lives a life: legs of operations, each ended in another way.
fn live(life: Life, ops: usize) {
    let dir = support::scratch("model");
    let image = sparse(&dir.path().join("volume.img"), 1 << 30);
    let size = life.block_size.to_string();
    mkfs(&image, &["-p", "lock_nolock", "-b", &size, "-J", "16"]);
    let mut rng = Rng::with_seed(life.seed);
    let mut workload = Workload::new(life.seed, Mix::DRIVER);
    let mut mount = life.mount(&image);
    fs::create_dir(mount.join("w")).expect("a folder");
    fs::set_permissions(mount.join("w"), Permissions::from_mode(0o755)).expect("its mode");
    while workload.at() < ops {
        let to = (workload.at() + rng.usize(100..900)).min(ops);
        let end = rng.u32(0..4);
        let said = format!("{life:?}: at {to}");
        watched(&mount, Duration::from_secs(300), || {
            workload.run(&mount.join("w"), to);
            wrong_calls(&mount.path(), &mut rng);
            if end == 1 {
                settle(&workload, &mount);
            }
        });
        match end {
            0 => compare(&workload, &mount, &format!("{said}: mounted")),
            1 => {
                mount.crash();
                mount = life.mount(&image);
                compare(&workload, &mount, &format!("{said}: after kill -9 and replay"));
            }
            _ => {
                mount.unmount();
                mount = life.mount(&image);
                compare(&workload, &mount, &format!("{said}: after a remount"));
            }
        }
    }
    compare(&workload, &mount, "mounted, at the end");
    if life.seed.is_multiple_of(2) {
        mount.unmount();
        assert_clean(&image);
        return;
    }
    mount.crash();
    let mount = life.mount(&image);
    let seen = walk(&mount.join("w")).unwrap_or_else(|e| panic!("{life:?}: {e}"));
    workload.durable().assert_survived(workload.at(), &seen);
    mount.unmount();
    // Blocks of files that were unlinked may still be on their way back to the free ones.
    let mount = Mount::new(&image, "noatime");
    fs::remove_dir_all(mount.join("w")).expect("rm -r");
    mount.unmount();
    assert_clean(&image);
}

/// Calls that must fail, each with its errno, on a small tree that must then be as it was.
fn wrong_calls(root: &Path, rng: &mut Rng) {
    let top = root.join(format!("wrong-{}", rng.u32(..)));
    let at = |name: &str| top.join(name);
    fs::create_dir(&top).expect("a folder");
    fs::create_dir_all(at("full/sub")).expect("folders");
    fs::write(at("file"), vec![7; rng.usize(1..9000)]).expect("a file");
    symlink("loop", at("loop")).expect("a link");
    let before = walk(&top).expect("a walk").without(&["atime"]);
    let (file, full) = (at("file"), at("full"));
    let long = top.join("n".repeat(256));
    let open = |path: &Path, flags: OFlags| calls::openat(CWD, path, flags, Mode::from(0o644)).map(drop);
    let rename = |from: &Path, to: &Path| calls::renameat(CWD, from, CWD, to);
    let value = vec![1; 70_000];
    let readable = File::open(&file).expect("the file");
    let writable = File::options().write(true).open(&file).expect("the file");
    let end = readable.metadata().expect("its size").len();
    let none = AtFlags::empty();
    let cases: [(&str, Result<(), Errno>, Errno); 24] = [
        (
            "create a long name",
            open(&long, OFlags::CREATE | OFlags::WRONLY),
            Errno::NAMETOOLONG,
        ),
        (
            "stat a long name",
            calls::stat(&long).map(drop),
            Errno::NAMETOOLONG,
        ),
        (
            "mkdir a long name",
            calls::mkdir(&long, Mode::from(0o755)),
            Errno::NAMETOOLONG,
        ),
        ("rename to a long name", rename(&file, &long), Errno::NAMETOOLONG),
        ("write to a directory", open(&full, OFlags::WRONLY), Errno::ISDIR),
        (
            "truncate a directory",
            open(&full, OFlags::WRONLY | OFlags::TRUNC),
            Errno::ISDIR,
        ),
        (
            "create what exists",
            open(&file, OFlags::CREATE | OFlags::EXCL),
            Errno::EXIST,
        ),
        (
            "mkdir what exists",
            calls::mkdir(&file, Mode::from(0o755)),
            Errno::EXIST,
        ),
        ("symlink what exists", calls::symlink("x", &full), Errno::EXIST),
        (
            "stat below a file",
            calls::stat(file.join("x")).map(drop),
            Errno::NOTDIR,
        ),
        ("list a file", open(&file, OFlags::DIRECTORY), Errno::NOTDIR),
        ("rmdir a file", calls::rmdir(&file), Errno::NOTDIR),
        ("rmdir a full one", calls::rmdir(&full), Errno::NOTEMPTY),
        ("unlink a directory", calls::unlink(&full), Errno::ISDIR),
        (
            "link a directory",
            calls::linkat(CWD, &full, CWD, at("hard"), none),
            Errno::PERM,
        ),
        (
            "rename into itself",
            rename(&full, &full.join("sub/x")),
            Errno::INVAL,
        ),
        (
            "rename a file over a directory",
            rename(&file, &full),
            Errno::ISDIR,
        ),
        (
            "rename a directory over a file",
            rename(&full, &file),
            Errno::NOTDIR,
        ),
        (
            "exchange with nothing",
            calls::renameat_with(CWD, &file, CWD, at("none"), RenameFlags::EXCHANGE),
            Errno::NOENT,
        ),
        ("follow a loop", open(&at("loop"), OFlags::RDONLY), Errno::LOOP),
        (
            "readlink of a file",
            calls::readlink(&file, Vec::new()).map(drop),
            Errno::INVAL,
        ),
        (
            "a value too long",
            calls::setxattr(&file, "user.big", &value, XattrFlags::empty()),
            Errno::TOOBIG,
        ),
        (
            "an attribute that is not there",
            calls::removexattr(&file, "user.none"),
            Errno::NODATA,
        ),
        (
            "data past the end",
            calls::seek(&readable, SeekFrom::Data(end + 1)).map(drop),
            Errno::NXIO,
        ),
    ];
    for (what, got, wanted) in cases {
        assert_eq!(got, Err(wanted), "{what}");
    }
    let mut byte = [0];
    assert_eq!(rustix::io::pread(&writable, &mut byte, 0), Err(Errno::BADF));
    assert_eq!(rustix::io::pwrite(&readable, &byte, 0), Err(Errno::BADF));
    assert_eq!(rustix::io::pread(&readable, &mut byte, end), Ok(0), "at the end");
    drop((readable, writable));
    let after = walk(&top).expect("a walk").without(&["atime"]);
    let moving = ["bfree", "bavail", "ffree", "files"];
    before
        .without(&moving)
        .assert_same("before wrong calls", &after.without(&moving), "after them");
    fs::remove_dir_all(&top).expect("rm -r");
}

#[test]
fn the_mount_is_the_model_through_remounts_and_crashes() {
    let seed = number("MODEL_SEED");
    let first = seed.unwrap_or(1);
    let total = match (number("MODEL_OPS"), seed) {
        (Some(ops), _) => usize::try_from(ops).expect("a number of operations"),
        (None, Some(_)) => LIFE,
        (None, None) => LIFE * SHORT,
    };
    let lives = total.div_ceil(LIFE) as u64;
    for seed in first..first + lives {
        let life = Life::of(seed);
        live(life, LIFE);
        println!("{life:?}: {LIFE} operations");
    }
}

/// Goal: the judge can say no. Method: a mount with a name, a byte and a mode that the model does not know of.
#[test]
fn a_mount_that_is_not_the_model_is_refused() {
    let dir = support::scratch("model");
    let root = dir.path().join("w");
    fs::create_dir(&root).expect("a folder");
    fs::set_permissions(&root, Permissions::from_mode(0o755)).expect("its mode");
    let mut workload = Workload::new(
        5,
        Mix {
            sync: false,
            ..Mix::DRIVER
        },
    );
    workload.imagine(60);
    let model = workload.model();
    // The model alone makes no files: an empty folder is none of its states.
    assert!(!model.find(|node| matches!(node.kind, Kind::File(_))).is_empty());
    let seen = walk(&root).expect("a walk");
    let refused = std::panic::catch_unwind(|| workload.assert_seen(&seen, "nothing"));
    assert!(refused.is_err(), "an empty folder was taken for the model");
    let fresh = Workload::new(5, Mix::DRIVER);
    fresh.assert_seen(&seen, "nothing");
    for lie in ["name", "mode"] {
        let path: PathBuf = root.join("lie");
        match lie {
            "name" => fs::write(&path, "x").expect("a file"),
            _ => {
                fs::remove_file(&path).expect("the file");
                fs::set_permissions(&root, Permissions::from_mode(0o700)).expect("a mode");
            }
        }
        let seen = walk(&root).expect("a walk");
        let refused = std::panic::catch_unwind(|| fresh.assert_seen(&seen, lie));
        assert!(refused.is_err(), "{lie}: a lie was taken for the truth");
    }
}
