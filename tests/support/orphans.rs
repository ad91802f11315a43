//! What a killed process leaves in a lockspace of the kernel, and that our backend drops it: n1 is a bare kernel, n2 our
//! backend on the device of one.

use super::dlm::{Kind, ask, content, raise, raised, slots};
use super::vm::Vm;
use std::time::Instant;

/// Our backend dies with locks; they stay in the way until its next life has taken them over or dropped them.
#[track_caller]
pub fn orphans(kernel: &Vm, ours: &Vm) {
    ask(
        kernel,
        &[
            "lock 800 grave NL 8",
            "wait 800 9000",
            "lock 801 kept NL 8",
            "wait 801 9000",
        ],
    );
    for (token, name) in [(810, "grave"), (811, "kept")] {
        ask(
            ours,
            &[
                &format!("lock {token} {name} EX 8"),
                &format!("wait {token} 9000"),
                &format!("convert {token} PW 8 0a0b"),
                &format!("wait {token} 9000"),
            ],
        );
    }
    ask(kernel, &["events", "convert 800 PR 8 -", "convert 801 PR 8 -"]);
    ours.check("kill -9 $(cat /run/drive.pid)");
    ask(kernel, &["quiet 1000"]);
    let again = raise(ours, Kind::Device);
    raised(ours, &again);
    let heard = ask(
        ours,
        &[
            "join foo",
            "lock 1 kept PW 4000",
            "wait 1 9000",
            "lock 2 kept EX 4000",
            "wait 2 9000",
        ],
    );
    assert_eq!(heard, ["cast 1 0 0 -", "cast 2 -2 0 -"]);
    ask(kernel, &["quiet 300"]);
    ask(ours, &["purge"]);
    let heard = ask(kernel, &["wait 800 20000", "quiet 300"]);
    assert!(heard[0].starts_with("cast 800 0 2 0a0b"), "{heard:?}");
    ask(
        ours,
        &[
            "convert 1 NL 8 0c0d",
            "wait 1 9000",
            "unlock 1 0 -",
            "wait 1 9000",
        ],
    );
    let heard = ask(kernel, &["wait 801 20000"]);
    assert!(heard[0].starts_with("cast 801 0 0 0c0d"), "{heard:?}");
    ask(
        kernel,
        &[
            "unlock 800 0 -",
            "wait 800 9000",
            "unlock 801 0 -",
            "wait 801 9000",
            "events",
        ],
    );
}

/// Our backend asks for something and is killed before the other node can have answered; it has not been missed.
#[track_caller]
fn kill_unanswered(kernel: &Vm, ours: &Vm, command: &str) {
    let asked = format!("/root/dlmdrive ask 127.0.0.1:7000 '{command}' 'quiet 200'");
    let script = format!("{asked}\nkill -9 $(cat /run/drive.pid)");
    kernel.paused(|| ours.check(&script));
}

/// A name that the kernel's list gives in hex.
const BINARY: &str = "bin\u{1}ary";

