//! Goal: a volume made by the reference tools opens with the addresses the format sheet gives; each lie about a
//! journal or a system file is refused with its name.

use super::*;
use crate::addr::JournalBlock;
use crate::testing::TestDevice;
use zerocopy::{FromBytes, IntoBytes};

#[test]
fn the_journals_of_the_fixtures_lie_where_the_sheet_says() {
    // image, block size, jid, journal block, its absolute block
    let rows = [
        ("clean4k", 4096, 0, 1227, 1251),
        ("clean4k", 4096, 1, 442, 2523),
        ("clean1k", 1024, 0, 1966, 2101),
        ("dirty4k", 4096, 0, 686, 710),
        ("dirty1k", 1024, 0, 4719, 4854),
        ("cluster2j-dirty", 4096, 1, 61, 2142),
    ];
    for (name, bsize, jid, at, block) in rows {
        let volume = Volume::open(&TestDevice::fixture(name)).unwrap();
        assert_eq!(volume.geometry.bsize(), bsize, "{name}");
        let journal = volume.journal(Jid::new(jid)).unwrap();
        assert_eq!(u64::from(journal.map.ring().blocks()) * u64::from(bsize), 8 << 20);
        assert_eq!(
            journal.map.address(JournalBlock::new(at)),
            Some(BlockAddr::new(block)),
            "{name}"
        );
        assert!(journal.map.contains(BlockAddr::new(block)));
        assert!(!journal.map.contains(journal.dinode));
        assert!(journal.statfs_change.is_some() && journal.quota_change.is_some());
        assert!(volume.system.inum.is_some());
    }
}

/// Changes the dinode of journal 0 and tells what opening then says.
fn open_with(harm: impl Fn(&mut Dinode)) -> Error {
    let device = TestDevice::fixture("clean4k");
    let volume = Volume::open(&device).unwrap();
    let addr = volume.journals[0].dinode;
    let offset = volume.geometry.byte_offset(addr);
    let mut block = vec![0; 4096];
    device.read_at(offset, &mut block).unwrap();
    harm(Dinode::mut_from_prefix(&mut block).unwrap().0);
    device.write_at(offset, &block).unwrap();
    Volume::open(&device).unwrap_err()
}

#[test]
fn a_journal_that_is_none_is_refused_by_field() {
    type Harm = fn(&mut Dinode);
    let cases: [(&str, Harm); 6] = [
        ("di_size", |di| di.size = ((8 << 20) - 4096).into()),
        ("di_size", |di| di.size = ((1u64 << 30) + 4096).into()),
        ("di_size", |di| di.size = ((8 << 20) + 512).into()),
        // The tree ends at 8 MiB: what is beyond is a hole.
        ("di_size", |di| di.size = (9 << 20).into()),
        ("no_addr", |di| di.num.addr = 5.into()),
        ("di_height", |di| di.height = 9.into()),
    ];
    for (field, harm) in cases {
        match open_with(harm) {
            Error::Corrupt(c) => assert_eq!(c.field, field, "{c}"),
            other => panic!("{field}: {other}"),
        }
    }
}

#[test]
fn a_journal_that_points_outside_or_twice_at_a_block_is_refused() {
    let device = TestDevice::fixture("clean4k");
    let volume = Volume::open(&device).unwrap();
    let reader = DeviceReader::new(&device, &volume.geometry);
    let dinode = reader.read(volume.journals[0].dinode).unwrap();
    let indirect = u64::from_be_bytes(dinode[232..240].try_into().unwrap());
    let original = reader.read(BlockAddr::new(indirect)).unwrap();
    let first = u64::from_be_bytes(original[24..32].try_into().unwrap());
    let beyond = volume.geometry.end();
    for bad in [1, 16, beyond, u64::MAX, 0, first] {
        let mut block = original.clone();
        block.make_mut()[24 + 8 * 100..][..8].copy_from_slice(&bad.to_be_bytes());
        device
            .write_at(volume.geometry.byte_offset(BlockAddr::new(indirect)), &block)
            .unwrap();
        assert!(matches!(Volume::open(&device), Err(Error::Corrupt(_))), "{bad}");
    }
}

#[test]
fn a_missing_system_file_is_named() {
    let device = TestDevice::fixture("clean4k");
    let volume = Volume::open(&device).unwrap();
    let offset = volume.geometry.byte_offset(volume.system.master);
    let mut block = vec![0; 4096];
    device.read_at(offset, &mut block).unwrap();
    let at = block.windows(6).position(|w| w == b"statfs").unwrap();
    block[at] = b'S';
    device.write_at(offset, &block).unwrap();
    let text = Volume::open(&device).unwrap_err().to_string();
    assert!(text.contains("an entry named statfs"), "{text}");
}

#[test]
fn a_device_without_a_superblock_or_too_short_for_one_is_an_error() {
    assert!(Volume::open(&TestDevice::zeroed(1 << 20)).is_err());
    assert!(Volume::open(&TestDevice::zeroed(4096)).is_err());
    // Only the superblock and nothing behind it.
    let (superblock, _) = read_superblock(&TestDevice::fixture("clean4k")).unwrap();
    let device = TestDevice::zeroed(1 << 17);
    let mut block = vec![0; 4096];
    block[..272].copy_from_slice(superblock.as_bytes());
    device.write_at(65536, &block).unwrap();
    assert!(matches!(Volume::open(&device), Err(Error::Corrupt(_))));
}
