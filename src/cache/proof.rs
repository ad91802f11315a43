//! What proves that a caller holds a lock.

use crate::glock::{GlockGuard, GlockName, State};

/// A held glock: whoever reads or changes a block shows the one that protects it.
///
/// The holder must keep it until the transaction that edited under it has been committed (or dropped).
pub trait LockProof {
    /// Which glock.
    fn name(&self) -> GlockName;

    /// Held EX (so that changes are allowed)?
    fn is_exclusive(&self) -> bool;
}

impl<T: LockProof + ?Sized> LockProof for &T {
    fn name(&self) -> GlockName {
        (**self).name()
    }

    fn is_exclusive(&self) -> bool {
        (**self).is_exclusive()
    }
}

impl LockProof for GlockGuard {
    fn name(&self) -> GlockName {
        self.glock().name()
    }

    fn is_exclusive(&self) -> bool {
        self.state() == State::Ex
    }
}
