//! Hands out the blocks of system files: always the first free block of the volume.
//!
//! Invariant: nothing is ever freed while a volume is made, so what is taken is a prefix of the free blocks in address
//! order, and a position says all about it.

use crate::error::{Error, Result};
use crate::layout::{Layout, RgrpSpan};

/// First block of a group that its journal, if it has one, does not own.
fn first_free(layout: &Layout, rgrp: &RgrpSpan) -> u64 {
    if rgrp.index < layout.journals() {
        rgrp.data0 + layout.journal_file()
    } else {
        rgrp.data0
    }
}

/// The allocator while system files are laid out.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    layout: &'a Layout,
    rgrp: RgrpSpan,
    next: u64,
    taken: u64,
    dinodes: Vec<u64>,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(layout: &'a Layout) -> Result<Self> {
        let rgrp = layout.rgrp(0).ok_or(NO_ROOM)?;
        Ok(Self {
            layout,
            rgrp,
            next: first_free(layout, &rgrp),
            taken: 0,
            dinodes: Vec::new(),
        })
    }

    /// Takes the first free block.
    pub(crate) fn take(&mut self) -> Result<u64> {
        while self.next >= self.rgrp.end() {
            self.rgrp = self.layout.rgrp(self.rgrp.index + 1).ok_or(NO_ROOM)?;
            self.next = first_free(self.layout, &self.rgrp);
        }
        let block = self.next;
        self.next += 1;
        self.taken += 1;
        Ok(block)
    }

    /// Takes the first free block for a dinode.
    pub(crate) fn take_dinode(&mut self) -> Result<u64> {
        let block = self.take()?;
        self.dinodes.push(block);
        Ok(block)
    }

    /// What has been taken so far.
    pub(crate) fn usage(&self) -> Usage {
        Usage {
            rgrp: self.rgrp.index,
            next: self.next,
            taken: self.taken,
            dinodes: self.dinodes.clone(),
        }
    }
}

const NO_ROOM: Error = Error::NoRoom {
    what: "the system files",
};

/// The blocks system files own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    rgrp: u64,
    next: u64,
    taken: u64,
    dinodes: Vec<u64>,
}

impl Usage {
    /// Blocks taken.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Dinodes among them, in address order.
    pub(crate) fn dinodes(&self) -> &[u64] {
        &self.dinodes
    }

    /// First block of a group's data that nobody owns.
    pub(crate) fn used_end(&self, layout: &Layout, rgrp: &RgrpSpan) -> u64 {
        match rgrp.index.cmp(&self.rgrp) {
            std::cmp::Ordering::Less => rgrp.end(),
            std::cmp::Ordering::Equal => self.next,
            std::cmp::Ordering::Greater => first_free(layout, rgrp),
        }
    }

    /// The system files' dinodes within a group.
    pub(crate) fn dinodes_in(&self, rgrp: &RgrpSpan) -> &[u64] {
        let from = self.dinodes.partition_point(|block| *block < rgrp.data0);
        let to = self.dinodes.partition_point(|block| *block < rgrp.end());
        self.dinodes.get(from..to).unwrap_or_default()
    }
}
