//! Goal: after a power cut at any moment the volume is whole, and what was fsynced is there. Method: record every
//! write and flush of a busy mount on a volume that fills up; cut at many places, on a device that keeps unflushed
//! sectors as it likes; replay, reclaim orphans, compare, and have the reference checker look.

use super::rig::{ROOT_USER, Rig, check, mount, volume_with};
use super::space::step;
use crate::error::Errno;
use crate::ops::OpenFlags;
use fastrand::Rng;
use gfs2_format::device::{BlockDevice, MemDevice, RecordDevice, WriteLog};
use std::sync::Arc;

/// A file that was fsynced when the log was so long, and not written again.
struct Kept {
    position: usize,
    name: String,
    data: Vec<u8>,
    /// It was unlinked later: if it is there nevertheless, it is there whole.
    doomed: bool,
}

fn keep(
    rig: &Rig,
    rng: &mut Rng,
    device: &RecordDevice<MemDevice>,
    name: String,
    doomed: bool,
) -> Option<Kept> {
    let made = rig.fs.create(
        &ROOT_USER,
        rig.root(),
        name.as_bytes(),
        0o644,
        0,
        true,
        OpenFlags::WRITE,
    );
    let (entry, handle, _) = made.ok()?;
    let len = if doomed { 400_000 } else { rng.usize(1..30_000) };
    let data: Vec<u8> = (0..len).map(|_| rng.u8(..)).collect();
    let written = rig.fs.write(&ROOT_USER, handle, 0, &data, false, false);
    let synced = written.is_ok_and(|n| n == data.len()) && rig.fs.fsync(handle, rng.bool()).is_ok();
    rig.fs.release(handle);
    rig.fs.forget(entry.attr.num.addr, 1);
    synced.then(|| Kept {
        position: device.log().entries().len(),
        name,
        data,
        doomed,
    })
}

/// Unlinks a file on a full volume and writes another at once: what the first one had must not be overwritten before
/// its end is durable.
fn doom(rig: &Rig, rng: &mut Rng, device: &RecordDevice<MemDevice>, round: usize) -> Option<Kept> {
    let doomed = keep(rig, rng, device, format!("doomed-{round}"), true)?;
    let filler = rig.create(rig.root(), &format!("filler-{round}")).num.addr;
    let mut at = 0;
    while let Ok(n) = rig.write(filler, at, &[0xf1; 100_000]) {
        at += n as u64;
    }
    rig.fs
        .unlink(&ROOT_USER, rig.root(), doomed.name.as_bytes())
        .unwrap();
    // Not the evictions of before, which may have made room: what is written now.
    let _full = rig.write(filler, at, &[0xf2; 300_000]);
    rig.fs
        .unlink(&ROOT_USER, rig.root(), format!("filler-{round}").as_bytes())
        .unwrap();
    rig.fs.forget(filler, 1);
    Some(doomed)
}

fn record(seed: u64, bsize: u32, jdata: bool) -> (MemDevice, WriteLog, Vec<Kept>) {
    let initial = volume_with(24, bsize, 1, jdata);
    let device = Arc::new(RecordDevice::new(MemDevice::clone(&initial)));
    let rig = mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>));
    let mut rng = Rng::with_seed(seed);
    let (mut dirs, mut files, mut kept) = (vec![rig.root()], Vec::new(), Vec::new());
    for round in 0..12 {
        for _ in 0..25 {
            step(&rig, &mut rng, &mut dirs, &mut files);
        }
        kept.extend(keep(&rig, &mut rng, &device, format!("kept-{round}"), false));
        kept.extend(doom(&rig, &mut rng, &device, round));
        for _ in 0..files.len() / 2 {
            let (dir, name, file): (_, String, _) = files.swap_remove(rng.usize(..files.len()));
            rig.fs.unlink(&ROOT_USER, dir, name.as_bytes()).unwrap();
            rig.fs.forget(file, 1);
        }
        if rng.u32(..4) == 0 {
            rig.journal.write_back().unwrap();
        }
    }
    let log = device.log();
    rig.unmount();
    (MemDevice::clone(&initial), log, kept)
}

fn survive(image: MemDevice, kept: &[Kept], position: usize) {
    let image = Arc::new(image);
    let rig = mount(&(Arc::clone(&image) as Arc<dyn BlockDevice>));
    rig.fs.reclaim_orphans().unwrap();
    for file in kept.iter().filter(|file| file.position <= position) {
        let found = match rig.walk(&file.name) {
            Ok(found) => found,
            Err(Errno::ENOENT) if file.doomed => continue,
            Err(errno) => panic!("{} after a cut at {position}: {errno:?}", file.name),
        };
        let data = rig.read(found.attr.num.addr, 0, file.data.len() + 1);
        assert!(data == file.data, "{} after a cut at {position}", file.name);
    }
    rig.unmount();
    check(&image);
}

#[test]
fn power_cuts_leave_a_whole_volume() {
    for (seed, bsize, jdata) in [(1, 4096, false), (2, 1024, false), (3, 4096, true)] {
        let (initial, log, kept) = record(seed, bsize, jdata);
        assert!(kept.len() > 3, "only {} files kept", kept.len());
        let mut rng = Rng::with_seed(seed);
        for turn in 0..16 {
            let position = rng.usize(..=log.entries().len());
            let image = if turn % 2 == 0 {
                log.crash_image(&initial, position, turn)
            } else {
                log.crash_image_untorn(&initial, position, turn)
            };
            survive(image.unwrap(), &kept, position);
        }
    }
}
