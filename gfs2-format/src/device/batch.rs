//! Batched I/O on one file: an io_uring of the calling thread, or a few threads where the kernel refuses one.
//!
//! The ring comes from `compio-driver`, whose operations own their buffers: safe code without borrowing memory to
//! the kernel, at the price of one copy (measured with 4 KiB random direct reads: as many per second as eight `pread`
//! threads, at less than half of their processor time). Whatever the ring does not finish in one go (short
//! transfers, errors, a broken ring) is done again by plain calls, so errors come from one place only.
//!
//! Invariants: at most [`DEPTH`] operations of at most [`PIECE`] bytes are under way per thread, and the thread keeps
//! their buffers (4 MiB at most) until it ends; a call returns only when none of its operations is under way.

use super::{ReadRequest, WriteRequest, first_error};
use crate::error::{Error, Result};
use compio_buf::{BufResult, IntoInner, IoBuf, Slice};
use compio_driver::op::{OpCodeFlag, ReadAt, WriteAt};
use compio_driver::{DriverType, Key, OpCode, Proactor, PushEntry};
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Operations under way at once, per calling thread.
const DEPTH: usize = 32;
/// Entries of the submission queue. More than can be under way (and the driver's own notifier): were the queue ever
/// full, the driver would reap completions while it submits, and then wait for them for ever.
const QUEUE: u32 = 64;
const _: () = assert!(QUEUE as usize > DEPTH + 1);
/// Larger requests are cut into pieces of this many bytes.
const PIECE: usize = 128 * 1024;
/// Address alignment of the ring's buffers.
const ALIGNMENT: usize = super::aligned::ALIGNMENT;
/// Threads of the fallback, the caller included.
const THREADS: usize = 8;

/// How batches are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// io_uring; threads where the kernel does not offer it (found out at run time).
    #[default]
    Auto,
    /// Up to eight threads of plain calls.
    Threads,
    /// Plain calls one after the other.
    Sequential,
}

/// A part of a request: request number, first byte within it, length.
#[derive(Clone, Copy, Debug)]
struct Piece {
    request: usize,
    start: usize,
    len: usize,
}

fn pieces(lengths: impl Iterator<Item = usize>) -> Vec<Piece> {
    lengths
        .enumerate()
        .flat_map(|(request, total)| {
            (0..total).step_by(PIECE).map(move |start| Piece {
                request,
                start,
                len: PIECE.min(total.saturating_sub(start)),
            })
        })
        .collect()
}

/// Reads every request; `plain` does one (part of a) request by itself. The requests must fit the file's direct I/O
/// alignment in offset and length; their memory need not.
pub(super) fn read(
    engine: Engine,
    file: &Arc<File>,
    requests: &mut [ReadRequest<'_>],
    plain: &(dyn Fn(u64, &mut [u8]) -> Result<()> + Sync),
) -> Result<()> {
    if engine == Engine::Auto && requests.len() > 1 {
        let all = pieces(requests.iter().map(|r| r.buf.len()));
        // Reading again is always possible, so a broken ring is no error here.
        if let Some(Ok(left)) = with_ring(|ring| ring.read(file, requests, &all)) {
            return first_error(left.into_iter().map(|piece| {
                let Some(request) = requests.get_mut(piece.request) else {
                    return Ok(());
                };
                let offset = request.offset.saturating_add(piece.start as u64);
                let end = piece.start.saturating_add(piece.len);
                request
                    .buf
                    .get_mut(piece.start..end)
                    .map_or(Ok(()), |part| plain(offset, part))
            }));
        }
    }
    let one = |request: &mut ReadRequest<'_>| plain(request.offset, request.buf);
    if engine == Engine::Sequential {
        return first_error(requests.iter_mut().map(one));
    }
    on_threads(requests, one)
}

/// Writes every request; the counterpart of [`read`].
pub(super) fn write(
    engine: Engine,
    file: &Arc<File>,
    requests: &[WriteRequest<'_>],
    plain: &(dyn Fn(u64, &[u8]) -> Result<()> + Sync),
) -> Result<()> {
    if engine == Engine::Auto && requests.len() > 1 {
        let all = pieces(requests.iter().map(|r| r.buf.len()));
        // A write of a broken ring may still reach the disk at any time: that cannot be mended by writing again.
        let outcome = with_ring(|ring| ring.write(file, requests, &all)).transpose();
        if let Some(left) = outcome.map_err(|e| Error::io("write", 0, 0, e))? {
            return first_error(left.into_iter().map(|piece| {
                let (offset, part) = part_of(requests, piece);
                plain(offset, part)
            }));
        }
    }
    let one = |request: &mut WriteRequest<'_>| plain(request.offset, request.buf);
    let mut requests = requests.to_vec();
    if engine == Engine::Sequential {
        return first_error(requests.iter_mut().map(one));
    }
    on_threads(&mut requests, one)
}

fn part_of<'a>(requests: &[WriteRequest<'a>], piece: Piece) -> (u64, &'a [u8]) {
    let end = piece.start.saturating_add(piece.len);
    requests.get(piece.request).map_or((0, &[]), |request| {
        let offset = request.offset.saturating_add(piece.start as u64);
        (offset, request.buf.get(piece.start..end).unwrap_or_default())
    })
}

