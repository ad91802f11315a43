//! Damage of several structures at once: what must be repaired, not which findings it brings one by one.

use super::Map;
use super::cases::Case;
use gfs2_fsck::Kind::*;
use std::fmt::Write;

macro_rules! heavy {
    ($($name:literal: $map:pat => $script:expr => $kind:ident;)*) => {
        &[$(Case { name: $name, script: |$map| ($script).into(), finds: &[$kind] },)*]
    };
}

fn zero_entries(groups: impl Iterator<Item = usize>) -> String {
    groups.fold(String::new(), |mut script, n| {
        for field in ["ri_addr", "ri_length", "ri_data0", "ri_data", "ri_bitbytes"] {
            let _ = writeln!(script, "set rindex({n}).{field} = 0");
        }
        script
    })
}

fn rec_len(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at + 20], bytes[at + 21]]))
}

/// Where the record before that of this name and the one of this name stand in a linear directory.
fn records(bytes: &[u8], name: &str) -> (usize, usize) {
    let (mut previous, mut at) = (232, 232);
    while !bytes[at + 40..].starts_with(name.as_bytes()) {
        previous = at;
        at += rec_len(bytes, at);
    }
    (previous, at)
}

/// A record whose length leads nowhere: neither it nor what is behind it can be found.
fn hide(map: &Map<'_>, dir: u64, name: &str) -> String {
    let (_, at) = records(&map.block(dir), name);
    format!("set dirent(block {dir} at {at}).de_rec_len = 0")
}

/// Takes an entry out of a linear directory, as a delete would.
fn lose(map: &Map<'_>, dir: u64, name: &str) -> String {
    let bytes = map.block(dir);
    let (previous, at) = records(&bytes, name);
    let entries = u32::from_be_bytes(bytes[148..152].try_into().unwrap());
    format!(
        "set dirent(block {dir} at {previous}).de_rec_len = {}\nset dinode(block {dir}).di_entries = {}",
        rec_len(&bytes, previous) + rec_len(&bytes, at),
        entries - 1
    )
}

fn zero_group(map: &Map<'_>, n: usize) -> String {
    let group = &map.groups()[n];
    format!("zero block {}", group.addr())
}

