//! Dirents in one area: the payload of a linear directory's dinode, or of a leaf.
//!
//! Records tile the area exactly. Only the first may be a sentinel (no entry, space only).

use crate::addr::{BlockAddr, InodeNum};
use crate::error::{Error, Expected, Result};
use crate::ondisk::{DIRENT_SIZE, Dirent, FileType, MAX_NAME, view, view_mut};
use zerocopy::IntoBytes;

/// A checked record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    /// Byte offset in the block.
    pub(super) offset: usize,
    /// Offset of the record before it, if any.
    pub(super) before: Option<usize>,
    pub(super) dirent: &'a Dirent,
    /// The name; empty in a sentinel.
    pub(super) name: &'a [u8],
    /// The whole record without its spare room; empty in a sentinel.
    pub(super) bytes: &'a [u8],
    pub(super) live: bool,
    block: BlockAddr,
}

impl Record<'_> {
    pub(super) fn hash(&self) -> u32 {
        self.dirent.hash.get()
    }

    /// Bytes of the record that its entry needs.
    pub(super) fn used(&self) -> usize {
        if self.live {
            Dirent::record_size(self.name.len())
        } else {
            0
        }
    }

    /// Bytes of the record that another entry may take.
    pub(super) fn spare(&self) -> usize {
        usize::from(self.dirent.rec_len.get()).saturating_sub(self.used())
    }

    pub(super) fn num(&self) -> InodeNum {
        self.dirent.inum.num()
    }

    /// The file type.
    pub(super) fn kind(&self) -> Result<FileType> {
        let raw = self.dirent.de_type.get();
        FileType::from_dirent_type(raw).ok_or_else(|| {
            let expected = Expected::Rule("a file type");
            Error::corrupt(self.block, "dirent", "de_type", u64::from(raw), expected)
        })
    }
}

/// The records of the area that starts at `start`, each checked as the kernel does before it is believed.
pub(super) struct Records<'a> {
    bytes: &'a [u8],
    block: BlockAddr,
    offset: usize,
    before: Option<usize>,
}

pub(super) const fn records(bytes: &[u8], start: usize, block: BlockAddr) -> Records<'_> {
    Records {
        bytes,
        block,
        offset: start,
        before: None,
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.bytes.len() {
            return None;
        }
        let item = self.decode();
        match &item {
            Ok(record) => {
                self.before = Some(record.offset);
                let len = usize::from(record.dirent.rec_len.get());
                self.offset = self.offset.saturating_add(len);
            }
            // Nothing after a bad record can be believed.
            Err(_) => self.offset = usize::MAX,
        }
        Some(item)
    }
}

impl<'a> Records<'a> {
    fn decode(&self) -> Result<Record<'a>> {
        let (bytes, block, offset) = (self.bytes, self.block, self.offset);
        let fail = |field, found: usize, expected| {
            Err(Error::corrupt(block, "dirent", field, found as u64, expected))
        };
        let dirent: &Dirent = view(bytes, offset, block)?;
        let len = usize::from(dirent.rec_len.get());
        let room = bytes.len().saturating_sub(offset);
        if len < DIRENT_SIZE || !len.is_multiple_of(8) || len > room {
            return fail(
                "de_rec_len",
                len,
                Expected::Rule("a multiple of 8 from 40 to the end of the block"),
            );
        }
        let live = !dirent.is_sentinel();
        if !live && self.before.is_some() {
            return fail("de_inum", 0, Expected::Rule("not 0 in any record but the first"));
        }
        let name_len = usize::from(dirent.name_len.get());
        if live && (name_len == 0 || name_len > MAX_NAME || DIRENT_SIZE + name_len > len) {
            let most = MAX_NAME.min(len - DIRENT_SIZE) as u64;
            return fail("de_name_len", name_len, Expected::Range(1, most));
        }
        let name_len = if live { name_len } else { 0 };
        let used = if live {
            Dirent::record_size(name_len).min(len)
        } else {
            0
        };
        let name_start = offset.saturating_add(DIRENT_SIZE);
        Ok(Record {
            offset,
            before: self.before,
            dirent,
            name: bytes
                .get(name_start..name_start.saturating_add(name_len))
                .unwrap_or_default(),
            bytes: bytes.get(offset..offset.saturating_add(used)).unwrap_or_default(),
            live,
            block,
        })
    }
}

