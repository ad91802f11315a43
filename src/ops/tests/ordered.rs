//! Goal: after a power cut a file shows nothing but its own bytes and zeroes, however late its data was written: no
//! block of it is reachable before its data is on the device, and no late write hits a block that has a new owner.
//! Method: every free block of the volume holds poison, every file its own tag in every byte; write, append, extend,
//! truncate, delete, in small pieces and long runs, on a small volume and with little dirty data allowed, seldom syncing; cut at every flush, on a
//! device that keeps unflushed sectors as it likes.

use super::rig::{ROOT_USER, Rig, check, mount, volume_over};
use crate::error::Errno;
use crate::ops::OpenFlags;
use crate::ops::types::SetAttr;
use fastrand::Rng;
use gfs2_format::BlockAddr;
use gfs2_format::device::{BlockDevice, Fault, FaultDevice, FaultOp, FaultRule, MemDevice, RecordDevice};
use std::sync::Arc;

const POISON: u8 = 0xff;

struct File {
    name: String,
    addr: BlockAddr,
    tag: u8,
}

fn poisoned(mib: u64, bsize: u32) -> Arc<MemDevice> {
    let device = MemDevice::new(mib << 20);
    for at in 0..mib {
        device.write_at(at << 20, &vec![POISON; 1 << 20]).unwrap();
    }
    volume_over(device, bsize, 1, false)
}

/// Opens with flags, so that the straight path is taken too.
fn write(rig: &Rig, rng: &mut Rng, file: &File) {
    let size = rig.fs.getattr(file.addr).unwrap().size;
    let at = match rng.u32(..4) {
        0 => rng.u64(..=size),
        1 => size + rng.u64(..20_000),
        _ => size,
    };
    let len = match rng.u32(..16) {
        0..5 => rng.usize(1..400),
        5..10 => rng.usize(1..30_000),
        // Long enough to go past the cache while the writer goes on.
        10 => rng.usize(1 << 20..3 << 20),
        _ => 4096 * rng.usize(1..40),
    };
    let mut flags = OpenFlags::WRITE;
    flags.set(OpenFlags::DIRECT, rng.u32(..6) == 0);
    let handle = rig.fs.open(file.addr, flags).unwrap();
    // A full volume is part of it.
    let _full = rig
        .fs
        .write(&ROOT_USER, handle, at, &vec![file.tag; len], false, false);
    if rng.u32(..12) == 0 {
        rig.fs.fsync(handle, rng.bool()).unwrap();
    }
    rig.fs.release(handle);
}

fn work(rig: &Rig, rng: &mut Rng, steps: usize) {
    let mut files: Vec<File> = Vec::new();
    for step in 0..steps {
        if files.len() < 6 {
            let name = format!("f{step}");
            // Names tell the tag.
            let tag = (step % 200 + 1) as u8;
            let addr = rig.create(rig.root(), &name).num.addr;
            files.push(File { name, addr, tag });
        }
        let at = rng.usize(..files.len());
        match rng.u32(..14) {
            0 => {
                let file = files.swap_remove(at);
                rig.fs
                    .unlink(&ROOT_USER, rig.root(), file.name.as_bytes())
                    .unwrap();
                rig.fs.forget(file.addr, 1);
            }
            1 => {
                let size = rig.fs.getattr(files[at].addr).unwrap().size;
                let set = SetAttr {
                    size: Some(rng.u64(..=size + 5000)),
                    ..SetAttr::default()
                };
                let _full = rig.fs.setattr(&ROOT_USER, files[at].addr, &set);
            }
            2 if rng.u32(..4) == 0 => rig.fs.sync().unwrap(),
            _ => write(rig, rng, &files[at]),
        }
    }
}

