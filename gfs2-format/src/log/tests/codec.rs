use super::super::*;
use crate::addr::{BlockAddr, Jid, JournalBlock};
use crate::device::BlockDevice;
use crate::edit::{Block, BlockRead};
use crate::error::Error;
use crate::geometry::Geometry;
use crate::ondisk::{DescriptorType, MAGIC, MetaHeader, MetaType};
use crate::testing::TestDevice;
use crate::volume::{DeviceReader, Volume};
use zerocopy::IntoBytes;

fn journal_block(name: &str, jid: u32, at: u32) -> (Volume, Block) {
    let device = TestDevice::fixture(name);
    let volume = Volume::open(&device).unwrap();
    let addr = volume.journals[jid as usize]
        .map
        .address(JournalBlock::new(at))
        .unwrap();
    let block = DeviceReader::new(&device, &volume.geometry).read(addr).unwrap();
    (volume, block)
}

#[test]
fn headers_of_the_fixtures_decode_and_encode_to_the_same_bytes() {
    // image, jid, journal block, sequence, flags, tail, hash, crc, local free, local dinodes
    let rows = [
        (
            "clean4k",
            0,
            1227,
            2092,
            0x101,
            1227,
            0x2c41_872c,
            0x31ea_6f96,
            0,
            0,
        ),
        (
            "clean4k",
            0,
            185,
            2072,
            0x0400_0002,
            1426,
            0xbbff_a7f1,
            0x10ac_9e19,
            0,
            0,
        ),
        (
            "clean4k",
            1,
            0,
            1605,
            0x8000_0001,
            0,
            0xd0e0_ecc7,
            0x7092_0b58,
            0,
            0,
        ),
        (
            "clean4k",
            1,
            442,
            2047,
            0x8000_0001,
            0,
            0x1fcb_2600,
            0x398a_2b65,
            0,
            0,
        ),
        (
            "clean1k",
            0,
            1966,
            8208,
            0x101,
            1966,
            0xe039_a7bd,
            0x1202_16e8,
            0,
            0,
        ),
        (
            "dirty4k",
            0,
            686,
            2057,
            0x1002,
            639,
            0x2f26_1278,
            0x96ed_fadf,
            -332,
            307,
        ),
        (
            "dirty1k",
            0,
            4719,
            8201,
            0x1002,
            4666,
            0x0139_0014,
            0x6242_8a48,
            -364,
            307,
        ),
        (
            "cluster2j-dirty",
            0,
            1768,
            2596,
            0x1002,
            1701,
            0xd20f_6c31,
            0x37ff_607f,
            1045,
            -200,
        ),
        (
            "cluster2j-dirty",
            1,
            61,
            2605,
            0x1002,
            24,
            0x354b_3c5b,
            0x38b7_411a,
            -142,
            127,
        ),
    ];
    for (name, jid, at, sequence, flags, tail, hash, crc, free, dinodes) in rows {
        let (volume, block) = journal_block(name, jid, at);
        let what = format!("{name} journal {jid} block {at}");
        let header = decode_header(&block, Some(JournalBlock::new(at))).expect(&what);
        assert_eq!(decode_header(&block, None), Some(header), "{what}");
        assert_eq!(
            decode_header(&block, Some(JournalBlock::new(at + 1))),
            None,
            "{what}"
        );
        assert_eq!(
            (header.sequence, header.flags.bits()),
            (sequence, flags),
            "{what}"
        );
        assert_eq!(header.tail, JournalBlock::new(tail), "{what}");
        if flags & 0x1000 != 0 {
            let want = LocalStatfs {
                total: 0,
                free,
                dinodes,
            };
            assert_eq!(header.local, want, "{what}");
        }
        assert_eq!(header.version, HeaderVersion::V2, "{what}");
        assert_eq!(header.jinode, volume.journals[jid as usize].dinode, "{what}");
        let encoded = encode_header(&header, &volume.geometry);
        assert_eq!(encoded, block, "{what}");
        assert_eq!(encoded[44..48], u32::to_be_bytes(hash), "{what}");
        assert_eq!(encoded[48..52], u32::to_be_bytes(crc), "{what}");
    }
}

