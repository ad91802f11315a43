//! Names of glocks: lock type and number, as the cluster and the kernel's dumps spell them.
//!
//! Invariant: two nodes that mean the same thing produce the same 24 bytes; nothing else makes resource names.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use dlm_client::{LockError, ResName};

/// Lock types, numbered as on the wire (`lm_lockname.ln_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum LockType {
    /// Locks of the whole filesystem; see [`nondisk`].
    Nondisk = 1,
    /// An inode: dinode, data, metadata, attributes. Number: dinode block.
    Inode = 2,
    /// A resource group: bitmaps and header. Number: header block.
    Rgrp = 3,
    /// Number 0: the superblock.
    Meta = 4,
    /// "This inode is cached here." Number: dinode block.
    Iopen = 5,
    /// flock(2). Number: dinode block.
    Flock = 6,
    /// Reserved for POSIX locks; never used as a glock.
    Plock = 7,
    /// A quota. Number: twice the id, plus one for groups.
    Quota = 8,
    /// Owner of a journal. Number: jid.
    Journal = 9,
}

/// Numbers of the [`LockType::Nondisk`] locks.
pub mod nondisk {
    /// Held while mounting.
    pub const MOUNT: u64 = 0;
    /// Held shared by every mounted node for life; a withdrawing node knocks here.
    pub const LIVE: u64 = 1;
    /// Held shared while not frozen.
    pub const FREEZE: u64 = 2;
    /// Serializes renames between directories.
    pub const RENAME: u64 = 3;
    /// Recovery state of all journals in its LVB; a raw lock, not a glock.
    pub const CONTROL: u64 = 4;
    /// Who is first; a raw lock, not a glock.
    pub const MOUNTED: u64 = 5;
}

impl LockType {
    /// All types.
    pub const ALL: [Self; 9] = [
        Self::Nondisk,
        Self::Inode,
        Self::Rgrp,
        Self::Meta,
        Self::Iopen,
        Self::Flock,
        Self::Plock,
        Self::Quota,
        Self::Journal,
    ];

    /// The number on the wire and in dumps.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The type of a number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.number() == number)
    }

    /// Does a lock value block travel with locks of this type?
    #[must_use]
    pub const fn has_lvb(self) -> bool {
        matches!(self, Self::Inode | Self::Rgrp | Self::Quota)
    }

    /// Does it cover journaled blocks? Such locks are refused after a withdraw.
    #[must_use]
    pub const fn is_journaled(self) -> bool {
        matches!(self, Self::Inode | Self::Rgrp)
    }
}

/// A glock's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GlockName {
    /// Lock type.
    pub ty: LockType,
    /// Number; its meaning depends on the type.
    pub number: u64,
}

/// Numbers below this are usable (a token carries the type in the four bits above); 2^60 blocks of 512 bytes are more
/// than a device can have.
pub const NUMBER_LIMIT: u64 = 1 << 60;

impl GlockName {
    /// A name.
    #[must_use]
    pub const fn new(ty: LockType, number: u64) -> Self {
        Self { ty, number }
    }

    /// The inode lock of a dinode block.
    #[must_use]
    pub const fn inode(block: u64) -> Self {
        Self::new(LockType::Inode, block)
    }

    /// The lock of a resource group.
    #[must_use]
    pub const fn rgrp(block: u64) -> Self {
        Self::new(LockType::Rgrp, block)
    }

    /// The "cached here" lock of a dinode block.
    #[must_use]
    pub const fn iopen(block: u64) -> Self {
        Self::new(LockType::Iopen, block)
    }

    /// A lock of the whole filesystem; numbers in [`nondisk`].
    #[must_use]
    pub const fn nondisk(number: u64) -> Self {
        Self::new(LockType::Nondisk, number)
    }

    /// The lock of a journal.
    #[must_use]
    pub const fn journal(jid: u32) -> Self {
        Self::new(LockType::Journal, jid as u64)
    }

