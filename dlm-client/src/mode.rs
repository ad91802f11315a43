//! Lock modes, and which of them exclude each other.

use std::fmt;

/// The mode of a lock, weakest first. The order is the DLM's; CW and PR are not really ordered (neither includes the
/// other).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Mode {
    /// Null: no access, keeps the resource and its LVB alive.
    Nl = 0,
    /// Concurrent read.
    Cr = 1,
    /// Concurrent write.
    Cw = 2,
    /// Protected read.
    Pr = 3,
    /// Protected write.
    Pw = 4,
    /// Exclusive.
    Ex = 5,
}

impl Mode {
    /// All modes, weakest first.
    pub const ALL: [Self; 6] = [Self::Nl, Self::Cr, Self::Cw, Self::Pr, Self::Pw, Self::Ex];

    /// May a lock be granted in mode `wanted` while another is granted in `self`? Symmetric.
    #[must_use]
    pub const fn compatible(self, wanted: Self) -> bool {
        use Mode::{Cr, Cw, Ex, Nl, Pr, Pw};
        match (self, wanted) {
            (Nl, _) | (_, Nl) => true,
            (Ex, _) | (_, Ex) => false,
            (Cr, _) | (_, Cr) => true,
            (Cw, Cw) | (Pr, Pr) => true,
            (Cw | Pr | Pw, Cw | Pr | Pw) => false,
        }
    }

    /// The number the DLM uses for the mode.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Nl => 0,
            Self::Cr => 1,
            Self::Cw => 2,
            Self::Pr => 3,
            Self::Pw => 4,
            Self::Ex => 5,
        }
    }

    /// The mode of a DLM number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.number() == number)
    }

    /// Is `self` to `to` a conversion for which [`crate::Lkf::QUECVT`] is legal (upward, or between CW and PR)?
    #[must_use]
    pub const fn quecvt_legal(self, to: Self) -> bool {
        use Mode::{Cr, Cw, Ex, Nl, Pr, Pw};
        matches!(
            (self, to),
            (Nl, Cr | Cw | Pr | Pw | Ex)
                | (Cr, Cw | Pr | Pw | Ex)
                | (Cw, Pr | Pw | Ex)
                | (Pr, Cw | Pw | Ex)
                | (Pw, Ex)
        )
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nl => "NL",
            Self::Cr => "CR",
            Self::Cw => "CW",
            Self::Pr => "PR",
            Self::Pw => "PW",
            Self::Ex => "EX",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compatibility_table_is_the_dlms() {
        // Rows granted, columns wanted: NL CR CW PR PW EX.
        let table = ["111111", "111110", "111000", "110100", "110000", "100000"];
        for (granted, row) in Mode::ALL.into_iter().zip(table) {
            for (wanted, cell) in Mode::ALL.into_iter().zip(row.chars()) {
                assert_eq!(granted.compatible(wanted), cell == '1', "{granted} {wanted}");
                assert_eq!(granted.compatible(wanted), wanted.compatible(granted));
            }
        }
    }

    #[test]
    fn numbers_round_trip_and_end_at_five() {
        for mode in Mode::ALL {
            assert_eq!(Mode::from_number(mode.number()), Some(mode));
        }
        assert_eq!(Mode::from_number(6), None);
    }
}
