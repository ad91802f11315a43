//! What the kernel's log says of a lockspace: recoveries, members, slots.
//!
//! The device tells none of it. The kernel prints the begin of a recovery before it grants anything because of it, so
//! that whoever has read the log to its end after he read a grant knows whether that grant may be believed. The log does
//! not tell whether a member that was removed had left or failed; that it no longer writes is sure in both cases, for
//! recovery begins only after fencing.

use crate::{Event, NodeId, Slot};

/// The longest list of slots the kernel prints; one of this length was cut off.
const SLOTS_TEXT_MAX: usize = 126;

/// A line about our lockspace.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Joining,
    Begin,
    Removed(NodeId),
    Slots { generation: u32, slots: Vec<Slot> },
    CutOff,
    Done(Option<u32>),
    DaemonGone,
    Other,
}

/// What a record means to those who wait for the lockspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Nothing.
    Nothing,
    /// Hold back what is granted.
    Prepare,
    /// A recovery is over.
    Settled(Vec<Event>),
    /// The slots are needed and not told.
    NoSlots(&'static str),
    /// It can no longer be followed.
    Lost(String),
}

/// Follows one lockspace.
#[derive(Debug)]
pub(super) struct Follower {
    /// The begin of every line about it.
    prefix: String,
    us: NodeId,
    need_slots: bool,
    joined: bool,
    recovering: bool,
    slots: Vec<Slot>,
    /// Printed in the recovery under way.
    next: Option<(u32, Vec<Slot>)>,
    cut_off: bool,
    /// Why the slots are not known, if they are not.
    untold: Option<&'static str>,
    removed: Vec<NodeId>,
    generation: u32,
    /// Is there anything about it in the log?
    heard_of: bool,
    /// The lock daemon ended in the middle of it all.
    deserted: bool,
}

const NO_ROOM: &str = "the kernel's log has no room for those of so many members; fewer members, or our own lock manager \
                       instead of the kernel's";
const NOT_SAID: &str = "the kernel's log tells of a recovery, but not of its slots";

const FORGOTTEN: &str = "the kernel's log does not reach back to the lockspace's last recovery, so that nobody knows \
                         whether one is under way: start this machine anew, or let another node join or leave the \
                         lockspace, and try again";
const DESERTED: &str = "dlm_controld is gone; its lockspaces stand still until this machine starts anew";

/// The text of a record of /dev/kmsg, if the kernel itself wrote it.
fn text(record: &[u8]) -> Option<&str> {
    let line = record.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let (head, text) = line.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    // Facility 0; others may write there, too, but not as the kernel.
    (priority < 8).then_some(text)
}

