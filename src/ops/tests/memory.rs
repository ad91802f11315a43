//! Goal: what is cut for the sake of memory comes back as it was, and what a crash left unlinked comes back when space is
//! short. Method: caches cut to nothing between and during verbs; nodes that die with files unlinked and open.

use super::rig::{ROOT_USER, Rig, check, mount, mount_alone, mount_with, volume};
use crate::error::Errno;
use crate::ops::types::Attr;
use crate::ops::{Entry, FsOptions, OpenFlags, Relief};
use dlm_client::LocalDlm;
use gfs2_format::BlockAddr;
use gfs2_format::device::{BlockDevice, MemDevice};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

fn shared(device: &Arc<MemDevice>) -> Arc<dyn BlockDevice> {
    Arc::clone(device) as Arc<dyn BlockDevice>
}

/// Cuts until every inode the kernel alone knows is a ghost; the root stays in use.
fn cut(rig: &Rig) {
    for _ in 0..50 {
        rig.fs.relieve(&mut Relief::new(0), &|_| true);
        if rig.fs.memory().inodes.count <= 1 {
            return;
        }
    }
    panic!("inodes stay: {}", rig.fs.memory());
}

fn lookup(rig: &Rig, dir: BlockAddr, name: &str) -> Result<Attr, Errno> {
    let found = rig.fs.lookup(&ROOT_USER, dir, name.as_bytes());
    found.map(|Entry { attr }| attr).map_err(|e| e.errno())
}

#[test]
fn what_the_kernel_remembers_comes_back_as_it_was() {
    for alone in [true, false] {
        let device = volume(64, 4096, 1);
        let rig = match alone {
            true => mount_alone(&shared(&device)),
            false => mount(&shared(&device)),
        };
        let dir = rig.mkdir(rig.root(), "dir").num.addr;
        let made: Vec<Attr> = (0..300).map(|n| rig.create(dir, &format!("f{n}"))).collect();
        rig.write(made[7].num.addr, 0, b"seven").unwrap();
        cut(&rig);
        let used = rig.fs.memory();
        assert_eq!(used.ghosts.count, 301, "{used}");
        // By number, as the kernel asks; and by name, counted once more.
        for (n, old) in made.iter().enumerate() {
            let now = match n % 2 {
                0 => rig.fs.getattr(old.num.addr).unwrap(),
                _ => lookup(&rig, dir, &format!("f{n}")).unwrap(),
            };
            assert_eq!(now.num, old.num);
        }
        assert_eq!(rig.read(made[7].num.addr, 0, 10), b"seven");
        cut(&rig);
        assert_eq!(rig.fs.memory().ghosts.count, 301);
        // Every count is given back: nothing is known any more.
        for (n, old) in made.iter().enumerate() {
            let counts = 1 + n as u64 % 2;
            rig.fs.forget(old.num.addr, counts - 1);
            rig.fs.getattr(old.num.addr).unwrap();
            rig.fs.forget(old.num.addr, 1);
            let gone = rig.fs.getattr(old.num.addr).map_err(|e| e.errno());
            assert_eq!(gone.err(), Some(Errno::ESTALE));
        }
        rig.fs.forget(dir, 1);
        let used = rig.fs.memory();
        assert_eq!((used.inodes.count, used.ghosts.count), (1, 0), "{used}");
        rig.unmount();
        check(&device);
    }
}

#[test]
fn open_and_unlinked_inodes_stay() {
    let device = volume(64, 4096, 1);
    let rig = mount(&shared(&device));
    let open = rig.create(rig.root(), "open").num.addr;
    let handle = rig.fs.open(open, OpenFlags::READ | OpenFlags::WRITE).unwrap();
    rig.fs
        .write(&ROOT_USER, handle, 0, &[7; 9000], false, false)
        .unwrap();
    let doomed = rig.create(rig.root(), "doomed").num.addr;
    let kept = rig.create(rig.root(), "kept").num.addr;
    for _ in 0..3 {
        rig.fs.relieve(&mut Relief::new(0), &|_| true);
    }
    assert_eq!(rig.fs.memory().ghosts.count, 2);
    // A ghost loses its last name: it is an entry again until the kernel has forgotten it, and then it is deallocated.
    rig.fs.unlink(&ROOT_USER, rig.root(), b"doomed").unwrap();
    rig.fs.unlink(&ROOT_USER, rig.root(), b"open").unwrap();
    for _ in 0..3 {
        rig.fs.relieve(&mut Relief::new(0), &|_| true);
    }
    assert_eq!(rig.fs.memory().ghosts.count, 1);
    assert_eq!(rig.fs.getattr(doomed).unwrap().nlink, 0);
    rig.fs.forget(open, 1);
    let mut buf = [0; 9000];
    assert_eq!(rig.fs.read(handle, 0, &mut buf).unwrap(), 9000);
    assert!(buf.iter().all(|b| *b == 7));
    rig.fs.forget(doomed, 1);
    rig.fs.release(handle);
    assert_eq!(rig.fs.getattr(kept).unwrap().nlink, 1);
    rig.unmount();
    check(&device);
}

