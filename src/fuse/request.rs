//! From the bytes of a request to what it asks for.
//!
//! Invariants: no bytes make this panic; what is too short, too long or unterminated is [`Malformed`], which names the
//! operation and the part; an operation we do not serve is [`Op::Unserved`]. Nothing is copied but fixed structures.

use super::abi::{self, InHeader, Opcode};
use zerocopy::FromBytes;

/// Bytes before the payload of a WRITE.
pub(super) const WRITE_HEAD: usize = size_of::<InHeader>() + size_of::<abi::WriteIn>();

/// Why a request cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request of {len} bytes, operation {opcode}: {what}")]
pub(super) struct Malformed {
    pub(super) opcode: u32,
    pub(super) len: usize,
    pub(super) what: &'static str,
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) header: InHeader,
    pub(super) op: Op<'a>,
}

/// What is asked for; names are without their NUL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op<'a> {
    Lookup(&'a [u8]),
    Forget(abi::ForgetIn),
    BatchForget(Forgets<'a>),
    Getattr,
    Setattr(abi::SetattrIn),
    Readlink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    Mknod(abi::MknodIn, &'a [u8]),
    Mkdir(abi::MkdirIn, &'a [u8]),
    Unlink(&'a [u8]),
    Rmdir(&'a [u8]),
    Rename {
        to: u64,
        flags: u32,
        name: &'a [u8],
        new_name: &'a [u8],
    },
    Link(abi::LinkIn, &'a [u8]),
    Open(abi::OpenIn),
    Create(abi::CreateIn, &'a [u8]),
    Read(abi::ReadIn),
    Write(abi::WriteIn, &'a [u8]),
    Flush,
    Release(abi::ReleaseIn),
    Fsync(abi::FsyncIn),
    Opendir,
    Readdir(abi::ReadIn),
    Readdirplus(abi::ReadIn),
    Releasedir(abi::ReleaseIn),
    Fsyncdir(abi::FsyncIn),
    Statfs,
    Syncfs,
    Setxattr {
        fixed: abi::SetxattrIn,
        name: &'a [u8],
        value: &'a [u8],
    },
    Getxattr(abi::GetxattrIn, &'a [u8]),
    Listxattr(abi::GetxattrIn),
    Removexattr(&'a [u8]),
    Lseek(abi::LseekIn),
    Ioctl(abi::IoctlIn, &'a [u8]),
    Init(abi::InitIn),
    Interrupt(abi::InterruptIn),
    Destroy,
    Unserved,
}

/// The items of a BATCH_FORGET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Forgets<'a>(&'a [u8]);

impl Forgets<'_> {
    pub(super) fn iter(&self) -> impl Iterator<Item = abi::ForgetOne> + '_ {
        self.0
            .chunks_exact(size_of::<abi::ForgetOne>())
            .filter_map(|item| abi::ForgetOne::read_from_bytes(item).ok())
    }
}

/// The part of a request that has not been looked at.
struct Rest<'a> {
    bytes: &'a [u8],
    whole: Malformed,
}

impl<'a> Rest<'a> {
    fn bad(&self, what: &'static str) -> Malformed {
        Malformed { what, ..self.whole }
    }

    fn fixed<T: FromBytes>(&mut self) -> Result<T, Malformed> {
        match T::read_from_prefix(self.bytes) {
            Ok((value, rest)) => {
                self.bytes = rest;
                Ok(value)
            }
            Err(_) => Err(self.bad("its structure is cut short")),
        }
    }

    fn name(&mut self) -> Result<&'a [u8], Malformed> {
        match self.bytes.iter().position(|byte| *byte == 0) {
            Some(end) => {
                let (name, rest) = self.bytes.split_at(end);
                self.bytes = rest.get(1..).unwrap_or_default();
                Ok(name)
            }
            None => Err(self.bad("a name without an end")),
        }
    }

    fn data(&mut self, len: u32) -> Result<&'a [u8], Malformed> {
        let data = usize::try_from(len).ok().and_then(|len| self.bytes.get(..len));
        data.ok_or_else(|| self.bad("less data than announced"))
    }
}

/// Understands one request; `bytes` is what one read of the device gave.
///
/// # Errors
/// [`Malformed`]. The header is returned with it when there is one, so that the request can be answered.
pub(super) fn decode(bytes: &[u8]) -> Result<Request<'_>, (Option<InHeader>, Malformed)> {
    let bad = |opcode, what| Malformed {
        opcode,
        len: bytes.len(),
        what,
    };
    let Ok((header, args)) = InHeader::read_from_prefix(bytes) else {
        return Err((None, bad(0, "shorter than a header")));
    };
    let known = |malformed| (Some(header), malformed);
    if header.len as usize != bytes.len() {
        return Err(known(bad(header.opcode, "another length than its header says")));
    }
    let extensions = usize::from(header.total_extlen) * 8;
    let Some(args) = args.len().checked_sub(extensions).and_then(|end| args.get(..end)) else {
        return Err(known(bad(header.opcode, "extensions longer than itself")));
    };
    let Some(opcode) = Opcode::from_raw(header.opcode) else {
        return Ok(Request {
            header,
            op: Op::Unserved,
        });
    };
    let mut rest = Rest {
        bytes: args,
        whole: bad(header.opcode, ""),
    };
    let op = arguments(opcode, &mut rest).map_err(known)?;
    Ok(Request { header, op })
}

/// Understands a WRITE whose payload lies elsewhere; `head` is what comes before it.
///
/// # Errors
/// As [`decode`].
pub(super) fn decode_write<'a>(
    head: &[u8],
    payload: &'a [u8],
) -> Result<Request<'a>, (Option<InHeader>, Malformed)> {
    let bad = |what| Malformed {
        opcode: Opcode::WRITE as u32,
        len: head.len() + payload.len(),
        what,
    };
    let Ok((header, args)) = InHeader::read_from_prefix(head) else {
        return Err((None, bad("shorter than a header")));
    };
    let known = |what| (Some(header), bad(what));
    if header.len as usize != head.len() + payload.len() {
        return Err(known("another length than its header says"));
    }
    let Ok(fixed) = abi::WriteIn::read_from_bytes(args) else {
        return Err(known("its structure is cut short"));
    };
    match payload.get(..fixed.size as usize) {
        Some(data) => Ok(Request {
            header,
            op: Op::Write(fixed, data),
        }),
        None => Err(known("less data than announced")),
    }
}

fn arguments<'a>(opcode: Opcode, rest: &mut Rest<'a>) -> Result<Op<'a>, Malformed> {
    Ok(match opcode {
        Opcode::LOOKUP => Op::Lookup(rest.name()?),
        Opcode::FORGET => Op::Forget(rest.fixed()?),
        Opcode::BATCH_FORGET => {
            let head: abi::BatchForgetIn = rest.fixed()?;
            let bytes = head.count.checked_mul(16);
            Op::BatchForget(Forgets(rest.data(bytes.unwrap_or(u32::MAX))?))
        }
        Opcode::GETATTR => Op::Getattr,
        Opcode::SETATTR => Op::Setattr(rest.fixed()?),
        Opcode::READLINK => Op::Readlink,
        Opcode::SYMLINK => Op::Symlink {
            name: rest.name()?,
            target: rest.name()?,
        },
        Opcode::MKNOD => Op::Mknod(rest.fixed()?, rest.name()?),
        Opcode::MKDIR => Op::Mkdir(rest.fixed()?, rest.name()?),
        Opcode::UNLINK => Op::Unlink(rest.name()?),
        Opcode::RMDIR => Op::Rmdir(rest.name()?),
        Opcode::RENAME => {
            let fixed: abi::RenameIn = rest.fixed()?;
            Op::Rename {
                to: fixed.newdir,
                flags: 0,
                name: rest.name()?,
                new_name: rest.name()?,
            }
        }
        Opcode::RENAME2 => {
            let fixed: abi::Rename2In = rest.fixed()?;
            Op::Rename {
                to: fixed.newdir,
                flags: fixed.flags,
                name: rest.name()?,
                new_name: rest.name()?,
            }
        }
        Opcode::LINK => Op::Link(rest.fixed()?, rest.name()?),
        Opcode::CREATE => Op::Create(rest.fixed()?, rest.name()?),
        Opcode::SETXATTR => {
            let fixed: abi::SetxattrIn = rest.fixed()?;
            Op::Setxattr {
                fixed,
                name: rest.name()?,
                value: rest.data(fixed.size)?,
            }
        }
        Opcode::GETXATTR => Op::Getxattr(rest.fixed()?, rest.name()?),
        Opcode::LISTXATTR => Op::Listxattr(rest.fixed()?),
        Opcode::REMOVEXATTR => Op::Removexattr(rest.name()?),
        Opcode::STATFS => Op::Statfs,
        Opcode::SYNCFS => Op::Syncfs,
        Opcode::INIT => Op::Init(rest.fixed()?),
        Opcode::INTERRUPT => Op::Interrupt(rest.fixed()?),
        Opcode::DESTROY => Op::Destroy,
        Opcode::IOCTL => {
            let fixed: abi::IoctlIn = rest.fixed()?;
            Op::Ioctl(fixed, rest.data(fixed.in_size)?)
        }
        _ => return on_handle(opcode, rest),
    })
}

/// Operations on something open.
fn on_handle<'a>(opcode: Opcode, rest: &mut Rest<'a>) -> Result<Op<'a>, Malformed> {
    Ok(match opcode {
        Opcode::OPEN => Op::Open(rest.fixed()?),
        Opcode::READ => Op::Read(rest.fixed()?),
        Opcode::WRITE => {
            let fixed: abi::WriteIn = rest.fixed()?;
            Op::Write(fixed, rest.data(fixed.size)?)
        }
        Opcode::FLUSH => Op::Flush,
        Opcode::RELEASE => Op::Release(rest.fixed()?),
        Opcode::FSYNC => Op::Fsync(rest.fixed()?),
        Opcode::OPENDIR => Op::Opendir,
        Opcode::READDIR => Op::Readdir(rest.fixed()?),
        Opcode::READDIRPLUS => Op::Readdirplus(rest.fixed()?),
        Opcode::RELEASEDIR => Op::Releasedir(rest.fixed()?),
        Opcode::FSYNCDIR => Op::Fsyncdir(rest.fixed()?),
        Opcode::LSEEK => Op::Lseek(rest.fixed()?),
        _ => Op::Unserved,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    /// A request as the kernel would send it.
    fn bytes(opcode: u32, args: &[&[u8]]) -> Vec<u8> {
        let args = args.concat();
        let header = InHeader {
            len: (size_of::<InHeader>() + args.len()) as u32,
            opcode,
            unique: 6,
            nodeid: 1,
            uid: 1000,
            gid: 100,
            pid: 42,
            ..InHeader::default()
        };
        [header.as_bytes(), &args].concat()
    }

    fn op(bytes: &[u8]) -> Op<'_> {
        decode(bytes).expect("a good request").op
    }

    fn refused(bytes: &[u8]) -> &'static str {
        decode(bytes).expect_err("a bad request").1.what
    }

    #[test]
    fn names_and_structures_are_taken_apart() {
        assert_eq!(op(&bytes(1, &[b"name\0"])), Op::Lookup(b"name"));
        assert_eq!(
            op(&bytes(6, &[b"link\0target\0"])),
            Op::Symlink {
                name: b"link",
                target: b"target"
            }
        );
        let rename = abi::Rename2In {
            newdir: 9,
            flags: 1,
            padding: 0,
        };
        assert_eq!(
            op(&bytes(45, &[rename.as_bytes(), b"a\0b\0"])),
            Op::Rename {
                to: 9,
                flags: 1,
                name: b"a",
                new_name: b"b"
            }
        );
        let xattr = abi::SetxattrIn {
            size: 3,
            ..Default::default()
        };
        assert_eq!(
            op(&bytes(21, &[xattr.as_bytes(), b"user.x\0", b"\0\x01\x02"])),
            Op::Setxattr {
                fixed: xattr,
                name: b"user.x",
                value: b"\0\x01\x02"
            }
        );
        let write = abi::WriteIn {
            size: 5,
            offset: 7,
            ..Default::default()
        };
        assert_eq!(
            op(&bytes(16, &[write.as_bytes(), b"hello"])),
            Op::Write(write, b"hello")
        );
        assert_eq!(op(&bytes(4000, &[b"whatever"])), Op::Unserved);
    }

    #[test]
    fn a_time_before_all_times_is_a_time() {
        let set = abi::SetattrIn {
            valid: abi::Fattr::MTIME.bits(),
            mtime: i64::MIN.cast_unsigned(),
            ..Default::default()
        };
        assert_eq!(op(&bytes(4, &[set.as_bytes()])), Op::Setattr(set));
    }

    #[test]
    fn forgets_are_counted() {
        let head = abi::BatchForgetIn { count: 2, dummy: 0 };
        let items = [
            abi::ForgetOne {
                nodeid: 5,
                nlookup: 1,
            },
            abi::ForgetOne {
                nodeid: 6,
                nlookup: u64::MAX,
            },
        ];
        let request = bytes(42, &[head.as_bytes(), items.as_bytes()]);
        let Op::BatchForget(forgets) = op(&request) else {
            panic!("not a forget")
        };
        assert_eq!(forgets.iter().collect::<Vec<_>>(), items);
        let greedy = abi::BatchForgetIn {
            count: 0x1000_0001,
            dummy: 0,
        };
        assert_eq!(
            refused(&bytes(42, &[greedy.as_bytes(), items.as_bytes()])),
            "less data than announced"
        );
    }

    #[test]
    fn bad_requests_are_named() {
        assert_eq!(refused(&[]), "shorter than a header");
        assert_eq!(refused(&bytes(1, &[b"no end"])), "a name without an end");
        assert_eq!(refused(&bytes(4, &[&[0; 87]])), "its structure is cut short");
        let write = abi::WriteIn {
            size: u32::MAX,
            ..Default::default()
        };
        assert_eq!(
            refused(&bytes(16, &[write.as_bytes(), b"x"])),
            "less data than announced"
        );
        let mut longer = bytes(3, &[]);
        longer.push(0);
        assert_eq!(refused(&longer), "another length than its header says");
        let mut extended = bytes(9, &[b"12345678x\0"]);
        extended[36..38].copy_from_slice(&100u16.to_ne_bytes());
        assert_eq!(refused(&extended), "extensions longer than itself");
        let (header, bad) = decode(&extended).unwrap_err();
        assert_eq!(header.unwrap().unique, 6);
        assert_eq!(
            bad.to_string(),
            "request of 50 bytes, operation 9: extensions longer than itself"
        );
    }

    #[test]
    fn extensions_are_no_part_of_the_arguments() {
        let fixed = abi::MkdirIn {
            mode: 0o755,
            umask: 0,
        };
        let mut request = bytes(9, &[fixed.as_bytes(), b"dir\0", b"\0\0\0\0", &[7; 16]]);
        request[36..38].copy_from_slice(&2u16.to_ne_bytes());
        assert_eq!(op(&request), Op::Mkdir(fixed, b"dir"));
    }

    /// Every prefix of every request, and seeded noise in each: an answer, never a panic.
    #[test]
    fn no_bytes_make_it_panic() {
        let mut rng = fastrand::Rng::with_seed(7);
        for raw in 0..60 {
            let whole = bytes(raw, &[&[1; 120], b"name\0other\0"]);
            for end in 0..=whole.len() {
                let mut cut = whole[..end].to_vec();
                if let Some(len) = cut.first_chunk_mut::<4>() {
                    *len = (end as u32).to_ne_bytes();
                }
                let _ = decode(&cut);
            }
            for _ in 0..200 {
                let mut noisy = whole.clone();
                for byte in noisy.iter_mut().skip(4) {
                    if rng.u8(..) < 40 {
                        *byte = rng.u8(..);
                    }
                }
                if let Ok(Request {
                    op: Op::BatchForget(forgets),
                    ..
                }) = decode(&noisy)
                {
                    assert!(forgets.iter().count() <= noisy.len() / 16);
                }
            }
        }
    }
}
