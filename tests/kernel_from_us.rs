//! Proof 2: what we make and write is clean to the reference fsck and the same to the real kernel, which works on it;
//! what it then writes is the same to us, who work on, and the reference fsck has still nothing to say.

mod ours;
mod support;

use ours::{Mount, mkfs};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use support::fixture::{fill_here, recipe_in_guest};
use support::guest::Kernel;
use support::host::{assert_fsck_clean, reference_mkfs, sparse};
use support::manifest::Manifest;
use support::tool::{Worker, walk_in_guest, work_here, work_in_guest};
use support::vm::Vm;
use support::walk::walk;
use support::workload::{Mix, Workload, seed};

const OPTIONS: &str = "acl,noatime";

/// Who made the volume.
#[derive(Clone, Copy, Debug)]
enum Maker {
    Ours,
    Reference,
}

/// A round trip: operations through our mount, in the kernel, and through our mount again.
#[derive(Clone, Copy, Debug)]
struct Case {
    maker: Maker,
    block_size: u32,
    seed: u64,
    /// The operations done when each of the three has had its turn.
    upto: [usize; 3],
}

#[track_caller]
fn see(root: &Path) -> Manifest {
    walk(root).unwrap_or_else(|e| panic!("{}: {e}", root.display()))
}

/// Fails the test unless we see what the kernel sees; it shows device numbers as 0,0.
#[track_caller]
fn assert_same_view(kernel: &Manifest, ours: &Manifest) {
    kernel.with_devices_of(ours).assert_same("kernel", ours, "ours");
}

fn make(image: &Path, maker: Maker, block_size: u32) {
    sparse(image, 512 << 20);
    let args = ["-b", &block_size.to_string(), "-j", "1", "-J", "16"];
    match maker {
        Maker::Ours => mkfs(image, &[&["-p", "lock_nolock"], &args[..]].concat()),
        Maker::Reference => drop(reference_mkfs(image, &args)),
    }
    assert_fsck_clean(image);
}

