//! Proof 3: what the real kernel leaves at a crash we replay to the bytes its own replay leaves; what we leave at
//! `kill -9` in the middle of the mix, the kernel and we replay to the same bytes, and everything synced is there.

mod ours;
mod support;

use gfs2_format::BlockAddr;
use gfs2_format::device::{FileDevice, OpenOptions};
use gfs2_format::volume::Volume;
use ours::{Mount, mkfs};
use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use support::fixture::{Fixture, Replay, replays};
use support::guest::Kernel;
use support::host::{Host, assert_fsck_clean, copy_sparse, reference_fsck, reference_mkfs, sparse};
use support::manifest::Manifest;
use support::tool::{Worker, walk_in_guest, work_here, work_in_guest, work_until_power_cut};
use support::vm::Vm;
use support::walk::walk;
use support::workload::{Mix, Workload, seed};

const IMAGE: u64 = 256 << 20;

#[track_caller]
fn see(root: &Path) -> Manifest {
    walk(root).unwrap_or_else(|e| panic!("{}: {e}", root.display()))
}

fn open(image: &Path) -> FileDevice {
    let options = OpenOptions::new().read_only(true).direct(false);
    options
        .open(image)
        .unwrap_or_else(|e| panic!("{}: {e}", image.display()))
}

/// Zeroes what a walk over the kernel's mount leaves of its own: access times, and readdir's scratch field.
fn blank_walk_traces(block: &mut [u8]) {
    let word = |at: usize| u32::from_be_bytes(block[at..at + 4].try_into().expect("four bytes"));
    if word(0) != 0x0116_1970 {
        return;
    }
    let (kind, mode, flags) = (word(4), word(40), word(128));
    let names = match kind {
        4 => {
            block[72..80].fill(0);
            block[176..180].fill(0);
            (mode >> 12 == 4 && flags & 2 == 0).then_some(232)
        }
        6 => Some(104),
        _ => None,
    };
    let Some(mut at) = names else { return };
    while at + 40 <= block.len() {
        block[at + 28..at + 32].fill(0);
        let len = u16::from_be_bytes([block[at + 20], block[at + 21]]);
        at += usize::from(len.max(8));
    }
}

/// Fails the test unless two images of one volume are the same outside the journals and traces of a walk. Returns how
/// many blocks differ in the journals, and how many by such traces.
#[track_caller]
fn assert_same_replay(kernel: &Path, ours: &Path) -> (usize, usize) {
    let volume = Volume::open(&open(kernel)).unwrap_or_else(|e| panic!("{}: {e}", kernel.display()));
    let block_len = volume.geometry.block_len();
    let files = [kernel, ours].map(|path| File::open(path).expect("an image"));
    let len = files[0].metadata().expect("an image").len();
    assert_eq!(len, files[1].metadata().expect("an image").len());
    let in_journal = |n: u64| volume.journals.iter().any(|j| j.map.contains(BlockAddr::new(n)));
    let mut buffers = [vec![0; 1 << 20], vec![0; 1 << 20]];
    let (mut logged, mut traces) = (0, 0);
    for at in (0..len).step_by(1 << 20) {
        let want = usize::try_from(len - at).map_or(1 << 20, |rest| rest.min(1 << 20));
        for (file, buffer) in files.iter().zip(&mut buffers) {
            file.read_exact_at(&mut buffer[..want], at)
                .expect("reading an image");
        }
        let [a, b] = &mut buffers;
        let blocks = a[..want]
            .chunks_mut(block_len)
            .zip(b[..want].chunks_mut(block_len));
        for (n, (a, b)) in (at / block_len as u64..).zip(blocks).filter(|(_, (a, b))| a != b) {
            if in_journal(n) {
                logged += 1;
                continue;
            }
            traces += 1;
            blank_walk_traces(a);
            blank_walk_traces(b);
            let first = a.iter().zip(b.iter()).position(|(x, y)| x != y);
            assert_eq!(first, None, "block {n}: first different byte, kernel | ours");
        }
    }
    (logged, traces)
}

