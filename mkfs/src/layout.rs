//! Where every resource group of the volume lies, as arithmetic: no list of groups is kept.
//!
//! Invariants: journals come first, each in a group that holds just it (and what alignment adds); the remaining space
//! is divided into groups of at most two sizes, the larger ones first; groups follow each other without overlap and
//! the last one ends before the device does. A `Layout` exists only if every group has data blocks.
//! Facts: FORMAT.md section 2 (sizing), FEATURES.md 2.2 (order, alignment).

use crate::error::{Error, Result};
use crate::options::{DEFAULT_BLOCK_SIZE, MAX_RGRP_MB, MIN_JOURNAL_MB, Options, Topology};
use crate::plan::Warning;
use gfs2_format::Geometry;

const MIB: u64 = 1 << 20;

/// One resource group. Unit of all numbers: filesystem blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RgrpSpan {
    /// Position among the groups, from 0.
    pub index: u64,
    /// Block of the header.
    pub addr: u64,
    /// Blocks up to the next header.
    pub len: u64,
    /// Header and bitmap blocks.
    pub bitmap_blocks: u32,
    /// First data block.
    pub data0: u64,
    /// Data blocks.
    pub data: u32,
}

impl RgrpSpan {
    fn new(geometry: &Geometry, index: u64, addr: u64, len: u64) -> Result<Self> {
        let (bitmap_blocks, data) = divide(geometry, len).ok_or(Error::NoRoom {
            what: "resource groups",
        })?;
        Ok(Self {
            index,
            addr,
            len,
            bitmap_blocks,
            data0: addr + u64::from(bitmap_blocks),
            data,
        })
    }

    /// First block past the data.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.data0 + self.data as u64
    }
}

/// `ri_length` and `ri_data` of a group of `len` blocks; `None` when nothing is left for data.
fn divide(geometry: &Geometry, len: u64) -> Option<(u32, u32)> {
    let mut blocks = 0;
    while geometry.bitmap_capacity(blocks + 1) < (len.checked_sub(blocks)? & !3) {
        blocks += 1;
    }
    let data = len.checked_sub(blocks + 1)? & !3;
    if geometry.bitmap_capacity(blocks) < data {
        blocks += 1;
    }
    if data == 0 || blocks == 0 {
        return None;
    }
    Some((u32::try_from(blocks).ok()?, u32::try_from(data).ok()?))
}

/// Blocks of a file of `data` blocks stored as one extent: dinode, indirect blocks, data.
pub(crate) fn file_blocks(geometry: &Geometry, data: u64) -> u64 {
    let mut total = data + 1;
    let mut pointers = data;
    while pointers > geometry.diptrs() {
        pointers = pointers.div_ceil(geometry.inptrs());
        total += pointers;
    }
    total
}

/// Blocks of a group that has `data` data blocks.
fn rgrp_blocks(geometry: &Geometry, data: u64) -> u64 {
    let data = data.next_multiple_of(4);
    let beyond = data.saturating_sub(geometry.bitmap_capacity(1));
    1 + beyond.div_ceil(4 * geometry.rb_bitmap_len() as u64) + data
}

/// Groups of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Run {
    len: u64,
    count: u64,
}

/// Alignment of groups in blocks; both zero when there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Alignment {
    /// Lengths are multiples of this, plus `offset`: consecutive groups start on different stripe units.
    width: u64,
    /// Starts are multiples of this.
    offset: u64,
}

impl Alignment {
    fn addr(self, addr: u64) -> u64 {
        if self.offset == 0 {
            addr
        } else {
            addr.next_multiple_of(self.offset)
        }
    }

    fn len(self, len: u64) -> u64 {
        let len = if self.width == 0 {
            len
        } else {
            len.next_multiple_of(self.width)
        };
        len + self.offset
    }
}

/// The resource groups of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    geometry: Geometry,
    alignment: Alignment,
    journals: u64,
    journal_mb: u32,
    journal_data: u64,
    journal_file: u64,
    first: u64,
    runs: [Run; 3],
}

impl Layout {
    /// Chooses block size, journal size and groups.
    ///
    /// # Errors
    /// [`Error`]: what was asked for does not go together, or does not fit.
    pub fn new(options: &Options, topology: &Topology, warnings: &mut Vec<Warning>) -> Result<Self> {
        let mut limits = topology.limits;
        if limits.is_known() && limits.alignment_offset != 0 {
            warnings.push(Warning::Misaligned);
            limits.physical_sector = limits.logical_sector;
        }
        let topology = Topology { limits, ..*topology };
        let bsize = choose_block_size(options, &topology, warnings)?;
        let blocks = choose_blocks(options, topology.size, bsize)?;
        let geometry = Geometry::new(bsize, blocks)?;
        let journal_mb = choose_journal_mb(options, &geometry)?;
        let alignment = choose_alignment(options, &topology, bsize)?;

        let journal_data = u64::from(journal_mb) * MIB / u64::from(bsize);
        let journal_file = file_blocks(&geometry, journal_data);
        let first = alignment.addr(geometry.superblock().get() + 1);
        let journals = Run {
            len: alignment.len(rgrp_blocks(&geometry, journal_file)),
            count: u64::from(options.journals),
        };
        let rest = journals
            .len
            .checked_mul(journals.count)
            .and_then(|n| n.checked_add(first));
        let rest = rest
            .filter(|end| *end <= blocks)
            .ok_or(Error::NoRoom { what: "journals" })?;
        let target = u64::from(options.rgrp_mb) * MIB / u64::from(bsize);
        let [large, small] = divide_space(blocks - rest, target, alignment, &geometry)?;
        let layout = Self {
            geometry,
            alignment,
            journals: journals.count,
            journal_mb,
            journal_data,
            journal_file,
            first,
            runs: [journals, large, small],
        };
        // One group of each size stands for all: a size without data blocks is refused here.
        for run in layout.runs.iter().filter(|run| run.count > 0) {
            RgrpSpan::new(&layout.geometry, 0, 0, run.len)?;
        }
        Ok(layout)
    }

