//! For tests: random packets of every kind, and captures of real ones.
//!
//! Captures are the classic pcap form of Ethernet frames; a stream is one direction of one TCP connection, put together
//! from its segments by sequence number.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use fastrand::Rng;

use super::hash::name_hash;
use super::*;
use crate::{Lkf, Mode, NodeId, ResName, SbFlags};

pub(crate) const DLM_PORT: u16 = 21064;

pub(crate) fn random_name(rng: &mut Rng) -> ResName {
    let bytes: Vec<u8> = (0..rng.usize(1..=64)).map(|_| rng.u8(..)).collect();
    ResName::new(&bytes).unwrap()
}

fn random_mode(rng: &mut Rng) -> Option<Mode> {
    rng.bool().then(|| Mode::ALL[rng.usize(0..6)])
}

fn random_lvb(rng: &mut Rng) -> crate::Lvb {
    std::array::from_fn(|_| rng.u8(..))
}

fn random_status(rng: &mut Rng) -> Option<QueueStatus> {
    [
        None,
        Some(QueueStatus::Waiting),
        Some(QueueStatus::Granted),
        Some(QueueStatus::Convert),
    ][rng.usize(0..4)]
}

pub(crate) fn random_message(rng: &mut Rng, kind: MsgType) -> Message {
    let extra = if kind.has_name() {
        Extra::Name(random_name(rng))
    } else if kind.may_have_lvb() && rng.bool() {
        Extra::Lvb(random_lvb(rng))
    } else {
        Extra::None
    };
    let hash = match &extra {
        Extra::Name(name) => name_hash(name),
        _ => rng.u32(..),
    };
    Message {
        nodeid: rng.i32(..),
        pid: rng.u32(..),
        lkid: rng.u32(..),
        remid: rng.u32(..),
        exflags: Lkf::from_bits_truncate(rng.u32(..)),
        sbflags: SbFlags::from_bits_truncate(rng.u32(..)),
        flags: MsgFlags::from_bits_retain(rng.u32(..)),
        lvbseq: rng.u32(..),
        hash,
        status: random_status(rng),
        grmode: random_mode(rng),
        rqmode: random_mode(rng),
        bastmode: random_mode(rng),
        asts: Asts::from_bits_truncate(rng.u32(..)),
        result: WireResult(rng.i32(..)),
        extra,
        ..Message::new(kind)
    }
}

fn random_lock(rng: &mut Rng) -> Box<RcomLock> {
    Box::new(RcomLock {
        ownpid: rng.u32(..),
        lkid: rng.u32(..),
        remid: rng.u32(..),
        exflags: Lkf::from_bits_truncate(rng.u32(..)),
        flags: MsgFlags::from_bits_truncate(rng.u32(..)),
        lvbseq: rng.u32(..),
        result: WireResult(rng.i32(..)),
        rqmode: random_mode(rng),
        grmode: random_mode(rng),
        status: random_status(rng),
        asts: Asts::from_bits_truncate(rng.u32(..)),
        wait_type: rng.bool().then(|| MsgType::ALL[rng.usize(0..14)]),
        name: random_name(rng),
        lvb: rng.bool().then(|| random_lvb(rng)),
    })
}

fn random_status_reply(rng: &mut Rng) -> StatusReply {
    if rng.u8(..4) == 0 {
        return StatusReply::NoLockspace;
    }
    StatusReply::Member {
        status: Status::from_bits_truncate(rng.u32(..)),
        config: RcomConfig {
            lvblen: rng.u32(..),
            lsflags: rng.u32(..),
            our_slot: rng.u16(..),
            generation: rng.u32(..),
        },
        slots: (0..rng.usize(0..=SLOTS_MAX))
            .map(|_| RcomSlot {
                node: NodeId(rng.u32(..)),
                slot: rng.u16(..),
            })
            .collect(),
    }
}

