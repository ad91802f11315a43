//! Waiting for file descriptors and for other threads, in one place.
//!
//! Invariants: a wake that happens before [`Poller::wait`] is not lost; several before it cost one system call.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};

use crate::wake::Wake;

/// Something registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u64);

/// What is waited for, and what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// It can be read, or has ended.
    pub read: bool,
    /// It can be written, or has failed.
    pub write: bool,
}

/// A registered thing that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Which.
    pub token: Token,
    /// For what.
    pub readiness: Readiness,
}

#[derive(Debug)]
struct Shared {
    epoll: OwnedFd,
    wake: Wake,
    next: AtomicU64,
}

/// A set of things to wait for; clones are the same set.
#[derive(Clone, Debug)]
pub struct Poller(Arc<Shared>);

/// The token of the wake-up itself.
const WAKE: u64 = 0;
/// Things that are told of at once; the others are told of next time.
const BATCH: usize = 64;

impl Poller {
    /// Nothing to wait for but [`Poller::wake`].
    ///
    /// # Errors
    /// The system has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = Wake::new()?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        Ok(Self(Arc::new(Shared {
            epoll,
            wake,
            next: AtomicU64::new(WAKE.wrapping_add(1)),
        })))
    }

    /// Waits for `fd` too, until it is closed or [`Poller::remove`]d.
    ///
    /// # Errors
    /// What the system says.
    pub fn add(&self, fd: impl AsFd, wanted: Readiness) -> io::Result<Token> {
        let token = self.0.next.fetch_add(1, Ordering::Relaxed);
        epoll::add(&self.0.epoll, fd, EventData::new_u64(token), flags(wanted))?;
        Ok(Token(token))
    }

    /// Waits for something else of `fd`.
    ///
    /// # Errors
    /// What the system says.
    pub fn modify(&self, fd: impl AsFd, token: Token, wanted: Readiness) -> io::Result<()> {
        epoll::modify(&self.0.epoll, fd, EventData::new_u64(token.0), flags(wanted))?;
        Ok(())
    }

    /// Waits for `fd` no longer.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        epoll::delete(&self.0.epoll, fd)?;
        Ok(())
    }

    /// Ends the wait under way, or the next one, at once.
    pub fn wake(&self) {
        self.0.wake.wake();
    }

    /// Waits until something is ready, woken, or `timeout` is over, and adds what is ready.
    ///
    /// # Errors
    /// What the system says; never that a signal came.
    pub fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX).min(86_400),
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        let mut events = Vec::with_capacity(BATCH);
        match epoll::wait(&self.0.epoll, spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
        for event in events {
            let epoll::Event { flags, data, .. } = event;
            let token = data.u64();
            if token == WAKE {
                self.0.wake.seen();
                continue;
            }
            let failed = flags.intersects(EventFlags::ERR | EventFlags::HUP);
            ready.push(Ready {
                token: Token(token),
                readiness: Readiness {
                    read: failed || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
                    write: failed || flags.contains(EventFlags::OUT),
                },
            });
        }
        Ok(())
    }
}

fn flags(wanted: Readiness) -> EventFlags {
    let mut flags = EventFlags::empty();
    flags.set(EventFlags::IN, wanted.read);
    flags.set(EventFlags::OUT, wanted.write);
    flags
}
