//! File data on its way in: stuffed, in place, into fresh blocks, through the log.
//!
//! Data that is not journaled goes to the write-behind cache; long runs of whole blocks go past it: those of `O_DIRECT`
//! straight from the caller's memory, others on their own while the writer goes on.
//!
//! Invariants: data that is not journaled reaches the device before the transaction is durable that makes it reachable
//! (it is ordered by the log, or written before the commit), and fresh blocks are written whole; nothing is on its way to
//! a fresh block any more when the transaction that allocated it is given up; an overwrite of allocated blocks needs no transaction but for size and times; bytes between the old
//! end of the file and what is written behind it become zero.

use super::engine::{Locked, Work, dinode_of};
use super::read::map;
use crate::cache::RUN_BYTES;
use crate::error::{FsError, FsResult};
use crate::rgrp::Want;
use crate::txn::{Reservation, Transaction};
use gfs2_format::device::{AlignedBuf, WriteRequest};
use gfs2_format::ondisk::{DINODE_SIZE, Dinode, DinodeFlags};
use gfs2_format::time::Timestamp;
use gfs2_format::tree::{self, Mapping};
use gfs2_format::{Block, BlockAddr, BlockEdit, Extent, FileBlock};

/// Blocks allocated in one transaction, at most.
const ALLOC_MAX: u64 = 2048;
/// Journaled blocks written in one transaction, at most.
const LOGGED_MAX: u64 = 128;
/// Bytes that follow each other in file and on the device, from which on they go past the cache ...
const STRAIGHT_MIN: usize = 128 << 10;
/// ... if the write ends behind this byte of the file: what is short may be gone before anybody wants it written.
const STREAM_FROM: u64 = 1 << 20;

/// What a write does beside moving bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteOptions {
    /// Time of the change; `None`: the kernel keeps the file's times, and tells them.
    pub(crate) now: Option<Timestamp>,
    /// Clear the set-id bits.
    pub(crate) kill_suidgid: bool,
    /// Whole blocks are to be on the device when the write returns (`O_DIRECT`).
    pub(crate) direct: bool,
    /// Fewer bytes than all are an error: nobody would write the others again.
    pub(crate) whole: bool,
}

/// Blocks for the write-behind cache.
type Staged = Vec<(BlockAddr, Block)>;

/// Blocks of a file that are to take bytes.
#[derive(Clone, Copy, Debug)]
struct Run {
    lblock: u64,
    extent: Extent,
    fresh: bool,
}

/// Where the inode's next blocks should be.
pub(crate) fn goal(locked: &Locked<'_>) -> BlockAddr {
    match locked.dinode().goal_meta.get() {
        0 => locked.addr(),
        goal => BlockAddr::new(goal),
    }
}

/// A mode without the set-id bits that such a write clears.
pub(crate) fn killed(mode: u32) -> u32 {
    // Set-group-id without group execution means mandatory locking and stays.
    let group = if mode & libc::S_IXGRP != 0 {
        libc::S_ISGID
    } else {
        0
    };
    mode & !(libc::S_ISUID | group)
}

