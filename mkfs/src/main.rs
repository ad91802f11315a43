//! mkfs.gfs2: creates a GFS2 filesystem on a device. All of it is in the library.

fn main() -> std::process::ExitCode {
    gfs2_mkfs::cli::main(std::env::args_os())
}
