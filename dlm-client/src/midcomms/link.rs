//! One peer: versions, sequence numbers, acknowledgements, resending, and the orderly end.
//!
//! A link outlives its connections. With protocol 3.2 messages are numbered, kept until acknowledged and sent again on
//! the next connection; with 3.1 there is only the connection, and its loss is reported because messages may be gone.
//! The version of a peer is what its first packet says, until the link is closed.
//!
//! Invariants: the numbers kept are consecutive and end before `next_out`; nothing numbered is sent before the peer's
//! version is known; after our FIN nothing numbered follows.

use std::collections::VecDeque;
use std::time::Duration;

use crate::NodeId;
use crate::wire::{Body, INNER_MAX, Inner, LockspaceId, Packet, Payload, RcomType, Version};

/// Bytes kept for a peer (unacknowledged, and waiting for a connection or its version) at most: two million locks of a
/// recovery.
pub const KEPT_MAX: usize = 512 << 20;
/// Messages that may stay unacknowledged when we have nothing to send ourselves.
pub const ACK_AT_MOST_AFTER: u32 = 64;
/// How long the end of a link may take before the connection is closed without it, as in kernel 6.12.
pub const FIN_WAIT: Duration = Duration::from_secs(5);
/// Bare recovery questions kept for a connection; they are asked again anyway.
const BARE_MAX: usize = 64 << 10;

/// Where the end of a link stands; names as in TCP, whose machine this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing is remembered of the peer.
    Closed,
    /// In use.
    Established,
    /// We said FIN first.
    FinWait1,
    /// And it was acknowledged.
    FinWait2,
    /// The peer said FIN while a lockspace still shared with it is in use.
    CloseWait,
    /// Then we said FIN.
    LastAck,
    /// Both said FIN first.
    Closing,
}

/// Why a link cannot go on with a connection, or did not take a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The packet is not from who the connection belongs to.
    #[error("DLM node {}: a packet that says it is from node {}", peer.0, found.0)]
    WrongNode {
        /// Whose connection it is.
        peer: NodeId,
        /// Who the packet says it is from.
        found: NodeId,
    },
    /// The packet is of another life of the peer's daemon: of one that is over, or of one we have not heard of yet.
    #[error("DLM node {}: a packet of life {found:08x} of its daemon, not of {expected:08x}", peer.0)]
    WrongLife {
        /// Whose.
        peer: NodeId,
        /// What the packet says; 0 where it says nothing.
        found: u32,
        /// What the membership, or an earlier packet, said.
        expected: u32,
    },
    /// A message longer than a packet can carry.
    #[error("DLM node {}: a message of {length} bytes, more than {INNER_MAX}", peer.0)]
    TooLong {
        /// To whom.
        peer: NodeId,
        /// Its length.
        length: usize,
    },
    /// The peer does not acknowledge what it gets.
    #[error("DLM node {}: {kept} bytes wait to be acknowledged, more than {KEPT_MAX}", peer.0)]
    Full {
        /// Who.
        peer: NodeId,
        /// How much.
        kept: usize,
    },
    /// Our FIN was sent.
    #[error("DLM node {}: the link is being closed", peer.0)]
    Closing {
        /// Who.
        peer: NodeId,
    },
}

/// Why a packet was dropped, as the kernel drops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// Not the next number: seen before, or the ones between are missing.
    Sequence {
        /// Its number.
        found: u32,
        /// The next one.
        expected: u32,
    },
    /// Another version than the peer began with.
    Version {
        /// The packet's.
        found: Version,
        /// The peer's.
        expected: Version,
    },
    /// A number or acknowledgement where the protocol has none (3.1), or a bare message where it has one (3.2).
    Form,
    /// An acknowledgement of what was never sent.
    Ack {
        /// What it says.
        found: u32,
        /// The next number we would send.
        sent: u32,
    },
    /// A FIN the state has no use for.
    Fin(State),
}

