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
use support::fixture::{Fixture, replays};
use support::guest::Kernel;
use support::host::{Host, assert_fsck_clean, copy_sparse, reference_fsck, reference_mkfs, sparse};
use support::manifest::Manifest;
use support::tool::{walk_in_guest, work_here, work_in_guest, work_until_power_cut};
use support::vm::Vm;
use support::walk::walk;
use support::workload::{Mix, Workload};

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
            file.read_exact_at(&mut buffer[..want], at).expect("reading an image");
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

/// A volume that lost its node at a power cut or at `kill -9`, and what was being done on it.
struct Wreck {
    image: PathBuf,
    /// The folder of the workload.
    folder: String,
    workload: Workload,
    /// The operation that may have been under way.
    last: usize,
}

impl Wreck {
    /// Has the kernel replay a copy and us the image itself, both by read-only mounts; both must see the same, all
    /// that was synced, and leave the same bytes. Returns the copy, the operation that was found, and what was seen.
    #[track_caller]
    fn replay(&self, vm: &Vm, dir: &Path) -> (PathBuf, usize, Manifest) {
        let copy = dir.join("kernel.img");
        copy_sparse(&self.image, &copy);
        let disk = vm.attach(&copy);
        vm.check("dmesg -c >/dev/null");
        vm.check(&format!("mount -t gfs2 -o ro,acl,noatime {} /mnt", disk.node));
        let log = vm.gfs2_log();
        let replayed = replays(&log);
        assert_eq!(replayed.len(), 1, "no replay by the kernel: {log:#?}");
        let kernel = walk_in_guest(vm, "/mnt");
        let folder = walk_in_guest(vm, &format!("/mnt/{}", self.folder));
        vm.check("umount /mnt");
        vm.detach(disk);
        vm.assert_kernel_content();

        let mut workload = self.workload.clone();
        workload.imagine(self.last);
        let durable = workload.durable();
        let at = durable.assert_survived(self.last, &folder);
        println!(
            "{}: durable at {}, found at {at}, killed at {}; {:?}",
            self.workload.recipe(),
            durable.at(),
            self.last,
            replayed[0]
        );

        let mount = Mount::new(&self.image, "ro,acl,noatime");
        let ours = see(&mount.path());
        assert_eq!(durable.assert_survived(self.last, &see(&mount.join(&self.folder))), at);
        mount.unmount();
        kernel
            .with_devices_of(&ours)
            .without(&["flags"])
            .assert_same("kernel", &ours.without(&["flags"]), "ours");
        assert_same_replay(&copy, &self.image);
        (copy, replayed[0].replayed as usize, ours)
    }
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
    assert!([0, 4].contains(&ran.rc), "fsck.gfs2 -n exited with {}:\n{}", ran.rc, ran.output);
    println!("fsck {}: {}", ran.rc, ran.output.lines().filter(|l| !l.contains("pass") && !l.contains("complete")).collect::<Vec<_>>().join(" | "));
    Mount::new(copy, "noatime").unmount();
    assert_fsck_clean(copy);
}

/// Makes a folder for a workload that is there after a crash.
fn durable_folder(mount: &Mount, name: &str) -> PathBuf {
    let folder = mount.join(name);
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::set_permissions(&folder, Permissions::from_mode(0o755)).expect("its mode");
    File::open(mount.path())
        .and_then(|root| root.sync_all())
        .expect("a sync of the root");
    folder
}

/// Goal: proof 3b. Method: rounds on one volume; in each our daemon is killed in the middle of a workload, the kernel
/// replays a copy and works on it, we replay the volume and go on with the next round on it.
#[track_caller]
fn killed_in_the_middle(vm: &Vm, block_size: u32, rounds: &[(u64, usize)]) {
    let dir = support::scratch("journals");
    let image = sparse(&dir.path().join("volume.img"), IMAGE);
    let size = block_size.to_string();
    mkfs(&image, &["-p", "lock_nolock", "-b", &size, "-j", "1", "-J", "8"]);
    let mut known: Vec<(String, Manifest)> = Vec::new();
    let mut replayed = 0;
    for &(seed, at_least) in rounds {
        let workload = Workload::new(seed, Mix::DRIVER);
        let folder = format!("w{seed}");
        let mount = Mount::new(&image, "acl,noatime");
        let place = durable_folder(&mount, &folder);
        let mut worker = work_here(dir.path(), &workload, 1_000_000, &place);
        worker.wait_for(at_least);
        mount.crash();
        let last = worker.end();
        let wreck = Wreck {
            image: image.clone(),
            folder,
            workload,
            last,
        };
        let (copy, blocks, _) = wreck.replay(vm, dir.path());
        replayed += blocks;
        the_kernel_works_on(vm, &copy, seed);

        let mount = Mount::new(&image, "acl,noatime");
        for (folder, before) in &known {
            before.assert_same(folder, &without_totals(&see(&mount.join(folder))), "a round later");
        }
        known.push((wreck.folder.clone(), without_totals(&see(&mount.join(&wreck.folder)))));
        mount.unmount();
        assert_fsck_clean(&image);
    }
    assert!(replayed > 0, "no crash left anything to replay");
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
    killed_in_the_middle(&vm, 4096, &[(51, 40), (52, 700), (53, 1500)]);
    killed_in_the_middle(&vm, 1024, &[(54, 300), (55, 1200)]);
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
    let workload = Workload::new(61, Mix::GFS2);
    let last = work_until_power_cut(vm, &workload, "/mnt/w", 400);
    let wreck = Wreck {
        image: image.clone(),
        folder: "w".to_owned(),
        workload,
        last,
    };
    let vm = Vm::start(Kernel::V6_1, &[]);
    vm.check("modprobe gfs2");
    let (copy, ..) = wreck.replay(&vm, dir.path());
    the_kernel_works_on(&vm, &copy, 61);
    Mount::new(&image, "noatime").unmount();
    assert_fsck_clean(&image);

    killed_in_the_middle(&vm, 4096, &[(62, 500)]);
}
