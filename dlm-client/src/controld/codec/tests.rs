use super::*;

/// (group, sender, bytes) of what stock daemons sent.
fn captured() -> Vec<(String, u32, Vec<u8>)> {
    let text = include_str!("../../../tests/data/cpg.txt");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let decoded: Vec<_> = lines
        .map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let [group, sender, len, hex] = fields[..] else {
                panic!("{line}")
            };
            let mut bytes: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                .collect();
            bytes.resize(len.parse().unwrap(), 0);
            (group.to_owned(), sender.parse().unwrap(), bytes)
        })
        .collect();
    assert!(decoded.len() >= 15, "only {} messages", decoded.len());
    decoded
}

#[test]
fn what_stock_daemons_sent_decodes_and_encodes_to_the_same_bytes() {
    for (group, sender, bytes) in captured() {
        let message = Message::decode(&bytes).unwrap();
        assert_eq!(message.header.from, sender);
        assert_eq!(message.encode(), bytes, "{message:?}");
        if group == "dlm:controld" {
            assert_eq!((message.header.version, message.header.global_id), ([0; 3], 0));
            assert!(matches!(message.body, Body::Protocol(_) | Body::FenceClear(_)));
        } else {
            assert_eq!(message.header.version, [3, 1, 1]);
            assert_eq!(message.header.global_id, global_id("fs"));
            assert!(matches!(message.body, Body::Start(_) | Body::PlocksDone(_)));
        }
    }
}

#[test]
fn a_captured_start_says_what_the_lab_saw() {
    let (_, _, bytes) = captured().into_iter().next().unwrap();
    let message = Message::decode(&bytes).unwrap();
    assert_eq!(
        (message.header.flags, message.header.data),
        (StartFlags::JOINING.bits(), 1)
    );
    let expected = ChangeInfo {
        started_count: 0,
        member_count: 1,
        joined_count: 1,
        remove_count: 0,
        failed_count: 0,
        members: vec![NodeId(2)],
    };
    assert_eq!(message.body, Body::Start(expected));
}

#[test]
fn global_ids_are_the_crc_of_the_group_name() {
    assert_eq!(global_id("foo"), 0x6ce2_339d);
    assert_eq!(global_id("myfs"), 0x55b1_caaf);
    assert_eq!(global_id("gfs2test"), 0x92b2_1727);
}

/// One of each kind, with every field set.
pub(in crate::controld) fn samples() -> Vec<Message> {
    let header = Header {
        version: [3, 1, 1],
        from: 7,
        to: 9,
        global_id: 0x1234_5678,
        flags: 3,
        data: 4,
        data2: 5,
        stamp: 0x1122_3344_5566_7788,
    };
    let change = ChangeInfo {
        started_count: 1,
        member_count: 2,
        joined_count: 3,
        remove_count: 4,
        failed_count: 5,
        members: vec![NodeId(1), NodeId(u32::MAX)],
    };
    let run = Version {
        flags: STATEFUL,
        ..Version::new(3, 1, 1)
    };
    let plock = PlockInfo {
        kind: PlockKind::Unlock,
        exclusive: true,
        wait: true,
        flags: PLOCK_CLOSE,
        pid: 99,
        node: NodeId(7),
        result: -11,
        lockspace: 0x1234_5678,
        number: u64::MAX,
        start: 1,
        end: 2,
        owner: 3,
    };
    let record = PlockRecord {
        start: 1,
        end: u64::MAX,
        owner: 2,
        pid: 3,
        node: NodeId(4),
        exclusive: true,
        waiting: true,
    };
    let fence = FenceInfo {
        version: 0,
        flags: FenceFlags::CLEAR_STARTUP | FenceFlags::CLEAR_UNKNOWN,
        node: 3,
        result: FENCE_ACKED,
        walltime: 1 << 40,
    };
    [
        Body::Protocol(Protocol {
            daemon_max: Version::new(3, 1, 1),
            kernel_max: Version::new(1, 1, 1),
            daemon_run: run,
            kernel_run: Version::new(1, 1, 1),
        }),
        Body::Start(change.clone()),
        Body::Plock(plock),
        Body::PlocksDone(change),
        Body::PlocksData(PlocksData {
            number: 5,
            owner: 0,
            continues: true,
            locks: vec![record; PLOCKS_PER_MESSAGE],
        }),
        Body::FenceResult(fence),
        Body::FenceClear(fence),
        Body::Other { kind: 16 },
    ]
    .into_iter()
    .map(|body| Message { header, body })
    .collect()
}

#[test]
fn every_kind_round_trips_and_every_shorter_piece_is_refused() {
    for message in samples() {
        let bytes = message.encode();
        assert!(bytes.len() <= 1064);
        assert_eq!(Message::decode(&bytes).as_ref(), Ok(&message));
        for len in 0..bytes.len() {
            let cut = Message::decode(&bytes[..len]);
            assert!(
                matches!(cut, Err(CodecError::Short { len: found, .. }) if found == len),
                "{message:?} cut to {len}: {cut:?}"
            );
        }
    }
}

#[test]
fn counts_that_lie_are_refused_before_anything_is_allocated() {
    let samples = samples();
    let mut start = samples[1].encode();
    start[48..52].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(
        Message::decode(&start),
        Err(CodecError::Value {
            what: "id_info_count",
            found: 0xffff_ffff,
            ..
        })
    ));
    start[48..52].copy_from_slice(&128_u32.to_le_bytes());
    assert!(matches!(Message::decode(&start), Err(CodecError::Short { .. })));
    start[40..44].copy_from_slice(&36_u32.to_le_bytes());
    assert!(matches!(
        Message::decode(&start),
        Err(CodecError::Value {
            what: "ls_info_size",
            ..
        })
    ));
    let mut data = samples[4].encode();
    data[52..56].copy_from_slice(&25_u32.to_le_bytes());
    assert!(matches!(
        Message::decode(&data),
        Err(CodecError::Value { found: 25, .. })
    ));
}

#[test]
fn ranges_that_end_before_they_start_and_half_versions_are_refused() {
    let samples = samples();
    let mut plock = samples[2].encode();
    plock[40 + 40..40 + 48].copy_from_slice(&3_u64.to_le_bytes());
    assert!(matches!(
        Message::decode(&plock),
        Err(CodecError::Value { found: 3, .. })
    ));
    let mut plock = samples[2].encode();
    plock[40] = 2;
    assert!(matches!(
        Message::decode(&plock),
        Err(CodecError::Value { found: 2, .. })
    ));
    for at in [40, 42, 44, 48, 58, 60, 64] {
        let mut protocol = samples[0].encode();
        protocol[at..at + 2].copy_from_slice(&[0, 0]);
        assert!(
            matches!(Message::decode(&protocol), Err(CodecError::Value { .. })),
            "byte {at}"
        );
    }
}

#[test]
fn random_bytes_never_do_more_than_fail() {
    let mut random = fastrand::Rng::with_seed(4);
    let samples = samples();
    for round in 0..200_000 {
        let mut bytes = samples[round % samples.len()].encode();
        for _ in 0..random.usize(1..8) {
            let at = random.usize(0..bytes.len().min(200));
            bytes[at] = random.u8(..);
        }
        bytes.truncate(random.usize(0..=bytes.len()));
        if let Ok(message) = Message::decode(&bytes) {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }
}
