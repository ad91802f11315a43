//! The system tree: master and root directory, the files of all nodes and of each one.
//!
//! A file whose name was damaged gets its name back; one that is lost is made anew. What the old one had is found by
//! the next round.

use super::sysfile::{
    empty_dir, fill_quota_change, link, new_dir, new_file, next_formal, no_file, now, rename_by_hash, reset,
    set_content,
};
use super::{Editor, Repaired, Verdict, find, inode_of};
use crate::problem::{Kind, Problem};
use crate::scan;
use gfs2_format::dir::remove;
use gfs2_format::geometry::MAX_DIR_DEPTH;
use gfs2_format::ondisk::{
    BlockState, DINODE_SIZE, Dinode, DinodeFlags, FileType, InumRange, MetaType, Quota, RindexEntry,
    StatfsChange, Superblock,
};
use gfs2_format::{BlockAddr, BlockEdit, BlockRead, Error, Expected, FormalIno, InodeNum};
use zerocopy::{FromZeros, IntoBytes};

/// `di_payload_format` of rindex.
const FORMAT_RINDEX: u32 = 1100;
/// `di_payload_format` of the quota file.
const FORMAT_QUOTA: u32 = 1500;

/// Blocks of a quota change file that are made anew together; the others wait for the next round.
const QUOTA_BLOCKS: usize = 1 << 12;

/// See the module documentation.
pub(super) fn repair(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let name = problem.name.as_deref().unwrap_or_default();
    match problem.kind {
        Kind::SystemFlag => {
            edit.change::<Dinode>(inode_of(problem), 0, |di| {
                di.set_flags(di.flags() | DinodeFlags::SYSTEM);
            })?;
            Ok(Verdict::Done)
        }
        Kind::Statfs => statfs(edit, problem),
        Kind::SystemFileMissing => missing(edit, edit.superblock.master_dir.num().addr, name),
        Kind::PerNodeMissing => match edit.seen.system.file("per_node") {
            Some(per_node) => missing(edit, per_node, name),
            None => Ok(Verdict::Unable("there is no per_node directory yet")),
        },
        Kind::SystemFile => file(edit, problem, name),
        Kind::QuotaChangeBlock => {
            for block in problem.range().take(QUOTA_BLOCKS).map(BlockAddr::new) {
                edit.create(block)?;
                edit.stamp(block, MetaType::Qc)?;
            }
            Ok(Verdict::Done)
        }
        Kind::MasterDir => master(edit),
        Kind::RootDir => root(edit),
        _ => Ok(Verdict::Unable("it is no damage of the system tree")),
    }
}

/// One total of the master statfs file; what nodes have not added yet is in it.
fn statfs(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let Expected::Value(value) = problem.expected else {
        return Ok(Verdict::Unable("the right total is not known"));
    };
    edit.change::<StatfsChange>(inode_of(problem), DINODE_SIZE, |record| match problem.field {
        "sc_total" => record.total = value.into(),
        "sc_free" => record.free = value.into(),
        _ => record.dinodes = value.into(),
    })?;
    for jid in 0..edit.seen.system.journals() {
        let Some(addr) = edit.seen.system.node_file("statfs_change", jid) else {
            continue;
        };
        let local = edit.get::<StatfsChange>(addr, DINODE_SIZE)?;
        let stuffed = edit.get::<Dinode>(addr, 0)?.height.get() == 0;
        if stuffed && local != StatfsChange::default() {
            edit.change::<StatfsChange>(addr, DINODE_SIZE, |record| *record = StatfsChange::default())?;
        }
    }
    Ok(Verdict::Done)
}

/// A file that has no entry: one whose name is damaged, or a new one.
fn missing(edit: &mut Editor<'_>, parent: BlockAddr, name: &[u8]) -> Repaired {
    if gfs2_format::dir::lookup(edit, parent, name)?.is_some() {
        return Ok(Verdict::Gone);
    }
    if rename_by_hash(edit, parent, name)? || adopt(edit, parent, name)? {
        return Ok(Verdict::Done);
    }
    make(edit, parent, name)
}

/// A system file of this kind that no entry leads to gets its entry again.
fn adopt(edit: &mut Editor<'_>, parent: BlockAddr, name: &[u8]) -> Result<bool, Error> {
    let found = scan::system_tree(edit.device(), edit.geometry());
    let lost = found.files.iter().find(|(known, num, kind)| {
        let referenced = match kind {
            FileType::Dir => edit.seen.directories.parents.contains_key(&num.addr),
            _ => edit.seen.inodes.get(num.addr).is_none_or(|inode| inode.links > 0),
        };
        known.as_bytes() == name && !referenced
    });
    let Some((_, num, kind)) = lost.copied() else {
        return Ok(false);
    };
    link(edit, parent, name, num, kind)?;
    Ok(true)
}