#[test]
fn no_single_bit_of_a_header_block_may_lie() {
    let (_, block) = journal_block("dirty4k", 0, 686);
    let good = decode_header(&block, None).unwrap();
    for bit in 0..block.len() * 8 {
        let mut bad = block.clone();
        bad.make_mut()[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode_header(&bad, None), None, "bit {bit} of {good:?}");
    }
    assert_eq!(decode_header(&block[..119], None), None);
    assert_eq!(decode_header(&[], None), None);
}

#[test]
fn a_header_without_crc_counts_whatever_follows_its_hash() {
    let (volume, block) = journal_block("dirty4k", 0, 686);
    let mut header = decode_header(&block, None).unwrap();
    header.version = HeaderVersion::V1;
    let v1 = encode_header(&header, &volume.geometry);
    assert!(v1[48..].iter().all(|b| *b == 0));
    let back = decode_header(&v1, Some(JournalBlock::new(686))).unwrap();
    assert_eq!(
        (back.version, back.sequence, back.tail),
        (HeaderVersion::V1, 2057, header.tail)
    );
    assert!(back.local.is_zero());
    let mut odd = v1.clone();
    odd.make_mut()[4000] = 7;
    assert!(decode_header(&odd, None).is_some());
}

#[test]
fn the_revoke_chunk_of_the_sheet() {
    let (volume, block) = journal_block("dirty1k", 0, 4677);
    let g = &volume.geometry;
    let chunk = decode_chunk(&block, BlockAddr::new(1), g).unwrap();
    assert_eq!(
        (chunk.kind, chunk.length, chunk.count),
        (DescriptorType::Revoke, 3, 253)
    );
    assert_eq!(revoke_blocks(g, 253), 3);
    let mut revokes: Vec<u64> = descriptor_revokes(&block, chunk.count).collect();
    assert_eq!(revokes.len() as u64, g.ldptrs());
    for n in 1..3 {
        let (_, more) = journal_block("dirty1k", 0, 4677 + n);
        let left = chunk.count - revokes.len() as u32;
        revokes.extend(continuation_revokes(&more, BlockAddr::new(1), left).unwrap());
    }
    assert_eq!(revokes.len(), 253);
    assert!(revokes.iter().all(|r| *r > 65 && *r < g.end()), "{revokes:?}");
    // Our encoder makes the kernel's bytes of them, the order of the tags apart.
    let targets: Vec<BlockAddr> = revokes.iter().map(|r| BlockAddr::new(*r)).collect();
    let flush = Flush {
        revokes: &targets,
        ..Flush::default()
    };
    let ours = flush.encode(g).unwrap();
    assert_eq!(ours.len(), 3);
    assert_eq!(ours[0][..72], block[..72]);
    let mut sorted = revokes.clone();
    sorted.sort_unstable();
    assert_eq!(
        descriptor_revokes(&ours[0], 253).collect::<Vec<_>>(),
        sorted[..119]
    );
}

#[test]
fn the_jdata_escapes_of_the_sheet_encode_to_the_same_bytes() {
    let (volume, block) = journal_block("dirty4k", 0, 408);
    let g = &volume.geometry;
    let chunk = decode_chunk(&block, BlockAddr::new(1), g).unwrap();
    assert_eq!(
        (chunk.kind, chunk.length, chunk.count),
        (DescriptorType::Jdata, 7, 6)
    );
    let found: Vec<Tag> = tags(&block, &chunk).collect();
    let want: Vec<Tag> = (2772..=2777)
        .map(|target| Tag {
            target,
            escaped: true,
        })
        .collect();
    assert_eq!(found, want);
    let mut jdata = Vec::new();
    let mut copies = Vec::new();
    for (n, tag) in (1..).zip(&found) {
        let (_, copy) = journal_block("dirty4k", 0, 408 + n);
        assert_eq!(copy[..4], [0; 4]);
        let mut in_place = copy.clone();
        in_place.make_mut()[..4].copy_from_slice(&MAGIC.to_be_bytes());
        jdata.insert(0, (BlockAddr::new(tag.target), in_place));
        copies.push(copy);
    }
    let ours = Flush {
        jdata: &jdata,
        ..Flush::default()
    }
    .encode(g)
    .unwrap();
    assert_eq!(ours[0], block);
    assert_eq!(ours[1..], copies[..]);
    // The caller's blocks keep their magic.
    assert!(jdata.iter().all(|(_, b)| b[..4] == MAGIC.to_be_bytes()));
}

