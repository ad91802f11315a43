//! Regular files and block devices.
//!
//! Invariants: nothing is read or written beyond the size found at open; with direct I/O, memory that is not aligned
//! goes through a bounce buffer and the page cache is not used, except for writes to regular files that are smaller
//! than the file's unit of direct I/O: those go through the page cache, which is coherent with direct I/O within one
//! machine, because reading and rewriting their surroundings would race with neighbours.

use super::aligned::{self, Pool};
use super::{
    BlockDevice, Engine, Identity, ReadRequest, Topology, WriteQueue, WriteRequest, batch, check_range,
    queue::RingQueue, topology,
};
use crate::error::{Error, Result};
use rustix::fs::{AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, StatxFlags};
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::Arc;

/// Largest bounce buffer.
const BOUNCE: usize = 256 * 1024;
/// Bounce buffers kept for reuse.
const BOUNCE_KEPT: usize = 8;

/// How to open a [`FileDevice`].
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    read_only: bool,
    direct: bool,
    exclusive: bool,
    create: Option<u64>,
    engine: Engine,
}

impl OpenOptions {
    /// Read-write, through the page cache, shared, existing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens for reading only.
    #[must_use]
    pub fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }

    /// Asks for direct I/O. Where the filesystem refuses it, the page cache is used after all.
    #[must_use]
    pub fn direct(mut self, yes: bool) -> Self {
        self.direct = yes;
        self
    }

    /// Refuses (`EBUSY`) what somebody else holds: `O_EXCL` for block devices (mounts, other tools), an advisory
    /// `flock` for regular files.
    #[must_use]
    pub fn exclusive(mut self, yes: bool) -> Self {
        self.exclusive = yes;
        self
    }

    /// Creates a regular file of `size` bytes when there is none; an existing one keeps its size.
    #[must_use]
    pub fn create(mut self, size: u64) -> Self {
        self.create = Some(size);
        self
    }

    /// Chooses how batches are done.
    #[must_use]
    pub fn engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    /// Opens the device.
    ///
    /// # Errors
    /// [`Error::Io`] of operation "open", [`Error::Unsupported`] for what is neither file nor block device.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<FileDevice> {
        let path = path.as_ref();
        let opened = |e: io::Error| Error::io("open", 0, 0, e);
        // The type first: opening a FIFO would wait for its other end.
        let block_device = match (rustix::fs::stat(path), self.create) {
            (Ok(stat), _) => is_block_device(stat.st_mode)?,
            (Err(Errno::NOENT), Some(size)) => {
                create(path, size).map_err(opened)?;
                false
            }
            (Err(e), _) => return Err(opened(e.into())),
        };
        let mut flags = OFlags::CLOEXEC;
        flags |= if self.read_only {
            OFlags::RDONLY
        } else {
            OFlags::RDWR
        };
        if self.exclusive && block_device {
            flags |= OFlags::EXCL;
        }
        let (file, direct) = self.open_file(path, flags, block_device).map_err(opened)?;
        let stat = rustix::fs::fstat(&file).map_err(|e| opened(e.into()))?;
        if is_block_device(stat.st_mode)? != block_device {
            let changed = io::Error::new(
                io::ErrorKind::InvalidInput,
                "the file was replaced while opening it",
            );
            return Err(opened(changed));
        }
        if self.exclusive && !block_device {
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
                .map_err(|e| opened(if e == Errno::WOULDBLOCK { Errno::BUSY } else { e }.into()))?;
        }
        self.finish(path, file, direct, block_device).map_err(opened)
    }

    /// Opens with direct I/O if asked for and possible.
    fn open_file(
        &self,
        path: &Path,
        flags: OFlags,
        block_device: bool,
    ) -> io::Result<(File, Option<Direct>)> {
        if self.direct {
            match rustix::fs::open(path, flags | OFlags::DIRECT, Mode::empty()) {
                Ok(fd) => {
                    let file = File::from(fd);
                    if let Some(direct) = Direct::probe(&file, block_device)? {
                        return Ok((file, Some(direct)));
                    }
                }
                Err(Errno::INVAL) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok((File::from(rustix::fs::open(path, flags, Mode::empty())?), None))
    }

    fn finish(
        &self,
        path: &Path,
        file: File,
        direct: Option<Direct>,
        block_device: bool,
    ) -> io::Result<FileDevice> {
        let stat = rustix::fs::fstat(&file)?;
        let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?;
        let (identity, sector, mut topology) = if block_device {
            let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            let topology = topology::of_block_device(Path::new("/sys"), major, minor);
            let sector = rustix::fs::ioctl_blksszget(&file).unwrap_or(topology.logical_sector.max(512));
            (Identity::Device { major, minor }, sector, topology)
        } else {
            let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
            let inode = stat.st_ino;
            (Identity::File { major, minor, inode }, 512, Topology::default())
        };
        if block_device {
            topology.logical_sector = sector;
        }
        let cached_writes = match direct {
            Some(d) if !block_device && !self.read_only && d.unit > 512 => {
                Some(reopen_cached(path, identity)?)
            }
            _ => None,
        };
        Ok(FileDevice {
            file: Arc::new(file),
            cached_writes,
            size,
            sector,
            block_device,
            read_only: self.read_only,
            direct,
            topology,
            identity,
            engine: self.engine,
            pool: Pool::new(BOUNCE_KEPT),
        })
    }
}

fn is_block_device(mode: u32) -> Result<bool> {
    match FileType::from_raw_mode(mode) {
        FileType::BlockDevice => Ok(true),
        FileType::RegularFile => Ok(false),
        _ => Err(Error::Unsupported {
            what: "file type (mode)",
            found: u64::from(mode),
            supported: "regular files and block devices",
        }),
    }
}

fn create(path: &Path, size: u64) -> io::Result<()> {
    let file = File::options().write(true).create_new(true).open(path)?;
    file.set_len(size)
}

/// A second, cached way to the same file.
fn reopen_cached(path: &Path, identity: Identity) -> io::Result<File> {
    let file = File::options().read(true).write(true).open(path)?;
    let stat = rustix::fs::fstat(&file)?;
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let inode = stat.st_ino;
    if identity != (Identity::File { major, minor, inode }) {
        let what = "the file was replaced while opening it";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    Ok(file)
}

/// Rules of direct I/O on a file, in bytes, both powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Direct {
    /// Alignment of memory.
    memory: usize,
    /// Alignment of offset and length.
    unit: u64,
}

impl Direct {
    /// The file's rules; `None` when direct I/O does not work on it.
    fn probe(file: &File, block_device: bool) -> io::Result<Option<Self>> {
        let (memory, unit) = match rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
            Ok(stx) if stx.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
                (stx.stx_dio_mem_align, stx.stx_dio_offset_align)
            }
            // An older kernel does not say: the sector of a device, and what suits any disk below a file.
            _ if block_device => {
                let sector = rustix::fs::ioctl_blksszget(file)?;
                (sector, sector)
            }
            _ => (4096, 4096),
        };
        let direct = Self {
            memory: memory as usize,
            unit: u64::from(unit),
        };
        let size = rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?;
        let usable = memory.is_power_of_two()
            && direct.memory <= aligned::ALIGNMENT
            && unit.is_power_of_two()
            && size.is_multiple_of(direct.unit);
        if !usable {
            return Ok(None);
        }
        // Some filesystems take the flag at open and refuse the first read.
        let mut first = aligned::AlignedBuf::zeroed(unit.max(4096) as usize);
        match rustix::io::pread(file, &mut *first, 0) {
            Err(Errno::INVAL) => Ok(None),
            Err(e) if e != Errno::INTR => Err(e.into()),
            _ => Ok(Some(direct)),
        }
    }

    fn fits(&self, offset: u64, len: usize) -> bool {
        (offset | len as u64) & (self.unit - 1) == 0
    }

    fn fits_memory(&self, buf: &[u8]) -> bool {
        aligned::is_aligned(buf, self.memory)
    }
}

