//! The verbs of a mount, called in this process: what the driver costs without the kernel's FUSE.
//!
//! `cargo bench --bench verbs -- IMAGE [WORKLOAD...]` formats IMAGE (a file, made when missing, or a block device) and
//! prints for each workload the operations per second, the processor time of one, and what it did to device and log.
//! Without IMAGE (as `cargo bench` and `cargo test --benches` run it) nothing is done.

use dlm_client::{Dlm, JoinOptions, Leave, LocalDlm};
use fuse_gfs2::cache::BufferCache;
use fuse_gfs2::glock::{
    GlockGuard, GlockName, GlockOps, GlockTable, HolderFlags, Presence, State, TableOptions,
};
use fuse_gfs2::health::Health;
use fuse_gfs2::journal::{Journal, JournalConfig, LogDaemon};
use fuse_gfs2::ops::types::{Caller, RenameMode};
use fuse_gfs2::ops::{Fs, FsConfig, FsOptions, OpenFlags};
use fuse_gfs2::recovery::{Access, recover_all};
use gfs2_format::device::{AlignedBuf, BlockDevice, OpenOptions};
use gfs2_format::volume::Volume;
use gfs2_format::{BlockAddr, Jid};
use std::sync::Arc;
use std::time::{Duration, Instant};

const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
};
/// Size of an image that is made.
const IMAGE_BYTES: u64 = 2 << 30;

struct Mount {
    fs: Fs,
    glocks: Arc<GlockTable>,
    journal: Arc<Journal>,
    cache: Arc<BufferCache>,
    held: Vec<GlockGuard>,
    daemon: Option<LogDaemon>,
}

fn mount(device: &Arc<dyn BlockDevice>) -> Mount {
    let volume = Volume::open(device.as_ref()).unwrap();
    let health = Arc::new(Health::new("bench.0"));
    let cache = Arc::new(BufferCache::new(
        Arc::clone(device),
        volume.geometry.clone(),
        health,
        256 << 20,
    ));
    let (space, queue) = LocalDlm::new().join("bench", &JoinOptions::default()).unwrap();
    let glocks = Arc::new(GlockTable::new(space, queue, TableOptions::default()).unwrap());
    recover_all(&cache, &volume, Jid::new(0), Access::ReadWrite).unwrap();
    let own = volume.journal(Jid::new(0)).unwrap().clone();
    let statfs_change = own.statfs_change.unwrap();
    let statfs_glock = GlockName::inode(statfs_change.get());
    let presence: Arc<dyn GlockOps> = Arc::new(Presence);
    let held = vec![
        glocks
            .get(statfs_glock, &presence)
            .unwrap()
            .acquire(State::Ex, HolderFlags::NOPID | HolderFlags::NOCACHE)
            .unwrap(),
    ];
    let journal = Journal::new(
        Arc::clone(&cache),
        JournalConfig {
            jid: own.jid,
            dinode: own.dinode,
            map: own.map.clone(),
            statfs_change,
            statfs_glock,
            quota_change: own.quota_change.unwrap(),
            commit_interval: Duration::from_secs(60),
            shared: false,
            barriers: true,
        },
    );
    journal.start().unwrap();
    let daemon = LogDaemon::start(&journal).unwrap();
    let fs = Fs::new(FsConfig {
        volume,
        cache: Arc::clone(&cache),
        journal: Some(Arc::clone(&journal)),
        glocks: Arc::clone(&glocks),
        options: FsOptions::default(),
    })
    .unwrap();
    Mount {
        fs,
        glocks,
        journal,
        cache,
        held,
        daemon: Some(daemon),
    }
}

fn unmount(mount: Mount) {
    let Mount {
        fs,
        glocks,
        journal,
        cache,
        held,
        daemon,
    } = mount;
    fs.shutdown().unwrap();
    drop(daemon);
    drop((fs, held));
    glocks.clear_all();
    glocks.shutdown(Leave::Clean).unwrap();
    drop((journal, cache));
}

/// Processor time of this process so far.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<i64> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    // utime and stime; the state, a letter, is left out. Unit: 10 ms on every Linux.
    Duration::from_millis((fields[10] + fields[11]).unsigned_abs() * 10)
}

