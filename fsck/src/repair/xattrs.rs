//! Extended attributes: the list of blocks, the blocks, the records, the blocks of values.
//!
//! Whatever the finding, everything the inode has is looked through: what cannot be used becomes an unused record, a
//! block that is none leaves the list, and an inode without a block left has no attributes. What they owned is found
//! by the next round.

use super::{Editor, Repaired, Verdict, inode_of};
use crate::pass::tree::pointers;
use crate::problem::Problem;
use gfs2_format::ondisk::{
    Dinode, DinodeFlags, EA_FLAG_LAST, EA_HEADER_SIZE, EaHeader, EaType, META_HEADER_SIZE, MetaHeader,
    MetaType, view,
};
use gfs2_format::{BlockAddr, BlockEdit, BlockRead, Error};
use std::collections::HashSet;

/// Largest value in bytes.
const VALUE_MAX: u64 = 65536;
/// The filesystem format from which on `trusted.` attributes exist.
const FORMAT_TRUSTED: u32 = 1802;

/// See the module documentation.
pub(super) fn repair(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let at = inode_of(problem);
    let di = edit.get::<Dinode>(at, 0)?;
    let eattr = di.eattr.get();
    if eattr == 0 {
        return Ok(Verdict::Gone);
    }
    let usable = match di.flags().contains(DinodeFlags::EA_INDIRECT) {
        true => list(edit, eattr)?,
        false => is_type(edit, eattr, MetaType::Ea) && block(edit, BlockAddr::new(eattr))?,
    };
    if !usable {
        clear(edit, at)?;
    }
    Ok(Verdict::Done)
}

/// Takes all attributes off an inode.
pub(super) fn clear(edit: &mut Editor<'_>, at: BlockAddr) -> Result<(), Error> {
    edit.change::<Dinode>(at, 0, |di| {
        di.eattr = 0.into();
        di.set_flags(di.flags() - DinodeFlags::EA_INDIRECT);
    })
}

/// Is it a block of a resource group, and of this type?
fn is_type(edit: &Editor<'_>, raw: u64, kind: MetaType) -> bool {
    let addr = BlockAddr::new(raw);
    let inside = raw < edit.geometry().end() && edit.group_of(addr).is_some();
    inside
        && edit
            .read(addr)
            .is_ok_and(|bytes| MetaHeader::check(&bytes, addr, kind).is_ok())
}

/// The list of blocks, closed up; answers whether anything is in it.
fn list(edit: &mut Editor<'_>, raw: u64) -> Result<bool, Error> {
    let addr = BlockAddr::new(raw);
    if !is_type(edit, raw, MetaType::In) {
        return Ok(false);
    }
    let bytes = edit.read(addr)?;
    let mut seen = HashSet::new();
    let mut good = Vec::new();
    for raw in pointers(&bytes, META_HEADER_SIZE).filter(|raw| *raw != 0) {
        if seen.insert(raw) && is_type(edit, raw, MetaType::Ea) && block(edit, BlockAddr::new(raw))? {
            good.push(raw);
        }
    }
    let body = edit.edit(addr)?.get_mut(META_HEADER_SIZE..).unwrap_or_default();
    body.fill(0);
    let words = good.iter().flat_map(|raw| raw.to_be_bytes());
    body.iter_mut().zip(words).for_each(|(to, from)| *to = from);
    Ok(!good.is_empty())
}

/// The records of a block; answers whether it can be used.
fn block(edit: &mut Editor<'_>, addr: BlockAddr) -> Result<bool, Error> {
    let bytes = edit.read(addr)?;
    let mut at = META_HEADER_SIZE;
    let mut previous = None;
    while let Ok(header) = view::<EaHeader>(&bytes, at, addr) {
        let left = bytes.len().saturating_sub(at);
        let rec_len = header.rec_len.get() as usize;
        let last = header.flags & EA_FLAG_LAST != 0;
        let whole = rec_len >= EA_HEADER_SIZE && rec_len.is_multiple_of(8) && rec_len <= left;
        if !whole || (last && rec_len != left && !fits(header, left)) {
            // The record behind it shows how long it is.
            let Some(next) = next_record(&bytes, addr, at, header) else {
                break;
            };
            let len = u32::try_from(next.saturating_sub(at)).unwrap_or(0);
            edit.change::<EaHeader>(addr, at, |header| {
                header.rec_len = len.into();
                header.flags &= !EA_FLAG_LAST;
            })?;
            return block(edit, addr);
        }
        if !is_good(edit, header, &bytes, at, if last { left } else { rec_len }) {
            edit.change::<EaHeader>(addr, at, |header| {
                header.ea_type = EaType::Unused as u8;
                header.num_ptrs = 0;
                header.data_len = 0.into();
            })?;
        }
        previous = Some(at);
        if last || rec_len == left {
            return end(edit, addr, at, left);
        }
        at = at.saturating_add(rec_len);
    }
    // What follows makes no sense: it belongs to the record before, or to one that is not used.
    let from = previous.unwrap_or(META_HEADER_SIZE);
    let left = bytes.len().saturating_sub(from);
    if previous.is_none() {
        edit.change::<EaHeader>(addr, from, |header| {
            *header = EaHeader {
                rec_len: 0.into(),
                data_len: 0.into(),
                name_len: 0,
                ea_type: EaType::Unused as u8,
                flags: 0,
                num_ptrs: 0,
                pad: 0.into(),
            };
        })?;
    }
    end(edit, addr, from, left)
}

