//! A whole packet: the header, which of the five commands it carries, and of which life of its sender it is.

use zerocopy::{FromBytes, IntoBytes};

use super::error::{Expected, WireError, shown};
use super::message::Message;
use super::raw::{RawHeader, RawOpts};
use super::rcom::{DATA_AT, Rcom, RcomType};
use crate::NodeId;

/// Bytes of a header: the shortest packet.
pub const HEADER_LEN: usize = size_of::<RawHeader>();
/// The longest packet, header and all.
pub const PACKET_MAX: usize = 4096;
/// Bytes before what an OPTS carries (when there are no options).
pub const OPTS_LEN: usize = HEADER_LEN + size_of::<RawOpts>();
/// The longest packet that fits into an OPTS, and so the longest a lockspace may make.
pub const INNER_MAX: usize = PACKET_MAX - OPTS_LEN;
const _: () = assert!(OPTS_LEN == 24 && INNER_MAX == 4072);

/// Stands beside a life, where kernels send 0, so that nothing else is taken for one.
const LIFE_MARK: u8 = b'l';

const CMD_MSG: u8 = 1;
const CMD_RCOM: u8 = 2;
const CMD_OPTS: u8 = 3;
const CMD_ACK: u8 = 4;
const CMD_FIN: u8 = 5;

/// A lockspace, by the hash of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockspaceId(pub u32);

/// Version of the protocol, as every packet states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// Plain packets.
    V3_1,
    /// Sequence numbers, acknowledgements, an end.
    V3_2,
}

impl Version {
    /// The number in the header.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::V3_1 => 0x0003_0001,
            Self::V3_2 => 0x0003_0002,
        }
    }
}

/// What one lockspace says to another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// About locks.
    Message(Message),
    /// About recovery.
    Rcom(Rcom),
}

/// What an OPTS can carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inner {
    /// A message of a lockspace.
    Payload {
        /// Which.
        lockspace: LockspaceId,
        /// What.
        payload: Payload,
    },
    /// The sender has nothing more to say.
    Fin,
}

/// What a packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A message of a lockspace, bare.
    Payload {
        /// Which.
        lockspace: LockspaceId,
        /// What.
        payload: Payload,
    },
    /// A sequenced packet.
    Opts {
        /// Its number.
        seq: u32,
        /// Options; none are defined, all are skipped.
        options: Vec<u8>,
        /// The packet inside: its own header repeats the node and has a version of its own.
        version: Version,
        /// What it carries.
        inner: Inner,
    },
    /// All before `next` arrived.
    Ack {
        /// The next number expected.
        next: u32,
    },
    /// A FIN that is not inside an OPTS: nobody sends it, and it means nothing.
    Fin,
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The protocol's version, as the outermost header states it.
    pub version: Version,
    /// The sender.
    pub node: NodeId,
    /// Which life of the sender's daemon it is of; never 0. None from a kernel. It travels in padding that kernels send as
    /// 0 and do not look at: that of an OPTS (`o_pad`, `o_pad2`), and the second unused field of a bare STATUS or
    /// STATUS_REPLY (`rcom_status`, `rcom_config`). Other packets have no room for it, and are sent without.
    pub life: Option<u32>,
    /// The rest.
    pub body: Body,
}

/// The length of the packet that begins with `bytes`; `None` when too little is there to know.
///
/// # Errors
/// A length no packet has: nothing after it can be found, the link is to be dropped.
pub fn packet_length(bytes: &[u8]) -> Result<Option<usize>, WireError> {
    let Some(field) = bytes.get(12..14).and_then(|f| <[u8; 2]>::try_from(f).ok()) else {
        return Ok(None);
    };
    let length = usize::from(u16::from_le_bytes(field));
    if (HEADER_LEN..=PACKET_MAX).contains(&length) {
        Ok(Some(length))
    } else {
        Err(wrong_length(length))
    }
}

fn wrong_length(found: usize) -> WireError {
    WireError::new(
        "h_length",
        12,
        shown(found),
        Expected::Between(shown(HEADER_LEN), shown(PACKET_MAX)),
    )
}

struct Header {
    version: Version,
    u: u32,
    node: NodeId,
    cmd: u8,
}