#[test]
fn another_node_may_delete_what_is_only_remembered() {
    let device = volume(64, 4096, 2);
    let dlm = LocalDlm::new();
    let a = mount_with(&shared(&device), &dlm, 0, FsOptions::default());
    let b = mount_with(&shared(&device), &dlm, 1, FsOptions::default());
    let old = a.create(a.root(), "file");
    a.fs.sync().unwrap();
    cut(&a);
    // With an entry it would be node a that deletes it, at its last use.
    b.fs.unlink(&ROOT_USER, b.root(), b"file").unwrap();
    let gone = a.fs.getattr(old.num.addr).map_err(|e| e.errno());
    assert_eq!(gone.err(), Some(Errno::ESTALE));
    // The block is somebody else's now: data first, then perhaps an inode.
    let big = b.create(b.root(), "big").num.addr;
    let mut at = 0;
    while let Ok(n) = b.write(big, at, &[0xff; 1 << 20]) {
        at += n as u64;
    }
    let gone = a.fs.getattr(old.num.addr).map_err(|e| e.errno());
    assert_eq!(gone.err(), Some(Errno::ESTALE));
    b.fs.unlink(&ROOT_USER, b.root(), b"big").unwrap();
    b.fs.forget(big, 1);
    b.fs.sync().unwrap();
    let mut new: BTreeMap<BlockAddr, String> = BTreeMap::new();
    for n in 0..200 {
        let name = format!("new{n}");
        new.insert(b.create(b.root(), &name).num.addr, name);
    }
    // One that has the same address is found by its name, and the kernel's old counts go with it.
    if let Some(name) = new.get(&old.num.addr) {
        let found = lookup(&a, a.root(), name).unwrap();
        assert_ne!(found.num.formal, old.num.formal);
        a.fs.forget(old.num.addr, 1);
        assert_eq!(a.fs.getattr(old.num.addr).unwrap().num, found.num);
        a.fs.forget(old.num.addr, 1);
    } else {
        a.fs.forget(old.num.addr, 1);
    }
    assert_eq!(a.fs.memory().ghosts.count, 0);
    b.unmount();
    a.unmount();
    check(&device);
}

