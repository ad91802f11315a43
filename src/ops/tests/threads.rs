//! Goal: verbs of many threads do not break the volume nor wait for each other for ever. Method: threads in shared
//! directories while another takes locks away; each thread's own file must be as it left it.

use super::rig::{ROOT_USER, check, mount, volume};
use crate::error::Errno;
use crate::glock::{GlockName, State};
use crate::ops::OpenFlags;
use crate::ops::types::RenameMode;
use fastrand::Rng;
use gfs2_format::BlockAddr;
use gfs2_format::device::BlockDevice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const THREADS: u64 = 6;

fn allowed(result: crate::error::FsResult<()>) {
    if let Err(error) = result {
        let errno = error.errno();
        let expected = [
            Errno::EEXIST,
            Errno::ENOENT,
            Errno::ENOTEMPTY,
            Errno::EISDIR,
            Errno::ENOTDIR,
            Errno::EINVAL,
            Errno::ESTALE,
        ];
        assert!(expected.contains(&errno), "{error:?}");
    }
}

#[test]
fn threads_in_shared_directories() {
    let device = volume(96, 4096, 1);
    let rig = mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>));
    let root = rig.root();
    let dirs: Vec<BlockAddr> = (0..3)
        .map(|n| rig.mkdir(root, &format!("d{n}")).num.addr)
        .collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|seed| {
                let (rig, dirs) = (&rig, &dirs);
                scope.spawn(move || work(rig, dirs, seed))
            })
            .collect();
        let (rig, dirs, stop) = (&rig, &dirs, &stop);
        let taker = scope.spawn(move || {
            let mut rng = Rng::with_seed(99);
            while !stop.load(Ordering::Relaxed) {
                let state = if rng.bool() { State::Un } else { State::Sh };
                let dir = dirs[rng.usize(..dirs.len())];
                rig.glocks.demote(GlockName::inode(dir.get()), state);
                for group in rig.fs.engine.rgrps.addresses() {
                    rig.glocks.demote(GlockName::rgrp(group.get()), state);
                }
                thread::sleep(std::time::Duration::from_millis(3));
            }
        });
        for worker in workers {
            worker.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        taker.join().unwrap();
    });
    rig.unmount();
    check(&device);
}

fn work(rig: &super::rig::Rig, dirs: &[BlockAddr], seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let fs = &rig.fs;
    let own = rig.create(rig.root(), &format!("own{seed}")).num.addr;
    let handle = fs.open(own, OpenFlags::READ | OpenFlags::WRITE).unwrap();
    let mut mine: Vec<u8> = Vec::new();
    for _ in 0..400 {
        let (dir, other) = (dirs[rng.usize(..dirs.len())], dirs[rng.usize(..dirs.len())]);
        let (name, new) = (format!("n{}", rng.u32(..25)), format!("n{}", rng.u32(..25)));
        let (name, new) = (name.as_bytes(), new.as_bytes());
        match rng.u32(..10) {
            0..=1 => {
                let made = fs.create(&ROOT_USER, dir, name, 0o644, 0, false, OpenFlags::WRITE);
                allowed(made.map(|(entry, handle, _)| {
                    fs.write(
                        &ROOT_USER,
                        handle,
                        0,
                        &vec![1; rng.usize(1..50_000)],
                        false,
                        false,
                    )
                    .unwrap();
                    fs.release(handle);
                    fs.forget(entry.attr.num.addr, 1);
                }));
            }
            2 => allowed(
                fs.mkdir(&ROOT_USER, dir, name, 0o755, 0)
                    .map(|e| fs.forget(e.attr.num.addr, 1)),
            ),
            3 => allowed(fs.unlink(&ROOT_USER, dir, name)),
            4 => allowed(fs.rmdir(&ROOT_USER, dir, name)),
            5 => {
                let mode = if rng.bool() {
                    RenameMode::Replace
                } else {
                    RenameMode::Exchange
                };
                allowed(fs.rename(&ROOT_USER, dir, name, other, new, mode));
            }
            6 => {
                let found = fs.lookup(&ROOT_USER, dir, name);
                allowed(found.and_then(|e| {
                    let linked = fs
                        .link(&ROOT_USER, e.attr.num.addr, other, new)
                        .map(|_| fs.forget(e.attr.num.addr, 1));
                    fs.forget(e.attr.num.addr, 1);
                    match linked {
                        Err(error) if error.errno() == Errno::EPERM => Ok(()),
                        result => result,
                    }
                }));
            }
            7 => {
                let list = fs.opendir(dir).unwrap();
                let mut known = Vec::new();
                fs.readdir_plus(list, 0, &mut |_, attr| {
                    known.extend(attr.map(|attr| attr.num.addr));
                    false
                })
                .unwrap();
                fs.release(list);
                known.into_iter().for_each(|addr| fs.forget(addr, 1));
            }
            8 => {
                let data = vec![rng.u8(..); rng.usize(1..30_000)];
                let n = fs.write(&ROOT_USER, handle, 0, &data, true, false).unwrap();
                assert_eq!(n, data.len());
                mine.extend_from_slice(&data);
            }
            _ => fs.fsync(handle, rng.bool()).unwrap(),
        }
    }
    let mut buf = vec![0; mine.len() + 1];
    let n = fs.read(handle, 0, &mut buf).unwrap();
    assert!(buf[..n] == mine[..], "thread {seed} finds its file changed");
    fs.release(handle);
}
