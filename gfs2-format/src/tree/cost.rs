//! What allocations cost at most.

use super::path::coverage;
use crate::addr::FileBlock;
use crate::geometry::Geometry;

/// Upper bounds of what an allocation needs. Unit: filesystem blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cost {
    /// Data blocks to allocate.
    pub data: u64,
    /// Indirect blocks to allocate.
    pub indirect: u64,
    /// Metadata blocks edited, the new ones and the dinode included (bitmaps not).
    pub touched: u64,
}

impl Cost {
    /// All blocks to allocate.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.data.saturating_add(self.indirect)
    }
}

/// What allocating all of `count` logical blocks from `lblock` on costs at most, in a tree of height `height` (0:
/// stuffed) that is all holes; exact but for blocks that are there already.
#[must_use]
pub fn worst_case_blocks(geometry: &Geometry, height: u16, lblock: FileBlock, count: u64) -> Cost {
    if count == 0 {
        return Cost::default();
    }
    let last = lblock.get().saturating_add(count - 1);
    let top = geometry.height_for(FileBlock::new(last), height);
    // Growing puts indirect blocks along index 0 even where nothing of the range is.
    let mut indirect = u64::from(top.saturating_sub(height.max(1)));
    for below in 1..top {
        let span = coverage(geometry, below);
        indirect = indirect.saturating_add(last / span - lblock.get() / span + 1);
    }
    Cost {
        data: count.saturating_add(u64::from(height == 0)),
        indirect,
        touched: indirect.saturating_add(1),
    }
}
