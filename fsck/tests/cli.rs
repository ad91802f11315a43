//! Goal: the program behaves as the reference's does: options, exit codes, and hands off what it must not touch.
//! Method: run it on copies of fixtures and on things that are no volume.

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
use gfs2_fsck::{Collect, Policy, check};
use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::Hasher;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

struct Run {
    code: i32,
    text: String,
}

fn run(args: &[&str], image: &Path) -> Run {
    run_with(args, Some(image), "")
}

fn run_with(args: &[&str], image: Option<&Path>, input: &str) -> Run {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fsck-gfs2"))
        .args(args)
        .args(image)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The program may end without reading what it is told.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().unwrap();
    let text = [stdout, stderr].concat();
    Run {
        code: status.code().expect("ended by itself"),
        text: String::from_utf8(text).unwrap(),
    }
}

/// A sparse copy of a fixture.
fn copy(dir: &TempDir, name: &str) -> PathBuf {
    let path = dir.path().join(format!("{name}.img"));
    let status = Command::new("zstd")
        .args(["-dq", "--long=27", "--sparse", "-o"])
        .arg(&path)
        .arg(support::fixture_path(name))
        .status()
        .expect("the zstd program is needed to unpack the fixtures");
    assert!(status.success());
    let mut permissions = std::fs::metadata(&path).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    std::fs::set_permissions(&path, permissions).unwrap();
    path
}

fn hash(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut file = File::open(path).unwrap();
    let mut buf = vec![0; 1 << 20];
    loop {
        match file.read(&mut buf).unwrap() {
            0 => return hasher.finish(),
            n => hasher.write(&buf[..n]),
        }
    }
}

#[test]
fn clean_volumes_exit_0_untouched() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["clean512", "clean1k", "clean2k", "clean4k", "chain1k"] {
        let image = copy(&dir, name);
        let before = hash(&image);
        for args in [
            &["-n"][..],
            &["-y"],
            &["-p"],
            &["-a"],
            &["-p", "-f"],
            &["-nq"],
            &["-nv"],
            &[],
        ] {
            let run = run(args, &image);
            assert_eq!(run.code, 0, "{name} {args:?}: {}", run.text);
            let says_clean = run.text.contains(": clean");
            assert_eq!(
                says_clean,
                !args.contains(&"-nq"),
                "{name} {args:?}: {}",
                run.text
            );
        }
        assert_eq!(hash(&image), before, "{name}");
    }
}

#[test]
fn a_crashed_volume_is_left_alone_by_n_and_replayed_by_y() {
    let dir = tempfile::tempdir().unwrap();
    for (name, dirty) in [("dirty4k", 1), ("dirty1k", 1), ("cluster2j-dirty", 2)] {
        let image = copy(&dir, name);
        let before = hash(&image);
        let looked = run(&["-n"], &image);
        assert_eq!(looked.code, 4, "{name}: {}", looked.text);
        assert_eq!(
            looked.text.matches("J1: ").count(),
            dirty,
            "{name}: {}",
            looked.text
        );
        assert_eq!(hash(&image), before, "{name}: -n wrote");
        let journals = [
            "journal0 is dirty and was not",
            "journal0, journal1 are dirty and were not",
        ][dirty - 1];
        let told = format!("{journals} replayed.");
        assert!(looked.text.contains(&told), "{name}: {}", looked.text);
        // What a crash leaves besides: unlinked inodes.
        assert!(looked.text.contains("G8: "), "{name}: {}", looked.text);
        let repaired = run(&["-y", "--watch", "1"], &image);
        assert_eq!(repaired.code, 1, "{name}: {}", repaired.text);
        assert_clean(&image, name);
    }
}

/// Nothing is found at all: the exit code of `-n` alone passes over a dirty journal.
#[track_caller]
fn assert_clean(image: &Path, what: &str) {
    let run = run(&["-n"], image);
    assert!(
        run.code == 0 && run.text.contains(": clean, "),
        "{what}: {}: {}",
        run.code,
        run.text
    );
}

