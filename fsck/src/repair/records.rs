//! The records of a directory block: finding, deleting, setting right.

use super::Editor;
use gfs2_format::ondisk::{
    DINODE_SIZE, DIRENT_SIZE, Dinode, Dirent, LEAF_SIZE, Leaf, MAX_NAME, MetaHeader, MetaType, name_hash,
    view,
};
use gfs2_format::{BlockAddr, BlockRead, Error};

/// A record and the one before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) block: BlockAddr,
    pub(super) at: usize,
    pub(super) previous: Option<usize>,
    pub(super) dirent: Dirent,
}

/// Is the block a leaf? Else its entries stand behind a dinode.
pub(super) fn is_leaf(bytes: &[u8], block: BlockAddr) -> bool {
    MetaHeader::check(bytes, block, MetaType::Lf).is_ok()
}

/// Where the records of a block begin.
pub(super) fn first(bytes: &[u8], block: BlockAddr) -> usize {
    if is_leaf(bytes, block) {
        LEAF_SIZE
    } else {
        DINODE_SIZE
    }
}

/// The name of a record, as far as it lies in the block.
pub(super) fn name_of<'a>(bytes: &'a [u8], record: &Record) -> &'a [u8] {
    let start = record.at.saturating_add(DIRENT_SIZE);
    let end = start.saturating_add(usize::from(record.dirent.name_len.get()));
    bytes.get(start..end).unwrap_or_default()
}

/// Every record of a block, up to and including the first whose length leads nowhere.
pub(super) fn records(bytes: &[u8], block: BlockAddr) -> Vec<Record> {
    let mut found = Vec::new();
    let (mut at, mut previous) = (first(bytes, block), None);
    while let Ok(dirent) = view::<Dirent>(bytes, at, block) {
        found.push(Record {
            block,
            at,
            previous,
            dirent: *dirent,
        });
        if !is_whole(dirent, bytes.len().saturating_sub(at)) {
            break;
        }
        previous = Some(at);
        at = at.saturating_add(usize::from(dirent.rec_len.get()));
    }
    found
}

/// Does the length of a record lead to the next one or to the end?
pub(super) fn is_whole(dirent: &Dirent, left: usize) -> bool {
    let rec_len = usize::from(dirent.rec_len.get());
    rec_len >= DIRENT_SIZE && rec_len.is_multiple_of(8) && rec_len <= left
}

/// The last live record of this name that `wanted` agrees with.
pub(super) fn find(
    edit: &Editor<'_>,
    block: BlockAddr,
    name: &[u8],
    wanted: impl Fn(&Dirent) -> bool,
) -> Result<Option<Record>, Error> {
    let bytes = edit.read(block)?;
    let live = records(&bytes, block).into_iter().rev();
    let mut named = live.filter(|record| !record.dirent.is_sentinel() && name_of(&bytes, record) == name);
    Ok(named.find(|record| wanted(&record.dirent)))
}

/// Takes a record out: the one before it takes its room, the first one stays as an empty one. The counts follow.
pub(super) fn delete(edit: &mut Editor<'_>, dir: BlockAddr, record: &Record) -> Result<(), Error> {
    let leaf = is_leaf(&edit.read(record.block)?, record.block);
    match record.previous {
        Some(previous) => edit.change::<Dirent>(record.block, previous, |before| {
            let len = before.rec_len.get().saturating_add(record.dirent.rec_len.get());
            before.rec_len = len.into();
        })?,
        None => edit.change::<Dirent>(record.block, record.at, |dirent| {
            dirent.inum.formal_ino = 0.into();
            dirent.inum.addr = 0.into();
        })?,
    }
    if leaf {
        edit.change::<Leaf>(record.block, 0, |leaf| {
            leaf.entries = leaf.entries.get().saturating_sub(1).into();
        })?;
    }
    edit.change::<Dinode>(dir, 0, |di| {
        di.entries = di.entries.get().saturating_sub(1).into()
    })
}

/// How long a record must be whose length leads nowhere: to the next place where a record proves itself by the hash
/// of its name, or to the end.
pub(super) fn true_length(bytes: &[u8], block: BlockAddr, at: usize) -> usize {
    let least = at.saturating_add(DIRENT_SIZE);
    let next = (least..bytes.len()).step_by(8).find(|next| {
        view::<Dirent>(bytes, *next, block).is_ok_and(|dirent| {
            let name_len = usize::from(dirent.name_len.get());
            let start = next.saturating_add(DIRENT_SIZE);
            let name = bytes
                .get(start..start.saturating_add(name_len))
                .unwrap_or_default();
            let whole = is_whole(dirent, bytes.len().saturating_sub(*next));
            whole && (1..=MAX_NAME).contains(&name_len) && name_hash(name) == dirent.hash.get()
        })
    });
    next.unwrap_or(bytes.len()).saturating_sub(at)
}

/// How long the name of a record must be to have its hash.
pub(super) fn true_name_len(bytes: &[u8], record: &Record) -> Option<u16> {
    let start = record.at.saturating_add(DIRENT_SIZE);
    let room = usize::from(record.dirent.rec_len.get())
        .saturating_sub(DIRENT_SIZE)
        .min(MAX_NAME);
    let area = bytes.get(start..start.saturating_add(room))?;
    let len = (1..=area.len()).find(|len| {
        area.get(..*len)
            .is_some_and(|n| name_hash(n) == record.dirent.hash.get())
    });
    u16::try_from(len?).ok()
}
