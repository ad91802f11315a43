use fastrand::Rng;

use super::{Config, Engine, LockRole, Member, Output, Start, TimerId};
use crate::wire::testing::{random_message, random_rcom};
use crate::wire::{Extra, LockspaceId, Message, MsgType, Payload, Rcom, RcomBody, RcomType, WireResult};
use crate::{Event, Lkf, LockId, Mode, NodeId, ResName, Status};

const US: NodeId = NodeId(2);

fn name(number: u64) -> ResName {
    ResName::new(format!("{:8x}{number:16x}", 2).as_bytes()).unwrap()
}

fn start(nodes: &[u32]) -> Start {
    let members = nodes.iter().map(|&n| Member {
        node: NodeId(n),
        weight: 1,
        renewed: false,
    });
    Start {
        members: members.collect(),
        failed: Vec::new(),
    }
}

/// A peer that answers recovery as an empty member does, and shows everything else.
struct Peer {
    engine: Engine,
    peer: Engine,
    events: Vec<Event>,
    sent: Vec<Message>,
    timers: Vec<TimerId>,
}

impl Peer {
    /// Node 2 is the engine looked at, node 1 answers.
    fn new() -> Self {
        let config = |node| Config::new(NodeId(node), LockspaceId(1), 5);
        let mut pair = Self {
            engine: Engine::new(config(2)),
            peer: Engine::new(config(1)),
            events: Vec::new(),
            sent: Vec::new(),
            timers: Vec::new(),
        };
        pair.recover();
        assert!(pair.engine.is_running() && pair.peer.is_running());
        pair
    }

    fn recover(&mut self) {
        self.engine.stop();
        self.peer.stop();
        self.engine.start(&start(&[1, 2]));
        self.peer.start(&start(&[1, 2]));
        for _ in 0..200 {
            let mut quiet = true;
            while let Some(output) = self.engine.output() {
                quiet = false;
                match output {
                    Output::Send { payload, .. } => self.peer.receive(US, payload),
                    Output::Timer { id, .. } => self.timers.push(id),
                    _ => {}
                }
            }
            let mut polls = Vec::new();
            while let Some(output) = self.peer.output() {
                quiet = false;
                match output {
                    Output::Send { payload, .. } => self.engine.receive(NodeId(1), payload),
                    Output::Timer { id, after } if after.as_secs() < 5 => polls.push(id),
                    _ => {}
                }
            }
            for id in polls {
                self.peer.timer(id);
            }
            for id in std::mem::take(&mut self.timers) {
                self.engine.timer(id);
            }
            if quiet && self.engine.is_running() && self.peer.is_running() {
                break;
            }
        }
        self.drain();
        self.sent.clear();
        self.events.clear();
    }

    fn drain(&mut self) {
        while let Some(output) = self.engine.output() {
            match output {
                Output::Send {
                    payload: Payload::Message(message),
                    ..
                } => self.sent.push(message),
                Output::Event(event) => self.events.push(event),
                Output::Timer { id, .. } => self.timers.push(id),
                _ => {}
            }
        }
    }

    fn receive(&mut self, message: Message) {
        self.engine.receive(NodeId(1), Payload::Message(message));
        self.drain();
    }

    /// A name whose directory node is `node`.
    fn name_in(&self, node: u32) -> ResName {
        let table = [NodeId(1), NodeId(2)];
        (0..)
            .map(name)
            .find(|name| {
                let hash = crate::wire::hash::name_hash(name);
                crate::wire::hash::directory_node(&table, hash) == Some(NodeId(node))
            })
            .unwrap()
    }
}

fn request(name: ResName, lkid: u32, mode: Mode, flags: Lkf) -> Message {
    let mut message = Message::new(MsgType::Request);
    message.lkid = lkid;
    message.nodeid = 2;
    message.grmode = None;
    message.rqmode = Some(mode);
    message.exflags = flags;
    message.asts = crate::wire::Asts::all();
    message.hash = crate::wire::hash::name_hash(&name);
    message.extra = Extra::Name(name);
    message
}