fn meta_block(g: &Geometry, kind: MetaType) -> Block {
    let mut block = Block::zeroed(g.block_len());
    block.make_mut()[..24].copy_from_slice(MetaHeader::new(kind, Jid::new(3)).as_bytes());
    block
}

#[test]
fn block_counts_at_the_borders_of_a_descriptor() {
    let g = Geometry::new(4096, 1 << 20).unwrap();
    assert_eq!([0, 1, 503, 504].map(|n| metadata_blocks(&g, n)), [0, 2, 504, 506]);
    assert_eq!(metadata_blocks(&g, 307), 308);
    assert_eq!([0, 1, 251, 252].map(|n| jdata_blocks(&g, n)), [0, 2, 252, 254]);
    assert_eq!(
        [0, 1, 503, 504, 1012, 1013].map(|n| revoke_blocks(&g, n)),
        [0, 1, 1, 2, 2, 3]
    );
    assert_eq!([0, 1, 2].map(|n| revokes_in_blocks(&g, n)), [0, 503, 1012]);
    assert_eq!(blocks_needed(&g, u64::MAX, 1, 1), u64::MAX);
}

#[test]
fn a_flush_of_any_size_takes_the_blocks_it_says_and_reads_back() {
    for bsize in [512, 1024, 4096] {
        let g = Geometry::new(bsize, 1 << 20).unwrap();
        let (ld, inp) = (g.ldptrs(), g.inptrs());
        for (m, j, r) in [
            (0, 0, 0),
            (1, 0, 0),
            (ld, ld / 2, ld),
            (ld + 1, ld / 2 + 1, ld + 1),
            (2 * ld + 3, ld, ld + inp),
            (0, 0, ld + inp + 1),
        ] {
            let metadata: Vec<_> = (0..m)
                .map(|n| (BlockAddr::new(5000 - n), meta_block(&g, MetaType::Di)))
                .collect();
            let jdata: Vec<_> = (0..j)
                .map(|n| {
                    let block = match n % 3 {
                        0 => meta_block(&g, MetaType::Lh),
                        _ => Block::from(vec![n as u8; g.block_len()].as_slice()),
                    };
                    (BlockAddr::new(9000 + n), block)
                })
                .collect();
            let revokes: Vec<_> = (0..r).map(|n| BlockAddr::new(20000 + n)).collect();
            let flush = Flush {
                jdata: &jdata,
                metadata: &metadata,
                revokes: &revokes,
            };
            let blocks = flush.encode(&g).unwrap();
            assert_eq!(blocks.len() as u64, blocks_needed(&g, m, j, r));
            let (seen_jdata, seen_meta, seen_revokes) = read_back(&blocks, &g);
            assert_eq!(seen_jdata, jdata, "{bsize} {m} {j} {r}");
            let mut sorted = metadata.clone();
            sorted.sort_by_key(|(addr, _)| *addr);
            assert_eq!(seen_meta, sorted, "{bsize} {m} {j} {r}");
            assert_eq!(seen_revokes, revokes, "{bsize} {m} {j} {r}");
            // No block of a flush may be taken for a header by a head search.
            assert!(blocks.iter().all(|b| decode_header(b, None).is_none()));
        }
    }
}

type Logged = Vec<(BlockAddr, Block)>;

fn read_back(blocks: &[Block], g: &Geometry) -> (Logged, Logged, Vec<BlockAddr>) {
    let (mut jdata, mut metadata, mut revokes) = (Vec::new(), Vec::new(), Vec::new());
    let mut at = 0;
    while at < blocks.len() {
        let chunk = decode_chunk(&blocks[at], BlockAddr::new(0), g).unwrap();
        let rest = &blocks[at + 1..at + chunk.length as usize];
        if chunk.kind == DescriptorType::Revoke {
            revokes.extend(descriptor_revokes(&blocks[at], chunk.count).map(BlockAddr::new));
            for block in rest {
                let left = chunk.count - revokes.len() as u32;
                let more = continuation_revokes(block, BlockAddr::new(0), left).unwrap();
                revokes.extend(more.map(BlockAddr::new));
            }
        }
        for (tag, copy) in tags(&blocks[at], &chunk).zip(rest) {
            let mut copy = copy.clone();
            if tag.escaped {
                copy.make_mut()[..4].copy_from_slice(&MAGIC.to_be_bytes());
            }
            let logged = (BlockAddr::new(tag.target), copy);
            match chunk.kind {
                DescriptorType::Jdata => jdata.push(logged),
                _ => metadata.push(logged),
            }
        }
        at += chunk.length as usize;
    }
    (jdata, metadata, revokes)
}

