//! Two links over connections that break at any byte.

use fastrand::Rng;

use super::*;
use crate::NodeId;
use crate::wire::testing::{random_message, random_payload};
use crate::wire::{
    Body, Extra, INNER_MAX, LockspaceId, Message, MsgType, NamesReply, Packet, Payload, Rcom, RcomBody,
    Version,
};

const SPACE: LockspaceId = LockspaceId(0x55b1_caaf);

fn status() -> Payload {
    Payload::Rcom(Rcom {
        id: 1,
        seq: 2,
        seq_reply: 0,
        body: RcomBody::Status { need_slots: false },
    })
}

fn is_status(payload: &Payload) -> bool {
    matches!(payload, Payload::Rcom(rcom) if matches!(rcom.body, RcomBody::Status { .. } | RcomBody::StatusReply(_)))
}

fn numbered(n: u32) -> Payload {
    let mut message = Message::new(MsgType::Bast);
    message.lkid = n;
    Payload::Message(message)
}

fn number(payload: &Payload) -> Option<u32> {
    match payload {
        Payload::Message(message) => Some(message.lkid),
        Payload::Rcom(_) => None,
    }
}

/// One end: its link, what it received, and the bytes on their way to it.
struct End {
    link: Link,
    framer: Framer,
    wire: Vec<u8>,
    sent: Vec<Payload>,
    got: Vec<Payload>,
    ignored: Vec<Ignored>,
}

impl End {
    fn new(us: u32, peer: u32, ours: Version) -> Self {
        let mut link = Link::new(NodeId(us), NodeId(peer), ours).of_life(Some(us));
        link.add_member();
        Self {
            link,
            framer: Framer::new(),
            wire: Vec::new(),
            sent: Vec::new(),
            got: Vec::new(),
            ignored: Vec::new(),
        }
    }
}

struct Pair {
    ends: [End; 2],
    up: bool,
}

impl Pair {
    fn new(a: Version, b: Version) -> Self {
        Self {
            ends: [End::new(1, 2, a), End::new(2, 1, b)],
            up: false,
        }
    }

    fn act<T>(&mut self, end: usize, act: impl FnOnce(&mut Link, &mut Vec<u8>) -> T) -> T {
        let mut out = Vec::new();
        let done = act(&mut self.ends[end].link, &mut out);
        if self.up {
            self.ends[1 - end].wire.append(&mut out);
        } else {
            assert!(out.is_empty(), "bytes for no connection");
        }
        done
    }

    fn send(&mut self, end: usize, payload: Payload) {
        if !is_status(&payload) {
            self.ends[end].sent.push(payload.clone());
        }
        self.act(end, |link, out| {
            link.send(SPACE, payload, out).unwrap();
            link.batch_end(out);
        });
    }

    fn connect(&mut self) {
        assert!(!self.up);
        self.up = true;
        for end in 0..2 {
            self.act(end, |link, out| link.connected(out));
            self.send(end, status());
        }
    }

    /// Whatever is on its way is gone. True: an end says that messages may be lost.
    fn cut(&mut self) -> bool {
        assert!(self.up);
        self.up = false;
        let mut lost = false;
        for end in &mut self.ends {
            end.wire.clear();
            end.framer = Framer::new();
            lost |= end.link.disconnected();
        }
        lost
    }

    /// Up to `most` bytes arrive at an end.
    fn arrive(&mut self, end: usize, most: usize) {
        let bytes: Vec<u8> = {
            let wire = &mut self.ends[end].wire;
            let n = wire.len().min(most);
            wire.drain(..n).collect()
        };
        self.ends[end].framer.push(&bytes);
        while let Some(packet) = self.ends[end].framer.next_packet().unwrap() {
            let sender = if end == 0 { 2 } else { 1 };
            // All that has room tells the sender's life.
            let tells = match &packet.body {
                Body::Opts { .. } => true,
                Body::Payload { payload, .. } => is_status(payload),
                _ => false,
            };
            assert_eq!(packet.life, tells.then_some(sender), "{packet:?}");
            match self.act(end, |link, out| link.receive(packet, out)).unwrap() {
                Received::Payload(space, payload) => {
                    assert_eq!(space, SPACE);
                    if !is_status(&payload) {
                        self.ends[end].got.push(payload);
                    }
                }
                Received::Nothing => {}
                Received::Ignored(why) => self.ends[end].ignored.push(why),
            }
        }
        self.act(end, |link, out| link.batch_end(out));
    }

    fn settle(&mut self) {
        while self.ends.iter().any(|e| !e.wire.is_empty()) {
            self.arrive(0, usize::MAX);
            self.arrive(1, usize::MAX);
        }
    }
}

