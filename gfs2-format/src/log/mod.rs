//! The journal's bytes: what a commit looks like, where the newest one is, and what a replay of them does.
//!
//! Layout and rules: FORMAT.md section 7. This module knows no transactions, no ordering policy and no locks: who
//! writes when, and who may replay which journal, is the caller's business.

mod codec;
mod head;
mod map;
mod recover;
mod replay;
mod ring;

pub use codec::{
    Chunk, Flush, Header, HeaderVersion, LocalStatfs, LogTime, Tag, blocks_needed, continuation_revokes,
    decode_chunk, decode_header, descriptor_revokes, encode_header, jdata_blocks, metadata_blocks,
    revoke_blocks, revokes_in_blocks, tags,
};
pub use head::{Head, find_head};
pub use map::{DeviceJournal, JournalMap, JournalRead};
pub use recover::{
    RecoveryReport, add_to_statfs, plan_recovery, recover_journal, write_clean_header, zero_statfs,
};
pub use replay::{CopyKind, PlannedCopy, PlannedRevoke, ReplayCounts, ReplayPlan, apply_plan, plan_replay};
pub use ring::Ring;

#[cfg(test)]
mod tests;
