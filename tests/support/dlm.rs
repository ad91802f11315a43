//! Guests as nodes of a cluster, each with a driver of its lock manager (`dlm-client/examples/dlmdrive`).

use super::guest::Kernel;
use super::host::checkout;
use super::vm::Vm;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

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

/// Starts a node; its id is for `Vm::result`.
pub fn raise(vm: &Vm, kind: Kind) -> String {
    supply(vm);
    let kind = match kind {
        Kind::Kernel => "kernel",
        Kind::Device => "device",
        Kind::Wire => "wire",
    };
    vm.spawn(&format!(
        "bash /host/dlm-node.sh {kind} 'fence_all /root/fence-host.sh'"
    ))
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