#[test]
fn what_replay_would_refuse_is_not_encoded() {
    let g = Geometry::new(4096, 1 << 20).unwrap();
    let addr = BlockAddr::new(100);
    let headless = [(addr, Block::zeroed(4096))];
    let short = [(addr, Block::zeroed(512))];
    let refused = |flush: Flush<'_>| matches!(flush.encode(&g), Err(Error::Corrupt(_)));
    assert!(refused(Flush {
        metadata: &headless,
        ..Flush::default()
    }));
    assert!(refused(Flush {
        metadata: &short,
        ..Flush::default()
    }));
    assert!(refused(Flush {
        jdata: &short,
        ..Flush::default()
    }));
    assert!(!refused(Flush {
        jdata: &headless,
        ..Flush::default()
    }));
}

#[test]
fn a_descriptor_with_impossible_numbers_is_refused_by_field() {
    let (volume, block) = journal_block("dirty4k", 0, 408);
    let g = &volume.geometry;
    let cases: [(&str, usize, u32); 8] = [
        ("mh_magic", 0, 0),
        ("mh_type", 4, 12),
        ("ld_type", 24, 299),
        ("ld_type", 24, 303),
        ("ld_length", 28, 0),
        ("ld_data1", 28, 6),
        ("ld_data1", 32, 252),
        ("ld_data1", 32, u32::MAX),
    ];
    for (field, offset, value) in cases {
        let mut bad = block.clone();
        bad.make_mut()[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
        match decode_chunk(&bad, BlockAddr::new(1), g) {
            Err(Error::Corrupt(c)) => assert_eq!(c.field, field, "{c}"),
            other => panic!("{field} = {value}: {other:?}"),
        }
    }
    assert!(decode_chunk(&block[..71], BlockAddr::new(1), g).is_err());
}

#[test]
fn an_unaligned_block_still_yields_its_words() {
    let (volume, block) = journal_block("dirty4k", 0, 408);
    let mut shifted = vec![0];
    shifted.extend_from_slice(&block);
    let chunk = decode_chunk(&shifted[1..], BlockAddr::new(1), &volume.geometry).unwrap();
    assert_eq!(tags(&shifted[1..], &chunk).count(), 6);
}

#[test]
fn a_journal_in_pieces_is_read_around_its_end() {
    let g = Geometry::new(512, 1000).unwrap();
    let device = TestDevice::zeroed(512 * 1000);
    let extent = |start, len| crate::Extent {
        start: BlockAddr::new(start),
        len,
    };
    let map = JournalMap::new([extent(200, 3), extent(203, 1), extent(900, 2), extent(150, 4)]).unwrap();
    assert_eq!(map.ring().blocks(), 10);
    assert_eq!(map.extents().count(), 3);
    for n in 0..10u8 {
        let addr = map.address(JournalBlock::new(u32::from(n))).unwrap();
        device.write_at(g.byte_offset(addr), &[n; 512]).unwrap();
    }
    assert_eq!(map.address(JournalBlock::new(10)), None);
    let reader = DeviceJournal::new(&device, &g, &map);
    let mut buf = vec![0; 512 * 10];
    reader.read(JournalBlock::new(8), &mut buf).unwrap();
    let seen: Vec<u8> = buf.chunks(512).map(|b| b[511]).collect();
    assert_eq!(seen, [8, 9, 0, 1, 2, 3, 4, 5, 6, 7]);
    assert!(reader.read(JournalBlock::new(10), &mut buf).is_err());
    assert!(reader.read(JournalBlock::new(0), &mut vec![0; 512 * 11]).is_err());
    assert!(
        [150, 153, 200, 203, 900, 901]
            .iter()
            .all(|b| map.contains(BlockAddr::new(*b)))
    );
    assert!(
        ![0, 149, 154, 199, 204, 899, 902]
            .iter()
            .any(|b| map.contains(BlockAddr::new(*b)))
    );
    assert!(JournalMap::new([]).is_none());
    assert!(JournalMap::new([extent(u64::MAX, 2)]).is_none());
    assert!(JournalMap::new([extent(1, u32::MAX), extent(1, 1)]).is_none());
}
