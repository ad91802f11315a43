//! The test laboratory: the real kernel in an emulator and the reference tools, as Rust values.
//!
//! Invariants:
//! * every wait has an end, and what ends it says what was awaited;
//! * every process, loop device and scratch folder is gone when its value is dropped, and an emulator
//!   also when the test process is killed;
//! * what is missing on the host is a failure that names `tests/lab/setup.sh`, never a skip.
//!
//! It knows nothing of our own code (but for the driver of the lock managers): it must stay an independent witness.

// Each test program takes the part it needs, and none is a library.
#![allow(dead_code, unreachable_pub)]

pub mod calls;
pub mod dlm;
pub mod fixture;
pub mod guest;
pub mod host;
pub mod manifest;
pub mod model;
pub mod orphans;
pub mod tool;
pub mod vm;
pub mod walk;
pub mod workload;

use std::path::Path;
use tempfile::TempDir;

/// A folder of its own for one test, on a filesystem that can do direct I/O (tmpfs cannot everywhere).
pub fn scratch(name: &str) -> TempDir {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(base).expect("the scratch folder of cargo");
    tempfile::Builder::new()
        .prefix(&format!("{name}-"))
        .tempdir_in(base)
        .expect("a scratch folder")
}