/// Runs `one` over all items on up to [`THREADS`] threads, this one among them.
fn on_threads<T: Send>(items: &mut [T], one: impl Fn(&mut T) -> Result<()> + Sync) -> Result<()> {
    let helpers = (items.len() / 2).min(THREADS - 1);
    let queue = Mutex::new(items.iter_mut());
    let work = || {
        let mut outcome = Ok(());
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(item) = next else {
                return outcome;
            };
            outcome = outcome.and(one(item));
        }
    };
    std::thread::scope(|scope| {
        // A thread that cannot be had is no error: this one works through the queue anyway.
        let handles: Vec<_> = (0..helpers)
            .map_while(|_| {
                std::thread::Builder::new()
                    .name("gfs2-io".into())
                    .spawn_scoped(scope, work)
                    .ok()
            })
            .collect();
        handles.into_iter().fold(work(), |outcome, handle| {
            // A panic of `one` is the caller's, as it would be without threads.
            let other = handle
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            outcome.and(other)
        })
    })
}

type Slot = Slice<Vec<u8>>;

/// Memory for a slot of `len` bytes: the smallest of `free` that holds it. Where none does, new memory takes the place
/// of the largest, so that a mix of sizes keeps about what it has under way, and not its number times the largest.
fn memory_for(free: &mut Vec<Vec<u8>>, len: usize) -> Vec<u8> {
    let need = len.saturating_add(ALIGNMENT);
    let lengths = || free.iter().map(Vec::len).enumerate();
    let fits = lengths()
        .filter(|(_, len)| *len >= need)
        .min_by_key(|(_, len)| *len);
    if let Some((index, _)) = fits {
        return free.swap_remove(index);
    }
    if let Some((index, _)) = lengths().max_by_key(|(_, len)| *len) {
        free.swap_remove(index);
    }
    vec![0; need]
}

/// A page-aligned slot of `len` bytes in memory that is large enough for it.
fn slot(memory: Vec<u8>, len: usize) -> Slot {
    let begin = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    memory.slice(begin..begin.saturating_add(len))
}

struct Ring {
    proactor: Proactor,
    /// Memory of operations that have ended.
    memory: Vec<Vec<u8>>,
    /// The process the ring was made in: after a fork its memory is not mapped in the child.
    process: u32,
}

enum State {
    Unset,
    Ready(Box<Ring>),
    Refused,
}

thread_local! {
    static RING: RefCell<State> = const { RefCell::new(State::Unset) };
}

/// Runs `f` on this thread's ring; `None` when there is none to be had.
fn with_ring<T>(f: impl FnOnce(&mut Ring) -> io::Result<T>) -> Option<io::Result<T>> {
    RING.try_with(|cell| {
        let mut state = cell.try_borrow_mut().ok()?;
        let process = std::process::id();
        if matches!(&*state, State::Ready(ring) if ring.process != process) {
            // Not even dropping it is allowed: that would touch the unmapped memory.
            std::mem::forget(std::mem::replace(&mut *state, State::Unset));
        }
        if matches!(*state, State::Unset) {
            *state = Ring::new(process).map_or(State::Refused, |ring| State::Ready(Box::new(ring)));
        }
        let State::Ready(ring) = &mut *state else {
            return None;
        };
        let result = f(ring);
        if result.is_err() {
            *state = State::Refused;
        }
        Some(result)
    })
    .ok()
    .flatten()
}

impl Ring {
    fn new(process: u32) -> io::Result<Self> {
        let proactor = Proactor::builder()
            .capacity(QUEUE)
            .driver_type(DriverType::IoUring)
            // Without it a ring that cannot do these would be found out by a panic.
            .detect_opcode_support(OpCodeFlag::Read | OpCodeFlag::Write)
            .build()?;
        Ok(Self {
            proactor,
            memory: Vec::new(),
            process,
        })
    }