pub(crate) const HEAVY: &[Case] = heavy! {
    "format": _ => "set sb.sb_fs_format = 0" => Superblock;
    "multihost format": _ => "set sb.sb_multihost_format = 7" => Superblock;
    "superblock zeroed": _ => "zero sb" => Superblock;
    "master elsewhere": m => format!("set sb.sb_master_dir.no_addr = {}", m.path("data/f4k") + 1) => MasterDir;
    "root elsewhere": m => format!("set sb.sb_root_dir.no_addr = {}", m.path("data/f4k")) => RootDir;
    "root beyond": _ => "set sb.sb_root_dir.no_addr = 99999999999" => RootDir;
    "master beyond": _ => "set sb.sb_master_dir.no_addr = 99999999999" => MasterDir;
    "root's size": m => format!("set dinode(block {}).di_size = 66328", m.path("")) => RootDir;
    "master's mode": m => format!("set dinode(block {}).di_mode = 0", m.master("")) => MasterDir;
    "superblock and root's height": m => format!("set sb.mh_magic = 0\nset dinode(block {}).di_height = 99", m.path(""))
        => Superblock;
    "superblock and root zeroed": m => format!("zero sb\nzero block {}", m.path("")) => Superblock;
    "superblock and master zeroed": m => format!("zero sb\nzero block {}", m.master("")) => Superblock;
    "root zeroed, its bitmap too": m => {
        let root = m.path("");
        let group = m.groups().into_iter().rfind(|group| group.addr().get() < root).unwrap();
        let bitmap = group.locate(gfs2_format::BlockAddr::new(root)).unwrap().block;
        format!("zero block {root}\nzero block {bitmap}")
    } => RootDir;
    "root zeroed, and its group's header": m => format!("zero block {}\n{}", m.path(""), zero_group(m, 2)) => RootDir;
    "master and a group's header": m => format!("zero block {}\n{}", m.master(""), zero_group(m, 2)) => MasterDir;
    "master's number": _ => "set sb.sb_master_dir.no_formal_ino = 77" => SystemFile;

    "inum lost": m => lose(m, m.master(""), "inum") => SystemFileMissing;
    "statfs lost": m => lose(m, m.master(""), "statfs") => SystemFileMissing;
    "quota lost": m => lose(m, m.master(""), "quota") => SystemFileMissing;
    "rindex lost": m => lose(m, m.master(""), "rindex") => SystemFileMissing;
    "per_node lost": m => lose(m, m.master(""), "per_node") => SystemFileMissing;
    "jindex lost": m => lose(m, m.master(""), "jindex") => SystemFileMissing;
    "statfs zeroed": m => format!("zero block {}", m.master("statfs")) => SystemFile;
    "rindex zeroed": m => format!("zero block {}", m.master("rindex")) => SystemFile;
    "jindex zeroed": m => format!("zero block {}", m.master("jindex")) => SystemFile;
    "per_node zeroed": m => format!("zero block {}", m.master("per_node")) => SystemFile;
    // What stands in the way of the file is damage of a later phase.
    "quota hidden": m => hide(m, m.master(""), "quota") => SystemFileMissing;
    "statfs and all behind it hidden": m => hide(m, m.master(""), "statfs") => SystemFileMissing;
    // The new file is made first; the index that was read of the old one must not go where the directory is.
    "rindex is a directory": m => format!("copy block {} to block {1}\nset dinode(block {1}).no_addr = {1}",
        m.path(""), m.master("rindex")) => SystemFile;
    "inum_range1 lost": m => lose(m, m.master("per_node"), "inum_range1") => PerNodeMissing;
    "statfs_change0 lost": m => lose(m, m.master("per_node"), "statfs_change0") => PerNodeMissing;
    "quota_change1 lost": m => lose(m, m.master("per_node"), "quota_change1") => PerNodeMissing;
    "quota change blocks": m => {
        let indirect = m.top(m.master("per_node/quota_change0"), 0);
        (0..120).fold(String::new(), |mut script, n| {
            let _ = writeln!(script, "zero block {}", m.pointer(indirect, n));
            script
        })
    } => QuotaChangeBlock;
    "quota change size": _ => "set dinode(master:/per_node/quota_change0).di_size = 5" => SystemFile;

    "index entry and group": m => format!("{}{}", zero_entries(2..3), zero_group(m, 2)) => RindexEntry;
    "first entry and group": m => format!("{}{}", zero_entries(0..1), zero_group(m, 0)) => RindexEntry;
    "last entry and group": m => {
        let last = m.groups().len() - 1;
        format!("{}{}", zero_entries(last..last + 1), zero_group(m, last))
    } => RindexEntry;
    "all entries": m => zero_entries(0..m.groups().len()) => RindexEntry;
    "all headers": m => (0..m.groups().len()).fold(String::new(), |mut script, n| {
        let _ = writeln!(script, "{}", zero_group(m, n));
        script
    }) => RgrpHeader;
    "whole group": m => {
        let group = &m.groups()[1];
        (0..group.length()).fold(String::new(), |mut script, n| {
            let _ = writeln!(script, "zero block {}", group.addr().get() + u64::from(n));
            script
        })
    } => RgrpHeader;
    "rindex's block": m => format!("zero block {}", m.top(m.master("rindex"), 0)) => RindexEntry;
    "rindex's pointer": _ => "set pointer(master:/rindex, 0) = 99999999" => RindexEntry;

    "journal's inode": m => format!("zero block {}", m.master("jindex/journal1")) => JournalInode;
    "journal lost": m => lose(m, m.master("jindex"), "journal1") => Jindex;
    "first journal lost": m => lose(m, m.master("jindex"), "journal0") => Jindex;
    "journal stuffed": _ => "set dinode(master:/jindex/journal0).di_height = 0" => JournalInode;
};
