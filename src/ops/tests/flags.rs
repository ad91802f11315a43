//! The flags of chattr(1): what they forbid, what they hand on, and data that changes the way it goes to the device.

use super::rig::{ROOT_USER, Rig, check, mount, mount_alone, volume};
use crate::error::Errno;
use crate::ops::types::{Caller, RenameMode, SetAttr, SetTime, XattrMode};
use crate::ops::{FileFlags, OpenFlags};
use fastrand::Rng;
use gfs2_format::BlockAddr;
use gfs2_format::device::{BlockDevice, MemDevice, RecordDevice};
use gfs2_format::ondisk::DinodeFlags;
use std::sync::Arc;

fn set(rig: &Rig, ino: BlockAddr, flags: FileFlags) -> Result<(), Errno> {
    let set = rig.fs.set_flags(&ROOT_USER, ino, flags, FileFlags::all());
    set.map_err(|error| error.errno())
}

#[test]
fn flags_are_kept_in_the_dinode_and_handed_on() {
    let device = volume(64, 4096, 1);
    let rig = mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>));
    let dir = rig.mkdir(rig.root(), "dir").num.addr;
    let before = rig.create(dir, "before").num.addr;
    assert_eq!(rig.fs.flags(dir).unwrap(), FileFlags::empty());
    let wanted = FileFlags::JOURNAL_DATA | FileFlags::TOPDIR | FileFlags::NOATIME;
    set(&rig, dir, wanted).unwrap();
    assert_eq!(rig.fs.flags(dir).unwrap(), wanted);
    let bits = DinodeFlags::from_bits_retain(rig.fs.getattr(dir).unwrap().flags);
    // Its own blocks go through the log as ever.
    let expected =
        DinodeFlags::INHERIT_JDATA | DinodeFlags::TOPDIR | DinodeFlags::NOATIME | DinodeFlags::JDATA;
    assert_eq!(bits, expected);
    assert_eq!(rig.fs.flags(before).unwrap(), FileFlags::empty());
    let after = rig.create(dir, "after").num.addr;
    let below = rig.mkdir(dir, "below").num.addr;
    for ino in [after, below] {
        assert_eq!(rig.fs.flags(ino).unwrap(), FileFlags::JOURNAL_DATA);
    }
    // One flag of several, and none.
    let one = rig
        .fs
        .set_flags(&ROOT_USER, dir, FileFlags::empty(), FileFlags::TOPDIR);
    one.unwrap();
    assert_eq!(rig.fs.flags(dir).unwrap(), wanted - FileFlags::TOPDIR);
    set(&rig, dir, FileFlags::empty()).unwrap();
    assert_eq!(rig.fs.getattr(dir).unwrap().flags, DinodeFlags::JDATA.bits());
    // What is nobody's to set.
    let wrong = [
        FileFlags::TOPDIR,
        FileFlags::INDEX,
        FileFlags::from_bits_retain(1),
    ];
    for flags in wrong {
        assert_eq!(set(&rig, before, flags), Err(Errno::EINVAL), "{flags:?}");
    }
    let link = rig.fs.symlink(&ROOT_USER, dir, b"link", b"x").unwrap();
    let link = link.attr.num.addr;
    assert_eq!(set(&rig, link, FileFlags::NOATIME), Err(Errno::ENOTTY));
    assert_eq!(rig.fs.flags(link).unwrap_err().errno(), Errno::ENOTTY);
    for ino in [dir, before, after, below, link] {
        rig.fs.forget(ino, 1);
    }
    rig.unmount();
    check(&device);
}

#[test]
fn an_owner_who_may_not_write_sets_no_flags() {
    let device = volume(64, 4096, 1);
    let rig = mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>));
    let file = rig.create(rig.root(), "file").num.addr;
    let mine = SetAttr {
        perm: Some(0o444),
        uid: Some(7),
        ..SetAttr::default()
    };
    rig.fs.setattr(&ROOT_USER, file, &mine).unwrap();
    let caller = Caller { uid: 7, ..ROOT_USER };
    let noatime = |caller| {
        let set = rig
            .fs
            .set_flags(caller, file, FileFlags::NOATIME, FileFlags::NOATIME);
        set.map_err(|error| error.errno())
    };
    assert_eq!(noatime(&caller), Err(Errno::EACCES));
    assert_eq!(noatime(&ROOT_USER), Ok(()));
    // It is set: nothing changes.
    assert_eq!(noatime(&caller), Ok(()));
    rig.fs.forget(file, 1);
    rig.unmount();
    check(&device);
}