fn random_names_reply(rng: &mut Rng) -> NamesReply {
    let mut names = Vec::new();
    let mut left = NAMES_ROOM - 2;
    for _ in 0..rng.usize(0..200) {
        let name = random_name(rng);
        let Some(rest) = left.checked_sub(NamesReply::cost(&name)) else {
            break;
        };
        left = rest;
        names.push(name);
    }
    let mut reply = NamesReply::new(names, rng.bool());
    if rng.bool() {
        reply.room = NAMES_ROOM;
    }
    reply
}

pub(crate) fn random_rcom(rng: &mut Rng, kind: RcomType) -> Rcom {
    let body = match kind {
        RcomType::Status => RcomBody::Status {
            need_slots: rng.bool(),
        },
        RcomType::StatusReply => RcomBody::StatusReply(random_status_reply(rng)),
        RcomType::Names => RcomBody::Names {
            after: rng.bool().then(|| random_name(rng)),
        },
        RcomType::NamesReply => RcomBody::NamesReply(random_names_reply(rng)),
        RcomType::Lookup => RcomBody::Lookup {
            name: random_name(rng),
        },
        RcomType::LookupReply => RcomBody::LookupReply {
            master: match i32::try_from(rng.u32(..)) {
                Ok(node) => Ok(NodeId(u32::try_from(node).unwrap())),
                Err(_) => Err(WireResult(-rng.i32(1..200))),
            },
        },
        RcomType::Lock => RcomBody::Lock(random_lock(rng)),
        RcomType::LockReply => RcomBody::LockReply(random_lock(rng)),
    };
    Rcom {
        id: rng.u64(..),
        seq: rng.u64(..),
        seq_reply: rng.u64(..),
        body,
    }
}

pub(crate) fn random_payload(rng: &mut Rng) -> Payload {
    if rng.bool() {
        let kind = MsgType::ALL[rng.usize(0..14)];
        Payload::Message(random_message(rng, kind))
    } else {
        let kind = RcomType::ALL[rng.usize(0..8)];
        Payload::Rcom(random_rcom(rng, kind))
    }
}

pub(crate) fn random_packet(rng: &mut Rng) -> Packet {
    let lockspace = LockspaceId(rng.u32(..));
    let body = match rng.u8(..8) {
        0 => Body::Ack { next: rng.u32(..) },
        1..4 => Body::Payload {
            lockspace,
            payload: random_payload(rng),
        },
        4 => Body::Opts {
            seq: rng.u32(..),
            options: Vec::new(),
            version: Version::V3_2,
            inner: Inner::Fin,
        },
        _ => Body::Opts {
            seq: rng.u32(..),
            options: Vec::new(),
            version: Version::V3_2,
            inner: Inner::Payload {
                lockspace,
                payload: random_payload(rng),
            },
        },
    };
    let version = match &body {
        Body::Payload { .. } if rng.bool() => Version::V3_1,
        _ => Version::V3_2,
    };
    let has_room = match &body {
        Body::Opts { .. } => true,
        Body::Payload {
            payload: Payload::Rcom(rcom),
            ..
        } => matches!(rcom.kind(), RcomType::Status | RcomType::StatusReply),
        _ => false,
    };
    Packet {
        version,
        node: NodeId(rng.u32(..)),
        life: (has_room && rng.bool()).then(|| rng.u32(1..)),
        body,
    }
}

/// One direction of a connection: who sends, to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Direction {
    pub(crate) from: ([u8; 4], u16),
    pub(crate) to: ([u8; 4], u16),
    /// The first sequence number: a reused port is another connection.
    pub(crate) first: u32,
}

pub(crate) fn captures() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/captures");
    let mut found: Vec<_> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|e| e.unwrap().path())
        .collect();
    found.sort();
    assert!(!found.is_empty(), "{} has no captures", dir.display());
    found
}

