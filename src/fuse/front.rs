//! One request: call the verb, encode what it gives. No policy.

use super::abi::{self, Fattr, Fopen};
use super::convert::{self, Nodes, errno};
use super::ioctl;
use super::notify::Notifications;
use super::reply::Reply;
use super::request::{Op, Request};
use super::session::ServeOptions;
use crate::error::{Errno, FsError, FsResult};
use crate::ops::types::{Attr, Caller, DirEntry, Entry, SeekWhat, SetAttr, SetTime, XattrMode};
use crate::ops::{Dir, Fs, Handle, OpenFlags as Open};
use gfs2_format::BlockAddr;
use gfs2_format::device::AlignedBuf;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// Largest READ and WRITE in bytes; the kernel's own default limit.
pub(super) const MAX_IO: u32 = 1 << 20;
/// Longest name.
const NAME_MAX: u32 = 255;

/// What a request needs to build its answer in.
#[derive(Debug)]
pub(super) struct Scratch<'a> {
    /// For READ: page-aligned, so that the device fills it directly.
    pub(super) read: Target<'a>,
    /// For READDIR.
    pub(super) names: &'a mut Vec<u8>,
}

/// Where a READ's bytes are put.
#[derive(Debug)]
pub(super) enum Target<'a> {
    /// It grows to what is asked for.
    Own(&'a mut AlignedBuf),
    /// The answer leaves from there.
    Lent(&'a mut [u8]),
}

impl Target<'_> {
    /// `len` bytes, or fewer if there are no more.
    fn bytes(&mut self, len: usize) -> &mut [u8] {
        let whole: &mut [u8] = match self {
            Self::Own(buffer) => {
                if buffer.len() < len {
                    buffer.resize(len);
                }
                buffer
            }
            Self::Lent(bytes) => bytes,
        };
        let len = len.min(whole.len());
        whole.get_mut(..len).unwrap_or_default()
    }
}

/// The front end of one mount.
#[derive(Debug)]
pub(super) struct Front {
    fs: Arc<Fs>,
    nodes: Nodes,
    options: ServeOptions,
    /// Directories are opened and closed.
    dir_handles: bool,
    notifications: Arc<Notifications>,
}

/// The parts of a request that every verb needs.
struct Asked<'a> {
    caller: Caller,
    /// The inode the request is about.
    node: BlockAddr,
    reply: Reply<'a>,
}

impl Front {
    pub(super) fn new(
        fs: Arc<Fs>,
        nodes: Nodes,
        options: ServeOptions,
        dir_handles: bool,
        notifications: Arc<Notifications>,
    ) -> Self {
        Self {
            fs,
            nodes,
            options,
            dir_handles,
            notifications,
        }
    }

    /// The directory that a request is about: what it has open, or the inode itself.
    fn dir(&self, handle: u64, node: BlockAddr) -> Dir {
        if self.dir_handles {
            Dir::Open(Handle(handle))
        } else {
            Dir::Inode(node)
        }
    }

