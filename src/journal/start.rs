//! Going live behind a clean head, and leaving a clean head behind.

use super::ail::Pick;
use super::log::Journal;
use super::state::Phase;
use super::types::{FlushReason, StatfsDelta, StopReason};
use crate::cache::lock;
use crate::error::{FsError, FsResult};
use gfs2_format::Block;
use gfs2_format::log::{DeviceJournal, Head, find_head};
use gfs2_format::ondisk::{DINODE_SIZE, Dinode, LogFlags, StatfsChange, view};

impl Journal {
    /// Goes live: the head must be a clean header (recovery is done before); the log goes on behind it.
    ///
    /// # Errors
    /// I/O errors; [`FsError::Inconsistent`] when the journal is not clean; corruption of the statfs_change dinode;
    /// EROFS after a withdraw.
    pub fn start(&self) -> FsResult<()> {
        self.cache.health().check_modify()?;
        let _one = self.flush_token();
        if lock(&self.state).phase != Phase::Stopped {
            return Err(FsError::Inconsistent(format!(
                "journal {} is live already",
                self.config.jid
            )));
        }
        let head = self.clean_head()?;
        let (statfs_block, local) = self.read_statfs_change()?;
        let mut state = lock(&self.state);
        state.change += 1;
        let (addr, owner) = (self.config.statfs_change, self.config.statfs_glock);
        self.cache.put(addr, owner, &statfs_block, state.change, false);
        state.head = self.ring.advance(head.position, 1);
        state.tail = state.head;
        state.used = 0;
        state.idle = true;
        state.sequence = head.header.sequence;
        state.local = local;
        state.logged_local = local;
        state.statfs_block = statfs_block;
        state.phase = Phase::Live;
        drop(state);
        // A withdraw between the check above and here has found nobody to tell.
        if let Err(error) = self.cache.health().check_modify() {
            lock(&self.state).phase = Phase::Dead;
            return Err(error);
        }
        Ok(())
    }

    fn clean_head(&self) -> FsResult<Head> {
        let geometry = self.cache.geometry();
        let reader = DeviceJournal::new(self.writer.device(), geometry, &self.config.map);
        let jid = self.config.jid;
        let Some(head) = find_head(&reader, geometry)? else {
            return Err(FsError::Inconsistent(format!(
                "journal {jid} has no valid log header"
            )));
        };
        let (header, at) = (head.header, head.position);
        if header.blkno != at {
            return Err(FsError::Inconsistent(format!(
                "journal {jid}: the head at block {at} was written for block {}",
                header.blkno
            )));
        }
        if !header.is_clean() {
            return Err(FsError::Inconsistent(format!(
                "journal {jid} is dirty: head at block {at}, sequence {}, flags {:#x}",
                header.sequence,
                header.flags.bits()
            )));
        }
        Ok(head)
    }

    fn read_statfs_change(&self) -> FsResult<(Block, StatfsDelta)> {
        let geometry = self.cache.geometry();
        let addr = self.config.statfs_change;
        let mut block = Block::zeroed(geometry.block_len());
        let device = self.writer.device();
        device.read_at(geometry.byte_offset(addr), block.make_mut())?;
        let dinode = Dinode::decode(&block, addr, geometry)?;
        if dinode.height.get() != 0 {
            return Err(FsError::Inconsistent(format!(
                "the statfs_change dinode {addr} is not stuffed"
            )));
        }
        let raw: &StatfsChange = view(&block, DINODE_SIZE, addr)?;
        let (total, free, dinodes) = raw.signed();
        let local = StatfsDelta { total, free, dinodes };
        Ok((block, local))
    }

    /// Leaves the journal clean: waits for open transactions, writes file data, flushes, writes everything in place, writes the
    /// UNMOUNT header. Does nothing when not live. [`Journal::start`] may follow.
    ///
    /// # Errors
    /// I/O errors (which withdraw); after a withdraw no header is written.
    pub fn stop(&self, reason: StopReason) -> FsResult<()> {
        let mut state = lock(&self.state);
        match state.phase {
            Phase::Stopped => return Ok(()),
            Phase::Live => state.phase = Phase::Stopping,
            Phase::Stopping | Phase::Dead => {}
        }
        state.events += 1;
        drop(state);
        self.changed.notify_all();
        self.flush(FlushReason::MakeReadOnly)?;
        loop {
            self.wait_for_transactions()?;
            if let Err(error @ FsError::Withdrawn(_)) = self.cache.data().write_all() {
                return Err(error);
            }
            let one = self.flush_token();
            self.flush_running(reason.flags())?;
            let all = lock(&self.state).ail.next_commit();
            self.write_in_place(Pick::Before(all))?;
            let state = lock(&self.state);
            if state.open > 0 || !state.nothing_runs() {
                continue;
            }
            if state.ail.len() > 0 {
                let left = state.ail.len();
                drop(state);
                return Err(self.fail(format!("{left} committed blocks cannot be written in place")));
            }
            let (at, sequence, local) = (state.head, state.sequence + 1, state.logged_local);
            drop(state);
            self.writer.flush()?;
            let flags = LogFlags::UNMOUNT | LogFlags::LFC_SHUTDOWN;
            self.write_header(at, sequence, at, flags, local)?;
            let mut state = lock(&self.state);
            let keep = state.ail.next_commit();
            self.advance(&mut state, at, at, keep);
            state.idle = true;
            if state.open > 0 || !state.nothing_runs() {
                // A glock that was given up meanwhile had revokes to write: they and one more clean header follow.
                drop(state);
                drop(one);
                continue;
            }
            state.phase = match state.phase {
                Phase::Dead => Phase::Dead,
                _ => Phase::Stopped,
            };
            drop(state);
            drop(one);
            self.changed.notify_all();
            return Ok(());
        }
    }

    fn wait_for_transactions(&self) -> FsResult<()> {
        let mut state = lock(&self.state);
        while state.open > 0 && state.phase != Phase::Dead {
            state = self.changed.wait(state);
        }
        drop(state);
        self.cache.health().check()
    }
}