/// Waits until the free blocks stay as they are: the kernel tells a FUSE filesystem only some time after unlink(2)
/// that nobody uses the inode any more, and its blocks are freed then.
fn settle(root: &Path) {
    let free = || rustix::fs::statvfs(root).expect("statvfs").f_bfree;
    let (mut last, mut same) = (free(), 0);
    while same < 10 {
        std::thread::sleep(std::time::Duration::from_millis(50));
        let now = free();
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
}

/// What we see of the whole volume after a mount of its own, which must be what was seen before it was unmounted.
#[track_caller]
fn unmount_and_look_again(mount: Mount, image: &Path) -> Manifest {
    settle(&mount.path());
    let live = see(&mount.path());
    mount.unmount();
    assert_fsck_clean(image);
    let mount = Mount::new(image, "ro,acl,noatime");
    let again = see(&mount.path());
    mount.unmount();
    live.assert_same("before the unmount", &again, "after it");
    again
}

#[track_caller]
fn round_trip(vm: &Vm, case: Case) {
    println!("{case:?}");
    let dir = support::scratch("from-us");
    let image = dir.path().join("volume.img");
    make(&image, case.maker, case.block_size);
    let mut workload = Workload::new(seed(case.seed), Mix::DRIVER);

    let mount = Mount::new(&image, OPTIONS);
    let folder = mount.join("w");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::set_permissions(&folder, Permissions::from_mode(0o755)).expect("its mode");
    workload.run(&folder, case.upto[0]);
    workload.assert_seen(&see(&folder), "ours");
    let ours = unmount_and_look_again(mount, &image);

    let disk = vm.attach(&image);
    vm.check(&format!("mount -t gfs2 -o {OPTIONS} {} /mnt", disk.node));
    assert_same_view(&walk_in_guest(vm, "/mnt"), &ours);
    workload.assert_seen_by_kernel(&walk_in_guest(vm, "/mnt/w"));
    work_in_guest(vm, &mut workload, case.upto[1], "/mnt/w");
    // What it shows of an inode in its cache is not always what it has written.
    vm.check(&format!(
        "umount /mnt; mount -t gfs2 -o {OPTIONS} {} /mnt",
        disk.node
    ));
    let kernel = walk_in_guest(vm, "/mnt");
    vm.check("umount /mnt");
    vm.detach(disk);
    vm.assert_kernel_content();
    assert_fsck_clean(&image);

    let mount = Mount::new(&image, OPTIONS);
    assert_same_view(&kernel, &see(&mount.path()));
    let folder = mount.join("w");
    workload.assert_seen(&see(&folder), "ours");
    workload.run(&folder, case.upto[2]);
    workload.assert_seen(&see(&folder), "ours");
    let ours = unmount_and_look_again(mount, &image);

    let disk = vm.attach(&image);
    vm.check(&format!("mount -t gfs2 -o ro,acl,noatime {} /mnt", disk.node));
    assert_same_view(&walk_in_guest(vm, "/mnt"), &ours);
    vm.check("umount /mnt");
    vm.detach(disk);
    vm.assert_kernel_content();
}

/// Goal: what the recipe of the rich trees makes through our mount has the shape that recipe promises of the
/// kernel's: heights of trees, a hashed directory, lists of attribute blocks.
#[track_caller]
fn rich_tree(vm: &Vm, block_size: u32) {
    println!("a rich tree, {block_size}");
    let dir = support::scratch("from-us");
    let image = dir.path().join("volume.img");
    make(&image, Maker::Ours, block_size);
    let mount = Mount::new(&image, OPTIONS);
    fill_here("tree", &mount.path(), block_size, "1500");
    let ours = unmount_and_look_again(mount, &image);
    let disk = vm.attach(&image);
    recipe_in_guest(vm, "tree", "check_fill", &disk.node, block_size, "1500");
    vm.check(&format!("mount -t gfs2 -o {OPTIONS} {} /mnt", disk.node));
    assert_same_view(&walk_in_guest(vm, "/mnt"), &ours);
    vm.check("cd /mnt; rm -rf big names deep links data; cd /; umount /mnt");
    vm.detach(disk);
    vm.assert_kernel_content();
    assert_fsck_clean(&image);
    let mount = Mount::new(&image, OPTIONS);
    let root = mount.path();
    for gone in ["xattr", "perm", "special"] {
        std::fs::remove_dir_all(root.join(gone)).expect("a folder to remove");
    }
    let empty = unmount_and_look_again(mount, &image);
    assert_eq!(empty.entries.len(), 2, "{:?}", empty.entries.keys());
    assert_eq!(
        empty.at("#statfs")["bfree"],
        empty_volume(dir.path(), block_size),
        "blocks lost"
    );
}

/// The free blocks of a volume as large that nobody used.
fn empty_volume(dir: &Path, block_size: u32) -> String {
    let image = dir.join("empty.img");
    make(&image, Maker::Ours, block_size);
    let mount = Mount::new(&image, "ro");
    let seen = see(&mount.path());
    mount.unmount();
    seen.at("#statfs")["bfree"].clone()
}

/// Goal: nobody is in another's way. Method: several workloads at a time through our mount, each in a folder of its own;
/// the kernel sees what their models have.
#[track_caller]
fn many_at_a_time(vm: &Vm, block_size: u32, seeds: [u64; 4], upto: usize) {
    println!("{} workloads at a time, {block_size}", seeds.len());
    let dir = support::scratch("from-us");
    let image = dir.path().join("volume.img");
    make(&image, Maker::Ours, block_size);
    let mount = Mount::new(&image, OPTIONS);
    let seeds = seeds.map(seed);
    let workers = seeds.map(|seed| {
        let folder = mount.join(seed.to_string());
        std::fs::create_dir(&folder).expect("a folder");
        std::fs::set_permissions(&folder, Permissions::from_mode(0o755)).expect("its mode");
        work_here(dir.path(), &Workload::new(seed, Mix::DRIVER), upto, &folder)
    });
    workers.into_iter().for_each(Worker::finish);
    let ours = unmount_and_look_again(mount, &image);
    let disk = vm.attach(&image);
    vm.check(&format!("mount -t gfs2 -o ro,acl,noatime {} /mnt", disk.node));
    assert_same_view(&walk_in_guest(vm, "/mnt"), &ours);
    for seed in seeds {
        let mut workload = Workload::new(seed, Mix::DRIVER);
        workload.imagine(upto);
        workload.assert_seen_by_kernel(&walk_in_guest(vm, &format!("/mnt/{seed}")));
    }
    vm.check("umount /mnt");
    vm.detach(disk);
    vm.assert_kernel_content();
}

#[test]
fn the_6_12_kernel_goes_on_where_we_stopped_and_we_where_it_did() {
    let vm = Vm::start(Kernel::V6_12, &[]);
    vm.check("modprobe gfs2");
    for (maker, block_size, seed, upto) in [
        (Maker::Ours, 4096, 31, [3000, 3500, 4500]),
        (Maker::Ours, 1024, 32, [2000, 2300, 3000]),
        (Maker::Reference, 4096, 33, [800, 1000, 1200]),
    ] {
        round_trip(
            &vm,
            Case {
                maker,
                block_size,
                seed,
                upto,
            },
        );
    }
    many_at_a_time(&vm, 4096, [41, 42, 43, 44], 700);
    many_at_a_time(&vm, 1024, [45, 46, 47, 48], 400);
}

#[test]
fn the_6_1_kernel_goes_on_where_we_stopped_and_we_where_it_did() {
    let vm = Vm::start(Kernel::V6_1, &[]);
    vm.check("modprobe gfs2");
    for (maker, block_size, seed, upto) in [
        (Maker::Reference, 1024, 34, [800, 1000, 1300]),
        (Maker::Ours, 2048, 35, [800, 1000, 1300]),
        (Maker::Ours, 512, 36, [800, 1000, 1300]),
    ] {
        round_trip(
            &vm,
            Case {
                maker,
                block_size,
                seed,
                upto,
            },
        );
    }
    for block_size in [4096, 1024] {
        rich_tree(&vm, block_size);
    }
}
