//! Reads many blocks at once: sorted, neighbours joined, in parallel, and ahead of whoever looks at them.
//!
//! Helpers read the next parts of a list while this thread looks at one. A part is small enough to stay in a core's
//! own cache. Invariants: at most [`PARTS`] parts of [`PART`] bytes (or one block) are in memory at a time; blocks are
//! shown in the order of the list; a block the device cannot read is an error of that block only.

use gfs2_format::device::{AlignedBuf, BlockDevice, ReadRequest};
use gfs2_format::{BlockAddr, Error, Geometry};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

/// Bytes read in one go.
const PART: usize = 768 << 10;
/// Parts in memory: what the helpers read, and what is being looked at.
const PARTS: usize = 12;
/// Threads that read ahead. Joined reads are few to a part, so it takes several parts under way to keep a disk busy.
const HELPERS: usize = 4;
/// Lists of up to so many blocks are read without helpers.
const SHORT: usize = 32;
/// Neighbours are read together across a gap of up to so many bytes: as many as cost a disk about as much as one more
/// read does. This, the helpers and the parts belong together (`benches/README.md`).
const GAP: u64 = 12 << 10;
/// Bytes of a joined read.
const RUN: u64 = 256 << 10;

/// A joined read: the blocks from `start` on, which cover the addresses `first..end` of the list.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: u64,
    blocks: u64,
    first: usize,
    end: usize,
}

/// A part for a helper, and what it makes of it.
#[derive(Debug)]
struct Part {
    runs: Vec<Run>,
    arena: AlignedBuf,
    whole: bool,
}

/// The two ends of a helper.
#[derive(Debug)]
struct Helper {
    wanted: Sender<Part>,
    read: Receiver<Part>,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    device: &'a dyn BlockDevice,
    shift: u32,
    arena: AlignedBuf,
    helpers: Vec<Helper>,
    /// Memory of parts that nobody reads at the moment.
    idle: Vec<AlignedBuf>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(device: &'a dyn BlockDevice, geometry: &Geometry) -> Self {
        Self {
            device,
            shift: geometry.bsize_shift(),
            arena: AlignedBuf::zeroed(PART.max(geometry.block_len())),
            helpers: Vec::new(),
            idle: Vec::new(),
        }
    }

