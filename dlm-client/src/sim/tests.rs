use super::{Plan, run};

fn plan(seed: u64) -> Plan {
    Plan {
        seed,
        nodes: 2 + u32::try_from(seed % 4).unwrap(),
        resources: 1 + seed % 5,
        calls: 400 + 100 * (seed % 5),
        faults: seed % 7,
        nodir: seed % 11 == 10,
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

/// Goal: no schedule of calls, delays and faults breaks an oracle. Method: seeds; `DLM_SIM_SEEDS=first..last` for more.
#[test]
fn seeds() {
    let range = std::env::var("DLM_SIM_SEEDS").unwrap_or_else(|_| "0..1500".to_owned());
    let (first, last) = range.split_once("..").expect("first..last");
    let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
    let (mut recoveries, mut grants, mut reads) = (0, 0, 0);
    for seed in first..last {
        let outcome = check(plan(seed));
        recoveries += outcome.recoveries;
        grants += outcome.grants;
        reads += outcome.reads;
    }
    println!("{range}: {recoveries} recoveries, {grants} grants, {reads} value blocks compared");
    assert!(recoveries > last - first && grants > 0 && reads > 0);
}

#[test]
fn a_seed_runs_twice_the_same() {
    for seed in [3, 17, 41, 76, 109] {
        assert_eq!(run(plan(seed)), run(plan(seed)));
    }
    assert_ne!(run(plan(3)).hash, run(plan(7)).hash);
}
