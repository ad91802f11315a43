//! Finds a journal's newest header: its head.
//!
//! The rule is the kernel's (FORMAT.md 7.5): from block 0 upwards, a valid header whose sequence is not below the
//! best one so far becomes the best; the first valid one below it ends the search. Blocks that are no valid header
//! do not count. Bisection would read less, but only a scan accepts exactly what the kernel accepts when a journal
//! is not what it should be, and a journal is small and lies in one piece: it is read in large steps and only as far
//! as the head.

use super::codec::{Header, decode_header};
use super::map::JournalRead;
use crate::addr::JournalBlock;
use crate::error::Result;
use crate::geometry::Geometry;

/// Bytes of the first read: most heads of small or young journals are found in it.
const FIRST_READ: usize = 256 << 10;
/// Bytes of a read, at most.
const LARGEST_READ: usize = 4 << 20;

/// The newest header of a journal and where it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The header. Its `blkno` is not compared with the position (the kernel does not either, here).
    pub header: Header,
    /// Where it stands.
    pub position: JournalBlock,
}

/// Finds the head; `None` when the journal holds no valid header at all.
///
/// # Errors
/// I/O errors.
pub fn find_head(journal: &dyn JournalRead, geometry: &Geometry) -> Result<Option<Head>> {
    let block_len = geometry.block_len();
    let ring = journal.ring();
    let mut best: Option<Head> = None;
    let mut buf: Vec<u8> = Vec::new();
    let mut step = FIRST_READ.max(block_len);
    let mut next = 0u32;
    while next < ring.blocks() {
        let count = u32::try_from(step / block_len).map_or(1, |n| n.min(ring.blocks() - next));
        buf.resize((count as usize).saturating_mul(block_len), 0);
        journal.read(JournalBlock::new(next), &mut buf)?;
        for (position, block) in (next..).zip(buf.chunks_exact(block_len)) {
            let Some(header) = decode_header(block, None) else {
                continue;
            };
            if best.is_some_and(|b| header.sequence < b.header.sequence) {
                return Ok(best);
            }
            best = Some(Head {
                header,
                position: JournalBlock::new(position),
            });
        }
        next += count;
        step = step.saturating_mul(2).min(LARGEST_READ.max(block_len));
    }
    Ok(best)
}