/// A regular file or a block device.
#[derive(Debug)]
pub struct FileDevice {
    file: Arc<File>,
    cached_writes: Option<File>,
    size: u64,
    sector: u32,
    block_device: bool,
    read_only: bool,
    direct: Option<Direct>,
    topology: Topology,
    identity: Identity,
    engine: Engine,
    pool: Pool,
}

impl FileDevice {
    /// Is direct I/O in use?
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Is it a block device (not a regular file)?
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    #[cfg(test)]
    pub(super) fn file_for_tests(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    pub(super) fn check_write(&self, op: &'static str, offset: u64, len: u64) -> Result<()> {
        if self.read_only {
            let error = io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
            return Err(Error::io(op, offset, len, error));
        }
        check_range(op, offset, len, self.size)
    }

    fn read_plain(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        let result = match self.direct {
            Some(direct) if !direct.fits(offset, buf.len()) || !direct.fits_memory(buf) => {
                self.read_bounced(direct, offset, buf)
            }
            _ => read_full(&self.file, offset, buf),
        };
        result.map_err(|e| Error::io("read", offset, len, e))
    }

    fn read_bounced(&self, direct: Direct, mut offset: u64, buf: &mut [u8]) -> io::Result<()> {
        for part in buf.chunks_mut(BOUNCE) {
            let start = offset & !(direct.unit - 1);
            let skip = (offset - start) as usize;
            let need = skip + part.len();
            let mut bounce = self.pool.take(need.next_multiple_of(direct.unit as usize));
            let result = read_full(&self.file, start, &mut bounce);
            if result.is_ok()
                && let Some(bytes) = bounce.get(skip..need)
            {
                part.copy_from_slice(bytes);
            }
            self.pool.put(bounce);
            result?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    fn write_plain(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let result = match self.direct {
            Some(direct) if !direct.fits(offset, buf.len()) => match &self.cached_writes {
                Some(file) => write_full(file, offset, buf),
                None => Err(io::Error::from(io::ErrorKind::InvalidInput)),
            },
            Some(direct) if !direct.fits_memory(buf) => self.write_bounced(offset, buf),
            _ => write_full(&self.file, offset, buf),
        };
        result.map_err(|e| Error::io("write", offset, buf.len() as u64, e))
    }

    fn write_bounced(&self, mut offset: u64, buf: &[u8]) -> io::Result<()> {
        for part in buf.chunks(BOUNCE) {
            let mut bounce = self.pool.take(part.len());
            bounce.copy_from_slice(part);
            let result = write_full(&self.file, offset, &bounce);
            self.pool.put(bounce);
            result?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    pub(super) fn fits(&self, offset: u64, len: usize) -> bool {
        self.direct.is_none_or(|direct| direct.fits(offset, len))
    }
}

fn read_full(file: &File, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match rustix::io::pread(file, &mut *buf, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buf = buf.get_mut(n..).unwrap_or_default();
                offset = offset.saturating_add(n as u64);
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn write_full(file: &File, mut offset: u64, mut buf: &[u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match rustix::io::pwrite(file, buf, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                buf = buf.get(n..).unwrap_or_default();
                offset = offset.saturating_add(n as u64);
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Reads what the page cache holds; `true` when that was all of it.
fn read_cached(file: &File, offset: u64, buf: &mut [u8]) -> bool {
    let len = buf.len();
    let read = rustix::io::preadv2(file, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT);
    read.is_ok_and(|n| n == len)
}

impl BlockDevice for FileDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector_size(&self) -> u32 {
        self.sector
    }

    fn topology(&self) -> Topology {
        self.topology
    }

    fn identity(&self) -> Option<Identity> {
        Some(self.identity)
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range("read", offset, buf.len() as u64, self.size)?;
        self.read_plain(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.check_write("write", offset, buf.len() as u64)?;
        self.write_plain(offset, buf)
    }

    fn write_fua(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.check_write("write", offset, buf.len() as u64)?;
        let straight = self
            .direct
            .is_none_or(|d| d.fits(offset, buf.len()) && d.fits_memory(buf));
        if straight {
            let slices = [IoSlice::new(buf)];
            let written = rustix::io::pwritev2(&*self.file, &slices, offset, ReadWriteFlags::DSYNC);
            if written.is_ok_and(|n| n == buf.len()) {
                return Ok(());
            }
        }
        self.write_plain(offset, buf)?;
        self.flush()
    }

    fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        // One inode, one call: the second way to the file is covered too.
        loop {
            match rustix::fs::fdatasync(&*self.file) {
                Err(Errno::INTR) => {}
                result => return result.map_err(|e| Error::io("flush", 0, self.size, e.into())),
            }
        }
    }

    fn discard(&self, offset: u64, len: u64) -> Result<bool> {
        self.check_write("discard", offset, len)?;
        if len == 0 {
            return Ok(true);
        }
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        loop {
            return match rustix::fs::fallocate(&*self.file, mode, offset, len) {
                Ok(()) => Ok(true),
                Err(Errno::INTR) => continue,
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => Ok(false),
                Err(e) => Err(Error::io("discard", offset, len, e.into())),
            };
        }
    }

    fn read_batch(&self, requests: &mut [ReadRequest<'_>]) -> Result<()> {
        for r in requests.iter() {
            check_range("read", r.offset, r.buf.len() as u64, self.size)?;
        }
        let mut outcome = Ok(());
        let mut waiting = Vec::with_capacity(requests.len());
        for request in requests {
            // What is in memory costs one call; a ring would only add to that.
            if self.direct.is_none() && read_cached(&self.file, request.offset, request.buf) {
                continue;
            }
            if self.fits(request.offset, request.buf.len()) {
                waiting.push(ReadRequest {
                    offset: request.offset,
                    buf: &mut *request.buf,
                });
            } else {
                outcome = outcome.and(self.read_plain(request.offset, request.buf));
            }
        }
        let plain = |offset: u64, buf: &mut [u8]| self.read_plain(offset, buf);
        outcome.and(batch::read(self.engine, &self.file, &mut waiting, &plain))
    }

    fn write_batch(&self, requests: &[WriteRequest<'_>]) -> Result<()> {
        for r in requests {
            self.check_write("write", r.offset, r.buf.len() as u64)?;
        }
        let (fitting, odd): (Vec<WriteRequest<'_>>, Vec<_>) =
            requests.iter().partition(|r| self.fits(r.offset, r.buf.len()));
        let plain = |offset: u64, buf: &[u8]| self.write_plain(offset, buf);
        let outcome = batch::write(self.engine, &self.file, &fitting, &plain);
        odd.iter().fold(outcome, |outcome, r| {
            outcome.and(self.write_plain(r.offset, r.buf))
        })
    }

    /// Only past the page cache: into it, a ring is slower than plain calls.
    fn write_queue(&self) -> Option<Box<dyn WriteQueue + '_>> {
        if self.direct.is_none() || self.read_only || self.engine != Engine::Auto {
            return None;
        }
        let queue = RingQueue::new(self, Arc::clone(&self.file)).ok()?;
        Some(Box::new(queue))
    }
}
