//! Resource groups by what is left of their blocks, where neither the index nor a header says how large they are.
//!
//! Headers from before they held copies of the index (a volume converted from GFS1, on which groups are of any size and
//! blocks between them belong to none) tell by their counts: a group ends where its bitmap has as many free blocks and
//! inodes as its header says. Where the header is lost, bitmap blocks behind it tell where it was, and how many of them
//! there are how large the group can have been. Invariants: each block is read a few times at most; a header whose counts
//! fit no size is none (journals and files may hold copies).

use crate::reader::Reader;
use crate::scan::magic_blocks;
use gfs2_format::bitmap::RgrpLayout;
use gfs2_format::device::BlockDevice;
use gfs2_format::ondisk::{
    BlockState, META_HEADER_SIZE, MetaHeader, MetaType, RGRP_SIZE, Rgrp, RindexEntry, view,
};
use gfs2_format::{BlockAddr, Geometry};

/// A group that was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) layout: RgrpLayout,
    /// Its header does not tell its size: it may have been smaller.
    pub(crate) is_largest: bool,
}

/// Header or bitmap block?
fn kind(bytes: &[u8], addr: BlockAddr) -> Option<MetaType> {
    [MetaType::Rg, MetaType::Rb]
        .into_iter()
        .find(|kind| MetaHeader::check(bytes, addr, *kind).is_ok())
}

/// Does the block hold metadata that is neither header nor bitmap? Then no group was here.
pub(crate) fn is_taken(reader: &mut Reader<'_>, addr: BlockAddr) -> bool {
    reader.block(addr).is_ok_and(|bytes| {
        MetaHeader::check_magic(bytes, addr, "metadata").is_ok() && kind(bytes, addr).is_none()
    })
}

/// The first header or bitmap block of `from..end`, and whether it is a header.
fn next(device: &dyn BlockDevice, geometry: &Geometry, from: u64, end: u64) -> Option<(u64, bool)> {
    let mut found = None;
    magic_blocks(device, geometry, from, end, |addr, bytes| {
        found = kind(bytes, addr).map(|kind| (addr.get(), kind == MetaType::Rg));
        found.is_none()
    });
    found
}

/// The groups of `from..end`, ascending.
pub(crate) fn groups(device: &dyn BlockDevice, geometry: &Geometry, from: u64, end: u64) -> Vec<Found> {
    let mut reader = Reader::new(device, geometry);
    let mut all: Vec<Found> = Vec::new();
    let mut at = from;
    while let Some((block, is_header)) = next(device, geometry, at, end) {
        let addr = match is_header {
            true => Some(block),
            // The header is in front of the first bitmap block.
            false => block.checked_sub(1).filter(|addr| *addr >= at),
        };
        let addr = addr.filter(|addr| !is_taken(&mut reader, BlockAddr::new(*addr)));
        let length = run(
            &mut reader,
            if is_header { block.saturating_add(1) } else { block },
            end,
        );
        let length = length.saturating_add(1);
        let data = addr.and_then(|addr| match is_header {
            true => counted(&mut reader, geometry, (addr, length), end),
            false => largest(device, geometry, (addr, length), end),
        });
        let layout = addr
            .zip(data)
            .and_then(|(addr, data)| layout(geometry, addr, length, data));
        at = match layout {
            Some(layout) => {
                let behind = layout.end().get();
                let is_largest = !is_header;
                all.push(Found { layout, is_largest });
                behind
            }
            None => block.saturating_add(length),
        };
    }
    all
}

/// How many bitmap blocks stand in a row from block `at` on.
fn run(reader: &mut Reader<'_>, at: u64, end: u64) -> u64 {
    let is_bitmap = |n: &u64| {
        let addr = BlockAddr::new(*n);
        let bytes = reader.block(addr);
        bytes.is_ok_and(|bytes| MetaHeader::check(bytes, addr, MetaType::Rb).is_ok())
    };
    (at..end).take_while(is_bitmap).count() as u64
}

/// How many data blocks a group of so many blocks has room for before `end`; `None` when its last bitmap block would
/// not be needed.
fn room(geometry: &Geometry, (addr, length): (u64, u64), end: u64) -> Option<u64> {
    let left = end.checked_sub(addr)?.checked_sub(length)?;
    let most = left.min(geometry.bitmap_capacity(length)) & !3;
    (most > geometry.bitmap_capacity(length.checked_sub(1)?)).then_some(most)
}

/// Data blocks of a group whose header is lost: as many as there is room for before the next one.
fn largest(
    device: &dyn BlockDevice,
    geometry: &Geometry,
    (addr, length): (u64, u64),
    end: u64,
) -> Option<u64> {
    let most = room(geometry, (addr, length), end)?;
    let data0 = addr.checked_add(length)?;
    let least = geometry.bitmap_capacity(length.checked_sub(1)?);
    let search = (data0.checked_add(least)?, data0.checked_add(most)?);
    let behind = next(device, geometry, search.0, search.1);
    let end = behind.map_or(end, |(block, is_header)| {
        block.saturating_sub(u64::from(!is_header))
    });
    room(geometry, (addr, length), end)
}

/// Data blocks of a group: as far as its bitmap has as many free blocks and inodes as its header says.
fn counted(
    reader: &mut Reader<'_>,
    geometry: &Geometry,
    (addr, length): (u64, u64),
    end: u64,
) -> Option<u64> {
    let most = room(geometry, (addr, length), end)?;
    let (mut free, mut dinodes) = (0u64, 0u64);
    let mut wanted = (0u64, 0u64);
    let mut seen = 0u64;
    'blocks: for n in 0..length {
        let at = BlockAddr::new(addr.checked_add(n)?);
        let bytes = reader.block(at).ok()?;
        if n == 0 {
            let header = view::<Rgrp>(bytes, 0, at).ok()?;
            let elsewhere = header.data0.get() != 0 && header.data0.get() != addr.checked_add(length)?;
            if elsewhere {
                // A copy: journals hold them.
                return None;
            }
            wanted = (u64::from(header.free.get()), u64::from(header.dinodes.get()));
        }
        for byte in bytes.get(if n == 0 { RGRP_SIZE } else { META_HEADER_SIZE }..)? {
            let states = [0, 2, 4, 6].map(|shift| BlockState::from_bits(byte >> shift));
            let here = states.iter().filter(|state| **state == BlockState::Free).count() as u64;
            if seen >= most || free.saturating_add(here) > wanted.0 {
                break 'blocks;
            }
            free = free.saturating_add(here);
            let inodes = |state: &&BlockState| matches!(state, BlockState::Unlinked | BlockState::Dinode);
            dinodes = dinodes.saturating_add(states.iter().filter(inodes).count() as u64);
            seen = seen.saturating_add(4);
        }
    }
    ((free, dinodes) == wanted).then_some(seen)
}

/// The group at block `addr`.
pub(crate) fn layout(geometry: &Geometry, addr: u64, length: u64, data: u64) -> Option<RgrpLayout> {
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
