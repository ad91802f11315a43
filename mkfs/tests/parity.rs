//! Goal: for the same options our volume is the original's, block for block.
//! Method: both programs make a volume of the same size, UUID and time; the two are compared structure by structure and
//! block by block. The original's checker must find nothing wrong with ours.

mod support;

use std::path::Path;
use support::compare::compare;
use support::volume::Volume;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const UUID: &str = "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb";

/// One volume: size in bytes, then arguments.
struct Case(u64, &'static str);

/// Whether the original's fsck looks at our volume; on huge ones it takes long.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fsck {
    Yes,
    No,
}

fn check(cases: &[Case], fsck: Fsck) {
    let dir = tempfile::tempdir().unwrap();
    for Case(size, args) in cases {
        let (a, b) = (
            support::image(dir.path(), "theirs", *size),
            support::image(dir.path(), "ours", *size),
        );
        if !check_pair(&a, &b, args, fsck) {
            return;
        }
    }
}

/// False: the original is not here.
fn check_pair(theirs: &Path, ours: &Path, args: &str, fsck: Fsck) -> bool {
    let Some(mut original) = support::reference("mkfs.gfs2") else {
        return false;
    };
    let begun = std::time::Instant::now();
    let (size, options): (Vec<&str>, Vec<&str>) = args
        .split_whitespace()
        .partition(|word| word.starts_with("blocks="));
    let blocks = size.first().map(|word| word.trim_start_matches("blocks="));
    let arguments = |path: &Path| -> Vec<std::ffi::OsString> {
        let mut all: Vec<std::ffi::OsString> = vec!["-O".into(), "-U".into(), UUID.into()];
        all.extend(options.iter().map(Into::into));
        if !options.contains(&"-t") {
            all.extend(["-p".into(), "lock_nolock".into()]);
        }
        all.push(path.into());
        all.extend(blocks.map(Into::into));
        all
    };
    let their_output = support::run_ok(original.args(arguments(theirs)));
    let their_volume = Volume::open(theirs);
    let time = their_volume.master().di.ctime.get();
    let our_output = support::run_ok(
        support::ours()
            .env("SOURCE_DATE_EPOCH", time.to_string())
            .args(arguments(ours)),
    );
    let our_volume = Volume::open(ours);
    let differences = compare(&their_volume, &our_volume);
    if let Some(text) = differences.text() {
        panic!("{args}: the volumes differ\n{text}");
    }
    let say = |output: &std::process::Output, path: &Path| {
        String::from_utf8_lossy(&output.stdout).replace(&path.display().to_string(), "IMAGE")
    };
    assert_eq!(say(&our_output, ours), say(&their_output, theirs), "{args}");
    if fsck == Fsck::Yes
        && let Some(mut checker) = support::reference("fsck.gfs2")
    {
        support::run_ok(checker.arg("-n").arg(ours));
    }
    println!("{:6.1?} {args}", begun.elapsed());
    true
}

#[test]
fn small_volumes_of_every_block_size() {
    check(
        &[
            Case(16 * MIB, ""),
            Case(32 * MIB, ""),
            Case(32 * MIB, "-b 512"),
            Case(32 * MIB, "-b 1024"),
            Case(32 * MIB, "-b 2048"),
            Case(33 * MIB + 513, "-b 4096"),
            Case(64 * MIB, "-j 2"),
            Case(64 * MIB, "-j 2 -b 512"),
            Case(100 * MIB + 12_345, "-b 1024 -j 3"),
            Case(777_777_777, "-b 2048 -j 4"),
        ],
        Fsck::Yes,
    );
}

#[test]
fn directories_that_outgrow_their_dinode() {
    check(
        &[
            Case(160 * MIB, "-b 512 -j 9 -J 8"),
            Case(GIB, "-b 512 -j 16 -J 8"),
            Case(GIB, "-b 1024 -j 16 -J 8"),
            Case(GIB, "-b 2048 -j 16 -J 8"),
            Case(GIB, "-b 4096 -j 16 -J 8"),
            Case(3 * GIB, "-b 4096 -j 90 -J 8"),
            Case(3 * GIB, "-b 512 -j 90 -J 8"),
        ],
        Fsck::Yes,
    );
}

#[test]
fn sizes_of_journals_groups_and_quota_changes() {
    check(
        &[
            Case(GIB, ""),
            Case(GIB, "-b 512"),
            Case(GIB, "-c 64"),
            Case(GIB, "-c 9 -b 512"),
            Case(GIB, "-c 3 -b 1024"),
            Case(GIB, "-J 33 -j 2 -r 32"),
            Case(GIB, "-r 219"),
            Case(5 * GIB, "-r 2048 -b 512"),
            Case(5 * GIB, "-r 2048"),
            Case(3 * GIB, "-J 1024"),
            Case(20 * GIB, "-r 32 -J 8"),
        ],
        Fsck::Yes,
    );
}

