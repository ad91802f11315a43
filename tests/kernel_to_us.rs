//! Proof 1: what the real kernel wrote, we show as it does: names, attributes to the nanosecond, extended attributes
//! with the ACLs among them, bytes, holes and totals, read-only and read-write.

mod ours;
mod support;

use ours::Mount;
use std::path::Path;
use support::fixture::{Fixture, recipe_in_guest};
use support::guest::Kernel;
use support::host::{Host, assert_fsck_clean, copy_sparse, reference_mkfs, sparse};
use support::manifest::Manifest;
use support::tool::{walk_in_guest, work_in_guest};
use support::vm::Vm;
use support::walk::walk;
use support::workload::{Mix, Workload};

/// The kernel shows 0,0 for what the recipe of the trees made with these numbers.
const DEVICES: [(&str, &str); 3] = [
    ("./special/null", "1,3"),
    ("./special/blk", "8,17"),
    ("./special/bigdev", "300,70000"),
];

/// What we show of an image mounted with these options, which is unmounted again.
#[track_caller]
fn our_view(image: &Path, options: &str) -> Manifest {
    let mount = Mount::new(image, options);
    let seen = walk(&mount.path()).unwrap_or_else(|e| panic!("{} with {options}: {e}", image.display()));
    mount.unmount();
    seen
}

/// Fails the test unless we see what the kernel saw, but for facts of these names. The kernel forgets device numbers, so
/// the true ones are looked for in what we see.
#[track_caller]
fn assert_same_view(kernel: &Manifest, ours: &Manifest, but: &[&str]) {
    let kernel = kernel.with_devices_of(ours).without(but);
    kernel.assert_same("kernel", &ours.without(but), "ours");
    for (path, numbers) in DEVICES {
        if let Some(fields) = ours.entries.get(path) {
            assert_eq!(fields["rdev"], numbers, "{path}");
        }
    }
}

#[track_caller]
fn assert_same_bytes(one: &Path, other: &Path, said: &str) {
    let ran = Host::new("cmp").arg(one).arg(other).run();
    assert!(ran.rc == 0, "{said}: {}", ran.output);
}

/// Goal: proof 1 on a fixture. Method: read-only, where a clean image must stay as it is to the byte, then
/// read-write, after which the reference fsck must have nothing to say.
#[track_caller]
fn we_show(name: &str) {
    let fixture = Fixture::load(name);
    let dirty = fixture.journal.iter().any(|j| j.dirty);
    let dir = support::scratch("to-us");
    let image = fixture.unpack(dir.path());
    let pristine = dir.path().join("pristine");
    copy_sparse(&image, &pristine);
    let kernel = fixture.manifest();
    // What recovery was checked with read some files of a crashed image before its tree was written down.
    let crashed = fixture.fsck != 0;
    let but: &[&str] = if crashed { &["atime"] } else { &[] };
    let seen = our_view(&image, "ro,acl,noatime,lockproto=lock_nolock");
    assert_same_view(&kernel, &seen, but);
    if !dirty {
        assert_same_bytes(&pristine, &image, "a read-only mount changed a clean volume");
    }
    let mut kernel = kernel;
    let mut seen = our_view(&image, "acl,noatime,lockproto=lock_nolock");
    if crashed {
        // A read-write mount frees what had no name left.
        kernel.entries.remove("#statfs");
        seen.entries.remove("#statfs");
    }
    assert_same_view(&kernel, &seen, but);
    assert_fsck_clean(&image);
}

#[test]
fn we_show_clean512_as_the_kernel_does() {
    we_show("clean512");
}

#[test]
fn we_show_clean1k_as_the_kernel_does() {
    we_show("clean1k");
}

#[test]
fn we_show_clean2k_as_the_kernel_does() {
    we_show("clean2k");
}

#[test]
fn we_show_clean4k_as_the_kernel_does() {
    we_show("clean4k");
}

#[test]
fn we_show_chain1k_as_the_kernel_does() {
    we_show("chain1k");
}

#[test]
fn we_show_what_a_crash_left_as_the_kernel_does() {
    for name in [
        "dirty4k",
        "dirty1k",
        "dirty4k.after-replay",
        "dirty1k.after-replay",
    ] {
        we_show(name);
    }
}

#[test]
fn we_show_what_a_crash_of_two_nodes_left_as_the_kernel_does() {
    for name in ["cluster2j-dirty", "cluster2j-dirty.after-replay"] {
        we_show(name);
    }
}

/// Goal: proof 1 on volumes of now. Method: in the guest the recipe of the rich trees, and on a second volume the
/// workload with all that GFS2 can do; the kernel's own walk is the measure.
fn we_show_what_is_new(kernel: Kernel, block_size: u32, seed: u64) {
    let dir = support::scratch("to-us");
    let tree = sparse(&dir.path().join("tree.img"), 128 << 20);
    let work = sparse(&dir.path().join("work.img"), 256 << 20);
    reference_mkfs(&work, &["-b", &block_size.to_string(), "-j", "1", "-J", "16"]);
    let vm = Vm::start(kernel, &[&tree, &work]);
    recipe_in_guest(&vm, "tree", "make", "/dev/vda", block_size, "700");
    vm.check("mount -t gfs2 -o acl,noatime /dev/vdb /mnt; mkdir -m 755 /mnt/w");
    work_in_guest(&vm, &mut Workload::new(seed, Mix::GFS2), 600, "/mnt/w");
    vm.check("umount /mnt");
    let walked = ["/dev/vda", "/dev/vdb"].map(|node| {
        vm.check(&format!("mount -t gfs2 -o ro,acl,noatime {node} /mnt"));
        let seen = walk_in_guest(&vm, "/mnt");
        vm.check("umount /mnt");
        seen
    });
    vm.assert_kernel_content();
    vm.crash();
    for (image, kernel) in [&tree, &work].into_iter().zip(&walked) {
        assert!(kernel.entries.len() > 30, "{}: too small a tree", image.display());
        for options in ["ro,acl,noatime", "acl,noatime"] {
            assert_same_view(kernel, &our_view(image, options), &[]);
        }
        assert_fsck_clean(image);
    }
}

#[test]
fn we_show_what_the_6_12_kernel_writes_now() {
    we_show_what_is_new(Kernel::V6_12, 4096, 21);
}

#[test]
fn we_show_what_the_6_1_kernel_writes_now() {
    we_show_what_is_new(Kernel::V6_1, 1024, 22);
}
