//! Goal: what one operation costs device and log is known, and does not grow. Method: a counting device below a mount
//! whose caches are warm and whose log is empty; do the operation, write the log, compare with the table here. A count
//! that gets smaller fails too: then the table is to be tightened.

use super::rig::{ROOT_USER, Rig, check, mount, mount_alone, volume};
use crate::journal::FlushReason;
use crate::ops::OpenFlags;
use crate::ops::types::RenameMode;
use gfs2_format::BlockAddr;
use gfs2_format::device::{BlockDevice, FaultDevice, MemDevice};
use std::sync::Arc;

/// What was done to the device, and how much of it was the log's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    reads: u64,
    writes: u64,
    flushes: u64,
    /// Journal blocks, headers included.
    log: u64,
    /// Blocks of file data.
    data: u64,
}

struct Counted {
    device: Arc<FaultDevice<Arc<MemDevice>>>,
    rig: Rig,
}

impl Counted {
    fn new(base: &Arc<MemDevice>) -> Self {
        let device = Arc::new(FaultDevice::new(Arc::clone(base)));
        let rig = mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>));
        Self { device, rig }
    }

    fn alone(base: &Arc<MemDevice>) -> Self {
        let device = Arc::new(FaultDevice::new(Arc::clone(base)));
        let rig = mount_alone(&(Arc::clone(&device) as Arc<dyn BlockDevice>));
        Self { device, rig }
    }

    fn now(&self) -> Cost {
        let counts = self.device.counts();
        Cost {
            reads: counts.reads,
            writes: counts.writes,
            flushes: counts.flushes,
            log: self.rig.journal.stats().log_blocks,
            data: self.rig.cache.data().stats().blocks_written,
        }
    }

    /// The cost of `work` alone.
    fn of(&self, work: impl FnOnce(&Rig)) -> Cost {
        self.rig.fs.sync().unwrap();
        self.rig.journal.write_back().unwrap();
        let before = self.now();
        work(&self.rig);
        let after = self.now();
        Cost {
            reads: after.reads - before.reads,
            writes: after.writes - before.writes,
            flushes: after.flushes - before.flushes,
            log: after.log - before.log,
            data: after.data - before.data,
        }
    }

    /// The cost of `work` and of the commit that makes it durable.
    fn committed(&self, work: impl FnOnce(&Rig)) -> Cost {
        self.of(|rig| {
            work(rig);
            rig.journal.flush(FlushReason::SyncFs).unwrap();
        })
    }
}

fn cost(reads: u64, writes: u64, flushes: u64, log: u64, data: u64) -> Cost {
    Cost {
        reads,
        writes,
        flushes,
        log,
        data,
    }
}

const NOTHING: Cost = Cost {
    reads: 0,
    writes: 0,
    flushes: 0,
    log: 0,
    data: 0,
};

fn fill(rig: &Rig, dir: BlockAddr, names: std::ops::Range<usize>) {
    for n in names {
        let file = rig.create(dir, &format!("name-{n:04}"));
        rig.fs.forget(file.num.addr, 1);
    }
}

#[test]
fn metadata_operations_cost_what_they_did() {
    let base = volume(64, 4096, 1);
    let counted = Counted::new(&base);
    let root = counted.rig.root();
    fill(&counted.rig, root, 0..5);
    let mut made = root;
    let create = counted.committed(|rig| made = rig.create(root, "one").num.addr);
    // Descriptor, directory, dinode, group header, bitmap (the header's own block), statfs_change, header.
    assert_eq!(create, cost(0, 2, 1, 6, 0), "create");
    let stat = counted.committed(|rig| {
        for _ in 0..10 {
            rig.fs.getattr(made).unwrap();
            rig.walk("one").unwrap();
            rig.fs.forget(made, 1);
        }
    });
    assert_eq!(stat, NOTHING, "stat and lookup of what is known");
    let rename = counted.committed(|rig| {
        let replace = RenameMode::Replace;
        rig.fs
            .rename(&ROOT_USER, root, b"one", root, b"two", replace)
            .unwrap();
    });
    assert_eq!(rename, cost(0, 2, 1, 4, 0), "rename");
    let unlink = counted.committed(|rig| {
        rig.fs.unlink(&ROOT_USER, root, b"two").unwrap();
        rig.fs.forget(made, 1);
    });
    assert_eq!(unlink, cost(0, 2, 1, 5, 0), "unlink and deallocation");
    let many = counted.committed(|rig| fill(rig, root, 5..105));
    assert!(many.reads == 0 && many.flushes == 1, "100 creates: {many:?}");
    // Each has its dinode; the rest is shared.
    assert!(many.log <= 100 + 12, "100 creates: {many:?}");
    counted.rig.unmount();
    check(&base);
}

