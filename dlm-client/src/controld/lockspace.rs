//! One lockspace: from the news that its members changed to the start of the lock engine with the new ones.
//!
//! Invariants: the engine is stopped from the first news of a change until START messages of all members for the
//! newest change have come; our own START is sent only when the ring is settled, the cluster quorate and everybody
//! fenced that must be; a lockspace that was ever started never says again that it was not (`started_count`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::action::{Action, Gone, Now, Order, Out, Start, StartMember};
use super::change::{Change, Member, Stage};
use super::cluster::Cluster;
use super::codec::{Body, ChangeInfo, Header, Message, PlocksData, StartFlags, global_id};
use super::daemon::{Daemon, Mark};
use super::status::{LockspaceStatus, Wait};
use crate::fence::conf::DlmConf;
use crate::membership::{Group, Reason, RingId};
use crate::plock::replica::{Effect, Replica};
use crate::{LockError, NodeId, Plock, PlockOp};

/// NACKs of a member that are remembered.
const NACKS_MAX: usize = 64;

/// What is remembered of a node that ever was a member.
#[derive(Clone, Copy, Debug, Default)]
struct History {
    /// It failed since the last start.
    failed: bool,
    last_match: u32,
    /// The last change with which it came.
    added: u32,
    /// Its number of a change minus ours.
    offset: Option<u32>,
    /// The life of its daemon since then, as its first message said; none from a stock daemon.
    life: Option<u32>,
    /// The ring it came with; none until that is told.
    ring: Option<u16>,
}

/// What our daemons put where stock ones put nothing: the life of the process, the ring as the sender knew it, and who
/// came and went with the change that a START is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    life: u32,
    ring: u16,
    digest: u16,
}

fn low(ring: u64) -> u16 {
    u16::try_from(ring & u64::from(u16::MAX)).unwrap_or_default()
}

/// Is a ring not older than another? Their low bits go round.
fn not_older(ring: u16, than: u16) -> bool {
    ring.wrapping_sub(than) <= u16::MAX / 2
}

impl Stamp {
    fn bits(self) -> u64 {
        u64::from(self.life) << 32 | u64::from(self.ring) << 16 | u64::from(self.digest)
    }

    /// None from a stock daemon.
    fn from_bits(bits: u64) -> Option<Self> {
        let life = u32::try_from(bits >> 32).unwrap_or_default();
        (life != 0).then_some(Self {
            life,
            ring: low(bits >> 16),
            digest: low(bits),
        })
    }
}

/// What the rest of the daemon knows.
pub(super) struct Around<'a> {
    pub(super) now: Now,
    pub(super) cluster: &'a Cluster,
    pub(super) daemon: &'a Daemon,
    pub(super) options: &'a DlmConf,
    /// We must not go on before we are heard again.
    pub(super) suspended: bool,
    /// In this time nobody is given up.
    pub(super) grace: Duration,
}

/// A lockspace.
#[derive(Debug)]
pub(super) struct Lockspace {
    pub(super) name: String,
    us: NodeId,
    global_id: u32,
    seq: u32,
    /// Newest first.
    changes: VecDeque<Change>,
    started: Option<Change>,
    started_count: u32,
    starts: u32,
    joining: bool,
    leaving: bool,
    /// We leave only to join anew.
    pub(super) rejoining: bool,
    stopped: bool,
    ring: u64,
    ring_wait: bool,
    history: BTreeMap<NodeId, History>,
    /// Numbers of changes a member took back since its last START.
    nacks: BTreeMap<NodeId, Vec<u32>>,
    plocks: Replica,
    since: Duration,
    /// All agree on the members; the engine is not told yet.
    ready: Option<Ready>,
    /// The engine was never started.
    engine_joins: bool,
    /// Who has gone since the engine was last started, and whether it failed.
    gone: BTreeMap<NodeId, bool>,
}

