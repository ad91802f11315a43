//! Every device: bounds, contents, and what makes it special.

use super::*;
use crate::Error;

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|n| (n.wrapping_mul(31).wrapping_add(seed.wrapping_mul(7919)) >> 3) as u8)
        .collect()
}

fn read(device: &dyn BlockDevice, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xee; len];
    device.read_at(offset, &mut buf).unwrap();
    buf
}

/// What every device must do, on one of at least 1 MiB of zeroes.
fn behaves(device: &dyn BlockDevice) {
    let size = device.size();
    assert_eq!(read(device, 8192, 4096), vec![0; 4096]);
    for (offset, len) in [
        (0, 512),
        (512, 1024),
        (65536 - 512, 4096),
        (16384, 40960),
        (size - 512, 512),
    ] {
        let bytes = pattern(offset, len);
        device.write_at(offset, &bytes).unwrap();
        assert_eq!(read(device, offset, len), bytes, "offset {offset}");
    }
    device.write_fua(4096, &pattern(9, 512)).unwrap();
    assert_eq!(read(device, 4096, 512), pattern(9, 512));
    device.flush().unwrap();
    let writes: Vec<Vec<u8>> = (0..100).map(|n| pattern(n, 512 * (1 + n as usize % 9))).collect();
    let at = |n: usize| 131072 + n as u64 * 8192;
    let requests: Vec<WriteRequest<'_>> = writes
        .iter()
        .enumerate()
        .map(|(n, buf)| WriteRequest { offset: at(n), buf })
        .collect();
    device.write_batch(&requests).unwrap();
    let mut back: Vec<Vec<u8>> = writes.iter().map(|w| vec![0; w.len()]).collect();
    let mut requests: Vec<ReadRequest<'_>> = back
        .iter_mut()
        .enumerate()
        .map(|(n, buf)| ReadRequest { offset: at(n), buf })
        .collect();
    device.read_batch(&mut requests).unwrap();
    assert_eq!(back, writes);
    past_the_end(device, size);
}

fn past_the_end(device: &dyn BlockDevice, size: u64) {
    let mut buf = vec![0; 1024];
    for offset in [size - 512, size, u64::MAX - 100] {
        assert!(matches!(
            device.read_at(offset, &mut buf),
            Err(Error::Io { op: "read", .. })
        ));
        assert!(matches!(
            device.write_at(offset, &buf),
            Err(Error::Io { op: "write", .. })
        ));
        assert!(
            device
                .read_batch(&mut [ReadRequest {
                    offset,
                    buf: &mut buf
                }])
                .is_err()
        );
        assert!(device.write_batch(&[WriteRequest { offset, buf: &buf }]).is_err());
    }
}

const SIZE: u64 = 2 << 20;

#[test]
fn every_device_behaves() {
    behaves(&MemDevice::new(SIZE));
    behaves(&OverlayDevice::new(MemDevice::new(SIZE), 4096, SIZE).unwrap());
    behaves(&OverlayDevice::new(MemDevice::new(SIZE), 512, SIZE).unwrap());
    behaves(&RecordDevice::new(MemDevice::new(SIZE)));
    behaves(&FaultDevice::new(MemDevice::new(SIZE)));
    behaves(&Arc::new(MemDevice::new(SIZE)));
}

#[test]
fn files_behave_with_every_engine_direct_or_not() {
    let dir = tempfile::tempdir().unwrap();
    for engine in [Engine::Auto, Engine::Threads, Engine::Sequential] {
        for direct in [false, true] {
            let path = dir.path().join(format!("{engine:?}-{direct}"));
            let options = OpenOptions::new().engine(engine).direct(direct).create(SIZE);
            let device = options.open(&path).unwrap();
            assert_eq!(device.size(), SIZE);
            behaves(&device);
            assert!(device.discard(65536, 65536).is_ok());
        }
    }
}

