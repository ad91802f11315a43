//! Goal: the structures hold the vectors of the format sheet (FORMAT.md section 10) and refuse lies.

use super::*;
use crate::geometry::Geometry;
use zerocopy::IntoBytes;

#[test]
fn name_hashes_match_the_kernels() {
    let vectors: [(&[u8], u32); 9] = [
        (b".", 0x0ed4_e242),
        (b"..", 0x9608_161c),
        (b"a", 0xe8b7_be43),
        (b"f0", 0x54a7_ee72),
        (b"journal0", 0xfc77_45eb),
        (b"rindex", 0xb179_9d75),
        (b"lost+found", 0x6ab4_7928),
        (b"hello world", 0x0d4a_1185),
        (&[b'x'; 255], 0x3d66_e3d9),
    ];
    for (name, hash) in vectors {
        assert_eq!(name_hash(name), hash, "{name:?}");
    }
}

#[test]
fn a_short_block_is_corrupt_not_a_panic() {
    let at = BlockAddr::new(5);
    assert!(view::<Dinode>(&[0; 231], 0, at).is_err());
    assert!(view::<Dinode>(&[0; 512], 400, at).is_err());
    assert!(view::<Dinode>(&[0; 512], usize::MAX, at).is_err());
    assert!(Superblock::decode(&[0; 10]).is_err());
}

#[test]
fn a_superblock_is_refused_for_each_wrong_field() {
    let mut good = Superblock::read_from_bytes(&[0; 272]).unwrap();
    good.header = MetaHeader::new(MetaType::Sb, crate::Jid::new(0));
    good.fs_format = 1802.into();
    good.multihost_format = 1900.into();
    good.bsize = 4096.into();
    good.bsize_shift = 12.into();
    good.lockproto[..11].copy_from_slice(b"lock_nolock");
    assert_eq!(
        Superblock::decode(good.as_bytes()).unwrap().lockproto(),
        "lock_nolock"
    );
    let damage: [fn(&mut Superblock); 6] = [
        |sb| sb.header.magic = 1.into(),
        |sb| sb.header.mh_type = 2.into(),
        |sb| sb.fs_format = 1803.into(),
        |sb| sb.multihost_format = 1901.into(),
        |sb| sb.bsize = 4095.into(),
        |sb| sb.bsize_shift = 11.into(),
    ];
    for (n, harm) in damage.into_iter().enumerate() {
        let mut bad = good;
        harm(&mut bad);
        assert!(Superblock::decode(bad.as_bytes()).is_err(), "case {n}");
    }
}

#[test]
fn a_dinode_is_refused_for_each_wrong_field() {
    let at = BlockAddr::new(100);
    let g = Geometry::new(4096, 1000).unwrap();
    let mut good = Dinode::read_from_bytes(&[0; DINODE_SIZE]).unwrap();
    good.header = MetaHeader::new(MetaType::Di, crate::Jid::new(0));
    good.num.addr = 100.into();
    good.mode = 0o100644.into();
    assert!(Dinode::decode(good.as_bytes(), at, &g).is_ok());
    let damage: [fn(&mut Dinode); 6] = [
        |di| di.num.addr = 101.into(),
        |di| di.mode = 0.into(),
        |di| di.height = 7.into(),
        |di| di.depth = 18.into(),
        |di| di.set_flags(DinodeFlags::EXHASH),
        |di| di.size = 3865.into(),
    ];
    for (n, harm) in damage.into_iter().enumerate() {
        let mut bad = good;
        harm(&mut bad);
        assert!(Dinode::decode(bad.as_bytes(), at, &g).is_err(), "case {n}");
    }
}

#[test]
fn xattr_names_split_by_prefix() {
    assert_eq!(
        EaType::split_name(b"user.x"),
        Some((EaType::User, b"x".as_slice()))
    );
    assert_eq!(
        EaType::split_name(b"trusted."),
        Some((EaType::Trusted, b"".as_slice()))
    );
    assert_eq!(EaType::split_name(b"other.x"), None);
}