    /// Calls the verb and answers.
    pub(super) fn serve(&self, request: &Request<'_>, scratch: &mut Scratch<'_>, reply: Reply<'_>) {
        let header = &request.header;
        let asked = Asked {
            caller: Caller {
                uid: header.uid,
                gid: header.gid,
                pid: header.pid,
            },
            node: self.nodes.addr(header.nodeid),
            reply,
        };
        match request.op {
            Op::Lookup(name) => self.lookup(asked, name),
            Op::Forget(forget) => {
                asked.reply.none();
                self.fs.forget(asked.node, forget.nlookup);
            }
            Op::BatchForget(forgets) => {
                asked.reply.none();
                for forget in forgets.iter() {
                    self.fs.forget(self.nodes.addr(forget.nodeid), forget.nlookup);
                }
            }
            Op::Getattr => self.attr("getattr", asked.reply, self.fs.getattr(asked.node)),
            Op::Setattr(set) => self.setattr(asked, &set),
            Op::Readlink => match self.fs.readlink(asked.node) {
                Ok(target) => asked.reply.bytes(&[], &target),
                Err(error) => asked.reply.error(errno("readlink", &error)),
            },
            Op::Statfs => self.statfs(asked.reply),
            Op::Syncfs => empty("syncfs", asked.reply, self.fs.sync()),
            Op::Setxattr { .. } | Op::Getxattr(..) | Op::Listxattr(_) | Op::Removexattr(_) => {
                self.xattr(asked, &request.op);
            }
            Op::Ioctl(args, data) => {
                let Asked { caller, node, reply } = asked;
                let to = (self.fs.as_ref(), self.notifications.as_ref());
                ioctl::serve(to, &caller, node, args, data, reply);
            }
            Op::Destroy => asked.reply.ok(),
            // Nothing has to happen at close: told once, the kernel asks no more. (What it could not write back it
            // still reports there itself.)
            Op::Flush | Op::Unserved => asked.reply.error(Errno::ENOSYS),
            // Answered before it comes here, and not twice in a mount's life.
            Op::Init(_) | Op::Interrupt(_) => asked.reply.error(Errno::EIO),
            Op::Open(_) | Op::Create(..) | Op::Read(_) | Op::Write(..) | Op::Release(_) | Op::Fsync(_) => {
                self.file(asked, &request.op, scratch);
            }
            Op::Opendir | Op::Readdir(_) | Op::Readdirplus(_) | Op::Releasedir(_) | Op::Fsyncdir(_) => {
                self.directory(asked, &request.op, scratch);
            }
            Op::Lseek(seek) => self.lseek(asked.reply, seek),
            _ => self.names(asked, &request.op),
        }
    }

    /// Verbs that make, move or remove names.
    fn names(&self, asked: Asked<'_>, op: &Op<'_>) {
        let Asked { caller, node, reply } = asked;
        let fs = &self.fs;
        match *op {
            Op::Symlink { name, target } => {
                self.entry("symlink", reply, fs.symlink(&caller, node, name, target))
            }
            Op::Mknod(args, name) => {
                let rdev = convert::decode_dev(args.rdev);
                let made = fs.mknod(&caller, node, name, args.mode, self.umask(args.umask), rdev);
                self.entry("mknod", reply, made);
            }
            Op::Mkdir(args, name) => {
                let made = fs.mkdir(&caller, node, name, args.mode, self.umask(args.umask));
                self.entry("mkdir", reply, made);
            }
            Op::Unlink(name) => empty("unlink", reply, fs.unlink(&caller, node, name)),
            Op::Rmdir(name) => empty("rmdir", reply, fs.rmdir(&caller, node, name)),
            Op::Rename {
                to,
                flags,
                name,
                new_name,
            } => match convert::rename_mode(flags) {
                Some(mode) => {
                    let renamed = fs.rename(&caller, node, name, self.nodes.addr(to), new_name, mode);
                    empty("rename", reply, renamed);
                }
                None => reply.error(Errno::EINVAL),
            },
            Op::Link(args, name) => {
                let inode = self.nodes.addr(args.oldnodeid);
                self.entry("link", reply, fs.link(&caller, inode, node, name));
            }
            // Every operation has its place above.
            _ => reply.error(Errno::ENOSYS),
        }
    }

    fn lookup(&self, asked: Asked<'_>, name: &[u8]) {
        let ttl = self.options.ttl;
        match self.fs.lookup(&asked.caller, asked.node, name) {
            Err(error) if error.errno() == Errno::ENOENT && !ttl.is_zero() => {
                asked.reply.fixed(&convert::nothing(ttl));
            }
            found => self.entry("lookup", asked.reply, found),
        }
    }

