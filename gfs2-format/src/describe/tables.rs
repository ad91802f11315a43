//! The table: one entry per structure of the format (FORMAT.md section 1).

use super::{Field, Kind, Structure};
use crate::ondisk::MetaType;
use Kind::{
    Blocks, Bytes, Flags, FormalIno, Hex, Jid, JournalBlock, Mode, Names, Nanoseconds, Number, Pointer,
    Reserved, Seconds, Signed, SignedBlocks, Text, Uuid,
};

/// `mh_type`.
const BLOCK_TYPES: &[(u64, &str)] = &[
    (1, "sb"),
    (2, "rgrp"),
    (3, "rgrp_bitmap"),
    (4, "dinode"),
    (5, "indirect"),
    (6, "leaf"),
    (7, "journaled_data"),
    (8, "log_header"),
    (9, "log_descriptor"),
    (10, "ea_block"),
    (11, "ea_data"),
    (12, "log_block"),
    (14, "quota_change_block"),
];

/// `di_flags`.
pub(super) const DINODE_FLAGS: &[(u64, &str)] = &[
    (0x1, "JDATA"),
    (0x2, "EXHASH"),
    (0x8, "EA_INDIRECT"),
    (0x10, "DIRECTIO"),
    (0x20, "IMMUTABLE"),
    (0x40, "APPENDONLY"),
    (0x80, "NOATIME"),
    (0x100, "SYNC"),
    (0x200, "SYSTEM"),
    (0x400, "TOPDIR"),
    (0x2000_0000, "TRUNC_IN_PROG"),
    (0x4000_0000, "INHERIT_DIRECTIO"),
    (0x8000_0000, "INHERIT_JDATA"),
];

/// `rg_flags`.
pub(super) const RGRP_FLAGS: &[(u64, &str)] = &[
    (0x1, "JOURNAL"),
    (0x2, "METAONLY"),
    (0x4, "DATAONLY"),
    (0x8, "NOALLOC"),
    (0x10, "TRIMMED"),
];

/// `lh_flags`.
pub(super) const LOG_FLAGS: &[(u64, &str)] = &[
    (0x1, "UNMOUNT"),
    (0x2, "FLUSH_NORMAL"),
    (0x4, "FLUSH_SYNC"),
    (0x8, "FLUSH_SHUTDOWN"),
    (0x10, "FLUSH_FREEZE"),
    (0x20, "RECOVERY"),
    (0x100, "LFC_SHUTDOWN"),
    (0x1000, "LFC_AIL_FLUSH"),
    (0x2000, "LFC_RGRP_GO_SYNC"),
    (0x4000, "LFC_INODE_GO_SYNC"),
    (0x4_0000, "LFC_DO_SYNC"),
    (0x8_0000, "LFC_RESERVE"),
    (0x10_0000, "LFC_WRITE_INODE"),
    (0x20_0000, "LFC_MAKE_FS_RO"),
    (0x40_0000, "LFC_SYNC_FS"),
    (0x100_0000, "LFC_TRANS_END"),
    (0x200_0000, "LFC_LOGD_JFLUSH_REQD"),
    (0x400_0000, "LFC_LOGD_AIL_FLUSH_REQD"),
    (0x8000_0000, "USERSPACE"),
];

/// `ld_type`.
const DESCRIPTOR_TYPES: &[(u64, &str)] = &[(300, "metadata"), (301, "revoke"), (302, "jdata")];

/// `de_type`.
const DIRENT_TYPES: &[(u64, &str)] = &[
    (0, "unused"),
    (1, "fifo"),
    (2, "char"),
    (4, "dir"),
    (6, "block"),
    (8, "regular"),
    (10, "symlink"),
    (12, "socket"),
];

/// `ea_type`.
const EA_TYPES: &[(u64, &str)] = &[
    (0, "unused"),
    (1, "user"),
    (2, "system"),
    (3, "security"),
    (4, "trusted"),
];

