//! The lock value block: 32 bytes that travel with a resource, and the rule when they move.

use crate::Mode;

/// Length of a lock value block.
pub const LVB_LEN: usize = 32;

/// A lock value block.
pub type Lvb = [u8; LVB_LEN];

/// What a transition does with the value block (only under [`crate::Lkf::VALBLK`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LvbMove {
    /// The resource's bytes go to the holder.
    Read,
    /// The holder's bytes go to the resource.
    Write,
    /// Nothing moves.
    Keep,
}

/// The direction for a lock that goes from `from` (NL for a new lock) to `to`.
#[must_use]
pub const fn transfer(from: Mode, to: Mode) -> LvbMove {
    use Mode::{Cr, Cw, Ex, Nl, Pr, Pw};
    match (from, to) {
        (Nl, _) => LvbMove::Read,
        (Cr, Nl) => LvbMove::Keep,
        (Cr, _) => LvbMove::Read,
        (Cw, Nl | Cr) => LvbMove::Keep,
        (Cw, _) => LvbMove::Read,
        (Pr, Nl | Cr | Cw) => LvbMove::Keep,
        (Pr, _) => LvbMove::Read,
        (Pw, Ex) => LvbMove::Read,
        (Pw, _) => LvbMove::Write,
        (Ex, _) => LvbMove::Write,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_direction_table_is_the_dlms() {
        let table = ["rrrrrr", ".rrrrr", "..rrrr", "...rrr", "wwwwwr", "wwwwww"];
        for (from, row) in Mode::ALL.into_iter().zip(table) {
            for (to, cell) in Mode::ALL.into_iter().zip(row.chars()) {
                let expected = match cell {
                    'r' => LvbMove::Read,
                    'w' => LvbMove::Write,
                    _ => LvbMove::Keep,
                };
                assert_eq!(transfer(from, to), expected, "{from} to {to}");
            }
        }
    }
}
