//! Goal: the table is complete, agrees with the zerocopy types, and every field can be read, printed and written.

use super::*;
use crate::ondisk::{
    Dinode, DinodeFlags, DinodeLvb, Dirent, EaHeader, InumRange, JdataTag, Leaf, LogDescriptor, LogFlags,
    LogHeader, Quota, QuotaChange, QuotaLvb, RawInum, RgFlags, Rgrp, RgrpLvb, RindexEntry, StatfsChange,
    Superblock,
};
use std::collections::BTreeSet;

#[test]
fn the_fields_of_every_structure_tile_it() {
    for s in STRUCTURES {
        let mut at = 0;
        for f in s.fields {
            assert_eq!(f.offset, at, "{}.{}", s.name, f.name);
            assert!(f.size > 0 && f.size <= 64, "{}.{}", s.name, f.name);
            let plain = matches!(f.kind, Kind::Text | Kind::Uuid | Kind::Reserved);
            assert!(plain || matches!(f.size, 1 | 2 | 4 | 8), "{}.{}", s.name, f.name);
            at += f.size;
        }
        assert_eq!(at, s.size, "{}", s.name);
        let names: BTreeSet<_> = s.fields.iter().map(|f| f.name).collect();
        assert_eq!(names.len(), s.fields.len(), "{}: a name twice", s.name);
    }
    let names: BTreeSet<_> = STRUCTURES.iter().map(|s| s.name).collect();
    assert_eq!(names.len(), STRUCTURES.len());
}

#[test]
fn sizes_are_those_of_the_types() {
    let rows = [
        ("sb", size_of::<Superblock>()),
        ("rgrp", size_of::<Rgrp>()),
        ("dinode", size_of::<Dinode>()),
        ("leaf", size_of::<Leaf>()),
        ("log_header", size_of::<LogHeader>()),
        ("log_descriptor", size_of::<LogDescriptor>()),
        ("meta_header", size_of::<MetaHeader>()),
        ("inum", size_of::<RawInum>()),
        ("rindex", size_of::<RindexEntry>()),
        ("dirent", size_of::<Dirent>()),
        ("ea_header", size_of::<EaHeader>()),
        ("statfs_change", size_of::<StatfsChange>()),
        ("quota", size_of::<Quota>()),
        ("quota_change", size_of::<QuotaChange>()),
        ("inum_range", size_of::<InumRange>()),
        ("jdata_tag", size_of::<JdataTag>()),
        ("rgrp_lvb", size_of::<RgrpLvb>()),
        ("inode_lvb", size_of::<DinodeLvb>()),
        ("quota_lvb", size_of::<QuotaLvb>()),
    ];
    for (name, size) in rows {
        assert_eq!(structure(name).unwrap().size, size, "{name}");
    }
    // What is left is a header alone, or has no type of its own.
    let typed: BTreeSet<_> = rows.iter().map(|(name, _)| *name).collect();
    for s in STRUCTURES.iter().filter(|s| !typed.contains(s.name)) {
        assert!(
            s.block_type.is_some() && s.size == 24 || s.name == "next_inum",
            "{}",
            s.name
        );
    }
}

