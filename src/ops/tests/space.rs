//! Goal: no space is an answer, never damage. Method: fill small volumes by every verb that allocates, with deletes in
//! between, and have the reference checker look.

use super::rig::{ROOT_USER, Rig, check, mount, mount_with, volume};
use crate::error::Errno;
use crate::ops::types::{RenameMode, SetAttr, XattrMode};
use crate::ops::{FsOptions, OpenFlags};
use dlm_client::LocalDlm;
use fastrand::Rng;
use gfs2_format::BlockAddr;
use gfs2_format::device::BlockDevice;
use std::sync::Arc;

fn full(result: Result<(), Errno>) -> bool {
    match result {
        Ok(()) => false,
        Err(Errno::ENOSPC) => true,
        Err(other) => panic!("{other:?}"),
    }
}

/// One allocating verb; true: there was no space for it.
pub(super) fn step(
    rig: &Rig,
    rng: &mut Rng,
    dirs: &mut Vec<BlockAddr>,
    files: &mut Vec<(BlockAddr, String, BlockAddr)>,
) -> bool {
    let dir = dirs[rng.usize(..dirs.len())];
    let name = format!("{}-{}", "n".repeat(rng.usize(1..200)), rng.u32(..1_000_000));
    let done = |result: crate::error::FsResult<()>| full(result.map_err(|e| e.errno()));
    match rng.u32(..12) {
        0 => done(
            rig.fs
                .mkdir(&ROOT_USER, dir, name.as_bytes(), 0o755, 0)
                .map(|entry| dirs.push(entry.attr.num.addr)),
        ),
        1..=4 => {
            let made = rig
                .fs
                .create(&ROOT_USER, dir, name.as_bytes(), 0o644, 0, true, OpenFlags::WRITE);
            done(made.and_then(|(entry, handle, _)| {
                files.push((dir, name, entry.attr.num.addr));
                let len = rng.usize(..400_000);
                let data = vec![rng.u8(..); len];
                let written = rig.fs.write(&ROOT_USER, handle, 0, &data, false, false);
                rig.fs.release(handle);
                written.map(|_| ())
            }))
        }
        5 => done(
            rig.fs
                .symlink(&ROOT_USER, dir, name.as_bytes(), b"target")
                .map(|entry| {
                    files.push((dir, name, entry.attr.num.addr));
                }),
        ),
        _ if files.is_empty() => false,
        op => {
            let at = rng.usize(..files.len());
            let (parent, old, file) = files[at].clone();
            match op {
                6 => done(rig.fs.setxattr(
                    &ROOT_USER,
                    file,
                    b"user.x",
                    &vec![7; rng.usize(..60_000)],
                    XattrMode::Any,
                )),
                7 => {
                    let size = Some(rng.u64(..1_000_000));
                    let set = rig.fs.setattr(
                        &ROOT_USER,
                        file,
                        &SetAttr {
                            size,
                            ..SetAttr::default()
                        },
                    );
                    // Symlinks have no size to set.
                    set.is_err_and(|e| e.errno() != Errno::EINVAL && done(Err(e)))
                }
                8 => {
                    let moved = rig.fs.rename(
                        &ROOT_USER,
                        parent,
                        old.as_bytes(),
                        dir,
                        name.as_bytes(),
                        RenameMode::Replace,
                    );
                    if moved.is_ok() {
                        files[at] = (dir, name, file);
                    }
                    done(moved)
                }
                _ => match rig.write(file, rng.u64(..5_000_000), &vec![3; rng.usize(1..200_000)]) {
                    Err(Errno::EINVAL) => false,
                    result => full(result.map(|_| ())),
                },
            }
        }
    }
}

