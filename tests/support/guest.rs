//! The guests: which kernels there are, and where their built images lie.
//!
//! `tests/lab/build-guest.sh` makes them and decides what is up to date; the cache is inside the checkout.

use super::host::{self, Host};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A kernel the laboratory can boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Debian 12's own.
    V6_1,
    /// The newer one Debian 12 offers.
    V6_12,
}

impl Kernel {
    /// Every kernel.
    pub const ALL: [Kernel; 2] = [Kernel::V6_1, Kernel::V6_12];

    /// The name the scripts use.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::V6_1 => "6.1",
            Kernel::V6_12 => "6.12",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A built guest.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The kernel asked for.
    pub kernel: Kernel,
    /// Its full version.
    pub version: String,
    /// The uncompressed ELF kernel.
    pub vmlinux: PathBuf,
    /// The uncompressed initramfs.
    pub initrd: PathBuf,
}

impl Guest {
    /// The guest of this kernel, built when missing or when its recipe changed (about 15 s, then cached).
    pub fn build(kernel: Kernel) -> Guest {
        let cache = host::checkout().join(".cache/lab");
        let script = host::checkout().join("tests/lab/build-guest.sh");
        let mut build = Host::new(&script);
        build
            .arg(kernel.name())
            .arg(&cache)
            .limit(Duration::from_secs(900))
            .check();
        let dir = cache.join("guest").join(kernel.name());
        Guest {
            kernel,
            version: read_line(&dir.join("version")),
            vmlinux: dir.join("vmlinux"),
            initrd: dir.join("initrd"),
        }
    }
}

fn read_line(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().to_owned()
}
