//! Goal: a transaction's view of its own edits, and what is stamped into blocks.

use crate::journal::tests::rig::{JID, Layout, begin, create_one, ex, fill_data, fill_meta, meta};
use crate::journal::{FlushReason, Reservation};
use crate::txn::Transaction;
use gfs2_format::ondisk::{MetaHeader, MetaType, view};
use gfs2_format::{Block, BlockAddr, Jid};
use std::sync::Arc;
use zerocopy::IntoBytes;

fn header(block: &[u8]) -> (u32, u64) {
    let header: &MetaHeader = view(block, 0, BlockAddr::default()).unwrap();
    (header.jid.get(), header.pad0.get())
}

#[test]
fn our_journals_number_is_stamped_before_the_caller_sees_the_block() {
    let mut layout = Layout::new(1024, 100);
    layout.journal.jid = JID;
    let device = Arc::new(layout.device());
    for (n, kind) in [(0, MetaType::Rg), (1, MetaType::In)] {
        let mut block = meta(&layout.geometry, 3);
        let mut raw = MetaHeader::new(kind, Jid::new(9));
        raw.pad0 = 55.into();
        block.make_mut()[..24].copy_from_slice(raw.as_bytes());
        layout.put(&*device, layout.block(n), &block);
    }
    let journal = layout.mount(device);
    let mut txn = begin(&journal);
    for n in [0, 1] {
        assert_eq!(header(&txn.read(&ex(1), layout.block(n)).unwrap()), (9, 55));
        assert_eq!(header(txn.edit(&ex(1), layout.block(n)).unwrap()), (0, 0));
    }
    // A new block whose maker does not know the number, and a data block that only looks like metadata.
    let fresh = txn.create(&ex(1), layout.block(2)).unwrap();
    fresh[..24].copy_from_slice(MetaHeader::new(MetaType::Lf, Jid::new(4)).as_bytes());
    let looks = txn.create_data(&ex(1), layout.block(3)).unwrap();
    looks[..24].copy_from_slice(MetaHeader::new(MetaType::Lf, Jid::new(4)).as_bytes());
    txn.commit().unwrap();
    let read = |n: u64| journal.cache().read(&ex(1), layout.block(n)).unwrap();
    assert_eq!(header(&read(2)), (0, 0));
    assert_eq!(header(&read(3)), (4, 0));
}

#[test]
fn an_own_edit_is_read_back_and_snapshots_do_not_move() {
    let layout = Layout::new(1024, 100);
    let journal = layout.mount(Arc::new(layout.device()));
    create_one(&journal, 1, layout.block(0), 5);
    let mut txn = begin(&journal);
    fill_meta(txn.edit(&ex(1), layout.block(0)).unwrap(), 6);
    let snapshot = txn.read(&ex(1), layout.block(0)).unwrap();
    fill_meta(txn.edit(&ex(1), layout.block(0)).unwrap(), 7);
    assert_eq!(snapshot, meta(&layout.geometry, 6));
    assert_eq!(txn.blocks_left(), 5);
    let cached = journal.cache().read(&ex(1), layout.block(0)).unwrap();
    txn.commit().unwrap();
    assert_eq!(cached, meta(&layout.geometry, 5));
    let now = journal.cache().read(&ex(1), layout.block(0)).unwrap();
    assert_eq!(now, meta(&layout.geometry, 7));
}

#[test]
fn a_block_made_and_freed_by_one_transaction_never_existed() {
    let layout = Layout::new(1024, 100);
    let journal = layout.mount(Arc::new(layout.device()));
    let mut txn = begin(&journal);
    fill_meta(txn.create(&ex(1), layout.block(0)).unwrap(), 1);
    txn.revoke(layout.block(0)).unwrap();
    assert!(txn.edit(&ex(1), layout.block(0)).is_err());
    txn.revoke(layout.block(0)).unwrap();
    assert_eq!((txn.blocks_left(), txn.revokes_left()), (6, 5));
    txn.commit().unwrap();
    journal.flush(FlushReason::Fsync).unwrap();
    assert_eq!(journal.stats().headers, 0);
}

#[test]
fn jdata_and_metadata_change_places() {
    let layout = Layout::new(1024, 100);
    let device = Arc::new(layout.device());
    let journal = layout.mount(device.clone());
    let mut txn = begin(&journal);
    fill_data(txn.create_data(&ex(1), layout.block(0)).unwrap(), 1);
    txn.commit().unwrap();
    let mut txn = begin(&journal);
    fill_meta(txn.edit(&ex(1), layout.block(0)).unwrap(), 2);
    txn.commit().unwrap();
    journal.write_back().unwrap();
    assert_eq!(layout.get(&*device, layout.block(0)), meta(&layout.geometry, 2));
}

#[test]
fn a_commit_of_four_blocks_is_cheap() {
    let layout = Layout::new(4096, 2048);
    let journal = layout.mount(Arc::new(layout.device()));
    for n in 0..4 {
        create_one(&journal, n, layout.block(n), 1);
    }
    let block = Block::zeroed(8);
    let start = std::time::Instant::now();
    for _ in 0..20_000 {
        let mut txn = Transaction::begin(&journal, Reservation::blocks(4)).unwrap();
        for n in 0..4 {
            txn.edit(&ex(n), layout.block(n)).unwrap()[100..108].copy_from_slice(&block);
        }
        txn.commit().unwrap();
    }
    let each = start.elapsed() / 20_000;
    println!("begin, four edits, commit: {each:?}");
    // Nothing of it reached the device: the figure above is for whoever looks, this is the claim.
    assert_eq!(journal.stats().headers, 0);
    assert_eq!(journal.stats().running, 4);
}
