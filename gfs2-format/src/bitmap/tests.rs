//! Goal: layouts, states and searches agree with a plain model; lies are refused.

use super::*;
use zerocopy::FromZeros;

const AT: BlockAddr = BlockAddr::new(22);

fn entry(addr: u64, length: u32, data: u32) -> RindexEntry {
    let mut entry = RindexEntry::new_zeroed();
    entry.addr = addr.into();
    entry.length = length.into();
    entry.data0 = (addr + u64::from(length)).into();
    entry.data = data.into();
    entry.bitbytes = (data / 4).into();
    entry
}

#[test]
fn layouts_of_the_format_sheet_are_accepted() {
    for (bs, length, data) in [
        (4096, 1, 2056),
        (4096, 3, 47064),
        (4096, 4, 61400),
        (1024, 3, 8260),
        (1024, 48, 188160),
        (2048, 1, 4116),
        (2048, 12, 94120),
    ] {
        let g = Geometry::new(bs, 1 << 20).unwrap();
        let layout = RgrpLayout::check(&entry(200, length, data), AT, &g).unwrap();
        let slices: Vec<BitmapSlice> = layout.slices().collect();
        assert_eq!(slices.len(), length as usize);
        assert_eq!(
            slices.iter().map(BitmapSlice::states).sum::<u32>(),
            data,
            "bs {bs}"
        );
        assert_eq!(slices.last().unwrap().end(), layout.end());
        assert!(slices.windows(2).all(|w| w[0].end() == w[1].first));
        for block in [layout.data0(), BlockAddr::new(layout.end().get() - 1)] {
            assert!(layout.locate(block).unwrap().contains(block));
        }
        assert_eq!(layout.locate(layout.addr()), None);
        assert_eq!(layout.locate(layout.end()), None);
    }
}

#[test]
fn an_index_entry_is_refused_for_each_wrong_field() {
    let g = Geometry::new(4096, 100_000).unwrap();
    let good = entry(17, 1, 2056);
    assert!(RgrpLayout::check(&good, AT, &g).is_ok());
    let damage: [fn(&mut RindexEntry); 10] = [
        |e| e.addr = 0.into(),
        |e| e.addr = 99_999.into(),
        |e| e.length = 0.into(),
        |e| e.length = 2.into(),
        |e| e.length = u32::MAX.into(),
        |e| e.data = 2055.into(),
        |e| e.data = 0.into(),
        |e| e.data0 = 17.into(),
        |e| e.bitbytes = 513.into(),
        |e| {
            e.data = (u32::MAX - 3).into();
            e.bitbytes = ((u32::MAX - 3) / 4).into();
        },
    ];
    for (n, harm) in damage.into_iter().enumerate() {
        let mut bad = good;
        harm(&mut bad);
        assert!(RgrpLayout::check(&bad, AT, &g).is_err(), "case {n}");
    }
    let end = Geometry::new(4096, 2000).unwrap();
    assert!(RgrpLayout::check(&good, AT, &end).is_err(), "past the device");
}

#[test]
fn the_index_is_sorted_and_must_not_overlap() {
    let g = Geometry::new(4096, 100_000).unwrap();
    let bytes = |entries: &[RindexEntry]| -> Vec<u8> {
        entries
            .iter()
            .flat_map(|e| zerocopy::IntoBytes::as_bytes(e).to_vec())
            .collect()
    };
    let mut content = bytes(&[entry(5000, 1, 400), entry(17, 1, 2056)]);
    content.extend([7; 50]);
    let groups = decode_rindex(&content, AT, &g).unwrap();
    assert_eq!(
        groups.iter().map(|g| g.addr().get()).collect::<Vec<_>>(),
        [17, 5000]
    );
    for (block, want) in [
        (16, None),
        (17, Some(0)),
        (2073, Some(0)),
        (2074, None),
        (5000, Some(1)),
        (5401, None),
    ] {
        assert_eq!(find_rgrp(&groups, BlockAddr::new(block)), want, "block {block}");
    }
    let overlap = bytes(&[entry(17, 1, 2056), entry(2073, 1, 400)]);
    assert!(decode_rindex(&overlap, AT, &g).is_err());
    let twice = bytes(&[entry(17, 1, 2056), entry(17, 1, 2056)]);
    assert!(decode_rindex(&twice, AT, &g).is_err());
}

