//! Resource groups: the index against itself, headers against the index, counts against the bitmaps.
//!
//! Fills what is known of every block. A group whose bitmap cannot be read stays in the check, with nothing believed
//! of it; a group that the index has wrong or not at all is taken from its own header where that is possible.

use crate::check::{Check, Step};
use crate::pass::gaps;
use crate::pass::system::System;
use crate::problem::{Kind, Problem};
use crate::reader::Reader;
use crate::scan::layout_of_header;
use gfs2_format::bitmap::{BitmapSlice, RgrpLayout};
use gfs2_format::ondisk::{BlockState, MetaHeader, MetaType, RINDEX_SIZE, Rgrp, RindexEntry, rgrp_crc, view};
use gfs2_format::{BlockAddr, Error, Expected};
use std::collections::BTreeMap;
use zerocopy::FromBytes;

/// Bitmap bytes in memory while groups are loaded.
const BITMAPS: usize = 8 << 20;
/// `rg_flags` that are never stored.
const CORE_FLAGS: u32 = 0xf000_0000;

/// Sums over all groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) blocks: u64,
    pub(crate) free: u64,
    pub(crate) dinodes: u64,
}

/// A group being loaded.
#[derive(Debug)]
struct Loading {
    layout: RgrpLayout,
    /// Where the next group starts.
    next: Option<BlockAddr>,
    header: Option<Rgrp>,
    bits: Vec<u8>,
    /// Bitmap blocks that could be used.
    good: u32,
}

