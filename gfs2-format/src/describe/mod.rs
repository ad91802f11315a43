//! Describes every on-disk structure and field as data: name, place, size, meaning.
//!
//! One table drives dumps, the damage language of the tests and the units in texts. Names are those of
//! `include/uapi/linux/gfs2_ondisk.h`; nested structures are flattened with a dot where a name would repeat.
//! Invariant (tested): the fields of a structure tile it exactly, and its size is that of its zerocopy type.

mod tables;
mod value;

pub use tables::STRUCTURES;
pub use value::Value;

use crate::ondisk::{MAGIC, MetaHeader, MetaType};
use zerocopy::FromBytes;

/// What the bytes of a field mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number without unit.
    Number,
    /// A two's complement number.
    Signed,
    /// A number better read in hexadecimal: magic, checksums, hashes.
    Hex,
    /// A number of bytes.
    Bytes,
    /// A number of filesystem blocks.
    Blocks,
    /// A two's complement number of filesystem blocks.
    SignedBlocks,
    /// The absolute number of a filesystem block; 0 is none.
    Pointer,
    /// A block of a journal, counted from its start.
    JournalBlock,
    /// A formal inode number.
    FormalIno,
    /// A journal id.
    Jid,
    /// A POSIX mode, with the type bits.
    Mode,
    /// Seconds since 1970, two's complement.
    Seconds,
    /// Nanoseconds of the second.
    Nanoseconds,
    /// One of these values.
    Names(&'static [(u64, &'static str)]),
    /// A set of these bits.
    Flags(&'static [(u64, &'static str)]),
    /// Text up to the first NUL.
    Text,
    /// 16 bytes of a UUID.
    Uuid,
    /// Ignored on read and zero on write.
    Reserved,
}

impl Kind {
    /// The unit of the numbers of this kind, for texts; empty when there is none.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Blocks | Self::SignedBlocks => "blocks",
            Self::Pointer => "block number",
            Self::JournalBlock => "journal block",
            Self::Seconds => "s",
            Self::Nanoseconds => "ns",
            _ => "",
        }
    }
}

/// One field of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name with its prefix.
    pub name: &'static str,
    /// Byte offset in the structure.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
    /// What it means.
    pub kind: Kind,
}

/// One structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structure {
    /// Its short name, as errors spell it.
    pub name: &'static str,
    /// Its name in the kernel's header file; empty when it has none there.
    pub c_name: &'static str,
    /// Size in bytes.
    pub size: usize,
    /// The type in the meta header it begins with, if it begins with one.
    pub block_type: Option<MetaType>,
    /// Its fields by offset.
    pub fields: &'static [Field],
}

impl Structure {
    /// The field of that name; the part behind a dot is enough when no other field ends in it.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        if let Some(field) = self.fields.iter().find(|f| f.name == name) {
            return Some(field);
        }
        let mut ending = self
            .fields
            .iter()
            .filter(|f| f.name.rsplit_once('.').is_some_and(|(_, last)| last == name));
        match (ending.next(), ending.next()) {
            (Some(field), None) => Some(field),
            _ => None,
        }
    }
}

/// The structure of that short or C name.
#[must_use]
pub fn structure(name: &str) -> Option<&'static Structure> {
    STRUCTURES
        .iter()
        .find(|s| s.name == name || (!s.c_name.is_empty() && s.c_name == name))
}

/// The structure a block of that type begins with.
#[must_use]
pub fn structure_of_type(kind: MetaType) -> Option<&'static Structure> {
    STRUCTURES.iter().find(|s| s.block_type == Some(kind))
}

/// The structure a block's bytes say they begin with; `None` without the magic or with an unknown type.
#[must_use]
pub fn structure_of_block(bytes: &[u8]) -> Option<&'static Structure> {
    let (header, _) = MetaHeader::ref_from_prefix(bytes).ok()?;
    if header.magic.get() != MAGIC {
        return None;
    }
    MetaType::from_raw(header.mh_type.get()).and_then(structure_of_type)
}

#[cfg(test)]
mod tests;