/// Makes a clean volume one whose journal 0 is dirty with nothing in it.
fn soil(image: &Path) {
    let device = OpenOptions::new().open(image).unwrap();
    damage::run(
        "set log_header(journal 0 block 1966).lh_flags = 0, fix crc",
        &device,
    )
    .unwrap();
}

#[test]
fn everything_repaired_exits_1_then_0() {
    let dir = tempfile::tempdir().unwrap();
    for args in ["-y", "-p"] {
        let image = copy(&dir, "clean1k");
        soil(&image);
        let repaired = run(&[args], &image);
        assert_eq!(repaired.code, 1, "{args}: {}", repaired.text);
        assert!(
            repaired.text.contains("replayed on the device"),
            "{args}: {}",
            repaired.text
        );
        assert_clean(&image, args);
        std::fs::remove_file(image).unwrap();
    }
}

/// As the reference, `-n` passes over a journal that a mount will replay; not without saying so, and not over anything
/// else. `--dry-run` does not pass over it.
#[test]
fn a_dirty_journal_alone_is_told_and_passed_over_by_n() {
    let dir = tempfile::tempdir().unwrap();
    let image = copy(&dir, "clean1k");
    soil(&image);
    let before = hash(&image);
    for args in [&["-n"][..], &["-nq"], &["-nv"]] {
        let looked = run(args, &image);
        assert_eq!(looked.code, 0, "{args:?}: {}", looked.text);
        for line in [
            "J1: ",
            ": nothing is wrong but journal0 is dirty and was not replayed.",
        ] {
            assert_eq!(looked.text.matches(line).count(), 1, "{args:?}: {}", looked.text);
        }
        assert!(!looked.text.contains(": clean"), "{args:?}: {}", looked.text);
    }
    let told = run(&["-n", "--json"], &image);
    let summary: serde_json::Value = serde_json::from_str(told.text.lines().last().unwrap()).unwrap();
    assert_eq!(summary["dirty"], serde_json::json!(["journal0"]), "{summary}");
    assert_eq!((&summary["errors"], &summary["exit"]), (&1.into(), &0.into()));
    let strict = run(&["--dry-run"], &image);
    assert_eq!(strict.code, 4, "{}", strict.text);
    assert_eq!(hash(&image), before);
    let device = OpenOptions::new().open(&image).unwrap();
    damage::run("set dinode(/links/t).di_nlink = 9", &device).unwrap();
    drop(device);
    let looked = run(&["-n"], &image);
    assert_eq!(looked.code, 4, "{}", looked.text);
    assert!(looked.text.contains("L1: "), "{}", looked.text);
    assert!(
        looked.text.contains("journal0 is dirty and was not replayed."),
        "{}",
        looked.text
    );
}

#[test]
fn answers_are_asked_for_and_no_means_no() {
    let dir = tempfile::tempdir().unwrap();
    let image = copy(&dir, "clean1k");
    soil(&image);
    let before = hash(&image);
    for input in ["n\n", "", "what\nn\n"] {
        let refused = run_with(&[], Some(&image), input);
        assert_eq!(refused.code, 4, "{input:?}: {}", refused.text);
        assert!(refused.text.contains("(y/n)"), "{input:?}: {}", refused.text);
        assert_eq!(hash(&image), before, "{input:?}");
    }
    let agreed = run_with(&[], Some(&image), "y\n");
    assert_eq!(agreed.code, 1, "{}", agreed.text);
}

#[test]
fn preening_a_dirty_cluster_volume_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let image = copy(&dir, "clean1k");
    soil(&image);
    let device = OpenOptions::new().open(&image).unwrap();
    damage::run("set sb.sb_lockproto = lock_dlm", &device).unwrap();
    drop(device);
    let before = hash(&image);
    let refused = run(&["-p"], &image);
    assert_eq!(refused.code, 4, "{}", refused.text);
    assert_eq!(hash(&image), before);
}

#[test]
fn a_replay_that_was_refused_is_seen_in_memory() {
    let device = support::fixture("dirty4k");
    let mut refused = Collect::default();
    check(
        &device,
        &Policy::repair(gfs2_format::log::LogTime::default()),
        &mut refused,
    )
    .unwrap();
    let mut looked = Collect::default();
    check(&device, &Policy::read_only(), &mut looked).unwrap();
    assert_eq!(refused.problems, looked.problems);
}

