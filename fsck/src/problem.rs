//! What a check can find: a closed list, each with its class, its code in the damage catalogue, and its text.
//!
//! The only place with text about damage. Every finding names the inode, the block, what was found and what was
//! expected; classes: a warning changes no exit code, an error does, a fatal one ends the check because everything
//! after it would be a false alarm.

use gfs2_format::{BlockAddr, Corrupt, Expected};
use std::fmt;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Worth telling; the volume is not damaged.
    Warning,
    /// Damage.
    Error,
    /// Damage that makes a further check meaningless.
    Fatal,
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident, $code:literal, $class:ident, $text:literal;)*) => {
        /// The findings.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Kind {
            $($(#[doc = $doc])+ $name,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its code in the damage catalogue.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)*
                }
            }

            /// Its class.
            #[must_use]
            pub const fn class(self) -> Class {
                match self {
                    $(Self::$name => Class::$class,)*
                }
            }

            /// What it means.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

kinds! {
    /// No usable superblock.
    Superblock, "S1", Fatal, "the superblock cannot be used";
    /// The lock protocol was changed by a checker that did not finish.
    LockProtocol, "S5", Error, "the lock protocol's name was left behind by an interrupted check";

    /// The master directory is not where the superblock says.
    MasterDir, "T1", Fatal, "the master directory cannot be used";
    /// The root directory is not where the superblock says.
    RootDir, "T2", Fatal, "the root directory cannot be used";
    /// A system file is missing.
    SystemFileMissing, "T3", Error, "a system file is missing";
    /// The resource index is missing or cannot be read.
    Rindex, "T3", Error, "the resource index cannot be used";
    /// A system file's type, size or content is wrong.
    SystemFile, "T4", Error, "a system file is not what it should be";
    /// A file of `per_node` is missing.
    PerNodeMissing, "T4", Error, "a file of a node is missing";
    /// A block of a quota change file has no header.
    QuotaChangeBlock, "T4", Error, "a block of a quota change file has no quota change header";
    /// A system file without the system flag.
    SystemFlag, "T5", Error, "a system file lacks the system flag";
    /// The master statfs file disagrees with the resource groups.
    Statfs, "T6", Error, "the statfs file disagrees with the resource groups";
    /// A clean node's statfs change is not zero.
    LocalStatfs, "T7", Warning, "a statfs change that no journal accounts for: totals will drift at the next sync";

    /// A resource group header is none.
    RgrpHeader, "G1", Error, "the block is no resource group header";
    /// A bitmap block is none.
    RgrpBitmap, "G2", Error, "the block is no bitmap block";
    /// An entry of the resource index contradicts itself, the volume or its neighbour.
    RindexEntry, "G3", Error, "an entry of the resource index is wrong";
    /// A resource group that the index does not know.
    RindexMissing, "G4", Error, "a resource group is not in the resource index";
    /// The resource index is no whole number of entries.
    RindexSize, "G5", Error, "the resource index is no whole number of entries";
    /// `rg_free` or `rg_dinodes` disagrees with the bitmap.
    RgrpCount, "G6", Error, "a count of the resource group disagrees with its bitmap";
    /// A field of the header disagrees with the index.
    RgrpField, "G7", Error, "the resource group header disagrees with the resource index";
    /// `rg_crc` does not match.
    RgrpCrc, "G7", Error, "the checksum of the resource group header is wrong";
    /// `rg_skip` does not lead to the next group.
    RgrpSkip, "G7", Error, "the distance to the next resource group is wrong";
    /// Flags that are never stored.
    RgrpFlags, "G7", Warning, "flags that belong in memory only are stored";
    /// An inode in state unlinked: a crash (or a cluster node) left it undeleted.
    Unlinked, "G8", Error, "an unlinked inode was never deleted";

    /// A journal has to be replayed.
    JournalDirty, "J1", Error, "the journal is dirty";
    /// A journal has fewer than two valid headers.
    JournalHead, "J2", Error, "the journal has too few valid log headers";
    /// Two headers of a journal have the same sequence.
    JournalSequence, "J3", Error, "the journal's sequence numbers contradict each other";
    /// A journal's dinode is wrong.
    JournalInode, "J4", Error, "the journal's inode is wrong";
    /// The journal's active part contradicts itself or points outside the volume.
    JournalReplay, "J5", Error, "the journal cannot be replayed";
    /// The journal index has a gap or no journal.
    Jindex, "J8", Error, "the journal index is not journal0, journal1, ... without a gap";

    /// An inode's own address is wrong.
    DinodeAddress, "I1", Error, "the inode's own address is wrong";
    /// An inode's formal number is zero.
    DinodeFormal, "I1", Error, "the inode's formal number is zero";
    /// A mode of no known file type.
    DinodeMode, "I2", Error, "the mode has no valid file type";
    /// `di_blocks` disagrees with what the inode owns.
    DinodeBlocks, "I3", Error, "the inode's block count is wrong";
    /// The goal block lies outside the volume.
    DinodeGoal, "I4", Error, "the inode's goal block lies outside the volume";
    /// Height or depth out of range, or not that of the tree.
    DinodeHeight, "I5", Error, "the inode's height or depth is wrong";
    /// Size and layout contradict each other.
    DinodeSize, "I5", Error, "the inode's size contradicts its layout";
    /// Flags and layout contradict each other.
    DinodeFlags, "I5", Error, "the inode's flags contradict its layout";
    /// A pointer that leads nowhere.
    Pointer, "I6", Error, "the pointer leads outside every resource group's blocks";
    /// A block of an inode's tree has the wrong type.
    IndirectType, "I6", Error, "the block is no indirect block";
    /// A block in use is not marked so.
    NotMarked, "I7", Error, "the bitmap says something else of a block in use";
    /// A block marked used that nothing uses.
    Leaked, "I7", Error, "blocks are marked used, but nothing uses them";
    /// An inode that the bitmap does not call one.
    DinodeNotMarked, "I7", Error, "the bitmap does not say that this is an inode";
    /// Marked as an inode, but none.
    NotADinode, "I8", Error, "the bitmap says inode, but the block is none";
    /// A truncate has to be finished.
    TruncateInProgress, "I9", Warning, "a truncate was interrupted; the next use of the inode finishes it";

    /// A data block with several owners.
    Duplicate, "U1", Error, "the block is used more than once";
    /// A metadata block with several owners.
    DuplicateMetadata, "U2", Error, "the block is used more than once, as metadata too";
    /// An xattr block with several owners.
    DuplicateXattr, "U4", Error, "the block is used more than once, for extended attributes too";
    /// More of them than are listed.
    DuplicateMany, "U5", Error, "further blocks are used more than once";

    /// An xattr block is none.
    EaBlock, "X1", Error, "the block is no extended attribute block";
    /// A record does not end where the block does.
    EaRecord, "X2", Error, "the length of an extended attribute record is wrong";
    /// A live record without a name.
    EaName, "X3", Error, "an extended attribute has no name";
    /// An unknown name space.
    EaType, "X4", Error, "an extended attribute is of an unknown type";
    /// Too few or too many value blocks.
    EaPointers, "X5", Error, "an extended attribute's pointers do not fit its length";
    /// The last record is not the last.
    EaLast, "X6", Error, "the last extended attribute record is not marked so";
    /// A pointer to a value block is wrong.
    EaPointer, "X7", Error, "an extended attribute's pointer leads nowhere";
    /// A pointer behind the end of the list of xattr blocks.
    EaGap, "X8", Error, "an extended attribute block behind the end of its list cannot be found";

    /// No ".".
    DotMissing, "D1", Error, "the entry \".\" is missing or there twice";
    /// "." leads elsewhere.
    DotTarget, "D1", Error, "the entry \".\" does not lead to its own directory";
    /// No "..".
    DotdotMissing, "D2", Error, "the entry \"..\" is missing or there twice";
    /// An entry that leads to no inode.
    EntryTarget, "D3", Error, "the entry leads to a block that is no inode";
    /// An entry of an earlier inode of that block.
    EntryFormal, "D4", Error, "the entry's formal number is not the inode's";
    /// An entry of the wrong type.
    EntryType, "D5", Error, "the entry's type is not the inode's";
    /// The hash is not the name's.
    EntryHash, "D6", Error, "the entry's hash is not that of its name";
    /// A record's lengths are wrong.
    EntryRecord, "D7", Error, "a directory record's length or number is wrong";
    /// A name that no name can be.
    EntryName, "D7", Error, "the name holds a slash or a zero byte";
    /// A second entry for a directory.
    SecondLink, "D8", Error, "the directory has a second entry";
    /// `di_entries` is wrong.
    EntryCount, "D9", Error, "the directory's entry count is wrong";
    /// A slot of the hash table leads nowhere, or a leaf's span is not aligned.
    HashTable, "D10", Error, "the directory's hash table is wrong";
    /// A leaf's depth does not fit its span.
    LeafDepth, "D11", Error, "the leaf's depth does not fit its part of the hash table";
    /// An entry in a leaf its hash does not lead to. Where it belongs may have no room: then that leaf is split (D16).
    LeafPlace, "D12", Error, "the entry is in a leaf that its hash does not lead to";
    /// A leaf that is none.
    LeafBlock, "D13", Error, "the block is no leaf";
    /// A chain of leaves that leads nowhere.
    LeafNext, "D13", Error, "the chain of leaves leads nowhere or back";
    /// `lf_entries` is wrong.
    LeafCount, "D14", Error, "the leaf's entry count is wrong";
    /// The table's size does not fit the depth.
    TableSize, "D15", Error, "the directory's size does not fit its depth";
    /// A block of the hash table is none.
    HashBlock, "D10", Error, "the block is no block of a hash table";
    /// A pointer of the hash table's tree behind the end of the table.
    TableEnd, "D10", Error, "a pointer behind the end of the directory's hash table leads to no hash block";
    /// The format of a leaf's entries is unknown.
    LeafFormat, "D17", Error, "the format of the leaf's entries is unknown";
    /// A name twice.
    DuplicateName, "D18", Error, "the name is in the directory twice";

    /// A directory that no entry leads to.
    Unreachable, "C1", Error, "the directory cannot be reached";
    /// A directory that no entry leads to, and with nothing in it.
    EmptyDirectory, "C3", Error, "the directory cannot be reached and holds nothing";
    /// No entry leads to the inode, and what it points to is damaged.
    BadOrphan, "C4", Error, "no entry leads to the inode, and blocks of it are damaged";
    /// ".." leads elsewhere.
    DotdotTarget, "C2", Error, "the entry \"..\" does not lead to the parent";

    /// The link count is wrong.
    LinkCount, "L1", Error, "the link count is wrong";
    /// No entry leads to the inode.
    Orphan, "L2", Error, "no entry leads to the inode";

    /// No entry leads to the inode, and there is nothing in it.
    EmptyOrphan, "L3", Error, "no entry leads to the inode, which is empty";

    /// A block the device cannot read.
    Unreadable, "E1", Error, "the block cannot be read";
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What it is.
    pub kind: Kind,
    /// The inode concerned, if there is one.
    pub inode: Option<BlockAddr>,
    /// A path of that inode, where one is known: from the root, or `master:` and a path from the master directory.
    pub path: Option<Box<[u8]>>,
    /// The block where it stands; the first one when `blocks` is more than one.
    pub block: BlockAddr,
    /// So many consecutive blocks share it.
    pub blocks: u64,
    /// The field as spelled in `gfs2_ondisk.h`, or what else holds the value found.
    pub field: &'static str,
    /// Which of the block's pointers it is, counted from 0, where it is one.
    pub place: Option<u64>,
    /// Another inode concerned.
    pub other: Option<BlockAddr>,
    /// A path of that one.
    pub other_path: Option<Box<[u8]>>,
    /// The name concerned: of an entry, a system file, an attribute.
    pub name: Option<Box<[u8]>>,
    /// What was found.
    pub found: u64,
    /// What was expected.
    pub expected: Expected,
}

impl Problem {
    /// A finding in one block, without inode and name.
    #[must_use]
    pub const fn new(
        kind: Kind,
        block: BlockAddr,
        field: &'static str,
        found: u64,
        expected: Expected,
    ) -> Self {
        Self {
            kind,
            inode: None,
            path: None,
            block,
            blocks: 1,
            field,
            place: None,
            other: None,
            other_path: None,
            name: None,
            found,
            expected,
        }
    }

    /// From what a decoder says.
    #[must_use]
    pub const fn from_corrupt(kind: Kind, corrupt: &Corrupt) -> Self {
        Self::new(
            kind,
            corrupt.block,
            corrupt.field,
            corrupt.found,
            corrupt.expected,
        )
    }

    /// Of this inode.
    #[must_use]
    pub const fn of(mut self, inode: BlockAddr) -> Self {
        self.inode = Some(inode);
        self
    }

    /// Of this name.
    #[must_use]
    pub fn named(mut self, name: &[u8]) -> Self {
        self.name = Some(name.into());
        self
    }

    /// In this one of the block's pointers.
    #[must_use]
    pub const fn at(mut self, place: u64) -> Self {
        self.place = Some(place);
        self
    }

    /// Of so many blocks.
    #[must_use]
    pub const fn spanning(mut self, blocks: u64) -> Self {
        self.blocks = blocks;
        self
    }

    /// The blocks it is about, as numbers.
    pub(crate) fn range(&self) -> std::ops::Range<u64> {
        let start = self.block.get();
        start..start.saturating_add(self.blocks)
    }

    /// Does `next` say the same of the block after this one?
    pub(crate) fn continued_by(&self, next: &Self) -> bool {
        self.kind == next.kind
            && self.inode == next.inode
            && self.other == next.other
            && self.name == next.name
            && self.field == next.field
            && self.place == next.place
            && self.found == next.found
            && self.expected == next.expected
            && self.block.checked_add(self.blocks) == Some(next.block)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.kind.code())?;
        if let Some(inode) = self.inode {
            match &self.path {
                Some(path) => write!(f, "inode {inode} ({}): ", path.escape_ascii())?,
                None => write!(f, "inode {inode}: ")?,
            }
        }
        match self.block.checked_add(self.blocks.saturating_sub(1)) {
            Some(last) if self.blocks > 1 => write!(f, "blocks {} to {last}: ", self.block)?,
            _ => write!(f, "block {}: ", self.block)?,
        }
        if let Some(name) = &self.name {
            write!(f, "\"{}\": ", name.escape_ascii())?;
        }
        write!(f, "{}: {}", self.kind.text(), self.field)?;
        if let Some(place) = self.place {
            write!(f, " {place}")?;
        }
        write!(f, " is {}, expected {}", self.found, self.expected)?;
        match (self.other, &self.other_path) {
            (Some(other), Some(path)) => write!(f, " (other inode: {other}, {})", path.escape_ascii()),
            (Some(other), None) => write!(f, " (other inode: {other})"),
            (None, _) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_inode_block_name_found_and_expected() {
        let at = BlockAddr::new(500);
        let problem = Problem::new(Kind::EntryHash, at, "de_hash", 7, Expected::Value(8))
            .of(BlockAddr::new(400))
            .named(b"a\"b\xff");
        assert_eq!(
            problem.to_string(),
            "D6: inode 400: block 500: \"a\\\"b\\xff\": the entry's hash is not that of its name: \
             de_hash is 7, expected 8 (0x8)"
        );
        let placed = Problem {
            path: Some((*b"/a b/\n").into()),
            ..problem
        };
        assert!(
            placed
                .to_string()
                .starts_with("D6: inode 400 (/a b/\\n): block 500: ")
        );
        let beyond = Problem::new(Kind::TableEnd, at, "pointer", 7, Expected::Value(0)).at(97);
        assert!(
            beyond
                .to_string()
                .ends_with(": pointer 97 is 7, expected 0 (0x0)")
        );
        let leaked = Problem::new(Kind::Leaked, at, "block state", 1, Expected::Value(0)).spanning(10);
        assert!(leaked.to_string().starts_with("I7: blocks 500 to 509: "));
    }

    #[test]
    fn runs_continue_only_the_same_finding() {
        let new = |block, found| {
            Problem::new(
                Kind::Leaked,
                BlockAddr::new(block),
                "block state",
                found,
                Expected::Value(0),
            )
        };
        assert!(new(5, 1).continued_by(&new(6, 1)));
        assert!(new(5, 1).spanning(3).continued_by(&new(8, 1)));
        assert!(!new(5, 1).continued_by(&new(7, 1)));
        assert!(!new(5, 1).continued_by(&new(6, 2)));
        assert!(!new(5, 1).continued_by(&new(6, 1).of(BlockAddr::new(1))));
    }
}
