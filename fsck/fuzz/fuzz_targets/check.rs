//! Whatever the metadata: a check that only looks ends, writes nothing, and says the same twice.

#![no_main]

use gfs2_format::device::FaultDevice;
use gfs2_fsck::{Collect, Policy, check};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let device = FaultDevice::new(gfs2_fsck_fuzz::damaged(data));
    let run = || {
        let mut found = Collect::default();
        check(&device, &Policy::read_only(), &mut found).map(|outcome| (outcome, found)).ok()
    };
    let first = run();
    assert_eq!(device.counts().writes, 0);
    if data.first().is_some_and(|byte| byte % 8 == 0) {
        assert!(first == run());
    }
});
