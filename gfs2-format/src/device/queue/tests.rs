//! Goal: what is queued is what is on the device when the queue has finished, whatever its sizes; errors are told once.

use super::super::{MemDevice, OpenOptions};
use super::*;
use rustix::fs::{MemfdFlags, SealFlags};

const SIZE: u64 = 64 << 20;

/// The device's own queue where it has one.
fn queue_of(device: &dyn BlockDevice) -> Box<dyn WriteQueue + '_> {
    device
        .write_queue()
        .unwrap_or_else(|| Box::new(PlainQueue::new(device)))
}

/// Bytes that tell their place.
fn pattern(offset: u64, len: usize) -> Vec<u8> {
    (offset..)
        .map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8)
        .take(len)
        .collect()
}

/// Writes many pieces of many sizes, some of them neighbours, into a device of zeroes, and reads them back.
fn arrives(device: &dyn BlockDevice) {
    let mut model = vec![0; SIZE as usize];
    let mut queue = queue_of(device);
    let mut batch = queue.batch().unwrap();
    let mut at = 4096_u64;
    for n in 0_usize.. {
        let len = match n % 5 {
            0 => 4096 * (1 + n % 9),
            1 => 20480,
            2 => 512 * (1 + n % 7),
            3 => 4096,
            _ => BATCH >> (n % 4),
        };
        if at + len as u64 > SIZE {
            break;
        }
        if !batch.has_room(at, len) {
            queue.submit(batch).unwrap();
            batch = queue.batch().unwrap();
            assert!(batch.is_empty());
        }
        let bytes = pattern(at, len);
        batch.push(at, len).unwrap().copy_from_slice(&bytes);
        model[at as usize..at as usize + len].copy_from_slice(&bytes);
        at += len as u64;
        // Odd pieces are not neighbours of what follows, and share no page with it.
        if n % 3 == 0 || !at.is_multiple_of(4096) {
            at = at.next_multiple_of(4096) + 8192;
        }
    }
    queue.submit(batch).unwrap();
    queue.finish().unwrap();
    drop(queue);
    let mut found = vec![1; SIZE as usize];
    device.read_at(0, &mut found).unwrap();
    assert!(found == model);
}

#[test]
fn what_is_queued_arrives() {
    let dir = tempfile::tempdir().unwrap();
    for direct in [false, true] {
        let path = dir.path().join(format!("{direct}"));
        let options = OpenOptions::new().direct(direct).create(SIZE);
        let device = options.open(&path).unwrap();
        println!("direct: {direct}, queue: {:?}", device.write_queue());
        arrives(&device);
        arrives(&OpenOptions::new().open(&path).unwrap());
    }
    arrives(&MemDevice::new(SIZE));
}

#[test]
fn neighbours_become_one_piece_and_others_are_aligned() {
    let mut batch = Batch::new();
    for (offset, len) in [(0, 512), (512, 512), (2048, 100), (1 << 20, 4096), (0, 4096)] {
        batch.push(offset, len).unwrap().fill(len as u8);
    }
    let pieces: Vec<(u64, usize)> = batch
        .pieces()
        .map(|(offset, bytes)| (offset, bytes.len()))
        .collect();
    assert_eq!(pieces, [(0, 1024), (2048, 100), (1 << 20, 4096), (0, 4096)]);
    assert!(
        batch
            .pieces()
            .all(|(_, bytes)| bytes.as_ptr().addr().is_multiple_of(ALIGNMENT))
    );
    batch.retain(|offset, _| Ok(offset != 0)).unwrap();
    let offsets: Vec<u64> = batch.pieces().map(|(offset, _)| offset).collect();
    assert_eq!(offsets, [2048, 1 << 20]);
}