/// Goal: protocol 3.2 loses, repeats and reorders nothing. Method: random sends, deliveries cut at any byte, and
/// disconnects at any time, over 300 seeds; in the end each side has exactly what the other sent.
#[test]
fn numbered_messages_arrive_once_and_in_order_over_any_disconnects() {
    let mut cuts = 0;
    for seed in 0..300 {
        let mut rng = Rng::with_seed(seed);
        let mut pair = Pair::new(Version::V3_2, Version::V3_2);
        if seed % 2 == 0 {
            let (a, b) = (u32::MAX - rng.u32(..60), u32::MAX - rng.u32(..60));
            pair.ends[0].link.begin_at(a, b);
            pair.ends[1].link.begin_at(b, a);
        }
        for _ in 0..400 {
            let end = rng.usize(..2);
            match rng.u8(..16) {
                0 if pair.up => {
                    assert!(!pair.cut());
                    cuts += 1;
                }
                0..4 if !pair.up => pair.connect(),
                4..9 => pair.send(end, random_payload(&mut rng)),
                _ => pair.arrive(end, rng.usize(..3000)),
            }
        }
        if pair.up {
            pair.cut();
        }
        pair.connect();
        pair.settle();
        for end in 0..2 {
            assert_eq!(pair.ends[end].got, pair.ends[1 - end].sent, "seed {seed}");
            assert!(pair.ends[end].link.unacknowledged() <= usize::try_from(ACK_AT_MOST_AFTER).unwrap());
        }
    }
    assert!(cuts > 1000);
}

/// Goal: with a 3.1 peer, on either side, all arrives in order while a connection lasts, and its loss is reported.
#[test]
fn without_numbers_all_arrives_in_order_until_a_loss_that_is_reported() {
    let versions = [
        (Version::V3_1, Version::V3_2),
        (Version::V3_2, Version::V3_1),
        (Version::V3_1, Version::V3_1),
    ];
    for seed in 0..90 {
        let mut rng = Rng::with_seed(seed);
        let (a, b) = versions[usize::try_from(seed % 3).unwrap()];
        let mut pair = Pair::new(a, b);
        for _ in 0..rng.u8(..5) {
            let end = rng.usize(..2);
            pair.send(end, random_payload(&mut rng));
        }
        pair.connect();
        for _ in 0..200 {
            let end = rng.usize(..2);
            match rng.u8(..2) {
                0 => pair.send(end, random_payload(&mut rng)),
                _ => pair.arrive(end, rng.usize(..3000)),
            }
        }
        if rng.bool() {
            pair.settle();
            for end in 0..2 {
                assert_eq!(pair.ends[end].got, pair.ends[1 - end].sent, "seed {seed}");
            }
        }
        for end in 0..2 {
            let (got, sent) = (&pair.ends[end].got, &pair.ends[1 - end].sent);
            assert_eq!(got.as_slice(), &sent[..got.len()], "seed {seed}");
            assert!(pair.ends[end].ignored.is_empty(), "{:?}", pair.ends[end].ignored);
        }
        // Whoever still does not know the other's version has not let it receive a message either.
        let known = pair.ends.iter().any(|e| e.link.version().is_some());
        assert!(pair.cut() || !known);
    }
}

/// Goal: nothing numbered leaves before the peer's version is known, then all of it does.
#[test]
fn messages_wait_for_the_version() {
    let mut pair = Pair::new(Version::V3_2, Version::V3_2);
    pair.up = true;
    for end in 0..2 {
        pair.act(end, |link, out| link.connected(out));
    }
    pair.send(0, numbered(7));
    assert!(pair.ends[1].wire.is_empty());
    pair.send(1, status());
    pair.settle();
    assert_eq!(pair.ends[1].got, [numbered(7)]);
}

fn connected_pair() -> Pair {
    let mut pair = Pair::new(Version::V3_2, Version::V3_2);
    pair.connect();
    pair.settle();
    pair
}

fn states(pair: &Pair) -> [State; 2] {
    [pair.ends[0].link.state(), pair.ends[1].link.state()]
}

