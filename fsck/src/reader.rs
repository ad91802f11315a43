//! Reads many blocks at once: sorted, neighbours joined, in parallel.
//!
//! Invariants: at most [`ARENA`] bytes (or one block) are in memory at a time; a block the device cannot read is an
//! error of that block only.

use gfs2_format::device::{AlignedBuf, BlockDevice, ReadRequest};
use gfs2_format::{BlockAddr, Error, Geometry};

/// Bytes read in one go.
const ARENA: usize = 4 << 20;
/// Neighbours are read together across a gap of up to so many bytes.
const GAP: u64 = 16 << 10;
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

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    device: &'a dyn BlockDevice,
    shift: u32,
    arena: AlignedBuf,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(device: &'a dyn BlockDevice, geometry: &Geometry) -> Self {
        Self {
            device,
            shift: geometry.bsize_shift(),
            arena: AlignedBuf::zeroed(ARENA.max(geometry.block_len())),
        }
    }

    /// Shows every block of `addrs` (ascending) by its index there.
    pub(crate) fn blocks(&mut self, addrs: &[BlockAddr], mut show: impl FnMut(usize, Result<&[u8], &Error>)) {
        let mut from = 0;
        while from < addrs.len() {
            let (runs, next) = self.plan(addrs, from);
            self.read_runs(addrs, &runs, &mut show);
            from = next.max(from.saturating_add(1));
        }
    }

    /// One block.
    pub(crate) fn block(&mut self, addr: BlockAddr) -> Result<&[u8], Error> {
        let len = 1usize << self.shift;
        let buf = self.arena.get_mut(..len).unwrap_or_default();
        self.device.read_at(addr.get() << self.shift, buf)?;
        Ok(buf)
    }

    /// Joins addresses from index `from` on into runs that fit the arena; also answers where to go on.
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

    fn read_runs(
        &mut self,
        addrs: &[BlockAddr],
        runs: &[Run],
        show: &mut impl FnMut(usize, Result<&[u8], &Error>),
    ) {
        let shift = self.shift;
        let mut requests = Vec::with_capacity(runs.len());
        let mut rest: &mut [u8] = &mut self.arena;
        for run in runs {
            let len = (run.blocks << shift) as usize;
            let Some((buf, tail)) = rest.split_at_mut_checked(len) else {
                break;
            };
            rest = tail;
            requests.push(ReadRequest {
                offset: run.start << shift,
                buf,
            });
        }
        let outcome = self.device.read_batch(&mut requests);
        for (run, request) in runs.iter().zip(&mut requests) {
            for index in run.first..run.end {
                let Some(addr) = addrs.get(index) else { continue };
                let at = (addr.get().saturating_sub(run.start) << shift) as usize;
                let Some(bytes) = request.buf.get_mut(at..at.saturating_add(1 << shift)) else {
                    continue;
                };
                // After any error each block is read by itself, to know which ones it is about.
                let alone = match outcome {
                    Ok(()) => Ok(()),
                    Err(_) => self.device.read_at(addr.get() << shift, bytes),
                };
                match &alone {
                    Ok(()) => show(index, Ok(bytes)),
                    Err(e) => show(index, Err(e)),
                }
            }
        }
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
        let mut reader = Reader::new(&device, &geometry);
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
    }

    #[test]
    fn an_unreadable_block_is_the_only_one() {
        let device = FaultDevice::new(device());
        device.add(FaultRule::always(FaultOp::Read, Fault::Errno(5)).at(5 * 1024..6 * 1024));
        let geometry = Geometry::new(1024, (64 << 20) / 1024).unwrap();
        let mut reader = Reader::new(&device, &geometry);
        let addrs: Vec<BlockAddr> = (0..100).chain([99, 20_000]).map(BlockAddr::new).collect();
        let mut failed = Vec::new();
        reader.blocks(&addrs, |index, bytes| match bytes {
            Ok(bytes) => assert_eq!(number(bytes), addrs[index].get()),
            Err(_) => failed.push(index),
        });
        assert_eq!(failed, vec![5]);
        assert!(reader.block(BlockAddr::new(1 << 20)).is_err());
    }
}
