//! The workload that will judge our mount is itself judged by the kernel's GFS2: whatever it says must succeed,
//! fail or be seen, the kernel does, makes fail and shows.

mod support;

use support::guest::Kernel;
use support::host::{assert_fsck_clean, reference_fsck, reference_mkfs, sparse};
use support::tool::{walk_in_guest, work_in_guest, work_until_power_cut};
use support::vm::Vm;
use support::workload::{Mix, Workload};

const IMAGE: u64 = 512 << 20;

/// Goal: the model is right. Method: the mix on a fresh volume, at two block sizes, in two goes; what the
/// kernel shows is the model, and the reference fsck has nothing to say.
#[test]
fn the_kernel_does_what_the_model_says() {
    let dir = support::scratch("workload");
    let vm = Vm::start(Kernel::V6_12, &[]);
    vm.check("modprobe gfs2");
    for (seed, block_size) in [(1, "4096"), (2, "1024")] {
        let image = sparse(&dir.path().join(format!("{block_size}.img")), IMAGE);
        reference_mkfs(&image, &["-b", block_size, "-j", "1", "-J", "32"]);
        let disk = vm.attach(&image);
        vm.check(&format!(
            "mount -t gfs2 -o noatime {} /mnt; mkdir -m 755 /mnt/w",
            disk.node
        ));
        let mut workload = Workload::new(seed, Mix::GFS2);
        for to in [900, 1500] {
            work_in_guest(&vm, &mut workload, to, "/mnt/w");
            workload.assert_seen_by_kernel(&walk_in_guest(&vm, "/mnt/w"));
            vm.check(&format!(
                "umount /mnt; mount -t gfs2 -o noatime {} /mnt",
                disk.node
            ));
        }
        workload.assert_seen_by_kernel(&walk_in_guest(&vm, "/mnt/w"));
        vm.check("umount /mnt");
        vm.detach(disk);
        assert_fsck_clean(&image);
    }
    vm.assert_kernel_content();
}

/// Goal: what we shall ask of a crash is what the kernel keeps. Method: power cut in the middle of the mix, a
/// second boot that replays; the tree is that after some operation since the last that was to be durable.
#[test]
fn the_kernel_keeps_after_a_power_cut_what_the_model_says() {
    let dir = support::scratch("workload");
    let image = sparse(&dir.path().join("crash.img"), IMAGE);
    reference_mkfs(&image, &["-j", "1", "-J", "32"]);
    let vm = Vm::start(Kernel::V6_12, &[&image]);
    vm.check(
        "modprobe gfs2; mount -t gfs2 -o noatime /dev/vda /mnt; mkdir -m 755 /mnt/w; xfs_io -c fsync /mnt",
    );
    let mut workload = Workload::new(3, Mix::GFS2);
    let last = work_until_power_cut(vm, &workload, "/mnt/w", 700);

    let vm = Vm::start(Kernel::V6_12, &[&image]);
    vm.check("modprobe gfs2; mount -t gfs2 -o noatime /dev/vda /mnt");
    let seen = walk_in_guest(&vm, "/mnt/w");
    vm.check("umount /mnt");
    vm.assert_kernel_content();
    workload.imagine(last);
    let durable = workload.durable();
    let at = durable.assert_survived(last, &seen);
    println!("durable at {}, found at {at}, cut after {last}", durable.at());
    // unlinked, open files may be left: nothing else
    assert!([0, 4].contains(&reference_fsck(&image).rc), "the reference fsck");
}

/// Goal: the judge can say no. Method: trees that some operation left, and the same with one lie each.
#[test]
fn a_tree_that_no_operation_left_is_refused() {
    let mut start = Workload::new(4, Mix::GFS2);
    start.imagine(400);
    let mut end = start.durable();
    end.imagine(end.at() + 60);
    let good = end.model().manifest();
    assert!(start.durable().assert_survived(end.at(), &good) <= end.at());
    let files = good
        .entries
        .iter()
        .filter(|(_, f)| f["type"] == "file")
        .map(|(p, _)| p.clone());
    let torn = end.model().unsynced();
    let file = files
        .into_iter()
        .find(|p| !torn.contains(p))
        .expect("a file that was synced");
    let mut lies = [good.clone(), good.clone(), good.clone()];
    lies[0].entries.remove(&file);
    lies[1]
        .entries
        .get_mut(&file)
        .expect("the file")
        .insert("content".to_owned(), "other".to_owned());
    lies[2]
        .entries
        .insert("./more".to_owned(), good.at(&file).clone());
    for lie in lies {
        let refused = std::panic::catch_unwind(|| start.durable().assert_survived(end.at(), &lie));
        let why = refused.expect_err("a lie was taken for the truth");
        let why = why.downcast_ref::<String>().expect("a message");
        assert!(why.contains("the tree is that after no operation"), "{why}");
        let refused = std::panic::catch_unwind(|| end.assert_seen(&lie, "a lie"));
        assert!(refused.is_err(), "a lie was taken for the truth");
    }
}