/// A start that waits for the proof that nothing is under way that would forbid it.
///
/// The STARTs may have lain in a queue while this node was paused or starved, and the others may have given it up since.
/// News of that come through the daemons' group before anything that we send there now comes back. A mark that comes
/// back late proves nothing, for it may have lain there as well: in the time that is allowed nobody is given up.
#[derive(Debug)]
struct Ready {
    members: Vec<NodeId>,
    /// The newest mark, and when it was sent.
    mark: Option<(Mark, Duration)>,
}

impl Lockspace {
    pub(super) fn new(us: NodeId, name: &str, options: &DlmConf, now: Now) -> Self {
        let id = global_id(name);
        Self {
            name: name.to_owned(),
            us,
            global_id: id,
            seq: 0,
            changes: VecDeque::new(),
            started: None,
            started_count: 0,
            starts: 0,
            joining: true,
            leaving: false,
            rejoining: false,
            stopped: true,
            ring: 0,
            ring_wait: false,
            history: BTreeMap::new(),
            nacks: BTreeMap::new(),
            plocks: Replica::new(us, id, options.plock_cancel),
            since: now.mono,
            ready: None,
            engine_joins: true,
            gone: BTreeMap::new(),
        }
    }

    fn group(&self) -> Group {
        Group::Lockspace(self.name.clone())
    }

    fn engine(&self, order: Order, out: &mut Out) {
        out.push(Action::Engine {
            lockspace: self.name.clone(),
            order,
        });
    }

    pub(super) fn leave(&mut self, out: &mut Out) {
        self.leaving = true;
        self.stop(out);
        out.push(Action::Leave(self.group()));
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving
    }

    pub(super) fn is_started(&self) -> bool {
        self.started_count > 0
    }

    /// Have all members said START for the last change that named us?
    pub(super) fn is_settled(&self) -> bool {
        self.started.is_some() && self.changes.is_empty()
    }

    /// The members changed. True: we are no longer one of them, as we wished.
    pub(super) fn on_confchg(
        &mut self,
        around: &Around<'_>,
        mark: Mark,
        members: &[NodeId],
        joined: &[(NodeId, Reason)],
        left: &[(NodeId, Reason)],
        out: &mut Out,
    ) -> bool {
        self.stop(out);
        if left.iter().any(|(node, _)| *node == self.us) {
            if !self.rejoining {
                self.engine(Order::Left, out);
            }
            return true;
        }
        self.rejoin_after_merge(joined, out);
        self.add_change(around, mark, members, joined, left, out);
        for (node, _) in left {
            let effects = self.plocks.purge(*node);
            self.plock_effects(around, effects, out);
        }
        self.advance(around, out);
        false
    }

    /// Partitions that merge see each other come, so no two sides describe the change alike, and no START would fit.
    /// Whoever has state is sorted out by the daemons; whoever was never started joins anew.
    fn rejoin_after_merge(&mut self, joined: &[(NodeId, Reason)], out: &mut Out) {
        let merged = joined.iter().any(|(_, reason)| *reason == Reason::NodeUp);
        if merged && !self.is_started() && !self.leaving {
            self.rejoining = true;
            self.leave(out);
        }
    }

    /// Stops the engine, unless it is stopped.
    pub(super) fn stop(&mut self, out: &mut Out) {
        self.ready = None;
        if !self.stopped {
            self.stopped = true;
            self.engine(Order::Stop, out);
        }
    }

