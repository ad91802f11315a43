//! Decode, call the verb on a thread of the pool, encode the answer. No policy.

use super::convert::{self, Nodes, errno};
use super::pool::Pool;
use super::session::ServeOptions;
use crate::error::{Errno, FsResult};
use crate::ops::types::{Attr, Caller, Entry, SeekWhat, SetAttr, XattrMode};
use crate::ops::{Fs, Handle, OpenFlags as Open};
use fuser::{
    BsdFileFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use gfs2_format::BlockAddr;
use gfs2_format::device::AlignedBuf;
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Largest READ and WRITE in bytes; the kernel's own default limit.
const MAX_IO: u32 = 1 << 20;
/// Requests the kernel may have under way in the background (read-ahead, write-back, asynchronous direct I/O).
const MAX_BACKGROUND: u16 = 64;
/// Longest name.
const NAME_MAX: u32 = 255;

thread_local! {
    /// A thread's buffer for READ: page-aligned, so that the device fills it directly.
    static READ_BUFFER: RefCell<AlignedBuf> = RefCell::new(AlignedBuf::zeroed(0));
}

/// The front end of one mount.
#[derive(Debug)]
pub(super) struct Front {
    fs: Arc<Fs>,
    nodes: Nodes,
    options: ServeOptions,
    pool: Pool,
}

impl Front {
    pub(super) fn new(fs: Arc<Fs>, nodes: Nodes, options: ServeOptions, pool: Pool) -> Self {
        Self {
            fs,
            nodes,
            options,
            pool,
        }
    }

    fn spawn(&self, job: impl FnOnce(&Fs) + Send + 'static) {
        let fs = Arc::clone(&self.fs);
        self.pool.run(move || job(&fs));
    }

    /// A verb that gives an entry.
    fn entry(
        &self,
        verb: &'static str,
        reply: ReplyEntry,
        call: impl FnOnce(&Fs) -> FsResult<Entry> + Send + 'static,
    ) {
        let (nodes, ttl) = (self.nodes, self.options.ttl);
        self.spawn(move |fs| match call(fs) {
            Ok(entry) => reply.entry(&ttl, &nodes.entry_attr(&entry.attr), generation(&entry.attr)),
            Err(error) => reply.error(errno(verb, &error)),
        });
    }

    /// A verb that gives nothing.
    fn empty(
        &self,
        verb: &'static str,
        reply: ReplyEmpty,
        call: impl FnOnce(&Fs) -> FsResult<()> + Send + 'static,
    ) {
        self.spawn(move |fs| match call(fs) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(verb, &error)),
        });
    }

    /// A verb that gives bytes of an xattr call, whose size may be all that is asked for.
    fn bytes(
        &self,
        verb: &'static str,
        size: u32,
        reply: ReplyXattr,
        call: impl FnOnce(&Fs) -> FsResult<Vec<u8>> + Send + 'static,
    ) {
        self.spawn(move |fs| match call(fs) {
            Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
            Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::from_i32(libc::ERANGE)),
            Ok(value) => reply.data(&value),
            Err(error) => reply.error(errno(verb, &error)),
        });
    }

    fn addr(&self, ino: INodeNo) -> BlockAddr {
        self.nodes.addr(ino)
    }

    /// With `noacl` the ACL xattrs are not there, as with the original.
    fn hides(&self, name: &OsStr) -> bool {
        !self.options.acl && name.as_bytes().starts_with(b"system.posix_acl_")
    }
}

fn caller(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        pid: req.pid(),
    }
}

fn generation(attr: &Attr) -> Generation {
    Generation(attr.num.formal.get())
}

fn bytes_of(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}

fn open_flags(flags: i32) -> Open {
    let mut open = match flags & libc::O_ACCMODE {
        libc::O_WRONLY => Open::WRITE,
        libc::O_RDWR => Open::READ | Open::WRITE,
        _ => Open::READ,
    };
    open.set(Open::APPEND, flags & libc::O_APPEND != 0);
    // O_SYNC has O_DSYNC's bit in it.
    open.set(Open::SYNC, flags & libc::O_SYNC == libc::O_SYNC);
    open.set(Open::DSYNC, flags & libc::O_DSYNC != 0);
    open
}

