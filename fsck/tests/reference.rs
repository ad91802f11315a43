//! Goal: where the reference fsck.gfs2 says clean, so do we, and the other way round. Method: volumes of the
//! reference mkfs.gfs2 in many shapes, and the fixtures, through both programs. Needs gfs2-utils, which
//! `tests/lab/setup.sh` installs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must fail"
)]

mod support;

use gfs2_format::damage;
use gfs2_format::device::OpenOptions;
use gfs2_format::dir::{Cookie, Entry, read_from};
use gfs2_format::ondisk::{BlockState, DINODE_SIZE, Dinode};
use gfs2_format::volume::{DeviceReader, resolve_path};
use gfs2_format::{BlockRead, Volume};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::Map;
use support::cases::table_blocks;

#[track_caller]
fn need_reference() {
    for tool in ["mkfs.gfs2", "fsck.gfs2"] {
        let run = Command::new(tool)
            .arg("-V")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(
            run.is_ok_and(|status| status.success()),
            "{tool} of gfs2-utils is not installed; run tests/lab/setup.sh as root"
        );
    }
}

fn exit(program: &str, image: &Path) -> (Option<i32>, String) {
    let output = Command::new(program).arg("-n").arg(image).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

#[track_caller]
fn agree(image: &Path, expected: i32, what: &str) {
    let (ours, our_text) = exit(env!("CARGO_BIN_EXE_fsck-gfs2"), image);
    assert_eq!(ours, Some(expected), "{what}: ours: {our_text}");
    // The code alone passes over a dirty journal.
    let clean = our_text.contains(": clean, ");
    assert_eq!(clean, expected == 0, "{what}: ours: {our_text}");
    let (theirs, their_text) = exit("fsck.gfs2", image);
    assert_eq!(theirs, Some(expected), "{what}: the reference: {their_text}");
}

#[test]
fn volumes_of_the_reference_mkfs() {
    need_reference();
    let dir = tempfile::tempdir().unwrap();
    let shapes: &[(u64, &[&str])] = &[
        (1 << 30, &["-p", "lock_nolock"]),
        (1 << 30, &["-p", "lock_nolock", "-j", "5", "-J", "8"]),
        (512 << 20, &["-p", "lock_dlm", "-t", "alpha:data", "-j", "2"]),
        (1 << 30, &["-p", "lock_nolock", "-b", "512", "-J", "8"]),
        (1 << 30, &["-p", "lock_nolock", "-b", "1024", "-r", "32"]),
        (1 << 30, &["-p", "lock_nolock", "-b", "2048", "-c", "3"]),
        (64 << 20, &["-p", "lock_nolock"]),
        (20 << 30, &["-p", "lock_nolock", "-J", "8", "-r", "2048"]),
        (1 << 30, &["-p", "lock_nolock", "-o", "format=1801"]),
        (1 << 30, &["-p", "lock_nolock", "-o", "align=0"]),
        (1 << 30, &["-p", "lock_nolock", "-o", "sunit=65536,swidth=262144"]),
        (200 << 30, &["-p", "lock_nolock", "-J", "8"]),
    ];
    for (size, options) in shapes {
        let image: PathBuf = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(*size).unwrap();
        let made = Command::new("mkfs.gfs2")
            .args(["-O", "-q"])
            .args(*options)
            .arg(&image)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(made.status.success(), "{options:?}: {text}");
        agree(&image, 0, &format!("{size} {options:?}"));
        std::fs::remove_file(image).unwrap();
    }
}

#[test]
fn fixtures() {
    need_reference();
    let dir = tempfile::tempdir().unwrap();
    let images = [
        ("clean512", 0),
        ("clean1k", 0),
        ("clean2k", 0),
        ("clean4k", 0),
        ("chain1k", 0),
        ("dirty1k", 4),
        ("dirty4k", 4),
        ("dirty1k.after-replay", 4),
        ("dirty4k.after-replay", 4),
        ("cluster2j-dirty", 4),
        ("cluster2j-dirty.after-replay", 4),
    ];
    for (name, expected) in images {
        let image = dir.path().join("image");
        let status = Command::new("zstd")
            .args(["-dqf", "--long=27", "--sparse", "-o"])
            .arg(&image)
            .arg(support::fixture_path(name))
            .status()
            .unwrap();
        assert!(status.success());
        agree(&image, expected, name);
    }
}

/// `-n` passes over a dirty journal, and over nothing else.
#[test]
fn dirty_journals_are_passed_over_as_by_the_reference() {
    need_reference();
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let dirty = "set log_header(journal 0 block 1966).lh_flags = 0, fix crc";
    for (more, expected) in [
        ("", 0),
        ("set sb.sb_lockproto = lock_dlm", 0),
        ("set dinode(/links/t).di_nlink = 9", 4),
        ("set statfs.sc_free = 5", 4),
        ("set dinode(/names/a).di_blocks = 9", 4),
    ] {
        let device = support::fixture("clean1k");
        damage::run(&format!("{dirty}\n{more}"), &device).unwrap();
        support::save(&device, &image);
        let (ours, our_text) = exit(env!("CARGO_BIN_EXE_fsck-gfs2"), &image);
        let (theirs, their_text) = exit("fsck.gfs2", &image);
        assert_eq!(
            (ours, theirs),
            (Some(expected), Some(expected)),
            "{more}: {our_text}\n--- the reference:\n{their_text}"
        );
        for text in [our_text, their_text] {
            assert!(text.contains("is dirty"), "{more}: {text}");
        }
    }
}

/// What we replayed and repaired, the reference must find no fault with.
#[test]
fn what_we_replayed_satisfies_the_reference() {
    need_reference();
    let dir = tempfile::tempdir().unwrap();
    for name in ["dirty1k", "dirty4k", "cluster2j-dirty"] {
        let image = dir.path().join(name);
        let status = Command::new("zstd")
            .args(["-dqf", "--long=27", "--sparse", "-o"])
            .arg(&image)
            .arg(support::fixture_path(name))
            .status()
            .unwrap();
        assert!(status.success());
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&image, mode).unwrap();
        let repaired = Command::new(env!("CARGO_BIN_EXE_fsck-gfs2"))
            .arg("-y")
            .arg(&image)
            .output()
            .unwrap();
        assert_eq!(repaired.status.code(), Some(1), "{name}");
        agree(&image, 0, name);
    }
}

