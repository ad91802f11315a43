//! The cases: one lie each, and the exact set of findings it must bring.

use super::Map;
use gfs2_format::ondisk::{BlockState, name_hash};
use gfs2_fsck::Kind::{self, *};
use std::fmt::Write;

pub(crate) const IMAGE: &str = "clean1k";

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) script: fn(&Map<'_>) -> String,
    pub(crate) finds: &'static [Kind],
}

macro_rules! cases {
    ($($name:literal: $map:pat => $script:expr => [$($kind:ident),*];)*) => {
        &[$(Case { name: $name, script: |$map| ($script).into(), finds: &[$($kind),*] },)*]
    };
}

/// The first leaf of a hashed directory whose table is in its dinode, and the first of its second half.
fn halves(map: &Map<'_>, path: &str) -> (u64, u64) {
    let dir = map.path(path);
    (map.top(dir, 0), map.top(dir, 63))
}

/// D16: entries in leaves they do not belong to, and no room where they do: those leaves have to be split first.
fn full_leaves_swapped(map: &Map<'_>) -> String {
    let table = map.top(map.path("big"), 0);
    let slots: Vec<u64> = (0..64).map(|n| map.pointer(table, n)).collect();
    let entries = |leaf: u64| {
        let block = map.block(leaf);
        u16::from_be_bytes([block[26], block[27]])
    };
    let most = slots.iter().map(|leaf| entries(*leaf)).max().unwrap();
    let spans: Vec<&[u64]> = slots.chunk_by(|a, b| a == b).collect();
    let mut at = 0;
    let mut best = (0, 0, 0, 0);
    for pair in spans.windows(2) {
        let ([one, ..], [other, ..]) = (pair[0], pair[1]) else {
            panic!("an empty span");
        };
        let both = entries(*one) + entries(*other);
        // The span at the end of what was looked at may go on behind it.
        if pair[0].len() == pair[1].len() && at + 2 * pair[0].len() < slots.len() && both > best.0 {
            best = (both, at, pair[0].len(), *one);
        }
        at += pair[0].len();
    }
    let (both, start, len, one) = best;
    assert!(both > most, "{both} entries would fit a leaf of {most}");
    let other = slots[start + len];
    (0..2 * len).fold(String::new(), |mut script, n| {
        let leaf = if n < len { other } else { one };
        let _ = writeln!(script, "set pointer(block {table}, {}) = {leaf}", start + n);
        script
    })
}

