//! What is wrong with the bytes of a peer.

use std::fmt;

/// What a field should have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// One of a described set.
    OneOf(&'static str),
    /// Exactly this number.
    Exactly(u64),
    /// Between the two, both allowed.
    Between(u64, u64),
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OneOf(set) => f.write_str(set),
            Self::Exactly(n) => write!(f, "{n:#x}"),
            Self::Between(low, high) => write!(f, "{low:#x} to {high:#x}"),
        }
    }
}

/// Bytes that are no packet of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("DLM packet, {field} at byte {at}: found {found:#x}, expected {expected}")]
pub struct WireError {
    /// The field, by its name in the protocol.
    pub field: &'static str,
    /// Its first byte, counted from the start of the (inner) packet.
    pub at: usize,
    /// What stands there.
    pub found: u64,
    /// What could have.
    pub expected: Expected,
}

impl WireError {
    pub(crate) const fn new(field: &'static str, at: usize, found: u64, expected: Expected) -> Self {
        Self {
            field,
            at,
            found,
            expected,
        }
    }

    /// For signed fields: shown as the bits they are.
    pub(crate) const fn signed(field: &'static str, at: usize, found: i32, expected: Expected) -> Self {
        let [a, b, c, d] = found.to_be_bytes();
        Self::new(field, at, u64::from_be_bytes([0, 0, 0, 0, a, b, c, d]), expected)
    }
}

/// A length as an error shows it.
pub(crate) fn shown(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
