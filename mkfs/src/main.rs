//! mkfs.gfs2: creates a GFS2 filesystem on a device. All of it is in the library.

fn main() -> std::process::ExitCode {
    // Asked for by the installer, as of every program of the project.
    let shell = std::env::var("FUSE_GFS2_COMPLETIONS").ok();
    if let Some(shell) = shell.and_then(|name| name.parse().ok()) {
        gfs2_mkfs::cli::completions(shell, &mut std::io::stdout());
        return std::process::ExitCode::SUCCESS;
    }
    gfs2_mkfs::cli::main(std::env::args_os())
}
