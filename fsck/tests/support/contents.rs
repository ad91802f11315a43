//! What users have on a volume: every path with its type, owner, size and bytes, as one number.

use gfs2_format::device::MemDevice;
use gfs2_format::dir::{Cookie, read_from};
use gfs2_format::ondisk::{DINODE_SIZE, Dinode, FileType};
use gfs2_format::tree::{Mapping, map};
use gfs2_format::volume::{DeviceReader, read_superblock};
use gfs2_format::{BlockAddr, BlockRead, FileBlock};
use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::ops::ControlFlow;

/// By path from the root.
pub(crate) type Contents = BTreeMap<String, u64>;

/// Everything below the root.
#[track_caller]
pub(crate) fn contents(device: &MemDevice) -> Contents {
    let (superblock, geometry) = read_superblock(device).unwrap();
    let reader = DeviceReader::new(device, &geometry);
    let mut contents = Contents::new();
    let mut dirs = vec![(String::new(), superblock.root_dir.num().addr)];
    while let Some((path, dir)) = dirs.pop() {
        contents.insert(format!("{path}/"), digest(&reader, dir));
        let mut add = |entry: gfs2_format::dir::Entry<'_>| {
            if !matches!(entry.name, b"." | b"..") {
                let path = format!("{path}/{}", entry.name.escape_ascii());
                match entry.kind {
                    FileType::Dir => dirs.push((path, entry.num.addr)),
                    _ => {
                        contents.insert(path, digest(&reader, entry.num.addr));
                    }
                }
            }
            ControlFlow::Continue(())
        };
        read_from(&reader, dir, Cookie::START, &mut add).unwrap_or_else(|e| panic!("{path}: {e}"));
    }
    contents
}

fn digest(reader: &DeviceReader<'_>, addr: BlockAddr) -> u64 {
    let block = reader.read(addr).unwrap();
    let geometry = reader.geometry();
    let di = Dinode::decode(&block, addr, geometry).unwrap_or_else(|e| panic!("{addr}: {e}"));
    let mut hasher = DefaultHasher::new();
    (di.mode.get(), di.uid.get(), di.gid.get(), di.mtime.get()).hash(&mut hasher);
    if di.is_dir() {
        return hasher.finish();
    }
    di.size.get().hash(&mut hasher);
    let blocks = di.size.get().div_ceil(u64::from(geometry.bsize()));
    let mut at = 0;
    while at < blocks {
        match map(reader, addr, &block, FileBlock::new(at), blocks - at).unwrap() {
            Mapping::Stuffed => {
                block[DINODE_SIZE..].hash(&mut hasher);
                break;
            }
            Mapping::Hole { len } => at += len.max(1),
            Mapping::Data(extent) => {
                for block in extent.blocks() {
                    at.hash(&mut hasher);
                    reader.read(block).unwrap().hash(&mut hasher);
                    at += 1;
                }
            }
        }
    }
    hasher.finish()
}
