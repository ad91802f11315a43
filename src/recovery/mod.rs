//! Journal recovery at mount: the first mounter replays every journal, in jid order, before anything is cached.
//!
//! The replay itself is [`gfs2_format::log`]; this module decides whether it may be done and says what happens in the
//! kernel's words. Invariants: on a device that cannot be written, and for a spectator, nothing is written; after an
//! error no later journal is touched. Must not know: who else may be recovering (the journal locks say).

use crate::cache::BufferCache;
use crate::error::{Errno, FsResult};
use gfs2_format::Jid;
use gfs2_format::log::{DeviceJournal, LogTime, RecoveryReport, ReplayCounts, find_head, recover_journal};
use gfs2_format::volume::{JournalFile, Volume};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What recovery may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Replay: a read-write mount.
    ReadWrite,
    /// Replay too: a read-only mount of a device that can be written.
    ReadOnlyMount,
    /// Refuse dirty journals with EROFS: a device that cannot be written.
    ReadOnlyDevice,
    /// Refuse dirty journals with EPERM: `spectator` (`norecovery`) as the first mounter.
    Spectator,
}

/// Recovers all journals of a volume as the first mounter, who owns journal `own` (a spectator none). Then drops
/// what was cached before, since the replay wrote past the cache.
///
/// # Errors
/// EROFS and EPERM as [`Access`] says; I/O errors; corruption of a journal; EIO after a withdraw.
pub fn recover_all(
    cache: &BufferCache,
    volume: &Volume,
    own: Jid,
    access: Access,
) -> FsResult<Vec<RecoveryReport>> {
    let mut reports = Vec::with_capacity(volume.journals.len());
    for journal in &volume.journals {
        reports.push(recover(cache, volume, journal, own, access)?);
    }
    tracing::info!(
        "fsid={}: first mount done, others may mount",
        cache.health().fsid()
    );
    Ok(reports)
}

/// Recovers one journal when it is dirty. The caller has the right to (its lock, or nobody else can be there).
///
/// # Errors
/// As [`recover_all`].
pub fn recover(
    cache: &BufferCache,
    volume: &Volume,
    journal: &JournalFile,
    own: Jid,
    access: Access,
) -> FsResult<RecoveryReport> {
    cache.health().check()?;
    let say = Speaker {
        fsid: cache.health().fsid(),
        jid: journal.jid,
    };
    say.line("Looking at journal...");
    let result = look_and_recover(cache, volume, journal, own, access, &say);
    cache.drop_clean();
    match &result {
        Ok(_) => say.line("Done"),
        Err(error) => {
            say.warn(&format!("{error}"));
            say.warn("Failed");
        }
    }
    result
}

fn look_and_recover(
    cache: &BufferCache,
    volume: &Volume,
    journal: &JournalFile,
    own: Jid,
    access: Access,
    say: &Speaker<'_>,
) -> FsResult<RecoveryReport> {
    let started = Instant::now();
    let device = &**cache.device();
    let reader = DeviceJournal::new(device, &volume.geometry, &journal.map);
    let found = find_head(&reader, &volume.geometry)?;
    let looked = started.elapsed();
    say.line(&format!("Journal head lookup took {}ms", looked.as_millis()));
    if let Some(head) = found.filter(|head| head.header.is_clean()) {
        return Ok(RecoveryReport {
            jid: journal.jid,
            found,
            head,
            counts: ReplayCounts::default(),
            change: Default::default(),
            master: None,
        });
    }
    check_access(access, say)?;
    if let Some(head) = found {
        let (tail, blkno) = (head.header.tail.get(), head.header.blkno.get());
        say.line(&format!("Replaying journal...0x{tail:x} to 0x{blkno:x}"));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = LogTime {
        sec: now.as_secs(),
        nsec: now.subsec_nanos(),
    };
    let replay = Instant::now();
    let report = recover_journal(device, volume, journal, own, now)?;
    say.counts(&report);
    let (total, replay) = (started.elapsed().as_millis(), replay.elapsed().as_millis());
    let looked = looked.as_millis();
    say.line(&format!(
        "Journal replayed in {total}ms [jlck:0ms, jhead:{looked}ms, tlck:0ms, replay:{replay}ms]"
    ));
    Ok(report)
}

fn check_access(access: Access, say: &Speaker<'_>) -> FsResult<()> {
    match access {
        Access::ReadWrite => Ok(()),
        Access::ReadOnlyMount => {
            say.plain("recovery required on read-only filesystem.");
            say.plain("write access will be enabled during recovery.");
            Ok(())
        }
        Access::ReadOnlyDevice => {
            say.warn("Can't replay: read-only block device");
            Err(Errno::EROFS.into())
        }
        Access::Spectator => {
            say.warn("Journal is dirty, so the first mounter must not be a spectator.");
            Err(Errno::EPERM.into())
        }
    }
}

/// Says things about one journal.
struct Speaker<'a> {
    fsid: &'a str,
    jid: Jid,
}

impl Speaker<'_> {
    fn plain(&self, text: &str) {
        tracing::info!("fsid={}: {text}", self.fsid);
    }

    fn line(&self, text: &str) {
        tracing::info!("fsid={}: jid={}: {text}", self.fsid, self.jid);
    }

    fn warn(&self, text: &str) {
        tracing::warn!("fsid={}: jid={}: {text}", self.fsid, self.jid);
    }

    fn counts(&self, report: &RecoveryReport) {
        let counts = report.counts;
        self.line(&format!(
            "Replayed {} of {} blocks",
            counts.replayed, counts.found
        ));
        self.line(&format!("Found {} revoke tags", counts.revokes));
        if let Some(master) = report.master {
            let change = report.change;
            self.plain(&format!(
                "Updated master statfs Total:{}, Free:{}, Dinodes:{} after change [{:+},{:+},{:+}]",
                master.total, master.free, master.dinodes, change.total, change.free, change.dinodes
            ));
        }
    }
}

#[cfg(test)]
mod tests;
