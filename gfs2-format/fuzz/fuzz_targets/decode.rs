//! Any bytes as each structure this crate decodes from one block.
//!
//! Invariants: no panic; time and memory bounded by the input's length.

#![no_main]

use gfs2_format::bitmap::{decode_rindex, find_rgrp};
use gfs2_format::ondisk::{BlockState, Dinode, Superblock};
use gfs2_format::tree::stuffed;
use gfs2_format::{BlockAddr, Geometry};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((head, bytes)) = data.split_first_chunk::<2>() else {
        return;
    };
    let Ok(geometry) = Geometry::new(512 << (head[0] % 8), 1 << (head[1] % 40)) else {
        return;
    };
    let at = BlockAddr::new(300);
    let _ = Superblock::decode(bytes);
    let _ = Dinode::decode(bytes, at, &geometry);
    let _ = stuffed(bytes, at, &geometry);
    let Ok(groups) = decode_rindex(bytes, at, &geometry) else {
        return;
    };
    for group in &groups {
        let index = find_rgrp(&groups, group.data0()).expect("its own block");
        assert_eq!(groups[index], *group);
        let _ = group.check_header(bytes);
        for slice in group.slices().take(4) {
            let Ok(counts) = slice.count(bytes) else { continue };
            assert_eq!(counts.iter().sum::<u32>(), slice.states());
            let mut copy = bytes.to_vec();
            if let Ok(Some(run)) = slice.find_free(bytes, slice.first, 1, 100) {
                slice
                    .set_run(&mut copy, run, BlockState::Free, BlockState::Used)
                    .expect("a free run");
            }
        }
    }
});
