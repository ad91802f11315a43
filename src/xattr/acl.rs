//! POSIX ACLs as xattr values: what a new inode inherits, what chmod does to one, what setting one does to the mode.
//!
//! Format: little-endian version 2, then entries of tag, permissions and id (`linux/posix_acl_xattr.h`). Invariant: an
//! ACL that is kept has exactly one entry each for owner, group and others, and a mask if it names anybody.

use crate::error::{Errno, FsResult};

/// Stored name of the access ACL, without prefix.
pub(crate) const ACCESS: &[u8] = b"posix_acl_access";
/// Stored name of the default ACL.
pub(crate) const DEFAULT: &[u8] = b"posix_acl_default";

const VERSION: u32 = 2;
const ENTRY: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    UserObj,
    User,
    GroupObj,
    Group,
    Mask,
    Other,
}

impl Tag {
    const fn from_raw(raw: u16) -> Option<Self> {
        Some(match raw {
            0x01 => Self::UserObj,
            0x02 => Self::User,
            0x04 => Self::GroupObj,
            0x08 => Self::Group,
            0x10 => Self::Mask,
            0x20 => Self::Other,
            _ => return None,
        })
    }

    const fn raw(self) -> u16 {
        match self {
            Self::UserObj => 0x01,
            Self::User => 0x02,
            Self::GroupObj => 0x04,
            Self::Group => 0x08,
            Self::Mask => 0x10,
            Self::Other => 0x20,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AclEntry {
    tag: Tag,
    perm: u16,
    id: u32,
}

/// A checked ACL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl(Vec<AclEntry>);

/// What a new inode gets from its parent's default ACL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inherited {
    /// Permission bits (and set-id, sticky) of the new inode.
    pub(crate) mode: u32,
    /// Its access ACL, unless the mode says it all.
    pub(crate) access: Option<Vec<u8>>,
}

impl Acl {
    /// Most entries an inode may have (the kernel's limit, which grows with the block size).
    pub(crate) const fn max_entries(bsize: u32) -> usize {
        300 * bsize as usize / 4096
    }

    /// Checks a value. An empty one is no ACL.
    ///
    /// # Errors
    /// EINVAL, EOPNOTSUPP for another version.
    pub(crate) fn parse(value: &[u8]) -> FsResult<Option<Self>> {
        let Some((version, rest)) = value.split_first_chunk::<4>() else {
            return if value.is_empty() {
                Ok(None)
            } else {
                Err(Errno::EINVAL.into())
            };
        };
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let (raw, tail) = rest.as_chunks::<ENTRY>();
        if !tail.is_empty() {
            return Err(Errno::EINVAL.into());
        }
        let entries: Option<Vec<AclEntry>> = raw.iter().map(entry).collect();
        let acl = Self(entries.ok_or(Errno::EINVAL)?);
        if acl.0.is_empty() {
            return Ok(None);
        }
        if !acl.is_valid() {
            return Err(Errno::EINVAL.into());
        }
        Ok(Some(acl))
    }

    fn count(&self, tag: Tag) -> usize {
        self.0.iter().filter(|entry| entry.tag == tag).count()
    }

    fn is_valid(&self) -> bool {
        let single = [Tag::UserObj, Tag::GroupObj, Tag::Other]
            .into_iter()
            .all(|tag| self.count(tag) == 1);
        let named = self.count(Tag::User) + self.count(Tag::Group) > 0;
        single && self.count(Tag::Mask) <= 1 && (!named || self.count(Tag::Mask) == 1)
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn perm(&mut self, tag: Tag) -> Option<&mut u16> {
        self.0
            .iter_mut()
            .find(|entry| entry.tag == tag)
            .map(|entry| &mut entry.perm)
    }

    /// The entry that the group bits of the mode show: the mask, if there is one.
    fn group_class(&mut self) -> Option<&mut u16> {
        let tag = if self.count(Tag::Mask) > 0 {
            Tag::Mask
        } else {
            Tag::GroupObj
        };
        self.perm(tag)
    }

    /// The permission bits that stand for it.
    pub(crate) fn mode_bits(&self) -> u32 {
        let mut copy = self.clone();
        let mut get = |tag| u32::from(copy.perm(tag).map_or(0, |perm| *perm));
        let (user, other) = (get(Tag::UserObj), get(Tag::Other));
        let group = u32::from(copy.group_class().map_or(0, |perm| *perm));
        user << 6 | group << 3 | other
    }

    /// Does the mode say it all?
    pub(crate) fn is_mode_only(&self) -> bool {
        self.0.len() == 3
    }

    /// chmod: the classes' permissions become those of `mode`.
    pub(crate) fn chmod(&mut self, mode: u32) {
        let bits = |shift: u32| (mode >> shift & 7) as u16;
        if let Some(perm) = self.perm(Tag::UserObj) {
            *perm = bits(6);
        }
        if let Some(perm) = self.group_class() {
            *perm = bits(3);
        }
        if let Some(perm) = self.perm(Tag::Other) {
            *perm = bits(0);
        }
    }

    /// As a default ACL, what it makes of a new inode asked for with `mode`: no class gets more than was asked for.
    pub(crate) fn inherit(&self, mode: u32) -> Inherited {
        let mut acl = self.clone();
        let wanted = |shift: u32| (mode >> shift & 7) as u16;
        if let Some(perm) = acl.perm(Tag::UserObj) {
            *perm &= wanted(6);
        }
        if let Some(perm) = acl.group_class() {
            *perm &= wanted(3);
        }
        if let Some(perm) = acl.perm(Tag::Other) {
            *perm &= wanted(0);
        }
        Inherited {
            mode: mode & !0o777 | acl.mode_bits(),
            access: (!acl.is_mode_only()).then(|| acl.to_bytes()),
        }
    }

    /// The value to store.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            bytes.extend_from_slice(&entry.tag.raw().to_le_bytes());
            bytes.extend_from_slice(&entry.perm.to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        bytes
    }
}

fn entry(raw: &[u8; ENTRY]) -> Option<AclEntry> {
    let [t0, t1, p0, p1, id @ ..] = *raw;
    let perm = u16::from_le_bytes([p0, p1]);
    Some(AclEntry {
        tag: Tag::from_raw(u16::from_le_bytes([t0, t1]))?,
        perm: Some(perm).filter(|perm| *perm <= 7)?,
        id: u32::from_le_bytes(id),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(Tag, u16, u32)]) -> Acl {
        Acl(entries
            .iter()
            .map(|(tag, perm, id)| AclEntry {
                tag: *tag,
                perm: *perm,
                id: *id,
            })
            .collect())
    }

    #[test]
    fn values_come_back_as_they_were() {
        let acl = acl(&[
            (Tag::UserObj, 7, u32::MAX),
            (Tag::User, 5, 1000),
            (Tag::GroupObj, 5, u32::MAX),
            (Tag::Mask, 7, u32::MAX),
            (Tag::Other, 0, u32::MAX),
        ]);
        assert_eq!(Acl::parse(&acl.to_bytes()).unwrap().unwrap(), acl);
        assert_eq!(acl.mode_bits(), 0o770);
        assert!(!acl.is_mode_only());
        assert_eq!(Acl::parse(&[]).unwrap(), None);
        assert!(Acl::parse(&[2, 0, 0]).is_err());
        assert!(Acl::parse(&acl.to_bytes()[..20]).is_err());
        assert!(Acl::parse(&[3, 0, 0, 0]).is_err());
    }

    #[test]
    fn named_entries_need_a_mask() {
        let missing = acl(&[
            (Tag::UserObj, 7, 0),
            (Tag::User, 5, 1000),
            (Tag::GroupObj, 5, 0),
            (Tag::Other, 0, 0),
        ]);
        assert!(Acl::parse(&missing.to_bytes()).is_err());
    }

    #[test]
    fn a_new_inode_gets_no_more_than_it_asked_for() {
        let plain = acl(&[(Tag::UserObj, 7, 0), (Tag::GroupObj, 7, 0), (Tag::Other, 5, 0)]);
        let got = plain.inherit(0o1644);
        assert_eq!(
            got,
            Inherited {
                mode: 0o1644,
                access: None
            }
        );
        let named = acl(&[
            (Tag::UserObj, 7, 0),
            (Tag::User, 7, 1000),
            (Tag::GroupObj, 5, 0),
            (Tag::Mask, 7, 0),
            (Tag::Other, 5, 0),
        ]);
        let got = named.inherit(0o666);
        assert_eq!(got.mode, 0o664);
        let stored = Acl::parse(&got.access.unwrap()).unwrap().unwrap();
        assert_eq!(stored.mode_bits(), 0o664);
        assert_eq!(stored.clone().perm(Tag::User).copied(), Some(7));
    }

    #[test]
    fn chmod_goes_to_the_mask() {
        let mut named = acl(&[
            (Tag::UserObj, 7, 0),
            (Tag::User, 7, 1000),
            (Tag::GroupObj, 5, 0),
            (Tag::Mask, 7, 0),
            (Tag::Other, 5, 0),
        ]);
        named.chmod(0o640);
        assert_eq!(named.mode_bits(), 0o640);
        assert_eq!(named.perm(Tag::GroupObj).copied(), Some(5));
    }
}