fn inspect(image: MemDevice, what: &str) {
    let image = Arc::new(image);
    let rig = mount(&(Arc::clone(&image) as Arc<dyn BlockDevice>));
    rig.fs.reclaim_orphans().unwrap();
    for (name, addr) in rig.list(rig.root()) {
        let name = String::from_utf8(name).unwrap();
        let tag = (name[1..].parse::<usize>().unwrap() % 200 + 1) as u8;
        rig.walk(&name).unwrap();
        let size = rig.fs.getattr(addr).unwrap().size;
        let data = rig.read(addr, 0, size as usize);
        assert_eq!(data.len() as u64, size);
        if let Some(at) = data.iter().position(|byte| *byte != tag && *byte != 0) {
            panic!(
                "{what}: {name} has byte {:#x} at {at} of {size}, not {tag:#x}",
                data[at]
            );
        }
        rig.fs.forget(addr, 1);
    }
    rig.unmount();
    check(&image);
}

#[test]
fn a_power_cut_shows_no_block_before_its_data() {
    for (seed, bsize) in [(1, 4096), (2, 1024), (3, 4096)] {
        let initial = poisoned(20, bsize);
        let device = Arc::new(RecordDevice::new(MemDevice::clone(&initial)));
        let rig = mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>));
        rig.cache
            .data()
            .set_limit(if seed == 3 { 200_000 } else { 2 << 20 });
        let mut rng = Rng::with_seed(seed);
        work(&rig, &mut rng, 400);
        let log = device.log();
        rig.unmount();
        let points = log.flush_points();
        assert!(points.len() > 20, "only {} flushes", points.len());
        for turn in 0..24 {
            let point = points[rng.usize(..points.len())];
            // At the flush, and before the next one: everything since may be there or not.
            let position = (point + rng.usize(..4)).min(log.entries().len());
            let image = if turn % 2 == 0 {
                log.crash_image(&initial, position, turn)
            } else {
                log.crash_image_untorn(&initial, position, turn)
            };
            inspect(image.unwrap(), &format!("seed {seed}, a cut at {position}"));
        }
    }
}

/// As in the kernel: the commit goes on, whoever has the file open is told at his next fsync, and nobody twice.
#[test]
fn data_that_cannot_be_written_is_told_and_the_commit_goes_on() {
    let base = poisoned(20, 4096);
    let device = Arc::new(FaultDevice::new(Arc::clone(&base)));
    let rig = mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>));
    let addr = rig.create(rig.root(), "f").num.addr;
    let open = || rig.fs.open(addr, OpenFlags::READ | OpenFlags::WRITE).unwrap();
    let (one, other) = (open(), open());
    let write = |at: u64, len: usize| {
        let written = rig.fs.write(&ROOT_USER, one, at, &vec![7; len], false, false);
        assert_eq!(written.unwrap(), len);
    };
    // Which of the next writes fail.
    let fail = |writes: &[u64]| {
        device.clear();
        for n in writes {
            let rule = FaultRule::always(FaultOp::Write, Fault::Errno(libc::EIO));
            device.add(rule.after(*n).times(1));
        }
    };
    let told = |handle| rig.fs.fsync(handle, false).unwrap_err().errno() == Errno::EIO;
    // Along with the log, whose write is the next one, and once more by itself.
    write(0, 10_000);
    fail(&[0, 2]);
    assert!(told(one));
    rig.fs.fsync(one, false).unwrap();
    assert!(told(other));
    rig.fs.fsync(other, false).unwrap();
    assert_eq!(rig.fs.getattr(addr).unwrap().size, 10_000);
    // A long run is on its way at once.
    fail(&[0]);
    write(2 << 20, 1 << 20);
    assert!(told(other) && told(one));
    rig.fs.fsync(one, false).unwrap();
    assert_eq!(rig.fs.getattr(addr).unwrap().size, 3 << 20);
    assert!(!rig.cache.health().is_withdrawn());
    // The blocks are the file's; written again, they are good.
    write(0, 10_000);
    write(2 << 20, 1 << 20);
    rig.fs.fsync(one, false).unwrap();
    let data = rig.read(addr, 0, 3 << 20);
    let good = |bytes: &[u8], byte| bytes.iter().all(|b| *b == byte);
    assert!(good(&data[..10_000], 7) && good(&data[2 << 20..], 7) && good(&data[10_000..2 << 20], 0));
    rig.fs.release(one);
    rig.fs.release(other);
    rig.unmount();
    check(&base);
}