    fn entry(&self, verb: &'static str, reply: Reply<'_>, result: FsResult<Entry>) {
        match result {
            Ok(entry) => reply.fixed(&self.nodes.entry(&entry.attr, self.options.ttl)),
            Err(error) => reply.error(errno(verb, &error)),
        }
    }

    fn attr(&self, verb: &'static str, reply: Reply<'_>, result: FsResult<Attr>) {
        match result {
            Ok(attr) => reply.fixed(&convert::attr_out(&attr, self.options.ttl)),
            Err(error) => reply.error(errno(verb, &error)),
        }
    }

    fn setattr(&self, asked: Asked<'_>, set: &abi::SetattrIn) {
        let valid = Fattr::from_bits_retain(set.valid);
        let Some(set) = set_attr(valid, set) else {
            return asked.reply.error(Errno::EINVAL);
        };
        let changed = self.fs.setattr(&asked.caller, asked.node, &set);
        self.attr("setattr", asked.reply, changed);
    }

    fn statfs(&self, reply: Reply<'_>) {
        match self.fs.statfs() {
            Ok(figures) => reply.fixed(&abi::StatfsOut {
                blocks: figures.blocks,
                bfree: figures.free,
                bavail: figures.free,
                files: figures.files,
                ffree: figures.files_free,
                bsize: figures.bsize,
                namelen: NAME_MAX,
                frsize: figures.bsize,
                ..Default::default()
            }),
            Err(error) => reply.error(errno("statfs", &error)),
        }
    }

    fn file(&self, asked: Asked<'_>, op: &Op<'_>, scratch: &mut Scratch<'_>) {
        let Asked { caller, node, reply } = asked;
        let fs = &self.fs;
        match *op {
            Op::Open(args) => match fs.open(node, convert::open_flags(args.flags)) {
                Ok(handle) => reply.fixed(&opened(handle, OPENED)),
                Err(error) => reply.error(errno("open", &error)),
            },
            Op::Create(args, name) => self.create(reply, &caller, node, args, name),
            Op::Read(args) => self.read(reply, args, scratch),
            Op::Write(args, data) => self.write(reply, &caller, args, data),
            Op::Release(args) => {
                fs.release(Handle(args.fh));
                reply.ok();
            }
            Op::Fsync(args) => {
                let datasync = args.fsync_flags & abi::FSYNC_FDATASYNC != 0;
                empty("fsync", reply, fs.fsync(Handle(args.fh), datasync));
            }
            _ => reply.error(Errno::ENOSYS),
        }
    }

    fn create(&self, reply: Reply<'_>, caller: &Caller, node: BlockAddr, args: abi::CreateIn, name: &[u8]) {
        let has = |flag: i32| args.flags & flag.cast_unsigned() != 0;
        let mut flags = convert::open_flags(args.flags);
        flags.set(Open::TRUNCATE, has(libc::O_TRUNC));
        let umask = self.umask(args.umask);
        match self
            .fs
            .create(caller, node, name, args.mode, umask, has(libc::O_EXCL), flags)
        {
            Ok((entry, handle, _made)) => {
                let entry = self.nodes.entry(&entry.attr, self.options.ttl);
                reply.bytes(entry.as_bytes(), opened(handle, OPENED).as_bytes());
            }
            Err(error) => reply.error(errno("create", &error)),
        }
    }

    fn read(&self, reply: Reply<'_>, args: abi::ReadIn, scratch: &mut Scratch<'_>) {
        let target = scratch.read.bytes(args.size.min(MAX_IO) as usize);
        match self.fs.read(Handle(args.fh), args.offset, target) {
            Ok(got) => reply.filled(target.get(..got).unwrap_or_default()),
            Err(error) => reply.error(errno("read", &error)),
        }
    }

