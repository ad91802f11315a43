use super::{Plan, run};

fn plan(seed: u64) -> Plan {
    Plan {
        seed,
        nodes: 2 + u32::try_from(seed % 4).unwrap(),
        resources: 1 + seed % 5,
        calls: 400 + 100 * (seed % 5),
        faults: seed % 7,
        nodir: seed % 11 == 10,
        resets: seed % 3 == 1,
        partitions: seed % 5 < 2,
    }
}

/// Runs one plan; a failure says what, and how it came to it.
fn check(plan: Plan) -> super::Outcome {
    let outcome = run(plan);
    if let Some(wrong) = &outcome.wrong {
        let tail = std::env::var("DLM_SIM_TAIL").map_or(60, |t| t.parse().unwrap());
        let from = outcome.tail.len().saturating_sub(tail);
        panic!("{}\n{wrong}\n{plan:?}", outcome.tail[from..].join("\n"));
    }
    outcome
}

/// `DLM_SIM_SEEDS=first..last` runs those instead of a share of the usual ones.
fn seeds(share: u64) {
    let all = std::env::var("DLM_SIM_SEEDS").unwrap_or_else(|_| "0..2000".to_owned());
    let (first, last) = all.split_once("..").expect("first..last");
    let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
    let (mut runs, mut recoveries, mut grants, mut reads, mut resets, mut partitions) = (0, 0, 0, 0, 0, 0);
    for seed in (first..last).filter(|seed| seed % SHARES == share) {
        let outcome = check(plan(seed));
        runs += 1;
        recoveries += outcome.recoveries;
        grants += outcome.grants;
        reads += outcome.reads;
        resets += outcome.resets;
        partitions += outcome.partitions;
    }
    println!(
        "{runs} runs, {recoveries} recoveries, {grants} grants, {reads} value blocks compared, {resets} resets, \
         {partitions} partitions"
    );
    if runs > 20 {
        assert!(recoveries > runs && grants > 100 * runs && reads > 10 * runs && resets > runs / 2);
        assert!(partitions > runs / 10);
    }
}

/// Tests that share the seeds, for as many threads.
const SHARES: u64 = 4;

/// Goal: no schedule of calls, delays and faults breaks an oracle. Method: seeds.
#[test]
fn seeds_first_share() {
    seeds(0);
}

#[test]
fn seeds_second_share() {
    seeds(1);
}

#[test]
fn seeds_third_share() {
    seeds(2);
}

#[test]
fn seeds_fourth_share() {
    seeds(3);
}

#[test]
fn a_seed_runs_twice_the_same() {
    for seed in [3, 17, 41, 76, 109] {
        assert_eq!(run(plan(seed)), run(plan(seed)));
    }
    assert_ne!(run(plan(3)).hash, run(plan(7)).hash);
}