#[track_caller]
fn assert_same_file(one: &Path, other: &Path, said: &str) {
    let ran = Host::new("cmp").arg(one).arg(other).run();
    assert!(ran.rc == 0, "{said}: {}", ran.output);
}

/// Goal: proof 3a. Method: images of power cuts and what the kernel's replay made of them; ours by a read-only mount,
/// a second one of which finds nothing to do.
#[test]
fn we_replay_what_the_kernel_left_to_the_bytes_its_own_replay_leaves() {
    for name in ["dirty4k", "dirty1k", "cluster2j-dirty"] {
        let dir = support::scratch("journals");
        let image = Fixture::load(name).unpack(dir.path());
        let after = Fixture::load(&format!("{name}.after-replay")).unpack(dir.path());
        Mount::new(&image, "ro,lockproto=lock_nolock").unmount();
        let (logged, traces) = assert_same_replay(&after, &image);
        // Each replay says when it was; and the check of the image read a few files.
        assert!(logged > 0 && traces < 400, "{name}: {logged}, {traces}");
        let once = dir.path().join("once.img");
        copy_sparse(&image, &once);
        Mount::new(&image, "ro,lockproto=lock_nolock").unmount();
        assert_same_file(&once, &image, "a second mount replayed again");
    }
}

/// Goal: the judge can say no. Method: an image that was not replayed, and one with a byte changed behind the replay.
#[test]
fn other_bytes_than_the_kernels_are_refused() {
    let dir = support::scratch("journals");
    let image = Fixture::load("dirty4k").unpack(dir.path());
    let after = Fixture::load("dirty4k.after-replay").unpack(dir.path());
    let refused = std::panic::catch_unwind(|| assert_same_replay(&after, &image));
    assert!(
        refused.is_err(),
        "an image with its work in the log was taken for a replayed one"
    );
    copy_sparse(&after, &image);
    assert_eq!(assert_same_replay(&after, &image), (0, 0));
    let volume = Volume::open(&open(&after)).expect("a volume");
    let place = volume.geometry.byte_offset(volume.system.statfs) + 240;
    let file = File::options().write(true).open(&image).expect("the image");
    file.write_all_at(&[1], place).expect("a byte");
    let refused = std::panic::catch_unwind(|| assert_same_replay(&after, &image));
    assert!(refused.is_err(), "a changed total was taken for the kernel's");
}

/// A workload that was going on when its node was lost.
#[derive(Clone, Debug)]
struct Cut {
    /// Its folder.
    folder: String,
    workload: Workload,
    /// The operation that may have been under way.
    last: usize,
}

impl Cut {
    /// Fails the test unless everything synced is in what was seen of the folder; returns the operation that was found.
    #[track_caller]
    fn assert_survived(&self, seen: &Manifest) -> usize {
        let mut workload = self.workload.clone();
        // the last one may be the sync
        workload.imagine(self.last - 1);
        let durable = workload.durable();
        let at = durable.assert_survived(self.last, seen);
        let (name, from, last) = (workload.recipe(), durable.at(), self.last);
        println!("{name}: durable at {from}, found at {at}, cut at {last}");
        at
    }
}

