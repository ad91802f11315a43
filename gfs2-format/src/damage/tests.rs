//! Goal: each statement changes exactly the bytes it names, and a wrong one changes nothing and says why.

use super::*;
use crate::addr::BlockAddr;
use crate::edit::BlockRead;
use crate::geometry::Geometry;
use crate::ondisk::{Rgrp, rgrp_crc, view};
use crate::testing::TestDevice;
use crate::volume::{DeviceReader, Volume, read_rindex, resolve_path};

fn block(device: &TestDevice, addr: u64) -> Vec<u8> {
    let geometry = Geometry::new(4096, device.size() / 4096).unwrap();
    let reader = DeviceReader::new(device, &geometry);
    reader.read(BlockAddr::new(addr)).unwrap().to_vec()
}

/// Runs a script on a fixture and lists what changed: block, offset in it, old byte, new byte.
fn changes(name: &str, script: &str) -> Vec<(u64, usize, u8, u8)> {
    let device = TestDevice::fixture(name);
    run(script, &device).unwrap_or_else(|e| panic!("{script}: {e}"));
    let before = TestDevice::fixture(name);
    let mut out = Vec::new();
    for (offset, sector) in device.changes() {
        let mut old = vec![0; sector.len()];
        before.read_at(offset, &mut old).unwrap();
        for (n, (a, b)) in (offset..).zip(old.iter().zip(&sector)) {
            if a != b {
                out.push((n / 4096, (n % 4096) as usize, *a, *b));
            }
        }
    }
    out
}

#[test]
fn each_statement_changes_what_it_names() {
    let volume = Volume::open(&TestDevice::fixture("clean4k")).unwrap();
    let root = volume.system.root.get();
    let statfs = volume.system.statfs.get();
    let own = volume.journals[1].statfs_change.unwrap().get();
    let journal = volume.journals[0].dinode.get();
    let rindex = volume.system.rindex.get();
    // script, the block and bytes (offset of the first, new value of the last) it must change
    let rows: Vec<(&str, u64, usize, u8)> = vec![
        ("set sb.sb_bsize_shift = 9", 16, 43, 9),
        ("set rgrp(1).rg_free = 0x7f7f7f7f", 2074, 28, 0x7f),
        ("set dinode(/).di_nlink = 0x11111199", root, 52, 0x99),
        ("set statfs.sc_free = -2", statfs, 232 + 8, 0xfe),
        ("set statfs_change(1).sc_dinodes = 3", own, 232 + 23, 3),
        (
            "set dinode(master:/jindex/journal0).di_height = 5",
            journal,
            139,
            5,
        ),
        ("set dinode(block 23).di_eattr = 0xff # comment", 23, 175, 0xff),
        ("set rindex(2).ri_length = 77", rindex, 232 + 2 * 96 + 11, 77),
        ("set log_header(journal 0 block 1227).lh_tail = 9", 1251, 38, 9),
        (
            "set pointer(master:jindex/journal0, 1) = 0xffffffffffffffff",
            journal,
            240,
            0xff,
        ),
        ("poke block 20 at 4094 hex:ab12", 20, 4094, 0x12),
    ];
    for (script, addr, first, last) in rows {
        let seen = changes("clean4k", script);
        assert!(!seen.is_empty(), "{script}");
        assert!(seen.iter().all(|c| c.0 == addr), "{script}: {seen:?}");
        assert_eq!(
            (seen[0].1, seen[seen.len() - 1].3),
            (first, last),
            "{script}: {seen:?}"
        );
    }
}

#[test]
fn an_entry_is_found_by_its_path_in_linear_and_hashed_directories() {
    for path in ["/big", "/big/f11999", "/big/f1"] {
        let device = TestDevice::fixture("clean4k");
        let volume = Volume::open(&device).unwrap();
        let reader = DeviceReader::new(&device, &volume.geometry);
        assert!(resolve_path(&reader, volume.system.root, path.as_bytes()).is_ok());
        let seen = changes("clean4k", &format!("set dirent({path}).de_name_len = 0x5a5a"));
        assert_eq!(seen.len(), 2, "{path}: {seen:?}");
        let (dir, name) = path.rsplit_once('/').unwrap();
        let bytes = block(&device, seen[0].0);
        let name_at = seen[0].1 + 18;
        assert_eq!(&bytes[name_at..name_at + name.len()], name.as_bytes(), "{dir}");
    }
}

#[test]
fn checksums_are_fixed_on_request_only() {
    let device = TestDevice::fixture("clean4k");
    let rgrp = |device: &TestDevice| *view::<Rgrp>(&block(device, 17), 0, BlockAddr::new(17)).unwrap();
    run("set rgrp(0).rg_free = 5", &device).unwrap();
    assert_ne!(rgrp(&device).crc.get(), rgrp_crc(&rgrp(&device)));
    run("set rgrp(0).rg_free = 6, fix crc", &device).unwrap();
    assert_eq!(rgrp(&device).crc.get(), rgrp_crc(&rgrp(&device)));
    assert_eq!(rgrp(&device).free.get(), 6);

    run("set log_header(block 1251).lh_sequence = 7", &device).unwrap();
    assert!(crate::log::decode_header(&block(&device, 1251), None).is_none());
    run("set log_header(block 1251).lh_sequence = 8, fix crc", &device).unwrap();
    let header = crate::log::decode_header(&block(&device, 1251), None).unwrap();
    assert_eq!(header.sequence, 8);
}

