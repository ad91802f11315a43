//! Goal: our lock manager lives with several kernels at once. Method: three guests, two with the stock corosync,
//! dlm_controld and dlm.ko (of 6.12 and of 6.1), and between them, by node id, ours; all driven alike.
//!
//! Locks and value blocks go round with each of the three as master, as directory node and as holder. Ours leaves and
//! comes back, dies, comes back as new, and outlives one of the kernels. What the kernels' own tools say of members and
//! slots is what ours says. `DLM_LONG=1` does it with the kernels changed about, too.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};
use support::dlm::{Kind, RECOVERY, again, ask, content, shape, slots, trio};
use support::guest::Kernel;
use support::vm::Vm;

/// Locks of the round: enough that each node is directory node of some that each node is master of.
const NAMES: usize = 36;
/// Their token on every node.
const FIRST: usize = 100;

/// Commands that were put together.
#[track_caller]
fn ask_all(vm: &Vm, commands: &[String]) -> Vec<String> {
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    ask(vm, &commands)
}

/// Members and slots as the tools of a kernel node tell them, once it has gone over to these members.
#[track_caller]
fn settled(vm: &Vm, node: u32, members: &str) -> Vec<String> {
    let end = Instant::now() + RECOVERY;
    let wanted = format!("members       {members}");
    loop {
        let listed = vm.check("dlm_tool ls foo");
        let line = vm.check("dmesg | grep 'foo: generation' | tail -n 1");
        let last = vm.check("dmesg | grep 'foo: dlm_recover [0-9]' | tail -n 1");
        let there = listed.lines().any(|line| line.trim() == wanted);
        let slots = slots(&line);
        let done = last.contains("done:") && !listed.contains("new change");
        if there && done && slots.len() == members.split(' ').count() {
            return slots;
        }
        assert!(
            Instant::now() < end,
            "node {node} has not {wanted:?} with their slots in {RECOVERY:?}: {listed}{line}{last}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// All nodes agree on who is there and on the slots.
#[track_caller]
fn agree(kernels: &[(&Vm, u32)], ours: Option<&Vm>, members: &str) {
    let all = kernels.iter().map(|(vm, node)| settled(vm, *node, members));
    let all: Vec<Vec<String>> = all.collect();
    assert!(all.iter().all(|slots| *slots == all[0]), "{all:?}");
    let Some(ours) = ours else { return };
    let said = ask(ours, &["ctl ls"]).join("\n");
    let wanted = format!("members       {members}");
    assert!(said.lines().any(|line| line.trim() == wanted), "ours: {said}");
    let listed = kernels[0].0.check("dlm_tool ls foo");
    let parts = ["dlm", "name", "id", "flags", "change", "members"];
    assert_eq!(shape(&said, &parts), shape(&listed, &parts));
    let status = kernels[0].0.check("dlm_tool status");
    let said = ask(ours, &["ctl status"]).join("\n");
    let present = |text: &str| {
        let lines = text
            .lines()
            .map(|line| line.split(" add ").next().unwrap_or(line));
        let nodes = lines.filter(|line| line.starts_with("node ") && line.ends_with(" M"));
        nodes.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(present(&said), present(&status), "{said}\n{status}");
    assert_eq!(present(&said).len(), members.split(' ').count(), "{said}");
}

/// Slots as our node was told them last; the kernels must have the same.
#[track_caller]
fn same_slots(kernel: &Vm, told: &[String]) {
    let line = kernel.check("dmesg | grep 'foo: generation' | tail -n 1");
    let ours = told.iter().rfind(|line| line.starts_with("done generation "));
    let ours = ours.unwrap_or_else(|| panic!("our node was told of no recovery: {told:?}"));
    assert_eq!(slots(ours), slots(&line));
}

/// Master and directory node of each resource that our node knows.
fn roles(ours: &Vm) -> BTreeMap<String, (u32, u32)> {
    let dump = ask(ours, &["dump"]);
    let lines = dump.iter().filter(|line| line.starts_with("resource "));
    lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, name, "master", master, "directory", directory, ..] = words[..] else {
                panic!("{line}");
            };
            let number = |word: &str| word.parse().unwrap_or_else(|e| panic!("{line}: {e}"));
            (
                name.trim_matches('"').to_owned(),
                (number(master), number(directory)),
            )
        })
        .collect()
}

/// A lock of each name on all nodes, each node being first with a third of them; then one name for each pair of master
/// and directory node.
#[track_caller]
fn spread(vms: &[Vm; 3]) -> Vec<usize> {
    for (index, vm) in vms.iter().enumerate() {
        let own = (0..NAMES).filter(|number| number % 3 == index);
        let commands =
            own.flat_map(|number| taken(number, &format!("lock {} r{number} NL 8", FIRST + number)));
        ask_all(vm, &commands.collect::<Vec<_>>());
    }
    for (index, vm) in vms.iter().enumerate() {
        let others = (0..NAMES).filter(|number| number % 3 != index);
        let commands =
            others.flat_map(|number| taken(number, &format!("lock {} r{number} NL 8", FIRST + number)));
        ask_all(vm, &commands.collect::<Vec<_>>());
    }
    let roles = roles(&vms[1]);
    let mut pairs = BTreeMap::new();
    for number in 0..NAMES {
        let (master, directory) = roles[&format!("r{number}")];
        assert_eq!(master as usize, number % 3 + 1, "master of r{number}");
        pairs.entry((master, directory)).or_insert(number);
    }
    for vm in [&vms[0], &vms[2]] {
        let dump = vm.check("dlm_tool lockdump foo");
        for number in (0..NAMES).filter(|number| number % 3 == 1) {
            let name = format!("\"r{number}\"");
            let line = dump.lines().find(|line| line.contains(&name));
            let line = line.unwrap_or_else(|| panic!("no {name}: {dump}"));
            assert!(line.contains("master 2"), "{line}");
        }
    }
    let wanted: Vec<(u32, u32)> = (1..=3).flat_map(|m| (1..=3).map(move |d| (m, d))).collect();
    assert_eq!(pairs.keys().copied().collect::<Vec<_>>(), wanted);
    pairs.into_values().collect()
}

/// A command and the end of what it began.
fn taken(number: usize, command: &str) -> [String; 2] {
    [command.to_owned(), format!("wait {} 20000", FIRST + number)]
}

/// What a node last wrote into the value block of a name.
fn block(name: usize, round: usize, node: usize) -> String {
    format!("{name:02x}{round:02x}{node:02x}")
}

/// A node is told lines that begin so, in whatever order: 6.1 leaves open which lock comes first.
#[track_caller]
fn told_all(vm: &Vm, kind: &str, mut wanted: Vec<String>) {
    let mut heard = Vec::new();
    while !wanted.is_empty() {
        assert!(heard.len() < 1000, "still not {wanted:?}: {heard:?}");
        // An error if nothing comes any more.
        let told = ask(vm, &[&format!("await {kind} 20000"), "events"]);
        wanted.retain(|begin| !told.iter().any(|line| line.starts_with(begin)));
        heard.extend(told);
    }
}

/// Each node in turn holds all of them, the others wait for it and are told what it wrote.
fn go_round(vms: &[Vm; 3], names: &[usize]) {
    for vm in vms {
        ask(vm, &["events"]);
    }
    for (round, holder) in [0, 1, 2].into_iter().enumerate() {
        let hold = names
            .iter()
            .flat_map(|number| taken(*number, &format!("convert {} EX 8 -", FIRST + number)));
        ask_all(&vms[holder], &hold.collect::<Vec<_>>());
        let others: Vec<usize> = (0..3).filter(|other| *other != holder).collect();
        for other in &others {
            let want = names
                .iter()
                .map(|number| format!("convert {} PR 8 -", FIRST + number));
            ask_all(
                &vms[*other],
                &want.chain(["quiet 200".to_owned()]).collect::<Vec<_>>(),
            );
        }
        let waited_for = names.iter().map(|number| format!("bast {} PR", FIRST + number));
        told_all(&vms[holder], "bast", waited_for.collect());
        let free = names.iter().flat_map(|number| {
            let wrote = block(*number, round, holder);
            taken(*number, &format!("convert {} NL 8 {wrote}", FIRST + number))
        });
        ask_all(&vms[holder], &free.collect::<Vec<_>>());
        for other in others {
            let granted = names.iter().map(|number| {
                let wrote = block(*number, round, holder);
                format!("cast {} 0 0 {wrote}", FIRST + number)
            });
            told_all(&vms[other], "cast", granted.collect());
            let free = names
                .iter()
                .flat_map(|number| taken(*number, &format!("convert {} NL 0 -", FIRST + number)));
            ask_all(&vms[other], &free.collect::<Vec<_>>());
        }
        for vm in vms {
            ask(vm, &["events"]);
        }
    }
}

/// Ours leaves and comes back; what it wrote is read by both kernels, and what one of them wrote meanwhile, by it.
fn rejoin(vms: &[Vm; 3], rounds: usize) {
    let [first, ours, third] = vms;
    let kernels = [(first, 1), (third, 3)];
    for kernel in [first, third] {
        ask(kernel, &["lock 600 again NL 8", "wait 600 9000"]);
    }
    for round in 1..=rounds {
        ask(ours, &["leave"]);
        agree(&kernels, None, "1 3");
        let meanwhile = format!("{round:04x}01");
        let writer = if round % 2 == 0 { first } else { third };
        let write = format!("convert 600 NL 8 {meanwhile}");
        ask(
            writer,
            &["convert 600 EX 8 -", "wait 600 20000", &write, "wait 600 20000"],
        );
        ask(ours, &["join foo"]);
        agree(&kernels, Some(ours), "1 2 3");
        let block = format!("{round:04x}02");
        let write = format!("convert 600 NL 8 {block}");
        let heard = ask(
            ours,
            &["lock 600 again EX 8", "wait 600 20000", &write, "wait 600 20000"],
        );
        let wanted = format!("cast 600 0 0 {meanwhile}");
        assert!(heard[0].starts_with(&wanted), "round {round}: {heard:?}");
        for (kernel, node) in kernels {
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
            let read = heard.iter().any(|line| line.starts_with(&wanted));
            assert!(read, "round {round}, node {node}: {heard:?}");
        }
    }
}

/// Waits until one of the survivors asks for the victim, cuts it, and answers once `before` is found true of them.
#[track_caller]
fn fence(survivors: [&Vm; 2], mut victim: Vm, node: u32, before: impl FnOnce()) -> usize {
    let request = |vm: &Vm| vm.share().join(format!(".lab/fence.{node}.req"));
    let end = Instant::now() + RECOVERY;
    let asker = loop {
        if let Some(asker) = survivors.iter().position(|vm| request(vm).exists()) {
            break asker;
        }
        assert!(
            Instant::now() < end,
            "nobody asked to fence node {node} in {RECOVERY:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    };
    victim.cut();
    before();
    let asked = survivors[asker];
    fs::remove_file(request(asked)).expect("the request");
    let answer = asked.share().join(format!(".lab/fence.{node}.ok"));
    fs::write(answer, "").expect("the answer");
    asker
}

/// The victim holds EX and dies; both survivors get what they wait for only once it is cut, with the block invalid.
/// The first of them is master of what is waited for. Says which of the survivors had it fenced.
#[track_caller]
fn death(
    survivors: [&Vm; 2],
    mut victim: Vm,
    node: u32,
    kill: impl FnOnce(&mut Vm),
) -> (usize, [Vec<String>; 2]) {
    for vm in survivors {
        ask(vm, &["lock 700 grave NL 8", "wait 700 9000", "events"]);
    }
    ask(
        &victim,
        &[
            "lock 701 grave EX 8",
            "wait 701 20000",
            "convert 701 NL 8 0a0b",
            "wait 701 20000",
            "convert 701 EX 8 -",
            "wait 701 20000",
        ],
    );
    for vm in survivors {
        ask(vm, &["convert 700 PR 8 -", "quiet 300"]);
    }
    let start = Instant::now();
    kill(&mut victim);
    // Until the agent has said so, nothing of the dead node's is given away.
    let still = || {
        for vm in survivors {
            let heard = ask(vm, &["events"]);
            assert!(!heard.iter().any(|line| line.starts_with("cast")), "{heard:?}");
        }
    };
    let asker = fence(survivors, victim, node, still);
    let heard = survivors.map(|vm| {
        let heard = ask(vm, &["await cast_700 90000"]);
        let cast = heard.last().expect("a line");
        assert!(cast.starts_with("cast 700 0 2 0a0b"), "{heard:?}");
        heard
    });
    println!("node {node} dead, fenced, recovered in {:?}", start.elapsed());
    for vm in survivors {
        ask(vm, &["unlock 700 0 -", "wait 700 9000"]);
    }
    (asker, heard)
}

fn ours_between(lower: Kernel, higher: Kernel) {
    let start = Instant::now();
    let kinds = [
        (lower, Kind::Kernel),
        (Kernel::V6_12, Kind::Wire),
        (higher, Kind::Kernel),
    ];
    let (hub, vms) = trio(kinds);
    println!("three nodes up in {:?}", start.elapsed());
    ask(&vms[0], &["join foo"]);
    ask(&vms[2], &["join foo"]);
    ask(&vms[1], &["join foo"]);
    agree(&[(&vms[0], 1), (&vms[2], 3)], Some(&vms[1]), "1 2 3");
    let names = spread(&vms);
    go_round(&vms, &names);
    println!("locks went round by {:?}", start.elapsed());
    rejoin(&vms, 3);
    println!("ours came back three times by {:?}", start.elapsed());

    let [first, second, third] = vms;
    let kernels = [(&first, 1), (&third, 3)];
    death([&third, &first], second, 2, |ours| {
        ours.check("kill -9 $(cat /run/drive.pid)");
    });
    agree(&kernels, None, "1 3");
    let second = again(&hub, Kernel::V6_12, 2, Kind::Wire);
    ask(&second, &["join foo"]);
    agree(&kernels, Some(&second), "1 2 3");
    for (kernel, _) in kernels {
        content(kernel);
    }

    ask(&second, &["events"]);
    let (asker, heard) = death([&third, &second], first, 1, Vm::cut);
    assert_eq!(asker, 1, "the lowest of the survivors is ours");
    assert!(
        heard[1].iter().any(|l| l.starts_with("failed node 1 slot ")),
        "{heard:?}"
    );
    same_slots(&third, &heard[1]);
    agree(&[(&third, 3)], Some(&second), "2 3");
    content(&third);
    ask(&second, &["leave"]);
    agree(&[(&third, 3)], None, "3");
    content(&third);
    println!("{lower}, ours, {higher}: {:?}", start.elapsed());
}

#[test]
fn ours_lives_with_two_kernels() {
    ours_between(Kernel::V6_12, Kernel::V6_1);
    if std::env::var_os("DLM_LONG").is_some() {
        ours_between(Kernel::V6_1, Kernel::V6_12);
    }
}
