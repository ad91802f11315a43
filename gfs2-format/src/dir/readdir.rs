//! Showing entries in the order of stable positions.
//!
//! Position of an entry: its hash (32 bits), 18 bits of a second checksum of its name, and its rank (12 bits)
//! among the names that agree in both, in byte order of the names.

use super::area::Record;
use super::change::check_linear_count;
use super::table::{Chain, Dir, Run};
use crate::addr::{BlockAddr, InodeNum};
use crate::edit::BlockRead;
use crate::error::Result;
use crate::ondisk::{DINODE_SIZE, FileType};
use std::ops::ControlFlow;

const MIX_BITS: u32 = 18;
const RANK_BITS: u32 = 12;
/// Entries sorted at a time; also the number of ranks.
const WINDOW: usize = 1 << RANK_BITS;

/// A position in a directory: after one entry and before the next, in an order made of the names alone (hash
/// first). Stable across inserts, deletes, splits and conversion; at most 2^62, so that it fits a signed offset.
/// Entries whose names agree in 50 bits of two checksums are told apart by their rank among each other (up to
/// 4096 of them), the only part of a cookie that a delete can move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cookie(u64);

impl Cookie {
    /// Before the first entry.
    pub const START: Self = Self(0);

    /// From a number handed out before.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The number to hand out.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// After the entry of this order and rank.
    fn after(order: u64, rank: usize) -> Self {
        let rank = rank.min(WINDOW - 1) as u64;
        Self((order << RANK_BITS | rank) + 1)
    }

    /// The order (hash and mix) of the entry this is after.
    fn order(self) -> u64 {
        self.0.saturating_sub(1) >> RANK_BITS
    }

    fn hash(self) -> u32 {
        u32::try_from(self.order() >> MIX_BITS).unwrap_or(u32::MAX)
    }
}

/// An entry as [`read_from`] shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// The inode it names; not checked to be on the volume (a listing shows what is there).
    pub num: InodeNum,
    /// The file type it says.
    pub kind: FileType,
    /// The position after this entry.
    pub cookie: Cookie,
}

/// An entry waiting to be sorted.
struct Item {
    order: u64,
    name: Box<[u8]>,
    num: InodeNum,
    kind: FileType,
}

/// The first entries, in order, of those offered; bounded.
struct Window {
    /// Hashes that belong here: an entry that strayed is shown at the edge.
    hashes: (u32, u32),
    from: u64,
    items: Vec<Item>,
    overflowed: bool,
}

impl Window {
    fn new(hashes: (u32, u32), after: Cookie) -> Self {
        Self {
            hashes,
            from: after.order(),
            items: Vec::new(),
            overflowed: false,
        }
    }

    fn offer(&mut self, record: &Record<'_>) -> Result<()> {
        let (first, last) = self.hashes;
        let hash = u64::from(record.hash().clamp(first, last));
        let mix = u64::from(crc32c::crc32c(record.name)) & ((1 << MIX_BITS) - 1);
        let order = hash << MIX_BITS | mix;
        if order < self.from {
            return Ok(());
        }
        self.items.push(Item {
            order,
            name: record.name.into(),
            num: record.num(),
            kind: record.kind()?,
        });
        if self.items.len() >= 2 * WINDOW {
            self.cut();
        }
        Ok(())
    }

    fn cut(&mut self) {
        self.items
            .sort_unstable_by(|a, b| (a.order, &a.name).cmp(&(b.order, &b.name)));
        if self.items.len() > WINDOW {
            self.items.truncate(WINDOW);
            self.overflowed = true;
        }
    }

    /// Shows what is after `after`; tells the last position shown, or where the visitor broke.
    fn show(
        &mut self,
        after: Cookie,
        visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<(), Option<Cookie>> {
        self.cut();
        let (mut order, mut rank) = (None, 0usize);
        let mut shown = None;
        for item in &self.items {
            rank = if order == Some(item.order) {
                rank.saturating_add(1)
            } else {
                0
            };
            order = Some(item.order);
            let cookie = Cookie::after(item.order, rank);
            if cookie <= after {
                continue;
            }
            shown = Some(cookie);
            visit(Entry {
                name: &item.name,
                num: item.num,
                kind: item.kind,
                cookie,
            })?;
        }
        ControlFlow::Continue(shown)
    }
}

/// Shows the entries after a position, "." and ".." among them, in cookie order, until the visitor breaks. Reads
/// leaf chain by leaf chain, so that a call costs what it shows. Returns whether the end was reached.
///
/// # Errors
/// As [`super::lookup`]; [`crate::Error::Corrupt`] when `lf_entries` (or `di_entries` of a linear directory) is
/// not the number of entries found.
pub fn read_from<R: BlockRead + ?Sized>(
    reader: &R,
    dir: BlockAddr,
    after: Cookie,
    visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
) -> Result<bool> {
    let dir = Dir::open(reader, dir)?;
    if !dir.is_hashed() {
        return show_all(reader, &dir, None, (0, u32::MAX), after, visit);
    }
    let mut slot = dir.slot_of(after.hash());
    while slot < dir.slots() {
        let head = dir.leaf_of(reader, slot)?;
        let run = run_at(reader, &dir, slot, head)?;
        if !show_all(reader, &dir, Some(head), dir.hashes(run), after, visit)? {
            return Ok(false);
        }
        slot = run.start.saturating_add(run.len);
    }
    Ok(true)
}

fn run_at<R: BlockRead + ?Sized>(reader: &R, dir: &Dir, slot: u32, head: BlockAddr) -> Result<Run> {
    let leaf = super::table::LeafBlock::read(reader, head)?;
    dir.run_of(slot, head, leaf.depth())
}

/// Shows all entries of one chain (or of the linear area) after a position, a window at a time.
fn show_all<R: BlockRead + ?Sized>(
    reader: &R,
    dir: &Dir,
    head: Option<BlockAddr>,
    hashes: (u32, u32),
    after: Cookie,
    visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
) -> Result<bool> {
    let mut after = after;
    loop {
        let mut window = Window::new(hashes, after);
        match head {
            Some(head) => offer_chain(reader, head, &mut window)?,
            None => offer_linear(dir, &mut window)?,
        }
        after = match window.show(after, visit) {
            ControlFlow::Break(()) => return Ok(false),
            ControlFlow::Continue(_) if !window.overflowed => return Ok(true),
            ControlFlow::Continue(Some(last)) => last,
            // More names of one order than there are ranks: go on behind them.
            ControlFlow::Continue(None) => Cookie::after(after.order().saturating_add(1), 0),
        };
    }
}

fn offer_chain<R: BlockRead + ?Sized>(reader: &R, head: BlockAddr, window: &mut Window) -> Result<()> {
    let mut chain = Chain::new(head);
    while let Some(leaf) = chain.step(reader)? {
        let mut live = 0u32;
        for record in leaf.records() {
            let record = record?;
            if record.live {
                live = live.saturating_add(1);
                window.offer(&record)?;
            }
        }
        leaf.check_count(live)?;
    }
    Ok(())
}

fn offer_linear(dir: &Dir, window: &mut Window) -> Result<()> {
    let mut live = 0u32;
    for record in super::area::records(&dir.block, DINODE_SIZE, dir.addr) {
        let record = record?;
        if record.live {
            live = live.saturating_add(1);
            window.offer(&record)?;
        }
    }
    check_linear_count(dir, live)
}
