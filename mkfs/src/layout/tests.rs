//! Goal: groups and journal sizes are the ones measured of the original (FORMAT.md sections 2 and 10, FEATURES.md 2.2).

use super::*;
use crate::options::{IoLimits, Stripe};

fn layout(options: &Options, size: u64) -> Result<Layout> {
    Layout::new(options, &Topology::of_size(size), &mut Vec::new())
}

fn with_block_size(bsize: u32) -> Options {
    Options {
        block_size: Some(bsize),
        ..Options::nolock()
    }
}

#[test]
fn group_division_matches_the_vectors() {
    let vectors = [
        (4096, 2057, 1, 2056),
        (4096, 47069, 3, 47064),
        (4096, 61405, 4, 61400),
        (1024, 8263, 3, 8260),
        (1024, 188_209, 48, 188_160),
        (2048, 4117, 1, 4116),
        (2048, 94133, 12, 94120),
    ];
    for (bsize, len, bitmaps, data) in vectors {
        let geometry = Geometry::new(bsize, 1 << 30).unwrap();
        assert_eq!(
            divide(&geometry, len),
            Some((bitmaps, data)),
            "bs {bsize} len {len}"
        );
    }
    let geometry = Geometry::new(4096, 1 << 30).unwrap();
    for len in 0..5 {
        assert_eq!(divide(&geometry, len), None, "{len}");
    }
}

#[test]
fn default_journal_sizes_are_the_measured_ones() {
    let cases = [
        (32 << 20, 8),
        (128 << 20, 8),
        (512 << 20, 16),
        (1 << 30, 16),
        (2 << 30, 32),
        (8 << 30, 64),
        (16 << 30, 128),
        (100 << 30, 128),
        (1 << 40, 512),
        (2 << 40, 512),
        (16 << 40, 1024),
    ];
    for (size, mb) in cases {
        assert_eq!(
            layout(&Options::nolock(), size).unwrap().journal_mb(),
            mb,
            "{size}"
        );
    }
}

#[test]
fn group_counts_are_the_measured_ones() {
    for (size, journal, count) in [
        (1 << 30, None, 5),
        (20 << 30, None, 81),
        (100 << 30, None, 401),
        (1 << 40, None, 4095),
    ] {
        let options = Options {
            journal_mb: journal,
            ..Options::nolock()
        };
        let layout = layout(&options, size).unwrap();
        assert_eq!(layout.rgrps(), count, "{size}");
    }
    assert_eq!(layout(&Options::nolock(), 1 << 30).unwrap().end(), 262_143);
}

#[test]
fn groups_follow_each_other_and_end_before_the_device() {
    for bsize in [512, 1024, 2048, 4096] {
        for size in [32 << 20, 100 << 20, (1 << 30) + 512, 777_777_777] {
            let layout = layout(&with_block_size(bsize), size).unwrap();
            let mut next = layout.rgrp(0).unwrap().addr;
            assert_eq!(next, 65536 / u64::from(bsize) + 1);
            for index in 0..layout.rgrps() {
                let rgrp = layout.rgrp(index).unwrap();
                assert_eq!(rgrp.addr, next);
                assert!(rgrp.end() <= rgrp.addr + rgrp.len);
                assert_eq!(rgrp.data % 4, 0);
                next += rgrp.len;
            }
            assert!(next <= layout.geometry().end());
            assert_eq!(layout.rgrp(layout.rgrps()), None);
            let sum: u64 = (0..layout.rgrps())
                .map(|n| u64::from(layout.rgrp(n).unwrap().data))
                .sum();
            assert_eq!(layout.total_data(), sum);
        }
    }
}

#[test]
fn aligned_groups_start_on_different_stripe_units() {
    let options = Options {
        stripe: Some(Stripe {
            unit: 65536,
            width: 393_216,
        }),
        ..Options::nolock()
    };
    let layout = layout(&options, 1 << 30).unwrap();
    assert_eq!(layout.alignment(), Some((96, 16)));
    for index in 0..layout.rgrps() {
        let rgrp = layout.rgrp(index).unwrap();
        assert_eq!(rgrp.addr % 16, 0);
        assert_eq!(rgrp.len % 96, 16);
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_originals_exit_code() {
    let nolock = Options::nolock();
    let cases: [(Options, u64, u8); 9] = [
        (nolock.clone(), 0, 255),
        (nolock.clone(), (16 << 20) - 1, 255),
        (
            Options {
                journals: 100,
                ..nolock.clone()
            },
            1 << 30,
            255,
        ),
        (
            Options {
                journal_mb: Some(1024),
                ..nolock.clone()
            },
            1 << 30,
            255,
        ),
        (
            Options {
                blocks: Some(0),
                ..nolock.clone()
            },
            1 << 30,
            255,
        ),
        (
            Options {
                blocks: Some(262_145),
                ..nolock.clone()
            },
            1 << 30,
            255,
        ),
        (with_block_size(1000), 1 << 30, 255),
        (with_block_size(131_072), 1 << 30, 255),
        (
            Options {
                stripe: Some(Stripe {
                    unit: 1 << 32,
                    width: 1 << 32,
                }),
                ..nolock
            },
            1 << 40,
            255,
        ),
    ];
    for (n, (options, size, code)) in cases.into_iter().enumerate() {
        let error = layout(&options, size).unwrap_err();
        assert_eq!(error.exit_code(), code, "case {n}: {error}");
        assert!(!error.to_string().contains('\n'), "case {n}: {error}");
    }
}

#[test]
fn several_large_journals_are_accepted_as_by_the_original() {
    let options = Options {
        journals: 4,
        journal_mb: Some(1024),
        ..Options::nolock()
    };
    assert!(layout(&options, 6 << 30).is_ok());
    assert_eq!(layout(&options, 4 << 30).unwrap_err().exit_code(), 1);
}

#[test]
fn block_size_follows_the_device_when_it_says_something_sensible() {
    let limits = IoLimits {
        logical_sector: 512,
        physical_sector: 4096,
        minimum_io: 4096,
        ..IoLimits::default()
    };
    let topology = Topology {
        size: 1 << 30,
        limits,
        max_block_size: 65536,
    };
    let pick = |limits: IoLimits, block_size| {
        let options = Options {
            block_size,
            ..Options::nolock()
        };
        let mut warnings = Vec::new();
        let layout = Layout::new(&options, &Topology { limits, ..topology }, &mut warnings);
        layout.map(|l| (l.geometry().bsize(), warnings))
    };
    assert_eq!(pick(limits, None).unwrap(), (4096, vec![]));
    let wide = IoLimits {
        optimal_io: 16384,
        ..limits
    };
    assert_eq!(pick(wide, None).unwrap().0, 16384);
    let warning = Warning::Inefficient {
        bsize: 1024,
        physical: 4096,
    };
    assert_eq!(pick(limits, Some(1024)).unwrap(), (1024, vec![warning]));
    let sectors = IoLimits {
        logical_sector: 4096,
        ..limits
    };
    assert_eq!(pick(sectors, Some(512)).unwrap_err().exit_code(), 255);
    let shifted = IoLimits {
        alignment_offset: 7168,
        ..limits
    };
    assert_eq!(
        pick(shifted, Some(1024)).unwrap(),
        (1024, vec![Warning::Misaligned])
    );
}
