//! Several glocks at once: unordered ones all together with time-out and back-off, ordered ones one after the other.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::guard::{GlockGuard, PendingGlock};
use super::lock::Glock;
use super::state::{HolderFlags, State};
use super::wait::{Interrupt, Waiter};
use crate::error::{Errno, FsError};

/// One of several locks wanted together.
#[derive(Clone, Debug)]
pub struct Want {
    /// The lock.
    pub glock: Arc<Glock>,
    /// In which state.
    pub state: State,
    /// How.
    pub flags: HolderFlags,
}

/// The pauses between attempts (RUNTIME 2.3): two nodes that want the same locks must not keep step.
#[derive(Debug)]
pub struct Backoff {
    attempt: u32,
    random: u64,
}

/// The first wait, and the part of every wait that is not random (10 jiffies).
const BASE: Duration = Duration::from_millis(10);
/// The first increment; it doubles with each attempt.
const INCREMENT: Duration = Duration::from_millis(50);
/// No attempt sleeps and waits longer than this altogether.
const LONGEST: Duration = Duration::from_secs(10);

impl Backoff {
    /// Starts over; `seed` decides the random parts.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self {
            attempt: 0,
            random: if seed == 0 { 1 } else { seed },
        }
    }

    fn below(&mut self, limit: Duration) -> Duration {
        // xorshift64: any spread will do.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX).max(1);
        Duration::from_nanos(self.random % nanos)
    }

    /// For the next attempt: sleep so long before it, wait so long in it.
    pub fn next_pause(&mut self) -> (Duration, Duration) {
        let attempt = self.attempt;
        self.attempt = self.attempt.saturating_add(1);
        if attempt == 0 {
            return (Duration::ZERO, BASE);
        }
        let increment = INCREMENT.saturating_mul(1 << (attempt - 1).min(16)).min(LONGEST);
        let third = increment / 3;
        (self.below(third), BASE + third + self.below(third))
    }
}

/// Takes all the locks, in no order: all are asked for at once; if they do not all come in time, all are given back and
/// asked for again later. Never half: the guards come in the order wanted, one per lock (a lock wanted twice is taken
/// once, in the stronger state).
///
/// # Errors
/// EINTR when `interrupt` hits, or the error of any of the locks; none is held then.
pub fn acquire_together(wants: &[Want], interrupt: Option<&Interrupt>) -> Result<Vec<GlockGuard>, FsError> {
    let mut unique: Vec<Want> = Vec::with_capacity(wants.len());
    for want in wants {
        match unique
            .iter_mut()
            .find(|other| other.glock.name() == want.glock.name())
        {
            Some(other) => {
                other.state = other.state.max(want.state);
                other.flags |= want.flags;
            }
            None => unique.push(want.clone()),
        }
    }
    let mut backoff = Backoff::new(RandomState::new().hash_one(Instant::now()));
    let waiter = Arc::new(Waiter::default());
    loop {
        let (sleep, patience) = backoff.next_pause();
        pause(&waiter, sleep, interrupt)?;
        let mut pending = Vec::with_capacity(unique.len());
        for want in &unique {
            pending.push(want.glock.acquire_async_with(want.state, want.flags, &waiter)?);
        }
        if wait_for_all(&mut pending, &waiter, Instant::now() + patience, interrupt)? {
            return pending.iter_mut().map(PendingGlock::collect).collect();
        }
    }
}

/// Sleeps, unless interrupted.
fn pause(waiter: &Arc<Waiter>, time: Duration, interrupt: Option<&Interrupt>) -> Result<(), FsError> {
    if time.is_zero() {
        // The first attempt: whoever is to take over while we sleep need not be woken.
        return match interrupt.is_some_and(Interrupt::is_hit) {
            true => Err(FsError::Posix(Errno::EINTR)),
            false => Ok(()),
        };
    }
    let deadline = Instant::now() + time;
    let Some(interrupt) = interrupt else {
        std::thread::sleep(time);
        return Ok(());
    };
    interrupt.watch(waiter);
    loop {
        let seen = waiter.signals();
        if interrupt.is_hit() {
            interrupt.unwatch();
            return Err(FsError::Posix(Errno::EINTR));
        }
        if !waiter.wait_past(seen, Some(deadline)) {
            interrupt.unwatch();
            return Ok(());
        }
    }
}

/// True: every one is granted or refused.
fn wait_for_all(
    pending: &mut [PendingGlock],
    waiter: &Arc<Waiter>,
    deadline: Instant,
    interrupt: Option<&Interrupt>,
) -> Result<bool, FsError> {
    if let Some(interrupt) = interrupt {
        interrupt.watch(waiter);
    }
    let result = loop {
        let seen = waiter.signals();
        let mut ready = true;
        for one in pending.iter_mut() {
            if !one.is_ready() {
                one.note_waiting();
                ready = false;
            }
        }
        if ready {
            break Ok(true);
        }
        if interrupt.is_some_and(Interrupt::is_hit) {
            break Err(FsError::Posix(Errno::EINTR));
        }
        if !waiter.wait_past(seen, Some(deadline)) {
            break Ok(false);
        }
    };
    if let Some(interrupt) = interrupt {
        interrupt.unwatch();
    }
    result
}

/// Takes locks of one class in the order of their names (resource groups, quotas). Guards come in that order, one per
/// lock.
///
/// # Errors
/// That of the first lock that fails; none is held then.
#[track_caller]
pub fn acquire_sorted(
    mut glocks: Vec<Arc<Glock>>,
    state: State,
    flags: HolderFlags,
) -> Result<Vec<GlockGuard>, FsError> {
    glocks.sort_by_key(|glock| glock.name());
    glocks.dedup_by_key(|glock| glock.name());
    let mut guards = Vec::with_capacity(glocks.len());
    for glock in &glocks {
        guards.push(glock.acquire(state, flags)?);
    }
    Ok(guards)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pause_wakes_nobody_and_is_interrupted_all_the_same() {
        let (waiter, hit) = (Arc::new(Waiter::default()), Interrupt::new());
        let slept = std::rc::Rc::new(std::cell::Cell::new(0));
        let seen = std::rc::Rc::clone(&slept);
        crate::sleep::register(move |_| seen.set(seen.get() + 1));
        pause(&waiter, Duration::ZERO, Some(&hit)).unwrap();
        assert_eq!(slept.get(), 0);
        pause(&waiter, Duration::from_nanos(1), Some(&hit)).unwrap();
        assert_eq!(slept.get(), 1);
        hit.interrupt();
        let interrupted = pause(&waiter, Duration::ZERO, Some(&hit)).unwrap_err();
        assert_eq!(interrupted.errno(), Errno::EINTR);
    }

    #[test]
    fn pauses_grow_to_ten_seconds_and_differ_by_seed() {
        let mut one = Backoff::new(1);
        assert_eq!(one.next_pause(), (Duration::ZERO, BASE));
        let (sleep, wait) = one.next_pause();
        assert!(sleep < INCREMENT / 3 && wait >= BASE + INCREMENT / 3 && wait < BASE + INCREMENT);
        let mut last = Duration::ZERO;
        for _ in 0..40 {
            let (sleep, wait) = one.next_pause();
            assert!(sleep + wait <= LONGEST + BASE);
            last = wait;
        }
        assert!(last > LONGEST / 3);
        let (mut two, mut three) = (Backoff::new(2), Backoff::new(3));
        two.next_pause();
        three.next_pause();
        assert_ne!(two.next_pause(), three.next_pause());
    }
}
