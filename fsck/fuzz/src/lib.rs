//! What the targets share: a volume the kernel made, and input bytes as damage to its metadata.

use gfs2_format::device::{BlockDevice, MemDevice};
use gfs2_format::ondisk::MAGIC;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

/// Block size of the volume.
const BSIZE: u64 = 1024;

/// The volume, and where its metadata is.
struct Volume {
    device: MemDevice,
    metadata: Vec<u64>,
}

static VOLUME: LazyLock<Volume> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/images/clean1k.img.zst");
    let output = Command::new("zstd")
        .args(["-dc", "--long=27"])
        .arg(&path)
        .output()
        .expect("the zstd program");
    assert!(output.status.success(), "{}", path.display());
    let device = MemDevice::new(output.stdout.len() as u64);
    let mut metadata = vec![64];
    let mut inodes = 0;
    for (n, block) in output.stdout.chunks(BSIZE as usize).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            device.write_at(n as u64 * BSIZE, block).expect("memory");
        }
        // Headers of logs and copies in journals are many and alike, and so are the inodes of small files.
        let kind = block[7];
        inodes += u32::from(kind == 4);
        let few = kind != 4 || inodes % 64 == 1;
        if block[..4] == MAGIC.to_be_bytes() && (2..=14).contains(&kind) && kind != 8 && few {
            metadata.push(n as u64);
        }
    }
    Volume { device, metadata }
});

/// A copy of the volume, damaged as the bytes say: four for the place, one for what to do, and up to eight to write.
pub fn damaged(mut data: &[u8]) -> MemDevice {
    let device = VOLUME.device.clone();
    let metadata = &VOLUME.metadata;
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
        let at = (u64::from(c) << 8 | u64::from(d)) % BSIZE;
        let mut bytes = vec![0; BSIZE as usize];
        device.read_at(block * BSIZE, &mut bytes).expect("memory");
        let at = at as usize;
        match what % 4 {
            0 => bytes.fill(what),
            1 => {
                let from = metadata[(usize::from(c) << 8 | usize::from(d)) % metadata.len()];
                device.read_at(from * BSIZE, &mut bytes).expect("memory");
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
        device.write_at(block * BSIZE, &bytes).expect("memory");
    }
    device
}