    fn write(&self, reply: Reply<'_>, caller: &Caller, args: abi::WriteIn, data: &[u8]) {
        // A page written back carries its own offset, and a kernel that caches writes knows the true end of the file
        // before we do; otherwise O_APPEND is ours to obey.
        let caches = self.options.writeback_cache;
        let append = args.flags & libc::O_APPEND.cast_unsigned() != 0 && !caches;
        let kill = args.write_flags & abi::WRITE_KILL_SUIDGID != 0;
        let written = if args.write_flags & abi::WRITE_CACHE != 0 {
            // A kernel that caches writes keeps the times as well: it sends them with SETATTR.
            self.fs.write_back(Handle(args.fh), args.offset, data, !caches)
        } else {
            self.fs
                .write(caller, Handle(args.fh), args.offset, data, append, kill)
        };
        match written {
            Ok(written) => reply.fixed(&abi::WriteOut {
                size: u32::try_from(written).unwrap_or(u32::MAX),
                padding: 0,
            }),
            Err(error) => reply.error(errno("write", &error)),
        }
    }

    fn directory(&self, asked: Asked<'_>, op: &Op<'_>, scratch: &mut Scratch<'_>) {
        let Asked { node, reply, .. } = asked;
        let fs = &self.fs;
        match *op {
            Op::Opendir if !self.dir_handles => reply.error(Errno::ENOSYS),
            Op::Opendir => match fs.opendir(node) {
                Ok(handle) => reply.fixed(&opened(handle, self.opened_dir())),
                Err(error) => reply.error(errno("opendir", &error)),
            },
            Op::Readdir(args) => {
                let mut page = Page::new(scratch.names, args.size);
                let dir = self.dir(args.fh, node);
                match fs.readdir(dir, args.offset, &mut |entry| !page.add(&[], entry)) {
                    Ok(()) => reply.bytes(&[], page.bytes),
                    Err(error) => reply.error(errno("readdir", &error)),
                }
            }
            Op::Readdirplus(args) => self.readdirplus(reply, self.dir(args.fh, node), args, scratch),
            Op::Releasedir(args) => {
                fs.release(Handle(args.fh));
                reply.ok();
            }
            Op::Fsyncdir(args) => {
                let datasync = args.fsync_flags & abi::FSYNC_FDATASYNC != 0;
                empty("fsyncdir", reply, fs.fsyncdir(self.dir(args.fh, node), datasync));
            }
            _ => reply.error(Errno::ENOSYS),
        }
    }

    fn readdirplus(&self, reply: Reply<'_>, dir: Dir, args: abi::ReadIn, scratch: &mut Scratch<'_>) {
        let mut page = Page::new(scratch.names, args.size);
        let ttl = self.options.ttl;
        let result = self.fs.readdir_plus(dir, args.offset, &mut |entry, attr| {
            // Node id 0 says "no attributes here, look it up". The kernel never counts "." and "..".
            let out = attr.map_or_else(abi::EntryOut::default, |attr| self.nodes.entry(attr, ttl));
            !page.add(out.as_bytes(), entry)
        });
        match result {
            Ok(()) => reply.bytes(&[], page.bytes),
            Err(error) => reply.error(errno("readdirplus", &error)),
        }
    }

    fn xattr(&self, asked: Asked<'_>, op: &Op<'_>) {
        let Asked { caller, node, reply } = asked;
        let fs = &self.fs;
        match *op {
            Op::Setxattr { name, .. } | Op::Getxattr(_, name) | Op::Removexattr(name) if self.hides(name) => {
                reply.error(Errno::EOPNOTSUPP);
            }
            Op::Setxattr { fixed, name, value } => {
                let kills = fixed.setxattr_flags & abi::SETXATTR_ACL_KILL_SGID != 0;
                let mode = match fixed.flags.cast_signed() {
                    0 if kills => XattrMode::AclKillsSgid,
                    0 => XattrMode::Any,
                    libc::XATTR_CREATE => XattrMode::Create,
                    libc::XATTR_REPLACE => XattrMode::Replace,
                    _ => return reply.error(Errno::EINVAL),
                };
                empty("setxattr", reply, fs.setxattr(&caller, node, name, value, mode));
            }
            Op::Getxattr(args, name) => {
                value("getxattr", args.size, reply, fs.getxattr(&caller, node, name));
            }
            Op::Listxattr(args) => value("listxattr", args.size, reply, fs.listxattr(&caller, node)),
            Op::Removexattr(name) => empty("removexattr", reply, fs.removexattr(&caller, node, name)),
            _ => reply.error(Errno::ENOSYS),
        }
    }

