//! Walks the records of a directory block, tolerant of everything but a length that leads nowhere.

use gfs2_format::BlockAddr;
use gfs2_format::ondisk::{DIRENT_SIZE, Dirent, view};

/// A step of the walk.
#[derive(Debug)]
pub(crate) enum Record<'a> {
    /// A live entry.
    Entry {
        /// Its fixed part.
        dirent: &'a Dirent,
        /// Its name.
        name: &'a [u8],
    },
    /// A live entry whose name does not fit its record.
    BadName {
        /// `de_name_len`.
        name_len: u16,
        /// Most it may be.
        room: usize,
    },
    /// A record other than the first without an inode.
    Empty,
    /// A length that leads nowhere: the walk ends.
    BadLength {
        /// `de_rec_len`.
        rec_len: u16,
        /// Bytes that are left of the block.
        left: usize,
    },
}

/// See the module documentation.
#[derive(Clone, Debug)]
pub(crate) struct Area<'a> {
    bytes: &'a [u8],
    block: BlockAddr,
    first: usize,
    at: usize,
}

impl<'a> Area<'a> {
    /// The records of `bytes` (block `block`) from byte `first` on.
    pub(crate) const fn new(bytes: &'a [u8], block: BlockAddr, first: usize) -> Self {
        Self {
            bytes,
            block,
            first,
            at: first,
        }
    }
}

impl<'a> Iterator for Area<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        loop {
            let offset = self.at;
            let left = self.bytes.len().checked_sub(offset).filter(|left| *left > 0)?;
            let Ok(dirent) = view::<Dirent>(self.bytes, offset, self.block) else {
                self.at = self.bytes.len();
                return Some(Record::BadLength { rec_len: 0, left });
            };
            let rec_len = usize::from(dirent.rec_len.get());
            if rec_len < DIRENT_SIZE || !rec_len.is_multiple_of(8) || rec_len > left {
                self.at = self.bytes.len();
                let rec_len = dirent.rec_len.get();
                return Some(Record::BadLength { rec_len, left });
            }
            self.at = offset.saturating_add(rec_len);
            if dirent.is_sentinel() {
                if offset == self.first {
                    continue;
                }
                return Some(Record::Empty);
            }
            let name_len = usize::from(dirent.name_len.get());
            let start = offset.saturating_add(DIRENT_SIZE);
            let room = (rec_len - DIRENT_SIZE).min(gfs2_format::ondisk::MAX_NAME);
            let name = self.bytes.get(start..start.saturating_add(name_len));
            return Some(match name.filter(|_| (1..=room).contains(&name_len)) {
                Some(name) => Record::Entry { dirent, name },
                None => Record::BadName {
                    name_len: dirent.name_len.get(),
                    room,
                },
            });
        }
    }
}