#[test]
fn formats_protocols_and_flags() {
    check(
        &[
            Case(64 * MIB, "-t cluster:fs -o format=1801"),
            Case(64 * MIB, "-t cluster:fs -p lock_dlm -o format=1802"),
            Case(
                64 * MIB,
                "-p lock_dlm -t 12345678901234567890123456789012:123456789012345678901234567890",
            ),
            Case(64 * MIB, "-o root_inherit_jdata"),
            Case(64 * MIB, "-o root_inherit_jdata=0"),
            Case(GIB, "blocks=100000"),
            Case(GIB, "-b 1024 blocks=511996"),
            Case(GIB, "blocks=5000"),
        ],
        Fsck::Yes,
    );
}

#[test]
fn aligned_groups() {
    check(
        &[
            Case(GIB, "-o sunit=65536,swidth=393216"),
            Case(GIB, "-o sunit=64k,swidth=384k -j 3 -b 1024"),
            Case(GIB, "-o sunit=64k,swidth=384k,align=0"),
            Case(5 * GIB, "-o sunit=1m,swidth=8m -r 64"),
            Case(2 * GIB, "-o sunit=8b,swidth=8b"),
            Case(20 * GIB, "-o test_topology=0:512:65536:393216:512"),
            Case(20 * GIB, "-o test_topology=0:512:131072:6291456:512"),
            Case(2 * GIB, "-o test_topology=0:512:4194304:8388608:512 -b 1024"),
            Case(GIB, "-o test_topology=7168:512:8192:33553920:512"),
            Case(GIB, "-o test_topology=7168:512:0:33553920:512"),
            Case(GIB, "-o test_topology=0:0:0:0:0"),
            Case(GIB, "-o test_topology=0:512:512:512:512"),
            Case(GIB, "-o test_topology=0:512:65536:393216:512,align=0"),
            Case(GIB, "-o test_topology=0:512:4096:0:4096 -b 512"),
        ],
        Fsck::Yes,
    );
}

#[test]
fn what_was_on_the_device_shines_through_nowhere_more_than_in_the_original() {
    let dir = tempfile::tempdir().unwrap();
    for args in ["", "-b 512 -j 2", "-o sunit=64k,swidth=384k", "blocks=12000"] {
        let paths = ["theirs", "ours"].map(|name| {
            let path = dir.path().join(name);
            std::fs::write(&path, vec![0xa5; 64 * MIB as usize]).unwrap();
            path
        });
        if !check_pair(&paths[0], &paths[1], args, Fsck::Yes) {
            return;
        }
    }
}

#[test]
fn large_volumes() {
    check(
        &[Case(100 * GIB, "-j 5 -J 32"), Case(100 * GIB, "-b 512 -J 8")],
        Fsck::Yes,
    );
    check(
        &[
            Case(1024 * GIB, "-J 32"),
            // More than 2^32 blocks: the original's arithmetic is of 32 bits there.
            Case(2050 * GIB, "-b 512 -J 8 -r 2048"),
        ],
        Fsck::No,
    );
}

/// The largest file that ext4 holds; with the largest groups, so that the original needs seconds, not minutes.
#[test]
fn the_largest_volume() {
    check(&[Case(16_383 * GIB, "-j 5 -J 32 -r 2048")], Fsck::No);
}

/// Where no io_uring is to be had, which here is for want of file descriptors, plain calls make the same volume: on
/// several threads, the blocks of large files reserved before they are written through the page cache.
#[test]
fn the_volume_is_the_same_without_io_uring() {
    let dir = tempfile::tempdir().unwrap();
    for Case(size, args) in [
        Case(64 * MIB, "-b 512 -J 8"),
        Case(GIB, "-j 3 -J 8"),
        Case(300 * GIB, "-J 32"),
    ] {
        let volumes = ["1024", "6"].map(|descriptors| {
            let path = support::image(dir.path(), descriptors, size);
            let program = support::ours();
            let mut command = std::process::Command::new("sh");
            command
                .args(["-c", r#"ulimit -n "$0" && exec "$@""#, descriptors])
                .arg(program.get_program())
                .args(["-O", "-U", UUID, "-p", "lock_nolock"])
                .args(args.split_whitespace())
                .arg(&path)
                .env("SOURCE_DATE_EPOCH", "1700000000");
            support::run_ok(&mut command);
            Volume::open(&path)
        });
        let [with, without] = &volumes;
        if let Some(text) = compare(with, without).text() {
            panic!("{args}: the volumes differ\n{text}");
        }
    }
}
