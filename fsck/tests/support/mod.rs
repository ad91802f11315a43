//! Fixture images in memory, and where things are in them.

#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod cases;
pub(crate) mod contents;
pub(crate) mod groups;
pub(crate) mod heavy;

use gfs2_format::bitmap::RgrpLayout;
use gfs2_format::device::{BlockDevice, MemDevice};
use gfs2_format::ondisk::{BlockState, DINODE_SIZE, META_HEADER_SIZE};
use gfs2_format::volume::{DeviceReader, read_rindex, resolve_path};
use gfs2_format::{BlockAddr, BlockRead, Volume};
use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex};

pub(crate) fn fixture_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../fixtures/images/{name}.img.zst"))
}

/// A snapshot of a fixture; unpacked once per test program.
pub(crate) fn fixture(name: &str) -> MemDevice {
    static UNPACKED: LazyLock<Mutex<HashMap<String, MemDevice>>> = LazyLock::new(Mutex::default);
    let mut unpacked = UNPACKED.lock().unwrap();
    unpacked
        .entry(name.to_owned())
        .or_insert_with(|| unpack(name))
        .clone()
}

fn unpack(name: &str) -> MemDevice {
    let path = fixture_path(name);
    let output = Command::new("zstd")
        .args(["-dc", "--long=27"])
        .arg(&path)
        .output()
        .expect("the zstd program is needed to unpack the fixtures");
    assert!(output.status.success(), "zstd -d {}", path.display());
    let device = MemDevice::new(output.stdout.len() as u64);
    for (n, chunk) in output.stdout.chunks(16384).enumerate() {
        if chunk.iter().any(|b| *b != 0) {
            device.write_at(n as u64 * 16384, chunk).unwrap();
        }
    }
    device
}

/// Writes what is not zero; the file is as large as the device.
pub(crate) fn save(device: &MemDevice, path: &Path) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(device.size()).unwrap();
    let mut buf = vec![0; 1 << 18];
    for at in (0..device.size()).step_by(buf.len()) {
        let len = buf.len().min((device.size() - at) as usize);
        device.read_at(at, &mut buf[..len]).unwrap();
        if buf[..len].iter().any(|b| *b != 0) {
            file.write_all_at(&buf[..len], at).unwrap();
        }
    }
}

/// What the reference's `-n` says; an error is its text.
pub(crate) fn reference(device: &MemDevice) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    save(device, &path);
    let output = Command::new("fsck.gfs2")
        .arg("-n")
        .arg(&path)
        .output()
        .expect("fsck.gfs2 of gfs2-utils is needed; run tests/lab/setup.sh as root");
    match output.status.code() {
        Some(0) => Ok(()),
        code => Err(format!(
            "the reference exits {code:?}:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// Where things are on a volume.
pub(crate) struct Map<'a> {
    pub device: &'a MemDevice,
    pub volume: Volume,
}

impl<'a> Map<'a> {
    pub(crate) fn new(device: &'a MemDevice) -> Self {
        let volume = Volume::open(device).unwrap();
        Self { device, volume }
    }

    pub(crate) fn reader(&self) -> DeviceReader<'_> {
        DeviceReader::new(self.device, &self.volume.geometry)
    }

    /// The dinode a path from the root leads to.
    #[track_caller]
    pub(crate) fn path(&self, path: &str) -> u64 {
        self.below(self.volume.system.root, path)
    }

    /// The dinode a path from the master directory leads to.
    #[track_caller]
    pub(crate) fn master(&self, path: &str) -> u64 {
        self.below(self.volume.system.master, path)
    }

    #[track_caller]
    fn below(&self, top: BlockAddr, path: &str) -> u64 {
        let found = resolve_path(&self.reader(), top, path.as_bytes());
        found.unwrap_or_else(|e| panic!("{path}: {e}")).get()
    }

    pub(crate) fn block(&self, addr: u64) -> Vec<u8> {
        self.reader().read(BlockAddr::new(addr)).unwrap().to_vec()
    }

    fn word(&self, addr: u64, at: usize) -> u64 {
        u64::from_be_bytes(self.block(addr)[at..at + 8].try_into().unwrap())
    }

    /// The `n`th pointer of a dinode.
    pub(crate) fn top(&self, dinode: u64, n: usize) -> u64 {
        self.word(dinode, DINODE_SIZE + n * 8)
    }

    /// The `n`th pointer of a block with a header.
    pub(crate) fn pointer(&self, block: u64, n: usize) -> u64 {
        self.word(block, META_HEADER_SIZE + n * 8)
    }

    /// `di_eattr`.
    pub(crate) fn eattr(&self, dinode: u64) -> u64 {
        self.word(dinode, 168)
    }

    /// Byte offsets of the records of an xattr block.
    pub(crate) fn ea_records(&self, block: u64) -> Vec<usize> {
        let bytes = self.block(block);
        let mut at = META_HEADER_SIZE;
        let mut records = Vec::new();
        while at < bytes.len() {
            records.push(at);
            at += u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        }
        records
    }

    /// The resource groups.
    pub(crate) fn groups(&self) -> Vec<RgrpLayout> {
        let rindex = self.volume.system.rindex;
        let entries = read_rindex(&self.reader(), rindex).unwrap();
        let layout = |entry| RgrpLayout::check(entry, rindex, &self.volume.geometry).unwrap();
        entries.iter().map(layout).collect()
    }

    /// A block of this state whose first bytes are zero.
    pub(crate) fn blank(&self, state: BlockState) -> u64 {
        for group in self.groups() {
            for slice in group.slices() {
                let bitmap = self.block(slice.block.get());
                for (block, found) in slice.iter(&bitmap).unwrap() {
                    if found == state && self.block(block.get())[..24] == [0; 24] {
                        return block.get();
                    }
                }
            }
        }
        panic!("no blank block in state {state:?}");
    }
}