/// A hash block behind the end of a hash table: what a doubling leaves that found no room for all of the table. The
/// reference finds no fault with it, and neither do we: it stays.
#[test]
fn a_hash_block_behind_the_table_is_no_damage() {
    need_reference();
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let device = support::fixture("clean1k");
    let map = Map::new(&device);
    let (big, blocks, block) = (map.path("big"), table_blocks(&map), map.blank(BlockState::Free));
    let script = format!(
        "copy block {} to block {block}\nset pointer(/big, {blocks}) = {block}",
        map.top(big, 0)
    );
    damage::run(&script, &device).unwrap();
    support::save(&device, &image);
    // The bitmap and the counts do not know of the block yet; that is repaired, and all there is to repair.
    let repaired = Command::new(env!("CARGO_BIN_EXE_fsck-gfs2"))
        .arg("-y")
        .arg(&image)
        .output()
        .unwrap();
    assert_eq!(repaired.status.code(), Some(1), "{repaired:?}");
    agree(&image, 0, "a hash block more");
    let device = OpenOptions::new().read_only(true).open(&image).unwrap();
    let volume = Volume::open(&device).unwrap();
    let found = DeviceReader::new(&device, &volume.geometry)
        .read(gfs2_format::BlockAddr::new(big))
        .unwrap();
    let at = DINODE_SIZE + blocks * 8;
    assert_eq!(found[at..at + 8], block.to_be_bytes());
}

/// The formal numbers of an entry, if there is one, and of its inode.
fn numbers(image: &Path, dir: &str, name: &str) -> Option<(u64, u64)> {
    let device = OpenOptions::new().read_only(true).open(image).unwrap();
    let volume = Volume::open(&device).unwrap();
    let reader = DeviceReader::new(&device, &volume.geometry);
    let dir = resolve_path(&reader, volume.system.root, dir.as_bytes()).unwrap();
    let mut found = None;
    let mut look = |entry: Entry<'_>| {
        if entry.name == name.as_bytes() {
            found = Some(entry.num);
        }
        ControlFlow::Continue(())
    };
    read_from(&reader, dir, Cookie::START, &mut look).unwrap();
    let num = found?;
    let block = reader.read(num.addr).unwrap();
    let inode = Dinode::decode(&block, num.addr, &volume.geometry).unwrap();
    Some((num.formal.get(), inode.inode_num().formal.get()))
}

/// Entries with a stale formal number (D4): where the reference and we differ, and why. It does not see the one entry
/// of a file, and deletes one of several, with its name.
#[test]
fn names_with_stale_numbers_are_kept() {
    need_reference();
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let ours = env!("CARGO_BIN_EXE_fsck-gfs2");
    for (program, folder, name, code, left) in [
        ("fsck.gfs2", "data", "f4k", 0, Some(false)),
        (ours, "data", "f4k", 1, Some(true)),
        ("fsck.gfs2", "links", "hard1", 1, None),
        (ours, "links", "hard1", 1, Some(true)),
    ] {
        let device = support::fixture("clean1k");
        damage::run(
            &format!("set dirent(/{folder}/{name}).no_formal_ino = 999"),
            &device,
        )
        .unwrap();
        support::save(&device, &image);
        let repaired = Command::new(program).arg("-y").arg(&image).output().unwrap();
        assert_eq!(repaired.status.code(), Some(code), "{program} {name}");
        let right = numbers(&image, folder, name).map(|(entry, inode)| entry == inode);
        assert_eq!(right, left, "{program} {name}");
        if program == ours {
            agree(&image, 0, name);
        }
    }
}
