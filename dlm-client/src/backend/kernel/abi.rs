//! The byte layouts of the DLM's misc device (interface 6.0, 64 bit): requests that are written, results that are read.
//!
//! Pointers of the interface are never followed by the kernel: the id of a lock travels in the two parameters, and two
//! fixed marks tell a completion from a blocking callback. What the device gives back is checked field by field.

use zerocopy::byteorder::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::lvb::LVB_LEN;
use crate::{Lkf, LockId, Lvb, Mode, ResName};

/// Interface version: the kernel must have this major and at least this minor.
pub const VERSION: [u32; 3] = [6, 0, 0];
/// Bytes of the answer to a read of exactly this length: the version.
pub const VERSION_LEN: usize = 12;
/// Bytes of a request without its name.
pub const REQUEST_LEN: usize = 120;
/// Bytes of a result without a lock value block.
pub const RESULT_LEN: usize = 72;
/// Bytes the longest result has.
pub const RESULT_MAX: usize = RESULT_LEN + LVB_LEN;

/// Stands where the address of a completion routine would.
const CAST_MARK: u64 = 2;
/// Stands where the address of a blocking routine would.
const BAST_MARK: u64 = 3;
/// Stands for both with a lock that was left behind and is to be dropped: what becomes of it is nobody's concern.
const DROP_MARK: u64 = 4;
/// Stands where the address of a status block would.
const LKSB_MARK: u64 = 1;

/// Remove a lockspace with the locks in it.
const FORCE_FREE: u32 = 2;

/// A new lock, a conversion, the adoption of an orphan.
pub const LOCK: u8 = 1;
/// An unlock or a cancel.
pub const UNLOCK: u8 = 2;
/// Joins a lockspace (control device).
pub const CREATE: u8 = 4;
/// Leaves a lockspace (control device).
pub const REMOVE: u8 = 5;
/// Says in the kernel's list of locks that a request was written by this backend: `dlmfuse` and a version.
pub const MARK: u64 = 0x646c_6d66_7573_6501;

/// The fixed begin of every request.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
struct Head {
    version: [U32; 3],
    command: u8,
    is_64bit: u8,
    unused: U16,
}

/// A lock request.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
struct LockRequest {
    head: Head,
    mode: u8,
    namelen: u8,
    unused: U16,
    flags: U32,
    lkid: U32,
    parent: U32,
    xid: U64,
    timeout: U64,
    castparam: U64,
    castaddr: U64,
    bastparam: U64,
    bastaddr: U64,
    lksb: U64,
    lvb: Lvb,
}

/// A request about a lockspace, filled up to the length of a lock request.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
struct SpaceRequest {
    head: Head,
    flags: U32,
    minor: U32,
    /// The name begins here and may go on behind.
    name: [u8; 96],
}

/// A result as it is read.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
struct RawResult {
    version: [U32; 3],
    length: U32,
    astaddr: U64,
    astparam: U64,
    user_lksb: U64,
    status: I32,
    lkid: U32,
    sb_flags: u8,
    pad: [u8; 7],
    lvb_pointer: U64,
    bast_mode: u8,
    pad2: [u8; 3],
    lvb_offset: U32,
}

const fn head(command: u8) -> Head {
    let [major, minor, patch] = VERSION;
    Head {
        version: [U32::new(major), U32::new(minor), U32::new(patch)],
        command,
        is_64bit: 1,
        unused: U16::ZERO,
    }
}

fn lock_request(command: u8, id: LockId, lkid: u32, flags: Lkf, lvb: &Lvb) -> LockRequest {
    let param = U64::new(u64::from(id.0));
    LockRequest {
        head: head(command),
        mode: 0,
        namelen: 0,
        unused: U16::ZERO,
        flags: U32::new(flags.bits()),
        lkid: U32::new(lkid),
        parent: U32::ZERO,
        xid: U64::new(MARK),
        timeout: U64::ZERO,
        castparam: param,
        castaddr: U64::new(CAST_MARK),
        bastparam: param,
        bastaddr: U64::new(BAST_MARK),
        lksb: U64::new(LKSB_MARK),
        lvb: *lvb,
    }
}

