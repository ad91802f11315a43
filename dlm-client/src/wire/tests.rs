//! The codec against what kernels sent, against another decoder, and against itself.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use fastrand::Rng;

use super::hash::name_hash;
use super::testing::*;
use super::*;
use crate::NodeId;

fn payload(packet: &Packet) -> Option<&Payload> {
    match &packet.body {
        Body::Payload { payload, .. }
        | Body::Opts {
            inner: Inner::Payload { payload, .. },
            ..
        } => Some(payload),
        _ => None,
    }
}

/// Goal: what kernels sent is understood whole. Method: every packet of every capture decodes, encodes to the same
/// bytes, and its hash is that of its name.
#[test]
fn captured_packets_decode_and_encode_to_the_same_bytes() {
    let mut kinds = BTreeSet::new();
    let mut named = 0;
    for path in captures() {
        let pcap = unpack(&path);
        let mut count = 0;
        for (direction, stream) in streams(&pcap) {
            for bytes in packets(&stream) {
                let shown = || format!("{}, {direction:?}: {bytes:02x?}", path.display());
                let packet = Packet::decode(bytes).unwrap_or_else(|e| panic!("{e}: {}", shown()));
                assert_eq!(packet.to_bytes(), bytes, "{packet:?}: {}", shown());
                match payload(&packet) {
                    Some(Payload::Message(message)) => {
                        kinds.insert(format!("{:?}", message.kind));
                        if let Some(name) = message.name() {
                            assert_eq!(message.hash, name_hash(name), "{}", shown());
                            named += 1;
                        }
                    }
                    Some(Payload::Rcom(rcom)) => {
                        kinds.insert(format!("rcom {:?}", rcom.kind()));
                    }
                    None => {
                        kinds.insert("ack".to_owned());
                    }
                }
                count += 1;
            }
        }
        assert!(count > 50, "{}: only {count} packets", path.display());
    }
    assert!(named > 300, "only {named} names");
    // All there are.
    assert_eq!(kinds.len(), 14 + 8 + 1, "{kinds:?}");
}

/// Goal: every capture is said to be what it is.
#[test]
fn captures_are_described() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    let readme = std::fs::read_to_string(dir.join("README.md")).unwrap();
    for path in captures() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let name = name.strip_suffix(".pcap.zst").expect("a packed capture");
        assert!(readme.contains(&format!("| `{name}` |")), "{name}");
    }
    assert!(dir.join("recipes/capture.sh").is_file());
}

/// Goal: whatever we can say is read as it was meant.
#[test]
fn every_packet_reads_back_as_it_was_made() {
    let mut rng = Rng::with_seed(1);
    for _ in 0..20_000 {
        let packet = random_packet(&mut rng);
        let bytes = packet.to_bytes();
        assert_eq!(packet_length(&bytes), Ok(Some(bytes.len())));
        assert_eq!(Packet::decode(&bytes).as_ref(), Ok(&packet));
    }
}

/// Goal: no bytes make the decoder panic, and what it accepts it means. Method: whole packets with bits flipped, cut
/// short and extended; what still decodes must survive encoding and decoding.
#[test]
fn broken_packets_are_errors_or_other_packets() {
    let mut rng = Rng::with_seed(2);
    let mut samples: Vec<Vec<u8>> = (0..300).map(|_| random_packet(&mut rng).to_bytes()).collect();
    for path in captures() {
        for (_, stream) in streams(&unpack(&path)) {
            samples.extend(packets(&stream).into_iter().step_by(20).map(<[u8]>::to_vec));
        }
    }
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..200_000 {
        let mut bytes = rng.choice(&samples).unwrap().clone();
        for _ in 0..rng.usize(1..6) {
            let at = rng.usize(..bytes.len().min(160));
            bytes[at] ^= 1 << rng.u8(..8);
        }
        match rng.u8(..8) {
            0 => bytes.truncate(rng.usize(..bytes.len())),
            1 => bytes.extend((0..rng.usize(..40)).map(|_| rng.u8(..))),
            _ => {}
        }
        if rng.bool() && bytes.len() >= HEADER_LEN {
            let length = u16::try_from(bytes.len()).unwrap();
            bytes[12..14].copy_from_slice(&length.to_le_bytes());
        }
        let _ = packet_length(&bytes);
        match Packet::decode(&bytes) {
            Ok(packet) => {
                accepted += 1;
                let again = packet.to_bytes();
                assert!(again.len() <= PACKET_MAX, "{packet:?}");
                assert_eq!(Packet::decode(&again), Ok(packet));
            }
            Err(e) => {
                refused += 1;
                assert!(!e.to_string().is_empty());
            }
        }
    }
    assert!(accepted > 10_000 && refused > 10_000, "{accepted} {refused}");
}

