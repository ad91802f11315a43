//! Makes a directory anew from the entries in its leaves.
//!
//! Leaves are those the hash table leads to, their chains, and blocks nobody uses that say they are leaves of this
//! directory. Invariants: each leaf is read once; the old ones are left to be found as leaked; the dinode stays, with
//! everything in it that is not the list of entries.

use super::records::{name_of, records};
use super::sysfile::now;
use super::{Editor, Repaired, Verdict};
use crate::observed::Code;
use crate::pass::tree::{list_blocks, pointers};
use crate::reader::Reader;
use gfs2_format::dir::{self, NewEntry, check_name};
use gfs2_format::ondisk::{
    DINODE_SIZE, Dinode, FileType, Leaf, META_HEADER_SIZE, MetaHeader, MetaType, view,
};
use gfs2_format::{BlockAddr, BlockEdit, BlockRead, Error, InodeNum};
use std::collections::HashSet;

/// Unused blocks looked at together.
const BATCH: usize = 4096;

/// An entry to be kept.
struct Kept {
    name: Box<[u8]>,
    num: InodeNum,
    kind: FileType,
}

/// See the module documentation.
pub(super) fn rebuild(edit: &mut Editor<'_>, at: BlockAddr) -> Repaired {
    let di = edit.get::<Dinode>(at, 0)?;
    if !edit.seen.complete {
        return Ok(Verdict::Unable("a part of the check was left out"));
    }
    let mut leaves = leaf_blocks(edit, at)?;
    lost_leaves(edit, at, &mut leaves);
    leaves.sort_unstable();
    leaves.dedup();
    let mut kept: Vec<Kept> = Vec::new();
    let mut parent = edit.seen.directories.dotdots.get(&at).copied();
    for block in leaves {
        let bytes = edit.read(block)?;
        for record in records(&bytes, block) {
            let name = name_of(&bytes, &record);
            let num = record.dirent.inum.num();
            let Some(kind) = FileType::from_dirent_type(record.dirent.de_type.get()) else {
                continue;
            };
            if record.dirent.is_sentinel() || check_name(name).is_err() {
                continue;
            }
            match name {
                b"." => {}
                b".." => parent = Some(num.addr),
                _ => kept.push(Kept {
                    name: name.into(),
                    num,
                    kind,
                }),
            }
        }
    }
    kept.sort_by(|a, b| a.name.cmp(&b.name));
    kept.dedup_by(|a, b| a.name == b.name);
    let own = di.inode_num();
    let parent = edit
        .seen
        .directories
        .parents
        .get(&at)
        .copied()
        .or(parent)
        .unwrap_or(at);
    let formal = edit
        .seen
        .inodes
        .get(parent)
        .map_or(own.formal.get(), |inode| inode.formal);
    let above = InodeNum {
        addr: parent,
        formal: gfs2_format::FormalIno::new(formal),
    };
    let geometry = edit.geometry().clone();
    dir::init_dir(edit.edit(at)?, &geometry, own, above)?;
    edit.change::<Dinode>(at, 0, |di| {
        di.blocks = 1.into();
        di.goal_meta = at.get().into();
        di.goal_data = at.get().into();
    })?;
    let now = now(edit);
    for entry in &kept {
        let new = NewEntry {
            name: &entry.name,
            num: entry.num,
            kind: entry.kind,
            ea_follows: false,
        };
        dir::insert(edit, at, &new, now)?;
    }
    Ok(Verdict::Done)
}

/// The leaves of a hashed directory, those of chains too.
pub(super) fn leaf_blocks(edit: &Editor<'_>, at: BlockAddr) -> Result<Vec<BlockAddr>, Error> {
    let mut leaves = table(edit, at)?;
    let mut seen: HashSet<u64> = HashSet::new();
    let mut found = Vec::new();
    while let Some(raw) = leaves.pop() {
        if raw == 0 || raw >= edit.geometry().end() || !seen.insert(raw) {
            continue;
        }
        let block = BlockAddr::new(raw);
        let bytes = edit.read(block)?;
        if MetaHeader::check(&bytes, block, MetaType::Lf).is_ok() {
            leaves.push(view::<Leaf>(&bytes, 0, block)?.next.get());
            found.push(block);
        }
    }
    Ok(found)
}

/// The leaves the hash table leads to, as far as it can be read.
fn table(edit: &Editor<'_>, at: BlockAddr) -> Result<Vec<u64>, Error> {
    let block = edit.read(at)?;
    let di = edit.get::<Dinode>(at, 0)?;
    let slots = 1usize << di.depth.get().min(gfs2_format::geometry::MAX_DIR_DEPTH);
    if di.height.get() == 0 {
        return Ok(pointers(&block, DINODE_SIZE).take(slots).collect());
    }
    let count = (slots as u64).div_ceil((edit.geometry().jbsize() / 8).max(1));
    let mut reader = Reader::new(edit.device(), edit.geometry());
    let mut leaves = Vec::new();
    for hash in list_blocks(&mut reader, edit.geometry(), &di, &block, count)
        .into_iter()
        .flatten()
    {
        let bytes = edit.read(hash)?;
        if MetaHeader::check(&bytes, hash, MetaType::Jd).is_ok() {
            leaves.extend(pointers(&bytes, META_HEADER_SIZE));
        }
    }
    leaves.dedup();
    Ok(leaves)
}

/// Blocks that are marked used, that nobody uses, and that say they are leaves of this directory.
fn lost_leaves(edit: &Editor<'_>, at: BlockAddr, leaves: &mut Vec<BlockAddr>) {
    let mut reader = Reader::new(edit.device(), edit.geometry());
    for group in edit.seen.observed.groups() {
        let data0 = group.layout.data0();
        let unused: Vec<BlockAddr> = group
            .with_code(Code::Used, 0)
            .filter_map(|(index, _)| data0.checked_add(u64::from(index)))
            .collect();
        for batch in unused.chunks(BATCH) {
            reader.blocks(batch, |index, bytes| {
                let (Some(addr), Ok(bytes)) = (batch.get(index), bytes) else {
                    return;
                };
                let whole = MetaHeader::check(bytes, *addr, MetaType::Lf).is_ok();
                if whole && view::<Leaf>(bytes, 0, *addr).is_ok_and(|leaf| leaf.inode.get() == at.get()) {
                    leaves.push(*addr);
                }
            });
        }
    }
}