fn make(edit: &mut Editor<'_>, parent: BlockAddr, name: &[u8]) -> Repaired {
    let jdata = DinodeFlags::JDATA;
    let prefix = name.trim_ascii_end_digits();
    match prefix {
        b"per_node" => drop(new_dir(edit, parent, name)?),
        b"jindex" => {
            let jindex = new_dir(edit, parent, name)?;
            for (jid, num) in find::journals(edit)?.into_iter().enumerate() {
                link(
                    edit,
                    jindex,
                    format!("journal{jid}").as_bytes(),
                    num,
                    FileType::Regular,
                )?;
            }
        }
        b"quota_change" => {
            let addr = new_file(edit, parent, name, DinodeFlags::empty())?;
            fill_quota_change(edit, addr)?;
        }
        _ => {
            let addr = new_file(edit, parent, name, jdata)?;
            fill(edit, parent, prefix, addr)?;
        }
    }
    Ok(Verdict::Done)
}

/// The content of a file of this kind.
fn fill(edit: &mut Editor<'_>, parent: BlockAddr, prefix: &[u8], addr: BlockAddr) -> Result<(), Error> {
    match prefix {
        b"inum" => {
            let next = next_formal(edit).to_be_bytes();
            set_content(edit, addr, &next)
        }
        b"statfs" | b"statfs_change" => set_content(edit, addr, StatfsChange::default().as_bytes()),
        b"inum_range" => set_content(edit, addr, InumRange::default().as_bytes()),
        b"rindex" => rindex(edit, addr),
        b"quota" => {
            edit.change::<Dinode>(addr, 0, |di| di.payload_format = FORMAT_QUOTA.into())?;
            let records = [Quota::new_zeroed(), Quota::new_zeroed()];
            set_content(edit, addr, records.as_bytes())
        }
        _ => Err(no_file(parent)),
    }
}

/// The resource index as the groups are.
pub(super) fn rindex(edit: &mut Editor<'_>, addr: BlockAddr) -> Result<(), Error> {
    let mut content = Vec::new();
    for group in edit.seen.observed.groups() {
        let layout = &group.layout;
        let mut entry = RindexEntry::new_zeroed();
        entry.addr = layout.addr().get().into();
        entry.length = layout.length().into();
        entry.data0 = layout.data0().get().into();
        entry.data = layout.data().into();
        entry.bitbytes = (layout.data() / 4).into();
        content.extend_from_slice(entry.as_bytes());
    }
    edit.change::<Dinode>(addr, 0, |di| di.payload_format = FORMAT_RINDEX.into())?;
    set_content(edit, addr, &content)
}

/// A file that is there, but not what it should be.
fn file(edit: &mut Editor<'_>, problem: &Problem, name: &[u8]) -> Repaired {
    let at = inode_of(problem);
    if problem.block == edit.geometry().superblock() {
        return formal(edit, problem);
    }
    let prefix = name.trim_ascii_end_digits();
    let good = edit.get::<Dinode>(at, 0).ok().filter(|di| {
        di.file_type() == Some(FileType::Regular)
            && di.num.addr.get() == at.get()
            && di.flags().contains(DinodeFlags::SYSTEM)
    });
    match prefix {
        b"statfs" | b"statfs_change" | b"inum" | b"inum_range" if good.is_some() => {
            reset(edit, at)?;
            fill(edit, at, prefix, at)?;
            Ok(Verdict::Done)
        }
        b"quota_change" if good.is_some() => {
            fill_quota_change(edit, at)?;
            Ok(Verdict::Done)
        }
        _ => replace(edit, name, prefix),
    }
}

/// The superblock's number of a root directory: the directory knows better.
fn formal(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let Expected::Value(formal) = problem.expected else {
        return Ok(Verdict::Unable("the right number is not known"));
    };
    let at = edit.geometry().superblock();
    let of = inode_of(problem).get();
    edit.change::<Superblock>(at, 0, |sb| {
        for num in [&mut sb.master_dir, &mut sb.root_dir] {
            if num.addr.get() == of {
                num.formal_ino = formal.into();
            }
        }
    })?;
    Ok(Verdict::Done)
}

/// Takes the entry away that leads to what is no such file, and makes a new one.
fn replace(edit: &mut Editor<'_>, name: &[u8], prefix: &[u8]) -> Repaired {
    let master = edit.superblock.master_dir.num().addr;
    let parent = match prefix {
        b"statfs_change" | b"inum_range" | b"quota_change" => edit.seen.system.file("per_node"),
        b"journal" => edit.seen.system.file("jindex"),
        _ => Some(master),
    };
    let parent = parent.ok_or_else(|| no_file(master))?;
    let now = now(edit);
    remove(edit, parent, name, now)?;
    make(edit, parent, name)
}

