//! The table against a map of single bytes, and against the records the stock daemon would list.

use std::collections::BTreeMap;

use super::*;

fn want(node: u32, owner: u64, start: u64, end: u64, exclusive: bool) -> NodeLock {
    NodeLock {
        node: NodeId(node),
        lock: Plock {
            number: 7,
            start,
            end,
            owner,
            pid: node * 100,
            exclusive,
        },
    }
}

fn listing(table: &PlockTable) -> Vec<(u64, u64, char, u32)> {
    let all = table.records().flat_map(|(_, records)| records);
    all.map(|r| {
        let kind = match (r.exclusive, r.waiting) {
            (false, false) => 'r',
            (true, false) => 'w',
            (false, true) => 'R',
            (true, true) => 'W',
        };
        (r.start, r.end, kind, r.node.0)
    })
    .collect()
}

fn locked(steps: &[(u64, u64, bool)]) -> PlockTable {
    let mut table = PlockTable::default();
    for (start, end, exclusive) in steps {
        let (result, granted) = table.lock(want(1, 1, *start, *end, *exclusive), false, 0);
        assert_eq!((result, granted), (Locked::Granted, vec![]));
    }
    table
}

#[test]
fn records_split_shrink_and_move_as_in_the_stock_daemon() {
    type Case = (&'static [(u64, u64, bool)], &'static [(u64, u64, char)]);
    let cases: &[Case] = &[
        (&[(0, 9, false), (0, 9, false)], &[(0, 9, 'r')]),
        (&[(0, 9, false), (0, 9, true)], &[(0, 9, 'w')]),
        (&[(0, 9, false), (2, 4, false)], &[(0, 9, 'r')]),
        (&[(0, 9, false), (0, 4, true)], &[(0, 4, 'w'), (5, 9, 'r')]),
        (&[(0, 9, false), (5, 9, true)], &[(5, 9, 'w'), (0, 4, 'r')]),
        (
            &[(0, 9, true), (3, 5, false)],
            &[(3, 5, 'r'), (0, 2, 'w'), (6, 9, 'w')],
        ),
        (&[(3, 5, true), (0, 9, false)], &[(0, 9, 'r')]),
        (&[(0, 5, false), (4, 9, false)], &[(0, 3, 'r'), (4, 9, 'r')]),
        (&[(4, 9, true), (0, 5, false)], &[(6, 9, 'w'), (0, 5, 'r')]),
        (&[(0, 4, false), (5, 9, false)], &[(0, 4, 'r'), (5, 9, 'r')]),
        (
            &[(0, 1, false), (4, 5, true), (8, 9, false), (1, 8, true)],
            &[(0, 0, 'r'), (9, 9, 'r'), (1, 8, 'w')],
        ),
        (
            &[(0, u64::MAX, false), (u64::MAX, u64::MAX, true)],
            &[(u64::MAX, u64::MAX, 'w'), (0, u64::MAX - 1, 'r')],
        ),
    ];
    for (steps, expected) in cases {
        let found: Vec<_> = listing(&locked(steps))
            .into_iter()
            .map(|(s, e, k, _)| (s, e, k))
            .collect();
        assert_eq!(found, *expected, "{steps:?}");
    }
}

