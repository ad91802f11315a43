//! The part of the test laboratory (`tests/support`) that a kernel in an emulator needs.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "the laboratory has more than these tests use"
)]

#[path = "../../../tests/support/guest.rs"]
pub mod guest;
#[path = "../../../tests/support/host.rs"]
pub mod host;
#[path = "../../../tests/support/vm.rs"]
pub mod vm;

use std::path::Path;
use tempfile::TempDir;

/// A folder of its own for one test, on a filesystem that can do direct I/O.
pub fn scratch(name: &str) -> TempDir {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(base).expect("the scratch folder of cargo");
    tempfile::Builder::new()
        .prefix(&format!("{name}-"))
        .tempdir_in(base)
        .expect("a scratch folder")
}