#[test]
fn a_batch_has_an_end() {
    let mut batch = Batch::new();
    assert!(batch.push(0, BATCH + 1).is_none());
    assert!(batch.push(0, usize::MAX).is_none());
    assert!(batch.is_empty());
    assert_eq!(batch.push(0, BATCH).map(|bytes| bytes.len()), Some(BATCH));
    assert!(batch.push(BATCH as u64, 1).is_none());
    let mut batch = Batch::new();
    for n in 0..PIECES as u64 {
        assert!(batch.push(n * 8192, 4096).is_some());
    }
    assert!(!batch.has_room(1 << 30, 1));
    assert!(batch.has_room((PIECES as u64 - 1) * 8192 + 4096, 1));
}

#[test]
fn memory_is_known_as_far_as_it_was_left_alone() {
    let mut batch = Batch::new();
    assert_eq!((batch.kept(0), batch.kept(1)), (BATCH, 0));
    assert!(batch.push(0, 8192).unwrap().iter().all(|byte| *byte == 0));
    assert_eq!(batch.kept(0), 0);
    batch.keep(5, 8192);
    assert_eq!((batch.kept(0), batch.kept(5)), (0, 8192));
    assert_eq!((batch.position(8192), batch.position(1 << 20)), (8192, 8192));
    batch.push(1 << 20, 10).unwrap();
    assert_eq!(batch.position((1 << 20) + 10), 8192 + 10);
    assert_eq!(batch.position(0), 12288);
    batch.push(0, 10).unwrap();
    assert_eq!(batch.kept(5), 8192);
    batch.keep(0, BATCH);
    batch.push(1 << 21, 10).unwrap();
    assert_eq!(batch.kept(0), 4 * 4096);
}

#[test]
fn pieces_past_the_end_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for direct in [false, true] {
        let path = dir.path().join(format!("{direct}"));
        let device = OpenOptions::new()
            .direct(direct)
            .create(1 << 20)
            .open(path)
            .unwrap();
        let mut queue = queue_of(&device);
        let mut batch = queue.batch().unwrap();
        batch.push(0, 4096).unwrap().fill(7);
        batch.push((1 << 20) - 4096, 8192).unwrap().fill(7);
        let error = queue.submit(batch).unwrap_err();
        assert!(error.to_string().contains("past the device's end"), "{error}");
        queue.finish().unwrap();
    }
}

/// A ring to memory that refuses writes: `F_SEAL_WRITE` makes each of them fail.
#[test]
fn the_first_error_of_what_is_under_way_is_told_once() {
    let memory = rustix::fs::memfd_create("queue", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&memory, SIZE).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory));
    let device = OpenOptions::new().open(&path).unwrap();
    rustix::fs::fcntl_add_seals(&memory, SealFlags::WRITE).unwrap();
    let mut queue: Box<dyn WriteQueue> = match RingQueue::new(&device, device.file_for_tests()) {
        Ok(ring) => Box::new(ring),
        Err(_) => Box::new(PlainQueue::new(&device)),
    };
    let mut batch = queue.batch().unwrap();
    for n in 0..10 {
        batch.push(n << 20, 4096).unwrap().fill(1);
    }
    let told = queue.submit(batch).and_then(|()| queue.finish()).unwrap_err();
    assert!(told.to_string().contains("Operation not permitted"), "{told}");
    queue.finish().unwrap();
    assert!(queue.batch().is_ok());
}

/// What the ring cannot do, plain calls do: here its file is one that cannot be written.
#[test]
fn what_the_ring_refuses_is_written_by_plain_calls() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let device = OpenOptions::new().create(SIZE).open(&path).unwrap();
    let other = Arc::new(File::open(&path).unwrap());
    let mut queue: Box<dyn WriteQueue> = match RingQueue::new(&device, other) {
        Ok(ring) => Box::new(ring),
        Err(_) => Box::new(PlainQueue::new(&device)),
    };
    let mut batch = queue.batch().unwrap();
    batch
        .push(8192, 4096)
        .unwrap()
        .copy_from_slice(&pattern(8192, 4096));
    queue.submit(batch).unwrap();
    queue.finish().unwrap();
    let mut found = vec![0; 4096];
    device.read_at(8192, &mut found).unwrap();
    assert!(found == pattern(8192, 4096));
}
