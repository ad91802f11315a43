//! Directories and inodes that nothing leads to, ".." that leads elsewhere, link counts.

use super::directories::set_dotdot;
use super::inodes::delete;
use super::sysfile::{empty_dir, link};
use super::{Editor, Repaired, Verdict, inode_of, records};
use crate::problem::{Kind, Problem};
use gfs2_format::dir::lookup;
use gfs2_format::ondisk::{Dinode, DinodeFlags, FileType};
use gfs2_format::{BlockAddr, BlockRead, Error, Expected, InodeNum};

const LOST_FOUND: &[u8] = b"lost+found";

/// See the module documentation.
pub(super) fn repair(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let at = inode_of(problem);
    match (problem.kind, problem.expected) {
        (Kind::LinkCount, Expected::Value(links)) => {
            let links = u32::try_from(links).unwrap_or(u32::MAX);
            edit.change::<Dinode>(at, 0, |di| di.nlink = links.into())?;
            Ok(Verdict::Done)
        }
        (Kind::DotdotTarget, Expected::Value(parent)) => {
            let parent = edit.get::<Dinode>(BlockAddr::new(parent), 0)?.inode_num();
            set_dotdot(edit, at, parent)?;
            Ok(Verdict::Done)
        }
        (Kind::Orphan, _) => orphan(edit, at),
        (Kind::EmptyOrphan | Kind::EmptyDirectory | Kind::BadOrphan, _) => {
            delete(edit, at)?;
            Ok(Verdict::Done)
        }
        (Kind::Unreachable, _) => unreachable(edit, at),
        _ => Ok(Verdict::Unable("it is no damage of the tree of directories")),
    }
}

/// An inode without an entry: into lost+found.
fn orphan(edit: &mut Editor<'_>, at: BlockAddr) -> Repaired {
    let di = edit.get::<Dinode>(at, 0)?;
    let Some(kind) = di.file_type() else {
        return Ok(Verdict::Unable("its type is not known"));
    };
    if di.flags().contains(DinodeFlags::SYSTEM) {
        return replaced(edit, at);
    }
    let lost_found = lost_found(edit)?;
    let what = match kind {
        FileType::Fifo => "fifo",
        FileType::Char => "chrdev",
        FileType::Block => "blkdev",
        FileType::Symlink => "link",
        FileType::Socket => "socket",
        FileType::Regular | FileType::Dir => "file",
    };
    put(
        edit,
        lost_found,
        &format!("lost_{what}_{at}"),
        di.inode_num(),
        kind,
    )?;
    edit.change::<Dinode>(at, 0, |di| di.nlink = 1.into())?;
    Ok(Verdict::Done)
}

/// An inode of the system tree has no place anywhere else: where the tree is whole, another one has replaced it.
fn replaced(edit: &mut Editor<'_>, at: BlockAddr) -> Repaired {
    let system = &edit.seen.system;
    let files = ["jindex", "per_node", "inum", "statfs", "rindex", "quota"];
    if system.journals() == 0 || files.iter().any(|name| system.file(name).is_none()) {
        return Ok(Verdict::Unable(
            "it may be what the system tree lacks; that has to be repaired first",
        ));
    }
    delete(edit, at)?;
    Ok(Verdict::Done)
}

/// A directory that no way leads to: cut out of its loop, and into lost+found.
fn unreachable(edit: &mut Editor<'_>, at: BlockAddr) -> Repaired {
    let di = edit.get::<Dinode>(at, 0)?;
    if di.flags().contains(DinodeFlags::SYSTEM) {
        return replaced(edit, at);
    }
    if let Some(parent) = edit.seen.directories.parents.get(&at).copied() {
        cut(edit, parent, at)?;
    }
    let lost_found = lost_found(edit)?;
    if lost_found == at {
        return Ok(Verdict::Gone);
    }
    put(
        edit,
        lost_found,
        &format!("lost_dir_{at}"),
        di.inode_num(),
        FileType::Dir,
    )?;
    let above = edit.get::<Dinode>(lost_found, 0)?.inode_num();
    set_dotdot(edit, at, above)?;
    edit.change::<Dinode>(lost_found, 0, |di| {
        di.nlink = di.nlink.get().saturating_add(1).into()
    })?;
    Ok(Verdict::Done)
}

/// Takes the entry away that leads from `parent` to `child`.
pub(super) fn cut(edit: &mut Editor<'_>, parent: BlockAddr, child: BlockAddr) -> Result<(), Error> {
    let di = edit.get::<Dinode>(parent, 0)?;
    let blocks = match di.flags().contains(DinodeFlags::EXHASH) {
        true => super::rebuild::leaf_blocks(edit, parent)?,
        false => vec![parent],
    };
    for block in blocks {
        let bytes = edit.read(block)?;
        let hit = records::records(&bytes, block).into_iter().find(|record| {
            let name = records::name_of(&bytes, record);
            record.dirent.inum.num().addr == child && !matches!(name, b"." | b"..")
        });
        if let Some(record) = hit {
            return records::delete(edit, parent, &record);
        }
    }
    Ok(())
}

/// Adds an entry; a name that is there already leads to the same inode or gets a number behind it.
fn put(
    edit: &mut Editor<'_>,
    dir: BlockAddr,
    name: &str,
    num: InodeNum,
    kind: FileType,
) -> Result<(), Error> {
    let mut result = link(edit, dir, name.as_bytes(), num, kind);
    let mut again = 0u32;
    while matches!(result, Err(Error::Exists)) && again < 1000 {
        again += 1;
        result = link(edit, dir, format!("{name}.{again}").as_bytes(), num, kind);
    }
    result
}

/// The directory for what is found again; made when it is missing.
fn lost_found(edit: &mut Editor<'_>) -> Result<BlockAddr, Error> {
    let root = edit.superblock.root_dir.num();
    if let Some(found) = lookup(edit, root.addr, LOST_FOUND)?
        && found.kind == FileType::Dir
    {
        return Ok(found.num.addr);
    }
    let num = edit.new_inode(root.addr)?;
    empty_dir(edit, num, root, 0o700, DinodeFlags::empty())?;
    put(edit, root.addr, "lost+found", num, FileType::Dir)?;
    edit.change::<Dinode>(root.addr, 0, |di| {
        di.nlink = di.nlink.get().saturating_add(1).into()
    })?;
    Ok(num.addr)
}
