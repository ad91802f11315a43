//! The kernel's DLM, driven through its bare device, and ours, one after the other in the same two guests.
//!
//! `cargo bench --bench dlm [-- ROUNDS LOCKS]` (needs what the lab needs, tests/lab/setup.sh). Under emulation only the
//! ratios say something. A pair is a request for EX and its unlock, one after the other, on 64 names whose resources the
//! node itself or the other one masters; a hand-over is EX taken away by the other node; recovery is that of so many locks
//! of the survivor whose master died: from the end of fencing until a lock the dead one was in the way of is granted (the
//! agent looks for that end five times a second).

#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::time::{Duration, Instant};
use support::dlm::{Kind, ask, raise, raised};
use support::guest::Kernel;
use support::vm::Vm;

const NAMES: u64 = 64;
const PAIRS: u64 = 2000;
const HAND_OVERS: u64 = 500;
/// Locks one command asks for.
const SLICE: u64 = 10_000;
const LIMIT: Duration = Duration::from_secs(300);

/// Microseconds of a pair here, a pair elsewhere, a hand-over; milliseconds of recovery.
struct Figures {
    here: f64,
    elsewhere: f64,
    hand_over: f64,
    recovery: f64,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The microseconds a command of the driver answered with.
fn measured(vm: &Vm, command: &str) -> f64 {
    let said = ask(vm, &[command]);
    said[0]
        .parse()
        .unwrap_or_else(|e| panic!("{command}: {said:?}: {e}"))
}

fn hand_over(vms: &[Vm; 2]) -> f64 {
    let script = format!("/root/dlmdrive ask 127.0.0.1:7000 'want ping {HAND_OVERS}'");
    let both = [vms[0].spawn(&script), vms[1].spawn(&script)];
    let mut longest: f64 = 0.0;
    for (vm, id) in vms.iter().zip(&both) {
        let ran = vm.result(id, LIMIT);
        assert!(ran.rc == 0, "{}", ran.output);
        longest = longest.max(ran.output.trim().parse().expect("microseconds"));
    }
    longest / (2 * HAND_OVERS) as f64
}

fn keep(vm: &Vm, prefix: &str, count: u64, mode: &str) {
    for first in (0..count).step_by(usize::try_from(SLICE).expect("small")) {
        let count = SLICE.min(count - first);
        measured(vm, &format!("keep {prefix} {first} {count} {mode}"));
    }
}

/// The second node dies as the master of so many locks of the first.
fn recovery(first: &Vm, mut second: Vm, locks: u64) -> f64 {
    keep(&second, "rec", locks, "NL");
    keep(first, "rec", locks, "PR");
    ask(&second, &["lock 701 grave EX 0", "wait 701 60000"]);
    ask(first, &["lock 700 grave PR 0", "quiet 300"]);
    let request = first.share().join(".lab/fence.2.req");
    second.cut();
    let end = Instant::now() + LIMIT;
    while !request.exists() {
        assert!(Instant::now() < end, "nobody asked to fence node 2");
        std::thread::sleep(Duration::from_millis(20));
    }
    fs::remove_file(&request).expect("the request");
    let start = Instant::now();
    fs::write(first.share().join(".lab/fence.2.ok"), "").expect("the answer");
    ask(first, &["await cast_700_0 110000"]);
    start.elapsed().as_secs_f64() * 1000.0
}

/// Measures one of them; the second guest does not survive it.
fn figures(vms: [Vm; 2], kind: Kind, rounds: u64, locks: u64) -> (Vm, Figures) {
    let ids = [raise(&vms[0], kind), raise(&vms[1], kind)];
    for (vm, id) in vms.iter().zip(&ids) {
        raised(vm, id);
    }
    ask(&vms[0], &["join foo"]);
    ask(&vms[1], &["join foo"]);
    ask(&vms[0], &["events"]);
    keep(&vms[0], "here", NAMES, "NL");
    keep(&vms[1], "there", NAMES, "NL");
    let pairs = |prefix: &str| {
        let figures = (0..rounds).map(|_| {
            let took = measured(&vms[0], &format!("pairs {prefix} {NAMES} {PAIRS}"));
            took / PAIRS as f64
        });
        median(figures.collect())
    };
    let (here, elsewhere) = (pairs("here"), pairs("there"));
    let hand_over = median((0..rounds).map(|_| hand_over(&vms)).collect());
    eprintln!("{kind:?}: {here:.0} {elsewhere:.0} {hand_over:.0} us");
    let [first, second] = vms;
    let recovery = recovery(&first, second, locks);
    eprintln!("{kind:?}: {recovery:.0} ms");
    let figures = Figures {
        here,
        elsewhere,
        hand_over,
        recovery,
    };
    (first, figures)
}

fn compare(rounds: u64, locks: u64) {
    let vms = Vm::start_pair(Kernel::V6_12, &[]);
    let (first, ours) = figures(vms, Kind::Wire, rounds, locks);
    ask(&first, &["leave", "quit"]);
    first.check("while [ -e /proc/$(cat /run/drive.pid)/exe ]; do sleep 0.1; done");
    let second = Vm::start_beside(&first, &[]);
    let (first, kernel) = figures([first, second], Kind::Kernel, rounds, locks);
    println!(
        "{rounds} rounds, {locks} locks, kernel {}, {}\n",
        first.guest().version,
        support::vm::emulator()
    );
    println!("| | kernel DLM | ours | ours / kernel |\n|---|---:|---:|---:|");
    for (what, unit, kernel, ours) in [
        ("request + unlock, master here", "us", kernel.here, ours.here),
        (
            "request + unlock, master elsewhere",
            "us",
            kernel.elsewhere,
            ours.elsewhere,
        ),
        ("EX handed over", "us", kernel.hand_over, ours.hand_over),
        (
            "recovery, end of fencing to grant",
            "ms",
            kernel.recovery,
            ours.recovery,
        ),
    ] {
        println!(
            "| {what} | {kernel:.0} {unit} | {ours:.0} {unit} | {:.2} |",
            ours / kernel
        );
    }
}

fn main() {
    let args = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let numbers: Vec<u64> = args.map(|a| a.parse().expect("dlm [ROUNDS LOCKS]")).collect();
    match numbers[..] {
        [] => compare(3, 100_000),
        [rounds, locks] => compare(rounds.max(1), locks.max(1)),
        _ => panic!("dlm [ROUNDS LOCKS]"),
    }
}