    fn add_change(
        &mut self,
        around: &Around<'_>,
        mark: Mark,
        members: &[NodeId],
        joined: &[(NodeId, Reason)],
        left: &[(NodeId, Reason)],
        out: &mut Out,
    ) {
        self.since = around.now.mono;
        self.seq = self.seq.wrapping_add(1).max(1);
        for (node, reason) in left {
            self.forget(around, *node, *reason, out);
        }
        let added: BTreeSet<NodeId> = joined.iter().map(|(node, _)| *node).collect();
        let with_node = joined.iter().filter(|(_, reason)| *reason == Reason::NodeUp);
        let with_node: BTreeSet<NodeId> = with_node.map(|(node, _)| *node).collect();
        // The ring may be told before the change with which we come, or after it.
        let ring = (self.ring != 0).then(|| low(self.ring));
        let we_came = added.contains(&self.us);
        for node in members {
            let history = self.history.entry(*node).or_default();
            if added.contains(node) {
                history.added = self.seq;
                history.life = None;
                history.ring = ring.filter(|_| !with_node.contains(node));
                self.nacks.remove(node);
                history.offset = None;
            } else if we_came {
                history.ring = ring;
            }
        }
        let member = |node: &NodeId| {
            let added = added.contains(node);
            (
                *node,
                Member {
                    added,
                    ..Member::default()
                },
            )
        };
        let change = Change {
            seq: self.seq,
            stage: Stage::Conditions,
            mark,
            members: members.iter().map(member).collect(),
            removed: left
                .iter()
                .map(|(node, reason)| (*node, reason.is_failure()))
                .collect(),
            joined_count: u32::try_from(joined.len()).unwrap_or(u32::MAX),
        };
        out.info(format!(
            "lockspace {}: change {}: members {:?} joined {:?} left {:?}",
            self.name,
            self.seq,
            members.iter().map(|node| node.0).collect::<Vec<_>>(),
            joined.iter().map(|(node, _)| node.0).collect::<Vec<_>>(),
            left.iter()
                .map(|(node, reason)| (node.0, reason.word()))
                .collect::<Vec<_>>(),
        ));
        self.changes.push_front(change);
    }

    fn forget(&mut self, around: &Around<'_>, node: NodeId, reason: Reason, out: &mut Out) {
        let history = self.history.entry(node).or_default();
        if reason.is_failure() && around.options.enable_fencing {
            history.failed = true;
        }
        match reason {
            Reason::NodeDown => self.ring_wait = true,
            Reason::ProcDown => out.push(Action::Kill(node)),
            _ => {}
        }
    }

    pub(super) fn on_ring(&mut self, ring: RingId) {
        self.ring = ring.seq;
        self.ring_wait = false;
        for history in self.history.values_mut() {
            history.ring.get_or_insert(low(ring.seq));
        }
    }

    /// A message of the group whose header was checked.
    pub(super) fn on_message(&mut self, around: &Around<'_>, from: NodeId, message: &Message, out: &mut Out) {
        if let Err(why) = self.check_stamp(from, message) {
            out.error(format!(
                "lockspace {}: message of node {} dropped: {why}",
                self.name, from.0
            ));
            return;
        }
        match &message.body {
            Body::Start(info) => self.on_start(from, &message.header, info, out),
            Body::Plock(info) if around.options.enable_plock => {
                let effects = self.plocks.deliver(from, info);
                self.plock_effects(around, effects, out);
            }
            Body::PlocksData(data) if around.options.enable_plock => self.plocks.receive(data),
            Body::PlocksDone(info) if around.options.enable_plock => {
                self.on_plocks_done(around, from, &message.header, info, out);
            }
            body => out.debug(format!(
                "lockspace {}: no use for {body:?} from {}",
                self.name, from.0
            )),
        }
    }

