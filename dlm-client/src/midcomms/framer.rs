//! Packets out of the bytes of one connection.

use crate::wire::{PACKET_MAX, Packet, WireError, packet_length};

/// Collects the bytes of one connection and gives out whole packets. It never holds more than it was pushed since the
/// last packet was taken, and after an error it gives out nothing: where the next packet begins is unknown.
#[derive(Debug, Default)]
pub struct Framer {
    bytes: Vec<u8>,
    /// What of `bytes` was given out.
    taken: usize,
    broken: Option<WireError>,
}

impl Framer {
    /// Nothing received yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes as they come. Take all packets before pushing more: what is kept stays below one packet then.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next packet, if it is there whole.
    ///
    /// # Errors
    /// Bytes that are no packet: the connection is to be dropped.
    pub fn next_packet(&mut self) -> Result<Option<Packet>, WireError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        let next = self.try_next();
        if let Err(error) = next {
            self.broken = Some(error);
        }
        next
    }

    fn try_next(&mut self) -> Result<Option<Packet>, WireError> {
        let rest = self.bytes.get(self.taken..).unwrap_or(&[]);
        let Some(length) = packet_length(rest)? else {
            return Ok(None);
        };
        debug_assert!(length <= PACKET_MAX);
        let Some(bytes) = rest.get(..length) else {
            return Ok(None);
        };
        let packet = Packet::decode(bytes)?;
        self.taken = self.taken.saturating_add(length);
        Ok(Some(packet))
    }

    /// Bytes of a packet that is not whole yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.bytes.len().saturating_sub(self.taken)
    }
}