    /// The volume's geometry; its end is the number of blocks asked for, or of the device.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Size of a journal in MiB.
    #[must_use]
    pub fn journal_mb(&self) -> u32 {
        self.journal_mb
    }

    /// How many journals, each in its own group: the groups from 0 on.
    #[must_use]
    pub fn journals(&self) -> u64 {
        self.journals
    }

    /// Blocks of a journal's log.
    #[must_use]
    pub fn journal_data(&self) -> u64 {
        self.journal_data
    }

    /// Blocks of a journal: dinode, indirect blocks, log.
    #[must_use]
    pub fn journal_file(&self) -> u64 {
        self.journal_file
    }

    /// How many resource groups, those of the journals included.
    #[must_use]
    pub fn rgrps(&self) -> u64 {
        self.runs.iter().map(|run| run.count).sum()
    }

    /// Stripe width and unit in blocks that groups are aligned to.
    #[must_use]
    pub fn alignment(&self) -> Option<(u64, u64)> {
        (self.alignment != Alignment::default()).then_some((self.alignment.width, self.alignment.offset))
    }

    /// The group of that index, if there is one.
    #[must_use]
    pub fn rgrp(&self, index: u64) -> Option<RgrpSpan> {
        let mut addr = self.first;
        let mut left = index;
        for run in self.runs {
            if left < run.count {
                return RgrpSpan::new(&self.geometry, index, addr + left * run.len, run.len).ok();
            }
            left -= run.count;
            addr += run.count * run.len;
        }
        None
    }

    /// First block past the last group's data: the size of the filesystem.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.rgrps()
            .checked_sub(1)
            .and_then(|last| self.rgrp(last))
            .map_or(self.first, |rgrp| rgrp.end())
    }

    /// Data blocks of all groups.
    #[must_use]
    pub fn total_data(&self) -> u64 {
        let data = |run: &Run| divide(&self.geometry, run.len).map_or(0, |(_, data)| u64::from(data));
        self.runs
            .iter()
            .filter(|run| run.count > 0)
            .map(|run| run.count * data(run))
            .sum()
    }

    /// Blocks from a group's header on that are written whatever they are used for: when groups are aligned, whole
    /// stripes.
    pub(crate) fn head_blocks(&self, rgrp: &RgrpSpan) -> u64 {
        let head = u64::from(rgrp.bitmap_blocks);
        if self.alignment.width == 0 {
            head
        } else {
            head.next_multiple_of(self.alignment.width).min(rgrp.len)
        }
    }

    /// First block past the previous group's data (or past the superblock): what lies between there and the group's
    /// header belongs to nobody and is zeroed.
    pub(crate) fn gap_start(&self, index: u64) -> u64 {
        index
            .checked_sub(1)
            .and_then(|previous| self.rgrp(previous))
            .map_or(self.geometry.superblock().get() + 1, |previous| previous.end())
    }
}

fn choose_block_size(options: &Options, topology: &Topology, warnings: &mut Vec<Warning>) -> Result<u32> {
    let limits = &topology.limits;
    let max = topology.max_block_size;
    let suits = |size: u64| (u64::from(DEFAULT_BLOCK_SIZE)..=u64::from(max)).contains(&size);
    let bsize = match options.block_size {
        Some(bsize) => bsize,
        None if limits.is_known() => [limits.optimal_io, limits.physical_sector]
            .into_iter()
            .find(|size| suits(*size))
            .and_then(|size| u32::try_from(size).ok())
            .unwrap_or(DEFAULT_BLOCK_SIZE),
        None => DEFAULT_BLOCK_SIZE,
    };
    if !bsize.is_power_of_two() || !(512..=max).contains(&bsize) {
        return Err(Error::BlockSize { found: bsize, max });
    }
    if u64::from(bsize) < limits.logical_sector {
        let sector = limits.logical_sector;
        return Err(Error::BelowSector { bsize, sector });
    }
    if u64::from(bsize) < limits.physical_sector {
        let physical = limits.physical_sector;
        warnings.push(Warning::Inefficient { bsize, physical });
    }
    Ok(bsize)
}