/// Payload formats in `di_payload_format` and `lf_dirent_format`.
const PAYLOADS: &[(u64, &str)] = &[
    (0, "none"),
    (1000, "rindex (old)"),
    (1100, "rindex"),
    (1200, "dirents"),
    (1400, "quota change"),
    (1500, "quota"),
];

const EA_FLAGS: &[(u64, &str)] = &[(1, "LAST")];
const QUOTA_CHANGE_FLAGS: &[(u64, &str)] = &[(1, "USER")];

const fn field(name: &'static str, offset: usize, size: usize, kind: Kind) -> Field {
    Field {
        name,
        offset,
        size,
        kind,
    }
}

/// The fields of a structure: with `header`, those of the meta header come first.
macro_rules! fields {
    (header $(, $name:literal $offset:literal $size:literal $kind:expr)* $(,)?) => {
        fields!(
            "mh_magic" 0 4 Hex,
            "mh_type" 4 4 Names(BLOCK_TYPES),
            "__pad0" 8 8 Reserved,
            "mh_format" 16 4 Number,
            "mh_jid" 20 4 Jid
            $(, $name $offset $size $kind)*
        )
    };
    ($($name:literal $offset:literal $size:literal $kind:expr),* $(,)?) => {
        &[$(field($name, $offset, $size, $kind)),*]
    };
}

const fn of_block(
    name: &'static str,
    c_name: &'static str,
    size: usize,
    block_type: MetaType,
    fields: &'static [Field],
) -> Structure {
    Structure {
        name,
        c_name,
        size,
        block_type: Some(block_type),
        fields,
    }
}

const fn record(
    name: &'static str,
    c_name: &'static str,
    size: usize,
    fields: &'static [Field],
) -> Structure {
    Structure {
        name,
        c_name,
        size,
        block_type: None,
        fields,
    }
}

const SB: &[Field] = fields!(
    header,
    "sb_fs_format" 24 4 Number,
    "sb_multihost_format" 28 4 Number,
    "sb_pad0" 32 4 Reserved,
    "sb_bsize" 36 4 Bytes,
    "sb_bsize_shift" 40 4 Number,
    "__pad1" 44 4 Reserved,
    "sb_master_dir.no_formal_ino" 48 8 FormalIno,
    "sb_master_dir.no_addr" 56 8 Pointer,
    "__pad2" 64 16 Reserved,
    "sb_root_dir.no_formal_ino" 80 8 FormalIno,
    "sb_root_dir.no_addr" 88 8 Pointer,
    "sb_lockproto" 96 64 Text,
    "sb_locktable" 160 64 Text,
    "__pad3" 224 16 Reserved,
    "__pad4" 240 16 Reserved,
    "sb_uuid" 256 16 Uuid,
);

const RINDEX: &[Field] = fields!(
    "ri_addr" 0 8 Pointer,
    "ri_length" 8 4 Blocks,
    "__pad" 12 4 Reserved,
    "ri_data0" 16 8 Pointer,
    "ri_data" 24 4 Blocks,
    "ri_bitbytes" 28 4 Bytes,
    "ri_reserved" 32 64 Reserved,
);

const RGRP: &[Field] = fields!(
    header,
    "rg_flags" 24 4 Flags(RGRP_FLAGS),
    "rg_free" 28 4 Blocks,
    "rg_dinodes" 32 4 Number,
    "rg_skip" 36 4 Blocks,
    "rg_igeneration" 40 8 FormalIno,
    "rg_data0" 48 8 Pointer,
    "rg_data" 56 4 Blocks,
    "rg_bitbytes" 60 4 Bytes,
    "rg_crc" 64 4 Hex,
    "rg_reserved" 68 60 Reserved,
);