    /// With helpers, which end with the reader.
    pub(crate) fn with_helpers<'scope>(
        scope: &'scope Scope<'scope, '_>,
        device: &'a dyn BlockDevice,
        geometry: &Geometry,
    ) -> Self
    where
        'a: 'scope,
    {
        let mut reader = Self::new(device, geometry);
        let shift = reader.shift;
        for _ in 0..HELPERS {
            let (wanted, parts) = channel::<Part>();
            let (done, read) = channel();
            let work = move || {
                for mut part in parts {
                    part.whole = read_runs(device, shift, &part.runs, &mut part.arena);
                    if done.send(part).is_err() {
                        return;
                    }
                }
            };
            let thread = std::thread::Builder::new().name("gfs2-read".into());
            // A thread that cannot be had is no error: this one reads what no helper does.
            if thread.spawn_scoped(scope, work).is_err() {
                break;
            }
            reader.helpers.push(Helper { wanted, read });
        }
        reader.idle = (0..PARTS)
            .map(|_| AlignedBuf::zeroed(PART.max(geometry.block_len())))
            .collect();
        reader
    }

    /// Shows every block of `addrs` (ascending) by its index there.
    pub(crate) fn blocks(&mut self, addrs: &[BlockAddr], mut show: impl FnMut(usize, Result<&[u8], &Error>)) {
        self.blocks_while(addrs, |index, bytes| {
            show(index, bytes);
            true
        });
    }

    /// The same until `show` says no; answers how many were shown. What was read ahead by then will be read again.
    pub(crate) fn blocks_while(
        &mut self,
        addrs: &[BlockAddr],
        mut show: impl FnMut(usize, Result<&[u8], &Error>) -> bool,
    ) -> usize {
        if addrs.len() > SHORT && !self.helpers.is_empty() {
            return self.blocks_ahead(addrs, show);
        }
        let mut from = 0;
        while from < addrs.len() {
            let (runs, next) = self.plan(addrs, from);
            let whole = read_runs(self.device, self.shift, &runs, &mut self.arena);
            let shown = Shown {
                addrs,
                runs: &runs,
                whole,
            };
            if let Some(stopped) = shown.show(self.device, self.shift, &mut self.arena, &mut show) {
                return stopped;
            }
            from = next.max(from.saturating_add(1));
        }
        addrs.len()
    }

    /// The same with helpers: they take turns, so what they read comes back in order.
    fn blocks_ahead(
        &mut self,
        addrs: &[BlockAddr],
        mut show: impl FnMut(usize, Result<&[u8], &Error>) -> bool,
    ) -> usize {
        let mut from = 0;
        let mut under_way: VecDeque<(usize, Vec<Run>)> = VecDeque::new();
        let mut turn = 0usize;
        let mut stopped = None;
        loop {
            while from < addrs.len()
                && stopped.is_none()
                && let Some(arena) = self.idle.pop()
            {
                let (runs, next) = self.plan(addrs, from);
                from = next.max(from.saturating_add(1));
                turn = turn
                    .saturating_add(1)
                    .checked_rem(self.helpers.len())
                    .unwrap_or(0);
                under_way.push_back((turn, runs.clone()));
                let part = Part {
                    runs,
                    arena,
                    whole: false,
                };
                if let Some(helper) = self.helpers.get(turn)
                    && helper.wanted.send(part).is_err()
                {
                    break;
                }
            }
            let Some((turn, runs)) = under_way.pop_front() else {
                return stopped.unwrap_or(addrs.len());
            };
            let part = self.helpers.get(turn).and_then(|helper| helper.read.recv().ok());
            let (mut arena, whole) = match part {
                Some(part) => (part.arena, part.whole),
                // The helper is gone: each block is read here.
                None => (AlignedBuf::zeroed(self.arena.len()), false),
            };
            let shown = Shown {
                addrs,
                runs: &runs,
                whole,
            };
            if stopped.is_none() {
                stopped = shown.show(self.device, self.shift, &mut arena, &mut show);
            }
            self.idle.push(arena);
        }
    }

    /// One block.
    pub(crate) fn block(&mut self, addr: BlockAddr) -> Result<&[u8], Error> {
        let len = 1usize << self.shift;
        let buf = self.arena.get_mut(..len).unwrap_or_default();
        self.device.read_at(addr.get() << self.shift, buf)?;
        Ok(buf)
    }

    /// Joins addresses from index `from` on into runs that fit a part; also answers where to go on.
    fn plan(&self, addrs: &[BlockAddr], from: usize) -> (Vec<Run>, usize) {
        let room = (self.arena.len() >> self.shift) as u64;
        let (gap, longest) = (GAP >> self.shift, (RUN >> self.shift).max(1));
        let mut runs: Vec<Run> = Vec::new();
        let mut used = 0;
        for (index, addr) in addrs.iter().enumerate().skip(from) {
            let addr = addr.get();
            if let Some(run) = runs.last_mut() {
                let blocks = addr.saturating_sub(run.start).saturating_add(1);
                let joins = addr >= run.start
                    && addr <= run.start.saturating_add(run.blocks).saturating_add(gap)
                    && blocks <= longest;
                if joins && used - run.blocks + blocks.max(run.blocks) <= room {
                    let blocks = blocks.max(run.blocks);
                    used = used - run.blocks + blocks;
                    run.blocks = blocks;
                    run.end = index + 1;
                    continue;
                }
            }
            if used + 1 > room {
                return (runs, index);
            }
            used += 1;
            runs.push(Run {
                start: addr,
                blocks: 1,
                first: index,
                end: index + 1,
            });
        }
        (runs, addrs.len())
    }
}

/// Reads the runs one behind the other into `arena`; answers whether all of it could be read.
fn read_runs(device: &dyn BlockDevice, shift: u32, runs: &[Run], arena: &mut AlignedBuf) -> bool {
    let mut requests = Vec::with_capacity(runs.len());
    let mut rest: &mut [u8] = arena;
    for run in runs {
        let len = (run.blocks << shift) as usize;
        let Some((buf, tail)) = rest.split_at_mut_checked(len) else {
            return false;
        };
        rest = tail;
        requests.push(ReadRequest {
            offset: run.start << shift,
            buf,
        });
    }
    device.read_batch(&mut requests).is_ok()
}

/// Runs that were read, and of which addresses.
struct Shown<'a> {
    addrs: &'a [BlockAddr],
    runs: &'a [Run],
    /// All of it could be read.
    whole: bool,
}

