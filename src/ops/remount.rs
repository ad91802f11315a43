//! From read-only to read-write and back, while mounted.

use super::fs::{EVICTION_WAIT, Fs};
use crate::cache::DataFlusher;
use crate::error::FsResult;
use crate::inode::run_evictions;
use crate::journal::StopReason;

impl Fs {
    /// Does no verb change anything?
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.engine.is_read_only()
    }

    /// Goes live: the journal must be clean, as the mount has left it. Nothing happens when it is live already.
    ///
    /// # Errors
    /// EROFS without a journal, or after a withdraw; an unclean journal; I/O errors. Then it stays read-only.
    pub fn make_writable(&self) -> FsResult<()> {
        let engine = &self.engine;
        if !engine.is_read_only() {
            return Ok(());
        }
        engine.health().check_modify()?;
        let journal = engine.journal()?;
        let started = journal
            .start()
            .and_then(|()| DataFlusher::start(&engine.cache).map(Some));
        match started {
            Ok(flusher) => *self.flusher.lock() = flusher,
            Err(error) => {
                let error = engine.health().observe("remount read-write", error);
                // It may have been the thread.
                return journal.stop(StopReason::Shutdown).and(Err(error));
            }
        }
        engine.set_read_only(false);
        Ok(())
    }

    /// Writes no more: deallocates what is unlinked, syncs statfs, leaves the journal clean. The transport has seen to
    /// it that nobody has anything open for writing, or open and unlinked. Nothing happens when it is read-only already.
    ///
    /// # Errors
    /// I/O errors, which withdraw; it is read-only then, too.
    pub fn make_read_only(&self) -> FsResult<()> {
        let engine = &self.engine;
        if engine.is_read_only() {
            return Ok(());
        }
        let mut result = run_evictions(engine).map(|_| ());
        // The kernel has let go of these, and what it says of it is on its way.
        let left = engine.inodes.wait_unlinked(EVICTION_WAIT);
        if left > 0 {
            tracing::warn!(
                left,
                "unlinked inodes are still in use; they are deallocated when it is writable again"
            );
        }
        self.flusher.lock().take();
        if !engine.health().is_withdrawn() {
            result = result.and(engine.cache.data().write_all());
            result = result.and(self.totals.sync(engine));
        }
        engine.set_read_only(true);
        if let Some(journal) = engine
            .journal
            .as_ref()
            .filter(|_| !engine.health().is_withdrawn())
        {
            result = result.and(journal.stop(StopReason::Shutdown));
        }
        result.map_err(|error| engine.health().observe("remount read-only", error))
    }
}