#[test]
fn damage_is_told_by_n_and_repaired_by_y() {
    let dir = tempfile::tempdir().unwrap();
    let image = copy(&dir, "clean1k");
    let device = OpenOptions::new().open(&image).unwrap();
    damage::run("set dinode(/links/t).di_nlink = 9", &device).unwrap();
    drop(device);
    let before = hash(&image);
    let line =
        "L1: inode 41149 (/links/t): block 41149: the link count is wrong: di_nlink is 9, expected 3 (0x3)";
    let looked = run(&["-n"], &image);
    assert_eq!(looked.code, 4, "{}", looked.text);
    assert!(looked.text.contains(line), "{}", looked.text);
    // As the reference: preening looks at journals and resource groups only, unless told otherwise.
    assert_eq!(run(&["-p"], &image).code, 0);
    assert_eq!(hash(&image), before);
    let strict = dir.path().join("strict.img");
    std::fs::copy(&image, &strict).unwrap();
    let strict = run(&["-p", "-f"], &strict);
    assert_eq!(strict.code, 1, "{}", strict.text);
    assert!(strict.text.contains(line), "{}", strict.text);
    let repaired = run(&["-y"], &image);
    assert_eq!(repaired.code, 1, "{}", repaired.text);
    assert!(repaired.text.contains(line), "{}", repaired.text);
    assert_clean(&image, "repaired");
    let clean = hash(&image);
    assert_eq!(run(&["-y"], &image).code, 0);
    assert_eq!(hash(&image), clean);
}

#[test]
fn a_dry_run_writes_nothing_and_shows_what_it_would() {
    let dir = tempfile::tempdir().unwrap();
    let image = copy(&dir, "clean1k");
    let device = OpenOptions::new().open(&image).unwrap();
    damage::run("set dinode(/links/t).di_nlink = 9", &device).unwrap();
    drop(device);
    let before = hash(&image);
    let planned = run(&["-y", "--dry-run"], &image);
    assert_eq!(planned.code, 4, "{}", planned.text);
    let at = 41149 * 1024;
    assert!(
        planned.text.contains(&format!("1024 bytes at byte {at}")),
        "{}",
        planned.text
    );
    assert_eq!(hash(&image), before);
}

#[test]
fn what_a_repair_overwrote_can_be_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let image = copy(&dir, "clean1k");
    let device = OpenOptions::new().open(&image).unwrap();
    damage::run("set dinode(/links/t).di_nlink = 9", &device).unwrap();
    drop(device);
    let (before, undo) = (hash(&image), dir.path().join("undo"));
    let file = undo.to_str().unwrap();
    let repaired = run(&["-y", "--undo", file], &image);
    assert_eq!(repaired.code, 1, "{}", repaired.text);
    assert_ne!(hash(&image), before);
    // The file is there already: what it keeps must not be lost.
    assert_eq!(run(&["-y", "--undo", file], &image).code, 16);
    let restored = run(&["--restore", file], &image);
    assert_eq!(restored.code, 0, "{}", restored.text);
    assert_eq!(hash(&image), before);
}

#[test]
fn machines_get_one_object_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let image = copy(&dir, "clean1k");
    let device = OpenOptions::new().open(&image).unwrap();
    damage::run("set dinode(/links/t).di_nlink = 9", &device).unwrap();
    drop(device);
    let looked = run(&["-n", "--json"], &image);
    assert_eq!(looked.code, 4, "{}", looked.text);
    let events: Vec<serde_json::Value> = looked
        .text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect();
    let finding = events.iter().find(|event| event["event"] == "finding").unwrap();
    assert_eq!(finding["code"], "L1");
    assert_eq!((&finding["inode"], &finding["found"]), (&41149.into(), &9.into()));
    assert_eq!(finding["path"], "/links/t");
    let summary = events.last().unwrap();
    assert_eq!(
        (&summary["event"], &summary["exit"]),
        (&"summary".into(), &4.into())
    );
}