fn decode_header(bytes: &[u8]) -> Result<(Header, &[u8]), WireError> {
    let (raw, body) = RawHeader::read_from_prefix(bytes).map_err(|_| wrong_length(bytes.len()))?;
    if usize::from(raw.length.get()) != bytes.len() || bytes.len() > PACKET_MAX {
        return Err(WireError::new(
            "h_length",
            12,
            u64::from(raw.length.get()),
            Expected::Exactly(shown(bytes.len())),
        ));
    }
    let version = match raw.version.get() {
        0x0003_0001 => Version::V3_1,
        0x0003_0002 => Version::V3_2,
        other => {
            return Err(WireError::new(
                "h_version",
                0,
                u64::from(other),
                Expected::OneOf("0x30001 or 0x30002"),
            ));
        }
    };
    let header = Header {
        version,
        u: raw.u.get(),
        node: NodeId(raw.nodeid.get()),
        cmd: raw.cmd,
    };
    Ok((header, body))
}

fn decode_payload(cmd: u8, body: &[u8]) -> Result<Payload, WireError> {
    match cmd {
        CMD_MSG => Message::decode(body).map(Payload::Message),
        _ => Rcom::decode(body).map(Payload::Rcom),
    }
}

impl Packet {
    /// Reads one packet, which must be all of `bytes` (see [`packet_length`]).
    ///
    /// # Errors
    /// The first field that is not what the protocol allows.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let (header, body) = decode_header(bytes)?;
        let mut life = None;
        let body = match header.cmd {
            CMD_MSG | CMD_RCOM => {
                let payload = decode_payload(header.cmd, body)?;
                life = life_offset(&payload).and_then(|at| life_from(bytes.get(at..)?));
                Body::Payload {
                    lockspace: LockspaceId(header.u),
                    payload,
                }
            }
            CMD_OPTS => decode_opts(&header, body, &mut life)?,
            CMD_ACK => Body::Ack { next: header.u },
            CMD_FIN => Body::Fin,
            other => {
                return Err(WireError::new(
                    "h_cmd",
                    14,
                    u64::from(other),
                    Expected::Between(u64::from(CMD_MSG), u64::from(CMD_FIN)),
                ));
            }
        };
        Ok(Self {
            version: header.version,
            node: header.node,
            life,
            body,
        })
    }

    /// Appends the packet's bytes. Who makes the packet sees to it that they are at most [`PACKET_MAX`] (only names,
    /// slots and options could be more); [`crate::midcomms::Link`] refuses what is longer.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match &self.body {
            Body::Payload { lockspace, payload } => {
                let start = out.len();
                encode_payload(self.version, self.node, *lockspace, payload, out);
                if let Some(life) = self.life
                    && let Some(at) = life_offset(payload).and_then(|at| start.checked_add(at))
                    && let Some(field) = out.get_mut(at..at.saturating_add(8))
                {
                    field.copy_from_slice(&life_value(life).to_le_bytes());
                }
            }
            Body::Opts {
                seq,
                options,
                version,
                inner,
            } => framed(self.version, self.node, *seq, CMD_OPTS, out, |out| {
                let nextcmd = match inner {
                    Inner::Payload {
                        payload: Payload::Message(_),
                        ..
                    } => CMD_MSG,
                    Inner::Payload {
                        payload: Payload::Rcom(_),
                        ..
                    } => CMD_RCOM,
                    Inner::Fin => CMD_FIN,
                };
                let raw = RawOpts {
                    nextcmd,
                    mark: self.life.map_or(0, |_| LIFE_MARK),
                    optlen: u16::try_from(options.len()).unwrap_or(u16::MAX).into(),
                    life: self.life.unwrap_or_default().into(),
                };
                out.extend_from_slice(raw.as_bytes());
                out.extend_from_slice(options);
                match inner {
                    Inner::Payload { lockspace, payload } => {
                        encode_payload(*version, self.node, *lockspace, payload, out);
                    }
                    Inner::Fin => framed(*version, self.node, 0, CMD_FIN, out, |_| {}),
                }
            }),
            Body::Ack { next } => framed(self.version, self.node, *next, CMD_ACK, out, |_| {}),
            Body::Fin => framed(self.version, self.node, 0, CMD_FIN, out, |_| {}),
        }
    }

    /// The packet's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }
}

