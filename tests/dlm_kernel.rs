//! Goal: our lock manager lives with the kernel's. Method: two guests, one with the stock corosync, dlm_controld and
//! dlm.ko, one with corosync and our node only; both driven alike (`dlm-client/examples/dlmdrive`).
//!
//! What the two do is held against what two kernels did (`dlm-client/tests/data/kernel-stream-*`), against
//! each other, and against the kernel's own tools. Deaths are real: a killed process, and a node whose emulator the
//! fence agent has killed. `DLM_LONG=1` also runs kernel 6.1, 100 rejoins, longer streams; `DLM_RECORD=1` lets two
//! kernels make the recordings anew.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use support::guest::Kernel;
use support::host::checkout;
use support::vm::Vm;

/// The recorded streams.
const SEEDS: [u64; 4] = [21, 22, 23, 24];
const RECORDED: usize = 300;
/// How long a death may take to be noticed, fenced and recovered.
const RECOVERY: Duration = Duration::from_secs(90);
const STREAM: Duration = Duration::from_secs(600);

fn long() -> bool {
    std::env::var_os("DLM_LONG").is_some()
}

fn kernels() -> &'static [Kernel] {
    if long() { &Kernel::ALL } else { &[Kernel::V6_12] }
}

/// The driver, built from what is there now.
fn driver() -> &'static Path {
    static DRIVER: OnceLock<PathBuf> = OnceLock::new();
    DRIVER.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "-q", "-p", "dlm-client", "--example", "dlmdrive"]);
        let built = build.current_dir(checkout()).status().expect("cargo");
        assert!(built.success(), "the driver does not build");
        let deps = std::env::current_exe().expect("our own path");
        let target = deps.ancestors().nth(3).expect("a target folder");
        target.join("debug/examples/dlmdrive")
    })
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Kernel,
    Wire,
}

/// Puts what a node needs on its share.
fn supply(vm: &Vm) {
    let lab = checkout().join("tests/lab");
    let to = vm.share();
    for script in ["dlm-node.sh", "fence-host.sh"] {
        fs::copy(lab.join(script), to.join(script)).expect("a copy on the share");
    }
    let strip = Command::new("strip")
        .arg("-o")
        .arg(to.join("dlmdrive"))
        .arg(driver())
        .status();
    assert!(strip.expect("strip").success(), "strip failed");
}

/// Starts a node; its id is for `Vm::result`.
fn raise(vm: &Vm, kind: Kind) -> String {
    supply(vm);
    let kind = match kind {
        Kind::Kernel => "kernel",
        Kind::Wire => "wire",
    };
    vm.spawn(&format!(
        "bash /host/dlm-node.sh {kind} 'fence_all /root/fence-host.sh'"
    ))
}

#[track_caller]
fn raised(vm: &Vm, id: &str) {
    let ran = vm.result(id, Duration::from_secs(180));
    let said = fs::read_to_string(vm.share().join("drive.log")).unwrap_or_default();
    assert!(
        ran.rc == 0,
        "a node did not come up ({}): {}\n{said}",
        ran.rc,
        ran.output
    );
}

/// Two nodes, n1 and n2.
#[track_caller]
fn cluster(kernel: Kernel, kinds: [Kind; 2]) -> [Vm; 2] {
    driver();
    let vms = Vm::start_pair(kernel, &[]);
    let ids = [raise(&vms[0], kinds[0]), raise(&vms[1], kinds[1])];
    for (vm, id) in vms.iter().zip(&ids) {
        raised(vm, id);
    }
    vms
}

/// Gives commands to the node of a guest, one after the other; the lines of all answers.
#[track_caller]
fn ask(vm: &Vm, commands: &[&str]) -> Vec<String> {
    let quoted: Vec<String> = commands.iter().map(|c| format!("'{c}'")).collect();
    let script = format!("/root/dlmdrive ask 127.0.0.1:7000 {}", quoted.join(" "));
    let ran = vm.run_for(&script, Duration::from_secs(180));
    let log = fs::read_to_string(vm.share().join("drive.log")).unwrap_or_default();
    assert!(ran.rc == 0, "{commands:?}: {}\n{log}", ran.output);
    ran.output.lines().map(str::to_owned).collect()
}

/// The line that ends with the slots of the last recovery, as node ids by slot.
fn slots(line: &str) -> Vec<String> {
    let words = line.split_whitespace().skip_while(|w| *w != "slots").skip(1);
    let mut pairs: Vec<String> = words.filter(|w| w.contains(':')).map(str::to_owned).collect();
    pairs.sort();
    pairs
}

