//! `gfs2ctl`: looks at GFS2 volumes.

use std::process::ExitCode;

fn main() -> ExitCode {
    fuse_gfs2::ctl::run(std::env::args_os())
}