/// Goal: the end of a link, the peer still sharing a lockspace at first.
#[test]
fn a_link_ends_when_the_peer_lets_go_too() {
    let mut pair = connected_pair();
    pair.send(0, numbered(1));
    pair.act(0, |link, out| {
        link.remove_member(out);
        link.shutdown(out);
    });
    assert_eq!(states(&pair), [State::FinWait1, State::Established]);
    pair.settle();
    assert_eq!(states(&pair), [State::FinWait2, State::CloseWait]);
    let refused = pair.act(0, |link, out| link.send(SPACE, numbered(2), out));
    assert_eq!(refused, Err(LinkError::Closing { peer: NodeId(2) }));
    // The peer may go on speaking until it lets go.
    pair.send(1, numbered(3));
    pair.settle();
    assert_eq!(pair.ends[0].got, [numbered(3)]);
    pair.act(1, |link, out| link.remove_member(out));
    assert_eq!(states(&pair), [State::FinWait2, State::LastAck]);
    pair.settle();
    assert_eq!(states(&pair), [State::Closed, State::Closed]);
    assert_eq!(pair.ends[1].got, [numbered(1)]);
    // And begins anew, from number 0.
    for end in 0..2 {
        pair.ends[end].link.add_member();
        pair.send(end, status());
    }
    pair.settle();
    pair.send(0, numbered(4));
    pair.send(1, numbered(5));
    pair.settle();
    assert_eq!(number(pair.ends[0].got.last().unwrap()), Some(5));
    assert_eq!(number(pair.ends[1].got.last().unwrap()), Some(4));
}

/// Goal: both ends say FIN at once, or one after its lockspaces are gone; a lost connection does not lose the FIN.
#[test]
fn both_ends_may_end_a_link_at_once_and_over_a_new_connection() {
    let mut pair = connected_pair();
    for end in 0..2 {
        pair.act(end, |link, out| {
            link.remove_member(out);
            link.shutdown(out);
        });
    }
    pair.settle();
    assert_eq!(states(&pair), [State::Closed, State::Closed]);

    let mut pair = connected_pair();
    pair.act(1, |link, out| link.remove_member(out));
    pair.act(0, |link, out| {
        link.remove_member(out);
        link.shutdown(out);
    });
    assert!(!pair.cut());
    pair.connect();
    pair.settle();
    assert_eq!(states(&pair), [State::Closed, State::Closed]);
}

fn receive(link: &mut Link, version: Version, node: u32, body: Body) -> Result<Received, LinkError> {
    let packet = Packet {
        version,
        node: NodeId(node),
        life: matches!(body, Body::Opts { .. }).then_some(2),
        body,
    };
    link.receive(packet, &mut Vec::new())
}

/// Goal: a peer that talks nonsense changes nothing.
#[test]
fn nonsense_is_refused_or_ignored() {
    let mut rng = Rng::with_seed(1);
    let mut pair = connected_pair();
    pair.send(0, numbered(1));
    let link = &mut pair.ends[0].link;
    let other = receive(link, Version::V3_2, 3, Body::Fin);
    assert!(matches!(
        other,
        Err(LinkError::WrongNode { found: NodeId(3), .. })
    ));
    for (version, body) in [
        (Version::V3_2, Body::Fin),
        (Version::V3_2, Body::Ack { next: 7 }),
        (Version::V3_2, Body::Ack { next: u32::MAX }),
        (Version::V3_1, Body::Ack { next: 1 }),
        (
            Version::V3_2,
            Body::Payload {
                lockspace: SPACE,
                payload: Payload::Message(random_message(&mut rng, MsgType::Grant)),
            },
        ),
        (
            Version::V3_2,
            Body::Opts {
                seq: 1,
                options: Vec::new(),
                version: Version::V3_2,
                inner: crate::wire::Inner::Fin,
            },
        ),
    ] {
        let shown = format!("{body:?}");
        let ignored = receive(link, version, 2, body);
        if shown != "Ack { next: 4294967295 }" {
            assert!(
                matches!(ignored, Ok(Received::Ignored(_))),
                "{shown}: {ignored:?}"
            );
        }
        assert_eq!(link.unacknowledged(), 1, "{shown}");
        assert_eq!(link.state(), State::Established);
    }
    pair.settle();
    pair.send(1, numbered(2));
    pair.settle();
    assert_eq!(pair.ends[0].link.unacknowledged(), 0);
}

/// Goal: a message that fits no packet is refused before a number is spent on it.
#[test]
fn too_long_a_message_is_refused_whole() {
    let mut pair = connected_pair();
    let name = crate::ResName::new(&[b'x'; 64]).unwrap();
    let names = vec![name; INNER_MAX / 64];
    let long = Payload::Rcom(Rcom {
        id: 0,
        seq: 0,
        seq_reply: 0,
        body: RcomBody::NamesReply(NamesReply::new(names, false)),
    });
    let refused = pair.act(0, |link, out| link.send(SPACE, long.clone(), out));
    assert!(matches!(refused, Err(LinkError::TooLong { .. })), "{refused:?}");
    pair.send(0, numbered(9));
    pair.settle();
    assert_eq!(pair.ends[1].got, [numbered(9)]);
    let mut fresh = Link::new(NodeId(1), NodeId(2), Version::V3_2);
    let refused = fresh.send(SPACE, long, &mut Vec::new());
    assert!(matches!(refused, Err(LinkError::TooLong { .. })));
}

