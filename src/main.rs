//! `mount.fuse-gfs2` and, under the name `umount.*`, its twin.

use fuse_gfs2::mount::background::{self, Verdict};
use fuse_gfs2::mount::cli::{self, MountError, MountRequest};
use fuse_gfs2::mount::{logging, remount, run, unmount};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let name = Path::new(&name)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    if fuse_gfs2::completions::print(&mut cli::command()) {
        return ExitCode::SUCCESS;
    }
    if name.starts_with("umount") {
        return end("umount.fuse.gfs2", unmount::run(args));
    }
    match cli::parse(args.collect::<Vec<OsString>>()) {
        Ok(request) => mount(request),
        Err(Ok(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(Err(error)) => end("mount.fuse-gfs2", Err(error)),
    }
}

fn end(name: &str, result: Result<(), MountError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::from(error.code)
        }
    }
}

fn mount(mut request: MountRequest) -> ExitCode {
    let result = cli::check_target(&request).and_then(|()| {
        // The daemon works in another folder.
        request.make_absolute()?;
        if request.options.remount {
            return remount::run(&request);
        }
        if request.child {
            return child(&request);
        }
        if request.foreground {
            logging::start(true);
            return run::run(&request, || Ok(()));
        }
        if request.verbose {
            println!(
                "mount.fuse-gfs2: {} on {} with '{}'",
                request.device.display(),
                request.target.display(),
                request.options_text
            );
        }
        background::start_and_wait(&request)
    });
    // The helper says what the daemon found wrong; the daemon itself has said it by its verdict.
    if request.child {
        return ExitCode::from(result.err().map_or(0, |error| error.code));
    }
    end("mount.fuse-gfs2", result)
}

/// The daemon's life.
fn child(request: &MountRequest) -> Result<(), MountError> {
    logging::start(false);
    let verdict = Verdict::detach()?;
    let mut said = false;
    let result = run::run(request, || {
        said = true;
        Verdict.ready()
    });
    match &result {
        Err(error) if !said => verdict.failed(error),
        Err(error) => tracing::error!("{error}"),
        Ok(()) if !said => verdict.done(),
        Ok(()) => {}
    }
    result
}
