//! Resource groups of which neither an entry of the index nor a neighbour's header tells: found between the others.
//!
//! First by their headers; what is still open then must have been laid out as mkfs does, filling the space between two
//! groups. Invariant: a group is made up only where something says that one is missing (an entry that is none, or
//! the total of data blocks), never only because there is room.

use crate::pass::rgrps::overlap;
use crate::scan;
use gfs2_format::bitmap::RgrpLayout;
use gfs2_format::device::BlockDevice;
use gfs2_format::ondisk::RindexEntry;
use gfs2_format::{BlockAddr, Geometry};
use std::collections::BTreeMap;

/// Smaller spaces are what alignment leaves.
const GAP_MIN: u64 = 64;

/// Fills the gaps between the known groups; answers where it found groups. `total`: data blocks of all groups, if
/// that is known. `must`: entries of the index are known to be lost.
pub(crate) fn fill(
    device: &dyn BlockDevice,
    geometry: &Geometry,
    known: &mut BTreeMap<BlockAddr, RgrpLayout>,
    total: Option<u64>,
    must: bool,
) -> Vec<BlockAddr> {
    let mut lost = Vec::new();
    for (from, end) in gaps(geometry, known) {
        for layout in scan::groups(device, geometry, from, end) {
            if overlap(known, &layout).is_none() {
                lost.push(layout.addr());
                known.insert(layout.addr(), layout);
            }
        }
    }
    let span = usual_span(known);
    let made: Vec<RgrpLayout> = gaps(geometry, known)
        .into_iter()
        .flat_map(|(from, end)| split(geometry, from, end, span))
        .collect();
    let sum = |layouts: &mut dyn Iterator<Item = &RgrpLayout>| {
        layouts.map(|layout| u64::from(layout.data())).sum::<u64>()
    };
    let open = total.map(|total| total.saturating_sub(sum(&mut known.values())));
    let last = known.keys().next_back().copied();
    let inner: Vec<RgrpLayout> = made
        .iter()
        .filter(|layout| last.is_some_and(|last| layout.addr() < last))
        .cloned()
        .collect();
    // All of them, or all but what lies behind the last group: whatever the total says.
    let chosen = if open == Some(0) {
        Vec::new()
    } else if open == Some(sum(&mut made.iter())) {
        made
    } else if open == Some(sum(&mut inner.iter())) || must {
        inner
    } else {
        Vec::new()
    };
    for layout in chosen {
        lost.push(layout.addr());
        known.insert(layout.addr(), layout);
    }
    lost
}

/// The spaces between the known groups, before the first and behind the last.
fn gaps(geometry: &Geometry, known: &BTreeMap<BlockAddr, RgrpLayout>) -> Vec<(u64, u64)> {
    let mut at = geometry.superblock().get().saturating_add(1);
    let mut gaps = Vec::new();
    for layout in known.values() {
        gaps.push((at, layout.addr().get()));
        at = layout.end().get();
    }
    gaps.push((at, geometry.end()));
    gaps.retain(|(from, end)| end.saturating_sub(*from) >= GAP_MIN);
    gaps
}

/// The distance between groups that occurs most often.
fn usual_span(known: &BTreeMap<BlockAddr, RgrpLayout>) -> u64 {
    let mut spans: BTreeMap<u64, u64> = BTreeMap::new();
    for (one, next) in known.values().zip(known.values().skip(1)) {
        let span = next.addr().get().saturating_sub(one.addr().get());
        *spans.entry(span).or_default() += 1;
    }
    let most = spans.iter().max_by_key(|(_, count)| **count);
    most.map_or(u64::MAX, |(span, _)| *span)
}

/// The groups of one gap: as many of the usual size as fit, the last one to the gap's end.
fn split(geometry: &Geometry, from: u64, end: u64, span: u64) -> Vec<RgrpLayout> {
    let mut layouts = Vec::new();
    let mut at = from;
    while end.saturating_sub(at) >= GAP_MIN {
        let left = end.saturating_sub(at);
        let own = if left >= span.saturating_add(GAP_MIN) {
            span
        } else {
            left
        };
        let Some(layout) = layout_of_span(geometry, at, own) else {
            break;
        };
        layouts.push(layout);
        at = at.saturating_add(own);
    }
    layouts
}

/// The group that fills `span` blocks from block `addr` on.
fn layout_of_span(geometry: &Geometry, addr: u64, span: u64) -> Option<RgrpLayout> {
    let mut length = 1u64;
    let data = loop {
        let room = span.checked_sub(length)? & !3;
        if geometry.bitmap_capacity(length) >= room {
            break room;
        }
        length = length.checked_add(1)?;
    };
    let data = u32::try_from(data).ok()?;
    let entry = RindexEntry {
        addr: addr.into(),
        length: u32::try_from(length).ok()?.into(),
        pad: 0.into(),
        data0: addr.checked_add(length)?.into(),
        data: data.into(),
        bitbytes: (data / 4).into(),
        reserved: [0; 64],
    };
    RgrpLayout::check(&entry, BlockAddr::new(addr), geometry).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_fills_its_span() {
        let geometry = Geometry::new(4096, 1 << 24).unwrap();
        for span in [70u64, 1000, 15_900, 16_000, 65_536, 65_543, 524_288] {
            let layout = layout_of_span(&geometry, 17, span).unwrap();
            let used = u64::from(layout.length()) + u64::from(layout.data());
            assert!(used <= span && span - used < 5, "{span}: {layout:?}");
        }
    }

    #[test]
    fn a_gap_of_several_groups_is_several() {
        let geometry = Geometry::new(4096, 1 << 24).unwrap();
        let layouts = split(&geometry, 100, 100 + 3 * 65_536, 65_536);
        let starts: Vec<u64> = layouts.iter().map(|layout| layout.addr().get()).collect();
        assert_eq!(starts, vec![100, 65_636, 131_172]);
    }
}