#[test]
fn the_reply_to_a_request_goes_before_the_basts_it_causes() {
    let mut pair = Peer::new();
    let name = pair.name_in(2);
    let held = pair.engine.request(&name, Mode::Pr, Lkf::empty(), 1).unwrap();
    pair.drain();
    pair.receive(request(name, 7, Mode::Pr, Lkf::empty()));
    pair.receive(request(name, 8, Mode::Ex, Lkf::empty()));
    let kinds: Vec<_> = pair.sent.iter().map(|m| (m.kind, m.remid, m.result)).collect();
    assert_eq!(
        kinds,
        [
            (MsgType::RequestReply, 7, WireResult::OK),
            (MsgType::RequestReply, 8, WireResult::INPROGRESS),
            (MsgType::Bast, 7, WireResult::OK),
        ]
    );
    let told =
        matches!(pair.events[..], [Event::Cast(_), Event::Bast { id, mode: Mode::Ex, .. }] if id == held);
    assert!(told, "{:?}", pair.events);
}

#[test]
fn a_conversion_down_is_done_without_an_answer_on_both_sides() {
    let mut pair = Peer::new();
    let name = pair.name_in(2);
    pair.receive(request(name, 7, Mode::Ex, Lkf::VALBLK));
    let remid = pair.sent.pop().unwrap().lkid;
    let waiter = pair.engine.request(&name, Mode::Pr, Lkf::VALBLK, 1).unwrap();
    pair.drain();
    pair.sent.clear();
    let mut convert = request(name, 7, Mode::Pr, Lkf::VALBLK | Lkf::CONVERT);
    convert.kind = MsgType::Convert;
    convert.remid = remid;
    convert.grmode = Some(Mode::Ex);
    convert.extra = Extra::Lvb([9; 32]);
    pair.receive(convert);
    assert_eq!(pair.sent, []);
    match pair.events[..] {
        [Event::Cast(cast)] => {
            assert_eq!(
                (cast.id, cast.status, cast.lvb),
                (waiter, Status::Granted, Some([9; 32]))
            );
        }
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_that_is_not_the_master_says_so_and_a_directory_node_is_obeyed() {
    let mut pair = Peer::new();
    let theirs = pair.name_in(1);
    // Node 1 is the directory node: what it asks us for, we master.
    pair.receive(request(theirs, 7, Mode::Pr, Lkf::empty()));
    assert_eq!(pair.sent.pop().unwrap().result, WireResult::OK);
    let unknown = Message::new(MsgType::Cancel);
    pair.receive(unknown);
    let answer = pair.sent.pop().unwrap();
    assert_eq!(
        (answer.kind, answer.result),
        (MsgType::CancelReply, WireResult::NOENT)
    );
}

#[test]
fn unused_resources_are_forgotten_and_their_directory_node_hears_it() {
    let mut pair = Peer::new();
    let theirs = pair.name_in(1);
    pair.receive(request(theirs, 7, Mode::Pr, Lkf::empty()));
    let remid = pair.sent.pop().unwrap().lkid;
    let mut unlock = Message::new(MsgType::Unlock);
    (unlock.lkid, unlock.remid) = (7, remid);
    pair.receive(unlock);
    assert_eq!(pair.sent.pop().unwrap().result, WireResult::UNLOCK);
    assert_eq!(pair.engine.resource_count(), 1);
    for _ in 0..2 {
        for id in std::mem::take(&mut pair.timers) {
            pair.engine.timer(id);
        }
        pair.drain();
    }
    assert_eq!(pair.engine.resource_count(), 0);
    let removed: Vec<_> = pair.sent.iter().map(|m| (m.kind, m.extra)).collect();
    assert_eq!(removed, [(MsgType::Remove, Extra::Name(theirs))]);
}

#[test]
fn calls_during_recovery_are_kept_and_their_casts_follow_recover_done() {
    let mut pair = Peer::new();
    let name = pair.name_in(2);
    let held = pair.engine.request(&name, Mode::Ex, Lkf::empty(), 1).unwrap();
    pair.drain();
    pair.engine.stop();
    pair.engine.convert(held, Mode::Nl, Lkf::empty(), None).unwrap();
    let new = pair.engine.request(&name, Mode::Ex, Lkf::empty(), 2).unwrap();
    let dropped = pair.engine.request(&name, Mode::Ex, Lkf::empty(), 3).unwrap();
    pair.engine.cancel(dropped).unwrap();
    assert!(pair.engine.convert(new, Mode::Pr, Lkf::empty(), None).is_err());
    pair.drain();
    pair.engine.start(&start(&[2]));
    pair.drain();
    let seen: Vec<(LockId, Status)> = pair
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Cast(cast) => Some((cast.id, cast.status)),
            _ => None,
        })
        .collect();
    assert_eq!(
        seen,
        [
            (held, Status::Granted),
            (held, Status::Granted),
            (new, Status::Granted),
            (dropped, Status::Canceled),
        ]
    );
    let done = pair
        .events
        .iter()
        .position(|e| matches!(e, Event::RecoverDone { .. }));
    assert_eq!((pair.events[1].clone(), done), (Event::RecoverPrep, Some(2)));
}