impl Shown<'_> {
    /// Shows the blocks that stand in `arena`; unless all could be read, each is read by itself, to know which ones an
    /// error is about. Answers how many of the addresses were shown when `show` said no.
    fn show(
        &self,
        device: &dyn BlockDevice,
        shift: u32,
        arena: &mut AlignedBuf,
        show: &mut impl FnMut(usize, Result<&[u8], &Error>) -> bool,
    ) -> Option<usize> {
        let mut base = 0usize;
        for run in self.runs {
            for index in run.first..run.end {
                let Some(addr) = self.addrs.get(index) else {
                    continue;
                };
                let at = base.saturating_add((addr.get().saturating_sub(run.start) << shift) as usize);
                let Some(bytes) = arena.get_mut(at..at.saturating_add(1 << shift)) else {
                    continue;
                };
                let alone = if self.whole {
                    Ok(())
                } else {
                    device.read_at(addr.get() << shift, bytes)
                };
                let more = match &alone {
                    Ok(()) => show(index, Ok(bytes)),
                    Err(e) => show(index, Err(e)),
                };
                if !more {
                    return Some(index.saturating_add(1));
                }
            }
            base = base.saturating_add((run.blocks << shift) as usize);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs2_format::device::{Fault, FaultDevice, FaultOp, FaultRule, MemDevice};

    fn device() -> MemDevice {
        let device = MemDevice::new(64 << 20);
        for block in 0..(64 << 20) / 1024u64 {
            device.write_at(block * 1024, &block.to_be_bytes()).unwrap();
        }
        device
    }

    fn number(bytes: &[u8]) -> u64 {
        u64::from_be_bytes(*bytes.first_chunk().unwrap())
    }

    #[test]
    fn every_block_is_shown_once_with_its_bytes() {
        let device = device();
        let geometry = Geometry::new(1024, (64 << 20) / 1024).unwrap();
        std::thread::scope(|scope| {
            let readers = [
                Reader::new(&device, &geometry),
                Reader::with_helpers(scope, &device, &geometry),
            ];
            for mut reader in readers {
                for step in [1, 2, 16, 17, 18, 1000] {
                    let addrs: Vec<BlockAddr> = (0..60_000).step_by(step).map(BlockAddr::new).collect();
                    let mut seen = Vec::new();
                    reader.blocks(&addrs, |index, bytes| {
                        assert_eq!(number(bytes.unwrap()), addrs[index].get());
                        seen.push(index);
                    });
                    assert_eq!(seen, (0..addrs.len()).collect::<Vec<_>>(), "step {step}");
                }
                assert_eq!(number(reader.block(BlockAddr::new(77)).unwrap()), 77);
                // Ended in the middle, and taken up again there.
                let addrs: Vec<BlockAddr> = (0..60_000).map(BlockAddr::new).collect();
                let (mut from, mut seen) = (0, 0);
                while from < addrs.len() {
                    let rest = &addrs[from..];
                    let shown = reader.blocks_while(rest, |index, bytes| {
                        assert_eq!(number(bytes.unwrap()), rest[index].get());
                        seen += 1;
                        (index + 1) % 7001 != 0
                    });
                    assert_eq!(shown, rest.len().min(7001));
                    from += shown;
                }
                assert_eq!(seen, addrs.len());
            }
        });
    }

    #[test]
    fn an_unreadable_block_is_the_only_one() {
        let device = FaultDevice::new(device());
        device.add(FaultRule::always(FaultOp::Read, Fault::Errno(5)).at(5 * 1024..6 * 1024));
        let geometry = Geometry::new(1024, (64 << 20) / 1024).unwrap();
        std::thread::scope(|scope| {
            let readers = [
                Reader::new(&device, &geometry),
                Reader::with_helpers(scope, &device, &geometry),
            ];
            for mut reader in readers {
                let addrs: Vec<BlockAddr> = (0..100).chain([99, 20_000]).map(BlockAddr::new).collect();
                let mut failed = Vec::new();
                reader.blocks(&addrs, |index, bytes| match bytes {
                    Ok(bytes) => assert_eq!(number(bytes), addrs[index].get()),
                    Err(_) => failed.push(index),
                });
                assert_eq!(failed, vec![5]);
                assert!(reader.block(BlockAddr::new(1 << 20)).is_err());
            }
        });
    }
}
