//! Any bytes as a packet of a peer.
//!
//! Invariants: no panic; what is accepted encodes to a packet that means the same.

#![no_main]

use dlm_client::wire::{PACKET_MAX, Packet, packet_length};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = packet_length(data);
    let Ok(packet) = Packet::decode(data) else { return };
    let again = packet.to_bytes();
    assert!(again.len() <= PACKET_MAX);
    assert_eq!(packet_length(&again), Ok(Some(again.len())));
    assert_eq!(Packet::decode(&again), Ok(packet));
});
