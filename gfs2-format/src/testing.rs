//! For this crate's tests: the fixture images, and a device of memory that shares them and can fail.

use crate::device::BlockDevice;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};

const SECTOR: u64 = 512;

/// Seeded choices (xorshift); the seed is not 0.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    /// The next number below `n` (at least 1).
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n.max(1)
    }
}

/// The bytes of `fixtures/images/<name>.img.zst`, unpacked once per test program.
pub(crate) fn image(name: &str) -> Arc<Vec<u8>> {
    static UNPACKED: LazyLock<Mutex<HashMap<String, Arc<Vec<u8>>>>> = LazyLock::new(Mutex::default);
    let mut unpacked = UNPACKED.lock().unwrap();
    let bytes = unpacked
        .entry(name.to_owned())
        .or_insert_with(|| Arc::new(unpack(name)));
    Arc::clone(bytes)
}

fn unpack(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fixtures/images")
        .join(format!("{name}.img.zst"));
    let output = Command::new("zstd")
        .args(["-dc", "--long=27"])
        .arg(&path)
        .output()
        .expect("the zstd program is needed to unpack the fixtures");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "zstd -d {}: {text}", path.display());
    output.stdout
}

/// An image under a layer of changed sectors.
pub(crate) struct TestDevice {
    base: Arc<Vec<u8>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    changed: BTreeMap<u64, [u8; SECTOR as usize]>,
    writes: u64,
    fail_after: Option<u64>,
}

impl fmt::Debug for TestDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TestDevice({} bytes)", self.base.len())
    }
}

impl TestDevice {
    pub(crate) fn new(base: Arc<Vec<u8>>) -> Self {
        assert_eq!(base.len() as u64 % SECTOR, 0);
        Self {
            base,
            state: Mutex::default(),
        }
    }

    pub(crate) fn fixture(name: &str) -> Self {
        Self::new(image(name))
    }

    pub(crate) fn zeroed(len: usize) -> Self {
        Self::new(Arc::new(vec![0; len]))
    }

    /// Writes fail from the `n`th sector written from now on; what came before stays.
    pub(crate) fn fail_after(&self, n: Option<u64>) {
        let mut state = self.state.lock().unwrap();
        state.fail_after = n.map(|n| state.writes + n);
    }

    /// Sectors written so far.
    pub(crate) fn writes(&self) -> u64 {
        self.state.lock().unwrap().writes
    }

    /// The changed sectors: byte offset and bytes.
    pub(crate) fn changes(&self) -> Vec<(u64, Vec<u8>)> {
        let state = self.state.lock().unwrap();
        let changed = state.changed.iter();
        changed.map(|(n, bytes)| (n * SECTOR, bytes.to_vec())).collect()
    }

    /// All bytes as they are now.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.base.to_vec();
        for (offset, sector) in self.changes() {
            bytes[offset as usize..][..sector.len()].copy_from_slice(&sector);
        }
        bytes
    }
}

impl BlockDevice for TestDevice {
    fn size(&self) -> u64 {
        self.base.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|e| *e <= self.size());
        if end.is_none() {
            let source = std::io::ErrorKind::UnexpectedEof.into();
            return Err(Error::io("read", offset, buf.len() as u64, source));
        }
        buf.copy_from_slice(&self.base[offset as usize..][..buf.len()]);
        let state = self.state.lock().unwrap();
        let first = offset / SECTOR;
        let last = (offset + buf.len() as u64).div_ceil(SECTOR);
        for (n, sector) in state.changed.range(first..last) {
            for (at, byte) in (n * SECTOR..).zip(sector) {
                if at >= offset && at - offset < buf.len() as u64 {
                    buf[(at - offset) as usize] = *byte;
                }
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        assert_eq!(
            (offset % SECTOR, buf.len() as u64 % SECTOR),
            (0, 0),
            "unaligned write"
        );
        assert!(offset + buf.len() as u64 <= self.size(), "write past the end");
        let mut state = self.state.lock().unwrap();
        for (n, sector) in (offset / SECTOR..).zip(buf.chunks_exact(SECTOR as usize)) {
            if state.fail_after.is_some_and(|limit| state.writes >= limit) {
                let source = std::io::ErrorKind::Other.into();
                return Err(Error::io("write", offset, buf.len() as u64, source));
            }
            state.writes += 1;
            state.changed.insert(n, sector.try_into().unwrap());
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}
