//! What goes over the socket of the group server: frames of a length and a body.
//!
//! Invariants: a frame has at most [`FRAME_MAX`] bytes, and what it says it contains is in it; anything else is an
//! error, and the connection is dropped.

use super::{Group, MemberEvent, Reason, RingId};
use crate::NodeId;

/// Longest body of a frame.
pub(super) const FRAME_MAX: usize = 1 << 20;

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// First: which node it is, and how it calls the cluster.
    Hello {
        node: u32,
        cluster: String,
    },
    Join(Group),
    Leave(Group),
    Send(Group, Vec<u8>),
    Kill(u32),
}

/// What the server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The node is in; this many can be.
    Welcome {
        nodes: u32,
    },
    /// It is not: why.
    Refused(String),
    Event(MemberEvent),
}

/// A frame that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("group server frame: {0}")]
pub(super) struct BadFrame(pub(super) &'static str);

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, number: u64) {
        self.0.extend(number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.0.extend(bytes);
    }

    fn nodes(&mut self, nodes: &[NodeId]) {
        self.number(u64::try_from(nodes.len()).unwrap_or(u64::MAX));
        nodes.iter().for_each(|node| self.number(node.0.into()));
    }

    fn changes(&mut self, changes: &[(NodeId, Reason)]) {
        self.number(u64::try_from(changes.len()).unwrap_or(u64::MAX));
        for (node, reason) in changes {
            self.number(node.0.into());
            self.number(match reason {
                Reason::Join => 1,
                Reason::Leave => 2,
                Reason::NodeDown => 3,
                Reason::NodeUp => 4,
                Reason::ProcDown => 5,
            });
        }
    }

    /// The frame: length, then body.
    fn frame(self) -> Vec<u8> {
        let len = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        let mut frame = len.to_le_bytes().to_vec();
        frame.extend(self.0);
        frame
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn number(&mut self) -> Result<u64, BadFrame> {
        let (head, rest) = self.0.split_first_chunk().ok_or(BadFrame("it ends too early"))?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*head))
    }

    fn short(&mut self) -> Result<u32, BadFrame> {
        u32::try_from(self.number()?).map_err(|_| BadFrame("a number is too large"))
    }

    fn bytes(&mut self) -> Result<Vec<u8>, BadFrame> {
        let len = usize::try_from(self.number()?).map_err(|_| BadFrame("a length is too large"))?;
        let (bytes, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(BadFrame("it ends too early"))?;
        self.0 = rest;
        Ok(bytes.to_vec())
    }

    fn text(&mut self) -> Result<String, BadFrame> {
        String::from_utf8(self.bytes()?).map_err(|_| BadFrame("a name is not UTF-8"))
    }

    fn group(&mut self) -> Result<Group, BadFrame> {
        Group::from_name(&self.text()?).ok_or(BadFrame("there is no such group"))
    }

    /// A list: no longer than what is left can hold.
    fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, BadFrame>,
    ) -> Result<Vec<T>, BadFrame> {
        let len = self.number()?;
        let mut items = Vec::new();
        for _ in 0..len {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn nodes(&mut self) -> Result<Vec<NodeId>, BadFrame> {
        self.list(|reader| reader.short().map(NodeId))
    }

    fn changes(&mut self) -> Result<Vec<(NodeId, Reason)>, BadFrame> {
        self.list(|reader| {
            let node = NodeId(reader.short()?);
            let reason = match reader.number()? {
                1 => Reason::Join,
                2 => Reason::Leave,
                3 => Reason::NodeDown,
                4 => Reason::NodeUp,
                5 => Reason::ProcDown,
                _ => return Err(BadFrame("there is no such reason")),
            };
            Ok((node, reason))
        })
    }

    fn ring(&mut self) -> Result<RingId, BadFrame> {
        Ok(RingId {
            node: NodeId(self.short()?),
            seq: self.number()?,
        })
    }
}

impl Request {
    pub(super) fn frame(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            Self::Hello { node, cluster } => {
                out.number(1);
                out.number((*node).into());
                out.bytes(cluster.as_bytes());
            }
            Self::Join(group) => {
                out.number(2);
                out.bytes(group.name().as_bytes());
            }
            Self::Leave(group) => {
                out.number(3);
                out.bytes(group.name().as_bytes());
            }
            Self::Send(group, bytes) => {
                out.number(4);
                out.bytes(group.name().as_bytes());
                out.bytes(bytes);
            }
            Self::Kill(node) => {
                out.number(5);
                out.number((*node).into());
            }
        }
        out.frame()
    }

    pub(super) fn read(body: &[u8]) -> Result<Self, BadFrame> {
        let mut reader = Reader(body);
        Ok(match reader.number()? {
            1 => Self::Hello {
                node: reader.short()?,
                cluster: reader.text()?,
            },
            2 => Self::Join(reader.group()?),
            3 => Self::Leave(reader.group()?),
            4 => Self::Send(reader.group()?, reader.bytes()?),
            5 => Self::Kill(reader.short()?),
            _ => return Err(BadFrame("there is no such request")),
        })
    }
}