pub(crate) const CASES: &[Case] = cases! {
    "no block size": _ => "set sb.sb_bsize = 1000" => [Superblock];
    "no magic": _ => "set sb.mh_magic = 0" => [Superblock];
    "interrupted check": _ => "set sb.sb_lockproto = fsck_nolock" => [LockProtocol];
    "master lost": m => format!("zero block {}", m.volume.system.master) => [MasterDir];
    "root lost": m => format!("zero block {}", m.volume.system.root) => [RootDir];
    "inum renamed": m => poke_name(m, m.master(""), b"inum", b"inux") => [SystemFileMissing, EntryHash];
    "rindex renamed": m => poke_name(m, m.master(""), b"rindex", b"rindey") => [SystemFileMissing, Rindex, EntryHash];
    "statfs too short": _ => "set dinode(master:/statfs).di_size = 3" => [SystemFile];
    "statfs too long": _ => "set dinode(master:/statfs).di_size = 700" => [SystemFile];
    "inum too long": _ => "set dinode(master:/inum).di_size = 700" => [SystemFile];
    "a node's numbers too long": _ => "set dinode(master:/per_node/inum_range0).di_size = 700" => [SystemFile];
    "a node's statfs too long": _ => "set dinode(master:/per_node/statfs_change1).di_size = 700" => [SystemFile];
    "a node's file renamed": m => poke_name(m, m.master("per_node"), b"inum_range1", b"inum_rangeX")
        => [PerNodeMissing, EntryHash];
    "quota change header": m => format!("zero block {}", m.pointer(m.top(m.master("per_node/quota_change0"), 0), 0))
        => [QuotaChangeBlock];
    "no system flag": _ => "set dinode(master:/inum).di_flags = JDATA" => [SystemFlag];
    "statfs": _ => "set statfs.sc_free = 5" => [Statfs];
    "local statfs": _ => "set statfs_change(0).sc_free = 5" => [LocalStatfs];

    "rgrp header": m => format!("zero block {}", m.groups()[1].addr()) => [RgrpHeader];
    "rgrp bitmap": m => format!("zero block {}", m.groups()[2].addr().get() + 1) => [RgrpBitmap];
    "rindex data": _ => "set rindex(2).ri_data = 7" => [RindexEntry];
    "rindex address": _ => "set rindex(1).ri_addr = 7" => [RindexEntry];
    "rindex twice": m => format!("set rindex(1).ri_addr = {0}\nset rindex(1).ri_data0 = {1}", m.groups()[0].addr(),
        m.groups()[0].addr().get() + u64::from(m.groups()[0].length())) => [RindexEntry];
    "rindex short": _ => "set dinode(master:/rindex).di_size = 192" => [RindexMissing];
    "rindex odd": _ => "set dinode(master:/rindex).di_size = 300" => [RindexSize];
    "rgrp free": _ => "set rgrp(1).rg_free = 5, fix crc" => [RgrpCount];
    "rgrp dinodes": _ => "set rgrp(2).rg_dinodes = 5, fix crc" => [RgrpCount];
    "rgrp data0": _ => "set rgrp(1).rg_data0 = 5, fix crc" => [RgrpField];
    "rgrp crc": _ => "set rgrp(1).rg_crc = 5" => [RgrpCrc];
    "rgrp skip": _ => "set rgrp(0).rg_skip = 77, fix crc" => [RgrpSkip];
    "rgrp flags": _ => "set rgrp(0).rg_flags = 0x80000000, fix crc" => [RgrpFlags];
    "unlinked, but there": m => format!("bitmap block {} = unlinked", m.path("names/a"))
        => [Unlinked, EntryTarget];

    "dirty journal": _ => "set log_header(journal 0 block 1966).lh_flags = 0, fix crc" => [JournalDirty];
    "no log headers": _ => (0..8192).fold(String::new(), |mut script, n| {
        let _ = writeln!(script, "zero journal 1 block {n}");
        script
    }) => [JournalHead];
    "sequence twice": m => {
        let sequence = u64::from_be_bytes(m.block(m.volume.journals[1].map.address(
            gfs2_format::JournalBlock::new(4)).unwrap().get())[24..32].try_into().unwrap());
        format!("set log_header(journal 1 block 5).lh_sequence = {sequence}, fix crc")
    } => [JournalSequence];
    "journal size": _ => "set dinode(master:/jindex/journal1).di_size = 8388609" => [JournalInode];
    "journal tail": _ => "set log_header(journal 0 block 1966).lh_flags = 0\n\
        set log_header(journal 0 block 1966).lh_tail = 99999, fix crc" => [JournalDirty, JournalReplay];
    "dirty journal, sequence twice": m => {
        let map = &m.volume.journals[0].map;
        let at = map.address(gfs2_format::JournalBlock::new(1966)).unwrap().get();
        let sequence = u64::from_be_bytes(m.block(at)[24..32].try_into().unwrap());
        format!("set log_header(journal 0 block 1966).lh_flags = 0, fix crc\n\
            copy journal 0 block 1966 to journal 0 block 1990\n\
            set log_header(journal 0 block 1990).lh_blkno = 1990\n\
            set log_header(journal 0 block 1990).lh_sequence = {sequence}, fix crc")
    } => [JournalDirty, JournalSequence];
    "journal renamed": m => poke_name(m, m.master("jindex"), b"journal1", b"journal7") => [Jindex, EntryHash];

    "own address": _ => "set dinode(/names/a).no_addr = 5" => [DinodeAddress];
    "formal number": _ => "set dinode(/names/a).no_formal_ino = 0" => [DinodeFormal, EntryFormal];
    "mode": _ => "set dinode(/names/a).di_mode = 0" => [DinodeMode];
    "blocks": _ => "set dinode(/names/a).di_blocks = 9" => [DinodeBlocks];
    "blocks of a hashed directory": _ => "set dinode(/big).di_blocks = 9" => [DinodeBlocks];
    "blocks of xattrs": _ => "set dinode(/xattr/f3).di_blocks = 9" => [DinodeBlocks];
    "goal": _ => "set dinode(/names/a).di_goal_meta = 0" => [DinodeGoal];
    "height": _ => "set dinode(/names/a).di_height = 9" => [DinodeHeight];
    "depth": _ => "set dinode(/names/a).di_depth = 18" => [DinodeHeight];
    "size": _ => "set dinode(/names/a).di_size = 5000" => [DinodeSize];
    "size of a directory": _ => "set dinode(/names).di_size = 288" => [DinodeSize];
    "directory of no size": _ => "set dinode(/data/topdir).di_size = 0" => [DinodeSize];
    "symlink": _ => "set dinode(/links/soft).di_size = 0" => [DinodeSize];
    "flags": _ => "set dinode(/names/a).di_flags = EA_INDIRECT" => [DinodeFlags];
    "directory flags": _ => "set dinode(/names).di_flags = 0" => [DinodeFlags];
    "pointer": _ => "set pointer(/data/f4k, 1) = 99999999" => [Pointer, Leaked, DinodeBlocks];
    "pointer to a bitmap": m => format!("set pointer(/data/f4k, 1) = {}", m.groups()[2].addr())
        => [Pointer, Leaked, DinodeBlocks];
    "indirect block": m => format!("zero block {}", m.top(m.path("data/f3m"), 0))
        => [IndirectType, Leaked, DinodeBlocks];
    "indirect block to itself": m => {
        let indirect = m.top(m.path("data/f3m"), 0);
        format!("set pointer(block {indirect}, 3) = {indirect}")
    } => [DuplicateMetadata, Leaked];
    "block free": m => format!("bitmap block {} = free", m.top(m.path("data/f4k"), 1))
        => [NotMarked, RgrpCount, Statfs];
    "block leaked": m => format!("bitmap block {} = used", m.blank(BlockState::Free))
        => [Leaked, RgrpCount, Statfs];
    "inode marked used": m => format!("bitmap block {} = used", m.path("names/a"))
        => [DinodeNotMarked, RgrpCount, Statfs];
    "directory marked free": m => format!("bitmap block {} = free", m.path("deep/d1/d2"))
        => [DinodeNotMarked, RgrpCount, Statfs];
    "root marked used": m => format!("bitmap block {} = used", m.path(""))
        => [DinodeNotMarked, RgrpCount, Statfs];
    "no inode": m => format!("bitmap block {} = dinode", m.blank(BlockState::Free))
        => [NotADinode, RgrpCount, Statfs];
    "truncate": _ => "set dinode(/data/f4k).di_flags = TRUNC_IN_PROG" => [TruncateInProgress];

    "indirect block as data": m => format!("set pointer(/data/f4k, 1) = {}", m.top(m.path("data/f3m"), 0))
        => [DuplicateMetadata, Leaked, DinodeBlocks];
    "data of two files": m => format!("set pointer(/data/f4k, 1) = {}", m.top(m.path("data/jd"), 3))
        => [Duplicate, Leaked];
    "xattr block as data": m => format!("set pointer(/data/f4k, 1) = {}", m.eattr(m.path("xattr/f1")))
        => [DuplicateXattr, Leaked];
    "inode as data": m => format!("set pointer(/data/f4k, 1) = {}", m.path("names/a"))
        => [NotMarked, Leaked];

    "xattr block": m => format!("zero block {}", m.eattr(m.path("xattr/f1"))) => [EaBlock];
    "xattr record": m => format!("set ea_header(block {} at 24).ea_rec_len = 4", m.eattr(m.path("xattr/f1")))
        => [EaRecord];
    "xattr name": m => format!("set ea_header(block {} at 24).ea_name_len = 0", m.eattr(m.path("xattr/f1")))
        => [EaName];
    "xattr type": m => format!("set ea_header(block {} at 24).ea_type = 9", m.eattr(m.path("xattr/f1")))
        => [EaType];
    "xattr pointers": m => {
        let (block, at) = big_xattr(m);
        format!("set ea_header(block {block} at {at}).ea_data_len = 1")
    } => [EaPointers];
    "xattr last": m => {
        let block = m.eattr(m.path("xattr/f1"));
        let last = *m.ea_records(block).last().unwrap();
        format!("set ea_header(block {block} at {last}).ea_flags = 0")
    } => [EaLast];
    "xattr value": m => {
        let (block, at) = big_xattr(m);
        let name_len = usize::from(m.block(block)[at + 8]);
        format!("poke block {block} at {} hex:0000000000000000", at + 16 + name_len.next_multiple_of(8))
    } => [EaPointer, Leaked, DinodeBlocks];
    "xattr list": m => format!("set pointer(block {}, 0) = 0", m.eattr(m.path("xattr/f2")))
        => [EaGap, Leaked, DinodeBlocks];

    "no dot": m => format!("set dirent(block {} at 232).no_addr = 0", m.path("names")) => [DotMissing, EntryCount];
    "dot elsewhere": m => format!("set dirent(block {} at 232).no_addr = 5", m.path("names")) => [DotTarget];
    "no dotdot": m => format!("set dirent(block {0} at 232).de_rec_len = {1}", m.path("names"), 48 + 48)
        => [DotdotMissing, EntryCount];
    "dotdot elsewhere": m => {
        let dir = m.path("deep/d1");
        format!("set dirent(block {dir} at 280).no_addr = {dir}\nset dirent(block {dir} at 280).no_formal_ino = {}", formal(m, dir))
    } => [DotdotTarget];
    "entry to a free block": m => format!("set dirent(/names/a).no_addr = {}", m.blank(BlockState::Free))
        => [EntryTarget, EmptyOrphan];
    "entry to nowhere": _ => "set dirent(/names/a).no_addr = 99999999" => [EntryTarget, EmptyOrphan];
    "entry's formal number": _ => "set dirent(/names/a).no_formal_ino = 999" => [EntryFormal];
    "entry's type": _ => "set dirent(/names/a).de_type = 4" => [EntryType];
    "entry's hash": _ => "set dirent(/names/a).de_hash = 1" => [EntryHash];
    "entry's name length": _ => "set dirent(/names/a).de_name_len = 100" => [EntryRecord, EmptyOrphan];
    "last entry's length": m => format!("set dirent(block {} at 280).de_rec_len = 2000", m.path("deep/d1/d2"))
        => [EntryRecord, Unreachable, LinkCount, Orphan];
    "slash": m => poke_name(m, m.path("names"), b"-dash", b"-d/sh") => [EntryName, EntryHash];
    "second link": m => format!("set dirent(/names/a).no_addr = {0}\nset dirent(/names/a).no_formal_ino = {1}\n\
        set dirent(/names/a).de_type = 4", m.path("deep"), formal(m, m.path("deep"))) => [SecondLink, EmptyOrphan];
    "entries": _ => "set dinode(/names).di_entries = 99" => [EntryCount];
    "entries of a hashed directory": _ => "set dinode(/big).di_entries = 99" => [EntryCount];
    "empty slot": _ => "set pointer(/data, 0) = 0" => [HashTable];
    "leaf depth": m => format!("set leaf(block {}).lf_depth = 3", halves(m, "data").0) => [LeafDepth];
    "leaves swapped": m => {
        let (low, high) = halves(m, "data");
        (0..64).fold(String::new(), |mut script, n| {
            let _ = writeln!(script, "set pointer(/data, {n}) = {}", if n < 32 { high } else { low });
            script
        })
    } => [LeafPlace];
    "full leaves swapped": m => full_leaves_swapped(m) => [LeafPlace];
    "file's block as leaf": m => {
        let (low, target) = (halves(m, "data").0, m.top(m.path("data/f4k"), 1));
        (0..64).filter(|n| m.top(m.path("data"), *n) == low).fold(String::new(), |mut script, n| {
            let _ = writeln!(script, "set pointer(/data, {n}) = {target}");
            script
        })
    } => [DuplicateMetadata, Leaked, DotMissing, EntryCount, Unreachable, LinkCount, Orphan, EmptyOrphan];
    "hash block twice": m => {
        let big = m.path("big");
        format!("copy block {} to block {}", m.top(big, 0), m.top(big, 1))
    } => [DuplicateMetadata, Leaked, EntryCount, EmptyOrphan];
    "leaf lost": m => format!("zero block {}", m.pointer(m.top(m.path("big"), 0), 0)) => [LeafBlock, EmptyOrphan];
    "leaf chain": m => {
        let leaf = halves(m, "data").0;
        format!("set leaf(block {leaf}).lf_next = {leaf}")
    } => [LeafNext, DuplicateMetadata, DinodeBlocks];
    "leaf entries": m => format!("set leaf(block {}).lf_entries = 99", halves(m, "data").0) => [LeafCount];
    "table size": _ => "set dinode(/data).di_size = 1024" => [TableSize];
    "height of a table in its dinode": _ => "set dinode(/data).di_height = 1" => [DinodeHeight];
    "height of a table": _ => "set dinode(/big).di_height = 0" => [DinodeHeight];
    "depth of a table": _ => "set dinode(/big).di_depth = 8" => [DinodeHeight];
    "height of a small file": _ => "set dinode(/data/stuffed1).di_height = 1" => [DinodeHeight];
    "height of a large file": _ => "set dinode(/data/f3m).di_height = 1" => [DinodeHeight];
    "height of a link": _ => "set dinode(/links/soft).di_height = 1" => [DinodeHeight];
    "height of a directory": _ => "set dinode(/names).di_height = 1" => [DinodeHeight];
    "height of a journal": _ => "set dinode(master:/jindex/journal1).di_height = 1" => [DinodeHeight];
    "hash block": m => format!("zero block {}", m.top(m.path("big"), 0)) => [HashBlock, Leaked, EmptyOrphan];
    "hash table's tree too long": m => format!("set pointer(/big, {}) = {}", table_blocks(m) + 3,
        m.blank(BlockState::Free)) => [TableEnd];
    "hash table's tree into a file": m => format!("set pointer(/big, {}) = {}", table_blocks(m),
        m.top(m.path("data/f4k"), 1)) => [TableEnd];
    "hash table's tree with a block more": m => {
        let block = m.blank(BlockState::Free);
        let (bits, blocks) = (format!("bitmap block {block} = used"), di_blocks(m, m.path("big")) + 1);
        format!("set pointer(/big, {}) = {block}\n{bits}\nset dinode(/big).di_blocks = {blocks}", table_blocks(m))
    } => [TableEnd, Leaked, DinodeBlocks, RgrpCount, Statfs];
    "hash table's tree too long, below an indirect block": m => one_level_more(m)
        => [TableEnd, RgrpCount, Statfs];
    "leaf format": m => format!("set leaf(block {}).lf_dirent_format = 7", halves(m, "data").0) => [LeafFormat];
    "name twice": m => {
        let rename = poke_name(m, m.path("perm"), b"m0755", b"m0644");
        format!("{rename}\nset dirent(/perm/m0755).de_hash = {}", name_hash(b"m0644"))
    } => [DuplicateName];
    "subtree lost": m => format!("set dirent(/deep).no_addr = {}", m.blank(BlockState::Free))
        => [EntryTarget, Unreachable, LinkCount];
    "directory lost, and empty": m => format!("set dirent(/data/topdir).no_addr = {}\n\
        set dinode(/data/topdir).di_size = 0", m.blank(BlockState::Free)) => [EntryTarget, EmptyDirectory, LinkCount];
    "file lost, with a bad pointer": m => format!("set dirent(/data/f4k).no_addr = {}\n\
        set pointer(/data/f4k, 1) = 99999999", m.blank(BlockState::Free))
        => [EntryTarget, Pointer, BadOrphan, Leaked, DinodeBlocks];
    "file lost": m => format!("set dirent(/data/jd).no_addr = {}", m.blank(BlockState::Free)) => [EntryTarget, Orphan];
    "file lost, and empty": m => format!("set dirent(/data/append).no_addr = {}", m.blank(BlockState::Free))
        => [EntryTarget, EmptyOrphan];
    "link count": _ => "set dinode(/links/t).di_nlink = 9" => [LinkCount];
    "link count of a directory": _ => "set dinode(/deep).di_nlink = 9" => [LinkCount];
};