/// The record of a name.
pub(super) fn find_name<'a>(
    bytes: &'a [u8],
    start: usize,
    block: BlockAddr,
    name: &[u8],
    hash: u32,
) -> Result<Option<Record<'a>>> {
    for record in records(bytes, start, block) {
        let record = record?;
        if record.live && record.hash() == hash && record.name == name {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

/// The first record with room for `need` more bytes.
pub(super) fn find_room(bytes: &[u8], start: usize, block: BlockAddr, need: usize) -> Result<Option<usize>> {
    for record in records(bytes, start, block) {
        let record = record?;
        if record.spare() >= need {
            return Ok(Some(record.offset));
        }
    }
    Ok(None)
}

/// Live entries of the area.
pub(super) fn count(bytes: &[u8], start: usize, block: BlockAddr) -> Result<u32> {
    let mut live = 0u32;
    for record in records(bytes, start, block) {
        live = live.saturating_add(u32::from(record?.live));
    }
    Ok(live)
}

/// Writes an entry into the spare room of the record at `offset`, which must have enough of it.
pub(super) fn place(
    bytes: &mut [u8],
    offset: usize,
    block: BlockAddr,
    dirent: &Dirent,
    name: &[u8],
) -> Result<()> {
    let old: &mut Dirent = view_mut(bytes, offset, block)?;
    let len = old.rec_len.get();
    let used = if old.is_sentinel() {
        0
    } else {
        Dirent::record_size(usize::from(old.name_len.get())) as u16
    };
    let room = len.saturating_sub(used);
    if used > 0 {
        old.rec_len = used.into();
    }
    let at = offset.saturating_add(usize::from(used));
    write_record(bytes, at, block, dirent, name, room)
}

/// Writes a whole record of `rec_len` bytes.
pub(super) fn write_record(
    bytes: &mut [u8],
    offset: usize,
    block: BlockAddr,
    dirent: &Dirent,
    name: &[u8],
    rec_len: u16,
) -> Result<()> {
    let mut dirent = *dirent;
    dirent.rec_len = rec_len.into();
    dirent.name_len = (name.len() as u16).into();
    let size = Dirent::record_size(name.len());
    let len = bytes.len();
    let room = bytes
        .get_mut(offset..offset.saturating_add(size))
        .filter(|_| usize::from(rec_len) >= size);
    let Some((head, tail)) = room.and_then(|room| room.split_at_mut_checked(DIRENT_SIZE)) else {
        let expected = Expected::Range(offset.saturating_add(size) as u64, u64::MAX);
        return Err(Error::corrupt(
            block,
            "dirent",
            "room in the area",
            len as u64,
            expected,
        ));
    };
    head.copy_from_slice(dirent.as_bytes());
    tail.fill(0);
    tail.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
    Ok(())
}

/// Takes the entry at `offset` out: its room goes to the record before it, or it becomes a sentinel.
pub(super) fn delete(bytes: &mut [u8], offset: usize, before: Option<usize>, block: BlockAddr) -> Result<()> {
    let own: &mut Dirent = view_mut(bytes, offset, block)?;
    let Some(before) = before else {
        own.inum.formal_ino = 0.into();
        own.inum.addr = 0.into();
        return Ok(());
    };
    let len = own.rec_len.get();
    let previous: &mut Dirent = view_mut(bytes, before, block)?;
    // Both lie in one block of at most 64 KiB behind a header.
    previous.rec_len = previous.rec_len.get().saturating_add(len).into();
    Ok(())
}

/// Fills the area with one sentinel.
pub(super) fn clear(bytes: &mut [u8], start: usize, block: BlockAddr) -> Result<()> {
    let room = bytes.len().saturating_sub(start);
    if let Some(area) = bytes.get_mut(start..) {
        area.fill(0);
    }
    let sentinel: &mut Dirent = view_mut(bytes, start, block)?;
    sentinel.rec_len = (room as u16).into();
    Ok(())
}

/// Fills the area with these records (whole ones, as [`Record::bytes`]), packed; the last gets the rest of the
/// room.
pub(super) fn pack(bytes: &mut [u8], start: usize, block: BlockAddr, records: &[&[u8]]) -> Result<()> {
    clear(bytes, start, block)?;
    let mut offset = start;
    for (n, record) in records.iter().enumerate() {
        let rest = bytes.len().saturating_sub(offset);
        let len = if n + 1 == records.len() {
            rest
        } else {
            record.len()
        };
        let len_bytes = bytes.len();
        let end = offset.saturating_add(record.len());
        let Some(room) = bytes.get_mut(offset..end) else {
            let expected = Expected::Range(end as u64, u64::MAX);
            return Err(Error::corrupt(
                block,
                "dirent",
                "room in the area",
                len_bytes as u64,
                expected,
            ));
        };
        room.copy_from_slice(record);
        let dirent: &mut Dirent = view_mut(bytes, offset, block)?;
        dirent.rec_len = (len as u16).into();
        offset = end;
    }
    Ok(())
}