impl Reply {
    pub(super) fn frame(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            Self::Welcome { nodes } => {
                out.number(1);
                out.number((*nodes).into());
            }
            Self::Refused(why) => {
                out.number(2);
                out.bytes(why.as_bytes());
            }
            Self::Event(event) => write_event(event, &mut out),
        }
        out.frame()
    }

    pub(super) fn read(body: &[u8]) -> Result<Self, BadFrame> {
        let mut reader = Reader(body);
        Ok(match reader.number()? {
            1 => Self::Welcome {
                nodes: reader.short()?,
            },
            2 => Self::Refused(reader.text()?),
            kind => Self::Event(read_event(kind, &mut reader)?),
        })
    }
}

fn write_event(event: &MemberEvent, out: &mut Writer) {
    match event {
        MemberEvent::Deliver { group, from, bytes } => {
            out.number(3);
            out.bytes(group.name().as_bytes());
            out.number(from.0.into());
            out.bytes(bytes);
        }
        MemberEvent::Confchg {
            group,
            members,
            joined,
            left,
        } => {
            out.number(4);
            out.bytes(group.name().as_bytes());
            out.nodes(members);
            out.changes(joined);
            out.changes(left);
        }
        MemberEvent::Ring { group, ring } => {
            out.number(5);
            out.bytes(group.name().as_bytes());
            out.number(ring.node.0.into());
            out.number(ring.seq);
        }
        MemberEvent::Quorum {
            quorate,
            ring,
            members,
            renewed,
        } => {
            out.number(6);
            out.number((*quorate).into());
            out.number(ring.node.0.into());
            out.number(ring.seq);
            out.nodes(members);
            out.nodes(renewed);
        }
        MemberEvent::ShutdownAsked => out.number(7),
        MemberEvent::Lost(why) => {
            out.number(8);
            out.bytes(why.as_bytes());
        }
    }
}

fn read_event(kind: u64, reader: &mut Reader<'_>) -> Result<MemberEvent, BadFrame> {
    Ok(match kind {
        3 => MemberEvent::Deliver {
            group: reader.group()?,
            from: NodeId(reader.short()?),
            bytes: reader.bytes()?,
        },
        4 => MemberEvent::Confchg {
            group: reader.group()?,
            members: reader.nodes()?,
            joined: reader.changes()?,
            left: reader.changes()?,
        },
        5 => MemberEvent::Ring {
            group: reader.group()?,
            ring: reader.ring()?,
        },
        6 => MemberEvent::Quorum {
            quorate: reader.number()? != 0,
            ring: reader.ring()?,
            members: reader.nodes()?,
            renewed: reader.nodes()?,
        },
        7 => MemberEvent::ShutdownAsked,
        8 => MemberEvent::Lost(reader.text()?),
        _ => return Err(BadFrame("there is no such event")),
    })
}

/// Takes whole frames' bodies off the front of what was read.
pub(super) fn split(buffer: &mut Vec<u8>) -> Result<Vec<Vec<u8>>, BadFrame> {
    let mut bodies = Vec::new();
    while let Some((head, rest)) = buffer.split_first_chunk::<4>() {
        let len = usize::try_from(u32::from_le_bytes(*head)).unwrap_or(usize::MAX);
        if len > FRAME_MAX {
            return Err(BadFrame("it is longer than a frame can be"));
        }
        let Some((body, rest)) = rest.split_at_checked(len) else {
            break;
        };
        bodies.push(body.to_vec());
        *buffer = rest.to_vec();
    }
    Ok(bodies)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(frame: &[u8]) -> Vec<u8> {
        let mut buffer = frame.to_vec();
        let bodies = split(&mut buffer).unwrap();
        assert!(buffer.is_empty());
        bodies.into_iter().next().unwrap()
    }

    #[test]
    fn requests_and_replies_round_trip_and_pieces_are_refused() {
        let group = Group::Lockspace("fs".to_owned());
        let hello = Request::Hello {
            node: 3,
            cluster: "c".to_owned(),
        };
        let send = Request::Send(group.clone(), vec![1, 2, 3]);
        for request in [
            hello,
            Request::Join(Group::Daemons),
            Request::Leave(Group::Beat),
            send,
            Request::Kill(9),
        ] {
            let body = body(&request.frame());
            assert_eq!(Request::read(&body).as_ref(), Ok(&request));
            for len in 0..body.len() {
                assert!(Request::read(&body[..len]).is_err(), "{request:?} cut to {len}");
            }
        }
        let ring = RingId {
            node: NodeId(1),
            seq: 8,
        };
        let confchg = MemberEvent::Confchg {
            group: group.clone(),
            members: vec![NodeId(1), NodeId(2)],
            joined: vec![(NodeId(2), Reason::Join)],
            left: vec![(NodeId(3), Reason::ProcDown)],
        };
        let quorum = MemberEvent::Quorum {
            quorate: true,
            ring,
            members: vec![NodeId(1)],
            renewed: vec![],
        };
        for event in [
            confchg,
            quorum,
            MemberEvent::Ring { group, ring },
            MemberEvent::Lost("x".to_owned()),
        ] {
            let reply = Reply::Event(event);
            assert_eq!(Reply::read(&body(&reply.frame())), Ok(reply));
        }
    }

    #[test]
    fn lengths_that_lie_are_refused_without_allocating() {
        let mut buffer = u32::MAX.to_le_bytes().to_vec();
        assert!(split(&mut buffer).is_err());
        let mut lie = Writer::default();
        lie.number(4);
        lie.bytes(b"dlm:controld");
        lie.number(u64::MAX);
        assert!(Reply::read(&lie.0).is_err());
    }
}
