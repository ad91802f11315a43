//! Waking a thread that waits for descriptors.
//!
//! Invariants: a wake that happens before the wait is not lost; several before it cost one system call.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

#[derive(Debug)]
struct Shared {
    fd: OwnedFd,
    /// A wake is on its way and not yet seen.
    woken: AtomicBool,
}

/// A descriptor that can be read from the first [`Wake::wake`] to the next [`Wake::seen`]; clones are the same one.
#[derive(Clone, Debug)]
pub struct Wake(Arc<Shared>);

impl Wake {
    /// Nobody is woken yet.
    ///
    /// # Errors
    /// The system has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let woken = AtomicBool::new(false);
        Ok(Self(Arc::new(Shared { fd, woken })))
    }

    /// Ends the wait under way, or the next one, at once.
    pub fn wake(&self) {
        if !self.0.woken.swap(true, Ordering::SeqCst) {
            // Any number that is not zero wakes. Only a counter at its end could refuse, and then a wake is pending.
            let _ = rustix::io::write(&self.0.fd, &1u64.to_le_bytes());
        }
    }

    /// The waiting thread found the descriptor readable: what follows is seen after this, so a wake between the two is
    /// not lost.
    pub fn seen(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.0.fd, &mut count);
        self.0.woken.store(false, Ordering::SeqCst);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}