#[test]
fn bitmap_states_are_found_in_the_first_and_in_further_blocks() {
    let device = TestDevice::fixture("clean1k");
    let volume = Volume::open(&device).unwrap();
    let reader = DeviceReader::new(&device, &volume.geometry);
    let entries = read_rindex(&reader, volume.system.rindex).unwrap();
    let entry = &entries[1];
    assert!(
        entry.length.get() > 1,
        "the first group has further bitmap blocks"
    );
    let (addr, data0) = (entry.addr.get(), entry.data0.get());
    for (n, nth, byte) in [
        (0, 0, 128),
        (5, 0, 129),
        (3583, 0, 1023),
        (3584, 1, 24),
        (3587, 1, 24),
    ] {
        let device = TestDevice::fixture("clean1k");
        let at = |device: &TestDevice| {
            let bytes = DeviceReader::new(device, &volume.geometry)
                .read(BlockAddr::new(addr + nth))
                .unwrap();
            bytes[byte] >> (n % 4 * 2) & 3
        };
        for (state, bits) in [("free", 0), ("used", 1), ("unlinked", 2), ("dinode", 3)] {
            run(&format!("bitmap block {} = {state}", data0 + n), &device).unwrap();
            assert_eq!(at(&device), bits, "{n} {state}");
        }
    }
}

#[test]
fn whole_blocks_are_filled_and_copied_in_order() {
    let device = TestDevice::fixture("clean4k");
    run(
        "copy sb to block 5000\nfill sb with 0x5a\nzero block 16384\ncopy block 5000 to block 5001",
        &device,
    )
    .unwrap();
    assert_eq!(&block(&device, 5001)[..4], [1, 0x16, 0x19, 0x70]);
    assert!(block(&device, 16).iter().all(|b| *b == 0x5a));
    assert!(block(&device, 16384).iter().all(|b| *b == 0));
}

#[test]
fn places_are_found_before_any_of_them_is_destroyed() {
    let device = TestDevice::fixture("clean4k");
    run(
        "zero sb\nzero /\nset dinode(/big).di_nlink = 1\nset rgrp(0).rg_free = 1",
        &device,
    )
    .unwrap();
    assert!(block(&device, 16).iter().all(|b| *b == 0));
}

#[test]
fn a_wrong_statement_says_why_and_nothing_is_written() {
    let rows = [
        ("destroy everything", "no statement begins with"),
        ("zero", "one word"),
        ("zero nothing", "no place"),
        ("zero block x", "no number"),
        ("zero block 99999999999", "block number"),
        ("zero journal 0 block 2048", "no such entry"),
        ("zero journal 9 block 0", "no such entry"),
        ("zero /nowhere", "no such entry"),
        ("set nonsense(block 5).x = 1", "no structure"),
        ("set dinode(block 5).rg_free = 1", "has no field"),
        ("set dinode(5).di_size = 1", "block 5"),
        ("set dinode.di_size = 1", "say which"),
        ("set dinode(block 5).di_size", "expected"),
        ("set dinode(block 5).di_size = x", "not a number"),
        ("set dinode(block 5).di_size = 1, fix crc", "no checksum"),
        ("set rgrp(999).rg_free = 1", "no such entry"),
        ("set rindex(999).ri_addr = 1", "no such entry"),
        ("set ea_header(block 5 at 4093).ea_rec_len = 1", "byte offset"),
        (
            "set ea_header(block 5 at 18446744073709551615).ea_type = 1",
            "byte offset",
        ),
        ("set pointer(block 5, 600) = 1", "pointer block"),
        ("set pointer(/, 483) = 1", "byte offset"),
        ("set sb(sb = 1", "expected"),
        ("bitmap block 17 = used", "no such entry"),
        ("bitmap block 2075 = broken", "no state"),
        ("fill block 5 with 256", "at most 255"),
        ("poke block 5 at 0 hex:abc", "expected"),
        ("poke block 5 at 0 hex:", "expected"),
        ("copy block 5", "expected"),
    ];
    for (statement, reason) in rows {
        let device = TestDevice::fixture("clean4k");
        let script = format!("# good first\nzero block 7000\n{statement}\n");
        let error = run(&script, &device).unwrap_err().to_string();
        assert!(error.contains(reason), "{statement}: {error}");
        assert!(error.starts_with("line 3: "), "{statement}: {error}");
        assert_eq!(device.writes(), 0, "{statement}");
    }
    assert!(matches!(
        run("zero sb", &TestDevice::zeroed(1 << 20)),
        Err(DamageError::Device(_))
    ));
    assert!(run("", &TestDevice::fixture("clean4k")).is_ok());
}