#[test]
fn large_batches_come_back_whole_from_the_ring() {
    // Goes through io_uring where there is one: more requests than its depth, larger than a piece, odd memory.
    let dir = tempfile::tempdir().unwrap();
    let size = 64 << 20;
    for direct in [false, true] {
        let path = dir.path().join(format!("{direct}"));
        let device = OpenOptions::new()
            .direct(direct)
            .create(size)
            .open(&path)
            .unwrap();
        let writes: Vec<Vec<u8>> = (0..100).map(|n| pattern(n, 512 * (1 + n as usize * 9))).collect();
        let offset = |n: usize| n as u64 * 512 * 1024;
        let requests: Vec<WriteRequest<'_>> = writes
            .iter()
            .enumerate()
            .map(|(n, buf)| WriteRequest {
                offset: offset(n),
                buf,
            })
            .collect();
        device.write_batch(&requests).unwrap();
        device.flush().unwrap();
        let mut memory: Vec<Vec<u8>> = writes.iter().map(|w| vec![0; w.len() + 1]).collect();
        let mut requests: Vec<ReadRequest<'_>> = memory
            .iter_mut()
            .enumerate()
            .map(|(n, buf)| ReadRequest {
                offset: offset(n),
                buf: &mut buf[1..],
            })
            .collect();
        device.read_batch(&mut requests).unwrap();
        for (n, (memory, written)) in memory.iter().zip(&writes).enumerate() {
            assert!(memory[1..] == written[..], "request {n}, direct {direct}");
        }
    }
    println!("io_uring available: {}", batch::ring_available());
}

#[test]
fn a_ring_is_not_waited_for_when_everything_is_done_at_once() {
    // Cached reads end while they are submitted. Many fresh threads: each has a ring whose first batch is full.
    let dir = tempfile::tempdir().unwrap();
    let device = OpenOptions::new()
        .create(SIZE)
        .open(dir.path().join("file"))
        .unwrap();
    device.write_at(0, &pattern(1, SIZE as usize)).unwrap();
    let (done, wait) = std::sync::mpsc::channel();
    let device = Arc::new(device);
    for thread in 0..8u64 {
        let (device, done) = (Arc::clone(&device), done.clone());
        std::thread::spawn(move || {
            let mut memory = vec![vec![0; 4096]; 300];
            let file = device.file_for_tests();
            let mut requests: Vec<ReadRequest<'_>> = memory
                .iter_mut()
                .zip(0u64..)
                .map(|(buf, n)| ReadRequest {
                    offset: (n * 7 + thread) % 500 * 4096,
                    buf,
                })
                .collect();
            let plain = |_: u64, _: &mut [u8]| -> Result<()> { panic!("the ring did not do it") };
            if batch::ring_available() {
                batch::read(Engine::Auto, &file, &mut requests, &plain).unwrap();
            }
            done.send(()).unwrap();
        });
    }
    for _ in 0..8 {
        wait.recv_timeout(std::time::Duration::from_secs(60))
            .expect("a batch hangs");
    }
}

#[test]
fn direct_io_takes_any_memory_and_any_offset() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let device = OpenOptions::new().direct(true).create(SIZE).open(&path).unwrap();
    let bytes = pattern(1, 1 << 20);
    device.write_at(0, &bytes).unwrap();
    let mut memory = vec![0; (1 << 20) + 1];
    device.read_at(0, &mut memory[1..]).unwrap();
    assert!(memory[1..] == bytes[..]);
    assert_eq!(read(&device, 1000, 300_000), bytes[1000..301_000]);
    let plain = OpenOptions::new().read_only(true).open(&path).unwrap();
    assert!(read(&plain, 0, 1 << 20) == bytes);
}

#[test]
fn read_only_files_refuse_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    OpenOptions::new().create(SIZE).open(&path).unwrap();
    let device = OpenOptions::new().read_only(true).open(&path).unwrap();
    assert!(device.is_read_only());
    assert!(device.write_at(0, &[0; 512]).is_err());
    assert!(device.write_fua(0, &[0; 512]).is_err());
    assert!(
        device
            .write_batch(&[WriteRequest {
                offset: 0,
                buf: &[0; 512]
            }])
            .is_err()
    );
    assert!(device.discard(0, 512).is_err());
    device.flush().unwrap();
}

