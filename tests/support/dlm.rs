//! Guests as nodes of a cluster, each with a driver of its lock manager (`dlm-client/examples/dlmdrive`).

use super::guest::Kernel;
use super::host::checkout;
use super::vm::{Hub, Vm};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// How long a death may take to be noticed, fenced and recovered.
pub const RECOVERY: Duration = Duration::from_secs(90);

/// The driver, built from what is there now, as this program was; `DLM_DRIVER=PROGRAM` takes another build.
fn driver() -> &'static Path {
    static DRIVER: OnceLock<PathBuf> = OnceLock::new();
    DRIVER.get_or_init(|| {
        if let Some(program) = std::env::var_os("DLM_DRIVER") {
            return PathBuf::from(program);
        }
        let release = !cfg!(debug_assertions);
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "-q", "-p", "dlm-client", "--example", "dlmdrive"]);
        build.args(release.then_some("--release"));
        let built = build.current_dir(checkout()).status().expect("cargo");
        assert!(built.success(), "the driver does not build");
        let deps = std::env::current_exe().expect("our own path");
        let target = deps.ancestors().nth(3).expect("a target folder");
        let profile = if release { "release" } else { "debug" };
        target.join(profile).join("examples/dlmdrive")
    })
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel's own, bare.
    Kernel,
    /// The kernel, through our backend.
    Device,
    /// Ours, without the kernel's.
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

/// Starts a node of a cluster of two; its id is for `Vm::result`.
pub fn raise(vm: &Vm, kind: Kind) -> String {
    raise_in(vm, kind, 2, &[])
}

/// Starts a node of a cluster of so many, with more lines of dlm.conf; its id is for `Vm::result`.
pub fn raise_in(vm: &Vm, kind: Kind, nodes: usize, conf: &[&str]) -> String {
    supply(vm);
    let kind = match kind {
        Kind::Kernel => "kernel",
        Kind::Device => "device",
        Kind::Wire => "wire",
    };
    let lines = ["fence_all /root/fence-host.sh"].iter().chain(conf);
    let lines: Vec<String> = lines.map(|line| format!("'{line}'")).collect();
    let lines = lines.join(" ");
    vm.spawn(&format!("NODES={nodes} bash /host/dlm-node.sh {kind} {lines}"))
}

#[track_caller]
pub fn raised(vm: &Vm, id: &str) {
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
pub fn cluster(kernel: Kernel, kinds: [Kind; 2]) -> [Vm; 2] {
    cluster_on(kernel, kinds, &[])
}

/// Two nodes with disks.
#[track_caller]
pub fn cluster_on(kernel: Kernel, kinds: [Kind; 2], disks: &[&Path]) -> [Vm; 2] {
    driver();
    let vms = Vm::start_pair(kernel, disks);
    let ids = [raise(&vms[0], kinds[0]), raise(&vms[1], kinds[1])];
    for (vm, id) in vms.iter().zip(&ids) {
        raised(vm, id);
    }
    vms
}

/// What the daemons of three nodes are told: they come up at different times, and nobody is dead for that.
const TRIO_CONF: [&str; 1] = ["enable_startup_fencing=0"];

/// Three nodes, n1 to n3, on a hub.
#[track_caller]
pub fn trio(nodes: [(Kernel, Kind); 3]) -> (Hub, [Vm; 3]) {
    driver();
    let hub = Hub::start(3);
    let mut ids = Vec::new();
    let vms = [1, 2, 3].map(|node: u8| {
        let (kernel, kind) = nodes[usize::from(node) - 1];
        let vm = Vm::start_on(&hub, kernel, node);
        ids.push(raise_in(&vm, kind, 3, &TRIO_CONF));
        vm
    });
    for (vm, id) in vms.iter().zip(&ids) {
        raised(vm, id);
    }
    (hub, vms)
}

/// One of three nodes, again.
#[track_caller]
pub fn again(hub: &Hub, kernel: Kernel, node: u8, kind: Kind) -> Vm {
    let vm = Vm::start_on(hub, kernel, node);
    let id = raise_in(&vm, kind, 3, &TRIO_CONF);
    raised(&vm, &id);
    vm
}

/// Gives commands to the node of a guest, one after the other; the lines of all answers.
#[track_caller]
pub fn ask(vm: &Vm, commands: &[&str]) -> Vec<String> {
    let quoted: Vec<String> = commands.iter().map(|c| format!("'{c}'")).collect();
    let script = format!("/root/dlmdrive ask 127.0.0.1:7000 {}", quoted.join(" "));
    let ran = vm.run_for(&script, Duration::from_secs(180));
    let log = fs::read_to_string(vm.share().join("drive.log")).unwrap_or_default();
    assert!(ran.rc == 0, "{commands:?}: {}\n{log}", ran.output);
    ran.output.lines().map(str::to_owned).collect()
}

/// The line that ends with the slots of the last recovery, as node ids by slot.
pub fn slots(line: &str) -> Vec<String> {
    let words = line.split_whitespace().skip_while(|w| *w != "slots").skip(1);
    let mut pairs: Vec<String> = words.filter(|w| w.contains(':')).map(str::to_owned).collect();
    pairs.sort();
    pairs
}

/// Lines that begin with one of these words, without their numbers.
pub fn shape(text: &str, first: &[&str]) -> Vec<String> {
    let begins = |line: &&str| {
        line.split_whitespace()
            .next()
            .is_some_and(|word| first.contains(&word))
    };
    let number = |word: &str| {
        let digits = word.trim_start_matches("0x").trim_end_matches(',');
        digits.contains(|c: char| c.is_ascii_digit())
            && digits.chars().all(|c| c.is_ascii_hexdigit() || c == ',')
    };
    let words = |line: &str| {
        let words = line.split(' ').map(|word| if number(word) { "#" } else { word });
        words.collect::<Vec<_>>().join(" ")
    };
    text.lines().filter(begins).map(words).collect()
}

/// No word of a fault in the kernel's log.
#[track_caller]
pub fn content(vm: &Vm) {
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
    let log = match vm.guest().kernel {
        Kernel::V6_1 => without_its_own(&log),
        Kernel::V6_12 => log.lines().collect(),
    };
    let bad: Vec<&str> = log.into_iter().filter(bad).collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// The log without the one warning that 6.1 gives of itself: what comes in while it recovers is copied into a queue, and
/// its check of copies takes each message with a name or a value block in it for longer than its kind. The messages of
/// other kernels do it as well.
fn without_its_own(log: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = log.lines().collect();
    let copy = |line: &&str| line.contains("WARNING") && line.contains(" dlm_add_requestqueue+");
    while let Some(at) = lines.iter().position(copy) {
        let rest = &lines[at..];
        let Some(len) = rest.iter().position(|line| line.contains("---[ end trace")) else {
            return lines;
        };
        println!("of itself: {}", lines[at]);
        lines.drain(at..=at + len);
    }
    lines
}

#[test]
fn only_the_warning_of_its_own_copy_is_taken_out() {
    let log = "dlm: a\nWARNING: CPU: 0 at fs/dlm/requestqueue.c:47 dlm_add_requestqueue+0xe7/0xf0\nCall Trace:\n\
               ---[ end trace 0 ]---\nWARNING: CPU: 0 at fs/dlm/lock.c:1 other+0x1/0x2\nCall Trace:";
    let left = without_its_own(log);
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(left[1].contains("other"), "{left:?}");
}