/// Power fails after any write of a repair: the volume demands a check, and a check repairs it.
#[test]
fn a_repair_cut_short_anywhere_is_finished_by_the_next_one() {
    use gfs2_format::device::{BlockDevice, Fault, FaultDevice, FaultOp, FaultRule};
    let image = support::fixture("clean1k");
    let map = support::Map::new(&image);
    let script = format!(
        "bitmap block {} = free\nset dinode(/links/t).di_nlink = 9",
        map.top(map.path("data/f4k"), 1)
    );
    damage::run(&script, &image).unwrap();
    let policy = Policy::repair(gfs2_format::log::LogTime::default());
    let yes = || Collect {
        answer: true,
        ..Collect::default()
    };
    for after in 0..50 {
        let device = image.clone();
        let failing = FaultDevice::new(&device);
        failing.add(FaultRule::always(FaultOp::Write, Fault::Errno(5)).after(after));
        let cut = check(&failing, &policy, &mut yes());
        if cut.is_ok() {
            assert!(after > 3, "the repair writes more than {after} times");
            return;
        }
        let outcome = check(&device, &policy, &mut yes()).unwrap();
        assert_eq!(outcome.uncorrected(), 0, "after {after} writes: {outcome:?}");
        let outcome = check(&device, &Policy::read_only(), &mut yes()).unwrap();
        assert_eq!(outcome.errors, 0, "after {after} writes: {outcome:?}");
        assert!(device.size() > 0);
    }
    panic!("the repair never ends");
}

#[test]
fn usage_errors_exit_16() {
    let dir = tempfile::tempdir().unwrap();
    let image = copy(&dir, "clean1k");
    let before = hash(&image);
    for args in [
        &["-n", "-y"][..],
        &["-p", "-y"],
        &["-a", "-n"],
        &["-n", "-p", "-y"],
        &["-Z"],
        &["--zap"],
    ] {
        let run = run(args, &image);
        assert_eq!(run.code, 16, "{args:?}: {}", run.text);
        assert!(!run.text.is_empty());
    }
    assert_eq!(run_with(&[], None, "").code, 16);
    assert_eq!(run(&["-n"], &dir.path().join("missing")).code, 16);
    assert_eq!(run(&["-n"], dir.path()).code, 16);
    assert_eq!(run(&["-n"], Path::new("/dev/null")).code, 16);
    assert_eq!(run(&["-n", "extra"], &image).code, 16);
    assert_eq!(hash(&image), before);
}

#[test]
fn help_and_version_exit_0() {
    let help = run_with(&["-h"], None, "");
    assert_eq!(help.code, 0);
    for option in ["-a", "-p", "-f", "-h", "-n", "-q", "-v", "-V", "-y"] {
        assert!(help.text.contains(option), "{option}: {}", help.text);
    }
    let version = run_with(&["-V"], None, "");
    assert_eq!(version.code, 0);
    assert!(
        version.text.contains(env!("CARGO_PKG_VERSION")),
        "{}",
        version.text
    );
}

#[test]
fn what_is_no_volume_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for size in [0u64, 511, 65536, 65537, 1 << 20, 100 << 20] {
        let path = dir.path().join(format!("{size}"));
        File::create(&path).unwrap().set_len(size).unwrap();
        for args in ["-n", "-y"] {
            let run = run(&[args], &path);
            assert_eq!(run.code, 4, "{size} {args}: {}", run.text);
            assert!(run.text.contains("S1: "), "{size} {args}: {}", run.text);
        }
    }
    let image = copy(&dir, "clean1k");
    let device = OpenOptions::new().open(&image).unwrap();
    damage::run("set sb.sb_fs_format = 1803", &device).unwrap();
    drop(device);
    assert_eq!(run(&["-n"], &image).code, 16, "a newer format is not damage");
}