#[test]
fn orphans_stay_until_they_are_purged() {
    let mut pair = Peer::new();
    let name = pair.name_in(2);
    let orphan = pair.engine.request(&name, Mode::Ex, Lkf::PERSISTENT, 1).unwrap();
    let waiter = pair.engine.request(&name, Mode::Pr, Lkf::empty(), 2).unwrap();
    pair.engine.orphan(orphan, 77).unwrap();
    pair.drain();
    pair.events.clear();
    let mut purge = Message::new(MsgType::Purge);
    purge.pid = 78;
    pair.receive(purge);
    assert_eq!(pair.events, []);
    purge.pid = 77;
    pair.receive(purge);
    let granted =
        matches!(pair.events[..], [Event::Cast(cast)] if cast.id == waiter && cast.mode == Mode::Pr);
    assert!(granted, "{:?}", pair.events);
}

#[test]
fn a_member_with_another_value_block_length_is_fatal() {
    let mut pair = Peer::new();
    pair.engine.stop();
    pair.engine.start(&start(&[1, 2]));
    let question = std::iter::from_fn(|| pair.engine.output()).find_map(|output| match output {
        Output::Send {
            payload: Payload::Rcom(rcom),
            ..
        } => Some(rcom),
        _ => None,
    });
    let question = question.expect("a ping");
    let mut answer = question.clone();
    answer.seq_reply = question.seq;
    answer.body = RcomBody::StatusReply(crate::wire::StatusReply::Member {
        status: crate::wire::Status::empty(),
        config: crate::wire::RcomConfig {
            lvblen: 64,
            lsflags: 0,
            our_slot: 1,
            generation: 1,
        },
        slots: Vec::new(),
    });
    pair.engine.receive(NodeId(1), Payload::Rcom(answer));
    pair.drain();
    assert!(
        matches!(pair.events[..], [.., Event::Fatal(_)]),
        "{:?}",
        pair.events
    );
    let refused = pair.engine.request(&name(1), Mode::Nl, Lkf::empty(), 0);
    assert!(refused.is_err());
}

/// A message that comes close to what would be believed.
fn hostile(rng: &mut Rng, engine: &Engine) -> Payload {
    let all: Vec<_> = engine
        .resources_info()
        .into_iter()
        .flat_map(|info| info.locks)
        .collect();
    let (id, other) = match rng.choice(&all) {
        Some(lock) if rng.u8(..8) > 0 => {
            let other = match lock.role {
                LockRole::Mastered { .. } => lock.remid,
                _ => rng.u32(..),
            };
            (lock.id.0, other)
        }
        _ => (rng.u32(..40), rng.u32(..40)),
    };
    let small = name(rng.u64(..4));
    if rng.u8(..4) > 0 {
        let kind = MsgType::ALL[rng.usize(..14)];
        let mut message = random_message(rng, kind);
        (message.remid, message.lkid) = (id, other);
        if kind == MsgType::LookupReply {
            (message.lkid, message.nodeid) = (id, rng.i32(-1..5));
        }
        if kind.has_name() {
            message.lkid = rng.u32(..40);
            message.extra = Extra::Name(small);
        }
        message.flags = crate::wire::MsgFlags::empty();
        let results = [
            WireResult::OK,
            WireResult::INPROGRESS,
            WireResult::AGAIN,
            WireResult::DEADLK,
            WireResult::BADR,
            WireResult::NOTBLK,
            WireResult::UNLOCK,
            WireResult::CANCEL,
            WireResult::NOENT,
            WireResult::INVAL,
        ];
        message.result = results[rng.usize(..results.len())];
        return Payload::Message(message);
    }
    let kind = RcomType::ALL[rng.usize(..8)];
    let mut rcom: Rcom = random_rcom(rng, kind);
    rcom.seq_reply = engine.recovery_state().0;
    rcom.id = match kind {
        RcomType::StatusReply | RcomType::NamesReply => engine.rcom_id,
        _ => rng.u64(..8),
    };
    match &mut rcom.body {
        RcomBody::Lock(lock) | RcomBody::LockReply(lock) => {
            (lock.name, lock.lkid) = (small, id);
        }
        RcomBody::Lookup { name } => *name = small,
        RcomBody::LookupReply { master } => *master = Ok(NodeId(rng.u32(1..4))),
        RcomBody::StatusReply(crate::wire::StatusReply::Member { config, .. }) if rng.u8(..20) > 0 => {
            (config.lvblen, config.lsflags) = (32, 0);
        }
        _ => {}
    }
    Payload::Rcom(rcom)
}