#[test]
fn the_kernel_is_asked_to_forget_when_it_remembers_too_much() {
    let device = volume(64, 4096, 1);
    let rig = mount_alone(&shared(&device));
    let made: Vec<BlockAddr> = (0..1000)
        .map(|n| rig.create(rig.root(), &format!("f{n}")).num.addr)
        .collect();
    let asked = AtomicUsize::new(0);
    let forgets = |inodes: &[BlockAddr]| {
        asked.fetch_add(inodes.len(), Ordering::Relaxed);
        inodes.iter().for_each(|addr| rig.fs.forget(*addr, 1));
        true
    };
    let mut relief = Relief::new(4096);
    for _ in 0..20 {
        rig.fs.relieve(&mut relief, &forgets);
    }
    let left = rig.fs.memory().ghosts.count;
    assert_eq!(asked.load(Ordering::Relaxed), made.len() - left);
    assert!(left < 20, "{left} are still remembered");
    // One that cannot be asked is not asked again.
    for n in 0..1000 {
        lookup(&rig, rig.root(), &format!("f{n}")).unwrap();
    }
    asked.store(0, Ordering::Relaxed);
    let mut relief = Relief::new(4096);
    for _ in 0..20 {
        rig.fs.relieve(&mut relief, &|_| {
            asked.fetch_add(1, Ordering::Relaxed);
            false
        });
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    rig.unmount();
    check(&device);
}

/// A volume whose node died with files unlinked and open, and the bytes they have.
fn with_orphans() -> (Arc<MemDevice>, u64) {
    let device = volume(32, 4096, 1);
    let rig = mount_alone(&shared(&device));
    let mut bytes = 0;
    for n in 0..40 {
        let name = format!("orphan{n}");
        let addr = rig.create(rig.root(), &name).num.addr;
        let handle = rig.fs.open(addr, OpenFlags::WRITE).unwrap();
        let len = 200_000 + n * 1000;
        let data = vec![n as u8; len];
        assert_eq!(
            rig.fs.write(&ROOT_USER, handle, 0, &data, false, false).unwrap(),
            len
        );
        rig.fs.unlink(&ROOT_USER, rig.root(), name.as_bytes()).unwrap();
        bytes += len as u64;
    }
    rig.fs.sync().unwrap();
    // What the device has when the node dies here.
    let left = Arc::new(MemDevice::clone(&device));
    rig.unmount();
    (left, bytes)
}

#[test]
fn space_of_orphans_comes_back_when_it_is_wanted() {
    let (device, orphans) = with_orphans();
    // Nobody sweeps at this mount.
    let rig = mount_alone(&shared(&device));
    let left = || {
        let mut left = 0;
        let count = |_| {
            left += 1;
            Ok(ControlFlow::Continue(true))
        };
        rig.fs.engine.rgrps.for_unlinked(count).unwrap();
        left
    };
    assert_eq!(left(), 40);
    let free = rig.fs.statfs().unwrap().free * 4096;
    let file = rig.create(rig.root(), "filler").num.addr;
    let mut filled = 0;
    let full = loop {
        match rig.write(file, filled, &[0xf1; 50_000]) {
            Ok(n) => filled += n as u64,
            Err(error) => break error,
        }
    };
    assert_eq!((full, left()), (Errno::ENOSPC, 0));
    assert!(
        filled > free + orphans / 2,
        "{filled} bytes fit, {free} were free and orphans had {orphans}"
    );
    rig.unmount();
    check(&device);
}

/// Goal: who finds no space just after an unlink waits until the inode has gone; one that is kept is waited for no longer
/// than it is new.
#[test]
fn who_wants_space_waits_for_what_was_just_unlinked() {
    let device = volume(64, 4096, 1);
    let rig = mount_alone(&shared(&device));
    let file = rig.create(rig.root(), "file").num.addr;
    let inodes = &rig.fs.engine.inodes;
    let long = Duration::from_secs(600);
    let seen = inodes.evictions_ended();
    assert!(!inodes.wait_forgotten(seen, long), "nothing is unlinked");
    rig.fs.unlink(&ROOT_USER, rig.root(), b"file").unwrap();
    // Not new any more.
    thread::sleep(Duration::from_millis(2));
    assert!(!inodes.wait_forgotten(seen, Duration::ZERO), "it is in use");
    thread::scope(|scope| {
        let waiter = scope.spawn(|| inodes.wait_forgotten(seen, long));
        rig.fs.forget(file, 1);
        assert!(waiter.join().unwrap());
    });
    rig.unmount();
    check(&device);
}

#[test]
fn maps_of_groups_are_forgotten_and_read_again() {
    let device = volume(256, 4096, 1);
    let rig = mount_alone(&shared(&device));
    let mut files = Vec::new();
    for n in 0..60u64 {
        let addr = rig.create(rig.root(), &format!("f{n}")).num.addr;
        rig.write(addr, 0, &vec![n as u8; 1_000_000]).unwrap();
        files.push(addr);
        if n % 3 == 2 {
            let name = format!("f{}", n - 1);
            rig.fs.unlink(&ROOT_USER, rig.root(), name.as_bytes()).unwrap();
            rig.fs.forget(files[n as usize - 1], 1);
        }
        if n % 7 == 0 {
            rig.fs.sync().unwrap();
        }
        rig.fs.engine.rgrps.shrink_to(0);
    }
    rig.fs.sync().unwrap();
    rig.fs.engine.rgrps.shrink_to(0);
    assert_eq!(rig.fs.memory().groups.bytes, 0, "{}", rig.fs.memory());
    for (n, addr) in files.iter().enumerate().filter(|(n, _)| n % 3 != 1) {
        let data = rig.read(*addr, 0, 1_000_001);
        assert!(
            data.len() == 1_000_000 && data.iter().all(|b| *b == n as u8),
            "file {n}"
        );
    }
    rig.unmount();
    check(&device);
}
