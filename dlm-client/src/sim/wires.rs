//! Links with connections that are reset: what was under way is lost, and sent again on the next connection.
//!
//! The packets travel as bytes, through the same link state as in production.

use std::collections::BTreeMap;

use super::oracle::Life;
use crate::midcomms::{Link, Received};
use crate::wire::{LockspaceId, Packet, Payload, Version, packet_length};

/// The ends of all links, and the connections between them.
#[derive(Debug, Default)]
pub(super) struct Wires {
    /// By owner and peer.
    ends: BTreeMap<(Life, Life), Link>,
    /// How often the connection of a pair was reset, and whether it is there.
    connections: BTreeMap<(Life, Life), (u64, bool)>,
}

fn pair(one: Life, two: Life) -> (Life, Life) {
    (one.min(two), one.max(two))
}

impl Wires {
    /// The end of `owner`; made with its connection when it is first used.
    fn end(&mut self, owner: Life, peer: Life) -> &mut Link {
        let (_, up) = *self.connections.entry(pair(owner, peer)).or_insert((0, true));
        self.ends.entry((owner, peer)).or_insert_with(|| {
            let mut link = Link::new(owner.0, peer.0, Version::V3_2)
                .of_life(u32::try_from(owner.1).ok().and_then(|n| n.checked_add(1)));
            link.add_member();
            if up {
                link.connected(&mut Vec::new());
            }
            link
        })
    }

    fn epoch(&self, one: Life, two: Life) -> u64 {
        self.connections
            .get(&pair(one, two))
            .map_or(0, |(epoch, _)| *epoch)
    }

    /// What the connection is to carry now, and which connection that is.
    pub(super) fn send(&mut self, from: Life, to: Life, payload: Payload) -> Result<(u64, Vec<u8>), String> {
        let mut out = Vec::new();
        self.end(from, to)
            .send(LockspaceId(1), payload, &mut out)
            .map_err(|error| error.to_string())?;
        Ok((self.epoch(from, to), out))
    }

    /// Bytes arrive: the messages in them, and what is answered.
    pub(super) fn receive(
        &mut self,
        from: Life,
        to: Life,
        epoch: u64,
        mut bytes: &[u8],
    ) -> Result<(Vec<Payload>, Vec<u8>), String> {
        let (mut payloads, mut out) = (Vec::new(), Vec::new());
        if epoch != self.epoch(from, to) {
            return Ok((payloads, out));
        }
        let link = self.end(to, from);
        while !bytes.is_empty() {
            let length = packet_length(bytes).map_err(|error| error.to_string())?;
            let (packet, rest) = length
                .and_then(|length| bytes.split_at_checked(length))
                .ok_or("a piece of a packet")?;
            bytes = rest;
            let packet = Packet::decode(packet).map_err(|error| error.to_string())?;
            match link
                .receive(packet, &mut out)
                .map_err(|error| error.to_string())?
            {
                Received::Payload(_, payload) => payloads.push(payload),
                Received::Nothing | Received::Ignored(_) => {}
            }
        }
        link.batch_end(&mut out);
        Ok((payloads, out))
    }

    /// The connection is lost, with all that was under way.
    pub(super) fn cut(&mut self, one: Life, two: Life) {
        if let Some((epoch, up)) = self.connections.get_mut(&pair(one, two)) {
            *epoch = epoch.wrapping_add(1);
            *up = false;
            for ends in [(one, two), (two, one)] {
                if let Some(link) = self.ends.get_mut(&ends) {
                    let _messages_lost = link.disconnected();
                }
            }
        }
    }

    /// There is a new one: what each end begins with.
    pub(super) fn mend(&mut self, one: Life, two: Life) -> (u64, [Vec<u8>; 2]) {
        let mut begun = [Vec::new(), Vec::new()];
        if let Some((_, up)) = self.connections.get_mut(&pair(one, two))
            && !std::mem::replace(up, true)
        {
            for (ends, out) in [(one, two), (two, one)].into_iter().zip(&mut begun) {
                if let Some(link) = self.ends.get_mut(&ends) {
                    link.connected(out);
                }
            }
        }
        (self.epoch(one, two), begun)
    }

    /// A life ended.
    pub(super) fn forget(&mut self, life: Life) {
        self.ends.retain(|(owner, _), _| *owner != life);
    }
}
