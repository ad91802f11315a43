//! Goal: the real kernel takes what we repaired, and what it made in ways no test here can (a full volume, a grown
//! one) we leave alone; what is lost of the groups of a grown one we find again. Method: one guest; the repaired image of every case of the damage catalogue takes its turn on
//! the guest's disk, is mounted, read from end to end, written to and unmounted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must fail"
)]

mod lab;
mod support;

use gfs2_format::BlockAddr;
use gfs2_format::damage;
use gfs2_format::device::{BlockDevice, MemDevice};
use gfs2_format::log::LogTime;
use gfs2_format::ondisk::Rgrp;
use gfs2_fsck::{Collect, Policy, check};
use lab::guest::Kernel;
use lab::host::{Host, sparse};
use lab::vm::Vm;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::cases::{CASES, Case, IMAGE};
use support::groups::lose_and_repair;
use support::heavy::HEAVY;
use support::{Map, fixture, save};

/// Bytes compared and written at a time.
const PIECE: usize = 1 << 14;

/// The image of a case as we repair it.
fn repaired(case: &Case) -> MemDevice {
    let device = fixture(IMAGE);
    damage::run(&(case.script)(&Map::new(&fixture(IMAGE))), &device).unwrap();
    let mut found = Collect {
        answer: true,
        ..Collect::default()
    };
    let now = LogTime {
        sec: 1_700_000_000,
        nsec: 0,
    };
    let outcome = check(&device, &Policy::repair(now), &mut found).unwrap();
    assert_eq!(outcome.uncorrected(), 0, "{}: {outcome:?}", case.name);
    device
}

/// Makes the file what the device is.
fn put(device: &MemDevice, file: &File) {
    let (mut wanted, mut found) = (vec![0; PIECE], vec![0; PIECE]);
    for at in (0..device.size()).step_by(PIECE) {
        let len = PIECE.min((device.size() - at) as usize);
        device.read_at(at, &mut wanted[..len]).unwrap();
        file.read_exact_at(&mut found[..len], at).unwrap();
        if wanted[..len] != found[..len] {
            file.write_all_at(&wanted[..len], at).unwrap();
        }
    }
}

/// What the guest does with every image: reads the bytes of all files but the sparse ones of gigabytes, the names of the
/// thousands of empty ones, the attributes; then changes something, so that allocation and journal are in use, too. A
/// superblock made anew names no cluster (lock_dlm, "unknown", as the original's), so the mount says how to lock.
const USE: &str = "set -e
blockdev --flushbufs /dev/vda
mount -t gfs2 -o acl,lockproto=lock_nolock /dev/vda /mnt
find /mnt -path /mnt/big -prune -o -type f -size -65536k -print0 | xargs -0 cat >/dev/null
find /mnt/links /mnt/lost+found -type l -exec readlink {} \\; >/dev/null 2>&1 || true
ls -f /mnt/big | wc -l
getfattr -R -d -m - /mnt/xattr >/dev/null
mkdir /mnt/new; echo content >/mnt/new/file; rm -r /mnt/new
umount /mnt
";

#[test]
fn the_kernel_mounts_what_we_repaired() {
    let dir = lab::scratch("repaired");
    let path = dir.path().join("volume.img");
    save(&fixture(IMAGE), &path);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let vm = Vm::start(Kernel::V6_12, &[&path]);
    vm.check("modprobe gfs2");
    let only = std::env::var("CASE").ok();
    let cases = CASES.iter().chain(HEAVY);
    let mut failures = Vec::new();
    let mut count = 0;
    for case in cases.filter(|case| only.as_ref().is_none_or(|only| case.name == only)) {
        put(&repaired(case), &file);
        let log_before = vm.console().len();
        let ran = vm.run_for(USE, Duration::from_secs(300));
        let log = vm.console().split_off(log_before);
        let complaint = [
            "fatal", "withdraw", "consist", "rror", "invalid", "corrupt", "bad ",
        ]
        .iter()
        .any(|word| {
            log.lines()
                .any(|line| line.contains("gfs2") && line.contains(word))
        });
        if ran.rc != 0 || complaint {
            failures.push(format!("{}: {}\n{}\n{log}", case.name, ran.rc, ran.output));
            vm.run("umount -f /mnt");
        }
        count += 1;
    }
    assert!(
        count > 0 && failures.is_empty(),
        "{count} images:\n{}",
        failures.join("\n")
    );
    vm.assert_kernel_content();
}

#[track_caller]
fn agree_and_touch_nothing(image: &Path) {
    let hash = |path: &Path| Host::new("sha256sum").arg(path).check();
    let before = hash(image);
    for program in [env!("CARGO_BIN_EXE_fsck-gfs2"), "fsck.gfs2"] {
        let output = Command::new(program).arg("-n").arg(image).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(
            output.status.code(),
            Some(0),
            "{program} {}: {text}",
            image.display()
        );
        // The code alone passes over a dirty journal.
        let is_dirty = text.contains("is dirty");
        assert!(!is_dirty, "{program} {}: {text}", image.display());
        assert_eq!(hash(image), before, "{program}");
    }
}

