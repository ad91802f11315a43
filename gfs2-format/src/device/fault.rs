//! A device that fails as a table of rules says: which operation, where, the how-many-th time, with which error.
//!
//! Invariants: no clock and no randomness; the same calls in the same order meet the same faults. Batches are taken
//! apart, so each request is counted by itself.

use super::{BlockDevice, Identity, Topology};
use crate::error::{Error, Result};
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The operations a rule can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOp {
    /// Reads.
    Read,
    /// Writes, FUA or not.
    Write,
    /// Flushes; a rule's range does not matter for them.
    Flush,
    /// Discards.
    Discard,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails with this errno; nothing of it is done.
    Errno(i32),
    /// A write that stores its first sectors only, then fails with this errno.
    Torn {
        /// Sectors that are stored.
        sectors: u32,
        /// Errno it fails with.
        errno: i32,
    },
    /// A write that claims success and stores nothing.
    Lost,
    /// A read that succeeds with this bit pattern xored into the byte at the device offset, if it is read.
    Flip {
        /// Byte offset on the device.
        offset: u64,
        /// What is xored into it.
        mask: u8,
    },
}

/// One rule: applies to operations of one kind that touch a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultRule {
    /// Which operations.
    pub op: FaultOp,
    /// Byte range; any overlap counts.
    pub range: Range<u64>,
    /// Matching operations that pass before the fault.
    pub after: u64,
    /// How many operations fail then; `u64::MAX`: all.
    pub times: u64,
    /// What happens to them.
    pub fault: Fault,
}

impl FaultRule {
    /// The operation fails everywhere, every time.
    #[must_use]
    pub fn always(op: FaultOp, fault: Fault) -> Self {
        Self {
            op,
            range: 0..u64::MAX,
            after: 0,
            times: u64::MAX,
            fault,
        }
    }

    /// Only operations that touch `range`.
    #[must_use]
    pub fn at(mut self, range: Range<u64>) -> Self {
        self.range = range;
        self
    }

    /// Only after `n` matching operations have passed.
    #[must_use]
    pub fn after(mut self, n: u64) -> Self {
        self.after = n;
        self
    }

    /// Only `n` times.
    #[must_use]
    pub fn times(mut self, n: u64) -> Self {
        self.times = n;
        self
    }
}

/// Operations seen so far, failed ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// Operations a rule was applied to.
    pub faults: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Each rule with the number of operations it matched.
    rules: Vec<(FaultRule, u64)>,
    counts: FaultCounts,
}

/// Fails as told; see the module documentation.
#[derive(Debug)]
pub struct FaultDevice<D> {
    base: D,
    state: Mutex<State>,
}

impl<D: BlockDevice> FaultDevice<D> {
    /// Over `base`, without rules.
    pub fn new(base: D) -> Self {
        Self {
            base,
            state: Mutex::default(),
        }
    }

    /// Adds a rule behind the others; the first rule that fires decides.
    pub fn add(&self, rule: FaultRule) {
        self.lock().rules.push((rule, 0));
    }

    /// Removes all rules.
    pub fn clear(&self) {
        self.lock().rules.clear();
    }

    /// What has been seen so far.
    #[must_use]
    pub fn counts(&self) -> FaultCounts {
        self.lock().counts
    }

    /// The device below.
    pub fn base(&self) -> &D {
        &self.base
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation with every rule it matches; the first rule that fires answers.
    fn meet(&self, op: FaultOp, offset: u64, len: u64) -> Option<Fault> {
        let mut state = self.lock();
        match op {
            FaultOp::Read => state.counts.reads += 1,
            FaultOp::Write => state.counts.writes += 1,
            FaultOp::Flush => state.counts.flushes += 1,
            FaultOp::Discard => state.counts.discards += 1,
        }
        let end = offset.saturating_add(len);
        let mut met = None;
        for (rule, seen) in &mut state.rules {
            let touches = op == FaultOp::Flush || (rule.range.start < end && offset < rule.range.end);
            if rule.op != op || !touches {
                continue;
            }
            let n = *seen;
            *seen += 1;
            if n >= rule.after && n - rule.after < rule.times && met.is_none() {
                met = Some(rule.fault);
            }
        }
        state.counts.faults += u64::from(met.is_some());
        met
    }

    fn write(&self, offset: u64, buf: &[u8], fua: bool) -> Result<()> {
        let len = buf.len() as u64;
        match self.meet(FaultOp::Write, offset, len) {
            Some(Fault::Errno(errno)) => Err(failed("write", offset, len, errno)),
            Some(Fault::Torn { sectors, errno }) => {
                let stored = (sectors as usize).saturating_mul(self.sector_size() as usize);
                self.base.write_at(offset, buf.get(..stored).unwrap_or(buf))?;
                Err(failed("write", offset, len, errno))
            }
            Some(Fault::Lost) => Ok(()),
            Some(Fault::Flip { .. }) | None if fua => self.base.write_fua(offset, buf),
            Some(Fault::Flip { .. }) | None => self.base.write_at(offset, buf),
        }
    }
}

fn failed(op: &'static str, offset: u64, len: u64, errno: i32) -> Error {
    Error::io(op, offset, len, io::Error::from_raw_os_error(errno))
}

/// The errno of a fault, where the operation can do no more than fail.
fn errno_of(fault: Option<Fault>) -> Option<i32> {
    match fault {
        Some(Fault::Errno(errno) | Fault::Torn { errno, .. }) => Some(errno),
        Some(Fault::Lost | Fault::Flip { .. }) | None => None,
    }
}

impl<D: BlockDevice> BlockDevice for FaultDevice<D> {
    facts_of!(self, self.base);

    fn is_read_only(&self) -> bool {
        self.base.is_read_only()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        let fault = self.meet(FaultOp::Read, offset, len);
        if let Some(errno) = errno_of(fault) {
            return Err(failed("read", offset, len, errno));
        }
        self.base.read_at(offset, buf)?;
        if let Some(Fault::Flip { offset: at, mask }) = fault
            && let Some(byte) = at.checked_sub(offset).and_then(|n| buf.get_mut(n as usize))
        {
            *byte ^= mask;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.write(offset, buf, false)
    }

    fn write_fua(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.write(offset, buf, true)
    }

    fn flush(&self) -> Result<()> {
        match self.meet(FaultOp::Flush, 0, self.size()) {
            Some(Fault::Lost) => Ok(()),
            fault => match errno_of(fault) {
                Some(errno) => Err(failed("flush", 0, self.size(), errno)),
                None => self.base.flush(),
            },
        }
    }

    fn discard(&self, offset: u64, len: u64) -> Result<bool> {
        match self.meet(FaultOp::Discard, offset, len) {
            Some(Fault::Lost) => Ok(true),
            fault => match errno_of(fault) {
                Some(errno) => Err(failed("discard", offset, len, errno)),
                None => self.base.discard(offset, len),
            },
        }
    }
}