#[test]
fn file_operations_cost_what_they_did() {
    let base = volume(64, 4096, 1);
    let counted = Counted::new(&base);
    let root = counted.rig.root();
    let addr = counted.rig.create(root, "file").num.addr;
    let flags = OpenFlags::READ | OpenFlags::WRITE;
    let handle = counted.rig.fs.open(addr, flags).unwrap();
    let write = |rig: &Rig, at: u64, len: usize| {
        let data = vec![0x11; len];
        assert_eq!(
            rig.fs.write(&ROOT_USER, handle, at, &data, false, false).unwrap(),
            len
        );
    };
    // The first blocks make the tree.
    write(&counted.rig, 0, 4096 * 600);
    let write_4k = counted.of(|rig| write(rig, 4096 * 600, 4096));
    assert_eq!(
        write_4k, NOTHING,
        "a write of 4 KiB before anybody wants it durable"
    );
    let append = counted.of(|rig| {
        write(rig, 4096 * 601, 4096);
        rig.fs.fsync(handle, false).unwrap();
    });
    // Data and log together, flush, header: dinode, indirect block, group header with bitmap, statfs_change.
    assert_eq!(append, cost(0, 3, 1, 6, 1), "append and fsync");
    let overwrite = counted.of(|rig| {
        write(rig, 0, 4096);
        rig.fs.fsync(handle, true).unwrap();
    });
    assert_eq!(overwrite, cost(0, 1, 1, 0, 1), "overwrite and fdatasync");
    let large = counted.of(|rig| {
        write(rig, 4096 * 602, 1 << 20);
        rig.fs.fsync(handle, false).unwrap();
    });
    assert_eq!(large, cost(0, 3, 1, 6, 256), "1 MiB and fsync");
    let small = counted.of(|rig| {
        for n in 0..100 {
            write(rig, 4096 * 858 + n * 100, 100);
        }
        rig.fs.fsync(handle, false).unwrap();
    });
    assert_eq!(small, cost(0, 3, 1, 6, 3), "appends of 100 bytes and fsync");
    let dropped = counted.committed(|rig| {
        let other = rig.create(root, "short-lived").num.addr;
        rig.write(other, 0, &vec![1; 1 << 20]).unwrap();
        rig.fs.unlink(&ROOT_USER, root, b"short-lived").unwrap();
        rig.fs.forget(other, 1);
    });
    assert_eq!(
        dropped.data, 0,
        "data of a file that is gone before the commit: {dropped:?}"
    );
    let read = counted.of(|rig| {
        let mut buf = vec![0; 1 << 20];
        rig.fs.read(handle, 4096 * 602, &mut buf).unwrap();
    });
    assert_eq!(read, cost(1, 0, 0, 0, 0), "1 MiB read in one piece");
    counted.rig.fs.release(handle);
    counted.rig.unmount();
    check(&base);
}

#[test]
fn cold_directories_cost_few_reads() {
    let base = volume(64, 4096, 1);
    let counted = Counted::new(&base);
    let dir = counted.rig.mkdir(counted.rig.root(), "dir").num.addr;
    fill(&counted.rig, dir, 0..500);
    counted.rig.unmount();
    let counted = Counted::new(&base);
    counted.rig.walk("dir").unwrap();
    let list = counted.of(|rig| {
        assert_eq!(rig.list(dir).len(), 500);
    });
    assert!(list.reads <= 10, "the hash table and the leaves: {list:?}");
    let plus = counted.of(|rig| {
        let handle = rig.fs.opendir(dir).unwrap();
        let mut known = Vec::new();
        rig.fs
            .readdir_plus(handle, 0, &mut |entry, attr| {
                known.extend(attr.map(|_| entry.num.addr));
                false
            })
            .unwrap();
        rig.fs.release(handle);
        assert_eq!(known.len(), 500);
        known.into_iter().for_each(|addr| rig.fs.forget(addr, 1));
    });
    counted.rig.unmount();
    // On a node that has the volume for itself: where others may have the locks, dinodes are not guessed.
    let counted = Counted::alone(&base);
    counted.rig.walk("dir").unwrap();
    let names = counted.of(|rig| {
        for n in 0..500 {
            let found = rig.walk(&format!("dir/name-{:04}", n * 7919 % 500)).unwrap();
            rig.fs.forget(found.attr.num.addr, 1);
        }
    });
    assert!(names.reads <= 30, "500 look-ups: {names:?}");
    // Dinodes made one after the other lie together: a batch of them is read in few pieces.
    assert!(plus.reads <= 20, "500 inodes: {plus:?}");
    counted.rig.unmount();
    check(&base);
}