#[test]
fn unlocking_cuts_holes_and_ends() {
    type Case = ((u64, u64), &'static [(u64, u64, char)]);
    let cases: &[Case] = &[
        ((0, 9), &[]),
        ((0, u64::MAX), &[]),
        ((0, 3), &[(4, 9, 'w')]),
        ((7, 9), &[(0, 6, 'w')]),
        ((7, 20), &[(0, 6, 'w')]),
        ((4, 4), &[(0, 3, 'w'), (5, 9, 'w')]),
        ((10, 20), &[(0, 9, 'w')]),
    ];
    for ((start, end), expected) in cases {
        let mut table = locked(&[(0, 9, true)]);
        assert_eq!(
            table.unlock(want(1, 1, *start, *end, false), false),
            (vec![], vec![])
        );
        let found: Vec<_> = listing(&table)
            .into_iter()
            .map(|(s, e, k, _)| (s, e, k))
            .collect();
        assert_eq!(found, *expected, "{start}-{end}");
        assert_eq!(table.is_empty(), expected.is_empty());
    }
}

#[test]
fn waiters_are_served_in_order_and_a_reader_passes_a_writer_that_must_wait() {
    let mut table = locked(&[(0, 9, true)]);
    for (token, node, exclusive) in [(11, 2, false), (12, 3, true), (13, 4, false)] {
        let (result, _) = table.lock(want(node, 1, 0, 9, exclusive), true, token);
        assert_eq!(result, Locked::Waiting);
    }
    let (_, granted) = table.unlock(want(1, 1, 0, 9, false), false);
    let tokens: Vec<_> = granted.iter().map(|waiter| waiter.token).collect();
    assert_eq!(tokens, [11, 13]);
    assert_eq!(listing(&table), [(0, 9, 'r', 2), (0, 9, 'r', 4), (0, 9, 'W', 3)]);
    assert_eq!(table.waiter(NodeId(3), 12), Some(want(3, 1, 0, 9, true)));
    assert_eq!(table.purge(NodeId(2)), []);
    let granted = table.purge(NodeId(4));
    assert_eq!(granted.iter().map(|w| w.token).collect::<Vec<_>>(), [12]);
    table.purge(NodeId(3));
    assert!(table.is_empty());
}

#[test]
fn a_close_takes_back_the_owners_waiters_and_a_cancel_one() {
    let mut table = locked(&[(0, 9, true)]);
    for (token, start) in [(1, 0), (2, 5), (3, 5)] {
        table.lock(want(2, 8, start, 9, true), true, token);
    }
    table.lock(want(2, 9, 0, 9, true), true, 4);
    let (canceled, granted) = table.cancel(&want(2, 8, 5, 9, true), Some(3));
    assert_eq!((canceled.map(|w| w.token), granted.len()), (Some(3), 0));
    assert_eq!(table.cancel(&want(2, 8, 5, 9, false), None).0, None);
    let (cleared, granted) = table.unlock(want(2, 8, u64::MAX, u64::MAX, false), true);
    assert_eq!(cleared.iter().map(|w| w.token).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(granted, []);
    assert_eq!(listing(&table), [(0, 9, 'w', 1), (0, 9, 'W', 2)]);
}

#[test]
fn a_test_names_the_first_lock_in_the_way() {
    let mut table = locked(&[(0, 4, true)]);
    table.lock(want(2, 1, 5, 9, false), false, 0);
    assert_eq!(table.test(&want(3, 1, 0, 9, true)), Some(want(1, 1, 0, 4, true)));
    assert_eq!(table.test(&want(3, 1, 5, 9, true)), Some(want(2, 1, 5, 9, false)));
    assert_eq!(table.test(&want(3, 1, 5, 9, false)), None);
    assert_eq!(table.test(&want(1, 1, 0, 4, true)), None);
}

#[test]
fn an_adopted_table_is_the_same_table() {
    let mut random = fastrand::Rng::with_seed(1);
    let mut table = PlockTable::default();
    for step in 0..500 {
        churn(&mut table, &mut random, step);
    }
    let mut copy = PlockTable::default();
    for (number, records) in table.records() {
        for record in records {
            copy.adopt(number, &record);
        }
    }
    for step in 0..500 {
        let mut same = random.clone();
        churn(&mut table, &mut random, step);
        churn(&mut copy, &mut same, step);
        assert!(table.records().eq(copy.records()), "step {step}");
    }
}

fn churn(table: &mut PlockTable, random: &mut fastrand::Rng, token: u64) -> NodeLock {
    let start = random.u64(0..24);
    let end = random.u64(start..24);
    let range = want(random.u32(1..4), random.u64(1..3), start, end, random.bool());
    match random.u8(0..8) {
        0..=4 => drop(table.lock(range, random.bool(), token + 1)),
        5 | 6 => drop(table.unlock(range, random.u8(0..4) == 0)),
        _ => drop(table.cancel(&range, None)),
    }
    range
}

/// What each byte is, from the listing.
fn bytes(table: &PlockTable) -> BTreeMap<(u64, u32, u64), bool> {
    let mut found = BTreeMap::new();
    for record in table.records().flat_map(|(_, records)| records) {
        for byte in record.start..=record.end {
            let key = (byte, record.node.0, record.owner);
            let twice = (!record.waiting)
                .then(|| found.insert(key, record.exclusive))
                .flatten();
            assert_eq!(twice, None, "an owner's ranges overlap");
        }
    }
    found
}

#[test]
fn random_operations_agree_with_a_map_of_bytes() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut table = PlockTable::default();
        let mut model: BTreeMap<(u64, u32, u64), bool> = BTreeMap::new();
        for step in 0..400 {
            let start = random.u64(0..24);
            let end = random.u64(start..24);
            let range = want(random.u32(1..4), random.u64(1..3), start, end, random.bool());
            let mine = |byte| (byte, range.node.0, range.lock.owner);
            if random.u8(0..3) > 0 {
                let free = model.iter().all(|((byte, node, owner), exclusive)| {
                    (*node, *owner) == (range.node.0, range.lock.owner)
                        || !(start..=end).contains(byte)
                        || !(*exclusive || range.lock.exclusive)
                });
                let (result, _) = table.lock(range, false, 0);
                assert_eq!(result == Locked::Granted, free, "seed {seed} step {step}");
                if free {
                    model.extend((start..=end).map(|byte| (mine(byte), range.lock.exclusive)));
                }
            } else {
                table.unlock(range, false);
                model.retain(|key, _| !(start..=end).any(|byte| *key == mine(byte)));
            }
            assert_eq!(bytes(&table), model, "seed {seed} step {step}");
        }
    }
}
