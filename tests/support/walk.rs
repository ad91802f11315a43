//! Walks a mounted tree and writes down everything that can be seen of it.
//!
//! The same program runs on the host over our mount and in the guest over the kernel's (see `tool`), so
//! that what differs is the filesystem.

use super::manifest::{Fields, Manifest, escape, hex};
use rustix::fs::{self as fs, AtFlags, CWD, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// Files up to this size are hashed whole, larger ones by their non-zero pages.
const WHOLE_MAX: u64 = 8 << 20;
const PAGE: u64 = 4096;
/// Values of extended attributes up to this size stand in full, larger ones as their hash.
const VALUE_MAX: usize = 256;
/// More data extents than this stand as their number.
const EXTENTS_MAX: usize = 64;

/// The manifest of the tree below this folder.
pub fn walk(root: &Path) -> io::Result<Manifest> {
    let mut out = Manifest::default();
    let mut todo = vec![(b".".to_vec(), None)];
    while let Some((path, dirent)) = todo.pop() {
        let full = root.join(bytes_path(&path));
        let fields = describe(&full, dirent).map_err(|e| with(&path, e))?;
        if fields.get("type").is_some_and(|t| t == "dir") {
            for child in list(&full).map_err(|e| with(&path, e))? {
                let name = [&path[..], b"/", &child.name].concat();
                todo.push((name, Some(child)));
            }
        }
        out.entries.insert(escape(&path), fields);
    }
    out.entries.insert("#statfs".to_owned(), statfs(root)?);
    Ok(out)
}

fn bytes_path(path: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(path))
}

fn with(path: &[u8], e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", escape(path)))
}

/// A directory entry as readdir gives it.
#[derive(Debug)]
struct Dirent {
    name: Vec<u8>,
    ino: u64,
    kind: FileType,
}

fn list(dir: &Path) -> io::Result<Vec<Dirent>> {
    let handle = fs::openat(
        CWD,
        dir,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut found = Vec::new();
    let (mut dots, mut seen) = (0, std::collections::BTreeSet::new());
    for entry in fs::Dir::new(handle)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes().to_vec();
        if name == b"." || name == b".." {
            dots += 1;
            continue;
        }
        if !seen.insert(name.clone()) {
            return Err(io::Error::other(format!("readdir gives {} twice", escape(&name))));
        }
        found.push(Dirent {
            name,
            ino: entry.ino(),
            kind: entry.file_type(),
        });
    }
    if dots != 2 {
        return Err(io::Error::other(format!("readdir gives {dots} of . and ..")));
    }
    Ok(found)
}

fn describe(path: &Path, dirent: Option<Dirent>) -> io::Result<Fields> {
    let meta = std::fs::symlink_metadata(path)?;
    let kind = FileType::from_raw_mode(meta.mode());
    let mut f = Fields::new();
    let mut put = |key: &str, value: String| f.insert(key.to_owned(), value);
    put("type", kind_name(kind).to_owned());
    put("mode", format!("{:04o}", meta.mode() & 0o7777));
    put("uid", meta.uid().to_string());
    put("gid", meta.gid().to_string());
    put("nlink", meta.nlink().to_string());
    put("size", meta.size().to_string());
    put("blocks", meta.blocks().to_string());
    put("ino", meta.ino().to_string());
    put("mtime", format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()));
    put("ctime", format!("{}.{:09}", meta.ctime(), meta.ctime_nsec()));
    put("atime", format!("{}.{:09}", meta.atime(), meta.atime_nsec()));
    if let Some(d) = dirent
        && (d.ino != meta.ino() || d.kind != kind)
    {
        put("dirent", format!("says:{}:{}", kind_name(d.kind), d.ino));
    }
    match kind {
        FileType::Symlink => {
            put(
                "target",
                escape(fs::readlinkat(CWD, path, Vec::new())?.to_bytes()),
            );
        }
        FileType::CharacterDevice | FileType::BlockDevice => {
            put(
                "rdev",
                format!("{},{}", fs::major(meta.rdev()), fs::minor(meta.rdev())),
            );
        }
        FileType::RegularFile | FileType::Directory => {
            let handle = File::from(fs::openat(
                CWD,
                path,
                OFlags::RDONLY | OFlags::NOATIME | OFlags::CLOEXEC,
                Mode::empty(),
            )?);
            put("flags", flags(&handle)?);
            if kind == FileType::RegularFile {
                let extents = extents(&handle, meta.size())?;
                put("content", content(&handle, meta.size(), &extents)?);
                put("data", extents_text(&extents));
            }
        }
        _ => {}
    }
    f.append(&mut xattrs(path)?);
    Ok(f)
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "dir",
        FileType::Symlink => "symlink",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "char",
        FileType::BlockDevice => "block",
        FileType::Unknown => "unknown",
    }
}

