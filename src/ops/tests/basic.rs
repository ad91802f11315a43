//! One verb at a time.

use super::rig::{ROOT_USER, check, mount, volume};
use crate::error::Errno;
use crate::ops::OpenFlags;
use crate::ops::types::{RenameMode, SeekWhat, SetAttr, XattrMode};
use gfs2_format::device::{BlockDevice, MemDevice};
use gfs2_format::ondisk::FileType;
use std::sync::Arc;

fn dynamic(device: &Arc<MemDevice>) -> Arc<dyn BlockDevice> {
    Arc::clone(device) as Arc<dyn BlockDevice>
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| (n as u8).wrapping_mul(31) ^ seed ^ (n >> 8) as u8)
        .collect()
}

#[test]
fn a_file_is_there_after_a_remount() {
    for bsize in [4096, 1024] {
        let device = volume(64, bsize, 1);
        let rig = mount(&dynamic(&device));
        let root = rig.root();
        let dir = rig.mkdir(root, "dir");
        let file = rig.create(dir.num.addr, "file");
        let data = pattern(7, 3_000_000);
        assert_eq!(rig.write(file.num.addr, 5, &data).unwrap(), data.len());
        assert_eq!(rig.read(file.num.addr, 5, data.len() + 10), data);
        assert_eq!(rig.read(file.num.addr, 0, 5), [0; 5]);
        rig.fs.symlink(&ROOT_USER, root, b"link", b"dir/file").unwrap();
        rig.unmount();
        check(&device);
        let rig = mount(&dynamic(&device));
        let file = rig.walk("dir/file").unwrap().attr;
        assert_eq!(file.size, data.len() as u64 + 5);
        assert_eq!(rig.read(file.num.addr, 0, 5), [0; 5]);
        assert_eq!(rig.read(file.num.addr, 5, data.len()), data);
        let link = rig.walk("link").unwrap().attr;
        assert_eq!(link.kind, FileType::Symlink);
        assert_eq!(rig.fs.readlink(link.num.addr).unwrap(), b"dir/file");
        assert_eq!(
            rig.list(rig.root()).into_keys().collect::<Vec<_>>(),
            [b"dir".to_vec(), b"link".to_vec()]
        );
        rig.unmount();
        check(&device);
    }
}

#[test]
fn names_are_refused_as_posix_says() {
    let device = volume(64, 4096, 1);
    let rig = mount(&dynamic(&device));
    let (fs, root) = (&rig.fs, rig.root());
    let errno = |result: crate::error::FsResult<()>| result.unwrap_err().errno();
    let dir = rig.mkdir(root, "d").num.addr;
    let file = rig.create(root, "f").num.addr;
    rig.create(dir, "inside");
    let long = vec![b'x'; 256];
    assert_eq!(
        fs.lookup(&ROOT_USER, root, &long).unwrap_err().errno(),
        Errno::ENAMETOOLONG
    );
    assert_eq!(
        fs.lookup(&ROOT_USER, root, b"nothing").unwrap_err().errno(),
        Errno::ENOENT
    );
    assert_eq!(
        fs.lookup(&ROOT_USER, file, b"x").unwrap_err().errno(),
        Errno::ENOTDIR
    );
    assert_eq!(
        fs.mkdir(&ROOT_USER, root, b"f", 0o755, 0).unwrap_err().errno(),
        Errno::EEXIST
    );
    assert_eq!(errno(fs.unlink(&ROOT_USER, root, b"d")), Errno::EISDIR);
    assert_eq!(errno(fs.rmdir(&ROOT_USER, root, b"f")), Errno::ENOTDIR);
    assert_eq!(errno(fs.rmdir(&ROOT_USER, root, b"d")), Errno::ENOTEMPTY);
    assert_eq!(
        fs.link(&ROOT_USER, dir, root, b"hard").unwrap_err().errno(),
        Errno::EPERM
    );
    let rename = |a: &[u8], to, b: &[u8], mode| fs.rename(&ROOT_USER, root, a, to, b, mode);
    assert_eq!(
        errno(rename(b"d", dir, b"self", RenameMode::Replace)),
        Errno::EINVAL
    );
    assert_eq!(
        errno(rename(b"f", root, b"d", RenameMode::Replace)),
        Errno::EISDIR
    );
    assert_eq!(
        errno(rename(b"d", root, b"f", RenameMode::Replace)),
        Errno::ENOTDIR
    );
    assert_eq!(
        errno(rename(b"f", dir, b"inside", RenameMode::NoReplace)),
        Errno::EEXIST
    );
    assert_eq!(
        errno(rename(b"f", dir, b"none", RenameMode::Exchange)),
        Errno::ENOENT
    );
    assert_eq!(
        errno(rename(b"none", dir, b"inside", RenameMode::Replace)),
        Errno::ENOENT
    );
    let target = vec![b't'; 3864];
    assert_eq!(
        fs.symlink(&ROOT_USER, root, b"s", &target).unwrap_err().errno(),
        Errno::ENAMETOOLONG
    );
    fs.symlink(&ROOT_USER, root, b"s", &target[1..]).unwrap();
    rig.unmount();
    check(&device);
}