/// Pages stay valid for as long as we hold the inode's lock: they are not dropped at open. There are no POSIX locks
/// to give back at close, and errors are reported by fsync: no FLUSH.
const OPENED: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(FopenFlags::FOPEN_NOFLUSH);

impl Filesystem for Front {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_EXPORT_SUPPORT
            | InitFlags::FUSE_CACHE_SYMLINKS;
        if self.options.acl {
            wanted |= InitFlags::FUSE_POSIX_ACL | InitFlags::FUSE_DONT_MASK;
        }
        for flag in wanted.iter() {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "not offered by this kernel");
            }
        }
        let _ = config.set_max_write(MAX_IO);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (caller, parent, name) = (caller(req), self.addr(parent), bytes_of(name));
        let (nodes, ttl) = (self.nodes, self.options.ttl);
        self.spawn(move |fs| match fs.lookup(&caller, parent, &name) {
            Ok(entry) => reply.entry(&ttl, &nodes.entry_attr(&entry.attr), generation(&entry.attr)),
            // Node id 0 with a time: the kernel remembers that there is no such name.
            Err(error) if error.errno() == Errno::ENOENT && !ttl.is_zero() => {
                reply.entry(&ttl, &nothing(), Generation(0));
            }
            Err(error) => reply.error(errno("lookup", &error)),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        let ino = self.addr(ino);
        self.spawn(move |fs| fs.forget(ino, nlookup));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let (ino, ttl) = (self.addr(ino), self.options.ttl);
        self.spawn(move |fs| match fs.getattr(ino) {
            Ok(attr) => reply.attr(&ttl, &convert::file_attr(&attr)),
            Err(error) => reply.error(errno("getattr", &error)),
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // HANDLE_KILLPRIV_V2 leaves the set-id bits to us: always at chown; at truncate unless the caller may keep
        // them, a flag fuser 0.18 does not hand on: root may, others may not.
        let owner_change = uid.is_some() || gid.is_some();
        let kill_suidgid = mode.is_none() && (owner_change || (size.is_some() && req.uid() != 0));
        let set = SetAttr {
            perm: mode.map(|m| (m & 0o7777) as u16),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
            ctime: ctime.map(convert::timestamp),
            kill_suidgid,
        };
        let (caller, ino, ttl) = (caller(req), self.addr(ino), self.options.ttl);
        self.spawn(move |fs| match fs.setattr(&caller, ino, &set) {
            Ok(attr) => reply.attr(&ttl, &convert::file_attr(&attr)),
            Err(error) => reply.error(errno("setattr", &error)),
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let ino = self.addr(ino);
        self.spawn(move |fs| match fs.readlink(ino) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno("readlink", &error)),
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (caller, parent, name) = (caller(req), self.addr(parent), bytes_of(name));
        let umask = self.umask(umask);
        let rdev = convert::decode_dev(rdev);
        self.entry("mknod", reply, move |fs| {
            fs.mknod(&caller, parent, &name, mode, umask, rdev)
        });
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (caller, parent, name) = (caller(req), self.addr(parent), bytes_of(name));
        let umask = self.umask(umask);
        self.entry("mkdir", reply, move |fs| {
            fs.mkdir(&caller, parent, &name, mode, umask)
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, parent, name) = (caller(req), self.addr(parent), bytes_of(name));
        self.empty("unlink", reply, move |fs| fs.unlink(&caller, parent, &name));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, parent, name) = (caller(req), self.addr(parent), bytes_of(name));
        self.empty("rmdir", reply, move |fs| fs.rmdir(&caller, parent, &name));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (caller, parent, name) = (caller(req), self.addr(parent), bytes_of(name));
        let target = bytes_of(target.as_os_str());
        self.entry("symlink", reply, move |fs| {
            fs.symlink(&caller, parent, &name, &target)
        });
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some(mode) = convert::rename_mode(flags) else {
            return reply.error(fuser::Errno::from_i32(libc::EINVAL));
        };
        let (caller, parent, name) = (caller(req), self.addr(parent), bytes_of(name));
        let (new_parent, new_name) = (self.addr(newparent), bytes_of(newname));
        self.empty("rename", reply, move |fs| {
            fs.rename(&caller, parent, &name, new_parent, &new_name, mode)
        });
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let (caller, ino, parent, name) = (
            caller(req),
            self.addr(ino),
            self.addr(newparent),
            bytes_of(newname),
        );
        self.entry("link", reply, move |fs| fs.link(&caller, ino, parent, &name));
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (ino, flags) = (self.addr(ino), open_flags(flags.0));
        self.spawn(move |fs| match fs.open(ino, flags) {
            Ok(handle) => reply.opened(FileHandle(handle.0), OPENED),
            Err(error) => reply.error(errno("open", &error)),
        });
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.spawn(move |fs| {
            READ_BUFFER.with_borrow_mut(|buffer| {
                let size = size.min(MAX_IO) as usize;
                if buffer.len() < size {
                    buffer.resize(size);
                }
                let Some(target) = buffer.get_mut(..size) else {
                    return reply.error(fuser::Errno::EIO);
                };
                match fs.read(Handle(fh.0), offset, target) {
                    Ok(got) => reply.data(target.get(..got).unwrap_or_default()),
                    Err(error) => reply.error(errno("read", &error)),
                }
            });
        });
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let caller = caller(req);
        // A page written back carries its own offset; O_APPEND is about write(2) only.
        let append = flags.0 & libc::O_APPEND != 0 && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let data = AlignedBuf::from(data);
        self.spawn(
            move |fs| match fs.write(&caller, Handle(fh.0), offset, &data, append, kill) {
                Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
                Err(error) => reply.error(errno("write", &error)),
            },
        );
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Only kernels without FOPEN_NOFLUSH ask; there is nothing a close has to wait for.
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.spawn(move |fs| {
            fs.release(Handle(fh.0));
            reply.ok();
        });
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.empty("fsync", reply, move |fs| fs.fsync(Handle(fh.0), datasync));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let ino = self.addr(ino);
        self.spawn(move |fs| match fs.opendir(ino) {
            Ok(handle) => reply.opened(FileHandle(handle.0), FopenFlags::empty()),
            Err(error) => reply.error(errno("opendir", &error)),
        });
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.spawn(move |fs| {
            let result = fs.readdir(Handle(fh.0), offset, &mut |entry| {
                let kind = convert::file_type(entry.kind);
                reply.add(
                    INodeNo(entry.num.addr.get()),
                    entry.cookie,
                    kind,
                    OsStr::from_bytes(&entry.name),
                )
            });
            match result {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno("readdir", &error)),
            }
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (nodes, ttl) = (self.nodes, self.options.ttl);
        self.spawn(move |fs| {
            let result = fs.readdir_plus(Handle(fh.0), offset, &mut |entry, attr| {
                let name = OsStr::from_bytes(&entry.name);
                let (attr, generation) = match attr {
                    Some(attr) => (nodes.entry_attr(attr), generation(attr)),
                    // "." and ".." are never counted by the kernel, whatever number they carry; for anything else
                    // number 0 says "no attributes here, look it up".
                    None => {
                        let dots = matches!(entry.name.as_slice(), b"." | b"..");
                        let ino = if dots { entry.num.addr.get() } else { 0 };
                        let kind = convert::file_type(entry.kind);
                        (
                            fuser::FileAttr {
                                ino: INodeNo(ino),
                                kind,
                                ..nothing()
                            },
                            Generation(0),
                        )
                    }
                };
                reply.add(attr.ino, entry.cookie, name, &ttl, &attr, generation)
            });
            match result {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno("readdirplus", &error)),
            }
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.spawn(move |fs| {
            fs.release(Handle(fh.0));
            reply.ok();
        });
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.empty("fsyncdir", reply, move |fs| fs.fsyncdir(Handle(fh.0), datasync));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.spawn(move |fs| match fs.statfs() {
            Ok(s) => reply.statfs(
                s.blocks,
                s.free,
                s.free,
                s.files,
                s.files_free,
                s.bsize,
                NAME_MAX,
                s.bsize,
            ),
            Err(error) => reply.error(errno("statfs", &error)),
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            0 => XattrMode::Any,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return reply.error(fuser::Errno::from_i32(libc::EINVAL)),
        };
        if self.hides(name) {
            return reply.error(fuser::Errno::from_i32(libc::EOPNOTSUPP));
        }
        let (caller, ino, name, value) = (caller(req), self.addr(ino), bytes_of(name), value.to_vec());
        self.empty("setxattr", reply, move |fs| {
            fs.setxattr(&caller, ino, &name, &value, mode)
        });
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if self.hides(name) {
            return reply.error(fuser::Errno::from_i32(libc::EOPNOTSUPP));
        }
        let (caller, ino, name) = (caller(req), self.addr(ino), bytes_of(name));
        self.bytes("getxattr", size, reply, move |fs| {
            fs.getxattr(&caller, ino, &name)
        });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let (caller, ino) = (caller(req), self.addr(ino));
        self.bytes("listxattr", size, reply, move |fs| fs.listxattr(&caller, ino));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if self.hides(name) {
            return reply.error(fuser::Errno::from_i32(libc::EOPNOTSUPP));
        }
        let (caller, ino, name) = (caller(req), self.addr(ino), bytes_of(name));
        self.empty("removexattr", reply, move |fs| {
            fs.removexattr(&caller, ino, &name)
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (caller, parent, name) = (caller(req), self.addr(parent), bytes_of(name));
        let (umask, excl) = (self.umask(umask), flags & libc::O_EXCL != 0);
        let mut open = open_flags(flags);
        open.set(Open::TRUNCATE, flags & libc::O_TRUNC != 0);
        let (nodes, ttl) = (self.nodes, self.options.ttl);
        self.spawn(
            move |fs| match fs.create(&caller, parent, &name, mode, umask, excl, open) {
                Ok((entry, handle, _made)) => {
                    let attr = nodes.entry_attr(&entry.attr);
                    reply.created(&ttl, &attr, generation(&entry.attr), FileHandle(handle.0), OPENED);
                }
                Err(error) => reply.error(errno("create", &error)),
            },
        );
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: fuser::IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::from_i32(libc::ENOTTY));
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        // The application sees EOPNOTSUPP, and the kernel asks no more.
        reply.error(fuser::Errno::from_i32(libc::ENOSYS));
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let what = match whence {
            libc::SEEK_DATA => SeekWhat::Data,
            libc::SEEK_HOLE => SeekWhat::Hole,
            _ => return reply.error(fuser::Errno::from_i32(libc::EINVAL)),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(fuser::Errno::from_i32(libc::ENXIO));
        };
        self.spawn(move |fs| match fs.lseek(Handle(fh.0), offset, what) {
            Ok(found) => reply.offset(found.cast_signed()),
            Err(error) => reply.error(errno("lseek", &error)),
        });
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel then copies through its page cache and asks no more.
        reply.error(fuser::Errno::from_i32(libc::ENOSYS));
    }
}

impl Front {
    /// Without ACLs the kernel has applied the umask already.
    fn umask(&self, umask: u32) -> u32 {
        if self.options.acl { umask } else { 0 }
    }
}

/// Attributes of nothing: node id 0.
fn nothing() -> fuser::FileAttr {
    fuser::FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: std::time::UNIX_EPOCH,
        mtime: std::time::UNIX_EPOCH,
        ctime: std::time::UNIX_EPOCH,
        crtime: std::time::UNIX_EPOCH,
        kind: fuser::FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}