fn edited(packet: &Packet, at: usize, value: &[u8]) -> WireError {
    let mut bytes = packet.to_bytes();
    bytes[at..at + value.len()].copy_from_slice(value);
    Packet::decode(&bytes).unwrap_err()
}

fn bare(payload: Payload) -> Packet {
    Packet {
        version: Version::V3_1,
        node: NodeId(3),
        life: None,
        body: Body::Payload {
            lockspace: LockspaceId(0x55b1_caaf),
            payload,
        },
    }
}

/// Goal: errors name what, where, found and expected.
#[test]
fn errors_name_the_field() {
    let mut rng = Rng::with_seed(3);
    let convert = bare(Payload::Message(random_message(&mut rng, MsgType::Convert)));
    let lock = bare(Payload::Rcom(random_rcom(&mut rng, RcomType::Lock)));
    let cases = [
        (&convert, 0, 4, "h_version at byte 0: found 0x4"),
        (&convert, 12, 3, "h_length at byte 12: found 0x3, expected 0x"),
        (
            &convert,
            14,
            9,
            "h_cmd at byte 14: found 0x9, expected 0x1 to 0x5",
        ),
        (
            &convert,
            16,
            15,
            "m_type at byte 16: found 0xf, expected 0x1 to 0xe",
        ),
        (
            &convert,
            72,
            6,
            "m_rqmode at byte 72: found 0x6, expected -1 or a mode, 0 to 5",
        ),
        (&lock, 16, 9, "rc_type at byte 16: found 0x9, expected 0x1 to 0x8"),
        (
            &lock,
            48 + 42,
            65,
            "rl_namelen at byte 90: found 0x41, expected 0x1 to 0x40",
        ),
    ];
    for (packet, at, value, text) in cases {
        let width = if matches!(at, 0 | 16 | 72) { 4 } else { 1 };
        let mut field = vec![0; width];
        field[0] = value;
        if at == 12 || at == 90 {
            field = vec![value, 0];
        }
        let error = edited(packet, at, &field).to_string();
        assert!(error.contains(text), "{error}");
    }
}

/// Goal: framing stops at a length no packet has, and waits for one it cannot see yet.
#[test]
fn a_stream_is_cut_at_the_lengths_of_its_packets() {
    assert_eq!(packet_length(&[0; 13]), Ok(None));
    let with = |length: u16| {
        let mut header = [0; 14];
        header[12..].copy_from_slice(&length.to_le_bytes());
        packet_length(&header)
    };
    assert!(with(15).is_err());
    assert_eq!(with(16), Ok(Some(16)));
    assert_eq!(with(4096), Ok(Some(4096)));
    assert!(with(4097).is_err());
}

/// The fields tshark shows of packets, a line each.
fn tshark(pcap: &Path, fields: &[&str]) -> Vec<String> {
    let mut command = Command::new("tshark");
    command.args(["-r"]).arg(pcap).args(["-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let ran = command.output().expect("tshark (tests/lab/setup.sh installs it)");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

/// A line of [`tshark`] for a packet that is as it should be.
fn expected_line(packet: &Packet) -> String {
    match payload(packet) {
        Some(Payload::Message(m)) => format!(
            "\t{}\t{}\t0x{:08x}\t{}\t{}\t",
            m.kind.number(),
            m.lkid,
            m.exflags.bits(),
            m.hash,
            m.result.0
        ),
        Some(Payload::Rcom(r)) => format!("\t\t\t\t\t\t{}", r.kind().number()),
        None => "\t\t\t\t\t\t".to_owned(),
    }
}

/// Goal: another decoder reads ours. Method: tshark over a capture made of random packets of every kind; nothing
/// malformed, and the fields it shows are those we meant. (tshark takes the body of a bare 3.2 packet for something
/// else, in the kernel's traffic too: those are left to the captures.)
#[test]
fn tshark_reads_our_packets() {
    let mut rng = Rng::with_seed(4);
    let all: Vec<Packet> = (0..2000)
        .map(|_| random_packet(&mut rng))
        .filter(|p| p.version == Version::V3_1 || !matches!(p.body, Body::Payload { .. }))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ours.pcap");
    let bytes: Vec<_> = all.iter().map(Packet::to_bytes).collect();
    std::fs::write(&path, pcap_of(&bytes)).unwrap();
    let fields = [
        "_ws.malformed",
        "dlm3.m.type",
        "dlm3.m.lkid",
        "dlm3.m.exflags",
        "dlm3.m.hash",
        "dlm3.m.result",
        "dlm3.rc.type",
    ];
    let lines = tshark(&path, &fields);
    assert_eq!(lines.len(), all.len());
    for (packet, line) in all.iter().zip(&lines) {
        assert_eq!(*line, expected_line(packet), "{packet:?}");
    }
}