/// Has the kernel replay a copy of a volume that lost its node, and us the volume itself, both by read-only mounts; both
/// must see the same, all that was synced, and leave the same bytes. Returns the copy and the kernel's replay.
#[track_caller]
fn replay_both(vm: &Vm, dir: &Path, image: &Path, cuts: &[Cut]) -> (PathBuf, Replay) {
    let copy = dir.join("kernel.img");
    copy_sparse(image, &copy);
    let disk = vm.attach(&copy);
    vm.check("dmesg -c >/dev/null");
    vm.check(&format!("mount -t gfs2 -o ro,acl,noatime {} /mnt", disk.node));
    let log = vm.gfs2_log();
    let replayed = replays(&log);
    assert_eq!(replayed.len(), 1, "no replay by the kernel: {log:#?}");
    let kernel = walk_in_guest(vm, "/mnt");
    let folders: Vec<Manifest> = cuts
        .iter()
        .map(|cut| walk_in_guest(vm, &format!("/mnt/{}", cut.folder)))
        .collect();
    vm.check("umount /mnt");
    vm.detach(disk);
    vm.assert_kernel_content();
    println!("{:?}", replayed[0]);

    let mount = Mount::new(image, "ro,acl,noatime");
    let ours = see(&mount.path());
    for (cut, folder) in cuts.iter().zip(&folders) {
        let found = cut.assert_survived(folder);
        assert_eq!(cut.assert_survived(&see(&mount.join(&cut.folder))), found);
    }
    mount.unmount();
    kernel.with_devices_of(&ours).assert_same("kernel", &ours, "ours");
    assert_same_replay(&copy, image);
    (copy, replayed[0].clone())
}

/// The kernel works on what it replayed. It leaves what had no name left, which the reference fsck tells; we free that
/// at a read-write mount, and then nothing else may be wrong.
#[track_caller]
fn the_kernel_works_on(vm: &Vm, copy: &Path, seed: u64) {
    let disk = vm.attach(copy);
    vm.check(&format!(
        "mount -t gfs2 -o noatime {} /mnt; mkdir -m 755 /mnt/after",
        disk.node
    ));
    work_in_guest(vm, &mut Workload::new(seed, Mix::GFS2), 100, "/mnt/after");
    vm.check("umount /mnt");
    vm.detach(disk);
    vm.assert_kernel_content();
    let ran = reference_fsck(copy);
    println!("fsck.gfs2 -n after the kernel: {}", ran.rc);
    assert!(
        [0, 4].contains(&ran.rc),
        "fsck.gfs2 -n exited with {}:\n{}",
        ran.rc,
        ran.output
    );
    Mount::new(copy, "noatime").unmount();
    assert_fsck_clean(copy);
}

/// Makes a folder for a workload that is there after a crash.
fn durable_folder(mount: &Mount, name: &str) -> PathBuf {
    let folder = mount.join(name);
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::set_permissions(&folder, Permissions::from_mode(0o755)).expect("its mode");
    sync(&mount.path());
    folder
}

fn sync(folder: &Path) {
    File::open(folder)
        .and_then(|handle| handle.sync_all())
        .unwrap_or_else(|e| panic!("sync of {}: {e}", folder.display()));
}

/// A large file with an attribute and a hashed folder, both open and without a name when the crash comes.
fn orphans(root: &Path) -> [File; 2] {
    let (path, folder) = (root.join("orphan"), root.join("orphans"));
    let file = File::create(&path).expect("a file");
    file.write_all_at(&vec![7; 5 << 20], 100).expect("its bytes");
    rustix::fs::setxattr(&path, "user.a", &[1; 9000], rustix::fs::XattrFlags::empty()).expect("an attribute");
    std::fs::create_dir(&folder).expect("a folder");
    let names: Vec<PathBuf> = (0..300).map(|n| folder.join(format!("{n:0100}"))).collect();
    for name in &names {
        File::create(name).expect("a file in it");
    }
    let handle = File::open(&folder).expect("the folder");
    names
        .iter()
        .for_each(|name| std::fs::remove_file(name).expect("to remove it"));
    std::fs::remove_dir(&folder).expect("to remove the folder");
    std::fs::remove_file(&path).expect("to remove the file");
    file.sync_all().expect("a sync");
    sync(root);
    [file, handle]
}

