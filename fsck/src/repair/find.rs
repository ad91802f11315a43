//! Finds what a repair of the system tree needs: journals nobody leads to, old copies of a block in the journals.

use super::Editor;
use gfs2_format::log::{DeviceJournal, JournalRead, find_head};
use gfs2_format::ondisk::{Dinode, DinodeFlags, FileType, MetaHeader, MetaType};
use gfs2_format::volume::{MIN_JOURNAL_SIZE, map_journal};
use gfs2_format::{BlockAddr, BlockRead, Error, InodeNum};

/// Journals that no entry leads to, in the order they were made.
pub(super) fn journals(edit: &Editor<'_>) -> Result<Vec<InodeNum>, Error> {
    let mut found = Vec::new();
    let lost = edit
        .seen
        .inodes
        .iter()
        .filter(|inode| inode.links == 0 && inode.kind == Some(FileType::Regular));
    for inode in lost {
        let block = edit.read(inode.addr)?;
        let Ok(di) = Dinode::decode(&block, inode.addr, edit.geometry()) else {
            continue;
        };
        let system = di.flags().contains(DinodeFlags::SYSTEM) && di.size.get() >= MIN_JOURNAL_SIZE;
        let Some(map) = system.then(|| map_journal(edit, inode.addr).ok()).flatten() else {
            continue;
        };
        let first = map.address(gfs2_format::JournalBlock::new(0));
        let Some(first) = first else {
            continue;
        };
        if MetaHeader::check_magic(&edit.read(first)?, first, "journal").is_ok() {
            found.push(di.inode_num());
        }
    }
    found.sort_unstable_by_key(|num| (num.formal, num.addr));
    Ok(found)
}

/// The newest copy of a directory's dinode in a journal.
pub(super) fn journal_copy(edit: &Editor<'_>, addr: BlockAddr) -> Result<Option<Vec<u8>>, Error> {
    let geometry = edit.geometry().clone();
    for jid in 0..edit.seen.system.journals() {
        let Some(map) = edit
            .seen
            .system
            .journal(jid)
            .and_then(|dinode| map_journal(edit, dinode).ok())
        else {
            continue;
        };
        let ring = DeviceJournal::new(edit.device(), &geometry, &map);
        let Some(head) = find_head(&ring, &geometry)? else {
            continue;
        };
        let mut at = head.position;
        let mut block = vec![0; geometry.block_len()];
        for _ in 0..ring.ring().blocks() {
            at = ring.ring().previous(at);
            ring.read(at, &mut block)?;
            let whole = MetaHeader::check(&block, addr, MetaType::Di).is_ok();
            if whole && Dinode::decode(&block, addr, &geometry).is_ok_and(Dinode::is_dir) {
                return Ok(Some(block));
            }
        }
    }
    Ok(None)
}