/// Where a bare packet has room for the life of its sender, from its beginning on.
fn life_offset(payload: &Payload) -> Option<usize> {
    let Payload::Rcom(rcom) = payload else {
        return None;
    };
    match rcom.kind() {
        RcomType::Status => Some(DATA_AT + 8),
        RcomType::StatusReply => Some(DATA_AT + 24),
        _ => None,
    }
}

fn life_value(life: u32) -> u64 {
    u64::from(LIFE_MARK) << 56 | u64::from(life)
}

/// The life that `bytes` begin with, if that is what they are.
fn life_from(bytes: &[u8]) -> Option<u32> {
    let value = u64::from_le_bytes(*bytes.first_chunk()?);
    let life = u32::try_from(value ^ life_value(0)).ok()?;
    (life != 0).then_some(life)
}

fn decode_opts(outer: &Header, body: &[u8], life: &mut Option<u32>) -> Result<Body, WireError> {
    let (raw, rest) = RawOpts::read_from_prefix(body).map_err(|_| {
        WireError::new(
            "h_length of an OPTS",
            12,
            shown(HEADER_LEN.saturating_add(body.len())),
            Expected::Between(shown(OPTS_LEN.saturating_add(HEADER_LEN)), shown(PACKET_MAX)),
        )
    })?;
    let optlen = usize::from(raw.optlen.get());
    let (options, packet) = rest.split_at_checked(optlen).ok_or_else(|| {
        WireError::new(
            "o_optlen",
            18,
            shown(optlen),
            Expected::Between(0, shown(rest.len())),
        )
    })?;
    let (header, inner) = decode_header(packet)?;
    if header.cmd != raw.nextcmd {
        return Err(WireError::new(
            "h_cmd inside an OPTS",
            14,
            u64::from(header.cmd),
            Expected::Exactly(u64::from(raw.nextcmd)),
        ));
    }
    if header.node != outer.node {
        return Err(WireError::new(
            "h_nodeid inside an OPTS",
            8,
            u64::from(header.node.0),
            Expected::Exactly(u64::from(outer.node.0)),
        ));
    }
    let inner = match header.cmd {
        CMD_MSG | CMD_RCOM => Inner::Payload {
            lockspace: LockspaceId(header.u),
            payload: decode_payload(header.cmd, inner)?,
        },
        CMD_FIN => Inner::Fin,
        other => {
            return Err(WireError::new(
                "o_nextcmd",
                16,
                u64::from(other),
                Expected::OneOf("MSG 1, RCOM 2 or FIN 5"),
            ));
        }
    };
    *life = Some(raw.life.get()).filter(|life| raw.mark == LIFE_MARK && *life != 0);
    Ok(Body::Opts {
        seq: outer.u,
        options: options.to_vec(),
        version: header.version,
        inner,
    })
}

/// A header, what `body` appends, and the length of both in the header.
fn framed(
    version: Version,
    node: NodeId,
    u: u32,
    cmd: u8,
    out: &mut Vec<u8>,
    body: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    let mut raw = RawHeader {
        version: version.number().into(),
        u: u.into(),
        nodeid: node.0.into(),
        length: 0.into(),
        cmd,
        pad: 0,
    };
    out.extend_from_slice(raw.as_bytes());
    body(out);
    let length = out.len().saturating_sub(start);
    raw.length = u16::try_from(length).unwrap_or(u16::MAX).into();
    if let Some(header) = out.get_mut(start..start.saturating_add(HEADER_LEN)) {
        header.copy_from_slice(raw.as_bytes());
    }
}

fn encode_payload(
    version: Version,
    node: NodeId,
    lockspace: LockspaceId,
    payload: &Payload,
    out: &mut Vec<u8>,
) {
    match payload {
        Payload::Message(message) => framed(version, node, lockspace.0, CMD_MSG, out, |out| {
            message.encode(out);
        }),
        Payload::Rcom(rcom) => framed(version, node, lockspace.0, CMD_RCOM, out, |out| {
            rcom.encode(out);
        }),
    }
}
