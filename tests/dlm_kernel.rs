//! Goal: our lock manager lives with the kernel's. Method: two guests, one with the stock corosync, dlm_controld and
//! dlm.ko, one with corosync and our node only; both driven alike (`dlm-client/examples/dlmdrive`).
//!
//! What the two do is held against what two kernels did (`dlm-client/tests/data/kernel-stream-*`), against
//! each other, and against the kernel's own tools. Deaths are real: a killed process, and a node whose emulator the
//! fence agent has killed. Our backend on the kernel's device is held against the same recordings, and against the
//! contract of the crate. `DLM_LONG=1` runs all on kernel 6.1, too, with 100 rejoins each and longer streams, and lets two
//! kernels remaster each other's locks; `DLM_RECORD=1` lets two kernels make the recordings anew; `DLM_TRACE=FOLDER` keeps
//! what the nodes answered and said.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use support::dlm::{Kind, RECOVERY, ask, cluster, cluster_on, content, raise, raised, shape, slots};
use support::guest::Kernel;
use support::host::{checkout, reference_mkfs, sparse};
use support::orphans::{killed_before_the_answer, killed_while_it_waits, orphans};
use support::vm::Vm;

/// The recorded streams.
const SEEDS: [u64; 4] = [21, 22, 23, 24];
const RECORDED: usize = 300;
const STREAM: Duration = Duration::from_secs(600);

fn long() -> bool {
    std::env::var_os("DLM_LONG").is_some()
}

/// `DLM_LONG=6.1` and `DLM_LONG=6.12` are one half of the long run each.
fn kernels() -> &'static [Kernel] {
    match std::env::var("DLM_LONG").as_deref() {
        Err(_) | Ok("6.12") => &[Kernel::V6_12],
        Ok("6.1") => &[Kernel::V6_1],
        Ok(_) => &Kernel::ALL,
    }
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
    keep(&format!("stream-{seed}.{}", vms[0].guest().kernel), &ran.output);
    comparable(vms, ran.output.lines())
}

/// What can be compared on the kernel of these guests.
fn comparable<'a>(vms: &[Vm; 2], lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let lines: Vec<String> = lines.map(str::to_owned).collect();
    match vms[0].guest().kernel {
        Kernel::V6_1 => as_the_older_tells(lines),
        Kernel::V6_12 => lines,
    }
}

/// Kernel 6.1 gives out what it has to say lock by lock, and not in the order in which it came about, so that of what
/// followed one operation only the order per lock can be compared. And it says again who waits for a lock when the holder
/// was told of the same or a stronger mode before: it leaves out only what repeats a callback that was not fetched yet.
/// 6.12 remembers the last one it gave out, and what it left out changes nothing of that.
fn as_the_older_tells(mut lines: Vec<String>) -> Vec<String> {
    // By node and token.
    let mut told: BTreeMap<(String, String), usize> = BTreeMap::new();
    lines.retain(|line| {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let [node, kind, token, mode, ..] = &words[..] else {
            return true;
        };
        let lock = (node.clone(), token.clone());
        match kind.as_str() {
            "bast" => {
                let modes = ["NL", "CR", "CW", "PR", "PW", "EX"];
                let mode = modes.iter().position(|m| m == mode).expect("a mode");
                let before = told.get(&lock).copied();
                let new = before.is_none_or(|before| before != mode && (before < mode || before <= 3));
                if new {
                    told.insert(lock, mode);
                }
                new
            }
            "cast" => {
                told.remove(&lock);
                true
            }
            _ => true,
        }
    });
    let lock = |line: &String| {
        let words = line.split_whitespace().map(|word| word.trim_end_matches(':'));
        let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).take(2).collect();
        numbers
    };
    for block in lines.chunk_by_mut(|_, after| after.starts_with(' ')) {
        block[1..].sort_by_key(lock);
    }
    lines
}

/// A holder that was told of PW, and by kernel 6.1 again of PR and then of PW, as on line 75 of stream 22.
#[test]
fn what_the_older_kernel_repeats_is_no_difference() {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let newer =
        "lock 10 r PW 8\n  1: bast 5 PW\n  1: bast 7 PW\nconvert 5 PR 0\ncancel 5\n  1: cast 5 -65537 0";
    let older = "lock 10 r PW 8\n  1: bast 7 PW\n  1: bast 5 PW\nconvert 5 PR 0\n  1: bast 7 PR\ncancel 5\n  \
                 1: cast 5 -65537 0\n  1: bast 7 PW";
    assert_eq!(as_the_older_tells(lines(older)), as_the_older_tells(lines(newer)));
    let stronger = older.replace("bast 7 PR", "bast 7 EX");
    assert_ne!(
        as_the_older_tells(lines(&stronger)),
        as_the_older_tells(lines(newer))
    );
    let granted = older.replace("1: bast 7 PR", "1: cast 7 0 0");
    assert_ne!(
        as_the_older_tells(lines(&granted)),
        as_the_older_tells(lines(newer))
    );
}

