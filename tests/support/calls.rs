//! The system calls of a workload, on a real folder.
//!
//! Invariant: a call is made on the state before it, as the model has it; what it finds there is compared.

use super::model::{Id, Kind, Model, Presence};
use super::workload::Call;
use rustix::fs::{
    self as fs, AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A call that did not do as told.
#[derive(Debug)]
pub enum Wrong {
    /// It failed.
    Errno(Errno),
    /// It showed something else than it should.
    Seen(String),
}

impl From<Errno> for Wrong {
    fn from(e: Errno) -> Wrong {
        Wrong::Errno(e)
    }
}

impl From<std::io::Error> for Wrong {
    fn from(e: std::io::Error) -> Wrong {
        Errno::from_io_error(&e).map_or_else(|| Wrong::Seen(e.to_string()), Wrong::Errno)
    }
}

/// The real calls, on the state before them.
#[derive(Debug)]
pub struct Calls<'a> {
    /// The folder.
    pub root: &'a Path,
    /// Its state.
    pub model: &'a Model,
    /// What the call writes.
    pub data: &'a [u8],
}

impl Calls<'_> {
    fn of(&self, id: Id) -> PathBuf {
        self.root.join(OsStr::from_bytes(&self.model.path(id)))
    }

    fn at(&self, dir: Id, name: &[u8]) -> PathBuf {
        self.of(dir).join(OsStr::from_bytes(name))
    }

    fn open(&self, file: Id, flags: OFlags) -> Result<File, Wrong> {
        Ok(File::from(fs::openat(
            CWD,
            self.of(file),
            flags | OFlags::CLOEXEC,
            Mode::empty(),
        )?))
    }

    /// Makes the call.
    pub fn call(&self, call: &Call) -> Result<(), Wrong> {
        match call {
            Call::Create { dir, name, mode } => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                fs::openat(CWD, self.at(*dir, name), flags, Mode::from_raw_mode(*mode))?;
            }
            Call::Mkdir { dir, name, mode } => {
                fs::mkdirat(CWD, self.at(*dir, name), Mode::from_raw_mode(*mode))?
            }
            Call::Symlink { dir, name, target } => {
                fs::symlinkat(OsStr::from_bytes(target), CWD, self.at(*dir, name))?;
            }
            Call::Mknod {
                dir,
                name,
                kind,
                device,
                mode,
            } => {
                let (major, minor) = device.unwrap_or((0, 0));
                let (path, mode) = (self.at(*dir, name), Mode::from_raw_mode(*mode));
                fs::mknodat(CWD, path, special(kind), mode, fs::makedev(major, minor))?;
            }
            Call::Link { node, dir, name } => {
                fs::linkat(CWD, self.of(*node), CWD, self.at(*dir, name), AtFlags::empty())?;
            }
            Call::Unlink { dir, name } => fs::unlinkat(CWD, self.at(*dir, name), AtFlags::empty())?,
            Call::Rmdir { dir, name } => fs::unlinkat(CWD, self.at(*dir, name), AtFlags::REMOVEDIR)?,
            Call::Rename { from, to, flags } => {
                fs::renameat_with(CWD, self.at(from.0, &from.1), CWD, self.at(to.0, &to.1), *flags)?;
            }
            Call::Orphan { dir, name, .. } => self.orphan(*dir, name)?,
            Call::Read { file, at, len } => self.read(*file, *at, *len)?,
            Call::List { dir } => self.list(*dir)?,
            Call::Stat { dir, name } => return self.stat(*dir, name),
            Call::Syncfs => fs::syncfs(File::open(self.root)?)?,
            _ => self.change(call)?,
        }
        Ok(())
    }

    /// Calls on one inode that is there.
    fn change(&self, call: &Call) -> Result<(), Wrong> {
        match call {
            Call::Write { file, at, .. } => self.open(*file, OFlags::WRONLY)?.write_all_at(self.data, *at)?,
            Call::Append { file, .. } => {
                use std::io::Write;
                self.open(*file, OFlags::WRONLY | OFlags::APPEND)?
                    .write_all(self.data)?;
            }
            Call::Rewrite { file, .. } => {
                self.open(*file, OFlags::WRONLY | OFlags::TRUNC)?
                    .write_all_at(self.data, 0)?;
            }
            Call::Truncate { file, size } => fs::ftruncate(self.open(*file, OFlags::WRONLY)?, *size)?,
            Call::Punch { file, at, len } => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fs::fallocate(self.open(*file, OFlags::WRONLY)?, flags, *at, *len)?;
            }
            Call::Allocate { file, at, len, keep } => {
                let flags = if *keep {
                    FallocateFlags::KEEP_SIZE
                } else {
                    FallocateFlags::empty()
                };
                fs::fallocate(self.open(*file, OFlags::WRONLY)?, flags, *at, *len)?;
            }
            Call::Chmod { node, mode } => {
                fs::chmodat(CWD, self.of(*node), Mode::from_raw_mode(*mode), AtFlags::empty())?;
            }
            Call::Chown { node, uid, gid } => {
                let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
                fs::chownat(
                    CWD,
                    self.of(*node),
                    Some(uid),
                    Some(gid),
                    AtFlags::SYMLINK_NOFOLLOW,
                )?;
            }
            Call::Times { node, mtime } => {
                let time = Timespec {
                    tv_sec: mtime.0,
                    tv_nsec: i64::from(mtime.1),
                };
                let times = Timestamps {
                    last_access: time,
                    last_modification: time,
                };
                fs::utimensat(CWD, self.of(*node), &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Call::SetXattr { node, name, mode } => {
                let flags = match mode {
                    Presence::Any => XattrFlags::empty(),
                    Presence::Must => XattrFlags::REPLACE,
                    Presence::MustNot => XattrFlags::CREATE,
                };
                fs::lsetxattr(self.of(*node), name, self.data, flags)?;
            }
            Call::RemoveXattr { node, name } => fs::lremovexattr(self.of(*node), name)?,
            Call::Fsync { node } => fs::fsync(self.open(*node, OFlags::RDONLY)?)?,
            other => unreachable!("{other:?} is no call on one inode"),
        }
        Ok(())
    }

    fn read(&self, file: Id, at: u64, len: usize) -> Result<(), Wrong> {
        let wanted = self.model.content(file).read(at, len);
        let handle = self.open(file, OFlags::RDONLY)?;
        let mut got = vec![0xaa; len];
        let mut n = 0;
        while n < len {
            match handle.read_at(&mut got[n..], at + n as u64)? {
                0 => break,
                more => n += more,
            }
        }
        match (0..n.max(wanted.len())).find(|&i| i >= n || wanted.get(i) != Some(&got[i])) {
            Some(i) => Err(Wrong::Seen(format!(
                "byte {} is wrong; read {n}, wanted {}",
                at + i as u64,
                wanted.len()
            ))),
            None => Ok(()),
        }
    }

    fn list(&self, dir: Id) -> Result<(), Wrong> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        for entry in std::fs::read_dir(self.of(dir))? {
            names.push(entry?.file_name().as_bytes().to_vec());
        }
        names.sort();
        let wanted: Vec<&Vec<u8>> = self.model.entries(dir).keys().collect();
        if names.iter().collect::<Vec<_>>() == wanted {
            return Ok(());
        }
        let (seen, known) = (
            names.iter().collect::<BTreeSet<_>>(),
            wanted.into_iter().collect::<BTreeSet<_>>(),
        );
        let more: Vec<_> = seen
            .difference(&known)
            .map(|n| String::from_utf8_lossy(n))
            .collect();
        let less: Vec<_> = known
            .difference(&seen)
            .map(|n| String::from_utf8_lossy(n))
            .collect();
        Err(Wrong::Seen(format!(
            "{} names, too many: {more:?}, too few: {less:?}",
            names.len()
        )))
    }

    fn stat(&self, dir: Id, name: &[u8]) -> Result<(), Wrong> {
        let got = std::fs::symlink_metadata(self.at(dir, name));
        let Some(&id) = self.model.entries(dir).get(name) else {
            return match got {
                Ok(_) => Err(Wrong::Seen("a name that is not there was found".to_owned())),
                Err(e) if e.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
                Err(e) => Err(e.into()),
            };
        };
        let (meta, node) = (got?, self.model.node(id));
        let seen = (meta.mode() & 0o7777, meta.uid(), meta.gid());
        let known = (node.mode, node.uid, node.gid);
        if seen != known {
            return Err(Wrong::Seen(format!(
                "mode and owners are {seen:?}, wanted {known:?}"
            )));
        }
        if let Kind::File(content) = &node.kind
            && (meta.size(), meta.nlink()) != (content.size, node.names.len() as u64)
        {
            let (size, links) = (content.size, node.names.len());
            return Err(Wrong::Seen(format!(
                "size {} links {}, wanted {size} {links}",
                meta.size(),
                meta.nlink()
            )));
        }
        Ok(())
    }

    fn orphan(&self, dir: Id, name: &[u8]) -> Result<(), Wrong> {
        let path = self.at(dir, name);
        let file = File::from(fs::openat(
            CWD,
            &path,
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )?);
        let links = file.metadata()?.nlink();
        fs::unlinkat(CWD, &path, AtFlags::empty())?;
        if file.metadata()?.nlink() != links - 1 {
            return Err(Wrong::Seen(format!(
                "{} links after an unlink of {links}",
                file.metadata()?.nlink()
            )));
        }
        if links > 1 {
            return Ok(()); // its bytes are another name's
        }
        file.write_all_at(self.data, 5)?;
        let mut back = vec![0; self.data.len()];
        file.read_exact_at(&mut back, 5)?;
        if back != self.data {
            return Err(Wrong::Seen(
                "an unlinked file does not keep what is written".to_owned(),
            ));
        }
        Ok(())
    }
}

fn special(kind: &str) -> FileType {
    match kind {
        "fifo" => FileType::Fifo,
        "socket" => FileType::Socket,
        "char" => FileType::CharacterDevice,
        "block" => FileType::BlockDevice,
        other => unreachable!("no special file: {other}"),
    }
}