/// What came of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A message.
    Payload(LockspaceId, Payload),
    /// Nothing to deliver.
    Nothing,
    /// Dropped.
    Ignored(Ignored),
}

/// The link to one peer.
#[derive(Debug)]
pub struct Link {
    us: NodeId,
    peer: NodeId,
    /// The highest version we speak.
    ours: Version,
    /// The life of our daemon, which every packet with room for it tells.
    life: Option<u32>,
    /// The life of the peer's; none of a kernel.
    peer_life: Option<u32>,
    /// The peer's, once it said something.
    version: Option<Version>,
    state: State,
    /// Lockspaces shared with the peer.
    members: u32,
    up: bool,
    next_out: u32,
    next_in: u32,
    /// Packets sent and not acknowledged: their bytes, and their lengths by consecutive number up to `next_out`.
    kept: VecDeque<u8>,
    kept_lengths: VecDeque<usize>,
    /// Messages that wait for the peer's version; without a connection, in 3.1, also for that.
    held: VecDeque<(LockspaceId, Payload)>,
    /// Bytes of bare packets that wait for a connection.
    bare: Vec<u8>,
    /// Messages received since the last acknowledgement.
    unacked: u32,
    /// Our FIN is the newest number sent.
    fin_sent: bool,
}

impl Link {
    /// A link nothing happened on. `ours` is the version we speak: 3.2, or 3.1 to be treated as a peer without
    /// numbers.
    #[must_use]
    pub fn new(us: NodeId, peer: NodeId, ours: Version) -> Self {
        Self {
            us,
            peer,
            ours,
            life: None,
            peer_life: None,
            version: None,
            state: State::Closed,
            members: 0,
            up: false,
            next_out: 0,
            next_in: 0,
            kept: VecDeque::new(),
            kept_lengths: VecDeque::new(),
            held: VecDeque::new(),
            bare: Vec::new(),
            unacked: 0,
            fin_sent: false,
        }
    }

    /// The same, telling the peer which life of our daemon it hears; never 0.
    #[must_use]
    pub const fn of_life(mut self, life: Option<u32>) -> Self {
        self.life = life;
        self
    }

    /// The membership says which life of the peer's daemon is a member. True: the link was another's and is forgotten;
    /// so should its connections be.
    #[must_use]
    pub fn expect_life(&mut self, life: u32) -> bool {
        let other = self.peer_life.is_some_and(|known| known != life);
        if other {
            let shared = self.members > 0;
            self.reset();
            if shared {
                self.state = State::Established;
            }
        }
        self.peer_life = Some(life);
        other
    }

    /// Where the end of the link stands.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// The peer's version, once known.
    #[must_use]
    pub const fn version(&self) -> Option<Version> {
        self.version
    }

