//! What the kernel says about a block device: sectors, preferred I/O sizes, discard, rotation.
//!
//! Read from sysfs, where a value is missing (old kernels, containers without sysfs) it stays 0 = unknown.

use std::path::{Path, PathBuf};

/// Sizes are in bytes; 0 means unknown or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Logical sector: the smallest unit of I/O.
    pub logical_sector: u32,
    /// Physical sector: the smallest unit written without read-modify-write.
    pub physical_sector: u32,
    /// Preferred smallest I/O (`minimum_io_size`): a RAID's chunk.
    pub minimum_io: u32,
    /// Preferred I/O (`optimal_io_size`): a RAID's stripe.
    pub optimal_io: u32,
    /// Offset of the device's start from its natural alignment.
    pub alignment_offset: u32,
    /// Unit of discard.
    pub discard_granularity: u64,
    /// Largest discard; 0: the device cannot.
    pub discard_max: u64,
    /// Seeks are expensive.
    pub rotational: bool,
}

/// What names a device or file on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// A block device.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A regular file.
    File {
        /// Major number of the filesystem it is on.
        major: u32,
        /// Minor number of the filesystem it is on.
        minor: u32,
        /// Its inode number there.
        inode: u64,
    },
}

/// Reads the topology of a block device below `sysfs` (`/sys`).
pub(crate) fn of_block_device(sysfs: &Path, major: u32, minor: u32) -> Topology {
    let dir = sysfs.join(format!("dev/block/{major}:{minor}"));
    let queue = queue_directory(&dir);
    let number = |path: PathBuf| -> u64 {
        std::fs::read_to_string(path)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    };
    let of_queue = |name: &str| number(queue.join(name));
    let small = |value: u64| u32::try_from(value).unwrap_or(0);
    Topology {
        logical_sector: small(of_queue("logical_block_size")),
        physical_sector: small(of_queue("physical_block_size")),
        minimum_io: small(of_queue("minimum_io_size")),
        optimal_io: small(of_queue("optimal_io_size")),
        alignment_offset: small(number(dir.join("alignment_offset"))),
        discard_granularity: of_queue("discard_granularity"),
        discard_max: of_queue("discard_max_bytes"),
        rotational: of_queue("rotational") == 1,
    }
}

/// A partition has no queue of its own: its disk, the directory above, has.
fn queue_directory(dir: &Path) -> PathBuf {
    let own = dir.join("queue");
    if own.is_dir() {
        return own;
    }
    // The entry below dev/block is a link: ".." must be taken of what it points to.
    let real = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_path_buf());
    real.parent().map_or(own, |disk| disk.join("queue"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn partitions_take_the_queue_of_their_disk() {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("devices/pci0/block/sda");
        write(disk.join("queue/logical_block_size"), "512\n");
        write(disk.join("queue/physical_block_size"), "4096\n");
        write(disk.join("queue/minimum_io_size"), "65536\n");
        write(disk.join("queue/optimal_io_size"), "262144\n");
        write(disk.join("queue/discard_max_bytes"), "1073741824\n");
        write(disk.join("queue/rotational"), "1\n");
        write(disk.join("sda1/alignment_offset"), "3584\n");
        let links = sys.path().join("dev/block");
        fs::create_dir_all(&links).unwrap();
        std::os::unix::fs::symlink("../../devices/pci0/block/sda/sda1", links.join("8:1")).unwrap();
        let found = of_block_device(sys.path(), 8, 1);
        let expected = Topology {
            logical_sector: 512,
            physical_sector: 4096,
            minimum_io: 65536,
            optimal_io: 262144,
            alignment_offset: 3584,
            discard_granularity: 0,
            discard_max: 1 << 30,
            rotational: true,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn an_unknown_device_has_an_unknown_topology() {
        let sys = tempfile::tempdir().unwrap();
        assert_eq!(of_block_device(sys.path(), 9, 9), Topology::default());
    }
}