/// Goal: no message of a peer, however wrong, makes the engine panic, loop or take more and more memory. Method: seeded
/// messages that nearly fit, between calls, recoveries and timers.
#[test]
fn hostile_messages_are_survived() {
    let (mut handled, mut lost) = (0, 0);
    for seed in 0..150 {
        let mut rng = Rng::with_seed(seed);
        let mut pair = Peer::new();
        let mut ids: Vec<LockId> = Vec::new();
        for _ in 0..400 {
            match rng.u8(..16) {
                0..=1 => {
                    let mode = Mode::ALL[rng.usize(..6)];
                    let flags = Lkf::from_bits_truncate(rng.u32(..)) & !(Lkf::PERSISTENT | Lkf::TIMEOUT);
                    if let Ok(id) = pair.engine.request(&name(rng.u64(..4)), mode, flags, 0) {
                        ids.push(id);
                    }
                }
                2 if !ids.is_empty() => {
                    let mode = Mode::ALL[rng.usize(..6)];
                    let _busy = pair
                        .engine
                        .convert(ids[rng.usize(..ids.len())], mode, Lkf::VALBLK, None);
                }
                3 if !ids.is_empty() => {
                    let flags = if rng.bool() { Lkf::FORCEUNLOCK } else { Lkf::VALBLK };
                    let _busy = pair
                        .engine
                        .unlock(ids[rng.usize(..ids.len())], flags, Some(&[1; 32]));
                }
                4 if !ids.is_empty() => {
                    let _nothing = pair.engine.cancel(ids[rng.usize(..ids.len())]);
                }
                5 => {
                    for id in std::mem::take(&mut pair.timers) {
                        pair.engine.timer(id);
                    }
                }
                6 if rng.u8(..8) == 0 => {
                    pair.engine.stop();
                    let members = [&[1, 2][..], &[2], &[1, 2, 3]][rng.usize(..3)];
                    pair.engine.start(&start(members));
                }
                _ => {
                    let payload = hostile(&mut rng, &pair.engine);
                    let from = NodeId(if rng.u8(..30) == 0 { rng.u32(1..5) } else { 1 });
                    pair.engine.receive(from, payload);
                }
            }
            let before = pair.sent.len();
            pair.drain();
            assert!(pair.sent.len() - before < 4000, "one message makes a flood");
            assert!(pair.engine.lock_count() < 1000);
            handled += 1;
            if pair.events.iter().any(|event| matches!(event, Event::Fatal(_))) {
                lost += 1;
                pair = Peer::new();
                ids.clear();
            }
        }
    }
    assert!(
        lost > 20 && lost < handled / 20,
        "{lost} lockspaces lost in {handled} steps"
    );
}

/// Without its tests, all that decides anything is free of sockets, files, clocks and threads.
#[test]
fn nothing_that_decides_touches_the_world() {
    fn sources(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else {
                found.push(path);
            }
        }
    }
    let top = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for folder in ["engine", "midcomms", "plock", "wire", "controld"] {
        sources(&top.join(folder), &mut found);
    }
    // What drives it, and what only tests use.
    let outside = ["tests.rs", "testing.rs", "driver.rs", "hands.rs"];
    found.retain(|path| outside.iter().all(|name| !path.ends_with(name)));
    assert!(found.len() > 30, "{found:?}");
    for path in found {
        let text = std::fs::read_to_string(&path).unwrap();
        for word in [
            "std::net",
            "std::fs",
            "std::io",
            "std::os",
            "std::thread",
            "std::process",
            "std::sync",
            "rustix",
            "libloading",
            "Instant",
            "SystemTime",
            "fastrand",
        ] {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
    }
}