    /// Reads all pieces; answers which are left to be done by other means. An error means that the ring broke.
    fn read(
        &mut self,
        file: &Arc<File>,
        requests: &mut [ReadRequest<'_>],
        all: &[Piece],
    ) -> io::Result<Vec<Piece>> {
        let offsets: Vec<u64> = requests.iter().map(|r| r.offset).collect();
        let mut left = Vec::new();
        self.drive(
            all,
            |piece, memory| {
                let base = offsets.get(piece.request).copied().unwrap_or_default();
                let offset = base.saturating_add(piece.start as u64);
                ReadAt::new(Arc::clone(file), offset, slot(memory, piece.len))
            },
            |piece, result, bytes| {
                let end = piece.start.saturating_add(piece.len);
                let target = requests
                    .get_mut(piece.request)
                    .and_then(|r| r.buf.get_mut(piece.start..end));
                match (result, target, bytes.get(..piece.len)) {
                    (Ok(n), Some(target), Some(bytes)) if n == piece.len => target.copy_from_slice(bytes),
                    _ => left.push(piece),
                }
            },
        )?;
        Ok(left)
    }

    /// The counterpart of [`Ring::read`].
    fn write(
        &mut self,
        file: &Arc<File>,
        requests: &[WriteRequest<'_>],
        all: &[Piece],
    ) -> io::Result<Vec<Piece>> {
        let mut left = Vec::new();
        self.drive(
            all,
            |piece, memory| {
                let (offset, part) = part_of(requests, piece);
                let mut slot = slot(memory, part.len());
                slot.copy_from_slice(part);
                WriteAt::new(Arc::clone(file), offset, slot)
            },
            |piece, result, _| {
                if !result.is_ok_and(|n| n == piece.len) {
                    left.push(piece);
                }
            },
        )?;
        Ok(left)
    }

    /// Keeps up to [`DEPTH`] operations under way until all have ended. After an error the ring is of no more use.
    fn drive<T>(
        &mut self,
        all: &[Piece],
        mut start: impl FnMut(Piece, Vec<u8>) -> T,
        mut done: impl FnMut(Piece, io::Result<usize>, &[u8]),
    ) -> io::Result<()>
    where
        T: OpCode + IntoInner<Inner = Slot> + 'static,
    {
        let mut waiting = all.iter().copied();
        let mut running: Vec<(Piece, Key<T>)> = Vec::with_capacity(DEPTH);
        let mut still: Vec<(Piece, Key<T>)> = Vec::with_capacity(DEPTH);
        let mut memory = std::mem::take(&mut self.memory);
        loop {
            while running.len() < DEPTH
                && let Some(piece) = waiting.next()
            {
                let entry = self
                    .proactor
                    .push(start(piece, memory_for(&mut memory, piece.len)));
                match entry {
                    PushEntry::Pending(key) => running.push((piece, key)),
                    PushEntry::Ready(BufResult(result, op)) => {
                        let slot = op.into_inner();
                        done(piece, result, &slot);
                        memory.push(slot.into_inner());
                    }
                }
            }
            if running.is_empty() {
                self.memory = memory;
                return Ok(());
            }
            match self.proactor.poll(None) {
                Ok(()) => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::TimedOut) => {}
                Err(e) => return Err(e),
            }
            for (piece, key) in running.drain(..) {
                match self.proactor.pop(key) {
                    PushEntry::Pending(key) => still.push((piece, key)),
                    PushEntry::Ready(BufResult(result, op)) => {
                        let slot = op.into_inner();
                        done(piece, result, &slot);
                        memory.push(slot.into_inner());
                    }
                }
            }
            std::mem::swap(&mut running, &mut still);
        }
    }
}

/// Can this thread have a ring?
#[cfg(test)]
pub(super) fn ring_available() -> bool {
    with_ring(|_| Ok(())).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches of mixed sizes, each of 768 KiB in all, as a checker has them.
    #[test]
    fn a_mix_of_sizes_keeps_little_memory() {
        let mut free: Vec<Vec<u8>> = Vec::new();
        let mut size = 1usize;
        for _ in 0..1_000 {
            let (mut under_way, mut total) = (Vec::new(), 0);
            while total < 768 << 10 && under_way.len() < DEPTH {
                // 4 to 128 KiB, small ones more often.
                size = size * 29 % 1009;
                let len = (4096 << (size % 6)).min(PIECE);
                let memory = memory_for(&mut free, len);
                assert_eq!(slot(memory.clone(), len).len(), len);
                under_way.push(memory);
                total += len;
            }
            free.append(&mut under_way);
            assert!(free.len() <= DEPTH, "{} pieces of memory", free.len());
        }
        let kept: usize = free.iter().map(Vec::len).sum();
        assert!(kept < 2 << 20, "{kept} bytes kept");
        assert!(kept > 768 << 10, "the test makes no mix: {kept} bytes");
    }
}