/// The flags chattr(1) knows, as their bits.
fn flags(handle: &File) -> io::Result<String> {
    match fs::ioctl_getflags(handle) {
        Ok(flags) => Ok(format!("{:x}", flags.bits())),
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => Ok("none".to_owned()),
        Err(e) => Err(e.into()),
    }
}

/// The stretches that are no holes, as (offset, length).
fn extents(handle: &File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match fs::seek(handle, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = fs::seek(handle, SeekFrom::Hole(start))?;
        if start < at || end <= start || end > size {
            return Err(io::Error::other(format!(
                "SEEK_DATA {at} gives {start}, SEEK_HOLE {end}, size {size}"
            )));
        }
        found.push((start, end - start));
        at = end;
    }
    Ok(found)
}

fn extents_text(extents: &[(u64, u64)]) -> String {
    if extents.len() > EXTENTS_MAX {
        return format!("{}:extents", extents.len());
    }
    extents
        .iter()
        .map(|(o, n)| format!("{o}+{n}"))
        .collect::<Vec<_>>()
        .join(",")
}

/// A small file's hash; a large one's hash over (offset, bytes) of every page that is not all zero, which
/// does not depend on where the filesystem has holes.
fn content(handle: &File, size: u64, extents: &[(u64, u64)]) -> io::Result<String> {
    let mut hash = Sha256::new();
    if size <= WHOLE_MAX {
        let mut bytes = vec![0; usize::try_from(size).expect("a small file")];
        handle.read_exact_at(&mut bytes, 0)?;
        hash.update(&bytes);
        return Ok(hex(&hash.finalize()));
    }
    let mut page = [0; PAGE as usize];
    let mut next = 0;
    for &(start, len) in extents {
        let mut at = (start / PAGE * PAGE).max(next);
        while at < start + len {
            let want = usize::try_from(PAGE.min(size - at)).expect("a page");
            handle.read_exact_at(&mut page[..want], at)?;
            if page[..want].iter().any(|&b| b != 0) {
                hash.update(at.to_be_bytes());
                hash.update(&page[..want]);
            }
            at += PAGE;
            next = at;
        }
    }
    Ok(format!("pages:{}", hex(&hash.finalize())))
}

fn xattrs(path: &Path) -> io::Result<Fields> {
    let mut names = vec![0; 65536];
    let n = match fs::llistxattr(path, &mut names) {
        Ok(n) => n,
        Err(Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e.into()),
    };
    let mut found = Fields::new();
    for name in names[..n].split(|&b| b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0; 65536];
        let name = CString::new(name).expect("a name without NUL");
        let len = fs::lgetxattr(path, &name, &mut value)?;
        let value = &value[..len];
        let text = if len <= VALUE_MAX {
            hex(value)
        } else {
            format!("{len}:{}", hex(&Sha256::digest(value)))
        };
        found.insert(format!("x.{}", escape(name.to_bytes())), text);
    }
    Ok(found)
}

fn statfs(root: &Path) -> io::Result<Fields> {
    let s = fs::statvfs(root)?;
    let facts = [
        ("bsize", s.f_bsize),
        ("frsize", s.f_frsize),
        ("blocks", s.f_blocks),
        ("bfree", s.f_bfree),
        ("bavail", s.f_bavail),
        ("files", s.f_files),
        ("ffree", s.f_ffree),
        ("namemax", s.f_namemax),
    ];
    Ok(facts
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_string()))
        .collect::<BTreeMap<_, _>>())
}

/// Whether two paths are on the same filesystem and the same inode.
pub fn same_inode(a: &Path, b: &Path) -> io::Result<bool> {
    let stat = |p| fs::statat(CWD, p, AtFlags::SYMLINK_NOFOLLOW);
    let (a, b) = (stat(a)?, stat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}