/// Runs a workload of `ops` operations and prints a line.
fn measure(mount: &Mount, name: &str, ops: u64, work: impl FnOnce(&Fs)) {
    let (before, data) = (mount.journal.stats(), mount.cache.data().stats());
    let (clock, used) = (Instant::now(), cpu());
    work(&mount.fs);
    let (wall, used) = (clock.elapsed(), cpu() - used);
    let (after, data_after) = (mount.journal.stats(), mount.cache.data().stats());
    let each = |duration: Duration| duration.as_secs_f64() * 1e6 / ops as f64;
    println!(
        "{name:24} {:>10.0} op/s  {:8.2} us wall  {:8.2} us cpu  {:6} log blocks  {:6} headers  {:6} data writes",
        ops as f64 / wall.as_secs_f64(),
        each(wall),
        each(used),
        after.log_blocks - before.log_blocks,
        after.headers - before.headers,
        data_after.writes - data.writes,
    );
}

fn create(fs: &Fs, dir: BlockAddr, name: &str) -> (BlockAddr, fuse_gfs2::ops::Handle) {
    let flags = OpenFlags::READ | OpenFlags::WRITE;
    let made = fs.create(&CALLER, dir, name.as_bytes(), 0o644, 0, true, flags);
    let (entry, handle, _) = made.unwrap();
    (entry.attr.num.addr, handle)
}

fn metadata(mount: &Mount, files: u64) {
    let root = mount.fs.root().addr;
    let dir = mount
        .fs
        .mkdir(&CALLER, root, b"meta", 0o755, 0)
        .unwrap()
        .attr
        .num
        .addr;
    let name = |n: u64| format!("file-{n:07}");
    measure(mount, "create+write 100 B", files, |fs| {
        for n in 0..files {
            let (_, handle) = create(fs, dir, &name(n));
            fs.write(&CALLER, handle, 0, &[7; 100], false, false).unwrap();
            fs.release(handle);
        }
    });
    let mut known = Vec::new();
    measure(mount, "lookup", files, |fs| {
        for n in 0..files {
            let entry = fs.lookup(&CALLER, dir, name(n).as_bytes()).unwrap();
            known.push(entry.attr.num.addr);
        }
    });
    measure(mount, "getattr", files, |fs| {
        for addr in &known {
            fs.getattr(*addr).unwrap();
        }
    });
    measure(mount, "rename", files, |fs| {
        for n in 0..files {
            let to = format!("moved-{n:07}");
            fs.rename(
                &CALLER,
                dir,
                name(n).as_bytes(),
                dir,
                to.as_bytes(),
                RenameMode::Replace,
            )
            .unwrap();
        }
    });
    measure(mount, "unlink", files, |fs| {
        for (n, addr) in known.iter().enumerate() {
            fs.unlink(&CALLER, dir, format!("moved-{n:07}").as_bytes())
                .unwrap();
            fs.forget(*addr, 2);
        }
    });
    measure(mount, "sync", 1, |fs| fs.sync().unwrap());
}

fn sequential(mount: &Mount, name: &str, size: usize, total: usize, flags: OpenFlags) {
    let root = mount.fs.root().addr;
    let (addr, made) = create(&mount.fs, root, name);
    mount.fs.release(made);
    let flags = flags | OpenFlags::READ | OpenFlags::WRITE;
    let handle = mount.fs.open(addr, flags).unwrap();
    let mut data = AlignedBuf::zeroed(size);
    data.fill(0x5a);
    let ops = (total / size) as u64;
    measure(mount, &format!("{name} write+fsync"), ops, |fs| {
        for n in 0..ops {
            let at = n * size as u64;
            assert_eq!(fs.write(&CALLER, handle, at, &data, false, false).unwrap(), size);
        }
        fs.fsync(handle, false).unwrap();
    });
    measure(mount, &format!("{name} rewrite+fsync"), ops, |fs| {
        for n in 0..ops {
            fs.write(&CALLER, handle, n * size as u64, &data, false, false)
                .unwrap();
        }
        fs.fsync(handle, false).unwrap();
    });
    measure(mount, &format!("{name} read"), ops, |fs| {
        for n in 0..ops {
            fs.read(handle, n * size as u64, &mut data).unwrap();
        }
    });
    mount.fs.release(handle);
    mount.fs.unlink(&CALLER, root, name.as_bytes()).unwrap();
    mount.fs.forget(addr, 1);
}

