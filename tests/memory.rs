//! Goal: the daemon takes as much memory as it was allowed, whatever is asked of it. Method: real mounts with a small
//! `memory=`; a walk of many files, a large file with many extents, a large volume; the most the process ever took
//! (VmHWM) is held to the budget and a constant.
//!
//! `MEMORY_FILES=n` walks n files (40000; of the million in the log of the issue), `MEMORY_FILE_GIB=n` makes the large
//! file so large (8), `MEMORY_VOLUME_GIB=n` the large volume (2048).

mod ours;
mod support;

use ours::{Mount, mkfs};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use support::host::{assert_fsck_clean, sparse};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// What a process takes beside its caches: itself, threads, a buffer or two for each request under way.
const CONSTANT: u64 = 96 * MIB;
/// What the log may take on top: three times the journal of these volumes.
const LOG: u64 = 3 * 8 * MIB;

fn wanted(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| {
        text.parse().unwrap_or_else(|e| panic!("{name}: {e}"))
    })
}

/// The most the daemon of this mount ever took, in bytes.
fn peak(mount: &Mount) -> u64 {
    let pid = mount.daemon().expect("a daemon");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok()).expect("VmHWM") << 10
}

#[track_caller]
fn assert_within(mount: &Mount, budget: u64, what: &str) {
    let peak = peak(mount);
    eprintln!("{what}: {} MiB at most, {} MiB allowed", peak / MIB, budget / MIB);
    assert!(
        peak <= budget + CONSTANT + LOG,
        "{what}: the daemon took {} MiB, {} MiB were allowed",
        peak / MIB,
        budget / MIB
    );
}

/// Every name below, each looked at; their number.
fn walk(folder: &Path) -> u64 {
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let entry = entry.expect("an entry");
        let meta = entry.metadata().expect("its attributes");
        count += 1;
        if meta.is_dir() {
            count += walk(&entry.path());
        } else {
            assert_eq!(meta.len(), 3);
        }
    }
    count
}

#[test]
fn a_walk_of_many_files_keeps_to_the_budget() {
    let files = wanted("MEMORY_FILES", 40_000);
    let dir = support::scratch("memory");
    let image = sparse(&dir.path().join("volume.img"), 512 * MIB + files * 6 * 1024);
    mkfs(&image, &["-p", "lock_nolock", "-J", "8"]);
    let budget = 32 * MIB;
    let mount = Mount::new(&image, "memory=32M");
    let folders = files / 500;
    for n in 0..folders {
        let folder = mount.join(format!("d{n}"));
        fs::create_dir(&folder).unwrap();
        for n in 0..500 {
            fs::write(folder.join(format!("file {n}")), b"abc").unwrap();
        }
    }
    assert_within(&mount, budget, "making files");
    mount.unmount();
    let mount = Mount::new(&image, "memory=32M");
    assert_eq!(walk(&mount.path()), folders * 501);
    // Again, with what the kernel remembers, and with what it does not.
    assert_eq!(walk(&mount.path()), folders * 501);
    for n in (0..folders).step_by(7) {
        for m in (0..500).step_by(11) {
            let file = mount.join(format!("d{n}/file {m}"));
            assert_eq!(fs::read(&file).unwrap(), b"abc", "{}", file.display());
        }
    }
    assert_within(&mount, budget, "walking files");
    mount.unmount();
    assert_fsck_clean(&image);
}

#[test]
fn a_large_file_keeps_to_the_budget() {
    let gib = wanted("MEMORY_FILE_GIB", 8);
    let dir = support::scratch("memory");
    // One block of each MiB: as many extents, and pointers all over the tree.
    let image = sparse(&dir.path().join("volume.img"), 2 * GIB + gib * 12 * MIB);
    mkfs(&image, &["-p", "lock_nolock", "-J", "8"]);
    let budget = 32 * MIB;
    let mount = Mount::new(&image, "memory=32M");
    let path = mount.join("large");
    let file = File::create(&path).unwrap();
    file.set_len(gib * GIB).unwrap();
    for mib in 0..gib * 1024 {
        file.write_all_at(&mib.to_le_bytes().repeat(512), mib * MIB + 8192)
            .unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    // And one that is all there.
    let mut dense = File::create(mount.join("dense")).unwrap();
    let chunk = vec![0xd5; MIB as usize];
    for _ in 0..768 {
        dense.write_all(&chunk).unwrap();
    }
    dense.sync_all().unwrap();
    drop(dense);
    assert_within(&mount, budget, "writing a large file");
    mount.unmount();
    let mount = Mount::new(&image, "memory=32M");
    let mut file = File::open(mount.join("large")).unwrap();
    let mut buf = vec![0; MIB as usize];
    for mib in 0..gib * 1024 {
        file.read_exact(&mut buf).unwrap();
        assert!(buf[8192..12288] == mib.to_le_bytes().repeat(512)[..], "MiB {mib}");
        assert!(
            buf[..8192].iter().chain(&buf[12288..]).all(|b| *b == 0),
            "MiB {mib}"
        );
    }
    let mut dense = File::open(mount.join("dense")).unwrap();
    for mib in 0..768 {
        dense.read_exact(&mut buf).unwrap();
        assert!(buf.iter().all(|b| *b == 0xd5), "MiB {mib}");
    }
    assert_within(&mount, budget, "reading a large file");
    drop((file, dense));
    mount.unmount();
    assert_fsck_clean(&image);
}

#[test]
fn a_large_volume_keeps_to_the_budget() {
    let gib = wanted("MEMORY_VOLUME_GIB", 2048);
    let dir = support::scratch("memory");
    let image = sparse(&dir.path().join("volume.img"), gib * GIB);
    mkfs(&image, &["-p", "lock_nolock", "-J", "8", "-r", "2048"]);
    let mount = Mount::new(&image, "memory=32M");
    // Directories go to groups of their own: each map is read. The mount itself looks through all of them.
    for n in 0..gib / 2 {
        let folder = mount.join(format!("d{n}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), b"abc").unwrap();
    }
    assert_within(&mount, 32 * MIB + gib * 1024, "a large volume");
    mount.unmount();
}

#[test]
fn the_report_says_what_the_caches_take() {
    let dir = support::scratch("memory");
    let image = sparse(&dir.path().join("volume.img"), 128 * MIB);
    mkfs(&image, &["-p", "lock_nolock", "-J", "8"]);
    for wrong in ["memory=1M", "memory=lots", "memory="] {
        let (code, text) = Mount::try_new(&image, wrong).unwrap_err();
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("memory=") && text.contains("16M"), "{text}");
    }
    Mount::new(&image, "memory=16M").unmount();
}