#[test]
fn what_may_not_change_does_not() {
    let device = volume(64, 4096, 1);
    let rig = mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>));
    let dir = rig.mkdir(rig.root(), "dir").num.addr;
    let file = rig.create(dir, "file").num.addr;
    rig.write(file, 0, b"first").unwrap();
    let open = |flags| {
        let handle = rig.fs.open(file, flags).map_err(|error| error.errno())?;
        rig.fs.release(handle);
        Ok(())
    };
    let chmod = SetAttr {
        perm: Some(0o600),
        ..SetAttr::default()
    };
    let touch = SetAttr {
        mtime: Some(SetTime::Now),
        ..SetAttr::default()
    };
    let setattr = |wanted| {
        let set = rig.fs.setattr(&ROOT_USER, file, wanted);
        set.map(drop).map_err(|error| error.errno())
    };
    for flag in [FileFlags::APPEND, FileFlags::IMMUTABLE] {
        set(&rig, file, flag).unwrap();
        let refused = Err(Errno::EPERM);
        assert_eq!(open(OpenFlags::WRITE), refused, "{flag:?}");
        assert_eq!(
            open(OpenFlags::WRITE | OpenFlags::APPEND | OpenFlags::TRUNCATE),
            refused
        );
        assert_eq!(setattr(&chmod), refused);
        let xattr = rig.fs.setxattr(&ROOT_USER, file, b"user.x", b"1", XattrMode::Any);
        assert_eq!(xattr.map_err(|error| error.errno()), refused);
        let fs = &rig.fs;
        let unlink = fs.unlink(&ROOT_USER, dir, b"file");
        let rename = fs.rename(&ROOT_USER, dir, b"file", rig.root(), b"away", RenameMode::Replace);
        let link = fs.link(&ROOT_USER, file, rig.root(), b"other").map(drop);
        for tried in [unlink, rename, link] {
            assert_eq!(tried.map_err(|error| error.errno()), refused, "{flag:?}");
        }
        let append = open(OpenFlags::WRITE | OpenFlags::APPEND);
        if flag == FileFlags::APPEND {
            assert_eq!((append, setattr(&touch)), (Ok(()), Ok(())));
        } else {
            assert_eq!((append, setattr(&touch)), (refused, refused));
        }
        set(&rig, file, FileFlags::empty()).unwrap();
        // Of the directory: no name of it goes away, and only into one that may grow comes a new one.
        set(&rig, dir, flag).unwrap();
        let unlink = rig.fs.unlink(&ROOT_USER, dir, b"file");
        assert_eq!(unlink.map_err(|error| error.errno()), refused);
        let made = rig.fs.mkdir(&ROOT_USER, dir, b"new", 0o755, 0);
        let made = made.map_err(|error| error.errno());
        set(&rig, dir, FileFlags::empty()).unwrap();
        match made {
            Ok(entry) if flag == FileFlags::APPEND => {
                rig.fs.rmdir(&ROOT_USER, dir, b"new").unwrap();
                rig.fs.forget(entry.attr.num.addr, 1);
            }
            other => assert_eq!((flag, other), (FileFlags::IMMUTABLE, Err(Errno::EPERM))),
        }
    }
    assert_eq!(rig.read(file, 0, 100), b"first");
    [dir, file].iter().for_each(|ino| rig.fs.forget(*ino, 1));
    rig.unmount();
    check(&device);
}

/// Blocks of the file in the next test.
const BLOCKS: usize = 24;

/// What was synced: the log's length then, and the version each block had.
struct Synced {
    position: usize,
    versions: [u64; BLOCKS],
}

