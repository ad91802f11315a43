//! Log space as arithmetic: what a transaction, and what a commit, takes at most. Unit: journal blocks.
//!
//! Invariant (`merging_never_needs_more_than_was_reserved`): merging a transaction into the running commit raises
//! the commit's need by no more than the transaction's cost.

use super::types::Reservation;
use gfs2_format::Geometry;
use gfs2_format::log::{jdata_blocks, metadata_blocks, revoke_blocks};

/// Blocks nobody may reserve: room for the headers that move the tail when everything else is in use.
pub(super) const TABOO: u64 = 4;
/// Every commit has a header, and the first descriptor of its revokes is always paid for.
const COMMIT_FIXED: u64 = 2;

/// The arithmetic for one block size.
#[derive(Clone, Debug)]
pub(super) struct Costs {
    geometry: Geometry,
}

impl Costs {
    pub(super) fn new(geometry: &Geometry) -> Self {
        Self {
            geometry: geometry.clone(),
        }
    }

    /// What a commit takes, its header included.
    pub(super) fn commit(&self, metadata: u64, jdata: u64, revokes: u64) -> u64 {
        COMMIT_FIXED
            .saturating_add(metadata_blocks(&self.geometry, metadata))
            .saturating_add(jdata_blocks(&self.geometry, jdata))
            .saturating_add(revoke_blocks(&self.geometry, revokes).saturating_sub(1))
    }

    /// What a transaction takes at most: it may become the first of a commit, be all jdata, or be metadata and jdata
    /// that start a descriptor each; one block more is the node's statfs_change.
    pub(super) fn transaction(&self, reservation: Reservation) -> u64 {
        let tags = self.geometry.ldptrs() / 2;
        COMMIT_FIXED
            .saturating_add(reservation.blocks.saturating_add(1))
            .saturating_add(1 + reservation.blocks.div_ceil(tags))
            .saturating_add(reservation.revokes.div_ceil(self.geometry.inptrs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_never_needs_more_than_was_reserved() {
        for bsize in [512, 1024, 4096] {
            let costs = Costs::new(&Geometry::new(bsize, 1 << 20).unwrap());
            let sizes = [0, 1, 2, 26, 27, 28, 54, 55, 56, 251, 252, 502, 503, 504, 1200];
            for (meta, jdata) in [(0, 0), (1, 0), (54, 27), (55, 27), (503, 251), (1006, 502)] {
                for revokes in [0, 1, 54, 55, 56, 110, 503, 504, 1012] {
                    let before = costs.commit(meta, jdata, revokes);
                    // An empty running commit needs nothing.
                    let before = if meta + jdata + revokes == 0 { 0 } else { before };
                    for own_meta in sizes {
                        for own_jdata in sizes {
                            for own_revokes in sizes {
                                let reservation =
                                    Reservation::blocks(own_meta + own_jdata).with_revokes(own_revokes);
                                // One metadata block more: statfs_change.
                                let after = costs.commit(
                                    meta + own_meta + 1,
                                    jdata + own_jdata,
                                    revokes + own_revokes,
                                );
                                assert!(
                                    after <= before + costs.transaction(reservation),
                                    "bs {bsize}: {meta}+{own_meta} {jdata}+{own_jdata} {revokes}+{own_revokes}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_small_transaction_is_cheap() {
        let costs = Costs::new(&Geometry::new(4096, 1 << 20).unwrap());
        assert_eq!(costs.transaction(Reservation::blocks(0)), 4);
        assert_eq!(costs.transaction(Reservation::blocks(4)), 9);
        assert_eq!(costs.commit(4, 0, 0), 7);
    }
}