    fn lseek(&self, reply: Reply<'_>, args: abi::LseekIn) {
        let what = match args.whence.cast_signed() {
            libc::SEEK_DATA => SeekWhat::Data,
            libc::SEEK_HOLE => SeekWhat::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        if args.offset > i64::MAX.cast_unsigned() {
            return reply.error(Errno::ENXIO);
        }
        match self.fs.lseek(Handle(args.fh), args.offset, what) {
            Ok(offset) => reply.fixed(&abi::LseekOut { offset }),
            Err(error) => reply.error(errno("lseek", &error)),
        }
    }

    /// Without ACLs the kernel has applied the umask already.
    fn umask(&self, umask: u32) -> u32 {
        if self.options.acl { umask } else { 0 }
    }

    /// With `noacl` the ACL xattrs are not there, as with the original.
    fn hides(&self, name: &[u8]) -> bool {
        !self.options.acl && name.starts_with(b"system.posix_acl_")
    }

    fn opened_dir(&self) -> Fopen {
        if self.options.cache_dirs {
            Fopen::CACHE_DIR | Fopen::KEEP_CACHE
        } else {
            Fopen::empty()
        }
    }
}

/// Pages stay valid for as long as we hold the inode's lock: they are not dropped at open. There are no POSIX locks
/// to give back at close, and errors are reported by fsync: no FLUSH.
const OPENED: Fopen = Fopen::KEEP_CACHE.union(Fopen::NOFLUSH);

fn opened(handle: Handle, flags: Fopen) -> abi::OpenOut {
    abi::OpenOut {
        fh: handle.0,
        open_flags: flags.bits(),
        padding: 0,
    }
}

/// A verb that gives nothing.
fn empty(verb: &'static str, reply: Reply<'_>, result: FsResult<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(verb, &error)),
    }
}

/// A verb that gives the bytes of an xattr call, whose size may be all that is asked for.
fn value(verb: &'static str, size: u32, reply: Reply<'_>, result: Result<Vec<u8>, FsError>) {
    match result {
        Ok(value) if size == 0 => reply.fixed(&abi::GetxattrOut {
            size: u32::try_from(value.len()).unwrap_or(u32::MAX),
            padding: 0,
        }),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.bytes(&[], &value),
        Err(error) => reply.error(errno(verb, &error)),
    }
}

/// What a SETATTR changes. `None`: a time that is none.
fn set_attr(valid: Fattr, set: &abi::SetattrIn) -> Option<SetAttr> {
    let time = |wanted, now, sec, nsec| {
        if valid.contains(now) {
            return Some(Some(SetTime::Now));
        }
        if valid.contains(wanted) {
            return Some(Some(SetTime::At(convert::timestamp(sec, nsec)?)));
        }
        Some(None)
    };
    let given = |flag| valid.contains(flag);
    Some(SetAttr {
        perm: given(Fattr::MODE).then_some((set.mode & 0o7777) as u16),
        uid: given(Fattr::UID).then_some(set.uid),
        gid: given(Fattr::GID).then_some(set.gid),
        size: given(Fattr::SIZE).then_some(set.size),
        atime: time(Fattr::ATIME, Fattr::ATIME_NOW, set.atime, set.atimensec)?,
        mtime: time(Fattr::MTIME, Fattr::MTIME_NOW, set.mtime, set.mtimensec)?,
        ctime: match given(Fattr::CTIME) {
            true => Some(convert::timestamp(set.ctime, set.ctimensec)?),
            false => None,
        },
        // With a mode the caller has said what is left of the set-id bits.
        kill_suidgid: given(Fattr::KILL_SUIDGID) && !given(Fattr::MODE),
    })
}

