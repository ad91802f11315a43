//! Names of lockable resources: 1 to 64 arbitrary bytes, kept without allocation.

use std::fmt;
use std::hash::{Hash, Hasher};

use crate::LockError;

/// Longest resource name.
pub const RESNAME_MAX: usize = 64;

/// The name of a resource.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ResName {
    /// Zero beyond `len`.
    bytes: [u8; RESNAME_MAX],
    len: u8,
}

impl ResName {
    /// A name of the given bytes.
    ///
    /// # Errors
    /// No bytes, or more than 64.
    pub fn new(name: &[u8]) -> Result<Self, LockError> {
        let too_long = LockError::NameLength { len: name.len() };
        let len = u8::try_from(name.len()).map_err(|_| too_long.clone())?;
        let mut bytes = [0; RESNAME_MAX];
        if name.is_empty() {
            return Err(too_long);
        }
        bytes.get_mut(..name.len()).ok_or(too_long)?.copy_from_slice(name);
        Ok(Self { bytes, len })
    }

    /// The bytes of the name.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }
}

/// Only the bytes of the name: most are far shorter than the longest.
impl Hash for ResName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for ResName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.as_bytes().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_to_sixty_four_bytes() {
        assert_eq!(ResName::new(b"").unwrap_err(), LockError::NameLength { len: 0 });
        assert_eq!(
            ResName::new(&[7; 65]).unwrap_err(),
            LockError::NameLength { len: 65 }
        );
        assert_eq!(
            ResName::new(&[7; 300]).unwrap_err(),
            LockError::NameLength { len: 300 }
        );
        assert_eq!(ResName::new(&[7; 64]).unwrap().as_bytes(), &[7; 64]);
        let name = ResName::new(b"ab\0").unwrap();
        assert_eq!(name.as_bytes(), b"ab\0");
        assert_ne!(name, ResName::new(b"ab").unwrap());
        assert_eq!(format!("{name:?}"), "\"ab\\x00\"");
    }
}
