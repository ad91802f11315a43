//! Extended attributes.

use super::attr::check_mutable;
use super::fs::Fs;
use super::types::{Caller, XattrMode};
use crate::error::{Errno, FsResult};
use crate::inode::now;
use crate::xattr::{self, Name};
use gfs2_format::BlockAddr;
use gfs2_format::ea::SetMode;

impl Fs {
    /// Value of an xattr (full name with its prefix). The caller compares sizes (`ERANGE`).
    ///
    /// # Errors
    /// ENODATA, EOPNOTSUPP, EINVAL, ERANGE.
    pub fn getxattr(&self, _caller: &Caller, ino: BlockAddr, name: &[u8]) -> FsResult<Vec<u8>> {
        self.run("getxattr", |engine| {
            let name = Name::parse(name, engine.fs_format)?;
            if name.is_acl() && !engine.options.acl {
                return Err(Errno::EOPNOTSUPP.into());
            }
            let inode = engine.inodes.get(ino)?;
            let locked = engine.shared_any(&inode)?;
            xattr::get(&locked, name)
        })
    }

    /// Names of all xattrs the caller may see, each ended by a NUL.
    ///
    /// # Errors
    /// ESTALE; corruption; I/O and lock errors.
    pub fn listxattr(&self, caller: &Caller, ino: BlockAddr) -> FsResult<Vec<u8>> {
        self.run("listxattr", |engine| {
            let inode = engine.inodes.get(ino)?;
            let locked = engine.shared_any(&inode)?;
            xattr::list(&locked, caller.uid == 0)
        })
    }

    /// Sets an xattr.
    ///
    /// # Errors
    /// EEXIST, ENODATA by mode; EPERM, EOPNOTSUPP, EINVAL, ERANGE, ENOSPC, E2BIG.
    pub fn setxattr(
        &self,
        _caller: &Caller,
        ino: BlockAddr,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> FsResult<()> {
        self.change("setxattr", |engine| {
            let name = Name::parse(name, engine.fs_format)?;
            let inode = engine.inodes.get(ino)?;
            let mut locked = engine.exclusive(&inode)?;
            check_mutable(locked.dinode(), true)?;
            if name.is_acl() {
                if !engine.options.acl {
                    return Err(Errno::EOPNOTSUPP.into());
                }
                return xattr::set_acl(&mut locked, name, value, mode == XattrMode::AclKillsSgid, now());
            }
            let mode = match mode {
                XattrMode::Any | XattrMode::AclKillsSgid => SetMode::Any,
                XattrMode::Create => SetMode::Create,
                XattrMode::Replace => SetMode::Replace,
            };
            xattr::set(&mut locked, name, value, mode, now(), &|_| {})
        })
    }

    /// Removes an xattr.
    ///
    /// # Errors
    /// ENODATA, EPERM, EOPNOTSUPP, EINVAL, ERANGE.
    pub fn removexattr(&self, _caller: &Caller, ino: BlockAddr, name: &[u8]) -> FsResult<()> {
        self.change("removexattr", |engine| {
            let name = Name::parse(name, engine.fs_format)?;
            if name.is_acl() && !engine.options.acl {
                return Err(Errno::EOPNOTSUPP.into());
            }
            let inode = engine.inodes.get(ino)?;
            let mut locked = engine.exclusive(&inode)?;
            check_mutable(locked.dinode(), true)?;
            xattr::remove(&mut locked, name, now())
        })
    }
}