#[test]
fn exclusive_files_are_busy_for_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let first = OpenOptions::new()
        .exclusive(true)
        .create(SIZE)
        .open(&path)
        .unwrap();
    let second = OpenOptions::new().exclusive(true).open(&path);
    let Err(Error::Io {
        op: "open", source, ..
    }) = second
    else {
        panic!("opened twice");
    };
    assert_eq!(source.kind(), io::ErrorKind::ResourceBusy);
    assert_eq!(
        OpenOptions::new().open(&path).unwrap().identity(),
        first.identity()
    );
    drop(first);
    OpenOptions::new().exclusive(true).open(&path).unwrap();
}

#[test]
fn only_files_and_block_devices_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    for path in [dir.path().to_path_buf(), fifo, "/dev/null".into()] {
        let result = OpenOptions::new().read_only(true).open(&path);
        assert!(matches!(result, Err(Error::Unsupported { .. })), "{path:?}");
    }
    let missing = OpenOptions::new().open(dir.path().join("missing"));
    assert!(matches!(missing, Err(Error::Io { op: "open", .. })));
}

#[test]
fn an_existing_file_keeps_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    assert_eq!(OpenOptions::new().create(SIZE).open(&path).unwrap().size(), SIZE);
    assert_eq!(
        OpenOptions::new().create(SIZE * 2).open(&path).unwrap().size(),
        SIZE
    );
}

#[test]
fn memory_is_sparse_and_snapshots_are_independent() {
    let device = MemDevice::new(16 << 40);
    device.write_at((16 << 40) - 4096, &pattern(1, 4096)).unwrap();
    device.write_at(1 << 40, &pattern(2, 4096)).unwrap();
    assert!(device.allocated() <= 64 * 1024);
    let snapshot = device.clone();
    device.write_at(1 << 40, &[0; 4096]).unwrap();
    assert_eq!(read(&snapshot, 1 << 40, 4096), pattern(2, 4096));
    assert_eq!(read(&device, 1 << 40, 4096), vec![0; 4096]);
    assert!(device.discard(0, 16 << 40).unwrap());
    assert_eq!(device.allocated(), 0);
    assert_eq!(read(&device, (16 << 40) - 4096, 4096), vec![0; 4096]);
}

#[test]
fn a_discard_leaves_the_neighbourhood_alone() {
    let device = MemDevice::new(1 << 20);
    device.write_at(0, &pattern(1, 1 << 20)).unwrap();
    assert!(device.discard(512, 100_000).unwrap());
    assert_eq!(read(&device, 0, 512), pattern(1, 1 << 20)[..512]);
    assert_eq!(
        read(&device, 100_512, 4096),
        pattern(1, 1 << 20)[100_512..104_608]
    );
}

#[test]
fn copies_equal_their_source() {
    let source = MemDevice::new((1 << 20) + 512);
    source.write_at(300_000, &pattern(4, 50_000)).unwrap();
    source.write_at(1 << 20, &pattern(5, 512)).unwrap();
    let copy = MemDevice::copy_of(&source).unwrap();
    let len = source.size() as usize;
    assert!(read(&copy, 0, len) == read(&source, 0, len));
    assert!(copy.allocated() < 200_000);
}

#[test]
fn an_overlay_changes_its_base_only_when_committed() {
    let base = MemDevice::new(1 << 20);
    base.write_at(0, &pattern(1, 1 << 20)).unwrap();
    let overlay = OverlayDevice::new(&base, 4096, 1 << 20).unwrap();
    overlay.write_at(1024, &pattern(2, 512)).unwrap();
    overlay.write_at(8192 - 512, &pattern(3, 1024)).unwrap();
    overlay.write_at(100 * 4096, &pattern(4, 4096)).unwrap();
    assert_eq!(overlay.changed_ranges(), vec![(0, 3 * 4096), (100 * 4096, 4096)]);
    assert_eq!(overlay.changed_bytes(), 4 * 4096);
    assert!(read(&base, 0, 1 << 20) == pattern(1, 1 << 20));
    let seen = read(&overlay, 0, 1 << 20);
    let mut expected = pattern(1, 1 << 20);
    expected[1024..1536].copy_from_slice(&pattern(2, 512));
    expected[8192 - 512..8192 + 512].copy_from_slice(&pattern(3, 1024));
    expected[100 * 4096..101 * 4096].copy_from_slice(&pattern(4, 4096));
    assert!(seen == expected);
    overlay.commit(|_| 0).unwrap();
    assert!(read(&base, 0, 1 << 20) == expected);
    assert_eq!(overlay.changed_bytes(), 0);
    assert!(read(&overlay, 0, 1 << 20) == expected);
}