/// Bytes that are not plain in the log.
fn escaped(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_graphic() && byte != b'\\' || byte == b' ' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

fn slots(generation: u32, rest: &str) -> Option<Line> {
    let (number, list) = rest.split_once(' ').unwrap_or((rest, ""));
    let number: usize = number.parse().ok()?;
    // A blank before each.
    if list.len().saturating_add(1) >= SLOTS_TEXT_MAX {
        return Some(Line::CutOff);
    }
    let mut slots = Vec::new();
    for pair in list.split_ascii_whitespace() {
        let (slot, node) = pair.split_once(':')?;
        slots.push(Slot {
            node: NodeId(node.parse().ok()?),
            slot: slot.parse().ok()?,
        });
    }
    if slots.len() != number {
        return Some(Line::CutOff);
    }
    Some(Line::Slots { generation, slots })
}

impl Follower {
    pub(super) fn new(lockspace: &str, us: NodeId, need_slots: bool) -> Self {
        Self {
            prefix: format!("dlm: {}: ", escaped(lockspace)),
            us,
            need_slots,
            joined: false,
            recovering: true,
            slots: Vec::new(),
            next: None,
            cut_off: false,
            untold: None,
            removed: Vec::new(),
            generation: 0,
            heard_of: false,
            deserted: false,
        }
    }

    fn line(&self, record: &[u8]) -> Line {
        let Some(text) = text(record) else {
            return Line::Other;
        };
        if text.starts_with("dlm: dlm user daemon left") {
            return Line::DaemonGone;
        }
        let Some(said) = text.strip_prefix(&self.prefix) else {
            return Line::Other;
        };
        let words: Vec<&str> = said.split(' ').collect();
        match words.as_slice() {
            ["joining", "the", "lockspace", ..] => Line::Joining,
            ["dlm_recover", seq] if seq.parse::<u64>().is_ok() => Line::Begin,
            ["dlm_recover", _, "generation", generation, "done:", ..] => Line::Done(generation.parse().ok()),
            ["remove", "member", node, ..] => node
                .parse()
                .map_or(Line::Other, |node| Line::Removed(NodeId(node))),
            ["generation", generation, "slots", ..] => {
                let rest = said.splitn(4, ' ').nth(3).unwrap_or("");
                let line = generation.parse().ok().and_then(|g| slots(g, rest));
                line.unwrap_or(Line::CutOff)
            }
            _ => Line::Other,
        }
    }

    /// Takes a record in that was written before we came: nobody is told.
    pub(super) fn history(&mut self, record: &[u8]) {
        match self.line(record) {
            Line::DaemonGone => self.deserted = true,
            Line::Joining => {
                *self = Self {
                    prefix: std::mem::take(&mut self.prefix),
                    heard_of: true,
                    ..Self::new("", self.us, self.need_slots)
                }
            }
            line => {
                let _told_before = self.take(line);
            }
        }
        self.removed.clear();
    }

    /// After the history: what there is to begin with.
    pub(super) fn begin(&mut self) -> News {
        if self.deserted {
            return News::Lost(DESERTED.to_owned());
        }
        if !self.heard_of {
            return News::Lost(FORGOTTEN.to_owned());
        }
        if self.recovering {
            // The recovery under way will say it.
            self.joined = false;
            (self.slots, self.untold) = (Vec::new(), None);
            return News::Nothing;
        }
        self.settle()
    }

    /// Takes a new record in.
    pub(super) fn record(&mut self, record: &[u8]) -> News {
        let line = self.line(record);
        self.take(line)
    }

    fn take(&mut self, line: Line) -> News {
        self.heard_of |= !matches!(line, Line::Other | Line::DaemonGone);
        match line {
            Line::Begin => {
                self.next = None;
                self.cut_off = false;
                let first = !std::mem::replace(&mut self.recovering, true);
                if first && self.joined {
                    return News::Prepare;
                }
            }
            Line::Removed(node) => self.removed.push(node),
            Line::Slots { generation, slots } => self.next = Some((generation, slots)),
            Line::CutOff => self.cut_off = true,
            Line::Done(generation) => return self.done(generation),
            Line::DaemonGone => {
                return News::Lost(DESERTED.to_owned());
            }
            Line::Joining | Line::Other => {}
        }
        News::Nothing
    }

    fn done(&mut self, generation: Option<u32>) -> News {
        let mut events = Vec::new();
        for node in std::mem::take(&mut self.removed) {
            let known = self.slots.iter().find(|slot| slot.node == node).copied();
            self.slots.retain(|slot| slot.node != node);
            // A second time removed in one recovery, or before we came, unless nobody has a slot that we know.
            let untold = self.untold.map(|_| Slot { node, slot: 0 });
            let Some(failed) = known.or(untold) else { continue };
            events.push(Event::RecoverSlot { failed });
        }
        self.recovering = false;
        (self.slots, self.untold) = (Vec::new(), None);
        match (self.next.take(), generation) {
            (Some((generation, slots)), _) if !self.cut_off => {
                (self.generation, self.slots) = (generation, slots);
            }
            (_, Some(generation)) => {
                self.generation = generation;
                self.untold = Some(if self.cut_off { NO_ROOM } else { NOT_SAID });
            }
            (_, None) => {
                return News::Lost(
                    "the kernel's log tells of the end of a recovery, but not of which".to_owned(),
                );
            }
        }
        match self.settle() {
            News::Settled(done) => {
                events.extend(done);
                News::Settled(events)
            }
            other => other,
        }
    }

    fn settle(&mut self) -> News {
        let our_slot = match self.untold {
            Some(why) if self.need_slots => return News::NoSlots(why),
            Some(_) => 0,
            None => {
                let Some(ours) = self.slots.iter().find(|slot| slot.node == self.us) else {
                    let us = self.us.0;
                    return News::Lost(format!(
                        "the kernel's log gives node {us} no slot, and we are node {us}"
                    ));
                };
                ours.slot
            }
        };
        let done = Event::RecoverDone {
            slots: self.slots.clone(),
            our_slot,
            generation: self.generation,
        };
        self.joined = true;
        News::Settled(vec![done])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &str) -> Vec<u8> {
        format!("6,339,5140900,-;{text}\n SUBSYSTEM=x\n").into_bytes()
    }

    fn say(follower: &mut Follower, texts: &[&str]) -> Vec<News> {
        let news = texts.iter().map(|text| follower.record(&record(text)));
        news.filter(|news| *news != News::Nothing).collect()
    }

    fn slot(slot: u16, node: u32) -> Slot {
        Slot {
            node: NodeId(node),
            slot,
        }
    }

    fn done(slots: &[Slot], our_slot: u16, generation: u32) -> Event {
        Event::RecoverDone {
            slots: slots.to_vec(),
            our_slot,
            generation,
        }
    }

    const JOIN: [&str; 5] = [
        "dlm: foo: joining the lockspace group...",
        "dlm: foo: dlm_recover 1",
        "dlm: foo: generation 2 slots 2 1:1 2:2",
        "dlm: foo: dlm_recover_directory 0 in 0 new",
        "dlm: foo: dlm_recover 1 generation 2 done: 32 ms",
    ];

    fn joined() -> Follower {
        let mut follower = Follower::new("foo", NodeId(2), true);
        let both = [slot(1, 1), slot(2, 2)];
        assert_eq!(
            say(&mut follower, &JOIN),
            [News::Settled(vec![done(&both, 2, 2)])]
        );
        follower
    }

    #[test]
    fn a_death_is_prepared_named_and_settled() {
        let mut follower = joined();
        let news = say(
            &mut follower,
            &[
                "dlm: foo: dlm_recover 3",
                "dlm: bar: dlm_recover 3 generation 9 done: 1 ms",
                "dlm: foo: remove member 1",
                "dlm: foo: dlm_recover 3 error -4",
                "dlm: foo: dlm_recover 5",
                "dlm: foo: generation 3 slots 1 2:2",
            ],
        );
        assert_eq!(news, [News::Prepare]);
        assert!(follower.recovering);
        let ours = [slot(2, 2)];
        assert_eq!(
            say(
                &mut follower,
                &["dlm: foo: dlm_recover 5 generation 3 done: 7 ms"]
            ),
            [News::Settled(vec![
                Event::RecoverSlot { failed: slot(1, 1) },
                done(&ours, 2, 3)
            ])]
        );
        assert!(!follower.recovering);
    }

    #[test]
    fn history_gives_the_last_membership_or_a_recovery_under_way() {
        let mut follower = Follower::new("foo", NodeId(2), true);
        // A log that has been overwritten since: there is nothing that would end a wait.
        follower.history(&record("dlm: bar: dlm_recover 1 generation 1 done: 1 ms"));
        assert_eq!(follower.begin(), News::Lost(FORGOTTEN.to_owned()));
        let older = [
            "dlm: foo: dlm_recover 1",
            "dlm: foo: generation 1 slots 1 1:2",
            "dlm: foo: dlm_recover 1 generation 1 done: 1 ms",
        ];
        for text in older.iter().chain(&JOIN) {
            follower.history(&record(text));
        }
        assert_eq!(
            follower.begin(),
            News::Settled(vec![done(&[slot(1, 1), slot(2, 2)], 2, 2)])
        );
        follower = Follower::new("foo", NodeId(2), true);
        for text in JOIN.iter().chain(&["dlm: foo: dlm_recover 3"]) {
            follower.history(&record(text));
        }
        assert_eq!(follower.begin(), News::Nothing);
        assert!(follower.recovering && !follower.joined);
        // The daemon of an earlier life, and that of this one.
        follower = Follower::new("foo", NodeId(2), true);
        follower.history(&record("dlm: dlm user daemon left 1 lockspaces"));
        for text in JOIN {
            follower.history(&record(text));
        }
        follower.history(&record("dlm: dlm user daemon left 1 lockspaces"));
        assert!(matches!(follower.begin(), News::Lost(_)));
        for text in JOIN {
            follower.history(&record(text));
        }
        assert!(matches!(follower.begin(), News::Settled(_)));
    }

    #[test]
    fn only_the_kernel_is_believed() {
        let mut follower = joined();
        assert_eq!(
            follower.record(b"14,1,1,-;dlm: foo: dlm_recover 3\n"),
            News::Nothing
        );
        assert_eq!(follower.record(b"dlm: foo: dlm_recover 3\n"), News::Nothing);
        assert_eq!(follower.record(b"\xff\xfe"), News::Nothing);
        assert_eq!(follower.record(b""), News::Nothing);
        assert_eq!(
            follower.record(b"3,1,1,-;dlm: foo: dlm_recover 3\n"),
            News::Prepare
        );
    }

    #[test]
    fn what_cannot_be_followed_is_lost() {
        let mut follower = joined();
        let news = say(
            &mut follower,
            &[
                "dlm: foo: dlm_recover 3",
                "dlm: foo: dlm_recover 3 generation 9 done: 1 ms",
            ],
        );
        assert_eq!(news, [News::Prepare, News::NoSlots(NOT_SAID)]);
        let mut follower = joined();
        let news = say(
            &mut follower,
            &[
                "dlm: foo: dlm_recover 3",
                "dlm: foo: generation 3 slots 1 1:1",
                "dlm: foo: dlm_recover 3 generation 3 done: 1 ms",
            ],
        );
        assert!(matches!(&news[..], [News::Prepare, News::Lost(_)]), "{news:?}");
        let gone = "dlm: dlm user daemon left 1 lockspaces";
        assert!(matches!(say(&mut joined(), &[gone])[..], [News::Lost(_)]));
    }

    /// Many members, of which one goes, and then so many that all can be named.
    #[test]
    fn slots_that_are_not_told_are_left_out_or_the_end() {
        let many: String = (1..30).map(|n| format!(" {n}:{}", n + 100)).collect();
        let line = format!("dlm: foo: generation 3 slots 40{}", &many[..126]);
        let crowd = [
            "dlm: foo: dlm_recover 3",
            &line,
            "dlm: foo: dlm_recover 3 generation 9 done: 1 ms",
        ];
        assert_eq!(
            say(&mut joined(), &crowd),
            [News::Prepare, News::NoSlots(NO_ROOM)]
        );
        // The same, found when we come.
        for (need, wanted) in [
            (true, News::NoSlots(NO_ROOM)),
            (false, News::Settled(vec![done(&[], 0, 9)])),
        ] {
            let mut follower = Follower::new("foo", NodeId(2), need);
            for text in JOIN.iter().chain(&crowd) {
                follower.history(&record(text));
            }
            assert_eq!(follower.begin(), wanted);
        }

        let mut follower = joined();
        follower.need_slots = false;
        let unknown = News::Settled(vec![done(&[], 0, 9)]);
        assert_eq!(say(&mut follower, &crowd), [News::Prepare, unknown]);
        let fewer = [
            "dlm: foo: dlm_recover 5",
            "dlm: foo: remove member 117",
            "dlm: foo: dlm_recover 5 error -4",
            "dlm: foo: dlm_recover 7",
            "dlm: foo: generation 10 slots 2 1:1 2:2",
            "dlm: foo: dlm_recover 7 generation 10 done: 1 ms",
        ];
        let both = [slot(1, 1), slot(2, 2)];
        let gone = Event::RecoverSlot { failed: slot(0, 117) };
        let news = News::Settled(vec![gone, done(&both, 2, 10)]);
        assert_eq!(say(&mut follower, &fewer), [News::Prepare, news]);
        let endless = [
            "dlm: foo: dlm_recover 9",
            "dlm: foo: dlm_recover 9 generation x done: 1 ms",
        ];
        assert!(matches!(
            say(&mut follower, &endless)[..],
            [News::Prepare, News::Lost(_)]
        ));
    }

    #[test]
    fn names_are_escaped_as_in_the_log() {
        assert_eq!(escaped("a b\\\x01"), "a b\\x5c\\x01");
    }
}