#[test]
fn full_and_grown_volumes_of_the_kernel_are_left_alone() {
    let dir = lab::scratch("controls");
    let mut images = Vec::new();
    for (name, bsize) in [
        ("full", "4096"),
        ("full1k", "1024"),
        ("grown", "4096"),
        ("grown512", "512"),
    ] {
        let image = dir.path().join(name);
        let grown = name.starts_with("grown");
        sparse(&image, if grown { 160 << 20 } else { 96 << 20 });
        let made = Command::new("mkfs.gfs2")
            .args([
                "-O",
                "-q",
                "-p",
                "lock_nolock",
                "-J",
                "8",
                "-r",
                "32",
                "-b",
                bsize,
            ])
            .arg(&image)
            .status()
            .unwrap();
        assert!(made.success());
        if grown {
            File::options()
                .write(true)
                .open(&image)
                .unwrap()
                .set_len(400 << 20)
                .unwrap();
        }
        images.push(image);
    }
    let disks: Vec<&Path> = images.iter().map(|image| &**image).collect();
    let vm = Vm::start(Kernel::V6_12, &disks);
    vm.check("modprobe gfs2");
    for disk in ["vda", "vdb"] {
        let fill = format!(
            "mount -t gfs2 /dev/{disk} /mnt; mkdir /mnt/d
             i=0; while echo $i >/mnt/d/$i 2>/dev/null && [ $i -lt 300 ]; do i=$((i+1)); done
             dd if=/dev/zero of=/mnt/large bs=64k 2>/dev/null || true
             while echo x >/mnt/d/last$i 2>/dev/null; do i=$((i+1)); done
             df /mnt | tail -1; umount /mnt"
        );
        let ran = vm.run_for(&fill, Duration::from_secs(600));
        assert_eq!(ran.rc, 0, "{}", ran.output);
        assert!(ran.output.contains("100%"), "{}", ran.output);
    }
    for disk in ["vdc", "vdd"] {
        let grow = format!(
            "mount -t gfs2 /dev/{disk} /mnt; before=$(stat -f -c %b /mnt)
             fill() {{ for i in $(seq 24); do mkdir /mnt/$1$i; echo $1 $i >/mnt/$1$i/small
             dd if=/dev/urandom of=/mnt/$1$i/large bs=64k count=6 2>/dev/null; done; }}
             fill before; gfs2_grow /mnt; fill after
             after=$(stat -f -c %b /mnt); umount /mnt; [ $after -gt $before ]"
        );
        vm.check_for(&grow, Duration::from_secs(300));
    }
    vm.assert_kernel_content();
    drop(vm);
    images.iter().for_each(|image| agree_and_touch_nothing(image));
    // What is lost of the groups that gfs2_grow made is found again.
    // Of 4096-byte blocks a group's only bitmap block is its header: without these and the index nothing is left.
    let left: [(&str, &[&str]); 2] = [("grown", &["all entries and headers"]), ("grown512", &[])];
    for (name, alone) in left {
        let image = &dir.path().join(name);
        let volume = load(image);
        let groups = Map::new(&volume).groups();
        let used = groups
            .iter()
            .filter(|group| !is_unused(&volume, group.addr().get()));
        let (count, used) = (groups.len(), used.count());
        let sizes: Vec<u32> = groups.iter().map(|group| group.data()).collect();
        println!("{}: groups of {sizes:?} blocks, {used} in use", image.display());
        assert!(
            used > 3,
            "{}: {used} of {count} groups are in use",
            image.display()
        );
        let failures = lose_and_repair(&volume, alone);
        assert!(
            failures.is_empty(),
            "{}:\n{}",
            image.display(),
            failures.join("\n")
        );
    }
}

/// A file as a device.
fn load(image: &Path) -> MemDevice {
    let file = File::open(image).unwrap();
    let device = MemDevice::new(file.metadata().unwrap().len());
    let mut piece = vec![0; PIECE];
    for at in (0..device.size()).step_by(PIECE) {
        let len = PIECE.min((device.size() - at) as usize);
        file.read_exact_at(&mut piece[..len], at).unwrap();
        if piece[..len].iter().any(|byte| *byte != 0) {
            device.write_at(at, &piece[..len]).unwrap();
        }
    }
    device
}

/// Does the header at this address say that all blocks of its group are free?
fn is_unused(volume: &MemDevice, addr: u64) -> bool {
    let block = Map::new(volume).block(addr);
    let header = gfs2_format::ondisk::view::<Rgrp>(&block, 0, BlockAddr::new(addr)).unwrap();
    header.free == header.data
}