/// Writes versions into blocks, while the file changes between the two ways.
fn record(seed: u64, bsize: usize, alone: bool) -> (MemDevice, Arc<RecordDevice<MemDevice>>, Vec<Synced>) {
    let initial = volume(48, bsize as u32, 1);
    let device = Arc::new(RecordDevice::new(MemDevice::clone(&initial)));
    let shared = Arc::clone(&device) as Arc<dyn BlockDevice>;
    let rig = if alone {
        mount_alone(&shared)
    } else {
        mount(&shared)
    };
    let mut rng = Rng::with_seed(seed);
    let file = rig.create(rig.root(), "file").num.addr;
    let handle = rig.fs.open(file, OpenFlags::READ | OpenFlags::WRITE).unwrap();
    let (mut versions, mut synced) = ([0; BLOCKS], Vec::new());
    for version in 1..500u64 {
        match rng.u32(..20) {
            0..=1 => {
                let flags = rig.fs.flags(file).unwrap() ^ FileFlags::JOURNAL_DATA;
                set(&rig, file, flags).unwrap();
            }
            2..=4 => {
                rig.fs.fsync(handle, rng.bool()).unwrap();
                let position = device.log().entries().len();
                synced.push(Synced { position, versions });
            }
            5 if rng.u32(..4) == 0 => rig.journal.write_back().unwrap(),
            // Others' blocks keep the log's tail where it is: what stands behind it is replayed.
            5 => {
                let other = rig.create(rig.root(), &format!("other-{version}"));
                rig.fs.forget(other.num.addr, 1);
            }
            6 => {
                let read = rig.read(file, 0, BLOCKS * bsize);
                for (at, block) in read.chunks(bsize).enumerate() {
                    assert!(is_at_least(block, versions[at]), "seed {seed}: block {at} is old");
                }
            }
            _ => {
                let at = rng.usize(..BLOCKS);
                let bytes = version.to_le_bytes().repeat(bsize / 8);
                let offset = (at * bsize) as u64;
                let written = rig.fs.write(&ROOT_USER, handle, offset, &bytes, false, false);
                assert_eq!(written.unwrap(), bsize);
                versions[at] = version;
            }
        }
    }
    rig.fs.release(handle);
    rig.fs.forget(file, 1);
    rig.unmount();
    (MemDevice::clone(&initial), device, synced)
}

/// Is every sector of the block so new, or newer?
fn is_at_least(block: &[u8], version: u64) -> bool {
    block.chunks(512).all(|sector| {
        let words = sector.chunks_exact(8);
        let mut found = words.map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
        found.all(|word| word >= version)
    })
}

/// Goal: what was synced is not undone by an older copy in the log, nor by a late write, when a file stops or begins to
/// be journaled. Method: versions in blocks; cut anywhere; no sector is older than at the last fsync.
#[test]
fn a_power_cut_shows_no_older_bytes_of_a_file_that_changed_its_way() {
    for (seed, bsize, alone) in [(1, 4096, true), (2, 1024, true), (3, 4096, false)] {
        let (initial, device, synced) = record(seed, bsize, alone);
        assert!(synced.len() > 20, "seed {seed}: only {} syncs", synced.len());
        let log = device.log();
        let mut rng = Rng::with_seed(seed);
        for turn in 0..12 {
            // Just after something was synced, mostly: what is there is what a replay may spoil.
            let position = match turn % 4 {
                0 => rng.usize(..=log.entries().len()),
                _ => synced[rng.usize(..synced.len())].position,
            };
            let image = Arc::new(log.crash_image(&initial, position, turn).unwrap());
            let rig = mount(&(Arc::clone(&image) as Arc<dyn BlockDevice>));
            let last = synced.iter().rev().find(|synced| synced.position <= position);
            if let Some(last) = last {
                let file = rig.walk("file").unwrap().attr.num.addr;
                let read = rig.read(file, 0, BLOCKS * bsize);
                for (at, version) in last.versions.into_iter().enumerate() {
                    let block = read.get(at * bsize..(at + 1) * bsize).unwrap_or_default();
                    let whole = block.len() == bsize || version == 0;
                    assert!(
                        whole && is_at_least(block, version),
                        "seed {seed}, turn {turn}, cut at {position}: block {at} is older than {version}"
                    );
                }
                rig.fs.forget(file, 1);
            }
            rig.unmount();
            check(&image);
        }
    }
}