/// The master directory: found elsewhere, or made of what belongs into it.
fn master(edit: &mut Editor<'_>) -> Repaired {
    let sb = edit.geometry().superblock();
    let found = scan::system_tree(edit.device(), edit.geometry());
    if let Some(num) = found.master {
        edit.change::<Superblock>(sb, 0, |sb| sb.master_dir = num.into())?;
        return Ok(Verdict::Done);
    }
    let addr = edit.superblock.master_dir.num().addr;
    if mend(edit, addr)? {
        return Ok(Verdict::Done);
    }
    if !may_overwrite(edit, &found, addr, found.master_was)? {
        return Ok(Verdict::Unable(
            "the superblock leads to another inode, and no master directory is left",
        ));
    }
    let formal = edit.superblock.master_dir.num().formal;
    let num = InodeNum { formal, addr };
    empty_dir(edit, num, num, 0o755, DinodeFlags::SYSTEM)?;
    let mut dirs = 0u32;
    for (name, num, kind) in &found.files {
        link(edit, addr, name.as_bytes(), *num, *kind)?;
        dirs = dirs.saturating_add(u32::from(*kind == FileType::Dir));
    }
    edit.change::<Dinode>(addr, 0, |di| di.nlink = dirs.saturating_add(2).into())?;
    Ok(Verdict::Done)
}

/// The root directory: found elsewhere, a copy of it from a journal, or an empty one.
fn root(edit: &mut Editor<'_>) -> Repaired {
    let sb = edit.geometry().superblock();
    let found = scan::system_tree(edit.device(), edit.geometry());
    if let Some(num) = found.root {
        edit.change::<Superblock>(sb, 0, |sb| sb.root_dir = num.into())?;
        return Ok(Verdict::Done);
    }
    let num = edit.superblock.root_dir.num();
    if mend(edit, num.addr)? {
        return Ok(Verdict::Done);
    }
    if !may_overwrite(edit, &found, num.addr, found.root_was)? {
        return Ok(Verdict::Unable(
            "the superblock leads to another inode, and no root directory is left",
        ));
    }
    if let Some(copy) = find::journal_copy(edit, num.addr)? {
        edit.replace(num.addr, &copy)?;
        return Ok(Verdict::Done);
    }
    let formal = FormalIno::new(num.formal.get().max(1));
    let num = InodeNum { formal, ..num };
    empty_dir(edit, num, num, 0o755, DinodeFlags::empty())?;
    Ok(Verdict::Done)
}

/// A directory whose dinode is there, but with fields that make it unreadable.
fn mend(edit: &mut Editor<'_>, addr: BlockAddr) -> Result<bool, Error> {
    let geometry = edit.geometry().clone();
    if addr.get() >= geometry.end() || !scan::is_inode(edit, addr)? {
        return Ok(false);
    }
    if Dinode::decode(&edit.read(addr)?, addr, &geometry).is_ok() {
        // It is an inode, and no directory.
        return Ok(false);
    }
    edit.change::<Dinode>(addr, 0, |di| {
        if di.file_type().is_none() {
            di.mode = (FileType::Dir.mode_bits() | 0o755).into();
        }
        if di.flags().contains(DinodeFlags::EXHASH) {
            let depth = u16::try_from((di.size.get() / 8).max(1).ilog2()).unwrap_or(0);
            di.depth = depth.clamp(geometry.initial_dir_depth(), MAX_DIR_DEPTH).into();
        } else {
            di.height = 0.into();
            di.depth = 0.into();
            di.size = geometry.max_stuffed().into();
        }
    })?;
    let whole = Dinode::decode(&edit.read(addr)?, addr, &geometry).is_ok_and(Dinode::is_dir);
    if !whole {
        edit.discard();
    }
    Ok(whole)
}

/// Is this the place of an inode that is gone? `was`: where directories say that it is.
fn may_overwrite(
    edit: &Editor<'_>,
    found: &scan::SystemTree,
    addr: BlockAddr,
    was: Option<InodeNum>,
) -> Result<bool, Error> {
    if addr <= edit.geometry().superblock() || addr.get() >= edit.geometry().end() {
        return Ok(false);
    }
    let marked = match found.state(edit, addr) {
        Some(BlockState::Dinode) => true,
        Some(BlockState::Used) => false,
        // A bitmap that is damaged, too, or cannot be found.
        _ => was.is_some_and(|was| was.addr == addr),
    };
    Ok(marked && !scan::is_inode(edit, addr)?)
}

/// Names without the number of their node.
trait Prefix {
    fn trim_ascii_end_digits(&self) -> &[u8];
}

impl Prefix for [u8] {
    fn trim_ascii_end_digits(&self) -> &[u8] {
        let digits = self.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        self.get(..self.len().saturating_sub(digits)).unwrap_or(self)
    }
}
