//! What a filesystem is started with.

use crate::cache::BufferCache;
use crate::glock::GlockTable;
use crate::inode::FsOptions;
use crate::journal::Journal;
use gfs2_format::volume::Volume;
use std::fmt;
use std::sync::Arc;

/// Everything [`super::Fs::new`] needs.
#[derive(Clone)]
pub struct FsConfig {
    /// The volume: superblock and system files.
    pub volume: Volume,
    /// The cache over the volume's device; file data goes past it to the same device.
    pub cache: Arc<BufferCache>,
    /// Our journal, live unless the mount is read-only; `None` for a spectator.
    pub journal: Option<Arc<Journal>>,
    /// The locks.
    pub glocks: Arc<GlockTable>,
    /// Options.
    pub options: FsOptions,
}

impl fmt::Debug for FsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FsConfig")
            .field("system", &self.volume.system)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