#[test]
fn an_unlinked_file_lives_until_its_last_user_has_gone() {
    let device = volume(64, 4096, 1);
    let rig = mount(&dynamic(&device));
    let root = rig.root();
    let free = rig.fs.statfs().unwrap().free;
    let file = rig.create(root, "f").num.addr;
    rig.write(file, 0, &pattern(1, 100_000)).unwrap();
    let handle = rig.fs.open(file, OpenFlags::READ).unwrap();
    rig.fs.unlink(&ROOT_USER, root, b"f").unwrap();
    rig.fs.forget(file, 1);
    let mut buf = vec![0; 100_000];
    assert_eq!(rig.fs.read(handle, 0, &mut buf).unwrap(), 100_000);
    assert_eq!(buf, pattern(1, 100_000));
    assert_eq!(rig.fs.getattr(file).unwrap().nlink, 0);
    assert!(rig.fs.statfs().unwrap().free < free);
    rig.fs.release(handle);
    assert_eq!(rig.fs.statfs().unwrap().free, free);
    assert_eq!(rig.fs.getattr(file).unwrap_err().errno(), Errno::ESTALE);
    rig.unmount();
    check(&device);
}

#[test]
fn orphans_of_a_lost_mount_are_reclaimed() {
    let device = volume(64, 4096, 1);
    let free = {
        let rig = mount(&dynamic(&device));
        let root = rig.root();
        let free = rig.fs.statfs().unwrap().free;
        let file = rig.create(root, "f").num.addr;
        rig.write(file, 0, &pattern(1, 100_000)).unwrap();
        rig.fs.unlink(&ROOT_USER, root, b"f").unwrap();
        rig.fs.sync().unwrap();
        rig.journal.stop(crate::journal::StopReason::Shutdown).unwrap();
        // The node is gone without evicting anything.
        std::mem::forget(rig);
        free
    };
    let rig = mount(&dynamic(&device));
    assert_eq!(rig.fs.reclaim_orphans().unwrap(), 1);
    assert_eq!(rig.fs.reclaim_orphans().unwrap(), 0);
    assert_eq!(rig.fs.statfs().unwrap().free, free);
    rig.unmount();
    check(&device);
}

#[test]
fn sizes_go_down_and_up_and_holes_read_as_zeroes() {
    for bsize in [4096, 512] {
        let device = volume(64, bsize, 1);
        let rig = mount(&dynamic(&device));
        let file = rig.create(rig.root(), "f").num.addr;
        let data = pattern(3, 500_000);
        rig.write(file, 0, &data).unwrap();
        let resize = |size| {
            rig.fs
                .setattr(
                    &ROOT_USER,
                    file,
                    &SetAttr {
                        size: Some(size),
                        ..SetAttr::default()
                    },
                )
                .unwrap()
        };
        resize(123_457);
        let grown = resize(1_000_000);
        assert_eq!(grown.size, 1_000_000);
        let mut want = data[..123_457].to_vec();
        want.resize(1_000_000, 0);
        assert_eq!(rig.read(file, 0, 2_000_000), want);
        rig.write(file, 5_000_000_000, b"far").unwrap();
        assert_eq!(rig.read(file, 4_999_999_990, 100), b"\0\0\0\0\0\0\0\0\0\0far");
        let handle = rig.fs.open(file, OpenFlags::READ).unwrap();
        let hole = rig.fs.lseek(handle, 0, SeekWhat::Hole).unwrap();
        assert_eq!(hole, 123_457u64.next_multiple_of(u64::from(bsize)));
        let data_at = rig.fs.lseek(handle, hole, SeekWhat::Data).unwrap();
        assert_eq!(data_at, 5_000_000_000 / u64::from(bsize) * u64::from(bsize));
        assert_eq!(
            rig.fs.lseek(handle, data_at, SeekWhat::Hole).unwrap(),
            5_000_000_003
        );
        assert_eq!(
            rig.fs
                .lseek(handle, 5_000_000_003, SeekWhat::Data)
                .unwrap_err()
                .errno(),
            Errno::ENXIO
        );
        rig.fs.release(handle);
        resize(0);
        rig.write(file, 0, b"stuffed again").unwrap();
        assert_eq!(rig.read(file, 0, 100), b"stuffed again");
        assert_eq!(rig.fs.getattr(file).unwrap().sectors, u64::from(bsize) / 512);
        rig.unmount();
        check(&device);
    }
}