/// Where the nodes do something else than two kernels did.
#[track_caller]
fn differs(vms: &[Vm; 2], seed: u64, count: usize) -> Option<String> {
    let path = recorded(seed);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let start = Instant::now();
    let played = stream(vms, seed, count);
    let recorded = comparable(vms, text.lines());
    for (at, (was, is)) in recorded.iter().zip(&played).enumerate() {
        if was != is {
            let before = played[at.saturating_sub(30)..at].join("\n");
            return Some(format!(
                "seed {seed}, line {}:\n{before}\ntwo kernels: {was}\nnow: {is}",
                at + 1
            ));
        }
    }
    let operations = played.iter().filter(|line| !line.starts_with(' ')).count();
    if operations != count {
        return Some(format!("seed {seed} ended after {operations} operations"));
    }
    println!("stream {seed}: {count} operations in {:?}", start.elapsed());
    None
}

/// The nodes do what two kernels did.
#[track_caller]
fn stream_as_recorded(vms: &[Vm; 2], seed: u64, count: usize) {
    if let Some(difference) = differs(vms, seed, count) {
        panic!("{difference}");
    }
}

/// With `DLM_TRACE=FOLDER`: what was seen is kept there.
fn keep(name: &str, text: &str) {
    if let Some(folder) = std::env::var_os("DLM_TRACE").map(PathBuf::from) {
        fs::write(folder.join(name), text).expect("a trace");
    }
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

    let said = ask(ours, &["ctl status"]).join("\n");
    assert_eq!(
        shape(&said, &["cluster", "daemon", "node"]),
        shape(&status, &["cluster", "daemon", "node"])
    );
    let said = ask(ours, &["ctl ls"]).join("\n");
    let parts = ["dlm", "name", "id", "flags", "change", "members"];
    assert_eq!(shape(&said, &parts), shape(&listed, &parts));
    assert_eq!(shape(&said, &parts).len(), parts.len(), "{said}");

    ask(ours, &["lock 500 tool PR 0", "wait 500 9000"]);
    ask(kernel, &["lock 500 tool PR 0", "wait 500 9000"]);
    let dump = kernel.check("dlm_tool lockdump foo");
    let on_kernel: Vec<&str> = dump.lines().filter(|l| l.contains("\"tool\"")).collect();
    assert!(on_kernel.len() == 1, "{dump}");
    assert!(on_kernel[0].contains("gr PR rq IV"), "{dump}");
    assert!(on_kernel[0].contains(&format!("master {ours_id}")), "{dump}");
    let said = ask(ours, &["ctl locks foo"]);
    let here: Vec<&str> = said
        .iter()
        .map(String::as_str)
        .filter(|l| l.contains("master"))
        .collect();
    assert_eq!(shape(&here.join("\n"), &["id"]), shape(on_kernel[0], &["id"]));
    let copies = said
        .iter()
        .filter(|line| line.contains(&format!("MSTCPY {kernel_id} \"tool\"")));
    assert_eq!(copies.count(), 1, "{said:?}");
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
    let (start, mut left, mut joined) = (Instant::now(), Duration::ZERO, Duration::ZERO);
    ask(kernel, &["lock 600 again NL 8", "wait 600 9000"]);
    for round in 1..=rounds {
        let block = format!("{round:08x}");
        let begin = Instant::now();
        ask(ours, &["leave"]);
        left += begin.elapsed();
        let begin = Instant::now();
        ask(ours, &["join foo"]);
        joined += begin.elapsed();
        ask(
            ours,
            &[
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
    println!(
        "{rounds} rejoins in {:?}, {left:?} of it to leave, {joined:?} to join",
        start.elapsed()
    );
    keep_trace(&[("kernel", kernel), ("other", ours)]);
}

/// What the nodes said of it, with their times.
fn keep_trace(nodes: &[(&str, &Vm)]) {
    if std::env::var_os("DLM_TRACE").is_none() {
        return;
    }
    for (name, vm) in nodes {
        let said = vm.check(
            "date +%s.%N; cut -d' ' -f1 /proc/uptime; dmesg; dlm_tool dump || true; cat /host/drive.log",
        );
        keep(&format!("{name}.{}", vm.guest().kernel), &said);
    }
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
    rejoin(&vms[0], &vms[1], 100);
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

/// The short round on the older kernel: all that needs no death.
#[test]
fn ours_lives_with_the_older_kernel() {
    let start = Instant::now();
    let vms = cluster(Kernel::V6_1, [Kind::Kernel, Kind::Wire]);
    ask(&vms[0], &["join foo"]);
    ask(&vms[1], &["join foo"]);
    stream_as_recorded(&vms, SEEDS[2], 60);
    tools_agree(&vms[0], &vms[1], 1, 2);
    rejoin(&vms[0], &vms[1], 2);
    content(&vms[0]);
    println!("{}, ours highest, short: {:?}", Kernel::V6_1, start.elapsed());
}

/// The contract's tests as a program, built from what is there now.
fn contract() -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["test", "-q", "-p", "dlm-client", "--test", "contract", "--no-run"]);
    build.arg("--message-format=json");
    let built = build.current_dir(checkout()).output().expect("cargo");
    assert!(built.status.success(), "the contract does not build");
    let said = String::from_utf8_lossy(&built.stdout);
    let messages = said.lines().filter_map(|line| serde_json::from_str(line).ok());
    let program = messages.filter(|m: &serde_json::Value| m["target"]["name"] == "contract");
    let path = program
        .filter_map(|m| m["executable"].as_str().map(PathBuf::from))
        .next_back();
    path.expect("a program")
}

/// The crate's contract on the device of a real kernel. Not on 6.1: there the order between locks is another.
fn keeps_the_contract(vm: &Vm) {
    let to = vm.share().join("contract");
    let strip = Command::new("strip").arg("-o").arg(to).arg(contract()).status();
    assert!(strip.expect("strip").success(), "strip failed");
    let start = Instant::now();
    let ran = vm.check_for(
        "cp /host/contract /root/ && DLM_DEVICE=contract /root/contract kernel_backend --test-threads=1",
        Duration::from_secs(300),
    );
    let passed = ran.lines().filter(|line| line.ends_with(" ... ok")).count();
    assert!(passed >= 20, "{ran}");
    println!("{passed} tests of the contract in {:?}", start.elapsed());
}

/// Our backend on the kernel's device does what the kernel does, and tells more.
#[test]
fn our_backend_on_the_device_of_the_kernel() {
    for kernel in kernels() {
        let start = Instant::now();
        let vms = cluster(*kernel, [Kind::Kernel, Kind::Device]);
        ask(&vms[0], &["join foo"]);
        let ours = ask(&vms[1], &["join foo", "events"]);
        assert_eq!(ours, Vec::<String>::new(), "nothing follows a join");
        let seeds = if long() { &SEEDS[..] } else { &SEEDS[3..] };
        for seed in seeds {
            stream_as_recorded(&vms, *seed, if long() { RECORDED } else { 60 });
        }
        orphans(&vms[0], &vms[1]);
        killed_while_it_waits(&vms[0], &vms[1]);
        killed_before_the_answer(&vms[0], &vms[1]);
        if *kernel == Kernel::V6_12 {
            keeps_the_contract(&vms[1]);
        }
        ask(&vms[1], &["leave", "join foo", "events"]);
        let [first, second] = vms;
        death_of_the_kernel(first, &second);
        content(&second);
        println!("{kernel}, our backend on the device: {:?}", start.elapsed());
    }
}

/// POSIX locks taken through the kernel's GFS2 are seen by our node and keep it waiting, and the other way round.
#[test]
fn posix_locks_of_the_kernel_and_of_ours() {
    for kernel in kernels() {
        let start = Instant::now();
        let dir = support::scratch("plocks");
        let image = sparse(&dir.path().join("volume.img"), 256 << 20);
        reference_mkfs(&image, &["-p", "lock_dlm", "-t", "lab:foo", "-j", "2", "-J", "8"]);
        let vms = cluster_on(*kernel, [Kind::Kernel, Kind::Wire], &[&image]);
        let [first, ours] = &vms;
        first.check("modprobe gfs2 && mount -t gfs2 /dev/vda /mnt && echo x >/mnt/file && mkfifo /root/end");
        ask(ours, &["join foo"]);
        let hold = "exec 3<>/root/end\n/root/dlmdrive posix /mnt/file 3>&- </root/end >/root/held &\n\
             until grep -q held /root/held; do kill -0 $! || exit 1; sleep 0.1; done\n\
             exec 3>&-\nstat -c %i /mnt/file";
        first.check("(sleep 1000 >/root/end & echo $! >/root/open)");
        let inode = first.check(hold).trim().to_owned();
        let plocks = |vm: &Vm| {
            vm.check("dlm_tool plocks foo")
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let kernels = plocks(first);
        assert_eq!(kernels.len(), 1, "{kernels:?}");
        assert!(kernels[0].starts_with(&format!("{inode} WR 0-")), "{kernels:?}");
        assert_eq!(ask(ours, &["plocks"]), kernels);
        ask(
            ours,
            &["events", &format!("plock 1 w {inode} 100 199 7"), "quiet 300"],
        );
        let mut waiting = plocks(first);
        let mut waits_here = ask(ours, &["plocks"]);
        waiting.sort();
        waits_here.sort();
        assert_eq!((waiting.len(), &waiting), (2, &waits_here));
        first.check("kill $(cat /root/open)");
        ask(ours, &["await plock_1_Granted 20000"]);
        assert_eq!(first.check("/root/dlmdrive posix-try /mnt/file").trim(), "taken");
        assert_eq!(plocks(first), ask(ours, &["plocks"]));
        ask(
            ours,
            &[
                &format!("plock 2 u {inode} 100 199 7"),
                "await plock_2_Unlocked 20000",
            ],
        );
        assert_eq!(first.check("/root/dlmdrive posix-try /mnt/file").trim(), "free");
        assert_eq!(plocks(first), Vec::<String>::new());
        ask(ours, &["leave"]);
        first.check("umount /mnt");
        content(first);
        println!("{kernel}, POSIX locks: {:?}", start.elapsed());
    }
}

#[test]
fn ours_as_the_lowest_node_lives_with_the_kernel() {
    for kernel in kernels() {
        ours_lowest(*kernel);
    }
}

/// Two kernels give each other's locks new masters and drop each other's orphans: what `LAB_PCAP` captures of it is a
/// fixture of the codec. The locks live through it.
fn remaster(vms: &[Vm; 2]) {
    let [first, second] = vms;
    for vm in vms {
        vm.check("echo 'lockspace nod nodir=1' >>/etc/dlm/dlm.conf");
    }
    // Static masters: half of the locks get theirs on whom comes.
    ask(first, &["join nod", "keep nod 0 40 PR"]);
    let heard = ask(
        second,
        &[
            "join nod",
            "lock 1 nod7 EX 1",
            "wait 1 9000",
            "lock 2 nod7 PR 1",
            "wait 2 9000",
        ],
    );
    assert_eq!(heard, ["cast 1 -11 0 -", "cast 2 0 0 -"]);
    ask(first, &["purge 2 0", "leave"]);
    ask(second, &["leave"]);

    if first.guest().kernel == Kernel::V6_1 {
        // What follows has one leave while the other does not look, for which this one waits three minutes.
        return;
    }
    // The master of all leaves and is back before the other has noticed: who is to be the new one?
    ask(second, &["join foo", "keep foo 0 40 NL"]);
    ask(first, &["join foo", "keep foo 0 40 PR"]);
    first.check("kill -STOP $(pidof dlm_controld)");
    ask(second, &["leave"]);
    let back = second.spawn("/root/dlmdrive ask 127.0.0.1:7000 'join foo'");
    second.check("until dlm_tool ls foo | grep -q '^new change'; do sleep 0.1; done");
    first.check("kill -CONT $(pidof dlm_controld)");
    let ran = second.result(&back, Duration::from_secs(60));
    assert!(ran.rc == 0, "{}", ran.output);
    let heard = ask(
        second,
        &[
            "lock 1 foo7 EX 1",
            "wait 1 9000",
            "lock 2 foo7 PR 1",
            "wait 2 9000",
        ],
    );
    assert_eq!(heard, ["cast 1 -11 0 -", "cast 2 0 0 -"]);
    ask(second, &["leave"]);
    ask(first, &["leave"]);
    for vm in vms {
        content(vm);
    }
}

/// What they said to each other is among the fixtures.
#[test]
fn two_kernels_remaster_each_others_locks() {
    if !long() && std::env::var_os("LAB_PCAP").is_none() {
        let capture = checkout().join("fixtures/captures/remaster-6.12.n1.pcap.zst");
        assert!(capture.is_file(), "{}", capture.display());
        return;
    }
    for kernel in kernels() {
        let vms = cluster(*kernel, [Kind::Kernel, Kind::Kernel]);
        remaster(&vms);
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
    let mut differences = Vec::new();
    for kernel in kernels() {
        let vms = cluster(*kernel, [Kind::Kernel, Kind::Kernel]);
        for vm in &vms {
            ask(vm, &["join foo"]);
        }
        // How long it takes them, for who compares it with ours.
        rejoin(&vms[0], &vms[1], 3);
        for seed in SEEDS {
            if std::env::var_os("DLM_RECORD").is_some() && *kernel == Kernel::V6_12 {
                let lines = stream(&vms, seed, RECORDED);
                fs::write(recorded(seed), lines.join("\n") + "\n").expect("a recording");
            } else {
                differences.extend(differs(&vms, seed, RECORDED));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}
