//! Keeps what is overwritten in a file, and puts it back.
//!
//! The file: a head (magic, version, size of the device, checksum), then records (offset, length, checksum, bytes).
//! Invariants: a record is durable before the device is written for the first time at its place; each place is kept
//! once, as it was at the beginning; a torn record at the end of the file belongs to a write that never happened.

use crate::repair::Ranges;
use gfs2_format::device::{BlockDevice, Identity, ReadRequest, Topology, WriteRequest};
use gfs2_format::{Error, Result};
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::sync::{Mutex, PoisonError};

const MAGIC: [u8; 8] = *b"GFS2UNDO";
const VERSION: u32 = 1;
const HEAD: usize = 24;
const RECORD: usize = 16;
/// Bytes of a record at most.
const RECORD_MAX: u64 = 1 << 20;

/// A device whose old contents are kept before they are overwritten.
#[derive(Debug)]
pub struct UndoDevice<D> {
    base: D,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    file: File,
    places: Ranges,
}

fn failed(op: &'static str, source: io::Error) -> Error {
    let text = format!("undo file: {source}");
    Error::io(op, 0, 0, io::Error::new(source.kind(), text))
}

fn head(size: u64) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    let fields = MAGIC
        .into_iter()
        .chain(VERSION.to_be_bytes())
        .chain(size.to_be_bytes());
    head.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    let crc = crc32fast::hash(head.get(..HEAD - 4).unwrap_or_default()).to_be_bytes();
    let tail = head.get_mut(HEAD - 4..).unwrap_or_default();
    tail.iter_mut().zip(crc).for_each(|(to, from)| *to = from);
    head
}

fn record_crc(offset: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&offset.to_be_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

impl<D: BlockDevice> UndoDevice<D> {
    /// Keeps the old contents of `base` in `file`, which is empty.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn new(base: D, mut file: File) -> Result<Self> {
        let write = file.write_all(&head(base.size())).and_then(|()| file.sync_data());
        write.map_err(|e| failed("write", e))?;
        let places = Ranges::default();
        let kept = Mutex::new(Kept { file, places });
        Ok(Self { base, kept })
    }

    /// Keeps what is about to be overwritten.
    fn keep(&self, requests: &[(u64, u64)]) -> Result<()> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Kept { file, places } = &mut *kept;
        let mut fresh = Vec::new();
        for (offset, len) in requests {
            let end = offset.saturating_add(*len);
            fresh.extend(places.missing(*offset, end));
        }
        for (start, end) in &fresh {
            let mut at = *start;
            while at < *end {
                let len = (end - at).min(RECORD_MAX);
                let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
                self.base.read_at(at, &mut bytes)?;
                let crc = record_crc(at, &bytes);
                let mut record = Vec::with_capacity(RECORD.saturating_add(bytes.len()));
                record.extend(at.to_be_bytes());
                record.extend(u32::try_from(len).unwrap_or(0).to_be_bytes());
                record.extend(crc.to_be_bytes());
                record.extend(bytes);
                file.write_all(&record).map_err(|e| failed("write", e))?;
                at = at.saturating_add(len);
            }
        }
        if !fresh.is_empty() {
            file.sync_data().map_err(|e| failed("flush", e))?;
            for (start, end) in fresh {
                places.add(start, end);
            }
        }
        Ok(())
    }
}

impl<D: BlockDevice> BlockDevice for UndoDevice<D> {
    fn size(&self) -> u64 {
        self.base.size()
    }

    fn sector_size(&self) -> u32 {
        self.base.sector_size()
    }

    fn topology(&self) -> Topology {
        self.base.topology()
    }

    fn identity(&self) -> Option<Identity> {
        self.base.identity()
    }

    fn is_read_only(&self) -> bool {
        self.base.is_read_only()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.base.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.keep(&[(offset, buf.len() as u64)])?;
        self.base.write_at(offset, buf)
    }

    fn flush(&self) -> Result<()> {
        self.base.flush()
    }

    fn read_batch(&self, requests: &mut [ReadRequest<'_>]) -> Result<()> {
        self.base.read_batch(requests)
    }

    fn write_batch(&self, requests: &[WriteRequest<'_>]) -> Result<()> {
        let places: Vec<(u64, u64)> = requests.iter().map(|r| (r.offset, r.buf.len() as u64)).collect();
        self.keep(&places)?;
        self.base.write_batch(requests)
    }
}

/// Puts back what an undo file has kept; answers how many bytes.
///
/// # Errors
/// A file that is none, or of another device; I/O errors.
pub fn restore(device: &dyn BlockDevice, file: File) -> Result<u64> {
    let mut file = BufReader::new(file);
    let mut found = [0; HEAD];
    let read = file.read_exact(&mut found);
    if read.is_err() || found != head(device.size()) {
        let what = io::Error::new(ErrorKind::InvalidData, "no undo file of a device of this size");
        return Err(failed("read", what));
    }
    let mut restored = 0u64;
    while let Some((offset, bytes)) = next_record(&mut file)? {
        device.write_at(offset, &bytes)?;
        restored = restored.saturating_add(bytes.len() as u64);
    }
    device.flush()?;
    Ok(restored)
}

/// The next record; `None` at the end of what is whole.
fn next_record(file: &mut impl Read) -> Result<Option<(u64, Vec<u8>)>> {
    let mut header = [0; RECORD];
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(failed("read", e)),
    }
    let (offset, rest) = header.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    let (len, rest) = rest.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
    let crc = rest.first_chunk::<4>().copied().unwrap_or_default();
    let (offset, len) = (u64::from_be_bytes(*offset), u32::from_be_bytes(*len));
    if u64::from(len) > RECORD_MAX {
        return Ok(None);
    }
    let mut bytes = vec![0; len as usize];
    match file.read_exact(&mut bytes) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(failed("read", e)),
    }
    Ok((record_crc(offset, &bytes) == u32::from_be_bytes(crc)).then_some((offset, bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs2_format::device::MemDevice;
    use std::io::{Seek, SeekFrom};

    #[test]
    fn what_was_overwritten_comes_back() {
        let device = MemDevice::new(1 << 20);
        device.write_at(4096, &[7; 4096]).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let undo = UndoDevice::new(&device, file.try_clone().unwrap()).unwrap();
        undo.write_at(4096, &[1; 512]).unwrap();
        undo.write_at(4096, &[2; 4096]).unwrap();
        let (offset, buf) = (0, &[3; 8192][..]);
        undo.write_batch(&[WriteRequest { offset, buf }]).unwrap();
        // A record that was not finished.
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(&[9; 30]).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        assert_eq!(restore(&device, file).unwrap(), 8192);
        let mut now = vec![0; 8192];
        device.read_at(0, &mut now).unwrap();
        assert_eq!((&now[..4096], &now[4096..]), (&[0; 4096][..], &[7; 4096][..]));
    }

    #[test]
    fn a_file_of_another_device_is_refused() {
        let mut file = tempfile::tempfile().unwrap();
        UndoDevice::new(MemDevice::new(1 << 20), file.try_clone().unwrap()).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        assert!(restore(&MemDevice::new(2 << 20), file).is_err());
    }
}