#[test]
fn a_big_directory_grows_shrinks_and_goes() {
    let device = volume(64, 1024, 1);
    let rig = mount(&dynamic(&device));
    let free = rig.fs.statfs().unwrap().free;
    let dir = rig.mkdir(rig.root(), "big").num.addr;
    let first = rig.create(dir, "first").num.addr;
    for n in 0..3000 {
        let entry = rig
            .fs
            .link(&ROOT_USER, first, dir, format!("name-{n}").as_bytes())
            .unwrap();
        rig.fs.forget(entry.attr.num.addr, 1);
    }
    assert_eq!(rig.list(dir).len(), 3001);
    assert_eq!(rig.fs.getattr(first).unwrap().nlink, 3001);
    let mut taken = Vec::new();
    let handle = rig.fs.opendir(dir).unwrap();
    rig.fs
        .readdir_plus(handle, 0, &mut |entry, attr| {
            taken.push((entry.name.clone(), attr.copied()));
            false
        })
        .unwrap();
    rig.fs.release(handle);
    assert_eq!(taken.len(), 3003);
    let counted = taken.iter().filter(|(_, attr)| attr.is_some()).count() as u64;
    assert_eq!(counted, 3001);
    rig.fs.forget(first, counted);
    for n in 0..3000 {
        rig.fs
            .unlink(&ROOT_USER, dir, format!("name-{n}").as_bytes())
            .unwrap();
    }
    rig.fs.unlink(&ROOT_USER, dir, b"first").unwrap();
    rig.fs.rmdir(&ROOT_USER, rig.root(), b"big").unwrap();
    rig.fs.forget(first, 1);
    rig.fs.forget(dir, 1);
    assert_eq!(rig.fs.statfs().unwrap().free, free);
    rig.unmount();
    check(&device);
}

#[test]
fn renames_keep_links_and_parents_right() {
    let device = volume(64, 4096, 1);
    let rig = mount(&dynamic(&device));
    let (fs, root) = (&rig.fs, rig.root());
    let (a, b) = (rig.mkdir(root, "a").num.addr, rig.mkdir(root, "b").num.addr);
    let sub = rig.mkdir(a, "sub").num.addr;
    let file = rig.create(a, "file").num.addr;
    rig.fs
        .rename(&ROOT_USER, a, b"sub", b, b"moved", RenameMode::Replace)
        .unwrap();
    assert_eq!(
        (fs.getattr(a).unwrap().nlink, fs.getattr(b).unwrap().nlink),
        (2, 3)
    );
    assert_eq!(fs.lookup(&ROOT_USER, sub, b"..").unwrap().attr.num.addr, b);
    rig.fs
        .rename(&ROOT_USER, a, b"file", b, b"moved", RenameMode::Exchange)
        .unwrap();
    assert_eq!(
        (fs.getattr(a).unwrap().nlink, fs.getattr(b).unwrap().nlink),
        (3, 2)
    );
    assert_eq!(rig.list(b).get(b"moved".as_slice()), Some(&file));
    assert_eq!(fs.lookup(&ROOT_USER, sub, b"..").unwrap().attr.num.addr, a);
    let victim = rig.create(b, "victim").num.addr;
    fs.rename(&ROOT_USER, b, b"moved", b, b"victim", RenameMode::Replace)
        .unwrap();
    assert_eq!(fs.getattr(victim).unwrap().nlink, 0);
    assert_eq!(rig.list(b).into_keys().collect::<Vec<_>>(), [b"victim".to_vec()]);
    let empty = rig.mkdir(b, "empty").num.addr;
    fs.rename(&ROOT_USER, a, b"file", b, b"empty", RenameMode::Replace)
        .unwrap();
    assert_eq!(fs.getattr(empty).unwrap().nlink, 0);
    assert_eq!(
        (fs.getattr(a).unwrap().nlink, fs.getattr(b).unwrap().nlink),
        (2, 3)
    );
    rig.unmount();
    check(&device);
}

