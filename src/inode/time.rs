//! The clock of inode times.

use gfs2_format::time::Timestamp;
use std::time::{SystemTime, UNIX_EPOCH};

/// Inode times move in steps of this many nanoseconds, like the kernel's coarse clock: a file that is written in a loop
/// then changes its dinode a few hundred times a second and not at every write.
const GRAIN_NSEC: u32 = 4_000_000;

/// Now, as inode times know it.
pub(crate) fn now() -> Timestamp {
    let (sec, nsec) = match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(after) => (
            i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            after.subsec_nanos(),
        ),
        Err(before) => {
            let before = before.duration();
            let sec = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            match before.subsec_nanos() {
                0 => (-sec, 0),
                nsec => (-sec - 1, 1_000_000_000 - nsec),
            }
        }
    };
    Timestamp {
        sec,
        nsec: nsec - nsec % GRAIN_NSEC,
    }
}