impl Check<'_> {
    /// Loads and checks every group. Answers the sums, unless a group's numbers are not known. `content`: that of the
    /// index, if it could be read; `total`: the data blocks of all groups as the statfs file says.
    pub(crate) fn rgrps(
        &mut self,
        reader: &mut Reader<'_>,
        rindex: BlockAddr,
        content: Option<&[u8]>,
        total: Option<u64>,
    ) -> Step<Option<Totals>> {
        let layouts = self.layouts(reader, rindex, content, total)?;
        if layouts.is_empty() {
            let expected = Expected::Rule("at least one resource group");
            return Err(self.fatal(Problem::new(Kind::Rindex, rindex, "entries", 0, expected).of(rindex)));
        }
        let mut totals = Some(Totals::default());
        let mut from = 0;
        while let Some(rest) = layouts.get(from..).filter(|rest| !rest.is_empty()) {
            let mut bytes = 0usize;
            let fits = |layout: &&RgrpLayout| {
                bytes = bytes.saturating_add(layout.data() as usize / 4);
                bytes <= BITMAPS
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let batch = rest.iter().take(count).enumerate().map(|(n, layout)| Loading {
                layout: layout.clone(),
                next: layouts
                    .get(from.saturating_add(n).saturating_add(1))
                    .map(RgrpLayout::addr),
                header: None,
                bits: Vec::new(),
                good: 0,
            });
            let batch: Vec<Loading> = batch.collect();
            // A group that is not known makes everything look wrong: there is nothing to leave out.
            self.tick(from as u64, layouts.len() as u64)?;
            self.load(reader, batch, &mut totals);
            self.weigh();
            from = from.saturating_add(count);
        }
        Ok(totals)
    }

    /// Does the resource index, by itself, say where the groups are? What is wrong with it is not told.
    pub(crate) fn can_find_groups(&mut self, reader: &mut Reader<'_>, system: &System) -> Step<bool> {
        let (rindex, content) = self.quietly(|check| check.rindex(reader, system))?;
        let content = content.unwrap_or_default();
        let (entries, _) = content.as_chunks::<RINDEX_SIZE>();
        let mut known: BTreeMap<BlockAddr, RgrpLayout> = BTreeMap::new();
        for bytes in entries {
            let entry = RindexEntry::ref_from_bytes(bytes).ok();
            let layout = entry.and_then(|entry| RgrpLayout::check(entry, rindex, &self.geometry).ok());
            let Some(layout) = layout.filter(|layout| overlap(&known, layout).is_none()) else {
                return Ok(false);
            };
            known.insert(layout.addr(), layout);
        }
        Ok(!known.is_empty())
    }

    /// The groups, ascending: those of the index, and those that the index has wrong or not at all as far as their
    /// own headers tell where they are.
    fn layouts(
        &mut self,
        reader: &mut Reader<'_>,
        rindex: BlockAddr,
        content: Option<&[u8]>,
        total: Option<u64>,
    ) -> Step<Vec<RgrpLayout>> {
        let readable = content.is_some();
        let content = content.unwrap_or_default();
        let (entries, rest) = content.as_chunks::<RINDEX_SIZE>();
        if !rest.is_empty() {
            let expected = Expected::Rule("a multiple of 96");
            let size = content.len() as u64;
            self.found(Problem::new(Kind::RindexSize, rindex, "di_size", size, expected).of(rindex));
        }
        let mut known: BTreeMap<BlockAddr, RgrpLayout> = BTreeMap::new();
        let mut bad = 0usize;
        for (n, bytes) in entries.iter().enumerate() {
            let Ok(entry) = RindexEntry::ref_from_bytes(bytes) else {
                continue;
            };
            let name = format!("entry {n}");
            let wrong = match RgrpLayout::check(entry, rindex, &self.geometry) {
                Ok(layout) => match overlap(&known, &layout) {
                    None => {
                        known.insert(layout.addr(), layout);
                        continue;
                    }
                    Some(other) => {
                        let expected = Expected::Rule("a group that overlaps no other");
                        let other = other.get();
                        Problem::new(
                            Kind::RindexEntry,
                            rindex,
                            "ri_addr (other group)",
                            other,
                            expected,
                        )
                    }
                },
                Err(Error::Corrupt(corrupt)) => Problem::from_corrupt(Kind::RindexEntry, &corrupt),
                Err(_) => continue,
            };
            bad = bad.saturating_add(1);
            self.found(wrong.of(rindex).named(name.as_bytes()));
        }
        let mut lost = self.lost_groups(reader, &mut known);
        let sum: u64 = known.values().map(|layout| u64::from(layout.data())).sum();
        if !readable || !rest.is_empty() || bad > lost.len() || total.is_some_and(|total| total > sum) {
            let bad = bad.saturating_sub(lost.len());
            lost.extend(gaps::fill(self.device, &self.geometry, &mut known, total, bad));
        }
        if !readable && total.is_none() {
            for (skip, layout) in self.skips(reader, &known) {
                let at = layout.addr().checked_add(skip).filter(|_| skip != 0);
                let promised = at.and_then(|at| gaps::promised(reader, &self.geometry, &known, at));
                if let Some(layout) = promised {
                    lost.push(layout.addr());
                    known.insert(layout.addr(), layout);
                }
            }
        }
        let sum: u64 = known.values().map(|layout| u64::from(layout.data())).sum();
        let open = total.unwrap_or(0).saturating_sub(sum);
        if open > 0 && bad > lost.len() && gaps::has_room(&self.geometry, &known, open) {
            // Every block of a group that is missed would look like damage.
            let expected = Expected::Value(sum.saturating_add(open));
            let problem = Problem::new(Kind::Rindex, rindex, "data blocks of all groups", sum, expected);
            return Err(self.fatal(problem.of(rindex)));
        }
        if !readable {
            // One finding says it all.
            lost.clear();
        }
        // Each wrong entry was reported; only more groups than that are missing from the index.
        for addr in lost.into_iter().skip(bad) {
            let expected = Expected::Rule("an entry in the resource index");
            self.found(Problem::new(Kind::RindexMissing, addr, "entries", 0, expected).of(rindex));
        }
        Ok(known.into_values().collect())
    }

    /// Looks for headers of groups where one should be: where a known header says that the next group is, right
    /// behind a group, at the volume's start. Adds them to the known ones.
    fn lost_groups(
        &mut self,
        reader: &mut Reader<'_>,
        known: &mut BTreeMap<BlockAddr, RgrpLayout>,
    ) -> Vec<BlockAddr> {
        let first = self.geometry.superblock().checked_add(1).unwrap_or_default();
        let mut suspects = vec![first];
        for (skip, layout) in self.skips(reader, known) {
            let skipped = layout.addr().checked_add(skip).filter(|_| skip != 0);
            suspects.extend(skipped.into_iter().chain(behind(&layout)));
        }
        let mut lost = Vec::new();
        while !suspects.is_empty() {
            suspects.retain(|addr| addr.get() < self.geometry.end() && holder(known, *addr).is_none());
            suspects.sort_unstable();
            suspects.dedup();
            let mut found = Vec::new();
            reader.blocks(&suspects, |index, bytes| {
                let (Some(addr), Ok(bytes)) = (suspects.get(index).copied(), bytes) else {
                    return;
                };
                found.extend(layout_of_header(&self.geometry, addr, bytes));
            });
            suspects.clear();
            for (skip, layout) in found {
                if overlap(known, &layout).is_some() {
                    continue;
                }
                lost.push(layout.addr());
                suspects.extend(layout.addr().checked_add(skip).into_iter().chain(behind(&layout)));
                known.insert(layout.addr(), layout);
            }
        }
        lost
    }

    /// `rg_skip` of every known group that does not lead to the next known one.
    fn skips(
        &self,
        reader: &mut Reader<'_>,
        known: &BTreeMap<BlockAddr, RgrpLayout>,
    ) -> Vec<(u64, RgrpLayout)> {
        let layouts: Vec<&RgrpLayout> = known.values().collect();
        let addrs: Vec<BlockAddr> = layouts.iter().map(|layout| layout.addr()).collect();
        let mut skips = Vec::new();
        reader.blocks(&addrs, |index, bytes| {
            let Some(layout) = layouts.get(index) else {
                return;
            };
            let next = layouts
                .get(index.saturating_add(1))
                .map_or(self.geometry.end(), |l| l.addr().get());
            let distance = next.saturating_sub(layout.addr().get());
            let header = bytes.ok().and_then(|bytes| header_of(layout.addr(), bytes));
            let skip = header.map_or(0, |header| u64::from(header.skip.get()));
            if skip != distance {
                skips.push((skip, (*layout).clone()));
            }
        });
        skips
    }

    fn load(&mut self, reader: &mut Reader<'_>, mut batch: Vec<Loading>, totals: &mut Option<Totals>) {
        let slices: Vec<(usize, BitmapSlice)> = batch
            .iter()
            .enumerate()
            .flat_map(|(n, loading)| loading.layout.slices().map(move |slice| (n, slice)))
            .collect();
        let addrs: Vec<BlockAddr> = slices.iter().map(|(_, slice)| slice.block).collect();
        reader.blocks(&addrs, |index, bytes| {
            let Some((n, slice)) = slices.get(index) else {
                return;
            };
            let Some(loading) = batch.get_mut(*n) else {
                return;
            };
            let (kind, wanted) = match slice.index {
                0 => (Kind::RgrpHeader, MetaType::Rg),
                _ => (Kind::RgrpBitmap, MetaType::Rb),
            };
            let bits = bytes.map_err(Clone::clone).and_then(|bytes| {
                MetaHeader::check(bytes, slice.block, wanted)?;
                if slice.index == 0 {
                    loading.header = Some(*view::<Rgrp>(bytes, 0, slice.block)?);
                }
                slice.bits(bytes)
            });
            match bits {
                Ok(bits) => {
                    loading.bits.extend_from_slice(bits);
                    loading.good += 1;
                }
                Err(e) => self.error(kind, None, slice.block, &e),
            }
        });
        for loading in batch {
            self.group(loading, totals);
        }
    }

    fn group(&mut self, loading: Loading, totals: &mut Option<Totals>) {
        let layout = &loading.layout;
        let whole = loading.good == layout.length();
        if let Some(header) = &loading.header {
            self.header(layout, loading.next, header);
        }
        let mut free = loading.header.map_or(0, |h| u64::from(h.free.get()));
        let mut dinodes = loading.header.map_or(0, |h| u64::from(h.dinodes.get()));
        if whole {
            let counts = count(&loading.bits);
            let [counted_free, _, unlinked, dinode] = counts;
            let counted_dinodes = unlinked.saturating_add(dinode);
            for (field, stored, counted) in [
                ("rg_free", free, counted_free),
                ("rg_dinodes", dinodes, counted_dinodes),
            ] {
                if stored != counted {
                    let expected = Expected::Value(counted);
                    self.found(Problem::new(
                        Kind::RgrpCount,
                        layout.addr(),
                        field,
                        stored,
                        expected,
                    ));
                }
            }
            (free, dinodes) = (counted_free, counted_dinodes);
        }
        if !whole && loading.header.is_none() {
            *totals = None;
        }
        if let Some(totals) = totals {
            totals.blocks = totals.blocks.saturating_add(u64::from(layout.data()));
            totals.free = totals.free.saturating_add(free);
            totals.dinodes = totals.dinodes.saturating_add(dinodes);
        }
        let bits = whole.then_some(loading.bits.as_slice());
        self.observed.push(loading.layout, bits);
    }

    fn header(&mut self, layout: &RgrpLayout, next: Option<BlockAddr>, header: &Rgrp) {
        let at = layout.addr();
        // Headers from before these fields existed hold zeroes.
        let copies = [
            ("rg_data0", header.data0.get(), layout.data0().get()),
            ("rg_data", u64::from(header.data.get()), u64::from(layout.data())),
            (
                "rg_bitbytes",
                u64::from(header.bitbytes.get()),
                u64::from(layout.data() / 4),
            ),
        ];
        if copies.iter().any(|(_, stored, _)| *stored != 0) {
            for (field, stored, expected) in copies {
                if stored != expected {
                    self.found(Problem::new(
                        Kind::RgrpField,
                        at,
                        field,
                        stored,
                        Expected::Value(expected),
                    ));
                }
            }
        }
        let (stored, crc) = (header.crc.get(), rgrp_crc(header));
        if stored != 0 && stored != crc {
            let expected = Expected::Value(u64::from(crc));
            self.found(Problem::new(
                Kind::RgrpCrc,
                at,
                "rg_crc",
                u64::from(stored),
                expected,
            ));
        }
        let flags = header.flags.get();
        if flags & CORE_FLAGS != 0 {
            let expected = Expected::Value(u64::from(flags & !CORE_FLAGS));
            self.found(Problem::new(
                Kind::RgrpFlags,
                at,
                "rg_flags",
                u64::from(flags),
                expected,
            ));
        }
        // Zero before a group that was added later is what growing leaves.
        let skip = u64::from(header.skip.get());
        let distance = next.map_or(0, |next| next.get().saturating_sub(at.get()));
        if skip != 0 && skip != distance {
            self.found(Problem::new(
                Kind::RgrpSkip,
                at,
                "rg_skip",
                skip,
                Expected::Value(distance),
            ));
        }
    }
}

