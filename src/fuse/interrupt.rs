//! FUSE_INTERRUPT: whoever is killed while its request waits for a lock gets out of the wait.
//!
//! The kernel sends an interrupt for any signal, once, and after it waits for the answer whatever else comes. The
//! original's waits for locks are not interruptible at all, and programs do not expect EINTR of a `stat`; so a request is
//! taken out of its wait only if its process is being killed, and one that has had another signal is looked at again from
//! time to time. Invariant: an interrupt reaches the request it names, or nobody: slots change under their lock.

use super::reply::Reply;
use crate::error::Errno;
use crate::glock::Interrupt;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// SIGKILL in the masks of `/proc/PID/status`. Any signal that is about to end a process (but for those that dump core)
/// becomes one.
const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);

#[derive(Debug, Default)]
struct Current {
    /// 0: none.
    unique: u64,
    pid: u32,
    /// An interrupt has come.
    asked: bool,
}

/// What one thread works at.
#[derive(Debug, Default)]
pub(super) struct Slot {
    current: Mutex<Current>,
    interrupt: Arc<Interrupt>,
}

impl Slot {
    /// This thread's waits are those of the slot's requests.
    pub(super) fn enter(&self) {
        Interrupt::install(&self.interrupt);
    }

    pub(super) fn begin(&self, unique: u64, pid: u32) {
        let mut current = self.current.lock();
        *current = Current {
            unique,
            pid,
            asked: false,
        };
        self.interrupt.reset();
    }

    pub(super) fn finish(&self) {
        self.current.lock().unique = 0;
    }
}

/// Where interrupts find requests.
#[derive(Debug, Default)]
pub(super) struct Desk {
    slots: Mutex<Vec<Arc<Slot>>>,
    /// Requests that were interrupted and go on.
    asked: AtomicUsize,
}

impl Desk {
    /// A slot for a new thread.
    pub(super) fn slot(&self) -> Arc<Slot> {
        let slot = Arc::new(Slot::default());
        self.slots.lock().push(Arc::clone(&slot));
        slot
    }

    /// Its thread has ended.
    pub(super) fn give_back(&self, slot: &Arc<Slot>) {
        self.slots.lock().retain(|other| !Arc::ptr_eq(other, slot));
    }

    /// An interrupt of the request `unique`.
    pub(super) fn interrupt(&self, unique: u64, reply: Reply<'_>) {
        let slots = self.slots.lock();
        for slot in slots.iter() {
            let mut current = slot.current.lock();
            if current.unique != unique {
                continue;
            }
            reply.none();
            if is_dying(current.pid) {
                slot.interrupt.interrupt();
            } else if !current.asked {
                current.asked = true;
                self.asked.fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
        drop(slots);
        // Either its reader has not come to write it down: asked again, the kernel sends the interrupt once more. Or it
        // has been answered: then the kernel does not know what we are talking about, and that is all.
        reply.error(Errno::EAGAIN);
    }

    /// Nothing to come back to?
    pub(super) fn is_quiet(&self) -> bool {
        self.asked.load(Ordering::Relaxed) == 0
    }

    /// Looks at requests that are still under way since the last look, whether or not an interrupt has come: of one that
    /// came by a ring the kernel forgets to tell us when the signal was there before we had it. False: there is none
    /// under way.
    pub(super) fn look_at_the_waiting(&self, seen: &mut Vec<u64>) -> bool {
        let mut waiting = Vec::new();
        for slot in self.slots.lock().iter() {
            let current = slot.current.lock();
            if current.unique == 0 {
                continue;
            }
            // One that cannot be seen may be the kernel's own.
            if seen.contains(&current.unique) && has_sigkill(current.pid) == Some(true) {
                slot.interrupt.interrupt();
            }
            waiting.push(current.unique);
        }
        *seen = waiting;
        !seen.is_empty()
    }

    /// Looks again at requests whose process had a signal that did not kill it.
    pub(super) fn look_at_the_dying(&self) {
        if self.is_quiet() {
            return;
        }
        let mut still = 0;
        for slot in self.slots.lock().iter() {
            let current = slot.current.lock();
            if current.unique == 0 || !current.asked {
                continue;
            }
            if is_dying(current.pid) {
                slot.interrupt.interrupt();
            } else {
                still += 1;
            }
        }
        self.asked.store(still, Ordering::Relaxed);
    }
}

/// Is the process (or thread) being killed? One that cannot be seen from here counts as that.
fn is_dying(pid: u32) -> bool {
    has_sigkill(pid).unwrap_or(true)
}

/// `None`: there is no such process to be seen.
fn has_sigkill(pid: u32) -> Option<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let hit = status
        .lines()
        .filter_map(|line| {
            line.strip_prefix("SigPnd:")
                .or_else(|| line.strip_prefix("ShdPnd:"))
        })
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & SIGKILL_BIT != 0);
    Some(hit)
}

#[cfg(test)]
mod tests {
    use super::super::abi::OutHeader;
    use super::super::reply::Channel;
    use super::*;
    use std::io::Read;
    use zerocopy::FromBytes;

    /// Interrupts `unique`, and gives what the kernel is told.
    fn answer(desk: &Desk, unique: u64) -> Option<i32> {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let channel = Channel::new(writer.into());
        desk.interrupt(
            unique,
            Reply::new(&channel, unique | super::super::abi::INTERRUPT_BIT),
        );
        drop(channel);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        OutHeader::read_from_prefix(&bytes)
            .ok()
            .map(|(header, _)| header.error)
    }

    #[test]
    fn only_the_request_that_is_named_and_whose_process_dies_is_taken_out() {
        let desk = Desk::default();
        let (slot, other) = (desk.slot(), desk.slot());
        // A process that does not exist: dying. Ours: not.
        slot.begin(8, u32::MAX);
        other.begin(10, std::process::id());
        assert_eq!(
            answer(&desk, 12),
            Some(-libc::EAGAIN),
            "not read yet, or answered"
        );
        assert!(!slot.interrupt.is_hit() && !other.interrupt.is_hit());
        assert_eq!(answer(&desk, 8), None);
        assert!(slot.interrupt.is_hit());
        assert_eq!(answer(&desk, 10), None);
        assert!(!other.interrupt.is_hit() && !desk.is_quiet());
        desk.look_at_the_dying();
        assert!(!other.interrupt.is_hit() && !desk.is_quiet());
        other.current.lock().pid = u32::MAX;
        desk.look_at_the_dying();
        assert!(other.interrupt.is_hit() && desk.is_quiet());
        // The next request of a thread starts anew; who was not asked for is looked at too, but must be seen to die.
        let mut seen = Vec::new();
        slot.finish();
        other.finish();
        assert!(!desk.look_at_the_waiting(&mut seen));
        slot.begin(16, u32::MAX);
        for _ in 0..2 {
            assert!(desk.look_at_the_waiting(&mut seen));
            assert_eq!((seen.as_slice(), slot.interrupt.is_hit()), (&[16][..], false));
        }
        slot.finish();
        slot.begin(14, 1);
        assert!(!slot.interrupt.is_hit());
        desk.give_back(&slot);
        assert_eq!(answer(&desk, 14), Some(-libc::EAGAIN));
    }
}