/// Goal: bytes that are no packet end the connection, and nothing after them is believed.
#[test]
fn a_broken_stream_gives_nothing_more() {
    let mut message = Message::new(MsgType::Lookup);
    message.extra = Extra::Name(crate::ResName::new(b"x").unwrap());
    let good = Packet {
        version: Version::V3_2,
        node: NodeId(1),
        life: None,
        body: Body::Payload {
            lockspace: SPACE,
            payload: Payload::Message(message),
        },
    };
    let mut framer = Framer::new();
    let mut bytes = good.to_bytes();
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend(good.to_bytes());
    framer.push(&bytes);
    assert_eq!(framer.next_packet(), Ok(Some(good.clone())));
    let error = framer.next_packet().unwrap_err();
    assert_eq!((error.field, error.at), ("h_length", 12));
    framer.push(&good.to_bytes());
    assert_eq!(framer.next_packet(), Err(error));
}

/// What the link under test is sent by node 2: the message `n`, numbered `seq`, of a life or of none.
fn of_life(seq: u32, n: u32, life: Option<u32>) -> Packet {
    Packet {
        version: Version::V3_2,
        node: NodeId(2),
        life,
        body: Body::Opts {
            seq,
            options: Vec::new(),
            version: Version::V3_2,
            inner: crate::wire::Inner::Payload {
                lockspace: SPACE,
                payload: numbered(n),
            },
        },
    }
}

/// Goal: what one life of a peer's daemon says is never taken for what another says. Method: the next number comes from
/// another life, from one that tells none, and bare; then the membership says that the other one is the member.
#[test]
fn packets_of_another_life_are_refused_until_the_membership_says_so() {
    let out = &mut Vec::new();
    let mut link = Link::new(NodeId(1), NodeId(2), Version::V3_2).of_life(Some(1));
    link.add_member();
    let first = link.receive(of_life(0, 7, Some(20)), out);
    assert_eq!(first, Ok(Received::Payload(SPACE, numbered(7))));
    let refused = |found: Option<u32>| {
        Err(LinkError::WrongLife {
            peer: NodeId(2),
            found: found.unwrap_or_default(),
            expected: 20,
        })
    };
    for life in [Some(21), None] {
        assert_eq!(link.receive(of_life(1, 8, life), out), refused(life));
    }
    let mut question = of_life(0, 0, Some(21));
    question.body = Body::Payload {
        lockspace: SPACE,
        payload: status(),
    };
    assert_eq!(link.receive(question.clone(), out), refused(Some(21)));
    // An acknowledgement has no room to tell; nothing was sent, so this one says nothing new.
    question.body = Body::Ack { next: 0 };
    question.life = None;
    assert_eq!(link.receive(question, out), Ok(Received::Nothing));
    // None of that spent a number.
    let next = link.receive(of_life(1, 9, Some(20)), out);
    assert_eq!(next, Ok(Received::Payload(SPACE, numbered(9))));

    assert!(!link.expect_life(20), "the one that was heard");
    assert!(link.expect_life(21), "another one");
    assert_eq!(link.state(), State::Established);
    assert!(link.receive(of_life(2, 10, Some(20)), out).is_err());
    let fresh = link.receive(of_life(0, 11, Some(21)), out);
    assert_eq!(fresh, Ok(Received::Payload(SPACE, numbered(11))));
}

/// Goal: before anything was heard the membership's word counts, and a kernel, which tells no life, is heard.
#[test]
fn the_membership_knows_the_life_first_and_kernels_have_none() {
    let out = &mut Vec::new();
    let mut told = Link::new(NodeId(1), NodeId(2), Version::V3_2).of_life(Some(1));
    told.add_member();
    assert!(!told.expect_life(20));
    assert!(matches!(
        told.receive(of_life(0, 7, Some(19)), out),
        Err(LinkError::WrongLife {
            found: 19,
            expected: 20,
            ..
        })
    ));
    assert!(told.receive(of_life(0, 7, Some(20)), out).is_ok());
    let mut kernel = Link::new(NodeId(1), NodeId(2), Version::V3_2).of_life(Some(1));
    kernel.add_member();
    for seq in 0..3 {
        let heard = kernel.receive(of_life(seq, seq, None), out);
        assert_eq!(heard, Ok(Received::Payload(SPACE, numbered(seq))));
    }
}