fn choose_blocks(options: &Options, size: u64, bsize: u32) -> Result<u64> {
    let device = size / u64::from(bsize);
    let wanted = options.blocks.unwrap_or(device);
    if wanted > device {
        return Err(Error::BiggerThanDevice {
            wanted,
            device,
            gib: crate::plan::gib(size),
        });
    }
    Ok(wanted)
}

/// The default grows with the blocks there are per journal; a size the user gives may fill half of the device.
fn choose_journal_mb(options: &Options, geometry: &Geometry) -> Result<u32> {
    let bsize = u64::from(geometry.bsize());
    let blocks = geometry.end();
    let journals = options.journals;
    if let Some(mb) = options.journal_mb {
        // The original multiplies in 32 bits. Kept: without it, volumes of several large journals that users of the
        // original can make would be refused. Whether they fit is checked when the groups are placed.
        let bytes = mb.wrapping_mul(journals).wrapping_shl(20);
        if u64::from(bytes) / bsize > blocks / 2 {
            let most = (blocks / 2).saturating_mul(bsize) / u64::from(journals) / MIB;
            let max_mb = u32::try_from(most).ok().filter(|most| *most >= MIN_JOURNAL_MB);
            return Err(Error::JournalsWillNotFit { journals, max_mb });
        }
        return Ok(mb);
    }
    let smallest = u64::from(MIN_JOURNAL_MB) * MIB / bsize;
    let per_journal = blocks / u64::from(journals);
    if per_journal < 2 * smallest {
        return Err(Error::WillNotFit {
            journals,
            need: 2 * smallest * u64::from(journals),
            have: blocks,
        });
    }
    // Steps in blocks, whatever the block size.
    let wanted = match per_journal {
        0..131_072 => smallest,
        131_072..524_288 => 4096,
        524_288..2_097_152 => 8192,
        2_097_152..4_194_304 => 16_384,
        4_194_304..268_435_456 => 32_768,
        268_435_456..2_684_354_560 => 131_072,
        _ => 262_144,
    };
    let mb = u32::try_from(wanted * bsize / MIB).unwrap_or(u32::MAX);
    Ok(mb.max(MIN_JOURNAL_MB))
}

fn choose_alignment(options: &Options, topology: &Topology, bsize: u32) -> Result<Alignment> {
    let bs = u64::from(bsize);
    let limits = &topology.limits;
    if !options.align {
        return Ok(Alignment::default());
    }
    if let Some(stripe) = options.stripe {
        if stripe.unit == 0 || !stripe.unit.is_multiple_of(bs) {
            let unit = stripe.unit;
            return Err(Error::StripeUnit { unit, bsize });
        }
        if !stripe.width.is_multiple_of(stripe.unit) {
            return Err(Error::StripeWidth {
                width: stripe.width,
                unit: stripe.unit,
            });
        }
        return Ok(Alignment {
            width: stripe.width / bs,
            offset: stripe.unit / bs,
        });
    }
    let physical = limits.physical_sector;
    if limits.optimal_io <= physical
        || limits.minimum_io <= physical
        || !limits.optimal_io.is_multiple_of(limits.minimum_io)
    {
        // No stripes, or values that cannot be stripes.
        return Ok(Alignment::default());
    }
    let alignment = Alignment {
        width: limits.optimal_io / bs,
        offset: limits.minimum_io / bs,
    };
    if alignment.offset != 0 && !alignment.width.is_multiple_of(alignment.offset) {
        let (width, unit) = (limits.optimal_io, limits.minimum_io);
        return Err(Error::StripeWidth { width, unit });
    }
    Ok(alignment)
}

/// Divides `space` blocks into groups of about `target` blocks: as many as fit plus one, made smaller until they do,
/// so that none is tiny; where that does not come out even, some are smaller by one step than the others.
fn divide_space(space: u64, target: u64, alignment: Alignment, geometry: &Geometry) -> Result<[Run; 2]> {
    let max = u64::from(MAX_RGRP_MB) * MIB / u64::from(geometry.bsize());
    let too_wide = Error::StripeTooWide {
        width: alignment.width + alignment.offset,
    };
    let no_room = Error::NoRoom {
        what: "resource groups",
    };
    let mut target = target;
    let mut large = Run {
        len: alignment.len(target),
        count: 0,
    };
    while large.len > max {
        // Alignment pushed it over the limit.
        target = target.checked_sub(alignment.width + 1).ok_or(too_wide.clone())?;
        large.len = alignment.len(target);
    }
    large.count = space.checked_div(large.len).ok_or(too_wide)?;
    // The original multiplies in 32 bits here: of 2^32 blocks and more it always sees a remainder.
    let covered = (large.count * large.len) & u64::from(u32::MAX);
    let mut small = Run::default();
    if space - covered > alignment.width {
        let step = alignment.width.max(1);
        large.count += 1;
        while (large.len.checked_sub(step).ok_or(no_room.clone())?) * large.count >= space {
            large.len -= step;
        }
        small.len = large.len - step;
        while large.len * large.count + small.len * small.count >= space && large.count > 0 {
            large.count -= 1;
            small.count += 1;
        }
    }
    if large.count + small.count == 0 {
        return Err(no_room);
    }
    Ok([large, small])
}

#[cfg(test)]
mod tests;
