//! Goal: what is no damage is told from damage, and `-n` writes nothing whatever it finds. Method: volumes of unusual
//! shapes through both programs; their bytes before and after. Full and grown volumes: `kernel.rs`.
//!
//! Needs gfs2-utils, which `tests/lab/setup.sh` installs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must fail"
)]

mod support;

use gfs2_format::damage;
use gfs2_format::device::MemDevice;
use std::collections::hash_map::DefaultHasher;
use std::fmt::Write;
use std::fs::File;
use std::hash::Hasher;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use support::{Map, fixture, save};

/// Contents, and when they were written last.
fn print(path: &Path) -> (u64, i64, i64) {
    let mut hasher = DefaultHasher::new();
    let mut file = File::open(path).unwrap();
    let meta = file.metadata().unwrap();
    let mut buf = vec![0; 1 << 20];
    loop {
        match file.read(&mut buf).unwrap() {
            0 => return (hasher.finish(), meta.mtime(), meta.mtime_nsec()),
            n => hasher.write(&buf[..n]),
        }
    }
}

fn exit(program: &str, args: &[&str], image: &Path) -> (Option<i32>, String) {
    let output = Command::new(program)
        .args(args)
        .arg(image)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}; run tests/lab/setup.sh as root"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// Both say `code`, and ours leaves every byte and the time alone in every way of only looking.
#[track_caller]
fn untouched(image: &Path, code: i32, what: &str) {
    let before = print(image);
    for args in [
        &["-n"][..],
        &["-n", "-f"],
        &["-n", "-v", "--json"],
        &["-y", "--dry-run"],
    ] {
        let (found, text) = exit(env!("CARGO_BIN_EXE_fsck-gfs2"), args, image);
        assert_eq!(found, Some(code), "{what} {args:?}: {text}");
        // The code alone passes over a dirty journal.
        let passed_over = text.contains("J1: ") || text.contains("JournalDirty");
        assert!(code != 0 || !passed_over, "{what} {args:?}: {text}");
        assert_eq!(print(image), before, "{what} {args:?}");
    }
    let (found, text) = exit("fsck.gfs2", &["-n"], image);
    assert_eq!(found, Some(code), "{what}: the reference: {text}");
}

#[test]
fn volumes_of_every_shape() {
    let dir = tempfile::tempdir().unwrap();
    let shapes: &[(&str, u64, &[&str])] = &[
        ("512-byte blocks", 64 << 20, &["-b", "512", "-J", "8"]),
        ("format 1801", 64 << 20, &["-o", "format=1801"]),
        ("16 journals", 320 << 20, &["-j", "16", "-J", "8"]),
    ];
    for (what, size, options) in shapes {
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(*size).unwrap();
        let made = Command::new("mkfs.gfs2")
            .args(["-O", "-q", "-p", "lock_nolock"])
            .args(*options)
            .arg(&image)
            .output()
            .unwrap();
        assert!(made.status.success(), "{what}");
        untouched(&image, 0, what);
        std::fs::remove_file(image).unwrap();
    }
}

#[test]
fn populated_and_crashed_volumes() {
    let dir = tempfile::tempdir().unwrap();
    for (name, code) in [
        ("clean512", 0),
        ("chain1k", 0),
        ("dirty1k", 4),
        ("cluster2j-dirty", 4),
    ] {
        let image = dir.path().join("image");
        save(&fixture(name), &image);
        untouched(&image, code, name);
    }
}

/// Groups as a conversion from GFS1 leaves them: of sizes that follow no rule, with blocks between them that belong to
/// no group, and with headers from before they held copies of the index and a checksum.
fn spaced() -> MemDevice {
    let device = fixture("clean1k");
    let map = Map::new(&device);
    let groups = map.groups();
    let mut script = String::new();
    let mut cut = 0;
    for (n, group) in groups.iter().enumerate() {
        let header = map.block(group.addr().get());
        let field = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        // How many blocks at its end are free, in whole bytes of the bitmap.
        let bits: Vec<u8> = group
            .slices()
            .flat_map(|slice| slice.bits(&map.block(slice.block.get())).unwrap().to_vec())
            .collect();
        let free = bits.iter().rev().take_while(|byte| **byte == 0).count() as u32 * 4;
        let less = (free / 2).min(4 * (n as u32 + 5) * 3) / 4 * 4;
        // The last bitmap block must still be needed.
        let (data, capacity) = (
            group.data(),
            map.volume.geometry.bitmap_capacity(u64::from(group.length()) - 1),
        );
        let less = if u64::from(data - less) > capacity {
            less
        } else {
            0
        };
        cut += u64::from(less);
        let _ = writeln!(
            script,
            "set rindex({n}).ri_data = {0}\nset rindex({n}).ri_bitbytes = {1}\n\
             set rgrp({n}).rg_free = {2}\nset rgrp({n}).rg_skip = 0\nset rgrp({n}).rg_data0 = 0\n\
             set rgrp({n}).rg_data = 0\nset rgrp({n}).rg_bitbytes = 0\nset rgrp({n}).rg_crc = 0",
            data - less,
            (data - less) / 4,
            field(28) - less
        );
    }
    assert!(cut > 0, "no group has room");
    let statfs = map.block(map.master("statfs"));
    let word = |at: usize| i64::from_be_bytes(statfs[232 + at..240 + at].try_into().unwrap());
    let _ = writeln!(
        script,
        "set statfs.sc_total = {}\nset statfs.sc_free = {}",
        word(0) - cut as i64,
        word(8) - cut as i64
    );
    damage::run(&script, &device).unwrap();
    device
}

#[test]
fn groups_with_gaps_between_them() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    save(&spaced(), &image);
    untouched(&image, 0, "gfs1 spacing");
}
