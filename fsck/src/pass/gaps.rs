//! Resource groups of which neither an entry of the index nor a neighbour's header tells: found between the others.
//!
//! First by their headers, then by what else is left of them; what is still open then must have been laid out as mkfs
//! does, filling the space between two groups. Invariant: a group is made up only where something says that one is missing
//! (an entry that is none, or the total of data blocks), never only because there is room, and never where its blocks
//! hold other metadata.

use crate::pass::remains::{self, Found};
use crate::pass::rgrps::overlap;
use crate::reader::Reader;
use crate::scan;
use gfs2_format::bitmap::RgrpLayout;
use gfs2_format::device::BlockDevice;
use gfs2_format::ondisk::{MetaHeader, MetaType};
use gfs2_format::{BlockAddr, Geometry};
use std::collections::BTreeMap;

/// Smaller spaces are what alignment leaves.
const GAP_MIN: u64 = 64;

/// Fills the gaps between the known groups; answers where it found groups. `total`: data blocks of all groups, if
/// that is known. `bad`: entries of the index that are known to be lost.
pub(crate) fn fill(
    device: &dyn BlockDevice,
    geometry: &Geometry,
    known: &mut BTreeMap<BlockAddr, RgrpLayout>,
    total: Option<u64>,
    bad: usize,
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
    let open = |known: &BTreeMap<BlockAddr, RgrpLayout>| {
        let sum: u64 = known.values().map(|layout| u64::from(layout.data())).sum();
        total.map(|total| total.saturating_sub(sum))
    };
    if open(known) != Some(0) && (open(known).is_some() || bad > lost.len() || known.is_empty()) {
        let left = gaps(geometry, known).into_iter();
        let found = left.flat_map(|(from, end)| remains::groups(device, geometry, from, end));
        for layout in sized(geometry, found.collect(), open(known)) {
            lost.push(layout.addr());
            known.insert(layout.addr(), layout);
        }
    }
    if open(known) != Some(0) {
        let mut reader = Reader::new(device, geometry);
        let must = bad > lost.len();
        let made_up = chosen(geometry, known, open(known), must);
        let taken = made_up
            .iter()
            .flat_map(RgrpLayout::slices)
            .any(|slice| remains::is_taken(&mut reader, slice.block));
        if !taken {
            for layout in made_up {
                lost.push(layout.addr());
                known.insert(layout.addr(), layout);
            }
        }
    }
    lost
}

/// Of these groups one may be smaller than there is room for: then it is as large as the rest of the total.
fn sized(geometry: &Geometry, found: Vec<Found>, open: Option<u64>) -> Vec<RgrpLayout> {
    let sum = |found: &[Found], is_largest| -> u64 {
        let some = found.iter().filter(|found| found.is_largest == is_largest);
        some.map(|found| u64::from(found.layout.data())).sum()
    };
    let one = found.iter().filter(|found| found.is_largest).count() == 1;
    let rest = open.and_then(|open| open.checked_sub(sum(&found, false)));
    let rest = rest.filter(|rest| one && *rest <= sum(&found, true));
    let exact = |found: Found| {
        let (addr, length) = (found.layout.addr().get(), u64::from(found.layout.length()));
        let exact = rest.filter(|_| found.is_largest);
        exact
            .and_then(|data| remains::layout(geometry, addr, length, data))
            .unwrap_or(found.layout)
    };
    found.into_iter().map(exact).collect()
}

/// The group that a neighbour's header promises at block `at`, which is no header any more: as long as the bitmap
/// blocks behind it say, and as large as they and the space it has let it be.
pub(crate) fn promised(
    reader: &mut Reader<'_>,
    geometry: &Geometry,
    known: &BTreeMap<BlockAddr, RgrpLayout>,
    at: BlockAddr,
) -> Option<RgrpLayout> {
    let (_, end) = gaps(geometry, known)
        .into_iter()
        .find(|(from, end)| (*from..*end).contains(&at.get()))?;
    let mut length = 1u64;
    while let Some(next) = at.checked_add(length).filter(|next| next.get() < end) {
        let bitmap = reader
            .block(next)
            .is_ok_and(|bytes| MetaHeader::check(bytes, next, MetaType::Rb).is_ok());
        if !bitmap {
            break;
        }
        length = length.checked_add(1)?;
    }
    if length == 1 {
        // Nothing but the distance says so.
        return None;
    }
    let room = end.checked_sub(at.get())?.checked_sub(length)?;
    let span = room.min(geometry.bitmap_capacity(length)).checked_add(length)?;
    let layout = layout_of_span(geometry, at.get(), span)?;
    (u64::from(layout.length()) == length).then_some(layout)
}

/// The groups that must have been in the gaps: of several ways to lay them out the one that the total confirms.
fn chosen(
    geometry: &Geometry,
    known: &BTreeMap<BlockAddr, RgrpLayout>,
    open: Option<u64>,
    must: bool,
) -> Vec<RgrpLayout> {
    let span = usual_span(known);
    let last = known.keys().next_back().copied();
    let (inner, tail): (Vec<_>, Vec<_>) = gaps(geometry, known)
        .into_iter()
        .partition(|(from, _)| last.is_some_and(|last| *from < last.get()));
    let layouts = |gaps: &[(u64, u64)], span: u64| -> Vec<RgrpLayout> {
        let groups = gaps.iter().map(|(from, end)| split(geometry, *from, *end, span));
        groups.flatten().collect()
    };
    let data = |layouts: &[RgrpLayout]| layouts.iter().map(|l| u64::from(l.data())).sum::<u64>();
    for span in [span, u64::MAX] {
        let inside = layouts(&inner, span);
        let rest = open.map(|open| open.checked_sub(data(&inside)));
        let Some(Some(rest)) = rest else {
            continue;
        };
        if rest == 0 {
            return inside;
        }
        let behind = layouts(&tail, span);
        // That the total is what one group makes of it says nothing where nothing else is known.
        let exact = tail.first().filter(|_| last.is_some());
        let exact = exact.and_then(|(from, end)| layout_of_data(geometry, *from, *end, rest));
        for behind in [Some(behind), exact.map(|layout| vec![layout])]
            .into_iter()
            .flatten()
        {
            if data(&behind) == rest {
                return inside.into_iter().chain(behind).collect();
            }
        }
    }
    if must { layouts(&inner, span) } else { Vec::new() }
}

/// Is there room for so many data blocks between the known groups?
pub(crate) fn has_room(geometry: &Geometry, known: &BTreeMap<BlockAddr, RgrpLayout>, data: u64) -> bool {
    let room = gaps(geometry, known)
        .into_iter()
        .map(|(from, end)| end.saturating_sub(from));
    room.sum::<u64>() > data
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
    remains::layout(geometry, addr, length, data)
}

/// The group at block `from` with so many data blocks, if it ends before `end`.
fn layout_of_data(geometry: &Geometry, from: u64, end: u64, data: u64) -> Option<RgrpLayout> {
    let length = (1..=data.div_ceil(4)).find(|length| geometry.bitmap_capacity(*length) >= data)?;
    let span = length.checked_add(data)?;
    let layout = layout_of_span(geometry, from, span)?;
    let fits = from.checked_add(span)? <= end && u64::from(layout.data()) == data;
    fits.then_some(layout)
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