/// Where the records go on behind one whose length is wrong: the first place from which they tile the rest.
fn next_record(bytes: &[u8], addr: BlockAddr, at: usize, header: &EaHeader) -> Option<usize> {
    let value = match header.num_ptrs {
        0 => header.data_len.get() as usize,
        count => usize::from(count).saturating_mul(8),
    };
    let least = EA_HEADER_SIZE
        .saturating_add(usize::from(header.name_len))
        .saturating_add(value)
        .next_multiple_of(8);
    let tiles = |from: usize| {
        let mut at = from;
        while let Ok(header) = view::<EaHeader>(bytes, at, addr) {
            let (rec_len, left) = (header.rec_len.get() as usize, bytes.len().saturating_sub(at));
            let last = header.flags & EA_FLAG_LAST != 0;
            if last || rec_len < EA_HEADER_SIZE || !rec_len.is_multiple_of(8) || rec_len >= left {
                return last && rec_len == left && EaType::from_raw(header.ea_type).is_some();
            }
            at = at.saturating_add(rec_len);
        }
        false
    };
    let from = at.checked_add(least.max(EA_HEADER_SIZE))?;
    (from..bytes.len()).step_by(8).find(|next| tiles(*next))
}

/// Is there room for the name of a record in what is left?
fn fits(header: &EaHeader, left: usize) -> bool {
    EA_HEADER_SIZE.saturating_add(usize::from(header.name_len)) <= left
}

/// Makes a record the last one of its block.
fn end(edit: &mut Editor<'_>, addr: BlockAddr, at: usize, left: usize) -> Result<bool, Error> {
    edit.change::<EaHeader>(addr, at, |header| {
        header.rec_len = u32::try_from(left).unwrap_or(0).into();
        header.flags |= EA_FLAG_LAST;
    })?;
    Ok(true)
}

/// Can the record be used as it is?
fn is_good(edit: &Editor<'_>, header: &EaHeader, bytes: &[u8], at: usize, rec_len: usize) -> bool {
    let name_len = usize::from(header.name_len);
    let count = usize::from(header.num_ptrs);
    let value_len = u64::from(header.data_len.get());
    let values = EA_HEADER_SIZE.saturating_add(name_len.next_multiple_of(8));
    let room = rec_len.saturating_sub(values) / 8;
    if header.ea_type == EaType::Unused as u8 {
        return count <= room && good_values(edit, bytes, at.saturating_add(values), count, true);
    }
    let trusted = edit.superblock.fs_format.get() >= FORMAT_TRUSTED;
    let most = if trusted {
        EaType::Trusted
    } else {
        EaType::Security
    };
    if name_len == 0 || EaType::from_raw(header.ea_type).is_none_or(|kind| kind > most) {
        return false;
    }
    if count == 0 {
        let inline = rec_len.saturating_sub(EA_HEADER_SIZE.saturating_add(name_len));
        return value_len <= inline as u64;
    }
    count <= room
        && count as u64 == value_len.div_ceil(edit.geometry().jbsize())
        && value_len <= VALUE_MAX
        && good_values(edit, bytes, at.saturating_add(values), count, false)
}

fn good_values(edit: &Editor<'_>, bytes: &[u8], start: usize, count: usize, holes: bool) -> bool {
    pointers(bytes, start)
        .take(count)
        .all(|raw| (holes && raw == 0) || is_type(edit, raw, MetaType::Ed))
}
