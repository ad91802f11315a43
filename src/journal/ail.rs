//! What is committed and not yet in place (the AIL), and which copies of which blocks stand in the active log.
//!
//! Pure bookkeeping. Invariants: an entry holds the snapshot of the newest *durable* commit of its block; every
//! entry's block is in the index of logged copies; `pending` of a commit counts its entries that nothing has made
//! unnecessary; commits leave only from the oldest end, when a header with a tail behind them is durable.

use crate::glock::GlockName;
use crate::hash::{QuickMap, QuickSet};
use gfs2_format::{Block, BlockAddr, JournalBlock};
use std::collections::VecDeque;

/// A commit between tail and head.
struct Commit {
    /// First journal block of it: where the tail stands as long as it is the oldest.
    first: JournalBlock,
    pending: u32,
    blocks: Vec<BlockAddr>,
}

/// A committed block that is not in place.
struct Entry {
    block: Block,
    commit: u64,
    /// The flush that is under way logs or revokes it: this copy is not needed once that is durable.
    superseded: bool,
}

/// The newest copy of a block in the active log.
struct Logged {
    owner: GlockName,
    commit: u64,
}

/// What to write in place.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pick {
    /// Everything of commits with a number below this.
    Before(u64),
    /// Everything of this glock.
    Owner(GlockName),
}

/// A block on its way into place.
#[derive(Debug)]
pub(super) struct InPlace {
    pub(super) addr: BlockAddr,
    pub(super) block: Block,
    commit: u64,
}

/// Where the tail may stand, and the first commit it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    /// `None`: wherever the next header's commit starts.
    pub(super) at: Option<JournalBlock>,
    pub(super) keep: u64,
}

/// The AIL.
#[derive(Default)]
pub(super) struct Ail {
    commits: VecDeque<Commit>,
    /// Number of the oldest commit in `commits`.
    oldest: u64,
    entries: QuickMap<BlockAddr, Entry>,
    logged: QuickMap<BlockAddr, Logged>,
    owners: QuickMap<GlockName, QuickSet<BlockAddr>>,
}

impl Ail {
    /// Number the next commit will have.
    pub(super) fn next_commit(&self) -> u64 {
        self.oldest + self.commits.len() as u64
    }

    /// Blocks not in place.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Can a copy of this block stand between tail and head?
    pub(super) fn is_logged(&self, addr: BlockAddr) -> bool {
        self.logged.contains_key(&addr)
    }

    /// Whose block the newest copy in the log is.
    pub(super) fn owner_of(&self, addr: BlockAddr) -> Option<GlockName> {
        self.logged.get(&addr).map(|l| l.owner)
    }

    /// Does any copy of a block of this glock stand in the log?
    pub(super) fn has_copies(&self, owner: GlockName) -> bool {
        self.owners.contains_key(&owner)
    }

    /// Blocks of this glock with copies in the log whose newest one is in place.
    pub(super) fn settled_copies(&self, owner: GlockName) -> Vec<BlockAddr> {
        let all = self.owners.get(&owner).into_iter().flatten();
        all.copied()
            .filter(|addr| !self.entries.contains_key(addr))
            .collect()
    }

    fn commit_mut(&mut self, number: u64) -> Option<&mut Commit> {
        let index = usize::try_from(number.checked_sub(self.oldest)?).ok()?;
        self.commits.get_mut(index)
    }

    /// The flush that begins now logs or revokes this block.
    pub(super) fn supersede(&mut self, addr: BlockAddr) {
        let Some(entry) = self.entries.get_mut(&addr).filter(|e| !e.superseded) else {
            return;
        };
        entry.superseded = true;
        let commit = entry.commit;
        if let Some(commit) = self.commit_mut(commit) {
            commit.pending -= 1;
        }
    }

    /// Where the tail of a header written after the next device flush may stand.
    pub(super) fn tail(&self) -> Tail {
        match self.commits.iter().position(|c| c.pending > 0) {
            Some(n) => Tail {
                at: Some(self.commits[n].first),
                keep: self.oldest + n as u64,
            },
            None => Tail {
                at: None,
                keep: self.next_commit(),
            },
        }
    }

