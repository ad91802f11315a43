//! The changes of a run, and how they reach the device.
//!
//! They are kept in an overlay and written in an order that leaves the volume no worse at any moment: first the
//! superblock with a lock protocol nobody can mount; then the new blocks, which nothing points to; then the bitmaps
//! with every block marked that was or will be in use; then everything that points to blocks; then the bitmaps as
//! they are to be; last the superblock as it is to be. The device is flushed between these steps. A crash half-way
//! leaves a volume that has to be checked before it is mounted, and on which no block in use is marked free.
//!
//! Invariant: nothing but the guard (and the rings of journals, behind it) is written before [`Changes::write`].

use super::ledger::Ledger;
use gfs2_format::bitmap::{BitmapSlice, RgrpLayout, find_rgrp};
use gfs2_format::device::{BlockDevice, OverlayDevice};
use gfs2_format::geometry::SUPERBLOCK_OFFSET;
use gfs2_format::ondisk::Superblock;
use gfs2_format::{BlockAddr, Error, Geometry};
use zerocopy::IntoBytes;

/// Bytes of the superblock that are read and written.
const SB_BYTES: usize = 4096;
/// Largest granule of the overlay: a block of the largest size.
const GRANULE_MAX: u64 = 65536;

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Changes<'a> {
    overlay: OverlayDevice<&'a dyn BlockDevice>,
    granule: u64,
    limit: u64,
    /// The superblock on the device says that a check is under way.
    guarded: bool,
    /// The superblock before the guard.
    original: Option<Vec<u8>>,
}

impl<'a> Changes<'a> {
    /// No changes yet; they may take `limit` bytes.
    pub(crate) fn new(device: &'a dyn BlockDevice, bsize: u32, limit: u64) -> Result<Self, Error> {
        let granule = bsize.max(device.sector_size());
        Ok(Self {
            overlay: OverlayDevice::new(device, granule, limit)?,
            granule: u64::from(granule),
            limit,
            guarded: false,
            original: None,
        })
    }

    /// Goes on with a granule that suits the volume's blocks; what is changed stays changed.
    pub(crate) fn rebase(&mut self, bsize: u32) -> Result<(), Error> {
        let device = *self.overlay.base();
        let granule = bsize.max(device.sector_size());
        if u64::from(granule) == self.granule {
            return Ok(());
        }
        let overlay = OverlayDevice::new(device, granule, self.limit)?;
        for (offset, len) in self.overlay.changed_ranges() {
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            self.overlay.read_at(offset, &mut bytes)?;
            overlay.write_at(offset, &bytes)?;
        }
        self.overlay = overlay;
        self.granule = u64::from(granule);
        Ok(())
    }

    /// Is there more than the superblock that ends a guard?
    pub(crate) fn has_repairs(&self) -> bool {
        self.overlay.changed_bytes() > if self.guarded { self.granule } else { 0 }
            || (self.guarded && self.superblock_differs())
    }

    /// The superblock is another one than before the guard.
    fn superblock_differs(&self) -> bool {
        let mut now = vec![0; SB_BYTES];
        let read = self.overlay.read_at(SUPERBLOCK_OFFSET, &mut now);
        read.is_err() || self.original.as_ref().is_some_and(|before| *before != now)
    }

    pub(crate) const fn is_guarded(&self) -> bool {
        self.guarded
    }

