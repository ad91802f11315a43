//! Whatever the metadata: a repair ends, and where it says that all is repaired a check finds nothing.

#![no_main]

use gfs2_format::log::LogTime;
use gfs2_fsck::{Collect, Policy, check};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let device = gfs2_fsck_fuzz::damaged(data);
    let mut found = Collect {
        answer: true,
        ..Collect::default()
    };
    let now = LogTime { sec: 1, nsec: 0 };
    let Ok(outcome) = check(&device, &Policy::repair(now), &mut found) else {
        return;
    };
    if outcome.uncorrected() == 0 && !outcome.stopped {
        let mut left = Collect::default();
        let outcome = check(&device, &Policy::read_only(), &mut left).expect("a repaired volume");
        assert_eq!(outcome.errors, 0, "{:?}", left.problems);
    }
});