#[test]
fn only_legal_transitions_from_the_expected_state() {
    use BlockState::{Dinode, Free, Unlinked, Used};
    let g = Geometry::new(512, 100_000).unwrap();
    let layout = RgrpLayout::check(&entry(200, 1, 400), AT, &g).unwrap();
    let slice = layout.slice(0).unwrap();
    let block = layout.data0();
    let legal = [
        (Free, Used),
        (Free, Dinode),
        (Used, Free),
        (Unlinked, Free),
        (Dinode, Free),
        (Dinode, Unlinked),
    ];
    for from in [Free, Used, Unlinked, Dinode] {
        for to in [Free, Used, Unlinked, Dinode] {
            let mut bytes = vec![0; 512];
            bytes[slice.offset] = from as u8;
            let done = slice.set(&mut bytes, block, from, to);
            assert_eq!(done.is_ok(), legal.contains(&(from, to)), "{from:?} to {to:?}");
            let want = if done.is_ok() { to } else { from };
            assert_eq!(slice.state(&bytes, block).unwrap(), want);
            for other in [Free, Used, Unlinked, Dinode].into_iter().filter(|s| *s != want) {
                assert!(slice.set(&mut bytes, block, other, Free).is_err());
            }
        }
    }
    let mut bytes = vec![0; 512];
    assert!(slice.set(&mut bytes, layout.end(), Free, Used).is_err());
    assert!(slice.set(&mut bytes[..200], block, Free, Used).is_err());
    let run = Extent {
        start: block,
        len: 401,
    };
    assert!(slice.set_run(&mut bytes, run, Free, Used).is_err());
    assert!(bytes.iter().all(|b| *b == 0), "all or none");
}

/// Every search against a plain loop, over seeded random bitmaps of all lengths of the last partial word.
#[test]
fn searches_and_counts_agree_with_a_plain_loop() {
    let g = Geometry::new(512, 100_000).unwrap();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..200u32 {
        let data = 4 + 4 * (random() % 300) as u32;
        let layout = RgrpLayout::check(&entry(200, 1, data), AT, &g).unwrap();
        let slice = layout.slice(0).unwrap();
        let mut bytes = vec![0xff; 512];
        let mut model = Vec::new();
        for index in 0..data as usize {
            let bias = random() % 100;
            let state = if bias < 15 * u64::from(round % 7) {
                0
            } else {
                (random() % 4) as u8
            };
            let byte = &mut bytes[slice.offset + index / 4];
            *byte = *byte & !(3 << (index % 4 * 2)) | state << (index % 4 * 2);
            model.push(state);
        }
        let counts = slice.count(&bytes).unwrap();
        for state in 0..4u8 {
            let want = model.iter().filter(|s| **s == state).count();
            assert_eq!(counts[usize::from(state)] as usize, want);
        }
        let listed: Vec<u8> = slice
            .iter(&bytes)
            .unwrap()
            .map(|(_, state)| state as u8)
            .collect();
        assert_eq!(listed, model);
        let first = layout.data0().get();
        for _ in 0..50 {
            let from = (random() % u64::from(data + 8)) as usize;
            let state = BlockState::from_bits(random() as u8);
            let want = (from..model.len()).find(|i| model[*i] == state as u8);
            let found = slice
                .find_state(&bytes, BlockAddr::new(first + from as u64), state)
                .unwrap();
            assert_eq!(found.map(|b| (b.get() - first) as usize), want);

            let (min, most) = ((random() % 6) as u32, (random() % 40) as u32);
            let want = plain_run(&model, from, min.max(1) as usize, most.max(min).max(1) as usize);
            let found = slice
                .find_free(&bytes, BlockAddr::new(first + from as u64), min, most)
                .unwrap();
            let found = found.map(|run| ((run.start.get() - first) as usize, run.len as usize));
            assert_eq!(found, want, "from {from} min {min} want {most}");
        }
    }
}

fn plain_run(model: &[u8], from: usize, min: usize, want: usize) -> Option<(usize, usize)> {
    let mut at = from;
    while at < model.len() {
        let len = model[at..].iter().take(want).take_while(|s| **s == 0).count();
        if len >= min {
            return Some((at, len));
        }
        at += len.max(1);
    }
    None
}