/// Our backend is killed while it holds, waits and converts, on resources of both nodes, one conversion not yet answered;
/// beside it a process of others lives on. What the dead one left is dropped, no kernel minds, and the living keeps what it
/// has and waits for.
#[track_caller]
pub fn killed_while_it_waits(kernel: &Vm, ours: &Vm) {
    let start = Instant::now();
    let lock = |token: u32, name: &str, mode: &str| {
        [
            format!("lock {token} {name} {mode} 0"),
            format!("wait {token} 9000"),
        ]
    };
    let all = |vm: &Vm, commands: &[String]| {
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        ask(vm, &commands)
    };
    // Who asks first is the master.
    all(
        kernel,
        &[
            lock(900, "far", "EX"),
            lock(902, "turn", "PR"),
            lock(922, "late", "PR"),
        ]
        .concat(),
    );
    all(
        ours,
        &[
            lock(910, "near", "NL"),
            lock(914, "home", "PR"),
            lock(915, BINARY, "EX"),
            lock(916, "quo\"te", "PW"),
        ]
        .concat(),
    );
    all(
        kernel,
        &[lock(901, "near", "EX"), lock(903, "home", "PR")].concat(),
    );
    let other = "/root/dlmdrive ask 127.0.0.1:7001";
    ours.check(&format!(
        "(setsid /root/dlmdrive kernel 127.0.0.1:7001 >/host/other.log 2>&1 &)\n\
         until {other} events >/dev/null 2>&1; do sleep 0.1; done\n\
         {other} 'join foo' 'lock 1 live EX 80' 'wait 1 9000' 'lock 2 near PR 80' 'lock 3 far PR 80' 'quiet 100'"
    ));
    all(ours, &[lock(912, "turn", "PR"), lock(918, "late", "PR")].concat());
    let waits = [
        "lock 911 near EX 0",
        "lock 913 far EX 0",
        "convert 912 EX 0 -",
        "convert 914 EX 0 -",
        "quiet 500",
    ];
    ask(ours, &waits);
    kill_unanswered(kernel, ours, "convert 918 EX 0 -");
    let again = raise(ours, Kind::Device);
    raised(ours, &again);
    ask(ours, &["join foo", "purge", "lock 1 after NL 0", "wait 1 20000"]);
    ask(kernel, &["events", "quiet 300"]);
    // The living waits still, and is next.
    for (held, waits) in [(900, 3), (901, 2)] {
        ask(
            kernel,
            &[&format!("unlock {held} 0 -"), &format!("wait {held} 9000")],
        );
        let granted = ours.check(&format!("{other} 'wait {waits} 9000'"));
        assert!(granted.starts_with(&format!("cast {waits} 0")), "{granted}");
    }
    let held = ask(kernel, &["lock 904 live PR 1", "wait 904 9000"]);
    assert!(held[0].starts_with("cast 904 -11"), "{held:?}");
    ours.check(&format!(
        "{other} 'unlock 1 0 -' 'wait 1 9000' 'unlock 2 0 -' 'wait 2 9000' 'unlock 3 0 -' 'wait 3 9000' leave quit"
    ));
    for token in [902, 903, 922] {
        let heard = ask(
            kernel,
            &[&format!("convert {token} EX 0 -"), &format!("wait {token} 9000")],
        );
        assert!(heard[0].starts_with(&format!("cast {token} 0")), "{heard:?}");
    }
    for (token, name) in [
        (905, "far"),
        (906, "near"),
        (907, "live"),
        (908, BINARY),
        (909, "quo\"te"),
    ] {
        let heard = all(kernel, &lock(token, name, "EX"));
        assert!(heard[0].starts_with(&format!("cast {token} 0")), "{heard:?}");
    }
    let mut unlocks = Vec::new();
    for token in [902, 903, 905, 906, 907, 908, 909, 922] {
        unlocks.extend([format!("unlock {token} 0 -"), format!("wait {token} 9000")]);
    }
    all(kernel, &unlocks);
    ask(ours, &["unlock 1 0 -", "wait 1 9000"]);
    // Of this node's nothing is left on any resource: locks of others have 0x10000 in their flags.
    let left = ours.check("awk '$1 == \"lkb\" && $8 !~ /[13579bdf]....$/' /sys/kernel/debug/dlm/foo_all");
    assert_eq!(left, "", "{left}");
    for vm in [kernel, ours] {
        ask(vm, &["events"]);
        content(vm);
    }
    println!("killed while it waited: {:?}", start.elapsed());
}

/// Our backend is killed before a request of its is answered: the kernel would tell the dead process what becomes of it. The
/// next life refuses to use the node and says what to do, and that helps.
#[track_caller]
pub fn killed_before_the_answer(kernel: &Vm, ours: &Vm) {
    let start = Instant::now();
    ask(kernel, &["lock 930 unanswered EX 0", "wait 930 9000"]);
    kill_unanswered(kernel, ours, "lock 931 unanswered EX 0");
    let again = raise(ours, Kind::Device);
    raised(ours, &again);
    let heard = ask(ours, &["join foo", "purge", "await fatal 20000"]);
    let said = heard.last().expect("a line");
    let wanted = "fatal lock service: orphans could not be dropped: 1 requests were on their way";
    assert!(
        said.starts_with(wanted) && said.contains("dlm_tool leave foo"),
        "{heard:?}"
    );
    ours.check("dlm_tool leave foo");
    let alone = kernel.check("dmesg | grep 'foo: generation' | tail -n 1");
    assert_eq!(slots(&alone), ["1:1"]);
    ask(
        ours,
        &[
            "join foo",
            "purge",
            "lock 1 after NL 0",
            "wait 1 20000",
            "unlock 1 0 -",
            "wait 1 9000",
        ],
    );
    let unlocks = [
        "unlock 930 0 -",
        "wait 930 9000",
        "lock 932 unanswered EX 0",
        "wait 932 9000",
    ];
    let heard = ask(kernel, &unlocks);
    assert!(
        heard.last().is_some_and(|line| line.starts_with("cast 932 0")),
        "{heard:?}"
    );
    ask(kernel, &["unlock 932 0 -", "wait 932 9000", "events"]);
    for vm in [kernel, ours] {
        content(vm);
    }
    println!("killed before the answer: {:?}", start.elapsed());
}
