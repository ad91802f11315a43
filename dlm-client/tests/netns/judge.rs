//! The judge: from the logs of all nodes, was a lock ever held by two that exclude each other, and was a value lost?

use std::collections::BTreeMap;

use crate::lab::{Lab, clock, time_of};

/// A lock that was held.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "node and life are shown when the judge complains")]
struct Held {
    from: f64,
    to: f64,
    exclusive: bool,
    node: u32,
    life: u32,
    /// The value it was given; none when that is said to be lost.
    read: Option<u64>,
    /// The value it left; none when it did not live to tell.
    wrote: Option<u64>,
}

/// What a log tells, by resource. A node that was fenced holds nothing afterwards, whatever it thinks.
fn held(node: u32, life: u32, lines: &[String], end: f64, all: &mut BTreeMap<String, Vec<Held>>) {
    let mut open: BTreeMap<&str, Held> = BTreeMap::new();
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let time = time_of(line);
        match words[1..] {
            ["grant", resource, mode, count] => {
                assert!(
                    time <= end,
                    "node {node}, life {life}: {line:?} after the node was fenced at {end:.6}"
                );
                let grant = Held {
                    from: time,
                    to: end,
                    exclusive: mode == "Ex",
                    node,
                    life,
                    read: count.parse().ok(),
                    wrote: None,
                };
                open.insert(resource, grant);
            }
            ["release", resource, count] => {
                let mut grant = open.remove(resource).expect("granted before");
                if time <= end {
                    grant.to = time;
                    grant.wrote = count.parse().ok();
                }
                all.entry(resource.to_owned()).or_default().push(grant);
            }
            ["fatal" | "ended" | "left", ..] => {
                open.values_mut().for_each(|grant| grant.to = grant.to.min(time));
            }
            _ => {}
        }
    }
    for (resource, grant) in open {
        all.entry(resource.to_owned()).or_default().push(grant);
    }
}

/// Judges the logs up to now; how many grants there were.
pub(crate) fn judge(lab: &Lab) -> usize {
    // Nodes that still run go on while their logs are read, one after the other.
    let now = clock();
    let fences = lab.fences();
    let mut all = BTreeMap::new();
    for (node, life, mut lines) in lab.logs() {
        lines.retain(|line| time_of(line) <= now);
        let begin = lines.first().map_or(0.0, |line| time_of(line));
        let fenced = fences
            .iter()
            .filter(|(time, victim)| *victim == node && *time >= begin);
        let end = fenced
            .map(|(time, _)| *time)
            .fold(lab.end_of(node, life), f64::min);
        // Fencing of an earlier life may be told when the next one has begun only if that was never started.
        held(node, life, &lines, end, &mut all);
    }
    let mut count = 0;
    for (resource, mut grants) in all {
        grants.sort_by(|a, b| a.from.total_cmp(&b.from));
        count += grants.len();
        check_exclusion(&resource, &grants);
        check_values(&resource, &grants);
    }
    count
}

fn check_exclusion(resource: &str, grants: &[Held]) {
    // The longest that is still held, shared and exclusive.
    let mut last: [Option<&Held>; 2] = [None, None];
    for grant in grants {
        for (at, other) in last.iter().enumerate() {
            let excludes = grant.exclusive || at == 1;
            if let Some(other) = other.filter(|other| excludes && other.to > grant.from) {
                panic!("resource {resource}: two hold what excludes the other:\n{other:?}\n{grant:?}");
            }
        }
        let slot = &mut last[usize::from(grant.exclusive)];
        if slot.is_none_or(|other| other.to < grant.to) {
            *slot = Some(grant);
        }
    }
}

/// Every holder must read what the last writer left, unless it is said to be lost or the writer did not live to tell.
fn check_values(resource: &str, grants: &[Held]) {
    let mut value = Some(0);
    for grant in grants {
        if let (Some(expected), Some(read)) = (value, grant.read) {
            assert_eq!(
                read, expected,
                "resource {resource}: {grant:?} reads an old value"
            );
        }
        if grant.exclusive {
            value = grant.wrote;
        } else if value.is_none() {
            value = grant.read;
        }
    }
}