/// Offsets of fields whose type and table could disagree without the sizes showing it.
#[test]
fn offsets_are_those_of_the_types() {
    macro_rules! same {
        ($($name:literal: $t:ty { $($field:ident = $described:literal),* $(,)? })*) => {$($(
            assert_eq!(
                structure($name).unwrap().field($described).unwrap().offset,
                std::mem::offset_of!($t, $field),
                concat!($name, ".", $described),
            );
        )*)*};
    }
    same! {
        "sb": Superblock { fs_format = "sb_fs_format", bsize = "sb_bsize", lockproto = "sb_lockproto",
            locktable = "sb_locktable", uuid = "sb_uuid", root_dir = "sb_root_dir.no_formal_ino" }
        "dinode": Dinode { mode = "di_mode", uid = "di_uid", gid = "di_gid", nlink = "di_nlink",
            size = "di_size", blocks = "di_blocks", atime = "di_atime", mtime = "di_mtime",
            ctime = "di_ctime", major = "di_major", minor = "di_minor", goal_meta = "di_goal_meta",
            goal_data = "di_goal_data", generation = "di_generation", flags = "di_flags",
            payload_format = "di_payload_format", height = "di_height", depth = "di_depth",
            entries = "di_entries", eattr = "di_eattr", atime_nsec = "di_atime_nsec",
            mtime_nsec = "di_mtime_nsec", ctime_nsec = "di_ctime_nsec" }
        "rgrp": Rgrp { flags = "rg_flags", free = "rg_free", dinodes = "rg_dinodes", skip = "rg_skip",
            igeneration = "rg_igeneration", data0 = "rg_data0", data = "rg_data",
            bitbytes = "rg_bitbytes", crc = "rg_crc" }
        "rindex": RindexEntry { addr = "ri_addr", length = "ri_length", data0 = "ri_data0",
            data = "ri_data", bitbytes = "ri_bitbytes" }
        "dirent": Dirent { hash = "de_hash", rec_len = "de_rec_len", name_len = "de_name_len",
            de_type = "de_type", rahead = "de_rahead", cookie = "de_cookie" }
        "leaf": Leaf { depth = "lf_depth", entries = "lf_entries", dirent_format = "lf_dirent_format",
            next = "lf_next", inode = "lf_inode", dist = "lf_dist", nsec = "lf_nsec", sec = "lf_sec" }
        "ea_header": EaHeader { rec_len = "ea_rec_len", data_len = "ea_data_len",
            name_len = "ea_name_len", ea_type = "ea_type", flags = "ea_flags", num_ptrs = "ea_num_ptrs" }
        "log_header": LogHeader { sequence = "lh_sequence", flags = "lh_flags", tail = "lh_tail",
            blkno = "lh_blkno", hash = "lh_hash", crc = "lh_crc", nsec = "lh_nsec", sec = "lh_sec",
            addr = "lh_addr", jinode = "lh_jinode", statfs_addr = "lh_statfs_addr",
            quota_addr = "lh_quota_addr", local_total = "lh_local_total", local_free = "lh_local_free",
            local_dinodes = "lh_local_dinodes" }
        "log_descriptor": LogDescriptor { ld_type = "ld_type", length = "ld_length", data1 = "ld_data1",
            data2 = "ld_data2" }
        "quota_change": QuotaChange { change = "qc_change", flags = "qc_flags", id = "qc_id" }
        "quota": Quota { limit = "qu_limit", warn = "qu_warn", value = "qu_value" }
        "rgrp_lvb": RgrpLvb { magic = "rl_magic", flags = "rl_flags", free = "rl_free",
            dinodes = "rl_dinodes", igeneration = "rl_igeneration", unlinked = "rl_unlinked" }
    }
}

#[test]
fn flag_names_are_those_of_the_flag_types() {
    fn names<F: bitflags::Flags<Bits = u32>>() -> Vec<(u64, &'static str)> {
        let known = F::FLAGS.iter().filter(|f| f.is_named());
        known.map(|f| (u64::from(f.value().bits()), f.name())).collect()
    }
    assert_eq!(names::<DinodeFlags>(), tables::DINODE_FLAGS);
    assert_eq!(names::<RgFlags>(), tables::RGRP_FLAGS);
    assert_eq!(names::<LogFlags>(), tables::LOG_FLAGS);
}

#[test]
fn every_block_type_has_a_structure() {
    for raw in 0..20 {
        let Some(kind) = MetaType::from_raw(raw) else {
            continue;
        };
        let s = structure_of_type(kind).unwrap();
        let mut block = vec![0; 512];
        s.field("mh_magic")
            .unwrap()
            .write(&mut block, "0x01161970")
            .unwrap();
        s.field("mh_type").unwrap().write(&mut block, s.name).unwrap();
        assert_eq!(structure_of_block(&block).unwrap().name, s.name, "{raw}");
    }
    assert!(structure_of_block(&[0; 512]).is_none());
    assert!(structure_of_block(&[1, 0x16]).is_none());
}

