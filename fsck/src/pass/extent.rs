//! Does the device hold the whole volume?
//!
//! A volume whose end is missing looks like one with a thousand damages, and repairs would cut off for good what a
//! complete copy still has. So this is looked at before anything else. Invariant: only what agrees with itself in every
//! field tells of an end behind the device's: an entry of the resource index, or, where that cannot be read, the
//! headers of resource groups from the first on.

use crate::pass::system::find;
use crate::reader::Reader;
use crate::scan::layout_of_header;
use gfs2_format::bitmap::RgrpLayout;
use gfs2_format::device::BlockDevice;
use gfs2_format::ondisk::Superblock;
use gfs2_format::volume::{DeviceReader, read_rindex};
use gfs2_format::{BlockAddr, Geometry};

/// No volume has more blocks: 8 EiB of the smallest.
const BLOCKS_MAX: u64 = 1 << 54;
/// Headers that are followed at most.
const HEADERS: u32 = 1 << 16;

/// Where the volume ends, if that is behind the device's end.
pub(crate) fn end_behind_device(
    device: &dyn BlockDevice,
    geometry: &Geometry,
    superblock: &Superblock,
) -> Option<u64> {
    let large = Geometry::new(geometry.bsize(), BLOCKS_MAX).ok()?;
    let end = by_index(device, geometry, superblock, &large).or_else(|| by_headers(device, geometry, &large));
    end.filter(|end| *end > geometry.end())
}

/// By the resource index; `None` when it cannot be read.
fn by_index(
    device: &dyn BlockDevice,
    geometry: &Geometry,
    superblock: &Superblock,
    large: &Geometry,
) -> Option<u64> {
    let mut reader = Reader::new(device, geometry);
    let rindex = find(&mut reader, geometry, superblock).ok()?.file("rindex")?;
    let entries = read_rindex(&DeviceReader::new(device, geometry), rindex).ok()?;
    let layouts = entries
        .iter()
        .filter_map(|entry| RgrpLayout::check(entry, rindex, large).ok());
    layouts.map(|layout| layout.end().get()).max()
}

/// Along the headers: each says how large its group is, and where the next one is.
fn by_headers(device: &dyn BlockDevice, geometry: &Geometry, large: &Geometry) -> Option<u64> {
    let mut reader = Reader::new(device, geometry);
    let mut at = geometry.superblock().get().saturating_add(1);
    let mut end = None;
    for _ in 0..HEADERS {
        if at >= geometry.end() {
            // A header led here: what it said is one block at least.
            return end.max(Some(at.saturating_add(1)));
        }
        let addr = BlockAddr::new(at);
        let bytes = reader.block(addr).ok()?;
        let Some((skip, layout)) = layout_of_header(large, addr, bytes) else {
            break;
        };
        let behind = layout.end().get();
        end = end.max(Some(behind));
        let next = at.saturating_add(skip);
        if skip == 0 || !(behind..behind.saturating_add(4)).contains(&next) {
            break;
        }
        at = next;
    }
    end
}