fn named(mut request: LockRequest, name: &ResName, mode: Mode) -> Vec<u8> {
    request.mode = mode.number();
    let name = name.as_bytes();
    request.namelen = u8::try_from(name.len()).unwrap_or(u8::MAX);
    let mut bytes = request.as_bytes().to_vec();
    bytes.extend_from_slice(name);
    bytes
}

/// A new lock, or with [`Lkf::ORPHAN`] one left behind.
#[must_use]
pub fn request(id: LockId, name: &ResName, mode: Mode, flags: Lkf) -> Vec<u8> {
    named(lock_request(LOCK, id, 0, flags, &[0; LVB_LEN]), name, mode)
}

/// A conversion.
#[must_use]
pub fn convert(id: LockId, lkid: u32, mode: Mode, flags: Lkf, lvb: &Lvb) -> Vec<u8> {
    let mut request = lock_request(LOCK, id, lkid, flags | Lkf::CONVERT, lvb);
    request.mode = mode.number();
    request.as_bytes().to_vec()
}

/// An unlock.
#[must_use]
pub fn unlock(id: LockId, lkid: u32, flags: Lkf, lvb: &Lvb) -> Vec<u8> {
    lock_request(UNLOCK, id, lkid, flags, lvb).as_bytes().to_vec()
}

/// Takes back what is under way.
#[must_use]
pub fn cancel(id: LockId, lkid: u32) -> Vec<u8> {
    lock_request(UNLOCK, id, lkid, Lkf::CANCEL, &[0; LVB_LEN])
        .as_bytes()
        .to_vec()
}

/// A request about what was left behind.
fn of_the_dead(command: u8, lkid: u32, flags: Lkf) -> LockRequest {
    let mut request = lock_request(command, LockId(1), lkid, flags, &[0; LVB_LEN]);
    (request.castaddr, request.bastaddr) = (U64::new(DROP_MARK), U64::new(DROP_MARK));
    request
}

/// Takes over a lock that was left behind, to drop it.
#[must_use]
pub fn adopt(name: &ResName, mode: Mode) -> Vec<u8> {
    named(of_the_dead(LOCK, 0, Lkf::ORPHAN | Lkf::PERSISTENT), name, mode)
}

/// Drops a lock that was taken over. A value block it could have written is not valid any more.
#[must_use]
pub fn drop_lock(lkid: u32) -> Vec<u8> {
    of_the_dead(UNLOCK, lkid, Lkf::IVVALBLK).as_bytes().to_vec()
}

/// Joins a lockspace.
#[must_use]
pub fn create(name: &ResName) -> Vec<u8> {
    let mut request = SpaceRequest {
        head: head(CREATE),
        flags: U32::ZERO,
        minor: U32::ZERO,
        name: [0; 96],
    };
    for (to, from) in request.name.iter_mut().zip(name.as_bytes()) {
        *to = *from;
    }
    // What is behind the name ends it.
    request.as_bytes().to_vec()
}

/// Leaves a lockspace, with whatever locks are left.
#[must_use]
pub fn remove(minor: u32) -> Vec<u8> {
    let request = SpaceRequest {
        head: head(REMOVE),
        flags: U32::new(FORCE_FREE),
        minor: U32::new(minor),
        name: [0; 96],
    };
    request.as_bytes().to_vec()
}

/// What the device told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Our lock.
    pub id: LockId,
    /// What of it.
    pub what: What,
}

/// A completion or a blocking callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// An operation ended.
    Cast {
        /// 0 or a negative errno.
        status: i32,
        /// The kernel's id of the lock.
        lkid: u32,
        /// `DLM_SBF_*`.
        sb_flags: u8,
        /// The lock value block, if the device gave one.
        lvb: Option<Lvb>,
    },
    /// Somebody waits for this mode.
    Bast(Mode),
    /// Of a lock that was left behind and is dropped.
    Dropped,
}

/// A result that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the DLM's device: {field} is {found}, expected {expected}")]
pub struct BadResult {
    /// Which field.
    pub field: &'static str,
    /// What it holds.
    pub found: u64,
    /// What it should.
    pub expected: &'static str,
}

const fn bad(field: &'static str, found: u64, expected: &'static str) -> BadResult {
    BadResult {
        field,
        found,
        expected,
    }
}

