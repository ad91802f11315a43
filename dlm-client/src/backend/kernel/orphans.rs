//! Dropping what dead processes of this node left in a lockspace, without the kernel's own command for it.
//!
//! A kernel puts each persistent lock of a process that dies on one list, requests that still wait among them; these it
//! ends, and leaves them there. Its PURGE then takes such a one off its resource a second time, and 6.12 panics (list
//! corruption in `do_purge`). So here each lock is taken over by name and mode, which finds only what is granted and on
//! that list, and unlocked. No lock of a living process is on it: for these the answer is that there is none.
//!
//! A request whose answer was on its way from another node when its process died is not ended, and cannot be: the answer
//! takes the mark of an orphan off it, so that the kernel (6.1 and 6.12) writes what becomes of it later, its grant or its
//! end, to the dead process, into freed memory. Such a request waits on, with our mark, of a thread that is gone (the one
//! that writes for this backend, which lives as long as the device is open). While there is one, this node must not be
//! used: that is said, and nothing done about it. What is granted of these kinds is taken over as the rest, which heals it.
//!
//! What has been unlocked is off the list and its resource when the write returns, or its unlock is on the way to the
//! node that masters it, before all that is written later. The value block stays as it is, and where the lock allowed to
//! write it, it is not valid any more: nobody knows whether it fits what the dead process did.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufReader};
use std::time::{Duration, Instant};

use super::list::{List, Listed};
use super::{Device, Shared, abi};
use crate::{Mode, ResName};

/// Locks taken in from the list at once: about 6 MB.
const BATCH: usize = 1 << 16;
/// After how long it is looked again whether what is under way has ended.
const AGAIN: Duration = Duration::from_millis(5);
/// How long a dead process's request may still wait: the node that masters it has been asked to end it, and answers.
const PATIENCE: Duration = Duration::from_secs(5);

const ENOENT: i32 = 2;
const EAGAIN: i32 = 11;
const EBUSY: i32 = 16;

/// A lock that is there to be taken over, if it is an orphan.
#[derive(Clone, Copy, Debug)]
struct Granted {
    lkid: u32,
    name: ResName,
    mode: Mode,
}

/// What one reading of the list brought.
#[derive(Debug, Default)]
struct Found {
    granted: Vec<Granted>,
    /// How many wait of dead processes.
    waiting: usize,
    /// And how many perhaps.
    unsure: usize,
}

struct Purge<'a> {
    shared: &'a Shared,
    device: &'a dyn Device,
    /// Locks that were no orphans.
    living: HashSet<(u32, Mode)>,
    dropped: u64,
}

/// Drops all of them, or those until the lockspace is left.
///
/// # Errors
/// Why it could not: in words, for the lockspace is of no use then.
pub(super) fn purge(shared: &Shared, device: &dyn Device) -> Result<(), String> {
    let mut purge = Purge {
        shared,
        device,
        living: HashSet::new(),
        dropped: 0,
    };
    let done = purge.all();
    if purge.dropped > 0 {
        tracing::info!(
            "lockspace {}: dropped {} locks of dead processes",
            shared.name,
            purge.dropped
        );
    }
    let unsure = done?;
    if unsure > 0 {
        tracing::warn!(
            "lockspace {}: {unsure} requests wait of which it is not known whether their process is dead",
            shared.name
        );
    }
    Ok(())
}

impl Purge<'_> {
    /// Nobody wants it any more.
    fn over(&self) -> bool {
        self.shared.books.lock().left
    }

    /// Reads the list until nothing on it is left to do. Gives the number of requests it is not sure of.
    fn all(&mut self) -> Result<usize, String> {
        // Until then answers may be on the way that put what is not on the list onto it.
        while !self.shared.books.lock().settled && !self.over() {
            std::thread::sleep(AGAIN);
        }
        let mut since = Instant::now();
        while !self.over() {
            let mut found = self.list()?;
            if !found.granted.is_empty() {
                // The kernel looks for each from the oldest on.
                found.granted.sort_unstable_by_key(|lock| lock.lkid);
                self.drop_these(&found.granted)?;
                since = Instant::now();
            } else if found.waiting == 0 {
                return Ok(found.unsure);
            } else if since.elapsed() > PATIENCE {
                return Err(format!(
                    "{} requests were on their way to other nodes when their process was killed; this kernel cannot end \
                     them, and would write to freed memory when they are answered: restart this node, or, if what the \
                     process had written is recovered, leave the lockspace on it (dlm_tool leave {})",
                    found.waiting, self.shared.name
                ));
            } else {
                std::thread::sleep(AGAIN);
            }
        }
        Ok(0)
    }

    fn list(&self) -> Result<Found, String> {
        let ours = self.shared.books.lock().books.kernel_ids();
        let list = self
            .device
            .list()
            .map_err(|e| format!("the list of locks: {e}"))?;
        let mut gone: HashMap<u32, bool> = HashMap::new();
        let mut found = Found::default();
        for lock in List::new(BufReader::new(list)) {
            let lock = lock.map_err(|e| format!("the list of locks: {e}"))?;
            if lock.copy || !lock.persistent || ours.contains(&lock.lkid) {
                continue;
            }
            let lkid = lock.lkid;
            match lock.granted {
                Some(mode) if self.living.contains(&(lkid, mode)) => {}
                Some(mode) => {
                    let name = lock.name;
                    found.granted.push(Granted { lkid, name, mode });
                }
                None if lock.mark != abi::MARK => found.unsure = found.unsure.saturating_add(1),
                None if self.is_gone(&lock, &mut gone) => found.waiting = found.waiting.saturating_add(1),
                None => {}
            }
            if found.granted.len() >= BATCH {
                break;
            }
        }
        Ok(found)
    }

    fn is_gone(&self, lock: &Listed, gone: &mut HashMap<u32, bool>) -> bool {
        let thread = lock.thread;
        *gone.entry(thread).or_insert_with(|| self.device.is_gone(thread))
    }

    fn drop_these(&mut self, granted: &[Granted]) -> Result<(), String> {
        for lock in granted {
            if self.over() {
                return Ok(());
            }
            match self.device.write(&abi::adopt(&lock.name, lock.mode)) {
                Ok(lkid) => {
                    self.unlock(lkid)?;
                    self.dropped = self.dropped.saturating_add(1);
                }
                Err(e) if matches!(e.raw_os_error(), Some(ENOENT | EAGAIN)) => {
                    self.living.insert((lock.lkid, lock.mode));
                }
                Err(e) => return Err(format!("taking over a lock on {:?}: {e}", lock.name)),
            }
        }
        Ok(())
    }

    /// Unlocks what was taken over; if its conversion is still being ended, after that.
    fn unlock(&self, lkid: u32) -> Result<(), String> {
        loop {
            let error: io::Error = match self.device.write(&abi::drop_lock(lkid)) {
                Ok(_) => return Ok(()),
                Err(e) => e,
            };
            match error.raw_os_error() {
                Some(ENOENT) => return Ok(()),
                // It stays persistent: who comes after us finds it again.
                Some(EBUSY) if self.over() => return Ok(()),
                Some(EBUSY) => std::thread::sleep(AGAIN),
                _ => return Err(format!("unlocking lock {lkid:#x} of the kernel: {error}")),
            }
        }
    }
}