    /// Is a message of the life of the sender's daemon that we know, and if it is a START, not older than its coming?
    ///
    /// What a node sends while it is paused or cut off goes out when it is back, among those that have gone on without
    /// it. Stock daemons cannot tell; they send no stamp, and get the benefit of the doubt.
    fn check_stamp(&mut self, from: NodeId, message: &Message) -> Result<(), &'static str> {
        let Some(Stamp { life, ring, .. }) = Stamp::from_bits(message.header.stamp) else {
            return Ok(());
        };
        let history = self.history.entry(from).or_default();
        if *history.life.get_or_insert(life) != life {
            return Err("it is of another life of its daemon");
        }
        let start = matches!(message.body, Body::Start(_));
        match history.ring {
            Some(came) if not_older(ring, came) => Ok(()),
            _ if !start => Ok(()),
            _ => Err("it was sent before the node came back"),
        }
    }

    /// May a message of `from` that describes `info` be about `change`?
    fn matches(&self, change: &Change, from: NodeId, info: &ChangeInfo) -> bool {
        let history = self.history.get(&from).copied().unwrap_or_default();
        // What a node says in this life of it cannot be about a change before that.
        change.members.contains_key(&from)
            && info.members.contains(&self.us)
            && change.seq >= history.added
            && change.seq >= history.last_match
            && change.looks_like(info)
    }

    /// The change that START number `data` of `from` is about.
    ///
    /// Once one of a member's STARTs is matched, its numbers and ours differ by a constant, for both see the same
    /// changes. Before that its NACKs help: each says that a change as many numbers before the one of the START looks
    /// the same, if we know it. (The stock daemon takes a NACK for the oldest change that fits, which is wrong in a
    /// member that came later.)
    fn find_change(&self, from: NodeId, header: &Header, info: &ChangeInfo) -> Option<u32> {
        let data = header.data;
        let stamp = Stamp::from_bits(header.stamp);
        let same = |change: &Change| stamp.is_none_or(|stamp| stamp.digest == change.digest());
        let not_started = |change: &Change| change.members.get(&from).is_some_and(|member| !member.started);
        let fits = |change: &&Change| not_started(change) && same(change) && self.matches(change, from, info);
        let candidates: Vec<u32> = self.changes.iter().filter(fits).map(|c| c.seq).collect();
        let oldest = candidates.last().copied();
        let history = self.history.get(&from).copied().unwrap_or_default();
        if let Some(offset) = history.offset {
            let exact = candidates.iter().find(|seq| seq.wrapping_add(offset) == data);
            return exact.copied().or(oldest);
        }
        let taken_back = self.nacks.get(&from).map_or(&[][..], Vec::as_slice);
        // How many NACKs a candidate explains by changes that look the same; none if one that we know does not.
        let explained = |seq: u32| {
            let mut count = 0_usize;
            for nack in taken_back {
                let seq = seq.wrapping_sub(data.wrapping_sub(*nack));
                let since_it_came = |change: &&Change| change.seq == seq && seq >= history.added;
                match self.changes.iter().find(since_it_came) {
                    Some(change) if change.looks_like(info) => count = count.saturating_add(1),
                    Some(_) => return None,
                    None => {}
                }
            }
            Some(count)
        };
        let scored = candidates.iter().filter_map(|seq| Some((explained(*seq)?, *seq)));
        // The last of equals is the oldest.
        scored
            .max_by_key(|(count, _)| *count)
            .map(|(_, seq)| seq)
            .or(oldest)
    }

    fn on_start(&mut self, from: NodeId, header: &Header, info: &ChangeInfo, out: &mut Out) {
        let flags = StartFlags::from_bits_retain(header.flags);
        if flags.contains(StartFlags::NACK) {
            let taken_back = self.nacks.entry(from).or_default();
            if taken_back.len() < NACKS_MAX {
                taken_back.push(header.data);
            }
            return;
        }
        let found = self.find_change(from, header, info);
        self.nacks.remove(&from);
        let Some(seq) = found else {
            out.debug(format!(
                "lockspace {}: START {} of {} is about no change of ours",
                self.name, header.data, from.0
            ));
            return;
        };
        let added = self
            .changes
            .iter()
            .any(|change| change.members.get(&from).is_some_and(|member| member.added));
        let merged = added && info.started_count > 0 && self.started_count > 0;
        let history = self.history.entry(from).or_default();
        history.last_match = seq;
        history.offset = Some(header.data.wrapping_sub(seq));
        let Some(member) = self
            .changes
            .iter_mut()
            .find(|change| change.seq == seq)
            .and_then(|change| change.members.get_mut(&from))
        else {
            return;
        };
        member.flags = flags;
        if merged {
            member.disallowed = true;
            out.error(format!(
                "lockspace {}: node {} comes from a partition in which it was started {} times; it does not count until it was reset",
                self.name, from.0, info.started_count
            ));
            return;
        }
        member.started = true;
    }

    /// The condition the newest change waits for.
    fn wait(&self, around: &Around<'_>) -> Option<Wait> {
        let ring = around.cluster.ring;
        let behind = |change: &Change| !around.daemon.has_passed(change.mark);
        if self.ring_wait
            || self.ring != ring
            || around.daemon.ring != ring
            || self.changes.front().is_some_and(behind)
        {
            return Some(Wait::Ring);
        }
        if around.options.enable_quorum_lockspace && !around.cluster.quorate {
            return Some(Wait::Quorum);
        }
        if around.options.enable_fencing {
            let pending: Vec<NodeId> = self
                .history
                .iter()
                .filter(|(node, history)| history.failed && around.daemon.needs_fencing(**node))
                .map(|(node, _)| *node)
                .collect();
            if !pending.is_empty() || around.daemon.fencing_in_progress() {
                return Some(Wait::Fencing(pending));
            }
        }
        None
    }

    /// Goes as far as it can be gone.
    pub(super) fn advance(&mut self, around: &Around<'_>, out: &mut Out) {
        let Some(stage) = self.changes.front().map(|change| change.stage) else {
            return;
        };
        if self.leaving {
            return;
        }
        if stage == Stage::Conditions && self.wait(around).is_none() {
            self.history
                .values_mut()
                .for_each(|history| history.failed = false);
            self.send_start(around, out);
        }
        let agreed = |change: &Change| change.stage == Stage::Messages && change.all_started();
        if self.changes.front().is_some_and(agreed)
            && let Some(members) = self.agree(around, out)
        {
            self.ready = Some(Ready { members, mark: None });
        }
    }

    /// Is a mark to be sent for a start that waits?
    pub(super) fn wants_mark(&self, now: Now, grace: Duration) -> bool {
        let late = |sent: Duration| now.mono.saturating_sub(sent) > grace;
        let lacks = |ready: &Ready| ready.mark.is_none_or(|(_, sent)| late(sent));
        self.ready.as_ref().is_some_and(lacks)
    }

    /// A mark was sent.
    pub(super) fn marked(&mut self, now: Now, mark: Mark) {
        if let Some(ready) = self.ready.as_mut() {
            ready.mark = Some((mark, now.mono));
        }
    }

    /// Starts the engine, once all agree and that is known to be of now.
    pub(super) fn go_on(&mut self, around: &Around<'_>, out: &mut Out) {
        let ring = self.ring;
        if let Some(ready) = self.ready.take_if(|ready| Self::may_start(ring, around, ready)) {
            self.start(around, &ready.members, out);
        }
    }

    fn send(&self, around: &Around<'_>, flags: StartFlags, data: u32, data2: u32, body: Body, out: &mut Out) {
        let stamp = Stamp {
            life: around.daemon.life(),
            ring: low(self.ring),
            digest: self.changes.front().map_or(0, Change::digest),
        };
        let header = Header {
            flags: flags.bits(),
            data,
            data2,
            global_id: self.global_id,
            stamp: stamp.bits(),
            ..around.daemon.header()
        };
        out.push(Action::Send {
            group: self.group(),
            bytes: Message { header, body }.encode(),
        });
    }

    fn start_flags(&self) -> StartFlags {
        let mut flags = StartFlags::empty();
        flags.set(StartFlags::JOINING, self.joining);
        flags.set(StartFlags::HAVEPLOCK, self.plocks.has_table());
        flags
    }

    fn send_start(&mut self, around: &Around<'_>, out: &mut Out) {
        let Some(newest) = self.changes.front_mut() else {
            return;
        };
        newest.stage = Stage::Messages;
        let (seq, info) = (newest.seq, newest.info(self.started_count));
        // Those up to the last one whose START was sent need no NACK: it would be taken for one of the newest.
        let alike: Vec<u32> = self
            .changes
            .iter()
            .take_while(|change| change.seq == seq || change.stage == Stage::Conditions)
            .filter(|change| change.seq != seq && change.looks_like(&info))
            .map(|change| change.seq)
            .collect();
        for old in alike {
            let flags = self.start_flags() | StartFlags::NACK;
            self.send(around, flags, old, 0, Body::Start(info.clone()), out);
        }
        self.send(around, self.start_flags(), seq, 0, Body::Start(info), out);
    }

    /// All have said START for the newest change: what follows in the order of the group.
    fn agree(&mut self, around: &Around<'_>, out: &mut Out) -> Option<Vec<NodeId>> {
        let newest = self.changes.pop_front()?;
        let older = std::mem::take(&mut self.changes);
        let changes = older.iter().rev().chain([&newest]);
        for (node, failed) in changes.filter(|_| !self.engine_joins).flat_map(|c| &c.removed) {
            let entry = self.gone.entry(*node).or_default();
            *entry = *entry || *failed;
        }
        let members = newest.members.keys().copied().collect();
        self.joining = false;
        if around.options.enable_plock {
            self.prepare_plocks(around, &newest, out);
        }
        self.started = Some(newest);
        self.started_count = self.started_count.wrapping_add(1).max(1);
        Some(members)
    }

    /// Is it sure that the members agreed on are those of now?
    fn may_start(ring: u64, around: &Around<'_>, ready: &Ready) -> bool {
        let fresh = |sent: Duration| around.now.mono.saturating_sub(sent) <= around.grace;
        let proved = |(mark, sent): (Mark, Duration)| around.daemon.has_passed(mark) && fresh(sent);
        let rings = [ring, around.daemon.ring];
        ready.mark.is_some_and(proved)
            && !around.suspended
            && rings.iter().all(|ring| *ring == around.cluster.ring)
    }

    fn start(&mut self, around: &Around<'_>, members: &[NodeId], out: &mut Out) {
        self.starts = self.starts.wrapping_add(1).max(1);
        let weight = |node: NodeId| around.options.weight(&self.name, node);
        let gone = std::mem::take(&mut self.gone).into_iter();
        let start = Start {
            seq: self.starts,
            global_id: self.global_id,
            joining: self.engine_joins,
            nodir: around.options.nodir(&self.name),
            members: members
                .iter()
                .map(|node| StartMember {
                    node: *node,
                    weight: weight(*node),
                })
                .collect(),
            gone: gone.map(|(node, failed)| Gone { node, failed }).collect(),
        };
        self.stopped = false;
        self.engine_joins = false;
        self.engine(Order::Start(start), out);
    }

    fn prepare_plocks(&mut self, around: &Around<'_>, change: &Change, out: &mut Out) {
        let has = |member: &Member| member.flags.contains(StartFlags::HAVEPLOCK);
        let mut sources = change.members.iter().filter(|(_, member)| has(member));
        let source = sources.next().map(|(node, _)| *node);
        let had = self.plocks.has_table();
        let effects = self.plocks.started(source, change.members.len() == 1);
        self.plock_effects(around, effects, out);
        if !had || source != Some(self.us) || change.members.len() == 1 {
            return;
        }
        let lacking = change.members.values().any(|member| !has(member));
        let data: Vec<PlocksData> = if lacking {
            self.plocks.transfer()
        } else {
            Vec::new()
        };
        let count = u32::try_from(data.len()).unwrap_or(u32::MAX);
        for part in data {
            let body = Body::PlocksData(part);
            self.send(around, StartFlags::empty(), change.seq, 0, body, out);
        }
        let body = Body::PlocksDone(change.info(self.started_count));
        self.send(around, self.start_flags(), change.seq, count, body, out);
    }

    fn on_plocks_done(
        &mut self,
        around: &Around<'_>,
        from: NodeId,
        header: &Header,
        info: &ChangeInfo,
        out: &mut Out,
    ) {
        let ours = self
            .started
            .as_ref()
            .is_some_and(|change| self.matches(change, from, info));
        if !ours || !self.plocks.is_saving() {
            return;
        }
        let (complete, effects) = self.plocks.complete(header.data2);
        if !complete {
            out.error(format!(
                "lockspace {}: node {} says that it sent {} messages of POSIX locks; other ones came: there are none until the next change of members",
                self.name, from.0, header.data2
            ));
        }
        self.plock_effects(around, effects, out);
    }

    /// An operation on POSIX locks of our user.
    pub(super) fn plock(
        &mut self,
        around: &Around<'_>,
        op: PlockOp,
        lock: &Plock,
        token: u64,
        out: &mut Out,
    ) -> Result<(), LockError> {
        if !around.options.enable_plock || !self.is_started() {
            return Err(LockError::NoPlocks);
        }
        let effects = self.plocks.submit(op, lock, token)?;
        self.plock_effects(around, effects, out);
        Ok(())
    }

    /// Our user takes a waiting POSIX lock back.
    pub(super) fn plock_cancel(
        &mut self,
        around: &Around<'_>,
        token: u64,
        out: &mut Out,
    ) -> Result<(), LockError> {
        let effects = self.plocks.cancel(token)?;
        self.plock_effects(around, effects, out);
        Ok(())
    }

    fn plock_effects(&self, around: &Around<'_>, effects: Vec<Effect>, out: &mut Out) {
        for effect in effects {
            match effect {
                Effect::Send(info) => self.send(around, StartFlags::empty(), 0, 0, Body::Plock(info), out),
                Effect::Done(done) => out.push(Action::Plock {
                    lockspace: self.name.clone(),
                    done,
                }),
            }
        }
    }

    pub(super) fn status(&self, around: &Around<'_>) -> LockspaceStatus {
        let newest = self.changes.front();
        let wait = newest.and_then(|change| match change.stage {
            Stage::Conditions => self.wait(around),
            Stage::Messages => Some(Wait::Messages(change.missing())),
        });
        let wait = wait.or_else(|| self.ready.as_ref().map(|_| Wait::Ring));
        LockspaceStatus {
            name: self.name.clone(),
            global_id: self.global_id,
            joining: self.joining,
            leaving: self.leaving,
            stopped: self.stopped,
            has_plocks: self.plocks.has_table(),
            wait,
            since: around.now.mono.saturating_sub(self.since),
            started: self
                .started
                .as_ref()
                .map(|change| change_line(change, self.started_count)),
            next: newest.map(|change| change_line(change, self.started_count)),
        }
    }

    /// Which life of each member's daemon this is with, where it told.
    pub(super) fn lives(&self) -> impl Iterator<Item = (NodeId, u32)> {
        self.history
            .iter()
            .filter_map(|(node, history)| Some((*node, history.life?)))
    }

    /// The POSIX locks, as the stock daemon's tool lists them.
    pub(super) fn plock_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (number, records) in self.plocks.table().records() {
            for r in records {
                lines.push(format!(
                    "{number} {} {}-{} nodeid {} pid {} owner {:x} rown 0{}",
                    if r.exclusive { "WR" } else { "RD" },
                    r.start,
                    r.end,
                    r.node.0,
                    r.pid,
                    r.owner,
                    if r.waiting { " WAITING" } else { "" },
                ));
            }
        }
        lines
    }
}

fn change_line(change: &Change, started_count: u32) -> super::status::ChangeStatus {
    super::status::ChangeStatus {
        seq: change.seq,
        info: change.info(started_count),
        removed: change.removed.clone(),
    }
}