fn count(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// Checks the answer of a device to a read of [`VERSION_LEN`] bytes.
///
/// # Errors
/// A length or a version that is not ours.
pub fn check_version(bytes: &[u8]) -> Result<(), BadResult> {
    let wrong = bad("length of the version", count(bytes.len()), "12");
    let [major, ..] = <[U32; 3]>::read_from_bytes(bytes).map_err(|_| wrong)?;
    let [ours, ..] = VERSION;
    if major.get() != ours {
        return Err(bad("interface version", u64::from(major.get()), "6"));
    }
    Ok(())
}

/// Takes a result apart.
///
/// # Errors
/// Whatever the kernel does not send: the fields are those of another interface, or of none.
pub fn result(bytes: &[u8]) -> Result<Told, BadResult> {
    let (raw, _) = RawResult::read_from_prefix(bytes)
        .map_err(|_| bad("length of a result", count(bytes.len()), "72 or 104"))?;
    check_version(raw.version.as_bytes())?;
    if usize::try_from(raw.length.get()) != Ok(bytes.len()) {
        return Err(bad(
            "length",
            u64::from(raw.length.get()),
            "the bytes that were read",
        ));
    }
    let param = raw.astparam.get();
    let id = u32::try_from(param)
        .ok()
        .filter(|id| *id != 0)
        .ok_or_else(|| bad("parameter", param, "the id of a lock"))?;
    let what = match raw.astaddr.get() {
        CAST_MARK => {
            let status = raw.status.get();
            if status > 0 {
                return Err(bad("status", u64::from(status.unsigned_abs()), "0 or less"));
            }
            What::Cast {
                status,
                lkid: raw.lkid.get(),
                sb_flags: raw.sb_flags,
                lvb: block(bytes, raw.lvb_offset.get())?,
            }
        }
        BAST_MARK => {
            let mode = Mode::from_number(raw.bast_mode).filter(|mode| *mode != Mode::Nl);
            What::Bast(mode.ok_or_else(|| bad("mode waited for", u64::from(raw.bast_mode), "1 to 5"))?)
        }
        DROP_MARK => What::Dropped,
        other => return Err(bad("routine", other, "2 to 4")),
    };
    Ok(Told { id: LockId(id), what })
}

/// The lock value block at its offset; none at 0.
fn block(bytes: &[u8], offset: u32) -> Result<Option<Lvb>, BadResult> {
    if offset == 0 {
        return Ok(None);
    }
    if usize::try_from(offset) != Ok(RESULT_LEN) {
        return Err(bad(
            "offset of the lock value block",
            u64::from(offset),
            "0 or 72",
        ));
    }
    let block = bytes
        .get(RESULT_LEN..)
        .and_then(|rest| rest.first_chunk::<LVB_LEN>())
        .ok_or_else(|| {
            bad(
                "length with a lock value block",
                count(bytes.len()),
                "at least 104",
            )
        })?;
    Ok(Some(*block))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_kernels() {
        assert_eq!(size_of::<Head>(), 16);
        assert_eq!(size_of::<LockRequest>(), REQUEST_LEN);
        assert_eq!(size_of::<SpaceRequest>(), REQUEST_LEN);
        assert_eq!(size_of::<RawResult>(), RESULT_LEN);
        assert_eq!(RESULT_MAX, 104);
    }

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn long(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn fields_are_where_the_kernel_looks() {
        let name = ResName::new(b"abc").unwrap();
        let bytes = request(LockId(7), &name, Mode::Ex, Lkf::VALBLK);
        assert_eq!((word(&bytes, 0), bytes[12], bytes[13]), (6, 1, 1));
        assert_eq!(
            (bytes[16], bytes[17], word(&bytes, 20), word(&bytes, 24)),
            (5, 3, 8, 0)
        );
        assert_eq!(
            [48, 56, 64, 72, 80].map(|at| long(&bytes, at)),
            [7, CAST_MARK, 7, BAST_MARK, LKSB_MARK]
        );
        assert_eq!(&bytes[120..], b"abc");
        let bytes = convert(LockId(7), 9, Mode::Pr, Lkf::QUECVT, &[5; 32]);
        assert_eq!((bytes.len(), bytes[12], bytes[16]), (120, 1, 3));
        assert_eq!((word(&bytes, 20), word(&bytes, 24), bytes[88]), (0x14, 9, 5));
        let bytes = unlock(LockId(7), 9, Lkf::FORCEUNLOCK, &[5; 32]);
        assert_eq!((bytes[12], word(&bytes, 20), bytes[119]), (2, 0x20000, 5));
        let bytes = cancel(LockId(7), 9);
        assert_eq!((bytes[12], word(&bytes, 20)), (2, 2));
        let bytes = create(&name);
        assert_eq!((bytes.len(), bytes[12], &bytes[24..28]), (120, 4, &b"abc\0"[..]));
        let bytes = remove(31);
        assert_eq!((bytes[12], word(&bytes, 16), word(&bytes, 20)), (5, 2, 31));
        let bytes = adopt(&name, Mode::Pr);
        assert_eq!(
            (bytes[12], bytes[16], bytes[17], word(&bytes, 20)),
            (1, 3, 3, 0x4080)
        );
        assert_eq!(
            [32, 48, 56, 64, 72, 80].map(|at| long(&bytes, at)),
            [MARK, 1, DROP_MARK, 1, DROP_MARK, LKSB_MARK]
        );
        assert_eq!(&bytes[120..], b"abc");
        let bytes = drop_lock(9);
        assert_eq!((bytes.len(), bytes[12], bytes[88]), (120, 2, 0));
        assert_eq!((word(&bytes, 20), word(&bytes, 24)), (0x20, 9));
    }

    fn sample() -> Vec<u8> {
        let raw = RawResult {
            version: [U32::new(6), U32::new(0), U32::new(2)],
            length: U32::new(104),
            astaddr: U64::new(CAST_MARK),
            astparam: U64::new(0x77),
            user_lksb: U64::new(LKSB_MARK),
            status: I32::new(0),
            lkid: U32::new(3),
            sb_flags: 2,
            pad: [0; 7],
            lvb_pointer: U64::new(u64::MAX),
            bast_mode: 0,
            pad2: [0; 3],
            lvb_offset: U32::new(72),
        };
        let mut bytes = raw.as_bytes().to_vec();
        bytes.extend_from_slice(&[9; 32]);
        bytes
    }

    #[test]
    fn a_result_is_read() {
        let told = result(&sample()).unwrap();
        let what = What::Cast {
            status: 0,
            lkid: 3,
            sb_flags: 2,
            lvb: Some([9; 32]),
        };
        assert_eq!(
            told,
            Told {
                id: LockId(0x77),
                what
            }
        );
        let mut bast = sample();
        (bast[16], bast[64]) = (3, 4);
        assert_eq!(result(&bast).unwrap().what, What::Bast(Mode::Pw));
        bast[16] = 4;
        assert_eq!(result(&bast).unwrap().what, What::Dropped);
    }

    #[test]
    fn a_broken_result_is_named() {
        let broken = |at: usize, to: u8| {
            let mut bytes = sample();
            bytes[at] = to;
            result(&bytes).unwrap_err().to_string()
        };
        let prefix = "the DLM's device: ";
        assert_eq!(
            broken(0, 7),
            format!("{prefix}interface version is 7, expected 6")
        );
        assert!(broken(12, 72).starts_with(&format!("{prefix}length is 72")));
        assert!(broken(16, 9).starts_with(&format!("{prefix}routine is 9")));
        assert!(broken(24, 0).starts_with(&format!("{prefix}parameter is 0")));
        assert!(broken(30, 1).starts_with(&format!("{prefix}parameter is")));
        assert!(broken(40, 1).starts_with(&format!("{prefix}status is 1")));
        assert!(broken(68, 73).starts_with(&format!("{prefix}offset of the lock value block is 73")));
        let mut bast = sample();
        (bast[16], bast[64]) = (3, 6);
        assert!(
            result(&bast)
                .unwrap_err()
                .to_string()
                .contains("mode waited for is 6")
        );
        let mut short = sample();
        short.truncate(90);
        short[12] = 90;
        assert!(
            result(&short)
                .unwrap_err()
                .to_string()
                .contains("length with a lock value block")
        );
        assert!(result(&[]).is_err() && result(&[6; 71]).is_err());
        assert!(check_version(&[6; 11]).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut random = fastrand::Rng::with_seed(4);
        let mut read = 0;
        for _ in 0..200_000 {
            let mut bytes = sample();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            bytes.truncate(random.usize(60..=104));
            read += u32::from(result(&bytes).is_ok());
        }
        assert!(read > 0);
    }
}