/// Blocks of the hash table of the large directory: the first pointer behind them is none.
pub(crate) fn table_blocks(map: &Map<'_>) -> usize {
    let big = map.path("big");
    let blocks = (0..).take_while(|n| map.top(big, *n) != 0).count();
    assert!(blocks > 1, "{blocks}");
    blocks
}

/// Puts an indirect block between the large directory and its hash blocks, and a pointer too many into it.
fn one_level_more(map: &Map<'_>) -> String {
    let (big, blocks) = (map.path("big"), table_blocks(map));
    let indirect = map.blank(BlockState::Free);
    let mut pointers: Vec<u64> = (0..blocks).map(|n| map.top(big, n)).collect();
    pointers.extend([0, 0, map.top(map.path("data/f4k"), 1)]);
    let mut script = format!(
        "poke block {indirect} at 0 hex:0116197000000005{:016x}000001f400000000",
        0
    );
    pointers.iter().for_each(|block| {
        let _ = write!(script, "{block:016x}");
    });
    for n in 0..blocks {
        let _ = write!(
            script,
            "\nset pointer(/big, {n}) = {}",
            if n == 0 { indirect } else { 0 }
        );
    }
    script.push('\n');
    let _ = writeln!(script, "bitmap block {indirect} = used");
    let _ = writeln!(script, "set dinode(/big).di_blocks = {}", di_blocks(map, big) + 1);
    script + "set dinode(/big).di_height = 2"
}

fn di_blocks(map: &Map<'_>, dinode: u64) -> u64 {
    u64::from_be_bytes(map.block(dinode)[64..72].try_into().unwrap())
}

fn formal(map: &Map<'_>, dinode: u64) -> u64 {
    u64::from_be_bytes(map.block(dinode)[24..32].try_into().unwrap())
}

/// An xattr record whose value stands in blocks of its own.
fn big_xattr(map: &Map<'_>) -> (u64, usize) {
    let block = map.eattr(map.path("xattr/f3"));
    let bytes = map.block(block);
    let records = map.ea_records(block);
    let at = records
        .into_iter()
        .find(|at| bytes[at + 11] != 0 && bytes[at + 9] != 0);
    (block, at.unwrap())
}

/// Overwrites a name in a linear directory, and nothing else of its entry.
fn poke_name(map: &Map<'_>, dir: u64, from: &[u8], to: &[u8]) -> String {
    let bytes = map.block(dir);
    let at = bytes
        .windows(from.len())
        .position(|window| window == from)
        .unwrap();
    let hex = to.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    format!("poke block {dir} at {at} hex:{hex}")
}
