//! The bytes two DLM nodes exchange, protocol 3.1 and 3.2: decoded into owned types that cannot be wrong, and back.
//!
//! Invariants: decoding never panics and never allocates more than the packet's own 4096 bytes call for; what was
//! decoded encodes to the same bytes (fields the protocol leaves unused are read as zero, but for those in which our
//! nodes tell their life); every error names the field, where it stands, what was found and what was expected. Nothing
//! here knows a socket, a sequence or a lock.

mod error;
pub mod hash;
mod message;
mod packet;
mod raw;
mod rcom;
mod result;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use error::{Expected, WireError};
pub use message::{Asts, Extra, Message, MsgFlags, MsgType, QueueStatus};
pub use packet::{
    Body, HEADER_LEN, INNER_MAX, Inner, LockspaceId, OPTS_LEN, PACKET_MAX, Packet, Payload, Version,
    packet_length,
};
pub use rcom::{
    NAMES_ROOM, NamesReply, Rcom, RcomBody, RcomConfig, RcomLock, RcomSlot, RcomType, SLOTS_MAX, Status,
    StatusReply,
};
pub use result::WireResult;