#[test]
fn every_field_reads_back_what_was_written_and_touches_nothing_else() {
    for s in STRUCTURES {
        for f in s.fields {
            let fill = vec![0x5a; f.size];
            let mut bytes = vec![0; s.size];
            let text = format!("hex:{}", "5a".repeat(f.size));
            f.write(&mut bytes, &text).unwrap();
            assert_eq!(f.slice(&bytes).unwrap(), fill, "{}.{}", s.name, f.name);
            assert_eq!(
                bytes.iter().filter(|b| **b != 0).count(),
                f.size,
                "{}.{}",
                s.name,
                f.name
            );
            assert!(f.display(&bytes).is_some());
            assert!(f.write(&mut bytes[..f.offset + f.size - 1], &text).is_err());
            assert!(f.read(&bytes[..f.offset]).is_none());
        }
    }
}

#[test]
fn values_print_with_their_meaning_and_parse_back() {
    let rows = [
        ("dinode", "di_flags", "JDATA|SYSTEM", "0x00000201 (JDATA|SYSTEM)"),
        ("dinode", "di_flags", "JDATA|0x1000", "0x00001001 (JDATA|0x1000)"),
        ("dinode", "di_flags", "0", "0x00000000"),
        ("dinode", "di_mode", "0o100644", "0100644"),
        ("dinode", "di_atime", "-5", "-5"),
        ("dinode", "no_addr", "0x1a", "26 (0x1a)"),
        ("dinode", "mh_type", "dinode", "4 (dinode)"),
        ("dinode", "mh_type", "99", "99 (unknown)"),
        ("dinode", "di_depth", "-1", "65535"),
        ("statfs_change", "sc_free", "-332", "-332"),
        ("sb", "sb_lockproto", "lock_nolock", "\"lock_nolock\""),
        ("sb", "sb_locktable", "\"\"", "\"\""),
        (
            "sb",
            "sb_uuid",
            "00112233-4455-6677-8899-aabbccddeeff",
            "00112233-4455-6677-8899-aabbccddeeff",
        ),
        ("rgrp", "rg_crc", "0x2491348d", "0x2491348d"),
        ("rgrp", "rg_reserved", "0", "0"),
        ("ea_header", "ea_type", "trusted", "4 (trusted)"),
        ("log_descriptor", "ld_type", "jdata", "302 (jdata)"),
    ];
    for (name, field, text, shown) in rows {
        let s = structure(name).unwrap();
        let f = s.field(field).unwrap();
        let mut bytes = vec![0xff; s.size];
        f.write(&mut bytes, text).unwrap();
        assert_eq!(f.display(&bytes).unwrap(), shown, "{name}.{field} = {text}");
    }
}

#[test]
fn what_does_not_fit_a_field_is_refused_with_a_reason() {
    let rows = [
        ("dinode", "di_depth", "65536", "too large"),
        ("dinode", "di_depth", "-65537", "too large"),
        ("dinode", "di_depth", "-65536", "too large"),
        ("dinode", "di_size", "many", "not a number"),
        ("dinode", "di_size", "", "not a number"),
        ("dinode", "di_flags", "JDATA|NONSENSE", "not a number"),
        ("dinode", "di_reserved", "5", "hex:"),
        ("dinode", "di_size", "hex:00", "has 8 bytes"),
        ("dinode", "di_size", "hex:0", "hex digits"),
        ("sb", "sb_uuid", "0011", "has 16 bytes"),
    ];
    for (name, field, text, reason) in rows {
        let error = structure(name)
            .unwrap()
            .field(field)
            .unwrap()
            .parse(text)
            .unwrap_err();
        assert!(error.contains(reason), "{name}.{field} = {text}: {error}");
    }
    let long = "x".repeat(65);
    assert!(
        structure("sb")
            .unwrap()
            .field("sb_lockproto")
            .unwrap()
            .parse(&long)
            .is_err()
    );
}

#[test]
fn fields_are_found_by_their_last_part_when_it_is_clear() {
    let field = |s: &str, f: &str| structure(s).unwrap().field(f).map(|f| f.offset);
    assert_eq!(field("dinode", "no_addr"), Some(32));
    assert_eq!(field("dinode", "di_num.no_addr"), Some(32));
    // Two inums: say which.
    assert_eq!(field("sb", "no_addr"), None);
    assert_eq!(field("sb", "sb_root_dir.no_addr"), Some(88));
    assert_eq!(field("sb", "nonsense"), None);
    assert_eq!(structure("gfs2_dinode").unwrap().name, "dinode");
    assert!(structure("").is_none());
}