fn recorded(seed: u64) -> PathBuf {
    checkout().join(format!("dlm-client/tests/data/kernel-stream-{seed}.txt"))
}

/// Plays a stream on n1 and n2.
#[track_caller]
fn stream(vms: &[Vm; 2], seed: u64, count: usize) -> Vec<String> {
    let script = format!("/root/dlmdrive stream {seed} {count} 10.77.0.1:7000 10.77.0.2:7000");
    let ran = vms[0].run_for(&script, STREAM);
    assert!(ran.rc == 0, "stream {seed}: {}", ran.output);
    ran.output.lines().map(str::to_owned).collect()
}

/// The nodes do what two kernels did.
#[track_caller]
fn stream_as_recorded(vms: &[Vm; 2], seed: u64, count: usize) {
    let path = recorded(seed);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let start = Instant::now();
    let played = stream(vms, seed, count);
    for (at, (was, is)) in text.lines().zip(&played).enumerate() {
        let before = played[at.saturating_sub(30)..at].join("\n");
        assert!(
            was == is,
            "seed {seed}, line {}:\n{before}\ntwo kernels: {was}\nnow: {is}",
            at + 1
        );
    }
    let operations = played.iter().filter(|line| !line.starts_with(' ')).count();
    assert_eq!(operations, count, "the stream ended early");
    println!("stream {seed}: {count} operations in {:?}", start.elapsed());
}

/// What `dlm_tool lockdump` lists and what our dump lists for a resource, as sets of (mode, who is master).
#[track_caller]
fn tools_agree(kernel: &Vm, ours: &Vm, kernel_id: u32, ours_id: u32) {
    let listed = kernel.check("dlm_tool ls foo");
    assert!(listed.contains("members       1 2"), "{listed}");
    assert!(listed.contains("id            0x6ce2339d"), "{listed}");
    let status = kernel.check("dlm_tool status");
    for id in [1, 2] {
        assert!(status.contains(&format!("node {id} M ")), "{status}");
    }
    let said = ask(ours, &["status"]).join("\n");
    assert!(
        said.contains("quorate: true") && said.contains("\"foo\""),
        "{said}"
    );

    ask(ours, &["lock 500 tool PR 0", "wait 500 9000"]);
    ask(kernel, &["lock 500 tool PR 0", "wait 500 9000"]);
    let dump = kernel.check("dlm_tool lockdump foo");
    let on_kernel: Vec<&str> = dump.lines().filter(|l| l.contains("\"tool\"")).collect();
    assert!(on_kernel.len() == 1, "{dump}");
    assert!(on_kernel[0].contains("gr PR rq IV"), "{dump}");
    assert!(on_kernel[0].contains(&format!("master {ours_id}")), "{dump}");
    let dump = ask(ours, &["dump"]);
    let at = dump
        .iter()
        .position(|l| l.contains("\"tool\""))
        .expect("the resource in our dump");
    assert!(dump[at].contains(&format!("master {ours_id} ")), "{dump:?}");
    let locks: Vec<&String> = dump[at + 1..]
        .iter()
        .take_while(|l| l.starts_with("  "))
        .collect();
    assert!(
        locks.len() == 2 && locks.iter().all(|l| l.contains("granted: Some(Pr)")),
        "{dump:?}"
    );
    let mastered = format!("Mastered {{ holder: NodeId({kernel_id}) }}");
    assert!(locks.iter().any(|l| l.contains(&mastered)), "{dump:?}");
    for vm in [kernel, ours] {
        ask(vm, &["unlock 500 0 -", "wait 500 9000"]);
    }

    ask(ours, &["plock 1 w 4660 0 99 7", "await plock_1_Granted 20000"]);
    ask(ours, &["plock 2 r 4660 200 299 7", "await plock_2_Granted 20000"]);
    let mut on_kernel: Vec<String> = kernel
        .check("dlm_tool plocks foo")
        .lines()
        .map(str::to_owned)
        .collect();
    let mut ours_has = ask(ours, &["plocks"]);
    on_kernel.sort();
    ours_has.sort();
    assert_eq!(on_kernel, ours_has);
    assert_eq!(ours_has.len(), 2, "{ours_has:?}");
    ask(ours, &["plock 3 u 4660 0 299 7", "await plock_3_Unlocked 20000"]);
    assert_eq!(kernel.check("dlm_tool plocks foo").trim(), "");
}

