//! `struct gfs2_ea_header`.

use super::{EA_HEADER_SIZE, OnDisk};
use zerocopy::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `GFS2_EAFLAG_LAST`: last record of its block.
pub const EA_FLAG_LAST: u8 = 1;

/// `struct gfs2_ea_header`: 16 bytes; name, then value or value pointers follow.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct EaHeader {
    /// `ea_rec_len`: bytes to the next record.
    pub rec_len: U32,
    /// `ea_data_len`: bytes of the value.
    pub data_len: U32,
    /// `ea_name_len`: bytes of the name, without prefix.
    pub name_len: u8,
    /// `ea_type`.
    pub ea_type: u8,
    /// `ea_flags`.
    pub flags: u8,
    /// `ea_num_ptrs`: 0 when the value stands in the record.
    pub num_ptrs: u8,
    /// `__pad`.
    pub pad: U32,
}

const _: () = assert!(size_of::<EaHeader>() == EA_HEADER_SIZE);

impl OnDisk for EaHeader {
    const NAME: &'static str = "ea_header";
}

/// `ea_type`: the name space of an xattr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum EaType {
    /// Unused record.
    Unused = 0,
    /// `user.`.
    User = 1,
    /// `system.`: ACLs.
    System = 2,
    /// `security.`.
    Security = 3,
    /// `trusted.`: format 1802 only.
    Trusted = 4,
}

impl EaType {
    /// From `ea_type`.
    #[must_use]
    pub const fn from_raw(raw: u8) -> Option<Self> {
        Some(match raw {
            0 => Self::Unused,
            1 => Self::User,
            2 => Self::System,
            3 => Self::Security,
            4 => Self::Trusted,
            _ => return None,
        })
    }

    /// The prefix of the full name, with its dot; empty for `Unused`.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Unused => "",
            Self::User => "user.",
            Self::System => "system.",
            Self::Security => "security.",
            Self::Trusted => "trusted.",
        }
    }

    /// Splits a full name into its space and the name as stored.
    #[must_use]
    pub fn split_name(full: &[u8]) -> Option<(Self, &[u8])> {
        [Self::User, Self::System, Self::Security, Self::Trusted]
            .into_iter()
            .find_map(|space| {
                full.strip_prefix(space.prefix().as_bytes())
                    .map(|name| (space, name))
            })
    }
}