pub(crate) fn unpack(path: &Path) -> Vec<u8> {
    let ran = Command::new("zstd")
        .args(["-dcq", "--"])
        .arg(path)
        .output()
        .expect("zstd (tests/lab/setup.sh installs it)");
    assert!(ran.status.success(), "zstd -dc {}", path.display());
    ran.stdout
}

/// All DLM streams of a capture. A hole in one fails the test: the fixtures have none.
pub(crate) fn streams(pcap: &[u8]) -> Vec<(Direction, Vec<u8>)> {
    let word = |at: usize| u32::from_le_bytes(pcap[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(20)), (0xa1b2_c3d4, 1), "a pcap of Ethernet frames");
    let mut isn: BTreeMap<_, u32> = BTreeMap::new();
    let mut found: BTreeMap<Direction, BTreeMap<u32, &[u8]>> = BTreeMap::new();
    let mut at = 24;
    while at < pcap.len() {
        let length = usize::try_from(word(at + 8)).unwrap();
        let ip = &pcap[at + 16 + 14..at + 16 + length];
        at += 16 + length;
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        let tcp = &ip[usize::from(ip[0] & 15) * 4..total];
        let port = |n: usize| u16::from_be_bytes([tcp[n], tcp[n + 1]]);
        let seq = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
        let from = (ip[12..16].try_into().unwrap(), port(0));
        let to = (ip[16..20].try_into().unwrap(), port(2));
        assert!(from.1 == DLM_PORT || to.1 == DLM_PORT, "only DLM traffic");
        if tcp[13] & 2 != 0 {
            isn.insert((from, to), seq.wrapping_add(1));
        }
        let first = *isn.entry((from, to)).or_insert(seq);
        let data = &tcp[usize::from(tcp[12] >> 4) * 4..];
        let segments = found.entry(Direction { from, to, first }).or_default();
        let old = segments.entry(seq.wrapping_sub(first)).or_default();
        if data.len() > old.len() {
            *old = data;
        }
    }
    found
        .into_iter()
        .map(|(direction, segments)| (direction, join(direction, &segments)))
        .collect()
}

fn join(direction: Direction, segments: &BTreeMap<u32, &[u8]>) -> Vec<u8> {
    let mut stream = Vec::new();
    for (&offset, data) in segments {
        let offset = usize::try_from(offset).unwrap();
        // A keep-alive probe stands one before the next byte and has none.
        if data.is_empty() {
            continue;
        }
        assert!(offset <= stream.len(), "{direction:?}: a hole before {offset}");
        let known = stream.len() - offset;
        stream.extend_from_slice(data.get(known..).unwrap_or(&[]));
    }
    stream
}

/// The packets of a stream.
pub(crate) fn packets(stream: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let length = packet_length(rest).unwrap().expect("a whole header");
        let (packet, after) = rest.split_at_checked(length).expect("a whole packet");
        found.push(packet);
        rest = after;
    }
    found
}

/// A capture of one connection to the DLM's port, a packet per segment.
pub(crate) fn pcap_of(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut pcap = Vec::new();
    // Link type 228: IPv4 without a link layer.
    for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 0xffff, 228] {
        pcap.extend_from_slice(&u32::to_le_bytes(word));
    }
    let mut seq = 1u32;
    for (time, packet) in (1u32..).zip(packets) {
        let total = u16::try_from(40 + packet.len()).unwrap();
        let mut frame = vec![0x45, 0];
        frame.extend_from_slice(&total.to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0x40, 0, 64, 6, 0, 0, 127, 0, 0, 1, 127, 0, 0, 2]);
        frame.extend_from_slice(&40000u16.to_be_bytes());
        frame.extend_from_slice(&DLM_PORT.to_be_bytes());
        frame.extend_from_slice(&seq.to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend_from_slice(packet);
        seq = seq.wrapping_add(u32::try_from(packet.len()).unwrap());
        let length = u32::from(total);
        for word in [time, 0, length, length] {
            pcap.extend_from_slice(&word.to_le_bytes());
        }
        pcap.extend_from_slice(&frame);
    }
    pcap
}