const DINODE: &[Field] = fields!(
    header,
    "di_num.no_formal_ino" 24 8 FormalIno,
    "di_num.no_addr" 32 8 Pointer,
    "di_mode" 40 4 Mode,
    "di_uid" 44 4 Number,
    "di_gid" 48 4 Number,
    "di_nlink" 52 4 Number,
    "di_size" 56 8 Bytes,
    "di_blocks" 64 8 Blocks,
    "di_atime" 72 8 Seconds,
    "di_mtime" 80 8 Seconds,
    "di_ctime" 88 8 Seconds,
    "di_major" 96 4 Number,
    "di_minor" 100 4 Number,
    "di_goal_meta" 104 8 Pointer,
    "di_goal_data" 112 8 Pointer,
    "di_generation" 120 8 Number,
    "di_flags" 128 4 Flags(DINODE_FLAGS),
    "di_payload_format" 132 4 Names(PAYLOADS),
    "__pad1" 136 2 Reserved,
    "di_height" 138 2 Number,
    "__pad2" 140 4 Reserved,
    "__pad3" 144 2 Reserved,
    "di_depth" 146 2 Number,
    "di_entries" 148 4 Number,
    "__pad4" 152 16 Reserved,
    "di_eattr" 168 8 Pointer,
    "di_atime_nsec" 176 4 Nanoseconds,
    "di_mtime_nsec" 180 4 Nanoseconds,
    "di_ctime_nsec" 184 4 Nanoseconds,
    "di_reserved" 188 44 Reserved,
);

const DIRENT: &[Field] = fields!(
    "de_inum.no_formal_ino" 0 8 FormalIno,
    "de_inum.no_addr" 8 8 Pointer,
    "de_hash" 16 4 Hex,
    "de_rec_len" 20 2 Bytes,
    "de_name_len" 22 2 Bytes,
    "de_type" 24 2 Names(DIRENT_TYPES),
    "de_rahead" 26 2 Number,
    "de_cookie" 28 4 Hex,
    "pad3" 32 8 Reserved,
);

const LEAF: &[Field] = fields!(
    header,
    "lf_depth" 24 2 Number,
    "lf_entries" 26 2 Number,
    "lf_dirent_format" 28 4 Names(PAYLOADS),
    "lf_next" 32 8 Pointer,
    "lf_inode" 40 8 Pointer,
    "lf_dist" 48 4 Number,
    "lf_nsec" 52 4 Nanoseconds,
    "lf_sec" 56 8 Seconds,
    "lf_reserved2" 64 40 Reserved,
);

const EA_HEADER: &[Field] = fields!(
    "ea_rec_len" 0 4 Bytes,
    "ea_data_len" 4 4 Bytes,
    "ea_name_len" 8 1 Bytes,
    "ea_type" 9 1 Names(EA_TYPES),
    "ea_flags" 10 1 Flags(EA_FLAGS),
    "ea_num_ptrs" 11 1 Number,
    "__pad" 12 4 Reserved,
);

const LOG_HEADER: &[Field] = fields!(
    header,
    "lh_sequence" 24 8 Number,
    "lh_flags" 32 4 Flags(LOG_FLAGS),
    "lh_tail" 36 4 JournalBlock,
    "lh_blkno" 40 4 JournalBlock,
    "lh_hash" 44 4 Hex,
    "lh_crc" 48 4 Hex,
    "lh_nsec" 52 4 Nanoseconds,
    "lh_sec" 56 8 Seconds,
    "lh_addr" 64 8 Pointer,
    "lh_jinode" 72 8 Pointer,
    "lh_statfs_addr" 80 8 Pointer,
    "lh_quota_addr" 88 8 Pointer,
    "lh_local_total" 96 8 SignedBlocks,
    "lh_local_free" 104 8 SignedBlocks,
    "lh_local_dinodes" 112 8 Signed,
);

const LOG_DESCRIPTOR: &[Field] = fields!(
    header,
    "ld_type" 24 4 Names(DESCRIPTOR_TYPES),
    "ld_length" 28 4 Blocks,
    "ld_data1" 32 4 Number,
    "ld_data2" 36 4 Number,
    "ld_reserved" 40 32 Reserved,
);

const STATFS_CHANGE: &[Field] = fields!(
    "sc_total" 0 8 SignedBlocks,
    "sc_free" 8 8 SignedBlocks,
    "sc_dinodes" 16 8 Signed,
);

const QUOTA: &[Field] = fields!(
    "qu_limit" 0 8 Blocks,
    "qu_warn" 8 8 Blocks,
    "qu_value" 16 8 SignedBlocks,
    "qu_reserved" 24 64 Reserved,
);

