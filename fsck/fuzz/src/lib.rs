//! What the targets share: volumes the kernel made, and input bytes as damage to the metadata of one of them.
//!
//! Most inputs go to the volumes with the shortest journals and the fewest inodes, so that a run takes milliseconds.

use gfs2_format::device::{BlockDevice, MemDevice};
use gfs2_format::ondisk::MAGIC;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

/// A volume, and where its metadata is.
struct Volume {
    bsize: u64,
    device: MemDevice,
    metadata: Vec<u64>,
}

/// By the first byte of an input: clean and crashed ones, of one node and of two, with long chains of leaves.
const IMAGES: [(&str, u64); 8] = [
    ("dirty4k.after-replay", 4096),
    ("dirty4k", 4096),
    ("chain1k", 1024),
    ("cluster2j-dirty", 4096),
    ("dirty4k.after-replay", 4096),
    ("cluster2j-dirty.after-replay", 4096),
    ("clean4k", 4096),
    ("clean1k", 1024),
];

static VOLUMES: [LazyLock<Volume>; 8] = [
    LazyLock::new(|| unpack(0)),
    LazyLock::new(|| unpack(1)),
    LazyLock::new(|| unpack(2)),
    LazyLock::new(|| unpack(3)),
    LazyLock::new(|| unpack(4)),
    LazyLock::new(|| unpack(5)),
    LazyLock::new(|| unpack(6)),
    LazyLock::new(|| unpack(7)),
];

fn unpack(n: usize) -> Volume {
    let (name, bsize) = IMAGES[n];
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../fixtures/images/{name}.img.zst"));
    let output = Command::new("zstd")
        .args(["-dc", "--long=27"])
        .arg(&path)
        .output()
        .expect("the zstd program");
    assert!(output.status.success(), "{}", path.display());
    let device = MemDevice::new(output.stdout.len() as u64);
    let mut metadata = vec![65536 / bsize];
    assert_eq!(output.stdout[65536 + 36..65536 + 40], (bsize as u32).to_be_bytes(), "{name}");
    let mut inodes = 0;
    for (n, block) in output.stdout.chunks(bsize as usize).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            device.write_at(n as u64 * bsize, block).expect("memory");
        }
        // Headers of logs and copies in journals are many and alike, and so are the inodes of small files.
        let kind = block[7];
        inodes += u32::from(kind == 4);
        let few = kind != 4 || inodes < 64 || inodes % 64 == 1;
        if block[..4] == MAGIC.to_be_bytes() && (2..=14).contains(&kind) && kind != 8 && few {
            metadata.push(n as u64);
        }
    }
    Volume { bsize, device, metadata }
}

/// A copy of a volume, damaged as the bytes say: one for which volume; then four for the place, one for what to do, and
/// up to eight to write.
pub fn damaged(data: &[u8]) -> MemDevice {
    let (first, mut data) = data.split_first().unwrap_or((&0, &[]));
    let Volume { bsize, device, metadata } = &*VOLUMES[usize::from(*first) % VOLUMES.len()];
    let (bsize, device) = (*bsize, device.clone());
    let mut next = move || match data.split_first() {
        Some((first, rest)) => {
            data = rest;
            Some(*first)
        }
        None => None,
    };
    for _ in 0..16 {
        let [Some(a), Some(b), Some(c), Some(d), Some(what)] = [next(), next(), next(), next(), next()] else {
            break;
        };
        let block = metadata[(usize::from(a) << 8 | usize::from(b)) % metadata.len()];
        let at = (u64::from(c) << 8 | u64::from(d)) % bsize;
        let mut bytes = vec![0; bsize as usize];
        device.read_at(block * bsize, &mut bytes).expect("memory");
        let at = at as usize;
        match what % 4 {
            0 => bytes.fill(what),
            1 => {
                let from = metadata[(usize::from(c) << 8 | usize::from(d)) % metadata.len()];
                device.read_at(from * bsize, &mut bytes).expect("memory");
            }
            2 => {
                // A pointer to other metadata.
                let at = at / 8 * 8;
                let target = metadata[usize::from(what) * 31 % metadata.len()];
                bytes[at..at + 8].copy_from_slice(&target.to_be_bytes());
            }
            _ => {
                let len = usize::from(what / 4) % 8 + 1;
                for byte in bytes.iter_mut().skip(at).take(len) {
                    *byte = next().unwrap_or(0);
                }
            }
        }
        device.write_at(block * bsize, &bytes).expect("memory");
    }
    device
}
