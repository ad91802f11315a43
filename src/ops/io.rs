//! Open files: open, release, read, write, fsync, lseek.

use super::attr::check_mutable;
use super::fs::Fs;
use super::handle::{Dir, Handle, Open, OpenFlags};
use super::types::{Caller, SeekWhat};
use crate::error::{Errno, FsResult};
use crate::glock::{HolderFlags, State};
use crate::inode::{
    AtimeMode, Engine, Inode, Locked, MAX_FILE_SIZE, WriteOptions, now, read, set_size, write,
};
use crate::txn::{CommitSeq, Reservation};
use crate::xattr;
use gfs2_format::ondisk::{Dinode, DinodeFlags, FileType};
use gfs2_format::time::Timestamp;
use gfs2_format::{BlockAddr, FileBlock, tree};
use std::sync::atomic::Ordering;

/// `relatime` moves an access time that is as old as this, in seconds, whatever the other times are.
const RELATIME_SECS: i64 = 24 * 60 * 60;

impl Fs {
    /// Opens a file.
    ///
    /// # Errors
    /// EISDIR for writing a directory, EPERM for writing immutable files or append-only ones otherwise than with APPEND,
    /// EROFS.
    pub fn open(&self, ino: BlockAddr, flags: OpenFlags) -> FsResult<Handle> {
        let writes = flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE);
        self.run("open", |engine| {
            let inode = engine.inodes.get(ino)?;
            if writes {
                engine.check_writable()?;
                if inode.kind() == FileType::Dir {
                    return Err(Errno::EISDIR.into());
                }
            }
            if writes {
                // EX, not SH as in the kernel, which hears of each first store into a page and asks for EX then.
                // We hear of none: from the open on, pages are in the kernel only while the lock is ours EX.
                let mut locked = engine.exclusive(&inode)?;
                check_open(locked.dinode(), flags)?;
                if flags.contains(OpenFlags::TRUNCATE) && inode.kind() == FileType::Regular {
                    set_size(&mut locked, 0, now(), &|_| {})?;
                }
                inode.writers.fetch_add(1, Ordering::Relaxed);
            } else {
                check_open(engine.shared_any(&inode)?.dinode(), flags)?;
            }
            let failures = engine.cache.data().failure_mark(inode.glock().name());
            Ok(self.handles.add(inode, flags, failures))
        })
    }

    /// Closes a handle of [`Fs::open`], [`Fs::create`] or [`Fs::opendir`]. The last one of an unlinked, forgotten
    /// inode deallocates it.
    pub fn release(&self, handle: Handle) {
        if let Some(open) = self.handles.remove(handle) {
            if open.flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE) {
                self.engine.leave_writers(&open.inode);
            }
            drop(open);
            self.settle();
        }
    }

    /// Fills `buf` from `offset`; fewer bytes only at the end of the file. Device I/O goes straight into `buf` where
    /// its alignment allows; what lies in `buf` behind the bytes read is undefined.
    ///
    /// # Errors
    /// EBADF, EISDIR, EINVAL for what has no data.
    pub fn read(&self, handle: Handle, offset: u64, buf: &mut [u8]) -> FsResult<usize> {
        self.run_pages("read", |engine| {
            let open = self.handles.get(handle)?;
            check_regular(&open.inode)?;
            let (n, dinode) = {
                let locked = engine.shared_pages(&open.inode)?;
                (read(&locked, offset, buf)?, *locked.dinode())
            };
            touch(engine, &open.inode, &dinode)?;
            Ok(n)
        })
    }

    /// Writes; `append` puts the bytes at the true end of the file whatever `offset` says. `kill_suidgid`: set-id
    /// bits and capabilities are cleared. Fewer bytes than asked for only when an error came after some.
    ///
    /// # Errors
    /// EBADF, EFBIG, ENOSPC, EINVAL.
    pub fn write(
        &self,
        _caller: &Caller,
        handle: Handle,
        offset: u64,
        data: &[u8],
        append: bool,
        kill_suidgid: bool,
    ) -> FsResult<usize> {
        let open = self.handles.get(handle)?;
        let (written, flags) = self.put(&open, offset, data, append, |now| WriteOptions {
            now: Some(now),
            kill_suidgid,
            direct: open.flags.contains(OpenFlags::DIRECT),
            whole: false,
        })?;
        let syncs = open.flags.intersects(OpenFlags::SYNC | OpenFlags::DSYNC);
        if syncs || flags.contains(DinodeFlags::SYNC) {
            self.run("write", |engine| {
                sync_file(engine, &open, !open.flags.contains(OpenFlags::SYNC))
            })?;
        }
        Ok(written)
    }

    /// Writes pages that the kernel has kept: all of them or an error, for it would not send the rest again. `stamps`:
    /// the times are ours to set; otherwise the kernel keeps them and tells.
    ///
    /// # Errors
    /// As [`Fs::write`].
    pub fn write_back(&self, handle: Handle, offset: u64, data: &[u8], stamps: bool) -> FsResult<usize> {
        let open = self.handles.get(handle)?;
        let (written, _) = self.put(&open, offset, data, false, |now| WriteOptions {
            now: stamps.then_some(now),
            kill_suidgid: false,
            direct: false,
            whole: true,
        })?;
        Ok(written)
    }

    /// Gives the bytes written, and the inode's flags.
    fn put(
        &self,
        open: &Open,
        offset: u64,
        data: &[u8],
        append: bool,
        options: impl Fn(Timestamp) -> WriteOptions,
    ) -> FsResult<(usize, DinodeFlags)> {
        if !open.flags.contains(OpenFlags::WRITE) {
            return Err(Errno::EBADF.into());
        }
        self.engine.cache.data().throttle();
        self.change_pages("write", |engine| {
            check_regular(&open.inode)?;
            if data.is_empty() {
                return Ok((0, DinodeFlags::empty()));
            }
            let mut locked = engine.lock(&open.inode, State::Ex, HolderFlags::SERVE)?;
            locked.resume()?;
            let options = options(now());
            if options.kill_suidgid {
                xattr::kill_capability(&mut locked, options.now.unwrap_or_else(now))?;
            }
            let offset = if append {
                locked.dinode().size.get()
            } else {
                offset
            };
            let room = MAX_FILE_SIZE.saturating_sub(offset);
            if room == 0 {
                return Err(Errno::EFBIG.into());
            }
            let len = usize::try_from(room).unwrap_or(usize::MAX).min(data.len());
            let written = write(&mut locked, offset, &data[..len], options)?;
            Ok((written, locked.dinode().flags()))
        })
    }

    /// Makes the file's data durable, and its metadata (`datasync`: without pure timestamps).
    ///
    /// # Errors
    /// EBADF; I/O errors.
    pub fn fsync(&self, handle: Handle, datasync: bool) -> FsResult<()> {
        self.run("fsync", |engine| {
            let open = self.handles.get(handle)?;
            sync_file(engine, &open, datasync)
        })
    }

    /// Makes the directory's names durable.
    ///
    /// # Errors
    /// As [`Fs::fsync`].
    pub fn fsyncdir(&self, dir: impl Into<Dir>, datasync: bool) -> FsResult<()> {
        let dir = dir.into();
        self.run("fsync", |engine| {
            let inode = self.dir(engine, dir)?;
            sync_inode(engine, &inode, datasync)
        })
    }

    /// Finds data or a hole at or after `offset`.
    ///
    /// # Errors
    /// ENXIO beyond the end of the file or of its data; EBADF.
    pub fn lseek(&self, handle: Handle, offset: u64, what: SeekWhat) -> FsResult<u64> {
        self.run("lseek", |engine| {
            let open = self.handles.get(handle)?;
            let locked = engine.shared(&open.inode)?;
            seek(&locked, offset, what)
        })
    }
}