const QUOTA_CHANGE: &[Field] = fields!(
    "qc_change" 0 8 SignedBlocks,
    "qc_flags" 8 4 Flags(QUOTA_CHANGE_FLAGS),
    "qc_id" 12 4 Number,
);

const INUM_RANGE: &[Field] = fields!("ir_start" 0 8 FormalIno, "ir_length" 8 8 Number);

const INUM: &[Field] = fields!("no_formal_ino" 0 8 FormalIno, "no_addr" 8 8 Pointer);

const RGRP_LVB: &[Field] = fields!(
    "rl_magic" 0 4 Hex,
    "rl_flags" 4 4 Flags(RGRP_FLAGS),
    "rl_free" 8 4 Blocks,
    "rl_dinodes" 12 4 Number,
    "rl_igeneration" 16 8 FormalIno,
    "rl_unlinked" 24 4 Number,
    "__pad" 28 4 Reserved,
);

const INODE_LVB: &[Field] = fields!(
    "ri_magic" 0 4 Hex,
    "__pad" 4 4 Reserved,
    "ri_generation_deleted" 8 8 FormalIno,
    "rest" 16 16 Reserved,
);

const QUOTA_LVB: &[Field] = fields!(
    "qb_magic" 0 4 Hex,
    "__pad" 4 4 Reserved,
    "qb_limit" 8 8 Blocks,
    "qb_warn" 16 8 Blocks,
    "qb_value" 24 8 SignedBlocks,
);

/// Every structure of the format: those blocks begin with, then records, then lock value blocks.
pub const STRUCTURES: &[Structure] = &[
    of_block("sb", "gfs2_sb", 272, MetaType::Sb, SB),
    of_block("rgrp", "gfs2_rgrp", 128, MetaType::Rg, RGRP),
    of_block("rgrp_bitmap", "", 24, MetaType::Rb, fields!(header)),
    of_block("dinode", "gfs2_dinode", 232, MetaType::Di, DINODE),
    of_block("indirect", "", 24, MetaType::In, fields!(header)),
    of_block("leaf", "gfs2_leaf", 104, MetaType::Lf, LEAF),
    of_block("journaled_data", "", 24, MetaType::Jd, fields!(header)),
    of_block("log_header", "gfs2_log_header", 120, MetaType::Lh, LOG_HEADER),
    of_block(
        "log_descriptor",
        "gfs2_log_descriptor",
        72,
        MetaType::Ld,
        LOG_DESCRIPTOR,
    ),
    of_block("ea_block", "", 24, MetaType::Ea, fields!(header)),
    of_block("ea_data", "", 24, MetaType::Ed, fields!(header)),
    of_block("log_block", "", 24, MetaType::Lb, fields!(header)),
    of_block("quota_change_block", "", 24, MetaType::Qc, fields!(header)),
    record("meta_header", "gfs2_meta_header", 24, fields!(header)),
    record("inum", "gfs2_inum", 16, INUM),
    record("rindex", "gfs2_rindex", 96, RINDEX),
    record("dirent", "gfs2_dirent", 40, DIRENT),
    record("ea_header", "gfs2_ea_header", 16, EA_HEADER),
    record("statfs_change", "gfs2_statfs_change", 24, STATFS_CHANGE),
    record("quota", "gfs2_quota", 88, QUOTA),
    record("quota_change", "gfs2_quota_change", 16, QUOTA_CHANGE),
    record("inum_range", "gfs2_inum_range", 16, INUM_RANGE),
    record("next_inum", "", 8, fields!("next_formal_ino" 0 8 FormalIno)),
    record(
        "jdata_tag",
        "",
        16,
        fields!("block" 0 8 Pointer, "escaped" 8 8 Number),
    ),
    record("rgrp_lvb", "gfs2_rgrp_lvb", 32, RGRP_LVB),
    record("inode_lvb", "gfs2_inode_lvb", 32, INODE_LVB),
    record("quota_lvb", "gfs2_quota_lvb", 32, QUOTA_LVB),
];