fn header_of(addr: BlockAddr, bytes: &[u8]) -> Option<Rgrp> {
    MetaHeader::check(bytes, addr, MetaType::Rg).ok()?;
    view::<Rgrp>(bytes, 0, addr).ok().copied()
}

/// Groups are laid out end to end, with at most the rest of a bitmap byte between them.
fn behind(layout: &RgrpLayout) -> impl Iterator<Item = BlockAddr> + use<> {
    let end = layout.end();
    (0..4).filter_map(move |n| end.checked_add(n))
}

/// The group a block belongs to.
fn holder(known: &BTreeMap<BlockAddr, RgrpLayout>, addr: BlockAddr) -> Option<&RgrpLayout> {
    let (_, layout) = known.range(..=addr).next_back()?;
    layout.contains(addr).then_some(layout)
}

/// A known group that overlaps this one.
pub(crate) fn overlap(known: &BTreeMap<BlockAddr, RgrpLayout>, layout: &RgrpLayout) -> Option<BlockAddr> {
    let (_, before) = known.range(..layout.end()).next_back()?;
    (before.end() > layout.addr()).then(|| before.addr())
}

/// How many blocks are in each state.
fn count(bits: &[u8]) -> [u64; 4] {
    let mut counts = [0u64; 4];
    let mut histogram = [0u64; 256];
    for byte in bits {
        if let Some(n) = histogram.get_mut(usize::from(*byte)) {
            *n += 1;
        }
    }
    for (byte, n) in (0u8..=255).zip(histogram) {
        for shift in [0, 2, 4, 6] {
            if let Some(sum) = counts.get_mut(BlockState::from_bits(byte >> shift) as usize) {
                *sum += n;
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_counted() {
        assert_eq!(count(&[0b11_10_01_00, 0, 0b01_01_01_11]), [5, 4, 1, 2]);
    }
}