#[test]
fn xattrs_of_every_size() {
    let device = volume(64, 4096, 1);
    let rig = mount(&dynamic(&device));
    let (fs, root) = (&rig.fs, rig.root());
    let file = rig.create(root, "f").num.addr;
    let sizes = [0, 1, 100, 4000, 4072, 20_000, 65_536];
    for (n, size) in sizes.into_iter().enumerate() {
        let name = format!("user.x{n}");
        fs.setxattr(
            &ROOT_USER,
            file,
            name.as_bytes(),
            &pattern(n as u8, size),
            XattrMode::Create,
        )
        .unwrap();
    }
    fs.setxattr(&ROOT_USER, file, b"trusted.t", b"1802", XattrMode::Any)
        .unwrap();
    for (n, size) in sizes.into_iter().enumerate() {
        let name = format!("user.x{n}");
        assert_eq!(
            fs.getxattr(&ROOT_USER, file, name.as_bytes()).unwrap(),
            pattern(n as u8, size)
        );
    }
    let names = fs.listxattr(&ROOT_USER, file).unwrap();
    assert_eq!(names.split(|b| *b == 0).filter(|n| !n.is_empty()).count(), 8);
    let set = |name: &[u8], value: &[u8], mode| fs.setxattr(&ROOT_USER, file, name, value, mode);
    assert_eq!(
        set(b"user.x1", b"", XattrMode::Create).unwrap_err().errno(),
        Errno::EEXIST
    );
    assert_eq!(
        set(b"user.none", b"", XattrMode::Replace).unwrap_err().errno(),
        Errno::ENODATA
    );
    assert_eq!(
        set(b"user.", b"", XattrMode::Any).unwrap_err().errno(),
        Errno::EINVAL
    );
    assert_eq!(
        set(b"other.x", b"", XattrMode::Any).unwrap_err().errno(),
        Errno::EOPNOTSUPP
    );
    // The kernel checks no permission for this space: anyone could hide data in anyone's file.
    assert_eq!(
        set(b"system.x", b"", XattrMode::Any).unwrap_err().errno(),
        Errno::EOPNOTSUPP
    );
    assert_eq!(
        fs.getxattr(&ROOT_USER, file, b"system.x").unwrap_err().errno(),
        Errno::EOPNOTSUPP
    );
    assert_eq!(
        fs.removexattr(&ROOT_USER, file, b"system.x").unwrap_err().errno(),
        Errno::EOPNOTSUPP
    );
    assert_eq!(
        set(b"user.x", &vec![0; 65_537], XattrMode::Any)
            .unwrap_err()
            .errno(),
        Errno::ERANGE
    );
    assert_eq!(
        fs.getxattr(&ROOT_USER, file, b"user.none").unwrap_err().errno(),
        Errno::ENODATA
    );
    set(b"user.x6", &pattern(9, 30_000), XattrMode::Replace).unwrap();
    assert_eq!(
        fs.getxattr(&ROOT_USER, file, b"user.x6").unwrap(),
        pattern(9, 30_000)
    );
    for n in 0..sizes.len() {
        fs.removexattr(&ROOT_USER, file, format!("user.x{n}").as_bytes())
            .unwrap();
    }
    assert_eq!(
        fs.removexattr(&ROOT_USER, file, b"user.x0").unwrap_err().errno(),
        Errno::ENODATA
    );
    let other = rig.create(root, "g").num.addr;
    fs.setxattr(
        &ROOT_USER,
        other,
        b"user.big",
        &pattern(2, 50_000),
        XattrMode::Any,
    )
    .unwrap();
    fs.unlink(&ROOT_USER, root, b"g").unwrap();
    fs.forget(other, 1);
    rig.unmount();
    check(&device);
}