    /// First commit number that may stay so that `want` blocks from `tail` on become free.
    pub(super) fn commits_to_free(&self, want: u64, distance: impl Fn(JournalBlock) -> u32) -> u64 {
        let enough = |c: &Commit| u64::from(distance(c.first)) >= want;
        match self.commits.iter().position(enough) {
            Some(n) => self.oldest + n as u64,
            None => self.next_commit(),
        }
    }

    /// A flush is durable: its blocks are not in place, what it superseded is forgotten. Gives the addresses that
    /// lose a pin in the cache.
    pub(super) fn commit_done<'a>(
        &mut self,
        first: JournalBlock,
        blocks: impl Iterator<Item = (BlockAddr, GlockName, &'a Block)>,
        revokes: &QuickSet<BlockAddr>,
    ) -> Vec<BlockAddr> {
        let number = self.next_commit();
        let mut unpin = Vec::new();
        let mut list = Vec::new();
        for (addr, owner, block) in blocks {
            let entry = Entry {
                block: block.clone(),
                commit: number,
                superseded: false,
            };
            if self.entries.insert(addr, entry).is_some() {
                // The AIL has its pin already.
                unpin.push(addr);
            }
            self.forget_owner(addr);
            self.owners.entry(owner).or_default().insert(addr);
            self.logged.insert(
                addr,
                Logged {
                    owner,
                    commit: number,
                },
            );
            list.push(addr);
        }
        for addr in revokes {
            // Copies before the revoke are dead, and it stands in the log as long as they do.
            self.forget_owner(*addr);
            self.logged.remove(addr);
            if self.entries.remove(addr).is_some() {
                unpin.push(*addr);
            }
        }
        // So that what goes in place comes in few pieces.
        list.sort_unstable();
        self.commits.push_back(Commit {
            first,
            pending: u32::try_from(list.len()).unwrap_or(u32::MAX),
            blocks: list,
        });
        unpin
    }

    fn forget_owner(&mut self, addr: BlockAddr) {
        let Some(owner) = self.owner_of(addr) else { return };
        if let Some(set) = self.owners.get_mut(&owner) {
            set.remove(&addr);
            if set.is_empty() {
                self.owners.remove(&owner);
            }
        }
    }

    /// A header with its tail at commit `keep` is durable: the commits before are out of the log.
    pub(super) fn retire(&mut self, keep: u64) {
        while self.oldest < keep {
            let Some(commit) = self.commits.pop_front() else {
                self.oldest = keep;
                return;
            };
            debug_assert_eq!(commit.pending, 0, "the tail passes a commit that is not in place");
            for addr in commit.blocks {
                if self.logged.get(&addr).is_some_and(|l| l.commit == self.oldest) {
                    self.forget_owner(addr);
                    self.logged.remove(&addr);
                }
            }
            self.oldest += 1;
        }
    }

    /// Up to `limit` blocks to write in place; those `skip` names need not be (they were freed).
    pub(super) fn pick(&self, what: Pick, limit: usize, skip: impl Fn(BlockAddr) -> bool) -> Vec<InPlace> {
        let candidate = |addr: &BlockAddr| {
            let entry = self.entries.get(addr)?;
            (!entry.superseded && !skip(*addr)).then(|| InPlace {
                addr: *addr,
                block: entry.block.clone(),
                commit: entry.commit,
            })
        };
        match what {
            Pick::Owner(owner) => {
                let all = self.owners.get(&owner).into_iter().flatten();
                all.filter_map(candidate).take(limit).collect()
            }
            Pick::Before(number) => {
                let mut out = Vec::new();
                for (n, commit) in (self.oldest..number).zip(&self.commits) {
                    if commit.pending == 0 {
                        continue;
                    }
                    let own = commit
                        .blocks
                        .iter()
                        .filter_map(candidate)
                        .filter(|p| p.commit == n);
                    out.extend(own.take(limit - out.len()));
                    if out.len() == limit {
                        break;
                    }
                }
                out
            }
        }
    }

    /// A block has been written in place: true when its cache pin is to be taken away, false when a newer commit
    /// took it over meanwhile.
    pub(super) fn written(&mut self, done: &InPlace) -> bool {
        match self.entries.get(&done.addr) {
            Some(entry) if entry.commit == done.commit && !entry.superseded => {}
            _ => return false,
        }
        self.entries.remove(&done.addr);
        if let Some(commit) = self.commit_mut(done.commit) {
            commit.pending -= 1;
        }
        true
    }
}