    /// The volume with the changes.
    pub(crate) fn overlay(&self) -> &OverlayDevice<&'a dyn BlockDevice> {
        &self.overlay
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.overlay.changed_bytes() == 0
    }

    /// The changed ranges as (byte offset, length).
    pub(crate) fn ranges(&self) -> Vec<(u64, u64)> {
        self.overlay.changed_ranges()
    }

    /// Bytes that are changed.
    pub(crate) fn size(&self) -> u64 {
        self.overlay.changed_bytes()
    }

    /// Most of the memory is in use: what is there should be written before more is added.
    pub(crate) fn is_filling(&self) -> bool {
        self.overlay.changed_bytes() >= self.limit / 2
    }

    /// Makes the volume one that no node mounts, until the changes are written.
    pub(crate) fn guard(&mut self) -> Result<(), Error> {
        if self.guarded {
            return Ok(());
        }
        let device = *self.overlay.base();
        let mut bytes = vec![0; SB_BYTES];
        device.read_at(SUPERBLOCK_OFFSET, &mut bytes)?;
        let Ok(superblock) = Superblock::decode(&bytes) else {
            // Nobody mounts what has no superblock.
            return Ok(());
        };
        let mut kept = vec![0; SB_BYTES];
        self.overlay.read_at(SUPERBLOCK_OFFSET, &mut kept)?;
        self.overlay.write_at(SUPERBLOCK_OFFSET, &kept)?;
        self.original = Some(bytes.clone());
        let mut guarded = superblock;
        guarded.lockproto = guard_name(&superblock.lockproto());
        bytes
            .iter_mut()
            .zip(guarded.as_bytes())
            .for_each(|(to, from)| *to = *from);
        device.write_at(SUPERBLOCK_OFFSET, &bytes)?;
        device.flush()?;
        self.guarded = true;
        Ok(())
    }

    /// Takes the guard away again, when nothing else is to be written.
    pub(crate) fn unguard(&mut self) -> Result<(), Error> {
        if self.guarded {
            let device = *self.overlay.base();
            let mut bytes = vec![0; SB_BYTES];
            self.overlay.read_at(SUPERBLOCK_OFFSET, &mut bytes)?;
            device.write_at(SUPERBLOCK_OFFSET, &bytes)?;
            device.flush()?;
            self.guarded = false;
        }
        Ok(())
    }

    /// Writes the changes. `groups`: the resource groups as they are now.
    pub(crate) fn write(
        &mut self,
        geometry: &Geometry,
        groups: &[RgrpLayout],
        ledger: &mut Ledger,
    ) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        self.guard()?;
        self.mark_all(geometry, groups)?;
        let shift = geometry.bsize_shift();
        let sb = SUPERBLOCK_OFFSET / self.granule;
        let rank = |offset: u64| {
            let (first, count) = (offset >> shift, (self.granule >> shift).max(1));
            let blocks = (first..first.saturating_add(count)).map(BlockAddr::new);
            let rank_of = |block: BlockAddr| match find_rgrp(groups, block).and_then(|n| groups.get(n)) {
                _ if ledger.is_new(block) => 0,
                Some(group) if !group.contains_data(block) => 2,
                _ => 1,
            };
            if offset / self.granule == sb {
                3
            } else {
                blocks.map(rank_of).max().unwrap_or(1)
            }
        };
        self.overlay.commit(rank)?;
        self.guarded = false;
        ledger.written();
        Ok(())
    }

    /// Marks in the bitmaps on the device what was or will be in use.
    fn mark_all(&self, geometry: &Geometry, groups: &[RgrpLayout]) -> Result<(), Error> {
        let device = *self.overlay.base();
        let shift = geometry.bsize_shift();
        let mut wrote = false;
        for (offset, len) in self.overlay.changed_ranges() {
            for block in (offset >> shift)..(offset.saturating_add(len) >> shift) {
                let block = BlockAddr::new(block);
                let group = find_rgrp(groups, block).and_then(|n| groups.get(n));
                let slice = group
                    .filter(|group| !group.contains_data(block))
                    .and_then(|group| {
                        let index = block.get().saturating_sub(group.addr().get());
                        group.slice(u32::try_from(index).ok()?)
                    });
                if let Some(slice) = slice {
                    wrote |= self.mark(device, geometry, block, &slice)?;
                }
            }
        }
        if wrote { device.flush() } else { Ok(()) }
    }

    fn mark(
        &self,
        device: &dyn BlockDevice,
        geometry: &Geometry,
        block: BlockAddr,
        slice: &BitmapSlice,
    ) -> Result<bool, Error> {
        let at = geometry.byte_offset(block);
        let mut before = vec![0; geometry.block_len().max(device.sector_size() as usize)];
        let mut after = before.clone();
        // Of sectors larger than a block only whole ones can be written.
        let start = at - at % before.len() as u64;
        let skip = usize::try_from(at - start).unwrap_or(0);
        device.read_at(start, &mut before)?;
        self.overlay.read_at(start, &mut after)?;
        let (Some(old), Some(new)) = (
            before.get(skip..skip.saturating_add(geometry.block_len())),
            after.get(skip..skip.saturating_add(geometry.block_len())),
        ) else {
            return Ok(false);
        };
        if slice.check_block(old).is_err() || slice.check_block(new).is_err() {
            // It was no bitmap so far: nobody can have used it.
            return Ok(false);
        }
        let union = union(slice.bits(old)?, slice.bits(new)?);
        if union == slice.bits(old)? {
            return Ok(false);
        }
        let from = skip.saturating_add(slice.offset);
        let target = before.get_mut(from..from.saturating_add(union.len()));
        target
            .unwrap_or_default()
            .iter_mut()
            .zip(&union)
            .for_each(|(to, from)| *to = *from);
        device.write_at(start, &before)?;
        Ok(true)
    }
}

/// The state of each block as it will be, unless that is free: then as it was.
fn union(old: &[u8], new: &[u8]) -> Vec<u8> {
    old.iter()
        .zip(new)
        .map(|(old, new)| {
            let used = (new | new >> 1) & 0x55;
            let mask = used | used << 1;
            new | old & !mask
        })
        .collect()
}

/// `lock_dlm` becomes `fsck_dlm`.
fn guard_name(lockproto: &str) -> [u8; 64] {
    let rest = lockproto.strip_prefix("lock_").unwrap_or("nolock");
    let name = match lockproto.starts_with("fsck_") {
        true => lockproto.to_owned(),
        false => format!("fsck_{rest}"),
    };
    let mut field = [0; 64];
    // The last byte stays zero.
    field
        .iter_mut()
        .zip(name.bytes())
        .take(63)
        .for_each(|(to, from)| *to = from);
    field
}

const _: () = assert!(GRANULE_MAX == SUPERBLOCK_OFFSET);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_or_will_be_used_is_marked() {
        let (old, new) = ([0b00_01_10_11], [0b11_00_01_11]);
        assert_eq!(union(&old, &new), vec![0b11_01_01_11]);
        assert_eq!(union(&[0xff, 0], &[0, 0xff]), vec![0xff, 0xff]);
    }

    #[test]
    fn a_guarded_volume_has_no_protocol_of_a_mount() {
        let name = |proto| String::from_utf8(guard_name(proto).to_vec()).unwrap();
        assert_eq!(name("lock_dlm").trim_end_matches('\0'), "fsck_dlm");
        assert_eq!(name("fsck_dlm").trim_end_matches('\0'), "fsck_dlm");
        assert_eq!(name("").trim_end_matches('\0'), "fsck_nolock");
    }
}
