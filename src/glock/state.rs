//! The four states of a glock, and the wishes a holder can attach to its request.

use std::fmt;

use bitflags::bitflags;
use dlm_client::Mode;

/// What a node holds a glock in, or asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Unlocked: nothing may be cached.
    Un,
    /// Shared: clean data and metadata may be cached.
    Sh,
    /// Deferred: shared among direct I/O; no data may be cached.
    Df,
    /// Exclusive: anything may be cached and changed.
    Ex,
}

impl State {
    /// The DLM mode that stands for the state.
    #[must_use]
    pub const fn mode(self) -> Mode {
        match self {
            Self::Un => Mode::Nl,
            Self::Sh => Mode::Pr,
            Self::Df => Mode::Cw,
            Self::Ex => Mode::Ex,
        }
    }

    /// The state a DLM mode stands for.
    #[must_use]
    pub const fn from_mode(mode: Mode) -> Option<Self> {
        match mode {
            Mode::Nl => Some(Self::Un),
            Mode::Pr => Some(Self::Sh),
            Mode::Cw => Some(Self::Df),
            Mode::Ex => Some(Self::Ex),
            Mode::Cr | Mode::Pw => None,
        }
    }

    /// The highest state that lets another node have `blocked`. Modes no GFS2 node asks for get all they can.
    #[must_use]
    pub const fn making_room_for(blocked: Mode) -> Self {
        match blocked {
            Mode::Pr | Mode::Cr => Self::Sh,
            Mode::Cw => Self::Df,
            Mode::Nl | Mode::Pw | Mode::Ex => Self::Un,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Un => "UN",
            Self::Sh => "SH",
            Self::Df => "DF",
            Self::Ex => "EX",
        })
    }
}

bitflags! {
    /// How a holder wants its lock (`LM_FLAG_*`, `GL_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct HolderFlags: u16 {
        /// Only in exactly the state asked for; otherwise a cached EX satisfies SH and DF.
        const EXACT = 0x1;
        /// DF will do for SH and the reverse: for readers that do not touch cached data.
        const ANY = 0x2;
        /// Do not wait for other nodes or for other holders.
        const TRY = 0x4;
        /// As TRY, and knock once at the nodes in the way.
        const TRY_1CB = 0x8;
        /// Granted also while recovery blocks locks and while withdrawing.
        const NOEXP = 0x10;
        /// The caller waits later; set by [`crate::glock::Glock::acquire_async`], shown in dumps.
        const ASYNC = 0x20;
        /// Give the lock back to the cluster at release.
        const NOCACHE = 0x40;
        /// Do not read the object at grant.
        const SKIP = 0x80;
        /// EX towards the cluster, shared among local EX holders that all say so.
        const NODE_SCOPE = 0x100;
        /// Not owned by a thread: exempt from the check against recursive locking.
        const NOPID = 0x200;
        /// Only if it needs no waiting and no message at all.
        const NOBLOCK = 0x400;
        /// Serves a page the kernel holds locked: joins even while the kernel's cache is being emptied by a demote
        /// (ours; the kernel's page lock order makes it unnecessary there).
        const SERVE = 0x800;
    }
}

impl HolderFlags {
    /// TRY or TRY_1CB.
    #[must_use]
    pub const fn is_try(self) -> bool {
        self.intersects(Self::TRY.union(Self::TRY_1CB))
    }

    /// The letters of the kernel's dumps; `granted` and `waiting` are H and W there.
    #[must_use]
    pub fn letters(self, granted: bool) -> String {
        let table = [
            (Self::TRY, 't'),
            (Self::TRY_1CB, 'T'),
            (Self::NOEXP, 'e'),
            (Self::ANY, 'A'),
            (Self::NODE_SCOPE, 'n'),
            (Self::ASYNC, 'a'),
            (Self::EXACT, 'E'),
            (Self::NOCACHE, 'c'),
        ];
        let mut text: String = table
            .iter()
            .filter(|(flag, _)| self.contains(*flag))
            .map(|(_, letter)| *letter)
            .collect();
        text.push(if granted { 'H' } else { 'W' });
        if self.contains(Self::SKIP) {
            text.push('s');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_map_to_modes_and_back() {
        for state in [State::Un, State::Sh, State::Df, State::Ex] {
            assert_eq!(State::from_mode(state.mode()), Some(state));
        }
        assert_eq!(State::from_mode(Mode::Cr), None);
    }

    #[test]
    fn making_room_leaves_something_compatible() {
        for mode in Mode::ALL {
            assert!(State::making_room_for(mode).mode().compatible(mode), "{mode}");
        }
        assert_eq!(State::making_room_for(Mode::Pr), State::Sh);
        assert_eq!(State::making_room_for(Mode::Cw), State::Df);
        assert_eq!(State::making_room_for(Mode::Ex), State::Un);
    }

    #[test]
    fn letters_are_the_kernels() {
        let flags = HolderFlags::EXACT | HolderFlags::NOEXP | HolderFlags::SKIP;
        assert_eq!(flags.letters(true), "eEHs");
        assert_eq!(HolderFlags::TRY_1CB.letters(false), "TW");
    }
}