    /// Packets the peer has not acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.kept_lengths.len()
    }

    /// Is there anything the peer should get over a connection?
    #[must_use]
    pub fn wants_connection(&self) -> bool {
        self.members > 0 || !self.kept.is_empty() || !self.bare.is_empty() || !self.held.is_empty()
    }

    /// A lockspace is shared with the peer from now on.
    pub fn add_member(&mut self) {
        if self.members == 0 && self.state != State::Established {
            if self.state != State::Closed {
                // The peer is back before the old link ended: nothing of that is worth keeping.
                self.reset();
            }
            self.state = State::Established;
        }
        self.members = self.members.saturating_add(1);
    }

    /// A lockspace is shared no more. The last one answers a FIN of the peer's that waits.
    pub fn remove_member(&mut self, out: &mut Vec<u8>) {
        self.members = self.members.saturating_sub(1);
        if self.members == 0 && self.state == State::CloseWait {
            self.state = State::LastAck;
            self.send_fin(out);
        }
    }

    /// We leave our last lockspace: says FIN. Done when [`Link::state`] is closed, or after [`FIN_WAIT`].
    pub fn shutdown(&mut self, out: &mut Vec<u8>) {
        match (self.speaks(), self.state) {
            // There is no end in 3.1, and none to say to who never spoke.
            (Some(Version::V3_1) | None, _) => self.reset(),
            (Some(Version::V3_2), State::Established) => {
                self.state = State::FinWait1;
                self.send_fin(out);
            }
            (Some(Version::V3_2), _) => {}
        }
    }

    /// The peer is gone from the cluster, or the end took too long: forget everything but shared lockspaces.
    pub fn reset(&mut self) {
        let fresh = Self::new(self.us, self.peer, self.ours).of_life(self.life);
        *self = Self {
            members: self.members,
            up: self.up,
            state: State::Closed,
            ..fresh
        };
    }

    /// A connection is there: `out` gets what it should begin with, all that is unacknowledged included.
    pub fn connected(&mut self, out: &mut Vec<u8>) {
        self.up = true;
        out.append(&mut self.bare);
        let (front, back) = self.kept.as_slices();
        out.extend_from_slice(front);
        out.extend_from_slice(back);
        self.send_held(out);
    }

    /// The connection we sent on is lost. True: so may be messages (3.1), and what the lockspaces believe of each other
    /// may differ; the node has to leave.
    #[must_use]
    pub fn disconnected(&mut self) -> bool {
        let was_up = std::mem::replace(&mut self.up, false);
        was_up && self.members > 0 && self.speaks() == Some(Version::V3_1)
    }

    /// The version both of us use; none until the peer's is known, unless we only speak the older.
    fn speaks(&self) -> Option<Version> {
        match self.ours {
            Version::V3_1 => Some(Version::V3_1),
            Version::V3_2 => self.version,
        }
    }

    /// Sends a message: appends to `out` what the connection should carry now; keeps what it cannot carry yet.
    ///
    /// # Errors
    /// Nothing was sent or kept: the message is too long, the link is closing, or the peer does not acknowledge.
    pub fn send(
        &mut self,
        lockspace: LockspaceId,
        payload: Payload,
        out: &mut Vec<u8>,
    ) -> Result<(), LinkError> {
        if travels_bare(&payload) {
            return self.send_bare(lockspace, payload, out);
        }
        if self.fin_sent {
            return Err(LinkError::Closing { peer: self.peer });
        }
        let held = self.held.len().saturating_mul(size_of::<Payload>());
        let kept = self.kept.len().saturating_add(held);
        if kept > KEPT_MAX {
            return Err(LinkError::Full {
                peer: self.peer,
                kept,
            });
        }
        match self.speaks() {
            Some(Version::V3_2) => self.send_numbered(Inner::Payload { lockspace, payload }, out),
            Some(Version::V3_1) if self.up => {
                let start = out.len();
                self.bare_packet(lockspace, payload).encode(out);
                self.check_length(start, 0, out)
            }
            _ => {
                let packet = self.bare_packet(lockspace, payload.clone());
                self.check_length(0, 0, &mut packet.to_bytes())?;
                self.held.push_back((lockspace, payload));
                Ok(())
            }
        }
    }

    fn bare_packet(&self, lockspace: LockspaceId, payload: Payload) -> Packet {
        Packet {
            version: self.ours,
            node: self.us,
            life: self.life,
            body: Body::Payload { lockspace, payload },
        }
    }

    fn send_bare(
        &mut self,
        lockspace: LockspaceId,
        payload: Payload,
        out: &mut Vec<u8>,
    ) -> Result<(), LinkError> {
        let packet = self.bare_packet(lockspace, payload);
        if self.up {
            let start = out.len();
            packet.encode(out);
            return self.check_length(start, 0, out);
        }
        let mut bytes = packet.to_bytes();
        self.check_length(0, 0, &mut bytes)?;
        // Whoever asked asks again: losing a question to a peer that cannot be reached costs nothing.
        if self.bare.len().saturating_add(bytes.len()) <= BARE_MAX {
            self.bare.append(&mut bytes);
        }
        Ok(())
    }

    /// Takes a packet at `start` of `out` back if it is longer than peers accept.
    fn check_length(&self, start: usize, wrapping: usize, out: &mut Vec<u8>) -> Result<(), LinkError> {
        let length = out.len().saturating_sub(start).saturating_sub(wrapping);
        if length <= INNER_MAX {
            return Ok(());
        }
        out.truncate(start);
        Err(LinkError::TooLong {
            peer: self.peer,
            length,
        })
    }

    fn send_numbered(&mut self, inner: Inner, out: &mut Vec<u8>) -> Result<(), LinkError> {
        let packet = Packet {
            version: self.ours,
            node: self.us,
            life: self.life,
            body: Body::Opts {
                seq: self.next_out,
                options: Vec::new(),
                version: self.ours,
                inner,
            },
        };
        let start = out.len();
        packet.encode(out);
        self.check_length(start, crate::wire::OPTS_LEN, out)?;
        let bytes = out.get(start..).unwrap_or(&[]);
        self.kept.extend(bytes);
        self.kept_lengths.push_back(bytes.len());
        self.next_out = self.next_out.wrapping_add(1);
        if !self.up {
            out.truncate(start);
        }
        Ok(())
    }

    fn send_fin(&mut self, out: &mut Vec<u8>) {
        // A FIN always fits.
        if self.send_numbered(Inner::Fin, out).is_ok() {
            self.fin_sent = true;
        }
    }

    /// Sends what waited for the peer's version or, in 3.1, for a connection.
    fn send_held(&mut self, out: &mut Vec<u8>) {
        let ready = match self.speaks() {
            Some(Version::V3_2) => true,
            Some(Version::V3_1) => self.up,
            None => false,
        };
        if !ready {
            return;
        }
        for (lockspace, payload) in std::mem::take(&mut self.held) {
            let sent = self.send(lockspace, payload, out);
            debug_assert!(
                sent.is_ok(),
                "was checked when it was held, and no FIN can have been sent"
            );
        }
    }

    /// As if numbers had been used before.
    #[cfg(test)]
    pub(super) const fn begin_at(&mut self, out: u32, r#in: u32) {
        self.next_out = out;
        self.next_in = r#in;
    }

    fn send_ack(&mut self, out: &mut Vec<u8>) {
        self.unacked = 0;
        if !self.up {
            return;
        }
        let packet = Packet {
            version: self.ours,
            node: self.us,
            life: self.life,
            body: Body::Ack { next: self.next_in },
        };
        packet.encode(out);
    }

    /// The batch of received packets is at its end: acknowledges, if it is time or `out` goes out anyway.
    pub fn batch_end(&mut self, out: &mut Vec<u8>) {
        if self.unacked >= ACK_AT_MOST_AFTER || (self.unacked > 0 && !out.is_empty()) {
            self.send_ack(out);
        }
    }

    /// A packet from the peer, on any of its connections; `out` gets what it makes us send.
    ///
    /// # Errors
    /// The packet cannot be the peer's: drop the connection.
    pub fn receive(&mut self, packet: Packet, out: &mut Vec<u8>) -> Result<Received, LinkError> {
        if packet.node != self.peer {
            return Err(LinkError::WrongNode {
                peer: self.peer,
                found: packet.node,
            });
        }
        self.check_life(&packet)?;
        if let Some(expected) = self.version
            && self.ours == Version::V3_2
            && expected != packet.version
        {
            return Ok(Received::Ignored(Ignored::Version {
                found: packet.version,
                expected,
            }));
        }
        if self.version.is_none() {
            self.version = Some(packet.version);
            if self.state == State::Closed {
                self.state = State::Established;
            }
            self.send_held(out);
        }
        let received = match packet.body {
            Body::Payload { lockspace, payload } => self.receive_bare(lockspace, payload),
            Body::Opts { seq, inner, .. } if self.speaks() == Some(Version::V3_2) => {
                self.receive_numbered(seq, inner, out)
            }
            Body::Ack { next } if self.speaks() == Some(Version::V3_2) => self.receive_ack(next),
            Body::Opts { .. } | Body::Ack { .. } | Body::Fin => Received::Ignored(Ignored::Form),
        };
        Ok(received)
    }

    /// Is the packet of the life of the peer's daemon that this link is with? The first one tells, if the membership did
    /// not. Acknowledgements have no room for it, nor has protocol 3.1 but in its questions for the status.
    fn check_life(&mut self, packet: &Packet) -> Result<(), LinkError> {
        let tells = matches!(packet.body, Body::Opts { .. });
        let wrong = match (self.peer_life, packet.life) {
            (None, found) => {
                self.peer_life = found;
                false
            }
            (Some(expected), Some(found)) => expected != found,
            (Some(_), None) => tells,
        };
        if !wrong {
            return Ok(());
        }
        Err(LinkError::WrongLife {
            peer: self.peer,
            found: packet.life.unwrap_or_default(),
            expected: self.peer_life.unwrap_or_default(),
        })
    }

    fn receive_bare(&self, lockspace: LockspaceId, payload: Payload) -> Received {
        // 6.1 sends NAMES bare, 6.12 numbered.
        let bare = match &payload {
            Payload::Rcom(rcom) => matches!(
                rcom.kind(),
                RcomType::Status | RcomType::StatusReply | RcomType::Names | RcomType::NamesReply
            ),
            Payload::Message(_) => false,
        };
        if bare || self.speaks() == Some(Version::V3_1) {
            Received::Payload(lockspace, payload)
        } else {
            Received::Ignored(Ignored::Form)
        }
    }

    fn receive_numbered(&mut self, seq: u32, inner: Inner, out: &mut Vec<u8>) -> Received {
        let expected = self.next_in;
        if seq != expected {
            if is_before(seq, expected) {
                self.send_ack(out);
            }
            return Received::Ignored(Ignored::Sequence { found: seq, expected });
        }
        match inner {
            Inner::Payload { lockspace, payload } => {
                self.next_in = self.next_in.wrapping_add(1);
                self.unacked = self.unacked.saturating_add(1);
                Received::Payload(lockspace, payload)
            }
            Inner::Fin => self.receive_fin(out),
        }
    }

    fn receive_fin(&mut self, out: &mut Vec<u8>) -> Received {
        if !matches!(self.state, State::Established | State::FinWait1 | State::FinWait2) {
            return Received::Ignored(Ignored::Fin(self.state));
        }
        self.next_in = self.next_in.wrapping_add(1);
        self.send_ack(out);
        match self.state {
            State::Established if self.members == 0 => {
                self.state = State::LastAck;
                self.send_fin(out);
            }
            State::Established => self.state = State::CloseWait,
            State::FinWait1 => self.state = State::Closing,
            _ => self.reset(),
        }
        Received::Nothing
    }

    fn receive_ack(&mut self, next: u32) -> Received {
        if is_before(self.next_out, next) {
            return Received::Ignored(Ignored::Ack {
                found: next,
                sent: self.next_out,
            });
        }
        let left = usize::try_from(self.next_out.wrapping_sub(next)).unwrap_or(usize::MAX);
        while self.kept_lengths.len() > left {
            let length = self.kept_lengths.pop_front().unwrap_or(0);
            self.kept.drain(..length.min(self.kept.len()));
        }
        if self.fin_sent && self.kept_lengths.is_empty() {
            match self.state {
                State::FinWait1 => self.state = State::FinWait2,
                State::Closing | State::LastAck => self.reset(),
                _ => {}
            }
        }
        Received::Nothing
    }
}

/// Recovery questions that need no order: the asker asks again, and the first of them tells the version.
fn travels_bare(payload: &Payload) -> bool {
    match payload {
        Payload::Rcom(rcom) => matches!(rcom.kind(), RcomType::Status | RcomType::StatusReply),
        Payload::Message(_) => false,
    }
}

/// Is number `a` before `b`? Numbers wrap.
const fn is_before(a: u32, b: u32) -> bool {
    a != b && b.wrapping_sub(a) < 1 << 31
}