    /// The 24 bytes that name the lock in the cluster: type in 8, number in 16 columns, hexadecimal, right-aligned.
    #[must_use]
    pub fn res_name(&self) -> ResName {
        struct Columns([u8; 24], usize);
        impl fmt::Write for Columns {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                let end = self.1 + text.len();
                self.0
                    .get_mut(self.1..end)
                    .ok_or(fmt::Error)?
                    .copy_from_slice(text.as_bytes());
                self.1 = end;
                Ok(())
            }
        }
        let mut columns = Columns([b' '; 24], 0);
        let written = write!(columns, "{:8x}{:16x}", self.ty.number(), self.number);
        debug_assert!(
            written.is_ok() && columns.1 == 24,
            "8 and 16 columns hold a u8 and a u64"
        );
        ResName::new(&columns.0).unwrap_or_else(|error: LockError| unreachable!("24 bytes: {error}"))
    }

    /// The token of this lock's events, unless the number is out of range.
    #[must_use]
    pub(crate) const fn token(&self) -> Option<u64> {
        if self.number < NUMBER_LIMIT {
            Some(((self.ty as u64) << 60) | self.number)
        } else {
            None
        }
    }

    /// The lock a token belongs to.
    #[must_use]
    pub(crate) fn from_token(token: u64) -> Option<Self> {
        let ty = LockType::from_number(u8::try_from(token >> 60).ok()?)?;
        Some(Self::new(ty, token & (NUMBER_LIMIT - 1)))
    }
}

impl fmt::Display for GlockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:x}", self.ty.number(), self.number)
    }
}

impl fmt::Debug for GlockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not a glock name such as `2/1234` (type decimal, number hexadecimal).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a glock name: expected TYPE/NUMBER, as 2/1234")]
pub struct BadName(String);

impl FromStr for GlockName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let bad = || BadName(text.to_owned());
        let (ty, number) = text.split_once('/').ok_or_else(bad)?;
        let ty = ty.parse().ok().and_then(LockType::from_number).ok_or_else(bad)?;
        let number = u64::from_str_radix(number, 16).map_err(|_| bad())?;
        if number >= NUMBER_LIMIT {
            return Err(bad());
        }
        Ok(Self::new(ty, number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_names_are_the_kernels_24_bytes() {
        let text = |name: GlockName| String::from_utf8(name.res_name().as_bytes().to_vec()).unwrap();
        assert_eq!(
            text(GlockName::nondisk(nondisk::CONTROL)),
            "       1               4"
        );
        assert_eq!(text(GlockName::inode(0x1234)), "       2            1234");
        assert_eq!(text(GlockName::rgrp(u64::MAX)), "       3ffffffffffffffff");
        assert_eq!(text(GlockName::journal(10)), "       9               a");
    }

    #[test]
    fn names_print_and_parse_as_in_the_kernels_dumps() {
        assert_eq!(GlockName::inode(0x1234).to_string(), "2/1234");
        assert_eq!("2/1234".parse(), Ok(GlockName::inode(0x1234)));
        for bad in [
            "",
            "2",
            "2/",
            "0/1",
            "10/1",
            "2/xyz",
            "2/1000000000000000",
            "-2/1",
        ] {
            assert_eq!(bad.parse::<GlockName>(), Err(BadName(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn tokens_round_trip_below_the_limit() {
        for ty in LockType::ALL {
            for number in [0, 1, 0x1234, NUMBER_LIMIT - 1] {
                let name = GlockName::new(ty, number);
                assert_eq!(name.token().and_then(GlockName::from_token), Some(name));
            }
        }
        assert_eq!(GlockName::inode(NUMBER_LIMIT).token(), None);
        assert_eq!(GlockName::from_token(0xf << 60), None);
    }

    #[test]
    fn lvbs_belong_to_inode_rgrp_and_quota() {
        let with: Vec<u8> = LockType::ALL
            .into_iter()
            .filter(|ty| ty.has_lvb())
            .map(LockType::number)
            .collect();
        assert_eq!(with, [2, 3, 8]);
    }
}