/// What is missing may be whole elsewhere: one line, nothing is touched; only who insists gets what is left repaired.
#[test]
fn a_truncated_volume_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    for keep in [70_000u64, 8 << 20, 20 << 20, 100 << 20, (200 << 20) - 65536] {
        let image = copy(&dir, "clean1k");
        let file = File::options().write(true).open(&image).unwrap();
        file.set_len(keep).unwrap();
        let before = hash(&image);
        for args in [&["-n"][..], &["-y"], &["-p"], &[]] {
            let run = run(args, &image);
            assert_eq!(run.code, 8, "{keep} {args:?}: {}", run.text);
            let told = run.text.lines().filter(|line| line.starts_with("fsck.gfs2: "));
            let told: Vec<&str> = told.collect();
            assert_eq!(told.len(), 1, "{keep} {args:?}: {}", run.text);
            let blocks = format!("the device has {} blocks of 1024 bytes, the volume ", keep / 1024);
            assert!(told[0].contains(&blocks), "{}", told[0]);
            assert!(!run.text.contains(": block "), "{keep} {args:?}: {}", run.text);
        }
        assert_eq!(hash(&image), before, "{keep}");
        let forced = run(&["-n", "-f"], &image);
        assert_eq!(forced.code & 4, 4, "{keep}: {}", forced.code);
        std::fs::remove_file(image).unwrap();
    }
}

#[test]
fn a_volume_in_use_is_not_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let image = copy(&dir, "clean1k");
    let holder = OpenOptions::new().exclusive(true).open(&image).unwrap();
    assert_eq!(run(&["-y"], &image).code, 16);
    assert_eq!(run(&["-n"], &image).code, 0, "looking is allowed");
    drop(holder);
    // Another test that starts a program has the lock, too, between its fork and its exec.
    let free = || OpenOptions::new().exclusive(true).open(&image).is_ok();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !free() && std::time::Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(run(&["-y"], &image).code, 0);
}

/// Seeded bit flips all over the metadata: whatever comes, the check ends with a verdict.
#[test]
fn flipped_bits_never_end_in_anything_but_a_verdict() {
    let image = support::fixture("clean1k");
    let map = support::Map::new(&image);
    let dinodes = [
        "big",
        "data",
        "names",
        "xattr",
        "xattr/f1",
        "xattr/f2",
        "xattr/f3",
        "data/f3m",
        "data/sparse_8T",
        "",
    ];
    let mut blocks: Vec<u64> = dinodes.iter().map(|path| map.path(path)).collect();
    blocks.extend(["", "jindex", "per_node", "rindex", "jindex/journal0"].map(|path| map.master(path)));
    blocks.extend([
        map.top(map.path("data"), 0),
        map.top(map.path("big"), 0),
        map.eattr(map.path("xattr/f2")),
    ]);
    blocks.extend([
        map.top(map.path("data/f3m"), 0),
        map.eattr(map.path("xattr/f3")),
        map.top(map.master("rindex"), 0),
    ]);
    blocks.extend(
        map.groups()
            .iter()
            .flat_map(|group| [group.addr().get(), group.addr().get() + 1]),
    );
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..100 {
        let device = image.clone();
        for _ in 0..=random() % 8 {
            let block = blocks[(random() % blocks.len() as u64) as usize];
            if block == 0 {
                continue;
            }
            let at = block * 1024 + random() % 1024;
            let mut byte = [0];
            gfs2_format::device::BlockDevice::read_at(&device, at, &mut byte).unwrap();
            byte[0] ^= 1 << (random() % 8);
            gfs2_format::device::BlockDevice::write_at(&device, at, &byte).unwrap();
        }
        let mut found = Collect::default();
        let verdict = check(&device, &Policy::read_only(), &mut found);
        assert!(
            verdict.is_ok() || matches!(verdict, Err(gfs2_format::Error::Unsupported { .. })),
            "round {round}: {verdict:?}"
        );
    }
}

/// A self-made file of exactly the bytes given must not be grown by a check.
#[test]
fn a_check_never_changes_the_size() {
    let dir = tempfile::tempdir().unwrap();
    let image = copy(&dir, "clean1k");
    let file = File::options().write(true).open(&image).unwrap();
    let size = file.metadata().unwrap().len();
    file.write_all_at(&[1; 100], size).unwrap();
    assert_eq!(run(&["-y"], &image).code, 0);
    assert_eq!(std::fs::metadata(&image).unwrap().len(), size + 100);
}
