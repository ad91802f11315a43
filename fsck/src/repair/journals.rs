//! Journals: their rings, their inodes, their index.
//!
//! The ring of a journal is the one thing that is written at once and past the overlay: it can be a gigabyte, nothing
//! outside refers to it, and behind the guard of the superblock nobody reads it before the next check does.

use super::find::journals;
use super::sysfile::{fill_ring, link, new_file, now, rename_by_hash};
use super::{Editor, Repaired, Verdict, inode_of};
use crate::problem::{Kind, Problem};
use gfs2_format::dir::{lookup, remove};
use gfs2_format::log::JournalMap;
use gfs2_format::ondisk::{Dinode, DinodeFlags, FileType};
use gfs2_format::tree::{Mapping, map, map_or_alloc};
use gfs2_format::volume::{MAX_JOURNAL_SIZE, MIN_JOURNAL_SIZE, map_journal};
use gfs2_format::{BlockAddr, BlockRead, Error, FileBlock};

/// Size of a new journal when no other one tells.
const JOURNAL_SIZE: u64 = 32 << 20;
/// Blocks allocated at a time.
const RUN: u32 = 1 << 14;

/// See the module documentation.
pub(super) fn repair(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    match problem.kind {
        Kind::JournalHead | Kind::JournalSequence | Kind::JournalReplay => clear(edit, inode_of(problem)),
        Kind::JournalInode => inode(edit, problem),
        Kind::Jindex => index(edit, problem),
        _ => Ok(Verdict::Unable("it is no damage of a journal")),
    }
}

/// Makes a journal a clean, empty one; what it still held is lost.
fn clear(edit: &mut Editor<'_>, dinode: BlockAddr) -> Repaired {
    let ring = map_journal(edit, dinode)?;
    fill_ring(edit, dinode, &ring)?;
    Ok(Verdict::Done)
}

/// A journal whose inode lies: as long as its tree maps, or not a journal any more.
fn inode(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let at = inode_of(problem);
    if at.get() < edit.geometry().end() && map_journal(edit, at).is_ok() {
        return Ok(Verdict::Gone);
    }
    if let Some(size) = mapped(edit, at) {
        edit.change::<Dinode>(at, 0, |di| di.size = size.into())?;
        if map_journal(edit, at).is_ok() {
            return Ok(Verdict::Done);
        }
        edit.discard();
    }
    let (Some(jindex), Some(name)) = (edit.seen.system.file("jindex"), problem.name.as_deref()) else {
        return Ok(Verdict::Unable("there is no journal index"));
    };
    // A new one is made when blocks can be allocated.
    let now = now(edit);
    remove(edit, jindex, name, now)?;
    Ok(Verdict::Done)
}

/// Bytes that a journal's tree maps without a hole, if that can be a journal.
fn mapped(edit: &Editor<'_>, at: BlockAddr) -> Option<u64> {
    let geometry = edit.geometry();
    if at.get() >= geometry.end() {
        return None;
    }
    let block = edit.read(at).ok()?;
    let most = MAX_JOURNAL_SIZE >> geometry.bsize_shift();
    let mut blocks = 0u64;
    while blocks < most {
        match map(edit, at, &block, FileBlock::new(blocks), most - blocks) {
            Ok(Mapping::Data(extent)) => blocks = blocks.saturating_add(u64::from(extent.len.max(1))),
            _ => break,
        }
    }
    let size = blocks << geometry.bsize_shift();
    (MIN_JOURNAL_SIZE..=MAX_JOURNAL_SIZE)
        .contains(&size)
        .then_some(size)
}

/// A gap in the index: an entry whose name is damaged, or a new journal.
fn index(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let jindex = inode_of(problem);
    let count = (0..edit.seen.system.jindex.len().saturating_add(1)).find(|jid| {
        !matches!(
            lookup(edit, jindex, format!("journal{jid}").as_bytes()),
            Ok(Some(_))
        )
    });
    let Some(jid) = count else {
        return Ok(Verdict::Gone);
    };
    let name = format!("journal{jid}");
    let stray = problem.name.as_deref().unwrap_or_default();
    let still = !stray.is_empty() && lookup(edit, jindex, stray)?.is_some();
    if stray != name.as_bytes() && !stray.is_empty() && (!still || in_order(stray, jid)) {
        return Ok(Verdict::Gone);
    }
    if rename_by_hash(edit, jindex, name.as_bytes())? {
        return Ok(Verdict::Done);
    }
    if still && number(stray).is_none() {
        // What it leads to is no journal, and goes to lost+found if nothing else leads there.
        let now = now(edit);
        remove(edit, jindex, stray, now)?;
        return Ok(Verdict::Done);
    }
    if let Some(num) = journals(edit)?.first().copied() {
        link(edit, jindex, name.as_bytes(), num, FileType::Regular)?;
        if let Some(inode) = edit.seen.inodes.get_mut(num.addr) {
            inode.links = 1;
        }
        return Ok(Verdict::Done);
    }
    let size = journal_size(edit);
    let addr = new_file(edit, jindex, name.as_bytes(), DinodeFlags::empty())?;
    let blocks = size >> edit.geometry().bsize_shift();
    let mut at = 0u64;
    let mut extents = Vec::new();
    while at < blocks {
        let want = u32::try_from(blocks - at).unwrap_or(RUN).min(RUN);
        let run = map_or_alloc(edit, addr, FileBlock::new(at), want)?;
        at = at.saturating_add(u64::from(run.extent.len.max(1)));
        extents.push(run.extent);
    }
    edit.change::<Dinode>(addr, 0, |di| di.size = size.into())?;
    let ring = JournalMap::new(extents).ok_or(Error::NoSpace)?;
    fill_ring(edit, addr, &ring)?;
    Ok(Verdict::Done)
}

/// The number of a journal's name.
fn number(name: &[u8]) -> Option<usize> {
    let digits = name.strip_prefix(b"journal")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Is this the name of a journal below the first one that is missing?
fn in_order(name: &[u8], missing: usize) -> bool {
    number(name).is_some_and(|jid| jid < missing)
}

/// As large as the smallest of the others.
fn journal_size(edit: &Editor<'_>) -> u64 {
    let sizes = (0..edit.seen.system.journals()).filter_map(|jid| {
        let dinode = edit.seen.system.journal(jid)?;
        let size = edit.get::<Dinode>(dinode, 0).ok()?.size.get();
        (MIN_JOURNAL_SIZE..=MAX_JOURNAL_SIZE)
            .contains(&size)
            .then_some(size)
    });
    sizes.min().unwrap_or(JOURNAL_SIZE)
}
