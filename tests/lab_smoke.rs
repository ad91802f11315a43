//! The laboratory itself: both kernels boot, and the real GFS2 makes, keeps and shows a filesystem.

mod support;

use std::path::Path;
use std::time::Instant;
use support::guest::Kernel;
use support::host::{assert_fsck_clean, reference_mkfs, sparse};
use support::manifest::Manifest;
use support::tool::walk_in_guest;
use support::vm::{Vm, emulator};

const MIB: u64 = 1 << 20;

/// mkfs on the host, the kernel writes, we read its tree through the tool, the reference fsck is content;
/// then a second disk, plugged in and made in the guest, loses power with a file fsynced and one not.
fn the_kernel_keeps_a_filesystem(kernel: Kernel) {
    let start = Instant::now();
    let dir = support::scratch("smoke");
    let first = sparse(&dir.path().join("first.img"), 64 * MIB);
    reference_mkfs(&first, &["-j", "1", "-J", "8"]);
    let vm = Vm::start(kernel, &[&first]);
    let booted = start.elapsed();
    vm.check("modprobe gfs2; mount -t gfs2 -o acl /dev/vda /mnt");
    vm.check("cd /mnt; mkdir d; echo hello >d/f; ln d/f hard; ln -s d/f soft; mknod null c 1 3; mkfifo p");
    vm.check("cd /mnt; chattr +j d; setfattr -n user.k -v v d/f; xfs_io -f -c 'pwrite -q 1m 4k' sparse");
    let seen = walk_in_guest(&vm, "/mnt");
    vm.check("umount /mnt");
    check_tree(&seen);
    assert_fsck_clean(&first);

    let second = sparse(&dir.path().join("second.img"), 64 * MIB);
    let disk = vm.attach(&second);
    vm.check(&format!(
        "mkfs.gfs2 -q -O -p lock_nolock -j 1 -J 8 {0}; mount -t gfs2 {0} /mnt",
        disk.node
    ));
    vm.check(
        "cd /mnt; mkdir kept; sync; for i in 1 2 3 4; do echo kept >kept/$i; done; xfs_io -c fsync kept",
    );
    vm.assert_kernel_content();
    vm.crash();

    let vm = Vm::start(kernel, &[]);
    let disk = vm.attach(&second);
    vm.check(&format!("modprobe gfs2; mount -t gfs2 {} /mnt", disk.node));
    assert_eq!(vm.check("cat /mnt/kept/*"), "kept\nkept\nkept\nkept\n");
    let log = vm.gfs2_log();
    let replayed = log.iter().find_map(|l| l.split_once("Replayed "));
    assert!(
        replayed.is_some_and(|(_, n)| !n.starts_with('0')),
        "no replay in {log:#?}"
    );
    vm.check("umount /mnt");
    vm.detach(disk);
    vm.assert_kernel_content();
    assert_fsck_clean(&second);
    println!(
        "{}, kernel {}: booted in {booted:?}, all in {:?}",
        emulator(),
        vm.guest().version,
        start.elapsed()
    );
}

fn check_tree(seen: &Manifest) {
    let file = seen.at("./d/f");
    assert_eq!(
        (
            file["type"].as_str(),
            file["nlink"].as_str(),
            file["size"].as_str()
        ),
        ("file", "2", "6")
    );
    assert_eq!(
        file["content"],
        "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    );
    assert_eq!(file["x.user.k"], "76");
    assert_eq!(file["ino"], seen.at("./hard")["ino"]);
    assert_eq!(seen.at("./soft")["target"], "d/f");
    assert_eq!(seen.at("./null")["rdev"], "1,3");
    assert_eq!(seen.at("./p")["type"], "fifo");
    assert_eq!(seen.at("./sparse")["data"], "1048576+4096");
    assert_eq!(seen.at("./d")["flags"], "4000", "FS_JOURNAL_DATA_FL");
}

#[test]
fn the_6_1_kernel_keeps_a_filesystem() {
    the_kernel_keeps_a_filesystem(Kernel::V6_1);
}

#[test]
fn the_6_12_kernel_keeps_a_filesystem() {
    the_kernel_keeps_a_filesystem(Kernel::V6_12);
}

/// Both of the guest's dangers are tied to the pipe: closing it must end the emulator, at once.
#[test]
fn a_power_cut_leaves_no_process() {
    let vm = Vm::start(Kernel::V6_1, &[]);
    let share = vm.share();
    let qemu = || processes_that_mention(&share);
    assert!(!qemu().is_empty(), "the emulator does not run");
    vm.crash();
    assert_eq!(qemu(), Vec::<String>::new());
}

fn processes_that_mention(path: &Path) -> Vec<String> {
    let wanted = path.display().to_string();
    let entries = std::fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    let lines = entries.filter_map(|e| std::fs::read(e.path().join("cmdline")).ok());
    lines
        .map(|l| String::from_utf8_lossy(&l).replace('\0', " "))
        .filter(|l| l.contains(&wanted))
        .collect()
}