#[test]
fn an_overlay_commits_in_the_order_asked_for_with_flushes_between() {
    let base = RecordDevice::new(MemDevice::new(1 << 20));
    let overlay = OverlayDevice::new(&base, 512, 1 << 20).unwrap();
    for sector in [1u64, 5, 3, 7] {
        overlay.write_at(sector * 512, &[sector as u8; 512]).unwrap();
    }
    overlay.commit(|offset| u32::from(offset == 3 * 512)).unwrap();
    let order: Vec<Option<u64>> = base
        .log()
        .entries()
        .iter()
        .map(|e| match e {
            LogEntry::Write { offset, .. } => Some(offset / 512),
            _ => None,
        })
        .collect();
    assert_eq!(order, vec![Some(1), Some(5), Some(7), None, Some(3), None]);
}

#[test]
fn an_overlay_keeps_to_its_limit_and_to_its_changes_after_a_failed_commit() {
    let base = FaultDevice::new(MemDevice::new(1 << 20));
    let overlay = OverlayDevice::new(&base, 4096, 8192).unwrap();
    overlay.write_at(0, &[1; 8192]).unwrap();
    overlay.write_at(0, &[2; 8192]).unwrap();
    assert!(overlay.write_at(4096, &[3; 8192]).is_err());
    assert_eq!(read(&overlay, 0, 12288), [vec![2; 8192], vec![0; 4096]].concat());
    base.add(FaultRule::always(FaultOp::Write, Fault::Errno(5)));
    assert!(overlay.commit(|_| 0).is_err());
    assert_eq!(overlay.changed_bytes(), 8192);
    base.clear();
    overlay.commit(|_| 0).unwrap();
    assert_eq!(read(&base, 0, 8192), vec![2; 8192]);
}

#[test]
fn an_overlay_wants_a_sensible_granule() {
    for granule in [0, 256, 768] {
        assert!(OverlayDevice::new(MemDevice::new(1 << 20), granule, 0).is_err());
    }
}

#[test]
fn a_log_rebuilds_every_prefix() {
    let initial = MemDevice::new(1 << 20);
    initial.write_at(0, &pattern(0, 65536)).unwrap();
    let device = RecordDevice::new(initial.clone());
    let mut states = vec![read(&device, 0, 1 << 20)];
    for n in 1..20u64 {
        match n % 5 {
            0 => device.flush().unwrap(),
            1 => device.write_fua(n * 4096, &pattern(n, 4096)).unwrap(),
            2 => assert!(device.discard(0, 32768).unwrap()),
            _ => device.write_at(n * 1024, &pattern(n, 4096)).unwrap(),
        }
        states.push(read(&device, 0, 1 << 20));
    }
    let log = device.log();
    assert_eq!(log.entries().len(), 19);
    assert_eq!(log.flush_points(), vec![5, 10, 15]);
    for (position, state) in states.iter().enumerate() {
        let image = log.image_at(&initial, position).unwrap();
        assert!(read(&image, 0, 1 << 20) == *state, "position {position}");
    }
    assert_eq!(device.take_log(), log);
    assert_eq!(device.log().entries().len(), 0);
}

#[test]
fn a_crash_keeps_what_was_flushed_and_any_part_of_the_rest() {
    let initial = MemDevice::new(1 << 20);
    let device = RecordDevice::new(initial.clone());
    device.write_at(0, &[1; 4096]).unwrap();
    device.flush().unwrap();
    device.write_at(0, &[2; 4096]).unwrap();
    device.write_at(8192, &[3; 4096]).unwrap();
    device.write_fua(16384, &[4; 512]).unwrap();
    let log = device.log();
    let (mut kept, mut lost, mut torn) = (false, false, false);
    for seed in 0..50 {
        let image = log.crash_image(&initial, 5, seed).unwrap();
        assert_eq!(read(&image, 16384, 512), [4; 512], "FUA is durable");
        for sector in read(&image, 0, 4096).chunks(512) {
            assert!(sector.iter().all(|b| *b == 1) || sector.iter().all(|b| *b == 2));
        }
        let second = read(&image, 8192, 4096);
        let sectors: Vec<bool> = second.chunks(512).map(|s| s[0] == 3).collect();
        torn |= sectors.iter().any(|s| *s != sectors[0]);
        let again = log.crash_image(&initial, 5, seed).unwrap();
        assert!(
            read(&again, 0, 1 << 20) == read(&image, 0, 1 << 20),
            "seed {seed} replays"
        );
        let whole = read(&log.crash_image_untorn(&initial, 5, seed).unwrap(), 8192, 4096);
        assert!(whole.iter().all(|b| *b == whole[0]));
        kept |= whole[0] == 3;
        lost |= whole[0] == 0;
    }
    assert!(kept && lost && torn, "50 seeds meet every kind");
    let durable = log.crash_image(&initial, 2, 1).unwrap();
    assert_eq!(read(&durable, 0, 4096), vec![1; 4096]);
}

