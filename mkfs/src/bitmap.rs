//! Renders a resource group's header and bitmap blocks.
//!
//! Invariant: memory that holds a group of which nothing is used differs from any other such group of its size in the
//! 128 header bytes alone.

use crate::alloc::Usage;
use crate::layout::{Layout, RgrpSpan};
use gfs2_format::Jid;
use gfs2_format::ondisk::{BlockState, META_HEADER_SIZE, MetaHeader, MetaType, RGRP_SIZE, Rgrp};
use zerocopy::IntoBytes;

/// Renders the group into `bytes`, which are as long as its header and bitmap blocks; `unused`: they hold a group of
/// which nothing is used. `skip` is the distance to the next header, 0 for the last group. Answers whether they hold
/// one of which nothing is used now.
pub(crate) fn render(
    layout: &Layout,
    usage: &Usage,
    rgrp: &RgrpSpan,
    skip: u64,
    bytes: &mut [u8],
    unused: bool,
) -> bool {
    let bs = layout.geometry().block_len();
    if !unused {
        prepare(bytes, bs);
    }
    let used = usage.used_end(layout, rgrp) - rgrp.data0;
    let journal = (rgrp.index < layout.journals()).then_some(rgrp.data0);
    let dinodes = usage.dinodes_in(rgrp);
    if used > 0 {
        mark_used(bytes, bs, used);
        for block in journal.iter().chain(dinodes) {
            mark_dinode(bytes, bs, block - rgrp.data0);
        }
    }
    let mut header = Rgrp {
        header: MetaHeader::new(MetaType::Rg, Jid::new(0)),
        flags: 0.into(),
        free: (rgrp.data - used as u32).into(),
        dinodes: (dinodes.len() as u32 + u32::from(journal.is_some())).into(),
        skip: (skip as u32).into(),
        igeneration: 0.into(),
        data0: rgrp.data0.into(),
        data: rgrp.data.into(),
        bitbytes: (rgrp.data / 4).into(),
        crc: 0.into(),
        reserved: [0; 60],
    };
    header.seal();
    bytes[..RGRP_SIZE].copy_from_slice(header.as_bytes());
    used == 0
}

/// Empty bitmaps.
fn prepare(bytes: &mut [u8], bs: usize) {
    bytes.fill(0);
    let header = MetaHeader::new(MetaType::Rb, Jid::new(0));
    for block in bytes.chunks_exact_mut(bs).skip(1) {
        block[..META_HEADER_SIZE].copy_from_slice(header.as_bytes());
    }
}

/// The bitmap's bytes, block by block, as one run of `(offset, length)` each.
fn bitmap_runs(len: usize, bs: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len / bs).map(move |n| {
        let head = if n == 0 { RGRP_SIZE } else { META_HEADER_SIZE };
        (n * bs + head, bs - head)
    })
}

/// Marks the first `count` blocks used.
fn mark_used(bytes: &mut [u8], bs: usize, count: u64) {
    const ALL_USED: u8 = 0b0101_0101;
    let mut left = count as usize;
    for (start, len) in bitmap_runs(bytes.len(), bs) {
        let whole = (left / 4).min(len);
        bytes[start..start + whole].fill(ALL_USED);
        left -= whole * 4;
        if whole < len {
            if left > 0 {
                bytes[start + whole] = ALL_USED & ((1 << (2 * left)) - 1);
            }
            return;
        }
    }
}

/// Marks block `n` of the group's data a dinode.
fn mark_dinode(bytes: &mut [u8], bs: usize, n: u64) {
    let mut byte = n as usize / 4;
    for (start, len) in bitmap_runs(bytes.len(), bs) {
        if byte < len {
            bytes[start + byte] |= (BlockState::Dinode as u8) << (2 * (n % 4));
            return;
        }
        byte -= len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alloc::Cursor;
    use crate::options::{Options, Topology};
    use gfs2_format::Geometry;

    fn state(geometry: &Geometry, bytes: &[u8], n: u64) -> u8 {
        let first = geometry.rg_bitmap_len() as u64;
        let (block, at) = match (n / 4).checked_sub(first) {
            None => (0, RGRP_SIZE as u64 + n / 4),
            Some(beyond) => {
                let len = geometry.rb_bitmap_len() as u64;
                (1 + beyond / len, META_HEADER_SIZE as u64 + beyond % len)
            }
        };
        bytes[(block * u64::from(geometry.bsize()) + at) as usize] >> (2 * (n % 4)) & 3
    }

    #[test]
    fn every_block_state_is_where_the_format_says() {
        let options = Options {
            block_size: Some(512),
            rgrp_mb: 32,
            ..Options::nolock()
        };
        let layout = Layout::new(&options, &Topology::of_size(160 << 20), &mut Vec::new()).unwrap();
        let mut cursor = Cursor::new(&layout).unwrap();
        for n in 0..4001 {
            if n % 1000 == 0 {
                cursor.take_dinode().unwrap();
            } else {
                cursor.take().unwrap();
            }
        }
        let usage = cursor.usage();
        let mut bytes = Vec::new();
        let mut unused = false;
        // Twice, so that what one group leaves in the memory would show in the next.
        for index in [0, 1, 2, 3, 0, 1, 2] {
            let rgrp = layout.rgrp(index).unwrap();
            let len = rgrp.bitmap_blocks as usize * 512;
            unused &= len == bytes.len();
            bytes.resize(len, 0xaa);
            unused = render(&layout, &usage, &rgrp, 7, &mut bytes, unused);
            assert_eq!(unused, index > 1);
            let end = usage.used_end(&layout, &rgrp);
            let mut free = 0;
            for n in 0..u64::from(rgrp.data) {
                let block = rgrp.data0 + n;
                let dinode = (index == 0 && n == 0) || usage.dinodes().contains(&block);
                let want = match (dinode, block < end) {
                    (true, _) => 3,
                    (false, true) => 1,
                    (false, false) => 0,
                };
                free += u32::from(want == 0);
                assert_eq!(
                    state(layout.geometry(), &bytes, n),
                    want,
                    "group {index} block {n}"
                );
            }
            let header: &Rgrp = gfs2_format::ondisk::view(&bytes, 0, layout.geometry().superblock()).unwrap();
            assert_eq!(header.free.get(), free);
            assert_eq!(header.crc.get(), gfs2_format::ondisk::rgrp_crc(header));
            assert_eq!(header.skip.get(), 7);
        }
        assert_eq!(usage.taken(), 4001);
    }
}