/// Goal: proof 3b. Method: rounds on one volume; in each our daemon is killed in the middle of workloads, the kernel
/// replays a copy and works on it, we replay the volume and go on with the next round on it.
#[track_caller]
fn killed_in_the_middle(vm: &Vm, block_size: u32, rounds: &[(&[u64], usize)]) {
    let dir = support::scratch("journals");
    let image = sparse(&dir.path().join("volume.img"), IMAGE);
    let size = block_size.to_string();
    mkfs(&image, &["-p", "lock_nolock", "-b", &size, "-j", "1", "-J", "8"]);
    let mut known: Vec<(String, Manifest)> = Vec::new();
    for &(seeds, at_least) in rounds {
        let mount = Mount::new(&image, "acl,noatime");
        let orphans = orphans(&mount.path());
        let mut working: Vec<(Cut, Worker)> = seeds
            .iter()
            .map(|&own| {
                let workload = Workload::new(seed(own), Mix::DRIVER);
                let folder = format!("w{own}");
                let worker = work_here(dir.path(), &workload, 1_000_000, &durable_folder(&mount, &folder));
                let last = 0;
                let cut = Cut {
                    folder,
                    workload,
                    last,
                };
                (cut, worker)
            })
            .collect();
        working
            .iter_mut()
            .for_each(|(_, worker)| worker.wait_for(at_least));
        mount.crash();
        drop(orphans);
        let ended = working.into_iter().map(|(cut, worker)| Cut {
            last: worker.end(),
            ..cut
        });
        let cuts: Vec<Cut> = ended.collect();
        let (copy, replay) = replay_both(vm, dir.path(), &image, &cuts);
        assert!(replay.replayed > 0, "the crash left nothing to replay");
        the_kernel_works_on(vm, &copy, seed(seeds[0]));

        let mount = Mount::new(&image, "acl,noatime");
        for (folder, before) in &known {
            before.assert_same(
                folder,
                &without_totals(&see(&mount.join(folder))),
                "a round later",
            );
        }
        known.extend(cuts.into_iter().map(|cut| {
            let seen = without_totals(&see(&mount.join(&cut.folder)));
            (cut.folder, seen)
        }));
        mount.unmount();
        assert_fsck_clean(&image);
    }
}

fn without_totals(seen: &Manifest) -> Manifest {
    let mut out = seen.clone();
    out.entries.remove("#statfs");
    out
}

#[test]
fn what_we_leave_at_a_kill_the_6_12_kernel_and_we_replay_alike() {
    let vm = Vm::start(Kernel::V6_12, &[]);
    vm.check("modprobe gfs2");
    killed_in_the_middle(&vm, 4096, &[(&[51], 40), (&[52], 700), (&[53], 1500)]);
    killed_in_the_middle(&vm, 1024, &[(&[54, 55, 56], 150), (&[57], 1200)]);
}

/// Goal: proofs 3a and 3b of now with the older kernel: a power cut of a guest, and a kill of ours.
#[test]
fn what_we_and_the_6_1_kernel_leave_at_a_crash_both_replay_alike() {
    let dir = support::scratch("journals");
    let image = sparse(&dir.path().join("volume.img"), IMAGE);
    reference_mkfs(&image, &["-b", "1024", "-j", "1", "-J", "8"]);
    let vm = Vm::start(Kernel::V6_1, &[&image]);
    vm.check(
        "modprobe gfs2; mount -t gfs2 -o noatime /dev/vda /mnt; mkdir -m 755 /mnt/w; xfs_io -c fsync /mnt",
    );
    let workload = Workload::new(seed(61), Mix::GFS2);
    let last = work_until_power_cut(vm, &workload, "/mnt/w", 400);
    let cut = Cut {
        folder: "w".to_owned(),
        workload,
        last,
    };
    let vm = Vm::start(Kernel::V6_1, &[]);
    vm.check("modprobe gfs2");
    let (copy, _) = replay_both(&vm, dir.path(), &image, &[cut]);
    the_kernel_works_on(&vm, &copy, seed(61));
    Mount::new(&image, "noatime").unmount();
    assert_fsck_clean(&image);

    killed_in_the_middle(&vm, 4096, &[(&[62, 63], 300)]);
}
