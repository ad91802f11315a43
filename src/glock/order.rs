//! The one global order in which locks are taken, outermost first: the enum's `Ord` is the order.
//!
//! Glocks and the local locks inside them stand in one list, because a deadlock does not ask what kind of lock it is
//! made of. The README explains each step; the names of locks that are held for the whole mount are outside the order.

use super::name::{GlockName, LockType, nondisk};

/// A step of the lock order. Holding one, only later ones may be waited for (equal ones by the rule of that step).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockClass {
    /// The rename lock, only when the parents differ.
    Rename,
    /// Inodes: parent before child; unordered ones together by [`super::multi::acquire_together`].
    Inode,
    /// "Cached here" of an inode; for a new inode before its inode lock, while the parent is held.
    Iopen,
    /// The inode lock of a new inode: safe under the parent, since nobody else knows the number.
    NewInode,
    /// Quotas, sorted.
    Quota,
    /// The quota inode, inside the quota locks.
    QuotaInode,
    /// The master statfs inode: a leaf of its own.
    StatfsInode,
    /// Resource groups: one, or several sorted by [`super::multi::acquire_sorted`].
    Rgrp,
    /// The mutex of a resource group that holders with NODE_SCOPE share.
    RgrpMutex,
    /// A running transaction. No glock is asked for inside it.
    Transaction,
    /// The block map of an inode.
    BlockMap,
    /// One buffer.
    Buffer,
    /// The log.
    Log,
    /// The list of blocks in the log that are not yet in place.
    Ail,
}

impl LockClass {
    /// Where a glock stands, by its name. `None`: held for the whole mount or on its own (live, freeze, journal,
    /// flock, superblock). System inodes have classes of their own that only their users know.
    #[must_use]
    pub const fn of(name: GlockName) -> Option<Self> {
        match name.ty {
            LockType::Nondisk if name.number == nondisk::RENAME => Some(Self::Rename),
            LockType::Inode => Some(Self::Inode),
            LockType::Iopen => Some(Self::Iopen),
            LockType::Quota => Some(Self::Quota),
            LockType::Rgrp => Some(Self::Rgrp),
            LockType::Nondisk | LockType::Meta | LockType::Flock | LockType::Plock | LockType::Journal => {
                None
            }
        }
    }

    /// May a lock of this class be waited for while `held` is held?
    #[must_use]
    pub fn may_follow(self, held: Self) -> bool {
        match self {
            // Two renames or two transactions of one thread never nest; a buffer never waits for another.
            Self::Rename | Self::Transaction | Self::RgrpMutex | Self::Buffer | Self::Log | Self::Ail => {
                held < self
            }
            _ => held <= self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_create_follows_the_order() {
        use LockClass::{Inode, Iopen, Log, NewInode, Quota, Rgrp, RgrpMutex, Transaction};
        let taken = [Inode, Quota, Rgrp, RgrpMutex, Transaction, Log];
        assert!(taken.windows(2).all(|pair| pair[1].may_follow(pair[0])));
        assert!(Iopen.may_follow(Inode) && NewInode.may_follow(Iopen));
        assert!(
            !Inode.may_follow(Rgrp),
            "an inode lock inside an rgrp lock is the classic deadlock"
        );
        assert!(!Rgrp.may_follow(Transaction), "no glock inside a transaction");
        assert!(!Transaction.may_follow(Transaction));
    }

    #[test]
    fn names_have_their_class() {
        assert_eq!(
            LockClass::of(GlockName::nondisk(nondisk::RENAME)),
            Some(LockClass::Rename)
        );
        assert_eq!(LockClass::of(GlockName::nondisk(nondisk::LIVE)), None);
        assert!(LockClass::of(GlockName::inode(1)) < LockClass::of(GlockName::rgrp(1)));
    }
}