/// An answer to READDIR as it fills.
struct Page<'a> {
    bytes: &'a mut Vec<u8>,
    limit: usize,
}

impl<'a> Page<'a> {
    fn new(bytes: &'a mut Vec<u8>, size: u32) -> Self {
        bytes.clear();
        Self {
            bytes,
            limit: size.min(MAX_IO) as usize,
        }
    }

    /// False: it does not fit any more.
    fn add(&mut self, head: &[u8], entry: &DirEntry) -> bool {
        let fixed = abi::Dirent {
            ino: entry.num.addr.get(),
            off: entry.cookie,
            // At most 255: the format has one byte for it.
            namelen: u32::try_from(entry.name.len()).unwrap_or(0),
            r#type: convert::mode_type(entry.kind) >> 12,
        };
        let len = (head.len() + size_of::<abi::Dirent>() + entry.name.len()).next_multiple_of(8);
        let end = self.bytes.len() + len;
        if end > self.limit {
            return false;
        }
        self.bytes.extend_from_slice(head);
        self.bytes.extend_from_slice(fixed.as_bytes());
        self.bytes.extend_from_slice(&entry.name);
        self.bytes.resize(end, 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::types::Timestamp;
    use gfs2_format::ondisk::FileType;
    use gfs2_format::{FormalIno, InodeNum};

    #[test]
    fn a_setattr_means_what_its_bits_say() {
        let raw = abi::SetattrIn {
            mode: 0o104_755,
            uid: 7,
            size: 9,
            mtime: i64::MIN.cast_unsigned(),
            mtimensec: 5,
            atimensec: 2_000_000_000,
            ..Default::default()
        };
        let valid = Fattr::MODE | Fattr::SIZE | Fattr::MTIME | Fattr::KILL_SUIDGID | Fattr::ATIME_NOW;
        let set = set_attr(valid, &raw).unwrap();
        assert_eq!(
            set,
            SetAttr {
                perm: Some(0o4755),
                size: Some(9),
                mtime: Some(SetTime::At(Timestamp {
                    sec: i64::MIN,
                    nsec: 5
                })),
                atime: Some(SetTime::Now),
                ..SetAttr::default()
            }
        );
        assert_eq!(set_attr(Fattr::ATIME, &raw), None);
        assert!(
            set_attr(Fattr::SIZE | Fattr::KILL_SUIDGID, &raw)
                .unwrap()
                .kill_suidgid
        );
        assert_eq!(set_attr(Fattr::empty(), &raw).unwrap(), SetAttr::default());
    }

    #[test]
    fn a_page_of_names_ends_before_it_is_too_long() {
        let mut bytes = vec![1, 2, 3];
        let entry = |name: &[u8]| DirEntry {
            num: InodeNum {
                formal: FormalIno::new(1),
                addr: BlockAddr::new(77),
            },
            kind: FileType::Symlink,
            name: name.to_vec(),
            cookie: 5,
        };
        let mut page = Page::new(&mut bytes, 24 + 8 + 24 + 16 + 31);
        assert!(page.add(&[], &entry(b"x")));
        assert!(page.add(&[], &entry(b"ninebytes")));
        assert!(!page.add(&[], &entry(b"y")));
        let expected = abi::Dirent {
            ino: 77,
            off: 5,
            namelen: 1,
            r#type: 10,
        };
        assert_eq!(bytes[..24], *expected.as_bytes());
        assert_eq!(&bytes[24..32], b"x\0\0\0\0\0\0\0");
        assert_eq!(&bytes[56..72], b"ninebytes\0\0\0\0\0\0\0");
        assert_eq!(bytes.len(), 72);
    }
}
