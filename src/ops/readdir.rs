//! Reading directories.

use super::attr::attr;
use super::fs::Fs;
use super::handle::{Dir, Handle, OpenFlags};
use super::io::touch;
use super::names::check_dir;
use super::types::{Attr, DirEntry};
use crate::error::{Errno, FsError, FsResult};
use crate::inode::{Engine, InodeRef};
use gfs2_format::BlockAddr;
use gfs2_format::dir::{self, Cookie};
use std::ops::ControlFlow;

/// Entries that are looked up together while a directory is locked.
const BATCH: usize = 64;
/// Entries whose dinodes are read together.
const AHEAD: usize = 1024;

impl Fs {
    /// Opens a directory.
    ///
    /// # Errors
    /// ENOTDIR, ESTALE.
    pub fn opendir(&self, ino: BlockAddr) -> FsResult<Handle> {
        self.run("opendir", |engine| {
            let inode = engine.inodes.get(ino)?;
            check_dir(&inode)?;
            drop(engine.shared_any(&inode)?);
            let failures = engine.cache.data().failure_mark(inode.glock().name());
            Ok(self.handles.add(inode, OpenFlags::READ, failures))
        })
    }

    /// The directory that is meant.
    pub(super) fn dir(&self, engine: &Engine, dir: Dir) -> FsResult<InodeRef> {
        let inode = match dir {
            Dir::Open(handle) => self.handles.get(handle)?.inode.clone(),
            Dir::Inode(addr) => engine.inodes.get(addr)?,
        };
        check_dir(&inode)?;
        Ok(inode)
    }

    /// Hands out entries after `cookie` (0: from the start) until `visit` answers `true` for "full, this one was not
    /// taken". `visit` is called with the directory locked and must not call the filesystem.
    ///
    /// # Errors
    /// EBADF, ENOTDIR; corruption; I/O and lock errors.
    pub fn readdir(
        &self,
        dir: impl Into<Dir>,
        cookie: u64,
        visit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> FsResult<()> {
        let dir = dir.into();
        self.run("readdir", |engine| {
            let inode = self.dir(engine, dir)?;
            let dinode = {
                let locked = engine.shared(&inode)?;
                dir::read_from(
                    &locked.reader(),
                    locked.addr(),
                    Cookie::new(cookie),
                    &mut |entry| {
                        if visit(&owned(&entry)) {
                            ControlFlow::Break(())
                        } else {
                            ControlFlow::Continue(())
                        }
                    },
                )?;
                *locked.dinode()
            };
            touch(engine, &inode, &dinode)
        })
    }

    /// As [`Fs::readdir`], with attributes. An entry that was taken together with its attributes counts one
    /// knowledge; `None` (for `.`, `..` and what cannot be had) counts none. `visit` is called without locks.
    ///
    /// # Errors
    /// As [`Fs::readdir`].
    pub fn readdir_plus(
        &self,
        dir: impl Into<Dir>,
        cookie: u64,
        visit: &mut dyn FnMut(&DirEntry, Option<&Attr>) -> bool,
    ) -> FsResult<()> {
        let dir = dir.into();
        self.run("readdirplus", |engine| {
            let inode = self.dir(engine, dir)?;
            let mut cookie = Cookie::new(cookie);
            loop {
                let batch = batch(engine, &inode, cookie)?;
                let addresses = batch.iter().map(|(entry, _)| entry.num.addr);
                if engine.cold(addresses) > 1 {
                    read_ahead(engine, &inode, cookie)?;
                }
                for (entry, child) in &batch {
                    let attr = child.as_ref().and_then(|child| child_attr(engine, child));
                    if visit(entry, attr.as_ref()) {
                        return Ok(());
                    }
                    if let (Some(_), Some(child)) = (attr, child) {
                        engine.inodes.remember(child);
                    }
                    cookie = Cookie::new(entry.cookie);
                }
                if batch.len() < BATCH {
                    break;
                }
            }
            let dinode = *engine.shared_any(&inode)?.dinode();
            touch(engine, &inode, &dinode)
        })
    }
}

fn owned(entry: &dir::Entry<'_>) -> DirEntry {
    DirEntry {
        num: entry.num,
        kind: entry.kind,
        name: entry.name.to_vec(),
        cookie: entry.cookie.get(),
    }
}

/// The next entries, with their inodes (whose iopen lock, taken under the directory's, keeps them from being deleted).
fn batch(engine: &Engine, dir: &InodeRef, cookie: Cookie) -> FsResult<Vec<(DirEntry, Option<InodeRef>)>> {
    let mut batch = Vec::with_capacity(BATCH);
    let locked = engine.shared(dir)?;
    dir::read_from(&locked.reader(), locked.addr(), cookie, &mut |entry| {
        batch.push((owned(&entry), None));
        if batch.len() < BATCH {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    for (entry, inode) in &mut batch {
        if matches!(entry.name.as_slice(), b"." | b"..") {
            continue;
        }
        *inode = match engine.inode(entry.num, entry.kind) {
            Ok(inode) => Some(inode),
            // Its predecessor is still on its way out: a lookup will wait for that.
            Err(FsError::Posix(Errno::ESTALE)) => None,
            Err(error) => return Err(error),
        };
    }
    Ok(batch)
}

/// Reads the dinodes of the entries behind `cookie`: entries come in the order of their names' hashes, so that only a
/// good many of them have neighbours on the device among them.
fn read_ahead(engine: &Engine, dir: &InodeRef, cookie: Cookie) -> FsResult<()> {
    let mut addresses = Vec::with_capacity(AHEAD);
    {
        let locked = engine.shared(dir)?;
        dir::read_from(&locked.reader(), locked.addr(), cookie, &mut |entry| {
            if !matches!(entry.name, b"." | b"..") {
                addresses.push(entry.num.addr);
            }
            if addresses.len() < AHEAD {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
    }
    engine.read_ahead(addresses);
    Ok(())
}

/// Attributes of an entry; what goes wrong shows when somebody looks it up.
fn child_attr(engine: &Engine, inode: &InodeRef) -> Option<Attr> {
    let result = engine.shared_any(inode).and_then(|locked| attr(&locked));
    match result {
        Ok(attr) => Some(attr),
        Err(error) => {
            tracing::debug!(inode = inode.addr().get(), "readdirplus: {error}");
            None
        }
    }
}
