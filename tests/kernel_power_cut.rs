//! Goal: what a power cut leaves of our mount, the kernel replays as we do. Method: disks of seeded power cuts, each
//! replayed by the kernel (a read-only mount) and by us: the same bytes outside the journal, the reference checker has
//! nothing to say but of inodes without names, and the tree that was synced is there.

mod node;
mod support;

use gfs2_format::device::{BlockDevice, MemDevice, OpenOptions};
use node::record::{Image, LEFT_BY_A_CRASH, record};
use node::tree::observe;
use node::{Node, Shape, judge};
use std::sync::Arc;
use support::fixture::replays;
use support::guest::Kernel;
use support::host::reference_fsck;
use support::vm::Vm;

/// Replayed by the kernel, a copy.
fn replayed_by_kernel(vm: &Vm, folder: &std::path::Path, image: &Image) -> MemDevice {
    let path = folder.join("image");
    judge::store(&image.device, &path);
    let disk = vm.attach(&path);
    vm.check("dmesg -c >/dev/null");
    vm.check(&format!(
        "mount -t gfs2 -o ro,noatime {} /mnt && umount /mnt",
        disk.node
    ));
    let log = vm.gfs2_log();
    assert!(replays(&log).len() <= 1, "{}: {log:#?}", image.what);
    vm.detach(disk);
    let file = OpenOptions::new().read_only(true).direct(false).open(&path);
    let copy = MemDevice::copy_of(&file.expect("the image")).expect("the image");
    let said = reference_fsck(&path);
    assert!([0, 4].contains(&said.rc), "{}: {}", image.what, said.output);
    copy
}

fn same(vm: &Vm, shape: Shape, seed: u64, every: u32) -> u32 {
    let folder = support::scratch("power");
    let record = record(seed, shape, 200);
    let (mut seen, mut dirty) = (0, 0);
    record.images(1, |image| {
        seen += 1;
        if seen % every != 0 {
            return;
        }
        let what = &image.what;
        let ours = image.device.clone();
        judge::replay(&ours).unwrap_or_else(|e| panic!("{what}: {e}"));
        let kernels = replayed_by_kernel(vm, folder.path(), &image);
        dirty += u32::from(!judge::differences(&image.device, &kernels).is_empty());
        let different = judge::differences(&ours, &kernels);
        assert!(
            different.is_empty(),
            "{what}: replayed otherwise in {different:?}"
        );
        judge::clean_but(&kernels, LEFT_BY_A_CRASH, what);
        let device: Arc<dyn BlockDevice> = Arc::new(kernels);
        let node = Node::mount(&device).unwrap_or_else(|e| panic!("{what}: {e}"));
        let tree = observe(&node);
        node.unmount();
        let found = record.find(&tree, image.ended, image.begun);
        found.unwrap_or_else(|why| panic!("{what}: {why}"));
    });
    dirty
}

#[test]
fn the_kernel_replays_a_power_cut_of_ours_to_the_same_bytes() {
    let vm = Vm::start(Kernel::V6_12, &[]);
    vm.check("modprobe gfs2");
    let dirty = same(&vm, Shape::small(4096), 101, 25);
    let small = same(&vm, Shape::small(1024), 102, 40);
    let jdata = Shape {
        jdata: true,
        ..Shape::small(4096)
    };
    let journaled = same(&vm, jdata, 103, 40);
    println!("images with work in the log: {dirty}, {small}, {journaled}");
    assert!(dirty > 2 && small > 1 && journaled > 1);
    vm.assert_kernel_content();
}
