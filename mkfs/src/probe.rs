//! Recognises what is on a device already, so that the user can be warned.
//!
//! Invariants: reads a few fixed places, never more; knows only signatures that can hardly occur by chance; names are
//! those of libblkid. An answer is a hint for a question, nothing is decided by it.

use gfs2_format::Result;
use gfs2_format::device::BlockDevice;
use std::collections::BTreeMap;
use std::fmt;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A filesystem, or a member of a volume manager's set.
    Filesystem(&'static str),
    /// A partition table.
    PartitionTable(&'static str),
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filesystem(name) => write!(f, "It appears to contain an existing filesystem ({name})"),
            Self::PartitionTable(name) => write!(f, "It appears to contain a partition table ({name})."),
        }
    }
}

/// Bytes that stand at one place.
struct Magic {
    name: &'static str,
    offset: u64,
    bytes: &'static [u8],
}

const fn magic(name: &'static str, offset: u64, bytes: &'static [u8]) -> Magic {
    Magic { name, offset, bytes }
}

/// Volume managers and encryption come first: what lies inside them is not this device's.
const MAGICS: &[Magic] = &[
    magic("linux_raid_member", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    magic("linux_raid_member", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    magic("LVM2_member", 24, b"LVM2 001"),
    magic("LVM2_member", 512 + 24, b"LVM2 001"),
    magic("LVM2_member", 1024 + 24, b"LVM2 001"),
    magic("LVM2_member", 1536 + 24, b"LVM2 001"),
    magic("crypto_LUKS", 0, b"LUKS\xba\xbe"),
    magic("BitLocker", 3, b"-FVE-FS-"),
    magic("VMFS_volume_member", 1 << 20, &[0x0d, 0xd0, 0x01, 0xc0]),
    magic(
        "bcache",
        4096 + 24,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
    ),
    magic(
        "bcachefs",
        4096 + 24,
        b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef",
    ),
    magic("swap", 4096 - 10, b"SWAPSPACE2"),
    magic("swap", 16384 - 10, b"SWAPSPACE2"),
    magic("swap", 65536 - 10, b"SWAPSPACE2"),
    magic("swap", 4096 - 10, b"SWAP-SPACE"),
    magic("swsuspend", 4096 - 10, b"S1SUSPEND"),
    magic("xfs", 0, b"XFSB"),
    magic("btrfs", 65536 + 64, b"_BHRfS_M"),
    magic("ocfs2", 1024, b"OCFSV2"),
    magic("ocfs2", 2048, b"OCFSV2"),
    magic("ocfs2", 4096, b"OCFSV2"),
    magic("ocfs2", 8192, b"OCFSV2"),
    magic("ntfs", 3, b"NTFS    "),
    magic("exfat", 3, b"EXFAT   "),
    magic("vfat", 82, b"FAT32   "),
    magic("vfat", 54, b"FAT16   "),
    magic("vfat", 54, b"FAT12   "),
    magic("f2fs", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    magic("erofs", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    magic("squashfs", 0, b"hsqs"),
    magic("squashfs", 0, b"sqsh"),
    magic("cramfs", 0, &[0x45, 0x3d, 0xcd, 0x28]),
    magic("romfs", 0, b"-rom1fs-"),
    magic("iso9660", 32769, b"CD001"),
    magic("udf", 32769 + 2048, b"NSR0"),
    magic("jfs", 32768, b"JFS1"),
    magic("reiserfs", 65536 + 52, b"ReIsEr"),
    magic("reiserfs", 8192 + 52, b"ReIsEr"),
    magic("nilfs2", 1024 + 6, &[0x34, 0x34]),
    magic("hfsplus", 1024, &[b'H', b'+', 0, 4]),
    magic("hfsplus", 1024, &[b'H', b'X', 0, 5]),
    magic("apfs", 32, b"NXSB"),
    magic("ufs", 8192 + 1372, &[0x54, 0x19, 0x01, 0x00]),
    magic("ufs", 65536 + 1372, &[0x19, 0x01, 0x54, 0x19]),
];

/// Looks for a filesystem, then for a partition table.
///
/// # Errors
/// The device's.
pub fn probe(device: &dyn BlockDevice) -> Result<Option<Found>> {
    if device.is_blank() {
        return Ok(None);
    }
    let mut reader = Reader {
        device,
        pages: BTreeMap::new(),
    };
    for magic in MAGICS {
        if reader.has(magic.offset, magic.bytes)? {
            return Ok(Some(Found::Filesystem(magic.name)));
        }
    }
    for find in [find_raid_at_end, find_zfs, find_gfs, find_ext] {
        if let Some(name) = find(&mut reader)? {
            return Ok(Some(Found::Filesystem(name)));
        }
    }
    Ok(find_partition_table(&mut reader)?.map(Found::PartitionTable))
}

const PAGE: u64 = 4096;

/// Reads whole pages, each once.
struct Reader<'a> {
    device: &'a dyn BlockDevice,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Reader<'_> {
    fn page(&mut self, number: u64) -> Result<&[u8]> {
        if !self.pages.contains_key(&number) {
            let start = number * PAGE;
            let len = PAGE.min(self.device.size().saturating_sub(start));
            let mut bytes = vec![0; len as usize];
            self.device.read_at(start, &mut bytes)?;
            self.pages.insert(number, bytes);
        }
        Ok(&self.pages[&number])
    }

    /// `N` bytes, which must not straddle pages; `None` beyond the device's end.
    fn bytes<const N: usize>(&mut self, offset: u64) -> Result<Option<[u8; N]>> {
        if offset
            .checked_add(N as u64)
            .is_none_or(|end| end > self.device.size())
        {
            return Ok(None);
        }
        let at = (offset % PAGE) as usize;
        let page = self.page(offset / PAGE)?;
        Ok(page.get(at..at + N).and_then(|bytes| bytes.try_into().ok()))
    }

    fn has(&mut self, offset: u64, expected: &[u8]) -> Result<bool> {
        if offset >= self.device.size() {
            return Ok(false);
        }
        let at = (offset % PAGE) as usize;
        let page = self.page(offset / PAGE)?;
        Ok(page.get(at..).is_some_and(|rest| rest.starts_with(expected)))
    }

    fn le32(&mut self, offset: u64) -> Result<u32> {
        Ok(self.bytes(offset)?.map_or(0, u32::from_le_bytes))
    }

    fn be32(&mut self, offset: u64) -> Result<u32> {
        Ok(self.bytes(offset)?.map_or(0, u32::from_be_bytes))
    }
}

/// Superblocks of versions 0.90 and 1.0 are near the end.
fn find_raid_at_end(reader: &mut Reader<'_>) -> Result<Option<&'static str>> {
    let size = reader.device.size();
    let old = (size & !0xffff).checked_sub(0x10000);
    let new = (size / 512).checked_sub(16).map(|sector| (sector & !7) * 512);
    for offset in old.into_iter().chain(new) {
        if reader.le32(offset)? == 0xa92b_4efc {
            return Ok(Some("linux_raid_member"));
        }
    }
    Ok(None)
}

/// Uberblocks, of either endianness; the first label's are 1 KiB apart at least. One alone may be left over.
fn find_zfs(reader: &mut Reader<'_>) -> Result<Option<&'static str>> {
    let mut seen = 0;
    for n in 0..128 {
        let offset = (128 << 10) + n * 1024;
        let word = reader.bytes::<8>(offset)?.map_or(0, u64::from_le_bytes);
        seen += u32::from(word == 0x00ba_b10c || word.swap_bytes() == 0x00ba_b10c);
    }
    Ok((seen >= 4).then_some("zfs_member"))
}

fn find_gfs(reader: &mut Reader<'_>) -> Result<Option<&'static str>> {
    let magic = gfs2_format::ondisk::MAGIC;
    if reader.be32(65536)? != magic || reader.be32(65536 + 4)? != 1 {
        return Ok(None);
    }
    Ok(match (reader.be32(65536 + 24)?, reader.be32(65536 + 28)?) {
        (1309, 1401) => Some("gfs"),
        (1801..=1899, 1900) => Some("gfs2"),
        _ => None,
    })
}

/// ext2, ext3 and ext4 differ in the features they use.
fn find_ext(reader: &mut Reader<'_>) -> Result<Option<&'static str>> {
    const SB: u64 = 1024;
    if !reader.has(SB + 56, &[0x53, 0xef])? {
        return Ok(None);
    }
    let has_journal = reader.le32(SB + 92)? & 0x4 != 0;
    let incompatible = reader.le32(SB + 96)?;
    let read_only = reader.le32(SB + 100)?;
    // What ext3 knows: file types, recovery needed, meta block groups; sparse superblocks, large files, btree dirs.
    let is_new = incompatible & !0x16 != 0 || read_only & !0x7 != 0;
    Ok(Some(match (incompatible & 0x8 != 0, is_new, has_journal) {
        (true, _, _) => "jbd",
        (_, true, _) => "ext4",
        (_, _, true) => "ext3",
        _ => "ext2",
    }))
}

fn find_partition_table(reader: &mut Reader<'_>) -> Result<Option<&'static str>> {
    let sector = u64::from(reader.device.sector_size());
    for offset in [512, sector, 4096] {
        if reader.has(offset, b"EFI PART")? {
            return Ok(Some("gpt"));
        }
    }
    if reader.has(512, b"PM\0\0")? {
        return Ok(Some("mac"));
    }
    if !reader.has(510, &[0x55, 0xaa])? {
        return Ok(None);
    }
    let mut used = false;
    for n in 0..4 {
        let Some(entry) = reader.bytes::<16>(446 + n * 16)? else {
            return Ok(None);
        };
        if !matches!(entry[0], 0 | 0x80) {
            return Ok(None);
        }
        used |= entry[4] != 0;
    }
    Ok(used.then_some("dos"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs2_format::device::MemDevice;

    fn found(size: u64, writes: &[(u64, &[u8])]) -> Option<Found> {
        let device = MemDevice::new(size);
        for (offset, bytes) in writes {
            device.write_at(*offset, bytes).unwrap();
        }
        probe(&device).unwrap()
    }

    #[test]
    fn every_signature_is_found_where_it_stands() {
        for magic in MAGICS {
            let name = found(4 << 20, &[(magic.offset, magic.bytes)]);
            assert_eq!(name, Some(Found::Filesystem(magic.name)), "at {}", magic.offset);
        }
    }

    #[test]
    fn an_empty_device_is_empty_whatever_its_size() {
        for size in [
            0,
            1,
            511,
            512,
            1000,
            4096,
            65536,
            65537,
            131_072,
            1 << 20,
            (1 << 20) + 7,
        ] {
            assert_eq!(found(size, &[]), None, "{size}");
        }
    }

    #[test]
    fn our_own_volumes_are_gfs2() {
        let device = MemDevice::new(48 << 20);
        crate::format(&device, &crate::Options::nolock()).unwrap();
        assert_eq!(probe(&device).unwrap(), Some(Found::Filesystem("gfs2")));
    }

    #[test]
    fn ext_filesystems_are_told_apart() {
        let magic: (u64, &[u8]) = (1080, &[0x53, 0xef]);
        let journal: (u64, &[u8]) = (1024 + 92, &[4]);
        let extents: (u64, &[u8]) = (1024 + 96, &[0x42]);
        let named = |writes: &[(u64, &[u8])]| found(1 << 20, writes);
        assert_eq!(named(&[magic]), Some(Found::Filesystem("ext2")));
        assert_eq!(named(&[magic, journal]), Some(Found::Filesystem("ext3")));
        assert_eq!(named(&[magic, journal, extents]), Some(Found::Filesystem("ext4")));
    }

    #[test]
    fn raid_zfs_and_partition_tables_are_found() {
        let raid = Some(Found::Filesystem("linux_raid_member"));
        let md: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];
        assert_eq!(found(1 << 20, &[((1 << 20) - 65536, md)]), raid);
        assert_eq!(found(1 << 20, &[((1 << 20) - 8192, md)]), raid);
        let uber: &[u8] = &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0];
        let ubers: Vec<(u64, &[u8])> = (0..4).map(|n| ((128 << 10) + n * 1024, uber)).collect();
        assert_eq!(found(1 << 20, &ubers), Some(Found::Filesystem("zfs_member")));
        assert_eq!(found(1 << 20, &ubers[..3]), None);
        let boot: (u64, &[u8]) = (510, &[0x55, 0xaa]);
        assert_eq!(found(1 << 20, &[boot]), None);
        assert_eq!(
            found(1 << 20, &[boot, (450, &[0x83])]),
            Some(Found::PartitionTable("dos"))
        );
        assert_eq!(found(1 << 20, &[boot, (450, &[0x83]), (446, &[1])]), None);
        assert_eq!(
            found(1 << 20, &[boot, (450, &[0xee]), (512, b"EFI PART")]),
            Some(Found::PartitionTable("gpt"))
        );
    }
}