fn check_open(dinode: &Dinode, flags: OpenFlags) -> FsResult<()> {
    if flags.intersects(OpenFlags::WRITE | OpenFlags::TRUNCATE) {
        let appends = flags.contains(OpenFlags::APPEND) && !flags.contains(OpenFlags::TRUNCATE);
        check_mutable(dinode, !appends)?;
    }
    Ok(())
}

fn check_regular(inode: &Inode) -> FsResult<()> {
    match inode.kind() {
        FileType::Regular => Ok(()),
        FileType::Dir => Err(Errno::EISDIR.into()),
        _ => Err(Errno::EINVAL.into()),
    }
}

/// Must a read at `now` move the access time?
fn wants_atime(engine: &Engine, dinode: &Dinode, now: Timestamp) -> bool {
    if dinode.flags().contains(DinodeFlags::NOATIME) || dinode.is_dir() && engine.options.nodiratime {
        return false;
    }
    let atime = dinode.atime();
    match engine.options.atime {
        AtimeMode::Never => false,
        AtimeMode::Always => atime != now,
        AtimeMode::Relative => {
            atime <= dinode.mtime()
                || atime <= dinode.ctime()
                || now.sec.saturating_sub(atime.sec) >= RELATIME_SECS
        }
    }
}

/// Moves the access time of an inode that was read, if it must move. `dinode` is what the reader saw; its lock is gone.
/// A failure is only logged, as in the kernel: the read has succeeded. Nobody is waited for: the kernel may keep a page
/// locked until the read is answered, and a demote waits for that page. A time that cannot be moved now is moved by the
/// next read.
pub(super) fn touch(engine: &Engine, inode: &Inode, dinode: &Dinode) -> FsResult<()> {
    let now = now();
    if engine.check_writable().is_err() || !wants_atime(engine, dinode, now) || dinode.atime() == now {
        return Ok(());
    }
    let moved = (|| {
        let Some(mut locked) = engine.try_exclusive(inode)? else {
            return Ok(());
        };
        if locked.dinode().atime() == now || !wants_atime(engine, locked.dinode(), now) {
            return Ok(());
        }
        let mut work = engine.begin(Reservation::blocks(1), None)?;
        work.change(locked.guard(), locked.addr(), |dinode| dinode.set_atime(now))?;
        locked.commit(work, true)
    })();
    match moved {
        Err(error) if error.is_consistency() => Err(error),
        Err(error) => {
            tracing::warn!(inode = inode.addr().get(), "access time: {error}");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Makes a file durable, and tells of what could not be.
fn sync_file(engine: &Engine, open: &Open, datasync: bool) -> FsResult<()> {
    sync_inode(engine, &open.inode, datasync)?;
    let name = open.inode.glock().name();
    engine.cache.data().check_failure(name, &open.failures)
}

/// Makes an inode durable.
fn sync_inode(engine: &Engine, inode: &Inode, datasync: bool) -> FsResult<()> {
    let Some(journal) = engine.journal.as_ref().filter(|_| !engine.is_read_only()) else {
        return Ok(());
    };
    let name = inode.glock().name();
    let commits = inode.commits();
    let seq = match commits.complete {
        true if datasync => commits.meta,
        true => commits.any,
        // Changes of before we knew the inode may still be in memory.
        false if journal.has_dirty(name) => journal.newest(),
        false => CommitSeq::NONE,
    };
    journal.fsync_data(name, seq)?;
    if !commits.complete {
        inode.all_seen();
    }
    Ok(())
}

fn seek(locked: &Locked<'_>, offset: u64, what: SeekWhat) -> FsResult<u64> {
    let size = locked.dinode().size.get();
    if offset >= size {
        return Err(Errno::ENXIO.into());
    }
    if locked.dinode().height.get() == 0 {
        return Ok(if what == SeekWhat::Data { offset } else { size });
    }
    let bsize = u64::from(locked.engine.geometry().bsize());
    let (from, end) = (
        FileBlock::new(offset / bsize),
        FileBlock::new(size.div_ceil(bsize)),
    );
    let (reader, addr) = (locked.reader(), locked.addr());
    match what {
        SeekWhat::Data => {
            let found = tree::next_data(&reader, addr, locked.block(), from, end)?;
            found
                .map(|block| (block.get() * bsize).max(offset))
                .ok_or_else(|| Errno::ENXIO.into())
        }
        SeekWhat::Hole => {
            let found = tree::next_hole(&reader, addr, locked.block(), from, end)?;
            Ok(found.map_or(size, |block| (block.get() * bsize).max(offset).min(size)))
        }
    }
}
