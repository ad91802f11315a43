//! A watchdog for mounts: what waits for ever in the kernel is made to fail, so that a test ends and says so.

use super::Mount;
use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Ends the connection to the daemon when `work` has not ended after `patience`: what waits in the kernel fails then.
pub fn watched<T: Send>(mount: &Mount, patience: Duration, work: impl FnOnce() -> T + Send) -> T {
    let dev = fs::metadata(mount.path()).expect("the mount").st_dev();
    let connections = Path::new("/sys/fs/fuse/connections");
    let listed = fs::read_dir(connections).is_ok_and(|mut dir| dir.next().is_some());
    if !listed {
        let status = Command::new("mount")
            .args(["-t", "fusectl", "fusectl"])
            .arg(connections)
            .status();
        assert!(
            status.expect("mount").success(),
            "fusectl is needed to end a mount that sticks"
        );
    }
    let abort = connections.join(rustix::fs::minor(dev).to_string()).join("abort");
    assert!(abort.exists(), "{}", abort.display());
    let (done, wait) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if wait.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                eprintln!("the mount sticks: aborted after {patience:?}");
                fs::write(&abort, "1").expect("abort");
            }
        });
        let result = work();
        drop(done);
        result
    })
}
