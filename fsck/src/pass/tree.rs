//! Lists the blocks of a small file (a system file, a hash table) in logical order, tolerant of holes and bad blocks.
//!
//! Invariants: level by level, no recursion; never more pointers in memory than the file has blocks, and no more
//! levels than the height says.

use crate::reader::Reader;
use gfs2_format::geometry::MAX_DIR_DEPTH;
use gfs2_format::ondisk::{DINODE_SIZE, Dinode, META_HEADER_SIZE, MetaHeader, MetaType};
use gfs2_format::{BlockAddr, Geometry};

/// The pointers in `bytes` from byte `from` on.
pub(crate) fn pointers(bytes: &[u8], from: usize) -> impl Iterator<Item = u64> + '_ {
    let (words, _) = bytes.get(from..).unwrap_or_default().as_chunks::<8>();
    words.iter().map(|word| u64::from_be_bytes(*word))
}

/// Pointers looked at together where most are zero.
const TOGETHER: usize = 16;

/// Shows the first `count` pointers in `bytes` from byte `from` on that are not zero, each with its place.
pub(crate) fn each_pointer(bytes: &[u8], from: usize, count: usize, mut show: impl FnMut(u64, u64)) {
    let (words, _) = bytes.get(from..).unwrap_or_default().as_chunks::<8>();
    let words = words.get(..count.min(words.len())).unwrap_or_default();
    let (groups, rest) = words.as_chunks::<TOGETHER>();
    let mut each = |from: usize, some: &[[u8; 8]]| {
        for (place, word) in (from as u64..).zip(some) {
            let raw = u64::from_be_bytes(*word);
            if raw != 0 {
                show(place, raw);
            }
        }
    };
    for (n, some) in groups.iter().enumerate() {
        // Most blocks are mostly empty: what is zero is passed over without a look at each.
        if some.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) != 0 {
            each(n.saturating_mul(TOGETHER), some);
        }
    }
    each(groups.len().saturating_mul(TOGETHER), rest);
}

/// The first `count` blocks of the file; `None` for holes and for what cannot be followed.
pub(crate) fn list_blocks(
    reader: &mut Reader<'_>,
    geometry: &Geometry,
    dinode: &Dinode,
    block: &[u8],
    count: u64,
) -> Vec<Option<BlockAddr>> {
    let height = dinode.height.get().min(geometry.max_height());
    let in_volume = |raw: u64| (raw != 0 && raw < geometry.end()).then(|| BlockAddr::new(raw));
    if height == 0 {
        return Vec::new();
    }
    // How many pointers of each level are needed: at the bottom one a block, above it one an indirect block.
    let needed = |level: u16| {
        let below = (0..height.saturating_sub(level).saturating_sub(1))
            .fold(1u64, |n, _| n.saturating_mul(geometry.inptrs()));
        usize::try_from(count.div_ceil(below)).unwrap_or(usize::MAX)
    };
    let top = pointers(block, DINODE_SIZE).take(geometry.diptrs() as usize);
    let mut level: Vec<Option<BlockAddr>> = top.take(needed(0)).map(in_volume).collect();
    for depth in 1..height {
        let want = needed(depth);
        let fanout = geometry.inptrs() as usize;
        let mut next: Vec<Option<BlockAddr>> = vec![None; level.len().saturating_mul(fanout).min(want)];
        let mut order: Vec<(BlockAddr, usize)> = level
            .iter()
            .enumerate()
            .filter_map(|(n, addr)| addr.map(|addr| (addr, n)))
            .collect();
        order.sort_unstable();
        let addrs: Vec<BlockAddr> = order.iter().map(|(addr, _)| *addr).collect();
        reader.blocks(&addrs, |index, bytes| {
            let (Ok(bytes), Some((addr, place))) = (bytes, order.get(index)) else {
                return;
            };
            if MetaHeader::check(bytes, *addr, MetaType::In).is_err() {
                return;
            }
            let start = place.saturating_mul(fanout);
            let targets = next.get_mut(start..).unwrap_or_default().iter_mut();
            for (target, raw) in targets.zip(pointers(bytes, META_HEADER_SIZE).take(fanout)) {
                *target = in_volume(raw);
            }
        });
        level = next;
    }
    level
}

/// The slots of a hashed directory's table as far as they can be read; zeroes and nonsense among them.
pub(crate) fn leaf_pointers(
    reader: &mut Reader<'_>,
    geometry: &Geometry,
    dinode: &Dinode,
    block: &[u8],
) -> Vec<u64> {
    let slots = 1u64 << dinode.depth.get().min(MAX_DIR_DEPTH);
    if dinode.height.get() == 0 {
        return pointers(block, DINODE_SIZE).take(slots as usize).collect();
    }
    let count = slots.div_ceil(geometry.jbsize() / 8);
    let blocks = list_blocks(reader, geometry, dinode, block, count);
    let mut blocks: Vec<BlockAddr> = blocks.into_iter().flatten().collect();
    blocks.sort_unstable();
    let mut all = Vec::new();
    reader.blocks(&blocks, |_, bytes| {
        all.extend(
            bytes
                .into_iter()
                .flat_map(|bytes| pointers(bytes, META_HEADER_SIZE)),
        );
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wherever the pointers are and however many: the same as one after the other.
    #[test]
    fn each_pointer_is_shown_with_its_place() {
        for len in [0, 7, 8, 24, 24 + 15 * 8, 24 + 16 * 8, 24 + 17 * 8, 4096, 4099] {
            for step in [1, 2, 15, 16, 17, 100] {
                for count in [0, 1, 15, 16, 17, 483, usize::MAX] {
                    let mut bytes = vec![0; len];
                    for (n, word) in bytes.chunks_exact_mut(8).enumerate().step_by(step) {
                        word.copy_from_slice(&(n as u64 + 1).to_be_bytes());
                    }
                    let all = (0u64..).zip(pointers(&bytes, 24)).take(count);
                    let wanted: Vec<(u64, u64)> = all.filter(|(_, raw)| *raw != 0).collect();
                    let mut shown = Vec::new();
                    each_pointer(&bytes, 24, count, |place, raw| shown.push((place, raw)));
                    assert_eq!(shown, wanted, "{len} {step} {count}");
                }
            }
        }
    }
}