/// Leaves and comes back; each time what was left in the value block is there, and a lock moves both ways.
fn rejoin(kernel: &Vm, ours: &Vm, rounds: u32) {
    let start = Instant::now();
    ask(kernel, &["lock 600 again NL 8", "wait 600 9000"]);
    for round in 1..=rounds {
        let block = format!("{round:08x}");
        ask(
            ours,
            &[
                "leave",
                "join foo",
                "lock 600 again EX 8",
                "wait 600 20000",
                &format!("convert 600 NL 8 {block}"),
                "wait 600 20000",
            ],
        );
        let heard = ask(
            kernel,
            &[
                "convert 600 PR 8 -",
                "wait 600 20000",
                "convert 600 NL 0 -",
                "wait 600 20000",
            ],
        );
        let wanted = format!("cast 600 0 0 {block}");
        assert!(
            heard.iter().any(|l| l.starts_with(&wanted)),
            "round {round}: {heard:?}"
        );
    }
    ask(kernel, &["unlock 600 0 -", "wait 600 9000"]);
    ask(ours, &["unlock 600 0 -", "wait 600 9000", "events"]);
    println!("{rounds} rejoins in {:?}", start.elapsed());
}

/// Waits until the survivor's fence agent asks for the victim, cuts it and says so.
#[track_caller]
fn fence(survivor: &Vm, mut victim: Vm, node: u32) {
    let lab = survivor.share().join(".lab");
    let request = lab.join(format!("fence.{node}.req"));
    let end = Instant::now() + RECOVERY;
    while !request.exists() {
        assert!(
            Instant::now() < end,
            "nobody asked to fence node {node} in {RECOVERY:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    victim.cut();
    fs::remove_file(&request).expect("the request");
    fs::write(lab.join(format!("fence.{node}.ok")), "").expect("the answer");
}

/// The victim holds EX with a value block it never wrote back; the survivor waits for it, and gets the lock only
/// once the victim is cut, with the block marked invalid.
#[track_caller]
fn death(survivor: &Vm, victim: Vm, node: u32, kill: impl FnOnce(&Vm)) {
    ask(survivor, &["lock 700 grave NL 8", "wait 700 9000", "events"]);
    ask(
        &victim,
        &[
            "lock 701 grave EX 8",
            "wait 701 20000",
            "convert 701 NL 8 0a0b",
            "wait 701 20000",
        ],
    );
    ask(&victim, &["convert 701 EX 8 -", "wait 701 20000"]);
    ask(survivor, &["convert 700 PR 8 -", "quiet 300"]);
    let start = Instant::now();
    kill(&victim);
    ask(survivor, &["quiet 1000"]);
    fence(survivor, victim, node);
    let heard = ask(survivor, &["wait 700 90000"]);
    let cast = heard.last().expect("a line");
    assert!(cast.starts_with("cast 700 0 2 0a0b"), "{heard:?}");
    println!("node {node} dead, fenced, recovered in {:?}", start.elapsed());
    ask(survivor, &["unlock 700 0 -", "wait 700 9000", "events"]);
}

/// No word of a fault in the kernel's log.
#[track_caller]
fn content(vm: &Vm) {
    let log = vm.check("dmesg");
    let words = [
        "WARNING",
        "BUG",
        " stall",
        "blocked for more than",
        "Call Trace",
        "ASSERT",
        "panic:",
        "config mismatch",
        "dlm_dump",
        "ignore invalid",
    ];
    let bad = |l: &&str| words.iter().any(|word| l.contains(word));
    let bad: Vec<&str> = log.lines().filter(bad).collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Ours is n2, the highest: locks, tools, rejoins; then it is killed and fenced, comes back, and outlives the kernel.
fn ours_highest(kernel: Kernel) {
    let start = Instant::now();
    let vms = cluster(kernel, [Kind::Kernel, Kind::Wire]);
    println!("{kernel}: both nodes up in {:?}", start.elapsed());
    ask(&vms[0], &["join foo"]);
    let ours = ask(&vms[1], &["join foo", "events"]);
    assert_eq!(ours, Vec::<String>::new(), "nothing follows a join");
    let line = vms[0].check("dmesg | grep 'foo: generation' | tail -n 1");
    assert_eq!(slots(&line), ["1:1", "2:2"]);
    let seeds = if long() { &SEEDS[..] } else { &SEEDS[..1] };
    for seed in seeds {
        stream_as_recorded(&vms, *seed, if long() { RECORDED } else { 60 });
    }
    tools_agree(&vms[0], &vms[1], 1, 2);
    rejoin(&vms[0], &vms[1], if long() { 100 } else { 3 });
    content(&vms[0]);

    let [first, second] = vms;
    death(&first, second, 2, |ours| {
        ours.check("kill -9 $(cat /run/drive.pid)");
    });
    let second = Vm::start_beside(&first, &[]);
    let id = raise(&second, Kind::Wire);
    raised(&second, &id);
    ask(&second, &["join foo", "events"]);
    content(&first);
    death_of_the_kernel(first, &second);
    println!("{kernel}, ours highest: {:?}", start.elapsed());
}

/// The kernel's guest is cut; ours calls the agent, recovers, and hands out slots alone.
fn death_of_the_kernel(first: Vm, second: &Vm) {
    let ours = second;
    ask(ours, &["lock 700 grave NL 8", "wait 700 9000", "events"]);
    let kernel_holds = [
        "lock 701 grave EX 8",
        "wait 701 20000",
        "convert 701 NL 8 0a0b",
        "wait 701 20000",
    ];
    ask(&first, &kernel_holds);
    ask(&first, &["convert 701 EX 8 -", "wait 701 20000"]);
    ask(ours, &["convert 700 PR 8 -", "quiet 300"]);
    let start = Instant::now();
    first.crash();
    let lab = ours.share().join(".lab");
    let request = lab.join("fence.1.req");
    while !request.exists() {
        assert!(
            start.elapsed() < RECOVERY,
            "ours did not ask to fence node 1: {:?}",
            ask(ours, &["status"])
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    // Until the agent has said so, nothing of the dead node's is given away.
    let before = ask(ours, &["events"]);
    assert!(!before.iter().any(|l| l.starts_with("cast")), "{before:?}");
    fs::write(lab.join("fence.1.ok"), "").expect("the answer");
    let heard = ask(ours, &["await cast_700 90000"]);
    assert!(heard.iter().any(|l| l == "failed node 1 slot 1"), "{heard:?}");
    assert!(
        heard.last().is_some_and(|l| l.starts_with("cast 700 0 2 0a0b")),
        "{heard:?}"
    );
    println!("the kernel dead, fenced, recovered in {:?}", start.elapsed());
    ask(
        ours,
        &["unlock 700 0 -", "wait 700 9000", "leave", "join foo", "leave"],
    );
}

/// Ours is n1, the lowest: it runs the barriers, assigns slots, speaks for the newcomers.
fn ours_lowest(kernel: Kernel) {
    let start = Instant::now();
    let vms = cluster(kernel, [Kind::Wire, Kind::Kernel]);
    ask(&vms[0], &["join foo"]);
    ask(&vms[1], &["join foo"]);
    let line = vms[1].check("dmesg | grep 'foo: generation' | tail -n 1");
    assert_eq!(slots(&line), ["1:1", "2:2"]);
    let heard = ask(&vms[0], &["await done_generation_2 60000", "events"]);
    assert_eq!(
        heard[heard.len() - 1],
        "done generation 2 our slot 1 slots 1:1 2:2"
    );
    let seeds = if long() { &SEEDS[..] } else { &SEEDS[1..2] };
    for seed in seeds {
        stream_as_recorded(&vms, *seed, if long() { RECORDED } else { 60 });
    }
    tools_agree(&vms[1], &vms[0], 2, 1);
    rejoin(&vms[1], &vms[0], if long() { 100 } else { 2 });
    content(&vms[1]);
    let [first, second] = vms;
    death(&second, first, 1, |ours| {
        ours.check("kill -9 $(cat /run/drive.pid)");
    });
    content(&second);
    println!("{kernel}, ours lowest: {:?}", start.elapsed());
}

#[test]
fn ours_as_the_highest_node_lives_with_the_kernel() {
    for kernel in kernels() {
        ours_highest(*kernel);
    }
}

#[test]
fn ours_as_the_lowest_node_lives_with_the_kernel() {
    for kernel in kernels() {
        ours_lowest(*kernel);
    }
}

/// The recordings are what two kernels do; with `DLM_RECORD` they are made.
#[test]
fn two_kernels_do_what_was_recorded() {
    if !long() && std::env::var_os("DLM_RECORD").is_none() {
        for seed in SEEDS {
            let text = fs::read_to_string(recorded(seed)).expect("a recording");
            let operations = text.lines().filter(|l| !l.starts_with(' ')).count();
            assert_eq!(operations, RECORDED, "recording {seed}");
        }
        return;
    }
    for kernel in kernels() {
        let vms = cluster(*kernel, [Kind::Kernel, Kind::Kernel]);
        for vm in &vms {
            ask(vm, &["join foo"]);
        }
        for seed in SEEDS {
            if std::env::var_os("DLM_RECORD").is_some() && *kernel == Kernel::V6_12 {
                let lines = stream(&vms, seed, RECORDED);
                fs::write(recorded(seed), lines.join("\n") + "\n").expect("a recording");
            } else {
                stream_as_recorded(&vms, seed, RECORDED);
            }
        }
    }
}