/// Writes all of `data` at `offset`, in as many transactions as it takes; gives the bytes written, fewer than all only
/// when an error came after some and that is of use.
pub(crate) fn write(
    locked: &mut Locked<'_>,
    offset: u64,
    data: &[u8],
    options: WriteOptions,
) -> FsResult<usize> {
    let size = locked.dinode().size.get();
    if offset > size && locked.dinode().height.get() > 0 {
        zero_tail(locked, size)?;
    }
    let mut done = 0;
    while done < data.len() {
        match step(locked, offset + done as u64, &data[done..], options) {
            Ok(0) => {
                return Err(FsError::Inconsistent(format!(
                    "inode {}: a write of no bytes",
                    locked.addr()
                )));
            }
            Ok(n) => done += n,
            Err(_) if done > 0 && !options.whole => return Ok(done),
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn step(locked: &mut Locked<'_>, at: u64, data: &[u8], options: WriteOptions) -> FsResult<usize> {
    let geometry = locked.engine.geometry();
    let bsize = u64::from(geometry.bsize());
    let end = at + data.len() as u64;
    if locked.dinode().height.get() == 0 && end <= geometry.max_stuffed() {
        return stuffed(locked, at, data, options);
    }
    let logged = locked.dinode().flags().contains(DinodeFlags::JDATA);
    let (first, count) = (at / bsize, (end - 1) / bsize - at / bsize + 1);
    match map(locked, first, count)? {
        Mapping::Data(extent) if logged => {
            let blocks = u64::from(extent.len).min(LOGGED_MAX);
            let n = covered(at, data.len(), first + blocks, bsize);
            write_logged(locked, at, &data[..n], blocks, false, options)
        }
        Mapping::Data(extent) => overwrite(locked, at, data, first, extent, count, options),
        Mapping::Hole { len } => {
            let limit = if logged { LOGGED_MAX } else { ALLOC_MAX };
            fill(locked, at, data, len.min(count).min(limit), logged, options)
        }
        Mapping::Stuffed => {
            let limit = if logged { LOGGED_MAX } else { ALLOC_MAX };
            fill(locked, at, data, count.min(limit), logged, options)
        }
    }
}

/// Bytes of a write at `at` of `len` bytes that lie before logical block `end_block`.
fn covered(at: u64, len: usize, end_block: u64, bsize: u64) -> usize {
    usize::try_from(end_block.saturating_mul(bsize).saturating_sub(at))
        .unwrap_or(usize::MAX)
        .min(len)
}

/// Size, times and mode after bytes up to `end` were written.
fn stamp(dinode: &mut Dinode, end: u64, options: WriteOptions) {
    dinode.size = dinode.size.get().max(end).into();
    if let Some(now) = options.now {
        dinode.set_mtime(now);
        dinode.set_ctime(now);
    }
    if options.kill_suidgid {
        dinode.mode = killed(dinode.mode.get()).into();
    }
}

fn commit(locked: &mut Locked<'_>, work: Work, times_only: bool) -> FsResult<()> {
    locked.commit(work, times_only)
}

fn stuffed(locked: &mut Locked<'_>, at: u64, data: &[u8], options: WriteOptions) -> FsResult<usize> {
    let addr = locked.addr();
    let old = locked.dinode().size.get();
    let mut work = locked.engine.begin(Reservation::blocks(1), None)?;
    let mut edit = work.edit(locked.guard());
    let block = edit.edit(addr)?;
    let start = DINODE_SIZE + at as usize;
    if at > old {
        block[DINODE_SIZE + old as usize..start].fill(0);
    }
    block[start..start + data.len()].copy_from_slice(data);
    stamp(dinode_of(&mut edit, addr)?, at + data.len() as u64, options);
    commit(locked, work, false)?;
    Ok(data.len())
}

/// Writes into allocated blocks, as far as they go.
fn overwrite(
    locked: &mut Locked<'_>,
    at: u64,
    data: &[u8],
    first: u64,
    extent: Extent,
    count: u64,
    options: WriteOptions,
) -> FsResult<usize> {
    let bsize = u64::from(locked.engine.geometry().bsize());
    let mut runs = vec![Run {
        lblock: first,
        extent,
        fresh: false,
    }];
    let mut have = u64::from(extent.len);
    while have < count {
        let Mapping::Data(extent) = map(locked, first + have, count - have)? else {
            break;
        };
        let run = Run {
            lblock: first + have,
            extent,
            fresh: false,
        };
        add_run(&mut runs, run);
        have += u64::from(extent.len);
    }
    let n = covered(at, data.len(), first + have, bsize);
    let staged = put(locked, None, &runs, at, &data[..n], options.direct)?;
    let (dinode, end) = (locked.dinode(), at + n as u64);
    let grows = end > dinode.size.get();
    let mode = dinode.mode.get();
    let kills = options.kill_suidgid && killed(mode) != mode;
    let is_stamped = |now| dinode.mtime() == now && dinode.ctime() == now;
    if grows || kills || !options.now.is_none_or(is_stamped) {
        let mut work = locked.engine.begin(Reservation::blocks(1), None)?;
        stage(locked, &mut work, staged)?;
        if grows {
            work.txn.order_data(locked.guard());
        }
        work.change(locked.guard(), locked.addr(), |dinode| {
            stamp(dinode, end, options)
        })?;
        commit(locked, work, !grows && !kills)?;
    } else {
        locked
            .engine
            .cache
            .data()
            .put(locked.guard().glock().name(), staged);
        locked.guard().glock().mark_dirty();
    }
    Ok(n)
}

fn stage(locked: &Locked<'_>, work: &mut Work, staged: Staged) -> FsResult<()> {
    for (addr, block) in staged {
        work.txn.write_data(locked.guard(), addr, block)?;
    }
    Ok(())
}

/// Writes into a hole of `blocks` blocks, or into a stuffed inode that is one no more.
fn fill(
    locked: &mut Locked<'_>,
    at: u64,
    data: &[u8],
    blocks: u64,
    logged: bool,
    options: WriteOptions,
) -> FsResult<usize> {
    let engine = locked.engine;
    let geometry = engine.geometry();
    let bsize = u64::from(geometry.bsize());
    let first = at / bsize;
    let height = locked.dinode().height.get();
    let cost = |n| tree::worst_case_blocks(geometry, height, FileBlock::new(first), n);
    let want = Want {
        min: cost(1).blocks(),
        ..Want::near(goal(locked), cost(blocks).blocks())
    };
    let mut hold = engine.rgrps.reserve(&want)?;
    // A file that has blocks and gets more behind its end will probably get more still.
    if locked.dinode().blocks.get() > 1 && at + data.len() as u64 > locked.dinode().size.get() {
        hold.grow(locked.addr());
        if let Some(before) = locked.inode.grow_in(Some(hold.group().layout().addr())) {
            engine.rgrps.close_window(before, locked.addr());
        }
    }
    let room = u64::from(hold.available());
    let mut blocks = blocks;
    while blocks > 1 && cost(blocks).blocks() > room {
        let over = cost(blocks).blocks() - room;
        blocks = blocks.saturating_sub(over).max(1);
    }
    let n = covered(at, data.len(), first + blocks, bsize);
    let cost = cost(blocks);
    let journaled = if logged { cost.data } else { 0 };
    let reservation = Reservation::blocks(cost.touched + journaled + hold.alloc_cost(cost.blocks()));
    let mut work = engine.begin(reservation, Some(hold))?;
    let filled = fill_in(
        locked,
        &mut work,
        (first, blocks),
        at,
        &data[..n],
        logged,
        options,
    );
    if let Err(error) = filled {
        // The blocks are about to be anybody's.
        engine.cache.data().land_owners(&[locked.guard().glock().name()]);
        return Err(error);
    }
    commit(locked, work, false)?;
    Ok(n)
}

/// Allocates blocks (the first, and how many) and puts bytes into them.
fn fill_in(
    locked: &Locked<'_>,
    work: &mut Work,
    (first, blocks): (u64, u64),
    at: u64,
    data: &[u8],
    logged: bool,
    options: WriteOptions,
) -> FsResult<()> {
    let runs = allocate(locked, work, first, blocks)?;
    if logged {
        put_logged(locked, work, &runs, at, data)?;
    } else {
        let staged = put(locked, Some(&work.txn), &runs, at, data, options.direct)?;
        stage(locked, work, staged)?;
        work.txn.order_data(locked.guard());
    }
    work.change(locked.guard(), locked.addr(), |dinode| {
        stamp(dinode, at + data.len() as u64, options)
    })
}

/// Adds a run; neighbours in file and on the device become one, whatever pieces they were found in.
fn add_run(runs: &mut Vec<Run>, run: Run) {
    if let Some(last) = runs.last_mut() {
        let len = u64::from(last.extent.len);
        let follows =
            last.lblock + len == run.lblock && last.extent.start.checked_add(len) == Some(run.extent.start);
        if follows
            && last.fresh == run.fresh
            && let Some(sum) = last.extent.len.checked_add(run.extent.len)
        {
            last.extent.len = sum;
            return;
        }
    }
    runs.push(run);
}

fn allocate(locked: &Locked<'_>, work: &mut Work, first: u64, blocks: u64) -> FsResult<Vec<Run>> {
    let mut runs = Vec::new();
    let mut have = 0;
    while have < blocks {
        let want = u32::try_from(blocks - have).unwrap_or(u32::MAX);
        let lblock = first + have;
        let mut edit = work.edit(locked.guard());
        let got = tree::map_or_alloc(&mut edit, locked.addr(), FileBlock::new(lblock), want)?;
        let run = Run {
            lblock,
            extent: got.extent,
            fresh: got.new,
        };
        add_run(&mut runs, run);
        have += u64::from(got.extent.len.max(1));
    }
    Ok(runs)
}

/// Puts bytes into blocks: long runs of whole blocks on their way to the device, the others (completed first, where they
/// are written in part) into the answer.
fn put(
    locked: &Locked<'_>,
    txn: Option<&Transaction>,
    runs: &[Run],
    at: u64,
    data: &[u8],
    direct: bool,
) -> FsResult<Staged> {
    let bsize = u64::from(locked.engine.geometry().bsize());
    let (cache, owner) = (locked.engine.cache.data(), locked.guard().glock().name());
    let end = at + data.len() as u64;
    let streams = !direct && end > STREAM_FROM;
    let mut staged = Vec::new();
    let mut straight: Vec<(BlockAddr, usize, usize)> = Vec::new();
    for run in runs {
        let run_start = run.lblock * bsize;
        let upto = (run_start + u64::from(run.extent.len) * bsize).min(end);
        let mut from = run_start.max(at);
        while from < upto {
            let addr = BlockAddr::new(run.extent.start.get() + (from - run_start) / bsize);
            let source = (from - at) as usize;
            let next = (from / bsize + 1) * bsize;
            if from % bsize != 0 || next > upto {
                let stop = next.min(upto);
                cache.land(owner, Extent { start: addr, len: 1 });
                let mut block = edge(locked, txn, run, addr, from - from % bsize)?;
                let (skip, len) = ((from % bsize) as usize, (stop - from) as usize);
                block.make_mut()[skip..skip + len].copy_from_slice(&data[source..source + len]);
                staged.push((addr, block));
                from = stop;
                continue;
            }
            let len = ((upto - from) / bsize * bsize) as usize;
            if direct || streams && len >= STRAIGHT_MIN {
                straight.push((addr, source, len));
            } else {
                let blocks = data[source..source + len].chunks_exact(bsize as usize);
                cache.land(owner, extent_of(locked, addr, len));
                let addresses = (addr.get()..).map(BlockAddr::new);
                staged.extend(addresses.zip(blocks.map(|bytes| cache.block_of(bytes))));
            }
            from += len as u64;
        }
    }
    if direct && !straight.is_empty() {
        write_straight(locked, &straight, data)?;
    } else {
        for (addr, source, len) in straight {
            send(locked, addr, &data[source..source + len])?;
        }
    }
    Ok(staged)
}

/// The blocks that `len` bytes from `start` on fill.
fn extent_of(locked: &Locked<'_>, start: BlockAddr, len: usize) -> Extent {
    let blocks = len / locked.engine.geometry().block_len();
    let len = u32::try_from(blocks).unwrap_or(u32::MAX);
    Extent { start, len }
}

/// Sends whole blocks on their way to the device.
fn send(locked: &Locked<'_>, start: BlockAddr, bytes: &[u8]) -> FsResult<()> {
    let (cache, owner) = (locked.engine.cache.data(), locked.guard().glock().name());
    cache.supersede(owner, extent_of(locked, start, bytes.len()));
    let mut addr = start;
    for run in bytes.chunks(RUN_BYTES) {
        if !cache.launch(owner, addr, run) {
            write_straight(locked, &[(addr, 0, run.len())], run)?;
        }
        addr = BlockAddr::new(addr.get() + u64::from(extent_of(locked, addr, run.len()).len));
    }
    Ok(())
}

/// Writes parts of `data` (first block, where in `data`, how long) to the device at once.
fn write_straight(locked: &Locked<'_>, parts: &[(BlockAddr, usize, usize)], data: &[u8]) -> FsResult<()> {
    let engine = locked.engine;
    let geometry = engine.geometry();
    for (start, _, len) in parts {
        let owner = locked.guard().glock().name();
        engine
            .cache
            .data()
            .supersede(owner, extent_of(locked, *start, *len));
    }
    let requests: Vec<WriteRequest<'_>> = parts
        .iter()
        .map(|(addr, source, len)| WriteRequest {
            offset: geometry.byte_offset(*addr),
            buf: &data[*source..*source + *len],
        })
        .collect();
    let _gate = engine.health().write_gate()?;
    match requests.as_slice() {
        [one] => engine.device.write_at(one.offset, one.buf)?,
        many => engine.device.write_batch(many)?,
    }
    Ok(())
}

/// A block that is to be written in part: what stands there, up to the end of the file; zeroes behind.
fn edge(
    locked: &Locked<'_>,
    txn: Option<&Transaction>,
    run: &Run,
    addr: BlockAddr,
    file_at: u64,
) -> FsResult<Block> {
    let len = locked.engine.geometry().block_len();
    let valid = locked.dinode().size.get().saturating_sub(file_at);
    if run.fresh || valid == 0 {
        return Ok(Block::zeroed(len));
    }
    let mut block = match txn.and_then(|txn| txn.written_data(addr)) {
        Some(block) => block.clone(),
        None => newest(locked, addr)?,
    };
    let valid = usize::try_from(valid).unwrap_or(usize::MAX).min(len);
    if valid < len {
        block.make_mut()[valid..].fill(0);
    }
    Ok(block)
}

/// A block of file data that is not journaled, from the write-behind cache or the device.
fn newest(locked: &Locked<'_>, addr: BlockAddr) -> FsResult<Block> {
    let engine = locked.engine;
    if let Some(block) = engine.cache.data().get(locked.guard().glock().name(), addr) {
        return Ok(block);
    }
    let mut block = AlignedBuf::zeroed(engine.geometry().block_len());
    engine
        .device
        .read_at(engine.geometry().byte_offset(addr), &mut block)?;
    Ok(Block::from(&block[..]))
}

/// Writes journaled data into `blocks` blocks that are allocated.
fn write_logged(
    locked: &mut Locked<'_>,
    at: u64,
    data: &[u8],
    blocks: u64,
    fresh: bool,
    options: WriteOptions,
) -> FsResult<usize> {
    let first = at / u64::from(locked.engine.geometry().bsize());
    let mut work = locked.engine.begin(Reservation::blocks(blocks + 1), None)?;
    let mut runs = Vec::new();
    let mut have = 0;
    while have < blocks {
        let Mapping::Data(extent) = map(locked, first + have, blocks - have)? else {
            break;
        };
        runs.push(Run {
            lblock: first + have,
            extent,
            fresh,
        });
        have += u64::from(extent.len);
    }
    put_logged(locked, &mut work, &runs, at, data)?;
    work.change(locked.guard(), locked.addr(), |dinode| {
        stamp(dinode, at + data.len() as u64, options);
    })?;
    commit(locked, work, false)?;
    Ok(data.len())
}

/// Puts bytes into blocks by way of the log.
fn put_logged(locked: &Locked<'_>, work: &mut Work, runs: &[Run], at: u64, data: &[u8]) -> FsResult<()> {
    let bsize = u64::from(locked.engine.geometry().bsize());
    let size = locked.dinode().size.get();
    let end = at + data.len() as u64;
    for run in runs {
        for (n, block) in run.extent.blocks().enumerate() {
            let start = (run.lblock + n as u64) * bsize;
            if start >= end {
                break;
            }
            let bytes = if run.fresh {
                work.txn.create_data(locked.guard(), block)?
            } else {
                let bytes = work.txn.edit_data(locked.guard(), block)?;
                let valid = usize::try_from(size.saturating_sub(start)).unwrap_or(usize::MAX);
                if valid < bytes.len() {
                    bytes[valid..].fill(0);
                }
                bytes
            };
            let (from, upto) = (start.max(at), (start + bsize).min(end));
            let (skip, source) = ((from - start) as usize, (from - at) as usize);
            let len = (upto - from) as usize;
            bytes[skip..skip + len].copy_from_slice(&data[source..source + len]);
        }
    }
    Ok(())
}

/// Zeroes what stands behind byte `at` in its block. The caller has this ordered before a size that relies on it
/// ([`Transaction::order_data`]).
pub(crate) fn zero_tail(locked: &mut Locked<'_>, at: u64) -> FsResult<()> {
    let engine = locked.engine;
    let bsize = u64::from(engine.geometry().bsize());
    if at.is_multiple_of(bsize) || locked.dinode().height.get() == 0 {
        return Ok(());
    }
    let Mapping::Data(extent) = map(locked, at / bsize, 1)? else {
        return Ok(());
    };
    let skip = (at % bsize) as usize;
    if locked.dinode().flags().contains(DinodeFlags::JDATA) {
        let mut work = engine.begin(Reservation::blocks(1), None)?;
        work.txn.edit_data(locked.guard(), extent.start)?[skip..].fill(0);
        return commit(locked, work, false);
    }
    let mut block = newest(locked, extent.start)?;
    if block[skip..].iter().any(|byte| *byte != 0) {
        block.make_mut()[skip..].fill(0);
        let owner = locked.guard().glock().name();
        engine.cache.data().put(owner, [(extent.start, block)]);
        locked.guard().glock().mark_dirty();
    }
    Ok(())
}