fn fill_and_empty(seed: u64, mib: u64, bsize: u32) {
    let device = volume(mib, bsize, 1);
    let mut rng = Rng::with_seed(seed);
    let rig = mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>));
    let free = rig.fs.statfs().unwrap().free;
    let mut dirs = vec![rig.root()];
    let mut files = Vec::new();
    let mut refusals = 0;
    for _ in 0..12 {
        let mut left = 60;
        while left > 0 {
            if step(&rig, &mut rng, &mut dirs, &mut files) {
                left -= 1;
                refusals += 1;
            }
        }
        for _ in 0..files.len() / 3 {
            let (dir, name, file) = files.swap_remove(rng.usize(..files.len()));
            rig.fs.unlink(&ROOT_USER, dir, name.as_bytes()).unwrap();
            rig.fs.forget(file, 1);
        }
    }
    assert!(refusals >= 12 * 60);
    for (dir, name, file) in files {
        rig.fs.unlink(&ROOT_USER, dir, name.as_bytes()).unwrap();
        rig.fs.forget(file, 1);
    }
    let left = rig.fs.statfs().unwrap().free;
    assert!(left + 4000 > free, "of {free} blocks only {left} came back");
    rig.unmount();
    check(&device);
}

#[test]
fn a_volume_that_fills_up_stays_sound() {
    fill_and_empty(1, 24, 4096);
    fill_and_empty(2, 48, 4096);
    fill_and_empty(3, 20, 1024);
}

#[test]
fn space_of_deleted_files_can_be_used_at_once() {
    let device = volume(24, 4096, 1);
    let rig = mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>));
    let root = rig.root();
    let size = rig.fs.statfs().unwrap().free * 4096 * 9 / 10;
    let data = vec![0x5a; size as usize];
    for round in 0..5 {
        let name = format!("f{round}");
        let file = rig.create(root, &name).num.addr;
        assert_eq!(rig.write(file, 0, &data).unwrap(), data.len());
        rig.fs.unlink(&ROOT_USER, root, name.as_bytes()).unwrap();
        rig.fs.forget(file, 1);
    }
    rig.unmount();
    check(&device);
}

/// Goal: blocks whose inodes another node deleted are free, though it still has their locks. Method: one node fills the
/// volume with inodes, deletes them and keeps the locks; the other makes a file in every block that is left to it.
#[test]
fn space_that_another_node_has_the_locks_of_is_space() {
    let device = volume(64, 4096, 2);
    let shared = Arc::clone(&device) as Arc<dyn BlockDevice>;
    let dlm = LocalDlm::new();
    let [ours, other] = [0, 1].map(|jid| mount_with(&shared, &dlm, jid, FsOptions::default()));
    // Not as many as a volume of this size has room for.
    let large = other.create(other.root(), "large").num.addr;
    let blocks = other.fs.statfs().unwrap().free - 1500;
    other.write(large, 0, &vec![7; blocks as usize * 4096]).unwrap();
    other.fs.forget(large, 1);
    let fill = |rig: &Rig, who: &str| {
        let dir = rig.mkdir(rig.root(), who).num.addr;
        let mut files = Vec::new();
        loop {
            let name = format!("{}", files.len());
            let made = rig
                .fs
                .mknod(&ROOT_USER, dir, name.as_bytes(), 0o100_644, 0, (0, 0));
            match made.map_err(|error| error.errno()) {
                Ok(entry) => files.push(entry.attr.num.addr),
                Err(Errno::ENOSPC) => return (dir, files),
                Err(error) => panic!("{name}: {error:?}"),
            }
        }
    };
    let (dir, files) = fill(&other, "other");
    assert!(files.len() > 100, "only {} files", files.len());
    for (n, file) in files.iter().enumerate() {
        other
            .fs
            .unlink(&ROOT_USER, dir, n.to_string().as_bytes())
            .unwrap();
        other.fs.forget(*file, 1);
    }
    other.fs.rmdir(&ROOT_USER, other.root(), b"other").unwrap();
    other.fs.forget(dir, 1);
    let (_, mine) = fill(&ours, "ours");
    // How names share leaves is chance.
    assert!(
        mine.len() + 4 >= files.len(),
        "{} files fit, then {} on the other node",
        files.len(),
        mine.len()
    );
    other.unmount();
    ours.unmount();
    check(&device);
}