#[test]
fn after_the_power_cut_nothing_works() {
    let device = RecordDevice::new(MemDevice::new(1 << 20));
    device.write_at(0, &[1; 512]).unwrap();
    device.cut_power_after(2);
    device.write_at(512, &[2; 512]).unwrap();
    device.flush().unwrap();
    assert!(!device.is_cut());
    device.write_at(1024, &[3; 512]).unwrap();
    assert!(device.is_cut());
    let mut buf = [0; 512];
    assert!(device.write_at(1536, &[4; 512]).is_err());
    assert!(device.flush().is_err());
    assert!(device.read_at(0, &mut buf).is_err());
    assert!(device.discard(0, 512).is_err());
    assert_eq!(device.log().writes(), 3);
}

fn errno(result: Result<()>) -> Option<i32> {
    match result {
        Err(Error::Io { source, .. }) => source.raw_os_error(),
        _ => None,
    }
}

#[test]
fn faults_follow_their_rules() {
    let device = FaultDevice::new(MemDevice::new(1 << 20));
    let mut buf = [0; 512];
    device.add(
        FaultRule::always(FaultOp::Read, Fault::Errno(5))
            .at(4096..8192)
            .after(1)
            .times(2),
    );
    assert!(device.read_at(0, &mut buf).is_ok());
    let outcomes: Vec<Option<i32>> = (0..4).map(|_| errno(device.read_at(4096, &mut buf))).collect();
    assert_eq!(outcomes, vec![None, Some(5), Some(5), None]);
    assert!(device.read_at(8192, &mut buf).is_ok());
    device.add(FaultRule::always(FaultOp::Flush, Fault::Errno(28)).times(1));
    assert_eq!(errno(device.flush()), Some(28));
    assert_eq!(errno(device.flush()), None);
    device.add(FaultRule::always(FaultOp::Discard, Fault::Errno(95)));
    assert_eq!(errno(device.discard(0, 512).map(drop)), Some(95));
    let counts = FaultCounts {
        reads: 6,
        writes: 0,
        flushes: 2,
        discards: 1,
        faults: 4,
    };
    assert_eq!(device.counts(), counts);
}

#[test]
fn torn_and_lost_writes_and_flipped_bits() {
    let device = FaultDevice::new(MemDevice::new(1 << 20));
    device.add(FaultRule::always(FaultOp::Write, Fault::Torn { sectors: 3, errno: 5 }).at(0..4096));
    assert_eq!(errno(device.write_at(0, &[7; 4096])), Some(5));
    assert_eq!(
        read(device.base(), 0, 4096),
        [vec![7; 1536], vec![0; 2560]].concat()
    );
    device.add(FaultRule::always(FaultOp::Write, Fault::Lost).at(8192..8193));
    device.write_fua(8192, &[9; 512]).unwrap();
    assert_eq!(read(&device, 8192, 512), vec![0; 512]);
    device.add(
        FaultRule::always(
            FaultOp::Read,
            Fault::Flip {
                offset: 16385,
                mask: 0x80,
            },
        )
        .at(16384..16386),
    );
    assert_eq!(read(&device, 16384, 4), [0, 0x80, 0, 0]);
    assert_eq!(read(&device, 20000, 4), [0; 4]);
    assert!(
        device
            .write_batch(&[WriteRequest {
                offset: 0,
                buf: &[1; 512]
            }])
            .is_err()
    );
}