fn appends(mount: &Mount, device: &dyn BlockDevice, ops: u64) {
    let root = mount.fs.root().addr;
    let (addr, handle) = create(&mount.fs, root, "append");
    let data = [9; 4096];
    measure(mount, "append 4k+fsync", ops, |fs| {
        for n in 0..ops {
            fs.write(&CALLER, handle, n * 4096, &data, false, false).unwrap();
            fs.fsync(handle, false).unwrap();
        }
    });
    measure(mount, "overwrite 4k+fdatasync", ops, |fs| {
        for n in 0..ops {
            fs.write(&CALLER, handle, n * 4096, &data, false, false).unwrap();
            fs.fsync(handle, true).unwrap();
        }
    });
    // What the device can do: a block of this file is freed with it, so nobody misses what stood there.
    let place = device.size() - 4096;
    let mut block = AlignedBuf::zeroed(4096);
    device.read_at(place, &mut block).unwrap();
    measure(mount, "device 4k+fdatasync", ops, |_| {
        for _ in 0..ops {
            device.write_at(place, &block).unwrap();
            device.flush().unwrap();
        }
    });
    mount.fs.release(handle);
    mount.fs.unlink(&CALLER, root, b"append").unwrap();
    mount.fs.forget(addr, 1);
}

/// Several at once, each appending to a file of its own: those who come while the log is written share the next flush.
fn appends_together(mount: &Mount, threads: u64, each: u64) {
    let root = mount.fs.root().addr;
    let name = |n: u64| format!("append-{n}");
    let files: Vec<_> = (0..threads).map(|n| create(&mount.fs, root, &name(n))).collect();
    let mut data = AlignedBuf::zeroed(4096);
    data.fill(0x5a);
    measure(
        mount,
        &format!("append 4k+fsync, {threads} at once"),
        threads * each,
        |fs| {
            std::thread::scope(|scope| {
                for (_, handle) in &files {
                    let data = &data;
                    scope.spawn(move || {
                        for n in 0..each {
                            fs.write(&CALLER, *handle, n * 4096, data, false, false).unwrap();
                            fs.fsync(*handle, true).unwrap();
                        }
                    });
                }
            });
        },
    );
    for (n, (addr, handle)) in files.into_iter().enumerate() {
        mount.fs.release(handle);
        mount.fs.unlink(&CALLER, root, name(n as u64).as_bytes()).unwrap();
        mount.fs.forget(addr, 1);
    }
}

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    let Some((path, wanted)) = args.split_first() else {
        println!("name an image or block device, which is formatted");
        return;
    };
    let open = OpenOptions::new()
        .direct(true)
        .exclusive(true)
        .create(IMAGE_BYTES);
    let device: Arc<dyn BlockDevice> = Arc::new(open.open(path).unwrap());
    let options = gfs2_mkfs::Options {
        journals: 1,
        journal_mb: Some(64),
        ..gfs2_mkfs::Options::nolock()
    };
    gfs2_mkfs::format(device.as_ref(), &options).unwrap();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    let mount = mount(&device);
    if wants("meta") {
        metadata(&mount, 20_000);
    }
    if wants("seq") {
        sequential(&mount, "1M", 1 << 20, 256 << 20, OpenFlags::empty());
        sequential(&mount, "1M direct", 1 << 20, 256 << 20, OpenFlags::DIRECT);
        sequential(&mount, "4k", 4096, 64 << 20, OpenFlags::empty());
        sequential(&mount, "100B", 100, 1 << 20, OpenFlags::empty());
    }
    if wants("append") {
        appends(&mount, device.as_ref(), 2000);
        for threads in [2, 4, 8] {
            appends_together(&mount, threads, 4000 / threads);
        }
    }
    unmount(mount);
}
