//! Goal: what may be recovered is, what may not is left alone and refused as the kernel refuses it.

use super::{Access, recover_all};
use crate::cache::BufferCache;
use crate::error::Errno;
use crate::health::Health;
use crate::journal::FlushReason;
use crate::journal::tests::rig::{JID, Layout, create_one, ex, meta};
use gfs2_format::device::{BlockDevice, MemDevice, RecordDevice};
use std::sync::Arc;

/// A volume whose only commit is in the log.
fn dirty() -> (Layout, MemDevice) {
    let layout = Layout::new(1024, 100);
    let device = Arc::new(layout.device());
    let journal = layout.mount(device.clone());
    create_one(&journal, 1, layout.block(0), 5);
    journal.flush(FlushReason::Fsync).unwrap();
    let device = MemDevice::clone(&device);
    (layout, device)
}

fn cache(layout: &Layout, device: Arc<dyn BlockDevice>) -> BufferCache {
    let health = Arc::new(Health::new("test:fs.0"));
    BufferCache::new(device, layout.geometry.clone(), health, 1 << 20)
}

#[test]
fn a_dirty_journal_is_replayed_once_and_what_was_cached_is_forgotten() {
    for access in [Access::ReadWrite, Access::ReadOnlyMount] {
        let (layout, device) = dirty();
        let device = Arc::new(RecordDevice::new(device));
        let cache = cache(&layout, device.clone());
        assert_ne!(
            *cache.read(&ex(1), layout.block(0)).unwrap(),
            *meta(&layout.geometry, 5)
        );
        let reports = recover_all(&cache, &layout.volume(), JID, access).unwrap();
        assert_eq!((reports.len(), reports[0].counts.replayed), (1, 1));
        assert_eq!(
            *cache.read(&ex(1), layout.block(0)).unwrap(),
            *meta(&layout.geometry, 5)
        );
        assert!(layout.head(&*device).header.is_clean());
        let writes = device.log().writes();
        let again = recover_all(&cache, &layout.volume(), JID, Access::Spectator).unwrap();
        assert!(again[0].was_clean());
        assert_eq!(device.log().writes(), writes);
    }
}

#[test]
fn without_the_right_nothing_is_written() {
    for (access, errno) in [
        (Access::ReadOnlyDevice, Errno::EROFS),
        (Access::Spectator, Errno::EPERM),
    ] {
        let (layout, device) = dirty();
        let device = Arc::new(RecordDevice::new(device));
        let cache = cache(&layout, device.clone());
        let refused = recover_all(&cache, &layout.volume(), JID, access).unwrap_err();
        assert_eq!(refused.errno(), errno);
        assert_eq!(device.log().entries().len(), 0);
    }
}

#[test]
fn a_journal_that_cannot_be_replayed_fails_the_mount_and_is_left_alone() {
    let (layout, device) = dirty();
    let tail = layout.head(&device).header.tail;
    let addr = layout.journal.map.address(tail).unwrap();
    layout.put(&device, addr, &meta(&layout.geometry, 1));
    let device = Arc::new(RecordDevice::new(device));
    let cache = cache(&layout, device.clone());
    let refused = recover_all(&cache, &layout.volume(), JID, Access::ReadWrite).unwrap_err();
    assert_eq!(refused.errno(), Errno::EIO);
    assert_eq!(device.log().entries().len(), 0);
}

#[test]
fn a_withdrawn_node_recovers_nothing() {
    let (layout, device) = dirty();
    let cache = cache(&layout, Arc::new(device));
    cache.health().withdraw("test", &crate::health::Cause::Requested);
    let refused = recover_all(&cache, &layout.volume(), JID, Access::ReadWrite).unwrap_err();
    assert_eq!(refused.errno(), Errno::EIO);
}
