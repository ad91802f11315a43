//! SIGTERM, SIGINT and SIGHUP end the daemon as umount -l does: the mount goes from the tree, what is open goes on until
//! it is closed, then the journal is left clean. SIGUSR1 has the requests counted so far put into the log.

use rustix::mount::UnmountFlags;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};
use std::io;
use std::path::Path;
use std::thread::JoinHandle;

/// The thread that waits for signals; dropping this ends it.
#[derive(Debug)]
pub struct Termination {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Termination {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            // It only unmounts; a panic there has said so itself.
            let _ = thread.join();
        }
    }
}

/// From now on a termination signal unmounts `target`, and SIGUSR1 calls `report`.
///
/// # Errors
/// The system's.
pub fn listen(target: &Path, report: impl Fn() + Send + 'static) -> io::Result<Termination> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
    let handle = signals.handle();
    let target = target.to_owned();
    let thread = std::thread::Builder::new()
        .name("gfs2-signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if signal == SIGUSR1 {
                    report();
                    continue;
                }
                tracing::info!(signal, "unmounting {}", target.display());
                if let Err(error) = rustix::mount::unmount(&target, UnmountFlags::DETACH) {
                    tracing::warn!("cannot unmount {}: {error}", target.display());
                }
            }
        })?;
    Ok(Termination {
        handle,
        thread: Some(thread),
    })
}
